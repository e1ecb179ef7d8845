//! Which marks a fanotify group has, as `/proc/self/fdinfo` lists them (proc_pid_fdinfo(5)), and which of them
//! somebody took away.
//!
//! Pure, but for reading the file. Assumes nothing of who sets marks (`mounts`). What it says goes to `self_test`.

use super::mountinfo::Mount;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};

/// One list. Bytes: more than 16,384 marks of 64 bytes.
const LIST_BYTES_MAX: u64 = 2 << 20;
/// The kernel keeps the minor number of a device in 20 bits (MINORBITS, linux/kdev_t.h).
const MINOR_BITS: u32 = 20;

/// What a mark is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A superblock: major, minor.
    Superblock(u32, u32),
    /// One mount, by its id.
    Mount(u32),
}

/// What a mark asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Masks {
    mask: u64,
    ignored: u64,
}

/// All marks of a group on superblocks and mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks(BTreeMap<Place, Masks>);

impl Marks {
    /// Of an open group of this process.
    ///
    /// # Errors
    /// The list could not be read: the descriptor is closed, or `/proc` is not there.
    pub(crate) fn read(group: impl AsFd) -> io::Result<Self> {
        let mut list = Vec::new();
        let file = File::open(format!("/proc/self/fdinfo/{}", group.as_fd().as_raw_fd()))?;
        file.take(LIST_BYTES_MAX).read_to_end(&mut list)?;
        if !list.split(|&byte| byte == b'\n').any(|line| line.starts_with(b"fanotify ")) {
            return Err(io::Error::other("the descriptor is no fanotify group any more"));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&list)))
    }

    /// `fanotify sdev:800001 mflags:0 mask:8 ignored_mask:0`, numbers in hexadecimal. Other lines are not marks
    /// of ours.
    pub(crate) fn parse(list: &str) -> Self {
        Self(list.lines().filter_map(parse_line).collect())
    }

    /// What has fewer bits than before, or is ignored since.
    pub(crate) fn weakened(&self, now: &Self) -> Vec<Place> {
        const NONE: Masks = Masks { mask: 0, ignored: 0 };
        let of = |marks: &Self, place: &Place| marks.0.get(place).copied().unwrap_or(NONE);
        let weaker = |place: &&Place| {
            let (before, now) = (of(self, place), of(now, place));
            before.mask & !now.mask != 0 || now.ignored & !before.ignored != 0
        };
        let all: BTreeSet<&Place> = self.0.keys().chain(now.0.keys()).collect();
        all.into_iter().filter(weaker).copied().collect()
    }

    /// These marks, and of `others` those that are in `places`.
    pub(crate) fn with(mut self, others: &Self, places: &[Place]) -> Self {
        for place in places {
            if let Some(masks) = others.0.get(place) {
                self.0.insert(*place, *masks);
            }
        }
        self
    }

    /// Everything that has a mark.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.0.keys().copied()
    }

    /// Whether there is a mark on it.
    pub(crate) fn has(&self, place: Place) -> bool {
        self.0.contains_key(&place)
    }

    /// Whether a mark asks for one of these bits of everything that a mount shows.
    pub(crate) fn cover(&self, mount: &Mount, bits: u64) -> bool {
        let places = [Place::Superblock(mount.device.0, mount.device.1), Place::Mount(mount.id)];
        places.iter().filter_map(|place| self.0.get(place)).any(|masks| masks.mask & bits != 0)
    }
}

impl Place {
    /// Whether it can be reached through this mount.
    pub(crate) fn is_of(self, mount: &Mount) -> bool {
        match self {
            Self::Superblock(major, minor) => mount.device == (major, minor),
            Self::Mount(id) => mount.id == id,
        }
    }
}

