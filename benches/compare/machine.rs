//! What the figures hold for: the machine, and the versions of everything.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde::Serialize;

use crate::support::project::Project;
use crate::support::runner::BINARY;

/// Prints the versions of Python and of the named distributions, one a line.
const VERSIONS: &str = "
import platform, sys
from importlib import metadata
print(platform.python_version())
for name in sys.argv[1:]:
    print(metadata.version(name))
";

/// How many installed distributions the published runner needs, by the names that are required without conditions.
const REQUIRED: &str = "
import re
from importlib import metadata
names, left = set(), ['djangocommand-runner']
while left:
    for line in metadata.requires(left.pop()) or []:
        name = re.match('[A-Za-z0-9._-]+', line).group().lower()
        if ';' not in line and name != 'django' and name not in names:
            names.add(name)
            left.append(name)
print(len(names))
";

#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) commit: String,
    /// The binary that was measured is one without any library.
    pub(crate) is_static: bool,
    pub(crate) rustc: String,
    pub(crate) python: String,
    pub(crate) django: String,
    pub(crate) wagtail: Option<String>,
    pub(crate) original: String,
}

impl Machine {
    pub(crate) fn here(project: &Project, wagtail: Option<&Project>) -> Self {
        let versions = python(project, VERSIONS, &["django", "djangocommand-runner"]);
        let mut versions = versions.lines().map(str::to_owned);
        let mut next = || versions.next().unwrap();
        let (python_version, django, original) = (next(), next(), next());
        let wagtail = wagtail.map(|project| python(project, VERSIONS, &["wagtail"]));
        let line = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).to_owned()
        };
        let memory = line("/proc/meminfo", "MemTotal");
        let root = env!("CARGO_MANIFEST_DIR");
        Machine {
            processor: line("/proc/cpuinfo", "model name"),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1024,
            kernel: line("/proc/sys/kernel/osrelease", ""),
            commit: said_by("git", &["-C", root, "describe", "--always", "--dirty"]),
            is_static: BINARY.contains("-musl/"),
            rustc: said_by("rustc", &["--version"]),
            python: python_version,
            django,
            wagtail: wagtail.and_then(|text| text.lines().nth(1).map(str::to_owned)),
            original,
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let kind =
            if self.is_static { "the static release binary" } else { "the release build for this host" };
        let wagtail = self.wagtail.as_ref().map(|version| format!(", Wagtail {version}")).unwrap_or_default();
        let gigabytes = self.memory_bytes as f64 / 1e9;
        vec![
            format!("{}, {} cores, {gigabytes:.0} GB, Linux {}", self.processor, self.cores, self.kernel),
            format!("ours: {kind} of {}, {}", self.commit, self.rustc),
            format!(
                "original: djangocommand-runner {}, Python {}, Django {}{wagtail}",
                self.original, self.python, self.django
            ),
        ]
    }
}

/// The size of our binary and of the package's modules, in bytes.
pub(crate) fn sizes(project: &Project) -> (f64, f64) {
    let directory = python(project, "import djangocommand; print(djangocommand.__path__[0])", &[]);
    (fs::metadata(BINARY).unwrap().len() as f64, modules_below(Path::new(&directory)) as f64)
}

fn modules_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { modules_below(&path) } else { size_of_module(&path) }).sum()
}

fn size_of_module(path: &Path) -> u64 {
    let is_module = path.extension().is_some_and(|extension| extension == "py");
    if is_module { fs::metadata(path).unwrap().len() } else { 0 }
}

/// How many packages our program is made of that we name, and how many the original needs beside Python and Django.
pub(crate) fn dependencies(project: &Project) -> (f64, f64) {
    let manifest = include_str!("../../Cargo.toml");
    let table = manifest.split_once("\n[dependencies]\n").unwrap().1;
    let ours = table.lines().take_while(|line| !line.starts_with('[')).filter(|line| line.contains(" = "));
    (ours.count() as f64, python(project, REQUIRED, &[]).parse().unwrap())
}

fn python(project: &Project, code: &str, words: &[&str]) -> String {
    let interpreter = project.python().to_str().unwrap();
    said_by(interpreter, &[&["-c", code], words].concat())
}

fn said_by(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
