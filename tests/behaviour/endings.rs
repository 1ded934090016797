//! Endings: timeout, cancel and force leave nothing of a command; a normal end leaves alone what it left behind.

use std::fs;
use std::time::Duration;

use crate::support::project::{Project, fake_project};
use crate::support::runner::Runner;
use crate::support::server::{Completion, EventKind, Job, Server};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long a command may run in these tests: an interpreter has to be ready by then.
const TIMEOUT: f64 = 3.0;

#[test]
fn a_timeout_ends_a_command_and_its_children_gently_first_and_what_it_says_then_is_delivered() {
    let (server, project) = (Server::start(), fake_project());
    let [polite, family] =
        ["on_term", "forks"].map(|command| server.enqueue(Job::new(command).timeout(TIMEOUT)));
    let runner = Runner::in_project(&project).server(&server).start();
    for id in [&polite, &family] {
        let end = server.completed(id, WITHIN);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "timed_out"));
        let (ran, timeout) = (duration(&server, id), Duration::from_secs_f64(TIMEOUT));
        assert!(ran >= timeout && ran < timeout + GRACE - Duration::from_millis(500), "{ran:?}");
    }
    assert_eq!(stdout(&server, &polite), "ready\ncleaning up\n");
    let pids = pids(&server, &family);
    assert_eq!(pids.len(), 3);
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
    eventually("the end of the shims", || runner.state_dir().processes() == [runner.pid()]);
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_five_seconds_after_a_timeout_or_a_cancel() {
    let (server, project) = (Server::start(), fake_project());
    let events = server.events();
    let timed_out = server.enqueue(Job::new("ignore_term").timeout(TIMEOUT));
    let cancelled = server.enqueue(Job::new("ignore_term").no_timeout());
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("it to be ready", WITHIN, |state| {
        (state.execution(&cancelled).stdout() == "ready\n").then_some(())
    });
    server.cancel(&cancelled);
    let told = loop {
        let event = events.recv_timeout(WITHIN).expect("the runner asks every 2 s");
        if matches!(event.kind, EventKind::CancelTold { ref id, .. } if *id == cancelled) {
            break event.moment.at;
        }
    };
    let (late, end) = (server.completed(&timed_out, WITHIN), server.completed(&cancelled, WITHIN));
    assert_eq!((late.exit_code, late.status.as_str()), (-1, "timed_out"));
    assert_eq!((end.exit_code, end.status.as_str()), (-9, "cancelled"));
    assert_eq!(stdout(&server, &timed_out), "ready\n");
    // The grace and no more than what a busy machine adds.
    let after = [duration(&server, &timed_out) - Duration::from_secs_f64(TIMEOUT), end.at - told];
    println!("killed {after:?} after the time was over and after the cancel was told");
    assert!(after.iter().all(|after| (GRACE..2 * GRACE).contains(after)), "{after:?}");
    eventually("the end of the shims", || runner.state_dir().processes() == [runner.pid()]);
}

#[test]
fn a_daemon_of_two_forks_in_a_session_of_its_own_that_ignores_sigterm_dies_with_its_command() {
    let (server, project) = (Server::start(), fake_project());
    let timed_out = server.enqueue(Job::new("escape").timeout(TIMEOUT));
    let [gently, by_force] = [(); 2].map(|()| server.enqueue(Job::new("escape")));
    let runner = Runner::in_project(&project).server(&server).start();
    let mut all = Vec::new();
    for id in [&timed_out, &gently, &by_force] {
        server
            .wait_for("the PIDs", WITHIN, |state| state.execution(id).stdout().ends_with('\n').then_some(()));
        all.extend(pids(&server, id));
    }
    assert_eq!(all.len(), 6);
    server.cancel(&gently);
    server.force_cancel(&by_force);
    cancelled(&server, &by_force, -9);
    cancelled(&server, &gently, -15);
    let end = server.completed(&timed_out, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (-1, "timed_out"));
    assert!(duration(&server, &timed_out) >= Duration::from_secs_f64(TIMEOUT) + GRACE);
    assert!(!all.iter().any(|pid| is_alive(*pid)), "{all:?}");
    eventually("the end of the shims", || runner.state_dir().processes() == [runner.pid()]);
}

#[test]
fn a_cancel_ends_a_command_gently_and_force_ends_it_at_once_even_after_a_gentle_one() {
    let (server, project) = (Server::start(), fake_project());
    let events = server.events();
    let [polite, stubborn, forced, escalated] = ["on_term", "ignore_term", "ignore_term", "ignore_term"]
        .map(|command| server.enqueue(Job::new(command).no_timeout()));
    let _runner = Runner::in_project(&project).server(&server).start();
    for id in [&polite, &stubborn, &forced, &escalated] {
        server.wait_for("all to be ready", WITHIN, |state| {
            (state.execution(id).stdout() == "ready\n").then_some(())
        });
    }
    server.cancel(&polite);
    server.cancel(&stubborn);
    server.cancel(&escalated);
    server.force_cancel(&forced);
    let told = |wanted: &str, by_force: bool| loop {
        let event = events.recv_timeout(WITHIN).expect("the runner asks every 2 s");
        if matches!(event.kind, EventKind::CancelTold { ref id, force_kill } if id == wanted && force_kill == by_force)
        {
            return event.moment.at;
        }
    };
    let gently = told(&escalated, false);
    server.force_cancel(&escalated);
    let harshly = told(&escalated, true);

    let end = cancelled(&server, &escalated, -9);
    let (since_gently, since_harshly) = (end.at - gently, end.at - harshly);
    println!(
        "force after a gentle cancel took effect {since_harshly:?} later, {since_gently:?} after that one"
    );
    assert!(since_gently < GRACE - Duration::from_millis(500), "{since_gently:?}");
    cancelled(&server, &polite, 3);
    assert_eq!(stdout(&server, &polite), "ready\ncleaning up\n");
    let forced_end = cancelled(&server, &forced, -9);
    let stubborn_end = cancelled(&server, &stubborn, -9);
    // Both were told within the same 2 s, and only one of them was granted 5 s.
    let (first, second) = (forced_end.at - gently.min(forced_end.at), stubborn_end.at - gently);
    assert!(first < GRACE - Duration::from_millis(500), "{first:?}");
    assert!(second > Duration::from_secs(3), "{second:?}");
}

