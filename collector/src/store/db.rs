//! The store as a database: arrivals of many agents in one transaction, marks moved in the same one (D2).
//!
//! Synchronous, without threads or clocks of its own, so that tests can drive it. `writer` is its only user in
//! the collector. Rows go to the newest day's file; `reader` reads all of them.

use super::damage::{self, Columns};
use super::file::{self, DayFile, FileError};
use super::recent::News;
use super::{salvage, segments};
use crate::ingest::session::{Arrival, Committed, Received};
use anyhow::{Context, bail};
use rusqlite::{Connection, Row, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::event::Kind;

/// Added to the next id when nobody knows the last one any more, so that no id is given twice and no sink's
/// cursor passes over new events.
pub const ID_JUMP: u64 = 1 << 40;

/// Pages that change with every commit.
const PAGES_A_COMMIT: u64 = 3;
/// What a row takes beside its body. Bytes.
const ROW_BYTES: usize = 40;

/// Agent, epoch, class.
pub type LaneKey = (AgentId, u64, Class);

/// A lane's number in the files, and its high-water mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its number; the same in every file.
    pub lane: i64,
    /// Everything up to here is stored.
    pub seq: u64,
}

/// All marks.
pub type Marks = HashMap<LaneKey, Mark>;

/// An open store.
#[derive(Debug)]
pub struct Db {
    folder: PathBuf,
    retention_days: Option<u32>,
    connection: Connection,
    day: DayFile,
    marks: Marks,
    last_lane: i64,
    next_id: u64,
    /// The segment of the newest row: those before it are written.
    segment: u64,
    news: News,
    /// About so many pages were written to the log since it was moved to the file when nobody waited.
    log_pages: u64,
}

/// What outlives a connection that failed.
#[derive(Debug, Default)]
pub struct Memory {
    /// Marks as of the last commit.
    pub marks: Marks,
    /// The next id to be given; 0 when unknown.
    pub next_id: u64,
}

impl Db {
    /// Opens the newest day, or makes the first. A damaged one is set aside and what can be read of it goes to
    /// a new one; `memory` says what was committed when the process has been running.
    ///
    /// # Errors
    /// One sentence when the folder can't be used, or the newest file is foreign or of a newer version.
    pub fn open(
        folder: &Path,
        retention_days: Option<u32>,
        memory: Memory,
        now_unix_ns: i64,
    ) -> anyhow::Result<Self> {
        file::prepare_folder(folder)?;
        let folder = folder.canonicalize()?; // SQLite's NOFOLLOW refuses links anywhere in a path
        file::remove_drafts(&folder);
        let days = file::list(&folder).with_context(|| format!("could not read {}", folder.display()))?;
        let (mut connection, mut day) = match days.last() {
            None => Self::first(&folder, &memory, now_unix_ns)?,
            Some(newest) => match open_newest(newest) {
                Ok(connection) => (connection, newest.clone()),
                Err(FileError::Damaged(reason)) => repair(&folder, &days, &memory, &reason, now_unix_ns)?,
                Err(FileError::Foreign(reason)) => bail!("{reason}"),
                Err(FileError::Other(error)) => {
                    return Err(error).with_context(|| {
                        format!("could not open {}: check its owner and free space", newest.path.display())
                    });
                }
            },
        };
        let marks = load_marks(&connection)?;
        let next_id = next_id(&connection)?.max(memory.next_id);
        let last_lane = marks.values().map(|mark| mark.lane).max().unwrap_or(0);
        if file::version(&connection)? < file::SCHEMA_VERSION {
            // Files of an older version are only read: a new one begins, and nothing has to be converted.
            day = DayFile::new(&folder, day.number + 1, &file::label(now_unix_ns).max(day.label));
            connection = create(&day, next_id, &marks)?;
        }
        let segment = segments::newest(&connection)?.unwrap_or_else(|| segments::of(next_id));
        let news = News::default();
        let mut db = Self {
            folder,
            retention_days,
            connection,
            day,
            marks,
            last_lane,
            next_id,
            segment,
            news,
            log_pages: 0,
        };
        db.retain();
        Ok(db)
    }

    fn first(folder: &Path, memory: &Memory, now_unix_ns: i64) -> anyhow::Result<(Connection, DayFile)> {
        let day = DayFile::new(folder, 1, &file::label(now_unix_ns));
        let connection = create(&day, memory.next_id.max(1), &memory.marks)?;
        Ok((connection, day))
    }

