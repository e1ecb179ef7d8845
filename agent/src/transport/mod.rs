//! Stage 4: events to the collector, acknowledgements back.
//!
//! `keeper` holds the identity, `runner` connects again and again, `connection` carries one session, whose
//! decisions are all made in `session` (pure). `enrol` joins and renews. It assumes that the outbox owns the
//! events: nothing here deletes one without an Ack. Runs on a thread of its own, so that nothing slows the sensors.

/// How long to wait before the next connection. Pure.
pub mod backoff;
mod connection;
mod credentials;
mod enrol;
mod keeper;
/// One class of a session. Pure.
pub mod lane;
mod quic;
mod runner;
/// What to send next and what to make of the answer. Pure.
pub mod session;
mod tls;

pub use credentials::{Credentials, IDENTITY_FOLDER, NoCredentials};
pub use enrol::join;

use crate::outbox;
use crate::stop::Stop;
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::watch;
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
    },
    /// The collector has refused this agent; tried again, more rarely.
    Refused {
        /// Why, for programs.
        code: RefuseCode,
        /// Why, for people.
        reason: String,
    },
}

/// The running stage.
#[derive(Debug)]
pub struct Transport {
    state: watch::Receiver<State>,
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
    let sources = runner::Sources { outbox, status, hello, state: publish, stopping };
    let thread = std::thread::Builder::new()
        .name("transport".to_owned())
        .spawn(move || runtime.block_on(runner::run(sources, config.state)))
        .context("could not start a thread")?;
    Ok(Transport { state, thread })
}

impl Transport {
    /// How it stands, now and whenever that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
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
