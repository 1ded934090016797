//! Scarcity: no descriptors, no processes, no time on the processor. It is said, and all goes on when there is some.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::nobody::{NOBODY, as_nobody, is_root, of_nobody};
use crate::support::project::fake_project;
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, Job, Server};
use crate::support::state_dir::StateDir;
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn a_runner_without_free_descriptors_says_so_and_goes_on_when_it_has_some() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("24 0.25"));
    let runner = start(Runner::in_project(&project).server(&server));
    shows(&server, &id, "line 2\n");
    limit(&runner, "--nofile=3:");
    let late = server.enqueue(Job::new("echo").args("late"));
    let said = runner.wait_for_log("cannot be taken: Too many open files", WITHIN);
    assert!(said.contains(&late) && said.contains("it stays pending at the service"), "{said}");
    // A connection is a descriptor too: without one it is as if the service were away.
    server.down();
    runner.wait_for_log("the service cannot be reached", WITHIN);
    server.up();
    server.state(|state| assert!(state.execution(&late).started.is_none()));
    // The command ends meanwhile.
    let output = runner.state_dir().executions()[0].join("exit.json");
    eventually("the end of the command", || output.exists());
    limit(&runner, "--nofile=1024:");
    for id in [&id, &late] {
        assert_eq!(server.completed(id, WITHIN).status, "success");
    }
    assert_eq!(server.state(|state| state.execution(&id).stdout()), numbered(24));
    let log = runner.log();
    assert!(runner.stop(WITHIN).success());
    let troubles = log.lines().filter(|line| line.contains(" warning ") || line.contains(" error "));
    assert!(troubles.count() < 15, "{log}");
}

#[test]
fn an_execution_for_which_no_process_can_be_started_is_reported_as_failed_with_the_reason() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let runner =
        start(of_nobody(Runner::in_project(&project).server(&server).state_dir(&state), &project, &state));
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    // Its own process is one. Others of the same user count too, so only nobody's can be counted any further.
    let cases = [
        ("--nproc=1:", "no process can be started on this host: Resource temporarily unavailable"),
        ("--nproc=2:", "Resource temporarily unavailable"),
        ("--nproc=3:", "Resource temporarily unavailable"),
    ];
    for (processes, why) in &cases[..if is_root() { 3 } else { 1 }] {
        limit(&runner, processes);
        let id = server.enqueue(Job::new("slow").args("100 0.1"));
        let end = server.completed(&id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"), "{processes}");
        let (stdout, stderr) = output(&server, &id);
        assert!(stdout.is_empty() && stderr.contains(why), "{processes}: {stdout:?} {stderr:?}");
        eventually("nothing to be left but the runner", || state.processes() == [runner.pid()]);
    }
    limit(&runner, "--nproc=1000:");
    let next = server.enqueue(Job::new("echo").args("next"));
    assert_eq!(server.completed(&next, WITHIN).status, "success");
    assert_eq!(output(&server, &next).0, "[\"next\"]\n");
}

#[test]
fn a_runner_that_is_stopped_for_eight_seconds_loses_nothing_and_sends_no_chunk_twice() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("60 0.2"));
    let runner = start(Runner::in_project(&project).server(&server));
    shows(&server, &id, "line 4\n");
    let file = runner.state_dir().executions()[0].join("output");
    runner.signal(libc::SIGSTOP);
    let (stopped, length) = (Instant::now(), fs::metadata(&file).unwrap().len());
    let beats = server.state(|state| state.of(Endpoint::Heartbeat).count());
    eventually("the command to go on by itself", || {
        stopped.elapsed() >= Duration::from_secs(8) && fs::metadata(&file).unwrap().len() > length + 1000
    });
    assert_eq!(server.state(|state| state.of(Endpoint::Heartbeat).count()), beats, "it was stopped");
    runner.signal(libc::SIGCONT);
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert!(runner.stop(WITHIN).success());
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.stdout(), numbered(60));
        assert_eq!(state.of(Endpoint::Output).count(), execution.chunks.len(), "{}", state.log());
    });
    let log = runner.log();
    assert!(!log.contains(" warning ") && !log.contains(" error "), "{log}");
}

fn start(runner: Runner<'_>) -> Running {
    runner.env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5").start()
}

/// Sets a soft limit of the running runner, as the user that it runs as: root need not be allowed to in a container.
fn limit(runner: &Running, limit: &str) {
    let owner = fs::metadata(format!("/proc/{}", runner.pid())).unwrap().uid();
    let mut command = if owner == NOBODY { Command::new("setpriv") } else { Command::new("prlimit") };
    if owner == NOBODY {
        command.args(as_nobody()).arg("prlimit");
    }
    let set = command.args(["--pid", &runner.pid().to_string(), limit]).status();
    assert!(set.expect("the tests need setpriv and prlimit of util-linux").success());
}

fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(text, WITHIN, |state| state.execution(id).stdout().contains(text).then_some(()));
}

fn output(server: &Server, id: &str) -> (String, String) {
    server.state(|state| (state.execution(id).stdout(), state.execution(id).stderr()))
}

/// What `slow COUNT` prints.
fn numbered(count: usize) -> String {
    (1..=count).map(|number| format!("line {number}\n")).collect()
}
