//! One day's file: names, opening safely, telling ours from foreign or damaged ones.
//!
//! Assumes that the folder belongs to the collector. Connections go to `db` and `reader`.

use anyhow::Context;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `VdEv`: what `PRAGMA application_id` says of a day's file.
pub const APPLICATION_ID: i32 = 0x5664_4576;
/// The schema this version writes. Files of older ones are only read.
pub const SCHEMA_VERSION: i32 = 3;
/// Up to this size the newest file is checked whole when the collector starts. Bytes.
pub const QUICK_CHECK_BYTES_MAX: u64 = 512 << 20;

/// Every schema there was, the newest last: a file is made whole, and stays as it was made.
const SCHEMAS: [&str; 3] =
    [include_str!("schema/0001.sql"), include_str!("schema/0002.sql"), include_str!("schema/0003.sql")];
/// Rows of this one and later have a sum.
pub(super) const SUMMED_SINCE: i32 = 3;
/// Files of this one and later have segments.
pub(super) const INDEXED_SINCE: i32 = 2;
/// SQLite's default, which is never changed here.
pub(crate) const PAGE_BYTES: u64 = 4096;
const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
const WAL_KEPT_BYTES_MAX: u32 = 16 << 20;
/// Pages in the write-ahead log before they are moved to the file: few syncs of the file, and a log that stays small.
const CHECKPOINT_PAGES: u32 = 2048;
/// The same when nobody waits for a commit: often and little, so that whoever comes meanwhile waits for a few milliseconds.
pub(super) const CHECKPOINT_PAGES_IDLE: u64 = 256;
/// Pages that the writer keeps in memory. KiB.
const WRITER_CACHE_KIB: i64 = 16 << 10;

const _: () = assert!((CHECKPOINT_PAGES << 12) < WAL_KEPT_BYTES_MAX);
const _: () = assert!(CHECKPOINT_PAGES_IDLE < CHECKPOINT_PAGES as u64);
const _: () = assert!(SCHEMAS.len() == SCHEMA_VERSION as usize);
const DAY_NS: i64 = 86_400_000_000_000;

/// A file by its name: `events-NNNNNNNN-YYYYMMDD.db`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayFile {
    /// Grows from file to file.
    pub number: u64,
    /// The day it was begun, YYYYMMDD, UTC.
    pub label: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What keeps a file from being used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is damaged: set aside and go on.
    #[error("{0}")]
    Damaged(String),
    /// Not ours, or of a newer version: a person has to decide.
    #[error("{0}")]
    Foreign(String),
    /// Anything else: permission, space, descriptors.
    #[error(transparent)]
    Other(#[from] rusqlite::Error),
}

impl DayFile {
    /// The name such a file has in `folder`.
    #[must_use]
    pub fn new(folder: &Path, number: u64, label: &str) -> Self {
        let path = folder.join(format!("events-{number:08}-{label}.db"));
        Self { number, label: label.to_owned(), path }
    }

    fn parse(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_prefix("events-")?.strip_suffix(".db")?;
        let (number, label) = name.split_once('-')?;
        let is_day = label.len() == 8 && label.bytes().all(|byte| byte.is_ascii_digit());
        let (number, label) = (number.parse().ok()?, label.to_owned());
        is_day.then_some(Self { number, label, path })
    }
}

/// All days in `folder`, oldest first.
///
/// # Errors
/// When the folder can't be read.
pub fn list(folder: &Path) -> std::io::Result<Vec<DayFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        files.extend(DayFile::parse(entry?.path()));
    }
    files.sort();
    Ok(files)
}

/// The day of a wall clock in Unix nanoseconds: YYYYMMDD, UTC. Clocks beyond the calendar end at its borders.
#[must_use]
pub fn label(unix_ns: i64) -> String {
    // Days to civil date, after Howard Hinnant's `civil_from_days`.
    let days = unix_ns.div_euclid(DAY_NS) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}")
}

