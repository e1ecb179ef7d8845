//! This process as the kernel counts it: memory, processor time, descriptors (proc_pid_stat(5), proc_pid_fd(5)).
//!
//! `None` where there is no `/proc`. Goes into the picture.

use std::fs;

/// Bytes of a `/proc` file that are read: a line or two.
const FILE_BYTES_MAX: usize = 16 << 10;

/// As of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// In memory. Bytes.
    pub resident_bytes: u64,
    /// User and system time of all threads. Milliseconds.
    pub cpu_ms: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// As many may be open; `None` for no limit.
    pub max_fds: Option<u64>,
}

/// Looks.
#[must_use]
pub fn read() -> Option<Process> {
    let stat = fs::read_to_string("/proc/self/stat").ok().filter(|text| text.len() <= FILE_BYTES_MAX)?;
    let (ticks, pages) = stat_numbers(&stat)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Process {
        resident_bytes: pages.saturating_mul(rustix::param::page_size() as u64),
        cpu_ms: ticks.saturating_mul(1000) / per_second,
        open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    })
}

/// Ticks of the processor, and pages in memory: fields 14, 15 and 24. The name, field 2, may hold anything.
fn stat_numbers(stat: &str) -> Option<(u64, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let field = |number: usize| after_name.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    Some((field(14)?.saturating_add(field(15)?), field(24)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name_whatever_it_is() {
        let stat =
            "7 (a) b) S 1 1 1 0 -1 4194560 9 0 0 0 30 12 0 0 20 0 9 0 55 1000000 2222 18446744073709551615 1";
        assert_eq!(stat_numbers(stat), Some((42, 2222)));
        for bad in ["", "7 (a", "7 (a) S 1 2", "7 (a) S x x x x x x x x x x x x x x x x x x x x x x x"] {
            assert_eq!(stat_numbers(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_very_process_has_memory_and_descriptors() {
        let process = read().expect("a system with /proc");
        assert!(process.resident_bytes > 1 << 20 && process.open_fds > 2, "{process:?}");
    }
}
