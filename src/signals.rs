//! Signals as values: handlers only set a flag and wake a pipe; the loop that waits does the rest.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::{flag, low_level};

/// While the flag is set, any of `signals` ends the process at once, with `code` and even inside a blocking call.
///
/// # Errors
/// A signal that cannot be caught.
pub fn exit_while(flag: &Arc<AtomicBool>, code: i32, signals: &[i32]) -> io::Result<()> {
    signals
        .iter()
        .try_for_each(|signal| flag::register_conditional_shutdown(*signal, code, Arc::clone(flag)).map(drop))
}

pub struct Signals {
    pipe: UnixStream,
    flags: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    /// Catches `signals` from now on, for the life of the process.
    ///
    /// # Errors
    /// No descriptors are left for the pipe, or a signal that cannot be caught.
    pub fn catch(signals: &[i32]) -> io::Result<Self> {
        let (pipe, wake) = UnixStream::pair()?;
        let mut flags = Vec::new();
        for signal in signals {
            // The flag before the pipe: whoever is woken must find it set.
            let raised = Arc::new(AtomicBool::new(false));
            flag::register(*signal, Arc::clone(&raised))?;
            low_level::pipe::register(*signal, wake.try_clone()?)?;
            flags.push((*signal, raised));
        }
        Ok(Self { pipe, flags })
    }

    /// Whether `signal` has come since it was last asked for.
    pub fn take(&self, signal: i32) -> bool {
        self.flags.iter().any(|(caught, raised)| *caught == signal && raised.swap(false, Ordering::SeqCst))
    }

    /// Whether `signal` has come; `take` will still say so.
    pub fn is_raised(&self, signal: i32) -> bool {
        self.flags.iter().any(|(caught, raised)| *caught == signal && raised.load(Ordering::SeqCst))
    }

    /// Waits for any signal, at most for `limit`; signals since the last wait end it at once.
    pub fn wait(&self, limit: Duration) {
        // A zero timeout would mean none at all.
        let limit = limit.max(Duration::from_millis(1));
        let mut wakes = [0; 64];
        // Errors are the timeout, or an interruption by the very signal that is waited for.
        let _ = self.pipe.set_read_timeout(Some(limit)).and_then(|()| (&self.pipe).read(&mut wakes));
    }
}
