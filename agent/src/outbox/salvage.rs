//! What can still be read of a damaged outbox, row by row.
//!
//! Assumes nothing of the file: a row is taken only when it decodes, is within its limits and fits the sum that was
//! written with it (rows of the first version have none), when it was not acknowledged, and when its number has not
//! been met. Reads in parts, so that a large outbox does not have to fit in memory. `db` writes the parts to the new
//! outbox.

use super::bound::Rank;
use super::db::{self, ROW_BYTES};
use super::file;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Row};
use std::path::Path;
use vidette_protocol::id::Class;
use vidette_protocol::limits::EVENT_BYTES_MAX;
use vidette_protocol::{check, wire};

/// Rows looked at in one direction: a damaged tree may never end.
const ROWS_MAX: usize = 20_000_000;

/// An event that could be read and is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Which numbers it belongs to.
    pub class: Class,
    /// Its number in the damaged outbox.
    pub seq: u64,
    /// Its place at the bound.
    pub rank: Rank,
    /// When it was appended, Unix nanoseconds.
    pub created: i64,
    /// The encoded event.
    pub body: Vec<u8>,
}

/// Reads both tables from both ends, at most `bytes_max`, and hands parts of about `part_bytes` to `keep`. What
/// can't be read is not there. The parts of a class are not in the order of its numbers.
///
/// # Errors
/// Only those of `keep`.
pub fn each(
    path: &Path,
    bytes_max: u64,
    part_bytes: u64,
    keep: &mut dyn FnMut(&[Saved]) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let Ok(connection) = file::connect(path) else { return Ok(()) };
    let mut reading =
        Reading { connection: &connection, left: bytes_max, part_bytes, part: Vec::new(), keep };
    for class in Class::ALL {
        let after = acked(&connection, class);
        let (last, whole) = reading.walk(class, after, false)?;
        if !whole {
            reading.walk(class, last, true)?;
        }
    }
    Ok(())
}

/// What the collector has already; 0 when that can't be read.
fn acked(connection: &Connection, class: Class) -> u64 {
    let sql = "SELECT seq FROM acked WHERE class = ?";
    let acked = connection.query_row(sql, [class.to_wire()], |row| row.get::<_, u64>(0)).optional();
    acked.ok().flatten().unwrap_or(0)
}

struct Reading<'a> {
    connection: &'a Connection,
    left: u64,
    part_bytes: u64,
    part: Vec<Saved>,
    keep: &'a mut dyn FnMut(&[Saved]) -> rusqlite::Result<()>,
}

impl Reading<'_> {
    /// From the oldest upwards, or down from the newest to `after`. Gives the last number met, and whether nothing
    /// was in the way, so that the other direction has nothing more.
    fn walk(&mut self, class: Class, after: u64, down: bool) -> rusqlite::Result<(u64, bool)> {
        let mut last = after;
        let whole = match self.select(class, down) {
            Some(sql) => self.rows(&sql, class, after, down, &mut last)?,
            None => false,
        };
        self.hand_over()?;
        Ok((last, whole))
    }

    /// The statement, for a table with or without sums; `None` when the table can't be read at all.
    fn select(&self, class: Class, down: bool) -> Option<String> {
        let direction = if down { "DESC" } else { "ASC" };
        let sql = |sum: &str| {
            let table = class.name();
            format!(
                "SELECT seq, created, rank, body, {sum} FROM {table} WHERE seq > ? ORDER BY seq {direction}"
            )
        };
        [sql("sum"), sql("NULL")].into_iter().find(|sql| self.connection.prepare(sql).is_ok())
    }

    fn rows(
        &mut self,
        sql: &str,
        class: Class,
        after: u64,
        down: bool,
        last: &mut u64,
    ) -> rusqlite::Result<bool> {
        let Ok(mut select) = self.connection.prepare(sql) else { return Ok(false) };
        let Ok(mut rows) = select.query([after]) else { return Ok(false) };
        let (mut bytes, mut met) = (0, None);
        for _ in 0..ROWS_MAX {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(true),
                Err(_) => return Ok(false),
            };
            let Ok(seq) = row.get::<_, u64>(0) else { return Ok(false) };
            // A tree that runs in circles, or a page that was misread, breaks the order.
            if seq <= after || met.is_some_and(|met| if down { seq >= met } else { seq <= met }) {
                return Ok(false);
            }
            met = Some(seq);
            *last = seq;
            let Some(saved) = take(class, seq, row) else { continue };
            let cost = saved.body.len() as u64 + ROW_BYTES;
            if cost > self.left {
                return Ok(true);
            }
            self.left -= cost;
            bytes += cost;
            self.part.push(saved);
            if bytes >= self.part_bytes {
                bytes = 0;
                self.hand_over()?;
            }
        }
        Ok(true)
    }

    fn hand_over(&mut self) -> rusqlite::Result<()> {
        let part = std::mem::take(&mut self.part);
        if part.is_empty() { Ok(()) } else { (self.keep)(&part) }
    }
}

fn take(class: Class, seq: u64, row: &Row<'_>) -> Option<Saved> {
    let created: i64 = row.get(1).ok()?;
    let rank: u64 = row.get(2).ok()?;
    let body = row.get_ref(3).ok()?.as_blob().ok()?;
    let sum: Option<i64> = row.get(4).ok()?;
    if body.len() > EVENT_BYTES_MAX || sum.is_some_and(|sum| sum != db::sum(rank, created, body)) {
        return None;
    }
    let event = wire::Event::decode(body).ok()?;
    check::event(&event).ok()?;
    (Class::of(&event) == Some(class)).then(|| Saved {
        class,
        seq,
        rank: Rank::of(&event),
        created,
        body: body.to_vec(),
    })
}