/// Makes the folder, readable by nobody else, when it is not there.
///
/// # Errors
/// When it can't be made or its mode can't be set.
pub fn prepare_folder(folder: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| {
        format!("could not make the store's folder {}: create it or set another", folder.display())
    })?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).with_context(|| {
        format!("could not make {} private: it must belong to the collector's user", folder.display())
    })
}

/// Opens an existing file for writing, after looking at it.
///
/// # Errors
/// [`FileError`].
pub fn open(path: &Path, whole_check: bool) -> Result<Connection, FileError> {
    match inspect(path, whole_check) {
        Err(FileError::Other(error)) if is_damage(&error) => {
            Err(FileError::Damaged(format!("{} is damaged: {error}", path.display())))
        }
        other => other,
    }
}

/// Which schema a file has; 0 when it has none.
///
/// # Errors
/// SQLite's.
pub fn version(db: &Connection) -> rusqlite::Result<i32> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Opens a file to read it. It can't be written through this connection.
///
/// # Errors
/// SQLite's.
pub fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path)?; // WAL needs its companions, which only a writer may make
    db.pragma_update(None, "query_only", true)?;
    whole_pages(path)?;
    Ok(db)
}

/// SQLite reads what is missing of a last page as zeros. Such a page is in order only while a log can mend it.
fn whole_pages(path: &Path) -> rusqlite::Result<()> {
    let (bytes, wal) = sizes(path);
    if wal == 0 && !bytes.is_multiple_of(PAGE_BYTES) {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some("its last page was cut".into())));
    }
    Ok(())
}

/// Makes a new file under a temporary name, lets `fill` write its first rows, and renames it when it is
/// whole, so that a crash leaves either no file or a complete one.
///
/// # Errors
/// When it can't be written.
pub fn create(
    day: &DayFile,
    fill: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> anyhow::Result<Connection> {
    let draft = draft_path(&day.path);
    let context =
        || format!("could not make {}: check the folder's owner and free space", day.path.display());
    let _ = fs::remove_file(&draft); // of a crash
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).with_context(context)?;
    let write = || {
        let db = connect(&draft)?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.execute_batch("BEGIN IMMEDIATE")?;
        SCHEMAS.last().map_or(Ok(()), |schema| db.execute_batch(schema))?;
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
        db.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        fill(&db)?;
        db.execute_batch("COMMIT")?;
        db.close().map_err(|(_, error)| error)
    };
    write().with_context(context)?;
    fs::rename(&draft, &day.path).with_context(context)?;
    if let Some(folder) = day.path.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)?;
    }
    open(&day.path, false).with_context(context)
}

/// Renames a file and its companions to `….damaged` and says which name it got.
///
/// # Errors
/// When renaming fails.
pub fn set_aside(path: &Path) -> anyhow::Result<PathBuf> {
    let target = (1..u32::MAX)
        .map(|number| with_suffix(path, &format!(".damaged-{number}")))
        .find(|target| target.symlink_metadata().is_err())
        .context("no name is free for a damaged file")?;
    fs::rename(path, &target).with_context(|| {
        format!("could not rename {} to {}: move it away", path.display(), target.display())
    })?;
    for suffix in ["-wal", "-shm"] {
        let _ = fs::rename(with_suffix(path, suffix), with_suffix(&target, suffix)); // often there is none
    }
    Ok(target)
}

/// Deletes a day for good.
///
/// # Errors
/// The system's, of the database itself; companions that can't go are left.
pub fn remove(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)?;
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(with_suffix(path, suffix)); // absent after a clean close
    }
    Ok(())
}

/// Size of the file and of its write-ahead log. Bytes.
#[must_use]
pub fn sizes(path: &Path) -> (u64, u64) {
    let size = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    (size(path), size(&with_suffix(path, "-wal")))
}

/// Drafts that a crash left behind.
pub fn remove_drafts(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("events-") && name.contains(DRAFT_SUFFIX)) {
            let _ = fs::remove_file(entry.path()); // `create` tries again and says why when it matters
        }
    }
}

