//! What is on this host: project, Python, Django, settings, key, state directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Finding, Report, STEP_LIMIT};
use crate::api::Client;
use crate::cli::Load;
use crate::config::{Config, Environment};
use crate::control::{find_runner, state_path};
use crate::project::probe::{Catalogue, Facts, Probe, TIME_LIMIT};
use crate::project::{self, Project};
use crate::{state, sys};

/// With less than that on the disk, one talkative command fills it.
const ROOM_MIN: u64 = 64 * 1024 * 1024;

/// All that the other checks go by.
pub(super) struct Known {
    pub(super) project: Project,
    pub(super) facts: Facts,
    pub(super) config: Config,
    /// It takes little time for a request, whatever the settings say.
    pub(super) client: Client,
    pub(super) catalogue: Catalogue,
}

/// Looks at everything here. `None` if a later check has nothing to go by.
pub(super) fn look_at(
    load: &Load,
    environment: &Environment,
    limit: Duration,
    report: &mut Report,
) -> Option<Known> {
    let project = find_project(load, environment, report)?;
    look_at_state(load, environment, report);
    let deadline = Instant::now() + limit;
    let mut probe = match Probe::begin(&project) {
        Ok(probe) => probe,
        Err(why) => {
            report.add(Finding::fail("python", why, "name the project's Python with --python"));
            return None;
        }
    };
    let facts = ask_django(&mut probe, limit, report)?;
    let mut config = settle(load, &facts, environment, report)?;
    config.request_timeout = config.request_timeout.min(STEP_LIMIT);
    let client = match Client::new(&config, environment) {
        Ok(client) => client,
        Err(why) => {
            report.add(Finding::fail("network", why, "start ends with exit code 78 until this is mended"));
            return None;
        }
    };
    let catalogue = ask_commands(&mut probe, &facts, &config, deadline, report)?;
    Some(Known { project, facts, config, client, catalogue })
}

fn find_project(load: &Load, environment: &Environment, report: &mut Report) -> Option<Project> {
    let Load { place, python, .. } = load;
    let start = place.project.clone().unwrap_or_else(|| PathBuf::from("."));
    let (root, has_manage_py) = match project::find_root(&start, place.settings.as_deref(), environment) {
        Ok(found) => found,
        Err(why) => {
            report.add(with_remedy("project", &why, "run this where manage.py is"));
            return None;
        }
    };
    let named = project::from_here(&start, environment);
    let why = match (has_manage_py, root == named) {
        (false, _) => "no manage.py: its settings module makes it a project",
        (true, true) => "manage.py is there",
        (true, false) => "manage.py is there, above where it was looked for",
    };
    report.add(Finding::ok("project", format!("'{}': {why}", root.display())));
    match Project::find(&root, python.as_deref(), place.settings.as_deref(), environment) {
        Ok(project) => {
            report.add(Finding::ok("python", format!("'{}', from {}", project.python, project.python_from)));
            if let Some(odd) = project.odd_user() {
                report.add(Finding::warn("user", odd, "run it as that user (User= in a systemd unit)"));
            }
            Some(project)
        }
        Err(why) => {
            report.add(Finding::fail(
                "python",
                why,
                "make a virtualenv beside manage.py, or name its Python with --python",
            ));
            None
        }
    }
}

fn look_at_state(load: &Load, environment: &Environment, report: &mut Report) {
    let path = match state_path(&load.place, environment) {
        Ok(path) => path,
        Err(super::Error::Configuration(why) | super::Error::Failed(why)) => {
            return report.add(with_remedy("state", &why, "name a directory with --state-dir"));
        }
    };
    match state::look_at(&path) {
        Ok(()) if path.exists() => {
            report.add(Finding::ok("state", format!("'{}' is this user's alone", path.display())));
        }
        Ok(()) => report.add(Finding::ok("state", format!("'{}' will be made by start", path.display()))),
        Err(why) => report.add(with_remedy("state", &why, "name another directory with --state-dir")),
    }
    look_at_room(&path, report);
    match find_runner(&path) {
        Ok(Some(runner)) => report.add(Finding::ok("runner", format!("running ({})", runner.name()))),
        Ok(None) => report.add(Finding::ok("runner", "none is running with this state directory")),
        Err(why) => {
            let (super::Error::Configuration(why) | super::Error::Failed(why)) = why;
            report.add(Finding::fail("runner", why, "run this as the user of the runner"));
        }
    }
}

