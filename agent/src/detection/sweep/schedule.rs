//! The daemon's sweep: a thread that waits for its time, sweeps with a worker of its own, and hands events to
//! detection.
//!
//! Lowest priority for its walk and its worker, which inherits it. It pauses while detection's own queue is long. After
//! a stop or other rules it begins anew: what is known to be clean by these rules is not opened again, and that is
//! all it remembers of where it was.

use super::budget::Gate;
use super::calendar::{self, Last};
use super::engine::{self, Ended, Engine, Said};
use super::walk::Figures;
use super::{Cross, Options, local_devices};
use crate::detection::events::{self, Item, Looked, What};
use crate::detection::hashes::Hashes;
use crate::detection::verdicts::Verdicts;
use crate::detection::walk::Scope;
use crate::host::{Host, Moment};
use crate::stop::{self, Stop, Stopper};
use crate::sys::background;
use crate::worker::compiler::Compiled;
use crate::worker::poison::Poison;
use crate::worker::pool::{Output, Pool, Settings};
use crate::worker::process::Launcher;
use crate::worker::{Outcome, RuleSet};
use anyhow::bail;
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vidette_protocol::escape;
use vidette_protocol::wire::{self, Trigger, Verdict};

/// Events that wait for detection.
pub const TOLD_MAX: usize = 64;
/// Files that may wait in detection while a sweep goes on.
pub const QUEUE_HOLD: usize = 32;
/// After a sweep that failed, such as for want of a worker.
const RETRY_TIME: Duration = Duration::from_secs(600);
/// The longest sleep, so that a clock that is set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// How often a sweep that waits for detection looks whether to stop.
const STEP: Duration = Duration::from_millis(50);
/// Paths that a report names.
const NAMED_MAX: usize = 8;
/// A path in a report. Bytes.
const SHOWN_BYTES_MAX: usize = 256;

/// When and how the daemon sweeps.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The time between two; none for never by time alone.
    pub every: Option<Duration>,
    /// Also when rules have changed, and when there was none yet.
    pub after_rules_change: bool,
    /// A random part of it is waited before each, so that a fleet does not sweep at once.
    pub jitter_max: Duration,
    /// Of one processor; 0 for as much as there is.
    pub cpu_percent: u32,
    /// Bytes a second; 0 for as many as there are.
    pub io_bytes_per_s: u64,
    /// What is swept.
    pub scope: Scope,
    /// Where the last one is remembered; none forgets it with the process.
    pub state: Option<PathBuf>,
}

/// What files are matched with.
#[derive(Debug, Clone)]
pub(in crate::detection) struct Against {
    /// Rules, compiled.
    pub(in crate::detection) rules: Arc<Compiled>,
    /// Lists of digests.
    pub(in crate::detection) hashes: Arc<Hashes>,
}

impl Against {
    fn version(&self) -> String {
        self.hashes.version_with(&self.rules.loaded.version)
    }
}

/// What the thread works with.
#[derive(Debug)]
pub(in crate::detection) struct Setup {
    pub(in crate::detection) plan: Plan,
    pub(in crate::detection) host: Host,
    pub(in crate::detection) launcher: Launcher,
    pub(in crate::detection) size_max_bytes: u64,
    pub(in crate::detection) timeout: Duration,
    pub(in crate::detection) verdicts: Arc<Verdicts>,
    pub(in crate::detection) poison: Poison,
}

/// How it is, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// A sweep goes on.
    pub running: bool,
    /// It gives way to other work now.
    pub held: bool,
    /// Regular files met in this sweep, or in the last.
    pub files: u64,
    /// Of these known to be clean and not opened.
    pub known: u64,
    /// Of these scanned.
    pub scanned: u64,
    /// Of these matched.
    pub matched: u64,
    /// For how long it goes on, or took. Milliseconds.
    pub took_ms: u64,
    /// When it began. Unix nanoseconds; 0 for never.
    pub began_unix_ns: i64,
    /// When the last whole one ended. Unix nanoseconds; 0 for never.
    pub finished_unix_ns: i64,
    /// When the next one is to begin. Unix nanoseconds; 0 while one goes on, and when none is to come by time.
    pub next_unix_ns: i64,
    /// Sweeps that ended, whole or not, since the start.
    pub sweeps: u64,
}

/// Where rules and wishes are left for the thread, and what it shows.
#[derive(Debug, Default)]
struct Desk {
    against: Option<Against>,
    /// Somebody asked.
    wished: bool,
    running: Option<(Arc<Gate>, Arc<Figures>, Instant)>,
    /// Since when there is none.
    idle_since: Option<Instant>,
    shown: Snapshot,
}

