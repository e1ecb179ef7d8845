//! Random rules over random small files: what matches with all rules is what matches with those of the file's class.

#![allow(clippy::unwrap_used)]

use super::classes::Class;
use super::compare::{Both, Names, Scanners};
use crate::worker::compile::compile;
use crate::worker::messages::RuleFile;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::fmt::Write as _;

/// Rule sets that are made up; each is a seed.
const SEEDS: u64 = 60;
/// Files of rules in each, and rules in each file at most.
const FILES_MAX: usize = 3;
const RULES_MAX: usize = 9;
/// Files that each is tried on.
const SCANS: usize = 120;
/// Files that everything which may gate is tried on.
const BEGINNINGS: usize = 1500;

const NUMBERS: [&str; 16] = [
    "uint16(0) == 0x5A4D",
    "uint16be(0) != 0x4D5A",
    "0x464c457f == uint32(0)",
    "uint32be(0) == 0xCAFEBABE",
    "uint16(0) == 0x4B50",
    "uint32(0) & 0xFFFF == 0xCFD0",
    "int8(0) == 0x4D",
    "int16(0) == -12290",
    "uint8(1) == 0x5A",
    "uint16(2) == 0x0403",
    "uint32(0) == 0x12345678",
    "uint8(0) & 0xF0 == 0x40",
    "uint16(0) > 0x5000",
    "uint32(0) == 0x0A786564",
    "uint16(filesize - 2) == 0x5A4D",
    "uint16(0) == 0x2123",
];
const VALUES: [&str; 24] = [
    "pe.is_pe",
    "pe.number_of_sections == 0",
    "pe.number_of_sections != 1",
    "pe.machine == pe.MACHINE_I386",
    "pe.MACHINE_I386 == 332",
    "pe.imports(\"kernel32.dll\") == 0",
    "pe.exports(\"x\")",
    "for all s in pe.sections : (s.name == \"x\")",
    "for none s in pe.sections : (s.name == \"x\")",
    "for any i in (0..pe.number_of_sections) : (i == 0)",
    "pe.sections[0].name == \"x\"",
    "pe.is_32bit()",
    "uint8(pe.entry_point) == 0x4D",
    "$a at pe.entry_point",
    "dotnet.is_dotnet",
    "elf.type == elf.ET_EXEC",
    "elf.number_of_sections == 0",
    "elf.telfhash() == \"x\"",
    "macho.cputype == 7",
    "macho.has_import(\"x\")",
    "lnk.is_lnk",
    "dex.is_dex",
    "math.abs(1) == 1",
    "pe.version_info[\"x\"] contains \"y\"",
];
const PATTERNS: [&str; 14] = [
    "$a",
    "$a at 0",
    "$h at 0",
    "$n at 0",
    "$w at 0",
    "$h at 2",
    "any of them at 0",
    "any of ($a, $h) at 0",
    "all of ($a*)",
    "none of ($a, $n) at 0",
    "2 of them",
    "for any of ($a, $h) : ($ at 0)",
    "for all i in (0..1) : (uint8(i) == 0x4D)",
    "@a == 0",
];
const STRINGS: &str =
    r#"strings: $a = "MZ" $h = { 7F 45 ?C 46 } $n = "pK" nocase $w = "MZ" wide $d = "dex\n" xor"#;

struct Maker {
    random: StdRng,
    names: Vec<String>,
}

