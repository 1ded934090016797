//! What is said once, and not at every poll: news about what the service sends, of which there may be no end.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::log;

/// How many different news are said within an hour. After that, a service that sends more of them would fill the log.
const NEWS_MAX: usize = 200;
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(super) struct Told {
    said: HashSet<String>,
    /// When the last of so many was said.
    since: Option<Instant>,
}

impl Told {
    /// Says what was not said yet, unless there was too much to say within the last hour.
    pub(super) fn once(&mut self, what: &str, now: Instant, tell: impl Fn(&str)) {
        if self.since.is_some_and(|since| now - since >= HOUR) && self.said.len() >= NEWS_MAX {
            *self = Self::default();
        }
        if self.said.len() >= NEWS_MAX || !self.said.insert(what.to_owned()) {
            return;
        }
        self.since = Some(now);
        tell(what);
        if self.said.len() == NEWS_MAX {
            log::warning!("the service sends {NEWS_MAX} odd things: no more of this is said for an hour");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn each_is_said_once_and_no_more_than_so_many_in_an_hour() {
        let (mut told, said, begin) = (Told::default(), Cell::new(0), Instant::now());
        let mut tell = |what: &str, after: Duration| {
            told.once(what, begin + after, |_| said.set(said.get() + 1));
            said.get()
        };
        assert_eq!((tell("a", Duration::ZERO), tell("a", HOUR)), (1, 1));
        for number in 0..2 * NEWS_MAX {
            tell(&number.to_string(), HOUR / 2);
        }
        assert_eq!(tell("b", HOUR + HOUR / 2 - Duration::from_secs(1)), NEWS_MAX);
        assert_eq!(tell("b", HOUR + HOUR / 2), NEWS_MAX + 1);
    }
}
