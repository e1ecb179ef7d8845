//! Output: a file of JSON lines, rotated by size, each event in it exactly once.
//!
//! Order of a page: write, fsync, save the cursor (id, file identity, length) — so after any crash the bytes beyond
//! the saved length are the only ones in doubt, and `Jsonl::open` cuts them off before writing on.
//! Order of a rotation: everything saved, rename, make the new file, save the cursor with the new file. The new file
//! stays empty until its identity is saved, so a crash in between finds either the old file or an empty one.
//!
//! | found at start | what happened | what is done |
//! |---|---|---|
//! | the saved file, longer | crash after a write | cut to the saved length |
//! | the saved file, shorter | somebody truncated it | go on at its end, warn |
//! | another file or none | crash while rotating, or rotated by somebody else | cut the saved one if it is found as `path.N`, go on at the end |

use super::cursor::{Cursor, CursorFile, Place};
use super::formats::Record;
use crate::config;
use anyhow::{Context, bail};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file, open and at a known length.
#[derive(Debug)]
pub struct Jsonl {
    config: config::Jsonl,
    cursor: CursorFile,
    folder: OwnedFd,
    file: File,
    place: Place,
    id: u64,
    #[cfg(test)]
    fault: tests::Fault,
}

impl Jsonl {
    /// Opens or makes the file, and removes what a crash left in doubt.
    ///
    /// # Errors
    /// When the path can't be used, or its cursor can't be read.
    pub fn open(config: &config::Jsonl, cursor: CursorFile) -> anyhow::Result<Self> {
        let saved = cursor.load()?.unwrap_or_default();
        let parent = config.path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty()).with_context(|| {
            format!("could not open the folder {}; make it or change `path`", parent.display())
        })?;
        let (file, mut place) = open_or_make(&folder, &config.path)?;
        match &saved.file {
            Some(old) if (old.device, old.inode) == (place.device, place.inode) => {
                place.bytes = cut(&file, place.bytes, old.bytes, &config.path)?;
            }
            Some(old) => cut_rotated(&folder, config, old)?,
            None => {}
        }
        let mut jsonl = Self {
            config: config.clone(),
            cursor,
            folder,
            file,
            place,
            id: saved.id,
            #[cfg(test)]
            fault: tests::Fault::default(),
        };
        jsonl.end_line()?;
        jsonl.save()?;
        Ok(jsonl)
    }

    /// Store id of the last event that is durably in the file.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.id
    }

    /// Appends a page. When this returns, it is durable and counted.
    ///
    /// # Errors
    /// Any I/O error. The object must then be dropped and opened again: after a failed fsync nothing
    /// is known of what is on disk.
    pub fn put(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let Some(last) = records.last() else { return Ok(()) };
        self.follow_foreign_rotation()?;
        if self.place.bytes >= self.config.rotate_bytes {
            self.rotate()?;
        }
        let page: Vec<u8> = records.iter().flat_map(|record| record.bytes.iter().copied()).collect();
        self.write(&page).with_context(|| format!("could not write {}", self.config.path.display()))?;
        self.id = last.id;
        self.save()
    }

    fn write(&mut self, page: &[u8]) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(torn) = self.fault.torn(page.len()) {
            self.file.write_all_at(&page[..torn], self.place.bytes)?;
            return Err(std::io::Error::other("planted"));
        }
        self.file.write_all_at(page, self.place.bytes)?;
        self.step()?;
        self.file.sync_all()?;
        self.step()?;
        self.place.bytes += page.len() as u64;
        Ok(())
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.cursor.save(&Cursor { id: self.id, file: Some(self.place.clone()) })?;
        Ok(self.step()?)
    }

    /// A file that somebody else left without a newline gets one, so that our line stands alone.
    fn end_line(&mut self) -> anyhow::Result<()> {
        let mut last = [b'\n'];
        if self.place.bytes > 0 {
            self.file
                .read_exact_at(&mut last, self.place.bytes - 1)
                .with_context(|| format!("could not read {}", self.config.path.display()))?;
        }
        if last != [b'\n'] {
            self.write(b"\n").with_context(|| format!("could not write {}", self.config.path.display()))?;
        }
        Ok(())
    }

    /// When somebody else (logrotate) moved the file away, goes on in a new one at the old path.
    fn follow_foreign_rotation(&mut self) -> anyhow::Result<()> {
        let (file, place) = open_or_make(&self.folder, &self.config.path)?;
        if (place.device, place.inode) == (self.place.device, self.place.inode) {
            if place.bytes != self.place.bytes {
                tracing::warn!(path = %self.config.path.display(), "somebody else changed the sink's file; going on at its end");
                self.place.bytes = place.bytes;
                self.end_line()?;
            }
            return Ok(());
        }
        tracing::info!(path = %self.config.path.display(), "the sink's file was moved away; going on in a new one");
        (self.file, self.place) = (file, place);
        self.end_line()?;
        self.save()
    }

    fn rotate(&mut self) -> anyhow::Result<()> {
        shift(&self.config).with_context(|| format!("could not rotate {}", self.config.path.display()))?;
        self.step()?;
        rustix::fs::rename(&self.config.path, numbered(&self.config.path, 1))
            .with_context(|| format!("could not rotate {}", self.config.path.display()))?;
        self.step()?;
        rustix::fs::fsync(&self.folder)?;
        (self.file, self.place) = open_or_make(&self.folder, &self.config.path)?;
        self.step()?;
        rustix::fs::fsync(&self.folder)?;
        self.save()
    }

    /// A place where the test lets the program die.
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn step(&mut self) -> std::io::Result<()> {
        #[cfg(test)]
        self.fault.step()?;
        Ok(())
    }
}

