//! Which ids of one segment: bits in memory, on disk the shorter of those bits and a list. Pure.
//!
//! `segments` writes them, `search` reads them and keeps what is in all of them.

use super::segments::SEGMENT_IDS;

const WORDS: usize = (SEGMENT_IDS / 64) as usize;
/// Bytes of a set that is stored as bits.
const BITS_BYTES: usize = WORDS * 8;
/// Above it the bits are shorter. One less than would be as long, so that the length says which of the two it is.
const LISTED_MAX: usize = BITS_BYTES / 2 - 1;

const _: () = assert!(SEGMENT_IDS <= 1 << 16); // a place is two bytes

/// A set of places within a segment, 0 to [`SEGMENT_IDS`] - 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ids([u64; WORDS]);

/// Bytes that are no set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

impl Ids {
    /// The empty set.
    pub(super) fn none() -> Self {
        Self([0; WORDS])
    }

    /// Every place.
    pub(super) fn all() -> Self {
        Self([u64::MAX; WORDS])
    }

    /// Adds what [`encode`] made.
    pub(super) fn add(&mut self, stored: &[u8]) -> Result<(), Damaged> {
        if stored.len() == BITS_BYTES {
            for (word, bytes) in self.0.iter_mut().zip(stored.as_chunks::<8>().0) {
                *word |= u64::from_le_bytes(*bytes);
            }
            return Ok(());
        }
        let (places, rest) = stored.as_chunks::<2>();
        if !rest.is_empty() || places.len() > LISTED_MAX {
            return Err(Damaged);
        }
        for place in places {
            let place = usize::from(u16::from_le_bytes(*place));
            *self.0.get_mut(place / 64).ok_or(Damaged)? |= 1 << (place % 64);
        }
        Ok(())
    }

    /// Only what is in `other` too.
    pub(super) fn keep(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
    }

    /// Nobody is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Places, the highest first.
    pub(super) fn descending(&self) -> impl Iterator<Item = u64> {
        let words = self.0.iter().enumerate().rev().filter(|(_, word)| **word != 0);
        words.flat_map(|(index, word)| {
            let set = (0..64).rev().filter(move |bit| word >> bit & 1 == 1);
            set.map(move |bit| index as u64 * 64 + bit)
        })
    }
}

/// As it is stored. `places` in any order, each once, below [`SEGMENT_IDS`].
pub(super) fn encode(mut places: Vec<u16>) -> Vec<u8> {
    if places.len() <= LISTED_MAX {
        places.sort_unstable();
        return places.into_iter().flat_map(u16::to_le_bytes).collect();
    }
    let mut bits = [0_u64; WORDS];
    for place in places.into_iter().map(usize::from) {
        if let Some(word) = bits.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }
    bits.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn places(seed: u64, count: usize) -> BTreeSet<u16> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u16::try_from((state >> 33) % SEGMENT_IDS).unwrap()
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn what_is_stored_is_read_back_and_kept_with_others() {
        for (seed, counts) in
            [(1, (0, 5)), (2, (1, 1023)), (3, (1023, 1024)), (4, (1024, 9000)), (5, (60_000, 3))]
        {
            let (one, two) = (places(seed, counts.0), places(seed + 100, counts.1));
            let read = |set: &BTreeSet<u16>| {
                let bytes = encode(set.iter().rev().copied().collect());
                assert!(bytes.len() <= BITS_BYTES);
                let mut ids = Ids::none();
                ids.add(&bytes).unwrap();
                ids
            };
            let all = |ids: &Ids| ids.descending().map(|place| place as u16).collect::<Vec<_>>();
            let mut ids = read(&one);
            assert_eq!(all(&ids), one.iter().rev().copied().collect::<Vec<_>>(), "seed {seed}");
            ids.keep(&read(&two));
            assert_eq!(all(&ids), (&one & &two).into_iter().rev().collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(ids.is_empty(), one.is_disjoint(&two), "seed {seed}");
        }
        assert_eq!(Ids::all().descending().count() as u64, SEGMENT_IDS);
    }

    #[test]
    fn bytes_that_are_no_set_are_refused() {
        for bytes in [vec![1], vec![0; BITS_BYTES + 1], vec![0; BITS_BYTES + 2], vec![0xff, 0xff]] {
            assert_eq!(Ids::none().add(&bytes), Err(Damaged), "{} bytes", bytes.len());
        }
    }
}
