//! One day's file: how it is made, opened, checked and written. Synchronous; the writer thread owns the newest one.
//!
//! What survives a crash: a new file is made under another name and renamed when it is whole, so a file with the right
//! name always has its schema and all marks of the one before.

use super::{Arrival, Committed};
use anyhow::{Context, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire;

/// "VIDS" in the header of every file (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x5649_4453;
/// Migrations, by number: the first makes version 1.
const MIGRATIONS: [&str; 1] = [include_str!("schema/0001.sql")];
/// Page cache of a connection. KiB.
const CACHE_KIB: i64 = 8 << 10;
/// The write-ahead log is cut back to this after a checkpoint. Bytes.
const WAL_BYTES_MAX: i64 = 64 << 20;
/// How long a writer or reader waits for the other.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Kinds as numbers, for the column. Never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i64)]
pub enum Kind {
    /// Of a newer agent.
    Unknown = 0,
    /// A file or program that matched.
    Detection = 1,
    /// Something was lost.
    Gap = 2,
    /// How a part of an agent is.
    Health = 3,
    /// What an agent did.
    Audit = 4,
    /// A file was written.
    File = 5,
    /// A program was run.
    Process = 6,
}

impl Kind {
    /// All that have a name.
    pub const NAMED: [(&'static str, Self); 6] = [
        ("detection", Self::Detection),
        ("gap", Self::Gap),
        ("health", Self::Health),
        ("audit", Self::Audit),
        ("file", Self::File),
        ("process", Self::Process),
    ];

    /// The kind of an event.
    #[must_use]
    pub fn of(event: &wire::Event) -> Self {
        use wire::event::Kind as Body;
        match &event.kind {
            None => Self::Unknown,
            Some(Body::Detection(_)) => Self::Detection,
            Some(Body::Gap(_)) => Self::Gap,
            Some(Body::Health(_)) => Self::Health,
            Some(Body::Audit(_)) => Self::Audit,
            Some(Body::File(_)) => Self::File,
            Some(Body::Process(_)) => Self::Process,
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }
}

/// The table of a class.
pub(super) fn table(class: Class) -> &'static str {
    match class {
        Class::Alert => "alert",
        Class::Telemetry => "telemetry",
    }
}

/// Epochs are 64 random bits, SQLite's integers are signed: the bits are kept.
pub(super) fn signed(epoch: u64) -> i64 {
    i64::from_ne_bytes(epoch.to_ne_bytes())
}

/// Numbers and ids stay far below the sign bit; what a peer invents beyond it sorts last.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The file that is written.
#[derive(Debug)]
pub struct DayFile {
    connection: Connection,
    path: PathBuf,
    label: String,
    next_id: u64,
}

impl DayFile {
    /// Makes a new one at `path` with the marks of the one before.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn create(path: &Path, label: &str, first_id: u64, before: Option<&Self>) -> anyhow::Result<Self> {
        let draft = path.with_extension("new");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let mut connection =
            connect(&draft, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(MIGRATIONS[0])?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len())?;
        transaction.execute(
            "INSERT INTO day (only, label, first_id) VALUES (1, ?1, ?2)",
            params![label, number(first_id)],
        )?;
        if let Some(before) = before {
            copy_marks(&before.connection, &transaction)?;
        }
        transaction.commit()?;
        connection.close().map_err(|(_, error)| error)?;
        std::fs::rename(&draft, path)?;
        std::fs::File::open(path.parent().context("a file lies in a folder")?)?.sync_all()?;
        Self::open(path)
    }

    /// Opens an existing one for writing.
    ///
    /// # Errors
    /// When it is damaged, foreign, or made by a newer version; the sentence says which.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        recognise(&connection, path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)?;
        migrate(&mut connection)?;
        let (label, first_id): (String, i64) =
            connection.query_row("SELECT label, first_id FROM day WHERE only = 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let highest = highest_id(&connection)?;
        let next_id =
            u64::try_from(highest.map_or(first_id, |id| id.saturating_add(1).max(first_id))).unwrap_or(1);
        // Reads every mark once, so that damage there is found now and not at a commit.
        connection.query_row("SELECT count(*), total(seq) FROM mark", [], |_| Ok(()))?;
        Ok(Self { connection, path: path.to_path_buf(), label, next_id })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The day it was begun.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The id that the next event gets.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Stores arrivals in one transaction; the answers hold only when this returns them.
    ///
    /// # Errors
    /// When the database says no; then nothing of it is stored.
    pub fn commit<'a>(
        &mut self,
        arrivals: impl IntoIterator<Item = &'a Arrival>,
        received_unix_ns: i64,
    ) -> rusqlite::Result<Vec<Committed>> {
        let transaction = self.connection.transaction()?;
        let mut next_id = self.next_id;
        let mut answers = Vec::new();
        for arrival in arrivals {
            answers.push(store(&transaction, arrival, received_unix_ns, &mut next_id)?);
        }
        transaction.commit()?;
        self.next_id = next_id;
        Ok(answers)
    }

    /// Up to where the streams of one outbox are stored.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn durable(&self, agent: AgentId, epoch: u64) -> rusqlite::Result<Vec<(Class, u64)>> {
        let mut marks = Vec::new();
        for class in Class::ALL {
            let seq = mark(&self.connection, agent, epoch, class)?;
            if seq > 0 {
                marks.push((class, seq));
            }
        }
        Ok(marks)
    }
}

