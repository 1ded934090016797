//! Odd commands: those that die talking, leave daemons, change under the runner's eyes, fork without end, or come by the hundred.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use crate::support::project::{Project, fake_project, system_python};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Job, Server};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn what_a_command_writes_while_it_dies_is_part_of_its_output() {
    let (server, project) = (Server::start(), fake_project());
    append(
        &project,
        "def last_words():\n    def die(*_):\n        _write(1, b'y' * 2000000 + b'\\n')\n        \
         _write(2, b'farewell')\n        os._exit(3)\n    signal.signal(signal.SIGTERM, die)\n    \
         print('ready')\n    time.sleep(LONG)",
    );
    let timed_out = server.enqueue(Job::new("last_words").timeout(3.0));
    let cancelled = server.enqueue(Job::new("last_words"));
    let _runner = start(&project, &server);
    server.wait_for("it to be ready", WITHIN, |state| {
        state.execution(&cancelled).stdout().starts_with("ready\n").then_some(())
    });
    server.cancel(&cancelled);
    for (id, status, exit_code) in [(&timed_out, "timed_out", -1), (&cancelled, "cancelled", 3)] {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.status.as_str(), end.exit_code), (status, exit_code));
        server.state(|state| {
            let (stdout, stderr) = (state.execution(id).stdout(), state.execution(id).stderr());
            assert_eq!(stderr, "farewell", "{status}");
            let said = stdout.strip_prefix("ready\n").unwrap();
            assert!(said.len() == 2_000_001 && said.starts_with('y') && said.ends_with("y\n"), "{status}");
        });
    }
}

#[test]
fn a_daemon_that_lets_go_of_the_streams_delays_nothing_and_outlives_its_command_and_its_runner() {
    let (server, project) = (Server::start(), fake_project());
    append(
        &project,
        "def daemonize(path):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            \
         null = os.open('/dev/null', os.O_RDWR)\n            [os.dup2(null, fd) for fd in (0, 1, 2)]\n            \
         while not os.path.exists(path + '.go'):\n                time.sleep(0.02)\n            touch(path)\n        \
         os._exit(0)\n    os.wait()\n    print('daemonized')",
    );
    let path = project.dir().join("proof");
    let id = server.enqueue(Job::new("daemonize").args(path.to_str().unwrap()));
    let runner = start(&project, &server);
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.status.as_str(), end.exit_code), ("success", 0));
    let shown = server.state(|state| {
        assert_eq!(state.execution(&id).stdout(), "daemonized\n");
        state.execution(&id).chunks[&1].at
    });
    // Two seconds is what one is granted that holds the streams.
    assert!(end.at - shown < Duration::from_millis(1500), "{:?}", end.at - shown);
    assert!(runner.stop(WITHIN).success());
    project.write("proof.go", "");
    eventually("the daemon's last deed", || path.exists());
}

#[test]
fn the_interpreter_that_is_there_when_a_command_begins_runs_it_whatever_the_project_was_loaded_with() {
    let (server, project) = (Server::start(), fake_project());
    let bin = project.dir().join("venv/bin");
    fs::create_dir_all(&bin).unwrap();
    project.write("venv/pyvenv.cfg", &format!("home = {}\n", system_python().parent().unwrap().display()));
    let python = bin.join("python");
    symlink(system_python(), &python).unwrap();
    let runner = start(&project, &server);
    let run = || {
        let id = server.enqueue(Job::new("echo").args("by Python"));
        let end = server.completed(&id, WITHIN);
        server.state(|state| {
            (end.exit_code, end.status, state.execution(&id).stdout(), state.execution(&id).stderr())
        })
    };
    let all_well = (0, "success".to_owned(), "[\"by\", \"Python\"]\n".to_owned(), String::new());
    assert_eq!(run(), all_well);
    let fails_with = |why: &str| {
        let (exit_code, status, stdout, stderr) = run();
        assert_eq!((exit_code, status.as_str(), stdout.as_str()), (-1, "failed", ""));
        assert!(stderr.contains(why) && stderr.contains("venv/bin/python"), "{stderr}");
    };
    fs::remove_file(&python).unwrap();
    fails_with("No such file or directory");
    project.write("venv/bin/python", "#!/bin/sh\necho by somebody else\nexit 5\n");
    fails_with("Permission denied");
    make_executable(&python);
    assert_eq!(run(), (5, "failed".to_owned(), "by somebody else\n".to_owned(), String::new()));
    project.write("venv/bin/python", "#!/no/such/interpreter\n");
    fails_with("No such file or directory");
    fs::remove_file(&python).unwrap();
    symlink(system_python(), &python).unwrap();
    assert_eq!(run(), all_well);
    drop(runner);
}

