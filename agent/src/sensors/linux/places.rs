//! Where a file is: as the host sees it, and as the process that touched it sees it.
//!
//! The kernel hands over a file together with the mount it was opened through, and `/proc/self/fd` gives its name
//! as that mount's namespace sees it. Through the host's own widest mount of the same superblock the file has
//! another name: that is the one to filter by and to tell. Assumes that the table is kept by `mounts`; what it
//! says goes to the reader. Keeps nothing open across turns: an open folder makes umount(2) fail.

use super::mountinfo::Mount;
use crate::sensors::OpenFile;
use crate::sensors::outlet::is_under;
use crate::sys::handles;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vidette_protocol::limits::PATH_BYTES_MAX;

/// The table, as the reader and the mounts thread share it.
pub(crate) type Shared = Arc<Mutex<Arc<Table>>>;

/// What mounts there are, by id, in every namespace that is followed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    mounts: HashMap<u32, Arc<Entry>>,
    overlays: HashSet<u64>,
    primary: BTreeMap<u64, Primary>,
}

#[derive(Debug)]
struct Entry {
    device: u64,
    root: Vec<u8>,
    point: Vec<u8>,
    overlay: bool,
    layers: Vec<Vec<u8>>,
    /// When it was unmounted.
    gone: Option<Instant>,
}

/// A mount that only another namespace had is remembered so long, because its last events come when it is gone,
/// and then the kernel gives names that begin at its root.
const GONE_KEPT: Duration = Duration::from_secs(30);
/// Such mounts, at most.
const GONE_MAX: usize = 4096;

/// The mount by which the host names the files of a superblock.
#[derive(Debug)]
struct Primary {
    id: u32,
    root: Vec<u8>,
    point: Vec<u8>,
    /// Nobody else answers on the way to it.
    local: bool,
}

/// What statx(2) says of an open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// 0 before Linux 5.8.
    pub(crate) mount: u32,
    pub(crate) links: u32,
    pub(crate) size: u64,
    /// Seconds, nanoseconds.
    pub(crate) changed: (i64, u32),
    /// The same, of its making; nothing where the file system does not say.
    pub(crate) born: (i64, u32),
}

/// Which half of the pair of events an overlay may make of one write (see `twins`), with the name within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    /// No overlay.
    Plain,
    /// Through the overlay.
    Overlay(Vec<u8>),
    /// Below it, on the file system that holds the bytes, through a mount of the kernel's own.
    Layer(Vec<u8>),
}

impl Table {
    /// From the host's mounts, those of other namespaces, by which mount each superblock is best reached, and the
    /// table before.
    #[must_use]
    pub(crate) fn new<'a>(
        mounts: impl Iterator<Item = &'a Mount>,
        primaries: impl Iterator<Item = (&'a Mount, bool)>,
        before: &Self,
        now: Instant,
    ) -> Self {
        let primary = |(mount, local): (&Mount, bool)| {
            let (root, point) = (mount.root.clone(), mount.point.clone());
            (device(mount), Primary { id: mount.id, root, point, local })
        };
        let primary: BTreeMap<u64, Primary> = primaries.map(primary).collect();
        let mut mounts: HashMap<u32, Arc<Entry>> =
            mounts.map(|mount| (mount.id, Arc::new(Entry::new(mount)))).collect();
        // What the host reaches itself needs no memory, and an id may be used again at once.
        let gone = before.mounts.iter().filter(|(id, entry)| {
            !mounts.contains_key(id)
                && !primary.contains_key(&entry.device)
                && entry.gone.is_none_or(|gone| now.duration_since(gone) < GONE_KEPT)
        });
        let gone: Vec<(u32, Arc<Entry>)> =
            gone.take(GONE_MAX).map(|(id, entry)| (*id, entry.ended(now))).collect();
        mounts.extend(gone);
        let overlays = mounts.values().filter(|entry| entry.overlay).map(|entry| entry.device).collect();
        Self { mounts, overlays, primary }
    }

    /// A mount by its id, if the file is on its superblock. btrfs gives each subvolume a device of its own: what
    /// is mounted now is believed.
    fn entry(&self, stat: &Stat) -> Option<&Entry> {
        let entry = self.mounts.get(&stat.mount)?;
        (entry.gone.is_none() || entry.device == stat.device).then_some(entry)
    }

