//! What was measured, beside what it should be: percentiles, CPU of a process, tables.

use anyhow::Context;
use std::fs;
use std::time::Duration;

/// A table in Markdown whose last column is the goal.
#[derive(Debug)]
pub struct Table;

impl Table {
    /// Begins one.
    #[must_use]
    pub fn new(title: &str) -> Self {
        println!("\n| {title} | measured | goal |\n|---|---|---|");
        Self
    }

    /// One figure. `goal` is empty where there is none.
    pub fn row(&self, what: &str, measured: &str, goal: &str) {
        println!("| {what} | {measured} | {goal} |");
    }
}

/// The value below which that part of `values` lies; sorts them.
#[must_use]
pub fn at(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * part) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// Half, nearly all, all of them, in milliseconds.
#[must_use]
pub fn latencies(seconds: &mut [f64]) -> String {
    let of = |values: &mut [f64], part| 1e3 * at(values, part);
    format!("{:.1} / {:.1} / {:.1} ms", of(seconds, 0.5), of(seconds, 0.95), of(seconds, 0.99))
}

/// User and system time of a running process, in seconds (proc_pid_stat(5), fields 14 and 15).
///
/// # Errors
/// When it is gone.
pub fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("a stat line")?;
    let fields = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse().unwrap_or(0)).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time of this process, in seconds.
#[must_use]
pub fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// A wall clock, Unix nanoseconds.
#[must_use]
pub fn unix_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
