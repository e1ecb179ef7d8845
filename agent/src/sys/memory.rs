//! Keeps the C library's allocator from holding on to what a storm needed for a moment.
//!
//! Assumes glibc (mallopt(3), malloc_trim(3)); elsewhere nothing is done.

/// Pools of small pieces. glibc makes up to eight for each core, and a thread's pool keeps what it once had.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: i32 = 2;
/// Larger pieces are given back as soon as they are freed. Bytes. Set, it no longer grows with what is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAP_BYTES: i32 = 128 << 10;

/// Sets both. To be called before threads are made.
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

/// Gives free memory back to the kernel, of all pools. Some milliseconds where there is much.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: no pointers; the allocator locks its pools itself.
    unsafe { libc::malloc_trim(0) };
}

/// Nothing to do.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
