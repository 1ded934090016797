//! `commands`: the project's commands as policy sees them, which is also what the dashboard is told.

use std::path::Path;

use serde::Serialize;

use super::{Error, loader, say};
use crate::cli::Load;
use crate::config::Environment;
use crate::load::Loaded;
use crate::log::{self, Level, printable, printable_json};
use crate::policy::BoundArgs;
use crate::terminal::{Colour, Look, table};

/// `commands --json`, one a command. The keys are described in the README.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    app: &'a str,
    allowed: bool,
    /// Why it may or may not run.
    rule: String,
    /// The argument lists that it may run with; `None`: any.
    bound_args: Option<&'a [BoundArgs]>,
    metadata_only: bool,
}

/// Returns the exit code.
///
/// # Errors
/// The project does not load, or its settings cannot be used.
pub fn commands(load: Load, json: bool) -> Result<u8, Error> {
    log::set_level(Level::Warning);
    let environment = Environment::read();
    let look = Look::of_stdout(environment.allows_colour());
    let loaded = loader(load, environment)?.load()?;
    let rows = rows(&loaded);
    if json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::Failed(e.to_string()))?;
        return say(&printable_json(&text)).map(|()| 0);
    }
    let allowed = rows.iter().filter(|row| row.allowed).count();
    say(&lines(&rows, look).join("\n"))?;
    let root = Path::new(&loaded.project.root).display();
    say(&format!("\n{allowed} of the {} commands of '{root}' may run", rows.len())).map(|()| 0)
}

/// Those that may run first, each by name.
fn rows(loaded: &Loaded) -> Vec<Row<'_>> {
    let policy = &loaded.config.policy;
    let mut rows: Vec<Row<'_>> = loaded
        .facts
        .commands
        .iter()
        .map(|(name, app)| {
            let (allowed, rule) = match policy.admits(name) {
                Ok(()) => (true, policy.rule()),
                Err(rejection) => (false, rejection.reason),
            };
            let bound_args = policy.bound.get(name).map(Vec::as_slice);
            let metadata_only = policy.metadata_only.contains(name);
            Row { name, app, allowed, rule, bound_args, metadata_only }
        })
        .collect();
    rows.sort_by_key(|row| (!row.allowed, row.name));
    rows
}

fn lines(rows: &[Row<'_>], look: Look) -> Vec<String> {
    let cells = |row: &Row<'_>| {
        let runs = if row.allowed { "yes" } else { "no" };
        let mut how = Vec::new();
        if let Some(choices) = row.bound_args {
            let args: Vec<String> = choices.iter().map(|choice| format!("'{}'", choice.args)).collect();
            how.push(format!("only with {}", args.join(", ")));
        }
        if row.metadata_only {
            how.push("metadata only".to_owned());
        }
        let rule = row.rule.strip_prefix("it is ").unwrap_or(&row.rule);
        let rule = [rule.to_owned()].into_iter().chain(how).collect::<Vec<_>>().join("; ");
        [runs, row.name, row.app, &rule].map(printable)
    };
    let head = ["RUNS", "NAME", "APP", "RULE"].map(str::to_owned);
    let cells: Vec<[String; 4]> = [head].into_iter().chain(rows.iter().map(cells)).collect();
    let coloured = |line: String| match line.strip_prefix("yes") {
        Some(rest) => look.paint(Colour::Green, "yes") + rest,
        None => line,
    };
    table(&cells).iter().map(|line| coloured(look.cut(line))).collect()
}
