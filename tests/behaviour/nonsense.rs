//! Nonsense: no answer of whatever kind ends a runner, sends it elsewhere, or counts as an acknowledgement.

use std::thread;
use std::time::Duration;

use crate::support::project::fake_project;
use crate::support::runner::Runner;
use crate::support::server::{Endpoint, Fault, Job, Server};

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// For what starts an interpreter and waits for polls and backoffs.
const LATER: Duration = Duration::from_secs(60);

#[test]
fn a_redirect_is_never_followed_and_the_error_names_its_target() {
    let (server, project, elsewhere) = (Server::start(), fake_project(), Server::start());
    for (endpoint, code) in Endpoint::ALL.into_iter().zip([301, 302, 303, 307, 308, 300, 304]) {
        let target = format!("{}/{endpoint:?}", elsewhere.url());
        server.next(endpoint, Fault::status_with(code, "Location", &target));
    }
    let id = server.enqueue(Job::new("slow").args("6 0.5"));
    let runner = Runner::in_project(&project).server(&server).args(["-v", "3"]).start();
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    let log = runner.log();
    for endpoint in Endpoint::ALL {
        let said = format!("redirects to '{}/{endpoint:?}', which is never followed", elsewhere.url());
        assert!(log.contains(&said), "{said}: {log}");
    }
    assert_eq!(elsewhere.state(|state| state.requests.len()), 0);
}

#[test]
fn an_html_page_with_200_acknowledges_nothing_on_any_endpoint_and_what_was_sent_is_sent_again() {
    let said = "Please log in</body></html>'; is there a proxy or a login page in between?";
    is_met_on_every_endpoint("a login page", &html(200), said);
}

#[test]
fn an_answer_that_is_nonsense_is_an_error_value_on_every_endpoint_and_all_is_well_afterwards() {
    thread::scope(|scope| {
        for (name, fault, said) in nonsense() {
            scope.spawn(move || is_met_on_every_endpoint(name, &fault, said));
        }
    });
}

fn is_met_on_every_endpoint(name: &str, fault: &Fault, said: &str) {
    let (server, project) = (Server::start(), fake_project());
    Endpoint::ALL.into_iter().for_each(|endpoint| server.next(endpoint, fault.clone()));
    // Long enough to be asked about twice.
    let id = server.enqueue(Job::new("slow").args("13 0.5"));
    let runner = Runner::in_project(&project).server(&server);
    let runner = runner.env("DJANGOCOMMAND_REQUEST_TIMEOUT", "1").start();
    assert_eq!(server.completed(&id, LATER).exit_code, 0, "{name}");
    assert!(runner.stop(LATER).success(), "{name}");
    assert!(runner.state_dir().executions().is_empty(), "{name}");
    let log = runner.log();
    assert!(log.contains(said), "{name}: {said:?} is not in\n{log}");
    server.state(|state| {
        // A chunk that was answered with nonsense counts as not delivered: it is sent again.
        for endpoint in Endpoint::ALL {
            let count = state.of(endpoint).count();
            assert!(count >= 2, "{endpoint:?} was not sent again after {name}");
        }
        let lines: String = (1..=13).map(|number| format!("line {number}\n")).collect();
        assert_eq!(state.execution(&id).stdout(), lines, "{name}");
    });
}

#[test]
fn fields_of_the_wrong_type_are_an_error_value() {
    let (server, project) = (Server::start(), fake_project());
    for wrong in [
        r#"{"commands_in_sync": "no"}"#,
        r#"{"pending_executions": -1, "runner_state": 5}"#,
        r#"{"suspension_reason": {}}"#,
    ] {
        server.next(Endpoint::Heartbeat, Fault::Body(wrong.to_owned()));
    }
    server.next(Endpoint::Sync, Fault::Body(r#"{"synced_count": "all", "commands_hash": 5}"#.to_owned()));
    for wrong in [r#"{"executions": {"id": 1}}"#, r#"{"executions": "none"}"#] {
        server.next(Endpoint::Pending, Fault::Body(wrong.to_owned()));
    }
    server.next(Endpoint::CancelStatus, Fault::Body(r#"{"cancel_requested": "yes"}"#.to_owned()));
    let id = server.enqueue(Job::new("slow").args("6 0.5"));
    let runner = Runner::in_project(&project).server(&server).args(["-v", "3"]).start();
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(SOON).success());
    assert_eq!(runner.log().matches("the server's answer is not the service's (invalid type").count(), 7);
}

/// Not processed, whatever the status says: so what is answered like this must come again.
fn answer(code: u16, kind: &str, body: &str) -> Fault {
    let headers = vec![("Content-Type".to_owned(), kind.to_owned())];
    Fault::Status { code, headers, body: body.to_owned() }
}

fn html(code: u16) -> Fault {
    answer(code, "text/html", "<!DOCTYPE html><html><body>Please log in</body></html>")
}

/// Answers that are not the service's, and what is said of them.
fn nonsense() -> Vec<(&'static str, Fault, &'static str)> {
    let text = |body: &str| answer(200, "application/json", body);
    let raw = |bytes: &[u8]| Fault::Raw(bytes.to_vec());
    let unreachable = "the service cannot be reached (heartbeat): ";
    vec![
        ("an error page", html(503), "the server answers 503: '<!DOCTYPE html>"),
        ("an array", text("[true, 1, \"active\", null]"), "is not the service's (no JSON object)"),
        ("nothing at all", text("null"), "is not the service's (no JSON object): 'null'"),
        (
            "half an object",
            text("{\"ok\": true, \"executions\": ["),
            "is not the service's (EOF while parsing",
        ),
        (
            "much",
            text(&format!("{{\"x\": \"{}\"}}", "x".repeat(4 << 20))),
            "the answer is longer than 4194304",
        ),
        ("an array without end", text(&"[".repeat(200_000)), "is not the service's (no JSON object)"),
        ("an answer cut short", Fault::Truncated, "the answer was cut short"),
        ("a byte each 20 ms", Fault::Drip, "no answer in time"),
        ("no HTTP", raw(b"SSH-2.0-OpenSSH_9.6\r\n"), unreachable),
        // This is what a connection looks like that was closed a moment ago, so it is tried again at once.
        ("half a head", raw(b"HTTP/1.1 200 OK\r\nContent-Len"), "connected"),
        ("a wrong length", raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"), unreachable),
        ("no chunk", raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"), unreachable),
    ]
}

#[test]
fn an_answer_of_four_mebibytes_of_entries_does_not_become_values() {
    let (server, project) = (Server::start(), fake_project());
    let zeros = format!("{{\"executions\":[0{}]}}", ",0".repeat(2_000_000));
    server.next(Endpoint::Pending, Fault::Body(zeros));
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("the poll after it", LATER, |state| state.of(Endpoint::Pending).nth(1).map(|_| ()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", runner.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 40_000, "{kilobytes} kB");
}
