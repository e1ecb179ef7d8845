//! What hash lists cost: made from a list of random SHA-256 digests, then asked, beside a plain `HashSet` of the same. Run it
//! with `tests/bench/hashes`. Each of the two is a process of its own, so that its memory is its own.

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use data_encoding::HEXLOWER;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngCore, SeedableRng};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use vidette_agent::detection::hashes::{self, HashSources, Kind};

/// Measures hash lists and their peer.
#[derive(Parser)]
struct Args {
    /// Digests in the list
    #[arg(long, default_value_t = 10_000_000)]
    entries: u64,
    /// Look-ups of each sort
    #[arg(long, default_value_t = 1_000_000)]
    lookups: usize,
    /// Times that each is made
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Of the digests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the list and the tables lie
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The process that is measured
    #[arg(long, hide = true)]
    subject: Option<Subject>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Subject {
    Lists,
    Set,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match (args.subject, &args.folder) {
        (Some(Subject::Lists), Some(folder)) => return measure_lists(&args, folder),
        (Some(Subject::Set), Some(folder)) => return measure_set(&args, folder),
        (Some(_), None) | (None, _) => {}
    }
    let base = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new().prefix("vidette-hashes-").tempdir_in(base)?;
    write_list(&args, &folder.path().join("list.txt"))?;
    let size = folder.path().join("list.txt").metadata()?.len();
    println!("{} SHA-256 digests with names, {:.0} MB of text\n", args.entries, size as f64 / 1e6);
    println!(
        "| what | made in, s | peak, MiB | resident then, MiB | bytes an entry | on disk, MiB | hit, µs: mean, p99 | miss, µs: mean, p99 | hit from a cold disk, µs |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for _ in 0..args.rounds {
        for subject in ["lists", "set"] {
            let status = Command::new(std::env::current_exe()?)
                .args(["--subject", subject, "--folder"])
                .arg(folder.path())
                .args(["--entries", &args.entries.to_string(), "--lookups", &args.lookups.to_string()])
                .args(["--seed", &args.seed.to_string()])
                .status()?;
            ensure!(status.success(), "the process for {subject} failed: {status}");
        }
    }
    Ok(())
}

fn digests(args: &Args) -> impl Iterator<Item = [u8; 32]> {
    let mut random = StdRng::seed_from_u64(args.seed);
    (0..args.entries).map(move |_| {
        let mut digest = [0; 32];
        random.fill_bytes(&mut digest);
        digest
    })
}

fn write_list(args: &Args, path: &Path) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    for (number, digest) in digests(args).enumerate() {
        writeln!(out, "{}  family-{}", HEXLOWER.encode(&digest), number % 20_000)?;
    }
    Ok(out.flush()?)
}

/// Listed ones, and others.
fn questions(args: &Args) -> (Vec<[u8; 32]>, Vec<[u8; 32]>) {
    let step = usize::try_from(args.entries).unwrap_or(usize::MAX).div_ceil(args.lookups.max(1)).max(1);
    let mut random = StdRng::seed_from_u64(!args.seed);
    let mut hits: Vec<[u8; 32]> = digests(args).step_by(step).collect();
    hits.shuffle(&mut random);
    let misses = (0..args.lookups).map(|_| {
        let mut digest = [0; 32];
        random.fill_bytes(&mut digest);
        digest
    });
    (hits, misses.collect())
}

fn measure_lists(args: &Args, folder: &Path) -> anyhow::Result<()> {
    // As the agent does.
    vidette_agent::sys::memory::keep_little();
    let before = memory()?;
    let sources = HashSources { files: vec![folder.join("list.txt")], folder: Some(folder.to_owned()) };
    let start = Instant::now();
    let lists = hashes::build(&sources, &AtomicBool::new(false))?;
    let made_s = start.elapsed().as_secs_f64();
    let after = memory()?;
    ensure!(lists.entries(Kind::Sha256) == args.entries, "an entry is missing");
    let (hits, misses) = questions(args);
    let ask = |digest: &[u8; 32]| lists.find(Kind::Sha256, digest).map(|found| found.is_some());
    // Before it was asked: what is in memory of the disk then is only what is written to it last.
    let cold = match std::fs::write("/proc/sys/vm/drop_caches", "3") {
        Ok(()) => format!("{:.0}", time(hits.get(..500).unwrap_or(&hits), true, ask)?.0),
        Err(_) => "not measured: needs root".to_owned(),
    };
    time(&hits, true, ask)?;
    let (hit, miss) = (time(&hits, true, ask)?, time(&misses, false, ask)?);
    let disk = lists.summary().disk_bytes as f64 / f64::from(1 << 20);
    print("hash lists", args, made_s, before, after, &format!("{disk:.0}"), hit, miss, &cold);
    Ok(())
}

fn measure_set(args: &Args, folder: &Path) -> anyhow::Result<()> {
    vidette_agent::sys::memory::keep_little();
    let before = memory()?;
    let start = Instant::now();
    let mut set = HashSet::<[u8; 32]>::new();
    for line in BufReader::new(std::fs::File::open(folder.join("list.txt"))?).lines() {
        let mut digest = [0; 32];
        let line = line?;
        let hex = line.as_bytes().get(..64).context("a short line")?;
        HEXLOWER.decode_mut(hex, &mut digest).map_err(|_| anyhow::anyhow!("no digest: {line}"))?;
        set.insert(digest);
    }
    let made_s = start.elapsed().as_secs_f64();
    let after = memory()?;
    let (hits, misses) = questions(args);
    let ask = |digest: &[u8; 32]| Ok(set.contains(digest));
    let (hit, miss) = (time(&hits, true, ask)?, time(&misses, false, ask)?);
    print("HashSet<[u8; 32]>, no names", args, made_s, before, after, "0", hit, miss, "");
    Ok(())
}

/// Mean and 99th percentile. Microseconds.
fn time(
    digests: &[[u8; 32]],
    expected: bool,
    ask: impl Fn(&[u8; 32]) -> std::io::Result<bool>,
) -> anyhow::Result<(f64, f64)> {
    let start = Instant::now();
    for digest in digests {
        ensure!(ask(digest)? == expected, "a wrong answer");
    }
    let mean = start.elapsed().as_secs_f64() * 1e6 / digests.len() as f64;
    let mut each: Vec<f64> = Vec::with_capacity(digests.len());
    for digest in digests {
        let start = Instant::now();
        ask(digest)?;
        each.push(start.elapsed().as_secs_f64() * 1e6);
    }
    each.sort_by(f64::total_cmp);
    Ok((mean, each.get(each.len() * 99 / 100).copied().unwrap_or(f64::NAN)))
}

/// Resident now, and at most so far. MiB.
fn memory() -> anyhow::Result<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |key: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok((of("VmRSS:")?, of("VmHWM:")?))
}

#[allow(clippy::too_many_arguments)] // One row of a table.
fn print(
    what: &str,
    args: &Args,
    made_s: f64,
    before: (f64, f64),
    after: (f64, f64),
    disk: &str,
    hit: (f64, f64),
    miss: (f64, f64),
    cold: &str,
) {
    let each = (after.0 - before.0) * f64::from(1 << 20) / args.entries as f64;
    println!(
        "| {what} | {made_s:.1} | {:.1} | {:.1} | {each:.2} | {disk} | {:.2}, {:.2} | {:.2}, {:.2} | {cold} |",
        after.1, after.0, hit.0, hit.1, miss.0, miss.1
    );
}
