//! Stage 6: every event once, committed.
//!
//! SQLite, one file a day, one writer thread with group commit over all agents. Path inside: `writer` drains
//! what ingest sent, `turns` says who is next -> `db` stores it and moves the marks in one transaction, and lets `segments` index what is
//! complete -> sinks and commands read through `reader`, which finds what passes a filter by `search`.

/// How the writer does.
pub mod commits;
/// What came lately, in sums.
pub mod recent;
/// What can't be read any more.
pub mod damage;
/// All days, looked at once more.
pub mod check;
/// Rows and marks in one transaction.
pub mod db;
/// One day's file.
pub mod file;
mod ids;
mod segments;
/// By id for sinks, by filter for people.
pub mod reader;
mod search;
mod turns;
/// What can be read of a damaged file.
pub mod salvage;
/// The thread that owns the newest file.
pub mod writer;

pub use crate::ingest::session::{Arrival, Committed, Received};
pub use reader::{Count, Filter, Reader, Stored};

use crate::ingest::Commits;
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use damage::Damage;
use db::{Db, Memory};
use prost::Message;
use recent::{Day, News, RECALLED_MAX, Recent};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire;

/// Its folder, in the collector's state folder.
pub const FOLDER: &str = "store";
/// Requests that wait for the writer or are being committed. The rest waits for a place, first come, first served, so that
/// each agent gets its share.
pub const REQUESTS_MAX: usize = 1024;
/// Of encoded events a place is good for so much; a larger request takes several. Bytes.
pub const PLACE_BYTES: usize = 64 << 10;
/// After the start: whoever restarts a collector wants its agents back first.
const CHECK_AFTER: Duration = Duration::from_secs(60);
/// Between the end of a check of all days and the next.
const CHECK_EVERY: Duration = Duration::from_secs(86_400);
/// How much longer than it works a check rests: a thirtieth of a processor.
const CHECK_REST: u32 = 30;
/// How often a check that rests looks whether the store has ended.
const CHECK_LOOK: Duration = Duration::from_millis(200);
/// Events of the past that are read at a time.
const RECALLED_AT_ONCE: usize = 500;

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
    places: Arc<Semaphore>,
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
    /// Events met since the start whose content the disk has changed.
    pub damaged_events: u64,
    /// Day files that can't be read.
    pub damaged_days: u64,
    /// Stored events that the last check could not find.
    pub missing_events: u64,
    /// Parts of indexes, of 16,384 events each, that the last check found wrong.
    pub wrong_indexes: u64,
    /// Wall clock when the last check of all days ended, Unix nanoseconds; 0 when there was none since the start.
    pub checked_unix_ns: i64,
}

#[derive(Debug)]
enum Request {
    Commit(Arrival, oneshot::Sender<Result<Committed, StoreError>>, Place),
    Durable(AgentId, u64, oneshot::Sender<Result<Vec<(Class, u64)>, StoreError>>, Place),
    Stop,
}

