//! The parent's half: a worker when there is work, another when it dies, none when there is nothing to do.
//!
//! Owned by one thread, which hands it jobs while there is `Pool::room`, gives it the notes of `Pool::notes`,
//! and calls `Pool::tick` at `Pool::wake_at`. What comes of it are `Output`s. Workers are tied to the life of
//! the thread that starts them (PR_SET_PDEATHSIG), so that thread has to stay.

use super::flight::{Blame, Flight, Job};
use super::messages::{Answer, Loaded, Ready, ScanRequest};
use super::poison::{FileKey, Poison};
use super::process::{Launcher, NOTES_MAX, Note, Process, Report, resident_bytes};
use super::{Outcome, RuleSet, SIZE_BYTES_MAX, THREADS_MAX};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

/// Beyond a scan's own time: how long the worker may stay silent before it is killed.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long rules may take to load.
pub const LOAD_TIME_MAX: Duration = Duration::from_secs(180);
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
pub const RESIDENT_BYTES_MAX: u64 = 768 << 20;
/// Of all scans in flight together. Bytes.
pub const FILES_BYTES_MAX: u64 = 512 << 20;
/// How many files pass between two looks at its memory; also the fewest it serves, however large its rules are.
const FILES_BETWEEN_LOOKS: u64 = 256;
/// Killed workers that the kernel has not let go of yet.
const UNCOLLECTED_MAX: usize = 16;

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
    /// What the worker computes for hash lists: bits of [`super::digests`].
    pub digests: u32,
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
    /// Until when it has to answer with its rules loaded.
    Loading(Process, Instant),
    Ready(Process, Served),
    Waiting(Instant),
    Broken(String, Instant),
}

#[derive(Debug, Clone, Copy)]
struct Served {
    files: u64,
    last: Instant,
    retire: bool,
}

