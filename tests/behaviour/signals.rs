//! Signals: the first one lets what runs end, the second one cancels it, and an idle runner is gone at once.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::project::{Project, fake_project, fake_project_with_settings};
use crate::support::runner::{BINARY, Runner, Running};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// An idle runner ends within 100 ms; this is what a busy machine may make of it.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long a runner that was told to stop tries to deliver what has ended.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn the_first_signal_lets_what_runs_end_and_be_reported_takes_nothing_new_and_heartbeats_go_on() {
    let project = fake_project();
    let sessions = [libc::SIGTERM, libc::SIGINT].map(|signal| {
        let server = Server::start();
        let running = server.enqueue(Job::new("slow").args("7 1"));
        let runner =
            Runner::in_project(&project).server(&server).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5").start();
        shows(&server, &running, "line 1\n");
        (signal, server, running, runner)
    });
    let told = sessions.each_ref().map(|(signal, server, _, runner)| {
        runner.signal(*signal);
        runner.wait_for_log("stopping", WITHIN);
        (Instant::now(), server.enqueue(Job::new("echo")))
    });
    for ((signal, server, running, runner), (told, late)) in sessions.into_iter().zip(told) {
        assert_eq!(server.completed(&running, WITHIN).status, "success", "signal {signal}");
        assert_eq!(runner.wait_exit(WITHIN).code(), Some(0), "signal {signal}");
        server.state(|state| {
            let lines: String = (1..=7).map(|number| format!("line {number}\n")).collect();
            assert_eq!(state.execution(&running).stdout(), lines);
            let late = state.execution(&late);
            assert!(late.offered.is_none() && late.started.is_none());
            assert!(
                state.of(Endpoint::Heartbeat).any(|request| request.at > told),
                "no heartbeat while it drains"
            );
        });
        assert!(runner.state_dir().executions().is_empty());
    }
}

#[test]
fn the_second_signal_cancels_what_runs_and_that_is_reported() {
    let (server, project) = (Server::start(), fake_project());
    let [polite, stubborn] = ["on_term", "ignore_term"].map(|command| server.enqueue(Job::new(command)));
    let runner = Runner::in_project(&project).server(&server).start();
    shows(&server, &polite, "ready\n");
    shows(&server, &stubborn, "ready\n");
    let told = Instant::now();
    runner.signal(libc::SIGTERM);
    // Signals that come together are one wish; by the next question after this they are two.
    server.wait_for("a question that is surely later", WITHIN, |state| {
        state.of(Endpoint::CancelStatus).find(|r| r.at > told + Duration::from_millis(300)).map(|_| ())
    });
    runner.signal(libc::SIGINT);
    for (id, exit_code, said) in [(&polite, 3, "ready\ncleaning up\n"), (&stubborn, -9, "ready\n")] {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (exit_code, "cancelled"));
        server.state(|state| assert_eq!(state.execution(id).stdout(), said));
    }
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    assert!(runner.state_dir().executions().is_empty());
}

#[test]
fn what_runs_longer_than_drain_allows_is_cancelled_and_reported_and_what_does_not_ends_by_itself() {
    let (server, project) = (Server::start(), fake_project());
    let [short, long] = ["2 0.5", "200 0.5"].map(|args| server.enqueue(Job::new("slow").args(args)));
    let runner = Runner::in_project(&project).server(&server).args(["--drain", "4"]).start();
    shows(&server, &long, "line 1\n");
    shows(&server, &short, "line 1\n");
    let told = Instant::now();
    runner.signal(libc::SIGTERM);
    assert_eq!(server.completed(&short, WITHIN).status, "success");
    let end = server.completed(&long, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (-15, "cancelled"));
    assert!(told.elapsed() >= Duration::from_secs(4), "{:?}", told.elapsed());
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    assert!(runner.log().contains("cancelling 1 execution(s)"), "{}", runner.log());
    assert!(runner.state_dir().executions().is_empty());
}

#[test]
fn two_signals_for_one_ctrl_c_are_one_wish() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("3 0.5"));
    let runner = Runner::in_project(&project).server(&server).start();
    shows(&server, &id, "line 1\n");
    runner.signal(libc::SIGINT);
    runner.signal(libc::SIGTERM);
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
}

#[test]
fn with_no_execution_running_the_process_ends_at_once_even_inside_a_request() {
    let project = fake_project();
    let sessions = [Endpoint::Heartbeat, Endpoint::Sync, Endpoint::Pending].map(|endpoint| {
        let server = Server::start();
        server.always(endpoint, Fault::Hang);
        (endpoint, Runner::in_project(&project).server(&server).start(), server)
    });
    for (number, (endpoint, runner, server)) in sessions.into_iter().enumerate() {
        server.wait_for("the request", WITHIN, |state| state.of(endpoint).next().map(|_| ()));
        ends_at_once(
            &runner,
            [libc::SIGTERM, libc::SIGINT][number % 2],
            &format!("in a {endpoint:?} that hangs"),
        );
    }
    // The same while it waits for the time of the next poll.
    let server = Server::start();
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    ends_at_once(&runner, libc::SIGINT, "between two requests");
}

