//! Role 1: the loop. All network, policy and timers, in one thread.
//!
//! Each turn takes the signals, looks after the executions, does the most urgent duty that is due (one request at
//! most), and then waits for the next due time or a signal. Nothing that must not be forgotten is only in memory: an
//! execution is a directory, and a new one, a running one and one found after a crash go the same way.

mod duties;
mod executions;
mod link;
mod reload;
mod report;
mod told;
mod wishes;

pub use wishes::{Wish, Wishes};

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

use crate::api::CancelWish;
use crate::audit::{Asker, Audit, Event};
use crate::load;
use crate::load::{Loaded, Loader};
use crate::log;
use crate::notify::Notify;
use crate::state::{self, StateDir};
use crate::status::Status;
use crate::sys;
use crate::timer::Recurring;
use duties::Share;
use executions::{Active, Stage};
use link::Link;
use reload::Reload;
use report::Report;
use told::Told;

/// How often is asked for pending executions (`protocol.md`, Meaning).
const POLL_INTERVAL: Duration = Duration::from_secs(2);
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
/// How many executions that were given up are remembered, so that each is tried now and then and not at every poll.
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
    /// How long what runs may go on once it is told to stop; `None`: until it ends.
    pub drain: Option<Duration>,
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
    /// Another service is to be gone by once this one has everything.
    waits_for_delivery: bool,
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
    /// What is odd on the pending list.
    odd_offers: Told,
    troubles: Told,
    /// When each of the duties that share what time is left was last done, so that none can keep the others out.
    last_done: HashMap<Share, Instant>,
    /// Executions whose `start` the service refused. If it goes on offering them, they are tried again in a while.
    given_up: HashMap<String, Instant>,
    wishes: Wishes,
    drain: Option<Duration>,
    stop: Stop,
    round: Round,
}

