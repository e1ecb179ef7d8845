//! What the reader tells the self-test: that it turns, that the connector speaks, and which of the agent's own
//! doings it saw. All of those are shed otherwise.
//!
//! Assumes that the reader must never wait: it counts, and offers sightings to a bounded channel while a canary
//! is out. Orders to listen again go the other way.

use crate::host::Moment;
use crate::sys::connector::{Message, What};
use crossbeam_channel::{Receiver, Sender};
use rustix::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sightings that wait for the self-test. One canary makes about four.
const SIGHTINGS_MAX: usize = 256;
/// Orders that wait for the reader.
const ORDERS_MAX: usize = 1;
/// How the name of every canary file begins.
pub(crate) const CANARY_PREFIX: &str = ".canary-";

/// Something of the agent's own that came back through the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// A file was closed after writing: device and inode.
    Written((u64, u64)),
    /// fanotify told of the canary's program: by which process.
    Ran(u32),
    /// The connector told of an exec of a child of the agent: which.
    Executed(u32),
    /// A file got a name that a canary may have: the last component.
    Named(Vec<u8>),
}

/// What the self-test wants of the reader.
#[derive(Debug)]
pub(crate) enum Order {
    /// The connector is deaf: drop it, listen anew.
    Reconnect {
        /// When it was last known to hear.
        since: Moment,
        /// What was not heard, for people.
        why: String,
    },
}

#[derive(Debug, Default)]
struct Shared {
    armed: AtomicBool,
    program_device: AtomicU64,
    program_inode: AtomicU64,
    turns: AtomicU64,
    messages: AtomicU64,
}

/// The reader's half.
#[derive(Debug)]
pub(crate) struct Witness {
    shared: Arc<Shared>,
    sightings: Sender<Sighting>,
    orders: Receiver<Order>,
}

/// The self-test's half.
#[derive(Debug)]
pub(crate) struct Proofs {
    shared: Arc<Shared>,
    sightings: Receiver<Sighting>,
    orders: Sender<Order>,
}

/// Both halves.
pub(crate) fn channel() -> (Witness, Proofs) {
    let shared = Arc::new(Shared::default());
    let (send_sighting, sightings) = crossbeam_channel::bounded(SIGHTINGS_MAX);
    let (send_order, orders) = crossbeam_channel::bounded(ORDERS_MAX);
    let witness = Witness { shared: shared.clone(), sightings: send_sighting, orders };
    (witness, Proofs { shared, sightings, orders: send_order })
}

impl Witness {
    /// The reader has begun a turn; what it is asked to do, if anything.
    pub(crate) fn turned(&self) -> Option<Order> {
        self.shared.turns.fetch_add(1, Ordering::Relaxed);
        self.orders.try_recv().ok()
    }

    /// The connector brought messages. Answers to whoever listens are no events.
    pub(crate) fn heard(&self, messages: &[Message]) {
        let events = messages.iter().filter(|message| !matches!(message.what, What::Acknowledged(_)));
        self.shared.messages.fetch_add(events.count() as u64, Ordering::Relaxed);
    }

    /// A child of the agent runs a program, says the connector.
    pub(crate) fn executed(&self, pid: u32) {
        self.tell(|| Some(Sighting::Executed(pid)));
    }

    /// The agent closed a file, says fanotify.
    pub(crate) fn written(&self, file: impl AsFd) {
        self.tell(|| rustix::fs::fstat(file).ok().map(|stat| Sighting::Written((stat.st_dev, stat.st_ino))));
    }

    /// Somebody opened this program to run it, says fanotify.
    pub(crate) fn ran(&self, pid: u32, key: (u64, u64)) {
        let program = || {
            let [device, inode] = [&self.shared.program_device, &self.shared.program_inode];
            (device.load(Ordering::Relaxed), inode.load(Ordering::Relaxed))
        };
        self.tell(|| (key == program()).then_some(Sighting::Ran(pid)));
    }

    /// The agent gave a file this name (its last component), says whoever watches names.
    pub(crate) fn named(&self, name: &[u8]) {
        self.tell(|| name.starts_with(CANARY_PREFIX.as_bytes()).then(|| Sighting::Named(name.to_vec())));
    }

    fn tell(&self, sighting: impl FnOnce() -> Option<Sighting>) {
        if self.shared.armed.load(Ordering::Acquire)
            && let Some(sighting) = sighting()
        {
            let _ = self.sightings.try_send(sighting); // a full channel has a canary's worth many times over
        }
    }
}

impl Proofs {
    /// From now on the agent's own doings are told, and runs of this program. What was told before is forgotten.
    pub(crate) fn arm(&self, program: (u64, u64)) {
        while self.sightings.try_recv().is_ok() {}
        self.shared.program_device.store(program.0, Ordering::Relaxed);
        self.shared.program_inode.store(program.1, Ordering::Relaxed);
        self.shared.armed.store(true, Ordering::Release);
    }

    /// No longer.
    pub(crate) fn disarm(&self) {
        self.shared.armed.store(false, Ordering::Release);
    }

    /// Where sightings arrive.
    pub(crate) fn sightings(&self) -> &Receiver<Sighting> {
        &self.sightings
    }

    /// How often the reader has turned.
    pub(crate) fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }

    /// How many events the connector has brought.
    pub(crate) fn messages(&self) -> u64 {
        self.shared.messages.load(Ordering::Relaxed)
    }

    /// Asks the reader to listen anew. One that was asked already need not be asked again.
    pub(crate) fn reconnect(&self, since: Moment, why: String) {
        let _ = self.orders.try_send(Order::Reconnect { since, why });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_an_armed_test_hears_and_only_of_its_own_program() {
        let (witness, proofs) = channel();
        witness.executed(1);
        proofs.arm((7, 8));
        witness.executed(2);
        witness.ran(3, (7, 9));
        witness.ran(4, (7, 8));
        witness.named(b"other");
        witness.named(b".canary-1");
        proofs.disarm();
        witness.executed(5);
        let told: Vec<Sighting> = proofs.sightings().try_iter().collect();
        let named = Sighting::Named(b".canary-1".to_vec());
        assert_eq!(told, [Sighting::Executed(2), Sighting::Ran(4), named]);
        // What one test left behind is nothing to the next.
        proofs.arm((7, 8));
        witness.executed(6);
        proofs.arm((7, 8));
        assert!(proofs.sightings().is_empty());
    }

    #[test]
    fn a_reader_is_never_made_to_wait() {
        let (witness, proofs) = channel();
        proofs.arm((0, 0));
        for pid in 0..u32::try_from(SIGHTINGS_MAX).unwrap() + 10 {
            witness.executed(pid);
        }
        assert_eq!(proofs.sightings().len(), SIGHTINGS_MAX);
        proofs.reconnect(Moment { unix_ns: 1, uptime_ns: 1 }, "one".into());
        proofs.reconnect(Moment { unix_ns: 2, uptime_ns: 2 }, "two".into());
        assert!(matches!(witness.turned(), Some(Order::Reconnect { why, .. }) if why == "one"));
        assert!(witness.turned().is_none());
        assert_eq!(proofs.turns(), 2);
    }

    #[test]
    fn an_answer_to_a_listener_is_no_event() {
        let (witness, proofs) = channel();
        let message = |what| Message { seq: 0, cpu: 0, monotonic_ns: 0, what };
        witness.heard(&[
            message(What::Acknowledged(0)),
            message(What::Other),
            message(What::Exec { pid: 1 }),
        ]);
        assert_eq!(proofs.messages(), 2);
    }
}
