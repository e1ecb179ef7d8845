//! Mach-O files (Apple's `mach-o/loader.h`, `fat.h`, `nlist.h`, `cs_blobs.h`): thin ones of 32 and 64 bit in either byte order, and
//! fat ones that hold several.

use super::der;
use crate::fuzz::bytes::{Writer, name, one_of};
use rand::Rng as _;
use rand::rngs::StdRng;

/// Thin files in a fat one.
const ARCHITECTURES_MAX: u32 = 3;

/// One Mach-O file.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    if random.random_bool(0.3) { fat(random) } else { thin(random) }
}

/// Big-endian, whatever is inside.
fn fat(random: &mut StdRng) -> Vec<u8> {
    let (wide, count) = (random.random(), random.random_range(1..=ARCHITECTURES_MAX));
    let files: Vec<Vec<u8>> = (0..count).map(|_| thin(random)).collect();
    let mut w = Writer::ordered(true);
    w.u32s(&[if wide { 0xcafe_babf } else { 0xcafe_babe }, count]);
    let mut at = 4096u64;
    for file in &files {
        w.u32s(&[one_of(random, &[7, 0x0100_0007, 0x0100_000c]), 3]);
        w.word(wide, at).word(wide, file.len() as u64).u32(12);
        if wide {
            w.u32(0);
        }
        at = (at + file.len() as u64).next_multiple_of(256);
    }
    w.fill_to(4096);
    files.iter().for_each(|file| w.raw(file).align(256).end());
    w.bytes
}

/// The parts behind the commands that commands point to: where, how long.
#[derive(Clone, Copy)]
struct Part(u32, u32);

fn thin(random: &mut StdRng) -> Vec<u8> {
    let (wide, big): (bool, bool) = (random.random(), random.random());
    let mut body = Writer::ordered(big);
    body.zeros(2048);
    let part = |w: &mut Writer, bytes: &[u8]| {
        let at = w.align(8).at();
        w.raw(bytes);
        Part(at, w.at() - at)
    };
    let (symbols, names, count) = symbols(random, wide, big);
    let (symbols, names) = (part(&mut body, &symbols), part(&mut body, &names));
    let (exports, binds) = (part(&mut body, &export_trie(random)), part(&mut body, &bindings(random)));
    let signature = part(&mut body, &code_signature(random));
    let mut commands = Writer::ordered(big);
    let mut written = 0;
    segment(random, &mut commands, wide, body.at());
    for number in [
        2,
        0xb,
        0xc,
        0xd,
        0xe,
        0x1b,
        0x8000_001c,
        0x8000_0022,
        0x8000_0033,
        0x1d,
        0x24,
        0x2a,
        0x32,
        0x8000_0028,
        0x2d,
    ] {
        if !random.random_bool(0.7) {
            continue;
        }
        let mut c = Writer::ordered(big);
        match number {
            2 => c.u32s(&[symbols.0, count, names.0, names.1]).end(),
            0xb => c.u32s(&[0, 1, 1, 1, 2, count]).zeros(48).end(),
            0xc | 0xd => {
                c.u32s(&[24, 2, 0x1_0000, 0x1_0000]).text(&format!("/usr/lib/{}", name(random))).end()
            }
            0xe => c.u32(12).text("/usr/lib/dyld").end(),
            0x1b => c.raw(&random.random::<[u8; 16]>()).end(),
            0x8000_001c => c.u32(12).text("@executable_path/../Frameworks").end(),
            0x8000_0022 => {
                c.u32s(&[0, 0, binds.0, binds.1, 0, 0, binds.0, binds.1, exports.0, exports.1]).end()
            }
            0x8000_0033 => c.u32s(&[exports.0, exports.1]).end(),
            0x1d => c.u32s(&[signature.0, signature.1]).end(),
            0x24 => c.u32s(&[0x000a_0f00, 0x000b_0000]).end(),
            0x2a => c.u64(random.random()).end(),
            0x32 => c.u32s(&[1, 0x000b_0000, 0x000c_0000, 1, 3, 0x0300_0000]).end(),
            0x8000_0028 => c.u64(0x800).u64(0).end(),
            _ => c.u32(2).text("-framework").text("Cocoa").end(),
        }
        c.align(8);
        commands.u32s(&[number, c.at() + 8]).raw(&c.bytes);
        written += 1;
    }
    let mut front = Writer::ordered(big);
    front.u32s(&[if wide { 0xfeed_facf } else { 0xfeed_face }, if wide { 0x0100_0007 } else { 7 }, 3]);
    front.u32s(&[one_of(random, &[2, 6, 8, 1]), written + 1, commands.at(), 0x85]);
    if wide {
        front.u32(0);
    }
    front.raw(&commands.bytes);
    front.bytes.truncate(2048);
    body.bytes[..front.bytes.len()].copy_from_slice(&front.bytes);
    body.bytes
}

