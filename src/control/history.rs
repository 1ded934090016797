//! `history`: what was asked of this host and what became of it, from its own record, whether a runner runs or not.
//!
//! The record is read twice, line by line: first for which executions are meant, then for those. So it takes little
//! memory, however long the record is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::{Error, state_path, status};
use crate::audit::{Lines, Record};
use crate::cli::Place;
use crate::config::Environment;
use crate::execution::Status;
use crate::log::{printable, printable_json};
use crate::sys;
use crate::terminal::{Colour, Look};

/// How much of an id is shown: enough to find it in the dashboard and in the log.
const SHORT_ID: usize = 8;

/// Returns the exit code.
///
/// # Errors
/// Nothing is recorded, or it cannot be read or printed.
pub fn history(place: &Place, json: bool, count: usize, command: Option<&str>) -> Result<u8, Error> {
    let environment = Environment::read();
    let state = state_path(place, &environment)?;
    let look = Look::of_stdout(environment.allows_colour());
    let mut out = BufWriter::new(io::stdout().lock());
    let shown =
        show(&state, json, count, command, look, &mut out).and_then(|is_any| out.flush().map(|()| is_any));
    let state = state.display();
    match shown {
        Ok(true) => Ok(0),
        Ok(false) => Err(Error::Failed(match command {
            Some(command) => format!("no execution of '{command}' is recorded in '{state}'"),
            None => format!("no execution is recorded in '{state}'"),
        })),
        // The reader has gone away.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(Error::Failed(format!("cannot show the record in '{state}': {error}"))),
    }
}

/// Prints the last `count` executions; returns whether there was anything to print.
fn show(
    state: &Path,
    json: bool,
    count: usize,
    command: Option<&str>,
    look: Look,
    out: &mut impl Write,
) -> io::Result<bool> {
    let lines = Lines::open(state)?;
    let chosen = Chosen::read(&lines, count, command)?;
    if json {
        return print_lines(&lines, &chosen, command.is_none(), out);
    }
    let rows = rows(&lines, &chosen)?;
    if rows.is_empty() {
        return Ok(false);
    }
    // After the record, so that what has no end there and no directory here has ended in between.
    let states = status::states(state);
    writeln!(out, "{}", look.cut(HEAD))?;
    for row in &rows {
        writeln!(out, "{}", coloured(&look.cut(&row.line(&states)), look))?;
    }
    Ok(true)
}

/// How it ended in a colour: it stands where it stands in the head.
fn coloured(line: &str, look: Look) -> String {
    let (Some(before), Some(how), Some(rest)) = (line.get(..21), line.get(21..30), line.get(30..)) else {
        return line.to_owned();
    };
    let colour = match how.trim_end() {
        "success" => Colour::Green,
        "failed" | "timed_out" | "lost" => Colour::Red,
        "cancelled" | "rejected" => Colour::Yellow,
        _ => return line.to_owned(),
    };
    format!("{before}{}{rest}", look.paint(colour, how))
}

/// Which executions are meant, the oldest first.
struct Chosen {
    ids: Vec<u128>,
    /// There are no others.
    is_all: bool,
}

impl Chosen {
    fn read(lines: &Lines, count: usize, command: Option<&str>) -> io::Result<Self> {
        let (mut ids, mut known) = (Vec::new(), HashSet::new());
        lines.each(|_, record| {
            let is_meant = command.is_none_or(|command| record.command.as_deref() == Some(command));
            if let Some(id) = record.execution.filter(|_| is_meant)
                && known.insert(id.number())
            {
                ids.push(id.number());
            }
            Ok(())
        })?;
        let older = ids.len().saturating_sub(count);
        Ok(Self { ids: ids.split_off(older), is_all: older == 0 })
    }
}

/// Prints the lines of the chosen executions as they stand; with `with_others` also those about no execution that come
/// after the first of them.
fn print_lines(lines: &Lines, chosen: &Chosen, with_others: bool, out: &mut impl Write) -> io::Result<bool> {
    let ids: HashSet<u128> = chosen.ids.iter().copied().collect();
    let (mut others, mut is_any) = (with_others && chosen.is_all, false);
    lines.each(|line, record| {
        let is_meant = match &record.execution {
            Some(id) => ids.contains(&id.number()),
            None => others,
        };
        if is_meant {
            others = with_others;
            is_any = true;
            writeln!(out, "{}", printable_json(line))?;
        }
        Ok(())
    })?;
    Ok(is_any)
}

