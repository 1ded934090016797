//! The figures: each a function that measures both contenders and adds its rows to the report.

/// Executions: how soon one starts, what it costs beyond its command, how many fit in a minute.
#[cfg(test)]
mod executions;
/// Output: how fast it goes through, what that takes, how fresh it arrives, and how that grows.
#[cfg(test)]
mod output;
/// What there is before and without any execution: start, status, idling, size.
#[cfg(test)]
mod standing;

use std::time::Duration;

use crate::contender::Both;
use crate::report::Report;
use crate::support::project::Project;

/// What the figures are measured on, and how thoroughly.
pub(crate) struct Bench {
    pub(crate) small: Both<Project>,
    /// Only there if a figure asks for it.
    pub(crate) wagtail: Option<Both<Project>>,
    pub(crate) runs: usize,
    pub(crate) idle: Duration,
}

type Figure = fn(&Bench, &mut Report);

/// By the names that `ONLY` takes, in the order in which they are measured.
pub(crate) const ALL: &[(&str, Figure)] = &[
    ("start", standing::start),
    ("status", standing::status),
    ("memory", standing::memory),
    ("idle", standing::idle),
    ("enqueue", executions::enqueue),
    ("overhead", executions::overhead),
    ("many", executions::many),
    ("output", output::torrent),
    ("slow", output::slow_service),
    ("age", output::age),
    ("size", standing::size),
];

/// Spreads evenly over 0 to 1, however many are taken: a share of a period at which something begins.
pub(crate) fn spread(index: usize) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    (index as f64 * GOLDEN).fract()
}
