//! `ensure`: for cron. A healthy runner is left alone without a word; otherwise there is one afterwards.

use std::process::Stdio;
use std::time::Duration;

use super::start::{Spawned, spawn_detached, started};
use super::{Error, find_runner, say, state_path};
use crate::cli::{Replace, Start};
use crate::config::Environment;
use crate::status::Status;

/// A runner whose loop has not turned for this long hangs: a turn has one request, which has a time limit.
const HANGS_AFTER: Duration = Duration::from_secs(300);

/// Returns the exit code.
///
/// # Errors
/// No runner is there and none can be started.
pub fn ensure(options: &Start) -> Result<u8, Error> {
    let state = state_path(&options.place, &Environment::read())?;
    let mut replace = None;
    if let Some(runner) = find_runner(&state)? {
        // One that has not said anything yet has just begun.
        let still_for =
            Status::read(&state, runner.pid()).map_or(Duration::ZERO, |status| status.hangs_for());
        if still_for < HANGS_AFTER {
            return Ok(0);
        }
        say(&format!(
            "the runner ({}) has not moved for {} s: replacing it",
            runner.name(),
            still_for.as_secs()
        ))?;
        replace = Some(Replace::HandOver);
    }
    match spawn_detached(options, replace, Stdio::piped())? {
        Spawned::Ready(pid) => say(&started(pid, &state)).map(|()| 0),
        // Another `ensure` was faster.
        Spawned::Ended { .. } if replace.is_none() && find_runner(&state)?.is_some() => Ok(0),
        Spawned::Ended { code, said } => {
            let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), said.as_bytes());
            Ok(code)
        }
    }
}
