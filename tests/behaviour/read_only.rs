//! A read-only disk: no command is held up or killed by it, the loss is said, and all goes on when it can be written to.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::nobody::of_nobody;
use crate::support::preload::Preload;
use crate::support::project::{Project, fake_project};
use crate::support::runner::{Ended, Runner, Running, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, Server};
use crate::support::state_dir::StateDir;
use crate::support::wait::{eventually, pause};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// What the system says.
const READ_ONLY: &str = "Read-only file system (os error 30)";
/// What `talk` writes while the disk is read-only, in bytes: more than pipes hold.
const TALK: u64 = 300_000;

#[test]
fn a_command_on_a_disk_that_becomes_read_only_goes_on_and_what_is_missing_is_counted_and_said() {
    let stage = Stage::new();
    let id = stage.server.enqueue(Job::new("talk"));
    let runner = stage.start();
    stage.shows(&id, "ready\n");
    stage.preload.set_read_only(true);
    stage.project.write("talk", "");
    stage.eventually_there("talked");
    stage.preload.set_read_only(false);
    // What has ended is still there to be looked at.
    stage.server.always(Endpoint::Complete, Fault::status(503));
    stage.project.write("end", "");
    let line = runner.wait_for_log(&format!("execution {id}: the disk did not take "), WITHIN);
    let (_, lost) = line.rsplit_once("the disk did not take ").unwrap();
    let lost: u64 = lost.strip_suffix(" bytes of its output").unwrap().parse().unwrap();
    wait_for_status(&stage.project, &stage.state, "the lost bytes", WITHIN, |report| {
        (report["executions"][0]["lost_bytes"] == lost).then_some(())
    });
    let shown = stage.run("status", &[]).stdout;
    assert!(
        shown.contains(&format!("{lost} bytes of its output lost: the disk did not take them")),
        "{shown}"
    );
    stage.server.heal(Endpoint::Complete);
    assert_eq!(stage.server.completed(&id, WITHIN).exit_code, 3);
    // What was still in the pipe when the disk could be written to again is kept.
    let kept = usize::try_from(TALK - lost).unwrap();
    assert!(kept < 150_000, "{kept}");
    let notice = format!("[{lost} bytes of output are missing here: the disk did not take them]\n");
    stage.server.state(|state| {
        let text = state.execution(&id).stdout();
        let rest = text.strip_prefix("ready\n").and_then(|rest| rest.strip_prefix(&*notice));
        let rest = rest.and_then(|rest| rest.strip_suffix("over\n")).unwrap_or_else(|| panic!("{text}"));
        assert!(rest.len() == kept && rest.bytes().all(|byte| matches!(byte, b'x' | b'\n')), "{text}");
    });
    assert_eq!(runner.log().matches("the disk did not take").count(), 1, "{}", runner.log());
}

