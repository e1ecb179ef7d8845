//! File names that formats, terminals, shells and spreadsheets trip over. One table for all: unit-level tests
//! and end-to-end tests take it from here. Every name can exist on Linux: 1 to 255 bytes, no `/`, no NUL.

/// What is wrong with it, and its bytes. No two names are the same.
#[must_use]
pub fn names() -> Vec<(&'static str, Vec<u8>)> {
    let mut names: Vec<(&'static str, Vec<u8>)> =
        TABLE.iter().map(|(what, name)| (*what, name.to_vec())).collect();
    names.extend(TEXTS.iter().map(|(what, name)| (*what, name.as_bytes().to_vec())));
    names.push(("255 bytes", vec![b'a'; 255]));
    names.push(("255 bytes of invalid UTF-8", vec![0xff; 255]));
    names.push(("255 bytes of newlines", vec![b'\n'; 255]));
    names.push(("cut in the middle of a character at 255", [&[b'a'; 253][..], b"\xe2\x82"].concat()));
    names.push(("every byte that a name may have", (1..=255).filter(|byte| *byte != b'/').collect()));
    names
}

/// Bytes, where a text would not do.
const TABLE: [(&str, &[u8]); 22] = [
    ("newline", b"a\nb"),
    ("newline at the end", b"ends\n"),
    ("carriage return hides the line", b"evil.sh\rgood.txt"),
    ("carriage return and newline", b"a\r\nb"),
    ("tab", b"a\tb"),
    ("bell and backspace", b"a\x07b\x08c"),
    ("delete", b"a\x7fb"),
    ("vertical tab and form feed", b"a\x0bb\x0cc"),
    ("colour", b"\x1b[31mred\x1b[0m"),
    ("clear the screen", b"\x1b[2J\x1b[H"),
    ("OSC 8 link", b"\x1b]8;;http:example.invalid\x1b\\here\x1b]8;;\x1b\\"),
    ("OSC 52 clipboard", b"\x1b]52;c;aWQ=\x07"),
    ("invalid: lone 0xff", b"a\xffb"),
    ("invalid: lone continuation byte", b"a\x80b"),
    ("invalid: cut character", b"a\xe2\x82"),
    ("invalid: overlong slash", b"..\xc0\xaf..\xc0\xaf"),
    ("invalid: overlong NUL", b"a\xc0\x80b"),
    ("invalid: surrogate", b"a\xed\xa0\x80b"),
    ("invalid: surrogate pair (CESU-8)", b"\xed\xa0\xbd\xed\xb8\x80"),
    ("invalid: above U+10FFFF", b"a\xf4\x90\x80\x80b"),
    ("invalid: Latin-1", b"caf\xe9"),
    ("invalid: UTF-16 byte order mark", b"\xff\xfea"),
];

/// The rest is UTF-8.
const TEXTS: [(&str, &str); 42] = [
    ("C1 control sequence introducer", "a\u{9b}31mb"),
    ("C1 next line", "a\u{85}b"),
    ("bidi override", "invoice\u{202e}fdp.sh"),
    ("bidi isolate", "a\u{2066}b\u{2069}c"),
    ("left-to-right and right-to-left marks", "a\u{200e}b\u{200f}c\u{61c}d"),
    ("zero-width space and joiner", "a\u{200b}b\u{200d}c"),
    ("line separator", "a\u{2028}b"),
    ("paragraph separator", "a\u{2029}b"),
    ("byte order mark", "\u{feff}a"),
    ("no-break space", "a\u{a0}b"),
    ("soft hyphen", "a\u{ad}b"),
    ("private use", "a\u{e000}b"),
    ("not a character", "a\u{ffff}b"),
    ("tag characters", "a\u{e0041}\u{e0042}"),
    ("Hangul filler", "\u{3164}"),
    ("combining marks", "Z\u{351}\u{36b}\u{343}algo"),
    ("composed and decomposed", "é e\u{301}"),
    ("emoji", "😀👩\u{200d}💻.txt"),
    ("replacement character, honestly", "a\u{fffd}b"),
    ("Cyrillic look-alike", "\u{440}asswd"),
    ("double quote", "a\"b"),
    ("single quote", "a'b"),
    ("backslash", "a\\b"),
    ("backslash at the end", "a\\"),
    ("looks escaped already", "a\\nb\\x41\\u{202e}"),
    ("script tag", "<script>alert(1)<script>"),
    ("attribute breaker", "\" onmouseover=\"alert(1)"),
    ("HTML entity", "&lt;b&gt;"),
    ("formula", "=cmd|' -C calc'!A0"),
    ("formula with at", "@SUM(1+1)*cmd"),
    ("leading plus", "+1"),
    ("leading dash", "-rf"),
    ("two leading dashes", "--help"),
    ("command substitution", "$(touch PWNED)"),
    ("backticks", "`touch PWNED`"),
    ("shell separators", "; touch PWNED & | cat"),
    ("spaces all around", "  a  b  "),
    ("closing bracket", "a\"] b=\"c"),
    ("pipe and equals", "a|b=c cs1=d"),
    ("format string", "%n%s%x"),
    ("looks deleted", "a (deleted)"),
    ("JSON breaker", "\"}\n{\"event.id\":\"forged\"}"),
];
