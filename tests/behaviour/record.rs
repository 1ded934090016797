//! The host's own record: what `audit.jsonl` says of each thing decided or seen, what syslog gets, what `history` shows.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::own_mounts;
use crate::support::project::{Project, fake_project};
use crate::support::runner::{BINARY, Ended, Runner};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server};
use crate::support::state_dir::StateDir;
use crate::support::sys;
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn what_is_run_is_recorded_step_by_step_before_the_process_is_there_and_without_its_output() {
    let (server, project) = (Server::start(), fake_project());
    // The command itself looks at what is recorded by the time it begins.
    let mut commands = OpenOptions::new().append(true).open(project.dir().join("commands.py")).unwrap();
    let copies = "def copies(path, to, *_):\n    \"\"\"Copies a file.\"\"\"\n    import shutil; shutil.copy(path, to)\n";
    write!(commands, "\n\n{copies}    print('secret output'); print('x' * 9, file=sys.stderr)\n").unwrap();
    let state = StateDir::new();
    let (record, copy) = (state.path().join("audit.jsonl"), project.dir().join("copy"));
    let args = format!("{} {} 'two words'", record.display(), copy.display());
    let id = server.enqueue(Job::new("copies").args(&args).timeout(77.5));
    let _runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let [offered, started, ended, delivered] = &steps(&state, &id, 4)[..] else { panic!() };
    assert_eq!(events(&read(&copy), &id), ["offered", "started"], "on disk before the process was there");
    assert_eq!(keys(offered, ["event", "command", "args"]), [json!("offered"), json!("copies"), json!(args)]);
    assert_eq!(keys(offered, ["metadata_only", "timeout"]), [json!(false), json!(77.5)]);
    assert_eq!(keys(started, ["event", "uid"]), [json!("started"), json!(uid())]);
    assert_eq!(
        keys(started, ["interpreter", "directory"]),
        [started["argv"][0].clone(), json!(project.dir())]
    );
    assert_eq!(started["argv"].as_array().unwrap().last(), Some(&json!("two words")));
    let end = ["event", "command", "status", "exit_code", "stdout_bytes", "stderr_bytes"];
    let (success, copies) = (json!("success"), json!("copies"));
    let expected = [json!("ended"), copies.clone(), success.clone(), json!(0), json!(14), json!(10)];
    assert_eq!(keys(ended, end), expected);
    assert!((0.001..60.0).contains(&ended["duration"].as_f64().unwrap()), "{ended}");
    let expected = [json!("delivered"), copies, success, json!(0), Value::Null, Value::Null];
    assert_eq!(keys(delivered, end), expected);
    let all = read(&record);
    assert!(all.iter().map(|line| line["time"].as_f64().unwrap()).is_sorted());
    let text = fs::read_to_string(&record).unwrap();
    assert!(!text.contains("secret output") && !text.contains(KEY) && text.contains("dc_********"), "{text}");
    assert_eq!(fs::metadata(record).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_refused_is_recorded_with_the_rule_and_what_it_would_have_been() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("flush").args("--no-input"));
    let wrong = server.enqueue(Job::new("echo").args("it's").metadata_only());
    let runner = Runner::in_project(&project).server(&server).start();
    for (id, args, rule) in [
        (&id, "--no-input", "it is not in DJANGOCOMMAND_ALLOWED_COMMANDS"),
        (&wrong, "it's", "the arguments cannot be split into words: a quotation is not closed"),
    ] {
        assert_eq!(server.completed(id, WITHIN).status, "failed");
        let [offered, rejected, delivered] = &steps(runner.state_dir(), id, 3)[..] else { panic!() };
        assert_eq!(keys(offered, ["event", "args"]), [json!("offered"), json!(args)]);
        assert_eq!(keys(rejected, ["event", "reason"]), [json!("rejected"), json!(rule)]);
        assert_eq!(keys(delivered, ["event", "exit_code"]), [json!("delivered"), json!(-1)]);
    }
    let shown = history(&project, runner.state_dir(), &["flush"]);
    assert!(
        shown.stdout.ends_with("flush --no-input  (it is not in DJANGOCOMMAND_ALLOWED_COMMANDS)\n"),
        "{shown:?}"
    );
    assert_eq!(shown.stdout.lines().count(), 2, "{shown:?}");
}

