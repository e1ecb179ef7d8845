//! Every regular file of one file system under a path, opened by its folder's descriptor: no path is walked twice,
//! no link followed unless asked, nothing but regular files opened. Not recursive: a hostile tree is as deep as it
//! likes.
//!
//! A file whose state is known to be clean is not opened. Other file systems are handed out as `Found::Boundary`,
//! looked at without asking them anything (statx(2), AT_STATX_DONT_SYNC), so that one that does not answer holds up
//! its own walk only. Runs on a thread that may be given up; `Progress` tells others where it is.

use super::budget::{Gate, ThreadTime};
use super::{Cross, Options};
use crate::detection::events;
use crate::detection::verdicts::{Asking, Verdicts};
use crate::host::Moment;
use crate::sys::filesystem::{self, Word};
use crate::worker::poison::FileKey;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vidette_protocol::wire;

/// Folders in folders; each holds a descriptor while it is walked.
pub const DEPTH_MAX: usize = 256;
/// Folders that are remembered while links are followed.
pub const VISITED_MAX: usize = 1 << 20;
/// Entries between two looks at the budget and the clock.
const ENTRIES_AT_ONCE: u32 = 64;

/// Where a walk begins.
#[derive(Debug)]
pub enum Root {
    /// As somebody named it; a link is followed.
    Named(PathBuf),
    /// A file system that another walk came to: its folder (O_PATH), path and identity.
    Mount(OwnedFd, Vec<u8>, (u64, u64)),
}

/// What the walk comes across.
#[derive(Debug)]
pub enum Found {
    /// A regular file that is to be scanned.
    File(Box<Candidate>),
    /// Something that could not be opened or read, and why.
    Unreadable(Vec<u8>, String),
    /// Another file system, to be walked by itself.
    Boundary(Root),
}

/// An open file.
#[derive(Debug)]
pub struct Candidate {
    /// Open for reading.
    pub file: OwnedFd,
    /// Its path.
    pub path: Vec<u8>,
    /// By fstat(2).
    pub key: FileKey,
    /// The same for events.
    pub stat: wire::File,
    /// When it was looked at. Unix nanoseconds.
    pub began_ns: i64,
    /// Its file system keeps its word: a verdict may be kept.
    pub trusted: bool,
}

/// What was met; read by others while it goes on.
#[derive(Debug, Default)]
pub struct Figures {
    /// Regular files.
    pub files: AtomicU64,
    /// Of these known to be clean and not opened.
    pub known: AtomicU64,
    /// Their bytes.
    pub known_bytes: AtomicU64,
    /// Links, sockets, devices, other file systems.
    pub skipped: AtomicU64,
}

/// Where a walk is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Grows with every entry.
    beat: AtomicU64,
    /// It is in the file system's hands, not waiting for ours.
    asking: AtomicBool,
    at: Mutex<At>,
}

#[derive(Debug, Default)]
struct At {
    folder: Vec<u8>,
    name: Vec<u8>,
}

#[derive(Debug)]
struct Frame {
    folder: Dir,
    path: Vec<u8>,
}

/// What a walk is for.
#[derive(Debug, Clone)]
pub enum Aim {
    /// To scan what is not known to be clean by these rules.
    Scan(Option<Arc<Verdicts>>, String),
    /// To count files, as fast as can be.
    Count,
}

/// A walk of one file system.
pub struct Walk<'a> {
    options: &'a Options,
    aim: &'a Aim,
    gate: &'a Gate,
    figures: &'a Figures,
    progress: &'a Progress,
    /// For what is known; none for a walk that only counts, and where nothing is kept.
    asking: Option<Asking>,
    /// False when nobody takes anything any more.
    sink: &'a mut dyn FnMut(Found) -> bool,
    stack: Vec<Frame>,
    visited: HashSet<(u64, u64)>,
    device: u64,
    trusted: bool,
    now_ns: i64,
    entries: u32,
    time: ThreadTime,
}

