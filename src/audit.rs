//! `audit.jsonl`: what this host was asked to do and what became of it, for whoever has to know later.
//!
//! One line is one JSON object, at most 256 KiB long, written in one piece and synced: before the act where there is
//! one, else when it is seen. Output never stands here, nor the key. Each line has `time` (Unix seconds) and `event`, and
//! `execution` and `command` where it is about an execution. The rest belongs to the event:
//!
//! | `event` | says | its own keys |
//! | --- | --- | --- |
//! | `offered` | the service wants it; once for each execution that there is room for | `args` (as offered), `metadata_only`, `timeout` (seconds, null: none) |
//! | `rejected` | it is about to be reported as refused | `reason`: the rule |
//! | `started` | it is about to be started | `argv`, `uid`, `interpreter`, `directory` |
//! | `signalled` | it is about to be ended | `by` (`service`, `user`, `timeout`), `signal` (`SIGTERM`, which SIGKILL follows after 5 s, or `SIGKILL`) |
//! | `ended` | how it ended | `status`, `exit_code`, `duration` (seconds), `stdout_bytes` and `stderr_bytes` (all that it printed, kept or not; null: nobody counted), `reason` if it did not end by itself |
//! | `delivered` | the service has the whole of it | `status`, `exit_code` |
//! | `key_refused` | the service has begun to refuse the key | `status` (of HTTP), `message` |
//! | `key_accepted` | it accepts the key, for the first time or again | |
//! | `configured` | what the runner goes by from now on | `version`, `project`, `interpreter`, `python_version`, `django_version`, `settings` (one text each, the key masked) |
//!
//! A text or list that is longer than its share is cut, and a key of its name with `_missing_bytes` behind it says by how
//! much. Earlier versions wrote `interrupted` where there is an `ended` with a `reason` now, and fewer keys.
//!
//! The runner writes it. Two others append lines: a shim whose command is out of time, and `stop --force`. Half a line
//! that a crash or a full disk left is ended by whoever writes next, and read by nobody.
//!
//! It is also the runner's memory: an execution that has begun here is never begun again, whether the service offers it
//! a second time by a fault or by intent. What was only offered may be.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::execution::store::{Exit, Process};
use crate::execution::{ExecutionId, Offer, Outcome, Status};
use crate::log;
use crate::syslog::{self, Severity};
use crate::timer::unix_now;

pub const FILE_NAME: &str = "audit.jsonl";
/// A file that is larger is moved aside.
const SIZE_MAX: u64 = 4 * 1024 * 1024;
/// How many are kept that were moved aside. What they hold is remembered.
const OLD_FILES: usize = 5;
/// How many offers a process remembers that it has recorded.
const OFFERS_MAX: usize = 10_000;
/// How much of a text or a list of arguments is kept, in bytes.
const TEXT_MAX: usize = 4 * 1024;
/// How much of the settings.
const SETTINGS_MAX: usize = 16 * 1024;
/// A longer line is nothing that was written here: JSON makes at most six bytes of one.
const LINE_MAX: u64 = 256 * 1024;

/// What a line is about.
#[derive(Clone, Copy, Serialize)]
pub struct Subject<'a> {
    #[serde(rename = "execution")]
    pub id: &'a ExecutionId,
    pub command: &'a str,
}

/// What is recorded.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Event<'a> {
    Offered {
        args: &'a str,
        #[serde(skip_serializing_if = "is_none")]
        args_missing_bytes: usize,
        metadata_only: bool,
        timeout: Option<f64>,
    },
    Rejected {
        reason: &'a str,
    },
    Started {
        argv: Vec<&'a str>,
        #[serde(skip_serializing_if = "is_none")]
        argv_missing_bytes: usize,
        uid: u32,
        interpreter: &'a str,
        directory: &'a str,
    },
    Signalled {
        by: Asker,
        signal: &'static str,
    },
    Ended {
        #[serde(flatten)]
        outcome: Outcome,
        duration: f64,
        stdout_bytes: Option<u64>,
        stderr_bytes: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
    Delivered {
        #[serde(flatten)]
        outcome: Outcome,
    },
    KeyRefused {
        status: u16,
        message: &'a str,
    },
    KeyAccepted {},
    Configured {
        version: &'static str,
        project: &'a str,
        interpreter: &'a str,
        python_version: &'a str,
        django_version: &'a str,
        settings: Vec<&'a str>,
        #[serde(skip_serializing_if = "is_none")]
        settings_missing_bytes: usize,
    },
}

