//! The service's seven endpoints, one method each, and what an answer may mean.
//!
//! A request that fails is a value: [`Failure`] says of which class, the caller decides when to try again. Nothing
//! here waits, but for the one repetition of a request whose kept-alive connection the server had just closed.

mod addresses;
mod cause;
mod proxy;
mod punctual;
mod roots;
mod transport;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use ureq::Proxy;

use crate::config::{ApiKey, Config, Environment};
use crate::execution::{ExecutionId, Outcome, quoted, shortened};
use crate::mask::MASKED;
use crate::project::probe::Catalogue;
use crate::sys;
use crate::timer;
pub use addresses::look_up;
use transport::{Answer, Transport};

const HEARTBEAT: &str = "/api/runner/heartbeat/";
/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 4 * 1024 * 1024;
/// How far a request's timestamp may be from the service's clock (`protocol.md`).
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// How much of the pending list is looked at. The rest comes with the next polls.
const ENTRIES_MAX: usize = 200;
/// How much of an error's answer is looked at for its message, in bytes.
const MESSAGE_MAX: usize = 64 * 1024;
/// The longest text of the service's that is kept or told whole, in characters.
const TEXT_MAX: usize = 200;

/// Why a request did not do what it should.
#[derive(Debug)]
pub enum Failure {
    /// 401 or 403: the key is not accepted (now). `repeated` as below.
    Denied { status: u16, message: String, repeated: bool },
    /// Another 4xx: final for this request. `repeated`: it was sent twice, so the first may have been processed.
    Refused { status: u16, message: String, repeated: bool },
    /// No usable answer: no connection, a time limit, 429, 5xx, a redirect, nonsense. It may work later.
    Unreachable { cause: String, retry_after: Option<Duration> },
}

impl Failure {
    fn unreachable(cause: impl Into<String>) -> Self {
        Self::Unreachable { cause: cause.into(), retry_after: None }
    }

    /// The wait that the server asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { message, .. } => write!(f, "access denied: {message}"),
            Self::Refused { status, message, .. } => write!(f, "refused with status {status}: {message}"),
            Self::Unreachable { cause, .. } => f.write_str(cause),
        }
    }
}

/// What a heartbeat's answer says.
#[derive(Debug, PartialEq)]
pub struct Heartbeat {
    pub commands_in_sync: bool,
    pub pending_executions: u64,
    /// The reason, if the service has suspended this runner.
    pub suspended: Option<String>,
}

/// What a heartbeat shows of the way to the service.
#[derive(Debug)]
pub struct Trial {
    /// Somebody answered in HTTP, and so behind TLS where that is used.
    pub is_answered: bool,
    /// How far this host's clock is behind the service's, in seconds.
    pub clock_behind: Option<f64>,
    pub result: Result<Heartbeat, Failure>,
}

/// What the service wants to become of a running execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum CancelWish {
    None,
    Graceful,
    Force,
}

/// The first entries of a list, of which the rest is read and dropped: a list of two million must not become values.
struct FirstEntries(Vec<Box<RawValue>>);

impl<'de> Deserialize<'de> for FirstEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = FirstEntries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of executions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FirstEntries, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < ENTRIES_MAX {
                    match list.next_element()? {
                        Some(entry) => entries.push(entry),
                        None => return Ok(FirstEntries(entries)),
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstEntries(entries))
            }
        }
        deserializer.deserialize_seq(ListVisitor)
    }
}

/// The service, as one key sees it.
pub struct Client {
    transport: Transport,
    base: String,
    key: ApiKey,
}

impl Client {
    /// # Errors
    /// The proxy that the environment names, or the certificates, cannot be used.
    pub fn new(config: &Config, environment: &Environment) -> Result<Self, String> {
        let transport = Transport::new(config, environment)?;
        Ok(Self { transport, base: config.server.as_str().to_owned(), key: config.api_key.clone() })
    }

    /// From now on it is this key.
    pub fn use_key(&mut self, key: ApiKey) {
        self.key = key;
    }

    /// How the service is reached, for the log.
    pub fn route(&self) -> String {
        self.transport.route()
    }

    /// # Errors
    /// See [`Failure`].
    pub fn heartbeat(&self, python: &str, django: &str, hash: &str) -> Result<Heartbeat, Failure> {
        parse_heartbeat(&self.call(HEARTBEAT, Some(&heartbeat_of(python, django, hash)))?)
    }

