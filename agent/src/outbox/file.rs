//! The outbox's file: opening it safely, telling ours from foreign or damaged ones, setting those aside.
//!
//! Assumes that the folder belongs to the agent. A connection from here goes to `db`, a file set aside to
//! `salvage`.

use anyhow::{Context, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the database in the state folder.
pub const FILE_NAME: &str = "outbox.db";
/// `VdOb`: what `PRAGMA application_id` says of an outbox.
pub const APPLICATION_ID: i32 = 0x5664_4f62;
/// The schema this version writes.
pub const SCHEMA_VERSION: i32 = MIGRATIONS.len() as i32;
/// Damaged files that are kept beside the outbox; beyond it the oldest is deleted.
pub const DAMAGED_FILES_MAX: usize = 3;

/// What `PRAGMA auto_vacuum` says of a file that can give pages back (<https://sqlite.org/pragma.html#pragma_auto_vacuum>).
pub const AUTO_VACUUM_INCREMENTAL: i64 = 2;

const MIGRATIONS: [&str; 3] =
    [include_str!("schema/0001.sql"), include_str!("schema/0002.sql"), include_str!("schema/0003.sql")];
const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a file turned out to be.
#[derive(Debug)]
pub enum Found {
    /// An outbox in order, of this version.
    Ours(Connection),
    /// Nothing was there, or an empty file.
    New(Connection),
    /// Something else. It has to go out of the way.
    Unusable {
        /// Why, as half a sentence.
        reason: String,
        /// Whether our rows may be in it.
        ours: bool,
    },
}

/// Makes the folder, readable by nobody else, when it is not there.
///
/// # Errors
/// When it can't be made or its mode can't be set.
pub fn prepare_folder(folder: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| {
        format!("could not make the state folder {}: create it or set another", folder.display())
    })?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).with_context(|| {
        format!("could not make {} private: it must belong to the agent's user", folder.display())
    })
}

/// Opens what is at `path`, whatever it is, and looks at it.
///
/// # Errors
/// Only when the folder can't be used: no permission, no space. Damage is [`Found::Unusable`].
pub fn look(path: &Path) -> anyhow::Result<Found> {
    if let Err(error) = make_private(path) {
        let kind = fs::symlink_metadata(path).map(|data| data.file_type());
        if kind.is_ok_and(|kind| !kind.is_file()) {
            return Ok(Found::Unusable { reason: "it is not a regular file".into(), ours: false });
        }
        return Err(error);
    }
    match inspect(path) {
        Ok(found) => Ok(found),
        Err(error) if is_damage(&error) => {
            Ok(Found::Unusable { reason: format!("it is damaged: {error}"), ours: true })
        }
        Err(error) => Err(error)
            .with_context(|| format!("could not open {}: check its owner and free space", path.display())),
    }
}

/// Creates tables or moves an older schema on, in one transaction.
///
/// # Errors
/// When the database can't be written.
pub fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let from: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for step in MIGRATIONS.iter().skip(usize::try_from(from).unwrap_or(0)) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    tx.commit()
}

/// The name that a damaged outbox gets next: `outbox.db.damaged-N`.
#[must_use]
pub fn free_name(path: &Path) -> PathBuf {
    damaged_path(path, damaged(path).into_iter().max().map_or(1, |last| last.saturating_add(1)))
}

/// Renames the database and its companions to `target`. Of the damaged files the oldest are deleted, until they
/// are few and together no larger than `bytes_max`.
///
/// # Errors
/// When renaming fails: the folder is not ours or not writable.
pub fn set_aside(path: &Path, target: &Path, bytes_max: u64) -> anyhow::Result<()> {
    fs::rename(path, target).with_context(|| {
        format!("could not rename {} to {}: rename or delete it", path.display(), target.display())
    })?;
    for (from, to) in companions(path).into_iter().zip(companions(target)).skip(1) {
        let _ = fs::rename(from, to); // most of the time there is none
    }
    thin_damaged(path, bytes_max);
    if let Some(folder) = path.parent() {
        sync_folder(folder);
    }
    Ok(())
}