    fn primary_of(&self, entry: &Entry) -> Option<&Primary> {
        self.primary.get(&entry.device)
    }

    /// `path`, as a mount shows it, as the host's own mount of that superblock shows it.
    fn on_host(&self, entry: &Entry, path: &[u8]) -> Option<Vec<u8>> {
        let primary = self.primary_of(entry)?;
        let within = join(&entry.root, below(path, &entry.point)?);
        Some(join(&primary.point, below(&within, &primary.root)?))
    }
}

impl Entry {
    fn new(mount: &Mount) -> Self {
        Self {
            device: device(mount),
            root: mount.root.clone(),
            point: mount.point.clone(),
            overlay: mount.kind == b"overlay",
            layers: mount.layers.clone(),
            gone: None,
        }
    }

    fn ended(self: &Arc<Self>, now: Instant) -> Arc<Self> {
        if self.gone.is_some() {
            return self.clone();
        }
        let (root, point, layers) = (self.root.clone(), self.point.clone(), self.layers.clone());
        Arc::new(Self { root, point, layers, gone: Some(now), ..**self })
    }
}

fn device(mount: &Mount) -> u64 {
    rustix::fs::makedev(mount.device.0, mount.device.1)
}

/// What is left of a path under a folder: empty for the folder itself, or with its slash.
pub(crate) fn below<'a>(path: &'a [u8], folder: &[u8]) -> Option<&'a [u8]> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    if is_under(path, folder) { path.get(folder.len()..) } else { None }
}

fn join(folder: &[u8], rest: &[u8]) -> Vec<u8> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    let rest = if rest == b"/" { b"" } else { rest };
    let joined = [folder, rest].concat();
    if joined.is_empty() { b"/".to_vec() } else { joined }
}

/// What the kernel says of an open file, from memory: nobody is waited for. None when it is no regular file.
#[must_use]
pub(crate) fn regular(file: impl AsFd) -> Option<Stat> {
    let (stat, kind) = stat(file).ok()?;
    (kind == FileType::RegularFile).then_some(stat)
}

fn stat(file: impl AsFd) -> rustix::io::Result<(Stat, FileType)> {
    let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(
        file,
        c"",
        empty,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID,
    )?;
    let told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    let stat = Stat {
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mount: if told { u32::try_from(found.stx_mnt_id).unwrap_or(0) } else { 0 },
        links: found.stx_nlink,
        size: found.stx_size,
        changed: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        born: (found.stx_btime.tv_sec, found.stx_btime.tv_nsec),
    };
    Ok((stat, FileType::from_raw_mode(found.stx_mode.into())))
}

/// Whether an open file is on that mount. Asks nobody but the kernel.
pub(crate) fn is_of(file: impl AsFd, mount: u32) -> bool {
    stat(file).is_ok_and(|(found, _)| found.mount == mount)
}

/// The reader's half: the table of this turn, and what is open until the turn ends.
#[derive(Debug)]
pub(crate) struct Places {
    shared: Shared,
    table: Arc<Table>,
    exclude: Vec<Vec<u8>>,
    anchors: HashMap<u64, Option<OwnedFd>>,
}

impl Places {
    /// `exclude` are the prefixes that only a proven name may lie under.
    #[must_use]
    pub(crate) fn new(shared: Shared, exclude: Vec<Vec<u8>>) -> Self {
        Self { shared, table: Arc::default(), exclude, anchors: HashMap::new() }
    }

    /// Takes the newest table.
    pub(crate) fn begin_turn(&mut self) {
        self.table = self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
    }

    /// Closes what was opened.
    pub(crate) fn end_turn(&mut self) {
        self.anchors.clear();
    }

