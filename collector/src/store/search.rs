//! The newest events that pass a filter, and one event by its name, without looking at every row.
//!
//! A day is a row of stretches: segments that have an index, and rows between and after them that have none yet, at
//! most a segment's worth when nothing was damaged. In a segment the sets of all conditions are kept with each other,
//! so that rows are read only where they pass, but for the borders of times and rules whose keys collide: the row
//! itself decides. `reader` puts the days together.

use super::ids::Ids;
use super::reader::{Day, Filter, Stored, WINDOW_ROWS, classes, kind_numbers, one_line};
use super::segments::{self, Key};
use rusqlite::OptionalExtension;
use std::collections::HashSet;
use vidette_protocol::id::EventId;

/// More lanes than this are looked for by reading all of a segment's.
const LANES_SOUGHT_MAX: usize = 32;

/// A part of a day, by ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stretch {
    /// With an index.
    Indexed {
        segment: u64,
        /// The earliest and the latest time in it.
        happened: (i64, i64),
    },
    /// From this id until before that one.
    Plain { from: u64, to: u64 },
}

/// What a row has to be, by keys: something of each.
#[derive(Debug, Default)]
struct Wanted {
    conditions: Vec<Condition>,
    since_unix_ns: Option<i64>,
    until_unix_ns: Option<i64>,
}

#[derive(Debug)]
enum Condition {
    /// From and to, both included.
    Ranges(Vec<(i64, i64)>),
    /// One of so many that asking for each would take longer than reading all.
    Lanes(HashSet<i64>),
}

