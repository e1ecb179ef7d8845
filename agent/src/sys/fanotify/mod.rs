//! fanotify(7) in descriptor mode: one group, its marks, and the events read from it. Names are in `names`.
//!
//! Assumes Linux. Every descriptor that the kernel puts into an event is owned by that event before anything
//! else happens, so none can leak. Events go to the reader thread of the Linux sensors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// FID mode: names.
mod names;
/// Its bytes.
mod records;

pub use names::{
    ATTRIB, CREATE, DELETE, FOLDER, MOVED_FROM, MOVED_TO, NameBatch, NameEvent, NameGroup, RENAME,
};
pub use records::{Handle, Place};

/// One read. Bytes. Small, because every event in it opens two descriptors: at most 341 events.
pub const READ_BYTES_MAX: usize = 8 << 10;
/// The largest event of this group: metadata and one pidfd record. Bytes.
const EVENT_BYTES_MAX: usize = METADATA_BYTES + PIDFD_RECORD_BYTES;
/// `struct fanotify_event_metadata`, linux/fanotify.h. Bytes.
const METADATA_BYTES: usize = 24;
/// `struct fanotify_event_info_pidfd`. Bytes.
const PIDFD_RECORD_BYTES: usize = 8;
/// FAN_REPORT_FD_ERROR of linux/fanotify.h (6.13), which libc does not name yet.
const REPORT_FD_ERROR: u32 = 0x2000;

/// A file that was open for writing was closed.
pub const CLOSE_WRITE: u64 = libc::FAN_CLOSE_WRITE;
/// A file was opened to be run, or to load what runs.
pub const OPEN_EXEC: u64 = libc::FAN_OPEN_EXEC;
/// A file was opened: only where [`Group::guard`] asks for it.
pub const OPEN: u64 = libc::FAN_OPEN;
/// The group's queue was full and events were dropped.
pub const QUEUE_OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// A notification group.
#[derive(Debug)]
pub struct Group {
    descriptor: OwnedFd,
    /// Events carry a pidfd (5.15).
    pub pidfd: bool,
    /// Events whose file could not be opened carry the error (6.13).
    pub descriptor_errors: bool,
}

/// How much one mark covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A whole superblock, through every mount of it in every namespace (4.20).
    Filesystem,
    /// One mount.
    Mount,
}

/// What came with an event in place of a file.
#[derive(Debug)]
pub enum Target {
    /// The file.
    Open(OwnedFd),
    /// The kernel could not open it: errno, or 0 when it does not say.
    Failed(i32),
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// `CLOSE_WRITE`, `OPEN_EXEC`, `OPEN` or several (the kernel merges), or `QUEUE_OVERFLOW`.
    pub mask: u64,
    /// Thread group id in our pid namespace; 0 when it lives outside.
    pub pid: u32,
    /// The file.
    pub target: Target,
    /// The process, when it still is one.
    pub pidfd: Option<OwnedFd>,
    /// The kernel said that it is none any more (FAN_NOPIDFD): it was waited for.
    pub reaped: bool,
}

/// What one read gave.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the queue.
    pub events: Vec<Event>,
    /// The queue was empty afterwards.
    pub emptied: bool,
}

