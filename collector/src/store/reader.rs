//! Reading the store: by id for sinks, by filter and page for people. Own connections, short transactions.
//!
//! Assumes nothing of the writer but its files: days come and go while this reads. A day that can't be read is
//! reported and passed over.

use super::damage::{self, Columns, Damage};
use super::db::{self, kind_number};
use super::file::{self, DayFile};
use super::segments;
use anyhow::Context;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire::{self, event::Kind};

/// Rows that one statement looks at, so that no snapshot is held for long.
pub const WINDOW_ROWS: u64 = 50_000;
/// Rows of one answer.
pub const PAGE_ROWS_MAX: usize = 10_000;
/// Lanes whose names are kept in memory.
const LANES_KEPT_MAX: usize = 10_000;
/// Days whose connection stays open.
pub const OPEN_DAYS_MAX: usize = 16;

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Grows over all files; where a cursor stands.
    pub id: u64,
    /// Its name everywhere.
    pub event: EventId,
    /// Collector's wall clock, Unix nanoseconds.
    pub received_unix_ns: i64,
    /// The encoded event; empty when it is damaged.
    pub body: Vec<u8>,
    /// The disk made something else of it than what was stored.
    pub damaged: bool,
}

/// What to show. The default shows everything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only these; `None` for all.
    pub agents: Option<Vec<AgentId>>,
    /// Only these; empty for all.
    pub classes: Vec<Class>,
    /// Only these, by name (`detection`, `file`, …); empty for all.
    pub kinds: Vec<String>,
    /// This and above.
    pub severity_min: Option<wire::Severity>,
    /// A rule's name or id, whole.
    pub rule: Option<String>,
    /// Host's wall clock, Unix nanoseconds; this and later.
    pub since_unix_ns: Option<i64>,
    /// Host's wall clock, Unix nanoseconds; before this.
    pub until_unix_ns: Option<i64>,
}

/// A rolled-up counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Who.
    pub agent: AgentId,
    /// Which class.
    pub class: Class,
    /// Name of the kind; `unknown` for one from a newer agent.
    pub kind: &'static str,
    /// [`wire::Severity`] as its number.
    pub severity: i32,
    /// How many, over all days that are kept.
    pub events: u64,
}

/// Agent, class, number of the kind, severity.
type CountKey = (AgentId, Class, u32, i32);

/// Names of kinds, with their numbers in the contract and the class that all events of it have (`Class::of`).
const KINDS: [(&str, u32, Class); 6] = [
    ("detection", 10, Class::Alert),
    ("file", 11, Class::Telemetry),
    ("process", 12, Class::Telemetry),
    ("gap", 13, Class::Alert),
    ("health", 14, Class::Alert),
    ("audit", 15, Class::Alert),
];

/// Reads; not shared between threads.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    open: BTreeMap<PathBuf, Day>,
    damage: Arc<Damage>,
}

/// One day's file, open to be read.
#[derive(Debug)]
pub(super) struct Day {
    pub(super) connection: Connection,
    pub(super) version: i32,
    first_id: u64,
    lanes: HashMap<i64, (AgentId, u64, Class)>,
    damage: Arc<Damage>,
}

