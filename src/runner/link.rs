//! What the runner knows of its relation to the service: the key, an outage, a suspension, the agreed hash.
//!
//! It says each change once, in the log, however often it is retried.

use std::time::{Duration, Instant};

use crate::execution::quoted;
use crate::log;
use crate::timer::Backoff;

#[derive(Clone, Copy, PartialEq)]
enum Key {
    /// No heartbeat has succeeded yet.
    Unproven,
    Good,
    Refused,
}

struct Outage {
    /// What failed first; that it works again ends the outage.
    endpoint: &'static str,
    since: Instant,
}

pub(super) struct Link {
    key: Key,
    key_backoff: Backoff,
    outage: Option<Outage>,
    suspended: Option<String>,
    hash: String,
}

impl Link {
    pub(super) fn new(hash: String) -> Self {
        let key_backoff = Backoff::new(Backoff::KEY);
        Self { key: Key::Unproven, key_backoff, outage: None, suspended: None, hash }
    }

    /// Whether anything but a heartbeat may be sent.
    pub(super) fn key_is_good(&self) -> bool {
        self.key == Key::Good
    }

    /// A heartbeat succeeded. Returns whether that is news.
    pub(super) fn key_accepted(&mut self) -> bool {
        let news = self.key != Key::Good;
        if news {
            log::info!("connected: the service accepts the key");
        }
        self.key = Key::Good;
        self.key_backoff.succeeded();
        news
    }

    /// Any request was denied. Returns how long to wait before the next heartbeat.
    pub(super) fn key_refused(&mut self, message: &str, now: Instant) -> Duration {
        let wait = self.key_backoff.failed(now, None);
        if self.key == Key::Refused {
            log::debug!("the key is still refused: {message}; next attempt in {} s", wait.as_secs());
        } else {
            log::warning!(
                "the service refuses the key: {message}; what runs goes on and its output waits; check the API key \
                 in the dashboard (next attempt in {} s)",
                wait.as_secs()
            );
        }
        self.key = Key::Refused;
        wait
    }

    /// A request had no usable answer.
    pub(super) fn unreachable(&mut self, endpoint: &'static str, cause: &str, now: Instant) {
        if self.outage.is_some() {
            log::debug!("{endpoint} failed: {cause}");
            return;
        }
        log::warning!(
            "the service cannot be reached ({endpoint}): {cause}; trying again, nothing is lost meanwhile"
        );
        self.outage = Some(Outage { endpoint, since: now });
    }

    /// A request was answered. Returns whether that ended an outage.
    pub(super) fn reached(&mut self, endpoint: &'static str, now: Instant) -> bool {
        match &self.outage {
            Some(outage) if outage.endpoint == endpoint => {
                log::info!("the service answers again, after {} s", (now - outage.since).as_secs());
                self.outage = None;
                true
            }
            _ => false,
        }
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// What a heartbeat said about suspension.
    pub(super) fn suspension(&mut self, reason: Option<String>) {
        match (&self.suspended, &reason) {
            (None, Some(reason)) => {
                log::warning!(
                    "the service has suspended this runner: {}; nothing new is taken",
                    quoted(reason)
                );
            }
            (Some(_), None) => log::info!("the suspension has ended"),
            _ => {}
        }
        self.suspended = reason;
    }

    /// What heartbeats say that the commands are.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Takes over the service's own hash of the list it was told, or else it would be told again for ever.
    pub(super) fn adopt_hash(&mut self, hash: String) {
        if hash != self.hash {
            log::warning!("the service has another hash for the same commands: {}", quoted(&hash));
            self.hash = hash;
        }
    }
}
