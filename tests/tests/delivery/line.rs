//! One agent and one collector on a steady line of a given rate: no faults, so that times and sums can be exact.
//!
//! Real: both sessions, the outbox's database, the store's database. Fake: time and the line. The line carries one
//! message at a time, control before alerts before telemetry, as the streams' priorities say, and keeps the order of
//! a stream. Used by `week`.

use super::world::{ours, theirs};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vidette_agent::host::{Host, Moment};
use vidette_agent::outbox::db::{Answer, Db as Outbox, Work};
use vidette_agent::transport::session as agent;
use vidette_collector::ingest::session as collector;
use vidette_collector::store::db::{Db as Store, Memory};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire;

const AGENT: AgentId = AgentId([9; 16]);
/// One way. Milliseconds.
const LATENCY: u64 = 20;
/// Of the collector's disk. Milliseconds.
const COMMIT: u64 = 5;
const STEPS_MAX: u64 = 1_000_000;
const START_NS: i64 = 1_800_000_000_000_000_000;

enum Happening {
    AgentHears(agent::Stream, wire::ToAgent),
    CollectorHears(agent::Stream, Box<wire::ToCollector>),
    LineFree,
    Commit,
    Tick,
}

/// An event as the store took it.
pub(crate) struct Arrived {
    /// When. Milliseconds since the line was made.
    pub(crate) at: u64,
    pub(crate) class: Class,
    pub(crate) seq: u64,
    pub(crate) event: wire::Event,
}

pub(crate) struct Line {
    /// Everything that was committed, in this order.
    pub(crate) arrived: Vec<Arrived>,
    pub(crate) now: u64,
    pub(crate) lost: u64,
    folder: TempDir,
    bytes_max: u64,
    bytes_per_ms: u64,
    began: Instant,
    order: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    outbox: Outbox,
    agent: agent::Session,
    collector: Option<collector::Session>,
    store: Store,
    waits: [VecDeque<(agent::Stream, Box<wire::ToCollector>)>; 3],
    is_busy: bool,
    held: VecDeque<(agent::Stream, Box<wire::ToCollector>)>,
    commits: Vec<collector::Arrival>,
}

impl Line {
    pub(crate) fn new(bytes_max: u64, bytes_per_ms: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let folder = folder.expect("a temporary folder");
        let began = Instant::now();
        let store = Store::open(&folder.path().join("store"), None, Memory::default(), START_NS);
        Self {
            arrived: Vec::new(),
            now: 0,
            lost: 0,
            outbox: open(&folder.path().join("outbox"), bytes_max),
            store: store.expect("a store"),
            folder,
            bytes_max,
            bytes_per_ms,
            began,
            order: 0,
            agenda: BTreeMap::new(),
            agent: agent::Session::new(agent::Limits::default(), began),
            collector: None,
            waits: Default::default(),
            is_busy: false,
            held: VecDeque::new(),
            commits: Vec::new(),
        }
    }

    pub(crate) fn outbox_folder(&self) -> PathBuf {
        self.folder.path().join("outbox")
    }

    /// Commits events, and tells the session when there is one.
    pub(crate) fn append(&mut self, events: Vec<wire::Event>) {
        self.work(Work::Append(events));
        let State { epoch, lasts } = self.state();
        for (class, last) in lasts {
            self.agent_handles(agent::Input::Appended { epoch, class, last });
        }
    }

    /// The agent goes away and comes back; only without a connection.
    pub(crate) fn restart(&mut self) {
        assert!(self.collector.is_none(), "the line is without faults");
        let spare = TempDir::new().expect("a temporary folder");
        self.outbox = open(spare.path(), self.bytes_max); // lets go of the real one
        self.outbox = open(&self.outbox_folder(), self.bytes_max);
    }

    pub(crate) fn connect(&mut self) {
        self.collector = Some(collector::Session::new(AGENT, self.instant()));
        let Answer::State(state) = self.work(Work::State) else { panic!("no state") };
        self.agent_handles(agent::Input::Connected { state, hello: wire::Hello::default() });
    }

    /// Until `at`, or nothing waits any more. True when nothing does.
    pub(crate) fn run_until(&mut self, at: u64) -> bool {
        for _ in 0..STEPS_MAX {
            if self.outbox.waiting().0 == 0 {
                return true;
            }
            let Some(next) = self.agenda.first_entry().filter(|next| next.key().0 <= at) else {
                self.now = at;
                return false;
            };
            self.now = self.now.max(next.key().0);
            let happening = next.remove();
            self.step(happening);
        }
        panic!("stuck: {} events wait at {} ms", self.outbox.waiting().0, self.now);
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_millis(self.now)
    }

    fn moment(&self) -> Moment {
        let uptime_ns = self.now * 1_000_000;
        Moment { unix_ns: START_NS + uptime_ns.cast_signed(), uptime_ns }
    }

    fn state(&self) -> State {
        let state = self.outbox.state().expect("a state");
        State { epoch: state.epoch, lasts: state.classes.iter().map(|one| (one.class, one.last)).collect() }
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.agenda.insert((at, self.order), happening);
    }

