//! What can still be read of a damaged outbox, row by row.
//!
//! Assumes nothing of the file: every row is decoded and checked before it is taken. Its rows get new numbers
//! in the new outbox.

use super::bound::Rank;
use super::db::ROW_BYTES;
use super::file;
use prost::Message;
use rusqlite::{Connection, Row};
use std::collections::BTreeMap;
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
    /// Its place at the bound.
    pub rank: Rank,
    /// When it was appended, Unix nanoseconds.
    pub created: i64,
    /// The encoded event.
    pub body: Vec<u8>,
}

/// Reads both tables from both ends, at most `bytes_max`, in the order of their numbers. Never fails: what
/// can't be read is not there.
#[must_use]
pub fn read(path: &Path, bytes_max: u64) -> Vec<Saved> {
    let Ok(connection) = file::connect(path) else { return Vec::new() };
    let mut left = bytes_max;
    let mut saved = Vec::new();
    for class in Class::ALL {
        let mut rows = BTreeMap::new();
        for direction in ["ASC", "DESC"] {
            let whole = walk(&connection, class, direction, &mut rows, &mut left).is_ok();
            if whole {
                break; // no damage on the way: the other direction has nothing more
            }
        }
        saved.extend(rows.into_values());
    }
    saved
}

fn walk(
    connection: &Connection,
    class: Class,
    direction: &str,
    saved: &mut BTreeMap<i64, Saved>,
    left: &mut u64,
) -> rusqlite::Result<()> {
    let sql = format!("SELECT seq, created, body FROM {} ORDER BY seq {direction}", class.name());
    let mut select = connection.prepare(&sql)?;
    let mut rows = select.query([])?;
    for _ in 0..ROWS_MAX {
        let Some(row) = rows.next()? else { break };
        let seq: i64 = row.get(0)?;
        if saved.contains_key(&seq) {
            break; // met what the other direction took; this also ends a tree that runs in circles
        }
        if let Some(row) = take(class, row) {
            let bytes = row.body.len() as u64 + ROW_BYTES;
            if bytes > *left {
                break;
            }
            *left -= bytes;
            saved.insert(seq, row);
        }
    }
    Ok(())
}

fn take(class: Class, row: &Row<'_>) -> Option<Saved> {
    let created: i64 = row.get(1).ok()?;
    let body = row.get_ref(2).ok()?.as_blob().ok()?;
    if body.len() > EVENT_BYTES_MAX {
        return None;
    }
    let event = wire::Event::decode(body).ok()?;
    check::event(&event).ok()?;
    (Class::of(&event) == Some(class)).then(|| Saved {
        class,
        rank: Rank::of(&event),
        created,
        body: body.to_vec(),
    })
}
