//! How runners come and go: all that a user, cron or a deployment does to have one, and what each may say of it.

use std::os::unix::process::ExitStatusExt;

use super::random::Random;
use super::support::runner::Running;
use super::support::state_dir::StateDir;
use super::support::sys;

/// Something that is done about runners.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    Start,
    StartDetached,
    Once,
    Ensure,
    /// Two at the same instant.
    EnsureTwice,
    Restart,
    RestartDetached,
    /// The settings change, and the runner is told to load them.
    Reload,
    /// SIGTERM: it takes nothing more and ends when what runs has ended.
    Stop,
}

impl Act {
    /// What is done where no runner is.
    pub(crate) fn coming(random: &mut Random) -> Self {
        match random.below(12) {
            0..5 => Act::Start,
            5 | 6 => Act::StartDetached,
            7 | 8 => Act::Ensure,
            9 => Act::EnsureTwice,
            10 => Act::RestartDetached,
            _ => Act::Once,
        }
    }

    /// What is done to one that lives, or beside it.
    pub(crate) fn change(random: &mut Random) -> Self {
        match random.below(10) {
            0..3 => Act::RestartDetached,
            3 => Act::Restart,
            4 | 5 => Act::Reload,
            6 | 7 => Act::Stop,
            8 => Act::EnsureTwice,
            _ => Act::Start,
        }
    }

    /// Whether the one that lives is to go.
    pub(crate) fn ends_the_runner(self) -> bool {
        matches!(self, Act::Restart | Act::RestartDetached | Act::Stop)
    }

    /// The subcommand and its option.
    pub(crate) fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            Act::Start => ("start", None),
            Act::StartDetached => ("start", Some("--detach")),
            Act::Once => ("start", Some("--once")),
            Act::Ensure | Act::EnsureTwice => ("ensure", None),
            Act::Restart => ("restart", None),
            Act::RestartDetached => ("restart", Some("--detach")),
            Act::Reload | Act::Stop => unreachable!("a signal, and no subcommand"),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Act::Start => "start",
            Act::StartDetached => "start -d",
            Act::Once => "start --once",
            Act::Ensure => "ensure",
            Act::EnsureTwice => "ensure twice at once",
            Act::Restart => "restart",
            Act::RestartDetached => "restart -d",
            Act::Reload => "reload",
            Act::Stop => "stop",
        }
    }
}

/// A process that was started to be a runner, or to see to it that there is one.
pub(crate) struct Comer {
    pub(crate) act: Act,
    pub(crate) running: Running,
    /// How much had happened before.
    happened: usize,
    is_judged: bool,
}

/// Everybody who was started on one state directory.
pub(crate) struct Crowd {
    state: StateDir,
    comers: Vec<Comer>,
    /// Counts what may have kept somebody from what he was to do: other comers, deaths, wishes.
    happened: usize,
    /// Who was told last to stop.
    stopped: Option<u32>,
}

impl Crowd {
    pub(crate) fn new(state: &StateDir) -> Self {
        Crowd { state: state.clone(), comers: Vec::new(), happened: 0, stopped: None }
    }

    pub(crate) fn add(&mut self, act: Act, running: Running) {
        self.happened += 1;
        // Two at once are no excuse for each other.
        let twins = self.comers.iter_mut().filter(|comer| act == Act::EnsureTwice && comer.act == act);
        twins.filter(|twin| twin.happened + 1 == self.happened).for_each(|twin| twin.happened += 1);
        self.comers.push(Comer { act, running, happened: self.happened, is_judged: false });
    }

    /// From now on nobody is to blame who does not do what he was to do.
    pub(crate) fn disturb(&mut self) {
        self.happened += 1;
    }

    fn living(&self) -> impl Iterator<Item = &Comer> {
        self.comers.iter().filter(|comer| comer.running.ended().is_none())
    }

    /// Also somebody who is about to be a runner, or to start one.
    pub(crate) fn is_there(&self) -> bool {
        self.living().next().is_some() || self.state.runner().is_some()
    }

    /// The PIDs of all who are there.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.living().map(|comer| comer.running.pid()).collect();
        pids.extend(self.state.runner().filter(|pid| !pids.contains(pid)));
        pids
    }

    /// SIGTERM for the runner; whether there was one. A second one would cancel what runs: nobody gets that.
    pub(crate) fn stop(&mut self) -> bool {
        let runner = self.state.runner().filter(|runner| self.stopped != Some(*runner));
        self.stopped = runner.or(self.stopped);
        runner.is_some() && self.signal(libc::SIGTERM)
    }

    /// Sends a signal to the runner; whether there was one.
    pub(crate) fn signal(&mut self, signal: i32) -> bool {
        self.happened += 1;
        self.state.runner().is_some_and(|runner| sys::kill(runner, signal))
    }

    /// What has begun and is not done yet.
    pub(crate) fn under_way(&self) -> Vec<Act> {
        let runner = self.state.runner();
        let is_under_way = |comer: &&Comer| Some(comer.running.pid()) != runner;
        self.living().filter(is_under_way).map(|comer| comer.act).collect()
    }

    /// What is wrong with the ends that have come since the last time.
    pub(crate) fn judge_ends(&mut self) -> Vec<String> {
        let alone = !self.is_there();
        let has_just_ended = |comer: &Comer| !comer.is_judged && comer.running.ended().is_some();
        let a_round_is_over = self.comers.iter().any(|comer| comer.act == Act::Once && has_just_ended(comer));
        let mut wrongs = Vec::new();
        for comer in &mut self.comers {
            let Some(status) = comer.running.ended().filter(|_| !comer.is_judged) else { continue };
            comer.is_judged = true;
            let log = comer.running.log();
            let is_disturbed = self.happened != comer.happened || (a_round_is_over && comer.act != Act::Once);
            let says = |text: &str| log.contains(text);
            let is_right = match (comer.act, status.code()) {
                // The harness kills, and it alone.
                (_, None) => status.signal() == Some(libc::SIGKILL) && is_disturbed,
                (Act::Once, Some(0)) => !alone || self.state.executions().is_empty(),
                (Act::Once, Some(1)) => {
                    is_disturbed || says("this round could not be finished") || says("already running")
                }
                (Act::Start | Act::Restart, Some(0)) => is_disturbed,
                (_, Some(0)) => true,
                (Act::Ensure | Act::EnsureTwice, Some(1)) => {
                    is_disturbed && (says("already running") || says("before it was ready"))
                }
                (_, Some(1)) => says("already running") || (is_disturbed && says("before it was ready")),
                _ => false,
            };
            if !is_right {
                let left = self.state.executions();
                wrongs.push(format!("'{}' ended with {status}, leaving {left:?}:\n{log}", comer.act.name()));
            }
        }
        self.happened += usize::from(a_round_is_over);
        wrongs
    }

    /// What everybody said.
    pub(crate) fn log(&self) -> String {
        let each = |comer: &Comer| format!("--- {} ---\n{}", comer.act.name(), comer.running.log());
        self.comers.iter().map(each).collect()
    }
}