fn thin_damaged(path: &Path, bytes_max: u64) {
    let mut numbers = damaged(path);
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    let mut left = bytes_max;
    for (place, number) in numbers.into_iter().enumerate() {
        let names = companions(&damaged_path(path, number));
        let bytes: u64 =
            names.iter().filter_map(|name| name.symlink_metadata().ok()).map(|data| data.len()).sum();
        if place > 0 && (place >= DAMAGED_FILES_MAX || bytes > left) {
            for name in names {
                let _ = fs::remove_file(name); // absent, or it stays: neither may stop the agent
            }
        }
        left = left.saturating_sub(bytes);
    }
}

/// The name of an outbox that is being made beside the present one.
#[must_use]
pub fn draft(path: &Path) -> PathBuf {
    with_suffix(path, ".new")
}

/// Puts a draft in its place when that is free: it is whole then, because the place is cleared after it. Else
/// deletes what a crash left of it.
///
/// # Errors
/// When renaming fails.
pub fn finish_draft(path: &Path) -> anyhow::Result<()> {
    let draft = draft(path);
    let [_, wal, index] = companions(&draft);
    for name in [wal, index] {
        let _ = fs::remove_file(name); // a whole draft was written back before its place was cleared
    }
    if draft.symlink_metadata().is_err() {
        return Ok(());
    }
    if path.symlink_metadata().is_ok() {
        return fs::remove_file(&draft).with_context(|| format!("could not delete {}", draft.display()));
    }
    fs::rename(&draft, path)
        .with_context(|| format!("could not rename {} to {}", draft.display(), path.display()))?;
    if let Some(folder) = path.parent() {
        sync_folder(folder);
    }
    Ok(())
}

/// The same outbox in a file that can give pages back: one of the first version is copied, once. It stays as it is
/// when that does not work, and is tried again at the next start.
///
/// # Errors
/// SQLite's, of the file that is there.
pub fn compacted(db: Connection, path: &Path) -> rusqlite::Result<Connection> {
    let mode: i64 = db.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
    if mode == AUTO_VACUUM_INCREMENTAL {
        return Ok(db);
    }
    let draft = draft(path);
    if let Err(error) = copy(&db, &draft) {
        tracing::warn!(
            error = format!("{error:#}"),
            "the outbox could not be copied to a file that shrinks; it goes on as it is"
        );
        let _ = fs::remove_file(&draft); // `finish_draft` does it at the next start
        return Ok(db);
    }
    db.close().map_err(|(_, error)| error)?;
    // A log that is still there belongs to the old file: then that one stays.
    let [_, wal, _] = companions(path);
    let replaced = wal.symlink_metadata().is_err() && fs::rename(&draft, path).is_ok();
    if let Some(folder) = path.parent().filter(|_| replaced) {
        sync_folder(folder);
    }
    let db = connect(path)?;
    make_durable(&db)?;
    Ok(db)
}

fn copy(db: &Connection, draft: &Path) -> anyhow::Result<()> {
    make_private(draft)?; // `VACUUM INTO` takes an empty file
    db.pragma_update(None, "auto_vacuum", AUTO_VACUUM_INCREMENTAL)?;
    let name = draft.to_str().context("the state folder's name is not UTF-8")?;
    db.execute("VACUUM INTO ?", [name])?;
    File::open(draft)?.sync_all()?;
    Ok(())
}

/// Whether an error says that the file itself is broken, so that no retry can help.
#[must_use]
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, QueryReturnedNoRows, Utf8Error,
    };
    match error {
        rusqlite::Error::SqliteFailure(code, text) => {
            use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
            matches!(code.code, DatabaseCorrupt | NotADatabase)
                // A file that ends too early.
                || code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
                // A schema that does not parse or lacks a table is SQLITE_ERROR with a text.
                || (code.code == rusqlite::ErrorCode::Unknown
                    && text.as_deref().is_some_and(|t| t.contains("no such") || t.contains("malformed") || t.contains("unsupported")))
        }
        FromSqlConversionFailure(..)
        | IntegralValueOutOfRange(..)
        | InvalidColumnType(..)
        | QueryReturnedNoRows
        | Utf8Error(..) => true,
        other => matches!(other, rusqlite::Error::SqlInputError { .. }),
    }
}

/// Opens an existing file with everything a hostile one could use turned off.
///
/// # Errors
/// SQLite's.
pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // No URI: a path with `?mode=` is only a name.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_WAIT_MAX)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.pragma_update(None, "trusted_schema", false)?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "mmap_size", 0)?;
    Ok(db)
}

