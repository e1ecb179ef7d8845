//! Files for work in progress that nobody else can open and that are gone when they are closed.

use std::fs::File;
use std::io;
use std::path::Path;

/// An empty file without a name in `folder`; without a folder, or where its file system has no such files, in memory.
///
/// # Errors
/// What open(2) or memfd_create(2) say.
#[cfg(target_os = "linux")]
pub fn file(folder: Option<&Path>) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, Mode, OFlags};
    use rustix::io::Errno;
    if let Some(folder) = folder {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok(file.into()),
            // open(2), O_TMPFILE: the file system or the kernel does not know it.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) if folder.is_dir() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rustix::fs::memfd_create(c"scratch", MemfdFlags::CLOEXEC)?.into())
}

/// Gives the room of a part of it back to the file system, where that is possible (fallocate(2)).
#[cfg(target_os = "linux")]
pub fn give_back(file: &File, offset: u64, bytes: u64) {
    use rustix::fs::FallocateFlags;
    // What can't be given back now is given back when the file is closed.
    let _ =
        rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes);
}

/// Named for a moment.
///
/// # Errors
/// There is no folder, or what open(2) says.
#[cfg(not(target_os = "linux"))]
pub fn file(folder: Option<&Path>) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let folder = folder.ok_or(io::ErrorKind::Unsupported)?;
    let path = folder.join(format!(".vidette-{:016x}", rand::random::<u64>()));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    std::fs::remove_file(&path)?;
    Ok(file.into())
}

/// It is given back when the file is closed.
#[cfg(not(target_os = "linux"))]
pub fn give_back(_: &File, _: u64, _: u64) {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn it_has_no_name_and_keeps_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for place in [Some(folder.path()), None] {
            let file = file(place).unwrap();
            file.write_all_at(b"abcd", 2).unwrap();
            give_back(&file, 0, 2);
            let mut read = [0; 4];
            file.read_exact_at(&mut read, 2).unwrap();
            assert_eq!(&read, b"abcd");
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        assert!(file(Some(Path::new("/nonexistent"))).is_err());
    }
}