    /// A heartbeat that shows the way to the service as well.
    pub fn try_out(&self, python: &str, django: &str, hash: &str) -> Trial {
        match self.exchange(HEARTBEAT, Some(&heartbeat_of(python, django, hash))) {
            Err(error) => Trial { is_answered: false, clock_behind: None, result: Err(error) },
            Ok((answer, repeated)) => Trial {
                is_answered: true,
                clock_behind: answer.date.as_deref().and_then(|date| clock_behind(date, timer::unix_now())),
                result: classify(answer, repeated).and_then(|answer| parse_heartbeat(&answer)),
            },
        }
    }

    /// The proxy that everything goes through, if there is one.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.transport.proxy()
    }

    /// The first host on the way to the service, and its port: the proxy's, if there is one.
    pub fn first_hop(&self) -> (String, u16) {
        self.transport.first_hop()
    }

    /// Tells the service which commands there are; returns how many it took and the hash that it has for them now.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn sync(&self, catalogue: &Catalogue) -> Result<(u64, Option<String>), Failure> {
        let request = format!("{{\"commands\":{}}}", catalogue.commands.get());
        parse_sync(&self.call("/api/runner/commands/sync/", Some(&request))?)
    }

    /// The first entries of the pending list, each to be read by itself, so that a wrong one does not spoil the others.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn pending(&self) -> Result<Vec<Box<RawValue>>, Failure> {
        parse_pending(&self.call("/api/runner/pending/", None)?)
    }

    /// # Errors
    /// See [`Failure`].
    pub fn start(&self, id: &ExecutionId) -> Result<(), Failure> {
        self.post(id, "start", "")
    }

    /// Sends one chunk, whose JSON `body` has its number in it.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn output(&self, id: &ExecutionId, body: &str) -> Result<(), Failure> {
        self.post(id, "output", body)
    }

    /// # Errors
    /// See [`Failure`].
    pub fn complete(&self, id: &ExecutionId, outcome: Outcome) -> Result<(), Failure> {
        let body = serde_json::json!({"exit_code": outcome.exit_code, "status": outcome.status.as_str()});
        self.post(id, "complete", &body.to_string())
    }

    /// # Errors
    /// See [`Failure`].
    pub fn cancel_wish(&self, id: &ExecutionId) -> Result<CancelWish, Failure> {
        parse_cancel_wish(&self.call(&format!("/api/runner/executions/{id}/cancel-status/"), None)?)
    }

    /// A report: its answer says nothing, but it must be the service's own. A captive portal that answers 200 to
    /// everything would otherwise make output vanish.
    fn post(&self, id: &ExecutionId, what: &str, body: &str) -> Result<(), Failure> {
        let answer = self.call(&format!("/api/runner/executions/{id}/{what}/"), Some(body))?;
        if answer.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        parse::<IgnoredAny>(&answer).map(drop)
    }

    /// Sends one request and draws the conclusion from its status.
    fn call(&self, path: &str, body: Option<&str>) -> Result<Vec<u8>, Failure> {
        self.exchange(path, body).and_then(|(answer, repeated)| classify(answer, repeated))
    }

    /// Sends one request, `POST` if it has a body; once more at once if a kept-alive connection turned out closed. Returns
    /// the answer, whatever its status, and whether the request was repeated.
    fn exchange(&self, path: &str, body: Option<&str>) -> Result<(Answer, bool), Failure> {
        let url = format!("{}{path}", self.base);
        let answer = match self.attempt(&url, body, false) {
            Err(transport::Error { stale: true, .. }) => {
                self.attempt(&url, body, true).map(|answer| (answer, true))
            }
            first => first.map(|answer| (answer, false)),
        };
        answer.map_err(|error| Failure::unreachable(error.cause))
    }

    /// Each attempt has a nonce and a timestamp of its own: the server refuses those that it has seen.
    fn attempt(&self, url: &str, body: Option<&str>, fresh: bool) -> Result<Answer, transport::Error> {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let nonce = sys::random_uuid().map_err(|e| transport::Error::of(format!("no randomness: {e}")))?;
        let headers = [
            ("authorization", format!("Bearer {}", self.key.reveal())),
            ("content-type", "application/json".to_owned()),
            ("x-request-timestamp", timestamp.to_string()),
            ("x-request-nonce", nonce),
        ];
        let mut answer = self.transport.send(url, &headers, body, fresh, ANSWER_MAX)?;
        // A server that echoes what it was sent must not bring the key into a log.
        let key = self.key.reveal();
        for text in [&mut answer.location, &mut answer.retry_after, &mut answer.date].into_iter().flatten() {
            *text = text.replace(key, MASKED);
        }
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains(key) {
            answer.body = text.replace(key, MASKED).into_bytes();
        }
        Ok(answer)
    }
}

