//! One line of the `output` file: a piece of one stream's text, cut after each newline.
//!
//! The shim writes such lines, delivery reads them. Timestamp and text are kept as the JSON they were written as, so
//! that what goes over the wire is what stands on the disk, and a long output is not decoded only to be encoded again.

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of `output` as it stands there.
#[derive(Deserialize)]
pub struct Segment<'a> {
    pub stream: Stream,
    /// Unix time at which the line's first character arrived; `null` where the text continues an unfinished line.
    #[serde(borrow)]
    pub timestamp: &'a RawValue,
    #[serde(borrow)]
    pub content: &'a RawValue,
}

impl<'a> Segment<'a> {
    /// Reads one line, with or without its newline. `None` for what no version of this program wrote.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub fn continues_a_line(&self) -> bool {
        self.timestamp.get() == "null"
    }
}

/// A text's JSON without its quotes.
pub fn inner(json: &RawValue) -> &str {
    let json = json.get();
    json.get(1..json.len() - 1).unwrap_or_default()
}

/// A Unix time as it stands in segments: written once for all the lines that came at that time.
pub fn timestamp(unix: f64) -> Box<RawValue> {
    // A number is always JSON; the clock gives none that is not finite.
    serde_json::value::to_raw_value(&unix).unwrap_or_default()
}

/// Appends one segment to `lines`. Without a timestamp it continues the stream's unfinished line.
pub fn write(lines: &mut Vec<u8>, stream: Stream, timestamp: Option<&RawValue>, content: &str) {
    // The frame is written by hand: for lines of usual length serde's structs made the shim a third slower.
    let frame: &[u8] = match stream {
        Stream::Stdout => b"{\"stream\":\"stdout\",\"timestamp\":",
        Stream::Stderr => b"{\"stream\":\"stderr\",\"timestamp\":",
    };
    lines.extend_from_slice(frame);
    lines.extend_from_slice(timestamp.map_or("null", RawValue::get).as_bytes());
    lines.extend_from_slice(b",\"content\":");
    let written = serde_json::to_writer(&mut *lines, content);
    debug_assert!(written.is_ok(), "a Vec takes all that is written, and a text is always JSON");
    lines.extend_from_slice(b"}\n");
}

/// Appends `text` as segments, cut after each newline, all with the same Unix time.
pub fn write_text(lines: &mut Vec<u8>, stream: Stream, unix: f64, text: &str) {
    let timestamp = timestamp(unix);
    for line in text.split_inclusive('\n') {
        write(lines, stream, Some(&timestamp), line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        let mut lines = Vec::new();
        write(&mut lines, Stream::Stderr, Some(&timestamp(1_795_375_272.123_456)), "ü \"x\"\t\n");
        write(&mut lines, Stream::Stdout, None, "rest");
        let mut read = lines.split_inclusive(|b| *b == b'\n').map(|line| Segment::parse(line).unwrap());
        let first = read.next().unwrap();
        assert_eq!((first.stream, first.timestamp.get()), (Stream::Stderr, "1795375272.123456"));
        assert_eq!(inner(first.content), r#"ü \"x\"\t\n"#);
        let second = read.next().unwrap();
        assert!(second.continues_a_line());
        assert_eq!((second.stream, inner(second.content)), (Stream::Stdout, "rest"));
    }

    #[test]
    fn a_torn_line_is_no_segment() {
        let mut line = Vec::new();
        write(&mut line, Stream::Stdout, Some(&timestamp(1.0)), "text\n");
        for cut in 0..line.len() - 1 {
            assert!(Segment::parse(&line[..cut]).is_none(), "{cut}");
        }
    }
}