fn parse_line(line: &str) -> Option<(Place, Masks)> {
    let mut fields = line.strip_prefix("fanotify ")?.split_ascii_whitespace();
    let (kind, number) = fields.next()?.split_once(':')?;
    let number = u32::from_str_radix(number, 16).ok()?;
    let place = match kind {
        "sdev" => Place::Superblock(number >> MINOR_BITS, number & ((1 << MINOR_BITS) - 1)),
        "mnt_id" => Place::Mount(number),
        _ => return None, // the group's flags; marks on single files, which come and go with them (`guarded`)
    };
    let mut masks = Masks { mask: 0, ignored: 0 };
    for field in fields {
        match field.split_once(':') {
            Some(("mask", bits)) => masks.mask = u64::from_str_radix(bits, 16).ok()?,
            Some(("ignored_mask", bits)) => masks.ignored = u64::from_str_radix(bits, 16).ok()?,
            Some(_) | None => {}
        }
    }
    Some((place, masks))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIST: &str = "pos:\t0\nflags:\t02004002\nmnt_id:\t16\nino:\t2065\n\
        fanotify flags:2a0 event-flags:488000\n\
        fanotify sdev:800001 mflags:0 mask:1008 ignored_mask:0\n\
        fanotify sdev:1a mflags:0 mask:1000 ignored_mask:0\n\
        fanotify mnt_id:1c mflags:0 mask:8 ignored_mask:0\n\
        fanotify ino:3 sdev:1a mflags:0 mask:8 ignored_mask:0 fhandle-bytes:8\n";

    fn mount(id: u32, device: (u32, u32)) -> Mount {
        Mount {
            id,
            device,
            parent: 0,
            root: b"/".to_vec(),
            point: b"/".to_vec(),
            kind: b"ext4".to_vec(),
            layers: Vec::new(),
        }
    }

    #[test]
    fn a_list_is_read() {
        let marks = Marks::parse(LIST);
        let places: Vec<Place> = marks.0.keys().copied().collect();
        assert_eq!(places, [Place::Superblock(0, 26), Place::Superblock(8, 1), Place::Mount(28)]);
        assert!(marks.cover(&mount(5, (8, 1)), 8) && marks.cover(&mount(5, (8, 1)), 0x1000));
        assert!(!marks.cover(&mount(5, (0, 26)), 8) && !marks.cover(&mount(5, (7, 7)), 8));
        assert!(marks.cover(&mount(28, (7, 7)), 8));
    }

    #[test]
    fn what_is_gone_smaller_or_ignored_is_weakened() {
        let before = Marks::parse(LIST);
        let change = |from: &str, to: &str| before.weakened(&Marks::parse(&LIST.replace(from, to)));
        assert_eq!(before.weakened(&before), []);
        assert_eq!(before.weakened(&Marks::default()).len(), 3);
        assert_eq!(change("mask:1008 ", "mask:8 "), [Place::Superblock(8, 1)]);
        assert_eq!(change("sdev:1a mflags:0 mask", "sdev:1b mflags:0 mask"), [Place::Superblock(0, 26)]);
        assert_eq!(
            change("mask:8 ignored_mask:0\nfanotify ino", "mask:8 ignored_mask:8\nfanotify ino"),
            [Place::Mount(28)]
        );
        assert_eq!(
            change(
                "mask:8 ignored_mask:0\n",
                "mask:8 ignored_mask:0\nfanotify mnt_id:2 mask:0 ignored_mask:8\n"
            ),
            [Place::Mount(2)]
        );
        // More is no harm.
        assert_eq!(change("mask:1000 ", "mask:1008 "), []);
    }

    #[test]
    fn what_is_still_missed_is_looked_for_again() {
        let before = Marks::parse(LIST);
        let kept = Marks::default().with(&before, &[Place::Superblock(8, 1), Place::Superblock(9, 9)]);
        assert_eq!(kept.weakened(&Marks::default()), [Place::Superblock(8, 1)]);
    }

    #[test]
    fn a_descriptor_that_is_no_group_is_an_error() {
        assert!(Marks::read(File::open("/dev/null").unwrap()).is_err());
    }
}
