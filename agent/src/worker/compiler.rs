//! Rules, compiled by a worker of their own, seen from the parent: started, watched, tried again without the file that
//! killed it. Owned by `pool`, which passes on what the worker says and asks when something is due.
//!
//! What comes of it is a file that only this agent's scanning workers get: compiled rules are code.

use super::messages::{Answer, CompiledSet, Loaded, PROBLEMS_MAX, Problem};
use super::process::{Launcher, Note, Process, Report, Work, for_reading};
use super::{RuleSet, Source, clip};
use anyhow::Result;
use crossbeam_channel::Sender;
use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};
use vidette_protocol::limits::TEXT_BYTES_MAX;

/// How long a compiling worker may be silent: it says so before each rule file.
pub const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long compiling may take in all.
pub const COMPILE_TIME_MAX: Duration = Duration::from_secs(600);
/// Deaths by the same file after which it is left out.
pub const STRIKES_MAX: u32 = 2;
/// Deaths by no file in particular from which on the largest file is left out each time.
pub const DEATHS_MAX: u32 = 3;
/// Files that may be left out so; with more the rules are given up.
pub const LEFT_OUT_MAX: usize = 16;

/// Rules that scanning workers can load.
#[derive(Debug)]
pub struct Compiled {
    /// What came of them.
    pub loaded: Loaded,
    /// Where in the file what is.
    pub sets: Vec<CompiledSet>,
    /// Open for reading alone.
    pub file: OwnedFd,
}

/// What became of a step.
#[derive(Debug)]
pub enum Step {
    /// Nothing that others need to know.
    Working,
    /// A worker died, or had to be killed; another is started.
    Died(String),
    /// Done.
    Done(Box<Compiled>),
    /// These rules can't be compiled.
    Failed(String),
    /// No worker can be started, whatever the rules are.
    NoWorker(String),
}

/// Why a worker did not come to its end.
enum Fault {
    /// It died of this, or had to be ended for it.
    Died(String),
    /// It said nothing for [`SILENCE_MAX`].
    Silent,
}

/// One set of rules on its way.
#[derive(Debug)]
pub struct Compiler {
    rules: RuleSet,
    work: Work,
    /// The rule set's, which it keeps when files are left out.
    version: String,
    process: Option<Process>,
    out: Option<OwnedFd>,
    /// The rule file that the worker is at.
    current: Option<usize>,
    last_words: Option<String>,
    left_out: Vec<Problem>,
    strikes: HashMap<String, u32>,
    deaths: u32,
    starts_failed: u32,
    heard: Instant,
    looked: Instant,
    began: Instant,
}

impl Compiler {
    /// Starts a worker for them, one of the two that compile. Its notes carry `generation`.
    pub fn start(
        rules: RuleSet,
        work: Work,
        launcher: &Launcher,
        generation: u64,
        told: &Sender<Note>,
        now: Instant,
    ) -> (Self, Step) {
        let version = rules.version().to_owned();
        let mut compiler = Self {
            rules,
            work,
            version,
            process: None,
            out: None,
            current: None,
            last_words: None,
            left_out: Vec::new(),
            strikes: HashMap::new(),
            deaths: 0,
            starts_failed: 0,
            heard: now,
            looked: now,
            began: now,
        };
        let step = compiler.go(launcher, generation, told, now);
        (compiler, step)
    }

