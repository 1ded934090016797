//! Finds and signals every process that came from the command, however it tried to get away.
//!
//! The shim is a child subreaper, so a process that changed its session and lost its parents is still a descendant.

use std::collections::{HashMap, HashSet};
use std::fs;

use crate::sys;

/// The PIDs of all living descendants; those that have ended but are not reaped yet do not count.
pub fn list() -> Vec<u32> {
    let mut children: HashMap<u32, Vec<(u32, bool)>> = HashMap::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| pid_of(&entry)) {
        if let Some((parent, alive)) = parent(pid) {
            children.entry(parent).or_default().push((pid, alive));
        }
    }
    let mut found = Vec::new();
    let mut ancestors = vec![std::process::id()];
    let mut known: HashSet<u32> = ancestors.iter().copied().collect();
    while let Some(ancestor) = ancestors.pop() {
        for (pid, alive) in children.remove(&ancestor).into_iter().flatten() {
            if known.insert(pid) {
                ancestors.push(pid);
                if alive {
                    found.push(pid);
                }
            }
        }
    }
    found
}

/// Sends `signal` to all of them; returns how many there were.
pub fn signal(signal: i32) -> usize {
    let pids = list();
    for pid in &pids {
        // If the PID were another's by now, its parent would not be one of ours.
        let is_ours = || Ok(parent(*pid).is_some_and(|(p, _)| p == std::process::id() || pids.contains(&p)));
        let _ = sys::signal_process(*pid, signal, is_ours);
    }
    pids.len()
}

fn pid_of(entry: &fs::DirEntry) -> Option<u32> {
    entry.file_name().to_str()?.parse().ok()
}

/// The parent of a process, and whether the process is still alive.
fn parent(pid: u32) -> Option<(u32, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything, parentheses too: the fields begin behind the last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    Some((fields.next()?.parse().ok()?, state != "Z" && state != "X"))
}
