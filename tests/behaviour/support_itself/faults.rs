//! Proves that each fault looks to a client as it says, and that the server tells what it has seen.

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::SOON;
use super::caller::{Caller, assert_blamed, head, heartbeat_body, line};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server, State, fresh_uuid_v4};

#[test]
fn a_completion_may_be_repeated_when_its_answer_was_lost() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    let id = server.enqueue(Job::new("check"));
    caller.start(&id);
    server.next(Endpoint::Complete, Fault::ProcessedThenClose);
    caller.complete(&id, 0, "success").unwrap_err();
    let mut caller = Caller::new(&server);
    server.next(Endpoint::Complete, Fault::ProcessedThenStatus(502));
    assert_eq!(caller.complete(&id, 0, "success").unwrap().0, 502);
    assert_eq!(caller.complete(&id, 0, "success").unwrap().0, 409);
    assert_eq!(
        server.state(|state| state.of(Endpoint::Complete).map(|request| request.status).sum::<u16>()),
        911
    );
}

#[test]
fn raw_offers_stay_until_started_or_withdrawn() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    let odd = json!(["no", "object"]);
    let id = fresh_uuid_v4();
    server.enqueue_raw(odd.clone());
    server.enqueue_raw(json!({"id": id, "command": 7}));
    assert_eq!(caller.get("pending/").unwrap().1["executions"].as_array().unwrap().len(), 2);
    caller.start(&id);
    assert_eq!(caller.get("pending/").unwrap().1["executions"], json!([odd]));
    server.withdraw_raw(&odd);
    assert_eq!(caller.heartbeat("x")["pending_executions"], 0);
    server.force_cancel(&id);
    assert_eq!(caller.get(&format!("executions/{id}/cancel-status/")).unwrap().1["force_kill"], true);
}

#[test]
fn each_fault_looks_as_it_says() {
    let server = Server::start();
    let beat = |fault: Option<Fault>| {
        fault.into_iter().for_each(|fault| server.next(Endpoint::Heartbeat, fault));
        Caller::new(&server).post("heartbeat/", &heartbeat_body("x"))
    };
    assert_eq!(beat(None).unwrap().0, 200);
    let wait = Fault::status_with(503, "Retry-After", "7");
    assert_eq!(beat(Some(wait)).unwrap().0, 503);
    assert_eq!(beat(Some(Fault::status(429))).unwrap().1["detail"], "told to answer 429");
    assert_eq!(beat(Some(Fault::Body("<html>".into()))).unwrap().1, json!("<html>"));
    let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec();
    assert_eq!(beat(Some(Fault::Raw(raw))).unwrap().1, json!({}));
    let reset = beat(Some(Fault::Reset)).unwrap_err();
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    for fault in [Fault::Truncated, Fault::ProcessedThenClose] {
        assert_eq!(beat(Some(fault)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    for (fault, least) in [(Fault::Delay(Duration::from_millis(300)), 300), (Fault::Drip, 1000)] {
        let began = Instant::now();
        assert_eq!(beat(Some(fault)).unwrap().1["ok"], true);
        assert!(began.elapsed() >= Duration::from_millis(least));
    }
    server.always(Endpoint::Heartbeat, Fault::status(500));
    assert_eq!((beat(None).unwrap().0, beat(None).unwrap().0), (500, 500));
    assert_eq!(beat(Some(Fault::status(504))).unwrap().0, 504, "a single fault comes before the lasting one");
    server.heal(Endpoint::Heartbeat);
    assert_eq!(beat(None).unwrap().0, 200);
}

#[test]
fn a_connection_may_go_stale_after_an_answer() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    server.next(Endpoint::Pending, Fault::CloseAfter);
    assert_eq!(caller.get("pending/").unwrap().0, 200);
    caller.get("pending/").unwrap_err();
}

#[test]
fn a_hanging_request_is_let_go() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    server.next(Endpoint::Pending, Fault::Hang);
    thread::scope(|scope| {
        scope.spawn(|| {
            let seen = |state: &State| state.of(Endpoint::Pending).next().map(|_| ());
            server.wait_for("the request that hangs", SOON, seen);
            server.release();
        });
        assert_eq!(caller.get("pending/").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
    // One that nobody releases ends with the server.
    let mut caller = Caller::new(&server);
    server.next(Endpoint::Pending, Fault::Hang);
    caller.stream.write_all(head("GET", "pending/", &fresh_uuid_v4(), KEY).as_bytes()).unwrap();
    caller.stream.write_all(b"\r\n").unwrap();
    server.wait_for("the second", SOON, |state| (state.of(Endpoint::Pending).count() == 2).then_some(()));
    drop(server);
    caller.answer().unwrap_err();
}

#[test]
fn a_service_that_is_down_answers_nobody() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    server.down();
    caller.get("pending/").unwrap_err();
    Caller::new(&server).get("pending/").unwrap_err();
    let seen = server.wait_for("a refused connection", SOON, |state| state.refused.first().copied());
    assert!(seen <= Instant::now());
    server.up();
    Caller::proven(&server);
    assert_eq!(server.state(|state| state.requests.len()), 2);
}

#[test]
fn a_counting_server_keeps_lengths_and_hashes() {
    let server = Server::counting();
    let mut caller = Caller::proven(&server);
    let id = server.enqueue(Job::new("big"));
    caller.start(&id);
    let first = line("one\n");
    caller.output(&id, 1, false, &first);
    caller.output(&id, 1, false, &first);
    caller.output(&id, 2, false, &line("two\n"));
    caller.output(&id, 1, false, &line("eins\n"));
    assert_blamed(&server, &["other content"]);
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!((execution.bytes(false), execution.bytes(true), execution.stdout().len()), (8, 0, 0));
        assert_eq!(
            execution.sha256(false),
            "c3f9c8c283a2b1f2f1896f27a01cbe3cddc0c9d93f752e4639035a0f5b36f6e8"
        );
        assert!(state.of(Endpoint::Output).all(|request| request.body.is_null() && request.body_len > 40));
    });
}

#[test]
fn a_server_with_violations_fails_its_test() {
    let panicked = panic::catch_unwind(|| {
        let server = Server::start();
        Caller::new(&server).get("pending/").unwrap();
    });
    let message = *panicked.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("before a heartbeat") && message.contains("Pending - -> 200"), "{message}");
}

#[test]
fn a_wait_in_vain_tells_what_was_seen() {
    let server = Server::start();
    Caller::proven(&server);
    let wait = || server.wait_for("a miracle", Duration::from_millis(50), |_| None::<()>);
    let message = panic::catch_unwind(AssertUnwindSafe(wait)).unwrap_err();
    let message = *message.downcast::<String>().unwrap();
    assert!(message.contains("a miracle") && message.contains("Heartbeat"), "{message}");
}
