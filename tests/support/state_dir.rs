//! A runner's state directory, and the end of every process that belongs to it.
//!
//! Every process that a run brings about, however far it daemonizes, carries the directory's path in its environment.
//! The last owner of the directory kills them all, and the shims that the directory names.

use std::fs::{self, DirBuilder};
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::runner::BINARY;
use super::sys;

/// The variable by which the processes of a run are found again.
pub(crate) const MARK: &str = "SUPPORT_STATE_DIR";
/// How long the kernel may take to end what was killed.
pub(crate) const KILL_TIME_MAX: Duration = Duration::from_secs(10);

/// A state directory; clones share it, and with the last of them it and its processes go.
#[derive(Clone)]
pub(crate) struct StateDir(Arc<Home>);

pub(crate) struct Home {
    path: PathBuf,
    // Held for its Drop, which comes after ours.
    _parent: TempDir,
}

impl StateDir {
    pub(crate) fn new() -> Self {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("state");
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        StateDir(Arc::new(Home { path, _parent: parent }))
    }
}

impl Deref for StateDir {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.0
    }
}

impl Home {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directories of the executions that the runner still has to do with.
    pub(crate) fn executions(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path.join("executions")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The living shims that the locks of the executions name. A PID that now is another program's is not one.
    pub(crate) fn shims(&self) -> Vec<u32> {
        let holder = |dir: &PathBuf| {
            let lock = fs::read_to_string(dir.join("shim.lock")).ok()?;
            lock.lines().next()?.trim().parse().ok()
        };
        let is_ours =
            |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == Path::new(BINARY));
        self.executions().iter().filter_map(holder).filter(is_ours).collect()
    }

    /// The runner that has the lock, however it was started.
    pub(crate) fn runner(&self) -> Option<u32> {
        fs::File::open(self.path.join("runner.lock")).ok().and_then(|lock| sys::record_lock_holder(&lock))
    }

    /// Every living process that a runner on this directory started, however far away it went.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.path.display());
        let is_marked = |pid: &u32| {
            // It may have ended meanwhile, or be somebody else's.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(is_marked).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let deadline = Instant::now() + KILL_TIME_MAX;
        loop {
            // What was killed is listed until it is gone, and what it forked in its last instant comes up next time.
            let left = [self.shims(), self.processes()].concat();
            if left.is_empty() || Instant::now() > deadline {
                assert!(left.is_empty() || thread::panicking(), "the processes {left:?} survive SIGKILL");
                return;
            }
            for pid in left {
                sys::kill(pid, libc::SIGKILL);
            }
            thread::yield_now();
        }
    }
}
