//! One open file to a verdict, inside the worker: read once into a buffer that is used again, hash and scan those bytes.
//!
//! Assumes a descriptor that somebody checked, and checks it again. Never maps the file: others can change it. What is
//! larger than the limit goes through the buffer in parts: of a sparse file its data, of any other its head and tail.

use super::messages::{ScanRequest, Scanned};
use super::sets::{Scanners, Seen};
use super::{clip, matches};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};
use vidette_protocol::limits::TEXT_BYTES_MAX;
use vidette_protocol::wire::{RuleMatch, Verdict};
use yara_x::ScanError;

/// Matches of one pattern that the scanner keeps.
pub const MATCHES_PER_PATTERN_MAX: usize = 1000;
/// How a buffer grows. Bytes.
const READ_BYTES: usize = 1 << 20;
/// A buffer that grew beyond it is given back after the scan. Bytes.
const BUFFER_KEPT_BYTES_MAX: usize = 8 << 20;
/// Runs of data that are read of a sparse file; what is behind them is left out.
const RUNS_MAX: usize = 64;
/// The scanner's clock ticks once a second and may tick at once: less would end scans that just began.
const TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// What is found while one file is scanned.
#[derive(Default)]
struct Findings {
    rules: Vec<RuleMatch>,
    blake3: blake3::Hasher,
    sha256: Sha256,
    bytes: u64,
}

/// A file that could not be scanned: its verdict, and why.
type Failure = (Verdict, String);

/// Reads and scans one file. Every way to end is a verdict.
#[must_use]
pub fn scan(
    scanners: &mut Scanners<'_>,
    seen: &Seen,
    request: &ScanRequest,
    file: &OwnedFd,
    buffer: &mut Vec<u8>,
) -> Scanned {
    let start = Instant::now();
    let mut answer = match verdict(scanners, seen, request, file, buffer, start) {
        Ok(answer) => answer,
        Err((verdict, detail)) => {
            Scanned { verdict: verdict as i32, detail: clip(&detail, TEXT_BYTES_MAX), ..Default::default() }
        }
    };
    if buffer.capacity() > BUFFER_KEPT_BYTES_MAX {
        *buffer = Vec::new();
    }
    answer.id = request.id;
    answer.scan_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    answer
}

fn verdict(
    scanners: &mut Scanners<'_>,
    seen: &Seen,
    request: &ScanRequest,
    file: &OwnedFd,
    buffer: &mut Vec<u8>,
    start: Instant,
) -> Result<Scanned, Failure> {
    let failed = |detail: String| (Verdict::Failed, detail);
    let stat = || {
        rustix::fs::fstat(file).map_err(|error| failed(format!("the file could not be looked at: {error}")))
    };
    let before = stat()?;
    if !rustix::fs::FileType::from_raw_mode(before.st_mode).is_file() {
        return Err(failed("it is not a regular file".into()));
    }
    let size = u64::try_from(before.st_size).unwrap_or(0);
    let deadline = start + Duration::from_millis(request.timeout_ms);
    let mut findings = Findings::default();
    let mut ended = Ok(());
    let (parts, which) = parts(file, &before, size, request.size_max_bytes);
    let whole = size <= request.size_max_bytes;
    for (offset, length) in parts {
        read(file, (offset, length), size, buffer, deadline)?;
        findings.hash(buffer);
        let (scanner, lasting) = scanners.for_content(buffer);
        let digest = (whole && lasting).then(|| *findings.blake3.finalize().as_bytes());
        if digest.is_some_and(|digest| seen.has(&digest)) {
            break;
        }
        ended = findings.scan(scanner, buffer, offset, deadline);
        // Of a file in parts always: a later one may match.
        if !whole || !findings.rules.is_empty() {
            findings.sha256.update(&*buffer);
        }
        if ended.is_err() {
            break;
        }
        if let Some(digest) = digest.filter(|_| findings.rules.is_empty()) {
            seen.add(digest);
        }
    }
    let after = stat()?;
    let stable = super::poison::FileKey::of(&before) == super::poison::FileKey::of(&after);
    // One that only grew a little while it was read will be closed, and so scanned, again.
    let size = size.max(u64::try_from(after.st_size).unwrap_or(0));
    let truncated = size > request.size_max_bytes && size > findings.bytes;
    Ok(findings.conclude(ended, truncated.then_some((size, which)), stable))
}

