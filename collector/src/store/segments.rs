//! The index of a day: for every segment of ids, which of them are of one lane, class, kind, severity, rule or minute.
//!
//! A segment is written once, after its last row and in the transaction of the next one, in the order of its keys: the
//! tables grow at their end, whatever the events are. It is made of the rows alone, so that nothing has to be remembered
//! between commits, and a row whose segment is not written is only slower to find. `db` says when, `search` reads.

use super::{file, ids};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::HashMap;
use vidette_protocol::id::Class;

/// Ids of one segment. The schema says the same.
pub(super) const SEGMENT_IDS: u64 = 1 << 14;

const MINUTE_NS: i64 = 60_000_000_000;
/// What a key is, in the bits above its value.
const TAG_SHIFT: u32 = 56;
/// Added to what may be negative.
const BIAS: i64 = 1 << 40;

/// What rows are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'a> {
    Class(Class),
    Lane(i64),
    Kind(u32),
    Severity(i32),
    /// A rule's name or id.
    Rule(&'a str),
    /// When it happened, Unix nanoseconds: its minute.
    Minute(i64),
}

impl Key<'_> {
    /// As it is stored. Keys of one sort keep the order of their values, but for rules, which may also collide.
    pub(super) fn number(self) -> i64 {
        let (tag, value) = match self {
            Key::Class(class) => (1_i64, i64::from(class.to_wire())),
            Key::Lane(lane) => (2, lane),
            Key::Kind(kind) => (3, i64::from(kind)),
            Key::Severity(severity) => (4, i64::from(severity) + BIAS),
            Key::Rule(word) => (5, digest(word)),
            Key::Minute(unix_ns) => (6, unix_ns.div_euclid(MINUTE_NS) + BIAS),
        };
        tag << TAG_SHIFT | value.clamp(0, (1 << TAG_SHIFT) - 1)
    }
}

/// FNV-1a, cut to what a key holds. Who makes names collide makes only the search for them slower: rows are looked at.
fn digest(word: &str) -> i64 {
    let hash = word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash >> (64 - TAG_SHIFT)).cast_signed()
}

/// The segment of an id.
pub(super) fn of(id: u64) -> u64 {
    id / SEGMENT_IDS
}

/// Its first id, and the first one after it.
pub(super) fn ids_of(segment: u64) -> (u64, u64) {
    let first = segment.saturating_mul(SEGMENT_IDS);
    (first, first.saturating_add(SEGMENT_IDS))
}

/// The segment of the newest row; `None` when there is no row.
///
/// # Errors
/// SQLite's.
pub(super) fn newest(db: &Connection) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT max(id) FROM (SELECT max(id) AS id FROM alert UNION ALL SELECT max(id) FROM telemetry)";
    let id: Option<u64> = db.query_row(sql, [], |row| row.get(0))?;
    Ok(id.map(of))
}