#[test]
fn whoever_has_a_command_ended_is_recorded_the_service_the_user_or_the_timeout() {
    let (server, project) = (Server::start(), fake_project());
    let [polite, stubborn, other] =
        ["on_term", "ignore_term", "on_term"].map(|command| server.enqueue(Job::new(command)));
    let slow = server.enqueue(Job::new("slow").args("100 1").timeout(1.0));
    let runner = Runner::in_project(&project).server(&server).start();
    for id in [&polite, &stubborn, &other] {
        shows(&server, id, "ready\n");
    }
    server.cancel(&polite);
    server.force_cancel(&stubborn);
    for (id, by, signal, status, code) in [
        (&polite, "service", "SIGTERM", "cancelled", 3),
        (&stubborn, "service", "SIGKILL", "cancelled", -9),
        (&slow, "timeout", "SIGTERM", "timed_out", -1),
        (&other, "user", "SIGTERM", "cancelled", 3),
    ] {
        if by == "user" {
            runner.signal(libc::SIGUSR2);
        }
        assert_eq!(server.completed(id, WITHIN).status, status);
        let [_, _, signalled, ended, _] = &steps(runner.state_dir(), id, 5)[..] else { panic!() };
        let who = keys(signalled, ["event", "by", "signal"]);
        assert_eq!(who, [json!("signalled"), json!(by), json!(signal)], "{status}");
        assert_eq!(keys(ended, ["status", "exit_code"]), [json!(status), json!(code)]);
    }
    let shown = history(&project, runner.state_dir(), &["on_term"]).stdout;
    assert!(
        shown.contains("on_term  (ended by the service)") && shown.contains("(ended by the user)"),
        "{shown}"
    );
}

#[test]
fn stop_force_without_a_runner_records_whom_it_ends_and_the_next_runner_how_that_ended() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("on_term"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    shows(&server, &id, "ready\n");
    runner.kill();
    let stop = Runner::in_project(&project).subcommand("stop").state_dir(&state).arg("--force");
    assert_eq!(stop.run_to_end(WITHIN).code(), Some(0));
    assert_eq!(events(&lines(&state), &id), ["offered", "started", "signalled"]);
    assert!(history(&project, &state, &[]).stdout.contains("  ended "), "it is not recorded yet how");
    let _next = Runner::in_project(&project).server(&server).state_dir(&state).start();
    assert_eq!(server.completed(&id, WITHIN).status, "cancelled");
    let [_, _, signalled, ended, _] = &steps(&state, &id, 5)[..] else { panic!() };
    assert_eq!(keys(signalled, ["by", "signal"]), [json!("user"), json!("SIGTERM")]);
    assert_eq!(
        keys(ended, ["status", "stdout_bytes"]),
        [json!("cancelled"), json!("ready\ncleaning up\n".len())]
    );
}

#[test]
fn a_crash_of_the_runner_or_the_shim_leaves_one_line_for_each_step() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("slow").args("3 0.5"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    shows(&server, &id, "line 1\n");
    runner.kill();
    let exit = state.executions()[0].join("exit.json");
    eventually("the end of the command", || exit.exists());
    // This one sees the end, but cannot deliver it, and the next one does not see it again.
    server.always(Endpoint::Complete, Fault::status(503));
    let second = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("an attempt", WITHIN, |state| state.of(Endpoint::Complete).next().map(|_| ()));
    second.kill();
    server.heal(Endpoint::Complete);
    let watched = server.enqueue(Job::new("slow").args("100 1"));
    let _third = Runner::in_project(&project).server(&server).state_dir(&state).start();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let [_, _, ended, _] = &steps(&state, &id, 4)[..] else { panic!() };
    assert_eq!(keys(ended, ["event", "stdout_bytes"]), [json!("ended"), json!(21)]);
    shows(&server, &watched, "line 1\n");
    sys::kill(state.shims()[0], libc::SIGKILL);
    assert_eq!(server.completed(&watched, WITHIN).status, "failed");
    let [_, _, ended, _] = &steps(&state, &watched, 4)[..] else { panic!() };
    assert_eq!(keys(ended, ["status", "stdout_bytes"]), [json!("failed"), Value::Null]);
    assert!(ended["reason"].as_str().unwrap().starts_with("the process that watched the command was killed"));
    let configured = lines(&state).iter().filter(|line| line["event"] == "configured").count();
    assert_eq!(configured, 3, "once for each runner");
}

