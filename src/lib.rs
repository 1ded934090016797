//! djangocommand: runs the management commands of a Django project for the DjangoCommand service, without SSH.
//!
//! One binary, two roles:
//!
//! ```text
//!             HTTPS                      files in the state directory                pipes
//!  service <--------->  runner  ------------------------------------->  shim  <----------------->  python manage.py …
//!                       1 process         executions/<id>/                1 process per execution
//!                       1 thread          spec · output · exit · cursor   2 pipe threads
//! ```
//!
//! *An execution is a directory.* The runner writes down what to run before it tells the service, the shim writes
//! down what the command printed and how it ended, and the runner delivers that until the service has acknowledged
//! it. Either may be killed at any instant: the next runner finds the directory and goes on. "New", "running",
//! "found after a crash" and "refused" are the same directory at different moments, handled by the same code.
//!
//! The modules, lower floors first; none knows of a higher one:

// Floor 0: the kernel, the terminal, time; they know nothing of the project.
mod cli;
mod gather;
mod log;
mod near;
mod notify;
mod signals;
mod sys;
mod syslog;
mod terminal;
mod timer;
#[cfg(all(target_env = "musl", not(test), not(debug_assertions)))]
mod unwind;
// Floor 1: what the words mean: settings, executions, policy, the state directory.
mod audit;
mod config;
mod execution;
mod mask;
mod policy;
mod state;
mod status;
// Floor 2: the three neighbours: the project, the command, the service.
mod api;
mod project;
mod shim;
// Floor 3 to 5: all that a runner goes by, delivery, the loop, the subcommands.
mod control;
mod delivery;
mod load;
/// What must hold for any input.
#[cfg(any(test, fuzzing))]
pub mod properties;
mod runner;

use std::io::Write;
use std::process::ExitCode;

const USAGE: u8 = 2;
/// `status` cannot tell, as the Linux Standard Base numbers it.
const UNKNOWN: u8 = 4;
/// `EX_CONFIG` of sysexits.h: a supervisor should not restart.
const CONFIGURATION: u8 = 78;

/// Does what the command line says.
pub fn main() -> ExitCode {
    if let Err(error) = sys::unblock_signals() {
        return fail(&format!("cannot unblock signals: {error}"), 1);
    }
    let arguments = std::env::args_os().skip(1);
    match cli::parse(arguments) {
        Err(usage) => fail(&usage, USAGE),
        Ok(cli::Command::Print(text)) => print(&text),
        Ok(cli::Command::Shim(directory)) => shim::run(&directory),
        Ok(cli::Command::Start(options)) => end(control::start(options)),
        Ok(cli::Command::Stop { place, timeout, force }) => end(control::stop(&place, timeout, force)),
        Ok(cli::Command::Reload(place)) => end(control::reload(&place)),
        Ok(cli::Command::Check { load, offline, json }) => end(control::check(load, offline, json)),
        Ok(cli::Command::Commands { load, json }) => end(control::commands(load, json)),
        Ok(cli::Command::Ensure(options)) => end(control::ensure(&options)),
        Ok(cli::Command::Logs { place, lines, follow }) => end(control::logs(&place, lines, follow)),
        Ok(cli::Command::History { place, json, count, command }) => {
            end(control::history(&place, json, count, command.as_deref()))
        }
        Ok(cli::Command::Status { place, json }) => match control::status(&place, json) {
            Err(control::Error::Configuration(why) | control::Error::Failed(why)) => fail(&why, UNKNOWN),
            told => end(told),
        },
    }
}

fn end(result: Result<u8, control::Error>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(control::Error::Configuration(why)) => fail(&why, CONFIGURATION),
        Err(control::Error::Failed(why)) => fail(&why, 1),
    }
}

/// A reader that has gone away (`djangocommand --help | head -1`) is no failure; a full disk is.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to standard output: {error}"), 1)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn fail(why: &str, code: u8) -> ExitCode {
    let lines: Vec<String> = why.lines().map(log::printable).collect();
    let _ = writeln!(std::io::stderr(), "djangocommand: {}", lines.join("\n"));
    ExitCode::from(code)
}
