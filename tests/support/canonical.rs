//! The canonical JSON of a command list and its hash, bit for bit as Python's `json` module writes them.
//!
//! serde_json refuses half a surrogate pair (`"\udc80"`), which Python lets through and a help text may hold. Such a
//! half is kept, while it is in Rust, as a character of the last private plane that no test uses.

use std::fmt::Write;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Where the 2,048 surrogates stay while they are in a Rust string.
const REFUGE: u32 = 0x10_F800;

/// Reads JSON that may hold unpaired surrogates.
pub(crate) fn parse(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(&hide_lone_surrogates(text))
}

/// The hash of a command list: what the service answers to a sync.
pub(crate) fn commands_hash(commands: &[Value]) -> String {
    let mut sorted: Vec<&Value> = commands.iter().collect();
    sorted.sort_by_key(|command| command["name"].as_str().unwrap_or("").to_owned());
    let texts: Vec<String> = sorted.into_iter().map(canonical).collect();
    format!("sha256:{}", hex(&Sha256::digest(format!("[{}]", texts.join(",")))))
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn canonical(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{}:{}", quoted(name), canonical(value))).collect();
            format!("{{{}}}", fields.join(","))
        }
        other => other.to_string(),
    }
}

/// Python's `ensure_ascii`: all but space to tilde is escaped, which includes DEL.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(character),
            hidden if u32::from(hidden) >= REFUGE => {
                write!(out, "\\u{:04x}", u32::from(hidden) - REFUGE + 0xd800).unwrap();
            }
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").unwrap();
                }
            }
        }
    }
    out + "\""
}

fn hide_lone_surrogates(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match (unit(rest), rest.get(6..).and_then(unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(lone @ 0xd800..=0xdfff), _) => {
                out.extend(char::from_u32(u32::from(lone) - 0xd800 + REFUGE));
                rest = &rest[6..];
                continue;
            }
            (Some(_), _) => 6,
            // An escape of two characters; what is no escape at all is left to the parser to refuse.
            (None, _) => rest.char_indices().nth(2).map_or(rest.len(), |(end, _)| end),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out + rest
}

/// The UTF-16 unit of the `\uXXXX` with which `text` begins.
fn unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}
