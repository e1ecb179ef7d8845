//! One process, asked now: who it is, and whether it is still the same that runs the same program.
//!
//! Assumes that it may end, or run something else, at any moment; so its folder in `/proc` is opened once, and what is
//! read below that fails when the process is gone, even if its pid is used again. Goes to whoever looks into memory.

use super::{places, proc};
use crate::sensors::processes::{ProcessTable, is_same_start};
use crate::sensors::users::Users;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;
use vidette_protocol::limits::ANCESTORS_MAX;
use vidette_protocol::wire::{self, Source};

pub(crate) use super::proc::everybody;

/// A process that runs a program: another one after an exec, another one when its pid is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// CLOCK_BOOTTIME of its start, nanoseconds, to the tick.
    pub(crate) start_ns: u64,
    /// Where its stack began: anew at random for every program. 0 for those who may not know.
    stack: u64,
}

/// The file that a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Where.
    pub(crate) device: u64,
    /// Which.
    pub(crate) inode: u64,
    /// As the kernel calls it.
    pub(crate) path: Vec<u8>,
}

/// `/proc/PID`, held open.
///
/// # Errors
/// ENOENT when there is no such process.
pub(crate) fn open(pid: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
}

/// Who has this folder in `/proc`; none when it is gone.
#[must_use]
pub(crate) fn identity(folder: &OwnedFd) -> Option<Identity> {
    let (start_ns, stack) = proc::start_and_stack(folder)?;
    Some(Identity { start_ns, stack })
}

impl Identity {
    /// Whether a process with this start, as an event tells it, is this one.
    #[must_use]
    pub(crate) fn started_at(&self, start_ns: u64) -> bool {
        is_same_start(Some(self.start_ns), Some(start_ns))
    }
}

/// The file that it runs; none for a kernel thread, for one that ended, and for those who may not know. Nothing is
/// asked of the file system that the file is on.
#[must_use]
pub(crate) fn image(folder: &OwnedFd) -> Option<Image> {
    let link = rustix::fs::openat(folder, c"exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&link, c"", empty, StatxFlags::INO).ok()?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let mut path = places::name(&link);
    if let Some(name) = path.strip_suffix(places::DELETED) {
        path.truncate(name.len());
    }
    Some(Image { device, inode: stat.stx_ino, path })
}

/// Describes processes as events do.
#[derive(Debug)]
pub(crate) struct Describer {
    boot_id: String,
    users: Users,
}

impl Describer {
    /// For processes of this boot.
    #[must_use]
    pub(crate) fn new(boot_id: &str) -> Self {
        Self { boot_id: boot_id.to_owned(), users: Users::new(PathBuf::from("/etc/passwd")) }
    }

    /// With its parent and ancestors as they are now; none when it is gone.
    #[must_use]
    pub(crate) fn describe(&mut self, pid: u32, identity: Identity) -> Option<wire::Process> {
        let mut chain = vec![proc::facts(pid)?];
        while let Some(parent) = chain.last().map(|facts| facts.parent)
            && parent != 0
            && chain.len() < ANCESTORS_MAX + 2
            && let Some(facts) = proc::facts(parent)
        {
            chain.push(facts);
        }
        let mut table = ProcessTable::new(self.boot_id.clone());
        for facts in chain.iter().rev() {
            table.found(facts, Source::Proc);
        }
        if table.start_ns(pid) != Some(identity.start_ns) {
            return None;
        }
        let newest = table.newest(pid);
        let mut process = table.describe(newest, crate::sensors::processes::Which::Newest)?;
        process.user_name = process.uid.map(|uid| self.users.name(uid, Instant::now())).unwrap_or_default();
        Some(process)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_another_after_an_exec_and_none_after_its_end() {
        // It runs another program after it has read a line.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line; exec sleep 60"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let folder = open(child.id()).unwrap();
        let before = identity(&folder).unwrap();
        assert_eq!(identity(&folder), Some(before));
        drop(child.stdin.take());
        let until = Instant::now() + std::time::Duration::from_secs(20);
        while identity(&folder) == Some(before) {
            assert!(Instant::now() < until, "an exec changed nothing");
        }
        let after = identity(&folder).unwrap();
        assert!(after.start_ns == before.start_ns && after.started_at(before.start_ns + 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(identity(&folder), None);
    }

    #[test]
    fn this_process_is_described_with_its_ancestors() {
        let own = std::process::id();
        let folder = open(own).unwrap();
        let identity = identity(&folder).unwrap();
        let boot = crate::host::Host::read().boot_id;
        let process = Describer::new(&boot).describe(own, identity).unwrap();
        assert_eq!((process.entity_id.len(), process.pid), (32, own));
        assert!(process.parent.is_some());
        assert_eq!(image(&folder).unwrap().path, process.executable);
        let other = Identity { start_ns: identity.start_ns + 10_000_000, ..identity };
        assert_eq!(Describer::new(&boot).describe(own, other), None);
    }
}
