//! Who is connected now, and what each agent last said. Lives in memory; the register in `identity` remembers.
//!
//! Holds one entry an agent, and only for agents that have connected with a certificate of ours. The fleet
//! commands read `Fleet::snapshot`; a revocation reaches live connections through `Fleet::cut`.

use super::conduct::{Conduct, Denied};
use super::notices::Absent;
use super::rate::Allowance;
use super::silence::{Change, Pulse};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::{LIST_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX};
use vidette_protocol::wire::{Health, Hello, RefuseCode, Status};

/// Agents that are remembered while they are away; the longest away is forgotten first.
pub const AWAY_MAX: usize = 10_000;
/// A refusal of one agent is logged again after this. Seconds.
const REFUSAL_LOG_EVERY_S: i64 = 60;
/// That an agent is there twice is told again after this: two copies take turns all the time.
const TWICE_TOLD_EVERY: Duration = Duration::from_secs(60);

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
    /// How often it was cut off for misbehaving since this program started; `refused` says why, the last time.
    pub cut_offs: u64,
    /// Until when it is not let in for that, Unix seconds; may be past.
    pub barred_until_unix_s: Option<i64>,
    /// How often it had to wait because it sent more than its rate.
    pub slowed: u64,
    /// How often two connections of it were alive at the same time since this program started.
    pub twice: u64,
    /// When that was last, Unix seconds, and from where: the older and the newer.
    pub twice_last: Option<(i64, SocketAddr, SocketAddr)>,
}

/// Why a live connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The agent was revoked.
    Revoked,
    /// The agent has left.
    Left,
    /// The agent's identity was copied.
    Cloned,
    /// The same agent has a newer connection.
    Replaced,
    /// The agent misbehaves on other connections.
    Barred,
}

#[derive(Debug)]
struct Live {
    member: Member,
    session: Option<(u64, watch::Sender<Option<Cut>>)>,
    logged_unix_s: Option<i64>,
    conduct: Conduct,
    /// It was shut out while this program ran: whoever was let in a moment before that is cut too.
    shut: Option<Cut>,
    /// When it was told last that it is there twice, and how often it was so since.
    twice_told: Option<(Instant, u64)>,
    pulse: Pulse,
}

impl Live {
    fn new(now: Instant) -> Self {
        Self {
            member: Member::default(),
            session: None,
            logged_unix_s: None,
            conduct: Conduct::new(now),
            shut: None,
            twice_told: None,
            pulse: Pulse::default(),
        }
    }

    fn absent(&self, agent: AgentId) -> Absent {
        let member = &self.member;
        let refused = member.refused.as_ref().filter(|(at, _, _)| *at >= member.heard_unix_s);
        Absent {
            agent,
            host_name: member.hello.as_ref().map(|hello| hello.host_name.clone()).unwrap_or_default(),
            time: Duration::ZERO,
            address: member.address,
            is_connected: self.session.is_some(),
            said_goodbye: self.pulse.has_said_goodbye(),
            refused: refused.map(|(_, _, reason)| reason.clone()),
        }
    }

    /// Cut off: not let in for a while.
    fn bar(&mut self, now: Instant, now_unix_s: i64) -> Duration {
        let bar = self.conduct.offence(now);
        self.member.cut_offs += 1;
        let bar_s = i64::try_from(bar.as_secs()).unwrap_or(i64::MAX);
        self.member.barred_until_unix_s = Some(now_unix_s.saturating_add(bar_s));
        if let Some((_, session)) = &self.session {
            session.send_replace(Some(Cut::Barred));
        }
        bar
    }
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

    /// Looks at everybody that is connected or was not long ago, in no order, without a copy. Connections wait
    /// meanwhile: for a glance only.
    pub fn for_each(&self, mut look: impl FnMut(AgentId, &Member)) {
        self.lock().iter().for_each(|(agent, live)| look(*agent, &live.member));
    }

    /// One of them.
    #[must_use]
    pub fn member(&self, agent: AgentId) -> Option<Member> {
        self.lock().get(&agent).map(|live| live.member.clone())
    }

