//! A hostile server: each part of each answer as nobody would send it. Whatever comes, it is an error value: nothing is
//! spawned by it, the runner goes on, its memory and its log stay small.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::memory;
use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, Server, fresh_uuid_v4};

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(30);
/// For dozens of answers, some seconds after each other.
const LATER: Duration = Duration::from_secs(240);

/// How much the peak of the runner's memory may grow by answers of 4 MiB, in KiB: some copies of one.
const GROWTH_MAX: u64 = 14 * 1024;
/// The longest line of the log, in characters, and the most lines for any of these tests.
const LINE_MAX: usize = 1000;
const LINES_MAX: usize = 600;

/// Values that are wrong, or at least odd, for every field, as JSON has them.
fn odd_values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "\"true\"",
        "-1",
        "0.5",
        "1e400",
        "18446744073709551616",
        "\"\"",
        "[]",
        "{\"a\": {\"b\": [null]}}",
        // NUL, a terminal's escape, a forged line; half a character; right to left.
        r#""\u0000\u001b[2J\n2026-01-01 00:00:00 info    forged\r\u009b""#,
        r#""\ud800""#,
        r#""\u202e../../x""#,
    ]
    .map(str::to_owned)
    .into();
    values.push(nested(10_000));
    values.push(format!("\"{}\"", "x".repeat(3 << 20)));
    values
}

fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

/// A runner that has connected, and what there was before the server became hostile.
struct Watched<'a> {
    runner: Running,
    server: &'a Server,
    peak: u64,
}

impl<'a> Watched<'a> {
    fn start(project: &Project, server: &'a Server, max_retries: u32) -> Self {
        let runner = Runner::in_project(project)
            .server(server)
            .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
            .env("DJANGOCOMMAND_REQUEST_TIMEOUT", "3")
            .env("DJANGOCOMMAND_MAX_RETRIES", max_retries.to_string())
            .start();
        let first = server.enqueue(Job::new("echo").args("first"));
        assert_eq!(server.completed(&first, LATER).exit_code, 0);
        let peak = memory::peak(runner.pid()).unwrap();
        Watched { runner, server, peak }
    }

    /// All is as before: another execution runs to its end, and nothing but the expected ones ever began.
    fn assert_unharmed(self, what: &str, started: usize) {
        let last = self.server.enqueue(Job::new("echo").args("last"));
        assert_eq!(self.server.completed(&last, LATER).exit_code, 0, "{what}");
        let printed = self.server.state(|state| state.execution(&last).stdout());
        assert_eq!(printed, "[\"last\"]\n", "{what}");
        let peak = memory::peak(self.runner.pid()).unwrap();
        println!("{what}: peak {} KiB before, {peak} KiB after", self.peak);
        assert!(peak <= self.peak + GROWTH_MAX, "{what}: {} KiB became {peak} KiB", self.peak);
        assert_eq!(self.server.state(|state| state.of(Endpoint::Start).count()), started + 2, "{what}");
        let heartbeat =
            self.server.state(|state| state.of(Endpoint::Heartbeat).map(|beat| beat.body_len).max());
        assert!(heartbeat.is_some_and(|length| length < 1000), "{what}: {heartbeat:?} bytes in a heartbeat");
        let state_dir = self.runner.state_dir().clone();
        assert!(self.runner.stop(LATER).success(), "{what}");
        assert!(state_dir.processes().is_empty() && state_dir.executions().is_empty(), "{what}");
        for entry in fs::read_dir(state_dir.path()).unwrap() {
            let entry = entry.unwrap();
            let (name, size) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len());
            assert!(
                ["runner.lock", "status.json", "audit.jsonl", "executions"].contains(&&*name),
                "{what}: {name}"
            );
            assert!(size < 64 * 1024, "{what}: {size} bytes in {name}");
        }
        let log = self.runner.log();
        assert!(log.lines().count() < LINES_MAX, "{what}: {} lines", log.lines().count());
        for line in log.lines() {
            assert!(line.chars().count() < LINE_MAX, "{what}: {line}");
            assert!(!line.chars().any(char::is_control) && !line.contains(" forged\r"), "{what}: {line:?}");
        }
        assert!(!log.contains("panicked"), "{what}: {log}");
    }
}

