//! Proves that the server keeps the protocol's rules and its own memory of what happened.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use super::SOON;
use super::caller::{Caller, assert_blamed, commands, head, line, unix_now};
use crate::support::canonical::{self, commands_hash};
use crate::support::project::system_python;
use crate::support::server::{Endpoint, EventKind, Job, KEY, Server, fresh_uuid_v4};

#[test]
fn the_hash_of_a_list_equals_pythons() {
    let script = "import hashlib, json, sys\n\
        commands = sorted(json.loads(sys.stdin.buffer.read())['commands'], key=lambda c: c['name'])\n\
        text = json.dumps(commands, sort_keys=True, separators=(',', ':'))\n\
        print('sha256:' + hashlib.sha256(text.encode()).hexdigest())";
    let lone =
        r#", {"name": "half", "app_label": "\\ud83d", "help_text": "\ud83d \udc80x \ud83e\udd84 \\udc80"}]"#;
    let plain = json!({ "commands": commands() }).to_string();
    let with_halves = plain.replacen("}]}", &format!("}}{lone}}}"), 1);
    assert_ne!(plain, with_halves);
    for text in [plain.as_str(), with_halves.as_str()] {
        let mut python = Command::new(system_python());
        let mut python =
            python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        let list = canonical::parse(text).unwrap()["commands"].as_array().unwrap().clone();
        assert_eq!(commands_hash(&list), String::from_utf8(output.stdout).unwrap().trim());
    }
}

#[test]
fn a_life_by_the_rules_is_no_violation() {
    let server = Server::start();
    let events = server.events();
    let id = server.enqueue(Job::new("check").args("--deploy").timeout(5.0).metadata_only());
    let mut caller = Caller::new(&server);
    let answer = caller.heartbeat("sha256:none");
    assert_eq!((&answer["commands_in_sync"], &answer["pending_executions"]), (&json!(false), &json!(1)));
    let synced = caller.post("commands/sync/", &json!({"commands": commands()})).unwrap().1;
    assert_eq!(synced["synced_count"], 3);
    assert_eq!(caller.heartbeat(synced["commands_hash"].as_str().unwrap())["commands_in_sync"], true);
    assert_eq!(
        caller.get("pending/").unwrap().1["executions"],
        json!([{"id": id, "command": "check", "args": "--deploy", "timeout": 5.0, "use_metadata_only_mode": true}])
    );
    assert_eq!(caller.start(&id), 200);
    let (first, half) = (line("one\n"), line("tw"));
    assert_eq!(caller.output(&id, 1, false, &first), 200);
    assert_eq!(caller.output(&id, 1, false, &first), 200, "the same chunk may come again");
    assert_eq!(caller.output(&id, 2, true, &line("oh\n")), 200);
    assert_eq!(caller.output(&id, 3, false, &half), 200);
    assert_eq!(caller.output(&id, 4, false, &json!([{"timestamp": null, "content": "o\n"}])), 200);
    server.cancel(&id);
    let cancel = caller.get(&format!("executions/{id}/cancel-status/")).unwrap().1;
    assert_eq!(cancel, json!({"cancel_requested": true, "force_kill": false}));
    assert_eq!(caller.complete(&id, -15, "cancelled").unwrap().0, 200);

    let end = server.completed(&id, SOON);
    assert_eq!((end.exit_code, end.status.as_str()), (-15, "cancelled"));
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!((execution.stdout().as_str(), execution.stderr().as_str()), ("one\ntwo\n", "oh\n"));
        assert_eq!(execution.segments(false).filter(|segment| segment.timestamp.is_none()).count(), 1);
        let chunk = &execution.chunks[&2];
        assert_eq!((chunk.is_stderr, chunk.bytes, chunk.segments[0].content.as_str()), (true, 3, "oh\n"));
        assert!(execution.offered < execution.started && execution.started < Some(chunk.at));
        assert!(execution.started_unix.unwrap() <= chunk.unix && chunk.at <= end.at);
        assert_eq!(state.commands.as_ref().unwrap(), &commands());
        assert_eq!(state.of(Endpoint::Output).count(), 5);
        assert!(state.requests.iter().all(|request| request.connection == 1 && request.status == 200));
        let first = &state.requests[0];
        assert_eq!(first.header("host"), Some("x"));
        assert!(first.timestamp.parse::<f64>().unwrap() <= first.unix && first.body_len > 10);
    });
    let kinds: Vec<String> = events.try_iter().map(|event| described(&event.kind)).collect();
    assert_eq!(
        kinds.join(" "),
        format!(
            "heartbeat:false synced:3 heartbeat:true offered:{id}:check:--deploy started:{id} \
             out:{id}:one\n err:{id}:oh\n out:{id}:tw out:{id}:o\n cancel:{id}:false end:{id}:-15:cancelled"
        )
    );
}

