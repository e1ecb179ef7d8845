//! What scanning costs: the agent's `scan` beside `yr` of the same YARA-X, Debian's `yara` and `clamscan`, and the limits of the machine,
//! in one run. Run it with `tests/bench/scan`, as root; the method is in BENCHMARKS.md. Ends with 1 when the agent matches
//! anything that `yr` doesn't, or the other way round.

mod limits;
mod measured;
mod pooled;
mod tables;
mod tools;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use limits::{Limit, empty_page_cache};
use measured::{Measured, median};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tools::{Findings, SIZE_MAX_BYTES, Tool, Tools};
use vidette_tests::grounds::{self, Ground};
use vidette_tests::rulesets::{self, Set, Stock};

/// Differences that are printed of each kind.
const SHOWN_MAX: usize = 20;
/// A run that takes only so much of its loading's CPU beyond it says nothing of scanning alone.
const SCANNING_LEAST: f64 = 0.2;
/// With `--quick`: every so many files of the machine, small scripts.
const QUICK_STEP: usize = 20;
const QUICK_SCRIPTS: usize = 4000;

/// Measures scanning with the agent and with its peers.
#[derive(Parser)]
struct Args {
    /// Rounds; figures are medians of them
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One round over every 20th file and 4,000 scripts, to see that everything works
    #[arg(long)]
    quick: bool,
    /// What is scanned beside the scripts
    #[arg(long, default_value = "/usr")]
    path: PathBuf,
    /// Small scripts
    #[arg(long, default_value_t = 20_000)]
    scripts: usize,
    /// Sizes of rule sets
    #[arg(long, value_delimiter = ',', default_value = "30,1000,2800")]
    sets: Vec<usize>,
    /// Of these sizes the ones that are also measured with an empty page cache
    #[arg(long, value_delimiter = ',', default_value = "2800")]
    cold: Vec<usize>,
    /// Scanning threads
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Tools to leave out: yara, clamscan
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// This part alone
    #[arg(long)]
    only: Option<Part>,
    /// Of the order in which tools take their turns
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Trees a second time, unchanged
    Rescan,
}

/// Everything that is measured with.
struct Bench {
    args: Args,
    folder: PathBuf,
    tools: Tools,
    kinds: Vec<Tool>,
    sets: Vec<Set>,
    /// What of each clamscan takes.
    clam_sets: Vec<Set>,
    grounds: Vec<Ground>,
    /// When the last of the grounds was made.
    made: Instant,
    order: StdRng,
    /// CPU of loading alone, by tool and set. Seconds.
    loading: BTreeMap<(Tool, usize), f64>,
    differences: usize,
}

/// One line of the table for each tool.
#[derive(Clone, Copy)]
struct Cell {
    ground: usize,
    set: usize,
    threads: usize,
    cold: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut args = Args::parse();
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root: it reads all of {} and empties the page cache",
        args.path.display()
    );
    if args.quick {
        (args.rounds, args.scripts) = (1, args.scripts.min(QUICK_SCRIPTS));
    }
    ensure!(args.rounds > 0 && !args.sets.is_empty(), "no rounds and no rules, no figures");
    let folder = tempfile::Builder::new().prefix("vidette-scan-").tempdir()?;
    let mut bench = Bench::prepare(args, folder.path())?;
    bench.describe()?;
    if let Some(Part::Rescan) = bench.args.only {
        bench.rescan()?;
        return Ok(ExitCode::SUCCESS);
    }
    bench.limits()?;
    bench.load()?;
    bench.bait()?;
    bench.compare()?;
    bench.rescan()?;
    bench.pooled()?;
    match bench.differences {
        0 => {
            println!("\nmatches of vidette-agent and yr: identical in every run");
            Ok(ExitCode::SUCCESS)
        }
        count => {
            println!("\nmatches of vidette-agent and yr: {count} differences");
            Ok(ExitCode::from(1))
        }
    }
}

impl Bench {
    fn prepare(args: Args, folder: &Path) -> anyhow::Result<Self> {
        let tools = Tools::find()?;
        let kinds = possible(&tools, &args.without)?;
        eprintln!("trying which rule files everybody can compile");
        let from = rulesets::folder()?;
        let stock = Stock::read(&from, |files| tools.accept(files))?;
        println!(
            "rules: {} files with {} rules left out, which vidette-agent, yr or yara could not compile\n",
            stock.left_out, stock.rules_left_out
        );
        let sets: Vec<Set> = args
            .sets
            .iter()
            .map(|rules| stock.set(&folder.join(format!("rules-{rules}")), *rules))
            .collect::<anyhow::Result<_>>()?;
        let clam_sets = clam_sets(&tools, &kinds, &sets, folder)?;
        eprintln!("making trees");
        let grounds = grounds_of(&args, folder)?;
        let order = StdRng::seed_from_u64(args.seed);
        let loading = BTreeMap::new();
        Ok(Self {
            args,
            folder: folder.to_owned(),
            tools,
            kinds,
            sets,
            clam_sets,
            grounds,
            made: Instant::now(),
            order,
            loading,
            differences: 0,
        })
    }

