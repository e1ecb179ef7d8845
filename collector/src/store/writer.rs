//! The thread that owns the store: drains what waits, of all agents, commits as much as `turns` says, answers after that.
//!
//! A commit that fails answers everyone with an error, so that nobody is acknowledged, and costs the
//! connection: the next one opens the store again (D3).

use super::db::{Db, Memory};
use super::turns::{Size, Turns};
use super::{Config, Place, Request, Shared, StoreError};
use crate::ingest::session::{Arrival, Committed};
use crossbeam_channel::{Receiver, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// Events of one transaction, as a goal: a run is never split.
pub const GROUP_EVENTS_MAX: usize = 5000;
/// Runs of one transaction.
pub const GROUP_RUNS_MAX: usize = 512;
/// After a failed commit the store is not tried again for this time, so that a full disk is not hammered.
pub const RETRY_WAIT: Duration = Duration::from_millis(500);

/// Whom to answer; with the answer their place is free.
type Reply = (oneshot::Sender<Result<Committed, StoreError>>, Place);
type Waiting = (Arrival, Reply);

pub(super) struct Writer {
    config: Config,
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    db: Result<Db, (Memory, Instant, String)>,
}

impl Writer {
    pub(super) fn new(config: Config, shared: Arc<Shared>, requests: Receiver<Request>, db: Db) -> Self {
        Self { config, shared, requests, db: Ok(db) }
    }

    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        let mut turns = Turns::new();
        let mut open = true;
        while open || !turns.is_empty() {
            if turns.is_empty() {
                self.shared.commits.idle();
                let Ok(request) = self.requests.recv() else { return };
                self.shared.commits.busy();
                open = self.take(request, &mut turns);
            }
            // All that waits: there are only so many places. Whose turn it is can be said only of all of them.
            while open {
                match self.requests.try_recv() {
                    Ok(request) => open = self.take(request, &mut turns),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            let group = turns.next();
            if !group.is_empty() {
                self.shared.commits.busy();
                self.commit(group);
            }
            if turns.is_empty() && self.requests.is_empty() {
                self.checkpoint();
            }
        }
    }

    /// False when it is time to end.
    fn take(&mut self, request: Request, turns: &mut Turns<Waiting>) -> bool {
        match request {
            Request::Commit(arrival, reply, place) => {
                let bytes = arrival.events.iter().map(|event| event.body.len()).sum();
                let size = Size { events: arrival.events.len(), bytes };
                turns.push(arrival.agent, size, (arrival, (reply, place)));
            }
            Request::Durable(agent, epoch, reply, _place) => {
                // What waits is not durable yet, and this does not say so.
                let durable = match &self.db {
                    Ok(db) => Ok(db.durable(agent, epoch)),
                    Err((_, _, reason)) => Err(StoreError::Write(reason.clone())),
                };
                let _ = reply.send(durable); // the connection may be gone
                if self.db.is_err() {
                    self.reopen();
                }
            }
            Request::Stop => return false,
        }
        true
    }

    /// When nobody waits and everybody was answered: a part of what SQLite would do at some commit, for which all wait.
    fn checkpoint(&mut self) {
        if let Ok(db) = &mut self.db
            && let Err(error) = db.checkpoint_when_due()
        {
            // As when SQLite does it by itself: the log keeps what it has, and a commit will say what is wrong.
            tracing::debug!(%error, "the write-ahead log could not be moved to the file");
        }
    }

    fn commit(&mut self, group: Vec<Waiting>) {
        self.reopen();
        let (arrivals, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let began = Instant::now();
        let result = match &mut self.db {
            Ok(db) => db.commit(&arrivals, now_unix_ns()).map_err(|error| format!("{error:#}")),
            Err((_, _, reason)) => Err(reason.clone()),
        };
        match result {
            Ok(answers) => {
                self.shared.commits.committed(began.elapsed(), Instant::now());
                self.publish();
                for ((reply, _place), answer) in replies.into_iter().zip(answers) {
                    let _ = reply.send(Ok(answer)); // the connection may be gone: it will ask again
                }
            }
            Err(reason) => {
                self.shared.commits.failed(&reason);
                self.give_up(&reason);
                for (reply, _place) in replies {
                    let _ = reply.send(Err(StoreError::Write(reason.clone())));
                }
            }
        }
    }

    fn give_up(&mut self, reason: &str) {
        if self.db.is_err() {
            return; // its memory and the time of the first failure have to stay
        }
        let failed = Err((Memory::default(), Instant::now(), reason.to_owned()));
        if let Ok(db) = std::mem::replace(&mut self.db, failed) {
            tracing::error!(reason, "the store can't be written: agents keep their events; check free space");
            if let Err((memory, ..)) = &mut self.db {
                *memory = db.into_memory();
            }
        }
    }

    fn reopen(&mut self) {
        let Err((memory, since, reason)) = &mut self.db else { return };
        if since.elapsed() < RETRY_WAIT {
            return;
        }
        let kept = Memory { marks: memory.marks.clone(), next_id: memory.next_id };
        match Db::open(&self.config.folder, self.config.retention_days, kept, now_unix_ns()) {
            Ok(db) => {
                tracing::info!("the store is open again");
                self.shared.commits.reopened();
                self.db = Ok(db);
            }
            Err(error) => {
                *since = Instant::now();
                *reason = format!("{error:#}");
            }
        }
    }

    fn publish(&mut self) {
        if let Ok(db) = &mut self.db {
            let now_unix_ns = now_unix_ns();
            self.shared.recent().note(db.take_news(), now_unix_ns);
            self.shared.committed(db.highest_id(), now_unix_ns);
        }
    }
}

/// Says that the thread has ended, also when it panicked.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.commits.end();
    }
}

pub(super) fn now_unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
