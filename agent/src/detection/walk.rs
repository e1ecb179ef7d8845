//! Files below a folder that changed since a time, opened from their open folders, never by a path again.
//!
//! Only on local file systems: others can hang whoever asks them. Runs on the rescan's thread; files go to
//! `rescan`'s channel.

use crate::host::Moment;
use crate::sensors::{Observation, OpenFile};
use crate::stop::Stop;
use crate::sys::filesystem;
use crossbeam_channel::{SendTimeoutError, Sender};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vidette_protocol::wire;

/// Folders open at the same time: one for each level of the tree. What lies deeper is counted as unreadable.
pub const DEPTH_MAX: usize = 200;
/// How often a walk that waits for room looks whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);
const FILE_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Where a rescan may look.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Absolute paths; everything below them on local file systems.
    pub roots: Vec<Vec<u8>>,
    /// Absolute prefixes that are left out.
    pub exclude: Vec<Vec<u8>>,
}

/// What a walk has met so far; read by others while it goes on.
#[derive(Debug, Default)]
pub struct Figures {
    /// Files whose times were read.
    pub files: AtomicU64,
    /// Files handed to detection.
    pub changed: AtomicU64,
    /// Folders and files that could not be opened, or lay too deep.
    pub unreadable: AtomicU64,
    /// Of these for want of descriptors or memory: to be looked at again.
    pub without_means: AtomicU64,
}

/// A file that changed.
#[derive(Debug)]
pub struct Met {
    /// With the trigger `sweep`.
    pub observation: Observation,
    /// Its name is new here: it is worth an event though its content may be known.
    pub new_name: bool,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Walked {
    /// It saw everything there was to see.
    Whole,
    /// It was stopped, or nobody takes files any more.
    CutShort,
}

/// One walk, or several with the same aim.
pub(super) struct Walk<'a, M> {
    pub(super) scope: &'a Scope,
    /// Files changed at this time or later, Unix nanoseconds; 0 for all.
    pub(super) since_unix_ns: i64,
    pub(super) new_name: bool,
    pub(super) figures: &'a Figures,
    pub(super) out: &'a Sender<M>,
    pub(super) stop: &'a Stop,
}

struct Level {
    entries: Dir,
    folder: OwnedFd,
    path: Vec<u8>,
    device: u64,
}

impl Scope {
    /// Whether a folder may be looked at.
    #[must_use]
    pub fn covers(&self, folder: &[u8]) -> bool {
        let under = |prefixes: &[Vec<u8>]| prefixes.iter().any(|prefix| is_below(folder, prefix));
        under(&self.roots) && !under(&self.exclude)
    }

    /// Roots that lie below no other one.
    #[must_use]
    pub fn outermost(&self) -> Vec<&[u8]> {
        let mut outer: Vec<&[u8]> = Vec::new();
        for root in &self.roots {
            let inside = |other: &Vec<u8>| other != root && is_below(root, other);
            if !self.roots.iter().any(inside) && !outer.contains(&root.as_slice()) {
                outer.push(root);
            }
        }
        outer
    }
}

/// `/a/b` is below `/a` and `/a/`, `/ab` is not; everything absolute is below `/`.
fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

