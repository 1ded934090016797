//! Torrents: output in every amount and shape arrives whole, in little memory, and keeps nothing else waiting.

use std::fs;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::support::canonical::hex;
use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, Fault, Job, Server};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(120);
/// The interval between heartbeats, in seconds.
const BEAT: u64 = 5;
/// What the peaks of memory are promised to be, in KiB, for the program as it is shipped.
const RUNNER_MAX: u64 = 8 * 1024;
const SHIM_MAX: u64 = 4 * 1024;
/// How much more the unoptimized program may take.
const UNOPTIMIZED: u64 = 3;

#[test]
fn a_single_line_of_twenty_megabytes_arrives_whole_whether_or_not_it_ever_ends() {
    for end in ["", "0a"] {
        let (server, project) = (Server::counting(), with_shapes());
        let id = server.enqueue(Job::new("one_line").args(&format!("20 x{end}")));
        let runner = start(&project, &server);
        let memory = Peaks::watch(&server, &runner, &id);
        let mut expected = vec![b'x'; 20_000_000];
        expected.extend(end.bytes().take(1).map(|_| b'\n'));
        server.state(|state| {
            let execution = state.execution(&id);
            assert_eq!(execution.bytes(false), expected.len() as u64);
            assert_eq!(execution.sha256(false), hex(&Sha256::digest(&expected)));
        });
        memory.assert_small("one line of 20 MB");
    }
}

#[test]
fn three_hundred_thousand_empty_lines_arrive() {
    let (server, project) = (Server::counting(), with_shapes());
    let id = server.enqueue(Job::new("empty_lines").args("300000"));
    let runner = start(&project, &server);
    let memory = Peaks::watch(&server, &runner, &id);
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.bytes(false), 300_000);
        assert_eq!(execution.sha256(false), hex(&Sha256::digest(vec![b'\n'; 300_000])));
    });
    memory.assert_small("300,000 empty lines");
}

#[test]
fn a_progress_bar_is_seen_while_it_moves_and_each_of_its_states_is_a_line() {
    let (server, project) = (Server::start(), with_shapes());
    let id = server.enqueue(Job::new("progress").args("8 0.4"));
    let _runner = start(&project, &server);
    server.wait_for("the bar at 20%", WITHIN, |state| {
        let execution = state.execution(&id);
        (execution.is_running() && execution.stdout().contains("20%")).then_some(())
    });
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let states: String = (1..=8).map(|step| format!("{}%\n", step * 10)).collect();
    assert_eq!(server.state(|state| state.execution(&id).stdout()), states + "done\n");
}

#[test]
fn twenty_megabytes_over_a_slow_line_hold_up_neither_heartbeats_nor_the_command_and_take_little_memory() {
    let (server, project) = (Server::counting(), with_shapes());
    for endpoint in Endpoint::ALL {
        server.always(endpoint, Fault::Delay(Duration::from_millis(300)));
    }
    let id = server.enqueue(Job::new("one_line_each").args("20"));
    let runner = start(&project, &server);
    let memory = Peaks::watch(&server, &runner, &id);
    server.state(|state| {
        assert_eq!(state.execution(&id).bytes(false), 20_000_000);
        let beats: Vec<Instant> = state.of(Endpoint::Heartbeat).map(|request| request.at).collect();
        let worst = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        println!("the longest pause between two heartbeats was {worst:?}");
        assert!(beats.len() >= 3 && worst < Duration::from_secs(BEAT + 3), "{}", state.log());
    });
    memory.assert_small("20 MB over a slow line");
}

fn start(project: &Project, server: &Server) -> Running {
    Runner::in_project(project)
        .server(server)
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", BEAT.to_string())
        .start()
}

fn with_shapes() -> Project {
    let project = fake_project();
    let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
    let shapes = "
def one_line(megabytes, end):
    for _ in range(int(megabytes)):
        _write(1, b'x' * 1000000)
    _write(1, bytes.fromhex(end[1:]))


def one_line_each(megabytes):
    for _ in range(int(megabytes)):
        _write(1, b'x' * 999999 + b'\\n')


def empty_lines(count):
    _write(1, b'\\n' * int(count))


def progress(count, seconds):
    for step in range(1, int(count) + 1):
        _write(1, b'%d%%\\r' % (step * 10))
        time.sleep(float(seconds))
    _write(1, b'\\ndone\\n')
";
    project.write("commands.py", &format!("{commands}\n{shapes}"));
    project
}

/// The most memory that a runner and the shim of its execution have had, in KiB.
#[derive(Default)]
struct Peaks {
    runner: u64,
    shim: u64,
}

impl Peaks {
    /// Looks until the execution has ended.
    fn watch(server: &Server, runner: &Running, id: &str) -> Self {
        let (deadline, mut peaks) = (Instant::now() + WITHIN, Peaks::default());
        let (_sender, nobody) = std::sync::mpsc::channel::<()>();
        while server.state(|state| state.execution(id).completed.is_none()) {
            assert!(Instant::now() < deadline, "{}", server.state(|state| state.log()));
            peaks.look(runner);
            // A shim that has done its work is gone before its peak can be asked for, so it is asked often.
            nobody.recv_timeout(Duration::from_millis(20)).unwrap_err();
        }
        peaks.look(runner);
        assert_eq!(server.completed(id, WITHIN).status, "success");
        peaks
    }

    fn look(&mut self, runner: &Running) {
        self.runner = self.runner.max(peak(runner.pid()).unwrap());
        let shims = runner.state_dir().shims();
        self.shim = shims.into_iter().filter_map(peak).fold(self.shim, u64::max);
    }

    fn assert_small(&self, what: &str) {
        println!("{what}: at most {} KiB in the runner, {} KiB in the shim", self.runner, self.shim);
        assert!(self.shim > 0, "no shim was ever seen");
        assert!(self.runner < UNOPTIMIZED * RUNNER_MAX, "{what}: {} KiB in the runner", self.runner);
        assert!(self.shim < UNOPTIMIZED * SHIM_MAX, "{what}: {} KiB in the shim", self.shim);
    }
}

fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
