//! What is on disk after the power went: writes that no sync had covered are gone, or some blocks of them.
//!
//! Works on a state folder whose program is dead, from the logs that the shim kept: the old content of every range that
//! was changed since the last sync of its file. Renames and unlinks count as durable; what was mapped is gone.

use anyhow::Context;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// As in the library.
const RECORD_MAGIC: u64 = 0x56_6455_6e64;
const HEAD_BYTES: usize = 32;
/// A disk writes such blocks whole. Bytes.
const BLOCK_BYTES: usize = 512;

/// One change that no sync has covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    offset: usize,
    /// What was there; shorter than what was written when the file grew.
    old: Vec<u8>,
    /// The file's size before. Bytes.
    size: usize,
}

/// What a cut did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Files that lost something.
    pub files: usize,
    /// Writes in the logs.
    pub writes: usize,
}

/// Cuts the power of a dead program: all that was not synced is gone, or, as often, each block of it by chance.
///
/// # Errors
/// When the folder can't be read or written.
pub fn cut(state: &Path, undo: &Path, random: &mut StdRng) -> anyhow::Result<Cut> {
    let mut files = BTreeMap::new();
    walk(state, &mut files)?;
    let torn = random.random_bool(0.5);
    let mut done = Cut::default();
    for entry in fs::read_dir(undo)? {
        let log = entry?.path();
        let records = records(&fs::read(&log)?);
        fs::write(&log, b"")?;
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(path) = name.parse::<u64>().ok().and_then(|inode| files.get(&inode)) else { continue };
        if records.is_empty() {
            continue;
        }
        let now = fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
        let before = undone(now.clone(), &records);
        let after = if torn { mixed(&now, &before, random) } else { before };
        fs::write(path, after)?;
        done.files += 1;
        done.writes += records.len();
    }
    for path in files.values().filter(|path| path.to_string_lossy().ends_with("-shm")) {
        fs::remove_file(path)?;
    }
    Ok(done)
}

/// Regular files by their inode.
fn walk(folder: &Path, files: &mut BTreeMap<u64, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        if data.is_dir() {
            walk(&entry.path(), files)?;
        } else if data.is_file() {
            files.insert(data.ino(), entry.path());
        }
    }
    Ok(())
}

