//! Common Event Format: `CEF:0|vendor|product|…|severity|key=value key=value`.

use super::{backslashed, terminal};

/// A field of the header: as [`terminal`] shows it, with `\` and `|` escaped.
#[must_use]
pub fn cef_header(bytes: &[u8]) -> String {
    backslashed(&terminal(bytes), &['\\', '|'])
}

/// A value of the extension: as [`terminal`] shows it, with `\` and `=` escaped, so that a value never
/// starts another key.
#[must_use]
pub fn cef_extension(bytes: &[u8]) -> String {
    backslashed(&terminal(bytes), &['\\', '='])
}

#[cfg(test)]
mod tests {
    use super::super::hostile::{SEEDS, assert_harmless, bytes, undo_backslashes, undo_terminal};
    use super::*;

    /// Whether `special` stands anywhere in `text` without a backslash that belongs to it.
    fn bare(text: &str, special: char) -> bool {
        let mut escaped = false;
        text.chars().any(|c| {
            let found = !escaped && c == special;
            escaped = !escaped && c == '\\';
            found
        })
    }

    #[test]
    fn separators_are_escaped() {
        assert_eq!(cef_header(b"a|b\\c=d"), "a\\|b\\\\\\\\c=d");
        assert_eq!(cef_extension(b"a|b c=d\n"), "a|b c\\=d\\\\n");
    }

    #[test]
    fn no_separator_gets_through_and_values_can_be_read_back() {
        for seed in 0..SEEDS {
            let name = bytes(seed);
            let (header, extension) = (cef_header(&name), cef_extension(&name));
            assert!(!bare(&header, '|') && !bare(&extension, '='), "seed {seed}");
            for text in [header, extension] {
                assert_harmless(seed, &text);
                assert_eq!(undo_terminal(&undo_backslashes(&text)), name, "seed {seed}: {text}");
            }
        }
    }
}