enum Stop {
    No,
    /// Take nothing new, let what runs end.
    Draining {
        /// When somebody interrupted it; `None` if it was only told to stop.
        interrupted: Option<Instant>,
        /// When what still runs is cancelled.
        until: Option<Instant>,
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

impl Runner {
    /// Takes over what an earlier runner left.
    ///
    /// # Errors
    /// The executions' directory cannot be read.
    pub fn new(parts: Parts, wishes: Wishes) -> io::Result<Self> {
        // Only now: a signal that neither ends the process nor is caught would be forgotten.
        wishes.waited();
        let Parts { loader, mut loaded, state, mut audit, status, notify, watches_files, drain, once } =
            parts;
        let now = Instant::now();
        let (interval, retries) = (loaded.config.heartbeat_interval, loaded.config.max_retries);
        let active = executions::adopt(&state.executions(), &loaded.config)?;
        audit.set_syslog(loaded.config.audit_syslog);
        audit.note(None, &configured(&loaded));
        let mut reload = Reload::new(loader, std::mem::take(&mut loaded.watch), watches_files);
        reload.set_pace(interval, loaded.facts.debug);
        let mut report = Report::new(state.path().to_owned(), status, notify);
        report.goes_by(loaded.config.server.as_str(), loaded.config.request_timeout);
        let link = Link::new(loaded.catalogue.hash.clone());
        // Whoever is told that it is ready may ask for the status.
        report.turn(&link, &active, now);
        report.ready();
        Ok(Self {
            found: loaded.facts.names(),
            active,
            link,
            reload,
            waits_for_delivery: false,
            report,
            heartbeat: Recurring::new(interval, retries, now),
            sync: Recurring::new(interval, retries, now),
            needs_sync: false,
            sync_refused: false,
            poll: Recurring::new(POLL_INTERVAL, retries, now),
            last_activity: None,
            last_delivery: now,
            more_pending: false,
            odd_offers: Told::default(),
            troubles: Told::default(),
            last_done: HashMap::new(),
            given_up: HashMap::new(),
            wishes,
            drain,
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
            while let Some(wish) = self.wishes.take() {
                self.obey(wish);
            }
            self.tend_drain();
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
            Stop::Draining { until: end, .. } => until = end.map_or(until, |end| until.min(end)),
        }
        self.wishes.wait(until.saturating_duration_since(Instant::now()));
    }

    /// Reaps what has ended: shims of ours, and whatever lands on process 1 of a container.
    fn reap(&mut self) {
        while let Some(pid) = sys::ended_child() {
            if !self.reload.reap(pid) {
                sys::reap_child(pid);
            }
        }
    }

    fn obey(&mut self, wish: Wish) {
        let running = self.running();
        match (wish, &self.stop) {
            (Wish::Reload, Stop::No) => self.reload.ask(),
            (Wish::Reload, _) => {
                log::info!("the project is not loaded again: the runner is stopping");
                self.report.reloaded(Some("it is stopping".to_owned()));
            }
            (Wish::Leave, _) => {
                log::info!("handing over; {running} running execution(s) go on under the next runner");
                self.report.stopping();
                self.stop = Stop::Leaving { until: Instant::now() + HAND_OVER_PATIENCE };
                self.give_back();
            }
            (Wish::Stop | Wish::Interrupt, Stop::No) => {
                let hint = if wish == Wish::Interrupt { "; a second signal cancels them" } else { "" };
                match running {
                    0 => log::info!("stopping"),
                    _ => log::info!("stopping when {running} running execution(s) have ended{hint}"),
                }
                self.drain((wish == Wish::Interrupt).then(Instant::now));
            }
            (Wish::Stop, _) => {}
            // It was told to stop before, which whoever sends this need not know.
            (Wish::Interrupt, Stop::Draining { interrupted: None, until, cancelled }) => {
                log::info!("stopping already; another signal cancels what runs");
                let (until, cancelled) = (*until, *cancelled);
                self.stop = Stop::Draining { interrupted: Some(Instant::now()), until, cancelled };
            }
            (Wish::Interrupt, Stop::Draining { interrupted: Some(since), .. })
                if since.elapsed() < SAME_SIGNAL => {}
            (Wish::Interrupt | Wish::Cancel, Stop::No | Stop::Draining { cancelled: false, .. }) => {
                log::info!("cancelling {running} execution(s)");
                self.drain(None);
                self.stop = Stop::Draining { interrupted: None, until: None, cancelled: true };
                for active in &mut self.active {
                    active.want_end(CancelWish::Graceful, Asker::User, &mut self.audit);
                }
            }
            (Wish::Interrupt | Wish::Cancel, Stop::Delivering { .. }) => {
                self.stop = Stop::Delivering { until: Instant::now() }
            }
            (Wish::Interrupt | Wish::Cancel, Stop::Draining { .. } | Stop::Leaving { .. }) => {}
        }
    }

    /// Takes nothing new from now on, and lets what runs end.
    fn drain(&mut self, interrupted: Option<Instant>) {
        self.report.stopping();
        let until = self.drain.and_then(|patience| Instant::now().checked_add(patience));
        self.stop = Stop::Draining { interrupted, until, cancelled: false };
        self.active.iter_mut().for_each(Active::begin_no_more);
        self.active.retain(|active| !active.is_gone());
    }

    /// Cancels what still runs when the time that it was given is over.
    fn tend_drain(&mut self) {
        if let Stop::Draining { until: Some(until), cancelled: false, .. } = self.stop
            && Instant::now() >= until
            && self.any_unended()
        {
            self.obey(Wish::Cancel);
        }
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
                self.report.leave_file_alone();
                self.report.stopping();
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
        if self.waits_for_delivery && self.active.is_empty() {
            self.waits_for_delivery = false;
            self.reload.hurry(now);
        }
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

    /// Replaces what the runner goes by. What runs is not touched; so it waits if that is another service's.
    fn go_by(&mut self, mut loaded: Loaded, now: Instant) {
        if loaded.config.server != self.loaded.config.server && !self.active.is_empty() {
            let why = "the service is another one, and what this one has asked for is not delivered yet";
            self.waits_for_delivery = true;
            self.reload.fails(why, now);
            return self.report.reloaded(Some(why.to_owned()));
        }
        self.waits_for_delivery = false;
        loaded.lines.say_news(&self.loaded.lines);
        self.reload.taken(std::mem::take(&mut loaded.watch));
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
        self.found = loaded.facts.names();
        if !is_same_account || goes_otherwise(&self.loaded, &loaded) {
            self.audit.set_syslog(loaded.config.audit_syslog);
            self.audit.note(None, &configured(&loaded));
        }
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
            self.drain(None);
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
            active.tend(now, &self.loaded);
            active.note_end(&mut self.audit);
        }
        self.active.retain(|active| !active.is_gone());
    }

    fn tell_once(&mut self, what: &str, tell: impl Fn(&str)) {
        self.troubles.once(what, Instant::now(), tell);
    }
}

fn configured(loaded: &Loaded) -> Event<'_> {
    let Loaded { project, facts, config, .. } = loaded;
    let (python, django) = (&facts.python_version, &facts.django_version);
    Event::configured(&project.root, &facts.python, python, django, &config.effective)
}

/// Whether another project, interpreter, setting or command is gone by.
fn goes_otherwise(old: &Loaded, new: &Loaded) -> bool {
    let all = |loaded: &Loaded| {
        let Loaded { project, facts, config, catalogue, .. } = loaded;
        let versions = [&facts.python, &facts.python_version, &facts.django_version].map(String::clone);
        (project.root.clone(), versions, config.effective.clone(), catalogue.hash.clone())
    };
    all(old) != all(new)
}
