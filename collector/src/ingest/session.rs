//! The collector's half of a session, pure: what an agent may say, and what is answered.
//!
//! Assumes that the agent is hostile: its id comes from its certificate, never from a message, and a message
//! out of place ends the session. Valid runs go to the store as an `Arrival`; an Ack goes out when the shell
//! brings back that they are committed. After a Nack or a Reject everything up to the number it named is
//! ignored, so that one answer brings one new start.

use super::trust::{Trust, are_digests};
use crate::identity::{HOST_MARK_BYTES_MAX, Roots};
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::limits::{
    BATCH_BYTES_MAX, BATCH_MEMORY_BYTES_MAX, BATCHES_IN_FLIGHT_MAX, EVENT_BYTES_MAX, HEARTBEAT_S,
    JOIN_BYTES_MAX, LIST_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX,
};
use vidette_protocol::wire::{self, RefuseCode, RejectCode, to_agent, to_collector};
use vidette_protocol::{PROTOCOL, batch, bounds, check};

/// Runs of one class that wait for their commit. An agent keeps to [`BATCHES_IN_FLIGHT_MAX`]; a refused batch
/// may leave a few of its last attempt under way.
pub const COMMITS_WAITING_MAX: usize = 2 * BATCHES_IN_FLIGHT_MAX;
/// Decoded events of one class that wait for their commit, before the last batch. Bytes.
pub const WAITING_BYTES_MAX: usize = 8 << 20;
/// Of a large batch so much is decoded before others have a turn on this processor: some tenths of a millisecond. Bytes.
const SLICE_BYTES: usize = 16 << 10;
/// How long an agent may take to say Hello.
pub const HELLO_WAIT_MAX: Duration = Duration::from_secs(15);

/// Where a message came from or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Hello, Welcome, Status, Refuse.
    Control,
    /// Batches of one class, and their answers.
    Class(Class),
}

/// One event as it came: decoded for filters, and the bytes that are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// Decoded and within its limits.
    pub event: wire::Event,
    /// As the agent encoded it, with fields that this version may not know.
    pub body: Vec<u8>,
}

/// A run of consecutive, valid events for the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// By its certificate.
    pub agent: AgentId,
    /// Which outbox.
    pub epoch: u64,
    /// Which numbers.
    pub class: Class,
    /// The number of the first event.
    pub first_seq: u64,
    /// Numbers right before it that will never come.
    pub skipped: u64,
    /// The events.
    pub events: Vec<Received>,
}

/// What the store made of an [`Arrival`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Everything up to this number is committed.
    Durable(u64),
    /// Nothing was stored: the run does not follow what is.
    Hole {
        /// The number that has to come next.
        expected: u64,
    },
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// The agent said something.
    Frame(Stream, wire::ToCollector),
    /// The answer to [`Output::Load`].
    Loaded {
        /// Which outbox was asked for.
        epoch: u64,
        /// What is durable; an absent class has nothing.
        durable: Vec<(Class, u64)>,
        /// The collector's wall clock, Unix nanoseconds, for the agent's information.
        time_unix_ns: i64,
    },
    /// The answer to the oldest [`Output::Commit`] of this class that has none; `Err` when the store failed.
    Committed {
        /// Which class.
        class: Class,
        /// What became of it.
        result: Result<Committed, String>,
    },
    /// The answer to [`Output::Renew`].
    Renewed(Result<wire::Joined, wire::JoinRefused>),
    /// What agents have to trust now: before the Hello, and whenever it changes.
    Roots {
        /// All of it.
        roots: Arc<Roots>,
        /// When not 0, this agent's certificate is of another CA than the one that issues: it shall renew within so many seconds.
        renew_within_s: u32,
    },
    /// Time passes; at least every few seconds until the Hello.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Ask the store what is durable for this epoch; answer with [`Input::Loaded`].
    Load {
        /// Which outbox.
        epoch: u64,
    },
    /// Give this to the store, in order; answer with [`Input::Committed`].
    Commit(Arrival),
    /// Issue the agent's next certificate; answer with [`Input::Renewed`]. One at a time.
    Renew(wire::Renew),
    /// Send this.
    Send {
        /// Where.
        stream: Stream,
        /// What.
        message: wire::ToAgent,
    },
    /// Send this on the control stream and close. Nothing else follows.
    Refuse {
        /// Its kind.
        code: RefuseCode,
        /// One sentence.
        reason: String,
    },
    /// Somebody may want to know.
    Seen(Seen),
}

