//! Which known name a mistyped one probably means.

/// The name of `known` that `typed` is nearest to, if it is near enough to be worth a suggestion.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = if typed.len() > 12 { 3 } else { 2 };
    known
        .into_iter()
        .map(|name| (distance(typed, name), name))
        .filter(|(d, name)| *d <= allowed && *d < name.len() / 2 + 1)
        .min()
        .map(|(_, name)| name)
}

/// The end of a message about `typed`: what it probably means, with `prefix` before the name, or nothing.
pub fn hint<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>, prefix: &str) -> String {
    nearest(typed, known).map_or_else(String::new, |name| format!("; did you mean '{prefix}{name}'?"))
}

/// Levenshtein distance: insertions, deletions and replacements of one character.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_name_and_another_word_does_not() {
        let known = ["start", "stop", "status", "ALLOWED_COMMANDS"];
        assert_eq!(nearest("strat", known), Some("start"));
        assert_eq!(nearest("statsu", known), Some("status"));
        assert_eq!(nearest("ALOWED_COMMAND", known), Some("ALLOWED_COMMANDS"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(nearest("", known), None);
    }
}
