//! What of the store can't be read any more: rows that do not fit their sum, days that SQLite refuses. Told once each,
//! counted for `vidette status` and `/metrics`.
//!
//! Assumes a disk that may change any bit. `reader` asks it about every row; `db` and `salvage` write the sums.

use super::check::Checked;
use super::db::{LaneKey, Mark};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vidette_protocol::id::{Class, EventId};

/// Events and days that are remembered, each: beyond it nothing more is told or counted.
pub const TOLD_MAX: usize = 4096;

/// What of a row is in its sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) class: Class,
    pub(super) id: u64,
    pub(super) lane: i64,
    pub(super) seq: u64,
    pub(super) received: i64,
    pub(super) happened: i64,
    pub(super) kind: u32,
    pub(super) severity: i32,
    pub(super) rules: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
}

impl Columns<'_> {
    /// The first bytes of BLAKE3 over all of them, each at its place or behind its length.
    pub(super) fn sum(&self) -> i64 {
        let rules = self.rules.unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&self.class.to_wire().to_le_bytes())
            .update(&self.id.to_le_bytes())
            .update(&self.lane.to_le_bytes())
            .update(&self.seq.to_le_bytes())
            .update(&self.received.to_le_bytes())
            .update(&self.happened.to_le_bytes())
            .update(&self.kind.to_le_bytes())
            .update(&self.severity.to_le_bytes())
            .update(&[u8::from(self.rules.is_some())])
            .update(&(rules.len() as u64).to_le_bytes())
            .update(rules)
            .update(self.body);
        beginning(&hasher)
    }
}

/// Added to the sum of a row: whose it is. The row itself has only the number of its lane.
pub(super) fn lane_sum((agent, epoch, class): LaneKey) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&agent.0).update(&epoch.to_le_bytes()).update(&class.to_wire().to_le_bytes());
    beginning(&hasher)
}

/// Of a lane's own row: its number, whose it is, and how far it is stored.
pub(super) fn mark_sum(key: LaneKey, mark: Mark) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&lane_sum(key).to_le_bytes())
        .update(&mark.lane.to_le_bytes())
        .update(&mark.seq.to_le_bytes());
    beginning(&hasher)
}

/// Of the ids between which a file's rows are.
pub(super) fn borders_sum(first_id: u64, next_id: u64) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&first_id.to_le_bytes()).update(&next_id.to_le_bytes());
    beginning(&hasher)
}

fn beginning(hasher: &blake3::Hasher) -> i64 {
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    i64::from_le_bytes(first)
}

/// What was met since the start, over all readers.
#[derive(Debug, Default)]
pub struct Damage {
    events: Mutex<BTreeSet<u64>>,
    days: Mutex<BTreeSet<PathBuf>>,
    /// Days in which the last check found something missing: events, and parts of the index.
    missing: Mutex<BTreeMap<PathBuf, (u64, u64)>>,
}

impl Damage {
    /// A row that is not what was stored.
    pub(super) fn event(&self, id: u64, event: EventId) {
        if first(&self.events, &id) {
            tracing::error!(number = id, %event, "a stored event was damaged on disk: it is listed without content; check the disk");
        }
    }

    /// A day that can't be read.
    pub(super) fn day(&self, path: &Path, error: &impl std::fmt::Display) {
        if first(&self.days, path) {
            tracing::error!(file = %path.display(), %error, "a day of the store can't be read and is passed over; check the disk");
        }
    }

    /// It can be read again: another reader had it, or somebody mended it.
    pub(super) fn day_is_well(&self, path: &Path) {
        lock(&self.days).remove(path);
    }

    /// What a check found in a day, in place of what it found there before.
    pub(super) fn checked(&self, path: &Path, found: &Checked) {
        let now = (found.missing, found.wrong_indexes);
        let mut missing = lock(&self.missing);
        let before = if now == (0, 0) { missing.remove(path) } else { missing.get(path).copied() };
        if now == (0, 0) || before == Some(now) || (before.is_none() && missing.len() >= TOLD_MAX) {
            return;
        }
        missing.insert(path.to_owned(), now);
        let (events, indexes) = now;
        tracing::error!(
            file = %path.display(), events, indexes,
            "events of a stored day can't be found any more, or its index is wrong; check the disk, restore a backup"
        );
    }

