//! Names: a batch of their group becomes observations, with whoever changed them.
//!
//! Assumes that the batch was read before the content's, and that the connector was drained after both.

use super::super::join::Read;
use super::super::names;
use super::content::is_exhausted;
use super::{Reader, UNATTRIBUTED_MAX, UNATTRIBUTED_TURNS_MAX, Unattributed, cut};
use crate::host::Moment;
use crate::sensors::Observation;
use crate::sensors::processes::{Holder, Which, Who, Window};
use crate::sys::fanotify::{self, NameBatch, NameEvent};
use std::time::Instant;
use vidette_protocol::wire::{GapReason, HealthState};

impl Reader {
    pub(super) fn read_names(&mut self, now: Moment) -> Option<NameBatch> {
        let names = self.names.as_mut()?;
        match names.read() {
            Ok(batch) => {
                if self.names_failed.take().is_some() {
                    self.parts.outlet.health("names", HealthState::Ok, "reads again".into());
                }
                Some(batch)
            }
            Err(error) if is_exhausted(error.raw_os_error()) => {
                names.forget();
                let detail = format!("the kernel could not open a process for the agent: {error}");
                self.parts.outlet.lost(GapReason::Descriptors, None, self.names_empty, now, &detail);
                None
            }
            Err(error) => {
                names.forget();
                if self.names_failed.replace(self.names_failed.unwrap_or_else(Instant::now)).is_none() {
                    let message = format!("could not read events of names: {error}");
                    self.parts.outlet.health("names", HealthState::Failed, message);
                    let detail = "events of names could not be read";
                    self.parts.outlet.lost(GapReason::KernelQueue, None, self.names_empty, now, detail);
                }
                None
            }
        }
    }

    pub(super) fn follow_names(&mut self, batch: NameBatch, read: Read, now: Moment) {
        let Some(mut names) = self.names.take() else { return };
        let mut overflowed = false;
        let mut last = (0, false); // whoever does one thing to names mostly does many
        for event in batch.events() {
            if event.pid != last.0 {
                let own = event.pid == self.own_pid || self.parent(event.pid) == self.own_pid;
                last = (event.pid, own);
            }
            if event.mask & fanotify::QUEUE_OVERFLOW != 0 {
                overflowed = true;
                names.forget();
                let detail = "the kernel's queue of name events was full";
                self.parts.outlet.lost(GapReason::KernelQueue, None, self.names_empty, now, detail);
            } else if last.1 {
                names.follow_own(&event);
                if let Some(place) = event.place.filter(|_| event.mask & fanotify::RENAME != 0) {
                    self.parts.witness.named(place.name);
                }
                self.parts.outlet.own();
            } else {
                for change in names.follow(&event, self.parts.outlet.paths(), now).drain(..) {
                    self.name_changed(change, Some(&event), read, now);
                }
            }
        }
        if batch.emptied && !overflowed {
            self.names_empty = now;
            self.names_since_ns = self.names_since_ns.max(read.from_ns);
        }
        if let Some(troubles) = names.troubles() {
            let state = if troubles.is_empty() { HealthState::Ok } else { HealthState::Degraded };
            let message = if troubles.is_empty() {
                "names are followed on every file system that is covered".to_owned()
            } else {
                format!("names are not followed on {}", troubles.join("; "))
            };
            self.parts.outlet.health("names", state, cut(message));
        }
        for change in names.end_turn(batch, self.parts.outlet.paths()) {
            self.name_changed(change, None, read, now);
        }
        self.names = Some(names);
    }

    pub(super) fn name_changed(
        &mut self,
        change: names::Change,
        event: Option<&NameEvent<'_>>,
        read: Read,
        now: Moment,
    ) {
        let (pid, observation) = match change {
            names::Change::Unwatched => return self.parts.outlet.unwatched(),
            names::Change::Duplicate => return self.parts.outlet.duplicate(),
            names::Change::Refused(errno) => {
                return self.no_descriptor(now, &std::io::Error::from_raw_os_error(errno));
            }
            names::Change::Observed(pid, observation) => (pid, *observation),
        };
        let who = self.author(pid, event.filter(|event| event.pid == pid), read);
        let waits = who.is_some_and(|(who, _)| self.joiner.table.unsettled(who) > 0);
        if waits && self.unattributed.len() < UNATTRIBUTED_MAX {
            self.unattributed.push(Unattributed { who, observation, turns: 0 });
        } else {
            self.pass_name(who, observation, now);
        }
    }

    /// Hands on what waited until it was known which program its process runs.
    pub(super) fn attribute_names(&mut self, now: Moment) {
        for mut waiting in std::mem::take(&mut self.unattributed) {
            waiting.turns += 1;
            let waits = waiting.who.is_some_and(|(who, _)| self.joiner.table.unsettled(who) > 0);
            if waits && waiting.turns < UNATTRIBUTED_TURNS_MAX {
                self.unattributed.push(waiting);
            } else {
                self.pass_name(waiting.who, waiting.observation, now);
            }
        }
    }

    pub(super) fn pass_name(
        &mut self,
        who: Option<(Who, Window)>,
        mut observation: Observation,
        now: Moment,
    ) {
        if let Observation::FileWritten { process, .. } | Observation::NameChanged { process, .. } =
            &mut observation
        {
            // What it runs is the newest that is known, because the content's batch was read after the names.
            *process = who
                .and_then(|(who, window)| self.joiner.table.describe_at(who, Which::Newest, window, false));
            *process = process.take().map(|process| self.with_user(process));
        }
        self.parts.outlet.pass(observation, now);
    }

    /// Who changed a name, by the rules of the join: right or nobody.
    pub(super) fn author(
        &mut self,
        pid: u32,
        event: Option<&NameEvent<'_>>,
        read: Read,
    ) -> Option<(Who, Window)> {
        let with_pidfd = self.parts.names.as_ref().is_some_and(|(group, _)| group.pidfd);
        if self.parts.connector.is_none() && !with_pidfd {
            return None; // the connector failed: nobody tells who lives
        }
        let pidfd = event.and_then(|event| event.pidfd);
        self.ask(pid, pidfd, with_pidfd);
        let standing = self.standing(pidfd, event.is_some_and(|event| event.reaped), pid);
        let window = Window { since_ns: self.names_since_ns, read_ns: read.from_ns, until_ns: read.until_ns };
        match self.joiner.table.holder(pid, standing, window) {
            Holder::One(who) => {
                self.names_since_ns = self.names_since_ns.max(self.joiner.table.told_ns(who));
                Some((who, window))
            }
            Holder::Nobody => Some((pid.into(), window)),
            Holder::Several => None,
        }
    }
}