/// A failure whose message may end with what to do about it.
fn with_remedy(name: &'static str, why: &str, otherwise: &str) -> Finding {
    let begins = [": run ", ": name ", "; name "].iter().filter_map(|mark| why.rfind(mark)).max();
    match begins {
        Some(at) => Finding::fail(name, &why[..at], &why[at + 2..]),
        None => Finding::fail(name, why, otherwise),
    }
}

fn look_at_room(path: &Path, report: &mut Report) {
    let there = path.ancestors().find_map(|above| File::open(above).ok());
    let Some(free) = there.map(|directory| sys::free_bytes(&directory)).filter(|free| *free < u64::MAX)
    else {
        return;
    };
    let text = format!("{} MB free for the output of commands", free / 1_000_000);
    report.add(if free < ROOM_MIN {
        let next = "make room: output that the disk does not take is lost";
        Finding::warn("disk", text, next)
    } else {
        Finding::ok("disk", text)
    });
}

fn ask_django(probe: &mut Probe, limit: Duration, report: &mut Report) -> Option<Facts> {
    let began = Instant::now();
    match probe.facts(limit) {
        None => {
            report.add(too_slow(limit));
            None
        }
        Some(Err(why)) => {
            report.add(Finding::fail(
                "django",
                why,
                "'manage.py check' with this Python must work first; --python names another Python, --settings other settings",
            ));
            None
        }
        Some(Ok(facts)) => {
            let (django, python) = (&facts.django_version, &facts.python_version);
            let text = format!(
                "Django {django} on Python {python}, loaded in {:.2} s",
                began.elapsed().as_secs_f64()
            );
            report.add(Finding::ok("django", text));
            Some(facts)
        }
    }
}

fn too_slow(limit: Duration) -> Finding {
    let text = format!(
        "the project has not loaded within {} s (start waits up to {} s)",
        limit.as_secs(),
        TIME_LIMIT.as_secs()
    );
    Finding::fail("django", text, "look what its settings and apps wait for: a network, a database, a lock")
}

fn settle(load: &Load, facts: &Facts, environment: &Environment, report: &mut Report) -> Option<Config> {
    let settled = Config::resolve(&facts.settings, environment, load.server_url.as_deref());
    let (effective, warnings) = match &settled {
        Ok(config) => (&config.effective, &config.warnings),
        Err(unusable) => (&unusable.effective, &unusable.warnings),
    };
    for line in effective {
        let name = if line.contains("API_KEY = ") { "key" } else { "setting" };
        report.add(Finding::ok(name, line.clone()));
    }
    for line in warnings {
        report.add(Finding::warn(
            "setting",
            line.clone(),
            "mend it, so that nobody has to guess which is meant",
        ));
    }
    match settled {
        Ok(config) => Some(config),
        Err(unusable) => {
            for problem in &unusable.problems {
                let text = problem.to_string();
                let is_key =
                    ["API_KEY", "key file", "systemd credential"].iter().any(|part| text.contains(part));
                let name = if is_key { "key" } else { "setting" };
                report.add(Finding::fail(name, text, "start ends with exit code 78 until this is mended"));
            }
            None
        }
    }
}

fn ask_commands(
    probe: &mut Probe,
    facts: &Facts,
    config: &Config,
    deadline: Instant,
    report: &mut Report,
) -> Option<Catalogue> {
    if let Err(why) = probe.ask_for_catalogue(facts, config) {
        report.add(Finding::fail("commands", why, "report this as a bug"));
        return None;
    }
    match probe.catalogue(deadline.saturating_duration_since(Instant::now())) {
        None => {
            let next = "look which command's module waits for something when it is imported";
            report.add(Finding::fail("commands", "the commands have not loaded in time", next));
            None
        }
        Some(Err(why)) => {
            report.add(Finding::fail("commands", why, "look which command's module does that"));
            None
        }
        Some(Ok(catalogue)) => Some(catalogue),
    }
}
