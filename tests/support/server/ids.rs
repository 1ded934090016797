//! UUIDs: what counts as one, and fresh ones.

use std::fs::File;
use std::io::Read;

use crate::support::canonical::hex;

/// Eight, four, four, four and twelve hexadecimal digits of either case.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, character)| match at {
            8 | 13 | 18 | 23 => character == '-',
            _ => character.is_ascii_hexdigit(),
        })
}

pub(super) fn is_uuid_v4(text: &str) -> bool {
    is_uuid(text)
        && !text.contains(|character: char| character.is_ascii_uppercase())
        && text[14..].starts_with('4')
        && text[19..].starts_with(['8', '9', 'a', 'b'])
}

/// A random id as the service gives them out; also good as a nonce.
pub(crate) fn fresh_uuid_v4() -> String {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).unwrap();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
