//! Marks on superblocks: at start, and whenever a table of mounts changes, in any namespace.
//!
//! Assumes that a mark may be set again at no cost, so nothing is remembered of what has one: device numbers
//! and mount ids are used again, marks vanish with their superblock. Which superblock is new is what the group
//! itself says in `/proc/self/fdinfo`. What can't be marked, and what was marked late, goes to the reader; where
//! the mounts are goes into the table of `places`.

use super::exchange::{Bell, Ear, Late, REPORTS_MAX, Report, bell};
use super::guard::Guard;
use super::mountinfo::{self, Coverage, Mount};
use super::names::marks::Marks;
use super::namespaces::Namespaces;
use super::places::{Shared, Table, below, is_of, open_cached};
use super::troubles::Troubles;
use crate::host::Moment;
use crate::sys::fanotify::{CLOSE_WRITE, Group, OPEN_EXEC, Scope};
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::time::Timespec;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vidette_protocol::escape;

/// The table. Bytes.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// What the kernel says of the group: a line of some 70 bytes for each mark. Bytes.
const MARKS_BYTES_MAX: u64 = 4 << 20;
/// Every process's namespace is looked at this often, and after the end of one that stood for its namespace.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const ORPHAN_INTERVAL: Duration = Duration::from_millis(100);
/// After a refresh the thread rests this many times as long as that took, at most so long: a storm of mounts must
/// not cost more than a fifth of a processor.
const REST_TIMES: u32 = 4;
const REST_MAX: Duration = Duration::from_millis(500);

/// Devices of file systems for which somebody else answers: nothing of them is opened unasked.
pub(crate) type Remote = Arc<Mutex<BTreeSet<u64>>>;

/// What the kernel accepts, best first.
const LADDER: [(Scope, u64); 4] = [
    (Scope::Filesystem, CLOSE_WRITE | OPEN_EXEC),
    (Scope::Mount, CLOSE_WRITE | OPEN_EXEC),
    (Scope::Filesystem, CLOSE_WRITE),
    (Scope::Mount, CLOSE_WRITE),
];

/// Keeps the marks.
#[derive(Debug)]
pub(crate) struct Mounts {
    group: Arc<Group>,
    names: Option<Arc<Marks>>,
    network: bool,
    scope: Scope,
    mask: u64,
    marked: usize,
    /// Whether the first marks are set: what is new then is late.
    started: bool,
    /// When our own table was last read.
    read: Moment,
    /// The kernel tells what happens in an overlay also by the file system below it (6.5).
    overlay_is_told_below: bool,
    found: Troubles,
    told: Vec<String>,
    unreported: u64,
    remote: Remote,
    places: Shared,
    namespaces: Namespaces,
    reports: Sender<Report>,
    bell: Bell,
    ear: Ear,
    guard: Arc<Guard>,
    names_guard: Arc<Guard>,
}

/// A way to a superblock.
struct Way<'a> {
    mount: &'a Mount,
    /// What it is mounted on.
    parent: Option<&'a Mount>,
    /// Through the root of this process; none for our own namespace.
    pid: Option<u32>,
    /// Nobody else answers on the way.
    local: bool,
    /// When it is new: it was mounted after this.
    since: Moment,
}

type Superblocks<'a> = BTreeMap<(u32, u32), Vec<Way<'a>>>;

impl Mounts {
    /// And where its reports arrive.
    ///
    /// # Errors
    /// Without `/proc` or eventfd.
    pub(crate) fn new(
        group: Arc<Group>,
        names: Option<Arc<Marks>>,
        network: bool,
    ) -> anyhow::Result<(Self, Receiver<Report>)> {
        let (reports, receiver) = crossbeam_channel::bounded(REPORTS_MAX);
        let (bell, ear) = bell().context("could not make an eventfd")?;
        let namespaces = Namespaces::new().context("could not tell our own mount namespace")?;
        let mounts = Self {
            group,
            names,
            network,
            scope: Scope::Filesystem,
            mask: CLOSE_WRITE | OPEN_EXEC,
            marked: 0,
            started: false,
            read: Moment::now(),
            overlay_is_told_below: release() >= (6, 5),
            found: Troubles::default(),
            told: Vec::new(),
            unreported: 0,
            remote: Remote::default(),
            places: Shared::default(),
            namespaces,
            reports,
            bell,
            ear,
            guard: Arc::default(),
            names_guard: Arc::default(),
        };
        Ok((mounts, receiver))
    }

