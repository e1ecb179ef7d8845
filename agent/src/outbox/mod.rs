//! Stage 3: events on disk until the collector has them.
//!
//! SQLite, WAL, `synchronous=FULL`, one owner thread, group commit. Others hold a handle to its bounded queue.
//! Path inside: `owner` drains the channel -> `cut` makes events fit -> `db` numbers and commits them ->
//! transport reads runs, forgets what the collector has, or sets aside what it refuses.

/// What can be asked of the database, and its answers.
pub mod work;
/// How it is done in one transaction.
pub mod db;
/// What goes first when there is too much.
pub mod bound;
/// Gap events that grow while a loss goes on.
pub mod gaps;
/// What the files take on disk.
pub mod room;
/// Events made to fit the limits of the wire.
pub mod cut;
/// Everything numbered anew.
mod epoch;
/// The file: telling ours from others, setting others aside.
pub mod file;
/// Opening whatever is there.
mod open;
/// The thread that owns the database.
pub mod owner;
/// Detections that a rescan meets a second time.
mod reported;
/// What can be read of a damaged one.
pub mod salvage;

pub use db::{ClassState, READ_BYTES_MAX, Run, State};

use crate::host::{Host, Moment};
use crate::telemetry::Counters;
use anyhow::{Context, anyhow, bail};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use db::{Answer, Db, Work};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire;

/// Where it is, in the state folder.
pub const OUTBOX_FOLDER: &str = "outbox";
/// Requests that wait for the owner thread.
pub const REQUESTS_MAX: usize = 256;
/// How long a request waits before it tries again to enter a full queue.
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(5);

/// What the outbox needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state folder; made, with mode 0700, when it is not there.
    pub folder: PathBuf,
    /// The most that the database and its log may take on disk. Bytes.
    pub bytes_max: u64,
    /// For the outbox's own events.
    pub host: Host,
}

/// The running outbox.
#[derive(Debug)]
pub struct Outbox {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// The way to it, for any number of tasks.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: Sender<Request>,
    shared: Arc<Shared>,
}

/// The last numbers given: what `changed` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heads {
    /// Of which outbox.
    pub epoch: u64,
    /// Last number of [`Class::Alert`].
    pub alert: u64,
    /// Last number of [`Class::Telemetry`].
    pub telemetry: u64,
}

/// For `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Events that wait.
    pub events: u64,
    /// Their bytes, with what a row costs.
    pub bytes: u64,
    /// Age of the oldest by the wall clock, milliseconds; 0 when none waits.
    pub oldest_age_ms: u64,
}

#[derive(Debug)]
enum Request {
    Work(Work, oneshot::Sender<anyhow::Result<Answer>>),
    Stop,
}

#[derive(Debug)]
struct Shared {
    heads: watch::Sender<Heads>,
    figures: Mutex<(u64, u64, Option<i64>)>,
}

/// Opens the outbox and starts its thread. A damaged or foreign database is set aside and does not stop this.
/// The thread ends, after committing, when `input` is closed and [`Outbox::join`] was called or every handle
/// is gone.
///
/// # Errors
/// When the folder can't be used: not writable, no space.
pub fn start(
    config: Config,
    counters: Arc<Counters>,
    input: Receiver<wire::Event>,
) -> anyhow::Result<Outbox> {
    let db = Db::open(&config.folder, config.bytes_max, config.host.clone(), None)?;
    let state = db.state().context("could not read the outbox that was just opened")?;
    let (events, bytes) = db.waiting();
    let oldest = db.oldest()?;
    tracing::info!(file = %db.path().display(), events, bytes, "the outbox is open");
    let shared = Arc::new(Shared {
        heads: watch::Sender::new(owner::heads_of(&state)),
        figures: Mutex::new((events, bytes, oldest)),
    });
    let (requests, waiting) = bounded(REQUESTS_MAX);
    let owner = owner::Owner::new(config, counters, shared.clone(), input, waiting, db);
    let thread = std::thread::Builder::new()
        .name("outbox".into())
        .spawn(move || owner.run())
        .context("could not start the outbox's thread")?;
    Ok(Outbox { handle: Handle { requests, shared }, thread })
}

