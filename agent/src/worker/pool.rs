//! The parent's half: a worker when there is work, another when it dies, none when there is nothing to do.
//!
//! Owned by one thread, which hands it jobs while there is `Pool::room`, gives it the notes of `Pool::notes`,
//! and calls `Pool::tick` at `Pool::wake_at`. What comes of it are `Output`s. Workers are tied to the life of
//! the thread that starts them (PR_SET_PDEATHSIG), so that thread has to stay.
//!
//! Rules are compiled first, by a worker of their own; while new ones are, the old ones go on.

use super::clean::{Table, with_lists};
use super::compiler::{Compiled, Compiler, Step};
use super::flight::{Blame, Flight, Job};
use super::messages::{Answer, FILES_AT_ONCE_MAX, Loaded, Ready, ScanRequest};
use super::poison::{FileKey, Poison};
use super::process::{Launcher, NOTES_MAX, Note, Process, Report, Work, resident_bytes};
use super::{Outcome, RuleSet, SIZE_BYTES_MAX, THREADS_MAX};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Beyond a scan's own time: how long the worker may stay silent before it is killed.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long compiled rules may take to load.
pub const LOAD_TIME_MAX: Duration = Duration::from_secs(60);
/// Deaths in loading after which rules are given up.
pub const LOAD_DEATHS_MAX: u32 = 3;
/// Without work the worker is stopped after this time.
pub const IDLE_TIME: Duration = Duration::from_secs(30);
/// The longest wait before a worker that keeps dying is started again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often it is tried when it could not live at all.
pub const RETRY_TIME: Duration = Duration::from_secs(60);
/// A worker is replaced after so many files.
pub const FILES_MAX: u64 = 50_000;
/// A worker that holds more is replaced. Bytes.
pub const RESIDENT_BYTES_MAX: u64 = 384 << 20;
/// Of all scans in flight together. Bytes.
pub const FILES_BYTES_MAX: u64 = 512 << 20;
/// How many files pass between two looks at its memory; also the fewest it serves, however large its rules are.
const FILES_BETWEEN_LOOKS: u64 = 256;
/// Killed workers that the kernel has not let go of yet: with more no other is started.
pub const UNCOLLECTED_MAX: usize = 16;
/// Files that a worker was stuck in once, and that are remembered for the next time.
const STUCK_MAX: usize = 256;

const _: () =
    assert!(SIZE_BYTES_MAX <= FILES_BYTES_MAX && 2 * FILES_BYTES_MAX <= crate::sys::sandbox::DATA_BYTES_MAX);
const _: () = assert!(RESIDENT_BYTES_MAX < crate::sys::sandbox::DATA_BYTES_MAX);

/// How the pool works.
#[derive(Debug)]
pub struct Settings {
    /// What is started.
    pub launcher: Launcher,
    /// What files are matched with.
    pub rules: RuleSet,
    /// Scans in flight.
    pub threads: usize,
    /// Above it only head and tail are scanned. Bytes.
    pub size_max_bytes: u64,
    /// When a scan is given up.
    pub timeout: Duration,
    /// Nobody waits for it: only processor and disk time that nobody else wants.
    pub background: bool,
    /// Files that kill the scanner.
    pub poison: Poison,
    /// Small files that one thread is handed together: more is faster, fewer lets what is urgent go first.
    pub batch: usize,
    /// What the worker computes for hash lists: bits of [`super::digests`].
    pub digests: u32,
    /// Their version; none where there are none.
    pub lists_version: String,
    /// Where the worker may look for content that is known to be clean.
    pub clean: Option<Arc<Table>>,
}

impl Settings {
    /// One scan at a time, with the limits that are usual, for somebody who waits.
    #[must_use]
    pub fn new(launcher: Launcher, rules: RuleSet) -> Self {
        Self {
            launcher,
            rules,
            threads: 1,
            size_max_bytes: super::SIZE_DEFAULT_BYTES,
            timeout: super::TIMEOUT_DEFAULT,
            background: false,
            poison: Poison::default(),
            batch: FILES_AT_ONCE_MAX,
            digests: 0,
            lists_version: String::new(),
            clean: None,
        }
    }
}

