//! Names of users, from `/etc/passwd` (passwd(5)) alone: no name service, which may ask a network and block.
//!
//! Assumes that the file is small and changes rarely. Names go into descriptions of processes.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vidette_protocol::limits::NAME_BYTES_MAX;

/// How much of the file is read. Bytes.
const PASSWD_BYTES_MAX: u64 = 4 << 20;
/// Users that are remembered.
const USERS_MAX: usize = 65_536;
/// How often it is looked at for changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Names by user id.
#[derive(Debug)]
pub(crate) struct Users {
    path: PathBuf,
    names: HashMap<u32, Vec<u8>>,
    version: Option<(u64, i64, i64)>,
    looked: Option<Instant>,
}

impl Users {
    /// From this file, usually `/etc/passwd`.
    #[must_use]
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, names: HashMap::new(), version: None, looked: None }
    }

    /// The name; empty when there is none.
    pub(crate) fn name(&mut self, uid: u32, now: Instant) -> Vec<u8> {
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_INTERVAL) {
            self.looked = Some(now);
            self.look();
        }
        self.names.get(&uid).cloned().unwrap_or_default()
    }

    fn look(&mut self) {
        let Ok(metadata) = std::fs::metadata(&self.path) else { return };
        let version = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        if !metadata.is_file() || self.version == Some(version) {
            return;
        }
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let Ok(file) = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&self.path) else {
            return;
        };
        let mut table = Vec::new();
        if file.take(PASSWD_BYTES_MAX).read_to_end(&mut table).is_ok() {
            self.names = parse(&table);
            self.version = Some(version);
        }
    }
}

/// `name:password:uid:…`; the first entry of an id counts, as it does for getpwuid(3).
fn parse(table: &[u8]) -> HashMap<u32, Vec<u8>> {
    let mut names = HashMap::new();
    for line in table.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b':');
        let (Some(name), Some(uid)) = (fields.next(), fields.nth(1)) else { continue };
        let Some(uid) = std::str::from_utf8(uid).ok().and_then(|uid| uid.parse().ok()) else { continue };
        if !name.is_empty() && name.len() <= NAME_BYTES_MAX && names.len() < USERS_MAX {
            names.entry(uid).or_insert_with(|| name.to_vec());
        }
    }
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn odd_lines_are_skipped_and_the_first_entry_counts() {
        let names = parse(b"root:x:0:0::/:/bin/sh\n\nbad\n:x:7:\nx:y:-1:\ntoor:x:0:0\nu\xff:x:1000:1000");
        let mut all: Vec<_> = names.into_iter().collect();
        all.sort();
        assert_eq!(all, [(0, b"root".to_vec()), (1000, b"u\xff".to_vec())]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwd");
        let mut users = Users::new(path.clone());
        let start = Instant::now();
        assert_eq!(users.name(5, start), b"");
        std::fs::write(&path, "a:x:5:5").unwrap();
        assert_eq!(users.name(5, start + LOOK_INTERVAL), b"a");
        std::fs::write(folder.path().join("new"), "b:x:5:5").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(users.name(5, start + LOOK_INTERVAL), b"a");
        assert_eq!(users.name(5, start + 2 * LOOK_INTERVAL), b"b");
    }
}
