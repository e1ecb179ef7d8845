//! Verdicts that still hold: what a file's state says of it -> digest; digest and rules -> clean; or what was told of it.
//!
//! They live in a table on disk (`worker::clean`), so that they survive a restart: clean verdicts of whole files, and all that was
//! told of files that matched or were scanned in part, to be told again alike. What is told too long for the table is
//! kept in memory, and scanned again after a restart. A state is trusted only when it was old already while the file
//! was read: a file can change and keep its times within the granularity of the file system's clock, and through a
//! shared mapping until the kernel has written its dirty pages back (30 s and 5 s by default, admin-guide/sysctl/vm:
//! dirty_expire_centisecs, dirty_writeback_centisecs); the next write then changes the times. A close-write
//! says that content may be new whatever the times say: its file is forgotten, and never looked up. Where a rule asks for
//! the time, a verdict holds for the day (UTC) that it was made on.
//!
//! Files on file systems that somebody answers for (FUSE, network) are for the caller to keep away:
//! `sys::filesystem::Word`. Used from several threads; two processes may use one file.

use super::lru::Lru;
use crate::worker::Scan;
use crate::worker::clean::recent::Recent;
use crate::worker::clean::{Entry, Layout, NAME_BYTES, Region, Table, of_the_day, version_of};
use crate::worker::poison::FileKey;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vidette_protocol::wire::Verdict;

/// Its name in the state folder.
pub const NAME: &str = "verdicts.cache";
/// Files that are known by default.
pub const FILES_DEFAULT: u64 = 1_000_000;
/// What a configuration may set.
pub const FILES_RANGE: std::ops::RangeInclusive<u64> = 1_000..=100_000_000;
/// Files of which more was told than the table takes, or for which there is none; each up to 96 KiB.
pub const MATCHED_MAX: usize = 128;
/// Times younger than this are not trusted for a clean verdict. Nanoseconds.
pub const YOUNG_NS: i64 = 60_000_000_000;
/// The same for one that matched, where a mistake is an alert too many: granularity of the clock alone. Nanoseconds.
pub const YOUNG_MATCHED_NS: i64 = 2_000_000_000;

/// Where verdicts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file; none keeps nothing beyond this process.
    pub path: Option<PathBuf>,
    /// Files that are known at most.
    pub files_max: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self { path: None, files_max: FILES_DEFAULT }
    }
}

/// What a verdict is by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By<'a> {
    /// Version of rules and lists.
    pub rules_version: &'a str,
    /// Above it only head and tail of a file are scanned, so that another number may find other matches. Bytes.
    pub size_max_bytes: u64,
}

impl By<'_> {
    /// For what is told, which may be of a part.
    fn version(&self) -> [u8; 8] {
        version_of(&format!("{} told, of {} bytes", self.rules_version, self.size_max_bytes))
    }
}

/// What is not on disk: by which rules, and what was told.
type InMemory = Lru<FileKey, ([u8; 8], Arc<Scan>)>;

/// The cache.
#[derive(Debug)]
pub struct Verdicts {
    /// None: there is no disk for it, and every file is new.
    table: Option<Arc<Table>>,
    matched: Mutex<InMemory>,
}

/// A verdict and the digest it is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// Clean.
    Clean([u8; 32]),
    /// Matched, or scanned in part, with everything.
    Told(Arc<Scan>),
}

/// Asks for many files, those of a folder one after the other. For one thread.
#[derive(Debug)]
pub struct Asking {
    table: Arc<Table>,
    version: [u8; 8],
    recent: Recent,
}

impl Asking {
    /// As [`Verdicts::known_clean`].
    #[must_use]
    pub fn known_clean(&mut self, key: &FileKey, now_ns: i64) -> Option<[u8; 32]> {
        if !is_settled(key, now_ns, YOUNG_NS) {
            return None;
        }
        let name = bytes_of(key);
        let entry = self.table.get_near(&mut self.recent, &name)?;
        still_clean(&self.table, &name, entry, self.version, now_ns)
    }
}

