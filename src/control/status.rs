//! `status`: what the runner does and what waits, from its lock, its own words and the executions' directories.
//!
//! Nothing is locked, written or asked: it may be called as often as one likes, whatever the runner does meanwhile.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{Error, find_runner, say, state_path};
use crate::cli::Place;
use crate::config::Environment;
use crate::execution::segment::Segment;
use crate::execution::store::ExecutionDir;
use crate::gather::gather;
use crate::log::{self, printable, printable_json};
use crate::project::probe::PRINTED;
use crate::shim;
use crate::state::{self, Occupant};
use crate::status::{Key, Status, TURN_MAX};
use crate::sys;
use crate::terminal::{Colour, Look};
use crate::timer::{iso_8601, unix_now};

/// How many lines of an error are shown: wrong settings have one each.
const ERROR_LINES: usize = 6;

/// `status --json`. The keys are described in the README.
#[derive(Serialize)]
struct Report {
    status: State,
    state_dir: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    runner: Option<RunnerReport>,
    executions: Vec<ExecutionReport>,
    undelivered: Undelivered,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Running,
    /// Not running, but executions are left.
    Dead,
    Stopped,
}

#[derive(Serialize)]
struct RunnerReport {
    /// `None` if it cannot be seen from here.
    pid: Option<u32>,
    #[serde(skip)]
    name: String,
    /// In UTC.
    started_at: Option<String>,
    #[serde(skip)]
    started: Option<f64>,
    uptime_seconds: Option<f64>,
    /// `None` for one that has not said anything yet, or is of a newer version.
    #[serde(flatten)]
    says: Option<Says>,
    log_file: Option<String>,
}

/// What the runner itself says.
#[derive(Serialize)]
struct Says {
    runner_version: String,
    project: String,
    server_url: Option<String>,
    last_contact_at: Option<String>,
    last_contact_seconds: Option<f64>,
    key: Key,
    stopping: bool,
    suspended: bool,
    suspension_reason: Option<String>,
    outage_seconds: Option<f64>,
    outage_cause: Option<String>,
    reload_error: Option<String>,
    cannot_take: Option<String>,
    loop_seconds: f64,
    /// A healthy loop turns at least this often.
    #[serde(skip)]
    may_turn_in: Duration,
}

#[derive(Serialize)]
struct ExecutionReport {
    id: String,
    command: String,
    state: Stage,
    age_seconds: f64,
    undelivered_bytes: u64,
    /// Output that the disk did not take, once it has ended.
    lost_bytes: u64,
    #[serde(skip)]
    oldest: Option<f64>,
}

impl ExecutionReport {
    /// In place of the command: why it cannot be told.
    fn unreadable(dir: &ExecutionDir, error: &io::Error) -> Self {
        let id = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (command, state) = (error.to_string(), Stage::Unreadable);
        Self { id, command, state, age_seconds: 0.0, undelivered_bytes: 0, lost_bytes: 0, oldest: None }
    }
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// Taken, not begun.
    New,
    Running,
    /// Its end waits to be delivered.
    Ended,
    /// It ran, and nobody looks after it any more: the next runner reports it as failed.
    Lost,
    /// A newer version wrote it, or it is damaged: it is left alone.
    Unreadable,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Lost => "lost",
            Self::Unreadable => "unreadable",
        }
    }
}

#[derive(Serialize)]
struct Undelivered {
    bytes: u64,
    oldest_seconds: Option<f64>,
}

/// Returns the exit code, as the Linux Standard Base has it for init scripts.
///
/// # Errors
/// It cannot be told whether a runner is running.
pub fn status(place: &Place, json: bool) -> Result<u8, Error> {
    let environment = Environment::read();
    let state = state_path(place, &environment)?;
    let report = report(&state)?;
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Error::Failed(e.to_string()))?;
        say(&printable_json(&text))?;
    } else {
        say(describe(&report, Look::of_stdout(environment.allows_colour())).trim_end())?;
    }
    Ok(match report.status {
        State::Running => 0,
        State::Dead => 1,
        State::Stopped => 3,
    })
}

/// How many executions the service does not have the whole of.
pub fn left(state: &Path) -> usize {
    executions(state, &BTreeMap::new()).map_or(0, |left| left.len())
}

/// Whether a command runs now.
pub fn something_runs(state: &Path) -> bool {
    any_is(Stage::Running, state)
}

/// Whether something has been taken that has not begun.
pub fn something_is_new(state: &Path) -> bool {
    any_is(Stage::New, state)
}

fn any_is(stage: Stage, state: &Path) -> bool {
    let left = executions(state, &BTreeMap::new()).unwrap_or_default();
    left.iter().any(|execution| execution.state == stage)
}

/// The ids of the executions that are left, as the service wrote them, each with the word that `status` has for its state.
pub fn states(state: &Path) -> BTreeMap<String, &'static str> {
    let left = executions(state, &BTreeMap::new()).unwrap_or_default();
    gather(left.into_iter().map(|execution| (execution.id, execution.state.name())))
}

