//! Digests that are looked up: a filter and a small index in memory, the digests themselves on disk.
//!
//! ```text
//! key = SipHash(digest), with a seed of this table's own
//! shard = top 8 bits of key -> filter (binary fuse, 8 bits) -> bucket by the next 32 bits -> one pread of its records
//! ```
//!
//! What is not listed ends at the filter 255 times of 256. A record is the digest, the number of its list (2 bytes, little
//! endian) and where its name lies in the file (6 bytes; 0 is none), so that a name costs a second pread. Digests that
//! somebody has chosen, to fall into one bucket, don't: the seed is random. The file is ours alone and has no name.

use super::Kind;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::FileExt as _;
use xorf::{BinaryFuse8, Filter as _};

/// Parts that are sorted one by one, and that have a filter each.
pub const SHARDS: usize = 256;
/// What follows the digest in a record. Bytes.
pub const TAIL_BYTES: usize = 8;
/// Records in a bucket, on average.
pub const BUCKET_RECORDS: usize = 32;

const _: () = assert!(SHARDS == 1 << 8);

/// All digests of one kind.
#[derive(Debug)]
pub struct Table {
    kind: Kind,
    seed: RandomState,
    shards: Vec<Shard>,
    entries: u64,
}

/// A part of them.
#[derive(Debug, Default)]
struct Shard {
    /// Where its first record lies in the file.
    start: u64,
    /// Number of the first record of each bucket, and of all; empty when there are none.
    starts: Box<[u32]>,
    /// None when none could be made: then the disk is asked each time.
    filter: Option<BinaryFuse8>,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Number of its list.
    pub list: u16,
    /// Where its name lies; 0 is none.
    pub name: u64,
}

impl Record {
    /// As stored.
    #[must_use]
    pub fn tail(self) -> [u8; TAIL_BYTES] {
        let mut tail = [0; TAIL_BYTES];
        let (list, name) = tail.split_at_mut(2);
        list.copy_from_slice(&self.list.to_le_bytes());
        name.copy_from_slice(self.name.to_le_bytes().get(..6).unwrap_or_default());
        tail
    }

    /// From what is stored; what is too short is zeros.
    #[must_use]
    pub fn of(tail: &[u8]) -> Self {
        let byte = |at: usize| tail.get(at).copied().unwrap_or_default();
        let list = u16::from_le_bytes([byte(0), byte(1)]);
        let name = u64::from_le_bytes([byte(2), byte(3), byte(4), byte(5), byte(6), byte(7), 0, 0]);
        Self { list, name }
    }
}

/// In which shard a key is.
#[must_use]
pub fn shard(key: u64) -> usize {
    usize::try_from(key >> 56).unwrap_or_default()
}

/// The same digest gets the same key in one table.
#[must_use]
pub fn key(seed: &RandomState, digest: &[u8]) -> u64 {
    seed.hash_one(digest)
}

/// In which of `buckets`: keys that are larger are in no earlier one.
fn bucket(key: u64, buckets: usize) -> usize {
    let fraction = u128::from(key << 8);
    usize::try_from((fraction * buckets as u128) >> 64).unwrap_or_default()
}

impl Table {
    /// Without digests yet.
    #[must_use]
    pub fn new(kind: Kind, seed: RandomState) -> Self {
        Self { kind, seed, shards: Vec::with_capacity(SHARDS), entries: 0 }
    }

    /// The next shard, whose records will lie at `start` in the order of `keys`, which is sorted.
    pub fn push(&mut self, start: u64, keys: &[u64]) {
        self.entries += keys.len() as u64;
        if keys.is_empty() {
            return self.shards.push(Shard::default());
        }
        let buckets = keys.len() / BUCKET_RECORDS + 1;
        let mut starts = vec![0u32; buckets + 1];
        for key in keys {
            if let Some(count) = starts.get_mut(bucket(*key, buckets) + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        // Two digests may have one key; the filter wants each key once.
        let mut distinct = keys.to_vec();
        distinct.dedup();
        let filter = BinaryFuse8::try_from(distinct.as_slice()).ok();
        self.shards.push(Shard { start, starts: starts.into(), filter });
    }

    /// What is stored for a digest.
    ///
    /// # Errors
    /// The disk can't be read.
    pub fn find(&self, digest: &[u8], file: &File) -> io::Result<Option<Record>> {
        let key = key(&self.seed, digest);
        let Some(shard) = self.shards.get(shard(key)) else { return Ok(None) };
        let Some(buckets) = shard.starts.len().checked_sub(1) else { return Ok(None) };
        if shard.filter.as_ref().is_some_and(|filter| !filter.contains(&key)) {
            return Ok(None);
        }
        let bucket = bucket(key, buckets);
        let (Some(first), Some(end)) = (shard.starts.get(bucket), shard.starts.get(bucket + 1)) else {
            return Ok(None);
        };
        let bytes = self.kind.bytes() + TAIL_BYTES;
        let mut records = vec![0; end.saturating_sub(*first) as usize * bytes];
        file.read_exact_at(&mut records, shard.start + u64::from(*first) * bytes as u64)?;
        let found = records.chunks_exact(bytes).find_map(|record| record.strip_prefix(digest));
        Ok(found.map(Record::of))
    }

    /// How many.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What it has in memory. Bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let of = |shard: &Shard| {
            let filter = shard.filter.as_ref().map_or(0, |filter| filter.fingerprints.len());
            filter + size_of_val(&*shard.starts) + size_of::<Shard>()
        };
        self.shards.iter().map(of).sum::<usize>() as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_it_was() {
        for record in [Record { list: 0, name: 0 }, Record { list: u16::MAX, name: (1 << 48) - 1 }] {
            assert_eq!(Record::of(&record.tail()), record);
        }
        assert_eq!(Record::of(&[7]), Record { list: 7, name: 0 });
    }

    #[test]
    fn buckets_are_in_the_order_of_keys() {
        for buckets in [1, 2, 3, 1000] {
            let of = |low: u64| bucket((9 << 56) | low, buckets);
            assert_eq!((of(0), of((1 << 56) - 1)), (0, buckets - 1));
            assert!((0..1000u64).map(|n| of(n << 46)).is_sorted());
        }
    }
}
