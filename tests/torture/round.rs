//! One round: a service, a project, a state directory, and runners that are killed one after the other until all that
//! was offered is done. Then everything is judged.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::judge::{Breach, Deaths, Traces, judge};
use super::killer::{Death, Extent, Library, Plan, Point};
use super::random::Random;
use super::support::project::{Project, fake_project};
use super::support::runner::{BINARY, Runner, Running};
use super::support::server::{Endpoint, Event, EventKind, Fault, Server};
use super::support::state_dir::{KILL_TIME_MAX, StateDir};
use super::support::sys;
use super::work::{COMMANDS, Kind, Work};

/// After as many deaths, or this time, nobody is killed any more and all that is offered must come to its end.
const DEATHS: usize = 14;
const KILLING_TIME: Duration = Duration::from_secs(25);
const EXECUTIONS: usize = 24;
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
    pub(crate) breaches: Vec<(Breach, String)>,
    /// Where what is left of a round with breaches can be looked at.
    pub(crate) kept: Option<PathBuf>,
}

struct Round<'a> {
    library: &'a Library,
    random: Random,
    server: Server,
    events: Receiver<Event>,
    project: Project,
    state: StateDir,
    records: TempDir,
    plan: Plan,
    /// The last one lives.
    runners: Vec<Running>,
    works: BTreeMap<String, Offered>,
    /// When a service that is down comes back.
    up_at: Option<Instant>,
    outcome: Outcome,
}

struct Offered {
    work: Work,
    is_complete: bool,
    deaths: Deaths,
}

pub(crate) fn run(seed: u64, library: &Library, keep_in: &Path) -> Outcome {
    let server = Server::start();
    let project = fake_project();
    project.write("commands.py", COMMANDS);
    let records = TempDir::new().unwrap();
    let plan = Plan::new(&records.path().join("plan"), records.path().join("deaths"));
    let mut round = Round {
        library,
        random: Random::new(seed),
        events: server.events(),
        server,
        project,
        state: StateDir::new(),
        records,
        plan,
        runners: Vec::new(),
        works: BTreeMap::new(),
        up_at: None,
        outcome: Outcome::default(),
    };
    round.kill_and_restart();
    round.bring_to_an_end();
    round.judge();
    round.keep_if_bad(keep_in);
    round.outcome
}

