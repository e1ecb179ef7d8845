//! Stage 5: batches from agents to the store, acknowledgements back.
//!
//! `quic` opens the socket, `tls` says who may shake hands, this file accepts and asks `identity` who it is, then
//! `join` or `connection` serve. Agents are taken for hostile (T2): every count, size, rate and time has a limit
//! here or beside what it limits, and one connection's trouble ends with that connection.

mod connection;
mod crowd;
mod fleet;
mod join;
mod quic;
mod rate;
/// What the collector says to an agent and does with what it says. Pure.
pub mod session;
mod tls;

pub use fleet::{AWAY_MAX, Cut, Fleet, Member};

use crate::identity::{Identity, Standing, unix_s_now};
use anyhow::Context;
use crowd::{Crowd, Stranger};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rate::Rate;
use session::{Arrival, Committed};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::RefuseCode;
use vidette_protocol::{ALPN, ALPN_JOIN, CLOSE_STOPPING};

/// Connections at a time, when the configuration says nothing else.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Handshakes and joins at a time. A stalled one costs 40 KiB; half are kept for clients with a shown address.
pub const HANDSHAKES_MAX: usize = 512;
/// With fewer free handshakes than this, a client must show that it can receive at its address (RFC 9000 section 8.1.2).
const RETRY_BELOW: usize = HANDSHAKES_MAX / 2;
/// A handshake must be done by then. Milliseconds.
const HANDSHAKE_MS_MAX: u64 = 10_000;
/// Join and renewal requests a second, of all hosts together.
const JOINS_PER_S: u32 = 50;
/// So many may come at once.
const JOINS_BURST: u32 = 500;
/// Failed handshakes that are logged a second; the rest is only counted.
const FAILURES_LOGGED_PER_S: u32 = 1;
/// So many may come at once.
const FAILURES_LOGGED_BURST: u32 = 20;
/// How often certificates and the register are looked after. Seconds.
const MAINTAIN_EVERY_S: u64 = 60;
/// The goodbye to all agents takes at most so long. Milliseconds.
const GOODBYE_MS_MAX: u64 = 1_000;

/// What the collector's settings say of this stage.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP address and port.
    pub listen: SocketAddr,
    /// Connections at a time.
    pub connections_max: usize,
}

/// The running stage. Dropping it cuts all connections; [`Ingest::stop`] says goodbye.
#[derive(Debug)]
pub struct Ingest {
    endpoint: Endpoint,
    tasks: [JoinHandle<()>; 2],
    address: SocketAddr,
}

/// The next stage, as this one needs it. The store implements it; this stage knows nothing else of it.
pub trait Commits: Clone + Send + Sync + 'static {
    /// Commits a run, once, with its high-water mark in the same transaction (D2). Returns when it is on disk.
    fn commit(&self, arrival: Arrival) -> impl Future<Output = anyhow::Result<Committed>> + Send;
    /// What is durable of one outbox; a class without events is absent.
    fn durable(
        &self,
        agent: AgentId,
        epoch: u64,
    ) -> impl Future<Output = anyhow::Result<Vec<(Class, u64)>>> + Send;
}

struct Shared<S> {
    identity: Identity,
    store: S,
    fleet: Fleet,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    crowd: Crowd,
    joins: Mutex<Rate>,
    failures: Mutex<Rate>,
}

impl Config {
    /// With the limits of this program.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, connections_max: CONNECTIONS_MAX }
    }
}

/// Starts listening. Needs a tokio runtime, on which it spawns.
///
/// # Errors
/// One sentence that names the address: it is taken, or not this host's.
pub fn start<S: Commits>(
    config: &Config,
    identity: Identity,
    store: S,
    fleet: Fleet,
) -> anyhow::Result<Ingest> {
    let endpoint = quic::endpoint(config.listen, tls::server(&identity)?, &identity)?;
    let address = endpoint.local_addr().context("could not read the address of the UDP socket")?;
    let now = Instant::now();
    let shared = Arc::new(Shared {
        identity,
        store,
        fleet,
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        connections: Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS))),
        crowd: Crowd::default(),
        joins: Mutex::new(Rate::new(JOINS_PER_S, JOINS_BURST, now)),
        failures: Mutex::new(Rate::new(FAILURES_LOGGED_PER_S, FAILURES_LOGGED_BURST, now)),
    });
    tracing::info!(%address, "listening for agents");
    let tasks = [
        tokio::spawn(accept(endpoint.clone(), shared.clone())),
        tokio::spawn(maintain(shared.identity.clone())),
    ];
    Ok(Ingest { endpoint, tasks, address })
}

