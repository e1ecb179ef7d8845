//! A command run to its end, with what it used: wall time, CPU of all its processes, and the most memory that they held together.

use anyhow::{Context, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vidette_tests::programs::{memory_bytes, process_tree};

/// How often memory is looked at. Shorter peaks can be missed.
const LOOK: Duration = Duration::from_millis(20);
/// Exit codes above it mean that a scanner failed; up to it, that something matched or could not be read.
const CODE_MAX: i32 = 2;

/// What a run used, and where its output is.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) wall_s: f64,
    /// User and system time of the process and of all that it waited for, workers included.
    pub(crate) cpu_s: f64,
    /// The largest sum of VmRSS of all its processes seen at one time.
    pub(crate) peak_mib: f64,
    pub(crate) stdout: PathBuf,
}

/// Runs a command; its output goes to files in `folder`.
pub(crate) fn run(mut command: Command, folder: &Path) -> anyhow::Result<Measured> {
    let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
    command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
    let (cpu, start) = (children_cpu_s()?, Instant::now());
    let mut child =
        command.spawn().with_context(|| format!("could not start {:?}", command.get_program()))?;
    let (pid, over) = (child.id(), AtomicBool::new(false));
    let (status, wall_s, peak) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| peak(pid, &over));
        let status = child.wait();
        let wall_s = start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        (status, wall_s, watch.join().unwrap_or(0))
    });
    let status = status?;
    ensure!(
        status.code().is_some_and(|code| code <= CODE_MAX),
        "{:?} ended with {status}: {}",
        command.get_program(),
        last_words(&stderr)
    );
    let cpu_s = children_cpu_s()? - cpu;
    Ok(Measured { wall_s, cpu_s, peak_mib: peak as f64 / f64::from(1 << 20), stdout })
}

fn peak(pid: u32, over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        most = most.max(process_tree(pid).into_iter().map(memory_bytes).sum());
        std::thread::sleep(LOOK);
    }
    most
}

fn last_words(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" ")
}

/// User and system time of all children that ended, in seconds (proc_pid_stat(5), fields 16 and 17).
fn children_cpu_s() -> anyhow::Result<f64> {
    cpu_s("/proc/self/stat", 13)
}

/// User and system time of one process that runs, in seconds (fields 14 and 15).
pub(crate) fn process_cpu_s(pid: u32) -> anyhow::Result<f64> {
    cpu_s(&format!("/proc/{pid}/stat"), 11)
}

fn cpu_s(path: &str, skip: usize) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(path)?;
    let rest = stat.rsplit(')').next().context("a stat line")?;
    let ticks: u64 = rest.split_whitespace().skip(skip).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time of this process, in seconds.
pub(crate) fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    at(&values, 0.5)
}

/// The value below which that part of sorted values lies.
pub(crate) fn at(sorted: &[f64], part: f64) -> f64 {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
