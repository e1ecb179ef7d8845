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

/// Elsewhere the kind can't be told alike; every folder is taken for a local one.
#[cfg(not(target_os = "linux"))]
pub fn is_local(_folder: impl AsFd) -> bool {
    true
}
