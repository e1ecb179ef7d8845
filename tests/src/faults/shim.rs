//! The preloaded library `tests/faults/shim.c`: compiled here, steered by a file of numbers that it maps.
//!
//! One `Control` for each program. What it counts tells whether a fault really happened.

use anyhow::{Context, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("../../faults/shim.c");
/// Says that the file is one of ours; as in the library.
const MAGIC: i64 = 0x56_6446_6175;

/// The numbers, in the order of `enum slot` of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// That the file is one of ours.
    Magic,
    /// Bytes by which files may still grow; -1: without end.
    Space,
    /// The n-th write from now fails with EIO.
    EioAt,
    /// The n-th write is done by half, and the one after it fails.
    TornAt,
    /// SIGKILL before the n-th write.
    KillAtWrite,
    /// The n-th sync fails with EIO.
    SyncEioAt,
    /// SIGKILL before the n-th sync.
    KillBeforeSync,
    /// SIGKILL after the n-th sync.
    KillAfterSync,
    /// SIGKILL after the n-th datagram was sent.
    KillAfterSend,
    /// 1: every change fails with EROFS.
    ReadOnly,
    /// Added to the wall clock, nanoseconds.
    ClockNs,
    /// Every other stretch of `ClockEachNs` the wall clock is back by this, nanoseconds.
    ClockBackNs,
    /// How long such a stretch is, nanoseconds; 0 for never.
    ClockEachNs,
    /// Datagrams that are sent two times, of a hundred.
    TwicePercent,
    /// Datagrams that are sent after the next one, of a hundred.
    LatePercent,
    /// Writes seen.
    Writes,
    /// Syncs seen.
    Syncs,
    /// Datagrams sent.
    Sends,
    /// Times that something was injected.
    Fired,
}

const SLOTS: u64 = 19;
const _: () = assert!(Slot::Fired as u64 + 1 == SLOTS);

/// What can be injected, that is, everything that `lift` sets back.
const INJECTIONS: [(Slot, i64); 14] = [
    (Slot::Space, -1),
    (Slot::EioAt, 0),
    (Slot::TornAt, 0),
    (Slot::KillAtWrite, 0),
    (Slot::SyncEioAt, 0),
    (Slot::KillBeforeSync, 0),
    (Slot::KillAfterSync, 0),
    (Slot::KillAfterSend, 0),
    (Slot::ReadOnly, 0),
    (Slot::ClockNs, 0),
    (Slot::ClockBackNs, 0),
    (Slot::ClockEachNs, 0),
    (Slot::TwicePercent, 0),
    (Slot::LatePercent, 0),
];

/// Compiles the library into `folder`.
///
/// # Errors
/// When there is no C compiler, or it does not like the source.
pub fn compile(folder: &Path) -> anyhow::Result<PathBuf> {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs::write(&source, SOURCE)?;
    let output = Command::new("cc")
        .args([
            "-shared",
            "-fPIC",
            "-O2",
            "-U_FORTIFY_SOURCE",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pthread",
            "-o",
        ])
        .args([&library, &source])
        .output()
        .context("could not start `cc`: install a C compiler")?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

/// The numbers of one program, and where it notes what no sync has covered.
#[derive(Debug)]
pub struct Control {
    file: File,
    path: PathBuf,
    undo: PathBuf,
}

impl Control {
    /// Makes the file and the folder of logs, with nothing injected.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn make(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.control"));
        let undo = folder.join(format!("{name}.undo"));
        fs::create_dir_all(&undo)?;
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.set_len(SLOTS * 8)?;
        let control = Self { file, path, undo };
        control.set(Slot::Magic, MAGIC)?;
        control.lift()?;
        Ok(control)
    }

    /// What the program has to have in its environment, for changes below `state`.
    #[must_use]
    pub fn environment(&self, library: &Path, state: &Path) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_PRELOAD", library.to_path_buf()),
            ("VIDETTE_FAULTS_CONTROL", self.path.clone()),
            ("VIDETTE_FAULTS_STATE", state.to_path_buf()),
            ("VIDETTE_FAULTS_UNDO", self.undo.clone()),
        ]
    }

    /// Where the logs of what no sync has covered are, one for each file by its inode.
    #[must_use]
    pub fn undo(&self) -> &Path {
        &self.undo
    }

    /// Sets a number: from the next call of the program on.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn set(&self, slot: Slot, value: i64) -> anyhow::Result<()> {
        self.file.write_all_at(&value.to_ne_bytes(), slot as u64 * 8)?;
        Ok(())
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn get(&self, slot: Slot) -> anyhow::Result<i64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, slot as u64 * 8)?;
        Ok(i64::from_ne_bytes(bytes))
    }

    /// Nothing is injected any more.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn lift(&self) -> anyhow::Result<()> {
        INJECTIONS.iter().try_for_each(|(slot, rest)| self.set(*slot, *rest))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_where_the_library_looks_for_them() {
        let start = SOURCE.find("enum slot {").unwrap();
        let list = &SOURCE[start..start + SOURCE[start..].find("};").unwrap()];
        let names: Vec<&str> = list
            .lines()
            .skip(1)
            .filter_map(|line| line.split(',').next().map(str::trim))
            .filter(|name| !name.is_empty() && *name != "SLOTS")
            .collect();
        assert_eq!(names.len() as u64, SLOTS);
        for (slot, name) in [(Slot::Magic, "MAGIC"), (Slot::Space, "SPACE"), (Slot::ClockNs, "CLOCK_NS")] {
            assert_eq!(names[slot as usize], name);
        }
        assert_eq!(names[Slot::LatePercent as usize], "LATE_PERCENT");
        assert_eq!(names[Slot::Fired as usize], "FIRED");
    }

    #[test]
    fn what_is_injected_is_lifted() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::make(folder.path(), "x").unwrap();
        control.set(Slot::EioAt, 7).unwrap();
        assert_eq!(control.get(Slot::EioAt).unwrap(), 7);
        control.lift().unwrap();
        assert_eq!((control.get(Slot::EioAt).unwrap(), control.get(Slot::Space).unwrap()), (0, -1));
    }
}