/// The walk is over before its end.
struct CutShort;

impl Progress {
    /// Whether it asks the file system, and a number that has changed when it got an answer since.
    #[must_use]
    pub fn pulse(&self) -> (bool, u64) {
        (self.asking.load(Ordering::Acquire), self.beat.load(Ordering::Relaxed))
    }

    /// What it looks at.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        let at = self.at();
        joined(&at.folder, &at.name)
    }

    fn at(&self) -> MutexGuard<'_, At> {
        // Two names, whoever panicked while holding them.
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, path: &[u8]) {
        let mut at = self.at();
        at.folder.clear();
        at.folder.extend_from_slice(path);
        at.name.clear();
    }

    fn entry(&self, name: &[u8]) {
        self.beat.fetch_add(1, Ordering::Relaxed);
        let mut at = self.at();
        at.name.clear();
        at.name.extend_from_slice(name);
    }
}

impl<'a> Walk<'a> {
    /// Ready to begin.
    pub fn new(
        options: &'a Options,
        aim: &'a Aim,
        gate: &'a Gate,
        figures: &'a Figures,
        progress: &'a Progress,
        sink: &'a mut dyn FnMut(Found) -> bool,
    ) -> Self {
        let asking = match aim {
            Aim::Scan(verdicts, rules_version) => {
                verdicts.as_ref().and_then(|verdicts| verdicts.asking(rules_version))
            }
            Aim::Count => None,
        };
        Self {
            options,
            aim,
            gate,
            figures,
            progress,
            asking,
            sink,
            stack: Vec::new(),
            visited: HashSet::new(),
            device: 0,
            trusted: false,
            now_ns: Moment::now().unix_ns,
            entries: 0,
            time: ThreadTime::start(),
        }
    }

    /// Walks it; ends early when the gate is closed or nobody takes what is found.
    pub fn run(mut self, root: Root) {
        self.progress.asking.store(true, Ordering::Release);
        let _ = self.begin(root).and_then(|()| self.all());
        self.progress.asking.store(false, Ordering::Release);
        self.gate.spent(self.time.lap());
    }

    fn begin(&mut self, root: Root) -> Result<(), CutShort> {
        let (opened, path) = match root {
            Root::Named(path) => {
                let name = path.as_os_str().as_bytes().to_vec();
                self.progress.folder(&name);
                (named(&path), name)
            }
            Root::Mount(folder, path, _) => {
                self.progress.folder(&path);
                let flags = folder_flags(false);
                let opened = rustix::fs::openat(&folder, c".", flags, Mode::empty());
                (opened.map(|folder| Some((folder, FileType::Directory))), path)
            }
        };
        match opened {
            Err(error) => self.unreadable(path, error),
            Ok(None) => self.say(Found::Unreadable(path, "it is no regular file and no folder".into())),
            Ok(Some((file, kind))) => {
                self.settle_on(&file);
                if kind == FileType::Directory {
                    self.enter(file, path)
                } else {
                    self.opened(file, path, None)
                }
            }
        }
    }

    fn all(&mut self) -> Result<(), CutShort> {
        while let Some(frame) = self.stack.last_mut() {
            let read = frame.folder.read();
            self.breathe()?;
            match read {
                None => self.leave(),
                Some(Err(error)) => {
                    let path = self.stack.last().map(|frame| frame.path.clone()).unwrap_or_default();
                    self.leave();
                    self.unreadable(path, error)?;
                }
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => {
                    self.progress.entry(entry.file_name().to_bytes());
                    self.entry(entry.file_name(), entry.file_type())?;
                }
            }
        }
        Ok(())
    }