    /// Replaces a file's name, as the kernel gave it, by the host's, and keeps the other where they differ.
    pub(crate) fn settle(&mut self, file: &mut OpenFile, stat: &Stat) -> Side {
        // Before 5.8 nothing is known of mounts. A name that is no path is of no mount at all: a memfd's.
        if stat.mount == 0 || !file.path.starts_with(b"/") || file.path.starts_with(b"/memfd:") {
            return Side::Plain;
        }
        let table = self.table.clone();
        let Some(entry) = table.entry(stat) else {
            return self.settle_unknown(file, stat, &table);
        };
        // Unmounted already: the kernel's name begins at its root.
        if !is_under(&file.path, &entry.point) && table.primary_of(entry).is_none() {
            file.path = join(&entry.point, &file.path);
        }
        let side = match below(&file.path, &entry.point) {
            Some(rest) if entry.overlay => Side::Overlay(join(&entry.root, rest)),
            Some(_) | None => Side::Plain,
        };
        if table.primary_of(entry).is_some_and(|primary| primary.id == stat.mount) {
            return side;
        }
        let host = match table.on_host(entry, &file.path) {
            // The table may be a moment old and the id used again: what would hide a file is proved first.
            Some(host) if self.excludes(&host) => {
                self.by_handle(file, entry.device, &table).filter(|proved| *proved == host)
            }
            Some(host) => Some(host),
            None if entry.overlay => match &side {
                // What is only likely hides nothing.
                Side::Overlay(inner) => {
                    through_layers(entry, inner, stat).filter(|likely| !self.excludes(likely))
                }
                Side::Plain | Side::Layer(_) => None,
            },
            None => None,
        };
        rename(file, host);
        side
    }

    /// A mount in no table: an overlay's own mount of a layer, whose names begin at the layer, or one that is
    /// newer than the table, or of a namespace that is not followed.
    fn settle_unknown(&mut self, file: &mut OpenFile, stat: &Stat, table: &Table) -> Side {
        let inner = file.path.clone();
        // One of several names of the file may be found: only one that ends like the one we know is believed.
        let host = self.by_handle(file, stat.device, table);
        let host = host.filter(|host| stat.links == 1 || host.ends_with(&inner));
        let nameless = !file.deleted && inner.ends_with(DELETED);
        rename(file, host);
        if nameless && file.container_path != file.path {
            // The kernel's own copy from a lower layer, made without a name and then given one.
            file.container_path.clear();
        }
        if table.overlays.contains(&stat.device) { Side::Overlay(inner) } else { Side::Layer(inner) }
    }

    fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.iter().any(|prefix| is_under(path, prefix))
    }

    /// Asks the file system itself: the file's handle, opened through the host's own mount.
    fn by_handle(&mut self, file: &OpenFile, device: u64, table: &Table) -> Option<Vec<u8>> {
        let primary = table.primary.get(&device).filter(|primary| primary.local)?;
        let anchor = self.anchors.entry(device).or_insert_with(|| open_anchor(primary, device));
        let (kind, handle) = handles::of(&file.descriptor).ok()?;
        let again = handles::open(anchor.as_ref()?, kind, &handle, OFlags::PATH).ok()?;
        let mut path = name(&again);
        if file.deleted && path.ends_with(DELETED) {
            path.truncate(path.len() - DELETED.len());
        }
        (path.starts_with(b"/") && path.len() <= PATH_BYTES_MAX).then_some(path)
    }
}

/// What the kernel adds to a name that is no more (proc_pid_fd(5)).
pub(crate) const DELETED: &[u8] = b" (deleted)";

/// The host's name first; without one, the same name twice.
fn rename(file: &mut OpenFile, host: Option<Vec<u8>>) {
    match host {
        Some(host) if host == file.path => {}
        Some(host) => file.container_path = std::mem::replace(&mut file.path, host),
        None => file.container_path.clone_from(&file.path),
    }
}

/// How often a look at names in memory is tried again when somebody renamed something at the same moment.
const TRIES_MAX: usize = 4;

/// Opens by a path without waiting for anybody: only through names that the kernel has in memory, as it has those
/// that lead to a mount point (RESOLVE_CACHED of openat2(2), Linux 5.12), and through no link.
pub(crate) fn open_cached(
    from: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::CACHED | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut last = rustix::io::Errno::AGAIN;
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(&from, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => last = rustix::io::Errno::AGAIN,
            other => return other,
        }
    }
    Err(last)
}

/// open_by_handle_at(2) wants an open file on the mount, and O_PATH is not enough.
fn open_anchor(primary: &Primary, device: u64) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
    let anchor = open_cached(CWD, &primary.point, flags, ResolveFlags::empty()).ok()?;
    let (found, _) = stat(&anchor).ok()?;
    (found.device == device).then_some(anchor)
}

