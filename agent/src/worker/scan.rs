//! One open file to a verdict, inside the worker: read once into a buffer that is used again, hash and scan those bytes.
//!
//! Assumes a descriptor that somebody checked, and checks it again. Never maps the file: others can change it. What is
//! larger than the limit goes through the buffer in parts: of a sparse file its data, of any other its head and tail.

use super::messages::{ScanRequest, Scanned};
use super::sets::{Scanners, Seen};
use super::{clip, digests, matches};
use crate::sys::memory;
use md5::Md5;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha1::Sha1;
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
/// After a scan of more, buffer, scanner and free memory are given back. A new scanner costs what some small files
/// cost, and less than such a scan. Bytes.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Runs of data that are read of a sparse file; what is behind them is left out.
const RUNS_MAX: usize = 64;
/// The scanner's clock ticks once a second and may tick at once: less would end scans that just began.
const TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// A larger file, of which only head and tail are scanned, is not read as a whole for the hash lists either. Bytes.
pub const HASHED_BYTES_MAX: u64 = 1 << 30;

/// What is found while one file is scanned.
#[derive(Default)]
struct Findings {
    rules: Vec<RuleMatch>,
    /// Some rules ask for the time.
    of_the_day: bool,
    digests: Digests,
    bytes: u64,
}

/// Of what was scanned, or of the whole file.
#[derive(Default)]
struct Digests {
    blake3: blake3::Hasher,
    sha256: Sha256,
    sha1: Option<Sha1>,
    md5: Option<Md5>,
    /// SHA-256 is computed as the bytes go by; else only when something matched.
    sha256_at_once: bool,
    whole: bool,
}

