//! What watching costs: the same work without a watcher, with the agent, and with its peers, in one run. Run it with
//! `tests/bench/cost`, as root; the method is in BENCHMARKS.md. Everything lies in one temporary folder.

mod watchers;
mod workloads;

use anyhow::ensure;
use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::path::Path;
use vidette_agent::stop::{self, Stop};
use watchers::{Kind, Usage, Watcher};
use workloads::{Ground, Work};

/// Measures the cost of the agent and of its peers on this host.
#[derive(Parser)]
struct Args {
    /// Rounds; in each, every watcher does all the work once, in an order of its own
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Files in the source tree
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Files of C to compile
    #[arg(long, default_value_t = 150)]
    sources: usize,
    /// Short processes
    #[arg(long, default_value_t = 20_000)]
    processes: usize,
    /// Watchers to leave out: agent-empty, agent-rules, auditd, fatrace, clamonacc
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Of the order in which watchers take their turns
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One watcher, one work, one round.
struct Sample {
    wall_s: f64,
    subject_cpu_s: f64,
    usage: Usage,
}

type Samples = BTreeMap<(Work, Kind), Vec<Sample>>;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(rustix::process::geteuid().is_root(), "this needs root: every watcher here does");
    ensure!(args.rounds > 0, "no rounds, no figures");
    let folder = tempfile::Builder::new().prefix("vidette-cost-").tempdir()?;
    eprintln!("making a tree of {} files and {} of C", args.files, args.sources);
    let ground = Ground::make(folder.path(), args.files, args.sources, args.processes)?;
    let kinds = possible(&args.without);
    let mut order = StdRng::seed_from_u64(args.seed);
    let mut samples = Samples::new();
    // So that an interrupted run leaves no audit rules behind.
    let (stopper, stop) = stop::channel();
    stop::on_signal(stopper)?;
    for round in 0..args.rounds {
        let mut turns = kinds.clone();
        turns.shuffle(&mut order);
        for kind in turns {
            eprintln!("round {} of {}: {}", round + 1, args.rounds, kind.name());
            turn(kind, folder.path(), &ground, &stop, &mut samples)?;
        }
    }
    print(&args, &kinds, &ground, &samples)
}

/// Who can be measured here; whoever can't is named in the output.
fn possible(without: &[String]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        if without.iter().any(|name| name == kind.word()) {
            println!("left out as asked: {}\n", kind.name());
        } else if let Err(reason) = kind.is_possible() {
            println!("left out: {}: {reason:#}\n", kind.name());
        } else {
            kinds.push(kind);
        }
    }
    kinds
}

/// Starts a watcher, does all the work beside it, and stops it.
fn turn(
    kind: Kind,
    folder: &Path,
    ground: &Ground,
    stop: &Stop,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    ground.reset()?;
    let mut watcher = Watcher::start(kind, folder, ground.watched())?;
    for work in Work::ALL {
        ensure!(!stop.is_set(), "interrupted");
        watcher.rest()?;
        let before = watcher.usage()?;
        let done = ground.run(work)?;
        watcher.rest()?;
        let usage = watcher.usage()?.since(&before);
        let sample = Sample { wall_s: done.wall_s, subject_cpu_s: done.cpu_s, usage };
        samples.entry((work, kind)).or_default().push(sample);
        ground.clear(work)?;
    }
    watcher.stop()
}

fn print(args: &Args, kinds: &[Kind], ground: &Ground, samples: &Samples) -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    println!("{cores} cores, Linux {}, {} rounds; {}\n", release.trim(), args.rounds, ground.describe());
    println!(
        "| work | beside it | wall, ratio: median (least to most) | wall, s | CPU of the work, s | CPU of the watcher, s |"
    );
    println!("|---|---|---|---|---|---|");
    for work in Work::ALL {
        for kind in kinds {
            line(work, *kind, samples);
        }
    }
    println!("\n| watcher | memory before the work, MiB | most memory in it, MiB |");
    println!("|---|---|---|");
    for kind in kinds.iter().filter(|kind| **kind != Kind::Nobody) {
        let all = || Work::ALL.iter().filter_map(|work| samples.get(&(*work, *kind))).flatten();
        let before = samples.get(&(Work::ALL[0], *kind)).into_iter().flatten();
        let rest = median(before.map(|sample| sample.usage.before_mib).collect());
        let most = all().map(|sample| sample.usage.peak_mib).fold(0.0, f64::max);
        println!("| {} | {rest:.1} | {most:.1} |", kind.name());
    }
    println!("\n| the agent's reader | work | events read | CPU of the thread, µs an event |");
    println!("|---|---|---|---|");
    for kind in kinds.iter().filter(|kind| kind.is_agent()) {
        for work in Work::ALL {
            let Some(all) = samples.get(&(work, *kind)) else { continue };
            let events = median(all.iter().map(|sample| sample.usage.events as f64).collect());
            let each = median(all.iter().map(|sample| sample.usage.reader_us_each()).collect());
            println!("| {} | {} | {events:.0} | {each:.1} |", kind.name(), work.name());
        }
    }
    Ok(())
}

fn line(work: Work, kind: Kind, samples: &Samples) {
    let (Some(all), Some(bare)) = (samples.get(&(work, kind)), samples.get(&(work, Kind::Nobody))) else {
        return;
    };
    // A round's figure is compared with the same round's.
    let ratios: Vec<f64> = all.iter().zip(bare).map(|(sample, bare)| sample.wall_s / bare.wall_s).collect();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let of = |figure: fn(&Sample) -> f64| median(all.iter().map(figure).collect());
    println!(
        "| {} | {} | {:.3} ({least:.3} to {most:.3}) | {:.2} | {:.2} | {:.2} |",
        work.name(),
        kind.name(),
        median(ratios),
        of(|sample| sample.wall_s),
        of(|sample| sample.subject_cpu_s),
        of(|sample| sample.usage.cpu_s),
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
