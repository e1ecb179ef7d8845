//! What `/proc` says of a process: for those that were there before us, and for arguments.
//!
//! Assumes Linux. Everything is best effort: a process may be gone, or be another by then, so the caller
//! compares the start. Facts go into the process table.

use super::join::Program;
use super::places::{self, Places, Stat};
use crate::sensors::OpenFile;
use crate::sensors::processes::{Facts, cut_args};
use rustix::fs::{Mode, OFlags, StatxFlags};
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use vidette_protocol::limits::{ARGS_BYTES_MAX, PATH_BYTES_MAX};

/// Processes read at once.
pub(crate) const INVENTORY_MAX: usize = 65_536;
/// `stat` and `status` of one process. Bytes.
const STATUS_BYTES_MAX: u64 = 16 << 10;
/// `loginuid` and `sessionid`. Bytes.
const NUMBER_BYTES_MAX: u64 = 16;
/// `cgroup`: a line a hierarchy, of which there are 15 at most. Bytes.
const CGROUPS_BYTES_MAX: u64 = 64 << 10;
/// What most files of a process fit in. Bytes.
const READ_BYTES: usize = 4096;
/// What most paths fit in. Bytes.
const LINK_BYTES: usize = 256;
/// USER_HZ is 100 on every architecture that Linux and Rust share: fixed by the kernel's ABI.
const TICK_NS: u64 = 10_000_000;

/// Everything about a process; none when it is gone. All of it is about one process: its folder is opened
/// once, and reads below that fail when the process is gone, even if its pid is used again.
#[must_use]
pub(crate) fn facts(pid: u32) -> Option<Facts> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
    let stat = parse_stat(&read_at(&folder, c"stat", STATUS_BYTES_MAX)?)?;
    let mut facts = Facts { pid, start_ns: Some(stat.start_ns), parent: stat.parent, ..Facts::default() };
    (facts.name, facts.session) = (stat.name, Some(stat.session));
    facts.executable = link_at(&folder, c"exe");
    facts.working_directory = link_at(&folder, c"cwd");
    facts.args = parse_args(&read_at(&folder, c"cmdline", ARGS_BYTES_MAX as u64).unwrap_or_default());
    if let Some(status) = read_at(&folder, c"status", STATUS_BYTES_MAX) {
        facts.uid = effective(&status, b"Uid:");
        facts.gid = effective(&status, b"Gid:");
    }
    facts.login_uid = read_at(&folder, c"loginuid", NUMBER_BYTES_MAX).and_then(|text| number(&text));
    facts.login_session = read_at(&folder, c"sessionid", NUMBER_BYTES_MAX).and_then(|text| number(&text));
    facts.cgroup =
        read_at(&folder, c"cgroup", CGROUPS_BYTES_MAX).map(|text| cgroup(&text)).unwrap_or_default();
    Some(facts)
}

/// CLOCK_BOOTTIME of its start in nanoseconds, to the tick; none when it is gone.
#[must_use]
pub(crate) fn start_ns(pid: u32) -> Option<u64> {
    Some(parse_stat(&read(&format!("/proc/{pid}/stat"), STATUS_BYTES_MAX)?)?.start_ns)
}

/// The same for the process whose folder in `/proc` this is, and where its stack began (`startstack`): chosen anew at
/// every exec. None when it is gone.
#[must_use]
pub(super) fn start_and_stack(folder: &OwnedFd) -> Option<(u64, u64)> {
    let stat = parse_stat(&read_at(folder, c"stat", STATUS_BYTES_MAX)?)?;
    Some((stat.start_ns, stat.stack))
}

/// Everybody. Kernel threads too: they close files for others.
#[must_use]
pub(crate) fn everybody() -> Vec<u32> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.take(INVENTORY_MAX).collect()
}

/// The image of a process, open for reading. Only where no other program answers for it: to open a file of a
/// FUSE or network file system may wait for ever, so those in `remote` are not opened.
#[must_use]
pub(crate) fn open_exe(pid: u32, remote: impl Fn(u64) -> bool) -> Option<Program> {
    let path = format!("/proc/{pid}/exe");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let link = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
    // DONT_SYNC: answered from memory.
    let asked = StatxFlags::TYPE | StatxFlags::INO;
    let empty = rustix::fs::AtFlags::EMPTY_PATH | rustix::fs::AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&link, c"", empty, asked).ok()?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let regular =
        rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) == rustix::fs::FileType::RegularFile;
    if remote(device) || !regular {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", link.as_raw_fd());
    program(rustix::fs::open(path, flags, Mode::empty()).ok()?)
}

