//! One execution as the runner sees it, from the offer to the acknowledged completion.
//!
//! Its truth is its directory; what is in memory here can be had again from there, which is what adoption does.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::api::{CancelWish, Failure};
use crate::audit::{Asker, Audit, Event, Subject};
use crate::config::Config;
use crate::delivery::{self, Delivery};
use crate::execution::segment::Stream;
use crate::execution::store::{ExecutionDir, Exit, FORMAT, Keeper, Process, Spec, Task};
use crate::execution::{ExecutionId, Missing, Offer, Outcome};
use crate::load::Loaded;
use crate::log;
use crate::mask::Secrets;
use crate::policy::Rejection;
use crate::shim;
use crate::sys;
use crate::timer::{Backoff, Recurring, unix_now};

/// How often the service is asked whether a running execution shall end (`protocol.md`, Meaning).
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// What metadata-only executions show in place of each stream.
const METADATA_ONLY_TEXT: &str = "(metadata-only mode, no output captured)\n";
const INTERRUPTED_TEXT: &str = "[djangocommand: interrupted before the command began; it was not run]\n";
const SHIM_DIED_TEXT: &str =
    "[djangocommand: the process that watched the command was killed, and the command with it]\n";
/// The same two for the record.
const INTERRUPTED: &str = "interrupted before the command began; it was not run";
const SHIM_DIED: &str = "the process that watched the command was killed, and the command with it";

pub(super) enum Stage {
    /// No process yet.
    New,
    /// A shim has it. The wish is the service's or the user's; `asked` is how much of it the shim was told.
    Running {
        wish: CancelWish,
        asked: CancelWish,
    },
    Ended(Outcome),
}

pub(super) struct Active {
    pub(super) spec: Spec,
    pub(super) stage: Stage,
    pub(super) delivery: Delivery,
    dir: ExecutionDir,
    /// The service has accepted `start`.
    announced: bool,
    /// A `start` was sent whose answer never came: a 409 then means that it got through.
    unclear: bool,
    announce: Recurring,
    ask: Recurring,
    /// Its last request was answered with 401 or 403.
    denied: bool,
    /// For output and completion, one after the other.
    retry: Backoff,
    /// For what can be done without the network.
    tend_retry: Backoff,
    /// That it begins cannot be recorded.
    record_trouble: Trouble,
    /// Its output cannot be read, or how far it is delivered not be written.
    delivery_trouble: Trouble,
    /// The directory is gone: nothing can be done for this execution any more.
    gone: bool,
    /// The record of how it ended has been written, or tried.
    end_is_noted: bool,
}

/// Something that the disk does not do: said when it begins and when it ends, however often it is tried in between.
#[derive(Default)]
struct Trouble {
    is_said: bool,
}

impl Trouble {
    fn met(&mut self, say: impl FnOnce()) {
        if !std::mem::replace(&mut self.is_said, true) {
            say();
        }
    }

    fn is_over(&mut self, id: &ExecutionId) {
        if std::mem::take(&mut self.is_said) {
            log::info!("execution {id}: its files can be read and written again");
        }
    }
}

/// Lets policy decide on an offer.
pub(super) fn decide(offer: Offer, found: &BTreeSet<String>, loaded: &Loaded) -> Spec {
    let Offer { id, command, request, .. } = offer;
    let policy = &loaded.config.policy;
    let decided = request
        .map_err(Rejection::malformed)
        .and_then(|request| policy.approve(request, found, &loaded.catalogue.parsers));
    let task = match decided {
        Ok(approved) => {
            let project = &loaded.project;
            let own = project.arguments().iter().map(|arg| (*arg).to_owned());
            let mut argv = vec![loaded.facts.python.clone()];
            argv.extend(own);
            argv.push(approved.command().to_owned());
            argv.extend_from_slice(approved.args());
            Task::Run(Process {
                argv,
                directory: project.root.clone(),
                settings_module: project.settings_module.clone(),
                timeout: approved.timeout().map(|limit| limit.as_secs_f64()),
                metadata_only: approved.metadata_only(),
                max_output_bytes: loaded.config.max_output_bytes,
                audit_syslog: loaded.config.audit_syslog,
            })
        }
        Err(rejection) => Task::Reject { text: rejection.text(&command), reason: rejection.reason },
    };
    let server = Some(loaded.config.server.as_str().to_owned());
    Spec { version: FORMAT, id, command, server, task }
}

