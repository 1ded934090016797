//! The table in the terminal, and the same with every sample as JSON.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::contender::Both;
use crate::machine::Machine;
use crate::statistics::{Samples, Statistic};

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    BytesPerSecond,
    Count,
    Share,
}

impl Unit {
    fn show(self, value: f64) -> String {
        let rounded = |value: f64, unit: &str| {
            let digits = if value.abs() >= 100.0 {
                0
            } else if value.abs() >= 10.0 {
                1
            } else {
                2
            };
            format!("{value:.digits$}{unit}")
        };
        match self {
            Unit::Seconds if value.abs() < 1.0 => rounded(value * 1e3, " ms"),
            Unit::Seconds => rounded(value, " s"),
            Unit::Bytes if value < 1e6 => rounded(value / 1e3, " kB"),
            Unit::Bytes => rounded(value / 1e6, " MB"),
            Unit::BytesPerSecond => rounded(value / 1e6, " MB/s"),
            Unit::Count => rounded(value, ""),
            Unit::Share => rounded(value * 100.0, " %"),
        }
    }
}

/// What is promised of a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// So many times as good as the original.
    Times(f64),
    /// No worse than the original; and a single count more is no difference.
    NotMore,
    /// Ours below this value, whatever the original's is.
    Below(f64),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    Less,
    More,
}

/// One figure of both.
#[derive(Serialize)]
pub(crate) struct Row {
    figure: String,
    unit: Unit,
    better: Better,
    statistic: Statistic,
    target: Target,
    ours: Measured,
    original: Measured,
    /// How many times as good ours is.
    ratio: f64,
    met: Option<bool>,
}

#[derive(Serialize)]
struct Measured {
    value: f64,
    min: f64,
    max: f64,
    samples: Samples,
}

impl Row {
    /// The median, of which less is better.
    pub(crate) fn new(figure: &str, unit: Unit, target: Target, samples: Both<Samples>) -> Self {
        Row::with(figure, unit, Better::Less, Statistic::Median, target, samples)
    }

    pub(crate) fn with(
        figure: &str,
        unit: Unit,
        better: Better,
        statistic: Statistic,
        target: Target,
        samples: Both<Samples>,
    ) -> Self {
        let measured = |samples: Samples| Measured {
            value: samples.of(statistic),
            min: samples.min(),
            max: samples.max(),
            samples,
        };
        let Both { ours, original } = samples.map(measured);
        let ratio = match better {
            // A difference that is too small to be measured may come out below nothing.
            Better::Less => original.value / ours.value.max(0.0),
            Better::More => ours.value / original.value,
        };
        let met = match target {
            Target::Times(least) => Some(ratio >= least),
            Target::NotMore => Some(ours.value <= original.value + 1.0),
            Target::Below(most) => Some(ours.value < most),
            Target::Nothing => None,
        };
        Row { figure: figure.to_owned(), unit, better, statistic, target, ours, original, ratio, met }
    }

    fn cells(&self) -> [String; 6] {
        let show = |measured: &Measured| {
            let Measured { value, min, max, .. } = *measured;
            let value = self.unit.show(value);
            if min == max {
                value
            } else {
                format!("{value} ({} – {})", self.unit.show(min), self.unit.show(max))
            }
        };
        let target = match self.target {
            Target::Times(times) => format!("{times} ×"),
            Target::NotMore => "not more".to_owned(),
            Target::Below(most) => format!("< {}", self.unit.show(most)),
            Target::Nothing => String::new(),
        };
        let met = self.met.map_or("", |met| if met { "yes" } else { "NO" });
        // Where both are about nothing, how many times one is the other says nothing.
        let ratio = if matches!(self.target, Target::Below(_)) {
            String::new()
        } else if self.ratio.is_infinite() {
            "(too small to measure)".to_owned()
        } else {
            format!("{:.1} ×", self.ratio)
        };
        let figure = match self.statistic {
            Statistic::Median => self.figure.clone(),
            Statistic::Percentile95 => format!("{}, 95th percentile", self.figure),
        };
        [figure, show(&self.ours), show(&self.original), ratio, target, met.to_owned()]
    }
}

/// What a cost grows to with the work.
#[derive(Serialize)]
pub(crate) struct Growth {
    pub(crate) work: String,
    pub(crate) megabytes: f64,
    pub(crate) seconds: Both<Samples>,
    pub(crate) cpu: Both<Samples>,
    pub(crate) memory: Both<Samples>,
}

/// All that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    runs: usize,
    rows: Vec<Row>,
    growth: Vec<Growth>,
    /// What one should know of a figure.
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(machine: Machine, runs: usize) -> Self {
        Report { machine, runs, rows: Vec::new(), growth: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure, and shows it at once.
    pub(crate) fn add(&mut self, row: Row) {
        say(&format!("  {}", row.cells().join(" | ")));
        self.rows.push(row);
    }

    pub(crate) fn grows(&mut self, growth: Growth) {
        self.growth.push(growth);
    }

    pub(crate) fn note(&mut self, text: String) {
        say(&format!("  {text}"));
        self.notes.push(text);
    }

    pub(crate) fn print(&self) {
        say("");
        self.machine.lines().iter().for_each(|line| say(line));
        say(&format!("median of {} runs or more (least – most)\n", self.runs));
        let head = ["figure", "ours", "original", "ratio", "at least", "met"].map(str::to_owned);
        print_table(&head, &self.rows.iter().map(|row| row.cells().to_vec()).collect::<Vec<_>>());
        if !self.growth.is_empty() {
            self.print_growth();
        }
        say("");
        self.notes.iter().for_each(|note| say(&format!("- {note}")));
    }

    fn print_growth(&self) {
        let head =
            ["output", "ours: time", "CPU", "memory", "original: time", "CPU", "memory"].map(str::to_owned);
        let cells = |growth: &Growth| {
            let of = |seconds: &Samples, cpu: &Samples, memory: &Samples| {
                [(Unit::Seconds, seconds), (Unit::Seconds, cpu), (Unit::Bytes, memory)]
                    .map(|(unit, samples)| unit.show(samples.median()))
            };
            let ours = of(&growth.seconds.ours, &growth.cpu.ours, &growth.memory.ours);
            let original = of(&growth.seconds.original, &growth.cpu.original, &growth.memory.original);
            [vec![growth.work.clone()], ours.to_vec(), original.to_vec()].concat()
        };
        say("");
        print_table(&head, &self.growth.iter().map(cells).collect::<Vec<_>>());
    }

    pub(crate) fn write(&self, path: &Path) {
        fs::write(path, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
        say(&format!("\nwith every sample: {}", path.display()));
    }
}

/// As Markdown, so that it can go into a README as it is.
fn print_table(head: &[String], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| &row[column]).chain([&head[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        say(&format!("| {} |", padded.collect::<Vec<_>>().join(" | ")));
    };
    line(head);
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
