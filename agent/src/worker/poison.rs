//! Files that killed the scanner: not tried again with the same rules. Pure; bounded, the oldest goes first.
//!
//! Keyed by what an open descriptor says, so that a file that changes gets another chance.

use std::collections::VecDeque;

/// Files that are remembered.
pub const POISON_MAX: usize = 1024;

/// A file as one moment knew it: a change of content changes it, up to the granularity of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Unix nanoseconds.
    pub mtime_ns: i64,
    /// Unix nanoseconds.
    pub ctime_ns: i64,
}

impl FileKey {
    /// From fstat(2).
    #[must_use]
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // The widths differ between systems.
    pub fn of(stat: &rustix::fs::Stat) -> Self {
        let nanoseconds = |seconds: i64, nanoseconds: i64| {
            seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
        };
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            ctime_ns: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }
}

/// The list.
#[derive(Debug, Default)]
pub struct Poison {
    files: VecDeque<(FileKey, String, String)>,
}

impl Poison {
    /// Remembers that a file killed the scanner that had these rules.
    pub fn add(&mut self, file: FileKey, rules_version: &str, reason: &str) {
        if self.files.len() >= POISON_MAX {
            self.files.pop_front();
        }
        self.files.push_back((file, rules_version.to_owned(), reason.to_owned()));
    }

    /// What it did, when it is known for these rules.
    #[must_use]
    pub fn reason(&self, file: &FileKey, rules_version: &str) -> Option<&str> {
        let entry =
            self.files.iter().rev().find(|(key, version, _)| key == file && version == rules_version)?;
        Some(&entry.2)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> FileKey {
        FileKey { device: 1, inode, size: 1, mtime_ns: 1, ctime_ns: 1 }
    }

    #[test]
    fn only_the_same_file_with_the_same_rules_is_refused() {
        let mut poison = Poison::default();
        poison.add(key(1), "a", "signal 11");
        assert_eq!(poison.reason(&key(1), "a"), Some("signal 11"));
        assert_eq!(poison.reason(&key(1), "b"), None);
        assert_eq!(poison.reason(&FileKey { ctime_ns: 2, ..key(1) }, "a"), None);
    }

    #[test]
    fn it_is_bounded() {
        let mut poison = Poison::default();
        for inode in 0..=POISON_MAX as u64 {
            poison.add(key(inode), "a", "");
        }
        assert_eq!(poison.len(), POISON_MAX);
        assert!(poison.reason(&key(0), "a").is_none() && poison.reason(&key(1), "a").is_some());
    }
}
