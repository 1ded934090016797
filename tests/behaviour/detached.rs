//! `start -d`, what it says and lets go of, the log of a detached runner, and what lines of a log look like.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::project::{Project, fake_project, fake_project_with_settings, system_python};
use crate::support::runner::{BINARY, Runner, status, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server, fresh_uuid_v4};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::sys;
use crate::support::wait::eventually;

/// For what starts an interpreter or two, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// A log file that is larger is moved aside.
const LOG_MAX: usize = 10 * 1024 * 1024;

#[test]
fn it_returns_when_the_runner_has_its_lock_and_says_its_pid_and_where_its_log_is() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let ended = detach(&project, &state).server(&server).run_to_end(WITHIN);
    let pid = ended.detached_pid();
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout, format!("started: PID {pid}, log '{}'\n", log_of(&state).display()));
    let (code, report) = status(&project, &state);
    assert_eq!((code, &report["pid"]), (Some(0), &pid.into()));
    let is_accepted = |report: &Value| (report["key"] == "accepted").then_some(());
    wait_for_status(&project, &state, "the service to accept the key", WITHIN, is_accepted);
    let id = server.enqueue(Job::new("echo").args("works"));
    assert_eq!(server.completed(&id, WITHIN).exit_code, 0);
    wait_for_line(&state, &format!("execution {id} (echo): success"));
    assert_eq!(fs::metadata(log_of(&state)).unwrap().mode() & 0o777, 0o600);
    let log = read_log(&state);
    for line in ["project '", "state in '", "connected: the service accepts the key"] {
        assert!(log.contains(line), "{line} is not in\n{log}");
    }
    assert!(sys::kill(pid, libc::SIGTERM));
    eventually("the end of the runner", || state.processes().is_empty());
}

#[test]
fn the_runner_has_nothing_of_its_caller_but_the_working_directory() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let held = project.dir().join("held");
    // The shell ends when `cat` has seen the end of both streams: then nobody else holds them.
    let line = format!(
        "exec 3<manage.py 9>'{}'; '{BINARY}' start -d --state-dir '{}' 2>&1 | cat",
        held.display(),
        state.path().display()
    );
    let mut command = bare("sh", &state);
    command.args(["-c", &line]).current_dir(project.dir()).stdin(File::open("/dev/zero").unwrap());
    let output = to_service(&mut command, &server).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && stdout.starts_with("started: PID "), "{stdout}");
    let (_, report) = status(&project, &state);
    let pid = u32::try_from(report["pid"].as_u64().unwrap()).unwrap();
    assert!(stdout.contains(&format!("PID {pid},")), "{stdout}");

    let proc = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // Behind state and parent: the process group, the session, and the terminal, of which there is none.
    assert_eq!(fields[2..5], [&pid.to_string(), &pid.to_string(), "0"], "{stat}");
    let leads_to = |fd: &str| fs::read_link(proc.join("fd").join(fd)).unwrap();
    assert_eq!(leads_to("0"), Path::new("/dev/null"));
    assert_eq!((leads_to("1"), leads_to("2")), (log_of(&state), log_of(&state)));
    let all: Vec<PathBuf> = fs::read_dir(proc.join("fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    let is_callers =
        |path: &Path| path.starts_with(project.dir()) || path.to_string_lossy().contains("pipe:");
    assert!(!all.iter().any(|path| is_callers(path)), "{all:?}");
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), fs::canonicalize(project.dir()).unwrap());
    assert_eq!(fs::read_to_string(proc.join("comm")).unwrap(), "djangocommand\n");
    assert!(command_line(pid).starts_with("djangocommand start "), "{}", command_line(pid));
}

