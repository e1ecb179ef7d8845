//! Comma-separated values (RFC 4180) that a person will open in a spreadsheet.

use super::terminal;

/// First characters that make a spreadsheet compute, also as full-width forms. Tab and carriage return,
/// which do so too, are already shown as `\t` and `\r`. The apostrophe is here so that the mark can be undone.
const FORMULA_STARTS: [char; 9] = ['=', '+', '-', '@', '＝', '＋', '－', '＠', '\''];

/// One field with its quotes: as [`terminal`] shows it, quotes doubled, and an apostrophe before whatever a
/// spreadsheet would take for a formula.
#[must_use]
pub fn csv(bytes: &[u8]) -> String {
    let text = terminal(bytes);
    let mark = if text.trim_start().starts_with(FORMULA_STARTS) { "'" } else { "" };
    format!("\"{mark}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::hostile::{SEEDS, assert_harmless, bytes, undo_terminal};
    use super::*;

    #[test]
    fn formulas_become_text() {
        for (input, expected) in [
            ("a,\"b\"", "\"a,\"\"b\"\"\""),
            ("=cmd|' /C calc'!A0", "\"'=cmd|' /C calc'!A0\""),
            ("  =1+1", "\"'  =1+1\""),
            ("\t=1", "\"\\t=1\""),
            ("＝1", "\"'＝1\""),
            ("'a", "\"''a\""),
            ("", "\"\""),
        ] {
            assert_eq!(csv(input.as_bytes()), expected);
        }
    }

    #[test]
    fn a_field_is_one_field_and_can_be_read_back() {
        for seed in 0..SEEDS {
            let name = bytes(seed);
            let field = csv(&name);
            assert_harmless(seed, &field);
            let inner = field.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
            assert!(!inner.replace("\"\"", "").contains('"'), "seed {seed}: {field}");
            let text = inner.replace("\"\"", "\"");
            assert!(
                !text.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']),
                "seed {seed}: {field}"
            );
            assert_eq!(undo_terminal(text.strip_prefix('\'').unwrap_or(&text)), name, "seed {seed}: {field}");
        }
    }
}
