//! What can be asked of the outbox's database, and what it answers.
//!
//! Plain data: made by `mod`'s handle, carried by the owner, done by `db`.

use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire;

/// What can be asked of the database.
#[derive(Debug, Clone)]
pub enum Work {
    /// New events, in this order.
    Append(Vec<wire::Event>),
    /// The epoch and the numbers of both classes.
    State,
    /// A run of consecutive events from this number on.
    Read {
        /// Which numbers.
        class: Class,
        /// The first number wanted.
        from: u64,
        /// All events of the run together. Bytes; at most [`super::READ_BYTES_MAX`].
        bytes_max: usize,
    },
    /// The collector has committed everything up to a number.
    Forget {
        /// Which numbers.
        class: Class,
        /// Ignored when it is not the current one.
        epoch: u64,
        /// The last number it has.
        upto: u64,
    },
    /// The collector refused these for good.
    SetAside {
        /// Which numbers.
        class: Class,
        /// Ignored when it is not the current one.
        epoch: u64,
        /// The first refused.
        first: u64,
        /// The last refused.
        last: u64,
        /// [`wire::RejectCode`].
        code: i32,
        /// The collector's words.
        reason: String,
    },
    /// The collector has less than it once acknowledged.
    Restored {
        /// Which numbers.
        class: Class,
        /// Ignored when it is not the current one.
        epoch: u64,
        /// What it has now.
        durable: u64,
    },
    /// Number everything that waits anew, from 1, under a new random epoch.
    NewEpoch,
    /// The epoch and the numbers for this agent. When they were another's, as before this host joined anew, what waits is
    /// numbered anew first: of the other's numbers the collector knows nothing here.
    StateFor(AgentId),
}

/// What comes back, in the order of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, or nothing to do.
    Done,
    /// For [`Work::State`] and [`Work::StateFor`].
    State(State),
    /// For [`Work::Read`].
    Run(Run),
    /// For [`Work::NewEpoch`].
    Epoch(u64),
}

/// Epoch and numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Random, new whenever the database is new.
    pub epoch: u64,
    /// Both classes, in the order of [`Class::ALL`].
    pub classes: Vec<ClassState>,
}

/// Numbers of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassState {
    /// Which.
    pub class: Class,
    /// Everything up to here was acknowledged; 0 when nothing.
    pub acked: u64,
    /// The first event that waits; the next number to be given when none does.
    pub first_unacked: u64,
    /// The last number given; 0 when none.
    pub last: u64,
}

/// Consecutive events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Of which outbox.
    pub epoch: u64,
    /// The number of the first event; the number asked for when there is none.
    pub first_seq: u64,
    /// Numbers right before it, back to the one asked for, that will never come.
    pub skipped: u64,
    /// Alerts up to this number should arrive before telemetry that skips numbers: the gap that explains them is
    /// one of these. 0 when it does not matter.
    pub alerts_first: u64,
    /// Encoded events; empty when nothing waits.
    pub events: Vec<Vec<u8>>,
}

/// What one `Db::apply` changed, for the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events committed, gaps included.
    pub appended: u64,
    /// Events of the outbox's own: gaps, health.
    pub made: u64,
    /// Events removed by the bound.
    pub lost: u64,
    /// Events beyond the limits of an event.
    pub oversized: u64,
    /// Detections of a rescan that had been committed before it, and gaps added to one that grows.
    pub merged: u64,
    /// Events acknowledged.
    pub acked: u64,
    /// Events set aside.
    pub set_aside: u64,
}