/// A file that is done.
#[derive(Debug)]
pub struct Done {
    /// The caller's number.
    pub id: u64,
    /// Given back.
    pub file: OwnedFd,
    /// The rules it was scanned with.
    pub rules_version: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What the pool says.
#[derive(Debug)]
pub enum Output {
    /// A file is done.
    Done(Box<Done>),
    /// A worker runs, with this much of a sandbox.
    Started(Ready),
    /// A worker has its rules.
    Loaded(Loaded),
    /// These rules are not used.
    RulesRefused {
        /// Their version.
        version: String,
        /// What they did, and what is used now.
        reason: String,
    },
    /// A worker died or had to be killed.
    Died(String),
    /// No worker can live; files are not scanned until the next try.
    Unavailable(String),
}

#[derive(Debug)]
enum Stage {
    Stopped,
    Loading(Process, Load),
    Ready(Process, Served),
    Waiting(Instant),
    Broken(String, Instant),
}

#[derive(Debug, Clone, Copy)]
struct Load {
    /// Until when it has to answer with its rules loaded.
    until: Instant,
    looked: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Served {
    files: u64,
    last: Instant,
    looked: Instant,
    retire: bool,
}

/// A descriptor, and what it says of the file.
type Payload = (OwnedFd, Option<FileKey>);

/// The pool; see above.
#[derive(Debug)]
pub struct Pool {
    settings: Settings,
    /// The rules that are wanted.
    version: String,
    compiler: Option<Compiler>,
    /// The rules that workers load.
    compiled: Option<Arc<Compiled>>,
    /// Those before, until a worker has loaded the present ones.
    previous: Option<Arc<Compiled>>,
    /// A worker has loaded the present ones: what kills later workers is not in the rules.
    proven: bool,
    /// Used when there are no good ones at all.
    fallback: Option<RuleSet>,
    stage: Stage,
    flight: Flight<Payload>,
    generation: u64,
    /// Without an answer or a loaded rule set in between.
    deaths: u32,
    load_deaths: u32,
    last_words: Option<String>,
    /// Files that a worker was stuck in, and with which rules.
    stuck: VecDeque<(FileKey, String)>,
    /// A worker is to be started though there is no work.
    wanted: bool,
    uncollected: Vec<Child>,
    told: Sender<Note>,
    notes: Receiver<Note>,
}

impl Pool {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(mut settings: Settings) -> Self {
        settings.size_max_bytes = settings.size_max_bytes.clamp(2, SIZE_BYTES_MAX);
        settings.threads = settings.threads.clamp(1, threads_max(settings.size_max_bytes));
        let (told, notes) = bounded(NOTES_MAX);
        Self {
            flight: Flight::new(settings.threads, settings.batch, settings.timeout + GRACE),
            version: settings.rules.version().to_owned(),
            settings,
            compiler: None,
            compiled: None,
            previous: None,
            proven: false,
            fallback: None,
            stage: Stage::Stopped,
            generation: 0,
            deaths: 0,
            load_deaths: 0,
            last_words: None,
            stuck: VecDeque::new(),
            wanted: false,
            uncollected: Vec::new(),
            told,
            notes,
        }
    }

    /// One that uses rules that another pool compiled; those in the settings are not looked at.
    #[must_use]
    pub fn with_compiled(settings: Settings, compiled: Arc<Compiled>) -> Self {
        let mut pool = Self::new(settings);
        compiled.loaded.version.clone_into(&mut pool.version);
        pool.compiled = Some(compiled);
        pool
    }

    /// Rules that are used when the first ones kill every worker that loads them.
    pub fn fall_back_to(&mut self, rules: RuleSet) {
        self.fallback.get_or_insert(rules);
    }

    /// The rules that it scans with, for another pool; `None` until they are compiled.
    #[must_use]
    pub fn compiled(&self) -> Option<Arc<Compiled>> {
        self.compiled.clone()
    }

    /// What the worker computes of files that it is handed from now on, bits of [`super::digests`], for lists of this
    /// version.
    pub fn want_digests(&mut self, digests: u32, lists_version: &str) {
        self.settings.digests = digests;
        lists_version.clone_into(&mut self.settings.lists_version);
    }

    /// Where workers that are started from now on may look for content that is known to be clean.
    pub fn look_in(&mut self, clean: Option<Arc<Table>>) {
        self.settings.clean = clean;
    }

