//! The outbox as a database: every change is a `Work`, applied in one transaction with its neighbours.
//!
//! Synchronous, without threads or channels, so that tests can drive it against a fake clock and drop it at
//! any point. `owner` is its only user in the agent.
//!
//! What survives a crash:
//!
//! | state of an event            | row in `alert`/`telemetry` | leaves by                                     |
//! |------------------------------|----------------------------|-----------------------------------------------|
//! | committed, not acknowledged  | yes                        | `Forget` (D1), the bound (D4), `SetAside` (D5) |
//! | acknowledged                 | no, below `acked`          |                                               |
//! | lost to the bound            | no, a `gap` row names it   | the gap's own way                             |
//! | set aside                    | in `aside`, a `gap` row names it | the bound of `aside`                    |

use super::bound::{self, Rank};
use super::file::{self, Found};
use super::{cut, reported, salvage};
use crate::host::{Host, Moment};
use rusqlite::{Connection, OptionalExtension, params};
use std::path::{Path, PathBuf};
use vidette_protocol::id::Class;
use vidette_protocol::limits::{BATCH_EVENTS_MAX, TEXT_BYTES_MAX};
use vidette_protocol::wire::{self, event::Kind};

/// The events of one read. Bytes, encoded. Incompressible ones still fit a batch.
pub const READ_BYTES_MAX: usize = 768 << 10;
/// What a row costs beside its event: number, time, rank and its cell. Bytes.
pub const ROW_BYTES: u64 = 32;
/// Events set aside that are kept.
pub const ASIDE_EVENTS_MAX: u64 = 256;
/// The smallest bound that makes sense. Bytes.
pub const BYTES_MIN: u64 = 16 << 10;

const _: () = assert!(vidette_protocol::limits::EVENT_BYTES_MAX < READ_BYTES_MAX);
const _: () = assert!(READ_BYTES_MAX + 8 * BATCH_EVENTS_MAX <= vidette_protocol::limits::BATCH_BYTES_MAX);

/// What can be asked of the database.
#[derive(Debug, Clone)]
pub enum Work {
    /// New events, in this order.
    Append(Vec<wire::Event>),
    /// The epoch and the numbers of both classes.
    State,
    /// A run of consecutive events from this number on.
    Read {
        /// Which numbers.
        class: Class,
        /// The first number wanted.
        from: u64,
        /// All events of the run together. Bytes; at most [`READ_BYTES_MAX`].
        bytes_max: usize,
    },
    /// The collector has committed everything up to a number.
    Forget {
        /// Which numbers.
        class: Class,
        /// Ignored when it is not the current one.
        epoch: u64,
        /// The last number it has.
        upto: u64,
    },
    /// The collector refused these for good.
    SetAside {
        /// Which numbers.
        class: Class,
        /// Ignored when it is not the current one.
        epoch: u64,
        /// The first refused.
        first: u64,
        /// The last refused.
        last: u64,
        /// [`wire::RejectCode`].
        code: i32,
        /// The collector's words.
        reason: String,
    },
    /// The collector has less than it once acknowledged.
    Restored {
        /// Which numbers.
        class: Class,
        /// Ignored when it is not the current one.
        epoch: u64,
        /// What it has now.
        durable: u64,
    },
    /// Number everything that waits anew, from 1, under a new random epoch.
    NewEpoch,
}

/// What comes back, in the order of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, or nothing to do.
    Done,
    /// For [`Work::State`].
    State(State),
    /// For [`Work::Read`].
    Run(Run),
    /// For [`Work::NewEpoch`].
    Epoch(u64),
}

/// Epoch and numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Random, new whenever the database is new.
    pub epoch: u64,
    /// Both classes, in the order of [`Class::ALL`].
    pub classes: Vec<ClassState>,
}

/// Numbers of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassState {
    /// Which.
    pub class: Class,
    /// Everything up to here was acknowledged; 0 when nothing.
    pub acked: u64,
    /// The first event that waits; the next number to be given when none does.
    pub first_unacked: u64,
    /// The last number given; 0 when none.
    pub last: u64,
}

/// Consecutive events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Of which outbox.
    pub epoch: u64,
    /// The number of the first event; the number asked for when there is none.
    pub first_seq: u64,
    /// Numbers right before it, back to the one asked for, that will never come.
    pub skipped: u64,
    /// Encoded events; empty when nothing waits.
    pub events: Vec<Vec<u8>>,
}

