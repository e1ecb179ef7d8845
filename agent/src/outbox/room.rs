//! What the outbox takes on disk: the database, its write-ahead log and the log's index, together never more than
//! the bound (D4).
//!
//! The bound is divided once, in `Limits`: so much for the log, the rest for the database. What keeps each part
//! within its share:
//!
//! - the log: a transaction is small (`group_bytes_max`, `evict_runs_max`, `give_back_pages`), and after any that
//!   leaves the log above `wal_kept_bytes` it is written back and cut to nothing;
//! - the database: before a transaction that adds, rows are evicted until what it may need fits; afterwards, while
//!   nothing else is to do, pages that are free are given back, so that the file shrinks when a backlog has drained.
//!
//! Assumes that nobody else reads the database for long: a reader that stays would keep the log from being cut.
//! Used by `db` alone.

use rusqlite::Connection;
use std::path::Path;
use vidette_protocol::limits::EVENT_BYTES_MAX;

/// Pages of a new database. Bytes; SQLite's default.
pub const PAGE_BYTES: u64 = 4096;
/// The log is never larger. Bytes.
const WAL_BYTES_MAX: u64 = 32 << 20;
/// The log may stay as large as this. Bytes.
const WAL_KEPT_BYTES_MAX: u64 = 4 << 20;
/// Events of one transaction. Bytes.
const GROUP_BYTES_MAX: u64 = 2 << 20;
/// One block of the log's index, for 4,096 frames (<https://sqlite.org/walformat.html#the_wal_index_file_format>).
const INDEX_BLOCK_BYTES: u64 = 32 << 10;
/// Frames of one block; the first has a few less.
const INDEX_BLOCK_FRAMES: u64 = 4096;
/// Pages that a transaction may need beside its events: inner pages, marks, the growing gap.
const RESERVE_PAGES: u64 = 12;
/// Free pages that stay in the file, so that appending and forgetting in turn does not move pages about.
const FREE_KEPT_PAGES_MAX: u64 = 1024;
/// Pages given back at a time.
const GIVE_BACK_PAGES_MAX: u64 = 256;
/// Runs of rows evicted at a time: each leaves at most two pages that have to be written.
const EVICT_RUNS_MAX: u64 = 256;
/// Files whose detection is remembered.
const REPORTED_MAX: u64 = 65_536;

/// How a bound is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All files together. Bytes.
    pub bytes_max: u64,
    /// Pages of the database.
    pub pages_max: u64,
    /// The log. Bytes.
    pub wal_bytes_max: u64,
    /// Above it the log is written back. Bytes.
    pub wal_kept_bytes: u64,
    /// Events of one transaction; the last one may go beyond it. Bytes.
    pub group_bytes_max: u64,
    /// One event. Bytes.
    pub event_bytes_max: usize,
    /// Events set aside. Bytes.
    pub aside_bytes_max: u64,
    /// Runs of consecutive rows evicted in one transaction.
    pub evict_runs_max: usize,
    /// Pages made free beyond what is needed, so that not every commit has to evict.
    pub slack_pages: u64,
    /// Free pages that stay.
    pub free_kept_pages: u64,
    /// Pages given back in one transaction.
    pub give_back_pages: u64,
    /// Files whose detection is remembered.
    pub reported_max: u64,
}

/// The smallest bound that can be divided. Bytes.
pub const BYTES_MIN: u64 = 512 << 10;

