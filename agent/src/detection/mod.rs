//! Stage 2: what to scan and when; verdicts become events.
//!
//! ```text
//! Observation -> queue (coalesce, exec first) -> cache or worker -> events -> outbox
//! ```
//!
//! One thread owns the queue, the cache and the worker. It never waits for the sensors: what its queue can't take is
//! recorded without a scan, counted, and told as a gap. It does wait for the outbox.

/// Where rules come from.
pub mod rules;
/// A bounded map that forgets what was used longest ago.
pub mod lru;
/// What changed while nobody watched.
pub mod catch_up;
/// Up to when everything was taken care of.
pub mod mark;
/// Verdicts that still hold.
pub mod cache;
/// What waits to be scanned, in which order.
pub mod queue;
/// Verdicts and observations as events.
pub mod events;
/// The thread.
mod run;

use crate::host::Host;
use crate::sensors::Observation;
use crate::telemetry::Counters;
use crate::worker::process::{Launcher, resident_bytes};
use crossbeam_channel::{Receiver, Sender, bounded};
use rules::RuleSources;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vidette_protocol::wire;

/// Events that wait for the outbox: the capacity for the channel that is handed to [`start`].
pub const EVENTS_QUEUE_MAX: usize = 1024;
/// Requests for other rules that wait.
const RELOADS_MAX: usize = 4;

/// How detection works.
#[derive(Debug)]
pub struct Config {
    /// Whose events these are.
    pub host: Host,
    /// Where rules come from.
    pub rules: RuleSources,
    /// Above it only head and tail of a file are scanned. Bytes.
    pub size_max_bytes: u64,
    /// When a scan is given up.
    pub scan_timeout: Duration,
    /// Scans in flight.
    pub scans_parallel: usize,
    /// Also emit an event for every file and process that is seen.
    pub telemetry: bool,
    /// What the worker is started from.
    pub launcher: Launcher,
}

/// What others may know of detection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The worker's process id, when there is one.
    pub worker_pid: Option<u32>,
    /// What the worker has in memory. Bytes.
    pub worker_resident_bytes: u64,
    /// Files that wait or are being scanned.
    pub queue_length: usize,
    /// Version of the rules in use.
    pub rules_version: String,
    /// How many rules those are; 0 until they are compiled.
    pub rules_count: u32,
    /// One sentence for each error in rules, with file and line.
    pub rule_errors: Vec<String>,
    /// Files that killed the worker and are not tried again.
    pub poisoned: usize,
}

/// The running stage.
#[derive(Debug)]
pub struct Detection {
    shared: Arc<Mutex<Snapshot>>,
    reload: Sender<RuleSources>,
    thread: JoinHandle<()>,
}

/// Starts the stage. It ends when `input` closes, after finishing what is queued, and drops `out` then.
///
/// # Errors
/// Its thread could not be started. Bad rules are no error: they are events.
pub fn start(
    config: Config,
    counters: Arc<Counters>,
    input: Receiver<Observation>,
    out: Sender<wire::Event>,
) -> anyhow::Result<Detection> {
    let shared = Arc::new(Mutex::new(Snapshot::default()));
    let (reload, reloads) = bounded(RELOADS_MAX);
    let stage = run::Stage { counters, input, out, reloads, shared: shared.clone() };
    let thread = std::thread::Builder::new().name("detection".into()).spawn(move || stage.run(config))?;
    Ok(Detection { shared, reload, thread })
}

impl Detection {
    /// Version of the rules in use; empty until they were read.
    #[must_use]
    pub fn rules_version(&self) -> String {
        lock(&self.shared).rules_version.clone()
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> Snapshot {
        self.gauge().state()
    }

    /// Reads and uses other rules; the outcome is an event.
    pub fn reload_rules(&self, sources: RuleSources) {
        // Closed: the stage has ended and needs no rules. Full: waits, because no request may be lost.
        let _ = self.reload.send(sources);
    }

    /// Whether its thread has ended; before [`Detection::join`] only by a fault.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// A way to ask how it is that outlives the handle.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge(self.shared.clone())
    }

    /// Waits until the stage has ended.
    pub fn join(self) {
        drop(self.reload);
        if self.thread.join().is_err() {
            tracing::error!("the detection stage panicked");
        }
    }
}

/// Tells how detection is to whoever shows it.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<Mutex<Snapshot>>);

impl Gauge {
    /// How it is now.
    #[must_use]
    pub fn state(&self) -> Snapshot {
        let mut snapshot = lock(&self.0).clone();
        snapshot.worker_resident_bytes = snapshot.worker_pid.map_or(0, resident_bytes);
        snapshot
    }
}

fn lock(shared: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    // A snapshot is whole whoever panicked while holding it.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
