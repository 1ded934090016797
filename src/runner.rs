//! Role 1: the loop. All network, policy and timers, in one thread.
//!
//! Each turn takes the signals, looks after the executions, does the most urgent duty that is due (one request at
//! most), and then waits for the next due time or a signal. Nothing that must not be forgotten is only in memory: an
//! execution is a directory, and a new one, a running one and one found after a crash go the same way.

mod executions;
mod link;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use crate::api::{CancelWish, Client, Failure};
use crate::audit::Audit;
use crate::config::Config;
use crate::execution::{ExecutionId, Offer};
use crate::log;
use crate::project::Project;
use crate::project::probe::{Catalogue, Facts};
use crate::signals::Signals;
use crate::state::StateDir;
use crate::sys;
use crate::timer::Recurring;
use executions::{Active, Stage};
use link::Link;

/// Executions at a time; the others stay pending at the service (`protocol.md`, Meaning).
const CONCURRENT_MAX: usize = 4;
/// Executions whose end could not be reported yet. With more than that nothing new is taken.
const UNREPORTED_MAX: usize = 100;
/// How often is asked for pending executions (`protocol.md`, Meaning).
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Somebody who has just run one command often runs another: for a while they wait half as long.
const POLL_INTERVAL_ACTIVE: Duration = Duration::from_secs(1);
const ACTIVE_FOR: Duration = Duration::from_secs(30);
/// How often running executions are looked at for output and for their end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Signals that come as close together are one wish: whoever forwards a Ctrl+C may send it twice.
const SAME_SIGNAL: Duration = Duration::from_millis(200);
/// How long a runner that was told to stop tries to deliver what has ended. The rest is left to the next runner.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How many oddities of the pending list are remembered, so that each is said or tried once and not at every poll.
const REMEMBERED_MAX: usize = 1000;

/// What the runner is made of.
pub struct Parts {
    pub config: Config,
    pub project: Project,
    pub facts: Facts,
    pub catalogue: Catalogue,
    pub client: Client,
    pub state: StateDir,
    pub audit: Audit,
}

pub struct Runner {
    parts: Parts,
    /// The project's commands, for policy.
    found: BTreeSet<String>,
    executions: PathBuf,
    active: Vec<Active>,
    link: Link,
    heartbeat: Recurring,
    sync: Recurring,
    needs_sync: bool,
    poll: Recurring,
    /// When an execution was last taken or completed.
    last_activity: Option<Instant>,
    /// The last poll left something on the list for want of room.
    more_pending: bool,
    told: HashSet<String>,
    /// When each of the duties that share what time is left was last done, so that none can keep the others out.
    last_done: HashMap<Share, Instant>,
    /// Executions whose `start` the service refused. If it goes on offering them, they are tried again in a while.
    given_up: HashMap<String, Instant>,
    signals: Signals,
    /// While set, SIGTERM and SIGINT end the process at once, even inside a request.
    nothing_to_lose: Arc<AtomicBool>,
    stop: Stop,
}

enum Stop {
    No,
    /// Take nothing new, let what runs end.
    Draining {
        since: Instant,
        cancelled: bool,
    },
    /// Nothing runs any more; deliver until then.
    Delivering {
        until: Instant,
    },
}

/// The duties that are never late by more than a turn of each other, however slow the service is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Share {
    AskCancel,
    Poll,
    Output,
}

/// What a turn can do for the service: first the most urgent, then in turn what shares the rest. The number is the
/// place in `active`.
#[derive(Clone, Copy)]
enum Duty {
    Heartbeat,
    Sync,
    Complete(usize),
    Start(usize),
    AskCancel(usize),
    Poll,
    Output(usize),
}

impl Duty {
    fn share(self) -> Option<Share> {
        match self {
            Self::AskCancel(_) => Some(Share::AskCancel),
            Self::Poll => Some(Share::Poll),
            Self::Output(_) => Some(Share::Output),
            _ => None,
        }
    }
}

impl Runner {
    /// Takes over what an earlier runner left.
    ///
    /// # Errors
    /// Signals cannot be caught, or the executions' directory cannot be read.
    pub fn new(parts: Parts, nothing_to_lose: Arc<AtomicBool>) -> io::Result<Self> {
        let signals = Signals::catch(&[sys::SIGTERM, sys::SIGINT, sys::SIGCHLD])?;
        // Only now: a signal that neither ends the process nor is caught would be forgotten.
        nothing_to_lose.store(false, Ordering::SeqCst);
        let now = Instant::now();
        let (interval, retries) = (parts.config.heartbeat_interval, parts.config.max_retries);
        let executions = parts.state.executions();
        let active = executions::adopt(&executions, interval, retries)?;
        Ok(Self {
            found: parts.facts.commands.iter().cloned().collect(),
            executions,
            active,
            link: Link::new(parts.catalogue.hash.clone()),
            heartbeat: Recurring::new(interval, retries, now),
            sync: Recurring::new(interval, retries, now),
            needs_sync: false,
            poll: Recurring::new(POLL_INTERVAL, retries, now),
            last_activity: None,
            more_pending: false,
            told: HashSet::new(),
            last_done: HashMap::new(),
            given_up: HashMap::new(),
            signals,
            nothing_to_lose,
            stop: Stop::No,
            parts,
        })
    }

