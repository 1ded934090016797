//! The subcommands: each file does what `--help` says of one, or of two that are much alike.
//!
//! Those that only talk to a runner find it by its state directory and never run Python.

mod check;
mod commands;
mod ensure;
mod history;
mod logs;
mod reload;
mod start;
mod status;
mod stop;
mod take_over;

pub use check::check;
pub use commands::commands;
pub use ensure::ensure;
pub use history::history;
pub use logs::logs;
pub use reload::reload;
pub use start::start;
pub use status::status;
pub use stop::stop;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cli::{Load, Place};
use crate::config::Environment;
pub use crate::load::Error;
use crate::load::Loader;
use crate::project;
use crate::signals::Signals;
use crate::state::{self, Occupant};
use crate::status::Status;

/// The state directory of the project that is meant.
fn state_path(place: &Place, environment: &Environment) -> Result<PathBuf, Error> {
    let start = place.project.as_deref().unwrap_or(Path::new("."));
    let root = || project::find_root(start, place.settings.as_deref(), environment).map(|(root, _)| root);
    state::choose(place.state_dir.as_deref(), environment, root).map_err(Error::Configuration)
}

/// Where to find what is to be loaded.
fn loader(load: Load, environment: Environment) -> Result<Loader, Error> {
    let Load { place, python, server_url } = load;
    let project = place.project.unwrap_or_else(|| PathBuf::from("."));
    Loader::new(&project, python, place.settings, server_url, environment)
}

/// The runner that has the state directory, if there is one.
fn find_runner(state: &Path) -> Result<Option<Occupant>, Error> {
    Occupant::find(state).map_err(|e| {
        Error::Failed(format!(
            "cannot tell whether a runner has the state directory '{}': {e}",
            state.display()
        ))
    })
}

/// A runner whose loop has not turned for this long hangs, unless one turn may take longer.
const HANGS_AFTER: Duration = Duration::from_secs(300);

/// How long the loop of a runner that hangs has not turned; `None` for a healthy one.
fn hangs_for(runner: &Occupant) -> Option<Duration> {
    // One that has not said anything yet has just begun.
    let status = Status::read(runner.path(), runner.label())?;
    Some(status.still_for()).filter(|still_for| *still_for >= HANGS_AFTER.max(2 * status.longest_turn()))
}

/// Looks every few milliseconds whether something has come true, at most for `limit`.
fn wait_until(limit: Duration, mut is_true: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    const LOOK: Duration = Duration::from_millis(5);
    let clock = Signals::catch(&[])?;
    let end = Instant::now() + limit;
    while !is_true()? {
        if Instant::now() >= end {
            return Ok(false);
        }
        clock.wait(LOOK);
    }
    Ok(true)
}

/// Writes a line for the user. A reader that has gone away is no failure.
fn say(line: &str) -> Result<(), Error> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
