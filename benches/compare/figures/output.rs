//! Output: how fast it goes through, what that takes, how fresh it arrives, and how that grows.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::Bench;
use crate::contender::{Both, Contender, Session, bare, in_turn, reported};
use crate::measure::{Taken, taken_during};
use crate::report::{Better, Growth, Report, Row, Target, Unit};
use crate::statistics::{Samples, Statistic};
use crate::support::server::{Endpoint, Fault, Job, Server};
use crate::support::wait::pause;

/// What is printed in all, in megabytes, by how many commands at once.
const SIZES: &[(usize, usize)] = &[(1, 1), (10, 1), (100, 1), (100, 4)];
/// The size of which the figures are given.
const FIGURE: (usize, usize) = (100, 1);

/// The slow service: what it takes for a request, and what is printed meanwhile.
const SLOW_ANSWER: Duration = Duration::from_secs(1);
const SLOW_MEGABYTES: usize = 200;
/// A command that has to do something for what it prints: 10 MB a second.
const SLOW_SECONDS: f64 = 20.0;
/// The memory is looked at until this long after the command's end. All of it is not waited for: at a second a request,
/// that takes minutes.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// A command that is held up longer than this has lost, by whatever amount.
const HELD_UP_MAX: Duration = Duration::from_secs(120);

/// Lines whose age is measured, and the seconds between them, which are no part of anybody's period.
const LINES: usize = 120;
const BETWEEN: f64 = 0.083;

/// One torrent: how long it took, and what that took.
type Torrent = (f64, Taken);

pub(super) fn torrent(bench: &Bench, report: &mut Report) {
    let mut curves = Vec::new();
    for size in SIZES {
        let (megabytes, at_once) = *size;
        let torrents = in_turn(bench.runs, |contender| pour(bench, contender, megabytes, at_once));
        let of = |value: fn(&Torrent) -> f64| {
            torrents.clone().map(|all| all.iter().map(value).collect::<Samples>())
        };
        let (seconds, cpu) = (of(|(seconds, _)| *seconds), of(|(_, taken)| taken.cpu));
        let (pss, peaks) = (of(|(_, taken)| taken.pss), of(|(_, taken)| taken.peaks));
        if *size == FIGURE {
            let rate = seconds.clone().map(|seconds| seconds.map(|seconds| megabytes as f64 * 1e6 / seconds));
            let (more, median) = (Better::More, Statistic::Median);
            report.add(Row::with(
                "100 MB: rate",
                Unit::BytesPerSecond,
                more,
                median,
                Target::Times(4.0),
                rate,
            ));
            report.add(Row::new("100 MB: peak memory (PSS)", Unit::Bytes, Target::Times(50.0), pss.clone()));
            report.add(Row::new("100 MB: peak memory (VmHWM)", Unit::Bytes, Target::Nothing, peaks));
            report.add(Row::new("100 MB: CPU", Unit::Seconds, Target::Times(5.0), cpu.clone()));
            let service = of(|(_, taken)| taken.cpu_of_service);
            report.note(format!(
                "100 MB: the service itself, which checks and hashes, took {:.2} s of CPU for ours, {:.2} s for the original",
                service.ours.median(),
                service.original.median()
            ));
        }
        let work = match at_once {
            1 => format!("{megabytes} MB"),
            _ => format!("{megabytes} MB of {at_once} at once"),
        };
        if at_once == 1 {
            curves.push((megabytes as f64, cpu.clone().map(|cpu| cpu.median())));
        }
        report.grows(Growth { work, megabytes: megabytes as f64, seconds, cpu, memory: pss });
    }
    let bends = Both::each(|contender| bend(&curves, contender));
    report.note(format!(
        "between 10 and 100 MB, a megabyte takes {:.2} times the CPU of one between 1 and 10 MB for ours, {:.2} times \
         for the original; 1 is a straight line",
        bends.ours, bends.original
    ));
}

/// How much steeper the second of two pieces of a line is than the first.
fn bend(curve: &[(f64, Both<f64>)], contender: Contender) -> f64 {
    let slope = |from: usize| {
        let (from, to) = (&curve[from], &curve[from + 1]);
        (to.1.of(contender) - from.1.of(contender)) / (to.0 - from.0)
    };
    slope(1) / slope(0)
}