/// What one [`Db::apply`] changed, for the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events committed, gaps included.
    pub appended: u64,
    /// Events of the outbox's own: gaps, health.
    pub made: u64,
    /// Events removed by the bound.
    pub lost: u64,
    /// Events beyond the limits of an event.
    pub oversized: u64,
    /// Detections of a rescan that had been committed before it.
    pub merged: u64,
    /// Events acknowledged.
    pub acked: u64,
    /// Events set aside.
    pub set_aside: u64,
}

/// An open outbox.
#[derive(Debug)]
pub struct Db {
    connection: Connection,
    path: PathBuf,
    host: Host,
    bytes_max: u64,
    epoch: u64,
    bytes: u64,
    events: u64,
    tally: Tally,
}

impl Db {
    /// Opens the outbox in `folder`, or makes it. What is damaged or foreign is set aside, what can be read of
    /// it is taken over, and a `gap` event says so (D3, L1). `suspect` sets it aside in any case.
    ///
    /// # Errors
    /// Only when the folder can't be used: no permission, no space.
    pub fn open(folder: &Path, bytes_max: u64, host: Host, suspect: Option<&str>) -> anyhow::Result<Self> {
        file::prepare_folder(folder)?;
        let folder = folder.canonicalize()?; // SQLite's NOFOLLOW refuses links anywhere in a path
        let path = folder.join(file::FILE_NAME);
        let make = |connection| Self::with(connection, &path, bytes_max.max(BYTES_MIN), host.clone());
        let found = match suspect {
            Some(reason) if path.symlink_metadata().is_ok() => {
                Found::Unusable { reason: reason.to_owned(), ours: true }
            }
            Some(_) | None => file::look(&path)?,
        };
        let (reason, ours) = match found {
            Found::New(connection) => return Ok(make(connection)?),
            Found::Ours(connection) => match make(connection) {
                Ok(db) => return Ok(db),
                Err(error) if file::is_damage(&error) => (format!("it is damaged: {error}"), true),
                Err(error) => return Err(error.into()),
            },
            Found::Unusable { reason, ours } => (reason, ours),
        };
        let aside = file::set_aside(&path)?;
        tracing::warn!(file = %aside.display(), reason, "the outbox was set aside: a new one takes over");
        let mut db = match file::look(&path)? {
            Found::Ours(connection) | Found::New(connection) => make(connection)?,
            Found::Unusable { reason, .. } => {
                anyhow::bail!("{} can't be made anew: {reason}", path.display())
            }
        };
        db.take_over(&aside, &reason, ours)?;
        Ok(db)
    }

    fn with(connection: Connection, path: &Path, bytes_max: u64, host: Host) -> rusqlite::Result<Self> {
        let path = path.to_path_buf();
        let mut db = Self {
            connection,
            path,
            host,
            bytes_max,
            epoch: 0,
            bytes: 0,
            events: 0,
            tally: Tally::default(),
        };
        db.load()?;
        db.state()?; // reads every table that is needed
        db.oldest()?;
        db.connection.query_row("SELECT count(*) FROM aside", [], |_| Ok(()))?;
        Ok(db)
    }

    /// Does all of it in one transaction, durable when this returns. On an error nothing was done, and the
    /// database has to be opened again (D3).
    ///
    /// # Errors
    /// SQLite's.
    pub fn apply(&mut self, work: &[Work], now: Moment) -> rusqlite::Result<(Vec<Answer>, Tally)> {
        self.tally = Tally::default();
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = work.iter().map(|work| self.one(work, now)).collect::<rusqlite::Result<Vec<_>>>();
        let committed = done.and_then(|answers| {
            self.hold_bound(now)?;
            self.connection.execute_batch("COMMIT")?;
            Ok(answers)
        });
        if committed.is_err() {
            let _ = self.connection.execute_batch("ROLLBACK"); // the connection is given up in any case
        }
        Ok((committed?, self.tally))
    }

    /// Which outbox this is.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Events that wait, and their bytes.
    #[must_use]
    pub fn waiting(&self) -> (u64, u64) {
        (self.events, self.bytes)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Wall clock of the oldest event that waits, Unix nanoseconds.
    ///
    /// # Errors
    /// SQLite's.
    pub fn oldest(&self) -> rusqlite::Result<Option<i64>> {
        let sql = "SELECT min(created) FROM (SELECT * FROM (SELECT created FROM alert ORDER BY seq LIMIT 1)
                   UNION ALL SELECT * FROM (SELECT created FROM telemetry ORDER BY seq LIMIT 1))";
        self.connection.query_row(sql, [], |row| row.get(0))
    }

