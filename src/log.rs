//! The runner's log: one line a record, on standard error or in a file of its own.
//!
//! It decides the level, the shape of a line and the size of the file, not what is said. Text from elsewhere (the
//! server, a command) is common in messages, so control characters never reach the terminal as such.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// The log of a detached runner, in its state directory.
pub const FILE_NAME: &str = "runner.log";
/// A file that is larger is moved aside; the last two are kept.
const FILE_MAX: u64 = 10 * 1024 * 1024;

/// How much is said: the number after `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Level {
    Error = 0,
    Warning = 1,
    Info = 2,
    Debug = 3,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

impl Level {
    /// The level of `-v N`.
    pub fn from_number(number: &str) -> Option<Self> {
        match number {
            "0" => Some(Self::Error),
            "1" => Some(Self::Warning),
            "2" => Some(Self::Info),
            "3" => Some(Self::Debug),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The priority that syslog has for it.
    fn priority(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `2026-11-22 19:21:12 warning text`
    Stamped,
    /// `warning text`, for a supervisor that notes the time itself.
    Plain,
    /// Plain, with the priority in front that journald takes off again: `journalctl -p warning` goes by it.
    Journal,
}

/// Where records go, and in what shape.
struct Sink {
    format: Format,
    /// On a terminal, warnings and errors may be coloured.
    is_coloured: bool,
    /// `None` is standard error.
    file: Option<LogFile>,
}

static SINK: Mutex<Sink> = Mutex::new(Sink { format: Format::Stamped, is_coloured: false, file: None });

/// Sets what is said from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Relaxed);
}

/// Sets what lines look like from now on.
pub fn set_format(format: Format) {
    sink().format = format;
}

/// Colours what is urgent from now on, if standard error is a terminal and the user `may` have it so.
pub fn set_coloured(may: bool) {
    sink().is_coloured = may && io::stderr().is_terminal();
}

/// Whether standard error leads to the journal, by `$JOURNAL_STREAM`: the device and inode of the stream that systemd
/// connected. A variable that was only inherited names another stream.
pub fn is_journal(journal_stream: Option<&str>) -> bool {
    let Ok(ours) = io::stderr().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata()) else {
        return false;
    };
    journal_stream.is_some_and(|stream| stream == format!("{}:{}", ours.dev(), ours.ino()))
}

/// Makes records go to the end of the file at `path` from now on.
///
/// # Errors
/// The file cannot be made or opened; records go where they went before.
pub fn write_to_file(path: PathBuf) -> io::Result<()> {
    let file = LogFile::open(path)?;
    sink().file = Some(file);
    Ok(())
}

/// Whether records go to a file.
pub fn is_file() -> bool {
    sink().file.is_some()
}

/// Makes standard output and standard error the log's file, now and after each rotation: what anybody else writes there,
/// such as the message of a panic, is found in the log.
///
/// # Errors
/// The log has no file, or the kernel refuses.
pub fn take_over_output() -> io::Result<()> {
    let mut sink = sink();
    let log = sink.file.as_mut().ok_or_else(|| io::Error::other("the log has no file"))?;
    sys::redirect_output(&log.file)?;
    log.is_output = true;
    Ok(())
}

/// The name that the log at `path` has after `age` rotations: 1 or 2.
pub fn rotated(path: &Path, age: u8) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

/// Writes one record. A log that cannot be written is no reason to stop, so that error is dropped.
pub fn record(level: Level, message: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Relaxed) {
        return;
    }
    let text = printable(&message.to_string());
    let mut sink = sink();
    let format = sink.format;
    let line = line(format, level, &text);
    match &mut sink.file {
        Some(log) => log.record(format, line.as_bytes()),
        None => {
            let line = if sink.is_coloured { coloured(level, line) } else { line };
            drop(io::stderr().lock().write_all(line.as_bytes()));
        }
    }
}

/// What is urgent, in red or yellow.
fn coloured(level: Level, line: String) -> String {
    match level {
        Level::Error => format!("\x1b[31m{}\x1b[0m\n", line.trim_end()),
        Level::Warning => format!("\x1b[33m{}\x1b[0m\n", line.trim_end()),
        Level::Info | Level::Debug => line,
    }
}