/// The place below an overlay that is told by nobody, from the folders it was made of. They are what the mounter
/// wrote, so a name is believed only when the same file lies there.
fn through_layers(entry: &Entry, inner: &[u8], stat_above: &Stat) -> Option<Vec<u8>> {
    entry.layers.iter().filter(|layer| layer.starts_with(b"/")).map(|layer| join(layer, inner)).find(|path| {
        open_cached(CWD, path, OFlags::PATH, ResolveFlags::empty())
            .and_then(stat)
            .is_ok_and(|(below, _)| below.inode == stat_above.inode && is_same_content(stat_above, &below))
    })
}

/// Whether a file of an overlay can be that file of a layer. The inode does not tell: one that was copied up keeps
/// the number it had below, and an overlay of several file systems may note in it which of them it is (`xino`).
#[must_use]
pub(crate) fn is_same_content(above: &Stat, below: &Stat) -> bool {
    (above.size, above.changed, above.born) == (below.size, below.changed, below.born)
}

/// What `/proc` calls an open file.
pub(crate) fn name(file: impl AsFd) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    std::fs::read_link(link).map(|target| target.into_os_string().into_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo;
    use super::*;

    fn table() -> Table {
        let mounts = mountinfo::parse(
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /src /b rw - ext4 a rw\n3 1 0:5 /in /t rw - tmpfs t rw\n\
              70 69 8:1 /var/x /tmp rw - ext4 a rw\n71 69 0:5 / /p rw - tmpfs t rw\n72 69 0:6 / /q rw - tmpfs t rw\n\
              73 69 8:1 /etc/hosts /hosts rw - ext4 a rw\n",
        );
        let primaries = mounts.iter().filter(|mount| [1, 3].contains(&mount.id)).map(|mount| (mount, true));
        Table::new(mounts.iter(), primaries, &Table::default(), Instant::now())
    }

    #[test]
    fn only_what_the_host_does_not_reach_is_remembered() {
        let now = Instant::now();
        let next = Table::new([].into_iter(), [].into_iter(), &table(), now);
        assert_eq!(next.mounts.len(), 7);
        let mounts = mountinfo::parse(b"1 0 8:1 / / rw - ext4 a rw\n72 1 0:9 / /new rw - tmpfs t rw\n");
        let primaries = mounts.iter().map(|mount| (mount, true));
        let next = Table::new(mounts.iter(), primaries, &table(), now);
        let mut ids: Vec<u32> = next.mounts.keys().copied().collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 3, 71, 72]);
        let stat =
            |device| Stat { device, inode: 1, mount: 71, links: 1, size: 1, changed: (1, 1), born: (0, 1) };
        assert!(next.entry(&stat(rustix::fs::makedev(0, 5))).is_some());
        assert!(next.entry(&stat(rustix::fs::makedev(8, 1))).is_none());
        let later = Table::new([].into_iter(), [].into_iter(), &next, now + GONE_KEPT);
        assert_eq!(later.mounts.len(), 2);
    }

    #[test]
    fn a_path_below_any_mount_becomes_the_hosts() {
        let table = table();
        for (mount, path, expected) in [
            (1, &b"/x"[..], Some(&b"/x"[..])),
            (2, b"/b/x", Some(b"/src/x")),
            (2, b"/b", Some(b"/src")),
            (2, b"/bb", None), // the table is older than the mount
            (70, b"/tmp/y", Some(b"/var/x/y")),
            (71, b"/p/in/z", Some(b"/t/z")),
            (71, b"/p/in", Some(b"/t")),
            (71, b"/p/out", None), // the host sees only a part of it
            (72, b"/q/z", None),
            (73, b"/hosts", Some(b"/etc/hosts")),
        ] {
            let found = table.mounts.get(&mount).and_then(|entry| table.on_host(entry, path));
            assert_eq!(found.as_deref(), expected, "{mount} {}", path.escape_ascii());
        }
    }

    #[test]
    fn a_copied_up_file_keeps_its_lower_inode() {
        let stat =
            |inode, size| Stat { device: 1, inode, mount: 1, links: 1, size, changed: (1, 2), born: (0, 1) };
        assert!(is_same_content(&stat(8, 3), &stat(7, 3)));
        assert!(!is_same_content(&stat(7, 3), &stat(7, 4)));
        assert!(!is_same_content(&stat(7, 3), &Stat { born: (0, 2), ..stat(7, 3) }));
    }
}
