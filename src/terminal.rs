//! What text looks like on a terminal: its width there, colours, and tables that fit in.
//!
//! It knows nothing of what is shown. Whoever prints says whether there is a terminal that may be coloured.

use std::io::{self, IsTerminal};

use crate::sys;

/// How text for one stream is to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Columns, if it is known how many there are.
    pub width: Option<usize>,
    pub is_coloured: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Red,
    Green,
    Yellow,
}

impl Look {
    /// Of standard output. `may_colour`: the user has nothing against it (`NO_COLOR`).
    pub fn of_stdout(may_colour: bool) -> Self {
        Self { width: sys::terminal_width(), is_coloured: may_colour && io::stdout().is_terminal() }
    }

    /// `text` in a colour, where there are colours.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
        };
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line as far as it fits.
    pub fn cut(self, line: &str) -> String {
        match self.width {
            Some(room) if width(line) > room => {
                let mut left = room.saturating_sub(1);
                let fits = |c: &char| {
                    let fits = columns(*c) <= left;
                    left = left.saturating_sub(columns(*c));
                    fits
                };
                line.chars().take_while(fits).chain(['…']).collect()
            }
            _ => line.to_owned(),
        }
    }

    /// Words on as many lines as they need; those behind the first begin at `indent`. Where the width is not known, or
    /// leaves hardly any room, it is one line.
    pub fn wrap(self, text: &str, indent: usize) -> String {
        const LEAST: usize = 20;
        let Some(room) = self.width.filter(|room| *room >= indent + LEAST) else { return text.to_owned() };
        let mut wrapped = String::new();
        let mut column = indent;
        for word in text.split(' ') {
            let word_width = width(word);
            if column > indent {
                if column + 1 + word_width > room {
                    wrapped.push_str(&format!("\n{:indent$}", ""));
                    column = indent;
                } else {
                    wrapped.push(' ');
                    column += 1;
                }
            }
            wrapped.push_str(word);
            column += word_width;
        }
        wrapped
    }
}

/// Lines of a table: each column as wide as its widest cell, but for the last.
pub fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| width(&row[i])).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, room)| pad(cell, room));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `text` with spaces behind it, so that it takes at least `room` columns.
pub fn pad(text: &str, room: usize) -> String {
    format!("{text}{:1$}", "", room.saturating_sub(width(text)))
}

/// How many columns a text takes.
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// What marks go onto the character before them, and which ones are two columns wide, by the blocks of Unicode: near
/// enough for names and messages.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f
        | 0x483..=0x489
        | 0x591..=0x5bd
        | 0x610..=0x61a
        | 0x64b..=0x65f
        | 0x1ab0..=0x1aff
        | 0x1dc0..=0x1dff
        | 0x200b..=0x200d
        | 0x20d0..=0x20ff
        | 0xfe00..=0xfe0f
        | 0xfe20..=0xfe2f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0x4dbf
        | 0x4e00..=0xa4cf
        | 0xa960..=0xa97f
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff01..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f680..=0x1f6ff
        | 0x1f900..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrow(width: usize) -> Look {
        Look { width: Some(width), is_coloured: false }
    }

    #[test]
    fn a_line_is_cut_where_the_terminal_ends_and_a_wide_character_takes_two_columns() {
        assert_eq!(narrow(5).cut("hello"), "hello");
        assert_eq!(narrow(4).cut("hello"), "hel…");
        assert_eq!(narrow(5).cut("漢字漢字"), "漢字…");
        assert_eq!(narrow(4).cut("漢字漢字"), "漢…");
        assert_eq!(narrow(4).cut("e\u{301}te\u{301}s"), "e\u{301}te\u{301}s");
        assert_eq!(Look::default().cut("any length"), "any length");
    }

    #[test]
    fn columns_line_up_whatever_their_cells_are_made_of() {
        let rows = [["a", "one", "x"], ["漢字", "two", ""], ["e\u{301}", "3", "z"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), ["a     one  x", "漢字  two", "e\u{301}     3    z"]);
    }

    #[test]
    fn a_text_is_wrapped_between_words_and_not_where_there_is_no_room() {
        assert_eq!(
            narrow(30).wrap("one two three four five six", 10),
            "one two three four\n          five six"
        );
        assert_eq!(narrow(25).wrap("one two three four five six", 10), "one two three four five six");
        let long = "x".repeat(40);
        assert_eq!(narrow(30).wrap(&format!("a {long} b"), 10), format!("a\n          {long}\n          b"));
    }

    #[test]
    fn only_a_terminal_has_colours() {
        assert_eq!(Look::default().paint(Colour::Red, "fail"), "fail");
        let coloured = Look { width: None, is_coloured: true };
        assert_eq!(coloured.paint(Colour::Red, "fail"), "\x1b[31mfail\x1b[0m");
    }
}