/// Who wants a command to end.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    Service,
    User,
    Timeout,
}

fn is_none(bytes: &usize) -> bool {
    *bytes == 0
}

impl<'a> Event<'a> {
    pub fn offered(offer: &'a Offer) -> Self {
        let (args, args_missing_bytes) = cut(&offer.args, TEXT_MAX);
        let request = offer.request.as_ref().ok();
        Self::Offered {
            args,
            args_missing_bytes,
            metadata_only: request.is_some_and(|request| request.metadata_only),
            timeout: request.and_then(|request| request.timeout).map(|limit| limit.as_secs_f64()),
        }
    }

    /// `uid`: of the user that it runs as.
    pub fn started(process: &'a Process, uid: u32) -> Self {
        let (argv, argv_missing_bytes) = cut_list(&process.argv, TEXT_MAX);
        let interpreter = cut(process.argv.first().map_or("", String::as_str), TEXT_MAX).0;
        Self::Started { argv, argv_missing_bytes, uid, interpreter, directory: &process.directory }
    }

    pub fn signalled(by: Asker, is_force: bool) -> Self {
        Self::Signalled { by, signal: if is_force { "SIGKILL" } else { "SIGTERM" } }
    }

    pub fn ended(exit: &'a Exit) -> Self {
        Self::Ended {
            outcome: exit.outcome,
            duration: exit.duration,
            stdout_bytes: exit.printed.map(|printed| printed.stdout),
            stderr_bytes: exit.printed.map(|printed| printed.stderr),
            reason: exit.reason.as_deref(),
        }
    }

    /// `settings`: as the log has them.
    pub fn configured(
        project: &'a str,
        interpreter: &'a str,
        python_version: &'a str,
        django_version: &'a str,
        settings: &'a [String],
    ) -> Self {
        let (settings, settings_missing_bytes) = cut_list(settings, SETTINGS_MAX);
        let version = env!("CARGO_PKG_VERSION");
        Self::Configured {
            version,
            project,
            interpreter,
            python_version,
            django_version,
            settings,
            settings_missing_bytes,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Offered { .. } => "offered",
            Self::Rejected { .. } => "rejected",
            Self::Started { .. } => "started",
            Self::Signalled { .. } => "signalled",
            Self::Ended { .. } => "ended",
            Self::Delivered { .. } => "delivered",
            Self::KeyRefused { .. } => "key_refused",
            Self::KeyAccepted {} => "key_accepted",
            Self::Configured { .. } => "configured",
        }
    }

    fn severity(&self) -> Severity {
        match self {
            Self::Rejected { .. } | Self::Signalled { .. } | Self::KeyRefused { .. } => Severity::Notice,
            _ => Severity::Info,
        }
    }

    fn line(&self, about: Option<Subject<'_>>) -> io::Result<String> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: f64,
            event: &'static str,
            #[serde(flatten)]
            about: Option<Subject<'a>>,
            #[serde(flatten)]
            event_itself: &'a Event<'a>,
        }
        let line = Line { time: unix_now(), event: self.name(), about, event_itself: self };
        Ok(log::printable_json(&serde_json::to_string(&line)?))
    }
}

/// The beginning of `text`, at most `most` bytes, and how many bytes are missing.
fn cut(text: &str, most: usize) -> (&str, usize) {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text[..end], text.len() - end)
}

/// The first of `texts`, and how many bytes are missing; each text counts for one byte more than it has.
fn cut_list(texts: &[String], most: usize) -> (Vec<&str>, usize) {
    let mut kept = Vec::new();
    let (mut room, mut missing) = (most, 0);
    for text in texts {
        if room == 0 {
            missing += text.len() + 1;
            continue;
        }
        let (beginning, rest) = cut(text, room - 1);
        kept.push(beginning);
        missing += rest;
        room = if rest > 0 { 0 } else { room - text.len() - 1 };
    }
    (kept, missing)
}

/// The furthest that an execution has come, by what is recorded of it.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Progress {
    Offered,
    Begun,
    Ended,
}

impl Progress {
    fn at(event: &str) -> Self {
        match event {
            "offered" => Self::Offered,
            "ended" | "interrupted" | "delivered" => Self::Ended,
            _ => Self::Begun,
        }
    }
}

