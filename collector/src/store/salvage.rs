//! What can still be read of a damaged day's file, row by row.
//!
//! Assumes nothing of the file. `db` writes the rows to a new one under their old ids.

use super::db::{self, Mark, Marks};
use super::file;
use rusqlite::{Connection, Row, params};
use std::collections::BTreeMap;
use std::path::Path;
use vidette_protocol::id::Class;
use vidette_protocol::limits::EVENT_BYTES_MAX;

/// Rows of one file that are taken over at most; beyond it they stay in the file that was set aside.
const ROWS_MAX: usize = 2_000_000;

/// What was found.
#[derive(Debug, Default)]
pub struct Saved {
    /// Marks, when their table could be read.
    pub marks: Marks,
    /// Rows by id.
    pub rows: Vec<SavedRow>,
}

/// One row, as it was.
#[derive(Debug, Clone)]
pub struct SavedRow {
    /// Its id.
    pub id: u64,
    class: Class,
    lane: i64,
    seq: u64,
    received: i64,
    happened: i64,
    kind: u32,
    severity: i32,
    rules: Option<String>,
    body: Vec<u8>,
}

/// Reads both tables from both ends. Never fails: what can't be read is not there.
#[must_use]
pub fn read(path: &Path) -> Saved {
    let Ok(connection) = file::open_to_read(path) else { return Saved::default() };
    let marks = db::load_marks(&connection).unwrap_or_default();
    let mut rows = BTreeMap::new();
    for class in Class::ALL {
        for direction in ["ASC", "DESC"] {
            if walk(&connection, class, direction, &mut rows).is_ok() {
                break; // no damage on the way: the other direction has nothing more
            }
        }
    }
    Saved { marks, rows: rows.into_values().collect() }
}

/// Marks are never below the rows that are kept.
pub fn raise(marks: &mut Marks, rows: &[SavedRow]) {
    let mut lanes: BTreeMap<i64, &mut Mark> = marks.values_mut().map(|mark| (mark.lane, mark)).collect();
    for row in rows {
        if let Some(mark) = lanes.get_mut(&row.lane) {
            mark.seq = mark.seq.max(row.seq);
        }
    }
}

/// Writes them inside the caller's transaction; a row whose lane nobody knows is left out.
///
/// # Errors
/// SQLite's.
pub fn write(db: &Connection, rows: &[SavedRow], marks: &Marks) -> rusqlite::Result<()> {
    let known: std::collections::HashSet<i64> = marks.values().map(|mark| mark.lane).collect();
    let mut run = db
        .prepare("INSERT OR IGNORE INTO run (lane, first_seq, last_seq, first_id) VALUES (?1, ?2, ?2, ?3)")?;
    for row in rows.iter().filter(|row| known.contains(&row.lane)) {
        let sql = format!(
            "INSERT INTO {} (id, lane, seq, received, happened, kind, severity, rules, body)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row.class.name()
        );
        db.prepare_cached(&sql)?.execute(params![
            row.id,
            row.lane,
            row.seq,
            row.received,
            row.happened,
            row.kind,
            row.severity,
            row.rules,
            row.body
        ])?;
        run.execute(params![row.lane, row.seq, row.id])?;
    }
    for class in Class::ALL {
        let sql = format!(
            "INSERT INTO count (agent, class, kind, severity, events)
             SELECT agent, class, kind, severity, count(*) FROM {} JOIN lane USING (lane) GROUP BY 1, 2, 3, 4",
            class.name()
        );
        db.execute(&sql, [])?;
    }
    Ok(())
}

fn walk(
    connection: &Connection,
    class: Class,
    direction: &str,
    saved: &mut BTreeMap<u64, SavedRow>,
) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT id, lane, seq, received, happened, kind, severity, rules, body FROM {} ORDER BY id {direction}",
        class.name()
    );
    let mut select = connection.prepare(&sql)?;
    let mut rows = select.query([])?;
    for _ in 0..ROWS_MAX {
        let Some(row) = rows.next()? else { break };
        let Ok(row) = take(class, row) else { continue };
        if saved.contains_key(&row.id) || row.body.len() > EVENT_BYTES_MAX {
            continue;
        }
        saved.insert(row.id, row);
    }
    Ok(())
}

fn take(class: Class, row: &Row<'_>) -> rusqlite::Result<SavedRow> {
    Ok(SavedRow {
        id: row.get(0)?,
        class,
        lane: row.get(1)?,
        seq: row.get(2)?,
        received: row.get(3)?,
        happened: row.get(4)?,
        kind: row.get(5)?,
        severity: row.get(6)?,
        rules: row.get(7)?,
        body: row.get(8)?,
    })
}
