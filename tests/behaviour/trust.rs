//! Trust: arguments that choose code, keys in files, and what other processes of the same user may see.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use crate::support::nobody::of_nobody;
use crate::support::project::{Project, django_project, fake_project};
use crate::support::runner::{Ended, Runner, Running};
use crate::support::server::{Job, KEY, Server};
use crate::support::state_dir::StateDir;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// A module that leaves a proof when it is imported.
const EVIL: &str = "import os\nopen(os.environ['PROOF'], 'w')\nfrom mysite.settings import *\n";

#[test]
fn no_argument_chooses_what_code_runs_unless_the_host_allows_it() {
    let (server, project) = (Server::start(), django_project());
    let command = "from django.core.management.base import BaseCommand\n\n\nclass Command(BaseCommand):\n    \
                   def add_arguments(self, parser):\n        parser.add_argument('--set', default='')\n\n    \
                   def handle(self, *args, **options):\n        print('set', options['set'])\n";
    project.write("polls/management/commands/own.py", command);
    project.write("evil.py", EVIL);
    project.settings("DJANGOCOMMAND_ALLOWED_COMMANDS = ['check', 'own']");
    let proof = project.dir().join("proof");
    let runner = start(&project, &server, &[("PROOF", proof.to_str().unwrap())]);
    let run = |command: &str, args: &str| {
        let id = server.enqueue(Job::new(command).args(args));
        let end = server.completed(&id, WITHIN);
        let text = server.state(|state| state.execution(&id).stdout() + &state.execution(&id).stderr());
        (end.exit_code, text)
    };
    for args in ["--settings=evil", "--settings evil", "--sett evil", "--pythonpath=/tmp", "-- --pyth=/tmp"] {
        let (code, text) = run("check", args);
        assert_eq!(code, -1, "{args}: {text}");
        assert!(
            text.contains("may choose what code runs") && text.contains("ALLOW_SETTINGS_OVERRIDE = True"),
            "{text}"
        );
        assert!(runner.log().contains("may choose what code runs"));
    }
    assert!(!proof.exists(), "the service chose what code ran");
    // An option of the command's own is no abbreviation of another.
    assert_eq!(run("own", "--set mine"), (0, "set mine\n".to_owned()));
    assert!(run("own", "--sett mine").1.contains("may choose what code runs"));
    drop(runner);

    let variables = [("PROOF", proof.to_str().unwrap()), ("DJANGOCOMMAND_ALLOW_SETTINGS_OVERRIDE", "True")];
    let _runner = start(&project, &server, &variables);
    assert_eq!(run("check", "--settings=evil").0, 0);
    assert!(proof.exists(), "the host allows it");
}

#[test]
fn a_key_file_comes_before_the_environment_and_is_refused_if_others_can_use_it() {
    let (server, project) = (Server::start(), fake_project());
    let file = project.dir().join("key");
    let as_key = |text: &str, mode: u32| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    };
    as_key(&format!("{KEY}\n"), 0o640);
    let variables =
        [("DJANGOCOMMAND_API_KEY_FILE", file.to_str().unwrap()), ("DJANGOCOMMAND_API_KEY", "dc_another")];
    let runner = start(&project, &server, &variables);
    let said = runner.wait_for_log("connected: the service accepts the key", WITHIN);
    assert!(!said.contains("dc_another"));
    let log = runner.log();
    assert!(log.contains("API_KEY = dc_******** (key file)"), "{log}");
    assert!(log.contains("API_KEY is taken from the key file; another one is in the environment"), "{log}");
    drop(runner);
    for (text, mode, why) in [
        (KEY, 0o644, "others may use it (mode 644); take that away with 'chmod o= FILE'"),
        ("no key", 0o600, "API_KEY is '********' (key file), but must be a text that begins with 'dc_'"),
    ] {
        as_key(text, mode);
        let ended = run(&project, &server, &variables);
        assert_eq!(ended.code(), Some(78), "{ended:?}");
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }
    fs::remove_file(&file).unwrap();
    let ended = run(&project, &server, &variables);
    assert_eq!(ended.code(), Some(78));
    assert!(ended.stderr.contains("cannot be read: No such file or directory"), "{}", ended.stderr);
}

#[test]
fn a_key_that_is_rotated_in_its_file_is_used_without_a_restart() {
    let (server, project) = (Server::start(), fake_project());
    let file = project.dir().join("key");
    fs::write(&file, "dc_old").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let id = server.enqueue(Job::new("echo"));
    let runner = start(&project, &server, &[("DJANGOCOMMAND_API_KEY_FILE", file.to_str().unwrap())]);
    runner.wait_for_log("the service refuses the key", WITHIN);
    fs::write(&file, KEY).unwrap();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert!(runner.log().contains("another key is in its file now: trying it"), "{}", runner.log());
    server.take_violations();
}

#[test]
fn others_of_the_same_user_cannot_look_into_runner_and_shim_and_memory_is_taken_from_commands_first() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let id = server.enqueue(Job::new("slow").args("200 0.1"));
    let runner = Runner::in_project(&project).server(&server).state_dir(&state);
    let runner = of_nobody(runner, &project, &state).start();
    server.wait_for("a line", WITHIN, |state| state.execution(&id).stdout().contains("line 1").then_some(()));
    let shim = state.shims()[0];
    let all = state.processes();
    let command = *all.iter().find(|pid| **pid != shim && **pid != runner.pid()).unwrap();
    let score = |pid: u32| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    assert!(score(command) > score(shim) && score(shim) > score(runner.pid()));
    // The kernel gives the files of a process that nobody may look into to root.
    let owner = |pid: u32| fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    assert_eq!([runner.pid(), shim].map(owner), [0, 0]);
    assert_ne!(owner(command), 0, "a command is as open as without a runner");
}

fn start(project: &Project, server: &Server, variables: &[(&str, &str)]) -> Running {
    with(project, server, variables).start()
}

fn run(project: &Project, server: &Server, variables: &[(&str, &str)]) -> Ended {
    with(project, server, variables).run_to_end(WITHIN)
}

fn with<'a>(project: &'a Project, server: &Server, variables: &[(&str, &str)]) -> Runner<'a> {
    let runner = Runner::in_project(project).server(server);
    variables.iter().fold(runner, |runner, (name, value)| runner.env(name, value))
}
