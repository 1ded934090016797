//! What a supervisor is told, in systemd's protocol (`sd_notify(3)`): ready, reloading, stopping, still alive.
//!
//! It decides how things are said and how much time the watchdog gives, not when there is something to say. Supervision
//! must not stop a runner: without a supervisor, or when one cannot be reached, nothing is said and nothing fails.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::log;
use crate::sys;

/// What a supervisor tells this process only: what it starts must not speak in its name.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The supervisor, if there is one.
pub struct Notify {
    supervisor: Option<(UnixDatagram, SocketAddr)>,
    /// The supervisor ends a runner that was silent for so long.
    watchdog: Option<Duration>,
    /// What was last said to be going on.
    status: String,
}

impl Notify {
    /// Takes the values of the three `VARIABLES`.
    pub fn new([socket, watchdog_usec, watchdog_pid]: [Option<&str>; 3]) -> Self {
        let supervisor = socket.and_then(|name| Some((sender().ok()?, address(name).ok()?)));
        // Whoever the variables were meant for may have started this process.
        let is_ours = watchdog_pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let watchdog = watchdog_usec
            .filter(|_| is_ours && supervisor.is_some())
            .and_then(|usec| usec.parse().ok())
            .filter(|usec| *usec > 0)
            .map(Duration::from_micros);
        Self { supervisor, watchdog, status: String::new() }
    }

    /// The runner does its work, from now on or again.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The runner begins to reload; `ready` ends that.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", sys::monotonic().as_micros()));
    }

    /// The runner begins to stop.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// What is going on, for people; said when it changes.
    pub fn status(&mut self, text: &str) {
        if text != self.status && self.send(&format!("STATUS={}", log::printable(text))) {
            text.clone_into(&mut self.status);
        }
    }

    /// How often the watchdog is to be fed: `None` if there is no watchdog.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|time| time / 2)
    }

    /// The runner is alive.
    pub fn feed(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// Asks the watchdog for at least `longest`, the time in which the runner may have no chance to feed it: one turn of
    /// its loop holds one blocking request. Returns whether the watchdog's time has changed.
    pub fn allow(&mut self, longest: Duration) -> bool {
        let is_too_short = self.watchdog.is_some_and(|time| time < longest);
        if is_too_short && self.send(&format!("WATCHDOG_USEC={}", longest.as_micros())) {
            self.watchdog = Some(longest);
            return true;
        }
        false
    }

    /// Whether the supervisor has the message now.
    fn send(&self, message: &str) -> bool {
        let Some((socket, address)) = &self.supervisor else { return false };
        socket.send_to_addr(message.as_bytes(), address).is_ok()
    }
}

