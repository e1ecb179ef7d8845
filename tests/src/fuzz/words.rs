//! Sources of rules, from chance: patterns of every sort, conditions within conditions, modules. Mostly valid.

use super::bytes::one_of;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::fmt::Write as _;

/// Conditions within conditions.
const DEPTH_MAX: u32 = 5;

/// What the language is made of.
pub const WORDS: &[&[u8]] = &[
    b"rule ",
    b"private ",
    b"global ",
    b"meta:",
    b"strings:",
    b"condition:",
    b"import \"pe\"\n",
    b"include \"/etc/passwd\"\n",
    b" and ",
    b" or ",
    b"not ",
    b"defined ",
    b"for all i in (0..filesize) : ( ",
    b"for any of them : ( $ ",
    b"any of them",
    b"all of ($*)",
    b"none of ",
    b"filesize",
    b"entrypoint",
    b"uint32(",
    b"$",
    b"#a",
    b"@a[",
    b"!a[",
    b" at ",
    b" in (0..",
    b"{ ?? [0-] ?? }",
    b"{ ( 00 | 01 ) ~00 }",
    b"/(a+)+$/",
    b"/a{0,65535}/",
    b"/\\x00*?/s",
    b"nocase ",
    b"wide ",
    b"xor(0-255)",
    b"base64(\"",
    b"fullword",
    b" matches /",
    b" contains \"",
    b" << ",
    b" % 0",
    b"-9223372036854775808",
    b"0xffffffffffffffff",
    b"1KB",
    b"9999999999MB",
    b"with x = 1 : ( ",
    b"pe.sections[",
    b"hash.md5(0, filesize)",
    b"math.entropy(",
    b"\xff\xfe",
    b"/*",
    b"*/",
    b"//",
    b"\"",
    b"\\",
    b"(",
    b")",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\n",
];

/// One file of rules.
pub fn rules(random: &mut StdRng) -> Vec<u8> {
    let mut out = String::new();
    for module in ["pe", "elf", "math", "hash", "dotnet", "macho", "lnk", "dex", "zip", "string", "time"] {
        if random.random_bool(0.5) {
            let _ = writeln!(out, "import \"{module}\"");
        }
    }
    for number in 0..random.random_range(1..4) {
        rule(random, &mut out, number);
    }
    out.into_bytes()
}

fn rule(random: &mut StdRng, out: &mut String, number: u32) {
    out.push_str(one_of(random, &["", "", "", "private ", "global "]));
    let _ = writeln!(out, "rule r{number} {}{{", one_of(random, &["", ": tag other "]));
    if random.random_bool(0.3) {
        out.push_str("  meta:\n    a = \"text\"\n    b = -5\n    severity = \"high\"\n");
    }
    out.push_str("  strings:\n");
    for name in ["a", "b", "c"] {
        let _ = writeln!(out, "    ${name} = {}", pattern(random));
    }
    out.push_str("  condition:\n    ");
    condition(random, out, number, 0);
    out.push_str(" or any of them\n}\n");
}

fn pattern(random: &mut StdRng) -> String {
    let text = one_of(random, &["needle", "a\\x00b\\n", "longer text with words", "ab"]);
    match random.random_range(0..4) {
        0 => {
            let hex =
                ["4D 5A ?? 5", "E? [2-4] ( 01 02 | 03 ?? ) ", "~00 11 22 [4-] 33", "90 [-] 90 90 90 90"];
            let hex = one_of(random, &hex).trim_end_matches(" 5");
            format!("{{ 41 42 43 44 {hex} }}")
        }
        1 => {
            let part = [
                "abcd[0-9]{2,8}",
                "(foo|ba+r)?end",
                "https?:\\/\\/[a-z.]{3,60}\\/x",
                "\\bword\\b.{0,40}tail",
                "^head.*?tail$",
            ];
            format!("/{}/{}", one_of(random, &part), one_of(random, &["", "i", "s", "is"]))
        }
        _ => {
            let flags = [
                "",
                "nocase",
                "wide ascii",
                "fullword",
                "xor",
                "xor(1-9)",
                "base64",
                "base64wide",
                "private",
                "nocase wide",
            ];
            format!("\"{text}\" {}", one_of(random, &flags))
        }
    }
}

fn condition(random: &mut StdRng, out: &mut String, rule: u32, depth: u32) {
    if depth >= DEPTH_MAX || random.random_bool(0.3) {
        return out.push_str(&leaf(random, rule));
    }
    match random.random_range(0..5) {
        0 => {
            out.push_str("not (");
            condition(random, out, rule, depth + 1);
        }
        1 => {
            let _ = write!(out, "for any i in (0..{}) : (", random.random_range(1..20));
            condition(random, out, rule, depth + 1);
            out.push_str(" and uint8(i) == i");
        }
        2 => {
            out.push_str("with n = filesize : ( n > 3 and ");
            condition(random, out, rule, depth + 1);
        }
        _ => {
            out.push('(');
            condition(random, out, rule, depth + 1);
            out.push_str(one_of(random, &[" and ", " or "]));
            condition(random, out, rule, depth + 1);
        }
    }
    out.push(')');
}

fn leaf(random: &mut StdRng, rule: u32) -> String {
    match random.random_range(0..14) {
        0 => "$a at 0".into(),
        1 => format!("#b > {}", random.random_range(-1..5)),
        2 => "@c[1] < filesize \\ 2".into(),
        3 => "2 of ($a, $b, $c)".into(),
        4 => "50% of them".into(),
        5 => format!(
            "uint{}{}(0) == {}",
            one_of(random, &[8, 16, 32]),
            one_of(random, &["", "be"]),
            random.random::<u32>()
        ),
        6 => "for all of them : ( # > 1 and @ > 4 )".into(),
        7 => "pe.number_of_sections > 3".into(),
        8 => "math.entropy(0, filesize) > 7.0".into(),
        9 => "for any s in elf.sections : ( s.name == \".text\" )".into(),
        10 if rule > 0 => "r0".into(),
        11 => "filesize < 10MB and \"abc\" contains \"b\"".into(),
        12 => "hash.md5(0, 4) == \"d41d8cd98f00b204e9800998ecf8427e\"".into(),
        _ => "$a in (0..1024)".into(),
    }
}
