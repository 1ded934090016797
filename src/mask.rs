//! Secrets do not leave the host: wherever a text that goes out holds one, `********` goes out instead.
//!
//! A [`Mask`] is made once from the values that are secret. A [`Masker`] then goes along a stream of text: what could be
//! the beginning of a secret is held back until it is clear, so that the result is the same however the text is cut.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What stands where a secret was.
pub const MASKED: &str = "********";

/// The shortest value, and the shortest part of one at a text's end, that is masked, in characters: shorter ones are in
/// ordinary words too.
const LENGTH_MIN: usize = 8;

/// The ends of the names of settings and variables whose values are secret. Django's own pattern for its error pages is
/// wider, and would mask `auth.User`.
pub const NAMES: &[&str] = &[
    "SECRET",
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "PASSWORD",
    "PASSWD",
    "TOKEN",
    "API_KEY",
    "ACCESS_KEY",
    "PRIVATE_KEY",
    "DSN",
];

/// The values that must not leave the host. Its `Debug` does not show them.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// These, and one more.
    pub fn and(&self, value: &str) -> Self {
        Self(self.0.iter().cloned().chain([value.to_owned()]).collect())
    }

    /// What masks them.
    pub fn mask(&self) -> Mask {
        Mask::new(self.0.iter().map(String::as_str))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secret(s)", self.0.len())
    }
}

/// All forms of all secrets, sorted, so that those which begin alike are side by side.
///
/// They are looked for as Wu and Manber do: the last two of as many bytes as the shortest form has say how far the next
/// form can be at the nearest, and in nearly all text that is nearly as far as these reach.
#[derive(Default)]
pub struct Mask {
    forms: Vec<String>,
    /// The length of the shortest form, in bytes.
    window: usize,
    /// By the two bytes at the end of a window: after how many bytes the next form can begin; 0: here.
    shifts: Vec<u8>,
}

impl Mask {
    /// For these values, each with its lines and in the forms that it takes in URLs, JSON and Python's `repr`.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut forms = BTreeSet::new();
        // As what is captured of them.
        let values: Vec<String> = values.into_iter().map(|value| value.replace('\0', "\u{fffd}")).collect();
        for line in values.iter().flat_map(|value| value.split(['\n', '\r'])) {
            // The armour of a PEM file says what the secret is, not what it says.
            let is_armour = line.starts_with("-----") && line.ends_with("-----");
            if line.chars().count() >= LENGTH_MIN && !is_armour {
                forms.extend(forms_of(line));
            }
        }
        let forms: Vec<String> = forms.into_iter().collect();
        let window = forms.iter().map(String::len).min().unwrap_or_default();
        let mut shifts = Vec::new();
        if !forms.is_empty() {
            let nearest = |distance: usize| u8::try_from(distance).unwrap_or(u8::MAX);
            shifts.resize(1 << 16, nearest(window - 1));
            for form in &forms {
                for (start, pair) in form.as_bytes()[..window].windows(2).enumerate() {
                    let shift = &mut shifts[index_of(pair)];
                    *shift = (*shift).min(nearest(window - 2 - start));
                }
            }
        }
        Self { forms, window, shifts }
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    /// The next position from `from` on at which a form may begin.
    fn candidate(&self, text: &[u8], from: usize) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let mut at = from;
        while let Some(window) = text.get(at..at + self.window) {
            match self.shifts[index_of(&window[self.window - 2..])] {
                0 => return Some(at),
                shift => at += usize::from(shift),
            }
        }
        (at < text.len()).then_some(at)
    }

    /// The forms that begin as `text` does, in its first two bytes or its only one.
    fn beginning_like<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let head = &text[..text.len().min(2)];
        let first = self.forms.partition_point(|form| &form.as_bytes()[..head.len()] < head);
        self.forms[first..].iter().map(String::as_bytes).take_while(move |form| form.starts_with(head))
    }
}

fn index_of(pair: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([pair[0], pair[1]]))
}