impl Group {
    /// A group of class NOTIF with as many of the wanted flags as this kernel knows.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, ENOSYS without fanotify, and what else fanotify_init(2) lists.
    pub fn new() -> io::Result<Self> {
        let base = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let wanted = [(true, true), (true, false), (false, false)];
        let mut last = io::Error::from_raw_os_error(libc::EINVAL);
        for (pidfd, descriptor_errors) in wanted {
            let mut flags = base;
            flags |= if pidfd { libc::FAN_REPORT_PIDFD } else { 0 };
            flags |= if descriptor_errors { REPORT_FD_ERROR } else { 0 };
            match init(flags) {
                Ok(descriptor) => return Ok(Self { descriptor, pidfd, descriptor_errors }),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Adds `mask` to the mark of what `path` lies on.
    ///
    /// # Errors
    /// What fanotify_mark(2) lists; EINVAL from a kernel that does not know the scope or a bit of the mask.
    pub fn mark(&self, scope: Scope, mask: u64, path: &CStr) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD
            | match scope {
                Scope::Filesystem => libc::FAN_MARK_FILESYSTEM,
                Scope::Mount => libc::FAN_MARK_MOUNT,
            };
        set_mark(&self.descriptor, flags, mask, path)
    }

    /// Asks to be told of every opening of one file; of a folder, of every file in it, but not of the folder itself. The mark
    /// is on the inode, whatever name it is opened by, and goes with it.
    ///
    /// # Errors
    /// What fanotify_mark(2) lists.
    pub fn guard(&self, object: impl AsFd) -> io::Result<()> {
        let (flags, mask) = (libc::FAN_MARK_ADD, OPEN | libc::FAN_EVENT_ON_CHILD);
        let (group, object) = (self.descriptor.as_raw_fd(), object.as_fd().as_raw_fd());
        // SAFETY: both descriptors are open for the length of the call; a null path means the second one itself.
        let done = unsafe { libc::fanotify_mark(group, flags, mask, object, std::ptr::null()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reads what waits, at most [`READ_BYTES_MAX`]. Does not block: nothing waiting is an empty batch.
    ///
    /// # Errors
    /// What read(2) lists. A record that does not parse ends the batch with `InvalidData`.
    pub fn read(&self) -> io::Result<Batch> {
        let mut buffer = [0u8; READ_BYTES_MAX];
        let length = match rustix::io::read(&self.descriptor, &mut buffer) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let events = own_events(buffer.get(..length).unwrap_or_default())?;
        // The kernel fills the buffer until the queue is empty or the next event does not fit.
        Ok(Batch { events, emptied: length + EVENT_BYTES_MAX <= READ_BYTES_MAX })
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn set_mark(group: &OwnedFd, flags: u32, mask: u64, path: &CStr) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call and the path is a C string that outlives it.
    let done = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel sent a fanotify record that does not parse")
}

fn init(flags: u32) -> io::Result<OwnedFd> {
    let event_flags =
        libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOATIME;
    // SAFETY: no pointers; the result is checked.
    let raw = unsafe { libc::fanotify_init(flags, event_flags.cast_unsigned()) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes ownership of every descriptor in bytes that were just read, even when a later record is bad.
fn own_events(bytes: &[u8]) -> io::Result<Vec<Event>> {
    let raw = parse(bytes)?;
    Ok(raw
        .into_iter()
        .map(|event| Event {
            mask: event.mask,
            pid: u32::try_from(event.pid).unwrap_or(0),
            target: match own(event.fd) {
                Some(descriptor) => Target::Open(descriptor),
                None if event.fd == libc::FAN_NOFD => Target::Failed(0),
                None => Target::Failed(event.fd.saturating_neg()),
            },
            pidfd: event.pidfd.and_then(own),
            reaped: event.pidfd == Some(libc::FAN_NOPIDFD),
        })
        .collect())
}

fn own(raw: i32) -> Option<OwnedFd> {
    // SAFETY: a number of 0 or more in a record that the kernel just wrote is a new descriptor that belongs to
    // whoever read it; each record is parsed once.
    (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A record as bytes say, owning nothing yet.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    mask: u64,
    fd: i32,
    pid: i32,
    pidfd: Option<i32>,
}

/// fanotify(7), "Reading fanotify events".
fn parse(mut bytes: &[u8]) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, length) = parse_one(bytes).ok_or_else(unreadable)?;
        records.push(record);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(records)
}

fn parse_one(bytes: &[u8]) -> Option<(Record, usize)> {
    let (metadata, records, length) = metadata(bytes)?;
    let Metadata { mask, fd, pid } = metadata;
    Some((Record { mask, fd, pid, pidfd: pidfd(records) }, length))
}

/// `struct fanotify_event_metadata`, as far as anybody needs it.
#[derive(Debug)]
struct Metadata {
    mask: u64,
    fd: i32,
    pid: i32,
}

/// And the information records after it, and the length of the whole event.
fn metadata(bytes: &[u8]) -> Option<(Metadata, &[u8], usize)> {
    let length = usize::try_from(u32::from_ne_bytes(field(bytes, 0)?)).ok()?;
    let version = *bytes.get(4)?;
    let metadata_length = usize::from(u16::from_ne_bytes(field(bytes, 6)?));
    let body = bytes.get(..length)?;
    if version != libc::FANOTIFY_METADATA_VERSION
        || metadata_length < METADATA_BYTES
        || length < metadata_length
    {
        return None;
    }
    let mask = u64::from_ne_bytes(field(body, 8)?);
    let fd = i32::from_ne_bytes(field(body, 16)?);
    let pid = i32::from_ne_bytes(field(body, 20)?);
    Some((Metadata { mask, fd, pid }, body.get(metadata_length..)?, length))
}

/// Looks through the information records: type, padding, length, then for a pidfd its number.
fn pidfd(mut records: &[u8]) -> Option<i32> {
    while let (Some(&kind), Some(length)) = (records.first(), field(records, 2)) {
        if kind == libc::FAN_EVENT_INFO_TYPE_PIDFD {
            return Some(i32::from_ne_bytes(field(records, 4)?));
        }
        records = records.get(usize::from(u16::from_ne_bytes(length)).max(4)..)?;
    }
    None
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(mask: u64, fd: i32, pid: i32, pidfd: Option<i32>) -> Vec<u8> {
        let length = METADATA_BYTES + if pidfd.is_some() { PIDFD_RECORD_BYTES } else { 0 };
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend(fd.to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        if let Some(pidfd) = pidfd {
            bytes.extend([libc::FAN_EVENT_INFO_TYPE_PIDFD, 0]);
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(pidfd.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn records_are_read_with_and_without_pidfd() {
        let mut bytes = record(CLOSE_WRITE, 7, 42, Some(9));
        bytes.extend(record(QUEUE_OVERFLOW, -1, 0, None));
        assert_eq!(
            parse(&bytes).unwrap(),
            [
                Record { mask: CLOSE_WRITE, fd: 7, pid: 42, pidfd: Some(9) },
                Record { mask: QUEUE_OVERFLOW, fd: -1, pid: 0, pidfd: None }
            ]
        );
    }

    #[test]
    fn a_cut_record_is_refused() {
        let bytes = record(CLOSE_WRITE, 7, 42, Some(9));
        for length in 1..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_record_that_claims_no_length_ends_the_parse() {
        assert!(parse(&[0; METADATA_BYTES]).is_err());
    }
}
