//! Events that wait for the outbox, so that detection never waits for it while it has telemetry to send. Pure.
//!
//! Alerts (detections, gaps, health, audit) have room of their own and go first; they are never shed: when even
//! their room is full, the caller waits. Telemetry beyond its room is shed, and the caller counts it.

use prost::Message as _;
use std::collections::VecDeque;
use vidette_protocol::id::Class;
use vidette_protocol::wire;

/// Telemetry events that wait.
pub const TELEMETRY_MAX: usize = 8192;
/// Their bytes, encoded.
pub const TELEMETRY_BYTES_MAX: usize = 4 << 20;
/// Alerts that wait.
pub const ALERTS_MAX: usize = 1024;
/// Their bytes, encoded.
pub const ALERTS_BYTES_MAX: usize = 4 << 20;

const _: () = assert!(vidette_protocol::limits::EVENT_BYTES_MAX < ALERTS_BYTES_MAX);

/// What waits.
#[derive(Debug, Default)]
pub struct Backlog {
    alerts: Line,
    telemetry: Line,
}

#[derive(Debug, Default)]
struct Line {
    events: VecDeque<(wire::Event, usize)>,
    bytes: usize,
}

impl Backlog {
    /// Takes an event; gives it back when there is no room for its class.
    ///
    /// # Errors
    /// The event, boxed by the caller's choice: an alert has to be sent at once, telemetry is shed.
    #[allow(clippy::result_large_err)] // It is handed on at once, and seldom.
    pub fn push(&mut self, event: wire::Event) -> Result<(), wire::Event> {
        match class(&event) {
            Class::Alert => self.alerts.push(event, ALERTS_MAX, ALERTS_BYTES_MAX),
            Class::Telemetry => self.telemetry.push(event, TELEMETRY_MAX, TELEMETRY_BYTES_MAX),
        }
    }

    /// The next one to send: alerts first, then the oldest.
    pub fn pop(&mut self) -> Option<wire::Event> {
        self.alerts.pop().or_else(|| self.telemetry.pop())
    }

    /// Puts back what was popped and could not be sent.
    pub fn put_back(&mut self, event: wire::Event) {
        match class(&event) {
            Class::Alert => self.alerts.put_back(event),
            Class::Telemetry => self.telemetry.put_back(event),
        }
    }

    /// Events that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.alerts.events.len() + self.telemetry.events.len()
    }

    /// None waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The class of an event; one without a kind is not told apart from an alert.
#[must_use]
pub fn class(event: &wire::Event) -> Class {
    Class::of(event).unwrap_or(Class::Alert)
}

impl Line {
    #[allow(clippy::result_large_err)] // As above.
    fn push(&mut self, event: wire::Event, count_max: usize, bytes_max: usize) -> Result<(), wire::Event> {
        let bytes = event.encoded_len();
        if self.events.len() >= count_max || self.bytes + bytes > bytes_max {
            return Err(event);
        }
        self.bytes += bytes;
        self.events.push_back((event, bytes));
        Ok(())
    }

    fn pop(&mut self) -> Option<wire::Event> {
        let (event, bytes) = self.events.pop_front()?;
        self.bytes -= bytes;
        Some(event)
    }

    fn put_back(&mut self, event: wire::Event) {
        let bytes = event.encoded_len();
        self.bytes += bytes;
        self.events.push_front((event, bytes));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use vidette_protocol::wire::event::Kind;

    fn event(alert: bool, bytes: usize) -> wire::Event {
        let kind = if alert {
            Kind::Gap(wire::Gap { detail: "x".repeat(bytes), ..Default::default() })
        } else {
            Kind::File(wire::FileEvent { detail: "x".repeat(bytes), ..Default::default() })
        };
        wire::Event { kind: Some(kind), ..Default::default() }
    }

    #[test]
    fn each_class_has_its_own_room_and_alerts_go_first() {
        let mut backlog = Backlog::default();
        let telemetry = (0..).take_while(|_| backlog.push(event(false, 10)).is_ok()).count();
        let alerts = (0..).take_while(|_| backlog.push(event(true, 10)).is_ok()).count();
        assert_eq!((telemetry, alerts), (TELEMETRY_MAX, ALERTS_MAX));
        let first = backlog.pop().unwrap();
        assert_eq!(class(&first), Class::Alert);
        backlog.put_back(first);
        let order: Vec<Class> = std::iter::from_fn(|| backlog.pop()).map(|event| class(&event)).collect();
        assert_eq!(order.iter().filter(|class| **class == Class::Alert).count(), ALERTS_MAX);
        assert!(order[..ALERTS_MAX].iter().all(|class| *class == Class::Alert));
    }

    #[test]
    fn its_bytes_are_bounded_and_come_to_nothing_when_it_is_empty() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut backlog = Backlog::default();
            for _ in 0..5_000 {
                let _ = backlog.push(event(random.random_bool(0.3), random.random_range(0..20_000)));
                if random.random_bool(0.4) {
                    backlog.pop();
                }
                assert!(backlog.alerts.bytes <= ALERTS_BYTES_MAX, "seed {seed}");
                assert!(backlog.telemetry.bytes <= TELEMETRY_BYTES_MAX, "seed {seed}");
            }
            while backlog.pop().is_some() {}
            assert_eq!(
                (backlog.alerts.bytes, backlog.telemetry.bytes, backlog.len()),
                (0, 0, 0),
                "seed {seed}"
            );
        }
    }
}