fn pour(bench: &Bench, contender: Contender, megabytes: usize, at_once: usize) -> Torrent {
    let scratch = TempDir::new().unwrap();
    let session = Session::start(contender, bench.small.of(contender), Server::counting());
    let args =
        |number| format!("{} 0 {}", megabytes / at_once, scratch.path().join(format!("{number}")).display());
    let (seconds, taken) = taken_during(&session, || {
        let offer = |number| session.server.enqueue(Job::new("torrent").args(&args(number)));
        let ids: Vec<String> = (0..at_once).map(offer).collect();
        let begun = ids.iter().map(|id| session.started(id)).min().unwrap();
        let ended = ids.iter().map(|id| session.completed(id)).max().unwrap();
        let arrived: u64 =
            session.server.state(|state| ids.iter().map(|id| state.execution(id).bytes(false)).sum());
        assert_eq!(arrived, megabytes as u64 * 1_000_000, "{contender:?} did not deliver all of it");
        (ended - begun).as_secs_f64()
    });
    (seconds, taken)
}

/// Each request takes a second, so the output waits; the command should not.
pub(super) fn slow_service(bench: &Bench, report: &mut Report) {
    let mut at_pace = |seconds: f64, memory_target: Target, delay_target: Target, name: &str| {
        let runs = (0..bench.runs).map(|_| {
            let bare = pour_through_a_pipe(bench, seconds);
            Both::at_once(|contender| pour_slowly(bench, contender, seconds))
                .map(|(took, memory)| ((took - bare) / bare, memory))
        });
        let runs: Vec<Both<(f64, f64)>> = runs.collect();
        let of = |value: fn(&(f64, f64)) -> f64| {
            Both::each(|contender| runs.iter().map(|run| value(run.of(contender))).collect::<Samples>())
        };
        let figure = |what: &str| format!("200 MB {name}, 1 s a request: {what}");
        report.add(Row::new(&figure("peak memory (PSS)"), Unit::Bytes, memory_target, of(|run| run.1)));
        report.add(Row::new(&figure("the command's delay"), Unit::Share, delay_target, of(|run| run.0)));
    };
    at_pace(SLOW_SECONDS, Target::Nothing, Target::Below(0.05), "in 20 s");
    at_pace(0.0, Target::Times(60.0), Target::Nothing, "at once");
}

/// How long the command takes where somebody reads as fast as possible and throws it away.
fn pour_through_a_pipe(bench: &Bench, seconds: f64) -> f64 {
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("report");
    let (megabytes, seconds) = (SLOW_MEGABYTES.to_string(), seconds.to_string());
    let words = ["torrent", &megabytes, &seconds, file.to_str().unwrap()];
    let mut child = bare(&bench.small.ours, &words).stdout(Stdio::piped()).spawn().unwrap();
    io::copy(&mut child.stdout.take().unwrap(), &mut io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    reported(&file).unwrap()
}

/// How long the command took by its own account, and the most memory until a while after it.
fn pour_slowly(bench: &Bench, contender: Contender, seconds: f64) -> (f64, f64) {
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("report");
    let session = Session::start(contender, bench.small.of(contender), Server::counting());
    for endpoint in Endpoint::ALL {
        session.server.always(endpoint, Fault::Delay(SLOW_ANSWER));
    }
    let (took, taken) = taken_during(&session, || {
        let args = format!("{SLOW_MEGABYTES} {seconds} {}", file.display());
        let id = session.server.enqueue(Job::new("torrent").args(&args));
        let begun = session.started(&id);
        loop {
            if let Some(took) = reported(&file) {
                pause(AFTERWARDS);
                break took;
            }
            if begun.elapsed() > HELD_UP_MAX {
                break HELD_UP_MAX.as_secs_f64();
            }
            pause(Duration::from_millis(50));
        }
    });
    (took, taken.pss)
}

/// How old a line is when the service has it.
pub(super) fn age(bench: &Bench, report: &mut Report) {
    let runs: Vec<Both<Vec<f64>>> =
        (0..bench.runs).map(|_| Both::at_once(|contender| ages(bench, contender))).collect();
    let samples =
        Both::each(|contender| runs.iter().flat_map(|run| run.of(contender)).copied().collect::<Samples>());
    for statistic in [Statistic::Median, Statistic::Percentile95] {
        let (figure, less, target) =
            ("age of a line when the service has it", Better::Less, Target::Times(3.0));
        report.add(Row::with(figure, Unit::Seconds, less, statistic, target, samples.clone()));
    }
}

fn ages(bench: &Bench, contender: Contender) -> Vec<f64> {
    let session = Session::start(contender, bench.small.of(contender), Server::start());
    let id = session.server.enqueue(Job::new("clock").args(&format!("{LINES} {BETWEEN}")));
    session.completed(&id);
    session.server.state(|state| {
        let chunks = state.execution(&id).chunks.values();
        let lines =
            chunks.flat_map(|chunk| chunk.segments.iter().map(|segment| (chunk.unix, &segment.content)));
        let ages: Vec<f64> = lines.map(|(came, line)| came - line.trim().parse::<f64>().unwrap()).collect();
        assert_eq!(ages.len(), LINES);
        ages
    })
}