#[test]
fn a_hundred_that_wait_are_all_run_once_four_at_a_time() {
    let (server, project) = (Server::start(), fake_project());
    let jobs: Vec<_> = (0..100)
        .map(|number| {
            let proof = project.dir().join(format!("proof-{number}"));
            (server.enqueue(Job::new("touch").args(proof.to_str().unwrap())), proof)
        })
        .collect();
    // The server itself sees to it that there are never more than four, and each chunk and end comes once.
    let runner = start(&project, &server);
    for (id, proof) in &jobs {
        assert_eq!(server.completed(id, WITHIN).status, "success");
        assert_eq!(fs::read_to_string(proof).unwrap(), "ran\n");
    }
    assert!(runner.stop(WITHIN).success());
    assert!(runner.state_dir().executions().is_empty());
    for (_, proof) in &jobs {
        assert_eq!(fs::read_to_string(proof).unwrap(), "ran\n");
    }
}

#[test]
fn all_that_a_fork_bomb_prints_arrives_and_its_end_is_reported_when_it_ends_by_itself() {
    let (server, project) = (Server::start(), with_bomb());
    let id = server.enqueue(Job::new("bomb").args("3 0"));
    let runner = start(&project, &server);
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    assert_eq!(bombs(&server, &id).len(), BOMBS);
    eventually("nothing to be left of it", || runner.state_dir().processes() == [runner.pid()]);
}

#[test]
fn nothing_is_left_of_a_fork_bomb_that_is_timed_out_or_cancelled_or_ended_by_force() {
    let (server, project) = (Server::start(), with_bomb());
    let timed_out = server.enqueue(Job::new("bomb").args("3 60").timeout(6.0));
    let [cancelled, forced] = [(); 2].map(|()| server.enqueue(Job::new("bomb").args("3 60")));
    let runner = start(&project, &server);
    for id in [&timed_out, &cancelled, &forced] {
        server.wait_for("all of it", WITHIN, |state| {
            let execution = state.execution(id);
            (execution.stdout().lines().count() == BOMBS || execution.completed.is_some()).then_some(())
        });
    }
    server.cancel(&cancelled);
    server.force_cancel(&forced);
    for (id, status, exit_code) in
        [(&timed_out, "timed_out", -1), (&cancelled, "cancelled", -15), (&forced, "cancelled", -9)]
    {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.status.as_str(), end.exit_code), (status, exit_code));
        assert_eq!(bombs(&server, id).len(), BOMBS, "{status}");
    }
    eventually("nothing to be left of them", || runner.state_dir().processes() == [runner.pid()]);
}

/// Itself, 3 children, 9 of theirs, and 27.
const BOMBS: usize = 40;

/// A project with a command of which each process prints its PID and forks 3 others to a depth, and sleeps.
fn with_bomb() -> Project {
    let project = fake_project();
    append(
        &project,
        "def bomb(depth, seconds):\n    children = []\n    for _ in range(3 if int(depth) else 0):\n        pid = \
         os.fork()\n        if pid == 0:\n            bomb(int(depth) - 1, seconds)\n            os._exit(0)\n        \
         children.append(pid)\n    _write(1, b'%d\\n' % os.getpid())\n    time.sleep(float(seconds))\n    \
         [os.waitpid(pid, 0) for pid in children]",
    );
    project
}

fn bombs(server: &Server, id: &str) -> std::collections::BTreeSet<u32> {
    server.state(|state| state.execution(id).stdout().lines().map(|line| line.parse().unwrap()).collect())
}

fn start(project: &Project, server: &Server) -> Running {
    Runner::in_project(project).server(server).start()
}

fn append(project: &Project, function: &str) {
    let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
    project.write("commands.py", &format!("{commands}\n\n{function}\n"));
}

fn make_executable(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}