impl Maker {
    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.random.random_range(0..of.len())]
    }

    fn condition(&mut self, depth: usize) -> String {
        let leaf = depth == 0 || self.random.random_ratio(1, 4);
        match self.random.random_range(0..if leaf { 12 } else { 20 }) {
            0..5 => self.one(&NUMBERS).to_owned(),
            5..8 => self.one(&PATTERNS).to_owned(),
            8..11 => self.reference().unwrap_or_else(|| self.one(&VALUES).to_owned()),
            11 => self.one(&["true", "false", "filesize < 9", "filesize > 40"]).to_owned(),
            12..15 => format!("({} and {})", self.condition(depth - 1), self.condition(depth - 1)),
            15..17 => format!("({} or {})", self.condition(depth - 1), self.condition(depth - 1)),
            17 => format!("not ({})", self.condition(depth - 1)),
            18 => format!("defined ({})", self.condition(depth - 1)),
            _ => {
                let quantifier = self.one(&["any", "all", "none", "1", "2", "0"]);
                format!("{quantifier} of ({}, {})", self.condition(depth - 1), self.condition(depth - 1))
            }
        }
    }

    fn reference(&mut self) -> Option<String> {
        if self.names.is_empty() || self.random.random_ratio(1, 2) {
            return None;
        }
        let index = self.random.random_range(0..self.names.len());
        Some(self.names[index].clone())
    }

    fn file(&mut self, name: usize) -> RuleFile {
        self.names.clear();
        let mut text = imports();
        for _ in 0..self.random.random_range(1..=RULES_MAX) {
            let global = if self.random.random_ratio(1, 12) { "global " } else { "" };
            let private = if self.random.random_ratio(1, 5) { "private " } else { "" };
            let name = format!("r{}", self.names.len());
            let condition = self.condition(3);
            text += &rule(&format!("{global}{private}"), &name, &condition);
            self.names.push(name);
        }
        RuleFile { name: format!("f{name}"), text: text.into_bytes() }
    }

    /// A beginning that a class has, or nearly, and some bytes.
    fn bytes(&mut self) -> Vec<u8> {
        let prefixes: Vec<&[u8]> = Class::ALL.iter().flat_map(|class| class.prefixes()).copied().collect();
        let whole: [&[u8]; 4] = [b"\x7fELF", b"PK\x03\x04", b"<?php", b"\x78\x56\x34\x12"];
        let mut bytes = match self.random.random_range(0..10) {
            0..6 => prefixes[self.random.random_range(0..prefixes.len())].to_vec(),
            6..8 => whole[self.random.random_range(0..whole.len())].to_vec(),
            8 => headers()[self.random.random_range(0..6)].clone(),
            _ => Vec::new(),
        };
        for _ in 0..self.random.random_range(0..48) {
            bytes.push(
                *[0, b'M', b'Z', 0x7f, b'E', b'L', b'F', b'P', 3, 4, 0xff]
                    .get(self.random.random_range(0..11))
                    .unwrap(),
            );
        }
        if !bytes.is_empty() && self.random.random_ratio(1, 4) {
            let place = self.random.random_range(0..bytes.len().min(4));
            bytes[place] = self.random.random();
        }
        if self.random.random_ratio(1, 3) {
            bytes.truncate(self.random.random_range(0..=16));
        }
        bytes
    }
}

/// The least that each module takes for a file of its own.
fn headers() -> [Vec<u8>; 6] {
    // winnt.h: e_lfanew, then machine, number of sections and size of the optional header; a section.
    let pe = header(
        0x200,
        &[
            (0, b"MZ"),
            (0x3c, b"\x40"),
            (0x40, b"PE\0\0\x4c\x01\x01"),
            (0x54, b"\xe0"),
            (0x58, b"\x0b\x01"),
            (0x138, b"x"),
        ],
    );
    // elf.h: 64 bits, little-endian, an executable.
    let elf = header(64, &[(0, b"\x7fELF\x02\x01\x01"), (16, b"\x02\0\x3e\0\x01")]);
    let macho = header(32, &[(0, b"\xcf\xfa\xed\xfe\x07")]);
    let fat = header(8, &[(0, b"\xca\xfe\xba\xbe")]);
    // [MS-SHLLINK] 2.1: size and class identifier.
    let lnk = header(76, &[(0, b"L\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0\x46")]);
    // The DEX format's header_item: size of the header, order of bytes.
    let dex = header(0x70, &[(0, b"dex\n035"), (36, b"\x70\0\0\0\x78\x56\x34\x12")]);
    [pe, elf, macho, fat, lnk, dex]
}

