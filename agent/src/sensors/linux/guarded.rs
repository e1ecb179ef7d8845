//! Files that are the agent's alone, its key above all: marked, so that the kernel tells of everybody who opens one.
//!
//! Marks are on inodes, in the group for content, whose reader knows who did it. Such a folder is replaced as a whole at
//! every renewal, so a thread follows the folder above (inotify(7)), and looks again now and then whatever happens. Opens
//! nothing but what lies there, which is on a local disk.

use crate::sensors::linux::self_test::is_stopped_or;
use crate::sys::fanotify::Group;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Looked at again after this, whatever was told.
const LOOK: Duration = Duration::from_secs(15);
/// Folders that are guarded, and files in each.
const ENTRIES_MAX: usize = 64;
/// One read of the watch. Bytes.
const READ_BYTES: usize = 4096;

/// What is guarded.
#[derive(Debug)]
pub(crate) struct Guarded {
    group: Arc<Group>,
    state: PathBuf,
    prefix: &'static str,
    told: bool,
}

impl Guarded {
    /// The folders in `state` whose names begin with `prefix`.
    pub(crate) fn new(group: Arc<Group>, state: PathBuf, prefix: &'static str) -> Self {
        Self { group, state, prefix, told: false }
    }

    /// Until `stop` becomes readable.
    pub(crate) fn run(mut self, stop: &OwnedFd) {
        let watch = match self.watch() {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "could not follow the state folder: a new identity is guarded some seconds late");
                None
            }
        };
        loop {
            self.mark();
            if is_stopped_or(stop, watch.as_ref(), LOOK) {
                return;
            }
            watch.iter().for_each(drain);
        }
    }

    fn watch(&self) -> rustix::io::Result<OwnedFd> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(&watch, &self.state, what)?;
        Ok(watch)
    }

    fn mark(&mut self) {
        match self.mark_all() {
            Ok(()) => self.told = false,
            Err(error) if !self.told => {
                self.told = true;
                tracing::warn!(%error, "could not guard the identity: who reads it is not told");
            }
            Err(_) => {}
        }
    }

    fn mark_all(&self) -> std::io::Result<()> {
        let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let state = rustix::fs::open(&self.state, folder, Mode::empty())?;
        for name in names(&state)? {
            if !name.as_bytes().starts_with(self.prefix.as_bytes()) {
                continue;
            }
            // Gone, or no folder: another look follows.
            let Ok(guarded) = rustix::fs::openat(&state, &name, folder, Mode::empty()) else { continue };
            self.group.guard(&guarded)?;
            for name in names(&guarded)? {
                let is_file = rustix::fs::statat(&guarded, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                if let (true, Ok(file)) = (is_file, rustix::fs::openat(&guarded, &name, flags, Mode::empty()))
                {
                    self.group.guard(&file)?;
                }
            }
        }
        Ok(())
    }
}

fn names(folder: &OwnedFd) -> std::io::Result<Vec<CString>> {
    let entries = Dir::read_from(folder)?.filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_owned());
    Ok(names.filter(|name| !name.as_bytes().starts_with(b".")).take(ENTRIES_MAX).collect())
}

/// What was told says only that it is time to look.
fn drain(watch: &OwnedFd) {
    let mut bytes = [MaybeUninit::<u8>::uninit(); READ_BYTES];
    while rustix::io::read(watch, &mut bytes).is_ok_and(|(read, _)| !read.is_empty()) {}
}
