//! The marks of the group for names, and where each marked file system can be entered.
//!
//! Assumes that `mounts` calls for every superblock that it marks itself, and again after each change of the
//! table of mounts. The sensor asks on another thread.

use super::super::mountinfo::{MOUNTS_MAX, Mount};
use crate::sys::fanotify::NameGroup;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vidette_protocol::escape;

/// Shared by the thread of the mounts, which writes, and the reader.
#[derive(Debug)]
pub(crate) struct Marks {
    group: Arc<NameGroup>,
    known: Mutex<Known>,
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    /// By fsid.
    points: BTreeMap<u64, Vec<u8>>,
    /// By mount point: why there is no mark.
    troubles: BTreeMap<Vec<u8>, String>,
}

impl Marks {
    /// None yet.
    #[must_use]
    pub(crate) fn new(group: Arc<NameGroup>) -> Self {
        Self { group, known: Mutex::default(), changes: AtomicU64::new(0) }
    }

    /// Whose marks these are.
    #[must_use]
    pub(crate) fn group(&self) -> Arc<NameGroup> {
        self.group.clone()
    }

    /// Marks the superblock of an open place, which `path` leads to as well.
    pub(crate) fn mark(&self, place: impl AsFd, path: &CStr, mount: &Mount) {
        let marked = self.group.mark(path).and_then(|()| Ok(rustix::fs::fstatvfs(place)?.f_fsid));
        let mut known = self.known();
        match marked {
            Ok(fsid) => {
                let healed = known.troubles.remove(&mount.point).is_some();
                if healed || known.points.get(&fsid) != Some(&mount.point) {
                    known.points.retain(|_, point| *point != mount.point);
                    if known.points.len() >= MOUNTS_MAX {
                        known.points.clear(); // the next refresh brings back those that still are
                    }
                    known.points.insert(fsid, mount.point.clone());
                    self.changes.fetch_add(1, Ordering::Release);
                }
            }
            // Without handles. What is renamed there is renamed on the file system below it, which has a mark.
            Err(error) if mount.kind == b"overlay" => {
                tracing::debug!(%error, point = %escape::terminal(&mount.point), "no mark for names on an overlay");
            }
            Err(error) => {
                let trouble = format!(
                    "{} ({}): {error}",
                    escape::terminal(&mount.point),
                    escape::terminal(&mount.kind)
                );
                if known.troubles.len() < MOUNTS_MAX
                    && known.troubles.insert(mount.point.clone(), trouble.clone()) != Some(trouble)
                {
                    self.changes.fetch_add(1, Ordering::Release);
                }
            }
        }
    }

    /// Grows whenever something is known now that was not.
    #[must_use]
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// File systems whose names are not followed, with the reason.
    #[must_use]
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.known().troubles.values().cloned().collect()
    }

    /// A descriptor on a file system, good for open_by_handle_at(2). Whoever keeps it keeps others from
    /// unmounting. None when the file system is not where it was.
    #[must_use]
    pub(crate) fn enter(&self, fsid: u64) -> Option<OwnedFd> {
        let point = self.known().points.get(&fsid).cloned()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::open(OsStr::from_bytes(&point), flags, Mode::empty()).ok()?;
        if rustix::fs::fstatvfs(&place).ok()?.f_fsid != fsid {
            self.known().points.remove(&fsid);
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat(place, c".", flags, Mode::empty()).ok()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole whoever panicked while holding it: each change is one call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
