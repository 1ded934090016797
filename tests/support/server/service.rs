//! The service itself: takes a request, checks it against the protocol, and says what is to be answered.
//!
//! It has no socket and no clock but the one it reads when a request comes in, and is never used by two threads at
//! once. Whatever the protocol forbids is written down in `violations` and does not stop the work.

use std::collections::{HashMap, HashSet};
use std::net::TcpStream;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::KEY;
use super::bodies::{CommandBody, HeartbeatBody};
use super::execution::{CompletionBody, Execution, Moment, OutputBody};
use super::fault::{Endpoint, Fault, Faults, Order};
use super::http::{Answer, Message, http_date};
use super::ids::{is_uuid, is_uuid_v4};
use super::state::{Event, EventKind, Request, State};
use crate::support::canonical;

/// How far the two clocks may be apart.
const TIMESTAMP_SLACK_SECONDS: f64 = 300.0;
/// How long a request may be on its way while the clock is set.
const SETTING_TIME_MAX: Duration = Duration::from_secs(5);
/// How many executions a runner may have at a time.
const RUNNING_MAX: usize = 4;

/// What the executions endpoint lists, and the id that ends the offer when it is started.
pub(super) struct Offer {
    pub(super) id: Option<String>,
    pub(super) value: Value,
}

pub(super) struct Service {
    pub(super) state: State,
    pub(super) faults: Faults,
    pub(super) violations: Vec<String>,
    pub(super) offers: Vec<Offer>,
    pub(super) key_is_revoked: bool,
    pub(super) suspension: Option<String>,
    /// The hash that the last sync was answered with.
    pub(super) known_hash: Option<String>,
    /// What to answer the next syncs with instead of the right hash.
    pub(super) false_hash: Option<String>,
    pub(super) connections: HashMap<u64, TcpStream>,
    pub(super) listeners: Vec<Sender<Event>>,
    pub(super) is_down: bool,
    pub(super) is_stopping: bool,
    /// How often those that wait for an answer in vain have been let go.
    pub(super) releases: u64,
    pub(super) keeps_text: bool,
    /// How far the service's clock, and so everybody's, is ahead of the machine's.
    pub(super) clock_ahead_seconds: f64,
    /// When it was set, and how far it was ahead before.
    pub(super) clock_before: Option<(Instant, f64)>,
    /// The requests that wait for their answers.
    pub(super) in_flight: usize,
    nonces: HashSet<String>,
    /// Whether the runner may send anything but a heartbeat, by what it has been answered.
    key_is_proven: bool,
    suspension_is_told: bool,
}

impl Service {
    pub(super) fn new(keeps_text: bool) -> Self {
        Service {
            state: State::new(),
            faults: Faults::default(),
            violations: Vec::new(),
            offers: Vec::new(),
            key_is_revoked: false,
            suspension: None,
            known_hash: None,
            false_hash: None,
            connections: HashMap::new(),
            listeners: Vec::new(),
            is_down: false,
            is_stopping: false,
            releases: 0,
            keeps_text,
            clock_ahead_seconds: 0.0,
            clock_before: None,
            in_flight: 0,
            nonces: HashSet::new(),
            key_is_proven: false,
            suspension_is_told: false,
        }
    }

    /// Everything that one request brings about; what to do on its connection.
    pub(super) fn take(&mut self, message: &Message, connection: u64) -> Order {
        if self.is_down {
            return Order::Reset;
        }
        let mut now = Moment::now();
        now.unix += self.clock_ahead_seconds;
        let (endpoint, id) = Endpoint::of(message);
        let id = id.unwrap_or_default();
        let index = self.record(message, endpoint, &id, connection, now);
        let denial = self.inspect(index);
        let fault = self.faults.take(endpoint);
        let mut answer = match denial {
            Some(denial) => denial,
            None if fault.as_ref().is_none_or(Fault::lets_process) => {
                self.process(endpoint, &id, &message.body, now)
            }
            None => refusal(500, "never sent: the fault has an answer of its own"),
        };
        answer.headers.push(("Date".to_owned(), http_date(now.unix as u64)));
        let order = Order::under(fault, answer);
        self.state.requests[index].status = order.status();
        self.learn(endpoint, &id, connection, &order);
        order
    }