#[test]
fn a_command_that_ends_on_a_read_only_disk_or_is_cancelled_there_is_reported_when_it_can_be_written_to() {
    let stage = Stage::new();
    let (ended, cancelled) =
        (stage.server.enqueue(Job::new("talk")), stage.server.enqueue(Job::new("on_term").no_timeout()));
    let runner = stage.start();
    stage.shows(&ended, "ready\n");
    stage.shows(&cancelled, "ready\n");
    stage.preload.set_read_only(true);
    stage.project.write("talk", "");
    stage.project.write("end", "");
    stage.server.cancel(&cancelled);
    // Nobody but the runner and two shims is left.
    eventually("the end of both commands", || stage.state.processes().len() == 3);
    let beats = stage.server.state(|state| state.of(Endpoint::Heartbeat).count());
    stage.server.wait_for("a runner that goes on", WITHIN, |state| {
        state.of(Endpoint::Heartbeat).nth(beats).map(|_| ())
    });
    stage.server.state(|state| assert_eq!(state.of(Endpoint::Complete).count(), 0));
    stage.preload.set_read_only(false);
    let began = Instant::now();
    let ends = [&ended, &cancelled].map(|id| {
        let end = stage.server.completed(id, WITHIN);
        (end.exit_code, end.status)
    });
    assert_eq!(ends, [(3, "failed".to_owned()), (3, "cancelled".to_owned())]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Of the last words nothing is left but their number.
    let lost = TALK + "over\n".len() as u64;
    stage.server.state(|state| {
        let notice = format!("[{lost} bytes of output are missing here: the disk did not take them]\n");
        assert!(state.execution(&ended).stdout().ends_with(&notice), "{}", state.execution(&ended).stdout());
    });
    runner.wait_for_log(
        &format!("execution {ended}: the disk did not take {lost} bytes of its output"),
        WITHIN,
    );
    assert!(runner.stop(WITHIN).success());
    assert!(stage.state.executions().is_empty());
    // The bytes of each, and that the cancel could not be recorded.
    assert_calm(&runner, 3);
}

#[test]
fn while_the_disk_is_read_only_nothing_new_is_taken_with_the_reason_in_the_log_and_in_the_status() {
    let stage = Stage::new();
    let runner = stage.start();
    stage.preload.set_read_only(true);
    let late = stage.server.enqueue(Job::new("echo"));
    let said = runner.wait_for_log(&format!("cannot be taken: {READ_ONLY}"), WITHIN);
    assert!(said.contains(&late) && said.contains("it stays pending at the service"), "{said}");
    let report: Value = serde_json::from_str(&stage.run("status", &["--json"]).stdout).unwrap();
    assert_eq!((&report["status"], &report["pid"]), (&"running".into(), &runner.pid().into()), "{report:#}");
    assert_eq!(report["cannot_take"], READ_ONLY);
    let shown = stage.run("status", &[]);
    assert_eq!(shown.code(), Some(0));
    assert!(shown.stdout.contains(&format!("nothing new can be taken: {READ_ONLY}\n")), "{shown:?}");
    assert_silent(&stage.run("ensure", &[]));
    // It polls on, and does not repeat itself.
    let polls = stage.server.state(|state| state.of(Endpoint::Pending).count());
    stage.server.wait_for("polls", WITHIN, |state| state.of(Endpoint::Pending).nth(polls + 1).map(|_| ()));
    stage.server.state(|state| assert!(state.execution(&late).started.is_none()));
    stage.preload.set_read_only(false);
    assert_eq!(stage.server.completed(&late, WITHIN).status, "success");
    assert_calm(&runner, 1);
    wait_for_status(&stage.project, &stage.state, "the end of it", WITHIN, |report| {
        report["cannot_take"].is_null().then_some(())
    });
}

#[test]
fn what_a_detached_runner_could_not_write_to_its_log_on_a_read_only_disk_is_counted_there() {
    let stage = Stage::new();
    let started = often_beating(stage.runner("start")).arg("-d").run_to_end(WITHIN);
    assert_eq!(started.code(), Some(0), "{started:?}");
    stage.server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    stage.preload.set_read_only(true);
    stage.server.enqueue(Job::new("echo"));
    let polls = stage.server.state(|state| state.of(Endpoint::Pending).count());
    stage.server.wait_for("polls", WITHIN, |state| state.of(Endpoint::Pending).nth(polls + 2).map(|_| ()));
    stage.preload.set_read_only(false);
    let log = || fs::read_to_string(stage.state.path().join("runner.log")).unwrap();
    eventually("the end of the execution in the log", || log().contains("success, exit code 0"));
    let said = log();
    let notice = "warning 1 line(s) are missing here: the disk did not take them\n";
    assert!(said.matches(notice).count() == 1 && !said.contains("cannot be taken"), "{said}");
    assert_eq!(stage.run("stop", &[]).code(), Some(0));
}

#[test]
fn what_is_being_started_when_the_disk_becomes_read_only_is_begun_when_it_can_be_written_to() {
    let stage = Stage::new();
    let runner = stage.start();
    stage.server.always(Endpoint::Start, Fault::Hang);
    let id = stage.server.enqueue(Job::new("echo"));
    stage.server.wait_for("a start", WITHIN, |state| state.of(Endpoint::Start).next().map(|_| ()));
    stage.preload.set_read_only(true);
    stage.server.heal(Endpoint::Start);
    stage.server.release();
    let said = format!("execution {id}: cannot be recorded, so it is not begun: {READ_ONLY}");
    runner.wait_for_log(&said, WITHIN);
    stage.server.wait_for("starts", WITHIN, |state| state.of(Endpoint::Start).nth(3).map(|_| ()));
    stage.preload.set_read_only(false);
    assert_eq!(stage.server.completed(&id, WITHIN).status, "success");
    stage.server.state(|state| assert_eq!(state.execution(&id).stdout(), "[]\n"));
    assert_eq!(runner.log().matches(&said).count(), 1, "{}", runner.log());
    let over = format!("execution {id}: its files can be read and written again");
    assert_eq!(runner.log().matches(&over).count(), 1, "{}", runner.log());
}

#[test]
fn a_runner_that_cannot_write_is_not_taken_for_one_that_hangs_and_not_ended_for_one_that_cannot_begin() {
    let stage = Stage::new();
    let id = stage.server.enqueue(Job::new("talk"));
    let runner = stage.start();
    stage.shows(&id, "ready\n");
    stage.preload.set_read_only(true);
    // As if it had been so for a while: what the runner says of itself becomes old.
    let path = stage.state.path().join("status.json");
    let mut said: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let turned = said["turned"]["monotonic"].as_f64().unwrap();
    said["turned"]["monotonic"] = (turned - 400.0).into();
    fs::write(path, said.to_string()).unwrap();
    let shown = stage.run("status", &[]);
    assert_eq!(shown.code(), Some(0));
    let silent = shown.stdout.lines().find(|line| line.starts_with("silent ")).unwrap();
    assert!(silent.contains("for 6 min 4") && silent.contains("cannot write here"), "{shown:?}");
    for (subcommand, args) in [("ensure", &[][..]), ("restart", &[]), ("restart", &["-d"])] {
        let ended = stage.run(subcommand, args);
        let why =
            format!("cannot write to the state directory '{}': {READ_ONLY}", stage.state.path().display());
        let log = format!("cannot write the log '{}", stage.state.path().display());
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(&why) || ended.stderr.contains(&log), "{subcommand}: {ended:?}");
        assert_eq!(ended.stdout, "", "{subcommand}: {ended:?}");
    }
    stage.preload.set_read_only(false);
    stage.project.write("talk", "");
    stage.project.write("end", "");
    assert_eq!(stage.server.completed(&id, WITHIN).exit_code, 3);
    assert!(runner.stop(WITHIN).success());
}

