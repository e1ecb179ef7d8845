//! Looks into the memory of processes that ran a chosen program, a while after they did: off unless paths are chosen.
//!
//! A thread of its own, with a worker of its own, so that no file waits for it. What does not fit in its queue is
//! counted. A process that has ended or runs something else by then is left alone. Detections go to the outbox.

use super::engine::{Engine, Meanwhile, Report};
use super::{Budget, How};
use crate::detection::events;
use crate::host::{Host, Moment};
use crate::sensors::inspect::{self, Identity};
use crate::telemetry::Counters;
use crate::worker::pool::{Output, Pool, Settings};
use crate::worker::process::Launcher;
use crate::worker::{RuleSet, compiler::Compiled, process::resident_bytes};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, HealthState, Trigger};

/// Processes that wait for their time.
pub const PENDING_MAX: usize = 1024;
/// Those that were just told.
const TOLD_MAX: usize = 256;
/// How often it looks whether there are rules, as long as there are none.
const RULES_TIME: Duration = Duration::from_millis(200);
/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// How it works.
#[derive(Debug)]
pub struct Config {
    /// Programs, and folders of programs, by absolute path.
    pub paths: Vec<Vec<u8>>,
    /// How long after it began to run. Programs unpack themselves.
    pub delay: Duration,
    /// What one process may cost.
    pub budget: Budget,
    /// What its worker is started from.
    pub launcher: Launcher,
    /// When the scan of one block is given up.
    pub scan_timeout: Duration,
}

/// A process that ran a chosen program.
#[derive(Debug, Clone, Copy)]
struct Ran {
    pid: u32,
    identity: Identity,
    due: Instant,
}

/// The newest rules, until the thread takes them.
type Slot = Arc<Mutex<Option<Arc<Compiled>>>>;

/// The handle, for the detection thread.
#[derive(Debug)]
pub(in crate::detection) struct OnExec {
    paths: Vec<Vec<u8>>,
    delay: Duration,
    told: Option<Sender<Ran>>,
    rules: Slot,
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl OnExec {
    /// Starts the thread. It waits for rules.
    pub(in crate::detection) fn start(
        config: Config,
        host: Host,
        counters: Arc<Counters>,
        out: Sender<wire::Event>,
    ) -> std::io::Result<Self> {
        let (told, hear) = bounded(TOLD_MAX);
        let (slot, stop) = (Slot::default(), Arc::new(AtomicBool::new(false)));
        let mut handle = Self {
            paths: config.paths,
            delay: config.delay,
            told: None,
            rules: slot.clone(),
            stop: stop.clone(),
            counters: counters.clone(),
            thread: None,
        };
        let pool = Pool::new(Settings {
            size_max_bytes: super::read::BLOCK_BYTES_MAX,
            timeout: config.scan_timeout,
            background: true,
            ..Settings::new(config.launcher, RuleSet::new(Vec::new()))
        });
        let engine = Engine::new(pool, config.budget, &host.boot_id, stop.clone());
        let waiting = Waiting { engine, host, counters, out, rules: slot, pending: VecDeque::new() };
        let thread = std::thread::Builder::new().name("memory".into());
        handle.thread = Some(thread.spawn(move || waiting.run(&hear, &stop))?);
        handle.told = Some(told);
        Ok(handle)
    }

    /// A program began to run.
    pub(in crate::detection) fn ran(&self, process: &wire::Process) {
        let Some(told) = &self.told else { return };
        if !self.paths.iter().any(|chosen| is_below(&process.executable, chosen)) {
            return;
        }
        self.counters.memory_asked.one();
        let identity = inspect::open(process.pid).ok().and_then(|folder| inspect::identity(&folder));
        let Some(identity) = identity.filter(|identity| identity.started_at(process.start_ns)) else {
            return self.counters.memory_gone.one();
        };
        let ran = Ran { pid: process.pid, identity, due: Instant::now() + self.delay };
        match told.try_send(ran) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counters.memory_lost_queue.one()
            }
        }
    }

    /// Other rules, from the next process on.
    pub(in crate::detection) fn use_rules(&self, rules: Arc<Compiled>) {
        if self.told.is_some() {
            *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
        }
    }

    /// Ends the thread: whoever waits is not looked into any more.
    pub(in crate::detection) fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.told = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks into memory panicked");
        }
    }
}

/// The path itself, or something in the folder.
fn is_below(path: &[u8], chosen: &[u8]) -> bool {
    let chosen = chosen.strip_suffix(b"/").unwrap_or(chosen);
    path.strip_prefix(chosen).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
}

/// The thread.
struct Waiting {
    engine: Engine,
    host: Host,
    counters: Arc<Counters>,
    out: Sender<wire::Event>,
    rules: Slot,
    /// In the order of their time.
    pending: VecDeque<Ran>,
}

