//! The directory of one execution: its files, and the order in which they may come to be.
//!
//! | file | written by | says |
//! | --- | --- | --- |
//! | `spec.json` | runner, before `start` is sent | what to run |
//! | `cursor.json` | runner, once `start` is accepted | which bytes of `output` the next chunk numbers stand for |
//! | `shim.lock` | held by the shim for life | that somebody looks after the command; its PID |
//! | `output` | shim | segments, append only |
//! | `exit.json` | shim, once | how it ended |
//! | `reserve` | runner, first of all | nothing: room for the others when the disk is full |
//!
//! The JSON files come by rename, synced, so that each is there whole or not at all, after a loss of power too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::segment::{self, Segment, Stream};
use super::{ExecutionId, Missing, Outcome, Printed};
use crate::sys;

/// The version of everything in an execution's directory. A runner leaves a directory of a higher one alone.
pub const FORMAT: u32 = 1;

/// How much room is set aside in each directory, in bytes: for two small files and two lines of output.
const RESERVE: u64 = 32 * 1024;

/// How much of `output` is read at a time, from its end.
const BLOCK: u64 = 64 * 1024;

/// A directory whose execution is done for; what a crash leaves of it is removed at the next start.
const DONE_SUFFIX: &str = ".done";

/// `spec.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    pub version: u32,
    pub id: ExecutionId,
    pub command: String,
    /// The service that asked for it, and nobody else, is told of it.
    #[serde(default)]
    pub server: Option<String>,
    pub task: Task,
}

/// What is to be done about an execution.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Run(Process),
    /// Policy refused it: this text is its output, and there is nothing that could be started.
    Reject {
        reason: String,
        text: String,
    },
}

/// The process that the shim starts, approved by policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub argv: Vec<String>,
    pub directory: String,
    /// Set as `DJANGO_SETTINGS_MODULE`; the rest of the environment is the runner's.
    pub settings_module: Option<String>,
    /// Seconds; `None` for no limit.
    pub timeout: Option<f64>,
    /// stdout and stderr go to `/dev/null`.
    pub metadata_only: bool,
    /// What it prints beyond that is counted, not kept.
    #[serde(default = "unlimited")]
    pub max_output_bytes: u64,
    /// What the shim records goes to syslog as well.
    #[serde(default)]
    pub audit_syslog: bool,
}

/// What a version without a limit has written.
fn unlimited() -> u64 {
    u64::MAX
}

/// `cursor.json`: the bytes `start..end` of `output` are being sent in chunks from `number` on.
///
/// How they are cut into chunks depends on nothing else, so a number stands for the same content after any restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub version: u32,
    pub number: u64,
    pub start: u64,
    pub end: u64,
}

/// `exit.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exit {
    pub version: u32,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long the process ran, in seconds.
    pub duration: f64,
    #[serde(default)]
    pub missing: Missing,
    /// `None` if nobody counted it.
    #[serde(default)]
    pub printed: Option<Printed>,
    /// Why, if it did not end by itself, or never began.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Exit {
    /// It never began, or nobody saw how it ended.
    pub fn failed(reason: &str) -> Self {
        let (outcome, missing) = (Outcome::FAILED, Missing::default());
        let reason = Some(reason.to_owned());
        Self { version: FORMAT, outcome, duration: 0.0, missing, printed: None, reason }
    }
}

/// Who looks after the command.
pub enum Keeper {
    /// Nobody ever did. The lock is ours now; given to a shim, it never becomes free in between.
    Nobody(File),
    /// A shim did, and died.
    Dead,
    /// A shim that holds the lock. Its PID is missing for an instant, until it has written it.
    Alive(Option<u32>),
}

/// An execution's directory on disk.
#[derive(Debug, Clone)]
pub struct ExecutionDir {
    path: PathBuf,
}

impl ExecutionDir {
    /// Makes the directory with its `spec.json`, synced.
    ///
    /// # Errors
    /// It exists already, or the disk does not take it; then nothing is left behind.
    pub fn create(executions: &Path, spec: &Spec) -> io::Result<Self> {
        let dir = Self { path: executions.join(spec.id.canonical()) };
        fs::DirBuilder::new().mode(0o700).create(&dir.path)?;
        let written =
            dir.write("spec.json", spec).and_then(|()| dir.reserve()).and_then(|()| sync_dir(executions));
        if written.is_err() {
            dir.unmake();
        }
        written.map(|()| dir)
    }

