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
//!
//! Where a gap stands, so that the collector hears of a loss before what follows it:
//!
//! - Lost alerts: the gap takes the last lost number. Whoever reads on over the hole meets it first. A number that
//!   may have been sent is no trouble: if the collector has it, it has everything before it too, and there is no loss.
//! - Lost telemetry: the gap is an alert, and telemetry that skips numbers waits until the alerts so far have arrived
//!   (`Run::alerts_first`).
//! - A loss that goes on is added to the gap that tells of it, until that is read for sending (`gaps`).
//!
//! A gap counts what left this disk unacknowledged. What was on its way at that moment may have arrived all the
//! same: the count may be too high then, never too low.

use super::bound::{self, Floors, Rank};
use super::epoch::Renumbered;
use super::gaps::{self, Growing};
use super::room::{self, Limits, Pages};
pub use super::work::{Answer, ClassState, Run, State, Tally, Work};
use super::{cut, file, reported};
use crate::host::{Host, Moment};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::{Path, PathBuf};
use vidette_protocol::id::Class;
use vidette_protocol::limits::{BATCH_EVENTS_MAX, TEXT_BYTES_MAX};
use vidette_protocol::wire::{self, event::Kind};

/// The events of one read. Bytes, encoded. Incompressible ones still fit a batch.
pub const READ_BYTES_MAX: usize = 768 << 10;
/// What a row costs beside its event: number, time, rank, sum and its cell. Bytes.
pub const ROW_BYTES: u64 = 40;
/// Events set aside that are kept.
pub const ASIDE_EVENTS_MAX: u64 = 256;
/// The smallest bound that makes sense. Bytes.
pub use super::room::BYTES_MIN;

const _: () = assert!(vidette_protocol::limits::EVENT_BYTES_MAX < READ_BYTES_MAX);
const _: () = assert!(READ_BYTES_MAX + 8 * BATCH_EVENTS_MAX <= vidette_protocol::limits::BATCH_BYTES_MAX);

/// An open outbox.
#[derive(Debug)]
pub struct Db {
    pub(super) connection: Connection,
    path: PathBuf,
    pub(super) host: Host,
    pub(super) limits: Limits,
    pub(super) epoch: u64,
    bytes: u64,
    events: u64,
    /// Rows that are gap events.
    gap_rows: u64,
    pub(super) growing: Vec<Growing>,
    pub(super) floors: Floors,
    pub(super) tally: Tally,
    /// Pages were given back since the log was last written back.
    gave_back: bool,
    /// What went wrong after a commit: the commit holds, the connection does not.
    broken: Option<rusqlite::Error>,
}

impl Db {
    pub(super) fn with(
        connection: Connection,
        path: &Path,
        limits: Limits,
        host: Host,
    ) -> rusqlite::Result<Self> {
        let path = path.to_path_buf();
        let mut db = Self {
            connection,
            path,
            host,
            limits,
            epoch: 0,
            bytes: 0,
            events: 0,
            gap_rows: 0,
            growing: Vec::new(),
            floors: Floors::default(),
            tally: Tally::default(),
            gave_back: false,
            broken: None,
        };
        db.load()?;
        db.state()?; // reads every table that is needed
        db.oldest()?;
        db.connection.query_row("SELECT count(*) FROM aside", [], |_| Ok(()))?;
        Ok(db)
    }

    /// Does all of it in one transaction, durable when this returns. On an error nothing was done, and the
    /// database has to be opened again (D3). Before it, room is made in transactions of their own, each with the gap
    /// that says what went.
    ///
    /// # Errors
    /// SQLite's.
    pub fn apply(&mut self, work: &[Work], now: Moment) -> rusqlite::Result<(Vec<Answer>, Tally)> {
        self.tally = Tally::default();
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.make_room(work, now)?;
        if work.iter().any(|work| self.renumbers(work)) {
            self.renumber_ahead()?;
        }
        let answers = self.transaction(|db| work.iter().map(|work| db.one(work, now)).collect())?;
        self.broken = self.cut_log().err();
        Ok((answers, self.tally))
    }

