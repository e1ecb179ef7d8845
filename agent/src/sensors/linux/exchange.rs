//! What passes between the reader and the thread of the mounts: bounded both ways, and nobody waits.
//!
//! The reader says who ran a program and asks for another look; the other thread says what it could not mark and
//! which file systems were found late.

use crate::host::Moment;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::EventfdFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Reports that wait for the reader. What does not fit is counted and said with the next.
pub(crate) const REPORTS_MAX: usize = 256;
/// Processes that ran a program and whose namespace nobody looked at yet. Beyond it all are looked at.
const RAN_MAX: usize = 4096;

/// From the mounts to the reader.
#[derive(Debug)]
pub(crate) enum Report {
    /// All that can't be covered, whenever that changes; none of it: all is well.
    Troubles(Vec<String>),
    /// A file system had no mark for a while.
    Late(Late),
}

/// Which, and from when to when.
#[derive(Debug)]
pub(crate) struct Late {
    /// Its top, when it is a folder.
    pub(crate) folder: Option<OwnedFd>,
    /// The path of that: as the host sees it, or as the namespace it is private to.
    pub(crate) path: Vec<u8>,
    /// It is private to another namespace.
    pub(crate) private: bool,
    /// It was mounted after this.
    pub(crate) from: Moment,
    /// Now it has its mark.
    pub(crate) to: Moment,
    /// For people.
    pub(crate) detail: String,
}

/// From the reader, and whoever else finds a mark missing, to the mounts.
#[derive(Debug, Clone)]
pub(crate) struct Bell {
    event: Arc<OwnedFd>,
    ran: Sender<u32>,
    all: Arc<AtomicBool>,
    marks: Arc<AtomicBool>,
}

/// The other end.
#[derive(Debug)]
pub(crate) struct Ear {
    event: Arc<OwnedFd>,
    ran: Receiver<u32>,
    all: Arc<AtomicBool>,
    marks: Arc<AtomicBool>,
}

/// Both ends.
///
/// # Errors
/// When the kernel makes no eventfd.
pub(crate) fn bell() -> rustix::io::Result<(Bell, Ear)> {
    let event = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, ran) = crossbeam_channel::bounded(RAN_MAX);
    let (all, marks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let bell = Bell { event: event.clone(), ran: sender, all: all.clone(), marks: marks.clone() };
    Ok((bell, Ear { event, ran, all, marks }))
}

impl Bell {
    /// A process ran a program: told with the next [`Self::ring`].
    pub(crate) fn ran(&self, pid: u32) {
        if let Err(TrySendError::Full(_)) = self.ran.try_send(pid) {
            self.all.store(true, Ordering::Release);
        }
    }

    /// Asks for every mark to be set again, new or not.
    pub(crate) fn refresh(&self) {
        self.marks.store(true, Ordering::Release);
        self.ring();
    }

    /// Wakes the other thread.
    pub(crate) fn ring(&self) {
        // Full already means awake already.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }
}

impl Ear {
    /// Silences the bell: who ran a program, whether to look at everybody, whether to set every mark.
    pub(crate) fn hear(&self) -> (Vec<u32>, bool, bool) {
        let _ = rustix::io::read(&*self.event, &mut [0; 8]);
        let mut ran: Vec<u32> = self.ran.try_iter().take(RAN_MAX).collect();
        ran.sort_unstable();
        ran.dedup();
        (ran, self.all.swap(false, Ordering::AcqRel), self.marks.swap(false, Ordering::AcqRel))
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn more_runs_than_fit_ask_for_everybody() {
        let (bell, ear) = bell().unwrap();
        assert_eq!(ear.hear(), (vec![], false, false));
        for pid in [7, 3, 7] {
            bell.ran(pid);
        }
        bell.refresh();
        assert_eq!(ear.hear(), (vec![3, 7], false, true));
        for pid in 0..=u32::try_from(RAN_MAX).unwrap() {
            bell.ran(pid);
        }
        let (ran, all, marks) = ear.hear();
        assert_eq!((ran.len(), all, marks), (RAN_MAX, true, false));
    }
}