    /// Runs until a signal ends it.
    pub fn run(mut self) {
        loop {
            self.take_signals();
            self.tend_executions();
            if self.is_finished() {
                break;
            }
            match self.most_urgent(Instant::now()) {
                Ok(duty) => self.perform(duty),
                Err(due) => {
                    let look = Instant::now() + LOOK_INTERVAL;
                    let until = match self.stop {
                        Stop::Delivering { until } => due.min(until),
                        _ if self.any_unended() => due.min(look),
                        _ => due,
                    };
                    self.signals.wait(until.saturating_duration_since(Instant::now()));
                }
            }
        }
        match self.active.len() {
            0 => log::info!("stopped"),
            left => {
                log::warning!("stopped; the next runner will deliver what is left of {left} execution(s)")
            }
        }
    }

    fn take_signals(&mut self) {
        while sys::reap().is_some() {}
        self.signals.take(sys::SIGCHLD);
        // Both, because a terminal and a wrapper program may each send one for a single Ctrl+C.
        let came = [sys::SIGTERM, sys::SIGINT].map(|signal| self.signals.take(signal));
        if came == [false, false] {
            return;
        }
        let running =
            self.active.iter().filter(|active| matches!(active.stage, Stage::Running { .. })).count();
        match self.stop {
            Stop::No => {
                match running {
                    0 => log::info!("stopping"),
                    _ => log::info!(
                        "stopping when {running} running execution(s) have ended; a second signal cancels them"
                    ),
                }
                self.stop = Stop::Draining { since: Instant::now(), cancelled: false };
                self.active.iter_mut().for_each(Active::begin_no_more);
                self.active.retain(|active| !active.is_gone());
            }
            Stop::Draining { since, .. } if since.elapsed() < SAME_SIGNAL => {}
            Stop::Draining { since, cancelled: false } => {
                log::info!("cancelling {running} execution(s)");
                self.stop = Stop::Draining { since, cancelled: true };
                self.active.iter_mut().for_each(|active| active.want_end(CancelWish::Graceful));
            }
            Stop::Draining { cancelled: true, .. } => {}
            Stop::Delivering { .. } => self.stop = Stop::Delivering { until: Instant::now() },
        }
    }

    fn is_finished(&mut self) -> bool {
        if matches!(self.stop, Stop::Draining { .. }) && !self.any_unended() {
            self.stop = Stop::Delivering { until: Instant::now() + DELIVERY_PATIENCE };
        }
        matches!(self.stop, Stop::Delivering { until } if self.active.is_empty() || Instant::now() >= until)
    }

    fn any_unended(&self) -> bool {
        self.active.iter().any(|active| !active.has_ended())
    }

    fn tend_executions(&mut self) {
        let now = Instant::now();
        for active in &mut self.active {
            active.tend(now);
        }
        self.active.retain(|active| !active.is_gone());
    }

    /// How many executions the service sees as running: those that run, and those whose end it is just being told.
    /// One whose end it does not take now, or ever, must not keep others from running.
    fn occupied(&self, now: Instant) -> usize {
        let is_next = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let is_told = |active: &Active| {
            is_next(active.start_due())
                || is_next(active.output_due(now))
                || is_next(active.complete_due(now))
        };
        self.active.iter().filter(|active| !active.has_ended() || is_told(active)).count()
    }