/// Writes each line of `text` as a record of its own.
pub fn record_lines(level: Level, text: &str) {
    text.lines().for_each(|line| record(level, format_args!("{line}")));
}

fn line(format: Format, level: Level, text: &str) -> String {
    let name = level.name();
    match format {
        Format::Stamped => {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let now = sys::local_time(i64::try_from(seconds).unwrap_or(0));
            format!("{now} {name:<7} {text}\n")
        }
        Format::Plain => format!("{name} {text}\n"),
        Format::Journal => format!("<{}>{name} {text}\n", level.priority()),
    }
}

/// After a panic elsewhere the sink is as good as before.
fn sink() -> MutexGuard<'static, Sink> {
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log in a file, which is moved aside when it is large. Another runner may be writing to it: during a hand-over there
/// are two for an instant.
struct LogFile {
    path: PathBuf,
    file: File,
    /// Standard output and standard error are this file too.
    is_output: bool,
    /// How many records the disk did not take since the last that it did.
    missing: u64,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = open_to_append(&path)?;
        Ok(Self { path, file, is_output: false, missing: 0 })
    }

    /// Writes a record, and before it how many are missing there.
    fn record(&mut self, format: Format, text: &[u8]) {
        let missing = self.missing;
        let notice = || {
            line(
                format,
                Level::Warning,
                &format!("{missing} line(s) are missing here: the disk did not take them"),
            )
        };
        if missing > 0 && self.write(notice().as_bytes()) {
            self.missing = 0;
        }
        self.missing += u64::from(!self.write(text));
    }

    /// Whether the disk has taken it.
    fn write(&mut self, line: &[u8]) -> bool {
        if let Ok(ours) = self.file.metadata() {
            // It may have been moved aside by another runner, or removed by somebody who was tidying up.
            let is_at_path = fs::metadata(&self.path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
            if !is_at_path || (ours.len() > FILE_MAX && self.move_aside()) {
                self.reopen();
            }
        }
        self.file.write_all(line).is_ok()
    }

    /// Whether there is room for a new file now.
    fn move_aside(&self) -> bool {
        let first = rotated(&self.path, 1);
        // There may be none yet. If it cannot be moved, losing it is better than a file that grows without end.
        let _ = fs::rename(&first, rotated(&self.path, 2));
        fs::rename(&self.path, first).is_ok()
    }

    /// Goes on with the old file if there can be no new one.
    fn reopen(&mut self) {
        let Ok(file) = open_to_append(&self.path) else { return };
        self.file = file;
        if self.is_output {
            let _ = sys::redirect_output(&self.file);
        }
    }
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `text` on one line, with control characters written as escapes.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The same for JSON, which stays what it is. It leaves the control characters beyond ASCII as they are, and to a
/// terminal some of them are as good as an escape. Its own newlines stay.
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_harmful(c) && c != '\n' {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a character does something to a line instead of standing in it: controls, and what turns the direction of
/// writing, so that a line does not read as it stands there. All of them are below U+10000.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

macro_rules! error {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Error, format_args!($($arg)*)) };
}
macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Warning, format_args!($($arg)*)) };
}
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Info, format_args!($($arg)*)) };
}
macro_rules! debug {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Debug, format_args!($($arg)*)) };
}
pub(crate) use {debug, error, info, warning};

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(directory: &Path) -> LogFile {
        LogFile::open(directory.join(FILE_NAME)).unwrap()
    }

    fn read(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).unwrap()
    }

    /// Nothing is stored for the size: the file has a hole at its beginning.
    fn make_too_large(log: &LogFile) {
        log.file.set_len(FILE_MAX + 1).unwrap();
    }

    #[test]
    fn a_message_cannot_move_the_cursor_or_forge_a_line() {
        assert_eq!(printable("a\n2026 info fake\x1b[2J"), "a\\n2026 info fake\\u{1b}[2J");
        assert_eq!(printable("\u{202e}hsulf ü"), "\\u{202e}hsulf ü");
        assert_eq!(printable_json("{\n\"\u{9b}31m\u{2066}\"}"), "{\n\"\\u009b31m\\u2066\"}");
    }

    #[test]
    fn a_line_has_a_time_or_none_or_a_priority() {
        let stamped = line(Format::Stamped, Level::Info, "text");
        assert!(stamped.starts_with("20") && &stamped[19..] == " info    text\n", "{stamped}");
        assert_eq!(line(Format::Plain, Level::Info, "text"), "info text\n");
        let levels = [Level::Error, Level::Warning, Level::Info, Level::Debug];
        let lines: String = levels.map(|level| line(Format::Journal, level, "text")).concat();
        assert_eq!(lines, "<3>error text\n<4>warning text\n<6>info text\n<7>debug text\n");
    }

    #[test]
    fn standard_error_is_the_journal_only_if_it_is_the_stream_that_systemd_named() {
        let ours = fs::metadata("/proc/self/fd/2").unwrap();
        let (dev, ino) = (ours.dev(), ours.ino());
        assert!(is_journal(Some(&format!("{dev}:{ino}"))));
        assert!(!is_journal(None));
        for other in [format!("{dev}:{}", ino + 1), format!("{}:{ino}", dev + 1), ":".into(), "x".into()] {
            assert!(!is_journal(Some(&other)), "{other}");
        }
    }

    #[test]
    fn a_log_in_a_file_is_private_and_goes_on_where_it_ended() {
        let temp = tempfile::tempdir().unwrap();
        in_file(temp.path()).write(b"one\n");
        in_file(temp.path()).write(b"two\n");
        assert_eq!(read(temp.path(), "runner.log"), "one\ntwo\n");
        assert_eq!(fs::metadata(temp.path().join("runner.log")).unwrap().mode() & 0o777, 0o600);
        assert!(LogFile::open(temp.path().join("missing/runner.log")).is_err());
    }

    #[test]
    fn a_large_file_is_moved_aside_and_two_old_ones_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = in_file(temp.path());
        for text in ["one\n", "two\n", "three\n", "four\n"] {
            log.write(text.as_bytes());
            make_too_large(&log);
        }
        log.write(b"five\n");
        assert_eq!(read(temp.path(), "runner.log"), "five\n");
        assert!(read(temp.path(), "runner.log.1").starts_with("four\n"));
        assert!(read(temp.path(), "runner.log.2").starts_with("three\n"));
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 3);
    }

    #[test]
    fn two_writers_move_a_large_file_aside_once_and_go_on_in_the_same_new_one() {
        let temp = tempfile::tempdir().unwrap();
        let (mut leaving, mut coming) = (in_file(temp.path()), in_file(temp.path()));
        leaving.write(b"old\n");
        make_too_large(&leaving);
        leaving.write(b"from one\n");
        coming.write(b"from the other\n");
        assert_eq!(read(temp.path(), "runner.log"), "from one\nfrom the other\n");
        assert!(!temp.path().join("runner.log.2").exists());
    }

    #[test]
    fn a_file_that_was_removed_is_made_again_as_soon_as_its_directory_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("state");
        fs::create_dir(&directory).unwrap();
        let mut log = in_file(&directory);
        fs::remove_file(directory.join("runner.log")).unwrap();
        log.write(b"one\n");
        assert_eq!(read(&directory, "runner.log"), "one\n");
        fs::remove_dir_all(&directory).unwrap();
        log.write(b"into the void\n");
        fs::create_dir(&directory).unwrap();
        log.write(b"two\n");
        assert_eq!(read(&directory, "runner.log"), "two\n");
    }

    #[test]
    fn without_room_for_a_new_file_the_old_one_goes_on_and_no_older_one_is_lost() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = in_file(temp.path());
        log.write(b"one\n");
        make_too_large(&log);
        fs::write(temp.path().join("runner.log.2"), "older\n").unwrap();
        // A file and a directory cannot take each other's place.
        fs::create_dir(temp.path().join("runner.log.1")).unwrap();
        log.write(b"two\n");
        assert!(read(temp.path(), "runner.log").ends_with("two\n"));
        assert_eq!(read(temp.path(), "runner.log.2"), "older\n");
    }
}
