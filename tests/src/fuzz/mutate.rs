//! Changes to an input: bits, numbers that parsers get wrong, lengths blown up, places that point to each other, parts cut,
//! doubled, moved, mixed with another input.

// Every change has the same shape, whether it needs to grow its input or not.
#![allow(clippy::ptr_arg)]

use super::INPUT_BYTES_MAX;
use rand::Rng as _;
use rand::rngs::StdRng;

/// Most formats keep their headers here. Bytes.
const HEADERS_BYTES: usize = 1024;
/// Changes to one input: mostly few, since many at once break what others could reach.
const CHANGES_LOG2_MAX: u32 = 4;
/// A block that is put in many times over.
const REPEATS_LOG2_MAX: u32 = 12;
/// Values at the edges of number types, of sizes, of what fits a page.
const INTERESTING: [u64; 20] = [
    0,
    1,
    2,
    7,
    0x10,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0xffff_fffe,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// One change.
type Change = fn(&mut StdRng, &mut Vec<u8>);

const CHANGES: [Change; 13] = [
    flip_bits,
    set_bytes,
    interesting_number,
    interesting_number,
    blow_up_length,
    blow_up_length,
    point_elsewhere,
    near_number,
    truncate,
    remove_block,
    duplicate_block,
    move_block,
    repeat_block,
];

/// Changes an input a few times. `other` is what it may be mixed with, `words` what may be written into it.
pub fn mutate(random: &mut StdRng, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    for _ in 0..1 << random.random_range(0..=CHANGES_LOG2_MAX) {
        match random.random_range(0..CHANGES.len() + 3) {
            0 => splice(random, input, other),
            1 | 2 if !words.is_empty() => word(random, input, words),
            at => CHANGES[at % CHANGES.len()](random, input),
        }
        input.truncate(INPUT_BYTES_MAX);
        if input.is_empty() {
            input.push(random.random());
        }
    }
}

/// A place: often in a header, at an even distance, or where a number of a header points.
fn place(random: &mut StdRng, input: &[u8], width: usize) -> Option<usize> {
    let room = input.len().checked_sub(width)?;
    let near = random.random_range(0..=room.min(HEADERS_BYTES));
    let at = match random.random_range(0..4) {
        0 => random.random_range(0..=room),
        1 => near,
        2 => near / 4 * 4,
        _ => {
            let pointed = number(input, near / 4 * 4, 4, random.random_bool(0.2));
            usize::try_from(pointed).unwrap_or(usize::MAX).saturating_add(4 * random.random_range(0..8usize))
        }
    };
    Some(if at <= room { at } else { near })
}

fn number(input: &[u8], at: usize, width: usize, big_endian: bool) -> u64 {
    let bytes = input.get(at..at + width).unwrap_or_default();
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
}

fn put(random: &mut StdRng, input: &mut [u8], at: usize, width: usize, value: u64) {
    let mut bytes = value.to_le_bytes()[..width].to_vec();
    if random.random_bool(0.25) {
        bytes.reverse();
    }
    input[at..at + width].copy_from_slice(&bytes);
}

fn width(random: &mut StdRng) -> usize {
    [1, 2, 2, 4, 4, 4, 8][random.random_range(0..7)]
}

fn block(random: &mut StdRng, input: &[u8]) -> std::ops::Range<usize> {
    let start = random.random_range(0..=input.len());
    let length = 1 << random.random_range(0..12);
    start..(start + random.random_range(1..=length)).min(input.len())
}

fn flip_bits(random: &mut StdRng, input: &mut Vec<u8>) {
    let Some(at) = place(random, input, 1) else { return };
    input[at] ^= 1 << random.random_range(0..8);
}

fn set_bytes(random: &mut StdRng, input: &mut Vec<u8>) {
    let Some(at) = place(random, input, 1) else { return };
    let end = (at + random.random_range(1..8)).min(input.len());
    input[at..end].iter_mut().for_each(|byte| *byte = random.random());
}

fn interesting_number(random: &mut StdRng, input: &mut Vec<u8>) {
    let width = width(random);
    let Some(at) = place(random, input, width) else { return };
    let value = INTERESTING[random.random_range(0..INTERESTING.len())];
    put(random, input, at, width, value);
}

/// A number that may be a length or a place in this file becomes more than the file, or just about as much.
fn blow_up_length(random: &mut StdRng, input: &mut Vec<u8>) {
    let (width, size) = (width(random), input.len() as u64);
    for _ in 0..16 {
        let Some(at) = place(random, input, width) else { return };
        let value = number(input, at, width, false);
        if value == 0 || value > size {
            continue;
        }
        let near = [
            size,
            size - 1,
            size + 1,
            u64::MAX - value,
            u64::MAX,
            value << 8,
            value.wrapping_neg(),
            size - value,
        ];
        let value = near[random.random_range(0..near.len())];
        return put(random, input, at, width, value);
    }
}

/// Some number becomes a copy of another one, or the place of itself: so that tables overlap and lists have no end.
fn point_elsewhere(random: &mut StdRng, input: &mut Vec<u8>) {
    let width = width(random);
    let (Some(from), Some(to)) = (place(random, input, width), place(random, input, width)) else { return };
    match random.random_range(0..3) {
        0 => put(random, input, to, width, to as u64),
        1 => put(random, input, to, width, from as u64),
        _ => input.copy_within(from..from + width, to),
    }
}

fn near_number(random: &mut StdRng, input: &mut Vec<u8>) {
    let width = width(random);
    let Some(at) = place(random, input, width) else { return };
    let big_endian = random.random_bool(0.2);
    let mut bytes =
        number(input, at, width, big_endian).wrapping_add_signed(random.random_range(-35..=35)).to_le_bytes();
    if big_endian {
        bytes[..width].reverse();
    }
    input[at..at + width].copy_from_slice(&bytes[..width]);
}

fn truncate(random: &mut StdRng, input: &mut Vec<u8>) {
    input.truncate(random.random_range(0..=input.len()));
}

fn remove_block(random: &mut StdRng, input: &mut Vec<u8>) {
    let block = block(random, input);
    input.drain(block);
}

fn duplicate_block(random: &mut StdRng, input: &mut Vec<u8>) {
    let block = input[block(random, input)].to_vec();
    let at = random.random_range(0..=input.len());
    input.splice(at..at, block);
}

fn move_block(random: &mut StdRng, input: &mut Vec<u8>) {
    let block = block(random, input);
    let Some(room) = input.len().checked_sub(block.len()) else { return };
    let at = random.random_range(0..=room);
    input.copy_within(block, at);
}

/// Things within things within things.
fn repeat_block(random: &mut StdRng, input: &mut Vec<u8>) {
    let from = block(random, input);
    let (at, short) = (from.end, input[from.start..from.end.min(from.start + 32)].to_vec());
    let times = 1 << random.random_range(1..=REPEATS_LOG2_MAX);
    input.splice(at..at, short.repeat(times));
}

fn splice(random: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    let cut = random.random_range(0..=input.len());
    let from = random.random_range(0..=other.len());
    input.truncate(cut);
    input.extend_from_slice(&other[if random.random() { from } else { cut.min(other.len()) }..]);
}

fn word(random: &mut StdRng, input: &mut Vec<u8>, words: &[&[u8]]) {
    let word = words[random.random_range(0..words.len())];
    let at = random.random_range(0..=input.len());
    let end = if random.random() { at } else { (at + word.len()).min(input.len()) };
    input.splice(at..end, word.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use std::collections::HashSet;

    #[test]
    fn inputs_stay_within_bounds_and_repeat_by_their_seed() {
        let mut seen = HashSet::new();
        for seed in 0..5_000 {
            let mutated = || {
                let mut input = b"a few bytes to begin with".to_vec();
                mutate(&mut StdRng::seed_from_u64(seed), &mut input, &[7; 40], &[b"word"]);
                input
            };
            let input = mutated();
            assert!((1..=INPUT_BYTES_MAX).contains(&input.len()), "seed {seed}");
            assert_eq!(input, mutated(), "seed {seed}");
            seen.insert(input);
        }
        assert!(seen.len() > 4_000, "{} different ones", seen.len());
    }

    #[test]
    fn every_change_takes_whatever_there_is() {
        for (number, change) in CHANGES.into_iter().enumerate() {
            for seed in 0..500 {
                let mut random = StdRng::seed_from_u64(seed);
                let mut input = vec![b'x'; random.random_range(0..12)];
                change(&mut random, &mut input);
                let at_most = 12 + (32 << REPEATS_LOG2_MAX);
                assert!(input.len() <= at_most, "change {number}, seed {seed}");
            }
        }
    }
}
