//! Asks the project's own Python what the project is: settings and commands first, then the help texts.
//!
//! Two questions, because only the settings say which commands policy lets run, and policy is decided in one place.
//! Each answer can be waited for, or looked for now and then while other work goes on.
//! The script goes through a pipe: nothing shows in `ps`, and no file is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Project;
use crate::config::Config;
use crate::gather::gather;
use crate::mask::Secrets;
use crate::notify;
use crate::policy::{BoundArgs, CODE_OPTIONS, Parser};
use crate::sys::{self, Bond};

const SCRIPT: &str = include_str!("probe.py");
const MARK: &[u8] = b"djangocommand-probe:";
/// A cold start of a large project takes a second or two; a settings module that waits for a network takes longer.
pub const TIME_LIMIT: Duration = Duration::from_secs(120);
/// No project's help texts are as large, and no more is read.
const ANSWER_MAX: u64 = 64 * 1024 * 1024;
/// What is kept of what the project prints: its end, where the cause of a failure is.
const STDERR_MAX: usize = 256 * 1024;
/// Stands between the cause of a failure and all that the project has printed.
pub const PRINTED: &str = "what its Python printed:";
/// How long to wait for the rest of a failed probe's output, which a background process may keep open.
const STDERR_LINGER: Duration = Duration::from_millis(500);

/// The first answer.
#[derive(Debug, Deserialize)]
pub struct Facts {
    /// The interpreter as it names itself: a shim of a version manager is resolved. It runs the commands.
    pub python: String,
    pub python_version: String,
    pub django_version: String,
    /// The settings whose names begin with one of the runner's prefixes.
    pub settings: BTreeMap<String, Value>,
    /// Name and app of each, in the order in which Django lists them.
    pub commands: Vec<(String, String)>,
    /// The setting `DEBUG`.
    pub debug: bool,
}

impl Facts {
    /// The names of the commands, for policy.
    pub fn names(&self) -> BTreeSet<String> {
        gather(self.commands.iter().map(|(name, _)| name.clone()))
    }
}

/// The second answer: what the dashboard is told, as the script wrote it.
#[derive(Debug, Deserialize)]
pub struct Catalogue {
    pub commands: Box<RawValue>,
    pub hash: String,
    /// Commands that are listed without help because they cannot be loaded, each with the reason.
    pub broken: Vec<String>,
    /// What policy has to know of the commands' options, by their names.
    pub parsers: BTreeMap<String, Parser>,
    /// What is secret of settings and environment. Empty if nothing is masked.
    pub secrets: Secrets,
    /// The project's own files that all this was loaded from, and those that would change it by coming: absolute paths.
    pub files: Vec<String>,
}

/// The second question.
#[derive(Serialize)]
struct Question<'a> {
    commands: Vec<Wanted<'a>>,
    code_options: [&'a str; 2],
    /// `null`: nothing is masked.
    secret_names: Option<&'a BTreeSet<String>>,
    /// Secrets besides those that the project has.
    secrets: [&'a str; 1],
}

#[derive(Serialize)]
struct Wanted<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    bound_args: &'a [BoundArgs],
}

/// A project that is being asked. Dropped, it is ended with all that the project started in it.
pub struct Probe {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<Vec<u8>>,
    stderr: Printed,
    deadline: Instant,
    is_reaped: bool,
}

/// What a project has printed so far.
struct Printed {
    end: Arc<Mutex<Vec<u8>>>,
    /// Disconnected when there is no more to come.
    is_over: Receiver<()>,
}

