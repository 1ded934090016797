//! The service: the seven calls, their headers and connections, and what heartbeats and polls bring about.

use std::collections::{BTreeSet, HashSet};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, EventKind, Fault, Job, KEY, Server, State};

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// For what starts an interpreter and waits for polls and backoffs.
const LATER: Duration = Duration::from_secs(60);
/// `protocol.md`, Meaning.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The first wait after a failure: what is repeated at once comes well before that.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

#[test]
fn all_seven_calls_carry_their_headers_over_one_connection() {
    let (server, project) = (Server::start(), fake_project());
    // Long enough to be asked about once.
    let id = server.enqueue(Job::new("slow").args("5 0.5"));
    let runner = start(&project, &server);
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    server.state(|state| {
        for endpoint in Endpoint::ALL {
            assert!(state.of(endpoint).next().is_some(), "{endpoint:?} was never called");
        }
        let bearer = format!("Bearer {KEY}");
        for request in &state.requests {
            assert_eq!(request.header("authorization"), Some(&*bearer), "{request:?}");
            assert_eq!(request.header("content-type"), Some("application/json"), "{request:?}");
            assert!(request.timestamp.bytes().all(|byte| byte.is_ascii_digit()), "{request:?}");
            let age = request.unix - request.timestamp.parse::<f64>().unwrap();
            assert!((-0.1..10.0).contains(&age), "{request:?}");
            assert_eq!((request.connection, request.status), (1, 200), "{request:?}");
        }
        let nonces: HashSet<&String> = state.requests.iter().map(|request| &request.nonce).collect();
        assert_eq!(nonces.len(), state.requests.len());
        let beat = state.of(Endpoint::Heartbeat).next().unwrap().body.as_object().unwrap();
        let fields: BTreeSet<&str> = beat.keys().map(String::as_str).collect();
        let expected = ["commands_hash", "django_version", "python_version", "runner_version"];
        assert_eq!(fields, BTreeSet::from(expected));
    });
}

#[test]
fn a_retry_has_a_nonce_and_a_timestamp_of_its_own() {
    let (server, project) = (Server::start(), fake_project());
    server.next(Endpoint::Heartbeat, Fault::status(503));
    let _runner = start(&project, &server);
    wait_for_requests(&server, Endpoint::Heartbeat, 2);
    server.state(|state| {
        let both: Vec<_> = state.of(Endpoint::Heartbeat).take(2).collect();
        assert_eq!((both[0].status, both[1].status), (503, 200));
        assert_ne!(both[0].nonce, both[1].nonce);
        // They are a second apart at least, so the whole seconds differ.
        assert!(both[0].timestamp.parse::<u64>().unwrap() < both[1].timestamp.parse::<u64>().unwrap());
    });
}

#[test]
fn a_connection_that_the_server_closed_is_replaced_at_once_and_without_a_word() {
    // First closed between two requests, then so late that the request is on its way already.
    for fault in [Fault::CloseAfter, Fault::ProcessedThenClose] {
        let (server, project) = (Server::start(), fake_project());
        for endpoint in Endpoint::ALL {
            server.next(endpoint, fault.clone());
        }
        let runs = project.dir().join("runs");
        let touched = server.enqueue(Job::new("touch").args(&runs.to_string_lossy()));
        let slow = server.enqueue(Job::new("slow").args("5 0.5"));
        let runner = start(&project, &server);
        assert_eq!(server.completed(&touched, LATER).exit_code, 0);
        assert_eq!(server.completed(&slow, LATER).exit_code, 0);
        assert!(runner.stop(SOON).success());
        // The first `start` of the one that met the fault was processed: the second one's 409 is no refusal.
        assert_eq!(std::fs::read_to_string(runs).unwrap(), "ran\n");
        let log = runner.log();
        assert!(!log.contains(" warning ") && !log.contains(" error "), "{fault:?}:\n{log}");
        server.state(|state| {
            assert_eq!(state.execution(&slow).stdout(), "line 1\nline 2\nline 3\nline 4\nline 5\n");
            let connections = state.requests.iter().map(|request| request.connection).max().unwrap();
            assert!(connections > 1, "nothing was closed");
            let unanswered = state.requests.iter().enumerate().filter(|(_, request)| request.status == 0);
            for (index, request) in unanswered {
                let again = &state.requests[index + 1];
                assert_eq!((again.endpoint, &again.execution), (request.endpoint, &request.execution));
                assert!(again.at - request.at < FIRST_BACKOFF, "{request:?}");
                assert!(again.nonce != request.nonce && again.connection != request.connection);
            }
        });
    }
}