#[test]
fn a_field_may_hold_anything() {
    let project = fake_project();
    let heartbeat = |field: &str| {
        let beside = if field == "suspension_reason" { "\"runner_state\": \"suspended\", " } else { "" };
        bodies(field, beside)
    };
    let faulty: [&[(Endpoint, Vec<String>)]; 6] = [
        &[
            (Endpoint::Heartbeat, heartbeat("commands_in_sync")),
            (Endpoint::Pending, bodies("executions", "")),
        ],
        &[
            (Endpoint::Heartbeat, heartbeat("pending_executions")),
            (Endpoint::CancelStatus, bodies("cancel_requested", "")),
        ],
        &[
            (Endpoint::Heartbeat, heartbeat("runner_state")),
            (Endpoint::CancelStatus, bodies("force_kill", "\"cancel_requested\": false, ")),
        ],
        &[(Endpoint::Heartbeat, heartbeat("suspension_reason"))],
        &[(Endpoint::Sync, bodies("commands_hash", ""))],
        &[(Endpoint::Sync, bodies("synced_count", ""))],
    ];
    thread::scope(|scope| {
        for answers in faulty {
            let project = &project;
            scope.spawn(move || {
                let server = Server::start();
                let watched = Watched::start(project, &server, 2);
                let asked = server.enqueue(Job::new("slow").args("600 1").no_timeout());
                server.wait_for("its first line", LATER, |state| {
                    Some(state.execution(&asked).stdout()).filter(|text| !text.is_empty())
                });
                if answers[0].0 == Endpoint::Sync {
                    // Each heartbeat asks for one.
                    server
                        .always(Endpoint::Heartbeat, Fault::Body("{\"commands_in_sync\": false}".to_owned()));
                }
                let sent = answers.iter().map(|(endpoint, bodies)| {
                    bodies.iter().for_each(|body| server.next(*endpoint, Fault::Body(body.clone())));
                    (*endpoint, server.state(|state| state.of(*endpoint).count()) + bodies.len() + 1)
                });
                for (endpoint, count) in sent.collect::<Vec<_>>() {
                    wait_for_requests(&server, endpoint, count);
                }
                server.heal(Endpoint::Heartbeat);
                server.cancel(&asked);
                assert_eq!(server.completed(&asked, LATER).status, "cancelled");
                watched.assert_unharmed(&format!("{:?}", answers[0].0), 1);
            });
        }
    });
}

/// An answer for each odd value of the field, without it, and with it twice.
fn bodies(field: &str, beside: &str) -> Vec<String> {
    let with = |value: &String| format!("{{{beside}\"{field}\": {value}}}");
    let twice = format!("{{{beside}\"{field}\": null, \"{field}\": null}}");
    let mut bodies: Vec<String> = odd_values().iter().map(with).collect();
    bodies.extend([twice, "{}".to_owned()]);
    bodies
}

fn wait_for_requests(server: &Server, endpoint: Endpoint, count: usize) {
    server.wait_for(&format!("request {count} for {endpoint:?}"), LATER, |state| {
        state.of(endpoint).nth(count - 1).map(drop)
    });
}

