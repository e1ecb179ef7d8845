//! File handles (open_by_handle_at(2)): a file's identity on its superblock, and the way back to it.
//!
//! Assumes Linux and CAP_DAC_READ_SEARCH. Handles go to whoever asks for the place of an open file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// MAX_HANDLE_SZ of linux/exportfs.h. Bytes.
pub const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` with room for the longest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; HANDLE_BYTES_MAX],
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").field("kind", &self.kind).field("bytes", &self.bytes).finish()
    }
}

/// The handle of an open file.
///
/// # Errors
/// EOPNOTSUPP from file systems without handles (overlay, some FUSE), and what name_to_handle_at(2) lists.
pub fn of(file: impl AsFd) -> io::Result<Handle> {
    let mut handle = Handle { bytes: HANDLE_BYTES_MAX as libc::c_uint, kind: 0, data: [0; HANDLE_BYTES_MAX] };
    let mut mount: libc::c_int = 0;
    let raw = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the length of the call; `handle` has the layout of `struct file_handle`
    // with as many bytes of room behind it as `bytes` says; the path is a C string.
    let done = unsafe {
        libc::name_to_handle_at(
            raw,
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if done == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
}

/// Opens what a handle stands for, as it is seen through the mount that `mount` lies on. `mount` must not be
/// an O_PATH descriptor: the kernel refuses it (measured on 6.18).
///
/// # Errors
/// ESTALE when it is gone, EPERM without CAP_DAC_READ_SEARCH, and what open_by_handle_at(2) lists.
pub fn open(mount: impl AsFd, handle: &Handle, flags: i32) -> io::Result<OwnedFd> {
    let mut handle = *handle;
    let raw = mount.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the length of the call; `handle` was filled by the kernel and has the
    // layout of `struct file_handle`; the call does not keep the pointer.
    let opened = unsafe { libc::open_by_handle_at(raw, (&raw mut handle).cast(), flags) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_handle_leads_back_to_its_file() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: run it with sudo");
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("x")).unwrap();
        let handle = of(&file).unwrap();
        let mount = std::fs::File::open(folder.path()).unwrap();
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let again = std::fs::File::from(open(&mount, &handle, flags).unwrap());
        assert_eq!(again.metadata().unwrap().ino(), file.metadata().unwrap().ino());
        assert!(open(std::fs::File::open("/proc").unwrap(), &handle, flags).is_err());
    }
}