impl Day {
    /// The newest events before `before` that pass, newest first.
    pub(super) fn descending(
        &mut self,
        before: u64,
        filter: &Filter,
        limit: usize,
    ) -> rusqlite::Result<Vec<Stored>> {
        let mut found = Vec::new();
        if classes(filter).is_empty() {
            return Ok(found);
        }
        let wanted = self.wanted(filter)?;
        for stretch in self.stretches(before)? {
            if found.len() >= limit {
                break;
            }
            match (stretch, &wanted) {
                (Stretch::Plain { from, to }, _) => self.scan(from, to, filter, limit, &mut found)?,
                (Stretch::Indexed { segment, .. }, None) => {
                    let (from, to) = segments::ids_of(segment);
                    self.scan(from, to.min(before), filter, limit, &mut found)?;
                }
                (Stretch::Indexed { segment, happened }, Some(wanted)) => {
                    if let Some(ids) = self.candidates(segment, happened, wanted)? {
                        self.take(segment, &ids, before, filter, limit, &mut found)?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// The id of an event; `None` when it is not of this day.
    pub(super) fn find(&self, event: EventId) -> rusqlite::Result<Option<u64>> {
        let Ok(seq) = i64::try_from(event.seq) else { return Ok(None) };
        let (epoch, class) = (event.epoch.cast_signed(), event.class);
        let sql = "SELECT lane FROM lane WHERE agent = ? AND epoch = ? AND class = ?";
        let lane = self
            .connection
            .query_row(sql, (event.agent.0, epoch, class.to_wire()), |row| row.get::<_, i64>(0))
            .optional()?;
        let Some(lane) = lane else { return Ok(None) };
        for stretch in self.stretches(i64::MAX.cast_unsigned())? {
            let found = match stretch {
                Stretch::Plain { from, to } => {
                    let sql = format!(
                        "SELECT id FROM {} WHERE id >= ? AND id < ? AND lane = ? AND seq = ?",
                        class.name()
                    );
                    let values = (from, to, lane, seq);
                    self.connection.prepare_cached(&sql)?.query_row(values, |row| row.get(0)).optional()?
                }
                Stretch::Indexed { segment, .. } => self.find_in(segment, event, lane)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Numbers of a lane grow with its ids.
    fn find_in(&self, segment: u64, event: EventId, lane: i64) -> rusqlite::Result<Option<u64>> {
        let key = Key::Lane(lane).number();
        let ids = self.united(segment, &Condition::Ranges(vec![(key, key)]))?;
        let first = segments::ids_of(segment).0;
        let places: Vec<u64> = ids.descending().collect();
        let sql = format!("SELECT seq FROM {} WHERE id = ?", event.class.name());
        let mut select = self.connection.prepare_cached(&sql)?;
        let (mut from, mut to) = (0, places.len());
        while from < to {
            let middle = (from + to) / 2;
            let Some(id) = places.get(middle).map(|place| first + place) else { break };
            let seq: u64 = select.query_row([id], |row| row.get(0))?;
            match seq.cmp(&event.seq) {
                std::cmp::Ordering::Equal => return Ok(Some(id)),
                std::cmp::Ordering::Greater => from = middle + 1, // the newest are first
                std::cmp::Ordering::Less => to = middle,
            }
        }
        Ok(None)
    }

    /// What this day consists of below `before`, newest first.
    fn stretches(&self, before: u64) -> rusqlite::Result<Vec<Stretch>> {
        // One of each at a time: SQLite looks for both ends of a table by reading all of it.
        let sql = "SELECT (SELECT min(id) FROM alert), (SELECT min(id) FROM telemetry),
                   (SELECT max(id) FROM alert), (SELECT max(id) FROM telemetry)";
        let ends: [Option<u64>; 4] = self
            .connection
            .query_row(sql, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        let [alert, telemetry, last_alert, last_telemetry] = ends;
        let lowest = alert.into_iter().chain(telemetry).min();
        let (Some(lowest), Some(highest)) = (lowest, last_alert.max(last_telemetry)) else {
            return Ok(Vec::new());
        };
        let mut upper = before.min(highest.saturating_add(1));
        let mut all = Vec::new();
        if self.version > 1 && upper > lowest {
            let sql = "SELECT segment, happened_min, happened_max FROM segment WHERE segment <= ?
                       ORDER BY segment DESC";
            let mut select = self.connection.prepare_cached(sql)?;
            let mut rows = select.query([segments::of(upper - 1)])?;
            while let Some(row) = rows.next()? {
                let (segment, happened) = (row.get(0)?, (row.get(1)?, row.get(2)?));
                let (from, to) = segments::ids_of(segment);
                if to < upper {
                    all.push(Stretch::Plain { from: to, to: upper });
                }
                all.push(Stretch::Indexed { segment, happened });
                upper = upper.min(from);
            }
        }
        if upper > lowest {
            all.push(Stretch::Plain { from: lowest, to: upper });
        }
        Ok(all)
    }

    /// Row by row. Window by window, so that a filter that finds little holds no snapshot over the whole day.
    fn scan(
        &mut self,
        from: u64,
        to: u64,
        filter: &Filter,
        limit: usize,
        found: &mut Vec<Stored>,
    ) -> rusqlite::Result<()> {
        let mut upper = to;
        while upper > from && found.len() < limit {
            let lower = upper.saturating_sub(WINDOW_ROWS).max(from);
            let left = limit - found.len();
            let mut window = Vec::new();
            for class in classes(filter) {
                window.append(&mut self.rows(class, filter, (lower, upper - 1), "DESC", left)?);
            }
            window.sort_by_key(|stored| std::cmp::Reverse(stored.id));
            window.truncate(left);
            found.append(&mut window);
            // Ids may jump far, after a file was set aside: the next window begins at the next id there is.
            upper = self.highest_below(lower)?.map_or(from, |id| id.saturating_add(1));
        }
        Ok(())
    }

    /// Reads the rows of a segment that may pass.
    fn take(
        &mut self,
        segment: u64,
        ids: &Ids,
        before: u64,
        filter: &Filter,
        limit: usize,
        found: &mut Vec<Stored>,
    ) -> rusqlite::Result<()> {
        // All the rest is exact.
        let uncertain = Filter {
            rule: filter.rule.clone(),
            since_unix_ns: filter.since_unix_ns,
            until_unix_ns: filter.until_unix_ns,
            ..Filter::default()
        };
        let Some((condition, values)) = self.condition(&uncertain)? else { return Ok(()) };
        let first = segments::ids_of(segment).0;
        for id in ids.descending().map(|place| first + place).filter(|id| *id < before) {
            if found.len() >= limit {
                break;
            }
            for class in classes(filter) {
                if let Some(stored) = self.row(class, id, &condition, &values)? {
                    found.push(stored);
                    break;
                }
            }
        }
        Ok(())
    }

    /// What a filter asks for; `None` when it is quicker to read on, because nearly every row passes.
    fn wanted(&self, filter: &Filter) -> rusqlite::Result<Option<Wanted>> {
        let mut conditions = Vec::new();
        if let Some(agents) = &filter.agents {
            let lanes = self.lanes_of(agents)?.into_iter().map(|lane| Key::Lane(lane).number());
            let lanes: HashSet<i64> = lanes.collect();
            conditions.push(if lanes.len() <= LANES_SOUGHT_MAX {
                Condition::each(lanes)
            } else {
                Condition::Lanes(lanes)
            });
        }
        if let Some(rule) = filter.rule.as_deref().map(one_line).filter(|rule| !rule.is_empty()) {
            conditions.push(Condition::each([Key::Rule(&rule).number()]));
        }
        if let Some(severity) = filter.severity_min {
            let (from, to) = (Key::Severity(severity as i32), Key::Severity(i32::MAX));
            conditions.push(Condition::Ranges(vec![(from.number(), to.number())]));
        }
        if !filter.kinds.is_empty() {
            let kinds = kind_numbers(filter).into_iter().map(|kind| Key::Kind(kind).number());
            conditions.push(Condition::each(kinds));
        }
        let (since_unix_ns, until_unix_ns) = (filter.since_unix_ns, filter.until_unix_ns);
        if conditions.is_empty() && since_unix_ns.is_none() && until_unix_ns.is_none() {
            return Ok(None);
        }
        // A kind has said its class already.
        if !filter.classes.is_empty() && filter.kinds.is_empty() {
            let classes = filter.classes.iter().map(|class| Key::Class(*class).number());
            conditions.push(Condition::each(classes));
        }
        Ok(Some(Wanted { conditions, since_unix_ns, until_unix_ns }))
    }

    /// Ids that fulfil everything, as far as the index says; `None` when there are none.
    fn candidates(
        &self,
        segment: u64,
        happened: (i64, i64),
        wanted: &Wanted,
    ) -> rusqlite::Result<Option<Ids>> {
        let Some(minutes) = wanted.minutes(happened) else { return Ok(None) };
        let mut ids = Ids::all();
        for condition in wanted.conditions.iter().chain(&minutes) {
            ids.keep(&self.united(segment, condition)?);
            if ids.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(ids))
    }

    /// Ids that fulfil one condition.
    fn united(&self, segment: u64, condition: &Condition) -> rusqlite::Result<Ids> {
        let all_lanes = [(Key::Lane(0).number(), Key::Lane(i64::MAX).number())];
        let (ranges, lanes) = match condition {
            Condition::Ranges(ranges) => (ranges.as_slice(), None),
            Condition::Lanes(lanes) => (all_lanes.as_slice(), Some(lanes)),
        };
        let mut ids = Ids::none();
        let sql = "SELECT key, ids FROM entry WHERE segment = ? AND key BETWEEN ? AND ?";
        let mut select = self.connection.prepare_cached(sql)?;
        for (from, to) in ranges {
            let mut rows = select.query((segment, from, to))?;
            while let Some(row) = rows.next()? {
                if lanes.is_some_and(|lanes| row.get(0).is_ok_and(|key: i64| !lanes.contains(&key))) {
                    continue;
                }
                let stored = row.get_ref(1)?.as_blob()?;
                ids.add(stored).map_err(|_| {
                    rusqlite::Error::IntegralValueOutOfRange(1, i64::try_from(stored.len()).unwrap_or(0))
                })?;
            }
        }
        Ok(ids)
    }
}

impl Condition {
    fn each(keys: impl IntoIterator<Item = i64>) -> Self {
        Self::Ranges(keys.into_iter().map(|key| (key, key)).collect())
    }
}

impl Wanted {
    /// The condition on time for a segment, or none when all of it is within; `None` when none of it is.
    fn minutes(&self, (earliest, latest): (i64, i64)) -> Option<Option<Condition>> {
        let since = self.since_unix_ns.unwrap_or(i64::MIN);
        let until = self.until_unix_ns.unwrap_or(i64::MAX);
        if latest < since || earliest > until || (earliest == until && self.until_unix_ns.is_some()) {
            return None;
        }
        if earliest >= since && (latest < until || self.until_unix_ns.is_none()) {
            return Some(None);
        }
        Some(Some(Condition::Ranges(vec![(Key::Minute(since).number(), Key::Minute(until).number())])))
    }
}
