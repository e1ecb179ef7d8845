//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)) as superblocks, and which of them a sensor covers.
//!
//! Pure. Assumes nothing of the bytes: mount points are the mounter's. What it says goes to `mounts`.

use std::collections::{BTreeMap, BTreeSet};

/// Mounts read from one table; more than this are left out and reported.
pub(crate) const MOUNTS_MAX: usize = 16_384;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its id, unique while it is mounted.
    pub(crate) id: u32,
    /// The mount it is mounted on; its own or an unknown one at the top.
    pub(crate) parent: u32,
    /// major, minor of the superblock.
    pub(crate) device: (u32, u32),
    /// Which folder (or file) of the superblock it shows: `/` is all of it.
    pub(crate) root: Vec<u8>,
    /// Where, as this process sees it.
    pub(crate) point: Vec<u8>,
    /// File system type, with subtype: `ext4`, `fuse.sshfs`.
    pub(crate) kind: Vec<u8>,
    /// Of an overlay: the folders it is made of, as the mounter wrote them, the upper one first. They may be
    /// relative to anything, or a lie: to be checked before they are believed.
    pub(crate) layers: Vec<Vec<u8>>,
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
    let parent = parse_number(fields.next()?)?;
    let mut device = fields.next()?.split(|&byte| byte == b':');
    let device = (parse_number(device.next()?)?, parse_number(device.next()?)?);
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    fields.find(|field| *field == b"-")?;
    let kind = unescape(fields.next().filter(|kind| !kind.is_empty())?);
    let options = if kind == b"overlay" { fields.nth(1).unwrap_or_default() } else { b"" };
    Some(Mount { id, parent, device, root, point, kind, layers: layers(options) })
}

/// Folders of an overlay that are kept; more are left out.
const LAYERS_MAX: usize = 64;

/// `upperdir=` and `lowerdir=a:b` (or `lowerdir+=a`) of Documentation/filesystems/overlayfs. The kernel writes
/// the names with `,` as `\054`; a `:` within a name is `\072`, or has a backslash, itself `\134`, before it.
fn layers(options: &[u8]) -> Vec<Vec<u8>> {
    let (mut upper, mut lower) = (Vec::new(), Vec::new());
    for option in options.split(|&byte| byte == b',') {
        if let Some(folder) = option.strip_prefix(b"upperdir=") {
            upper.push(plain(folder));
        } else if let Some(folders) = option.strip_prefix(b"lowerdir=") {
            lower.extend(split_colons(folders).take(LAYERS_MAX).map(plain));
        } else if let Some(folder) =
            option.strip_prefix(b"lowerdir+=").or_else(|| option.strip_prefix(b"datadir+="))
        {
            lower.push(plain(folder));
        }
    }
    upper.into_iter().chain(lower).take(LAYERS_MAX).collect()
}

fn split_colons(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while let Some(rest) = bytes.strip_prefix(b":") {
            bytes = rest;
        }
        let ends = |&(at, byte): &(usize, &u8)| {
            *byte == b':' && !bytes.get(..at).is_some_and(|before| before.ends_with(b"\\134"))
        };
        let end = bytes.iter().enumerate().find(ends).map_or(bytes.len(), |(at, _)| at);
        let (one, rest) = bytes.split_at_checked(end)?;
        bytes = rest;
        (!one.is_empty()).then_some(one)
    })
}

/// As the table writes it, then as the overlay does: one backslash goes from before each byte that has one.
fn plain(folder: &[u8]) -> Vec<u8> {
    let mut escaped = false;
    let mut plain = Vec::with_capacity(folder.len());
    for byte in unescape(folder) {
        escaped = byte == b'\\' && !escaped;
        if !escaped {
            plain.push(byte);
        }
    }
    plain
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

/// The ids of mounts that can only be reached through a file system for which somebody else answers: whoever
/// walks there may wait for ever.
#[must_use]
pub(crate) fn behind_remote(mounts: &[Mount]) -> BTreeSet<u32> {
    let by_id: BTreeMap<u32, &Mount> = mounts.iter().map(|mount| (mount.id, mount)).collect();
    let behind = |mount: &Mount| {
        let mut at = mount;
        // As many steps as there are mounts, in case the table is one no kernel makes.
        for _ in 0..mounts.len() {
            match by_id.get(&at.parent) {
                Some(parent) if parent.id != at.id => at = parent,
                Some(_) | None => return false,
            }
            if coverage(&at.kind) == Coverage::Network {
                return true;
            }
        }
        true
    };
    mounts.iter().filter(|mount| behind(mount)).map(|mount| mount.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_escapes_is_read_as_bytes() {
        let line = b"36 35 98:0 /mn\\011t1 /a\\040b\\134\\012\xff\\9 rw,noatime master:1 shared:7 - fuse.ss\\040h /dev/r rw";
        let expected = Mount {
            id: 36,
            parent: 35,
            device: (98, 0),
            root: b"/mn\tt1".to_vec(),
            point: b"/a b\\\n\xff\\9".to_vec(),
            kind: b"fuse.ss h".to_vec(),
            layers: Vec::new(),
        };
        assert_eq!(parse(line), [expected]);
    }

    #[test]
    fn layers_of_an_overlay_are_read_as_bytes() {
        for (options, expected) in [
            (&b"rw,lowerdir=/l1:/l\\040two,upperdir=/u,workdir=/w"[..], &[&b"/u"[..], b"/l1", b"/l two"][..]),
            (b"ro,lowerdir=/a\\134:b::/d", &[b"/a:b", b"/d"]),
            (b"rw,upperdir=/x\\134\\054y,lowerdir+=/z,datadir+=/q", &[b"/x,y", b"/z", b"/q"]),
            (b"rw,upperdir=rel\xff,lowerdir=", &[b"rel\xff"]),
            (b"rw,upperdir=/end\\134", &[b"/end"]),
            (b"rw,notupperdir=/x", &[]),
            (b"", &[]),
        ] {
            let mut line = b"1 0 0:9 / /m rw - overlay o ".to_vec();
            line.extend(options);
            let mounts = parse(&line);
            let layers = mounts.first().map(|mount| mount.layers.clone()).unwrap_or_default();
            assert_eq!(layers, expected, "{}", options.escape_ascii());
        }
        let many = [b"1 0 0:9 / /m rw - overlay o lowerdir=".to_vec(), b"/l:".repeat(1000)].concat();
        assert_eq!(parse(&many).first().map(|mount| mount.layers.len()), Some(LAYERS_MAX));
    }

    #[test]
    fn what_lies_behind_fuse_is_known_even_in_a_ring() {
        let table =
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /f rw - fuse.x a rw\n3 2 0:6 / /f/t rw - tmpfs t rw\n\
              4 3 0:7 / /f/t/u rw - tmpfs t rw\n5 1 0:8 / /t rw - tmpfs t rw\n6 7 0:9 / /r rw - tmpfs t rw\n\
              7 6 0:10 / /r/r rw - tmpfs t rw\n";
        assert_eq!(behind_remote(&parse(table)), BTreeSet::from([3, 4, 6, 7]));
    }

    #[test]
    fn a_line_that_is_cut_anywhere_is_skipped() {
        let line = b"36 35 98:0 / /x rw - ext4 /dev/r rw";
        for length in 0..22 {
            assert_eq!(parse(&line[..length]), [], "{length} bytes");
        }
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
