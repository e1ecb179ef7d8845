//! Walks and pool together: one thread owns the pool, hands it what the walk finds while the budget lasts, keeps what
//! was found, and says what became of each file. Of a file that matched or was scanned in part, and stayed as it is, it
//! says again what was said before.
//!
//! The caller's thread does not touch the file systems that are walked, unless they keep their word: each is walked,
//! and its files are closed, on threads that can be left behind. A worker is started when the first file has to be
//! scanned, and not before.

use super::Options;
use super::budget::{Bucket, Gate, ProcessTime, ThreadTime};
use super::walk::{Aim, Candidate, Figures, Found, Progress, Root, Walk};
use crate::detection::hashes::Hashes;
use crate::detection::verdicts::{By, Verdicts};
use crate::worker::poison::FileKey;
use crate::worker::pool::{self, Output, Pool};
use crate::worker::{Outcome, Scan};
use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vidette_protocol::wire;

/// Files between walk and engine; each holds a descriptor.
pub const FOUND_MAX: usize = 64;
/// File systems that wait to be walked; each holds a descriptor.
pub const ROOTS_MAX: usize = 1024;
/// Files that are closed on a thread of their own and wait for it.
pub const CLOSING_MAX: usize = 256;
/// How long a file system may take for one answer before it is left.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often the engine looks around when nothing happens.
const STEP: Duration = Duration::from_millis(100);
/// The same while processor time is limited.
const STEP_LIMITED: Duration = Duration::from_millis(20);

const _: () = assert!(FOUND_MAX < CLOSING_MAX);

/// What a sweep is.
#[derive(Debug)]
pub struct Plan {
    /// What is walked.
    pub options: Options,
    /// Bytes a second; 0 for as many as there are.
    pub io_bytes_per_s: u64,
    /// What is known; none asks and keeps nothing.
    pub verdicts: Option<Arc<Verdicts>>,
    /// Lists that files are looked up in.
    pub hashes: Arc<Hashes>,
    /// Keep verdicts though some rules could not be compiled, because others tell of that; else such a sweep keeps
    /// nothing, and the next one loads the rules, and tells of it, again.
    pub keeps_with_mistakes: bool,
}

/// What the engine says.
#[derive(Debug)]
pub enum Said {
    /// A file was looked at.
    File(Box<Done>),
    /// Something could not be opened or read.
    Unreadable(Vec<u8>, String),
    /// A file system did not answer and is left; where it was asked.
    NoAnswer(Vec<u8>),
    /// The pool says something of its worker. Never `Done`.
    Worker(Output),
    /// Time passed.
    Tick,
}

/// A file that was looked at.
#[derive(Debug)]
pub struct Done {
    /// Its path.
    pub path: Vec<u8>,
    /// By its descriptor.
    pub file: wire::File,
    /// What became of it.
    pub outcome: Outcome,
    /// The rules it was scanned with.
    pub rules_version: String,
    /// It was not scanned now: this is what was told of it before, and took no time.
    pub again: bool,
}

/// How a sweep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ended {
    /// It saw everything.
    Whole,
    /// It was stopped or cancelled.
    CutShort,
}

#[derive(Debug)]
struct Flying {
    path: Vec<u8>,
    stat: wire::File,
    key: FileKey,
    began_ns: i64,
    trusted: bool,
}

/// A walk that is under way on its thread.
#[derive(Debug)]
struct Walking {
    found: Receiver<Found>,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
    beat: u64,
    silent: Duration,
    looked: Instant,
}

/// The engine; see above.
#[derive(Debug)]
pub struct Engine {
    plan: Arc<Plan>,
    pool: Pool,
    gate: Arc<Gate>,
    figures: Arc<Figures>,
    bytes: Option<Bucket>,
    worker_time: ProcessTime,
    own_time: ThreadTime,
    in_flight: HashMap<u64, Flying>,
    last_id: u64,
    roots: VecDeque<Root>,
    visited: HashSet<(u64, u64)>,
    walking: Option<Walking>,
    closing: Option<Sender<OwnedFd>>,
    size_max_bytes: u64,
    /// Files that were met and not clean without being opened.
    looked_at: u64,
    loaded: bool,
    keeps: bool,
}

