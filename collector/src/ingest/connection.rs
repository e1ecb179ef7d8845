//! Carries one agent's session: a dull table between `session` (which decides), the streams and the store.
//!
//! The agent opens three bidirectional streams: control, then one for each class; their ids say which is which.
//! While a class waits for its commits its stream is not read: QUIC's window is the backpressure, and the other
//! class goes on. Whatever breaks the rules ends this connection and no other.

use super::fleet::{Cut, Seat};
use super::quic::{Frames, FramesError, STREAMS_MAX, send};
use super::rate::Rate;
use super::session::{Arrival, Committed, Input, Output, Seen, Session, Stream};
use super::{Commits, Shared};
use crate::identity::{Sign, unix_s_now};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};
use vidette_protocol::id::Class;
use vidette_protocol::limits::FRAME_BYTES_MAX;
use vidette_protocol::wire::{Refuse, RefuseCode, ToAgent, ToCollector, to_agent};
use vidette_protocol::{CLOSE_DONE, CLOSE_REPLACED};

/// A frame of the control stream: Hello and Status are small. Bytes.
const CONTROL_BYTES_MAX: usize = 128 << 10;
/// Frames that are read from one agent a second; more wait in its own window.
const FRAMES_PER_S: u32 = 1000;
/// So many may come at once.
const FRAMES_BURST: u32 = 2000;
/// How often an agent that has not said Hello is looked at. Milliseconds.
const TICK_MS: u64 = 3000;
/// The last word may take so long to arrive. Milliseconds.
const LAST_WORD_MS_MAX: u64 = 300;

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
    Tick,
    Resume,
}

/// One stream, both ways.
struct Pair {
    send: SendStream,
    frames: Frames,
}

type Committing = Pin<Box<dyn Future<Output = Result<Committed, String>> + Send>>;

/// The commits of one class: one at a time, in order.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Arrival>,
    committing: Option<(u64, Committing)>,
}

/// Serves one agent until it goes or must go.
pub(super) async fn serve<S: Commits>(connection: Connection, seat: Seat, shared: &Shared<S>) {
    let agent = seat.agent();
    tracing::info!(%agent, address = %connection.remote_address(), "connected");
    let mut carrier = Carrier {
        connection,
        session: Session::new(agent, Instant::now()),
        seat,
        shared,
        streams: [None, None, None],
        lanes: [Lane::default(), Lane::default()],
        inputs: VecDeque::new(),
        rate: Rate::new(FRAMES_PER_S, FRAMES_BURST, Instant::now()),
        paused_until: None,
        greeted: false,
    };
    match carrier.carry().await {
        End::Gone => {}
        End::Cut(Cut::Replaced) => {
            carrier.connection.close(VarInt::from_u32(CLOSE_REPLACED), b"the same agent has connected again");
            tracing::info!(%agent, "replaced by a newer connection of the same agent");
        }
        End::Cut(Cut::Revoked) => carrier.last_word(RefuseCode::Revoked, "the agent was revoked").await,
        End::Refused(code, reason) => carrier.last_word(code, &reason).await,
    }
    carrier.connection.close(VarInt::from_u32(CLOSE_DONE), b"done");
    tracing::info!(%agent, "disconnected");
}

struct Carrier<'a, S> {
    connection: Connection,
    session: Session,
    seat: Seat,
    shared: &'a Shared<S>,
    /// Control, alert, telemetry.
    streams: [Option<Pair>; STREAMS_MAX as usize],
    lanes: [Lane; 2],
    inputs: VecDeque<Input>,
    rate: Rate,
    paused_until: Option<Instant>,
    greeted: bool,
}