    /// Knows which marks are there.
    pub(crate) fn guard(&self) -> Arc<Guard> {
        self.guard.clone()
    }

    /// The same of the group for names.
    pub(crate) fn names_guard(&self) -> Arc<Guard> {
        self.names_guard.clone()
    }

    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// The table of mounts as it is kept here.
    pub(crate) fn places(&self) -> Shared {
        self.places.clone()
    }

    /// How to ask for another look.
    pub(crate) fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// For the log: what the marks are.
    pub(crate) fn describe(&self) -> String {
        let runs = if self.mask & OPEN_EXEC == 0 { ", close-write only" } else { "" };
        format!("{} of {:?}{runs}", self.marked, self.scope)
    }

    /// Until `stop` becomes readable. poll(2) says PRI on mountinfo after each change (proc_pid_mounts(5)).
    pub(crate) fn run(mut self, stop: &OwnedFd) {
        let mut table = match File::open("/proc/self/mountinfo") {
            Ok(table) => table,
            Err(error) => {
                tracing::error!(%error, "could not open the table of mounts: new ones will not be seen");
                let trouble = format!("the table of mounts can't be followed: {error}");
                let _ = self.reports.try_send(Report::Troubles(vec![trouble]));
                return;
            }
        };
        // poll reports changes since the last read of this very file: read it once before waiting.
        let (mut dirty, mut rest_until, mut looked) = (true, Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            let interval = if self.namespaces.orphaned { ORPHAN_INTERVAL } else { LOOK_INTERVAL };
            if now.duration_since(looked) >= interval {
                dirty |= self.namespaces.look();
                looked = now;
            }
            // A process may have another root by now, by which its table reads differently: nobody tells of that.
            if self.found.due.take_if(|due| now >= *due).is_some() {
                self.namespaces.reread();
                dirty = true;
            }
            if dirty && now >= rest_until {
                dirty = false;
                if let Err(error) = self.refresh_from(&mut table) {
                    tracing::warn!(error = format!("{error:#}"), "could not refresh the marks");
                }
                rest_until = Instant::now() + (now.elapsed() * REST_TIMES).min(REST_MAX);
            }
            let wakes = [Some(looked + interval), dirty.then_some(rest_until), self.found.due];
            let wake = wakes.into_iter().flatten().min().unwrap_or(now);
            match self.wait(&table, stop, wake.saturating_duration_since(Instant::now())) {
                Some(changed) => dirty |= changed,
                None => return,
            }
        }
    }

