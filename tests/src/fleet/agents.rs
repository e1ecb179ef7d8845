//! Connections of many agents over a few sockets, and the session each has on its own.
//!
//! A socket has a loopback address of its own, as if it were a site. Whoever is turned away or cut comes back as
//! `vidette-agent` does, by its own rule of pauses.

use super::identities::{Identities, host_name};
use anyhow::{Context, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream,
    TokioRuntime, TransportConfig,
};
use rustix::net::sockopt;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use vidette_agent::transport::backoff::Backoff;
use vidette_agent::transport::quic::{self, HANDSHAKE_MS_MAX};
use vidette_protocol::frame::{self, Decoder};
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, RefuseCode, to_agent, to_collector};
use vidette_protocol::{ALPN, CLOSE_DONE, CLOSE_REPLACED, CLOSE_STOPPING, COLLECTOR_NAME, PROTOCOL};

/// Of each socket here. Bytes.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// TLS's word for a handshake that was not even begun (RFC 9000 section 20.1).
const CONNECTION_REFUSED: u64 = 0x02;
/// And for one that was given up because it took too long.
const APPLICATION_ERROR: u64 = 0x0c;

/// All agents' way to the collector.
#[allow(missing_debug_implementations)] // quinn's TLS settings have none
pub struct Swarm {
    endpoints: Vec<Endpoint>,
    target: SocketAddr,
    tls: Vec<Arc<QuicClientConfig>>,
    transport: Arc<TransportConfig>,
}

/// What became of them, as all of them count it.
#[derive(Debug, Default)]
pub struct Board {
    /// Connected and welcomed.
    pub up: AtomicUsize,
    /// Handshakes that were begun.
    pub tries: AtomicU64,
    /// Turned away because there was no place at that moment, to come back later.
    pub turned_away: AtomicU64,
    /// Handshakes and sessions without an answer.
    pub unanswered: AtomicU64,
    /// Refused for good, with the last reason.
    pub refused: AtomicU64,
    /// That reason.
    pub reason: Mutex<String>,
    /// When agents noticed that their connection was gone, and whether they were talking.
    pub noticed: Mutex<Vec<(bool, Instant)>>,
    /// Nobody talks while this is set.
    pub quiet: AtomicBool,
}

/// One agent's session.
#[derive(Debug)]
pub struct Session {
    /// Its connection.
    pub connection: Connection,
    control: (SendStream, Frames),
    _alert: (SendStream, RecvStream),
    telemetry: (SendStream, Frames),
    epoch: u64,
    /// The number of the next event of telemetry.
    pub next_seq: u64,
}

/// Why there is no session.
#[derive(Debug)]
enum Trouble {
    TurnedAway,
    Unanswered,
    Refused(String),
}

impl Swarm {
    /// For a collector on 127.0.0.1. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a socket can't be opened or a certificate not be used.
    pub fn new(identities: &Identities, port: u16, sockets: u8) -> anyhow::Result<Self> {
        let endpoints = (0..sockets.max(1)).map(endpoint).collect::<anyhow::Result<_>>()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = identities.agents.iter().map(|member| {
            let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(identities.roots.clone())
                .with_client_auth_cert(member.chain.clone(), identities.key.clone_key())?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            config.resumption = rustls::client::Resumption::disabled();
            Ok(Arc::new(QuicClientConfig::try_from(config)?))
        });
        let tls = tls.collect::<anyhow::Result<_>>()?;
        let target = (Ipv4Addr::LOCALHOST, port).into();
        Ok(Self { endpoints, target, tls, transport: Arc::new(quic::limits()) })
    }

    /// The same without keep-alives: such an agent hears only what it is told.
    #[must_use]
    pub fn without_keep_alive(mut self) -> Self {
        let mut limits = quic::limits();
        limits.keep_alive_interval(None);
        self.transport = Arc::new(limits);
        self
    }

    /// Connects agent `number` and says hello.
    ///
    /// # Errors
    /// When that fails, for whatever reason.
    pub async fn session(&self, number: usize) -> anyhow::Result<Session> {
        let connection = self.connect(number).await.map_err(|trouble| anyhow::anyhow!("{trouble:?}"))?;
        Session::open(connection, number).await
    }

