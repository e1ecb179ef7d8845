//! Stage 4: events to the collector, acknowledgements back.
//!
//! `keeper` holds the identity, `runner` connects again and again, `connection` carries one session, whose
//! decisions are all made in `session` (pure). `enrol` joins, renews and leaves; `roots` follows when a CA is replaced. It assumes that the outbox owns the
//! events: nothing here deletes one without an Ack. Runs on a thread of its own, so that nothing slows the sensors.

/// How long to wait before the next connection. Pure.
pub mod backoff;
/// How far this host's clock is from the collector's. Pure.
pub mod clock;
mod connection;
mod credentials;
mod enrol;
/// Joins by a credential of systemd.
pub mod invited;
mod keeper;
/// One class of a session. Pure.
pub mod lane;
mod live;
mod pending;
/// Connections and their limits.
pub mod quic;
mod roots;
mod runner;
/// What to send next and what to make of the answer. Pure.
pub mod session;
mod tls;

pub use credentials::{Credentials, IDENTITY_FOLDER, NoCredentials};
pub use enrol::{Enrolled, Farewell, join, join_as, leave, renew_alone};
pub use keeper::Renewals;
pub use pending::{FRESH_FILE, JOINING_FILE, RENEWING_FILE};

use crate::outbox;
use crate::progress::Turns;
use crate::stop::Stop;
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use vidette_protocol::id::AgentId;
use vidette_protocol::wire::{self, RefuseCode};

/// Asked once a minute for what the agent says of itself.
pub type StatusSource = Arc<dyn Fn() -> wire::Status + Send + Sync>;

/// Asked at the start of every session; the session fills in protocol, epoch and numbers.
pub type HelloSource = Arc<dyn Fn() -> wire::Hello + Send + Sync>;

/// What the agent's settings say of this stage.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state folder: the identity is in it.
    pub state: PathBuf,
}

/// How the agent stands with its collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is no usable identity; looked for every few seconds.
    NotJoined {
        /// Why, and what to do.
        reason: String,
    },
    /// There is no session now; tried again and again.
    Connecting {
        /// What went wrong the last time.
        error: Option<String>,
    },
    /// The session is up.
    Connected {
        /// Who this host is.
        agent: AgentId,
        /// Since when.
        since: Instant,
        /// What went wrong the last time before; none when nothing did.
        failed: Option<String>,
    },
    /// The collector has refused this agent; tried again, more rarely.
    Refused {
        /// Why, for programs.
        code: RefuseCode,
        /// Why, for people.
        reason: String,
    },
}

/// A refusal in one word, the same on both sides.
#[must_use]
pub fn word(code: RefuseCode) -> &'static str {
    match code {
        RefuseCode::Unspecified => "refused",
        RefuseCode::Protocol => "protocol",
        RefuseCode::Revoked => "revoked",
        RefuseCode::Unknown => "unknown",
        RefuseCode::Expired => "expired",
        RefuseCode::Overloaded => "overloaded",
        RefuseCode::Misbehaved => "misbehaved",
        RefuseCode::Cloned => "cloned",
        RefuseCode::Left => "left",
    }
}

/// How the identity lives: to be looked at, and to be renewed now. Clones share everything.
#[derive(Debug, Clone)]
pub struct IdentityLife {
    clock: watch::Receiver<Option<String>>,
    renewals: watch::Receiver<Renewals>,
    words: mpsc::Sender<keeper::Word>,
}

impl IdentityLife {
    /// Why somebody should look at a clock; empty when all is well.
    #[must_use]
    pub fn clock(&self) -> String {
        self.clock.borrow().clone().unwrap_or_default()
    }

    /// How renewing goes.
    #[must_use]
    pub fn renewals(&self) -> Renewals {
        self.renewals.borrow().clone()
    }

    /// Has the certificate renewed now, as soon as the keeper hears it; [`IdentityLife::renewals`] says what came of it.
    pub fn renew_now(&self) {
        // A full queue: the keeper is about to look, and whoever wants this asks again.
        let _ = self.words.try_send(keeper::Word::RenewNow);
    }
}

/// The running stage.
#[derive(Debug)]
pub struct Transport {
    state: watch::Receiver<State>,
    identity: IdentityLife,
    turns: Arc<Turns>,
    thread: JoinHandle<()>,
}

/// Starts the stage on a thread of its own. It ends after `stop`, when the goodbye is said.
///
/// # Errors
/// The thread or its runtime could not be started.
pub fn start(
    config: Config,
    outbox: outbox::Handle,
    status: StatusSource,
    hello: HelloSource,
    stop: Stop,
) -> anyhow::Result<Transport> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the transport's runtime")?;
    let (publish, state) = watch::channel(State::Connecting { error: None });
    let (said, stopping) = watch::channel(false);
    std::thread::Builder::new()
        .name("transport-stop".to_owned())
        .spawn(move || {
            // Disconnects when stop is said: nothing is ever sent.
            let _ = stop.channel().recv();
            said.send_replace(true);
        })
        .context("could not start a thread")?;
    let (words, heard) = runner::words();
    let (tell_clock, clock) = watch::channel(None);
    let (tell_renewals, renewals) = watch::channel(Renewals::default());
    let identity = IdentityLife { clock, renewals, words: words.clone() };
    let live = watch::channel(None).0;
    let roots = roots::Keeping::new(config.state.clone(), words.clone());
    let sources = runner::Sources {
        outbox,
        status,
        hello,
        state: publish,
        clock: tell_clock,
        live,
        words,
        stopping,
        roots,
    };
    let keeping = runner::Keeping { state_folder: config.state, words: heard, renewals: tell_renewals };
    let turns = Arc::new(Turns::default());
    let turning = turns.clone();
    let run = async move {
        // Turns when the one thread of this runtime does, and not while something blocks it.
        drop(tokio::spawn(turn(turning)));
        runner::run(sources, keeping).await;
    };
    let thread = std::thread::Builder::new()
        .name("transport".to_owned())
        .spawn(move || runtime.block_on(run))
        .context("could not start a thread")?;
    Ok(Transport { state, identity, turns, thread })
}

async fn turn(turns: Arc<Turns>) {
    loop {
        turns.waits();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl Transport {
    /// How it stands, now and whenever that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// How the identity lives.
    #[must_use]
    pub fn identity(&self) -> IdentityLife {
        self.identity.clone()
    }

    /// Whether it goes on.
    #[must_use]
    pub fn turns(&self) -> Arc<Turns> {
        self.turns.clone()
    }

    /// Whether the stage has ended: a fault, unless stop was said.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end; false when it panicked.
    #[must_use]
    pub fn join(self) -> bool {
        self.thread.join().is_ok()
    }
}
