//! One execution as the service sees it, and the rules for its start, its chunks and its completion.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::support::canonical::hex;

/// How far a segment's time may lie back: output that waits for the end of an outage is minutes old, not days.
const SEGMENT_AGE_SECONDS_MAX: f64 = 3600.0;
/// What the two processes may disagree about the same clock.
const CLOCK_SLACK_SECONDS: f64 = 1.0;

/// One instant, on the clock that cannot jump and on the one that is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) unix: f64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        Moment { at: Instant::now(), unix }
    }
}

/// The body of an output request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputBody {
    chunk_number: u64,
    segments: Vec<Segment>,
    is_stderr: bool,
}

/// Text of one stream with the time of its line's first character, or null where it continues a line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Segment {
    // Null must be said: a missing field is a mistake.
    #[serde(deserialize_with = "Deserialize::deserialize")]
    pub(crate) timestamp: Option<f64>,
    pub(crate) content: String,
}

/// The body of a completion.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionBody {
    exit_code: i64,
    #[serde(deserialize_with = "known_status")]
    status: String,
}

fn known_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let status = String::deserialize(deserializer)?;
    match status.as_str() {
        "success" | "failed" | "cancelled" | "timed_out" => Ok(status),
        other => Err(serde::de::Error::custom(format!("a status called '{other}'"))),
    }
}

/// A chunk as first received.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) is_stderr: bool,
    /// Empty on a server that only counts.
    pub(crate) segments: Vec<Segment>,
    pub(crate) bytes: usize,
    pub(crate) at: Instant,
    pub(crate) unix: f64,
    digest: [u8; 32],
}

/// How an execution ended.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) exit_code: i64,
    pub(crate) status: String,
    pub(crate) at: Instant,
}

/// What is kept of a stream even where the text is not.
#[derive(Default)]
struct Tally {
    bytes: u64,
    sha256: Sha256,
    line_is_open: bool,
}

/// One execution from the offer to its end.
#[derive(Default)]
pub(crate) struct Execution {
    pub(crate) offered: Option<Instant>,
    pub(crate) started: Option<Instant>,
    pub(crate) started_unix: Option<f64>,
    pub(crate) chunks: BTreeMap<u64, Chunk>,
    pub(crate) completed: Option<Completion>,
    pub(super) cancel_requested: bool,
    pub(super) force_kill: bool,
    /// The connection on which the runner surely learned that its completion is known.
    pub(super) answered_on: Option<u64>,
    tallies: [Tally; 2],
}

impl Execution {
    pub(crate) fn stdout(&self) -> String {
        self.text(false)
    }

    pub(crate) fn stderr(&self) -> String {
        self.text(true)
    }

    /// The segments of one stream in the order of their chunks.
    pub(crate) fn segments(&self, is_stderr: bool) -> impl Iterator<Item = &Segment> {
        let chunks = self.chunks.values().filter(move |chunk| chunk.is_stderr == is_stderr);
        chunks.flat_map(|chunk| &chunk.segments)
    }

    /// How much text a stream had; right on a counting server too.
    pub(crate) fn bytes(&self, is_stderr: bool) -> u64 {
        self.tallies[usize::from(is_stderr)].bytes
    }

    /// The hash of a stream's whole text; right on a counting server too.
    pub(crate) fn sha256(&self, is_stderr: bool) -> String {
        hex(&self.tallies[usize::from(is_stderr)].sha256.clone().finalize())
    }

    pub(crate) fn is_running(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }

    fn text(&self, is_stderr: bool) -> String {
        self.segments(is_stderr).map(|segment| segment.content.as_str()).collect()
    }

    /// Takes a chunk in; the breaches that it is guilty of.
    pub(super) fn accept(&mut self, body: OutputBody, now: Moment, keep_text: bool) -> Vec<String> {
        let number = body.chunk_number;
        let mut breaches = Vec::new();
        if self.started.is_none() {
            breaches.push(String::from("output before the start"));
        }
        if self.completed.is_some() {
            breaches.push(String::from("output after the completion"));
        }
        let digest = body.digest();
        if let Some(first) = self.chunks.get(&number) {
            if first.digest != digest {
                breaches.push(format!("chunk {number} came again with other content"));
            }
            return breaches;
        }
        let due = self.chunks.last_key_value().map_or(1, |(last, _)| last + 1);
        if number != due {
            breaches.push(format!("chunk {number} where {due} was due"));
        }
        breaches.extend(self.inspect_segments(&body, now));
        let tally = &mut self.tallies[usize::from(body.is_stderr)];
        let bytes = body.segments.iter().map(|segment| segment.content.len()).sum();
        tally.bytes += bytes as u64;
        body.segments.iter().for_each(|segment| tally.sha256.update(&segment.content));
        let segments = if keep_text { body.segments } else { Vec::new() };
        let (is_stderr, Moment { at, unix }) = (body.is_stderr, now);
        self.chunks.insert(number, Chunk { is_stderr, segments, bytes, at, unix, digest });
        breaches
    }

