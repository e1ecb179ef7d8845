//! Which mappings of a process are looked into: `/proc/PID/maps` (proc_pid_maps(5)), line by line. Pure.
//!
//! Assumes that names are an attacker's bytes, but that lines and columns are the kernel's: it writes a newline in a
//! name as `\012`. Goes to the reader, most suspicious first.

use std::sync::Arc;
use vidette_protocol::limits::PATH_BYTES_MAX;
use vidette_protocol::wire;

/// Mappings of one process that are remembered; the kernel allows 65,530 unless told otherwise (`vm.max_map_count`).
pub const REGIONS_MAX: usize = 1 << 17;
/// Their names together, each counted once where it repeats. Bytes.
pub const NAMES_BYTES_MAX: usize = 16 << 20;
/// Larger ones are mostly holes and are looked at last. Bytes of addresses.
const HUGE_BYTES: u64 = 64 << 30;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// `rwxp`, each `-` where it is not, `s` for shared.
    pub permissions: [u8; 4],
    /// 0: no file.
    pub inode: u64,
    /// As the kernel writes it; empty where it has none.
    pub name: Arc<[u8]>,
}

/// Which of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All that are in memory.
    Present,
    /// Those that the process made its own by writing to them: the others are the file's, and files are scanned.
    Own,
}

/// A process's mappings that are looked into.
#[derive(Debug, Default)]
pub struct Regions {
    list: Vec<(Region, Wanted)>,
    names_bytes: usize,
    /// There are more than are remembered.
    pub cut: bool,
}

/// Mappings of the kernel's own in every process; `vsyscall` can't even be read.
const KERNELS: [&[u8]; 5] = [b"[vvar]", b"[vvar_vclock]", b"[vdso]", b"[vsyscall]", b"[uprobes]"];
/// Files that are only ever in memory: nobody else scans them.
const MEMORY_FILES: [&[u8]; 5] = [b"/memfd:", b"/dev/shm/", b"/dev/zero", b"/SYSV", b"/anon_hugepage"];

impl Region {
    /// `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE   NAME`.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut range = fields.next()?.split(|&byte| byte == b'-');
        let (start, end) = (hex(range.next()?)?, hex(range.next()?)?);
        let permissions: [u8; 4] = fields.next()?.try_into().ok()?;
        let inode = std::str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
        let name = fields.next().unwrap_or_default();
        let begin = name.iter().position(|&byte| byte != b' ').unwrap_or(name.len());
        let name = name.get(begin..).unwrap_or_default();
        let name = name.get(..PATH_BYTES_MAX).unwrap_or(name);
        (start < end).then(|| Self { start, end, permissions, inode, name: name.into() })
    }

    fn is_executable(&self) -> bool {
        self.permissions[2] == b'x'
    }

    fn is_shared(&self) -> bool {
        self.permissions[3] == b's'
    }

    fn is_memory_file(&self) -> bool {
        MEMORY_FILES.iter().any(|prefix| self.name.starts_with(prefix))
    }

    /// By its name a device. What it really is says `/proc/PID/map_files` to those who may ask.
    #[must_use]
    pub fn has_name_of_device(&self) -> bool {
        let device = self.name.starts_with(b"/dev/") || self.name.starts_with(b"anon_inode:");
        device && !self.is_memory_file()
    }

    /// What of it is looked at; `None`: nothing.
    #[must_use]
    pub fn wanted(&self) -> Option<Wanted> {
        let executable = self.is_executable();
        if self.inode == 0 && KERNELS.contains(&&*self.name) || self.is_shared() && !executable {
            return None;
        }
        if executable || self.inode == 0 || self.is_memory_file() {
            return Some(Wanted::Present);
        }
        Some(Wanted::Own)
    }

    /// What is looked at first when there is not enough time for everything.
    fn urgency(&self) -> (bool, u8) {
        let of_file = self.inode != 0 && !self.is_memory_file();
        let rank = match (self.is_executable(), of_file) {
            (true, false) => 0,
            (false, false) => 1,
            (false, true) => 2,
            (true, true) => 3,
        };
        (self.end - self.start >= HUGE_BYTES, rank)
    }

    /// As it travels.
    #[must_use]
    pub fn to_wire(&self) -> wire::MemoryRegion {
        wire::MemoryRegion {
            start: self.start,
            end: self.end,
            permissions: String::from_utf8_lossy(&self.permissions).into_owned(),
            name: self.name.to_vec(),
        }
    }
}

impl Regions {
    /// Another line. What can't be read is not the kernel's, and left out.
    pub fn add(&mut self, line: &[u8]) {
        let Some(mut region) = Region::parse(line) else { return };
        let Some(wanted) = region.wanted() else { return };
        let last = self.list.last().map(|(last, _)| last.name.clone());
        match last.filter(|last| *last == region.name) {
            Some(same) => region.name = same,
            None => self.names_bytes += region.name.len(),
        }
        if self.list.len() >= REGIONS_MAX || self.names_bytes > NAMES_BYTES_MAX {
            self.cut = true;
            return;
        }
        self.list.push((region, wanted));
    }