    /// Now and then: the clock, and whether it may go on.
    fn breathe(&mut self) -> Result<(), CutShort> {
        self.entries += 1;
        if self.entries < ENTRIES_AT_ONCE {
            return Ok(());
        }
        self.entries = 0;
        self.now_ns = Moment::now().unix_ns;
        self.gate.spent(self.time.lap());
        self.progress.asking.store(false, Ordering::Release);
        let goes_on = self.gate.pass();
        self.progress.asking.store(true, Ordering::Release);
        if goes_on { Ok(()) } else { Err(CutShort) }
    }

    /// What holds for the whole file system.
    fn settle_on(&mut self, file: &OwnedFd) {
        let Ok(stat) = rustix::fs::fstat(file) else { return };
        self.device = FileKey::of(&stat).device;
        self.trusted = match filesystem::word(file) {
            // Who mounts something in our own namespace is root.
            Word::Kept | Word::Overlay => true,
            Word::None => false,
        };
    }

    fn enter(&mut self, folder: OwnedFd, path: Vec<u8>) -> Result<(), CutShort> {
        if self.stack.len() >= DEPTH_MAX {
            let reason = format!("deeper than {DEPTH_MAX} folders: scan it by itself");
            return self.say(Found::Unreadable(path, reason));
        }
        if self.options.exclude.iter().any(|prefix| is_below(&path, prefix)) {
            self.skip();
            return Ok(());
        }
        if self.options.follow {
            if self.visited.len() >= VISITED_MAX {
                let reason = format!("more than {VISITED_MAX} folders: scan without --follow");
                return self.say(Found::Unreadable(path, reason));
            }
            let identity = rustix::fs::fstat(&folder).map(|stat| FileKey::of(&stat));
            if identity.is_ok_and(|key| !self.visited.insert((key.device, key.inode))) {
                self.skip();
                return Ok(());
            }
        }
        match Dir::new(folder) {
            Ok(folder) => {
                self.progress.folder(&path);
                self.stack.push(Frame { folder, path });
                Ok(())
            }
            Err(error) => self.unreadable(path, error),
        }
    }

    fn leave(&mut self) {
        self.stack.pop();
        if let Some(frame) = self.stack.last() {
            self.progress.folder(&frame.path);
        }
    }

    fn entry(&mut self, name: &CStr, kind: FileType) -> Result<(), CutShort> {
        match kind {
            FileType::RegularFile if matches!(self.aim, Aim::Count) => {
                self.figures.files.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            FileType::RegularFile | FileType::Directory | FileType::Unknown => {}
            FileType::Symlink if self.options.follow => {}
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => {
                self.skip();
                return Ok(());
            }
        }
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let looked = frame.folder.fd().and_then(|folder| look(folder, name, self.options.follow));
        let looked = match looked {
            Ok(looked) => looked,
            // Gone since the folder was read.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return self.unreadable(self.path_of(name), error),
        };
        match FileType::from_raw_mode(looked.stx_mode.into()) {
            FileType::Directory => self.folder(name, &looked),
            FileType::RegularFile => self.file(name, &looked),
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                self.skip();
                Ok(())
            }
        }
    }

    fn folder(&mut self, name: &CStr, looked: &Statx) -> Result<(), CutShort> {
        let key = key_of(looked);
        if key.device != self.device {
            return self.boundary(name, &key);
        }
        match self.open(name, folder_flags(self.options.follow)) {
            Ok(folder) => self.enter(folder, self.path_of(name)),
            Err(error) => self.unreadable(self.path_of(name), error),
        }
    }

    fn boundary(&mut self, name: &CStr, key: &FileKey) -> Result<(), CutShort> {
        let enters = match &self.options.cross {
            Cross::Stay => false,
            Cross::Everything => true,
            Cross::Local(devices) => devices.contains_key(&key.device),
        };
        if !enters {
            self.skip();
            return Ok(());
        }
        let flags = OFlags::PATH | folder_flags(self.options.follow);
        match self.open(name, flags) {
            Ok(folder) => {
                let root = Root::Mount(folder, self.path_of(name), (key.device, key.inode));
                self.say(Found::Boundary(root))
            }
            Err(error) => self.unreadable(self.path_of(name), error),
        }
    }

