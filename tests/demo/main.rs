//! `make demo`: a Django project, a local service and the runner between them, shown from the service's side.
//!
//! It ends with 0 only if each execution ended as it should.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the demo needs a part of what the tests need")]
mod support;

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use support::project::django_project;
use support::runner::Runner;
use support::server::{Event, EventKind, Job, Server};

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// What becomes of an execution, and what it must print.
struct Scene {
    status: &'static str,
    exit_code: i64,
    prints: &'static str,
}

fn scenes() -> Vec<(&'static str, Job, Scene)> {
    let ends = |status, exit_code, prints| Scene { status, exit_code, prints };
    let metadata_only = ends("success", 0, "(metadata-only mode, no output captured)");
    vec![
        ("check", Job::new("check"), ends("success", 0, "System check identified no issues")),
        ("migrate", Job::new("migrate"), ends("success", 0, "Applying auth.0001_initial... OK")),
        ("slow, on both streams", Job::new("slow_both").args("5 0.6"), ends("success", 0, "err 5")),
        ("fails", Job::new("fails"), ends("failed", 1, "CommandError: this never works")),
        ("cancelled", Job::new("slow_both").args("60 1"), ends("cancelled", -15, "out 2")),
        ("metadata only", Job::new("showmigrations").metadata_only(), metadata_only),
        ("refused", Job::new("flush").args("--noinput"), ends("failed", -1, "Refused to run 'flush'")),
    ]
}

fn main() -> ExitCode {
    let server = Server::start();
    let project = django_project();
    project.settings("DJANGOCOMMAND_ALLOWED_COMMANDS = ['@default', 'slow_both', 'fails']");
    let events = server.events();
    say(&format!("the service is at {}, the project in {}", server.url(), project.dir().display()));
    let runner = Runner::in_project(&project).server(&server).start();
    let mut expected: HashMap<String, (&str, Scene)> = HashMap::new();
    for (name, job, scene) in scenes() {
        expected.insert(server.enqueue(job), (name, scene));
    }
    let wrong = watch(&server, &events, &expected);
    let status = runner.stop(Duration::from_secs(15));
    say(&format!("the runner ended with {status}"));
    if wrong.is_empty() && status.success() {
        say("each execution ended as it should");
        return ExitCode::SUCCESS;
    }
    wrong.iter().for_each(|line| say(line));
    say(&format!("the runner said:\n{}", runner.log()));
    ExitCode::FAILURE
}

/// Prints what the service sees until all executions are complete; returns what is not as it should be.
fn watch(
    server: &Server,
    events: &Receiver<Event>,
    expected: &HashMap<String, (&str, Scene)>,
) -> Vec<String> {
    let began = Instant::now();
    let mut printed: HashMap<String, String> = HashMap::new();
    let mut left = expected.len();
    let mut wrong = Vec::new();
    while left > 0 {
        let Ok(event) = events.recv_timeout(TIME_LIMIT.saturating_sub(began.elapsed())) else {
            return vec![format!("{left} execution(s) did not end within {} s", TIME_LIMIT.as_secs())];
        };
        let id = show(&event, began, expected);
        match event.kind {
            EventKind::Output { text, .. } => {
                printed.entry(id.clone()).or_default().push_str(&text);
                if expected[&id].0 == "cancelled" && printed[&id].contains("out 2") {
                    server.cancel(&id);
                }
            }
            EventKind::Completed { exit_code, status, .. } => {
                left -= 1;
                let (name, scene) = &expected[&id];
                let output = printed.get(&id).map_or("", String::as_str);
                if (&*status, exit_code) != (scene.status, scene.exit_code) || !output.contains(scene.prints)
                {
                    wrong.push(format!(
                        "WRONG: '{name}' should be {} ({}) and print {:?}",
                        scene.status, scene.exit_code, scene.prints
                    ));
                }
            }
            _ => {}
        }
    }
    wrong
}

/// One line an event: time, execution, what happened. Returns the execution's id.
fn show(event: &Event, began: Instant, expected: &HashMap<String, (&str, Scene)>) -> String {
    let (id, what) = match &event.kind {
        EventKind::Heartbeat { in_sync } => ("", format!("heartbeat, commands in sync: {in_sync}")),
        EventKind::Synced { count } => ("", format!("told of {count} commands")),
        EventKind::Offered { id, command, args } => (&**id, format!("offered: {command} {args}")),
        EventKind::Started { id } => (&**id, "started".to_owned()),
        EventKind::Output { id, is_stderr, text } => {
            let stream = if *is_stderr { "stderr" } else { "stdout" };
            (&**id, text.lines().map(|line| format!("{stream} | {line}")).collect::<Vec<_>>().join("\n"))
        }
        EventKind::CancelTold { id, .. } => (&**id, "told that it shall be cancelled".to_owned()),
        EventKind::Completed { id, exit_code, status } => {
            (&**id, format!("complete: {status}, exit code {exit_code}"))
        }
    };
    let name = expected.get(id).map_or("-", |(name, _)| *name);
    let seconds = event.moment.at.saturating_duration_since(began).as_secs_f64();
    for line in what.lines() {
        say(&format!("{seconds:7.2} s  {name:<22} {line}"));
    }
    id.to_owned()
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