/// One execution, from all of its lines.
#[derive(Default)]
struct Row {
    id: String,
    /// When it was first heard of, in Unix seconds.
    time: f64,
    command: String,
    args: String,
    has_begun: bool,
    rejected: Option<String>,
    signalled_by: Option<String>,
    status: Option<Status>,
    exit_code: Option<i64>,
    duration: Option<f64>,
    /// Of both streams.
    bytes: Option<u64>,
    reason: Option<String>,
}

fn rows(lines: &Lines, chosen: &Chosen) -> io::Result<Vec<Row>> {
    let places: HashMap<u128, usize> =
        chosen.ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    let mut rows: Vec<Row> = chosen.ids.iter().map(|_| Row::default()).collect();
    lines.each(|_, record| {
        let place = record.execution.as_ref().and_then(|id| places.get(&id.number()));
        if let Some(row) = place.and_then(|place| rows.get_mut(*place)) {
            row.take(record);
        }
        Ok(())
    })?;
    Ok(rows)
}

const HEAD: &str = "WHEN                 HOW        CODE  DURATION    OUTPUT  ID        COMMAND";

impl Row {
    fn take(&mut self, record: Record) {
        if self.id.is_empty() {
            self.time = record.time;
            self.id = record.execution.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
            self.command = record.command.clone().unwrap_or_default();
        }
        let status = record.status();
        match record.event.as_str() {
            "offered" => {
                let missing = record.args_missing_bytes.map(|bytes| format!("… ({bytes} bytes more)"));
                self.args = record.args.unwrap_or_default() + missing.as_deref().unwrap_or_default();
            }
            "rejected" => self.rejected = record.reason,
            "started" => {
                self.has_begun = true;
                // What runs counts, whatever was offered before. In front of the command is what runs it.
                self.command = record.command.unwrap_or_default();
                let words = record.argv.unwrap_or_default();
                let own = words.iter().skip_while(|word| **word != self.command).skip(1);
                self.args = own.map(String::as_str).collect::<Vec<_>>().join(" ");
            }
            "signalled" => self.signalled_by = record.by,
            // What was interrupted before it began, in the words of an earlier version.
            "interrupted" => self.status = Some(Status::Failed),
            "ended" => {
                (self.status, self.exit_code, self.duration) = (status, record.exit_code, record.duration);
                self.bytes = record.stdout_bytes.zip(record.stderr_bytes).map(|(out, err)| out + err);
                self.reason = record.reason;
            }
            "delivered" => {
                self.status = self.status.or(status);
                self.exit_code = self.exit_code.or(record.exit_code);
            }
            _ => {}
        }
    }

    /// `states`: of the executions that are still there.
    fn line(&self, states: &BTreeMap<String, &'static str>) -> String {
        let how = match (&self.rejected, self.status) {
            (Some(_), _) => "rejected",
            (None, Some(status)) => status.as_str(),
            (None, None) if self.has_begun => states.get(&self.id).copied().unwrap_or("ended"),
            (None, None) => "offered",
        };
        let (code, duration, bytes) = match &self.rejected {
            Some(_) => (None, None, None),
            None => (self.exit_code, self.duration.filter(|seconds| *seconds > 0.0), self.bytes),
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let note = match (&self.rejected, &self.signalled_by, &self.reason) {
            (Some(rule), ..) => format!("  ({rule})"),
            (None, _, Some(reason)) => format!("  ({reason})"),
            (None, Some(by), None) if by != "timeout" => format!("  (ended by the {by})"),
            _ => String::new(),
        };
        let line = format!(
            "{}  {how:<9}  {:>4}  {:>8}  {:>8}  {:<SHORT_ID$}  {} {}",
            sys::local_time(self.time as i64),
            or_dash(code.map(|code| code.to_string())),
            or_dash(duration.map(seconds)),
            or_dash(bytes.map(size)),
            self.id.get(..SHORT_ID).unwrap_or_default(),
            self.command,
            self.args
        );
        printable(&format!("{}{note}", line.trim_end()))
    }
}

/// `0.42 s`, `12 s`, `3:05 min`, `25:03 h`.
fn seconds(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.2} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{}:{:02} min", whole / 60, whole % 60),
        _ => format!("{}:{:02} h", whole / 3600, whole / 60 % 60),
    }
}