/// Of some thousand executions a file, so as small as can be.
type Memory = HashMap<[u8; 16], Progress>;

/// The runner's hand on it.
pub struct Audit {
    state: PathBuf,
    /// Each line goes to syslog as well.
    to_syslog: bool,
    /// What the files say, the newest first.
    files: VecDeque<Memory>,
    /// The offers that this process has recorded.
    offers: HashSet<u64>,
    is_failing: bool,
    syslog_is_failing: bool,
}

impl Audit {
    /// Reads which executions were here before.
    ///
    /// # Errors
    /// A file is there but cannot be read.
    pub fn open(state: &Path) -> io::Result<Self> {
        let mut files = VecDeque::new();
        for age in 0..=OLD_FILES {
            let mut memory = Memory::new();
            match File::open(path(state, age)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => each_line(&opened?, |line| {
                    remember(&mut memory, line);
                    Ok(())
                })?,
            }
            files.push_back(memory);
        }
        let state = state.to_owned();
        let offers = HashSet::new();
        Ok(Self { state, to_syslog: false, files, offers, is_failing: false, syslog_is_failing: false })
    }

    /// Whether each line goes to syslog as well from now on.
    pub fn set_syslog(&mut self, to_syslog: bool) {
        self.to_syslog = to_syslog;
    }

    /// Whether the execution was begun or rejected here before.
    pub fn has(&self, id: &ExecutionId) -> bool {
        self.progress(id).is_some_and(|progress| progress > Progress::Offered)
    }

    /// Whether it is recorded how the execution ended.
    pub fn has_end(&self, id: &ExecutionId) -> bool {
        self.progress(id) == Some(Progress::Ended)
    }

    fn progress(&self, id: &ExecutionId) -> Option<Progress> {
        let all = self.files.iter().filter_map(|memory| memory.get(&id.number().to_ne_bytes()).copied());
        all.reduce(|a, b| if b > a { b } else { a })
    }

    /// Records an offer before it is taken, unless the same was recorded before: it is tried at every poll. Under one id
    /// the service may offer one thing after the other.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn record_offer(&mut self, offer: &Offer) -> io::Result<()> {
        let mut hasher = DefaultHasher::new();
        (offer.id.number(), &offer.command, &offer.args).hash(&mut hasher);
        let what = hasher.finish();
        if self.offers.contains(&what) {
            return Ok(());
        }
        self.record(Subject { id: &offer.id, command: &offer.command }, &Event::offered(offer))?;
        if self.offers.len() >= OFFERS_MAX {
            self.offers.clear();
        }
        self.offers.insert(what);
        Ok(())
    }

    /// Records what must not happen unrecorded: on disk before this returns.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn record(&mut self, about: Subject<'_>, event: &Event<'_>) -> io::Result<()> {
        let line = event.line(Some(about))?;
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{e} (writing {FILE_NAME})"));
        self.append(Some(about), event, &line).map_err(named)?;
        self.is_failing = false;
        self.tell_syslog(event, &line);
        Ok(())
    }

    /// Records what has happened or must happen in any case. That it cannot be recorded is said in the log, once.
    pub fn note(&mut self, about: Option<Subject<'_>>, event: &Event<'_>) {
        let written = event.line(about).and_then(|line| {
            self.tell_syslog(event, &line);
            self.append(about, event, &line)
        });
        match written {
            Ok(()) => self.is_failing = false,
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                let what = about.map_or(String::new(), |about| format!(" of execution {}", about.id));
                log::error!(
                    "'{}'{what} cannot be recorded in '{}': {error}; the work goes on without",
                    event.name(),
                    path(&self.state, 0).display()
                );
            }
            Err(_) => {}
        }
    }

    fn append(&mut self, about: Option<Subject<'_>>, event: &Event<'_>, line: &str) -> io::Result<()> {
        if fs::metadata(path(&self.state, 0)).is_ok_and(|meta| meta.len() > SIZE_MAX) {
            self.rotate();
        }
        append(&self.state, line)?;
        if let (Some(about), Some(newest)) = (about, self.files.front_mut()) {
            advance(newest, about.id, Progress::at(event.name()));
        }
        Ok(())
    }

    /// Without room for a new file the old one goes on: a record that is too long is better than none.
    fn rotate(&mut self) {
        for age in (1..OLD_FILES).rev() {
            let _ = fs::rename(path(&self.state, age), path(&self.state, age + 1));
        }
        if fs::rename(path(&self.state, 0), path(&self.state, 1)).is_ok() {
            self.files.push_front(Memory::new());
            self.files.truncate(OLD_FILES + 1);
        }
    }

    fn tell_syslog(&mut self, event: &Event<'_>, line: &str) {
        if !self.to_syslog {
            return;
        }
        match syslog::send(event.severity(), line) {
            Ok(()) => self.syslog_is_failing = false,
            Err(error) if !std::mem::replace(&mut self.syslog_is_failing, true) => {
                log::warning!("syslog at /dev/log does not take the record: {error}; it is in '{FILE_NAME}'");
            }
            Err(_) => {}
        }
    }
}

