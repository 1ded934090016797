//! Finds the Django project and its Python, without running either.

pub mod probe;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Environment;
use crate::sys;

/// Directories that people keep a virtualenv in.
const VENV_NAMES: [&str; 4] = [".venv", "venv", "env", ".virtualenv"];

/// A project that can be asked and whose commands can be run. Paths are text, because they are kept in JSON.
#[derive(Debug)]
pub struct Project {
    /// The directory that has manage.py; commands are run there.
    pub root: String,
    /// Without it commands run by `python -m django`.
    pub has_manage_py: bool,
    pub python: String,
    /// Why that interpreter.
    pub python_from: String,
    /// From `--settings`; set as `DJANGO_SETTINGS_MODULE`.
    pub settings_module: Option<String>,
}

impl Project {
    /// Finds the project at or above `start`.
    ///
    /// # Errors
    /// There is none, or no interpreter for it: what was looked for, and the option that names it.
    pub fn find(
        start: &Path,
        python: Option<&Path>,
        settings_module: Option<&str>,
        environment: &Environment,
    ) -> Result<Self, String> {
        let start = fs::canonicalize(start)
            .map_err(|e| format!("cannot use the directory '{}': {e}", start.display()))?;
        let with_manage_py = start
            .ancestors()
            .find(|dir| {
                let manage_py = dir.join("manage.py");
                manage_py.is_file() && (*dir == start || is_trusted(&manage_py, &start))
            })
            .map(Path::to_owned);
        let has_settings = settings_module.or(environment.get("DJANGO_SETTINGS_MODULE")).is_some();
        let has_manage_py = with_manage_py.is_some();
        let root = match with_manage_py {
            Some(root) => root,
            None if has_settings => start,
            None => {
                return Err(format!(
                    "no manage.py in '{}' or above it: name the project with -C DIR, or its settings with --settings",
                    start.display()
                ));
            }
        };
        let (python, python_from) = match python {
            Some(path) => (named_python(path, environment)?, "--python".to_owned()),
            None => find_python(&root, environment).ok_or(
                "no Python found: not in a virtualenv, nor on PATH; name the project's with --python",
            )?,
        };
        let python = text(&python)?;
        let settings_module = settings_module.map(str::to_owned);
        Ok(Self { root: text(&root)?, has_manage_py, python, python_from, settings_module })
    }

    /// What comes before the command's name: `-u` because the dashboard shows output as it comes.
    pub fn arguments(&self) -> &'static [&'static str] {
        if self.has_manage_py { &["-u", "manage.py"] } else { &["-u", "-m", "django"] }
    }
}

/// `--python`: a path, or a name to be found on PATH.
fn named_python(path: &Path, environment: &Environment) -> Result<PathBuf, String> {
    let found = if path.components().count() == 1 && !path.is_absolute() {
        on_path(path, environment)
    } else {
        std::path::absolute(path).ok().filter(|path| path.is_file())
    };
    found.ok_or_else(|| format!("the Python '{}' named by --python does not exist", path.display()))
}

/// The path is kept as found: resolving a virtualenv's symbolic link would leave the virtualenv.
fn find_python(root: &Path, environment: &Environment) -> Option<(PathBuf, String)> {
    let in_venv = |venv: PathBuf| Some(venv.join("bin/python")).filter(|python| python.is_file());
    if let Some(python) = environment.get("VIRTUAL_ENV").and_then(|venv| in_venv(venv.into())) {
        return Some((python, "$VIRTUAL_ENV".to_owned()));
    }
    for dir in near_directories(root) {
        let venvs = VENV_NAMES.iter().map(|name| dir.join(name)).filter(|venv| {
            let mark = venv.join("pyvenv.cfg");
            mark.is_file() && (dir == root || is_trusted(&mark, root))
        });
        if let Some((venv, python)) = venvs.filter_map(|venv| Some((venv.clone(), in_venv(venv)?))).next() {
            return Some((python, format!("the virtualenv '{}'", venv.display())));
        }
    }
    let conda =
        environment.get("CONDA_PREFIX").filter(|_| environment.get("CONDA_DEFAULT_ENV") != Some("base"));
    if let Some(python) = conda.and_then(|conda| in_venv(conda.into())) {
        return Some((python, "$CONDA_PREFIX".to_owned()));
    }
    if let Some(python) = shebang(&root.join("manage.py")) {
        return Some((python, "the first line of manage.py".to_owned()));
    }
    ["python3", "python"]
        .iter()
        .find_map(|name| Some((on_path(Path::new(name), environment)?, format!("{name} on PATH"))))
}

/// Whether what was found above the directory `named` by the user may be run: in a directory that all can write to,
/// such as the temporary one, it could have been put there by anybody.
fn is_trusted(found: &Path, named: &Path) -> bool {
    let owner = |path: &Path| fs::metadata(path).map(|meta| meta.uid()).ok();
    owner(found).is_some_and(|uid| is_trusted_owner(uid, sys::effective_uid(), owner(named)))
}

/// Root may do anything anyway; who owns the directory that the user named is trusted by being named.
fn is_trusted_owner(owner: u32, user: u32, named: Option<u32>) -> bool {
    owner == 0 || owner == user || Some(owner) == named
}

/// The project's directory and those above it, up to its repository's root; outside a repository only one above:
/// further up a directory may belong to anybody.
fn near_directories(root: &Path) -> impl Iterator<Item = &Path> {
    let repository = root.ancestors().position(|dir| dir.join(".git").exists());
    root.ancestors().take(repository.unwrap_or(1) + 1)
}

/// The interpreter that manage.py's first line names by its absolute path; `env python3` names none.
fn shebang(manage_py: &Path) -> Option<PathBuf> {
    let script = fs::read(manage_py).ok()?;
    let line = script.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let interpreter = std::str::from_utf8(line).ok()?.split_whitespace().next()?;
    let path = PathBuf::from(interpreter);
    (path.is_absolute() && !path.ends_with("env") && path.is_file()).then_some(path)
}

fn on_path(name: &Path, environment: &Environment) -> Option<PathBuf> {
    let dirs = environment.get("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    dirs.split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| Path::new(dir).join(name))
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0))
}

fn text(path: &Path) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        format!("the path '{}' is not UTF-8, which the runner cannot keep in its records", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_put_above_the_project_is_not_run() {
        let (user, deploy, stranger) = (1000, 2000, 3000);
        assert!(is_trusted_owner(user, user, Some(user)) && is_trusted_owner(0, user, Some(user)));
        assert!(is_trusted_owner(deploy, 0, Some(deploy)), "root runs the project of its user");
        assert!(!is_trusted_owner(stranger, user, Some(user)));
        assert!(!is_trusted_owner(stranger, 0, Some(deploy)) && !is_trusted_owner(stranger, user, None));
    }
}
