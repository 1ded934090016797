//! What must hold for every input of the parts that read what strangers write. The fuzz targets in `fuzz/` look for an
//! input that breaks it; the tests try some thousand at random.

use std::sync::Arc;

use crate::api;
use crate::execution::{Offer, words};
use crate::mask::{Mask, Masker};
use crate::shim::text_of;

/// The longest text of an answer that is kept, in characters, besides its command and arguments.
const KEPT_MAX: usize = 300;

/// No answer makes a panic, nor values that are larger than what is done with them allows.
pub fn answers(body: &[u8]) {
    if let Ok(heartbeat) = api::parse_heartbeat(body) {
        assert!(heartbeat.suspended.is_none_or(|reason| reason.chars().count() <= KEPT_MAX));
    }
    if let Ok((_, hash)) = api::parse_sync(body) {
        assert!(hash.is_none_or(|hash| !hash.is_empty() && hash.len() <= KEPT_MAX));
    }
    let _ = api::parse_cancel_wish(body);
    for entry in api::parse_pending(body).unwrap_or_default() {
        let Ok(offer) = Offer::parse(&entry) else { continue };
        let name = offer.id.canonical();
        assert!(name.len() == 36 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-')));
        assert!(offer.command.len() <= 1024);
        if let Ok(request) = offer.request {
            assert!(request.timeout.is_none_or(|limit| !limit.is_zero()));
        }
    }
}

/// What is split can be quoted and split again, and words have no more text than there was.
pub fn words(text: &[u8]) {
    let Ok(words) = words::split(&String::from_utf8_lossy(text)) else { return };
    let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
    assert_eq!(words::split(&quoted.join(" ")).as_ref(), Ok(&words));
}

/// A command's output is the same text however it comes, and clean. The first two bytes say where it is cut.
pub fn lines(data: &[u8]) {
    let Some(([first, second], output)) = data.split_first_chunk() else { return };
    let cut = |at: &u8| usize::from(*at).min(output.len());
    let (first, second) = (cut(first).min(cut(second)), cut(first).max(cut(second)));
    let whole = text_of(&[output], Mask::default());
    let pieces = [&output[..first], &output[first..second], &output[second..]];
    assert_eq!(text_of(&pieces, Mask::default()), whole);
    let bytes: Vec<&[u8]> = output.chunks(1).collect();
    assert_eq!(text_of(&bytes, Mask::default()), whole);
    assert!(!whole.contains(['\r', '\0']));
}

/// No secret is in what was masked, however secret and text are made and cut. Lines that begin with `=` are secrets, the
/// others are the text; the first byte says how long the pieces are.
pub fn mask(data: &[u8]) {
    let Some((length, input)) = data.split_first() else { return };
    let input = String::from_utf8_lossy(input);
    let (secrets, lines): (Vec<&str>, Vec<&str>) = input.split('\n').partition(|line| line.starts_with('='));
    // The lines of a secret are known each by itself, and what was captured holds neither `\r` nor NUL.
    let secrets: Vec<&str> = secrets.iter().flat_map(|line| line[1..].split('\r')).collect();
    let captured = |text: &str| text.replace('\r', "\n").replace('\0', "\u{fffd}");
    let text = captured(&lines.join("\n"));
    let mask = Arc::new(Mask::new(secrets.iter().copied()));
    let masked = |pieces: &[String]| -> String {
        let mut masker = Masker::new(Arc::clone(&mask));
        let mut out: String = pieces.iter().map(|piece| masker.feed(piece.clone())).collect();
        out.push_str(&masker.finish());
        out
    };
    let whole = masked(std::slice::from_ref(&text));
    let length = usize::from(*length).max(1);
    let chars: Vec<char> = text.chars().collect();
    let pieces: Vec<String> = chars.chunks(length).map(|piece| piece.iter().collect()).collect();
    assert_eq!(masked(&pieces), whole);
    // A secret with an asterisk may come about between masks.
    let is_known =
        |secret: &&&str| secret.chars().count() >= 8 && !secret.contains('*') && !secret.ends_with("-----");
    let said = secrets.iter().filter(is_known).find(|secret| whole.contains(&captured(secret)));
    assert_eq!(said, None, "in {whole:?}");
}

#[cfg(test)]
mod tests {
    /// Runs a property on inputs that are put together at random from pieces that matter to it.
    fn hold(property: fn(&[u8]), pieces: &[&[u8]]) {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for _ in 0..3000 {
            let length = random(30);
            let mut input = vec![u8::try_from(random(256)).unwrap(), u8::try_from(random(60)).unwrap()];
            for _ in 0..length {
                match random(12) {
                    0 => input.push(u8::try_from(random(256)).unwrap()),
                    _ => input.extend_from_slice(pieces[random(pieces.len())]),
                }
            }
            property(&input);
            property(&input[2..]);
        }
    }

    #[test]
    fn answers() {
        let entry =
            br#"{"id":"0a1b2c3d-3d0e-4b1c-9a77-1f2e3d4c5b6a","command":"check","args":"","timeout":1.5}"#;
        let pieces: &[&[u8]] = &[
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"\"",
            b"null",
            b"true",
            b"1e400",
            b"-0",
            b"\"executions\":[",
            entry,
            b"\"id\":",
            b"\"command\":\"x\"",
            b"\"args\":",
            b"\"timeout\":",
            b"\"commands_hash\":\"x\"",
            b"\"runner_state\":\"suspended\"",
            b"\"suspension_reason\":\"\\ud800\"",
            b"\"cancel_requested\":true",
            b"\\u0000",
            b"\\",
            b"../",
        ];
        hold(super::answers, pieces);
    }

    #[test]
    fn words() {
        hold(
            super::words,
            &[b"'", b"\"", b"\\", b" ", b"\n", b"\t", b"a", b"\xc3\xa4", b"$", b"--x=", b"\0"],
        );
    }

    #[test]
    fn lines() {
        hold(
            super::lines,
            &[b"\n", b"\r", b"\r\n", b"a", b"\xc3", b"\xa4", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\0"],
        );
    }

    #[test]
    fn mask() {
        hold(
            super::mask,
            &[b"\n=", b"\n", b"abab", b"abababab", b"b", b"%20", b" ", b"\"", b"\\", b"\xc3\xa4", b"-----"],
        );
    }
}
