//! One round: a service, a project, a state directory, and runners that are killed one after the other until all that
//! was offered is done. Then everything is judged.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::crowd::{Act, Crowd};
use super::judge::{Breach, Deaths, Traces, judge};
use super::killer::{Death, Extent, Library, Plan, Point};
use super::power;
use super::random::Random;
use super::support::project::{Project, django_project, fake_project};
use super::support::runner::{BINARY, Runner};
use super::support::server::{Endpoint, Event, EventKind, Fault, Server};
use super::support::state_dir::{KILL_TIME_MAX, StateDir};
use super::support::sys;
use super::work::{self, Work};

/// After as many deaths, or this time, nobody is killed any more and all that is offered must come to its end.
const DEATHS: usize = 14;
const KILLING_TIME: Duration = Duration::from_secs(25);
const EXECUTIONS: usize = 24;
/// One round of so many has a real Django project, whose interpreters are slow: it has half as much to do.
const DJANGO_EVERY: u64 = 8;
/// More than fit into a runner at a time, so that some always wait.
const AT_A_TIME: usize = 5;
/// How long it may take until all is done once nobody is killed and the service is well.
const END_TIME: Duration = Duration::from_secs(90);
/// How often files are looked at that no event tells of.
const LOOK: Duration = Duration::from_millis(3);

/// What came of a round.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Where somebody was killed, and when.
    pub(crate) points: Vec<(String, String)>,
    pub(crate) executions: usize,
    /// How many ended in which way.
    pub(crate) ends: HashMap<String, usize>,
    pub(crate) bytes: usize,
    /// How much losses of power took back: lengths of files, names in directories.
    pub(crate) taken_back: usize,
    pub(crate) is_django: bool,
    pub(crate) kinds: HashMap<String, usize>,
    /// How often which was done, and in the midst of how many somebody was killed.
    pub(crate) acts: HashMap<&'static str, (usize, usize)>,
    pub(crate) breaches: Vec<(Breach, String)>,
    /// Where what is left of a round with breaches can be looked at.
    pub(crate) kept: Option<PathBuf>,
}

/// Each draws for itself, because how often it is asked depends on the others and on time.
struct Dice {
    works: Random,
    points: Random,
    faults: Random,
    acts: Random,
    power: Random,
}

struct Round<'a> {
    library: &'a Library,
    dice: Dice,
    server: Server,
    events: Receiver<Event>,
    project: Project,
    state: StateDir,
    records: TempDir,
    plan: Plan,
    crowd: Crowd,
    /// A runner was killed or told to go, so that none need be there.
    may_be_gone: bool,
    works: BTreeMap<String, Offered>,
    deaths_max: usize,
    executions: usize,
    /// When a service that is down comes back.
    up_at: Option<Instant>,
    begun: Instant,
    outcome: Outcome,
}

struct Offered {
    work: Work,
    is_complete: bool,
    deaths: Deaths,
}

pub(crate) fn run(seed: u64, number: u64, library: &Library, keep_in: &Path) -> Outcome {
    let server = Server::start();
    let is_django = number % DJANGO_EVERY == 1;
    let project = if is_django { django_project() } else { fake_project() };
    work::install(&project);
    let records = TempDir::new().unwrap();
    let plan = Plan::new(&records.path().join("plan"), records.path().join("deaths"));
    let state = StateDir::new();
    let mut random = Random::new(seed);
    let share = if is_django { 2 } else { 1 };
    let mut round = Round {
        library,
        dice: Dice {
            works: random.split(),
            points: random.split(),
            faults: random.split(),
            acts: random.split(),
            power: random.split(),
        },
        events: server.events(),
        server,
        project,
        crowd: Crowd::new(&state),
        state,
        records,
        plan,
        may_be_gone: true,
        works: BTreeMap::new(),
        deaths_max: DEATHS / share,
        executions: EXECUTIONS / share,
        up_at: None,
        begun: Instant::now(),
        outcome: Outcome { is_django, ..Outcome::default() },
    };
    round.kill_and_change();
    round.bring_to_an_end();
    round.judge();
    round.keep_if_bad(keep_in);
    round.outcome
}

