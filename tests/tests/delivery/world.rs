//! One agent, one collector, a link and a clock, all driven by one seed.
//!
//! Real: both sessions, the outbox's database, the store's database, the backoff. Fake: time and the link. The
//! link keeps the order of a stream, as QUIC does, delays each message, is cut with whatever is on its way
//! lost, drops a single frame, or goes silent without a word. Either side crashes between any two of its steps.

use super::events::{self, Appended};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vidette_agent::host::{Host, Moment};
use vidette_agent::outbox::db::{Answer, BYTES_MIN, Db as Outbox, Work};
use vidette_agent::transport::backoff::Backoff;
use vidette_agent::transport::session as agent;
use vidette_collector::ingest::session as collector;
use vidette_collector::store::db::{Db as Store, Memory};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::{self, to_agent, to_collector};

const AGENT: AgentId = AgentId([7; 16]);
const DAY_NS: i64 = 86_400_000_000_000;
/// Trouble ends here; afterwards everything has to come to rest. Milliseconds.
const TROUBLE_UNTIL: u64 = 120_000;
/// Not at rest by then: stuck. Milliseconds.
const REST_UNTIL: u64 = TROUBLE_UNTIL + 600_000;
const STEPS_MAX: u64 = 50_000;

/// A mistake made around the product's code, never in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    NumberReuse,
    NotIdempotent,
    ForgetOnSend,
    Stuck,
}

/// How much trouble there was, so that a world without any is noticed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) stored: u64,
    pub(crate) missing: u64,
    cuts: u64,
    silences: u64,
    agent_crashes: u64,
    collector_crashes: u64,
    failed_commits: u64,
    resent: u64,
    nacks: u64,
    rejects: u64,
    set_aside: u64,
    overflowed: u64,
    skipped: u64,
    lost_frames: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.all_mut().into_iter().zip(other.all()) {
            *sum += more;
        }
    }

    pub(crate) fn nothing_was_left_out(&self) -> bool {
        self.all().iter().all(|&count| count > 0)
    }

    fn all(&self) -> [u64; 14] {
        let mut copy = *self;
        copy.all_mut().map(|count| *count)
    }

    fn all_mut(&mut self) -> [&mut u64; 14] {
        [
            &mut self.stored,
            &mut self.missing,
            &mut self.cuts,
            &mut self.silences,
            &mut self.agent_crashes,
            &mut self.collector_crashes,
            &mut self.failed_commits,
            &mut self.resent,
            &mut self.nacks,
            &mut self.rejects,
            &mut self.set_aside,
            &mut self.overflowed,
            &mut self.skipped,
            &mut self.lost_frames,
        ]
    }
}