    /// Stores all of them in one transaction, durable when this returns; answers are in the order of the
    /// arrivals. On an error nothing was stored and the store has to be opened again (D3).
    ///
    /// # Errors
    /// When it can't be written.
    pub fn commit(&mut self, arrivals: &[Arrival], now_unix_ns: i64) -> anyhow::Result<Vec<Committed>> {
        self.roll(now_unix_ns)?;
        let mut group = Group {
            db: &self.connection,
            marks: &self.marks,
            moved: HashMap::new(),
            next_id: self.next_id,
            last_lane: self.last_lane,
            segment: self.segment,
            received: now_unix_ns,
            news: News::default(),
        };
        group.db.execute_batch("BEGIN IMMEDIATE")?;
        let stored =
            arrivals.iter().map(|arrival| group.store(arrival)).collect::<rusqlite::Result<Vec<_>>>();
        let Group { moved, next_id, last_lane, segment, news, .. } = group;
        let committed = stored.and_then(|answers| self.connection.execute_batch("COMMIT").map(|()| answers));
        if committed.is_err() {
            let _ = self.connection.execute_batch("ROLLBACK"); // the connection is given up in any case
        }
        let answers = committed.with_context(|| format!("could not write {}", self.day.path.display()))?;
        self.marks.extend(moved);
        self.next_id = next_id;
        self.last_lane = last_lane;
        self.segment = segment;
        self.news = news;
        self.log_pages += pages(arrivals);
        Ok(answers)
    }

    /// Moves the log to the file when enough has come together. Until SQLite does it by itself, within a commit, there is eight
    /// times as much of it.
    ///
    /// # Errors
    /// SQLite's. The log keeps what could not be moved.
    pub fn checkpoint_when_due(&mut self) -> rusqlite::Result<()> {
        if self.log_pages < file::CHECKPOINT_PAGES_IDLE {
            return Ok(());
        }
        self.log_pages = 0;
        // Never waits for readers: what they still need stays in the log.
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }

    /// What is stored of an agent's outbox.
    #[must_use]
    pub fn durable(&self, agent: AgentId, epoch: u64) -> Vec<(Class, u64)> {
        let mark = |class| self.marks.get(&(agent, epoch, class)).map(|mark| (class, mark.seq));
        Class::ALL.into_iter().filter_map(mark).collect()
    }

    /// What the last commit stored, for the sums; once.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// The highest id that was given; 0 when none.
    #[must_use]
    pub fn highest_id(&self) -> u64 {
        self.next_id.saturating_sub(1)
    }

    /// The file that is written now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.day.path
    }

    /// The folder of all files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What has to be known to go on after a failure.
    #[must_use]
    pub fn into_memory(self) -> Memory {
        Memory { marks: self.marks, next_id: self.next_id }
    }

    /// Begins a new file when a later day has come. A clock that goes back changes nothing (D6).
    fn roll(&mut self, now_unix_ns: i64) -> anyhow::Result<()> {
        let label = file::label(now_unix_ns);
        if label <= self.day.label {
            return Ok(());
        }
        self.finish_day();
        let day = DayFile::new(&self.folder, self.day.number + 1, &label);
        self.connection = create(&day, self.next_id, &self.marks)?;
        self.segment = segments::of(self.next_id);
        tracing::info!(file = %day.path.display(), "a new day's file was begun");
        self.day = day;
        self.retain();
        Ok(())
    }

    /// Writes the last segment of a file that gets no more rows. Without it they are only slower to find.
    fn finish_day(&self) {
        let finish = || {
            let transaction = self.connection.unchecked_transaction()?;
            segments::finish(&transaction, self.segment)?;
            transaction.commit()
        };
        if let Err(error) = finish() {
            tracing::warn!(file = %self.day.path.display(), %error, "the end of a day stays without an index");
        }
    }

    /// Deletes files beyond the retention, counted in files as days: no clock decides about evidence.
    fn retain(&mut self) {
        let Some(days) = self.retention_days else { return };
        let Ok(files) = file::list(&self.folder) else { return };
        let keep = usize::try_from(days.max(1)).unwrap_or(usize::MAX);
        for old in files.iter().rev().skip(keep) {
            match file::remove(&old.path) {
                Ok(()) => {
                    tracing::info!(file = %old.path.display(), "a day beyond the retention was deleted")
                }
                Err(error) => {
                    tracing::warn!(file = %old.path.display(), %error, "an old day can't be deleted")
                }
            }
        }
    }
}

