//! `restart`, and a new start after a crash: the next runner goes on where the last one stopped, and no command notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::project::{Project, fake_project, system_python};
use crate::support::runner::{Ended, Runner, Running, copy_binary, status, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server, fresh_uuid_v4};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// A request may take 30 s; a restart that waited for one would take longer than this.
const WELL_UNDER_A_REQUEST: Duration = Duration::from_secs(15);

/// `work NAME COUNT` notes its PID in the file NAME, prints COUNT numbered lines, each third on stderr, and exits with 7.
/// Before the last line it waits until there is a file called `go`.
const WORK: &str = "
def work(name, count):
    with open(name, 'a') as runs:
        runs.write('%d\\n' % os.getpid())
    for number in range(int(count)):
        while number == int(count) - 1 and not os.path.exists('go'):
            time.sleep(0.01)
        _write(2 if number % 3 == 2 else 1, b'line %d\\n' % number)
        time.sleep(0.02)
    sys.exit(7)
";

#[test]
fn what_runs_does_not_notice_that_its_runner_is_replaced() {
    let ways: [(&str, &Replace); 3] = [
        ("restart -d, twice", &|stage, _| {
            stage.restart(&[]);
            stage.restart(&[]);
            None
        }),
        ("restart in the foreground", &|stage, _| Some(stage.runner("restart").start())),
        ("kill -9 and start -d", &|stage, old| {
            old.kill();
            let started = stage.runner("start").arg("-d").run_to_end(WITHIN);
            assert_eq!(started.code(), Some(0), "{started:?}");
            None
        }),
    ];
    for (way, replace) in ways {
        let stage = Stage::new();
        let (id, old) = stage.working("60");
        let (pids, shims) = (stage.pids("a"), stage.state.shims());
        let _new = replace(&stage, &old);
        let ended = old.wait_exit(WITHIN);
        assert!(ended.success() || way.contains("kill"), "{way}: {ended:?}");
        let new = stage.other_than(old.pid());
        assert_eq!((stage.pids("a"), stage.state.shims()), (pids, shims), "{way}");
        stage.project.write("go", "");
        stage.assert_worked(&id, "60", way);
        assert_eq!(stage.pids("a").len(), 1, "{way}: it ran again");
        assert_eq!(stage.other_than(old.pid()), new, "{way}");
        stage.assert_stops();
    }
}

#[test]
fn a_request_that_hangs_does_not_delay_it() {
    for hangs in [Endpoint::CancelStatus, Endpoint::Pending] {
        let stage = Stage::new();
        let (id, old) = stage.working("10");
        let before = stage.server.state(|state| state.of(hangs).count());
        stage.server.always(hangs, Fault::Hang);
        stage.server.wait_for("a request that hangs", WITHIN, |state| {
            (state.of(hangs).count() > before).then_some(())
        });
        // It is held, but the next runner's are answered.
        stage.server.heal(hangs);
        let asked = Instant::now();
        stage.restart(&[]);
        println!("restarted in {:?} while a {hangs:?} hung", asked.elapsed());
        assert!(asked.elapsed() < WELL_UNDER_A_REQUEST, "{:?}", asked.elapsed());
        assert_eq!(old.wait_exit(WITHIN).code(), Some(0));
        stage.project.write("go", "");
        stage.assert_worked(&id, "10", "hanging");
        stage.assert_stops();
    }
}

#[test]
fn what_the_service_was_not_told_of_is_given_back_and_what_it_was_is_begun() {
    let stage = Stage::new();
    stage.project.write("go", "");
    let [first, second] =
        ["a", "b"].map(|name| stage.server.enqueue(Job::new("work").args(&format!("{name} 3"))));
    // While this answer is on its way, the second one is on the disk, but the service does not know that.
    stage.server.next(Endpoint::Start, Fault::Delay(Duration::from_secs(2)));
    let old = stage.runner("start").start();
    stage.server.wait_for("a start", WITHIN, |state| state.of(Endpoint::Start).next().map(|_| ()));
    assert_eq!(stage.state.executions().len(), 2);
    stage.restart(&[]);
    assert_eq!(old.wait_exit(WITHIN).code(), Some(0));
    assert!(!old.log().contains("interrupted"), "{}", old.log());
    for id in [&first, &second] {
        stage.assert_worked(id, "3", "begun once");
    }
    assert_eq!((stage.pids("a").len(), stage.pids("b").len()), (1, 1));
    stage.server.state(|state| {
        let starts = state.of(Endpoint::Start).filter(|request| request.execution.as_ref() == Some(&second));
        assert_eq!(starts.count(), 1, "only by the runner that began it");
    });
    stage.assert_stops();
}

