//! Processes: the connector's part of a turn, and what is done when it fails or when messages were lost.
//!
//! Assumes nothing of `/proc`: whoever is read there may be another by then.

use super::super::follow::{self, Drained, Sequences};
use super::super::join::Told;
use super::super::proc;
use super::{BACKOFF_MAX, BACKOFF_MIN, COUNT_WAIT, FORKS, REREAD_INTERVAL, Reader, WORKED_EVERY};
use crate::host::Moment;
use crate::sensors::processes::{Facts, Which};
use crate::sensors::{Level, Observation};
use crate::sys::connector::{Connector, What};
use rustix::event::epoll;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vidette_protocol::wire::{GapReason, HealthState, Source};

impl Reader {
    pub(super) fn follow_processes(&mut self, now: Moment) {
        let Some(connector) = &self.parts.connector else { return };
        self.clocks.look(follow::read_clocks);
        let drained = match follow::drain(connector, &mut self.sequences) {
            Ok(drained) => drained,
            Err(error) => {
                return self.disconnect(self.forks_empty, format!("could not read process events: {error}"));
            }
        };
        self.parts.witness.heard(&drained.messages);
        self.note_losses(&drained, now);
        let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = follow::ended(&drained.messages);
        for (at, message) in drained.messages.iter().enumerate() {
            if at % WORKED_EVERY == WORKED_EVERY - 1 {
                self.worked();
            }
            let at = self.clocks.moment(message, now);
            if let What::Exec { pid } = message.what {
                self.parts.bell.ran(pid);
                if self.joiner.table.parent(pid) == self.own_pid {
                    self.parts.witness.executed(pid);
                }
            }
            let is_remote = |device| remote.contains(&device);
            if let Some(mut told) = follow::tell(message, at, &self.joiner.table, &ended, is_remote) {
                if let Told::Exec { exe: Some(exe), .. } = &mut told {
                    exe.settle(&mut self.parts.places);
                }
                self.joiner.tell(told, at);
            }
        }
        if drained.messages.iter().any(|message| matches!(message.what, What::Exec { .. })) {
            self.parts.bell.ring();
        }
        if drained.overflowed || drained.lost > 0 {
            self.joiner.lost(now); // what was just told may be out of date as well
        }
    }

    pub(super) fn note_losses(&mut self, drained: &Drained, now: Moment) {
        const DETAIL: &str = "the process connector's buffer was full";
        let reason = GapReason::ProcessConnector;
        if drained.overflowed {
            self.uncounted = Some(Instant::now() + COUNT_WAIT);
        }
        if drained.lost > 0 {
            self.uncounted = None;
            self.parts.outlet.lost(reason, Some(drained.lost), self.forks_empty, now, DETAIL);
        } else if self.uncounted.is_some_and(|until| Instant::now() > until) {
            self.uncounted = None;
            self.parts.outlet.lost(reason, None, self.forks_empty, now, DETAIL);
        }
        if drained.overflowed || drained.lost > 0 {
            self.joiner.lost(now);
            self.reread = true;
        }
        if self.uncounted.is_none() {
            self.forks_empty = now;
        }
    }

    /// After losses: who is there, who is gone, who runs something else than we think.
    pub(super) fn reread_if_due(&mut self, now: Moment) {
        if !self.reread || self.reread_last.elapsed() < REREAD_INTERVAL || self.joiner.is_waiting() {
            return;
        }
        self.reread = false;
        self.reread_last = Instant::now();
        let there: HashSet<u32> = proc::everybody().into_iter().collect();
        for pid in self.joiner.table.living().into_iter().filter(|pid| !there.contains(pid)) {
            self.gone(pid, now);
        }
        for facts in there.into_iter().filter_map(proc::facts) {
            self.compare(&facts, now);
        }
    }