    /// The most urgent duty that is due, or else when the next one will be.
    fn most_urgent(&self, now: Instant) -> Result<Duty, Instant> {
        let mut candidates = vec![(self.heartbeat.due(), Duty::Heartbeat)];
        if self.link.key_is_good() {
            if self.needs_sync {
                candidates.push((self.sync.due(), Duty::Sync));
            }
            let of_all = |duty: fn(usize) -> Duty, due: &dyn Fn(&Active) -> Option<Instant>| {
                let all = self.active.iter().enumerate();
                all.filter_map(|(i, active)| Some((due(active)?, duty(i)))).collect::<Vec<_>>()
            };
            candidates.extend(of_all(Duty::Complete, &|active| active.complete_due(now)));
            candidates.extend(of_all(Duty::Start, &Active::start_due));
            let mut ask = of_all(Duty::AskCancel, &Active::ask_due);
            ask.sort_by_key(|(due, _)| *due);
            let poll = if self.takes_more() { vec![(self.poll.due(), Duty::Poll)] } else { vec![] };
            let mut output = of_all(Duty::Output, &|active| active.output_due(now));
            output.sort_by_key(|(_, duty)| match duty {
                Duty::Output(i) => self.active[*i].delivery.last_window(),
                _ => None,
            });
            let mut shares = [(Share::AskCancel, ask), (Share::Poll, poll), (Share::Output, output)];
            shares.sort_by_key(|(share, _)| self.last_done.get(share).copied());
            candidates.extend(shares.into_iter().flat_map(|(_, duties)| duties));
        }
        match candidates.iter().find(|(due, _)| *due <= now) {
            Some((_, duty)) => Ok(*duty),
            None => Err(candidates.iter().map(|(due, _)| *due).min().unwrap_or(now)),
        }
    }

    fn takes_more(&self) -> bool {
        matches!(self.stop, Stop::No)
            && !self.link.is_suspended()
            && self.occupied(Instant::now()) < CONCURRENT_MAX
            && self.active.len() < UNREPORTED_MAX
    }

    fn perform(&mut self, duty: Duty) {
        let nothing_to_lose = self.active.is_empty() || matches!(self.stop, Stop::Delivering { .. });
        self.nothing_to_lose.store(nothing_to_lose, Ordering::SeqCst);
        if self.signals.is_raised(sys::SIGTERM) || self.signals.is_raised(sys::SIGINT) {
            // It came before the handlers could end the process: the next turn takes it.
            return self.nothing_to_lose.store(false, Ordering::SeqCst);
        }
        if let Some(share) = duty.share() {
            self.last_done.insert(share, Instant::now());
        }
        match duty {
            Duty::Heartbeat => self.send_heartbeat(),
            Duty::Sync => self.send_sync(),
            Duty::Poll => self.send_poll(),
            Duty::Start(i) => self.send_start(i),
            Duty::AskCancel(i) => self.ask_cancel(i),
            Duty::Output(i) => self.send_output(i),
            Duty::Complete(i) => self.send_complete(i),
        }
        self.nothing_to_lose.store(false, Ordering::SeqCst);
    }

    /// Tells the link how a request went, and draws the consequences that concern all duties.
    fn heard<T>(&mut self, what: &str, result: &Result<T, Failure>) -> Instant {
        let now = Instant::now();
        match result {
            Err(Failure::Denied { message, .. }) => {
                let wait = self.link.key_refused(message, now);
                self.heartbeat.reschedule(now + wait);
            }
            Err(Failure::Unreachable { cause, .. }) => self.link.unreachable(what, cause, now),
            Ok(_) | Err(Failure::Refused { .. }) => {
                if self.link.reached(what, now) {
                    self.active.iter_mut().for_each(|active| active.resume(now));
                }
            }
        }
        now
    }

    fn send_heartbeat(&mut self) {
        let Facts { python_version, django_version, .. } = &self.parts.facts;
        let result = self.parts.client.heartbeat(python_version, django_version, self.link.hash());
        let now = self.heard("heartbeat", &result);
        match result {
            Ok(heartbeat) => {
                self.heartbeat.succeeded(now);
                self.link.accepted("heartbeat");
                if self.link.key_accepted() {
                    self.poll.resume(now);
                    self.active.iter_mut().for_each(|active| active.key_is_good_again(now));
                }
                if heartbeat.pending_executions > 0 {
                    self.poll.hurry(now);
                }
                if !heartbeat.commands_in_sync && !self.needs_sync {
                    self.needs_sync = true;
                    self.sync.reschedule(now);
                }
                self.link.suspension(heartbeat.suspended);
            }
            Err(Failure::Denied { .. }) => {}
            Err(failure) => put_off(&mut self.heartbeat, "heartbeat", &failure, &mut self.link, now),
        }
    }

    fn send_sync(&mut self) {
        let result = self.parts.client.sync(&self.parts.catalogue);
        let now = self.heard("sync", &result);
        match result {
            Ok((count, hash)) => {
                log::info!("told the service of {count} command(s)");
                self.needs_sync = false;
                self.link.accepted("sync");
                if let Some(hash) = hash {
                    self.link.adopt_hash(hash);
                }
            }
            Err(failure) => put_off(&mut self.sync, "sync", &failure, &mut self.link, now),
        }
    }

