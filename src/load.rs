//! From a directory to everything that a runner goes by: the project, its settings, its catalogue.
//!
//! It decides in which order that is found out and what is said about it. What becomes of it, and of a failure, is
//! decided by whoever asked: at the start by waiting, later on by looking now and then while other work goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::api::Client;
use crate::config::{Config, Environment};
use crate::log::{self, Level};
use crate::mask::Secrets;
use crate::project::probe::{Catalogue, Facts, Probe};
use crate::project::watch::Watch;
use crate::project::{self, Project};

/// Why something cannot be had.
#[derive(Debug)]
pub enum Error {
    /// The same again would fail in the same way: exit code 78, after which a supervisor should not restart.
    Configuration(String),
    /// Exit code 1.
    Failed(String),
}

/// Where to look. All of it is settled once: when the symbolic link to a deployment moves, the working directory stays
/// in the release that was left.
#[derive(Clone)]
pub struct Loader {
    /// The project's directory, by the name that the user has for it.
    pub root: PathBuf,
    pub environment: Environment,
    has_manage_py: bool,
    python: Option<PathBuf>,
    settings: Option<String>,
    server_url: Option<String>,
}

/// What was found, all of it at the same time.
pub struct Loaded {
    pub project: Project,
    pub facts: Facts,
    pub config: Config,
    pub client: Client,
    pub catalogue: Catalogue,
    pub watch: Watch,
    pub lines: Lines,
}

/// What there is to say about it in the log.
#[derive(Default)]
pub struct Lines(Vec<(Level, String)>);

/// The project's Python is being asked.
pub struct Loading {
    loader: Loader,
    project: Project,
    probe: Probe,
    began: SystemTime,
    /// As it was before the probe began; `None` for the first load, whose lines are said as soon as they are known.
    earlier: Option<Watch>,
    /// From the first answer; the second one is waited for.
    settled: Option<(Facts, Config, Client)>,
    lines: Lines,
}

impl Loader {
    /// For the project at or above `start`; the rest are the options of the command line.
    ///
    /// # Errors
    /// There is no project.
    pub fn new(
        start: &Path,
        python: Option<PathBuf>,
        settings: Option<String>,
        server_url: Option<String>,
        environment: Environment,
    ) -> Result<Self, Error> {
        let (root, has_manage_py) =
            project::find_root(start, settings.as_deref(), &environment).map_err(Error::Configuration)?;
        let is_name = |path: &Path| path.components().count() == 1;
        let python =
            python.map(|path| if is_name(&path) { path } else { project::from_here(&path, &environment) });
        Ok(Self { root, has_manage_py, environment, python, settings, server_url })
    }

    /// Loads everything, which takes as long as the project's Python does, and says what it finds.
    ///
    /// # Errors
    /// What is wrong with the project or its settings.
    pub fn load(&self) -> Result<Loaded, Error> {
        let mut loading = self.begin(None)?;
        let over = || Err(Error::Failed("the project's Python gave no answer".to_owned()));
        loading.advance(Duration::MAX).unwrap_or_else(over)
    }

    /// Begins to load everything. With an `earlier` watch, which has just been looked at, nothing is said.
    ///
    /// # Errors
    /// There is no project, or no Python that can be started.
    pub fn begin(&self, earlier: Option<&Watch>) -> Result<Loading, Error> {
        let settings = self.settings.as_deref();
        let project = Project::find(&self.root, self.python.as_deref(), settings, &self.environment)
            .map_err(Error::Configuration)?;
        // While it is being replaced, the project above it must not be taken for it.
        if Path::new(&project.root) != self.root || project.has_manage_py != self.has_manage_py {
            return Err(Error::Failed(format!("the project in '{}' is not there", self.root.display())));
        }
        let mut lines = Lines::default();
        let found =
            format!("project '{}', Python '{}' ({})", project.root, project.python, project.python_from);
        lines.add(Level::Info, found, earlier.is_none());
        if let Some(odd) = project.odd_user() {
            lines.add(Level::Warning, format!("{odd}; run as that user"), earlier.is_none());
        }
        let began = SystemTime::now();
        let probe = Probe::begin(&project).map_err(|why| probe_failed(&project, &why))?;
        Ok(Loading {
            loader: self.clone(),
            project,
            probe,
            began,
            earlier: earlier.cloned(),
            settled: None,
            lines,
        })
    }
}

impl Loading {
    /// What was found, or why not; `None` while it is not known. Afterwards it is over, and to be dropped.
    pub fn poll(&mut self) -> Option<Result<Loaded, Error>> {
        self.advance(Duration::ZERO)
    }

