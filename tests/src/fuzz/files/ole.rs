//! Compound files (MS-CFB): header, one sector of allocation, a folder with a few streams.

use crate::fuzz::bytes::{Writer, one_of};
use rand::Rng as _;
use rand::rngs::StdRng;

const NONE: u32 = 0xffff_ffff;
const END: u32 = 0xffff_fffe;
const ALLOCATION: u32 = 0xffff_fffd;

/// One compound file.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    let (version, shift) = one_of(random, &[(3, 9), (4, 12)]);
    let sector = 1usize << shift;
    let mut w = Writer::little();
    w.raw(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1").zeros(16).u16s(&[0x3e, version, 0xfffe, shift, 6]).zeros(6);
    w.u32s(&[0, 1, 1, 0, 4096, 3, 1, END, 0, 0]);
    (1..109).for_each(|_| w.u32(NONE).end());
    w.align(sector);
    // Sector 0 is the table itself, 1 the folder, 2 the content, 3 the table of small streams.
    w.u32s(&[ALLOCATION, END, one_of(random, &[END, 2, 1]), END]);
    while !w.bytes.len().is_multiple_of(sector) {
        w.u32(NONE);
    }
    for (name, kind, start) in [
        ("Root Entry", 5, 2),
        ("WordDocument", 2, 0),
        ("Macros", 1, 0),
        (one_of(random, &["VBA", "\u{5}SummaryInformation"]), 2, 0),
    ] {
        entry(random, &mut w, name, kind, start);
    }
    w.align(sector);
    w.raw(b"Attribut\0e VB_Name = \"ThisDocument\"").align(sector);
    w.u32s(&[END]).align(sector);
    w.bytes
}

fn entry(random: &mut StdRng, w: &mut Writer, name: &str, kind: u8, start: u32) {
    let at = w.at();
    w.utf16(name).fill_to(at + 64).u16(u16::try_from(2 * name.chars().count() + 2).unwrap_or(0));
    let siblings = [random.random_range(0..4), one_of(random, &[NONE, 1, 2]), one_of(random, &[NONE, 1, 3])];
    w.raw(&[kind, 1]).u32s(&siblings).zeros(36).u32s(&[start, random.random_range(0..4096), 0]);
}
