//! `stop`: it ends a runner at once, waits for what runs or cancels it, and touches nobody who is not proven to be one.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::project::{Project, fake_project};
use crate::support::runner::{BINARY, Ended, Runner, Running, copy_binary, status, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server};
use crate::support::state_dir::{MARK, StateDir};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// An idle runner ends within 150 ms; this is what a busy machine may make of it.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// The user "nobody" of every Linux.
const NOBODY: u32 = 65_534;

#[test]
fn an_idle_runner_ends_at_once_even_in_the_midst_of_a_request_that_hangs() {
    let project = fake_project();
    let sessions =
        [None, Some(Endpoint::Heartbeat), Some(Endpoint::Sync), Some(Endpoint::Pending)].map(|hangs| {
            let server = Server::start();
            if let Some(endpoint) = hangs {
                server.always(endpoint, Fault::Hang);
            }
            (hangs.unwrap_or(Endpoint::Pending), Runner::in_project(&project).server(&server).start(), server)
        });
    for (endpoint, runner, server) in sessions {
        server.wait_for("the request", WITHIN, |state| state.of(endpoint).next().map(|_| ()));
        let asked = Instant::now();
        let ended = stop(&project, runner.state_dir(), &[]);
        println!("stopped after {:?}", asked.elapsed());
        assert_eq!((ended.code(), &*ended.stdout), (Some(0), &*format!("stopped (PID {})\n", runner.pid())));
        assert!(asked.elapsed() < AT_ONCE, "{:?} in {endpoint:?}", asked.elapsed());
        assert_eq!(runner.wait_exit(AT_ONCE).code(), Some(0));
    }
}

#[test]
fn without_a_runner_it_says_so_exits_with_0_and_makes_nothing() {
    let (project, temp) = (fake_project(), TempDir::new().unwrap());
    let missing = temp.path().join("never/made");
    for args in [&[][..], &["--force"]] {
        let runner = Runner::in_project(&project).subcommand("stop").without_state_dir();
        let ended = runner.arg("--state-dir").arg(&missing).args(args).run_to_end(WITHIN);
        let said = format!("no runner is running with the state in '{}'\n", missing.display());
        assert_eq!((ended.code(), ended.stdout, &*ended.stderr), (Some(0), said, ""));
        assert!(!temp.path().join("never").exists());
    }
}

#[test]
fn it_says_what_it_waits_for_and_however_often_it_gives_up_the_runner_waits_for_what_runs() {
    let stage = Stage::new();
    let (id, runner) = stage.running("wait_for_go");
    let busy = format!("PID {}: 1 still running: wait_for_go ({id}, ", runner.pid());
    // Asking again is no wish to cancel.
    for _ in 0..2 {
        let asked = Instant::now();
        let ended = stop(&stage.project, &stage.state, &["--timeout", "1"]);
        assert!(asked.elapsed() >= Duration::from_secs(1));
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        assert!(ended.stdout.starts_with(&format!("waiting up to 1 s for {busy}")), "{ended:?}");
        let still = format!("\nstill there: {busy}");
        assert!(
            ended.stdout.contains(&still) && ended.stdout.contains("'djangocommand stop --force'"),
            "{ended:?}"
        );
    }
    let late = stage.server.enqueue(Job::new("echo"));
    let waiting = Runner::in_project(&stage.project).subcommand("stop").state_dir(&stage.state).start();
    waiting.wait_for_log("waiting up to 10 s", WITHIN);
    stage.project.write("go", "");
    assert_eq!(stage.server.completed(&id, WITHIN).status, "success");
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    waiting.wait_for_log(&format!("stopped (PID {})", runner.pid()), WITHIN);
    assert_eq!(waiting.wait_exit(WITHIN).code(), Some(0));
    stage.server.state(|state| {
        assert_eq!(state.execution(&id).stdout(), "ready\ngone on\n");
        assert!(state.execution(&late).started.is_none(), "it took something new");
    });
    assert!(stage.state.executions().is_empty());
}