    pub(super) fn gone(&mut self, pid: u32, at: Moment) {
        let process = self.joiner.table.describe(pid, Which::Newest);
        self.joiner.table.exit(pid, at.uptime_ns);
        if let Some(process) = process.filter(|process| self.running.remove(&(pid, process.start_ns))) {
            let process = self.with_user(process);
            self.parts.outlet.pass(Observation::ProcessEnded { process, status: None, at }, at);
        }
    }

    pub(super) fn compare(&mut self, facts: &Facts, at: Moment) {
        if facts.executable.is_empty() {
            self.joiner.table.found(facts, Source::Proc);
            return; // a kernel thread, or one that ended and nobody waited for
        }
        let new = self.joiner.table.found(facts, Source::Proc);
        let other = !new && !self.is_same_image(facts);
        let table = &mut self.joiner.table;
        if other {
            table.exec(facts.pid, Some(facts));
            table.settle(facts.pid, &facts.executable, Source::Proc, true);
        }
        table.confirm(facts.pid);
        if (new || other)
            && let Some(process) = table.describe(facts.pid, Which::Newest)
        {
            let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut image = proc::open_exe(facts.pid, |device| remote.contains(&device));
            if let Some(image) = &mut image {
                image.settle(&mut self.parts.places);
            }
            self.ran(process, image, true, at);
        }
    }

    /// `/proc` names an image as its own namespace sees it; the table has the host's name.
    pub(super) fn is_same_image(&mut self, facts: &Facts) -> bool {
        let known = self.joiner.table.executable(facts.pid);
        if known == facts.executable || is_below_layer(&known, &facts.executable) {
            return true;
        }
        let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        proc::open_exe(facts.pid, |device| remote.contains(&device)).is_some_and(|mut image| {
            image.settle(&mut self.parts.places);
            image.file.path == known
        })
    }

    /// It failed or is deaf, and was last known to hear at `since`.
    pub(super) fn disconnect(&mut self, since: Moment, why: String) {
        if self.parts.connector.is_none() {
            return;
        }
        tracing::warn!(why, "the process connector failed: it will be tried again");
        let now = Moment::now();
        self.parts.outlet.lost(GapReason::SensorDown, None, since, now, &why);
        self.parts.outlet.health("process-connector", HealthState::Failed, why);
        self.parts.outlet.flush(now); // it may be back before this turn ends
        self.deaf_since = Some(now);
        if let Some(connector) = self.parts.connector.take() {
            connector.discard();
        }
        self.joiner.forget();
        self.running.clear();
        self.parts.level.store(Level::Names.to_number(), Ordering::Relaxed);
        self.retry_at = Instant::now() + self.backoff;
    }

    pub(super) fn connect_if_due(&mut self, epoll: &OwnedFd) {
        if !self.parts.retry || self.parts.connector.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let connected = Connector::listen().and_then(|connector| {
            let data = epoll::EventData::new_u64(FORKS);
            epoll::add(epoll, &connector, data, epoll::EventFlags::IN)?;
            Ok(connector)
        });
        match connected {
            Ok(connector) => {
                self.parts.connector = Some(connector);
                self.sequences = Sequences::default();
                self.backoff = BACKOFF_MIN;
                self.parts.level.store(Level::Full.to_number(), Ordering::Relaxed);
                self.parts.outlet.health("process-connector", HealthState::Ok, "connected".into());
                if let Some(since) = self.deaf_since.take() {
                    let (now, detail) = (Moment::now(), "until the process connector was back");
                    self.parts.outlet.lost(GapReason::SensorDown, None, since, now, detail);
                }
                self.inventory();
            }
            Err(error) => {
                tracing::debug!(%error, "the process connector is still refused");
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                self.retry_at = Instant::now() + self.backoff;
            }
        }
    }
}

/// The name of a file in an overlay is the end of its name in the layer.
fn is_below_layer(host: &[u8], container: &[u8]) -> bool {
    container.starts_with(b"/") && host.ends_with(container)
}