#[test]
fn while_the_service_takes_long_to_answer_a_start_it_is_waited_for() {
    let stage = Stage::new();
    stage.project.write("go", "");
    let id = stage.server.enqueue(Job::new("work").args("a 3"));
    // Longer than it usually has for handing over, shorter than a request may take.
    stage.server.next(Endpoint::Start, Fault::Delay(Duration::from_secs(12)));
    let old = stage.runner("start").start();
    stage.server.wait_for("a start", WITHIN, |state| state.of(Endpoint::Start).next().map(|_| ()));
    let ended = stage.restart(&[]);
    assert!(!ended.stdout.contains("killing"), "{ended:?}");
    assert_eq!(old.wait_exit(WITHIN).code(), Some(0));
    stage.assert_worked(&id, "3", "begun once");
    assert_eq!(stage.pids("a").len(), 1);
    stage.assert_stops();
}

#[test]
fn what_another_service_has_asked_for_is_left_alone_until_a_runner_for_that_one_comes() {
    let (stage, other) = (Stage::new(), Server::start());
    let (id, old) = stage.working("10");
    let dir = &stage.state.executions()[0];
    let spec: Value = serde_json::from_slice(&fs::read(dir.join("spec.json")).unwrap()).unwrap();
    assert_eq!(spec["server"], stage.server.url());
    old.kill();
    let stranger =
        Runner::in_project(&stage.project).state_dir(&stage.state).server(&other).arg("--no-reload").start();
    let line = stranger.wait_for_log("is left alone", WITHIN);
    assert!(line.contains(dir.to_str().unwrap()) && line.contains(&stage.server.url()), "{line}");
    stage.project.write("go", "");
    eventually("the command's end", || dir.join("exit.json").exists());
    let echo = other.enqueue(Job::new("echo"));
    assert_eq!(other.completed(&echo, WITHIN).status, "success");
    assert_eq!(stage.runner("stop").run_to_end(WITHIN).code(), Some(0));
    other.state(|state| {
        assert!(!state.requests.iter().any(|request| request.path.contains(&id)), "{}", state.log());
    });
    stage.server.state(|state| assert!(state.execution(&id).completed.is_none()));
    let _next = stage.runner("start").start();
    stage.assert_worked(&id, "10", "by its own service's runner");
    assert_eq!(stage.pids("a").len(), 1);
    stage.assert_stops();
}

#[test]
fn whatever_becomes_of_who_asked_for_it_there_is_a_new_runner_afterwards() {
    let begin = |(is_forced, signal): (bool, i32)| {
        let stage = Stage::new();
        let id = stage.server.enqueue(Job::new("ignore_term").no_timeout());
        let old = stage.runner("start").start();
        stage.server.wait_for("the command", WITHIN, |state| {
            (state.execution(&id).stdout() == "ready\n").then_some(())
        });
        let asked = if is_forced {
            // For 5 s the command does not end. Nobody reads what is said from now on.
            let asked = stage.runner("restart").args(["-d", "--force"]).start();
            asked.wait_for_log("cancelling: 1 still running", WITHIN);
            asked
        } else {
            old.signal(libc::SIGSTOP);
            let asked = stage.runner("restart").arg("-d").start();
            asked.wait_for_log("waiting up to 10 s for the end of", WITHIN);
            asked
        };
        asked.signal(signal);
        asked.wait_exit(WITHIN);
        if !is_forced {
            old.signal(libc::SIGCONT);
        }
        (stage, id, old, is_forced)
    };
    let ways = [libc::SIGKILL, libc::SIGHUP].map(|signal| [(false, signal), (true, signal)]);
    // The ones that take time do so together.
    for (stage, id, old, is_forced) in ways.concat().into_iter().map(begin).collect::<Vec<_>>() {
        assert_eq!(old.wait_exit(WITHIN).code(), Some(0));
        let new = stage.other_than(old.pid());
        wait_for_status(&stage.project, &stage.state, "a runner that works", WITHIN, |report| {
            (report["key"] == "accepted" && report["pid"] == new).then_some(())
        });
        let end = stage.server.state(|state| state.execution(&id).completed.clone());
        assert_eq!(end.map(|end| end.status), is_forced.then(|| "cancelled".to_owned()));
    }
}