#[test]
fn nothing_of_a_cancelled_command_survives() {
    let (server, project) = (Server::start(), fake_project());
    let [gently, by_force] = [(); 2].map(|()| server.enqueue(Job::new("forks")));
    let runner = Runner::in_project(&project).server(&server).start();
    let mut all = Vec::new();
    for id in [&gently, &by_force] {
        server
            .wait_for("the PIDs", WITHIN, |state| state.execution(id).stdout().ends_with('\n').then_some(()));
        all.extend(pids(&server, id));
    }
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|pid| is_alive(*pid)), "{all:?}");
    server.cancel(&gently);
    server.force_cancel(&by_force);
    cancelled(&server, &gently, -15);
    cancelled(&server, &by_force, -9);
    assert!(!all.iter().any(|pid| is_alive(*pid)), "{all:?}");
    eventually("the end of the shims", || runner.state_dir().processes() == [runner.pid()]);
}

#[test]
fn a_background_process_delays_completion_by_two_seconds_and_then_lives_and_writes_on() {
    let (server, project) = (Server::start(), project_with_haunt());
    let path = project.dir().join("haunt");
    let id = server.enqueue(Job::new("haunt").args(path.to_str().unwrap()));
    let runner = Runner::in_project(&project).server(&server).start();
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    let (pid, shown) = server.state(|state| {
        let execution = state.execution(&id);
        (execution.stdout().trim().parse().unwrap(), execution.chunks[&1].at)
    });
    let delay = end.at - shown;
    println!("a process that holds the pipes delayed the completion by {delay:?}");
    assert!(delay > Duration::from_secs(1) && delay < Duration::from_secs(4), "{delay:?}");
    assert!(is_alive(pid));
    eventually("the end of the directory", || runner.state_dir().executions().is_empty());
    // It now writes more than a pipe holds: with no reader it would stand still, with a closed pipe it would die.
    fs::write(path.with_extension("go"), "").unwrap();
    eventually("the end of its output", || path.exists());
    assert_eq!(stdout(&server, &id), format!("{pid}\n"), "what it wrote after the end is nobody's");
    let shim = parent(pid).unwrap();
    eventually("only the process itself to be left of all it forked", || children(shim) == [pid]);
    fs::write(path.with_extension("leave"), "").unwrap();
    eventually("the end of it and of its shim", || runner.state_dir().processes() == [runner.pid()]);
}

#[test]
fn a_command_that_closes_its_streams_has_not_ended() {
    let (server, project) = (Server::start(), fake_project());
    append(
        &project,
        "def mute():\n    print('so long')\n    os.close(1)\n    os.close(2)\n    time.sleep(3)\n    os._exit(7)",
    );
    let id = server.enqueue(Job::new("mute"));
    let _runner = Runner::in_project(&project).server(&server).start();
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (7, "failed"));
    assert_eq!(stdout(&server, &id), "so long\n");
    assert!(duration(&server, &id) >= Duration::from_secs(3));
}

/// A command that leaves a process behind: told by a file to go on, it writes a lot and then says that it could.
fn project_with_haunt() -> Project {
    let project = fake_project();
    let haunt = r#"
def haunt(path):
    pid = os.fork()
    if pid:
        print(pid)
        sys.stdout.flush()
        os._exit(0)
    while not os.path.exists(path + ".go"):
        time.sleep(0.05)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _write(1, b"boo\n" * 100000)
    # Orphans, which become the shim's children; they end when the pipe to them is closed.
    read, write = os.pipe()
    for _ in range(5):
        if os.fork() == 0:
            if os.fork() == 0:
                os.close(write)
                os.read(read, 1)
            os._exit(0)
        os.wait()
    os.close(write)
    open(path, "w").close()
    while not os.path.exists(path + ".leave"):
        time.sleep(0.05)
    os._exit(0)
"#;
    append(&project, haunt);
    project
}

fn append(project: &Project, function: &str) {
    let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
    project.write("commands.py", &format!("{commands}\n\n{function}\n"));
}

fn cancelled(server: &Server, id: &str, exit_code: i64) -> Completion {
    let end = server.completed(id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (exit_code, "cancelled"));
    end
}

fn stdout(server: &Server, id: &str) -> String {
    server.state(|state| state.execution(id).stdout())
}

/// The PIDs that a command printed as a JSON list.
fn pids(server: &Server, id: &str) -> Vec<u32> {
    serde_json::from_str(&stdout(server, id)).unwrap()
}

/// From the start to the completion, as the server saw them.
fn duration(server: &Server, id: &str) -> Duration {
    server.state(|state| {
        let execution = state.execution(id);
        execution.completed.as_ref().unwrap().at - execution.started.unwrap()
    })
}

/// Whether a process exists that has not ended: a zombie is only the memory of one.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with(['Z', 'X']))
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.split(' ').nth(1)?.parse().ok()
}

/// The children of a process, zombies included.
fn children(of: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent(*pid) == Some(of)).collect()
}

/// What the kernel says of a process behind its name: state, parent and more.
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}
