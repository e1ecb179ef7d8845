//! The bound in bytes (D4): what goes first, and the `gap` events that count it.
//!
//! Works inside the caller's transaction. A gap event that has to go itself is folded into the new one, so
//! that a number once explained stays explained.

use prost::Message;
use rusqlite::{Connection, Row};
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, GapReason, event::Kind};

use super::db::ROW_BYTES;

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
    /// One for each class that lost something, without a text.
    pub gaps: Vec<wire::Gap>,
}

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

/// Removes at least `bytes` when there is as much: lowest rank first, oldest first.
///
/// # Errors
/// SQLite's; the caller rolls back.
pub fn evict(connection: &Connection, bytes: u64) -> rusqlite::Result<Evicted> {
    let order = [
        (Class::Telemetry, Rank::File),
        (Class::Telemetry, Rank::Process),
        (Class::Alert, Rank::Alert),
        (Class::Alert, Rank::Gap),
    ];
    let mut lost = Lost { wanted: bytes, ..Lost::default() };
    for (class, rank) in order {
        if lost.freed() < lost.wanted {
            lost.oldest(connection, class, rank)?;
        }
    }
    Ok(Evicted { events: lost.events, bytes: lost.bytes, gaps: lost.gaps.into_iter().flatten().collect() })
}

#[derive(Default)]
struct Lost {
    wanted: u64,
    events: u64,
    bytes: u64,
    gaps: [Option<wire::Gap>; 2],
}

impl Lost {
    fn freed(&self) -> u64 {
        self.bytes + self.events * ROW_BYTES
    }

    fn oldest(&mut self, connection: &Connection, class: Class, rank: Rank) -> rusqlite::Result<()> {
        let table = class.name();
        // Only a gap's body says something that is needed.
        let body = if rank == Rank::Gap { "body" } else { "NULL" };
        let sql =
            format!("SELECT seq, created, length(body), {body} FROM {table} WHERE rank = ? ORDER BY seq");
        let mut select = connection.prepare_cached(&sql)?;
        let mut rows = select.query([rank as i64])?;
        let mut last = None;
        while self.freed() < self.wanted {
            let Some(row) = rows.next()? else { break };
            last = Some(self.take(class, row)?);
        }
        drop(rows);
        if let Some(last) = last {
            let sql = format!("DELETE FROM {table} WHERE rank = ? AND seq <= ?");
            connection.prepare_cached(&sql)?.execute([rank as u64, last])?;
        }
        Ok(())
    }

    fn take(&mut self, class: Class, row: &Row<'_>) -> rusqlite::Result<u64> {
        let (seq, created, bytes): (u64, i64, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        self.events += 1;
        self.bytes += bytes;
        self.count(class, seq, seq, 1, (created, created));
        let body: Option<Vec<u8>> = row.get(3)?;
        if let Some(Kind::Gap(gap)) = body.and_then(|body| wire::Event::decode(body.as_slice()).ok()?.kind) {
            self.fold(&gap);
        }
        Ok(seq)
    }

    /// A gap that goes away hands its numbers on.
    fn fold(&mut self, gap: &wire::Gap) {
        let explains = [GapReason::OutboxBound, GapReason::Poison, GapReason::StoreRestored];
        if let Some(class) = Class::from_wire(gap.class)
            && explains.iter().any(|&reason| reason as i32 == gap.reason)
            && gap.first_seq > 0
        {
            let times = (gap.from_unix_ns, gap.to_unix_ns);
            self.count(class, gap.first_seq, gap.last_seq, gap.count.unwrap_or(0), times);
        }
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
