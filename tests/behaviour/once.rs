//! `start --once`: does everything that waits, reports it and ends; its exit code says whether the service has it all.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::project::{Project, fake_project, fake_project_with_settings};
use crate::support::runner::{Ended, Runner};
use crate::support::server::{Endpoint, Fault, Job, Server};
use crate::support::state_dir::StateDir;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn with_nothing_to_do_it_ends_after_one_heartbeat_and_one_poll_and_syncs_only_if_the_service_wants_it() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    for (forgets, expected) in [
        (false, &[Endpoint::Heartbeat, Endpoint::Sync, Endpoint::Pending][..]),
        (false, &[Endpoint::Heartbeat, Endpoint::Pending]),
        (true, &[Endpoint::Heartbeat, Endpoint::Sync, Endpoint::Pending]),
    ] {
        let before = server.state(|state| state.requests.len());
        if forgets {
            server.forget_commands();
        }
        let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
        assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
        let asked: Vec<Endpoint> =
            server.state(|state| state.requests[before..].iter().map(|request| request.endpoint).collect());
        assert_eq!(asked, expected);
    }
}

#[test]
fn everything_that_waits_is_run_to_its_end_four_at_a_time_and_reported() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let good: Vec<String> = (0..6).map(|_| server.enqueue(Job::new("slow").args("2 0.2"))).collect();
    let bad = server.enqueue(Job::new("exit").args("3"));
    // More than four at a time would be a violation, which fails the test.
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    server.state(|state| {
        for id in &good {
            let execution = state.execution(id);
            assert_eq!(execution.completed.as_ref().unwrap().exit_code, 0);
            assert_eq!(execution.stdout(), "line 1\nline 2\n");
        }
        assert_eq!(state.execution(&bad).completed.as_ref().unwrap().exit_code, 3);
    });
    assert!(state.executions().is_empty() && state.processes().is_empty());
}

#[test]
fn what_a_killed_runner_left_running_is_waited_for_and_reported() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("slow").args("3 0.7"));
    let first = Runner::in_project(&project).server(&server).state_dir(&state).start();
    shows(&server, &id, "line 1\n");
    first.kill();
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains(&format!("execution {id} (slow): taken over")), "{ended:?}");
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.completed.as_ref().unwrap().exit_code, 0);
        assert_eq!(execution.stdout(), "line 1\nline 2\nline 3\n");
    });
    assert!(state.executions().is_empty());
}

#[test]
fn a_service_that_is_down_or_refuses_the_key_is_said_and_the_exit_code_is_1() {
    let project = fake_project();
    let (down, strict) = (Server::start(), Server::start());
    down.down();
    strict.revoke_key();
    let id = strict.enqueue(Job::new("echo"));
    // Three retries, and each attempt may be two: a connection that is reset is tried anew at once.
    for (server, said, attempts) in [
        (&down, "the service cannot be reached (heartbeat)", 4..=8),
        (&strict, "the service refuses the key", 1..=1),
    ] {
        let ended = once(&project, &StateDir::new()).server(server).run_to_end(WITHIN);
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(said), "{said} is not in {ended:?}");
        let tried = server.state(|state| state.refused.len() + state.requests.len());
        assert!(attempts.contains(&tried), "{tried} attempts: {}", server.state(|state| state.log()));
    }
    strict.state(|state| assert!(state.execution(&id).offered.is_none()));
}

#[test]
fn what_cannot_be_delivered_stays_on_disk_for_the_next_round() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("slow").args("3 0.5"));
    let runner = once(&project, &state).server(&server).env("DJANGOCOMMAND_MAX_RETRIES", "1").start();
    shows(&server, &id, "line 1\n");
    server.down();
    // The command's end is waited for, and then ten seconds for the service.
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(1));
    assert!(state.executions()[0].join("exit.json").exists());
    server.up();
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.completed.as_ref().unwrap().exit_code, 0);
        assert_eq!(execution.stdout(), "line 1\nline 2\nline 3\n");
    });
    assert!(state.executions().is_empty());
}

#[test]
fn a_service_that_is_away_for_a_moment_fails_no_round() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    for endpoint in
        [Endpoint::Heartbeat, Endpoint::Sync, Endpoint::Pending, Endpoint::Start, Endpoint::Complete]
    {
        server.next(endpoint, Fault::status(503));
    }
    let id = server.enqueue(Job::new("echo"));
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    server.state(|state| assert!(state.execution(&id).completed.is_some()));
}

#[test]
fn a_service_that_does_not_take_the_list_of_commands_still_gets_its_commands_run() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    server.always(Endpoint::Sync, Fault::status(413));
    let id = server.enqueue(Job::new("echo"));
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("the service does not accept the sync"), "{ended:?}");
    server.state(|state| assert!(state.execution(&id).completed.is_some(), "{}", state.log()));
}