    fn describe(&self) -> anyhow::Result<()> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cores = std::thread::available_parallelism()?;
        println!("{cores} cores, Linux {}, {} rounds\n", release.trim(), self.args.rounds);
        for kind in &self.kinds {
            println!("- {}: {}", kind.name(), self.tools.version(*kind)?);
        }
        for ground in &self.grounds {
            println!(
                "- {}: {} files, {:.0} MB; {} files above {} MiB left out for everybody",
                ground.name,
                ground.files.len(),
                ground.megabytes(),
                ground.left_out,
                SIZE_MAX_BYTES >> 20
            );
        }
        Ok(())
    }

    fn compare(&mut self) -> anyhow::Result<()> {
        println!(
            "\n| tree | page cache | rules | threads | tool | files/s | MB/s | CPU, s | files per CPU-second | without loading | peak memory, MiB | matches | files per CPU-second, yr = 1 | without loading, yr = 1 |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
        for ground in 0..self.grounds.len() {
            for cold in [false, true] {
                for set in 0..self.sets.len() {
                    let wanted = !cold || (ground == 0 && self.args.cold.contains(&self.args.sets[set]));
                    for threads in self.args.threads.clone().into_iter().filter(|_| wanted) {
                        self.cell(Cell { ground, set, threads, cold })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The rules as this tool gets them.
    fn set(&self, kind: Tool, index: usize) -> &Set {
        match kind {
            Tool::Vidette | Tool::Yr | Tool::Yara => &self.sets[index],
            Tool::Clamscan => self.clam_sets.get(index).unwrap_or(&self.sets[index]),
        }
    }

    /// Every tool, every round; then its lines.
    fn cell(&mut self, cell: Cell) -> anyhow::Result<()> {
        let mut runs: BTreeMap<Tool, Vec<Measured>> = BTreeMap::new();
        let mut counts: BTreeMap<Tool, usize> = BTreeMap::new();
        let kinds: Vec<Tool> =
            self.kinds.iter().copied().filter(|kind| cell.threads == 1 || kind.takes_threads()).collect();
        for _ in 0..self.args.rounds {
            let mut turns = kinds.clone();
            turns.shuffle(&mut self.order);
            let mut findings: BTreeMap<Tool, Findings> = BTreeMap::new();
            for kind in turns {
                let (ground, set) = (&self.grounds[cell.ground], self.set(kind, cell.set));
                set_cache(cell.cold, ground)?;
                let run = measured::run(self.tools.scan(kind, set, ground, cell.threads), &self.folder)?;
                let found = self.tools.findings(kind, &run.stdout)?;
                counts.insert(kind, found.matches.len());
                findings.insert(kind, found);
                runs.entry(kind).or_default().push(run);
            }
            self.differences += differences(&findings);
        }
        let figures: BTreeMap<Tool, Figures> =
            runs.iter().map(|(kind, runs)| (*kind, self.figures(*kind, cell, runs))).collect();
        for kind in kinds {
            let (Some(own), Some(yr)) = (figures.get(&kind), figures.get(&Tool::Yr)) else { continue };
            self.line(kind, cell, own, yr, counts.get(&kind).copied().unwrap_or(0));
        }
        Ok(())
    }

    fn figures(&self, kind: Tool, cell: Cell, runs: &[Measured]) -> Figures {
        let of = |figure: fn(&Measured) -> f64| median(runs.iter().map(figure).collect());
        let (wall_s, cpu_s, peak_mib) = (of(|run| run.wall_s), of(|run| run.cpu_s), of(|run| run.peak_mib));
        let files = self.grounds[cell.ground].files.len() as f64;
        let loading = self.loading.get(&(kind, cell.set)).copied().unwrap_or(0.0);
        let scanning_s = cpu_s - loading;
        // Less than this is lost in the noise of loading.
        let scanning_per_cpu =
            if scanning_s > loading * SCANNING_LEAST { files / scanning_s } else { f64::NAN };
        Figures { wall_s, cpu_s, peak_mib, per_cpu: files / cpu_s, scanning_per_cpu }
    }

    fn line(&self, kind: Tool, cell: Cell, own: &Figures, yr: &Figures, matches: usize) {
        let ground = &self.grounds[cell.ground];
        println!(
            "| {} | {} | {} | {} | {} | {:.0} | {:.1} | {:.2} | {:.0} | {} | {:.0} | {matches} | {:.2} | {} |",
            ground.name,
            warmth(cell.cold),
            self.set(kind, cell.set).rules,
            cell.threads,
            kind.name(),
            ground.files.len() as f64 / own.wall_s,
            ground.megabytes() / own.wall_s,
            own.cpu_s,
            own.per_cpu,
            number(own.scanning_per_cpu, 0),
            own.peak_mib,
            own.per_cpu / yr.per_cpu,
            number(own.scanning_per_cpu / yr.scanning_per_cpu, 2)
        );
    }
}

/// Of one line.
struct Figures {
    wall_s: f64,
    cpu_s: f64,
    peak_mib: f64,
    per_cpu: f64,
    scanning_per_cpu: f64,
}

/// The agent and yr must be there; the others are named when they are not.
fn possible(tools: &Tools, without: &[String]) -> anyhow::Result<Vec<Tool>> {
    let mut kinds = Vec::new();
    for kind in Tool::ALL {
        let needed = matches!(kind, Tool::Vidette | Tool::Yr);
        if !needed && without.iter().any(|name| name == kind.word()) {
            println!("left out as asked: {}\n", kind.name());
        } else if let Err(reason) = tools.version(kind) {
            ensure!(!needed, "{}: {reason:#}", kind.name());
            println!("left out: {}: {reason:#}\n", kind.name());
        } else {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// What of each set clamscan takes; nothing when it is left out.
fn clam_sets(tools: &Tools, kinds: &[Tool], sets: &[Set], folder: &Path) -> anyhow::Result<Vec<Set>> {
    if !kinds.contains(&Tool::Clamscan) {
        return Ok(Vec::new());
    }
    eprintln!("trying which rule files clamscan can read");
    let mut own = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        let (mut kept, rules) = tools.clam_set(set, &folder.join(format!("clam-{index}")))?;
        println!(
            "clamscan: of {} files and {} rules it takes {} files and, by its own count, {rules} rules\n",
            set.files.len(),
            set.rules,
            kept.files.len()
        );
        kept.rules = rules;
        own.push(kept);
    }
    Ok(own)
}

/// The machine's files, then the scripts.
fn grounds_of(args: &Args, folder: &Path) -> anyhow::Result<Vec<Ground>> {
    let mut machine = Ground::of(&args.path.display().to_string(), &args.path, SIZE_MAX_BYTES)?;
    if args.quick {
        let sample = folder.join("sample");
        machine.sample(&sample, QUICK_STEP)?;
        machine = Ground::of(&format!("sample of {}", machine.name), &sample, SIZE_MAX_BYTES)?;
    }
    grounds::scripts(&folder.join("scripts"), args.scripts)?;
    let scripts = Ground::of("small scripts", &folder.join("scripts"), SIZE_MAX_BYTES)?;
    Ok(vec![machine, scripts])
}

/// Everything in memory, or nothing.
fn set_cache(cold: bool, ground: &Ground) -> anyhow::Result<()> {
    if cold {
        return empty_page_cache();
    }
    Limit::Read.measure(ground, 1).map(drop)
}

/// Nothing where nothing could be measured.
fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { String::new() }
}

fn warmth(cold: bool) -> &'static str {
    if cold { "cold" } else { "warm" }
}

/// Prints what only one of them says; how much that is.
fn differences(findings: &BTreeMap<Tool, Findings>) -> usize {
    let (Some(ours), Some(theirs)) = (findings.get(&Tool::Vidette), findings.get(&Tool::Yr)) else {
        return 0;
    };
    let only = |who: &str, list: Vec<String>| {
        for line in list.iter().take(SHOWN_MAX) {
            eprintln!("{who}: {line}");
        }
        if list.len() > SHOWN_MAX {
            eprintln!("{who}: and {} more", list.len() - SHOWN_MAX);
        }
        list.len()
    };
    let shown = |(path, file, rule): &tools::Match| format!("{file} {rule} {path}");
    only("only vidette-agent", ours.matches.difference(&theirs.matches).map(shown).collect())
        + only("only yr", theirs.matches.difference(&ours.matches).map(shown).collect())
        + only("not scanned by vidette-agent", ours.unscanned.iter().cloned().collect())
}