impl Reader {
    /// For the store in `folder`.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        Self::telling(folder, Arc::default())
    }

    /// As [`Reader::new`]; what it can't read is told there.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn telling(folder: &Path, damage: Arc<Damage>) -> anyhow::Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("could not read {}", folder.display()))?;
        Ok(Self { folder, open: BTreeMap::new(), damage })
    }

    /// What it could not read.
    #[must_use]
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    pub(super) fn damage_told(&self) -> Arc<Damage> {
        self.damage.clone()
    }

    /// The next events after `id`, ascending, of these classes (none: all), at most `limit`.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn after(&mut self, id: u64, classes: &[Class], limit: usize) -> anyhow::Result<Vec<Stored>> {
        let limit = limit.min(PAGE_ROWS_MAX);
        let filter = Filter { classes: classes.to_vec(), ..Filter::default() };
        let mut found = Vec::new();
        let days = self.days()?;
        for (index, day) in days.iter().enumerate() {
            let next_first = days.get(index + 1).and_then(|next| self.first_id(next));
            if found.len() >= limit || next_first.is_some_and(|first| first <= id.saturating_add(1)) {
                continue; // every id of this day is known to the caller
            }
            let left = limit - found.len();
            self.in_day(day, |day| day.ascending(id, &filter, left))
                .into_iter()
                .for_each(|rows| found.extend(rows));
        }
        Ok(found)
    }

    /// The newest events before `before` that pass the filter, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn page(
        &mut self,
        filter: &Filter,
        before: Option<u64>,
        limit: usize,
    ) -> anyhow::Result<Vec<Stored>> {
        let limit = limit.min(PAGE_ROWS_MAX);
        let before = before.unwrap_or(i64::MAX as u64);
        let mut found = Vec::new();
        for day in self.days()?.iter().rev() {
            let left = limit - found.len();
            if left == 0 {
                break;
            }
            self.in_day(day, |day| day.descending(before, filter, left))
                .into_iter()
                .for_each(|rows| found.extend(rows));
        }
        Ok(found)
    }

    /// One event by its name.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn one(&mut self, id: EventId) -> anyhow::Result<Option<Stored>> {
        for day in self.days()?.iter().rev() {
            if let Some(Some(stored)) = self.in_day(day, |day| day.one(id)) {
                return Ok(Some(stored));
            }
        }
        Ok(None)
    }

    /// Rolled-up counters of all days that are kept.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn counts(&mut self) -> anyhow::Result<Vec<Count>> {
        let mut sums: BTreeMap<CountKey, u64> = BTreeMap::new();
        for day in &self.days()? {
            for (key, events) in self.in_day(day, |day| day.counts()).unwrap_or_default() {
                *sums.entry(key).or_default() += events;
            }
        }
        let counts = sums.into_iter().map(|((agent, class, kind, severity), events)| {
            let kind =
                KINDS.iter().find(|(_, number, _)| *number == kind).map_or("unknown", |(name, ..)| name);
            Count { agent, class, kind, severity, events }
        });
        Ok(counts.collect())
    }

    pub(super) fn days(&mut self) -> anyhow::Result<Vec<DayFile>> {
        let days =
            file::list(&self.folder).with_context(|| format!("could not read {}", self.folder.display()))?;
        self.open.retain(|path, _| days.iter().any(|day| day.path == *path));
        Ok(days)
    }

    fn first_id(&mut self, day: &DayFile) -> Option<u64> {
        self.in_day(day, |day| Ok(day.first_id))
    }

    /// Reads one day; `None` when it can't be read, which is said in the log.
    fn in_day<T>(&mut self, day: &DayFile, read: impl FnOnce(&mut Day) -> rusqlite::Result<T>) -> Option<T> {
        if !self.open.contains_key(&day.path) && self.open.len() >= OPEN_DAYS_MAX {
            self.open.pop_first(); // the oldest day is read least
        }
        let opened = match self.open.remove(&day.path) {
            Some(open) => Ok(open),
            None => Day::open(&day.path, self.damage.clone()),
        };
        let result = opened.and_then(|mut open| {
            let answer = read(&mut open)?;
            self.open.insert(day.path.clone(), open);
            Ok(answer)
        });
        match &result {
            Ok(_) => self.damage.day_is_well(&day.path),
            Err(error) if day.path.exists() => self.damage.day(&day.path, error),
            Err(_) => {} // retention took it
        }
        result.ok()
    }
}

impl Day {
    pub(super) fn open(path: &Path, damage: Arc<Damage>) -> rusqlite::Result<Self> {
        let connection = file::open_to_read(path)?;
        let (first_id, _) = db::borders(&connection)?;
        let version = file::version(&connection)?;
        Ok(Self { connection, version, first_id, lanes: HashMap::new(), damage })
    }

    /// No id in it is below the first; from the second on it has every id that was given.
    pub(super) fn borders(&self) -> rusqlite::Result<(u64, u64)> {
        db::borders(&self.connection)
    }

    pub(super) fn first_id(&self) -> u64 {
        self.first_id
    }

    fn ascending(&mut self, after: u64, filter: &Filter, limit: usize) -> rusqlite::Result<Vec<Stored>> {
        let mut found = Vec::new();
        for class in classes(filter) {
            let mut rows =
                self.rows(class, filter, (after.saturating_add(1), i64::MAX as u64), "ASC", limit)?;
            found.append(&mut rows);
        }
        found.sort_by_key(|stored| stored.id);
        found.truncate(limit);
        Ok(found)
    }

    /// Whether a row that is there is found by its id.
    pub(super) fn leads_to(&self, class: Class, id: u64) -> rusqlite::Result<bool> {
        let sql = format!("SELECT 1 FROM {} WHERE id = ?", class.name());
        self.connection.prepare_cached(&sql)?.exists([id])
    }