impl Verdicts {
    /// Nothing on disk.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { table: None, matched: Mutex::new(Lru::new(MATCHED_MAX)) }
    }

    /// The table at `path`, for about `files_max` files; made anew when there is none that can be used.
    ///
    /// # Errors
    /// There is no place for it. Work goes on with [`Self::in_memory`].
    pub fn open(path: &Path, files_max: u64) -> io::Result<Self> {
        let table = Table::open(path, Layout::for_files(files_max.clamp(1, *FILES_RANGE.end())))?;
        Ok(Self { table: Some(Arc::new(table)), ..Self::in_memory() })
    }

    /// At its place; in memory, with a warning, where there is no room.
    #[must_use]
    pub fn at(place: &Place) -> Self {
        let Some(path) = &place.path else { return Self::in_memory() };
        Self::open(path, place.files_max).unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                path = %path.display(),
                "could not keep verdicts on disk: files that were scanned are scanned again; check the folder"
            );
            Self::in_memory()
        })
    }

    /// The digest of a file that is clean by these rules, by the clock `now_ns` (Unix nanoseconds). One read,
    /// mostly.
    #[must_use]
    pub fn known_clean(&self, key: &FileKey, rules_version: &str, now_ns: i64) -> Option<[u8; 32]> {
        if !is_settled(key, now_ns, YOUNG_NS) {
            return None;
        }
        let table = self.table.as_ref()?;
        let name = bytes_of(key);
        let entry = table.get(Region::Files, &name)?;
        still_clean(table, &name, entry, version_of(rules_version), now_ns)
    }

    /// For a walk that asks by these rules; `None` when there is nothing to ask.
    #[must_use]
    pub fn asking(&self, rules_version: &str) -> Option<Asking> {
        let table = self.table.clone()?;
        Some(Asking { table, version: version_of(rules_version), recent: Recent::default() })
    }

    /// For scanners, which look for digests.
    #[must_use]
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.clone()
    }

    /// What is known of a file: clean, or what was told of it.
    #[must_use]
    pub fn get(&self, key: &FileKey, by: By<'_>, now_ns: i64) -> Option<Known> {
        if let Some(digest) = self.known_clean(key, by.rules_version, now_ns) {
            return Some(Known::Clean(digest));
        }
        self.told(key, by, now_ns).map(Known::Told)
    }

    /// What was told of a file that matched or was scanned in part.
    #[must_use]
    pub fn told(&self, key: &FileKey, by: By<'_>, now_ns: i64) -> Option<Arc<Scan>> {
        if !is_settled(key, now_ns, YOUNG_MATCHED_NS) {
            return None;
        }
        let version = by.version();
        let versions = [version, of_the_day(version, now_ns)];
        let in_memory =
            self.matched().get(key).filter(|kept| versions.contains(&kept.0)).map(|kept| kept.1.clone());
        let on_disk = || {
            let (table, name) = (self.table.as_ref()?, bytes_of(key));
            versions.into_iter().find_map(|version| table.told(&name, version)).map(Arc::new)
        };
        let scan = in_memory.or_else(on_disk)?;
        is_settled(key, now_ns, young_ns(scan.verdict)?).then_some(scan)
    }

    /// Keeps what a scan said, when it may: `before` and `after` are of the descriptor, `began_ns` is when the scan was
    /// asked for. The caller vouches for the file system.
    pub fn put(&self, before: &FileKey, after: &FileKey, began_ns: i64, by: By<'_>, scan: &Scan) {
        let settled = young_ns(scan.verdict).is_some_and(|young_ns| is_settled(before, began_ns, young_ns));
        if !(before == after && scan.stable && scan.lasting && settled) {
            return;
        }
        let whole = scan.detail.is_empty() && scan.scanned_bytes == before.size;
        let in_part = !scan.detail.is_empty() && scan.scanned_bytes < before.size;
        match (scan.verdict, scan.blake3) {
            (Verdict::Clean, Some(digest)) if whole => {
                let Some(table) = &self.table else { return };
                let entry = Entry { digest, version: dated(version_of(by.rules_version), scan, began_ns) };
                table.put(Region::Files, &bytes_of(before), &entry, began_ns);
                // Scanners look there, and know of no days.
                if !scan.of_the_day {
                    table.put(Region::Digests, &digest, &entry, began_ns);
                }
            }
            (Verdict::Matched, Some(_)) if whole || in_part => self.tell(before, began_ns, by, scan),
            (Verdict::TooLarge, _) if in_part => self.tell(before, began_ns, by, scan),
            (
                Verdict::Clean
                | Verdict::Matched
                | Verdict::TooLarge
                | Verdict::TimedOut
                | Verdict::Failed
                | Verdict::NotScanned
                | Verdict::Unspecified,
                _,
            ) => {}
        }
    }

    /// On disk; in memory where that does not do, so that there is one of both.
    fn tell(&self, key: &FileKey, began_ns: i64, by: By<'_>, scan: &Scan) {
        let version = dated(by.version(), scan, began_ns);
        let on_disk =
            self.table.as_ref().is_some_and(|table| table.tell(&bytes_of(key), version, scan, began_ns));
        if on_disk {
            self.matched().remove(key);
        } else {
            self.matched().insert(*key, (version, Arc::new(scan.clone())));
        }
    }

    /// Its content may be new though its state is not.
    pub fn forget(&self, key: &FileKey) {
        if let Some(table) = &self.table {
            table.forget(Region::Files, &bytes_of(key));
        }
        self.matched().remove(key);
    }

    fn matched(&self) -> MutexGuard<'_, InMemory> {
        // A map of whole values, whoever panicked while holding it.
        self.matched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digest, when an entry is by these rules; or when they were asked of its content under another name.
fn still_clean(
    table: &Table,
    name: &[u8; NAME_BYTES],
    entry: Entry,
    version: [u8; 8],
    now_ns: i64,
) -> Option<[u8; 32]> {
    if entry.version == version || entry.version == of_the_day(version, now_ns) {
        return Some(entry.digest);
    }
    let clean = table.get(Region::Digests, &entry.digest)?;
    (clean.version == version).then(|| {
        table.put(Region::Files, name, &Entry { version, ..entry }, now_ns);
        entry.digest
    })
}

/// What a verdict is kept by: where a rule asks for the time, also by the day.
fn dated(version: [u8; 8], scan: &Scan, began_ns: i64) -> [u8; 8] {
    if scan.of_the_day { of_the_day(version, began_ns) } else { version }
}

/// How old a state must be for a verdict to be kept; `None` for one that never is.
fn young_ns(verdict: Verdict) -> Option<i64> {
    match verdict {
        Verdict::Clean | Verdict::TooLarge => Some(YOUNG_NS),
        Verdict::Matched => Some(YOUNG_MATCHED_NS),
        Verdict::TimedOut | Verdict::Failed | Verdict::NotScanned | Verdict::Unspecified => None,
    }
}

fn is_settled(key: &FileKey, now_ns: i64, young_ns: i64) -> bool {
    key.ctime_ns.max(key.mtime_ns) <= now_ns.saturating_sub(young_ns)
}

fn bytes_of(key: &FileKey) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let numbers = [
        key.device.to_le_bytes(),
        key.inode.to_le_bytes(),
        key.size.to_le_bytes(),
        key.mtime_ns.to_le_bytes(),
        key.ctime_ns.to_le_bytes(),
    ];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number);
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
