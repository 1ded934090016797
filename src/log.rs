//! The runner's log: one line a record, on standard error.
//!
//! It decides the level and the shape of a line, not what is said. Text from elsewhere (the server, a command) is
//! common in messages, so control characters never reach the terminal as such.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// How much is said: the number after `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Level {
    Error = 0,
    Warning = 1,
    Info = 2,
    Debug = 3,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

impl Level {
    /// The level of `-v N`.
    pub fn from_number(number: &str) -> Option<Self> {
        match number {
            "0" => Some(Self::Error),
            "1" => Some(Self::Warning),
            "2" => Some(Self::Info),
            "3" => Some(Self::Debug),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Sets what is said from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Relaxed);
}

/// Writes one record. A log that cannot be written is no reason to stop, so that error is dropped.
pub fn record(level: Level, message: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Relaxed) {
        return;
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let now = sys::local_time(i64::try_from(seconds).unwrap_or(0));
    let line = format!("{now} {:<7} {}\n", level.name(), printable(&message.to_string()));
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// `text` on one line, with control characters written as escapes.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

macro_rules! error {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Error, format_args!($($arg)*)) };
}
macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Warning, format_args!($($arg)*)) };
}
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Info, format_args!($($arg)*)) };
}
macro_rules! debug {
    ($($arg:tt)*) => { $crate::log::record($crate::log::Level::Debug, format_args!($($arg)*)) };
}
pub(crate) use {debug, error, info, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_move_the_cursor_or_forge_a_line() {
        assert_eq!(printable("a\n2026 info fake\x1b[2J"), "a\\n2026 info fake\\u{1b}[2J");
    }
}