impl<M: From<Met>> Walk<'_, M> {
    /// A folder by its path, and with `deep` all below it. `between` is called now and then.
    pub(super) fn path(&self, path: &[u8], deep: bool, between: &mut dyn FnMut()) -> Walked {
        match openat(CWD, path, FOLDER_FLAGS, Mode::empty()) {
            Ok(folder) => self.tree(folder, path, deep, between),
            Err(error) => {
                self.failed(error);
                Walked::Whole
            }
        }
    }

    /// An open folder and all below it.
    pub(super) fn open(&self, folder: impl AsFd, path: &[u8], between: &mut dyn FnMut()) -> Walked {
        // Opened once more: the one at hand may only name the folder (O_PATH).
        match openat(folder, ".", FOLDER_FLAGS, Mode::empty()) {
            Ok(folder) => self.tree(folder, path, true, between),
            Err(error) => {
                self.failed(error);
                Walked::Whole
            }
        }
    }

    fn tree(&self, folder: OwnedFd, path: &[u8], deep: bool, between: &mut dyn FnMut()) -> Walked {
        let mut levels = Vec::new();
        self.enter(&mut levels, folder, path.to_vec(), None);
        while let Some(level) = levels.last_mut() {
            if self.stop.is_set() {
                return Walked::CutShort;
            }
            let Some(entry) = level.entries.read() else {
                levels.pop();
                between();
                continue;
            };
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.failed(error);
                    levels.pop();
                    continue;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(&level.folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if is(&stat, FileType::RegularFile) {
                self.figures.files.fetch_add(1, Ordering::Relaxed);
                if changed_unix_ns(&stat) >= self.since_unix_ns {
                    let file = openat(&level.folder, name, FILE_FLAGS, Mode::empty());
                    if self.hand_over(file, joined(&level.path, name.to_bytes())) == Walked::CutShort {
                        return Walked::CutShort;
                    }
                }
            } else if deep && is(&stat, FileType::Directory) {
                let (path, device) = (joined(&level.path, name.to_bytes()), level.device);
                match openat(&level.folder, name, FOLDER_FLAGS, Mode::empty()) {
                    Ok(folder) if levels.len() < DEPTH_MAX => {
                        self.enter(&mut levels, folder, path, Some(device));
                    }
                    Ok(_) => self.unreadable(),
                    Err(error) => self.failed(error),
                }
            }
        }
        Walked::Whole
    }

    fn enter(&self, levels: &mut Vec<Level>, folder: OwnedFd, path: Vec<u8>, parent_device: Option<u64>) {
        if self.scope.exclude.contains(&path) {
            return;
        }
        let Ok(stat) = rustix::fs::fstat(&folder) else { return self.unreadable() };
        // A mount point: what is not on a local disk may hang, and what is not on a disk at all holds no files.
        if parent_device != Some(stat.st_dev) && !filesystem::is_local(&folder) {
            return;
        }
        match Dir::read_from(&folder) {
            Ok(entries) => levels.push(Level { entries, folder, path, device: stat.st_dev }),
            Err(error) => self.failed(error),
        }
    }

    /// Waits for room: nothing of this is urgent, and nothing of it may be lost.
    fn hand_over(&self, file: rustix::io::Result<OwnedFd>, path: Vec<u8>) -> Walked {
        let regular =
            |file: &OwnedFd| rustix::fs::fstat(file).is_ok_and(|stat| is(&stat, FileType::RegularFile));
        let descriptor = match file {
            Ok(descriptor) if regular(&descriptor) => descriptor,
            Ok(_) => {
                self.unreadable();
                return Walked::Whole;
            }
            Err(error) => {
                self.failed(error);
                return Walked::Whole;
            }
        };
        let file = OpenFile { descriptor, path, deleted: false, container_path: Vec::new() };
        let observation = Observation::FileWritten {
            file,
            process: None,
            trigger: wire::Trigger::Sweep,
            old_path: Vec::new(),
            at: Moment::now(),
        };
        let mut message = M::from(Met { observation, new_name: self.new_name });
        loop {
            message = match self.out.send_timeout(message, STOP_INTERVAL) {
                Ok(()) => {
                    self.figures.changed.fetch_add(1, Ordering::Relaxed);
                    return Walked::Whole;
                }
                Err(SendTimeoutError::Timeout(message)) if !self.stop.is_set() => message,
                Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => {
                    return Walked::CutShort;
                }
            }
        }
    }

    fn failed(&self, error: Errno) {
        self.unreadable();
        // Of this process, of the host, no memory: nothing is wrong with the file.
        if matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM) {
            self.figures.without_means.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn unreadable(&self) {
        self.figures.unreadable.fetch_add(1, Ordering::Relaxed);
    }
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

fn changed_unix_ns(stat: &Stat) -> i64 {
    stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(i64::try_from(stat.st_ctime_nsec).unwrap_or(0))
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = folder.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stop;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    fn bytes(path: &Path) -> Vec<u8> {
        path.canonicalize().unwrap().as_os_str().as_bytes().to_vec()
    }

    /// Names of what changed, and the figures: files, changed, unreadable.
    fn found(scope: &Scope, path: &[u8], deep: bool, since_unix_ns: i64) -> (Vec<String>, [u64; 3]) {
        let (out, met) = crossbeam_channel::bounded::<Met>(100);
        let (_stopper, stop) = stop::channel();
        let figures = Figures::default();
        let walk = Walk { scope, since_unix_ns, new_name: false, figures: &figures, out: &out, stop: &stop };
        assert_eq!(walk.path(path, deep, &mut || {}), Walked::Whole);
        let mut names: Vec<String> = met
            .try_iter()
            .map(|met| match met.observation {
                Observation::FileWritten { file, trigger: wire::Trigger::Sweep, .. } => {
                    String::from_utf8_lossy(file.path.rsplit(|byte| *byte == b'/').next().unwrap())
                        .into_owned()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        names.sort();
        let Figures { files, changed, unreadable, .. } = figures;
        (names, [files, changed, unreadable].map(AtomicU64::into_inner))
    }

    #[test]
    fn what_changed_since_is_found_and_the_rest_is_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::create_dir_all(folder.path().join("left-out")).unwrap();
        fs::write(folder.path().join("old"), "x").unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let since_unix_ns = Moment::now().unix_ns - 10_000_000;
        fs::write(folder.path().join("a/b/new"), "x").unwrap();
        fs::write(folder.path().join("left-out/new too"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        let root = bytes(folder.path());
        let scope = Scope { roots: vec![root.clone()], exclude: vec![joined(&root, b"left-out")] };
        assert_eq!(found(&scope, &root, true, since_unix_ns), (vec!["new".to_owned()], [2, 1, 0]));
        assert_eq!(found(&scope, &root, true, 0).0, ["new", "old"]);
        assert_eq!(found(&scope, &root, false, 0).0, ["old"], "not below it");
    }

    #[test]
    fn roots_below_roots_are_walked_once_and_exclusions_hold() {
        let scope = Scope {
            roots: [&b"/a"[..], b"/a/b", b"/c", b"/c"].map(<[u8]>::to_vec).to_vec(),
            exclude: vec![b"/a/own".to_vec()],
        };
        assert_eq!(scope.outermost(), [&b"/a"[..], b"/c"]);
        for (folder, expected) in
            [(&b"/a/x"[..], true), (b"/ab", false), (b"/a/own/x", false), (b"/a/owner", true)]
        {
            assert_eq!(scope.covers(folder), expected, "{}", folder.escape_ascii());
        }
    }

    impl From<Met> for Observation {
        fn from(met: Met) -> Self {
            met.observation
        }
    }
}
