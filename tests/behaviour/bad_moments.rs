//! Bad moments: many at once, killed half way, odd paths, a state directory that is removed, a clock that is set.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::preload::Preload;
use crate::support::project::{Project, fake_project, fake_project_called, system_python};
use crate::support::runner::{Ended, Runner, copy_binary, status, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server, fresh_uuid_v4};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::sys;
use crate::support::wait::{eventually, pause};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// The user "nobody" of every Linux.
const NOBODY: u32 = 65_534;
/// Where every user finds a python3, even if the developer's own is in a private place.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const HOUR: i32 = 3600;

#[test]
fn of_fifty_simultaneous_starts_one_wins_and_all_others_name_it() {
    let stage = Stage::new();
    let starts: Vec<_> = (0..50).map(|_| stage.runner("start").arg("-d").start()).collect();
    let codes: Vec<_> = starts.iter().map(|start| start.wait_exit(WITHIN).code()).collect();
    let (winner, losers): (Vec<_>, Vec<_>) =
        starts.iter().zip(&codes).partition(|(_, code)| **code == Some(0));
    let [(winner, _)] = winner[..] else { panic!("{codes:?}") };
    let (code, report) = status(&stage.project, &stage.state);
    let pid = report["pid"].as_u64().unwrap();
    assert_eq!(code, Some(0));
    winner.wait_for_log(&format!("started: PID {pid}, "), WITHIN);
    for (loser, code) in losers {
        assert_eq!(*code, Some(1));
        loser.wait_for_log(&format!("djangocommand: a runner is already running (PID {pid}) with"), WITHIN);
    }
    stage.assert_works_and_stops();
}

#[test]
fn a_detached_start_whose_parent_is_killed_half_way_leaves_one_runner_or_none() {
    killed_half_way(|_, start| {
        // It may have ended already.
        sys::kill(start, libc::SIGKILL);
    });
}

#[test]
fn a_detached_start_whose_child_is_killed_half_way_leaves_one_runner_or_none() {
    killed_half_way(|stage, _| {
        for child in stage.detached() {
            sys::kill(child, libc::SIGKILL);
        }
    });
}

/// Kills at random instants between a start and its being ready, and looks at what is left each time.
fn killed_half_way(kill: impl Fn(&Stage, u32)) {
    let (stage, mut random) = (Stage::new(), Random::new());
    let mut seen = [0, 0];
    for _ in 0..10 {
        let start = stage.runner("start").arg("-d").start();
        pause(Duration::from_millis(random.below(600)));
        kill(&stage, start.pid());
        start.wait_exit(WITHIN);
        // What dies with its parent dies a moment later.
        eventually("one runner that the status knows, or none", || {
            let (code, report) = status(&stage.project, &stage.state);
            match stage.detached()[..] {
                [] => code == Some(3) && report["status"] == "stopped",
                // One that is about to die has the lock too, but never talks to the service.
                [pid] => code == Some(0) && report["pid"] == pid && report["key"] == "accepted",
                _ => false,
            }
        });
        let is_there = !stage.detached().is_empty();
        seen[usize::from(is_there)] += 1;
        let again = stage.runner("start").arg("-d").run_to_end(WITHIN);
        assert_eq!(again.code(), Some(i32::from(is_there)), "{again:?}");
        assert_eq!(stage.detached().len(), 1);
        let stopped = stage.run("stop", &[]);
        assert_eq!(stopped.code(), Some(0), "{stopped:?}");
        eventually("the end of all", || stage.state.processes().is_empty());
    }
    println!("none {}, one {}", seen[0], seen[1]);
}

#[test]
fn a_runner_that_is_killed_while_it_is_stopped_has_ended_all_the_same() {
    let (stage, mut random) = (Stage::new(), Random::new());
    for round in 0..8 {
        let is_forced = round % 2 == 0;
        let runner = stage.runner("start").start();
        let polls = stage.server.state(|state| state.of(Endpoint::Pending).count());
        let busy = is_forced.then(|| stage.server.enqueue(Job::new("on_term").no_timeout()));
        match &busy {
            Some(id) => shows(&stage.server, id, "ready\n"),
            None => stage.server.wait_for("a poll", WITHIN, |state| {
                (state.of(Endpoint::Pending).count() > polls).then_some(())
            }),
        }
        let args = if is_forced { &["--force"][..] } else { &[] };
        let stop =
            Runner::in_project(&stage.project).subcommand("stop").state_dir(&stage.state).args(args).start();
        pause(Duration::from_millis(random.below(if is_forced { 300 } else { 30 })));
        runner.kill();
        assert_eq!(stop.wait_exit(WITHIN).code(), Some(0), "{}", stop.log());
        assert!(stage.state.processes().is_empty(), "{:?}", stage.state.processes());
        let code = status(&stage.project, &stage.state).0;
        assert!(code == Some(3) || (is_forced && code == Some(1)), "{code:?}");
        let started = stage.runner("start").arg("-d").run_to_end(WITHIN);
        assert_eq!(started.code(), Some(0), "{started:?}");
        if let Some(id) = &busy {
            assert_eq!(stage.server.completed(id, WITHIN).status, "cancelled");
        }
        assert_eq!(stage.run("stop", &[]).code(), Some(0));
    }
}

