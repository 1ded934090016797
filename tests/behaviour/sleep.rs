//! A host that sleeps: nothing moves for eight hours, and then the time of day is another. Nobody is late by that.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::preload::Preload;
use crate::support::project::fake_project;
use crate::support::runner::{Runner, wait_for_status};
use crate::support::server::{Endpoint, EventKind, Job, Server};
use crate::support::state_dir::StateDir;
use crate::support::sys;
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// How long the host sleeps, in seconds.
const NIGHT: i32 = 8 * 3600;

/// The kernel's other clock stands still meanwhile, as it does for processes that are stopped but for an instant.
#[test]
fn after_eight_hours_of_sleep_nothing_is_late_and_all_goes_on_with_the_new_time() {
    let (server, project, state, preload) =
        (Server::start(), fake_project(), StateDir::new(), Preload::new());
    let events = server.events();
    // Longer than the test takes and shorter than the night.
    let id = server.enqueue(Job::new("slow").args("16 0.5").timeout(30.0));
    let typed = |name| {
        let runner = Runner::in_project(&project).subcommand(name).state_dir(&state);
        let runner = preload.applied(runner, &state).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5");
        if name == "start" || name == "ensure" { runner.server(&server) } else { runner }
    };
    let runner = typed("start").start();
    wait_for_status(&project, &state, "the runner's own words", WITHIN, |report| {
        (report["key"] == "accepted").then_some(())
    });
    server
        .wait_for("lines", WITHIN, |state| state.execution(&id).stdout().contains("line 3\n").then_some(()));

    let all = state.processes();
    assert_eq!(all.len(), 3, "runner, shim and command: {all:?}");
    let stopped = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    // The command first, and the others when they have nothing left to say: lines of the evening are not what is tested.
    let shims = state.shims();
    let command = all.iter().find(|pid| **pid != runner.pid() && !shims.contains(pid)).unwrap();
    assert!(sys::kill(*command, libc::SIGSTOP));
    wait_for_status(&project, &state, "all to be delivered", WITHIN, |report| {
        (stopped(command) && report["undelivered"]["bytes"] == 0).then_some(())
    });
    all.iter().for_each(|pid| assert!(sys::kill(*pid, libc::SIGSTOP)));
    eventually("all to stand still", || all.iter().all(stopped));
    // Whoever has slept for so long finds no connection of before.
    server.down();
    server.up();
    let before = server.state(|state| state.execution(&id).stdout().lines().count());
    server.set_clock_ahead(f64::from(NIGHT), || preload.set_clock_ahead(NIGHT));
    let woken = Instant::now();
    all.iter().for_each(|pid| assert!(sys::kill(*pid, libc::SIGCONT)));

    let ensured = typed("ensure").run_to_end(WITHIN);
    assert_eq!((ensured.code(), &*ensured.stdout, &*ensured.stderr), (Some(0), "", ""));
    let report = typed("status").arg("--json").run_to_end(WITHIN);
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!((&report["pid"], &report["key"]), (&runner.pid().into(), &"accepted".into()), "{report:#}");
    assert!(report["outage_seconds"].is_null() && report["cannot_take"].is_null(), "{report:#}");
    for age in ["uptime_seconds", "last_contact_seconds", "loop_seconds"] {
        assert!(report[age].as_f64().unwrap() < 60.0, "{age}: {report:#}");
    }
    let beat = server.wait_for("a heartbeat", WITHIN, |state| {
        state.of(Endpoint::Heartbeat).map(|beat| beat.at).find(|at| *at > woken)
    });
    assert!(beat - woken < Duration::from_secs(15), "{:?}", beat - woken);
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    assert!(runner.stop(WITHIN).success());
    let completions = events.try_iter().filter(|event| matches!(event.kind, EventKind::Completed { .. }));
    assert_eq!(completions.count(), 1);
    server.state(|state| {
        let execution = state.execution(&id);
        let numbers: String = (1..=16).map(|number| format!("line {number}\n")).collect();
        assert_eq!(execution.stdout(), numbers);
        let times: Vec<f64> = execution.segments(false).filter_map(|segment| segment.timestamp).collect();
        assert_eq!(times.len(), 16);
        // Of the lines that were on their way before, one or two may have no chunk yet.
        let night = times.windows(2).position(|pair| pair[1] - pair[0] > f64::from(NIGHT) - 60.0).unwrap();
        assert!(
            (before - 1..before + 3).contains(&night),
            "{before} lines, and the night after {night}: {times:?}"
        );
    });
    let log = runner.log();
    assert!(!log.contains(" warning ") && !log.contains(" error "), "{log}");
}