/// Held until the request is answered.
type Place = OwnedSemaphorePermit;

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    highest: watch::Sender<u64>,
    last_commit_unix_ns: AtomicI64,
    commits: commits::Commits,
    damage: Arc<Damage>,
    checked_unix_ns: AtomicI64,
    recent: Mutex<Recent>,
    /// What was stored before the start ends here.
    opened_at_id: u64,
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
        commits: commits::Commits::default(),
        damage: Arc::default(),
        checked_unix_ns: AtomicI64::new(0),
        recent: Mutex::default(),
        opened_at_id: db.highest_id(),
        reader: Mutex::new(None),
    });
    let (requests, waiting): (_, Receiver<Request>) = bounded(REQUESTS_MAX + 1); // and the last word
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let writer = writer::Writer::new(config, shared.clone(), waiting, db);
    let thread = std::thread::Builder::new()
        .name("store".into())
        .spawn(move || writer.run())
        .context("could not start the store's thread")?;
    Ok(Store { handle: Handle { requests, places, shared }, thread })
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
        let bytes = arrival.events.iter().map(|event| event.body.len()).sum::<usize>();
        let place = self.place(bytes).await?;
        self.ask(Request::Commit(arrival, reply, place))?;
        answer.await.map_err(|_| StoreError::Ended)?
    }

    /// What is stored of an agent's outbox; an absent class has nothing.
    ///
    /// # Errors
    /// [`StoreError`] while the store can't be used.
    pub async fn durable(&self, agent: AgentId, epoch: u64) -> Result<Vec<(Class, u64)>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let place = self.place(0).await?;
        self.ask(Request::Durable(agent, epoch, reply, place))?;
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
        Reader::telling(&self.shared.folder, self.shared.damage.clone())
    }

    /// As [`Handle::figures`] without the number of events: only file sizes, however much is kept.
    #[must_use]
    pub fn sizes(&self) -> Figures {
        let (missing_events, wrong_indexes) = self.shared.damage.missing();
        let mut figures = Figures {
            missing_events,
            wrong_indexes,
            checked_unix_ns: self.shared.checked_unix_ns.load(Ordering::Relaxed),
            last_commit_unix_ns: self.shared.last_commit_unix_ns.load(Ordering::Relaxed),
            damaged_events: self.shared.damage.events(),
            damaged_days: self.shared.damage.days(),
            ..Figures::default()
        };
        for day in file::list(&self.shared.folder).unwrap_or_default() {
            let (bytes, wal_bytes) = file::sizes(&day.path);
            figures.bytes += bytes;
            figures.wal_bytes += wal_bytes;
            figures.days += 1;
        }
        figures
    }

    /// What the file system of the store still has for this user; `None` when it does not say. Bytes.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        let system = rustix::fs::statvfs(&self.shared.folder).ok()?;
        Some(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// How the writer does.
    #[must_use]
    pub fn commits(&self) -> &commits::Commits {
        &self.shared.commits
    }

    /// What came since the start and within a day, in sums.
    #[must_use]
    pub fn day(&self) -> Day {
        self.shared.recent().day(writer::now_unix_ns())
    }

    /// Adds to [`Handle::day`] what was stored before the start, alerts only, newest first, up to a bound. Once; blocks for
    /// seconds when there is much.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn recall(&self) -> anyhow::Result<()> {
        let oldest = writer::now_unix_ns().saturating_sub(recent::DAY_NS);
        let filter = Filter { classes: vec![Class::Alert], ..Filter::default() };
        let mut reader = self.reader()?;
        let (mut before, mut read) = (self.shared.opened_at_id.saturating_add(1), 0);
        while read < RECALLED_MAX && self.shared.commits.work() != commits::Work::Ended {
            let page = reader.page(&filter, Some(before), RECALLED_AT_ONCE)?;
            let young = page.iter().take_while(|stored| stored.received_unix_ns >= oldest);
            for stored in young.clone() {
                let mut news = News::default();
                if let Ok(event) = wire::Event::decode(stored.body.as_slice()) {
                    news.note(stored.event.agent, Class::Alert, &event);
                }
                self.shared.recent().recall(news, stored.received_unix_ns);
            }
            match page.last() {
                Some(last) if young.count() == page.len() => before = last.id,
                Some(_) | None => {
                    self.shared.recent().recalled();
                    break;
                }
            }
            read += page.len() as u64;
        }
        Ok(())
    }

    /// Looks at every stored event once more, thirty times as long at rest as at work, and again a day
    /// after it has ended. Blocks until the store ends.
    pub fn keep_checking(&self) {
        let mut wait = CHECK_AFTER;
        while self.rest(wait) {
            wait = CHECK_EVERY;
            let began = Instant::now();
            let checked = match self.check() {
                Ok(Some(checked)) => checked,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "the stored days could not be checked");
                    continue;
                }
            };
            let well = checked.iter().filter(|day| day.is_well()).count();
            let events: u64 = checked.iter().map(|day| day.events).sum();
            let (days, seconds) = (checked.len(), began.elapsed().as_secs());
            tracing::info!(days, well, events, seconds, "all stored days were checked");
            self.shared.checked_unix_ns.store(writer::now_unix_ns(), Ordering::Relaxed);
        }
    }

    /// `None` when the store ended meanwhile.
    fn check(&self) -> anyhow::Result<Option<Vec<check::Checked>>> {
        let mut check = check::Check::begin(&mut self.reader()?)?;
        let mut days = Vec::new();
        loop {
            let began = Instant::now();
            match check.step() {
                None => break,
                Some(check::Step::Day(found)) => days.push(found),
                Some(check::Step::Looked(..)) => {}
            }
            if !self.rest(began.elapsed() * CHECK_REST) {
                return Ok(None);
            }
        }
        self.shared.damage.forget_gone();
        Ok(Some(days))
    }

    /// False as soon as the store ends.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            if self.shared.commits.work() == commits::Work::Ended {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(CHECK_LOOK));
        }
    }

    /// Reads counters and file sizes: blocks for a moment, not for every event.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut figures = self.sizes();
        let mut reader = self.shared.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.is_none() {
            *reader = self.reader().ok();
        }
        let counts = reader.as_mut().and_then(|reader| reader.counts().ok()).unwrap_or_default();
        figures.events = counts.iter().map(|count| count.events).sum();
        figures
    }

    /// Waits for one; whoever waits longest is next, however much others send.
    async fn place(&self, bytes: usize) -> Result<Place, StoreError> {
        let places = (bytes / PLACE_BYTES + 1).min(REQUESTS_MAX);
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        self.places.clone().acquire_many_owned(places).await.map_err(|_| StoreError::Ended)
    }

    /// The queue has room for everybody who has a place.
    fn ask(&self, request: Request) -> Result<(), StoreError> {
        self.requests.try_send(request).map_err(|_| StoreError::Ended)
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
    fn recent(&self) -> MutexGuard<'_, Recent> {
        // Sums: whole after every statement that matters.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn committed(&self, highest: u64, now_unix_ns: i64) {
        self.last_commit_unix_ns.store(now_unix_ns, Ordering::Relaxed);
        self.highest.send_if_modified(|known| std::mem::replace(known, highest) != highest);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fleet_tests;
