//! Finds the Django project and its Python, without running either.

pub mod probe;
pub mod watch;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::config::Environment;
use crate::sys;

/// Directories that people keep a virtualenv in.
const VENV_NAMES: [&str; 4] = [".venv", "venv", "env", ".virtualenv"];

/// A project that can be asked and whose commands can be run. Paths are text, because they are kept in JSON.
#[derive(Clone, Debug)]
pub struct Project {
    /// The directory that has manage.py; commands are run there. Its name as the user has it: a symbolic link in it,
    /// such as the one that a deployment moves to the next release, is followed anew each time.
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
        let (root, has_manage_py) = find_root(start, settings_module, environment)?;
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

    /// What is odd about the user that this process acts as, and so every command: it is root, and the project is not
    /// root's.
    pub fn odd_user(&self) -> Option<String> {
        let owner = fs::metadata(&self.root).map_or(0, |meta| meta.uid());
        (sys::effective_uid() == 0 && owner != 0).then(|| {
            format!("this is root, and the project belongs to user {owner}: its commands can do anything on this host")
        })
    }

    /// What comes before the command's name: `-u` because the dashboard shows output as it comes.
    pub fn arguments(&self) -> &'static [&'static str] {
        if self.has_manage_py { &["-u", "manage.py"] } else { &["-u", "-m", "django"] }
    }
}

/// The directory of the project at or above `start`, and whether it has a manage.py. No Python need be there.
///
/// # Errors
/// There is no such directory or no project: what was looked for, and the options that name it.
pub fn find_root(
    start: &Path,
    settings_module: Option<&str>,
    environment: &Environment,
) -> Result<(PathBuf, bool), String> {
    let unusable = |e| format!("cannot use the directory '{}': {e}", start.display());
    let physical = fs::canonicalize(start).map_err(unusable)?;
    let mut named = from_here(start, environment);
    if leads_up(&named) {
        // What `..` means after a symbolic link only the kernel knows.
        named.clone_from(&physical);
    }
    let has_manage_py = |dir: &&Path| {
        let manage_py = dir.join("manage.py");
        manage_py.is_file() && (**dir == named || is_trusted(&manage_py, &named))
    };
    // Above a symbolic link there may be nothing, and the project above what it leads to.
    if let Some(root) = named.ancestors().chain(physical.ancestors()).find(has_manage_py) {
        return Ok((root.to_owned(), true));
    }
    if settings_module.or(environment.get("DJANGO_SETTINGS_MODULE")).is_some() {
        return Ok((named, false));
    }
    Err(format!(
        "no manage.py in '{}' or above it: name the project with -C DIR, or its settings with --settings",
        named.display()
    ))
}

/// The absolute path of what the user has named, with the symbolic links that the user sees in it.
pub fn from_here(path: &Path, environment: &Environment) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    absolute(path, environment.get("PWD").map(Path::new), &here)
}

/// By the rule of `pwd -L`: a relative path is one from `pwd`, the shell's name for the working directory, if that is
/// where this process is. A `.` and a second slash go by the components.
fn absolute(path: &Path, pwd: Option<&Path>, here: &Path) -> PathBuf {
    let pwd = pwd.filter(|pwd| pwd.is_absolute() && !leads_up(pwd) && is_same_directory(pwd, here));
    pwd.unwrap_or(here).join(path).components().collect()
}