#[test]
fn a_refused_key_is_recorded_when_that_begins_and_when_it_ends() {
    let (server, project) = (Server::start(), fake_project());
    let runner =
        Runner::in_project(&project).server(&server).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5").start();
    runner.wait_for_log("connected", WITHIN);
    server.revoke_key();
    runner.wait_for_log("the service refuses the key", WITHIN);
    let seen = server.state(|state| state.of(Endpoint::Heartbeat).count());
    server.wait_for("two more attempts", WITHIN, |state| {
        (state.of(Endpoint::Heartbeat).count() >= seen + 2).then_some(())
    });
    server.restore_key();
    let of_key = || {
        let lines = lines(runner.state_dir()).into_iter();
        lines.filter(|line| line["event"].as_str().unwrap().starts_with("key_")).collect::<Vec<_>>()
    };
    eventually("the key to be accepted again", || of_key().len() == 3);
    let of_key = of_key();
    let names: Vec<&Value> = of_key.iter().map(|line| &line["event"]).collect();
    assert_eq!(names, ["key_accepted", "key_refused", "key_accepted"]);
    assert_eq!(of_key[1]["status"], 401);
    assert!(!of_key[1]["message"].as_str().unwrap().is_empty() && of_key[1].get("execution").is_none());
}

#[test]
fn the_configuration_is_recorded_at_the_start_and_when_a_reload_has_changed_it() {
    let (server, project) = (Server::start(), fake_project());
    let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    runner.wait_for_log("connected", WITHIN);
    let configured = || {
        let lines = lines(runner.state_dir()).into_iter();
        lines.filter(|line| line["event"] == "configured").collect::<Vec<_>>()
    };
    let reload = || {
        let reload = Runner::in_project(&project).subcommand("reload").state_dir(runner.state_dir());
        assert_eq!(reload.run_to_end(WITHIN).code(), Some(0));
    };
    reload();
    let [at_start] = &configured()[..] else { panic!("nothing has changed: {:?}", configured()) };
    assert_eq!(keys(at_start, ["project", "django_version"]), [json!(project.dir()), json!("5.2")]);
    assert!(at_start["version"].is_string() && at_start["interpreter"].is_string());
    project.settings("DJANGOCOMMAND_MAX_RETRIES = 7");
    reload();
    let [_, after] = &configured()[..] else { panic!("{:?}", configured()) };
    let has = |line: &Value, setting: &str| line["settings"].as_array().unwrap().contains(&json!(setting));
    assert!(has(at_start, "DJANGOCOMMAND_MAX_RETRIES = 3 (default)"), "{at_start}");
    assert!(has(after, "DJANGOCOMMAND_MAX_RETRIES = 7 (Django settings)"), "{after}");
    assert!(has(after, "DJANGOCOMMAND_API_KEY = dc_******** (environment)"), "{after}");
}

#[test]
fn while_nothing_can_be_recorded_what_runs_can_be_cancelled_and_nothing_new_is_taken() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("on_term"));
    let runner = Runner::in_project(&project).server(&server).start();
    shows(&server, &id, "ready\n");
    let record = runner.state_dir().path().join("audit.jsonl");
    let aside = record.with_extension("aside");
    fs::rename(&record, &aside).unwrap();
    fs::create_dir(&record).unwrap();
    server.cancel(&id);
    assert_eq!(server.completed(&id, WITHIN).exit_code, 3);
    let said = runner.wait_for_log("cannot be recorded", WITHIN);
    assert!(said.contains(&format!("'signalled' of execution {id} cannot be recorded in '")), "{said}");
    let late = server.enqueue(Job::new("echo"));
    runner.wait_for_log(&format!("execution {late} (echo) cannot be taken: "), WITHIN);
    fs::remove_dir(&record).unwrap();
    fs::rename(&aside, &record).unwrap();
    assert_eq!(server.completed(&late, WITHIN).status, "success");
    steps(runner.state_dir(), &late, 4);
    assert_eq!(runner.log().matches("cannot be recorded").count(), 1, "{}", runner.log());
}

