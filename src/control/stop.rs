//! `stop`, and how one runner makes way for the next.
//!
//! Only the process that holds the lock is ever signalled. One that does not end by itself may be killed: nothing that
//! matters is in its memory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ensure::hangs_for;
use super::start::state_error;
use super::{Error, find_runner, say, state_path, status, wait_until};
use crate::cli::{Place, Replace};
use crate::config::Environment;
use crate::runner::Wish;
use crate::shim;
use crate::state::{self, Occupant, StateDir};
use crate::status::Status;
use crate::sys;

/// How long `stop` waits for the end of what runs, as the Python runner did.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long `stop --force` waits: SIGTERM, 5 s, SIGKILL, and the time to report that.
const FORCE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a runner may take to hand over; it does so between two requests, or in the midst of one.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// An idle runner has ended by then. If not, it is said what is waited for.
const AT_ONCE: Duration = Duration::from_millis(300);
/// How long what was killed may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Returns the exit code.
///
/// # Errors
/// Whether there is a runner cannot be told, or it may not be signalled.
pub fn stop(place: &Place, timeout: Option<Duration>, force: bool) -> Result<u8, Error> {
    let state = state_path(place, &Environment::read())?;
    let Some(runner) = find_runner(&state)? else {
        say(&format!("no runner is running with the state in '{}'", state.display()))?;
        if force && state.exists() {
            end_what_is_left(&open(state)?)?;
        } else if status::something_runs(&state) {
            let runs = status::what_runs(&state);
            say(&format!("{runs}; the next runner takes over, 'djangocommand stop --force' ends it"))?;
        }
        return Ok(0);
    };
    let name = runner.name();
    if force {
        drop(end_by_force(runner, timeout.unwrap_or(FORCE_PATIENCE))?);
        return stopped(&name, &state);
    }
    let patience = timeout.unwrap_or(DRAIN_PATIENCE);
    // Told twice, it would cancel what runs; whoever asks again only waits again.
    if !Status::read(&state, runner.label()).is_some_and(|status| status.stopping) {
        ask(&runner, Wish::Stop)?;
    }
    if !has_ended(&runner, patience.min(AT_ONCE))? {
        say(&format!(
            "waiting up to {} s for {name}: {}",
            patience.as_secs_f64(),
            status::what_runs(&state)
        ))?;
        if !has_ended(&runner, patience.saturating_sub(AT_ONCE))? {
            say(&format!(
                "still there: {name}: {}; it takes nothing new and ends when that has ended; \
                 'djangocommand stop --force' cancels it",
                status::what_runs(&state)
            ))?;
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

/// Ends the runner that has the directory, if there is one, and takes its place.
///
/// # Errors
/// It cannot be ended, or another one was faster.
pub fn make_way(state: PathBuf, replace: Option<Replace>) -> Result<StateDir, Error> {
    let Some(runner) = find_runner(&state)? else { return open(state) };
    match replace {
        Some(Replace::Force) => end_by_force(runner, FORCE_PATIENCE),
        // While the project was loaded another one has replaced it.
        Some(Replace::Hanging) if hangs_for(&runner).is_none() => {
            Err(state_error(state::Error::Taken(runner)))
        }
        _ => {
            end(runner, Wish::Leave, HAND_OVER_PATIENCE)?;
            open(state)
        }
    }
}

fn open(state: PathBuf) -> Result<StateDir, Error> {
    StateDir::open(state).map_err(state_error)
}

/// Cancels what runs and ends the runner. The lock is ours then, so that no other runner begins meanwhile.
fn end_by_force(runner: Occupant, patience: Duration) -> Result<StateDir, Error> {
    // What could not be ended afterwards shall not lose its runner before.
    state::check_private(runner.path()).map_err(Error::Configuration)?;
    say(&format!("cancelling: {}", status::what_runs(runner.path())))?;
    let path = runner.path().to_owned();
    end(runner, Wish::Cancel, patience)?;
    let state = open(path)?;
    end_what_is_left(&state)?;
    Ok(state)
}

/// Asks the runner to end, and kills it if it does not. The handle goes with it: once the lock is ours, no descriptor
/// of its file may be closed.
fn end(runner: Occupant, wish: Wish, patience: Duration) -> Result<(), Error> {
    ask(&runner, wish)?;
    if !has_ended(&runner, patience)? {
        say(&format!("{} does not end: killing it; nothing is lost", runner.name()))?;
        runner.signal(sys::SIGKILL).map_err(|e| cannot_signal(&runner, &e))?;
        if !has_ended(&runner, KILL_PATIENCE)? {
            return Err(Error::Failed(format!("{} does not even end when it is killed", runner.name())));
        }
    }
    Ok(())
}

fn ask(runner: &Occupant, wish: Wish) -> Result<(), Error> {
    runner.signal(wish.signal()).map_err(|e| cannot_signal(runner, &e))
}

fn cannot_signal(runner: &Occupant, error: &io::Error) -> Error {
    Error::Failed(format!("cannot signal the runner ({}): {error}", runner.name()))
}

fn has_ended(runner: &Occupant, limit: Duration) -> Result<bool, Error> {
    wait_until(limit, || runner.is_gone())
        .map_err(|e| Error::Failed(format!("cannot tell whether {} has ended: {e}", runner.name())))
}

/// Ends the shims that are left, and with them their commands. The next runner reports what it finds of them.
fn end_what_is_left(state: &StateDir) -> Result<(), Error> {
    let failed = |e: io::Error| Error::Failed(format!("cannot end what still runs: {e}"));
    let executions = state.executions();
    let left = shim::running(&executions);
    // A shim that has done its work, and only holds the pipes of a background process, ends by this as well.
    left.iter().for_each(|shim| shim.signal(shim::CANCEL));
    let all_gone = || Ok(shim::running(&executions).is_empty());
    if !wait_until(shim::CANCEL_PATIENCE, all_gone).map_err(failed)? {
        shim::running(&executions).iter().for_each(|shim| shim.signal(sys::SIGKILL));
        if !wait_until(KILL_PATIENCE, all_gone).map_err(failed)? {
            return Err(Error::Failed("a shim does not even end when it is killed".to_owned()));
        }
    }
    match left.len() {
        0 => Ok(()),
        ended => say(&format!("ended {ended} process(es) that were left")),
    }
}
