//! Role 1: the loop. All network, policy and timers, in one thread.
//!
//! Each turn takes the signals, looks after the executions, does the most urgent duty that is due (one request at
//! most), and then waits for the next due time or a signal. Nothing that must not be forgotten is only in memory: an
//! execution is a directory, and a new one, a running one and one found after a crash go the same way.

mod executions;
mod link;
mod reload;
mod report;
mod wishes;

pub use wishes::{Wish, Wishes};

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use crate::api::{CancelWish, Failure};
use crate::audit::Audit;
use crate::execution::{ExecutionId, Offer};
use crate::load;
use crate::load::{Loaded, Loader};
use crate::log;
use crate::notify::Notify;
use crate::project::probe::Facts;
use crate::state::{self, StateDir};
use crate::status::Status;
use crate::sys;
use crate::timer::Recurring;
use executions::{Active, Stage};
use link::Link;
use reload::Reload;
use report::Report;

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
/// How long a runner that hands over waits for the begin of what it has already told the service to have started.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);
/// How long `start --once` goes on while nothing runs and the service takes nothing of what there is.
const ROUND_PATIENCE: Duration = Duration::from_secs(60);
/// How many oddities of the pending list are remembered, so that each is said or tried once and not at every poll.
const REMEMBERED_MAX: usize = 1000;

/// What the runner is made of.
pub struct Parts {
    pub loader: Loader,
    pub loaded: Loaded,
    pub state: StateDir,
    pub audit: Audit,
    pub status: Status,
    pub notify: Notify,
    pub watches_files: bool,
    /// It ends when everything that waits is done.
    pub once: bool,
}

/// How a runner has ended.
pub enum End {
    /// The service has everything.
    Done,
    /// The next runner has something to deliver, or the service could not be asked.
    SomethingLeft,
}

pub struct Runner {
    /// What it goes by: replaced as a whole when the project is loaded again.
    loaded: Loaded,
    state: StateDir,
    audit: Audit,
    /// The project's commands, for policy.
    found: BTreeSet<String>,
    active: Vec<Active>,
    link: Link,
    reload: Reload,
    report: Report,
    heartbeat: Recurring,
    sync: Recurring,
    needs_sync: bool,
    /// The service did not accept the last one.
    sync_refused: bool,
    poll: Recurring,
    /// When an execution was last taken or completed.
    last_activity: Option<Instant>,
    /// When the service last took output or a completion, or had no need to: something ran, or nothing was left.
    last_delivery: Instant,
    /// The last poll left something on the list for want of room.
    more_pending: bool,
    told: HashSet<String>,
    /// When each of the duties that share what time is left was last done, so that none can keep the others out.
    last_done: HashMap<Share, Instant>,
    /// Executions whose `start` the service refused. If it goes on offering them, they are tried again in a while.
    given_up: HashMap<String, Instant>,
    wishes: Wishes,
    stop: Stop,
    round: Round,
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
    /// What has begun is the next runner's; wait until then for the begin of the rest.
    Leaving {
        until: Instant,
    },
}

/// Whether one round of work is all there is to do (`start --once`).
#[derive(Clone, Copy, PartialEq)]
enum Round {
    Endless,
    /// The service has not yet said that there is nothing more to take.
    Open,
    Over,
    /// The service could not be asked.
    Failed,
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
    /// The executions' directory cannot be read.
    pub fn new(parts: Parts, wishes: Wishes) -> io::Result<Self> {
        // Only now: a signal that neither ends the process nor is caught would be forgotten.
        wishes.waited();
        let Parts { loader, mut loaded, state, audit, status, notify, watches_files, once } = parts;
        let now = Instant::now();
        let (interval, retries) = (loaded.config.heartbeat_interval, loaded.config.max_retries);
        let active = executions::adopt(&state.executions(), interval, retries)?;
        let mut reload = Reload::new(loader, std::mem::take(&mut loaded.watch), watches_files);
        reload.set_pace(interval, loaded.facts.debug);
        let mut report = Report::new(state.path().to_owned(), status, notify);
        report.goes_by(loaded.config.server.as_str(), loaded.config.request_timeout);
        let link = Link::new(loaded.catalogue.hash.clone());
        // Whoever is told that it is ready may ask for the status.
        report.turn(&link, &active, now);
        report.ready();
        Ok(Self {
            found: loaded.facts.commands.iter().cloned().collect(),
            active,
            link,
            reload,
            report,
            heartbeat: Recurring::new(interval, retries, now),
            sync: Recurring::new(interval, retries, now),
            needs_sync: false,
            sync_refused: false,
            poll: Recurring::new(POLL_INTERVAL, retries, now),
            last_activity: None,
            last_delivery: now,
            more_pending: false,
            told: HashSet::new(),
            last_done: HashMap::new(),
            given_up: HashMap::new(),
            wishes,
            stop: Stop::No,
            round: if once { Round::Open } else { Round::Endless },
            loaded,
            state,
            audit,
        })
    }