#[test]
fn on_a_read_only_disk_a_runner_can_be_stopped_and_none_can_be_started_which_is_said() {
    let stage = Stage::new();
    let runner = stage.start();
    stage.preload.set_read_only(true);
    let stopped = stage.run("stop", &[]);
    assert_eq!((stopped.code(), stopped.stdout), (Some(0), format!("stopped (PID {})\n", runner.pid())));
    for (subcommand, args) in
        [("start", &[][..]), ("start", &["-d"]), ("start", &["--once"]), ("ensure", &[])]
    {
        let ended = stage.run(subcommand, args);
        let said = format!(
            "djangocommand: cannot lock the state directory '{}': {READ_ONLY}; name another one with --state-dir\n",
            stage.state.path().display()
        );
        assert_eq!((ended.code(), ended.stdout, ended.stderr), (Some(1), String::new(), said));
    }
    assert_eq!(stage.run("status", &[]).code(), Some(3));
    stage.preload.set_read_only(false);
    let runner = stage.start();
    assert!(runner.stop(WITHIN).success());
}

#[test]
fn a_state_directory_without_the_right_to_write_keeps_a_runner_from_starting_with_a_clear_word() {
    for mode in [0o500, 0o555] {
        let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
        fs::set_permissions(state.path(), Permissions::from_mode(mode)).unwrap();
        for args in [&[][..], &["-d"]] {
            let runner = Runner::in_project(&project).server(&server).state_dir(&state).args(args);
            let ended = of_nobody(runner, &project, &state).run_to_end(WITHIN);
            let said = format!(
                "djangocommand: cannot use the state directory '{}': Permission denied (os error 13); name another one \
                 with --state-dir\n",
                state.path().display()
            );
            assert_eq!((ended.code(), ended.stdout, ended.stderr), (Some(1), String::new(), said));
        }
        server.state(|state| assert!(state.requests.is_empty()));
    }
}