#[test]
fn the_supervisor_of_its_caller_is_not_its_own() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let socket = UnixDatagram::bind(project.dir().join("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let started = detach(&project, &state)
        .server(&server)
        .env("NOTIFY_SOCKET", project.dir().join("notify"))
        .env("WATCHDOG_USEC", "2000000")
        .env("WATCHDOG_PID", "1")
        .run_to_end(WITHIN);
    let pid = started.detached_pid();
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let has = |name: &str| environment.split('\0').any(|variable| variable.split('=').next() == Some(name));
    assert!(has("DJANGOCOMMAND_API_KEY"), "this is the environment that it began with");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        assert!(!has(name), "{name}");
    }
    let id = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, WITHIN).exit_code, 0);
    assert!(sys::kill(pid, libc::SIGTERM));
    eventually("the end of the runner", || state.processes().is_empty());
    let told = socket.recv(&mut [0; 1000]);
    assert_eq!(told.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn whatever_is_wrong_is_said_on_the_terminal_as_in_the_foreground_and_nothing_is_left_running() {
    let (good, keyless) = (fake_project(), fake_project());
    let broken = fake_project_with_settings("raise RuntimeError('no database today')");
    let [shared, unusable, logless] = [(); 3].map(|()| StateDir::new());
    fs::set_permissions(shared.path(), Permissions::from_mode(0o777)).unwrap();
    fs::create_dir_all(unusable.path()).unwrap();
    fs::write(unusable.path().join("executions"), "no directory").unwrap();
    fs::create_dir(log_of(&logless)).unwrap();
    for (project, key, state, code, said) in [
        (&keyless, None, StateDir::new(), 78, "DJANGOCOMMAND_API_KEY"),
        (&good, Some("no key\n"), StateDir::new(), 78, "DJANGOCOMMAND_API_KEY"),
        (&broken, Some(KEY), StateDir::new(), 1, "RuntimeError: no database today"),
        (&good, Some(KEY), shared, 78, "others can write to the state directory"),
        (&good, Some(KEY), unusable, 1, "cannot use the state directory"),
    ] {
        let run = |detached: &[&str]| {
            let runner = Runner::in_project(project).state_dir(&state).args(detached);
            let runner = runner.args(["--server-url", "http://127.0.0.1:1"]);
            key.into_iter()
                .fold(runner, |runner, key| runner.env("DJANGOCOMMAND_API_KEY", key))
                .run_to_end(WITHIN)
        };
        let (foreground, detached) = (run(&[]), run(&["-d"]));
        assert_eq!((foreground.code(), detached.code()), (Some(code), Some(code)), "{said}: {detached:?}");
        assert_eq!(detached.stdout, "");
        assert!(detached.stderr.starts_with("djangocommand: "), "{detached:?}");
        assert!(detached.stderr.contains(said), "{said} is not in {detached:?}");
        // The log, which it has on its terminal as well, comes first there.
        assert!(foreground.stderr.ends_with(&detached.stderr), "{foreground:?} is not {detached:?}");
        assert!(state.processes().is_empty(), "{said}: {:?}", state.processes());
    }
    let traceback =
        detach(&broken, &StateDir::new()).env("DJANGOCOMMAND_API_KEY", KEY).run_to_end(WITHIN).stderr;
    assert!(traceback.contains("Traceback (most recent call last):"), "{traceback}");
    let ended = detach(&good, &logless).env("DJANGOCOMMAND_API_KEY", KEY).run_to_end(WITHIN);
    assert!(ended.code() == Some(1) && ended.stderr.contains("cannot write the log '"), "{ended:?}");
}

#[test]
fn another_runner_is_named_by_its_pid_and_stays() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let pid = detach(&project, &state).server(&server).run_to_end(WITHIN).detached_pid();
    for mode in [&["-d"][..], &[]] {
        let runner = Runner::in_project(&project).state_dir(&state).args(mode).server(&server);
        let ended = runner.run_to_end(WITHIN);
        assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        let said = format!("djangocommand: a runner is already running (PID {pid}) with the state in '");
        assert!(ended.stderr.starts_with(&said) && ended.stderr.lines().count() == 1, "{ended:?}");
    }
    assert_eq!(runners(&state), [pid]);
}

#[test]
fn a_caller_that_is_killed_before_the_runner_is_ready_takes_it_along() {
    let project = fake_project_with_settings(
        "import time\nopen(os.path.join(BASE_DIR, 'loading'), 'w').close()\ntime.sleep(60)",
    );
    let state = StateDir::new();
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let caller = detach(&project, &state).env("DJANGOCOMMAND_API_KEY", KEY).start();
        eventually("the project to load", || project.dir().join("loading").exists());
        assert_eq!(runners(&state).len(), 1);
        caller.signal(signal);
        caller.wait_exit(WITHIN);
        eventually("the end of all that was started", || state.processes().is_empty());
        assert_eq!(status(&project, &state).0, Some(3));
        fs::remove_file(project.dir().join("loading")).unwrap();
    }
}

