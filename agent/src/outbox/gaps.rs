//! Gap events that grow: a loss that goes on for a week is one event, not one for every commit.
//!
//! Pure. `db` keeps the table of those that may still grow and writes what is decided here. A gap grows until it is
//! read for sending; from then on it may be on the collector's disk and is never changed again.

use prost::Message;
use vidette_protocol::wire::{self, GapReason, event::Kind};

/// Gaps of others (sensors, detection) that are kept one by one; beyond it they are added up by reason.
pub const GAPS_APART_MAX: u64 = 256;

/// A gap that may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growing {
    /// [`GapReason`].
    pub reason: i32,
    /// Number of the class on the wire; 0 when it is of none.
    pub class: i32,
    /// Its row in `alert`.
    pub seq: u64,
}

/// Whether a gap says which of the outbox's numbers will never come.
#[must_use]
pub fn explains_numbers(gap: &wire::Gap) -> bool {
    let reasons = [GapReason::OutboxBound, GapReason::Poison, GapReason::StoreRestored];
    gap.first_seq > 0 && reasons.iter().any(|&reason| reason as i32 == gap.reason)
}

/// The event in `body` with `more` added; `None` when it is not a gap event.
#[must_use]
pub fn grown(body: &[u8], more: &wire::Gap) -> Option<wire::Event> {
    let mut event = wire::Event::decode(body).ok()?;
    let Some(Kind::Gap(gap)) = &mut event.kind else { return None };
    add(gap, more);
    Some(event)
}

fn add(gap: &mut wire::Gap, more: &wire::Gap) {
    gap.count = gap.count.zip(more.count).map(|(sum, more)| sum.saturating_add(more));
    if more.first_seq > 0 {
        gap.first_seq = if gap.first_seq > 0 { gap.first_seq.min(more.first_seq) } else { more.first_seq };
        gap.last_seq = gap.last_seq.max(more.last_seq);
    }
    gap.from_unix_ns = gap.from_unix_ns.min(more.from_unix_ns);
    gap.to_unix_ns = gap.to_unix_ns.max(more.to_unix_ns);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn gap(count: Option<u64>, first_seq: u64, last_seq: u64, time: i64) -> wire::Gap {
        wire::Gap { count, first_seq, last_seq, from_unix_ns: time, to_unix_ns: time, ..Default::default() }
    }

    #[test]
    fn numbers_times_and_counts_are_added_up() {
        let event = wire::Event { kind: Some(Kind::Gap(gap(Some(3), 5, 9, 50))), ..Default::default() };
        let more = grown(&event.encode_to_vec(), &gap(Some(4), 2, 7, 80)).unwrap();
        let expected = wire::Gap { from_unix_ns: 50, to_unix_ns: 80, ..gap(Some(7), 2, 9, 0) };
        assert_eq!(more.kind, Some(Kind::Gap(expected)));
        let unknown = grown(&event.encode_to_vec(), &gap(None, 0, 0, 10)).unwrap();
        let expected = wire::Gap { from_unix_ns: 10, to_unix_ns: 50, ..gap(None, 5, 9, 0) };
        assert_eq!(unknown.kind, Some(Kind::Gap(expected)), "what nobody can know stays unknown");
        assert_eq!(grown(&wire::Event::default().encode_to_vec(), &gap(None, 0, 0, 1)), None);
    }
}
