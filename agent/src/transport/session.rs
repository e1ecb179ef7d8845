//! What to send next and what to make of the answer: the agent's half of a session, pure.
//!
//! Assumes a shell that does each output in order and brings back what comes of it; no clock, no socket, no
//! database here. One `Session` lives as long as the process and sees many connections, so that refusals are
//! counted across them. A state from which nothing follows does not exist: whatever is waited for from the
//! collector has a time limit, after which the connection is closed and begun anew.
//!
//! Alerts go first. After the Welcome telemetry waits until the alerts that waited then are acknowledged, and with them
//! every gap of the time without a link; later the two classes go side by side, and telemetry waits only before a
//! hole, for the gap that explains it. Within alerts the order is by number: a fresh one goes after those that wait,
//! so that its delay is the time their drain takes (`tests/tests/delivery/week.rs` prints it for 100,000).

use super::lane::{Lane, Want};
use crate::outbox::{READ_BYTES_MAX, Run, State};
use std::time::{Duration, Instant};
use vidette_protocol::PROTOCOL;
use vidette_protocol::batch;
use vidette_protocol::id::Class;
use vidette_protocol::limits::{BATCHES_IN_FLIGHT_MAX, EVENT_BYTES_MAX, HEARTBEAT_S_MAX, HEARTBEAT_S_MIN};
use vidette_protocol::wire::{self, to_agent, to_collector};

/// Refusals of one range before it is set aside.
pub const REFUSALS_MAX: u32 = 3;
/// Nacks in a row that bring nothing forward before the connection is given up.
pub const NACKS_MAX: u32 = 4;
/// Bounds of the interval that the collector may ask for.
const STATUS_INTERVAL_MIN: Duration = Duration::from_secs(HEARTBEAT_S_MIN as u64);
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(HEARTBEAT_S_MAX as u64);

/// Times and sizes, so that a test may shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Batches of a class that wait for their Ack.
    pub in_flight_max: usize,
    /// Telemetry that waits is sent after this time.
    pub telemetry_wait_max: Duration,
    /// Telemetry is sent at once when so many events wait.
    pub telemetry_events_min: u64,
    /// No Welcome for so long: close.
    pub welcome_wait_max: Duration,
    /// Batches in flight and no answer for so long: close.
    pub ack_wait_max: Duration,
    /// Between two Status messages, unless the Welcome says otherwise.
    pub status_interval: Duration,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Hello, Welcome, Status, Refuse.
    Control,
    /// Batches of one class, and their answers.
    Class(Class),
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A connection is up. `hello` needs no epoch and no classes: they are filled in from `state`.
    Connected {
        /// The outbox, read after the connection was made.
        state: State,
        /// Versions, level, names.
        hello: wire::Hello,
    },
    /// The collector said something.
    Frame(Stream, wire::ToAgent),
    /// The answer to [`Output::Read`].
    Rows {
        /// Which was asked for.
        class: Class,
        /// What there is.
        run: Run,
    },
    /// New events were committed, or the epoch changed.
    Appended {
        /// Of which outbox.
        epoch: u64,
        /// Which numbers.
        class: Class,
        /// The last one given.
        last: u64,
    },
    /// [`Output::SetAside`] is done.
    SetAsideDone(Class),
    /// An output on the outbox failed.
    OutboxFailed(String),
    /// The answer to [`Output::AskStatus`].
    Status(wire::Status),
    /// Ask for the next certificate, when the Welcome said that the collector renews; else nothing is done.
    Renew(wire::Renew),
    /// The answer to [`Output::KeepRoots`], when they are stored.
    RootsKept(wire::RootsKept),
    /// The time of [`Output::WakeAt`] has come; harmless at any time.
    Tick,
    /// The connection is gone.
    Closed,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this.
    Send {
        /// Where.
        stream: Stream,
        /// What.
        message: Box<wire::ToCollector>,
    },
    /// Read from the outbox; answer with [`Input::Rows`].
    Read {
        /// Which numbers.
        class: Class,
        /// From which on.
        from: u64,
        /// How much.
        bytes_max: usize,
    },
    /// Tell the outbox that the collector has these.
    Forget {
        /// Of which outbox.
        epoch: u64,
        /// Which numbers.
        class: Class,
        /// The last.
        upto: u64,
    },
    /// Have the outbox set these aside; answer with [`Input::SetAsideDone`].
    SetAside {
        /// Of which outbox.
        epoch: u64,
        /// Which numbers.
        class: Class,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
        /// [`wire::RejectCode`].
        code: i32,
        /// The collector's words.
        reason: String,
    },
    /// Tell the outbox that the collector has less than it once acknowledged.
    Restored {
        /// Of which outbox.
        epoch: u64,
        /// Which numbers.
        class: Class,
        /// What it has.
        durable: u64,
    },
    /// Number what waits anew. A [`Output::Close`] follows.
    NewEpoch,
    /// The collector welcomed this agent: backoff may start over.
    Welcomed {
        /// Its wall clock, Unix nanoseconds.
        time_unix_ns: i64,
        /// It takes [`Input::Renew`].
        renews: bool,
    },
    /// The answer to [`Input::Renew`], or one that nobody waits for any more.
    Renewed(Box<Result<wire::Joined, wire::JoinRefused>>),
    /// Make a Status; answer with [`Input::Status`].
    AskStatus,
    /// Trust these CAs from now on; answer with [`Input::RootsKept`] if that is possible.
    KeepRoots(wire::Roots),
    /// Close the connection.
    Close {
        /// Why, one sentence for the log.
        reason: String,
        /// Whether the next connection may be tried at once.
        graceful: bool,
    },
    /// Send a [`Input::Tick`] then, instead of any earlier wish.
    WakeAt(Instant),
}