impl Outbox {
    /// One more way to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until everything is committed. Blocks until the input is closed.
    pub fn join(self) {
        let _ = self.handle.requests.send(Request::Stop); // an error: it has ended already
        drop(self.handle);
        if self.thread.join().is_err() {
            tracing::error!("the outbox's thread panicked: report this");
        }
    }

    /// Whether the thread has ended; before [`Outbox::join`] only by a fault.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Handle {
    /// Epoch and numbers.
    ///
    /// # Errors
    /// As every request: when the outbox can't be written now, or has ended.
    pub async fn state(&self) -> anyhow::Result<State> {
        match self.ask(Work::State).await? {
            Answer::State(state) => Ok(state),
            other => bail!("the outbox answered {other:?} to a question for its state"),
        }
    }

    /// Epoch and numbers for this agent: new ones, when they were those of the agent that this host was before.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn state_for(&self, agent: AgentId) -> anyhow::Result<State> {
        match self.ask(Work::StateFor(agent)).await? {
            Answer::State(state) => Ok(state),
            other => bail!("the outbox answered {other:?} to a question for its state"),
        }
    }

    /// Consecutive events from `from` on, at most `bytes_max` and [`READ_BYTES_MAX`] together.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn read(&self, class: Class, from: u64, bytes_max: usize) -> anyhow::Result<Run> {
        match self.ask(Work::Read { class, from, bytes_max }).await? {
            Answer::Run(run) => Ok(run),
            other => bail!("the outbox answered {other:?} to a read"),
        }
    }

    /// The collector has everything up to `upto`. Nothing happens when `epoch` is not the current one.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn forget(&self, class: Class, epoch: u64, upto: u64) -> anyhow::Result<()> {
        self.ask(Work::Forget { class, epoch, upto }).await.map(drop)
    }

    /// The collector refused these for good: they are kept apart, and a `gap` event says so.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn set_aside(
        &self,
        class: Class,
        epoch: u64,
        first: u64,
        last: u64,
        code: i32,
        reason: &str,
    ) -> anyhow::Result<()> {
        let reason = reason.to_owned();
        self.ask(Work::SetAside { class, epoch, first, last, code, reason }).await.map(drop)
    }

    /// The collector has only `durable`, less than it once acknowledged: a `gap` event says so.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn restored(&self, class: Class, epoch: u64, durable: u64) -> anyhow::Result<()> {
        self.ask(Work::Restored { class, epoch, durable }).await.map(drop)
    }

    /// Numbers what waits anew under a random epoch, and gives that.
    ///
    /// # Errors
    /// As [`Handle::state`].
    pub async fn new_epoch(&self) -> anyhow::Result<u64> {
        match self.ask(Work::NewEpoch).await? {
            Answer::Epoch(epoch) => Ok(epoch),
            other => bail!("the outbox answered {other:?} to a wish for a new epoch"),
        }
    }

    /// Wakes when events were committed or the epoch changed.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<Heads> {
        self.shared.heads.subscribe()
    }

    /// As of the last commit. Costs a lock, no I/O.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let (events, bytes, oldest) = *self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let age_ns = oldest.map_or(0, |oldest| Moment::now().unix_ns.saturating_sub(oldest));
        Figures { events, bytes, oldest_age_ms: u64::try_from(age_ns / 1_000_000).unwrap_or(0) }
    }

    async fn ask(&self, work: Work) -> anyhow::Result<Answer> {
        let (reply, answer) = oneshot::channel();
        let mut request = Request::Work(work, reply);
        loop {
            request = match self.requests.try_send(request) {
                Ok(()) => break,
                Err(TrySendError::Full(request)) => request,
                Err(TrySendError::Disconnected(_)) => bail!("the outbox has ended"),
            };
            tokio::time::sleep(FULL_QUEUE_WAIT).await;
        }
        answer.await.map_err(|_| anyhow!("the outbox has ended"))?
    }
}

impl Heads {
    /// The last number of a class.
    #[must_use]
    pub fn last(&self, class: Class) -> u64 {
        match class {
            Class::Alert => self.alert,
            Class::Telemetry => self.telemetry,
        }
    }
}

impl Shared {
    fn figures(&self, events: u64, bytes: u64, oldest: Option<i64>) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = (events, bytes, oldest);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
