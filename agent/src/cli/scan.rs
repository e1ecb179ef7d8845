//! `vidette-agent scan PATH…`: scans files now, through the same sandboxed worker, and prints what it finds.
//!
//! What is found goes to standard output, everything else to standard error.

/// Where it begins.
pub mod roots;
/// What it keeps for the next time.
pub mod cache;
/// What a terminal shows meanwhile.
pub mod progress;
/// What it did, in the end.
pub mod totals;

use crate::detection::events::{Item, Looked, What};
use crate::detection::hashes::{self, HashSources, Hashes};
use crate::detection::rules::RuleSources;
use crate::detection::sweep::budget::{CPU_PERCENT_MAX, Gate};
use crate::detection::sweep::engine::{self, ANSWER_TIME_MAX, Done, Ended, Engine, Plan, Said};
use crate::detection::sweep::walk::Figures;
use crate::detection::sweep::{Cross, Options};
use crate::detection::verdicts::Verdicts;
use crate::host::{Host, Moment};
use crate::stop::{self, Stop};
use crate::worker::pool::{self, Output, Pool, Settings};
use crate::worker::process::Launcher;
use crate::worker::{Outcome, SIZE_BYTES_MAX, SIZE_DEFAULT_BYTES, THREADS_MAX};
use anyhow::{Context as _, Result, bail};
use progress::Progress;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use totals::{Mistakes, Totals};
use vidette_protocol::wire::{Severity, Trigger, Verdict, event::Kind};
use vidette_protocol::{ecs, escape};

/// The scanner's clock ticks in seconds: less would end scans that just began.
const TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// What `--help` ends with.
const AFTER_HELP: &str = "\
Files are scanned as they are: archives are not opened. What was scanned is not scanned again with the same rules
while it stays as it is, so that the same command goes on where it was stopped; what matched is told again each time.

Exit code: 0 everything is clean, 1 something matched, 2 nothing matched but not everything could be scanned whole.

Examples:
  vidette-agent scan /home /var/www
  vidette-agent scan --json --rules my-rules/ /srv | jq .
  vidette-agent scan --pid 4711                 what one process holds in memory
  vidette-agent scan --all-processes";

/// `vidette-agent scan`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Files and folders to scan. What is named twice, or lies within another one that is named, is scanned once.
    #[arg(required_unless_present_any = ["pid", "all_processes"])]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    processes: super::scan_memory::Processes,
    /// One JSON object (ECS field names) for each file that matched or could not be scanned.
    #[arg(long)]
    json: bool,
    /// More rules: files, or folders of *.yar and *.yara files. May be repeated.
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// Hash lists: files, or folders of *.txt, *.csv and *.hashes files. May be repeated.
    #[arg(long, value_name = "FILE")]
    hashes: Vec<PathBuf>,
    /// Do not use the rules that ship with the agent.
    #[arg(long)]
    no_builtin_rules: bool,
    /// Of a larger file only head and tail are scanned, of a sparse one its data.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(SIZE_DEFAULT_BYTES))]
    max_size: ByteSize,
    /// Give a file up after this time.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: jiff::SignedDuration,
    /// Files scanned at the same time, 1 to 16; with a larger --max-size fewer [default: one for each processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX as i64))]
    threads: Option<u16>,
    /// Follow symbolic links.
    #[arg(long)]
    follow: bool,
    /// Also enter other file systems that are mounted below a path.
    #[arg(long)]
    cross_filesystems: bool,
    /// Use at most so much of one processor, scanner included; 200 is two [default: no limit].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=i64::from(CPU_PERCENT_MAX)))]
    cpu: Option<u32>,
    /// Read at most so many million bytes a second [default: no limit].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    io: Option<u64>,
    /// Scan everything, and keep nothing for the next time.
    #[arg(long, conflicts_with = "cache")]
    no_cache: bool,
    /// Where to keep what is known of files [default: in /var/cache/vidette for root, else in ~/.cache/vidette].
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
}

