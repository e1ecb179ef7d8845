//! Attacker's bytes made harmless, by format. The only place that does it.

/// For a person's terminal: printable text stays, everything else becomes `\xNN`, `\n`, `\u{202e}` and so on.
#[must_use]
pub fn terminal(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
