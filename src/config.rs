//! Raw settings in, one checked [`Config`] out. The only reader of the environment.
//!
//! A value comes from an option, else from an environment variable of the setting's name, else from the project's
//! Django settings, else it is the default. Everything that is wrong is found in one pass and reported together;
//! code above this file never checks a setting again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use ureq::http::Uri;

use crate::execution::quoted;
use crate::gather::gather;
use crate::mask;
use crate::near;
use crate::policy::{self, BoundArgs, Mode, Policy};

/// The settings, without their prefix. `STATE_DIR` is not among them: it must be known before Python runs.
const SETTINGS: [&str; 18] = [
    "API_KEY",
    "API_KEY_FILE",
    "SERVER_URL",
    "HEARTBEAT_INTERVAL",
    "REQUEST_TIMEOUT",
    "MAX_RETRIES",
    "ALLOW_HTTP_HOSTS",
    "ALLOWED_COMMANDS",
    "USE_BLOCKLIST",
    "DISALLOWED_COMMANDS",
    "METADATAONLY_COMMANDS",
    "BOUND_COMMANDS",
    "ALLOW_SETTINGS_OVERRIDE",
    "MAX_OUTPUT_BYTES",
    "REDACT_OUTPUT",
    "REDACT_NAMES",
    "CA_BUNDLE",
    "AUDIT_SYSLOG",
];
/// Read from the environment only, before the settings are known.
const ENVIRONMENT_ONLY: [&str; 1] = ["STATE_DIR"];

/// Where `CA_BUNDLE` is looked for besides: the variables of `requests`, curl and OpenSSL, in this order.
const CA_VARIABLES: [&str; 3] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"];

/// The name under which systemd is to hand over the key.
const CREDENTIAL: &str = "djangocommand-api-key";

/// The service's two names: the prefix of its settings and its default server.
const SERVICES: [(&str, &str); 2] = [
    ("DJANGOCOMMAND_", "https://app.djangocommand.com"),
    ("MANAGECOMMAND_", "https://app.managecommand.com"),
];

/// An entry of a list that stands for the whole default list.
const DEFAULT_ENTRY: &str = "@default";
/// The longest interval or time limit that a setting may ask for: a day, in seconds.
const SECONDS_MAX: f64 = 86_400.0;

/// The process's environment, read once. Values that are not UTF-8 are read with replacement characters.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    #[expect(clippy::disallowed_methods, reason = "this is the only reader of the environment")]
    pub fn read() -> Self {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Self(gather(std::env::vars_os().map(|(name, value)| (text(name), text(value)))))
    }

    /// The variable's value; an empty variable counts as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether text on a terminal may be coloured (no-color.org).
    pub fn allows_colour(&self) -> bool {
        self.get("NO_COLOR").is_none() && self.get("TERM") != Some("dumb")
    }

    /// Whether the variable is there, be it empty.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// What the runner goes by, all of it checked.
#[derive(Debug)]
pub struct Config {
    pub api_key: ApiKey,
    /// The file that the key is from.
    key_file: Option<KeyFile>,
    pub server: ServerUrl,
    pub heartbeat_interval: Duration,
    /// The time that one whole request may take, body included.
    pub request_timeout: Duration,
    pub max_retries: u32,
    pub policy: Policy,
    /// How much of one execution's output is kept; what it prints beyond that is counted.
    pub max_output_bytes: u64,
    /// The ends of the names of what is secret; `None`: nothing is masked.
    pub secret_names: Option<BTreeSet<String>>,
    /// `None`: the roots that are built in.
    pub ca_bundle: Option<CaBundle>,
    /// What is recorded in `audit.jsonl` goes to syslog as well.
    pub audit_syslog: bool,
    /// `NAME = value (origin)` for each setting, the key masked.
    pub effective: Vec<String>,
    /// What is odd but no error.
    pub warnings: Vec<String>,
}

/// The file or directory with the certificates that the server's must be signed by.
#[derive(Clone, Debug, PartialEq)]
pub struct CaBundle {
    pub path: String,
    /// The setting or variable that names it.
    pub named_by: String,
}

/// The key that authenticates the runner. It has no `Display`, and its `Debug` does not show it.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// For the `Authorization` header, and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let usable = text.len() > 3 && text.starts_with("dc_") && text.bytes().all(|b| b.is_ascii_graphic());
        usable.then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dc_********")
    }
}

/// The server's base URL, without a slash at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerUrl {
    base: String,
    https: bool,
    host: String,
    port: u16,
}

impl ServerUrl {
    pub fn as_str(&self) -> &str {
        &self.base
    }

    pub fn is_https(&self) -> bool {
        self.https
    }

    /// In lower case, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The one in the URL, else that of its scheme.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn parse(text: &str) -> Option<Self> {
        let base = text.trim_end_matches('/');
        let uri: Uri = base.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let plain =
            !authority.contains('@') && uri.query().is_none() && !base.contains('#') && !host.is_empty();
        // `http://host:` and `http://host:99999` have an authority, but no port that could be connected to.
        let port_is_good = authority.ends_with(uri.host()?) || uri.port_u16().is_some_and(|port| port > 0);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        (plain && port_is_good).then(|| Self { base: base.to_owned(), https, host, port })
    }
}

