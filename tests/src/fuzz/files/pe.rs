//! PE files (Microsoft PE/COFF specification): 32 and 64 bit, with whichever of the directories that the scanner reads:
//! exports, imports, delayed imports, resources, debug, signatures, and .NET by `dotnet`.

use super::{der, dotnet};
use crate::fuzz::bytes::{Writer, name, one_of};
use rand::Rng as _;
use rand::rngs::StdRng;

/// Where the one section begins in the file, and in memory.
const RAW: u32 = 0x400;
const RVA: u32 = 0x1000;
const DIRECTORIES: usize = 16;

/// One PE file.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    let managed = random.random_bool(0.4);
    make_with(random, managed)
}

/// One that is a .NET assembly, or not.
pub fn make_with(random: &mut StdRng, managed: bool) -> Vec<u8> {
    let wide = random.random();
    let (mut directories, mut body) = ([(0, 0); DIRECTORIES], Section(Writer::little()));
    body.0.zeros(RAW as usize);
    body.0.raw(&[0x55, 0x89, 0xe5, 0xc3]).align(16);
    let makers: [(usize, Directory); 5] =
        [(0, exports), (1, imports), (2, resources), (6, debug), (13, delayed)];
    for (index, make) in makers {
        if random.random_bool(0.6) {
            let start = body.rva();
            make(random, &mut body, wide);
            directories[index] = (start, body.rva() - start);
        }
    }
    if managed {
        directories[14] = dotnet::write(random, &mut body.0, RVA - RAW);
    }
    body.0.align(0x200);
    let end = body.0.at();
    if random.random_bool(0.4) {
        signatures(random, &mut body.0);
        directories[4] = (end, body.0.at() - end);
    }
    if random.random_bool(0.2) {
        body.0.raw(b"overlay");
    }
    let header = header(random, wide, &directories, end - RAW);
    let mut bytes = body.0.bytes;
    bytes[..header.len()].copy_from_slice(&header);
    bytes
}

/// Writes what one directory holds, of a file that is wide or not.
type Directory = fn(&mut StdRng, &mut Section, bool);

/// The file so far, whose bytes from `RAW` on are at `RVA` in memory.
struct Section(Writer);

impl Section {
    fn rva(&self) -> u32 {
        self.0.at() + (RVA - RAW)
    }

    /// Fills in an address of memory.
    fn put(&mut self, at: u32, rva: u32) {
        self.0.put_u32(at, rva);
    }
}

fn header(random: &mut StdRng, wide: bool, directories: &[(u32, u32)], size: u32) -> Vec<u8> {
    let mut w = Writer::little();
    w.raw(b"MZ").zeros(58).u32(0).raw(&[0x0e, 0x1f, 0xba, 0x0e]).zeros(12);
    if random.random_bool(0.7) {
        rich(random, &mut w);
    }
    w.align(8);
    let start = w.at();
    w.put_u32(60, start);
    let machine = one_of(random, &[0x14c, 0x8664, 0x1c0, 0xaa64, 0x5064]);
    let optional = if wide { 240 } else { 224 };
    w.raw(b"PE\0\0").u16(machine).u16(1).u32(random.random()).u32(0).u32(0).u16(optional).u16(0x2102);
    w.u16(if wide { 0x20b } else { 0x10b }).u8(14).u8(0).u32s(&[size, 0, 0, RVA, RVA]);
    if !wide {
        w.u32(RVA);
    }
    w.word(wide, 0x40_0000).u32s(&[0x1000, 0x200]).u16s(&[6, 0, 0, 0, 6, 0]).u32(0);
    w.u32s(&[RVA + size.next_multiple_of(0x1000), RAW, random.random()]);
    w.u16(one_of(random, &[1, 2, 3])).u16(0x8140);
    for size in [0x10_0000, 0x1000, 0x10_0000, 0x1000] {
        w.word(wide, size);
    }
    w.u32s(&[0, 16]);
    directories.iter().for_each(|(rva, size)| w.u32s(&[*rva, *size]).end());
    w.raw(b".text\0\0\0").u32s(&[size, RVA, size, RAW, 0, 0]).u16s(&[0, 0]).u32(0xe000_0020);
    w.bytes.truncate(RAW as usize);
    w.bytes
}

/// What Microsoft's linker leaves behind of itself: `DanS`, pairs, `Rich`, all but the last two words xored with a key.
fn rich(random: &mut StdRng, w: &mut Writer) {
    let key: u32 = random.random();
    w.u32s(&[0x536e_6144 ^ key, key, key, key]);
    for _ in 0..random.random_range(0..6) {
        w.u32s(&[random.random::<u32>() ^ key, random.random_range(0..9u32) ^ key]);
    }
    w.raw(b"Rich").u32(key);
}

fn imports(random: &mut StdRng, s: &mut Section, wide: bool) {
    let count = random.random_range(1..4);
    let table = s.0.at();
    s.0.zeros(20 * (count as usize + 1));
    for index in 0..count {
        let thunks = thunks(random, s, wide);
        let library = library(random, s);
        let entry = table + 20 * index;
        s.put(entry, thunks);
        s.put(entry + 12, library);
        s.put(entry + 16, thunks);
    }
}