impl Round<'_> {
    fn start_runner(&mut self) {
        let records = self.records.path();
        let runner = Runner::in_project(&self.project)
            .server(&self.server)
            .state_dir(&self.state)
            .arg("--no-reload")
            .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
            .env("LD_PRELOAD", self.library.path())
            .env("TORTURE_BINARY", fs::canonicalize(BINARY).unwrap())
            .env("TORTURE_PLAN", records.join("plan"))
            .env("TORTURE_LOG", records.join("deaths"))
            .env("TORTURE_RECORDS", records);
        self.runners.push(runner.start());
    }

    fn kill_and_restart(&mut self) {
        self.start_runner();
        let until = Instant::now() + KILLING_TIME;
        while self.outcome.points.len() < DEATHS && Instant::now() < until && !self.is_over() {
            let point = Point::draw(&mut self.random);
            self.misbehave();
            let patience = point.patience(&mut self.random);
            self.plan.arm(&point);
            let deadline = Instant::now() + patience;
            let deaths = self.outcome.points.len();
            while self.outcome.points.len() == deaths && Instant::now() < deadline && !self.is_over() {
                self.look(point.extent);
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
        // One that is stopped before it has looked at what there is leaves it to the next.
        let is_connected = |runner: &Running| runner.log().contains("connected: the service accepts the key");
        self.wait_until(KILL_TIME_MAX, |round| round.runners.last().is_none_or(is_connected));
        let Some(runner) = self.runners.last() else { return };
        sys::kill(runner.pid(), libc::SIGTERM);
        if !self.wait_until(KILL_TIME_MAX, |round| !round.runner_lives()) {
            self.breach(Breach::Wrong, "the runner does not end".to_owned());
        }
        if !self.wait_until(KILL_TIME_MAX, |round| round.state.processes().is_empty()) {
            self.breach(Breach::Wrong, format!("processes are left: {:?}", self.state.processes()));
        }
        let left = self.state.executions();
        if !left.is_empty() && self.is_over() {
            self.breach(Breach::Wrong, format!("directories are left: {left:?}"));
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
        self.works.len() == EXECUTIONS && self.works.values().all(|offered| offered.is_complete)
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
        // In this order: a runner that the library kills has said so before.
        let lived = self.runner_lives();
        let deaths = self.plan.deaths();
        let runner_was_killed = deaths.iter().any(|death| death.is_runner);
        for death in deaths {
            self.died(death, extent);
        }
        let is_wanted = self.outcome.executions == 0;
        if !lived && !runner_was_killed && !self.is_over() && is_wanted {
            let log = self.runners.last().map(Running::log).unwrap_or_default();
            self.breach(Breach::Wrong, format!("a runner ended by itself: {log}"));
            self.start_runner();
        }
    }

    fn note(&mut self, kind: EventKind) {
        match kind {
            EventKind::Started { id } if self.works[&id].work.kind == Kind::Cancelled => {
                self.server.cancel(&id);
            }
            EventKind::Completed { id, .. } => self.works.get_mut(&id).unwrap().is_complete = true,
            _ => {}
        }
    }

    fn offer_more(&mut self) {
        let under_way = |round: &Self| round.works.values().filter(|offered| !offered.is_complete).count();
        while under_way(self) < AT_A_TIME && self.works.len() < EXECUTIONS {
            let work = Work::draw(&mut self.random);
            self.server.enqueue_raw(work.offer());
            let offered = Offered { work, is_complete: false, deaths: Deaths::default() };
            self.works.insert(offered.work.id.clone(), offered);
        }
    }

    fn runner_lives(&self) -> bool {
        self.runners.last().is_some_and(|runner| Path::new(&format!("/proc/{}", runner.pid())).exists())
    }

    fn died(&mut self, death: Death, extent: Extent) {
        let beside = if extent == Extent::World { ", and all others" } else { "" };
        self.outcome.points.push((death.kind, format!("{}{beside}", death.when)));
        if let Some(offered) = death.execution.and_then(|id| self.works.get_mut(&id)) {
            offered.deaths.of_its_shim = true;
        }
        match extent {
            Extent::World => self.kill_world(),
            Extent::Itself if death.is_runner => self.replace_runner(),
            Extent::Itself => {}
        }
    }

    /// Also one that has not quite died of itself yet.
    fn replace_runner(&mut self) {
        self.works.values_mut().for_each(|offered| offered.deaths.of_a_runner |= !offered.is_complete);
        if let Some(runner) = self.runners.last() {
            runner.kill();
        }
        self.start_runner();
    }

    /// As when the machine's power is cut, but for what the disk has.
    fn kill_world(&mut self) {
        self.works.values_mut().for_each(|offered| offered.deaths.of_its_shim |= !offered.is_complete);
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
        self.replace_runner();
    }

    fn kill_from_outside(&mut self) {
        let what = match self.random.below(10) {
            0..6 => {
                self.replace_runner();
                "a runner"
            }
            6 => {
                self.kill_world();
                "all"
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
        self.outcome.points.push(("from outside, at any instant".to_owned(), what.to_owned()));
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
        if self.random.one_in(2) {
            let endpoint = *self.random.pick(&OFTEN);
            let fault = match self.random.below(9) {
                0 => Fault::status(503),
                1 | 2 => Fault::ProcessedThenClose,
                3 => Fault::ProcessedThenStatus(503),
                4 => Fault::Reset,
                5 => Fault::Truncated,
                6 => Fault::CloseAfter,
                _ => Fault::Delay(Duration::from_millis(20 + self.random.below(400))),
            };
            self.server.next(endpoint, fault);
        }
        if self.random.one_in(8) {
            self.server.forget_commands();
        }
        // What is under way or done is offered once more, and stays on the list: nothing may run twice for that.
        if self.random.one_in(3) && !self.works.is_empty() {
            let works: Vec<&Offered> = self.works.values().collect();
            self.server.enqueue_raw(self.random.pick(&works).work.offer());
        }
        if self.random.one_in(10) && self.up_at.is_none() {
            self.server.down();
            self.up_at = Some(Instant::now() + Duration::from_millis(20 + self.random.below(400)));
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
        let logs: Vec<String> = self.runners.iter().map(Running::log).collect();
        fs::write(keep_in.join("runners.log"), logs.join("--- the next runner ---\n")).unwrap();
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
