//! What is known of files: fixed-size entries for what is clean, found by a keyed fingerprint, and records of what is told of the few
//! others. Never mapped and never held in memory: a look-up reads one page, and files that were made together share it.
//!
//! ```text
//! header page | pages of the region Files | buckets of the region Digests | sets of records (`told`)
//! page: 64 entries; bucket: 8 entries of 64 bytes
//! entry: fingerprint 16, digest 32, version 8, day 2, checksum 6
//! ```
//!
//! A file's home page is a keyed hash of its device and of its inode divided by 16, so that a walk finds what it asks for next in
//! pages that it has read (`recent`), and nobody can choose inodes that crowd out others. In a full page an entry goes to a
//! bucket of any other page, found by its fingerprint; where that is full too, the oldest of both goes.
//!
//! Fingerprint and checksum are BLAKE3 keyed with the header's random key, so that an entry that is torn, damaged or
//! of another name is a miss; a damaged header makes the whole file anew. The file's size is fixed and it is
//! sparse until used. Nothing is synced: what power loss takes is scanned again.
//!
//! `detection::verdicts` writes it. A scanning worker gets it open for reading alone and looks for digests: a copy of
//! what is clean need not be scanned.

/// Pages that a walk has just read.
pub mod recent;
/// What is told of a file that is not simply clean.
pub mod told;

use super::messages::CleanTable;
use super::process::for_reading;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Before the pages.
pub const HEADER_BYTES: usize = 4096;
/// One entry.
pub const ENTRY_BYTES: usize = 64;
/// Entries that share a page.
const PAGE_ENTRIES: usize = 64;
/// What is read at once for a file.
pub const PAGE_BYTES: usize = PAGE_ENTRIES * ENTRY_BYTES;
/// Entries that share a bucket.
const BUCKET_ENTRIES: usize = 8;
const BUCKET_BYTES: usize = BUCKET_ENTRIES * ENTRY_BYTES;
const BUCKETS_OF_PAGE: u64 = (PAGE_BYTES / BUCKET_BYTES) as u64;
/// Inodes that follow each other and have the same home page. More of them would fill pages less evenly.
const GROUP_INODES: u64 = 16;
/// What a file begins with whatever its format.
pub const MAGIC_START: [u8; 7] = *b"VIDETTE";
/// "VIDETTE" and the format; a file begins with it.
pub const MAGIC: [u8; 8] = *b"VIDETTE2";
/// What compiles and scans: another one may come to other verdicts by the same rules.
const ENGINE: &str = "yara-x 1.22.1";
/// The name of a file: device, inode, size and times, 8 bytes each.
pub const NAME_BYTES: usize = 40;
/// Nanoseconds of a day.
const DAY_NS: i64 = 86_400_000_000_000;
/// Of the header: magic, three counts, key; then its checksum.
const SIGNED_BYTES: usize = 8 + 3 * 8 + 32;

const _: () = assert!(SIGNED_BYTES + 32 <= HEADER_BYTES && HEADER_BYTES.is_multiple_of(PAGE_BYTES));

/// Which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// By the state of a file: names of [`NAME_BYTES`].
    Files,
    /// By digest.
    Digests,
}

/// How large each part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Pages.
    files: u64,
    /// Buckets.
    digests: u64,
    /// Sets of records.
    told: u64,
}

/// The rules of one version, as entries name them. Another version of the agent or of its engine may compile the same
/// rules to other verdicts.
#[must_use]
pub fn version_of(rules_version: &str) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in [env!("CARGO_PKG_VERSION"), ENGINE] {
        hasher.update(part.as_bytes()).update(&[0]);
    }
    hasher.update(rules_version.as_bytes());
    let mut version = [0; 8];
    hasher.finalize_xof().fill(&mut version);
    version
}

/// The version of rules together with that of hash lists; of the rules alone where there are none.
#[must_use]
pub fn with_lists(rules_version: &str, lists_version: &str) -> String {
    if lists_version.is_empty() {
        return rules_version.to_owned();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(rules_version.as_bytes()).update(b"\0").update(lists_version.as_bytes());
    let mut version = hasher.finalize().to_hex().to_string();
    version.truncate(16);
    version
}

/// The same rules on one day (UTC), for verdicts of rules that ask for the time.
#[must_use]
pub fn of_the_day(version: [u8; 8], now_ns: i64) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&version).update(&now_ns.div_euclid(DAY_NS).to_le_bytes());
    let mut of_the_day = [0; 8];
    hasher.finalize_xof().fill(&mut of_the_day);
    of_the_day
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
    /// Grows after every change that this process makes to the region Files.
    changes: AtomicU64,
}

