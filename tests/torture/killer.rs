//! Who dies where: the preloaded library, and the plan by which it kills.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::random::Random;

/// The library's source.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/preload.c");

const RUNNER: &str = "runner";
const SHIM: &str = "shim";
/// The child of a runner before it is a shim, and that of a shim before it is the command.
const SHIMS_BIRTH: &str = "shim's-birth";
const COMMANDS_BIRTH: &str = "command's-birth";
/// The child of `start -d` and the like before it is a runner.
const RUNNERS_BIRTH: &str = "runner's-birth";

/// A call, what it is about, and which of its kind it is at most.
type Call = (&'static str, &'static str, u64);

/// The kinds of points that are sought, by who makes the call.
const POINTS: &[(&str, &[Call])] = &[
    (
        RUNNER,
        &[
            ("create", "runner.lock", 1),
            ("ftruncate", "runner.lock", 1),
            ("write", "runner.lock", 1),
            ("setlk", "runner.lock", 3),
            ("create", "runner.log", 2),
            ("write", "runner.log", 10),
            ("write", "pipe", 10),
            ("prctl", "-", 3),
            ("mkdir", "executions", 1),
            ("create", "status.json.tmp", 6),
            ("write", "status.json.tmp", 6),
            ("rename", "status.json", 6),
            ("connect", "-", 2),
            ("fork", "-", 3),
            ("mkdir", "ID", 3),
            ("create", "spec.json.tmp", 3),
            ("write", "spec.json.tmp", 3),
            ("fdatasync", "spec.json.tmp", 3),
            ("rename", "spec.json", 3),
            ("fsync", "ID", 8),
            ("fsync", "executions", 3),
            ("create", "audit.jsonl", 6),
            ("write", "audit.jsonl", 6),
            ("fdatasync", "audit.jsonl", 6),
            ("create", "cursor.json.tmp", 6),
            ("write", "cursor.json.tmp", 6),
            ("fdatasync", "cursor.json.tmp", 6),
            ("rename", "cursor.json", 6),
            ("create", "shim.lock", 6),
            ("flock", "shim.lock", 12),
            ("fdatasync", "output", 6),
            ("create", "output", 1),
            ("write", "output", 1),
            ("ftruncate", "output", 1),
            ("create", "exit.json.tmp", 1),
            ("write", "exit.json.tmp", 1),
            ("rename", "exit.json", 1),
            ("rename", "ID.done", 3),
            ("unlinkat", "spec.json", 2),
            ("unlinkat", "cursor.json", 2),
            ("unlinkat", "output", 2),
            ("unlinkat", "exit.json", 2),
            ("unlinkat", "shim.lock", 2),
            ("unlinkat", "ID.done", 2),
            ("send", "heartbeat", 2),
            ("send", "heartbeat.body", 2),
            ("recv", "heartbeat.body", 2),
            ("send", "sync", 1),
            ("send", "sync.body", 1),
            ("recv", "sync.body", 1),
            ("send", "pending", 3),
            ("recv", "pending", 3),
            ("send", "start", 4),
            ("recv", "start", 4),
            ("send", "output", 8),
            ("send", "output.body", 8),
            ("recv", "output.body", 8),
            ("send", "complete", 4),
            ("send", "complete.body", 4),
            ("recv", "complete.body", 4),
            ("send", "cancel-status", 2),
            ("recv", "cancel-status", 2),
        ],
    ),
    (
        SHIM,
        &[
            ("prctl", "-", 3),
            ("flock", "shim.lock", 2),
            ("write", "shim.lock", 2),
            ("fsync", "shim.lock", 2),
            ("fsync", "ID", 4),
            ("fork", "-", 2),
            ("create", "output", 3),
            ("write", "output", 40),
            ("fdatasync", "output", 2),
            ("create", "exit.json.tmp", 2),
            ("write", "exit.json.tmp", 2),
            ("fdatasync", "exit.json.tmp", 2),
            ("rename", "exit.json", 2),
        ],
    ),
    (SHIMS_BIRTH, &[("exec", "-", 2)]),
    (RUNNERS_BIRTH, &[("exec", "-", 1)]),
    (COMMANDS_BIRTH, &[("setsid", "-", 2), ("prctl", "-", 2), ("exec", "-", 2)]),
];

/// What is told and forgotten after it must be on disk: here the power is cut more often.
const LAST_DEEDS: &[&str] =
    &["complete", "complete.body", "ID.done", "spec.json", "cursor.json", "exit.json"];

/// Who is killed beside the one that makes the call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Extent {
    Itself,
    /// Every process that belongs to the state directory.
    World,
    /// The same, and what is not synced may be gone.
    Power,
}

