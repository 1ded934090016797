//! What the service asks for and how it ends: the values that every floor above speaks in.
//!
//! JSON from the service becomes an [`Offer`] here, once; after that nobody checks an id or a timeout again.

pub mod segment;
pub mod store;
pub mod words;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// Seconds that an execution may take when the service does not say (`protocol.md`, Endpoints).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// A longer timeout than a year is no timeout that anybody meant; it also keeps deadlines representable.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest command name or refused value that is quoted back in a message, in characters.
const QUOTE_MAX: usize = 80;
/// The longest name of a command, in bytes: it is the name of a Python module, and so of a file.
const COMMAND_MAX: usize = 255;
/// The longest text of arguments, in bytes: about what exec takes, and little enough to be recorded.
const ARGS_MAX: usize = 1024 * 1024;

/// The id of an execution: a UUID, checked, because it becomes part of a URL and of a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExecutionId(String);

impl ExecutionId {
    /// The id as the service wrote it: what goes back over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The UUID itself, however it is spelled.
    pub fn number(&self) -> u128 {
        let digits = self.0.bytes().filter_map(|b| char::from(b).to_digit(16));
        digits.fold(0, |number, digit| number << 4 | u128::from(digit))
    }

    /// One spelling for one id (a UUID may come in either case): what names the directory.
    pub fn canonical(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl TryFrom<String> for ExecutionId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const DASHES: [usize; 4] = [8, 13, 18, 23];
        let well_formed = text.len() == 36
            && text
                .bytes()
                .enumerate()
                .all(|(i, b)| if DASHES.contains(&i) { b == b'-' } else { b.is_ascii_hexdigit() });
        if well_formed { Ok(Self(text)) } else { Err(format!("{} is no UUID", quoted(&text))) }
    }
}

impl From<ExecutionId> for String {
    fn from(id: ExecutionId) -> Self {
        id.0
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry of the pending list whose id is good: it will be run or rejected, never ignored.
#[derive(Debug)]
pub struct Offer {
    pub id: ExecutionId,
    /// The command's name as far as it could be read; for messages when the rest is wrong.
    pub command: String,
    /// The arguments as they came, if they are one text; for the record.
    pub args: String,
    pub request: Result<Request, String>,
}

/// What to run, before policy has seen it.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub command: String,
    pub args: Vec<String>,
    /// `None`: no limit.
    pub timeout: Option<Duration>,
    pub metadata_only: bool,
}

/// An entry as it comes, each field still JSON: a hostile one must not be made into values before it is measured.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    command: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    args: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    timeout: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    use_metadata_only_mode: Option<&'a RawValue>,
}

/// A field that is there, even if it is null: that is not the same as one that is missing.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Offer {
    /// Reads one entry of the pending list.
    ///
    /// # Errors
    /// Why the entry cannot even be rejected: it has no usable id.
    pub fn parse(entry: &RawValue) -> Result<Self, String> {
        // A list would be read into the fields one after the other.
        if !entry.get().starts_with('{') {
            return Err(format!("{} is no execution", quoted(entry.get())));
        }
        let entry: Entry<'_> =
            serde_json::from_str(entry.get()).map_err(|e| format!("it is no execution: {e}"))?;
        let id = entry.id.ok_or("it has no id")?;
        let id = serde_json::from_str::<String>(id.get())
            .map_err(|_| format!("its id is {}, not a UUID", quoted(id.get())))
            .and_then(ExecutionId::try_from)?;
        let request = Request::parse(&entry);
        let command = match &request {
            Ok(request) => request.command.clone(),
            Err(_) => {
                entry.command.and_then(text).map(|command| shortened(&command, QUOTE_MAX)).unwrap_or_default()
            }
        };
        let args = entry.args.and_then(text).unwrap_or_default();
        Ok(Self { id, command, args, request })
    }
}

fn text(json: &RawValue) -> Option<String> {
    serde_json::from_str(json.get()).ok()
}

impl Request {
    fn parse(entry: &Entry<'_>) -> Result<Self, String> {
        let wrong = |field: &str, value: Option<&RawValue>, rule: &str| {
            let shown = value.map_or_else(|| "missing".to_owned(), |value| quoted(value.get()));
            format!("'{field}' is {shown}, but must be {rule}")
        };
        let command = entry.command.and_then(text).filter(|command| command.len() <= COMMAND_MAX);
        let rule = "the name of a command";
        let command = command.ok_or_else(|| wrong("command", entry.command, rule))?;
        let args = match entry.args {
            None => String::new(),
            Some(json) if json.get() == "null" => String::new(),
            Some(json) => {
                let args = text(json).filter(|args| args.len() <= ARGS_MAX);
                args.ok_or_else(|| wrong("args", entry.args, "one text of at most 1 MiB"))?
            }
        };
        let timeout = match entry.timeout {
            None => Some(DEFAULT_TIMEOUT),
            Some(json) if json.get() == "null" => None,
            Some(json) => {
                let seconds = serde_json::from_str::<f64>(json.get()).ok().filter(|seconds| *seconds > 0.0);
                let rule = "a positive number of seconds, or null for no limit";
                let seconds = seconds.ok_or_else(|| wrong("timeout", entry.timeout, rule))?;
                Some(Duration::try_from_secs_f64(seconds).unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX))
            }
        };
        let metadata_only = match entry.use_metadata_only_mode.map(RawValue::get) {
            None | Some("null" | "false") => false,
            Some("true") => true,
            Some(_) => {
                return Err(wrong("use_metadata_only_mode", entry.use_metadata_only_mode, "true or false"));
            }
        };
        let args =
            words::split(&args).map_err(|why| format!("the arguments cannot be split into words: {why}"))?;
        Ok(Self { command, args, timeout, metadata_only })
    }
}

