//! Fixed-size entries in a file, found by a keyed fingerprint. Never mapped and never held in memory: a look-up reads
//! one bucket.
//!
//! ```text
//! header page | buckets of the region Files | buckets of the region Digests
//! bucket: 8 entries of 64 bytes
//! entry: fingerprint 16, digest 32, version 8, day 2, checksum 6
//! ```
//!
//! Fingerprint and checksum are BLAKE3 keyed with the header's random key, so that an entry that is torn, damaged or
//! of another name is a miss; a damaged header makes the whole file anew. The file's size is fixed and it is
//! sparse until used; in a full bucket the oldest goes. Nothing is synced: what power loss takes is scanned again.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// Before the buckets.
pub const HEADER_BYTES: usize = 4096;
/// One entry.
pub const ENTRY_BYTES: usize = 64;
/// Entries that share a bucket.
const BUCKET_ENTRIES: usize = 8;
const BUCKET_BYTES: usize = BUCKET_ENTRIES * ENTRY_BYTES;
/// "VIDETTE" and the format.
const MAGIC: [u8; 8] = *b"VIDETTE1";
/// Nanoseconds of a day.
const DAY_NS: i64 = 86_400_000_000_000;
/// Of the header: magic, two bucket counts, key; then its checksum.
const SIGNED_BYTES: usize = 8 + 8 + 8 + 32;

const _: () = assert!(SIGNED_BYTES + 32 <= HEADER_BYTES && HEADER_BYTES.is_multiple_of(BUCKET_BYTES));

/// Which half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// By the state of a file.
    Files,
    /// By digest.
    Digests,
}

/// How many buckets each region has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    files: u64,
    digests: u64,
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// BLAKE3 of the content.
    pub digest: [u8; 32],
    /// The rules by which it is clean.
    pub version: [u8; 8],
}

/// The open table.
#[derive(Debug)]
pub struct Table {
    file: File,
    layout: Layout,
    key: [u8; 32],
}

impl Layout {
    /// A quarter more room than files, because buckets fill unevenly; half as many digests, because copies share one.
    #[must_use]
    pub fn for_files(files: u64) -> Self {
        let buckets = |entries: u64| entries.div_ceil(BUCKET_ENTRIES as u64).max(1);
        Self { files: buckets(files.saturating_add(files / 4)), digests: buckets(files / 2) }
    }

    fn bytes(self) -> u64 {
        HEADER_BYTES as u64 + (self.files + self.digests) * BUCKET_BYTES as u64
    }
}

impl Table {
    /// Opens it; one that can't be used is replaced.
    ///
    /// # Errors
    /// It could neither be opened nor made.
    pub fn open(path: &Path, layout: Layout) -> io::Result<Self> {
        match Self::existing(path, layout) {
            Some(table) => Ok(table),
            None => Self::make(path, layout),
        }
    }

