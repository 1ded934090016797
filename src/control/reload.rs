//! `reload`: asks the runner to load the project again, and says how that went.

use std::time::Duration;

use super::{Error, find_runner, say, state_path, wait_until};
use crate::cli::Place;
use crate::config::Environment;
use crate::status::Status;
use crate::sys;

/// The project has two minutes to load; the loop may be inside a request before that.
const PATIENCE: Duration = Duration::from_secs(180);

/// Returns the exit code.
///
/// # Errors
/// There is no runner, or it goes on with what it had.
pub fn reload(place: &Place) -> Result<u8, Error> {
    let state = state_path(place, &Environment::read())?;
    let failed = |why: String| Err(Error::Failed(why));
    let Some(runner) = find_runner(&state)? else {
        return failed(format!(
            "no runner is running with the state in '{}'; 'djangocommand start' starts one",
            state.display()
        ));
    };
    let said = || Status::read(&state, runner.label());
    // One that is under way may have read the old files: its end is not the answer.
    let before = said().map_or(0, |status| status.reloads + u64::from(status.is_reloading));
    let name = runner.name();
    let io = |e: std::io::Error| Error::Failed(format!("cannot ask the runner ({name}) to reload: {e}"));
    runner.signal(sys::SIGHUP).map_err(io)?;
    let mut result = None;
    let answered = wait_until(PATIENCE, || {
        result = said().filter(|status| status.reloads > before);
        Ok(result.is_some() || runner.is_gone()?)
    });
    match (answered.map_err(io)?, result) {
        (_, Some(Status { reload_error: None, .. })) => say("reloaded").map(|()| 0),
        (_, Some(Status { reload_error: Some(why), .. })) => {
            failed(format!("the runner goes on with what it had loaded before: {why}"))
        }
        (true, None) => failed(format!("the runner ({name}) has ended meanwhile")),
        (false, None) => failed(format!(
            "the runner ({name}) has not answered within {} s; its log says more",
            PATIENCE.as_secs()
        )),
    }
}
