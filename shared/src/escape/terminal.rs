//! For a person's terminal, and the base of every format that a person reads. Output holds printable
//! characters only, and no two inputs look the same.

use std::fmt::Write;

/// For a person's terminal: printable text stays. `\n`, `\r`, `\t`; `\xNN` for every other ASCII control and
/// for every byte that is not UTF-8; `\u{…}` for what is invisible, directs text (bidi), combines with its
/// neighbour, is private or unassigned. A backslash is doubled, so that the original can be told from the output.
#[must_use]
pub fn terminal(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push(&mut out, c));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}"); // writing to a String can't fail
        }
    }
    out
}

fn push(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\\' => out.push_str("\\\\"),
        c if is_plain(c) => out.push(c),
        c if c.is_ascii() => {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
        c => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

/// Whether a character shows itself and changes nothing around it. The standard library's `escape_debug`
/// leaves exactly the characters alone that are assigned and neither control, format, private, separator
/// nor grapheme-extending; some letters that are drawn as nothing are named here.
fn is_plain(c: char) -> bool {
    match c {
        '\'' | '"' => true,
        // Hangul fillers and the empty Braille pattern: letters and symbols without ink.
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{2800}' => false,
        c => c.is_ascii_graphic() || c.escape_debug().len() == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::hostile::{SEEDS, assert_harmless, bytes, undo_terminal};
    use super::*;

    #[test]
    fn each_kind_of_trouble_is_shown() {
        for (input, expected) in [
            (&b"/var/www/a b.php"[..], "/var/www/a b.php"),
            (b"a\nb\r\tc\0", "a\\nb\\r\\tc\\x00"),
            (b"\x1b[31mred\x7f", "\\x1b[31mred\\x7f"),
            (b"\xc2\x9b31m", "\\u{9b}31m"),
            (b"\xff\xc0\xaf", "\\xff\\xc0\\xaf"),
            (b"a\\nb", "a\\\\nb"),
            ("gpj.\u{202e}exe".as_bytes(), "gpj.\\u{202e}exe"),
            ("\u{feff}\u{200b}\u{2028}\u{61c}".as_bytes(), "\\u{feff}\\u{200b}\\u{2028}\\u{61c}"),
            (
                "e\u{301}\u{e000}\u{378}\u{a0}\u{3164}".as_bytes(),
                "e\\u{301}\\u{e000}\\u{378}\\u{a0}\\u{3164}",
            ),
            ("ü 日本 😀 \"q\" 'q'".as_bytes(), "ü 日本 😀 \"q\" 'q'"),
        ] {
            assert_eq!(terminal(input), expected);
        }
    }

    #[test]
    fn every_name_is_harmless_and_can_be_read_back() {
        for seed in 0..SEEDS {
            let name = bytes(seed);
            let text = terminal(&name);
            assert_harmless(seed, &text);
            assert_eq!(undo_terminal(&text), name, "seed {seed}: {text}");
        }
    }
}
