//! Role 2: looks after one command, from its start to its end, whatever becomes of the runner.
//!
//! It holds the command's pipes, its deadline and its fate; it knows no URL and no key. The runner asks it to end the
//! command by signals that nobody else sends: SIGUSR1 for a cancel with grace, SIGUSR2 for one without. SIGTERM, which a
//! supervisor sends to everything in sight, must not pass for the service's wish. While the shim lives it holds the
//! lock that it was started with as standard output, so that its death can never go unnoticed. On standard input it is
//! told what the output must not show.

mod capture;
#[cfg(any(test, fuzzing))]
pub use capture::text_of;
mod descendants;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::audit::{self, Asker, Event, Subject};
use crate::execution::segment::Stream;
use crate::execution::store::{ExecutionDir, Exit, FORMAT, Keeper, Process, Spec, Task};
use crate::execution::{Outcome, Status};
use crate::mask::Secrets;
use crate::notify;
use crate::signals::Signals;
use crate::sys::{self, Bond};
use crate::timer::unix_now;
use capture::Capture;

/// The signal that asks the shim to end its command, with time to clean up.
pub const CANCEL: i32 = sys::SIGUSR1;
/// The signal that asks the shim to kill its command at once.
pub const FORCE: i32 = sys::SIGUSR2;

/// What a shim calls itself, as its first argument.
const NAME: &str = "djangocommand";

/// How long a shim that was asked to cancel may take to end.
pub const CANCEL_PATIENCE: Duration = Duration::from_secs(GRACE.as_secs() + KILL_PATIENCE.as_secs());
/// From SIGTERM to SIGKILL (`protocol.md`, Meaning).
const GRACE: Duration = Duration::from_secs(5);
/// How long a background process that holds the pipes may delay completion.
const LINGER: Duration = Duration::from_secs(2);
/// How long killed processes may take to go: one that sleeps in the kernel cannot be waited for for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often a full disk is tried again when there is nothing else left to do.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// How much likelier than the runner a shim is to be killed when memory is short, and a command than its shim.
const OOM_STEP: i32 = 100;
/// The most that a shim is told of secrets, in bytes.
const SECRETS_MAX: u64 = 16 * 1024 * 1024;

/// Starts a shim for the execution in `dir`, handing over the lock and what its output must not show. The same binary,
/// even if its file was replaced. Nothing of the child is kept: it is found by its lock, by this runner as by the next one.
///
/// # Errors
/// No process can be started now.
pub fn launch(dir: &ExecutionDir, lock: File, secrets: &Secrets) -> io::Result<()> {
    let (reader, mut writer) = io::pipe()?;
    let secrets = serde_json::to_vec(secrets)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).arg(crate::cli::SHIM).arg(dir.path());
    command.stdin(reader).stdout(Stdio::from(lock)).stderr(Stdio::null());
    notify::VARIABLES.iter().for_each(|variable| _ = command.env_remove(variable));
    sys::isolate(&mut command, Bond::Independent);
    // The shim reads it first of all; but if it is stopped, or killed, that must not hold up the runner.
    thread::Builder::new().stack_size(64 * 1024).spawn(move || writer.write_all(&secrets))?;
    command.spawn().map(drop)
}

/// Asks the shim of the execution in `dir` to end its command: `CANCEL` or `FORCE`.
///
/// Returns whether it was asked; a shim that has not yet written its PID can be asked a moment later.
///
/// # Errors
/// The lock file cannot be read, or the signal not be sent.
pub fn ask(dir: &ExecutionDir, signal: i32) -> io::Result<bool> {
    let Keeper::Alive(Some(pid)) = dir.keeper()? else { return Ok(false) };
    // The PID was read from a file. That its lock is held still proves whose it is.
    sys::signal_process(pid, signal, || Ok(keeper_of(dir) == Some(pid)))
}

