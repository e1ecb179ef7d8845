//! Attacker's bytes made harmless, by format. The only place that does it.
//!
//! Every function takes bytes as they came (a name, an argument, a rule's text), promises that its output
//! holds no control byte, and fails on nothing. Formats that a person reads are built on `terminal`, so
//! that one name looks the same everywhere. Output goes to terminals, sinks and log lines, never back into the path.

/// Common Event Format.
mod cef;
/// Comma-separated values that a spreadsheet opens.
mod csv;
/// Text and attribute values of a page.
mod html;
/// The content of a JSON string.
mod json;
/// RFC 5424.
mod syslog;
/// What a person reads.
mod terminal;

pub use cef::{cef_extension, cef_header};
pub use csv::csv;
pub use html::html;
pub use json::json;
pub use syslog::{
    SYSLOG_APP_NAME_MAX, SYSLOG_HOSTNAME_MAX, SYSLOG_MSGID_MAX, SYSLOG_PROCID_MAX, syslog_header,
    syslog_hostname, syslog_param,
};
pub use terminal::terminal;

/// `text` with a backslash before each character of `special`.
fn backslashed(text: &str, special: &[char]) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if special.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Bytes that are likely to hurt, by seed, and what tests share about them.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod hostile {
    /// How many seeds a promise is tried on.
    pub(crate) const SEEDS: u64 = 4000;

    /// Pieces that formats trip over; names are random runs of them and of random bytes.
    const PIECES: [&[u8]; 44] = [
        b"\n",
        b"\r",
        b"\t",
        b"\0",
        b"\x1b[31m",
        b"\x1b]8;;http://x\x07",
        b"\x7f",
        b"\x07",
        b"\\",
        b"\\n",
        b"\\x41",
        b"\"",
        b"'",
        b"]",
        b"|",
        b"=",
        b"+",
        b"-",
        b"@",
        b",",
        b";",
        b"<script>",
        b"&amp;",
        b"`id`",
        b"$(id)",
        b"%n",
        b" ",
        b"a",
        b"name.php",
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\xc2\x85",
        b"\xc2\x9b",
        "\u{202e}".as_bytes(),
        "\u{2028}".as_bytes(),
        "\u{feff}".as_bytes(),
        "\u{e000}".as_bytes(),
        "é".as_bytes(),
        "e\u{301}".as_bytes(),
        "😀".as_bytes(),
        "＝".as_bytes(),
    ];

    /// splitmix64: small, and the same on every machine.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        pub(crate) fn below(&mut self, end: usize) -> usize {
            usize::try_from(self.next() % end.max(1) as u64).unwrap()
        }
    }

    /// The name of a seed: up to about 100 bytes of trouble.
    pub(crate) fn bytes(seed: u64) -> Vec<u8> {
        let mut random = Random(seed);
        let mut out = Vec::new();
        for _ in 0..random.below(12) {
            match random.below(4) {
                0 => out.push(random.next().to_le_bytes()[0]),
                1 => out.extend(
                    char::from_u32(u32::try_from(random.below(0x11_0000)).unwrap())
                        .map(String::from)
                        .unwrap_or_default()
                        .bytes(),
                ),
                _ => out.extend_from_slice(PIECES[random.below(PIECES.len())]),
            }
        }
        out
    }

    /// Fails with the seed when `text` holds a control or an invisible character that directs text.
    pub(crate) fn assert_harmless(seed: u64, text: &str) {
        for c in text.chars() {
            let directs = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
            assert!(!c.is_control() && !directs, "seed {seed}: {c:?} in {text:?}");
        }
    }

    /// Undoes [`super::terminal`]. Written from its description, not from its code.
    pub(crate) fn undo_terminal(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '\\' {
                out.extend(c.to_string().bytes());
                continue;
            }
            let (kind, after) = rest.split_at(1);
            rest = after;
            match kind {
                "n" => out.push(b'\n'),
                "r" => out.push(b'\r'),
                "t" => out.push(b'\t'),
                "\\" => out.push(b'\\'),
                "x" => {
                    out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                    rest = &rest[2..];
                }
                "u" => {
                    let (number, after) = rest.strip_prefix('{').unwrap().split_once('}').unwrap();
                    out.extend(
                        char::from_u32(u32::from_str_radix(number, 16).unwrap()).unwrap().to_string().bytes(),
                    );
                    rest = after;
                }
                other => panic!("no such escape: {other}"),
            }
        }
        out
    }

    /// Undoes [`super::backslashed`].
    pub(crate) fn undo_backslashes(text: &str) -> String {
        let mut out = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            out.push(if c == '\\' { chars.next().unwrap() } else { c });
        }
        out
    }
}
