//! Status: what is shown of a runner in each of its states, to people and to programs, and that nobody is disturbed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::project::{Project, fake_project, fake_project_with_settings, system_python};
use crate::support::runner::{BINARY, Ended, Runner, status, wait_for_status};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::sys;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// It takes less than 5 ms; this is ten times that.
const AT_ONCE: Duration = Duration::from_millis(50);
/// The user "nobody" of every Linux.
const NOBODY: u32 = 65_534;
/// Starts what follows as that user, who need not be able to find the binary.
const AS_NOBODY: &str = "
import os, sys
binary = os.open(sys.argv[1], os.O_RDONLY)
os.setgroups([]), os.setgid(65534), os.setuid(65534)
os.execve(binary, sys.argv[1:], os.environ)
";

#[test]
fn a_runner_is_stopped_or_running_or_dead_and_what_it_left_goes_on_or_is_lost() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let (code, report) = status(&project, &state);
    assert_eq!(code, Some(3));
    assert_eq!(report["status"], "stopped");
    assert!(report.get("pid").is_none(), "{report:#}");
    assert_eq!(first_word(&shown(&project, &state)), "stopped");

    let id = server.enqueue(Job::new("prompt"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("the prompt", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    let (code, report) = status(&project, &state);
    assert_eq!((code, &report["status"], &report["pid"]), (Some(0), &json!("running"), &json!(runner.pid())));

    runner.kill();
    let (code, report) = status(&project, &state);
    assert_eq!((code, &report["status"]), (Some(1), &json!("dead")));
    assert!(report.get("pid").is_none(), "{report:#}");
    let execution = |report: &Value| report["executions"][0].clone();
    assert_eq!((&execution(&report)["id"], &execution(&report)["state"]), (&json!(id), &json!("running")));
    let text = shown(&project, &state);
    assert!(first_word(&text) == "dead" && line(&text, "running").contains("prompt"), "{text}");

    for shim in state.shims() {
        sys::kill(shim, libc::SIGKILL);
    }
    let look = |report: &Value| (execution(report)["state"] == "lost").then_some(());
    wait_for_status(&project, &state, "a lost execution", WITHIN, look);
    assert_eq!(status(&project, &state).0, Some(1));
    assert!(line(&shown(&project, &state), "lost").contains("prompt"));
}

#[test]
fn what_cannot_be_told_is_an_exit_code_of_its_own() {
    let (project, state, elsewhere) = (fake_project(), StateDir::new(), StateDir::new());
    let no_project = Runner::in_project(&project).subcommand("status").without_state_dir();
    let ended = no_project.env("HOME", elsewhere.path()).arg("-C").arg(elsewhere.path()).run_to_end(WITHIN);
    assert_eq!((ended.code(), &*ended.stdout), (Some(4), ""), "{ended:?}");
    assert!(ended.stderr.starts_with("djangocommand: no manage.py in '"), "{ended:?}");
    // Root can read everything.
    let python = system_python();
    let ended = Runner::in_project(&project).subcommand("status").state_dir(&state);
    let ended = match is_root(&state) {
        true => ended.launched_by([python.to_str().unwrap(), "-c", AS_NOBODY]),
        false => {
            fs::set_permissions(state.path(), Permissions::from_mode(0o000)).unwrap();
            ended
        }
    };
    let ended = ended.run_to_end(WITHIN);
    fs::set_permissions(state.path(), Permissions::from_mode(0o700)).unwrap();
    assert_eq!((ended.code(), &*ended.stdout), (Some(4), ""), "{ended:?}");
    assert!(ended.stderr.contains("cannot tell whether a runner has the state directory"), "{ended:?}");
}

#[test]
fn people_and_programs_are_shown_all_there_is_to_know() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    server.always(Endpoint::Heartbeat, Fault::status(503));
    let runner = Runner::in_project(&project)
        .server(&server)
        .state_dir(&state)
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
        .start();
    let wait = |what, look: &dyn Fn(&Value) -> bool| {
        let report = wait_for_status(&project, &state, what, WITHIN, |r| look(r).then(|| r.clone()));
        (report, shown(&project, &state))
    };

    let (report, text) = wait("an outage", &|report| report["outage_cause"].is_string());
    assert!(report["outage_cause"].as_str().unwrap().contains("503"), "{report:#}");
    assert!(report["outage_seconds"].as_f64().unwrap() < 30.0, "{report:#}");
    assert_eq!((&report["key"], &report["last_contact_at"]), (&json!("unproven"), &Value::Null));
    assert_eq!((&report["pid"], &report["server_url"]), (&json!(runner.pid()), &json!(server.url())));
    assert_eq!(report["project"], json!(project.dir()));
    let started_at = report["started_at"].as_str().unwrap();
    assert_eq!(started_at.replace(|c: char| c.is_ascii_digit(), "0"), "0000-00-00T00:00:00Z");
    assert!((0.0..60.0).contains(&report["uptime_seconds"].as_f64().unwrap()), "{report:#}");
    assert!(line(&text, "running").starts_with(&format!("PID {} since 20", runner.pid())), "{text}");
    assert!(line(&text, "service").starts_with(&format!("{}, no answer yet", server.url())), "{text}");
    assert!(line(&text, "outage").contains("503") && line(&text, "key") == "not proven yet", "{text}");

    server.heal(Endpoint::Heartbeat);
    let (report, text) = wait("a good key", &|report| report["key"] == "accepted");
    assert_eq!((&report["outage_cause"], &report["outage_seconds"]), (&Value::Null, &Value::Null));
    assert!(report["last_contact_at"].is_string() && report["last_contact_seconds"].is_f64(), "{report:#}");
    assert!(line(&text, "service").contains(", answered ") && line(&text, "key") == "accepted", "{text}");
    assert!(!text.contains("outage"), "{text}");

    let id = server.enqueue(Job::new("prompt"));
    let (report, text) = wait("a running one", &|report| report["executions"][0]["state"] == "running");
    let execution = &report["executions"][0];
    assert_eq!((&execution["id"], &execution["command"]), (&json!(id), &json!("prompt")));
    assert!((0.0..60.0).contains(&execution["age_seconds"].as_f64().unwrap()), "{report:#}");
    let running = text.lines().filter_map(|line| line.strip_prefix("running ")).nth(1).unwrap();
    assert!(running.trim_start().starts_with(&format!("prompt ({id}), ")), "{text}");
    server.wait_for("the prompt", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    // It goes on, and the service has all that it has printed.
    wait("nothing undelivered", &|report| {
        report["undelivered"] == json!({"bytes": 0, "oldest_seconds": null})
    });

    server.always(Endpoint::Output, Fault::status(503));
    server.enqueue(Job::new("echo"));
    let (report, text) = wait("undelivered output", &|report| report["undelivered"]["bytes"] != 0);
    let oldest = report["undelivered"]["oldest_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&oldest), "{report:#}");
    assert!(line(&text, "undelivered").contains(" bytes of output, the oldest from "), "{text}");
    server.heal(Endpoint::Output);

    server.suspend("the bill");
    let (report, text) = wait("the suspension", &|report| report["suspended"] == true);
    assert_eq!(report["suspension_reason"], "the bill");
    assert_eq!(line(&text, "suspended"), "the bill; nothing new is taken");
    server.revoke_key();
    let (_, text) = wait("a refused key", &|report| report["key"] == "refused");
    assert!(line(&text, "key").starts_with("refused by the service"), "{text}");
}

#[test]
fn control_characters_of_others_never_reach_the_terminal() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let nasty = "a\u{1b}[2J\r\nb\u{7f}\u{9b}31m";
    server.suspend(&format!("reason {nasty}"));
    let _runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    wait_for_status(&project, &state, "the suspension", WITHIN, |report| {
        (report["suspension_reason"] == format!("reason {nasty}")).then_some(())
    });
    shows_no_controls(&project, &state);
    // A command of such a name, whose refusal cannot be delivered.
    let (server, state) = (Server::start(), StateDir::new());
    server.always(Endpoint::Output, Fault::status(503));
    server.enqueue(Job::new(&format!("command {nasty}")));
    let _runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    wait_for_status(&project, &state, "the refusal", WITHIN, |report| {
        (report["executions"][0]["command"] == format!("command {nasty}")).then_some(())
    });
    shows_no_controls(&project, &state);
}

fn shows_no_controls(project: &Project, state: &StateDir) {
    for args in [&[][..], &["--json"]] {
        let text = asked(project, state).args(args).run_to_end(WITHIN).stdout;
        assert!(text.contains("[2J"), "it is shown in some way: {text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with('b')), "a line was forged: {text}");
    }
}

#[test]
fn whatever_numbers_stand_in_its_files_it_answers_as_ever() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("prompt"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("the prompt", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    wait_for_status(&project, &state, "the service", WITHIN, |report| {
        report["last_contact_seconds"].is_number().then_some(())
    });
    runner.signal(libc::SIGSTOP);
    let path = state.path().join("status.json");
    let mut says: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    says["delivered"] = json!({ &*id: 0 });
    says["outage"] = json!({"since": says["started"], "cause": "none"});
    let answers = |what: &str| {
        for args in [&["status"][..], &["status", "--json"], &["ensure"]] {
            let ended = told(args, &project, &state);
            assert!(ended.status.success() && ended.stderr.is_empty(), "{args:?} with {what}: {ended:?}");
        }
    };
    let of_delivered = format!("/delivered/{id}");
    let fields = [
        "/started/unix",
        "/started/monotonic",
        "/turned/unix",
        "/contact/unix",
        "/contact/monotonic",
        "/outage/since/monotonic",
        "/longest_turn",
        "/reloads",
        &of_delivered,
    ];
    let absurd = ["1e300", "-1e300", "1e19", "-1e9", "null", "\"NaN\"", "NaN", "18446744073709551615"];
    for number in absurd {
        for field in fields {
            let mut says = says.clone();
            *says.pointer_mut(field).unwrap() = json!("@");
            fs::write(&path, says.to_string().replace("\"@\"", number)).unwrap();
            answers(&format!("{field} {number}"));
        }
    }
    fs::write(&path, says.to_string()).unwrap();
    for number in absurd {
        let line = format!("{{\"stream\":\"stdout\",\"timestamp\":{number},\"content\":\"x\\n\"}}\n");
        fs::write(state.executions()[0].join("output"), line).unwrap();
        answers(&format!("output at {number}"));
    }
    assert_eq!(status(&project, &state).1["pid"], runner.pid());
}

#[test]
fn a_runner_that_is_still_loading_the_project_is_said_to() {
    let project = fake_project_with_settings("import time\ntime.sleep(60)");
    let state = StateDir::new();
    let _runner = Runner::in_project(&project).state_dir(&state).env("DJANGOCOMMAND_API_KEY", KEY).start();
    let report = wait_for_status(&project, &state, "a runner", WITHIN, |report| {
        report["started_at"].is_string().then(|| report.clone())
    });
    assert_eq!((&report["status"], &report["server_url"]), (&json!("running"), &Value::Null));
    let text = shown(&project, &state);
    assert_eq!(line(&text, "loading"), "the project is being loaded", "{text}");
}

#[test]
fn only_what_starts_a_runner_runs_python_or_needs_one() {
    let (project, state, trap) = (fake_project(), StateDir::new(), fake_project());
    let mark = trap.dir().join("mark");
    let python = trap.dir().join("bin/python");
    fs::create_dir(trap.dir().join("bin")).unwrap();
    trap.write("bin/python", &format!("#!/bin/sh\ntouch '{}'\nexit 1\n", mark.display()));
    fs::set_permissions(&python, Permissions::from_mode(0o755)).unwrap();
    let run = |subcommand: &str, path: &str| {
        let runner = Runner::in_project(&project).subcommand(subcommand).state_dir(&state);
        let virtualenv = if path.is_empty() { Path::new("") } else { trap.dir() };
        runner.env("VIRTUAL_ENV", virtualenv).env("PATH", path).run_to_end(WITHIN)
    };
    for path in ["/usr/bin:/bin", ""] {
        for (subcommand, code, said) in [
            ("status", 3, "stopped"),
            ("stop", 0, "no runner is running"),
            ("reload", 1, "no runner is running"),
            ("logs", 1, "there is no log"),
        ] {
            let ended = run(subcommand, path);
            assert_eq!(ended.code(), Some(code), "{subcommand}: {ended:?}");
            assert!(format!("{}{}", ended.stdout, ended.stderr).contains(said), "{subcommand}: {ended:?}");
        }
    }
    assert!(!mark.exists());
    assert_eq!(run("start", "/usr/bin:/bin").code(), Some(1));
    assert!(mark.exists(), "this is the Python that they would have run");
}

#[test]
fn root_sees_another_users_runner_as_it_is_and_so_does_who_takes_another_way_to_the_directory() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("prompt"));
    let python = system_python();
    let mut runner = Runner::in_project(&project).server(&server).state_dir(&state);
    if is_root(&state) {
        for dir in [state.path().parent().unwrap(), project.dir()] {
            fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        }
        chown(state.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        // Where every user finds a python3, even if the developer's own is in a private place.
        runner = runner
            .launched_by([python.to_str().unwrap(), "-c", AS_NOBODY])
            .env("PATH", "/usr/local/bin:/usr/bin:/bin");
    }
    let runner = runner.start();
    server.wait_for("the prompt", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    let link = project.dir().join("link");
    symlink(state.path(), &link).unwrap();
    for path in [state.path(), &link] {
        let ended = asked(&project, &state).arg("--state-dir").arg(path).arg("--json").run_to_end(WITHIN);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((ended.code(), &report["pid"]), (Some(0), &json!(runner.pid())));
        assert_eq!(report["executions"][0]["state"], "running", "{}: {report:#}", path.display());
    }
}

#[test]
fn status_takes_no_time() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("prompt"));
    let _runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("the prompt", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(quick(&project, &state).status.code(), Some(0));
            began.elapsed()
        })
        .collect();
    times.sort();
    println!("status took {:?} in the median, {:?} at least", times[10], times[0]);
    // On a machine that is busy with other tests most of them wait for their turn; the fastest shows what it takes.
    assert!(times[0] < AT_ONCE, "{times:?}");
}

#[test]
fn however_often_it_is_asked_executions_and_starts_are_not_disturbed() {
    let (server, project) = (Server::start(), fake_project());
    let (state, restless) = (StateDir::new(), StateDir::new());
    let files: Vec<_> = (0..8).map(|number| project.dir().join(format!("ran{number}"))).collect();
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) || asked.load(Ordering::SeqCst) < 200 {
                    let answer = quick(&project, &state);
                    assert_eq!(answer.status.code(), Some(0), "{answer:?}");
                    let answer = quick(&project, &restless);
                    assert!(matches!(answer.status.code(), Some(0 | 3)), "{answer:?}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let work = scope.spawn(|| {
            let jobs = files.iter().map(|file| Job::new("touch").args(file.to_str().unwrap()));
            let ids: Vec<String> = jobs.map(|job| server.enqueue(job)).collect();
            for number in 0..4 {
                let other = Server::start();
                let detached = Runner::in_project(&project).server(&other).state_dir(&restless);
                let ended = detached.arg("-d").run_to_end(WITHIN);
                assert_eq!(ended.code(), Some(0), "start {number}: {ended:?}");
                let ended = stop(&project, &restless);
                assert_eq!(ended.code(), Some(0), "stop {number}: {ended:?}");
            }
            for id in ids {
                assert_eq!(server.completed(&id, WITHIN).status, "success");
            }
        });
        let result = work.join();
        is_over.store(true, Ordering::SeqCst);
        assert!(result.is_ok(), "see above");
    });
    println!("asked {} times", asked.load(Ordering::SeqCst));
    assert!(files.iter().all(|file| fs::read_to_string(file).unwrap() == "ran\n"));
    assert!(!runner.log().contains(" error "), "{}", runner.log());
}

