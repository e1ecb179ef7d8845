//! Carries one session: a dull table between `session` (which decides), the streams and the outbox.
//!
//! Three bidirectional streams, opened in this order: control, then one for each class. Each has a task that
//! writes, so that telemetry which waits for the collector's window never holds an alert back. Ends with an
//! `End`; `runner` decides what then.

use super::backoff::Backoff;
use super::credentials::Credentials;
use super::keeper::{Current, Word};
use super::live::{Ask, Door};
use super::quic::{Frames, Link};
use super::runner::Sources;
use super::session::{Input, Output, Session, Stream};
use super::tls::OutOfTime;
use super::{State, clock, roots, tls};
use crate::outbox::Heads;
use quinn::{Connection, ConnectionError, SendStream};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use vidette_protocol::id::Class;
use vidette_protocol::limits::{BATCHES_IN_FLIGHT_MAX, CLOCK_PART, FRAME_BYTES_MAX};
use vidette_protocol::wire::{self, RefuseCode, to_agent};
use vidette_protocol::{CLOSE_DONE, CLOSE_REPLACED, CLOSE_STOPPING, frame};

/// Messages that wait for one stream.
const WAITING_MAX: usize = 2 * BATCHES_IN_FLIGHT_MAX;
/// After stop, alerts may still be sent and acknowledged for so long. Milliseconds.
const GRACE_MS: u64 = 2_000;
/// The goodbye takes at most so long. Milliseconds.
const GOODBYE_MS_MAX: u64 = 500;

/// How a session ended, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Stop was said; the goodbye is sent.
    Stopped,
    /// Another identity is on disk.
    IdentityChanged,
    /// There is no usable identity.
    NotJoined(String),
    /// It ended for a good reason: connect again soon.
    Goodbye(String),
    /// The network, or what answers there.
    Failed(String),
    /// The collector's last word.
    Refused(RefuseCode, String),
}

/// Carries `session` on `link` until it ends.
pub(super) async fn serve(
    (link, out_of_time): (Link, OutOfTime),
    credentials: &Credentials,
    sources: &mut Sources,
    session: &mut Session,
    backoff: &mut Backoff,
    current: &mut watch::Receiver<Current>,
) -> End {
    let end = match Carrier::open(&link.connection, credentials, sources, session, backoff).await {
        Ok(mut carrier) => {
            carrier.out_of_time = out_of_time.load(Ordering::Relaxed);
            carrier.carry(current).await
        }
        Err(error) => why(&link.connection, &format!("{error:#}"), credentials),
    };
    session.handle(Input::Closed, Instant::now());
    let (code, reason) = match &end {
        End::Stopped => (CLOSE_STOPPING, "the agent stops"),
        End::IdentityChanged | End::NotJoined(_) | End::Goodbye(_) | End::Failed(_) | End::Refused(..) => {
            (CLOSE_DONE, "done")
        }
    };
    link.close(code, reason, Duration::from_millis(GOODBYE_MS_MAX)).await;
    end
}

/// What the connection itself says of its end; `error` when it says nothing.
fn why(connection: &Connection, error: &str, credentials: &Credentials) -> End {
    let collector = &credentials.collector;
    match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            match RefuseCode::try_from(code.cast_signed()) {
                _ if [CLOSE_DONE, CLOSE_REPLACED, CLOSE_STOPPING].contains(&code) => End::Goodbye(reason),
                Ok(refusal) => End::Refused(refusal, reason),
                Err(_) => End::Failed(tls::explain(&ConnectionError::ApplicationClosed(close), collector)),
            }
        }
        Some(ConnectionError::Reset) => End::Goodbye(tls::explain(&ConnectionError::Reset, collector)),
        Some(reason) => {
            let words = tls::explain(&reason, collector);
            tls::refusal(&reason).map_or(End::Failed(words.clone()), |code| End::Refused(code, words))
        }
        None => End::Failed(format!("the session with {collector} broke: {error}")),
    }
}

/// A task that writes one stream. It ends when the messages do, or the connection.
struct Writer(mpsc::Sender<Vec<u8>>);

impl Writer {
    fn start(mut stream: SendStream) -> Self {
        let (messages, mut waiting) = mpsc::channel::<Vec<u8>>(WAITING_MAX);
        tokio::spawn(async move {
            while let Some(bytes) = waiting.recv().await {
                if stream.write_all(&bytes).await.is_err() {
                    return; // the connection's end says why
                }
            }
        });
        Self(messages)
    }
}

/// What woke the loop.
enum Heard {
    Stop,
    GraceOver,
    Identity,
    Message(Stream, anyhow::Result<Option<wire::ToAgent>>),
    Appended,
    Renew(Option<Ask>),
    RootsKept(Option<wire::RootsKept>),
    Wake,
}