#[test]
fn a_stop_while_a_request_hangs_and_something_runs_is_heard_when_the_request_is_over() {
    let stage = Stage::new();
    let id = stage.server.enqueue(Job::new("slow").args("20 0.2"));
    let runner = stage.runner("start").start();
    shows(&stage.server, &id, "line 1\n");
    stage.server.always(Endpoint::CancelStatus, Fault::Hang);
    let asked = stage.server.state(|state| state.of(Endpoint::CancelStatus).count());
    stage.server.wait_for("a request that hangs", WITHIN, |state| {
        (state.of(Endpoint::CancelStatus).count() > asked).then_some(())
    });
    for _ in 0..2 {
        let stopped = stage.run("stop", &["--timeout", "0.5"]);
        assert_eq!(stopped.code(), Some(1), "{stopped:?}");
        assert!(
            stopped.stdout.contains(&format!("still there: PID {}: 1 still running: slow (", runner.pid()))
        );
    }
    stage.server.heal(Endpoint::CancelStatus);
    stage.server.release();
    assert_eq!(stage.server.completed(&id, WITHIN).status, "success");
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
}

#[test]
fn two_projects_of_one_user_do_not_see_each_other() {
    let user = User::new();
    let (server, [one, other]) = (Server::start(), [fake_project(), fake_project()]);
    let pid = |project: &Project| {
        let output = user.typed(project, &["status", "--json"], None);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report["pid"].as_u64())
    };
    for (project, alone) in [(&one, true), (&other, false)] {
        user.open(project);
        let started = user.typed(project, &["start", "-d"], Some(&server));
        assert!(started.status.success(), "{started:?}");
        assert_eq!(pid(&other).0, Some(if alone { 3 } else { 0 }));
    }
    let (first, second) = (pid(&one), pid(&other));
    assert!(first.1.is_some() && second.1.is_some() && first != second, "{first:?} {second:?}");
    assert!(user.typed(&one, &["stop", "--force"], None).status.success());
    assert_eq!((pid(&one), pid(&other)), ((Some(3), None), second));
    assert!(user.typed(&other, &["stop"], None).status.success());
}