/// About what a commit writes to the log: the ends of the tables, and its rows. Pages.
fn pages(arrivals: &[Arrival]) -> u64 {
    let bytes: usize =
        arrivals.iter().flat_map(|arrival| &arrival.events).map(|event| event.body.len() + ROW_BYTES).sum();
    PAGES_A_COMMIT + bytes as u64 / file::PAGE_BYTES
}

/// One transaction.
struct Group<'a> {
    db: &'a Connection,
    marks: &'a Marks,
    moved: Marks,
    next_id: u64,
    last_lane: i64,
    segment: u64,
    received: i64,
    news: News,
}

impl Group<'_> {
    fn store(&mut self, arrival: &Arrival) -> rusqlite::Result<Committed> {
        let key = (arrival.agent, arrival.epoch, arrival.class);
        let known = self.moved.get(&key).or_else(|| self.marks.get(&key)).copied();
        let stored = known.map_or(0, |mark| mark.seq);
        let start = arrival.first_seq.saturating_sub(arrival.skipped);
        let last = arrival.first_seq.saturating_sub(1).saturating_add(arrival.events.len() as u64);
        if start > stored.saturating_add(1) || arrival.first_seq == 0 {
            return Ok(Committed::Hole { expected: stored + 1 });
        }
        if last <= stored {
            return Ok(Committed::Durable(stored)); // sent again: harmless
        }
        let lane = match known {
            Some(mark) => mark.lane,
            None => self.new_lane(key)?,
        };
        if arrival.first_seq > stored + 1 {
            let sql = "INSERT INTO hole (lane, first_seq, last_seq, received) VALUES (?, ?, ?, ?)";
            let hole = params![lane, stored + 1, arrival.first_seq - 1, self.received];
            self.db.prepare_cached(sql)?.execute(hole)?;
        }
        let repeated = (stored + 1).saturating_sub(arrival.first_seq);
        let repeated = usize::try_from(repeated).unwrap_or(usize::MAX);
        self.rows(arrival, lane, repeated)?;
        let mark = Mark { lane, seq: last };
        let sum = damage::mark_sum(key, mark);
        self.db
            .prepare_cached("UPDATE lane SET seq = ?, sum = ? WHERE lane = ?")?
            .execute(params![last, sum, lane])?;
        self.moved.insert(key, mark);
        Ok(Committed::Durable(last))
    }

    fn new_lane(&mut self, key: LaneKey) -> rusqlite::Result<i64> {
        self.last_lane += 1;
        insert_lane(self.db, key, Mark { lane: self.last_lane, seq: 0 })?;
        Ok(self.last_lane)
    }

    fn rows(&mut self, arrival: &Arrival, lane: i64, repeated: usize) -> rusqlite::Result<()> {
        let first_seq = arrival.first_seq + repeated as u64;
        let sql = format!(
            "INSERT INTO {} (id, lane, seq, received, happened, kind, severity, rules, body, sum)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            arrival.class.name()
        );
        let mut insert = self.db.prepare_cached(&sql)?;
        let lane_sum = damage::lane_sum((arrival.agent, arrival.epoch, arrival.class));
        for (seq, Received { event, body }) in (first_seq..).zip(arrival.events.iter().skip(repeated)) {
            self.enter_segment()?;
            let (kind, severity) = (kind_number(event.kind.as_ref()), event.severity);
            let (id, received, happened) = (self.next_id, self.received, event.time_unix_ns);
            let rules = rules(event.kind.as_ref());
            let (class, rules) = (arrival.class, rules.as_deref());
            let named = rules.map(str::as_bytes);
            let columns =
                Columns { class, id, lane, seq, received, happened, kind, severity, rules: named, body };
            let sum = columns.sum().wrapping_add(lane_sum);
            insert.execute(params![id, lane, seq, received, happened, kind, severity, rules, body, sum])?;
            self.news.note(arrival.agent, arrival.class, event);
            self.next_id += 1;
        }
        Ok(())
    }

    /// With the first id of a segment the one before is finished.
    fn enter_segment(&mut self) -> rusqlite::Result<()> {
        let segment = segments::of(self.next_id);
        if segment > self.segment {
            segments::finish(self.db, self.segment)?;
            self.segment = segment;
        }
        Ok(())
    }
}