/// A descriptor as something that was run; none when it is no regular file.
#[must_use]
pub(crate) fn program(descriptor: OwnedFd) -> Option<Program> {
    let (file, stat) = open_file(descriptor)?;
    let elf = is_elf(&file.descriptor);
    Some(Program { file, key: (stat.device, stat.inode), elf })
}

fn is_elf(descriptor: &OwnedFd) -> bool {
    let mut magic = [0; 4];
    rustix::io::pread(descriptor, &mut magic, 0) == Ok(4) && &magic == b"\x7fELF"
}

impl Program {
    /// The same file once more, with names that are settled.
    pub(crate) fn copy(file: &OpenFile, stat: &Stat) -> Option<Self> {
        let (path, container_path) = (file.path.clone(), file.container_path.clone());
        let descriptor = file.descriptor.try_clone().ok()?;
        let elf = is_elf(&descriptor);
        let file = OpenFile { descriptor, path, deleted: file.deleted, container_path };
        Some(Self { file, key: (stat.device, stat.inode), elf })
    }

    /// Gives it the host's name.
    pub(crate) fn settle(&mut self, places: &mut Places) {
        if let Some(stat) = places::regular(&self.file.descriptor) {
            places.settle(&mut self.file, &stat);
        }
    }
}

/// A descriptor with its name as the kernel gives it (see `places`); none when it is no regular file.
#[must_use]
pub(crate) fn open_file(descriptor: OwnedFd) -> Option<(OpenFile, Stat)> {
    let mut path = places::name(&descriptor);
    let stat = places::regular(&descriptor)?;
    let deleted = stat.links == 0;
    if deleted {
        // Once more: before, it may still have had its name, and that may end like this.
        path = places::name(&descriptor);
        if let Some(name) = path.strip_suffix(places::DELETED) {
            path.truncate(name.len());
        }
    }
    path.truncate(PATH_BYTES_MAX);
    Some((OpenFile { descriptor, path, deleted, container_path: Vec::new() }, stat))
}

/// What is used of proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct StatLine {
    name: Vec<u8>,
    parent: u32,
    session: u32,
    start_ns: u64,
    /// Where the stack of its newest image began; 0 for those who may not know, and where it is nobody's business.
    stack: u64,
}

/// `pid (comm) state ppid pgrp session … starttime(22)`. The name may hold anything, even `)`.
fn parse_stat(stat: &[u8]) -> Option<StatLine> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let name = stat.get(open + 1..close)?.to_vec();
    let mut fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let ticks: u64 = fields.nth(15)?.parse().ok()?;
    let stack = fields.nth(5).and_then(|stack| stack.parse().ok()).unwrap_or(0);
    Some(StatLine { name, parent, session, start_ns: ticks.checked_mul(TICK_NS)?, stack })
}

/// `loginuid` and `sessionid`: -1 as an unsigned number when nobody logged in.
fn number(text: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
    (number != u32::MAX).then_some(number)
}

/// cgroups(7): lines of `hierarchy:controllers:path`. The unified hierarchy is number 0 and names no
/// controllers; where it is not used its path is `/`, so a longer one goes first.
fn cgroup(text: &[u8]) -> Vec<u8> {
    let lines = || text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let path = |line: &'_ [u8]| line.splitn(3, |&byte| byte == b':').nth(2).unwrap_or_default().to_vec();
    let unified = lines().find_map(|line| line.strip_prefix(b"0::")).unwrap_or_default();
    if unified.len() > 1 {
        return unified.to_vec();
    }
    lines().map(path).find(|path| path.len() > 1).unwrap_or_else(|| unified.to_vec())
}

fn parse_args(cmdline: &[u8]) -> Vec<Vec<u8>> {
    if cmdline.is_empty() {
        return Vec::new();
    }
    let list = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let mut args = list.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    cut_args(&mut args);
    args
}

/// `Uid: real effective saved file-system`.
fn effective(status: &[u8], field: &[u8]) -> Option<u32> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(field))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn read(path: &str, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read_at(folder: &OwnedFd, name: &CStr, max: u64) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    let mut buffer = [0; READ_BYTES];
    // These files give all that fits: a short read is the last. One call instead of four for nearly all.
    loop {
        let length = rustix::io::read(&file, &mut buffer).ok()?;
        bytes.extend_from_slice(buffer.get(..length)?);
        if length < READ_BYTES || bytes.len() as u64 >= max {
            break;
        }
    }
    bytes.truncate(usize::try_from(max).unwrap_or(usize::MAX));
    Some(bytes)
}

