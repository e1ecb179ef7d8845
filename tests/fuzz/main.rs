//! Fuzzes one target for as long as is asked, or replays one input: `cargo run --bin fuzz -- scan --seconds 600`.
//! What the targets are is said in `tests/src/fuzz`; README.md says how to run them.

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use vidette_tests::fuzz::behaviour::Corpus;
use vidette_tests::fuzz::run::{self, Options, Report, digest};
use vidette_tests::fuzz::{
    Kind, Target, answers::Answers, config::Config, csr::Csr, frames::Frames, join::Join, outbox::Outbox,
    rules::Rules, scan::Scan, wire::Wire,
};
use vidette_tests::programs::binary;

/// A folder of the corpus is kept under this size. Bytes.
const CORPUS_KEPT_BYTES: usize = 80 << 10;
/// Threads that fuzz one target, each with inputs of its own.
const THREADS_MAX: u64 = 64;

/// Fuzzes the workers' whole input, and every decoder of what comes from a peer or a disk.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    target: Which,
}

#[derive(Subcommand)]
enum Which {
    /// Files, through the scanning worker with rules that use every module
    Scan(How),
    /// Files of rules, through the compiling worker
    Rules(How),
    /// Answers of a worker, through the parent's decoder
    Answers(How),
    /// Streams of frames as an agent sends them, through the collector's half of a session
    Frames(How),
    /// Every message of the contract
    Wire(How),
    /// Join requests, and lines to join with
    Join(How),
    /// Certificate requests
    Csr(How),
    /// Files where the outbox was
    Outbox(How),
    /// Configuration files of both programs
    Config(How),
}

impl Which {
    fn target(&self) -> anyhow::Result<Box<dyn Target>> {
        Ok(match self {
            Self::Scan(_) => Box::new(Scan::new(&binary("vidette-agent")?)?),
            Self::Rules(_) => Box::new(Rules::new(&binary("vidette-agent")?)?),
            Self::Answers(_) => Box::new(Answers),
            Self::Frames(_) => Box::new(Frames),
            Self::Wire(_) => Box::new(Wire),
            Self::Join(_) => Box::new(Join::new()?),
            Self::Csr(_) => Box::new(Csr::new()?),
            Self::Outbox(_) => Box::new(Outbox::new()?),
            Self::Config(_) => Box::new(Config::new()?),
        })
    }

    fn how(&self) -> &How {
        match self {
            Self::Scan(how)
            | Self::Rules(how)
            | Self::Answers(how)
            | Self::Frames(how)
            | Self::Wire(how)
            | Self::Join(how)
            | Self::Csr(how)
            | Self::Outbox(how)
            | Self::Config(how) => how,
        }
    }
}

#[derive(clap::Args)]
struct How {
    /// Of every choice; chosen and printed without
    #[arg(long)]
    seed: Option<u64>,
    /// Inputs to run
    #[arg(long, default_value_t = u64::MAX)]
    runs: u64,
    /// How long to run
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Inputs to begin with [default: the target's in tests/fuzz/corpora]
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Threads, each with a target of its own and the next seed; they learn nothing from each other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: u64,
    /// Size of the corpus up to which new inputs are kept, in bytes
    #[arg(long, default_value_t = CORPUS_KEPT_BYTES)]
    keep_bytes: usize,
    /// Put inputs that behave as none of the corpus does into its folder, as long as that stays small
    #[arg(long)]
    keep_new: bool,
    /// Where inputs go that are wrong
    #[arg(long, default_value = "target/fuzz")]
    findings: PathBuf,
    /// Run these inputs alone, and say what each did
    #[arg(long)]
    replay: Vec<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let which = Args::parse().target;
    let how = which.how();
    if !how.replay.is_empty() {
        return replay(which.target()?.as_mut(), &how.replay);
    }
    let seed = how.seed.unwrap_or_else(rand::random);
    let wrong = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..how.threads)
            .map(|index| {
                let (which, seed) = (&which, seed.wrapping_add(index));
                scope.spawn(move || fuzz(which.target()?.as_mut(), how, seed))
            })
            .collect();
        let mut wrong = false;
        for thread in threads {
            wrong |= thread.join().map_err(|_| anyhow::anyhow!("a fuzzing thread panicked"))??;
        }
        anyhow::Ok(wrong)
    })?;
    Ok(ExitCode::from(u8::from(wrong)))
}

fn replay(target: &mut dyn Target, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let mut wrong = false;
    for file in files {
        let input = std::fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
        for observed in target.run(&[input])? {
            wrong |= observed.finding.is_some();
            println!("{}: {observed:?}", file.display());
        }
    }
    Ok(ExitCode::from(u8::from(wrong)))
}

/// Whether anything of ours was wrong.
fn fuzz(target: &mut dyn Target, how: &How, seed: u64) -> anyhow::Result<bool> {
    let folder = how
        .corpus
        .clone()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpora").join(target.name()));
    let seeds = if folder.is_dir() { Corpus::load(&folder)? } else { Vec::new() };
    let options = Options {
        seed,
        runs: how.runs.div_ceil(how.threads),
        time: Duration::from_secs(how.seconds),
        learn: true,
        findings: Some(how.findings.clone()),
    };
    println!("{}, seed {}, {} inputs to begin with", target.name(), options.seed, seeds.len());
    let (report, corpus) = run::fuzz(target, seeds, &options, &mut |text| println!("{text}"))?;
    print(target.name(), &report, &corpus)?;
    if how.keep_new {
        keep(&folder, &corpus, how.keep_bytes)?;
    }
    Ok(report.ours().count() > 0)
}

fn print(target: &str, report: &Report, corpus: &Corpus) -> anyhow::Result<()> {
    println!(
        "\n| target | executions | a second | behaviours | deaths | hangs | violations | limits | spread |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let kinds = [Kind::Died, Kind::Hung, Kind::Violation, Kind::Limit, Kind::Spread];
    let counts = kinds.map(|kind| report.count(kind).to_string()).join(" | ");
    let rate = report.executions as f64 / report.time.as_secs_f64();
    println!("| {target} | {} | {rate:.0} | {} | {counts} |", report.executions, corpus.behaviours());
    for finding in report.findings.values() {
        println!("\n{}, {} times: {}", finding.kind.word(), finding.count, finding.detail);
        if let Some(file) = &finding.file {
            println!("  cargo run --bin fuzz -- {target} --replay {}", file.display());
        }
    }
    println!("peak memory of this process: {} MiB", peak_bytes()? >> 20);
    Ok(())
}

/// `VmHWM` of proc(5), which is in KiB: an answer that fills the parent's memory shows there.
fn peak_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak of memory is told")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}

/// Puts what stands for all into the folder, beside what is there.
fn keep(folder: &Path, corpus: &Corpus, bytes_max: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let there: usize = Corpus::load(folder)?.iter().map(Vec::len).sum();
    let mut kept = 0;
    for input in corpus.distil(bytes_max.saturating_sub(there)) {
        let path = folder.join(digest(input));
        if !path.exists() {
            std::fs::write(path, input)?;
            kept += 1;
        }
    }
    ensure!(folder.is_dir(), "{} is no folder", folder.display());
    println!("{kept} new inputs in {}", folder.display());
    Ok(())
}
