//! What the runner knows of its relation to the service: the key, an outage, a suspension, the agreed hash.
//!
//! It says each change once, in the log, however often it is retried.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::api::Failure;
use crate::execution::quoted;
use crate::log;
use crate::status::{self, Key, Moment, Status};
use crate::timer::Backoff;

/// What failed may never be tried again: its execution was given up, or a suspension has ended the polls. After this
/// long, that anything else is answered ends the outage too.
const ABANDONED_AFTER: Duration = Duration::from_secs(120);

struct Outage {
    /// What failed first; that it works again ends the outage. One execution's trouble is not another's.
    what: String,
    since: Instant,
    began: Moment,
    cause: String,
    /// When that was last tried.
    tried: Instant,
}

pub(super) struct Link {
    key: Key,
    key_backoff: Backoff,
    outage: Option<Outage>,
    /// When the service last answered anything at all.
    contact: Option<Moment>,
    /// What the service refuses for good and has been said to.
    refused: BTreeSet<&'static str>,
    suspended: Option<String>,
    hash: String,
}

impl Link {
    pub(super) fn new(hash: String) -> Self {
        let key_backoff = Backoff::new(Backoff::KEY);
        let refused = BTreeSet::new();
        Self { key: Key::Unproven, key_backoff, outage: None, contact: None, refused, suspended: None, hash }
    }

    /// Whether anything but a heartbeat may be sent.
    pub(super) fn key_is_good(&self) -> bool {
        self.key == Key::Accepted
    }

    pub(super) fn key_is_refused(&self) -> bool {
        self.key == Key::Refused
    }

    /// A heartbeat succeeded. Returns whether that is news.
    pub(super) fn key_accepted(&mut self) -> bool {
        let news = self.key != Key::Accepted;
        if news {
            log::info!("connected: the service accepts the key");
        }
        self.key = Key::Accepted;
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
    pub(super) fn unreachable(&mut self, what: &str, cause: &str, now: Instant) {
        if let Some(outage) = &mut self.outage {
            log::debug!("{what} failed: {cause}");
            if outage.what == what {
                outage.tried = now;
            }
            return;
        }
        log::warning!(
            "the service cannot be reached ({what}): {cause}; trying again, nothing is lost meanwhile"
        );
        let (what, cause) = (what.to_owned(), cause.to_owned());
        self.outage = Some(Outage { what, since: now, began: Moment::now(), cause, tried: now });
    }

    /// The service answered, whatever it said.
    pub(super) fn answered(&mut self) {
        self.contact = Some(Moment::now());
    }

    /// Puts what is known here into `status`.
    pub(super) fn describe(&self, status: &mut Status) {
        status.key = self.key;
        status.contact = self.contact;
        status.suspended.clone_from(&self.suspended);
        let is_same = match (&status.outage, &self.outage) {
            (Some(said), Some(outage)) => said.since == outage.began,
            (said, outage) => said.is_none() && outage.is_none(),
        };
        if !is_same {
            let outage = self.outage.as_ref();
            status.outage = outage.map(|o| status::Outage { since: o.began, cause: o.cause.clone() });
        }
    }

    /// Another key or another service: a heartbeat has to prove it first.
    pub(super) fn renew(&mut self) {
        (self.key, self.key_backoff) = (Key::Unproven, Backoff::new(Backoff::KEY));
        (self.outage, self.contact, self.suspended) = (None, None, None);
        self.refused.clear();
    }

    /// The project's commands have changed. Returns whether they have.
    pub(super) fn set_hash(&mut self, hash: &str) -> bool {
        let is_news = self.hash != hash;
        hash.clone_into(&mut self.hash);
        is_news
    }

    /// A request was answered. Returns whether that ended an outage.
    pub(super) fn reached(&mut self, what: &str, now: Instant) -> bool {
        // Not by the heartbeat that makes the key good again: what was denied before it may be denied once more.
        if self.key == Key::Accepted {
            self.key_backoff.succeeded();
        }
        let ended =
            self.outage.take_if(|outage| outage.what == what || now - outage.tried >= ABANDONED_AFTER);
        if let Some(outage) = &ended {
            log::info!("the service answers again, after {} s", (now - outage.since).as_secs());
        }
        ended.is_some()
    }

    /// A request of the runner's own was refused: that is said when it begins.
    pub(super) fn refused(&mut self, what: &'static str, failure: &Failure) {
        if self.refused.insert(what) {
            log::error!("the service does not accept the {what}: {failure}; trying again at its next turn");
        } else {
            log::debug!("the {what} is still not accepted: {failure}");
        }
    }

    /// A request of the runner's own did what it should.
    pub(super) fn accepted(&mut self, what: &'static str) {
        if self.refused.remove(what) {
            log::info!("the service accepts the {what} again");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_when_what_failed_first_is_answered_or_is_no_longer_tried() {
        let mut link = Link::new(String::new());
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        link.unreachable("output of execution a", "no answer", begin);
        assert!(!link.reached("output of execution b", at(1)) && !link.reached("heartbeat", at(110)));
        link.unreachable("output of execution a", "no answer", at(115));
        assert!(!link.reached("heartbeat", at(130)));
        assert!(link.reached("output of execution a", at(131)) && !link.reached("heartbeat", at(132)));
        link.unreachable("cancel-status of execution a", "no answer", at(140));
        link.unreachable("poll", "no answer", at(250));
        assert!(link.reached("heartbeat", at(260)));
    }
}