#[test]
fn force_cancels_what_runs_reports_it_and_leaves_no_process_of_ours_behind() {
    let stage = Stage::new();
    // Its shim stays, because a background process holds its pipes.
    let orphan = stage.server.enqueue(Job::new("orphan").args("60"));
    let (polite, runner) = stage.running("on_term");
    let stubborn = stage.enqueue("ignore_term");
    assert_eq!(stage.server.completed(&orphan, WITHIN).status, "success");
    assert_eq!(stage.ours().len(), 4, "a runner and three shims");
    let asked = Instant::now();
    let ended = stop(&stage.project, &stage.state, &["--force"]);
    println!("stopped by force after {:?}", asked.elapsed());
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(asked.elapsed() > Duration::from_secs(4), "the stubborn one has 5 s");
    assert!(ended.stdout.contains(&format!("on_term ({polite}, ")), "{ended:?}");
    assert!(ended.stdout.ends_with(&format!("stopped (PID {})\n", runner.pid())), "{ended:?}");
    assert_eq!(stage.ours(), [0; 0]);
    stage.assert_cancelled(&polite, 3);
    stage.assert_cancelled(&stubborn, -9);
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    assert_eq!(status(&stage.project, &stage.state).0, Some(3), "all is reported");
}

#[test]
fn a_shim_that_is_waiting_for_a_background_process_does_not_delay_force() {
    let stage = Stage::new();
    let runner = stage.runner("start").start();
    let id = stage.server.enqueue(Job::new("orphan").args("60"));
    stage
        .server
        .wait_for("its PID", WITHIN, |state| state.execution(&id).stdout().ends_with('\n').then_some(()));
    // The command has ended or is about to; for two seconds its shim hopes that the rest will end as well.
    runner.kill();
    let asked = Instant::now();
    let ended = stop(&stage.project, &stage.state, &["--force"]);
    println!("stopped by force after {:?}", asked.elapsed());
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(stage.ours(), [0; 0]);
}

#[test]
fn force_kills_a_runner_that_cannot_answer_and_the_next_one_reports_what_was_cancelled() {
    let begin = |hangs: bool| {
        let stage = Stage::new();
        let (id, runner) = stage.running("on_term");
        if hangs {
            stage.server.always(Endpoint::CancelStatus, Fault::Hang);
            let before = stage.count(Endpoint::CancelStatus);
            stage.server.wait_for("a question that hangs", WITHIN, |state| {
                (state.of(Endpoint::CancelStatus).count() > before).then_some(())
            });
        } else {
            runner.signal(libc::SIGSTOP);
        }
        (stage, id, runner)
    };
    for hangs in [true, false] {
        let (stage, id, runner) = begin(hangs);
        let ended = stop(&stage.project, &stage.state, &["--force", "--timeout", "1"]);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        let killing =
            format!("PID {} does not end: killing it; what is on disk is taken over\n", runner.pid());
        assert!(ended.stdout.contains(&killing), "{ended:?}");
        assert_eq!(stage.ours(), [0; 0]);
        assert_eq!(status(&stage.project, &stage.state).0, Some(1), "the end is not reported yet");
        stage.server.heal(Endpoint::CancelStatus);
        stage.server.release();
        let _next = stage.runner("start").start();
        stage.assert_cancelled(&id, 3);
    }
}

