//! The pipe threads: bytes of the command's output become text, lines, and segments in the `output` file.
//!
//! A thread only reads, decodes and appends. It never stops reading: if the disk does not take the text, the text is
//! counted and dropped, because a command must not be held up by its own log.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::value::RawValue;

use crate::execution::segment::{self, Stream};
use crate::execution::store::ExecutionDir;
use crate::execution::{Missing, Printed};
use crate::mask::{Mask, Masker};
use crate::timer::unix_now;

/// Read at once, in bytes.
const BLOCK: usize = 32 * 1024;
/// Decoded at once, in bytes: empty lines become sixty times as long.
const PIECE: usize = 2 * 1024;
/// Appended at once, in bytes, or a piece more: what a block of usual lines becomes.
const APPENDED: usize = 64 * 1024;
/// How many times as long as the command's own bytes the record may be at most. Only lines of a few characters need more:
/// each has a time of its own.
const OVERHEAD_MAX: u64 = 4;

/// The pipe threads of one command.
pub struct Capture {
    readers: Receiver<()>,
    open: usize,
    output: Arc<Mutex<Output>>,
}

impl Capture {
    /// Starts a thread for each pipe that `child` has. No more than `limit` bytes of its output are kept, and of what `mask`
    /// masks nothing.
    ///
    /// # Errors
    /// The `output` file cannot be opened, or no thread can be started.
    pub fn start(child: &mut Child, dir: &ExecutionDir, limit: u64, mask: Mask) -> io::Result<Self> {
        let (done, readers) = mpsc::channel();
        let output = Arc::new(Mutex::new(Output::open(dir, limit, mask)?));
        let mut capture = Self { readers, open: 0, output };
        if let Some(pipe) = child.stdout.take() {
            capture.start_one(OwnedFd::from(pipe).into(), Stream::Stdout, &done)?;
        }
        if let Some(pipe) = child.stderr.take() {
            capture.start_one(OwnedFd::from(pipe).into(), Stream::Stderr, &done)?;
        }
        Ok(capture)
    }

