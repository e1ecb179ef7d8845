//! A copy of everything that the collector can't make again: identity (CA, keys, register), store, sinks' cursors. Made beside
//! a running collector, and put back into an empty state folder.
//!
//! ```text
//! backup/manifest.json            names, sizes and BLAKE3 of all files; written last, so that half a backup is none
//! backup/cursors/…  identity/…  store/…
//! ```
//!
//! Databases are copied page by page within one snapshot (SQLite's backup interface), everything else as it is. In this order:
//! cursors, store, identity. So nothing in the copy speaks of what the copy does not have: a sink sends some events
//! again, and the register knows every agent whose events are there. What agents sent between backup and restore they
//! report as a `gap`, when the collector tells them where its store ends.
//!
//! Assumes that whoever runs this may read and write both folders. A backup holds the CA's key: modes are private.

use crate::store::{self, file};
use anyhow::{Context, bail, ensure};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Its name in a backup.
pub const MANIFEST: &str = "manifest.json";
/// What a restore works in, in the state folder, until everything is there.
pub const RESTORING: &str = "restoring";
/// The format of the manifest.
const FORMAT: u32 = 1;
/// What is read of a manifest. Bytes.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Files of one backup: ten years of days and what was set aside.
const FILES_MAX: usize = 10_000;
/// Pages that are copied between two looks at the progress.
const PAGES_AT_ONCE: i32 = 2048;
/// How long another process may hold a database.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a step is tried again when the database is locked, and the wait before.
const TRIES_MAX: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
/// How often a day may begin while the store is copied.
const ROUNDS_MAX: usize = 8;
/// Read and written at once. Bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// The parts of a state folder, in the order they are copied.
const PARTS: [&str; 3] = ["cursors", store::FOLDER, "identity"];

/// What a backup has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file.
    pub format: u32,
    /// The collector that made it.
    pub version: String,
    /// When it was made. Unix seconds.
    pub made_unix_s: u64,
    /// All of it.
    pub files: Vec<Entry>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the backup: the part and the file.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Hexadecimal.
    pub blake3: String,
}

impl Manifest {
    /// All files together. Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|entry| entry.bytes).sum()
    }
}