#[test]
fn another_hash_of_the_service_is_adopted_with_a_warning_and_a_later_loss_is_synced_at_once() {
    let (server, project) = (Server::start(), fake_project());
    server.answer_hash("sha256:feed");
    let events = server.events();
    let runner = start_often_beating(&project, &server);
    runner.wait_for_log("another hash for the same commands: 'sha256:feed'", SOON);
    wait_for_requests(&server, Endpoint::Heartbeat, 2);
    server.state(|state| {
        let second = state.of(Endpoint::Heartbeat).nth(1).unwrap();
        assert_eq!(second.body["commands_hash"], "sha256:feed");
    });
    server.forget_commands();
    wait_for_requests(&server, Endpoint::Sync, 2);
    let mut seen = Vec::new();
    for event in events.try_iter() {
        match event.kind {
            EventKind::Heartbeat { in_sync } => seen.push((event.moment.at, Some(in_sync))),
            EventKind::Synced { count } => {
                assert!(count > 10);
                seen.push((event.moment.at, None));
            }
            _ => {}
        }
    }
    let kinds: Vec<_> = seen.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [Some(false), None, Some(true), Some(false), None]);
    assert!(seen[4].0 - seen[3].0 < FIRST_BACKOFF, "a sync follows at once");
    assert_eq!(runner.log().matches("another hash").count(), 1);
}

#[test]
fn a_suspended_runner_beats_on_and_polls_nothing_and_says_so_at_both_ends() {
    let (server, project) = (Server::start(), fake_project());
    server.suspend("invoice unpaid");
    let id = server.enqueue(Job::new("echo"));
    let runner = start_often_beating(&project, &server);
    let line = runner.wait_for_log("has suspended this runner: 'invoice unpaid'", SOON);
    assert!(line.contains(" warning "), "{line}");
    // That it does not poll is a rule that the server keeps; here it has had two intervals to break it in.
    wait_for_requests(&server, Endpoint::Heartbeat, 2);
    assert!(server.state(|state| state.of(Endpoint::Pending).next().is_none()));
    server.resume();
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    assert_eq!(runner.log().matches("has suspended").count(), 1);
    assert_eq!(runner.log().matches("the suspension has ended").count(), 1);
}

#[test]
fn a_heartbeat_that_says_pending_is_followed_by_a_poll_before_its_time() {
    let (server, project) = (Server::start(), fake_project());
    let _runner = start_often_beating(&project, &server);
    // Polls come 0, 2, 4 and 6 s after the beginning, the second heartbeat after 5.
    wait_for_requests(&server, Endpoint::Pending, 3);
    let id = server.enqueue(Job::new("echo"));
    server.completed(&id, LATER);
    server.state(|state| {
        let beat = state.requests.iter().rposition(|request| request.endpoint == Endpoint::Heartbeat);
        let beat = beat.unwrap();
        assert!(state.of(Endpoint::Heartbeat).count() == 2 && state.of(Endpoint::Pending).count() >= 4);
        let polls: Vec<_> = state.of(Endpoint::Pending).collect();
        assert_eq!(state.requests[beat + 1].endpoint, Endpoint::Pending, "{}", state.log());
        // No timer fires early, so a shorter gap than the interval is the heartbeat's doing.
        assert!(polls[3].at - polls[2].at < POLL_INTERVAL, "{}", state.log());
    });
}

