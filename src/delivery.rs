//! The way of an execution's output to the service: windows of the `output` file, cut into numbered chunks.
//!
//! A window and its first chunk number are on disk before any of it is sent, and how it is cut depends on nothing but
//! its bytes. So a number stands for the same content after any restart, and only one chunk is in memory at a time. The
//! one exception is a chunk that the service will never take: under its number goes a line that says so.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::execution::segment::{Segment, Stream};
use crate::execution::store::{Cursor, ExecutionDir, FORMAT};

/// How much of `output` goes into one chunk, or one of each stream, in bytes. On the wire it is never longer than in the
/// file, so a request's body stays below 512 KiB: web servers commonly refuse more than 1 MiB.
const CHUNK_BYTES: u64 = 448 * 1024;
/// No body is longer, in bytes: what stands around the segments is shorter than what stands around one in the file.
const BODY_MAX: usize = 512 * 1024;
/// Read at once, in bytes.
const BLOCK: usize = 64 * 1024;
/// How much of `output` one cursor stands for, in bytes: each is synced to disk, which takes a millisecond or more.
const WINDOW_BYTES: u64 = 8 * CHUNK_BYTES;
/// While little is printed, output is collected for this long before it is sent.
const COLLECT: Duration = Duration::from_millis(200);

/// One request's worth of output: a JSON body with its number in it.
pub struct Chunk {
    pub number: u64,
    pub body: String,
    stream: Stream,
    /// It says that the text of its number was refused.
    is_notice: bool,
}

/// The body is made of what stands in the file as JSON: serde's structs would need all segments at once, and two more
/// copies of each.
impl Chunk {
    fn begin(number: u64, first: &Segment<'_>) -> Self {
        // It is mapped as a whole, and only what is used of it takes memory.
        let mut body = String::with_capacity(BODY_MAX);
        body.push_str(&format!("{{\"chunk_number\":{number},\"segments\":["));
        let mut chunk = Self { number, body, stream: first.stream, is_notice: false };
        chunk.push(first);
        chunk
    }

    /// Appends a segment; text that continues the line before it joins that line.
    fn push(&mut self, segment: &Segment<'_>) {
        const END: &str = "\"}";
        let body = &mut self.body;
        let is_first = !body.ends_with(END);
        if segment.continues_a_line() && !is_first {
            body.truncate(body.len() - END.len());
            body.push_str(segment.inner());
            body.push_str(END);
        } else {
            body.push_str(if is_first { "{\"timestamp\":" } else { ",{\"timestamp\":" });
            body.push_str(segment.timestamp.get());
            body.push_str(",\"content\":");
            body.push_str(segment.content.get());
            body.push('}');
        }
    }

    fn end(&mut self) {
        self.body.push_str(&format!("],\"is_stderr\":{}}}", self.stream == Stream::Stderr));
    }
}

/// How far the delivery of one execution's output has come.
pub struct Delivery {
    cursor: Cursor,
    /// Where the window goes on behind the chunks that have been cut.
    position: u64,
    /// Where the chunks that have been cut begin.
    cut_from: u64,
    /// The number of the next chunk to be cut.
    number: u64,
    chunks: VecDeque<Chunk>,
    /// The file's length when nothing but half a line was left in it.
    dry_at: Option<u64>,
    last_window: Option<Instant>,
    /// The service knows the execution no more: its output goes nowhere.
    abandoned: bool,
}

impl Delivery {
    /// Goes on where `cursor` says. What of its window was acknowledged before is sent again, under its old numbers.
    pub fn resume(cursor: Cursor) -> Self {
        Self {
            cursor,
            position: cursor.start,
            cut_from: cursor.start,
            number: cursor.number,
            chunks: VecDeque::new(),
            dry_at: None,
            last_window: None,
            abandoned: false,
        }
    }

    /// The cursor of an execution of which nothing was sent yet.
    pub fn beginning() -> Cursor {
        Cursor { version: FORMAT, number: 1, start: 0, end: 0 }
    }