/// The handle that detection has.
#[derive(Debug)]
pub(in crate::detection) struct Sweeps {
    handle: Handle,
    told: Receiver<Box<wire::Event>>,
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<()>>,
}

/// Others' way to it.
#[derive(Debug, Clone)]
pub(in crate::detection) struct Handle {
    desk: Arc<Mutex<Desk>>,
    wake: Sender<()>,
}

impl Sweeps {
    pub(in crate::detection) fn start(setup: Setup) -> std::io::Result<Self> {
        let (wake, woken) = bounded(1);
        let (out, told) = bounded(TOLD_MAX);
        let (stopper, stop) = stop::channel();
        let handle = Handle { desk: Arc::default(), wake };
        let desk = handle.desk.clone();
        let thread = std::thread::Builder::new()
            .name("sweep".into())
            .spawn(move || Thread { setup, desk, out, stop }.run(&woken))?;
        Ok(Self { handle, told, stopper: Some(stopper), thread: Some(thread) })
    }

    pub(in crate::detection) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Events for the outbox. Closed after [`Self::stop`], when the thread has ended.
    pub(in crate::detection) fn told(&self) -> &Receiver<Box<wire::Event>> {
        &self.told
    }

    /// Tells the thread to end.
    pub(in crate::detection) fn stop(&mut self) {
        if let Some(stopper) = self.stopper.take() {
            stopper.stop();
        }
        let _ = self.handle.wake.try_send(()); // full: it is woken already
    }

    /// Waits for its end, after [`Self::told`] was closed.
    pub(in crate::detection) fn join(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the sweep panicked: there is none until the agent is started again");
        }
    }
}

impl Handle {
    /// From now on with these; a sweep with others ends.
    pub(in crate::detection) fn sweep_against(&self, against: Against) {
        let mut desk = lock(&self.desk);
        if desk.against.as_ref().is_some_and(|now| now.version() == against.version()) {
            return;
        }
        desk.against = Some(against);
        if let Some((gate, ..)) = &desk.running {
            gate.cancel();
        }
        drop(desk);
        let _ = self.wake.try_send(()); // full: it is woken already
    }

    /// Sweeps now.
    pub(in crate::detection) fn wish(&self) {
        lock(&self.desk).wished = true;
        let _ = self.wake.try_send(()); // full: it is woken already
    }

    /// More urgent files wait, or no more.
    pub(in crate::detection) fn hold(&self, held: bool) {
        if let Some((gate, ..)) = &lock(&self.desk).running {
            gate.hold(held);
        }
    }

