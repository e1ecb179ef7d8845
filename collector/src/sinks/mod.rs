//! Stage 7: events to the SIEM. Each sink follows the store on a thread of its own, from a durable cursor of its own,
//! so a slow or broken one delays no other.
//!
//! `store -> follow (pages) -> formats (pure) -> outputs (jsonl, syslog) -> cursor`. A sink reads the store through
//! short page reads and keeps no queue: what is not sent yet is simply still in the store.

/// How far a sink has come, on disk.
pub mod cursor;
/// An event as the bytes that a receiver reads.
pub mod formats;
/// Output: rotated files, exactly once.
pub mod jsonl;
/// Output: TCP and TLS, at least once.
pub mod syslog;
/// When a message counts as sent.
pub mod window;
/// What a peer's TCP has not acknowledged.
pub mod unacked;
/// The loop of one sink.
pub mod follow;

use crate::config::{Output, Sink};
use crate::stop::Stop;
use crate::store::Handle;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How a sink does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not connected or opened yet.
    Starting,
    /// Events go out.
    Running,
    /// Something failed; it is tried again.
    Retrying,
    /// It needs a person, or the collector is ending.
    Stopped,
}

/// What `vidette sinks list` shows of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `jsonl`, `syslog+tcp` or `syslog+tls`.
    pub kind: String,
    /// Path or address.
    pub target: String,
    /// How it does.
    pub state: State,
    /// Store id of the last event that durably counts as sent.
    pub position: u64,
    /// Stored events after that, at most: other classes' events may be among them.
    pub lag_events: u64,
    /// Events that counted as sent since the start, repeats included.
    pub sent: u64,
    /// When the last of them did. Unix nanoseconds.
    pub last_sent_unix_ns: Option<i64>,
    /// How often something went wrong since the start.
    #[serde(default)]
    pub errors: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it did. Unix nanoseconds.
    pub last_error_unix_ns: Option<i64>,
    /// Up to where the store holds nothing for this sink.
    #[serde(skip)]
    caught_up: u64,
}

/// Where the loop of a sink says how it does.
#[derive(Debug, Clone)]
pub struct Board(Arc<Mutex<Status>>);

impl Board {
    fn new(sink: &Sink) -> Self {
        let (kind, target) = match &sink.output {
            Output::Jsonl(jsonl) => ("jsonl", jsonl.path.display().to_string()),
            Output::Syslog(syslog) if syslog.tls.is_some() => ("syslog+tls", syslog.address.clone()),
            Output::Syslog(syslog) => ("syslog+tcp", syslog.address.clone()),
        };
        Self(Arc::new(Mutex::new(Status {
            name: sink.name.clone(),
            kind: kind.into(),
            target,
            state: State::Starting,
            position: 0,
            lag_events: 0,
            sent: 0,
            last_sent_unix_ns: None,
            errors: 0,
            last_error: None,
            last_error_unix_ns: None,
            caught_up: 0,
        })))
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self, newest: u64) -> Status {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.lag_events = newest.saturating_sub(status.position.max(status.caught_up));
        status
    }
}

/// All sinks, for those who want to know how they do.
#[derive(Debug, Clone, Default)]
pub struct Overview(Vec<Board>);

impl Overview {
    /// One status for each sink, in the order of the configuration. `newest`: the store's newest id.
    #[must_use]
    pub fn all(&self, newest: u64) -> Vec<Status> {
        self.0.iter().map(|board| board.read(newest)).collect()
    }
}

/// All sinks, running.
#[derive(Debug)]
pub struct Sinks {
    threads: Vec<JoinHandle<()>>,
    overview: Overview,
}

impl Sinks {
    /// Starts a thread for each sink. Cursors are kept in `folder`.
    ///
    /// # Errors
    /// When a thread can't be started, or the cursor folder can't be used.
    pub fn start(sinks: &[Sink], folder: &Path, store: &Handle, stop: &Stop) -> anyhow::Result<Self> {
        let mut started = Self { threads: Vec::new(), overview: Overview::default() };
        for sink in sinks {
            let board = Board::new(sink);
            started.overview.0.push(board.clone());
            cursor::CursorFile::open(folder, &sink.name)?;
            let follow = follow::Follow {
                sink: sink.clone(),
                folder: folder.to_owned(),
                store: store.clone(),
                stop: stop.clone(),
                board,
            };
            let thread = std::thread::Builder::new()
                .name(format!("sink-{}", sink.name))
                .spawn(move || follow.run())
                .with_context(|| format!("could not start a thread for sink `{}`", sink.name))?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// How they do.
    #[must_use]
    pub fn overview(&self) -> Overview {
        self.overview.clone()
    }

    /// Waits for all to end, which each does within its own grace time after `stop`. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!(
                    "a sink's thread panicked; its cursor is safe, and it goes on at the next start"
                );
            }
        }
    }
}