fn leads_up(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

fn is_same_directory(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    identity(one).is_some_and(|known| Some(known) == identity(other))
}

/// `--python`: a path, or a name to be found on PATH.
fn named_python(path: &Path, environment: &Environment) -> Result<PathBuf, String> {
    let found = if path.components().count() == 1 && !path.is_absolute() {
        on_path(path, environment)
    } else {
        Some(from_here(path, environment)).filter(|path| path.is_file())
    };
    found.ok_or_else(|| format!("the Python '{}' named by --python does not exist", path.display()))
}

/// The path is kept as found: resolving a virtualenv's symbolic link would leave the virtualenv.
fn find_python(root: &Path, environment: &Environment) -> Option<(PathBuf, String)> {
    let in_venv = |venv: PathBuf| Some(venv.join("bin/python")).filter(|python| python.is_file());
    if let Some(python) = environment.get("VIRTUAL_ENV").and_then(|venv| in_venv(venv.into())) {
        return Some((python, "$VIRTUAL_ENV".to_owned()));
    }
    // A virtualenv beside what a symbolic link leads to is as near as one beside the link.
    let physical = fs::canonicalize(root).unwrap_or_default();
    for dir in near_directories(root).chain(near_directories(&physical)) {
        let venvs = VENV_NAMES.iter().map(|name| dir.join(name)).filter(|venv| {
            let mark = venv.join("pyvenv.cfg");
            mark.is_file() && (dir == root || dir == physical || is_trusted(&mark, root))
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
    use std::os::unix::fs::symlink;

    /// A directory `releases/1/site` and a link `current` to `releases/1`, below a real path.
    fn deployment() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(temp.path()).unwrap();
        fs::create_dir_all(top.join("releases/1/site")).unwrap();
        symlink("releases/1", top.join("current")).unwrap();
        (temp, top)
    }

    #[test]
    fn a_directory_keeps_the_symbolic_links_that_the_user_sees_in_its_name() {
        let (_temp, top) = deployment();
        let (current, release) = (top.join("current"), top.join("releases/1"));
        let slashes = PathBuf::from(format!("{}//./current/site/", top.display()));
        for (start, pwd, here, expected) in [
            (current.as_path(), None, &top, current.clone()),
            (&slashes, None, &top, current.join("site")),
            (Path::new("."), Some(current.as_path()), &release, current.clone()),
            (Path::new("site"), Some(&current), &release, current.join("site")),
            (Path::new("./site/"), Some(&current), &release, current.join("site")),
            (Path::new("../x"), Some(&current), &release, current.join("../x")),
            (Path::new("site"), None, &release, release.join("site")),
            // A $PWD of another process, of another kind, or of nothing at all.
            (Path::new("."), Some(&top), &release, release.clone()),
            (Path::new("."), Some(Path::new("current")), &release, release.clone()),
            (Path::new("."), Some(&current.join("site/..")), &release, release.clone()),
            (Path::new("."), Some(&top.join("gone")), &release, release.clone()),
        ] {
            assert_eq!(absolute(start, pwd, here), expected, "{start:?} {pwd:?} {here:?}");
        }
    }

    #[test]
    fn a_project_is_found_by_the_name_that_it_was_given_and_without_a_python() {
        let (_temp, top) = deployment();
        let environment = Environment::default();
        let current = top.join("current");
        let find = |start: &Path| find_root(start, None, &environment);
        let missing = find(&top.join("gone")).unwrap_err();
        assert!(missing.starts_with(&format!("cannot use the directory '{}/gone': No such", top.display())));
        assert!(find(&current).unwrap_err().starts_with(&format!("no manage.py in '{}'", current.display())));
        assert_eq!(find_root(&current, Some("s"), &environment), Ok((current.clone(), false)));
        fs::write(top.join("releases/1/manage.py"), "").unwrap();
        assert_eq!(find(&current), Ok((current.clone(), true)));
        assert_eq!(find(&current.join("site")), Ok((current.clone(), true)));
        assert_eq!(
            find(&current.join("../1")),
            Ok((top.join("releases/1"), true)),
            "not what is in `current`"
        );
        symlink("releases/1/site", top.join("aside")).unwrap();
        assert_eq!(
            find(&top.join("aside")),
            Ok((top.join("releases/1"), true)),
            "above what a link leads to"
        );
    }

    #[test]
    fn what_a_stranger_put_above_the_project_is_not_run() {
        let (user, deploy, stranger) = (1000, 2000, 3000);
        assert!(is_trusted_owner(user, user, Some(user)) && is_trusted_owner(0, user, Some(user)));
        assert!(is_trusted_owner(deploy, 0, Some(deploy)), "root runs the project of its user");
        assert!(!is_trusted_owner(stranger, user, Some(user)));
        assert!(!is_trusted_owner(stranger, 0, Some(deploy)) && !is_trusted_owner(stranger, user, None));
    }
}
