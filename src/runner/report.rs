//! What the runner says of itself while it works: `status.json`, and systemd's notifications.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::executions::Active;
use super::link::Link;
use crate::gather::gather;
use crate::log;
use crate::notify::Notify;
use crate::status::{Key, Moment, Status, TURN_MAX};

/// The time of the service's last answer, and how much it has, are written this often; other changes at once.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long a turn may take besides its one request: name lookups and a busy disk.
const TURN_SLACK: Duration = Duration::from_secs(30);

pub(super) struct Report {
    state: PathBuf,
    status: Status,
    written: Option<(Instant, Status)>,
    /// The disk did not take what was last written.
    is_unsaid: bool,
    notify: Notify,
    fed: Instant,
    longest_turn: Duration,
    /// Another runner has the state directory.
    is_replaced: bool,
}

impl Report {
    pub(super) fn new(state: PathBuf, status: Status, notify: Notify) -> Self {
        Self {
            state,
            status,
            written: None,
            is_unsaid: false,
            notify,
            fed: Instant::now(),
            longest_turn: TURN_SLACK,
            is_replaced: false,
        }
    }

    /// The runner goes by this configuration from now on.
    pub(super) fn goes_by(&mut self, server_url: &str, request_timeout: Duration) {
        self.status.server_url = Some(server_url.to_owned());
        // A request may be sent once more, on a fresh connection.
        self.longest_turn = 2 * request_timeout + TURN_SLACK;
        self.status.longest_turn = self.longest_turn.as_secs_f64();
    }

    /// Lock and configuration are there. Whether the service is has nothing to do with it.
    pub(super) fn ready(&self) {
        self.notify.ready();
    }

    /// The file may be gone: it is written anew at the next turn.
    pub(super) fn forget(&mut self) {
        self.written = None;
    }

    /// The state directory is another runner's now, and so is its `status.json`.
    pub(super) fn leave_file_alone(&mut self) {
        self.is_replaced = true;
    }

    /// An execution was taken, or why it could not be.
    pub(super) fn taken(&mut self, error: Option<String>) {
        self.status.cannot_take = error;
    }

    pub(super) fn reloading(&mut self) {
        self.status.is_reloading = true;
        self.notify.reloading();
    }

    /// The project was loaded again, or that failed.
    pub(super) fn reloaded(&mut self, error: Option<String>) {
        self.status.is_reloading = false;
        self.status.reloads += 1;
        self.status.reload_error = error;
        if !self.status.stopping {
            self.notify.ready();
        }
    }

    pub(super) fn stopping(&mut self) {
        self.status.stopping = true;
        self.notify.stopping();
    }

    /// When the next turn is due for this file's sake.
    pub(super) fn due(&self) -> Instant {
        let turn = self.written.as_ref().map_or(self.fed, |(when, _)| *when + TURN_MAX);
        self.notify.watchdog_interval().map_or(turn, |interval| turn.min(self.fed + interval))
    }

    /// Once each turn: writes what has changed, and feeds the watchdog.
    pub(super) fn turn(&mut self, link: &Link, active: &[Active], now: Instant) {
        // When a turn begins, the last feeding may be half of the watchdog's time ago.
        if self.notify.allow(2 * self.longest_turn) {
            let seconds = 2 * self.longest_turn.as_secs();
            log::info!(
                "the watchdog is set to {seconds} s: a turn may take half of that, waiting for the service"
            );
        }
        if self.notify.watchdog_interval().is_some_and(|interval| now >= self.fed + interval) {
            self.notify.feed();
            self.fed = now;
        }
        link.describe(&mut self.status);
        let delivered = active.iter().map(|one| (one.spec.id.as_str().to_owned(), one.delivery.delivered()));
        self.status.delivered = gather(delivered);
        let running = active.iter().filter(|one| one.is_running()).count();
        self.notify.status(&self.summary(running));
        let is_due = match &self.written {
            None => true,
            Some((when, written)) => {
                let mut calm = written.clone();
                calm.contact = self.status.contact;
                if calm.delivered.keys().eq(self.status.delivered.keys()) {
                    calm.delivered.clone_from(&self.status.delivered);
                }
                let interval = if calm != self.status {
                    Duration::ZERO
                } else if *written != self.status || self.is_unsaid {
                    PROGRESS_INTERVAL
                } else {
                    TURN_MAX
                };
                now >= *when + interval
            }
        };
        if is_due && !self.is_replaced {
            self.status.turned = Moment::now();
            let result = self.status.write(&self.state);
            self.is_unsaid = result.is_err();
            if let Err(error) = result {
                log::debug!("status.json cannot be written: {error}");
                // Old words are worse than none: they pass for those of a runner that hangs.
                Status::remove(&self.state);
            }
            self.written = Some((now, self.status.clone()));
        }
    }

    fn summary(&self, running: usize) -> String {
        let Status { suspended, outage, key, .. } = &self.status;
        let service = match (outage, key, suspended) {
            (Some(outage), _, _) => format!("the service cannot be reached: {}", outage.cause),
            (None, Key::Refused, _) => "the service refuses the key".to_owned(),
            (None, Key::Unproven, _) => "connecting".to_owned(),
            (None, Key::Accepted, Some(reason)) => format!("suspended: {reason}"),
            (None, Key::Accepted, None) => "connected".to_owned(),
        };
        let reload = if self.status.reload_error.is_some() { "; the last reload failed" } else { "" };
        format!("{service}; {running} running{reload}")
    }
}