/// The pool; see above.
#[derive(Debug)]
pub struct Pool {
    settings: Settings,
    good: Option<RuleSet>,
    stage: Stage,
    flight: Flight<(OwnedFd, Option<FileKey>)>,
    poison: Poison,
    generation: u64,
    /// Without an answer or a loaded rule set in between.
    deaths: u32,
    load_deaths: u32,
    last_words: Option<String>,
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
        // Each thread holds one file; together they must leave room for rules.
        let fitting = usize::try_from(FILES_BYTES_MAX / settings.size_max_bytes).unwrap_or(THREADS_MAX);
        settings.threads = settings.threads.clamp(1, THREADS_MAX.min(fitting));
        let (told, notes) = bounded(NOTES_MAX);
        Self {
            flight: Flight::new(settings.threads, settings.timeout + GRACE),
            settings,
            good: None,
            stage: Stage::Stopped,
            poison: Poison::default(),
            generation: 0,
            deaths: 0,
            load_deaths: 0,
            last_words: None,
            wanted: false,
            uncollected: Vec::new(),
            told,
            notes,
        }
    }

    /// Rules that are used when the first ones kill every worker that loads them.
    pub fn fall_back_to(&mut self, rules: RuleSet) {
        self.good.get_or_insert(rules);
    }

    /// What the worker computes of files that it is handed from now on: bits of [`super::digests`].
    pub fn want_digests(&mut self, digests: u32) {
        self.settings.digests = digests;
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

    /// Version of the rules in use.
    #[must_use]
    pub fn rules_version(&self) -> &str {
        self.settings.rules.version()
    }

    /// Process id of the worker, when there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.stage {
            Stage::Loading(process, _) | Stage::Ready(process, _) => Some(process.pid()),
            Stage::Stopped | Stage::Waiting(_) | Stage::Broken(..) => None,
        }
    }

    /// Files that are not tried again.
    #[must_use]
    pub fn poisoned(&self) -> usize {
        self.poison.len()
    }

    /// Starts a worker though there is no work: to know what the rules are worth. Ends in [`Output::Loaded`],
    /// [`Output::RulesRefused`] or [`Output::Unavailable`].
    pub fn prepare(&mut self, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        self.wanted = true;
        self.advance(now, &mut out);
        out
    }

    /// Other rules, from the next worker on; what is in flight is scanned again by it.
    pub fn use_rules(&mut self, rules: RuleSet, now: Instant) -> Vec<Output> {
        self.settings.rules = rules;
        (self.load_deaths, self.deaths) = (0, 0);
        self.stop();
        self.flight.put_back();
        self.prepare(now)
    }

    /// A file to scan.
    pub fn submit(&mut self, id: u64, file: OwnedFd, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        let key = rustix::fs::fstat(&file).ok().map(|stat| FileKey::of(&stat));
        let known = key.as_ref().and_then(|key| self.poison.reason(key, self.rules_version()));
        if let Some(reason) = known {
            let outcome = Outcome::Died(format!("not tried again: {reason}"));
            out.push(self.done(Job { id, payload: (file, key) }, outcome));
            return out;
        }
        self.flight.add(Job { id, payload: (file, key) });
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
            self.advance(now, &mut out);
        }
        out
    }

    /// What is due.
    pub fn tick(&mut self, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        self.uncollected.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        match &self.stage {
            Stage::Loading(_, until) if *until <= now => {
                self.died(Some("it did not load the rules in time".into()), false, now, &mut out);
            }
            Stage::Ready(..) if self.flight.deadline().is_some_and(|deadline| deadline <= now) => {
                self.kill_stuck(now, &mut out);
            }
            Stage::Ready(_, served) if self.flight.is_empty() && served.last + IDLE_TIME <= now => {
                self.stop()
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
        match &self.stage {
            Stage::Stopped => None,
            Stage::Loading(_, until) | Stage::Waiting(until) | Stage::Broken(_, until) => Some(*until),
            Stage::Ready(_, served) => self.flight.deadline().or(Some(served.last + IDLE_TIME)),
        }
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

    fn answer(&mut self, answer: Answer, now: Instant, out: &mut Vec<Output>) {
        match answer {
            Answer::Ready(ready) if ready.failure.is_empty() => out.push(Output::Started(ready)),
            Answer::Ready(ready) => self.last_words = Some(ready.failure),
            Answer::Dying(reason) => self.last_words = Some(reason),
            Answer::Loaded(loaded) => self.loaded(loaded, now, out),
            Answer::Scanned { id, scan } => match self.flight.answered(id) {
                Some(job) => {
                    self.deaths = 0;
                    out.push(self.done(job, Outcome::Scanned(scan)));
                    self.count_file(now);
                }
                None => {
                    self.died(Some("it answered for a file that it was not given".into()), false, now, out)
                }
            },
        }
    }

    fn loaded(&mut self, loaded: Loaded, now: Instant, out: &mut Vec<Output>) {
        if loaded.version != self.rules_version() {
            return self.died(Some("it loaded other rules than it was given".into()), false, now, out);
        }
        let other_good = self.good.as_ref().is_some_and(|good| good.version() != loaded.version);
        if loaded.rules == 0 && !loaded.problems.is_empty() && other_good {
            out.push(Output::Loaded(loaded));
            self.stop();
            return self.refuse_rules("not one of their files could be compiled", now, out);
        }
        self.good = Some(self.settings.rules.clone());
        self.wanted = false;
        (self.deaths, self.load_deaths) = (0, 0);
        self.stage = match std::mem::replace(&mut self.stage, Stage::Stopped) {
            Stage::Loading(process, _) => {
                Stage::Ready(process, Served { files: 0, last: now, retire: false })
            }
            stage @ (Stage::Stopped | Stage::Ready(..) | Stage::Waiting(_) | Stage::Broken(..)) => stage,
        };
        out.push(Output::Loaded(loaded));
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

    fn done(&self, job: Job<(OwnedFd, Option<FileKey>)>, outcome: Outcome) -> Output {
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
        while let Some(job) = self.flight.next(now) {
            let request = ScanRequest {
                id: job.id,
                size_max_bytes: self.settings.size_max_bytes,
                timeout_ms: u64::try_from(self.settings.timeout.as_millis()).unwrap_or(u64::MAX),
                digests: self.settings.digests,
            };
            if process.scan(request, job.payload.0.as_fd()).is_err() {
                // It is gone; the end of its socket says so in a moment, and settles the job.
                return;
            }
        }
    }

    fn start(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.generation += 1;
        let started = Process::start(&self.settings.launcher, self.generation, &self.told);
        let loaded = started.and_then(|process| {
            process.load(&self.settings.rules, self.settings.threads)?;
            Ok(process)
        });
        match loaded {
            Ok(process) => self.stage = Stage::Loading(process, now + LOAD_TIME_MAX),
            Err(error) => self.load_failed(&format!("{error:#}"), now, out),
        }
    }

    /// The worker hung while it scanned.
    fn kill_stuck(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.stop();
        let version = self.rules_version().to_owned();
        let reason = "the scanner was stuck and had to be killed".to_owned();
        for blame in self.flight.killed(now) {
            let (Blame::Overdue(job) | Blame::Culprit(job)) = blame;
            self.poison_file(&job, &version, &reason);
            out.push(self.done(job, Outcome::TimedOut(reason.clone())));
        }
        self.after_death(reason, now, out);
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
        let version = self.rules_version().to_owned();
        if let Some(Blame::Culprit(job) | Blame::Overdue(job)) = self.flight.died() {
            self.poison_file(&job, &version, &detail);
            out.push(self.done(job, Outcome::Died(detail.clone())));
        }
        self.after_death(detail, now, out);
    }

    fn poison_file(&mut self, job: &Job<(OwnedFd, Option<FileKey>)>, version: &str, reason: &str) {
        if let Some(key) = &job.payload.1 {
            self.poison.add(*key, version, reason);
        }
    }

    /// At once after the first death, later after the second, and so on.
    fn after_death(&mut self, detail: String, now: Instant, out: &mut Vec<Output>) {
        let wait = match self.deaths {
            0 => Duration::ZERO,
            deaths => BACKOFF_MAX.min(Duration::from_millis(100) * 2u32.saturating_pow(deaths.min(16) - 1)),
        };
        self.deaths = self.deaths.saturating_add(1);
        self.stage = if wait.is_zero() { Stage::Stopped } else { Stage::Waiting(now + wait) };
        out.push(Output::Died(detail));
    }

    fn load_failed(&mut self, detail: &str, now: Instant, out: &mut Vec<Output>) {
        out.push(Output::Died(detail.to_owned()));
        self.load_deaths += 1;
        if self.load_deaths < LOAD_DEATHS_MAX {
            self.stage = Stage::Waiting(now + Duration::from_millis(100) * self.load_deaths);
        } else {
            self.refuse_rules(detail, now, out);
        }
    }

    fn refuse_rules(&mut self, reason: &str, now: Instant, out: &mut Vec<Output>) {
        let version = self.rules_version().to_owned();
        match &self.good {
            Some(good) if good.version() != version => {
                let reason = format!("{reason}; the last good rules, {}, are used instead", good.version());
                self.settings.rules = good.clone();
                (self.deaths, self.load_deaths) = (0, 0);
                self.stage = Stage::Stopped;
                out.push(Output::RulesRefused { version, reason });
            }
            Some(_) | None => {
                self.load_deaths = 0;
                self.wanted = false;
                self.stage = Stage::Broken(reason.to_owned(), now + RETRY_TIME);
                out.push(Output::Unavailable(reason.to_owned()));
            }
        }
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

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}