/// A number of bytes, as typed: `64MiB`, `1k`, `500`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl std::str::FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            _ => return Err(format!("`{text}` is no size: write it like 64MiB")),
        };
        let number: u64 =
            text[..digits].parse().map_err(|_| format!("`{text}` is no size: write it like 64MiB"))?;
        match number.checked_mul(unit) {
            Some(bytes @ 2..=SIZE_BYTES_MAX) => Ok(Self(bytes)),
            Some(_) | None => Err(format!("the size must be between 2 and {SIZE_BYTES_MAX} bytes")),
        }
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes % (1 << 20) == 0 => write!(f, "{}MiB", bytes >> 20),
            bytes => write!(f, "{bytes}"),
        }
    }
}

struct Scan {
    host: Host,
    json: bool,
    totals: Totals,
    progress: Progress,
    figures: Arc<Figures>,
    rules_version: String,
    /// As they were typed.
    named: Vec<PathBuf>,
    /// What is found is kept for the next time.
    keeps: bool,
    /// There are hash lists, so that nothing needs rules.
    lists: bool,
}

/// Runs it.
///
/// # Errors
/// There are no rules, no worker, or nobody reads the output.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.processes.are_asked() {
        let (settings, _, mistakes) = settings(&args)?;
        return super::scan_memory::run(&args.processes, args.json, settings, mistakes);
    }
    let (stopper, stop) = stop::channel();
    stop::on_signal(stopper)?;
    let start = Instant::now();
    let roots = roots::outermost(&args.paths, args.cross_filesystems);
    let (mut scan, mut engine) = prepare(&args, &roots, &stop)?;
    let ended = match engine.run(&roots, &mut |said| scan.said(said)) {
        Ok(ended) => ended,
        // What is found from here on can't be told: a script that reads only the first line must not take it for clean.
        Err(error) if super::is_closed_pipe(&error) => Ended::CutShort,
        Err(error) => return Err(error),
    };
    scan.totals.stopped = ended == Ended::CutShort;
    scan.totals.known = scan.figures.known.load(Ordering::Relaxed);
    scan.totals.skipped = scan.figures.skipped.load(Ordering::Relaxed);
    scan.progress.end();
    scan.totals.print(start.elapsed(), scan.keeps);
    Ok(scan.totals.exit_code())
}

/// What the worker is to do, the hash lists, and what is wrong with either so far.
fn settings(args: &Args) -> Result<(Settings, Hashes, Mistakes)> {
    let timeout = Duration::try_from(args.timeout).ok().filter(|timeout| *timeout >= TIMEOUT_MIN);
    let Some(timeout) = timeout else {
        bail!("--timeout must be at least {} seconds", TIMEOUT_MIN.as_secs())
    };
    let sources = RuleSources { builtin: !args.no_builtin_rules, files: args.rules.clone() };
    let found = sources.load();
    for error in &found.errors {
        eprintln!("{error}");
    }
    let hashes = lists(&args.hashes)?;
    if found.sources.is_empty() && hashes.wanted() == 0 {
        bail!("there are no rules: leave out --no-builtin-rules, or name some with --rules");
    }
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mistakes = Mistakes { rules: found.errors.len() as u64, hashes: hashes.complaints().count() as u64 };
    let fitting = pool::threads_max(args.max_size.0);
    if let Some(asked) = args.threads.map(usize::from).filter(|asked| *asked > fitting) {
        bail!(
            "--threads {asked} does not go with --max-size {}: each thread holds a file of that size; use at most {fitting}",
            args.max_size
        );
    }
    let settings = Settings {
        threads: args.threads.map_or(processors, usize::from).clamp(1, THREADS_MAX),
        size_max_bytes: args.max_size.0,
        timeout,
        ..Settings::new(Launcher::own()?, found.into_set())
    };
    Ok((settings, hashes, mistakes))
}

/// Made before anything is scanned; the tables lie where temporary files do.
fn lists(files: &[PathBuf]) -> Result<Hashes> {
    let sources = HashSources { files: files.to_vec(), folder: Some(std::env::temp_dir()) };
    let hashes = hashes::build(&sources, &AtomicBool::new(false))?;
    for complaint in hashes.complaints() {
        eprintln!("{complaint}");
    }
    Ok(hashes)
}