/// All whole records of a log; a last one that is cut off says nothing.
fn records(log: &[u8]) -> Vec<Record> {
    let mut found = Vec::new();
    let mut rest = log;
    while let Some((head, body)) = rest.split_at_checked(HEAD_BYTES) {
        let word = |index: usize| {
            head.get(8 * index..8 * index + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        let [magic, offset, bytes, size] = [word(0), word(1), word(2), word(3)].map(|word| word as usize);
        if magic as u64 != RECORD_MAGIC {
            break;
        }
        let Some((old, next)) = body.split_at_checked(bytes) else { break };
        found.push(Record { offset, old: old.to_vec(), size });
        rest = next;
    }
    found
}

/// The content before the first of the records.
fn undone(mut content: Vec<u8>, records: &[Record]) -> Vec<u8> {
    for record in records.iter().rev() {
        let end = record.offset + record.old.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[record.offset..end].copy_from_slice(&record.old);
        content.resize(record.size, 0);
    }
    content
}

/// Each block as it is now or as it was; of the two sizes one, and what is beyond the old content is zero.
fn mixed(now: &[u8], before: &[u8], random: &mut StdRng) -> Vec<u8> {
    let size = if random.random_bool(0.5) { now.len() } else { before.len() };
    let mut content = vec![0; size];
    for (index, block) in content.chunks_mut(BLOCK_BYTES).enumerate() {
        let from = if random.random_bool(0.5) { now } else { before };
        let source = from.get(index * BLOCK_BYTES..).unwrap_or_default();
        let bytes = source.len().min(block.len());
        block[..bytes].copy_from_slice(&source[..bytes]);
    }
    content
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::faults::shim::{self, Control, Slot};
    use rand::SeedableRng;
    use std::collections::BTreeSet;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// Applies changes and keeps the log that the shim would.
    fn change(content: &mut Vec<u8>, log: &mut Vec<u8>, offset: usize, new: &[u8]) {
        let size = content.len();
        let old = content.get(offset..size.min(offset + new.len())).unwrap_or_default().to_vec();
        for word in [RECORD_MAGIC, offset as u64, old.len() as u64, size as u64] {
            log.extend(word.to_ne_bytes());
        }
        log.extend(old);
        content.resize(size.max(offset + new.len()), 0);
        content[offset..offset + new.len()].copy_from_slice(new);
    }

    #[test]
    fn whatever_was_written_is_undone() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..200 {
            let before: Vec<u8> = (0..random.random_range(0..2000)).map(|_| random.random()).collect();
            let (mut content, mut log) = (before.clone(), Vec::new());
            for _ in 0..random.random_range(0..20) {
                let offset = random.random_range(0..content.len() + 1);
                let new: Vec<u8> = (0..random.random_range(1..900)).map(|_| random.random()).collect();
                change(&mut content, &mut log, offset, &new);
            }
            assert_eq!(undone(content, &records(&log)), before);
        }
    }

    #[test]
    fn a_log_that_is_cut_off_is_read_up_to_there() {
        let (mut content, mut log) = (vec![1; 100], Vec::new());
        change(&mut content, &mut log, 0, &[2; 50]);
        let whole = records(&log);
        change(&mut content, &mut log, 50, &[3; 50]);
        assert_eq!(records(&log[..log.len() - 1]), whole);
        assert_eq!(records(&log).len(), 2);
    }

    #[test]
    fn a_torn_file_is_made_of_old_and_new_blocks_only() {
        let mut random = StdRng::seed_from_u64(2);
        let (now, before) = (vec![1; 5000], vec![2; 3000]);
        let (mut old, mut new) = (0, 0);
        for _ in 0..50 {
            let content = mixed(&now, &before, &mut random);
            assert!(content.len() == now.len() || content.len() == before.len());
            for block in content.chunks(BLOCK_BYTES) {
                assert!(block.iter().all(|byte| *byte == 1) || !block.contains(&1), "{block:?}");
                old += usize::from(block.contains(&2));
                new += usize::from(block.contains(&1));
            }
        }
        assert!(old > 50 && new > 50);
    }

    /// Does what its argument says to a file of the state folder, and dies of SIGKILL.
    const VICTIM: &str = r#"
        #include <errno.h>
        #include <fcntl.h>
        #include <signal.h>
        #include <string.h>
        #include <unistd.h>
        int main(int count, char **arguments) {
            int fd = open(arguments[1], O_RDWR | O_CREAT, 0600);
            if (count != 2 || write(fd, "synced", 6) != 6 || fsync(fd) != 0) return 1;
            errno = 0;
            if (pwrite(fd, "unsure", 6, 0) != 6 || write(fd, " and more", 9) != 9) return errno;
            raise(SIGKILL);
        }"#;

    /// The library takes the victim for one of the two programs by its name.
    fn victim(folder: &Path, fault: Option<(Slot, i64)>) -> (std::process::ExitStatus, PathBuf, Control) {
        let library = shim::compile(folder).unwrap();
        let (source, program) = (folder.join("victim.c"), folder.join("vidette"));
        fs::write(&source, VICTIM).unwrap();
        assert!(Command::new("cc").arg("-o").args([&program, &source]).status().unwrap().success());
        let state = folder.join("state");
        fs::create_dir_all(&state).unwrap();
        let control = Control::make(folder, "victim").unwrap();
        if let Some((slot, value)) = fault {
            control.set(slot, value).unwrap();
        }
        let mut command = Command::new(program);
        command.arg(state.join("file")).envs(control.environment(&library, &state));
        (command.status().unwrap(), state, control)
    }

    #[test]
    fn what_a_real_program_did_not_sync_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mut left = BTreeSet::new();
        for seed in 0..8 {
            let (status, state, control) = victim(&root, None);
            assert_eq!(status.signal(), Some(9));
            let file = state.join("file");
            assert_eq!(fs::read(&file).unwrap(), b"unsure and more", "the system itself lost nothing");
            assert_eq!((control.get(Slot::Writes).unwrap(), control.get(Slot::Syncs).unwrap()), (3, 1));
            let cut = cut(&state, control.undo(), &mut StdRng::seed_from_u64(seed)).unwrap();
            assert_eq!(cut, Cut { files: 1, writes: 2 });
            left.insert(fs::read(&file).unwrap());
            fs::remove_file(file).unwrap();
        }
        assert!(left.contains(b"synced".as_slice()) && left.len() > 1, "{left:?}");
    }

    #[test]
    fn a_real_program_meets_what_is_injected() {
        let (full, broken) = (28, 5); // ENOSPC, EIO: errno(3)
        for (slot, value, code) in
            [(Slot::Space, 6, full), (Slot::EioAt, 2, broken), (Slot::TornAt, 3, 0), (Slot::ReadOnly, 1, 1)]
        {
            let folder = tempfile::tempdir().unwrap();
            let (status, ..) = victim(&folder.path().canonicalize().unwrap(), Some((slot, value)));
            // A short write leaves errno alone; a file that can't be opened is met before the writes.
            assert_eq!(status.code(), Some(code), "{slot:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let (status, ..) = victim(&folder.path().canonicalize().unwrap(), Some((Slot::KillAfterSync, 1)));
        assert_eq!(status.signal(), Some(9));
    }
}