    fn send_poll(&mut self) {
        let result = self.parts.client.pending();
        let now = self.heard("poll", &result);
        match result {
            Ok(entries) => {
                self.poll.succeeded(now);
                self.link.accepted("poll");
                self.nothing_to_lose.store(false, Ordering::SeqCst);
                self.take(&entries);
                if self.last_activity.is_some_and(|last| last.elapsed() < ACTIVE_FOR) {
                    self.poll.hurry(now + POLL_INTERVAL_ACTIVE);
                }
            }
            Err(failure) => put_off(&mut self.poll, "poll", &failure, &mut self.link, now),
        }
    }

    /// Takes from the pending list what there is room for.
    fn take(&mut self, entries: &[Box<RawValue>]) {
        self.more_pending = false;
        for entry in entries {
            let offer = match Offer::parse(entry) {
                Ok(offer) => offer,
                Err(why) => {
                    self.tell_once(&why, |why| log::warning!("skipped an entry of the pending list: {why}"));
                    continue;
                }
            };
            if self.is_in_hand(&offer.id) {
                continue;
            }
            if self.parts.audit.has(&offer.id) {
                self.tell_once(offer.id.as_str(), |id| {
                    log::warning!("execution {id} was here before and is not run again")
                });
                continue;
            }
            if !self.takes_more() {
                self.more_pending = true;
                return;
            }
            self.take_one(offer);
        }
    }

    /// Whether nothing is to be done about an offer now: it has been taken, or was given up a short while ago.
    fn is_in_hand(&self, id: &ExecutionId) -> bool {
        let id = id.canonical();
        let interval = self.parts.config.heartbeat_interval;
        self.given_up.get(&id).is_some_and(|since| since.elapsed() < interval)
            || self.active.iter().any(|active| active.spec.id.canonical() == id)
    }

    fn take_one(&mut self, offer: Offer) {
        let (id, command) = (offer.id.clone(), offer.command.clone());
        let spec = executions::decide(offer, &self.parts.config.policy, &self.found, &self.parts);
        match Active::create(&self.executions, spec, &self.heartbeat_pace()) {
            Ok(active) => {
                self.last_activity = Some(Instant::now());
                self.active.push(active);
            }
            Err(error) => {
                let what = format!("execution {id} ({command}) cannot be taken: {error}");
                self.tell_once(&what, |what| log::error!("{what}; it stays pending at the service"));
            }
        }
    }

    /// `start` keeps the heartbeat's pace when its retries are used up.
    fn heartbeat_pace(&self) -> Recurring {
        Recurring::new(self.parts.config.heartbeat_interval, self.parts.config.max_retries, Instant::now())
    }

    fn tell_once(&mut self, what: &str, tell: impl Fn(&str)) {
        if self.told.len() >= REMEMBERED_MAX {
            self.told.clear();
        }
        if self.told.insert(what.to_owned()) {
            tell(what);
        }
    }

    fn send_start(&mut self, i: usize) {
        let id = &self.active[i].spec.id;
        let (what, result) = (format!("start of execution {id}"), self.parts.client.start(id));
        let now = self.heard(&what, &result);
        if !self.active[i].started(result, &mut self.parts.audit, now) {
            let given_up = self.active.remove(i);
            if self.given_up.len() >= REMEMBERED_MAX {
                self.given_up.clear();
            }
            self.given_up.insert(given_up.spec.id.canonical(), now);
        }
    }

    fn ask_cancel(&mut self, i: usize) {
        let id = &self.active[i].spec.id;
        let (what, result) = (format!("cancel-status of execution {id}"), self.parts.client.cancel_wish(id));
        let now = self.heard(&what, &result);
        self.active[i].asked(result, now);
    }

    fn send_output(&mut self, i: usize) {
        let active = &mut self.active[i];
        let Some(body) = active.next_chunk() else { return };
        let id = &active.spec.id;
        let (what, result) = (format!("output of execution {id}"), self.parts.client.output(id, &body));
        let now = self.heard(&what, &result);
        self.active[i].sent(result, now);
    }

    fn send_complete(&mut self, i: usize) {
        let Some(outcome) = self.active[i].outcome_to_report() else { return };
        let id = &self.active[i].spec.id;
        let (what, result) =
            (format!("completion of execution {id}"), self.parts.client.complete(id, outcome));
        let now = self.heard(&what, &result);
        if self.active[i].completed(result, outcome, &mut self.parts.audit, now) {
            self.active.remove(i);
            self.last_activity = Some(now);
            if self.more_pending {
                self.poll.hurry(now);
            }
        }
    }
}

/// Plans when a duty of the runner's own comes again after a failure.
fn put_off(duty: &mut Recurring, what: &'static str, failure: &Failure, link: &mut Link, now: Instant) {
    if let Failure::Refused { .. } = failure {
        link.refused(what, failure);
        duty.refused(now);
    } else {
        duty.failed(now, failure.retry_after());
    }
}