    /// The version of these rules.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Which notes are for it.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.process.as_ref().map(|process| process.generation)
    }

    /// Whether a worker has to be started again, with a generation of its own.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.process.is_none()
    }

    /// Starts the next worker.
    pub fn go(&mut self, launcher: &Launcher, generation: u64, told: &Sender<Note>, now: Instant) -> Step {
        (self.current, self.last_words, self.heard, self.looked) = (None, None, now, now);
        match self.start_worker(launcher, generation, told) {
            Ok(()) => Step::Working,
            Err(error) => self.not_started(format!("the compiler could not be started: {error:#}")),
        }
    }

    /// No rule is to blame, and without a worker none can be.
    fn not_started(&mut self, reason: String) -> Step {
        self.starts_failed += 1;
        if self.starts_failed >= DEATHS_MAX { Step::NoWorker(reason) } else { Step::Died(reason) }
    }

    fn start_worker(&mut self, launcher: &Launcher, generation: u64, told: &Sender<Note>) -> Result<()> {
        let out = launcher.scratch()?;
        let process = Process::start(launcher, self.work, generation, told)?;
        // Each alone once: a second death by none says that it is all of them.
        process.compile(&self.rules, &self.version, self.deaths == 1, out.as_fd())?;
        (self.process, self.out) = (Some(process), Some(out));
        Ok(())
    }

    /// What its worker said.
    pub fn note(&mut self, report: Report, now: Instant) -> Step {
        self.heard = now;
        match report {
            Report::Answer(Answer::Compiling(number)) => {
                self.current = number.and_then(|number| usize::try_from(number).ok());
                Step::Working
            }
            Report::Answer(Answer::Ready(ready)) if ready.failure.is_empty() => Step::Working,
            Report::Answer(Answer::Ready(ready)) => {
                drop(self.stop(false));
                self.not_started(format!("the compiler could not shut itself in: {}", ready.failure))
            }
            Report::Answer(Answer::Dying(reason)) => {
                self.last_words = Some(reason);
                Step::Working
            }
            Report::Answer(Answer::Compiled(loaded, sets)) => self.done(loaded, sets),
            Report::Answer(Answer::Loaded(_) | Answer::Scanned(_)) => {
                self.end("it answered what it was not asked".into(), false)
            }
            Report::Garbage(reason) => self.end(reason, false),
            Report::Closed => self.end(String::new(), true),
        }
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn due_at(&self, patience: Duration) -> Instant {
        (self.heard + SILENCE_MAX).min(self.began + COMPILE_TIME_MAX).min(self.looked + patience)
    }

    /// What is due. `patience` is how long a worker that somebody stopped by a signal is waited for.
    pub fn tick(&mut self, now: Instant, patience: Duration) -> Step {
        if self.began + COMPILE_TIME_MAX <= now {
            drop(self.stop(false));
            return Step::Failed(format!("compiling took more than {} s", COMPILE_TIME_MAX.as_secs()));
        }
        if self.process.is_some() && self.heard + SILENCE_MAX <= now {
            drop(self.stop(false));
            return self.gone(&Fault::Silent);
        }
        if self.looked + patience <= now {
            self.looked = now;
            if self.process.as_ref().is_some_and(Process::is_stopped) {
                // No file is to blame. Whoever does that for ever is stopped by the time in all.
                self.stop(false);
                return Step::Died("the compiler was stopped by a signal, and replaced".to_owned());
            }
        }
        Step::Working
    }

    fn done(&mut self, mut loaded: Loaded, sets: Vec<CompiledSet>) -> Step {
        if loaded.version != self.version {
            return self.end("it compiled other rules than it was given".into(), false);
        }
        let out = self.out.take();
        self.stop(false);
        let Some(out) = out else { return Step::Working };
        // Those that killed it first: the rest is cut, not these.
        loaded.problems.splice(0..0, self.left_out.drain(..));
        loaded.problems.truncate(PROBLEMS_MAX);
        match for_reading(&out) {
            Ok(file) => Step::Done(Box::new(Compiled { loaded, sets, file })),
            Err(error) => Step::Failed(format!("{error:#}")),
        }
    }

    /// The worker ended, or has to.
    fn end(&mut self, reason: String, hung_up: bool) -> Step {
        let ended = self.stop(hung_up);
        let words = [Some(reason), self.last_words.take(), ended].into_iter().flatten();
        let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
        self.gone(&Fault::Died(words.join(", ")))
    }

    /// A file that ends it twice is left out. When nobody knows which, each is tried alone next; when none of them is
    /// it, they are too much together, and the largest goes.
    fn gone(&mut self, fault: &Fault) -> Step {
        let name = self.current.and_then(|at| self.rules.sources().get(at)).map(|file| file.name.clone());
        let Some(name) = name else {
            self.deaths += 1;
            let reason = fault.of_all();
            return if self.deaths < DEATHS_MAX {
                Step::Died(reason)
            } else {
                self.leave_out_largest(&reason)
            };
        };
        let reason = fault.of_file(&name);
        let strikes = self.strikes.entry(name.clone()).or_default();
        *strikes += 1;
        if *strikes >= STRIKES_MAX {
            if self.left_out.len() >= LEFT_OUT_MAX {
                return Step::Failed(reason);
            }
            self.leave_out(&name, &fault.of_this());
        }
        Step::Died(reason)
    }

    fn leave_out_largest(&mut self, reason: &str) -> Step {
        let largest = self.rules.sources().iter().max_by_key(|file| file.text.len());
        let (true, Some(largest)) = (self.rules.sources().len() > 1, largest) else {
            return Step::Failed(reason.to_owned());
        };
        if self.left_out.len() >= LEFT_OUT_MAX {
            return Step::Failed(reason.to_owned());
        }
        let name = largest.name.clone();
        let message = format!(
            "the file is left out as the largest of rules that are too much together ({reason}); use fewer rules"
        );
        self.leave_out(&name, &message);
        Step::Died(format!("{reason}; the largest file, {name}, is left out"))
    }

    fn leave_out(&mut self, name: &str, message: &str) {
        let files = self.rules.sources().iter().filter(|file| file.name != name);
        self.rules = RuleSet::new(files.cloned().collect::<Vec<Source>>());
        self.left_out.push(Problem {
            file: name.to_owned(),
            message: clip(message, TEXT_BYTES_MAX),
            error: true,
            ..Problem::default()
        });
    }

    fn stop(&mut self, hung_up: bool) -> Option<String> {
        self.out = None;
        // One that the kernel holds on to is collected when this program ends.
        self.process.take().map(|process| process.end(hung_up).unwrap_or_else(|_| "killed".to_owned()))
    }
}

impl Fault {
    fn of_all(&self) -> String {
        match self {
            Self::Died(cause) => format!("the compiler died: {cause}"),
            Self::Silent => {
                format!("all rule files together took more than {} s to compile", SILENCE_MAX.as_secs())
            }
        }
    }

    fn of_file(&self, name: &str) -> String {
        match self {
            Self::Died(cause) => format!("the compiler died in the rule file {name}: {cause}"),
            Self::Silent => {
                let seconds = SILENCE_MAX.as_secs();
                format!(
                    "the rule file {name} took more than {seconds} s to compile; the compiler was replaced"
                )
            }
        }
    }

    /// Said of a file that is left out.
    fn of_this(&self) -> String {
        match self {
            Self::Died(cause) => format!("the file kills the compiler: {cause}"),
            Self::Silent => {
                format!("the file takes too long to compile: more than {} s", SILENCE_MAX.as_secs())
            }
        }
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        self.stop(false);
    }
}
