//! `ensure`, for cron: a healthy runner is left alone without a word, otherwise there is one afterwards.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::project::{Project, fake_project, fake_project_with_settings, system_python};
use crate::support::runner::{BINARY, Ended, Runner, status};
use crate::support::server::{Endpoint, Job, KEY, Server};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::sys;
use crate::support::wait::eventually;

/// For what starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// How many crontabs want a runner at the same second.
const MANY: usize = 50;

#[test]
fn it_starts_a_runner_with_one_line_and_from_then_on_says_nothing() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let first = ensure(&project, &state).server(&server).run_to_end(WITHIN);
    let pid = first.detached_pid();
    assert_eq!((first.code(), first.stderr.as_str()), (Some(0), ""));
    let id = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, WITHIN).exit_code, 0);
    for _ in 0..3 {
        assert_silent(&ensure(&project, &state).server(&server).run_to_end(WITHIN));
    }
    assert_eq!(runners(&state), [pid]);
    // One that was killed is no longer there, and its status file says nothing.
    assert!(sys::kill(pid, libc::SIGKILL));
    eventually("the end of the runner", || runners(&state).is_empty());
    let next = ensure(&project, &state).server(&server).run_to_end(WITHIN).detached_pid();
    assert_eq!(runners(&state), [next]);
}

#[test]
fn a_runner_in_the_foreground_or_one_that_has_just_begun_is_as_good() {
    let (server, project) = (Server::start(), fake_project());
    let runner = Runner::in_project(&project).server(&server).start();
    runner.wait_for_log("connected", WITHIN);
    assert_silent(&ensure(&project, runner.state_dir()).server(&server).run_to_end(WITHIN));
    fs::remove_file(runner.state_dir().path().join("status.json")).unwrap();
    assert_silent(&ensure(&project, runner.state_dir()).server(&server).run_to_end(WITHIN));
    assert!(runner.stop(WITHIN).success());
}

#[test]
fn what_cron_gives_it_is_enough() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    project
        .settings(&format!("DJANGOCOMMAND_API_KEY = {KEY:?}\nDJANGOCOMMAND_SERVER_URL = {:?}", server.url()));
    let venv = project.dir().join(".venv");
    fs::create_dir_all(venv.join("bin")).unwrap();
    let base = system_python();
    fs::write(venv.join("pyvenv.cfg"), format!("home = {}\n", base.parent().unwrap().display())).unwrap();
    symlink(&base, venv.join("bin/python")).unwrap();
    let cron = || {
        let mut command = Command::new("/bin/sh");
        command.env_clear().env("HOME", "/nonexistent").env("LOGNAME", "nobody").env("SHELL", "/bin/sh");
        // The mark is for the end of this test.
        command.env("PATH", "/usr/bin:/bin").env(MARK, state.path()).current_dir("/").stdin(Stdio::null());
        // Where root keeps its state a test must not come: the line says where.
        let (dir, state) = (project.dir().display(), state.path().display());
        command.args(["-c", &format!("'{BINARY}' -C '{dir}' --state-dir '{state}' ensure")]).output().unwrap()
    };
    let first = cron();
    let stdout = String::from_utf8(first.stdout.clone()).unwrap();
    assert!(first.status.success() && first.stderr.is_empty(), "{first:?}");
    assert!(stdout.starts_with("started: PID ") && stdout.lines().count() == 1, "{stdout}");
    let again = cron();
    assert!(again.status.success() && again.stdout.is_empty() && again.stderr.is_empty(), "{again:?}");
    let id = server.enqueue(Job::new("cwd"));
    assert_eq!(server.completed(&id, WITHIN).exit_code, 0);
    let printed = server.state(|state| state.execution(&id).stdout());
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["executable"], venv.join("bin/python").to_str().unwrap());
    let log = fs::read_to_string(state.path().join("runner.log")).unwrap();
    assert!(log.contains(&format!("(the virtualenv '{}')", venv.display())), "{log}");
}

#[test]
fn a_runner_whose_loop_has_not_turned_for_5_minutes_is_replaced_and_what_runs_is_not_disturbed() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    project.write("hold", "");
    project.write(
        "commands.py",
        "import os, sys, time\n\ndef names():\n    return ['wait']\n\ndef wait():\n    print('begun')\n    \
         while os.path.exists('hold'):\n        time.sleep(0.01)\n    print('over')\n    sys.exit(7)\n",
    );
    let id = server.enqueue(Job::new("wait"));
    let old = ensure(&project, &state).server(&server).run_to_end(WITHIN).detached_pid();
    server.wait_for("the command's first line", WITHIN, |state| {
        (state.execution(&id).stdout() == "begun\n").then_some(())
    });
    assert!(sys::kill(old, libc::SIGSTOP));
    let shims = state.shims();
    // It has not answered for an instant only.
    assert_silent(&ensure(&project, &state).server(&server).run_to_end(WITHIN));
    turned_earlier_by(&state, 290.0);
    assert_silent(&ensure(&project, &state).server(&server).run_to_end(WITHIN));
    turned_earlier_by(&state, 110.0);
    let ended = ensure(&project, &state).server(&server).run_to_end(WITHIN);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let new = runners(&state);
    assert!(new.len() == 1 && new[0] != old, "{new:?}");
    assert!(
        lines[0].starts_with(&format!("the runner (PID {old}) has not moved for 40"))
            && lines[0].ends_with(" s: replacing it"),
        "{ended:?}"
    );
    assert_eq!(lines[1], format!("waiting up to 10 s for the end of PID {old}"));
    assert_eq!(lines[2], format!("PID {old} does not end: killing it; what is on disk is taken over"));
    assert!(
        lines[3].starts_with(&format!("started: PID {}, log '", new[0])) && lines.len() == 4,
        "{ended:?}"
    );
    assert_eq!(state.shims(), shims);
    fs::remove_file(project.dir().join("hold")).unwrap();
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (7, "failed"));
    assert_eq!(server.state(|state| state.execution(&id).stdout()), "begun\nover\n");
    assert_silent(&ensure(&project, &state).server(&server).run_to_end(WITHIN));
}

