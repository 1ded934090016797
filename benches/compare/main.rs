//! `make bench`: this runner against the published Python one, side by side, in one run, on the same project, against the
//! same service, with public tools: `/proc`, the command's own clock, and the service of the tests.
//!
//! It prints a table and writes it, with every sample, as JSON. It asserts nothing of the figures; how they are, they are.

#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "this needs a part of what the tests need")]
mod support;

/// The two that are compared, and a runner of either at work.
#[cfg(test)]
mod contender;
/// The figures.
#[cfg(test)]
mod figures;
/// The machine, and the versions of everything.
#[cfg(test)]
mod machine;
/// What processes take.
#[cfg(test)]
mod measure;
/// The table and the JSON.
#[cfg(test)]
mod report;
/// What a handful of samples says.
#[cfg(test)]
mod statistics;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use contender::projects_on;
use figures::Bench;
use machine::Machine;
use report::{Report, say};

/// Where the table goes as JSON.
const JSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench.json");
/// The samples of most figures, unless another number is asked for.
const RUNS: usize = 5;
/// The figure that needs the project of a real-life size.
const NEEDS_WAGTAIL: &str = "start";

struct Options {
    runs: usize,
    /// The figures to be measured; all if it is empty.
    only: Vec<String>,
    idle: Duration,
}

/// `--runs N`, `--only NAME,NAME`, `--quick`.
fn options() -> Result<Options, String> {
    let mut options = Options { runs: RUNS, only: Vec::new(), idle: Duration::from_secs(60) };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo says so to every bench.
            "--bench" => {}
            "--quick" => (options.runs, options.idle) = (1, Duration::from_secs(10)),
            "--runs" => {
                let value = words.next().unwrap_or_default();
                options.runs = value.parse().map_err(|error| format!("--runs {value}: {error}"))?;
            }
            "--only" => {
                options.only = words.next().unwrap_or_default().split(',').map(str::to_owned).collect();
            }
            _ => return Err(format!("{word} is none of --runs, --only, --quick")),
        }
    }
    let is_known = |name: &String| figures::ALL.iter().any(|(known, _)| known == name);
    match options.only.iter().find(|name| !is_known(name)) {
        Some(name) => {
            let known: Vec<&str> = figures::ALL.iter().map(|(name, _)| *name).collect();
            Err(format!("'{name}' is none of {}", known.join(", ")))
        }
        None if options.runs == 0 => Err("--runs 0 measures nothing".to_owned()),
        None => Ok(options),
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            say(&why);
            return ExitCode::FAILURE;
        }
    };
    let is_wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let bench = Bench {
        small: projects_on("django"),
        wagtail: is_wanted(NEEDS_WAGTAIL).then(|| projects_on("wagtail")),
        runs: options.runs,
        idle: options.idle,
    };
    let wagtail = bench.wagtail.as_ref().map(|projects| &projects.original);
    let mut report = Report::new(Machine::here(&bench.small.original, wagtail), options.runs);
    let begun = Instant::now();
    for (name, figure) in figures::ALL.iter().filter(|(name, _)| is_wanted(name)) {
        say(&format!("{:4.0} s  {name}", begun.elapsed().as_secs_f64()));
        figure(&bench, &mut report);
    }
    report.print();
    report.write(Path::new(JSON));
    ExitCode::SUCCESS
}
