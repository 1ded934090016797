//! Proves the support itself, so that a test that fails speaks of the runner.

mod caller;
mod faults;
mod harness;
mod rules;

use std::time::Duration;

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(10);
/// For what starts an interpreter and waits for polls.
const LATER: Duration = Duration::from_secs(60);
