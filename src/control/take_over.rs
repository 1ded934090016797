//! How a runner is made to end, and how one makes way for the next.
//!
//! Only the process that holds the lock is ever signalled. One that does not end by itself may be killed: nothing that
//! matters is in its memory.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Error, find_runner, hangs_for, say, status, wait_until};
use crate::cli::Replace;
use crate::runner::Wish;
use crate::shim;
use crate::state::{self, Occupant, StateDir};
use crate::status::Status;
use crate::sys;

/// How long a runner that is ended by force may take: SIGTERM, 5 s, SIGKILL, 10 s until all is gone, and 10 s
/// to report that.
pub const FORCE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a runner may take to hand over; it does so between two requests, or in the midst of one.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// An idle runner has ended by then. If not, it is said what is waited for.
pub const AT_ONCE: Duration = Duration::from_millis(300);
/// How long what was killed may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Ends the runner that has the directory, if there is one, and takes its place.
///
/// # Errors
/// It cannot be ended, or another one was faster.
pub fn make_way(state: PathBuf, how: Replace) -> Result<StateDir, Error> {
    let Some(runner) = find_runner(&state)? else { return open(state) };
    // On a disk that has become read-only the old runner looks after what runs, and the new one could not begin.
    state::check_writable(&state).map_err(state_error)?;
    match how {
        Replace::Force => end_by_force(runner, FORCE_PATIENCE),
        // While the project was loaded another one has replaced it.
        Replace::Hanging if hangs_for(&runner).is_none() => Err(state_error(state::Error::Taken(runner))),
        Replace::Hanging | Replace::HandOver => {
            let patience = hand_over_patience(&runner);
            end(runner, Wish::Leave, patience)?;
            open(state)
        }
    }
}

/// Takes the state directory.
///
/// # Errors
/// Somebody has it, or it cannot be trusted or used.
pub fn open(state: PathBuf) -> Result<StateDir, Error> {
    StateDir::open(state).map_err(state_error)
}

/// A runner leaves at once, even inside a request, unless it has to begin something that the service has been told of.
fn hand_over_patience(runner: &Occupant) -> Duration {
    match Status::read(runner.path(), runner.label()) {
        Some(says) if status::something_is_new(runner.path()) => HAND_OVER_PATIENCE.max(says.longest_turn()),
        _ => HAND_OVER_PATIENCE,
    }
}

/// Cancels what runs and ends the runner. The lock is ours then, so that no other runner begins meanwhile.
///
/// # Errors
/// The directory is not this user's, or something does not end.
pub fn end_by_force(runner: Occupant, patience: Duration) -> Result<StateDir, Error> {
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
    if has_ended(&runner, patience.min(AT_ONCE))? {
        return Ok(());
    }
    let name = runner.name();
    say(&format!("waiting up to {} s for the end of {name}", patience.as_secs()))?;
    if !has_ended(&runner, patience)? {
        say(&format!("{name} does not end: killing it; what is on disk is taken over"))?;
        runner.signal(sys::SIGKILL).map_err(|e| cannot_signal(&runner, &e))?;
        if !has_ended(&runner, KILL_PATIENCE)? {
            return Err(Error::Failed(format!("{} does not even end when it is killed", runner.name())));
        }
    }
    Ok(())
}

/// Tells the runner what is wanted of it.
///
/// # Errors
/// It may not be signalled by this user, or cannot be seen from here.
pub fn ask(runner: &Occupant, wish: Wish) -> Result<(), Error> {
    runner.signal(wish.signal()).map_err(|e| cannot_signal(runner, &e))
}

fn cannot_signal(runner: &Occupant, error: &io::Error) -> Error {
    Error::Failed(format!("cannot signal the runner ({}): {error}", runner.name()))
}

/// Waits for the runner's end, at most for `limit`. Returns whether it has come.
///
/// # Errors
/// The lock cannot be looked at.
pub fn has_ended(runner: &Occupant, limit: Duration) -> Result<bool, Error> {
    wait_until(limit, || runner.is_gone())
        .map_err(|e| Error::Failed(format!("cannot tell whether {} has ended: {e}", runner.name())))
}

/// Ends the shims that are left, and with them their commands. The next runner reports what it finds of them.
///
/// # Errors
/// One does not even end when it is killed.
pub fn end_what_is_left(state: &StateDir) -> Result<(), Error> {
    let failed = |e: io::Error| Error::Failed(format!("cannot end what still runs: {e}"));
    let executions = state.executions();
    let left = shim::running(&executions);
    // A shim that has done its work, and only holds the pipes of a background process, ends by this as well.
    left.iter().for_each(shim::Running::record_user);
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

/// What to say of a state directory that cannot be had.
pub fn state_error(error: state::Error) -> Error {
    match error {
        state::Error::Taken(runner) => Error::Failed(format!(
            "a runner is already running ({}) with the state in '{}'; 'djangocommand status' shows it, \
             'djangocommand restart' replaces it",
            runner.name(),
            runner.path().display()
        )),
        state::Error::Untrusted(why) => Error::Configuration(why),
        state::Error::Unusable(why) => Error::Failed(why),
    }
}
