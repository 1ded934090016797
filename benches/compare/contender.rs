//! The two that are compared, and a runner of either at work on a project for a service of its own.
//!
//! Both get copies of the same project with the same settings, the same service, and are started in the same way.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::support::project::{Project, django_project_on};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, Job, Server};

/// For whatever ends by itself.
pub(crate) const LATER: Duration = Duration::from_secs(300);

/// What the projects can do beside Django's own commands.
const COMMANDS: &[(&str, &str)] = &[
    ("clock", include_str!("commands/clock.py")),
    ("quick", include_str!("commands/quick.py")),
    ("torrent", include_str!("commands/torrent.py")),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Contender {
    Ours,
    Original,
}

/// Something of each.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Both<T> {
    pub(crate) ours: T,
    pub(crate) original: T,
}

impl<T> Both<T> {
    /// One after the other.
    pub(crate) fn each(mut make: impl FnMut(Contender) -> T) -> Self {
        Both { ours: make(Contender::Ours), original: make(Contender::Original) }
    }

    /// Both at once, each in a thread.
    pub(crate) fn at_once(make: impl Fn(Contender) -> T + Sync) -> Self
    where
        T: Send,
    {
        thread::scope(|scope| {
            let ours = scope.spawn(|| make(Contender::Ours));
            let original = make(Contender::Original);
            Both { ours: ours.join().unwrap(), original }
        })
    }

    pub(crate) fn of(&self, contender: Contender) -> &T {
        match contender {
            Contender::Ours => &self.ours,
            Contender::Original => &self.original,
        }
    }

    pub(crate) fn map<U>(self, change: impl Fn(T) -> U) -> Both<U> {
        Both { ours: change(self.ours), original: change(self.original) }
    }
}

/// Ours, original, ours, original …: what slows the machine down for a while slows both down.
pub(crate) fn in_turn<T>(count: usize, mut sample: impl FnMut(Contender) -> T) -> Both<Vec<T>> {
    let mut samples = Both { ours: Vec::new(), original: Vec::new() };
    for _ in 0..count {
        samples.ours.push(sample(Contender::Ours));
        samples.original.push(sample(Contender::Original));
    }
    samples
}

/// A copy for each, of what the virtualenv's own tool begins a project with.
pub(crate) fn projects_on(virtualenv: &str) -> Both<Project> {
    Both::each(|_| {
        let project = django_project_on(virtualenv);
        for (name, code) in COMMANDS {
            project.write(&format!("polls/management/commands/{name}.py"), code);
        }
        project.settings(
            "INSTALLED_APPS += ['djangocommand']\nDEBUG = False\n\
             DJANGOCOMMAND_ALLOWED_COMMANDS = ['check', 'clock', 'quick', 'torrent']",
        );
        // Nobody's first start shall be the one that compiles the modules.
        let checked =
            bare(&project, &["check"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(checked.success(), "the project does not even pass its own check");
        project
    })
}

/// A command as it runs without any runner.
pub(crate) fn bare(project: &Project, words: &[&str]) -> Command {
    let mut command = Command::new(project.python());
    command.args(["-u", "manage.py"]).args(words).current_dir(project.dir());
    command.env_remove("DJANGO_SETTINGS_MODULE").stdin(Stdio::null());
    command
}

impl Contender {
    /// `start` or whatever else it is told, in the foreground.
    pub(crate) fn runner(self, project: &Project) -> Runner<'_> {
        match self {
            Contender::Ours => Runner::in_project(project),
            Contender::Original => Runner::published_in(project),
        }
    }
}

/// A runner that works.
pub(crate) struct Session {
    contender: Contender,
    pub(crate) runner: Running,
    pub(crate) server: Server,
    /// From the start of its process to the first heartbeat.
    pub(crate) to_first_heartbeat: Duration,
}

impl Session {
    /// Started, and known to the service.
    pub(crate) fn start(contender: Contender, project: &Project, server: Server) -> Self {
        let runner = contender.runner(project).server(&server);
        let begun = Instant::now();
        let runner = runner.start();
        let beat = server.wait_for("the first heartbeat", LATER, |state| {
            state.of(Endpoint::Heartbeat).next().map(|request| request.at)
        });
        let session = Session { contender, runner, server, to_first_heartbeat: beat - begun };
        session.wait_for_polls(1);
        session
    }

    pub(crate) fn wait_for_polls(&self, count: usize) {
        self.server.wait_for("polls", LATER, |state| state.of(Endpoint::Pending).nth(count - 1).map(|_| ()));
    }

    /// When the execution began and when it was over, as the service was told.
    pub(crate) fn run(&self, job: Job) -> (Instant, Instant) {
        let id = self.server.enqueue(job);
        (self.started(&id), self.completed(&id))
    }

    pub(crate) fn started(&self, id: &str) -> Instant {
        self.server.wait_for("the start", LATER, |state| state.execution(id).started)
    }

    pub(crate) fn completed(&self, id: &str) -> Instant {
        let end = self.server.completed(id, LATER);
        assert_eq!(end.status, "success", "{:?} ended so: {}", self.contender, self.runner.log());
        end.at
    }

    /// The processes that are the runner's, without the commands that it runs.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut all = self.runner.state_dir().shims();
        all.push(self.runner.pid());
        all
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.runner.kill();
        if self.contender == Contender::Original {
            // It breaks rules of the protocol now and then, which is not what is looked at here.
            drop(self.server.take_violations());
        }
    }
}

/// The seconds that a command wrote into its report, once it has.
pub(crate) fn reported(report: &Path) -> Option<f64> {
    fs::read_to_string(report).ok().map(|text| text.parse().unwrap())
}
