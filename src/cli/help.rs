//! `--help`, of the program and of each subcommand, on 80 columns.

use std::fmt::Write as _;

use super::table::{ABOUT, EXITS, HELP, Opt, SUBCOMMANDS, Subcommand, VERSION};
use crate::terminal::Look;

const LOOK: Look = Look { width: Some(80), is_coloured: false };
/// Where the help of an option begins.
const OPTION_INDENT: usize = 26;

pub fn overview() -> String {
    let mut text = format!("{ABOUT}\n\nusage: djangocommand SUBCOMMAND [OPTIONS]\n\nSubcommands:\n");
    for sub in SUBCOMMANDS {
        entry(&mut text, sub.name, 11, sub.help);
    }
    text.push_str("\nOptions:\n");
    [&HELP, &VERSION].into_iter().for_each(|opt| option(&mut text, opt));
    text.push_str("\nExit codes:\n");
    exits(&mut text, EXITS);
    text.push_str("Those of status, and what else they mean elsewhere: 'djangocommand SUBCOMMAND --help'.\n");
    text
}

pub fn details(sub: &Subcommand) -> String {
    let mut text = String::new();
    paragraph(&mut text, sub.help);
    let _ = write!(text, "\nusage: {}\n\nOptions:\n", sub.usage());
    sub.shown_options().for_each(|opt| option(&mut text, opt));
    for (i, note) in sub.notes.iter().enumerate() {
        // Examples stand together, right below what they are of.
        if i == 0 || !note.starts_with(' ') {
            text.push('\n');
        }
        paragraph(&mut text, note);
    }
    if !sub.exits.is_empty() {
        text.push_str("\nExit codes:\n");
        exits(&mut text, sub.exits);
    }
    text
}

fn option(text: &mut String, opt: &Opt) {
    let short = opt.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
    let value = opt.value.map_or(String::new(), |value| format!(" {}", value.name));
    entry(text, &format!("{short}--{}{value}", opt.long), OPTION_INDENT - 2, opt.help);
}

fn exits(text: &mut String, exits: &[(u8, &str)]) {
    exits.iter().for_each(|(code, meaning)| entry(text, &code.to_string(), 4, meaning));
}

/// A term, and what is said about it in a column of its own.
fn entry(text: &mut String, term: &str, width: usize, about: &str) {
    let _ = writeln!(text, "  {term:<width$}{}", LOOK.wrap(about, width + 2));
}

fn paragraph(text: &mut String, paragraph: &str) {
    let is_example = paragraph.starts_with(' ');
    let shown = if is_example { paragraph.to_owned() } else { LOOK.wrap(paragraph, 0) };
    let _ = writeln!(text, "{shown}");
}
