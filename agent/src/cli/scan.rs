//! `vidette-agent scan PATH…`: scans files now, through the same sandboxed worker, and prints what it finds.
//!
//! What is found goes to standard output, everything else to standard error.

use super::walk::{Found, Options, Walk};
use crate::detection::events::{self, Item, Looked, What};
use crate::detection::hashes::{self, HashSources, Hashes};
use crate::detection::rules::RuleSources;
use crate::host::{Host, Moment};
use crate::worker::pool::{Done, Output, Pool, Settings};
use crate::worker::process::Launcher;
use crate::worker::{Outcome, SIZE_BYTES_MAX, SIZE_DEFAULT_BYTES, THREADS_MAX};
use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use vidette_protocol::wire::{Severity, Trigger, Verdict, event::Kind};
use vidette_protocol::{ecs, escape};

/// How long a look at the worker waits at most.
const WAIT: Duration = Duration::from_millis(200);
/// The scanner's clock ticks in seconds: less would end scans that just began.
const TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// What `--help` ends with.
const AFTER_HELP: &str = "\
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
    /// Files and folders to scan.
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
    /// Of a larger file only head and tail are scanned.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(SIZE_DEFAULT_BYTES))]
    max_size: ByteSize,
    /// Give a file up after this time.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: jiff::SignedDuration,
    /// Files scanned at the same time [default: one for each processor].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Follow symbolic links.
    #[arg(long)]
    follow: bool,
    /// Also enter other file systems that are mounted below a path.
    #[arg(long)]
    cross_filesystems: bool,
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

#[derive(Debug, Default)]
struct Totals {
    files: u64,
    bytes: u64,
    matched: u64,
    in_part: u64,
    failed: u64,
    unreadable: u64,
    skipped: u64,
    bad_paths: u64,
    bad_rules: usize,
}

struct Scan {
    host: Host,
    json: bool,
    pool: Pool,
    hashes: Hashes,
    in_flight: HashMap<u64, Vec<u8>>,
    last_id: u64,
    totals: Totals,
    progress: ProgressBar,
    shown: Instant,
}

/// Runs it.
///
/// # Errors
/// There are no rules, no worker, or nobody reads the output.
pub fn run(args: Args) -> Result<ExitCode> {
    let start = Instant::now();
    if args.processes.are_asked() {
        let (settings, _, bad_rules) = settings(&args)?;
        return super::scan_memory::run(&args.processes, args.json, settings, progress_bar()?, bad_rules);
    }
    let mut scan = Scan::new(&args)?;
    scan.load_rules()?;
    let options = Options { follow: args.follow, cross: args.cross_filesystems };
    for path in &args.paths {
        match Walk::new(path, options) {
            Ok(walk) => scan.walk(walk, path)?,
            Err(error) => {
                scan.totals.bad_paths += 1;
                scan.say(&format!(
                    "could not scan {}: {error}",
                    escape::terminal(path.as_os_str().as_encoded_bytes())
                ));
            }
        }
    }
    while !scan.in_flight.is_empty() {
        let outputs = scan.pool.wait(WAIT);
        scan.settle(outputs)?;
    }
    scan.progress.finish_and_clear();
    scan.totals.print(start.elapsed());
    Ok(scan.totals.exit_code())
}

/// What the worker is to do, the hash lists, and how many files of either could not be read.
fn settings(args: &Args) -> Result<(Settings, Hashes, usize)> {
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
    let bad_rules = found.errors.len() + hashes.complaints().count();
    let settings = Settings {
        threads: args.threads.unwrap_or(processors).clamp(1, THREADS_MAX),
        size_max_bytes: args.max_size.0,
        timeout,
        digests: hashes.wanted(),
        ..Settings::new(Launcher::own()?, found.into_set())
    };
    Ok((settings, hashes, bad_rules))
}

impl Scan {
    fn new(args: &Args) -> Result<Self> {
        let (settings, hashes, bad_rules) = settings(args)?;
        Ok(Self {
            host: Host::read(),
            json: args.json,
            pool: Pool::new(settings),
            hashes,
            in_flight: HashMap::new(),
            last_id: 0,
            totals: Totals { bad_rules, ..Default::default() },
            progress: progress_bar()?,
            shown: Instant::now(),
        })
    }

    /// Waits for them, so that nothing is scanned with rules that do not work.
    fn load_rules(&mut self) -> Result<()> {
        self.progress.set_message("loading rules");
        let mut outputs = self.pool.prepare(Instant::now());
        loop {
            let loaded = outputs.iter().any(|output| matches!(output, Output::Loaded(_)));
            self.settle(outputs)?;
            if loaded {
                return Ok(());
            }
            outputs = self.pool.wait(WAIT);
        }
    }

    fn walk(&mut self, walk: Walk, named: &std::path::Path) -> Result<()> {
        let mut first = !walk.is_folder();
        for found in walk {
            match found {
                Found::Skipped if std::mem::take(&mut first) => {
                    self.unreadable(
                        named.as_os_str().as_encoded_bytes(),
                        "it is no regular file and no folder",
                    )?;
                }
                Found::File(file, path) => self.submit(file, path)?,
                Found::Unreadable(path, error) => self.unreadable(&path, &error)?,
                Found::Skipped => self.totals.skipped += 1,
            }
        }
        Ok(())
    }