#[test]
fn force_ends_what_a_killed_runner_left_running_and_the_next_one_reports_it() {
    let stage = Stage::new();
    let (id, runner) = stage.running("on_term");
    runner.kill();
    assert_eq!(stage.ours().len(), 1);
    // However the directory is spelled.
    let link = TempDir::new().unwrap();
    let parent = stage.state.path().parent().unwrap();
    std::os::unix::fs::symlink(parent, link.path().join("link")).unwrap();
    let spelled = link.path().join("link").join(stage.state.path().file_name().unwrap());
    let typed = |name| {
        let runner = Runner::in_project(&stage.project).subcommand(name).without_state_dir();
        runner.state_dir(&stage.state).arg("--state-dir").arg(&spelled)
    };
    let gentle = typed("stop").run_to_end(WITHIN);
    assert_eq!(gentle.code(), Some(0), "{gentle:?}");
    assert!(gentle.stdout.contains(&format!("1 still running: on_term ({id}, ")), "{gentle:?}");
    assert!(gentle.stdout.contains("'djangocommand stop --force' ends it"), "{gentle:?}");
    let seen = typed("status").run_to_end(WITHIN);
    assert!(seen.stdout.contains(&format!("running     on_term ({id}), ")), "{seen:?}");
    let ended = typed("stop").arg("--force").run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("no runner is running with the state in '"), "{ended:?}");
    assert!(ended.stdout.ends_with("ended 1 process(es) that were left\n"), "{ended:?}");
    assert_eq!(stage.ours(), [0; 0]);
    let next = stage.runner("start").start();
    stage.assert_cancelled(&id, 3);
    assert_eq!(stop(&stage.project, next.state_dir(), &[]).code(), Some(0));
}

#[test]
fn whoever_else_asks_meanwhile_does_not_keep_force_from_ending_what_was_left() {
    let stage = Stage::new();
    let (id, runner) = stage.running("ignore_term");
    runner.kill();
    let forced = stage.runner("stop").arg("--force").start();
    wait_for_status(&stage.project, &stage.state, "the lock", WITHIN, |report| {
        (report["pid"] == forced.pid()).then_some(())
    });
    let gentle = stop(&stage.project, &stage.state, &["--timeout", "30"]);
    assert_eq!(gentle.code(), Some(0), "{gentle:?}");
    assert!(gentle.stdout.starts_with(&format!("waiting up to 30 s for PID {}", forced.pid())), "{gentle:?}");
    assert_eq!(forced.wait_exit(WITHIN).code(), Some(0), "{}", forced.log());
    forced.wait_for_log("ended 1 process(es) that were left", WITHIN);
    assert_eq!(stage.state.processes(), [0; 0]);
    let _next = stage.runner("start").start();
    stage.assert_cancelled(&id, -9);
}

#[test]
fn however_often_it_is_said_nothing_is_cancelled_until_somebody_interrupts_it() {
    let stage = Stage::new();
    let (id, runner) = stage.running("on_term");
    for _ in 0..2 {
        assert_eq!(stop(&stage.project, &stage.state, &["--timeout", "1"]).code(), Some(1));
    }
    // A supervisor that stops it after that has said so once.
    for signal in [libc::SIGQUIT, libc::SIGQUIT, libc::SIGTERM] {
        runner.signal(signal);
        // What comes within a fifth of a second might pass for the same signal.
        assert_eq!(stop(&stage.project, &stage.state, &["--timeout", "0.4"]).code(), Some(1));
    }
    assert!(!runner.log().contains("cancelling"), "{}", runner.log());
    stage.server.state(|state| assert_eq!(state.execution(&id).stdout(), "ready\n"));
    // The second one: who sends this is in a hurry.
    runner.signal(libc::SIGTERM);
    stage.assert_cancelled(&id, 3);
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
}

#[test]
fn whatever_stands_in_the_lock_file_nobody_is_signalled_and_a_runner_can_start() {
    let stage = Stage::new();
    let mut innocent = Innocent(Command::new("sleep").arg("60").spawn().unwrap());
    let lock = stage.state.path().join("runner.lock");
    let pid = format!("{}\n", innocent.0.id());
    for content in [&*pid, "1\n", "", "garbage \0\u{1}", "-1\n", &"9".repeat(1 << 20)] {
        fs::write(&lock, content).unwrap();
        for args in [&[][..], &["--force"]] {
            let ended = stop(&stage.project, &stage.state, args);
            assert_eq!(ended.code(), Some(0), "{ended:?}");
            assert!(ended.stdout.starts_with("no runner is running"), "{ended:?}");
            fs::write(&lock, content).unwrap();
        }
        assert_eq!(stage.runner("reload").run_to_end(WITHIN).code(), Some(1));
        let (code, report) = status(&stage.project, &stage.state);
        assert_eq!((code, &report["status"]), (Some(3), &"stopped".into()));
        assert_eq!(innocent.0.try_wait().unwrap(), None, "signalled for {content:.20}");
    }
    fs::write(&lock, &pid).unwrap();
    let started = stage.runner("restart").arg("-d").run_to_end(WITHIN);
    assert_eq!(started.code(), Some(0), "{started:?}");
    assert_eq!(stop(&stage.project, &stage.state, &[]).code(), Some(0));
    assert_eq!(innocent.0.try_wait().unwrap(), None);
}