/// Opens the path below `folder` without following a link, or makes it with mode 0600.
fn open_or_make(folder: &OwnedFd, path: &Path) -> anyhow::Result<(File, Place)> {
    let context = || {
        format!("could not open {} as a regular file; remove what is there or change `path`", path.display())
    };
    let name = path.file_name().with_context(context)?;
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC
        | OFlags::NOCTTY;
    let file = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)).with_context(context)?;
    let stat = rustix::fs::fstat(&file).with_context(context)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        bail!(context());
    }
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    Ok((File::from(file), Place { device: stat.st_dev, inode: stat.st_ino, bytes }))
}

/// The length to go on at.
fn cut(file: &File, found: u64, saved: u64, path: &Path) -> anyhow::Result<u64> {
    if found < saved {
        tracing::warn!(path = %path.display(), found, saved, "the sink's file is shorter than what was written; going on at its end");
        return Ok(found);
    }
    if found > saved {
        file.set_len(saved)
            .with_context(|| format!("could not cut {} to its durable length", path.display()))?;
        file.sync_all().with_context(|| format!("could not sync {}", path.display()))?;
    }
    Ok(saved)
}

/// Looks for the saved file among the rotated ones, and cuts it there.
fn cut_rotated(folder: &OwnedFd, config: &config::Jsonl, saved: &Place) -> anyhow::Result<()> {
    for number in 1..=config.keep_files {
        let path = numbered(&config.path, number);
        let Some(name) = path.file_name() else { continue };
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(folder, name, flags, Mode::empty()) else { continue };
        let stat =
            rustix::fs::fstat(&file).with_context(|| format!("could not look at {}", path.display()))?;
        if (stat.st_dev, stat.st_ino) == (saved.device, saved.inode) {
            cut(&File::from(file), u64::try_from(stat.st_size).unwrap_or(0), saved.bytes, &path)?;
            return Ok(());
        }
    }
    Ok(())
}