/// Writes a segment, inside the caller's transaction. One that is written, or has no rows, is left as it is.
///
/// # Errors
/// SQLite's.
pub(super) fn finish(db: &Connection, segment: u64) -> rusqlite::Result<()> {
    let found = match Found::read(db, segment) {
        Ok(found) if found.keys.is_empty() => return Ok(()),
        Ok(found) => found,
        // New events must not wait for old ones that nobody can read: without an index the rest is still found.
        Err(error) if file::is_damage(&error) => {
            tracing::error!(segment, %error, "stored events can't be read and stay without an index");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let sql = "INSERT OR IGNORE INTO segment (segment, happened_min, happened_max) VALUES (?, ?, ?)";
    let (earliest, latest) = found.happened;
    if db.prepare_cached(sql)?.execute(params![segment, earliest, latest])? == 0 {
        return Ok(());
    }
    let mut keys: Vec<(i64, Vec<u16>)> = found.keys.into_iter().collect();
    keys.sort_unstable_by_key(|(key, _)| *key);
    let mut insert = db.prepare_cached("INSERT INTO entry (segment, key, ids) VALUES (?, ?, ?)")?;
    for (key, places) in keys {
        insert.execute(params![segment, key, ids::encode(places)])?;
    }
    let sql = "INSERT INTO count (agent, class, kind, severity, events)
               SELECT agent, class, ?2, ?3, ?4 FROM lane WHERE lane = ?1
               ON CONFLICT DO UPDATE SET events = events + excluded.events";
    let mut count = db.prepare_cached(sql)?;
    for ((lane, kind, severity), events) in found.counts {
        count.execute(params![lane, kind, severity, events])?;
    }
    Ok(())
}

/// Whether what is written of a segment is what its rows say. One that is not written is: its rows are looked at.
///
/// # Errors
/// SQLite's.
pub(super) fn is_right(db: &Connection, segment: u64) -> rusqlite::Result<bool> {
    if file::version(db)? < file::INDEXED_SINCE {
        return Ok(true);
    }
    let mut select = db.prepare_cached("SELECT happened_min, happened_max FROM segment WHERE segment = ?")?;
    let written: Option<(i64, i64)> =
        select.query_row([segment], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some(happened) = written else { return Ok(true) };
    let mut found = Found::read(db, segment)?;
    let mut select = db.prepare_cached("SELECT key, ids FROM entry WHERE segment = ? ORDER BY key")?;
    let mut entries = select.query([segment])?;
    while let Some(entry) = entries.next()? {
        let places = found.keys.remove(&entry.get(0)?);
        let written = entry.get_ref(1)?.as_blob()?;
        if places.is_none_or(|places| ids::encode(places) != written) {
            return Ok(false);
        }
    }
    Ok(found.keys.is_empty() && happened == found.happened)
}

/// Writes every segment that has rows and ends before `id`.
///
/// # Errors
/// SQLite's.
pub(super) fn finish_below(db: &Connection, id: u64) -> rusqlite::Result<()> {
    let sql = "SELECT DISTINCT id / ?1 FROM alert UNION SELECT DISTINCT id / ?1 FROM telemetry ORDER BY 1";
    let mut select = db.prepare(sql)?;
    let segments: Vec<u64> =
        select.query_map([SEGMENT_IDS], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    segments.into_iter().filter(|segment| *segment < of(id)).try_for_each(|segment| finish(db, segment))
}

/// What the rows of one segment say.
struct Found {
    keys: HashMap<i64, Vec<u16>>,
    /// By lane, kind and severity.
    counts: HashMap<(i64, u32, i32), u64>,
    happened: (i64, i64),
}

impl Found {
    fn read(db: &Connection, segment: u64) -> rusqlite::Result<Self> {
        let mut found = Self { keys: HashMap::new(), counts: HashMap::new(), happened: (i64::MAX, i64::MIN) };
        let (first, next) = ids_of(segment);
        for class in Class::ALL {
            let sql = format!(
                "SELECT id, lane, kind, severity, happened, rules FROM {} WHERE id >= ? AND id < ?",
                class.name()
            );
            let mut select = db.prepare_cached(&sql)?;
            let mut rows = select.query([first, next])?;
            while let Some(row) = rows.next()? {
                let id: u64 = row.get(0)?;
                let place = u16::try_from(id - first).unwrap_or(u16::MAX); // below 16,384
                let (lane, kind, severity, happened) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
                let keys = [
                    Key::Class(class),
                    Key::Lane(lane),
                    Key::Kind(kind),
                    Key::Severity(severity),
                    Key::Minute(happened),
                ];
                keys.into_iter().for_each(|key| found.note(key, place));
                for word in words(row.get_ref(5)?.as_str_or_null()?) {
                    found.note(Key::Rule(word), place);
                }
                *found.counts.entry((lane, kind, severity)).or_default() += 1;
                found.happened = (found.happened.0.min(happened), found.happened.1.max(happened));
            }
        }
        Ok(found)
    }

    fn note(&mut self, key: Key<'_>, place: u16) {
        let places = self.keys.entry(key.number()).or_default();
        // A rule may be named like its id, or occur twice.
        if places.last() != Some(&place) {
            places.push(place);
        }
    }
}

/// The words of the column `rules`.
fn words(rules: Option<&str>) -> impl Iterator<Item = &str> {
    rules.unwrap_or_default().split('\n').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_sort_are_in_order_and_apart_from_all_others() {
        let day = 86_400_000_000_000;
        let ordered = [
            Key::Class(Class::Alert),
            Key::Class(Class::Telemetry),
            Key::Lane(1),
            Key::Lane(1 << 40),
            Key::Kind(0),
            Key::Kind(15),
            Key::Severity(i32::MIN),
            Key::Severity(-1),
            Key::Severity(5),
            Key::Severity(i32::MAX),
            Key::Rule("one"),
            Key::Minute(i64::MIN),
            Key::Minute(-1),
            Key::Minute(0),
            Key::Minute(day),
            Key::Minute(i64::MAX),
        ];
        assert!(ordered.windows(2).all(|pair| pair[0].number() < pair[1].number()), "{ordered:?}");
        assert_ne!(Key::Rule("one").number(), Key::Rule("two").number());
    }
}