    /// Executable memory without a file first, then other memory, then what a process changed of files, then programs
    /// and libraries; and what is mostly holes after all of these.
    #[must_use]
    pub fn in_order(mut self) -> Vec<(Region, Wanted)> {
        self.list.sort_by_key(|(region, _)| (region.urgency(), region.start));
        self.list
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use Wanted::{Own, Present};

    fn check(line: &str, expected: Option<Wanted>) {
        assert_eq!(Region::parse(line.as_bytes()).unwrap().wanted(), expected, "{line}");
    }

    #[test]
    fn private_and_executable_memory_is_looked_at_and_nothing_else() {
        check("55e0a000-55e0b000 rw-p 00000000 00:00 0                          [heap]\n", Some(Present));
        check("7ffc1000-7ffc2000 rw-p 00000000 00:00 0 [stack]\n", Some(Present));
        check("7f001000-7f002000 rw-p 00000000 00:00 0 \n", Some(Present));
        check("7f001000-7f002000 ---p 00000000 00:00 0 \n", Some(Present));
        check("7f001000-7f002000 r-xp 00000000 fe:00 1234    /usr/bin/x\n", Some(Present));
        check("7f001000-7f002000 r-xs 00000000 fe:00 1234    /usr/bin/x\n", Some(Present));
        check("7f001000-7f002000 r--p 00000000 fe:00 1234    /usr/bin/x\n", Some(Own));
        check("7f001000-7f002000 rw-p 00000000 fe:00 1234    /usr/bin/x\n", Some(Own));
        check("7f001000-7f002000 rw-s 00000000 fe:00 1234    /var/db\n", None);
        check("7f001000-7f002000 rw-s 00000000 00:01 9       /dev/zero (deleted)\n", None);
        check("7f001000-7f002000 r--p 00000000 00:01 9       /memfd:x (deleted)\n", Some(Present));
        check("7ffff000-80000000 r-xp 00000000 00:00 0       [vdso]\n", None);
        check("7ffff000-80000000 r--p 00000000 00:00 0       [vvar]\n", None);
        check("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]\n", None);
        // A name that only looks like the kernel's has a file.
        check("7ffff000-80000000 r-xp 00000000 00:05 7       [vdso]\n", Some(Present));
    }

    #[test]
    fn a_name_is_what_follows_the_columns_whatever_it_holds() {
        let line = b"1000-2000 rw-p 00000000 00:01 9    /memfd: a\\012b\x1b[2J  (deleted)\n";
        let region = Region::parse(line).unwrap();
        assert_eq!(&*region.name, b"/memfd: a\\012b\x1b[2J  (deleted)");
        assert_eq!((region.start, region.end, region.inode), (0x1000, 0x2000, 9));
        for bad in [
            &b""[..],
            b"\n",
            b"1000 rw-p 0 0:0 0",
            b"2000-1000 rw-p 0 0:0 0 ",
            b"1000-2000 rw 0 0:0 0 ",
            b"x",
        ] {
            assert_eq!(Region::parse(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn devices_are_told_by_name_but_not_what_is_only_memory() {
        for (name, device) in [
            ("/dev/mem", true),
            ("/dev/dri/card0", true),
            ("anon_inode:[perf_event]", true),
            ("/dev/zero", false),
            ("/dev/shm/x", false),
            ("/memfd:/dev/mem (deleted)", false),
            ("/devices", false),
        ] {
            let line = format!("1000-2000 r-xp 00000000 00:01 9 {name}\n");
            assert_eq!(Region::parse(line.as_bytes()).unwrap().has_name_of_device(), device, "{name}");
        }
    }

    #[test]
    fn the_most_suspicious_is_looked_at_first_and_holes_last() {
        let lines = [
            "1000-2000 r-xp 00000000 fe:00 1 /bin/x",
            "2000-3000 rw-p 00000000 fe:00 1 /bin/x",
            "3000-2000003000 rwxp 00000000 00:00 0 ",
            "4000000000-4000001000 rw-p 00000000 00:00 0 ",
            "4000002000-4000003000 rwxp 00000000 00:00 0 ",
        ];
        let mut regions = Regions::default();
        lines.iter().for_each(|line| regions.add(line.as_bytes()));
        assert!(!regions.cut);
        let order: Vec<u64> = regions.in_order().iter().map(|(region, _)| region.start).collect();
        assert_eq!(order, [0x40_0000_2000, 0x40_0000_0000, 0x2000, 0x1000, 0x3000]);
    }

    #[test]
    fn what_is_beyond_the_bounds_is_told() {
        let mut regions = Regions::default();
        for number in 0..=REGIONS_MAX {
            regions.add(format!("{:x}-{:x} rw-p 0 0:0 0 ", number << 12, (number + 1) << 12).as_bytes());
        }
        assert!(regions.cut && regions.in_order().len() == REGIONS_MAX);
    }
}
