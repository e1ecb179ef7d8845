//! The tables beside the comparison: the machine's limits, what loading rules costs, bait, the rescan, and the worker pool alone.

use super::{Bench, differences, set_cache, warmth};
use crate::limits::Limit;
use crate::measured::{self, Measured, at, median};
use crate::pooled;
use crate::tools::{Findings, SIZE_MAX_BYTES, Tool};
use anyhow::ensure;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use vidette_tests::grounds::{self, Ground};

/// Of a file whose verdict is waited for. Bytes.
const LATENCY_BYTES: usize = 100_000;
const LATENCY_FILES: usize = 200;
/// Rescans are short: more of them.
const RESCANS_MIN: usize = 11;
/// The agent keeps no verdict of a file that is younger than a minute.
const SETTLED: Duration = Duration::from_secs(62);

impl Bench {
    pub(super) fn limits(&self) -> anyhow::Result<()> {
        println!(
            "\n| limit | tree | page cache | threads | files/s | MB/s | CPU, s | files per CPU-second |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for (index, ground) in self.grounds.iter().enumerate() {
            for cold in [true, false] {
                // A generated tree has just been written.
                if cold && index > 0 {
                    continue;
                }
                for limit in Limit::ALL {
                    for threads in &self.args.threads {
                        if limit != Limit::StatWalk || *threads == 1 {
                            self.limit(limit, ground, *threads, cold)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn limit(&self, limit: Limit, ground: &Ground, threads: usize, cold: bool) -> anyhow::Result<()> {
        let mut all = Vec::new();
        for _ in 0..self.args.rounds {
            set_cache(cold, ground)?;
            all.push(limit.measure(ground, threads)?);
        }
        let wall = median(all.iter().map(|took| took.wall_s).collect());
        let cpu = median(all.iter().map(|took| took.cpu_s).collect());
        let files = ground.files.len() as f64;
        let rate = if limit == Limit::StatWalk {
            "".to_owned()
        } else {
            format!("{:.0}", ground.megabytes() / wall)
        };
        println!(
            "| {} | {} | {} | {threads} | {:.0} | {rate} | {cpu:.2} | {:.0} |",
            limit.name(),
            ground.name,
            warmth(cold),
            files / wall,
            files / cpu
        );
        Ok(())
    }

    /// What each tool takes for its rules alone: the same command over one empty file.
    pub(super) fn load(&mut self) -> anyhow::Result<()> {
        let root = self.folder.join("empty");
        fs::create_dir(&root)?;
        fs::write(root.join("file"), "")?;
        let ground = Ground::of("empty", &root, SIZE_MAX_BYTES)?;
        println!("\n| loading rules | files of rules | rules | wall, s | CPU, s | peak memory, MiB |");
        println!("|---|---|---|---|---|---|");
        for index in 0..self.sets.len() {
            for kind in &self.kinds.clone() {
                let set = self.set(*kind, index);
                let runs: Vec<Measured> = (0..self.args.rounds)
                    .map(|_| measured::run(self.tools.scan(*kind, set, &ground, 1), &self.folder))
                    .collect::<anyhow::Result<_>>()?;
                let of = |figure: fn(&Measured) -> f64| median(runs.iter().map(figure).collect());
                let cpu = of(|run| run.cpu_s);
                println!(
                    "| {} | {} | {} | {:.2} | {cpu:.2} | {:.0} |",
                    kind.name(),
                    set.files.len(),
                    set.rules,
                    of(|run| run.wall_s),
                    of(|run| run.peak_mib)
                );
                self.loading.insert((*kind, index), cpu);
            }
        }
        Ok(())
    }

    /// A machine without malware shows little of whether matches are the same: bait does. Not timed.
    pub(super) fn bait(&mut self) -> anyhow::Result<()> {
        println!("\n| bait | rules | matches, vidette-agent | matches, yr | differences |");
        println!("|---|---|---|---|---|");
        let Some(set) = self.sets.last() else { return Ok(()) };
        let root = self.folder.join("bait");
        let files = grounds::bait(&root, &set.files)?;
        let ground = Ground::of("bait", &root, SIZE_MAX_BYTES)?;
        let mut findings = BTreeMap::new();
        for kind in [Tool::Vidette, Tool::Yr] {
            let run = measured::run(self.tools.scan(kind, set, &ground, 1), &self.folder)?;
            findings.insert(kind, self.tools.findings(kind, &run.stdout)?);
        }
        let matches = |kind| findings.get(&kind).map_or(0, |found: &Findings| found.matches.len());
        let different = differences(&findings);
        println!(
            "| {files} files | {} | {} | {} | {different} |",
            set.rules,
            matches(Tool::Vidette),
            matches(Tool::Yr)
        );
        ensure!(matches(Tool::Yr) > 0, "the bait matches nothing: comparing matches would say nothing");
        self.differences += different;
        Ok(())
    }

    /// The tree a second time, unchanged, beside the bare walk of one thread. All of it: also what is too large to be scanned
    /// whole, and what matches, which has to be told again alike.
    pub(super) fn rescan(&self) -> anyhow::Result<()> {
        println!(
            "\n| rescan of an unchanged tree | rules | told | first, s | again, s | stat walk, s | again, stat walk = 1 | CPU again, s | CPU stat walk, s | CPU, stat walk = 1 |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        let Some(set) = self.sets.last() else { return Ok(()) };
        if !self.tools.agent_has("--cache") {
            println!("\nnot measured: this agent's `scan` has no --cache");
            return Ok(());
        }
        // Nothing that is younger is kept.
        std::thread::sleep(SETTLED.saturating_sub(self.made.elapsed()));
        let threads = self.args.threads.iter().copied().max().unwrap_or(1);
        for (index, ground) in self.grounds.iter().enumerate() {
            let cache = self.folder.join(format!("verdicts-{index}"));
            let scan = || {
                let run =
                    measured::run(self.tools.scan_with_cache(set, ground, threads, &cache), &self.folder)?;
                let found = self.tools.findings(Tool::Vidette, &run.stdout)?;
                anyhow::Ok((run, found))
            };
            let (first, told) = scan()?;
            let (mut again, mut walks) = (Vec::new(), Vec::new());
            for _ in 0..self.args.rounds.max(RESCANS_MIN) {
                walks.push(Limit::StatWalk.measure(ground, 1)?);
                let (run, found) = scan()?;
                ensure!(found == told, "a rescan of {} told something else", ground.name);
                again.push(run);
            }
            let wall = median(again.iter().map(|run| run.wall_s).collect());
            let walk = median(walks.iter().map(|walk| walk.wall_s).collect());
            // Means: the kernel counts the time of children in ticks, and forgets none.
            let cpu = mean(again.iter().map(|run| run.cpu_s));
            let walk_cpu = mean(walks.iter().map(|walk| walk.cpu_s));
            println!(
                "| {} | {} | {} | {:.2} | {wall:.3} | {walk:.3} | {:.2} | {cpu:.3} | {walk_cpu:.3} | {:.2} |",
                ground.name,
                set.rules,
                told.matches.len() + told.unscanned.len(),
                first.wall_s,
                wall / walk,
                cpu / walk_cpu
            );
        }
        Ok(())
    }

    /// Through the pool that the agent uses.
    pub(super) fn pooled(&self) -> anyhow::Result<()> {
        let files = grounds::mixed(&self.folder.join("mixed"), LATENCY_FILES, LATENCY_BYTES)?;
        println!(
            "\n| verdict for a file of {} KB, through the pool | p50, ms | p99, ms | slowest, ms |",
            LATENCY_BYTES / 1000
        );
        println!("|---|---|---|---|");
        for set in &self.sets {
            let runs: Vec<Vec<f64>> = (0..self.args.rounds)
                .map(|_| pooled::latencies(set, &files))
                .collect::<anyhow::Result<_>>()?;
            let of = |part: f64| median(runs.iter().map(|sorted| at(sorted, part)).collect());
            println!("| {} rules | {:.2} | {:.2} | {:.2} |", set.rules, of(0.5), of(0.99), of(1.0));
        }
        let Some(scripts) = self.grounds.last() else { return Ok(()) };
        let hops: Vec<pooled::Hop> =
            (0..self.args.rounds).map(|_| pooled::hop(&scripts.files)).collect::<anyhow::Result<_>>()?;
        let limit = Limit::ReadAndHash.measure(scripts, 1)?;
        println!("\n| a small script through the pool, one rule | µs a file |");
        println!("|---|---|");
        println!(
            "| wall, less what the worker says it scanned | {:.1} |",
            median(hops.iter().map(|hop| hop.wall_us).collect())
        );
        println!("| CPU of both processes | {:.1} |", median(hops.iter().map(|hop| hop.cpu_us).collect()));
        println!(
            "| read + BLAKE3 of the same, in one process: CPU | {:.1} |",
            limit.cpu_s * 1e6 / scripts.files.len() as f64
        );
        Ok(())
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
