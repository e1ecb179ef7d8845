//! ELF files (System V ABI, chapter 4): 32 and 64 bit in either byte order, with segments, sections, symbols, and what
//! the dynamic linker reads.

use crate::fuzz::bytes::{Writer, name, one_of};
use rand::Rng as _;
use rand::rngs::StdRng;

/// A section as it is placed: name, type, place, size, link.
type Placed = (u32, u32, u32, u32, u32);

/// One ELF file.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    let (wide, big): (bool, bool) = (random.random(), random.random());
    let (header, segment, entry) = if wide { (64, 56, 64) } else { (52, 32, 40) };
    let mut w = Writer::ordered(big);
    w.zeros(header);
    let segments_at = w.at();
    w.zeros(3 * segment);
    w.text("/lib64/ld-linux-x86-64.so.2");
    let mut texts = Texts { bytes: vec![0] };
    let mut sections: Vec<Placed> = vec![(0, 0, 0, 0, 0)];
    let code = place(&mut w, |w| w.raw(&[0x90; 24]).end());
    sections.push((texts.add(".text"), 1, code.0, code.1, 0));
    for (symbols, strings, kind) in [(".dynsym", ".dynstr", 11), (".symtab", ".strtab", 2)] {
        let mut own = Texts { bytes: vec![0] };
        let table = place(&mut w, |w| symbols_of(random, w, wide, &mut own));
        let link = u32::try_from(sections.len()).unwrap_or(0) + 1;
        sections.push((texts.add(symbols), kind, table.0, table.1, link));
        let names = place(&mut w, |w| w.raw(&own.bytes).end());
        sections.push((texts.add(strings), 3, names.0, names.1, 0));
    }
    let dynamic = place(&mut w, |w| dynamic(random, w, wide));
    sections.push((texts.add(".dynamic"), 6, dynamic.0, dynamic.1, 3));
    let own = texts.add(".shstrtab");
    let names = place(&mut w, |w| w.raw(&texts.bytes).end());
    sections.push((own, 3, names.0, names.1, 0));
    let sections_at = w.align(8).at();
    for section in &sections {
        write_section(&mut w, wide, section);
    }
    let mut front = Writer::ordered(big);
    write_header(random, &mut front, wide, big, (segments_at, sections_at), (segment, entry), sections.len());
    let all = (0, w.at());
    for (kind, (at, size)) in [(1, all), (2, dynamic), (3, (segments_at, 28))] {
        write_segment(&mut front, wide, kind, at, size);
    }
    w.bytes[..front.bytes.len()].copy_from_slice(&front.bytes);
    w.bytes
}

struct Texts {
    bytes: Vec<u8>,
}

impl Texts {
    fn add(&mut self, text: &str) -> u32 {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        u32::try_from(at).unwrap_or(0)
    }
}

/// Where something was written, and how long it is.
fn place(w: &mut Writer, write: impl FnOnce(&mut Writer)) -> (u32, u32) {
    let at = w.align(8).at();
    write(w);
    (at, w.at() - at)
}

fn symbols_of(random: &mut StdRng, w: &mut Writer, wide: bool, texts: &mut Texts) {
    for _ in 0..random.random_range(1..6) {
        let (at, info) = (texts.add(&name(random)), random.random_range(0..0x30));
        if wide {
            w.u32(at).u8(info).u8(random.random_range(0..4)).u16(1).u64(0x40_0000).u64(8);
        } else {
            w.u32s(&[at, 0x40_0000, 8]).u8(info).u8(random.random_range(0..4)).u16(1);
        }
    }
}

fn dynamic(random: &mut StdRng, w: &mut Writer, wide: bool) {
    for _ in 0..random.random_range(0..6) {
        w.word(wide, one_of(random, &[1, 5, 6, 10, 11, 12, 15, 29, 0x6fff_fef5]))
            .word(wide, random.random_range(0..99));
    }
    w.word(wide, 0).word(wide, 0);
}

fn write_section(w: &mut Writer, wide: bool, section: &Placed) {
    let (name, kind, at, size, link) = *section;
    let entry = match (kind, wide) {
        (2 | 11, true) => 24,
        (2 | 11 | 6, _) => 16,
        _ => 0,
    };
    w.u32s(&[name, kind]).word(wide, 6).word(wide, u64::from(at)).word(wide, u64::from(at));
    w.word(wide, u64::from(size)).u32s(&[link, 0]).word(wide, 8).word(wide, entry);
}

fn write_header(
    random: &mut StdRng,
    w: &mut Writer,
    wide: bool,
    big: bool,
    (segments, sections): (u32, u32),
    (segment, entry): (usize, usize),
    count: usize,
) {
    w.raw(b"\x7fELF")
        .u8(1 + u8::from(wide))
        .u8(1 + u8::from(big))
        .raw(&[1, one_of(random, &[0, 3, 9])])
        .zeros(8);
    w.u16s(&[one_of(random, &[2, 3, 1, 4]), one_of(random, &[62, 3, 40, 183, 8, 20])]).u32(1);
    w.word(wide, u64::from(segments) + 200)
        .word(wide, u64::from(segments))
        .word(wide, u64::from(sections))
        .u32(0);
    let small = |value: usize| u16::try_from(value).unwrap_or(0);
    w.u16s(&[if wide { 64 } else { 52 }, small(segment), 3, small(entry), small(count), small(count - 1)]);
}

fn write_segment(w: &mut Writer, wide: bool, kind: u32, at: u32, size: u32) {
    let (at, size) = (u64::from(at), u64::from(size));
    w.u32(kind);
    if wide {
        w.u32(5);
    }
    w.word(wide, at).word(wide, at).word(wide, at).word(wide, size).word(wide, size);
    if !wide {
        w.u32(5);
    }
    w.word(wide, 0x1000);
}