/// A supervisor that does not read must not hold the loop up, so a message that finds no room is lost.
fn sender() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None if name.starts_with('/') => SocketAddr::from_pathname(name),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor at a path, and a runner that it supervises.
    struct Supervised {
        supervisor: UnixDatagram,
        path: String,
        _directory: tempfile::TempDir,
    }

    impl Supervised {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("notify").to_str().unwrap().to_owned();
            let supervisor = UnixDatagram::bind(&path).unwrap();
            supervisor.set_nonblocking(true).unwrap();
            Self { supervisor, path, _directory: directory }
        }

        fn notify(&self, watchdog_usec: &str) -> Notify {
            Notify::new([Some(&self.path), Some(watchdog_usec), None])
        }

        /// All messages that have come since this was last asked.
        fn told(&self) -> Vec<String> {
            told(&self.supervisor)
        }
    }

    fn told(supervisor: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 1000];
        let mut messages = Vec::new();
        while let Ok(n) = supervisor.recv(&mut buffer) {
            messages.push(String::from_utf8(buffer[..n].to_vec()).unwrap());
        }
        messages
    }

    #[test]
    fn a_supervisor_is_told_each_state() {
        let supervised = Supervised::new();
        let notify = supervised.notify("10000000");
        let before = sys::monotonic().as_micros();
        notify.ready();
        notify.reloading();
        notify.feed();
        notify.stopping();
        let told = supervised.told();
        assert_eq!((&*told[0], &told[2..]), ("READY=1", &["WATCHDOG=1".into(), "STOPPING=1".into()][..]));
        let since_boot: u128 = told[1].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=sys::monotonic().as_micros()).contains(&since_boot));
    }

    #[test]
    fn a_supervisor_may_have_an_abstract_socket() {
        let name = format!("djangocommand-notify-{}", std::process::id());
        let supervisor = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        supervisor.set_nonblocking(true).unwrap();
        Notify::new([Some(&format!("@{name}")), None, None]).ready();
        assert_eq!(told(&supervisor), ["READY=1"]);
    }

    #[test]
    fn without_a_supervisor_nothing_is_said_and_nothing_fails() {
        let long = format!("/{}", "x".repeat(200));
        for socket in
            [None, Some(""), Some("vsock:2:1"), Some("relative"), Some("/gone/notify"), Some(&*long)]
        {
            let mut notify = Notify::new([socket, Some("10000000"), None]);
            notify.ready();
            notify.reloading();
            notify.feed();
            notify.status("idle");
            assert!(!notify.allow(Duration::from_secs(60)));
            notify.stopping();
        }
        assert_eq!(Notify::new([None, Some("10000000"), None]).watchdog_interval(), None);
    }

    #[test]
    fn a_status_is_sent_when_it_changes_and_on_one_line() {
        let supervised = Supervised::new();
        let mut notify = supervised.notify("0");
        for text in ["idle", "idle", "running 'a\nREADY=1'", "idle"] {
            notify.status(text);
        }
        assert_eq!(supervised.told(), ["STATUS=idle", "STATUS=running 'a\\nREADY=1'", "STATUS=idle"]);
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_if_it_is_ours() {
        let supervised = Supervised::new();
        let interval = |usec, pid| Notify::new([Some(&supervised.path), usec, pid]).watchdog_interval();
        let ours = std::process::id().to_string();
        let other = (std::process::id() + 1).to_string();
        assert_eq!(interval(Some("3000000"), None), Some(Duration::from_millis(1500)));
        assert_eq!(interval(Some("3000000"), Some(&ours)), Some(Duration::from_millis(1500)));
        for (usec, pid) in [
            (None, None),
            (Some("0"), None),
            (Some("-1"), None),
            (Some("soon"), None),
            (Some("3000000"), Some(&*other)),
            (Some("3000000"), Some("?")),
        ] {
            assert_eq!(interval(usec, pid), None, "{usec:?} {pid:?}");
        }
        supervised.notify("0").feed();
        assert!(supervised.told().is_empty());
    }

    #[test]
    fn a_watchdog_with_less_patience_than_a_request_is_asked_for_more_once() {
        let supervised = Supervised::new();
        let mut notify = supervised.notify("20000000");
        assert!(!notify.allow(Duration::from_secs(20)));
        assert!(notify.allow(Duration::from_secs(35)));
        assert!(!notify.allow(Duration::from_secs(35)));
        assert!(!notify.allow(Duration::from_secs(5)));
        assert_eq!(supervised.told(), ["WATCHDOG_USEC=35000000"]);
        assert_eq!(notify.watchdog_interval(), Some(Duration::from_millis(17_500)));
        assert!(!supervised.notify("0").allow(Duration::from_secs(35)));
    }

    #[test]
    fn a_supervisor_that_does_not_read_holds_nothing_up_and_is_told_later_what_it_missed() {
        let supervised = Supervised::new();
        let mut notify = supervised.notify("20000000");
        while notify.send("WATCHDOG=1") {}
        notify.status("busy");
        assert!(!notify.allow(Duration::from_secs(35)));
        assert!(supervised.told().iter().all(|message| message == "WATCHDOG=1"));
        notify.status("busy");
        assert!(notify.allow(Duration::from_secs(35)));
        assert_eq!(supervised.told(), ["STATUS=busy", "WATCHDOG_USEC=35000000"]);
    }
}
