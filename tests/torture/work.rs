//! What is run: one command in many forms, whose every byte is known beforehand.

use serde_json::{Value, json};

use super::random::Random;
use super::support::project::Project;

/// What a round's project needs: the command `work`, in both kinds of project from the same text.
pub(crate) fn install(project: &Project) {
    if project.virtualenv().is_some() {
        project.write("polls/management/commands/work.py", &format!("{TEXT}{OF_DJANGO}"));
        project.settings("DJANGOCOMMAND_ALLOWED_COMMANDS = ['work']");
    } else {
        project.write("commands.py", &format!("{TEXT}{OF_THE_FAKE}"));
    }
}

/// `work ID KIND COUNT` writes `RUN ID` into the file of all runs, and then COUNT numbered lines, each third on stderr.
/// What it has surely written into a pipe it records after each write: so what is recorded is never more than what was
/// written. Each process of it has a record of its own. The records are outside the state directory.
const TEXT: &str = r#"
import os, signal, time

PATTERN = "\u20ac\u00fc."

class Stream:
    def __init__(self, fd, path):
        self.fd, self.total = fd, 0
        self.record = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, text, is_recorded=True):
        left = memoryview(text.encode())
        while left:
            count = os.write(self.fd, left)
            left = left[count:]
            self.total += count
            if is_recorded:
                os.pwrite(self.record, b'%020d' % self.total, 0)

class Writer:
    """One process of the command, and what it writes. Shorter lines than a pipe takes as a whole."""

    def __init__(self, path, word, record):
        self.word = word
        self.streams = [Stream(1, '%s.stdout.%d' % (path, record)), Stream(2, '%s.stderr.%d' % (path, record))]

    def write(self, numbers, open_from=None, is_recorded=True):
        texts = ['', '']
        for number in numbers:
            ends = '' if open_from is not None and number >= open_from else '\n'
            texts[number % 3 == 2] += '%s %d %s%s' % (self.word, number, PATTERN * (number % 23), ends)
        for stream, text in zip(self.streams, texts):
            stream.write(text, is_recorded)

    def write_slowly(self, numbers, pause, is_recorded=True):
        for number in numbers:
            self.write([number], is_recorded=is_recorded)
            time.sleep(pause)

