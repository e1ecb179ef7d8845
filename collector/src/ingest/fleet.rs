//! Who is connected now, and what each agent last said. Lives in memory; the register in `identity` remembers.
//!
//! Holds one entry an agent, and only for agents that have connected with a certificate of ours. The fleet
//! commands read `Fleet::snapshot`; a revocation reaches live connections through `Fleet::cut`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::{LIST_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX};
use vidette_protocol::wire::{Health, Hello, RefuseCode, Status};

/// Agents that are remembered while they are away; the longest away is forgotten first.
pub const AWAY_MAX: usize = 10_000;
/// A refusal of one agent is logged again after this. Seconds.
const REFUSAL_LOG_EVERY_S: i64 = 60;

/// The handle. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Fleet(Arc<Mutex<HashMap<AgentId, Live>>>);

/// One agent as it is now.
#[derive(Debug, Clone, Default)]
pub struct Member {
    /// Since when it is connected, Unix seconds; `None` when it is away.
    pub connected_unix_s: Option<i64>,
    /// When it was heard last, Unix seconds.
    pub heard_unix_s: i64,
    /// Where its connection comes, or came, from.
    pub address: Option<SocketAddr>,
    /// What it said of itself at the start of its session, cut to its limits.
    pub hello: Option<Hello>,
    /// What it said last, cut to its limits.
    pub status: Option<Status>,
    /// Why it was refused last, and when (Unix seconds).
    pub refused: Option<(i64, RefuseCode, String)>,
    /// Sessions since this program started.
    pub connections: u64,
    /// Of these, how many ended because the same agent opened another: a clone, or a changed network.
    pub replaced: u64,
    /// Batches that were committed.
    pub batches: u64,
    /// Events that were committed.
    pub events: u64,
}

/// Why a live connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The agent was revoked.
    Revoked,
    /// The same agent has a newer connection.
    Replaced,
}

#[derive(Debug, Default)]
struct Live {
    member: Member,
    session: Option<(u64, watch::Sender<Option<Cut>>)>,
    logged_unix_s: Option<i64>,
}

/// A connected agent's place; leaving it says that the agent is away.
#[derive(Debug)]
pub(super) struct Seat {
    fleet: Fleet,
    agent: AgentId,
    number: u64,
    cut: watch::Receiver<Option<Cut>>,
}

impl Fleet {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everybody that is connected or was not long ago, by id.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(AgentId, Member)> {
        let mut all: Vec<_> = self.lock().iter().map(|(agent, live)| (*agent, live.member.clone())).collect();
        all.sort_by_key(|(agent, _)| *agent);
        all
    }

    /// One of them.
    #[must_use]
    pub fn member(&self, agent: AgentId) -> Option<Member> {
        self.lock().get(&agent).map(|live| live.member.clone())
    }

    /// Ends an agent's live connection as revoked; false when it has none.
    pub fn cut(&self, agent: AgentId) -> bool {
        match self.lock().get(&agent).and_then(|live| live.session.as_ref()) {
            Some((_, cut)) => cut.send(Some(Cut::Revoked)).is_ok(),
            None => false,
        }
    }

