//! Which pages of a mapping are in memory, so that none is brought there by looking: never swapped ones, never ones
//! that nobody touched.
//!
//! Assumes an open `/proc/PID/pagemap`, which stays with the memory that it was opened for. Where the kernel has
//! PAGEMAP_SCAN (6.7) it answers at the cost of what is there; otherwise eight bytes a page are read, also for holes.

use super::regions::Wanted;
use crate::sys::pagemap::{self, PageRegion};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

/// Runs of pages that are told at once.
pub const RUNS_MAX: usize = 512;
/// What is read of the file at once. Bytes.
const READ_BYTES: usize = 64 << 10;
/// One page's entry. Bytes.
const ENTRY_BYTES: usize = 8;
/// proc_pid_pagemap(5): in memory; swapped; of a file or shared.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// Pages that follow each other and are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
}

/// Some of the runs in a range.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// In order; one may begin where the one before ended.
    pub runs: Vec<Run>,
    /// Up to where they were looked for; where it started when the process is gone.
    pub until: u64,
}

/// The pages of one process.
#[derive(Debug)]
pub struct Pages {
    file: File,
    page_bytes: u64,
    scans: bool,
}

impl Pages {
    /// With an open `/proc/PID/pagemap`.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, page_bytes: page_bytes(), scans: true }
    }

    /// The first runs in `start..end`, which is at least a page.
    ///
    /// # Errors
    /// The system's.
    pub fn runs(&mut self, start: u64, end: u64, wanted: Wanted) -> io::Result<Found> {
        if self.scans {
            match self.scan(start, end, wanted) {
                Err(error) if is_unknown_call(&error) => self.scans = false,
                done => return done,
            }
        }
        self.read(start, end, wanted)
    }

    fn scan(&self, start: u64, end: u64, wanted: Wanted) -> io::Result<Found> {
        let without = match wanted {
            Wanted::Present => pagemap::ZERO,
            Wanted::Own => pagemap::ZERO | pagemap::FILE,
        };
        let mut told = [PageRegion::default(); RUNS_MAX];
        let asked = (pagemap::PRESENT, without);
        let (filled, until) = pagemap::scan(self.file.as_fd(), (start, end), asked, &mut told)?;
        let runs = told.iter().take(filled).map(|run| Run { start: run.start, end: run.end });
        Ok(Found { runs: runs.collect(), until: until.clamp(start, end) })
    }

    fn read(&self, start: u64, end: u64, wanted: Wanted) -> io::Result<Found> {
        let pages = usize::try_from((end - start) / self.page_bytes).unwrap_or(usize::MAX);
        let mut entries = vec![0; READ_BYTES.min(pages.saturating_mul(ENTRY_BYTES))];
        let at = start / self.page_bytes * ENTRY_BYTES as u64;
        let read = match rustix::io::pread(&self.file, &mut entries, at) {
            Ok(read) => read - read % ENTRY_BYTES,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        entries.truncate(read);
        let runs = runs_of(&entries, start, self.page_bytes, wanted);
        let until = match runs.get(RUNS_MAX - 1) {
            Some(last) => last.end,
            None => start + (read / ENTRY_BYTES) as u64 * self.page_bytes,
        };
        Ok(Found { runs, until })
    }
}

/// Bytes.
#[must_use]
pub fn page_bytes() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// Before Linux 6.7, or where a filter of system calls keeps it from us.
fn is_unknown_call(error: &io::Error) -> bool {
    [Errno::NOTTY, Errno::INVAL, Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// At most [`RUNS_MAX`].
fn runs_of(entries: &[u8], start: u64, page_bytes: u64, wanted: Wanted) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
    for (number, entry) in (0..).zip(entries) {
        let entry = u64::from_ne_bytes(*entry);
        let present = entry & PRESENT != 0 && entry & SWAPPED == 0;
        if !present || (wanted == Wanted::Own && entry & FILE != 0) {
            continue;
        }
        let at = start + number * page_bytes;
        let count = runs.len();
        match runs.last_mut() {
            Some(last) if last.end == at => last.end += page_bytes,
            Some(_) if count == RUNS_MAX => break,
            Some(_) | None => runs.push(Run { start: at, end: at + page_bytes }),
        }
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_present_and_not_swapped_is_a_run() {
        let entries = [PRESENT, PRESENT | FILE, 0, SWAPPED, PRESENT | SWAPPED, PRESENT, 1 << 55];
        let bytes: Vec<u8> = entries.iter().flat_map(|entry: &u64| entry.to_ne_bytes()).collect();
        let run = |start, end| Run { start, end };
        let runs = |wanted| runs_of(&bytes, 0x1000, 0x1000, wanted);
        assert_eq!(runs(Wanted::Present), [run(0x1000, 0x3000), run(0x6000, 0x7000)]);
        assert_eq!(runs(Wanted::Own), [run(0x1000, 0x2000), run(0x6000, 0x7000)]);
    }

    #[test]
    fn runs_that_do_not_fit_are_found_the_next_time() {
        let entries: Vec<u8> =
            (0..4 * RUNS_MAX).flat_map(|n| if n % 2 == 0 { PRESENT } else { 0 }.to_ne_bytes()).collect();
        assert_eq!(runs_of(&entries, 0, 1, Wanted::Present).len(), RUNS_MAX);
        assert_eq!(runs_of(&entries, 0, 1, Wanted::Present).last().unwrap().end, 2 * RUNS_MAX as u64 - 1);
    }

    /// All runs of a range, joined.
    fn all(pages: &mut Pages, start: u64, end: u64) -> Vec<Run> {
        let (mut at, mut runs) = (start, Vec::<Run>::new());
        while at < end {
            let found = pages.runs(at, end, Wanted::Present).unwrap();
            assert!(found.until > at);
            at = found.until;
            for run in found.runs {
                match runs.last_mut() {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => runs.push(run),
                }
            }
        }
        runs
    }

    #[test]
    fn both_ways_of_asking_find_the_pages_that_were_touched_and_no_others() {
        let page = page_bytes();
        let length = usize::try_from(page).unwrap() * 50_000;
        // Zeroed memory that nobody has touched yet.
        let mut memory = vec![0u8; length];
        let first = (memory.as_ptr() as u64).next_multiple_of(page);
        let last = (memory.as_ptr() as u64 + length as u64) / page * page;
        let offset = usize::try_from(first - memory.as_ptr() as u64).unwrap();
        for number in [0usize, 3, 4, 5000, 49_998] {
            memory[offset + number * usize::try_from(page).unwrap()] = 1;
        }
        let pages = || Pages::new(File::open("/proc/self/pagemap").unwrap());
        let scanned = all(&mut pages(), first, last);
        let read = all(&mut Pages { scans: false, ..pages() }, first, last);
        println!("{scanned:?}");
        assert_eq!(scanned, read);
        // Huge pages may bring neighbours along.
        assert!(!scanned.is_empty() && scanned[0].start == first, "{scanned:?}");
        assert_eq!(memory[offset], 1);
    }
}