/// News of an agent, within its limits.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// It said Hello.
    Hello(Box<wire::Hello>),
    /// It said how it is.
    Status(Box<wire::Status>),
    /// It trusts these CA certificates now.
    Roots(Box<wire::RootsKept>),
}

/// The collector's half.
#[derive(Debug)]
pub struct Session {
    agent: AgentId,
    phase: Phase,
    epoch: u64,
    heartbeat_s: u32,
    trust: Trust,
    lanes: [Lane; 2],
    /// A renewal is not answered yet.
    renewing: bool,
    out: Vec<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting(Instant),
    Loading,
    Open,
    Refused,
}

#[derive(Debug, Default)]
struct Lane {
    /// The number that has to come next, when all that was given to the store is committed.
    next: u64,
    /// A Nack or Reject is out; what does not start at `next` or before is an echo.
    ignoring: bool,
    /// How often it was sent back. An older commit that fails belongs to an attempt that is over.
    attempt: u64,
    /// Each run the store has not answered.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    attempt: u64,
    /// What its events take in memory. Bytes.
    bytes: usize,
}

impl Lane {
    fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|run| run.bytes).sum()
    }
}

impl Session {
    /// A connection whose certificate says that it is `agent`.
    #[must_use]
    pub fn new(agent: AgentId, now: Instant) -> Self {
        Self {
            agent,
            phase: Phase::Waiting(now),
            epoch: 0,
            heartbeat_s: HEARTBEAT_S,
            trust: Trust::default(),
            lanes: Default::default(),
            renewing: false,
            out: Vec::new(),
        }
    }

