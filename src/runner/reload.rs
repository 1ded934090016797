//! When the project is loaded again: on SIGHUP, and when files that it was loaded from have changed.
//!
//! It happens beside the loop: Python loads the project while executions, heartbeats and output go on. What is broken
//! changes nothing: a deploy may be in the midst of it, so it is tried again, and the old configuration stays.

use std::time::{Duration, Instant};

use crate::load::{self, Loaded, Loader, Loading};
use crate::log::{self, Level};
use crate::project::probe::PRINTED;
use crate::project::watch::{Look, Watch};

use crate::timer::Backoff;

/// How often the files are looked at while they change: what two looks find the same is loaded.
const SETTLE: Duration = Duration::from_secs(1);
/// How often while the project is in development (`DEBUG`).
const DEBUG_INTERVAL: Duration = Duration::from_secs(1);
/// Waits between attempts at what is broken, in seconds.
const BROKEN: &[u64] = &[2, 5, 10, 30, 60, 300];

pub(super) struct Reload {
    loader: Loader,
    watch: Watch,
    /// Whether changed files are a reason.
    watches_files: bool,
    interval: Duration,
    look_due: Instant,
    asked: bool,
    loading: Option<Loading>,
    retry: Backoff,
    /// What was wrong with the last attempt.
    broken: Option<String>,
}

impl Reload {
    pub(super) fn new(loader: Loader, watch: Watch, watches_files: bool) -> Self {
        Self {
            loader,
            watch,
            watches_files,
            interval: Duration::ZERO,
            look_due: Instant::now(),
            asked: false,
            loading: None,
            retry: Backoff::new(BROKEN),
            broken: None,
        }
    }

    /// How often the files are looked at: with each heartbeat, or each second in development.
    pub(super) fn set_pace(&mut self, heartbeat: Duration, debug: bool) {
        self.interval = if debug { DEBUG_INTERVAL } else { heartbeat };
        self.look_due = Instant::now() + self.interval;
    }

    /// Somebody wants it now.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// When there is something to do here; `None`: only when asked.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.loading {
            Some(_) => None,
            None if self.asked => Some(Instant::now()),
            None => self.watches_files.then_some(self.look_due),
        }
    }

    /// A child of this process has ended: reaps it if it was the project's Python, and returns whether it was.
    pub(super) fn reap(&mut self, pid: u32) -> bool {
        let Some(loading) = self.loading.as_mut().filter(|loading| loading.pid() == Some(pid)) else {
            return false;
        };
        loading.ended();
        true
    }

    /// Begins what is due. Returns whether it has begun.
    pub(super) fn begin(&mut self, now: Instant) -> Result<bool, load::Error> {
        if self.loading.is_some() || !(self.asked || self.files_ask_for_it(now)) {
            return Ok(false);
        }
        self.asked = false;
        // What changes from here on is not what is being loaded.
        self.watch.look();
        self.loading = Some(self.loader.begin(Some(&self.watch))?);
        Ok(true)
    }

    fn files_ask_for_it(&mut self, now: Instant) -> bool {
        if !self.watches_files || now < self.look_due {
            return false;
        }
        self.look_due = now + self.interval;
        match self.watch.look() {
            Look::Same => self.broken.is_some() && self.retry.due(now) <= now,
            Look::Unsettled(_) => {
                self.look_due = now + SETTLE;
                false
            }
            Look::Settled(path) => {
                log::info!("'{path}' has changed: loading the project again");
                true
            }
        }
    }

    /// What became of the attempt, once it has ended.
    pub(super) fn result(&mut self, now: Instant) -> Option<Result<Loaded, String>> {
        let result = self.loading.as_mut()?.poll()?;
        self.loading = None;
        Some(match result {
            Ok(loaded) => Ok(loaded),
            Err(load::Error::Configuration(why) | load::Error::Failed(why)) => {
                self.fails(&why, now);
                Err(why)
            }
        })
    }

    /// It is said once, however often it is tried.
    pub(super) fn fails(&mut self, why: &str, now: Instant) {
        // Without what Python printed: that quotes the files as they are by then.
        let cause = why.split(PRINTED).next().unwrap_or_default();
        if self.broken.as_deref() == Some(cause) {
            log::debug!("the project is still broken: {why}");
        } else {
            let text =
                format!("the project cannot be loaded again, what was loaded before stays in force: {why}");
            log::record_lines(Level::Error, &text);
        }
        self.broken = Some(cause.to_owned());
        let wait = self.retry.failed(now, None);
        self.look_due = now + wait.min(self.interval);
        // What is there now is broken: only another change, or time, makes it worth another attempt.
        self.watch.accept();
    }

    /// What was in the way is gone. Where changed files are a reason, it is tried again at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.retry.succeeded();
        self.look_due = now;
    }

    /// The runner goes by what was loaded: from now on these are the files to look at.
    pub(super) fn taken(&mut self, watch: Watch) {
        self.retry.succeeded();
        self.broken = None;
        self.watch = watch;
    }
}