fn classify(answer: Answer, repeated: bool) -> Result<Vec<u8>, Failure> {
    let status = answer.status;
    match status {
        200..=299 => Ok(answer.body),
        300..=399 => Err(Failure::unreachable(format!(
            "the server redirects to {}, which is never followed: set SERVER_URL to where the service really is",
            answer.location.as_deref().map_or_else(|| "nowhere".to_owned(), quoted)
        ))),
        401 | 403 => {
            let skew = answer.date.as_deref().and_then(|date| clock_skew(date, timer::unix_now()));
            let message = format!("{} (status {status}){}", message(&answer), skew.unwrap_or_default());
            Err(Failure::Denied { status, message, repeated })
        }
        408 | 425 | 429 | 500.. => Err(Failure::Unreachable {
            cause: format!("the server answers {status}: {}", message(&answer)),
            retry_after: answer.retry_after.and_then(|value| timer::retry_after(&value, SystemTime::now())),
        }),
        _ => Err(Failure::Refused { status, message: message(&answer), repeated }),
    }
}

fn heartbeat_of(python: &str, django: &str, hash: &str) -> String {
    serde_json::json!({
        "runner_version": env!("CARGO_PKG_VERSION"),
        "python_version": python,
        "django_version": django,
        "commands_hash": hash,
    })
    .to_string()
}

/// How far a clock is behind the service's, in seconds, by the `Date` of an answer.
fn clock_behind(date: &str, unix: f64) -> Option<f64> {
    Some(timer::http_date(date)? as f64 - unix)
}

/// What a denial adds if it may well be due to our clock: the service refuses requests that seem old or of the future.
fn clock_skew(date: &str, unix: f64) -> Option<String> {
    let behind = clock_behind(date, unix)?;
    let direction = if behind > 0.0 { "behind" } else { "ahead of" };
    (behind.abs() > CLOCK_SKEW_MAX.as_secs_f64()).then(|| {
        format!("; the clock of this host is {:.0} min {direction} the service's", behind.abs() / 60.0)
    })
}

/// The error message of an answer: `detail`, else `error`, else its text.
fn message(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(MESSAGE_MAX)]);
    let json: Option<Value> = serde_json::from_str(&text).ok();
    let named = json.as_ref().and_then(|json| json.get("detail").or_else(|| json.get("error")));
    match named {
        Some(Value::String(message)) => quoted(message),
        Some(other) => quoted(&other.to_string()),
        None if text.trim().is_empty() => "no message".to_owned(),
        None => quoted(text.trim()),
    }
}

/// What the answer to a heartbeat says.
pub(crate) fn parse_heartbeat(answer: &[u8]) -> Result<Heartbeat, Failure> {
    #[derive(Deserialize)]
    struct Body {
        commands_in_sync: Option<bool>,
        pending_executions: Option<u64>,
        runner_state: Option<String>,
        suspension_reason: Option<String>,
    }
    let body: Body = parse(answer)?;
    let suspended = body.runner_state.as_deref() == Some("suspended");
    let reason = || match body.suspension_reason {
        Some(reason) => shortened(&reason, TEXT_MAX),
        None => "no reason given".to_owned(),
    };
    Ok(Heartbeat {
        commands_in_sync: body.commands_in_sync.unwrap_or(true),
        pending_executions: body.pending_executions.unwrap_or(0),
        suspended: suspended.then(reason),
    })
}

/// How many commands the service took, and its hash of them.
pub(crate) fn parse_sync(answer: &[u8]) -> Result<(u64, Option<String>), Failure> {
    #[derive(Deserialize)]
    struct Body {
        synced_count: Option<u64>,
        commands_hash: Option<String>,
    }
    let body: Body = parse(answer)?;
    let hash = body.commands_hash.filter(|hash| !hash.is_empty());
    // It would go back with each heartbeat.
    if let Some(hash) = hash.as_ref().filter(|hash| hash.len() > TEXT_MAX) {
        let why = format!("the server's hash of the commands is longer than any: {}", quoted(hash));
        return Err(Failure::unreachable(why));
    }
    Ok((body.synced_count.unwrap_or(0), hash))
}