#[test]
fn with_a_broken_project_or_configuration_it_fails_as_start_does_and_the_old_runner_goes_on() {
    let stage = Stage::new();
    let (id, old) = stage.working("10");
    let settings = stage.project.dir().join("settings.py");
    let good = fs::read_to_string(&settings).unwrap();
    for (broken, code) in
        [("raise RuntimeError('broken today')", 1), ("DJANGOCOMMAND_HEARTBEAT_INTERVAL = 'often'", 78)]
    {
        stage.project.write("settings.py", &format!("{good}\n{broken}\n"));
        let started = Runner::in_project(&stage.project).server(&stage.server).run_to_end(WITHIN);
        for args in [&["-d"][..], &[], &["-d", "--force"]] {
            let ended = stage.runner("restart").args(args).run_to_end(WITHIN);
            assert_eq!((ended.code(), started.code()), (Some(code), Some(code)), "{args:?}: {ended:?}");
            assert_eq!(words(&ended), words(&started), "{args:?}");
        }
        assert!(words(&started).contains(if code == 1 { "broken today" } else { "often" }));
    }
    stage.project.write("settings.py", &good);
    assert_eq!(status(&stage.project, &stage.state).1["pid"], old.pid());
    assert!(!old.log().contains("handing over") && !old.log().contains("cancelling"), "{}", old.log());
    stage.project.write("go", "");
    stage.assert_worked(&id, "10", "undisturbed");
    stage.assert_stops();
}

#[test]
fn without_a_runner_it_starts_one_and_in_the_foreground_it_becomes_the_runner() {
    let stage = Stage::new();
    let started = stage.runner("restart").arg("-d").run_to_end(WITHIN);
    // It is all there by then.
    let (_, report) = status(&stage.project, &stage.state);
    assert_eq!(report["server_url"], stage.server.url(), "{report:#}");
    let first = stage.other_than(0);
    let said = format!("started: PID {first}, log '{}'\n", stage.state.path().join("runner.log").display());
    assert_eq!((started.code(), started.stdout), (Some(0), said));
    let second = stage.runner("restart").start();
    assert_eq!(stage.other_than(first), second.pid());
    let id = stage.server.enqueue(Job::new("echo").args("hello"));
    assert_eq!(stage.server.completed(&id, WITHIN).status, "success");
    stage.assert_stops();
    assert_eq!(second.wait_exit(WITHIN).code(), Some(0));
    // Nobody is there any more, so it is the same in the foreground.
    let third = stage.runner("restart").start();
    assert_eq!(stage.other_than(0), third.pid());
}

#[test]
fn by_force_it_cancels_what_runs_first() {
    let stage = Stage::new();
    let id = stage.server.enqueue(Job::new("on_term"));
    let old = stage.runner("start").start();
    stage
        .server
        .wait_for("the command", WITHIN, |state| (state.execution(&id).stdout() == "ready\n").then_some(()));
    let ended = stage.restart(&["--force"]);
    let end = stage.server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (3, "cancelled"));
    assert_eq!(old.wait_exit(WITHIN).code(), Some(0));
    let new = stage.other_than(old.pid());
    assert!(ended.stdout.starts_with(&format!("cancelling: 1 still running: on_term ({id}, ")), "{ended:?}");
    assert!(ended.stdout.contains(&format!("\nstarted: PID {new}, ")), "{ended:?}");
    stage.assert_stops();
}

