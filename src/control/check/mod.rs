//! `check`: what a user runs who is stuck, and an installation before it goes live.
//!
//! Each line is ok, warn or fail; what is not ok says what to do. Nothing on this host is changed, but for the bytecode
//! that Python keeps, and no runner is disturbed: what it would find is looked at, not tried. All of it ends in time,
//! whatever hangs.

mod host;
mod network;
mod rules;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Error;
use crate::cli::Load;
use crate::config::Environment;
use crate::log::{self, Level, printable, printable_json};
use crate::terminal::{Colour, Look, pad};

/// How long the whole may take.
const TIME_LIMIT: Duration = Duration::from_secs(14);
/// How long the project may take to load. `start` gives it more, but whoever waits here wants to hear of it.
const PROJECT_LIMIT: Duration = Duration::from_secs(8);
/// How long one connection may take, and one request.
const STEP_LIMIT: Duration = Duration::from_secs(4);
/// Where a line's text begins.
const INDENT: usize = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    result: Grade,
    text: String,
    /// What to do, unless it is ok.
    next: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, result: Grade::Ok, text: text.into(), next: None }
    }

    fn warn(name: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, result: Grade::Warn, text: text.into(), next: Some(next.into()) }
    }

    fn fail(name: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, result: Grade::Fail, text: text.into(), next: Some(next.into()) }
    }

    fn shown(&self, look: Look) -> String {
        let (colour, word) = match self.result {
            Grade::Ok => (Colour::Green, "ok"),
            Grade::Warn => (Colour::Yellow, "warn"),
            Grade::Fail => (Colour::Red, "fail"),
        };
        let lines = |text: &str| {
            let lines = text.lines().map(|line| look.wrap(&printable(line), INDENT));
            lines.collect::<Vec<_>>().join(&format!("\n{:INDENT$}", ""))
        };
        let mut shown = format!(
            "{}{}{}",
            look.paint(colour, &pad(word, 6)),
            pad(self.name, INDENT - 6),
            lines(&self.text)
        );
        if let Some(next) = &self.next {
            shown.push_str(&format!("\n{:INDENT$}{}", "", lines(&format!("-> {next}"))));
        }
        shown
    }
}

/// What has been found. People see each line as soon as it is known; programs get all at the end.
struct Report {
    findings: Vec<Finding>,
    look: Look,
    json: bool,
    /// Standard output did not take a line.
    error: Option<io::Error>,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        if !self.json && self.error.is_none() {
            self.error = writeln!(io::stdout().lock(), "{}", finding.shown(self.look)).err();
        }
        self.findings.push(finding);
    }

    fn worst(&self) -> Grade {
        self.findings.iter().map(|finding| finding.result).max().unwrap_or(Grade::Ok)
    }

    /// Says what there is in all, and returns the exit code.
    fn end(mut self) -> Result<u8, Error> {
        let count = |grade| self.findings.iter().filter(|finding| finding.result == grade).count();
        let (warnings, failures) = (count(Grade::Warn), count(Grade::Fail));
        if self.json {
            let report = serde_json::json!({"result": self.worst(), "checks": self.findings});
            let text = serde_json::to_string_pretty(&report).map_err(|e| Error::Failed(e.to_string()))?;
            self.error = writeln!(io::stdout().lock(), "{}", printable_json(&text)).err();
        } else if self.error.is_none() {
            let said = match (failures, warnings) {
                (0, 0) => "all is well".to_owned(),
                _ => format!("{failures} failed, {warnings} warning(s)"),
            };
            self.error = writeln!(io::stdout().lock(), "\n{said}").err();
        }
        match self.error {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::Failed(format!("cannot write to standard output: {error}")))
            }
            _ => Ok(u8::from(failures > 0)),
        }
    }
}

/// Returns the exit code.
///
/// # Errors
/// The report cannot be printed.
pub fn check(load: Load, offline: bool, json: bool) -> Result<u8, Error> {
    let deadline = Instant::now() + TIME_LIMIT;
    log::set_level(Level::Error);
    let environment = Environment::read();
    let look = Look::of_stdout(environment.allows_colour());
    let mut report = Report { findings: Vec::new(), look, json, error: None };
    let known = host::look_at(&load, &environment, PROJECT_LIMIT, &mut report);
    if let Some(known) = &known {
        rules::look_at(known, &mut report);
    }
    match known {
        _ if offline => {}
        Some(known) => network::look_at(known, deadline, &mut report),
        None => report.add(Finding::warn(
            "network",
            "not looked at, because project and settings are not known yet",
            "mend what fails above, then check again",
        )),
    }
    report.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_its_grade_and_name_and_below_what_to_do() {
        let look = Look { width: Some(50), is_coloured: false };
        let shown =
            Finding::warn("clock", "it is 90 s behind the service's\nby a lot", "set it by NTP, soon")
                .shown(look);
        let expected = "warn  clock       it is 90 s behind the service's\n                  by a lot\n                  \
                        -> set it by NTP, soon";
        assert_eq!(shown, expected);
        let narrow = Look { width: Some(40), is_coloured: false };
        assert_eq!(
            Finding::ok("key", "one two three four five six seven").shown(narrow),
            "ok    key         one two three four\n                  five six seven"
        );
    }

    #[test]
    fn a_strangers_text_cannot_move_the_cursor() {
        let shown = Finding::fail("key", "denied: \u{1b}[2J", "look").shown(Look::default());
        assert!(shown.contains("\\u{1b}[2J") && !shown.contains('\u{1b}'), "{shown:?}");
    }
}
