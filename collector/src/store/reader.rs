//! Reading, for sinks and commands: connections of its own, short transactions, pages by key and never by offset.

use super::Stored;
use super::file::{self, Kind};
use super::writer::{Book, Shelf};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Row, params_from_iter};
use std::sync::Arc;
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire;

/// Open connections of one reader; days that are read one after the other need few.
const CONNECTIONS_MAX: usize = 4;
/// Events in one page.
const PAGE_EVENTS_MAX: usize = 100_000;

const COLUMNS: &str = "id, agent, epoch, seq, received, body";

/// What a list shows. Everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these agents.
    pub agents: Option<Vec<AgentId>>,
    /// Of these classes; none means all.
    pub classes: Vec<Class>,
    /// Of these kinds, by name; none means all. A name that is not known matches nothing.
    pub kinds: Vec<String>,
    /// At least this severe.
    pub severity_min: Option<wire::Severity>,
    /// A rule of this name or id matched.
    pub rule: Option<String>,
    /// By the host's clock, Unix nanoseconds, inclusive.
    pub since_unix_ns: Option<i64>,
    /// By the host's clock, Unix nanoseconds, exclusive.
    pub until_unix_ns: Option<i64>,
}

/// Reads all files.
#[derive(Debug)]
pub struct Reader {
    shelf: Arc<Shelf>,
    open: Vec<(u32, Connection)>,
}

impl Reader {
    pub(super) fn new(shelf: Arc<Shelf>) -> Self {
        Self { shelf, open: Vec::new() }
    }

    /// Events with an id over `id`, lowest first.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn after(&mut self, id: u64, classes: &[Class], limit: usize) -> anyhow::Result<Vec<Stored>> {
        let limit = limit.min(PAGE_EVENTS_MAX);
        let mut found = Vec::new();
        for book in self.shelf.books() {
            if found.len() >= limit {
                break;
            }
            let connection = self.connection(&book)?;
            let mut page = Vec::new();
            for class in classes {
                let sql = format!(
                    "SELECT {COLUMNS} FROM {} WHERE id > ?1 ORDER BY id LIMIT ?2",
                    file::table(*class)
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let rows = statement
                    .query_map([file::number(id), (limit - found.len()) as i64], |row| stored(row, *class))?;
                for row in rows {
                    page.push(row?);
                }
            }
            page.sort_by_key(|stored| stored.id);
            found.extend(page);
            found.truncate(limit);
        }
        Ok(found)
    }

