//! Carries one agent's session: a dull table between `session` (which decides), the streams and the store.
//!
//! The agent opens three bidirectional streams: control, then one for each class; their ids say which is which.
//! While a class waits for its commits its stream is not read: QUIC's window is the backpressure, and the other
//! class goes on. Whatever breaks the rules ends this connection and no other.

use super::fleet::{Cut, Seat};
use super::join::Clerk;
use super::load::Burden;
use super::notices::Notice;
use super::orphans::Noted;
use super::pieces::{self, Piece};
use super::quic::{Frames, FramesError, STREAMS_MAX, send};
use super::rate::Allowance;
use super::session::{Arrival, Committed, Input, Output, Seen, Session, Stream};
use super::{CLONED, Commits, Papers, Shared, set_aside};
use crate::identity::{Greeting, Roots, Shown, Sign, unix_s_now};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use vidette_protocol::bounds;
use vidette_protocol::id::Class;
use vidette_protocol::limits::{FRAME_BYTES_MAX, RENEW_WITHIN_S_MAX};
use vidette_protocol::wire::{
    JoinRefusal, JoinRefused, Joined, Refuse, RefuseCode, Renew, ToAgent, ToCollector, to_agent, to_collector,
};
use vidette_protocol::{CLOSE_DONE, CLOSE_REPLACED, CLOSE_STOPPING};

/// A frame of the control stream: Hello and Status are small. Bytes.
const CONTROL_BYTES_MAX: usize = 128 << 10;
/// While too much of all agents waits for its commit, reading is tried again after this. Milliseconds.
const FULL_WAIT_MS: u64 = 50;
/// A batch that unpacks to more keeps a thread busy for so long that others would feel it: another one does it. Bytes.
const LARGE_BATCH_BYTES: u32 = 64 << 10;
/// Renewals a second that agents are asked for when a CA is replaced: fewer than may come.
const RENEWALS_PER_S: usize = 20;
/// How often an agent that has not said Hello is looked at. Milliseconds.
const TICK_MS: u64 = 3000;
/// The last word may take so long to arrive. Milliseconds.
const LAST_WORD_MS_MAX: u64 = 300;
/// A connection that was replaced may take so long to show that it is alive. Milliseconds.
const ALIVE_MS_MAX: u64 = 2_000;

const _: () = assert!(CONTROL_BYTES_MAX <= FRAME_BYTES_MAX);

/// How a connection ended, when the agent did not just go.
enum End {
    Gone,
    Cut(Cut),
    Refused(RefuseCode, String),
}

/// What woke the loop.
enum Heard {
    Cut(Cut),
    Gone,
    Opened(SendStream, RecvStream),
    Message(Stream, Result<Option<ToCollector>, FramesError>),
    Committed(Class, Result<Committed, String>),
    Renewed(Result<Joined, JoinRefused>),
    Roots,
    Tick,
    Resume,
}

/// One stream, both ways.
struct Pair {
    send: SendStream,
    frames: Frames,
}

type Renewing = Pin<Box<dyn Future<Output = Result<Joined, JoinRefused>> + Send>>;

type Committing = Pin<Box<dyn Future<Output = Result<Committed, String>> + Send>>;

/// The commits of one class: one at a time, in order.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Piece>,
    committing: Option<Doing>,
}

/// The piece that the store has now.
struct Doing {
    events: u64,
    is_last: bool,
    committing: Committing,
}

