//! What this stage counts since the start. Read by `outside`; nothing decides by it.
//!
//! One counter a fact, none an agent: `Fleet` knows what one agent did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vidette_protocol::wire::{ToAgent, ToCollector, to_agent, to_collector};

/// The handle. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    open: AtomicU64,
    batches: AtomicU64,
    batch_bytes: AtomicU64,
    statuses: AtomicU64,
    acks: AtomicU64,
    nacks: AtomicU64,
    rejects: AtomicU64,
    strangers_refused: AtomicU64,
    agents_refused: AtomicU64,
}

/// As of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections now, from the first packet on: handshakes, joins and sessions.
    pub open: u64,
    /// Batches that came, those sent again too.
    pub batches: u64,
    /// Bytes of their events, compressed as they came.
    pub batch_bytes: u64,
    /// Heartbeats that came.
    pub statuses: u64,
    /// Acks sent.
    pub acks: u64,
    /// Nacks sent: runs that did not follow what is stored.
    pub nacks: u64,
    /// Rejects sent: events that can't be stored.
    pub rejects: u64,
    /// Connections that ended before anybody knew whose they were.
    pub strangers_refused: u64,
    /// Connections of known agents that were refused or cut off.
    pub agents_refused: u64,
}

/// One open connection; dropping it says that it is closed.
#[derive(Debug)]
pub(super) struct Open(Tally);

impl Tally {
    /// What was counted up to now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            open: read(&self.0.open),
            batches: read(&self.0.batches),
            batch_bytes: read(&self.0.batch_bytes),
            statuses: read(&self.0.statuses),
            acks: read(&self.0.acks),
            nacks: read(&self.0.nacks),
            rejects: read(&self.0.rejects),
            strangers_refused: read(&self.0.strangers_refused),
            agents_refused: read(&self.0.agents_refused),
        }
    }

    pub(super) fn open(&self) -> Open {
        add(&self.0.open, 1);
        Open(self.clone())
    }

    /// An agent said something.
    pub(super) fn heard(&self, message: &ToCollector) {
        match &message.message {
            Some(to_collector::Message::Batch(batch)) => {
                add(&self.0.batches, 1);
                add(&self.0.batch_bytes, batch.events.len() as u64);
            }
            Some(to_collector::Message::Status(_)) => add(&self.0.statuses, 1),
            Some(
                to_collector::Message::Hello(_)
                | to_collector::Message::Renew(_)
                | to_collector::Message::RootsKept(_),
            )
            | None => {}
        }
    }

    /// It was answered.
    pub(super) fn answered(&self, message: &ToAgent) {
        match &message.message {
            Some(to_agent::Message::Ack(_)) => add(&self.0.acks, 1),
            Some(to_agent::Message::Nack(_)) => add(&self.0.nacks, 1),
            Some(to_agent::Message::Reject(_)) => add(&self.0.rejects, 1),
            Some(
                to_agent::Message::Welcome(_)
                | to_agent::Message::Refuse(_)
                | to_agent::Message::Renewed(_)
                | to_agent::Message::RenewRefused(_)
                | to_agent::Message::Roots(_),
            )
            | None => {}
        }
    }

    pub(super) fn stranger_refused(&self) {
        add(&self.0.strangers_refused, 1);
    }

    pub(super) fn agent_refused(&self) {
        add(&self.0.agents_refused, 1);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vidette_protocol::wire;

    #[test]
    fn each_message_moves_its_own_counter_and_a_closed_connection_is_not_open() {
        let tally = Tally::default();
        let (one, two) = (tally.open(), tally.clone().open());
        let batch = wire::Batch { events: vec![0; 7], ..Default::default() };
        tally.heard(&ToCollector { message: Some(to_collector::Message::Batch(batch)) });
        tally.heard(&ToCollector { message: Some(to_collector::Message::Status(wire::Status::default())) });
        tally.heard(&ToCollector { message: None });
        tally.answered(&ToAgent { message: Some(to_agent::Message::Ack(wire::Ack::default())) });
        tally.answered(&ToAgent { message: Some(to_agent::Message::Nack(wire::Nack::default())) });
        tally.answered(&ToAgent { message: Some(to_agent::Message::Reject(wire::Reject::default())) });
        tally.stranger_refused();
        drop(one);
        let expected = Totals {
            open: 1,
            batches: 1,
            batch_bytes: 7,
            statuses: 1,
            acks: 1,
            nacks: 1,
            rejects: 1,
            strangers_refused: 1,
            agents_refused: 0,
        };
        assert_eq!(tally.totals(), expected);
        drop(two);
        assert_eq!(tally.totals().open, 0);
    }
}