    /// Events that pass the filter, highest id first, below `before`.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn page(
        &mut self,
        filter: &Filter,
        before: Option<u64>,
        limit: usize,
    ) -> anyhow::Result<Vec<Stored>> {
        let limit = limit.min(PAGE_EVENTS_MAX);
        let classes = if filter.classes.is_empty() { &Class::ALL[..] } else { &filter.classes[..] };
        let mut found = Vec::new();
        for book in self.shelf.books().iter().rev() {
            if found.len() >= limit {
                break;
            }
            let connection = self.connection(book)?;
            let mut page = Vec::new();
            for class in classes {
                let (condition, values) = condition(filter, before);
                let wanted = limit - found.len();
                let sql = format!(
                    "SELECT {COLUMNS} FROM {} WHERE {condition} ORDER BY id DESC LIMIT {wanted}",
                    file::table(*class)
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let rows = statement.query_map(params_from_iter(values), |row| stored(row, *class))?;
                for row in rows {
                    page.push(row?);
                }
            }
            page.sort_by_key(|stored| std::cmp::Reverse(stored.id));
            found.extend(page);
            found.truncate(limit);
        }
        Ok(found)
    }

    /// The event of this name.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn one(&mut self, event: EventId) -> anyhow::Result<Option<Stored>> {
        for book in self.shelf.books().iter().rev() {
            let connection = self.connection(book)?;
            let sql = format!(
                "SELECT {COLUMNS} FROM {} WHERE seq = ?1 AND agent = ?2 AND epoch = ?3",
                file::table(event.class)
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let values = rusqlite::params![file::number(event.seq), event.agent.0, file::signed(event.epoch)];
            let mut rows = statement.query_map(values, |row| stored(row, event.class))?;
            if let Some(row) = rows.next() {
                return Ok(Some(row?));
            }
        }
        Ok(None)
    }

    /// Events in all files, from the counters.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn count(&mut self) -> anyhow::Result<u64> {
        let mut total = 0_u64;
        for book in self.shelf.books() {
            let sum: i64 = self.connection(&book)?.query_row(
                "SELECT coalesce(sum(events), 0) FROM counter",
                [],
                |row| row.get(0),
            )?;
            total = total.saturating_add(u64::try_from(sum).unwrap_or(0));
        }
        Ok(total)
    }

    /// Alerts by severity that were received in this hour or later (hours since 1970).
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn alerts_since(&mut self, hour: i64) -> anyhow::Result<Vec<(i32, u64)>> {
        let mut found = std::collections::BTreeMap::new();
        for book in self.shelf.books() {
            let connection = self.connection(&book)?;
            let sql =
                "SELECT severity, sum(events) FROM counter WHERE class = ?1 AND hour >= ?2 GROUP BY severity";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query(rusqlite::params![Class::Alert.to_wire(), hour])?;
            while let Some(row) = rows.next()? {
                let (severity, events): (i32, i64) = (row.get(0)?, row.get(1)?);
                *found.entry(severity).or_insert(0) += u64::try_from(events).unwrap_or(0);
            }
        }
        Ok(found.into_iter().collect())
    }

    /// A read-only connection to this file; files that retention removed are let go.
    fn connection(&mut self, book: &Book) -> anyhow::Result<&Connection> {
        if let Some(at) = self.open.iter().position(|(number, _)| *number == book.number) {
            let entry = self.open.remove(at);
            self.open.push(entry);
        } else {
            if self.open.len() >= CONNECTIONS_MAX {
                self.open.remove(0);
            }
            let connection = file::connect(&book.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            file::recognise(&connection, &book.path)?;
            self.open.push((book.number, connection));
        }
        self.open
            .last()
            .map(|(_, connection)| connection)
            .ok_or_else(|| anyhow::anyhow!("no connection to the store"))
    }
}

fn stored(row: &Row<'_>, class: Class) -> rusqlite::Result<Stored> {
    let agent: [u8; 16] = row.get(1)?;
    let (id, epoch, seq): (i64, i64, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
    Ok(Stored {
        id: u64::try_from(id).unwrap_or(0),
        event: EventId {
            agent: AgentId(agent),
            epoch: u64::from_ne_bytes(epoch.to_ne_bytes()),
            class,
            seq: u64::try_from(seq).unwrap_or(0),
        },
        received_unix_ns: row.get(4)?,
        body: row.get(5)?,
    })
}

/// The filter as SQL, with every value bound and none in the text.
fn condition(filter: &Filter, before: Option<u64>) -> (String, Vec<Value>) {
    let mut parts = vec!["1".to_owned()];
    let mut values = Vec::new();
    let mut add = |part: &str, value: Value| {
        parts.push(part.to_owned());
        values.push(value);
    };
    if let Some(before) = before {
        add("id < ?", Value::Integer(file::number(before)));
    }
    if let Some(severity) = filter.severity_min {
        add("severity >= ?", Value::Integer(i64::from(severity as i32)));
    }
    if let Some(rule) = &filter.rule {
        add("instr(rules, ?) > 0", Value::Text(format!("\n{rule}\n")));
    }
    if let Some(since) = filter.since_unix_ns {
        add("time >= ?", Value::Integer(since));
    }
    if let Some(until) = filter.until_unix_ns {
        add("time < ?", Value::Integer(until));
    }
    if let Some(agents) = &filter.agents {
        let agents: Vec<Value> = agents.iter().map(|agent| Value::Blob(agent.0.to_vec())).collect();
        parts.push(format!("agent IN ({})", vec!["?"; agents.len()].join(", ")));
        values.extend(agents);
    }
    if !filter.kinds.is_empty() {
        let kinds: Vec<Value> = filter
            .kinds
            .iter()
            .filter_map(|name| Kind::named(name))
            .map(|kind| Value::Integer(kind as i64))
            .collect();
        parts.push(format!("kind IN ({})", vec!["?"; kinds.len()].join(", ")));
        values.extend(kinds);
    }
    (parts.join(" AND "), values)
}
