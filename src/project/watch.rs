//! Notices that the files which the project was loaded from have changed, and that they have come to rest.
//!
//! It looks when it is told to, at one `stat` per file, and decides what counts as a change; when to look and what to
//! do about it is decided elsewhere. No notification of the kernel's: those follow the file that a name meant when the
//! watch was set up, while a deployment moves a symbolic link, and network file systems send none.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::gather::gather;

/// The endings of modules that Python imports. Editors leave other files, and Python its `__pycache__`.
const MODULES: [&str; 3] = ["py", "pyc", "so"];

/// The files of one loaded state of the project.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<String, File>);

#[derive(Clone, Debug)]
struct File {
    /// What the project was loaded from.
    loaded: Option<Stamp>,
    /// It was written while it was being read, so `loaded` is not what was read.
    is_doubtful: bool,
    /// What the last look saw.
    seen: Option<Stamp>,
}

/// What tells one state of a file from another; missing and unreadable files have none.
#[derive(Clone, Debug, PartialEq)]
enum Stamp {
    File {
        modified: (i64, i64),
        size: u64,
        dev: u64,
        ino: u64,
    },
    /// Of a directory only the modules in it count: its own times change whenever Python writes its cache there.
    Directory(Vec<PathBuf>),
}

/// What a look has found, with the name of one changed file.
#[derive(Debug, PartialEq)]
pub enum Look {
    /// All is as it was loaded.
    Same,
    /// Something has changed, and was still changing at this look: a deployment writes its files one after the other.
    Unsettled(String),
    /// Something has changed, and this look has seen the same as the one before.
    Settled(String),
}

impl Watch {
    /// Watches the files that a load named which began at `began`. Of those that were watched before, the state that
    /// was loaded is what `earlier` saw at its last look before that.
    pub fn new(files: &[String], earlier: Option<&Self>, began: SystemTime) -> Self {
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let file = |path: &String| {
            let seen = stamp(path);
            let known = earlier.and_then(|earlier| earlier.0.get(path)).map(|file| file.seen.clone());
            let is_doubtful = known.is_none() && is_changed_since(path, began);
            let loaded = known.unwrap_or_else(|| seen.clone());
            (path.clone(), File { loaded, is_doubtful, seen })
        };
        Self(gather(files.iter().map(file)))
    }

    /// Looks at all files.
    pub fn look(&mut self) -> Look {
        let mut is_still = true;
        for (path, file) in &mut self.0 {
            let now = stamp(path);
            is_still &= now == file.seen;
            file.seen = now;
        }
        match self.changed().map(str::to_owned) {
            None => Look::Same,
            Some(path) if is_still => Look::Settled(path),
            Some(path) => Look::Unsettled(path),
        }
    }

    /// One file that at the last look was not what the project was loaded from.
    pub fn changed(&self) -> Option<&str> {
        let is_changed = |file: &File| file.is_doubtful || file.seen != file.loaded;
        self.0.iter().find(|(_, file)| is_changed(file)).map(|(path, _)| path.as_str())
    }

    /// Takes what the last look saw for what is loaded: it could not be loaded, and only another change is a reason to
    /// try again. So there must be no look between the beginning of a load and its failure.
    pub fn accept(&mut self) {
        for file in self.0.values_mut() {
            file.loaded.clone_from(&file.seen);
            file.is_doubtful = false;
        }
    }
}

fn stamp(path: &str) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    if meta.is_dir() {
        let mut names = modules(path);
        names.sort();
        return Some(Stamp::Directory(names));
    }
    let modified = (meta.mtime(), meta.mtime_nsec());
    Some(Stamp::File { modified, size: meta.size(), dev: meta.dev(), ino: meta.ino() })
}

fn modules(directory: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name().into());
    names.filter(|name: &PathBuf| MODULES.iter().any(|end| name.extension() == Some(end.as_ref()))).collect()
}

