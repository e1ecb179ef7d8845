//! Counters of every stage. The equation that must hold: seen = passed + shed(by reason) + lost(by reason).

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// All counters of the agent, shared by `Arc`. Each stage adds to its own.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Counter),* }

        impl Counters {
            /// Names and values, in path order.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get())),*]
            }
        }
    };
}

counters! {
    /// Events read from the kernel or a portable sensor.
    sensor_seen,
    /// Observations handed to detection.
    sensor_passed,
    /// The agent's own doings.
    sensor_shed_own,
    /// Outside the watched paths, or not a regular file.
    sensor_shed_unwatched,
    /// Told twice by the kernel: a link that a close-write told of already, a file under an overlay.
    sensor_shed_duplicate,
    /// Detection's queue was full.
    sensor_lost_queue,
    /// The kernel said that it dropped some, each time it said so.
    sensor_lost_kernel,
    /// Observations taken by detection.
    detection_seen,
    /// Files scanned.
    detection_scanned,
    /// Answered from the verdict cache.
    detection_cached,
    /// Merged with one that was already waiting.
    detection_coalesced,
    /// Recorded without a scan.
    detection_unscanned,
    /// Workers that died or were killed.
    worker_deaths,
    /// Events committed to the outbox.
    outbox_appended,
    /// Detections of a catch-up that had been committed before it.
    outbox_merged,
    /// Events removed by the bound.
    outbox_lost_bound,
    /// Events acknowledged by the collector.
    outbox_acked,
    /// Events the collector refused, set aside.
    outbox_set_aside,
}