enum Happening {
    Append,
    Connect,
    AgentUp,
    CollectorUp,
    AgentCrash,
    CollectorCrash,
    Cut,
    Silence,
    StoreCommit,
    Tick(u64),
    AgentHears(u64, agent::Stream, wire::ToAgent),
    CollectorHears(u64, agent::Stream, Box<wire::ToCollector>),
    AgentClosed(u64),
    CollectorClosed(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Up,
    /// Takes everything, carries nothing.
    Silent,
}

pub(crate) struct World {
    pub(crate) seen: Seen,
    pub(crate) appended: Vec<Appended>,
    pub(crate) epoch: u64,
    bug: Bug,
    rng: StdRng,
    folder: TempDir,
    began: Instant,
    now: u64,
    wall_ns: i64,
    order: u64,
    steps: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    markers: u64,
    outbox_bytes: u64,
    outbox: Option<Outbox>,
    agent: agent::Session,
    backoff: Backoff,
    store: Option<Store>,
    collector: Option<collector::Session>,
    link: Link,
    connection: u64,
    busy_until: HashMap<(bool, agent::Stream), u64>,
    waiting: Vec<(u64, collector::Arrival)>,
    sent: HashMap<Class, u64>,
    /// Arrived, not read yet: the collector's backpressure.
    held: VecDeque<(agent::Stream, Box<wire::ToCollector>)>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Bug) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let began = Instant::now();
        let outbox_bytes = if rng.random_bool(0.3) { BYTES_MIN } else { 1 << 30 };
        let mut world = Self {
            seen: Seen::default(),
            appended: Vec::new(),
            epoch: 0,
            bug,
            folder: folder.expect("a temporary folder"),
            began,
            now: 0,
            wall_ns: 1_800_000_000_000_000_000,
            order: 0,
            steps: 0,
            agenda: BTreeMap::new(),
            markers: 0,
            outbox_bytes,
            outbox: None,
            agent: agent::Session::new(agent::Limits::default(), began),
            backoff: Backoff::default(),
            store: None,
            collector: None,
            link: Link::Down,
            connection: 0,
            busy_until: HashMap::new(),
            waiting: Vec::new(),
            sent: HashMap::new(),
            held: VecDeque::new(),
            rng,
        };
        world.plan();
        world
    }

    /// Until nothing waits any more, or an error says why it never will.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), happening)) = self.agenda.pop_first() {
            self.now = self.now.max(at);
            self.steps += 1;
            if self.now > TROUBLE_UNTIL && self.is_at_rest() {
                return Ok(());
            }
            if self.now > REST_UNTIL || self.steps > STEPS_MAX {
                break;
            }
            self.step(happening)?;
        }
        if self.is_at_rest() {
            Ok(())
        } else {
            Err(format!("stuck: the outbox is not empty at {} ms", self.now))
        }
    }

    pub(crate) fn store_folder(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn last_numbers(&self) -> Result<Vec<(Class, u64)>, String> {
        let outbox = self.outbox.as_ref().ok_or("the agent is down at the end")?;
        let state = outbox.state().map_err(|error| error.to_string())?;
        Ok(state.classes.iter().map(|class| (class.class, class.last)).collect())
    }

    /// What will go wrong, and when.
    fn plan(&mut self) {
        self.at(0, Happening::CollectorUp);
        self.at(0, Happening::AgentUp);
        let appends = self.rng.random_range(5..40);
        for _ in 0..appends {
            self.some_time(Happening::Append);
        }
        for _ in 0..self.rng.random_range(0..4) {
            self.some_time(Happening::Cut);
        }
        for _ in 0..self.rng.random_range(0..2) {
            self.some_time(Happening::Silence);
        }
        for _ in 0..self.rng.random_range(0..3) {
            self.some_time(Happening::AgentCrash);
        }
        for _ in 0..self.rng.random_range(0..3) {
            self.some_time(Happening::CollectorCrash);
        }
    }

    fn some_time(&mut self, happening: Happening) {
        // Crowded, so that trouble meets messages on their way.
        let at = if self.rng.random_bool(0.7) {
            self.rng.random_range(0..TROUBLE_UNTIL / 40)
        } else {
            self.rng.random_range(0..TROUBLE_UNTIL)
        };
        self.at(at, happening);
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.agenda.insert((at, self.order), happening);
    }

    fn soon(&mut self, within_ms: u64, happening: Happening) {
        let at = self.now + self.rng.random_range(0..=within_ms);
        self.at(at, happening);
    }

    fn is_at_rest(&self) -> bool {
        let empty = self.outbox.as_ref().is_some_and(|outbox| {
            outbox
                .state()
                .is_ok_and(|state| state.classes.iter().all(|class| class.first_unacked > class.last))
        });
        empty && self.store.is_some()
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_millis(self.now)
    }

    fn moment(&self) -> Moment {
        Moment {
            unix_ns: self.wall_ns + (self.now * 1_000_000).cast_signed(),
            uptime_ns: self.now * 1_000_000,
        }
    }

    fn step(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Append => self.append()?,
            Happening::Connect => self.connect()?,
            Happening::AgentUp => self.agent_up()?,
            Happening::CollectorUp => self.collector_up()?,
            Happening::AgentCrash => self.agent_crash(),
            Happening::CollectorCrash => self.collector_crash(),
            Happening::Cut => self.cut(),
            Happening::Silence if self.link == Link::Up => {
                self.link = Link::Silent;
                self.seen.silences += 1;
            }
            Happening::Silence => {}
            Happening::StoreCommit => self.store_commit()?,
            Happening::Tick(connection) => {
                if connection == self.connection && self.bug != Bug::Stuck {
                    self.agent_handles(agent::Input::Tick)?;
                }
            }
            Happening::AgentHears(connection, stream, message) => {
                if connection == self.connection && self.link == Link::Up && self.outbox.is_some() {
                    self.count_answer(&message);
                    self.agent_handles(agent::Input::Frame(stream, message))?;
                }
            }
            Happening::CollectorHears(connection, stream, message) => {
                if connection == self.connection && self.link == Link::Up {
                    self.held.push_back((stream, message));
                    self.collector_reads()?;
                }
            }
            Happening::AgentClosed(connection) => {
                if connection == self.connection && self.outbox.is_some() {
                    self.agent_handles(agent::Input::Closed)?;
                    self.reconnect(false);
                }
            }
            Happening::CollectorClosed(connection) => {
                if connection == self.connection {
                    self.collector = None;
                }
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------ the agent

    fn agent_up(&mut self) -> Result<(), String> {
        let folder = self.folder.path().join("outbox");
        let host = Host { name: b"sim".to_vec(), boot_id: String::new(), os: String::new() };
        let outbox =
            Outbox::open(&folder, self.outbox_bytes, host, None).map_err(|error| format!("{error:#}"))?;
        if self.epoch != 0 && self.epoch != outbox.epoch() {
            return Err("the epoch changed over a crash".into());
        }
        self.epoch = outbox.epoch();
        self.outbox = Some(outbox);
        self.agent = agent::Session::new(agent::Limits::default(), self.instant());
        self.reconnect(false);
        Ok(())
    }

    fn agent_crash(&mut self) {
        if self.outbox.take().is_some() {
            self.seen.agent_crashes += 1;
            self.link = Link::Down;
            self.soon(20_000, Happening::CollectorClosed(self.connection));
            self.soon(5_000, Happening::AgentUp);
        }
    }

    fn append(&mut self) -> Result<(), String> {
        if self.outbox.is_none() {
            self.soon(3_000, Happening::Append); // the sensors are down with it
            return Ok(());
        }
        let count = self.rng.random_range(1..if self.outbox_bytes < 1 << 20 { 160 } else { 8 });
        let mut events = Vec::new();
        for _ in 0..count {
            self.markers += 1;
            events.push(events::make(self.markers, &mut self.rng));
        }
        if self.rng.random_bool(0.01) {
            self.agent_crash(); // before the commit: nobody was promised anything
            return Ok(());
        }
        let classes: Vec<Class> = events.iter().filter_map(Class::of).collect();
        let first = self.markers + 1 - count;
        self.work(Work::Append(events))?;
        // Gaps that made room took their numbers before these.
        let mut numbers: HashMap<Class, u64> = self.last_numbers()?.into_iter().collect();
        for class in &classes {
            *numbers.entry(*class).or_default() -= 1;
        }
        for (marker, class) in (first..).zip(classes) {
            let number = numbers.entry(class).or_default();
            *number += 1;
            let poison = self.rng.random_bool(0.01) && self.poison(class, *number);
            self.appended.push(Appended { marker, class, epoch: self.epoch, seq: *number, poison });
        }
        for (class, last) in self.last_numbers()? {
            self.agent_handles(agent::Input::Appended { epoch: self.epoch, class, last })?;
        }
        Ok(())
    }

    /// A body that our own collector refuses; false when the bound has taken the event already.
    fn poison(&self, class: Class, seq: u64) -> bool {
        let sql = format!("UPDATE {} SET body = x'ffffff', sum = NULL WHERE seq = ?", class.name());
        self.aside_outbox().execute(&sql, [seq]).expect("a poisoned row") > 0
    }

    fn aside_outbox(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.path().join("outbox/outbox.db"))
            .expect("the outbox, from the side")
    }

    fn work(&mut self, work: Work) -> Result<Answer, String> {
        let moment = self.moment();
        let outbox = self.outbox.as_mut().ok_or("the agent is down")?;
        let (mut answers, tally) = outbox.apply(&[work], moment).map_err(|error| error.to_string())?;
        self.seen.overflowed += tally.lost;
        self.seen.set_aside += tally.set_aside;
        answers.pop().ok_or_else(|| "no answer".into())
    }

    fn agent_handles(&mut self, input: agent::Input) -> Result<(), String> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.instant();
            if self.outbox.is_none() {
                return Ok(()); // crashed a step ago
            }
            for output in self.agent.handle(input, now) {
                if self.rng.random_bool(0.0005) && self.now < TROUBLE_UNTIL {
                    self.agent_crash(); // between two steps
                    return Ok(());
                }
                inputs.extend(self.agent_does(output)?);
            }
        }
        Ok(())
    }

    fn agent_does(&mut self, output: agent::Output) -> Result<Vec<agent::Input>, String> {
        use agent::{Input, Output};
        match output {
            Output::Send { stream, message } => {
                self.look_at_batch(&message)?;
                let connection = self.connection;
                let at = self.arrival_time(true, stream);
                if !self.is_lost() {
                    self.at(at, Happening::CollectorHears(connection, stream, message));
                }
            }
            Output::Read { class, from, bytes_max } => {
                // Small reads, so that one class has several batches in flight.
                let bytes_max = bytes_max.min(self.rng.random_range(1..4000));
                if let Answer::Run(run) = self.work(Work::Read { class, from, bytes_max })? {
                    return Ok(vec![Input::Rows { class, run }]);
                }
            }
            Output::Forget { epoch, class, upto } => self.forget(epoch, class, upto)?,
            Output::SetAside { epoch, class, first, last, code, reason } => {
                self.work(Work::SetAside { class, epoch, first, last, code, reason })?;
                // The owner would tell: a gap was appended.
                let epoch = self.epoch;
                let told = self.last_numbers()?.into_iter().map(|(class, last)| Input::Appended {
                    epoch,
                    class,
                    last,
                });
                return Ok(told.chain([Input::SetAsideDone(class)]).collect());
            }
            Output::Restored { epoch, class, durable } => {
                return Err(format!("the collector went back: {class} {durable} of epoch {epoch}"));
            }
            Output::NewEpoch => {
                self.work(Work::NewEpoch)?;
                return Err("a new epoch in a world where no number is reused".into());
            }
            Output::KeepRoots(_) => return Err("a CA in a world without any".into()),
            Output::Welcomed { .. } => self.backoff.succeeded(),
            Output::Renewed(_) => return Err("an answer that nobody asked for".into()),
            Output::AskStatus => return Ok(vec![Input::Status(wire::Status::default())]),
            Output::Close { reason, graceful } => self.agent_closes(&reason, graceful)?,
            Output::WakeAt(at) => {
                let at =
                    u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
                self.at(at.max(self.now + 1), Happening::Tick(self.connection));
            }
        }
        Ok(Vec::new())
    }

    fn forget(&mut self, epoch: u64, class: Class, upto: u64) -> Result<(), String> {
        self.work(Work::Forget { class, epoch, upto })?;
        if self.bug == Bug::NumberReuse {
            // As a table without AUTOINCREMENT: an empty one begins again.
            let sql = format!(
                "DELETE FROM sqlite_sequence WHERE name = ?1 AND NOT EXISTS (SELECT 1 FROM {})",
                class.name()
            );
            self.aside_outbox().execute(&sql, [class.name()]).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn look_at_batch(&mut self, message: &wire::ToCollector) -> Result<(), String> {
        let Some(to_collector::Message::Batch(batch)) = &message.message else { return Ok(()) };
        let class = Class::from_wire(batch.class).ok_or("a batch of no class")?;
        let last = batch.first_seq + u64::from(batch.count) - 1;
        let sent = self.sent.entry(class).or_default();
        self.seen.resent += u64::from(batch.first_seq <= *sent);
        self.seen.skipped += u64::from(batch.skipped > 0);
        *sent = last.max(*sent);
        if self.bug == Bug::ForgetOnSend {
            self.forget(batch.epoch, class, last)?;
        }
        Ok(())
    }

    fn agent_closes(&mut self, reason: &str, graceful: bool) -> Result<(), String> {
        let honest = ["answered nothing", "did not answer", "the collector refused", "asked"];
        if !honest.iter().any(|part| reason.contains(part)) {
            return Err(format!("the agent closed: {reason}"));
        }
        self.link = Link::Down;
        self.soon(10_000, Happening::CollectorClosed(self.connection));
        self.reconnect(graceful);
        Ok(())
    }

    fn reconnect(&mut self, graceful: bool) {
        let pause = self.backoff.pause(graceful, self.rng.random());
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.at(self.now + pause, Happening::Connect);
    }

    fn connect(&mut self) -> Result<(), String> {
        if self.link == Link::Up || self.outbox.is_none() {
            return Ok(()); // a second wish for the same connection
        }
        if self.store.is_none() {
            self.reconnect(false);
            return Ok(());
        }
        self.connection += 1;
        self.link = Link::Up;
        self.busy_until.clear();
        self.held.clear();
        self.collector = Some(collector::Session::new(AGENT, self.instant()));
        let Answer::State(state) = self.work(Work::State)? else { return Err("no state".into()) };
        self.agent_handles(agent::Input::Connected { state, hello: wire::Hello::default() })
    }

    // ------------------------------------------------------------ the link

    /// When a message sent now is heard: later than every earlier one of its stream and direction.
    fn arrival_time(&mut self, to_collector: bool, stream: agent::Stream) -> u64 {
        let delay = if self.rng.random_bool(0.1) { 500 } else { 30 };
        let at = self.now + self.rng.random_range(1..delay);
        let busy = self.busy_until.entry((to_collector, stream)).or_default();
        *busy = at.max(*busy);
        *busy
    }

    /// A single frame vanishes. QUIC never does that; the sessions have to survive it all the same, and it is
    /// what makes the collector ask for a number again.
    fn is_lost(&mut self) -> bool {
        let lost = self.now < TROUBLE_UNTIL && self.rng.random_bool(0.01);
        self.seen.lost_frames += u64::from(lost);
        lost
    }

    /// Everything on its way is lost; each side hears of it in its own time.
    fn cut(&mut self) {
        if self.link == Link::Up {
            self.link = Link::Down;
            self.seen.cuts += 1;
            self.soon(2_000, Happening::AgentClosed(self.connection));
            self.soon(20_000, Happening::CollectorClosed(self.connection));
        }
    }

    fn count_answer(&mut self, message: &wire::ToAgent) {
        match &message.message {
            Some(to_agent::Message::Nack(_)) => self.seen.nacks += 1,
            Some(to_agent::Message::Reject(_)) => self.seen.rejects += 1,
            Some(
                to_agent::Message::Welcome(_)
                | to_agent::Message::Ack(_)
                | to_agent::Message::Refuse(_)
                | to_agent::Message::Renewed(_)
                | to_agent::Message::RenewRefused(_)
                | to_agent::Message::Roots(_),
            )
            | None => {}
        }
    }

    // ------------------------------------------------------------ the collector

    fn collector_up(&mut self) -> Result<(), String> {
        let wall = self.moment().unix_ns;
        let store = Store::open(&self.store_folder(), None, Memory::default(), wall);
        self.store = Some(store.map_err(|error| format!("{error:#}"))?);
        Ok(())
    }

    fn collector_crash(&mut self) {
        if self.store.take().is_some() {
            self.seen.collector_crashes += 1;
            self.collector = None;
            self.waiting.clear();
            if self.link == Link::Up {
                self.link = Link::Down;
                // A restart is noticed by a stateless reset, or only by silence.
                self.soon(40_000, Happening::AgentClosed(self.connection));
            }
            self.soon(5_000, Happening::CollectorUp);
            if self.rng.random_bool(0.3) {
                self.wall_ns += DAY_NS * self.rng.random_range(-2..3); // the host came up with another clock
            }
        }
    }

    /// Reads a stream only while the session wants more of it.
    fn collector_reads(&mut self) -> Result<(), String> {
        for (stream, message) in std::mem::take(&mut self.held) {
            let blocked = self.held.iter().any(|(held, _)| *held == stream);
            if blocked || self.collector.as_ref().is_some_and(|session| !session.wants(theirs(stream))) {
                self.held.push_back((stream, message));
            } else {
                self.collector_handles(collector::Input::Frame(theirs(stream), *message))?;
            }
        }
        Ok(())
    }

    fn collector_handles(&mut self, input: collector::Input) -> Result<(), String> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.instant();
            let Some(session) = &mut self.collector else { return Ok(()) };
            for output in session.handle(input, now) {
                inputs.extend(self.collector_does(output)?);
            }
        }
        Ok(())
    }

    fn collector_does(&mut self, output: collector::Output) -> Result<Option<collector::Input>, String> {
        use collector::{Input, Output};
        match output {
            Output::Load { epoch } => {
                let store = self.store.as_ref().ok_or("the collector is down")?;
                let durable = store.durable(AGENT, epoch);
                return Ok(Some(Input::Loaded { epoch, durable, time_unix_ns: 0 }));
            }
            Output::Commit(arrival) => {
                if self.waiting.is_empty() {
                    // Now and then the disk stalls: the agent is back before its old batches are committed.
                    let within = if self.rng.random_bool(0.1) { 10_000 } else { 20 };
                    self.soon(within, Happening::StoreCommit);
                }
                self.waiting.push((self.connection, arrival));
            }
            Output::Send { stream, message } => self.tell_agent(stream, message),
            Output::Refuse { code, reason } => {
                if code != wire::RefuseCode::Overloaded {
                    return Err(format!("an honest agent was refused: {reason}"));
                }
                let refuse = wire::Refuse { code: code as i32, reason };
                let message = wire::ToAgent { message: Some(to_agent::Message::Refuse(refuse)) };
                self.tell_agent(collector::Stream::Control, message);
            }
            Output::Renew(_) => return Err("this agent never asks for a certificate".into()),
            Output::Seen(_) => {}
        }
        Ok(None)
    }

    fn tell_agent(&mut self, stream: collector::Stream, message: wire::ToAgent) {
        let stream = ours(stream);
        let at = self.arrival_time(false, stream);
        if !self.is_lost() {
            self.at(at, Happening::AgentHears(self.connection, stream, message));
        }
    }

    /// Commits of connections that are gone meanwhile are committed all the same, as the writer's queue would.
    fn store_commit(&mut self) -> Result<(), String> {
        let wall = self.moment().unix_ns;
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let (connections, arrivals): (Vec<u64>, Vec<_>) = waiting.into_iter().unzip();
        let classes: Vec<Class> = arrivals.iter().map(|arrival| arrival.class).collect();
        let fails = self.rng.random_bool(0.02) && self.now < TROUBLE_UNTIL;
        let answers = if fails {
            self.seen.failed_commits += 1;
            vec![Err("the disk is full".to_owned()); arrivals.len()]
        } else {
            self.plant_duplicates(&arrivals)?;
            let store = self.store.as_mut().ok_or("the collector is down")?;
            let answers = store.commit(&arrivals, wall).map_err(|error| format!("{error:#}"))?;
            answers.into_iter().map(Ok).collect()
        };
        if self.rng.random_bool(0.03) && self.now < TROUBLE_UNTIL {
            self.collector_crash(); // after the commit, before anybody heard of it
            return Ok(());
        }
        for ((connection, class), result) in connections.into_iter().zip(classes).zip(answers) {
            if connection == self.connection {
                self.collector_handles(collector::Input::Committed { class, result })?;
            }
        }
        self.collector_reads()
    }

    /// What an insert would leave that does not look at the mark.
    fn plant_duplicates(&mut self, arrivals: &[collector::Arrival]) -> Result<(), String> {
        let store = self.store.as_ref().ok_or("the collector is down")?;
        if self.bug != Bug::NotIdempotent {
            return Ok(());
        }
        for arrival in arrivals {
            let table = arrival.class.name();
            let sql = format!(
                "INSERT INTO {table} SELECT id + (1 << 50), lane, {table}.seq, received, happened, kind, severity, rules, body
                 FROM {table} JOIN lane USING (lane) WHERE id < (1 << 50) AND epoch = ?1 AND {table}.seq >= ?2"
            );
            let side = rusqlite::Connection::open(store.path()).map_err(|error| error.to_string())?;
            side.execute(
                &sql,
                rusqlite::params![arrival.epoch.cast_signed(), arrival.first_seq.cast_signed()],
            )
            .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

pub(super) fn theirs(stream: agent::Stream) -> collector::Stream {
    match stream {
        agent::Stream::Control => collector::Stream::Control,
        agent::Stream::Class(class) => collector::Stream::Class(class),
    }
}

pub(super) fn ours(stream: collector::Stream) -> agent::Stream {
    match stream {
        collector::Stream::Control => agent::Stream::Control,
        collector::Stream::Class(class) => agent::Stream::Class(class),
    }
}
