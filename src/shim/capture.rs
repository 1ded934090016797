//! The pipe threads: bytes of the command's output become text, lines, and segments in the `output` file.
//!
//! A thread only reads, decodes and appends. It never stops reading: if the disk does not take the text, the text is
//! counted and dropped, because a command must not be held up by its own log.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::execution::Missing;
use crate::execution::segment::{self, Stream};
use crate::execution::store::ExecutionDir;
use crate::timer::unix_now;

/// Read at once. Escaped in the worst way, a block becomes a segment of 192 KiB, which fits into a chunk.
const BLOCK: usize = 32 * 1024;
/// How many times as long as the command's own bytes the record may be at most. Only lines of a few characters need more:
/// each has a time of its own.
const OVERHEAD_MAX: u64 = 4;

/// The pipe threads of one command.
pub struct Capture {
    readers: Receiver<()>,
    open: usize,
    output: Arc<Mutex<Output>>,
    /// What still comes is read and dropped.
    ended: Arc<AtomicBool>,
}

impl Capture {
    /// Starts a thread for each pipe that `child` has. No more than `limit` bytes of its output are kept.
    ///
    /// # Errors
    /// The `output` file cannot be opened, or no thread can be started.
    pub fn start(child: &mut Child, dir: &ExecutionDir, limit: u64) -> io::Result<Self> {
        let (done, readers) = mpsc::channel();
        let output = Arc::new(Mutex::new(Output::open(dir, limit)?));
        let mut capture = Self { readers, open: 0, output, ended: Arc::default() };
        if let Some(pipe) = child.stdout.take() {
            capture.start_one(pipe, Stream::Stdout, &done)?;
        }
        if let Some(pipe) = child.stderr.take() {
            capture.start_one(pipe, Stream::Stderr, &done)?;
        }
        Ok(capture)
    }

    fn start_one(
        &mut self,
        pipe: impl Read + Send + 'static,
        stream: Stream,
        done: &Sender<()>,
    ) -> io::Result<()> {
        let recorder = Recorder {
            output: Arc::clone(&self.output),
            stream,
            decoder: Decoder::default(),
            missing: Missing::default(),
        };
        let (ended, done) = (Arc::clone(&self.ended), done.clone());
        let read = move || {
            capture(pipe, recorder, &ended);
            let _ = done.send(());
        };
        thread::Builder::new().stack_size(256 * 1024).spawn(read)?;
        self.open += 1;
        Ok(())
    }