impl Limits {
    /// Divides a bound; one below [`BYTES_MIN`] counts as that.
    #[must_use]
    pub fn of(bytes_max: u64) -> Self {
        let bytes_max = bytes_max.max(BYTES_MIN);
        let wal_bytes_max = (bytes_max / 8 * 3).min((bytes_max / 4).max(192 << 10)).min(WAL_BYTES_MAX);
        let frames = wal_bytes_max / PAGE_BYTES;
        let index_bytes = (frames / INDEX_BLOCK_FRAMES + 1) * INDEX_BLOCK_BYTES;
        let pages_max = (bytes_max - wal_bytes_max - index_bytes) / PAGE_BYTES;
        Self {
            bytes_max,
            pages_max,
            wal_bytes_max,
            wal_kept_bytes: (wal_bytes_max / 4).min(WAL_KEPT_BYTES_MAX),
            group_bytes_max: (wal_bytes_max / 8).min(GROUP_BYTES_MAX),
            event_bytes_max: usize::try_from(bytes_max / 16).unwrap_or(usize::MAX).min(EVENT_BYTES_MAX),
            aside_bytes_max: (bytes_max / 32).min(GROUP_BYTES_MAX),
            evict_runs_max: usize::try_from((frames / 32).clamp(4, EVICT_RUNS_MAX)).unwrap_or(4),
            slack_pages: (pages_max / 32).min(FREE_KEPT_PAGES_MAX / 2),
            free_kept_pages: (pages_max / 16).min(FREE_KEPT_PAGES_MAX),
            give_back_pages: (frames / 16).min(GIVE_BACK_PAGES_MAX),
            reported_max: (bytes_max / 8192).min(REPORTED_MAX),
        }
    }

    /// Pages that rows of so many bytes may need: a row that is a little too long for half a page wastes the rest.
    #[must_use]
    pub fn pages_for(&self, rows_bytes: u64) -> u64 {
        RESERVE_PAGES + (2 * rows_bytes).div_ceil(PAGE_BYTES)
    }
}

/// Pages of the database, as the running transaction sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// In the file.
    pub all: u64,
    /// Of these free.
    pub free: u64,
}

impl Pages {
    /// Asks the database.
    ///
    /// # Errors
    /// SQLite's.
    pub fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let ask = |pragma: &str| -> rusqlite::Result<u64> {
            connection.prepare_cached(pragma)?.query_row([], |row| row.get(0))
        };
        Ok(Self { all: ask("PRAGMA page_count")?, free: ask("PRAGMA freelist_count")? })
    }

    /// Pages with something in them.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.all.saturating_sub(self.free)
    }
}

/// Size of the write-ahead log of a database. Bytes; 0 when there is none.
#[must_use]
pub fn wal_bytes(path: &Path) -> u64 {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    std::fs::metadata(name).map_or(0, |data| data.len())
}

/// Writes the log back and cuts it to nothing.
///
/// # Errors
/// SQLite's. A reader in the way is no error: the next try does it.
pub fn write_back(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// Moves so many pages from the end of the file to free places and ends the file there, inside the caller's
/// transaction. Does nothing in a database that was made without.
///
/// # Errors
/// SQLite's.
pub fn give_back(connection: &Connection, pages: u64) -> rusqlite::Result<()> {
    // Each step of the statement moves one page.
    let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_any_bound_are_together_within_it() {
        for bytes_max in [0, BYTES_MIN, 700_001, 4 << 20, 16 << 20, 100 << 20, 1 << 30, 1 << 40] {
            let limits = Limits::of(bytes_max);
            let index = (limits.wal_bytes_max / PAGE_BYTES / INDEX_BLOCK_FRAMES + 1) * INDEX_BLOCK_BYTES;
            let sum = limits.pages_max * PAGE_BYTES + limits.wal_bytes_max + index;
            assert!(sum <= limits.bytes_max, "{limits:?}");
            let group = limits.group_bytes_max + limits.event_bytes_max as u64;
            assert!(limits.wal_kept_bytes + 3 * group / 2 < limits.wal_bytes_max, "{limits:?}");
            assert!(limits.pages_for(group) < limits.pages_max, "{limits:?}");
            assert!(limits.give_back_pages > 0 && limits.reported_max > 0, "{limits:?}");
        }
        assert_eq!(Limits::of(16 << 20).event_bytes_max, EVENT_BYTES_MAX, "the smallest that can be set");
    }
}
