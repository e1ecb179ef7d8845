//! `vidette-agent scan --pid N | --all-processes`: looks into the memory of processes, through the same sandboxed
//! worker as files, and prints what it finds.
//!
//! What is found goes to standard output, everything else to standard error.

use super::scan::totals::{self, Mistakes};
use crate::detection::memory::engine::{Engine, Meanwhile, Report};
use crate::detection::memory::{self, BYTES_DEFAULT, BYTES_MAX, Budget, How, TIME_MAX, read};
use crate::host::{Host, Moment};
use crate::worker::pool::{Output, Pool, Settings};
use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use std::collections::HashSet;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, Trigger, Verdict, event::Kind};
use vidette_protocol::{ecs, escape};

/// How long a look at the worker waits at most.
const WAIT: Duration = Duration::from_millis(200);
/// Numbers of processes on one command line.
const PIDS_MAX: usize = 4096;

/// What is looked into instead of files.
#[derive(Debug, Clone, clap::Args)]
pub struct Processes {
    /// Scan the memory of this process instead of files. May be repeated.
    #[arg(long, value_name = "N", conflicts_with = "paths")]
    pid: Vec<u32>,
    /// Scan the memory of every process that may be read.
    #[arg(long, conflicts_with_all = ["paths", "pid"])]
    all_processes: bool,
    /// Of one process no more memory than this is scanned.
    #[arg(long, value_name = "SIZE", default_value_t = MemorySize(BYTES_DEFAULT))]
    memory_max: MemorySize,
    /// One process is given no more time than this.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    memory_time: jiff::SignedDuration,
}

/// A number of bytes, as typed: `256MiB`, `4g`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MemorySize(u64);

impl std::str::FromStr for MemorySize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size: write it like 256MiB");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let shift = match text.get(digits..).unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(wrong()),
        };
        let number: u64 = text.get(..digits).unwrap_or_default().parse().map_err(|_| wrong())?;
        match number.checked_mul(1 << shift) {
            Some(bytes @ read::BLOCK_BYTES_MAX..=BYTES_MAX) => Ok(Self(bytes)),
            Some(_) | None => Err(format!(
                "the size must be between {} MiB and {} GiB",
                read::BLOCK_BYTES_MAX >> 20,
                BYTES_MAX >> 30
            )),
        }
    }
}

impl std::fmt::Display for MemorySize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}MiB", self.0 >> 20)
    }
}

impl Processes {
    /// Somebody asked for processes.
    #[must_use]
    pub fn are_asked(&self) -> bool {
        self.all_processes || !self.pid.is_empty()
    }