/// Makes `path.1` free. Moves only up to the first hole, so that doing it again after a crash loses nothing more.
fn shift(config: &config::Jsonl) -> std::io::Result<()> {
    let is_free = |number: &u32| !numbered(&config.path, *number).exists();
    let hole = (1..config.keep_files).find(is_free).unwrap_or(config.keep_files);
    for number in (1..hole).rev() {
        std::fs::rename(numbered(&config.path, number), numbered(&config.path, number + 1))?;
    }
    Ok(())
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.extend(format!(".{number}").bytes());
    PathBuf::from(std::ffi::OsString::from_vec(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// Dies after so many steps; never when `None`.
    #[derive(Debug, Default)]
    pub(super) struct Fault {
        left: Option<u32>,
        torn: bool,
    }

    impl Fault {
        pub(super) fn step(&mut self) -> std::io::Result<()> {
            match &mut self.left {
                Some(0) => Err(std::io::Error::other("planted")),
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }

        /// How much of a write is done when it dies in the middle of it.
        pub(super) fn torn(&self, bytes: usize) -> Option<usize> {
            (self.torn && self.left == Some(0)).then_some(bytes / 2)
        }
    }

    fn settings(folder: &Path) -> config::Jsonl {
        config::Jsonl { path: folder.join("alerts.jsonl"), rotate_bytes: 400, keep_files: 1000 }
    }

    fn open(folder: &Path) -> Jsonl {
        Jsonl::open(&settings(folder), CursorFile::open(&folder.join("cursors"), "alerts").unwrap()).unwrap()
    }

    fn page(after: u64, count: u64) -> Vec<Record> {
        (after + 1..=after + count)
            .map(|id| Record {
                id,
                bytes: format!("{{\"event\":{id},\"is\":\"long enough\"}}\n").into_bytes(),
            })
            .collect()
    }

    /// Every id in the files, oldest file first.
    fn written(folder: &Path) -> Vec<u64> {
        let path = settings(folder).path;
        let mut files: Vec<PathBuf> =
            (1..1000).map(|number| numbered(&path, number)).filter(|path| path.exists()).collect();
        files.reverse();
        files.push(path);
        let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn each_event_is_there_once_wherever_it_dies() {
        for seed in 0..150 {
            println!("seed {seed}");
            let mut random = StdRng::seed_from_u64(seed);
            let folder = tempfile::tempdir().unwrap();
            for _ in 0..12 {
                let mut jsonl = open(folder.path());
                jsonl.fault = Fault { left: Some(random.random_range(0..25)), torn: random.random() };
                while jsonl.put(&page(jsonl.id, random.random_range(1..8))).is_ok() {}
            }
            let mut last = open(folder.path());
            last.put(&page(last.id, 3)).unwrap();
            let expected: Vec<u64> = (1..=last.position()).collect();
            assert_eq!(written(folder.path()), expected, "seed {seed}");
        }
    }

    #[test]
    fn a_file_moved_away_by_somebody_else_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let mut jsonl = open(folder.path());
        jsonl.put(&page(0, 3)).unwrap();
        let path = settings(folder.path()).path;
        std::fs::rename(&path, numbered(&path, 1)).unwrap();
        jsonl.put(&page(3, 2)).unwrap();
        assert_eq!(written(folder.path()), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn only_so_many_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let config = config::Jsonl { keep_files: 2, ..settings(folder.path()) };
        let cursor = CursorFile::open(folder.path(), "cursor").unwrap();
        let mut jsonl = Jsonl::open(&config, cursor).unwrap();
        for round in 0..10 {
            jsonl.put(&page(round * 20, 20)).unwrap();
        }
        assert!(numbered(&config.path, 2).exists() && !numbered(&config.path, 3).exists());
    }

    #[test]
    fn a_link_or_a_fifo_is_refused_and_the_mode_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()));
        let path = settings(folder.path()).path;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        let cursor = || CursorFile::open(&folder.path().join("cursors"), "alerts").unwrap();
        assert!(Jsonl::open(&settings(folder.path()), cursor()).is_err());
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let error = Jsonl::open(&settings(folder.path()), cursor()).unwrap_err().to_string();
        assert!(error.contains("alerts.jsonl"), "{error}");
    }
}
