//! A place for mounts that nobody else sees: a mount namespace, where the kernel lets a test have one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::OnceLock;

/// The words before a program that is to have its own mounts. `None` where that is forbidden, as in a container without
/// privileges; `make test` says so aloud.
pub(crate) fn launcher() -> Option<&'static [&'static str]> {
    const AS_ROOT: &[&str] = &["unshare", "--mount"];
    const AS_USER: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let words = if fs::metadata("/proc/self").unwrap().uid() == 0 { AS_ROOT } else { AS_USER };
    let try_it = || {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["mount", "-t", "tmpfs", "-o", "size=64k", "probe", "/mnt"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    let is_allowed = *ALLOWED.get_or_init(try_it);
    if !is_allowed {
        eprintln!("NOT TESTED: a full disk, because this machine lets nobody mount one");
    }
    is_allowed.then_some(words)
}
