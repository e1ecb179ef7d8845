//! The thread that owns the outbox: drains what waits, applies it in one transaction, answers after commit.
//!
//! A failed write costs the connection, never an event (D3): what was taken from the channel stays in memory,
//! the channel behind it fills, and the database is opened again until it works.

use super::db::{Answer, Db, State, Work};
use super::file;
use super::room::Limits;
use super::{Config, Heads, Request, Shared};
use crate::host::Moment;
use crate::telemetry::Counters;
use anyhow::anyhow;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, select};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, event::Kind};

/// Events of one transaction.
pub const GROUP_EVENTS_MAX: usize = 1024;
/// Requests of one transaction.
pub const GROUP_REQUESTS_MAX: usize = 64;
/// How long the first event of a group waits for others, when one of them is an alert.
pub const GROUP_WAIT_MAX: Duration = Duration::from_millis(2);
/// How long telemetry alone waits: a commit costs about as much as five hundred events.
pub const TELEMETRY_WAIT_MAX: Duration = Duration::from_millis(200);
const _: () = assert!(GROUP_WAIT_MAX.as_millis() < TELEMETRY_WAIT_MAX.as_millis());
/// Between two parts of giving free pages back.
const TIDY_PAUSE: Duration = Duration::from_millis(50);
/// The first pause after a failed write; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause after a failed write.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a closed outbox tries to write what it holds before it gives up.
const LAST_TRIES_MAX: u32 = 3;

pub(super) struct Owner {
    config: Config,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    input: Receiver<wire::Event>,
    requests: Receiver<Request>,
    db: Option<Db>,
    /// Events that the database held after the last commit.
    held: u64,
    events: Vec<wire::Event>,
    /// What they take. Bytes.
    events_bytes: u64,
    waiting: Vec<Request>,
    input_open: bool,
    requests_open: bool,
    stop: bool,
    trouble: Option<Trouble>,
    /// When free pages may be given back next; nothing when there are none.
    tidy_at: Option<Instant>,
}

struct Trouble {
    since: Instant,
    pause: Duration,
    tries: u32,
    suspect: Option<String>,
}

impl Owner {
    pub(super) fn new(
        config: Config,
        counters: Arc<Counters>,
        shared: Arc<Shared>,
        input: Receiver<wire::Event>,
        requests: Receiver<Request>,
        db: Db,
    ) -> Self {
        let held = db.waiting().0;
        counters.outbox_found.add(held);
        counters.outbox_waiting.set(held);
        Self {
            config,
            counters,
            shared,
            input,
            requests,
            db: Some(db),
            held,
            events: Vec::new(),
            events_bytes: 0,
            waiting: Vec::new(),
            input_open: true,
            requests_open: true,
            stop: false,
            trouble: None,
            tidy_at: Some(Instant::now()),
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.counters.progress.outbox.waits();
            self.wait_for_work();
            self.counters.progress.outbox.works();
            self.gather();
            self.write();
            self.tidy();
            let idle = self.events.is_empty() && self.waiting.is_empty();
            if idle && !self.input_open && (self.stop || !self.requests_open) {
                return;
            }
            let tries = self.trouble.as_ref().map_or(0, |trouble| trouble.tries);
            if (self.stop || !self.input_open) && tries >= LAST_TRIES_MAX {
                tracing::error!(
                    events = self.events.len(),
                    "the outbox can't be written at the end: these are lost"
                );
                return;
            }
        }
    }

    /// Blocks until something can be done. With trouble only for its pause: requests are still answered.
    fn wait_for_work(&mut self) {
        if let Some(trouble) = &self.trouble {
            match self.requests.recv_timeout(trouble.pause) {
                Ok(request) => self.take(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.requests_open = false;
                    std::thread::sleep(trouble.pause);
                }
            }
            return;
        }
        let never = crossbeam_channel::never();
        let never_requests = crossbeam_channel::never();
        let input = if self.input_open { self.input.clone() } else { never };
        let requests = if self.requests_open { self.requests.clone() } else { never_requests };
        if !self.input_open && (self.stop || !self.requests_open) {
            return;
        }
        let tidy = self.tidy_at.map_or_else(crossbeam_channel::never, crossbeam_channel::at);
        select! {
            recv(requests) -> request => match request {
                Ok(request) => self.take(request),
                Err(_) => self.requests_open = false,
            },
            recv(input) -> event => match event {
                Ok(event) => self.take_event(event),
                Err(_) => self.input_open = false,
            },
            recv(tidy) -> _ => {}
        }
    }