    /// Asks for a Status every so many seconds instead of [`HEARTBEAT_S`].
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat_s: u32) -> Self {
        self.heartbeat_s = heartbeat_s;
        self
    }

    /// Takes what happened and says what to do, in order.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Output> {
        match (input, self.phase) {
            (_, Phase::Refused) => {} // the last word was said
            (Input::Frame(stream, frame), phase) => self.frame(stream, frame, phase),
            (Input::Loaded { epoch, durable, time_unix_ns }, Phase::Loading) if epoch == self.epoch => {
                self.welcome(&durable, time_unix_ns);
            }
            (Input::Loaded { .. }, Phase::Waiting(_) | Phase::Loading | Phase::Open) => {}
            (Input::Committed { class, result }, Phase::Waiting(_) | Phase::Loading | Phase::Open) => {
                self.committed(class, result);
            }
            (Input::Renewed(result), Phase::Waiting(_) | Phase::Loading | Phase::Open) => {
                self.renewed(result);
            }
            (Input::Roots { roots, renew_within_s }, phase) => {
                self.trust.want(roots, renew_within_s);
                if phase == Phase::Open {
                    self.offer_roots();
                }
            }
            (Input::Tick, Phase::Waiting(since)) if now >= since + HELLO_WAIT_MAX => {
                self.misbehaved("it did not say hello in time");
            }
            (Input::Tick, Phase::Waiting(_) | Phase::Loading | Phase::Open) => {}
        }
        std::mem::take(&mut self.out)
    }

    /// Whether another frame of this stream should be read now. Not reading is the backpressure.
    #[must_use]
    pub fn wants(&self, stream: Stream) -> bool {
        match stream {
            Stream::Control => true,
            Stream::Class(class) => {
                let lane = &self.lanes[index(class)];
                lane.waiting.len() < BATCHES_IN_FLIGHT_MAX && lane.waiting_bytes() < WAITING_BYTES_MAX
            }
        }
    }

    /// What waits for its commit takes in memory. Bytes.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.lanes.iter().map(Lane::waiting_bytes).sum()
    }

    fn frame(&mut self, stream: Stream, frame: wire::ToCollector, phase: Phase) {
        use to_collector::Message;
        match (frame.message, stream, phase) {
            (Some(Message::Hello(hello)), Stream::Control, Phase::Waiting(_)) => self.hello(hello),
            (Some(Message::Status(status)), Stream::Control, Phase::Open) => self.status(status),
            (Some(Message::Batch(batch)), Stream::Class(class), Phase::Open) => self.batch(class, &batch),
            (Some(Message::Renew(renew)), Stream::Control, Phase::Open) => self.renew(renew),
            (Some(Message::RootsKept(kept)), Stream::Control, Phase::Open) => self.roots_kept(kept),
            (Some(Message::RootsKept(_)), _, _) => self.misbehaved("it spoke of its CAs out of place"),
            (Some(Message::Hello(_)), _, _) => self.misbehaved("it said hello out of place"),
            (Some(Message::Status(_)), _, _) => self.misbehaved("it sent a status out of place"),
            (Some(Message::Batch(_)), _, _) => self.misbehaved("it sent a batch out of place"),
            (Some(Message::Renew(_)), _, _) => self.misbehaved("it asked for a certificate out of place"),
            (None, _, _) => self.misbehaved("it sent a message that is not known here"),
        }
    }

    fn hello(&mut self, hello: wire::Hello) {
        if hello.protocol == 0 || hello.protocol > PROTOCOL {
            let reason = format!(
                "protocol {} is not spoken here, only {PROTOCOL}: update the collector",
                hello.protocol
            );
            return self.refuse(RefuseCode::Protocol, reason);
        }
        let names = [&hello.agent_version, &hello.boot_id, &hello.rules_version, &hello.os];
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX)
            || hello.host_name.len() > NAME_BYTES_MAX
            || hello.classes.len() > LIST_MAX
            || !are_digests(&hello.roots)
        {
            return self.misbehaved("its hello is over the limits");
        }
        self.epoch = hello.epoch;
        self.trust.says(&hello.roots);
        self.phase = Phase::Loading;
        self.out.push(Output::Load { epoch: hello.epoch });
        self.out.push(Output::Seen(Seen::Hello(Box::new(hello))));
    }

    fn status(&mut self, status: wire::Status) {
        let long = status.rules_version.len() > NAME_BYTES_MAX
            || status.counters.len() > LIST_MAX
            || status.health.len() > LIST_MAX
            || status.counters.iter().any(|counter| counter.name.len() > NAME_BYTES_MAX)
            || status
                .health
                .iter()
                .any(|h| h.component.len() > NAME_BYTES_MAX || h.message.len() > TEXT_BYTES_MAX);
        if long {
            return self.misbehaved("its status is over the limits");
        }
        self.out.push(Output::Seen(Seen::Status(Box::new(status))));
    }

    fn renew(&mut self, renew: wire::Renew) {
        if self.renewing || renew.csr_der.len() > JOIN_BYTES_MAX {
            return self.misbehaved("its request for a certificate is over the limits");
        }
        self.renewing = true;
        self.out.push(Output::Renew(renew));
    }

    fn renewed(&mut self, result: Result<wire::Joined, wire::JoinRefused>) {
        self.renewing = false;
        let message = match result {
            Ok(joined) => to_agent::Message::Renewed(joined),
            Err(refused) => to_agent::Message::RenewRefused(refused),
        };
        self.send(Stream::Control, message);
    }

    fn welcome(&mut self, durable: &[(Class, u64)], time_unix_ns: i64) {
        let mut classes = Vec::new();
        for class in Class::ALL {
            let seq = durable.iter().find(|(of, _)| *of == class).map_or(0, |(_, seq)| *seq);
            self.lanes[index(class)].next = seq.saturating_add(1);
            classes.push(wire::Durable { class: class.to_wire(), seq });
        }
        self.phase = Phase::Open;
        self.send(
            Stream::Control,
            to_agent::Message::Welcome(wire::Welcome {
                protocol: PROTOCOL,
                collector_version: env!("CARGO_PKG_VERSION").into(),
                time_unix_ns,
                classes,
                batch_bytes_max: u32::try_from(BATCH_BYTES_MAX).unwrap_or(u32::MAX),
                batches_in_flight_max: u32::try_from(BATCHES_IN_FLIGHT_MAX).unwrap_or(u32::MAX),
                status_interval_s: self.heartbeat_s,
                renews: true,
            }),
        );
        self.offer_roots();
    }

    fn offer_roots(&mut self) {
        if let Some(roots) = self.trust.offer() {
            self.send(Stream::Control, to_agent::Message::Roots(roots));
        }
    }

    fn roots_kept(&mut self, kept: wire::RootsKept) {
        let is_long = kept.host_mark.len() > HOST_MARK_BYTES_MAX;
        if kept.digests.is_empty() || !are_digests(&kept.digests) || is_long {
            return self.misbehaved("what it says of its CAs is over the limits");
        }
        self.trust.says(&kept.digests);
        self.out.push(Output::Seen(Seen::Roots(Box::new(kept))));
    }

    fn batch(&mut self, class: Class, batch: &wire::Batch) {
        if batch.class != class.to_wire() || batch.epoch != self.epoch {
            return self.misbehaved("it sent a batch of another class or epoch on this stream");
        }
        let start = batch.first_seq.saturating_sub(batch.skipped);
        let lane = &mut self.lanes[index(class)];
        if start > lane.next {
            if !lane.ignoring {
                let expected = lane.next;
                self.nack(class, expected);
            }
            return;
        }
        if lane.waiting.len() >= COMMITS_WAITING_MAX {
            return self.misbehaved("it sent more batches than may be in flight");
        }
        match batch::unpack(batch) {
            Ok(bodies) => self.events(class, batch, bodies),
            Err(error) => self.misbehaved(&error.to_string()),
        }
    }

    /// Everything before the first event that can't be stored is; that one, and equal neighbours, are refused.
    fn events(&mut self, class: Class, batch: &wire::Batch, bodies: Vec<Vec<u8>>) {
        let mut events = Vec::with_capacity(bodies.len());
        let mut refused: Option<(u64, u64, Refusal)> = None;
        let (mut memory_bytes, mut slice_bytes) = (0, 0);
        for (seq, body) in (batch.first_seq..).zip(bodies) {
            slice_bytes += body.len();
            if slice_bytes > SLICE_BYTES {
                // Else the scheduler lets this go on for milliseconds before others who have just been woken. Decides nothing.
                std::thread::yield_now();
                slice_bytes = 0;
            }
            match (examine(class, body), &mut refused) {
                (Ok((event, bytes)), None) => {
                    memory_bytes += bytes;
                    if memory_bytes > BATCH_MEMORY_BYTES_MAX {
                        return self.misbehaved("its batch is small and its events are not");
                    }
                    events.push(event);
                }
                (Err(refusal), None) => refused = Some((seq, seq, refusal)),
                (Err(refusal), Some((_, last, first))) if refusal.code == first.code => *last = seq,
                (Ok(_) | Err(_), Some(_)) => break,
            }
        }
        let lane = &mut self.lanes[index(class)];
        lane.ignoring = false;
        if !events.is_empty() {
            lane.next = lane.next.max(batch.first_seq + events.len() as u64);
            lane.waiting.push_back(Waiting { attempt: lane.attempt, bytes: memory_bytes });
            let (first_seq, skipped) = (batch.first_seq, batch.skipped);
            let arrival = Arrival { agent: self.agent, epoch: self.epoch, class, first_seq, skipped, events };
            self.out.push(Output::Commit(arrival));
        }
        if let Some((first, last, refusal)) = refused {
            self.reject(class, first, last, refusal);
        }
    }

    fn reject(&mut self, class: Class, first_seq: u64, last_seq: u64, refusal: Refusal) {
        self.send_back(class);
        let (class_number, epoch) = (class.to_wire(), self.epoch);
        let (code, reason) = (refusal.code as i32, refusal.reason);
        let reject = wire::Reject { class: class_number, epoch, first_seq, last_seq, code, reason };
        self.send(Stream::Class(class), to_agent::Message::Reject(reject));
    }

    fn nack(&mut self, class: Class, expected: u64) {
        self.send_back(class);
        let nack = wire::Nack { class: class.to_wire(), epoch: self.epoch, expected };
        self.send(Stream::Class(class), to_agent::Message::Nack(nack));
    }

    fn send_back(&mut self, class: Class) {
        let lane = &mut self.lanes[index(class)];
        lane.ignoring = true;
        lane.attempt += 1;
    }

    fn committed(&mut self, class: Class, result: Result<Committed, String>) {
        let lane = &mut self.lanes[index(class)];
        let Some(Waiting { attempt, .. }) = lane.waiting.pop_front() else { return };
        match result {
            Ok(Committed::Durable(seq)) => {
                lane.next = lane.next.max(seq.saturating_add(1));
                let ack = wire::Ack { class: class.to_wire(), epoch: self.epoch, seq };
                self.send(Stream::Class(class), to_agent::Message::Ack(ack));
            }
            Ok(Committed::Hole { expected }) if attempt == lane.attempt => {
                lane.next = expected;
                self.nack(class, expected);
            }
            Ok(Committed::Hole { .. }) => {} // of an attempt that was sent back already
            Err(reason) => {
                self.refuse(RefuseCode::Overloaded, format!("the store can't take events now: {reason}"))
            }
        }
    }

    fn misbehaved(&mut self, what: &str) {
        self.refuse(RefuseCode::Misbehaved, format!("the agent broke the protocol: {what}"));
    }

    fn refuse(&mut self, code: RefuseCode, mut reason: String) {
        let end = (0..=TEXT_BYTES_MAX.min(reason.len()))
            .rev()
            .find(|&end| reason.is_char_boundary(end))
            .unwrap_or(0);
        reason.truncate(end);
        self.phase = Phase::Refused;
        self.out.push(Output::Refuse { code, reason });
    }

    fn send(&mut self, stream: Stream, message: to_agent::Message) {
        self.out.push(Output::Send { stream, message: wire::ToAgent { message: Some(message) } });
    }
}

