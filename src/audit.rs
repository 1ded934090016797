//! `audit.jsonl`: what this host was asked to run and what became of it, one line each, synced before the act.
//!
//! It is also the runner's memory: an execution that was taken here once is never taken again, whether the service
//! offers it a second time by a fault or by intent.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::execution::{ExecutionId, Outcome};
use crate::timer::unix_now;

/// A file that is larger is moved aside. The executions in the last two files are remembered.
const SIZE_MAX: u64 = 4 * 1024 * 1024;

/// What is recorded of an execution.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// It is about to be started.
    Started { command: &'a str, argv: &'a [String] },
    /// It is about to be reported as failed, because it was interrupted before it could be started.
    Interrupted { command: &'a str },
    /// It is about to be reported as refused.
    Rejected { command: &'a str, reason: &'a str },
    /// The service has the whole of it.
    Delivered {
        command: &'a str,
        #[serde(flatten)]
        outcome: Outcome,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    /// Unix time in seconds.
    time: f64,
    execution: &'a str,
    #[serde(flatten)]
    event: Event<'a>,
}

/// What is read of a line.
#[derive(Deserialize)]
struct Seen {
    execution: ExecutionId,
}

pub struct Audit {
    path: PathBuf,
    /// The executions of the last file and of the one before it: some ten thousand each, so as numbers.
    seen: [HashSet<u128>; 2],
}

impl Audit {
    /// Reads which executions were here before.
    ///
    /// # Errors
    /// A file is there but cannot be read, or half a line that a crash left cannot be ended.
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = state.join("audit.jsonl");
        let mut seen = [HashSet::new(), HashSet::new()];
        let mut torn = false;
        for (file, seen) in [path.clone(), path.with_extension("jsonl.1")].iter().zip(&mut seen) {
            let opened = match File::open(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            let (mut reader, mut line) = (BufReader::new(opened), Vec::new());
            while reader.read_until(b'\n', &mut line)? > 0 {
                torn |= *file == path && !line.ends_with(b"\n");
                // Half a line, or what somebody else wrote, names no execution.
                seen.extend(serde_json::from_slice::<Seen>(&line).map(|seen| seen.execution.number()));
                line.clear();
            }
        }
        let audit = Self { path, seen };
        if torn {
            audit.append(b"\n")?;
        }
        Ok(audit)
    }

    /// Whether the execution was started or rejected here before.
    pub fn has(&self, id: &ExecutionId) -> bool {
        self.seen.iter().any(|seen| seen.contains(&id.number()))
    }

    /// Writes one line, on disk before this returns.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn record(&mut self, id: &ExecutionId, event: Event<'_>) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|meta| meta.len() > SIZE_MAX) {
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            self.seen[1] = std::mem::take(&mut self.seen[0]);
        }
        let mut line = serde_json::to_vec(&Line { time: unix_now(), execution: id.as_str(), event })?;
        line.push(b'\n');
        self.append(&line)?;
        self.seen[0].insert(id.number());
        Ok(())
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        file.write_all(bytes)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_remembered_across_restarts_rotation_and_half_a_line() {
        let temp = tempfile::tempdir().unwrap();
        let id = |n: u8| ExecutionId::try_from(format!("{n:08X}-3d0e-4b1c-9a77-1f2e3d4c5b6a")).unwrap();
        let event = || Event::Rejected { command: "flush", reason: "no" };
        let mut audit = Audit::open(temp.path()).unwrap();
        audit.record(&id(0xa), event()).unwrap();
        fs::rename(temp.path().join("audit.jsonl"), temp.path().join("audit.jsonl.1")).unwrap();
        fs::write(temp.path().join("audit.jsonl"), "{\"time\":1,\"exec").unwrap();
        let mut audit = Audit::open(temp.path()).unwrap();
        assert!(audit.has(&id(0xa)) && !audit.has(&id(0xb)));
        audit.record(&id(0xb), event()).unwrap();
        let audit = Audit::open(temp.path()).unwrap();
        let lower = ExecutionId::try_from(id(0xb).canonical()).unwrap();
        assert!(audit.has(&id(0xa)) && audit.has(&id(0xb)) && audit.has(&lower));
    }
}
