//! Supervision: what systemd is told and when, what is kept from the commands, and that no dead child is left unreaped.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::project::{Project, fake_project, fake_project_with_settings, system_python};
use crate::support::runner::Runner;
use crate::support::server::{Endpoint, Fault, Job, KEY, Server};
use crate::support::state_dir::StateDir;
use crate::support::sys;
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// Settings that wait for a file, and say by another one that they do; only while a runner loads them.
const WAITING: &str = "
import sys, time
if sys.argv[1:] == ['djangocommand', 'start']:
    open(os.path.join(BASE_DIR, 'loading'), 'w').close()
    while not os.path.exists(os.path.join(BASE_DIR, 'go_on')):
        time.sleep(0.05)
";
/// A command that leaves a daemon, prints its PID, and is gone. The daemon ends when a file is there.
const LEAVES_A_DAEMON: &str = "
def leaves_a_daemon(path):
    daemon = os.fork()
    if daemon == 0:
        os.setsid()
        for fd in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        os.closerange(3, 100)
        while not os.path.exists(path):
            time.sleep(0.05)
        os._exit(0)
    print(daemon)
";
/// Gives what follows what process 1 of a container has from the kernel: orphans become its children
/// (`PR_SET_CHILD_SUBREAPER`). It needs no container and no privilege.
const ADOPTS_ORPHANS: &str = "
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn ready_comes_when_the_configuration_is_there_and_not_before_though_the_service_is_down() {
    let (server, project, systemd) = (Server::start(), fake_project_with_settings(WAITING), Systemd::new());
    server.down();
    let runner = supervised(&project, &systemd).server(&server).start();
    systemd.wait_for("the begin", |message| message == "STATUS=loading the project");
    eventually("the project to load", || project.dir().join("loading").exists());
    assert_eq!(systemd.told(), ["STATUS=loading the project"]);
    File::create(project.dir().join("go_on")).unwrap();
    systemd.wait_for("READY", |message| message == "READY=1");
    systemd.wait_for("the outage", |message| message.starts_with("STATUS=the service cannot be reached: "));
    assert_eq!(systemd.count("READY=1"), 1);
    assert!(runner.stop(WITHIN).success());
}

#[test]
fn a_runner_that_cannot_begin_is_never_ready() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let first = Runner::in_project(&project).server(&server).state_dir(&state).start();
    server.wait_for("a heartbeat", WITHIN, |state| state.of(Endpoint::Heartbeat).next().map(|_| ()));
    for (settings, state, code) in [
        ("def broken(:", StateDir::new(), 1),
        ("DJANGOCOMMAND_MAX_RETRIES = 'often'", StateDir::new(), 78),
        ("", first.state_dir().clone(), 1),
    ] {
        let (project, systemd) = (fake_project_with_settings(settings), Systemd::new());
        let runner = supervised(&project, &systemd).server(&server).state_dir(&state);
        let ended = runner.run_to_end(WITHIN);
        assert_eq!(ended.code(), Some(code), "{ended:?}");
        assert_eq!(systemd.count("READY=1"), 0, "{:?}", systemd.told());
    }
}

#[test]
fn the_status_follows_what_happens() {
    let (server, project, systemd) = (Server::start(), fake_project(), Systemd::new());
    let runner = supervised(&project, &systemd).server(&server).start();
    let go_on = project.dir().join("go_on");
    append(
        &project.dir().join("commands.py"),
        "def patient(path):\n    print('ready', flush=True)\n    while not os.path.exists(path):\n        \
         time.sleep(0.05)",
    );
    let says = |text: &str| systemd.wait_for(text, |message| message == format!("STATUS={text}"));
    says("connected; 0 running");
    runner.signal(libc::SIGHUP);
    runner.wait_for_log("the project was loaded again", WITHIN);
    server.enqueue(Job::new("patient").args(go_on.to_str().unwrap()));
    says("connected; 1 running");
    server.suspend("the bill");
    says("suspended: the bill; 1 running");
    server.revoke_key();
    says("the service refuses the key; 1 running");
    server.restore_key();
    server.resume();
    systemd.wait_again("connected; 1 running");
    // What ends in an outage is seen before the outage ends.
    server.down();
    systemd.wait_for("the outage", |message| {
        message.starts_with("STATUS=the service cannot be reached: ") && message.ends_with("; 1 running")
    });
    let ended = Instant::now();
    File::create(go_on).unwrap();
    systemd.wait_for("its end", |message| {
        message.starts_with("STATUS=the service cannot be reached: ") && message.ends_with("; 0 running")
    });
    assert!(ended.elapsed() < Duration::from_secs(20), "{:?}", ended.elapsed());
    server.up();
}