    /// Ends an agent's live connection as revoked, and every later one; false when it has none now.
    pub fn cut(&self, agent: AgentId) -> bool {
        self.cut_as(agent, Cut::Revoked)
    }

    /// Ends an agent's live connection for good; false when it has none now.
    pub fn cut_as(&self, agent: AgentId, cut: Cut) -> bool {
        let mut fleet = self.lock();
        let live = fleet.entry(agent).or_insert_with(|| Live::new(Instant::now()));
        live.shut = Some(cut);
        let was_connected = match &live.session {
            Some((_, session)) => session.send(Some(cut)).is_ok(),
            None => false,
        };
        make_room(&mut fleet);
        was_connected
    }

    /// An agent was there twice. Whether that has to be told now: how often it was so since it was told last.
    pub(super) fn twice(
        &self,
        agent: AgentId,
        (older, newer): (SocketAddr, SocketAddr),
        now: Instant,
        now_unix_s: i64,
    ) -> Option<u64> {
        let mut fleet = self.lock();
        let live = fleet.get_mut(&agent)?;
        live.member.twice += 1;
        live.member.twice_last = Some((now_unix_s, older, newer));
        match &mut live.twice_told {
            Some((told, untold)) if now.saturating_duration_since(*told) < TWICE_TOLD_EVERY => {
                *untold += 1;
                None
            }
            told => {
                let untold = told.map_or(0, |(_, untold)| untold);
                *told = Some((now, 0));
                Some(untold)
            }
        }
    }

    /// These were there before the collector started; when they were heard then, Unix seconds.
    pub(super) fn expect(&self, agents: Vec<(AgentId, i64)>, at: Instant) {
        let mut fleet = self.lock();
        for (agent, heard_unix_s) in agents.into_iter().take(AWAY_MAX) {
            let live = fleet.entry(agent).or_insert_with(|| Live::new(at));
            live.pulse.expect(at);
            live.member.heard_unix_s = live.member.heard_unix_s.max(heard_unix_s);
        }
    }

    /// Who fell silent, and who is back, since this was asked last. Not those that were shut out.
    pub(super) fn pulses(&self, now: Instant, patience: Duration) -> Vec<(Absent, Change)> {
        let mut fleet = self.lock();
        let all = fleet.iter_mut().filter(|(_, live)| live.shut.is_none());
        all.filter_map(|(agent, live)| Some((live.pulse.look(now, patience)?, *agent, &*live)))
            .map(|(change, agent, live)| (live.absent(agent), change))
            .collect()
    }