    /// Agents that are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.lock().values().filter(|live| live.session.is_some()).count()
    }

    /// A new session of an agent. An older one of the same agent is cut.
    pub(super) fn enter(&self, agent: AgentId, address: SocketAddr, now_unix_s: i64) -> Seat {
        let (sender, cut) = watch::channel(None);
        let mut fleet = self.lock();
        let live = fleet.entry(agent).or_default();
        live.member.connections += 1;
        let number = live.member.connections;
        if let Some((_, older)) = live.session.replace((number, sender)) {
            live.member.replaced += 1;
            older.send_replace(Some(Cut::Replaced));
        }
        live.member.connected_unix_s = Some(now_unix_s);
        live.member.heard_unix_s = now_unix_s;
        live.member.address = Some(address);
        drop(fleet);
        Seat { fleet: self.clone(), agent, number, cut }
    }

    /// Notes a refusal; true when it should be logged, which is at most once a minute an agent.
    pub(super) fn refused(&self, agent: AgentId, code: RefuseCode, reason: &str, now_unix_s: i64) -> bool {
        let mut fleet = self.lock();
        let live = fleet.entry(agent).or_default();
        live.member.refused = Some((now_unix_s, code, cut_text(reason, TEXT_BYTES_MAX)));
        let due = live.logged_unix_s.is_none_or(|logged| (now_unix_s - logged).abs() >= REFUSAL_LOG_EVERY_S);
        if due {
            live.logged_unix_s = Some(now_unix_s);
        }
        make_room(&mut fleet);
        due
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentId, Live>> {
        // Every change below is complete in itself: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Which agent sits here.
    pub(super) fn agent(&self) -> AgentId {
        self.agent
    }

    /// Waits until this connection must end. Safe to drop and call again.
    pub(super) async fn cut(&mut self) -> Cut {
        match self.cut.wait_for(Option::is_some).await.map(|cut| *cut) {
            Ok(Some(cut)) => cut,
            // The sender goes only when another connection takes the place.
            Ok(None) | Err(_) => Cut::Replaced,
        }
    }

    pub(super) fn hello(&self, hello: &Hello, now_unix_s: i64) {
        self.change(now_unix_s, |member| member.hello = Some(bounded_hello(hello)));
    }

    pub(super) fn status(&self, status: &Status, now_unix_s: i64) {
        self.change(now_unix_s, |member| member.status = Some(bounded_status(status)));
    }

    pub(super) fn committed(&self, events: u64, now_unix_s: i64) {
        self.change(now_unix_s, |member| {
            member.batches += 1;
            member.events += events;
        });
    }

    /// Not when a newer connection has taken the place.
    fn change(&self, now_unix_s: i64, change: impl FnOnce(&mut Member)) {
        if let Some(live) = self.fleet.lock().get_mut(&self.agent)
            && live.session.as_ref().is_some_and(|(number, _)| *number == self.number)
        {
            live.member.heard_unix_s = now_unix_s;
            change(&mut live.member);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut fleet = self.fleet.lock();
        if let Entry::Occupied(mut entry) = fleet.entry(self.agent)
            && entry.get().session.as_ref().is_some_and(|(number, _)| *number == self.number)
        {
            entry.get_mut().session = None;
            entry.get_mut().member.connected_unix_s = None;
        }
        make_room(&mut fleet);
    }
}

/// Forgets a part of those that are away the longest, when they are too many.
fn make_room(fleet: &mut HashMap<AgentId, Live>) {
    let mut away: Vec<(i64, AgentId)> = Vec::new();
    if fleet.len() > AWAY_MAX {
        away.extend(
            fleet
                .iter()
                .filter(|(_, live)| live.session.is_none())
                .map(|(id, live)| (live.member.heard_unix_s, *id)),
        );
    }
    if away.len() > AWAY_MAX {
        away.sort_unstable();
        // A tenth at once, so that this is not done for every agent that leaves.
        for (_, agent) in away.iter().take(away.len() - AWAY_MAX + AWAY_MAX / 10) {
            fleet.remove(agent);
        }
    }
}

fn bounded_hello(hello: &Hello) -> Hello {
    let mut hello = hello.clone();
    hello.classes.truncate(4);
    hello.host_name.truncate(NAME_BYTES_MAX);
    for text in [&mut hello.agent_version, &mut hello.boot_id, &mut hello.rules_version, &mut hello.os] {
        *text = cut_text(text, NAME_BYTES_MAX);
    }
    hello
}

fn bounded_status(status: &Status) -> Status {
    let mut status = status.clone();
    status.rules_version = cut_text(&status.rules_version, NAME_BYTES_MAX);
    status.counters.truncate(LIST_MAX);
    status.counters.iter_mut().for_each(|counter| counter.name = cut_text(&counter.name, NAME_BYTES_MAX));
    status.health.truncate(LIST_MAX);
    status.health.iter_mut().for_each(bound_health);
    status
}

fn bound_health(health: &mut Health) {
    health.component = cut_text(&health.component, NAME_BYTES_MAX);
    health.message = cut_text(&health.message, TEXT_BYTES_MAX);
}

fn cut_text(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 9).into()
    }

    fn id(number: u64) -> AgentId {
        AgentId(u128::from(number).to_be_bytes())
    }

    #[tokio::test]
    async fn a_newer_connection_replaces_the_older_and_keeps_its_place() {
        let fleet = Fleet::new();
        let mut older = fleet.enter(id(1), address(), 10);
        let mut newer = fleet.enter(id(1), address(), 20);
        assert_eq!(older.cut().await, Cut::Replaced);
        older.committed(5, 30);
        drop(older);
        let member = fleet.member(id(1)).unwrap();
        assert_eq!(
            (member.connected_unix_s, member.connections, member.replaced, member.events),
            (Some(20), 2, 1, 0)
        );
        assert!(fleet.cut(id(1)));
        assert_eq!(newer.cut().await, Cut::Revoked);
        drop(newer);
        assert_eq!((fleet.connected(), fleet.member(id(1)).unwrap().connected_unix_s), (0, None));
        assert!(!fleet.cut(id(1)));
    }

    #[test]
    fn who_is_away_is_forgotten_beyond_the_limit_but_nobody_who_is_connected() {
        let fleet = Fleet::new();
        let stays = fleet.enter(id(0), address(), 0);
        for number in 1..=(AWAY_MAX as u64 + 50) {
            drop(fleet.enter(id(number), address(), i64::try_from(number).unwrap()));
        }
        let all = fleet.snapshot();
        assert!(all.len() <= AWAY_MAX + 1, "{}", all.len());
        assert!(fleet.member(stays.agent()).is_some() && fleet.member(id(1)).is_none());
        assert!(fleet.member(id(AWAY_MAX as u64 + 50)).is_some());
    }

    #[test]
    fn a_refusal_is_logged_once_a_minute() {
        let fleet = Fleet::new();
        let logged: Vec<i64> =
            (0..150).filter(|now| fleet.refused(id(1), RefuseCode::Misbehaved, "garbage", *now)).collect();
        assert_eq!(logged, [0, 60, 120]);
    }

    #[test]
    fn what_an_agent_says_is_cut_to_its_limits() {
        let health = Health { component: "ü".repeat(1000), state: 0, message: "m".repeat(9999) };
        let status = bounded_status(&Status { health: vec![health; 1000], ..Default::default() });
        assert_eq!(status.health.len(), LIST_MAX);
        assert_eq!(
            (status.health[0].component.len(), status.health[0].message.len()),
            (NAME_BYTES_MAX, TEXT_BYTES_MAX)
        );
        assert_eq!(cut_text("aü", 2), "a");
    }
}
