//! Executions: what is run, what is refused and how that is told, the surroundings of the process, its exit code.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::project::{Project, fake_project, fake_project_with_settings, system_python};
use crate::support::runner::{BINARY, Runner};
use crate::support::server::{Endpoint, EventKind, Job, KEY, Server};
use crate::support::state_dir::{MARK, StateDir};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// Each time that the project is loaded, by the probe or by a command, adds a byte to a file.
const COUNT_LOADS: &str = "with open(os.path.join(BASE_DIR, 'loads'), 'a') as loads:\n    loads.write('x')";

#[test]
fn an_execution_is_offered_started_shown_and_completed_in_that_order() {
    let (server, project) = (Server::start(), fake_project());
    let events = server.events();
    let id = server.enqueue(Job::new("both").args("one two three"));
    let _runner = Runner::in_project(&project).server(&server).start();
    server.completed(&id, WITHIN);
    let steps: Vec<&str> = events
        .try_iter()
        .filter_map(|event| match event.kind {
            EventKind::Offered { id: of, .. } => Some((of, "offered")),
            EventKind::Started { id: of } => Some((of, "started")),
            EventKind::Output { id: of, .. } => Some((of, "shown")),
            EventKind::Completed { id: of, .. } => Some((of, "completed")),
            _ => None,
        })
        .filter_map(|(of, step)| (of == id).then_some(step))
        .collect();
    assert_eq!(steps[..2], ["offered", "started"]);
    assert_eq!(steps.last(), Some(&"completed"));
    let between = &steps[2..steps.len() - 1];
    assert!(between.len() >= 2 && between.iter().all(|step| *step == "shown"), "{steps:?}");
    assert_eq!(output(&server, &id), ("one\nthree\n".to_owned(), "two\n".to_owned()));
}