    /// Waits until all pipes are at their ends or `until` comes. Nothing is recorded after that.
    pub fn end(&mut self, until: Instant) -> Missing {
        while self.open > 0 {
            match self.readers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => self.open -= 1,
                Err(RecvTimeoutError::Disconnected) => self.open = 0,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        self.ended.store(true, Ordering::SeqCst);
        lock(&self.output).missing
    }

    /// Whether a background process holds a pipe still.
    pub fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Waits for the end of the pipes.
    pub fn wait(&self) {
        while self.readers.recv().is_ok() {}
    }
}

fn capture(mut pipe: impl Read, mut recorder: Recorder, ended: &AtomicBool) {
    let mut block = vec![0; BLOCK];
    loop {
        match pipe.read(&mut block) {
            Ok(0) => break,
            Ok(_) if ended.load(Ordering::SeqCst) => {}
            Ok(n) => recorder.take(&block[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    if !ended.load(Ordering::SeqCst) {
        recorder.finish();
    }
}

/// The `output` file, for both streams: only one writes at a time, so a write that fails is taken back as a whole.
struct Output {
    dir: ExecutionDir,
    file: File,
    length: u64,
    /// How much of the command's own bytes is in it.
    kept: u64,
    limit: u64,
    /// Of both streams.
    missing: Missing,
}

impl Output {
    fn open(dir: &ExecutionDir, limit: u64) -> io::Result<Self> {
        let file = dir.appender()?;
        let length = file.metadata()?.len();
        Ok(Self { dir: dir.clone(), file, length, kept: 0, limit, missing: Missing::default() })
    }

    fn is_full(&self) -> bool {
        self.kept >= self.limit || self.length >= self.limit.saturating_mul(OVERHEAD_MAX)
    }

    /// Appends `lines`, or nothing of them.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(lines);
        match &written {
            Ok(()) => self.length += lines.len() as u64,
            Err(_) => _ = self.file.set_len(self.length),
        }
        written
    }
}

/// A thread that panics holds nothing that could be half done.
fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends one stream's segments to the file, and keeps account of what could not be written.
struct Recorder {
    output: Arc<Mutex<Output>>,
    stream: Stream,
    decoder: Decoder,
    /// What no line says anything about yet.
    missing: Missing,
}

impl Recorder {
    fn take(&mut self, bytes: &[u8]) {
        let output = Arc::clone(&self.output);
        let mut output = lock(&output);
        let count = bytes.len() as u64;
        if output.is_full() {
            output.missing.beyond_limit += count;
            self.missing.beyond_limit += count;
            return;
        }
        let (mut lines, in_line) = self.notice(output.limit);
        self.decoder.feed(bytes, unix_now(), self.stream, &mut lines);
        match output.append(&lines) {
            Ok(()) => {
                output.kept += count;
                self.missing = Missing::default();
            }
            Err(_) => {
                output.missing.lost += count;
                self.missing.lost += count;
                self.decoder.in_line = in_line;
            }
        }
    }

    fn finish(mut self) {
        let output = Arc::clone(&self.output);
        let mut output = lock(&output);
        let (mut lines, _) = self.notice(output.limit);
        if self.missing.beyond_limit == 0 {
            self.decoder.finish(unix_now(), self.stream, &mut lines);
        }
        if output.append(&lines).is_err() {
            // It is the last word: for that there is a reserve. Without room even so, it is counted all the same.
            output.dir.release_reserve();
            let _ = output.append(&lines);
        }
    }

    /// What stands before the next segments if something is missing; and whether the stream was within a line before.
    fn notice(&mut self, limit: u64) -> (Vec<u8>, bool) {
        let (mut lines, in_line) = (Vec::new(), self.decoder.in_line);
        let Missing { lost, beyond_limit } = self.missing;
        let mut texts = Vec::new();
        if lost > 0 {
            texts.push(format!("[{lost} bytes of output are missing here: the disk did not take them]\n"));
        }
        if beyond_limit > 0 {
            texts.push(format!("[{beyond_limit} bytes of output are missing here: it is longer than the {limit} bytes of MAX_OUTPUT_BYTES]\n"));
        }
        for text in texts {
            if std::mem::take(&mut self.decoder.in_line) {
                segment::write(&mut lines, self.stream, None, "\n");
            }
            segment::write_text(&mut lines, self.stream, unix_now(), &text);
        }
        (lines, in_line)
    }
}

/// Bytes to text to segments, one stream's: UTF-8 repaired, `\r\n` and `\r` made `\n`, cut after each newline.
///
/// The result does not depend on how the bytes are cut into blocks, but for the cuts between segments of one line.
#[derive(Default)]
struct Decoder {
    /// The beginning of a character whose other bytes have not come yet.
    partial: Vec<u8>,
    /// The last character was `\r` and became a newline: a `\n` that follows is a part of it.
    after_cr: bool,
    /// The last segment left its line unfinished.
    in_line: bool,
}

impl Decoder {
    fn feed(&mut self, bytes: &[u8], now: f64, stream: Stream, lines: &mut Vec<u8>) {
        let joined;
        let bytes = if self.partial.is_empty() {
            bytes
        } else {
            joined = [&self.partial, bytes].concat();
            &joined
        };
        let mut text = String::with_capacity(bytes.len());
        let mut partial = Vec::new();
        for chunk in bytes.utf8_chunks() {
            self.push(chunk.valid(), &mut text);
            let rest = chunk.invalid();
            if is_beginning_of_a_character(rest) && rest.as_ptr_range().end == bytes.as_ptr_range().end {
                partial = rest.to_vec();
            } else if !rest.is_empty() {
                self.push("\u{fffd}", &mut text);
            }
        }
        self.partial = partial;
        self.segment(&text, now, stream, lines);
    }

    fn finish(&mut self, now: f64, stream: Stream, lines: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.partial.clear();
            self.segment("\u{fffd}", now, stream, lines);
        }
    }

    /// Appends valid text with its newlines and NULs replaced.
    fn push(&mut self, valid: &str, text: &mut String) {
        let mut rest = valid;
        if self.after_cr && !rest.is_empty() {
            rest = rest.strip_prefix('\n').unwrap_or(rest);
            self.after_cr = false;
        }
        // Nearly all text has neither, and to look for one byte at a time is many times faster than for any of two.
        while rest.contains('\r') || rest.contains('\0') {
            let Some(at) = rest.find(['\r', '\0']) else { break };
            text.push_str(&rest[..at]);
            let is_cr = rest.as_bytes()[at] == b'\r';
            text.push(if is_cr { '\n' } else { '\u{fffd}' });
            rest = &rest[at + 1..];
            if is_cr {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix('\n').unwrap_or(rest);
            }
        }
        text.push_str(rest);
    }

    fn segment(&mut self, text: &str, now: f64, stream: Stream, lines: &mut Vec<u8>) {
        let timestamp = segment::timestamp(now);
        for piece in text.split_inclusive('\n') {
            segment::write(lines, stream, (!self.in_line).then_some(&*timestamp), piece);
            self.in_line = !piece.ends_with('\n');
        }
    }
}

/// Whether more bytes could make `bytes`, which are no UTF-8, a character.
fn is_beginning_of_a_character(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that the segments of `pieces`, read one after the other, hold.
    fn decoded(pieces: &[&[u8]]) -> String {
        let mut decoder = Decoder::default();
        let mut lines = Vec::new();
        for piece in pieces {
            decoder.feed(piece, 1.0, Stream::Stdout, &mut lines);
        }
        decoder.finish(2.0, Stream::Stdout, &mut lines);
        let mut in_line = false;
        let mut text = String::new();
        for line in lines.split_inclusive(|b| *b == b'\n') {
            let segment = segment::Segment::parse(line).unwrap();
            assert_eq!(segment.continues_a_line(), in_line);
            let content: String = serde_json::from_str(segment.content.get()).unwrap();
            assert!(!content.is_empty() && !content.strip_suffix('\n').unwrap_or(&content).contains('\n'));
            in_line = !content.ends_with('\n');
            text.push_str(&content);
        }
        text
    }

    #[test]
    fn the_text_is_the_same_however_the_bytes_are_cut() {
        let nasty = b"a\xc3\xbc\r\n\r\r\n\n\xe2\x82\xac\xff\xf0\x9f\x98\x80\0\xe2\x82\r\xf0\x9f\x98z\n\xed\xa0\x80end\xe2\x82";
        let whole = String::from_utf8_lossy(nasty)
            .replace("\r\n", "\n")
            .replace('\r', "\n")
            .replace('\0', "\u{fffd}");
        for first in 0..=nasty.len() {
            for second in first..=nasty.len() {
                let pieces = [&nasty[..first], &nasty[first..second], &nasty[second..]];
                assert_eq!(decoded(&pieces), whole, "cut at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = nasty.chunks(1).collect();
        assert_eq!(decoded(&bytes), whole);
    }

    #[test]
    fn every_byte_value_becomes_text() {
        let all: Vec<u8> = (0..=255).collect();
        let text = decoded(&[&all]);
        assert!(text.contains("\u{fffd}") && !text.contains(['\0', '\r']));
    }

    #[test]
    fn a_line_has_the_time_of_its_first_character() {
        let mut decoder = Decoder::default();
        let mut lines = Vec::new();
        decoder.feed(b"Pass", 1.0, Stream::Stderr, &mut lines);
        decoder.feed(b"word: \nnext", 2.0, Stream::Stderr, &mut lines);
        let times: Vec<String> = lines
            .split_inclusive(|b| *b == b'\n')
            .map(|line| segment::Segment::parse(line).unwrap().timestamp.get().to_owned())
            .collect();
        assert_eq!(times, ["1.0", "null", "2.0"]);
    }
}
