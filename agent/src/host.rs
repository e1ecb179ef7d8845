//! Which host this is, which boot, and what time it is there: what every event carries.

use rustix::fs::{FileType, Mode, OFlags};
use std::io::Read;
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{self, event::Kind};

/// The machine's id: 32 hex digits, the same from boot to boot (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";
/// What is read of it. Bytes.
const MACHINE_ID_BYTES: usize = 32;
/// A mark's bytes.
const MARK_BYTES: usize = 16;

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

/// What tells one collector that this host has joined before: a digest of the machine's id and the collector's pin, because
/// the id itself "should be considered confidential" (machine-id(5)). Empty where there is no id.
#[must_use]
pub fn mark(pin: &[u8; 32]) -> Vec<u8> {
    machine_id().map_or_else(Vec::new, |id| mark_of(&id, pin))
}

fn mark_of(machine_id: &[u8], pin: &[u8; 32]) -> Vec<u8> {
    let text = [b"vidette host mark\0", pin.as_slice(), machine_id].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &text);
    digest.as_ref().iter().copied().take(MARK_BYTES).collect()
}

fn machine_id() -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(MACHINE_ID, flags, Mode::empty()).ok()?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut id = [0; MACHINE_ID_BYTES];
    std::fs::File::from(file).read_exact(&mut id).ok()?;
    // An image that was not started yet has the word `uninitialized` there.
    id.iter().all(u8::is_ascii_hexdigit).then(|| id.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_machine_for_one_collector_and_does_not_show_the_id() {
        let id = b"0123456789abcdef0123456789abcdef";
        let mark = mark_of(id, &[1; 32]);
        assert_eq!((mark.len(), mark_of(id, &[1; 32])), (MARK_BYTES, mark.clone()));
        assert_ne!(mark, mark_of(id, &[2; 32]));
        assert_ne!(mark, mark_of(b"1123456789abcdef0123456789abcdef", &[1; 32]));
        assert!(super::mark(&[1; 32]).is_empty() || super::mark(&[1; 32]).len() == MARK_BYTES);
    }
}
