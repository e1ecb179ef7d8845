//! A new epoch: everything that waits is numbered anew from 1, without holes.
//!
//! Rewrites most rows, so it is done in parts, each a small transaction, before the last one changes the epoch. A
//! crash in between leaves new numbers under the old epoch; what led here (the collector has numbers that were never
//! given, or another agent's) still holds at the next connection, and the walk begins again and finds the numbers in order.

use super::bound::Floors;
use super::db::{Answer, Db};
use crate::host::Moment;
use rusqlite::{OptionalExtension, params};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::{self, event::Kind};

/// Why there is a new epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renumbered {
    /// The collector has numbers that were never given.
    NumbersNeverGiven,
    /// The numbers were those of the agent that this host was before.
    JoinedAnew,
}

/// Where the walk is.
#[derive(Default)]
struct At {
    old: u64,
    new: u64,
}

impl Db {
    /// Gives every row its new number, in parts.
    pub(super) fn renumber_ahead(&mut self) -> rusqlite::Result<()> {
        self.transaction(|db| db.stop_growing_where("true", &[]))?;
        self.floors = Floors::default();
        for class in Class::ALL {
            let mut at = At::default();
            while !self.transaction(|db| db.renumber(class, &mut at))? {
                self.cut_log()?;
            }
            self.cut_log()?;
        }
        Ok(())
    }

    /// Whether the numbers belong to an agent that is not this one.
    pub(super) fn is_of_another(&self, agent: AgentId) -> rusqlite::Result<bool> {
        let sql = "SELECT agent IS NOT NULL AND agent <> ? FROM outbox";
        self.connection.query_row(sql, [agent.0], |row| row.get(0))
    }

    /// Numbers for this agent, after [`Db::renumber_ahead`] where they were another's. Writes nothing when they are its own:
    /// an agent connects and empties its outbox on a full disk too.
    pub(super) fn belong_to(&mut self, agent: AgentId, now: Moment) -> rusqlite::Result<()> {
        let owner: Option<Vec<u8>> =
            self.connection.query_row("SELECT agent FROM outbox", [], |row| row.get(0))?;
        if owner.as_deref() == Some(&agent.0) {
            return Ok(());
        }
        if owner.is_some() {
            self.new_epoch(Renumbered::JoinedAnew, now)?;
        }
        self.connection.execute("UPDATE outbox SET agent = ?", [agent.0]).map(drop)
    }

    /// After [`Db::renumber_ahead`].
    pub(super) fn new_epoch(&mut self, why: Renumbered, now: Moment) -> rusqlite::Result<Answer> {
        self.epoch = rand::random();
        self.connection.execute("UPDATE outbox SET epoch = ?", [self.epoch.cast_signed()])?;
        self.connection.execute("DELETE FROM acked", [])?;
        let mut at = [At::default(), At::default()];
        for (class, at) in Class::ALL.into_iter().zip(&mut at) {
            while !self.renumber(class, at)? {} // only what was appended in this very transaction
            self.end_numbers_at_the_last(class)?;
        }
        let (state, severity, words) = match why {
            Renumbered::NumbersNeverGiven => (
                wire::HealthState::Degraded,
                wire::Severity::Medium,
                "the collector has numbers that this outbox never gave, as after a restored disk: what waits is sent again",
            ),
            Renumbered::JoinedAnew => (
                wire::HealthState::Ok,
                wire::Severity::Info,
                "this host has joined as another agent: what its older self left is sent",
            ),
        };
        let message = format!("{words} under a new epoch, numbers in earlier gaps belong to the old one");
        let health = wire::Health { component: "outbox".into(), state: state.into(), message };
        let event = self.host.event(now, severity, Kind::Health(health));
        self.tally.made += 1;
        self.append(event, now)?;
        Ok(Answer::Epoch(self.epoch))
    }

    /// The next number to be given is the one after the last row.
    pub(super) fn end_numbers_at_the_last(&self, class: Class) -> rusqlite::Result<()> {
        let table = class.name();
        let sql = format!(
            "UPDATE sqlite_sequence SET seq = (SELECT coalesce(max(seq), 0) FROM {table}) WHERE name = ?"
        );
        self.connection.execute(&sql, [table]).map(drop)
    }

    /// New numbers are never above old ones, so walking upwards never meets a number in use. True at the end.
    fn renumber(&mut self, class: Class, at: &mut At) -> rusqlite::Result<bool> {
        let table = class.name();
        let next = format!("SELECT seq, length(body) FROM {table} WHERE seq > ? ORDER BY seq LIMIT 1");
        let update = format!("UPDATE {table} SET seq = ? WHERE seq = ?");
        let mut moved = 0;
        while moved < self.limits.group_bytes_max {
            let row = self
                .connection
                .prepare_cached(&next)?
                .query_row([at.old], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)));
            let Some((seq, bytes)) = row.optional()? else { return Ok(true) };
            at.new += 1;
            at.old = seq;
            if at.new != seq {
                self.connection.prepare_cached(&update)?.execute(params![at.new, seq])?;
                moved += bytes;
            }
        }
        Ok(false)
    }
}
