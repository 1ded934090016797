//! A loss of power: what was written and not synced may be gone, and so may what was done in a directory.
//!
//! The preloaded library has written down, in its order, what was done in the state directory and what was synced. A
//! file may be as short as when it was last synced. The last of what was done in directories that were not synced since
//! may be undone, back to any point, in that order: no file system that keeps a journal takes back the earlier of two
//! and keeps the later. To sync a file that is new is enough for its name.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::random::Random;

/// Where the library writes that down, in the directory of the records.
pub(crate) const LOG: &str = "disk";

/// What was done in a directory and may be undone.
struct Deed<'a> {
    /// The inode of the directory, and of what was made in it.
    dir: &'a str,
    made: Option<&'a str>,
    words: Vec<&'a str>,
}

/// Takes back what a loss of power may. Nobody may be there. Returns what was taken back.
pub(crate) fn cut(state: &Path, records: &Path, random: &mut Random) -> String {
    let log = records.join(LOG);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let (deeds, synced) = read(&text);
    let mut told = String::new();
    let undone = if random.one_in(2) { deeds.len() } else { random.below(deeds.len() as u64 + 1) as usize };
    for deed in deeds.iter().rev().take(undone) {
        // Where it does not succeed, it was never done, or the directory itself is gone.
        if undo(&deed.words, records).is_ok() {
            writeln!(told, "undone: {}", deed.words.join(" ")).unwrap();
        }
    }
    let mut news = String::new();
    for path in files_below(state) {
        let Ok(meta) = fs::metadata(&path) else { continue };
        let least = synced.get(meta.ino().to_string().as_str()).copied().unwrap_or(0).min(meta.len());
        let length = match random.below(4) {
            0 => meta.len(),
            1 => least + random.below(meta.len() - least + 1),
            _ => least,
        };
        if length < meta.len() {
            writeln!(told, "cut from {} to {length}: {}", meta.len(), path.display()).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
            forget_captured(&path, records, length);
        }
        writeln!(news, "sync {} {length}", meta.ino()).unwrap();
    }
    // What is there now is on disk.
    fs::write(log, news).unwrap();
    told
}

/// What may be undone, and how long each file is at least.
fn read(text: &str) -> (Vec<Deed<'_>>, HashMap<&str, u64>) {
    let (mut deeds, mut synced) = (Vec::<Deed<'_>>::new(), HashMap::new());
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["sync", inode, length] => {
                synced.insert(inode, length.parse().unwrap());
                deeds.retain(|deed| deed.dir != inode && deed.made != Some(inode));
            }
            ["cut", inode, length] => {
                let least: &mut u64 = synced.entry(inode).or_default();
                *least = (*least).min(length.parse().unwrap());
            }
            ["create" | "mkdir", dir, inode, _] => {
                // The number may be that of one that is gone.
                synced.remove(inode);
                deeds.push(Deed { dir, made: Some(inode), words });
            }
            [_, dir, ..] => deeds.push(Deed { dir, made: None, words }),
            _ => panic!("the library wrote {line:?}"),
        }
    }
    (deeds, synced)
}

fn undo(words: &[&str], records: &Path) -> io::Result<()> {
    match words {
        ["create", _, _, path] => {
            forget_captured(Path::new(path), records, 0);
            fs::remove_file(path)
        }
        ["mkdir", _, _, path] => fs::remove_dir_all(path),
        ["rename", _, from, to, old, inode] => {
            if fs::metadata(to)?.ino().to_string() != *inode {
                return Err(io::Error::other("it was not done"));
            }
            fs::rename(to, from)?;
            if *old == "-" { Ok(()) } else { fs::hard_link(old, to) }
        }
        ["unlink", _, path, old] => fs::hard_link(old, path),
        ["rmdir", _, path] => DirBuilder::new().mode(0o700).create(path),
        _ => panic!("the library wrote {words:?}"),
    }
}

/// What the disk has lost of `output` nobody need deliver.
fn forget_captured(path: &Path, records: &Path, length: u64) {
    let Some(id) = path.parent().and_then(Path::file_name).filter(|_| path.ends_with("output")) else {
        return;
    };
    let captured = records.join(id).with_extension("captured");
    let Ok(bytes) = fs::read(&captured) else { return };
    let bytes = &bytes[..bytes.len().min(length as usize)];
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    File::options().write(true).open(captured).unwrap().set_len(whole as u64).unwrap();
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
