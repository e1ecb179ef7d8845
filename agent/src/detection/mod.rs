//! Stage 2: what to scan and when; verdicts become events.
//!
//! ```text
//! Observation -> queue (coalesce, fair shares) -> verdicts or worker -> events -> backlog -> outbox
//!       ^ loss, folders that come into view -> rescan: what changed is looked at again
//!                                   by its time -> sweep: everything, with a worker of its own
//! ```
//!
//! One thread owns the queue, the worker and the backlog. It waits neither for the sensors nor, while it
//! has nothing but telemetry to send, for the outbox: what its queue can't take is recorded without a scan, counted,
//! told as a gap and looked at again; telemetry that can't be sent is counted and told. It waits for the outbox
//! only when too many alerts do.

/// Files, and those in folders, that a configuration names.
pub mod folders;
/// Where rules come from.
pub mod rules;
/// Digests that are known to be bad, beside the rules.
pub mod hashes;
/// A bounded map that forgets what was used longest ago.
pub mod lru;
/// Files below a folder that changed since a time.
pub mod walk;
/// Looks again at what may have been missed.
pub mod rescan;
/// Up to when everything was taken care of.
pub mod mark;
/// Verdicts that still hold.
pub mod verdicts;
/// Files that were looked at in the state they are in.
pub mod concluded;
/// Who gets the next turn among files of one class.
pub mod shares;
/// What waits to be scanned, in which order.
pub mod queue;
/// How urgent a file is, and whose work.
pub mod classes;
/// Verdicts and observations as events.
pub mod events;
/// Events that wait for the outbox.
pub mod backlog;
/// Whether rules are too slow.
pub mod slow;
/// Looks into the memory of processes.
pub mod memory;
/// Everything below some paths, with a budget.
pub mod sweep;
/// Rules and lists that are read anew.
pub mod reload;
/// The way out.
mod outgoing;
/// What was lost, and what follows from it.
mod losses;
/// The thread.
mod run;

use crate::host::Host;
use crate::sensors::Observation;
use crate::telemetry::Counters;
use crate::worker::poison::Poison;
use crate::worker::process::{Launcher, resident_bytes};
use crossbeam_channel::{Receiver, Sender};
use hashes::HashSources;
use reload::{Reloader, Settled};
use rescan::{Desk, Progress, Rescans, Wish};
use rules::RuleSources;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use sweep::schedule::{self, Sweeps};
use verdicts::Verdicts;
use vidette_protocol::wire;
use walk::Scope;

/// Events that wait for the outbox: the capacity for the channel that is handed to [`start`].
pub const EVENTS_QUEUE_MAX: usize = 1024;

/// How detection works.
#[derive(Debug)]
pub struct Config {
    /// Whose events these are.
    pub host: Host,
    /// Where rules come from.
    pub rules: RuleSources,
    /// Where hash lists come from.
    pub hashes: HashSources,
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
    /// Files that kill it.
    pub poison: Poison,
    /// Whose memory is looked into after they began to run; nobody's without.
    pub memory: Option<memory::on_exec::Config>,
    /// Where files are looked at again after a loss.
    pub scope: Scope,
    /// Where verdicts are kept.
    pub verdicts: verdicts::Place,
    /// When everything is looked at.
    pub sweep: schedule::Plan,
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
    /// Events that wait for the outbox, without its channel.
    pub events_waiting: usize,
    /// Files were shed, and the rescan for them was not asked for yet.
    pub loss_untold: bool,
    /// What the rescan does.
    pub rescan: Progress,
    /// What the sweep does.
    pub sweep: schedule::Snapshot,
    /// Version of the rules in use.
    pub rules_version: String,
    /// How many rules those are; 0 until they are compiled.
    pub rules_count: u32,
    /// One sentence for each error in rules, with file and line.
    pub rule_errors: Vec<String>,
    /// The hash lists in use.
    pub hashes: hashes::Summary,
    /// What became of requests to read rules and lists anew.
    pub reloads: Settled,
    /// Why scans take too long; empty while they do not.
    pub scan_time: String,
    /// Files that killed the worker and are not tried again.
    pub poisoned: usize,
}

/// The running stage.
#[derive(Debug)]
pub struct Detection {
    shared: Arc<Mutex<Snapshot>>,
    desk: Arc<Desk>,
    sweeps: schedule::Handle,
    reloader: Reloader,
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
    let (reloader, reloads) = Reloader::new(config.rules.clone(), config.hashes.clone());
    let rescans = Rescans::start(config.scope.clone())?;
    let desk = rescans.desk();
    let verdicts = Arc::new(Verdicts::at(&config.verdicts));
    let sweep = Sweeps::start(schedule::Setup {
        plan: config.sweep.clone(),
        host: config.host.clone(),
        launcher: config.launcher.try_clone()?,
        size_max_bytes: config.size_max_bytes,
        timeout: config.scan_timeout,
        poison: config.poison.clone(),
        verdicts: verdicts.clone(),
    })?;
    let sweeps = sweep.handle();
    let stage =
        run::Stage { counters, input, out, reloads, rescans, verdicts, sweep, shared: shared.clone() };
    let thread = std::thread::Builder::new().name("detection".into()).spawn(move || stage.run(config))?;
    Ok(Detection { shared, desk, sweeps, reloader, thread })
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
        self.reloader.ask(Some(sources), None);
    }

    /// Reads other hash lists and uses them when they are whole; the outcome is an event.
    pub fn reload_hashes(&self, sources: HashSources) {
        self.reloader.ask(None, Some(sources));
    }

    /// A way to have rules and lists read anew that outlives the handle.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Looks again at what changed since then, in everything that is watched; `reason` is one word. The outcome is an
    /// event.
    pub fn rescan(&self, reason: &'static str, since_unix_ns: i64) {
        self.desk.wish(Wish { reasons: vec![reason], since_unix_ns, hot: Vec::new() });
    }

    /// Looks at everything that is swept, now. Begin and end are events.
    pub fn sweep(&self) {
        self.sweeps.wish();
    }

    /// Whether its thread has ended; before [`Detection::join`] only by a fault.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// A way to ask how it is that outlives the handle.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge(self.shared.clone(), self.desk.clone(), self.sweeps.clone())
    }

    /// Waits until the stage has ended.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the detection stage panicked");
        }
    }
}

/// Tells how detection is to whoever shows it.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<Mutex<Snapshot>>, Arc<Desk>, schedule::Handle);

impl Gauge {
    /// How it is now.
    #[must_use]
    pub fn state(&self) -> Snapshot {
        // First: what the rescan hands over after this is in the queue that the snapshot counts, or still owed.
        let rescan = self.1.progress();
        let mut snapshot = lock(&self.0).clone();
        snapshot.rescan = rescan;
        snapshot.sweep = self.2.snapshot();
        snapshot.worker_resident_bytes = snapshot.worker_pid.map_or(0, resident_bytes);
        snapshot
    }
}

fn lock(shared: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    // A snapshot is whole whoever panicked while holding it.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
