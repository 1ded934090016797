//! Executions: how soon one starts, what it costs beyond its command, how many fit in a minute.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, spread};
use crate::contender::{Both, Contender, LATER, Session, bare, in_turn, reported};
use crate::report::{Better, Report, Row, Target, Unit};
use crate::statistics::{Samples, Statistic};
use crate::support::project::Project;
use crate::support::server::{Job, Server};
use crate::support::wait::pause;

/// How often an idle runner asks, so that offers come at every moment between.
const POLL: Duration = Duration::from_secs(2);
/// How many samples there are for each run, so that five of them make more than thirty.
const OFFERS_A_RUN: usize = 7;
/// How many samples of one execution there are for each run.
const SAMPLES_OF_ONE_A_RUN: usize = 8;
/// What stands before what `manage.py` does, so that it tells its own time.
const STOPWATCH: &str = include_str!("../commands/stopwatch.py");
/// How many wait for `many`.
const PENDING: usize = 100;
/// After so many of them the rate is known, and the rest is not waited for.
const COUNTED: usize = 48;

/// A command is offered at every moment between two polls: to runners that have been idle, and to those that have just
/// completed another.
pub(super) fn enqueue(bench: &Bench, report: &mut Report) {
    let samples = Both::at_once(|contender| enqueue_to(bench, contender));
    let rows = |samples: Both<Vec<f64>>, name: &str, target: Target, report: &mut Report| {
        let samples = samples.map(Samples::from_iter);
        let figure = format!("enqueue to `start`, {name}");
        for statistic in [Statistic::Median, Statistic::Percentile95] {
            report.add(Row::with(&figure, Unit::Seconds, Better::Less, statistic, target, samples.clone()));
        }
    };
    let Both { ours: (our_idle, our_active), original: (idle, active) } = samples;
    rows(Both { ours: our_idle, original: idle }, "idle", Target::Times(1.0), report);
    rows(Both { ours: our_active, original: active }, "operator active", Target::Times(2.0), report);
}

/// The samples of the idle ones and those of an active one.
fn enqueue_to(bench: &Bench, contender: Contender) -> (Vec<f64>, Vec<f64>) {
    let mut idle = Vec::new();
    let mut active = Vec::new();
    for run in 0..bench.runs {
        // One after the other: each reads where its service is from the project's settings.
        let start = |_| {
            let session = Session::start(contender, bench.small.of(contender), Server::start());
            session.wait_for_polls(2);
            session
        };
        let sessions: Vec<Session> = (0..OFFERS_A_RUN).map(start).collect();
        idle.extend(thread::scope(|scope| {
            let offer = |(index, session)| scope.spawn(move || offer(session, run * OFFERS_A_RUN + index));
            let threads: Vec<_> = sessions.iter().enumerate().map(offer).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<f64>>()
        }));
        active.extend((0..OFFERS_A_RUN).map(|index| offer(&sessions[0], run * OFFERS_A_RUN + index)));
    }
    (idle, active)
}

/// Waits for a moment of its own, offers a command, and lets it end.
fn offer(session: &Session, index: usize) -> f64 {
    pause(POLL.mul_f64(spread(index)));
    let id = session.server.enqueue(Job::new("quick"));
    let offered = Instant::now();
    let started = session.started(&id);
    session.completed(&id);
    started.saturating_duration_since(offered).as_secs_f64()
}

/// From `start` to `complete`, as the service sees them, beyond the time of the same command without a runner.
///
/// How long a command takes differs by more, from one time to the next, than what there is around it. So it tells its
/// own time, and only what is beyond that is compared: what is left of the bare command is its interpreter's start and end.
pub(super) fn overhead(bench: &Bench, report: &mut Report) {
    let manage_py = |project: &Project| project.dir().join("manage.py");
    let original = fs::read_to_string(manage_py(&bench.small.ours)).unwrap();
    let write = |text: &str| Both::each(|contender| bench.small.of(contender).write("manage.py", text));
    write(&format!("{STOPWATCH}\n{original}"));
    let sessions =
        Both::each(|contender| Session::start(contender, bench.small.of(contender), Server::start()));
    let (mut bares, mut around_bare) = (Vec::new(), Vec::new());
    let samples = in_turn(SAMPLES_OF_ONE_A_RUN * bench.runs, |contender| {
        let project = bench.small.of(contender);
        let took = || {
            let file = project.dir().join("took");
            let took = reported(&file).unwrap();
            fs::remove_file(file).unwrap();
            took
        };
        let begun = Instant::now();
        let output =
            bare(project, &["check"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        let whole = begun.elapsed().as_secs_f64();
        assert!(output.status.success(), "{output:?}");
        bares.push(whole);
        around_bare.push(whole - took());
        let (started, completed) = sessions.of(contender).run(Job::new("check"));
        (completed - started).as_secs_f64() - took()
    });
    write(&original);
    let [bare, around_bare] = [bares, around_bare].map(Samples::from_iter);
    let samples =
        samples.map(|samples| samples.into_iter().map(|took| took - around_bare.median()).collect());
    report.add(Row::new(
        "one execution beyond the bare command",
        Unit::Seconds,
        Target::Times(20.0),
        samples,
    ));
    report.note(format!("the bare command takes {:.0} ms", bare.median() * 1e3));
}

/// A hundred are pending at once; both run four at a time.
pub(super) fn many(bench: &Bench, report: &mut Report) {
    let samples = in_turn(bench.runs, |contender| {
        let session = Session::start(contender, bench.small.of(contender), Server::start());
        (0..PENDING).for_each(|_| drop(session.server.enqueue(Job::new("quick"))));
        let (begun, ended) = session.server.wait_for("completions", LATER, |state| {
            let mut ends: Vec<Instant> =
                state.executions.values().filter_map(|one| Some(one.completed.as_ref()?.at)).collect();
            ends.sort();
            Some((state.executions.values().filter_map(|one| one.started).min()?, *ends.get(COUNTED - 1)?))
        });
        COUNTED as f64 / (ended - begun).as_secs_f64() * 60.0
    });
    let figure = "4 at once, 100 pending: executions a minute";
    let (more, median) = (Better::More, Statistic::Median);
    let samples = samples.map(Samples::from_iter);
    report.add(Row::with(figure, Unit::Count, more, median, Target::Times(1.0), samples));
}