/// Appends one line for somebody else than the runner. Whoever does that has to act in any case, so syslog's error is
/// dropped, and it gets the line even if the disk does not.
///
/// # Errors
/// The disk does not take it.
pub fn append_one(state: &Path, to_syslog: bool, about: Subject<'_>, event: &Event<'_>) -> io::Result<()> {
    let line = event.line(Some(about))?;
    if to_syslog {
        let _ = syslog::send(event.severity(), &line);
    }
    append(state, &line)
}

fn path(state: &Path, age: usize) -> PathBuf {
    state.join(if age == 0 { FILE_NAME.to_owned() } else { format!("{FILE_NAME}.{age}") })
}

/// One write for one line, so that lines of several writers cannot mix.
fn append(state: &Path, line: &str) -> io::Result<()> {
    let mut file =
        OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path(state, 0))?;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    let is_torn = last != [b'\n'];
    let bytes = format!("{}{line}\n", if is_torn { "\n" } else { "" });
    if file.write(bytes.as_bytes())? < bytes.len() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    file.sync_data()?;
    if length == 0 {
        // A loss of power must not take the name of a new file.
        File::open(state)?.sync_all()?;
    }
    Ok(())
}

fn remember(memory: &mut Memory, line: &[u8]) {
    #[derive(Deserialize)]
    struct Seen {
        execution: ExecutionId,
        event: String,
    }
    // What is about no execution, half a line, or what somebody else wrote.
    let Ok(Seen { execution, event }) = serde_json::from_slice(line) else { return };
    advance(memory, &execution, Progress::at(&event));
}

fn advance(memory: &mut Memory, id: &ExecutionId, to: Progress) {
    let progress = memory.entry(id.number().to_ne_bytes()).or_insert(to);
    if to > *progress {
        *progress = to;
    }
}

