//! Stage 5: batches from agents to the store, acknowledgements back.
//!
//! `quic` opens the socket, `tls` says who may shake hands, this file accepts and asks `identity` who it is, then
//! `join` or `connection` serve. Agents are taken for hostile (T2): every count, size, rate and time has a limit
//! here or beside what it limits, and one connection's trouble ends with that connection.

mod conduct;
mod connection;
mod crowd;
mod fleet;
mod join;
mod load;
mod notices;
mod offences;
mod orphans;
mod pieces;
mod quic;
mod rate;
/// What the collector says to an agent and does with what it says. Pure.
pub mod session;
mod silence;
mod tally;
mod tls;
mod trust;
mod unpacking;

pub use fleet::{AWAY_MAX, Cut, Fleet, Member};
pub use notices::{Absent, CaChange, NOTICES_MAX, Notice, Notices};
pub use tally::{Tally, Totals};

use crate::identity::{CloneSign, Identity, Shown, Standing, unix_s_now};
use anyhow::Context;
use crowd::{Crowd, Stranger};
use load::Load;
use orphans::{Noted, Roll, Telling, Trace};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rate::Rate;
use session::{Arrival, Committed};
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use unpacking::Unpacking;
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::limits::HEARTBEAT_S;
use vidette_protocol::wire::RefuseCode;
use vidette_protocol::{ALPN, ALPN_JOIN, CLOSE_STOPPING};

/// Connections at a time, when the configuration says nothing else.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Handshakes and joins at a time. A stalled one costs 40 KiB; half are kept for clients with a shown address.
pub const HANDSHAKES_MAX: usize = 512;
/// Agents that are looked up in the register at a time: it has one door, and a thread for each who waits there costs more than
/// the waiting.
const LOOKUPS_MAX: usize = 4;
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
    /// How often agents are asked for a Status. Seconds.
    pub heartbeat_s: u32,
    /// Where this stage counts.
    pub tally: Tally,
    /// The folder in which it remembers who is connected, so that the next run can tell them of a crash; `None` for nowhere.
    pub remember: Option<PathBuf>,
}

/// The running stage. Dropping it cuts all connections; [`Ingest::stop`] says goodbye.
#[derive(Debug)]
pub struct Ingest {
    endpoint: Endpoint,
    tasks: [JoinHandle<()>; 4],
    notices: Notices,
    _telling: Option<Telling>,
    roll: Roll,
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
    heartbeat_s: u32,
    tally: Tally,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    lookups: Semaphore,
    crowd: Crowd,
    load: Load,
    notices: Notices,
    roll: Roll,
    unpacking: Unpacking,
    joins: Mutex<Rate>,
    failures: Mutex<Rate>,
}

impl Config {
    /// With the limits of this program.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            connections_max: CONNECTIONS_MAX,
            heartbeat_s: HEARTBEAT_S,
            tally: Tally::default(),
            remember: None,
        }
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
    let (endpoint, socket) = quic::endpoint(config.listen, tls::server(&identity)?, &identity)?;
    let (roll, telling) = recall(config.remember.as_deref(), socket, &identity);
    let address = endpoint.local_addr().context("could not read the address of the UDP socket")?;
    let now = Instant::now();
    let (notices, telling_notices) = Notices::new(identity.own_id(), store.clone());
    let shared = Arc::new(Shared {
        identity,
        store,
        fleet,
        heartbeat_s: config.heartbeat_s,
        tally: config.tally.clone(),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        connections: Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS))),
        lookups: Semaphore::new(LOOKUPS_MAX),
        crowd: Crowd::default(),
        load: Load::default(),
        notices: notices.clone(),
        roll: roll.clone(),
        unpacking: Unpacking::start()?,
        joins: Mutex::new(Rate::new(JOINS_PER_S, JOINS_BURST, now)),
        failures: Mutex::new(Rate::new(FAILURES_LOGGED_PER_S, FAILURES_LOGGED_BURST, now)),
    });
    tracing::info!(%address, "listening for agents");
    let tasks = [
        tokio::spawn(accept(endpoint.clone(), shared.clone())),
        tokio::spawn(maintain(shared.identity.clone())),
        tokio::spawn(telling_notices),
        tokio::spawn(silence::watch(
            shared.fleet.clone(),
            shared.identity.clone(),
            notices.clone(),
            config.heartbeat_s,
        )),
    ];
    Ok(Ingest { endpoint, tasks, notices, _telling: telling, roll, address })
}