    /// The project's Python, unless it is reaped.
    pub fn pid(&self) -> Option<u32> {
        self.probe.pid()
    }

    /// Reaps the project's Python, which has ended, with all that the project has started in it.
    pub fn ended(&mut self) {
        self.probe.ended();
    }

    fn advance(&mut self, wait: Duration) -> Option<Result<Loaded, Error>> {
        if self.settled.is_none() {
            let answer = self.probe.facts(wait)?;
            match answer.map_err(|why| probe_failed(&self.project, &why)).and_then(|facts| self.settle(facts))
            {
                Ok(settled) => self.settled = Some(settled),
                Err(error) => return Some(Err(error)),
            }
        }
        let answer = self.probe.catalogue(wait)?;
        let (facts, config, client) = self.settled.take()?;
        Some(answer.map_err(|why| probe_failed(&self.project, &why)).map(|catalogue| {
            for why in &catalogue.broken {
                self.say(Level::Warning, format!("listed without help, because it does not load: {why}"));
            }
            let watch = Watch::new(&catalogue.files, self.earlier.as_ref(), self.began);
            let lines = std::mem::take(&mut self.lines);
            Loaded { project: self.project.clone(), facts, config, client, catalogue, watch, lines }
        }))
    }

    /// What follows from the first answer; asks the second question.
    fn settle(&mut self, mut facts: Facts) -> Result<(Facts, Config, Client), Error> {
        if facts.python.is_empty() {
            // An embedded Python may not know its own name.
            facts.python.clone_from(&self.project.python);
        }
        self.say(Level::Info, format!("Python {}, Django {}", facts.python_version, facts.django_version));
        let Loader { environment, server_url, .. } = &self.loader;
        let config = Config::resolve(&facts.settings, environment, server_url.as_deref())
            .map_err(|unusable| Error::Configuration(unusable.to_string()))?;
        // The project answers while all this is read and said here.
        self.probe.ask_for_catalogue(&facts, &config).map_err(|why| probe_failed(&self.project, &why))?;
        config.effective.iter().for_each(|line| self.say(Level::Info, line.clone()));
        config.warnings.iter().for_each(|line| self.say(Level::Warning, line.clone()));
        let client = Client::new(&config, &self.loader.environment).map_err(Error::Configuration)?;
        Ok((facts, config, client))
    }

    fn say(&mut self, level: Level, line: String) {
        self.lines.add(level, line, self.earlier.is_none());
    }
}

impl Loaded {
    /// What no output may show.
    pub fn secrets(&self) -> Secrets {
        match self.config.secret_names {
            Some(_) => self.catalogue.secrets.and(self.config.api_key.reveal()),
            None => Secrets::default(),
        }
    }
}

impl Lines {
    fn add(&mut self, level: Level, line: String, at_once: bool) {
        if at_once {
            log::record(level, format_args!("{line}"));
        }
        self.0.push((level, line));
    }

    /// Says what was not said `before`: all is said at the start, and only news after that.
    pub fn say_news(&self, before: &Self) {
        for (level, line) in self.0.iter().filter(|line| !before.0.contains(line)) {
            log::record(*level, format_args!("{line}"));
        }
    }
}

