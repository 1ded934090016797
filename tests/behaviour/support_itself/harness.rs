//! Proves projects and harness, and the server once more: by the published runner.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic;
use std::process::{Command, Stdio};

use super::{LATER, SOON};
use crate::support::canonical::commands_hash;
use crate::support::project::{
    Project, django_project, django_project_on, fake_project, fake_project_with_settings,
};
use crate::support::runner::{BINARY, Runner};
use crate::support::server::{Endpoint, Job, Server, State, fresh_uuid_v4};
use crate::support::state_dir::StateDir;
use crate::support::wait::eventually;

#[test]
fn the_fake_project_runs_its_commands() {
    let project = fake_project_with_settings("PROOF = 1");
    let settings = fs::read_to_string(project.dir().join("settings.py")).unwrap();
    assert!(settings.ends_with("PROOF = 1\n"));
    assert_eq!(manage(&project, &["echo", "a", "--b"]), "[\"a\", \"--b\"]\n");
    project
        .write("commands.py", "def names():\n    return ['hello']\n\n\ndef hello():\n    print('there')\n");
    assert_eq!(manage(&project, &["hello"]), "there\n");
    assert!(project.virtualenv().is_none());
}

#[test]
fn the_real_project_runs_its_commands() {
    let project = django_project();
    let answer = manage(&project, &["takes_options", "--limit", "3", "x"]);
    assert_eq!(answer, "{\"names\": [\"x\"], \"limit\": 3, \"dry_run\": false}\n");
    assert!(project.python().starts_with(project.virtualenv().unwrap()));
}

#[test]
fn a_missing_virtualenv_says_how_to_make_it() {
    let panicked = panic::catch_unwind(|| drop(django_project_on("nowhere")));
    let message = *panicked.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("make venvs"), "{message}");
}

fn manage(project: &Project, args: &[&str]) -> String {
    let mut command = Command::new(project.python());
    let output = command.arg("manage.py").args(args).current_dir(project.dir()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_published_runner_keeps_the_protocol() {
    let server = Server::start();
    let project = django_project();
    let id = server.enqueue(Job::new("check"));
    let runner = Runner::published_in(&project).server(&server).start();
    let end = server.completed(&id, LATER);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    runner.wait_for_log("completed: success", SOON);
    server.state(|state| {
        let stdout = state.execution(&id).stdout();
        assert_eq!(stdout, "System check identified no issues (0 silenced).\n");
        let commands = state.commands.as_ref().unwrap().as_array().unwrap();
        assert!(commands.iter().any(|command| command["name"] == "migrate"));
        // It sends the hash that we compute: Python's own serialisation, seen from the other side.
        let sent = state.of(Endpoint::Heartbeat).next_back().unwrap();
        assert_eq!(sent.body["commands_hash"], commands_hash(commands));
    });
    assert!(runner.stop(LATER).success(), "{}", runner.log());
}

#[test]
fn the_runner_that_has_a_state_directory_is_found_until_it_ends() {
    let server = Server::start();
    let project = fake_project();
    let runner = Runner::in_project(&project).server(&server).start();
    runner.wait_for_log("connected", SOON);
    assert_eq!((runner.state_dir().runner(), runner.ended()), (Some(runner.pid()), None));
    runner.signal(libc::SIGTERM);
    eventually("the end and all that was said before", || runner.ended().is_some());
    assert!(runner.ended().unwrap().success(), "{}", runner.log());
    assert_eq!(runner.state_dir().runner(), None);
}

#[test]
fn the_runner_under_test_is_watched_and_cleaned_up() {
    let server = Server::start();
    let project = fake_project();
    let state = StateDir::new();
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).args(["-v", "2"]).start();
    server.wait_for("a heartbeat", SOON, |state| state.of(Endpoint::Heartbeat).next().map(|_| ()));
    let pid = runner.pid();
    assert!(state.processes().contains(&pid));
    let execution = state.path().join("executions").join(fresh_uuid_v4());
    fs::create_dir_all(&execution).unwrap();
    fs::write(execution.join("shim.lock"), format!("{pid}\n")).unwrap();
    assert_eq!((runner.state_dir().executions(), state.shims()), (vec![execution], vec![pid]));
    drop(runner);
    assert!(state.processes().is_empty(), "a dropped runner is gone even while its directory is in use");

    let heartbeats = |count: usize| {
        let look = |state: &State| state.of(Endpoint::Heartbeat).nth(count - 1).map(|_| ());
        server.wait_for(&format!("heartbeat {count}"), LATER, look);
    };
    let first = Runner::in_project(&project).server(&server).start();
    heartbeats(2);
    first.kill();
    assert!(!first.wait_exit(SOON).success());
    let second = Runner::in_project(&project).server(&server).start();
    heartbeats(3);
    assert!(second.stop(SOON).success());
}

#[test]
fn a_process_that_went_far_away_dies_with_the_state_directory() {
    let state = StateDir::new();
    let project = fake_project();
    let mut command = Command::new(project.python());
    command.args(["-u", "manage.py", "escape"]).current_dir(project.dir()).stdout(Stdio::piped());
    let mut child = command.env("SUPPORT_STATE_DIR", state.path()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pids: Vec<u32> = serde_json::from_str(&line).unwrap();
    assert_eq!(pids.len(), 2);
    drop(state);
    child.wait().unwrap();
    for pid in pids {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(environment.is_empty(), "{pid} lives on");
    }
}

#[test]
fn a_command_that_ends_is_run_to_its_end() {
    let project = fake_project();
    let state = StateDir::new();
    let ended = Runner::in_project(&project)
        .without_state_dir()
        .env("DJANGOCOMMAND_STATE_DIR", state.path())
        .env_remove("HOME")
        .env("DJANGOCOMMAND_API_KEY", "wrong")
        .run_to_end(SOON);
    assert_eq!(ended.code(), Some(78), "{BINARY} has no usable key here: {ended:?}");
    assert!(ended.stderr.contains("DJANGOCOMMAND_API_KEY") && ended.stdout.is_empty());
}
