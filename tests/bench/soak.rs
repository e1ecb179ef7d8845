//! Whether memory stays flat: one `vidette-agent scan` over the same trees until half a million files have gone through it, with the
//! resident memory of the agent and of its workers every second. Writes a CSV file and an SVG plot. Run it with
//! `tests/bench/soak`; the method is in BENCHMARKS.md.

mod plot;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use plot::{Chart, Line};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vidette_tests::grounds::{self, Ground};
use vidette_tests::programs::{binary, memory_bytes, process_tree};
use vidette_tests::rulesets::{self, Set, Stock};

/// Between two samples.
const STEP: Duration = Duration::from_secs(1);
/// Of the whole run: the first part, in which buffers grow, is plotted but not judged; nor is the time until the worker that
/// compiles the rules, which is the first, has ended.
const SETTLING: f64 = 0.05;
/// As the agent has it.
const SIZE_MAX_BYTES: u64 = 64 << 20;
const QUICK_FILES: usize = 30_000;
const QUICK_SCRIPTS: usize = 5000;

/// Scans one tree again and again in one agent.
#[derive(Parser)]
struct Args {
    /// Files that are to go through it
    #[arg(long, default_value_t = 500_000)]
    files: usize,
    /// What is scanned
    #[arg(long, default_value = "/usr")]
    path: PathBuf,
    /// 30,000 times a small script, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Rules, at most
    #[arg(long, default_value_t = 2800)]
    rules: usize,
    /// Scanning threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where soak.csv and soak.svg go
    #[arg(long, default_value = "target/soak")]
    out: PathBuf,
}

/// One moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: f64,
    agent_bytes: u64,
    /// All of them together.
    workers_bytes: u64,
    workers: usize,
    /// The process that was the first worker runs.
    first: bool,
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    let folder = tempfile::Builder::new().prefix("vidette-soak-").tempdir()?;
    if args.quick {
        args.files = args.files.min(QUICK_FILES);
        args.path = folder.path().join("scripts");
        grounds::scripts(&args.path, QUICK_SCRIPTS)?;
    }
    let agent = binary("vidette-agent")?;
    let set = rules(&agent, folder.path(), args.rules)?;
    let ground = Ground::of("soak", &args.path, SIZE_MAX_BYTES)?;
    let rounds = args.files.div_ceil(ground.files.len());
    eprintln!("{rounds} rounds over {} files with {} rules", ground.files.len(), set.rules);
    let (samples, said) = soak(&agent, &set, &args.path, rounds, args.threads, folder.path())?;
    let files = files_scanned(&said)?;
    ensure!(files >= args.files, "only {files} files were scanned, of {}: {said}", args.files);
    fs::create_dir_all(&args.out)?;
    fs::write(args.out.join("soak.csv"), csv(&samples))?;
    let title = format!("{files} files, {} rules, {} threads: resident memory", set.rules, args.threads);
    fs::write(args.out.join("soak.svg"), chart(&title, &samples).svg())?;
    report(&args, &set, &ground, files, &samples);
    println!("\nsoak.csv and soak.svg are in {}", args.out.display());
    Ok(())
}

/// Only what the agent itself can compile.
fn rules(agent: &Path, folder: &Path, rules: usize) -> anyhow::Result<Set> {
    let from = rulesets::folder()?;
    let accepts = |files: &[PathBuf]| {
        let mut command = Command::new(agent);
        command
            .args(["rules", "check"])
            .args(files)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command.status()?.success())
    };
    Stock::read(&from, accepts)?.set(&folder.join("rules"), rules)
}

/// Stopped when this ends, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the tree seen at as many places as rounds are wanted, for itself alone: a path that is named twice is scanned once.
const AGAIN: &str = r#"
tree=$1 places=$2 rounds=$3; shift 3
for round in $(seq "$rounds"); do
    mkdir -p "$places/$round" && mount --bind "$tree" "$places/$round" || exit 3
done
exec "$@"
"#;

/// One agent that scans the same tree `rounds` times; its samples, and what it said in the end.
fn soak(
    agent: &Path,
    set: &Set,
    tree: &Path,
    rounds: usize,
    threads: usize,
    folder: &Path,
) -> anyhow::Result<(Vec<Sample>, String)> {
    let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
    let places = folder.join("rounds");
    // The agent takes the place of both, and so has the process id that is watched.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", AGAIN, "again"]);
    command.arg(tree).arg(&places).arg(rounds.to_string()).arg(agent);
    command.args([
        "scan",
        "--json",
        "--no-builtin-rules",
        "--log",
        "error",
        "--threads",
        &threads.to_string(),
    ]);
    command.args(["--max-size", &SIZE_MAX_BYTES.to_string(), "--rules"]).arg(&set.folder);
    let help = Command::new(agent).args(["scan", "--help"]).output()?;
    if String::from_utf8_lossy(&help.stdout).contains("--no-cache") {
        command.arg("--no-cache");
    }
    command.args((1..=rounds).map(|round| places.join(round.to_string())));
    command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
    let start = Instant::now();
    let mut running = Running(command.spawn().context("could not start the agent")?);
    let (mut samples, mut first) = (Vec::new(), None);
    let status = loop {
        if let Some(status) = running.0.try_wait()? {
            break status;
        }
        samples.push(sample(running.0.id(), start, &mut first));
        let next = STEP * u32::try_from(samples.len()).unwrap_or(u32::MAX);
        std::thread::sleep(next.saturating_sub(start.elapsed()));
    };
    let said = String::from_utf8_lossy(&fs::read(&stderr)?).into_owned();
    if status.code().is_none_or(|code| code > 2) {
        bail!("the agent ended with {status}: {said}");
    }
    Ok((samples, said))
}