/// How an execution ended, in the protocol's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Success,
    Failed,
    Cancelled,
    TimedOut,
}

impl Status {
    /// The word that goes over the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }
}

/// What `complete` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The process's own code; `-N` if signal N ended it; -1 for a timeout or if it could not be started.
    pub exit_code: i32,
    pub status: Status,
}

impl Outcome {
    /// It never ran, or nobody saw how it ended.
    pub const FAILED: Self = Self { exit_code: -1, status: Status::Failed };

    /// The command ended by itself.
    pub fn exited(exit_code: i32) -> Self {
        Self { exit_code, status: if exit_code == 0 { Status::Success } else { Status::Failed } }
    }
}

/// What is missing in the record of a command's output, in bytes of both streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The disk did not take them.
    pub lost: u64,
    /// They came after the limit was reached.
    pub beyond_limit: u64,
}

/// How much a command has printed, in bytes, whether it could be kept or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Printed {
    pub stdout: u64,
    pub stderr: u64,
}

/// `text` in quotes, shortened, with control characters escaped: for messages about what the service sent.
pub fn quoted(text: &str) -> String {
    format!("'{}'", crate::log::printable(&shortened(text, QUOTE_MAX)))
}

/// The first `max` characters of what may have no end.
pub fn shortened(text: &str, max: usize) -> String {
    let mut short: String = text.chars().take(max).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::to_raw_value;
    use serde_json::{Value, json};

    const ID: &str = "0b8f3a52-3d0e-4b1c-9a77-1f2e3d4c5b6a";

    fn request(mut entry: Value) -> Result<Request, String> {
        entry["id"] = ID.into();
        Offer::parse(&to_raw_value(&entry).unwrap()).expect("a good id").request
    }

    #[test]
    fn missing_fields_take_the_protocols_defaults() {
        let got = request(json!({"command": "check"})).unwrap();
        let timeout = Some(Duration::from_secs(300));
        assert_eq!(got, Request { command: "check".into(), args: vec![], timeout, metadata_only: false });
        let got = request(json!({"command": "check", "args": null, "timeout": null})).unwrap();
        assert_eq!((got.args, got.timeout), (vec![], None));
    }

    #[test]
    fn a_timeout_may_be_a_whole_number_or_a_fraction_of_any_size() {
        let timeout = |t: Value| request(json!({"command": "check", "timeout": t})).unwrap().timeout.unwrap();
        assert_eq!(timeout(json!(300.0)), Duration::from_secs(300));
        assert_eq!(timeout(json!(0.5)), Duration::from_millis(500));
        assert_eq!(timeout(json!(1e300)), TIMEOUT_MAX);
    }

    #[test]
    fn a_wrong_field_is_named_with_its_value_and_rule() {
        for (entry, said) in [
            (json!({}), "'command' is missing, but must be the name of a command"),
            (json!({"command": 7}), "'command' is '7'"),
            (json!({"command": "check", "args": ["a"]}), "'args' is '[\"a\"]', but must be one text"),
            (json!({"command": "check", "timeout": 0}), "'timeout' is '0', but must be a positive number"),
            (json!({"command": "check", "timeout": -1}), "'timeout' is '-1'"),
            (json!({"command": "check", "timeout": "30"}), "'timeout' is '\"30\"'"),
            (json!({"command": "check", "use_metadata_only_mode": 1}), "must be true or false"),
            (json!({"command": "x".repeat(256)}), "'command' is '\"xxx"),
            (json!({"command": "check", "args": "x ".repeat(600_000)}), "'args' is '\"x x x"),
            (json!({"command": "check", "args": "'x"}), "the arguments cannot be split into words: "),
        ] {
            let error = request(entry).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn an_entry_without_a_uuid_cannot_be_answered_at_all() {
        for entry in [json!(null), json!([]), json!({}), json!({"id": 5}), json!({"id": "../../admin"})] {
            assert!(Offer::parse(&to_raw_value(&entry).unwrap()).is_err(), "{entry}");
        }
        for id in ["", &ID[1..], &format!("{ID}\n"), &ID.replace('-', "/"), &ID.replace('0', "g")] {
            assert!(ExecutionId::try_from(id.to_owned()).is_err(), "{id}");
        }
        let upper = ExecutionId::try_from(ID.to_uppercase()).unwrap();
        assert_eq!((upper.as_str(), upper.canonical().as_str()), (&*ID.to_uppercase(), ID));
    }
}
