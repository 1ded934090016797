//! One line of the `output` file: a piece of one stream's text, cut after each newline.
//!
//! The shim writes such lines, delivery reads them. Timestamp and text are kept as the JSON they were written as, so
//! that what goes over the wire is what stands on the disk, and a long output is not decoded only to be encoded again.

use serde_json::value::RawValue;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of `output` as it stands there.
pub struct Segment<'a> {
    pub stream: Stream,
    /// Unix time at which the line's first character arrived; `null` where the text continues an unfinished line.
    pub timestamp: &'a RawValue,
    pub content: &'a RawValue,
}

impl<'a> Segment<'a> {
    /// Reads one line, with or without its newline. `None` for what no version of this program wrote.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        // The frame is read by hand, as it is written; what is in it may be anything after a loss of power.
        let line = line.strip_suffix(b"\n").unwrap_or(line).strip_suffix(b"}")?;
        let rest = line.strip_prefix(b"{\"stream\":\"std")?;
        let (stream, rest) = match rest.strip_prefix(b"out") {
            Some(rest) => (Stream::Stdout, rest),
            None => (Stream::Stderr, rest.strip_prefix(b"err")?),
        };
        let rest = rest.strip_prefix(b"\",\"timestamp\":")?;
        let (timestamp, rest) = rest.split_at(rest.iter().position(|b| *b == b',')?);
        let content = rest.strip_prefix(b",\"content\":").filter(|content| content.starts_with(b"\""))?;
        let [timestamp, content] = [timestamp, content].map(|json| serde_json::from_slice(json).ok());
        Some(Self { stream, timestamp: timestamp?, content: content? })
    }

    pub fn continues_a_line(&self) -> bool {
        self.timestamp.get() == "null"
    }

    /// The text's JSON without its quotes.
    pub fn inner(&self) -> &'a str {
        let json = self.content.get();
        json.get(1..json.len() - 1).unwrap_or_default()
    }
}

/// A Unix time as it stands in segments: written once for all the lines that came at that time.
pub fn timestamp(unix: f64) -> Box<RawValue> {
    // A number is always JSON; the clock gives none that is not finite.
    serde_json::value::to_raw_value(&unix).unwrap_or_default()
}

/// What stands before the text in all segments of a stream that came at the same time.
///
/// It is written by hand, and once: for lines of usual length serde's structs made the shim a third slower.
pub struct Head(String);

impl Head {
    /// Without a timestamp the segment continues the stream's unfinished line.
    pub fn new(stream: Stream, timestamp: Option<&RawValue>) -> Self {
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let timestamp = timestamp.map_or("null", RawValue::get);
        Self(format!("{{\"stream\":\"{stream}\",\"timestamp\":{timestamp},\"content\":"))
    }

    /// Appends one segment to `lines`.
    pub fn write(&self, lines: &mut Vec<u8>, content: &str) {
        lines.extend_from_slice(self.0.as_bytes());
        let written = serde_json::to_writer(&mut *lines, content);
        debug_assert!(written.is_ok(), "a Vec takes all that is written, and a text is always JSON");
        lines.extend_from_slice(b"}\n");
    }
}

/// Appends one segment to `lines`. Without a timestamp it continues the stream's unfinished line.
pub fn write(lines: &mut Vec<u8>, stream: Stream, timestamp: Option<&RawValue>, content: &str) {
    Head::new(stream, timestamp).write(lines, content);
}

/// Appends `text` as segments, cut after each newline, all with the same time.
pub fn write_text(lines: &mut Vec<u8>, stream: Stream, timestamp: &RawValue, text: &str) {
    let head = Head::new(stream, Some(timestamp));
    text.split_inclusive('\n').for_each(|line| head.write(lines, line));
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
        assert_eq!(first.inner(), r#"ü \"x\"\t\n"#);
        let second = read.next().unwrap();
        assert!(second.continues_a_line());
        assert_eq!((second.stream, second.inner()), (Stream::Stdout, "rest"));
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