    pub(in crate::detection) fn snapshot(&self) -> Snapshot {
        let desk = lock(&self.desk);
        let mut shown = desk.shown.clone();
        if let Some((gate, figures, began)) = &desk.running {
            shown.running = true;
            shown.held = gate.is_held();
            shown.files = figures.files.load(Ordering::Relaxed);
            shown.known = figures.known.load(Ordering::Relaxed);
            shown.took_ms = milliseconds(began.elapsed());
        }
        shown
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    // Each change of the desk is one assignment, whoever panicked while holding it.
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Thread {
    setup: Setup,
    desk: Arc<Mutex<Desk>>,
    out: Sender<Box<wire::Event>>,
    stop: Stop,
}

/// What one sweep did.
#[derive(Debug, Default)]
struct Report {
    scanned: u64,
    matched: u64,
    unscanned: u64,
    unreadable: u64,
    silent: Vec<String>,
    files: u64,
    known: u64,
    skipped: u64,
}

impl Thread {
    fn run(self, woken: &Receiver<()>) {
        background::last_in_line();
        let mut last = self.setup.plan.state.as_deref().and_then(calendar::load);
        if let Some(last) = &last {
            lock(&self.desk).shown.finished_unix_ns = last.finished_unix_ns;
        }
        let (mut jitter, mut not_before) = (self.jitter(), None::<Instant>);
        while !self.stop.is_set() {
            let pause = match self.next(last.as_ref(), jitter, not_before) {
                Ok(against) => {
                    let ended = self.sweep(&against);
                    jitter = self.jitter();
                    not_before = ended.is_err().then(|| Instant::now() + RETRY_TIME);
                    last = ended.ok().flatten().or(last);
                    continue;
                }
                Err(wait) => {
                    let next = wait.map_or(0, |wait| after(Moment::now().unix_ns, wait));
                    lock(&self.desk).shown.next_unix_ns = next;
                    wait.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
                }
            };
            match woken.recv_timeout(pause) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn jitter(&self) -> Duration {
        self.setup.plan.jitter_max.mul_f64(rand::random::<f64>())
    }

    /// What to sweep with now, or how long until then; `None` when no time brings it.
    fn next(
        &self,
        last: Option<&Last>,
        jitter: Duration,
        not_before: Option<Instant>,
    ) -> Result<Against, Option<Duration>> {
        let mut desk = lock(&self.desk);
        let Some(against) = desk.against.clone() else { return Err(None) };
        if std::mem::take(&mut desk.wished) {
            return Ok(against);
        }
        drop(desk);
        if let Some(wait) = not_before.map(|at| at.saturating_duration_since(Instant::now()))
            && !wait.is_zero()
        {
            return Err(Some(wait));
        }
        let plan = &self.setup.plan;
        let every_ns = plan.every.map_or(0, |every| i64::try_from(every.as_nanos()).unwrap_or(i64::MAX));
        let now = Moment::now();
        let Some(due) =
            calendar::due(last, &against.version(), every_ns, plan.after_rules_change, now.unix_ns)
        else {
            return Err(None);
        };
        let wait = u64::try_from(due.saturating_sub(now.unix_ns)).unwrap_or(0);
        let wait = Duration::from_nanos(wait).max(self.left_of(jitter));
        if wait.is_zero() { Ok(against) } else { Err(Some(wait)) }
    }

    /// What is left of a random wait that begins with the agent or with the end of the last sweep.
    fn left_of(&self, jitter: Duration) -> Duration {
        let since = *lock(&self.desk).idle_since.get_or_insert_with(Instant::now);
        jitter.saturating_sub(since.elapsed())
    }

    fn remember(&self, rules_version: &str) -> Last {
        let last = Last { finished_unix_ns: Moment::now().unix_ns, rules_version: rules_version.to_owned() };
        lock(&self.desk).shown.finished_unix_ns = last.finished_unix_ns;
        if let Some(state) = &self.setup.plan.state
            && let Err(error) = calendar::save(state, &last)
        {
            tracing::warn!(%error, "could not note the end of the sweep: after a restart it is done again");
        }
        last
    }

    /// One sweep: when it ended, if it was whole; `Err` when it could not be done.
    fn sweep(&self, against: &Against) -> Result<Option<Last>, ()> {
        let version = against.version();
        let gate = Arc::new(Gate::new(self.stop.clone(), self.setup.plan.cpu_percent));
        let (mut report, began, began_at) = (Report::default(), Instant::now(), Moment::now());
        self.tell(self.audit("sweep-began", true, &format!("rules={version}")));
        let outcome = self.engine(against, &gate).and_then(|mut engine| {
            let figures = engine.figures();
            let mut desk = lock(&self.desk);
            desk.running = Some((gate.clone(), figures.clone(), began));
            desk.shown.next_unix_ns = 0;
            (desk.shown.began_unix_ns, desk.shown.scanned, desk.shown.matched) = (began_at.unix_ns, 0, 0);
            drop(desk);
            let ended = engine.run(&self.paths(), &mut |said| self.said(said, &mut report));
            report.files = figures.files.load(Ordering::Relaxed);
            report.known = figures.known.load(Ordering::Relaxed);
            report.skipped = figures.skipped.load(Ordering::Relaxed);
            ended
        });
        let took_ms = milliseconds(began.elapsed());
        self.ended(&report, took_ms);
        let whole = matches!(outcome, Ok(Ended::Whole));
        let last = whole.then(|| self.remember(&version));
        let mut detail = report.detail(&version, took_ms, milliseconds(gate.used()), whole);
        if let Err(error) = &outcome {
            detail.push_str(&format!(" error={}", escape::terminal(format!("{error:#}").as_bytes())));
        }
        tracing::info!(detail, "swept");
        self.tell(self.audit("sweep-ended", whole, &detail));
        outcome.map(|_| last).map_err(drop)
    }

    fn ended(&self, report: &Report, took_ms: u64) {
        let mut desk = lock(&self.desk);
        desk.running = None;
        desk.idle_since = None;
        desk.shown.sweeps += 1;
        (desk.shown.files, desk.shown.known, desk.shown.took_ms) = (report.files, report.known, took_ms);
    }

    fn engine(&self, against: &Against, gate: &Arc<Gate>) -> anyhow::Result<Engine> {
        let setup = &self.setup;
        let settings = Settings {
            size_max_bytes: setup.size_max_bytes,
            timeout: setup.timeout,
            background: true,
            poison: setup.poison.clone(),
            ..Settings::new(setup.launcher.try_clone()?, RuleSet::new(Vec::new()))
        };
        let options = Options {
            follow: false,
            cross: Cross::Local(local_devices()),
            exclude: setup.plan.scope.exclude.clone(),
        };
        let plan = engine::Plan {
            options,
            io_bytes_per_s: setup.plan.io_bytes_per_s,
            verdicts: Some(setup.verdicts.clone()),
            hashes: against.hashes.clone(),
            keeps_with_mistakes: true,
        };
        let pool = Pool::with_compiled(settings, against.rules.clone());
        Ok(Engine::new(pool, plan, gate.clone()))
    }

    fn paths(&self) -> Vec<PathBuf> {
        let roots = self.setup.plan.scope.outermost();
        roots.into_iter().map(|root| PathBuf::from(OsString::from_vec(root.to_vec()))).collect()
    }

    fn said(&self, said: Said, report: &mut Report) -> anyhow::Result<()> {
        match said {
            Said::File(done) => {
                let scanned = matches!(done.outcome, Outcome::Scanned(_)) && !done.again;
                let looked = Looked::new(done.file, done.outcome, &done.rules_version);
                report.count(&looked, scanned);
                let what = What::Written(None, Trigger::Sweep, Vec::new());
                let item = Item {
                    path: done.path,
                    container_path: Vec::new(),
                    deleted: false,
                    what,
                    at: Moment::now(),
                };
                if let Some(event) = looked.detection(&self.setup.host, &item) {
                    self.tell(event);
                }
                let mut desk = lock(&self.desk);
                (desk.shown.scanned, desk.shown.matched) = (report.scanned, report.matched);
            }
            Said::Unreadable(..) => report.unreadable += 1,
            Said::NoAnswer(path) => {
                let shown = escape::terminal(path.get(..SHOWN_BYTES_MAX).unwrap_or(&path));
                tracing::warn!(path = shown, "a file system does not answer; the sweep leaves it out");
                if report.silent.len() < NAMED_MAX {
                    report.silent.push(shown);
                }
            }
            Said::Worker(Output::Unavailable(reason) | Output::RulesRefused { reason, .. }) => {
                bail!("nothing can be scanned: {reason}")
            }
            Said::Worker(Output::Died(reason)) => {
                tracing::warn!(reason = escape::terminal(reason.as_bytes()), "the sweep's scanner died");
            }
            Said::Worker(Output::Loaded(_) | Output::Started(_) | Output::Done(_)) | Said::Tick => {}
        }
        Ok(())
    }

    fn audit(&self, action: &str, good: bool, detail: &str) -> wire::Event {
        events::swept(&self.setup.host, action, good, detail)
    }

    /// To detection, however long that takes; when it stops, as long as it listens.
    fn tell(&self, event: wire::Event) {
        let mut event = Box::new(event);
        loop {
            event = match self.out.send_timeout(event, STEP) {
                Ok(()) | Err(SendTimeoutError::Disconnected(_)) => return,
                Err(SendTimeoutError::Timeout(event)) => event,
            };
        }
    }
}

impl Report {
    fn count(&mut self, looked: &Looked, scanned: bool) {
        self.scanned += u64::from(scanned);
        match looked.verdict {
            Verdict::Clean => {}
            Verdict::Matched => self.matched += 1,
            Verdict::TooLarge
            | Verdict::TimedOut
            | Verdict::Failed
            | Verdict::NotScanned
            | Verdict::Unspecified => self.unscanned += 1,
        }
    }

    /// `key=value` pairs: for people and for programs.
    fn detail(&self, rules_version: &str, took_ms: u64, cpu_ms: u64, whole: bool) -> String {
        let Self { scanned, matched, unscanned, unreadable, files, known, skipped, silent } = self;
        let mut text = format!(
            "rules={rules_version} took_ms={took_ms} cpu_ms={cpu_ms} files={files} known={known} scanned={scanned} matched={matched} unscanned={unscanned} unreadable={unreadable} skipped={skipped} whole={whole}"
        );
        for path in silent {
            text.push_str(" no_answer=");
            text.push_str(path);
        }
        text
    }
}

fn after(unix_ns: i64, wait: Duration) -> i64 {
    unix_ns.saturating_add(i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
