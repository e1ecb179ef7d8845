//! Dalvik executables (dex-format of the Android documentation): header, tables of identifiers, classes, map; digests are right
//! now and then.

use crate::fuzz::bytes::{Writer, name, one_of};
use rand::Rng as _;
use rand::rngs::StdRng;

const HEADER: u32 = 0x70;

/// One DEX file.
pub fn make(random: &mut StdRng) -> Vec<u8> {
    let version = one_of(random, &["035", "037", "039", "041"]);
    let header = if version == "041" { 0x78 } else { HEADER };
    let mut w = Writer::little();
    w.zeros(header as usize);
    let counts: [u32; 6] = std::array::from_fn(|_| random.random_range(1..6));
    let [strings, types, protos, fields, methods, classes] = counts;
    let mut places = [0; 6];
    places[0] = w.at();
    w.zeros(4 * strings as usize);
    places[1] = w.at();
    (0..types).for_each(|_| w.u32(random.random_range(0..strings)).end());
    places[2] = w.at();
    for _ in 0..protos {
        w.u32s(&[random.random_range(0..strings), random.random_range(0..types), 0]);
    }
    places[3] = w.at();
    for _ in 0..fields {
        w.u16s(&[0, 0]).u32(random.random_range(0..strings));
    }
    places[4] = w.at();
    for _ in 0..methods {
        w.u16s(&[0, 0]).u32(random.random_range(0..strings));
    }
    places[5] = w.at();
    for _ in 0..classes {
        w.u32s(&[random.random_range(0..types), 1, one_of(random, &[0, u32::MAX]), 0, 0, 0, 0, 0]);
    }
    let data = w.at();
    let parameters = w.at();
    w.u32(2).u16s(&[0, 0]);
    (0..protos).for_each(|number| w.put_u32(places[2] + 12 * number + 8, parameters));
    for number in 0..strings {
        let (at, text) = (w.at(), name(random));
        w.put_u32(places[0] + 4 * number, at);
        w.u8(u8::try_from(text.len().min(127)).unwrap_or(0)).text(&text);
    }
    let map = map(random, &mut w, &places, &counts);
    let size = w.at();
    let mut front = Writer::little();
    front.raw(b"dex\n").text(version).u32(0).zeros(20).u32s(&[size, header, 0x1234_5678, 0, 0, map]);
    places.iter().zip(&counts).for_each(|(at, count)| front.u32s(&[*count, *at]).end());
    front.u32s(&[size - data, data]);
    if header > HEADER {
        front.u32s(&[size, 0]);
    }
    w.bytes[..front.bytes.len()].copy_from_slice(&front.bytes);
    if random.random_bool(0.5) {
        let sum = adler32(&w.bytes[12..]);
        w.put_u32(8, sum);
    }
    w.bytes
}

fn map(random: &mut StdRng, w: &mut Writer, places: &[u32; 6], counts: &[u32; 6]) -> u32 {
    let at = w.align(4).at();
    let items = random.random_range(0..=6);
    w.u32(items);
    for (number, (place, count)) in (0..items).zip(places.iter().zip(counts)) {
        w.u16s(&[u16::try_from(number + 1).unwrap_or(0), 0]).u32s(&[*count, *place]);
    }
    at
}

fn adler32(bytes: &[u8]) -> u32 {
    let (mut low, mut high) = (1u32, 0u32);
    for byte in bytes {
        low = (low + u32::from(*byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    high << 16 | low
}
