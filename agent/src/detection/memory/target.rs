//! Reads one process, on a thread of its own: who it is, its mappings, the pages that are there, as blocks.
//!
//! Assumes that the process ends, runs another program, or changes its memory at any moment, and that it may do so in
//! order to harm whoever looks. Never stops it. What `/proc` gives is held by descriptors that stay with one process
//! and one program; who has them is asked again after every mapping. Blocks go to the engine.

use super::pages::{Pages, Run, page_bytes};
use super::read::{Block, Got, Memory, blocks};
use super::regions::{Region, Regions, Wanted};
use super::{Budget, How};
use crate::sensors::inspect::{self, Describer, Identity, Image};
use crossbeam_channel::Sender;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use vidette_protocol::wire;

/// One line of `/proc/PID/maps`: a path, of which each byte may take four, and the columns. Bytes.
const LINE_BYTES_MAX: u64 = 20 << 10;
/// What is read of that file at once. Bytes.
const LINES_BYTES: usize = 64 << 10;

/// What the thread says.
#[derive(Debug)]
pub(super) enum Said {
    /// Who it is.
    Process(Box<wire::Process>),
    /// Something to scan.
    Block(Block),
    /// There is no more.
    End(How, Tally),
}

/// How much was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Mappings that were looked into.
    pub regions: u64,
    /// Read from them; shared pieces count once. Bytes.
    pub bytes: u64,
}

/// Ourselves, who are not scanned: rules in memory match what they look for.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pid: u32,
    uid: u32,
    image: Option<Image>,
}

/// What is read, and how much of it.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) pid: u32,
    /// Only if it is still this one.
    pub(super) identity: Option<Identity>,
    pub(super) budget: Budget,
    pub(super) deadline: Instant,
    pub(super) own: Own,
    pub(super) boot_id: String,
}

impl Own {
    pub(super) fn new() -> Self {
        let pid = std::process::id();
        let image = inspect::open(pid).ok().and_then(|folder| inspect::image(&folder));
        Self { pid, uid: rustix::process::geteuid().as_raw(), image }
    }

    /// This process, one of the same program and the same user, or the worker of such a one. By the file that it runs,
    /// not by its name; a program that was replaced while it runs is known by its path and its file system.
    fn is(&self, process: &wire::Process, folder: &OwnedFd) -> bool {
        if process.pid == self.pid {
            return true;
        }
        let parent = process.parent.as_ref().map_or(0, |parent| parent.pid);
        self.runs_us(folder) && (process.uid == Some(self.uid) || parent == self.pid || self.is_agent(parent))
    }

    fn is_agent(&self, pid: u32) -> bool {
        let Ok(folder) = inspect::open(pid) else { return false };
        let uid = rustix::fs::statat(&folder, c"", AtFlags::EMPTY_PATH).map(|stat| stat.st_uid);
        uid == Ok(self.uid) && self.runs_us(&folder)
    }

    fn runs_us(&self, folder: &OwnedFd) -> bool {
        let (Some(own), Some(image)) = (&self.image, inspect::image(folder)) else { return false };
        own.device == image.device && (own.inode == image.inode || own.path == image.path)
    }
}

/// The thread: everything about one process, and always an end, unless nobody listens.
pub(super) fn read(order: &Order, out: &Sender<Said>) {
    let mut tally = Tally::default();
    let how = match read_process(order, out, &mut tally) {
        Ok(how) | Err(how) => how,
    };
    let _ = out.send(Said::End(how, tally));
}

fn read_process(order: &Order, out: &Sender<Said>, tally: &mut Tally) -> Result<How, How> {
    let folder = inspect::open(order.pid).map_err(|_| How::Gone)?;
    let identity = inspect::identity(&folder).ok_or(How::Gone)?;
    if order.identity.is_some_and(|expected| expected != identity) {
        return Err(How::Gone);
    }
    let process = Describer::new(&order.boot_id).describe(order.pid, identity).ok_or(How::Gone)?;
    let is_own = order.own.is(&process, &folder);
    out.send(Said::Process(Box::new(process))).map_err(|_| How::Gone)?;
    if is_own {
        return Err(How::Own);
    }
    let target = Target { folder, identity };
    let lines = target.open(c"maps")?;
    let mut pages = Pages::new(target.open(c"pagemap")?);
    let mut memory = Memory::new(target.open(c"mem")?);
    target.check()?;
    let regions = read_maps(lines).map_err(|error| target.failed("maps", &error))?;
    // Memory that is gone has no mappings, and neither has a kernel thread.
    target.check()?;
    let cut = regions.cut;
    let regions = regions.in_order();
    if regions.is_empty() && !cut {
        return Err(How::NoMemory);
    }
    for (region, wanted) in regions {
        if target.is_device(&region)? {
            continue;
        }
        let mut reading = Reading { order, out, tally, region: Arc::new(region), wanted };
        reading.read(&target, &mut pages, &mut memory)?;
        target.check()?;
        tally.regions += 1;
    }
    if cut { Err(How::Truncated("it has more mappings than are looked at".into())) } else { Ok(How::Whole) }
}

/// Every line that the kernel gives. Read in large pieces, each of which it makes at one moment.
fn read_maps(file: File) -> io::Result<Regions> {
    let mut regions = Regions::default();
    let mut lines = BufReader::with_capacity(LINES_BYTES, file);
    let mut line = Vec::new();
    while !regions.cut {
        line.clear();
        if lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        regions.add(&line);
    }
    Ok(regions)
}