/// The executions that an earlier runner left, each at the stage that its directory shows.
pub(super) fn adopt(executions: &Path, config: &Config) -> io::Result<Vec<Active>> {
    ExecutionDir::clean(executions)?;
    // An earlier runner may have been killed before it had synced that they are there.
    ExecutionDir::open(executions.to_owned()).sync()?;
    let mut adopted = Vec::new();
    for dir in ExecutionDir::list(executions)? {
        match adopt_one(dir.clone(), config) {
            Ok(Some(active)) => {
                log::info!(
                    "execution {} ({}): taken over from an earlier runner",
                    active.spec.id,
                    active.spec.command
                );
                adopted.push(active);
            }
            Ok(None) => {}
            Err(error) => log::error!("'{}' is left alone: {error}", dir.path().display()),
        }
    }
    Ok(adopted)
}

fn adopt_one(dir: ExecutionDir, config: &Config) -> io::Result<Option<Active>> {
    let spec = match dir.spec() {
        // Nothing was ever sent for it, so the service still has it on its list.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return dir.remove().map(|()| None),
        other => other?,
    };
    if let Some(server) = spec.server.as_ref().filter(|server| *server != config.server.as_str()) {
        let why = format!("it is for the service at '{server}'; a runner for that one delivers it");
        return Err(io::Error::other(why));
    }
    let cursor = dir.cursor()?;
    let announce = Recurring::new(config.heartbeat_interval, config.max_retries, Instant::now());
    let mut active = Active::new(dir, spec, announce);
    active.announced = cursor.is_some();
    active.unclear = true;
    active.delivery = Delivery::resume(cursor.unwrap_or(Delivery::beginning()));
    let exit = active.dir.exit()?;
    // Whoever wrote it and the cursor may have been killed before he had synced that, or not be so far yet.
    active.dir.sync()?;
    active.stage = match (exit, active.dir.keeper()?) {
        (Some(exit), _) => Stage::Ended(exit.outcome),
        (None, Keeper::Nobody(_)) => {
            active.end_unwatched(INTERRUPTED_TEXT, INTERRUPTED)?;
            Stage::Ended(Outcome::FAILED)
        }
        (None, _) => Stage::Running { wish: CancelWish::None, asked: CancelWish::None },
    };
    Ok(Some(active))
}

impl Active {
    fn new(dir: ExecutionDir, spec: Spec, announce: Recurring) -> Self {
        let now = Instant::now();
        Self {
            spec,
            stage: Stage::New,
            delivery: Delivery::resume(Delivery::beginning()),
            dir,
            announced: false,
            unclear: false,
            announce,
            ask: Recurring::new(ASK_INTERVAL, 0, now + ASK_INTERVAL),
            denied: false,
            retry: Backoff::new(Backoff::DELIVERY),
            tend_retry: Backoff::new(Backoff::DELIVERY),
            record_trouble: Trouble::default(),
            delivery_trouble: Trouble::default(),
            gone: false,
            end_is_noted: false,
        }
    }

    /// Puts a decided offer on disk; from here on it cannot be forgotten.
    pub(super) fn create(executions: &Path, spec: Spec, announce: &Recurring) -> io::Result<Self> {
        let dir = ExecutionDir::create(executions, &spec)?;
        let mut active = Self::new(dir, spec, announce.clone());
        if let Task::Reject { reason, text } = &active.spec.task {
            log::warning!("execution {}: '{}' is refused: {reason}", active.spec.id, active.spec.command);
            let written = active.dir.write_output(unix_now(), &[(Stream::Stderr, text)]);
            if let Err(error) = written.and_then(|()| active.dir.write_exit(&Exit::failed(reason))) {
                let _ = active.dir.remove();
                return Err(error);
            }
            active.stage = Stage::Ended(Outcome::FAILED);
        }
        Ok(active)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended(_))
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// What can be done without the network: start the shim, pass on a wish, see that it has ended.
    pub(super) fn tend(&mut self, now: Instant, loaded: &Loaded) {
        let id = &self.spec.id;
        if !self.dir.path().exists() {
            log::error!("execution {id}: its directory is gone; nothing more can be reported of it");
            self.gone = true;
        } else if self.tend_retry.due(now) <= now {
            match self.try_tend(loaded) {
                Ok(()) => self.tend_retry.succeeded(),
                Err(error) => {
                    if self.tend_retry.failures() == 0 {
                        log::error!("execution {}: {error}; trying again", self.spec.id);
                    }
                    self.tend_retry.failed(now, None);
                }
            }
        }
    }