struct Refusal {
    code: RejectCode,
    reason: String,
}

/// Decoded and within its limits, with what it takes in memory in bytes, or why not. An event of a kind that is not known
/// here, from a newer agent, is kept as it is.
fn examine(class: Class, body: Vec<u8>) -> Result<(Received, usize), Refusal> {
    if body.len() > EVENT_BYTES_MAX {
        let reason = format!("an event of {} bytes, allowed are {EVENT_BYTES_MAX}", body.len());
        return Err(Refusal { code: RejectCode::TooLarge, reason });
    }
    let lists_bytes = bounds::check(&bounds::EVENT, &body).map_err(|error| {
        let code = match error {
            bounds::BoundsError::TooMany { .. } => RejectCode::TooLarge,
            bounds::BoundsError::Unreadable(_) => RejectCode::Unreadable,
        };
        Refusal { code, reason: error.to_string() }
    })?;
    let event = wire::Event::decode(body.as_slice())
        .map_err(|error| Refusal { code: RejectCode::Unreadable, reason: error.to_string() })?;
    check::event(&event)
        .map_err(|error| Refusal { code: RejectCode::TooLarge, reason: error.to_string() })?;
    match Class::of(&event) {
        Some(other) if other != class => Err(Refusal {
            code: RejectCode::WrongClass,
            reason: format!("an event of class {other} among {class}"),
        }),
        Some(_) | None => {
            let bytes = size_of::<Received>() + body.len() + lists_bytes;
            Ok((Received { event, body }, bytes))
        }
    }
}

fn index(class: Class) -> usize {
    match class {
        Class::Alert => 0,
        Class::Telemetry => 1,
    }
}
