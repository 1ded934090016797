//! `ensure`: for cron. A healthy runner is left alone without a word; otherwise there is one afterwards.

use std::process::Stdio;

use super::start::{Spawned, spawn_detached, started};
use super::take_over::state_error;
use super::{Error, find_runner, hangs_for, say, state_path};
use crate::cli::{Replace, Start};
use crate::config::Environment;
use crate::state;

/// Returns the exit code.
///
/// # Errors
/// No runner is there and none can be started.
pub fn ensure(options: &Start) -> Result<u8, Error> {
    let state = state_path(&options.load.place, &Environment::read())?;
    let mut replace = None;
    if let Some(runner) = find_runner(&state)? {
        let Some(still_for) = hangs_for(&runner) else { return Ok(0) };
        // It may live and only be unable to say so.
        state::check_writable(&state).map_err(state_error)?;
        say(&format!(
            "the runner ({}) has not moved for {} s: replacing it",
            runner.name(),
            still_for.as_secs()
        ))?;
        replace = Some(Replace::Hanging);
    }
    match spawn_detached(options, replace, Stdio::piped())? {
        Spawned::Ready(pid) => say(&started(pid, &state)).map(|()| 0),
        // Another `ensure` was faster.
        Spawned::Ended { .. } if find_runner(&state)?.is_some_and(|runner| hangs_for(&runner).is_none()) => {
            Ok(0)
        }
        Spawned::Ended { code, said } => {
            let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), said.as_bytes());
            Ok(code)
        }
    }
}
