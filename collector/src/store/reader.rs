//! Reading the store: by id for sinks, by filter and page for people. Own connections, short transactions.
//!
//! Assumes nothing of the writer but its files: days come and go while this reads. A day that can't be read is
//! reported and passed over.

use super::db::kind_number;
use super::file::{self, DayFile};
use anyhow::Context;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire::{self, event::Kind};

/// Rows that one statement looks at, so that no snapshot is held for long.
pub const WINDOW_ROWS: u64 = 50_000;
/// Rows of one answer.
pub const PAGE_ROWS_MAX: usize = 10_000;
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
    /// The encoded event.
    pub body: Vec<u8>,
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

/// Names of kinds, with their numbers in the contract.
const KINDS: [(&str, u32); 6] =
    [("detection", 10), ("file", 11), ("process", 12), ("gap", 13), ("health", 14), ("audit", 15)];

/// Reads; not shared between threads.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    open: BTreeMap<PathBuf, Day>,
}

#[derive(Debug)]
struct Day {
    connection: Connection,
    first_id: u64,
    lanes: HashMap<i64, (AgentId, u64, Class)>,
}

impl Reader {
    /// For the store in `folder`.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("could not read {}", folder.display()))?;
        Ok(Self { folder, open: BTreeMap::new() })
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
            let kind = KINDS.iter().find(|(_, number)| *number == kind).map_or("unknown", |(name, _)| name);
            Count { agent, class, kind, severity, events }
        });
        Ok(counts.collect())
    }

    fn days(&mut self) -> anyhow::Result<Vec<DayFile>> {
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
            None => Day::open(&day.path),
        };
        let result = opened.and_then(|mut open| {
            let answer = read(&mut open)?;
            self.open.insert(day.path.clone(), open);
            Ok(answer)
        });
        result
            .inspect_err(|error| {
                if day.path.exists() {
                    tracing::error!(file = %day.path.display(), %error, "a day of the store can't be read and is passed over");
                }
            })
            .ok()
    }
}

impl Day {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = file::open_to_read(path)?;
        let first_id = connection.query_row("SELECT first_id FROM file", [], |row| row.get(0))?;
        Ok(Self { connection, first_id, lanes: HashMap::new() })
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