    fn submit(&mut self, file: OwnedFd, path: Vec<u8>) -> Result<()> {
        while self.pool.room() == 0 {
            let outputs = self.pool.wait(WAIT);
            self.settle(outputs)?;
        }
        self.last_id += 1;
        self.in_flight.insert(self.last_id, path);
        let outputs = self.pool.submit(self.last_id, file, Instant::now());
        self.settle(outputs)
    }

    fn settle(&mut self, outputs: Vec<Output>) -> Result<()> {
        for output in outputs {
            match output {
                Output::Done(done) => self.done(*done)?,
                Output::Loaded(loaded) => {
                    for problem in loaded.problems.iter().filter(|problem| problem.error) {
                        self.totals.bad_rules += 1;
                        let message = escape::terminal(problem.message.as_bytes());
                        self.say(&format!(
                            "{}:{}: {message}; this file's rules are left out",
                            problem.file, problem.line
                        ));
                    }
                    if loaded.rules == 0 && self.hashes.wanted() == 0 {
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
                Output::Started(_) => {}
            }
        }
        Ok(())
    }

    fn done(&mut self, done: Done) -> Result<()> {
        let Some(path) = self.in_flight.remove(&done.id) else { return Ok(()) };
        self.totals.files += 1;
        if let Outcome::Scanned(scan) = &done.outcome {
            self.totals.bytes += scan.scanned_bytes;
        }
        let file = rustix::fs::fstat(&done.file).map(|stat| events::file(&stat)).unwrap_or_default();
        let looked = Looked::new(file, self.hashes.judge(done.outcome), &done.rules_version);
        match looked.verdict {
            Verdict::Clean => {}
            Verdict::Matched => self.totals.matched += 1,
            Verdict::TooLarge => {
                self.totals.in_part += 1;
                self.say(&format!("{}: {}", escape::terminal(&path), looked.detail));
            }
            Verdict::TimedOut | Verdict::Failed | Verdict::NotScanned | Verdict::Unspecified => {
                self.totals.failed += 1
            }
        }
        self.show(path, &looked)?;
        self.show_progress();
        Ok(())
    }

    fn unreadable(&mut self, path: &[u8], error: &str) -> Result<()> {
        self.totals.unreadable += 1;
        if !self.json {
            self.say(&format!("could not read {}: {error}", escape::terminal(path)));
            return Ok(());
        }
        let outcome = Outcome::Died(format!("could not read it: {error}"));
        let looked = Looked::new(Default::default(), outcome, self.pool.rules_version());
        self.show(path.to_vec(), &looked)
    }

    /// Prints what is no clean file.
    fn show(&mut self, path: Vec<u8>, looked: &Looked) -> Result<()> {
        let what = What::Written(None, Trigger::Request, Vec::new());
        let item = Item { path, container_path: Vec::new(), deleted: false, what, at: Moment::now() };
        let Some(event) = looked.detection(&self.host, &item) else { return Ok(()) };
        let lines = if self.json {
            let origin = ecs::Origin { id: None, received_unix_ns: None };
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

    fn show_progress(&mut self) {
        if self.shown.elapsed() > WAIT {
            self.shown = Instant::now();
            let rate = self.totals.files as f64 / self.progress.elapsed().as_secs_f64().max(0.001);
            let (files, matched) = (self.totals.files, self.totals.matched);
            self.progress.set_message(format!("{files} files, {rate:.0} a second, {matched} matched"));
        }
    }
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

/// Hidden when standard error is no terminal, or when nothing else is a terminal's business.
fn progress_bar() -> Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")
        .context("could not make a progress bar")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(WAIT);
    Ok(bar)
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

impl Totals {
    fn print(&self, time: Duration) {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        eprintln!(
            "{} files, {mib:.1} MiB scanned in {:.1} s: {} matched",
            self.files,
            time.as_secs_f64(),
            self.matched
        );
        for (count, what) in [
            (self.in_part, "scanned only in part, being larger than --max-size"),
            (self.failed, "not scanned, because the scan failed or took too long"),
            (self.unreadable, "not scanned, because they could not be read"),
            (self.bad_paths, "paths that could not be scanned at all"),
            (self.skipped, "skipped: links, sockets, devices, other file systems"),
        ] {
            if count > 0 {
                eprintln!("  {count} {what}");
            }
        }
        if self.bad_rules > 0 {
            eprintln!("  {} errors in rules and hash lists", self.bad_rules);
        }
    }

    /// Only clean means clean.
    fn exit_code(&self) -> ExitCode {
        let incomplete =
            self.in_part + self.failed + self.unreadable + self.bad_paths + self.bad_rules as u64;
        match (self.matched, incomplete) {
            (1.., _) => ExitCode::from(1),
            (0, 1..) => ExitCode::from(2),
            (0, 0) => ExitCode::SUCCESS,
        }
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

    #[test]
    fn only_clean_is_zero() {
        let code = |totals: Totals| format!("{:?}", totals.exit_code());
        let expect = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(Totals { skipped: 3, ..Default::default() }), expect(0));
        assert_eq!(code(Totals { matched: 1, failed: 1, ..Default::default() }), expect(1));
        assert_eq!(code(Totals { unreadable: 1, ..Default::default() }), expect(2));
    }
}
