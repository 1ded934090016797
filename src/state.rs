//! The state directory: where it is, that it is ours alone, and that one runner uses it.
//!
//! It is found without running Python, from options, the environment and the project's path only. Never the shared
//! temporary directory: there anybody may put something in our place first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::mem;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::Environment;
use crate::sys;

/// The last part of a state directory's path where that is made of the project's; `djangocommand@.service` has it too.
const OF_PROJECT: &str = ".state";
/// Below the state directory: where each execution has its own.
const EXECUTIONS: &str = "executions";

/// The lock's file. A record lock, because the kernel itself can then be asked which process holds it, without taking
/// it: a PID in a file could be a dead runner's, and by now an innocent's.
const LOCK: &str = "runner.lock";

/// A state directory that has been made, checked and locked. The lock is held as long as this value lives and nobody in
/// this process closes another descriptor of its file.
pub struct StateDir {
    path: PathBuf,
    lock: File,
}

/// Why a runner cannot have the state directory.
#[derive(Debug)]
pub enum Error {
    /// Another runner has it.
    Taken(Occupant),
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
        let lock = take_lock(&path)?;
        label(&lock).map_err(|e| unusable("lock", &path, &e))?;
        Ok(Self { path, lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where each execution has its directory.
    pub fn executions(&self) -> PathBuf {
        self.path.join(EXECUTIONS)
    }

    /// Makes the directory anew and locks it, if it was removed meanwhile. Returns whether it was.
    ///
    /// # Errors
    /// Another runner has taken the place, or it cannot be made.
    pub fn keep(&mut self) -> Result<bool, Error> {
        // Only looked at: to close any descriptor of the file would end the lock.
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let look_at = |e: io::Error| unusable("look at", &self.path, &e);
        let ours = self.lock.metadata().map(identity).map_err(look_at)?;
        let there = match fs::metadata(self.path.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found.map(identity).map_err(look_at)?),
        };
        if there != Some(ours) {
            let new = take_lock(&self.path)?;
            if new.metadata().is_ok_and(|meta| identity(meta) == ours) {
                // It had only been moved aside for an instant, and it is the same file: see above.
                mem::forget(new);
                return Ok(false);
            }
            let old = mem::replace(&mut self.lock, new);
            if old.metadata().is_ok_and(|meta| meta.nlink() > 0) {
                // It still has a name, by which it may be put back: then it must not be without its lock.
                mem::forget(old);
            }
            label(&self.lock).map_err(|e| unusable("lock", &self.path, &e))?;
            return Ok(true);
        }
        let is_whole = self.executions().is_dir();
        if !is_whole {
            prepare(&self.path)?;
        }
        Ok(!is_whole)
    }
}

/// Makes the directory if it is missing, and checks that it is ours alone.
///
/// # Errors
/// It cannot be made or trusted.
pub fn prepare(path: &Path) -> Result<(), Error> {
    make_private(path).map_err(|e| unusable("make", path, &e))?;
    check_private(path).and_then(|()| check_way_to(path)).map_err(Error::Untrusted)?;
    let executions = path.join(EXECUTIONS);
    make_private(&executions).map_err(|e| unusable("use", path, &e))?;
    check_private(&executions).map_err(Error::Untrusted)
}

/// Whether `start` could use the directory, or make it. Nothing is made.
///
/// # Errors
/// Why not, and what to do about it.
pub fn look_at(path: &Path) -> Result<(), String> {
    let executions = path.join(EXECUTIONS);
    for directory in [path, &executions].into_iter().filter(|path| fs::symlink_metadata(path).is_ok()) {
        check_private(directory)?;
    }
    check_way_to(path)?;
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(path);
    let usable =
        if there.is_dir() { sys::may_write(there) } else { Err(io::ErrorKind::NotADirectory.into()) };
    usable.map_err(|e| {
        format!(
            "the state directory '{}' cannot be used: '{}' cannot be written to: {e}; name another one with --state-dir",
            path.display(),
            there.display()
        )
    })
}

/// Checks that nobody can put another directory in the place of this one: none above it may be everybody's to write, unless
/// it is sticky as `/tmp` is.
fn check_way_to(path: &Path) -> Result<(), String> {
    // What is missing will be made where the rest of the way leads to.
    let above = path.ancestors().skip(1).find(|above| above.exists()).unwrap_or(Path::new("/"));
    let above = above.canonicalize().map_err(|e| format!("cannot look at '{}': {e}", above.display()))?;
    let is_open = |above: &&Path| {
        fs::metadata(above).is_ok_and(|meta| meta.mode() & 0o002 != 0 && meta.mode() & 0o1000 == 0)
    };
    match above.ancestors().find(is_open) {
        None => Ok(()),
        Some(above) => Err(format!(
            "everybody can write to '{}', in which the state directory '{}' is, and put another one in its place: run \
             chmod o-w on it or name another directory",
            above.display(),
            path.display()
        )),
    }
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::Unusable(format!(
        "cannot {what} the state directory '{}': {error}; name another one with --state-dir",
        path.display()
    ))
}

/// Makes the directory if it is missing, checks it, and takes the lock of the file that is there now.
fn take_lock(path: &Path) -> Result<File, Error> {
    prepare(path)?;
    let unusable = |e: io::Error| unusable("lock", path, &e);
    loop {
        let file = open_lock(path).map_err(unusable)?;
        if sys::lock_record(&file).map_err(unusable)? {
            return Ok(file);
        }
        // It may have been let go of in between.
        if let Some(pid) = sys::record_lock_holder(&file).map_err(unusable)? {
            return Err(Error::Taken(Occupant::new(pid, path.to_owned(), file)));
        }
    }
}

/// Whether a runner could take the directory if it were free: what ends the one that has it looks first. Not for a
/// process that holds the lock, which it would lose by this.
///
/// # Errors
/// The directory cannot be written to, or its lock is none.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    open_lock(path).map(drop).map_err(|e| unusable("write to", path, &e))
}