#[test]
fn a_reload_is_announced_with_its_time_and_its_end_whether_or_not_it_succeeds() {
    let (server, project, systemd) = (Server::start(), fake_project(), Systemd::new());
    let runner = supervised(&project, &systemd).server(&server).arg("--no-reload").start();
    systemd.wait_for("a connection", |message| message == "STATUS=connected; 0 running");
    for (number, settings) in ["", "def broken(:"].iter().enumerate() {
        project.settings(settings);
        let before = sys::monotonic();
        runner.signal(libc::SIGHUP);
        systemd.wait_until("READY once more", |told| count(told, "READY=1") == number + 2);
        let told = systemd.told();
        let begun = told.iter().rposition(|message| message.starts_with("RELOADING=1\n")).unwrap();
        let since_boot = told[begun].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let at = Duration::from_micros(since_boot.parse().unwrap());
        assert!(before <= at && at <= sys::monotonic(), "{before:?} {at:?}");
        assert!(begun < told.iter().rposition(|message| message == "READY=1").unwrap(), "{told:?}");
    }
    // A project that is not even there, in the midst of a deployment.
    let manage_py = project.dir().join("manage.py");
    fs::rename(&manage_py, project.dir().join("moved")).unwrap();
    runner.signal(libc::SIGHUP);
    systemd.wait_until("READY once more", |told| count(told, "READY=1") == 4);
    let begun = systemd.told().iter().filter(|message| message.starts_with("RELOADING=1\n")).count();
    assert_eq!(begun, 3, "{:?}", systemd.told());
}

#[test]
fn a_runner_that_drains_is_stopping_and_never_ready_again() {
    let (server, project, systemd) = (Server::start(), fake_project(), Systemd::new());
    let id = server.enqueue(Job::new("slow").args("4 0.5"));
    let runner = supervised(&project, &systemd).server(&server).start();
    systemd.wait_for("the execution", |message| message == "STATUS=connected; 1 running");
    runner.signal(libc::SIGTERM);
    systemd.wait_for("the begin of the end", |message| message == "STOPPING=1");
    server.state(|state| assert!(state.execution(&id).completed.is_none()));
    runner.signal(libc::SIGHUP);
    runner.wait_for_log("not loaded again", WITHIN);
    assert_eq!(runner.wait_exit(WITHIN).code(), Some(0));
    assert_eq!((systemd.count("STOPPING=1"), systemd.count("READY=1")), (1, 1), "{:?}", systemd.told());
    assert_eq!(server.completed(&id, WITHIN).status, "success");
}

#[test]
fn the_watchdog_is_asked_for_the_time_of_a_turn_and_is_fed_in_half_of_it_though_the_service_hangs() {
    let (server, project, systemd) = (Server::start(), fake_project(), Systemd::new());
    server.always(Endpoint::Heartbeat, Fault::Hang);
    let patient = Systemd::new();
    let with_watchdog = |systemd: &Systemd, usec: &str| {
        let runner = supervised(&project, systemd).server(&server);
        // The process that is meant is that of this shell, which becomes the runner.
        runner
            .launched_by(["sh", "-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"])
            .env("WATCHDOG_USEC", usec)
            .env("DJANGOCOMMAND_REQUEST_TIMEOUT", "0.5")
            .start()
    };
    let _runner = with_watchdog(&systemd, "2000000");
    let _other = with_watchdog(&patient, "3600000000");
    systemd.wait_for("READY", |message| message == "READY=1");
    let began = Instant::now();
    // Twice the longest turn, which has two requests of 0.5 s and half a minute for all else.
    assert_eq!(systemd.count("WATCHDOG_USEC=62000000"), 1, "{:?}", systemd.told());
    patient.wait_for("an outage", |message| message.starts_with("STATUS=the service cannot be reached"));
    assert!(!patient.told().iter().any(|message| message.starts_with("WATCHDOG")), "{:?}", patient.told());
    systemd.wait_for("the food", |message| message == "WATCHDOG=1");
    println!("fed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
}

#[test]
fn commands_know_nothing_of_the_supervisor() {
    let (server, project, systemd) = (Server::start(), fake_project(), Systemd::new());
    let id = server.enqueue(Job::new("env"));
    let _runner = supervised(&project, &systemd)
        .server(&server)
        .env("WATCHDOG_USEC", "3600000000")
        .env("WATCHDOG_PID", "1")
        .start();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let printed = server.state(|state| state.execution(&id).stdout());
    let environment: Value = serde_json::from_str(&printed).unwrap();
    assert!(environment["PATH"].is_string());
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        assert_eq!(environment.get(name), None, "{printed}");
    }
}