/// Serves one agent until it goes or must go.
pub(super) async fn serve<S: Commits>(
    connection: Connection,
    (seat, noted, papers): (Seat, Noted, Papers),
    shared: &Shared<S>,
) {
    let agent = seat.agent();
    tracing::info!(%agent, address = %connection.remote_address(), "connected");
    let mut carrier = Carrier {
        connection,
        session: Session::new(agent, Instant::now()).with_heartbeat(shared.heartbeat_s),
        allowance: seat.allowance(),
        burden: shared.load.nothing_yet(),
        seat,
        noted,
        papers,
        renewing: None,
        shared,
        streams: [None, None, None],
        lanes: [Lane::default(), Lane::default()],
        inputs: VecDeque::new(),
        roots: shared.identity.roots(),
        paused_until: None,
        late_at_datagram: [None; STREAMS_MAX as usize],
        greeted: false,
    };
    // Before anything is heard: the session tells at the Welcome.
    carrier.roots.mark_changed();
    match carrier.carry().await {
        End::Gone => {
            if has_said_goodbye(&carrier.connection) {
                carrier.seat.said_goodbye();
            }
        }
        End::Cut(Cut::Replaced) => {
            Box::pin(carrier.replaced()).await;
            carrier.connection.close(VarInt::from_u32(CLOSE_REPLACED), b"the same agent has connected again");
            tracing::info!(%agent, "replaced by a newer connection of the same agent");
        }
        End::Cut(Cut::Revoked) => {
            let (code, reason) = (RefuseCode::Revoked, "the agent was revoked");
            shared.refuse(agent, carrier.connection.remote_address(), code, reason);
            Box::pin(carrier.last_word(code, reason)).await;
        }
        End::Cut(Cut::Left) => {
            tracing::info!(%agent, "the agent has left");
            Box::pin(carrier.last_word(RefuseCode::Left, "the agent has left")).await;
        }
        End::Cut(Cut::Cloned) => {
            shared.refuse(agent, carrier.connection.remote_address(), RefuseCode::Cloned, CLONED);
            Box::pin(carrier.last_word(RefuseCode::Cloned, CLONED)).await;
        }
        End::Cut(Cut::Barred) => {
            // It is named where it was barred.
            let reason = "the agent misbehaves on another connection";
            Box::pin(carrier.last_word(RefuseCode::Misbehaved, reason)).await;
        }
        End::Refused(code, reason) => {
            if code == RefuseCode::Misbehaved {
                shared.fleet.offence(agent, Instant::now(), unix_s_now());
            }
            shared.refuse(agent, carrier.connection.remote_address(), code, &reason);
            Box::pin(carrier.last_word(code, &reason)).await;
        }
    }
    carrier.connection.close(VarInt::from_u32(CLOSE_DONE), b"done");
    tracing::info!(%agent, "disconnected");
}

/// The agent closed it because it stops.
fn has_said_goodbye(connection: &Connection) -> bool {
    matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close))
        if close.error_code == VarInt::from_u32(CLOSE_STOPPING))
}

struct Carrier<'a, S> {
    connection: Connection,
    session: Session,
    seat: Seat,
    noted: Noted,
    papers: Papers,
    renewing: Option<Renewing>,
    shared: &'a Shared<S>,
    /// Control, alert, telemetry.
    streams: [Option<Pair>; STREAMS_MAX as usize],
    lanes: [Lane; 2],
    inputs: VecDeque<Input>,
    allowance: Arc<Mutex<Allowance>>,
    burden: Burden,
    roots: watch::Receiver<Arc<Roots>>,
    paused_until: Option<Instant>,
    /// Datagrams that had come when a frame of each stream was late.
    late_at_datagram: [Option<u64>; STREAMS_MAX as usize],
    greeted: bool,
}