    /// By names alone: where there is no free descriptor, `remove_dir_all` would leave it, and nobody could take the
    /// execution again.
    fn unmake(&self) {
        for name in ["spec.json", "spec.json.tmp", "reserve"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::remove_dir(&self.path);
    }

    /// A directory that is there.
    pub fn open(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directories below `executions` that are named by an id; nothing else there is ours to touch.
    ///
    /// # Errors
    /// `executions` cannot be read.
    pub fn list(executions: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(executions)? {
            let path = entry?.path();
            if is_id(&path.file_name().unwrap_or_default().to_string_lossy()) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found.into_iter().map(|path| Self { path }).collect())
    }

    /// Removes what a crash has left of finished executions.
    ///
    /// # Errors
    /// `executions` cannot be read.
    pub fn clean(executions: &Path) -> io::Result<()> {
        for entry in fs::read_dir(executions)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.strip_suffix(DONE_SUFFIX).is_some_and(is_id) {
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// `NotFound` if a crash came before it was written: then nothing was ever sent for this execution.
    pub fn spec(&self) -> io::Result<Spec> {
        // First of all the version: nothing else need be where this one looks for it.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match self.read("spec.json")? {
            Versioned { version } if version > FORMAT => {
                Err(io::Error::other(format!("a newer version wrote it (format {version})")))
            }
            _ => self.read("spec.json"),
        }
    }

    /// `None` until the service has accepted `start`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn cursor(&self) -> io::Result<Option<Cursor>> {
        optional(self.read("cursor.json"))
    }

    /// # Errors
    /// The disk does not take it.
    pub fn write_cursor(&self, cursor: Cursor) -> io::Result<()> {
        self.write("cursor.json", &cursor)
    }

    /// `None` while the execution has not ended.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn exit(&self) -> io::Result<Option<Exit>> {
        optional(self.read("exit.json"))
    }

    /// Puts on disk what others have done here last: what is told of it must still hold after a loss of power.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn sync(&self) -> io::Result<()> {
        sync_dir(&self.path)
    }