fn sample(pid: u32, start: Instant, first: &mut Option<u32>) -> Sample {
    let workers: Vec<u32> = process_tree(pid).into_iter().skip(1).collect();
    *first = first.or(workers.first().copied());
    Sample {
        seconds: start.elapsed().as_secs_f64(),
        agent_bytes: memory_bytes(pid),
        workers_bytes: workers.iter().map(|pid| memory_bytes(*pid)).sum(),
        workers: workers.len(),
        first: first.is_none_or(|pid| workers.contains(&pid)),
    }
}

/// `123 files, …`, among what the agent says in the end.
fn files_scanned(said: &str) -> anyhow::Result<usize> {
    let of = |line: &str| line.split_once(" files, ")?.0.trim().replace(',', "").parse().ok();
    said.lines().rev().find_map(of).with_context(|| format!("no count of files in: {said}"))
}

fn csv(samples: &[Sample]) -> String {
    let mut text = String::from("seconds,agent_bytes,workers_bytes,workers\n");
    for sample in samples {
        let Sample { seconds, agent_bytes, workers_bytes, workers, .. } = sample;
        let _ = writeln!(text, "{seconds:.1},{agent_bytes},{workers_bytes},{workers}");
    }
    text
}

fn chart<'a>(title: &'a str, samples: &[Sample]) -> Chart<'a> {
    let points = |of: fn(&Sample) -> u64| {
        samples.iter().map(|sample| (sample.seconds, mebibytes(of(sample) as f64))).collect()
    };
    Chart {
        title,
        x: "time since the start, s",
        y: "resident memory (VmRSS), MiB",
        lines: vec![
            Line { name: "agent", color: "#1f6fb4", points: points(|sample| sample.agent_bytes) },
            Line {
                name: "workers, together",
                color: "#c8501e",
                points: points(|sample| sample.workers_bytes),
            },
        ],
    }
}

fn report(args: &Args, set: &Set, ground: &Ground, files: usize, samples: &[Sample]) {
    let whole = samples.last().map_or(0.0, |sample| sample.seconds);
    let compiled = samples.iter().find(|sample| !sample.first).map_or(0.0, |sample| sample.seconds);
    let from = compiled.max(whole * SETTLING);
    let judged: Vec<Sample> = samples.iter().copied().filter(|sample| sample.seconds >= from).collect();
    println!(
        "{files} files ({} of {}, again and again), {} rules, {} threads, {whole:.0} s, {:.0} files/s; {} samples from second {from:.0} on\n",
        ground.files.len(),
        args.path.display(),
        set.rules,
        args.threads,
        files as f64 / whole,
        judged.len()
    );
    println!(
        "| resident memory, MiB | first half, median | second half, median | most | slope, bytes per 100,000 files |"
    );
    println!("|---|---|---|---|---|");
    let files_a_second = files as f64 / whole;
    let agent = |sample: &Sample| sample.agent_bytes as f64;
    let workers = |sample: &Sample| sample.workers_bytes as f64;
    line("agent", &judged, agent, files_a_second);
    line("workers", &judged, workers, files_a_second);
}

fn line(name: &str, samples: &[Sample], of: impl Fn(&Sample) -> f64, files_a_second: f64) {
    let (first, second) = samples.split_at(samples.len() / 2);
    let middle = |part: &[Sample]| {
        let mut values: Vec<f64> = part.iter().map(&of).collect();
        values.sort_by(f64::total_cmp);
        mebibytes(values.get(values.len() / 2).copied().unwrap_or(f64::NAN))
    };
    let most = mebibytes(samples.iter().map(&of).fold(0.0, f64::max));
    let slope = slope(samples, &of) / files_a_second * 1e5;
    println!("| {name} | {:.1} | {:.1} | {most:.1} | {slope:+.0} |", middle(first), middle(second));
}

/// Bytes a second, by least squares.
fn slope(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let (mean_x, mean_y) = (
        samples.iter().map(|sample| sample.seconds).sum::<f64>() / count,
        samples.iter().map(&of).sum::<f64>() / count,
    );
    let (mut above, mut below) = (0.0, 0.0);
    for sample in samples {
        let x = sample.seconds - mean_x;
        above += x * (of(sample) - mean_y);
        below += x * x;
    }
    above / below
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
