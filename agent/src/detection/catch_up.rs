//! What changed while nobody watched: after a stop or a crash, files whose ctime is newer than the mark that
//! the agent left are looked at once more. They enter detection as observations like any other, but wait for
//! room instead of being shed, and carry the trigger `sweep`.
//!
//! A file that was reported before the crash is met again here; the outbox knows it and does not keep it twice.

use crate::host::Moment;
use crate::sensors::{Observation, OpenFile};
use crate::stop::Stop;
use crate::sys::filesystem;
use crossbeam_channel::{Sender, TrySendError};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use std::collections::HashSet;
use std::thread::JoinHandle;
use std::time::Duration;
use vidette_protocol::wire;

/// Folders open at the same time: one for each level of the tree. What lies deeper is counted as unreadable.
const DEPTH_MAX: usize = 200;
/// How long to wait before asking again for room in the queue.
const ROOM_WAIT: Duration = Duration::from_millis(5);

/// Files that wait, in the channel and in detection each, before the catch-up waits too. Far below what they hold.
const CROWD: usize = 64;

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

/// Where to look, and for what.
#[derive(Debug, Clone)]
pub struct CatchUp {
    /// Absolute paths; everything below them on local file systems.
    pub roots: Vec<Vec<u8>>,
    /// Absolute prefixes that are left out.
    pub exclude: Vec<Vec<u8>>,
    /// Files changed at this time or later, Unix nanoseconds; 0 for all.
    pub since_unix_ns: i64,
    /// How many files wait in detection; without it only the channel counts.
    pub waiting: Option<super::Gauge>,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files whose times were read.
    pub files: u64,
    /// Files handed to detection.
    pub changed: u64,
    /// Folders and files that could not be opened, or lay too deep.
    pub unreadable: u64,
    /// It was stopped before its end.
    pub cut_short: bool,
}

/// A catch-up on a thread of its own, which gives whether it saw everything.
#[derive(Debug)]
pub struct Running {
    thread: Option<JoinHandle<bool>>,
    whole: bool,
}

impl Running {
    /// Takes the thread.
    #[must_use]
    pub fn new(thread: JoinHandle<bool>) -> Self {
        Self { thread: Some(thread), whole: false }
    }

    /// It has ended and saw everything. One that failed or was cut short never has: the mark then stays where it
    /// is, and the next start begins there again.
    pub fn saw_everything(&mut self) -> bool {
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            self.whole = thread.join().unwrap_or(false);
        }
        self.whole
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the catch-up panicked");
        }
    }
}

struct Level {
    entries: Dir,
    folder: OwnedFd,
    path: Vec<u8>,
    device: u64,
}

impl CatchUp {
    /// Walks all roots once, on the caller's thread.
    #[must_use]
    pub fn run(&self, out: &Sender<Observation>, stop: &Stop) -> Summary {
        let mut walk =
            Walk { catch_up: self, out, stop, summary: Summary::default(), visited: HashSet::new() };
        for root in &self.roots {
            walk.root(root);
        }
        walk.summary
    }
}

struct Walk<'a> {
    catch_up: &'a CatchUp,
    out: &'a Sender<Observation>,
    stop: &'a Stop,
    summary: Summary,
    /// File systems already walked from another root; one entry each.
    visited: HashSet<Vec<u8>>,
}

