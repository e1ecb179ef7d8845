//! The way out of detection: events to the outbox, without waiting for it while there is another way.
//!
//! What the channel can't take waits in [`super::backlog`]. Telemetry beyond that is shed, counted and told in a
//! `gap`; an alert beyond it makes this stage wait, because alerts must not be lost.

use super::backlog::{Backlog, class};
use crate::host::Moment;
use crate::telemetry::Counters;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_protocol::id::Class;
use vidette_protocol::wire;

/// How often at most a gap of this stage is told.
pub(super) const GAP_PACE: Duration = Duration::from_secs(1);

/// What was lost and not told of yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shed {
    pub(super) count: u64,
    pub(super) since: Moment,
    pub(super) tell_at: Instant,
}

/// The way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    out: Sender<wire::Event>,
    backlog: Backlog,
    counters: Arc<Counters>,
    shed: Option<Shed>,
    closed: bool,
    /// Never has room: what is selected on while nothing waits.
    nowhere: (Sender<wire::Event>, Receiver<wire::Event>),
}

impl Shed {
    /// Adds one; the first one says until when it waits for company.
    pub(super) fn add(shed: &mut Option<Self>, at: Moment) {
        let shed =
            shed.get_or_insert_with(|| Self { count: 0, since: at, tell_at: Instant::now() + GAP_PACE });
        shed.count += 1;
        if at.unix_ns < shed.since.unix_ns {
            shed.since = at;
        }
    }

    /// As it travels.
    pub(super) fn gap(&self, now: Moment, detail: &str) -> wire::Gap {
        wire::Gap {
            reason: wire::GapReason::DetectionQueue.into(),
            count: Some(self.count),
            from_unix_ns: self.since.unix_ns,
            to_unix_ns: now.unix_ns,
            detail: detail.to_owned(),
            ..Default::default()
        }
    }
}

impl Outgoing {
    /// The way to `out`.
    pub(super) fn new(out: Sender<wire::Event>, counters: Arc<Counters>) -> Self {
        Self { out, backlog: Backlog::default(), counters, shed: None, closed: false, nowhere: bounded(0) }
    }

    /// Nobody takes events any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Events that wait here.
    pub(super) fn len(&self) -> usize {
        self.backlog.len()
    }