/// `0 B`, `17 kB`, `1.2 MB`: in powers of a thousand.
fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    const ID: &str = "0b8f3a52-3d0e-4b1c-9a77-1f2e3d4c5b6a";

    fn shown(lines: &[serde_json::Value], json: bool, count: usize, width: Option<usize>) -> String {
        let temp = tempfile::tempdir().unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(temp.path().join("audit.jsonl"), text + "{\"torn").unwrap();
        let mut out = Vec::new();
        show(temp.path(), json, count, None, Look { width, is_coloured: false }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// The table behind the times, whose zone is the host's.
    fn table(lines: &[serde_json::Value], width: Option<usize>) -> Vec<String> {
        let text = shown(lines, false, 20, width);
        text.lines().map(|line| line.chars().skip(21).collect()).collect()
    }

    #[test]
    fn what_an_earlier_version_recorded_is_shown_as_far_as_it_goes() {
        let argv = json!(["/python", "-u", "manage.py", "check", "--deploy", "two words"]);
        let lines = [
            json!({"time": 1, "execution": ID, "event": "started", "command": "check", "argv": argv}),
            json!({"time": 2, "execution": ID.to_uppercase(), "event": "delivered", "command": "check",
                "exit_code": -15, "status": "cancelled"}),
        ];
        let expected = [
            "HOW        CODE  DURATION    OUTPUT  ID        COMMAND",
            "cancelled   -15         -         -  0b8f3a52  check --deploy two words",
        ];
        assert_eq!(table(&lines, None), expected);
    }

    #[test]
    fn a_hostile_name_is_harmless_and_cut_where_the_terminal_ends() {
        let command = "\u{1b}[2J\u{9b}1m\u{202e}x\n".to_owned() + &"y".repeat(300);
        let lines =
            [json!({"time": 1, "execution": ID, "event": "rejected", "command": command, "reason": "no"})];
        let row = &table(&lines, None)[1];
        let said = "rejected      -         -         -  0b8f3a52  \\u{1b}[2J\\u{9b}1m\\u{202e}x\\nyyy";
        assert!(row.starts_with(said) && row.ends_with("yyy  (no)"), "{row}");
        let rows = table(&lines, Some(80));
        assert_eq!((rows.len(), rows[1].chars().count()), (2, 80 - 21));
        assert!(rows[1].ends_with("\\u…"), "{rows:?}");
    }

    #[test]
    fn on_a_terminal_the_end_of_an_execution_has_a_colour() {
        let look = Look { width: Some(60), is_coloured: true };
        let line = "2026-11-22 19:21:12  success       0    1.00 s";
        assert_eq!(coloured(line, look), "2026-11-22 19:21:12  \x1b[32msuccess  \x1b[0m     0    1.00 s");
        for plain in ["2026-11-22 19:21:12  running   ", "2026-11", "2026-11-22 19:21:12  s…"] {
            assert_eq!(coloured(plain, look), plain);
        }
    }

    #[test]
    fn lines_about_no_execution_stand_where_they_belong_among_the_last_ones() {
        let of = |n: u32, event: &str| json!({"time": n, "execution": format!("{n:08}{}", &ID[8..]), "event": event, "command": "c"});
        let configured = |n: u32| json!({"time": n, "event": "configured"});
        let lines =
            [configured(0), of(1, "offered"), configured(1), of(2, "offered"), configured(2), of(1, "ended")];
        let times = |count| {
            let text = shown(&lines, true, count, None);
            text.lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .map(|line| (line["time"].as_u64().unwrap(), line["event"].as_str().unwrap().len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(times(2), [(0, 10), (1, 7), (1, 10), (2, 7), (2, 10), (1, 5)]);
        assert_eq!(times(1), [(2, 7), (2, 10)]);
    }

    #[test]
    fn spans_and_sizes_are_told_in_the_unit_that_fits() {
        let spans = [0.0, 9.994, 59.9, 61.0, 90_180.0].map(seconds);
        assert_eq!(spans, ["0.00 s", "9.99 s", "59 s", "1:01 min", "25:03 h"]);
        let sizes = [0, 999, 1000, 1_250_000, 3_000_000_000].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "1.2 MB", "3.0 GB"]);
    }
}
