//! Offers: what the pending list may hold, and that nothing on it is ever run twice.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::project::fake_project;
use crate::support::runner::Runner;
use crate::support::server::{Endpoint, Job, Server, State, fresh_uuid_v4};
use crate::support::state_dir::StateDir;

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// For what starts an interpreter and waits for polls.
const LATER: Duration = Duration::from_secs(60);

#[test]
fn an_entry_without_a_uuid_is_skipped_with_one_warning_and_those_beside_it_run() {
    let uuid = fresh_uuid_v4();
    let (server, project) = (Server::start(), fake_project());
    let bad_ids = [
        (json!(null), "'null'"),
        (json!(5), "'5'"),
        (json!(""), "''"),
        (json!("../../heartbeat"), "'../../heartbeat'"),
        (json!(uuid.replace('-', "/")), "no UUID"),
        (json!(format!("{uuid}/../{uuid}")), "no UUID"),
        (json!(format!("{uuid}\n")), "\\n"),
        (json!(uuid.replace('-', "")), "no UUID"),
        (json!(format!("{{{uuid}}}")), "no UUID"),
    ];
    let shapeless = [json!(null), json!("text"), json!(7), json!([uuid]), json!({"command": "echo"})];
    for entry in &shapeless {
        server.enqueue_raw(entry.clone());
    }
    for (id, _) in &bad_ids {
        server.enqueue_raw(json!({"id": id, "command": "echo", "args": "bad"}));
    }
    // Deeper than a parser may recurse; only this one entry is lost.
    server.enqueue_raw(nested(300));
    let good = server.enqueue(Job::new("echo").args("good"));
    let runner = Runner::in_project(&project).server(&server).start();
    assert_eq!(server.completed(&good, LATER).exit_code, 0);
    wait_for_polls(&server, 3);
    assert!(runner.stop(SOON).success());
    let log = runner.log();
    let warnings: Vec<&str> =
        log.lines().filter(|line| line.contains("skipped an entry of the pending list")).collect();
    for (id, said) in bad_ids {
        assert!(warnings.iter().any(|line| line.contains(said)), "{id}: {log}");
    }
    assert!(warnings.iter().any(|line| line.ends_with("it has no id")), "{log}");
    let mut causes: Vec<&str> = warnings.iter().map(|line| &line["2026-11-22 19:21:12".len()..]).collect();
    causes.sort_unstable();
    causes.dedup();
    assert_eq!(causes.len(), warnings.len(), "each is said once, not at every poll: {log}");
    assert_eq!(server.state(|state| state.of(Endpoint::Start).count()), 1);
}

#[test]
fn an_entry_with_a_good_id_and_a_wrong_field_is_rejected_with_the_reason_and_those_beside_it_run() {
    let (server, project) = (Server::start(), fake_project());
    let wrong = [
        (json!({}), "'command' is missing, but must be the name of a command"),
        (json!({"command": 7}), "'command' is '7'"),
        (json!({"command": ["echo"]}), "'command' is '[\"echo\"]'"),
        (json!({"command": "echo", "args": ["a"]}), "'args' is '[\"a\"]', but must be one text"),
        (json!({"command": "echo", "args": {"a": 1}}), "'args' is '{\"a\":1}'"),
        (json!({"command": "echo", "args": "'open"}), "cannot be split into words"),
        (json!({"command": "echo", "timeout": 0}), "'timeout' is '0', but must be a positive number"),
        (json!({"command": "echo", "timeout": -3}), "'timeout' is '-3'"),
        (json!({"command": "echo", "timeout": "30"}), "'timeout' is '\"30\"'"),
        (json!({"command": "echo", "timeout": true}), "'timeout' is 'true'"),
        (json!({"command": "echo", "use_metadata_only_mode": 1}), "'use_metadata_only_mode' is '1'"),
        (json!({"command": "echo", "use_metadata_only_mode": "no"}), "must be true or false"),
    ];
    let good = [
        (json!({"command": "echo"}), "[]\n"),
        (json!({"command": "echo", "args": null, "timeout": null, "use_metadata_only_mode": null}), "[]\n"),
        (json!({"command": "echo", "args": "a", "new": {"deep": [1]}, "timeout": 7.5}), "[\"a\"]\n"),
    ];
    let runner = Runner::in_project(&project).server(&server).start();
    let wrong_ids: Vec<_> = wrong.iter().map(|(entry, _)| offer(&server, entry.clone())).collect();
    let good_ids: Vec<_> = good.iter().map(|(entry, _)| offer(&server, entry.clone())).collect();
    let upper = fresh_uuid_v4().to_uppercase();
    server.enqueue_raw(json!({"id": upper, "command": "echo", "args": "upper"}));
    for (id, (entry, said)) in wrong_ids.iter().zip(&wrong) {
        let end = server.completed(id, LATER);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"), "{entry}");
        server.state(|state| {
            let execution = state.execution(id);
            assert!(execution.stderr().contains(said), "{entry}: {}", execution.stderr());
            let chunks: Vec<_> = execution.chunks.iter().map(|(n, chunk)| (*n, chunk.is_stderr)).collect();
            assert_eq!(chunks, [(1, true)], "{entry}");
        });
    }
    for (id, (entry, printed)) in good_ids.iter().zip(&good) {
        assert_eq!(server.completed(id, LATER).exit_code, 0, "{entry}");
        assert_eq!(server.state(|state| state.execution(id).stdout()), *printed);
    }
    assert_eq!(server.completed(&upper, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    assert!(runner.state_dir().executions().is_empty());
}

#[test]
fn what_was_run_once_is_never_run_again_however_often_it_is_offered() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let runs = project.dir().join("runs");
    let id = fresh_uuid_v4();
    let entry = |id: &str| json!({"id": id, "command": "touch", "args": runs.to_str().unwrap()});
    server.enqueue_raw(entry(&id));
    let first = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.completed(&id, LATER);
    server.enqueue_raw(entry(&id));
    server.enqueue_raw(entry(&id.to_uppercase()));
    first.wait_for_log(&format!("execution {id} was here before and is not run again"), LATER);
    first.wait_for_log(&format!("execution {} was here before", id.to_uppercase()), LATER);
    assert!(first.stop(SOON).success());
    let polls = server.state(|state| state.of(Endpoint::Pending).count());
    let second = Runner::in_project(&project).server(&server).state_dir(&state).start();
    second.wait_for_log(&format!("execution {id} was here before and is not run again"), LATER);
    wait_for_polls(&server, polls + 3);
    assert!(second.stop(SOON).success());
    assert_eq!(second.log().matches(&format!("{id} was here before")).count(), 1, "said once");
    assert_eq!(fs::read_to_string(&runs).unwrap(), "ran\n");
    assert_eq!(server.state(|state| state.of(Endpoint::Start).count()), 1);
}

fn offer(server: &Server, mut entry: Value) -> String {
    let id = fresh_uuid_v4();
    entry["id"] = json!(id);
    server.enqueue_raw(entry);
    id
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}

fn wait_for_polls(server: &Server, count: usize) {
    let look = |state: &State| state.of(Endpoint::Pending).nth(count - 1).map(|_| ());
    server.wait_for(&format!("poll number {count}"), LATER, look);
}
