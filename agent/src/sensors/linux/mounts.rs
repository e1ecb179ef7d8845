//! Marks on superblocks: at start, and whenever the table of mounts changes.
//!
//! Assumes that a mark may be set again at no cost, so nothing is remembered of what has one: device numbers
//! and mount ids are used again, marks vanish with their superblock. What can't be marked goes to the reader,
//! as health.

use super::guard::Guard;
use super::mountinfo::{self, Coverage, Mount};
use crate::sys::fanotify::{CLOSE_WRITE, Group, OPEN_EXEC, Scope};
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use vidette_protocol::escape;

/// The table. Bytes.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// Reports that wait for the reader. More are dropped: it is the same trouble again and again.
const REPORTS_MAX: usize = 16;

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
    network: bool,
    scope: Scope,
    mask: u64,
    marked: usize,
    failed: BTreeMap<(u32, u32), String>,
    remote: Remote,
    reports: Sender<Vec<String>>,
    again: OwnedFd,
    guard: Arc<Guard>,
}

impl Mounts {
    /// And where the list of what can't be marked arrives whenever it changes.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new(group: Arc<Group>, network: bool) -> anyhow::Result<(Self, Receiver<Vec<String>>)> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let again = rustix::event::eventfd(0, flags).context("could not make an eventfd")?;
        let (reports, receiver) = crossbeam_channel::bounded(REPORTS_MAX);
        let mounts = Self {
            group,
            network,
            scope: Scope::Filesystem,
            mask: CLOSE_WRITE | OPEN_EXEC,
            marked: 0,
            failed: BTreeMap::new(),
            remote: Remote::default(),
            reports,
            again,
            guard: Arc::default(),
        };
        Ok((mounts, receiver))
    }

    /// An eventfd: written to, the marks are set again.
    pub(crate) fn waker(&self) -> std::io::Result<OwnedFd> {
        self.again.try_clone()
    }

    /// Knows which marks are there.
    pub(crate) fn guard(&self) -> Arc<Guard> {
        self.guard.clone()
    }

    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
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
                let _ =
                    self.reports.try_send(vec![format!("the table of mounts can't be followed: {error}")]);
                return;
            }
        };
        // poll reports changes since the last read of this very file: read it once before waiting.
        loop {
            if let Err(error) = self.refresh_from(&mut table) {
                tracing::warn!(error = format!("{error:#}"), "could not refresh the marks");
            }
            let mut ready = [
                PollFd::new(&table, PollFlags::PRI),
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(&self.again, PollFlags::IN),
            ];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "could not wait for new mounts");
                    return;
                }
            }
            let [_, stopped, again] = ready;
            if !stopped.revents().is_empty() {
                return;
            }
            if !again.revents().is_empty() {
                let _ = rustix::io::read(&self.again, &mut [0u8; 8]); // back to zero
            }
        }
    }

    /// Marks every superblock that is covered.
    ///
    /// # Errors
    /// When the table can't be read or nothing at all could be marked.
    pub(crate) fn refresh(&mut self) -> anyhow::Result<()> {
        let mut table = File::open("/proc/self/mountinfo").context("could not open the table of mounts")?;
        self.refresh_from(&mut table)
    }

    fn refresh_from(&mut self, table: &mut File) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        table.rewind().context("could not read the table of mounts")?;
        table.take(TABLE_BYTES_MAX).read_to_end(&mut bytes).context("could not read the table of mounts")?;
        let superblocks = mountinfo::by_superblock(mountinfo::parse(&bytes));
        self.note_remote(&superblocks);
        self.guard.before(&self.group);
        let mut failed = BTreeMap::new();
        self.marked = 0;
        for (device, mounts) in &superblocks {
            if let Err(trouble) = self.mark_superblock(mounts) {
                failed.insert(*device, trouble);
            }
        }
        self.guard.after(&self.group);
        if failed != self.failed {
            let _ = self.reports.try_send(failed.values().cloned().collect());
            self.failed = failed;
        }
        let trouble = self.failed.values().next().cloned().unwrap_or_default();
        anyhow::ensure!(self.marked > 0, "no file system could be marked: {trouble}");
        Ok(())
    }

    fn note_remote(&self, superblocks: &BTreeMap<(u32, u32), Vec<Mount>>) {
        let remote = superblocks
            .iter()
            .filter(|(_, mounts)| {
                mounts.iter().any(|mount| mountinfo::coverage(&mount.kind) == Coverage::Network)
            })
            .map(|((major, minor), _)| rustix::fs::makedev(*major, *minor))
            .collect();
        *self.remote.lock().unwrap_or_else(PoisonError::into_inner) = remote;
    }

    /// Through the first of its mounts that is not hidden under another. With mount marks: through each.
    fn mark_superblock(&mut self, mounts: &[Mount]) -> Result<(), String> {
        let Some(first) = mounts.first() else { return Ok(()) };
        let mask = match mountinfo::coverage(&first.kind) {
            Coverage::Full => u64::MAX,
            Coverage::RunsOnly => OPEN_EXEC,
            Coverage::Network if self.network => u64::MAX,
            Coverage::Network | Coverage::None => return Ok(()),
        };
        let mut trouble = None;
        let mut done = false;
        for mount in mounts {
            match self.mark(mount, mask) {
                Ok(true) => done = true,
                Ok(false) => {} // hidden: nobody here reaches it by a name
                Err(error) => trouble = Some(name(mount, &error)),
            }
            if done && self.scope == Scope::Filesystem {
                break;
            }
        }
        self.marked += usize::from(done);
        if done { Ok(()) } else { trouble.map_or(Ok(()), Err) }
    }

    /// False when something else is mounted over it.
    fn mark(&mut self, mount: &Mount, allowed: u64) -> anyhow::Result<bool> {
        let open = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let place = rustix::fs::open(OsStr::from_bytes(&mount.point), open, Mode::empty())?;
        // Something else may be mounted over it. btrfs has a device of its own for each subvolume.
        let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&place, c"", empty, StatxFlags::TYPE)?;
        let same = (stat.stx_dev_major, stat.stx_dev_minor) == mount.device;
        if !same && mount.kind != b"btrfs" {
            return Ok(false);
        }
        let path = CString::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
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
                    return Ok(true);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error.into(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last)
    }
}

fn name(mount: &Mount, error: &anyhow::Error) -> String {
    format!("{} ({}): {error:#}", escape::terminal(&mount.point), escape::terminal(&mount.kind))
}