#[test]
fn with_a_directory_in_place_of_the_lock_file_nothing_can_be_told_or_started_and_that_is_said() {
    let stage = Stage::new();
    fs::create_dir(stage.state.path().join("runner.lock")).unwrap();
    for (name, code) in [("status", 4), ("stop", 1)] {
        let ended = stage.runner(name).run_to_end(WITHIN);
        assert_eq!((ended.code(), &*ended.stdout), (Some(code), ""), "{ended:?}");
        assert!(ended.stderr.contains("its lock is no file"), "{ended:?}");
    }
    for args in [&[][..], &["-d"]] {
        let started = stage.runner("start").args(args).run_to_end(WITHIN);
        assert_eq!(started.code(), Some(1), "{started:?}");
        let said =
            format!("cannot lock the state directory '{}': Is a directory", stage.state.path().display());
        assert!(started.stderr.contains(&said), "{started:?}");
    }
}

#[test]
fn another_users_runner_is_left_alone_with_a_clear_word() {
    let Some(theirs) = Theirs::new() else { return };
    // Root's own runner, seen by nobody.
    let stage = Stage::new();
    let runner = stage.runner("start").start();
    stage.server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    let parent = stage.state.path().parent().unwrap();
    fs::set_permissions(parent, Permissions::from_mode(0o755)).unwrap();
    for (args, code) in [
        (&["stop"][..], 1),
        (&["stop", "--force"], 1),
        (&["reload"], 1),
        (&["status"], 4),
        (&["status", "--json"], 4),
        (&["restart"], 78),
    ] {
        let output = theirs.command(args, stage.state.path(), Some(&stage.server)).output().unwrap();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        let of_user = format!("'{}' belongs to user 0, not to {NOBODY}", stage.state.path().display());
        let is_clear = said.contains("cannot tell whether a runner has the state directory")
            && said.contains("Permission denied")
            || said.contains(&of_user);
        assert!(is_clear && output.stdout.is_empty() && said.lines().count() == 1, "{args:?}: {output:?}");
    }
    assert_eq!(status(&stage.project, &stage.state).1["pid"], runner.pid());
}

#[test]
fn root_may_end_another_users_runner_but_neither_replaces_it_nor_begins_what_it_cannot_finish() {
    let Some(theirs) = Theirs::new() else { return };
    let (server, state) = (Server::start(), theirs.state());
    let id = server.enqueue(Job::new("on_term"));
    let started = theirs.command(&["start", "-d"], state.path(), Some(&server)).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    shows(&server, &id, "ready\n");
    let (_, before) = status(&theirs.project, &state);
    for (name, args) in [("restart", &["-d"][..]), ("stop", &["--force"])] {
        let runner = Runner::in_project(&theirs.project).server(&server).subcommand(name).state_dir(&state);
        let ended = runner.args(args).run_to_end(WITHIN);
        assert_eq!((ended.code(), &*ended.stdout), (Some(78), ""), "{ended:?}");
        assert!(
            ended.stderr.contains(&format!("belongs to user {NOBODY}, not to 0: run as that user")),
            "{ended:?}"
        );
    }
    let (code, after) = status(&theirs.project, &state);
    assert_eq!(
        (code, &after["pid"], after["executions"].as_array().unwrap().len()),
        (Some(0), &before["pid"], 1)
    );
    let stopped = stop(&theirs.project, &state, &["--timeout", "0.5"]);
    assert_eq!(stopped.code(), Some(1), "{stopped:?}");
    // By the user itself, it ends.
    let forced = theirs.command(&["stop", "--force"], state.path(), None).output().unwrap();
    assert!(forced.status.success(), "{forced:?}");
    assert_eq!(server.completed(&id, WITHIN).status, "cancelled");
}

