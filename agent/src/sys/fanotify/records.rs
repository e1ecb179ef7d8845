//! The bytes of a fanotify event in FID mode (fanotify(7), "Reading fanotify events").
//!
//! Pure: nothing is owned, nothing is copied. Assumes nothing of the bytes.

use super::field;
use crate::sys::handles::HANDLE_BYTES_MAX;

/// Header of an information record: type, padding, length. Bytes.
const HEADER_BYTES: usize = 4;
/// `fsid`, and length and type of the handle. Bytes.
const FID_BYTES: usize = 16;

/// An object of a file system: `fsid` and `struct file_handle` as the kernel wrote them. Equal bytes are the
/// same object for as long as the file system lives: the handle holds a generation beside the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle<'a>(&'a [u8]);

/// An entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The folder.
    pub folder: Handle<'a>,
    /// The entry's name, or `.` for the folder itself.
    pub name: &'a [u8],
}

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) mask: u64,
    pub(super) pid: i32,
    pub(super) pidfd: Option<i32>,
    pub(super) object: Option<Handle<'a>>,
    pub(super) place: Option<Place<'a>>,
    pub(super) old_place: Option<Place<'a>>,
}

impl<'a> Handle<'a> {
    /// Bytes that are this object's and no other's: a key.
    #[must_use]
    pub fn key(self) -> &'a [u8] {
        self.0
    }

    /// The file system, as statvfs(3) numbers it.
    #[must_use]
    pub fn fsid(self) -> u64 {
        let half = |at| u64::from(u32::from_ne_bytes(field(self.0, at).unwrap_or_default()));
        half(0) | half(4) << 32
    }

    /// Type and bytes, as open_by_handle_at(2) wants them.
    #[must_use]
    pub fn parts(self) -> (i32, &'a [u8]) {
        let kind = i32::from_ne_bytes(field(self.0, 12).unwrap_or_default());
        (kind, self.0.get(FID_BYTES..).unwrap_or_default())
    }
}

/// The first event of `bytes` and how many of them it takes.
pub(super) fn parse(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (metadata, body, length) = super::metadata(bytes)?;
    let mut record = Record { mask: metadata.mask, pid: metadata.pid, ..Record::default() };
    let mut rest = body;
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(field(rest, 2)?));
        let one = rest.get(..length).filter(|one| one.len() >= HEADER_BYTES)?;
        read_record(one, &mut record)?;
        rest = rest.get(length..)?;
    }
    Some((record, length))
}

fn read_record<'a>(bytes: &'a [u8], record: &mut Record<'a>) -> Option<()> {
    let body = bytes.get(HEADER_BYTES..)?;
    match *bytes.first()? {
        libc::FAN_EVENT_INFO_TYPE_PIDFD => record.pidfd = Some(i32::from_ne_bytes(field(body, 0)?)),
        libc::FAN_EVENT_INFO_TYPE_FID => record.object = Some(handle(body)?.0),
        libc::FAN_EVENT_INFO_TYPE_DFID => {
            record.place = Some(Place { folder: handle(body)?.0, name: b"." });
        }
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => {
            record.place = Some(place(body)?);
        }
        libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => record.old_place = Some(place(body)?),
        _ => {} // of a later kernel
    }
    Some(())
}

fn place(body: &[u8]) -> Option<Place<'_>> {
    let (folder, rest) = handle(body)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(Place { folder, name: rest.get(..end).filter(|name| !name.is_empty())? })
}

/// `fsid`, `handle_bytes`, `handle_type`, `f_handle`; and what comes after.
fn handle(body: &[u8]) -> Option<(Handle<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(field(body, 8)?)).ok()?;
    let end = FID_BYTES.checked_add(length).filter(|_| length <= HANDLE_BYTES_MAX)?;
    Some((Handle(body.get(..end)?), body.get(end..)?))
}

#[cfg(test)]
mod fake {
    //! Records as the kernel writes them.

    /// A handle of any object.
    pub(super) fn handle(fsid: u64, number: u32) -> Vec<u8> {
        let mut bytes = u32::try_from(fsid & 0xffff_ffff).unwrap_or(0).to_ne_bytes().to_vec();
        bytes.extend(u32::try_from(fsid >> 32).unwrap_or(0).to_ne_bytes());
        bytes.extend(8u32.to_ne_bytes());
        bytes.extend(1i32.to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    /// A whole event around information records of (type, body).
    pub(super) fn event(mask: u64, pid: i32, records: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut info = Vec::new();
        for (kind, body) in records {
            let length = (4 + body.len()).next_multiple_of(4);
            info.extend([*kind, 0]);
            info.extend(u16::try_from(length).unwrap_or(0).to_ne_bytes());
            info.extend(body);
            info.resize(info.len().next_multiple_of(4), 0);
        }
        let mut bytes = u32::try_from(24 + info.len()).unwrap_or(0).to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1i32).to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(info);
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn named(number: u32, name: &[u8]) -> Vec<u8> {
        let mut body = fake::handle(7 << 32 | 9, number);
        body.extend(name);
        body.push(0);
        body
    }

    fn rename() -> Vec<u8> {
        let records = [
            (libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, named(2, b"a")),
            (libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, named(3, b"b\n\xff (deleted)")),
            (libc::FAN_EVENT_INFO_TYPE_FID, fake::handle(7 << 32 | 9, 4)),
            (99, vec![1, 2, 3, 4]),
            (libc::FAN_EVENT_INFO_TYPE_PIDFD, 5i32.to_ne_bytes().to_vec()),
        ];
        fake::event(libc::FAN_RENAME, 42, &records)
    }

    #[test]
    fn a_rename_has_both_places_its_object_and_its_process() {
        let mut bytes = rename();
        let whole = bytes.len();
        bytes.extend(fake::event(libc::FAN_ATTRIB, 0, &[]));
        let (record, length) = parse(&bytes).unwrap();
        assert_eq!((record.mask, record.pid, record.pidfd, length), (libc::FAN_RENAME, 42, Some(5), whole));
        let (old, new, object) = (record.old_place.unwrap(), record.place.unwrap(), record.object.unwrap());
        assert_eq!((old.name, new.name), (&b"a"[..], &b"b\n\xff (deleted)"[..]));
        assert_eq!((object.fsid(), object.parts()), (7 << 32 | 9, (1, &[4, 0, 0, 0, 0, 0, 0, 0][..])));
        assert_eq!(new.folder.key(), fake::handle(7 << 32 | 9, 3));
        let (next, _) = parse(&bytes[whole..]).unwrap();
        assert_eq!(next, Record { mask: libc::FAN_ATTRIB, ..Record::default() });
    }

    #[test]
    fn a_cut_event_is_refused() {
        let bytes = rename();
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), None, "{length} bytes");
        }
    }

    /// Every byte of the lengths turned into every value: nothing panics, nothing reaches outside.
    #[test]
    fn lengths_that_lie_are_refused_or_stay_inside() {
        let bytes = rename();
        let mut refused = 0;
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                match parse(&bytes) {
                    Some((_, length)) => assert!(length <= bytes.len()),
                    None => refused += 1,
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[test]
    fn a_handle_longer_than_any_is_refused() {
        let mut body = fake::handle(1, 1);
        body[8..12].copy_from_slice(&u32::try_from(HANDLE_BYTES_MAX + 1).unwrap().to_ne_bytes());
        body.resize(400, 0);
        assert_eq!(handle(&body), None);
        let unnamed =
            fake::event(libc::FAN_CREATE, 1, &[(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, named(1, b""))]);
        assert_eq!(parse(&unnamed), None);
    }
}