/// The agent's half.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    phase: Phase,
    epoch: u64,
    lanes: [Lane; 2],
    bytes_max: usize,
    status_interval: Duration,
    status_at: Instant,
    /// The Welcome said that the collector renews. One of version 0.1 takes a Renew for an offence.
    renews: bool,
    out: Vec<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection, or one that is being closed.
    Apart,
    /// Hello was sent then.
    Greeting(Instant),
    /// Welcomed.
    Open,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_max: BATCHES_IN_FLIGHT_MAX,
            telemetry_wait_max: Duration::from_secs(1),
            telemetry_events_min: 512,
            welcome_wait_max: Duration::from_secs(15),
            ack_wait_max: Duration::from_secs(30),
            status_interval: Duration::from_secs(60),
        }
    }
}

impl Session {
    /// Apart from any collector.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let status_interval = limits.status_interval;
        Self {
            limits,
            phase: Phase::Apart,
            epoch: 0,
            lanes: Class::ALL.map(|class| Lane::new(class, now)),
            bytes_max: READ_BYTES_MAX,
            status_interval,
            status_at: now,
            renews: false,
            out: Vec::new(),
        }
    }

    /// Takes what happened and says what to do, in order.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Output> {
        match input {
            Input::Connected { state, hello } => self.connected(&state, hello, now),
            Input::Closed => self.phase = Phase::Apart,
            Input::Appended { epoch, class, last } => self.appended(epoch, class, last, now),
            Input::Frame(..)
            | Input::Rows { .. }
            | Input::SetAsideDone(_)
            | Input::OutboxFailed(_)
            | Input::Status(_)
            | Input::Renew(_)
            | Input::RootsKept(_)
            | Input::Tick
                if self.phase == Phase::Apart => {} // late news of a connection that is gone
            Input::Frame(stream, frame) => self.frame(stream, frame, now),
            Input::Rows { class, run } => self.rows(class, run, now),
            Input::SetAsideDone(class) => self.lane(class).set_aside_done(now),
            Input::OutboxFailed(reason) => self.close(format!("the outbox failed: {reason}"), false),
            Input::Status(status) => self.send(Stream::Control, to_collector::Message::Status(status)),
            Input::Renew(renew) => {
                if self.renews && self.phase == Phase::Open {
                    self.send(Stream::Control, to_collector::Message::Renew(renew));
                }
            }
            Input::RootsKept(kept) => {
                self.send(Stream::Control, to_collector::Message::RootsKept(kept));
            }
            Input::Tick => {}
        }
        self.go_on(now);
        std::mem::take(&mut self.out)
    }

    /// Whether a collector has welcomed this agent and is still there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    fn connected(&mut self, state: &State, mut hello: wire::Hello, now: Instant) {
        self.epoch = state.epoch;
        self.bytes_max = READ_BYTES_MAX;
        for class in &state.classes {
            let epoch = state.epoch;
            self.lane(class.class).connected(epoch, class, now);
        }
        hello.protocol = PROTOCOL;
        hello.epoch = state.epoch;
        hello.classes = state
            .classes
            .iter()
            .map(|class| wire::ClassState {
                class: class.class.to_wire(),
                first_unacked: class.first_unacked,
                last: class.last,
            })
            .collect();
        self.phase = Phase::Greeting(now);
        self.renews = false;
        self.send(Stream::Control, to_collector::Message::Hello(hello));
    }

    fn appended(&mut self, epoch: u64, class: Class, last: u64, now: Instant) {
        if self.phase == Phase::Apart {
            return; // the next Connected brings all numbers
        }
        if epoch == self.epoch {
            self.lane(class).appended(last, now);
        } else {
            self.close("the outbox has a new epoch".into(), true);
        }
    }

    fn frame(&mut self, stream: Stream, frame: wire::ToAgent, now: Instant) {
        use to_agent::Message;
        match (frame.message, stream, self.phase) {
            (Some(Message::Refuse(refuse)), _, _) => {
                let code = refuse.code().as_str_name();
                let graceful = refuse.code() == wire::RefuseCode::Unspecified;
                self.close(format!("the collector refused: {} ({code})", short(&refuse.reason)), graceful);
            }
            (Some(Message::Welcome(welcome)), Stream::Control, Phase::Greeting(_)) => {
                self.welcome(&welcome, now)
            }
            (Some(Message::Roots(roots)), Stream::Control, Phase::Open) => {
                self.out.push(Output::KeepRoots(roots));
            }
            (Some(Message::Ack(ack)), Stream::Class(class), Phase::Open) => {
                if self.is_mine(class, ack.class, ack.epoch) {
                    match self.lane(class).ack(ack.seq, now) {
                        Ok(true) => self.out.push(Output::Forget { epoch: self.epoch, class, upto: ack.seq }),
                        Ok(false) => {}
                        Err(reason) => self.close(reason, false),
                    }
                }
            }
            (Some(Message::Nack(nack)), Stream::Class(class), Phase::Open) => {
                if self.is_mine(class, nack.class, nack.epoch)
                    && let Err(reason) = self.lane(class).nack(nack.expected, now)
                {
                    self.close(reason, false);
                }
            }
            (Some(Message::Reject(reject)), Stream::Class(class), Phase::Open) => {
                self.reject(class, reject, now)
            }
            (Some(Message::Renewed(joined)), Stream::Control, Phase::Open) => {
                self.out.push(Output::Renewed(Box::new(Ok(joined))));
            }
            (Some(Message::RenewRefused(refused)), Stream::Control, Phase::Open) => {
                self.out.push(Output::Renewed(Box::new(Err(refused))));
            }
            (
                Some(
                    Message::Welcome(_)
                    | Message::Ack(_)
                    | Message::Nack(_)
                    | Message::Reject(_)
                    | Message::Renewed(_)
                    | Message::RenewRefused(_)
                    | Message::Roots(_),
                )
                | None,
                Stream::Control | Stream::Class(_),
                _,
            ) => self.close("the collector sent a message that does not belong here".into(), false),
        }
    }

    fn welcome(&mut self, welcome: &wire::Welcome, now: Instant) {
        if welcome.protocol == 0 || welcome.protocol > PROTOCOL {
            let theirs = welcome.protocol;
            return self.close(
                format!("the collector speaks protocol {theirs}, this agent {PROTOCOL}: update one"),
                false,
            );
        }
        let bytes_max = usize::try_from(welcome.batch_bytes_max).unwrap_or(usize::MAX);
        if bytes_max < EVENT_BYTES_MAX {
            return self.close(
                format!("the collector takes batches of {bytes_max} bytes only: too few for one event"),
                false,
            );
        }
        self.bytes_max = READ_BYTES_MAX.min(bytes_max);
        let in_flight = usize::try_from(welcome.batches_in_flight_max).unwrap_or(usize::MAX);
        let in_flight = in_flight.clamp(1, self.limits.in_flight_max);
        self.status_interval = match welcome.status_interval_s {
            0 => self.limits.status_interval,
            seconds => Duration::from_secs(seconds.into()).clamp(STATUS_INTERVAL_MIN, STATUS_INTERVAL_MAX),
        };
        self.status_at = now;
        self.phase = Phase::Open;
        for class in Class::ALL {
            let durable = welcome.classes.iter().find(|durable| durable.class == class.to_wire());
            let durable = durable.map_or(0, |durable| durable.seq);
            if self.phase == Phase::Open {
                self.begin(class, durable, in_flight, now);
            }
        }
        if self.phase == Phase::Open {
            let [alert, telemetry] = &mut self.lanes;
            if alert.last() > alert.acked() {
                telemetry.hold(alert.last());
            }
            self.renews = welcome.renews;
            self.out.push(Output::Welcomed { time_unix_ns: welcome.time_unix_ns, renews: welcome.renews });
        }
    }

    fn begin(&mut self, class: Class, durable: u64, in_flight: usize, now: Instant) {
        let epoch = self.epoch;
        let lane = self.lane(class);
        if durable > lane.last() {
            self.out.push(Output::NewEpoch);
            return self.close(
                format!("the collector has {class} events up to {durable}, which this outbox never gave"),
                true,
            );
        }
        if durable < lane.acked() {
            self.out.push(Output::Restored { epoch, class, durable });
        } else if durable > 0 {
            self.out.push(Output::Forget { epoch, class, upto: durable });
        }
        self.lane(class).welcomed(durable, in_flight, now);
    }

    fn reject(&mut self, class: Class, reject: wire::Reject, now: Instant) {
        if !self.is_mine(class, reject.class, reject.epoch) {
            return;
        }
        match self.lane(class).reject(reject.first_seq, reject.last_seq, now) {
            Err(reason) => self.close(reason, false),
            Ok(refusals) if refusals < REFUSALS_MAX => {}
            Ok(_) => self.out.push(Output::SetAside {
                epoch: self.epoch,
                class,
                first: reject.first_seq,
                last: reject.last_seq,
                code: reject.code,
                reason: short(&reject.reason),
            }),
        }
    }

    /// An answer must be for the class of its stream and for this outbox.
    fn is_mine(&mut self, class: Class, number: i32, epoch: u64) -> bool {
        let mine = number == class.to_wire() && epoch == self.epoch;
        if !mine {
            self.close(
                format!("the collector answered on the stream of class {class} for another class or epoch"),
                false,
            );
        }
        mine
    }

    fn rows(&mut self, class: Class, run: Run, now: Instant) {
        if run.epoch != self.epoch {
            return self.close("the outbox has a new epoch".into(), true);
        }
        let epoch = self.epoch;
        let alerts_acked = self.lanes[0].acked();
        if self.lane(class).is_early(&run, alerts_acked) {
            return;
        }
        let Some(run) = self.lane(class).rows(run, now) else { return };
        match batch::pack(class, epoch, run.first_seq, run.skipped, run.events) {
            Ok(batch) => self.send(Stream::Class(class), to_collector::Message::Batch(batch)),
            Err(error) => self.close(format!("a batch could not be packed: {error}"), false),
        }
    }

    /// What follows from the state and the time alone.
    fn go_on(&mut self, now: Instant) {
        let mut wake = None;
        match self.phase {
            Phase::Apart => return,
            Phase::Greeting(since) => {
                let until = since + self.limits.welcome_wait_max;
                if now >= until {
                    return self.close("the collector did not answer the greeting in time".into(), false);
                }
                wake = earlier(wake, until);
            }
            Phase::Open => {
                if now >= self.status_at {
                    self.status_at = now + self.status_interval;
                    self.out.push(Output::AskStatus);
                }
                wake = earlier(wake, self.status_at);
                let [alert, telemetry] = &mut self.lanes;
                telemetry.let_go(alert);
                for index in 0..self.lanes.len() {
                    match self.lanes[index].want(&self.limits, now) {
                        Want::Read { class, from } => {
                            self.out.push(Output::Read { class, from, bytes_max: self.bytes_max });
                        }
                        Want::Wake(at) => wake = earlier(wake, at),
                        Want::GiveUp(reason) => return self.close(reason, false),
                        Want::Nothing => {}
                    }
                    if let Some(at) = self.lanes[index].gives_up_at(&self.limits) {
                        wake = earlier(wake, at);
                    }
                }
            }
        }
        self.out.extend(wake.map(Output::WakeAt));
    }

    fn close(&mut self, reason: String, graceful: bool) {
        if self.phase != Phase::Apart {
            self.phase = Phase::Apart;
            self.out.push(Output::Close { reason, graceful });
        }
    }

    fn send(&mut self, stream: Stream, message: to_collector::Message) {
        let message = Box::new(wire::ToCollector { message: Some(message) });
        self.out.push(Output::Send { stream, message });
    }

    fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Alert => &mut self.lanes[0],
            Class::Telemetry => &mut self.lanes[1],
        }
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// The collector's words, not longer than a log line.
fn short(text: &str) -> String {
    text.chars().take(256).collect()
}