fn described(kind: &EventKind) -> String {
    match kind {
        EventKind::Heartbeat { in_sync } => format!("heartbeat:{in_sync}"),
        EventKind::Synced { count } => format!("synced:{count}"),
        EventKind::Offered { id, command, args } => format!("offered:{id}:{command}:{args}"),
        EventKind::Started { id } => format!("started:{id}"),
        EventKind::Output { id, is_stderr, text } => {
            format!("{}:{id}:{text}", if *is_stderr { "err" } else { "out" })
        }
        EventKind::CancelTold { id, force_kill } => format!("cancel:{id}:{force_kill}"),
        EventKind::Completed { id, exit_code, status } => format!("end:{id}:{exit_code}:{status}"),
    }
}

#[test]
fn an_event_knows_its_time() {
    let server = Server::start();
    let events = server.events();
    let before = Instant::now();
    Caller::proven(&server);
    let event = events.recv_timeout(SOON).unwrap();
    assert!(event.moment.at >= before && (unix_now() - event.moment.unix).abs() < 10.0);
}

#[test]
fn headers_are_checked_on_every_request() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    let nonce = fresh_uuid_v4();
    let good = head("GET", "pending/", &nonce, KEY);
    assert_eq!(caller.call(&good, "").unwrap().0, 200);
    let (status, answer) = caller.call(&good, "").unwrap();
    assert_eq!((status, &answer["detail"]), (401, &json!("nonce already used")));
    assert_blamed(&server, &["a second time"]);

    caller.heartbeat("x");
    for (bad, blame) in [
        (head("GET", "pending/", "B2C0", KEY), "no UUID v4"),
        (head("GET", "pending/", &fresh_uuid_v4().to_uppercase(), KEY), "no UUID v4"),
        (
            head("GET", "pending/", &fresh_uuid_v4(), KEY).replace("-Timestamp: ", "-Timestamp: 9"),
            "timestamp",
        ),
        (head("GET", "pending/", &fresh_uuid_v4(), KEY).replace("Bearer", "Token"), "no bearer key"),
    ] {
        assert_eq!(caller.call(&bad, "").unwrap().0, 401);
        assert_blamed(&server, &[blame]);
        caller.heartbeat("x");
    }
    let text = head("GET", "pending/", &fresh_uuid_v4(), KEY).replace("application/json", "text/plain");
    assert_eq!(caller.call(&text, "").unwrap().0, 200);
    assert_blamed(&server, &["content type"]);
    // A wrong key is an answer, not a breach: a user may have mistyped it.
    assert_eq!(caller.call(&head("GET", "pending/", &fresh_uuid_v4(), "dc_no"), "").unwrap().0, 401);
    assert_blamed(&server, &[]);
}

#[test]
fn a_heartbeat_must_succeed_before_anything_else() {
    let server = Server::start();
    let mut caller = Caller::new(&server);
    caller.get("pending/").unwrap();
    assert_blamed(&server, &["before a heartbeat"]);
    caller.heartbeat("x");
    server.revoke_key();
    assert_eq!(caller.get("pending/").unwrap().0, 401);
    server.restore_key();
    assert_blamed(&server, &[]);
    assert_eq!(caller.get("pending/").unwrap().0, 200);
    assert_blamed(&server, &["before a heartbeat"]);

    server.suspend("quota");
    caller.get("pending/").ok();
    assert_blamed(&server, &["before a heartbeat"]);
    let answer = caller.heartbeat("x");
    assert_eq!(
        (&answer["runner_state"], &answer["suspension_reason"]),
        (&json!("suspended"), &json!("quota"))
    );
    caller.get("pending/").unwrap();
    assert_blamed(&server, &["polled though suspended"]);
    server.resume();
    assert_eq!(caller.heartbeat("x")["runner_state"], "active");
    caller.get("pending/").unwrap();
    caller.post("pending/", &json!({})).unwrap();
    caller.start("../../admin");
    assert_blamed(&server, &["a request for", "a request for", "no UUID"]);
}

