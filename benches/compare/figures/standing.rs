//! What there is before and without any execution: start, status, idling, size.

use std::time::{Duration, Instant};

use super::Bench;
use crate::contender::{Both, Contender, LATER, Session, in_turn};
use crate::machine;
use crate::measure::{Idling, pss};
use crate::report::{Report, Row, Target, Unit};
use crate::statistics::Samples;
use crate::support::project::Project;
use crate::support::server::Server;
use crate::support::wait::pause;

/// A `status` is quick, and one of ours is nearly over before it can be measured.
const STATUSES_A_RUN: usize = 4;
/// After so many polls what was done for the start is done.
const SETTLED: usize = 3;

pub(super) fn start(bench: &Bench, report: &mut Report) {
    let mut of = |name: &str, projects: &Both<Project>| {
        let samples = in_turn(bench.runs, |contender| {
            let session = Session::start(contender, projects.of(contender), Server::start());
            session.to_first_heartbeat.as_secs_f64()
        });
        let figure = format!("exec to first heartbeat, {name}");
        report.add(Row::new(&figure, Unit::Seconds, Target::Times(1.2), samples.map(Samples::from_iter)));
    };
    of("small", &bench.small);
    of("wagtail", bench.wagtail.as_ref().unwrap());
}

pub(super) fn status(bench: &Bench, report: &mut Report) {
    let sessions = Both::each(|contender| settled(bench, contender));
    let samples = in_turn(bench.runs * STATUSES_A_RUN, |contender| {
        let (project, session) = (bench.small.of(contender), sessions.of(contender));
        let status = contender.runner(project).subcommand("status").state_dir(session.runner.state_dir());
        let begun = Instant::now();
        let ended = status.run_to_end(LATER);
        let took = begun.elapsed().as_secs_f64();
        assert!(ended.stdout.contains(&session.runner.pid().to_string()), "{ended:?}");
        took
    });
    report.add(Row::new("`status`", Unit::Seconds, Target::Times(100.0), samples.map(Samples::from_iter)));
}

pub(super) fn memory(bench: &Bench, report: &mut Report) {
    // One at a time: what two runners share would be halved.
    let samples = in_turn(bench.runs, |contender| {
        let session = settled(bench, contender);
        session.processes().into_iter().map(|pid| pss(pid).unwrap()).sum()
    });
    let figure = "idle memory (PSS of all processes)";
    report.add(Row::new(figure, Unit::Bytes, Target::Times(20.0), samples.map(Samples::from_iter)));
}

/// All of them at once, since they leave the machine idle.
pub(super) fn idle(bench: &Bench, report: &mut Report) {
    let sessions = in_turn(bench.runs, |contender| settled(bench, contender));
    let look = |sessions: &Vec<Session>| -> Vec<(Idling, usize)> {
        let requests = |session: &Session| session.server.state(|state| state.requests.len());
        sessions.iter().map(|session| (Idling::of(session.runner.pid()), requests(session))).collect()
    };
    let begun = Instant::now();
    let before = Both { ours: look(&sessions.ours), original: look(&sessions.original) };
    pause(bench.idle);
    let after = Both { ours: look(&sessions.ours), original: look(&sessions.original) };
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let of = |value: fn(Idling, usize) -> f64| {
        Both::each(|contender| {
            let pairs = before.of(contender).iter().zip(after.of(contender));
            let values =
                pairs.map(|(before, after)| value(after.0.since(before.0), after.1 - before.1) / minutes);
            values.collect::<Samples>()
        })
    };
    let (cpu, switches) = (of(|idling, _| idling.cpu), of(|idling, _| idling.switches));
    report.add(Row::new("idle CPU a minute", Unit::Seconds, Target::Times(5.0), cpu));
    report.add(Row::new("idle context switches a minute", Unit::Count, Target::Times(1.0), switches));
    let requests = of(|_, requests| requests as f64);
    report.add(Row::new("idle requests a minute", Unit::Count, Target::NotMore, requests));
}

pub(super) fn size(bench: &Bench, report: &mut Report) {
    let (ours, original) = machine::sizes(&bench.small.original);
    let both =
        |(ours, original): (f64, f64)| Both { ours, original }.map(|value| Samples::from_iter([value]));
    let figure = "size: our binary, the original's modules";
    report.add(Row::new(figure, Unit::Bytes, Target::Below(2.1e6), both((ours, original))));
    let figure = "dependencies beside Python and Django";
    report.add(Row::new(
        figure,
        Unit::Count,
        Target::Below(7.0),
        both(machine::dependencies(&bench.small.original)),
    ));
}

fn settled(bench: &Bench, contender: Contender) -> Session {
    let session = Session::start(contender, bench.small.of(contender), Server::start());
    session.wait_for_polls(SETTLED);
    // What a poll has brought about is over within this.
    pause(Duration::from_millis(500));
    session
}