/// How a line of a secret may be written: as it is, percent-encoded, as JSON, as Python shows it.
fn forms_of(line: &str) -> [String; 9] {
    let percent = |unreserved: &str, digits: fn(u8) -> String| -> String {
        let keep = |b: u8| b.is_ascii_alphanumeric() || unreserved.as_bytes().contains(&b);
        line.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { digits(b) }).collect()
    };
    let (upper, lower) = (|b| format!("%{b:02X}"), |b| format!("%{b:02x}"));
    let escaped = |quote: bool, ascii: bool| -> String {
        let escape = |c: char| match c {
            '"' if quote => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            '\t' => "\\t".to_owned(),
            '\u{8}' => "\\b".to_owned(),
            '\u{c}' => "\\f".to_owned(),
            _ if c.is_ascii() && !c.is_ascii_control() || !ascii && !c.is_control() => c.to_string(),
            _ => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        };
        line.chars().map(escape).collect()
    };
    // RFC 3986 leaves these alone; Python's `quote` the slash too, JavaScript's `encodeURIComponent` some more.
    let [rfc, python, javascript] = ["-._~", "-._~/", "-._~!*'()"];
    [
        line.to_owned(),
        percent(rfc, upper),
        percent(python, upper),
        percent(javascript, upper),
        percent(rfc, lower),
        percent(python, upper).replace("%20", "+"),
        escaped(true, true),
        escaped(true, false),
        escaped(false, false),
    ]
}

/// Masks one stream of text.
pub struct Masker {
    mask: Arc<Mask>,
    /// What may be the beginning of a secret.
    held: String,
    /// So many bytes of it belong to a secret for which there is a mask already.
    covered: usize,
}