/// Why nobody can write to the directory, whoever asks: its file system is read-only.
pub fn read_only(path: &Path) -> Option<io::Error> {
    // To open a file for writing changes nothing in it.
    let opened = OpenOptions::new().write(true).open(path.join(LOCK));
    opened.err().filter(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK))
}

/// The PID, for people and for tools that expect one. Nothing is signalled because of it: it only tells whether what
/// `status.json` says are the words of the runner that has the lock.
fn label(mut lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

/// The runner that has a state directory: the process that holds its lock, and nothing else.
#[derive(Debug)]
pub struct Occupant {
    pid: u32,
    /// What it calls itself: in another container its PID is another.
    label: Option<u32>,
    path: PathBuf,
    lock: File,
}

impl Occupant {
    /// Finds the runner that has the directory at `path`, without disturbing anybody.
    ///
    /// # Errors
    /// The lock cannot be looked at: whether there is a runner cannot be told.
    pub fn find(path: &Path) -> io::Result<Option<Self>> {
        let path_of_lock = path.join(LOCK);
        let opened = fs::metadata(&path_of_lock).and_then(|meta| match meta.is_file() {
            true => File::open(path_of_lock),
            false => Err(io::Error::other("its lock is no file")),
        });
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(lock) => {
                let pid = sys::record_lock_holder(&lock)?;
                Ok(pid.map(|pid| Self::new(pid, path.to_owned(), lock)))
            }
        }
    }

    fn new(pid: u32, path: PathBuf, mut lock: File) -> Self {
        /// No PID is longer, whatever else the file may hold.
        const LABEL_MAX: u64 = 20;
        let mut label = String::new();
        let label =
            (&mut lock).take(LABEL_MAX).read_to_string(&mut label).ok().and(label.trim().parse().ok());
        Self { pid, label, path, lock }
    }

    /// `None` if the process cannot be seen from here.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid).filter(|pid| *pid != 0)
    }

    /// The PID that it has by its own words, for finding what else it says.
    pub fn label(&self) -> Option<u32> {
        self.label
    }

    /// The state directory that it has.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `PID 4711`, for messages.
    pub fn name(&self) -> String {
        let unseen = || "a process that cannot be seen from here".to_owned();
        self.pid().map_or_else(unseen, |pid| format!("PID {pid}"))
    }

    /// Whether it has ended, or given the directory away.
    ///
    /// # Errors
    /// The lock cannot be looked at.
    pub fn is_gone(&self) -> io::Result<bool> {
        Ok(sys::record_lock_holder(&self.lock)? != Some(self.pid))
    }

    /// Sends it a signal. A process that does not hold the lock at that very moment never gets one.
    ///
    /// # Errors
    /// It cannot be seen from here, or belongs to somebody else.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let unseen = || io::Error::other("its PID is not visible from here (another container?)");
        let pid = self.pid().ok_or_else(unseen)?;
        sys::signal_process(pid, signal, || self.is_gone().map(|gone| !gone)).map(drop)
    }
}

