//! The only file that talks to libc, and the only one with `unsafe`.
//!
//! Each function is a thin, safe wrapper around one kernel service that std does not offer: sessions, groups,
//! descendants, pidfds, record locks, an IPv4-only name lookup, clocks, the standard streams. Nothing here decides
//! anything.
#![expect(unsafe_code, reason = "the one place for system calls that std does not wrap")]

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::ptr;
use std::time::Duration;

pub use libc::{SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// What becomes of a child process when the thread that started it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// It lives on by itself.
    Independent,
    /// The kernel kills it (`PR_SET_PDEATHSIG`).
    DiesWithParent,
}

/// Makes `command` start in a session of its own, with default signal dispositions and no descriptors but 0 to 2.
pub fn isolate(command: &mut Command, bond: Bond) {
    let parent = std::process::id();
    let prepare = move || {
        default_signals();
        unblock_signals()?;
        close_on_exec_from(3);
        // SAFETY: setsid takes no pointer; a freshly forked child leads no group, so it can only succeed.
        check(unsafe { libc::setsid() })?;
        if bond == Bond::DiesWithParent {
            die_with_parent(parent)?;
        }
        Ok(())
    };
    // SAFETY: `prepare` runs between fork and exec and makes only async-signal-safe system calls.
    unsafe { command.pre_exec(prepare) };
}

/// Lets every signal through, whatever mask was inherited.
///
/// # Errors
/// None that the kernel documents for these arguments.
pub fn unblock_signals() -> io::Result<()> {
    // SAFETY: a signal set is plain data, valid when all zero, which is the empty set.
    let none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the set lives through the call, and the old one is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) }).map(drop)
}

/// Ignores `signals` from now on.
pub fn ignore_signals(signals: &[i32]) {
    for signal in signals {
        // SAFETY: SIG_IGN installs no code of ours.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Gives every signal its default disposition.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no code of ours. The numbers that cannot be changed fail, which is what we want.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn close_on_exec_from(first: libc::c_int) {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: the call takes three integers and touches no memory.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 {
        return;
    }
    // Kernels before 5.11 lack the flag. Descriptors are below the limit, unless it was lowered after they were opened.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    for fd in first..libc::c_int::try_from(limit.rlim_cur).unwrap_or(libc::c_int::MAX) {
        // SAFETY: setting a flag on a descriptor that may not be open; a failure changes nothing.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with an integer argument.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, SIGKILL) })?;
    // SAFETY: getppid cannot fail.
    let now = unsafe { libc::getppid() };
    // The parent may have died before the request was made: then nobody would ever kill us.
    if now.cast_unsigned() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Lets this process live on when the one that started it ends: takes `Bond::DiesWithParent` back.
pub fn outlive_parent() {
    // SAFETY: prctl with an integer argument.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
}

/// Whether `signal` is ignored, as `nohup` makes SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: a sigaction is plain data, valid when all zero.
    let mut now: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing is set, and what is asked for lives through the call.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &raw mut now) };
    result == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Makes orphaned descendants children of this process, so that they can be found and reaped.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: prctl with integer arguments.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }).map(drop)
}

/// What `ps` calls this process: started through `/proc/self/exe`, it would be called "exe". At most 15 bytes.
pub fn set_process_name(name: &CStr) {
    // SAFETY: the name is NUL-terminated and lives through the call, which copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Nobody of the same user may look into this process or find its memory in a core file: it knows the key and secrets.
/// What is started from it is as open as ever.
pub fn forbid_inspection() {
    // SAFETY: prctl with integer arguments.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Makes a process likelier than others to be killed when memory is short: `more` is added to its `oom_score_adj`.
///
/// # Errors
/// There is no such process, or no `/proc`.
pub fn offer_to_oom_killer(pid: u32, more: i32) -> io::Result<()> {
    const MAX: i32 = 1000;
    let path = format!("/proc/{pid}/oom_score_adj");
    let now: i32 = fs::read_to_string(&path)?.trim().parse().map_err(io::Error::other)?;
    fs::write(path, (now + more).min(MAX).to_string())
}

/// One child that has ended.
pub struct Reaped {
    pub pid: u32,
    pub status: ExitStatus,
}

/// Reaps one ended child, if there is one, without waiting.
pub fn reap() -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| Reaped { pid: pid.cast_unsigned(), status: ExitStatus::from_raw(status) })
}

/// The PID of one child that has ended, if there is one. It stays a zombie, so that the number is no other's yet.
pub fn ended_child() -> Option<u32> {
    // SAFETY: siginfo_t is plain data, valid when all zero.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` lives through the call.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) };
    // SAFETY: waitid fills in this field, or leaves the zero.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid > 0).then(|| pid.cast_unsigned())
}