#[test]
fn with_the_setting_each_line_goes_to_syslog_as_well_also_that_of_the_timeout() {
    let Some(launcher) = own_mounts::launcher() else { return };
    let (server, project, temp) = (Server::start(), fake_project(), TempDir::new().unwrap());
    let (socket, dev) = (temp.path().join("log"), temp.path().join("dev"));
    let daemon = UnixDatagram::bind(&socket).unwrap();
    daemon.set_read_timeout(Some(WITHIN)).unwrap();
    fs::create_dir(&dev).unwrap();
    project.settings("DJANGOCOMMAND_AUDIT_SYSLOG = True");
    let id = server.enqueue(Job::new("slow").args("100 1").timeout(1.0));
    // A /dev of its own, with this socket in it.
    let mount = format!(
        "mount -t tmpfs -o mode=755 dev '{dev}' && for d in null zero random urandom; do : > '{dev}'/$d && \
         mount --bind /dev/$d '{dev}'/$d || exit; done && ln -s '{}' '{dev}/log' && mount --rbind '{dev}' /dev && \
         exec \"$@\"",
        socket.display(),
        dev = dev.display()
    );
    let launcher = launcher.iter().copied().chain(["sh", "-c", &mount, "sh"]);
    let runner = Runner::in_project(&project).server(&server).launched_by(launcher).start();
    let mut got: Vec<Value> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while got.last().is_none_or(|last| last["event"] != "delivered") {
        let length = daemon.recv(&mut buffer).unwrap();
        let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let (head, line) = message.split_once(": ").unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        // authpriv.notice or authpriv.info; the timeout is the shim's to tell.
        let priority = if line["event"] == "signalled" { 85 } else { 86 };
        let by_runner = format!("<{priority}>djangocommand[{}]", runner.pid());
        assert!(head.starts_with(&format!("<{priority}>djangocommand[")), "{message}");
        assert_eq!(head == by_runner, line["event"] != "signalled", "{message}");
        got.push(line);
    }
    assert_eq!(events(&got, &id), ["offered", "started", "signalled", "ended", "delivered"]);
    // What is merely seen goes to syslog first.
    steps(runner.state_dir(), &id, 5);
    assert_eq!(got, lines(runner.state_dir()), "the same as in the file");
    assert!(!runner.log().contains("warning syslog"));
}

#[test]
fn a_syslog_that_is_not_there_is_one_warning_and_no_more() {
    let Some(launcher) = own_mounts::launcher() else { return };
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("echo"));
    // Where nothing can listen, whatever this machine has.
    let launcher = launcher.iter().copied().chain([
        "sh",
        "-c",
        "if test -e /dev/log; then mount --bind /dev/null /dev/log || exit; fi; exec \"$@\"",
        "sh",
    ]);
    let runner = Runner::in_project(&project)
        .server(&server)
        .env("DJANGOCOMMAND_AUDIT_SYSLOG", "yes")
        .launched_by(launcher)
        .start();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    steps(runner.state_dir(), &id, 4);
    assert_eq!(
        runner.log().matches("syslog at /dev/log does not take the record").count(),
        1,
        "{}",
        runner.log()
    );
}

#[test]
fn what_ran_counts_in_the_history_whatever_was_offered_under_the_same_id_before() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = "0a1b2c3d-3d0e-4b1c-9a77-1f2e3d4c5b6a";
    let offer = |command: &str, args: &str| json!({"id": id, "command": command, "args": args});
    let (harmless, other) = (offer("echo", "harmless"), offer("both", "other one"));
    server.next(Endpoint::Start, Fault::status(404));
    server.enqueue_raw(harmless.clone());
    let runner = Runner::in_project(&project).server(&server).state_dir(&state);
    let _runner = runner.env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5").start();
    server.wait_for("the refused start", WITHIN, |state| state.of(Endpoint::Start).next().map(|_| ()));
    server.withdraw_raw(&harmless);
    server.enqueue_raw(other);
    assert_eq!(server.completed(id, WITHIN).status, "success");
    eventually("the record of its end", || events(&lines(&state), id).contains(&"delivered".to_owned()));
    let lines = lines(&state);
    let offers = lines.iter().filter(|line| line["execution"] == id && line["event"] == "offered");
    let args: Vec<&str> = offers.map(|line| line["args"].as_str().unwrap()).collect();
    assert_eq!(args, ["harmless", "other one"]);
    let shown = history(&project, &state, &["both"]);
    assert!(shown.stdout.contains("both other one") && !shown.stdout.contains("harmless"), "{shown:?}");
}

