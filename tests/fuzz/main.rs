//! Fuzzes one target for as long as is asked, or replays one input: `cargo run --bin fuzz -- scan --seconds 600`.
//! What the targets are is said in `tests/src/fuzz`; README.md says how to run them.

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use vidette_tests::fuzz::behaviour::Corpus;
use vidette_tests::fuzz::run::{self, Options, Report, digest};
use vidette_tests::fuzz::{Kind, Target, answers::Answers, rules::Rules, scan::Scan};
use vidette_tests::programs::binary;

/// A folder of the corpus is kept under this size. Bytes.
const CORPUS_KEPT_BYTES: usize = 80 << 10;

/// Fuzzes the workers' whole input, and the parent's decoder of their answers.
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
    let (how, mut target): (How, Box<dyn Target>) = match Args::parse().target {
        Which::Scan(how) => (how, Box::new(Scan::new(&binary("vidette-agent")?)?)),
        Which::Rules(how) => (how, Box::new(Rules::new(&binary("vidette-agent")?)?)),
        Which::Answers(how) => (how, Box::new(Answers)),
    };
    if how.replay.is_empty() { fuzz(target.as_mut(), &how) } else { replay(target.as_mut(), &how.replay) }
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

fn fuzz(target: &mut dyn Target, how: &How) -> anyhow::Result<ExitCode> {
    let folder = how
        .corpus
        .clone()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpora").join(target.name()));
    let seeds = if folder.is_dir() { Corpus::load(&folder)? } else { Vec::new() };
    let options = Options {
        seed: how.seed.unwrap_or_else(rand::random),
        runs: how.runs,
        time: Duration::from_secs(how.seconds),
        learn: true,
        findings: Some(how.findings.clone()),
    };
    println!("{}, seed {}, {} inputs to begin with", target.name(), options.seed, seeds.len());
    let (report, corpus) = run::fuzz(target, seeds, &options, &mut |text| println!("{text}"))?;
    print(target.name(), &report, &corpus)?;
    if how.keep_new {
        keep(&folder, &corpus)?;
    }
    Ok(ExitCode::from(u8::from(report.ours().count() > 0)))
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
fn keep(folder: &Path, corpus: &Corpus) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let there: usize = Corpus::load(folder)?.iter().map(Vec::len).sum();
    let mut kept = 0;
    for input in corpus.distil(CORPUS_KEPT_BYTES.saturating_sub(there)) {
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