    /// When [`Self::overdue`] has something to say.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.shed.as_ref().map(|shed| shed.tell_at)
    }

    /// To select on: ready when [`Self::next`] can be sent.
    pub(super) fn sender(&self) -> Sender<wire::Event> {
        if self.backlog.is_empty() { self.nowhere.0.clone() } else { self.out.clone() }
    }

    /// What is sent when [`Self::sender`] was ready; the outcome goes to [`Self::sent`].
    pub(super) fn next(&mut self) -> wire::Event {
        self.backlog.pop().unwrap_or_default()
    }

    /// Whether it went.
    pub(super) fn sent(&mut self, went: bool) {
        if went {
            self.counters.events_passed.one();
        } else {
            self.counters.events_lost_closed.one();
            self.closed = true;
        }
    }

    /// Sends an event, or keeps it until it can be sent, or sheds it.
    pub(super) fn emit(&mut self, event: wire::Event) {
        self.counters.events_made.one();
        if self.closed {
            return self.sent(false);
        }
        self.drain();
        let event = if self.backlog.is_empty() {
            match self.out.try_send(event) {
                Ok(()) => return self.sent(true),
                Err(TrySendError::Disconnected(_)) => return self.sent(false),
                Err(TrySendError::Full(event)) => event,
            }
        } else {
            event
        };
        self.keep(event);
        self.counters.events_waiting.set(self.backlog.len() as u64);
    }

    fn keep(&mut self, event: wire::Event) {
        let Err(mut event) = self.backlog.push(event) else { return };
        if class(&event) == Class::Telemetry {
            self.counters.events_shed_backlog.one();
            let at = Moment { unix_ns: event.time_unix_ns, uptime_ns: event.uptime_ns };
            return Shed::add(&mut self.shed, at);
        }
        // Alerts are not shed: the oldest goes now, however long that takes.
        while !self.closed {
            let oldest = self.next();
            let went = self.out.send(oldest).is_ok();
            self.sent(went);
            event = match self.backlog.push(event) {
                Ok(()) => return,
                Err(event) => event,
            };
        }
        self.sent(false);
    }

    /// Sends what the channel has room for.
    pub(super) fn drain(&mut self) {
        while let Some(event) = self.backlog.pop() {
            match self.out.try_send(event) {
                Ok(()) => self.sent(true),
                Err(TrySendError::Disconnected(_)) => self.sent(false),
                Err(TrySendError::Full(event)) => {
                    self.backlog.put_back(event);
                    break;
                }
            }
        }
        self.counters.events_waiting.set(self.backlog.len() as u64);
    }

    /// What was shed so far, when it is time to tell.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<wire::Gap> {
        self.shed.filter(|shed| shed.tell_at <= now)?;
        self.shed_so_far()
    }

    /// What was shed so far.
    pub(super) fn shed_so_far(&mut self) -> Option<wire::Gap> {
        let detail = "events of files and programs were not recorded because the outbox could not keep up; \
                      what they tell of was scanned, and detections were kept";
        self.shed.take().map(|shed| shed.gap(Moment::now(), detail))
    }

    /// Sends everything, however long it takes.
    pub(super) fn finish(&mut self) {
        while let Some(event) = self.backlog.pop() {
            let went = !self.closed && self.out.send(event).is_ok();
            self.sent(went);
        }
        self.counters.events_waiting.set(0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::detection::backlog::{ALERTS_MAX, TELEMETRY_MAX};
    use wire::event::Kind;

    fn event(kind: Kind) -> wire::Event {
        wire::Event { kind: Some(kind), time_unix_ns: 7, ..Default::default() }
    }

    #[test]
    fn a_stalled_outbox_costs_telemetry_and_no_alert() {
        let (out, events) = bounded(4);
        let counters = Arc::new(Counters::default());
        let mut outgoing = Outgoing::new(out, counters.clone());
        let telemetry = TELEMETRY_MAX + 100;
        for _ in 0..telemetry {
            outgoing.emit(event(Kind::File(wire::FileEvent::default())));
        }
        for _ in 0..ALERTS_MAX {
            outgoing.emit(event(Kind::Detection(wire::Detection::default())));
        }
        assert_eq!(counters.events_shed_backlog.get(), 96, "but for what the channel and the backlog hold");
        assert!(outgoing.overdue(Instant::now()).is_none(), "told once a second");
        let gap = outgoing.overdue(Instant::now() + GAP_PACE).unwrap();
        assert_eq!((gap.count, gap.from_unix_ns), (Some(96), 7));
        // One alert too many waits for the reader.
        let reader = std::thread::spawn(move || events.iter().map(|event| class(&event)).collect::<Vec<_>>());
        outgoing.emit(event(Kind::Detection(wire::Detection::default())));
        outgoing.finish();
        for equation in counters.equations() {
            assert!(equation.holds(), "{equation:?}");
        }
        drop(outgoing);
        let classes = reader.join().unwrap();
        assert_eq!(classes.len(), TELEMETRY_MAX + 4 + ALERTS_MAX + 1);
        assert_eq!(classes.iter().filter(|class| **class == Class::Alert).count(), ALERTS_MAX + 1);
    }

    #[test]
    fn events_for_nobody_are_counted() {
        let (out, events) = bounded(1);
        drop(events);
        let counters = Arc::new(Counters::default());
        let mut outgoing = Outgoing::new(out, counters.clone());
        outgoing.emit(event(Kind::Gap(wire::Gap::default())));
        outgoing.emit(event(Kind::Gap(wire::Gap::default())));
        assert!(outgoing.is_closed());
        assert_eq!((counters.events_made.get(), counters.events_lost_closed.get()), (2, 2));
    }
}