    pub(super) fn lowest_from(&self, id: u64) -> rusqlite::Result<Option<u64>> {
        let sql = "SELECT min(id) FROM (SELECT min(id) AS id FROM alert WHERE id >= ?1
                   UNION ALL SELECT min(id) FROM telemetry WHERE id >= ?1)";
        self.connection.prepare_cached(sql)?.query_row([id], |row| row.get(0))
    }

    pub(super) fn highest_below(&self, id: u64) -> rusqlite::Result<Option<u64>> {
        let sql = "SELECT max(id) FROM (SELECT max(id) AS id FROM alert WHERE id < ?1
                   UNION ALL SELECT max(id) FROM telemetry WHERE id < ?1)";
        self.connection.prepare_cached(sql)?.query_row([id], |row| row.get(0))
    }

    pub(super) fn rows(
        &mut self,
        class: Class,
        filter: &Filter,
        ids: (u64, u64),
        direction: &str,
        limit: usize,
    ) -> rusqlite::Result<Vec<Stored>> {
        let Some((condition, values)) = self.condition(filter)? else { return Ok(Vec::new()) };
        let is_summed = self.is_summed();
        let sql = format!(
            "SELECT {} FROM {} WHERE id BETWEEN {} AND {}{condition} ORDER BY id {direction} LIMIT {limit}",
            self.columns(),
            class.name(),
            ids.0,
            ids.1
        );
        let found: Vec<(i64, Stored, Option<i64>)> = self
            .connection
            .prepare(&sql)?
            .query_map(params_from_iter(values), |row| stored(row, class, is_summed))?
            .collect::<rusqlite::Result<_>>()?;
        // A damaged inner page leads to the same rows again.
        let is_ordered = if direction == "ASC" { u64::lt } else { u64::gt };
        if !found
            .windows(2)
            .all(|pair| matches!(pair, [(_, one, _), (_, next, _)] if is_ordered(&one.id, &next.id)))
        {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(code, Some("its rows are not in order".into())));
        }
        found.into_iter().map(|(lane, row, left)| self.named(lane, row, left)).collect()
    }

    /// The rest of the WHERE clause; `None` when nothing can pass.
    pub(super) fn condition(&mut self, filter: &Filter) -> rusqlite::Result<Option<(String, Vec<Value>)>> {
        let (mut sql, mut values) = (String::new(), Vec::new());
        if let Some(agents) = &filter.agents {
            let lanes: Vec<String> = self.lanes_of(agents)?.iter().map(i64::to_string).collect();
            sql.push_str(&format!(" AND lane IN ({})", lanes.join(",")));
        }
        if !filter.kinds.is_empty() {
            let numbers: Vec<String> = kind_numbers(filter).iter().map(u32::to_string).collect();
            if numbers.is_empty() {
                return Ok(None);
            }
            sql.push_str(&format!(" AND kind IN ({})", numbers.join(",")));
        }
        if let Some(severity) = filter.severity_min {
            sql.push_str(" AND severity >= ?");
            values.push(Value::from(severity as i32));
        }
        if let Some(rule) = &filter.rule {
            sql.push_str(" AND instr(rules, ?) > 0");
            values.push(Value::from(format!("\n{}\n", one_line(rule))));
        }
        for (bound, operator) in [(filter.since_unix_ns, ">="), (filter.until_unix_ns, "<")] {
            if let Some(time) = bound {
                sql.push_str(&format!(" AND happened {operator} ?"));
                values.push(Value::from(time));
            }
        }
        Ok(Some((sql, values)))
    }

    fn one(&mut self, id: EventId) -> rusqlite::Result<Option<Stored>> {
        let Some(row) = self.find(id)? else { return Ok(None) };
        self.row(id.class, row, "", &[])
    }

    /// One row, when it passes the rest of a WHERE clause.
    pub(super) fn row(
        &mut self,
        class: Class,
        id: u64,
        condition: &str,
        values: &[Value],
    ) -> rusqlite::Result<Option<Stored>> {
        let is_summed = self.is_summed();
        let sql = format!("SELECT {} FROM {} WHERE id = ?{condition}", self.columns(), class.name());
        let values = [Value::from(id.cast_signed())].into_iter().chain(values.iter().cloned());
        let found = self
            .connection
            .prepare_cached(&sql)?
            .query_row(params_from_iter(values), |row| stored(row, class, is_summed))
            .optional()?;
        found.map(|(lane, row, left)| self.named(lane, row, left)).transpose()
    }

    fn counts(&mut self) -> rusqlite::Result<Vec<(CountKey, u64)>> {
        // One snapshot: a segment may be finished in the meantime.
        let snapshot = self.connection.unchecked_transaction()?;
        let mut counts = counted(&snapshot, "SELECT agent, class, kind, severity, events FROM count", 0)?;
        if self.version > 1 {
            let sql = "SELECT coalesce((SELECT max(segment) + 1 FROM segment), 0)";
            let segment: u64 = snapshot.query_row(sql, [], |row| row.get(0))?;
            for class in Class::ALL {
                let sql = format!(
                    "SELECT agent, class, kind, severity, count(*) FROM {} JOIN lane USING (lane) WHERE id >= ?
                     GROUP BY 1, 2, 3, 4",
                    class.name()
                );
                counts.append(&mut counted(&snapshot, &sql, segments::ids_of(segment).0)?);
            }
        }
        Ok(counts)
    }

    fn is_summed(&self) -> bool {
        self.version >= file::SUMMED_SINCE
    }

    /// What [`stored`] reads.
    fn columns(&self) -> &'static str {
        if self.is_summed() {
            "id, lane, seq, received, body, sum, happened, kind, severity, rules"
        } else {
            "id, lane, seq, received, body, NULL, happened, kind, severity, rules"
        }
    }

    fn named(&mut self, lane: i64, mut stored: Stored, left: Option<i64>) -> rusqlite::Result<Stored> {
        let known = self.lanes.get(&lane).copied().map_or_else(|| self.load_lane(lane), Ok);
        match known {
            Ok(key) => {
                stored.damaged |= left.is_some_and(|left| left != damage::lane_sum(key));
                stored.event = EventId { agent: key.0, epoch: key.1, class: key.2, ..stored.event };
            }
            Err(_) if left.is_some() || stored.damaged => stored.damaged = true, // whose it was can't be read
            Err(error) => return Err(error),
        }
        if stored.damaged {
            stored.body = Vec::new();
            self.damage.event(stored.id, stored.event);
        }
        Ok(stored)
    }

    /// One by one: a page shows few of a fleet's lanes.
    fn load_lane(&mut self, lane: i64) -> rusqlite::Result<(AgentId, u64, Class)> {
        let sql = "SELECT agent, epoch, class FROM lane WHERE lane = ?";
        let known = self.connection.prepare_cached(sql)?.query_row([lane], |row| {
            let class: i32 = row.get(2)?;
            let class =
                Class::from_wire(class).ok_or(rusqlite::Error::IntegralValueOutOfRange(2, class.into()))?;
            Ok((AgentId(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned(), class))
        })?;
        if self.lanes.len() >= LANES_KEPT_MAX {
            self.lanes.clear();
        }
        self.lanes.insert(lane, known);
        Ok(known)
    }

    /// The lanes of these agents.
    pub(super) fn lanes_of(&self, agents: &[AgentId]) -> rusqlite::Result<Vec<i64>> {
        let mut select = self.connection.prepare_cached("SELECT lane FROM lane WHERE agent = ?")?;
        let mut lanes = Vec::new();
        for agent in agents {
            for lane in select.query_map([agent.0], |row| row.get(0))? {
                lanes.push(lane?);
            }
        }
        Ok(lanes)
    }
}