    /// Waits for anything: whether the marks are to be looked at; none at the end.
    fn wait(&mut self, table: &File, stop: &OwnedFd, at_most: Duration) -> Option<bool> {
        const OURS: usize = 3;
        let ours = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&self.ear, PollFlags::IN),
            PollFd::new(table, PollFlags::PRI),
        ];
        let mut polled: Vec<PollFd<'_>> = ours.into_iter().chain(self.namespaces.polled()).collect();
        // A little more than asked for, never a little less, so that the loop does not spin.
        let nanoseconds = i64::from(at_most.subsec_nanos());
        let wait = Timespec { tv_sec: at_most.as_secs().cast_signed(), tv_nsec: nanoseconds };
        let mut said = rustix::event::poll(&mut polled, Some(&wait));
        if said == Err(rustix::io::Errno::INVAL) {
            // More than this process may have open now (poll(2)): other namespaces are looked at by the clock alone.
            polled.truncate(OURS);
            said = rustix::event::poll(&mut polled, Some(&wait));
        }
        match said {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "could not wait for new mounts: they will not be seen");
                let trouble = format!("new mounts can't be waited for: {error}");
                let _ = self.reports.try_send(Report::Troubles(vec![trouble]));
                return None;
            }
        }
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        let (ours, theirs) = ready.split_at_checked(OURS)?;
        if ours.first() == Some(&true) {
            return None;
        }
        let changed = self.namespaces.note(theirs) | (ours.get(2) == Some(&true));
        Some(if ours.get(1) == Some(&true) { self.listen() | changed } else { changed })
    }

    fn listen(&mut self) -> bool {
        let (ran, all, marks) = self.ear.hear();
        let mut brought = marks;
        for pid in ran {
            brought |= self.namespaces.consider(pid);
        }
        brought | (all && self.namespaces.look())
    }

    /// Marks every superblock that is covered.
    ///
    /// # Errors
    /// When the table can't be read or nothing at all could be marked.
    pub(crate) fn refresh(&mut self) -> anyhow::Result<()> {
        let mut table = File::open("/proc/self/mountinfo").context("could not open the table of mounts")?;
        self.namespaces.look();
        self.refresh_from(&mut table)
    }

    fn refresh_from(&mut self, table: &mut File) -> anyhow::Result<()> {
        let (since, now) = (self.read, Moment::now());
        let mut bytes = Vec::new();
        table.rewind().context("could not read the table of mounts")?;
        table.take(TABLE_BYTES_MAX).read_to_end(&mut bytes).context("could not read the table of mounts")?;
        self.read = now;
        let own = mountinfo::parse(&bytes);
        // Not borrowed while the marks are set.
        let namespaces = std::mem::replace(&mut self.namespaces, Namespaces::none());
        let superblocks = ways(&own, since, &namespaces);
        self.note_remote(&superblocks);
        let mut failed: Vec<String> = namespaces.trouble().into_iter().collect();
        let names = self.names.as_ref().map(|names| names.group());
        self.guard.before(&*self.group);
        names.iter().for_each(|names| self.names_guard.before(&**names));
        let primaries = self.mark_all(&superblocks, &mut failed);
        self.guard.after(&*self.group);
        names.iter().for_each(|names| self.names_guard.after(&**names));
        let others = namespaces.all().flat_map(|followed| &followed.mounts);
        let before = self.places.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let places = Table::new(others.chain(&own), primaries.into_iter(), &before, Instant::now());
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(places);
        self.namespaces = namespaces;
        let trouble = failed.first().cloned().unwrap_or_default();
        self.report_troubles(&failed);
        self.started = true;
        anyhow::ensure!(self.marked > 0, "no file system could be marked: {trouble}");
        Ok(())
    }

    /// The mounts by which the host names what it reaches itself.
    fn mark_all<'a>(
        &mut self,
        superblocks: &Superblocks<'a>,
        failed: &mut Vec<String>,
    ) -> Vec<(&'a Mount, bool)> {
        let before = self.started.then(|| marked_devices(&self.group)).flatten();
        let mut primaries = Vec::new();
        self.marked = 0;
        for (device, ways) in superblocks {
            match self.mark_superblock(ways) {
                Ok(Some((way, place))) => {
                    if way.pid.is_none() {
                        primaries.push((way.mount, way.local));
                    }
                    if before.as_ref().is_some_and(|before| !before.contains(device)) {
                        self.report_late(way, &place);
                    }
                }
                Ok(None) => {}
                Err(trouble) => failed.push(trouble),
            }
        }
        primaries
    }

    fn report_troubles(&mut self, found: &[String]) {
        let mut stayed = self.found.stayed(found, Instant::now());
        if self.unreported > 0 {
            stayed.push(format!("{} late file systems could not be told", self.unreported));
        }
        if stayed != self.told && self.reports.try_send(Report::Troubles(stayed.clone())).is_ok() {
            self.unreported = 0;
            self.told = stayed;
        }
    }

    /// What was written on it before it had its mark is to be looked for.
    fn report_late(&mut self, way: &Way<'_>, place: &OwnedFd) {
        if mountinfo::coverage(&way.mount.kind) == Coverage::RunsOnly || self.is_told_below(way.mount) {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let folder = rustix::fs::open(path, flags, Mode::empty()).ok();
        let to = Moment::now();
        let late_ms = to.uptime_ns.saturating_sub(way.since.uptime_ns) / 1_000_000;
        let detail = format!(
            "{} was marked at most {late_ms} ms after it was mounted{}",
            name(way.mount),
            way.pid.map(|pid| format!(" in the mount namespace of process {pid}")).unwrap_or_default(),
        );
        let late = Late {
            folder,
            path: way.mount.point.clone(),
            private: way.pid.is_some(),
            from: way.since,
            to,
            detail,
        };
        if let Err(TrySendError::Full(_)) = self.reports.try_send(Report::Late(late)) {
            self.unreported += 1;
        }
    }

    /// An overlay whose upper folder lies, as the mounter says, on what has its mark: nothing was missed, and there
    /// is no need to walk a whole container image. If it is a lie, it hides the moment before the mark.
    fn is_told_below(&self, mount: &Mount) -> bool {
        let Some(upper) = mount.layers.first().filter(|_| self.overlay_is_told_below) else { return false };
        let device = |place: OwnedFd| {
            let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            rustix::fs::statx(&place, c"", empty, StatxFlags::TYPE)
        };
        let found = open_cached(CWD, upper, OFlags::PATH, ResolveFlags::empty()).and_then(device);
        let marked = marked_devices(&self.group).unwrap_or_default();
        mount.kind == b"overlay"
            && upper.starts_with(b"/")
            && found.is_ok_and(|stat| marked.contains(&(stat.stx_dev_major, stat.stx_dev_minor)))
    }

    fn note_remote(&self, superblocks: &Superblocks<'_>) {
        let remote = superblocks
            .iter()
            .filter(|(_, ways)| {
                ways.iter().any(|way| mountinfo::coverage(&way.mount.kind) == Coverage::Network)
            })
            .map(|((major, minor), _)| rustix::fs::makedev(*major, *minor))
            .collect();
        *self.remote.lock().unwrap_or_else(PoisonError::into_inner) = remote;
    }

    /// Through the first of its mounts that is not hidden under another. With mount marks: through each.
    fn mark_superblock<'w, 'a>(
        &mut self,
        ways: &'w [Way<'a>],
    ) -> Result<Option<(&'w Way<'a>, OwnedFd)>, String> {
        let Some(first) = ways.first() else { return Ok(None) };
        let mask = match mountinfo::coverage(&first.mount.kind) {
            Coverage::Full => u64::MAX,
            Coverage::RunsOnly => OPEN_EXEC,
            Coverage::Network if self.network => u64::MAX,
            Coverage::Network | Coverage::None => return Ok(None),
        };
        let mut trouble = None;
        let mut done = None;
        for way in ways {
            match self.mark(way, mask) {
                Ok(Some(place)) => done = done.or(Some((way, place))),
                Ok(None) => {} // hidden: nobody there reaches it by a name
                Err(error) => trouble = Some(format!("{}: {error:#}", name(way.mount))),
            }
            if done.is_some() && self.scope == Scope::Filesystem {
                break;
            }
        }
        self.marked += usize::from(done.is_some());
        match (done, trouble) {
            (None, Some(trouble)) => Err(trouble),
            (done, _) => Ok(done),
        }
    }

    /// None when something else is mounted over it, or when the process through which it is reached ended.
    fn mark(&mut self, way: &Way<'_>, allowed: u64) -> anyhow::Result<Option<OwnedFd>> {
        let Some(place) = self.open(way)? else { return Ok(None) };
        // Something else may be mounted over it. btrfs has a device of its own for each subvolume.
        let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&place, c"", empty, StatxFlags::TYPE)?;
        let same = (stat.stx_dev_major, stat.stx_dev_minor) == way.mount.device;
        if !same && way.mount.kind != b"btrfs" {
            return Ok(None);
        }
        let path = CString::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
        // Only where the host has a way to it: handles are opened through that.
        if let Some(names) = self.names.as_ref().filter(|_| way.pid.is_none()) {
            names.mark(&place, &path, way.mount);
        }
        let start = LADDER.iter().position(|step| *step == (self.scope, self.mask)).unwrap_or(0);
        let mut last = anyhow::anyhow!("the kernel knows no mark for it");
        for (scope, mask) in LADDER.iter().skip(start) {
            if mask & allowed == 0 {
                continue;
            }
            match self.group.mark(*scope, mask & allowed, &path) {
                Ok(()) => {
                    // One odd file system is no reason to do less for the others.
                    if allowed == u64::MAX && self.marked == 0 {
                        (self.scope, self.mask) = (*scope, *mask);
                    }
                    return Ok(Some(place));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error.into(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last)
    }

    /// The top of a mount. Where somebody else may answer, and in a namespace of others, who may mount anything
    /// at any time, only names that the kernel has in memory are followed.
    fn open(&self, way: &Way<'_>) -> rustix::io::Result<Option<OwnedFd>> {
        let point = &way.mount.point;
        let Some(pid) = way.pid else {
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let place = if way.local || self.network {
                rustix::fs::open(OsStr::from_bytes(point), flags, Mode::empty())
            } else {
                open_cached(CWD, point, OFlags::PATH, ResolveFlags::empty())
            };
            return place.map(Some);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty()).and_then(|root| {
            match open_cached(&root, point, OFlags::PATH, ResolveFlags::IN_ROOT) {
                Err(rustix::io::Errno::AGAIN) => open_on_kernels_own(&root, way),
                other => other,
            }
        });
        match opened {
            Ok(place) => Ok(Some(place)),
            // It ended: whoever else is there is found with the next look.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The top of a mount that lies on /proc or /sys, as container engines make them to hide what is below. Names in those are
/// never in memory for long; to look them up waits for nobody, so it is done in that file system and in no other.
fn open_on_kernels_own(root: &OwnedFd, way: &Way<'_>) -> rustix::io::Result<OwnedFd> {
    let own = way.parent.filter(|parent| parent.kind == b"proc" || parent.kind == b"sysfs");
    let rest =
        own.and_then(|own| below(&way.mount.point, &own.point)).and_then(|rest| rest.strip_prefix(b"/"));
    let (Some(own), Some(rest)) = (own, rest) else { return Err(rustix::io::Errno::AGAIN) };
    let top = open_cached(root, &own.point, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::IN_ROOT)?;
    if !is_of(&top, own.id) {
        return Err(rustix::io::Errno::AGAIN); // something else is mounted over it
    }
    let mut parts = rest.rsplitn(2, |byte| *byte == b'/');
    let last = parts.next().unwrap_or_default();
    let folders = OsStr::from_bytes(parts.next().unwrap_or(b"."));
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let inside = links | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    let folder = rustix::fs::openat2(&top, folders, flags | OFlags::DIRECTORY, Mode::empty(), inside)?;
    rustix::fs::openat2(&folder, OsStr::from_bytes(last), flags, Mode::empty(), links)
}

/// Every way to each superblock: ours before those of others, the widest first.
fn ways<'a>(own: &'a [Mount], since: Moment, namespaces: &'a Namespaces) -> Superblocks<'a> {
    let mut superblocks = Superblocks::new();
    let mut add = |mounts: &'a [Mount], pid: Option<u32>, since: Moment| {
        let behind = mountinfo::behind_remote(mounts);
        let by_id: BTreeMap<u32, &Mount> = mounts.iter().map(|mount| (mount.id, mount)).collect();
        for mount in mounts {
            let local = !behind.contains(&mount.id);
            let parent = by_id.get(&mount.parent).copied();
            superblocks.entry(mount.device).or_default().push(Way { mount, parent, pid, local, since });
        }
    };
    add(own, None, since);
    for followed in namespaces.all() {
        add(&followed.mounts, Some(followed.pid), followed.since);
    }
    for ways in superblocks.values_mut() {
        ways.sort_by_key(|way| (way.pid.is_some(), way.mount.root.len()));
    }
    superblocks
}

/// The superblocks that have a mark of the group, by major and minor: `fanotify sdev:fe00000 mflags:…` with the
/// kernel's own numbers, twenty bits of minor (proc_pid_fdinfo(5), fs/notify/fdinfo.c). None when it can't be
/// read, or when marks are on mounts.
fn marked_devices(group: &Group) -> Option<BTreeSet<(u32, u32)>> {
    let mut text = String::new();
    let path = format!("/proc/self/fdinfo/{}", group.as_fd().as_raw_fd());
    File::open(path).ok()?.take(MARKS_BYTES_MAX).read_to_string(&mut text).ok()?;
    parse_marks(&text)
}

fn parse_marks(text: &str) -> Option<BTreeSet<(u32, u32)>> {
    let devices = text.lines().filter_map(|line| {
        let number = line.strip_prefix("fanotify sdev:")?.split(' ').next()?;
        let number = u32::from_str_radix(number, 16).ok()?;
        Some((number >> 20, number & 0xf_ffff))
    });
    let devices: BTreeSet<(u32, u32)> = devices.collect();
    (!devices.is_empty()).then_some(devices)
}

/// Of the kernel; nothing when it says something odd.
fn release() -> (u32, u32) {
    let names = rustix::system::uname();
    let mut numbers = names.release().to_str().unwrap_or_default().split(|one: char| !one.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (next(), next())
}

fn name(mount: &Mount) -> String {
    format!("{} ({})", escape::terminal(&mount.point), escape::terminal(&mount.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_superblocks_are_read_from_the_group() {
        let text = "pos:\t0\nflags:\t02004002\nfanotify flags:10 event-flags:8000\n\
                    fanotify sdev:fe00000 mflags:0 mask:1008 ignored_mask:0\n\
                    fanotify sdev:27 mflags:0 mask:8 ignored_mask:0\nfanotify mnt_id:1b mflags:0 mask:8\n";
        assert_eq!(parse_marks(text), Some(BTreeSet::from([(254, 0), (0, 39)])));
        assert_eq!(parse_marks("fanotify sdev:zz\n"), None);
    }
}