#[test]
fn four_run_at_a_time_and_the_next_is_fetched_as_soon_as_one_has_ended() {
    let (server, project) = (Server::start(), fake_project());
    let ids: Vec<String> = (0..10).map(|_| server.enqueue(Job::new("slow").args("1 0.2"))).collect();
    let _runner = start(&project, &server);
    for id in &ids {
        assert_eq!(server.completed(id, LATER).exit_code, 0);
    }
    server.state(|state| {
        // The server itself counts how many are started and not completed. That is never more than four.
        let polls: Vec<_> = state.of(Endpoint::Pending).map(|request| request.at).collect();
        let last_start = state.of(Endpoint::Start).next_back().unwrap().at;
        let early = polls.windows(2).filter(|pair| pair[1] - pair[0] < POLL_INTERVAL && pair[1] < last_start);
        assert!(early.count() >= 2, "{}", state.log());
    });
}

#[test]
fn an_outage_is_one_line_at_each_end() {
    let (server, project) = (Server::start(), fake_project());
    let runner = start(&project, &server);
    runner.wait_for_log("connected", SOON);
    wait_for_requests(&server, Endpoint::Pending, 1);
    server.down();
    server.wait_for("several attempts", LATER, |state| (state.refused.len() >= 4).then_some(()));
    server.up();
    let line = runner.wait_for_log("the service answers again, after ", LATER);
    assert!(line.contains(" info "), "{line}");
    let id = server.enqueue(Job::new("echo"));
    server.completed(&id, LATER);
    assert!(runner.stop(SOON).success());
    let log = runner.log();
    assert_eq!((log.matches("cannot be reached").count(), log.matches("answers again").count()), (1, 1));
    let lines = log.lines().filter(|line| line.contains(" warning ") || line.contains(" error "));
    assert_eq!(lines.count(), 1, "{log}");
}

#[test]
fn a_host_that_is_not_found_or_does_not_listen_is_an_outage() {
    let project = fake_project();
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    for (url, said) in [
        ("https://no-such-host.invalid", "cannot look up 'no-such-host.invalid'"),
        (&format!("http://{closed}"), "Connection refused"),
    ] {
        let runner = Runner::in_project(&project)
            .env("DJANGOCOMMAND_SERVER_URL", url)
            .env("DJANGOCOMMAND_API_KEY", KEY)
            .args(["-v", "3"])
            .start();
        runner.wait_for_log(said, LATER);
        // The next attempt is a line of its own.
        runner.wait_for_log("debug   heartbeat failed: ", LATER);
        assert!(runner.stop(SOON).success());
        assert_eq!(runner.log().matches("cannot be reached").count(), 1);
    }
}

#[test]
fn unknown_fields_are_ignored_and_missing_ones_take_their_defaults() {
    let (server, project) = (Server::start(), fake_project());
    server.next(Endpoint::Heartbeat, Fault::Body(json!({"new": [{}], "runner_state": "rested"}).to_string()));
    server.next(Endpoint::Pending, Fault::Body(json!({"new": 1}).to_string()));
    server.next(Endpoint::CancelStatus, Fault::Body(json!({"new": null}).to_string()));
    server.always(Endpoint::Output, Fault::Body(String::from("{}")));
    let id = server.enqueue(Job::new("slow").args("5 0.5"));
    let runner = start(&project, &server);
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(SOON).success());
    assert!(!runner.log().contains(" warning "), "{}", runner.log());
    // In sync is the default: an answer that does not say it asks for nothing.
    assert!(server.state(|state| state.of(Endpoint::Sync).next().is_none()));
}

fn start(project: &Project, server: &Server) -> Running {
    Runner::in_project(project).server(server).start()
}

/// With the shortest interval between heartbeats that is allowed.
fn start_often_beating(project: &Project, server: &Server) -> Running {
    Runner::in_project(project).server(server).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5").start()
}

fn wait_for_requests(server: &Server, endpoint: Endpoint, count: usize) {
    let look = |state: &State| state.of(endpoint).nth(count - 1).map(|_| ());
    server.wait_for(&format!("{endpoint:?} number {count}"), LATER, look);
}
