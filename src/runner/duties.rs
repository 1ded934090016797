//! What a turn can do for the service: which request is the most urgent, and what its answer brings about.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::executions::{self, Active};
use super::link::Link;
use super::{REMEMBERED_MAX, Round, Runner, Stop};
use crate::api::Failure;
use crate::audit::Event;
use crate::execution::{ExecutionId, Offer};
use crate::log;
use crate::project::probe::Facts;
use crate::timer::Recurring;

/// Executions at a time; the others stay pending at the service (`protocol.md`, Meaning).
const CONCURRENT_MAX: usize = 4;
/// Executions whose end could not be reported yet. With more than that nothing new is taken.
const UNREPORTED_MAX: usize = 100;
/// Somebody who has just run one command often runs another: for a while they wait less than half as long.
const POLL_INTERVAL_ACTIVE: Duration = Duration::from_millis(700);
const ACTIVE_FOR: Duration = Duration::from_secs(30);

/// The duties that are never late by more than a turn of each other, however slow the service is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Share {
    AskCancel,
    Poll,
    Output,
}

/// What a turn can do for the service: first the most urgent, then in turn what shares the rest. The number is the
/// place in `active`.
#[derive(Clone, Copy)]
pub(super) enum Duty {
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
    pub(super) fn most_urgent(&self, now: Instant) -> Result<Duty, Instant> {
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
            && !self.waits_for_delivery
            && !self.link.is_suspended()
            && self.occupied(Instant::now()) < CONCURRENT_MAX
            && self.active.len() < UNREPORTED_MAX
    }