impl<S: Commits> Carrier<'_, S> {
    async fn carry(&mut self) -> End {
        loop {
            if let Some(end) = self.settle().await {
                return end;
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
                opened = self.connection.accept_bi(), if opening => match opened {
                    Ok((send, receive)) => Heard::Opened(send, receive),
                    Err(_) => Heard::Gone,
                },
                message = next(control), if wants_control => Heard::Message(Stream::Control, message),
                message = next(alert), if wants_alert => Heard::Message(Stream::Class(Class::Alert), message),
                message = next(telemetry), if wants_telemetry => {
                    Heard::Message(Stream::Class(Class::Telemetry), message)
                }
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
                self.paused_until = self.rate.take(Instant::now()).err().map(|wait| Instant::now() + wait);
                self.inputs.push_back(Input::Frame(stream, message));
            }
            Heard::Message(_, Ok(None) | Err(FramesError::Gone(_))) => return Some(End::Gone),
            Heard::Message(_, Err(FramesError::Format(error))) => {
                return Some(End::Refused(
                    RefuseCode::Misbehaved,
                    format!("the agent broke the protocol: {error}"),
                ));
            }
            Heard::Committed(class, result) => self.committed(class, result),
            Heard::Tick => self.inputs.push_back(Input::Tick),
            Heard::Resume => self.paused_until = None,
        }
        None
    }

    /// Its id says what a stream is for (RFC 9000 section 2.1: the number above the two type bits).
    fn opened(&mut self, send: SendStream, receive: RecvStream) {
        let index = usize::try_from(receive.id().index()).unwrap_or(usize::MAX);
        let bytes_max = if index == 0 { CONTROL_BYTES_MAX } else { FRAME_BYTES_MAX };
        // QUIC's limit on streams lets no other index through.
        if let Some(place) = self.streams.get_mut(index) {
            *place = Some(Pair { send, frames: Frames::new(receive, bytes_max) });
        }
    }

    fn committed(&mut self, class: Class, result: Result<Committed, String>) {
        let lane = self.lane(class);
        let events = lane.committing.take().map_or(0, |(events, _)| events);
        if matches!(result, Ok(Committed::Durable(_))) {
            self.seat.committed(events, unix_s_now());
        }
        self.inputs.push_back(Input::Committed { class, result });
        self.commit_next(class);
    }

    fn commit_next(&mut self, class: Class) {
        let store = self.shared.store.clone();
        let lane = self.lane(class);
        if lane.committing.is_none()
            && let Some(arrival) = lane.waiting.pop_front()
        {
            lane.committing = Some((arrival.events.len() as u64, Box::pin(commit(store, arrival))));
        }
    }

    /// Tells the session what has happened and does what it says, until both are at rest.
    async fn settle(&mut self) -> Option<End> {
        while let Some(input) = self.inputs.pop_front() {
            for output in self.session.handle(input, Instant::now()) {
                if let Some(end) = self.perform(output).await {
                    return Some(end);
                }
            }
        }
        None
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
                self.lane(class).waiting.push_back(arrival);
                self.commit_next(class);
            }
            Output::Send { stream, message } => {
                let pair = self.streams.get_mut(index(stream)).and_then(Option::as_mut);
                // The session answers only on streams that have spoken.
                if let Some(pair) = pair
                    && let Err(error) = send(&mut pair.send, &message).await
                {
                    tracing::debug!(agent = %self.seat.agent(), error = %format!("{error:#}"), "could not answer");
                    return Some(End::Gone);
                }
            }
            Output::Refuse { code, reason } => return Some(End::Refused(code, reason)),
            Output::Seen(seen) => self.seen(&seen),
        }
        None
    }

    fn seen(&mut self, seen: &Seen) {
        let sign = match seen {
            Seen::Hello(hello) => {
                self.greeted = true;
                self.seat.hello(hello, unix_s_now());
                Sign::Hello(hello)
            }
            Seen::Status(status) => {
                self.seat.status(status, unix_s_now());
                Sign::Status(status)
            }
        };
        // In memory; `maintain` writes it down.
        self.shared.identity.seen(self.seat.agent(), sign);
    }

    /// Says why on the control stream and in the close frame: one of them arrives.
    async fn last_word(&mut self, code: RefuseCode, reason: &str) {
        self.shared.refuse(self.seat.agent(), code, reason);
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
        Some((_, committing)) => committing.as_mut().await,
        None => std::future::pending().await,
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
