//! When to try again: pure values, `now` is always an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// No `Retry-After` makes the runner try again sooner than this; 0, or a date in the past, would make it a flood.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// No `Retry-After` holds the runner back for longer than this; ten years would be an outage of our own making.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// Waits between attempts at one thing, growing with each failure in a row.
#[derive(Debug, Clone)]
pub struct Backoff {
    steps: &'static [u64],
    failures: usize,
    not_before: Option<Instant>,
    /// The wait is the server's wish.
    asked: bool,
}

impl Backoff {
    /// For requests that are sent until they are acknowledged: 1 s, 2 s, 4 s … 30 s.
    pub const DELIVERY: &'static [u64] = &[1, 2, 4, 8, 16, 30];
    /// For a key that the server refuses: the steps of `protocol.md`.
    pub const KEY: &'static [u64] = &[1, 2, 5, 10, 30, 120, 300];

    /// A backoff with waits of `steps` seconds; the last one repeats.
    pub const fn new(steps: &'static [u64]) -> Self {
        Self { steps, failures: 0, not_before: None, asked: false }
    }

    /// Another failure: wait for `asked` (the server's `Retry-After`) or else the next step. Returns the wait.
    pub fn failed(&mut self, now: Instant, asked: Option<Duration>) -> Duration {
        let step = self.steps[self.failures.min(self.steps.len() - 1)];
        self.failures += 1;
        let wait =
            asked.map_or(Duration::from_secs(step), |asked| asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX));
        self.not_before = Some(now + wait);
        self.asked = asked.is_some();
        wait
    }

    /// What failed may work again now: no more waiting, unless the server asked for it.
    pub fn resume(&mut self) {
        if !self.asked {
            self.succeeded();
        }
    }

    /// Failures in a row.
    pub fn failures(&self) -> usize {
        self.failures
    }

    pub fn succeeded(&mut self) {
        *self = Self::new(self.steps);
    }

    /// The earliest instant for the next attempt, at least `now`.
    pub fn due(&self, now: Instant) -> Instant {
        self.not_before.map_or(now, |t| t.max(now))
    }
}

/// A duty that comes round every `interval`, and after a failure a few times sooner (`MAX_RETRIES`).
#[derive(Debug, Clone)]
pub struct Recurring {
    interval: Duration,
    max_retries: u32,
    due: Instant,
    retry: Backoff,
    /// The server asked for no attempt before this.
    not_before: Option<Instant>,
}

