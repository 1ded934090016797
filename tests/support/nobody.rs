//! A user without rights: limits and permissions do not hold for root, as which the tests may run.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use super::project::Project;
use super::runner::Runner;
use super::state_dir::StateDir;

/// The user "nobody" of every Linux: without rights and, on any sane machine, without processes.
pub(crate) const NOBODY: u32 = 65_534;

/// Where the tests run as root, the runner is nobody's, and so are project and state directory.
pub(crate) fn of_nobody<'a>(runner: Runner<'a>, project: &Project, state: &StateDir) -> Runner<'a> {
    if !is_root() {
        return runner;
    }
    for path in [project.dir(), state.path(), state.path().parent().unwrap()] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    runner.launched_by(["setpriv".to_owned()].into_iter().chain(as_nobody()))
}

/// The arguments of `setpriv`.
pub(crate) fn as_nobody() -> [String; 3] {
    [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
