//! Runs the real binary, or the published Python runner in its place: builder, log, signals, and no process left over.
//!
//! What a run leaves behind belongs to its state directory and ends with that: see `state_dir`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::project::Project;
use super::server::{KEY, Server};
use super::state_dir::{KILL_TIME_MAX, MARK, StateDir};
use super::sys;

/// The binary under test: the one that cargo has built for this, unless another is named when this is compiled.
pub(crate) const BINARY: &str = match option_env!("UNDER_TEST") {
    Some(path) => path,
    None => env!("CARGO_BIN_EXE_djangocommand"),
};

/// What a busy machine may make of a few milliseconds.
const STATUS_TIME_MAX: Duration = Duration::from_secs(10);

/// Variables of the developer's shell that would change what a runner does.
const FOREIGN: &[&str] = &[
    "DJANGO_SETTINGS_MODULE",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "STATE_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "JOURNAL_STREAM",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "COLUMNS",
];
const FOREIGN_PREFIXES: &[&str] = &["DJANGOCOMMAND_", "MANAGECOMMAND_"];

/// A run to be: `djangocommand start` in a project, unless told otherwise.
#[must_use]
pub(crate) struct Runner<'a> {
    project: &'a Project,
    is_published: bool,
    subcommand: OsString,
    args: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    server_url: Option<String>,
    state: StateDir,
    names_state_dir: bool,
    launcher: Vec<OsString>,
}

impl<'a> Runner<'a> {
    /// The binary under test. In a project with a virtualenv it runs as if that were active.
    pub(crate) fn in_project(project: &'a Project) -> Self {
        let virtualenv = project.virtualenv().map(|path| path.as_os_str().to_owned());
        Runner {
            project,
            is_published: false,
            subcommand: OsString::from("start"),
            args: Vec::new(),
            environment: virtualenv
                .map(|path| (OsString::from("VIRTUAL_ENV"), Some(path)))
                .into_iter()
                .collect(),
            server_url: None,
            state: StateDir::new(),
            names_state_dir: true,
            launcher: Vec::new(),
        }
    }

    /// The published Python runner, which needs a Django project and reads nothing but its settings.
    pub(crate) fn published_in(project: &'a Project) -> Self {
        Runner { is_published: true, ..Runner::in_project(project) }
    }

    /// Where the service is, and its key.
    pub(crate) fn server(mut self, server: &Server) -> Self {
        self.server_url = Some(server.url());
        self
    }