#[test]
fn a_state_directory_that_loses_the_right_to_write_under_a_runner_loses_nothing_of_what_runs() {
    let (server, project, state) = (Server::start(), with_talk(), StateDir::new());
    let id = server.enqueue(Job::new("talk"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state);
    let runner = often_beating(of_nobody(runner, &project, &state)).start();
    shows(&server, &id, "ready\n");
    let dirs = [state.path().to_owned(), state.path().join("executions"), state.executions().remove(0)];
    let allow = |mode| {
        dirs.iter().for_each(|dir| fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap());
    };
    allow(0o555);
    project.write("talk", "");
    eventually("the command to go on", || project.dir().join("talked").exists());
    let late = server.enqueue(Job::new("echo"));
    runner.wait_for_log("cannot be taken: Permission denied (os error 13)", WITHIN);
    wait_for_status(&project, &state, "the reason", WITHIN, |report| {
        (report["cannot_take"] == "Permission denied (os error 13)" && report["pid"] == runner.pid())
            .then_some(())
    });
    runner.wait_for_log("its output waits, because its files cannot be read or written", WITHIN);
    project.write("end", "");
    eventually("the end of the command", || state.processes().len() == 2);
    allow(0o700);
    assert_eq!(server.completed(&id, WITHIN).exit_code, 3);
    assert_eq!(server.completed(&late, WITHIN).status, "success");
    let talk = "x".repeat(999) + "\n";
    let whole = format!("ready\n{}over\n", talk.repeat(usize::try_from(TALK).unwrap() / talk.len()));
    server.state(|state| assert!(state.execution(&id).stdout() == whole));
    assert_calm(&runner, 2);
}

#[test]
fn output_that_cannot_be_delivered_for_the_disks_sake_is_said_once_when_it_begins_and_once_when_it_ends() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("20 0.25"));
    let runner = often_beating(Runner::in_project(&project).server(&server)).start();
    shows(&server, &id, "line 1\n");
    // In its way no cursor can be written, by root neither.
    let in_the_way = runner.state_dir().executions()[0].join("cursor.json.tmp");
    eventually("a gap between two cursors", || fs::create_dir(&in_the_way).is_ok());
    let begin = format!("execution {id}: its output waits, because its files cannot be read or written: ");
    let line = runner.wait_for_log(&begin, WITHIN);
    assert!(line.ends_with("Is a directory (os error 21); trying again"), "{line}");
    // The second attempt comes after a second, the third after two more.
    pause(Duration::from_secs(4));
    fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let numbers: String = (1..=20).map(|number| format!("line {number}\n")).collect();
    assert_eq!(server.state(|state| state.execution(&id).stdout()), numbers);
    let end = format!("execution {id}: its files can be read and written again");
    let log = runner.log();
    assert_eq!((log.matches(&begin).count(), log.matches(&end).count()), (1, 1), "{log}");
    assert_calm(&runner, 1);
}

/// A service, a project, and a state directory on a disk that can be made read-only.
struct Stage {
    server: Server,
    state: StateDir,
    project: Project,
    preload: Preload,
}

impl Stage {
    fn new() -> Self {
        Stage {
            server: Server::start(),
            state: StateDir::new(),
            project: with_talk(),
            preload: Preload::new(),
        }
    }

    fn runner(&self, subcommand: &str) -> Runner<'_> {
        let runner = Runner::in_project(&self.project).subcommand(subcommand).state_dir(&self.state);
        let runner = self.preload.applied(runner, &self.state);
        if matches!(subcommand, "status" | "stop") { runner } else { runner.server(&self.server) }
    }

    /// Returns when the runner has said something of itself.
    fn start(&self) -> Running {
        let runner = often_beating(self.runner("start")).start();
        wait_for_status(&self.project, &self.state, "the runner's own words", WITHIN, |report| {
            (report["pid"] == runner.pid() && report["key"] == "accepted").then_some(())
        });
        runner
    }

    fn run(&self, subcommand: &str, args: &[&str]) -> Ended {
        self.runner(subcommand).args(args).run_to_end(WITHIN)
    }

    fn shows(&self, id: &str, text: &str) {
        shows(&self.server, id, text);
    }

    fn eventually_there(&self, name: &str) {
        eventually(name, || self.project.dir().join(name).exists());
    }
}

/// A project with a command that is told by files to talk and to end.
fn with_talk() -> Project {
    let project = fake_project();
    let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
    let talk = "def talk():\n    def wait_for(path):\n        while not os.path.exists(path):\n            \
                time.sleep(0.02)\n    print('ready')\n    wait_for('talk')\n    for _ in range(300):\n        \
                _write(1, b'x' * 999 + b'\\n')\n    touch('talked')\n    wait_for('end')\n    \
                _write(1, b'over\\n')\n    os._exit(3)";
    project.write("commands.py", &format!("{commands}\n\n{talk}\n"));
    project
}

fn often_beating(runner: Runner<'_>) -> Runner<'_> {
    runner.env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
}

fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(text, WITHIN, |state| state.execution(id).stdout().starts_with(text).then_some(()));
}

fn assert_silent(ended: &Ended) {
    assert_eq!((ended.code(), &*ended.stdout, &*ended.stderr), (Some(0), "", ""));
}

/// Trouble is said once and not at each attempt.
fn assert_calm(runner: &Running, most: usize) {
    let log = runner.log();
    let troubles = log.lines().filter(|line| line.contains(" warning ") || line.contains(" error "));
    assert!(troubles.count() <= most, "{log}");
}
