//! Shell links (MS-SHLLINK): header, list of items, location, texts, tracker.

use crate::fuzz::bytes::{Writer, name, one_of};
use rand::Rng as _;
use rand::rngs::StdRng;

/// One shell link.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    let mut w = Writer::little();
    let flags = random.random::<u32>() & 0xff;
    let unicode = flags & 0x80 != 0;
    w.u32(0x4c).raw(&[1, 0x14, 2, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x46]).u32s(&[flags, 0x20]);
    for _ in 0..3 {
        w.u64(random.random_range(0..1 << 60));
    }
    w.u32s(&[random.random(), 1, one_of(random, &[1, 3, 7])]).zeros(12);
    if flags & 1 != 0 {
        items(random, &mut w);
    }
    if flags & 2 != 0 {
        location(random, &mut w);
    }
    for bit in 2..7 {
        if flags & 1 << bit != 0 {
            let text = name(random);
            w.u16(u16::try_from(if unicode { text.encode_utf16().count() } else { text.len() }).unwrap_or(0));
            if unicode {
                w.utf16(&text)
            } else {
                w.raw(text.as_bytes())
            };
        }
    }
    if random.random_bool(0.6) {
        w.u32s(&[0x60, 0xa000_0003, 0x58, 0]).raw(b"machine\0\0\0\0\0\0\0\0\0").raw(&[7; 64]);
    }
    w.u32(0);
    if random.random_bool(0.2) {
        w.raw(b"behind the end");
    }
    w.bytes
}

fn items(random: &mut StdRng, w: &mut Writer) {
    let mut list = Writer::little();
    for _ in 0..random.random_range(0..4) {
        let mut item = Writer::little();
        match random.random_range(0..5) {
            0 => item.raw(&[0x1f, 0x50]).raw(&random.random::<[u8; 16]>()).end(),
            1 => item.raw(&[0x2f]).raw(b"C:\\\0").zeros(18).end(),
            2 => file_entry(random, &mut item),
            3 => item.raw(&[0x42, 0]).u8(0x80).text("\\\\server\\share").text("Microsoft Network").end(),
            _ => item.u8(random.random()).raw(&random.random::<[u8; 24]>()).end(),
        }
        list.u16(u16::try_from(item.at()).unwrap_or(0) + 2).raw(&item.bytes);
    }
    list.u16(0);
    w.u16(u16::try_from(list.at()).unwrap_or(0)).raw(&list.bytes);
}

fn file_entry(random: &mut StdRng, w: &mut Writer) {
    w.raw(&[one_of(random, &[0x31, 0x32, 0x35]), 0]).u32s(&[512, 0]).u16(0x10).text("SHORT~1.EXE").align(2);
    let start = w.at();
    w.u16s(&[0, 9, 4, 0xbeef]).zeros(10).utf16(&name(random)).u16(0).u16(u16::try_from(start).unwrap_or(0));
}

fn location(random: &mut StdRng, w: &mut Writer) {
    let start = w.at();
    let header = one_of(random, &[0x1c, 0x24]);
    w.u32s(&[0, header, 3, 0, 0, 0, 0]);
    if header > 0x1c {
        w.u32s(&[0, 0]);
    }
    let volume = w.at() - start;
    w.u32s(&[0x14, 3, random.random(), 0x10]).text("DISK").align(4);
    let base = w.at() - start;
    w.text("C:\\Windows\\system32\\calc.exe");
    let network = w.at() - start;
    w.u32s(&[0x1c, 2, 0x14, 0, 0x2_0000]).text("\\\\h\\s").align(4);
    let suffix = w.at() - start;
    w.text(&name(random));
    let size = w.at() - start;
    for (offset, value) in [(0, size), (12, volume), (16, base), (20, network), (24, suffix)] {
        w.put_u32(start + offset, value);
    }
    if header > 0x1c {
        w.put_u32(start + 28, base);
        w.put_u32(start + 32, suffix);
    }
}