/// Reaps the child `pid` if it has ended, without waiting.
pub fn reap_child(pid: u32) -> Option<ExitStatus> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let reaped = unsafe { libc::waitpid(pid.cast_signed(), &raw mut status, libc::WNOHANG) };
    (reaped > 0).then(|| ExitStatus::from_raw(status))
}

/// From now on the kernel reaps all children, those that have ended already too. Nobody may wait for one after this.
pub fn leave_no_zombies() {
    // SAFETY: SIG_IGN installs no code of ours.
    unsafe { libc::signal(SIGCHLD, libc::SIG_IGN) };
    while reap().is_some() {}
}

/// Whether there is a process of that number.
pub fn exists(pid: u32) -> bool {
    // SAFETY: signal 0 is none; kill takes integers.
    let is_there = unsafe { libc::kill(pid.cast_signed(), 0) } == 0;
    is_there || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Sends `signal` to the process group that an unreaped child leads.
pub fn kill_group(leader: u32, signal: i32) {
    // SAFETY: kill takes integers. A group that is gone already is no error for the caller.
    unsafe { libc::kill(-leader.cast_signed(), signal) };
}

/// Takes a record lock on the whole of `file`, unless another process has one. The kernel drops it when this process
/// ends, and as soon as it closes *any* descriptor of that file.
///
/// # Errors
/// The file system has no locks, or `file` is not open for writing.
pub fn lock_record(file: &File) -> io::Result<bool> {
    let wanted = whole_file_lock();
    // SAFETY: the descriptor is open while `file` is borrowed, and `wanted` lives through the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const wanted) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that holds a record lock on `file`, by the kernel's own word and without disturbing it. 0 stands for a
/// process that cannot be seen from here (another container's).
///
/// # Errors
/// The file system has no locks.
pub fn record_lock_holder(file: &File) -> io::Result<Option<u32>> {
    let mut asked = whole_file_lock();
    // SAFETY: the descriptor is open while `file` is borrowed, and `asked` lives through the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut asked) })?;
    let is_free = libc::c_int::from(asked.l_type) == libc::F_UNLCK;
    Ok((!is_free).then(|| u32::try_from(asked.l_pid).unwrap_or(0)))
}

fn whole_file_lock() -> libc::flock {
    // SAFETY: a flock is plain data, valid when all zero: from the file's beginning, to its end whatever that is.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    // The constants' type differs between C libraries.
    (lock.l_type, lock.l_whence) = (libc::F_WRLCK as _, libc::SEEK_SET as _);
    lock
}

/// Makes `file` at least `length` bytes long, with room on the disk for all of them. Where the file system cannot promise
/// that, nothing is done.
///
/// # Errors
/// There is no room.
pub fn allocate(file: &File, length: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(length).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while `file` is borrowed; the others are integers.
    match check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(()),
        result => result.map(drop),
    }
}

/// How much room there is on the file's disk for an ordinary user, in bytes; all there can be where that is not known.
pub fn free_bytes(file: &File) -> u64 {
    // SAFETY: a statvfs is plain data, valid when all zero.
    let mut disk: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: the descriptor is open while `file` is borrowed, and `disk` lives through the call.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut disk) } {
        0 => disk.f_bavail.saturating_mul(disk.f_frsize),
        _ => u64::MAX,
    }
}

/// Sends `signal` to the process `pid`, if `is_it` says that this is the right one: asked when the process is held by a
/// reference that cannot come to mean another. Returns whether it was sent. Where the kernel has no such references, or a
/// sandbox forbids them, what is left is the proof of an instant ago.
///
/// # Errors
/// Of `is_it`; or the process belongs to somebody else.
pub fn signal_process(pid: u32, signal: i32, is_it: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
    let process = open_pidfd(pid);
    let is_gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
    if process.as_ref().is_err_and(is_gone) || !is_it()? {
        return Ok(false);
    }
    let pid = pid.cast_signed();
    let sent = match process {
        // SAFETY: the descriptor is open, and a null siginfo is allowed.
        Ok(process) => unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process.as_raw_fd(),
                signal,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        },
        // SAFETY: kill takes integers.
        Err(_) => libc::c_long::from(unsafe { libc::kill(pid, signal) }),
    };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(true),
        error if is_gone(&error) => Ok(false),
        error => Err(error),
    }
}

/// Fails with `ESRCH` if there is no such process, with `ENOSYS` before Linux 5.3.
fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a device file could not be opened because nothing is behind it.
pub fn is_no_device(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENXIO)
}

/// The user that this process acts as.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid cannot fail.
    unsafe { libc::geteuid() }
}

/// Whether this process may write to what is at `path`; for a directory, make files in it.
///
/// # Errors
/// Why not.
pub fn may_write(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated and lives through the call.
    let result =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) };
    check(result).map(drop)
}

