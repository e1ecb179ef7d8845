//! One class of a session: which number comes next, what is in flight, what was refused. Pure.
//!
//! Alerts go before telemetry where it matters: see `hold` and `session`.
//!
//! Go back N: after a Nack or a Reject the collector ignores everything until the number it named, so this
//! side forgets what is in flight and reads again from there. Used by `session` alone.

use super::session::{Limits, NACKS_MAX};
use crate::outbox::{ClassState, Run};
use std::collections::VecDeque;
use std::time::Instant;
use vidette_protocol::id::Class;

/// The state of one class.
#[derive(Debug)]
pub struct Lane {
    class: Class,
    epoch: u64,
    /// Committed by the collector.
    acked: u64,
    /// The last number the outbox gave.
    last: u64,
    /// The last number that may have been sent, on this connection or an earlier one.
    sent_last: u64,
    /// The next number to read.
    next: u64,
    in_flight_max: usize,
    in_flight: VecDeque<Sent>,
    reading: Option<Reading>,
    /// Nothing waited when this was the last number.
    empty_at: Option<u64>,
    /// Since when something has waited to be read.
    waits_since: Option<Instant>,
    /// The last time the collector moved this lane, or it had nothing to answer.
    moved_at: Instant,
    nacks: u32,
    refused: Option<Refused>,
    setting_aside: bool,
    /// Nothing is read until the other class is acknowledged up to here.
    held_until: Option<u64>,
    /// It waited for that once: what is read next is sent.
    waited: bool,
}

#[derive(Debug)]
struct Sent {
    /// First number covered, skipped ones included.
    start: u64,
    first: u64,
    last: u64,
}

#[derive(Debug)]
struct Reading {
    /// The last number when it was asked for.
    last: u64,
    /// It went back meanwhile: what comes is of no use.
    stale: bool,
}

#[derive(Debug)]
struct Refused {
    first: u64,
    last: u64,
    times: u32,
}

/// What a lane wants now.
#[derive(Debug, PartialEq, Eq)]
pub enum Want {
    /// More events.
    Read {
        /// Its class.
        class: Class,
        /// From this number on.
        from: u64,
    },
    /// To be asked again then.
    Wake(Instant),
    /// A new connection, for this reason.
    GiveUp(String),
    /// Nothing, until something happens.
    Nothing,
}

impl Lane {
    /// Without a connection.
    #[must_use]
    pub fn new(class: Class, now: Instant) -> Self {
        Self {
            class,
            epoch: 0,
            acked: 0,
            last: 0,
            sent_last: 0,
            next: 1,
            in_flight_max: 1,
            in_flight: VecDeque::new(),
            reading: None,
            empty_at: None,
            waits_since: None,
            moved_at: now,
            nacks: 0,
            refused: None,
            setting_aside: false,
            held_until: None,
            waited: false,
        }
    }

    /// Committed by the collector, as far as is known.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The last number given.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// A new connection; refusals of the same epoch stay counted.
    pub fn connected(&mut self, epoch: u64, state: &ClassState, now: Instant) {
        let refused = self.refused.take().filter(|_| self.epoch == epoch);
        // What an earlier process sent may arrive late, so that an Ack for it is no surprise.
        *self = Self {
            epoch,
            acked: state.acked,
            last: state.last,
            sent_last: state.last,
            refused,
            ..Self::new(self.class, now)
        };
    }

    /// The collector has everything up to `durable`.
    pub fn welcomed(&mut self, durable: u64, in_flight_max: usize, now: Instant) {
        self.acked = durable;
        self.next = durable + 1;
        self.in_flight_max = in_flight_max;
        self.moved_at = now;
        self.waits_since = (self.last >= self.next).then_some(now);
    }

    /// The outbox gave numbers up to `last`.
    pub fn appended(&mut self, last: u64, now: Instant) {
        self.last = self.last.max(last);
        if self.last >= self.next {
            self.waits_since.get_or_insert(now);
        }
    }

    /// True when the outbox may forget up to `seq`.
    pub fn ack(&mut self, seq: u64, now: Instant) -> Result<bool, String> {
        if seq > self.sent_last {
            let (class, sent) = (self.class, self.sent_last);
            return Err(format!("the collector acknowledged {class} {seq}, sent were {sent} at most"));
        }
        self.moved_at = now;
        if seq <= self.acked {
            return Ok(false);
        }
        self.acked = seq;
        self.nacks = 0;
        self.in_flight.retain(|sent| sent.last > seq);
        if self.refused.as_ref().is_some_and(|refused| refused.last <= seq) {
            self.refused = None;
        }
        if self.next <= seq {
            self.go_back(seq + 1, now); // an earlier connection's batch was committed meanwhile
        }
        Ok(true)
    }

    /// The collector expects another number.
    pub fn nack(&mut self, expected: u64, now: Instant) -> Result<(), String> {
        let class = self.class;
        if expected > self.sent_last.saturating_add(1) {
            return Err(format!(
                "the collector expects {class} {expected}, sent were {} at most",
                self.sent_last
            ));
        }
        if expected <= self.acked {
            return Err(format!("the collector expects {class} {expected}, which it had acknowledged"));
        }
        self.nacks += 1;
        if self.nacks > NACKS_MAX {
            return Err(format!(
                "the collector asked {NACKS_MAX} times for {class} {expected} and took nothing"
            ));
        }
        self.go_back(expected, now);
        Ok(())
    }

