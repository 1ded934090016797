//! `status.json`: what the runner says of itself, for those who ask while it works.
//!
//! Only what no other file shows: executions and undelivered output are seen in their directories. Every time is there
//! twice, by the wall clock for people, and by the monotonic clock for ages, so that setting the clock changes none.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys;
use crate::timer::unix_now;

/// The version of `status.json`. Whoever meets a higher one knows only that there is a runner.
const FORMAT: u32 = 1;
const NAME: &str = "status.json";

/// The loop turns at least this often, so that one that hangs can be told from one that waits.
pub const TURN_MAX: Duration = Duration::from_secs(60);

/// An instant, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Unix time in seconds.
    pub unix: f64,
    /// Seconds since the host was started, without those in which it slept.
    monotonic: f64,
}

impl Moment {
    pub fn now() -> Self {
        Self { unix: unix_now(), monotonic: sys::monotonic().as_secs_f64() }
    }

    /// How long ago it was; zero for one that another start of the host has left behind.
    pub fn age(&self) -> Duration {
        Duration::try_from_secs_f64(sys::monotonic().as_secs_f64() - self.monotonic).unwrap_or_default()
    }
}

/// What the service says of the key.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// No heartbeat has succeeded yet.
    Unproven,
    Accepted,
    Refused,
}

/// The service has given no usable answer since then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    pub since: Moment,
    pub cause: String,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: u32,
    pub pid: u32,
    pub runner_version: String,
    pub project: String,
    pub started: Moment,
    /// The loop's last turn: it has one at least every minute.
    pub turned: Moment,
    /// It takes nothing new and ends when what runs has ended.
    pub stopping: bool,
    /// How many seconds a turn may take: it waits for the service.
    pub longest_turn: f64,
    /// `None` while the project is being loaded for the first time.
    pub server_url: Option<String>,
    /// The last answer of the service, whatever it was.
    pub contact: Option<Moment>,
    pub key: Key,
    /// The service's reason.
    pub suspended: Option<String>,
    pub outage: Option<Outage>,
    /// Why nothing new can be taken on this host, at the last attempt.
    pub cannot_take: Option<String>,
    /// By execution: how many bytes of its output the service has. Where it is missing, its cursor tells.
    pub delivered: BTreeMap<String, u64>,
    /// How often the project was loaded again, or that was tried.
    pub reloads: u64,
    /// That is going on: it may have begun before what is asked for now.
    pub is_reloading: bool,
    /// Why the last of them failed; what was loaded before it is still in force.
    pub reload_error: Option<String>,
}

impl Status {
    /// Of a runner that has just begun.
    pub fn new(project: &str) -> Self {
        let now = Moment::now();
        Self {
            version: FORMAT,
            pid: std::process::id(),
            runner_version: env!("CARGO_PKG_VERSION").to_owned(),
            project: project.to_owned(),
            started: now,
            turned: now,
            stopping: false,
            longest_turn: 0.0,
            server_url: None,
            contact: None,
            key: Key::Unproven,
            suspended: None,
            outage: None,
            cannot_take: None,
            delivered: BTreeMap::new(),
            reloads: 0,
            is_reloading: false,
            reload_error: None,
        }
    }

    /// What the runner that calls itself `pid` has said last; `None` if it has not said anything yet that can be read here.
    pub fn read(state: &Path, pid: Option<u32>) -> Option<Self> {
        let bytes = fs::read(state.join(NAME)).ok()?;
        let status: Self = serde_json::from_slice(&bytes).ok()?;
        (Some(status.pid) == pid && status.version <= FORMAT).then_some(status)
    }

    /// How long ago the loop had its last turn.
    pub fn still_for(&self) -> Duration {
        self.turned.age()
    }

    /// How long a turn may take, by its own words; never longer than a clock can count.
    pub fn longest_turn(&self) -> Duration {
        const MAX: Duration = Duration::from_secs(86_400);
        Duration::try_from_secs_f64(self.longest_turn).unwrap_or_default().min(MAX)
    }

    /// Removes the file.
    pub fn remove(state: &Path) {
        let _ = fs::remove_file(state.join(NAME));
    }

    /// Replaces the file. Not synced: after a loss of power it is of no use to anybody.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let (path, temporary) = (state.join(NAME), state.join("status.json.tmp"));
        let bytes = serde_json::to_vec(self)?;
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        let renamed = options.clone().create(true).truncate(true).open(&temporary).and_then(|mut file| {
            file.write_all(&bytes)?;
            fs::rename(&temporary, &path)
        });
        renamed.or_else(|_| {
            // A full disk is what should be told most of all: it has room where the old content is.
            let _ = fs::remove_file(&temporary);
            let mut file = options.open(&path)?;
            file.write_all(&bytes)?;
            file.set_len(bytes.len() as u64)
        })
    }
}
