//! How the writer does: how long commits take, whether it makes progress, why it can't write.
//!
//! The writer says it, `outside` and the commands read it. Every lock is held for a glance.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Upper ends of the histogram's buckets. Microseconds.
pub const BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];
/// Commits whose times are kept for the quantiles of the recent past.
pub const KEPT_MAX: usize = 1024;
/// And how old they may be.
pub const KEPT_AGE_MAX: Duration = Duration::from_secs(600);

/// What the writer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It waits for something to do.
    Idle,
    /// It has been with one group of requests for so long.
    Busy(Duration),
    /// Its thread has ended.
    Ended,
}

/// Times of commits. Microseconds where nothing else is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    /// Commits that took at most [`BUCKETS_US`], each bucket with all before it.
    pub buckets: [u64; BUCKETS_US.len()],
    /// Commits.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
    /// Commits that failed.
    pub failed: u64,
    /// Half of the recent commits took at most this; `None` without any.
    pub p50_us: Option<u64>,
    /// Nearly all of them did.
    pub p99_us: Option<u64>,
}

/// Shared between the writer and whoever asks.
#[derive(Debug)]
pub struct Commits {
    began: Instant,
    /// Milliseconds after `began`, plus 1; 0 while it waits.
    busy_ms: AtomicU64,
    ended: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    buckets: [u64; BUCKETS_US.len()],
    count: u64,
    sum: Duration,
    failed: u64,
    kept: VecDeque<(Instant, u64)>,
    failing: Option<String>,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            busy_ms: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            inner: Mutex::default(),
        }
    }
}

impl Commits {
    /// Work has begun.
    pub fn busy(&self) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.busy_ms.store(ms.saturating_add(1), Ordering::Relaxed);
    }

    /// It is done.
    pub fn idle(&self) {
        self.busy_ms.store(0, Ordering::Relaxed);
    }

    /// The thread ends, for whatever reason.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// What the writer is doing.
    #[must_use]
    pub fn work(&self) -> Work {
        if self.ended.load(Ordering::Relaxed) {
            return Work::Ended;
        }
        match self.busy_ms.load(Ordering::Relaxed) {
            0 => Work::Idle,
            since => Work::Busy(self.began.elapsed().saturating_sub(Duration::from_millis(since - 1))),
        }
    }

    /// A commit that took so long.
    pub fn committed(&self, took: Duration, now: Instant) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut inner = self.lock();
        inner.failing = None;
        inner.count += 1;
        inner.sum += took;
        if let Some(bucket) = BUCKETS_US.iter().position(|end| us <= *end)
            && let Some(count) = inner.buckets.get_mut(bucket)
        {
            *count += 1;
        }
        if inner.kept.len() >= KEPT_MAX {
            inner.kept.pop_front();
        }
        inner.kept.push_back((now, us));
    }

    /// A commit that failed.
    pub fn failed(&self, reason: &str) {
        let mut inner = self.lock();
        inner.failed += 1;
        inner.failing = Some(reason.to_owned());
    }

    /// The store was opened again: it can't be known yet whether it takes anything, but it may.
    pub fn reopened(&self) {
        self.lock().failing = None;
    }

    /// Why the store can't be written, as of the last try.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        self.lock().failing.clone()
    }

    /// All times up to now.
    #[must_use]
    pub fn times(&self, now: Instant) -> Times {
        let inner = self.lock();
        let young = |(at, _): &&(Instant, u64)| now.saturating_duration_since(*at) <= KEPT_AGE_MAX;
        let mut kept: Vec<u64> = inner.kept.iter().filter(young).map(|(_, us)| *us).collect();
        kept.sort_unstable();
        let mut times = Times {
            count: inner.count,
            sum: inner.sum,
            failed: inner.failed,
            p50_us: quantile(&kept, 50),
            p99_us: quantile(&kept, 99),
            ..Times::default()
        };
        let mut all = 0;
        for (bucket, count) in times.buckets.iter_mut().zip(inner.buckets) {
            all += count;
            *bucket = all;
        }
        times
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Sums and a ring: whole after every statement that matters.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nearest rank: the smallest value that `percent` of all do not exceed.
fn quantile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_is_below_them_and_quantiles_are_of_the_recent_past() {
        let commits = Commits::default();
        let start = Instant::now();
        for ms in 1..=100 {
            commits.committed(Duration::from_millis(ms), start);
        }
        commits.committed(Duration::from_secs(60), start);
        let times = commits.times(start);
        assert_eq!((times.count, times.buckets[0], times.buckets[1]), (101, 0, 1));
        assert_eq!(
            (times.buckets[4], times.buckets[7], times.buckets[13]),
            (10, 100, 100),
            "a minute is beyond"
        );
        assert_eq!((times.p50_us, times.p99_us), (Some(51_000), Some(100_000)));
        let later = commits.times(start + KEPT_AGE_MAX + Duration::from_secs(1));
        assert_eq!((later.count, later.p50_us), (101, None));
        for _ in 0..2 * KEPT_MAX {
            commits.committed(Duration::from_millis(2), start);
        }
        assert_eq!(commits.times(start).p99_us, Some(2_000));
        assert_eq!(commits.lock().kept.len(), KEPT_MAX);
    }

    #[test]
    fn a_failure_is_told_until_a_commit_or_a_new_start_of_the_store() {
        let commits = Commits::default();
        assert_eq!(commits.failing(), None);
        commits.failed("the disk is full");
        assert_eq!(commits.failing().as_deref(), Some("the disk is full"));
        commits.committed(Duration::from_millis(1), Instant::now());
        assert_eq!((commits.failing(), commits.times(Instant::now()).failed), (None, 1));
    }

    #[test]
    fn work_is_idle_busy_or_over() {
        let commits = Commits::default();
        assert_eq!(commits.work(), Work::Idle);
        commits.busy();
        assert!(matches!(commits.work(), Work::Busy(_)));
        commits.idle();
        assert_eq!(commits.work(), Work::Idle);
        commits.end();
        assert_eq!(commits.work(), Work::Ended);
    }
}
