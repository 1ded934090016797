//! `make torture`: kills runners and shims at every point at which the disk, the service or a process changes, and
//! looks whether anything is lost, or run twice, or never done.
//!
//! Round after round, several at a time, real runners work for a service that misbehaves. A preloaded library ends one
//! of their processes before, in the middle of or after a certain call, alone or with all others of its round, or as by
//! a loss of power, which also takes what is not synced; then the next runner is started on what is left: in the
//! foreground, detached, by `ensure`, for one round. One that lives is replaced, told to load the project again, or
//! stopped, and whoever does that may be killed as well. What each command surely wrote is recorded outside of that.
//!
//! The same seed draws the same work, faults, points and comings. What the kernel's scheduler makes of them it does not
//! draw.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "this needs a part of what the tests need")]
mod support;

/// How runners come and go.
#[cfg(test)]
mod crowd;
/// What became of an execution, against what its command surely wrote.
#[cfg(test)]
mod judge;
/// Who dies where.
#[cfg(test)]
mod killer;
/// What a disk may lose with the power.
#[cfg(test)]
mod power;
/// Chance that can be had again.
#[cfg(test)]
mod random;
/// One service, one project, one state directory, and many deaths.
#[cfg(test)]
mod round;
/// What is run.
#[cfg(test)]
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use judge::Breach;
use killer::Library;
use random::Random;
use round::Outcome;

/// What `make torture` draws from if nobody gives another.
const SEED: u64 = 20_261_122;
/// Rounds at a time. They mostly wait, for interpreters and for the second after a failure.
const AT_A_TIME: usize = 5;

struct Options {
    seed: u64,
    minutes: f64,
    /// Only this one.
    round: Option<u64>,
}

/// `--seed N`, `--minutes M`, `--round R`.
fn options() -> Result<Options, String> {
    let mut options = Options { seed: SEED, minutes: 1.0, round: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        let wrong = |_| format!("{word} {value}: that is no number");
        match word.as_str() {
            "--seed" => {
                options.seed = value.parse().map_err(|e: std::num::ParseIntError| wrong(e.to_string()))?
            }
            "--minutes" => {
                options.minutes =
                    value.parse().map_err(|e: std::num::ParseFloatError| wrong(e.to_string()))?;
            }
            "--round" => {
                options.round =
                    Some(value.parse().map_err(|e: std::num::ParseIntError| wrong(e.to_string()))?);
            }
            _ => return Err(format!("{word} is none of --seed, --minutes, --round")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            say(&why);
            return ExitCode::FAILURE;
        }
    };
    say(&format!("seed {}, {} minute(s)", options.seed, options.minutes));
    let library = Library::build();
    let mut report = Report::default();
    let until = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let next = AtomicU64::new(options.round.unwrap_or(1));
    let (sender, outcomes) = mpsc::channel();
    let at_a_time = if options.round.is_some() { 1 } else { AT_A_TIME };
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            let (sender, next, library, options) = (sender.clone(), &next, &library, &options);
            scope.spawn(move || play_rounds(options, until, next, library, &sender));
        }
        drop(sender);
        for (round, outcome) in outcomes {
            report.add(options.seed, round, outcome);
        }
    });
    report.print(options.seed)
}

fn play_rounds(
    options: &Options,
    until: Instant,
    next: &AtomicU64,
    library: &Library,
    sender: &Sender<(u64, Outcome)>,
) {
    while Instant::now() < until {
        let round = next.fetch_add(1, Ordering::Relaxed);
        if options.round.is_some_and(|only| only != round) {
            return;
        }
        let seed = Random::new(options.seed ^ round.wrapping_mul(0x2545_f491_4f6c_dd1d)).next();
        let keep_in =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{}-{round}", options.seed));
        let played = catch_unwind(AssertUnwindSafe(|| round::run(seed, round, library, &keep_in)));
        let outcome = played.unwrap_or_else(|_| Outcome {
            breaches: vec![(Breach::Wrong, "the round panicked: see above".to_owned())],
            ..Outcome::default()
        });
        if sender.send((round, outcome)).is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Report {
    rounds: usize,
    executions: usize,
    bytes: usize,
    ends: BTreeMap<String, usize>,
    /// Of them, those in a real Django project.
    of_django: usize,
    kinds: BTreeMap<String, usize>,
    /// What was done about runners, and how often somebody was killed in the midst of it.
    acts: BTreeMap<&'static str, (usize, usize)>,
    taken_back: usize,
    /// By kind, and within it by the moment.
    points: BTreeMap<String, BTreeMap<String, usize>>,
    breaches: Vec<Breach>,
}

impl Report {
    fn add(&mut self, seed: u64, round: u64, outcome: Outcome) {
        self.rounds += 1;
        self.executions += outcome.executions;
        self.bytes += outcome.bytes;
        self.taken_back += outcome.taken_back;
        for (end, count) in outcome.ends {
            *self.ends.entry(end).or_default() += count;
        }
        self.of_django += usize::from(outcome.is_django);
        for (kind, count) in outcome.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        for (act, (times, deaths)) in outcome.acts {
            let sum = self.acts.entry(act).or_default();
            *sum = (sum.0 + times, sum.1 + deaths);
        }
        for (kind, when) in outcome.points {
            *self.points.entry(kind).or_default().entry(when).or_default() += 1;
        }
        for (breach, what) in outcome.breaches {
            say(&format!("{breach:?} in round {round} of seed {seed}: {what}"));
            self.breaches.push(breach);
        }
        if let Some(kept) = outcome.kept {
            say(&format!("what is left of it is in {}", kept.display()));
            say(&format!("again: make torture SEED={seed} ROUND={round}"));
        }
    }

    fn print(&self, seed: u64) -> ExitCode {
        say("\npoints at which somebody was killed:");
        let mut points = 0;
        for (kind, moments) in &self.points {
            let count: usize = moments.values().sum();
            let each: Vec<String> = moments.iter().map(|(when, count)| format!("{when} {count}")).collect();
            say(&format!("{count:6}  {kind:<36} {}", each.join("; ")));
            points += count;
        }
        let missed: BTreeSet<String> =
            killer::all_kinds().filter(|kind| !self.points.contains_key(kind)).collect();
        if !missed.is_empty() {
            let missed: Vec<String> = missed.into_iter().collect();
            say(&format!("kinds that were not met this time: {}", missed.join(", ")));
        }
        let acts: Vec<String> =
            self.acts.iter().map(|(act, (times, deaths))| format!("{act} {times} ({deaths})")).collect();
        say(&format!("how runners came and went (kills in the midst of it): {}", acts.join(", ")));
        say(&format!("losses of power took back: {} deeds and ends of files", self.taken_back));
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        say(&format!("what was run: {}", kinds.join(", ")));
        let ends: Vec<String> = self.ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
        let count = |breach: Breach| self.breaches.iter().filter(|one| **one == breach).count();
        say(&format!(
            "\nseed {seed}: {} rounds ({} of a real Django project), {points} points of {} kinds, {} executions ({}), \
             {} bytes compared",
            self.rounds,
            self.of_django,
            self.points.len(),
            self.executions,
            ends.join(", "),
            self.bytes
        ));
        say(&format!(
            "losses {}, doubles {}, stuck {}, other breaches {}",
            count(Breach::Loss),
            count(Breach::Double),
            count(Breach::Stuck),
            count(Breach::Wrong)
        ));
        if self.breaches.is_empty() && points > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