/// A setting that cannot be used.
#[derive(Debug, PartialEq)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of settings that cannot all be used.
#[derive(Debug)]
pub struct Unusable {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// The others, as in [`Config`].
    pub effective: Vec<String>,
    pub warnings: Vec<String>,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problems[..] {
            [only] => write!(f, "{only}"),
            all => {
                write!(f, "{} settings cannot be used:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n- {problem}"))
            }
        }
    }
}

impl Config {
    /// Settles every setting.
    ///
    /// `settings` holds the attributes of the Django settings that begin with one of the two prefixes.
    ///
    /// # Errors
    /// Everything that is wrong with them, at once.
    pub fn resolve(
        settings: &BTreeMap<String, Value>,
        environment: &Environment,
        server_url_option: Option<&str>,
    ) -> Result<Self, Unusable> {
        let (prefix, default_url) = service(settings, environment);
        let mut reader = Reader {
            prefix,
            settings,
            environment,
            effective: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let api_key = reader.api_key();
        let server = reader.server(default_url, server_url_option);
        let heartbeat_interval = reader.seconds("HEARTBEAT_INTERVAL", 30.0, 5.0);
        let request_timeout = reader.seconds("REQUEST_TIMEOUT", 30.0, 0.1);
        let max_retries = reader.max_retries();
        let policy = reader.policy();
        let max_output_bytes = reader.max_output_bytes();
        let secret_names = reader.secret_names();
        let ca_bundle = reader.ca_bundle();
        let audit_syslog = reader.flag("AUDIT_SYSLOG", false);
        reader.refuse_unknown_settings();
        reader.warnings.extend(reader.odd_variables());
        let Reader { problems, effective, warnings, .. } = reader;
        match (api_key, server) {
            (Some((api_key, key_file)), Some(server)) if problems.is_empty() => Ok(Self {
                api_key,
                key_file,
                server,
                heartbeat_interval,
                request_timeout,
                max_retries,
                policy,
                max_output_bytes,
                secret_names,
                ca_bundle,
                audit_syslog,
                effective,
                warnings,
            }),
            _ => Err(Unusable { problems, effective, warnings }),
        }
    }
}

impl Config {
    /// The key as it is in its file now, if it is from a file and another one than before: it may have been rotated.
    ///
    /// # Errors
    /// The file cannot be used as it is now.
    pub fn rotated_key(&self) -> Result<Option<ApiKey>, String> {
        let Some(file) = &self.key_file else { return Ok(None) };
        let Some(read) = file.read() else { return Err(format!("{file} is not there")) };
        let text = read.map_err(|why| format!("{file} {why}"))?;
        let key =
            ApiKey::parse(&text).ok_or_else(|| format!("{file} holds no key that begins with 'dc_'"))?;
        Ok((key.0 != self.api_key.0).then_some(key))
    }
}

/// The renamed service's settings count only where there is none of the first service's. The Django settings decide
/// before the environment: a variable must not make the project's own policy go unheard.
fn service(settings: &BTreeMap<String, Value>, environment: &Environment) -> (&'static str, &'static str) {
    let in_settings = |prefix: &str| settings.keys().any(|name| name.starts_with(prefix));
    let in_environment =
        |prefix: &str| SETTINGS.iter().any(|n| environment.get(&format!("{prefix}{n}")).is_some());
    let [first, second] = SERVICES;
    let found = [first, second].into_iter().find(|service| in_settings(service.0));
    found.or([first, second].into_iter().find(|service| in_environment(service.0))).unwrap_or(first)
}

/// A value as it was found, before anybody looked at its type.
enum Raw<'a> {
    /// From an option or the environment: always text.
    Text(&'a str, &'static str),
    Setting(&'a Value),
    Default,
}

impl Raw<'_> {
    fn origin(&self) -> &'static str {
        match self {
            Self::Text(_, origin) => origin,
            Self::Setting(_) => "Django settings",
            Self::Default => "default",
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text, _) => quoted(without_credentials(text)),
            Self::Setting(Value::Null) => "None".to_owned(),
            Self::Setting(Value::String(text)) => quoted(without_credentials(text)),
            Self::Setting(value) => quoted(&value.to_string()),
            Self::Default => "the default".to_owned(),
        }
    }
}

/// What is behind the user name and password of a URL; messages must not show those.
fn without_credentials(text: &str) -> &str {
    if text.contains("://") { text.rsplit('@').next().unwrap_or_default() } else { text }
}

struct Reader<'a> {
    prefix: &'static str,
    settings: &'a BTreeMap<String, Value>,
    environment: &'a Environment,
    effective: Vec<String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// A file that holds the key and nothing else.
#[derive(Clone, Debug)]
enum KeyFile {
    /// Handed over by systemd (`LoadCredential=`), which sees to it that no other process can read it.
    Credential(PathBuf),
    /// Named by `API_KEY_FILE`.
    Named(PathBuf),
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(_) => write!(f, "the systemd credential '{CREDENTIAL}'"),
            Self::Named(path) => write!(f, "the key file '{}'", path.display()),
        }
    }
}

