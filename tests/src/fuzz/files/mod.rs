//! Small valid files of each format that the scanner parses, made from chance: what is mutated afterwards, and spliced.

/// PE.
pub mod pe;
/// The .NET part of a PE file.
pub mod dotnet;
/// Certificates and signatures.
pub mod der;
/// ELF.
pub mod elf;
/// Mach-O, thin and fat.
pub mod macho;
/// Shell links.
pub mod lnk;
/// Dalvik.
pub mod dex;
/// Zip.
pub mod zip;
/// Compound files.
pub mod ole;

use super::bytes;
use rand::Rng as _;
use rand::rngs::StdRng;

/// Makes a file.
pub type Make = fn(&mut StdRng) -> Vec<u8>;

/// Each format with its generator.
pub const FORMATS: [(&str, Make); 9] = [
    ("pe", |random| pe::make_with(random, false)),
    ("dotnet", |random| pe::make_with(random, true)),
    ("elf", elf::make),
    ("macho", macho::make),
    ("lnk", lnk::make),
    ("dex", dex::make),
    ("zip", zip::make),
    ("ole", ole::make),
    ("text", text),
];

/// A file of any of them.
pub fn any(random: &mut StdRng) -> Vec<u8> {
    FORMATS[random.random_range(0..FORMATS.len())].1(random)
}

/// Words, some of which rules look for.
fn text(random: &mut StdRng) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["#!/bin/sh\n", "<?php ", "%PDF-1.7\n", "eval(", "vidette-control", "0x1F ", "aGVsbG8=", "\u{feff}"];
    let mut out = String::new();
    for _ in 0..random.random_range(1..40) {
        match random.random_range(0..3) {
            0 => out.push_str(&bytes::name(random)),
            _ => out.push_str(WORDS[random.random_range(0..WORDS.len())]),
        }
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn the_same_seed_makes_the_same_file_of_bounded_size() {
        for (name, make) in FORMATS {
            for seed in 0..300 {
                let file = make(&mut StdRng::seed_from_u64(seed));
                assert_eq!(file, make(&mut StdRng::seed_from_u64(seed)), "{name}, seed {seed}");
                assert!(
                    !file.is_empty() && file.len() <= super::super::INPUT_BYTES_MAX,
                    "{name}, seed {seed}"
                );
            }
        }
    }
}