impl Round<'_> {
    fn do_about_runners(&mut self, act: Act) {
        self.outcome.acts.entry(act.name()).or_default().0 += 1;
        match act {
            Act::Reload => {
                self.project.settings("# Touched.");
                self.crowd.signal(libc::SIGHUP);
            }
            Act::Stop => {
                if self.crowd.stop() {
                    self.one_may_be_gone();
                }
            }
            Act::EnsureTwice => {
                self.start(act);
                self.start(act);
            }
            Act::Once | Act::Restart | Act::RestartDetached => {
                self.start(act);
                self.one_may_be_gone();
            }
            Act::Start | Act::StartDetached | Act::Ensure => self.start(act),
        }
    }

    fn start(&mut self, act: Act) {
        let records = self.records.path();
        let (subcommand, option) = act.words();
        let runner = Runner::in_project(&self.project)
            .subcommand(subcommand)
            .server(&self.server)
            .state_dir(&self.state)
            .args(option)
            .arg("--no-reload")
            .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
            .env("LD_PRELOAD", self.library.path())
            .env("TORTURE_BINARY", fs::canonicalize(BINARY).unwrap())
            .env("TORTURE_PLAN", records.join("plan"))
            .env("TORTURE_LOG", records.join("deaths"))
            .env("TORTURE_RECORDS", records)
            .env("TORTURE_STATE", self.state.path());
        self.crowd.add(act, runner.start());
    }

    /// What a runner that goes has told the service to have started, and not begun, may never begin.
    fn one_may_be_gone(&mut self) {
        self.may_be_gone = true;
        self.crowd.disturb();
        self.works.values_mut().for_each(|offered| offered.deaths.of_a_runner |= !offered.is_complete);
    }

    fn kill_and_change(&mut self) {
        let until = Instant::now() + KILLING_TIME;
        while self.outcome.points.len() < self.deaths_max && Instant::now() < until && !self.is_over() {
            let point = Point::draw(&mut self.dice.points);
            let patience = point.patience(&mut self.dice.points);
            self.misbehave();
            self.plan.arm(&point);
            let act = Act::change(&mut self.dice.acts);
            // Whoever goes does not know then whether the service takes something for begun. A request is sent twice.
            if act.ends_the_runner() && self.dice.faults.one_in(2) {
                (0..2).for_each(|_| self.server.next(Endpoint::Start, Fault::ProcessedThenClose));
            }
            let mut acts_at = self.dice.acts.one_in(2).then(|| Instant::now() + patience / 4);
            let mut deadline = Instant::now() + patience;
            let deaths = self.outcome.points.len();
            while self.outcome.points.len() == deaths
                && Instant::now() < deadline.min(until)
                && !self.is_over()
            {
                self.look(point.extent);
                // While nobody is there, or the new one asks the project, there is little to be met.
                if self.state.runner().is_none() {
                    deadline = Instant::now() + patience;
                }
                if acts_at.is_some_and(|at| Instant::now() >= at) && self.state.runner().is_some() {
                    self.do_about_runners(act);
                    acts_at = None;
                }
            }
            if self.outcome.points.len() == deaths && !self.is_over() {
                self.plan.disarm();
                self.kill_from_outside();
            }
        }
    }

    /// Nobody is killed and the service is well: now all must end, and nothing be left.
    fn bring_to_an_end(&mut self) {
        self.plan.disarm();
        self.server.up();
        self.up_at = None;
        Endpoint::ALL.iter().for_each(|endpoint| self.server.heal(*endpoint));
        self.wait_until(END_TIME, Self::is_over);
        self.one_may_be_gone();
        let begun = Instant::now();
        while self.crowd.is_there() && begun.elapsed() < KILL_TIME_MAX {
            // Who has not got the lock yet may do so any time.
            self.crowd.signal(libc::SIGTERM);
            self.events.recv_timeout(20 * LOOK).ok();
        }
        if self.crowd.is_there() {
            self.breach(Breach::Wrong, format!("the runner does not end: {:?}", self.crowd.pids()));
            return;
        }
        // One that is stopped before it has looked at what there is leaves it to the next.
        self.start(Act::Once);
        let ended = self.wait_until(END_TIME, |round| !round.crowd.is_there());
        let left = self.state.executions();
        if !(ended && left.is_empty()) && self.is_over() {
            self.breach(Breach::Wrong, format!("directories are left: {left:?}"));
        }
        if !self.wait_until(KILL_TIME_MAX, |round| round.state.processes().is_empty()) {
            self.breach(Breach::Wrong, format!("processes are left: {:?}", self.state.processes()));
        }
        self.judge_ends();
        let log = fs::read_to_string(self.state.path().join("runner.log")).unwrap_or_default();
        if log.contains("panicked") {
            self.breach(Breach::Wrong, format!("a detached runner panicked: {log}"));
        }
    }

    fn wait_until(&mut self, within: Duration, is_so: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + within;
        while !is_so(self) {
            if Instant::now() > deadline {
                return false;
            }
            self.look(Extent::Itself);
        }
        true
    }

    fn is_over(&self) -> bool {
        self.works.len() == self.executions && self.works.values().all(|offered| offered.is_complete)
    }

    /// Waits for an instant, and does what is to be done about everything that happened in it.
    fn look(&mut self, extent: Extent) {
        let mut event = self.events.recv_timeout(LOOK).ok();
        while let Some(happened) = event {
            self.note(happened.kind);
            event = self.events.try_recv().ok();
        }
        self.offer_more();
        if self.up_at.is_some_and(|up_at| Instant::now() >= up_at) {
            self.server.up();
            self.up_at = None;
        }
        // In this order: whoever is killed by the library has said so before.
        let is_there = self.crowd.is_there();
        for death in self.plan.deaths() {
            self.died(death, extent);
        }
        self.judge_ends();
        if !is_there && !self.is_over() {
            if !self.may_be_gone {
                self.breach(Breach::Wrong, "the runner ended by itself".to_owned());
            }
            self.may_be_gone = false;
            let act = Act::coming(&mut self.dice.acts);
            self.do_about_runners(act);
        }
    }

    fn judge_ends(&mut self) {
        for wrong in self.crowd.judge_ends() {
            self.breach(Breach::Wrong, wrong);
        }
    }

    fn note(&mut self, kind: EventKind) {
        match kind {
            EventKind::Started { id } if self.works[&id].work.is_cancelled() => {
                self.server.cancel(&id);
            }
            EventKind::Completed { id, .. } => self.works.get_mut(&id).unwrap().is_complete = true,
            _ => {}
        }
    }

    fn offer_more(&mut self) {
        let under_way = |round: &Self| round.works.values().filter(|offered| !offered.is_complete).count();
        while under_way(self) < AT_A_TIME && self.works.len() < self.executions {
            let work = Work::draw(&mut self.dice.works);
            self.server.enqueue_raw(work.offer());
            let offered = Offered { work, is_complete: false, deaths: Deaths::default() };
            self.works.insert(offered.work.id.clone(), offered);
        }
    }

    fn died(&mut self, death: Death, extent: Extent) {
        self.add_point(death.kind, format!("{}{}", death.when, extent.beside()));
        if let Some(offered) = death.execution.and_then(|id| self.works.get_mut(&id)) {
            offered.deaths.of_its_shim = true;
        }
        if death.is_runner {
            self.one_may_be_gone();
        }
        match extent {
            Extent::Itself => {}
            Extent::World => self.kill_world(),
            Extent::Power => self.cut_power(),
        }
    }

    fn add_point(&mut self, kind: String, when: String) {
        self.crowd.disturb();
        for act in self.crowd.under_way() {
            self.outcome.acts.entry(act.name()).or_default().1 += 1;
        }
        self.outcome.points.push((kind, when));
    }

    /// As when the machine is reset, but for what the disk has.
    fn kill_world(&mut self) {
        self.one_may_be_gone();
        for offered in self.works.values_mut() {
            offered.deaths.of_its_shim |= !offered.is_complete;
            offered.deaths.of_all = true;
        }
        let deadline = Instant::now() + KILL_TIME_MAX;
        loop {
            let mut processes = self.state.processes();
            // Those who could tell of the others' death go first.
            processes.sort_by_key(|pid| !is_binary(*pid));
            if processes.is_empty() || Instant::now() > deadline {
                break;
            }
            processes.iter().for_each(|pid| _ = sys::kill(*pid, libc::SIGKILL));
        }
    }

    fn cut_power(&mut self) {
        self.kill_world();
        let lost = power::cut(self.state.path(), self.records.path(), &mut self.dice.power);
        self.outcome.taken_back += lost.lines().count();
        let mut log =
            File::options().create(true).append(true).open(self.records.path().join("power")).unwrap();
        writeln!(log, "a loss of power at {:.3} s\n{lost}", self.begun.elapsed().as_secs_f64()).unwrap();
    }

    fn kill_from_outside(&mut self) {
        let what = match self.dice.points.below(10) {
            0..6 => {
                let pids = self.crowd.pids();
                let place = self.dice.points.next();
                let Some(pid) = pids.get(place as usize % pids.len().max(1)) else { return };
                self.one_may_be_gone();
                sys::kill(*pid, libc::SIGKILL);
                "a runner, or who starts one"
            }
            6 if self.dice.points.one_in(2) => {
                self.kill_world();
                "all"
            }
            6 => {
                self.cut_power();
                "all, by a loss of power"
            }
            _ => {
                let Some(shim) = self.state.shims().into_iter().next() else { return };
                let line = fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default();
                let path = line.split(|byte| *byte == 0).nth(2).map(String::from_utf8_lossy);
                let id = path.and_then(|path| path.rsplit('/').next().map(str::to_owned));
                if let Some(offered) = id.and_then(|id| self.works.get_mut(&id)) {
                    offered.deaths.of_its_shim = true;
                    sys::kill(shim, libc::SIGKILL);
                }
                "a shim"
            }
        };
        self.add_point("from outside, at any instant".to_owned(), what.to_owned());
    }

    fn misbehave(&mut self) {
        const OFTEN: [Endpoint; 9] = [
            Endpoint::Heartbeat,
            Endpoint::Pending,
            Endpoint::Start,
            Endpoint::Start,
            Endpoint::Output,
            Endpoint::Output,
            Endpoint::CancelStatus,
            Endpoint::Complete,
            Endpoint::Complete,
        ];
        if self.dice.faults.one_in(2) {
            let endpoint = *self.dice.faults.pick(&OFTEN);
            let fault = match self.dice.faults.below(9) {
                0 => Fault::status(503),
                1 | 2 => Fault::ProcessedThenClose,
                3 => Fault::ProcessedThenStatus(503),
                4 => Fault::Reset,
                5 => Fault::Truncated,
                6 => Fault::CloseAfter,
                _ => Fault::Delay(Duration::from_millis(20 + self.dice.faults.below(400))),
            };
            self.server.next(endpoint, fault);
        }
        if self.dice.faults.one_in(8) {
            self.server.forget_commands();
        }
        // What is under way or done is offered once more, and stays on the list: nothing may run twice for that.
        if self.dice.faults.one_in(3) && !self.works.is_empty() {
            let works: Vec<&Offered> = self.works.values().collect();
            self.server.enqueue_raw(self.dice.faults.pick(&works).work.offer());
        }
        if self.dice.faults.one_in(10) && self.up_at.is_none() {
            self.server.down();
            self.up_at = Some(Instant::now() + Duration::from_millis(20 + self.dice.faults.below(400)));
        }
    }

    fn judge(&mut self) {
        let runs = fs::read_to_string(self.records.path().join("runs")).unwrap_or_default();
        let audit = fs::read_to_string(self.state.path().join("audit.jsonl")).unwrap_or_default();
        // Half a line that a death left is none.
        let audit: Vec<Value> = audit.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for Offered { work, deaths, .. } in self.works.values() {
            let runs = runs.lines().filter(|line| line.strip_prefix("RUN ") == Some(&*work.id)).count();
            let audited = |event: &str| {
                let lines = audit.iter().filter(|line| line["execution"] == work.id);
                lines.filter(|line| line["event"] == event).count()
            };
            let traces = Traces {
                records: self.records.path(),
                runs,
                started: audited("started"),
                delivered: audited("delivered"),
                deaths: *deaths,
            };
            let (verdict, end) = self.server.state(|state| {
                let execution = state.execution(&work.id);
                let end = execution.completed.as_ref().map(|end| end.status.clone());
                (judge(work, execution, &traces), end)
            });
            self.outcome.executions += 1;
            *self.outcome.kinds.entry(work.kind.name()).or_default() += 1;
            *self.outcome.ends.entry(end.unwrap_or_default()).or_default() += 1;
            self.outcome.bytes += verdict.bytes;
            self.outcome.breaches.extend(verdict.breaches);
        }
        for violation in self.server.take_violations() {
            // An execution whose end the service did not take for a while is over for the runner, which takes another.
            if !violation.contains("executions at a time") {
                self.breach(Breach::Wrong, format!("the protocol was violated: {violation}"));
            }
        }
    }

    fn breach(&mut self, breach: Breach, what: String) {
        self.outcome.breaches.push((breach, what));
    }

    /// Puts aside all that could explain a breach.
    fn keep_if_bad(&mut self, keep_in: &Path) {
        if self.outcome.breaches.is_empty() {
            return;
        }
        fs::create_dir_all(keep_in).unwrap();
        for (from, name) in [(self.state.path(), "state"), (self.records.path(), "records")] {
            // What a living process changes meanwhile is no reason to keep nothing.
            drop(Command::new("cp").arg("-r").arg(from).arg(keep_in.join(name)).status());
        }
        fs::write(keep_in.join("runners.log"), self.crowd.log()).unwrap();
        fs::write(keep_in.join("service.log"), self.server.state(|state| state.log())).unwrap();
        let breaches: Vec<String> =
            self.outcome.breaches.iter().map(|(breach, what)| format!("{breach:?}: {what}\n")).collect();
        fs::write(keep_in.join("breaches.log"), breaches.concat()).unwrap();
        self.outcome.kept = Some(keep_in.to_owned());
    }
}

fn is_binary(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == Path::new(BINARY))
}