    fn step(&mut self, happening: Happening) {
        match happening {
            Happening::AgentHears(stream, message) => {
                self.agent_handles(agent::Input::Frame(stream, message));
            }
            Happening::CollectorHears(stream, message) => {
                self.held.push_back((stream, message));
                self.collector_reads();
            }
            Happening::LineFree => {
                self.is_busy = false;
                self.carry();
            }
            Happening::Commit => self.commit(),
            Happening::Tick => self.agent_handles(agent::Input::Tick),
        }
    }

    fn work(&mut self, work: Work) -> Answer {
        let moment = self.moment();
        let (mut answers, tally) = self.outbox.apply(&[work], moment).expect("the outbox works");
        self.lost += tally.lost;
        answers.pop().expect("an answer")
    }

    fn agent_handles(&mut self, input: agent::Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.instant();
            for output in self.agent.handle(input, now) {
                inputs.extend(self.agent_does(output));
            }
        }
    }

    fn agent_does(&mut self, output: agent::Output) -> Option<agent::Input> {
        use agent::{Input, Output, Stream};
        match output {
            Output::Send { stream, message } => {
                let queue = match stream {
                    Stream::Control => 0,
                    Stream::Class(Class::Alert) => 1,
                    Stream::Class(Class::Telemetry) => 2,
                };
                self.waits[queue].push_back((stream, message));
                self.carry();
            }
            Output::Read { class, from, bytes_max } => {
                let Answer::Run(run) = self.work(Work::Read { class, from, bytes_max }) else {
                    panic!("no run")
                };
                return Some(Input::Rows { class, run });
            }
            Output::Forget { epoch, class, upto } => drop(self.work(Work::Forget { class, epoch, upto })),
            Output::AskStatus => return Some(Input::Status(wire::Status::default())),
            Output::WakeAt(at) => {
                let at =
                    u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
                self.at(at.max(self.now + 1), Happening::Tick);
            }
            Output::Welcomed { .. } => {}
            Output::SetAside { .. }
            | Output::Restored { .. }
            | Output::NewEpoch
            | Output::Renewed(_)
            | Output::KeepRoots(_)
            | Output::Close { .. } => {
                panic!("without a fault: {output:?}")
            }
        }
        None
    }

    fn carry(&mut self) {
        if self.is_busy {
            return;
        }
        let Some((stream, message)) = self.waits.iter_mut().find_map(VecDeque::pop_front) else { return };
        self.is_busy = true;
        let free = self.now + message.encoded_len() as u64 / self.bytes_per_ms;
        self.at(free + LATENCY, Happening::CollectorHears(stream, message));
        self.at(free, Happening::LineFree);
    }

    fn collector_reads(&mut self) {
        for (stream, message) in std::mem::take(&mut self.held) {
            let blocked = self.held.iter().any(|(held, _)| *held == stream);
            if blocked || self.collector.as_ref().is_some_and(|session| !session.wants(theirs(stream))) {
                self.held.push_back((stream, message));
            } else {
                self.collector_handles(collector::Input::Frame(theirs(stream), *message));
            }
        }
    }

    fn collector_handles(&mut self, input: collector::Input) {
        use collector::{Input, Output};
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.instant();
            let outputs = self.collector.as_mut().expect("a connection").handle(input, now);
            for output in outputs {
                match output {
                    Output::Load { epoch } => {
                        let durable = self.store.durable(AGENT, epoch);
                        inputs.push_back(Input::Loaded { epoch, durable, time_unix_ns: 0 });
                    }
                    Output::Commit(arrival) => {
                        if self.commits.is_empty() {
                            self.at(self.now + COMMIT, Happening::Commit);
                        }
                        self.commits.push(arrival);
                    }
                    Output::Send { stream, message } => {
                        self.at(self.now + LATENCY, Happening::AgentHears(ours(stream), message));
                    }
                    Output::Refuse { reason, .. } => panic!("an honest agent was refused: {reason}"),
                    Output::Renew(_) => panic!("this agent never asks for a certificate"),
                    Output::Seen(_) => {}
                }
            }
        }
    }

    fn commit(&mut self) {
        let arrivals = std::mem::take(&mut self.commits);
        let answers = self.store.commit(&arrivals, START_NS).expect("the store works");
        for (arrival, answer) in arrivals.into_iter().zip(answers) {
            assert!(matches!(answer, collector::Committed::Durable(_)), "a hole that was not declared");
            let (at, class) = (self.now, arrival.class);
            let numbered = (arrival.first_seq..).zip(arrival.events);
            self.arrived.extend(numbered.map(|(seq, one)| Arrived { at, class, seq, event: one.event }));
            self.collector_handles(collector::Input::Committed { class, result: Ok(answer) });
        }
        self.collector_reads();
    }
}

struct State {
    epoch: u64,
    lasts: Vec<(Class, u64)>,
}

fn open(folder: &Path, bytes_max: u64) -> Outbox {
    let host = Host { name: b"line".to_vec(), boot_id: String::new(), os: String::new() };
    Outbox::open(folder, bytes_max, host, None).expect("an outbox")
}