/// How far it is: the file, and how much of it of how much.
pub type Watch<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Copies the state of a collector, which may run, into a folder that is empty or not there yet.
///
/// # Errors
/// One sentence that names the file and what to do. What was copied until then has no manifest and is no backup.
pub fn make(state: &Path, folder: &Path, watch: &mut Watch<'_>) -> anyhow::Result<Manifest> {
    let has_identity = state.join("identity").is_dir();
    ensure!(has_identity, "{} is no collector's state folder; name it with --state", state.display());
    // SQLite opens nothing below a link, which systemd makes of a state folder.
    let state = &state.canonicalize().with_context(|| format!("could not read {}", state.display()))?;
    make_empty(folder)?;
    let folder = &folder.canonicalize().with_context(|| format!("could not read {}", folder.display()))?;
    let mut names = BTreeSet::new();
    for part in PARTS {
        make_folder(&folder.join(part))?;
        if part == store::FOLDER {
            copy_store(&state.join(part), &folder.join(part), &mut names, watch)?;
        } else {
            for name in plain_names(&state.join(part))? {
                let (from, to) = (state.join(part).join(&name), folder.join(part).join(&name));
                copy_one(&from, &to, &mut |done, of| watch(&name, done, of))?;
                names.insert(format!("{part}/{name}"));
            }
        }
        sync_folder(&folder.join(part))?;
    }
    let entry = |name: &String| entry(folder, name, watch);
    let files = names.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
    let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { format: FORMAT, version, made_unix_s: made, files };
    write_whole(&folder.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
    sync_folder(folder)?;
    Ok(manifest)
}

/// Puts a backup into a state folder that is empty or not there yet, after looking at all of it.
///
/// # Errors
/// One sentence. The state folder has nothing then, or a folder [`RESTORING`], which keeps a collector from starting.
pub fn restore(folder: &Path, state: &Path, watch: &mut Watch<'_>) -> anyhow::Result<Manifest> {
    let manifest = read_manifest(folder)?;
    for wanted in &manifest.files {
        let found = entry(folder, &wanted.name, watch)?;
        ensure!(
            found == *wanted,
            "{} is not what was backed up; take another backup",
            folder.join(&wanted.name).display()
        );
    }
    let owner = state.metadata().ok().map(|data| (data.uid(), data.gid()));
    make_empty(state)?;
    let draft = state.join(RESTORING);
    make_folder(&draft)?;
    PARTS.iter().try_for_each(|part| make_folder(&draft.join(part)))?;
    for wanted in &manifest.files {
        let (from, to) = (folder.join(&wanted.name), draft.join(&wanted.name));
        copy_plain(&from, &to, &mut |done, of| watch(&wanted.name, done, of))?;
        let copied = entry(&draft, &wanted.name, &mut |_, _, _| {})?;
        ensure!(copied == *wanted, "{} changed while it was copied; try again", from.display());
    }
    give_to(&draft, owner)?;
    for part in PARTS {
        sync_folder(&draft.join(part))?;
        let (from, to) = (draft.join(part), state.join(part));
        fs::rename(&from, &to).with_context(|| format!("could not rename {}", from.display()))?;
    }
    sync_folder(state)?;
    fs::remove_dir(&draft).with_context(|| format!("could not remove {}", draft.display()))?;
    Ok(manifest)
}

/// Whether a restore into this state folder began and did not end.
#[must_use]
pub fn is_half_restored(state: &Path) -> bool {
    state.join(RESTORING).symlink_metadata().is_ok()
}

/// All days. One that gets more events after it was copied, because a new one began meanwhile, is copied again.
fn copy_store(
    from: &Path,
    to: &Path,
    names: &mut BTreeSet<String>,
    watch: &mut Watch<'_>,
) -> anyhow::Result<()> {
    let mut newest = None;
    for _ in 0..ROUNDS_MAX {
        let days = plain_names(from)?;
        let last = days.iter().rfind(|name| name.ends_with(".db")).cloned();
        let stale = |name: &String| {
            !names.contains(&format!("{}/{name}", store::FOLDER)) || newest.as_ref() == Some(name)
        };
        let missing: Vec<String> = days.iter().filter(|name| stale(name)).cloned().collect();
        if newest.is_some() && newest == last {
            return Ok(());
        }
        for name in missing {
            let target = to.join(&name);
            let _ = fs::remove_file(&target); // of the round before
            match copy_one(&from.join(&name), &target, &mut |done, of| watch(&name, done, of)) {
                Ok(()) => drop(names.insert(format!("{}/{name}", store::FOLDER))),
                // Retention took it.
                Err(_) if !from.join(&name).exists() => drop(fs::remove_file(&target)),
                Err(error) => return Err(error),
            }
        }
        if last.is_none() {
            return Ok(());
        }
        newest = last;
    }
    bail!("days begin faster than they can be copied; check the clock")
}

/// Names of the files of a part; a name that is no text is none of ours. Companions of databases are not copied: their
/// content comes with the snapshot.
fn plain_names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("could not read {}", folder.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Of a database that was set aside they are kept: nobody opens it.
        let companion = [".db-wal", ".db-shm", ".db-journal"].iter().any(|end| name.ends_with(end));
        if entry.file_type()?.is_file() && !companion && !name.ends_with(".new") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn copy_one(from: &Path, to: &Path, watch: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
    if from.extension().is_some_and(|end| end == "db") {
        copy_database(from, to, watch)
    } else {
        copy_plain(from, to, watch)
    }
}

/// One snapshot of a database that others may be writing.
fn copy_database(from: &Path, to: &Path, watch: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
    let context = || format!("could not copy {} to {}", from.display(), to.display());
    copy_pages(from, to, watch).with_context(context)?;
    let copied = open_plain(to)?;
    rustix::fs::fchmod(&copied, Mode::RUSR | Mode::WUSR)?;
    copied.sync_all().with_context(context)
}

fn copy_pages(from: &Path, to: &Path, watch: &mut dyn FnMut(u64, u64)) -> rusqlite::Result<()> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let source = Connection::open_with_flags(from, flags)?;
    source.busy_timeout(BUSY_WAIT_MAX)?;
    source.pragma_update(None, "query_only", true)?;
    let mut target = Connection::open_with_flags(to, flags | OpenFlags::SQLITE_OPEN_CREATE)?;
    target.pragma_update(None, "synchronous", "OFF")?; // the caller syncs the whole
    // While this is open the snapshot stays, so that the copy does not begin again with every commit.
    let snapshot = source.unchecked_transaction()?;
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let backup = Backup::new(&source, &mut target)?;
    let mut tries = 0;
    loop {
        let step = backup.step(PAGES_AT_ONCE)?;
        let progress = backup.progress();
        let bytes = |pages: i32| u64::try_from(pages).unwrap_or(0) * file::PAGE_BYTES;
        watch(bytes(progress.pagecount - progress.remaining), bytes(progress.pagecount));
        match step {
            StepResult::Done => break,
            StepResult::More => tries = 0,
            // Locked, or what a later version of the library says.
            _ if tries < TRIES_MAX => {
                tries += 1;
                std::thread::sleep(BETWEEN_TRIES);
            }
            _ => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, None));
            }
        }
    }
    drop(backup);
    drop(snapshot);
    target.close().map_err(|(_, error)| error)
}