    pub(super) fn perform(&mut self, duty: Duty) {
        let nothing_to_lose = self.active.is_empty() || matches!(self.stop, Stop::Delivering { .. });
        if !self.wishes.may_wait(nothing_to_lose, !self.any_new()) {
            return;
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
        self.wishes.waited();
    }

    /// Tells the link how a request went, and draws the consequences that concern all duties.
    fn heard<T>(&mut self, what: &str, result: &Result<T, Failure>) -> Instant {
        let now = Instant::now();
        if !matches!(result, Err(Failure::Unreachable { .. })) {
            self.link.answered();
        }
        match result {
            Err(Failure::Denied { status, message, .. }) => {
                if !self.link.key_is_refused() {
                    self.audit.note(None, &Event::KeyRefused { status: *status, message });
                }
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

    /// A key that is refused may have been rotated, and a new one be in its file by now.
    fn look_for_rotated_key(&mut self) {
        match self.loaded.config.rotated_key() {
            Ok(None) => {}
            Ok(Some(key)) => {
                log::info!("another key is in its file now: trying it");
                self.loaded.client.use_key(key.clone());
                self.loaded.config.api_key = key;
            }
            Err(why) => self.tell_once(&why, |why| log::warning!("no new key: {why}")),
        }
    }

    fn send_heartbeat(&mut self) {
        if self.link.key_is_refused() {
            self.look_for_rotated_key();
        }
        let Facts { python_version, django_version, .. } = &self.loaded.facts;
        let result = self.loaded.client.heartbeat(python_version, django_version, self.link.hash());
        let now = self.heard("heartbeat", &result);
        match result {
            Ok(heartbeat) => {
                self.heartbeat.succeeded(now);
                self.link.accepted("heartbeat");
                if self.link.key_accepted() {
                    self.audit.note(None, &Event::KeyAccepted {});
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
                if self.round == Round::Open && self.link.is_suspended() {
                    self.round = Round::Over;
                }
            }
            Err(Failure::Denied { .. }) => self.fail_round_unless(false),
            Err(failure) => {
                let goes_on = put_off(&mut self.heartbeat, "heartbeat", &failure, &mut self.link, now);
                self.fail_round_unless(goes_on);
            }
        }
    }

    fn send_sync(&mut self) {
        let result = self.loaded.client.sync(&self.loaded.catalogue);
        let now = self.heard("sync", &result);
        match result {
            Ok((count, hash)) => {
                log::info!("told the service of {count} command(s)");
                (self.needs_sync, self.sync_refused) = (false, false);
                self.link.accepted("sync");
                if let Some(hash) = hash {
                    self.link.adopt_hash(hash);
                }
            }
            Err(failure) => {
                let goes_on = put_off(&mut self.sync, "sync", &failure, &mut self.link, now);
                // The dashboard then shows an old list; that keeps nobody's command from being run.
                self.sync_refused = matches!(failure, Failure::Refused { .. });
                self.fail_round_unless((goes_on || self.sync_refused) && !is_denied(&failure));
            }
        }
    }

    fn send_poll(&mut self) {
        let result = self.loaded.client.pending();
        let now = self.heard("poll", &result);
        match result {
            Ok(entries) => {
                self.poll.succeeded(now);
                self.link.accepted("poll");
                self.wishes.waited();
                self.take(&entries);
                if self.round == Round::Open && self.active.is_empty() {
                    self.round = Round::Over;
                }
                if self.last_activity.is_some_and(|last| last.elapsed() < ACTIVE_FOR) {
                    self.poll.hurry(now + POLL_INTERVAL_ACTIVE);
                }
            }
            Err(failure) => {
                let goes_on = put_off(&mut self.poll, "poll", &failure, &mut self.link, now);
                self.fail_round_unless(goes_on && !is_denied(&failure));
            }
        }
    }

    /// Takes from the pending list what there is room for.
    fn take(&mut self, entries: &[Box<RawValue>]) {
        self.more_pending = false;
        for entry in entries {
            let offer = match Offer::parse(entry) {
                Ok(offer) => offer,
                Err(why) => {
                    self.odd_offers.once(&why, Instant::now(), |why| {
                        log::warning!("skipped an entry of the pending list: {why}")
                    });
                    continue;
                }
            };
            if self.is_in_hand(&offer.id) {
                continue;
            }
            if self.audit.has(&offer.id) {
                self.odd_offers.once(offer.id.as_str(), Instant::now(), |id| {
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
        let interval = self.loaded.config.heartbeat_interval;
        self.given_up.get(&id).is_some_and(|since| since.elapsed() < interval)
            || self.active.iter().any(|active| active.spec.id.canonical() == id)
    }

    fn take_one(&mut self, offer: Offer) {
        let (id, command) = (offer.id.clone(), offer.command.clone());
        let created = self.audit.record_offer(&offer).and_then(|()| {
            let spec = executions::decide(offer, &self.found, &self.loaded);
            Active::create(&self.state.executions(), spec, &self.heartbeat_pace())
        });
        match created {
            Ok(active) => {
                self.last_activity = Some(Instant::now());
                self.active.push(active);
                self.report.taken(None);
            }
            Err(error) => {
                self.report.taken(Some(error.to_string()));
                let what = format!("execution {id} ({command}) cannot be taken: {error}");
                self.tell_once(&what, |what| log::error!("{what}; it stays pending at the service"));
                self.fail_round_unless(false);
            }
        }
    }

    /// `start` keeps the heartbeat's pace when its retries are used up.
    fn heartbeat_pace(&self) -> Recurring {
        Recurring::new(self.loaded.config.heartbeat_interval, self.loaded.config.max_retries, Instant::now())
    }

    fn send_start(&mut self, i: usize) {
        let id = &self.active[i].spec.id;
        let (what, result) = (format!("start of execution {id}"), self.loaded.client.start(id));
        let now = self.heard(&what, &result);
        if !self.active[i].started(result, &mut self.audit, now) {
            let given_up = self.active.remove(i);
            if self.given_up.len() >= REMEMBERED_MAX {
                self.given_up.clear();
            }
            self.given_up.insert(given_up.spec.id.canonical(), now);
        }
    }

    fn ask_cancel(&mut self, i: usize) {
        let id = &self.active[i].spec.id;
        let (what, result) = (format!("cancel-status of execution {id}"), self.loaded.client.cancel_wish(id));
        let now = self.heard(&what, &result);
        self.active[i].asked(result, &mut self.audit, now);
    }

    fn send_output(&mut self, i: usize) {
        let active = &mut self.active[i];
        let Some(body) = active.next_chunk() else { return };
        let id = &active.spec.id;
        let (what, result) = (format!("output of execution {id}"), self.loaded.client.output(id, &body));
        let now = self.heard(&what, &result);
        if result.is_ok() {
            self.last_delivery = now;
        }
        self.active[i].sent(result, now);
    }

    fn send_complete(&mut self, i: usize) {
        let Some(outcome) = self.active[i].outcome_to_report() else { return };
        let id = &self.active[i].spec.id;
        let (what, result) =
            (format!("completion of execution {id}"), self.loaded.client.complete(id, outcome));
        let now = self.heard(&what, &result);
        if self.active[i].completed(result, outcome, &mut self.audit, now) {
            self.active.remove(i);
            (self.last_activity, self.last_delivery) = (Some(now), now);
            if self.more_pending {
                self.poll.hurry(now);
            }
        }
    }
}

/// Whether it was denied as with a wrong key.
fn is_denied(failure: &Failure) -> bool {
    matches!(failure, Failure::Denied { .. })
}

/// Plans when a duty of the runner's own comes again after a failure. Returns whether that is a retry.
fn put_off(
    duty: &mut Recurring,
    what: &'static str,
    failure: &Failure,
    link: &mut Link,
    now: Instant,
) -> bool {
    if let Failure::Refused { .. } = failure {
        link.refused(what, failure);
        duty.refused(now);
        false
    } else {
        duty.failed(now, failure.retry_after())
    }
}
