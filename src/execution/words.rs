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
    use std::io::Write;
    use std::process::{Command, Stdio};

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

    /// Random strings over what matters to either splitter, the same in each run.
    fn nasty_strings(count: usize) -> Vec<String> {
        const ALPHABET: [char; 20] = [
            ' ', ' ', '\t', '\r', '\n', '\'', '\'', '"', '"', '\\', '\\', 'a', 'n', '#', '$', ';', '\0',
            '\u{b}', '\u{a0}', '😀',
        ];
        let mut random: u64 = 20;
        let mut below = |limit: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % limit
        };
        (0..count).map(|_| (0..below(16)).map(|_| ALPHABET[below(ALPHABET.len())]).collect()).collect()
    }

    #[test]
    fn random_strings_are_split_or_refused_as_by_pythons_own_shlex() {
        const ASK: &str = "\
import json, shlex, sys
def split(text):
    try:
        return shlex.split(text)
    except ValueError:
        return None
print(json.dumps([split(text) for text in json.load(sys.stdin)]))";
        let texts = nasty_strings(2000);
        let turn = crate::sys::no_forks_meanwhile();
        let mut python = Command::new("python3")
            .args(["-c", ASK])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tests need a python3 in the PATH");
        drop(turn);
        // Python reads all of it before it writes anything.
        python.stdin.take().unwrap().write_all(&serde_json::to_vec(&texts).unwrap()).unwrap();
        let answer = python.wait_with_output().unwrap().stdout;
        let expected: Vec<Option<Vec<String>>> = serde_json::from_slice(&answer).unwrap();
        assert_eq!(expected.len(), texts.len());
        assert!((500..1500).contains(&expected.iter().flatten().count()), "both answers are common");
        for (text, words) in texts.iter().zip(expected) {
            assert_eq!(split(text).ok(), words, "{text:?}");
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