    /// Runs until a signal ends it, or its one round is over.
    pub fn run(mut self) -> End {
        loop {
            self.reap();
            self.take_wishes();
            self.keep_state_dir();
            self.tend_executions();
            self.tend_reload();
            self.tend_round();
            let now = Instant::now();
            self.report.turn(&self.link, &self.active, now);
            if self.is_finished() {
                break;
            }
            match self.most_urgent(now) {
                Ok(duty) => self.perform(duty),
                Err(due) => self.wait(due),
            }
        }
        match self.active.len() {
            0 => log::info!("stopped"),
            left => {
                log::warning!("stopped; the next runner will deliver what is left of {left} execution(s)")
            }
        }
        let round_is_done = match self.round {
            Round::Endless => true,
            Round::Over => !self.sync_refused,
            Round::Open | Round::Failed => false,
        };
        let is_done = self.active.is_empty() && round_is_done;
        if is_done { End::Done } else { End::SomethingLeft }
    }

    /// Waits for the next duty, or for what else is to be looked at before that.
    fn wait(&self, due: Instant) {
        let look = Instant::now() + LOOK_INTERVAL;
        let mut until = due.min(self.report.due());
        if self.any_unended() || self.reload.is_loading() {
            until = until.min(look);
        }
        match self.stop {
            Stop::Delivering { until: end } | Stop::Leaving { until: end } => until = until.min(end),
            Stop::No => until = self.reload.due().map_or(until, |reload| until.min(reload)),
            Stop::Draining { .. } => {}
        }
        self.wishes.wait(until.saturating_duration_since(Instant::now()));
    }

    /// Reaps what has ended: shims of ours, and whatever lands on process 1 of a container.
    fn reap(&mut self) {
        while let Some(pid) = sys::ended_child() {
            if !self.reload.owns(pid) {
                sys::reap_child(pid);
            }
        }
    }

    fn take_wishes(&mut self) {
        let Some(wish) = self.wishes.take() else { return };
        let running = self.running();
        match (wish, &self.stop) {
            (Wish::Reload, Stop::No) => self.reload.ask(),
            (Wish::Reload, _) => {
                log::info!("the project is not loaded again: the runner is stopping");
                self.report.reloaded(Some("it is stopping".to_owned()));
            }
            (Wish::Leave, _) => {
                log::info!("handing over; {running} running execution(s) go on under the next runner");
                self.stop = Stop::Leaving { until: Instant::now() + HAND_OVER_PATIENCE };
                self.give_back();
            }
            (Wish::Stop, Stop::No) => {
                match running {
                    0 => log::info!("stopping"),
                    _ => log::info!(
                        "stopping when {running} running execution(s) have ended; a second signal cancels them"
                    ),
                }
                self.drain();
            }
            (Wish::Stop, Stop::Draining { since, .. }) if since.elapsed() < SAME_SIGNAL => {}
            (Wish::Stop | Wish::Cancel, Stop::No | Stop::Draining { cancelled: false, .. }) => {
                log::info!("cancelling {running} execution(s)");
                self.drain();
                self.stop = Stop::Draining { since: Instant::now(), cancelled: true };
                self.active.iter_mut().for_each(|active| active.want_end(CancelWish::Graceful));
            }
            (Wish::Stop | Wish::Cancel, Stop::Delivering { .. }) => {
                self.stop = Stop::Delivering { until: Instant::now() }
            }
            (Wish::Stop | Wish::Cancel, Stop::Draining { cancelled: true, .. } | Stop::Leaving { .. }) => {}
        }
    }

    /// Takes nothing new from now on, and lets what runs end.
    fn drain(&mut self) {
        self.report.stopping();
        self.stop = Stop::Draining { since: Instant::now(), cancelled: false };
        self.active.iter_mut().for_each(Active::begin_no_more);
        self.active.retain(|active| !active.is_gone());
    }

    /// What the service surely does not know to be ours is the next runner's to take.
    fn give_back(&mut self) {
        self.active.iter_mut().for_each(Active::give_back);
        self.active.retain(|active| !active.is_gone());
    }

    /// The state directory may be removed under a runner. What was in it is lost; the rest of the work need not be.
    fn keep_state_dir(&mut self) {
        match self.state.keep() {
            Ok(false) => {}
            Ok(true) => {
                self.report.forget();
                log::error!(
                    "the state directory '{}' was removed: it is made anew",
                    self.state.path().display()
                );
            }
            Err(state::Error::Taken(runner)) => {
                log::error!("the state directory was removed, and now {} has it: ending", runner.name());
                self.report.is_replaced();
                self.stop = Stop::Delivering { until: Instant::now() };
            }
            Err(state::Error::Untrusted(why) | state::Error::Unusable(why)) => {
                self.tell_once(&why, |why| log::error!("the state directory was removed: {why}"));
            }
        }
    }