impl Engine {
    /// Ready to sweep with what the pool scans with. The thread that calls [`Self::run`] has to stay until its end.
    #[must_use]
    pub fn new(mut pool: Pool, plan: Plan, gate: Arc<Gate>) -> Self {
        let size_max_bytes = pool.size_max_bytes();
        pool.want_digests(plan.hashes.wanted(), plan.hashes.version());
        pool.look_in(plan.verdicts.as_ref().and_then(|verdicts| verdicts.table()));
        let per_second = plan.io_bytes_per_s;
        Self {
            plan: Arc::new(plan),
            pool,
            gate,
            figures: Arc::new(Figures::default()),
            bytes: (per_second > 0).then(|| Bucket::new(per_second as f64, Instant::now())),
            worker_time: ProcessTime::default(),
            own_time: ThreadTime::start(),
            in_flight: HashMap::new(),
            last_id: 0,
            roots: VecDeque::new(),
            visited: HashSet::new(),
            walking: None,
            closing: None,
            size_max_bytes,
            looked_at: 0,
            loaded: false,
            keeps: true,
        }
    }

    /// What was met so far; to be read while it goes on.
    #[must_use]
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    /// The worker's process, when there is one.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        self.pool.pid()
    }

    /// Scans everything below these paths that is not known to be clean.
    ///
    /// # Errors
    /// What `said` says; or there is no thread to be had.
    pub fn run(
        &mut self,
        paths: &[PathBuf],
        said: &mut dyn FnMut(Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ended> {
        self.roots.extend(paths.iter().map(|path| Root::Named(path.clone())));
        loop {
            let outputs = self.pool.tick(Instant::now());
            self.settle(outputs, said)?;
            self.measure();
            if self.gate.is_closed() {
                return Ok(Ended::CutShort);
            }
            if self.walking.is_none() {
                match self.roots.pop_front() {
                    Some(root) => self.walking = Some(self.walk(root)?),
                    None if self.is_over(said)? => return Ok(Ended::Whole),
                    None => {}
                }
            }
            self.wait(said)?;
            self.look_after(said)?;
            said(Said::Tick)?;
        }
    }

    /// Nothing is left to do. Rules that were never needed are loaded when nothing at all was looked at, so that
    /// mistakes in them are heard of.
    fn is_over(&mut self, said: &mut dyn FnMut(Said) -> anyhow::Result<()>) -> anyhow::Result<bool> {
        let idle = self.figures.known.load(Ordering::Relaxed) == 0 && self.looked_at == 0;
        if idle && !self.loaded {
            let outputs = self.pool.prepare(Instant::now());
            self.settle(outputs, said)?;
            return Ok(false);
        }
        Ok(self.in_flight.is_empty())
    }

    /// Until something happens or it is time to look around.
    fn wait(&mut self, said: &mut dyn FnMut(Said) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let now = Instant::now();
        let step = if self.gate.is_limited() { STEP_LIMITED } else { STEP };
        let step = self.pool.wake_at().map_or(step, |at| at.saturating_duration_since(now).min(step));
        let notes = self.pool.notes().clone();
        let found = self.found();
        let stop = self.gate.stop().channel().clone();
        let stop = if self.gate.stop().is_set() { never() } else { stop };
        select! {
            recv(notes) -> note => if let Ok(note) = note {
                let outputs = self.pool.note(note, Instant::now());
                self.settle(outputs, said)?;
            },
            recv(found) -> met => match met {
                Ok(met) => {
                    self.met(met, said)?;
                    while self.may_submit() && let Ok(met) = found.try_recv() {
                        self.met(met, said)?;
                    }
                }
                Err(_) => self.walked(said)?,
            },
            recv(stop) -> _ => {},
            default(step) => {},
        }
        Ok(())
    }

    /// The walk's channel, while there is room for its files.
    fn found(&mut self) -> Receiver<Found> {
        if !self.may_submit() {
            return never();
        }
        self.walking.as_ref().map_or_else(never, |walking| walking.found.clone())
    }

    fn may_submit(&mut self) -> bool {
        let bytes = self.bytes.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(Instant::now()));
        self.pool.room() > 0 && bytes.is_zero() && self.gate.wait_for().is_zero()
    }

    fn measure(&mut self) {
        self.gate.spent(self.own_time.lap());
        self.gate.spent(self.worker_time.lap(self.pool.pid()));
    }

    fn walk(&mut self, root: Root) -> anyhow::Result<Walking> {
        let (out, found) = bounded(FOUND_MAX);
        let progress = Arc::new(Progress::default());
        let (plan, gate, figures, shown) =
            (self.plan.clone(), self.gate.clone(), self.figures.clone(), progress.clone());
        let version = plan.hashes.version_with(self.pool.rules_version());
        let aim = Aim::Scan(plan.verdicts.clone(), version);
        let thread = std::thread::Builder::new().name("sweep-walk".into()).spawn(move || {
            let mut sink = |found| out.send(found).is_ok();
            Walk::new(&plan.options, &aim, &gate, &figures, &shown, &mut sink).run(root);
        })?;
        Ok(Walking { found, progress, thread, beat: 0, silent: Duration::ZERO, looked: Instant::now() })
    }

    /// A walk has come to its end.
    fn walked(&mut self, said: &mut dyn FnMut(Said) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(walking) = self.walking.take() else { return Ok(()) };
        if walking.thread.join().is_err() {
            said(Said::Unreadable(walking.progress.path(), "the walk failed here".into()))?;
        }
        Ok(())
    }

    fn met(&mut self, met: Found, said: &mut dyn FnMut(Said) -> anyhow::Result<()>) -> anyhow::Result<()> {
        match met {
            Found::File(candidate) => self.submit(*candidate, said),
            Found::Unreadable(path, error) => said(Said::Unreadable(path, error)),
            Found::Boundary(root) => {
                let Root::Mount(_, path, identity) = &root else { return Ok(()) };
                if !self.visited.insert(*identity) {
                    return Ok(());
                }
                if self.roots.len() >= ROOTS_MAX {
                    let reason = format!("more than {ROOTS_MAX} file systems wait: scan it by itself");
                    return said(Said::Unreadable(path.clone(), reason));
                }
                self.roots.push_back(root);
                Ok(())
            }
        }
    }

    fn submit(
        &mut self,
        candidate: Candidate,
        said: &mut dyn FnMut(Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let rules_version = self.pool.rules_version();
        self.looked_at += 1;
        if let Some(scan) = self.told(&candidate, rules_version) {
            let Candidate { path, stat, .. } = candidate;
            let (outcome, rules_version) = (Outcome::Scanned(scan), rules_version.to_owned());
            return said(Said::File(Box::new(Done {
                path,
                file: stat,
                outcome,
                rules_version,
                again: true,
            })));
        }
        let Candidate { file, path, key, stat, began_ns, trusted } = candidate;
        if let Some(bucket) = &mut self.bytes {
            bucket.take(key.size.min(self.size_max_bytes) as f64, Instant::now());
        }
        self.last_id += 1;
        self.in_flight.insert(self.last_id, Flying { path, stat, key, began_ns, trusted });
        let outputs = self.pool.submit(self.last_id, file, Instant::now());
        self.settle(outputs, said)
    }

    /// What was told of a file that stayed as it is.
    fn told(&self, candidate: &Candidate, rules_version: &str) -> Option<Scan> {
        let verdicts = self.plan.verdicts.as_ref().filter(|_| candidate.trusted)?;
        let rules_version = &self.plan.hashes.version_with(rules_version);
        let by = By { rules_version, size_max_bytes: self.size_max_bytes };
        let scan = verdicts.told(&candidate.key, by, candidate.began_ns)?;
        Some(Scan { scan_us: 0, ..(*scan).clone() })
    }

    fn settle(
        &mut self,
        outputs: Vec<Output>,
        said: &mut dyn FnMut(Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for output in outputs {
            match output {
                Output::Done(done) => self.done(*done, said)?,
                Output::Loaded(loaded) => {
                    self.loaded = true;
                    let mistakes = loaded.problems.iter().any(|problem| problem.error);
                    self.keeps = !mistakes || self.plan.keeps_with_mistakes;
                    // What compiling took is no part of the budget.
                    self.worker_time.lap(self.pool.pid());
                    said(Said::Worker(Output::Loaded(loaded)))?;
                }
                output @ (Output::Started(_)
                | Output::RulesRefused { .. }
                | Output::Died(_)
                | Output::Unavailable(_)) => said(Said::Worker(output))?,
            }
        }
        Ok(())
    }

    fn done(
        &mut self,
        mut done: pool::Done,
        said: &mut dyn FnMut(Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(flying) = self.in_flight.remove(&done.id) else { return Ok(()) };
        done.outcome = self.plan.hashes.judge(done.outcome);
        if flying.trusted
            && self.keeps
            && let Outcome::Scanned(scan) = &done.outcome
            && let Some(verdicts) = &self.plan.verdicts
            && let Ok(after) = rustix::fs::fstat(&done.file)
        {
            let rules_version = &self.plan.hashes.version_with(&done.rules_version);
            let by = By { rules_version, size_max_bytes: self.size_max_bytes };
            verdicts.put(&flying.key, &FileKey::of(&after), flying.began_ns, by, scan);
        }
        if !flying.trusted {
            self.close(done.file);
        }
        let Flying { path, stat: file, .. } = flying;
        let (outcome, rules_version) = (done.outcome, done.rules_version);
        said(Said::File(Box::new(Done { path, file, outcome, rules_version, again: false })))
    }

    /// Closing asks the file system too (fuse: FLUSH), and may wait for ever.
    fn close(&mut self, file: OwnedFd) {
        if self.closing.is_none() {
            let (closing, closed) = bounded::<OwnedFd>(CLOSING_MAX);
            let thread = std::thread::Builder::new().name("sweep-close".into()).spawn(move || {
                closed.iter().for_each(drop);
            });
            self.closing = thread.is_ok().then_some(closing);
        }
        if let Some(closing) = &self.closing {
            // Full: it does not answer, and its walk is about to be left. The descriptor is closed here then.
            let _ = closing.try_send(file);
        }
    }

    /// Leaves a walk whose file system does not answer.
    fn look_after(&mut self, said: &mut dyn FnMut(Said) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(walking) = &mut self.walking else { return Ok(()) };
        let (asks, beat) = walking.progress.pulse();
        let since = walking.looked.elapsed();
        walking.looked = Instant::now();
        if !asks || beat != walking.beat {
            (walking.beat, walking.silent) = (beat, Duration::ZERO);
            return Ok(());
        }
        // A long pause of ours, such as a stopped process, is no silence of theirs.
        walking.silent += since.min(2 * STEP);
        if walking.silent < ANSWER_TIME_MAX {
            return Ok(());
        }
        let path = walking.progress.path();
        self.walking = None;
        said(Said::NoAnswer(path))
    }
}

/// Counts files below some paths on a thread of its own, for a progress bar; the second number is 1 at the end.
#[must_use]
pub fn count(paths: Vec<PathBuf>, options: Options, gate: Arc<Gate>) -> Arc<(Figures, AtomicU64)> {
    let counted = Arc::new((Figures::default(), AtomicU64::new(0)));
    let shared = counted.clone();
    // Without a thread there is no number, and that is all.
    let _ = std::thread::Builder::new().name("sweep-count".into()).spawn(move || {
        let mut roots: VecDeque<Root> = paths.into_iter().map(Root::Named).collect();
        let mut visited = HashSet::new();
        while let Some(root) = roots.pop_front() {
            let mut sink = |found| {
                if let Found::Boundary(root @ Root::Mount(_, _, identity)) = found
                    && roots.len() < ROOTS_MAX
                    && visited.insert(identity)
                {
                    roots.push_back(root);
                }
                true
            };
            let progress = Progress::default();
            Walk::new(&options, &Aim::Count, &gate, &shared.0, &progress, &mut sink).run(root);
        }
        shared.1.store(1, Ordering::Release);
    });
    counted
}
