//! Keeps the C library's allocator from holding on to what a storm needed for a moment.
//!
//! Assumes glibc (mallopt(3)); elsewhere nothing is done. To be called before threads are made.

/// Pools of small pieces. glibc makes up to eight for each core, and a thread's pool keeps what it once had.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: i32 = 2;
/// Larger pieces are given back as soon as they are freed. Bytes. Set, it no longer grows with what is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAP_BYTES: i32 = 128 << 10;

/// Sets both.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_little() {
    for (parameter, value) in [(libc::M_ARENA_MAX, ARENAS_MAX), (libc::M_MMAP_THRESHOLD, OWN_MAP_BYTES)] {
        // SAFETY: no pointers; called before any other thread exists.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            tracing::debug!(parameter, value, "the allocator refused a setting");
        }
    }
}

/// Nothing to set.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little() {}
