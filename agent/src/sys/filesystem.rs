//! Which file systems hold files of this host: decided by their magic numbers (statfs(2)).

use rustix::fd::AsFd;

/// Local file systems that can be written, by `f_type`: ext, xfs, btrfs, f2fs, tmpfs, overlay, FAT, exFAT,
/// NTFS, ZFS, bcachefs, ramfs, squashfs and erofs under an overlay.
const LOCAL: [u64; 14] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x0102_1994,
    0x794c_7630,
    0x4d44,
    0x2011_bab0,
    0x7366_746e,
    0x2fc1_2fc1,
    0xca45_1a4e,
    0x8584_58f6,
    0x7371_7368,
    0xe0f5_e1e2,
];

/// Whether the open folder lies on one of them. What is unknown, remote or made by a program is not.
#[cfg(target_os = "linux")]
pub fn is_local(folder: impl AsFd) -> bool {
    rustix::fs::fstatfs(folder).is_ok_and(|stat| {
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // the type differs between architectures
        let magic = stat.f_type as u64;
        LOCAL.contains(&magic)
    })
}

/// How far the times that a file system tells can be trusted: whether the same state means the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The kernel keeps them on a disk: ext, xfs, btrfs, f2fs, zfs, bcachefs, erofs, squashfs.
    Kept,
    /// An overlay keeps its layers' word, and anybody may mount one over FUSE in a namespace of their own.
    Overlay,
    /// Somebody else answers, or nothing outlives a restart, or a file behind a loop device can be changed below it.
    None,
}

/// LOOP_MAJOR, linux/major.h.
#[cfg(target_os = "linux")]
const LOOP_MAJOR: u32 = 7;
#[cfg(target_os = "linux")]
const KEPT: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e, 0xe0f5_e1e2, 0x7371_7368];
#[cfg(target_os = "linux")]
const OVERLAY: u64 = 0x794c_7630;

/// Of the file system on which the open file or folder lies. Asks it: one that does not answer holds the caller up.
#[cfg(target_os = "linux")]
#[must_use]
pub fn word(file: impl AsFd) -> Word {
    let (Ok(stat), Ok(file)) = (rustix::fs::fstatfs(&file), rustix::fs::fstat(&file)) else {
        return Word::None;
    };
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // the type differs between architectures
    match stat.f_type as u64 {
        _ if rustix::fs::major(file.st_dev) == LOOP_MAJOR => Word::None,
        OVERLAY => Word::Overlay,
        magic if KEPT.contains(&magic) => Word::Kept,
        _ => Word::None,
    }
}

/// Elsewhere nothing is known of them.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn word(_file: impl AsFd) -> Word {
    Word::None
}

/// Elsewhere the kind can't be told alike; every folder is taken for a local one.
#[cfg(not(target_os = "linux"))]
pub fn is_local(_folder: impl AsFd) -> bool {
    true
}