    fn start_one(&mut self, pipe: File, stream: Stream, done: &Sender<()>) -> io::Result<()> {
        let (output, done) = (Arc::clone(&self.output), done.clone());
        let read = move || {
            read_to_end(pipe, stream, &output);
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
        lock(&self.output).end()
    }

    /// Tries once more to say what the disk did not take at the end.
    ///
    /// # Errors
    /// It still does not.
    pub fn say_last_words(&self) -> io::Result<()> {
        lock(&self.output).say_last_words()
    }

    /// How much has been printed until the end.
    pub fn printed(&self) -> Printed {
        lock(&self.output).printed
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

fn read_to_end(mut pipe: File, stream: Stream, output: &Mutex<Output>) {
    let mut block = vec![0; BLOCK];
    loop {
        match pipe.read(&mut block) {
            Ok(0) => break,
            Ok(n) => lock(output).take(stream, &block[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lock(output).finish(stream);
}

/// A thread that panics holds nothing that could be half done.
fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `output` file, for both streams: only one writes at a time, so a write that fails is taken back as a whole.
struct Output {
    dir: ExecutionDir,
    file: File,
    length: u64,
    /// How much of the command's own bytes is in it.
    kept: u64,
    limit: u64,
    stdout: Decoder,
    stderr: Decoder,
    /// Of both streams.
    missing: Missing,
    /// The last words, as long as the disk does not take them.
    unsaid: Vec<u8>,
    printed: Printed,
    /// Empty, but its memory is kept for the segments that come next.
    lines: Vec<u8>,
    /// How the command ended is being written down: what still comes is dropped.
    ended: bool,
}

impl Output {
    fn open(dir: &ExecutionDir, limit: u64, mask: Mask) -> io::Result<Self> {
        let file = dir.appender()?;
        let length = file.metadata()?.len();
        let mask = Arc::new(mask);
        let [stdout, stderr] = [Stream::Stdout, Stream::Stderr].map(|stream| Decoder::new(stream, &mask));
        let missing = Missing::default();
        Ok(Self {
            dir: dir.clone(),
            file,
            length,
            kept: 0,
            limit,
            stdout,
            stderr,
            missing,
            unsaid: Vec::new(),
            printed: Printed::default(),
            lines: Vec::new(),
            ended: false,
        })
    }

    /// Records what a command has written, or counts it if it cannot be recorded.
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if self.ended {
            return;
        }
        match stream {
            Stream::Stdout => self.printed.stdout += bytes.len() as u64,
            Stream::Stderr => self.printed.stderr += bytes.len() as u64,
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = if self.kept >= self.limit || self.length >= self.limit.saturating_mul(OVERHEAD_MAX) {
                self.missing.beyond_limit += rest.len() as u64;
                self.decoder(stream).missing.beyond_limit += rest.len() as u64;
                rest.len()
            } else {
                self.record(stream, rest)
            };
            rest = &rest[count..];
        }
    }

    /// Decodes and appends some of `bytes`, or counts them as lost. Returns how many.
    fn record(&mut self, stream: Stream, bytes: &[u8]) -> usize {
        let (limit, now) = (self.limit, segment::timestamp(unix_now()));
        let mut lines = std::mem::take(&mut self.lines);
        let decoder = self.decoder(stream);
        let (unsaid, in_line) = (decoder.missing, decoder.in_line);
        decoder.notice(limit, &mut lines);
        let mut count = 0;
        for piece in bytes.chunks(PIECE) {
            decoder.feed(piece, &now, &mut lines);
            count += piece.len();
            if lines.len() >= APPENDED {
                break;
            }
        }
        if self.dir.check_room(&self.file, lines.len()).and_then(|()| self.append(&lines)).is_ok() {
            self.kept += count as u64;
        } else {
            self.missing.lost += count as u64;
            let decoder = self.decoder(stream);
            decoder.in_line = in_line;
            decoder.missing = Missing { lost: unsaid.lost + count as u64, ..unsaid };
        }
        lines.clear();
        self.lines = lines;
        count
    }

    /// The stream is at its end. To say it twice changes nothing.
    fn finish(&mut self, stream: Stream) {
        if self.ended {
            return;
        }
        let limit = self.limit;
        let decoder = self.decoder(stream);
        let mut lines = Vec::new();
        decoder.finish(&segment::timestamp(unix_now()), &mut lines);
        decoder.notice(limit, &mut lines);
        self.unsaid.append(&mut lines);
        if self.say_last_words().is_err() {
            // For them there is a reserve. Without room even so, they wait for some with the command's end.
            self.dir.release_reserve();
            let _ = self.say_last_words();
        }
    }

    fn say_last_words(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.unsaid);
        self.append(&lines).inspect_err(|_| self.unsaid = lines)
    }

    /// Nothing is recorded any more, whoever goes on writing. Returns what is missing.
    fn end(&mut self) -> Missing {
        self.finish(Stream::Stdout);
        self.finish(Stream::Stderr);
        self.ended = true;
        self.missing
    }

    fn decoder(&mut self, stream: Stream) -> &mut Decoder {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
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

/// Bytes to text to segments, one stream's: UTF-8 repaired, `\r\n` and `\r` made `\n`, cut after each newline.
///
/// The result does not depend on how the bytes are cut into blocks, but for the cuts between segments of one line.
struct Decoder {
    stream: Stream,
    /// The beginning of a character whose other bytes have not come yet.
    partial: Vec<u8>,
    /// The last character was `\r` and became a newline: a `\n` that follows is a part of it.
    after_cr: bool,
    masker: Masker,
    /// The last segment left its line unfinished.
    in_line: bool,
    /// What no line says anything about yet.
    missing: Missing,
}

impl Decoder {
    fn new(stream: Stream, mask: &Arc<Mask>) -> Self {
        let (masker, missing) = (Masker::new(Arc::clone(mask)), Missing::default());
        Self { stream, partial: Vec::new(), after_cr: false, masker, in_line: false, missing }
    }

    /// What stands before the next segments if something is missing.
    fn notice(&mut self, limit: u64, lines: &mut Vec<u8>) {
        let Missing { lost, beyond_limit } = std::mem::take(&mut self.missing);
        let mut texts = Vec::new();
        if lost > 0 {
            texts.push(format!("[{lost} bytes of output are missing here: the disk did not take them]\n"));
        }
        if beyond_limit > 0 {
            texts.push(format!("[{beyond_limit} bytes of output are missing here: it is longer than the {limit} bytes of MAX_OUTPUT_BYTES]\n"));
        }
        for text in texts {
            if std::mem::take(&mut self.in_line) {
                segment::write(lines, self.stream, None, "\n");
            }
            segment::write_text(lines, self.stream, &segment::timestamp(unix_now()), &text);
        }
    }

    fn feed(&mut self, bytes: &[u8], now: &RawValue, lines: &mut Vec<u8>) {
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
        let text = self.masker.feed(text);
        self.segment(&text, now, lines);
    }

    fn finish(&mut self, now: &RawValue, lines: &mut Vec<u8>) {
        let mut text = String::new();
        if !self.partial.is_empty() {
            self.partial.clear();
            text = self.masker.feed("\u{fffd}".to_owned());
        }
        text.push_str(&self.masker.finish());
        self.segment(&text, now, lines);
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

    fn segment(&mut self, mut text: &str, now: &RawValue, lines: &mut Vec<u8>) {
        if self.in_line && !text.is_empty() {
            let rest_of_line = text.split_inclusive('\n').next().unwrap_or_default();
            segment::write(lines, self.stream, None, rest_of_line);
            self.in_line = !rest_of_line.ends_with('\n');
            text = &text[rest_of_line.len()..];
        }
        if !text.is_empty() {
            segment::write_text(lines, self.stream, now, text);
            self.in_line = !text.ends_with('\n');
        }
    }
}

/// Whether more bytes could make `bytes`, which are no UTF-8, a character.
fn is_beginning_of_a_character(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The text that the segments of `pieces`, read one after the other, hold.
#[cfg(any(test, fuzzing))]
pub fn text_of(pieces: &[&[u8]], mask: Mask) -> String {
    let mut decoder = Decoder::new(Stream::Stdout, &Arc::new(mask));
    let mut lines = Vec::new();
    for piece in pieces {
        decoder.feed(piece, &segment::timestamp(1.0), &mut lines);
    }
    decoder.finish(&segment::timestamp(2.0), &mut lines);
    let mut in_line = false;
    let mut text = String::new();
    for line in lines.split_inclusive(|b| *b == b'\n') {
        let segment = segment::Segment::parse(line).expect("each line is a segment");
        assert_eq!(segment.continues_a_line(), in_line);
        let content: String = serde_json::from_str(segment.content.get()).expect("the content is a text");
        assert!(!content.is_empty() && !content.strip_suffix('\n').unwrap_or(&content).contains('\n'));
        in_line = !content.ends_with('\n');
        text.push_str(&content);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pieces: &[&[u8]]) -> String {
        text_of(pieces, Mask::default())
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
        let mut decoder = Decoder::new(Stream::Stdout, &Arc::default());
        let mut lines = Vec::new();
        decoder.feed(b"Pass", &segment::timestamp(1.0), &mut lines);
        decoder.feed(b"word: \nnext", &segment::timestamp(2.0), &mut lines);
        let times: Vec<String> = lines
            .split_inclusive(|b| *b == b'\n')
            .map(|line| segment::Segment::parse(line).unwrap().timestamp.get().to_owned())
            .collect();
        assert_eq!(times, ["1.0", "null", "2.0"]);
    }

    /// A stream's text in a directory's `output`.
    fn recorded(dir: &ExecutionDir, stream: Stream) -> String {
        let bytes = std::fs::read(dir.output_path()).unwrap();
        let lines = bytes.split_inclusive(|b| *b == b'\n');
        let segments = lines.map(|line| segment::Segment::parse(line).unwrap());
        let of_stream = segments.filter(|segment| segment.stream == stream);
        of_stream.map(|segment| serde_json::from_str::<String>(segment.content.get()).unwrap()).collect()
    }

    #[test]
    fn a_character_that_is_half_there_at_the_end_is_recorded_and_nothing_after_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = ExecutionDir::open(temp.path().to_owned());
        let mut output = Output::open(&dir, u64::MAX, Mask::default()).unwrap();
        output.take(Stream::Stdout, b"half: \xe2\x82");
        output.take(Stream::Stderr, b"ended\xc3");
        output.finish(Stream::Stderr);
        assert_eq!(output.end(), Missing::default());
        output.take(Stream::Stdout, b"\xac and more");
        output.finish(Stream::Stdout);
        assert_eq!(recorded(&dir, Stream::Stdout), "half: \u{fffd}");
        assert_eq!(recorded(&dir, Stream::Stderr), "ended\u{fffd}");
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted_for_each_stream_and_said_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = ExecutionDir::open(temp.path().to_owned());
        let mut output = Output::open(&dir, 4, Mask::default()).unwrap();
        output.take(Stream::Stdout, b"kept\xe2");
        output.take(Stream::Stdout, b"\x82\xac, no");
        output.take(Stream::Stderr, b"no");
        output.finish(Stream::Stdout);
        assert_eq!(output.end(), Missing { lost: 0, beyond_limit: 8 });
        output.take(Stream::Stderr, b"after the end");
        assert_eq!(output.printed, Printed { stdout: 11, stderr: 2 });
        let said = |count| {
            format!(
                "[{count} bytes of output are missing here: it is longer than the 4 bytes of MAX_OUTPUT_BYTES]\n"
            )
        };
        assert_eq!(recorded(&dir, Stream::Stdout), format!("kept\u{fffd}\n{}", said(6)));
        assert_eq!(recorded(&dir, Stream::Stderr), said(2));
    }
}