#[test]
fn the_state_directory_of_the_unit_is_used() {
    let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
    let in_unit = || {
        let runner = Runner::in_project(&project).state_dir(&state).without_state_dir();
        runner.env("STATE_DIRECTORY", state.path())
    };
    let runner = in_unit().server(&server).start();
    server.wait_for("a heartbeat", WITHIN, |state| state.of(Endpoint::Heartbeat).next().map(|_| ()));
    assert!(state.path().join("runner.lock").exists());
    let asked = in_unit().subcommand("status").arg("--json");
    let ended = asked.run_to_end(WITHIN);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code(), &report["pid"]), (Some(0), &json!(runner.pid())), "{ended:?}");
}

#[test]
fn no_dead_child_is_left_of_executions_and_reloads() {
    let (server, project) = (Server::start(), fake_project_with_settings(WAITING));
    File::create(project.dir().join("go_on")).unwrap();
    let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    for _ in 0..3 {
        let id = server.enqueue(Job::new("slow").args("1 0.3"));
        eventually("its shim", || !children(runner.pid()).is_empty());
        assert_eq!(server.completed(&id, WITHIN).status, "success");
        eventually("the shim to be reaped", || children(runner.pid()).is_empty());
    }
    // Python ends while the loop does other things, and when it is killed.
    fs::remove_file(project.dir().join("go_on")).unwrap();
    runner.signal(libc::SIGHUP);
    eventually("Python", || !children(runner.pid()).is_empty());
    File::create(project.dir().join("go_on")).unwrap();
    runner.wait_for_log("the project was loaded again", WITHIN);
    eventually("Python to be reaped", || children(runner.pid()).is_empty());
    project.settings("os.kill(os.getpid(), 9)");
    runner.signal(libc::SIGHUP);
    runner.wait_for_log("killed by signal 9", WITHIN);
    eventually("Python to be reaped", || children(runner.pid()).is_empty());
}

#[test]
fn orphans_that_land_on_it_as_on_process_1_of_a_container_are_reaped() {
    let (server, project) = (Server::start(), fake_project());
    append(&project.dir().join("commands.py"), LEAVES_A_DAEMON);
    let go_on = project.dir().join("go_on");
    let id = server.enqueue(Job::new("leaves_a_daemon").args(go_on.to_str().unwrap()));
    let python = system_python();
    let runner = Runner::in_project(&project).server(&server);
    let runner = runner.launched_by([python.to_str().unwrap(), "-c", ADOPTS_ORPHANS]).start();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let daemon: u32 = server.state(|state| state.execution(&id).stdout()).trim().parse().unwrap();
    eventually("the daemon to be the runner's child", || children(runner.pid()) == [daemon]);
    // A zombie would still be listed.
    File::create(go_on).unwrap();
    eventually("the daemon to be reaped", || children(runner.pid()).is_empty());
    assert!(runner.stop(WITHIN).success());
}

/// The supervisor's end of `NOTIFY_SOCKET`.
struct Systemd {
    socket: UnixDatagram,
    told: Mutex<Vec<String>>,
    dir: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Systemd { socket, told: Mutex::new(Vec::new()), dir }
    }

    /// All messages so far.
    fn told(&self) -> Vec<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 10_000];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            told.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        told.clone()
    }

    fn count(&self, message: &str) -> usize {
        count(&self.told(), message)
    }

    fn wait_until(&self, what: &str, holds: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + WITHIN;
        // Each look waits a moment for a message.
        while !holds(&self.told()) {
            assert!(Instant::now() < deadline, "waited {WITHIN:?} for {what}; told {:?}", self.told());
        }
    }

    fn wait_for(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        self.wait_until(what, |told| told.iter().any(|message| is_it(message)));
    }

    /// For a status that was told before: it has to be told after something else.
    fn wait_again(&self, status: &str) {
        let status = format!("STATUS={status}");
        let before = self.count(&status);
        self.wait_until(&status, |told| count(told, &status) > before);
    }
}

fn count(told: &[String], message: &str) -> usize {
    told.iter().filter(|told| *told == message).count()
}

fn supervised<'a>(project: &'a Project, systemd: &Systemd) -> Runner<'a> {
    Runner::in_project(project)
        .env("NOTIFY_SOCKET", systemd.dir.path().join("notify"))
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
        .env("DJANGOCOMMAND_API_KEY", KEY)
}

/// The children of a process, dead ones that nobody has reaped among them.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may hold anything: the state, then the parent.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        fields.split(' ').nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).collect()
}

fn append(path: &Path, text: &str) {
    writeln!(OpenOptions::new().append(true).open(path).unwrap(), "\n{text}").unwrap();
}
