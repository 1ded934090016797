//! What a test may look at: every request that came, every execution, and the events as they happened.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Instant;

use serde_json::Value;

use super::execution::{Execution, Moment};
use super::fault::Endpoint;

/// The characters of an output's text that the log of a failed wait shows.
const SHOWN_CHARS_MAX: usize = 60;

/// One request as it was received.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    pub(crate) unix: f64,
    pub(crate) endpoint: Endpoint,
    pub(crate) path: String,
    pub(crate) execution: Option<String>,
    pub(crate) nonce: String,
    pub(crate) timestamp: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Null where there is none; null for output on a server that only counts.
    pub(crate) body: Value,
    pub(crate) body_len: usize,
    /// What the runner was answered; 0 where it was not, or not wholly.
    pub(crate) status: u16,
    /// Counts the connections from 1: equal for requests that shared one.
    pub(crate) connection: u64,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All that the service has seen.
pub(crate) struct State {
    pub(crate) began: Instant,
    pub(crate) requests: Vec<Request>,
    /// By id; those that were offered but never started are here too.
    pub(crate) executions: HashMap<String, Execution>,
    /// The list of the last sync.
    pub(crate) commands: Option<Value>,
    /// The connections that were turned away while the service was down.
    pub(crate) refused: Vec<Instant>,
    /// The most requests that waited for their answers at the same time.
    pub(crate) in_flight_max: usize,
}

impl State {
    pub(crate) fn new() -> Self {
        State {
            began: Instant::now(),
            requests: Vec::new(),
            executions: HashMap::new(),
            commands: None,
            refused: Vec::new(),
            in_flight_max: 0,
        }
    }

    /// The requests to one endpoint, oldest first.
    pub(crate) fn of(&self, endpoint: Endpoint) -> impl DoubleEndedIterator<Item = &Request> {
        self.requests.iter().filter(move |request| request.endpoint == endpoint)
    }

    /// An execution that must be known.
    pub(crate) fn execution(&self, id: &str) -> &Execution {
        self.executions.get(id).unwrap_or_else(|| panic!("no execution {id} was ever offered"))
    }

    /// Every request in a line of its own, for the message of a test that failed.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        for request in &self.requests {
            let after = request.at.duration_since(self.began).as_secs_f64();
            let Request { endpoint, connection, status, execution, .. } = request;
            let id = execution.as_deref().unwrap_or("-");
            let detail = shortened(&request.body);
            writeln!(text, "  {after:8.3} s  #{connection:<3} {endpoint:?} {id} -> {status} {detail}")
                .unwrap();
        }
        writeln!(text, "  {} connections were turned away", self.refused.len()).unwrap();
        text
    }
}

fn shortened(body: &Value) -> String {
    let full = match (&body["segments"], body) {
        (Value::Array(segments), _) => {
            let text: String = segments.iter().filter_map(|segment| segment["content"].as_str()).collect();
            let stream = if body["is_stderr"] == true { "stderr" } else { "stdout" };
            format!("chunk {} {stream} {text:?}", body["chunk_number"])
        }
        (_, Value::Null) => String::new(),
        _ => body.to_string(),
    };
    match full.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &full[..end], full.len()),
        None => full,
    }
}

/// Something the service noticed, when it did.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) moment: Moment,
    pub(crate) kind: EventKind,
}

/// What it noticed. Requests that were refused or met a fault without being processed are no events.
#[derive(Clone, Debug)]
pub(crate) enum EventKind {
    Heartbeat { in_sync: bool },
    Synced { count: usize },
    Offered { id: String, command: String, args: String },
    Started { id: String },
    Output { id: String, is_stderr: bool, text: String },
    CancelTold { id: String, force_kill: bool },
    Completed { id: String, exit_code: i64, status: String },
}
