//! Packaging: what `make install` puts where, and that everything which is made of the table of options is up to date.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::runner::BINARY;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const INSTALLED: [&str; 6] = [
    "bin/djangocommand",
    "lib/systemd/system/djangocommand@.service",
    "share/bash-completion/completions/djangocommand",
    "share/fish/vendor_completions.d/djangocommand.fish",
    "share/man/man1/djangocommand.1",
    "share/zsh/site-functions/_djangocommand",
];

#[test]
fn install_puts_everything_in_place_any_number_of_times_and_uninstall_takes_just_that_away() {
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("opt/tools");
    let own = root.join("bin/somebody-elses");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, "").unwrap();
    make("install", temp.path());
    let first = files(&root);
    let names: Vec<&str> = first
        .keys()
        .map(|path| path.to_str().unwrap())
        .filter(|path| *path != "bin/somebody-elses")
        .collect();
    assert_eq!(names, INSTALLED);
    make("install", temp.path());
    assert!(files(&root) == first, "the second time it is another");
    assert!(first[Path::new("bin/djangocommand")] == fs::read(BINARY).unwrap());
    let text = |name: &str| String::from_utf8(first[Path::new(name)].clone()).unwrap();
    let unit = text("lib/systemd/system/djangocommand@.service");
    for line in [
        "\nExecStart=/opt/tools/bin/djangocommand start ",
        "\nExecReload=/opt/tools/bin/djangocommand reload\n",
    ] {
        assert!(unit.contains(line), "{line:?} is not in\n{unit}");
    }
    assert!(text("share/man/man1/djangocommand.1").starts_with(".TH DJANGOCOMMAND 1"));
    make("uninstall", temp.path());
    assert_eq!(files(&root).into_keys().collect::<Vec<_>>(), [PathBuf::from("bin/somebody-elses")]);
}

#[test]
fn bash_completes_subcommands_options_and_what_they_take() {
    let completions = generate("bash");
    let temp = TempDir::new().unwrap();
    fs::write(temp.path().join("completions"), completions).unwrap();
    fs::create_dir(temp.path().join("project")).unwrap();
    fs::create_dir(temp.path().join("my project")).unwrap();
    for (typed, expected) in [
        ("djangocommand st", "start,stop,status"),
        ("djangocommand --dr", "--drain"),
        ("djangocommand stop --t", "--timeout"),
        ("djangocommand start --log-format ''", "time,plain"),
        ("djangocommand -C proj", "project"),
        ("djangocommand -C my", "my project"),
        ("djangocommand -C project st", "start,stop,status"),
        ("djangocommand logs --state-dir proj", "project"),
        ("djangocommand generate m", "man,markdown"),
        ("djangocommand start --drain ''", ""),
    ] {
        let script = format!(
            "compopt() {{ :; }}; . ./completions; COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _djangocommand; IFS=,; echo \"${{COMPREPLY[*]}}\""
        );
        let output = Command::new("bash").args(["-c", &script]).current_dir(temp.path()).output().unwrap();
        assert_eq!(stdout(output).trim(), expected, "{typed}");
    }
}

#[test]
fn the_readme_has_the_reference_as_the_program_has_it() {
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let reference = generate("markdown");
    assert!(
        readme.contains(&reference),
        "put the output of 'djangocommand generate markdown' into README.md"
    );
}

#[test]
fn a_unit_that_is_printed_names_the_binary_that_prints_it() {
    let unit = generate("systemd");
    assert!(unit.contains(&format!("\nExecStart={BINARY} start ")), "{unit}");
}

/// Into a prefix of its own, below a directory that stands for the root.
fn make(target: &str, root: &Path) {
    let output = Command::new("make")
        .args(["--silent", "-C", ROOT, target, "PREFIX=/opt/tools"])
        .arg(format!("DESTDIR={}", root.display()))
        .arg(format!("BINARY={BINARY}"))
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn generate(document: &str) -> String {
    stdout(Command::new(BINARY).args(["generate", document]).output().unwrap())
}

fn stdout(output: Output) -> String {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every file below a directory, with what is in it.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}
