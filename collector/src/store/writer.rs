//! The thread that owns the store: drains what waits, of all agents, commits it at once, answers after that.
//!
//! A commit that fails answers everyone with an error, so that nobody is acknowledged, and costs the
//! connection: the next one opens the store again (D3).

use super::db::{Db, Memory};
use super::{Config, Request, Shared, StoreError};
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

type Waiting = (Arrival, oneshot::Sender<Result<Committed, StoreError>>);

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
        loop {
            let Ok(request) = self.requests.recv() else { return };
            let mut group = Vec::new();
            let mut open = self.take(request, &mut group);
            let mut events = group.iter().map(|(arrival, _)| arrival.events.len()).sum::<usize>();
            while open && group.len() < GROUP_RUNS_MAX && events < GROUP_EVENTS_MAX {
                match self.requests.try_recv() {
                    Ok(request) => {
                        let before = group.len();
                        open = self.take(request, &mut group);
                        events += group.get(before).map_or(0, |(arrival, _)| arrival.events.len());
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            if !group.is_empty() {
                self.commit(group);
            }
            if !open {
                return;
            }
        }
    }

    /// False when it is time to end.
    fn take(&mut self, request: Request, group: &mut Vec<Waiting>) -> bool {
        match request {
            Request::Commit(arrival, reply) => group.push((arrival, reply)),
            Request::Durable(agent, epoch, reply) => {
                // What waits in this group is not durable yet, and this does not say so.
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

    fn commit(&mut self, group: Vec<Waiting>) {
        self.reopen();
        let (arrivals, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let result = match &mut self.db {
            Ok(db) => db.commit(&arrivals, now_unix_ns()).map_err(|error| format!("{error:#}")),
            Err((_, _, reason)) => Err(reason.clone()),
        };
        match result {
            Ok(answers) => {
                self.publish();
                for (reply, answer) in replies.into_iter().zip(answers) {
                    let _ = reply.send(Ok(answer)); // the connection may be gone: it will ask again
                }
            }
            Err(reason) => {
                self.give_up(&reason);
                for reply in replies {
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
                self.db = Ok(db);
            }
            Err(error) => {
                *since = Instant::now();
                *reason = format!("{error:#}");
            }
        }
    }

    fn publish(&self) {
        if let Ok(db) = &self.db {
            self.shared.committed(db.highest_id(), now_unix_ns());
        }
    }
}

pub(super) fn now_unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