/// Who was connected when the last run was killed is told now. Without this, silent agents come back later.
fn recall(folder: Option<&Path>, socket: UdpSocket, identity: &Identity) -> (Roll, Option<Telling>) {
    let Some(folder) = folder else { return (Roll::none(), None) };
    let (roll, orphans) = match Roll::open(folder) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(error = %format!("{error:#}"), "who is connected is not remembered: after a crash silent agents will come back later");
            return (Roll::none(), None);
        }
    };
    if orphans.is_empty() {
        return (roll, None);
    }
    let telling = orphans::tell(orphans, socket, quic::reset_key(identity), roll.clone());
    let telling = telling.inspect_err(|error| {
        tracing::warn!(error = %format!("{error:#}"), "could not tell agents of the restart: silent ones will come back later");
    });
    (roll, telling.ok())
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

    /// Where the collector says what it saw and did.
    #[must_use]
    pub fn notices(&self) -> Notices {
        self.notices.clone()
    }

    /// Says goodbye to every agent, so that it comes back soon, and stops.
    pub async fn stop(self) {
        self.endpoint.close(VarInt::from_u32(CLOSE_STOPPING), b"the collector stops");
        let _ = tokio::time::timeout(Duration::from_millis(GOODBYE_MS_MAX), self.endpoint.wait_idle()).await;
        self.notices.flush(Duration::from_millis(GOODBYE_MS_MAX)).await;
        self.roll.forget();
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
        let Some(incoming) = endpoint.accept().await else { return };
        let is_crowded = shared.handshakes.available_permits() < RETRY_BELOW
            || shared.crowd.must_show(incoming.remote_address().ip());
        // Before there is a place: when a whole fleet comes at once, only those wait in line who have shown their address.
        if is_crowded && incoming.may_retry() && !incoming.remote_address_validated() {
            // Fails only for a client that has retried already, which was just excluded.
            let _ = incoming.retry();
            continue;
        }
        let Ok(handshake) = shared.handshakes.clone().acquire_owned().await else { return };
        let address = incoming.remote_address();
        let place = shared.connections.clone().try_acquire_owned().ok();
        match (place, shared.crowd.enter(address.ip(), Instant::now())) {
            (Some(place), Some(stranger)) => {
                let entry = Entry { _handshake: handshake, _stranger: stranger };
                let place = Place { _permit: place, _open: shared.tally.open() };
                drop(tokio::spawn(serve(incoming, shared.clone(), entry, place)));
            }
            (None, _) => {
                shared.failure(address, "all places are taken; raise the limit of connections");
                incoming.refuse();
            }
            (Some(_), None) => {
                shared.failure(address, "too many handshakes and joins from this address");
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

/// What a connection holds until it is closed.
struct Place {
    _permit: OwnedSemaphorePermit,
    _open: tally::Open,
}

async fn serve<S: Commits>(incoming: Incoming, shared: Arc<Shared<S>>, entry: Entry, place: Place) {
    let (address, local) = (incoming.remote_address(), incoming.local_ip());
    let (connecting, id) = match quic::accept(incoming) {
        Ok(begun) => begun,
        Err(error) => return shared.failure(address, &tls::explain(&error)),
    };
    let trace = id.and_then(|id| Trace::new(address, local, &id));
    let done = tokio::time::timeout(Duration::from_millis(HANDSHAKE_MS_MAX), connecting).await;
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
            join::serve(connection, certificate, &shared, busy).await;
        }
        Some(alpn) if alpn == ALPN => {
            let noted = shared.roll.note(trace);
            return admit(connection, certificate, shared, entry, (place, noted)).await;
        }
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
    shared: Arc<Shared<S>>,
    entry: Entry,
    (place, noted): (Place, Noted),
) {
    match examine(certificate, &shared).await {
        Ok(papers) => {
            drop(entry);
            if let Some(certificate) = leaf(&connection) {
                shared.identity.shows(papers.shown.agent, &certificate);
            }
            let seat = shared.fleet.enter(papers.shown.agent, connection.remote_address(), unix_s_now());
            // A task of its own: a session lasts for days, what the handshake needed is freed now.
            drop(tokio::spawn(async move {
                connection::serve(connection, (seat, noted, papers), &shared).await;
                drop(place);
            }));
        }
        Err((agent, code, reason)) => {
            let address = connection.remote_address();
            connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
            match agent {
                Some(agent) => shared.refuse(agent, address, code, &reason),
                None => shared.failure(address, &reason),
            }
        }
    }
}

type Refusal = (Option<AgentId>, RefuseCode, String);

/// Of an agent that was let in.
#[derive(Debug)]
struct Papers {
    shown: Box<Shown>,
    /// It has come with this certificate before, and there is none newer: its Hello needs no look at the register.
    is_current: bool,
}

async fn examine<S: Commits>(certificate: Option<Vec<u8>>, shared: &Shared<S>) -> Result<Papers, Refusal> {
    let Some(certificate) = certificate else {
        let reason = "it presented no certificate; join that host with `vidette-agent join`".to_owned();
        return Err((None, RefuseCode::Unknown, reason));
    };
    let not_ours = |error: anyhow::Error| (None, RefuseCode::Unknown, format!("{error:#}"));
    let shown = Box::new(Identity::shown(&certificate).map_err(not_ours)?);
    let agent = shown.agent;
    // Before anything is looked up: whoever comes too often shall cost little.
    shared
        .fleet
        .admit(agent, Instant::now(), unix_s_now())
        .map_err(|(code, reason)| (Some(agent), code, reason))?;
    let expired_s = unix_s_now() - shown.expires_unix_s;
    if expired_s > 0 {
        let reason =
            format!("the agent's certificate has expired {expired_s} s ago; it must renew or join again");
        return Err((Some(agent), RefuseCode::Expired, reason));
    }
    let identity = shared.identity.clone();
    let Ok(_lookup) = shared.lookups.acquire().await else {
        return Err((Some(agent), RefuseCode::Overloaded, "the collector is being stopped".to_owned()));
    };
    let looked_up = tokio::task::spawn_blocking(move || {
        let is_current = identity.is_current(&shown)?;
        Ok((identity.standing(agent)?, Papers { shown, is_current }))
    });
    let (code, reason) = match looked_up.await {
        Ok(Ok((Standing::Good, papers))) => return Ok(papers),
        Ok(Ok((Standing::Revoked, _))) => (RefuseCode::Revoked, "the agent was revoked"),
        Ok(Ok((Standing::Left, _))) => (RefuseCode::Left, "the agent has left; join that host again"),
        Ok(Ok((Standing::Cloned, _))) => (RefuseCode::Cloned, CLONED),
        Ok(Ok((Standing::Unknown, _))) => {
            (RefuseCode::Unknown, "the agent is not registered here; join that host again")
        }
        Ok(Err(error)) => {
            let error: anyhow::Error = error;
            tracing::error!(error = %format!("{error:#}"), "could not look up an agent");
            (RefuseCode::Overloaded, "the collector can't read its register")
        }
        Err(_) => (RefuseCode::Overloaded, "the collector is being stopped"),
    };
    Err((Some(agent), code, reason.to_owned()))
}

/// What every copy of an agent is told.
const CLONED: &str =
    "the agent's identity was copied, and every copy is set aside; join the right host again";

/// Lets no copy of an agent in any more, cuts those that are there, and tells of it, once.
fn set_aside(identity: &Identity, fleet: &Fleet, notices: &Notices, sign: CloneSign) {
    let agent = sign.agent;
    match identity.set_aside(agent, unix_s_now()) {
        Ok(is_news) => {
            fleet.cut_as(agent, Cut::Cloned);
            if is_news {
                let CloneSign { generation, newest, from, evidence, other, .. } = &sign;
                let other = other.as_deref().unwrap_or("unknown");
                tracing::warn!(%agent, %from, other, generation, newest, ?evidence, "cloned: every copy of this agent is set aside");
                notices.tell(&Notice::Cloned(sign));
            }
        }
        // Its next sign comes soon.
        Err(error) => {
            tracing::error!(%agent, error = %format!("{error:#}"), "could not set a copied agent aside");
        }
    }
}

impl<S> Shared<S> {
    /// Somebody without a name failed: logged within a rate, because anybody can do it.
    fn failure(&self, address: SocketAddr, why: &str) {
        self.tally.stranger_refused();
        if self.failures.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()).is_ok() {
            tracing::warn!(%address, why, "refused a connection");
        }
    }

    /// An agent was refused: logged once a minute for each.
    fn refuse(&self, agent: AgentId, address: SocketAddr, code: RefuseCode, reason: &str) {
        self.tally.agent_refused();
        if code == RefuseCode::Misbehaved {
            self.crowd.watch(address.ip(), Instant::now());
        }
        if self.fleet.refused(agent, code, reason, unix_s_now()) {
            tracing::warn!(%agent, %address, ?code, reason, "refused an agent");
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