    /// Window by window, so that a filter that finds little holds no snapshot over the whole day.
    fn descending(&mut self, before: u64, filter: &Filter, limit: usize) -> rusqlite::Result<Vec<Stored>> {
        let sql = "SELECT min(i), max(a) FROM (SELECT min(id) AS i, max(id) AS a FROM alert
                   UNION ALL SELECT min(id), max(id) FROM telemetry)";
        let sql_range = self.connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (Some(lowest), Some(highest)): (Option<u64>, Option<u64>) = sql_range else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut upper = before.min(highest.saturating_add(1));
        while upper > lowest && found.len() < limit {
            let lower = upper.saturating_sub(WINDOW_ROWS).max(lowest);
            let mut window = Vec::new();
            for class in classes(filter) {
                window.append(&mut self.rows(
                    class,
                    filter,
                    (lower, upper - 1),
                    "DESC",
                    limit - found.len(),
                )?);
            }
            window.sort_by_key(|stored| std::cmp::Reverse(stored.id));
            window.truncate(limit - found.len());
            found.append(&mut window);
            // Ids may jump far, after a file was set aside: the next window begins at the next id there is.
            upper = self.highest_below(lower)?.map_or(lowest, |id| id.saturating_add(1));
        }
        Ok(found)
    }

    fn highest_below(&self, id: u64) -> rusqlite::Result<Option<u64>> {
        let sql = "SELECT max(id) FROM (SELECT max(id) AS id FROM alert WHERE id < ?1
                   UNION ALL SELECT max(id) FROM telemetry WHERE id < ?1)";
        self.connection.prepare_cached(sql)?.query_row([id], |row| row.get(0))
    }

    fn rows(
        &mut self,
        class: Class,
        filter: &Filter,
        ids: (u64, u64),
        direction: &str,
        limit: usize,
    ) -> rusqlite::Result<Vec<Stored>> {
        let Some((condition, values)) = self.condition(filter)? else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT id, lane, seq, received, body FROM {} WHERE id BETWEEN {} AND {}{condition} ORDER BY id {direction} LIMIT {limit}",
            class.name(),
            ids.0,
            ids.1
        );
        let found: Vec<(i64, Stored)> = self
            .connection
            .prepare(&sql)?
            .query_map(params_from_iter(values), |row| stored(row, class))?
            .collect::<rusqlite::Result<_>>()?;
        found.into_iter().map(|(lane, row)| self.named(lane, row)).collect()
    }

    /// The rest of the WHERE clause; `None` when nothing can pass.
    fn condition(&mut self, filter: &Filter) -> rusqlite::Result<Option<(String, Vec<Value>)>> {
        let (mut sql, mut values) = (String::new(), Vec::new());
        if let Some(agents) = &filter.agents {
            self.load_lanes()?;
            let lanes = self.lanes.iter().filter(|(_, (agent, ..))| agents.contains(agent));
            let lanes: Vec<String> = lanes.map(|(lane, _)| lane.to_string()).collect();
            sql.push_str(&format!(" AND lane IN ({})", lanes.join(",")));
        }
        if !filter.kinds.is_empty() {
            let wanted = KINDS.iter().filter(|(name, _)| filter.kinds.iter().any(|kind| kind == name));
            let numbers: Vec<String> = wanted.map(|(_, number)| number.to_string()).collect();
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
            values.push(Value::from(format!("\n{}\n", rule.replace('\n', " "))));
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
        let sql = "SELECT run.first_id + (?4 - run.first_seq) FROM run JOIN lane USING (lane)
                   WHERE agent = ?1 AND epoch = ?2 AND class = ?3 AND run.first_seq <= ?4 AND run.last_seq >= ?4
                   ORDER BY run.first_seq DESC LIMIT 1";
        let epoch = id.epoch.cast_signed();
        let Ok(seq) = i64::try_from(id.seq) else { return Ok(None) };
        let row: Option<u64> = self
            .connection
            .query_row(sql, (id.agent.0, epoch, id.class.to_wire(), seq), |row| row.get(0))
            .optional()?;
        let Some(row) = row else { return Ok(None) };
        let sql = format!("SELECT id, lane, seq, received, body FROM {} WHERE id = ?", id.class.name());
        let found = self.connection.query_row(&sql, [row], |row| stored(row, id.class)).optional()?;
        found.map(|(lane, row)| self.named(lane, row)).transpose()
    }

    fn counts(&mut self) -> rusqlite::Result<Vec<(CountKey, u64)>> {
        let mut select = self.connection.prepare("SELECT agent, class, kind, severity, events FROM count")?;
        let rows = select.query_map([], |row| {
            let class: i32 = row.get(1)?;
            let class =
                Class::from_wire(class).ok_or(rusqlite::Error::IntegralValueOutOfRange(1, class.into()))?;
            Ok(((AgentId(row.get(0)?), class, row.get(2)?, row.get(3)?), row.get(4)?))
        })?;
        rows.collect()
    }

    fn named(&mut self, lane: i64, mut stored: Stored) -> rusqlite::Result<Stored> {
        if !self.lanes.contains_key(&lane) {
            self.load_lanes()?; // a new agent, since this day was opened
        }
        let (agent, epoch, class) = *self.lanes.get(&lane).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        stored.event = EventId { agent, epoch, class, seq: stored.event.seq };
        Ok(stored)
    }

    fn load_lanes(&mut self) -> rusqlite::Result<()> {
        let marks = super::db::load_marks(&self.connection)?;
        self.lanes = marks.into_iter().map(|(key, mark)| (mark.lane, key)).collect();
        Ok(())
    }
}

/// The name of a kind, as filters have it; `unknown` for one from a newer agent.
#[must_use]
pub fn kind_name(kind: Option<&Kind>) -> &'static str {
    let number = kind_number(kind);
    KINDS.iter().find(|(_, known)| *known == number).map_or("unknown", |(name, _)| name)
}

fn classes(filter: &Filter) -> Vec<Class> {
    let wanted = |class: &Class| filter.classes.is_empty() || filter.classes.contains(class);
    Class::ALL.into_iter().filter(wanted).collect()
}

fn stored(row: &Row<'_>, class: Class) -> rusqlite::Result<(i64, Stored)> {
    let event = EventId { agent: AgentId([0; 16]), epoch: 0, class, seq: row.get(2)? };
    Ok((row.get(1)?, Stored { id: row.get(0)?, event, received_unix_ns: row.get(3)?, body: row.get(4)? }))
}