/// Whether a file, or a module in a directory, has been written or put there since. By the time of its change of
/// status: that of its modification is often set to what it was where the file was copied from.
fn is_changed_since(path: &str, began: Duration) -> bool {
    let changed = |meta: &Metadata| {
        let nanoseconds = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
        u64::try_from(meta.ctime()).is_ok_and(|seconds| Duration::new(seconds, nanoseconds) > began)
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let modules = modules(path);
            modules.iter().any(|name| fs::metadata(Path::new(path).join(name)).is_ok_and(|m| changed(&m)))
        }
        Ok(meta) => changed(&meta),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::slice::from_ref;

    use tempfile::TempDir;

    /// Long before and long after anything that a test writes.
    fn long_ago() -> SystemTime {
        SystemTime::now() - Duration::from_secs(3600)
    }

    fn far_off() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    fn path(dir: &TempDir, name: &str) -> String {
        dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(path: &str, text: &str, modified: SystemTime) {
        fs::write(path, text).unwrap();
        fs::File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    /// A watch over `names`, all of them loaded as they are now.
    fn watch(dir: &TempDir, names: &[&str]) -> Watch {
        let files: Vec<String> = names.iter().map(|name| path(dir, name)).collect();
        Watch::new(&files, None, far_off())
    }

    fn unsettled(path: &str) -> Look {
        Look::Unsettled(path.to_owned())
    }

    fn settled(path: &str) -> Look {
        Look::Settled(path.to_owned())
    }

    #[test]
    fn a_change_is_settled_when_two_looks_have_seen_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (path(&dir, "a"), path(&dir, "b"));
        write(&a, "1", long_ago());
        write(&b, "1", long_ago());
        let mut watch = watch(&dir, &["a", "b"]);
        assert_eq!((watch.look(), watch.look()), (Look::Same, Look::Same));
        write(&b, "2", SystemTime::now());
        assert_eq!(watch.look(), unsettled(&b));
        write(&a, "12", SystemTime::now());
        assert_eq!(watch.look(), unsettled(&a));
        assert_eq!(watch.look(), settled(&a));
        assert_eq!(watch.look(), settled(&a), "until somebody does something about it");
        watch.accept();
        assert_eq!(watch.changed(), None);
        assert_eq!(watch.look(), Look::Same);
    }

    #[test]
    fn what_goes_back_to_the_loaded_state_has_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, moved) = (path(&dir, "a"), path(&dir, "moved"));
        write(&a, "1", long_ago());
        let mut watch = watch(&dir, &["a"]);
        fs::rename(&a, &moved).unwrap();
        assert_eq!((watch.look(), watch.look()), (unsettled(&a), settled(&a)));
        fs::rename(&moved, &a).unwrap();
        assert_eq!(watch.look(), Look::Same);
    }

    #[test]
    fn a_replaced_file_of_the_same_size_and_time_and_one_that_comes_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, new, env) = (path(&dir, "a"), path(&dir, "new"), path(&dir, ".env"));
        let time = long_ago();
        write(&a, "1", time);
        let mut watch = watch(&dir, &[".env", "a"]);
        write(&new, "2", time);
        fs::rename(&new, &a).unwrap();
        assert_eq!(watch.look(), unsettled(&a));
        watch.accept();
        write(&env, "A=1", time);
        assert_eq!(watch.look(), unsettled(&env));
    }

    #[test]
    fn a_link_that_moves_to_the_next_release_is_a_change_though_no_file_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let time = long_ago();
        for release in ["1", "2"] {
            fs::create_dir_all(path(&dir, &format!("releases/{release}"))).unwrap();
            write(&path(&dir, &format!("releases/{release}/a")), "1", time);
        }
        symlink("releases/1", path(&dir, "current")).unwrap();
        let mut watch = watch(&dir, &["current/a"]);
        symlink("releases/2", path(&dir, "next")).unwrap();
        fs::rename(path(&dir, "next"), path(&dir, "current")).unwrap();
        let a = path(&dir, "current/a");
        assert_eq!((watch.look(), watch.look()), (unsettled(&a), settled(&a)));
    }

    #[test]
    fn of_a_directory_only_modules_that_come_and_go_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let commands = path(&dir, "commands");
        let mut watch = watch(&dir, &["commands"]);
        fs::create_dir(&commands).unwrap();
        assert_eq!(watch.look(), unsettled(&commands), "there was none");
        watch.accept();
        fs::create_dir(path(&dir, "commands/__pycache__")).unwrap();
        fs::write(path(&dir, "commands/.report.py.swp"), "").unwrap();
        assert_eq!(watch.look(), Look::Same);
        fs::write(path(&dir, "commands/report.py"), "").unwrap();
        assert_eq!(watch.look(), unsettled(&commands));
        let again = Watch::new(from_ref(&commands), None, long_ago());
        assert_eq!(again.changed(), Some(&*commands), "it came while the project was being loaded");
    }

    #[test]
    fn a_file_that_is_written_while_the_project_is_loaded_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (path(&dir, "a"), path(&dir, "b"));
        let mut earlier = watch(&dir, &["a"]);
        write(&a, "1", long_ago());
        earlier.look();
        let first = earlier.clone();
        // One that was watched already: the state before counts, whatever the clock says.
        write(&a, "2", SystemTime::now());
        let mut later = Watch::new(from_ref(&a), Some(&first), far_off());
        assert_eq!(later.changed(), Some(&*a));
        assert_eq!(later.look(), settled(&a));
        // One that was not: its own times say so, even if it was copied together with an old one.
        write(&b, "1", long_ago());
        assert_eq!(Watch::new(from_ref(&b), Some(&first), long_ago()).changed(), Some(&*b));
        assert_eq!(Watch::new(&[b], Some(&first), far_off()).changed(), None);
    }
}
