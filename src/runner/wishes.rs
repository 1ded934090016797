//! What others want of the runner, told by signals.
//!
//! | signal | wish |
//! | --- | --- |
//! | SIGQUIT | let what runs end, report it, exit |
//! | SIGTERM, SIGINT | the same; a second one later: cancel what runs |
//! | SIGUSR2 | cancel what runs, report it, exit |
//! | SIGUSR1 | exit now; what runs is the next runner's |
//! | SIGHUP | load the project again; if its terminal is gone: the same as SIGQUIT |

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::signals::{self, Signals};
use crate::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Stop,
    /// The same, but whoever says it again is in a hurry.
    Interrupt,
    Cancel,
    Leave,
    Reload,
}

impl Wish {
    /// The signal that tells it to a runner.
    pub fn signal(self) -> i32 {
        match self {
            Self::Stop => sys::SIGQUIT,
            Self::Interrupt => sys::SIGTERM,
            Self::Cancel => sys::SIGUSR2,
            Self::Leave => sys::SIGUSR1,
            Self::Reload => sys::SIGHUP,
        }
    }
}

const ENDING: [i32; 5] = [sys::SIGTERM, sys::SIGINT, sys::SIGQUIT, sys::SIGUSR2, sys::SIGUSR1];

/// The terminal of this process, if it has one.
const TERMINAL: &str = "/dev/tty";

/// The signals of a runner, caught.
pub struct Wishes {
    signals: Signals,
    /// While set, a signal that asks for the end brings it at once, even inside a request.
    nothing_to_lose: Arc<AtomicBool>,
    /// While set, SIGUSR1 does.
    nothing_to_begin: Arc<AtomicBool>,
    /// SIGHUP also comes when the terminal is closed; under `nohup` that is to be ignored.
    has_terminal: bool,
}

impl Wishes {
    /// Catches the signals. Until the runner says otherwise there is nothing to lose: a signal ends the process at once,
    /// with `exit_code`.
    ///
    /// # Errors
    /// No descriptors are left, or a signal that cannot be caught.
    pub fn catch(exit_code: i32) -> io::Result<Self> {
        let has_terminal = !sys::is_ignored(sys::SIGHUP) && File::open(TERMINAL).is_ok();
        let (nothing_to_lose, nothing_to_begin) =
            (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        // Before all other handlers: they run in order.
        let ending = [sys::SIGTERM, sys::SIGINT, sys::SIGQUIT, sys::SIGUSR2];
        signals::exit_while(&nothing_to_lose, exit_code, &ending)?;
        signals::exit_while(&nothing_to_begin, exit_code, &[sys::SIGUSR1])?;
        let signals = Signals::catch(&[
            sys::SIGTERM,
            sys::SIGINT,
            sys::SIGQUIT,
            sys::SIGUSR1,
            sys::SIGUSR2,
            sys::SIGHUP,
            sys::SIGCHLD,
        ])?;
        Ok(Self { signals, nothing_to_lose, nothing_to_begin, has_terminal })
    }

    /// The most urgent wish since the last time.
    pub fn take(&self) -> Option<Wish> {
        self.signals.take(sys::SIGCHLD);
        // Both, because a terminal and a wrapper program may each send one for a single Ctrl+C.
        let interrupt = [sys::SIGTERM, sys::SIGINT].map(|signal| self.signals.take(signal));
        match () {
            () if interrupt != [false, false] => Some(Wish::Interrupt),
            () if self.signals.take(sys::SIGUSR2) => Some(Wish::Cancel),
            () if self.signals.take(sys::SIGQUIT) => Some(Wish::Stop),
            () if self.signals.take(sys::SIGUSR1) => Some(Wish::Leave),
            () if self.signals.take(sys::SIGHUP) => {
                let is_hangup = self.has_terminal && terminal_is_gone();
                Some(if is_hangup { Wish::Stop } else { Wish::Reload })
            }
            () => None,
        }
    }

    /// Says what the end of the process would cost while the runner waits for an answer. Returns false if a signal that
    /// asks for the end has come before: then nothing is to be waited for, and the next turn takes it.
    pub fn may_wait(&self, nothing_to_lose: bool, nothing_to_begin: bool) -> bool {
        self.nothing_to_lose.store(nothing_to_lose, Ordering::SeqCst);
        self.nothing_to_begin.store(nothing_to_begin, Ordering::SeqCst);
        let came = ENDING.iter().any(|signal| self.signals.is_raised(*signal));
        if came {
            self.waited();
        }
        !came
    }

    /// The wait is over: from now on the loop takes the signals.
    pub fn waited(&self) {
        self.nothing_to_lose.store(false, Ordering::SeqCst);
        self.nothing_to_begin.store(false, Ordering::SeqCst);
    }

    /// Waits for any signal, at most for `limit`.
    pub fn wait(&self, limit: Duration) {
        self.signals.wait(limit);
    }
}

/// Whatever else may keep it from being opened, a terminal that is closed is none any more.
fn terminal_is_gone() -> bool {
    File::open(TERMINAL).is_err_and(|error| sys::is_no_device(&error))
}