#[test]
fn syncs_are_remembered_and_may_be_forgotten() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    let hash = commands_hash(commands().as_array().unwrap());
    caller.post("commands/sync/", &json!({"commands": commands()})).unwrap();
    assert_eq!(caller.heartbeat(&hash)["commands_in_sync"], true);
    server.forget_commands();
    assert_eq!(caller.heartbeat(&hash)["commands_in_sync"], false);
    server.answer_hash("sha256:other");
    let answer = caller.post("commands/sync/", &json!({"commands": commands()})).unwrap().1;
    assert_eq!(answer["commands_hash"], "sha256:other");
    assert_eq!(caller.heartbeat("sha256:other")["commands_in_sync"], true);
    let own = json!({"name": "djangocommand", "app_label": "x", "help_text": ""});
    caller.post("commands/sync/", &json!({"commands": [own, own]})).unwrap();
    caller.post("commands/sync/", &json!({"commands": [{"name": "x"}]})).unwrap();
    caller.post("heartbeat/", &json!({"runner_version": 1})).unwrap();
    assert_blamed(&server, &["own command", "own command", "twice", "does not know", "does not know"]);
}

#[test]
fn chunks_and_segments_are_checked() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    let id = server.enqueue(Job::new("check"));
    assert_eq!(caller.output(&id, 1, false, &line("early\n")), 409);
    assert_blamed(&server, &["output before the start"]);
    caller.start(&id);
    assert_eq!(caller.start(&id), 409);
    caller.output(&id, 3, false, &line("three\n"));
    assert_blamed(&server, &["chunk 3 where 2 was due"]);
    caller.output(&id, 3, false, &line("another\n"));
    assert_blamed(&server, &["came again with other content"]);

    let null = json!([{"timestamp": null, "content": "x"}]);
    let milliseconds = json!([{"timestamp": unix_now() * 1e3, "content": "x\n"}]);
    for (segments, blame) in [
        (null, "continues a line that is not open"),
        (line("y\n"), "gives the middle of a line a time"),
        (milliseconds, "has the time"),
        (line("one\ntwo\n"), "more than one line"),
        (line("a\rb\n"), "a carriage return"),
        (line("a\0b\n"), "a NUL"),
        (json!([]), "no segment"),
    ] {
        let number = server.state(|state| state.execution(&id).chunks.len() as u64 + 2);
        caller.output(&id, number, false, &segments);
        assert_blamed(&server, &[blame]);
    }
    assert_eq!(caller.output(&fresh_uuid_v4(), 1, false, &line("x\n")), 404);
    let body = json!({"chunk_number": 10, "segments": [{"content": "no time\n"}], "is_stderr": false});
    assert_eq!(caller.post(&format!("executions/{id}/output/"), &body).unwrap().0, 400);
    assert_blamed(&server, &["does not know"]);
}

#[test]
fn completions_are_checked() {
    let server = Server::start();
    let mut caller = Caller::proven(&server);
    for (exit_code, status) in [(1, "success"), (0, "failed"), (-15, "timed_out"), (256, "failed")] {
        let id = server.enqueue(Job::new("check"));
        caller.start(&id);
        caller.complete(&id, exit_code, status).unwrap();
        assert_blamed(&server, &["with exit code"]);
    }
    let id = server.enqueue(Job::new("check").no_timeout());
    caller.complete(&id, 0, "success").unwrap();
    caller.start(&id);
    assert_blamed(&server, &["completion before the start"]);
    assert_eq!(caller.complete(&id, 0, "success").unwrap().0, 409);
    assert_blamed(&server, &["completed again"]);
    assert_eq!(caller.output(&id, 1, false, &line("late\n")), 409);
    caller.get(&format!("executions/{id}/cancel-status/")).unwrap();
    assert_blamed(&server, &["output after the completion", "does not run"]);
    assert_eq!(caller.complete(&id, 0, "done").unwrap().0, 400);
    assert_blamed(&server, &["a status called 'done'"]);

    let ids: Vec<String> = (0..5).map(|_| server.enqueue(Job::new("check"))).collect();
    ids.iter().for_each(|id| assert_eq!(caller.start(id), 200));
    assert_blamed(&server, &["5 executions at a time"]);
}