    /// When there is something to send, given the length of `output` now; `None` if all of it is delivered.
    pub fn due(&self, now: Instant, length: u64, ended: bool) -> Option<Instant> {
        if self.abandoned {
            return None;
        }
        if !self.chunks.is_empty() || self.position < self.cursor.end {
            return Some(now);
        }
        if length <= self.cursor.end || self.dry_at == Some(length) {
            return None;
        }
        let at_once = ended || length - self.cursor.end >= CHUNK_BYTES;
        Some(self.last_window.filter(|_| !at_once).map_or(now, |last| last + COLLECT))
    }

    /// When a window was last begun; the execution that has waited longest goes first.
    pub fn last_window(&self) -> Option<Instant> {
        self.last_window
    }

    /// The chunk to send next, its window on disk.
    ///
    /// # Errors
    /// `output` cannot be read, or the cursor not be written; nothing is changed then.
    pub fn next(&mut self, dir: &ExecutionDir, now: Instant) -> io::Result<Option<&Chunk>> {
        while self.chunks.is_empty() {
            let Some(output) = open(dir, self.position < self.cursor.end)? else { return Ok(None) };
            if self.position >= self.cursor.end && !self.begin_window(dir, &output, now)? {
                return Ok(None);
            }
            self.cut(output)?;
        }
        Ok(self.chunks.front())
    }

    /// How many bytes of `output` need not be sent any more; the cursor on disk may stand for fewer.
    pub fn delivered(&self) -> u64 {
        match &self.chunks {
            _ if self.abandoned => u64::MAX,
            none if none.is_empty() => self.position,
            _ => self.cut_from,
        }
    }

    /// The number of the chunk that `next` gave.
    pub fn sending(&self) -> Option<u64> {
        self.chunks.front().map(|chunk| chunk.number)
    }

    /// The service has the chunk that `next` gave, or will never take it.
    pub fn done_with_chunk(&mut self) {
        self.chunks.pop_front();
    }

    /// Records that all is delivered, so that a restart before `complete` is answered does not send the end again.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn finish(&mut self, dir: &ExecutionDir) -> io::Result<()> {
        let cursor = Cursor { number: self.number, start: self.cursor.end, ..self.cursor };
        if cursor != self.cursor {
            dir.write_cursor(cursor)?;
            self.cursor = cursor;
        }
        Ok(())
    }

    /// The service will never take the chunk that `next` gave. So that no number is missing and the loss is seen, a
    /// line that says so goes in its place; a line that is refused itself is given up.
    pub fn chunk_refused(&mut self, unix: f64, why: &str) {
        let Some(refused) = self.chunks.front_mut() else { return };
        if refused.is_notice {
            self.chunks.pop_front();
            return;
        }
        // Our own JSON; if it could not be read, the notice would only be less exact.
        let mut body: Value = serde_json::from_str(&refused.body).unwrap_or_default();
        let segments = body["segments"].as_array().map(Vec::as_slice).unwrap_or_default();
        let texts: Vec<&str> = segments.iter().filter_map(|segment| segment["content"].as_str()).collect();
        let length: usize = texts.iter().map(|text| text.len()).sum();
        let newline = if texts.last().is_some_and(|text| !text.ends_with('\n')) { "" } else { "\n" };
        let continues_a_line = segments.first().is_some_and(|first| first["timestamp"].is_null());
        let content =
            format!("[djangocommand: the service refused {length} bytes of output here: {why}]{newline}");
        body["segments"] = json!([{"timestamp": (!continues_a_line).then_some(unix), "content": content}]);
        refused.body = body.to_string();
        refused.is_notice = true;
    }

    /// The service does not want the output any more.
    pub fn abandon(&mut self) {
        self.chunks.clear();
        self.abandoned = true;
    }

    fn begin_window(&mut self, dir: &ExecutionDir, output: &File, now: Instant) -> io::Result<bool> {
        let start = self.cursor.end;
        let length = output.metadata()?.len();
        let limit = length.min(start + WINDOW_BYTES);
        let Some(end) = end_of_last_line(output, start, limit)? else {
            self.dry_at = Some(length);
            return Ok(false);
        };
        output.sync_data()?;
        let cursor = Cursor { version: FORMAT, number: self.number, start, end };
        dir.write_cursor(cursor)?;
        self.cursor = cursor;
        self.position = start;
        self.last_window = Some(now);
        Ok(true)
    }

    /// Cuts the next whole lines of the window into a chunk for each stream that is in them.
    fn cut(&mut self, mut output: File) -> io::Result<()> {
        let size = CHUNK_BYTES.min(self.cursor.end - self.position);
        output.seek(SeekFrom::Start(self.position))?;
        let mut input = BufReader::with_capacity(BLOCK, output.take(size));
        let mut chunks: Vec<Chunk> = Vec::new();
        let (mut line, mut whole) = (Vec::new(), 0);
        while input.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            whole += line.len() as u64;
            if let Some(segment) = Segment::parse(&line) {
                match chunks.iter_mut().find(|chunk| chunk.stream == segment.stream) {
                    Some(chunk) => chunk.push(&segment),
                    None => chunks.push(Chunk::begin(self.number + chunks.len() as u64, &segment)),
                }
            }
            line.clear();
        }
        if input.get_ref().limit() > 0 {
            // What the cursor stands for is not there any more.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunks.iter_mut().for_each(Chunk::end);
        self.number += chunks.len() as u64;
        self.chunks.extend(chunks);
        self.cut_from = self.position;
        // A piece of this size without a newline is nothing that a shim wrote: it is passed over.
        self.position += if whole > 0 { whole } else { size };
        Ok(())
    }
}

