//! `stop`: lets the runner end when what runs has ended, or ends both.

use std::path::Path;
use std::time::Duration;

use super::take_over::{self, AT_ONCE, FORCE_PATIENCE, ask, has_ended};
use super::{Error, find_runner, say, state_path, status};
use crate::cli::Place;
use crate::config::Environment;
use crate::runner::Wish;
use crate::status::Status;
use crate::sys;

/// How long `stop` waits for the end of what runs, as the Python runner did.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Returns the exit code.
///
/// # Errors
/// Whether there is a runner cannot be told, or it may not be signalled.
pub fn stop(place: &Place, timeout: Option<Duration>, force: bool) -> Result<u8, Error> {
    let state = state_path(place, &Environment::read())?;
    if force {
        // Once this process has the lock, others may take it for a runner.
        sys::ignore_signals(&[sys::SIGTERM, sys::SIGQUIT, sys::SIGHUP, sys::SIGUSR1, sys::SIGUSR2]);
    }
    let Some(runner) = find_runner(&state)? else {
        say(&format!("no runner is running with the state in '{}'", state.display()))?;
        if force && state.exists() {
            take_over::end_what_is_left(&take_over::open(state)?)?;
        } else if status::something_runs(&state) {
            let runs = status::what_runs(&state);
            say(&format!("{runs}; the next runner takes over, 'djangocommand stop --force' ends it"))?;
        }
        return Ok(0);
    };
    let name = runner.name();
    if force {
        drop(take_over::end_by_force(runner, timeout.unwrap_or(FORCE_PATIENCE))?);
        return stopped(&name, &state);
    }
    let patience = timeout.unwrap_or(DRAIN_PATIENCE);
    ask(&runner, Wish::Stop)?;
    if !has_ended(&runner, patience.min(AT_ONCE))? {
        say(&format!(
            "waiting up to {} s for {name}: {}",
            patience.as_secs_f64(),
            status::what_runs(&state)
        ))?;
        if !has_ended(&runner, patience.saturating_sub(AT_ONCE))? {
            let does = match Status::read(&state, runner.label()) {
                Some(Status { stopping: true, .. }) => "it takes nothing new and ends when that has ended",
                _ => "it has not answered yet",
            };
            let runs = status::what_runs(&state);
            say(&format!("still there: {name}: {runs}; {does}; 'djangocommand stop --force' ends both"))?;
            return Ok(1);
        }
    }
    stopped(&name, &state)
}

fn stopped(name: &str, state: &Path) -> Result<u8, Error> {
    let left = match status::left(state) {
        0 => String::new(),
        left => format!("; the next runner delivers what is left of {left} execution(s)"),
    };
    say(&format!("stopped ({name}){left}")).map(|()| 0)
}
