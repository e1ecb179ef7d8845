//! fanotify(7) in FID mode: a group that tells of names, with handles instead of open files.
//!
//! Assumes Linux 5.9. The kernel opens nothing for these events but a pidfd, which is owned before anything else
//! happens. A batch goes to the sensor of names.

use super::records::{self, Handle, Place};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// One read. Bytes. The smallest event with a pidfd is 60, so at most 546 descriptors come at once; the usual
/// one is 104.
const READ_BYTES_MAX: usize = 32 << 10;
/// The longest event: two records with a name of 255 bytes each and three handles of 128. Bytes.
const EVENT_BYTES_MAX: usize = 24 + 2 * (20 + 128 + 256) + (20 + 128) + 8;

/// An entry of a folder was made: by creation or by a link.
pub const CREATE: u64 = libc::FAN_CREATE;
/// An entry was removed.
pub const DELETE: u64 = libc::FAN_DELETE;
/// Mode, owner, times, attributes or the number of links changed.
pub const ATTRIB: u64 = libc::FAN_ATTRIB;
/// An entry was renamed, with both places (5.17).
pub const RENAME: u64 = libc::FAN_RENAME;
/// An entry left a place.
pub const MOVED_FROM: u64 = libc::FAN_MOVED_FROM;
/// An entry came to a place.
pub const MOVED_TO: u64 = libc::FAN_MOVED_TO;
/// The object is a folder.
pub const FOLDER: u64 = libc::FAN_ONDIR;

/// What each kernel knows, best first: flags and mask.
const LADDER: [(u32, u64); 3] = [
    (libc::FAN_REPORT_DFID_NAME_TARGET | libc::FAN_REPORT_PIDFD, RENAME | CREATE | DELETE | ATTRIB | FOLDER),
    (
        libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID | libc::FAN_REPORT_PIDFD,
        MOVED_FROM | MOVED_TO | CREATE | DELETE | ATTRIB | FOLDER,
    ),
    (
        libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID,
        MOVED_FROM | MOVED_TO | CREATE | DELETE | ATTRIB | FOLDER,
    ),
];

/// A notification group for names.
#[derive(Debug)]
pub struct NameGroup {
    descriptor: OwnedFd,
    mask: u64,
    /// Events carry a pidfd (5.15).
    pub pidfd: bool,
    /// A rename is one event, and every event carries the handle of its object (5.17).
    pub targets: bool,
}

/// One event, as it lies in its batch.
#[derive(Debug)]
pub struct NameEvent<'a> {
    /// What happened: several bits when the kernel merged events of one object and one name.
    pub mask: u64,
    /// Thread group id in our pid namespace; 0 when it lives outside.
    pub pid: u32,
    /// The process, when it still is one.
    pub pidfd: Option<&'a OwnedFd>,
    /// Its pid was free, or another's, when the event was read.
    pub reaped: bool,
    /// The object.
    pub object: Option<Handle<'a>>,
    /// Folder and name. Of a rename the new one. A folder's own changes come as the folder and `.`.
    pub place: Option<Place<'a>>,
    /// Folder and name before, of a rename.
    pub old_place: Option<Place<'a>>,
}

/// What one read gave.
#[derive(Debug)]
pub struct NameBatch {
    bytes: Vec<u8>,
    starts: Vec<(usize, Option<OwnedFd>, bool)>,
    /// The queue was empty afterwards.
    pub emptied: bool,
}

impl NameGroup {
    /// A group with as many of the wanted flags as this kernel knows. A pidfd for every event costs as much as the
    /// rest of it: without `pidfds` somebody else must tell who lives.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, EINVAL before 5.9, and what else fanotify_init(2) lists.
    pub fn new(pidfds: bool) -> io::Result<Self> {
        let mut last = io::Error::from_raw_os_error(libc::EINVAL);
        let unwanted = if pidfds { 0 } else { libc::FAN_REPORT_PIDFD };
        for (report, mask) in LADDER {
            match Self::with(report & !unwanted, mask) {
                Ok(group) => return Ok(group),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The group as a kernel would give it that knows no more than this step: 0 is the best, 2 the last.
    ///
    /// # Errors
    /// EINVAL for a step that this kernel does not know, or that there is not.
    pub fn at_step(step: usize) -> io::Result<Self> {
        let (report, mask) = *LADDER.get(step).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Self::with(report, mask)
    }

    fn with(report: u32, mask: u64) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | report;
        Ok(Self {
            descriptor: super::init(flags)?,
            mask,
            pidfd: report & libc::FAN_REPORT_PIDFD != 0,
            targets: report & libc::FAN_REPORT_TARGET_FID != 0,
        })
    }

    /// Marks the superblock of what `path` lies on.
    ///
    /// # Errors
    /// EOPNOTSUPP or ENODEV for a file system without handles or without an id, EXDEV for a btrfs subvolume,
    /// and what else fanotify_mark(2) lists.
    pub fn mark(&self, path: &CStr) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        super::set_mark(&self.descriptor, flags, self.mask, path)
    }

    /// Reads what waits, at most 32 KiB, into a buffer that [`NameBatch::into_buffer`] gives back.
    /// Does not block: nothing waiting is an empty batch.
    ///
    /// # Errors
    /// What read(2) lists. A record that does not parse is `InvalidData`, and the batch is lost.
    pub fn read(&self, mut bytes: Vec<u8>) -> io::Result<NameBatch> {
        bytes.resize(READ_BYTES_MAX, 0);
        let length = match rustix::io::read(&self.descriptor, &mut bytes[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        bytes.truncate(length);
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (record, length) = records::parse(rest).ok_or_else(super::unreadable)?;
            let reaped = record.pidfd == Some(libc::FAN_NOPIDFD);
            starts.push((at, record.pidfd.and_then(own), reaped));
            at += length;
        }
        Ok(NameBatch { bytes, starts, emptied: length + EVENT_BYTES_MAX <= READ_BYTES_MAX })
    }
}

impl AsFd for NameGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl NameBatch {
    /// The events, in the order of the queue.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = NameEvent<'_>> {
        self.starts.iter().filter_map(|(at, pidfd, reaped)| {
            let (record, _) = records::parse(self.bytes.get(*at..)?)?;
            Some(NameEvent {
                mask: record.mask,
                pid: u32::try_from(record.pid).unwrap_or(0),
                pidfd: pidfd.as_ref(),
                reaped: *reaped,
                object: record.object,
                place: record.place,
                old_place: record.old_place,
            })
        })
    }

    /// The buffer, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

fn own(raw: i32) -> Option<OwnedFd> {
    // SAFETY: a number of 0 or more in a record that the kernel just wrote is a new descriptor that belongs to
    // whoever read it; each read is walked once.
    (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
}