/// The length of an execution's output file now, in bytes.
pub fn length(dir: &ExecutionDir) -> u64 {
    std::fs::metadata(dir.output_path()).map_or(0, |meta| meta.len())
}

/// `None` while nothing was ever written; if a window stands for some of it (`must_exist`), that is an error.
fn open(dir: &ExecutionDir, must_exist: bool) -> io::Result<Option<File>> {
    match File::open(dir.output_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Ok(None),
        opened => opened.map(Some),
    }
}

fn read(file: &File, start: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut block = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut block, start)?;
    Ok(block)
}

/// The length of the part of `block` that consists of whole lines.
fn last_newline(block: &[u8]) -> Option<usize> {
    block.iter().rposition(|b| *b == b'\n').map(|at| at + 1)
}

/// Where the last whole line between `start` and `limit` ends; a line that is just being written is left alone.
fn end_of_last_line(file: &File, start: u64, limit: u64) -> io::Result<Option<u64>> {
    let mut end = limit;
    while end > start {
        let from = start.max(end.saturating_sub(BLOCK as u64));
        if let Some(whole) = last_newline(&read(file, from, end - from)?) {
            return Ok(Some(from + whole as u64));
        }
        end = from;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::segment;
    use std::fs;

    fn dir_with(output: &[u8]) -> (tempfile::TempDir, ExecutionDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = ExecutionDir::open(temp.path().to_owned());
        fs::write(dir.output_path(), output).unwrap();
        (temp, dir)
    }

    /// All chunks that a delivery from the beginning makes now, acknowledging each.
    fn all(delivery: &mut Delivery, dir: &ExecutionDir) -> Vec<(u64, String)> {
        let mut chunks = Vec::new();
        while let Some(chunk) = delivery.next(dir, Instant::now()).unwrap() {
            chunks.push((chunk.number, chunk.body.clone()));
            delivery.done_with_chunk();
        }
        chunks
    }

    fn lines(count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..count {
            let stream = if i % 3 == 0 { Stream::Stderr } else { Stream::Stdout };
            segment::write(
                &mut bytes,
                stream,
                Some(&segment::timestamp(1.5)),
                &format!("line {i} \u{fffd}\"\\ {}\n", "x".repeat(i % 200)),
            );
        }
        bytes
    }

    #[test]
    fn stdout_and_stderr_of_a_window_become_a_chunk_each_and_pieces_of_a_line_one_segment() {
        let mut output = Vec::new();
        segment::write(&mut output, Stream::Stdout, Some(&segment::timestamp(1.25)), "a \"q\"");
        segment::write(&mut output, Stream::Stderr, Some(&segment::timestamp(1.5)), "err\n");
        segment::write(&mut output, Stream::Stdout, None, " b\n");
        let (_temp, dir) = dir_with(&output);
        let chunks = all(&mut Delivery::resume(Delivery::beginning()), &dir);
        assert_eq!(chunks, [
            (
                1,
                r#"{"chunk_number":1,"segments":[{"timestamp":1.25,"content":"a \"q\" b\n"}],"is_stderr":false}"#.into()
            ),
            (2, r#"{"chunk_number":2,"segments":[{"timestamp":1.5,"content":"err\n"}],"is_stderr":true}"#.into()),
        ]);
    }

    #[test]
    fn a_line_that_is_being_written_waits_and_garbage_is_passed_over() {
        let mut output = b"no json\n".to_vec();
        segment::write(&mut output, Stream::Stdout, Some(&segment::timestamp(1.0)), "whole\n");
        let whole = output.len() as u64;
        output.extend(b"{\"stream\":\"stdout\",\"timest");
        let (_temp, dir) = dir_with(&output);
        let mut delivery = Delivery::resume(Delivery::beginning());
        assert_eq!(all(&mut delivery, &dir).len(), 1);
        assert_eq!(dir.cursor().unwrap().unwrap().end, whole);
        assert_eq!(delivery.due(Instant::now(), length(&dir), true), None);
        assert!(delivery.due(Instant::now(), length(&dir) + 1, true).is_some());
    }

    #[test]
    fn each_line_is_in_one_chunk_wherever_the_first_chunk_ends_in_it() {
        let line = |text: &str| {
            let mut bytes = Vec::new();
            segment::write(&mut bytes, Stream::Stdout, Some(&segment::timestamp(1.5)), text);
            bytes
        };
        let size = usize::try_from(CHUNK_BYTES).unwrap();
        for beyond in 0..4 {
            let first = "x".repeat(size - 2 * line("").len() + beyond);
            let (_temp, dir) = dir_with(&[line(&first), line(""), line("last")].concat());
            let chunks = all(&mut Delivery::resume(Delivery::beginning()), &dir);
            let lines: Vec<String> = chunks
                .iter()
                .flat_map(|(_, body)| {
                    let body: Value = serde_json::from_str(body).unwrap();
                    let segments = body["segments"].as_array().unwrap().clone();
                    segments.into_iter().map(|segment| segment["content"].as_str().unwrap().to_owned())
                })
                .collect();
            assert_eq!(lines, [&*first, "", "last"], "{beyond} bytes beyond");
        }
    }

    #[test]
    fn output_that_a_cursor_stands_for_and_that_is_gone_is_an_error() {
        let (_temp, dir) = dir_with(&lines(10));
        Delivery::resume(Delivery::beginning()).next(&dir, Instant::now()).unwrap();
        let resumed = || Delivery::resume(dir.cursor().unwrap().unwrap());
        for left in [length(&dir) - 1, 10, 0] {
            let output = File::options().write(true).open(dir.output_path()).unwrap();
            output.set_len(left).unwrap();
            assert!(resumed().next(&dir, Instant::now()).is_err(), "{left} bytes are left");
        }
    }

    #[test]
    fn after_a_restart_at_any_chunk_a_number_stands_for_the_same_content() {
        let (_temp, dir) = dir_with(&lines(30_000));
        let truth = all(&mut Delivery::resume(Delivery::beginning()), &dir);
        assert!(truth.len() > 20, "{}", truth.len());
        for restart_after in (0..truth.len()).step_by(3) {
            fs::remove_file(dir.path().join("cursor.json")).unwrap();
            let mut delivery = Delivery::resume(Delivery::beginning());
            for _ in 0..restart_after {
                delivery.next(&dir, Instant::now()).unwrap().unwrap();
                delivery.done_with_chunk();
            }
            delivery.next(&dir, Instant::now()).unwrap().unwrap();
            let resumed = dir.cursor().unwrap().unwrap();
            let rest = all(&mut Delivery::resume(resumed), &dir);
            let first = usize::try_from(resumed.number).unwrap() - 1;
            assert!(first <= restart_after && restart_after < first + 18);
            assert!(rest[..] == truth[first..], "restarted after {restart_after}");
        }
    }

    #[test]
    fn no_body_is_larger_than_half_a_mebibyte_however_the_text_is_escaped() {
        let mut output = Vec::new();
        for text in
            ["\u{1}".repeat(32 * 1024), "\u{fffd}".repeat(32 * 1024), "\n".to_owned(), "x".repeat(32 * 1024)]
        {
            for _ in 0..40 {
                segment::write(
                    &mut output,
                    Stream::Stdout,
                    Some(&segment::timestamp(1_795_375_272.123_456)),
                    &text,
                );
            }
        }
        let (_temp, dir) = dir_with(&output);
        let chunks = all(&mut Delivery::resume(Delivery::beginning()), &dir);
        assert!(chunks.iter().all(|(_, body)| body.len() <= 512 * 1024));
        let segments = |body: &String| {
            serde_json::from_str::<Value>(body).unwrap()["segments"].as_array().unwrap().len()
        };
        assert_eq!(chunks.iter().map(|(_, body)| segments(body)).sum::<usize>(), 160);
    }

    #[test]
    fn a_line_in_place_of_a_refused_chunk_keeps_its_number_and_the_lines_around_it() {
        let mut output = Vec::new();
        let time = segment::timestamp(1.5);
        segment::write(&mut output, Stream::Stderr, Some(&time), "begun");
        let (_temp, dir) = dir_with(&output);
        let mut delivery = Delivery::resume(Delivery::beginning());
        delivery.next(&dir, Instant::now()).unwrap();
        delivery.done_with_chunk();
        segment::write(&mut output, Stream::Stderr, None, " and ended\n");
        segment::write(&mut output, Stream::Stderr, Some(&time), "begun again");
        fs::write(dir.output_path(), output).unwrap();
        delivery.next(&dir, Instant::now()).unwrap();
        delivery.chunk_refused(2.5, "too large");
        let notice = delivery.next(&dir, Instant::now()).unwrap().unwrap();
        let body: Value = serde_json::from_str(&notice.body).unwrap();
        let content = "[djangocommand: the service refused 22 bytes of output here: too large]";
        let segments = json!([{"timestamp": null, "content": content}]);
        assert_eq!(body, json!({"chunk_number": 2, "segments": segments, "is_stderr": true}));
        delivery.chunk_refused(2.5, "too large");
        assert!(delivery.next(&dir, Instant::now()).unwrap().is_none());
    }

    #[test]
    fn little_output_is_collected_and_much_or_the_last_is_sent_at_once() {
        let (_temp, dir) = dir_with(&lines(1));
        let now = Instant::now();
        let mut delivery = Delivery::resume(Delivery::beginning());
        assert_eq!(delivery.due(now, length(&dir), false), Some(now));
        delivery.next(&dir, now).unwrap();
        delivery.done_with_chunk();
        let end = length(&dir);
        assert_eq!(delivery.due(now, end, false), None);
        assert_eq!(delivery.due(now, end + 10, false), Some(now + COLLECT));
        assert_eq!(delivery.due(now, end + 10, true), Some(now));
        assert_eq!(delivery.due(now, end + CHUNK_BYTES, false), Some(now));
    }
}
