//! The calls to the kernel that the tests need and the standard library lacks: signal, reset, record lock, clock.
#![expect(
    unsafe_code,
    reason = "kill, SO_LINGER, fcntl and clock_gettime have no safe form in the standard library"
)]

use std::fs::File;
use std::mem;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Sends `signal` to `pid`; false if there is no such process.
pub(crate) fn kill(pid: u32, signal: i32) -> bool {
    let pid = i32::try_from(pid).expect("a PID fits an i32");
    assert!(pid > 1, "PID {pid} is nobody's child here: 0 would be our own group, 1 the whole machine");
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Makes the last close of this socket send RST instead of FIN, as a crashed peer or a firewall does.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = libc::socklen_t::try_from(size_of::<libc::linger>()).expect("a small struct");
    // SAFETY: the descriptor is open while `stream` is borrowed, and the pointer and the size are those of `linger`.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size,
        )
    };
    assert_eq!(result, 0, "cannot set SO_LINGER");
}

/// Takes a record lock on the whole file, as a runner does on its own. It ends with any descriptor of that file.
pub(crate) fn lock_record(file: &File) {
    // SAFETY: a flock is plain data, valid when all zero: from the file's beginning, to its end whatever that is.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    (lock.l_type, lock.l_whence) = (libc::F_WRLCK as _, libc::SEEK_SET as _);
    // SAFETY: the descriptor is open while `file` is borrowed, and the pointer is that of `lock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) };
    assert_eq!(result, 0, "somebody else has the lock");
}

/// The clock that systemd means by `MONOTONIC_USEC`.
pub(crate) fn monotonic() -> Duration {
    // SAFETY: a timespec is plain data, valid when all zero.
    let mut now: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: `now` lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0, "there is no such clock");
    Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap())
}

/// The process that has a record lock on the file, if one has.
pub(crate) fn record_lock_holder(file: &File) -> Option<u32> {
    // SAFETY: a flock is plain data, valid when all zero: from the file's beginning, to its end whatever that is.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    (lock.l_type, lock.l_whence) = (libc::F_WRLCK as _, libc::SEEK_SET as _);
    // SAFETY: the descriptor is open while `file` is borrowed, and the pointer is that of `lock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    assert_eq!(result, 0, "the lock cannot be looked at");
    let is_held = libc::c_int::from(lock.l_type) != libc::F_UNLCK;
    is_held.then(|| u32::try_from(lock.l_pid).expect("a process of ours"))
}
