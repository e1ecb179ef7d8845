//! Stage 6: every event once, committed.
//!
//! SQLite, one file a day, one writer thread with group commit over all agents. Path inside: `writer` drains
//! what ingest sent -> `db` stores it and moves the marks in one transaction -> sinks and commands read
//! through `reader`.

/// Rows and marks in one transaction.
pub mod db;
/// One day's file.
pub mod file;
/// By id for sinks, by filter for people.
pub mod reader;
/// What can be read of a damaged file.
pub mod salvage;
/// The thread that owns the newest file.
pub mod writer;

pub use crate::ingest::session::{Arrival, Committed, Received};
pub use reader::{Count, Filter, Reader, Stored};

use crate::ingest::Commits;
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use db::{Db, Memory};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use vidette_protocol::id::{AgentId, Class};

/// Requests that wait for the writer.
pub const REQUESTS_MAX: usize = 1024;
/// How long a request waits before it tries again to enter a full queue.
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(5);

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the days' files are; made, with mode 0700, when it is not there.
    pub folder: PathBuf,
    /// Day files that are kept; `None` for all.
    pub retention_days: Option<u32>,
}

/// Why nothing was stored. Nothing may be acknowledged then.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or broken.
    #[error("the store can't be written: {0}")]
    Write(String),
    /// The collector is stopping.
    #[error("the store has ended")]
    Ended,
}

/// The running store.
#[derive(Debug)]
pub struct Store {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// The way to it, for any number of tasks.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: Sender<Request>,
    shared: Arc<Shared>,
}

/// For `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Events over all days that are kept.
    pub events: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of write-ahead logs; growing without end means that a reader is stuck.
    pub wal_bytes: u64,
    /// Wall clock of the last commit, Unix nanoseconds; 0 when there was none since the start.
    pub last_commit_unix_ns: i64,
    /// Day files that are kept.
    pub days: usize,
}

#[derive(Debug)]
enum Request {
    Commit(Arrival, oneshot::Sender<Result<Committed, StoreError>>),
    Durable(AgentId, u64, oneshot::Sender<Result<Vec<(Class, u64)>, StoreError>>),
    Stop,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    highest: watch::Sender<u64>,
    last_commit_unix_ns: AtomicI64,
    /// For figures only; made when it is first needed.
    reader: Mutex<Option<Reader>>,
}

/// Opens the store and starts its thread. A damaged newest file is set aside and does not stop this.
///
/// # Errors
/// One sentence, when the folder can't be used or the newest file is foreign or of a newer version.
pub fn open(config: Config) -> anyhow::Result<Store> {
    let db = Db::open(&config.folder, config.retention_days, Memory::default(), writer::now_unix_ns())?;
    tracing::info!(file = %db.path().display(), highest_id = db.highest_id(), "the store is open");
    let shared = Arc::new(Shared {
        folder: db.folder().to_path_buf(),
        highest: watch::Sender::new(db.highest_id()),
        last_commit_unix_ns: AtomicI64::new(0),
        reader: Mutex::new(None),
    });
    let (requests, waiting): (_, Receiver<Request>) = bounded(REQUESTS_MAX);
    let writer = writer::Writer::new(config, shared.clone(), waiting, db);
    let thread = std::thread::Builder::new()
        .name("store".into())
        .spawn(move || writer.run())
        .context("could not start the store's thread")?;
    Ok(Store { handle: Handle { requests, shared }, thread })
}

impl Store {
    /// One more way to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Commits what was sent before this, answers it, and ends the thread. Later requests fail.
    pub fn join(self) {
        let _ = self.handle.requests.send(Request::Stop); // an error: it has ended already
        drop(self.handle);
        if self.thread.join().is_err() {
            tracing::error!("the store's thread panicked: report this");
        }
    }

    /// Whether the thread has ended; before [`Store::join`] only by a fault.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Handle {
    /// Stores a run; the answer comes after its commit. Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was stored and nothing may be acknowledged.
    pub async fn commit(&self, arrival: Arrival) -> Result<Committed, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Commit(arrival, reply)).await?;
        answer.await.map_err(|_| StoreError::Ended)?
    }

    /// What is stored of an agent's outbox; an absent class has nothing.
    ///
    /// # Errors
    /// [`StoreError`] while the store can't be used.
    pub async fn durable(&self, agent: AgentId, epoch: u64) -> Result<Vec<(Class, u64)>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Durable(agent, epoch, reply)).await?;
        answer.await.map_err(|_| StoreError::Ended)?
    }

    /// The highest committed id; wakes at every commit.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.highest.subscribe()
    }

    /// A reader with connections of its own. It blocks: not for async tasks.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn reader(&self) -> anyhow::Result<Reader> {
        Reader::new(&self.shared.folder)
    }

    /// Reads counters and file sizes: blocks for a moment, not for every event.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            last_commit_unix_ns: self.shared.last_commit_unix_ns.load(Ordering::Relaxed),
            ..Figures::default()
        };
        for day in file::list(&self.shared.folder).unwrap_or_default() {
            let (bytes, wal_bytes) = file::sizes(&day.path);
            figures.bytes += bytes;
            figures.wal_bytes += wal_bytes;
            figures.days += 1;
        }
        let mut reader = self.shared.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.is_none() {
            *reader = self.reader().ok();
        }
        let counts = reader.as_mut().and_then(|reader| reader.counts().ok()).unwrap_or_default();
        figures.events = counts.iter().map(|count| count.events).sum();
        figures
    }

    async fn ask(&self, mut request: Request) -> Result<(), StoreError> {
        loop {
            request = match self.requests.try_send(request) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(request)) => request,
                Err(TrySendError::Disconnected(_)) => return Err(StoreError::Ended),
            };
            tokio::time::sleep(FULL_QUEUE_WAIT).await;
        }
    }
}

impl Commits for Handle {
    async fn commit(&self, arrival: Arrival) -> anyhow::Result<Committed> {
        Ok(Self::commit(self, arrival).await?)
    }

    async fn durable(&self, agent: AgentId, epoch: u64) -> anyhow::Result<Vec<(Class, u64)>> {
        Ok(Self::durable(self, agent, epoch).await?)
    }
}

impl Shared {
    fn committed(&self, highest: u64, now_unix_ns: i64) {
        self.last_commit_unix_ns.store(now_unix_ns, Ordering::Relaxed);
        self.highest.send_if_modified(|known| std::mem::replace(known, highest) != highest);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