fn counted(db: &Connection, sql: &str, from: u64) -> rusqlite::Result<Vec<(CountKey, u64)>> {
    let mut select = db.prepare(sql)?;
    let values = [from].into_iter().take(select.parameter_count());
    let rows = select.query_map(params_from_iter(values), |row| {
        let class: i32 = row.get(1)?;
        let class =
            Class::from_wire(class).ok_or(rusqlite::Error::IntegralValueOutOfRange(1, class.into()))?;
        Ok(((AgentId(row.get(0)?), class, row.get(2)?, row.get(3)?), row.get(4)?))
    })?;
    rows.collect()
}

/// The name of a kind, as filters have it; `unknown` for one from a newer agent.
#[must_use]
pub fn kind_name(kind: Option<&Kind>) -> &'static str {
    let number = kind_number(kind);
    KINDS.iter().find(|(_, known, _)| *known == number).map_or("unknown", |(name, ..)| name)
}

/// Numbers of the kinds that are asked for and can be of a class that is.
pub(super) fn kind_numbers(filter: &Filter) -> Vec<u32> {
    wanted_kinds(filter).map(|(number, _)| number).collect()
}

fn wanted_kinds(filter: &Filter) -> impl Iterator<Item = (u32, Class)> {
    let is_of = |class: &Class| filter.classes.is_empty() || filter.classes.contains(class);
    let wanted =
        move |name: &str, class: &Class| filter.kinds.iter().any(|kind| kind == name) && is_of(class);
    KINDS
        .iter()
        .filter(move |(name, _, class)| wanted(name, class))
        .map(|(_, number, class)| (*number, *class))
}

