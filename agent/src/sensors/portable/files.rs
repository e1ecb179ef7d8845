//! Files that are written in watched directories.
//!
//! Each directory gets a watch of its own before it is listed, so that a file is either in the list or told by
//! the watch: `mkdir -p a/b/c; echo > a/b/c/f` is seen. A close after writing is trigger CLOSE_WRITE, a rename
//! into place RENAME; what was found by listing, or was changed and not closed for a while, is SWEEP, because
//! nobody knows whether it is complete. A file that was made executable is ATTRIBUTES; what was deleted is told
//! by its name alone. Nobody knows who did any of it. Assumes that the library's thread may never wait for this one.

use super::limits;
use crate::host::Moment;
use crate::sensors::outlet::Outlet;
use crate::sensors::{Observation, OpenFile};
use crate::stop::Stop;
use anyhow::Context;
use crossbeam_channel::{Receiver, TrySendError};
use notify::event::{AccessKind, AccessMode, CreateKind, MetadataKind, ModifyKind, RemoveKind, RenameMode};
use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use rustix::fs::{FileType, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, FileAction, GapReason, HealthState, Trigger};

/// Events between the library's thread and ours. Beyond it a gap is recorded.
const EVENTS_MAX: usize = 16_384;
/// Directories with a watch.
const DIRECTORIES_MAX: usize = 65_536;
/// How deep directories are followed.
const DEPTH_MAX: usize = 64;
/// Files that were changed and not closed. Beyond it they are reported at once.
const CHANGED_MAX: usize = 4096;
/// How long a changed file waits for its close.
const SETTLE: Duration = Duration::from_secs(2);
/// How often it is tried to watch what could not be watched.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Mode bits of execution, for user, group or others.
const ANYBODY_RUNS: u32 = 0o111;
const TICK: Duration = Duration::from_millis(250);
/// Watched when nothing is configured, besides the home folder: where what comes from outside arrives.
const DEFAULT_ROOTS: [&str; 7] = ["/home", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/usr/local", "/opt"];

/// The sensor.
#[derive(Debug)]
pub(crate) struct Files {
    outlet: Outlet,
    watcher: RecommendedWatcher,
    events: Receiver<notify::Result<Event>>,
    dropped: Arc<AtomicU64>,
    watched: HashSet<PathBuf>,
    changed: HashMap<PathBuf, Instant>,
    out_of_watches: bool,
    unwatched_since: Option<Moment>,
    look_again: Instant,
    moved: Option<(usize, PathBuf)>,
    last_empty: Moment,
}

impl Files {
    /// With a watcher, and no watch yet.
    ///
    /// # Errors
    /// When the system has no watcher left.
    pub(crate) fn new(outlet: Outlet) -> anyhow::Result<Self> {
        let (sender, events) = crossbeam_channel::bounded(EVENTS_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = dropped.clone();
        let handler = move |event: notify::Result<Event>| {
            if event.as_ref().is_ok_and(|event| !matters(event)) {
                return;
            }
            if let Err(TrySendError::Full(_)) = sender.try_send(event) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .with_context(|| format!("could not watch directories: {}", limits::instances()))?;
        Ok(Self {
            outlet,
            watcher,
            events,
            dropped,
            watched: HashSet::new(),
            changed: HashMap::new(),
            out_of_watches: false,
            unwatched_since: None,
            look_again: Instant::now(),
            moved: None,
            last_empty: Moment::now(),
        })
    }

    /// Until `stop`.
    pub(crate) fn run(mut self, stop: &Stop) {
        for root in self.roots() {
            self.add_tree(&root, false, stop);
        }
        while !stop.is_set() {
            let first = self.events.recv_timeout(TICK).ok();
            let now = Moment::now();
            if let Some(event) = first {
                self.handle(event, now, stop);
            }
            self.settle(now);
            self.count_dropped(now, stop);
            self.look_again_if_due(now, stop);
            if self.events.is_empty() {
                self.last_empty = now;
            }
            self.outlet.flush(now);
        }
        self.outlet.flush_all(Moment::now());
    }

    fn roots(&mut self) -> Vec<PathBuf> {
        let watch = &self.outlet.paths().watch;
        if watch.is_empty() {
            let home = std::env::home_dir().into_iter();
            let all = home.chain(DEFAULT_ROOTS.map(PathBuf::from));
            return all.filter(|root| root.is_absolute() && root.is_dir()).collect();
        }
        let roots: Vec<PathBuf> =
            watch.iter().map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path))).collect();
        let missing = roots.iter().filter(|root| !root.exists()).count();
        if missing > 0 {
            let message = format!("{missing} of the watched paths do not exist: make them and start again");
            self.outlet.health("watches", HealthState::Degraded, message);
        }
        roots
    }

    /// Watches a directory and all below it. With `tell`, files in directories that had no watch are reported.
    fn add_tree(&mut self, root: &Path, tell: bool, stop: &Stop) {
        let mut waiting = vec![(root.to_path_buf(), 0)];
        while let Some((path, depth)) = waiting.pop() {
            if stop.is_set() || depth > DEPTH_MAX || self.is_excluded(&path) {
                continue;
            }
            let new = !self.watched.contains(&path);
            if new && !self.add_watch(&path) {
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&path) else { continue };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => waiting.push((entry.path(), depth + 1)),
                    Ok(kind) if kind.is_file() && tell && new => {
                        self.report(&entry.path(), Trigger::Sweep, Moment::now());
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }

    /// A folder that has another name now, or is out of sight: its watches would tell by the old names.
    fn forget_tree(&mut self, root: &Path) {
        if !self.watched.contains(root) {
            return;
        }
        let gone: Vec<PathBuf> = self.watched.extract_if(|path| path.starts_with(root)).collect();
        for path in gone {
            let _ = self.watcher.unwatch(&path); // the library may have done it already
        }
    }

    fn is_excluded(&self, path: &Path) -> bool {
        let excludes = &self.outlet.paths().exclude;
        excludes.iter().any(|prefix| crate::sensors::outlet::is_under(path.as_os_str().as_bytes(), prefix))
    }

    fn add_watch(&mut self, path: &Path) -> bool {
        if self.watched.len() >= DIRECTORIES_MAX {
            self.no_watch(format!(
                "the agent watches {DIRECTORIES_MAX} directories and no more: name fewer in sensors.watch, or run it as root"
            ));
            return false;
        }
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => self.watched.insert(path.to_path_buf()),
            Err(error) => {
                if matches!(error.kind, ErrorKind::MaxFilesWatch) {
                    self.no_watch(limits::watches(self.watched.len()));
                }
                false
            }
        }
    }

    /// Said once, until every folder has a watch again.
    fn no_watch(&mut self, message: String) {
        self.out_of_watches = true;
        if self.unwatched_since.is_some() {
            return;
        }
        let now = Moment::now();
        tracing::warn!(message, "folders are not watched");
        self.unwatched_since = Some(now);
        self.look_again = Instant::now() + LOOK_AGAIN;
        self.outlet.lost(GapReason::WatchLimit, None, now, now, &message);
        self.outlet.health("watches", HealthState::Degraded, message);
    }

    /// Watches may have become free, or the limit been raised. What is in folders that get one now is reported.
    fn look_again_if_due(&mut self, now: Moment, stop: &Stop) {
        let Some(since) = self.unwatched_since else { return };
        if Instant::now() < self.look_again {
            return;
        }
        self.look_again = Instant::now() + LOOK_AGAIN;
        self.out_of_watches = false;
        for root in self.roots() {
            self.add_tree(&root, true, stop);
        }
        if !self.out_of_watches {
            self.unwatched_since = None;
            let detail = "until every folder was watched again";
            self.outlet.lost(GapReason::WatchLimit, None, since, now, detail);
            self.outlet.health("watches", HealthState::Ok, "every folder is watched again".to_owned());
        }
    }

    fn handle(&mut self, event: notify::Result<Event>, now: Moment, stop: &Stop) {
        let event = match event {
            Ok(event) if event.need_rescan() => {
                let detail = "the system's queue of file events was full (see fs.inotify.max_queued_events)";
                return self.overflowed(None, detail, now, stop);
            }
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "a directory can't be watched");
                return;
            }
        };
        let cookie = event.tracker();
        let Some(path) = event.paths.last().cloned() else { return };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.changed.remove(&path);
                self.report(&path, Trigger::CloseWrite, now);
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                self.changed.remove(&path);
                self.forget_tree(&path);
                self.moved = cookie.map(|cookie| (cookie, path));
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                let from = self.moved.take().filter(|(of, _)| Some(*of) == cookie).map(|(_, path)| path);
                let old_path =
                    from.map(|path| path.into_os_string().into_encoded_bytes()).unwrap_or_default();
                if path.symlink_metadata().is_ok_and(|kind| kind.is_dir()) {
                    self.name_changed(&path, old_path, FileAction::Renamed, true, now);
                    self.add_tree(&path, true, stop);
                } else {
                    self.report_as(&path, Trigger::Rename, old_path, now);
                }
            }
            EventKind::Create(CreateKind::Folder) => self.add_tree(&path, true, stop),
            EventKind::Modify(ModifyKind::Metadata(_)) => self.note_attributes(&path, now),
            EventKind::Create(_) | EventKind::Modify(_) => self.note_change(path, now),
            EventKind::Remove(RemoveKind::File) => {
                self.changed.remove(&path);
                self.name_changed(&path, Vec::new(), FileAction::Deleted, false, now);
            }
            EventKind::Remove(_) => {
                self.changed.remove(&path);
                // Told twice, by its own watch and by its parent's.
                if self.watched.remove(&path) {
                    self.look_again = Instant::now();
                    self.name_changed(&path, Vec::new(), FileAction::Deleted, true, now);
                }
            }
            EventKind::Access(_) | EventKind::Any | EventKind::Other => {}
        }
    }

    /// A file that may be run now is looked at like one that was written; anything else is told.
    fn note_attributes(&mut self, path: &Path, now: Moment) {
        let Ok(data) = path.symlink_metadata() else { return }; // gone: that is told
        if data.is_file() && data.permissions().mode() & ANYBODY_RUNS != 0 {
            self.report(path, Trigger::Attributes, now);
        } else if data.is_file() || data.is_dir() {
            self.name_changed(path, Vec::new(), FileAction::Attributes, data.is_dir(), now);
        }
    }

    /// Who did it nobody knows here.
    fn name_changed(&mut self, path: &Path, old_path: Vec<u8>, action: FileAction, folder: bool, at: Moment) {
        let path = path.as_os_str().as_bytes();
        if !self.outlet.paths().cover(path) {
            return self.outlet.unwatched();
        }
        let file = wire::File {
            path: path.to_vec(),
            deleted: action == FileAction::Deleted,
            ..wire::File::default()
        };
        self.outlet.pass(Observation::NameChanged { action, file, old_path, folder, process: None, at }, at);
    }

    fn note_change(&mut self, path: PathBuf, now: Moment) {
        if self.changed.len() < CHANGED_MAX || self.changed.contains_key(&path) {
            self.changed.insert(path, Instant::now());
        } else {
            self.report(&path, Trigger::Sweep, now);
        }
    }

    /// Changed files whose close did not come: still open, linked into place, or on a system that tells none.
    fn settle(&mut self, now: Moment) {
        let due: Vec<PathBuf> = self
            .changed
            .iter()
            .filter(|(_, at)| at.elapsed() >= SETTLE)
            .map(|(path, _)| path.clone())
            .collect();
        for path in due {
            self.changed.remove(&path);
            self.report(&path, Trigger::Sweep, now);
        }
    }

    fn count_dropped(&mut self, now: Moment, stop: &Stop) {
        let count = self.dropped.swap(0, Ordering::Relaxed);
        if count > 0 {
            self.overflowed(Some(count), "the agent could not keep up with file events", now, stop);
        }
    }

    /// New directories may have been among what was dropped.
    fn overflowed(&mut self, count: Option<u64>, detail: &str, now: Moment, stop: &Stop) {
        self.outlet.lost(GapReason::PortableQueue, count, self.last_empty, now, detail);
        for root in self.roots() {
            self.add_tree(&root, true, stop);
        }
    }

    fn report(&mut self, path: &Path, trigger: Trigger, at: Moment) {
        self.report_as(path, trigger, Vec::new(), at);
    }

    fn report_as(&mut self, path: &Path, trigger: Trigger, old_path: Vec<u8>, at: Moment) {
        if !self.outlet.paths().cover(path.as_os_str().as_bytes()) {
            return self.outlet.unwatched();
        }
        match open(path) {
            Ok(Some(file)) => {
                self.outlet.pass(Observation::FileWritten { file, process: None, trigger, old_path, at }, at);
            }
            Err(error) if matches!(error, rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                let detail = format!("the agent could not open a file: {error}");
                self.outlet.lost(GapReason::Descriptors, Some(1), at, at, &detail);
            }
            Ok(None) | Err(_) => self.outlet.unwatched(), // no file, gone, or not ours to read
        }
    }
}

/// What the library tells of every look at a file, ours too, is dropped before it takes room.
fn matters(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => matches!(kind, AccessKind::Close(AccessMode::Write)),
        // To be read changes the time of access; what else it may be is not told on Linux.
        EventKind::Modify(ModifyKind::Metadata(kind)) => kind != MetadataKind::AccessTime,
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::Both, // From and To came before
        EventKind::Modify(_) | EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Any | EventKind::Other => event.need_rescan(),
    }
}

/// None when it is no regular file.
fn open(path: &Path) -> rustix::io::Result<Option<OpenFile>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&descriptor)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let path = path.as_os_str().as_bytes().to_vec();
    Ok(Some(OpenFile { descriptor, path, deleted: stat.st_nlink == 0, container_path: Vec::new() }))
}