    /// Writes how it ended, after all output is on disk.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        if let Ok(output) = File::open(self.output_path()) {
            output.sync_data()?;
        }
        self.write("exit.json", exit)
    }

    /// Who looks after the command, asked of the lock: neither PIDs nor times can tell.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn keeper(&self) -> io::Result<Keeper> {
        let path = self.path.join("shim.lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let (mut file, read_only) = match options.open(&path) {
            // A shim that lives can be found and asked all the same.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => match File::open(path) {
                Ok(file) => (file, Some(error)),
                Err(_) => return Err(error),
            },
            opened => (opened?, None),
        };
        let mut content = String::new();
        match file.try_lock() {
            Ok(()) => {
                file.read_to_string(&mut content)?;
                if content.is_empty() {
                    // No shim could write its PID into a file that is read-only.
                    return read_only.map_or(Ok(Keeper::Nobody(file)), Err);
                }
                // It may have died before it had synced that: after a loss of power nobody would have been here.
                file.sync_data()?;
                Ok(Keeper::Dead)
            }
            Err(TryLockError::WouldBlock) => {
                file.read_to_string(&mut content)?;
                Ok(Keeper::Alive(content.trim().parse().ok()))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The PID of the shim that once began, without touching its lock: it may be dead by now. `None`: none has begun.
    ///
    /// # Errors
    /// The lock file is there, but cannot be read.
    pub fn keeper_pid(&self) -> io::Result<Option<u32>> {
        let content = optional(fs::read_to_string(self.path.join("shim.lock")))?;
        Ok(content.and_then(|content| content.trim().parse().ok()))
    }

    pub fn output_path(&self) -> PathBuf {
        self.path.join("output")
    }

    /// Opens `output` for appending whole segments, one `write` each time.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn appender(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.output_path())
    }

    /// Makes `texts` of the runner's own the whole output so far. Only before anything was sent of it.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn write_output(&self, unix: f64, texts: &[(Stream, &str)]) -> io::Result<()> {
        let mut lines = Vec::new();
        for (stream, text) in texts {
            segment::write_text(&mut lines, *stream, &segment::timestamp(unix), text);
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.output_path())?;
        file.write_all(&lines)?;
        file.sync_data()
    }

    /// Appends text of the runner's own. Only while no shim writes: half a segment that a dead one left is cut off.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn append_text(&self, stream: Stream, timestamp: f64, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(self.output_path())?;
        let mut lines = Vec::new();
        let tail = cut_torn_tail(&mut file)?;
        // A crash or a full disk between this and `exit.json` must not make it stand there twice.
        if ends_with_text(&tail, stream, text) {
            return Ok(());
        }
        let end = file.stream_position()?;
        if leaves_a_line_open(&file, end, stream)? {
            segment::write(&mut lines, stream, None, "\n");
        }
        segment::write_text(&mut lines, stream, &segment::timestamp(timestamp), text);
        file.write_all(&lines)?;
        file.sync_data()
    }

    /// Removes the directory, so that a crash on the way cannot make it look like an unfinished execution.
    ///
    /// # Errors
    /// It cannot be renamed. What cannot be removed after that is removed at the next start.
    pub fn remove(&self) -> io::Result<()> {
        let mut done = self.path.clone().into_os_string();
        done.push(DONE_SUFFIX);
        // One of the same name may have been left where its files could not be removed.
        let _ = fs::remove_dir_all(&done);
        fs::rename(&self.path, &done)?;
        let _ = fs::remove_dir_all(done);
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let bytes = fs::read(self.path.join(name))?;
        serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Sets room aside for how it ended and how far it is delivered: its output may fill the disk.
    fn reserve(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.reserve_path())?;
        sys::allocate(&file, RESERVE).inspect_err(|_| self.release_reserve())
    }

    /// Whether output may grow by so many bytes: it must never use up the room without which nothing can be delivered, and
    /// no room be made.
    /// The reserve is set aside again if it was given away, and as much is left for what other executions gave away.
    ///
    /// # Errors
    /// There is no room for it now.
    pub fn check_room(&self, output: &File, bytes: usize) -> io::Result<()> {
        if sys::free_bytes(output) < 2 * RESERVE + bytes as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match fs::metadata(self.reserve_path()) {
            Ok(reserve) if reserve.len() >= RESERVE => Ok(()),
            _ => self.reserve(),
        }
    }

    /// Gives that room away, to whoever needs it most.
    pub fn release_reserve(&self) {
        let _ = fs::remove_file(self.reserve_path());
    }

    fn reserve_path(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// On a full disk there is the reserve for it.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        self.try_write(name, value).or_else(|_| {
            self.release_reserve();
            self.try_write(name, value)
        })
    }

    fn try_write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.tmp"));
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_data()?;
        fs::rename(&temporary, self.path.join(name))?;
        sync_dir(&self.path)
    }
}

fn is_id(name: &str) -> bool {
    ExecutionId::try_from(name.to_owned()).is_ok()
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn optional<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Whether the last segment in `tail` is `text`, a line.
fn ends_with_text(tail: &[u8], stream: Stream, text: &str) -> bool {
    let last = tail.split_inclusive(|b| *b == b'\n').next_back().and_then(Segment::parse);
    let same = |json: &str| serde_json::from_str::<String>(json).is_ok_and(|content| content == text);
    last.is_some_and(|last| last.stream == stream && same(last.content.get()))
}

/// Whether the last of `stream`'s segments before `end`, which is behind a newline, does not end its line. The other
/// stream may have written much since.
fn leaves_a_line_open(file: &File, mut end: u64, stream: Stream) -> io::Result<bool> {
    let mut beginning_missing = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut beginning_missing);
        let whole = match start {
            0 => 0,
            _ => block.iter().position(|b| *b == b'\n').map_or(block.len(), |at| at + 1),
        };
        let mut segments = block[whole..].split_inclusive(|b| *b == b'\n').filter_map(Segment::parse);
        if let Some(last) = segments.rfind(|segment| segment.stream == stream) {
            return Ok(!last.inner().ends_with("\\n"));
        }
        block.truncate(whole);
        (beginning_missing, end) = (block, start);
    }
    Ok(false)
}