/// What is asked, and what the answer must say: the command, the rule, and the way out.
type Refusal<'a> = (&'a str, &'a str, &'a [&'a str]);

#[test]
fn what_an_allowlist_or_the_request_itself_forbids_is_refused_with_rule_and_remedy() {
    let long = "x".repeat(128 * 1024);
    let add_touch = "DJANGOCOMMAND_ALLOWED_COMMANDS = [\"@default\", \"touch\"]";
    refusals(
        "DJANGOCOMMAND_ALLOWED_COMMANDS = ['both', 'echo', 'gone', 'djangocommand']\n\
         DJANGOCOMMAND_BOUND_COMMANDS = {'echo': ['\"a b\" c', {'args': '', 'label': 'plain'}]}",
        &[
            ("touch", "x", &["'touch'", "it is not in DJANGOCOMMAND_ALLOWED_COMMANDS", add_touch]),
            (
                "flush",
                "",
                &["'flush'", "it is not in DJANGOCOMMAND_ALLOWED_COMMANDS", "[\"@default\", \"flush\"]"],
            ),
            ("", "", &["''", "its name is not one that a Python module can have"]),
            (
                "djangocommand",
                "start",
                &["'djangocommand'", "the runner's own command", "No setting allows it"],
            ),
            ("managecommand", "", &["'managecommand'", "the runner's own command", "No setting allows it"]),
            ("gone", "", &["'gone'", "the project has no command of that name"]),
            (
                "echo",
                "a b c",
                &["'echo'", "DJANGOCOMMAND_BOUND_COMMANDS", "\n    \"a b\" c\n", "\n    plain\n", "add them"],
            ),
            ("echo", "''", &["'echo'", "DJANGOCOMMAND_BOUND_COMMANDS"]),
            ("both", "it's", &["'both'", "cannot be split into words: a quotation is not closed"]),
            ("both", "\"a", &["'both'", "a quotation is not closed"]),
            ("both", "a\\", &["'both'", "a backslash at the end escapes nothing"]),
            ("both", "a\0b", &["'both'", "holds a NUL"]),
            ("both", &long, &["'both'", "longer than the 131072 bytes"]),
        ],
    );
}

#[test]
fn what_a_blocklist_forbids_is_refused_with_rule_and_remedy() {
    refusals(
        "DJANGOCOMMAND_USE_BLOCKLIST = True\n\
         DJANGOCOMMAND_DISALLOWED_COMMANDS = ['touch']\n\
         DJANGOCOMMAND_ALLOWED_COMMANDS = ['touch']",
        &[
            ("touch", "x", &["'touch'", "it is in DJANGOCOMMAND_DISALLOWED_COMMANDS", "take it out of"]),
            ("djangocommand", "", &["'djangocommand'", "the runner's own command", "No setting allows it"]),
            ("gone", "", &["'gone'", "the project has no command of that name"]),
            ("--version", "", &["'--version'", "its name is not one that a Python module can have"]),
        ],
    );
}

/// Every case must be refused, in one chunk on stderr, without the project being loaded once more.
fn refusals(settings: &str, cases: &[Refusal<'_>]) {
    let server = Server::start();
    let project = fake_project_with_settings(&format!("{settings}\n{COUNT_LOADS}"));
    let ids: Vec<String> =
        cases.iter().map(|(command, args, _)| server.enqueue(Job::new(command).args(args))).collect();
    let runner = Runner::in_project(&project).server(&server).start();
    for (id, (command, _, said)) in ids.iter().zip(cases) {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"), "'{command}'");
        server.state(|state| {
            let execution = state.execution(id);
            let numbers: Vec<u64> = execution.chunks.keys().copied().collect();
            assert_eq!((numbers, execution.stdout()), (vec![1], String::new()), "'{command}'");
            let text = execution.stderr();
            said.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in:\n{text}"));
        });
    }
    assert_eq!(loads(&project), 1, "only the probe has loaded the project:\n{}", runner.log());
}

#[test]
fn a_timeout_that_is_no_positive_number_is_refused() {
    let (server, project) = (Server::start(), fake_project_with_settings(COUNT_LOADS));
    let ids = [0.0, -1.5].map(|seconds| server.enqueue(Job::new("echo").timeout(seconds)));
    let _runner = Runner::in_project(&project).server(&server).start();
    for id in &ids {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"));
        let text = output(&server, id).1;
        assert!(text.contains("'timeout' is") && text.contains("a positive number of seconds"), "{text}");
    }
    assert_eq!(loads(&project), 1);
}

#[test]
fn a_bound_command_runs_with_arguments_that_split_into_the_same_words() {
    let server = Server::start();
    let project = fake_project_with_settings(
        "DJANGOCOMMAND_BOUND_COMMANDS = {'echo': ['\"a b\" c', {'args': '', 'label': 'plain'}]}",
    );
    let cases =
        [("\"a b\" c", r#"["a b", "c"]"#), ("  a\\ b\t'c' \n", r#"["a b", "c"]"#), ("", "[]"), (" ", "[]")];
    let ids = cases.map(|(args, _)| server.enqueue(Job::new("echo").args(args)));
    let _runner = Runner::in_project(&project).server(&server).start();
    for (id, (args, printed)) in ids.iter().zip(cases) {
        assert_eq!(server.completed(id, WITHIN).status, "success", "{args:?}");
        assert_eq!(output(&server, id).0, format!("{printed}\n"), "{args:?}");
    }
}

/// The bulk of this comparison is beside the code, in `execution/words.rs`; this is the whole way to `sys.argv`.
#[test]
fn a_command_gets_the_words_that_pythons_shlex_makes() {
    let texts = [
        "",
        "--name='two words' \"and\"more  last",
        "'' \"\" x''",
        r#"a\ b 'a\b' "a\b\"\\\'" \\ \n"#,
        "# $HOME `id` $(id) *.py; rm -rf / | x > y && z",
        "tab\tcr\rlf\nff\u{c}vt\u{b}nbsp\u{a0}end",
        "ü € 😀 'ß\u{2028}' \u{1b}[2J",
    ];
    let expected = shlex_split(&texts);
    let (server, project) = (Server::start(), fake_project());
    let ids = texts.map(|text| server.enqueue(Job::new("echo").args(text)));
    let _runner = Runner::in_project(&project).server(&server).start();
    for ((id, text), words) in ids.iter().zip(texts).zip(expected) {
        assert_eq!(server.completed(id, WITHIN).status, "success", "{text:?}");
        assert_eq!(json_printed(&server, id), words, "{text:?}");
    }
}

#[test]
fn four_run_at_a_time_and_the_others_stay_pending() {
    let (server, project) = (Server::start(), fake_project());
    let ids: Vec<String> = (0..6).map(|_| server.enqueue(Job::new("on_term"))).collect();
    let _runner = Runner::in_project(&project).server(&server).start();
    // Each of them is asked about 2 s after it began: by then a runner that takes more would have polled again.
    let running = server.wait_for("four that run", WITHIN, |state| {
        let is_asked = |id: &&String| {
            state.of(Endpoint::CancelStatus).any(|request| request.execution.as_ref() == Some(id))
        };
        let running: Vec<String> = ids.iter().filter(is_asked).cloned().collect();
        (running.len() == 4).then_some(running)
    });
    server.state(|state| {
        let started = ids.iter().filter(|id| state.execution(id).started.is_some()).count();
        assert_eq!(started, 4);
    });
    server.force_cancel(&running[0]);
    let first_end = server.completed(&running[0], WITHIN).at;
    let fifth_start = server.wait_for("the start of the fifth", WITHIN, |state| {
        let waiting = ids.iter().filter(|id| !running.contains(id));
        waiting.filter_map(|id| state.execution(id).started).next()
    });
    assert!(fifth_start > first_end);
}

#[test]
fn the_exit_code_is_the_processs_own_or_the_signal_that_ended_it() {
    let cases = [
        ("exit", "0", 0),
        ("exit", "3", 3),
        ("exit", "300", 44),
        ("killself", "9", -9),
        ("killself", "15", -15),
    ];
    let (server, project) = (Server::start(), fake_project());
    let ids = cases.map(|(command, arg, _)| server.enqueue(Job::new(command).args(arg)));
    let _runner = Runner::in_project(&project).server(&server).start();
    for (id, (command, arg, code)) in ids.iter().zip(cases) {
        let end = server.completed(id, WITHIN);
        let status = if code == 0 { "success" } else { "failed" };
        assert_eq!((end.exit_code, end.status.as_str()), (code, status), "{command} {arg}");
        assert_eq!(output(&server, id), (String::new(), String::new()), "{command} {arg}");
    }
}

#[test]
fn a_process_that_cannot_be_started_is_a_failure_that_says_why() {
    let (server, project) = (Server::start(), fake_project());
    let bin = project.dir().join("venv/bin");
    fs::create_dir_all(&bin).unwrap();
    project.write("venv/pyvenv.cfg", &format!("home = {}\n", system_python().parent().unwrap().display()));
    symlink(system_python(), bin.join("python")).unwrap();
    // More than the kernel takes in all, though no argument is too long by itself.
    let too_many = server.enqueue(Job::new("echo").args(&"x ".repeat(500_000)));
    let runs = server.enqueue(Job::new("cwd"));
    let _runner = Runner::in_project(&project).server(&server).start();
    assert_eq!(server.completed(&runs, WITHIN).status, "success");
    assert_eq!(json_printed(&server, &runs)["executable"], json!(bin.join("python")));
    let fails_with = |id: &str, why: &str| {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"));
        let (stdout, stderr) = output(&server, id);
        assert_eq!((stdout.as_str(), stderr.lines().count()), ("", 1), "{stderr}");
        assert!(stderr.contains(why) && stderr.contains("venv/bin/python"), "{stderr}");
    };
    fails_with(&too_many, "Argument list too long");
    fs::remove_file(bin.join("python")).unwrap();
    fails_with(&server.enqueue(Job::new("cwd")), "No such file or directory");
}

#[test]
fn of_two_hundred_processes_that_end_before_anybody_looks_each_is_reported_all_the_same() {
    // The interpreter that the probe reports runs the commands, so this makes commands that end at once.
    let project = fake_project_with_settings("import sys\nsys.executable = '/bin/false'");
    let server = Server::start();
    let ids: Vec<String> = (0..200).map(|_| server.enqueue(Job::new("echo"))).collect();
    let runner = Runner::in_project(&project).server(&server).start();
    for id in &ids {
        let end = server.completed(id, 2 * WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (1, "failed"));
        assert_eq!(output(&server, id), (String::new(), String::new()));
    }
    server.state(|state| assert_eq!(state.of(Endpoint::Complete).count(), 200));
    assert!(runner.stop(WITHIN).success());
    assert!(runner.state_dir().executions().is_empty());
}

#[test]
fn a_command_runs_in_the_projects_directory_with_the_runners_environment_and_nobody_to_ask() {
    let (server, project) = (Server::start(), fake_project());
    let [cwd, env, stdin, session] =
        ["cwd", "env", "stdin", "session"].map(|command| server.enqueue(Job::new(command)));
    let runner = Runner::in_project(&project).server(&server).env("PROOF", "a b\n=ü");
    let runner = runner.env("DJANGOCOMMAND_REDACT_OUTPUT", "False").start();
    for id in [&cwd, &env, &stdin, &session] {
        assert_eq!(server.completed(id, WITHIN).status, "success");
    }
    let called = json_printed(&server, &cwd);
    assert_eq!(called["cwd"], json!(fs::canonicalize(project.dir()).unwrap()));
    assert_eq!(called["argv"], json!(["manage.py", "cwd"]));
    assert_eq!(called["executable"], json!(project.python()));
    assert_eq!(output(&server, &stdin).0, "''\n");

    let mut got: BTreeMap<String, String> = serde_json::from_value(json_printed(&server, &env)).unwrap();
    assert_eq!(got["PROOF"], "a b\n=ü");
    // manage.py sets the one, and Python the other where the locale is "C".
    let of_their_own = ["DJANGO_SETTINGS_MODULE", "LC_CTYPE"].map(|name| got.remove(name));
    assert_eq!(of_their_own[0].as_deref(), Some("settings"));
    let mut runners = environment_of(runner.pid());
    runners.remove("LC_CTYPE");
    assert_eq!(got, runners);

    let ids = json_printed(&server, &session);
    assert_eq!((&ids["sid"], &ids["pgid"]), (&ids["pid"], &ids["pid"]), "a session of its own: {ids}");
    assert_ne!(ids["ppid"], json!(runner.pid()), "it is the shim's child");
}

#[test]
fn a_command_has_three_descriptors_and_default_signals_whatever_the_runner_was_started_with() {
    let (server, project) = (Server::start(), fake_project());
    // Python ignores SIGPIPE by itself, so the dispositions are read before it begins.
    project.settings("import sys\nsys.executable = os.path.join(BASE_DIR, 'python')");
    project.write(
        "python",
        &format!(
            "#!/bin/sh\ngrep -E 'Sig(Ign|Blk)' /proc/self/status\nexec {} \"$@\"\n",
            system_python().display()
        ),
    );
    fs::set_permissions(project.dir().join("python"), PermissionsExt::from_mode(0o755)).unwrap();
    let id = server.enqueue(Job::new("fds"));
    let state = StateDir::new();
    // A shell cannot block signals, so Python hands its mask on. With SIGCHLD blocked no end would ever be seen.
    const BLOCK: &str = "import os, signal, sys; \
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2]); \
        os.execv(sys.argv[1], sys.argv[1:])";
    let mut runner = Command::new("sh")
        .args(["-c", "trap '' HUP INT QUIT PIPE TERM USR1; exec \"$@\" 5</dev/null 9</dev/null", "sh"])
        .arg(system_python())
        .args(["-c", BLOCK, BINARY])
        .args(["start".as_ref(), "-C".as_ref(), project.dir(), "--state-dir".as_ref(), state.path()]
            as [&Path; 5])
        .env("DJANGOCOMMAND_SERVER_URL", server.url())
        .env("DJANGOCOMMAND_API_KEY", KEY)
        .env(MARK, state.path())
        .env_remove("DJANGO_SETTINGS_MODULE")
        .env_remove("VIRTUAL_ENV")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let printed = output(&server, &id).0;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines[0], lines[2]), ("SigBlk:\t0000000000000000", "[0, 1, 2]"));
    let ignored = lines[1].strip_prefix("SigIgn:\t").map(|mask| u64::from_str_radix(mask, 16).unwrap());
    // Signals 32 to 34 are the C library's own: glibc starts every program with one of them ignored.
    assert_eq!(ignored.map(|mask| mask & !(0b111 << 31)), Some(0), "{printed}");
    drop(state);
    runner.wait().unwrap();
}

/// Both streams of an execution.
fn output(server: &Server, id: &str) -> (String, String) {
    server.state(|state| (state.execution(id).stdout(), state.execution(id).stderr()))
}

fn json_printed(server: &Server, id: &str) -> Value {
    serde_json::from_str(&output(server, id).0).unwrap()
}

fn loads(project: &Project) -> u64 {
    fs::metadata(project.dir().join("loads")).unwrap().len()
}

fn environment_of(pid: u32) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let variables = text.split_terminator('\0').filter_map(|variable| variable.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What the machine's own Python makes of the texts.
fn shlex_split(texts: &[&str]) -> Vec<Value> {
    let script =
        "import json, shlex, sys; print(json.dumps([shlex.split(text) for text in json.load(sys.stdin)]))";
    let mut python = Command::new(system_python())
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(json!(texts).to_string().as_bytes()).unwrap();
    serde_json::from_slice(&python.wait_with_output().unwrap().stdout).unwrap()
}
