//! Files that killed the scanner: not tried again with the same rules. Bounded, the oldest goes first; kept in a file,
//! so that a restart does not begin with the same deaths.
//!
//! Keyed by what an open descriptor says, so that a file that changes gets another chance. The file is JSON, one entry
//! a line; what can't be read of it is left out, since the worst that follows is another death.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that are remembered.
pub const POISON_MAX: usize = 1024;

/// Of the file of the list. Bytes.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Of a path that is kept for people. Bytes.
const PATH_KEPT_BYTES_MAX: usize = 1024;

/// A file as one moment knew it: a change of content changes it, up to the granularity of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// One file of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poisoned {
    /// Which.
    pub file: FileKey,
    /// The rules that it killed the scanner with.
    pub rules_version: String,
    /// What it did.
    pub reason: String,
    /// Where it was, escaped for a terminal; empty when nobody said.
    #[serde(default)]
    pub path: String,
}

/// The list; a handle to it, since more than one pool has it.
#[derive(Debug, Clone, Default)]
pub struct Poison(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    entries: VecDeque<Poisoned>,
    path: Option<PathBuf>,
}

impl Poison {
    /// Kept in this file from now on. What is there is read; a file that is missing or damaged is as good as empty.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let mut text = String::new();
        if let Ok(file) = File::open(path) {
            let mut bytes = Vec::new();
            let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        let mut entries: VecDeque<Poisoned> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        while entries.len() > POISON_MAX {
            entries.pop_front();
        }
        Self(Arc::new(Mutex::new(List { entries, path: Some(path.to_owned()) })))
    }

    /// Remembers that a file killed the scanner that had these rules.
    pub fn add(&self, file: FileKey, rules_version: &str, reason: &str) {
        let mut list = self.lock();
        if list.entries.len() >= POISON_MAX {
            list.entries.pop_front();
        }
        let (rules_version, reason) = (rules_version.to_owned(), reason.to_owned());
        list.entries.push_back(Poisoned { file, rules_version, reason, path: String::new() });
        list.keep();
    }

    /// Says where a file of the list was.
    pub fn name(&self, file: &FileKey, path: &[u8]) {
        let mut list = self.lock();
        if let Some(entry) = list.entries.iter_mut().rev().find(|entry| entry.file == *file) {
            let path = path.get(..PATH_KEPT_BYTES_MAX).unwrap_or(path);
            let path = vidette_protocol::escape::terminal(path);
            if entry.path != path {
                entry.path = path;
                list.keep();
            }
        }
    }

    /// What it did, when it is known for these rules.
    #[must_use]
    pub fn reason(&self, file: &FileKey, rules_version: &str) -> Option<String> {
        let list = self.lock();
        let known = |entry: &&Poisoned| entry.file == *file && entry.rules_version == rules_version;
        list.entries.iter().rev().find(known).map(|entry| entry.reason.clone())
    }

    /// All of it, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Poisoned> {
        self.lock().entries.iter().cloned().collect()
    }

    /// The newest `max` of it, the newest first.
    #[must_use]
    pub fn newest(&self, max: usize) -> Vec<Poisoned> {
        self.lock().entries.iter().rev().take(max).cloned().collect()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // The list is whole whoever panicked while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// A list that could not be kept costs two deaths after a restart, nothing else.
    fn keep(&self) {
        let Some(path) = &self.path else { return };
        let write = || {
            let beside = path.with_extension("new");
            let mut file = File::create(&beside)?;
            for entry in &self.entries {
                serde_json::to_writer(&mut file, entry)?;
                file.write_all(b"\n")?;
            }
            std::fs::rename(beside, path)
        };
        if let Err(error) = write() {
            let path = path.display();
            tracing::warn!(%path, %error, "could not keep the list of files that kill the scanner");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(inode: u64) -> FileKey {
        FileKey { device: 1, inode, size: 1, mtime_ns: 1, ctime_ns: 1 }
    }

    #[test]
    fn only_the_same_file_with_the_same_rules_is_refused() {
        let poison = Poison::default();
        poison.add(key(1), "a", "signal 11");
        assert_eq!(poison.reason(&key(1), "a").as_deref(), Some("signal 11"));
        assert_eq!(poison.reason(&key(1), "b"), None);
        assert_eq!(poison.reason(&FileKey { ctime_ns: 2, ..key(1) }, "a"), None);
    }

    #[test]
    fn it_is_bounded() {
        let poison = Poison::default();
        for inode in 0..=POISON_MAX as u64 {
            poison.add(key(inode), "a", "");
        }
        assert_eq!(poison.len(), POISON_MAX);
        assert!(poison.reason(&key(0), "a").is_none() && poison.reason(&key(1), "a").is_some());
    }

    #[test]
    fn it_survives_a_restart_and_a_damaged_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("poison");
        let poison = Poison::at(&path);
        for inode in 0..3 {
            poison.add(key(inode), "a", "signal 11");
        }
        poison.name(&key(1), b"/tmp/\x1b[31m");
        assert_eq!(Poison::at(&path).all(), poison.all());
        assert_eq!(Poison::at(&path).all()[1].path, "/tmp/\\x1b[31m");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] = 0xff;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Poison::at(&path).len(), 2, "one line is lost");
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(Poison::at(&path).len() <= 2, "{length}");
        }
    }
}