    fn file(&mut self, name: &CStr, looked: &Statx) -> Result<(), CutShort> {
        if matches!(self.aim, Aim::Count) {
            self.figures.files.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let key = key_of(looked);
        if self.is_known(&key) {
            return Ok(());
        }
        match self.open(name, file_flags(self.options.follow)) {
            Ok(file) => self.opened(file, self.path_of(name), Some(&key)),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => self.unreadable(self.path_of(name), error),
        }
    }

    /// Its state is known to be clean.
    fn is_known(&mut self, key: &FileKey) -> bool {
        let asks = self.trusted && key.device == self.device;
        let asking = self.asking.as_mut().filter(|_| asks);
        let known = asking.and_then(|asking| asking.known_clean(key, self.now_ns));
        if known.is_some() {
            self.figures.files.fetch_add(1, Ordering::Relaxed);
            self.figures.known.fetch_add(1, Ordering::Relaxed);
            self.figures.known_bytes.fetch_add(key.size, Ordering::Relaxed);
        }
        known.is_some()
    }

    /// It may have been replaced between the look and the opening: what counts is the descriptor.
    fn opened(&mut self, file: OwnedFd, path: Vec<u8>, looked: Option<&FileKey>) -> Result<(), CutShort> {
        let stat = match rustix::fs::fstat(&file) {
            Ok(stat) => stat,
            Err(error) => return self.unreadable(path, error),
        };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            self.skip();
            return Ok(());
        }
        let key = FileKey::of(&stat);
        // Without a look before: somebody named it.
        if looked.is_none() && self.is_known(&key) {
            return Ok(());
        }
        self.figures.files.fetch_add(1, Ordering::Relaxed);
        if matches!(self.aim, Aim::Count) {
            return Ok(());
        }
        let trusted = self.trusted && key.device == self.device && looked.is_none_or(|looked| *looked == key);
        let began_ns = Moment::now().unix_ns;
        let stat = events::file(&stat);
        self.say(Found::File(Box::new(Candidate { file, path, key, stat, began_ns, trusted })))
    }

    fn open(&self, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let frame = self.stack.last().ok_or(Errno::NOENT)?;
        rustix::fs::openat(frame.folder.fd()?, name, flags, Mode::empty())
    }

    fn path_of(&self, name: &CStr) -> Vec<u8> {
        joined(self.stack.last().map_or(&[], |frame| &frame.path), name.to_bytes())
    }

    fn unreadable(&mut self, path: Vec<u8>, error: Errno) -> Result<(), CutShort> {
        self.say(Found::Unreadable(path, error.to_string()))
    }

    fn say(&mut self, found: Found) -> Result<(), CutShort> {
        self.progress.asking.store(false, Ordering::Release);
        let taken = (self.sink)(found);
        self.progress.asking.store(true, Ordering::Release);
        if taken { Ok(()) } else { Err(CutShort) }
    }

    fn skip(&self) {
        self.figures.skipped.fetch_add(1, Ordering::Relaxed);
    }
}

/// What somebody named; `None` when it is neither a file nor a folder.
fn named(path: &std::path::Path) -> Result<Option<(OwnedFd, FileType)>, Errno> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let flags = match kind {
        FileType::RegularFile => file_flags(true),
        FileType::Directory => folder_flags(true),
        // No opening: that alone can hang or change a device.
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => return Ok(None),
    };
    Ok(Some((rustix::fs::open(path, flags, Mode::empty())?, kind)))
}

fn look(folder: impl AsFd, name: &CStr, follow: bool) -> Result<Statx, Errno> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let flags = if follow { flags } else { flags | AtFlags::SYMLINK_NOFOLLOW };
    rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS)
}

