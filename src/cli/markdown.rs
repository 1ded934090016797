//! The README's reference of subcommands and options. A test compares the two.

use std::fmt::Write as _;

use super::table::{EXITS, GROUPS, Opt, SIGNALS, SUBCOMMANDS, Subcommand};

pub fn reference() -> String {
    let mut text = String::from("| subcommand | |\n| --- | --- |\n");
    for sub in SUBCOMMANDS {
        row(&mut text, &format!("`{}`", sub.name), sub.help);
    }
    for group in GROUPS {
        let _ = writeln!(text, "\n#### {}", group.title);
        options(&mut text, group.options);
    }
    SUBCOMMANDS.iter().for_each(|sub| subcommand(&mut text, sub));
    text.push_str("\n#### Exit codes\n\n| code | |\n| --- | --- |\n");
    EXITS.iter().for_each(|(code, meaning)| row(&mut text, &code.to_string(), meaning));
    text.push_str("\n#### Signals to a runner\n\n| signal | |\n| --- | --- |\n");
    SIGNALS.iter().for_each(|(signal, meaning)| row(&mut text, signal, meaning));
    text
}

fn subcommand(text: &mut String, sub: &Subcommand) {
    let _ = write!(text, "\n#### `{}`\n\n{}\n", sub.usage(), sub.help);
    if !sub.groups.is_empty() {
        let titles: Vec<&str> = sub.groups.iter().map(|group| group.title).collect();
        let _ = writeln!(text, "\nIt takes {}.", titles.join(", ").replace("Options", "options"));
    }
    options(text, sub.options);
    for (i, note) in sub.notes.iter().enumerate() {
        if i == 0 || !(note.starts_with(' ') && sub.notes[i - 1].starts_with(' ')) {
            text.push('\n');
        }
        let _ = writeln!(text, "{note}");
    }
    if !sub.exits.is_empty() {
        let exits: Vec<String> =
            sub.exits.iter().map(|(code, meaning)| format!("{code} {meaning}")).collect();
        let _ = writeln!(text, "\nExit codes: {}.", exits.join("; "));
    }
}

fn options(text: &mut String, options: &[Opt]) {
    if !options.is_empty() {
        text.push_str("\n| option | |\n| --- | --- |\n");
    }
    for opt in options.iter().filter(|opt| opt.is_shown()) {
        let short = opt.short.map_or(String::new(), |short| format!("-{short}, "));
        let value = opt.value.map_or(String::new(), |value| format!(" {}", value.name));
        row(text, &format!("`{short}--{}{value}`", opt.long), opt.help);
    }
}

fn row(text: &mut String, name: &str, about: &str) {
    let _ = writeln!(text, "| {name} | {} |", about.replace('|', "\\|"));
}
