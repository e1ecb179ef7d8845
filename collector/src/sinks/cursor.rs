//! How far a sink has come, on disk: one small file per sink, replaced as a whole and synced before anyone
//! relies on it. One sink's thread owns it; nobody else writes it.
//!
//! A missing file means a new sink, which starts with the oldest event that is kept. A damaged file is never
//! taken for a missing one: sending everything again could flood a receiver, so the sink stops, says so, and a
//! person decides (delete the file to send everything again).

use anyhow::{Context, bail};
use ring::digest::{SHA256, digest};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A cursor file holds two short lines. Bytes.
const CURSOR_BYTES_MAX: u64 = 4096;
const VERSION: u32 = 1;

/// What a sink has durably done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Store id of the last event that counts as sent; 0 before the first.
    pub id: u64,
    /// The file that holds it, for a sink that writes files.
    pub file: Option<Place>,
}

/// Where a file sink's durable bytes end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// st_dev
    pub device: u64,
    /// st_ino
    pub inode: u64,
    /// What lies beyond is not known to be whole.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    version: u32,
    cursor: Cursor,
}

/// The file of one sink's cursor.
#[derive(Debug)]
pub struct CursorFile {
    folder: OwnedFd,
    path: PathBuf,
    name: String,
}

impl CursorFile {
    /// The cursor file of the sink `name` in `folder`, which is made with mode 0700 when it is missing.
    ///
    /// # Errors
    /// When the folder can't be made or opened.
    pub fn open(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let context = || {
            format!(
                "could not open the cursor folder {}; check that vidette may write there",
                folder.display()
            )
        };
        match rustix::fs::mkdir(folder, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(context),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(folder, flags, Mode::empty()).with_context(context)?;
        Ok(Self { folder: descriptor, path: folder.join(name), name: name.to_owned() })
    }

    /// What was saved last; `None` when there is no file.
    ///
    /// # Errors
    /// When it can't be read, or is damaged.
    pub fn load(&self) -> anyhow::Result<Option<Cursor>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.folder, &self.name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("could not open {}", self.path.display()));
            }
        };
        let mut bytes = Vec::new();
        file.take(CURSOR_BYTES_MAX)
            .read_to_end(&mut bytes)
            .with_context(|| format!("could not read {}", self.path.display()))?;
        match decode(&bytes) {
            Some(cursor) => Ok(Some(cursor)),
            None => bail!(
                "cursor {} is damaged, so it is not known what was sent; delete it to send every stored event again",
                self.path.display()
            ),
        }
    }

    /// Replaces the file. When this returns, the new content survives a power loss.
    ///
    /// # Errors
    /// When any step fails; the old content or the new one is then there, never a mixture.
    pub fn save(&self, cursor: &Cursor) -> anyhow::Result<()> {
        self.replace(cursor).with_context(|| format!("could not save the cursor {}", self.path.display()))
    }

    fn replace(&self, cursor: &Cursor) -> anyhow::Result<()> {
        let new = format!("{}.new", self.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::unlinkat(&self.folder, &new, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let mut file = File::from(rustix::fs::openat(&self.folder, &new, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(&encode(cursor)?)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.folder, &new, &self.folder, &self.name)?;
        rustix::fs::fsync(&self.folder)?;
        Ok(())
    }
}

/// The JSON in one line, its SHA-256 in the next: a torn or edited file is recognised.
fn encode(cursor: &Cursor) -> anyhow::Result<Vec<u8>> {
    let line = serde_json::to_string(&Line { version: VERSION, cursor: cursor.clone() })?;
    Ok(format!("{line}\n{}\n", sum(line.as_bytes())).into_bytes())
}

fn decode(bytes: &[u8]) -> Option<Cursor> {
    let (line, rest) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    if rest.strip_suffix('\n')? != sum(line.as_bytes()) {
        return None;
    }
    let line: Line = serde_json::from_str(line).ok()?;
    (line.version == VERSION).then_some(line.cursor)
}

fn sum(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample() -> Cursor {
        Cursor { id: 42, file: Some(Place { device: 1, inode: 2, bytes: 3 }) }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = CursorFile::open(&folder.path().join("cursors"), "siem").unwrap();
        assert_eq!(file.load().unwrap(), None);
        file.save(&sample()).unwrap();
        file.save(&Cursor { id: 43, ..sample() }).unwrap();
        assert_eq!(file.load().unwrap().unwrap().id, 43);
    }

    #[test]
    fn a_damaged_cursor_is_never_a_missing_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = CursorFile::open(folder.path(), "siem").unwrap();
        let good = encode(&sample()).unwrap();
        let path = folder.path().join("siem");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("is damaged") && error.contains("delete it"), "{error}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(file.load().is_err(), "cut at {at}");
        }
    }
}