/// The living shims of the executions below `executions`, known by their command lines: also one that has done its work
/// and whose directory is gone, because a background process of its command still holds its pipes. Those that `/proc`
/// hides (`hidepid`, because they forbid to look into them) are known by their locks. Only for who holds the runner's lock.
pub fn running(executions: &Path) -> Vec<Running> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let Some(here) = identity(executions) else { return Vec::new() };
    let seen = pids.filter_map(|pid| Some(Running { pid, directory: directory_of(pid)? }));
    let mut all: Vec<Running> =
        seen.filter(|shim| shim.directory.parent().and_then(identity) == Some(here)).collect();
    for dir in ExecutionDir::list(executions).unwrap_or_default() {
        if let Some(pid) = keeper_of(&dir)
            && all.iter().all(|shim| shim.pid != pid)
        {
            all.push(Running { pid, directory: dir.path().to_owned() });
        }
    }
    all
}

/// The shim that holds the lock of the execution in `dir`.
fn keeper_of(dir: &ExecutionDir) -> Option<u32> {
    match dir.keeper() {
        Ok(Keeper::Alive(pid)) => pid,
        _ => None,
    }
}

/// Whether the process is the shim of the execution in `directory`, as far as anybody can see: whoever asks may be another
/// user, such as root, and may have another name for the directory. Only for those who show it.
pub fn is_seen_at(pid: u32, directory: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino(), meta.uid())).ok();
    let Some((dev, ino, owner)) = identity(directory) else { return false };
    if !Path::new(&format!("/proc/{pid}")).exists() {
        // It is gone, or `/proc` hides it, and then no more can be seen.
        return sys::exists(pid);
    }
    let own = directory_of_users(pid, owner).and_then(|own| identity(&own));
    own.is_some_and(|own| own == (dev, ino, owner))
}

/// A process that looks after an execution.
pub struct Running {
    pid: u32,
    directory: PathBuf,
}

impl Running {
    /// Records that the user is about to have its command ended, if that still runs.
    pub fn record_user(&self) {
        let dir = ExecutionDir::open(self.directory.clone());
        if let (Ok(spec), Ok(None)) = (dir.spec(), dir.exit())
            && let Task::Run(process) = &spec.task
        {
            record_signal(&dir, &spec, process, Asker::User);
        }
    }

    /// Sends it a signal, if it is still there.
    pub fn signal(&self, signal: i32) {
        let dir = ExecutionDir::open(self.directory.clone());
        let is_still_it =
            || directory_of(self.pid).as_ref() == Some(&self.directory) || keeper_of(&dir) == Some(self.pid);
        let _ = sys::signal_process(self.pid, signal, || Ok(is_still_it()));
    }
}

/// The directory that a shim of this user was started with; `None` for any other process.
fn directory_of(pid: u32) -> Option<PathBuf> {
    directory_of_users(pid, sys::effective_uid())
}

fn directory_of_users(pid: u32, user: u32) -> Option<PathBuf> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    // The directory itself is root's, since a shim forbids to look into it.
    let status = fs::read_to_string(proc.join("status")).ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?;
    if effective.parse() != Ok(user) {
        return None;
    }
    let line = fs::read(proc.join("cmdline")).ok()?;
    let mut words = line.strip_suffix(b"\0")?.split(|b| *b == 0);
    let is_shim = words.next() == Some(NAME.as_bytes()) && words.next() == Some(crate::cli::SHIM.as_bytes());
    let directory = words.next().filter(|_| is_shim)?;
    Some(PathBuf::from(OsStr::from_bytes(directory)))
}