    fn try_tend(&mut self, loaded: &Loaded) -> io::Result<()> {
        match self.stage {
            Stage::New if self.may_begin() => self.begin(&loaded.secrets()),
            Stage::Running { wish, asked } => {
                if let Some(exit) = self.dir.exit()? {
                    return self.end(&exit);
                }
                match self.dir.keeper()? {
                    // It was killed before it had the lock; the next runner would say the same.
                    Keeper::Nobody(_) => self.end_unwatched_or_late(INTERRUPTED_TEXT, INTERRUPTED)?,
                    Keeper::Dead => self.end_unwatched_or_late(SHIM_DIED_TEXT, SHIM_DIED)?,
                    Keeper::Alive(_) if wish > asked => {
                        let signal = if wish == CancelWish::Force { shim::FORCE } else { shim::CANCEL };
                        if shim::ask(&self.dir, signal)? {
                            self.stage = Stage::Running { wish, asked: wish };
                        }
                    }
                    Keeper::Alive(_) => {}
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A shim writes `exit.json` before it lets go of its lock, so it is looked for once more.
    fn end_unwatched_or_late(&mut self, text: &str, reason: &str) -> io::Result<()> {
        match self.dir.exit()? {
            Some(exit) => return self.end(&exit),
            None => {
                self.end_unwatched(text, reason)?;
                log::error!("execution {}: its shim was killed", self.spec.id);
                self.stage = Stage::Ended(Outcome::FAILED);
            }
        }
        Ok(())
    }

    /// Its shim has written how it ended, and may not have synced that yet.
    fn end(&mut self, exit: &Exit) -> io::Result<()> {
        self.dir.sync()?;
        let (id, Missing { lost, beyond_limit }) = (&self.spec.id, exit.missing);
        if lost > 0 {
            log::error!("execution {id}: the disk did not take {lost} bytes of its output");
        }
        if beyond_limit > 0 {
            log::warning!("execution {id}: {beyond_limit} bytes of its output are beyond MAX_OUTPUT_BYTES");
        }
        self.stage = Stage::Ended(exit.outcome);
        Ok(())
    }

    /// `text` is what the service shows, `reason` what the host's own record says.
    fn end_unwatched(&self, text: &str, reason: &str) -> io::Result<()> {
        self.dir.append_text(Stream::Stderr, unix_now(), text)?;
        self.dir.write_exit(&Exit::failed(reason))
    }

    /// Records how it ended, as soon as that is seen. What the service does not know to have started has not ended: that
    /// is recorded once it does.
    pub(super) fn note_end(&mut self, audit: &mut Audit) {
        if self.end_is_noted || !self.announced || !self.has_ended() {
            return;
        }
        self.end_is_noted = true;
        if matches!(self.spec.task, Task::Run(_)) && !audit.has_end(&self.spec.id) {
            match self.dir.exit() {
                Ok(Some(exit)) => audit.note(Some(self.subject()), &Event::ended(&exit)),
                Ok(None) => {}
                Err(error) => log::error!("execution {}: how it ended cannot be read: {error}", self.spec.id),
            }
        }
    }

    fn subject(&self) -> Subject<'_> {
        Subject { id: &self.spec.id, command: &self.spec.command }
    }

    /// Metadata-only executions begin when the service has the text that stands for their output.
    fn may_begin(&self) -> bool {
        self.announced && self.output_due(Instant::now()).is_none()
    }

    fn begin(&mut self, secrets: &Secrets) -> io::Result<()> {
        let launched = match self.dir.keeper()? {
            Keeper::Nobody(lock) => shim::launch(&self.dir, lock, secrets),
            _ => Ok(()),
        };
        self.stage = match launched {
            Ok(()) => Stage::Running { wish: CancelWish::None, asked: CancelWish::None },
            Err(error) => {
                let reason = format!("no process can be started on this host: {error}");
                self.end_unwatched(&format!("[djangocommand: {reason}]\n"), &reason)?;
                log::error!("execution {}: no process can be started: {error}", self.spec.id);
                Stage::Ended(Outcome::FAILED)
            }
        };
        self.ask.reschedule(Instant::now() + ASK_INTERVAL);
        Ok(())
    }

    /// The service or the user wants it to end. It ends even if that cannot be recorded.
    pub(super) fn want_end(&mut self, wanted: CancelWish, by: Asker, audit: &mut Audit) {
        let is_force = wanted == CancelWish::Force;
        if matches!(self.stage, Stage::Running { wish, .. } if wanted > wish) {
            audit.note(Some(self.subject()), &Event::signalled(by, is_force));
        }
        if matches!(self.stage, Stage::New) {
            self.interrupt();
        } else if let Stage::Running { wish, .. } = &mut self.stage
            && wanted > *wish
        {
            log::info!("execution {}: cancelling{}", self.spec.id, if is_force { " by force" } else { "" });
            *wish = wanted;
        }
    }

    /// What the service surely does not know to be ours is given back: it stays pending there.
    pub(super) fn give_back(&mut self) {
        if !self.announced && !self.unclear {
            self.gone = self.dir.remove().is_ok();
        }
    }

    /// On the way out: what can be given back is, and what the service may have started is ended before it begins, as the
    /// next runner would do.
    pub(super) fn begin_no_more(&mut self) {
        self.give_back();
        if !self.gone && matches!(self.stage, Stage::New) && !self.may_begin() {
            self.interrupt();
        }
    }

    /// Ends what has not begun.
    fn interrupt(&mut self) {
        match self.end_unwatched(INTERRUPTED_TEXT, INTERRUPTED) {
            Ok(()) => self.stage = Stage::Ended(Outcome::FAILED),
            Err(error) => log::error!("execution {}: cannot be ended: {error}", self.spec.id),
        }
    }

    /// The key is good again. If it was a request of this execution that was denied, that may have had a reason of its
    /// own: the others come first, and it waits a little longer each time.
    pub(super) fn key_is_good_again(&mut self, now: Instant) {
        if std::mem::take(&mut self.denied) {
            self.retry.failed(now, None);
            self.announce.failed(now, None);
        }
    }

    /// An outage has ended: no waiting for old failures.
    pub(super) fn resume(&mut self, now: Instant) {
        self.retry.resume();
        self.announce.resume(now);
    }

    pub(super) fn start_due(&self) -> Option<Instant> {
        (!self.announced).then(|| self.announce.due())
    }

    pub(super) fn ask_due(&self) -> Option<Instant> {
        matches!(self.stage, Stage::Running { wish, .. } if wish < CancelWish::Force).then(|| self.ask.due())
    }

    pub(super) fn output_due(&self, now: Instant) -> Option<Instant> {
        let due = self.delivery.due(now, delivery::length(&self.dir), self.has_ended());
        due.filter(|_| self.announced).map(|due| self.retry.due(due))
    }

    pub(super) fn complete_due(&self, now: Instant) -> Option<Instant> {
        let ready = self.announced && self.has_ended() && self.output_due(now).is_none();
        ready.then(|| self.retry.due(now))
    }

    /// `start` was answered, or not. Returns whether the execution stays.
    pub(super) fn started(&mut self, result: Result<(), Failure>, audit: &mut Audit, now: Instant) -> bool {
        let id = &self.spec.id;
        match result {
            Ok(()) => self.announce_accepted(audit, now),
            Err(Failure::Refused { status: 409, repeated, .. }) if repeated || self.unclear => {
                log::debug!("execution {id}: the service already knows that it started");
                self.announce_accepted(audit, now);
            }
            Err(failure @ Failure::Refused { .. }) => {
                log::warning!("execution {id} is given up: {failure}");
                self.forget();
                return false;
            }
            Err(Failure::Denied { repeated, .. }) => {
                self.unclear |= repeated;
                self.denied = true;
            }
            Err(failure @ Failure::Unreachable { .. }) => {
                self.unclear = true;
                _ = self.announce.failed(now, failure.retry_after());
            }
        }
        true
    }

    fn announce_accepted(&mut self, audit: &mut Audit, now: Instant) {
        match self.record_start(audit) {
            Ok(()) => {
                self.record_trouble.is_over(&self.spec.id);
                self.announced = true;
            }
            Err(error) => {
                let id = &self.spec.id;
                self.record_trouble.met(|| {
                    log::error!(
                        "execution {id}: cannot be recorded, so it is not begun: {error}; trying again"
                    );
                });
                self.unclear = true;
                self.announce.failed(now, None);
            }
        }
    }

    /// Everything that must be on disk before the process may exist.
    fn record_start(&mut self, audit: &mut Audit) -> io::Result<()> {
        let (id, about) = (&self.spec.id, self.subject());
        match &self.spec.task {
            // Recorded before, when the disk did not take what comes after it.
            Task::Reject { .. } if audit.has(id) => {}
            Task::Reject { reason, .. } => audit.record(about, &Event::Rejected { reason })?,
            Task::Run(_) if self.has_ended() => {
                if let Some(exit) = self.dir.exit()?.filter(|_| !audit.has_end(id)) {
                    audit.record(about, &Event::ended(&exit))?;
                }
            }
            Task::Run(process) => {
                if !audit.has(id) {
                    audit.record(about, &Event::started(process, sys::effective_uid()))?;
                }
                if process.metadata_only {
                    let texts = [(Stream::Stdout, METADATA_ONLY_TEXT), (Stream::Stderr, METADATA_ONLY_TEXT)];
                    self.dir.write_output(unix_now(), &texts)?;
                }
                log::info!("execution {id}: {}", shown(&process.argv));
            }
        }
        self.dir.write_cursor(Delivery::beginning())
    }

    /// The service said whether it wants the execution to end.
    pub(super) fn asked(&mut self, result: Result<CancelWish, Failure>, audit: &mut Audit, now: Instant) {
        match result {
            Ok(wish) => {
                self.ask.succeeded(now);
                self.want_end(wish, Asker::Service, audit);
            }
            Err(failure) => {
                log::debug!("execution {}: cancel-status: {failure}", self.spec.id);
                self.ask.failed(now, failure.retry_after());
            }
        }
    }

    /// The body of the next chunk, if there is one.
    pub(super) fn next_chunk(&mut self) -> Option<String> {
        let id = &self.spec.id;
        match self.delivery.next(&self.dir, Instant::now()) {
            Ok(chunk) => {
                self.delivery_trouble.is_over(id);
                chunk.map(|chunk| chunk.body.clone())
            }
            Err(error) => {
                self.delivery_trouble.met(|| {
                    log::error!(
                        "execution {id}: its output waits, because its files cannot be read or written: {error}; \
                         trying again"
                    );
                });
                self.retry.failed(Instant::now(), None);
                None
            }
        }
    }

    /// A chunk was answered, or not.
    pub(super) fn sent(&mut self, result: Result<(), Failure>, now: Instant) {
        let id = &self.spec.id;
        match result {
            // 409: the service has a chunk of this number, and a number stands for one content only.
            Ok(()) | Err(Failure::Refused { status: 409, .. }) => {
                self.retry.succeeded();
                self.delivery.done_with_chunk();
            }
            Err(failure @ Failure::Refused { status: 404 | 410, .. }) => {
                log::warning!("execution {id}: the service wants no more of its output: {failure}");
                self.delivery.abandon();
            }
            Err(failure @ Failure::Refused { .. }) => {
                let number = self.delivery.sending().unwrap_or_default();
                log::error!("execution {id}: chunk {number} of its output is lost: {failure}");
                self.delivery.chunk_refused(unix_now(), &failure.to_string());
                self.retry.failed(now, None);
            }
            Err(Failure::Denied { .. }) => self.denied = true,
            Err(failure @ Failure::Unreachable { .. }) => _ = self.retry.failed(now, failure.retry_after()),
        }
    }

    /// How it ended, once everything before that is delivered and recorded so.
    pub(super) fn outcome_to_report(&mut self) -> Option<Outcome> {
        let Stage::Ended(outcome) = self.stage else { return None };
        let id = &self.spec.id;
        match self.delivery.finish(&self.dir) {
            Ok(()) => {
                self.delivery_trouble.is_over(id);
                Some(outcome)
            }
            Err(error) => {
                self.delivery_trouble.met(|| {
                    log::error!(
                        "execution {id}: its end waits, because cursor.json cannot be written: {error}; trying again"
                    );
                });
                self.retry.failed(Instant::now(), None);
                None
            }
        }
    }

    /// `complete` was answered, or not. Returns whether that was the end of the execution.
    pub(super) fn completed(
        &mut self,
        result: Result<(), Failure>,
        outcome: Outcome,
        audit: &mut Audit,
        now: Instant,
    ) -> bool {
        let Spec { id, command, .. } = &self.spec;
        let Outcome { exit_code, status } = outcome;
        match result {
            // 409: an earlier report got through, and its answer was lost.
            Ok(()) | Err(Failure::Refused { status: 409, .. }) => {
                log::info!("execution {id} ({}): {}, exit code {exit_code}", command, status.as_str())
            }
            Err(failure @ Failure::Refused { .. }) => {
                log::warning!("execution {id}: the service does not want to know that it ended: {failure}");
            }
            Err(Failure::Denied { .. }) => {
                self.denied = true;
                return false;
            }
            Err(failure @ Failure::Unreachable { .. }) => {
                self.retry.failed(now, failure.retry_after());
                return false;
            }
        }
        audit.note(Some(self.subject()), &Event::Delivered { outcome });
        self.forget();
        true
    }

    fn forget(&self) {
        if let Err(error) = self.dir.remove() {
            log::error!("cannot remove '{}': {error}", self.dir.path().display());
        }
    }
}

/// A command line for the log, which need not hold a megabyte of arguments.
fn shown(argv: &[String]) -> String {
    const SHOWN_MAX: usize = 500;
    let line = argv.join(" ");
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &line[..end], line.len()),
        None => line,
    }
}