fn key_of(looked: &Statx) -> FileKey {
    let nanoseconds = |time: &rustix::fs::StatxTimestamp| {
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.into())
    };
    FileKey {
        device: rustix::fs::makedev(looked.stx_dev_major, looked.stx_dev_minor),
        inode: looked.stx_ino,
        size: looked.stx_size,
        mtime_ns: nanoseconds(&looked.stx_mtime),
        ctime_ns: nanoseconds(&looked.stx_ctime),
    }
}

fn file_flags(follow: bool) -> OFlags {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if follow { flags } else { flags | OFlags::NOFOLLOW }
}

fn folder_flags(follow: bool) -> OFlags {
    file_flags(follow) | OFlags::DIRECTORY
}

/// `/a/b` is below `/a` and `/a/`, `/ab` is not.
fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = folder.to_vec();
    if !name.is_empty() {
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    path
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stop;
    use std::fs;
    use std::path::Path;

    const STAY: Options = Options { follow: false, cross: Cross::Stay, exclude: Vec::new() };

    /// Names of the files found, of what could not be read, and how many were skipped.
    fn walked(path: &Path, options: &Options, aim: &Aim) -> (Vec<String>, Vec<String>, u64, u64) {
        let (_stopper, stop) = stop::channel();
        let (gate, figures, progress) = (Gate::new(stop, 0), Figures::default(), Progress::default());
        let (mut files, mut unreadable) = (Vec::new(), Vec::new());
        let mut sink = |found| {
            match found {
                Found::File(file) => files.push(String::from_utf8_lossy(&file.path).into_owned()),
                Found::Unreadable(path, error) => {
                    unreadable.push(format!("{}: {error}", String::from_utf8_lossy(&path)));
                }
                Found::Boundary(root) => unreadable.push(format!("{root:?}")),
            }
            true
        };
        Walk::new(options, aim, &gate, &figures, &progress, &mut sink).run(Root::Named(path.to_owned()));
        files.sort();
        let root = path.to_string_lossy().into_owned();
        let files = files.iter().map(|file| file.replacen(&root, "", 1)).collect();
        (files, unreadable, figures.skipped.into_inner(), figures.files.into_inner())
    }

    #[test]
    fn files_are_found_and_nothing_else_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::create_dir_all(at("left-out/deep")).unwrap();
        for name in ["a/b/one", "two", "left-out/deep/three"] {
            fs::write(at(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        std::os::unix::fs::symlink("..", at("a/up")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let exclude = vec![at("left-out").as_os_str().as_bytes().to_vec()];
        let options = Options { exclude, ..STAY };
        let scan = Aim::Scan(None, "v".into());
        let found = walked(folder.path(), &options, &scan);
        assert_eq!(found, (vec!["/a/b/one".into(), "/two".into()], vec![], 4, 2));
        assert_eq!(walked(folder.path(), &options, &Aim::Count), (vec![], vec![], 4, 2));
        let follow = Options { follow: true, ..STAY };
        assert_eq!(walked(folder.path(), &follow, &scan).0.len(), 3, "each once");
        assert_eq!(walked(&at("two"), &STAY, &scan).0, [""]);
        assert!(walked(&at("pipe"), &STAY, &scan).1[0].contains("no regular file"));
        assert!(walked(&at("none"), &STAY, &scan).1[0].contains("No such file"));
    }

    #[test]
    fn a_tree_that_is_too_deep_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut path = folder.path().to_path_buf();
        for _ in 0..=DEPTH_MAX {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        let (_, unreadable, _, _) = walked(folder.path(), &STAY, &Aim::Count);
        assert!(unreadable.len() == 1 && unreadable[0].contains("deeper than"), "{unreadable:?}");
    }

    #[test]
    fn statx_and_fstat_name_a_file_alike() {
        for path in [c"/proc/self/exe", c"/etc/passwd", c"/dev/null"] {
            let stat = rustix::fs::statat(CWD, path, AtFlags::empty()).unwrap();
            assert_eq!(key_of(&look(CWD, path, true).unwrap()), FileKey::of(&stat));
        }
    }
}