    /// Epoch and numbers.
    ///
    /// # Errors
    /// SQLite's.
    pub fn state(&self) -> rusqlite::Result<State> {
        let classes =
            Class::ALL.into_iter().map(|class| self.class_state(class)).collect::<rusqlite::Result<_>>()?;
        Ok(State { epoch: self.epoch, classes })
    }

    fn one(&mut self, work: &Work, now: Moment) -> rusqlite::Result<Answer> {
        match work {
            Work::Append(events) => {
                for event in events {
                    self.append(event.clone(), now)?;
                }
                Ok(Answer::Done)
            }
            Work::State => Ok(Answer::State(self.state()?)),
            Work::Read { class, from, bytes_max } => Ok(Answer::Run(self.read(*class, *from, *bytes_max)?)),
            Work::Forget { class, epoch, upto } if *epoch == self.epoch => self.forget(*class, *upto),
            Work::SetAside { class, epoch, first, last, code, reason } if *epoch == self.epoch => {
                self.set_aside(*class, *first, *last, *code, reason, now)
            }
            Work::Restored { class, epoch, durable } if *epoch == self.epoch => {
                self.restored(*class, *durable, now)
            }
            Work::Forget { .. } | Work::SetAside { .. } | Work::Restored { .. } => Ok(Answer::Done), // of an old epoch
            Work::NewEpoch => self.new_epoch(now),
        }
    }

    fn load(&mut self) -> rusqlite::Result<()> {
        let epoch: Option<i64> =
            self.connection.query_row("SELECT epoch FROM outbox", [], |row| row.get(0)).optional()?;
        self.epoch = match epoch {
            Some(epoch) => epoch.cast_unsigned(),
            None => {
                let epoch: u64 = rand::random();
                self.connection
                    .execute("INSERT INTO outbox (only, epoch) VALUES (1, ?)", [epoch.cast_signed()])?;
                epoch
            }
        };
        let sum = "SELECT count(*), coalesce(sum(length(body)), 0) FROM";
        let sql = format!("{sum} (SELECT body FROM alert UNION ALL SELECT body FROM telemetry)");
        let (events, bytes): (u64, u64) =
            self.connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.events = events;
        self.bytes = bytes.saturating_add(events.saturating_mul(ROW_BYTES));
        Ok(())
    }

    fn append(&mut self, event: wire::Event, now: Moment) -> rusqlite::Result<()> {
        if reported::is_known(&self.connection, &event)? {
            self.tally.merged += 1;
            return Ok(());
        }
        let (class, rank) = (Class::of(&event).unwrap_or(Class::Alert), Rank::of(&event));
        match cut::encode(event) {
            Ok(body) => self.insert(class, rank, now.unix_ns, &body),
            Err(bytes) => {
                tracing::error!(bytes, %class, "an event is beyond its limits and was dropped: report this");
                self.tally.oversized += 1;
                let detail =
                    format!("an event of class {class} is {bytes} bytes long or beyond another limit");
                self.gap(
                    wire::Gap {
                        reason: wire::GapReason::OutboxBound as i32,
                        count: Some(1),
                        detail,
                        ..at(now)
                    },
                    now,
                )
            }
        }
    }

    fn insert(&mut self, class: Class, rank: Rank, created: i64, body: &[u8]) -> rusqlite::Result<()> {
        let sql = format!("INSERT INTO {} (created, rank, body) VALUES (?, ?, ?)", class.name());
        self.connection.prepare_cached(&sql)?.execute(params![created, rank as i64, body])?;
        self.events += 1;
        self.bytes += ROW_BYTES + body.len() as u64;
        self.tally.appended += 1;
        Ok(())
    }

    /// Appends a gap event. It is small and within its limits by construction.
    fn gap(&mut self, gap: wire::Gap, now: Moment) -> rusqlite::Result<()> {
        let event = self.host.event(now, wire::Severity::Medium, Kind::Gap(gap));
        match cut::encode(event) {
            Ok(body) => {
                self.tally.made += 1;
                self.insert(Class::Alert, Rank::Gap, now.unix_ns, &body)
            }
            Err(bytes) => {
                tracing::error!(bytes, "a gap event is beyond its limits: report this");
                Ok(())
            }
        }
    }