#[test]
fn the_status_tells_a_runner_that_is_told_to_stop() {
    let stage = Stage::new();
    let (_, _runner) = stage.running("wait_for_go");
    assert_eq!(status(&stage.project, &stage.state).1["stopping"], false);
    assert_eq!(stop(&stage.project, &stage.state, &["--timeout", "0.5"]).code(), Some(1));
    wait_for_status(&stage.project, &stage.state, "the word that it stops", WITHIN, |report| {
        (report["stopping"] == true).then_some(())
    });
    let told = stage.runner("status").run_to_end(WITHIN);
    assert!(told.stdout.contains("\nstopping    nothing new is taken"), "{told:?}");
    stage.project.write("go", "");
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
        if matches!(subcommand, "start" | "restart") { runner.server(&self.server) } else { runner }
    }

    /// A runner whose command is ready.
    fn running(&self, command: &str) -> (String, Running) {
        let id = self.server.enqueue(Job::new(command).no_timeout());
        let runner = self.runner("start").start();
        shows(&self.server, &id, "ready\n");
        (id, runner)
    }

    /// One more, which is ready.
    fn enqueue(&self, command: &str) -> String {
        let id = self.server.enqueue(Job::new(command).no_timeout());
        shows(&self.server, &id, "ready\n");
        id
    }

    fn count(&self, endpoint: Endpoint) -> usize {
        self.server.state(|state| state.of(endpoint).count())
    }

    fn assert_cancelled(&self, id: &str, exit_code: i64) {
        let end = self.server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (exit_code, "cancelled"));
    }

    /// The processes of the binary under test on this state directory.
    fn ours(&self) -> Vec<u32> {
        let is_ours =
            |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == Path::new(BINARY));
        self.state.processes().into_iter().filter(is_ours).collect()
    }
}

/// A process that has nothing to do with any of this.
struct Innocent(Child);

impl Drop for Innocent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A place where another user may run the binary; only root can make one.
struct Theirs {
    dir: TempDir,
    project: Project,
}

impl Theirs {
    fn new() -> Option<Self> {
        let (dir, project) = (TempDir::new().unwrap(), fake_project());
        if fs::metadata(dir.path()).unwrap().uid() != 0 {
            return None;
        }
        for path in [dir.path(), project.dir()] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        copy_binary(&dir.path().join("djangocommand"));
        Some(Theirs { dir, project })
    }

    fn state(&self) -> StateDir {
        let state = StateDir::new();
        fs::set_permissions(state.path().parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        chown(state.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        state
    }

    fn binary(&self) -> PathBuf {
        self.dir.path().join("djangocommand")
    }

    /// What this user types, who has the machine's own Python only.
    fn command(&self, args: &[&str], state: &Path, server: Option<&Server>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "30"]).arg(self.binary()).args(args);
        command.arg("-C").arg(self.project.dir()).arg("--state-dir").arg(state);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env(MARK, state).stdin(Stdio::null());
        if let Some(server) = server {
            command.env("DJANGOCOMMAND_SERVER_URL", server.url()).env("DJANGOCOMMAND_API_KEY", KEY);
        }
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    }
}

fn stop(project: &Project, state: &StateDir, args: &[&str]) -> Ended {
    Runner::in_project(project).subcommand("stop").state_dir(state).args(args).run_to_end(WITHIN)
}

/// Waits until an execution's standard output begins with a text.
fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(&format!("{text:?}"), WITHIN, |state| {
        state.execution(id).stdout().starts_with(text).then_some(())
    });
}
