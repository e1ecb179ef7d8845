//! Every event of every day looked at once more: what was damaged is found before somebody needs it.
//!
//! SQLite does not notice when a flipped bit in an old day's page makes it pass over rows. Ids do: they have no holes
//! (`db`), from where a day began to where the next one did. So this counts them, reads every row against its sum, and
//! makes every index again, to compare it. Works in small pieces, so that whoever calls it can wait between them; keeps no
//! snapshot open. A `Damage` is told what it finds.

use super::damage::Damage;
use super::file::DayFile;
use super::reader::{Day, Filter, Reader};
use super::segments;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use vidette_protocol::id::Class;

/// Ids that one piece has.
pub const PIECE_IDS: u64 = 2048;
/// Where a piece can't be read: so many ids are given up together.
const LOST_TOGETHER: u64 = 64;
/// After so many pieces on end of which nothing can be read, a day is given up.
const UNREADABLE_PIECES_MAX: u32 = 1024;

const _: () = assert!(segments::SEGMENT_IDS.is_multiple_of(PIECE_IDS));
const _: () =
    assert!(PIECE_IDS.is_multiple_of(LOST_TOGETHER) && PIECE_IDS as usize <= super::reader::PAGE_ROWS_MAX);

/// What was found in one day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The day the file was begun, YYYYMMDD, UTC.
    pub day: String,
    /// Its name.
    pub file: String,
    /// Rows that are there.
    pub events: u64,
    /// Of them those whose content is not what was stored.
    pub damaged: u64,
    /// Ids that were given and whose row can't be found.
    pub missing: u64,
    /// Parts of the index, of 16,384 ids each, that do not say what the rows do: filters may pass over events there.
    pub wrong_indexes: u64,
    /// Why it can't be read, or not in one go: readers pass over the day then, though its rows may all be there.
    pub unreadable: Option<String>,
}

impl Checked {
    /// Everything is as it was stored.
    #[must_use]
    pub fn is_well(&self) -> bool {
        (self.damaged, self.missing, self.wrong_indexes) == (0, 0, 0) && self.unreadable.is_none()
    }
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// So many ids were looked at, of so many in this day.
    Looked(u64, u64),
    /// A day is done.
    Day(Checked),
}

/// A check that is under way.
#[derive(Debug)]
pub struct Check {
    damage: Arc<Damage>,
    days: VecDeque<DayFile>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    file: DayFile,
    day: Day,
    /// From this id on there is no hole: those before it were saved from another file.
    whole_from: u64,
    next: u64,
    /// After its last id.
    end: u64,
    /// In the segment that is being looked at no row was damaged or missing.
    segment_is_well: bool,
    /// Pieces on end of which nothing could be read.
    unreadable: u32,
    found: Checked,
}

impl Check {
    /// Of all days that this reader sees now.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn begin(reader: &mut Reader) -> anyhow::Result<Self> {
        Ok(Self { damage: reader.damage_told(), days: reader.days()?.into(), current: None })
    }

    /// Looks at the next piece; `None` when all days are done.
    pub fn step(&mut self) -> Option<Step> {
        let Some(current) = &mut self.current else {
            let file = self.days.pop_front()?;
            return Some(match self.open(&file) {
                Ok(current) => {
                    let ids = current.end - current.next;
                    self.current = Some(current);
                    Step::Looked(0, ids)
                }
                Err(error) => Step::Day(self.unreadable(&file, &error)),
            });
        };
        if current.next < current.end {
            current.piece();
            let begun = current.begun();
            return Some(Step::Looked(current.next - begun, current.end - begun));
        }
        let Current { file, found, .. } = self.current.take()?;
        if file.path.exists() {
            self.damage.checked(&file.path, &found);
            found.unreadable.iter().for_each(|error| self.damage.day(&file.path, error));
        }
        Some(Step::Day(found))
    }

    /// Until the end.
    pub fn run(&mut self) -> Vec<Checked> {
        let days = std::iter::from_fn(|| self.step());
        days.filter_map(|step| if let Step::Day(found) = step { Some(found) } else { None }).collect()
    }

    fn open(&self, file: &DayFile) -> rusqlite::Result<Current> {
        let day = Day::open(&file.path, self.damage.clone())?;
        let (first, whole_from) = day.borders()?;
        let last = day.highest_below(i64::MAX as u64)?.map_or(0, |id| id + 1);
        // Where the next file was made after damage, nobody knows the end of this one.
        let follower = self.days.front().filter(|next| next.number == file.number + 1);
        let end = follower
            .and_then(|next| Day::open(&next.path, self.damage.clone()).ok()?.borders().ok())
            .filter(|(first, whole_from)| first == whole_from)
            .map_or(last, |(first, _)| first);
        let found = Checked { day: file.label.clone(), file: name(file), ..Checked::default() };
        let next = first.min(whole_from);
        let end = end.max(next);
        Ok(Current {
            file: file.clone(),
            day,
            whole_from,
            next,
            end,
            segment_is_well: true,
            unreadable: 0,
            found,
        })
    }

    fn unreadable(&self, file: &DayFile, error: &rusqlite::Error) -> Checked {
        let found = Checked {
            day: file.label.clone(),
            file: name(file),
            unreadable: Some(error.to_string()),
            ..Checked::default()
        };
        // Otherwise retention took it meanwhile.
        if file.path.exists() {
            self.damage.day(&file.path, error);
        }
        found
    }
}