/// A random UUID, version 4, in lower case with dashes.
///
/// # Errors
/// The kernel has no randomness to give (`getrandom` fails).
pub fn random_uuid() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is 16 bytes long and lives through the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != 16 {
        return Err(io::Error::last_os_error());
    }
    let random = u128::from_be_bytes(bytes);
    let version_and_variant = 0x4000_8000_0000_0000_0000_u128;
    let mask = 0xf000_c000_0000_0000_0000_u128;
    let uuid = (random & !mask) | version_and_variant;
    let hex = format!("{uuid:032x}");
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// The IPv4 addresses of `host`.
///
/// A static musl binary asks for A and AAAA together and believes a broken AAAA answer; asking for A alone finds the
/// names that glibc would find.
///
/// # Errors
/// The name has no IPv4 address, or no name server answers.
pub fn lookup_ipv4(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let name = CString::new(host)?;
    // SAFETY: all-zero is the documented start value of addrinfo hints.
    let mut hints: libc::addrinfo = unsafe { mem::zeroed() };
    hints.ai_family = libc::AF_INET;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = ptr::null_mut();
    // SAFETY: the name is NUL-terminated, the hints are valid, and the list is freed below.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if code != 0 {
        return Err(io::Error::other("the name does not resolve to an IPv4 address"));
    }
    let mut found = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: a non-null entry of the list is a valid addrinfo until freeaddrinfo.
        let info = unsafe { &*entry };
        // SAFETY: with AF_INET hints each ai_addr is a sockaddr_in; read_unaligned asks for no alignment.
        let address = unsafe { ptr::read_unaligned(info.ai_addr.cast::<libc::sockaddr_in>()) };
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        found.push(SocketAddr::from((ip, port)));
        entry = info.ai_next;
    }
    // SAFETY: the list came from getaddrinfo and is not used again.
    unsafe { libc::freeaddrinfo(list) };
    Ok(found)
}

/// `2026-11-22 19:21:12` in the host's time zone, for a Unix time in seconds.
pub fn local_time(unix_seconds: i64) -> String {
    // SAFETY: tm is plain data, valid when all zero.
    let mut t: libc::tm = unsafe { mem::zeroed() };
    // SAFETY: both pointers live through the call. `as _` because musl's time_t is deprecated by name.
    unsafe { libc::localtime_r(&(unix_seconds as _), &raw mut t) };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        t.tm_year + 1900,
        t.tm_mon + 1,
        t.tm_mday,
        t.tm_hour,
        t.tm_min,
        t.tm_sec
    )
}

/// The time since an instant in the past that stays the same until the next boot, by the clock that systemd means when
/// it says `MONOTONIC_USEC`.
pub fn monotonic() -> Duration {
    // SAFETY: timespec is plain data, valid when all zero.
    let mut t: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: `t` lives through the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// How many columns the terminal has that standard output leads to; `None` if that is no terminal, or does not say.
pub fn terminal_width() -> Option<usize> {
    // SAFETY: winsize is plain data, valid when all zero.
    let mut size: libc::winsize = unsafe { mem::zeroed() };
    // SAFETY: `size` lives through the call, which fails for whatever is no terminal.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then(|| size.ws_col.into())
}

/// Makes standard output and standard error write to `file`, for this process and those that it starts.
///
/// # Errors
/// The limit of open files is less than 3.
pub fn redirect_output(file: &File) -> io::Result<()> {
    for stream in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: the call takes integers. Nobody owns the two standard streams, so none loses what it has.
        check(unsafe { libc::dup2(file.as_raw_fd(), stream) })?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A forked child holds its parent's file locks until it execs, so tests that fork and tests of locks take turns.
#[cfg(test)]
pub fn no_forks_meanwhile() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_version_4_lower_case_and_new_each_time() {
        let (a, b) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 36);
        assert_eq!(&a[14..15], "4");
        assert!("89ab".contains(&a[19..20]), "{a}");
        assert_eq!(a, a.to_lowercase());
    }

    #[test]
    fn the_monotonic_clock_goes_forward() {
        let before = monotonic();
        assert!(before > Duration::ZERO && monotonic() >= before);
    }

    #[test]
    fn localhost_has_an_ipv4_address() {
        let found = lookup_ipv4("localhost", 80).unwrap();
        assert!(found.contains(&SocketAddr::from(([127, 0, 0, 1], 80))), "{found:?}");
    }

    #[test]
    fn only_the_process_that_is_meant_gets_a_signal() {
        let turn = no_forks_meanwhile();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        drop(turn);
        let pid = child.id();
        assert!(!signal_process(pid, SIGKILL, || Ok(false)).unwrap());
        assert!(signal_process(pid, SIGKILL, || Err(io::Error::other("who knows"))).is_err());
        assert!(child.try_wait().unwrap().is_none(), "it lives");
        assert!(signal_process(pid, SIGKILL, || Ok(true)).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        assert!(!signal_process(pid, SIGKILL, || Ok(true)).unwrap(), "it is gone");
    }
}
