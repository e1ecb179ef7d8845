//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)) as superblocks, and which of them a sensor covers.
//!
//! Pure. Assumes nothing of the bytes: mount points are the mounter's. What it says goes to `mounts`.

use std::collections::BTreeMap;

/// Mounts read from one table; more than this are left out and reported.
pub(crate) const MOUNTS_MAX: usize = 16_384;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its id, unique while it is mounted.
    pub(crate) id: u32,
    /// major, minor of the superblock.
    pub(crate) device: (u32, u32),
    /// Where, as this process sees it.
    pub(crate) point: Vec<u8>,
    /// File system type, with subtype: `ext4`, `fuse.sshfs`.
    pub(crate) kind: Vec<u8>,
}

/// What to do about a type of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// Writes and runs.
    Full,
    /// Runs only. The kernel opens what an event is about, and to open a device can have effects
    /// (a watchdog starts, a tape rewinds): never ask for closes where device nodes live.
    RunsOnly,
    /// Somebody else answers for every read: only when the owner says so.
    Network,
    /// Files that are no files.
    None,
}

/// Reads a table. Lines that do not parse are skipped: the kernel may add fields.
#[must_use]
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).take(MOUNTS_MAX).collect()
}

/// `id parent major:minor root point options optional-fields - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = parse_number(fields.next()?)?;
    let mut device = fields.nth(1)?.split(|&byte| byte == b':');
    let device = (parse_number(device.next()?)?, parse_number(device.next()?)?);
    let point = unescape(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = unescape(fields.next().filter(|kind| !kind.is_empty())?);
    Some(Mount { id, device, point, kind })
}

fn parse_number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `\040` and the like back to bytes (fs/proc_namespace.c writes space, tab, newline, backslash and `#` so).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = bytes.get(..4)? else { return None };
    digits.iter().try_fold(0u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// What a type is. A type nobody has heard of is taken for a local one: better a mark too many.
#[must_use]
pub(crate) fn coverage(kind: &[u8]) -> Coverage {
    const NONE: &[&[u8]] = &[
        b"proc",
        b"sysfs",
        b"cgroup",
        b"cgroup2",
        b"devpts",
        b"securityfs",
        b"debugfs",
        b"tracefs",
        b"configfs",
        b"bpf",
        b"pstore",
        b"mqueue",
        b"hugetlbfs",
        b"fusectl",
        b"binfmt_misc",
        b"autofs",
        b"rpc_pipefs",
        b"selinuxfs",
        b"smackfs",
        b"efivarfs",
        b"nsfs",
        b"nfsd",
        b"resctrl",
        b"pipefs",
        b"sockfs",
    ];
    const NETWORK: &[&[u8]] = &[
        b"nfs",
        b"nfs4",
        b"cifs",
        b"smb3",
        b"smbfs",
        b"9p",
        b"ceph",
        b"afs",
        b"lustre",
        b"gfs2",
        b"ocfs2",
        b"orangefs",
        b"fuse",
        b"fuseblk",
        b"virtiofs",
        b"coda",
    ];
    if NONE.contains(&kind) {
        Coverage::None
    } else if kind == b"devtmpfs" {
        Coverage::RunsOnly
    } else if NETWORK.contains(&kind) || kind.starts_with(b"fuse.") {
        Coverage::Network
    } else {
        Coverage::Full
    }
}

/// The mounts through which each superblock can be reached, in the table's order.
#[must_use]
pub(crate) fn by_superblock(mounts: Vec<Mount>) -> BTreeMap<(u32, u32), Vec<Mount>> {
    let mut superblocks: BTreeMap<_, Vec<Mount>> = BTreeMap::new();
    for mount in mounts {
        superblocks.entry(mount.device).or_default().push(mount);
    }
    superblocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_escapes_is_read_as_bytes() {
        let line = b"36 35 98:0 /mnt1 /a\\040b\\134\\012\xff\\9 rw,noatime master:1 shared:7 - fuse.ss\\040h /dev/r rw";
        let expected = Mount {
            id: 36,
            device: (98, 0),
            point: b"/a b\\\n\xff\\9".to_vec(),
            kind: b"fuse.ss h".to_vec(),
        };
        assert_eq!(parse(line), [expected]);
    }

    #[test]
    fn a_line_that_is_cut_anywhere_is_skipped() {
        let line = b"36 35 98:0 / /x rw - ext4 /dev/r rw";
        for length in 0..22 {
            assert_eq!(parse(&line[..length]), [], "{length} bytes");
        }
    }

    #[test]
    fn superblocks_come_once_with_all_their_mounts() {
        let table =
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /x /y rw - ext4 a rw\n3 1 0:5 / /z rw - tmpfs t rw\n";
        let superblocks = by_superblock(parse(table));
        let ids: Vec<Vec<u32>> =
            superblocks.values().map(|mounts| mounts.iter().map(|mount| mount.id).collect()).collect();
        assert_eq!(ids, [vec![3], vec![1, 2]]);
    }

    #[test]
    fn types_are_covered_by_what_they_are() {
        for (kind, expected) in [
            (&b"ext4"[..], Coverage::Full),
            (b"tmpfs", Coverage::Full),
            (b"unheardof", Coverage::Full),
            (b"devtmpfs", Coverage::RunsOnly),
            (b"nfs4", Coverage::Network),
            (b"fuse.sshfs", Coverage::Network),
            (b"proc", Coverage::None),
        ] {
            assert_eq!(coverage(kind), expected, "{}", kind.escape_ascii());
        }
    }
}