    /// Keeps agent `number` connected for ever. It says how it is every `talk`, or never.
    pub async fn live(self: Arc<Self>, number: usize, board: Arc<Board>, talk: Option<Duration>) {
        let mut backoff = Backoff::default();
        loop {
            board.tries.fetch_add(1, Ordering::Relaxed);
            let graceful = match self.attempt(number, &board, &mut backoff, talk).await {
                Ok(graceful) => graceful,
                Err(Trouble::TurnedAway) => {
                    board.turned_away.fetch_add(1, Ordering::Relaxed);
                    false
                }
                Err(Trouble::Unanswered) => {
                    board.unanswered.fetch_add(1, Ordering::Relaxed);
                    false
                }
                Err(Trouble::Refused(reason)) => {
                    board.refused.fetch_add(1, Ordering::Relaxed);
                    *board.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
                    false
                }
            };
            tokio::time::sleep(backoff.pause(graceful, rand::random())).await;
        }
    }

    /// One connection from its handshake to its end; true when it ended well.
    async fn attempt(
        &self,
        number: usize,
        board: &Board,
        backoff: &mut Backoff,
        talk: Option<Duration>,
    ) -> Result<bool, Trouble> {
        let connection = self.connect(number).await?;
        let opened =
            timeout(Duration::from_millis(HANDSHAKE_MS_MAX), Session::open(connection.clone(), number)).await;
        let mut session = match opened {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return Err(trouble(connection.close_reason(), &format!("{error:#}"))),
            Err(_) => return Err(Trouble::Unanswered),
        };
        backoff.succeeded();
        board.up.fetch_add(1, Ordering::Relaxed);
        let end = session.rest(talk, &board.quiet).await;
        board.up.fetch_sub(1, Ordering::Relaxed);
        let noticed = (talk.is_some(), Instant::now());
        board.noticed.lock().unwrap_or_else(PoisonError::into_inner).push(noticed);
        match trouble(Some(end), "") {
            Trouble::TurnedAway => Ok(true),
            other => Err(other),
        }
    }

    async fn connect(&self, number: usize) -> Result<Connection, Trouble> {
        let refused = |what: String| Trouble::Refused(what);
        let endpoint =
            self.endpoints.get(number % self.endpoints.len()).ok_or_else(|| refused("no socket".into()))?;
        let tls = self.tls.get(number).ok_or_else(|| refused("no such agent".into()))?;
        let mut config = ClientConfig::new(tls.clone());
        config.transport_config(self.transport.clone());
        let connecting = endpoint
            .connect_with(config, self.target, COLLECTOR_NAME)
            .map_err(|error| refused(error.to_string()))?;
        match timeout(Duration::from_millis(HANDSHAKE_MS_MAX), connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(trouble(Some(error), "")),
            Err(_) => Err(Trouble::Unanswered),
        }
    }
}

impl Session {
    async fn open(connection: Connection, number: usize) -> anyhow::Result<Self> {
        let (control, from_control) = connection.open_bi().await?;
        let alert = connection.open_bi().await?;
        let (telemetry, from_telemetry) = connection.open_bi().await?;
        let mut session = Self {
            connection,
            control: (control, Frames::new(from_control)),
            _alert: alert,
            telemetry: (telemetry, Frames::new(from_telemetry)),
            epoch: number as u64 + 1,
            next_seq: 1,
        };
        session.say(to_collector::Message::Hello(hello(number, session.epoch))).await?;
        match session.control.1.next().await? {
            to_agent::Message::Welcome(welcome) => {
                let durable = welcome.classes.iter().find(|one| one.class == Class::Telemetry.to_wire());
                session.next_seq = durable.map_or(0, |durable| durable.seq) + 1;
                Ok(session)
            }
            other => bail!("no welcome: {other:?}"),
        }
    }

    async fn say(&mut self, message: to_collector::Message) -> anyhow::Result<()> {
        let bytes = frame::encode(&wire::ToCollector { message: Some(message) });
        Ok(self.control.0.write_all(&bytes).await?)
    }