impl KeyFile {
    fn origin(&self) -> &'static str {
        match self {
            Self::Credential(_) => "systemd credential",
            Self::Named(_) => "key file",
        }
    }

    /// What the file holds, or why it cannot be used. A credential need not be there.
    fn read(&self) -> Option<Result<String, String>> {
        /// No key is as long; what is cut off makes it a wrong one.
        const LENGTH_MAX: u64 = 4096;
        let (Self::Credential(path) | Self::Named(path)) = self;
        let mut text = String::new();
        // To open a pipe could take for ever, so it is looked at before.
        let read = fs::metadata(path).and_then(|meta| {
            if !meta.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            let file = File::open(path)?;
            let meta = file.metadata()?;
            if matches!(self, Self::Named(_)) && meta.mode() & 0o007 != 0 {
                let mode = meta.mode() & 0o777;
                let why = format!("others may use it (mode {mode:03o}); take that away with 'chmod o= FILE'");
                return Err(io::Error::other(why));
            }
            file.take(LENGTH_MAX).read_to_string(&mut text)
        });
        match (self, read) {
            (Self::Credential(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            // The unit has it blank where the host has no key for it.
            (Self::Credential(_), Ok(_)) if text.trim().is_empty() => None,
            (_, read) => {
                Some(read.map(|_| text.trim().to_owned()).map_err(|e| format!("cannot be read: {e}")))
            }
        }
    }
}

fn credential(environment: &Environment) -> Option<KeyFile> {
    let directory = environment.get("CREDENTIALS_DIRECTORY")?;
    Some(KeyFile::Credential(Path::new(directory).join(CREDENTIAL)))
}

impl<'a> Reader<'a> {
    fn raw(&self, name: &str) -> Raw<'a> {
        let name = format!("{}{name}", self.prefix);
        if let Some(text) = self.environment.get(&name) {
            Raw::Text(text, "environment")
        } else if let Some(value) = self.settings.get(&name) {
            Raw::Setting(value)
        } else {
            Raw::Default
        }
    }

    fn took(&mut self, name: &str, shown: impl fmt::Display, raw: &Raw<'_>) {
        self.effective.push(format!("{}{name} = {shown} ({})", self.prefix, raw.origin()));
    }

    fn refuse(&mut self, name: &str, raw: &Raw<'_>, rule: impl fmt::Display) {
        let (prefix, shown, origin) = (self.prefix, raw.shown(), raw.origin());
        self.problems.push(Problem(format!("{prefix}{name} is {shown} ({origin}), but must be {rule}")));
    }

    fn key_file(&mut self) -> Option<KeyFile> {
        let raw = self.raw("API_KEY_FILE");
        let text = match &raw {
            Raw::Text(text, _) => *text,
            Raw::Setting(value) => value.as_str().unwrap_or_default(),
            Raw::Default => return None,
        };
        if text.starts_with("dc_") {
            // The key itself, by mistake: it is not shown.
            let name = format!("{}API_KEY_FILE", self.prefix);
            self.problems
                .push(Problem(format!("{name} is '********', but must be the absolute path of a file")));
            return None;
        }
        if !text.starts_with('/') {
            self.refuse("API_KEY_FILE", &raw, "an absolute path");
            return None;
        }
        self.took("API_KEY_FILE", text, &raw);
        Some(KeyFile::Named(PathBuf::from(text)))
    }

    /// The key, and the file that it is from, if it is from one. Of those that have one the first counts: credential, key
    /// file, environment, Django settings.
    fn api_key(&mut self) -> Option<(ApiKey, Option<KeyFile>)> {
        let name = format!("{}API_KEY", self.prefix);
        let mut found: Vec<(&str, String, Option<KeyFile>)> = Vec::new();
        let known_problems = self.problems.len();
        for file in [credential(self.environment), self.key_file()].into_iter().flatten() {
            match file.read() {
                None => {}
                Some(Ok(text)) => found.push((file.origin(), text, Some(file))),
                Some(Err(why)) => self.problems.push(Problem(format!("{file} {why}"))),
            }
        }
        if self.problems.len() > known_problems {
            return None;
        }
        if let Some(text) = self.environment.get(&name) {
            found.push(("environment", text.to_owned(), None));
        }
        if let Some(value) = self.settings.get(&name) {
            found.push(("Django settings", value.as_str().unwrap_or_default().to_owned(), None));
        }
        let mut found = found.into_iter();
        let Some((origin, text, file)) = found.next() else {
            self.problems.push(Problem(format!(
                "{name} is not set: copy the project's key from the dashboard into {name}, in the Django settings or \
                 the environment, or into the file that {name}_FILE names"
            )));
            return None;
        };
        for (other_origin, _, _) in found.filter(|(_, other, _)| *other != text) {
            self.warnings
                .push(format!("{name} is taken from the {origin}; another one is in the {other_origin}"));
        }
        let key = ApiKey::parse(&text);
        match &key {
            Some(key) => self.effective.push(format!("{name} = {key:?} ({origin})")),
            // What was meant to be a key is never shown, however wrong it is.
            None => self.problems.push(Problem(format!(
                "{name} is '********' ({origin}), but must be a text that begins with 'dc_', without spaces"
            ))),
        }
        Some((key?, file))
    }

    fn server(&mut self, default: &'a str, option: Option<&'a str>) -> Option<ServerUrl> {
        let raw = option.map_or_else(|| self.raw("SERVER_URL"), |url| Raw::Text(url, "--server-url"));
        let text = match &raw {
            Raw::Text(text, _) => text,
            Raw::Setting(value) => value.as_str().unwrap_or_default(),
            Raw::Default => default,
        };
        let hosts = self.list("ALLOW_HTTP_HOSTS", &["localhost", "127.0.0.1", "::1"]);
        let bare = |host: &String| host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let http_hosts: BTreeSet<String> = gather(hosts.iter().map(bare));
        let Some(url) = ServerUrl::parse(text) else {
            let rule = "a URL such as 'https://app.djangocommand.com', without user name or query";
            self.refuse("SERVER_URL", &raw, rule);
            return None;
        };
        if !url.https && !http_hosts.contains(&url.host) {
            let rule = format!(
                "an https URL: plain http would show the key to the network (if that is meant, add '{}' to \
                 {}ALLOW_HTTP_HOSTS)",
                url.host, self.prefix
            );
            self.refuse("SERVER_URL", &raw, rule);
            return None;
        }
        self.took("SERVER_URL", url.as_str(), &raw);
        Some(url)
    }

    fn seconds(&mut self, name: &str, default: f64, least: f64) -> Duration {
        let raw = self.raw(name);
        let value = match &raw {
            Raw::Text(text, _) => text.trim().parse().ok(),
            Raw::Setting(value) => value.as_f64(),
            Raw::Default => Some(default),
        };
        match value.filter(|seconds| (least..=SECONDS_MAX).contains(seconds)) {
            Some(seconds) => {
                self.took(name, format_args!("{seconds} s"), &raw);
                Duration::from_secs_f64(seconds)
            }
            None => {
                self.refuse(name, &raw, format_args!("a number of seconds from {least} to {SECONDS_MAX}"));
                Duration::from_secs_f64(default)
            }
        }
    }

    fn max_retries(&mut self) -> u32 {
        const MOST: u64 = 100;
        let raw = self.raw("MAX_RETRIES");
        let value = match &raw {
            Raw::Text(text, _) => text.trim().parse().ok(),
            Raw::Setting(value) => value.as_u64(),
            Raw::Default => Some(3),
        };
        if let Some(number) = value.filter(|n| *n <= MOST) {
            self.took("MAX_RETRIES", number, &raw);
            return u32::try_from(number).unwrap_or(u32::MAX);
        }
        self.refuse("MAX_RETRIES", &raw, format_args!("a whole number from 0 to {MOST}"));
        0
    }

    fn max_output_bytes(&mut self) -> u64 {
        const DEFAULT: u64 = 1 << 30;
        let raw = self.raw("MAX_OUTPUT_BYTES");
        let value = match &raw {
            Raw::Text(text, _) => text.trim().parse().ok(),
            Raw::Setting(value) => value.as_u64(),
            Raw::Default => Some(DEFAULT),
        };
        match value {
            Some(bytes) => self.took("MAX_OUTPUT_BYTES", bytes, &raw),
            None => self.refuse("MAX_OUTPUT_BYTES", &raw, "a whole number of bytes"),
        }
        value.unwrap_or(DEFAULT)
    }

    fn secret_names(&mut self) -> Option<BTreeSet<String>> {
        let masks = self.flag("REDACT_OUTPUT", true);
        let more = self.list("REDACT_NAMES", &[]);
        let names = mask::NAMES.iter().map(|name| (*name).to_owned());
        masks.then(|| gather(names.chain(more.iter().map(|name| name.to_uppercase()))))
    }

    fn ca_bundle(&mut self) -> Option<CaBundle> {
        let raw = self.raw("CA_BUNDLE");
        let path = match &raw {
            Raw::Text(text, _) => Some(*text),
            Raw::Setting(value) => value.as_str(),
            Raw::Default => return self.other_ca_bundle(),
        };
        let Some(path) = path.filter(|path| Path::new(path).is_absolute()) else {
            self.refuse("CA_BUNDLE", &raw, "the absolute path of a file or directory with certificates");
            return None;
        };
        self.took("CA_BUNDLE", path, &raw);
        Some(CaBundle { path: path.to_owned(), named_by: format!("{}CA_BUNDLE", self.prefix) })
    }

    fn other_ca_bundle(&mut self) -> Option<CaBundle> {
        let named = CA_VARIABLES.iter().find_map(|name| Some((*name, self.environment.get(name)?)));
        match named {
            Some((name, path)) => {
                self.took("CA_BUNDLE", path, &Raw::Text(path, name));
                Some(CaBundle { path: path.to_owned(), named_by: name.to_owned() })
            }
            None => {
                self.took("CA_BUNDLE", "the built-in roots", &Raw::Default);
                None
            }
        }
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        let raw = self.raw(name);
        let value = match &raw {
            Raw::Text(text, _) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            Raw::Setting(value) => value.as_bool(),
            Raw::Default => Some(default),
        };
        match value {
            Some(flag) => self.took(name, if flag { "True" } else { "False" }, &raw),
            None => self.refuse(name, &raw, "True or False"),
        }
        value.unwrap_or(default)
    }

    fn list(&mut self, name: &str, default: &[&str]) -> BTreeSet<String> {
        let raw = self.raw(name);
        let entries: Option<Vec<&str>> = match &raw {
            Raw::Text(text, _) => Some(text.split(',').map(str::trim).filter(|e| !e.is_empty()).collect()),
            Raw::Setting(Value::Array(values)) => values.iter().map(Value::as_str).collect(),
            Raw::Setting(_) => None,
            Raw::Default if default.is_empty() => Some(vec![]),
            Raw::Default => Some(vec![DEFAULT_ENTRY]),
        };
        let Some(entries) = entries else {
            self.refuse(name, &raw, "a list or tuple of texts (a single one needs its comma: (\"name\",))");
            return BTreeSet::new();
        };
        self.took(name, if entries.is_empty() { "(empty)".to_owned() } else { entries.join(", ") }, &raw);
        let mut set = BTreeSet::new();
        for entry in entries {
            match entry {
                DEFAULT_ENTRY => set.extend(default.iter().map(|name| (*name).to_owned())),
                _ => _ = set.insert(entry.to_owned()),
            }
        }
        set
    }

    fn policy(&mut self) -> Policy {
        let blocklist_mode = self.flag("USE_BLOCKLIST", false);
        let allowed = self.list("ALLOWED_COMMANDS", policy::DEFAULT_ALLOWED);
        let disallowed = self.list("DISALLOWED_COMMANDS", policy::DEFAULT_DISALLOWED);
        let metadata_only = self.list("METADATAONLY_COMMANDS", &[]);
        let bound = self.bound_commands();
        let allows_settings_override = self.flag("ALLOW_SETTINGS_OVERRIDE", false);
        let mode = if blocklist_mode { Mode::Blocklist(disallowed) } else { Mode::Allowlist(allowed) };
        Policy { prefix: self.prefix, mode, bound, metadata_only, allows_settings_override }
    }

    fn bound_commands(&mut self) -> BTreeMap<String, Vec<BoundArgs>> {
        let raw = self.raw("BOUND_COMMANDS");
        let parsed = match &raw {
            Raw::Text(text, _) => serde_json::from_str(text)
                .map_err(|_| "a JSON object, {\"command\": [\"arguments\"]}".to_owned())
                .and_then(|value| bound_commands(&value)),
            Raw::Setting(value) => bound_commands(value),
            Raw::Default => Ok(BTreeMap::new()),
        };
        match parsed {
            Ok(bound) => {
                let names: Vec<&str> = bound.keys().map(String::as_str).collect();
                self.took(
                    "BOUND_COMMANDS",
                    if names.is_empty() { "{}".into() } else { names.join(", ") },
                    &raw,
                );
                bound
            }
            Err(rule) => {
                self.refuse("BOUND_COMMANDS", &raw, rule);
                BTreeMap::new()
            }
        }
    }

    /// A mistyped `ALLOWED_COMMANDS` must not silently mean the default list.
    fn refuse_unknown_settings(&mut self) {
        for name in self.settings.keys() {
            let Some(short) = name.strip_prefix(self.prefix) else { continue };
            if !SETTINGS.contains(&short) {
                let hint = self.hint(short);
                self.problems.push(Problem(format!(
                    "{name} in the Django settings is no setting of the runner{hint}"
                )));
            }
        }
    }

    /// A stray variable may belong to somebody else, so it is only worth a warning.
    fn odd_variables(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let others: Vec<&str> =
            SERVICES.iter().map(|(prefix, _)| *prefix).filter(|p| *p != self.prefix).collect();
        for name in self.settings.keys().chain(self.environment.0.keys()) {
            let other = others.iter().find_map(|prefix| name.strip_prefix(prefix));
            if other.is_some_and(|short| SETTINGS.contains(&short)) {
                warnings.push(format!(
                    "{name} is ignored, because the settings that count begin with {}",
                    self.prefix
                ));
            }
        }
        for name in self.environment.0.keys() {
            let Some(short) = name.strip_prefix(self.prefix) else { continue };
            if !SETTINGS.contains(&short) && !ENVIRONMENT_ONLY.contains(&short) {
                let hint = self.hint(short);
                warnings.push(format!("{name} in the environment is no setting of the runner{hint}"));
            }
        }
        warnings
    }

    fn hint(&self, short: &str) -> String {
        near::nearest(short, SETTINGS)
            .map_or_else(String::new, |n| format!("; did you mean {}{n}?", self.prefix))
    }
}