/// Calls `look` with each line of `file`. One that is too long is passed over.
fn each_line(file: &File, mut look: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    loop {
        line.clear();
        if (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.ends_with(b"\n") || (line.len() as u64) < LINE_MAX {
            look(&line)?;
        } else {
            skip_line(&mut reader)?;
        }
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let block = reader.fill_buf()?;
        if block.is_empty() {
            return Ok(());
        }
        let end = block.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(block.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// A line as it is read, whichever version wrote it: a key that it lacks is `None`.
#[derive(Deserialize)]
pub struct Record {
    pub time: f64,
    pub event: String,
    pub execution: Option<ExecutionId>,
    pub command: Option<String>,
    pub args: Option<String>,
    pub args_missing_bytes: Option<u64>,
    pub argv: Option<Vec<String>>,
    pub by: Option<String>,
    pub reason: Option<String>,
    pub exit_code: Option<i64>,
    pub duration: Option<f64>,
    pub stdout_bytes: Option<u64>,
    pub stderr_bytes: Option<u64>,
    status: Option<serde_json::Value>,
}

impl Record {
    /// How the execution ended; of a refused key the `status` is another one.
    pub fn status(&self) -> Option<Status> {
        self.status.as_ref().and_then(|status| Status::deserialize(status).ok())
    }
}

/// The whole record, for reading. Its files stay open, so that it is the same however often it is read, but for what is
/// added: rotation changes nothing but names.
pub struct Lines {
    /// The oldest first.
    files: Vec<File>,
}

impl Lines {
    /// # Errors
    /// A file is there but cannot be opened.
    pub fn open(state: &Path) -> io::Result<Self> {
        let mut files: Vec<File> = Vec::new();
        let mut known = Vec::new();
        // The newest first: a rotation in between gives files older names, so that one is met twice, but none is missed.
        for age in 0..=OLD_FILES {
            let file = match File::open(path(state, age)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let meta = file.metadata()?;
            if !known.contains(&(meta.dev(), meta.ino())) {
                known.push((meta.dev(), meta.ino()));
                files.insert(0, file);
            }
        }
        Ok(Self { files })
    }

    /// Calls `look` with each line, the oldest first. Half a line, or what nobody here wrote, is passed over.
    ///
    /// # Errors
    /// A file cannot be read, or `look` fails.
    pub fn each(&self, mut look: impl FnMut(&str, Record) -> io::Result<()>) -> io::Result<()> {
        for mut file in &self.files {
            file.rewind()?;
            each_line(file, |line| {
                let Ok(text) = std::str::from_utf8(line) else { return Ok(()) };
                let Ok(record) = serde_json::from_str(text) else { return Ok(()) };
                look(text.trim(), record)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json, value::to_raw_value};

    fn id(n: u32) -> ExecutionId {
        ExecutionId::try_from(format!("{n:08X}-3d0e-4b1c-9a77-1f2e3d4c5b6a")).unwrap()
    }

    fn record(audit: &mut Audit, n: u32, event: &Event<'_>) {
        audit.record(Subject { id: &id(n), command: "check" }, event).unwrap();
    }

    fn offer(n: u32, entry: Value) -> Offer {
        let mut entry = entry;
        entry["id"] = id(n).as_str().into();
        Offer::parse(&to_raw_value(&entry).unwrap()).unwrap()
    }

    fn each(state: &Path, mut look: impl FnMut(Record)) {
        let look = |_: &str, record: Record| {
            look(record);
            Ok(())
        };
        Lines::open(state).unwrap().each(look).unwrap();
    }

    fn file(state: &Path, age: usize) -> String {
        fs::read_to_string(path(state, age)).unwrap()
    }

    const REJECTED: Event<'_> = Event::Rejected { reason: "no" };

    #[test]
    fn what_has_begun_is_remembered_across_restarts_rotations_and_half_a_line_and_what_was_offered_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(temp.path()).unwrap();
        record(&mut audit, 1, &REJECTED);
        audit.record_offer(&offer(2, json!({"command": "check"}))).unwrap();
        audit.record_offer(&offer(2, json!({"command": "check"}))).unwrap();
        assert_eq!(file(temp.path(), 0).lines().count(), 2, "an offer is recorded once");
        fs::rename(path(temp.path(), 0), path(temp.path(), 5)).unwrap();
        fs::write(path(temp.path(), 0), "{\"time\":1,\"exec").unwrap();
        let mut audit = Audit::open(temp.path()).unwrap();
        assert!(audit.has(&id(1)) && !audit.has(&id(2)) && !audit.has(&id(3)));
        record(&mut audit, 3, &Event::Delivered { outcome: Outcome::exited(0) });
        let lower = ExecutionId::try_from(id(3).canonical()).unwrap();
        let audit = Audit::open(temp.path()).unwrap();
        assert!(audit.has(&lower) && audit.has_end(&lower) && !audit.has_end(&id(1)));
        let mut events = Vec::new();
        each(temp.path(), |line| events.push(line.event));
        assert_eq!(events, ["rejected", "offered", "delivered"], "half a line is passed over");
    }

    #[test]
    fn a_large_file_is_moved_aside_five_old_ones_are_kept_and_all_of_them_are_remembered() {
        let temp = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(temp.path()).unwrap();
        for n in 0..8 {
            record(&mut audit, n, &REJECTED);
            // A line of zeros, for which nothing is stored.
            let file = OpenOptions::new().write(true).open(path(temp.path(), 0)).unwrap();
            file.set_len(SIZE_MAX).unwrap();
            file.write_all_at(b"\n", SIZE_MAX).unwrap();
        }
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1 + OLD_FILES);
        for audit in [&audit, &Audit::open(temp.path()).unwrap()] {
            let known: Vec<u32> = (0..8).filter(|n| audit.has(&id(*n))).collect();
            assert_eq!(known, [2, 3, 4, 5, 6, 7]);
        }
        let mut ids = Vec::new();
        each(temp.path(), |line| ids.push(line.execution.unwrap().number()));
        assert_eq!(ids, (2..8).map(|n| id(n).number()).collect::<Vec<_>>(), "the oldest first");
        assert_eq!(fs::metadata(path(temp.path(), 0)).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_is_short_and_harmless_whatever_is_offered() {
        let temp = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(temp.path()).unwrap();
        let hostile = "\u{1b}[2J\u{9b}31m\u{202e}\n".repeat(100_000);
        audit.record_offer(&offer(1, json!({"command": "\u{1b}]0;x\u{7}", "args": hostile}))).unwrap();
        let process = Process {
            argv: std::iter::once("/python".to_owned()).chain((0..500_000).map(|_| String::new())).collect(),
            directory: "/".into(),
            settings_module: None,
            timeout: None,
            metadata_only: false,
            max_output_bytes: 0,
            audit_syslog: false,
        };
        record(&mut audit, 1, &Event::started(&process, 0));
        let text = file(temp.path(), 0);
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text}");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [offered, started] = &lines[..] else { panic!("{} lines", lines.len()) };
        let kept = offered["args"].as_str().unwrap();
        assert!(hostile.starts_with(kept) && kept.len() > TEXT_MAX - 4 && kept.len() <= TEXT_MAX);
        assert_eq!(offered["args_missing_bytes"], hostile.len() - kept.len());
        let argv = started["argv"].as_array().unwrap();
        assert_eq!((&argv[0], &started["interpreter"]), (&json!("/python"), &json!("/python")));
        assert_eq!(started["argv_missing_bytes"], 500_001 - argv.len());
        assert!(text.lines().all(|line| line.len() < 32 * 1024));
    }

    #[test]
    fn a_list_is_cut_where_its_share_ends() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (list, most, kept, missing) in [
            (&["ab", "cd"][..], 6, &["ab", "cd"][..], 0),
            (&["ab", "cd"], 5, &["ab", "c"], 1),
            (&["ab", "cd", "e"], 3, &["ab"], 5),
            (&["aü"], 3, &["a"], 2),
            (&["", ""], 1, &[""], 1),
        ] {
            assert_eq!(cut_list(&words(list), most), (kept.to_vec(), missing), "{list:?} {most}");
        }
    }

    #[test]
    fn a_line_too_long_for_anybody_of_us_is_passed_over_and_lines_of_earlier_versions_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let old = |event: &str| {
            format!("{{\"time\":1.5,\"execution\":\"{}\",\"event\":\"{event}\"", id(7).as_str())
        };
        let lines = [
            format!("{}}}", old(&"x".repeat(3 * LINE_MAX as usize))),
            format!("{},\"command\":\"c\",\"argv\":[\"p\",\"c\"]}}", old("started")),
            "[]".to_owned(),
            "{\"time\":2,\"event\":\"of a later version\",\"status\":401}".to_owned(),
            format!("{},\"command\":\"c\",\"exit_code\":3,\"status\":\"timed_out\"}}", old("delivered")),
            old("torn"),
        ];
        fs::write(path(temp.path(), 0), lines.join("\n")).unwrap();
        let mut read = Vec::new();
        each(temp.path(), |line| read.push((line.event.clone(), line.status(), line.exit_code)));
        let expected = [
            ("started", None, None),
            ("of a later version", None, None),
            ("delivered", Some(Status::TimedOut), Some(3)),
        ];
        assert_eq!(read, expected.map(|(event, status, code)| (event.to_owned(), status, code)));
        assert!(Audit::open(temp.path()).unwrap().has_end(&id(7)));
    }

    #[test]
    fn where_nothing_can_be_written_an_act_is_refused_and_what_is_seen_is_passed_over() {
        let temp = tempfile::tempdir().unwrap();
        let state = temp.path().join("state");
        let mut audit = Audit::open(&state).unwrap();
        let id = id(1);
        let about = Subject { id: &id, command: "check" };
        assert!(audit.record(about, &REJECTED).is_err() && !audit.has(&id));
        audit.note(None, &Event::KeyAccepted {});
        assert!(append_one(&state, false, about, &Event::signalled(Asker::Timeout, false)).is_err());
        fs::create_dir(&state).unwrap();
        audit.note(None, &Event::KeyAccepted {});
        append_one(&state, false, about, &Event::signalled(Asker::Timeout, false)).unwrap();
        let text = file(&state, 0);
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 2);
        assert_eq!((&events[0]["event"], &events[1]["by"]), (&json!("key_accepted"), &json!("timeout")));
        assert!(
            text.lines().nth(1).unwrap().contains("\"event\":\"signalled\",\"execution\":\"00000001-"),
            "{text}"
        );
    }
}
