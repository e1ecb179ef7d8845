//! Content: a batch of files that were written or are about to be run becomes what the join needs of it.
//!
//! Assumes that the connector was drained after the batch was read.

use super::super::join::{Program, Seen};
use super::super::twins::Look;
use super::super::{follow, proc};
use super::{FILES_DEAD_AFTER, Reader};
use crate::host::Moment;
use crate::sensors::processes::Standing;
use crate::sys::fanotify::{self, Target};
use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;
use std::os::fd::OwnedFd;
use std::time::Instant;
use vidette_protocol::wire::{GapReason, HealthState, Source};

impl Reader {
    pub(super) fn read_files(&mut self, now: Moment) -> (Vec<fanotify::Event>, bool) {
        match self.parts.group.read() {
            Ok(batch) => {
                if batch.emptied && !batch.events.iter().any(is_overflow) {
                    self.files_empty = now;
                }
                if self.files_failed.take().is_some() {
                    self.parts.outlet.health("fanotify", HealthState::Ok, "reads again".into());
                }
                (batch.events, batch.emptied)
            }
            Err(error) if is_exhausted(error.raw_os_error()) => {
                // Before 6.13 the event is dropped and this is all one hears of it.
                self.no_descriptor(now, &error);
                (Vec::new(), false)
            }
            Err(error) => {
                if self.files_failed.is_none() {
                    self.files_failed = Some(Instant::now());
                    let message = format!("could not read file events: {error}");
                    self.parts.outlet.health("fanotify", HealthState::Failed, message);
                }
                (Vec::new(), true)
            }
        }
    }

    /// Marks belong to the descriptor, so that a dead one can't be mended here: the sensors are started anew.
    pub(super) fn files_are_dead(&self) -> bool {
        let mut failed = [self.files_failed, self.names_failed].into_iter().flatten();
        failed.any(|since| since.elapsed() >= FILES_DEAD_AFTER)
    }

    pub(super) fn no_descriptor(&mut self, now: Moment, error: &std::io::Error) {
        let detail = format!("the kernel could not open a file for the agent: {error}");
        self.parts.outlet.lost(GapReason::Descriptors, Some(1), self.files_empty, now, &detail);
    }

    /// From an event to its file's type and names.
    pub(super) fn look(&mut self, event: fanotify::Event, now: Moment) -> Option<Look> {
        if is_overflow(&event) {
            let detail = "the kernel's queue of file events was full";
            self.parts.outlet.lost(GapReason::KernelQueue, None, self.files_empty, now, detail);
            return None;
        }
        let descriptor = match event.target {
            Target::Open(descriptor) => descriptor,
            // A FIFO without a writer, a device without a driver: no file.
            Target::Failed(libc::ENXIO | libc::ENODEV) => {
                self.parts.outlet.unwatched();
                return None;
            }
            Target::Failed(errno) => {
                self.no_descriptor(now, &std::io::Error::from_raw_os_error(errno));
                return None;
            }
        };
        let closed = event.mask & fanotify::CLOSE_WRITE != 0;
        let opened = event.mask & fanotify::OPEN != 0;
        let own = (closed || opened) && (event.pid == self.own_pid || self.parent(event.pid) == self.own_pid);
        if own {
            if closed {
                self.parts.witness.written(&descriptor);
            }
            self.parts.outlet.own();
        }
        if own && event.mask & fanotify::OPEN_EXEC == 0 {
            return None;
        }
        let Some((mut file, stat)) = proc::open_file(descriptor) else {
            if !own {
                self.parts.outlet.unwatched();
            }
            return None;
        };
        let side = self.parts.places.settle(&mut file, &stat);
        let run = (event.mask & fanotify::OPEN_EXEC != 0).then(|| Program::copy(&file, &stat)).flatten();
        if let Some(program) = &run {
            self.parts.witness.ran(event.pid, program.key);
        }
        let written = ((closed || opened) && !own).then_some(file);
        let (pid, pidfd, reaped) = (event.pid, event.pidfd, event.reaped);
        Some(Look { pid, pidfd, reaped, mask: event.mask, written, opened, run, stat, side })
    }

    /// What the join needs of an event: what is watched of it, and whose it is.
    pub(super) fn admit(&mut self, look: Look, now: Moment) -> Option<Seen> {
        let closed = look.written.is_some();
        // Whatever is guarded lies where nothing else is watched.
        let paths = self.parts.outlet.paths();
        let written = look.written.filter(|file| look.opened || paths.cover_file(file));
        if closed && written.is_none() {
            self.parts.outlet.unwatched();
        }
        if look.run.is_none() && written.is_none() {
            return None;
        }
        self.ask(look.pid, look.pidfd.as_ref(), self.parts.group.pidfd);
        let standing = self.standing(look.pidfd.as_ref(), look.reaped, look.pid);
        Some(Seen { pid: look.pid, standing, written, opened: look.opened, run: look.run, at: now })
    }

    /// What has become of whoever caused an event, asked after the connector was drained.
    pub(super) fn standing(&self, pidfd: Option<&OwnedFd>, reaped: bool, pid: u32) -> Standing {
        match pidfd {
            Some(pidfd) if has_ended(pidfd) => Standing::Ended,
            Some(_) => Standing::Lives,
            None if !reaped => Standing::Unknown,
            None => {
                let table = &self.joiner.table;
                // Its exit may not be told yet: only `/proc` knows that somebody else is there.
                let there = table.has_former(pid)
                    && table.lives(pid)
                    && proc::start_ns(pid).is_some_and(|start| follow::is_start(start, table.start_ns(pid)));
                if there { Standing::Before } else { Standing::Gone }
            }
        }
    }

    /// The parent of somebody who just did something: from the table, or from `/proc` when nobody keeps one.
    pub(super) fn parent(&mut self, pid: u32) -> u32 {
        if self.joiner.table.knows(pid) {
            return self.joiner.table.parent(pid);
        }
        if self.parts.connector.is_some() { 0 } else { proc::facts(pid).map_or(0, |facts| facts.parent) }
    }

    /// Somebody unknown: `/proc` says, if the process is still there after it was read.
    pub(super) fn ask(&mut self, pid: u32, pidfd: Option<&OwnedFd>, with_pidfd: bool) {
        if pid == 0 || self.joiner.table.knows(pid) || (with_pidfd && pidfd.is_none()) {
            return;
        }
        let Some(facts) = proc::facts(pid) else { return };
        if pidfd.is_some_and(has_ended) {
            return;
        }
        if !self.joiner.table.knows(facts.parent)
            && let Some(parent) = proc::facts(facts.parent)
        {
            self.joiner.table.found(&parent, Source::Proc);
        }
        self.joiner.table.found(&facts, Source::Proc);
    }
}

pub(super) fn is_overflow(event: &fanotify::Event) -> bool {
    event.mask & fanotify::QUEUE_OVERFLOW != 0
}

pub(super) fn is_exhausted(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// A pidfd becomes readable when its process has ended (pidfd_open(2)).
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(pidfd, PollFlags::IN)];
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut ready, Some(&none)), Ok(0))
}