    /// To select on; each note goes to [`Self::note`].
    #[must_use]
    pub fn notes(&self) -> &Receiver<Note> {
        &self.notes
    }

    /// How many jobs it takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.flight.room()
    }

    /// It has no job.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flight.is_empty()
    }

    /// Version of the rules in use; of those that are wanted while there are none.
    #[must_use]
    pub fn rules_version(&self) -> &str {
        self.compiled.as_ref().map_or(&self.version, |compiled| &compiled.loaded.version)
    }

    /// Process id of the scanning worker, when there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.stage {
            Stage::Loading(process, _) | Stage::Ready(process, _) => Some(process.pid()),
            Stage::Stopped | Stage::Waiting(_) | Stage::Broken(..) => None,
        }
    }

    /// Above it only head and tail of a file are scanned. Bytes.
    #[must_use]
    pub fn size_max_bytes(&self) -> u64 {
        self.settings.size_max_bytes
    }

    /// Files that are not tried again.
    #[must_use]
    pub fn poison(&self) -> &Poison {
        &self.settings.poison
    }

    /// Starts a worker though there is no work: to know what the rules are worth. Ends in [`Output::Loaded`],
    /// [`Output::RulesRefused`] or [`Output::Unavailable`].
    pub fn prepare(&mut self, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        self.wanted = true;
        self.advance(now, &mut out);
        out
    }

    /// Other rules, as soon as they are compiled; what is in flight then is scanned with them.
    pub fn use_rules(&mut self, rules: RuleSet, now: Instant) -> Vec<Output> {
        rules.version().clone_into(&mut self.version);
        self.settings.rules = rules;
        (self.load_deaths, self.deaths, self.compiler) = (0, 0, None);
        if matches!(self.stage, Stage::Waiting(_) | Stage::Broken(..)) {
            self.stage = Stage::Stopped;
        }
        let mut out = self.prepare(now);
        if matches!(self.stage, Stage::Ready(..))
            && let Some(same) = self.compiled.as_ref().filter(|same| same.loaded.version == self.version)
        {
            // A worker has them: nothing has to be done, and somebody waits for the answer.
            self.wanted = false;
            out.push(Output::Loaded(same.loaded.clone()));
        }
        out
    }

    /// Rules that another pool compiled.
    pub fn use_compiled(&mut self, compiled: Arc<Compiled>, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        compiled.loaded.version.clone_into(&mut self.version);
        (self.load_deaths, self.deaths, self.compiler) = (0, 0, None);
        self.change_to(compiled);
        self.advance(now, &mut out);
        out
    }

    /// A file to scan.
    pub fn submit(&mut self, id: u64, file: OwnedFd, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        let key = rustix::fs::fstat(&file).ok().map(|stat| FileKey::of(&stat));
        let known = key.as_ref().and_then(|key| self.settings.poison.reason(key, self.rules_version()));
        let job = Job::new(id, key.map_or(0, |key| key.size), (file, key));
        if let Some(reason) = known {
            let outcome = Outcome::Died(format!("not tried again: {reason}"));
            out.push(self.done(job, outcome));
            return out;
        }
        self.flight.add(job);
        self.advance(now, &mut out);
        out
    }

    /// What a worker said.
    pub fn note(&mut self, note: Note, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        let current = match &self.stage {
            Stage::Loading(process, _) | Stage::Ready(process, _) => process.generation == note.generation,
            Stage::Stopped | Stage::Waiting(_) | Stage::Broken(..) => false,
        };
        // An earlier worker's last words are about jobs that were settled when it was killed.
        if current {
            match note.report {
                Report::Answer(answer) => self.answer(answer, now, &mut out),
                Report::Garbage(reason) => self.died(Some(reason), false, now, &mut out),
                Report::Closed => self.died(None, true, now, &mut out),
            }
        } else if let Some(compiler) = &mut self.compiler
            && compiler.generation() == Some(note.generation)
        {
            let step = compiler.note(note.report, now);
            self.compiling(step, now, &mut out);
        }
        self.advance(now, &mut out);
        out
    }

    /// What is due.
    pub fn tick(&mut self, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        self.uncollected.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Some(compiler) = &mut self.compiler {
            let step = compiler.tick(now, self.settings.launcher.patience());
            self.compiling(step, now, &mut out);
        }
        match &mut self.stage {
            Stage::Loading(_, load) if load.until <= now => {
                self.died(Some("it did not load the rules in time".into()), false, now, &mut out);
            }
            Stage::Loading(process, load) if load.looked + self.settings.launcher.patience() <= now => {
                load.looked = now;
                if process.is_stopped() {
                    self.replace_stopped(now, &mut out);
                }
            }
            Stage::Ready(..) if self.flight.deadline().is_some_and(|deadline| deadline <= now) => {
                self.kill_stuck(now, &mut out);
            }
            Stage::Ready(process, served)
                if !self.flight.is_idle() && served.looked + self.settings.launcher.patience() <= now =>
            {
                served.looked = now;
                if process.is_stopped() {
                    self.replace_stopped(now, &mut out);
                }
            }
            Stage::Ready(_, served) if self.flight.is_empty() && served.last + IDLE_TIME <= now => {
                self.stop();
            }
            Stage::Waiting(until) | Stage::Broken(_, until) if *until <= now => self.stage = Stage::Stopped,
            Stage::Stopped
            | Stage::Loading(..)
            | Stage::Ready(..)
            | Stage::Waiting(_)
            | Stage::Broken(..) => {}
        }
        self.advance(now, &mut out);
        out
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let stage = match &self.stage {
            Stage::Stopped => None,
            Stage::Waiting(until) | Stage::Broken(_, until) => Some(*until),
            Stage::Loading(_, load) => Some(load.until.min(load.looked + self.settings.launcher.patience())),
            Stage::Ready(_, served) => match self.flight.deadline() {
                Some(deadline) => Some(deadline.min(served.looked + self.settings.launcher.patience())),
                None => Some(served.last + IDLE_TIME),
            },
        };
        let patience = self.settings.launcher.patience();
        let compiler = self.compiler.as_ref().map(|compiler| compiler.due_at(patience));
        [stage, compiler].into_iter().flatten().min()
    }

    /// For callers that have nothing else to wait for: at most `time` for one note or for what is due.
    pub fn wait(&mut self, time: Duration) -> Vec<Output> {
        let now = Instant::now();
        let until = self.wake_at().map_or(now + time, |at| at.min(now + time));
        match self.notes.recv_deadline(until) {
            Ok(note) => self.note(note, Instant::now()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.tick(Instant::now()),
        }
    }

    fn compiling(&mut self, step: Step, now: Instant, out: &mut Vec<Output>) {
        match step {
            Step::Working => {}
            Step::Died(detail) => out.push(Output::Died(detail)),
            Step::Failed(reason) => {
                self.compiler = None;
                self.refuse_rules(&reason, now, out);
            }
            // The rules are not to blame: they are tried again.
            Step::NoWorker(reason) if self.compiled.is_none() => {
                self.compiler = None;
                self.break_down(&reason, now, out);
            }
            Step::NoWorker(reason) => {
                self.compiler = None;
                self.refuse_rules(&reason, now, out);
            }
            Step::Done(compiled) => {
                self.compiler = None;
                let loaded = &compiled.loaded;
                let others = self.compiled.is_some() || self.has_fallback();
                if loaded.rules == 0 && !loaded.problems.is_empty() && others {
                    out.push(Output::Loaded(compiled.loaded));
                    return self.refuse_rules("not one of their files could be compiled", now, out);
                }
                self.change_to(Arc::new(*compiled));
            }
        }
    }

    fn has_fallback(&self) -> bool {
        self.fallback.as_ref().is_some_and(|rules| rules.version() != self.version)
    }

    /// The next worker loads these.
    fn change_to(&mut self, compiled: Arc<Compiled>) {
        self.stop();
        self.flight.put_back();
        self.previous = self.compiled.replace(compiled);
        self.proven = false;
    }

    fn answer(&mut self, answer: Answer, now: Instant, out: &mut Vec<Output>) {
        match answer {
            Answer::Ready(ready) if ready.failure.is_empty() => out.push(Output::Started(ready)),
            Answer::Ready(ready) => self.last_words = Some(ready.failure),
            Answer::Dying(reason) => self.last_words = Some(reason),
            Answer::Loaded(version) => self.loaded(&version, now, out),
            Answer::Scanned(files) => {
                for (id, scan) in files {
                    let Some(job) = self.flight.answered(id, now) else {
                        let reason = "it answered for a file that it was not given".into();
                        return self.died(Some(reason), false, now, out);
                    };
                    self.deaths = 0;
                    out.push(self.done(job, Outcome::Scanned(scan)));
                    self.count_file(now);
                }
            }
            Answer::Compiling(_) | Answer::Compiled(..) => {
                self.died(Some("it answered what it was not asked".into()), false, now, out);
            }
        }
    }

    fn loaded(&mut self, version: &str, now: Instant, out: &mut Vec<Output>) {
        let Some(compiled) = self.compiled.clone().filter(|compiled| compiled.loaded.version == version)
        else {
            return self.died(Some("it loaded other rules than it was given".into()), false, now, out);
        };
        self.previous = None;
        self.proven = true;
        // These may be the ones before: others are being compiled, and somebody waits for them.
        self.wanted &= version != self.version;
        (self.deaths, self.load_deaths) = (0, 0);
        self.stage = match std::mem::replace(&mut self.stage, Stage::Stopped) {
            Stage::Loading(process, _) => {
                Stage::Ready(process, Served { files: 0, last: now, looked: now, retire: false })
            }
            stage @ (Stage::Stopped | Stage::Ready(..) | Stage::Waiting(_) | Stage::Broken(..)) => stage,
        };
        out.push(Output::Loaded(compiled.loaded.clone()));
    }

    fn count_file(&mut self, now: Instant) {
        if let Stage::Ready(process, served) = &mut self.stage {
            served.files += 1;
            served.last = now;
            if served.files % FILES_BETWEEN_LOOKS == 0 {
                served.retire =
                    served.files >= FILES_MAX || resident_bytes(process.pid()) > RESIDENT_BYTES_MAX;
            }
        }
    }

    fn done(&self, job: Job<Payload>, outcome: Outcome) -> Output {
        let rules_version = self.rules_version().to_owned();
        Output::Done(Box::new(Done { id: job.id, file: job.payload.0, rules_version, outcome }))
    }

    /// Starts what has to be started and hands out what can be handed out.
    fn advance(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let Stage::Broken(reason, _) = &self.stage {
            let reason = reason.clone();
            for job in self.flight.give_up() {
                out.push(self.done(job, Outcome::NotScanned(reason.clone())));
            }
            return;
        }
        self.compile(now, out);
        if let Stage::Ready(_, served) = &self.stage
            && served.retire
            && self.flight.is_idle()
        {
            self.stop();
        }
        if matches!(self.stage, Stage::Stopped) && (self.wanted || !self.flight.is_empty()) {
            self.start(now, out);
        }
        let Stage::Ready(process, served) = &self.stage else { return };
        if served.retire {
            return;
        }
        while let Some(jobs) = self.flight.next(now) {
            let timeout_ms = u64::try_from(self.settings.timeout.as_millis()).unwrap_or(u64::MAX);
            let (size_max_bytes, digests) = (self.settings.size_max_bytes, self.settings.digests);
            let request =
                |job: &Job<Payload>| ScanRequest { id: job.id, size_max_bytes, timeout_ms, digests };
            let requests = jobs.iter().map(request).collect();
            let files: Vec<BorrowedFd<'_>> = jobs.iter().map(|job| job.payload.0.as_fd()).collect();
            match process.scan(requests, &files) {
                Ok(()) => {}
                // It is gone; the end of its socket says so in a moment, and settles the jobs.
                Err(error) if is_gone(&error) => return,
                // It lives and did not get them: waiting for its answer would end in blaming a file.
                Err(error) => {
                    self.stop();
                    self.flight.put_back();
                    return self.after_death(format!("{error:#}; it was replaced"), now, out);
                }
            }
        }
    }

    /// Has the rules compiled that are wanted, when they are not yet and somebody needs them.
    fn compile(&mut self, now: Instant, out: &mut Vec<Output>) {
        let have = self.compiled.as_ref().is_some_and(|compiled| compiled.loaded.version == self.version);
        let needed = self.wanted || !self.flight.is_empty();
        // Each turn ends or leaves a worker running: deaths are counted.
        while !have && needed && !matches!(self.stage, Stage::Broken(..)) {
            let step = match &mut self.compiler {
                Some(compiler) if !compiler.is_waiting() => return,
                Some(compiler) => {
                    self.generation += 1;
                    compiler.go(&self.settings.launcher, self.generation, &self.told, now)
                }
                None => {
                    self.generation += 1;
                    let rules = self.settings.rules.clone();
                    let (launcher, told) = (&self.settings.launcher, &self.told);
                    let behind = self.compiled.is_some() || self.settings.background;
                    let work = if behind { Work::CompileBehind } else { Work::Compile };
                    let (compiler, step) = Compiler::start(rules, work, launcher, self.generation, told, now);
                    self.compiler = Some(compiler);
                    step
                }
            };
            self.compiling(step, now, out);
        }
    }

    fn start(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(compiled) = self.compiled.clone() else { return };
        if self.uncollected.len() >= UNCOLLECTED_MAX {
            let reason = format!(
                "the kernel holds on to {UNCOLLECTED_MAX} scanners that were killed, in files of a file system that does not answer; unmount it"
            );
            return self.break_down(&reason, now, out);
        }
        self.generation += 1;
        let work = if self.settings.background { Work::Sweep } else { Work::Scan };
        let started = Process::start(&self.settings.launcher, work, self.generation, &self.told);
        let loaded = started.and_then(|process| {
            let version = with_lists(&compiled.loaded.version, &self.settings.lists_version);
            let clean = self.settings.clean.as_deref().map(|table| (table, version));
            process.load(&compiled, self.settings.threads, clean)?;
            Ok(process)
        });
        match loaded {
            Ok(process) => {
                self.stage = Stage::Loading(process, Load { until: now + LOAD_TIME_MAX, looked: now });
            }
            Err(error) => self.start_failed(&format!("{error:#}"), now, out),
        }
    }

    /// The worker hung while it scanned.
    fn kill_stuck(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.stop();
        let reason = "the scanner was stuck and had to be killed".to_owned();
        for blame in self.flight.killed(now) {
            let (Blame::Overdue(job) | Blame::Culprit(job)) = blame;
            if self.was_stuck_before(&job) {
                self.poison_file(&job, &format!("{reason}, twice"));
            }
            out.push(self.done(job, Outcome::TimedOut(reason.clone())));
        }
        self.after_death(reason, now, out);
    }

    /// Once may be the fault of a slow disk: the file gets one more chance, when it is met again.
    fn was_stuck_before(&mut self, job: &Job<Payload>) -> bool {
        let Some(key) = job.payload.1 else { return false };
        let this = (key, self.rules_version().to_owned());
        if let Some(at) = self.stuck.iter().position(|known| *known == this) {
            self.stuck.remove(at);
            return true;
        }
        if self.stuck.len() >= STUCK_MAX {
            self.stuck.pop_front();
        }
        self.stuck.push_back(this);
        false
    }

    /// Somebody stopped the worker with a signal: no file is to blame.
    fn replace_stopped(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.stop();
        self.flight.put_back();
        self.after_death("the scanner was stopped by a signal, and replaced".to_owned(), now, out);
    }

    /// The worker ended without being asked to, or has to end.
    fn died(&mut self, reason: Option<String>, hung_up: bool, now: Instant, out: &mut Vec<Output>) {
        let (process, loading) = match std::mem::replace(&mut self.stage, Stage::Stopped) {
            Stage::Loading(process, _) => (process, true),
            Stage::Ready(process, _) => (process, false),
            Stage::Stopped | Stage::Waiting(_) | Stage::Broken(..) => return,
        };
        let ended = self.collect(process, hung_up);
        let words = [reason, self.last_words.take()].into_iter().flatten().chain([ended]).collect::<Vec<_>>();
        let detail = format!("the scanner died: {}", words.join(", "));
        if loading {
            return self.load_failed(&detail, now, out);
        }
        if let Some(Blame::Culprit(job) | Blame::Overdue(job)) = self.flight.died() {
            self.poison_file(&job, &detail);
            out.push(self.done(job, Outcome::Died(detail.clone())));
        }
        self.after_death(detail, now, out);
    }

    fn poison_file(&mut self, job: &Job<Payload>, reason: &str) {
        if let Some(key) = &job.payload.1 {
            self.settings.poison.add(*key, self.rules_version(), reason);
        }
    }

    /// At once after the first death, later after the second, and so on.
    fn after_death(&mut self, detail: String, now: Instant, out: &mut Vec<Output>) {
        let wait = match self.deaths {
            0 => Duration::ZERO,
            deaths => BACKOFF_MAX.min(Duration::from_millis(50) * 2u32.saturating_pow(deaths.min(16) - 1)),
        };
        self.deaths = self.deaths.saturating_add(1);
        self.stage = if wait.is_zero() { Stage::Stopped } else { Stage::Waiting(now + wait) };
        out.push(Output::Died(detail));
    }

    /// It never ran: the system lacks descriptors, memory, processes. The rules are not to blame.
    fn start_failed(&mut self, detail: &str, now: Instant, out: &mut Vec<Output>) {
        if self.deaths < LOAD_DEATHS_MAX {
            return self.after_death(detail.to_owned(), now, out);
        }
        out.push(Output::Died(detail.to_owned()));
        self.break_down(detail, now, out);
    }

    fn load_failed(&mut self, detail: &str, now: Instant, out: &mut Vec<Output>) {
        out.push(Output::Died(detail.to_owned()));
        self.load_deaths += 1;
        if self.load_deaths < LOAD_DEATHS_MAX {
            self.stage = Stage::Waiting(now + Duration::from_millis(100) * self.load_deaths);
        } else if self.proven {
            // An earlier worker loaded them: something else kills, such as a host without memory.
            self.break_down(detail, now, out);
        } else {
            self.compiled = self.previous.take();
            self.proven = self.compiled.is_some();
            self.stop();
            self.refuse_rules(detail, now, out);
        }
    }

    /// No worker can live, for a reason that is not in the rules: they stay, and are tried again later.
    fn break_down(&mut self, reason: &str, now: Instant, out: &mut Vec<Output>) {
        (self.deaths, self.load_deaths) = (0, 0);
        self.stop();
        self.stage = Stage::Broken(reason.to_owned(), now + RETRY_TIME);
        out.push(Output::Unavailable(reason.to_owned()));
    }

    /// The wanted rules are of no use: those in use stay, or those that ship are tried, or there are none.
    fn refuse_rules(&mut self, reason: &str, now: Instant, out: &mut Vec<Output>) {
        let refused = self.version.clone();
        (self.deaths, self.load_deaths) = (0, 0);
        let next = match (&self.compiled, &self.fallback) {
            (Some(compiled), _) => compiled.loaded.version.clone(),
            (None, Some(rules)) if rules.version() != refused => {
                self.settings.rules = rules.clone();
                rules.version().to_owned()
            }
            (None, Some(_) | None) => {
                self.wanted = false;
                self.stop();
                self.stage = Stage::Broken(reason.to_owned(), now + RETRY_TIME);
                return out.push(Output::Unavailable(reason.to_owned()));
            }
        };
        let reason = format!("{reason}; the last good rules, {next}, are used instead");
        self.version = next;
        if matches!(self.stage, Stage::Waiting(_)) {
            self.stage = Stage::Stopped;
        }
        out.push(Output::RulesRefused { version: refused, reason });
    }

    fn stop(&mut self) {
        if let Stage::Loading(process, _) | Stage::Ready(process, _) =
            std::mem::replace(&mut self.stage, Stage::Stopped)
        {
            self.collect(process, false);
        }
        self.last_words = None;
    }

    fn collect(&mut self, process: Process, hung_up: bool) -> String {
        match process.end(hung_up) {
            Ok(cause) => cause,
            Err(child) => {
                if self.uncollected.len() < UNCOLLECTED_MAX {
                    self.uncollected.push(child);
                }
                "killed, but the kernel holds on to it".to_owned()
            }
        }
    }
}

/// Scans in flight while files up to this size are scanned whole: each thread holds one, and together they must leave
/// room for rules.
#[must_use]
pub fn threads_max(size_max_bytes: u64) -> usize {
    let fitting = FILES_BYTES_MAX / size_max_bytes.clamp(2, SIZE_BYTES_MAX);
    usize::try_from(fitting).unwrap_or(THREADS_MAX).clamp(1, THREADS_MAX)
}

/// Whether the other end of its socket is closed.
fn is_gone(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(BrokenPipe | ConnectionReset | NotConnected))
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}