    fn take_event(&mut self, event: wire::Event) {
        self.events_bytes += event.encoded_len() as u64;
        self.events.push(event);
    }

    /// One part of giving back what is free; the next one not at once, so that events go between.
    fn tidy(&mut self) {
        if self.tidy_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.tidy_at = None;
        match self.db.as_mut().map(Db::tidy) {
            Some(Ok(true)) => self.tidy_at = Some(Instant::now() + TIDY_PAUSE),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => self.failed(&error),
        }
    }

    /// Takes what else is there. A lone event waits a moment for company, so that a burst is one commit, telemetry
    /// longer than an alert; a request does not wait, because somebody waits for its answer.
    fn gather(&mut self) {
        let start = Instant::now();
        self.gather_requests();
        let mut wait = TELEMETRY_WAIT_MAX;
        if self.events.iter().any(is_alert) {
            wait = GROUP_WAIT_MAX;
        }
        let bytes_max = Limits::of(self.config.bytes_max).group_bytes_max;
        while self.input_open && self.events.len() < GROUP_EVENTS_MAX && self.events_bytes < bytes_max {
            let left = (start + wait).saturating_duration_since(Instant::now());
            let urgent = !self.waiting.is_empty() || self.events.is_empty() || self.stop;
            let pause = if urgent { Duration::ZERO } else { left };
            let never = crossbeam_channel::never();
            let requests = if self.requests_open && !urgent { &self.requests } else { &never };
            select! {
                recv(self.input) -> event => match event {
                    Ok(event) => {
                        if is_alert(&event) {
                            wait = GROUP_WAIT_MAX;
                        }
                        self.take_event(event);
                    }
                    Err(_) => self.input_open = false,
                },
                recv(requests) -> request => match request {
                    Ok(request) => self.take(request),
                    Err(_) => self.requests_open = false,
                },
                default(pause) => break,
            }
        }
        self.gather_requests();
    }

    fn gather_requests(&mut self) {
        while self.requests_open && self.waiting.len() < GROUP_REQUESTS_MAX {
            match self.requests.try_recv() {
                Ok(request) => self.take(request),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.requests_open = false,
            }
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Stop => self.stop = true,
            Request::Work(..) => self.waiting.push(request),
        }
    }

    fn write(&mut self) {
        if self.events.is_empty() && self.waiting.is_empty() {
            return;
        }
        if self.db.is_none() {
            self.reopen();
        }
        let Some(db) = &mut self.db else { return self.refuse_requests("it can't be opened") };
        let mut work: Vec<Work> = Vec::with_capacity(1 + self.waiting.len());
        work.push(Work::Append(std::mem::take(&mut self.events)));
        work.extend(self.waiting.iter().filter_map(|request| match request {
            Request::Work(work, _) => Some(work.clone()),
            Request::Stop => None,
        }));
        let taken = work.iter().map(|work| if let Work::Append(events) = work { events.len() } else { 0 });
        let taken: usize = taken.sum();
        match db.apply(&work, Moment::now()) {
            Ok((answers, tally)) => {
                self.held = db.waiting().0;
                self.counters.outbox_seen.add(taken as u64);
                self.counters.outbox_made.add(tally.made);
                self.counters.outbox_lost_oversized.add(tally.oversized);
                self.counters.outbox_waiting.set(self.held);
                self.counters.outbox_appended.add(tally.appended);
                self.counters.outbox_merged.add(tally.merged);
                self.counters.outbox_lost_bound.add(tally.lost);
                self.counters.outbox_acked.add(tally.acked);
                self.counters.outbox_set_aside.add(tally.set_aside);
                self.events_bytes = 0;
                self.publish();
                self.answer(answers);
                self.trouble = None;
                self.tidy_at.get_or_insert_with(|| Instant::now() + TIDY_PAUSE);
            }
            Err(error) => {
                if let Some(Work::Append(events)) = work.into_iter().next() {
                    self.events = events;
                }
                self.failed(&error);
            }
        }
    }