/// What a runner is busy with, in a few words.
pub fn what_runs(state: &Path) -> String {
    let left = executions(state, &BTreeMap::new()).unwrap_or_default();
    let named = |stage| {
        let of_stage = left.iter().filter(move |execution| execution.state == stage);
        of_stage
            .map(|e| format!("{} ({}, {})", printable(&e.command), e.id, span(e.age_seconds)))
            .collect::<Vec<_>>()
    };
    let (running, ended) = (named(Stage::Running), named(Stage::Ended));
    match (&running[..], &ended[..]) {
        ([], []) => "nothing runs".to_owned(),
        ([], ended) => format!("nothing runs, the end of {} is being delivered", ended.join(", ")),
        (running, _) => format!("{} still running: {}", running.len(), running.join(", ")),
    }
}

fn report(state: &Path) -> Result<Report, Error> {
    let runner = find_runner(state)?;
    let says = runner.as_ref().and_then(|runner| Status::read(state, runner.label()));
    let delivered = says.as_ref().map(|says| says.delivered.clone()).unwrap_or_default();
    let executions = executions(state, &delivered)
        .map_err(|e| Error::Failed(format!("cannot read the executions in '{}': {e}", state.display())))?;
    let runner = runner.map(|runner| runner_report(state, &runner, says));
    let status = match (&runner, &executions[..]) {
        (Some(_), _) => State::Running,
        (None, []) => State::Stopped,
        (None, _) => State::Dead,
    };
    let bytes = executions.iter().map(|execution| execution.undelivered_bytes).sum();
    let oldest = executions.iter().filter_map(|execution| execution.oldest).reduce(f64::min);
    let oldest_seconds = oldest.map(|unix| (unix_now() - unix).max(0.0));
    let state_dir = state.display().to_string();
    Ok(Report { status, state_dir, runner, executions, undelivered: Undelivered { bytes, oldest_seconds } })
}

fn runner_report(state: &Path, runner: &Occupant, says: Option<Status>) -> RunnerReport {
    let log_file =
        Some(state.join(log::FILE_NAME)).filter(|log| log.exists()).map(|log| log.display().to_string());
    RunnerReport {
        pid: runner.pid(),
        name: runner.name(),
        started_at: says.as_ref().map(|status| iso_8601(status.started.unix)),
        started: says.as_ref().map(|status| status.started.unix),
        uptime_seconds: says.as_ref().map(|status| status.started.age().as_secs_f64()),
        log_file,
        says: says.map(|status| Says {
            loop_seconds: status.still_for().as_secs_f64(),
            may_turn_in: TURN_MAX + status.longest_turn(),
            runner_version: status.runner_version,
            project: status.project,
            server_url: status.server_url,
            last_contact_at: status.contact.map(|contact| iso_8601(contact.unix)),
            last_contact_seconds: status.contact.map(|contact| contact.age().as_secs_f64()),
            key: status.key,
            stopping: status.stopping,
            suspended: status.suspended.is_some(),
            suspension_reason: status.suspended,
            outage_seconds: status.outage.as_ref().map(|outage| outage.since.age().as_secs_f64()),
            outage_cause: status.outage.map(|outage| outage.cause),
            reload_error: status.reload_error,
            // Where it cannot write it cannot say so.
            cannot_take: status
                .cannot_take
                .or_else(|| state::read_only(runner.path()).map(|error| error.to_string())),
        }),
    }
}