    fn budget(&self) -> Result<Budget> {
        let time = Duration::try_from(self.memory_time).ok();
        match time.filter(|time| (Duration::from_secs(1)..=TIME_MAX).contains(time)) {
            Some(time) => Ok(Budget { bytes_max: self.memory_max.0, time }),
            None => bail!("--memory-time must be between 1 second and {} hours", TIME_MAX.as_secs() / 3600),
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    processes: u64,
    bytes: u64,
    matched: u64,
    in_part: u64,
    failed: u64,
    denied: u64,
    absent: u64,
    gone: u64,
    own: u64,
    empty: u64,
    /// Asked for by number and not scanned, or not told.
    vain: u64,
    mistakes: Mistakes,
}

struct Scan {
    host: Host,
    json: bool,
    /// Somebody named these very processes.
    named: bool,
    engine: Engine,
    totals: Totals,
    progress: ProgressBar,
    count: usize,
}

/// Runs it, with what `scan` made of the command line: the settings of the pool, and the mistakes in rules and lists.
///
/// # Errors
/// No usable rules, no worker, or nobody reads the output.
pub fn run(processes: &Processes, json: bool, settings: Settings, mistakes: Mistakes) -> Result<ExitCode> {
    let begin = Instant::now();
    let progress = super::scan::progress::bar()?;
    let budget = processes.budget()?;
    if processes.pid.len() > PIDS_MAX {
        bail!("at most {PIDS_MAX} processes can be named: use --all-processes");
    }
    let host = Host::read();
    let pool = Pool::new(Settings { size_max_bytes: read::BLOCK_BYTES_MAX, ..settings });
    let engine = Engine::new(pool, budget, &host.boot_id, Arc::new(AtomicBool::new(false)));
    let mut pids = if processes.all_processes { memory::everybody() } else { processes.pid.clone() };
    let mut seen = HashSet::new();
    pids.retain(|pid| seen.insert(*pid));
    let mut scan = Scan {
        host,
        json,
        named: !processes.all_processes,
        engine,
        totals: Totals { mistakes, ..Default::default() },
        progress,
        count: pids.len(),
    };
    scan.load_rules()?;
    for (number, pid) in pids.into_iter().enumerate() {
        match scan.one(number, pid) {
            Ok(()) => {}
            Err(error) if super::is_closed_pipe(&error) => {
                scan.totals.vain += 1;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    scan.progress.finish_and_clear();
    scan.totals.print(begin.elapsed());
    Ok(scan.totals.exit_code())
}

impl Scan {
    /// Waits for them, so that nothing is scanned with rules that do not work.
    fn load_rules(&mut self) -> Result<()> {
        self.progress.set_message("loading rules");
        let mut outputs = self.engine.pool().prepare(Instant::now());
        loop {
            let loaded = outputs.iter().any(|output| matches!(output, Output::Loaded(_)));
            outputs.into_iter().try_for_each(|output| self.worker(output))?;
            if loaded {
                return Ok(());
            }
            outputs = self.engine.pool().wait(WAIT);
        }
    }

    fn worker(&mut self, output: Output) -> Result<()> {
        match output {
            Output::Loaded(loaded) => {
                for problem in loaded.problems.iter().filter(|problem| problem.error) {
                    self.totals.mistakes.rules += 1;
                    let sentence = escape::terminal(problem.sentence().as_bytes());
                    self.say(&format!("{sentence}; this file's rules are left out"));
                }
                if loaded.rules == 0 {
                    bail!("there is not one usable rule: see `vidette-agent rules check`");
                }
            }
            Output::Unavailable(reason) | Output::RulesRefused { reason, .. } => {
                bail!("nothing can be scanned: {}", escape::terminal(reason.as_bytes()))
            }
            Output::Died(reason) => self.say(&escape::terminal(reason.as_bytes())),
            Output::Started(ready) if ready.landlock == "none" => {
                self.say(
                    "this kernel has no Landlock: the scanner is held by its system-call filter and user alone",
                );
            }
            Output::Started(_) | Output::Done(_) => {}
        }
        Ok(())
    }

    fn one(&mut self, number: usize, pid: u32) -> Result<()> {
        if self.named && !memory::is_there(pid) {
            self.totals.absent += 1;
            self.say(&format!("could not scan process {pid}: there is none"));
            let how = How::Failed("there is no such process".to_owned());
            let absent = Report::unread(pid, how, self.engine.pool().rules_version());
            return if self.json { self.show(&absent) } else { Ok(()) };
        }
        let (progress, count, matched) = (self.progress.clone(), self.count, self.totals.matched);
        let (mut bytes, mut outputs) = (self.totals.bytes, Vec::new());
        progress.set_message(message(number, count, bytes, matched));
        let report = self.engine.scan(pid, &mut |meanwhile| match meanwhile {
            Meanwhile::Worker(output) => outputs.push(output),
            Meanwhile::Scanned(more) => {
                bytes += more;
                progress.set_message(message(number, count, bytes, matched));
            }
        });
        outputs.into_iter().try_for_each(|output| self.worker(output))?;
        self.count(&report);
        self.show(&report)
    }

    fn count(&mut self, report: &Report) {
        let totals = &mut self.totals;
        totals.bytes += report.tally.bytes;
        let counter = match &report.how {
            How::Whole | How::Truncated(_) => &mut totals.processes,
            How::Gone => &mut totals.gone,
            How::Denied => &mut totals.denied,
            How::Own => &mut totals.own,
            How::NoMemory => &mut totals.empty,
            How::Failed(_) => &mut totals.failed,
        };
        *counter += 1;
        totals.matched += u64::from(report.has_matched());
        totals.in_part += u64::from(matches!(report.how, How::Truncated(_)));
        let unknown = report.findings.iter().any(|finding| finding.verdict != Verdict::Matched);
        totals.failed += u64::from(unknown || report.unscanned.is_some());
    }

    fn show(&mut self, report: &Report) -> Result<()> {
        let now = Moment::now();
        let mut events = report.events(&self.host, Trigger::Request, now);
        let lines: Vec<String> = if self.json {
            events.extend(report.failure(&self.host, Trigger::Request, now));
            let origin = ecs::Origin::NONE;
            events.iter().map(|event| ecs::line(&ecs::record(origin, event))).collect()
        } else {
            if let Some(why) = report.incomplete() {
                self.say(&format!("{}: {}", who(&report.process), escape::terminal(why.as_bytes())));
            }
            events.iter().flat_map(human).collect()
        };
        if self.named
            && let Some(why) = passed_over(&report.how)
        {
            self.say(&format!("{}: {why}", who(&report.process)));
            self.totals.vain += 1;
        }
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

fn message(number: usize, count: usize, bytes: u64, matched: u64) -> String {
    format!("{number} of {count} processes, {} MiB, {matched} matched", bytes >> 20)
}

/// Why somebody who was named has no verdict.
fn passed_over(how: &How) -> Option<&'static str> {
    match how {
        How::Gone => Some("gone: it ended or ran another program while it was scanned"),
        How::Own => Some("skipped: it is Vidette's own"),
        How::NoMemory => Some("skipped: it has no memory of its own"),
        How::Whole | How::Truncated(_) | How::Denied | How::Failed(_) => None,
    }
}

fn who(process: &wire::Process) -> String {
    let name = if process.executable.is_empty() { &process.name } else { &process.executable };
    format!("process {} {}", process.pid, escape::terminal(name)).trim_end().to_owned()
}

/// `SEVERITY  rule  process, address, mapping`, a line for each rule.
fn human(event: &wire::Event) -> Vec<String> {
    let Some(Kind::Detection(detection)) = &event.kind else { return Vec::new() };
    let process = detection.process.as_ref().map(who).unwrap_or_default();
    let region = detection.memory.as_ref().map(place).unwrap_or_default();
    if detection.rules.is_empty() {
        let verdict = ecs::words::verdict(detection.verdict);
        let detail = escape::terminal(detection.detail.as_bytes());
        return vec![format!("{:<8}  {verdict:<32}  {process}, {region}: {detail}", "-")];
    }
    let line = |rule: &wire::RuleMatch| {
        let severity = ecs::words::severity(rule.severity);
        let name = escape::terminal(rule.name.as_bytes());
        let address = rule.patterns.first().map(|pattern| format!("0x{:x} in ", pattern.offset));
        format!("{severity:<8}  {name:<32}  {process}, {}{region}", address.unwrap_or_default())
    };
    detection.rules.iter().map(line).collect()
}

fn place(region: &wire::MemoryRegion) -> String {
    let permissions = escape::terminal(region.permissions.as_bytes());
    let place =
        format!("{:x}-{:x} {permissions} {}", region.start, region.end, escape::terminal(&region.name));
    place.trim_end().to_owned()
}

impl Totals {
    fn print(&self, time: Duration) {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let (processes, matched, seconds) = (self.processes, self.matched, time.as_secs_f64());
        eprintln!(
            "{processes} processes, {mib:.1} MiB of memory scanned in {seconds:.1} s: {matched} matched"
        );
        totals::print_counts(&[
            (self.in_part, "scanned only in part: see --memory-max and --memory-time"),
            (self.failed, "not scanned, or not whole, because it failed or took too long"),
            (self.denied, "not scanned, because their memory may not be read"),
            (self.absent, "that are not there"),
            (self.gone, "gone: they ended or ran another program meanwhile"),
            (self.own, "skipped: Vidette's own"),
            (self.empty, "skipped: kernel threads and ended processes"),
        ]);
        totals::print_counts(&self.mistakes.counts());
    }

    /// Only clean means clean. Who is gone can't be scanned by anybody.
    fn exit_code(&self) -> ExitCode {
        let incomplete =
            self.in_part + self.failed + self.denied + self.absent + self.vain + self.mistakes.sum();
        totals::exit_code(self.matched, incomplete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("256MiB", 256 << 20), ("16m", 16 << 20), ("1024 gb", 1 << 40)] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
        for text in ["", "MiB", "15m", "1025g", "-1", "1.5g", "é", "99999999999999999999"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_clean_is_zero_and_who_is_gone_is_no_error() {
        let code = |totals: Totals| format!("{:?}", totals.exit_code());
        let expect = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(Totals { gone: 3, own: 1, empty: 9, ..Default::default() }), expect(0));
        assert_eq!(code(Totals { matched: 1, denied: 1, ..Default::default() }), expect(1));
        for totals in [
            Totals { denied: 1, ..Default::default() },
            Totals { absent: 1, ..Default::default() },
            Totals { own: 1, vain: 1, ..Default::default() },
            Totals { in_part: 1, ..Default::default() },
        ] {
            assert_eq!(code(totals), expect(2));
        }
    }

    #[test]
    fn names_of_mappings_are_harmless_on_a_terminal() {
        let detection = wire::Detection {
            process: Some(wire::Process {
                pid: 7,
                executable: b"/x\x1b[2J\n".to_vec(),
                ..Default::default()
            }),
            rules: vec![wire::RuleMatch { name: "r".into(), ..Default::default() }],
            memory: Some(wire::MemoryRegion {
                name: b"/memfd:\x1b]0;x\x07\n".to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let event = wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() };
        let lines = human(&event);
        assert_eq!(lines.len(), 1);
        assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
    }
}