#[test]
fn an_entry_may_hold_anything_and_is_rejected_or_skipped() {
    let (server, project, touched) = (Server::start(), fake_project(), tempfile::tempdir().unwrap());
    let watched = Watched::start(&project, &server, 2);
    let (mut entries, mut rejected) = (Vec::new(), Vec::new());
    let target = |name: &str| touched.path().join(name).to_str().unwrap().to_owned();
    for (field, values) in odd_fields() {
        for value in values {
            let id = known(&server);
            entries.push(entry(&id, &target(&id), field, value.as_deref()));
            rejected.push(id);
        }
    }
    for id in odd_ids() {
        entries.push(entry("unused", &target("odd id"), "id", Some(&id)));
    }
    let (one, other) = (known(&server), known(&server));
    entries.push(format!(
        "{{\"id\": \"{one}\", \"command\": \"touch\", \"args\": \"{0}\", \"id\": \"{other}\"}}",
        target("twice")
    ));
    entries.extend(["null", "true", "1e400", "[]", "{}", "\"text\"", &nested(10_000)].map(str::to_owned));
    assert!(entries.len() < 200, "no more are looked at");
    // One id in two spellings is one execution.
    let upper = known(&server).to_uppercase();
    server.enqueue_raw(json!({"id": upper}));
    server.withdraw_raw(&json!({"id": upper}));
    for id in [&upper, &upper.to_lowercase(), &upper] {
        entries.insert(0, entry(id, "good", "command", Some("\"echo\"")));
    }
    // Those that are done are offered again and again.
    server.always(Endpoint::Pending, Fault::Body(format!("{{\"executions\": [{}]}}", entries.join(","))));
    for id in &rejected {
        let end = server.completed(id, LATER);
        assert_eq!((end.exit_code, &*end.status), (-1, "failed"), "{id}");
    }
    let spellings = [upper.clone(), upper.to_lowercase()];
    server.wait_for("the end of one of the two spellings", LATER, |state| {
        spellings.iter().find_map(|id| state.execution(id).completed.clone())
    });
    let polls = server.state(|state| state.of(Endpoint::Pending).count());
    wait_for_requests(&server, Endpoint::Pending, polls + 2);
    let begun =
        server.state(|state| spellings.iter().filter(|id| state.execution(id).started.is_some()).count());
    assert_eq!(begun, 1);
    server.heal(Endpoint::Pending);
    assert_eq!(fs::read_dir(touched.path()).unwrap().count(), 0, "something was spawned");
    watched.assert_unharmed("entries", rejected.len() + 1);
}

/// An id that the server knows but does not offer.
fn known(server: &Server) -> String {
    let id = fresh_uuid_v4();
    server.enqueue_raw(json!({"id": id}));
    server.withdraw_raw(&json!({"id": id}));
    id
}

