//! What is run: one command in many forms, whose every byte is known beforehand.

use serde_json::{Value, json};

use super::random::Random;

/// `work ID KIND COUNT` writes `RUN ID` into the file of all runs, and then COUNT numbered lines, each third on stderr.
/// What it has surely written into a pipe it records after each write: so what is recorded is never more than what was
/// written. The records are outside the state directory.
pub(crate) const COMMANDS: &str = r#"
import os, sys, time

PATTERN = "\u20ac\u00fc."

def names():
    return ['work']

class Stream:
    def __init__(self, fd, path):
        self.fd, self.total = fd, 0
        self.record = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, text):
        left = memoryview(text.encode())
        while left:
            count = os.write(self.fd, left)
            left = left[count:]
            self.total += count
            os.pwrite(self.record, b'%020d' % self.total, 0)

def work(name, kind, count):
    path = os.path.join(os.environ['TORTURE_RECORDS'], name)
    runs = os.open(os.path.join(os.environ['TORTURE_RECORDS'], 'runs'), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(runs, ('RUN %s\n' % name).encode())
    streams = [Stream(1, path + '.stdout'), Stream(2, path + '.stderr')]
    count, at_once = int(count), 600 if kind == 'long' else 1
    for first in range(0, count, at_once):
        texts = ['', '']
        for number in range(first, min(first + at_once, count)):
            is_err = number % 3 == 2
            ends = '' if kind == 'unfinished' and number >= count - 3 else '\n'
            texts[is_err] += '%s %d %s%s' % (name[:8], number, PATTERN * (number % 23), ends)
        for stream, text in zip(streams, texts):
            stream.write(text)
        if kind == 'slow':
            time.sleep(0.03)
    if kind == 'hangs':
        time.sleep(120)
    if kind.startswith('exit'):
        os._exit(int(kind[4:]))
    if kind.startswith('signal'):
        os.kill(os.getpid(), int(kind[6:]))
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
}

/// One execution that the service offers.
pub(crate) struct Work {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    count: usize,
}

impl Work {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let kind = match random.below(24) {
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
            _ => Kind::Cancelled,
        };
        let count = match kind {
            Kind::Silent => 0,
            Kind::Long => 8_000 + random.below(32_000),
            Kind::Slow => 10 + random.below(40),
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
            Kind::Short | Kind::Silent | Kind::MetadataOnly | Kind::Rejected => "short".to_owned(),
        };
        json!({
            "id": self.id,
            "command": if self.kind == Kind::Rejected { "flush" } else { "work" },
            "args": format!("{} {kind} {}", self.id, self.count),
            "timeout": if self.kind == Kind::TimesOut { 1.5 } else { 300.0 },
            "use_metadata_only_mode": self.kind == Kind::MetadataOnly,
        })
    }

    /// How it ends if nobody is killed: the status and the exit code.
    pub(crate) fn end(&self) -> (&'static str, i64) {
        match self.kind {
            Kind::Exit(code) => ("failed", code),
            Kind::Signal(number) => ("failed", -number),
            Kind::Rejected => ("failed", -1),
            Kind::TimesOut => ("timed_out", -1),
            Kind::Cancelled => ("cancelled", -15),
            _ => ("success", 0),
        }
    }

    /// Whether it may be ended from outside at any instant, before its first line too.
    pub(crate) fn is_ended_from_outside(&self) -> bool {
        matches!(self.kind, Kind::TimesOut | Kind::Cancelled)
    }

    /// All that the command writes on one of its streams.
    pub(crate) fn printed(&self, is_stderr: bool) -> String {
        let numbers = (0..self.count).filter(|number| (number % 3 == 2) == is_stderr);
        let line = |number: usize| {
            let is_open = self.kind == Kind::Unfinished && number + 3 >= self.count;
            let end = if is_open { "" } else { "\n" };
            format!("{} {number} {}{end}", &self.id[..8], "\u{20ac}\u{fc}.".repeat(number % 23))
        };
        numbers.map(line).collect()
    }
}
