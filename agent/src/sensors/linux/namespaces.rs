//! Mount namespaces other than our own: which there are, and the table of mounts of each.
//!
//! A namespace is found by a look at every process now and then, and at once by a process that runs a program in
//! it. It is followed through one of its processes. Assumes the thread of `mounts`, which waits for what is to be
//! polled here. An open table of mounts keeps its namespace, and so what is mounted in it, alive: it is closed as
//! soon as that process ends, and another process of the namespace is looked for.

use super::mountinfo::{self, Mount};
use super::proc;
use crate::host::Moment;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

/// Namespaces that are followed; what is in more of them is not seen, and said.
pub(crate) const NAMESPACES_MAX: usize = 512;
/// Mounts of all of them together.
const MOUNTS_ALL_MAX: usize = 65_536;
/// One table. Bytes.
const TABLE_BYTES_MAX: u64 = 16 << 20;

/// The others.
#[derive(Debug)]
pub(crate) struct Namespaces {
    own: u64,
    known: BTreeMap<u64, Followed>,
    /// There were more than are followed.
    too_many: bool,
    /// When all processes were last looked at.
    looked: Moment,
    /// A process that stood for its namespace ended: another is to be found.
    pub(crate) orphaned: bool,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Followed {
    /// The process whose `/proc/PID` stands for it.
    pub(crate) pid: u32,
    /// Its mounts.
    pub(crate) mounts: Vec<Mount>,
    /// What is new in `mounts` was mounted after this.
    pub(crate) since: Moment,
    read: Moment,
    pidfd: OwnedFd,
    table: File,
}

impl Namespaces {
    /// # Errors
    /// Without `/proc`.
    pub(crate) fn new() -> std::io::Result<Self> {
        let own = number("self").ok_or_else(|| std::io::Error::other("/proc/self/ns/mnt can't be read"))?;
        let known = BTreeMap::new();
        Ok(Self { own, known, too_many: false, looked: Moment::now(), orphaned: false })
    }

    /// None at all, for the moment in which the others are looked at.
    pub(crate) fn none() -> Self {
        let looked = Moment::now();
        Self { own: 0, known: BTreeMap::new(), too_many: false, looked, orphaned: false }
    }

    /// Looks at every process: true when one brought a namespace.
    pub(crate) fn look(&mut self) -> bool {
        let now = Moment::now();
        (self.too_many, self.orphaned) = (false, false);
        let mut brought = false;
        for pid in proc::everybody() {
            brought |= self.consider(pid);
        }
        self.looked = now;
        brought
    }

    /// Looks at one process: true when it brought a namespace.
    pub(crate) fn consider(&mut self, pid: u32) -> bool {
        let Some(number) = number(&pid.to_string()) else { return false };
        if number == self.own || self.known.contains_key(&number) {
            return false;
        }
        if self.known.len() >= NAMESPACES_MAX {
            self.too_many = true;
            return false;
        }
        match follow(pid, number, self.looked) {
            Some(followed) => self.known.insert(number, followed).is_none(),
            None => false, // it ended
        }
    }

    /// What to wait for, two for each: a change of the table, the end of the process.
    pub(crate) fn polled(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.known.values().flat_map(|followed| {
            [PollFd::new(&followed.table, PollFlags::PRI), PollFd::new(&followed.pidfd, PollFlags::IN)]
        })
    }

    /// Takes what poll said of [`Self::polled`], in that order: true when a table changed or somebody ended. poll
    /// tells a change once, so this is the only chance.
    pub(crate) fn note(&mut self, ready: &[bool]) -> bool {
        let mut ready = ready.chunks_exact(2);
        let (mut changed, mut ended) = (false, false);
        self.known.retain(|number, followed| {
            let (table, end) = match ready.next() {
                Some([table, end]) => (*table, *end),
                Some(_) | None => (false, false),
            };
            // Opened anew: a table is told as seen from the root that its process had when it was opened.
            let again = if table && !end { follow(followed.pid, *number, followed.read) } else { None };
            changed |= table || end;
            match again {
                Some(again) => *followed = again,
                None if table || end => {
                    ended = true;
                    return false;
                }
                None => {}
            }
            true
        });
        self.orphaned |= ended;
        changed
    }

    /// Reads every table anew.
    pub(crate) fn reread(&mut self) {
        self.note(&[true, false].repeat(self.known.len()));
    }

    /// Those that are followed.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Followed> {
        self.known.values()
    }

    /// What can't be followed; none when everything is.
    pub(crate) fn trouble(&self) -> Option<String> {
        let mounts: usize = self.known.values().map(|followed| followed.mounts.len()).sum();
        if self.too_many {
            Some(format!(
                "more than {NAMESPACES_MAX} mount namespaces: what is private to the others is not seen"
            ))
        } else if mounts > MOUNTS_ALL_MAX {
            Some(format!("more than {MOUNTS_ALL_MAX} mounts in other namespaces: some are not seen"))
        } else {
            None
        }
    }
}

/// Through a process that is in that namespace, before and after its table was read.
fn follow(pid: u32, expected: u64, since: Moment) -> Option<Followed> {
    let pidfd = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
    let read = Moment::now();
    let table = File::open(format!("/proc/{pid}/mountinfo")).ok()?;
    let mut bytes = Vec::new();
    (&table).take(TABLE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let mounts = mountinfo::parse(&bytes);
    (number(&pid.to_string()) == Some(expected)).then_some(Followed {
        pid,
        mounts,
        since,
        read,
        pidfd,
        table,
    })
}

/// The inode of a process's mount namespace (namespaces(7)); none when the process is gone.
pub(crate) fn number(pid: &str) -> Option<u64> {
    let target = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    parse_number(target.as_os_str().as_encoded_bytes())
}

/// `mnt:[4026531832]`
fn parse_number(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"mnt:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_number() {
        assert_eq!(parse_number(b"mnt:[4026531832]"), Some(4_026_531_832));
        for link in [&b"mnt:[]"[..], b"mnt:[1", b"net:[1]", b"mnt:[-1]", b""] {
            assert_eq!(parse_number(link), None, "{}", link.escape_ascii());
        }
        assert!(number("self").is_some());
        assert_eq!(number("0"), None);
    }

    #[test]
    fn our_own_namespace_is_not_followed() {
        let mut namespaces = Namespaces::new().unwrap();
        assert!(!namespaces.consider(std::process::id()));
        assert_eq!(namespaces.polled().count(), 0);
    }
}
