//! What is told of a file that is not simply clean: it matched, or was scanned in part. One record a file, in the last part of
//! the table.
//!
//! ```text
//! set: 4 heads of 64 bytes, then 4 bodies of up to 32,704 bytes
//! head: fingerprint 16, version 8, day 2, length 4, unused 2, checksum 32
//! body: the worker's answer as it was sent (`messages::Scanned`)
//! ```
//!
//! The checksum is BLAKE3, keyed with the table's key, of the head before it and the body: what is torn or damaged is a miss. What
//! is read goes through the same checks as an answer of a worker. A record that is too large is not kept, and the file
//! scanned again; in a full set the oldest goes.

use super::{NAME_BYTES, Table, day_at, halves};
use crate::worker::Scan;
use crate::worker::messages::{decode_kept, encode_kept};
use std::os::unix::fs::FileExt as _;

const RECORDS: usize = 4;
const HEAD_BYTES: usize = 64;
const HEADS_BYTES: usize = RECORDS * HEAD_BYTES;
/// A record with its head. Bytes.
const RECORD_BYTES: usize = 32 << 10;
/// One record, as encoded. Bytes.
pub const TOLD_BYTES_MAX: usize = RECORD_BYTES - HEAD_BYTES;
/// One set. Bytes.
pub(super) const SET_BYTES: u64 = (RECORDS * RECORD_BYTES) as u64;
/// Sets, from few files to many: together 2 MiB to 512 MiB of a file that is sparse until used.
const SETS_RANGE: (u64, u64) = (16, 4096);
/// Files for each set.
const FILES_OF_SET: u64 = 4000;
/// Of a head: what the checksum is of, with the body.
const SIGNED_BYTES: usize = 32;

const _: () = assert!(SIGNED_BYTES + 32 == HEAD_BYTES);

/// How many sets a table for so many files has.
pub(super) fn sets_for(files: u64) -> u64 {
    (files / FILES_OF_SET).clamp(SETS_RANGE.0, SETS_RANGE.1)
}

impl Table {
    /// Keeps what was told of a file. False when it can't be kept.
    pub fn tell(&self, name: &[u8; NAME_BYTES], version: [u8; 8], scan: &Scan, now_ns: i64) -> bool {
        let body = encode_kept(scan);
        let Ok(length) = u32::try_from(body.len()) else { return false };
        let (fingerprint, Some(at)) = self.set(name) else { return false };
        if body.len() > TOLD_BYTES_MAX {
            return false;
        }
        let Some(heads) = self.bytes_at::<HEADS_BYTES>(at) else { return false };
        let heads = || (0u64..).zip(heads.chunks_exact(HEAD_BYTES));
        let same = heads().find(|(_, head)| head.starts_with(&fingerprint));
        let Some((number, _)) = same.or_else(|| heads().min_by_key(|(_, head)| day_of(head))) else {
            return false;
        };
        let mut head = [0; HEAD_BYTES];
        head[..16].copy_from_slice(&fingerprint);
        head[16..24].copy_from_slice(&version);
        head[24..26].copy_from_slice(&day_at(now_ns).to_le_bytes());
        head[26..30].copy_from_slice(&length.to_le_bytes());
        let checksum = self.checksum_of(&head[..SIGNED_BYTES], &body);
        head[SIGNED_BYTES..].copy_from_slice(&checksum);
        let written = self.file.write_all_at(&body, body_at(at, number));
        written.and_then(|()| self.file.write_all_at(&head, at + number * HEAD_BYTES as u64)).is_ok()
    }

    /// What was told of a file by these rules.
    #[must_use]
    pub fn told(&self, name: &[u8; NAME_BYTES], version: [u8; 8]) -> Option<Scan> {
        let (fingerprint, at) = self.set(name);
        let at = at?;
        let heads = self.bytes_at::<HEADS_BYTES>(at)?;
        let (number, head) =
            (0u64..).zip(heads.chunks_exact(HEAD_BYTES)).find(|(_, head)| head.starts_with(&fingerprint))?;
        let (signed, checksum) = head.split_at_checked(SIGNED_BYTES)?;
        if signed.get(16..24)? != version {
            return None;
        }
        let length = u32::from_le_bytes(signed.get(26..30)?.try_into().ok()?);
        let length = usize::try_from(length).ok().filter(|length| *length <= TOLD_BYTES_MAX)?;
        let mut body = vec![0; length];
        self.file.read_exact_at(&mut body, body_at(at, number)).ok()?;
        if self.checksum_of(signed, &body) != *checksum {
            return None;
        }
        decode_kept(&body)
    }

    pub(super) fn forget_told(&self, fingerprint: &[u8; 16]) {
        let Some(at) = self.set_at(fingerprint) else { return };
        let Some(heads) = self.bytes_at::<HEADS_BYTES>(at) else { return };
        for (number, head) in (0u64..).zip(heads.chunks_exact(HEAD_BYTES)) {
            if head.starts_with(fingerprint) {
                let _ = self.file.write_all_at(&[0; HEAD_BYTES], at + number * HEAD_BYTES as u64);
            }
        }
    }

    pub(super) fn set(&self, name: &[u8; NAME_BYTES]) -> ([u8; 16], Option<u64>) {
        let (fingerprint, _) = halves(&blake3::keyed_hash(&self.key, name));
        (fingerprint, self.set_at(&fingerprint))
    }

    /// Where the set begins; a worker knows of none.
    fn set_at(&self, fingerprint: &[u8; 16]) -> Option<u64> {
        let number = u64::from_le_bytes(fingerprint.first_chunk().copied()?);
        let set = number.checked_rem(self.layout.told)?;
        Some(self.layout.told_at() + set * SET_BYTES)
    }

    fn checksum_of(&self, head: &[u8], body: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(head).update(body);
        *hasher.finalize().as_bytes()
    }
}

fn body_at(set: u64, number: u64) -> u64 {
    set + HEADS_BYTES as u64 + number * TOLD_BYTES_MAX as u64
}

/// 0 for an empty place.
fn day_of(head: &[u8]) -> u16 {
    head.get(24..26).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}