    fn class_state(&self, class: Class) -> rusqlite::Result<ClassState> {
        let table = class.name();
        let last: Option<i64> = self
            .connection
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?")?
            .query_row([table], |row| row.get(0))
            .optional()?;
        let last = u64::try_from(last.unwrap_or(0)).unwrap_or(0);
        let first: Option<u64> = self
            .connection
            .prepare_cached(&format!("SELECT min(seq) FROM {table}"))?
            .query_row([], |row| row.get(0))?;
        let acked = self.acked(class)?;
        Ok(ClassState { class, acked, first_unacked: first.unwrap_or(last + 1), last })
    }

    fn acked(&self, class: Class) -> rusqlite::Result<u64> {
        let mut select = self.connection.prepare_cached("SELECT seq FROM acked WHERE class = ?")?;
        Ok(select.query_row([class.to_wire()], |row| row.get(0)).optional()?.unwrap_or(0))
    }

    fn set_acked(&self, class: Class, seq: u64) -> rusqlite::Result<()> {
        let mut insert =
            self.connection.prepare_cached("INSERT OR REPLACE INTO acked (class, seq) VALUES (?, ?)")?;
        insert.execute(params![class.to_wire(), seq]).map(drop)
    }

    fn read(&self, class: Class, from: u64, bytes_max: usize) -> rusqlite::Result<Run> {
        let bytes_max = bytes_max.min(READ_BYTES_MAX);
        let mut run = Run { epoch: self.epoch, first_seq: from, skipped: 0, events: Vec::new() };
        let sql = format!("SELECT seq, body FROM {} WHERE seq >= ? ORDER BY seq LIMIT ?", class.name());
        let mut select = self.connection.prepare_cached(&sql)?;
        let mut rows =
            select.query(params![i64::try_from(from).unwrap_or(i64::MAX), BATCH_EVENTS_MAX as i64])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let seq: u64 = row.get(0)?;
            let body = row.get_ref(1)?.as_blob()?;
            if run.events.is_empty() {
                run.first_seq = seq;
                run.skipped = seq.saturating_sub(from);
            }
            let follows = seq == run.first_seq + run.events.len() as u64;
            bytes += body.len();
            if !follows || (bytes > bytes_max && !run.events.is_empty()) {
                break;
            }
            run.events.push(body.to_vec());
        }
        Ok(run)
    }

    fn forget(&mut self, class: Class, upto: u64) -> rusqlite::Result<Answer> {
        let upto = upto.min(self.class_state(class)?.last);
        self.tally.acked += self.delete(class, 0, upto)?;
        if upto > self.acked(class)? {
            self.set_acked(class, upto)?;
        }
        Ok(Answer::Done)
    }

    fn delete(&mut self, class: Class, first: u64, last: u64) -> rusqlite::Result<u64> {
        let table = class.name();
        let sum =
            format!("SELECT count(*), coalesce(sum(length(body)), 0) FROM {table} WHERE seq BETWEEN ? AND ?");
        let (events, bytes): (u64, u64) = self
            .connection
            .prepare_cached(&sum)?
            .query_row([first, last], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let sql = format!("DELETE FROM {table} WHERE seq BETWEEN ? AND ?");
        self.connection.prepare_cached(&sql)?.execute([first, last])?;
        self.freed(events, bytes);
        Ok(events)
    }

    fn freed(&mut self, events: u64, bytes: u64) {
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes + events * ROW_BYTES);
    }

    fn set_aside(
        &mut self,
        class: Class,
        first: u64,
        last: u64,
        code: i32,
        reason: &str,
        now: Moment,
    ) -> rusqlite::Result<Answer> {
        let last = last.min(self.class_state(class)?.last);
        let sql = format!(
            "INSERT INTO aside (epoch, class, seq, code, reason, body)
             SELECT ?, ?, seq, ?, ?, body FROM {} WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
            class.name()
        );
        let epoch = self.epoch.cast_signed();
        let kept = ASIDE_EVENTS_MAX.cast_signed();
        self.connection.execute(&sql, params![epoch, class.to_wire(), code, reason, first, last, kept])?;
        let oldest = "DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - ?";
        self.connection.execute(oldest, [kept])?;
        let count = self.delete(class, first, last)?;
        if count == 0 {
            return Ok(Answer::Done); // the bound took them first, and said so
        }
        self.tally.set_aside += count;
        let mut detail = format!("refused by the collector: {reason}");
        detail.truncate(
            (0..=TEXT_BYTES_MAX.min(detail.len())).rev().find(|&n| detail.is_char_boundary(n)).unwrap_or(0),
        );
        let gap = wire::Gap {
            reason: wire::GapReason::Poison as i32,
            count: Some(count),
            class: class.to_wire(),
            first_seq: first,
            last_seq: last,
            detail,
            ..at(now)
        };
        self.gap(gap, now)?;
        Ok(Answer::Done)
    }

    fn restored(&mut self, class: Class, durable: u64, now: Moment) -> rusqlite::Result<Answer> {
        let acked = self.acked(class)?;
        if durable >= acked {
            return Ok(Answer::Done);
        }
        self.set_acked(class, durable)?;
        let gap = wire::Gap {
            reason: wire::GapReason::StoreRestored as i32,
            count: Some(acked - durable),
            class: class.to_wire(),
            first_seq: durable + 1,
            last_seq: acked,
            detail: "the collector has less than it once acknowledged".into(),
            ..at(now)
        };
        self.gap(gap, now)?;
        Ok(Answer::Done)
    }

    fn new_epoch(&mut self, now: Moment) -> rusqlite::Result<Answer> {
        self.epoch = rand::random();
        self.connection.execute("UPDATE outbox SET epoch = ?", [self.epoch.cast_signed()])?;
        self.connection.execute("DELETE FROM acked", [])?;
        for class in Class::ALL {
            self.renumber(class)?;
        }
        let health = wire::Health {
            component: "outbox".into(),
            state: wire::HealthState::Degraded as i32,
            message: "the collector has numbers that this outbox never gave, as after a restored disk: \
                      what waits is sent again under a new epoch, numbers in earlier gaps belong to the old one"
                .into(),
        };
        let event = self.host.event(now, wire::Severity::Medium, Kind::Health(health));
        self.tally.made += 1;
        self.append(event, now)?;
        Ok(Answer::Epoch(self.epoch))
    }

    /// New numbers are never above old ones, so walking upwards never meets a number in use.
    fn renumber(&mut self, class: Class) -> rusqlite::Result<()> {
        let table = class.name();
        let next = format!("SELECT seq FROM {table} WHERE seq > ? ORDER BY seq LIMIT 1");
        let update = format!("UPDATE {table} SET seq = ? WHERE seq = ?");
        let (mut old, mut new) = (0_u64, 0_u64);
        while let Some(seq) =
            self.connection.prepare_cached(&next)?.query_row([old], |row| row.get::<_, u64>(0)).optional()?
        {
            new += 1;
            old = seq;
            self.connection.prepare_cached(&update)?.execute([new, old])?;
        }
        self.connection
            .execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", params![new, table])
            .map(drop)
    }

    fn hold_bound(&mut self, now: Moment) -> rusqlite::Result<()> {
        if self.bytes <= self.bytes_max {
            return Ok(());
        }
        let target = self.bytes_max / 10 * 9; // room, so that not every event brings a gap event
        let evicted = bound::evict(&self.connection, self.bytes - target)?;
        self.freed(evicted.events, evicted.bytes);
        self.tally.lost += evicted.events;
        for mut gap in evicted.gaps {
            gap.detail = format!("the outbox reached its bound of {} bytes", self.bytes_max);
            self.gap(gap, now)?;
        }
        Ok(())
    }

    fn take_over(&mut self, aside: &Path, reason: &str, ours: bool) -> rusqlite::Result<()> {
        let now = Moment::now();
        self.tally = Tally::default();
        let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let saved = if ours { salvage::read(aside, self.bytes_max) } else { Vec::new() };
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for row in &saved {
            self.insert(row.class, row.rank, row.created, &row.body)?;
        }
        let detail = format!("{reason}; set aside as {name}, {} events were taken over", saved.len());
        let gap = wire::Gap { reason: wire::GapReason::OutboxDamaged as i32, detail, ..at(now) };
        self.gap(gap, now)?;
        self.hold_bound(now)?;
        self.connection.execute_batch("COMMIT")
    }
}

fn at(now: Moment) -> wire::Gap {
    wire::Gap { from_unix_ns: now.unix_ns, to_unix_ns: now.unix_ns, ..Default::default() }
}
