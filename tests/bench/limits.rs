//! What the machine itself allows: a walk that asks for every file's data and opens none, reading every file, and reading and
//! hashing it. No scanner that looks at every file is faster.

use crate::measured::own_cpu_s;
use anyhow::Context;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use vidette_tests::grounds::Ground;

/// What is read at once. Bytes.
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    StatWalk,
    Read,
    ReadAndHash,
}

/// How long it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
}

impl Limit {
    pub(crate) const ALL: [Self; 3] = [Self::StatWalk, Self::Read, Self::ReadAndHash];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StatWalk => "stat walk",
            Self::Read => "read only",
            Self::ReadAndHash => "read + BLAKE3",
        }
    }

    /// A walk is one thread's work, whatever `threads` says.
    pub(crate) fn measure(self, ground: &Ground, threads: usize) -> anyhow::Result<Took> {
        let (cpu, start) = (own_cpu_s(), Instant::now());
        match self {
            Self::StatWalk => stat_walk(&ground.root)?,
            Self::Read => read(&ground.files, threads, false)?,
            Self::ReadAndHash => read(&ground.files, threads, true)?,
        }
        Ok(Took { wall_s: start.elapsed().as_secs_f64(), cpu_s: own_cpu_s() - cpu })
    }
}

/// Every entry's stat, by its folder's descriptor, on one file system; links are not followed.
fn stat_walk(root: &Path) -> anyhow::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let first = rustix::fs::open(root, flags, Mode::empty())
        .with_context(|| format!("could not open {}", root.display()))?;
    let device = rustix::fs::fstat(&first)?.st_dev;
    let mut folders: Vec<OwnedFd> = vec![first];
    while let Some(folder) = folders.pop() {
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() && stat.st_dev == device {
                folders.push(rustix::fs::openat(&folder, name, flags, Mode::empty())?);
            }
        }
    }
    Ok(())
}

fn read(files: &[PathBuf], threads: usize, hash: bool) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| read_from(files, &next, hash))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })
}

fn read_from(files: &[PathBuf], next: &AtomicUsize, hash: bool) -> anyhow::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
        let mut hasher = hash.then(blake3::Hasher::new);
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&buffer[..read]);
            }
        }
        if let Some(hasher) = hasher {
            std::hint::black_box(hasher.finalize());
        }
    }
    Ok(())
}

/// Writes back and forgets what the kernel keeps of files (proc_sys_vm(5), `drop_caches`).
pub(crate) fn empty_page_cache() -> anyhow::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("could not empty the page cache")
}