/// Whether an error says that the file itself is broken, so that no retry can help.
#[must_use]
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, QueryReturnedNoRows,
        SqlInputError, SqliteFailure, Utf8Error,
    };
    match error {
        SqliteFailure(code, text) => {
            use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
            matches!(code.code, DatabaseCorrupt | NotADatabase)
                || code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
                || (code.code == Unknown
                    && text.as_deref().is_some_and(|text| {
                        ["no such", "malformed", "unsupported"].iter().any(|word| text.contains(word))
                    }))
        }
        other => matches!(
            other,
            FromSqlConversionFailure(..)
                | IntegralValueOutOfRange(..)
                | InvalidColumnType(..)
                | QueryReturnedNoRows
                | SqlInputError { .. }
                | Utf8Error(..)
        ),
    }
}

const DRAFT_SUFFIX: &str = ".new";

fn draft_path(path: &Path) -> PathBuf {
    with_suffix(path, DRAFT_SUFFIX)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn inspect(path: &Path, whole_check: bool) -> Result<Connection, FileError> {
    let name = path.display();
    if !path.symlink_metadata().is_ok_and(|data| data.is_file()) {
        return Err(FileError::Foreign(format!("{name} is not a regular file: move it away")));
    }
    let db = connect(path)?;
    whole_pages(path)?;
    let id: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if db.is_readonly(rusqlite::MAIN_DB)? && OpenOptions::new().write(true).open(path).is_ok() {
        // fileformat2.html, offset 18
        return Err(FileError::Damaged(format!("{name} is damaged: its header forbids writing")));
    }
    let version = version(&db)?;
    if id == 0 && version == 0 {
        // Never renamed into place like this: it was overwritten or cut to nothing.
        return Err(FileError::Damaged(format!("{name} is empty or not a store")));
    }
    if id != APPLICATION_ID {
        return Err(FileError::Foreign(format!(
            "{name} is the database of another program: move it out of this folder"
        )));
    }
    let Some(schema) = usize::try_from(version).ok().and_then(|number| SCHEMAS.get(number.checked_sub(1)?))
    else {
        return Err(FileError::Foreign(format!(
            "{name} has schema {version}, this version knows up to {SCHEMA_VERSION}: run the newer `vidette` again"
        )));
    };
    if whole_check {
        // The quick one passes over indexes, and only lanes have one: an agent whose id is another one there is not known any more.
        for check in ["PRAGMA quick_check(1)", "PRAGMA integrity_check('lane')"] {
            let verdict: String = db.query_row(check, [], |row| row.get(0))?;
            if verdict != "ok" {
                return Err(FileError::Damaged(format!("{name} is damaged: {verdict}")));
            }
        }
    }
    if !schema_is_whole(&db, schema)? {
        return Err(FileError::Damaged(format!(
            "{name} is damaged: its tables are not those that were made"
        )));
    }
    let _: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES_MAX)?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    db.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    Ok(db)
}

/// Whether the schema is word for word the one that was made: damage there is else met only at a write.
fn schema_is_whole(db: &Connection, expected: &str) -> rusqlite::Result<bool> {
    let schema = |db: &Connection| -> rusqlite::Result<Vec<(String, Option<String>)>> {
        let mut all =
            db.prepare("SELECT name, sql FROM sqlite_schema WHERE type IN ('table', 'index') ORDER BY name")?;
        all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    let made = Connection::open_in_memory()?;
    made.execute_batch(expected)?;
    Ok(schema(db)? == schema(&made)?)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let second = 1_000_000_000;
        for (unix_s, expected) in
            [(0_i64, "19700101"), (951_782_400, "20000229"), (1_735_689_599, "20241231"), (-1, "19691231")]
        {
            assert_eq!(label(unix_s * second), expected);
        }
    }

    #[test]
    fn names_are_read_back_and_others_ignored() {
        let day = DayFile::new(Path::new("/x"), 7, "20261121");
        assert_eq!(DayFile::parse(day.path.clone()), Some(day));
        for name in
            ["events-1.db", "events-x-20260101.db", "events-1-2026.db", "events-1-20260101.db.damaged-1"]
        {
            assert_eq!(DayFile::parse(PathBuf::from(name)), None, "{name}");
        }
    }
}