/// Stores what of the arrival is new.
fn store(
    transaction: &Transaction<'_>,
    arrival: &Arrival,
    received: i64,
    next_id: &mut u64,
) -> rusqlite::Result<Committed> {
    let stored = mark(transaction, arrival.agent, arrival.epoch, arrival.class)?;
    let count = arrival.events.len() as u64;
    let last = arrival.first_seq.saturating_add(count).saturating_sub(1);
    if count == 0 || last <= stored {
        return Ok(Committed::Durable(stored));
    }
    let declared_from = arrival.first_seq.saturating_sub(arrival.skipped);
    if declared_from > stored.saturating_add(1) {
        return Ok(Committed::Hole { expected: stored.saturating_add(1) });
    }
    if arrival.first_seq > stored.saturating_add(1) {
        let hole = (stored.saturating_add(1), arrival.first_seq.saturating_sub(1));
        note_hole(transaction, arrival, hole, received)?;
    }
    let known = stored.saturating_add(1).saturating_sub(arrival.first_seq);
    let mut insert = transaction.prepare_cached(match arrival.class {
        Class::Alert => {
            "INSERT INTO alert (id, agent, epoch, seq, time, received, kind, severity, rules, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
        }
        Class::Telemetry => {
            "INSERT INTO telemetry (id, agent, epoch, seq, time, received, kind, severity, rules, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
        }
    })?;
    let mut count = transaction.prepare_cached(
        "INSERT INTO counter (agent, class, kind, severity, hour, events) VALUES (?1, ?2, ?3, ?4, ?5, 1)
         ON CONFLICT DO UPDATE SET events = events + 1",
    )?;
    let hour = received.div_euclid(3_600_000_000_000);
    for (offset, event) in (0_u64..).zip(&arrival.events).skip(usize::try_from(known).unwrap_or(usize::MAX)) {
        insert.execute(params![
            number(*next_id),
            arrival.agent.0,
            signed(arrival.epoch),
            number(arrival.first_seq.saturating_add(offset)),
            event.time_unix_ns,
            received,
            event.kind as i64,
            event.severity,
            event.rules,
            event.body,
        ])?;
        count.execute(params![
            arrival.agent.0,
            arrival.class.to_wire(),
            event.kind as i64,
            event.severity,
            hour
        ])?;
        *next_id += 1;
    }
    transaction
        .prepare_cached("INSERT OR REPLACE INTO mark (agent, epoch, class, seq) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![arrival.agent.0, signed(arrival.epoch), arrival.class.to_wire(), number(last)])?;
    Ok(Committed::Durable(last))
}

fn note_hole(
    transaction: &Transaction<'_>,
    arrival: &Arrival,
    hole: (u64, u64),
    noted: i64,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO hole (agent, epoch, class, first, last, noted) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    transaction.prepare_cached(sql)?.execute(params![
        arrival.agent.0,
        signed(arrival.epoch),
        arrival.class.to_wire(),
        number(hole.0),
        number(hole.1),
        noted
    ])?;
    Ok(())
}

fn mark(connection: &Connection, agent: AgentId, epoch: u64, class: Class) -> rusqlite::Result<u64> {
    let sql = "SELECT seq FROM mark WHERE agent = ?1 AND epoch = ?2 AND class = ?3";
    let seq: Option<i64> = connection
        .prepare_cached(sql)?
        .query_row(params![agent.0, signed(epoch), class.to_wire()], |row| row.get(0))
        .optional()?;
    Ok(seq.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0))
}

fn copy_marks(from: &Connection, to: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut read = from.prepare("SELECT agent, epoch, class, seq FROM mark")?;
    let mut write = to.prepare("INSERT INTO mark (agent, epoch, class, seq) VALUES (?1, ?2, ?3, ?4)")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let (agent, epoch, class, seq): (Vec<u8>, i64, i64, i64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        write.execute(params![agent, epoch, class, seq])?;
    }
    Ok(())
}

fn highest_id(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection.query_row("SELECT max((SELECT max(id) FROM alert), (SELECT max(id) FROM telemetry)), (SELECT max(id) FROM alert), (SELECT max(id) FROM telemetry)", [], |row| {
        let (alert, telemetry): (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        Ok(alert.max(telemetry))
    })
}

/// A connection with everything off that a hostile file could use.
pub(super) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW,
    )?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

/// Whether the file is one of ours, of a version that is known here.
pub(super) fn recognise(connection: &Connection, path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .with_context(|| format!("{shown} is damaged"))?;
    if id != APPLICATION_ID {
        bail!("{shown} is not a store of Vidette: move it away");
    }
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > MIGRATIONS.len() {
        bail!("{shown} was written by a newer version of Vidette (schema {version}): install that version");
    }
    Ok(())
}

/// Brings an older file to this version, one transaction a step.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number + 1)?;
        transaction.commit()?;
    }
    Ok(())
}
