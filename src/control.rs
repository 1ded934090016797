//! The subcommands: what each does, in the words of `--help`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::api::Client;
use crate::audit::Audit;
use crate::cli::Options;
use crate::config::{Config, Environment};
use crate::log;
use crate::project::Project;
use crate::project::probe::Probe;
use crate::runner::{Parts, Runner};
use crate::signals;
use crate::state::{self, StateDir};
use crate::sys;

/// Why a subcommand ends without having done its work.
#[derive(Debug)]
pub enum Error {
    /// The same again would fail in the same way: exit code 78, after which a supervisor should not restart.
    Configuration(String),
    /// Exit code 1.
    Failed(String),
}

/// `start`: checks everything that can be checked here, then runs until a signal ends it.
///
/// # Errors
/// What is wrong, before any network is used.
pub fn start(options: Options) -> Result<(), Error> {
    log::set_level(options.level);
    // Until a runner has something to lose, a signal ends it at once. Before all other handlers: they run in order.
    let nothing_to_lose = Arc::new(AtomicBool::new(true));
    signals::exit_while(&nothing_to_lose, &[sys::SIGTERM, sys::SIGINT])
        .map_err(|e| Error::Failed(format!("cannot catch signals: {e}")))?;
    let environment = Environment::read();
    let start = options.project.as_deref().unwrap_or(Path::new("."));
    let python = options.python.as_deref();
    let project = Project::find(start, python, options.settings.as_deref(), &environment)
        .map_err(Error::Configuration)?;
    let state_path = state::choose(options.state_dir, &environment, Path::new(&project.root))
        .map_err(Error::Configuration)?;
    log::info!("project '{}', Python '{}' ({})", project.root, project.python, project.python_from);
    let (probe, mut facts) = Probe::start(&project).map_err(|why| probe_failed(&project, &why))?;
    if facts.python.is_empty() {
        // An embedded Python may not know its own name.
        facts.python.clone_from(&project.python);
    }
    log::info!("Python {}, Django {}", facts.python_version, facts.django_version);
    let config = Config::resolve(&facts.settings, &environment, options.server_url.as_deref()).map_err(
        |problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Error::Configuration(match &lines[..] {
                [only] => only.clone(),
                _ => format!("{} settings cannot be used:\n- {}", lines.len(), lines.join("\n- ")),
            })
        },
    )?;
    config.effective.iter().for_each(|line| log::info!("{line}"));
    config.warnings.iter().for_each(|line| log::warning!("{line}"));
    let client = Client::new(&config, &environment).map_err(Error::Configuration)?;
    let catalogue = probe.describe(&facts, &config.policy).map_err(|why| probe_failed(&project, &why))?;
    catalogue
        .broken
        .iter()
        .for_each(|why| log::warning!("listed without help, because it does not load: {why}"));
    let state = StateDir::open(state_path).map_err(state_error)?;
    let audit = Audit::open(state.path()).map_err(|e| {
        Error::Failed(format!("cannot read audit.jsonl in '{}': {e}", state.path().display()))
    })?;
    log::info!("state in '{}'; the service is reached {}", state.path().display(), client.route());
    let parts = Parts { config, project, facts, catalogue, client, state, audit };
    let runner =
        Runner::new(parts, nothing_to_lose).map_err(|e| Error::Failed(format!("cannot begin: {e}")))?;
    runner.run();
    Ok(())
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

fn state_error(error: state::Error) -> Error {
    match error {
        state::Error::Taken(path, pid) => {
            let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("PID {pid}"));
            Error::Failed(format!(
                "a runner is already running ({who}) with the state in '{}'",
                path.display()
            ))
        }
        state::Error::Untrusted(why) => Error::Configuration(why),
        state::Error::Unusable(why) => Error::Failed(why),
    }
}
