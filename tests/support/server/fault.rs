//! What can go wrong between a runner and its service, and which request it befalls.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::http::{Answer, Message};

/// How many bytes more than it has an answer promises that never ends.
pub(super) const ENDLESS: usize = 1_000_000;

/// The seven calls of the protocol, and whatever else somebody may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Heartbeat,
    Sync,
    Pending,
    Start,
    Output,
    Complete,
    CancelStatus,
    Other,
}

impl Endpoint {
    /// The seven, in the order in which an execution meets them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Heartbeat,
        Self::Sync,
        Self::Pending,
        Self::Start,
        Self::Output,
        Self::CancelStatus,
        Self::Complete,
    ];

    /// The call that a request makes, and the execution it is about.
    pub(crate) fn of(message: &Message) -> (Self, Option<String>) {
        match (message.method.as_str(), message.path.as_str()) {
            ("POST", "/api/runner/heartbeat/") => (Endpoint::Heartbeat, None),
            ("POST", "/api/runner/commands/sync/") => (Endpoint::Sync, None),
            ("GET", "/api/runner/pending/") => (Endpoint::Pending, None),
            (method, path) => {
                let tail = path.strip_prefix("/api/runner/executions/").and_then(|tail| tail.split_once('/'));
                let Some((id, call)) = tail else { return (Endpoint::Other, None) };
                let endpoint = match (method, call) {
                    ("POST", "start/") => Endpoint::Start,
                    ("POST", "output/") => Endpoint::Output,
                    ("POST", "complete/") => Endpoint::Complete,
                    ("GET", "cancel-status/") => Endpoint::CancelStatus,
                    _ => Endpoint::Other,
                };
                (endpoint, Some(id.to_owned()))
            }
        }
    }
}

/// One way in which a request does not get its normal answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answered with this, not processed.
    Status { code: u16, headers: Vec<(String, String)>, body: String },
    /// Processed, then the connection is closed without an answer.
    ProcessedThenClose,
    /// Processed, then answered with this status all the same.
    ProcessedThenStatus(u16),
    /// The connection is reset; not processed.
    Reset,
    /// Read, then nothing, until `Server::release` or the server's end; not processed.
    Hang,
    /// Processed at once, answered late.
    Delay(Duration),
    /// Processed; the answer ends before the length that its head promises.
    Truncated,
    /// These bytes are the whole answer, then the connection is closed; not processed.
    Raw(Vec<u8>),
    /// The first bytes once, and then the second ones over and over, until the client has had enough; not processed.
    Flood(Vec<u8>, Vec<u8>),
    /// Processed; 200 with this body instead of the real one.
    Body(String),
    /// A normal answer that says nothing of closing, and then the connection is closed.
    CloseAfter,
    /// A normal answer at one byte each 20 ms.
    Drip,
    /// Processed; the connection is reset in the middle of the answer.
    ResetHalfWay,
    /// Processed; the answer comes at one byte a second, from the first one on.
    Trickle,
    /// Processed; the answer's head comes at once, its body at one byte a second, and never ends.
    TrickleBody,
}

impl Fault {
    /// A plain error answer.
    pub(crate) fn status(code: u16) -> Self {
        let body = format!("{{\"detail\": \"told to answer {code}\"}}");
        Fault::Status { code, headers: Vec::new(), body }
    }

    /// An error answer with a header such as `Retry-After` or `Location`.
    pub(crate) fn status_with(code: u16, name: &str, value: &str) -> Self {
        let headers = vec![(name.to_owned(), value.to_owned())];
        Fault::Status { code, headers, body: String::from("{}") }
    }

    /// Whether the service does what it was asked, whatever it then answers.
    pub(crate) fn lets_process(&self) -> bool {
        !matches!(self, Fault::Status { .. } | Fault::Reset | Fault::Hang | Fault::Raw(_) | Fault::Flood(..))
    }
}

/// What is to be done on the connection for one request.
#[derive(Debug)]
pub(crate) enum Order {
    Answer(Answer),
    AnswerLate(Answer, Duration),
    AnswerThenClose(Answer),
    AnswerInPart(Answer),
    Drip(Answer),
    PartThenReset(Answer),
    Trickle { answer: Answer, at_once: usize },
    Bytes(Vec<u8>),
    Flood(Vec<u8>, Vec<u8>),
    Close,
    Reset,
    Silence,
}

impl Order {
    /// What becomes of the service's own answer under this fault.
    pub(crate) fn under(fault: Option<Fault>, answer: Answer) -> Self {
        match fault {
            None => Order::Answer(answer),
            Some(Fault::Status { code, headers, body }) => {
                Order::Answer(Answer { status: code, headers, body })
            }
            Some(Fault::ProcessedThenStatus(code)) => {
                Order::Answer(Answer::json(code, &serde_json::json!({"detail": "processed all the same"})))
            }
            Some(Fault::Body(body)) => Order::Answer(Answer { status: 200, headers: Vec::new(), body }),
            Some(Fault::Delay(delay)) => Order::AnswerLate(answer, delay),
            Some(Fault::CloseAfter) => Order::AnswerThenClose(answer),
            Some(Fault::Truncated) => Order::AnswerInPart(answer),
            Some(Fault::Drip) => Order::Drip(answer),
            Some(Fault::ResetHalfWay) => Order::PartThenReset(answer),
            Some(Fault::Trickle) => Order::Trickle { answer, at_once: 0 },
            Some(Fault::TrickleBody) => {
                let head = answer.bytes(ENDLESS).len() - answer.body.len();
                Order::Trickle { answer, at_once: head }
            }
            Some(Fault::Raw(bytes)) => Order::Bytes(bytes),
            Some(Fault::Flood(first, rest)) => Order::Flood(first, rest),
            Some(Fault::ProcessedThenClose) => Order::Close,
            Some(Fault::Reset) => Order::Reset,
            Some(Fault::Hang) => Order::Silence,
        }
    }

    /// The status that the runner will see; 0 where it sees none that counts.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Order::Answer(answer)
            | Order::AnswerLate(answer, _)
            | Order::AnswerThenClose(answer)
            | Order::Drip(answer) => answer.status,
            Order::AnswerInPart(_)
            | Order::PartThenReset(_)
            | Order::Trickle { .. }
            | Order::Bytes(_)
            | Order::Flood(..)
            | Order::Close
            | Order::Reset
            | Order::Silence => 0,
        }
    }
}

/// The faults that wait for their request.
#[derive(Default)]
pub(crate) struct Faults {
    once: HashMap<Endpoint, VecDeque<Fault>>,
    lasting: HashMap<Endpoint, Fault>,
}

impl Faults {
    pub(crate) fn once(&mut self, endpoint: Endpoint, fault: Fault) {
        self.once.entry(endpoint).or_default().push_back(fault);
    }

    pub(crate) fn lasting(&mut self, endpoint: Endpoint, fault: Fault) {
        self.lasting.insert(endpoint, fault);
    }

    pub(crate) fn heal(&mut self, endpoint: Endpoint) {
        self.once.remove(&endpoint);
        self.lasting.remove(&endpoint);
    }

    /// The fault for a request that just came: a single one first, else the lasting one.
    pub(crate) fn take(&mut self, endpoint: Endpoint) -> Option<Fault> {
        let once = self.once.get_mut(&endpoint).and_then(VecDeque::pop_front);
        once.or_else(|| self.lasting.get(&endpoint).cloned())
    }
}
