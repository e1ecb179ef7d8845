//! File handles: objects of a file system by what they are, not by what they are called.
//!
//! Assumes Linux and CAP_DAC_READ_SEARCH. rustix has no call for them. What is opened goes to the sensor of names.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// MAX_HANDLE_SZ of linux/exportfs.h and fcntl.h. Bytes.
pub const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` (open_by_handle_at(2)) with room for the longest.
#[repr(C)]
struct Room {
    head: libc::file_handle,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// Opens the object that a handle stands for. `mount` is any open descriptor on its file system, not an O_PATH
/// one; the result is seen through the same mount. Always close-on-exec.
///
/// # Errors
/// ESTALE when the object is gone, EINVAL for a handle that is too long, and what open_by_handle_at(2) lists.
pub fn open(mount: impl AsFd, kind: i32, handle: &[u8], flags: rustix::fs::OFlags) -> io::Result<OwnedFd> {
    let length = u32::try_from(handle.len()).unwrap_or(u32::MAX);
    let head = libc::file_handle { handle_bytes: length, handle_type: kind, f_handle: [] };
    let mut room = Room { head, bytes: [0; HANDLE_BYTES_MAX] };
    let Some(place) = room.bytes.get_mut(..handle.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    place.copy_from_slice(handle);
    let flags = (flags | rustix::fs::OFlags::CLOEXEC).bits().cast_signed();
    // SAFETY: `room` begins with a file_handle whose length says how many of the bytes after it count, it is
    // longer than that, and it outlives the call; the descriptor is open for the length of the call.
    let raw = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut room).cast(), flags) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Type and bytes of the handle of an open object; an O_PATH descriptor will do.
///
/// # Errors
/// EOPNOTSUPP from a file system that has none, and what name_to_handle_at(2) lists.
pub fn of(object: impl AsFd) -> io::Result<(i32, Vec<u8>)> {
    let length = u32::try_from(HANDLE_BYTES_MAX).unwrap_or(0);
    let head = libc::file_handle { handle_bytes: length, handle_type: 0, f_handle: [] };
    let mut room = Room { head, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount = 0;
    // SAFETY: `room` has as many bytes after its head as the head says, the path is a C string, `mount` takes
    // an int, and all three outlive the call.
    let done = unsafe {
        libc::name_to_handle_at(
            object.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut room).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(room.head.handle_bytes).unwrap_or(0);
    Ok((room.head.handle_type, room.bytes.get(..length).unwrap_or_default().to_vec()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;

    #[test]
    fn a_handle_opens_its_object_whatever_it_is_called_until_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "x").unwrap();
        let mount = std::fs::File::open(folder.path()).unwrap();
        let (kind, handle) = of(std::fs::File::open(folder.path().join("a")).unwrap()).unwrap();
        std::fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
        let opened = open(&mount, kind, &handle, OFlags::RDONLY).unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(opened)).unwrap(), "x");
        std::fs::remove_file(folder.path().join("b")).unwrap();
        // While anybody holds it, another test's sensor for one, it can still be opened.
        match open(&mount, kind, &handle, OFlags::PATH) {
            Ok(held) => assert_eq!(rustix::fs::fstat(held).unwrap().st_nlink, 0),
            Err(gone) => assert_eq!(gone.raw_os_error(), Some(libc::ESTALE)),
        }
        let long = open(&mount, kind, &[0; HANDLE_BYTES_MAX + 1], OFlags::RDONLY).unwrap_err();
        assert_eq!(long.raw_os_error(), Some(libc::EINVAL));
    }
}
