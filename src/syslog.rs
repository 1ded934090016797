//! One message to the host's own syslog or journal, whichever listens at `/dev/log`.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Where every syslog daemon, and journald, listens.
const SOCKET: &str = "/dev/log";
/// The facility for what concerns security and is not for everybody's eyes (`LOG_AUTHPRIV` of syslog.h).
const AUTHPRIV: u8 = 10 << 3;
/// How long a daemon that does not read may hold up whoever has something to say.
const PATIENCE: Duration = Duration::from_millis(100);

/// How much a message matters, by syslog's numbers.
#[derive(Clone, Copy)]
pub enum Severity {
    Notice = 5,
    Info = 6,
}

/// Sends one line, under this process's PID. The receiver adds time and host.
///
/// # Errors
/// Nobody listens, or whoever does takes nothing now, or nothing as long.
pub fn send(severity: Severity, line: &str) -> io::Result<()> {
    send_to(SOCKET, severity, line)
}

fn send_to(socket: &str, severity: Severity, line: &str) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(PATIENCE))?;
    let priority = AUTHPRIV | severity as u8;
    let message = format!("<{priority}>djangocommand[{}]: {line}", std::process::id());
    sender.send_to(message.as_bytes(), socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_line_goes_with_facility_severity_and_pid_and_a_daemon_that_does_not_read_holds_up_nobody_for_long() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        let socket = path.to_str().unwrap();
        assert!(send_to(socket, Severity::Info, "x").is_err(), "nobody listens");
        let daemon = UnixDatagram::bind(&path).unwrap();
        send_to(socket, Severity::Notice, "{\"a\":1}").unwrap();
        let mut buffer = [0; 100];
        let length = daemon.recv(&mut buffer).unwrap();
        let expected = format!("<85>djangocommand[{}]: {{\"a\":1}}", std::process::id());
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), expected);
        let mut sent = 0;
        let full = loop {
            let begun = Instant::now();
            match send_to(socket, Severity::Info, "x") {
                Ok(()) => sent += 1,
                Err(_) => break begun.elapsed(),
            }
            assert!(sent < 100_000, "the queue never becomes full");
        };
        assert!(full < Duration::from_secs(5), "{full:?}");
    }
}