/// Leaves `file` at its end, behind a newline; returns the last lines before that.
fn cut_torn_tail(file: &mut File) -> io::Result<Vec<u8>> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut tail = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        (&mut *file).take(end - start).read_to_end(&mut block)?;
        if let Some(newline) = block.iter().rposition(|b| *b == b'\n') {
            end = start + newline as u64 + 1;
            block.truncate(newline + 1);
            tail = block;
            break;
        }
        end = start;
    }
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection() -> Task {
        Task::Reject { reason: "no".into(), text: "no\n".into() }
    }

    fn new_dir(executions: &Path) -> ExecutionDir {
        let id = ExecutionId::try_from("0B8F3A52-3d0e-4b1c-9a77-1f2e3d4c5b6a".to_owned()).unwrap();
        let spec = Spec { version: FORMAT, id, command: "check".into(), server: None, task: rejection() };
        ExecutionDir::create(executions, &spec).unwrap()
    }

    #[test]
    fn a_directory_is_made_once_and_found_by_its_lower_case_id() {
        let temp = tempfile::tempdir().unwrap();
        let dir = new_dir(temp.path());
        assert!(dir.path().ends_with("0b8f3a52-3d0e-4b1c-9a77-1f2e3d4c5b6a"));
        assert_eq!(dir.spec().unwrap().command, "check");
        let again = ExecutionDir::create(temp.path(), &dir.spec().unwrap()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        dir.remove().unwrap();
        assert!(ExecutionDir::list(temp.path()).unwrap().is_empty());
    }

    #[test]
    fn half_a_segment_of_a_dead_shim_is_cut_off_before_the_runner_writes() {
        let temp = tempfile::tempdir().unwrap();
        let dir = new_dir(temp.path());
        let mut whole = Vec::new();
        segment::write(&mut whole, Stream::Stdout, Some(&segment::timestamp(1.0)), "first\n");
        for torn in ["", "{\"stream\":\"std", &format!("{{\"content\":\"{}", "x".repeat(200_000))] {
            fs::write(dir.output_path(), [&whole, torn.as_bytes()].concat()).unwrap();
            dir.append_text(Stream::Stderr, 2.0, "a\nb\n").unwrap();
            let output = fs::read(dir.output_path()).unwrap();
            let lines: Vec<_> = output.split_inclusive(|b| *b == b'\n').collect();
            assert_eq!(lines.len(), 3);
            dir.append_text(Stream::Stderr, 2.0, "b\n").unwrap();
            assert_eq!(fs::read(dir.output_path()).unwrap(), output, "the same line is not written twice");
            assert_eq!(lines[0], whole);
            assert!(lines.iter().all(|l| Segment::parse(l).is_some()));
        }
    }

    #[test]
    fn a_line_that_was_left_open_is_ended_however_far_back_that_is() {
        let timestamp = segment::timestamp(1.0);
        for (open, lines_after) in [("open", 0), ("open", 5000), (&*"x".repeat(200_000), 0)] {
            let temp = tempfile::tempdir().unwrap();
            let dir = new_dir(temp.path());
            let mut output = Vec::new();
            segment::write(&mut output, Stream::Stderr, Some(&timestamp), open);
            for _ in 0..lines_after {
                segment::write(&mut output, Stream::Stdout, Some(&timestamp), "another stream's\n");
            }
            fs::write(dir.output_path(), &output).unwrap();
            dir.append_text(Stream::Stderr, 2.0, "the end\n").unwrap();
            let appended = fs::read(dir.output_path()).unwrap().split_off(output.len());
            let contents = appended.split_inclusive(|b| *b == b'\n').filter_map(Segment::parse);
            let contents: Vec<_> = contents.map(|segment| segment.content.get().to_owned()).collect();
            assert_eq!(contents, [r#""\n""#, r#""the end\n""#], "after {lines_after} lines");
        }
    }

    #[test]
    fn the_lock_tells_nobody_from_alive_from_dead() {
        let _turn = sys::no_forks_meanwhile();
        let temp = tempfile::tempdir().unwrap();
        let dir = new_dir(temp.path());
        let Keeper::Nobody(mut held) = dir.keeper().unwrap() else { panic!("nobody ever held it") };
        assert!(matches!(dir.keeper().unwrap(), Keeper::Alive(None)));
        writeln!(held, "4711").unwrap();
        assert!(matches!(dir.keeper().unwrap(), Keeper::Alive(Some(4711))));
        drop(held);
        assert!(matches!(dir.keeper().unwrap(), Keeper::Dead));
    }
}
