//! Looks into the memory of processes, for what is in no file.
//!
//! ```text
//! maps -> regions -> pages that are there (pagemap) -> blocks -> worker -> findings -> events
//! ```
//!
//! The process is never stopped, and nothing is brought into its memory by looking: only pages that are there are
//! read. The parent reads; the worker only gets bytes. What a process does meanwhile (change its memory, run something
//! else, end) costs that process's verdict at most. What is not seen: swapped pages, shared memory that is not
//! executable, patterns that lie in two mappings or around a hole.

/// Which mappings are looked into. Pure.
pub mod regions;
/// Which of their pages are in memory.
pub mod pages;
/// Pages as blocks for the scanner.
pub mod read;
/// Reads one process.
mod target;
/// One process after the other, to verdicts.
pub mod engine;
/// What was found, as events.
pub mod told;
/// Processes that ran a chosen program.
pub mod on_exec;

pub use target::Tally;

use crate::sensors::inspect;
use std::time::Duration;

/// Processes that are looked into at once by one command.
pub const PROCESSES_MAX: usize = 65_536;
/// What is read of one process unless somebody says otherwise. Bytes.
pub const BYTES_DEFAULT: u64 = 256 << 20;
/// What may be asked for. Bytes.
pub const BYTES_MAX: u64 = 1 << 40;
/// How long one process may take unless somebody says otherwise.
pub const TIME_DEFAULT: Duration = Duration::from_secs(30);
/// What may be asked for.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// What one process may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Read of it. Bytes.
    pub bytes_max: u64,
    /// Until no more of it is read.
    pub time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: BYTES_DEFAULT, time: TIME_DEFAULT }
    }
}

/// How looking into a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// With all of it.
    Whole,
    /// With the rest left out, and why.
    Truncated(String),
    /// It ended, or ran another program.
    Gone,
    /// We may not.
    Denied,
    /// It is one of ours.
    Own,
    /// It has none: a kernel thread, or one that ended and was not waited for yet.
    NoMemory,
    /// Why.
    Failed(String),
}

/// Everybody there is, at most [`PROCESSES_MAX`] of them.
#[must_use]
pub fn everybody() -> Vec<u32> {
    let mut pids = inspect::everybody();
    pids.truncate(PROCESSES_MAX);
    pids
}

/// Whether there is a process with this number.
#[must_use]
pub fn is_there(pid: u32) -> bool {
    inspect::open(pid).is_ok()
}