fn copy_plain(from: &Path, to: &Path, watch: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
    let mut source = open_plain(from)?;
    let all = source.metadata()?.len();
    let context = || format!("could not write {}", to.display());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let target = rustix::fs::open(to, flags, Mode::RUSR | Mode::WUSR).with_context(context)?;
    let (mut target, mut block, mut done) = (File::from(target), vec![0; BLOCK_BYTES], 0);
    loop {
        let read = source.read(&mut block).with_context(|| format!("could not read {}", from.display()))?;
        if read == 0 {
            break;
        }
        target.write_all(block.get(..read).unwrap_or_default()).with_context(context)?;
        done += read as u64;
        watch(done, all);
    }
    target.sync_all().with_context(context)
}

fn open_plain(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let context = || format!("could not read {}", path.display());
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).with_context(context)?);
    ensure!(file.metadata()?.is_file(), "{} is no regular file", path.display());
    Ok(file)
}

fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || format!("could not write {}", path.display());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).with_context(context)?);
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(context)
}

fn entry(folder: &Path, name: &str, watch: &mut Watch<'_>) -> anyhow::Result<Entry> {
    let path = folder.join(name);
    let mut file = open_plain(&path)?;
    let all = file.metadata()?.len();
    let (mut hasher, mut block, mut bytes) = (blake3::Hasher::new(), vec![0; BLOCK_BYTES], 0);
    loop {
        let read = file.read(&mut block).with_context(|| format!("could not read {}", path.display()))?;
        if read == 0 {
            break;
        }
        hasher.update(block.get(..read).unwrap_or_default());
        bytes += read as u64;
        watch(name, bytes, all);
    }
    Ok(Entry { name: name.to_owned(), bytes, blake3: hasher.finalize().to_hex().to_string() })
}

fn read_manifest(folder: &Path) -> anyhow::Result<Manifest> {
    let path = folder.join(MANIFEST);
    let file = open_plain(&path).context("this is no backup, or one that was not finished")?;
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= MANIFEST_BYTES_MAX, "{} is too long for a manifest", path.display());
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    ensure!(
        manifest.format == FORMAT,
        "{} has format {}, this version knows {FORMAT}: use the `vidette` that made it",
        path.display(),
        manifest.format
    );
    ensure!(manifest.files.len() <= FILES_MAX, "{} names more than {FILES_MAX} files", path.display());
    let mut names = BTreeSet::new();
    for entry in &manifest.files {
        ensure!(
            is_ours(&entry.name) && names.insert(&entry.name),
            "{} names a file that is none of a backup",
            path.display()
        );
    }
    Ok(manifest)
}

/// A part and a file in it, nothing that leads elsewhere.
fn is_ours(name: &str) -> bool {
    let parts: Vec<Component<'_>> = Path::new(name).components().collect();
    match parts.as_slice() {
        [Component::Normal(part), Component::Normal(file)] => {
            // As it would be written: no other spelling of the same place.
            let spelled = Path::new(part).join(file);
            PARTS.iter().any(|known| *part == *known) && spelled.as_os_str() == name
        }
        _ => false,
    }
}

/// Makes a folder, or takes one that is empty.
fn make_empty(folder: &Path) -> anyhow::Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => {
            ensure!(
                entries.next().is_none(),
                "{} is not empty: name a new folder, or move away what is there",
                folder.display()
            );
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("could not make {}", folder.display()))
        }
        Err(error) => Err(error).with_context(|| format!("could not read {}", folder.display())),
    }
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.with_context(|| format!("could not make {}", folder.display()))
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("could not write {}", folder.display()))
}

