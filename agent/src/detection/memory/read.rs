//! Pages of a process as blocks for the scanner: read by the parent, into sealed memory files that the worker gets.
//!
//! Assumes that the pages it is asked for are in memory, so that reading brings nothing there. A block holds bytes
//! that follow each other in one mapping; long stretches of nothing but zeros are left out, and of a longer run each
//! block begins with what the one before ended with, so that a pattern across the border is whole in one of them.

use super::pages::Run;
use super::regions::Region;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One block. Bytes.
pub const BLOCK_BYTES_MAX: u64 = 16 << 20;
/// What two blocks of one run share: a longer pattern across their border is not found. Bytes.
pub const OVERLAP_BYTES: u64 = 64 << 10;
/// So many pages of zeros end a piece.
const ZERO_PAGES_MAX: usize = 16;

const _: () =
    assert!(BLOCK_BYTES_MAX <= crate::worker::SIZE_BYTES_MAX && 4 * OVERLAP_BYTES <= BLOCK_BYTES_MAX);

/// Bytes for the scanner.
#[derive(Debug)]
pub struct Block {
    /// Where they are from.
    pub region: Arc<Region>,
    /// Address of the first.
    pub start: u64,
    /// How many.
    pub bytes: u64,
    /// The bytes, in memory that nobody can change any more.
    pub memory: OwnedFd,
}

/// What reading ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// So many bytes from the start; fewer than asked for when what follows can't be read any more.
    Bytes(usize),
    /// The memory is gone with its process, or for another program.
    Gone,
}

/// The memory of one process: an open `/proc/PID/mem`, which stays with the memory that it was opened for.
#[derive(Debug)]
pub struct Memory {
    file: File,
    buffer: Vec<u8>,
}

/// The blocks that a run is cut into: addresses of their first byte and of the byte after their last.
pub fn blocks(run: Run) -> impl Iterator<Item = Range<u64>> {
    let mut next = Some(run.start);
    std::iter::from_fn(move || {
        let start = next?;
        let end = run.end.min(start + BLOCK_BYTES_MAX);
        next = (end < run.end).then_some(end - OVERLAP_BYTES);
        Some(start..end)
    })
}

impl Memory {
    /// With an open `/proc/PID/mem`.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, buffer: Vec::new() }
    }

    /// Reads what is there of a range of at most [`BLOCK_BYTES_MAX`].
    ///
    /// # Errors
    /// The system's, but not that the pages went away meanwhile.
    pub fn read(&mut self, range: &Range<u64>) -> io::Result<Got> {
        let length = usize::try_from(range.end - range.start).unwrap_or(0);
        // Never a byte more than asked for: that may be in a page that is not there.
        self.buffer.resize(length, 0);
        let mut filled = 0;
        while let Some(room) = self.buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match rustix::io::pread(&self.file, room, range.start + filled as u64) {
                Ok(0) => return Ok(Got::Gone),
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                // Unmapped since, or a device's.
                Err(Errno::IO | Errno::FAULT) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.buffer.truncate(filled);
        Ok(Got::Bytes(filled))
    }

    /// What was read last, without stretches of zeros.
    ///
    /// # Errors
    /// The system has no memory left for them.
    pub fn pieces(&self, region: &Arc<Region>, start: u64, page_bytes: usize) -> io::Result<Vec<Block>> {
        let zeros = self.buffer.chunks(page_bytes).map(is_zero);
        let blocks = pieces(zeros).into_iter().map(|pages| {
            let begin = pages.start * page_bytes;
            let end = (pages.end * page_bytes).min(self.buffer.len());
            let bytes = self.buffer.get(begin..end).unwrap_or_default();
            Ok(Block {
                region: region.clone(),
                start: start + begin as u64,
                bytes: bytes.len() as u64,
                memory: seal(bytes)?,
            })
        });
        blocks.collect()
    }
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// Runs of pages worth scanning. One page of zeros stays at the end, for patterns that end with some; none at the
/// start, because rules look for headers there.
fn pieces(zeros: impl Iterator<Item = bool>) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let mut count = 0;
    for (number, zero) in zeros.enumerate() {
        count = number + 1;
        if zero {
            continue;
        }
        match pieces.last_mut() {
            Some(last) if number - last.end <= ZERO_PAGES_MAX => last.end = number + 1,
            Some(_) | None => pieces.push(number..number + 1),
        }
    }
    pieces.iter_mut().for_each(|piece| piece.end = count.min(piece.end + 1));
    pieces
}

