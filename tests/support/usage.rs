//! What a process has used so far, as the kernel counts it, whatever else the machine was busy with.

use std::fs;

/// Linux tells all programs that a tick is a hundredth of a second, whatever it is.
const TICKS_A_SECOND: f64 = 100.0;

/// Processor time in seconds, to a hundredth.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) own: f64,
    /// Of the children that it has waited for, with theirs.
    pub(crate) children: f64,
}

/// `None` once the process is gone.
pub(crate) fn cpu(pid: u32) -> Option<Cpu> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, but nothing behind it holds a parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Cpu {
        own: (ticks(11)? + ticks(12)?) / TICKS_A_SECOND,
        children: (ticks(13)? + ticks(14)?) / TICKS_A_SECOND,
    })
}

/// How often the threads that it has now were taken off a processor, mostly because they waited for something.
pub(crate) fn context_switches(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    threads.map(|thread| of(thread.unwrap())).sum()
}