/// Everything below belongs to whom the state folder belongs.
fn give_to(folder: &Path, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let give = |path: &Path| {
        std::os::unix::fs::lchown(path, Some(user), Some(group))
            .with_context(|| format!("could not give {} to its owner", path.display()))
    };
    for part in fs::read_dir(folder)? {
        let part: PathBuf = part?.path();
        for file in fs::read_dir(&part)? {
            give(&file?.path())?;
        }
        give(&part)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A state folder as a collector leaves it, with a register that is in use.
    fn state() -> (tempfile::TempDir, Connection) {
        let state = tempfile::tempdir().unwrap();
        for part in PARTS {
            make_folder(&state.path().join(part)).unwrap();
        }
        fs::write(state.path().join("identity/ca-key.pem"), "secret").unwrap();
        fs::write(state.path().join("cursors/alerts"), "7").unwrap();
        let db = Connection::open(state.path().join("identity/identity.db")).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE a (b); INSERT INTO a VALUES (1)").unwrap();
        (state, db)
    }

    fn nothing(_: &str, _: u64, _: u64) {}

    #[test]
    fn what_is_backed_up_is_restored_with_what_was_only_in_a_log() {
        let ((state, db), folder) = (state(), tempfile::tempdir().unwrap());
        let backup = folder.path().join("backup");
        // Another one that writes meanwhile.
        db.execute_batch("BEGIN IMMEDIATE; INSERT INTO a VALUES (2)").unwrap();
        let manifest = make(state.path(), &backup, &mut nothing).unwrap();
        db.execute_batch("COMMIT").unwrap();
        let names: Vec<&str> = manifest.files.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["cursors/alerts", "identity/ca-key.pem", "identity/identity.db"]);
        let restored = folder.path().join("state");
        assert_eq!(restore(&backup, &restored, &mut nothing).unwrap(), manifest);
        assert!(!is_half_restored(&restored));
        assert_eq!(fs::read_to_string(restored.join("identity/ca-key.pem")).unwrap(), "secret");
        for path in ["identity/ca-key.pem", "identity/identity.db", "cursors", ""] {
            let mode = restored.join(path).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{path}");
        }
        let db = Connection::open(restored.join("identity/identity.db")).unwrap();
        let sum: i64 = db.query_row("SELECT sum(b) FROM a", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 1, "what was committed, and no more");
    }

    #[test]
    fn nothing_is_overwritten_and_half_a_backup_is_none() {
        let ((state, _db), folder) = (state(), tempfile::tempdir().unwrap());
        let refused = |result: anyhow::Result<Manifest>, word: &str| {
            let told = format!("{:#}", result.unwrap_err());
            assert!(told.contains(word), "{told}");
        };
        refused(make(folder.path(), &folder.path().join("b"), &mut nothing), "--state");
        refused(make(state.path(), state.path(), &mut nothing), "not empty");
        let backup = folder.path().join("backup");
        make(state.path(), &backup, &mut nothing).unwrap();
        refused(restore(&backup, state.path(), &mut nothing), "not empty");
        for (file, content) in [("identity/ca-key.pem", "other!"), ("cursors/alerts", "")] {
            let before = fs::read(backup.join(file)).unwrap();
            fs::write(backup.join(file), content).unwrap();
            refused(restore(&backup, &folder.path().join("s"), &mut nothing), "not what was backed up");
            assert!(!folder.path().join("s").exists(), "nothing was begun");
            fs::write(backup.join(file), before).unwrap();
        }
        let manifest = fs::read_to_string(backup.join(MANIFEST)).unwrap();
        for hostile in
            ["../../etc/passwd", "identity/../../x", "/etc/passwd", "identity", "elsewhere/x", "store//x"]
        {
            let text = manifest.replace("cursors/alerts", hostile);
            fs::write(backup.join(MANIFEST), text).unwrap();
            refused(restore(&backup, &folder.path().join("s"), &mut nothing), "none of a backup");
        }
        fs::remove_file(backup.join(MANIFEST)).unwrap();
        refused(restore(&backup, &folder.path().join("s"), &mut nothing), "no backup");
    }
}
