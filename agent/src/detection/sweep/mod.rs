//! Everything below some paths, scanned with a budget: `vidette-agent scan` and the daemon's scheduled sweep.
//!
//! ```text
//! walk (a thread for each file system) -> engine (owns the pool) -> Said
//!    ^ known clean: not even opened          ^ budget: CPU, bytes, hold
//! ```
//!
//! A sweep is resumed by the verdict table alone: what was found clean before a stop is not opened again. A file
//! system that does not answer costs its walk's thread, and is left; the others go on.

/// How much may be used: a bucket of time and one of bytes.
pub mod budget;
/// Every regular file of one file system.
pub mod walk;
/// Walks and pool together.
pub mod engine;
/// When the daemon sweeps.
pub mod calendar;
/// The daemon's sweep.
pub mod schedule;

use std::collections::HashMap;

/// Which other file systems are entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cross {
    /// None.
    Stay,
    /// All.
    Everything,
    /// Those of this host, as [`local_devices`] lists them.
    Local(HashMap<u64, String>),
}

/// What is walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Follow symbolic links.
    pub follow: bool,
    /// Other file systems below a path.
    pub cross: Cross,
    /// Absolute prefixes that are left out.
    pub exclude: Vec<Vec<u8>>,
}

/// Types of file systems whose files are this host's own, by their names in proc_pid_mountinfo(5). An overlay's files
/// lie in its layers.
const LOCAL: [&str; 17] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "ramfs", "vfat", "exfat",
    "ntfs3", "squashfs", "erofs", "jfs", "reiserfs",
];
/// A table of mounts. Bytes.
const MOUNTS_BYTES_MAX: u64 = 16 << 20;

/// Local file systems that are mounted: device and type. Asks the kernel, not the file systems, which may not answer.
#[must_use]
pub fn local_devices() -> HashMap<u64, String> {
    use std::io::Read as _;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open("/proc/self/mountinfo") {
        // What could not be read is not entered.
        let _ = file.take(MOUNTS_BYTES_MAX).read_to_end(&mut text);
    }
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| local_device(&String::from_utf8_lossy(line)))
        .collect()
}

/// `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`
fn local_device(line: &str) -> Option<(u64, String)> {
    let (mount, kind) = line.split_once(" - ")?;
    let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
    let kind = kind.split(' ').next().filter(|kind| LOCAL.contains(kind))?;
    Some((rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?), kind.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_local_file_systems_are_listed() {
        let line = |kind| format!("36 35 98:1 / /m rw shared:1 - {kind} /dev/x rw");
        assert_eq!(local_device(&line("ext4")), Some((rustix::fs::makedev(98, 1), "ext4".into())));
        for line in
            [line("nfs4"), line("fuse.sshfs"), line("proc"), line("overlay"), String::new(), " - ext4".into()]
        {
            assert_eq!(local_device(&line), None, "{line}");
        }
    }
}
