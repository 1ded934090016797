//! What the dashboard is told of a project: the same commands, texts and hash as the published runner sends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::canonical::commands_hash;
use crate::support::project::{Project, django_project, django_project_on, fake_project};
use crate::support::runner::Runner;
use crate::support::server::{Endpoint, Job, Server};

/// For what starts an interpreter or two.
const SOON: Duration = Duration::from_secs(30);
/// For what waits for a poll as well.
const LATER: Duration = Duration::from_secs(60);
/// Where `make venvs` says that it found no Python for Django 6.
const DJANGO_6_MISSING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venvs/django6/missing");

#[test]
fn by_default_the_list_is_that_of_the_published_runner() {
    let names = assert_same_as_published("");
    assert!(names.contains(&"migrate".to_owned()) && !names.contains(&"flush".to_owned()), "{names:?}");
}

#[test]
fn with_an_allowlist_the_list_is_that_of_the_published_runner() {
    let own = "DJANGOCOMMAND_ALLOWED_COMMANDS = ('fails', 'odd', 'check', 'broken', 'no_such_command')";
    let mut names = assert_same_as_published(own);
    names.sort();
    assert_eq!(names, ["broken", "check", "fails", "odd"]);
}

#[test]
fn in_blocklist_mode_the_list_is_that_of_the_published_runner() {
    let names = assert_same_as_published("DJANGOCOMMAND_USE_BLOCKLIST = True");
    assert!(names.contains(&"odd".to_owned()) && !names.contains(&"flush".to_owned()), "{names:?}");
}

#[test]
fn with_a_custom_blocklist_the_list_is_that_of_the_published_runner() {
    let own = "DJANGOCOMMAND_USE_BLOCKLIST = True\nDJANGOCOMMAND_DISALLOWED_COMMANDS = ['migrate', 'odd']";
    let names = assert_same_as_published(own);
    assert!(names.contains(&"flush".to_owned()) && !names.contains(&"odd".to_owned()), "{names:?}");
}

#[test]
fn bound_commands_are_listed_with_their_arguments_and_labels() {
    let (server, project) = (Server::start(), fake_project());
    project.settings(
        "DJANGOCOMMAND_ALLOWED_COMMANDS = ['echo', 'both', 'env']\n\
         DJANGOCOMMAND_BOUND_COMMANDS = {\n\
         \x20   'echo': ['--all', {'args': '--month 1', 'label': 'Jänner'}, {'args': ''}, {'label': 'Nothing'}],\n\
         \x20   'both': ('',),\n\
         \x20   'touch': ['not allowed, so not listed'],\n\
         }",
    );
    let _running = Runner::in_project(&project).server(&server).start();
    let (commands, hash) = told(&server);
    let bound = |name: &str| by_name(&commands)[name]["bound_args"].clone();
    assert_eq!(by_name(&commands).len(), 3);
    assert_eq!(
        bound("echo"),
        json!([
            {"args": "--all", "label": "--all"},
            {"args": "--month 1", "label": "Jänner"},
            {"args": "", "label": "(no arguments)"},
            {"args": "", "label": "Nothing"},
        ])
    );
    assert_eq!(bound("both"), json!([{"args": "", "label": "(no arguments)"}]));
    assert_eq!(bound("env"), Value::Null, "a command that is not bound has no such field");
    assert_eq!(hash, commands_hash(commands.as_array().unwrap()));
}

#[test]
fn help_texts_depend_neither_on_the_terminal_nor_on_colour_nor_on_the_hash_seed() {
    let project = fake_project();
    let file = "django/core/management/__init__.py";
    let source = fs::read_to_string(project.dir().join(file)).unwrap();
    // The help becomes longer than a line, has a set in it, and is coloured as argparse decides since Python 3.14.
    let changed = source.replace(
        "parser.add_argument(\"args\", nargs=\"*\")",
        "parser.add_argument(\"--format\", choices={\"json\", \"xml\", \"yaml\", \"csv\", \"text\", \"html\"})\n        \
         parser.description += \" and more\" * 12\n        \
         if os.environ.get(\"FORCE_COLOR\") and os.environ.get(\"PYTHON_COLORS\") != \"0\":\n            \
         parser.description = \"\\x1b[1mbold\"",
    );
    assert_ne!(changed, source);
    project.write(file, &changed);
    let mut seen = Vec::new();
    for variables in [
        &[("PYTHONHASHSEED", "random")][..],
        &[("PYTHONHASHSEED", "1")],
        &[("PYTHONHASHSEED", "2")],
        &[("COLUMNS", "30")],
        &[("COLUMNS", "300")],
        &[("FORCE_COLOR", "1"), ("PYTHON_COLORS", "1"), ("TERM", "xterm-256color")],
    ] {
        let server = Server::start();
        let mut runner = Runner::in_project(&project).server(&server);
        for (name, value) in variables {
            runner = runner.env(name, value);
        }
        let _running = runner.start();
        let (commands, hash) = told(&server);
        let help = by_name(&commands)["echo"]["help_text"].as_str().unwrap().to_owned();
        assert!(
            help.lines().all(|line| line.len() < 80) && help.contains("\nPrints its arguments"),
            "{help}"
        );
        assert!(help.lines().any(|line| line.len() > 60), "{help}");
        seen.push((variables, help, hash));
    }
    for (variables, help, hash) in &seen {
        assert_eq!((help, hash), (&seen[0].1, &seen[0].2), "{variables:?}");
    }
}

