//! Torrents: output in every amount and shape arrives whole, in little memory, and keeps nothing else waiting.

use std::fs;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::support::canonical::hex;
use crate::support::memory::assert_small_during;
use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, Fault, Job, Server};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(120);
/// The interval between heartbeats, in seconds.
const BEAT: u64 = 5;
/// For what takes minutes.
const LONG: Duration = Duration::from_secs(30 * 60);

#[test]
fn a_single_line_of_twenty_megabytes_arrives_whole_whether_or_not_it_ever_ends() {
    for end in ["", "0a"] {
        one_line_arrives(20, end);
    }
}

#[test]
#[ignore = "takes half a minute: make endurance"]
fn a_single_line_of_a_hundred_megabytes_arrives_whole() {
    one_line_arrives(100, "0a");
}

#[test]
fn three_hundred_thousand_empty_lines_arrive() {
    empty_lines_arrive(300_000);
}

#[test]
#[ignore = "takes minutes: make endurance"]
fn ten_million_empty_lines_arrive() {
    empty_lines_arrive(10_000_000);
}

/// As much as is kept of an execution's output by default, to the byte.
#[test]
#[ignore = "takes minutes: make endurance"]
fn a_gibibyte_arrives_whole() {
    let (server, project) = (Server::counting(), with_shapes());
    let id = server.enqueue(Job::new("numbered").args("16777216"));
    let runner = start(&project, &server);
    assert_small_during("1 GiB", &runner, || assert_eq!(server.completed(&id, LONG).status, "success"));
    let mut expected = Sha256::new();
    for number in 0..16_777_216 {
        expected.update(format!("{number:063}\n"));
    }
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.bytes(false), 1 << 30);
        assert_eq!(execution.sha256(false), hex(&expected.finalize()));
    });
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
    slow_line(20, Duration::from_millis(300));
}

#[test]
#[ignore = "takes a quarter of an hour: make endurance"]
fn two_hundred_megabytes_at_a_second_a_request_hold_up_neither_heartbeats_nor_the_command() {
    slow_line(200, Duration::from_secs(1));
}

fn one_line_arrives(megabytes: usize, end: &str) {
    let (server, project) = (Server::counting(), with_shapes());
    let id = server.enqueue(Job::new("one_line").args(&format!("{megabytes} x{end}")));
    let runner = start(&project, &server);
    assert_small_during(&format!("one line of {megabytes} MB"), &runner, || {
        assert_eq!(server.completed(&id, LONG).status, "success");
    });
    let mut expected = vec![b'x'; megabytes * 1_000_000];
    expected.extend(end.bytes().take(1).map(|_| b'\n'));
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.bytes(false), expected.len() as u64);
        assert_eq!(execution.sha256(false), hex(&Sha256::digest(&expected)));
    });
}

fn empty_lines_arrive(count: usize) {
    let (server, project) = (Server::counting(), with_shapes());
    let id = server.enqueue(Job::new("empty_lines").args(&count.to_string()));
    let runner = start(&project, &server);
    assert_small_during(&format!("{count} empty lines"), &runner, || {
        assert_eq!(server.completed(&id, LONG).status, "success");
    });
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.bytes(false), count as u64);
        assert_eq!(execution.sha256(false), hex(&Sha256::digest(vec![b'\n'; count])));
    });
}

/// So many megabytes for a service that takes so long for each request.
fn slow_line(megabytes: u64, answer: Duration) {
    let (server, project) = (Server::counting(), with_shapes());
    for endpoint in Endpoint::ALL {
        server.always(endpoint, Fault::Delay(answer));
    }
    let id = server.enqueue(Job::new("one_line_each").args(&megabytes.to_string()));
    let runner = start(&project, &server);
    let end = assert_small_during(&format!("{megabytes} MB at {answer:?} a request"), &runner, || {
        server.wait_for("the start", LONG, |state| state.execution(&id).started);
        let ended = || runner.state_dir().executions().iter().any(|dir| dir.join("exit.json").exists());
        eventually("the end of the command", ended);
        let sent = server.state(|state| state.execution(&id).bytes(false));
        assert!(sent < megabytes * 1_000_000 / 2, "the command waited for {sent} bytes to be sent");
        server.completed(&id, LONG)
    });
    assert_eq!(end.status, "success");
    server.state(|state| {
        assert_eq!(state.execution(&id).bytes(false), megabytes * 1_000_000);
        assert_eq!(state.in_flight_max, 1);
        let beats: Vec<Instant> = state.of(Endpoint::Heartbeat).map(|request| request.at).collect();
        let worst = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        println!("the longest pause between two heartbeats was {worst:?}");
        assert!(beats.len() >= 3 && worst < Duration::from_secs(BEAT + 3), "{}", state.log());
    });
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
    for _ in range(int(count) // 100000):
        _write(1, b'\\n' * 100000)


def numbered(count):
    for first in range(0, int(count), 4096):
        _write(1, b''.join(b'%063d\\n' % number for number in range(first, first + 4096)))


def progress(count, seconds):
    for step in range(1, int(count) + 1):
        _write(1, b'%d%%\\r' % (step * 10))
        time.sleep(float(seconds))
    _write(1, b'\\ndone\\n')
";
    project.write("commands.py", &format!("{commands}\n{shapes}"));
    project
}