    /// Loads the project again when that is due, and goes by what came of it.
    fn tend_reload(&mut self) {
        let now = Instant::now();
        if matches!(self.stop, Stop::No) {
            match self.reload.begin(now) {
                Ok(true) => self.report.reloading(),
                Ok(false) => {}
                Err(load::Error::Configuration(why) | load::Error::Failed(why)) => {
                    self.report.reloading();
                    self.reload.fails(&why, now);
                    self.report.reloaded(Some(why));
                }
            }
        }
        match self.reload.result(now) {
            None => {}
            Some(Ok(loaded)) => self.go_by(loaded, now),
            Some(Err(why)) => self.report.reloaded(Some(why)),
        }
    }

    /// Replaces what the runner goes by. What runs is not touched.
    fn go_by(&mut self, mut loaded: Loaded, now: Instant) {
        loaded.lines.say_news(&self.loaded.lines);
        self.reload.watch(std::mem::take(&mut loaded.watch));
        let (interval, retries) = (loaded.config.heartbeat_interval, loaded.config.max_retries);
        self.reload.set_pace(interval, loaded.facts.debug);
        let is_same_account = loaded.config.server == self.loaded.config.server
            && loaded.config.api_key.reveal() == self.loaded.config.api_key.reveal();
        if !is_same_account {
            self.link.renew();
        }
        let is_news = self.link.set_hash(&loaded.catalogue.hash) || !is_same_account;
        self.needs_sync |= is_news;
        let old = &self.loaded.config;
        if !is_same_account || (interval, retries) != (old.heartbeat_interval, old.max_retries) {
            self.heartbeat = Recurring::new(interval, retries, now);
            self.sync = Recurring::new(interval, retries, now);
            self.poll = Recurring::new(POLL_INTERVAL, retries, now);
        } else if is_news {
            self.heartbeat.hurry(now);
            self.sync.hurry(now);
        }
        self.found = loaded.facts.commands.iter().cloned().collect();
        self.loaded = loaded;
        self.report.goes_by(self.loaded.config.server.as_str(), self.loaded.config.request_timeout);
        self.report.reloaded(None);
        log::info!("the project was loaded again");
    }

    /// With `--once`: ends when the round is over, or cannot be made.
    fn tend_round(&mut self) {
        if !matches!(self.stop, Stop::No) {
            return;
        }
        if self.running() > 0 || self.active.is_empty() {
            self.last_delivery = Instant::now();
        }
        let is_stuck = self.last_delivery.elapsed() >= ROUND_PATIENCE;
        self.fail_round_unless(!is_stuck);
        let ends = match self.round {
            Round::Endless | Round::Open => false,
            Round::Over => self.active.is_empty() && (!self.needs_sync || self.sync_refused),
            Round::Failed => true,
        };
        if ends {
            if self.round == Round::Failed {
                log::error!("this round could not be finished: what waits is left to the next one");
            }
            self.drain();
        }
    }

    /// A request of the round failed; if it is not even tried again, so has the round.
    fn fail_round_unless(&mut self, goes_on: bool) {
        if self.round != Round::Endless && !goes_on {
            self.round = Round::Failed;
        }
    }

    fn is_finished(&mut self) -> bool {
        if matches!(self.stop, Stop::Draining { .. }) && !self.any_unended() {
            self.stop = Stop::Delivering { until: Instant::now() + DELIVERY_PATIENCE };
        }
        match self.stop {
            Stop::No | Stop::Draining { .. } => false,
            Stop::Delivering { until } => self.active.is_empty() || Instant::now() >= until,
            Stop::Leaving { until } => !self.any_new() || Instant::now() >= until,
        }
    }

    fn any_new(&self) -> bool {
        self.active.iter().any(|active| matches!(active.stage, Stage::New))
    }

    fn running(&self) -> usize {
        self.active.iter().filter(|active| active.is_running()).count()
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
        let Facts { python_version, django_version, .. } = &self.loaded.facts;
        let result = self.loaded.client.heartbeat(python_version, django_version, self.link.hash());
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
                    self.tell_once(&why, |why| log::warning!("skipped an entry of the pending list: {why}"));
                    continue;
                }
            };
            if self.is_in_hand(&offer.id) {
                continue;
            }
            if self.audit.has(&offer.id) {
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
        let interval = self.loaded.config.heartbeat_interval;
        self.given_up.get(&id).is_some_and(|since| since.elapsed() < interval)
            || self.active.iter().any(|active| active.spec.id.canonical() == id)
    }

    fn take_one(&mut self, offer: Offer) {
        let (id, command) = (offer.id.clone(), offer.command.clone());
        let spec = executions::decide(offer, &self.found, &self.loaded);
        match Active::create(&self.state.executions(), spec, &self.heartbeat_pace()) {
            Ok(active) => {
                self.last_activity = Some(Instant::now());
                self.active.push(active);
            }
            Err(error) => {
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
        self.active[i].asked(result, now);
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