/// A memory file that nobody can change any more (memfd_create(2)); the scanner takes it for a regular file.
fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(c"memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&memory, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_stretch_as_long_as_the_overlap_is_whole_in_a_block() {
        for length in [1, 4096, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 4096, 5 * BLOCK_BYTES_MAX + 4096] {
            let run = Run { start: 1 << 40, end: (1 << 40) + length };
            let blocks: Vec<_> = blocks(run).collect();
            assert_eq!(blocks.first().unwrap().start, run.start);
            assert_eq!(blocks.last().unwrap().end, run.end);
            assert!(blocks.iter().all(|block| block.end - block.start <= BLOCK_BYTES_MAX));
            for pair in blocks.windows(2) {
                assert_eq!(pair[0].end - pair[1].start, OVERLAP_BYTES);
            }
        }
    }

    fn check(pages: &str, expected: &[(usize, usize)]) {
        let pieces = pieces(pages.bytes().map(|byte| byte == b'0'));
        let pieces: Vec<_> = pieces.into_iter().map(|piece| (piece.start, piece.end)).collect();
        assert_eq!(pieces, expected, "{pages}");
    }

    #[test]
    fn long_stretches_of_zeros_are_left_out() {
        check("", &[]);
        check("0000", &[]);
        check("1", &[(0, 1)]);
        check("0110", &[(1, 4)]);
        check("011000", &[(1, 4)]);
        check("1000000000000000010", &[(0, 19)]);
        check("10000000000000000010", &[(0, 2), (18, 20)]);
        check("1000000000000000000000000000000001", &[(0, 2), (33, 34)]);
    }

    #[test]
    fn a_page_is_zero_only_when_every_byte_is() {
        let mut page = vec![0; 4096];
        assert!(is_zero(&page));
        for at in [0, 15, 16, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
        assert!(is_zero(&[]) && !is_zero(&[0; 17].map(|_: u8| 1)));
    }

    #[test]
    fn our_own_memory_is_read_back_and_sealed() {
        let page = 4096;
        let mut bytes = vec![0u8; 64 * page];
        let start = (bytes.as_ptr() as u64).next_multiple_of(page as u64);
        let offset = usize::try_from(start - bytes.as_ptr() as u64).unwrap();
        bytes[offset + 5] = 7;
        bytes[offset + 40 * page] = 9;
        let mut memory = Memory::new(File::open("/proc/self/mem").unwrap());
        let region = Arc::new(Region::parse(b"1000-2000 rw-p 0 0:0 0 ").unwrap());
        let range = start..start + 62 * page as u64;
        assert_eq!(memory.read(&range).unwrap(), Got::Bytes(62 * page));
        let blocks = memory.pieces(&region, start, page).unwrap();
        let places: Vec<_> = blocks.iter().map(|block| (block.start - start, block.bytes)).collect();
        assert_eq!(places, [(0, 2 * page as u64), (40 * page as u64, 2 * page as u64)]);
        let mut back = [0; 8];
        rustix::io::pread(&blocks[0].memory, &mut back, 0).unwrap();
        assert_eq!(back, [0, 0, 0, 0, 0, 7, 0, 0]);
        assert_eq!(rustix::io::pwrite(&blocks[0].memory, b"x", 0), Err(Errno::PERM));
        assert_eq!(bytes[offset + 5], 7);
        // The first page of addresses is nobody's.
        assert_eq!(memory.read(&(0..4096)).unwrap(), Got::Bytes(0));
    }
}
