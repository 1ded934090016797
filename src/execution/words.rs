//! Splits one string of arguments as Python's `shlex.split` does (POSIX mode, no comments).
//!
//! Nothing is expanded and no shell is involved: quotes and backslashes only group characters into words.

/// The words of `text`.
///
/// # Errors
/// A quotation that is not closed, or a backslash at the end.
pub fn split(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    // `None` between words; a quoted empty string is a word too.
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\'' => single_quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or(NOTHING_ESCAPED)?),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

const NOT_CLOSED: &str = "a quotation is not closed";
const NOTHING_ESCAPED: &str = "a backslash at the end escapes nothing";

fn single_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    loop {
        match chars.next().ok_or(NOT_CLOSED)? {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
}

/// Inside double quotes a backslash escapes only `"` and `\`; before anything else it stands for itself.
fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    loop {
        match chars.next().ok_or(NOT_CLOSED)? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(NOTHING_ESCAPED)? {
                c @ ('"' | '\\') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_group_as_in_shlex() {
        for (text, words) in [
            ("", vec![]),
            (" \t\r\n", vec![]),
            ("a  b\tc\nd\re", vec!["a", "b", "c", "d", "e"]),
            ("--name='two words' \"and\"more", vec!["--name=two words", "andmore"]),
            ("'' \"\" x''", vec!["", "", "x"]),
            (r#"a\ b 'a\b' "a\b\"\\" \\"#, vec!["a b", r"a\b", r#"a\b"\"#, r"\"]),
            (
                "# $HOME `id` $(id) *.py; rm -rf / | x > y &",
                vec!["#", "$HOME", "`id`", "$(id)", "*.py;", "rm", "-rf", "/", "|", "x", ">", "y", "&"],
            ),
            ("a\u{a0}b\u{b}c\u{c}d ü", vec!["a\u{a0}b\u{b}c\u{c}d", "ü"]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
    }

    #[test]
    fn what_is_left_open_is_an_error_that_says_so() {
        for text in ["'", "\"", "a 'b", "\"a\\\""] {
            assert_eq!(split(text), Err(NOT_CLOSED), "{text}");
        }
        for text in ["\\", "a\\", "\"\\"] {
            assert_eq!(split(text), Err(NOTHING_ESCAPED), "{text}");
        }
    }
}