/// A rule's name as it is in the column `rules`.
pub(super) fn one_line(rule: &str) -> String {
    rule.replace('\n', " ")
}

/// The classes in which anything can pass: a kind says its class.
pub(super) fn classes(filter: &Filter) -> Vec<Class> {
    let wanted = |class: &Class| filter.classes.is_empty() || filter.classes.contains(class);
    let has_kind =
        |class: &Class| filter.kinds.is_empty() || wanted_kinds(filter).any(|(_, of)| of == *class);
    Class::ALL.into_iter().filter(|class| wanted(class) && has_kind(class)).collect()
}

/// A row and the number of its lane; and what is left of its sum without its columns, which [`damage::lane_sum`] has to
/// be. `None` where rows have none.
///
/// What was damaged may be below 0, or of another type: that costs its own row and no other.
fn stored(row: &Row<'_>, class: Class, is_summed: bool) -> rusqlite::Result<(i64, Stored, Option<i64>)> {
    let number = |index: usize| row.get::<_, i64>(index).ok();
    let (lane, seq, received) = (number(1), number(2), number(3));
    // A text has the same bytes.
    let body = row.get_ref(4)?.as_bytes_or_null().ok().flatten();
    let damaged = [lane, seq, received].contains(&None) || body.is_none();
    let seq = seq.unwrap_or(0).cast_unsigned();
    let mut stored = Stored {
        id: row.get(0)?,
        event: EventId { agent: AgentId([0; 16]), epoch: 0, class, seq },
        received_unix_ns: received.unwrap_or(0),
        body: body.unwrap_or_default().to_vec(),
        damaged,
    };
    let lane = lane.unwrap_or(0);
    if !is_summed {
        return Ok((lane, stored, None));
    }
    let left = if damaged { None } else { left_of_sum(row, class, lane, &stored).ok() };
    stored.damaged = left.is_none();
    Ok((lane, stored, left))
}

fn left_of_sum(row: &Row<'_>, class: Class, lane: i64, stored: &Stored) -> rusqlite::Result<i64> {
    let columns = Columns {
        class,
        id: stored.id,
        lane,
        seq: stored.event.seq,
        received: stored.received_unix_ns,
        happened: row.get(6)?,
        kind: row.get(7)?,
        severity: row.get(8)?,
        rules: row.get_ref(9)?.as_bytes_or_null()?,
        body: &stored.body,
    };
    Ok(row.get::<_, i64>(5)?.wrapping_sub(columns.sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_class_that_its_events_have() {
        let kinds = [
            Kind::Detection(Default::default()),
            Kind::File(Default::default()),
            Kind::Process(Default::default()),
            Kind::Gap(Default::default()),
            Kind::Health(Default::default()),
            Kind::Audit(Default::default()),
        ];
        assert_eq!(kinds.len(), KINDS.len());
        for (kind, (name, number, class)) in kinds.into_iter().zip(KINDS) {
            assert_eq!((kind_name(Some(&kind)), kind_number(Some(&kind))), (name, number));
            assert_eq!(Class::of(&wire::Event { kind: Some(kind), ..Default::default() }), Some(class));
        }
    }

    #[test]
    fn a_class_that_has_none_of_the_kinds_is_not_looked_at() {
        let of = |classes_wanted: &[Class], kinds: &[&str]| {
            let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
            classes(&Filter { classes: classes_wanted.to_vec(), kinds, ..Filter::default() })
        };
        assert_eq!(of(&[], &[]), Class::ALL);
        assert_eq!(of(&[Class::Alert], &[]), [Class::Alert]);
        assert_eq!(of(&[], &["file"]), [Class::Telemetry]);
        assert_eq!(of(&[], &["file", "gap"]), Class::ALL);
        assert_eq!(of(&[Class::Alert], &["file", "gap"]), [Class::Alert]);
        for nothing in [&["file"][..], &["process", "file"], &["nonsense"]] {
            assert_eq!(of(&[Class::Alert], nothing), [], "{nothing:?}");
        }
    }
}
