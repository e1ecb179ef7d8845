//! Stage 6: every event once, committed. SQLite, one file a day, one writer thread with group commit.
//!
//! Ingest hands over arrivals and is answered after the commit; sinks and commands read through connections of
//! their own, in short transactions. A mark per (agent, epoch, class) moves in the same transaction and the same file
//! as the rows it covers: what comes twice is stored once, and a hole that nobody declared is refused.

/// One day's file.
mod file;
/// Reading, for sinks and commands.
mod reader;
/// The thread that owns the file that is written.
mod writer;

pub use file::{DayFile, Kind};
pub use reader::{Filter, Reader};
pub use writer::{Shelf, Store, open};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot, watch};
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire;

/// Requests that wait for the writer. Each holds one batch at most.
pub const REQUESTS_MAX: usize = 256;
/// Requests in one commit.
pub const COMMIT_REQUESTS_MAX: usize = 64;

/// Where, and for how long.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the day files. 0700.
    pub folder: PathBuf,
    /// Day files that are kept, the newest included; all of them when absent.
    pub retention_days: Option<u32>,
}

/// One event as ingest hands it over: bytes, and what of it is indexed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    body: Vec<u8>,
    time_unix_ns: i64,
    kind: Kind,
    severity: i32,
    rules: String,
}

/// Consecutive events of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// By its certificate.
    pub agent: AgentId,
    /// Which outbox.
    pub epoch: u64,
    /// Which numbers.
    pub class: Class,
    /// Number of the first event.
    pub first_seq: u64,
    /// Numbers right before it that will never come.
    pub skipped: u64,
    /// The events.
    pub events: Vec<Arrived>,
}

/// What became of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Everything of the stream up to here is on disk.
    Durable(u64),
    /// Nothing was stored: this number is the next one.
    Hole {
        /// The number.
        expected: u64,
    },
}

/// Nothing was stored; the same arrival may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database said no: disk full, disk broken.
    #[error("the store could not commit: {0}")]
    Failed(String),
    /// The store has ended.
    #[error("the store has ended")]
    Ended,
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Runs over all events, in the order of commit.
    pub id: u64,
    /// Its name.
    pub event: EventId,
    /// When it was committed, Unix nanoseconds.
    pub received_unix_ns: i64,
    /// An encoded [`wire::Event`].
    pub body: Vec<u8>,
}

/// What `status` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Events stored since this collector was started.
    pub committed: u64,
    /// Events in all files.
    pub events: u64,
    /// All files, write-ahead logs included. Bytes.
    pub bytes: u64,
    /// The write-ahead log alone. Bytes.
    pub wal_bytes: u64,
    /// Files.
    pub days: u64,
    /// The last commit. Microseconds.
    pub commit_us: u64,
}

/// Asks the writer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    shelf: Arc<Shelf>,
    changed: watch::Receiver<u64>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    committed: AtomicU64,
    commit_us: AtomicU64,
}

#[derive(Debug)]
enum Request {
    Commit { arrival: Arrival, reply: oneshot::Sender<Result<Committed, StoreError>> },
    Durable { agent: AgentId, epoch: u64, reply: oneshot::Sender<Result<Vec<(Class, u64)>, StoreError>> },
}

impl Arrived {
    /// Takes what is indexed out of the event; `body` is the same event, encoded.
    #[must_use]
    pub fn new(body: Vec<u8>, event: &wire::Event) -> Self {
        let mut rules = String::new();
        if let Some(wire::event::Kind::Detection(detection)) = &event.kind {
            for rule in &detection.rules {
                for name in [&rule.name, &rule.id] {
                    rules.push('\n');
                    rules.push_str(name);
                }
            }
            rules.push('\n');
        }
        Self {
            body,
            time_unix_ns: event.time_unix_ns,
            kind: Kind::of(event),
            severity: event.severity,
            rules,
        }
    }
}

impl Handle {
    /// Stores an arrival; the answer comes after the commit. Waits while the writer is behind: that is the backpressure.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was stored.
    pub async fn commit(&self, arrival: Arrival) -> Result<Committed, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Commit { arrival, reply }).await.map_err(|_| StoreError::Ended)?;
        answer.await.map_err(|_| StoreError::Ended)?
    }

    /// Up to where the streams of one outbox are stored; a stream that is not named has nothing.
    ///
    /// # Errors
    /// [`StoreError`]: it could not be read.
    pub async fn durable(&self, agent: AgentId, epoch: u64) -> Result<Vec<(Class, u64)>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Durable { agent, epoch, reply }).await.map_err(|_| StoreError::Ended)?;
        answer.await.map_err(|_| StoreError::Ended)?
    }

    /// The highest id that is committed; wakes whoever follows.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// A reader with connections of its own. It blocks: not for an async task.
    ///
    /// # Errors
    /// Never now; the files are opened when they are read.
    pub fn reader(&self) -> anyhow::Result<Reader> {
        Ok(Reader::new(self.shelf.clone()))
    }

    /// What `status` shows. Reads sizes of files and one short row a file.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut figures = self.shelf.figures();
        figures.committed = self.counters.committed.load(Ordering::Relaxed);
        figures.commit_us = self.counters.commit_us.load(Ordering::Relaxed);
        figures
    }
}
