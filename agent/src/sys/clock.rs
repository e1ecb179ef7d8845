//! The clock that goes on while the host sleeps, by its name on each system.

use rustix::time::{ClockId, clock_gettime};

#[cfg(target_os = "linux")]
const SINCE_BOOT: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const SINCE_BOOT: ClockId = ClockId::Monotonic;

/// Nanoseconds since boot, sleep included where the system can tell (clock_gettime(2), CLOCK_BOOTTIME).
#[must_use]
pub fn uptime_ns() -> u64 {
    let time = clock_gettime(SINCE_BOOT);
    u64::try_from(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)).unwrap_or(0)
}