#[test]
fn what_a_project_prints_while_it_loads_is_no_part_of_the_answer_however_much_it_is() {
    let print =
        "import sys\nfor stream in (sys.stdout, sys.stderr):\n    stream.write('noise ready\\n' * 20000)\n";
    let (server, state) = (Server::start(), StateDir::new());
    let noisy = fake_project_with_settings(print);
    let ended = detach(&noisy, &state).server(&server).run_to_end(WITHIN);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""));
    ended.detached_pid();
    let broken = fake_project_with_settings(&format!("{print}raise RuntimeError('broken')"));
    let ended = detach(&broken, &StateDir::new()).env("DJANGOCOMMAND_API_KEY", KEY).run_to_end(WITHIN);
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.len() > 200_000, "{} bytes", ended.stderr.len());
    assert!(ended.stderr.starts_with("djangocommand: the project does not load: RuntimeError: broken\n"));
}

#[test]
fn the_runner_is_told_all_options_wherever_they_stand_and_by_the_callers_paths() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    // The runner of this test must not find a key or a Python in any other way.
    project.write("other.py", &format!("from settings import *\nDJANGOCOMMAND_API_KEY = {KEY:?}"));
    project.write("settings.py", &fs::read_to_string(project.dir().join("settings.py")).unwrap());
    symlink(system_python(), project.dir().join("python-of-this-test")).unwrap();
    fs::create_dir(project.dir().join("below")).unwrap();
    server.always(Endpoint::Pending, Fault::status(503));
    let mut command = bare(BINARY, &state);
    command.current_dir(project.dir().join("below"));
    command.args(["-C", "..", "--python", "../python-of-this-test", "-v", "3", "start", "-d"]);
    command.args([
        "--state-dir",
        "state",
        "--settings",
        "other",
        "--server-url",
        &server.url(),
        "--no-reload",
    ]);
    command.args(["--log-format", "plain"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let log = project.dir().join("below/state/runner.log");
    let log = || fs::read_to_string(&log).unwrap();
    // The second failure of an outage is said to those only who want to know everything.
    eventually("a line for those who want to know everything", || log().contains("debug poll failed: "));
    assert!(log().contains("python-of-this-test' (--python)"), "{}", log());
    assert!(log().starts_with("info "), "{}", log());
    let pid = runners(&state)[0];
    assert!(command_line(pid).contains(" --no-reload"), "{}", command_line(pid));
}

#[test]
fn a_log_of_more_than_10_mb_is_moved_aside_and_two_old_ones_are_kept() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let aged = |age: u8| state.path().join(format!("runner.log.{age}"));
    let full = "an old line\n".repeat(LOG_MAX / 12 + 1);
    fs::write(log_of(&state), &full).unwrap();
    fs::write(aged(1), "older\n").unwrap();
    fs::write(aged(2), "oldest\n").unwrap();
    let pid = detach(&project, &state).server(&server).run_to_end(WITHIN).detached_pid();
    assert!(fs::read_to_string(aged(1)).unwrap() == full);
    assert_eq!(fs::read_to_string(aged(2)).unwrap(), "older\n");
    wait_for_line(&state, "connected");
    assert!(read_log(&state).lines().next().unwrap().contains("project '"), "{}", read_log(&state));

    // Once more, while it runs. Nothing is stored for the size: the file has a hole at its end.
    File::options().write(true).open(log_of(&state)).unwrap().set_len(LOG_MAX as u64 + 1).unwrap();
    assert!(sys::kill(pid, libc::SIGHUP));
    wait_for_line(&state, "the project was loaded again");
    assert!(fs::read_to_string(aged(2)).unwrap() == full);
    assert!(fs::read(aged(1)).unwrap().len() > LOG_MAX);
    // What a panic says goes the same way, behind what is there.
    let now = fs::metadata(log_of(&state)).unwrap();
    assert_eq!(now.mode() & 0o777, 0o600);
    for fd in ["1", "2"] {
        let stream = fs::metadata(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!((stream.dev(), stream.ino()), (now.dev(), now.ino()));
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert!(flags & libc::O_APPEND != 0, "{info}");
    }
    let names = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().starts_with("runner.log")).count(), 3);
}