/// Where an entry may lie, as offsets of what is read.
struct Places {
    fingerprint: [u8; 16],
    /// Its home page, and the place in it that is looked at first. Digests have none.
    page: Option<(u64, usize)>,
    bucket: u64,
}

impl Layout {
    /// Half as much room again as files, because pages fill unevenly; half as many digests, because copies share one.
    #[must_use]
    pub fn for_files(files: u64) -> Self {
        let parts = |entries: u64, of: usize| entries.div_ceil(of as u64).max(1);
        Self {
            files: parts(files.saturating_add(files / 2), PAGE_ENTRIES),
            digests: parts(files / 2, BUCKET_ENTRIES),
            told: told::sets_for(files),
        }
    }

    fn digests_at(self) -> u64 {
        HEADER_BYTES as u64 + self.files * PAGE_BYTES as u64
    }

    fn told_at(self) -> u64 {
        self.digests_at() + self.digests * BUCKET_BYTES as u64
    }

    fn bytes(self) -> u64 {
        self.told_at() + self.told * told::SET_BYTES
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
        let key: [u8; 32] = signed.get(32..)?.try_into().ok()?;
        let right = checksum == blake3::hash(signed).as_bytes() && *signed == header_of(layout, &key);
        right.then(|| Self::with(file, layout, key))
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
        Ok(Self::with(file, layout, key))
    }

    fn with(file: File, layout: Layout, key: [u8; 32]) -> Self {
        Self { file, layout, key, changes: AtomicU64::new(0) }
    }

    /// What is kept under a name.
    #[must_use]
    pub fn get(&self, region: Region, name: &[u8]) -> Option<Entry> {
        let places = self.places(region, name);
        let at_home = places.page.and_then(|(at, first)| {
            let page = self.bytes_at::<PAGE_BYTES>(at)?;
            self.find(&page, first, &places.fingerprint)
        });
        at_home.or_else(|| self.elsewhere(&places))
    }

    fn elsewhere(&self, places: &Places) -> Option<Entry> {
        self.find(&self.bytes_at::<BUCKET_BYTES>(places.bucket)?, 0, &places.fingerprint)
    }

    /// Keeps an entry, in place of the same name, of nothing, or of the oldest. What can't be written is not kept.
    pub fn put(&self, region: Region, name: &[u8], entry: &Entry, now_ns: i64) {
        let places = self.places(region, name);
        let Some(slot) = self.slot_for(&places) else { return };
        let _ = self.file.write_all_at(&self.written(&places.fingerprint, entry, now_ns), slot);
        self.changed(region);
    }

    fn slot_for(&self, places: &Places) -> Option<u64> {
        let bucket = slots(&self.bytes_at::<BUCKET_BYTES>(places.bucket)?, places.bucket, 0);
        let mut all = match places.page {
            Some((at, first)) => slots(&self.bytes_at::<PAGE_BYTES>(at)?, at, first),
            None => Vec::new(),
        };
        all.extend(bucket);
        let same = all.iter().find(|slot| slot.fingerprint == places.fingerprint);
        // The first of several that are as old: an empty one is the oldest of all.
        let slot = same.or_else(|| all.iter().min_by_key(|slot| slot.day))?;
        Some(slot.at)
    }

    /// Keeps nothing under a name.
    pub fn forget(&self, region: Region, name: &[u8]) {
        let places = self.places(region, name);
        let page = places.page.and_then(|(at, _)| Some(slots(&self.bytes_at::<PAGE_BYTES>(at)?, at, 0)));
        let bucket = self.bytes_at::<BUCKET_BYTES>(places.bucket);
        let bucket = bucket.map(|bytes| slots(&bytes, places.bucket, 0));
        for slot in page.into_iter().chain(bucket).flatten() {
            if slot.fingerprint == places.fingerprint {
                let _ = self.file.write_all_at(&[0; ENTRY_BYTES], slot.at);
            }
        }
        if region == Region::Files {
            self.forget_told(&places.fingerprint);
        }
        self.changed(region);
    }