def touch(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

def leave_daemon(path):
    """In a session of its own, its parents gone and its streams closed."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 256)
            touch(path + '.left')
            time.sleep(3.5)
            touch(path + '.left-ended')
        os._exit(0)
    os.wait()

def leave_writer(path, word, first):
    """Holds the pipes and writes on. What it has written when this returns is in the records."""
    ready, tell = os.pipe()
    if os.fork() == 0:
        try:
            writer = Writer(path, word, 1)
            writer.write(range(first, first + 5))
            touch(path + '.left')
            os.write(tell, b'.')
            writer.write_slowly(range(first + 5, first + 45), 0.1, is_recorded=False)
            touch(path + '.left-ended')
        finally:
            os._exit(0)
    os.read(ready, 1)

def grow(path, name, process, count):
    """A tree of seven, three deep, in which each writes."""
    children = []
    for child in (2 * process + 1, 2 * process + 2) if process < 3 else ():
        pid = os.fork()
        if pid == 0:
            try:
                grow(path, name, child, count)
            finally:
                os._exit(0)
        children.append(pid)
    Writer(path, '%s.%d' % (name[:8], process), process).write_slowly(range(count), 0.01)
    for pid in children:
        os.waitpid(pid, 0)

def work(name, kind, count):
    path = os.path.join(os.environ['TORTURE_RECORDS'], name)
    if kind == 'stubborn':
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    runs = os.open(os.path.join(os.path.dirname(path), 'runs'), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(runs, ('RUN %s\n' % name).encode())
    count, word = int(count), name[:8] + '.0'
    if kind == 'tree':
        return grow(path, name, 0, count)
    if kind == 'daemon':
        leave_daemon(path)
    writer = Writer(path, word, 0)
    if kind == 'long':
        for first in range(0, count, 600):
            writer.write(range(first, min(first + 600, count)))
    else:
        for number in range(count):
            writer.write([number], count - 3 if kind == 'unfinished' else None)
            if kind in ('slow', 'stubborn'):
                time.sleep(0.03)
    if kind == 'lingers':
        leave_writer(path, word, count)
        os._exit(0)
    if kind in ('hangs', 'stubborn'):
        time.sleep(120)
    if kind.startswith('exit'):
        os._exit(int(kind[4:]))
    if kind.startswith('signal'):
        os.kill(os.getpid(), int(kind[6:]))
"#;
const OF_THE_FAKE: &str = r#"
def names():
    return ['work']
"#;
const OF_DJANGO: &str = r#"
from django.core.management.base import BaseCommand

class Command(BaseCommand):
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument('words', nargs=3)

    def handle(self, *args, words, **options):
        work(*words)
"#;

/// How an execution is to go if nobody is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Short,
    Long,
    Slow,
    Silent,
    Unfinished,
    Exit(i64),
    Signal(i64),
    MetadataOnly,
    Rejected,
    TimesOut,
    Cancelled,
    /// The same for one that ignores SIGTERM.
    TimesOutStubborn,
    CancelledStubborn,
    /// Leaves a daemon that has closed its streams and lives on for a while.
    Daemon,
    /// Leaves a process that holds the pipes for longer than is waited for, and writes on.
    Lingers,
    /// Is seven processes that write at the same time.
    Tree,
}

impl Kind {
    /// For the report.
    pub(crate) fn name(self) -> String {
        let name = format!("{self:?}");
        name.split('(').next().unwrap_or_default().to_owned()
    }
}

/// How many processes a tree is, and how many lines the one that lingers writes.
pub(crate) const TREE: usize = 7;
const LEFT: usize = 45;

/// One execution that the service offers.
pub(crate) struct Work {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    count: usize,
}

impl Work {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let kind = match random.below(32) {
            0..5 => Kind::Short,
            5..8 => Kind::Long,
            8..12 => Kind::Slow,
            12 => Kind::Silent,
            13..15 => Kind::Unfinished,
            15 => Kind::Exit(1),
            16 => Kind::Exit(77),
            17 => Kind::Signal(11),
            18 => Kind::Signal(9),
            19 | 20 => Kind::MetadataOnly,
            21 => Kind::Rejected,
            22 => Kind::TimesOut,
            23 => Kind::Cancelled,
            24 => *random.pick(&[Kind::TimesOutStubborn, Kind::CancelledStubborn]),
            25 | 26 => Kind::Daemon,
            27 | 28 => Kind::Lingers,
            _ => Kind::Tree,
        };
        let count = match kind {
            Kind::Silent => 0,
            Kind::Long => 8_000 + random.below(32_000),
            Kind::Slow | Kind::Tree => 10 + random.below(40),
            Kind::TimesOutStubborn | Kind::CancelledStubborn => 300,
            _ => 3 + random.below(60),
        };
        Work { id: random.uuid(), kind, count: usize::try_from(count).unwrap() }
    }

    /// As the service's pending list has it.
    pub(crate) fn offer(&self) -> Value {
        let kind = match self.kind {
            Kind::Long => "long".to_owned(),
            Kind::Slow => "slow".to_owned(),
            Kind::Unfinished => "unfinished".to_owned(),
            Kind::Exit(code) => format!("exit{code}"),
            Kind::Signal(number) => format!("signal{number}"),
            Kind::TimesOut | Kind::Cancelled => "hangs".to_owned(),
            Kind::TimesOutStubborn | Kind::CancelledStubborn => "stubborn".to_owned(),
            Kind::Daemon => "daemon".to_owned(),
            Kind::Lingers => "lingers".to_owned(),
            Kind::Tree => "tree".to_owned(),
            Kind::Short | Kind::Silent | Kind::MetadataOnly | Kind::Rejected => "short".to_owned(),
        };
        json!({
            "id": self.id,
            "command": if self.kind == Kind::Rejected { "flush" } else { "work" },
            "args": format!("{} {kind} {}", self.id, self.count),
            "timeout": if self.times_out() { 1.5 } else { 300.0 },
            "use_metadata_only_mode": self.kind == Kind::MetadataOnly,
        })
    }

    /// How it ends if nobody is killed: the status and the exit code.
    pub(crate) fn end(&self) -> (&'static str, i64) {
        match self.kind {
            Kind::Exit(code) => ("failed", code),
            Kind::Signal(number) => ("failed", -number),
            Kind::Rejected => ("failed", -1),
            Kind::TimesOut | Kind::TimesOutStubborn => ("timed_out", -1),
            Kind::Cancelled => ("cancelled", -15),
            Kind::CancelledStubborn => ("cancelled", -9),
            _ => ("success", 0),
        }
    }

    fn times_out(&self) -> bool {
        matches!(self.kind, Kind::TimesOut | Kind::TimesOutStubborn)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.kind, Kind::Cancelled | Kind::CancelledStubborn)
    }

    /// Whether it may be ended from outside at any instant, before its first line too.
    pub(crate) fn is_ended_from_outside(&self) -> bool {
        self.times_out() || self.is_cancelled()
    }

    /// All that the command writes on one of its streams, by the processes that write it.
    pub(crate) fn printed(&self, is_stderr: bool) -> Vec<String> {
        let processes = if self.kind == Kind::Tree { TREE } else { 1 };
        // With what is left behind in it.
        let count = if self.kind == Kind::Lingers { self.count + LEFT } else { self.count };
        let line = |process: usize, number: usize| {
            let is_open = self.kind == Kind::Unfinished && number + 3 >= self.count;
            let end = if is_open { "" } else { "\n" };
            format!("{}.{process} {number} {}{end}", &self.id[..8], "\u{20ac}\u{fc}.".repeat(number % 23))
        };
        let lines = |process: usize| {
            let numbers = (0..count).filter(|number| (number % 3 == 2) == is_stderr);
            numbers.map(|number| line(process, number)).collect()
        };
        (0..processes).map(lines).collect()
    }
}