/// `delivered`: what the runner says of how much of which execution the service has.
fn executions(state: &Path, delivered: &BTreeMap<String, u64>) -> io::Result<Vec<ExecutionReport>> {
    let dirs = match ExecutionDir::list(&state.join("executions")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for dir in &dirs {
        match execution(dir, delivered) {
            Ok(execution) => found.push(execution),
            // It has been delivered while it was looked at, or was never told to the service.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.push(ExecutionReport::unreadable(dir, &error)),
        }
    }
    found.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
    Ok(found)
}

fn execution(dir: &ExecutionDir, delivered: &BTreeMap<String, u64>) -> io::Result<ExecutionReport> {
    let spec = dir.spec()?;
    let exit = dir.exit()?;
    let lost_bytes = exit.as_ref().map_or(0, |exit| exit.missing.lost);
    let state = match (exit, dir.keeper_pid()?) {
        (Some(_), _) => Stage::Ended,
        (None, Some(pid)) if shim::is_seen_at(pid, dir.path()) => Stage::Running,
        // Its shim may have written how it ended, and gone, since that was looked for.
        (None, Some(_)) if dir.exit()?.is_some() => Stage::Ended,
        (None, Some(_)) => Stage::Lost,
        (None, None) => Stage::New,
    };
    let taken = fs::metadata(dir.path().join("spec.json"))?.modified()?;
    let on_disk = dir.cursor()?.map_or(0, |cursor| cursor.start);
    let delivered = delivered.get(spec.id.as_str()).map_or(on_disk, |said| *said);
    let length = fs::metadata(dir.output_path()).map_or(0, |meta| meta.len());
    Ok(ExecutionReport {
        id: spec.id.as_str().to_owned(),
        command: spec.command,
        state,
        age_seconds: SystemTime::now().duration_since(taken).unwrap_or_default().as_secs_f64(),
        undelivered_bytes: length.saturating_sub(delivered),
        lost_bytes,
        oldest: if length > delivered { first_timestamp(dir, delivered) } else { None },
    })
}

/// When the first line behind `position` was printed.
fn first_timestamp(dir: &ExecutionDir, position: u64) -> Option<f64> {
    const LOOK: u64 = 64 * 1024;
    let mut output = File::open(dir.output_path()).ok()?;
    output.seek(SeekFrom::Start(position)).ok()?;
    let mut bytes = Vec::new();
    output.take(LOOK).read_to_end(&mut bytes).ok()?;
    let mut lines = bytes.split_inclusive(|b| *b == b'\n').filter_map(Segment::parse);
    lines.find_map(|segment| segment.timestamp.get().parse().ok())
}

fn describe(report: &Report, look: Look) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let padded = format!("{name:<12}");
        let name = colour(name).map_or(padded.clone(), |colour| look.paint(colour, &padded));
        _ = writeln!(text, "{name}{}", printable(&value));
    };
    match (&report.runner, report.status) {
        (Some(runner), _) => describe_runner(runner, &mut line),
        (None, State::Dead) => {
            line("dead", "no runner is running, but executions are left; start one".into())
        }
        (None, _) => line("stopped", "no runner is running".into()),
    }
    line("state dir", report.state_dir.clone());
    for execution in &report.executions {
        let lost = match execution.lost_bytes {
            0 => String::new(),
            lost => format!(", {lost} bytes of its output lost: the disk did not take them"),
        };
        let age = span(execution.age_seconds);
        line(execution.state.name(), format!("{} ({}), {age}{lost}", execution.command, execution.id));
    }
    let Undelivered { bytes, oldest_seconds } = &report.undelivered;
    if let Some(oldest) = oldest_seconds {
        line("undelivered", format!("{bytes} bytes of output, the oldest from {} ago", span(*oldest)));
    }
    text
}

/// What is well, and what somebody should look at.
fn colour(name: &str) -> Option<Colour> {
    match name {
        "running" => Some(Colour::Green),
        "dead" | "lost" | "silent" | "outage" | "unreadable" => Some(Colour::Red),
        "stopped" | "stopping" | "suspended" | "disk" | "reload" => Some(Colour::Yellow),
        _ => None,
    }
}

fn describe_runner(runner: &RunnerReport, line: &mut impl FnMut(&str, String)) {
    let Some(says) = &runner.says else {
        return line("running", format!("{}, which has not said anything yet", runner.name));
    };
    let since = sys::local_time(runner.started.unwrap_or_default() as i64);
    let uptime = span(runner.uptime_seconds.unwrap_or_default());
    line("running", format!("{} since {since} ({uptime}), version {}", runner.name, says.runner_version));
    line("project", says.project.clone());
    let Some(server) = &says.server_url else { return line("loading", "the project is being loaded".into()) };
    if says.loop_seconds > says.may_turn_in.as_secs_f64() {
        let silence = span(says.loop_seconds);
        line("silent", format!("for {silence}: it hangs, or cannot write here; what follows is from then"));
    }
    let contact = says
        .last_contact_seconds
        .map_or_else(|| "no answer yet".to_owned(), |s| format!("answered {} ago", span(s)));
    line("service", format!("{server}, {contact}"));
    if let (Some(seconds), Some(cause)) = (says.outage_seconds, &says.outage_cause) {
        line("outage", format!("for {}: {cause}", span(seconds)));
    }
    line(
        "key",
        match says.key {
            Key::Unproven => "not proven yet".into(),
            Key::Accepted => "accepted".into(),
            Key::Refused => "refused by the service; check it in the dashboard".into(),
        },
    );
    if says.stopping {
        line("stopping", "nothing new is taken; it ends when what runs has ended".into());
    }
    if let Some(reason) = &says.suspension_reason {
        line("suspended", format!("{reason}; nothing new is taken"));
    }
    if let Some(error) = &says.cannot_take {
        line("disk", format!("nothing new can be taken: {error}"));
    }
    if let Some(error) = &says.reload_error {
        line(
            "reload",
            "failed, what was loaded before is in force ('reload' tries again and shows all):".into(),
        );
        error
            .lines()
            .take_while(|line| *line != PRINTED)
            .take(ERROR_LINES)
            .for_each(|more| line("", more.to_owned()));
    }
    if let Some(log) = &runner.log_file {
        line("log", log.clone());
    }
}

/// A time span in the two units that tell most: `2 h 3 min`, `12 s`.
fn span(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_span_is_told_in_two_units() {
        for (seconds, said) in
            [(0.9, "0 s"), (-5.0, "0 s"), (61.0, "1 min 1 s"), (7380.0, "2 h 3 min"), (183_600.0, "2 d 3 h")]
        {
            assert_eq!(span(seconds), said);
        }
    }
}