    fn answer(&mut self, answers: Vec<Answer>) {
        for (request, answer) in self.waiting.drain(..).zip(answers.into_iter().skip(1)) {
            if let Request::Work(_, reply) = request {
                let _ = reply.send(Ok(answer)); // nobody waits any more: a connection went away
            }
        }
    }

    fn publish(&mut self) {
        let Some(db) = &self.db else { return };
        let (events, bytes) = db.waiting();
        let (Ok(state), Ok(oldest)) = (db.state(), db.oldest()) else { return }; // the next write will say why
        self.shared.figures(events, bytes, oldest);
        self.shared.heads.send_if_modified(|heads| {
            let new = heads_of(&state);
            std::mem::replace(heads, new) != new
        });
    }

    fn failed(&mut self, error: &rusqlite::Error) {
        let suspect = file::is_damage(error).then(|| format!("it is damaged: {error}"));
        let pause = self.trouble.as_ref().map_or(RETRY_FIRST, |trouble| (trouble.pause * 2).min(RETRY_MAX));
        let tries = self.trouble.as_ref().map_or(1, |trouble| trouble.tries + 1);
        let since = self.trouble.as_ref().map_or_else(Instant::now, |trouble| trouble.since);
        if tries == 1 {
            tracing::warn!(%error, folder = %self.config.folder.display(),
                "the outbox can't be written: events wait in memory; check free space");
        }
        self.db = None; // never again over the same descriptor: after a failed fsync its cache lies
        self.trouble = Some(Trouble { since, pause, tries, suspect });
        self.refuse_requests(&error.to_string());
    }

    fn reopen(&mut self) {
        let suspect = self.trouble.as_ref().and_then(|trouble| trouble.suspect.clone());
        match Db::open(
            &self.config.folder,
            self.config.bytes_max,
            self.config.host.clone(),
            suspect.as_deref(),
        ) {
            Ok(db) => {
                self.account_for(db.waiting().0);
                self.db = Some(db);
                self.report_recovery();
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the outbox can't be opened again yet");
                if let Some(trouble) = &mut self.trouble {
                    trouble.pause = (trouble.pause * 2).min(RETRY_MAX);
                    trouble.tries += 1;
                }
            }
        }
    }

    /// A database that was set aside and salvaged holds fewer events, or more by the gap that says so.
    fn account_for(&mut self, found: u64) {
        self.counters.outbox_found.add(found.saturating_sub(self.held));
        self.counters.outbox_lost_damaged.add(self.held.saturating_sub(found));
        self.counters.outbox_waiting.set(found);
        self.held = found;
    }

    /// Goes in with the next commit. When that fails too, it is said once, not once a try.
    fn report_recovery(&mut self) {
        let Some(trouble) = &mut self.trouble else { return };
        trouble.suspect = None;
        if self.events.iter().any(is_recovery) {
            return;
        }
        let health = wire::Health {
            component: COMPONENT.into(),
            state: wire::HealthState::Ok as i32,
            message: format!(
                "{RECOVERED} after {} s; events waited in memory and nothing was lost here",
                trouble.since.elapsed().as_secs()
            ),
        };
        self.events.push(self.config.host.event(Moment::now(), wire::Severity::Low, Kind::Health(health)));
    }

    fn refuse_requests(&mut self, reason: &str) {
        for request in self.waiting.drain(..) {
            if let Request::Work(_, reply) = request {
                let _ = reply.send(Err(anyhow!("the outbox can't be used now: {reason}")));
            }
        }
    }
}

const COMPONENT: &str = "outbox";
const RECOVERED: &str = "the outbox can be written again";

fn is_alert(event: &wire::Event) -> bool {
    Class::of(event) != Some(Class::Telemetry)
}

fn is_recovery(event: &wire::Event) -> bool {
    matches!(&event.kind, Some(Kind::Health(health)) if health.component == COMPONENT && health.message.starts_with(RECOVERED))
}

pub(super) fn heads_of(state: &State) -> Heads {
    let last = |class| state.classes.iter().find(|state| state.class == class).map_or(0, |state| state.last);
    Heads { epoch: state.epoch, alert: last(Class::Alert), telemetry: last(Class::Telemetry) }
}
