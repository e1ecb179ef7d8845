//! What can still be read of a damaged day's file, row by row.
//!
//! Assumes nothing of the file: a row is taken when its columns say what its event says and its number follows. `db`
//! writes the rows to a new one under their old ids.

use super::damage::{self, Columns};
use super::db::{self, Mark, Marks};
use super::file;
use prost::Message;
use rusqlite::{Connection, Row, params};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vidette_protocol::id::Class;
use vidette_protocol::limits::EVENT_BYTES_MAX;
use vidette_protocol::{check, wire};

/// Rows of one file that are taken over at most; beyond it they stay in the file that was set aside.
const ROWS_MAX: usize = 2_000_000;

/// What was found.
#[derive(Debug, Default)]
pub struct Saved {
    /// Marks that fit their sums, and others as far as rows show them.
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
    /// `None` in a file whose rows have none.
    sum: Option<i64>,
}

impl SavedRow {
    fn columns(&self) -> Columns<'_> {
        Columns {
            class: self.class,
            id: self.id,
            lane: self.lane,
            seq: self.seq,
            received: self.received,
            happened: self.happened,
            kind: self.kind,
            severity: self.severity,
            rules: self.rules.as_deref().map(str::as_bytes),
            body: &self.body,
        }
    }
}

/// Reads both tables from both ends. Never fails: what can't be read is not there. `known` are lanes as others have them:
/// a lane has one number in all files.
#[must_use]
pub fn read(path: &Path, known: &Marks) -> Saved {
    let Ok(connection) = file::open_to_read(path) else { return Saved::default() };
    let mut marks = db::salvage_marks(&connection);
    let mut sums = lane_sums(&marks);
    sums.extend(lane_sums(known));
    let mut rows = BTreeMap::new();
    for class in Class::ALL {
        for direction in ["ASC", "DESC"] {
            if walk(&connection, class, direction, &sums, &mut rows).is_ok() {
                break; // no damage on the way: the other direction has nothing more
            }
        }
    }
    let mut rows: Vec<SavedRow> = rows.into_values().collect();
    // The numbers of a lane grow with the ids: one that does not was misread.
    let mut last: HashMap<i64, u64> = HashMap::new();
    rows.retain(|row| {
        let follows = last.get(&row.lane).is_none_or(|&last| row.seq > last);
        if follows {
            last.insert(row.lane, row.seq);
        }
        follows
    });
    raise(&mut marks, &rows);
    marks.retain(|_, mark| mark.seq > 0); // a lane that no row knows, and nobody else does
    Saved { marks, rows }
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
    let sums = lane_sums(marks);
    for row in rows {
        let Some(lane_sum) = sums.get(&row.lane) else { continue };
        let sql = format!(
            "INSERT INTO {} (id, lane, seq, received, happened, kind, severity, rules, body, sum)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            row.body,
            row.columns().sum().wrapping_add(*lane_sum)
        ])?;
    }
    Ok(())
}

fn lane_sums(marks: &Marks) -> HashMap<i64, i64> {
    marks.iter().map(|(key, mark)| (mark.lane, damage::lane_sum(*key))).collect()
}

fn walk(
    connection: &Connection,
    class: Class,
    direction: &str,
    sums: &HashMap<i64, i64>,
    saved: &mut BTreeMap<u64, SavedRow>,
) -> rusqlite::Result<()> {
    let sum = if file::version(connection)? < file::SUMMED_SINCE { "NULL" } else { "sum" };
    let sql = format!(
        "SELECT id, lane, seq, received, happened, kind, severity, rules, body, {sum} FROM {} ORDER BY id {direction}",
        class.name()
    );
    let mut select = connection.prepare(&sql)?;
    let mut rows = select.query([])?;
    for _ in 0..ROWS_MAX {
        let Some(row) = rows.next()? else { break };
        let Ok(row) = take(class, row) else { continue };
        if saved.contains_key(&row.id) || !is_itself(&row, sums) {
            continue;
        }
        saved.insert(row.id, row);
    }
    Ok(())
}

/// Whether the columns were made from this event: a row put together from two others does not agree with itself.
fn is_itself(row: &SavedRow, sums: &HashMap<i64, i64>) -> bool {
    let lane_sum = sums.get(&row.lane).copied().unwrap_or(0);
    let fits = |sum| sum == row.columns().sum().wrapping_add(lane_sum);
    if row.body.len() > EVENT_BYTES_MAX || !row.sum.is_none_or(fits) {
        return false;
    }
    let Ok(event) = wire::Event::decode(row.body.as_slice()) else { return false };
    check::event(&event).is_ok()
        && Class::of(&event).is_none_or(|class| class == row.class)
        && db::kind_number(event.kind.as_ref()) == row.kind
        && db::rules(event.kind.as_ref()) == row.rules
        && event.severity == row.severity
        && event.time_unix_ns == row.happened
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
        sum: row.get(9)?,
    })
}