/// `{command: ["args" or {"args": …, "label": …}]}`, or the rule that it breaks.
fn bound_commands(value: &Value) -> Result<BTreeMap<String, Vec<BoundArgs>>, String> {
    const RULE: &str = "a dictionary from a command to a list of argument texts, each \"args\" or {\"args\": …, \"label\": …}";
    let mut bound = BTreeMap::new();
    for (command, choices) in value.as_object().ok_or(RULE)? {
        let choices = choices.as_array().filter(|list| !list.is_empty()).ok_or(RULE)?;
        let parsed: Result<Vec<BoundArgs>, String> =
            choices.iter().map(|c| bound_args(c).ok_or(RULE)?).collect();
        bound.insert(command.clone(), parsed?);
    }
    Ok(bound)
}

fn bound_args(choice: &Value) -> Option<Result<BoundArgs, String>> {
    let args_of = |args: &str, label| {
        BoundArgs::new(args, label)
            .map_err(|why| format!("made of arguments that can be split into words: {why}"))
    };
    match choice {
        Value::String(args) => Some(args_of(args, None)),
        Value::Object(fields) => {
            let text = |name: &str| match fields.get(name) {
                None => Some(None),
                Some(Value::String(text)) => Some(Some(text.as_str())),
                Some(_) => None,
            };
            let known = fields.keys().all(|name| name == "args" || name == "label");
            let (args, label) = (text("args")?, text("label")?);
            known.then(|| args_of(args.unwrap_or_default(), label))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn settings(value: Value) -> BTreeMap<String, Value> {
        let mut settings: BTreeMap<String, Value> = serde_json::from_value(value).unwrap();
        if !settings.keys().any(|name| name.ends_with("API_KEY")) {
            settings.insert("DJANGOCOMMAND_API_KEY".into(), json!("dc_secret"));
        }
        settings
    }

    fn resolve(value: Value) -> Result<Config, String> {
        Config::resolve(&settings(value), &Environment::default(), None)
            .map_err(|unusable| unusable.problems.iter().map(|p| format!("{p}\n")).collect())
    }

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let config = resolve(json!({})).unwrap();
        assert_eq!(config.server.as_str(), "https://app.djangocommand.com");
        assert_eq!(config.heartbeat_interval, Duration::from_secs(30));
        assert_eq!(config.request_timeout, Duration::from_secs(30));
        assert_eq!(config.max_retries, 3);
        assert_eq!(policy::DEFAULT_ALLOWED.len(), 33);
        assert!(matches!(&config.policy.mode, Mode::Allowlist(list) if list.len() == 33));
        assert!(config.policy.bound.is_empty() && config.policy.metadata_only.is_empty());
    }

    #[test]
    fn an_option_beats_the_environment_beats_the_settings_beat_the_default() {
        let settings = settings(json!({
            "DJANGOCOMMAND_SERVER_URL": "https://settings", "DJANGOCOMMAND_MAX_RETRIES": 5,
            "DJANGOCOMMAND_HEARTBEAT_INTERVAL": 60,
        }));
        let environment = environment(&[
            ("DJANGOCOMMAND_SERVER_URL", "https://environment"),
            ("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "45"),
            ("DJANGOCOMMAND_ALLOWED_COMMANDS", "check, migrate,"),
            ("DJANGOCOMMAND_BOUND_COMMANDS", "{\"migrate\": [\"--plan\"]}"),
            ("DJANGOCOMMAND_USE_BLOCKLIST", "no"),
        ]);
        let config = Config::resolve(&settings, &environment, Some("https://option/")).unwrap();
        assert_eq!(
            config.effective[..10],
            [
                "DJANGOCOMMAND_API_KEY = dc_******** (Django settings)",
                "DJANGOCOMMAND_ALLOW_HTTP_HOSTS = @default (default)",
                "DJANGOCOMMAND_SERVER_URL = https://option (--server-url)",
                "DJANGOCOMMAND_HEARTBEAT_INTERVAL = 45 s (environment)",
                "DJANGOCOMMAND_REQUEST_TIMEOUT = 30 s (default)",
                "DJANGOCOMMAND_MAX_RETRIES = 5 (Django settings)",
                "DJANGOCOMMAND_USE_BLOCKLIST = False (environment)",
                "DJANGOCOMMAND_ALLOWED_COMMANDS = check, migrate (environment)",
                "DJANGOCOMMAND_DISALLOWED_COMMANDS = @default (default)",
                "DJANGOCOMMAND_METADATAONLY_COMMANDS = (empty) (default)",
            ]
        );
        for line in ["BOUND_COMMANDS = migrate (environment)", "AUDIT_SYSLOG = False (default)"] {
            assert!(config.effective.contains(&format!("DJANGOCOMMAND_{line}")), "{line}");
        }
        assert!(!format!("{config:?}").contains("dc_secret"));
    }

    #[test]
    fn at_default_stands_for_the_default_list() {
        let config = resolve(json!({"DJANGOCOMMAND_ALLOWED_COMMANDS": ["@default", "mine"]})).unwrap();
        let Mode::Allowlist(list) = config.policy.mode else { panic!("allowlist mode is the default") };
        assert_eq!(list.len(), 34);
        let config = resolve(json!({
            "DJANGOCOMMAND_USE_BLOCKLIST": true, "DJANGOCOMMAND_DISALLOWED_COMMANDS": ["@default", "mine"],
        }));
        let Mode::Blocklist(list) = config.unwrap().policy.mode else {
            panic!("blocklist mode was asked for")
        };
        assert!(list.contains("flush") && list.contains("mine"));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_setting_value_and_rule() {
        let problems = resolve(json!({
            "DJANGOCOMMAND_API_KEY": "wrong-secret",
            "DJANGOCOMMAND_SERVER_URL": "ftp://host",
            "DJANGOCOMMAND_HEARTBEAT_INTERVAL": "30",
            "DJANGOCOMMAND_REQUEST_TIMEOUT": -1,
            "DJANGOCOMMAND_MAX_RETRIES": 1.5,
            "DJANGOCOMMAND_MAX_OUTPUT_BYTES": "1G",
            "DJANGOCOMMAND_ALLOW_HTTP_HOSTS": "localhost",
            "DJANGOCOMMAND_METADATAONLY_COMMANDS": [1],
            "DJANGOCOMMAND_USE_BLOCKLIST": "yes",
            "DJANGOCOMMAND_BOUND_COMMANDS": {"check": "--deploy"},
            "DJANGOCOMMAND_ALOWED_COMMANDS": [],
        }))
        .unwrap_err();
        for said in [
            "DJANGOCOMMAND_API_KEY is '********' (Django settings), but must be a text that begins with 'dc_'",
            "DJANGOCOMMAND_SERVER_URL is 'ftp://host' (Django settings), but must be a URL such as",
            "DJANGOCOMMAND_HEARTBEAT_INTERVAL is '30' (Django settings), but must be a number of seconds from 5",
            "DJANGOCOMMAND_REQUEST_TIMEOUT is '-1' (Django settings), but must be a number of seconds from 0.1",
            "DJANGOCOMMAND_MAX_RETRIES is '1.5' (Django settings), but must be a whole number",
            "DJANGOCOMMAND_MAX_OUTPUT_BYTES is '1G' (Django settings), but must be a whole number of bytes",
            "DJANGOCOMMAND_ALLOW_HTTP_HOSTS is 'localhost' (Django settings), but must be a list or tuple",
            "DJANGOCOMMAND_METADATAONLY_COMMANDS is '[1]' (Django settings), but must be a list or tuple",
            "DJANGOCOMMAND_USE_BLOCKLIST is 'yes' (Django settings), but must be True or False",
            "DJANGOCOMMAND_BOUND_COMMANDS is '{\"check\":\"--deploy\"}' (Django settings), but must be a dictionary",
            "DJANGOCOMMAND_ALOWED_COMMANDS in the Django settings is no setting of the runner; \
             did you mean DJANGOCOMMAND_ALLOWED_COMMANDS?",
        ] {
            assert!(problems.contains(said), "{said}\nis not in\n{problems}");
        }
        assert!(!problems.contains("wrong-secret"));
        assert_eq!(problems.lines().count(), 11);
    }

    #[test]
    fn a_missing_key_says_where_to_get_one() {
        let problems = Config::resolve(&BTreeMap::new(), &Environment::default(), None).unwrap_err().problems;
        assert!(problems[0].0.starts_with("DJANGOCOMMAND_API_KEY is not set: copy the project's key"));
        assert!(
            resolve(json!({"DJANGOCOMMAND_API_KEY": null})).unwrap_err().contains("API_KEY is '********'")
        );
        assert!(resolve(json!({"DJANGOCOMMAND_API_KEY": "dc_a\r\nX-Evil: 1"})).is_err());
    }

    #[test]
    fn a_key_in_a_systemd_credential_comes_first_and_another_key_elsewhere_is_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        let credential = directory.path().join(CREDENTIAL);
        fs::write(&credential, "dc_credential\n").unwrap();
        let named = ("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap());
        let resolved =
            |variables: &[(&str, &str)]| Config::resolve(&settings(json!({})), &environment(variables), None);
        let config = resolved(&[named, ("DJANGOCOMMAND_API_KEY", "dc_credential")]).unwrap();
        assert_eq!(config.api_key.reveal(), "dc_credential");
        assert_eq!(config.effective[0], "DJANGOCOMMAND_API_KEY = dc_******** (systemd credential)");
        assert_eq!(
            config.warnings,
            [
                "DJANGOCOMMAND_API_KEY is taken from the systemd credential; another one is in the Django settings"
            ]
        );
        fs::write(&credential, [0xff]).unwrap();
        let problems = resolved(&[named]).unwrap_err().problems;
        assert!(problems[0].0.starts_with("the systemd credential 'djangocommand-api-key' cannot be read"));
        fs::write(&credential, "\n").unwrap();
        assert_eq!(
            resolved(&[named]).unwrap().api_key.reveal(),
            "dc_secret",
            "the host has no key for the unit"
        );
        fs::remove_file(credential).unwrap();
        assert_eq!(
            resolved(&[named]).unwrap().api_key.reveal(),
            "dc_secret",
            "the unit has other credentials"
        );
    }

    #[test]
    fn a_server_url_may_have_a_port_a_path_a_slash_at_its_end_and_an_ipv6_host() {
        let url = |text: &str| resolve(json!({"DJANGOCOMMAND_SERVER_URL": text})).map(|c| c.server);
        assert_eq!(url("https://x.example/dc/").unwrap().as_str(), "https://x.example/dc");
        assert_eq!(url("http://[::1]:8000/").unwrap().as_str(), "http://[::1]:8000");
        assert_eq!(url("http://[::1]:8000/").unwrap().host(), "::1");
        assert_eq!(url("http://LOCALHOST:1").unwrap().host(), "localhost");
        for wrong in [
            "",
            "app.example",
            "https://",
            "https:///x",
            "https://u:p@h",
            "https://h?q=1",
            "https://h#f",
            "https://h h",
            "https://h:99999",
            "https://h:",
            "https://h:0",
            "file:///etc/passwd",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
        let plain = url("http://10.0.0.1").unwrap_err();
        assert!(plain.contains("add '10.0.0.1' to DJANGOCOMMAND_ALLOW_HTTP_HOSTS"), "{plain}");
        assert!(
            resolve(json!({
                "DJANGOCOMMAND_SERVER_URL": "http://10.0.0.1", "DJANGOCOMMAND_ALLOW_HTTP_HOSTS": ["10.0.0.1"],
            }))
            .is_ok()
        );
    }

    #[test]
    fn the_renamed_services_settings_count_where_there_is_none_of_the_first() {
        let renamed = json!({"MANAGECOMMAND_API_KEY": "dc_new", "MANAGECOMMAND_USE_BLOCKLIST": true});
        let config = resolve(renamed.clone()).unwrap();
        assert_eq!(config.server.as_str(), "https://app.managecommand.com");
        assert_eq!(config.policy.prefix, "MANAGECOMMAND_");
        assert!(matches!(config.policy.mode, Mode::Blocklist(_)));
        let variable = environment(&[("DJANGOCOMMAND_API_KEY", "dc_first")]);
        let config = Config::resolve(&settings(renamed.clone()), &variable, None).unwrap();
        assert_eq!(
            config.policy.prefix, "MANAGECOMMAND_",
            "a variable does not switch the project's policy off"
        );
        assert_eq!(
            config.warnings,
            ["DJANGOCOMMAND_API_KEY is ignored, because the settings that count begin with MANAGECOMMAND_"]
        );
        let mut both = settings(renamed);
        both.insert("DJANGOCOMMAND_API_KEY".into(), json!("dc_first"));
        let config = Config::resolve(&both, &Environment::default(), None).unwrap();
        assert_eq!(config.server.as_str(), "https://app.djangocommand.com");
        assert!(matches!(config.policy.mode, Mode::Allowlist(_)));
        assert_eq!(config.warnings.len(), 2);
    }

    #[test]
    fn an_empty_variable_counts_as_none_and_cannot_empty_the_blocklist() {
        let empty =
            environment(&[("DJANGOCOMMAND_DISALLOWED_COMMANDS", ""), ("DJANGOCOMMAND_USE_BLOCKLIST", "1")]);
        let config = Config::resolve(&settings(json!({})), &empty, None).unwrap();
        assert!(matches!(config.policy.mode, Mode::Blocklist(list) if list.contains("flush")));
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        let problems = resolve(json!({"DJANGOCOMMAND_SERVER_URL": "https://user:hunter2@host"})).unwrap_err();
        assert!(problems.contains("'host'") && !problems.contains("hunter2"), "{problems}");
    }

    #[test]
    fn an_unknown_name_in_the_environment_is_only_a_warning() {
        let odd = environment(&[
            ("DJANGOCOMMAND_APIKEY", "x"),
            ("DJANGOCOMMAND_STATE_DIR", "/x"),
            ("PATH", "/bin"),
        ]);
        let config = Config::resolve(&settings(json!({})), &odd, None).unwrap();
        assert_eq!(
            config.warnings,
            [
                "DJANGOCOMMAND_APIKEY in the environment is no setting of the runner; did you mean DJANGOCOMMAND_API_KEY?"
            ]
        );
    }

    #[test]
    fn bound_commands_take_texts_and_labelled_texts() {
        let config = resolve(json!({"DJANGOCOMMAND_BOUND_COMMANDS": {
            "report": ["--all", {"args": "--month 1", "label": "January"}, {}],
        }}));
        let bound = config.unwrap().policy.bound;
        let labels: Vec<&str> = bound["report"].iter().map(|choice| choice.label.as_str()).collect();
        assert_eq!(labels, ["--all", "January", "(no arguments)"]);
        for wrong in
            [json!([]), json!({"report": []}), json!({"report": [{"arg": "x"}]}), json!({"report": [1]})]
        {
            assert!(resolve(json!({"DJANGOCOMMAND_BOUND_COMMANDS": wrong})).is_err());
        }
        let unbalanced = resolve(json!({"DJANGOCOMMAND_BOUND_COMMANDS": {"report": ["'x"]}})).unwrap_err();
        assert!(unbalanced.contains("a quotation is not closed"), "{unbalanced}");
    }
}