/// An entry that would touch a file, but for one field, which has this value, or is missing.
fn entry(id: &str, target: &str, field: &str, value: Option<&str>) -> String {
    let good =
        [("id", format!("\"{id}\"")), ("command", "\"touch\"".into()), ("args", format!("\"{target}\""))];
    let mut fields: Vec<(&str, String)> = good.into_iter().filter(|(name, _)| *name != field).collect();
    fields.extend(value.map(|value| (field, value.to_owned())));
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

/// The fields of an entry beside its id, with values for which it must be rejected; `None`: it is missing.
fn odd_fields() -> Vec<(&'static str, Vec<Option<String>>)> {
    // A list has room for one text of a megabyte.
    let odd = || odd_values().into_iter().filter(|value| value.len() < 100_000);
    let but = |fine: &[&str]| odd().filter(|value| !fine.contains(&&**value)).map(Some).collect::<Vec<_>>();
    let texts =
        |value: &String| !value.starts_with('"') || value.contains("\\u0000") || value.contains("\\ud800");
    let mut args: Vec<_> =
        but(&["null"]).into_iter().filter(|value| value.as_ref().is_some_and(texts)).collect();
    args.extend([Some("\"'open\"".to_owned()), Some(format!("\"{}\"", "x".repeat((1 << 20) + 1)))]);
    let mut command = but(&[]);
    command.extend([None, Some(format!("\"{}\"", "x".repeat(100_000))), Some("\"../touch\"".to_owned())]);
    vec![
        ("command", command),
        ("args", args),
        ("timeout", but(&["null", "0.5", "18446744073709551616"])),
        ("use_metadata_only_mode", but(&["null"])),
    ]
}

/// Ids that are none, though some could be taken for one by who looks carelessly.
fn odd_ids() -> Vec<String> {
    let uuid = fresh_uuid_v4();
    let mut ids = odd_values();
    ids.retain(|value| value.len() < 100_000);
    let texts = [
        format!("../{uuid}"),
        "../../heartbeat".to_owned(),
        "..%2f..%2fheartbeat".to_owned(),
        "/etc/cron.d/x".to_owned(),
        "//service.example/x".to_owned(),
        ".".to_owned(),
        format!("{uuid}\\n"),
        format!("{uuid}\\u0000"),
        format!(" {uuid}"),
        format!("{uuid}0"),
        uuid[1..].to_owned(),
        format!("{{{uuid}}}"),
        uuid.replace('-', ""),
        uuid.replace('-', "/"),
        uuid.replacen(|digit: char| digit.is_ascii_hexdigit(), "\u{ff10}", 1),
        "-".repeat(36),
        "x".repeat(100_000),
    ];
    ids.extend(texts.map(|text| format!("\"{text}\"")));
    ids
}

#[test]
fn a_head_or_a_framing_may_be_anything_and_no_answer_is_waited_for_longer_than_the_time_limit() {
    let project = fake_project();
    let all = odd_answers();
    let half = all.len() / 2;
    thread::scope(|scope| {
        for faults in [&all[..half], &all[half..]] {
            let project = &project;
            scope.spawn(move || {
                let server = Server::start();
                let watched = Watched::start(project, &server, 0);
                let before = server.state(|state| state.of(Endpoint::Pending).count());
                faults.iter().for_each(|fault| server.next(Endpoint::Pending, fault.clone()));
                wait_for_requests(&server, Endpoint::Pending, before + faults.len() + 1);
                server.state(|state| {
                    let polls: Vec<_> = state.of(Endpoint::Pending).map(|request| request.at).collect();
                    for (at, pair) in polls.windows(2).enumerate() {
                        // The time limit, the pause between polls, and what a busy machine adds.
                        let gap = pair[1] - pair[0];
                        assert!(gap < Duration::from_secs(3 + 2 + 10), "{gap:?} after {at}");
                    }
                });
                watched.assert_unharmed("heads", 0);
            });
        }
    });
}

/// Answers that are wrong below the JSON.
fn odd_answers() -> Vec<Fault> {
    let good = "{\"executions\": []}";
    let raw = |text: String| Fault::Raw(text.into_bytes());
    let head = |lines: &str| raw(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{good}"));
    let first = |line: &str| raw(format!("{line}\r\nContent-Length: 18\r\n\r\n{good}"));
    let flood = |first: &str, rest: &str| Fault::Flood(first.into(), rest.repeat(100).into_bytes());
    let chunked =
        |chunks: &str| raw(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
    let unavailable = |line: &str| raw(format!("HTTP/1.1 503 Busy\r\n{line}\r\nContent-Length: 0\r\n\r\n"));
    let zeros = format!("{{\"detail\": [0{}]}}", ",0".repeat(2_000_000));
    vec![
        Fault::Status { code: 500, headers: Vec::new(), body: zeros },
        Fault::Status { code: 422, headers: Vec::new(), body: format!("{{\"detail\": {}}}", nested(10_000)) },
        Fault::Status {
            code: 400,
            headers: Vec::new(),
            body: format!("{{\"error\": \"{}", "\\u001b".repeat(99_999)),
        },
        Fault::Status { code: 599, headers: Vec::new(), body: "\u{1b}[2J\u{202e}\n".repeat(100_000) },
        head(&"X-Many: 1\r\n".repeat(5000)),
        head(&format!("X-Long: {}", "x".repeat(1 << 20))),
        head("no colon"),
        head("X-Nul: \0"),
        head("X-Folded: a\r\n b"),
        head("Date: tomorrow, perhaps"),
        unavailable("Retry-After: -1"),
        unavailable("Retry-After: soon, \u{1b}[2J"),
        unavailable("Retry-After: Sun, 99 Nov 99999999 99:99:99 GMT"),
        raw("HTTP/1.1 302 Found\r\nLocation: \u{1b}]0;x\u{7}\r\n\r\n".to_owned()),
        raw(format!("HTTP/1.1 307 x\r\nLocation: http://{}/\r\n\r\n", "x".repeat(30_000))),
        head("Content-Length: 1000"),
        head("Content-Length: 3"),
        head("Content-Length: -1"),
        head("Content-Length: +18"),
        head("Content-Length: 18446744073709551615"),
        head("Content-Length: 99999999999999999999999"),
        head("Content-Length: 18\r\nContent-Length: 3"),
        head("Content-Length: 18\r\nTransfer-Encoding: chunked"),
        head("Transfer-Encoding: gzip, chunked"),
        head("Content-Encoding: gzip\r\nContent-Length: 18"),
        // A deflated megabyte of nothing in a few bytes, as often as fits.
        raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{}",
            "\u{1f}\u{8b}\u{8}".repeat(500_000)
        )),
        chunked("ffffffffffffffff\r\n{"),
        chunked("-1\r\n{}"),
        chunked(&format!("12;{}\r\n{good}\r\n0\r\n\r\n", "x".repeat(1 << 20))),
        chunked(&format!("12\r\n{good}0\r\n\r\n")),
        chunked(""),
        raw(good.to_owned()),
        raw(String::new()),
        raw("\0".repeat(100_000)),
        first("HTTP/0.9 200 OK"),
        first("HTTP/2.0 200 OK"),
        first("HTTP/1.1 20000 OK"),
        first("HTTP/1.1 099 OK"),
        first("HTTP/1.1 999 OK"),
        first("HTTP/1.1 101 Switching Protocols"),
        first("HTTP/1.1 204 No Content"),
        first(&format!("HTTP/1.1 200 {}", "O".repeat(1 << 20))),
        flood("", "HTTP/1.1 100 Continue\r\n\r\n"),
        flood("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
        flood("HTTP/1.1 200 OK\r\n", "X-More: 1\r\n"),
        flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n"),
        flood("HTTP/1.1 200 OK\r\n\r\n{", " "),
    ]
}

#[test]
fn news_without_end_do_not_fill_the_log() {
    let (server, project) = (Server::start(), fake_project());
    let watched = Watched::start(&project, &server, 2);
    let before = server.state(|state| state.of(Endpoint::Pending).count());
    for _ in 0..5 {
        let entries: Vec<String> =
            (0..199).map(|_| format!("{{\"id\": \"../{}\"}}", fresh_uuid_v4())).collect();
        server.next(Endpoint::Pending, Fault::Body(format!("{{\"executions\": [{}]}}", entries.join(","))));
    }
    wait_for_requests(&server, Endpoint::Pending, before + 6);
    watched.runner.wait_for_log("no more of this is said for an hour", SOON);
    watched.assert_unharmed("news", 0);
}

#[test]
fn what_is_kept_of_an_answer_is_short() {
    let (server, project) = (Server::start(), fake_project());
    let long = "x\\u001b".repeat(400_000);
    server.next(Endpoint::Sync, Fault::Body(format!("{{\"commands_hash\": \"{long}\"}}")));
    let watched = Watched::start(&project, &server, 2);
    wait_for_requests(&server, Endpoint::Sync, 2);
    let reason = format!("{{\"runner_state\": \"suspended\", \"suspension_reason\": \"{long}\"}}");
    server.always(Endpoint::Heartbeat, Fault::Body(reason));
    watched.runner.wait_for_log("the service has suspended this runner: 'x\\u{1b}x", LATER);
    let state_dir = watched.runner.state_dir().clone();
    let suspended = wait_for_status(&project, &state_dir, "the suspension", LATER, |status| {
        status["suspension_reason"].as_str().map(str::to_owned)
    });
    assert!(suspended.chars().count() < 300, "{} characters", suspended.chars().count());
    server.heal(Endpoint::Heartbeat);
    watched.assert_unharmed("what is kept", 0);
}