fn ends_at_once(runner: &Running, signal: i32, what: &str) {
    let told = Instant::now();
    runner.signal(signal);
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0), "{what}");
    println!("ended {:?} after the signal, {what}", told.elapsed());
    assert!(told.elapsed() < AT_ONCE, "{:?} {what}", told.elapsed());
}

#[test]
fn what_was_offered_but_not_started_goes_back_to_the_service() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let [first, second] = ["one", "two"].map(|arg| server.enqueue(Job::new("echo").args(arg)));
    // While this answer is on its way the second one has been taken from the list and is on the disk.
    server.next(Endpoint::Start, Fault::Delay(Duration::from_secs(1)));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("the first start", WITHIN, |state| state.of(Endpoint::Start).next().map(|_| ()));
    assert_eq!(state.executions().len(), 2);
    runner.signal(libc::SIGTERM);
    assert_eq!(server.completed(&first, WITHIN).status, "success");
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    assert!(state.executions().is_empty());
    server.state(|state| assert!(state.execution(&second).started.is_none()));
    // It is pending still, and a later runner does not take it for one that was here before.
    let _next = Runner::in_project(&project).server(&server).state_dir(&state).start();
    assert_eq!(server.completed(&second, WITHIN).status, "success");
}

#[test]
fn what_may_or_may_not_have_been_started_is_not_begun_any_more_but_reported_as_interrupted() {
    let (server, project) = (Server::start(), fake_project());
    let proof = project.dir().join("proof");
    server.always(Endpoint::Start, Fault::status(503));
    let id = server.enqueue(Job::new("touch").args(proof.to_str().unwrap()));
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("an attempt to start", WITHIN, |state| state.of(Endpoint::Start).next().map(|_| ()));
    runner.signal(libc::SIGTERM);
    runner.wait_for_log("stopping", WITHIN);
    server.heal(Endpoint::Start);
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"));
    server.state(|state| {
        let text = state.execution(&id).stderr();
        assert!(text.contains("interrupted before the command began"), "{text}");
    });
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    assert!(!proof.exists());
}

#[test]
fn a_signal_while_the_project_loads_ends_the_runner_and_the_projects_python() {
    let project = fake_project_with_settings(
        "import time\nopen(os.path.join(BASE_DIR, 'loading'), 'w').close()\ntime.sleep(60)",
    );
    let runner = Runner::in_project(&project).env("DJANGOCOMMAND_API_KEY", KEY).start();
    eventually("the project to load", || project.dir().join("loading").exists());
    assert!(runner.state_dir().processes().len() >= 2);
    let told = Instant::now();
    runner.stop(WITHIN);
    println!("ended {:?} after the signal, while the project loads", told.elapsed());
    assert!(told.elapsed() < Duration::from_secs(5));
    eventually("the end of Python", || runner.state_dir().processes().is_empty());
}

#[test]
fn an_interrupt_from_the_terminal_does_not_reach_the_command() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("slow").args("4 0.5"));
    let mut runner = in_a_group_of_its_own(&project, &server, &state).spawn().unwrap();
    shows(&server, &id, "line 1\n");
    let sent =
        Command::new("sh").args(["-c", "kill -s INT -- -$0", &runner.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    server.state(|state| assert_eq!(state.execution(&id).stderr(), ""));
    assert_eq!(runner.wait().unwrap().code(), Some(0), "the runner itself was told to stop");
}

/// As a shell starts a job: Ctrl+C is a signal to the whole group.
fn in_a_group_of_its_own(project: &Project, server: &Server, state: &StateDir) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(["start".as_ref(), "-C".as_ref(), project.dir(), "--state-dir".as_ref(), state.path()]
            as [&Path; 5])
        .env("DJANGOCOMMAND_SERVER_URL", server.url())
        .env("DJANGOCOMMAND_API_KEY", KEY)
        .env(MARK, state.path())
        .env_remove("DJANGO_SETTINGS_MODULE")
        .env_remove("VIRTUAL_ENV")
        .stderr(Stdio::null())
        .process_group(0);
    command
}

#[test]
fn what_cannot_be_delivered_before_the_end_is_left_to_the_next_runner() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("slow").args("3 0.5"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    shows(&server, &id, "line 1\n");
    server.down();
    runner.signal(libc::SIGTERM);
    let exit = state.executions()[0].join("exit.json");
    eventually("the end of the command", || exit.exists());
    let ended = Instant::now();
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    println!("gave up {:?} after the command had ended", ended.elapsed());
    let tried = ended.elapsed();
    assert!(tried + Duration::from_secs(1) > DELIVERY_PATIENCE, "{tried:?}");
    assert!(tried < DELIVERY_PATIENCE + Duration::from_secs(3), "{tried:?}");
    server.up();
    let _next = Runner::in_project(&project).server(&server).state_dir(&state).start();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    server.state(|state| assert_eq!(state.execution(&id).stdout(), "line 1\nline 2\nline 3\n"));
}

/// Waits until an execution's standard output begins with a text.
fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(&format!("{text:?}"), WITHIN, |state| {
        state.execution(id).stdout().starts_with(text).then_some(())
    });
}