/// The streams, the session, and what waits to be told to it.
struct Carrier<'a> {
    connection: Connection,
    credentials: &'a Credentials,
    sources: &'a mut Sources,
    session: &'a mut Session,
    backoff: &'a mut Backoff,
    inputs: VecDeque<Input>,
    writers: [Writer; 3],
    readers: [Frames; 3],
    /// CAs that are being stored.
    keeping: Option<oneshot::Receiver<wire::RootsKept>>,
    wake: Option<Instant>,
    /// By this host's clock the collector's certificate is out of its time.
    out_of_time: bool,
    /// Where renewals are asked for, once the collector said that it takes them.
    door: Option<Door>,
    asked: Option<oneshot::Sender<Result<wire::Joined, wire::JoinRefused>>>,
}

impl<'a> Carrier<'a> {
    async fn open(
        connection: &Connection,
        credentials: &'a Credentials,
        sources: &'a mut Sources,
        session: &'a mut Session,
        backoff: &'a mut Backoff,
    ) -> anyhow::Result<Self> {
        let (control, from_control) = connection.open_bi().await?;
        let (alert, from_alert) = connection.open_bi().await?;
        let (telemetry, from_telemetry) = connection.open_bi().await?;
        // Where the link is the limit: telemetry is sent when nothing else waits.
        control.set_priority(2)?;
        alert.set_priority(1)?;
        let read = |stream| Frames::new(stream, FRAME_BYTES_MAX);
        let hello = wire::Hello { roots: roots::digests(&credentials.roots), ..(sources.hello)() };
        let state = sources.outbox.state_for(credentials.agent).await?;
        let connected = Input::Connected { state, hello };
        Ok(Self {
            connection: connection.clone(),
            credentials,
            sources,
            session,
            backoff,
            inputs: VecDeque::from([connected]),
            writers: [Writer::start(control), Writer::start(alert), Writer::start(telemetry)],
            readers: [read(from_control), read(from_alert), read(from_telemetry)],
            keeping: None,
            wake: None,
            out_of_time: false,
            door: None,
            asked: None,
        })
    }