#[test]
fn one_denied_request_of_an_execution_does_not_end_the_round_for_the_others() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    server.next(Endpoint::Complete, Fault::status(403));
    let denied = server.enqueue(Job::new("echo"));
    let round = once(&project, &state).server(&server).start();
    server.wait_for("the denied request", WITHIN, |state| state.of(Endpoint::Complete).next().map(|_| ()));
    let other = server.enqueue(Job::new("echo"));
    assert_eq!(round.wait_exit(WITHIN).code(), Some(0));
    server.state(|state| {
        assert!([denied, other].iter().all(|id| state.execution(id).completed.is_some()), "{}", state.log());
    });
}

#[test]
fn a_poll_that_is_denied_again_and_again_ends_the_round() {
    let (server, project) = (Server::start(), fake_project());
    server.always(Endpoint::Pending, Fault::status(403));
    let ended = once(&project, &StateDir::new()).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
}

/// Takes its minute by nature.
#[test]
fn a_round_waits_for_what_runs_silently_but_only_a_minute_for_a_service_that_takes_nothing() {
    let (patient, deaf) = (Server::start(), Server::start());
    let project = fake_project();
    let id = patient.enqueue(Job::new("raw").args("@61"));
    deaf.always(Endpoint::Start, Fault::status(503));
    deaf.enqueue(Job::new("echo"));
    let rounds = [&patient, &deaf].map(|server| once(&project, &StateDir::new()).server(server).start());
    let codes = rounds.each_ref().map(|round| round.wait_exit(2 * WITHIN).code());
    assert_eq!(codes, [Some(0), Some(1)], "{}", rounds[0].log());
    patient.state(|state| assert!(state.execution(&id).completed.is_some()));
}

#[test]
fn while_it_is_suspended_it_takes_nothing_and_that_is_no_failure() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let left = server.enqueue(Job::new("slow").args("3 0.5"));
    let first = Runner::in_project(&project).server(&server).state_dir(&state).start();
    shows(&server, &left, "line 1\n");
    first.kill();
    server.suspend("unpaid");
    let id = server.enqueue(Job::new("echo"));
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("the service has suspended this runner: "), "{ended:?}");
    // What was begun before is reported all the same.
    server.state(|state| {
        assert_eq!(state.execution(&left).completed.as_ref().unwrap().exit_code, 0);
        assert!(state.execution(&id).offered.is_none());
    });
}

#[test]
fn sigterm_lets_the_round_end_with_what_runs() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let ids: Vec<String> = (0..4).map(|_| server.enqueue(Job::new("slow").args("3 0.5"))).collect();
    let late = server.enqueue(Job::new("echo"));
    let runner = once(&project, &state).server(&server).start();
    ids.iter().for_each(|id| shows(&server, id, "line 1\n"));
    assert_eq!(runner.stop(WITHIN).code(), Some(1), "something may wait for the next round");
    server.state(|state| {
        for id in &ids {
            assert_eq!(state.execution(id).stdout(), "line 1\nline 2\nline 3\n");
            assert_eq!(state.execution(id).completed.as_ref().unwrap().exit_code, 0);
        }
        assert!(state.execution(&late).started.is_none());
    });
    assert!(state.executions().is_empty());
    assert_eq!(once(&project, &state).server(&server).run_to_end(WITHIN).code(), Some(0));
    server.state(|state| assert!(state.execution(&late).completed.is_some()));
}

#[test]
fn beside_another_runner_it_does_nothing_and_does_not_even_ask_the_project() {
    let (server, state) = (Server::start(), StateDir::new());
    let project = fake_project_with_settings("open(os.path.join(BASE_DIR, 'loaded'), 'w').close()");
    let loaded = project.dir().join("loaded");
    let first = Runner::in_project(&project).server(&server).state_dir(&state).start();
    first.wait_for_log("connected", WITHIN);
    fs::remove_file(&loaded).unwrap();
    let ended = once(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let said = format!("djangocommand: a runner is already running (PID {})", first.pid());
    assert!(ended.stderr.starts_with(&said), "{ended:?}");
    assert!(!loaded.exists());
}

#[test]
fn of_many_rounds_at_once_one_does_the_work() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let proof = project.dir().join("proof");
    let id = server.enqueue(Job::new("touch").args(proof.to_str().unwrap()));
    server.next(Endpoint::Heartbeat, Fault::Delay(Duration::from_secs(2)));
    let all: Vec<Ended> = thread::scope(|scope| {
        let one = || once(&project, &state).server(&server).run_to_end(WITHIN);
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners = all.iter().filter(|ended| ended.code() == Some(0)).count();
    assert!(winners >= 1, "{all:?}");
    assert!(all.iter().all(|ended| ended.code() == Some(0) || ended.stderr.contains("is already running")));
    assert!(server.state(|state| state.execution(&id).completed.is_some()));
    assert_eq!(fs::read_to_string(proof).unwrap(), "ran\n");
}

fn once<'a>(project: &'a Project, state: &StateDir) -> Runner<'a> {
    Runner::in_project(project).state_dir(state).arg("--once")
}

/// Waits until an execution's standard output begins with a text.
fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(&format!("{text:?}"), WITHIN, |state| {
        state.execution(id).stdout().starts_with(text).then_some(())
    });
}
