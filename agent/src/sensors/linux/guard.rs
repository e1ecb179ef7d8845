//! Notices marks that somebody takes away, before they are set again.
//!
//! Marks vanish with their file system, and whoever sets marks (`mounts`) does so at any time and for any
//! reason. So what is there is compared with what was there last just before marks are set, and whenever the
//! self-test looks; a mark that is gone was taken away only if the very mount that it could be reached through
//! is still there. Of file systems that only another mount namespace shows nobody can tell: they count as gone.

use super::marks::{Marks, Place};
use super::mountinfo::{self, Mount};
use rustix::fs::{AtFlags, StatxFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

/// The table of mounts. Bytes.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// STATX_MNT_ID_UNIQUE of linux/stat.h (6.8): an id that is not used again.
const MOUNT_ID_UNIQUE: u32 = 0x4000;

/// What was there last. Shared by the thread that sets marks and the one that looks.
#[derive(Debug, Default)]
pub(crate) struct Guard(Mutex<Last>);

#[derive(Debug, Default)]
struct Last {
    marks: Marks,
    mounts: BTreeMap<Place, Identity>,
    taken: BTreeSet<Place>,
}

/// One mount, also when its number is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    id: u32,
    unique: u64,
}

impl Guard {
    /// To be called before marks are set: what was taken away since is remembered.
    pub(crate) fn before(&self, group: impl AsFd) {
        if let Err(error) = self.note(group.as_fd()) {
            tracing::debug!(%error, "could not look at the marks"); // the self-test says so
        }
    }

    /// To be called after: from now on these are expected, and what was taken away and is still missing.
    pub(crate) fn after(&self, group: impl AsFd) {
        let Ok(marks) = Marks::read(group.as_fd()) else { return };
        let table = mounts();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<Place> = last.missing(&marks, &table);
        last.marks = marks.with(&last.marks, &missing);
        let identities = last.marks.places().filter_map(|place| {
            let mount = table.iter().find(|mount| place.is_of(mount))?;
            Some((place, Identity::of(mount)?))
        });
        last.mounts = identities.collect();
    }

    /// What was taken away since the last call, set again or not.
    ///
    /// # Errors
    /// The marks could not be read.
    pub(crate) fn taken(&self, group: impl AsFd) -> io::Result<BTreeSet<Place>> {
        self.note(group.as_fd())?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut last.taken))
    }

    /// Whether a mark asks for one of these bits of everything that a mount shows.
    pub(crate) fn cover(&self, mount: &Mount, bits: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).marks.cover(mount, bits)
    }

    fn note(&self, group: impl AsFd) -> io::Result<()> {
        let marks = Marks::read(group.as_fd())?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.marks.weakened(&marks).is_empty() {
            return Ok(());
        }
        let missing = last.missing(&marks, &mounts());
        last.taken.extend(missing);
        Ok(())
    }
}

impl Last {
    fn missing(&self, now: &Marks, table: &[Mount]) -> Vec<Place> {
        let mut weak = self.marks.weakened(now);
        weak.retain(|place| {
            let Some(before) = self.mounts.get(place) else { return !self.marks.has(*place) };
            let mount = table.iter().find(|mount| mount.id == before.id && place.is_of(mount));
            mount.and_then(Identity::of) == Some(*before)
        });
        weak
    }
}

impl Identity {
    /// None when it can't be reached by its name. Nothing is opened: that would keep others from unmounting it.
    fn of(mount: &Mount) -> Option<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let asked = StatxFlags::from_bits_retain(MOUNT_ID_UNIQUE) | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(rustix::fs::CWD, OsStr::from_bytes(&mount.point), flags, asked).ok()?;
        Some(Self { id: mount.id, unique: stat.stx_mnt_id })
    }
}

/// As this process sees them; empty when the table can't be read.
pub(crate) fn mounts() -> Vec<Mount> {
    let mut table = Vec::new();
    let read = File::open("/proc/self/mountinfo")
        .and_then(|file| file.take(TABLE_BYTES_MAX).read_to_end(&mut table));
    if let Err(error) = read {
        tracing::warn!(%error, "could not read the table of mounts");
    }
    mountinfo::parse(&table)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The mount of `/`, and one of the same number that is another.
    #[test]
    fn only_what_the_same_mount_still_shows_was_taken_away() {
        let table = mounts();
        let root = table.iter().find(|mount| mount.point == b"/").unwrap();
        let (major, minor) = root.device;
        let place = Place::Superblock(major, minor);
        let sdev = (major << 20) | minor;
        let marks = Marks::parse(&format!("fanotify sdev:{sdev:x} mflags:0 mask:8 ignored_mask:0"));
        let identity = Identity::of(root).unwrap();
        let last = |identity| Last {
            marks: marks.clone(),
            mounts: BTreeMap::from([(place, identity)]),
            taken: BTreeSet::new(),
        };
        assert_eq!(last(identity).missing(&marks, &table), []);
        assert_eq!(last(identity).missing(&Marks::default(), &table), [place]);
        assert_eq!(last(identity).missing(&Marks::default(), &[]), []);
        let other = Identity { unique: identity.unique + 1, ..identity };
        assert_eq!(last(other).missing(&Marks::default(), &table), []);
    }
}