impl Waiting {
    fn run(mut self, told: &Receiver<Ran>, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let notes = self.engine.pool().notes().clone();
            select! {
                recv(told) -> ran => match ran {
                    Ok(ran) => self.keep(ran),
                    Err(_) => break,
                },
                recv(notes) -> note => if let Ok(note) = note {
                    let outputs = self.engine.pool().note(note, Instant::now());
                    outputs.into_iter().for_each(|output| self.tell(output));
                },
                default(self.sleep()) => {}
            }
            told.try_iter().take(TOLD_MAX).for_each(|ran| self.keep(ran));
            self.look_after_worker();
            if self.pending.front().is_some_and(|ran| ran.due <= Instant::now())
                && self.engine.pool().compiled().is_some()
                && let Some(ran) = self.pending.pop_front()
            {
                self.look_into(ran);
            }
            self.counters.memory_waiting.set(self.pending.len() as u64);
        }
        let left = self.pending.len() + told.try_iter().count();
        self.counters.memory_unscanned.add(left as u64);
        self.counters.memory_waiting.set(0);
    }

    fn keep(&mut self, ran: Ran) {
        if self.pending.len() >= PENDING_MAX {
            return self.counters.memory_lost_queue.one();
        }
        self.pending.push_back(ran);
    }

    fn sleep(&mut self) -> Duration {
        let dates = [self.pending.front().map(|ran| ran.due), self.engine.pool().wake_at()];
        if self.engine.pool().compiled().is_none() {
            return RULES_TIME;
        }
        let first = dates.into_iter().flatten().min();
        first.map_or(SLEEP_MAX, |at| at.saturating_duration_since(Instant::now()).min(SLEEP_MAX))
    }

    /// An idle worker is stopped in time, and other rules wait for the next one.
    fn look_after_worker(&mut self) {
        let mut outputs = self.engine.pool().tick(Instant::now());
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(rules) = rules {
            outputs.extend(self.engine.pool().use_compiled(rules, Instant::now()));
        }
        outputs.into_iter().for_each(|output| self.tell(output));
    }

    fn look_into(&mut self, ran: Ran) {
        let mut outputs = Vec::new();
        let report = self.engine.scan_if(ran.pid, ran.identity, &mut |meanwhile| match meanwhile {
            Meanwhile::Worker(output) => outputs.push(output),
            Meanwhile::Scanned(_) => {}
        });
        outputs.into_iter().for_each(|output| self.tell(output));
        self.count(&report);
        for event in report.events(&self.host, Trigger::Exec, Moment::now()) {
            self.emit(event);
        }
    }

    fn count(&self, report: &Report) {
        self.counters.memory_bytes.add(report.tally.bytes);
        match &report.how {
            How::Gone => self.counters.memory_gone.one(),
            How::Whole | How::Truncated(_) | How::Own | How::NoMemory if report.unscanned.is_none() => {
                self.counters.memory_scanned.one();
            }
            How::Whole | How::Truncated(_) | How::Own | How::NoMemory | How::Denied | How::Failed(_) => {
                self.counters.memory_unscanned.one()
            }
        }
        if let Some(why) = report.incomplete() {
            tracing::debug!(pid = report.process.pid, why, "memory was not scanned whole");
        }
    }

    /// About the worker: what the rules are worth is told by the worker for files.
    fn tell(&mut self, output: Output) {
        let (state, message) = match output {
            Output::Died(detail) => {
                self.counters.worker_deaths.one();
                (HealthState::Degraded, detail)
            }
            Output::Unavailable(reason) => (HealthState::Failed, format!("memory is not scanned: {reason}")),
            Output::RulesRefused { version, reason } => {
                (HealthState::Degraded, format!("rules {version} are not used for memory: {reason}"))
            }
            Output::Loaded(_) => {
                let resident = self.engine.pool().pid().map_or(0, resident_bytes);
                return tracing::debug!(resident, "the scanner of memory has its rules");
            }
            Output::Started(_) | Output::Done(_) => return,
        };
        let shown = vidette_protocol::escape::terminal(message.as_bytes());
        tracing::warn!(component = "memory", message = %shown, "health changed");
        self.emit(events::own_health(&self.host, "memory", state, &message));
    }

    fn emit(&self, event: wire::Event) {
        self.counters.events_made.one();
        match self.out.send(event) {
            Ok(()) => self.counters.events_passed.one(),
            Err(_) => self.counters.events_lost_closed.one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_path_is_a_program_or_a_folder_of_them() {
        for (path, chosen, expected) in [
            ("/tmp/x", "/tmp", true),
            ("/tmp/x", "/tmp/", true),
            ("/tmp/x", "/tmp/x", true),
            ("/tmp/x (deleted)", "/tmp", true),
            ("/tmpx", "/tmp", false),
            ("/a/tmp/x", "/tmp", false),
            ("/x", "/", true),
            ("", "/tmp", false),
        ] {
            assert_eq!(is_below(path.as_bytes(), chosen.as_bytes()), expected, "{path} {chosen}");
        }
    }
}