fn header(length: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// Scans both ways and gives the names of the rules that matched.
fn check(scanners: &mut Scanners<'_>, bytes: &[u8], seed: u64, files: &[RuleFile]) -> Names {
    let unrouted = scanners.unrouted(bytes).unwrap();
    let routed = scanners.routed(bytes).unwrap();
    let texts =
        || files.iter().map(|file| String::from_utf8_lossy(&file.text)).collect::<Vec<_>>().join("\n---\n");
    assert_eq!(unrouted, routed, "seed {seed}, {bytes:02x?}, {}", texts());
    unrouted
}

/// A rule; patterns that no condition names are an error.
fn rule(flags: &str, name: &str, condition: &str) -> String {
    if condition.contains(['$', '@']) || condition.contains("them") {
        format!("{flags}rule {name} {{ {STRINGS} condition: ({condition}) and (any of them or true) }}\n")
    } else {
        format!("{flags}rule {name} {{ condition: {condition} }}\n")
    }
}

fn imports() -> String {
    ["pe", "elf", "macho", "dotnet", "lnk", "dex", "math"].iter().fold(String::new(), |mut text, module| {
        writeln!(text, "import \"{module}\"").unwrap();
        text
    })
}

#[test]
fn everything_that_may_gate_is_told_right_for_every_beginning() {
    let forms = [
        "{}",
        "not ({})",
        "defined ({})",
        "not defined ({})",
        "filesize > 90 or ({})",
        "filesize > 90 or not ({})",
    ];
    let leaves: Vec<&str> = NUMBERS.into_iter().chain(VALUES).chain(PATTERNS).collect();
    let mut text = imports();
    for (leaf, condition) in leaves.iter().enumerate() {
        for (form, around) in forms.iter().enumerate() {
            text += &rule("", &format!("r{leaf}_{form}"), &around.replace("{}", condition));
        }
    }
    let files = [RuleFile { name: "f".into(), text: text.into_bytes() }];
    let errors: Vec<_> =
        compile(&files, &mut |_| {}).problems.into_iter().filter(|problem| problem.error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let both = Both::unjoined(&files);
    assert!(both.plan.sets.len() > 6, "most classes differ");
    let mut scanners = both.scanners();
    let seed = rand::random();
    println!("seed {seed}");
    let mut maker = Maker { random: StdRng::seed_from_u64(seed), names: Vec::new() };
    let made = (0..BEGINNINGS).map(|_| maker.bytes()).collect::<Vec<_>>();
    let mut matched = Names::new();
    for bytes in headers().into_iter().chain(made) {
        matched.extend(check(&mut scanners, &bytes, seed, &files));
    }
    for own in ["pe.is_pe", "elf.type == elf.ET_EXEC", "macho.cputype == 7", "lnk.is_lnk", "dex.is_dex"] {
        let leaf = leaves.iter().position(|leaf| *leaf == own).unwrap();
        let name = ("f".to_owned(), format!("r{leaf}_0"));
        assert!(matched.contains(&name), "no file is one for {own}");
    }
}

#[test]
fn the_rules_of_a_class_match_what_all_rules_match() {
    let first = rand::random::<u32>();
    println!("first seed {first}");
    let (mut pairs, mut matched, mut several, mut fewer) = (0, 0, 0, 0);
    for seed in (0..SEEDS).map(|seed| u64::from(first) + seed) {
        let mut maker = Maker { random: StdRng::seed_from_u64(seed), names: Vec::new() };
        let files: Vec<RuleFile> =
            (0..maker.random.random_range(1..=FILES_MAX)).map(|name| maker.file(name)).collect();
        let both = Both::unjoined(&files);
        let errors: Vec<_> =
            compile(&files, &mut |_| {}).problems.into_iter().filter(|problem| problem.error).collect();
        assert!(errors.is_empty(), "seed {seed}: made-up rules compile: {errors:?}");
        several += usize::from(both.plan.sets.len() > 1);
        fewer += usize::from(both.rules_of_sets().iter().any(|rules| *rules < both.rules()));
        let mut scanners = both.scanners();
        for _ in 0..SCANS {
            let bytes = maker.bytes();
            let found = check(&mut scanners, &bytes, seed, &files);
            pairs += 1;
            matched += usize::from(!found.is_empty());
        }
    }
    println!(
        "{pairs} pairs, {matched} with a match; {several} plans with several sets, {fewer} leave rules out"
    );
    assert!(matched * 5 > pairs && matched < pairs, "the rules match sometimes");
    assert!(several * 2 > SEEDS as usize && fewer * 2 > SEEDS as usize, "most rules are told apart");
}