/// A process with its folder in `/proc`.
struct Target {
    folder: OwnedFd,
    identity: Identity,
}

impl Target {
    fn check(&self) -> Result<(), How> {
        if inspect::identity(&self.folder) == Some(self.identity) { Ok(()) } else { Err(How::Gone) }
    }

    fn open(&self, name: &CStr) -> Result<File, How> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(error) => {
                self.check()?;
                match error {
                    Errno::ACCESS | Errno::PERM => Err(How::Denied),
                    // A kernel thread, or one that ended and was not waited for yet.
                    Errno::SRCH | Errno::NOENT | Errno::INVAL => Err(How::NoMemory),
                    error => Err(self.failed(&name.to_string_lossy(), &error.into())),
                }
            }
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> How {
        match self.check() {
            Err(gone) => gone,
            Ok(()) => How::Failed(format!("its {what} could not be read: {error}")),
        }
    }

    /// Maps something that is no regular file: what reading that does, nobody knows. `/proc/PID/map_files` says it to
    /// those who may ask, and the name to the others. Nothing is asked of the file system that the file is on.
    fn is_device(&self, region: &Region) -> Result<bool, How> {
        if region.inode == 0 {
            return Ok(false);
        }
        let name = format!("map_files/{:x}-{:x}", region.start, region.end);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::ACCESS | Errno::PERM) => return Ok(region.has_name_of_device()),
            Err(_) => {
                self.check()?;
                // The mapping changed.
                return Ok(true);
            }
        };
        let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let Ok(stat) = rustix::fs::statx(&file, c"", empty, StatxFlags::TYPE) else { return Ok(true) };
        let is_zero = (stat.stx_rdev_major, stat.stx_rdev_minor) == ZERO_DEVICE;
        Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::RegularFile => region.name.starts_with(b"anon_inode:"),
            FileType::CharacterDevice => !is_zero,
            FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::BlockDevice
            | FileType::Unknown => true,
        })
    }
}

/// `/dev/zero` (Linux, Documentation/admin-guide/devices.txt): to map it is to ask for memory.
const ZERO_DEVICE: (u32, u32) = (1, 5);

/// One mapping that is being read.
struct Reading<'a> {
    order: &'a Order,
    out: &'a Sender<Said>,
    tally: &'a mut Tally,
    region: Arc<Region>,
    wanted: Wanted,
}

impl Reading<'_> {
    fn read(&mut self, target: &Target, pages: &mut Pages, memory: &mut Memory) -> Result<(), How> {
        let (mut at, end) = (self.region.start, self.region.end);
        // A run may have gone on beyond where it was told of: it is joined before it is cut into blocks.
        let mut open = None;
        while at < end {
            self.check_time()?;
            let found = pages.runs(at, end, self.wanted).map_err(|error| target.failed("pages", &error))?;
            if found.until <= at {
                return Err(How::Gone);
            }
            at = found.until;
            for run in found.runs {
                match &mut open {
                    Some(open) if can_join(open, run) => open.end = run.end,
                    open => {
                        if let Some(done) = open.replace(run) {
                            self.read_run(done, target, memory)?;
                        }
                    }
                }
            }
        }
        open.map_or(Ok(()), |run| self.read_run(run, target, memory))
    }

    /// What follows a page that went away meanwhile is read for itself.
    fn read_run(&mut self, run: Run, target: &Target, memory: &mut Memory) -> Result<(), How> {
        let mut left = Some(run);
        while let Some(run) = left.take() {
            let mut new_from = run.start;
            for range in blocks(run) {
                let read = self.read_block(&range, new_from, target, memory)?;
                new_from = range.end;
                if read < range.end - range.start {
                    let after = (range.start + read) / page_bytes() * page_bytes() + page_bytes();
                    left = (after < run.end).then_some(Run { start: after, end: run.end });
                    break;
                }
            }
        }
        Ok(())
    }

    /// Gives how many bytes of it were there. Those before `new_from` were read with the block before.
    fn read_block(
        &mut self,
        range: &Range<u64>,
        new_from: u64,
        target: &Target,
        memory: &mut Memory,
    ) -> Result<u64, How> {
        self.check_time()?;
        let bytes_max = self.order.budget.bytes_max;
        if self.tally.bytes + (range.end - new_from) > bytes_max {
            return Err(How::Truncated(format!("more than {bytes_max} bytes of it are in memory")));
        }
        let got = memory.read(range).map_err(|error| target.failed("memory", &error))?;
        let Got::Bytes(bytes) = got else { return Err(How::Gone) };
        self.tally.bytes += (range.start + bytes as u64).saturating_sub(new_from);
        let page = usize::try_from(page_bytes()).unwrap_or(4096);
        let pieces = memory.pieces(&self.region, range.start, page);
        for piece in pieces.map_err(|error| How::Failed(format!("its memory could not be kept: {error}")))? {
            self.out.send(Said::Block(piece)).map_err(|_| How::Gone)?;
        }
        Ok(bytes as u64)
    }

    fn check_time(&self) -> Result<(), How> {
        if Instant::now() < self.order.deadline {
            return Ok(());
        }
        let seconds = self.order.budget.time.as_secs();
        Err(How::Truncated(format!("it takes longer than {seconds} s")))
    }
}

fn can_join(open: &Run, run: Run) -> bool {
    open.end == run.start
}