    /// Days that are gone can miss nothing.
    pub(super) fn forget_gone(&self) {
        lock(&self.missing).retain(|path, _| path.exists());
        lock(&self.days).retain(|path| path.exists());
    }

    /// Events that the last check of their day could not find, and parts of indexes that it found wrong.
    #[must_use]
    pub fn missing(&self) -> (u64, u64) {
        let missing = lock(&self.missing);
        missing.values().fold((0, 0), |sum, day| (sum.0 + day.0, sum.1 + day.1))
    }

    /// Events that were met without their content.
    #[must_use]
    pub fn events(&self) -> u64 {
        lock(&self.events).len() as u64
    }

    /// Days that can't be read now.
    #[must_use]
    pub fn days(&self) -> u64 {
        lock(&self.days).len() as u64
    }
}

fn first<Key, Asked>(told: &Mutex<BTreeSet<Key>>, key: &Asked) -> bool
where
    Key: Ord + std::borrow::Borrow<Asked>,
    Asked: Ord + ToOwned<Owned = Key> + ?Sized,
{
    let mut told = lock(told);
    !told.contains(key) && told.len() < TOLD_MAX && told.insert(key.to_owned())
}

fn lock<Told>(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    // Sets and maps are whole whoever panicked while holding one.
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vidette_protocol::id::AgentId;

    #[test]
    fn every_column_is_in_the_sum() {
        let all = Columns {
            class: Class::Alert,
            id: 1,
            lane: 2,
            seq: 3,
            received: 4,
            happened: 5,
            kind: 6,
            severity: 7,
            rules: Some(b"r"),
            body: b"b",
        };
        let others = [
            Columns { class: Class::Telemetry, ..all },
            Columns { id: 9, ..all },
            Columns { lane: 9, ..all },
            Columns { seq: 9, ..all },
            Columns { received: 9, ..all },
            Columns { happened: 9, ..all },
            Columns { kind: 9, ..all },
            Columns { severity: 9, ..all },
            Columns { rules: None, ..all },
            Columns { rules: Some(b""), ..all },
            Columns { rules: Some(b"rb"), body: b"", ..all },
            Columns { rules: Some(b""), body: b"rb", ..all },
        ];
        let sums: BTreeSet<i64> = others.iter().chain([&all]).map(Columns::sum).collect();
        assert_eq!(sums.len(), others.len() + 1);
    }

    #[test]
    fn whose_a_lane_is_and_how_far_it_is_stored_are_in_its_sum() {
        let (agent, key) = (AgentId([1; 16]), (AgentId([1; 16]), 2, Class::Alert));
        let mark = Mark { lane: 3, seq: 4 };
        let others = [
            ((AgentId([9; 16]), 2, Class::Alert), mark),
            ((agent, 9, Class::Alert), mark),
            ((agent, 2, Class::Telemetry), mark),
            (key, Mark { lane: 9, ..mark }),
            (key, Mark { seq: 9, ..mark }),
            (key, Mark { lane: 4, seq: 3 }),
        ];
        let sums: BTreeSet<i64> =
            others.into_iter().chain([(key, mark)]).map(|(key, mark)| mark_sum(key, mark)).collect();
        assert_eq!(sums.len(), others.len() + 1);
    }

    #[test]
    fn each_is_counted_once_and_a_day_no_more_when_it_is_well() {
        let damage = Damage::default();
        let event = "00000000000000000000000000000001/0000000000000001/alert/1";
        if let Ok(event) = event.parse::<EventId>() {
            damage.event(7, event);
            damage.event(7, event);
        }
        let error = rusqlite::Error::QueryReturnedNoRows;
        damage.day(Path::new("/d"), &error);
        assert_eq!((damage.events(), damage.days()), (1, 1));
        damage.day_is_well(Path::new("/d"));
        assert_eq!(damage.days(), 0);
    }
}
