//! Counters of every stage. What must hold of each: seen = passed + shed(by reason) + lost(by reason) + waiting;
//! `Counters::equations` says it exactly. Each stage counts a thing where it leaves it; two counters are not read
//! at one moment, so that the sides may differ by what is on its way while they are read.

use crate::progress::Progress;
use std::sync::atomic::{AtomicU64, Ordering};

/// One number. It only grows, unless its name says that something waits.
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

    /// Of those few that tell how many wait: how many.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
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
        pub struct Counters {
            /// Not counted but judged: see there.
            pub progress: Progress,
            $($(#[$doc])* pub $name: Counter),*
        }

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
    /// Observations that had their events: scanned, answered from the cache, or with nothing to scan.
    detection_passed,
    /// Merged with one of the same file that was waiting.
    detection_shed_coalesced,
    /// Met by a rescan in the state in which they were scanned already.
    detection_shed_known,
    /// Recorded without a scan: too many were waiting.
    detection_lost_queue,
    /// Recorded without a scan: the file could not be opened or looked at.
    detection_lost_unreadable,
    /// Recorded without a scan: there was no worker.
    detection_lost_worker,
    /// Observations that wait, or are being scanned, now.
    detection_waiting,
    /// Files scanned.
    detection_scanned,
    /// Files answered from the verdict cache.
    detection_cached,
    /// Observations recorded without a scan, for whichever reason.
    detection_unscanned,
    /// Processes that ran a chosen program, to look into their memory.
    memory_asked,
    /// Whose memory was scanned, whole or up to their share.
    memory_scanned,
    /// Ended, or running something else, when their time came.
    memory_gone,
    /// Beyond what may wait.
    memory_lost_queue,
    /// Could not be read, or had no worker, or the agent stopped.
    memory_unscanned,
    /// That wait, now.
    memory_waiting,
    /// Read of their memory.
    memory_bytes,
    /// Workers that died or were killed.
    worker_deaths,
    /// Rescans that ended.
    rescans,
    /// Files whose times they read.
    rescan_files,
    /// Files that they handed to detection.
    rescan_changed,
    /// Events made by detection.
    events_made,
    /// Events handed to the outbox.
    events_passed,
    /// Events of files and programs beyond what may wait for the outbox.
    events_shed_backlog,
    /// Events that nobody took: the outbox had ended.
    events_lost_closed,
    /// Events that wait for the outbox, without its channel, now.
    events_waiting,
    /// Events that were in the outbox when it was opened.
    outbox_found,
    /// Events taken by the outbox.
    outbox_seen,
    /// Events that the outbox made itself.
    outbox_made,
    /// Events committed to the outbox.
    outbox_appended,
    /// Detections of a rescan that had been committed before it.
    outbox_merged,
    /// Events beyond the limits of an event.
    outbox_lost_oversized,
    /// Events removed by the bound.
    outbox_lost_bound,
    /// Events that could not be read any more when the outbox was opened again.
    outbox_lost_damaged,
    /// Events acknowledged by the collector.
    outbox_acked,
    /// Events the collector refused, set aside.
    outbox_set_aside,
    /// Events that wait for the collector, now.
    outbox_waiting,
}

/// Two sides that must be the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Equation {
    /// In words of counters: `a + b = c + d`.
    pub text: String,
    /// What came.
    pub left: u64,
    /// What became of it.
    pub right: u64,
}

impl Equation {
    /// Whether the sides are the same. While the agent works, something may be between two counters.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.left == self.right
    }
}

macro_rules! equation {
    ($self:ident: $($left:ident)+ = $($right:ident)+) => {
        Equation {
            text: format!("{} = {}", [$(stringify!($left)),+].join(" + "), [$(stringify!($right)),+].join(" + ")),
            left: 0 $(+ $self.$left.get())+,
            right: 0 $(+ $self.$right.get())+,
        }
    };
}

impl Counters {
    /// What must hold of every stage, in path order.
    #[must_use]
    pub fn equations(&self) -> Vec<Equation> {
        vec![
            equation!(self: sensor_seen = sensor_passed sensor_shed_own sensor_shed_unwatched sensor_shed_duplicate
                sensor_lost_queue sensor_lost_kernel),
            equation!(self: detection_seen = detection_passed detection_shed_coalesced detection_shed_known
                detection_lost_queue detection_lost_unreadable detection_lost_worker detection_waiting),
            equation!(self: detection_unscanned = detection_lost_queue detection_lost_unreadable
                detection_lost_worker),
            equation!(self: memory_asked = memory_scanned memory_gone memory_lost_queue memory_unscanned
                memory_waiting),
            equation!(self: events_made = events_passed events_shed_backlog events_lost_closed events_waiting),
            equation!(self: outbox_seen outbox_made = outbox_appended outbox_merged outbox_lost_oversized),
            equation!(self: outbox_found outbox_appended = outbox_acked outbox_set_aside outbox_lost_bound
                outbox_lost_damaged outbox_waiting),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equation_says_its_counters_and_can_fail() {
        let counters = Counters::default();
        assert!(counters.equations().iter().all(Equation::holds));
        counters.events_made.add(3);
        counters.events_passed.add(2);
        let broken: Vec<Equation> =
            counters.equations().into_iter().filter(|equation| !equation.holds()).collect();
        let text = "events_made = events_passed + events_shed_backlog + events_lost_closed + events_waiting";
        assert_eq!(broken, [Equation { text: text.into(), left: 3, right: 2 }]);
    }
}