    fn existing(path: &Path, layout: Layout) -> Option<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
        let data = file.metadata().ok()?;
        let own = data.uid() == rustix::process::geteuid().as_raw() && data.mode() & 0o077 == 0;
        if !data.is_file() || !own || data.len() != layout.bytes() {
            return None;
        }
        let mut header = [0; SIGNED_BYTES + 32];
        file.read_exact_at(&mut header, 0).ok()?;
        let (signed, checksum) = header.split_at(SIGNED_BYTES);
        let key: [u8; 32] = signed.get(24..)?.try_into().ok()?;
        let right = checksum == blake3::hash(signed).as_bytes() && *signed == header_of(layout, &key);
        right.then_some(Self { file, layout, key })
    }

    /// Beside it first: another process may be using the old one, which it keeps until it ends.
    fn make(path: &Path, layout: Layout) -> io::Result<Self> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}.new", std::process::id()));
        let _ = std::fs::remove_file(&draft); // of a process that had our number
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(&draft, flags, Mode::RUSR | Mode::WUSR)?);
        let key: [u8; 32] = rand::random();
        let signed = header_of(layout, &key);
        let written = file
            .set_len(layout.bytes())
            .and_then(|()| file.write_all_at(&signed, 0))
            .and_then(|()| file.write_all_at(blake3::hash(&signed).as_bytes(), SIGNED_BYTES as u64))
            .and_then(|()| std::fs::rename(&draft, path));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&draft);
            return Err(error);
        }
        Ok(Self { file, layout, key })
    }

    /// What is kept under a name.
    #[must_use]
    pub fn get(&self, region: Region, name: &[u8]) -> Option<Entry> {
        let (fingerprint, at) = self.place(region, name);
        let bucket = self.bucket(at)?;
        bucket.chunks_exact(ENTRY_BYTES).find_map(|bytes| self.read(bytes, &fingerprint))
    }

    /// Keeps an entry, in place of the same name, of nothing, or of the oldest. What can't be written is not kept.
    pub fn put(&self, region: Region, name: &[u8], entry: &Entry, now_ns: i64) {
        let (fingerprint, at) = self.place(region, name);
        let Some(bucket) = self.bucket(at) else { return };
        let slots = || bucket.chunks_exact(ENTRY_BYTES);
        let same = slots().position(|slot| slot.starts_with(&fingerprint));
        let slot = same.or_else(|| (0..).zip(slots()).min_by_key(|(_, slot)| day_of(slot)).map(|(at, _)| at));
        let bytes = self.written(&fingerprint, entry, now_ns);
        let _ = self.file.write_all_at(&bytes, at + (slot.unwrap_or(0) * ENTRY_BYTES) as u64);
    }

    /// Keeps nothing under a name.
    pub fn forget(&self, region: Region, name: &[u8]) {
        let (fingerprint, at) = self.place(region, name);
        let Some(bucket) = self.bucket(at) else { return };
        for (number, slot) in bucket.chunks_exact(ENTRY_BYTES).enumerate() {
            if slot.starts_with(&fingerprint) {
                let _ = self.file.write_all_at(&[0; ENTRY_BYTES], at + (number * ENTRY_BYTES) as u64);
            }
        }
    }

    /// Fingerprint, and where its bucket begins.
    fn place(&self, region: Region, name: &[u8]) -> ([u8; 16], u64) {
        let hash = blake3::keyed_hash(&self.key, name);
        let (mut fingerprint, mut number) = ([0; 16], [0; 8]);
        fingerprint.copy_from_slice(&hash.as_bytes()[..16]);
        number.copy_from_slice(&hash.as_bytes()[16..24]);
        let number = u64::from_le_bytes(number);
        let bucket = match region {
            Region::Files => number % self.layout.files,
            Region::Digests => self.layout.files + number % self.layout.digests,
        };
        (fingerprint, HEADER_BYTES as u64 + bucket * BUCKET_BYTES as u64)
    }

    /// Empty past a cut.
    fn bucket(&self, at: u64) -> Option<[u8; BUCKET_BYTES]> {
        let mut bucket = [0; BUCKET_BYTES];
        self.file.read_at(&mut bucket, at).ok().map(|_| bucket)
    }

    fn read(&self, bytes: &[u8], fingerprint: &[u8; 16]) -> Option<Entry> {
        let (body, checksum) = bytes.split_last_chunk::<6>()?;
        if !body.starts_with(fingerprint) || self.checksum(body) != *checksum {
            return None;
        }
        let digest = body.get(16..48)?.try_into().ok()?;
        let version = body.get(48..56)?.try_into().ok()?;
        Some(Entry { digest, version })
    }

    fn written(&self, fingerprint: &[u8; 16], entry: &Entry, now_ns: i64) -> [u8; ENTRY_BYTES] {
        // From 1 on: 0 is an empty place.
        let day = u16::try_from(now_ns / DAY_NS).unwrap_or(u16::MAX).saturating_add(1);
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..16].copy_from_slice(fingerprint);
        bytes[16..48].copy_from_slice(&entry.digest);
        bytes[48..56].copy_from_slice(&entry.version);
        bytes[56..58].copy_from_slice(&day.to_le_bytes());
        let checksum = self.checksum(&bytes[..58]);
        bytes[58..].copy_from_slice(&checksum);
        bytes
    }

    fn checksum(&self, body: &[u8]) -> [u8; 6] {
        let hash = blake3::keyed_hash(&self.key, body);
        let mut checksum = [0; 6];
        checksum.copy_from_slice(&hash.as_bytes()[..6]);
        checksum
    }
}

fn day_of(slot: &[u8]) -> u16 {
    match slot {
        [.., low, high, _, _, _, _, _, _] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

fn header_of(layout: Layout, key: &[u8; 32]) -> [u8; SIGNED_BYTES] {
    let mut header = [0; SIGNED_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&layout.files.to_le_bytes());
    header[16..24].copy_from_slice(&layout.digests.to_le_bytes());
    header[24..].copy_from_slice(key);
    header
}