#[test]
fn a_runner_that_does_not_answer_is_killed_and_what_it_left_goes_on() {
    let stage = Stage::new();
    let (id, old) = stage.working("10");
    old.signal(libc::SIGSTOP);
    let ended = stage.restart(&[]);
    let new = stage.other_than(old.pid());
    let old = old.pid();
    let said = format!(
        "waiting up to 10 s for the end of PID {old}\n\
         PID {old} does not end: killing it; what is on disk is taken over\nstarted: PID {new}, "
    );
    assert!(ended.stdout.starts_with(&said), "{ended:?}");
    stage.project.write("go", "");
    stage.assert_worked(&id, "10", "after a kill");
    stage.assert_stops();
}

#[test]
fn a_new_binary_takes_over_from_one_whose_file_was_replaced() {
    let (stage, temp) = (Stage::new(), TempDir::new().unwrap());
    let install = || {
        copy_binary(&temp.path().join("next"));
        fs::rename(temp.path().join("next"), temp.path().join("djangocommand")).unwrap();
    };
    install();
    let started = stage.typed(&temp.path().join("djangocommand"), "start");
    assert!(started.status.success(), "{started:?}");
    let (id, before) = (stage.enqueue_work("10"), stage.other_than(0));
    install();
    // The old runner still finds itself when it starts something.
    let echo = stage.server.enqueue(Job::new("echo"));
    assert_eq!(stage.server.completed(&echo, WITHIN).status, "success");
    let restarted = stage.typed(&temp.path().join("djangocommand"), "restart");
    assert!(restarted.status.success(), "{restarted:?}");
    let after = stage.other_than(before);
    assert_eq!(fs::read_link(format!("/proc/{after}/exe")).unwrap(), temp.path().join("djangocommand"));
    stage.project.write("go", "");
    stage.assert_worked(&id, "10", "under a new binary");
    assert_eq!(stage.pids("a").len(), 1);
    stage.assert_stops();
}

#[test]
fn what_a_newer_version_wrote_is_left_alone_and_that_is_said() {
    let stage = Stage::new();
    let id = fresh_uuid_v4();
    let future = stage.state.path().join("executions").join(&id);
    fs::create_dir_all(&future).unwrap();
    // Only the version stands where it always does.
    let spec = json!({"version": 2, "what": {"command": "work"}, "more": [1]}).to_string();
    fs::write(future.join("spec.json"), &spec).unwrap();
    fs::write(stage.state.path().join("status.json"), json!({"version": 2, "pid": "?"}).to_string()).unwrap();
    let (code, report) = status(&stage.project, &stage.state);
    assert_eq!((code, &report["status"]), (Some(1), &json!("dead")));
    let left = &report["executions"][0];
    assert_eq!((&left["id"], &left["state"]), (&json!(id), &json!("unreadable")));
    assert_eq!(left["command"], "a newer version wrote it (format 2)");

    let runner = stage.runner("start").start();
    let left = runner.wait_for_log("is left alone", WITHIN);
    assert!(
        left.contains(&*future.to_string_lossy()) && left.contains("a newer version wrote it (format 2)"),
        "{left}"
    );
    wait_for_status(&stage.project, &stage.state, "its own words", WITHIN, |report| {
        report["key"].as_str().map(drop)
    });
    // As it is while a newer runner has the directory.
    let mut says: Value =
        serde_json::from_slice(&fs::read(stage.state.path().join("status.json")).unwrap()).unwrap();
    says["version"] = json!(2);
    runner.signal(libc::SIGSTOP);
    fs::write(stage.state.path().join("status.json"), says.to_string()).unwrap();
    let (code, report) = status(&stage.project, &stage.state);
    assert_eq!((code, &report["pid"], &report["key"]), (Some(0), &json!(runner.pid()), &Value::Null));
    let told = stage.runner("status").run_to_end(WITHIN);
    assert_eq!(told.code(), Some(0), "{told:?}");
    assert!(told.stdout.starts_with(&format!("running     PID {}, ", runner.pid())), "{told:?}");
    runner.signal(libc::SIGCONT);
    stage.restart(&[]);
    assert_eq!(stage.runner("stop").run_to_end(WITHIN).code(), Some(0));
    assert_eq!(fs::read_to_string(future.join("spec.json")).unwrap(), spec);
    assert_eq!(fs::read_dir(&future).unwrap().count(), 1, "nothing was put into it either");
}