impl Masker {
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: String::new(), covered: 0 }
    }

    /// The masked text as far as it is clear, after `text` has come.
    pub fn feed(&mut self, text: String) -> String {
        let text = if self.held.is_empty() { text } else { std::mem::take(&mut self.held) + &text };
        self.advance(text, false)
    }

    /// What was held back, at the end of the stream. The beginning of a secret that was cut off is masked too, unless it
    /// is so short that it says nothing.
    pub fn finish(&mut self) -> String {
        let text = std::mem::take(&mut self.held);
        self.advance(text, true)
    }

    fn advance(&mut self, text: String, is_end: bool) -> String {
        let (mut masked, mut covered, mut hold) = (String::new(), self.covered, None);
        // What is before this is in `masked`, or behind a mask there.
        let mut done = covered;
        let mut from = 0;
        while let Some(at) = self.mask.candidate(text.as_bytes(), from).filter(|_| hold.is_none()) {
            let rest = &text.as_bytes()[at..];
            for form in self.mask.beginning_like(rest) {
                let is_cut_off = rest.len() < form.len() && form.starts_with(rest);
                if is_cut_off && !is_end {
                    hold = Some(at);
                }
                let says_much = || text[at..].chars().count() >= LENGTH_MIN;
                if rest.starts_with(form) || is_cut_off && is_end && says_much() {
                    if at >= covered {
                        masked.push_str(&text[done..at]);
                        masked.push_str(MASKED);
                    }
                    covered = covered.max(at + form.len().min(rest.len()));
                    done = covered;
                }
            }
            from = at + 1;
        }
        // Nearly always there is nothing to do.
        if hold.is_none() && covered == 0 {
            return text;
        }
        let hold = hold.unwrap_or(text.len());
        masked.push_str(text.get(done..hold).unwrap_or_default());
        self.held.push_str(&text[hold..]);
        self.covered = covered.saturating_sub(hold);
        masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(secrets: &[&str], pieces: &[&str]) -> String {
        masked_by(&Arc::new(Mask::new(secrets.iter().copied())), pieces)
    }

    fn masked_by(mask: &Arc<Mask>, pieces: &[&str]) -> String {
        let mut masker = Masker::new(Arc::clone(mask));
        let mut out: String = pieces.iter().map(|piece| masker.feed((*piece).to_owned())).collect();
        out.push_str(&masker.finish());
        out
    }

    #[test]
    fn every_form_of_a_secret_is_masked_and_nothing_else() {
        let secret = "p\u{e4}ss \"w\\/rd&";
        for form in [
            "p\u{e4}ss \"w\\/rd&",
            "p%C3%A4ss%20%22w%5C%2Frd%26",
            "p%c3%a4ss%20%22w%5c%2frd%26",
            "p%C3%A4ss%20%22w%5C/rd%26",
            "p%C3%A4ss+%22w%5C/rd%26",
            r#"p\u00e4ss \"w\\/rd&"#,
            "p\u{e4}ss \\\"w\\\\/rd&",
            "p\u{e4}ss \"w\\\\/rd&",
        ] {
            assert_eq!(masked(&[secret], &["user:", form, "@host\n"]), "user:********@host\n", "{form}");
        }
        for other in ["p\u{e4}ss", "p\u{e4}ss \"w\\/rd", "P\u{e4}ss \"w\\/rd&"] {
            assert_eq!(masked(&[secret], &[other, " "]), format!("{other} "));
        }
    }

    #[test]
    fn the_lines_of_a_value_are_masked_each_but_short_ones_and_armour_are_not() {
        let pem = "-----BEGIN KEY-----\nMIIEvQIBADANBg\r\nkqhkiG9w0BAQEF\nshort\n-----END KEY-----\n";
        assert_eq!(
            masked(&[pem], &["1: MIIEvQIBADANBg\n2: kqhkiG9w0BAQEF\n3: short\n-----END KEY-----\n"]),
            "1: ********\n2: ********\n3: short\n-----END KEY-----\n"
        );
        assert_eq!(masked(&["seven77"], &["seven77"]), "seven77");
    }

    #[test]
    fn where_secrets_overlap_all_of_them_is_behind_one_mask() {
        let secrets = ["abcdefgh", "efghijkl", "abcdefghijklmnop", "xxxxxxxx"];
        assert_eq!(masked(&secrets, &["<abcdefghijkl>"]), "<********>");
        assert_eq!(masked(&secrets, &["<abcdefghijklmnop>"]), "<********>");
        assert_eq!(masked(&secrets, &["<abcdefghijklmno>"]), "<********mno>");
        assert_eq!(masked(&secrets, &["xxxxxxxxxxx-xxxxxxx"]), "********-xxxxxxx");
        assert_eq!(masked(&secrets, &["xxxxxxxxxxxxxxxxxxx"]), "********");
    }

    #[test]
    fn what_cannot_begin_a_secret_is_not_held_back() {
        let mut masker = Masker::new(Arc::new(Mask::new(["secret-value"])));
        assert_eq!(masker.feed("Password: ".to_owned()), "Password: ");
        assert_eq!(masker.feed("the sec".to_owned()), "the ");
        assert_eq!(masker.feed("ond\nse".to_owned()), "second\n");
        assert_eq!(masker.finish(), "se");
    }

    #[test]
    fn a_secret_that_is_cut_off_at_the_end_is_masked_unless_little_of_it_is_there() {
        assert_eq!(masked(&["secret-value"], &["a secret-"]), "a secret-");
        assert_eq!(masked(&["secret-value"], &["a secret-v"]), "a ********");
        assert_eq!(masked(&["secret-value", "cret-value1"], &["a secret-cret-valu"]), "a secret-********");
    }

    /// Few letters, so that beginnings and overlaps abound; every way to cut in three.
    #[test]
    fn the_result_is_the_same_however_the_text_is_cut_and_holds_no_secret() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..40 {
            let mut text =
                |length: usize| -> String { (0..length).map(|_| ["a", "b", "\u{e4}"][random(3)]).collect() };
            let mut secrets: Vec<String> = (0..3).map(|n| text(8 + 3 * n)).collect();
            secrets.push(format!("{}{}", &secrets[0].clone(), text(6)));
            let pieces =
                [text(7), secrets[0].clone(), text(2), secrets[3].clone(), secrets[1].clone(), text(9)];
            let whole = pieces.concat();
            let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let mask = Arc::new(Mask::new(secrets.iter().copied()));
            let expected = masked_by(&mask, &[&whole]);
            assert!(secrets.iter().all(|secret| !expected.contains(secret)), "{expected} of {whole}");
            let cuts: Vec<usize> = (0..=whole.len()).filter(|at| whole.is_char_boundary(*at)).collect();
            for first in &cuts {
                for second in cuts.iter().filter(|second| *second >= first) {
                    let pieces = [&whole[..*first], &whole[*first..*second], &whole[*second..]];
                    assert_eq!(masked_by(&mask, &pieces), expected, "{whole} for {secrets:?}");
                }
            }
        }
    }
}
