//! Objects opened by their handles, within one turn of the reader.
//!
//! Assumes that [`Objects::end_turn`] is called before the reader waits again: a descriptor on a file system keeps
//! it from being unmounted. Nothing is opened for reading before it is known to be a regular file or a folder.

use super::marks::Marks;
use crate::sys::fanotify::{Handle, Place};
use crate::sys::handles;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use vidette_protocol::wire;

/// File systems entered in one turn. Each holds a descriptor.
const ENTERED_MAX: usize = 64;

/// Opens by handle.
#[derive(Debug)]
pub(crate) struct Objects {
    marks: Arc<Marks>,
    entered: HashMap<u64, Option<OwnedFd>>,
}

/// Something that is there, known but not open for reading.
#[derive(Debug)]
pub(crate) struct Object {
    path_only: OwnedFd,
    stat: Stat,
}

/// Why there is no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It was removed, or its file system was.
    Gone,
    /// It could not be opened: errno.
    Refused(i32),
}

impl Objects {
    /// On the file systems that are marked.
    #[must_use]
    pub(crate) fn new(marks: Arc<Marks>) -> Self {
        Self { marks, entered: HashMap::new() }
    }

    /// The object of a handle.
    pub(crate) fn get(&mut self, handle: Handle<'_>) -> Result<Object, Missing> {
        if self.entered.len() >= ENTERED_MAX {
            self.entered.clear();
        }
        let fsid = handle.fsid();
        let mount = self.entered.entry(fsid).or_insert_with(|| self.marks.enter(fsid));
        let mount = mount.as_ref().ok_or(Missing::Gone)?;
        let (kind, bytes) = handle.parts();
        let opened = handles::open(mount, kind, bytes, OFlags::PATH);
        Object::new(opened.map_err(|error| missing(error.raw_os_error().unwrap_or(libc::ESTALE)))?)
    }

    /// The object that an entry of a folder names now: for kernels that say no more than that.
    pub(crate) fn named(&mut self, place: Place<'_>) -> Result<Object, Missing> {
        let folder = self.get(place.folder)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            rustix::fs::openat(&folder.path_only, OsStr::from_bytes(place.name), flags, Mode::empty());
        Object::new(opened.map_err(refused)?)
    }

    /// Lets go of the file systems.
    pub(crate) fn end_turn(&mut self) {
        self.entered.clear();
    }
}

impl Object {
    fn new(path_only: OwnedFd) -> Result<Self, Missing> {
        let stat = rustix::fs::fstat(&path_only).map_err(refused)?;
        Ok(Self { path_only, stat })
    }

    /// What it is.
    #[must_use]
    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Its type.
    #[must_use]
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Its name now, as the kernel has it; empty when it is too long.
    #[must_use]
    pub(crate) fn path(&self) -> Vec<u8> {
        let link = std::fs::read_link(self.link()).unwrap_or_default();
        let mut path = std::os::unix::ffi::OsStringExt::into_vec(link.into_os_string());
        // A folder that was removed has no links or, on some file systems, still one.
        if self.stat.st_nlink == 0 && path.ends_with(DELETED) {
            path.truncate(path.len() - DELETED.len());
        }
        path
    }

    /// The same object, open for reading: a regular file or a folder, nothing else.
    ///
    /// # Errors
    /// ENOTSUP for anything else, and what open(2) lists.
    pub(crate) fn open(&self) -> Result<OwnedFd, Missing> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let flags = match self.kind() {
            FileType::RegularFile => flags | OFlags::NOATIME,
            FileType::Directory => flags | OFlags::DIRECTORY,
            _ => return Err(Missing::Refused(libc::ENOTSUP)), // opening it could have effects
        };
        rustix::fs::open(self.link(), flags, Mode::empty()).map_err(refused)
    }

    /// What there is to say of it under this path.
    #[must_use]
    pub(crate) fn file(&self, path: Vec<u8>) -> wire::File {
        #[allow(clippy::useless_conversion, clippy::cast_sign_loss)] // types differ between architectures
        let time = |s: i64, ns: u64| s.saturating_mul(1_000_000_000).saturating_add_unsigned(ns);
        let stat = &self.stat;
        wire::File {
            path,
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_unix_ns: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime_unix_ns: time(stat.st_ctime, stat.st_ctime_nsec),
            deleted: stat.st_nlink == 0,
            ..wire::File::default()
        }
    }

    fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.path_only.as_raw_fd())
    }
}

/// What the kernel appends to the name of what has none any more.
const DELETED: &[u8] = b" (deleted)";

fn refused(error: Errno) -> Missing {
    missing(error.raw_os_error())
}

fn missing(errno: i32) -> Missing {
    match errno {
        libc::ESTALE | libc::ENOENT => Missing::Gone,
        errno => Missing::Refused(errno),
    }
}
