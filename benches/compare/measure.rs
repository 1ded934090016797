//! What processes take, as the kernel counts it in `/proc`.

use std::collections::HashMap;
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::contender::Session;
use crate::support::memory;
use crate::support::usage::{self, context_switches};

/// A shim is gone soon after its command; what it took last is seen because it is looked at this often.
const LOOK: Duration = Duration::from_millis(10);
/// The memory is looked at every so many looks: adding it up stops a big process for a moment.
const LOOKS_A_MEMORY: usize = 5;

/// The memory of a process, in bytes, with its share of what it has in common with others.
///
/// Only root may ask for that of a runner or a shim of ours, since they forbid to look into them.
pub(crate) fn pss(pid: u32) -> Option<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    match fs::read_to_string(path) {
        Ok(text) => {
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().trim_end_matches(" kB").parse().ok().map(|kib: f64| kib * 1024.0)
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            panic!("only root may see how much memory a runner has: run this as root")
        }
        Err(_) => None,
    }
}

/// What a process that does nearly nothing has done so far. It is counted by thread, so threads must not end.
#[derive(Clone, Copy)]
pub(crate) struct Idling {
    /// In seconds, to the nanosecond.
    pub(crate) cpu: f64,
    pub(crate) switches: f64,
}

impl Idling {
    pub(crate) fn of(pid: u32) -> Self {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let nanoseconds = threads.map(|thread| {
            let schedule = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
            schedule.split(' ').next().unwrap().parse::<f64>().unwrap()
        });
        Idling { cpu: nanoseconds.sum::<f64>() / 1e9, switches: context_switches(pid) as f64 }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Idling { cpu: self.cpu - before.cpu, switches: self.switches - before.switches }
    }
}

/// What a runner and its shims took while something went on, without the commands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// The most memory at a time, in bytes.
    pub(crate) pss: f64,
    /// The sum of what each of them had at most, as the kernel keeps it (`VmHWM`), in bytes.
    pub(crate) peaks: f64,
    /// In seconds.
    pub(crate) cpu: f64,
    /// What this program took meanwhile, which is the service; in seconds.
    pub(crate) cpu_of_service: f64,
}

/// Does something, and looks at the processes of the session meanwhile.
pub(crate) fn taken_during<T>(session: &Session, act: impl FnOnce() -> T) -> (T, Taken) {
    let own = || cpu(std::process::id());
    let before = own();
    let (is_acting, over) = mpsc::channel::<()>();
    let (done, mut taken) = thread::scope(|scope| {
        let watch = scope.spawn(move || watch(session, &over));
        let act = move || {
            // Closed at the end, also by a panic.
            let _is_acting = is_acting;
            act()
        };
        (act(), watch.join().unwrap())
    });
    taken.cpu_of_service = own() - before;
    (done, taken)
}

fn cpu(pid: u32) -> f64 {
    usage::cpu(pid).unwrap_or_default().own
}

fn watch(session: &Session, over: &mpsc::Receiver<()>) -> Taken {
    let runner = session.runner.pid();
    let runner_before = cpu(runner);
    let mut taken = Taken::default();
    let mut cpus: HashMap<u32, f64> = HashMap::new();
    let mut looks = 0;
    loop {
        let is_over = over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout);
        let pids = session.processes();
        // A shim that has ended can be asked for its time until it is reaped, and has no name any more.
        let known: Vec<u32> = cpus.keys().copied().chain(pids.iter().copied()).collect();
        for pid in known {
            if let Some(now) = usage::cpu(pid) {
                cpus.insert(pid, now.own);
            }
        }
        let peaks: u64 = pids.iter().filter_map(|pid| memory::peak(*pid)).sum();
        taken.peaks = taken.peaks.max(peaks as f64 * 1024.0);
        if looks % LOOKS_A_MEMORY == 0 || is_over {
            taken.pss = taken.pss.max(pids.iter().filter_map(|pid| pss(*pid)).sum());
        }
        looks += 1;
        if is_over {
            break;
        }
    }
    taken.cpu = cpus.values().sum::<f64>() - runner_before;
    taken
}
