//! The content of a JSON string (RFC 8259 §7) as pure ASCII, so that no reader, terminal or log pipeline
//! on the way has to be trusted with anything else.

use std::fmt::Write;

/// What belongs between the quotes of a JSON string: pure ASCII without control bytes. Everything else is
/// `\uXXXX`, above U+FFFF as a surrogate pair. Any JSON reader gives back exactly `text`.
#[must_use]
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}"); // writing to a String can't fail
            }),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::hostile::{SEEDS, bytes};
    use super::*;

    #[test]
    fn what_lies_outside_ascii_becomes_its_utf16_units() {
        assert_eq!(json("a\"\\\n\u{7f}\u{1b}é😀"), "a\\\"\\\\\\n\\u007f\\u001b\\u00e9\\ud83d\\ude00");
    }

    #[test]
    fn a_json_reader_gives_back_every_text() {
        for seed in 0..SEEDS {
            let text = String::from_utf8_lossy(&bytes(seed)).into_owned();
            let content = json(&text);
            assert!(content.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "seed {seed}: {content}");
            assert_eq!(
                serde_json::from_str::<String>(&format!("\"{content}\"")).unwrap(),
                text,
                "seed {seed}"
            );
        }
    }
}
