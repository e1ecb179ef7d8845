//! Latency from a write or an exec to the collector's commit, and what an idle agent costs. Run it with
//! `tests/bench/path`, as root; the method is in BENCHMARKS.md.

use anyhow::{Context, ensure};
use clap::Parser;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vidette_tests::programs::{Agent, Collector, memory_bytes, wait_for};
use vidette_tests::samples;

/// Measures the whole path on this host.
#[derive(Parser)]
struct Args {
    /// Samples of each kind in one run
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Runs; the median of their figures is reported
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long to watch an idle agent, in seconds
    #[arg(long, default_value_t = 60)]
    idle_s: u64,
    /// Files written a second by the load
    #[arg(long, default_value_t = 500)]
    load: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = tempfile::Builder::new().prefix("vidette-bench-").tempdir()?;
    let watched = folder.path().join("host");
    fs::create_dir(&watched)?;
    let collector = Collector::start(folder.path(), "")?;
    let mut agent = Agent::prepare(folder.path(), &watched, "", "")?;
    agent.join(&collector.invitation()?)?;
    agent.start()?;
    wait_for("rules", || Ok((agent.status()?["rules"].as_u64() > Some(0)).then_some(())))?;
    println!("sensors: {}", agent.status()?["level"]);

    idle(&agent, args.idle_s)?;
    println!("\n== latency in ms, median of {} runs of {} samples each", args.runs, args.samples);
    println!("{:<34} {:>8} {:>8} {:>8}", "", "p50", "p99", "max");
    let mut number = 0;
    for (name, load, exec) in [
        ("write to commit, idle", 0, false),
        ("exec to commit, idle", 0, true),
        ("write to commit, under load", args.load, false),
        ("exec to commit, under load", args.load, true),
    ] {
        let background = Load::start(&watched, load)?;
        let mut figures = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..args.runs {
            number += 1;
            let latencies = measure(&collector, &watched, number, args.samples, exec)?;
            for (figure, part) in figures.iter_mut().zip([0.50, 0.99, 1.0]) {
                figure.push(at(&latencies, part));
            }
        }
        let rate = background.stop();
        let [p50, p99, max] = figures.map(|mut runs| {
            runs.sort_by(f64::total_cmp);
            runs[runs.len() / 2]
        });
        let note = if load == 0 { String::new() } else { format!("  ({rate:.0} files/s written beside it)") };
        println!("{name:<34} {p50:>8.1} {p99:>8.1} {max:>8.1}{note}");
    }
    let status = agent.status()?;
    let worker =
        status["worker_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).map_or(0, memory_bytes);
    println!(
        "\nmemory after it: agent {:.1} MiB, worker {:.1} MiB",
        mebibytes(status["memory_bytes"].as_u64().unwrap_or(0)),
        mebibytes(worker)
    );
    Ok(())
}

/// Memory and CPU of an agent that has nothing to do, once its worker rests.
fn idle(agent: &Agent, seconds: u64) -> anyhow::Result<()> {
    let pid = agent.program.as_ref().context("the agent runs")?.pid();
    wait_for("a resting worker", || Ok(agent.status()?["worker_pid"].is_null().then_some(())))?;
    let (before, start) = (cpu_ticks(pid)?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let ticks = cpu_ticks(pid)? - before;
    let share = ticks as f64 / rustix::param::clock_ticks_per_second() as f64 / start.elapsed().as_secs_f64();
    println!(
        "idle agent without worker: {:.1} MiB resident, {:.2} % of a core over {seconds} s",
        mebibytes(memory_bytes(pid)),
        share * 100.0
    );
    Ok(())
}

/// User and system time of a process, in clock ticks (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("a stat line")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let tick = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok(tick(11) + tick(12))
}

/// Writes, or runs, samples one after the other and gives the sorted latencies in milliseconds.
fn measure(
    collector: &Collector,
    watched: &Path,
    run: usize,
    samples: usize,
    exec: bool,
) -> anyhow::Result<Vec<f64>> {
    let mut moments: HashMap<String, i128> = HashMap::new();
    let folder = watched.join(format!("run-{run}"));
    fs::create_dir(&folder)?;
    for number in 0..samples {
        let path = folder.join(format!("sample-{number}"));
        if exec {
            write_program(&path, number)?;
            // Its write raises an alert of its own, which is not the one that is timed.
            std::thread::sleep(Duration::from_millis(40));
            moments.insert(path.display().to_string(), jiff::Timestamp::now().as_nanosecond());
            Command::new(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        } else {
            let mut bytes = samples::eicar();
            bytes.extend(format!("\n{run} {number}\n").as_bytes());
            moments.insert(path.display().to_string(), jiff::Timestamp::now().as_nanosecond());
            fs::write(&path, bytes)?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let trigger = if exec { "exec" } else { "close_write" };
    let mut latencies = wait_for("every alert", || {
        let mut found: HashMap<String, f64> = HashMap::new();
        for alert in collector.lines(&[
            "alerts",
            "list",
            "--kind",
            "detection",
            "--limit",
            &(4 * samples).to_string(),
        ])? {
            let path = alert["file.path"].as_str().unwrap_or_default();
            let Some(moment) = moments.get(path).filter(|_| alert["vidette.trigger"] == trigger) else {
                continue;
            };
            let ingested: jiff::Timestamp =
                alert["event.ingested"].as_str().context("event.ingested")?.parse()?;
            found.insert(path.to_owned(), (ingested.as_nanosecond() - moment) as f64 / 1e6);
        }
        Ok((found.len() == samples).then(|| found.into_values().collect::<Vec<f64>>()))
    })?;
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

fn write_program(path: &Path, number: usize) -> anyhow::Result<()> {
    fs::write(path, samples::program(&number.to_string()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn at(sorted: &[f64], part: f64) -> f64 {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Harmless files of 4 KiB, written at a steady rate and rewritten in turn.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    started: Instant,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(watched: &Path, rate: u64) -> anyhow::Result<Self> {
        ensure!(rate <= 100_000, "a load of {rate} files a second is more than one thread writes");
        let (stop, written) = (Arc::new(AtomicBool::new(rate == 0)), Arc::new(AtomicU64::new(0)));
        let folder: PathBuf = watched.join("load");
        fs::create_dir_all(&folder)?;
        let (heard, counted, started) = (stop.clone(), written.clone(), Instant::now());
        let thread = std::thread::spawn(move || {
            while !heard.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let text = format!("line {number}\n").repeat(300);
                let _ = fs::write(folder.join((number % 5000).to_string()), text);
                let due = Duration::from_secs_f64(number as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
        });
        Ok(Self { stop, written, started, thread: Some(thread) })
    }

    /// Ends it; gives the rate it kept, in files a second.
    fn stop(mut self) -> f64 {
        let rate = self.written.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        rate
    }
}