impl Ingest {
    /// Whether it has ended; before [`Ingest::stop`] only by a fault.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Where it listens, with the port that the system chose when the configuration said 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says goodbye to every agent, so that it comes back soon, and stops.
    pub async fn stop(self) {
        self.endpoint.close(VarInt::from_u32(CLOSE_STOPPING), b"the collector stops");
        let _ = tokio::time::timeout(Duration::from_millis(GOODBYE_MS_MAX), self.endpoint.wait_idle()).await;
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.endpoint.close(VarInt::from_u32(CLOSE_STOPPING), b"the collector stops");
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept<S: Commits>(endpoint: Endpoint, shared: Arc<Shared<S>>) {
    loop {
        // Both permits first: what waits longer than the endpoint's own queue is dropped by it.
        let Ok(handshake) = shared.handshakes.clone().acquire_owned().await else { return };
        let Some(incoming) = endpoint.accept().await else { return };
        if shared.handshakes.available_permits() < RETRY_BELOW
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            // Fails only for a client that has retried already, which was just excluded.
            let _ = incoming.retry();
            continue;
        }
        let address = incoming.remote_address();
        let place = shared.connections.clone().try_acquire_owned().ok();
        match (place, shared.crowd.enter(address.ip())) {
            (Some(place), Some(stranger)) => {
                let entry = Entry { _handshake: handshake, _stranger: stranger };
                drop(tokio::spawn(serve(incoming, shared.clone(), entry, place)));
            }
            (None, _) => {
                shared.failure(address, "all places are taken; raise the limit of connections");
                incoming.refuse();
            }
            (Some(_), None) => {
                shared.failure(address, "too many handshakes and joins from this address at once");
                incoming.refuse();
            }
        }
    }
}

/// What a client holds until its name is known.
struct Entry {
    _handshake: OwnedSemaphorePermit,
    _stranger: Stranger,
}

async fn serve<S: Commits>(
    incoming: Incoming,
    shared: Arc<Shared<S>>,
    entry: Entry,
    place: OwnedSemaphorePermit,
) {
    let address = incoming.remote_address();
    let done = tokio::time::timeout(Duration::from_millis(HANDSHAKE_MS_MAX), incoming).await;
    let connection = match done {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return shared.failure(address, &tls::explain(&error)),
        Err(_) => return shared.failure(address, "the handshake took too long"),
    };
    let certificate = leaf(&connection);
    match alpn(&connection).as_deref() {
        Some(alpn) if alpn == ALPN_JOIN => {
            let busy =
                shared.joins.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()).is_err();
            join::serve(connection, certificate, shared.identity.clone(), busy).await;
        }
        Some(alpn) if alpn == ALPN => admit(connection, certificate, &shared, entry).await,
        // TLS has let nothing else through.
        Some(_) | None => {
            connection.close(VarInt::from_u32(RefuseCode::Protocol as u32), b"unknown protocol")
        }
    }
    drop(place);
}

/// A connection that wants to be a session: who is it, and may it?
async fn admit<S: Commits>(
    connection: Connection,
    certificate: Option<Vec<u8>>,
    shared: &Shared<S>,
    entry: Entry,
) {
    match examine(certificate, shared).await {
        Ok(agent) => {
            drop(entry);
            let seat = shared.fleet.enter(agent, connection.remote_address(), unix_s_now());
            connection::serve(connection, seat, shared).await;
        }
        Err((agent, code, reason)) => {
            let address = connection.remote_address();
            connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
            match agent {
                Some(agent) => shared.refuse(agent, code, &reason),
                None => shared.failure(address, &reason),
            }
        }
    }
}

type Refusal = (Option<AgentId>, RefuseCode, String);

async fn examine<S: Commits>(certificate: Option<Vec<u8>>, shared: &Shared<S>) -> Result<AgentId, Refusal> {
    let Some(certificate) = certificate else {
        let reason = "it presented no certificate; join that host with `vidette-agent join`".to_owned();
        return Err((None, RefuseCode::Unknown, reason));
    };
    let not_ours = |error: anyhow::Error| (None, RefuseCode::Unknown, format!("{error:#}"));
    let agent = Identity::agent_of(&certificate).map_err(not_ours)?;
    let expired_s = unix_s_now() - Identity::expiry_of(&certificate).map_err(not_ours)?;
    if expired_s > 0 {
        let reason =
            format!("the agent's certificate has expired {expired_s} s ago; it must renew or join again");
        return Err((Some(agent), RefuseCode::Expired, reason));
    }
    let identity = shared.identity.clone();
    let standing = tokio::task::spawn_blocking(move || identity.standing(agent)).await;
    let (code, reason) = match standing {
        Ok(Ok(Standing::Good)) => return Ok(agent),
        Ok(Ok(Standing::Revoked)) => (RefuseCode::Revoked, "the agent was revoked"),
        Ok(Ok(Standing::Unknown)) => {
            (RefuseCode::Unknown, "the agent is not registered here; join that host again")
        }
        Ok(Err(error)) => {
            tracing::error!(error = %format!("{error:#}"), "could not look up an agent");
            (RefuseCode::Overloaded, "the collector can't read its register")
        }
        Err(_) => (RefuseCode::Overloaded, "the collector is being stopped"),
    };
    Err((Some(agent), code, reason.to_owned()))
}

impl<S> Shared<S> {
    /// Somebody without a name failed: logged within a rate, because anybody can do it.
    fn failure(&self, address: SocketAddr, why: &str) {
        if self.failures.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()).is_ok() {
            tracing::warn!(%address, why, "refused a connection");
        }
    }

    /// An agent was refused: logged once a minute for each.
    fn refuse(&self, agent: AgentId, code: RefuseCode, reason: &str) {
        if self.fleet.refused(agent, code, reason, unix_s_now()) {
            tracing::warn!(%agent, ?code, reason, "refused an agent");
        }
    }
}

fn leaf(connection: &Connection) -> Option<Vec<u8>> {
    let chain =
        connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}

fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

async fn maintain(identity: Identity) {
    loop {
        tokio::time::sleep(Duration::from_secs(MAINTAIN_EVERY_S)).await;
        let identity = identity.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || identity.maintain(unix_s_now())).await {
            tracing::error!(error = %format!("{error:#}"), "could not look after the collector's identity");
        }
    }
}
