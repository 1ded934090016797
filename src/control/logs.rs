//! `logs`: the end of a detached runner's log, and what is added to it.
//!
//! The log is one text in up to three files, and rotation renames them while they are read. So a file is known by its
//! device and inode, and stays open for as long as it is of use: until then the kernel gives its inode to no other file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use super::{Error, state_path};
use crate::cli::Place;
use crate::config::Environment;
use crate::log;
use crate::signals::Signals;

/// How often is looked for more.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How much is read at once in search of the first line.
const BLOCK: usize = 64 * 1024;

/// One file of the log. Its position is up to where it is printed.
struct Part {
    id: (u64, u64),
    file: File,
}

/// Returns the exit code.
///
/// # Errors
/// There is no log, or it cannot be read or printed.
pub fn logs(place: &Place, lines: usize, follow: bool) -> Result<u8, Error> {
    let state = state_path(place, &Environment::read())?;
    let clock = Signals::catch(&[]).map_err(|e| Error::Failed(format!("cannot wait: {e}")))?;
    let wait = |limit| {
        clock.wait(limit);
        true
    };
    show(&state, lines, follow, &mut io::stdout().lock(), wait).map(|()| 0).map_err(Error::Failed)
}

/// Prints the last `lines` lines of the log in `directory`; with `follow` goes on until `wait` says that a signal has
/// come. A reader that has gone away is no failure.
///
/// # Errors
/// There is no log, or it cannot be read or printed.
fn show(
    directory: &Path,
    lines: usize,
    follow: bool,
    out: &mut impl Write,
    wait: impl Fn(Duration) -> bool,
) -> Result<(), String> {
    let shown = directory.display();
    let failed = |error: io::Error| format!("cannot show the log in '{shown}': {error}");
    let mut parts = find(directory).map_err(failed)?;
    if parts.is_empty() {
        return Err(format!(
            "there is no log in '{shown}': a runner in the foreground writes to its terminal or supervisor"
        ));
    }
    go_back(&parts, lines).map_err(failed)?;
    let result = print_all(directory, &mut parts, out, || follow && wait(LOOK_INTERVAL));
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(()),
    }
}

/// The files of the log, the oldest first.
fn find(directory: &Path) -> io::Result<Vec<Part>> {
    let newest = directory.join(log::FILE_NAME);
    let (newer, older) = (log::rotated(&newest, 1), log::rotated(&newest, 2));
    let mut parts: Vec<Part> = Vec::new();
    // The newest first: a rotation in between gives files older names, so that one is met twice, but none is missed.
    for path in [newest, newer, older] {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        if !has(&parts, id) {
            parts.insert(0, Part { id, file });
        }
    }
    Ok(parts)
}

fn has(parts: &[Part], id: (u64, u64)) -> bool {
    parts.iter().any(|part| part.id == id)
}

/// Puts each file's position to where the last `lines` lines of them all begin.
fn go_back(parts: &[Part], mut lines: usize) -> io::Result<()> {
    let mut is_last = true;
    for mut file in parts.iter().rev().map(|part| &part.file) {
        let mut end = file.metadata()?.len();
        // Behind the very last newline no line begins.
        if is_last && end > 0 {
            end -= u64::from(lines > 0);
            is_last = false;
        }
        let begin = begin_of_lines(file, end, &mut lines)?;
        file.seek(SeekFrom::Start(begin))?;
    }
    Ok(())
}

/// Where the last `lines` lines before `end` begin; `lines` becomes how many of them are in older files.
fn begin_of_lines(file: &File, mut end: u64, lines: &mut usize) -> io::Result<u64> {
    let mut buffer = [0; BLOCK];
    while end > 0 && *lines > 0 {
        let block = &mut buffer[..usize::try_from(end).map_or(BLOCK, |end| end.min(BLOCK))];
        end -= block.len() as u64;
        file.read_exact_at(block, end)?;
        for (place, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            *lines -= 1;
            if *lines == 0 {
                return Ok(end + place as u64 + 1);
            }
        }
    }
    Ok(end)
}

/// Prints what each file has from its position on, and goes on for as long as `more` says so.
fn print_all(
    directory: &Path,
    parts: &mut Vec<Part>,
    out: &mut impl Write,
    more: impl Fn() -> bool,
) -> io::Result<()> {
    loop {
        print_rest(parts, out)?;
        if !more() {
            return Ok(());
        }
        let found = find(directory)?;
        if found.iter().all(|part| has(parts, part.id)) {
            continue;
        }
        // Whoever rotates writes to the new file only after that: this is the rest of the old one.
        print_rest(parts, out)?;
        parts.retain(|part| has(&found, part.id));
        for part in found {
            if !has(parts, part.id) {
                parts.push(part);
            }
        }
    }
}