impl Digests {
    fn new(asked: u32, whole: bool) -> Self {
        Self {
            // Of a file in parts always: a later one may match, and the buffer holds only one.
            sha256_at_once: asked != 0 || !whole,
            sha1: (asked & digests::SHA1 != 0).then(Sha1::default),
            md5: (asked & digests::MD5 != 0).then(Md5::default),
            ..Default::default()
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.blake3.update(bytes);
        if self.sha256_at_once {
            self.sha256.update(bytes);
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(bytes);
        }
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
    }
}

/// What of a file is scanned.
#[derive(Clone, Copy)]
enum Which {
    /// From its begin on.
    Begin,
    /// All that is no hole.
    Data,
    /// The first of that.
    SomeData,
    /// Head and tail.
    Ends,
}

/// A file that was not scanned whole.
struct Part {
    size: u64,
    which: Which,
}

impl Part {
    fn words(&self, scanned: u64) -> String {
        let size = self.size;
        match self.which {
            Which::Begin => format!("truncated: {scanned} of {size} bytes were scanned, as it grew"),
            Which::Ends => format!("truncated: {scanned} of {size} bytes were scanned, at its head and tail"),
            Which::SomeData => {
                format!("truncated: {scanned} of {size} bytes were scanned, the first data of a sparse file")
            }
            Which::Data => {
                let holes = size.saturating_sub(scanned);
                format!(
                    "sparse: all its data were scanned, {scanned} bytes, and not its holes, {holes} bytes of zeros"
                )
            }
        }
    }
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
    if buffer.capacity() > KEPT_BYTES_MAX {
        scanners.drop_for(buffer);
        *buffer = Vec::new();
        memory::give_back();
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
    let whole = size <= request.size_max_bytes;
    let mut findings = Findings { digests: Digests::new(request.digests, whole), ..Default::default() };
    let mut ended = Ok(());
    let (parts, which) = parts(file, &before, size, request.size_max_bytes);
    for (offset, length) in parts {
        read(file, (offset, length), size, buffer, deadline)?;
        findings.hash(buffer);
        let (scanner, of_the_day) = scanners.for_content(buffer);
        findings.of_the_day |= of_the_day;
        let digest = (whole && !of_the_day).then(|| *findings.digests.blake3.finalize().as_bytes());
        if digest.is_some_and(|digest| seen.has(&digest)) {
            break;
        }
        ended = findings.scan(scanner, buffer, offset, deadline);
        if !findings.rules.is_empty() && !findings.digests.sha256_at_once {
            findings.digests.sha256.update(&*buffer);
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
    findings.digests.whole = !truncated;
    let part = truncated.then_some(Part { size, which });
    let mut unasked = "";
    // Whoever looks for this file elsewhere needs the digest of all of it.
    if truncated && (request.digests != 0 || !findings.rules.is_empty()) {
        match hash_whole(file, size, request.digests, deadline, buffer) {
            Ok(digests) => findings.digests = digests,
            Err(reason) if request.digests != 0 => unasked = reason,
            Err(_) => {}
        }
    }
    Ok(findings.conclude(ended, part, stable, request.digests, unasked))
}

/// The digests of a file that is scanned in parts only, read once more in blocks; or why not.
fn hash_whole(
    file: &OwnedFd,
    size: u64,
    asked: u32,
    deadline: Instant,
    buffer: &mut Vec<u8>,
) -> Result<Digests, &'static str> {
    if size > HASHED_BYTES_MAX {
        return Err("; the hash lists were not asked, for it is over 1 GiB");
    }
    let mut digests = Digests::new(asked, false);
    let mut offset = 0;
    // As much as a read takes anyway.
    let block = (buffer.capacity() as u64).max(READ_BYTES as u64);
    while offset <= HASHED_BYTES_MAX {
        if Instant::now() >= deadline {
            return Err("; the hash lists were not asked, for there was no time to read it");
        }
        if read(file, (offset, block), size - offset.min(size), buffer, deadline).is_err() {
            return Err("; the hash lists were not asked, for it could not be read");
        }
        if buffer.is_empty() {
            digests.whole = true;
            return Ok(digests);
        }
        digests.update(buffer);
        offset += buffer.len() as u64;
    }
    Err("; the hash lists were not asked, for it grew over 1 GiB")
}

/// Offsets and lengths, and which they are: the whole file; or runs of data of a sparse one; or head and tail.
fn parts(file: &OwnedFd, stat: &rustix::fs::Stat, size: u64, max: u64) -> (Vec<(u64, u64)>, Which) {
    if size <= max {
        // One that grows while it is read is read up to the limit.
        return (vec![(0, max)], Which::Begin);
    }
    // st_blocks counts units of 512 bytes (stat(2)).
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if stored < size / 2
        && let Some((runs, all)) = data_runs(file, size, max)
    {
        return (runs, if all { Which::Data } else { Which::SomeData });
    }
    let tail = max / 2;
    (vec![(0, max - tail), (size - tail, tail)], Which::Ends)
}

/// Where a sparse file has data (lseek(2), SEEK_DATA), up to `max` bytes of it, and whether that is all; `None` where
/// nobody knows.
fn data_runs(file: &OwnedFd, size: u64, max: u64) -> Option<(Vec<(u64, u64)>, bool)> {
    let (mut runs, mut at, mut left) = (Vec::new(), 0, max);
    while at < size {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        if left == 0 || runs.len() >= RUNS_MAX {
            return Some((runs, false));
        }
        let to = rustix::fs::seek(file, SeekFrom::Hole(from)).ok()?.min(size);
        let stretch = to.checked_sub(from).filter(|length| *length > 0)?;
        let length = stretch.min(left);
        runs.push((from, length));
        if length < stretch {
            return Some((runs, false));
        }
        (at, left) = (to, left - length);
    }
    Some((runs, true))
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
        self.digests.update(bytes);
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
        part: Option<Part>,
        stable: bool,
        asked: u32,
        unasked: &str,
    ) -> Scanned {
        matches::order_and_bound(&mut self.rules);
        let (failed, size) = (ended.is_err(), part.as_ref().map(|part| part.size));
        let (verdict, mut detail) = match ended {
            // Bytes before the timeout that matched are still a match.
            _ if !self.rules.is_empty() => (Verdict::Matched, String::new()),
            Err(ScanError::Timeout) => (Verdict::TimedOut, "the scan took too long".to_owned()),
            Err(error) => (Verdict::Failed, format!("the scan failed: {error}")),
            Ok(()) if part.is_some() => (Verdict::TooLarge, String::new()),
            Ok(()) => (Verdict::Clean, String::new()),
        };
        if let Some(part) = part
            && detail.is_empty()
        {
            detail = part.words(self.bytes) + unasked;
        }
        let matched = verdict == Verdict::Matched;
        let digests = self.digests;
        // Of what was to be hashed as a whole, and could have been.
        let unhashed = |size| (matched || asked != 0) && !digests.whole && size <= HASHED_BYTES_MAX;
        let cut_short = failed || size.is_some_and(unhashed);
        Scanned {
            verdict: verdict as i32,
            blake3: digests.blake3.finalize().as_bytes().to_vec(),
            sha256: if matched || asked != 0 { digests.sha256.finalize().to_vec() } else { Vec::new() },
            sha1: digests.sha1.map(|sha1| sha1.finalize().to_vec()).unwrap_or_default(),
            md5: digests.md5.map(|md5| md5.finalize().to_vec()).unwrap_or_default(),
            whole: digests.whole,
            rules: if matched { self.rules } else { Vec::new() },
            detail: clip(&detail, TEXT_BYTES_MAX),
            scanned_bytes: self.bytes,
            stable,
            lasting: !cut_short,
            of_the_day: self.of_the_day,
            ..Default::default()
        }
    }
}