/// Offsets and lengths, and in words which: the whole file; or runs of data of a sparse one; or head and tail.
fn parts(file: &OwnedFd, stat: &rustix::fs::Stat, size: u64, max: u64) -> (Vec<(u64, u64)>, &'static str) {
    if size <= max {
        // One that grows while it is read is read up to the limit.
        return (vec![(0, max)], "as it grew");
    }
    // st_blocks counts units of 512 bytes (stat(2)).
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if stored < size / 2
        && let Some(runs) = data_runs(file, size, max)
    {
        return (runs, "the data of a sparse file");
    }
    let tail = max / 2;
    (vec![(0, max - tail), (size - tail, tail)], "at its head and tail")
}

/// Where a sparse file has data (lseek(2), SEEK_DATA), up to `max` bytes of it; `None` where nobody knows.
fn data_runs(file: &OwnedFd, size: u64, max: u64) -> Option<Vec<(u64, u64)>> {
    let (mut runs, mut at, mut left) = (Vec::new(), 0, max);
    while at < size && left > 0 && runs.len() < RUNS_MAX {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let to = rustix::fs::seek(file, SeekFrom::Hole(from)).ok()?.min(size);
        let length = to.checked_sub(from).filter(|length| *length > 0)?.min(left);
        runs.push((from, length));
        (at, left) = (to, left - length);
    }
    Some(runs)
}

fn read(
    file: &OwnedFd,
    (offset, length): (u64, u64),
    size_hint: u64,
    buffer: &mut Vec<u8>,
    deadline: Instant,
) -> Result<(), Failure> {
    buffer.clear();
    let max = usize::try_from(length).unwrap_or(usize::MAX);
    // One more than its size, so that the end is seen without growing.
    let hint = usize::try_from(size_hint.saturating_add(1)).unwrap_or(usize::MAX);
    make_room(buffer, hint.min(max))?;
    while buffer.len() < max {
        if buffer.len() == buffer.capacity() {
            make_room(buffer, READ_BYTES.min(max - buffer.len()))?;
        }
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file.as_fd(), rustix::buffer::spare_capacity(buffer), at) {
            Ok(0) => break,
            // Less than asked for, and the size that it should have: that was the end.
            Ok(_) if offset == 0 && buffer.len() as u64 == size_hint => break,
            // A file that comes in drops, such as some of /proc, must not last until the agent takes this worker for
            // stuck.
            Ok(_) if Instant::now() >= deadline => {
                return Err((Verdict::TimedOut, "reading the file took too long".to_owned()));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err((Verdict::Failed, format!("the file could not be read: {error}"))),
        }
    }
    buffer.truncate(max);
    Ok(())
}

/// Without memory the file has no verdict; the worker lives on.
fn make_room(buffer: &mut Vec<u8>, bytes: usize) -> Result<(), Failure> {
    let room = buffer.try_reserve_exact(bytes);
    room.map_err(|_| (Verdict::Failed, "there is no memory for the file".to_owned()))
}

impl Findings {
    fn hash(&mut self, bytes: &[u8]) {
        self.blake3.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn scan(
        &mut self,
        scanner: &mut yara_x::Scanner<'_>,
        bytes: &[u8],
        base: u64,
        deadline: Instant,
    ) -> Result<(), ScanError> {
        let left = deadline.saturating_duration_since(Instant::now());
        scanner.set_timeout(left.max(TIMEOUT_MIN));
        let results = scanner.scan(bytes)?;
        for rule in results.matching_rules() {
            matches::merge(&mut self.rules, matches::to_wire(&rule, base));
        }
        Ok(())
    }

    fn conclude(
        mut self,
        ended: Result<(), ScanError>,
        truncated: Option<(u64, &str)>,
        stable: bool,
    ) -> Scanned {
        matches::order_and_bound(&mut self.rules);
        let (verdict, mut detail) = match ended {
            // Bytes before the timeout that matched are still a match.
            _ if !self.rules.is_empty() => (Verdict::Matched, String::new()),
            Err(ScanError::Timeout) => (Verdict::TimedOut, "the scan took too long".to_owned()),
            Err(error) => (Verdict::Failed, format!("the scan failed: {error}")),
            Ok(()) if truncated.is_some() => (Verdict::TooLarge, String::new()),
            Ok(()) => (Verdict::Clean, String::new()),
        };
        if let Some((size, which)) = truncated
            && detail.is_empty()
        {
            detail = format!("truncated: {} of {size} bytes were scanned, {which}", self.bytes);
        }
        let matched = verdict == Verdict::Matched;
        Scanned {
            verdict: verdict as i32,
            blake3: self.blake3.finalize().as_bytes().to_vec(),
            sha256: if matched { self.sha256.finalize().to_vec() } else { Vec::new() },
            rules: if matched { self.rules } else { Vec::new() },
            detail: clip(&detail, TEXT_BYTES_MAX),
            scanned_bytes: self.bytes,
            stable,
            ..Default::default()
        }
    }
}