fn prepare(args: &Args, roots: &[PathBuf], stop: &Stop) -> Result<(Scan, Engine)> {
    let (settings, hashes, mistakes) = settings(args)?;
    let totals = Totals { mistakes, ..Default::default() };
    let rules_version = settings.rules.version().to_owned();
    let verdicts = verdicts(args, &hashes.version_with(&rules_version)).map(Arc::new);
    let cross = if args.cross_filesystems { Cross::Everything } else { Cross::Stay };
    let options = Options { follow: args.follow, cross, exclude: Vec::new() };
    let gate = Arc::new(Gate::new(stop.clone(), args.cpu.unwrap_or(0)));
    let mut progress = Progress::new()?;
    if !progress.is_hidden() {
        let free = Arc::new(Gate::new(stop.clone(), 0));
        progress.expect(engine::count(roots.to_vec(), options.clone(), free));
    }
    let (keeps, lists) = (verdicts.is_some(), hashes.wanted() != 0);
    let io_bytes_per_s = args.io.unwrap_or(0) * 1_000_000;
    let plan =
        Plan { options, io_bytes_per_s, verdicts, hashes: Arc::new(hashes), keeps_with_mistakes: false };
    let engine = Engine::new(Pool::new(settings), plan, gate);
    let (figures, named) = (engine.figures(), args.paths.clone());
    let scan = Scan {
        host: Host::read(),
        json: args.json,
        totals,
        progress,
        figures,
        rules_version,
        named,
        keeps,
        lists,
    };
    Ok((scan, engine))
}

/// What is known from earlier scans. Without it everything is scanned, which is slower and no worse.
fn verdicts(args: &Args, rules_version: &str) -> Option<Verdicts> {
    if args.no_cache {
        return None;
    }
    match cache::open(args.cache.as_deref(), rules_version) {
        Ok(verdicts) => Some(verdicts),
        Err(error) => {
            let error = escape::terminal(format!("{error:#}").as_bytes());
            eprintln!(
                "nothing is kept for the next scan: {error}; --cache FILE names a place, --no-cache none"
            );
            None
        }
    }
}

impl Scan {
    fn said(&mut self, said: Said) -> Result<()> {
        match said {
            Said::File(done) => self.done(*done)?,
            Said::Unreadable(path, error) => self.unreadable(&path, &error)?,
            Said::NoAnswer(path) => {
                self.totals.silent += 1;
                let seconds = ANSWER_TIME_MAX.as_secs();
                let reason =
                    format!("its file system did not answer for {seconds} s, and is left out from here on");
                self.failed(&path, &reason)?;
            }
            Said::Worker(output) => self.worker(output)?,
            Said::Tick => {}
        }
        let (met, known) = (&self.figures.files, &self.figures.known);
        self.progress.show(&self.totals, met.load(Ordering::Relaxed), known.load(Ordering::Relaxed));
        Ok(())
    }

    fn worker(&mut self, output: Output) -> Result<()> {
        match output {
            Output::Loaded(loaded) => {
                for problem in loaded.problems.iter().filter(|problem| problem.error) {
                    self.totals.mistakes.rules += 1;
                    self.keeps = false;
                    let sentence = escape::terminal(problem.sentence().as_bytes());
                    self.say(&format!("{sentence}; this file's rules are left out"));
                }
                if loaded.rules == 0 && !self.lists {
                    bail!("there is not one usable rule: see `vidette-agent rules check`");
                }
            }
            Output::Unavailable(reason) | Output::RulesRefused { reason, .. } => {
                bail!("nothing can be scanned: {}", escape::terminal(reason.as_bytes()))
            }
            Output::Died(reason) => self.say(&escape::terminal(reason.as_bytes())),
            Output::Started(ready) if ready.landlock == "none" => {
                self.say("this kernel has no Landlock: the scanner is held by its system-call filter and user alone");
            }
            Output::Started(_) | Output::Done(_) => {}
        }
        Ok(())
    }