fn stop(project: &Project, state: &StateDir) -> Ended {
    Runner::in_project(project).subcommand("stop").state_dir(state).run_to_end(WITHIN)
}

fn asked<'a>(project: &'a Project, state: &StateDir) -> Runner<'a> {
    Runner::in_project(project).subcommand("status").state_dir(state)
}

/// What people are shown.
fn shown(project: &Project, state: &StateDir) -> String {
    asked(project, state).run_to_end(WITHIN).stdout
}

/// The same without anything around it that takes time.
fn quick(project: &Project, state: &StateDir) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("status").arg("-C").arg(project.dir()).arg("--state-dir").arg(state.path());
    command.env_clear().stdin(Stdio::null()).process_group(0).output().unwrap()
}

/// Any subcommand, in the same way.
fn told(args: &[&str], project: &Project, state: &StateDir) -> Output {
    let mut command = Command::new(BINARY);
    command.args(args).arg("-C").arg(project.dir()).arg("--state-dir").arg(state.path());
    command.env_clear().env(MARK, state.path()).stdin(Stdio::null()).output().unwrap()
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// The first line of this name.
fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no line '{name}' in\n{text}")).trim_start()
}

fn is_root(state: &StateDir) -> bool {
    fs::metadata(state.path()).unwrap().uid() == 0
}
