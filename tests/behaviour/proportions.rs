//! Proportions: what costs grow with, and what they do not. Only ratios within one run are compared, and so generously
//! that a busy machine changes nothing, but another order of growth does. Absolute figures are those of `make bench`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::memory;
use crate::support::project::{django_project, fake_project};
use crate::support::runner::Runner;
use crate::support::server::{Endpoint, Job, Server};
use crate::support::usage::{context_switches, cpu};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(180);

#[test]
fn four_times_the_output_takes_about_four_times_the_work_and_no_more_memory() {
    let (small, big) = (poured(10), poured(40));
    println!("10 MB and 40 MB: {small:?}, {big:?}");
    assert!(big.cpu <= 8.0 * small.cpu, "the work grows faster than the output: {small:?}, {big:?}");
    const CONSTANT: u64 = 1024;
    assert!(
        big.peak <= small.peak * 3 / 2 + CONSTANT,
        "the memory grows with the output: {small:?}, {big:?}"
    );
}

#[test]
fn so_many_requests_as_executions_times_a_few_whether_ten_are_pending_or_sixty() {
    for pending in [10, 60] {
        let (server, project) = (Server::start(), fake_project());
        let ids: Vec<String> = (0..pending).map(|_| server.enqueue(Job::new("echo"))).collect();
        let begun = Instant::now();
        let _runner = Runner::in_project(&project).server(&server).start();
        ids.iter().for_each(|id| assert_eq!(server.completed(id, WITHIN).status, "success"));
        // What is asked by the clock is more on a slow machine: polls, and for four executions whether they be cancelled.
        let by_the_clock = 4 * begun.elapsed().as_secs() + 10;
        let requests = server.state(|state| state.requests.len() as u64);
        println!("{pending} executions: {requests} requests in {:?}", begun.elapsed());
        // A poll, `start`, output on one stream, `complete`; and as much again.
        assert!(requests <= 8 * pending + by_the_clock, "{requests} requests for {pending} executions");
    }
}

#[test]
fn an_idle_runner_wakes_for_its_requests_and_for_little_else() {
    const POLLS: usize = 4;
    let (server, project) = (Server::start(), fake_project());
    let runner = Runner::in_project(&project).server(&server).start();
    let polls = |count: usize| {
        server
            .wait_for("polls", WITHIN, |state| state.of(Endpoint::Pending).nth(count - 1).map(|poll| poll.at))
    };
    let before = (polls(2), context_switches(runner.pid()), requests(&server));
    let after = (polls(2 + POLLS), context_switches(runner.pid()), requests(&server));
    let (seconds, switches, requests) =
        ((after.0 - before.0).as_secs(), after.1 - before.1, after.2 - before.2);
    println!("{switches} context switches and {requests} requests in {seconds} s");
    assert!(
        switches <= 10 * requests + 2 * seconds + 10,
        "{switches} for {requests} requests in {seconds} s"
    );
}

/// It reads files, and asks neither Python nor the service.
#[test]
fn status_is_over_long_before_a_python_could_have_loaded_the_project() {
    let (server, project) = (Server::start(), django_project());
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    let shortest = |act: &dyn Fn()| {
        let time = |_| {
            let begun = Instant::now();
            act();
            begun.elapsed()
        };
        (0..5).map(time).min().unwrap()
    };
    let status = shortest(&|| {
        let status = Runner::in_project(&project).subcommand("status").state_dir(runner.state_dir());
        assert_eq!(status.run_to_end(WITHIN).code(), Some(0));
    });
    let python = shortest(&|| {
        let mut check = Command::new(project.python());
        check
            .args(["manage.py", "check"])
            .current_dir(project.dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        assert!(check.status().unwrap().success());
    });
    println!("status {status:?}, Django {python:?}");
    assert!(status * 4 < python, "status takes {status:?}, Django alone {python:?}");
}

#[derive(Debug)]
struct Poured {
    /// Of runner, shim and command, in seconds.
    cpu: f64,
    /// Of the runner, in KiB.
    peak: u64,
}

/// What it takes to deliver so many megabytes.
fn poured(megabytes: u64) -> Poured {
    let (server, project) = (Server::counting(), fake_project());
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    let before = cpu(runner.pid()).unwrap();
    let id = server.enqueue(Job::new("big").args(&megabytes.to_string()));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert_eq!(server.state(|state| state.execution(&id).bytes(false)), megabytes * 1_000_000);
    let now = || cpu(runner.pid()).unwrap();
    eventually("the end of the shim", || now().children > before.children);
    let after = now();
    let cpu = after.own - before.own + after.children - before.children;
    Poured { cpu, peak: memory::peak(runner.pid()).unwrap() }
}

fn requests(server: &Server) -> u64 {
    server.state(|state| state.requests.len() as u64)
}