    /// Agents that are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.lock().values().filter(|live| live.session.is_some()).count()
    }

    /// Whether an agent may connect now, by its conduct; else why not, in one sentence. Coming too often is an offence.
    pub(super) fn admit(
        &self,
        agent: AgentId,
        now: Instant,
        now_unix_s: i64,
    ) -> Result<(), (RefuseCode, String)> {
        let mut fleet = self.lock();
        let live = fleet.entry(agent).or_insert_with(|| Live::new(now));
        let reason = match live.conduct.admit(now) {
            Ok(()) => return Ok(()),
            Err(Denied::Barred(left)) => {
                format!("the agent was cut off for misbehaving and may come back in {} s", left.as_secs() + 1)
            }
            Err(Denied::TooOften) => format!(
                "the agent broke the protocol: it opened too many connections; it may come back in {} s",
                live.bar(now, now_unix_s).as_secs()
            ),
        };
        // Whoever is shut out for good hears that, however often he comes: it says what to do.
        let last = live.member.refused.as_ref().filter(|(at, ..)| *at >= live.member.heard_unix_s);
        let for_good = last.filter(|(_, code, _)| {
            matches!(code, RefuseCode::Revoked | RefuseCode::Left | RefuseCode::Cloned)
        });
        Err(for_good.map_or((RefuseCode::Misbehaved, reason), |(_, code, why)| (*code, why.clone())))
    }

    /// An agent is being cut off for what it did.
    pub(super) fn offence(&self, agent: AgentId, now: Instant, now_unix_s: i64) {
        if let Some(live) = self.lock().get_mut(&agent) {
            live.bar(now, now_unix_s);
        }
    }

    /// Whether an agent may have one more certificate now.
    pub(super) fn may_renew(&self, agent: AgentId, now: Instant) -> bool {
        let mut fleet = self.lock();
        let may = fleet.entry(agent).or_insert_with(|| Live::new(now)).conduct.may_renew(now);
        make_room(&mut fleet);
        may
    }

    /// A new session of an agent. An older one of the same agent is cut.
    pub(super) fn enter(&self, agent: AgentId, address: SocketAddr, now_unix_s: i64) -> Seat {
        let mut fleet = self.lock();
        let live = fleet.entry(agent).or_insert_with(|| Live::new(Instant::now()));
        let (sender, cut) = watch::channel(live.shut);
        live.member.connections += 1;
        let number = live.member.connections;
        if let Some((_, older)) = live.session.replace((number, sender)) {
            live.member.replaced += 1;
            older.send_replace(Some(Cut::Replaced));
        }
        live.member.connected_unix_s = Some(now_unix_s);
        live.member.heard_unix_s = now_unix_s;
        live.member.address = Some(address);
        live.pulse.came(Instant::now());
        drop(fleet);
        Seat { fleet: self.clone(), agent, number, cut }
    }

    /// Notes a refusal; true when it should be logged, which is at most once a minute an agent.
    pub(super) fn refused(&self, agent: AgentId, code: RefuseCode, reason: &str, now_unix_s: i64) -> bool {
        let mut fleet = self.lock();
        let live = fleet.entry(agent).or_insert_with(|| Live::new(Instant::now()));
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

    /// Whether its outbox may be this one: each that is new has to be remembered for ever.
    pub(super) fn may_begin(&self, epoch: u64, now: Instant) -> bool {
        let mut fleet = self.fleet.lock();
        fleet.get_mut(&self.agent).is_none_or(|live| live.conduct.may_begin(epoch, now))
    }

    /// It has ended its connection because it stops. Not when a newer connection has taken the place.
    pub(super) fn said_goodbye(&self) {
        if let Some(live) = self.fleet.lock().get_mut(&self.agent)
            && live.session.as_ref().is_some_and(|(number, _)| *number == self.number)
        {
            live.pulse.said_goodbye();
        }
    }

    /// What it may still send.
    pub(super) fn allowance(&self) -> Arc<Mutex<Allowance>> {
        let now = Instant::now();
        let fresh = || Arc::new(Mutex::new(Allowance::new(now)));
        self.fleet.lock().get(&self.agent).map_or_else(fresh, |live| live.conduct.allowance())
    }

    /// It has to wait, because it sent too much.
    pub(super) fn slowed(&self) {
        if let Some(live) = self.fleet.lock().get_mut(&self.agent) {
            live.member.slowed += 1;
        }
    }

    /// Where the agent's newest connection comes from.
    pub(super) fn newest_address(&self) -> Option<SocketAddr> {
        self.fleet.lock().get(&self.agent).and_then(|live| live.member.address)
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

    /// So many events, which may be a part of a batch.
    pub(super) fn committed(&self, events: u64, ends_a_batch: bool, now_unix_s: i64) {
        self.change(now_unix_s, |member| {
            member.batches += u64::from(ends_a_batch);
            member.events += events;
        });
    }

    /// Not when a newer connection has taken the place.
    fn change(&self, now_unix_s: i64, change: impl FnOnce(&mut Member)) {
        if let Some(live) = self.fleet.lock().get_mut(&self.agent)
            && live.session.as_ref().is_some_and(|(number, _)| *number == self.number)
        {
            live.member.heard_unix_s = now_unix_s;
            live.pulse.heard(Instant::now());
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
    hello.roots.clear(); // the register has them
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
        older.committed(5, true, 30);
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

    #[tokio::test]
    async fn who_was_let_in_a_moment_before_the_revocation_is_cut_too() {
        let fleet = Fleet::new();
        assert!(!fleet.cut(id(1)), "it is not connected yet");
        let mut late = fleet.enter(id(1), address(), 0);
        assert_eq!(late.cut().await, Cut::Revoked);
        assert!(!fleet.cut_as(id(2), Cut::Left));
        assert_eq!(fleet.enter(id(2), address(), 0).cut().await, Cut::Left);
    }

    #[test]
    fn two_copies_that_take_turns_are_told_once_a_minute_and_counted() {
        let fleet = Fleet::new();
        let _seat = fleet.enter(id(1), address(), 0);
        let start = Instant::now();
        let told: Vec<Option<u64>> = (0..130)
            .map(|s| fleet.twice(id(1), (address(), address()), start + Duration::from_secs(s), 0))
            .collect();
        let said: Vec<(usize, u64)> =
            told.iter().enumerate().filter_map(|(at, untold)| Some((at, (*untold)?))).collect();
        assert_eq!(said, [(0, 0), (60, 59), (120, 59)]);
        assert_eq!(fleet.member(id(1)).unwrap().twice, 130);
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

    #[tokio::test]
    async fn who_misbehaves_is_named_shut_out_and_let_in_again() {
        let fleet = Fleet::new();
        let start = Instant::now();
        assert_eq!(fleet.admit(id(1), start, 1000), Ok(()));
        let mut seat = fleet.enter(id(1), address(), 1000);
        fleet.offence(id(1), start, 1000);
        assert_eq!(seat.cut().await, Cut::Barred);
        let (code, error) = fleet.admit(id(1), start, 1000).unwrap_err();
        assert_eq!(code, RefuseCode::Misbehaved);
        assert!(error.contains("may come back in"), "{error}");
        let member = fleet.member(id(1)).unwrap();
        assert_eq!((member.cut_offs, member.barred_until_unix_s), (1, Some(1002)));
        assert_eq!(fleet.admit(id(1), start + Duration::from_secs(3), 1003), Ok(()));
        assert_eq!(fleet.admit(id(2), start, 1000), Ok(()), "others do not feel it");
    }

    #[test]
    fn who_is_shut_out_for_good_hears_why_however_often_he_comes() {
        let fleet = Fleet::new();
        let now = Instant::now();
        drop(fleet.enter(id(1), address(), 1000));
        for code in [RefuseCode::Cloned, RefuseCode::Left, RefuseCode::Revoked] {
            fleet.refused(id(1), code, "for good", 1000);
            let denied: Vec<_> = (0..1000).filter_map(|_| fleet.admit(id(1), now, 1000).err()).collect();
            assert!(denied.len() > 900);
            assert!(denied.iter().all(|denied| *denied == (code, "for good".to_owned())), "{:?}", denied[0]);
        }
        fleet.refused(id(1), RefuseCode::Overloaded, "for now", 1000);
        assert_eq!(fleet.admit(id(1), now, 1000).map_err(|(code, _)| code), Err(RefuseCode::Misbehaved));
    }

    #[tokio::test]
    async fn a_thousand_connections_are_an_offence_and_cost_one_agent_its_session() {
        let fleet = Fleet::new();
        let now = Instant::now();
        let mut other = fleet.enter(id(2), address(), 0);
        let mut seats = Vec::new();
        let refused: Vec<String> = (0..1000)
            .filter_map(|_| match fleet.admit(id(1), now, 0) {
                Ok(()) => {
                    seats.push(fleet.enter(id(1), address(), 0));
                    None
                }
                Err((_, reason)) => Some(reason),
            })
            .collect();
        assert!(seats.len() < 50 && refused[0].contains("too many connections"), "{}", refused[0]);
        assert!(refused[1..].iter().all(|reason| reason.contains("may come back in")));
        assert_eq!(seats.last_mut().unwrap().cut().await, Cut::Barred);
        assert_eq!(fleet.member(id(1)).unwrap().cut_offs, 1, "what is refused is no new offence");
        let calm = tokio::time::timeout(Duration::from_millis(10), other.cut()).await;
        assert!(calm.is_err(), "others stay");
    }
}
