//! The .NET part of a PE file (ECMA-335, partition II): header, metadata root, heaps, tables, signatures of types.

use crate::fuzz::bytes::{Writer, name};
use rand::Rng as _;
use rand::rngs::StdRng;

/// Types within types.
const DEPTH_MAX: u32 = 6;
/// Rows of a table.
const ROWS_MAX: u32 = 4;

/// How a column is filled.
#[derive(Clone, Copy)]
enum Column {
    /// Two bytes of a small number: an index, coded or not.
    Index,
    /// Two bytes: a place in the heap of names.
    Name,
    /// Two bytes: a place in the heap of blobs.
    Blob,
    /// So many bytes of chance.
    Any(usize),
    /// Four bytes: a place.
    Place,
}

/// Number and columns of the tables that are written.
fn tables() -> [(u32, &'static [Column]); 17] {
    use Column::{Any, Blob, Index, Name, Place};
    [
        (0x00, &[Any(2), Name, Index, Index, Index]),
        (0x01, &[Index, Name, Name]),
        (0x02, &[Any(4), Name, Name, Index, Index, Index]),
        (0x04, &[Any(2), Name, Blob]),
        (0x06, &[Place, Any(2), Any(2), Name, Blob, Index]),
        (0x08, &[Any(2), Index, Name]),
        (0x09, &[Index, Index]),
        (0x0b, &[Any(2), Index, Blob]),
        (0x0c, &[Index, Index, Blob]),
        (0x10, &[Place, Index]),
        (0x1a, &[Name]),
        (0x1b, &[Blob]),
        (0x20, &[Any(4), Any(2), Any(2), Any(2), Any(2), Any(4), Blob, Name, Name]),
        (0x23, &[Any(2), Any(2), Any(2), Any(2), Any(4), Blob, Name, Name, Blob]),
        (0x28, &[Place, Any(4), Name, Index]),
        (0x29, &[Index, Index]),
        (0x2a, &[Index, Any(2), Index, Name]),
    ]
}

/// Writes header and metadata; `shift` leads from places in the file to those in memory. Gives place and size of the
/// header.
pub fn write(random: &mut StdRng, w: &mut Writer, shift: u32) -> (u32, u32) {
    w.align(4);
    let resources = w.at();
    w.u32(12).raw(&random.random::<[u8; 12]>());
    let root = w.at();
    let metadata = metadata(random);
    w.raw(&metadata).align(4);
    let header = w.at();
    w.u32(72)
        .u16s(&[2, 5])
        .u32s(&[root + shift, header - root, 1, 0x0600_0001, resources + shift, 16])
        .zeros(40);
    (header + shift, 72)
}

fn metadata(random: &mut StdRng) -> Vec<u8> {
    let (names, places) = names(random);
    let (blobs, blob_places) = blobs(random);
    let mut texts = vec![0];
    for _ in 0..random.random_range(0..4) {
        texts.extend([9, b'a', 0, b'b', 0, b'c', 0, b'd', 0, 0]);
    }
    let guids: Vec<u8> = (0..random.random_range(1..3)).flat_map(|_| random.random::<[u8; 16]>()).collect();
    let streams = [
        ("#~", rows(random, &places, &blob_places)),
        ("#Strings", names),
        ("#US", texts),
        ("#GUID", guids),
        ("#Blob", blobs),
    ];
    let mut w = Writer::little();
    w.raw(b"BSJB").u16s(&[1, 1]).u32s(&[0, 12]).raw(b"v4.0.30319\0\0").u16s(&[0, 5]);
    let headers: Vec<u32> = streams
        .iter()
        .map(|(name, _)| {
            let at = w.at();
            w.zeros(8).text(name).align(4);
            at
        })
        .collect();
    for (at, (_, content)) in headers.iter().zip(&streams) {
        let place = w.at();
        w.raw(content).align(4);
        let size = w.at() - place;
        w.put_u32(*at, place);
        w.put_u32(at + 4, size);
    }
    w.bytes
}

fn names(random: &mut StdRng) -> (Vec<u8>, Vec<u16>) {
    let (mut w, mut places) = (Writer::little(), vec![0]);
    w.u8(0);
    for _ in 0..random.random_range(2..10) {
        places.push(u16::try_from(w.at()).unwrap_or(0));
        w.text(&name(random));
    }
    (w.bytes, places)
}

fn blobs(random: &mut StdRng) -> (Vec<u8>, Vec<u16>) {
    let (mut w, mut places) = (Writer::little(), vec![0]);
    w.u8(0);
    for _ in 0..random.random_range(2..8) {
        let mut blob = Vec::new();
        match random.random_range(0..3) {
            0 => method(random, &mut blob),
            1 => of_type(random, &mut blob, 0),
            _ => blob.extend(random.random::<[u8; 8]>()),
        }
        blob.truncate(127);
        places.push(u16::try_from(w.at()).unwrap_or(0));
        w.u8(u8::try_from(blob.len()).unwrap_or(0)).raw(&blob);
    }
    (w.bytes, places)
}

/// Calling convention, number of parameters, type of what it gives, types of parameters (II.23.2.1).
fn method(random: &mut StdRng, out: &mut Vec<u8>) {
    let parameters = random.random_range(0..4);
    out.extend([0x20, parameters]);
    (0..=parameters).for_each(|_| of_type(random, out, 0));
}

/// A type (II.23.2.12); one that names a type specification may name itself.
fn of_type(random: &mut StdRng, out: &mut Vec<u8>, depth: u32) {
    let kind = if depth >= DEPTH_MAX { 0 } else { random.random_range(0..9) };
    match kind {
        1 => out.push(0x0f),
        2 => out.push(0x10),
        3 => out.push(0x1d),
        4 => return out.extend([0x12, random.random_range(0..20)]),
        5 => {
            out.extend([0x15, 0x12, random.random_range(0..20), 2]);
            of_type(random, out, depth + 1);
        }
        6 => {
            out.push(0x14);
            of_type(random, out, depth + 1);
            return out.extend([2, 1, 3, 1, 0]);
        }
        7 => {
            out.push(0x1b);
            return method_within(random, out, depth);
        }
        8 => return out.extend([0x1e, random.random_range(0..4)]),
        _ => return out.push(random.random_range(1..0x1d)),
    }
    of_type(random, out, depth + 1);
}

fn method_within(random: &mut StdRng, out: &mut Vec<u8>, depth: u32) {
    out.extend([0x20, 1]);
    (0..2).for_each(|_| of_type(random, out, depth + 1));
}

fn rows(random: &mut StdRng, names: &[u16], blobs: &[u16]) -> Vec<u8> {
    let tables = tables();
    let mut counts: Vec<u32> = tables.iter().map(|_| random.random_range(0..=ROWS_MAX)).collect();
    counts[0] = 1;
    let present = tables.iter().zip(&counts).filter(|(_, count)| **count > 0);
    let bits = present.fold(0u64, |bits, ((number, _), _)| bits | 1 << number);
    let mut w = Writer::little();
    w.u32(0).raw(&[2, 0, 0, 1]).u64(bits).u64(0);
    counts.iter().filter(|count| **count > 0).for_each(|count| w.u32(*count).end());
    for ((_, columns), count) in tables.iter().zip(&counts) {
        for _ in 0..*count {
            columns.iter().for_each(|column| cell(random, &mut w, *column, names, blobs));
        }
    }
    w.bytes
}

fn cell(random: &mut StdRng, w: &mut Writer, column: Column, names: &[u16], blobs: &[u16]) {
    match column {
        Column::Index => w.u16(random.random_range(0..8)),
        Column::Name => w.u16(names[random.random_range(0..names.len())]),
        Column::Blob => w.u16(blobs[random.random_range(0..blobs.len())]),
        Column::Place => w.u32(random.random_range(0..64)),
        Column::Any(bytes) => w.raw(&random.random::<[u8; 4]>()[..bytes]),
    };
}