#[test]
fn paths_may_have_spaces_and_letters_of_any_language() {
    let user = User::new();
    let (server, project) = (Server::start(), fake_project_called("mein Büro – проект "));
    user.open(&project);
    let done = |args: &[&str], said: &str| {
        let output = user.typed(&project, args, Some(&server));
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.status.success() && stdout.contains(said), "{args:?}: {output:?}");
        stdout
    };
    done(&["start", "-d"], "started: PID ");
    let id = server.enqueue(Job::new("cwd"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let ran: Value = serde_json::from_str(&server.state(|state| state.execution(&id).stdout())).unwrap();
    assert_eq!(ran["cwd"], fs::canonicalize(project.dir()).unwrap().to_str().unwrap());
    let seen = done(&["status"], project.dir().to_str().unwrap());
    let state =
        format!(".local/state/djangocommand{}/.state\n", fs::canonicalize(project.dir()).unwrap().display());
    assert!(seen.contains(&state), "{state} is not in {seen}");
    done(&["reload"], "reloaded\n");
    done(&["restart", "-d"], "started: PID ");
    let id = server.enqueue(Job::new("echo").args("'zwei Wörter'"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    done(&["logs"], "state in '");
    done(&["stop"], "stopped (PID ");
}

#[test]
fn without_a_home_it_runs_where_it_is_told_to_or_says_where_it_cannot() {
    let user = User::new();
    let (server, project, state) = (Server::start(), fake_project(), user.state());
    user.open(&project);
    let mut start = user.command(&project, &["start", "-d"], Some(&server));
    let started = start.env_remove("HOME").arg("--state-dir").arg(state.path()).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    let id = server.enqueue(Job::new("env"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let environment: Value =
        serde_json::from_str(&server.state(|state| state.execution(&id).stdout())).unwrap();
    assert_eq!(environment["HOME"], Value::Null);
    let mut stop = user.command(&project, &["stop"], None);
    let stopped = stop.env_remove("HOME").arg("--state-dir").arg(state.path()).output().unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
    // Nobody has no home that could be made, by the password file either.
    if user.id.is_some() {
        for args in [&["start", "-d"][..], &["start"], &["restart", "-d"]] {
            let failed = user.command(&project, args, Some(&server)).env_remove("HOME").output().unwrap();
            let said = String::from_utf8(failed.stderr.clone()).unwrap();
            assert_eq!(failed.status.code(), Some(1), "{failed:?}");
            assert!(
                said.contains("cannot make the state directory '") && said.contains("--state-dir"),
                "{said}"
            );
        }
    }
}

#[test]
fn a_runner_whose_state_directory_is_removed_says_so_once_makes_it_anew_and_goes_on() {
    let stage = Stage::new();
    let runner = stage.runner("start").start();
    stage.knows_its_own_words(runner.pid());
    remove_all(stage.state.path());
    runner.wait_for_log("was removed: it is made anew", WITHIN);
    stage.knows_its_own_words(runner.pid());
    let id = stage.server.enqueue(Job::new("slow").args("3 0.1"));
    assert_eq!(stage.server.completed(&id, WITHIN).status, "success");
    assert_eq!(runner.log().matches("it is made anew").count(), 1, "{}", runner.log());
    assert!(runner.stop(WITHIN).success());
}

#[test]
fn what_runs_when_the_state_directory_is_removed_is_lost_alone_and_that_is_said() {
    let stage = Stage::new();
    let runner = stage.runner("start").start();
    let lost = stage.server.enqueue(Job::new("slow").args("10 0.1"));
    shows(&stage.server, &lost, "line 1\n");
    remove_all(stage.state.path());
    runner.wait_for_log(&format!("execution {lost}: its directory is gone"), WITHIN);
    let id = stage.server.enqueue(Job::new("echo"));
    assert_eq!(stage.server.completed(&id, WITHIN).status, "success");
    assert_eq!(runner.log().matches("it is made anew").count(), 1, "{}", runner.log());
    let stopped = stage.run("stop", &[]);
    assert_eq!((stopped.code(), stopped.stdout), (Some(0), format!("stopped (PID {})\n", runner.pid())));
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    // The shim of what was lost ends with its command.
    eventually("the end of all", || stage.state.processes().is_empty());
}

#[test]
fn a_lock_file_that_is_moved_aside_and_back_never_loses_its_lock() {
    let stage = Stage::new();
    let runner = stage.runner("start").start();
    stage.knows_its_own_words(runner.pid());
    let [lock, aside] = ["runner.lock", "aside"].map(|name| stage.state.path().join(name));
    let is_running = || {
        let (code, report) = status(&stage.project, &stage.state);
        assert_eq!((code, &report["pid"]), (Some(0), &runner.pid().into()), "{report:#}");
    };
    for round in 0..300 {
        fs::rename(&lock, &aside).unwrap();
        // It looks at instants of all kinds: any signal wakes it.
        runner.signal(libc::SIGCHLD);
        if round % 20 == 0 {
            // A runner that finds it gone cannot know that it comes back.
            eventually("another lock file", || lock.exists());
            is_running();
        }
        fs::rename(&aside, &lock).unwrap();
        if round % 20 < 2 {
            is_running();
        }
    }
    is_running();
    let second = stage.runner("start").arg("-d").run_to_end(WITHIN);
    assert_eq!(second.code(), Some(1), "{second:?}");
    assert!(second.stderr.contains(&format!("already running (PID {})", runner.pid())), "{second:?}");
    stage.knows_its_own_words(runner.pid());
    stage.assert_works_and_stops();
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
}

#[test]
fn the_status_is_there_again_as_soon_as_the_state_directory_is() {
    let stage = Stage::new();
    stage.server.suspend("quota");
    let runner = stage.runner("start").start();
    let knows = |within| {
        wait_for_status(&stage.project, &stage.state, "its own words", within, |report| {
            (report["suspended"] == true).then_some(())
        });
    };
    knows(WITHIN);
    remove_all(stage.state.path());
    // It has nothing to do before the next heartbeat, in half a minute; any signal wakes it.
    runner.signal(libc::SIGCHLD);
    runner.wait_for_log("it is made anew", WITHIN);
    knows(Duration::from_secs(10));
}

#[test]
fn a_runner_that_finds_another_in_its_place_ends_and_leaves_it_alone() {
    let stage = Stage::new();
    let old = stage.runner("start").start();
    stage.knows_its_own_words(old.pid());
    stage.server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    old.signal(libc::SIGSTOP);
    // It writes down when the service has last answered, at most each 5 s: the next time would be when it wakes up.
    pause(Duration::from_secs(5));
    remove_all(stage.state.path());
    let started = stage.runner("start").arg("-d").run_to_end(WITHIN);
    assert_eq!(started.code(), Some(0), "{started:?}");
    let new = u32::try_from(status(&stage.project, &stage.state).1["pid"].as_u64().unwrap()).unwrap();
    stage.knows_its_own_words(new);
    old.signal(libc::SIGCONT);
    old.wait_for_log(&format!("the state directory was removed, and now PID {new} has it: ending"), WITHIN);
    assert_eq!(old.wait_exit(WITHIN).code(), Some(0));
    let (code, report) = status(&stage.project, &stage.state);
    assert_eq!(
        (code, &report["pid"], &report["key"]),
        (Some(0), &new.into(), &"accepted".into()),
        "{report:#}"
    );
    stage.assert_works_and_stops();
}

#[test]
fn a_clock_that_is_set_back_by_an_hour_changes_no_rhythm_and_no_age() {
    let report = clock_is_set(-HOUR);
    let age = report["executions"][0]["age_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&age), "{report:#}");
}

#[test]
fn a_clock_that_is_set_forward_by_an_hour_changes_no_rhythm_either() {
    clock_is_set(HOUR);
}

/// Sets the clock by so much while a command runs; what the status said after that.
fn clock_is_set(seconds: i32) -> Value {
    let (stage, preload) = (Stage::new(), Preload::new());
    let id = stage.server.enqueue(Job::new("wait_for_go"));
    let typed = |name| preload.applied(stage.runner(name), &stage.state);
    let start = typed("start").args(["-d", "--no-reload"]).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5");
    let started = start.run_to_end(WITHIN);
    assert_eq!(started.code(), Some(0), "{started:?}");
    shows(&stage.server, &id, "ready\n");
    stage.knows_its_own_words(stage.detached()[0]);
    let set = Instant::now();
    stage.server.set_clock_ahead(f64::from(seconds), || preload.set_clock_ahead(seconds));

    let report = typed("status").arg("--json").run_to_end(WITHIN);
    assert_eq!(report.code(), Some(0), "{report:?}");
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    for key in ["uptime_seconds", "last_contact_seconds", "loop_seconds"] {
        let age = report[key].as_f64().unwrap();
        assert!((0.0..60.0).contains(&age), "{key}: {report:#}");
    }
    let ensured = typed("ensure").run_to_end(WITHIN);
    assert_eq!((ensured.code(), &*ensured.stdout, &*ensured.stderr), (Some(0), "", ""));
    assert_eq!(status(&stage.project, &stage.state).1["pid"], report["pid"]);
    for (endpoint, number) in [(Endpoint::Heartbeat, 1), (Endpoint::Pending, 2), (Endpoint::CancelStatus, 2)]
    {
        let last = stage.server.wait_for(&format!("{endpoint:?}"), WITHIN, |state| {
            state.of(endpoint).filter(|request| request.at > set).nth(number - 1).map(|request| request.at)
        });
        println!("{endpoint:?} number {number} came {:?} after the clock was set", last - set);
        assert!(last - set < Duration::from_secs(15), "{endpoint:?} {:?}", last - set);
    }
    let told = Instant::now();
    stage.project.write("go", "");
    let end = stage.server.completed(&id, WITHIN);
    assert_eq!(end.status, "success");
    assert!(end.at - told < Duration::from_secs(10), "{:?}", end.at - told);
    stage.server.state(|state| assert_eq!(state.execution(&id).stdout(), "ready\ngone on\n"));
    let stopped = typed("stop").run_to_end(WITHIN);
    assert_eq!(stopped.code(), Some(0), "{stopped:?}");
    report
}

/// A service, a project with one more command, and one state directory.
struct Stage {
    server: Server,
    state: StateDir,
    project: Project,
}

impl Stage {
    fn new() -> Self {
        let project = fake_project();
        let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
        let wait_for_go = "def wait_for_go():\n    print('ready')\n    while not os.path.exists('go'):\n        \
                           time.sleep(0.02)\n    print('gone on')";
        project.write("commands.py", &format!("{commands}\n\n{wait_for_go}\n"));
        Stage { server: Server::start(), state: StateDir::new(), project }
    }

    fn runner(&self, subcommand: &str) -> Runner<'_> {
        let runner = Runner::in_project(&self.project).subcommand(subcommand).state_dir(&self.state);
        if matches!(subcommand, "start" | "ensure") { runner.server(&self.server) } else { runner }
    }

    fn run(&self, subcommand: &str, args: &[&str]) -> Ended {
        self.runner(subcommand).args(args).run_to_end(WITHIN)
    }

    /// The detached runners, those to be among them.
    fn detached(&self) -> Vec<u32> {
        let is_one = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"--detached")
        };
        self.state.processes().into_iter().filter(is_one).collect()
    }

    /// Waits until the status shows what this runner says of itself.
    fn knows_its_own_words(&self, pid: u32) {
        wait_for_status(&self.project, &self.state, "the runner's own words", WITHIN, |report| {
            (report["pid"] == pid && report["key"] == "accepted").then_some(())
        });
    }

    fn assert_works_and_stops(&self) {
        let id = self.server.enqueue(Job::new("echo"));
        assert_eq!(self.server.completed(&id, WITHIN).status, "success");
        let stopped = self.run("stop", &[]);
        assert_eq!(stopped.code(), Some(0), "{stopped:?}");
        eventually("the end of all", || self.state.processes().is_empty());
    }
}

/// A user who names no state directory. Root's is in a place that a test must not touch: where the tests run as root,
/// this user is nobody.
struct User {
    home: TempDir,
    id: Option<u32>,
    /// Only its mark is used: by that all is ended that this user starts.
    mark: StateDir,
}

impl User {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("Zuhause ä").tempdir().unwrap();
        let id = (fs::metadata(home.path()).unwrap().uid() == 0).then_some(NOBODY);
        copy_binary(&home.path().join("djangocommand"));
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        chown(home.path(), id, id).unwrap();
        User { home, id, mark: StateDir::new() }
    }

    /// Lets this user read a project.
    fn open(&self, project: &Project) {
        fs::set_permissions(project.dir(), Permissions::from_mode(0o755)).unwrap();
    }

    /// A state directory of this user's.
    fn state(&self) -> StateDir {
        let state = StateDir::new();
        fs::set_permissions(state.path().parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        chown(state.path(), self.id, self.id).unwrap();
        state
    }

    fn typed(&self, project: &Project, args: &[&str], server: Option<&Server>) -> Output {
        self.command(project, args, server).output().unwrap()
    }

    fn command(&self, project: &Project, args: &[&str], server: Option<&Server>) -> Command {
        let mut command = Command::new("timeout");
        let binary: PathBuf = self.home.path().join("djangocommand");
        command.args(["--signal=KILL", "30"]).arg(binary).args(args).current_dir("/").stdin(Stdio::null());
        command
            .env_clear()
            .env("PATH", SYSTEM_PATH)
            .env("HOME", self.home.path())
            .env(MARK, self.mark.path());
        if let (None, Some("start" | "restart")) = (self.id, args.first().copied()) {
            command.arg("--python").arg(system_python());
        }
        if let Some(server) = server {
            command.env("DJANGOCOMMAND_SERVER_URL", server.url()).env("DJANGOCOMMAND_API_KEY", KEY);
        }
        if let Some(id) = self.id {
            command.uid(id).gid(id);
        }
        command.arg("-C").arg(project.dir() as &Path);
        command
    }
}

/// Waits until an execution's standard output begins with a text.
fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(&format!("{text:?}"), WITHIN, |state| {
        state.execution(id).stdout().starts_with(text).then_some(())
    });
}

/// xorshift: enough for instants, and the seed of a failed run can be tried again.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = u64::from_str_radix(&fresh_uuid_v4()[..8], 16).unwrap();
        // Shown only if the test fails.
        eprintln!("seed {seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Removes a directory into which a runner may be writing meanwhile.
fn remove_all(path: &Path) {
    let deadline = Instant::now() + WITHIN;
    // At once and whole, whoever writes into it meanwhile.
    let gone = path.with_extension("gone");
    fs::rename(path, &gone).unwrap();
    while let Err(error) = fs::remove_dir_all(&gone) {
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        assert!(Instant::now() < deadline, "{error}");
    }
}
