//! Projects for a runner to sit beside: copies in temporary directories that a test may change as it likes.
//!
//! The fake one is `fake/` beside this file: a `manage.py` over a package that answers like Django's as far as a
//! runner asks. The real one is what `django-admin startproject` writes, or `wagtail start` on a virtualenv that has
//! Wagtail, plus the app `polls/` beside this file.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

/// The name of the real project's package.
const SITE: &str = "mysite";
/// Where `make venvs` puts the virtualenvs.
const VENVS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venvs");
/// Where the sources of the projects are.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support");

/// A project of a test's own; gone with it.
pub(crate) struct Project {
    dir: TempDir,
    settings: PathBuf,
    python: PathBuf,
    virtualenv: Option<PathBuf>,
}

/// A project without Django; its settings allow all of its commands.
pub(crate) fn fake_project() -> Project {
    let dir = TempDir::new().unwrap();
    copy(&Path::new(SOURCES).join("fake"), dir.path());
    let settings = dir.path().join("settings.py");
    Project { dir, settings, python: system_python(), virtualenv: None }
}

/// The same in a directory whose name begins like this.
pub(crate) fn fake_project_called(name: &str) -> Project {
    let dir = tempfile::Builder::new().prefix(name).tempdir().unwrap();
    copy(&Path::new(SOURCES).join("fake"), dir.path());
    let settings = dir.path().join("settings.py");
    Project { dir, settings, python: system_python(), virtualenv: None }
}

/// The same with `text` after its settings.
pub(crate) fn fake_project_with_settings(text: &str) -> Project {
    let project = fake_project();
    project.settings(text);
    project
}

/// A real Django project on the virtualenv `django`.
pub(crate) fn django_project() -> Project {
    django_project_on("django")
}

/// A real Django project on a virtualenv that `make venvs` made.
pub(crate) fn django_project_on(venv: &str) -> Project {
    let virtualenv = Path::new(VENVS).join(venv);
    assert!(
        virtualenv.join("bin/django-admin").exists(),
        "there is no Django in {}: run this first:\n\n    make venvs\n",
        virtualenv.display()
    );
    let dir = TempDir::new().unwrap();
    for (path, bytes) in started_project(&virtualenv) {
        fs::create_dir_all(dir.path().join(&path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), bytes).unwrap();
    }
    copy(&Path::new(SOURCES).join("polls"), &dir.path().join("polls"));
    let site = dir.path().join(SITE);
    let settings =
        [site.join("settings.py"), site.join("settings/dev.py")].into_iter().find(|path| path.exists());
    let settings = settings.expect("a project has settings");
    let python = virtualenv.join("bin/python");
    let project = Project { dir, settings, python, virtualenv: Some(virtualenv) };
    project.settings("INSTALLED_APPS += ['polls']");
    project
}

impl Project {
    /// The directory that holds `manage.py`.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file of the project anew.
    pub(crate) fn write(&self, relative: &str, text: &str) {
        fs::write(self.dir().join(relative), text).unwrap();
    }

    /// Appends to the settings.
    pub(crate) fn settings(&self, text: &str) {
        let mut file = OpenOptions::new().append(true).open(&self.settings).unwrap();
        writeln!(file, "\n{text}").unwrap();
    }

    /// Appends to the settings, unless this is in them already.
    pub(crate) fn settings_once(&self, text: &str) {
        if !fs::read_to_string(&self.settings).unwrap().contains(text) {
            self.settings(text);
        }
    }

    /// The interpreter that runs this project.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    /// The virtualenv that a user of this project would have activated.
    pub(crate) fn virtualenv(&self) -> Option<&Path> {
        self.virtualenv.as_deref()
    }
}

/// The `python3` of the machine itself rather than a shim before it.
pub(crate) fn system_python() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
        let output = output.expect("the tests need a python3 in the PATH");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    };
    FOUND.get_or_init(find).clone()
}

type Files = Vec<(PathBuf, Vec<u8>)>;

/// What `startproject` or `wagtail start` writes under a virtualenv; asked once in a test run and kept in memory.
fn started_project(virtualenv: &Path) -> Files {
    static STARTED: Mutex<Option<HashMap<PathBuf, Files>>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = started.get_or_insert_default();
    let start = || {
        let dir = TempDir::new().unwrap();
        let wagtail = virtualenv.join("bin/wagtail");
        let (program, verb) = match wagtail.exists() {
            true => (wagtail, "start"),
            false => (virtualenv.join("bin/django-admin"), "startproject"),
        };
        let output = Command::new(program)
            .args([verb, SITE, "."])
            .current_dir(dir.path())
            .env_remove("DJANGO_SETTINGS_MODULE")
            .output()
            .unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        let files = files_below(dir.path()).into_iter();
        files.map(|path| (path.clone(), fs::read(dir.path().join(path)).unwrap())).collect()
    };
    known.entry(virtualenv.to_owned()).or_insert_with(start).clone()
}

fn copy(from: &Path, to: &Path) {
    for path in files_below(from) {
        fs::create_dir_all(to.join(&path).parent().unwrap()).unwrap();
        fs::copy(from.join(&path), to.join(&path)).unwrap();
    }
}

/// The files below a directory, by their relative paths.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(relative) = dirs.pop() {
        for entry in fs::read_dir(dir.join(&relative)).unwrap() {
            let entry = entry.unwrap();
            let path = relative.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(path),
                false => files.push(path),
            }
        }
    }
    files
}