    /// Gives back a few free pages, or cuts the log after the last of them. True when there is more to do.
    ///
    /// # Errors
    /// SQLite's; the database has to be opened again.
    pub fn tidy(&mut self) -> rusqlite::Result<bool> {
        let spare = Pages::of(&self.connection)?.free.saturating_sub(self.limits.free_kept_pages);
        if spare > 0 && !self.is_tidy()? {
            let pages = spare.min(self.limits.give_back_pages);
            self.transaction(|db| room::give_back(&db.connection, pages))?;
            self.gave_back = true;
            self.cut_log()?;
        } else if self.gave_back {
            room::write_back(&self.connection)?; // only now does the file end earlier
            self.gave_back = false;
        }
        Ok(!self.is_tidy()?)
    }

    /// Whether [`Db::tidy`] has nothing to do.
    ///
    /// # Errors
    /// SQLite's.
    pub fn is_tidy(&self) -> rusqlite::Result<bool> {
        let can: i64 = self.connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
        let spare = Pages::of(&self.connection)?.free > self.limits.free_kept_pages;
        Ok(!(self.gave_back || spare && can == file::AUTO_VACUUM_INCREMENTAL))
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

    /// Writes everything back and closes.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn close(self) -> rusqlite::Result<()> {
        room::write_back(&self.connection)?;
        self.connection.close().map_err(|(_, error)| error)
    }