    fn changed(&self, region: Region) {
        if region == Region::Files {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// For a worker that looks for what is clean by `version`: the same file for reading alone, and what it must know.
    ///
    /// # Errors
    /// It can't be opened again.
    pub fn hand(&self, version: [u8; 8]) -> anyhow::Result<(OwnedFd, CleanTable)> {
        let Layout { files, digests, told: _ } = self.layout;
        let table = CleanTable { key: self.key.to_vec(), files, digests, version: version.to_vec() };
        Ok((for_reading(&self.file)?, table))
    }

    /// In the worker that it was handed to, with the version to look for; `None` when that says nothing sensible.
    #[must_use]
    pub fn handed(file: OwnedFd, table: &CleanTable) -> Option<(Self, [u8; 8])> {
        let key = table.key.as_slice().try_into().ok()?;
        let version = table.version.as_slice().try_into().ok()?;
        // It has no business with records.
        let layout = Layout { files: table.files, digests: table.digests, told: 0 };
        let bytes = layout.files.checked_add(layout.digests)?.checked_mul(PAGE_BYTES as u64)?;
        let fits = layout.digests > 0 && bytes.checked_add(HEADER_BYTES as u64).is_some();
        fits.then(|| (Self::with(file.into(), layout, key), version))
    }

    fn places(&self, region: Region, name: &[u8]) -> Places {
        let hash = blake3::keyed_hash(&self.key, name);
        let (fingerprint, number) = halves(&hash);
        match region {
            Region::Files => {
                let bucket = number % (self.layout.files * BUCKETS_OF_PAGE);
                let bucket = HEADER_BYTES as u64 + bucket * BUCKET_BYTES as u64;
                Places { fingerprint, page: Some(self.home(name)), bucket }
            }
            Region::Digests => {
                let bucket = self.layout.digests_at() + number % self.layout.digests * BUCKET_BYTES as u64;
                Places { fingerprint, page: None, bucket }
            }
        }
    }

    /// Where a file's home page begins, and which of its places is looked at first.
    fn home(&self, name: &[u8]) -> (u64, usize) {
        let (device, inode) = device_and_inode(name);
        // No name and no body of an entry is as short, so that none has this hash.
        let mut group = [0; 16];
        group[..8].copy_from_slice(&device.to_le_bytes());
        group[8..].copy_from_slice(&(inode / GROUP_INODES).to_le_bytes());
        let (_, number) = halves(&blake3::keyed_hash(&self.key, &group));
        let at = HEADER_BYTES as u64 + number % self.layout.files * PAGE_BYTES as u64;
        let first = usize::try_from(inode % PAGE_ENTRIES as u64).unwrap_or(0);
        (at, first)
    }

    /// Empty past a cut.
    fn bytes_at<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_at(&mut bytes, at).ok().map(|_| bytes)
    }

    fn find(&self, bytes: &[u8], first: usize, fingerprint: &[u8; 16]) -> Option<Entry> {
        let (before, from) = bytes.split_at_checked(first * ENTRY_BYTES)?;
        let mut entries = from.chunks_exact(ENTRY_BYTES).chain(before.chunks_exact(ENTRY_BYTES));
        entries.find_map(|entry| self.read(entry, fingerprint))
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
        let day = day_at(now_ns);
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

/// An entry as it lies there, right or not.
struct Slot {
    at: u64,
    fingerprint: [u8; 16],
    day: u16,
}

/// The entries of a page or bucket that begins at an offset; in the order in which they are looked at.
fn slots(bytes: &[u8], at: u64, first: usize) -> Vec<Slot> {
    let slot = |(number, entry): (u64, &[u8])| Slot {
        at: at + number * ENTRY_BYTES as u64,
        fingerprint: entry.first_chunk().copied().unwrap_or_default(),
        day: day_of(entry),
    };
    let mut slots: Vec<Slot> = (0..).zip(bytes.chunks_exact(ENTRY_BYTES)).map(slot).collect();
    let first = first.min(slots.len());
    slots.rotate_left(first);
    slots
}

/// From 1 on: 0 is an empty place.
fn day_at(now_ns: i64) -> u16 {
    u16::try_from(now_ns / DAY_NS).unwrap_or(u16::MAX).saturating_add(1)
}

fn day_of(slot: &[u8]) -> u16 {
    match slot {
        [.., low, high, _, _, _, _, _, _] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

fn halves(hash: &blake3::Hash) -> ([u8; 16], u64) {
    let (mut fingerprint, mut number) = ([0; 16], [0; 8]);
    fingerprint.copy_from_slice(&hash.as_bytes()[..16]);
    number.copy_from_slice(&hash.as_bytes()[16..24]);
    (fingerprint, u64::from_le_bytes(number))
}

/// What a file's name begins with.
fn device_and_inode(name: &[u8]) -> (u64, u64) {
    let number = |at: usize| name.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    (number(0).map_or(0, u64::from_le_bytes), number(8).map_or(0, u64::from_le_bytes))
}

fn header_of(layout: Layout, key: &[u8; 32]) -> [u8; SIGNED_BYTES] {
    let mut header = [0; SIGNED_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&layout.files.to_le_bytes());
    header[16..24].copy_from_slice(&layout.digests.to_le_bytes());
    header[24..32].copy_from_slice(&layout.told.to_le_bytes());
    header[32..].copy_from_slice(key);
    header
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
