//! Which host this is, which boot, and what time it is there: what every event carries.

use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{self, event::Kind};

/// A moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Wall clock, Unix nanoseconds. Data, never logic.
    pub unix_ns: i64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub uptime_ns: u64,
}

/// The host, as read once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, as the kernel has it.
    pub name: Vec<u8>,
    /// Random, new at every boot (`/proc/sys/kernel/random/boot_id`); empty where there is none.
    pub boot_id: String,
    /// Operating system and kernel release, for people.
    pub os: String,
}

impl Moment {
    /// This one.
    #[must_use]
    pub fn now() -> Self {
        let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let unix_ns = wall.tv_sec.saturating_mul(1_000_000_000).saturating_add(wall.tv_nsec);
        Self { unix_ns, uptime_ns: crate::sys::clock::uptime_ns() }
    }
}

impl Host {
    /// Asks the system. What it does not say stays empty.
    #[must_use]
    pub fn read() -> Self {
        let names = rustix::system::uname();
        let mut name = names.nodename().to_bytes().to_vec();
        name.truncate(NAME_BYTES_MAX);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let os = format!("{} {}", names.sysname().to_string_lossy(), names.release().to_string_lossy());
        Self { name, boot_id: boot_id.trim().to_owned(), os }
    }

    /// An event of this host.
    #[must_use]
    pub fn event(&self, at: Moment, severity: wire::Severity, kind: Kind) -> wire::Event {
        wire::Event {
            time_unix_ns: at.unix_ns,
            uptime_ns: at.uptime_ns,
            host_name: self.name.clone(),
            boot_id: self.boot_id.clone(),
            severity: severity as i32,
            kind: Some(kind),
        }
    }
}