impl<S: Commits> Carrier<'_, S> {
    async fn carry(&mut self) -> End {
        loop {
            // Boxed: what answering needs is not kept by thousands of agents that are silent.
            if !self.inputs.is_empty()
                && let Some(end) = Box::pin(self.settle()).await
            {
                return end;
            }
            if self.paused_until.is_none() && self.shared.load.is_full() {
                self.paused_until = Some(Instant::now() + Duration::from_millis(FULL_WAIT_MS));
            }
            let opening = self.streams.iter().any(Option::is_none);
            let wants = |stream| self.paused_until.is_none() && self.session.wants(stream);
            let (wants_alert, wants_telemetry) =
                (wants(Stream::Class(Class::Alert)), wants(Stream::Class(Class::Telemetry)));
            let wants_control = wants(Stream::Control);
            let [control, alert, telemetry] = &mut self.streams;
            let [alerts, telemetries] = &mut self.lanes;
            let heard = tokio::select! {
                biased;
                cut = self.seat.cut() => Heard::Cut(cut),
                _ = self.connection.closed() => Heard::Gone,
                result = committed(alerts) => Heard::Committed(Class::Alert, result),
                result = committed(telemetries) => Heard::Committed(Class::Telemetry, result),
                result = renewed(&mut self.renewing) => Heard::Renewed(result),
                opened = self.connection.accept_bi(), if opening => match opened {
                    Ok((send, receive)) => Heard::Opened(send, receive),
                    Err(_) => Heard::Gone,
                },
                message = next(control), if wants_control => Heard::Message(Stream::Control, message),
                message = next(alert), if wants_alert => Heard::Message(Stream::Class(Class::Alert), message),
                message = next(telemetry), if wants_telemetry => {
                    Heard::Message(Stream::Class(Class::Telemetry), message)
                }
                // An error means that the identity is gone, which happens only at the end.
                Ok(()) = self.roots.changed() => Heard::Roots,
                () = until(self.paused_until) => Heard::Resume,
                () = tokio::time::sleep(Duration::from_millis(TICK_MS)), if !self.greeted => Heard::Tick,
            };
            if let Some(end) = self.heard(heard) {
                return end;
            }
        }
    }

    fn heard(&mut self, heard: Heard) -> Option<End> {
        match heard {
            Heard::Cut(cut) => return Some(End::Cut(cut)),
            Heard::Gone => return Some(End::Gone),
            Heard::Opened(send, receive) => self.opened(send, receive),
            Heard::Message(stream, Ok(Some(message))) => {
                self.shared.tally.heard(&message);
                self.charge(&message);
                self.late_at_datagram[index(stream)] = None;
                self.inputs.push_back(Input::Frame(stream, message));
            }
            Heard::Message(_, Ok(None) | Err(FramesError::Gone(_))) => return Some(End::Gone),
            Heard::Message(stream, Err(FramesError::Late(bytes))) => return self.late(stream, bytes),
            Heard::Message(_, Err(error @ FramesError::Format(_))) => {
                return Some(End::Refused(
                    RefuseCode::Misbehaved,
                    format!("the agent broke the protocol: {error}"),
                ));
            }
            Heard::Committed(class, result) => self.committed(class, result),
            Heard::Renewed(result) => {
                self.renewing = None;
                self.inputs.push_back(Input::Renewed(result));
            }
            Heard::Roots => self.roots_changed(),
            Heard::Tick => self.inputs.push_back(Input::Tick),
            Heard::Resume => self.paused_until = None,
        }
        None
    }

    /// A frame does not end. Once that may be the network; of a host that was switched off nothing more is heard, which is
    /// no offence; and whoever is heard and does not go on is cut off.
    fn late(&mut self, stream: Stream, bytes: usize) -> Option<End> {
        let heard = self.connection.stats().udp_rx.datagrams;
        match self.late_at_datagram[index(stream)].replace(heard) {
            None => None,
            Some(before) if before == heard => Some(End::Gone),
            Some(_) => {
                let error = FramesError::Late(bytes);
                Some(End::Refused(RefuseCode::Misbehaved, format!("the agent broke the protocol: {error}")))
            }
        }
    }

    /// What it sent is taken off what it may send; beyond that nothing is read for a while.
    fn charge(&mut self, message: &ToCollector) {
        let (events, bytes) = match &message.message {
            Some(to_collector::Message::Batch(batch)) => (batch.count, batch.events_bytes),
            Some(
                to_collector::Message::Hello(_)
                | to_collector::Message::Status(_)
                | to_collector::Message::Renew(_)
                | to_collector::Message::RootsKept(_),
            )
            | None => (0, 0),
        };
        let now = Instant::now();
        let wait = self.allowance.lock().unwrap_or_else(PoisonError::into_inner).charge(events, bytes, now);
        if !wait.is_zero() {
            self.paused_until = Some(now + wait);
            self.seat.slowed();
        }
    }

    /// Its id says what a stream is for (RFC 9000 section 2.1: the number above the two type bits).
    fn opened(&mut self, send: SendStream, receive: RecvStream) {
        let index = usize::try_from(receive.id().index()).unwrap_or(usize::MAX);
        let bytes_max = if index == 0 { CONTROL_BYTES_MAX } else { FRAME_BYTES_MAX };
        // QUIC's limit on streams lets no other index through.
        if let Some(place) = self.streams.get_mut(index) {
            *place = Some(Pair { send, frames: Frames::new(receive, bytes_max, &bounds::TO_COLLECTOR) });
        }
    }

    /// The session hears of the last piece of a run, or of the first one that was not stored.
    fn committed(&mut self, class: Class, result: Result<Committed, String>) {
        let lane = self.lane(class);
        let (events, is_last) =
            lane.committing.take().map_or((0, true), |doing| (doing.events, doing.is_last));
        let is_durable = matches!(result, Ok(Committed::Durable(_)));
        if !is_durable && !is_last {
            let rest = lane.waiting.iter().position(|piece| piece.is_last).map_or(0, |last| last + 1);
            lane.waiting.drain(..rest);
        }
        if is_durable {
            self.seat.committed(events, is_last, unix_s_now());
        }
        if is_last || !is_durable {
            self.inputs.push_back(Input::Committed { class, result });
        }
        self.commit_next(class);
    }

    fn commit_next(&mut self, class: Class) {
        let store = self.shared.store.clone();
        let lane = self.lane(class);
        if lane.committing.is_none()
            && let Some(Piece { arrival, is_last }) = lane.waiting.pop_front()
        {
            let events = arrival.events.len() as u64;
            lane.committing = Some(Doing { events, is_last, committing: Box::pin(commit(store, arrival)) });
        }
    }

    /// Tells the session what has happened and does what it says, until both are at rest.
    async fn settle(&mut self) -> Option<End> {
        while let Some(input) = self.inputs.pop_front() {
            let outputs = if is_large(&input) {
                match self.unpack(input).await {
                    Ok(outputs) => outputs,
                    Err(end) => return Some(end),
                }
            } else {
                self.session.handle(input, Instant::now())
            };
            self.burden.set(self.session.waiting_bytes());
            for output in outputs {
                if let Some(end) = self.perform(output).await {
                    return Some(end);
                }
            }
        }
        None
    }

    /// The session goes there and comes back: nobody asks it anything meanwhile.
    async fn unpack(&mut self, input: Input) -> Result<Vec<Output>, End> {
        let empty = Session::new(self.seat.agent(), Instant::now());
        let session = std::mem::replace(&mut self.session, empty);
        let Some((session, outputs)) = self.shared.unpacking.handle(session, input).await else {
            let reason = "the collector could not unpack a batch; see its log".to_owned();
            return Err(End::Refused(RefuseCode::Overloaded, reason));
        };
        self.session = session;
        Ok(outputs)
    }

    async fn perform(&mut self, output: Output) -> Option<End> {
        match output {
            Output::Load { epoch } => match self.shared.store.durable(self.seat.agent(), epoch).await {
                Ok(durable) => {
                    self.inputs.push_back(Input::Loaded { epoch, durable, time_unix_ns: unix_ns_now() })
                }
                Err(error) => return Some(store_failed(&error)),
            },
            Output::Commit(arrival) => {
                let class = arrival.class;
                self.lane(class).waiting.extend(pieces::cut(arrival));
                self.commit_next(class);
            }
            Output::Send { stream, message } => {
                self.shared.tally.answered(&message);
                let pair = self.streams.get_mut(index(stream)).and_then(Option::as_mut);
                // The session answers only on streams that have spoken.
                if let Some(pair) = pair
                    && let Err(error) = send(&mut pair.send, &message).await
                {
                    tracing::debug!(agent = %self.seat.agent(), error = %format!("{error:#}"), "could not answer");
                    // A connection that is gone says so itself; this one is there and its agent does not read.
                    return Some(match self.connection.close_reason() {
                        Some(_) => End::Gone,
                        None => End::Refused(
                            RefuseCode::Misbehaved,
                            format!("the agent broke the protocol: {error}"),
                        ),
                    });
                }
            }
            Output::Renew(renew) => self.renewing = Some(self.renew(renew)),
            Output::Refuse { code, reason } => return Some(End::Refused(code, reason)),
            Output::Seen(seen) => {
                if matches!(seen, Seen::Hello(_))
                    && let Some(end) = self.greet().await
                {
                    return Some(end);
                }
                return self.seen(&seen);
            }
        }
        None
    }

    fn seen(&mut self, seen: &Seen) -> Option<End> {
        let sign = match seen {
            Seen::Hello(hello) => {
                if !self.seat.may_begin(hello.epoch, Instant::now()) {
                    let reason = "the agent broke the protocol: it had too many outboxes in a short time";
                    return Some(End::Refused(RefuseCode::Misbehaved, reason.to_owned()));
                }
                self.greeted = true;
                self.shared.identity.trusts(self.seat.agent(), &hello.roots);
                self.seat.hello(hello, unix_s_now());
                Sign::Hello(hello)
            }
            Seen::Status(status) => {
                self.noted.is_at(self.connection.remote_address(), self.connection.local_ip());
                self.seat.status(status, unix_s_now());
                Sign::Status(status)
            }
            Seen::Roots(kept) => {
                self.shared.identity.trusts(self.seat.agent(), &kept.digests);
                self.shared.identity.is_marked(self.seat.agent(), &kept.digests, &kept.host_mark);
                return None;
            }
        };
        // In memory; `maintain` writes it down.
        self.shared.identity.seen(self.seat.agent(), sign);
        None
    }

    /// The next certificate. The register is on disk: another thread asks it.
    fn renew(&self, renew: Renew) -> Renewing {
        let clerk = Clerk {
            identity: self.shared.identity.clone(),
            fleet: self.shared.fleet.clone(),
            notices: self.shared.notices.clone(),
        };
        let (shown, address) = (self.papers.shown.clone(), self.connection.remote_address());
        let asking = tokio::task::spawn_blocking(move || clerk.renew(&shown, &renew, address));
        Box::pin(async move {
            asking.await.unwrap_or_else(|_| {
                let reason = "the collector is being stopped".to_owned();
                Err(JoinRefused { code: JoinRefusal::Overloaded as i32, reason })
            })
        })
    }

    /// It has said Hello: its certificate is in use from now on, or it was in use too long.
    async fn greet(&mut self) -> Option<End> {
        if self.papers.is_current {
            return None;
        }
        let (agent, address) = (self.seat.agent(), self.connection.remote_address());
        let (identity, shown): (_, Box<Shown>) = (self.shared.identity.clone(), self.papers.shown.clone());
        let Ok(_lookup) = self.shared.lookups.acquire().await else { return Some(End::Gone) };
        let greeting =
            tokio::task::spawn_blocking(move || identity.greet(&shown, address, unix_s_now())).await;
        match greeting {
            Ok(Ok(Greeting::Current | Greeting::Confirmed)) => None,
            Ok(Ok(Greeting::Adopted { generation, newest })) => {
                tracing::warn!(%agent, %address, generation, newest, "this agent has a newer certificate than this collector knew: it was restored from a backup");
                self.shared.notices.tell(&Notice::Ahead { agent, address, generation, newest });
                None
            }
            Ok(Ok(Greeting::Copied(sign))) => {
                // An old connection of an agent that has renewed may be late. Nobody is there any more then.
                if !self.is_alive().await {
                    return Some(End::Gone);
                }
                let shared = self.shared;
                let (identity, fleet, notices) =
                    (shared.identity.clone(), shared.fleet.clone(), shared.notices.clone());
                // When that panicked it is in the log; the agent is not let in all the same.
                let _ =
                    tokio::task::spawn_blocking(move || set_aside(&identity, &fleet, &notices, sign)).await;
                Some(End::Cut(Cut::Cloned))
            }
            Ok(Err(error)) => {
                tracing::error!(error = %format!("{error:#}"), "could not look up an agent's certificate");
                Some(End::Refused(RefuseCode::Overloaded, "the collector can't read its register".to_owned()))
            }
            Err(_) => Some(End::Gone),
        }
    }

    /// Whoever confirms the end of the control stream is there now (RFC 9000 section 13.2). Nothing can be said on it after.
    async fn is_alive(&mut self) -> bool {
        let Some(Some(control)) = self.streams.first_mut() else { return false };
        let asked = control.send.finish().is_ok();
        let confirmed =
            tokio::time::timeout(Duration::from_millis(ALIVE_MS_MAX), control.send.stopped()).await;
        asked && matches!(confirmed, Ok(Ok(_)))
    }

    /// The session hears what agents have to trust, and whether this one's certificate is of a CA that is being replaced.
    fn roots_changed(&mut self) {
        let roots = self.roots.borrow_and_update().clone();
        let is_of_another = super::leaf(&self.connection).is_some_and(|leaf| !roots.issued(&leaf));
        let renew_within_s = if is_of_another { renew_within_s(self.shared.fleet.connected()) } else { 0 };
        self.inputs.push_back(Input::Roots { roots, renew_within_s });
    }

    /// Says why on the control stream and in the close frame: one of them arrives.
    async fn last_word(&mut self, code: RefuseCode, reason: &str) {
        if let Some(Some(control)) = self.streams.first_mut() {
            let refuse = Refuse { code: code as i32, reason: reason.to_owned() };
            let message = ToAgent { message: Some(to_agent::Message::Refuse(refuse)) };
            let say = async {
                send(&mut control.send, &message).await?;
                control.send.finish()?;
                control.send.stopped().await?;
                anyhow::Ok(())
            };
            // Best effort: the close frame below says the same.
            let _ = tokio::time::timeout(Duration::from_millis(LAST_WORD_MS_MAX), say).await;
        }
        self.connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
    }

    /// The same agent has connected again. Usually because it was killed, or its network changed; then nobody is there any
    /// more who confirms the end of the control stream (RFC 9000 section 13.2). Whoever does is alive at the same time as
    /// the newer one, with the same certificate: a copy.
    async fn replaced(&mut self) {
        let is_alive = self.is_alive().await;
        let (agent, older) = (self.seat.agent(), self.connection.remote_address());
        let Some(newer) = self.seat.newest_address() else { return };
        if !is_alive {
            return;
        }
        let now = (Instant::now(), unix_s_now());
        if let Some(untold) = self.shared.fleet.twice(agent, (older, newer), now.0, now.1) {
            tracing::warn!(%agent, %older, %newer, "two live connections with one certificate: a copied identity");
            self.shared.notices.tell(&Notice::Twice { agent, older, newer, untold });
        }
    }

    fn lane(&mut self, class: Class) -> &mut Lane {
        let [alert, telemetry] = &mut self.lanes;
        match class {
            Class::Alert => alert,
            Class::Telemetry => telemetry,
        }
    }
}

