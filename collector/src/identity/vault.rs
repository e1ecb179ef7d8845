//! Files that nobody else may read: keys and certificates in a folder of mode 0700.
//!
//! A file is there whole or not at all: it is written under another name, synced, renamed, and its folder
//! synced. Only one process works in the folder at a time, because a lock on it is held as long as the
//! `Vault` lives. `authority` keeps its keys here.

use anyhow::{Context, bail};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The largest file that is read. Bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// An open folder.
#[derive(Debug)]
pub(super) struct Vault {
    folder: OwnedFd,
    path: PathBuf,
    /// What a test lets go wrong.
    #[cfg(test)]
    pub(super) faults: faults::Faults,
}

impl Vault {
    /// Makes the folder when it is missing, closes it to everybody else, and locks it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        make_folder(path).with_context(|| {
            format!(
                "could not make the folder {name}; give the user of this program the right to write there"
            )
        })?;
        let folder =
            rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
                .with_context(|| {
                    format!("could not open {name}; it must be a folder of its own, not a link")
                })?;
        rustix::fs::fchmod(&folder, Mode::RWXU).with_context(|| {
            format!("could not close {name} to other users; it must belong to this program's user")
        })?;
        rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).with_context(|| {
            format!("{name} is in use by another collector; stop that one, or use another state folder")
        })?;
        Ok(Self {
            folder,
            path: path.to_owned(),
            #[cfg(test)]
            faults: faults::Faults::default(),
        })
    }

    /// The whole file, or `None` when there is none.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.could_not("read", name)),
        };
        let stat = rustix::fs::fstat(&file).with_context(|| self.could_not("read", name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            bail!("{} is not a regular file; move it away and start again", self.path.join(name).display());
        }
        let mut bytes = Vec::new();
        File::from(file)
            .take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .with_context(|| self.could_not("read", name))?;
        Ok(Some(bytes))
    }

    /// Puts the file there, mode 0600, in one step that a power cut can't halve.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let write = || -> std::io::Result<()> {
            #[cfg(test)]
            self.faults.step(name)?;
            let file = rustix::fs::openat(&self.folder, &new, flags, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            #[cfg(test)]
            self.faults.half(&mut file, bytes)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            #[cfg(test)]
            self.faults.step(name)?;
            rustix::fs::renameat(&self.folder, &new, &self.folder, name)?;
            Ok(rustix::fs::fsync(&self.folder)?)
        };
        write().with_context(|| self.could_not("write", name))
    }

    /// Takes the file away, if there is one, for good.
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        #[cfg(test)]
        self.faults.step(name)?;
        match rustix::fs::unlinkat(&self.folder, name, rustix::fs::AtFlags::empty()) {
            Ok(()) => rustix::fs::fsync(&self.folder).with_context(|| self.could_not("remove", name)),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| self.could_not("remove", name)),
        }
    }

    fn could_not(&self, verb: &str, name: &str) -> String {
        format!("could not {verb} {}", self.path.join(name).display())
    }
}

/// Stops the program, as it were, at a step; a program that was stopped does nothing more.
#[cfg(test)]
pub(super) mod faults {
    use std::io::{Error, Write};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Steps that are still done; `u32::MAX` for all.
    #[derive(Debug)]
    pub(in super::super) struct Faults(AtomicU32);

    impl Default for Faults {
        fn default() -> Self {
            Self(AtomicU32::new(u32::MAX))
        }
    }

    impl Faults {
        pub(in super::super) fn stop_after(&self, steps: u32) {
            self.0.store(steps, Ordering::SeqCst);
        }

        pub(in super::super) fn is_stopped(&self) -> bool {
            self.0.load(Ordering::SeqCst) == 0
        }

        pub(super) fn step(&self, name: &str) -> Result<(), Error> {
            match self.0.load(Ordering::SeqCst) {
                u32::MAX => Ok(()),
                0 => Err(Error::other(format!("stopped by a test before {name}"))),
                left => {
                    self.0.store(left - 1, Ordering::SeqCst);
                    Ok(())
                }
            }
        }

        /// A file that is half written when it ends.
        pub(super) fn half(&self, file: &mut impl Write, bytes: &[u8]) -> Result<(), Error> {
            if self.0.load(Ordering::SeqCst) == 0 {
                file.write_all(bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            }
            self.step("the end of a file")
        }
    }
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_and_folder_are_closed_to_others_and_the_folder_to_a_second_opener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let vault = Vault::open(&path).unwrap();
        assert_eq!(vault.read("key").unwrap(), None);
        vault.write("key", b"one").unwrap();
        vault.write("key", b"two").unwrap();
        assert_eq!(vault.read("key").unwrap().unwrap(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("key"))), (0o700, 0o600));
        assert!(Vault::open(&path).unwrap_err().to_string().contains("in use"));
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("key")).unwrap();
        assert!(vault.read("key").is_err());
    }
}