    /// How often this range was refused by now.
    pub fn reject(&mut self, first: u64, last: u64, now: Instant) -> Result<u32, String> {
        let class = self.class;
        if first > last || first <= self.acked || last > self.sent_last || self.setting_aside {
            return Err(format!("the collector refused {class} {first} to {last}, which were not in flight"));
        }
        let times = match &self.refused {
            Some(refused) if refused.first == first && refused.last == last => refused.times + 1,
            Some(_) | None => 1,
        };
        self.refused = Some(Refused { first, last, times });
        self.setting_aside = times >= super::session::REFUSALS_MAX;
        let sent = self.in_flight.iter().find(|sent| sent.first <= first && first <= sent.last);
        // With the skipped numbers before it, which nobody has heard of yet.
        let back = sent.filter(|sent| sent.first == first).map_or(first, |sent| sent.start);
        self.go_back(back.max(self.acked + 1), now);
        Ok(times)
    }

    /// The outbox does not have the refused ones any more.
    pub fn set_aside_done(&mut self, now: Instant) {
        if self.setting_aside {
            self.setting_aside = false;
            self.refused = None;
            self.go_back(self.next, now);
        }
    }

    /// Waits with reading until the other class is acknowledged up to `seq`.
    pub fn hold(&mut self, seq: u64) {
        self.held_until = Some(seq);
    }

    /// Goes on when `other` has come as far as this one waits for, or has nothing to bring forward.
    pub fn let_go(&mut self, other: &Self) {
        let arrived = |until| other.acked >= until || (other.last >= until && other.is_idle());
        if self.held_until.is_some_and(arrived) {
            self.held_until = None;
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.reading.is_none() && !self.setting_aside && self.has_nothing()
    }

    fn has_nothing(&self) -> bool {
        self.next > self.last || self.empty_at.is_some_and(|at| at >= self.last)
    }

    /// Whether `run` skips numbers that are explained by an alert which has not arrived: then it is not taken, and
    /// read again when that has. Once for each run, so that a loss that goes on does not stop the lane.
    pub fn is_early(&mut self, run: &Run, alerts_acked: u64) -> bool {
        let fresh = self.reading.as_ref().is_some_and(|reading| !reading.stale) && !run.events.is_empty();
        let early = fresh && run.alerts_first > alerts_acked && !self.waited;
        if early {
            self.reading = None;
            self.hold(run.alerts_first);
        }
        self.waited = early;
        early
    }

    /// What the outbox had; `Some` is to be sent.
    pub fn rows(&mut self, run: Run, now: Instant) -> Option<Run> {
        let reading = self.reading.take()?;
        if reading.stale || run.first_seq.checked_sub(run.skipped) != Some(self.next) {
            return None;
        }
        let Some(more) = u64::try_from(run.events.len()).ok().and_then(|count| count.checked_sub(1)) else {
            self.empty_at = Some(reading.last);
            self.waits_since = (self.last > reading.last).then_some(now);
            return None;
        };
        let last = run.first_seq.saturating_add(more);
        if self.in_flight.is_empty() {
            self.moved_at = now;
        }
        self.in_flight.push_back(Sent { start: self.next, first: run.first_seq, last });
        self.next = last.saturating_add(1);
        self.sent_last = self.sent_last.max(last);
        self.last = self.last.max(last);
        if self.next > reading.last {
            self.waits_since = (self.last >= self.next).then_some(now);
        } // else the rest has waited as long as these: it goes at once
        Some(run)
    }

    /// What follows from the state and the time.
    pub fn want(&mut self, limits: &Limits, now: Instant) -> Want {
        if self.gives_up_at(limits).is_some_and(|at| now >= at) {
            let (class, wait) = (self.class, limits.ack_wait_max.as_secs());
            return Want::GiveUp(format!("the collector answered nothing on class {class} for {wait} s"));
        }
        let full = self.in_flight.len() >= self.in_flight_max;
        let waits = self.reading.is_some() || self.setting_aside || self.held_until.is_some();
        if waits || full || self.has_nothing() {
            return Want::Nothing;
        }
        let at = self.waits_since.map_or(now, |since| since + limits.telemetry_wait_max);
        let waits = self.last - self.next + 1;
        if self.class == Class::Telemetry && waits < limits.telemetry_events_min && now < at {
            return Want::Wake(at);
        }
        self.reading = Some(Reading { last: self.last, stale: false });
        Want::Read { class: self.class, from: self.next }
    }

    /// When waiting for an answer ends.
    #[must_use]
    pub fn gives_up_at(&self, limits: &Limits) -> Option<Instant> {
        (!self.in_flight.is_empty()).then(|| self.moved_at + limits.ack_wait_max)
    }

    fn go_back(&mut self, to: u64, now: Instant) {
        self.in_flight.clear();
        self.next = to;
        self.empty_at = None;
        self.moved_at = now;
        if let Some(reading) = &mut self.reading {
            reading.stale = true;
        }
        // What was sent once does not wait for company again.
        self.waits_since = None;
    }
}
