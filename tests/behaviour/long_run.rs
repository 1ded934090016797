//! The long run: outages, pauses and amounts of work in the time and number that they have in life. `make endurance`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::memory::assert_small_during;
use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, EventKind, Job, Server};
use crate::support::wait::pause;

/// For what ends by itself once the service is there.
const LATER: Duration = Duration::from_secs(180);
/// For ten thousand executions.
const LONG: Duration = Duration::from_secs(30 * 60);
/// The interval between heartbeats, in seconds.
const BEAT: u64 = 5;
/// The size of what is kept of the past: six files of the record, each with one line more than fits.
const RECORD_MAX: u64 = 6 * (4 * 1024 * 1024 + 4096);

#[test]
#[ignore = "takes a minute and a half: make endurance"]
fn an_outage_of_a_minute_loses_and_repeats_nothing() {
    outage(Duration::from_secs(60));
}

#[test]
#[ignore = "takes eleven minutes: make endurance"]
fn an_outage_of_ten_minutes_loses_and_repeats_nothing() {
    outage(Duration::from_secs(600));
}

#[test]
#[ignore = "takes a minute and a half: make endurance"]
fn a_runner_that_is_stopped_for_a_minute_loses_nothing_and_sends_no_chunk_twice() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("360 0.25"));
    let runner = start(&project, &server);
    shows(&server, &id, "line 4\n");
    runner.signal(libc::SIGSTOP);
    pause(Duration::from_secs(60));
    runner.signal(libc::SIGCONT);
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(LATER).success());
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!(execution.stdout(), numbered(360));
        assert_eq!(state.of(Endpoint::Output).count(), execution.chunks.len(), "{}", state.log());
    });
}

/// What four commands of a day may print, while the service is away: all of it waits, and then comes in order.
#[test]
#[ignore = "takes minutes: make endurance"]
fn a_backlog_of_four_hundred_megabytes_is_delivered_in_order_one_request_at_a_time_with_heartbeats_on_time() {
    let (server, project) = (Server::counting(), fake_project());
    let runner = start(&project, &server);
    let ids: Vec<String> = (0..4).map(|_| server.enqueue(Job::new("big").args("100"))).collect();
    for id in &ids {
        server.wait_for("the start", LATER, |state| state.execution(id).started);
    }
    assert_small_during("a backlog of 400 MB", &runner, || {
        server.down();
        let deadline = Instant::now() + LATER;
        let has_ended = |dir: &PathBuf| dir.join("exit.json").exists();
        while !runner.state_dir().executions().iter().all(has_ended) {
            assert!(Instant::now() < deadline, "the commands do not end");
            pause(Duration::from_millis(50));
        }
        server.up();
        for id in &ids {
            assert_eq!(server.completed(id, LATER).status, "success");
        }
    });
    server.state(|state| {
        assert_eq!(state.in_flight_max, 1);
        for id in &ids {
            let execution = state.execution(id);
            assert_eq!(execution.bytes(false), 100_000_000);
            let times: Vec<Instant> = execution.chunks.values().map(|chunk| chunk.at).collect();
            assert!(times.is_sorted(), "a chunk overtook another");
        }
        let back = state.refused.last().unwrap();
        let beats = state.of(Endpoint::Heartbeat).map(|request| request.at).filter(|at| at > back);
        let beats: Vec<Instant> = beats.collect();
        let worst = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        assert!(worst < Duration::from_secs(BEAT + 2), "{worst:?} between two heartbeats");
    });
}

