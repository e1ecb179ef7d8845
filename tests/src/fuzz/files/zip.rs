//! Zip files (APPNOTE 6.3): stored and deflated entries, ZIP64, comments, and something in front.

use crate::fuzz::bytes::{Writer, name};
use rand::Rng as _;
use rand::rngs::StdRng;

struct Entry {
    name: String,
    method: u16,
    sum: u32,
    packed: u32,
    size: u32,
    at: u32,
}

/// One zip file.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    let (wide, mut w) = (random.random_bool(0.3), Writer::little());
    if random.random_bool(0.1) {
        w.raw(b"#!/bin/sh\n");
    }
    let entries: Vec<Entry> = (0..random.random_range(0..5)).map(|_| local(random, &mut w)).collect();
    let directory = w.at();
    for entry in &entries {
        central(&mut w, entry, wide);
    }
    let size = w.at() - directory;
    let count = u16::try_from(entries.len()).unwrap_or(0);
    if wide {
        let at = w.at();
        w.raw(b"PK\x06\x06").u64(44).u16s(&[45, 45]).u32s(&[0, 0]);
        for value in [u64::from(count), u64::from(count), u64::from(size), u64::from(directory)] {
            w.u64(value);
        }
        w.raw(b"PK\x06\x07").u32(0).u64(u64::from(at)).u32(1);
    }
    let (count, size, directory) = if wide { (0xffff, !0, !0) } else { (count, size, directory) };
    w.raw(b"PK\x05\x06").u16s(&[0, 0, count, count]).u32s(&[size, directory]);
    let comment = if random.random_bool(0.2) { "a comment" } else { "" };
    w.u16(u16::try_from(comment.len()).unwrap_or(0)).raw(comment.as_bytes());
    w.bytes
}

fn local(random: &mut StdRng, w: &mut Writer) -> Entry {
    let content = name(random).repeat(random.random_range(0..8)).into_bytes();
    let method = if random.random() { 8 } else { 0 };
    let packed = if method == 8 { deflate(&content) } else { content.clone() };
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
    let entry = Entry {
        name: name(random),
        method,
        sum: crc32(&content),
        packed: length(&packed),
        size: length(&content),
        at: w.at(),
    };
    // Sizes behind the content, as streams have them.
    let stream = random.random_bool(0.2);
    w.raw(b"PK\x03\x04").u16s(&[20, if stream { 8 } else { 0 }, entry.method]).u32(0x5a21_0000);
    let sizes = [entry.sum, entry.packed, entry.size];
    w.u32s(if stream { &[0, 0, 0] } else { &sizes });
    w.u16s(&[u16::try_from(entry.name.len()).unwrap_or(0), 0]).raw(entry.name.as_bytes()).raw(&packed);
    if stream {
        w.raw(b"PK\x07\x08").u32s(&sizes);
    }
    entry
}

fn central(w: &mut Writer, entry: &Entry, wide: bool) {
    w.raw(b"PK\x01\x02").u16s(&[45, 20, 0, entry.method]).u32s(&[0x5a21_0000, entry.sum]);
    w.u32s(&if wide { [!0, !0] } else { [entry.packed, entry.size] });
    w.u16s(&[u16::try_from(entry.name.len()).unwrap_or(0), if wide { 28 } else { 0 }, 0, 0, 0]);
    w.u32s(&[0, if wide { !0 } else { entry.at }]).raw(entry.name.as_bytes());
    if wide {
        w.u16s(&[1, 24]).u64(u64::from(entry.size)).u64(u64::from(entry.packed)).u64(u64::from(entry.at));
    }
}

/// One block with the fixed codes (RFC 1951, 3.2.6), of literals alone.
fn deflate(content: &[u8]) -> Vec<u8> {
    let mut bits = vec![true, true, false];
    let mut code = |value: u16, length: u32| bits.extend((0..length).rev().map(|bit| value >> bit & 1 == 1));
    for byte in content {
        match byte {
            0..144 => code(0x30 + u16::from(*byte), 8),
            144.. => code(0x190 + u16::from(*byte) - 144, 9),
        }
    }
    code(0, 7);
    bits.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

fn crc32(content: &[u8]) -> u32 {
    !content.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_packed_content_are_as_the_formats_say() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        // What zlib makes of it, with the fixed codes.
        assert_eq!(deflate(b"a"), [0x4b, 0x04, 0x00]);
        assert_eq!(deflate(b""), [0x03, 0x00]);
    }
}