    async fn carry(&mut self, current: &mut watch::Receiver<Current>) -> End {
        let mut appended = self.sources.outbox.changed();
        let mut stopping = self.sources.stopping.clone();
        let mut grace: Option<Instant> = None;
        loop {
            if let Some(end) = self.settle().await {
                return end;
            }
            if grace.is_some() && self.alerts_are_acknowledged().await {
                return End::Stopped;
            }
            let [control, alert, telemetry] = &mut self.readers;
            let heard = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop), if grace.is_none() => Heard::Stop,
                () = until(grace) => Heard::GraceOver,
                // An error means that the keeper is gone, which happens only at the end.
                Ok(()) = current.changed() => Heard::Identity,
                message = control.next() => Heard::Message(Stream::Control, message),
                message = alert.next() => Heard::Message(Stream::Class(Class::Alert), message),
                message = telemetry.next() => Heard::Message(Stream::Class(Class::Telemetry), message),
                Ok(()) = appended.changed() => Heard::Appended,
                ask = asked(&mut self.door) => Heard::Renew(ask),
                kept = kept(&mut self.keeping) => Heard::RootsKept(kept),
                () = until(self.wake) => Heard::Wake,
            };
            match heard {
                Heard::Stop => grace = Some(Instant::now() + Duration::from_millis(GRACE_MS)),
                Heard::GraceOver => return End::Stopped,
                Heard::Identity if self.is_still_mine(&current.borrow_and_update()) => {}
                Heard::Identity => return End::IdentityChanged,
                Heard::Message(stream, Ok(Some(message))) => match message.message {
                    Some(to_agent::Message::Refuse(refuse)) => {
                        return End::Refused(refuse.code(), refuse.reason);
                    }
                    _ => self.inputs.push_back(Input::Frame(stream, message)),
                },
                Heard::Message(_, Ok(None)) => return self.closed("a stream ended").await,
                Heard::Message(_, Err(error)) => return self.closed(&format!("{error:#}")).await,
                Heard::Appended => self.appended(*appended.borrow_and_update()),
                Heard::Renew(Some(Ask { renew, answer })) => {
                    self.asked = Some(answer);
                    self.inputs.push_back(Input::Renew(renew));
                }
                // The keeper is gone, which happens only at the end.
                Heard::Renew(None) => self.door = None,
                Heard::RootsKept(kept) => {
                    self.keeping = None;
                    self.inputs.extend(kept.map(Input::RootsKept));
                }
                Heard::Wake => {
                    self.wake = None;
                    self.inputs.push_back(Input::Tick);
                }
            }
        }
    }

    /// Tells the session what has happened and does what it says, until both are at rest.
    async fn settle(&mut self) -> Option<End> {
        while let Some(input) = self.inputs.pop_front() {
            for output in self.session.handle(input, Instant::now()) {
                match self.perform(output).await {
                    Ok(None) => {}
                    Ok(Some(end)) => return Some(end),
                    Err(error) => self.inputs.push_back(Input::OutboxFailed(format!("{error:#}"))),
                }
            }
        }
        None
    }

    async fn perform(&mut self, output: Output) -> anyhow::Result<Option<End>> {
        let outbox = &self.sources.outbox;
        match output {
            Output::Send { stream, message } => {
                let [control, alert, telemetry] = &self.writers;
                let Writer(messages) = match stream {
                    Stream::Control => control,
                    Stream::Class(Class::Alert) => alert,
                    Stream::Class(Class::Telemetry) => telemetry,
                };
                if messages.send(frame::encode(&*message)).await.is_err() {
                    return Ok(Some(self.closed("a stream can't be written").await));
                }
            }
            Output::Read { class, from, bytes_max } => {
                let run = outbox.read(class, from, bytes_max).await?;
                self.inputs.push_back(Input::Rows { class, run });
            }
            Output::Forget { epoch, class, upto } => outbox.forget(class, epoch, upto).await?,
            Output::SetAside { epoch, class, first, last, code, reason } => {
                outbox.set_aside(class, epoch, first, last, code, &reason).await?;
                self.inputs.push_back(Input::SetAsideDone(class));
            }
            Output::Restored { epoch, class, durable } => outbox.restored(class, epoch, durable).await?,
            Output::NewEpoch => drop(outbox.new_epoch().await?),
            Output::Welcomed { time_unix_ns, renews } => self.welcomed(time_unix_ns, renews),
            Output::Renewed(answer) => {
                // Nobody waits for an answer that is late.
                if let Some(asked) = self.asked.take() {
                    let _ = asked.send(*answer);
                }
            }
            Output::AskStatus => {
                let expires = self.credentials.expires_unix_s;
                let mut status =
                    wire::Status { certificate_expires_unix_s: expires, ..(self.sources.status)() };
                status.health.extend(self.sources.clock.borrow().as_ref().map(|message| wire::Health {
                    component: CLOCK_PART.into(),
                    state: wire::HealthState::Degraded.into(),
                    message: message.clone(),
                }));
                self.inputs.push_back(Input::Status(status));
            }
            Output::KeepRoots(roots) => self.keeping = Some(self.sources.roots.take(self.credentials, roots)),
            Output::Close { reason, graceful: true } => return Ok(Some(End::Goodbye(reason))),
            Output::Close { reason, graceful: false } => return Ok(Some(End::Failed(reason))),
            Output::WakeAt(at) => self.wake = Some(at),
        }
        Ok(None)
    }

    fn welcomed(&mut self, time_unix_ns: i64, renews: bool) {
        self.backoff.succeeded();
        let collector_unix_s = time_unix_ns / 1_000_000_000;
        // A full queue only means that the keeper has not looked yet.
        let _ = self.sources.words.try_send(Word::Time(collector_unix_s));
        // The clock by which the certificate was judged.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let host_unix_s = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let alarm = clock::alarm(host_unix_s, collector_unix_s, self.out_of_time);
        if let Some(message) = &alarm
            && *self.sources.clock.borrow() != alarm
        {
            let offset_s = host_unix_s.saturating_sub(collector_unix_s);
            tracing::warn!(message, offset_s, "clock");
        }
        self.sources.clock.send_replace(alarm);
        if let Some(leaf) = self.credentials.chain.first().filter(|_| renews) {
            self.door = Some(Door::open(leaf.clone(), &self.sources.live));
        }
        let (agent, collector) = (self.credentials.agent, &self.credentials.collector);
        tracing::info!(%agent, %collector, "connected");
        self.sources.state.send_modify(|state| {
            let failed = match state {
                State::Connecting { error } => error.take(),
                State::Refused { reason, .. } => Some(std::mem::take(reason)),
                State::NotJoined { .. } | State::Connected { .. } => None,
            };
            *state = State::Connected { agent, since: Instant::now(), failed };
        });
    }

    fn appended(&mut self, heads: Heads) {
        let epoch = heads.epoch;
        self.inputs.extend(Class::ALL.map(|class| Input::Appended { epoch, class, last: heads.last(class) }));
    }

    async fn alerts_are_acknowledged(&self) -> bool {
        match self.sources.outbox.state().await {
            Ok(state) => {
                state.classes.iter().all(|one| one.class != Class::Alert || one.first_unacked > one.last)
            }
            Err(_) => true, // nothing more can be done: they are on disk
        }
    }

    /// A session has the certificate that is on disk, so that the collector hears of a renewed one at once.
    fn is_still_mine(&self, current: &Current) -> bool {
        matches!(current, Ok(now) if now.chain == self.credentials.chain && now.collector == self.credentials.collector)
    }

    /// A stream is gone: the connection's own reason comes with it or right after.
    async fn closed(&self, error: &str) -> End {
        let _ = tokio::time::timeout(Duration::from_millis(GOODBYE_MS_MAX), self.connection.closed()).await;
        why(&self.connection, error, self.credentials)
    }
}

async fn asked(door: &mut Option<Door>) -> Option<Ask> {
    match door {
        Some(door) => door.next().await,
        None => std::future::pending().await,
    }
}

/// `None` when they were not stored.
async fn kept(keeping: &mut Option<oneshot::Receiver<wire::RootsKept>>) -> Option<wire::RootsKept> {
    match keeping {
        Some(keeping) => keeping.await.ok(),
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