impl Current {
    fn begun(&self) -> u64 {
        self.day.first_id().min(self.whole_from)
    }

    /// The next ids, up to the end of a piece.
    fn piece(&mut self) {
        // However far apart two ids are, a damaged border of the day included.
        match self.day.lowest_from(self.next) {
            Ok(lowest) => {
                let lowest = lowest.unwrap_or(self.end).min(self.end);
                self.miss(lowest.saturating_sub(self.next.max(self.whole_from)));
                if segments::of(lowest) > segments::of(self.next) {
                    self.segment_is_well = segments::ids_of(segments::of(lowest)).0 == lowest;
                }
                self.next = lowest.max(self.next);
            }
            // SQLite says so of a page once, and then reads it as it is.
            Err(error) => self.fails(&error),
        }
        let (first, end) = (self.next, (self.next / PIECE_IDS + 1).saturating_mul(PIECE_IDS).min(self.end));
        self.next = end;
        match self.look(first, end) {
            Ok(()) => self.unreadable = 0,
            Err(error) => {
                self.fails(&error);
                self.look_at_parts(first, end);
            }
        }
        let (segment, last) = (segments::of(first), segments::ids_of(segments::of(first)).1);
        if end == last || end == self.end {
            // Rows that are wrong make it wrong too; that is told once.
            if self.segment_is_well && !segments::is_right(&self.day.connection, segment).unwrap_or(false) {
                self.found.wrong_indexes += 1;
            }
            self.segment_is_well = true;
        }
    }

    /// A piece that can't be read as a whole.
    fn look_at_parts(&mut self, first: u64, end: u64) {
        self.unreadable += 1;
        for part in (first..end).step_by(LOST_TOGETHER as usize) {
            let part_end = (part + LOST_TOGETHER).min(end);
            match self.look(part, part_end) {
                Ok(()) => self.unreadable = 0,
                Err(_) if self.unreadable > UNREADABLE_PIECES_MAX => {
                    self.miss(self.end - part);
                    self.next = self.end;
                    return;
                }
                Err(_) => self.miss(part_end - part),
            }
        }
    }

    fn look(&mut self, first: u64, end: u64) -> rusqlite::Result<()> {
        if first >= end {
            return Ok(());
        }
        let (mut ids, mut damaged, mut lost) = (Vec::new(), 0, false);
        for class in Class::ALL {
            let limit = super::reader::PAGE_ROWS_MAX;
            for row in self.day.rows(class, &Filter::default(), (first, end - 1), "ASC", limit)? {
                ids.push(row.id);
                damaged += u64::from(row.damaged);
                // A damaged inner page leads elsewhere: whoever reads on meets the row, and a filter does not.
                lost |= !self.day.leads_to(class, row.id)?;
            }
        }
        let rows = ids.len();
        ids.sort_unstable();
        ids.dedup();
        // An id in both tables: one of them is not what was stored.
        damaged += (rows - ids.len()) as u64;
        self.found.events += ids.len() as u64;
        self.found.damaged += damaged;
        self.found.wrong_indexes += u64::from(lost);
        self.segment_is_well &= damaged == 0 && !lost;
        let expected = end.saturating_sub(first.max(self.whole_from));
        let there = ids.iter().filter(|id| **id >= self.whole_from).count() as u64;
        self.miss(expected.saturating_sub(there));
        Ok(())
    }

    fn fails(&mut self, error: &rusqlite::Error) {
        self.found.unreadable.get_or_insert_with(|| error.to_string());
    }

    fn miss(&mut self, ids: u64) {
        self.found.missing += ids;
        self.segment_is_well &= ids == 0;
    }
}

fn name(file: &DayFile) -> String {
    file.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
