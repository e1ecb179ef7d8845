//! Every regular file under a path, opened by its folder's descriptor: no path is walked twice, no link followed
//! unless asked, nothing but regular files opened. Not recursive: a hostile tree is as deep as it likes.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Folders in folders; each holds a descriptor while it is walked.
pub const DEPTH_MAX: usize = 256;
/// Folders that are remembered while links are followed.
pub const VISITED_MAX: usize = 1 << 20;

/// How to walk.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Follow symbolic links.
    pub follow: bool,
    /// Enter other file systems that are mounted below.
    pub cross: bool,
}

/// What the walk comes across.
#[derive(Debug)]
pub enum Found {
    /// A regular file, open for reading.
    File(OwnedFd, Vec<u8>),
    /// Something that could not be opened or read, and why.
    Unreadable(Vec<u8>, String),
    /// Something that is no file, such as a socket; or another file system that was not entered.
    Skipped,
}

#[derive(Debug)]
struct Frame {
    folder: Dir,
    path: Vec<u8>,
    device: u64,
}

/// A walk that is under way.
#[derive(Debug)]
pub struct Walk {
    options: Options,
    stack: Vec<Frame>,
    pending: Option<Found>,
    visited: HashSet<(u64, u64)>,
}

impl Walk {
    /// Begins at a file or folder. A link that is named is followed.
    ///
    /// # Errors
    /// The system's, when it is not there or can't be opened.
    pub fn new(path: &Path, options: Options) -> std::io::Result<Self> {
        let mut walk = Self { options, stack: Vec::new(), pending: None, visited: HashSet::new() };
        let name = path.as_os_str().as_bytes().to_vec();
        let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
        walk.pending = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file = rustix::fs::open(path, file_flags(true), Mode::empty())?;
                Some(checked(file, name))
            }
            FileType::Directory => {
                let folder = rustix::fs::open(path, folder_flags(true), Mode::empty())?;
                walk.enter(folder, name, None)
            }
            // No opening: that alone can hang or change a device.
            _ => Some(Found::Skipped),
        };
        Ok(walk)
    }

    /// It began at a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        !self.stack.is_empty()
    }

    fn enter(&mut self, folder: OwnedFd, path: Vec<u8>, from: Option<u64>) -> Option<Found> {
        let opened = rustix::fs::fstat(&folder).and_then(|stat| Ok((stat, Dir::new(folder)?)));
        let (stat, folder) = match opened {
            Ok(opened) => opened,
            Err(error) => return Some(Found::Unreadable(path, error.to_string())),
        };
        let (device, inode) = identity(&stat);
        if from.is_some_and(|from| from != device) && !self.options.cross {
            return Some(Found::Skipped);
        }
        if self.stack.len() >= DEPTH_MAX {
            return Some(Found::Unreadable(
                path,
                format!("deeper than {DEPTH_MAX} folders: scan it by itself"),
            ));
        }
        if self.options.follow {
            if self.visited.len() >= VISITED_MAX {
                return Some(Found::Unreadable(
                    path,
                    format!("more than {VISITED_MAX} folders: scan without --follow"),
                ));
            }
            if !self.visited.insert((device, inode)) {
                return Some(Found::Skipped);
            }
        }
        self.stack.push(Frame { folder, path, device });
        None
    }

    fn entry(&mut self, name: &CStr, kind: FileType) -> Option<Found> {
        let frame = self.stack.last()?;
        let mut path = frame.path.clone();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend(name.to_bytes());
        let follow = self.options.follow;
        let opened = frame.folder.fd().and_then(|folder| open(folder, name, kind, follow));
        match opened {
            Ok(None) => Some(Found::Skipped),
            Ok(Some((file, FileType::Directory))) => {
                let device = frame.device;
                self.enter(file, path, Some(device))
            }
            Ok(Some((file, _))) => Some(checked(file, path)),
            Err(error) => Some(Found::Unreadable(path, error.to_string())),
        }
    }
}

/// Opens a regular file or a folder; `None` for anything else.
fn open(
    folder: impl AsFd,
    name: &CStr,
    kind: FileType,
    follow: bool,
) -> Result<Option<(OwnedFd, FileType)>, Errno> {
    let kind = match kind {
        FileType::RegularFile | FileType::Directory => kind,
        FileType::Symlink if !follow => return Ok(None),
        FileType::Symlink => type_of(rustix::fs::statat(&folder, name, AtFlags::empty())?),
        // Some file systems do not say.
        FileType::Unknown => type_of(rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?),
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            return Ok(None);
        }
    };
    let flags = match kind {
        FileType::RegularFile => file_flags(follow),
        FileType::Directory => folder_flags(follow),
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => return Ok(None),
    };
    Ok(Some((rustix::fs::openat(&folder, name, flags, Mode::empty())?, kind)))
}

fn type_of(stat: Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// It may have been replaced between the look and the opening: what counts is the descriptor.
fn checked(file: OwnedFd, path: Vec<u8>) -> Found {
    match rustix::fs::fstat(&file) {
        Ok(stat) if type_of(stat).is_file() => Found::File(file, path),
        Ok(_) => Found::Skipped,
        Err(error) => Found::Unreadable(path, error.to_string()),
    }
}

fn file_flags(follow: bool) -> OFlags {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if follow { flags } else { flags | OFlags::NOFOLLOW }
}

fn folder_flags(follow: bool) -> OFlags {
    file_flags(follow) | OFlags::DIRECTORY
}

#[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // The widths differ between systems.
fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            if let Some(found) = self.pending.take() {
                return Some(found);
            }
            let frame = self.stack.last_mut()?;
            match frame.folder.read() {
                None => {
                    self.stack.pop();
                }
                Some(Err(error)) => {
                    let path = self.stack.pop().map(|frame| frame.path).unwrap_or_default();
                    self.pending = Some(Found::Unreadable(path, error.to_string()));
                }
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => self.pending = self.entry(entry.file_name(), entry.file_type()),
            }
        }
    }
}
