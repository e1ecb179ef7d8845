//! Text of a page, and values of quoted attributes. Not for scripts, styles or addresses: nothing that an
//! attacker chose belongs there.

use super::terminal;

/// As [`terminal`] shows it, with the characters that mean something in HTML as character references.
#[must_use]
pub fn html(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 8);
    for c in terminal(bytes).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '`' => out.push_str("&#96;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::hostile::{SEEDS, assert_harmless, bytes, undo_terminal};
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(
            html(b"<img src=x onerror='a'>&\"`"),
            "&lt;img src=x onerror=&#39;a&#39;&gt;&amp;&quot;&#96;"
        );
    }

    #[test]
    fn no_markup_gets_through_and_text_can_be_read_back() {
        for seed in 0..SEEDS {
            let name = bytes(seed);
            let text = html(&name);
            assert_harmless(seed, &text);
            assert!(!text.contains(['<', '>', '"', '\'', '`']), "seed {seed}: {text}");
            let mut back = text;
            for (reference, c) in [
                ("&lt;", "<"),
                ("&gt;", ">"),
                ("&quot;", "\""),
                ("&#39;", "'"),
                ("&#96;", "`"),
                ("&amp;", "&"),
            ] {
                back = back.replace(reference, c);
            }
            assert_eq!(undo_terminal(&back), name, "seed {seed}");
        }
    }
}