    fn done(&mut self, done: Done) -> Result<()> {
        match &done.outcome {
            _ if done.again => self.totals.told_again += 1,
            Outcome::Scanned(scan) => {
                self.totals.files += 1;
                self.totals.bytes += scan.scanned_bytes;
            }
            Outcome::TimedOut(_) | Outcome::Died(_) | Outcome::NotScanned(_) => self.totals.files += 1,
        }
        let looked = Looked::new(done.file, done.outcome, &done.rules_version);
        match looked.verdict {
            Verdict::Clean => {}
            Verdict::Matched => {
                self.totals.matched += 1;
                // Why a match is not the whole story.
                if !looked.detail.is_empty() {
                    self.totals.in_part += 1;
                    self.say(&format!("{}: {}", escape::terminal(&done.path), looked.detail));
                }
            }
            Verdict::TooLarge => {
                self.totals.in_part += 1;
                if !self.json {
                    self.say(&format!("{}: {}", escape::terminal(&done.path), looked.detail));
                }
            }
            Verdict::TimedOut | Verdict::Failed | Verdict::NotScanned | Verdict::Unspecified => {
                self.totals.failed += 1
            }
        }
        self.show(done.path, &looked)
    }

    fn unreadable(&mut self, path: &[u8], error: &str) -> Result<()> {
        self.totals.unreadable += 1;
        if self.json {
            return self.failed(path, &format!("could not read it: {error}"));
        }
        let named = self.named.iter().any(|named| named.as_os_str().as_encoded_bytes() == path);
        let what = if named { "scan" } else { "read" };
        self.say(&format!("could not {what} {}: {error}", escape::terminal(path)));
        Ok(())
    }

    fn failed(&mut self, path: &[u8], reason: &str) -> Result<()> {
        if !self.json {
            self.say(&format!("{}: {}", escape::terminal(path), escape::terminal(reason.as_bytes())));
            return Ok(());
        }
        let looked = Looked::new(Default::default(), Outcome::Died(reason.to_owned()), &self.rules_version);
        self.show(path.to_vec(), &looked)
    }

    /// Prints what is no clean file.
    fn show(&mut self, path: Vec<u8>, looked: &Looked) -> Result<()> {
        let what = What::Written(None, Trigger::Request, Vec::new());
        let item = Item { path, container_path: Vec::new(), deleted: false, what, at: Moment::now() };
        let in_part = self.json && looked.verdict == Verdict::TooLarge;
        let event = looked.detection(&self.host, &item);
        let Some(event) = event.or_else(|| in_part.then(|| looked.told(&self.host, &item))) else {
            return Ok(());
        };
        let lines = if self.json {
            let origin = ecs::Origin::NONE;
            vec![ecs::line(&ecs::record(origin, &event))]
        } else {
            human(&item.path, looked)
        };
        debug_assert!(matches!(event.kind, Some(Kind::Detection(_))));
        self.progress
            .suspend(|| {
                let mut out = std::io::stdout().lock();
                lines.iter().try_for_each(|line| writeln!(out, "{line}"))
            })
            .context("could not write to standard output")
    }

    fn say(&self, text: &str) {
        self.progress.suspend(|| eprintln!("{text}"));
    }
}

/// `SEVERITY  rule  path`, a line for each rule.
fn human(path: &[u8], looked: &Looked) -> Vec<String> {
    let path = escape::terminal(path);
    if looked.rules.is_empty() {
        return vec![format!(
            "{:<8}  {:<32}  {path}: {}",
            "-",
            verdict_name(looked.verdict),
            escape::terminal(looked.detail.as_bytes())
        )];
    }
    let line = |rule: &vidette_protocol::wire::RuleMatch| {
        let severity = Severity::try_from(rule.severity).map_or("medium", severity_name);
        format!("{severity:<8}  {:<32}  {path}", escape::terminal(rule.name.as_bytes()))
    };
    looked.rules.iter().map(line).collect()
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Low => "low",
        Severity::Medium | Severity::Unspecified => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Clean => "clean",
        Verdict::Matched => "matched",
        Verdict::TooLarge => "too_large",
        Verdict::TimedOut => "timed_out",
        Verdict::Failed => "failed",
        Verdict::NotScanned | Verdict::Unspecified => "not_scanned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1k", 1024), ("500", 500), ("2 mb", 2 << 20)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "1", "1TiB", "-1", "1.5k", "99999999999999999999", "1GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