/// The first entries of the pending list.
pub(crate) fn parse_pending(answer: &[u8]) -> Result<Vec<Box<RawValue>>, Failure> {
    #[derive(Deserialize)]
    struct Body {
        executions: Option<FirstEntries>,
    }
    let body: Body = parse(answer)?;
    Ok(body.executions.map(|entries| entries.0).unwrap_or_default())
}

/// What is to become of an execution.
pub(crate) fn parse_cancel_wish(answer: &[u8]) -> Result<CancelWish, Failure> {
    #[derive(Deserialize)]
    struct Body {
        cancel_requested: Option<bool>,
        force_kill: Option<bool>,
    }
    let body: Body = parse(answer)?;
    Ok(match (body.cancel_requested, body.force_kill) {
        (Some(true), Some(true)) => CancelWish::Force,
        (Some(true), _) => CancelWish::Graceful,
        _ => CancelWish::None,
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    // A JSON array would be read into a struct field by field, so the shape is checked first.
    let is_object = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    let beginning = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let nonsense = |why: &str| {
        Failure::unreachable(format!(
            "the server's answer is not the service's ({why}): {}; is there a proxy or a login page in between?",
            quoted(beginning.trim())
        ))
    };
    if !is_object {
        return Err(nonsense("no JSON object"));
    }
    // A value of the wrong type is quoted whole in the error.
    serde_json::from_slice(body).map_err(|e| nonsense(&shortened(&e.to_string(), TEXT_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.into(), retry_after: None, location: None, date: None }
    }

    fn class(status: u16) -> &'static str {
        match classify(answer(status, "{}"), false) {
            Ok(_) => "done",
            Err(Failure::Denied { .. }) => "denied",
            Err(Failure::Refused { .. }) => "refused",
            Err(Failure::Unreachable { .. }) => "unreachable",
        }
    }

    #[test]
    fn a_status_belongs_to_one_class() {
        for (statuses, expected) in [
            (&[200, 201, 202, 204, 299][..], "done"),
            (&[401, 403], "denied"),
            (&[400, 404, 409, 410, 413, 422, 451], "refused"),
            (&[301, 302, 307, 308, 408, 429, 500, 502, 503, 504, 520, 599], "unreachable"),
        ] {
            for status in statuses {
                assert_eq!(class(*status), expected, "{status}");
            }
        }
    }

    #[test]
    fn a_denial_says_how_far_our_clock_is_from_the_services_if_that_may_be_why() {
        let at = |unix| clock_skew("Sun, 22 Nov 2026 19:21:12 GMT", unix).unwrap_or_default();
        let said = |text: &str| format!("; the clock of this host is {text} the service's");
        let there = 1_795_375_272.0;
        assert_eq!(at(there - 1200.0), said("20 min behind"));
        assert_eq!(at(there + 86_430.0), said("1440 min ahead of"));
        assert_eq!((at(there - 300.0), at(there + 300.0)), (String::new(), String::new()));
        assert_eq!(clock_skew("today", there), None);
    }

    #[test]
    fn an_error_says_its_detail_or_its_error_or_its_text() {
        for (body, said) in [
            (r#"{"detail": "quota exceeded", "error": "x"}"#, "'quota exceeded'"),
            (r#"{"error": "bad \u001b[2J key"}"#, "'bad \\u{1b}[2J key'"),
            (r#"{"detail": ["a", 1]}"#, "'[\"a\",1]'"),
            ("  Bad Gateway\n", "'Bad Gateway'"),
            ("", "no message"),
        ] {
            assert_eq!(message(&answer(403, body)), said);
        }
    }

    #[test]
    fn what_is_no_json_object_of_the_right_shape_is_an_error_value() {
        for nonsense in ["", "<html>", "[]", "null", "{", "{\"a\":", "\u{fffd}", &"[".repeat(100_000)] {
            assert!(parse::<Value>(nonsense.as_bytes()).is_err(), "{}", &nonsense[..nonsense.len().min(20)]);
        }
        #[derive(Deserialize, Debug)]
        struct Body {
            #[expect(dead_code, reason = "only its type matters")]
            flag: Option<bool>,
        }
        assert!(parse::<Body>(br#"{"flag": "yes"}"#).is_err());
        assert!(parse::<Body>(br#"{"flag": null, "unknown": {}}"#).is_ok());
    }

    #[test]
    fn a_redirect_names_its_target() {
        let mut moved = answer(302, "");
        moved.location = Some("https://elsewhere/".into());
        let said = classify(moved, false).unwrap_err().to_string();
        assert!(said.contains("redirects to 'https://elsewhere/', which is never followed"), "{said}");
    }
}