#[test]
fn a_broken_project_or_configuration_is_said_with_the_words_and_the_exit_code_of_start() {
    let noise = "import sys\nsys.stderr.write('noise\\n' * 20000)\n";
    for (settings, code, said) in [
        (
            format!("DJANGOCOMMAND_API_KEY = 'k'\n{noise}raise RuntimeError('broken')"),
            1,
            "RuntimeError: broken",
        ),
        (String::new(), 78, "DJANGOCOMMAND_API_KEY"),
    ] {
        let (project, state) = (fake_project_with_settings(&settings), StateDir::new());
        let start = Runner::in_project(&project).state_dir(&state).arg("-d").run_to_end(WITHIN);
        let ensure = ensure(&project, &state).run_to_end(WITHIN);
        assert_eq!((start.code(), ensure.code()), (Some(code), Some(code)), "{said}");
        assert!(ensure.stdout.is_empty() && ensure.stderr == start.stderr, "{said}");
        assert!(ensure.stderr.starts_with("djangocommand: ") && ensure.stderr.contains(said), "{said}");
        assert!(state.processes().is_empty());
        assert_eq!(status(&project, &state).0, Some(3));
    }
}

#[test]
fn fifty_at_once_start_one_runner() {
    let (server, state) = (Server::start(), StateDir::new());
    // Each time that the project is loaded leaves a line.
    let project = fake_project_with_settings(
        "with open(os.path.join(BASE_DIR, 'loads'), 'a') as f:\n    f.write('x\\n')",
    );
    let all = at_once(MANY, || ensure(&project, &state).server(&server).run_to_end(WITHIN));
    assert!(all.iter().all(|ended| ended.code() == Some(0) && ended.stderr.is_empty()), "{all:?}");
    let loud: Vec<&Ended> = all.iter().filter(|ended| !ended.stdout.is_empty()).collect();
    assert_eq!(loud.len(), 1, "{loud:?}");
    assert_eq!(runners(&state), [loud[0].detached_pid()]);
    assert_eq!(status(&project, &state).1["pid"], loud[0].detached_pid());
    let id = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, WITHIN).exit_code, 0);
    server.state(|state| assert_eq!(state.of(Endpoint::Heartbeat).count(), 1, "{}", state.log()));
    // Once for the runner, and once for the command.
    assert_eq!(fs::read_to_string(project.dir().join("loads")).unwrap().lines().count(), 2);
}

#[test]
fn several_at_once_replace_a_runner_that_hangs_only_once() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let old = ensure(&project, &state).server(&server).run_to_end(WITHIN).detached_pid();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    assert!(sys::kill(old, libc::SIGSTOP));
    turned_earlier_by(&state, 400.0);
    let all = at_once(8, || ensure(&project, &state).server(&server).run_to_end(WITHIN));
    assert!(all.iter().all(|ended| ended.code() == Some(0) && ended.stderr.is_empty()), "{all:?}");
    let started =
        all.iter().flat_map(|ended| ended.stdout.lines()).filter(|line| line.starts_with("started: "));
    assert_eq!(started.count(), 1, "{all:?}");
    let left = runners(&state);
    assert!(left.len() == 1 && left[0] != old, "{left:?}");
}

fn ensure<'a>(project: &'a Project, state: &StateDir) -> Runner<'a> {
    Runner::in_project(project).subcommand("ensure").state_dir(state)
}

fn at_once(count: usize, run: impl Fn() -> Ended + Sync) -> Vec<Ended> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[track_caller]
fn assert_silent(ended: &Ended) {
    assert_eq!((ended.code(), ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
}

/// Sets the time of the loop's last turn back, as if the runner had been silent for longer.
fn turned_earlier_by(state: &StateDir, seconds: f64) {
    let path = state.path().join("status.json");
    let mut said: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let turned = said["turned"]["monotonic"].as_f64().unwrap();
    said["turned"]["monotonic"] = (turned - seconds).into();
    fs::write(path, said.to_string()).unwrap();
}

/// The detached runners among the processes of this state directory.
fn runners(state: &StateDir) -> Vec<u32> {
    let is_detached = |pid: &u32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains("\0--detached")
    };
    state.processes().into_iter().filter(is_detached).collect()
}
