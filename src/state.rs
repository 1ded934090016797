//! The state directory: where it is, that it is ours alone, and that one runner uses it.
//!
//! It is found without running Python, from options, the environment and the project's path only. Never the shared
//! temporary directory: there anybody may put something in our place first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::Environment;
use crate::sys;

/// A state directory that has been made, checked and locked. The lock is held as long as this value lives.
pub struct StateDir {
    path: PathBuf,
    /// The lock is the truth; the PID inside it is a label.
    _lock: File,
}

/// Why a runner cannot have the state directory.
#[derive(Debug)]
pub enum Error {
    /// Another runner has it; its PID, if it has written it already.
    Taken(PathBuf, Option<u32>),
    /// It cannot be trusted as it is: somebody has to change it.
    Untrusted(String),
    /// The system would not let it be made or locked, now.
    Unusable(String),
}

impl StateDir {
    /// Makes the directory if it is missing, checks it, and takes the runner's lock.
    ///
    /// # Errors
    /// Another runner holds the lock, or the directory cannot be trusted or used.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let unusable = |what: &str, e: io::Error| {
            Error::Unusable(format!(
                "cannot {what} the state directory '{}': {e}; name another one with --state-dir",
                path.display()
            ))
        };
        make_private(&path).map_err(|e| unusable("make", e))?;
        check_private(&path).map_err(Error::Untrusted)?;
        let lock = take_lock(&path).map_err(|e| unusable("lock", e))?;
        let Ok(lock) = lock else {
            let pid = fs::read_to_string(path.join("runner.lock")).ok().and_then(|t| t.trim().parse().ok());
            return Err(Error::Taken(path, pid));
        };
        make_private(&path.join("executions")).map_err(|e| unusable("use", e))?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where each execution has its directory.
    pub fn executions(&self) -> PathBuf {
        self.path.join("executions")
    }
}

/// The directory for the project at `root`, by the order that `--help` names.
///
/// # Errors
/// Neither an option nor the environment says where state may be kept.
pub fn choose(option: Option<PathBuf>, environment: &Environment, root: &Path) -> Result<PathBuf, String> {
    if let Some(path) = option {
        return Ok(path);
    }
    if let Some(path) =
        environment.get("DJANGOCOMMAND_STATE_DIR").or(environment.get("MANAGECOMMAND_STATE_DIR"))
    {
        return Ok(path.into());
    }
    // systemd lists several directories with colons between; the first one is the unit's own.
    if let Some(path) = environment.get("STATE_DIRECTORY").and_then(|list| list.split(':').next()) {
        return Ok(path.into());
    }
    let project = escaped(root);
    if sys::effective_uid() == 0 {
        return Ok(Path::new("/var/lib/djangocommand").join(project));
    }
    let base = environment.get("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || environment.get("HOME").map(|home| Path::new(home).join(".local/state"));
    base.or_else(home).map(|base| base.join("djangocommand").join(project)).ok_or_else(|| {
        "neither HOME nor XDG_STATE_HOME is set: name a state directory with --state-dir".to_owned()
    })
}

/// A path as one file name, written as `systemd-escape --path` does: `/srv/my-app` is `srv-my\x2dapp`.
fn escaped(path: &Path) -> String {
    let text = path.to_string_lossy();
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-".to_owned();
    }
    let mut name = String::new();
    for (i, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if i == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name
}

fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whoever can write here can make this runner start processes, so nobody else may.
fn check_private(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let meta = fs::symlink_metadata(path)
        .map_err(|e| format!("cannot look at the state directory '{shown}': {e}"))?;
    if meta.is_symlink() {
        return Err(format!("the state directory '{shown}' is a symbolic link: name the directory itself"));
    }
    if meta.uid() != sys::effective_uid() {
        return Err(format!(
            "the state directory '{shown}' belongs to user {}, not to {}: run as that user or name another directory",
            meta.uid(),
            sys::effective_uid()
        ));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("others can write to the state directory '{shown}': run chmod 700 on it"));
    }
    Ok(())
}

fn take_lock(path: &Path) -> io::Result<Result<File, ()>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join("runner.lock"))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(Err(())),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Ok(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_projects_path_becomes_one_name_as_systemd_escape_writes_it() {
        for (path, name) in [
            ("/srv/app", "srv-app"),
            ("/srv/my-app", "srv-my\\x2dapp"),
            ("/srv/mein Büro/", "srv-mein\\x20B\\xc3\\xbcro"),
            ("/.hidden/a.b", "\\x2ehidden-a.b"),
            ("/", "-"),
        ] {
            assert_eq!(escaped(Path::new(path)), name);
        }
    }

    #[test]
    fn a_second_runner_is_told_who_has_the_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let first = StateDir::open(path.clone()).unwrap();
        assert_eq!(fs::metadata(first.path()).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(StateDir::open(path), Err(Error::Taken(_, Some(pid))) if pid == std::process::id()));
    }

    #[test]
    fn a_stale_or_garbled_lock_file_does_not_keep_a_runner_out() {
        let _turn = sys::no_forks_meanwhile();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        make_private(&path).unwrap();
        for content in ["1\n", "garbage \0\u{1}", ""] {
            fs::write(path.join("runner.lock"), content).unwrap();
            drop(StateDir::open(path.clone()).unwrap());
        }
    }

    #[test]
    fn a_directory_that_others_could_have_put_there_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let real = temp.path().join("real");
        make_private(&real).unwrap();
        let link = temp.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(
            matches!(StateDir::open(link), Err(Error::Untrusted(why)) if why.contains("is a symbolic link"))
        );
        fs::set_permissions(&real, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(StateDir::open(real), Err(Error::Untrusted(why)) if why.contains("chmod 700")));
    }
}
