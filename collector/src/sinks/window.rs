//! What was written to a receiver and is not settled yet. Pure: told of bytes and of time, it says how far the
//! cursor may move.
//!
//! Syslog has no acknowledgements, so "sent" needs a rule. An event is settled when
//! 1. the receiver's TCP has acknowledged every byte of it, and
//! 2. the connection then lived on for `SETTLE`, during which the receiver's program could read it.
//!
//! When a connection ends in any other way, everything unsettled is sent again on the next one, under the same id.
//! What this can't see: a receiver that accepts bytes, doesn't read them for longer than `SETTLE`, and then dies.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time a connection has to live on after the receiver's TCP has acknowledged an event.
pub const SETTLE: Duration = Duration::from_secs(5);
/// Pages that wait to be settled on one connection.
pub const MARKS_MAX: usize = 4096;

/// The bytes of one connection, page by page.
#[derive(Debug, Default)]
pub struct Window {
    written: u64,
    marks: VecDeque<Mark>,
}

/// The end of one page.
#[derive(Debug)]
struct Mark {
    id: u64,
    end: u64,
    acknowledged: Option<Instant>,
}

impl Window {
    /// No more pages before some are settled.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.marks.len() >= MARKS_MAX
    }

    /// Nothing is on the way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// A page whose last event is `id` was written; the connection has by now carried `written` bytes.
    pub fn put(&mut self, id: u64, written: u64) {
        self.written = written;
        self.marks.push_back(Mark { id, end: written, acknowledged: None });
    }

    /// Of all bytes written so far the receiver's TCP has not acknowledged `unacknowledged`.
    /// The id up to which everything is settled, when that moved.
    pub fn settle(&mut self, unacknowledged: u64, now: Instant) -> Option<u64> {
        let acknowledged = self.written.saturating_sub(unacknowledged);
        for mark in self.marks.iter_mut().take_while(|mark| mark.end <= acknowledged) {
            mark.acknowledged.get_or_insert(now);
        }
        let is_settled = |mark: &Mark| {
            mark.acknowledged.is_some_and(|since| now.saturating_duration_since(since) >= SETTLE)
        };
        let mut last = None;
        while self.marks.front().is_some_and(is_settled) {
            last = self.marks.pop_front().map(|mark| mark.id);
        }
        last
    }

    /// The receiver has read to the end and closed in turn: everything is settled.
    pub fn settle_all(&mut self) -> Option<u64> {
        let last = self.marks.back().map(|mark| mark.id);
        self.marks.clear();
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_acknowledged_and_lived_on_is_settled() {
        let start = Instant::now();
        let mut window = Window::default();
        window.put(10, 100);
        window.put(20, 200);
        assert_eq!(window.settle(100, start), None, "the first page was acknowledged just now");
        assert_eq!(window.settle(1, start + SETTLE), Some(10), "the second misses one byte");
        assert_eq!(window.settle(0, start + SETTLE), None);
        assert_eq!(window.settle(0, start + SETTLE * 2), Some(20));
        assert!(window.is_empty());
    }

    #[test]
    fn more_unacknowledged_than_written_settles_nothing() {
        let mut window = Window::default();
        window.put(10, 100);
        assert_eq!(window.settle(u64::MAX, Instant::now() + SETTLE), None);
    }

    #[test]
    fn an_orderly_end_settles_everything() {
        let mut window = Window::default();
        assert_eq!(window.settle_all(), None);
        window.put(10, 100);
        assert_eq!(window.settle_all(), Some(10));
    }
}