impl Recurring {
    /// Due for the first time at `first`.
    pub fn new(interval: Duration, max_retries: u32, first: Instant) -> Self {
        Self { interval, max_retries, due: first, retry: Backoff::new(Backoff::DELIVERY), not_before: None }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn succeeded(&mut self, now: Instant) {
        self.retry.succeeded();
        self.not_before = None;
        self.due = now + self.interval;
    }

    /// The same again would be refused again, so it waits for its turn.
    pub fn refused(&mut self, now: Instant) {
        self.succeeded(now);
    }

    /// Retries sooner while retries are left, then comes again in its turn. Returns whether it is a retry.
    pub fn failed(&mut self, now: Instant, asked: Option<Duration>) -> bool {
        let is_retry = self.retry.failures() < self.max_retries as usize;
        self.due = now
            + if is_retry {
                self.retry.failed(now, asked)
            } else {
                self.retry.succeeded();
                self.interval.max(asked.unwrap_or_default().min(RETRY_AFTER_MAX))
            };
        self.not_before = asked.map(|_| self.due);
        is_retry
    }

    /// Brings the next turn forward to `when`, unless a retry is planned or the server asked for a wait.
    pub fn hurry(&mut self, when: Instant) {
        if self.retry.failures() == 0 {
            self.due = self.due.min(self.not_before.map_or(when, |earliest| earliest.max(when)));
        }
    }

    /// What failed may work again now: no more waiting, unless the server asked for it.
    pub fn resume(&mut self, now: Instant) {
        self.retry.succeeded();
        self.hurry(now);
    }

    /// Puts the next turn at `when`, whatever was planned.
    pub fn reschedule(&mut self, when: Instant) {
        self.due = when;
    }
}

/// Unix time in seconds, by the host's clock.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The wait that a `Retry-After` header asks for: seconds, or an HTTP date.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number too large to hold means "very long": the cap applies later.
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = UNIX_EPOCH + Duration::from_secs(http_date(value)?);
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// Unix time of an HTTP date in the form that RFC 9110 requires of senders: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let mut fields = rest.split(' ');
    let day: u64 = fields.next()?.parse().ok()?;
    let month = fields.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let year: u64 = fields.next()?.parse().ok()?;
    let mut clock = fields.next()?.splitn(3, ':').map(|n| n.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let date_is_sane = (1970..=9999).contains(&year) && (1..=31).contains(&day);
    if fields.next()? != "GMT" || !date_is_sane || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 by Howard Hinnant's `days_from_civil`, with the year beginning in March.
    let y = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (y / 400, y % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// A Unix time in seconds as ISO 8601 has it, in UTC: `2026-11-22T19:21:12Z`.
pub fn iso_8601(unix: f64) -> String {
    let seconds = Duration::try_from_secs_f64(unix).unwrap_or_default().as_secs();
    // Howard Hinnant's `civil_from_days`, with the year beginning in March.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_refused_key_waits_1_2_5_10_30_120_300_300_seconds() {
        let now = Instant::now();
        let mut key = Backoff::new(Backoff::KEY);
        let waits: Vec<u64> = (0..8).map(|_| key.failed(now, None).as_secs()).collect();
        assert_eq!(waits, [1, 2, 5, 10, 30, 120, 300, 300]);
        assert_eq!(key.due(now), now + 300 * S);
        key.succeeded();
        assert_eq!((key.due(now), key.failed(now, None)), (now, S));
    }

    #[test]
    fn a_failed_turn_is_retried_1_2_4_seconds_later_and_then_waits_for_the_next_turn() {
        let mut now = Instant::now();
        let mut poll = Recurring::new(30 * S, 3, now);
        let mut waits = Vec::new();
        for _ in 0..5 {
            poll.failed(now, None);
            waits.push((poll.due() - now).as_secs());
            now = poll.due();
        }
        assert_eq!(waits, [1, 2, 4, 30, 1]);
        poll.succeeded(now);
        assert_eq!(poll.due(), now + 30 * S);
    }

    #[test]
    fn a_hurried_turn_comes_sooner_unless_the_server_asked_for_a_wait() {
        let now = Instant::now();
        let mut poll = Recurring::new(2 * S, 3, now);
        poll.succeeded(now);
        poll.hurry(now);
        assert_eq!(poll.due(), now);
        for max_retries in [3, 0] {
            let mut poll = Recurring::new(2 * S, max_retries, now);
            poll.failed(now, Some(7 * S));
            poll.hurry(now);
            assert_eq!(poll.due(), now + 7 * S);
        }
    }

    #[test]
    fn a_turn_comes_neither_at_once_nor_before_its_time_because_the_server_asked_for_little() {
        let now = Instant::now();
        let mut poll = Recurring::new(30 * S, 1, now);
        poll.failed(now, Some(Duration::ZERO));
        assert_eq!(poll.due(), now + S);
        poll.failed(now, Some(S));
        assert_eq!(poll.due(), now + 30 * S);
        poll.refused(now);
        assert_eq!(poll.due(), now + 30 * S);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_quarter_of_an_hour() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("120", now), Some(120 * S));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(10 * S));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:27 GMT", now), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "1.5", "Sun, 06 Nov 1994", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
        }
        let start = Instant::now();
        for ten_years in ["315360000", "99999999999999999999999", "Sat, 06 Nov 2094 08:49:37 GMT"] {
            let mut backoff = Backoff::new(Backoff::DELIVERY);
            assert_eq!(backoff.failed(start, retry_after(ten_years, now)), RETRY_AFTER_MAX);
        }
    }

    #[test]
    fn http_dates_count_leap_days() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Tue, 29 Feb 2000 12:00:00 GMT"), Some(951_825_600));
        assert_eq!(http_date("Sun, 22 Nov 2026 19:21:12 GMT"), Some(1_795_375_272));
    }

    #[test]
    fn iso_8601_counts_leap_days() {
        for (unix, said) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (951_825_600.5, "2000-02-29T12:00:00Z"),
            (1_795_375_272.0, "2026-11-22T19:21:12Z"),
            (-1.0, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(iso_8601(unix), said);
        }
    }
}
