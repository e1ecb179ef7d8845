//! Which pages of a process are in memory, asked without touching them: the PAGEMAP_SCAN call.
//!
//! Assumes Linux 6.7 or later; before that the call is refused with ENOTTY, and `/proc/PID/pagemap` can be read
//! instead. Sources: proc_pid_pagemap(5), ioctl_pagemap_scan(2), linux/fs.h.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Holds a page of a file or of shared memory, not one that the process made its own.
pub const FILE: u64 = 1 << 2;
/// Is in memory.
pub const PRESENT: u64 = 1 << 3;
/// Is the one page of zeros that everybody shares.
pub const ZERO: u64 = 1 << 5;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// `struct page_region`: pages that follow each other and are alike.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What was asked to be told of them.
    pub categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Arguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<Arguments>() == 96 && size_of::<PageRegion>() == 24);

/// Fills `into` with the pages in `start..end` that are all of `with` and none of `without`. Returns how many
/// entries it filled, and up to which address it got. `pagemap` is an open `/proc/PID/pagemap`.
///
/// # Errors
/// ENOTTY where the kernel does not know the call; EINVAL for addresses within a page; EFAULT for those of no process.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    (start, end): (u64, u64),
    (with, without): (u64, u64),
    into: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut arguments = Arguments {
        size: size_of::<Arguments>() as u64,
        flags: 0,
        start,
        end,
        walk_end: start,
        vec: into.as_mut_ptr() as u64,
        vec_len: into.len() as u64,
        max_pages: 0,
        category_inverted: without,
        category_mask: with | without,
        category_anyof_mask: 0,
        return_mask: PRESENT,
    };
    // SAFETY: the kernel writes to `arguments`, whose size it is told and that outlives the call, and at most
    // `vec_len` entries to `into`, which is borrowed exclusively; any bytes are valid entries. Flags are 0: nothing
    // of the other process is changed.
    let filled = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arguments) };
    match usize::try_from(filled) {
        Ok(filled) => Ok((filled.min(into.len()), arguments.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