fn delayed(random: &mut StdRng, s: &mut Section, wide: bool) {
    let table = s.0.at();
    s.0.zeros(64);
    let (thunks, library) = (thunks(random, s, wide), library(random, s));
    for (offset, value) in [(0, 1), (4, library), (8, RVA), (12, thunks), (16, thunks)] {
        s.put(table + offset, value);
    }
}

fn library(random: &mut StdRng, s: &mut Section) -> u32 {
    let at = s.rva();
    s.0.text(one_of(random, &["KERNEL32.dll", "USER32.dll", "ws2_32.dll", "x"])).align(4);
    at
}

/// By name or by number, up to a zero.
fn thunks(random: &mut StdRng, s: &mut Section, wide: bool) -> u32 {
    let mut thunks = Vec::new();
    for _ in 0..random.random_range(1..5) {
        let by_number = 1 << if wide { 63 } else { 31 };
        thunks.push(if random.random_bool(0.3) { by_number | 17 } else { u64::from(s.rva()) });
        s.0.u16(3).text(&name(random)).align(2);
    }
    s.0.align(8);
    let at = s.rva();
    thunks.iter().for_each(|thunk| s.0.word(wide, *thunk).end());
    s.0.word(wide, 0);
    at
}

fn exports(random: &mut StdRng, s: &mut Section, _wide: bool) {
    let count: u32 = random.random_range(0..5);
    let table = s.0.at();
    s.0.zeros(40);
    let dll = library(random, s);
    let names: Vec<u32> = (0..count)
        .map(|_| {
            let at = s.rva();
            s.0.text(&name(random));
            at
        })
        .collect();
    s.0.align(4);
    let functions = s.rva();
    // Within the directory itself: forwarded to another library.
    for name in &names {
        s.0.u32(if random.random_bool(0.3) { *name } else { RVA });
    }
    let pointers = s.rva();
    s.0.u32s(&names);
    let numbers = s.rva();
    (0..count).for_each(|number| s.0.u16(u16::try_from(number).unwrap_or(0)).end());
    for (offset, value) in
        [(12, dll), (16, 1), (20, count), (24, count), (28, functions), (32, pointers), (36, numbers)]
    {
        s.put(table + offset, value);
    }
}

/// Type, name, language: three levels, one entry each, the last one a leaf.
fn resources(random: &mut StdRng, s: &mut Section, _wide: bool) {
    let start = s.0.at();
    let named = random.random_bool(0.3);
    for level in 0..3u32 {
        s.0.u32s(&[0, random.random(), 0]).u16s(&[u16::from(named), u16::from(!named)]);
        let kind = if level == 0 { one_of(random, &[16, 3, 24, 10]) } else { 1033 };
        let next = s.0.at() - start + 8;
        s.0.u32s(&[
            if named { 0x8000_0060 } else { kind },
            if level < 2 { next | 0x8000_0000 } else { next },
        ]);
    }
    let leaf = s.0.at();
    s.0.zeros(16);
    s.0.fill_to(start + 0x60).u16(4).utf16("NAME").align(4);
    let data = s.rva();
    version(random, &mut s.0);
    let size = s.rva() - data;
    s.put(leaf, data);
    s.put(leaf + 4, size);
}

/// VS_VERSIONINFO with a table of strings: each block is length, length of its value, type, key, value, children.
fn version(random: &mut StdRng, w: &mut Writer) {
    let open = |w: &mut Writer, value: u16, kind: u16, key: &str| {
        let at = w.align(4).at();
        w.u16s(&[0, value, kind]).utf16(key).u16(0).align(4);
        at
    };
    let close = |w: &mut Writer, at: u32| {
        let length = u16::try_from(w.at() - at).unwrap_or(u16::MAX).to_le_bytes();
        w.bytes[at as usize..at as usize + 2].copy_from_slice(&length);
    };
    let root = open(w, 52, 0, "VS_VERSION_INFO");
    w.u32s(&[0xfeef_04bd, 0x10000, 1, 2, 3, 4, 0x3f, 0, 0x40004, 1, 0, 0, 0]);
    let strings = open(w, 0, 1, "StringFileInfo");
    let table = open(w, 0, 1, "040904B0");
    for _ in 0..random.random_range(0..4) {
        let text = name(random);
        let value = u16::try_from(text.len()).unwrap_or(0);
        let entry = open(w, value, 1, &name(random));
        w.utf16(&text).u16(0);
        close(w, entry);
    }
    for block in [table, strings, root] {
        close(w, block);
    }
}

fn debug(random: &mut StdRng, s: &mut Section, _wide: bool) {
    let kind = one_of(random, &[2, 2, 2, 16]);
    let (at, rva) = (s.0.at() + 28, s.rva() + 28);
    let path = format!("c:\\build\\{}.pdb", name(random));
    let size = u32::try_from(path.len()).unwrap_or(0) + 25;
    s.0.u32s(&[0, random.random(), 0, kind, size, rva, at]);
    s.0.raw(one_of(random, &[b"RSDS", b"NB10"]))
        .raw(&random.random::<[u8; 16]>())
        .u32(1)
        .text(&path)
        .align(4);
}

/// WIN_CERTIFICATE: length, revision, type, and a PKCS #7 message.
fn signatures(random: &mut StdRng, w: &mut Writer) {
    for _ in 0..random.random_range(1..3) {
        let message = der::signed_data(random);
        w.u32(u32::try_from(message.len()).unwrap_or(0) + 8).u16s(&[0x200, 2]).raw(&message).align(8);
    }
}