fn link_at(folder: &OwnedFd, name: &CStr) -> Vec<u8> {
    let target = rustix::fs::readlinkat(folder, name, Vec::with_capacity(LINK_BYTES));
    let mut target = target.map(std::ffi::CString::into_bytes).unwrap_or_default();
    target.truncate(PATH_BYTES_MAX);
    target
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_name_with_brackets_and_spaces_is_read() {
        let stat = b"42 (a) R 1 (x)) S 7 42 43 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 512 1 2";
        let expected = StatLine {
            name: b"a) R 1 (x)".to_vec(),
            parent: 7,
            session: 43,
            start_ns: 5_120_000_000,
            stack: 0,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        let longer = [&stat[..], b" 3 4 5 140721 7"].concat();
        assert_eq!(parse_stat(&longer).map(|stat| stat.stack), Some(140_721));
        assert_eq!(parse_stat(b"42 (a) R"), None);
    }

    #[test]
    fn arguments_keep_empty_ones() {
        assert_eq!(parse_args(b"a\0\0b\0"), [b"a".to_vec(), vec![], b"b".to_vec()]);
        assert_eq!(parse_args(b""), Vec::<Vec<u8>>::new());
        assert_eq!(parse_args(b"title"), [b"title".to_vec()]);
    }

    #[test]
    fn nobody_logged_in_is_none() {
        for (text, expected) in [(&b"1000"[..], Some(1000)), (b"4294967295", None), (b"", None), (b"x", None)]
        {
            assert_eq!(number(text), expected);
        }
    }

    #[test]
    fn the_unified_hierarchy_goes_first_where_it_is_used() {
        for (text, expected) in [
            ("0::/system.slice/a.service\n", "/system.slice/a.service"),
            ("0::/\n", "/"),
            ("12:cpu,cpuacct:/docker/x\n1:name=systemd:/y:z\n0::/\n", "/docker/x"),
            ("1:name=systemd:/y:z\n", "/y:z"),
            ("", ""),
        ] {
            assert_eq!(cgroup(text.as_bytes()), expected.as_bytes(), "{text}");
        }
    }

    #[test]
    fn this_process_is_described() {
        let facts = facts(std::process::id()).unwrap();
        assert_eq!(facts.executable, std::env::current_exe().unwrap().into_os_string().into_vec());
        assert_eq!(facts.uid, Some(rustix::process::geteuid().as_raw()));
        assert!(!facts.args.is_empty() && !facts.cgroup.is_empty());
        // 0 where the session's leader has no pid in this namespace, so that getsid(2) is no witness.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let session = status.lines().find_map(|line| line.strip_prefix("NSsid:")).unwrap();
        assert_eq!(facts.session, session.split_ascii_whitespace().next().unwrap().parse().ok());
        let cpu_ns = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            time.tv_sec * 1_000_000_000 + time.tv_nsec
        };
        let before = cpu_ns();
        (0..1000).for_each(|_| drop(super::facts(std::process::id())));
        println!("{} ns of CPU for what /proc says of one process", (cpu_ns() - before) / 1000);
        let now = crate::host::Moment::now().uptime_ns;
        assert!(facts.start_ns.unwrap() < now && now - facts.start_ns.unwrap() < 3_600_000_000_000);
    }

    #[test]
    fn a_deleted_file_is_called_so_only_when_it_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x (deleted)");
        let file = File::create(&path).unwrap();
        let (kept, _) = open_file(file.try_clone().unwrap().into()).unwrap();
        assert_eq!((kept.deleted, kept.path.ends_with(b"/x (deleted)")), (false, true));
        std::fs::remove_file(&path).unwrap();
        let (gone, _) = open_file(file.into()).unwrap();
        assert_eq!((gone.deleted, gone.path), (true, kept.path));
    }

    #[test]
    fn a_file_that_is_removed_while_it_is_looked_at_keeps_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("x").into_os_string().into_vec();
        let (ask, asked) = std::sync::mpsc::channel::<std::path::PathBuf>();
        let path = folder.path().join("x");
        let remover = std::thread::spawn(move || {
            asked.into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
        });
        for round in 0..4000 {
            let file = File::create_new(&path).unwrap();
            ask.send(path.clone()).unwrap();
            for _ in 0..round % 40 {
                std::hint::spin_loop();
            }
            while path.exists() {
                let (found, _) = open_file(file.try_clone().unwrap().into()).unwrap();
                assert_eq!(
                    found.path.escape_ascii().to_string(),
                    name.escape_ascii().to_string(),
                    "round {round}"
                );
            }
        }
        drop(ask);
        remover.join().unwrap();
    }
}