impl Walk<'_> {
    fn root(&mut self, root: &[u8]) {
        if !self.visited.insert(root.to_vec()) {
            return;
        }
        let Ok(folder) = openat(CWD, root, FOLDER_FLAGS, Mode::empty()) else {
            self.summary.unreadable += 1;
            return;
        };
        let mut levels = Vec::new();
        self.enter(&mut levels, folder, root.to_vec(), None);
        while let Some(level) = levels.last_mut() {
            if self.stop.is_set() {
                self.summary.cut_short = true;
                return;
            }
            let Some(entry) = level.entries.read() else {
                levels.pop();
                continue;
            };
            let Ok(entry) = entry else {
                self.summary.unreadable += 1;
                levels.pop();
                continue;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = joined(&level.path, name.to_bytes());
            match statat(&level.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is(&stat, FileType::Directory) => {
                    let device = level.device;
                    let folder = openat(&level.folder, name, FOLDER_FLAGS, Mode::empty());
                    match folder {
                        Ok(folder) if levels.len() < DEPTH_MAX => {
                            self.enter(&mut levels, folder, path, Some(device))
                        }
                        Ok(_) | Err(_) => self.summary.unreadable += 1,
                    }
                }
                Ok(stat) if is(&stat, FileType::RegularFile) => {
                    self.summary.files += 1;
                    if changed_unix_ns(&stat) >= self.catch_up.since_unix_ns {
                        let file = openat(&level.folder, name, FILE_FLAGS, Mode::empty());
                        self.hand_over(file, path);
                    }
                }
                // Gone meanwhile, or nothing that has content.
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn enter(&mut self, levels: &mut Vec<Level>, folder: OwnedFd, path: Vec<u8>, parent_device: Option<u64>) {
        if self.catch_up.exclude.contains(&path) {
            return;
        }
        let Ok(stat) = rustix::fs::fstat(&folder) else {
            self.summary.unreadable += 1;
            return;
        };
        // A mount point: what is not on a local disk may hang, and what is not on a disk at all holds no files.
        if parent_device != Some(stat.st_dev) && !filesystem::is_local(&folder) {
            return;
        }
        match Dir::read_from(&folder) {
            Ok(entries) => levels.push(Level { entries, folder, path, device: stat.st_dev }),
            Err(_) => self.summary.unreadable += 1,
        }
    }

    /// What is live goes first: the past waits while more than a few files do.
    fn is_crowded(&self) -> bool {
        let in_detection = self.catch_up.waiting.as_ref().map_or(0, |gauge| gauge.state().queue_length);
        self.out.len() >= CROWD || in_detection >= CROWD
    }

    /// Waits for room: nothing of this is urgent, and nothing of it may be lost.
    fn hand_over(&mut self, file: rustix::io::Result<OwnedFd>, path: Vec<u8>) {
        let Ok(descriptor) = file else {
            self.summary.unreadable += 1;
            return;
        };
        let file = OpenFile { descriptor, path, deleted: false, container_path: Vec::new() };
        let mut observation = Observation::FileWritten {
            file,
            process: None,
            trigger: wire::Trigger::Sweep,
            old_path: Vec::new(),
            at: Moment::now(),
        };
        while self.is_crowded() {
            if self.stop.wait(ROOM_WAIT) {
                self.summary.cut_short = true;
                return;
            }
        }
        loop {
            match self.out.try_send(observation) {
                Ok(()) => {
                    self.summary.changed += 1;
                    return;
                }
                Err(TrySendError::Full(back)) if !self.stop.wait(ROOM_WAIT) => observation = back,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.summary.cut_short = true;
                    return;
                }
            }
        }
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

    fn found(catch_up: &CatchUp) -> (Vec<String>, Summary) {
        let (out, observations) = crossbeam_channel::bounded(100);
        let (_stopper, stop) = stop::channel();
        let summary = catch_up.run(&out, &stop);
        let mut names: Vec<String> = observations
            .try_iter()
            .map(|observation| match observation {
                Observation::FileWritten { file, trigger: wire::Trigger::Sweep, .. } => {
                    String::from_utf8_lossy(file.path.rsplit(|byte| *byte == b'/').next().unwrap())
                        .into_owned()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        names.sort();
        (names, summary)
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
        let root = folder.path().canonicalize().unwrap().as_os_str().as_bytes().to_vec();
        let exclude = vec![joined(&root, b"left-out")];
        let (names, summary) = found(&CatchUp {
            roots: vec![root.clone()],
            exclude: exclude.clone(),
            since_unix_ns,
            waiting: None,
        });
        assert_eq!(names, ["new"]);
        assert_eq!(summary, Summary { files: 2, changed: 1, unreadable: 0, cut_short: false });
        assert_eq!(
            found(&CatchUp { roots: vec![root], exclude, since_unix_ns: 0, waiting: None }).0,
            ["new", "old"]
        );
    }

    #[test]
    fn only_a_whole_catch_up_lets_the_mark_move() {
        let ended = |work: fn() -> bool| {
            let thread = std::thread::spawn(work);
            while !thread.is_finished() {
                std::thread::yield_now();
            }
            let mut running = Running::new(thread);
            [running.saw_everything(), running.saw_everything()]
        };
        assert_eq!(ended(|| true), [true, true]);
        assert_eq!(ended(|| false), [false, false], "cut short");
        assert_eq!(ended(|| panic!("on purpose")), [false, false], "failed");
    }
}