    /// Another subcommand than `start`.
    pub(crate) fn subcommand(mut self, name: &str) -> Self {
        self.subcommand = OsString::from(name);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((OsString::from(name), Some(value.as_ref().to_owned())));
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.environment.push((OsString::from(name), None));
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args(self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        args.into_iter().fold(self, Runner::arg)
    }

    /// Shares a state directory with other runs; without this each run has its own.
    pub(crate) fn state_dir(mut self, state: &StateDir) -> Self {
        self.state = state.clone();
        self
    }

    /// Leaves `--state-dir` out: the binary has to find the place itself, which the test then names in another way.
    pub(crate) fn without_state_dir(mut self) -> Self {
        self.names_state_dir = false;
        self
    }

    /// Puts a program with its arguments before the binary, which is to start it: `nohup`, say.
    pub(crate) fn launched_by(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.launcher = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    pub(crate) fn start(self) -> Running {
        let mut child = self.command().spawn().expect("cannot start the runner");
        let watch = Arc::new(Watch::default());
        watch.listen(child.stdout.take().unwrap(), false);
        watch.listen(child.stderr.take().unwrap(), true);
        let pid = child.id();
        watch.reap(child);
        Running { pid, watch, state: self.state }
    }

    /// For a command that ends by itself, with all that it printed.
    pub(crate) fn run_to_end(self, within: Duration) -> Ended {
        let running = self.start();
        let seen = running.watch.wait(within, "the end of the command and of its output", |seen| {
            seen.status.filter(|_| seen.streams_closed == 2)
        });
        let text = |is_stderr| running.watch.lock().text(|line| line.is_stderr == is_stderr);
        Ended { status: seen, stdout: text(false), stderr: text(true) }
    }

    /// The command as it would be started.
    pub(crate) fn command(&self) -> Command {
        let mut command = if self.is_published { self.published_command() } else { self.own_command() };
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in foreign_variables() {
            command.env_remove(name);
        }
        command.env(MARK, self.state.path());
        if let Some(url) = self.server_url.as_ref().filter(|_| !self.is_published) {
            command.env("DJANGOCOMMAND_SERVER_URL", url).env("DJANGOCOMMAND_API_KEY", KEY);
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn own_command(&self) -> Command {
        let mut words = self.launcher.iter().map(OsString::as_os_str).chain([OsStr::new(BINARY)]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(&self.subcommand).arg("-C").arg(self.project.dir());
        if self.names_state_dir {
            command.arg("--state-dir").arg(self.state.path());
        }
        command
    }

    fn published_command(&self) -> Command {
        self.project.settings_once("INSTALLED_APPS += ['djangocommand']");
        if let Some(url) = &self.server_url {
            self.project
                .settings(&format!("DJANGOCOMMAND_SERVER_URL = {url:?}\nDJANGOCOMMAND_API_KEY = {KEY:?}"));
        }
        let mut command = Command::new(self.project.python());
        command.args(["manage.py", "djangocommand"]).arg(&self.subcommand);
        if self.subcommand == "start" {
            // It says as much as ours does.
            command.args(["-v", "2", "--no-reload"]);
        }
        // Its state directory is in the temporary directory, whichever that is.
        command.current_dir(self.project.dir()).env("TMPDIR", self.state.path());
        command
    }
}

#[expect(clippy::disallowed_methods, reason = "only the names are read, to take them away from the child")]
fn foreign_variables() -> Vec<OsString> {
    let is_foreign = |name: &OsString| {
        let name = name.to_string_lossy();
        FOREIGN.contains(&&*name)
            || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || name.to_ascii_lowercase().ends_with("_proxy")
    };
    env::vars_os().map(|(name, _)| name).filter(is_foreign).collect()
}

/// What `status --json` says of the runner on this state directory, with its exit code.
pub(crate) fn status(project: &Project, state: &StateDir) -> (Option<i32>, Value) {
    let ended = Runner::in_project(project)
        .subcommand("status")
        .state_dir(state)
        .arg("--json")
        .run_to_end(STATUS_TIME_MAX);
    let report = serde_json::from_str(&ended.stdout);
    (ended.code(), report.unwrap_or_else(|error| panic!("status --json: {error}: {ended:?}")))
}

/// Asks for the status until `look` finds something in it, and returns that.
pub(crate) fn wait_for_status<T>(
    project: &Project,
    state: &StateDir,
    what: &str,
    within: Duration,
    look: impl Fn(&Value) -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        let (_, report) = status(project, state);
        if let Some(found) = look(&report) {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {within:?} for {what}; the status is {report:#}");
    }
}

/// How a command ended that ends by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A runner that runs; killed, with all that it started, when the last owner of its state directory goes.
pub(crate) struct Running {
    pid: u32,
    watch: Arc<Watch>,
    state: StateDir,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn state_dir(&self) -> &StateDir {
        &self.state
    }

    pub(crate) fn signal(&self, signal: i32) {
        // Once it is reaped its PID may be another's.
        let seen = self.watch.lock();
        assert!(seen.status.is_none(), "signal {signal} for a runner that has ended");
        sys::kill(self.pid, signal);
    }

    /// SIGKILL, and it is gone when this returns. Shims and commands live on.
    pub(crate) fn kill(&self) {
        let seen = self.watch.lock();
        if seen.status.is_none() {
            sys::kill(self.pid, libc::SIGKILL);
        }
        drop(self.watch.changed.wait_timeout_while(seen, KILL_TIME_MAX, |seen| seen.status.is_none()));
    }

    /// SIGTERM, and the status of the end that it brings about.
    pub(crate) fn stop(&self, within: Duration) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait_exit(within)
    }

    pub(crate) fn wait_exit(&self, within: Duration) -> ExitStatus {
        self.watch.wait(within, "the end of the runner", |seen| seen.status)
    }

    /// The first line of the log, from its beginning, that holds `text`.
    pub(crate) fn wait_for_log(&self, text: &str, within: Duration) -> String {
        let found = self.watch.wait(within, &format!("a line with {text:?}"), |seen| {
            let line = seen.lines.iter().find(|line| line.text.contains(text));
            let is_over = seen.status.is_some() && seen.streams_closed == 2;
            line.map(|line| Some(line.text.trim_end().to_owned())).or(is_over.then_some(None))
        });
        found.unwrap_or_else(|| panic!("the runner ended without a line with {text:?}:\n{}", self.log()))
    }

    /// Both streams, line by line as they came.
    pub(crate) fn log(&self) -> String {
        self.watch.lock().text(|_| true)
    }

    /// How it ended, if it has and all that it said has come.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let seen = self.watch.lock();
        seen.status.filter(|_| seen.streams_closed == 2)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            // What a runner said is the first thing one wants to know of a test that failed.
            eprintln!("the runner said:\n{}", self.log());
        }
    }
}

struct Line {
    is_stderr: bool,
    text: String,
}

#[derive(Default)]
struct Seen {
    lines: Vec<Line>,
    streams_closed: usize,
    status: Option<ExitStatus>,
}

impl Seen {
    fn text(&self, is_wanted: impl Fn(&Line) -> bool) -> String {
        self.lines.iter().filter(|line| is_wanted(line)).map(|line| line.text.as_str()).collect()
    }
}

/// What threads learn of a child: the lines that it prints and its end.
#[derive(Default)]
struct Watch {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, act: impl FnOnce(&mut Seen)) {
        act(&mut self.lock());
        self.changed.notify_all();
    }

    /// Reads a stream to its end in a thread. Nobody joins it: a daemon may hold the stream longer than we live.
    fn listen(self: &Arc<Self>, stream: impl Read + Send + 'static, is_stderr: bool) {
        let watch = Arc::clone(self);
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while stream.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                watch.change(|seen| seen.lines.push(Line { is_stderr, text }));
                bytes.clear();
            }
            watch.change(|seen| seen.streams_closed += 1);
        });
    }

    /// Waits for the child in a thread, so that nobody else has to poll for its end.
    fn reap(self: &Arc<Self>, mut child: Child) {
        let watch = Arc::clone(self);
        thread::spawn(move || {
            let status = child.wait().expect("nobody else waits for this child");
            watch.change(|seen| seen.status = Some(status));
        });
    }

    fn wait<T>(&self, within: Duration, what: &str, look: impl Fn(&Seen) -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        let mut seen = self.lock();
        loop {
            if let Some(found) = look(&seen) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let log = seen.text(|_| true);
                drop(seen);
                panic!("waited {within:?} for {what}; the runner said\n{log}");
            }
            seen = self.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Ended {
    /// The PID of the detached runner that it says it has started, in its only line on standard output.
    pub(crate) fn detached_pid(&self) -> u32 {
        let line = self.stdout.strip_prefix("started: PID ").filter(|line| line.lines().count() == 1);
        let pid = line.and_then(|line| line.split_once(", log '")).map(|(pid, _)| pid.parse());
        pid.unwrap_or_else(|| panic!("no detached runner in {self:?}")).unwrap()
    }
}

/// Copies the binary under test. Not by this process: a child that another thread forks meanwhile would hold the copy
/// open for writing, and then it cannot be run.
pub(crate) fn copy_binary(to: &Path) {
    assert!(Command::new("cp").arg(BINARY).arg(to).status().unwrap().success());
}
