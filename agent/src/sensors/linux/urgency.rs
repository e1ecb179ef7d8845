//! How long the reader may stay at real-time priority: a budget of work, paid back by sleep.
//!
//! The decision is pure, and so is the clock. Assumes to be told before and after each time that the thread
//! waits for the kernel. What it decides, the reader does (`sys::schedule`).

use std::time::{Duration, Instant};

/// Work without sleep after which the reader is ordinary again. One that sleeps as long as it works stays.
pub(crate) const WORK_MAX: Duration = Duration::from_millis(100);

/// What to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// SCHED_RR.
    Realtime,
    /// SCHED_OTHER.
    Ordinary,
}

/// The budget.
#[derive(Debug)]
pub(crate) struct Urgency {
    permitted: bool,
    realtime: bool,
    debt: Duration,
    since: Instant,
}

impl Urgency {
    /// `permitted`: the thread is at real-time priority now and may be again.
    pub(crate) fn new(permitted: bool, now: Instant) -> Self {
        Self { permitted, realtime: permitted, debt: Duration::ZERO, since: now }
    }

    /// It has worked since it was last told of.
    pub(crate) fn worked(&mut self, now: Instant) -> Option<Change> {
        self.debt = (self.debt + self.elapsed(now)).min(WORK_MAX);
        let change = self.realtime && self.debt >= WORK_MAX;
        self.become_if(change, Change::Ordinary)
    }

    /// It has slept since it was last told of: once all work is paid back it is urgent again.
    pub(crate) fn slept(&mut self, now: Instant) -> Option<Change> {
        self.debt = self.debt.saturating_sub(self.elapsed(now));
        let change = self.permitted && !self.realtime && self.debt.is_zero();
        self.become_if(change, Change::Realtime)
    }

    /// What was decided last was refused.
    pub(crate) fn refused(&mut self) {
        (self.permitted, self.realtime) = (false, false);
    }

    fn elapsed(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(std::mem::replace(&mut self.since, now))
    }

    fn become_if(&mut self, is: bool, change: Change) -> Option<Change> {
        if is {
            self.realtime = change == Change::Realtime;
        }
        is.then_some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds of work, then of sleep, again and again; when it changed.
    fn play(permitted: bool, work_ms: u64, sleep_ms: u64, rounds: u64) -> Vec<(u64, Change)> {
        let start = Instant::now();
        let mut urgency = Urgency::new(permitted, start);
        let (mut now, mut changes) = (0, Vec::new());
        for _ in 0..rounds {
            now += work_ms;
            changes.extend(urgency.worked(start + Duration::from_millis(now)).map(|change| (now, change)));
            now += sleep_ms;
            if sleep_ms > 0 {
                changes.extend(urgency.slept(start + Duration::from_millis(now)).map(|change| (now, change)));
            }
        }
        changes
    }

    #[test]
    fn continuous_work_ends_it_after_a_tenth_of_a_second() {
        assert_eq!(play(true, 5, 0, 1000), [(100, Change::Ordinary)]);
        assert_eq!(play(true, 99, 0, 1), []);
    }

    #[test]
    fn whoever_sleeps_as_long_as_it_works_stays_urgent() {
        assert_eq!(play(true, 20, 20, 1000), []);
        assert_eq!(play(true, 1, 90, 1000), []);
    }

    #[test]
    fn naps_do_not_hide_a_storm_and_sleep_makes_it_urgent_again() {
        let changes = play(true, 9, 1, 1000);
        assert_eq!(changes.first(), Some(&(129, Change::Ordinary)));
        assert_eq!(changes.len(), 1, "{changes:?}");
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut urgency = Urgency::new(true, start);
        assert_eq!(urgency.worked(after(500)), Some(Change::Ordinary));
        assert_eq!(urgency.slept(after(599)), None);
        assert_eq!(urgency.slept(after(600)), Some(Change::Realtime));
        assert_eq!(urgency.worked(after(699)), None);
        assert_eq!(urgency.worked(after(700)), Some(Change::Ordinary));
        urgency.refused();
        assert_eq!(urgency.slept(after(2000)), None);
    }

    #[test]
    fn what_is_not_permitted_is_not_tried() {
        assert_eq!(play(false, 200, 200, 10), []);
    }
}