async fn commit(store: impl Commits, arrival: Arrival) -> Result<Committed, String> {
    store.commit(arrival).await.map_err(|error| {
        tracing::error!(error = %format!("{error:#}"), "could not commit events; their agents keep them");
        "see the collector's log".to_owned()
    })
}

fn store_failed(error: &anyhow::Error) -> End {
    tracing::error!(error = %format!("{error:#}"), "could not read the store; agents keep their events");
    End::Refused(RefuseCode::Overloaded, "the collector can't read its store now".to_owned())
}

async fn committed(lane: &mut Lane) -> Result<Committed, String> {
    match &mut lane.committing {
        Some(doing) => doing.committing.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn renewed(renewing: &mut Option<Renewing>) -> Result<Joined, JoinRefused> {
    match renewing {
        Some(renewing) => renewing.as_mut().await,
        None => std::future::pending().await,
    }
}

/// A whole fleet renews at a pace that leaves room for hosts that join.
fn renew_within_s(connected: usize) -> u32 {
    let within_s = u32::try_from(connected / RENEWALS_PER_S).unwrap_or(u32::MAX);
    within_s.clamp(1, RENEW_WITHIN_S_MAX)
}

fn is_large(input: &Input) -> bool {
    match input {
        Input::Frame(_, ToCollector { message: Some(to_collector::Message::Batch(batch)) }) => {
            batch.events_bytes > LARGE_BATCH_BYTES
        }
        Input::Frame(..)
        | Input::Loaded { .. }
        | Input::Committed { .. }
        | Input::Renewed(_)
        | Input::Roots { .. }
        | Input::Tick => false,
    }
}

async fn next(pair: &mut Option<Pair>) -> Result<Option<ToCollector>, FramesError> {
    match pair {
        Some(pair) => pair.frames.next().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Control => 0,
        Stream::Class(Class::Alert) => 1,
        Stream::Class(Class::Telemetry) => 2,
    }
}

fn unix_ns_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