fn segment(random: &mut StdRng, w: &mut Writer, wide: bool, size: u32) {
    let (sections, own) = (random.random_range(0..3u32), if wide { 72 } else { 56 });
    let each = if wide { 80 } else { 68 };
    w.u32s(&[if wide { 0x19 } else { 1 }, own + sections * each]).raw(b"__TEXT\0\0\0\0\0\0\0\0\0\0");
    for value in [0x1000, 0x4000, 0, u64::from(size)] {
        w.word(wide, value);
    }
    w.u32s(&[7, 5, sections, 0]);
    for _ in 0..sections {
        w.raw(b"__text\0\0\0\0\0\0\0\0\0\0__TEXT\0\0\0\0\0\0\0\0\0\0").word(wide, 0x1800).word(wide, 64);
        w.u32s(&[0x800, 4, 0, 0, 0x8000_0400, 0, 0]);
        if wide {
            w.u32(0);
        }
    }
}

fn symbols(random: &mut StdRng, wide: bool, big: bool) -> (Vec<u8>, Vec<u8>, u32) {
    let (mut table, mut names, count) = (Writer::ordered(big), Writer::little(), random.random_range(1..6));
    names.u8(0);
    for _ in 0..count {
        table.u32(names.at()).raw(&[one_of(random, &[1, 0x0f, 0x0e, 0x24]), 1]).u16(0x100).word(wide, 0x1800);
        names.text(&name(random));
    }
    (table.bytes, names.bytes, count)
}

/// Nodes of a trie: size of what ends here, then edges, each a text and where it leads: now and then back.
fn export_trie(random: &mut StdRng) -> Vec<u8> {
    let mut w = Writer::little();
    let edges = random.random_range(0..3u8);
    w.raw(&[0, edges]);
    for _ in 0..edges {
        w.text("_m").u8(random.random_range(0..24));
    }
    w.raw(&[2, 0, 8, 1]).text("ain").u8(random.random_range(0..24)).raw(&[3, 0, 0x80, 1, 0]);
    w.bytes
}

/// Opcodes that say which symbols are bound where.
fn bindings(random: &mut StdRng) -> Vec<u8> {
    let mut w = Writer::little();
    for _ in 0..random.random_range(0..6) {
        w.raw(&[0x11, 0x40]).text(&format!("_{}", name(random))).raw(&[0x51, 0x72, 0x10, 0x90]);
        if random.random_bool(0.3) {
            w.raw(&[0xc0, random.random_range(0..0x80), 8]);
        }
    }
    w.u8(0);
    w.bytes
}

/// A super-blob: entitlements and a signed message. Big-endian always.
fn code_signature(random: &mut StdRng) -> Vec<u8> {
    let plist = "<?xml version=\"1.0\"?><plist version=\"1.0\"><dict><key>com.apple.security.app-sandbox</key><true/></dict></plist>";
    let (message, mut w) = (der::signed_data(random), Writer::ordered(true));
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0) + 8;
    let (first, second) = (28, 28 + length(plist.as_bytes()));
    w.u32s(&[0xfade_0cc0, second + length(&message), 2, 5, first, 0x1_0000, second]);
    w.u32s(&[0xfade_7171, length(plist.as_bytes())]).raw(plist.as_bytes());
    w.u32s(&[0xfade_0b01, length(&message)]).raw(&message);
    w.bytes
}