    pub(super) fn tell(&mut self, moment: Moment, kind: EventKind) {
        self.listeners.retain(|listener| listener.send(Event { moment, kind: kind.clone() }).is_ok());
    }

    fn record(
        &mut self,
        message: &Message,
        endpoint: Endpoint,
        id: &str,
        connection: u64,
        now: Moment,
    ) -> usize {
        let header = |name| message.header(name).unwrap_or_default().to_owned();
        let text = String::from_utf8_lossy(&message.body);
        let keeps_body = self.keeps_text || endpoint != Endpoint::Output;
        let body = if keeps_body { canonical::parse(&text).unwrap_or_default() } else { Value::Null };
        self.state.requests.push(Request {
            at: now.at,
            unix: now.unix,
            endpoint,
            path: message.path.clone(),
            execution: Some(id.to_owned()).filter(|id| !id.is_empty()),
            nonce: header("x-request-nonce"),
            timestamp: header("x-request-timestamp"),
            headers: message.headers.clone(),
            body,
            body_len: message.body.len(),
            status: 0,
            connection,
        });
        self.state.requests.len() - 1
    }

    /// The rules that hold for every request; the answer to one that is not let in.
    fn inspect(&mut self, index: usize) -> Option<Answer> {
        let request = &self.state.requests[index];
        let endpoint = request.endpoint;
        let mut breaches = Vec::new();
        let mut denial = None;
        if endpoint == Endpoint::Other {
            breaches.push(format!("a request for {}", request.path));
        }
        if request.execution.as_deref().is_some_and(|id| !is_uuid(id)) {
            breaches.push(format!("an id that is no UUID: {}", request.path));
        }
        if request.header("content-type") != Some("application/json") {
            breaches.push(format!("the content type {:?}", request.header("content-type")));
        }
        let is_bodiless = matches!(endpoint, Endpoint::Pending | Endpoint::Start | Endpoint::CancelStatus);
        if is_bodiless && request.body_len > 0 {
            breaches.push(format!("a body of {} bytes where none is due", request.body_len));
        }
        if endpoint != Endpoint::Heartbeat && !self.key_is_proven {
            breaches.push(String::from("sent before a heartbeat has succeeded"));
        }
        if endpoint == Endpoint::Pending && self.suspension_is_told {
            breaches.push(String::from("polled though suspended"));
        }
        if self.nonces.contains(&request.nonce) {
            breaches.push(format!("the nonce {} a second time", request.nonce));
            denial = Some("nonce already used");
        } else if !is_uuid_v4(&request.nonce) {
            breaches.push(format!("a nonce that is no UUID v4: {:?}", request.nonce));
            denial = Some("bad nonce");
        }
        let age = request.timestamp.parse::<u64>().map(|seconds| request.unix - seconds as f64);
        // What was sent in the instant in which everybody's clock was set has the time of before.
        let before = self.clock_before.filter(|(set, _)| set.elapsed() < SETTING_TIME_MAX);
        let was_ahead = before.map_or(0.0, |(_, was)| self.clock_ahead_seconds - was);
        let is_near = |age: f64| age.abs() <= TIMESTAMP_SLACK_SECONDS;
        if !age.is_ok_and(|age| is_near(age) || is_near(age - was_ahead)) {
            breaches.push(format!("the timestamp {:?} at {}", request.timestamp, request.unix));
            denial = Some("timestamp too far from our clock");
        }
        match request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            Some(KEY) if !self.key_is_revoked => {}
            Some(KEY) => denial = Some("API key revoked"),
            Some(_) => denial = Some("unknown API key"),
            None => {
                breaches.push(String::from("no bearer key"));
                denial = Some("no API key");
            }
        }
        self.nonces.insert(request.nonce.clone());
        breaches.into_iter().for_each(|breach| self.blame(endpoint, "", &breach));
        denial.map(|detail| refusal(401, detail))
    }

    fn process(&mut self, endpoint: Endpoint, id: &str, body: &[u8], now: Moment) -> Answer {
        let done = match endpoint {
            Endpoint::Heartbeat => self.heartbeat(body, now),
            Endpoint::Sync => self.sync(body, now),
            Endpoint::Pending => Ok(self.pending(now)),
            Endpoint::Start => self.start(id, now),
            Endpoint::Output => self.output(id, body, now),
            Endpoint::Complete => self.complete(id, body, now),
            Endpoint::CancelStatus => self.cancel_status(id, now),
            Endpoint::Other => Err(refusal(404, "no such page")),
        };
        done.map_or_else(|refused| refused, |answer| Answer::json(200, &answer))
    }

    fn heartbeat(&mut self, body: &[u8], now: Moment) -> Result<Value, Answer> {
        let beat: HeartbeatBody = self.parse(Endpoint::Heartbeat, "", body)?;
        for (name, value) in [
            ("runner_version", &beat.runner_version),
            ("python_version", &beat.python_version),
            ("django_version", &beat.django_version),
        ] {
            if !value.contains('.') {
                self.blame(Endpoint::Heartbeat, "", &format!("a {name} that is no version: {value:?}"));
            }
        }
        let in_sync = self.known_hash.as_ref() == Some(&beat.commands_hash);
        self.tell(now, EventKind::Heartbeat { in_sync });
        Ok(json!({
            "ok": true,
            "commands_in_sync": in_sync,
            "pending_executions": self.offers.len(),
            "runner_state": if self.suspension.is_some() { "suspended" } else { "active" },
            "suspension_reason": self.suspension,
        }))
    }

    fn sync(&mut self, body: &[u8], now: Moment) -> Result<Value, Answer> {
        let whole: Value = canonical::parse(&String::from_utf8_lossy(body)).unwrap_or_default();
        let Some(Value::Array(commands)) = whole.get("commands").cloned() else {
            self.blame(Endpoint::Sync, "", "a body without a list of commands");
            return Err(refusal(400, "commands missing"));
        };
        let mut names = HashSet::new();
        for command in &commands {
            let text = command.to_string();
            let CommandBody { name, .. } = self.parse(Endpoint::Sync, "", text.as_bytes())?;
            if name == "djangocommand" || name == "managecommand" {
                self.blame(Endpoint::Sync, "", "the runner's own command is listed");
            }
            if !names.insert(name.clone()) {
                self.blame(Endpoint::Sync, "", &format!("'{name}' is listed twice"));
            }
        }
        let hash = self.false_hash.clone().unwrap_or_else(|| canonical::commands_hash(&commands));
        let count = commands.len();
        self.known_hash = Some(hash.clone());
        self.state.commands = Some(Value::Array(commands));
        self.tell(now, EventKind::Synced { count });
        Ok(json!({"ok": true, "synced_count": count, "commands_hash": hash}))
    }

    fn pending(&mut self, now: Moment) -> Value {
        let mut news = Vec::new();
        for offer in &self.offers {
            let execution = offer.id.as_ref().and_then(|id| self.state.executions.get_mut(id));
            if let Some(execution) = execution.filter(|execution| execution.offered.is_none()) {
                execution.offered = Some(now.at);
                let field = |name: &str| offer.value[name].as_str().unwrap_or_default().to_owned();
                news.push(EventKind::Offered {
                    id: field("id"),
                    command: field("command"),
                    args: field("args"),
                });
            }
        }
        news.into_iter().for_each(|kind| self.tell(now, kind));
        json!({"executions": self.offers.iter().map(|offer| &offer.value).collect::<Vec<_>>()})
    }

    fn start(&mut self, id: &str, now: Moment) -> Result<Value, Answer> {
        let execution = self.find(id)?;
        if execution.started.is_some() {
            return Err(refusal(409, "already started"));
        }
        execution.started = Some(now.at);
        execution.started_unix = Some(now.unix);
        self.offers.retain(|offer| offer.id.as_deref() != Some(id));
        let running = self.state.executions.values().filter(|execution| execution.is_running()).count();
        if running > RUNNING_MAX {
            self.blame(Endpoint::Start, id, &format!("{running} executions at a time"));
        }
        self.tell(now, EventKind::Started { id: id.to_owned() });
        Ok(json!({"ok": true}))
    }

    fn output(&mut self, id: &str, body: &[u8], now: Moment) -> Result<Value, Answer> {
        let keeps_text = self.keeps_text;
        let body: OutputBody = self.parse(Endpoint::Output, id, body)?;
        let (is_stderr, text) = (body.is_stderr(), if keeps_text { body.text() } else { String::new() });
        let execution = self.find(id)?;
        let (is_running, known) = (execution.is_running(), execution.chunks.len());
        let breaches = execution.accept(body, now, keeps_text);
        let is_new = execution.chunks.len() > known;
        breaches.iter().for_each(|breach| self.blame(Endpoint::Output, id, breach));
        if is_new {
            self.tell(now, EventKind::Output { id: id.to_owned(), is_stderr, text });
        }
        if is_running { Ok(json!({"ok": true})) } else { Err(refusal(409, "not running")) }
    }

    fn complete(&mut self, id: &str, body: &[u8], now: Moment) -> Result<Value, Answer> {
        let body: CompletionBody = self.parse(Endpoint::Complete, id, body)?;
        let execution = self.state.executions.get_mut(id).ok_or_else(unknown)?;
        let was_completed = execution.completed.is_some();
        let connections = &self.connections;
        let breaches = execution.complete(body, now, |connection| connections.contains_key(&connection));
        let end = execution.completed.clone();
        breaches.iter().for_each(|breach| self.blame(Endpoint::Complete, id, breach));
        match end {
            Some(end) if !was_completed => {
                let (exit_code, status) = (end.exit_code, end.status);
                self.tell(now, EventKind::Completed { id: id.to_owned(), exit_code, status });
                Ok(json!({"ok": true}))
            }
            _ => Err(refusal(409, "already completed")),
        }
    }

    fn cancel_status(&mut self, id: &str, now: Moment) -> Result<Value, Answer> {
        let execution = self.find(id)?;
        let Execution { cancel_requested, force_kill, .. } = *execution;
        if !execution.is_running() {
            self.blame(Endpoint::CancelStatus, id, "asked for an execution that does not run");
        }
        if cancel_requested {
            self.tell(now, EventKind::CancelTold { id: id.to_owned(), force_kill });
        }
        Ok(json!({"cancel_requested": cancel_requested, "force_kill": force_kill}))
    }

    /// Keeps in mind what the runner now knows, as far as it surely got the answer.
    fn learn(&mut self, endpoint: Endpoint, id: &str, connection: u64, order: &Order) {
        let status = order.status();
        if matches!(status, 401 | 403) {
            self.key_is_proven = false;
        }
        match (endpoint, order) {
            (
                Endpoint::Heartbeat,
                Order::Answer(answer) | Order::AnswerThenClose(answer) | Order::Drip(answer),
            ) if (200..300).contains(&status) => {
                let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
                self.key_is_proven |= body.is_object();
                self.suspension_is_told = body["runner_state"] == "suspended";
            }
            // The runner may or may not have waited for it: nothing that follows can be called wrong.
            (Endpoint::Heartbeat, Order::AnswerLate(..) | Order::Bytes(_)) if status < 400 => {
                self.key_is_proven = true;
                self.suspension_is_told = false;
            }
            (Endpoint::Complete, Order::Answer(_) | Order::Drip(_))
                if matches!(status, 200..300 | 404 | 409 | 410) =>
            {
                if let Some(execution) = self.state.executions.get_mut(id) {
                    execution.answered_on = Some(connection);
                }
            }
            _ => {}
        }
    }

    fn find(&mut self, id: &str) -> Result<&mut Execution, Answer> {
        self.state.executions.get_mut(id).ok_or_else(unknown)
    }

    fn parse<T: DeserializeOwned>(&mut self, endpoint: Endpoint, id: &str, body: &[u8]) -> Result<T, Answer> {
        serde_json::from_slice(body).map_err(|error| {
            self.blame(endpoint, id, &format!("a body that the protocol does not know: {error}"));
            refusal(400, "bad body")
        })
    }

    fn blame(&mut self, endpoint: Endpoint, id: &str, breach: &str) {
        let after = self.state.began.elapsed().as_secs_f64();
        self.violations.push(format!("{after:.3} s {endpoint:?} {id}: {breach}"));
    }
}

fn refusal(status: u16, detail: &str) -> Answer {
    Answer::json(status, &json!({"detail": detail}))
}

fn unknown() -> Answer {
    refusal(404, "no such execution")
}