    pub(super) fn transaction<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = act(self).and_then(|done| self.connection.execute_batch("COMMIT").map(|()| done));
        if done.is_err() {
            let _ = self.connection.execute_batch("ROLLBACK"); // the connection is given up in any case
        }
        done
    }

    /// After a commit: the log is not kept beyond its share.
    pub(super) fn cut_log(&mut self) -> rusqlite::Result<()> {
        if room::wal_bytes(&self.path) > self.limits.wal_kept_bytes {
            room::write_back(&self.connection)?;
            self.gave_back = false;
        }
        Ok(())
    }

    /// Evicts until the work surely fits.
    fn make_room(&mut self, work: &[Work], now: Moment) -> rusqlite::Result<()> {
        let bytes: u64 = work.iter().map(|work| self.bytes_for(work)).sum();
        if bytes == 0 {
            return Ok(());
        }
        let need = self.limits.pages_for(bytes);
        while Pages::of(&self.connection)?.used() + need > self.limits.pages_max {
            let before = self.events;
            let short = Pages::of(&self.connection)?.used() + need + self.limits.slack_pages;
            let short = short.saturating_sub(self.limits.pages_max) * room::PAGE_BYTES;
            self.transaction(|db| db.evict(short, now))?;
            self.cut_log()?;
            if self.events >= before {
                break; // nothing is left that could go
            }
        }
        Ok(())
    }

    /// What rows of this work may take. Bytes; 0 when it adds nothing.
    fn bytes_for(&self, work: &Work) -> u64 {
        match work {
            Work::Append(events) => events
                .iter()
                .map(|event| event.encoded_len().min(self.limits.event_bytes_max) as u64 + ROW_BYTES)
                .sum(),
            Work::SetAside { .. } => self.limits.aside_bytes_max,
            Work::Restored { .. } | Work::NewEpoch => TEXT_BYTES_MAX as u64,
            Work::StateFor(_) if self.renumbers(work) => TEXT_BYTES_MAX as u64,
            Work::State | Work::StateFor(_) | Work::Read { .. } | Work::Forget { .. } => 0,
        }
    }

    /// Whether everything that waits gets a new number. An error shows itself when the work is done.
    fn renumbers(&self, work: &Work) -> bool {
        match work {
            Work::NewEpoch => true,
            Work::StateFor(agent) => self.is_of_another(*agent).unwrap_or(false),
            _ => false,
        }
    }

    fn evict(&mut self, bytes: u64, now: Moment) -> rusqlite::Result<()> {
        let runs_max = self.limits.evict_runs_max;
        let evicted = bound::evict(&self.connection, bytes, runs_max, &mut self.floors)?;
        self.freed(evicted.events, evicted.bytes, evicted.gap_rows);
        self.tally.lost += evicted.events;
        if evicted.gap_rows > 0 {
            self.stop_growing_where("seq NOT IN (SELECT seq FROM alert)", &[])?;
        }
        for mut gap in evicted.gaps {
            let place = (gap.class == Class::Alert.to_wire()).then_some(evicted.alert_last);
            gap.detail = format!("the outbox reached its bound of {} bytes", self.limits.bytes_max);
            self.grow(gap, place, now)?;
        }
        Ok(())
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
            Work::NewEpoch => self.new_epoch(Renumbered::NumbersNeverGiven, now),
            Work::StateFor(agent) => {
                self.belong_to(*agent, now)?;
                Ok(Answer::State(self.state()?))
            }
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
        let sum = "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(sum(rank = 3), 0) FROM";
        let sql = format!("{sum} (SELECT rank, body FROM alert UNION ALL SELECT rank, body FROM telemetry)");
        let (events, bytes, gap_rows): (u64, u64, u64) =
            self.connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        self.events = events;
        self.bytes = bytes.saturating_add(events.saturating_mul(ROW_BYTES));
        self.gap_rows = gap_rows;
        let mut growing = self.connection.prepare("SELECT reason, class, seq FROM growing")?;
        let growing = growing
            .query_map([], |row| Ok(Growing { reason: row.get(0)?, class: row.get(1)?, seq: row.get(2)? }))?;
        self.growing = growing.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    pub(super) fn append(&mut self, event: wire::Event, now: Moment) -> rusqlite::Result<()> {
        if reported::is_known(&self.connection, &event, self.limits.reported_max)? {
            self.tally.merged += 1;
            return Ok(());
        }
        if self.gap_rows >= gaps::GAPS_APART_MAX
            && let Some(Kind::Gap(gap)) = &event.kind
            && self.add_to_growing(gap, None)?
        {
            self.tally.merged += 1;
            return Ok(());
        }
        let (class, rank) = (Class::of(&event).unwrap_or(Class::Alert), Rank::of(&event));
        let kind = match &event.kind {
            Some(Kind::Gap(gap)) => Some((gap.reason, gap.class)),
            Some(_) | None => None,
        };
        match cut::encode(event, self.limits.event_bytes_max) {
            Ok(body) => {
                let seq = self.insert(class, None, rank, now.unix_ns, &body)?;
                match kind {
                    Some((reason, class)) if self.gap_rows >= gaps::GAPS_APART_MAX => {
                        self.may_grow(Growing { reason, class, seq })
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Err(bytes) => {
                tracing::error!(bytes, %class, "an event is beyond its limits and was dropped: report this");
                self.tally.oversized += 1;
                let reason = wire::GapReason::OutboxBound as i32;
                let detail =
                    format!("an event of class {class} is {bytes} bytes long or beyond another limit");
                self.grow(wire::Gap { reason, count: Some(1), detail, ..at(now) }, None, now)
            }
        }
    }

    /// Under `seq`, which must be free, or the next number. Gives the number.
    pub(super) fn insert(
        &mut self,
        class: Class,
        seq: Option<u64>,
        rank: Rank,
        created: i64,
        body: &[u8],
    ) -> rusqlite::Result<u64> {
        let table = class.name();
        let sql = format!("INSERT INTO {table} (seq, created, rank, body, sum) VALUES (?, ?, ?, ?, ?)");
        let row = params![seq, created, rank as i64, body, sum(rank as u64, created, body)];
        self.connection.prepare_cached(&sql)?.execute(row)?;
        self.events += 1;
        self.bytes += ROW_BYTES + body.len() as u64;
        self.gap_rows += u64::from(rank == Rank::Gap);
        self.tally.appended += 1;
        Ok(self.connection.last_insert_rowid().cast_unsigned())
    }

    /// Inserts a gap event. It is small and within its limits by construction.
    pub(super) fn gap(
        &mut self,
        gap: wire::Gap,
        place: Option<u64>,
        now: Moment,
    ) -> rusqlite::Result<Option<u64>> {
        let event = self.host.event(now, wire::Severity::Medium, Kind::Gap(gap));
        match cut::encode(event, self.limits.event_bytes_max) {
            Ok(body) => {
                self.tally.made += 1;
                self.insert(Class::Alert, place, Rank::Gap, now.unix_ns, &body).map(Some)
            }
            Err(bytes) => {
                tracing::error!(bytes, "a gap event is beyond its limits: report this");
                Ok(None)
            }
        }
    }

    /// Adds to the gap of this kind that still grows, or begins one.
    fn grow(&mut self, gap: wire::Gap, place: Option<u64>, now: Moment) -> rusqlite::Result<()> {
        if self.add_to_growing(&gap, place)? {
            return Ok(());
        }
        let (reason, class) = (gap.reason, gap.class);
        match self.gap(gap, place, now)? {
            Some(seq) => self.may_grow(Growing { reason, class, seq }),
            None => Ok(()),
        }
    }

    /// False when none of its kind grows. `place` is where it has to stand at least.
    fn add_to_growing(&mut self, gap: &wire::Gap, place: Option<u64>) -> rusqlite::Result<bool> {
        let of_its_kind = |one: &&mut Growing| one.reason == gap.reason && one.class == gap.class;
        let Some(growing) = self.growing.iter_mut().find(of_its_kind) else { return Ok(false) };
        let sql = "SELECT body, created FROM alert WHERE seq = ?";
        let (old, created): (Vec<u8>, i64) = self
            .connection
            .prepare_cached(sql)?
            .query_row([growing.seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some(event) = gaps::grown(&old, gap) else { return Ok(false) };
        let Ok(body) = cut::encode(event, self.limits.event_bytes_max) else { return Ok(false) };
        let to = place.map_or(growing.seq, |place| place.max(growing.seq));
        let sum = sum(Rank::Gap as u64, created, &body);
        let sql = "UPDATE alert SET seq = ?, body = ?, sum = ? WHERE seq = ?";
        self.connection.prepare_cached(sql)?.execute(params![to, body, sum, growing.seq])?;
        if to != growing.seq {
            let sql = "UPDATE growing SET seq = ? WHERE reason = ? AND class = ?";
            self.connection.prepare_cached(sql)?.execute(params![to, growing.reason, growing.class])?;
            growing.seq = to;
        }
        self.bytes = (self.bytes + body.len() as u64).saturating_sub(old.len() as u64);
        Ok(true)
    }

    fn may_grow(&mut self, new: Growing) -> rusqlite::Result<()> {
        let sql = "INSERT OR REPLACE INTO growing (reason, class, seq) VALUES (?, ?, ?)";
        self.connection.prepare_cached(sql)?.execute(params![new.reason, new.class, new.seq])?;
        self.growing.retain(|one| one.reason != new.reason || one.class != new.class);
        self.growing.push(new);
        Ok(())
    }

    /// From now on these are never changed.
    fn stop_growing(&mut self, first: u64, last: u64) -> rusqlite::Result<()> {
        if self.growing.iter().any(|one| (first..=last).contains(&one.seq)) {
            self.stop_growing_where("seq BETWEEN ? AND ?", &[first, last])?;
        }
        Ok(())
    }

    pub(super) fn stop_growing_where(&mut self, which: &str, numbers: &[u64]) -> rusqlite::Result<()> {
        let numbers = rusqlite::params_from_iter(numbers);
        self.connection.execute(&format!("DELETE FROM growing WHERE {which}"), numbers)?;
        let mut left = self.connection.prepare("SELECT seq FROM growing")?;
        let left: Vec<u64> = left.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        self.growing.retain(|one| left.contains(&one.seq));
        Ok(())
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

    fn read(&mut self, class: Class, from: u64, bytes_max: usize) -> rusqlite::Result<Run> {
        let mut run = self.rows(class, from, bytes_max.min(READ_BYTES_MAX))?;
        match class {
            Class::Alert => {
                let last = run.first_seq.saturating_add(run.events.len() as u64).saturating_sub(1);
                self.stop_growing(run.first_seq, last)?;
            }
            Class::Telemetry if run.skipped > 0 => {
                run.alerts_first = self.class_state(Class::Alert)?.last;
            }
            Class::Telemetry => {}
        }
        Ok(run)
    }

    fn rows(&self, class: Class, from: u64, bytes_max: usize) -> rusqlite::Result<Run> {
        let mut run =
            Run { epoch: self.epoch, first_seq: from, skipped: 0, alerts_first: 0, events: Vec::new() };
        let table = class.name();
        let sql =
            format!("SELECT seq, body, rank, created, sum FROM {table} WHERE seq >= ? ORDER BY seq LIMIT ?");
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
            let known: Option<i64> = row.get(4)?;
            if let Some(known) = known
                && known != sum(row.get(2)?, row.get(3)?, body)
            {
                return Err(misread(class, seq));
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
        let sum = format!(
            "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(sum(rank = 3), 0) FROM {table}
             WHERE seq BETWEEN ? AND ?"
        );
        let (events, bytes, gap_rows): (u64, u64, u64) = self
            .connection
            .prepare_cached(&sum)?
            .query_row([first, last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let sql = format!("DELETE FROM {table} WHERE seq BETWEEN ? AND ?");
        self.connection.prepare_cached(&sql)?.execute([first, last])?;
        self.freed(events, bytes, gap_rows);
        if class == Class::Alert {
            self.stop_growing(first, last)?;
        }
        Ok(events)
    }

    fn freed(&mut self, events: u64, bytes: u64, gap_rows: u64) {
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes + events * ROW_BYTES);
        self.gap_rows = self.gap_rows.saturating_sub(gap_rows);
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
        self.keep_aside(class, first, last, code, reason)?;
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
        let place = (class == Class::Alert).then_some(last);
        self.gap(gap, place, now)?;
        Ok(Answer::Done)
    }

    /// The newest ones, within both bounds of `aside`.
    fn keep_aside(
        &self,
        class: Class,
        first: u64,
        last: u64,
        code: i32,
        reason: &str,
    ) -> rusqlite::Result<()> {
        let table = class.name();
        let sql = format!(
            "INSERT INTO aside (epoch, class, seq, code, reason, body)
             SELECT ?1, ?2, seq, ?3, ?4, body FROM (
                 SELECT seq, body, sum(length(body)) OVER (ORDER BY seq) AS bytes FROM {table}
                 WHERE seq BETWEEN ?5 AND ?6 ORDER BY seq LIMIT ?7)
             WHERE bytes <= ?8"
        );
        let (epoch, bytes_max) = (self.epoch.cast_signed(), self.limits.aside_bytes_max);
        self.connection.execute(
            &sql,
            params![epoch, class.to_wire(), code, reason, first, last, ASIDE_EVENTS_MAX, bytes_max],
        )?;
        let sql = "DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - ?1 OR number IN (
                       SELECT number FROM (
                           SELECT number, sum(length(body)) OVER (ORDER BY number DESC) AS bytes FROM aside)
                       WHERE bytes > ?2)";
        self.connection.execute(sql, params![ASIDE_EVENTS_MAX, bytes_max]).map(drop)
    }

    /// The gap has a new number: those that the collector has lost were given to others already.
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
        self.gap(gap, None, now)?;
        Ok(Answer::Done)
    }
}

/// What is kept beside a row to know it again: the first bytes of BLAKE3 over rank, time and body.
#[must_use]
pub(super) fn sum(rank: u64, created: i64, body: &[u8]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&rank.to_le_bytes()).update(&created.to_le_bytes()).update(body);
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    i64::from_le_bytes(first)
}

fn misread(class: Class, seq: u64) -> rusqlite::Error {
    let reason = format!("{class} {seq} does not fit its sum");
    rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Blob, reason.into())
}

pub(super) fn at(now: Moment) -> wire::Gap {
    wire::Gap { from_unix_ns: now.unix_ns, to_unix_ns: now.unix_ns, ..Default::default() }
}