fn print_rest(parts: &[Part], out: &mut impl Write) -> io::Result<()> {
    for mut file in parts.iter().map(|part| &part.file) {
        // Somebody may have emptied the file instead of removing it.
        if file.metadata()?.len() < file.stream_position()? {
            file.rewind()?;
        }
        io::copy(&mut file, out)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs::{self, OpenOptions};

    struct Log(tempfile::TempDir);

    impl Log {
        fn new(files: &[(&str, &str)]) -> Self {
            let log = Self(tempfile::tempdir().unwrap());
            files.iter().for_each(|(name, text)| log.append(name, text));
            log
        }

        fn append(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.0.path().join(from), self.0.path().join(to)).unwrap();
        }

        fn rotate(&self) {
            let _ = fs::rename(self.0.path().join("runner.log.1"), self.0.path().join("runner.log.2"));
            self.rename("runner.log", "runner.log.1");
        }

        fn last(&self, lines: usize) -> String {
            let mut out = Vec::new();
            show(self.0.path(), lines, false, &mut out, |_| panic!("nothing to wait for")).unwrap();
            String::from_utf8(out).unwrap()
        }

        /// What is printed while `events` happen, one at each wait.
        fn follow(&self, lines: usize, events: &[&dyn Fn()]) -> String {
            let mut out = Vec::new();
            let turn = Cell::new(0);
            let wait = |_| {
                let event = events.get(turn.replace(turn.get() + 1));
                event.inspect(|event| event()).is_some()
            };
            show(self.0.path(), lines, true, &mut out, wait).unwrap();
            String::from_utf8(out).unwrap()
        }
    }

    #[test]
    fn the_last_lines_are_shown_across_rotation() {
        let log =
            Log::new(&[("runner.log.2", "a\nb\n"), ("runner.log.1", "c\nd\n"), ("runner.log", "e\nf\n")]);
        for (lines, text) in [
            (0, ""),
            (1, "f\n"),
            (2, "e\nf\n"),
            (3, "d\ne\nf\n"),
            (5, "b\nc\nd\ne\nf\n"),
            (6, "a\nb\nc\nd\ne\nf\n"),
            (usize::MAX, "a\nb\nc\nd\ne\nf\n"),
        ] {
            assert_eq!(log.last(lines), text, "{lines}");
        }
    }

    #[test]
    fn the_newest_file_may_be_missing_or_empty_and_the_last_line_without_its_end() {
        let log = Log::new(&[("runner.log.1", "a\nb\nhalf")]);
        assert_eq!(log.last(2), "b\nhalf");
        log.append("runner.log", "");
        assert_eq!((&*log.last(0), &*log.last(1), &*log.last(9)), ("", "half", "a\nb\nhalf"));
    }

    #[test]
    fn lines_are_found_in_a_file_of_many_blocks() {
        let lines: Vec<String> = (0..50_000).map(|n| format!("line {n}\n")).collect();
        let log = Log::new(&[("runner.log.1", "old\n"), ("runner.log", &lines.concat())]);
        for n in [1, 7_000, 49_999, 50_000] {
            assert_eq!(log.last(n), lines[50_000 - n..].concat(), "{n}");
        }
        assert!(log.last(50_001).starts_with("old\nline 0\n"));
        let long = format!("{}\n", "x".repeat(3 * BLOCK));
        log.append("runner.log", &long);
        assert_eq!(log.last(1), long);
    }

    #[test]
    fn without_any_log_it_says_why() {
        let temp = tempfile::tempdir().unwrap();
        let why = show(temp.path(), 10, true, &mut Vec::new(), |_| true).unwrap_err();
        let expected = format!(
            "there is no log in '{}': a runner in the foreground writes to its terminal or supervisor",
            temp.path().display()
        );
        assert_eq!(why, expected);
    }

    #[test]
    fn what_is_appended_is_shown_once_even_in_halves() {
        let log = Log::new(&[("runner.log.1", "old\n"), ("runner.log", "a\nb\n")]);
        let shown = log.follow(
            1,
            &[&|| log.append("runner.log", "ha"), &|| {}, &|| log.append("runner.log", "lf\nc\n")],
        );
        assert_eq!(shown, "b\nhalf\nc\n");
    }

    #[test]
    fn the_rest_of_a_rotated_file_comes_before_the_new_one() {
        let log = Log::new(&[("runner.log.2", "x\n"), ("runner.log.1", "y\n"), ("runner.log", "a\n")]);
        let rotate_and_write = |rest: &str, new: &str| {
            log.append("runner.log", rest);
            log.rotate();
            log.append("runner.log", new);
        };
        let shown = log.follow(
            9,
            &[
                &|| rotate_and_write("b\n", "c\n"),
                &|| rotate_and_write("d\n", "e\n"),
                // Twice between two looks.
                &|| {
                    rotate_and_write("f\n", "g\n");
                    rotate_and_write("h\n", "i\n");
                },
                // Not there for an instant.
                &|| log.rotate(),
                &|| log.append("runner.log.1", "j\n"),
                &|| log.append("runner.log", "k\n"),
            ],
        );
        assert_eq!(shown, "x\ny\na\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\n");
    }

    #[test]
    fn a_log_that_was_removed_or_emptied_is_followed_on_and_nothing_is_shown_again() {
        let log = Log::new(&[("runner.log.2", "x\n"), ("runner.log.1", "y\n"), ("runner.log", "abc\n")]);
        let path = log.0.path().join("runner.log");
        let shown = log.follow(
            1,
            &[
                &|| fs::remove_file(&path).unwrap(),
                &|| log.append("runner.log", "d\n"),
                &|| {},
                &|| File::create(&path).map(drop).unwrap(),
                &|| log.append("runner.log", "e\n"),
            ],
        );
        assert_eq!(shown, "abc\nd\ne\n");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_but_a_full_disk_is() {
        struct Fails(io::ErrorKind);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::new(&[("runner.log", "a\n")]);
        let show_to = |kind| show(log.0.path(), 1, true, &mut Fails(kind), |_| true);
        assert_eq!(show_to(io::ErrorKind::BrokenPipe), Ok(()));
        assert!(show_to(io::ErrorKind::StorageFull).unwrap_err().starts_with("cannot show the log in '"));
    }
}
