//! The worker pool that the agent itself uses, fed one file at a time for the latency of a verdict, and with all it takes for the
//! cost of the way to the worker and back.

use crate::measured::{own_cpu_s, process_cpu_s};
use anyhow::{Context, bail, ensure};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vidette_agent::detection::rules::RuleSources;
use vidette_agent::worker::pool::{Output, Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_agent::worker::{Outcome, RuleSet, Scan, Source};
use vidette_tests::programs::{binary, process_tree};
use vidette_tests::rulesets::Set;

const WAIT: Duration = Duration::from_millis(100);
/// Between two files: a verdict is waited for by one who was idle.
const PAUSE: Duration = Duration::from_millis(10);
/// Files before the first that counts.
const WARM_UP: usize = 20;
/// A rule that nothing matches.
const ALMOST_NOTHING: &str =
    "rule almost_nothing { strings: $a = \"never in any of these files\" condition: $a }";

/// What a file costs apart from scanning it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hop {
    /// Wall time of all, less what the worker says it scanned. Microseconds a file.
    pub(crate) wall_us: f64,
    /// CPU of this process and of the worker. Microseconds a file.
    pub(crate) cpu_us: f64,
}

/// From before the open to the verdict, one file after the other, in milliseconds and sorted.
pub(crate) fn latencies(set: &Set, files: &[PathBuf]) -> anyhow::Result<Vec<f64>> {
    let found = RuleSources { builtin: false, files: vec![set.folder.clone()] }.load();
    ensure!(found.errors.is_empty(), "{}", found.errors.join("; "));
    let mut pool = ready(found.into_set(), 2)?;
    let mut latencies = Vec::with_capacity(files.len());
    for (number, path) in files.iter().cycle().take(files.len() + WARM_UP).enumerate() {
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        let file = File::open(path)?;
        let mut outputs = pool.submit(0, file.into(), Instant::now());
        while scans(outputs)?.is_empty() {
            outputs = pool.wait(WAIT);
        }
        if number >= WARM_UP {
            latencies.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

/// Every file through one scanning thread with next to no rules.
pub(crate) fn hop(files: &[PathBuf]) -> anyhow::Result<Hop> {
    let source = Source { name: "bench.yar".to_owned(), text: ALMOST_NOTHING.into() };
    let mut pool = ready(RuleSet::new(vec![source]), 1)?;
    // Workers of this pool alone: nothing else that this program starts is running now.
    let workers =
        || process_tree(std::process::id()).into_iter().skip(1).filter_map(|pid| process_cpu_s(pid).ok());
    let (cpu, start) = (own_cpu_s() + workers().sum::<f64>(), Instant::now());
    let (mut done, mut scan_us) = (0, 0);
    let mut settle = |outputs| -> anyhow::Result<usize> {
        let scans = scans(outputs)?;
        scan_us += scans.iter().map(|scan| scan.scan_us).sum::<u64>();
        Ok(scans.len())
    };
    for (id, path) in (0u64..).zip(files) {
        while pool.room() == 0 {
            done += settle(pool.wait(WAIT))?;
        }
        done += settle(pool.submit(id, File::open(path)?.into(), Instant::now()))?;
    }
    while done < files.len() {
        done += settle(pool.wait(WAIT))?;
    }
    let wall_us = start.elapsed().as_secs_f64() * 1e6;
    let cpu_us = (own_cpu_s() + workers().sum::<f64>() - cpu) * 1e6;
    let count = files.len() as f64;
    Ok(Hop { wall_us: (wall_us - scan_us as f64) / count, cpu_us: cpu_us / count })
}

fn ready(rules: RuleSet, threads: usize) -> anyhow::Result<Pool> {
    let launcher = Launcher::of(&binary("vidette-agent")?)?;
    let mut pool = Pool::new(Settings { threads, ..Settings::new(launcher, rules) });
    let mut outputs = pool.prepare(Instant::now());
    loop {
        for output in &outputs {
            match output {
                Output::Loaded(loaded) => {
                    ensure!(loaded.rules > 0, "the worker loaded no rule: {:?}", loaded.problems.first());
                    return Ok(pool);
                }
                Output::Unavailable(reason) | Output::RulesRefused { reason, .. } => {
                    bail!("no worker: {reason}")
                }
                Output::Done(_) | Output::Started(_) | Output::Died(_) => {}
            }
        }
        outputs = pool.wait(WAIT);
    }
}

/// Those that are done; everything else that can be said here is a failure.
fn scans(outputs: Vec<Output>) -> anyhow::Result<Vec<Scan>> {
    let mut scans = Vec::new();
    for output in outputs {
        match output {
            Output::Done(done) => match done.outcome {
                Outcome::Scanned(scan) => scans.push(scan),
                Outcome::TimedOut(reason) | Outcome::Died(reason) | Outcome::NotScanned(reason) => {
                    bail!("a file was not scanned: {reason}")
                }
            },
            Output::Started(_) | Output::Loaded(_) => {}
            Output::RulesRefused { reason, .. } | Output::Died(reason) | Output::Unavailable(reason) => {
                return Err(anyhow::Error::msg(reason)).context("the worker failed");
            }
        }
    }
    Ok(scans)
}