#[test]
fn logs_shows_the_last_lines_across_rotation() {
    let (project, state) = (fake_project(), StateDir::new());
    for (name, lines) in [("runner.log.2", 0..20), ("runner.log.1", 20..30), ("runner.log", 30..33)] {
        let lines: String = lines.map(|number| format!("line {number}\n")).collect();
        fs::write(state.path().join(name), lines).unwrap();
    }
    for (args, first) in
        [(&[][..], 13), (&["-n", "2"], 31), (&["--lines=9"], 24), (&["-n", "500"], 0), (&["-n0"], 33)]
    {
        let ended = logs(&project, &state).args(args).run_to_end(WITHIN);
        let expected: String = (first..33).map(|number| format!("line {number}\n")).collect();
        assert_eq!(
            (ended.code(), ended.stdout, ended.stderr),
            (Some(0), expected, String::new()),
            "{args:?}"
        );
    }
}

#[test]
fn logs_follows_across_a_rotation_until_it_is_interrupted() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    fs::write(log_of(&state), format!("{}the last old line\n", "an old line\n".repeat(LOG_MAX / 12 + 1)))
        .unwrap();
    let follower = logs(&project, &state).args(["-fn", "2"]).start();
    follower.wait_for_log("the last old line", WITHIN);
    let started = detach(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(started.code(), Some(0));
    follower.wait_for_log("connected: the service accepts the key", WITHIN);
    assert!(state.path().join("runner.log.1").exists());
    let id = server.enqueue(Job::new("echo"));
    follower.wait_for_log(&format!("execution {id} (echo): success"), WITHIN);
    // To the byte, once it has come to where the log is.
    eventually("all that is in the log", || {
        follower.log() == format!("an old line\nthe last old line\n{}", read_log(&state))
    });
    follower.signal(libc::SIGINT);
    assert_eq!(follower.wait_exit(WITHIN).signal(), Some(libc::SIGINT), "as tail does");
}

#[test]
fn logs_without_a_log_says_where_that_of_a_runner_in_the_foreground_is() {
    let (server, project) = (Server::start(), fake_project());
    let runner = Runner::in_project(&project).server(&server).start();
    runner.wait_for_log("connected", WITHIN);
    for args in [&[][..], &["-f"]] {
        let ended = logs(&project, runner.state_dir()).args(args).run_to_end(WITHIN);
        let said = format!(
            "djangocommand: there is no log in '{}': a runner in the foreground writes to its terminal or supervisor\n",
            runner.state_dir().path().display()
        );
        assert_eq!((ended.code(), ended.stdout, ended.stderr), (Some(1), String::new(), said));
    }
}

#[test]
fn a_line_has_a_time_or_none_or_the_priority_that_the_journal_takes_off_again() {
    let (server, project) = (Server::start(), fake_project());
    let round = |journal: Journal, args: &[&str]| {
        let log = one_round(&project, &server, journal, args);
        // Errors that end the program come without a format; here there are none.
        (log.lines().next().unwrap().to_owned(), log)
    };
    let is_stamped = |line: &str| line.starts_with("20") && line[19..].starts_with(" info    project '");
    for (journal, args, expected) in [
        (Journal::Unset, &[][..], None),
        (Journal::Unset, &["--log-format", "plain"], Some("info project '")),
        (Journal::StandardError, &[], Some("<6>info project '")),
        (Journal::StandardError, &["--log-format", "plain"], Some("info project '")),
        (Journal::StandardError, &["--log-format", "time"], None),
        (Journal::SomethingElse, &[], None),
    ] {
        let (first, log) = round(journal, args);
        let is_right = expected.map_or_else(|| is_stamped(&first), |expected| first.starts_with(expected));
        assert!(is_right, "{args:?}: {log}");
        let shape = |line: &str| line.starts_with("<6>") || line.starts_with("<4>");
        assert!(log.lines().all(|line| shape(line) == first.starts_with("<6>")), "{log}");
    }
}

#[test]
fn the_log_file_of_a_detached_runner_has_times_though_its_caller_writes_to_the_journal() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let (status, said) = in_journal(&project, &server, &state, Journal::StandardError, &["-d"]);
    assert!(status.success(), "{said}");
    assert_eq!(said, "");
    wait_for_line(&state, "connected");
    assert!(read_log(&state).lines().all(|line| line.starts_with("20")), "{}", read_log(&state));
}