/// The directory for the project at `root`, by the order that `--help` names.
///
/// # Errors
/// Neither an option nor the environment says where state may be kept.
pub fn choose(
    option: Option<&Path>,
    environment: &Environment,
    root: impl FnOnce() -> Result<PathBuf, String>,
) -> Result<PathBuf, String> {
    if let Some(path) = option {
        return absolute(path);
    }
    if let Some(path) =
        environment.get("DJANGOCOMMAND_STATE_DIR").or(environment.get("MANAGECOMMAND_STATE_DIR"))
    {
        return absolute(Path::new(path));
    }
    // systemd lists several directories with colons between; the first one is the unit's own.
    if let Some(path) = environment.get("STATE_DIRECTORY").and_then(|list| list.split(':').next()) {
        return absolute(Path::new(path));
    }
    let root = root()?;
    // Below it stands the project's path as it is: under systemd a name that is escaped is no name of a state directory.
    // Behind that is a name of its own, so that no project's state lies in that of one above it.
    let project = root.strip_prefix("/").unwrap_or(&root).join(OF_PROJECT);
    let of_system = Path::new("/var/lib/djangocommand").join(&project);
    // Where a service manager has made it for this user, that is where the user's runner is.
    let is_ours = || fs::symlink_metadata(&of_system).is_ok_and(|meta| meta.uid() == sys::effective_uid());
    if sys::effective_uid() == 0 || is_ours() {
        return Ok(of_system);
    }
    let base = environment.get("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    // std knows the home directory of the password file too: some supervisors set no HOME.
    let home = || environment.get("HOME").map(PathBuf::from).or_else(std::env::home_dir);
    let base =
        base.or_else(|| home().filter(|home| home.is_absolute()).map(|home| home.join(".local/state")));
    base.map(|base| base.join("djangocommand").join(project)).ok_or_else(|| {
        "neither HOME nor XDG_STATE_HOME is set: name a state directory with --state-dir".to_owned()
    })
}

/// A detached runner and a shim must not depend on the working directory.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("cannot use the state directory '{}': {e}", path.display()))
}

/// The directory itself is nobody else's business; those above it may be the way to other projects' state.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(above)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whoever can write here can make this runner start processes, so nobody else may.
///
/// # Errors
/// Somebody else may, or the directory is not this user's.
pub fn check_private(path: &Path) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_directory_is_made_private_and_made_anew_when_it_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let mut state = StateDir::open(path.clone()).unwrap();
        assert_eq!(fs::metadata(state.path()).unwrap().mode() & 0o777, 0o700);
        let above = fs::metadata(temp.path().join("a")).unwrap().mode();
        assert_eq!(above & 0o755, 0o755, "another user's state may be below it");
        assert!(!state.keep().unwrap());
        fs::remove_dir_all(&path).unwrap();
        assert!(state.keep().unwrap() && !state.keep().unwrap());
        fs::remove_dir(state.executions()).unwrap();
        assert!(state.keep().unwrap() && state.executions().is_dir());
    }

    #[test]
    fn a_stale_or_garbled_lock_file_does_not_keep_a_runner_out() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        make_private(&path).unwrap();
        for content in ["1\n", "garbage \0\u{1}", ""] {
            fs::write(path.join(LOCK), content).unwrap();
            assert!(Occupant::find(&path).unwrap().is_none(), "whatever the file says");
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
