//! Waiting for what no event tells: the process table, files, the work of others.

use std::thread;
use std::time::{Duration, Instant};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);

/// Looks every few milliseconds until it holds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {WITHIN:?} for {what}");
        pause(Duration::from_millis(10));
    }
}

/// Lets time pass, where that is what is tested.
pub(crate) fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    // A parked thread may wake early.
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}