    fn inspect_segments(&mut self, body: &OutputBody, now: Moment) -> Vec<String> {
        let number = body.chunk_number;
        let tally = &mut self.tallies[usize::from(body.is_stderr)];
        let mut breaches = Vec::new();
        if body.segments.is_empty() {
            breaches.push(format!("chunk {number} has no segment"));
        }
        for segment in &body.segments {
            let content = segment.content.as_str();
            match segment.timestamp {
                None if !tally.line_is_open => {
                    breaches.push(format!("chunk {number} continues a line that is not open: {content:?}"));
                }
                Some(_) if tally.line_is_open => {
                    breaches.push(format!("chunk {number} gives the middle of a line a time: {content:?}"));
                }
                Some(time) if !is_plausible(time, now.unix) => {
                    breaches.push(format!("chunk {number} has the time {time} at {}: {content:?}", now.unix));
                }
                _ => {}
            }
            if let Some(fault) = fault_in(content) {
                breaches.push(format!("chunk {number} has {fault}: {content:?}"));
            }
            tally.line_is_open = !content.ends_with('\n');
        }
        breaches
    }

    /// Takes the completion in; the breaches that it is guilty of. `is_open` tells whether a connection still is.
    pub(super) fn complete(
        &mut self,
        body: CompletionBody,
        now: Moment,
        is_open: impl Fn(u64) -> bool,
    ) -> Vec<String> {
        let CompletionBody { exit_code, status } = body;
        let mut breaches = Vec::new();
        if self.started.is_none() {
            breaches.push(String::from("completion before the start"));
        }
        if let Some(first) = &self.completed {
            if (first.exit_code, &first.status) != (exit_code, &status) {
                breaches.push(format!(
                    "completed as {status} ({exit_code}) after {} ({})",
                    first.status, first.exit_code
                ));
            }
            // A runner that died with the answer unread may repeat itself, and its connection died with it.
            if self.answered_on.is_some_and(is_open) {
                breaches.push(String::from("completed again though the first completion was acknowledged"));
            }
            return breaches;
        }
        let is_sane = match status.as_str() {
            "success" => exit_code == 0,
            "failed" => exit_code != 0,
            "timed_out" => exit_code == -1,
            _ => true,
        };
        if !is_sane || !(-64..=255).contains(&exit_code) {
            breaches.push(format!("completed as {status} with exit code {exit_code}"));
        }
        self.completed = Some(Completion { exit_code, status, at: now.at });
        breaches
    }
}

impl OutputBody {
    pub(super) fn is_stderr(&self) -> bool {
        self.is_stderr
    }

    pub(super) fn text(&self) -> String {
        self.segments.iter().map(|segment| segment.content.as_str()).collect()
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update([u8::from(self.is_stderr)]);
        for segment in &self.segments {
            hash.update(segment.timestamp.unwrap_or(-1.0).to_be_bytes());
            hash.update((segment.content.len() as u64).to_be_bytes());
            hash.update(&segment.content);
        }
        hash.finalize().into()
    }
}

fn is_plausible(time: f64, now: f64) -> bool {
    (now - SEGMENT_AGE_SECONDS_MAX..=now + CLOCK_SLACK_SECONDS).contains(&time)
}

fn fault_in(content: &str) -> Option<&'static str> {
    let inner = content.strip_suffix('\n').unwrap_or(content);
    match () {
        () if content.is_empty() => Some("an empty segment"),
        () if inner.contains('\n') => Some("more than one line in a segment"),
        () if content.contains('\r') => Some("a carriage return"),
        () if content.contains('\0') => Some("a NUL"),
        () => None,
    }
}