#[test]
fn verbosity_goes_from_errors_to_everything_and_what_happens_is_the_default() {
    let project = fake_project();
    let levels = ["error", "warning", "info", "debug"];
    for (args, count) in
        [(&[][..], 3), (&["-v0"], 1), (&["-v1"], 2), (&["-v2"], 3), (&["-v3"], 4), (&["-q"], 1)]
    {
        let state = StateDir::new();
        // An error: somebody has been in the directory. The service that cannot be reached is a warning, and for those
        // who want to know everything it is mentioned at each attempt.
        let foreign = state.path().join("executions").join(fresh_uuid_v4());
        fs::create_dir_all(&foreign).unwrap();
        fs::write(foreign.join("spec.json"), "[]").unwrap();
        let runner = Runner::in_project(&project).state_dir(&state).args(["--once", "--log-format", "plain"]);
        let runner = runner.args(["--server-url", "http://127.0.0.1:1"]).args(args);
        let runner = runner.env("DJANGOCOMMAND_API_KEY", KEY).env("DJANGOCOMMAND_MAX_RETRIES", "1");
        let ended = runner.run_to_end(WITHIN);
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        let is_said = |level: &&str| ended.stderr.lines().any(|line| line.starts_with(&format!("{level} ")));
        let said: Vec<&str> = levels.into_iter().filter(is_said).collect();
        assert_eq!(said, levels[..count], "{args:?}: {}", ended.stderr);
    }
}

/// What `$JOURNAL_STREAM` names.
#[derive(Clone, Copy)]
enum Journal {
    Unset,
    StandardError,
    SomethingElse,
}

/// The log of a runner in the foreground that has nothing to do.
fn one_round(project: &Project, server: &Server, journal: Journal, args: &[&str]) -> String {
    let args = [&["--once"], args].concat();
    let (status, log) = in_journal(project, server, &StateDir::new(), journal, &args);
    assert!(status.success(), "{log}");
    log
}

/// A `start` whose standard error is a file, and what it wrote there.
fn in_journal(
    project: &Project,
    server: &Server,
    state: &StateDir,
    journal: Journal,
    args: &[&str],
) -> (ExitStatus, String) {
    let path = project.dir().join("journal");
    let file = File::create(&path).unwrap();
    let meta = file.metadata().unwrap();
    let mut command = bare(BINARY, state);
    command.arg("start").arg("-C").arg(project.dir()).arg("--state-dir").arg(state.path()).args(args);
    match journal {
        Journal::Unset => {}
        Journal::StandardError => _ = command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino())),
        Journal::SomethingElse => {
            _ = command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino() + 1))
        }
    }
    let status = to_service(&mut command, server).stdout(Stdio::null()).stderr(file).status().unwrap();
    (status, fs::read_to_string(path).unwrap())
}

/// A program with an environment of its own; what it starts ends with `state`.
fn bare(program: &str, state: &StateDir) -> Command {
    let mut command = Command::new(program);
    let path = system_python().parent().unwrap().display().to_string();
    command
        .env_clear()
        .env("PATH", format!("{path}:/usr/bin:/bin"))
        .env(MARK, state.path())
        .stdin(Stdio::null());
    command
}

fn to_service<'a>(command: &'a mut Command, server: &Server) -> &'a mut Command {
    command.env("DJANGOCOMMAND_SERVER_URL", server.url()).env("DJANGOCOMMAND_API_KEY", KEY)
}

fn detach<'a>(project: &'a Project, state: &StateDir) -> Runner<'a> {
    Runner::in_project(project).state_dir(state).arg("-d")
}

fn logs<'a>(project: &'a Project, state: &StateDir) -> Runner<'a> {
    Runner::in_project(project).subcommand("logs").state_dir(state)
}

fn log_of(state: &StateDir) -> PathBuf {
    state.path().join("runner.log")
}

fn read_log(state: &StateDir) -> String {
    String::from_utf8_lossy(&fs::read(log_of(state)).unwrap_or_default()).into_owned()
}

fn wait_for_line(state: &StateDir, text: &str) {
    eventually(&format!("{text:?} in the log"), || read_log(state).contains(text));
}

/// The detached runners among the processes of this state directory.
fn runners(state: &StateDir) -> Vec<u32> {
    state.processes().into_iter().filter(|pid| command_line(*pid).contains(" --detached")).collect()
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