fn inspect(path: &Path) -> rusqlite::Result<Found> {
    let mut db = connect(path)?;
    let id: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let objects: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if db.is_readonly(rusqlite::MAIN_DB)? {
        // It was opened for writing just now: its header forbids it (fileformat2.html, offset 18).
        return Ok(Found::Unusable {
            reason: "it is damaged: its header forbids writing".into(),
            ours: true,
        });
    }
    let is_new = objects == 0 && id == 0 && version == 0;
    if !is_new && id != APPLICATION_ID {
        // A flipped bit in the number alone does not make it foreign.
        let ours = schema_is_whole(&db).unwrap_or(false);
        return Ok(Found::Unusable { reason: "it is the database of another program".into(), ours });
    }
    if !(0..=SCHEMA_VERSION).contains(&version) {
        let reason = format!("its schema {version} is newer than {SCHEMA_VERSION}, which this version knows");
        return Ok(Found::Unusable { reason, ours: true });
    }
    if !is_new {
        // The quick one passes over indexes, and only what was reported has one: a detection that is not found there is
        // told twice.
        for check in ["PRAGMA quick_check(1)", "PRAGMA integrity_check('reported')"] {
            let verdict: String = db.query_row(check, [], |row| row.get(0))?;
            if verdict != "ok" {
                return Ok(Found::Unusable { reason: format!("it is damaged: {verdict}"), ours: true });
            }
        }
    }
    if is_new {
        db.pragma_update(None, "auto_vacuum", AUTO_VACUUM_INCREMENTAL)?; // before the first page is written
    }
    make_durable(&db)?;
    if version < SCHEMA_VERSION {
        match migrate(&mut db) {
            Ok(()) => {}
            // Its number is damaged: what is to be made is there already.
            Err(error) if !is_new && is_of_the_schema(&error) => {
                let reason = format!("it is damaged: its schema is not version {version}: {error}");
                return Ok(Found::Unusable { reason, ours: true });
            }
            Err(error) => return Err(error),
        }
    }
    if !schema_is_whole(&db)? {
        return Ok(Found::Unusable {
            reason: "it is damaged: its tables are not those that were made".into(),
            ours: true,
        });
    }
    Ok(if is_new { Found::New(db) } else { Found::Ours(db) })
}

/// A statement that does not fit the tables, and nothing that the disk or another process did.
fn is_of_the_schema(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(code, _) => code.extended_code == rusqlite::ffi::SQLITE_ERROR,
        other => matches!(other, rusqlite::Error::SqlInputError { .. }),
    }
}

/// Whether the schema is word for word the one that was made: damage there is else met only at a write.
fn schema_is_whole(db: &Connection) -> rusqlite::Result<bool> {
    let schema = |db: &Connection| -> rusqlite::Result<Vec<(String, Option<String>)>> {
        let mut all =
            db.prepare("SELECT name, sql FROM sqlite_schema WHERE type IN ('table', 'index') ORDER BY name")?;
        all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    let made = Connection::open_in_memory()?;
    for step in MIGRATIONS {
        made.execute_batch(step)?;
    }
    Ok(schema(db)? == schema(&made)?)
}

fn make_durable(db: &Connection) -> rusqlite::Result<()> {
    let _: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // `db` writes the log back itself and cuts it: SQLite's own way would keep the file at its largest.
    db.pragma_update(None, "wal_autocheckpoint", 0)
}

/// SQLite gives its companions the mode of the database, so the database is made first, with ours.
fn make_private(path: &Path) -> anyhow::Result<()> {
    let flags =
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
        .with_context(|| format!("could not open {}: the state folder must be writable", path.display()))?;
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        bail!("{} is not a regular file: move it away", path.display());
    }
    file.set_permissions(fs::Permissions::from_mode(0o600)).with_context(|| {
        format!("could not make {} private: it must belong to the agent's user", path.display())
    })
}

fn damaged_path(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &format!(".damaged-{number}"))
}

fn damaged(path: &Path) -> Vec<u32> {
    let Some(entries) = path.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return Vec::new() };
    let prefix = format!("{FILE_NAME}.damaged-");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok())
        .collect()
}

fn companions(path: &Path) -> [PathBuf; 3] {
    [path.to_path_buf(), with_suffix(path, "-wal"), with_suffix(path, "-shm")]
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn sync_folder(folder: &Path) {
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::warn!(folder = %folder.display(), %error, "could not sync the state folder");
    }
}