fn probe_failed(project: &Project, why: &str) -> Error {
    let Project { python, python_from, .. } = project;
    // What a project says that still refers to the Python runner's package, which is not needed any more.
    let hint = if why.contains("No module named 'djangocommand'") {
        "\nthe Python package is not needed: take 'djangocommand' out of INSTALLED_APPS, and write \"@default\" where \
         DEFAULT_ALLOWED_COMMANDS was imported"
    } else {
        ""
    };
    Error::Failed(format!(
        "{why}{hint}\n(asked with '{python}', from {python_from}; --python names another one, --settings another settings \
         module)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::watch::Look;
    use crate::sys;
    use std::fs::{self, File};
    use std::io::Write as _;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    /// The tests' project without Django, reached through a link `current`, with a key and `settings` added.
    fn project(settings: &str) -> (TempDir, Loader) {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/fake");
        assert!(
            Command::new("cp").arg("-r").arg(source).arg(dir.path().join("one")).status().unwrap().success()
        );
        std::os::unix::fs::symlink("one", dir.path().join("current")).unwrap();
        append(
            &dir.path().join("one/settings.py"),
            &format!("DJANGOCOMMAND_API_KEY = 'dc_test'\n{settings}"),
        );
        let start = dir.path().join("current");
        let loader = Loader::new(&start, None, None, None, Environment::read()).unwrap();
        (dir, loader)
    }

    fn append(path: &Path, text: &str) {
        writeln!(File::options().append(true).open(path).unwrap(), "\n{text}").unwrap();
    }

    /// Polls as the loop does, and counts how often there was no answer yet.
    fn wait(mut loading: Loading) -> (Result<Loaded, Error>, u32) {
        let began = Instant::now();
        for polls in 0.. {
            assert!(began.elapsed() < Duration::from_secs(30));
            let poll = Instant::now();
            let answer = loading.poll();
            assert!(answer.is_some() || poll.elapsed() < Duration::from_secs(5), "a poll does not wait");
            if let Some(answer) = answer {
                return (answer, polls);
            }
            std::thread::yield_now();
        }
        unreachable!()
    }

    #[test]
    fn a_project_is_loaded_by_polls_as_well_as_by_waiting_and_then_only_news_are_said() {
        let _turn = sys::no_forks_meanwhile();
        let (dir, loader) = project("");
        let before = loader.load().unwrap();
        let (Ok(mut after), polls) = wait(loader.begin(Some(&before.watch)).unwrap()) else { panic!() };
        assert!(polls > 0, "it takes longer than one poll");
        assert_eq!(after.catalogue.hash, before.catalogue.hash);
        assert_eq!(after.watch.changed(), None);
        assert_eq!(after.watch.look(), Look::Same);
        assert!(!after.facts.debug && after.lines.0 == before.lines.0);
        append(&dir.path().join("one/settings.py"), "DEBUG = True\nDJANGOCOMMAND_MAX_RETRIES = 7");
        assert!(
            matches!(after.watch.look(), Look::Unsettled(path) if path.ends_with("/current/settings.py"))
        );
        let (Ok(changed), _) = wait(loader.begin(Some(&after.watch)).unwrap()) else { panic!() };
        let news: Vec<_> = changed.lines.0.iter().filter(|line| !after.lines.0.contains(line)).collect();
        assert!(changed.facts.debug && news.len() == 1 && news[0].1.contains("MAX_RETRIES = 7"), "{news:?}");
        changed.lines.say_news(&after.lines);
        assert_eq!(changed.watch.changed(), None);
    }

    #[test]
    fn a_project_that_does_not_load_says_why_though_the_loop_reaps_its_python() {
        let _turn = sys::no_forks_meanwhile();
        for (settings, expected) in [
            ("raise RuntimeError('no database today')", "RuntimeError: no database today"),
            ("import os, time; time.sleep(0.2); os.kill(os.getpid(), 11)", "killed by signal 11"),
        ] {
            let (_dir, loader) = project(settings);
            let mut loading = loader.begin(Some(&Watch::default())).unwrap();
            while sys::ended_child() != loading.pid() {
                std::thread::yield_now();
            }
            loading.ended();
            assert_eq!((loading.pid(), sys::ended_child()), (None, None));
            let (answer, _) = wait(loading);
            assert!(matches!(&answer, Err(Error::Failed(why)) if why.contains(expected)), "{settings}");
        }
    }

    #[test]
    fn the_files_are_the_projects_own_by_the_name_that_was_given() {
        let _turn = sys::no_forks_meanwhile();
        let (dir, loader) = project(
            "import sys\nfor place in ('lib', 'env/lib', 'x/site-packages'):\n    \
             sys.path.append(os.path.realpath(os.path.join(BASE_DIR, place)))\n\
             import own, foreign, packaged\nclass Odd:\n    __slots__ = ()\nsys.modules['odd'] = Odd()",
        );
        let one = dir.path().join("one");
        for file in ["lib/own.py", "env/lib/foreign.py", "env/pyvenv.cfg", "x/site-packages/packaged.py"] {
            fs::create_dir_all(one.join(file).parent().unwrap()).unwrap();
            fs::write(one.join(file), "").unwrap();
        }
        let current = loader.root.to_str().unwrap();
        let files = loader.load().unwrap().catalogue.files;
        let own: Vec<&str> = files.iter().map(|path| path.strip_prefix(current).unwrap()).collect();
        for name in ["/.env", "/manage.py", "/settings.py", "/commands.py", "/lib/own.py"] {
            assert!(own.contains(&name), "{name} in {own:?}");
        }
        assert!(!own.iter().any(|name| name.contains("foreign") || name.contains("packaged")), "{own:?}");
        assert!(files.is_sorted());
    }
}