#[test]
fn broken_commands_are_listed_without_help() {
    let (server, project) = (Server::start(), project_with_odd_commands());
    let commands_dir = "polls/management/commands";
    for (name, source) in [
        ("exits", "raise SystemExit(3)\n"),
        ("classless", "X = 1\n"),
        ("interrupts", "raise KeyboardInterrupt\n"),
        ("wrong", "def\n"),
        ("exits_later", &with_add_arguments("raise SystemExit(3)")),
        ("raises_later", &with_add_arguments("raise ValueError('x')")),
    ] {
        project.write(&format!("{commands_dir}/{name}.py"), source);
    }
    project.settings("DJANGOCOMMAND_USE_BLOCKLIST = True");
    let running = Runner::in_project(&project).server(&server).start();
    let (commands, hash) = told(&server);
    let by_name = by_name(&commands);
    assert!(running.log().contains("listed without help, because it does not load: exits: SystemExit: 3"));
    for broken in ["broken", "exits", "classless", "interrupts", "wrong"] {
        assert_eq!(*by_name[broken], json!({"name": broken, "app_label": "polls", "help_text": ""}));
    }
    // Where only the whole help cannot be had, the command's own words stand in for it.
    for half_broken in ["exits_later", "raises_later"] {
        let expected = json!({"name": half_broken, "app_label": "polls", "help_text": "Its own words."});
        assert_eq!(*by_name[half_broken], expected);
    }
    assert!(by_name["fails"]["help_text"].as_str().unwrap().starts_with("usage: manage.py fails "));
    assert_eq!(hash, commands_hash(commands.as_array().unwrap()));
}

#[test]
fn it_works_on_django_4_2() {
    assert_works_on("django42", "4.2.");
}

#[test]
fn it_works_on_django_5_2() {
    assert_works_on("django", "5.2.");
}

#[test]
fn it_works_on_django_6() {
    if fs::exists(DJANGO_6_MISSING).unwrap() {
        // Past cargo's capture, so that nobody takes the test's "ok" for more than it is.
        let why = "NOT TESTED: Django 6, because `make venvs` found no Python 3.12 or later";
        writeln!(io::stderr(), "\n{why}\n").unwrap();
        return;
    }
    assert_works_on("django6", "6.");
}

/// Start, sync, `check`: all of it compared with what the project itself says.
fn assert_works_on(venv: &str, version: &str) {
    let (server, project) = (Server::start(), django_project_on(venv));
    let id = server.enqueue(Job::new("check"));
    let _running = Runner::in_project(&project).server(&server).start();
    let (commands, hash) = told(&server);
    let sent = server.state(|state| state.of(Endpoint::Heartbeat).next().unwrap().body.clone());
    assert!(sent["django_version"].as_str().unwrap().starts_with(version), "{sent}");
    let asked = python(&project, &["-c", "import platform; print(platform.python_version())"]);
    assert_eq!(sent["python_version"], asked.trim_end());
    assert_eq!(hash, commands_hash(commands.as_array().unwrap()));
    let migrate = &by_name(&commands)["migrate"];
    assert_eq!(migrate["app_label"], "django.core");
    assert_eq!(migrate["help_text"], python(&project, &["manage.py", "migrate", "--help"]));
    let end = server.completed(&id, LATER);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    let stdout = server.state(|state| state.execution(&id).stdout());
    assert_eq!(stdout, python(&project, &["manage.py", "check"]));
}

/// What the project's own Python prints, away from any terminal.
fn python(project: &Project, args: &[&str]) -> String {
    let mut command = Command::new(project.python());
    command.args(args).current_dir(project.dir()).env_remove("DJANGO_SETTINGS_MODULE");
    // As wide as help texts are for the dashboard.
    let output = command.env("COLUMNS", "80").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Both runners on one project with these settings: list, order and hash are equal. The names that they list.
fn assert_same_as_published(settings: &str) -> Vec<String> {
    let (theirs, ours) = (Server::start(), Server::start());
    let project = project_with_odd_commands();
    project.settings(settings);
    // The published one puts itself into the project, so that ours has to leave that command out.
    let _published = Runner::published_in(&project).server(&theirs).start();
    let _running = Runner::in_project(&project).server(&ours).start();
    let ((commands, hash), (their_commands, their_hash)) = (told(&ours), told(&theirs));
    assert_eq!(commands, their_commands);
    assert_eq!(hash, their_hash);
    commands.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
}

/// The list that a service was told, and the hash that the heartbeat before it announced.
fn told(server: &Server) -> (Value, String) {
    server.wait_for("a sync", SOON, |state| {
        let heartbeat = state.of(Endpoint::Heartbeat).next()?;
        let hash = heartbeat.body["commands_hash"].as_str().unwrap().to_owned();
        Some((state.commands.clone()?, hash))
    })
}

fn by_name(commands: &Value) -> BTreeMap<&str, &Value> {
    commands.as_array().unwrap().iter().map(|command| (command["name"].as_str().unwrap(), command)).collect()
}

/// A real project with a command whose help is as hard to write down as a text can be.
fn project_with_odd_commands() -> Project {
    let project = django_project();
    let source = "from django.core.management.base import BaseCommand\n\n\n\
                  class Command(BaseCommand):\n    \
                  help = 'half \\udc80 a pair, \"\\\\ \\x7f\\t\\u2028 \\U0001F984 %% ä'\n";
    project.write("polls/management/commands/odd.py", source);
    project
}

fn with_add_arguments(body: &str) -> String {
    format!(
        "from django.core.management.base import BaseCommand\n\n\n\
         class Command(BaseCommand):\n    help = 'Its own words.'\n\n    \
         def add_arguments(self, parser):\n        {body}\n"
    )
}