/// The number a kind has in the contract; 0 for one that is not known here.
#[must_use]
pub fn kind_number(kind: Option<&Kind>) -> u32 {
    match kind {
        None => 0,
        Some(Kind::Detection(_)) => 10,
        Some(Kind::File(_)) => 11,
        Some(Kind::Process(_)) => 12,
        Some(Kind::Gap(_)) => 13,
        Some(Kind::Health(_)) => 14,
        Some(Kind::Audit(_)) => 15,
    }
}

/// Names and ids, each between newlines, so that a filter finds whole ones only.
pub(super) fn rules(kind: Option<&Kind>) -> Option<String> {
    let Some(Kind::Detection(detection)) = kind else { return None };
    let mut text = String::from("\n");
    for rule in &detection.rules {
        for word in [&rule.name, &rule.id] {
            text.push_str(&word.replace('\n', " "));
            text.push('\n');
        }
    }
    Some(text)
}

fn open_newest(day: &DayFile) -> Result<Connection, FileError> {
    let connection = file::open(&day.path, file::sizes(&day.path).0 <= file::QUICK_CHECK_BYTES_MAX)?;
    let readable = load_marks(&connection).and_then(|_| next_id(&connection));
    match readable {
        Ok(_) => Ok(connection),
        Err(error) if file::is_damage(&error) => {
            Err(FileError::Damaged(format!("{} is damaged: {error}", day.path.display())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Sets the newest file aside and makes another with everything that can still be known: marks from memory,
/// from the damaged file and from the one before, so that what was acknowledged is not taken twice; rows as
/// far as they can be read, under their old ids.
fn repair(
    folder: &Path,
    days: &[DayFile],
    memory: &Memory,
    reason: &str,
    now_unix_ns: i64,
) -> anyhow::Result<(Connection, DayFile)> {
    let Some((newest, earlier)) = days.split_last() else { bail!("there is no file to repair") };
    let aside = file::set_aside(&newest.path)?;
    let mut marks = memory.marks.clone();
    let mut known_id = memory.next_id;
    for day in earlier.iter().rev() {
        if let Ok(connection) = file::open_to_read(&day.path)
            && let (Ok(older), Ok(id)) = (load_marks(&connection), next_id(&connection))
        {
            merge(&mut marks, older);
            known_id = known_id.max(id);
            break;
        }
    }
    let saved = salvage::read(&aside, &marks);
    merge(&mut marks, saved.marks);
    let highest = saved.rows.last().map_or(0, |row| row.id);
    let next =
        if memory.next_id > 0 { memory.next_id } else { known_id.max(highest + 1).saturating_add(ID_JUMP) };
    let first_id = saved.rows.first().map_or(next, |row| row.id.min(next));
    let label = file::label(now_unix_ns).max(newest.label.clone());
    let day = DayFile::new(folder, newest.number + 1, &label);
    salvage::raise(&mut marks, &saved.rows);
    let kept = saved.rows.len();
    let connection = file::create(&day, |db| {
        fill(db, &day, first_id, next, &marks)?;
        salvage::write(db, &saved.rows, &marks)?;
        segments::finish_below(db, next)
    })?;
    tracing::error!(
        file = %aside.display(), reason, events = kept,
        "a day's file was set aside; what could be read of it was kept, the rest can only be found there"
    );
    Ok((connection, day))
}

fn merge(marks: &mut Marks, others: Marks) {
    for (key, other) in others {
        let taken = marks.values().any(|mark| mark.lane == other.lane);
        match marks.get_mut(&key) {
            Some(mark) => mark.seq = mark.seq.max(other.seq),
            None if taken => {
                let lane = marks.values().map(|mark| mark.lane).max().unwrap_or(0) + 1;
                marks.insert(key, Mark { lane, ..other });
            }
            None => {
                marks.insert(key, other);
            }
        }
    }
}

fn create(day: &DayFile, first_id: u64, marks: &Marks) -> anyhow::Result<Connection> {
    file::create(day, |db| fill(db, day, first_id, first_id, marks))
}

fn fill(db: &Connection, day: &DayFile, first_id: u64, next_id: u64, marks: &Marks) -> rusqlite::Result<()> {
    let sql = "INSERT INTO file (only, number, label, first_id, next_id, sum) VALUES (1, ?, ?, ?, ?, ?)";
    let sum = damage::borders_sum(first_id, next_id);
    db.execute(sql, params![day.number, day.label, first_id, next_id, sum])?;
    marks.iter().try_for_each(|(key, mark)| insert_lane(db, *key, *mark))
}

fn insert_lane(db: &Connection, key: LaneKey, mark: Mark) -> rusqlite::Result<()> {
    let (agent, epoch, class) = key;
    let sql = "INSERT INTO lane (lane, agent, epoch, class, seq, sum) VALUES (?, ?, ?, ?, ?, ?)";
    let sum = damage::mark_sum(key, mark);
    db.prepare_cached(sql)?
        .execute(params![mark.lane, agent.0, epoch.cast_signed(), class.to_wire(), mark.seq, sum])
        .map(drop)
}

/// All marks of a file.
///
/// # Errors
/// SQLite's, or of a value that makes no sense or does not fit its sum.
pub(super) fn load_marks(db: &Connection) -> rusqlite::Result<Marks> {
    let mut marks = Marks::new();
    for_each_lane(db, |read| {
        let (key, mark, fits) = read?;
        if !fits {
            // As of a value that can't be: `file::is_damage` knows it.
            return Err(rusqlite::Error::IntegralValueOutOfRange(4, mark.seq.cast_signed()));
        }
        marks.insert(key, mark);
        Ok(())
    })?;
    Ok(marks)
}

/// What can be read of the lanes of a damaged file: those in order with their marks. One that does not fit its sum only
/// says whose its number may be; rows that it is right about fit their own sums, and give it its mark.
pub(super) fn salvage_marks(db: &Connection) -> Marks {
    let (mut marks, mut doubted) = (Marks::new(), Vec::new());
    // What can't be read is not there.
    let _ = for_each_lane(db, |read| {
        match read {
            Ok((key, mark, true)) => {
                marks.insert(key, mark);
            }
            Ok((key, mark, false)) => doubted.push((key, Mark { seq: 0, ..mark })),
            Err(_) => {}
        }
        Ok(())
    });
    for (key, mark) in doubted {
        if marks.values().all(|known| known.lane != mark.lane) {
            marks.entry(key).or_insert(mark);
        }
    }
    marks
}

/// A lane, and whether it fits its sum.
type Lane = (LaneKey, Mark, bool);

fn for_each_lane(
    db: &Connection,
    mut each: impl FnMut(rusqlite::Result<Lane>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let is_summed = file::version(db)? >= file::SUMMED_SINCE;
    let sum = if is_summed { "sum" } else { "NULL" };
    let mut select = db.prepare(&format!("SELECT lane, agent, epoch, class, seq, {sum} FROM lane"))?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        each(lane(row, is_summed))?;
    }
    Ok(())
}

fn lane(row: &Row<'_>, is_summed: bool) -> rusqlite::Result<Lane> {
    let class: i32 = row.get(3)?;
    let class = Class::from_wire(class).ok_or(rusqlite::Error::IntegralValueOutOfRange(3, class.into()))?;
    let key = (AgentId(row.get(1)?), row.get::<_, i64>(2)?.cast_unsigned(), class);
    let mark = Mark { lane: row.get(0)?, seq: row.get(4)? };
    let fits = !is_summed || row.get::<_, i64>(5)? == damage::mark_sum(key, mark);
    Ok((key, mark, fits))
}

/// The first id that may be in a file, and the one from which on there is no hole.
///
/// # Errors
/// SQLite's, or of ids that do not fit their sum.
pub(super) fn borders(db: &Connection) -> rusqlite::Result<(u64, u64)> {
    let is_summed = file::version(db)? >= file::SUMMED_SINCE;
    let sql = format!("SELECT first_id, next_id, {} FROM file", if is_summed { "sum" } else { "NULL" });
    db.query_row(&sql, [], |row| {
        let (first_id, next_id): (u64, u64) = (row.get(0)?, row.get(1)?);
        if is_summed && row.get::<_, i64>(2)? != damage::borders_sum(first_id, next_id) {
            return Err(rusqlite::Error::IntegralValueOutOfRange(0, first_id.cast_signed()));
        }
        Ok((first_id, next_id))
    })
}

/// The next id after everything in a file.
///
/// # Errors
/// As of [`borders`].
pub(super) fn next_id(db: &Connection) -> rusqlite::Result<u64> {
    let (_, next_id) = borders(db)?;
    let sql = "SELECT max(?, coalesce((SELECT max(id) FROM alert), 0) + 1,
               coalesce((SELECT max(id) FROM telemetry), 0) + 1)";
    db.query_row(sql, [next_id], |row| row.get(0))
}
