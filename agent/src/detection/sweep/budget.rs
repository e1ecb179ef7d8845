//! How much a sweep may use: processor time of its worker and of its walk, measured after it was used, and bytes.
//!
//! A bucket that fills at the permitted rate; what is used is taken out, also below nothing, and nothing new begins
//! until it is above nothing again. So one large file may go beyond the rate for a moment, and the mean holds.

use crate::stop::Stop;
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a bucket holds at most, in time of filling: nothing is saved up for longer.
const BURST: Duration = Duration::from_millis(200);
/// How often somebody who waits looks whether to stop.
const STEP: Duration = Duration::from_millis(50);
/// What may be permitted, in percent of one processor.
pub const CPU_PERCENT_MAX: u32 = 10_000;

/// A bucket of anything that can be counted. Pure.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    /// Empty at `now`.
    #[must_use]
    pub fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, level: 0.0, filled: now }
    }

    /// Takes out what was used.
    pub fn take(&mut self, amount: f64, now: Instant) {
        self.fill(now);
        self.level -= amount;
    }

    /// How long until something may be used again; zero for now.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.level >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.level / self.per_second).unwrap_or(Duration::MAX)
    }

    fn fill(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        let most = BURST.as_secs_f64() * self.per_second;
        self.level = (self.level + time.as_secs_f64() * self.per_second).min(most);
    }
}

/// What walk and engine ask before they go on.
#[derive(Debug)]
pub struct Gate {
    stop: Stop,
    cancelled: AtomicBool,
    held: AtomicBool,
    /// Nanoseconds of processor time.
    cpu: Mutex<Option<Bucket>>,
    /// All that was used, for reports. Nanoseconds.
    used_ns: AtomicU64,
}

impl Gate {
    /// Open until `stop`; with `cpu_percent` of one processor, or 0 for as much as there is.
    #[must_use]
    pub fn new(stop: Stop, cpu_percent: u32) -> Self {
        let per_second = f64::from(cpu_percent.min(CPU_PERCENT_MAX)) / 100.0 * 1e9;
        let cpu = (cpu_percent > 0).then(|| Bucket::new(per_second, Instant::now()));
        Self {
            stop,
            cancelled: AtomicBool::new(false),
            held: AtomicBool::new(false),
            cpu: Mutex::new(cpu),
            used_ns: AtomicU64::new(0),
        }
    }

    /// For `select!`.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Ends this sweep alone.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// It was cancelled or everything stops.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.stop.is_set()
    }

    /// Others have urgent work, or have no more.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether others have urgent work.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Processor time that was used.
    pub fn spent(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        self.used_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(bucket) = &mut *self.cpu() {
            bucket.take(time.as_secs_f64() * 1e9, Instant::now());
        }
    }

    /// All of it so far.
    #[must_use]
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed))
    }

    /// There is a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.cpu().is_some()
    }

    /// How long until more may be used; zero for now.
    #[must_use]
    pub fn wait_for(&self) -> Duration {
        if self.is_held() {
            return STEP;
        }
        self.cpu().as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(Instant::now()))
    }

    /// Waits until more may be used. False when the sweep is to end.
    #[must_use]
    pub fn pass(&self) -> bool {
        loop {
            if self.is_closed() {
                return false;
            }
            match self.wait_for() {
                Duration::ZERO => return true,
                time => drop(self.stop.wait(time.min(STEP))),
            }
        }
    }

    fn cpu(&self) -> MutexGuard<'_, Option<Bucket>> {
        // A bucket is whole whoever panicked while holding it.
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Processor time of the calling thread since the last look.
#[derive(Debug, Default)]
pub struct ThreadTime {
    last: Duration,
}

impl ThreadTime {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        let mut time = Self::default();
        time.lap();
        time
    }

    /// Since the last one.
    pub fn lap(&mut self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let now = Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0));
        now.saturating_sub(std::mem::replace(&mut self.last, now))
    }
}

/// Processor time of a worker since the last look; a new worker begins at nothing.
#[derive(Debug, Default)]
pub struct ProcessTime {
    pid: Option<u32>,
    last: Duration,
}

impl ProcessTime {
    /// Since the last look. The kernel counts in ticks, mostly of 10 ms, and forgets none.
    pub fn lap(&mut self, pid: Option<u32>) -> Duration {
        if self.pid != pid {
            *self = Self { pid, last: Duration::ZERO };
        }
        let Some(now) = pid.and_then(time_of) else { return Duration::ZERO };
        let since = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        since
    }
}

/// User and system time of all threads of a process (proc_pid_stat(5)).
#[must_use]
pub fn time_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit(|byte| *byte == b')').next()?;
    let fields = String::from_utf8_lossy(after_name);
    let ticks: u64 =
        fields.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stop;

    #[test]
    fn the_mean_holds_whatever_is_taken_at_once() {
        let start = Instant::now();
        for amount in [0.001, 0.1, 5.0] {
            let mut bucket = Bucket::new(0.25, start);
            let (mut now, mut used) = (start, 0.0);
            while now < start + Duration::from_secs(1000) {
                now += bucket.wait(now) + Duration::from_micros(10);
                if bucket.wait(now).is_zero() {
                    bucket.take(amount, now);
                    used += amount;
                }
            }
            let rate = used / (now - start).as_secs_f64();
            assert!((0.24..0.26).contains(&rate), "{amount}: {rate}");
        }
    }

    #[test]
    fn nothing_is_saved_up_for_long() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1.0, start);
        let later = start + Duration::from_secs(3600);
        bucket.take(1.2, later);
        assert!(bucket.wait(later) > Duration::from_millis(900));
        assert_eq!(bucket.wait(start), bucket.wait(later), "a clock that goes back gives nothing");
    }

    #[test]
    fn a_gate_that_is_held_or_closed_lets_nobody_pass() {
        let (stopper, stop) = stop::channel();
        let gate = Gate::new(stop, 0);
        assert!(gate.pass() && !gate.is_limited());
        gate.hold(true);
        assert!(!gate.wait_for().is_zero());
        gate.hold(false);
        gate.cancel();
        assert!(!gate.pass());
        stopper.stop();
        assert!(gate.is_closed());
    }

    #[test]
    fn processor_time_of_threads_and_processes_is_counted() {
        let mut thread = ThreadTime::start();
        let mut process = ProcessTime::default();
        process.lap(Some(std::process::id()));
        let begin = Instant::now();
        let mut sum = 0u64;
        let mut own = Duration::ZERO;
        while own < Duration::from_millis(100) {
            sum = sum.wrapping_mul(3).wrapping_add(begin.elapsed().subsec_nanos().into());
            own += thread.lap();
        }
        let seen = process.lap(Some(std::process::id()));
        assert!(seen >= Duration::from_millis(80), "{seen:?} {sum}");
        assert_eq!(process.lap(None), Duration::ZERO);
    }
}
