//! Carries one session: a dull table between `session` (which decides), the streams and the outbox.
//!
//! Three bidirectional streams, opened in this order: control, then one for each class. Each has a task that
//! writes, so that telemetry which waits for the collector's window never holds an alert back. Ends with an
//! `End`; `runner` decides what then.

use super::backoff::Backoff;
use super::credentials::Credentials;
use super::keeper::Current;
use super::quic::{Frames, Link};
use super::runner::Sources;
use super::session::{Input, Output, Session, Stream};
use super::{State, tls};
use crate::outbox::Heads;
use quinn::{Connection, ConnectionError, SendStream};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use vidette_protocol::id::Class;
use vidette_protocol::limits::{BATCHES_IN_FLIGHT_MAX, FRAME_BYTES_MAX};
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
    link: Link,
    credentials: &Credentials,
    sources: &mut Sources,
    session: &mut Session,
    backoff: &mut Backoff,
    current: &mut watch::Receiver<Current>,
) -> End {
    let end = match Carrier::open(&link.connection, credentials, sources, session, backoff).await {
        Ok(mut carrier) => carrier.carry(current).await,
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
        Some(reason) => End::Failed(tls::explain(&reason, collector)),
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
    wake: Option<Instant>,
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
        let read = |stream| Frames::new(stream, FRAME_BYTES_MAX);
        let connected = Input::Connected { state: sources.outbox.state().await?, hello: (sources.hello)() };
        Ok(Self {
            connection: connection.clone(),
            credentials,
            sources,
            session,
            backoff,
            inputs: VecDeque::from([connected]),
            writers: [Writer::start(control), Writer::start(alert), Writer::start(telemetry)],
            readers: [read(from_control), read(from_alert), read(from_telemetry)],
            wake: None,
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
            Output::Welcomed => self.welcomed(),
            Output::AskStatus => {
                let expires = self.credentials.expires_unix_s;
                let status = wire::Status { certificate_expires_unix_s: expires, ..(self.sources.status)() };
                self.inputs.push_back(Input::Status(status));
            }
            Output::Close { reason, graceful: true } => return Ok(Some(End::Goodbye(reason))),
            Output::Close { reason, graceful: false } => return Ok(Some(End::Failed(reason))),
            Output::WakeAt(at) => self.wake = Some(at),
        }
        Ok(None)
    }

    fn welcomed(&mut self) {
        self.backoff.succeeded();
        let (agent, collector) = (self.credentials.agent, &self.credentials.collector);
        tracing::info!(%agent, %collector, "connected");
        self.sources.state.send_replace(State::Connected { agent, since: Instant::now() });
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

    /// A renewed certificate is no reason to end a session, another agent or collector is.
    fn is_still_mine(&self, current: &Current) -> bool {
        matches!(current, Ok(now) if now.agent == self.credentials.agent && now.collector == self.credentials.collector)
    }

    /// A stream is gone: the connection's own reason comes with it or right after.
    async fn closed(&self, error: &str) -> End {
        let _ = tokio::time::timeout(Duration::from_millis(GOODBYE_MS_MAX), self.connection.closed()).await;
        why(&self.connection, error, self.credentials)
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
