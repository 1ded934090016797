//! `start` and `restart`: a runner in the foreground, in the background, or for one round.
//!
//! A detached runner is this program started once more. Until it has its lock and a good configuration, or begins to
//! replace another, it dies with the process that started it; what is wrong it says on that process's terminal.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use super::take_over::{make_way, state_error};
use super::{Error, loader, say, state_path};
use crate::audit::Audit;
use crate::cli::{Mode, Replace, Start};
use crate::config::Environment;
use crate::log::{self, Format, Level};
use crate::notify::{self, Notify};
use crate::runner::{End, Parts, Runner, Wishes};
use crate::state::{self, StateDir};
use crate::status::Status;
use crate::sys::{self, Bond};

/// What a detached runner tells the process that started it.
const READY: &str = "ready";

/// Checks everything that can be checked here, then runs until a signal ends it. Returns the exit code.
///
/// # Errors
/// What is wrong, before any network is used.
pub fn start(options: Start) -> Result<u8, Error> {
    if options.mode == Mode::Detach {
        let state = state_path(&options.load.place, &Environment::read())?;
        return match spawn_detached(&options, options.replace, Stdio::inherit())? {
            Spawned::Ready(pid) => say(&started(pid, &state)).map(|()| 0),
            Spawned::Ended { code, .. } => Ok(code),
        };
    }
    run(options).inspect_err(|error| {
        if log::is_file() {
            // On the terminal of a detached runner it is said too, but nobody may be there.
            let (Error::Configuration(why) | Error::Failed(why)) = error;
            log::record_lines(Level::Error, why);
        }
    })
}

/// What is said of a new detached runner.
pub fn started(pid: u32, state: &Path) -> String {
    format!("started: PID {pid}, log '{}'", state.join(log::FILE_NAME).display())
}

pub enum Spawned {
    Ready(u32),
    /// It could not begin, and has said why: on this terminal, or in `said` if its standard error is a pipe.
    Ended {
        code: u8,
        said: String,
    },
}

/// Starts a detached runner and waits until it is ready or has ended.
///
/// # Errors
/// No process can be started.
pub fn spawn_detached(options: &Start, replace: Option<Replace>, stderr: Stdio) -> Result<Spawned, Error> {
    let failed = |e: io::Error| Error::Failed(format!("cannot start a detached runner: {e}"));
    let mut command = Command::new("/proc/self/exe");
    command.arg0("djangocommand").arg("start").args(&options.to_pass_on).arg("--detached");
    if let Some(replace) = replace {
        command.args(["--replace", replace.word()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    notify::VARIABLES.iter().for_each(|variable| _ = command.env_remove(variable));
    sys::isolate(&mut command, Bond::DiesWithParent);
    let mut child = command.spawn().map_err(failed)?;
    // Standard error first: what is said there may be more than a pipe holds, what is said on the other is not.
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut said).map_err(failed)?;
    }
    let mut is_ready = false;
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
        let line = line.map_err(failed)?;
        if line == READY {
            is_ready = true;
        } else {
            // What one that replaces another says of that.
            say(&line)?;
        }
    }
    if is_ready {
        return Ok(Spawned::Ready(child.id()));
    }
    let status = child.wait().map_err(failed)?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Err(Error::Failed("the detached runner was told to stop before it was ready".to_owned())),
        Some(code) => Ok(Spawned::Ended { code, said: String::from_utf8_lossy(&said).into_owned() }),
        None => Err(Error::Failed(format!(
            "the detached runner was killed by signal {} before it was ready",
            status.signal().unwrap_or_default()
        ))),
    }
}

fn run(options: Start) -> Result<u8, Error> {
    sys::forbid_inspection();
    let environment = Environment::read();
    set_up_log(&options, &environment);
    sys::set_process_name(c"djangocommand");
    // A round that is ended by a signal has not done all that waits.
    let wishes = Wishes::catch(i32::from(options.mode == Mode::Once))
        .map_err(|e| Error::Failed(format!("cannot catch signals: {e}")))?;
    let Start { load, watches_files, drain, mode, replace, .. } = options;
    let path = state_path(&load.place, &environment)?;
    let loader = loader(load, environment)?;
    // The lock comes first, so that of many runners at once only one asks the project. One that replaces another
    // loads the project before that: if it is broken, the old runner stays.
    let held = match replace {
        None => Ok(StateDir::open(path.clone()).map_err(state_error)?),
        Some(how) => state::prepare(&path).map(|()| Err(how)).map_err(state_error)?,
    };
    if mode == Mode::Detached {
        log_to_file(&path)?;
    }
    let status = Status::new(&loader.root.to_string_lossy());
    if held.is_ok() {
        // On a full disk it is written later.
        let _ = status.write(&path);
    }
    let environment = &loader.environment;
    let mut notify = Notify::new(notify::VARIABLES.map(|variable| environment.get(variable)));
    notify.status("loading the project");
    let loaded = loader.load()?;
    let state = match held {
        Ok(state) => state,
        Err(how) => {
            // From here on the old runner may be gone: whoever hangs up must not take the new one along.
            sys::outlive_parent();
            make_way(path, how)?
        }
    };
    let audit = Audit::open(state.path()).map_err(|e| {
        Error::Failed(format!("cannot read audit.jsonl in '{}': {e}", state.path().display()))
    })?;
    log::info!("state in '{}'; the service is reached {}", state.path().display(), loaded.client.route());
    let once = mode == Mode::Once;
    let parts = Parts { loader, loaded, state, audit, status, notify, watches_files, drain, once };
    let runner = Runner::new(parts, wishes).map_err(|e| Error::Failed(format!("cannot begin: {e}")))?;
    if mode == Mode::Detached {
        report_ready(replace.is_some())?;
    }
    Ok(match runner.run() {
        End::Done => 0,
        End::SomethingLeft => u8::from(once),
    })
}

fn set_up_log(options: &Start, environment: &Environment) {
    log::set_level(options.level);
    log::set_coloured(environment.allows_colour());
    // The log of a detached runner is a file, wherever the standard error leads that it begins with.
    let is_journal = options.mode != Mode::Detached && log::is_journal(environment.get("JOURNAL_STREAM"));
    log::set_format(options.log_format.unwrap_or(if is_journal { Format::Journal } else { Format::Stamped }));
}

fn log_to_file(state: &Path) -> Result<(), Error> {
    let path = state.join(log::FILE_NAME);
    log::write_to_file(path.clone())
        .map_err(|e| Error::Failed(format!("cannot write the log '{}': {e}", path.display())))
}

/// Lets go of the terminal and of the process that started this one.
/// One that has replaced another is needed even if nobody waits for it any more.
fn report_ready(has_replaced: bool) -> Result<(), Error> {
    sys::outlive_parent();
    let told = writeln!(io::stdout().lock(), "{READY}").and_then(|()| io::stdout().lock().flush());
    if told.is_err() && !has_replaced {
        return Err(Error::Failed("the process that started this runner has gone away".to_owned()));
    }
    log::take_over_output().map_err(|e| Error::Failed(format!("cannot let go of the terminal: {e}")))
}