#[test]
#[ignore = "takes minutes: make endurance"]
fn after_ten_thousand_executions_the_state_directory_is_as_small_as_after_one() {
    const COUNT: usize = 10_000;
    /// As a list of the service may be long.
    const PENDING: usize = 20;
    let (server, project) = (Server::counting(), fake_project());
    let events = server.events();
    let runner = start(&project, &server);
    let state = runner.state_dir();
    let mut sizes = BTreeMap::new();
    let begun = Instant::now();
    assert_small_during("10,000 executions", &runner, || {
        let (mut offered, mut ended) = (1, 0);
        server.enqueue(Job::new("echo"));
        while ended < COUNT {
            match events.recv_timeout(LONG).unwrap().kind {
                EventKind::Completed { status, .. } => {
                    assert_eq!(status, "success");
                    ended += 1;
                }
                _ => continue,
            }
            if ended == 1 {
                sizes = sizes_when_idle(state.path());
            }
            while offered < COUNT && offered < ended + PENDING {
                server.enqueue(Job::new("echo"));
                offered += 1;
            }
        }
    });
    println!("10,000 executions in {:?}", begun.elapsed());
    let after = sizes_when_idle(state.path());
    let (names, before): (Vec<_>, Vec<_>) = (after.keys().collect(), sizes.keys().collect());
    assert_eq!(
        names.iter().filter(|name| !name.contains(".jsonl.")).collect::<Vec<_>>(),
        before.iter().collect::<Vec<_>>()
    );
    let record = |name: &str| name.starts_with("audit.jsonl");
    let sum = |sizes: &BTreeMap<String, u64>, is_record| {
        sizes.iter().filter(|(name, _)| record(name) == is_record).map(|(_, size)| size).sum::<u64>()
    };
    assert!(sum(&after, true) <= RECORD_MAX, "{after:?}");
    // A number may have more digits.
    assert!(sum(&after, false) < sum(&sizes, false) + 100, "{after:?} after {sizes:?}");
}

fn outage(length: Duration) {
    let lines = length.as_secs() + 20;
    let (server, project) = (Server::start(), fake_project());
    let events = server.events();
    let id = server.enqueue(Job::new("slow").args(&format!("{lines} 1")).no_timeout());
    let runner = start(&project, &server);
    shows(&server, &id, "line 4\n");
    assert_small_during(&format!("an outage of {length:?}"), &runner, || {
        server.down();
        pause(length);
        server.up();
        let back = Instant::now();
        server.wait_for("what was printed meanwhile", Duration::from_secs(60), |state| {
            let printed = state.execution(&id).stdout();
            printed.contains(&format!("line {}\n", length.as_secs())).then_some(())
        });
        println!("{:?} after its end all that waited was there", back.elapsed());
        let end = server.completed(&id, LATER);
        assert_eq!(end.status, "success");
    });
    assert!(runner.stop(LATER).success());
    server.state(|state| {
        assert_eq!(state.execution(&id).stdout(), numbered(lines));
        let attempts = state.refused.len() as u64;
        // A poll and a question for a cancel each two seconds, once again when the connection is reset, and the rest.
        assert!((length.as_secs() / 30..4 * length.as_secs()).contains(&attempts), "{attempts} attempts");
    });
    let completions = events.try_iter().filter(|event| matches!(event.kind, EventKind::Completed { .. }));
    assert_eq!(completions.count(), 1);
    let log = runner.log();
    for said in [" warning the service cannot be reached (", "the service answers again, after "] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
}

fn start(project: &Project, server: &Server) -> Running {
    Runner::in_project(project)
        .server(server)
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", BEAT.to_string())
        .start()
}

fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(text, LATER, |state| state.execution(id).stdout().contains(text).then_some(()));
}

/// What `slow COUNT` prints.
fn numbered(count: u64) -> String {
    (1..=count).map(|number| format!("line {number}\n")).collect()
}

/// The files below a directory with their sizes, once no execution is left in it.
fn sizes_when_idle(state: &Path) -> BTreeMap<String, u64> {
    let deadline = Instant::now() + LATER;
    while fs::read_dir(state.join("executions")).unwrap().next().is_some() {
        assert!(Instant::now() < deadline, "an execution stays");
        pause(Duration::from_millis(10));
    }
    let entries = fs::read_dir(state).unwrap().map(Result::unwrap);
    let entries = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    // A file that is just being written has another name, and may be gone before it is looked at.
    let lasting = entries.filter(|(name, _)| !name.ends_with(".tmp"));
    lasting.map(|(name, path)| (name, fs::metadata(path).unwrap().len())).collect()
}
