//! How much memory a runner and its shims take at most, as the kernel counts it, against what is promised.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::runner::Running;
use super::state_dir::StateDir;

/// What the peaks are promised to be, in KiB, for the program as it is shipped.
const RUNNER_MAX: u64 = 8 * 1024;
const SHIM_MAX: u64 = 4 * 1024;
/// How many times as much the unoptimized program may take.
const UNOPTIMIZED: u64 = if cfg!(debug_assertions) { 3 } else { 1 };
/// A shim that has done its work is gone before its peak can be asked for, so it is asked often.
const LOOK: Duration = Duration::from_millis(20);

/// Does something with a running runner, and asserts that its memory and that of its shims stay small meanwhile.
pub(crate) fn assert_small_during<T>(what: &str, runner: &Running, act: impl FnOnce() -> T) -> T {
    let (pid, state) = (runner.pid(), runner.state_dir());
    let (is_acting, over) = mpsc::channel::<()>();
    let (done, peaks) = thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let mut peaks = Peaks::default();
            while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                peaks.look(pid, state);
            }
            peaks
        });
        let act = move || {
            // Closed at the end, also by a panic.
            let _is_acting = is_acting;
            act()
        };
        (act(), watch.join().unwrap())
    });
    println!("{what}: at most {} KiB in the runner, {} KiB in a shim", peaks.runner, peaks.shim);
    assert!(peaks.runner > 0 && peaks.shim > 0, "no runner or no shim was ever seen");
    assert!(peaks.runner <= UNOPTIMIZED * RUNNER_MAX, "{what}: {} KiB in the runner", peaks.runner);
    assert!(peaks.shim <= UNOPTIMIZED * SHIM_MAX, "{what}: {} KiB in a shim", peaks.shim);
    done
}

/// The highest that were seen, in KiB.
#[derive(Default)]
struct Peaks {
    runner: u64,
    shim: u64,
}

impl Peaks {
    fn look(&mut self, runner: u32, state: &StateDir) {
        self.runner = peak(runner).map_or(self.runner, |now| now.max(self.runner));
        self.shim = state.shims().into_iter().filter_map(peak).fold(self.shim, u64::max);
    }
}

/// The most memory that a process has had at a time, in KiB.
pub(crate) fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