impl Extent {
    /// Behind the moment, in the report.
    pub(crate) fn beside(self) -> &'static str {
        match self {
            Extent::Itself => "",
            Extent::World => ", and all others",
            Extent::Power => ", by a loss of power",
        }
    }
}

/// The instant at which somebody is to die.
#[derive(Debug)]
pub(crate) struct Point {
    role: &'static str,
    call: &'static str,
    class: &'static str,
    number: u64,
    when: u32,
    pub(crate) extent: Extent,
}

impl Point {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let when = u32::try_from(random.below(3)).unwrap();
        let dice = random.below(10);
        let extent = |class: &str| match dice {
            0 => Extent::World,
            1 | 2 => Extent::Power,
            3..6 if LAST_DEEDS.contains(&class) => Extent::Power,
            _ => Extent::Itself,
        };
        // Any call at all now and then, also one that nobody has thought of.
        if random.one_in(5) {
            let (role, limit) = *random.pick(&[(RUNNER, 300), (SHIM, 60)]);
            return Point {
                role,
                call: "*",
                class: "*",
                number: 1 + random.below(limit),
                when,
                extent: extent("*"),
            };
        }
        let all = POINTS.iter().flat_map(|(role, points)| points.iter().map(move |point| (*role, *point)));
        // A shim's calls are fewer, and matter as much.
        let all = all.flat_map(|one| vec![one; if one.0 == RUNNER { 1 } else { 2 }]).collect::<Vec<_>>();
        let (role, (call, class, limit)) = *random.pick(&all);
        Point { role, call, class, number: random.small(limit), when, extent: extent(class) }
    }

    /// How long it is waited for.
    pub(crate) fn patience(&self, random: &mut Random) -> Duration {
        // A runner asks for the first time when a command has run for two seconds.
        let least = if self.class == "cancel-status" { 4000 } else { 600 };
        Duration::from_millis(least + random.below(1800))
    }
}

/// What is sought but was never met: for the report.
pub(crate) fn all_kinds() -> impl Iterator<Item = String> {
    let kinds = POINTS.iter().flat_map(|(role, points)| points.iter().map(move |point| (role, point)));
    kinds.map(|(role, (call, class, _))| format!("{role} {call} {class}"))
}

/// The compiled library; gone with this.
pub(crate) struct Library(TempDir);

impl Library {
    pub(crate) fn build() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", "preload.so", SOURCE]);
        let built = cc.current_dir(dir.path()).status();
        assert!(built.expect("this needs a C compiler").success());
        Library(dir)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("preload.so")
    }
}

/// The file that the processes of a round have mapped; `preload.c` has the same layout.
pub(crate) struct Plan {
    file: File,
    log: PathBuf,
    read: usize,
}

/// What the library says of a death.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    /// `runner rename cursor.json`.
    pub(crate) kind: String,
    /// `before`, `half` or `after`.
    pub(crate) when: String,
    pub(crate) is_runner: bool,
    /// The execution that a shim looks after, or was to.
    pub(crate) execution: Option<String>,
}

impl Plan {
    pub(crate) fn new(path: &Path, log: PathBuf) -> Self {
        fs::write(path, [0; 256]).unwrap();
        fs::write(&log, "").unwrap();
        let file = File::options().write(true).open(path).unwrap();
        Plan { file, log, read: 0 }
    }

    pub(crate) fn disarm(&self) {
        self.file.write_all_at(&0_u32.to_ne_bytes(), 0).unwrap();
    }

    pub(crate) fn arm(&self, point: &Point) {
        self.disarm();
        let mut bytes = Vec::from(point.when.to_ne_bytes());
        bytes.extend(point.number.to_ne_bytes());
        bytes.extend(0_u64.to_ne_bytes());
        for (text, size) in [(point.role, 16), (point.call, 16), (point.class, 32)] {
            assert!(text.len() < size);
            bytes.extend(text.as_bytes());
            bytes.resize(bytes.len() + size - text.len(), 0);
        }
        self.file.write_all_at(&bytes, 4).unwrap();
        self.file.write_all_at(&1_u32.to_ne_bytes(), 0).unwrap();
    }

    /// The deaths that have not been told of yet.
    pub(crate) fn deaths(&mut self) -> Vec<Death> {
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text[self.read..].split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let mut deaths = Vec::new();
        for line in lines {
            self.read += line.len();
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, role, call, class, when, execution] = words[..] else {
                panic!("the library said {line:?}")
            };
            deaths.push(Death {
                kind: format!("{role} {call} {class}"),
                when: when.to_owned(),
                is_runner: [RUNNER, RUNNERS_BIRTH].contains(&role),
                execution: (execution != "-").then(|| execution.to_owned()),
            });
        }
        deaths
    }
}