/// Replaces a runner; the new one, if it is in the foreground.
type Replace = dyn Fn(&Stage, &Running) -> Option<Running>;

/// A service, a project with one more command, and the state directory that runners hand over.
struct Stage {
    server: Server,
    state: StateDir,
    project: Project,
}

impl Stage {
    fn new() -> Self {
        let project = fake_project();
        let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
        project.write("commands.py", &format!("{commands}\n{WORK}"));
        Stage { server: Server::start(), state: StateDir::new(), project }
    }

    fn runner(&self, subcommand: &str) -> Runner<'_> {
        let runner = Runner::in_project(&self.project).subcommand(subcommand).state_dir(&self.state);
        if matches!(subcommand, "start" | "restart") {
            runner.server(&self.server).arg("--no-reload")
        } else {
            runner
        }
    }

    fn restart(&self, args: &[&str]) -> Ended {
        let ended = self.runner("restart").arg("-d").args(args).run_to_end(WITHIN);
        assert_eq!((ended.code(), &*ended.stderr), (Some(0), ""), "{ended:?}");
        ended
    }

    /// By another binary than the one under test.
    fn typed(&self, binary: &Path, subcommand: &str) -> Output {
        let mut command = Command::new(binary);
        command.args([subcommand, "-d", "--no-reload", "--python"]).arg(system_python());
        command
            .arg("-C")
            .arg(self.project.dir())
            .arg("--state-dir")
            .arg(self.state.path())
            .stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env(MARK, self.state.path());
        command.env("DJANGOCOMMAND_SERVER_URL", self.server.url()).env("DJANGOCOMMAND_API_KEY", KEY);
        command.output().unwrap()
    }

    /// A runner whose command has begun to print.
    fn working(&self, count: &str) -> (String, Running) {
        let old = self.runner("start").start();
        (self.enqueue_work(count), old)
    }

    fn enqueue_work(&self, count: &str) -> String {
        let id = self.server.enqueue(Job::new("work").args(&format!("a {count}")));
        self.server.wait_for("the first lines", WITHIN, |state| {
            let execution = state.execution(&id);
            (execution.stdout().contains("line 1\n") && !execution.stderr().is_empty()).then_some(())
        });
        id
    }

    /// The PID of the runner that is there, once it is another one than this.
    fn other_than(&self, old: u32) -> u32 {
        let what = format!("another runner than {old}");
        let pid = wait_for_status(&self.project, &self.state, &what, WITHIN, |report| {
            report["pid"].as_u64().filter(|pid| *pid != u64::from(old))
        });
        u32::try_from(pid).unwrap()
    }

    /// The processes that a command ever was.
    fn pids(&self, name: &str) -> Vec<u32> {
        let path: PathBuf = self.project.dir().join(name);
        eventually("the command to note its PID", || path.exists());
        fs::read_to_string(path).unwrap().lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// It ended as by itself, and each line arrived once.
    fn assert_worked(&self, id: &str, count: &str, what: &str) {
        let end = self.server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (7, "failed"), "{what}");
        let stream = |is_stderr: bool| {
            let numbers = (0..count.parse::<u32>().unwrap()).filter(|number| (number % 3 == 2) == is_stderr);
            numbers.map(|number| format!("line {number}\n")).collect::<String>()
        };
        self.server.state(|state| {
            let execution = state.execution(id);
            assert_eq!((execution.stdout(), execution.stderr()), (stream(false), stream(true)), "{what}");
        });
    }

    /// With nothing left to do.
    fn assert_stops(&self) {
        let stopped = self.runner("stop").run_to_end(WITHIN);
        assert_eq!(stopped.code(), Some(0), "{stopped:?}");
        assert!(self.state.executions().is_empty(), "{:?}", self.state.executions());
    }
}

/// What it says at last, behind the lines of the log.
fn words(ended: &Ended) -> &str {
    ended.stderr.find("djangocommand: ").map_or("", |begin| &ended.stderr[begin..])
}
