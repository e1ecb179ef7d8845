//! What goes first when there is too much (D4), and the `gap` events that count it.
//!
//! Works inside the caller's transaction, a bounded part at a time. A gap event that has to go itself is folded
//! into the new one, so that a number once explained stays explained.

use super::db::ROW_BYTES;
use super::gaps;
use prost::Message;
use rusqlite::{Connection, Row};
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, GapReason, event::Kind};

/// What goes first at the bound; the stored number is the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// A file was written, and nothing matched.
    File = 0,
    /// A program was run.
    Process = 1,
    /// Detections, health, audit.
    Alert = 2,
    /// The word that something was lost.
    Gap = 3,
}

/// What was removed.
#[derive(Debug, Default)]
pub struct Evicted {
    /// Rows.
    pub events: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Rows that were gap events.
    pub gap_rows: u64,
    /// The highest number of class alert that went; 0 when none.
    pub alert_last: u64,
    /// One for each class that lost something, without a text.
    pub gaps: Vec<wire::Gap>,
}

/// Numbers up to which a rank has no rows, so that nobody looks for them again. By rank; gaps are not followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floors([u64; 3]);

impl Rank {
    /// Of a new event.
    #[must_use]
    pub fn of(event: &wire::Event) -> Self {
        match event.kind {
            Some(Kind::File(_)) => Self::File,
            Some(Kind::Process(_)) => Self::Process,
            Some(Kind::Gap(_)) => Self::Gap,
            Some(Kind::Detection(_) | Kind::Health(_) | Kind::Audit(_)) | None => Self::Alert,
        }
    }
}

/// Removes at least `bytes`, or `runs_max` runs of consecutive rows, or all there is: lowest rank first, oldest
/// first.
///
/// # Errors
/// SQLite's; the caller rolls back.
pub fn evict(
    connection: &Connection,
    bytes: u64,
    runs_max: usize,
    floors: &mut Floors,
) -> rusqlite::Result<Evicted> {
    let order = [
        (Class::Telemetry, Rank::File),
        (Class::Telemetry, Rank::Process),
        (Class::Alert, Rank::Alert),
        (Class::Alert, Rank::Gap),
    ];
    let mut lost = Lost { wanted: bytes, runs_left: runs_max, ..Lost::default() };
    for (class, rank) in order {
        if !lost.is_enough() {
            lost.oldest(connection, class, rank, floors.0.get_mut(rank as usize))?;
        }
    }
    let mut evicted = lost.evicted;
    evicted.gaps = lost.gaps.into_iter().flatten().collect();
    Ok(evicted)
}

#[derive(Default)]
struct Lost {
    wanted: u64,
    runs_left: usize,
    evicted: Evicted,
    gaps: [Option<wire::Gap>; 2],
}

impl Lost {
    fn is_enough(&self) -> bool {
        self.runs_left == 0 || self.evicted.bytes + self.evicted.events * ROW_BYTES >= self.wanted
    }

    fn oldest(
        &mut self,
        connection: &Connection,
        class: Class,
        rank: Rank,
        floor: Option<&mut u64>,
    ) -> rusqlite::Result<()> {
        let table = class.name();
        // Only a gap's body says something that is needed.
        let body = if rank == Rank::Gap { "body" } else { "NULL" };
        let sql = format!(
            "SELECT seq, created, length(body), {body} FROM {table} WHERE seq > ? AND rank = ? ORDER BY seq"
        );
        let mut select = connection.prepare_cached(&sql)?;
        let begin = floor.as_ref().map_or(0, |floor| **floor);
        let mut rows = select.query([begin, rank as u64])?;
        let (mut last, mut exhausted) = (None, false);
        while !self.is_enough() {
            let Some(row) = rows.next()? else {
                exhausted = true;
                break;
            };
            let seq = self.take(class, row)?;
            if last.is_none_or(|last| seq != last + 1) {
                self.runs_left -= 1;
            }
            last = Some(seq);
        }
        drop(rows);
        if let Some(last) = last {
            let sql = format!("DELETE FROM {table} WHERE seq > ? AND rank = ? AND seq <= ?");
            connection.prepare_cached(&sql)?.execute([begin, rank as u64, last])?;
        }
        if let Some(floor) = floor {
            let newest = format!("SELECT coalesce(max(seq), 0) FROM {table}");
            let newest = if exhausted { connection.query_row(&newest, [], |row| row.get(0))? } else { 0 };
            *floor = begin.max(last.unwrap_or(0)).max(newest);
        }
        Ok(())
    }

    fn take(&mut self, class: Class, row: &Row<'_>) -> rusqlite::Result<u64> {
        let (seq, created, bytes): (u64, i64, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        self.evicted.events += 1;
        self.evicted.bytes += bytes;
        if class == Class::Alert {
            self.evicted.alert_last = self.evicted.alert_last.max(seq);
        }
        let body: Option<Vec<u8>> = row.get(3)?;
        let gap = body.and_then(|body| match wire::Event::decode(body.as_slice()).ok()?.kind {
            Some(Kind::Gap(gap)) => Some(gap),
            Some(_) | None => None,
        });
        self.evicted.gap_rows += u64::from(gap.is_some());
        match gap.filter(gaps::explains_numbers) {
            Some(gap) => {
                // Nothing is lost with it but its number: what it said is handed on.
                self.count(class, seq, seq, 0, (created, created));
                if let Some(class) = Class::from_wire(gap.class) {
                    let times = (gap.from_unix_ns, gap.to_unix_ns);
                    self.count(class, gap.first_seq, gap.last_seq, gap.count.unwrap_or(0), times);
                }
            }
            None => self.count(class, seq, seq, 1, (created, created)),
        }
        Ok(seq)
    }

    fn count(&mut self, class: Class, first: u64, last: u64, count: u64, times: (i64, i64)) {
        let slot = match class {
            Class::Alert => &mut self.gaps[0],
            Class::Telemetry => &mut self.gaps[1],
        };
        let gap = slot.get_or_insert_with(|| wire::Gap {
            reason: GapReason::OutboxBound as i32,
            count: Some(0),
            class: class.to_wire(),
            first_seq: first,
            last_seq: last,
            from_unix_ns: times.0,
            to_unix_ns: times.1,
            detail: String::new(),
        });
        gap.count = gap.count.map(|sum| sum.saturating_add(count));
        gap.first_seq = gap.first_seq.min(first);
        gap.last_seq = gap.last_seq.max(last);
        gap.from_unix_ns = gap.from_unix_ns.min(times.0);
        gap.to_unix_ns = gap.to_unix_ns.max(times.1);
    }
}