#[test]
fn history_shows_what_runs_and_what_ran_and_hostile_names_do_no_harm() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let nothing = history(&project, &state, &[]);
    assert_eq!((nothing.code(), &*nothing.stdout), (Some(1), ""));
    assert!(nothing.stderr.starts_with("djangocommand: no execution is recorded in '"), "{nothing:?}");
    let hostile = server.enqueue(Job::new("\u{1b}[2J\u{9b}31mflush\n").args("\u{202e}\u{7}"));
    let quick = server.enqueue(Job::new("exit").args("3"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.completed(&hostile, WITHIN);
    server.completed(&quick, WITHIN);
    let slow = server.enqueue(Job::new("slow").args("100 1"));
    shows(&server, &slow, "line 1\n");
    eventually("the record of their ends", || events(&lines(&state), &quick).len() == 4);
    let shown = history(&project, &state, &[]);
    assert_eq!((shown.code(), &*shown.stderr), (Some(0), ""));
    let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!shown.stdout.contains(harmful), "{shown:?}");
    let row = |id: &str| {
        let rows: Vec<&str> = shown.stdout.lines().filter(|line| line.contains(&id[..8])).collect();
        assert_eq!(rows.len(), 1, "{shown:?}");
        rows[0].split_whitespace().skip(2).collect::<Vec<_>>().join(" ")
    };
    assert!(row(&hostile).starts_with("rejected - - - "), "{shown:?}");
    assert!(
        row(&hostile).contains("\\u{1b}[2J\\u{9b}31mflush\\n \\u{202e}\\u{7} (its name is not one "),
        "{shown:?}"
    );
    assert!(row(&quick).starts_with("failed 3 0.") && row(&quick).contains(" s 0 B "), "{shown:?}");
    assert_eq!(row(&slow), format!("running - - - {} slow 100 1", &slow[..8]));
    let last = history(&project, &state, &["-n", "1"]).stdout;
    assert!(last.lines().count() == 2 && last.contains(&slow[..8]), "{last}");
    runner.kill();
    assert!(history(&project, &state, &["slow"]).stdout.contains("running"), "its shim lives");
    let none = history(&project, &state, &["check"]);
    assert_eq!(none.code(), Some(1));
    assert!(none.stderr.contains("no execution of 'check' is recorded"), "{none:?}");
}

#[test]
fn history_json_is_the_lines_of_the_last_executions_and_its_reader_may_go_away() {
    let (project, state) = (fake_project(), StateDir::new());
    let id = |n: usize| format!("{n:08}-3d0e-4b1c-9a77-1f2e3d4c5b6a");
    let line = |n: usize, event: &str| {
        let command = if n.is_multiple_of(2) { "even" } else { "odd" };
        json!({"time": n, "event": event, "execution": id(n), "command": command}).to_string() + "\n"
    };
    let text: String = (0..20_000).flat_map(|n| [line(n, "offered"), line(n, "started")]).collect();
    let (old, new) = text.split_at(text.len() / 2);
    fs::write(state.path().join("audit.jsonl.1"), old).unwrap();
    fs::write(state.path().join("audit.jsonl"), new).unwrap();
    let two = history(&project, &state, &["--json", "-n", "2", "even"]).stdout;
    let expected: String =
        [19_996, 19_998].iter().flat_map(|n| [line(*n, "offered"), line(*n, "started")]).collect();
    assert_eq!(two, expected);
    let all = history(&project, &state, &["--json", "-n", "100000"]);
    // Where the line was cut in two is the end of one file and the beginning of the next.
    assert!(all.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(all.stdout.lines().count() >= 39_999);
    let code = project.dir().join("code");
    let script = "{ \"$0\" history --state-dir \"$1\" --json -n 100000; echo $? > \"$2\"; } | head -1";
    let head = Command::new("sh").args(["-c", script, BINARY]).arg(state.path()).arg(&code).output().unwrap();
    assert_eq!(String::from_utf8(head.stdout).unwrap(), line(0, "offered"));
    assert_eq!(
        (String::from_utf8(head.stderr).unwrap(), fs::read_to_string(code).unwrap()),
        (String::new(), "0\n".into())
    );
}

fn history(project: &Project, state: &StateDir, args: &[&str]) -> Ended {
    Runner::in_project(project).subcommand("history").state_dir(state).args(args).run_to_end(WITHIN)
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines(state: &StateDir) -> Vec<Value> {
    read(&state.path().join("audit.jsonl"))
}

/// The names of what is recorded of one execution.
fn events(lines: &[Value], id: &str) -> Vec<String> {
    let of_one = lines.iter().filter(|line| line["execution"] == id);
    of_one.map(|line| line["event"].as_str().unwrap().to_owned()).collect()
}

/// What is recorded of one execution, once that is so many lines, the last of them that it is delivered.
fn steps(state: &StateDir, id: &str, count: usize) -> Vec<Value> {
    let of_one = || lines(state).into_iter().filter(|line| line["execution"] == id).collect::<Vec<_>>();
    eventually("the last line", || of_one().last().is_some_and(|line| line["event"] == "delivered"));
    let of_one = of_one();
    assert_eq!(of_one.len(), count, "{of_one:#?}");
    of_one
}

fn keys<const N: usize>(line: &Value, names: [&str; N]) -> [Value; N] {
    names.map(|name| line[name].clone())
}

/// The user that this process, and with it the runner, acts as.
fn uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid()
}

/// Waits until an execution's standard output begins with a text.
fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(&format!("{text:?}"), WITHIN, |state| {
        state.execution(id).stdout().starts_with(text).then_some(())
    });
}