/// The whole life of a shim. What goes wrong once it has the lock is said in the execution's own output.
pub fn run(directory: &Path) -> ExitCode {
    let dir = ExecutionDir::open(directory.to_owned());
    match hold_lock_and_look_after(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "djangocommand: shim for '{}': {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn hold_lock_and_look_after(dir: &ExecutionDir) -> io::Result<()> {
    // First of all: once the PID is in the lock, a signal may come, and uncaught it would end us.
    let signals = Signals::catch(&[sys::SIGCHLD, CANCEL, FORCE])?;
    sys::ignore_signals(&[sys::SIGTERM, sys::SIGINT]);
    let _ = sys::offer_to_oom_killer(std::process::id(), OOM_STEP);
    sys::forbid_inspection();
    // Before the lock: without them it has not begun.
    let secrets = read_secrets()?;
    let _lock = take_over_lock(dir)?;
    let begun = Instant::now();
    if let Err(error) = look_after(dir, &signals, &secrets) {
        let text = format!("[djangocommand: the command cannot be looked after: {error}]\n");
        let _ = dir.append_text(Stream::Stderr, unix_now(), &text);
        let exit = Exit::failed(&format!("it cannot be looked after: {error}"));
        write_exit(dir, &signals, begun, exit, || {});
    }
    Ok(())
}

/// What the output must not show. Without it nothing may run.
fn read_secrets() -> io::Result<Secrets> {
    let mut bytes = Vec::new();
    io::stdin().take(SECRETS_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Takes the lock from standard output and writes the PID into it: from here on the execution has begun.
fn take_over_lock(dir: &ExecutionDir) -> io::Result<File> {
    let mut lock = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (ours, theirs) = (lock.metadata()?, fs::metadata(dir.path().join("shim.lock"))?);
    if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
        return Err(io::Error::other("standard output is not its lock; only the runner starts shims"));
    }
    lock.try_lock()?;
    let mut content = String::new();
    lock.read_to_string(&mut content)?;
    if !content.is_empty() {
        return Err(io::Error::other("this execution has begun before"));
    }
    writeln!(lock, "{}", std::process::id())?;
    // After a loss of power an empty lock would mean that the command never ran.
    lock.sync_all()?;
    File::open(dir.path())?.sync_all()?;
    Ok(lock)
}

fn look_after(dir: &ExecutionDir, signals: &Signals, secrets: &Secrets) -> io::Result<()> {
    sys::set_process_name(c"djangocommand");
    sys::become_subreaper()?;
    let spec = dir.spec()?;
    let Task::Run(process) = &spec.task else {
        return Err(io::Error::other("there is nothing to run"));
    };
    let begun = Instant::now();
    let mut child = match spawn(process) {
        Ok(child) => child,
        Err(error) => {
            let text = format!("Cannot run '{}' in '{}': {error}.\n", process.argv[0], process.directory);
            let _ = dir.append_text(Stream::Stderr, unix_now(), &text);
            let exit = Exit::failed(&format!("it cannot be run: {error}"));
            write_exit(dir, signals, begun, exit, || {});
            return Ok(());
        }
    };
    let _ = sys::offer_to_oom_killer(child.id(), OOM_STEP);
    let mut capture = Capture::start(&mut child, dir, process.max_output_bytes, secrets.mask())?;
    let deadline = process.timeout.map(|seconds| begun + Duration::from_secs_f64(seconds));
    let record_timeout = || record_signal(dir, &spec, process, Asker::Timeout);
    let outcome = Watch {
        signals,
        pid: child.id(),
        deadline,
        exit: None,
        ending: None,
        record_timeout: &record_timeout,
    }
    .until_the_end();
    let missing = capture.end(Instant::now() + LINGER);
    let printed = (!process.metadata_only).then(|| capture.printed());
    let exit = Exit { version: FORMAT, outcome, duration: 0.0, missing, printed, reason: None };
    // What is missing is said there too, so that must not wait for this.
    write_exit(dir, signals, begun, exit, || _ = capture.say_last_words());
    // A background process may go on writing: without a reader it would be killed by SIGPIPE. What it orphans while it
    // lives becomes our child and must not stay a zombie.
    if capture.is_open() {
        sys::default_signals();
        // One that came before would be forgotten; from now on they end this process.
        if [CANCEL, FORCE].iter().any(|signal| signals.is_raised(*signal)) {
            return Ok(());
        }
        sys::leave_no_zombies();
        capture.wait();
    }
    Ok(())
}

fn spawn(process: &Process) -> io::Result<Child> {
    let mut command = Command::new(&process.argv[0]);
    command.args(&process.argv[1..]).current_dir(&process.directory).stdin(Stdio::null());
    if let Some(module) = &process.settings_module {
        command.env("DJANGO_SETTINGS_MODULE", module);
    }
    let output = || if process.metadata_only { Stdio::null() } else { Stdio::piped() };
    command.stdout(output()).stderr(output());
    sys::isolate(&mut command, Bond::DiesWithParent);
    command.spawn()
}

/// How it ended is not given up on a full disk; only a directory that is gone ends the wait.
fn write_exit(dir: &ExecutionDir, signals: &Signals, begun: Instant, exit: Exit, before: impl Fn()) {
    let exit = Exit { duration: begun.elapsed().as_secs_f64(), ..exit };
    let write = || {
        before();
        dir.write_exit(&exit)
    };
    while write().is_err() && dir.path().exists() {
        signals.wait(DISK_RETRY);
    }
}

/// Records that the command is about to be ended. It is ended in any case: without a record of that, its end is told all
/// the same.
fn record_signal(dir: &ExecutionDir, spec: &Spec, process: &Process, by: Asker) {
    let Some(state) = dir.path().parent().and_then(Path::parent) else { return };
    let about = Subject { id: &spec.id, command: &spec.command };
    let _ = audit::append_one(state, process.audit_syslog, about, &Event::signalled(by, false));
}

/// Somebody or something has decided that the command shall end.
struct Ending {
    status: Status,
    kill_at: Instant,
}

/// The wait for a command's end, with everything that may hasten it.
struct Watch<'a> {
    signals: &'a Signals,
    pid: u32,
    deadline: Option<Instant>,
    exit: Option<ExitStatus>,
    ending: Option<Ending>,
    record_timeout: &'a dyn Fn(),
}

impl Watch<'_> {
    fn until_the_end(mut self) -> Outcome {
        loop {
            self.reap();
            match (&self.exit, &self.ending) {
                (Some(exit), None) => return Outcome::exited(exit_code(*exit)),
                (Some(_), Some(_)) if descendants::list().is_empty() => return self.outcome(),
                _ => {}
            }
            let now = Instant::now();
            self.decide(now);
            if self.ending.as_ref().is_some_and(|ending| now >= ending.kill_at) {
                self.kill_all(now + KILL_PATIENCE);
                return self.outcome();
            }
            let next = self.ending.as_ref().map(|ending| ending.kill_at).or(self.deadline);
            self.signals
                .wait(next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now)));
        }
    }

    fn reap(&mut self) {
        while let Some(reaped) = sys::reap() {
            if reaped.pid == self.pid {
                self.exit = Some(reaped.status);
            }
        }
    }

    fn decide(&mut self, now: Instant) {
        let timed_out = self.deadline.is_some_and(|deadline| now >= deadline);
        if self.signals.take(FORCE) {
            let status = self.ending.as_ref().map_or(Status::Cancelled, |ending| ending.status);
            self.ending = Some(Ending { status, kill_at: now });
        } else if self.ending.is_none() && (self.signals.take(CANCEL) || timed_out) {
            let status = if timed_out { Status::TimedOut } else { Status::Cancelled };
            if timed_out {
                (self.record_timeout)();
            }
            self.ending = Some(Ending { status, kill_at: now + GRACE });
            descendants::signal(sys::SIGTERM);
        }
    }

    /// Kills until nothing is left, because what is killed may have forked meanwhile.
    fn kill_all(&mut self, patience: Instant) {
        while Instant::now() < patience {
            let killed = descendants::signal(sys::SIGKILL);
            self.reap();
            if killed == 0 && self.exit.is_some() {
                return;
            }
            self.signals.wait(Duration::from_millis(20));
        }
    }

    fn outcome(&self) -> Outcome {
        match &self.ending {
            Some(Ending { status: Status::TimedOut, .. }) => {
                Outcome { exit_code: -1, status: Status::TimedOut }
            }
            Some(Ending { status, .. }) => {
                Outcome { exit_code: self.exit.map_or(-sys::SIGKILL, exit_code), status: *status }
            }
            None => self.exit.map_or(Outcome::FAILED, |exit| Outcome::exited(exit_code(exit))),
        }
    }
}

/// As Python's `returncode` has it: `-N` if signal N ended the process.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_proc_does_not_show_is_known_by_its_lock() {
        let _turn = sys::no_forks_meanwhile();
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("0a1b2c3d-3d0e-4b1c-9a77-1f2e3d4c5b6a");
        fs::create_dir(&directory).unwrap();
        // This process is none by its command line, and so like one that cannot be seen.
        let mut lock = File::create_new(directory.join("shim.lock")).unwrap();
        lock.try_lock().unwrap();
        writeln!(lock, "{}", std::process::id()).unwrap();
        let found = running(temp.path());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].pid, &found[0].directory), (std::process::id(), &directory));
        drop(lock);
        assert!(running(temp.path()).is_empty());
    }
}