    /// Waits for the end, saying how it is now and then.
    async fn rest(&mut self, talk: Option<Duration>, quiet: &AtomicBool) -> ConnectionError {
        let connection = self.connection.clone();
        let Some(every) = talk else { return connection.closed().await };
        loop {
            tokio::select! {
                end = connection.closed() => return end,
                () = tokio::time::sleep(every) => {}
            }
            if quiet.load(Ordering::Relaxed) {
                continue;
            }
            if self.say(to_collector::Message::Status(wire::Status::default())).await.is_err() {
                return connection.closed().await;
            }
        }
    }

    /// Sends a batch under the next numbers; gives the number of its last event.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, batch: &wire::Batch) -> anyhow::Result<u64> {
        let batch = wire::Batch { epoch: self.epoch, first_seq: self.next_seq, ..batch.clone() };
        self.next_seq += u64::from(batch.count);
        let message = wire::ToCollector { message: Some(to_collector::Message::Batch(batch)) };
        self.telemetry.0.write_all(&frame::encode(&message)).await?;
        Ok(self.next_seq - 1)
    }

    /// The number up to which telemetry is committed, when there is news of it. Safe to drop while it waits.
    ///
    /// # Errors
    /// When the collector says anything else, or is gone.
    pub async fn acknowledged(&mut self) -> anyhow::Result<u64> {
        match self.telemetry.1.next().await? {
            to_agent::Message::Ack(ack) => Ok(ack.seq),
            other => bail!("no acknowledgement: {other:?}"),
        }
    }
}

/// Messages that come on one stream.
#[derive(Debug)]
struct Frames {
    stream: RecvStream,
    decoder: Decoder,
}

impl Frames {
    fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: Decoder::default() }
    }

    async fn next(&mut self) -> anyhow::Result<to_agent::Message> {
        loop {
            if let Some(frame) = self.decoder.next::<wire::ToAgent>()? {
                return frame.message.context("a message that is not known here");
            }
            let chunk = self.stream.read_chunk(64 << 10, true).await?;
            self.decoder.push(&chunk.context("the stream ended")?.bytes);
        }
    }
}

fn hello(number: usize, epoch: u64) -> wire::Hello {
    wire::Hello {
        protocol: PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        boot_id: "5f0c7b1e-3d9a-4c55-9e0d-2f6b8a1c4e77".into(),
        epoch,
        level: wire::SensorLevel::Full as i32,
        rules_version: "2026-11-21.1".into(),
        classes: Vec::new(),
        host_name: host_name(number).into_bytes(),
        os: "Linux 6.18".into(),
        roots: Vec::new(),
    }
}

/// A socket with room for a fleet's answers, on 127.0.1.`index` + 1.
fn endpoint(index: u8) -> anyhow::Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 1, index.saturating_add(1)), 0))?;
    // FORCE needs CAP_NET_ADMIN; without it the fleet is slower, not wrong (socket(7)).
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES);
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
        .context("could not start QUIC")
}

fn trouble(error: Option<ConnectionError>, otherwise: &str) -> Trouble {
    match error {
        Some(ConnectionError::TimedOut) => Trouble::Unanswered,
        Some(ConnectionError::ConnectionClosed(close))
            if u64::from(close.error_code) == APPLICATION_ERROR =>
        {
            Trouble::Unanswered
        }
        Some(ConnectionError::Reset) => Trouble::TurnedAway,
        Some(ConnectionError::ConnectionClosed(close))
            if u64::from(close.error_code) == CONNECTION_REFUSED =>
        {
            Trouble::TurnedAway
        }
        Some(ConnectionError::ApplicationClosed(close)) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            let is_busy = code == RefuseCode::Overloaded as u32;
            if is_busy || [CLOSE_DONE, CLOSE_REPLACED, CLOSE_STOPPING].contains(&code) {
                Trouble::TurnedAway
            } else {
                Trouble::Refused(String::from_utf8_lossy(&close.reason).into_owned())
            }
        }
        Some(other) => Trouble::Refused(other.to_string()),
        None => Trouble::Refused(otherwise.to_owned()),
    }
}