impl Probe {
    /// Starts the project's Python with the first question.
    ///
    /// # Errors
    /// The interpreter cannot be run.
    pub fn begin(project: &Project) -> Result<Self, String> {
        // A bootstrap on the command line reads the script, so that the pipe stays open for the questions.
        let bootstrap = format!(
            "import os\ns=b''\nwhile len(s)<{0}:\n c=os.read(0,{0}-len(s))\n if not c:raise SystemExit(1)\n s+=c\n\
             exec(compile(s,'<djangocommand probe>','exec'))",
            SCRIPT.len()
        );
        let mut command = Command::new(&project.python);
        command.args(["-c", &bootstrap]).current_dir(&project.root);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Sets in help texts (the choices of an option) would be printed in another order each time.
        command.env("PYTHONHASHSEED", "0");
        notify::VARIABLES.iter().for_each(|variable| _ = command.env_remove(variable));
        if let Some(module) = &project.settings_module {
            command.env("DJANGO_SETTINGS_MODULE", module);
        }
        sys::isolate(&mut command, Bond::DiesWithParent);
        let mut child = command.spawn().map_err(|e| format!("cannot run '{}': {e}", project.python))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(format!("cannot run '{}': it has no pipes", project.python));
        };
        let answers = read_answers(stdout);
        let stderr = read_stderr(stderr);
        let deadline = Instant::now() + TIME_LIMIT;
        let mut probe = Self { child, stdin, answers, stderr, deadline, is_reaped: false };
        let manage_py =
            if project.has_manage_py { format!("{}/manage.py", project.root) } else { String::new() };
        let module = project.settings_module.as_deref().unwrap_or_default();
        let question = format!("{SCRIPT}{manage_py}\0{}\0{module}\n", project.root);
        probe.ask(question.as_bytes());
        Ok(probe)
    }

    /// The first answer; `None` if there is none within `wait`. No project has more time than `TIME_LIMIT`.
    ///
    /// # Errors
    /// The project's own words about what is wrong, its last line first.
    pub fn facts(&mut self, wait: Duration) -> Option<Result<Facts, String>> {
        self.answer(wait)
    }

    /// Asks the second question: help texts of the commands that policy lets run, the hash of them all, and what is secret.
    ///
    /// # Errors
    /// The question cannot be put into words.
    pub fn ask_for_catalogue(&mut self, facts: &Facts, config: &Config) -> Result<(), String> {
        let policy = &config.policy;
        let names = facts.commands.iter().map(|(name, _)| name);
        let admitted = names.filter(|name| policy.admits(name).is_ok());
        let commands: Vec<Wanted<'_>> = admitted
            .map(|name| Wanted { name, bound_args: policy.bound.get(name).map_or(&[], Vec::as_slice) })
            .collect();
        let secret_names = config.secret_names.as_ref();
        let secrets = [config.api_key.reveal()];
        let question = Question { commands, code_options: CODE_OPTIONS, secret_names, secrets };
        let mut question = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
        question.push(b'\n');
        self.ask(&question);
        Ok(())
    }

    /// The second answer; `None` if there is none within `wait`.
    ///
    /// # Errors
    /// As for `facts`.
    pub fn catalogue(&mut self, wait: Duration) -> Option<Result<Catalogue, String>> {
        self.answer(wait)
    }

    /// The child process; `None` once it is reaped, when its number may be another's.
    pub fn pid(&self) -> Option<u32> {
        (!self.is_reaped).then(|| self.child.id())
    }

    /// Ends the probe and all that the project started in it, and reaps it. Whoever reaps the children of this process
    /// calls this when its turn comes; what it has answered, or why it has not, can still be asked.
    pub fn ended(&mut self) {
        let _ = self.end();
    }

    /// Neither question is longer than a pipe holds, or else the script is about to read it.
    fn ask(&mut self, question: &[u8]) {
        // If it has ended already the write fails, and what it said tells more than that.
        let _ = self.stdin.write_all(question);
    }

    fn answer<T: for<'de> Deserialize<'de>>(&mut self, wait: Duration) -> Option<Result<T, String>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(match self.answers.recv_timeout(wait.min(left)) {
            Ok(answer) => serde_json::from_slice(&answer)
                .map_err(|e| format!("the project's Python answered nonsense: {e}")),
            Err(RecvTimeoutError::Timeout) if wait < left => return None,
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "the project did not load within {} s; what it printed:\n{}",
                TIME_LIMIT.as_secs(),
                self.printed()
            )),
            Err(RecvTimeoutError::Disconnected) => Err(self.last_words()),
        })
    }

    fn printed(&self) -> String {
        // Over or not: what there is by then has to do.
        let _ = self.stderr.is_over.recv_timeout(STDERR_LINGER);
        let end = self.stderr.end.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&end[end.len().saturating_sub(STDERR_MAX)..]).into_owned()
    }

    /// Why a project gave no answer. Its Python has ended, or is about to: the answers' pipe is closed.
    fn last_words(&mut self) -> String {
        let printed = self.printed();
        // What is ending already keeps its own status, whatever it is sent now.
        match self.end().ok().and_then(|status| status.signal()) {
            Some(signal) => last_line_first(&format!("{printed}\nits Python was killed by signal {signal}")),
            None => last_line_first(&printed),
        }
    }

    /// Ends the probe and all that the project started in it.
    fn end(&mut self) -> io::Result<ExitStatus> {
        // Until it is reaped, if only as a zombie, its number is no other's. Its status is remembered by the child.
        if !mem::replace(&mut self.is_reaped, true) {
            sys::kill_group(self.child.id(), sys::SIGKILL);
        }
        self.child.wait()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A pipe thread: the lines that bear the mark; others come from code that ran before the script.
fn read_answers(stdout: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout.take(ANSWER_MAX));
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            if let Some(start) = line.windows(MARK.len()).position(|bytes| bytes == MARK)
                && sender.send(line.split_off(start + MARK.len())).is_err()
            {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// A pipe thread: all is read, so that nobody blocks, and the end of it is kept.
fn read_stderr(mut stderr: impl Read + Send + 'static) -> Printed {
    let (sender, is_over) = mpsc::channel();
    let end = Arc::new(Mutex::new(Vec::new()));
    let of_thread = Arc::clone(&end);
    thread::spawn(move || {
        let mut block = [0; 4096];
        while let Ok(n @ 1..) = stderr.read(&mut block) {
            let mut end = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
            end.extend_from_slice(&block[..n]);
            // Now and then, so that a project that prints much does not make this move much at each block.
            if end.len() > 2 * STDERR_MAX {
                let superfluous = end.len() - STDERR_MAX;
                end.drain(..superfluous);
            }
        }
        drop(sender);
    });
    Printed { end, is_over }
}

/// A traceback's cause is its last line: it is shown first, then all of it.
fn last_line_first(printed: &str) -> String {
    let printed = printed.trim();
    match printed.lines().last() {
        None => "the project's Python ended without a word".to_owned(),
        Some(last) if printed.lines().count() == 1 => format!("the project does not load: {last}"),
        Some(last) => format!("the project does not load: {last}\n{PRINTED}\n{printed}"),
    }
}
