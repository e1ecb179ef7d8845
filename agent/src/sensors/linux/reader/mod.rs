//! The reader: one thread, all kernel queues, one turn after another.
//!
//! A turn reads a batch of each fanotify group, drains the process connector to empty, applies its part to the
//! process table, then handles the batches, content before names. That order is what makes attribution a join and
//! not a guess. Assumes that the marks are somebody else's (`mounts`). Never blocks on detection: see `outlet`.

use super::exchange::{Bell, Late, Report};
use super::follow::{Clocks, Sequences};
use super::join::{Joiner, Outcome, Program, Read, Seen};
use super::mounts::Remote;
use super::names::Names;
use super::names::marks::Marks;
use super::openers::Openers;
use super::places::Places;
use super::proc;
use super::proofs::{Order, Witness};
use super::questions::{Answer, Asked};
use super::twins::Twins;
use super::urgency::{Change, Urgency};
use crate::host::{Host, Moment};
use crate::sensors::outlet::Outlet;
use crate::sensors::processes::{Facts, ProcessTable, Which, Who, Window};
use crate::sensors::users::Users;
use crate::sensors::{Observation, OpenFile};
use crate::sys::connector::Connector;
use crate::sys::fanotify::{Group, NameGroup};
use crate::sys::schedule;
use crate::telemetry::Counters;
use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, epoll};
use rustix::time::Timespec;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, GapReason, HealthState, Source};

/// Files that were written or run.
mod content;
/// Names that changed.
mod naming;
/// Who is who.
mod living;

/// Runs that were told and whose end will be. Beyond it an end is not told.
const RUNNING_MAX: usize = 65_536;
/// How often the loop turns with nothing to do, and with something that waits for room.
const IDLE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);
/// The least time from one turn to the next, as long as only files have something to tell. One event alone is
/// handled at once. Under a second.
const TURN_MIN: Duration = Duration::from_millis(1);
/// Pauses between attempts to get the connector back.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// `/proc` is read again at most this often after losses.
const REREAD_INTERVAL: Duration = Duration::from_secs(1);
/// A fanotify descriptor that can't be read for this long is not tried any more.
const FILES_DEAD_AFTER: Duration = Duration::from_secs(5);
/// After an overflow the exact count comes with the next message of each CPU; later than this nobody knows it.
const COUNT_WAIT: Duration = Duration::from_secs(1);
/// When it has lost its real-time priority: before what makes the storm, but not instead of it.
const DEMOTED_NICE: i32 = -5;
/// Messages after which the reader looks how long it has worked: each exec among them costs a look at `/proc`.
const WORKED_EVERY: usize = 64;

/// The group for names, and where its file systems are.
pub(crate) type NameParts = (Arc<NameGroup>, Arc<Marks>);

/// On a file system that was found late, what changed up to so long before is looked at: clocks are coarse, and
/// when it was mounted is known only to the last look. Nanoseconds.
const BEFORE_MARK_NS: i64 = 60_000_000_000;
/// Changes of names that wait for the join. Each may hold a descriptor.
const UNATTRIBUTED_MAX: usize = 256;
/// Turns that they wait: longer than the join itself does.
const UNATTRIBUTED_TURNS_MAX: u32 = 32;

/// What the thread is given.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) group: Arc<Group>,
    pub(crate) names: Option<NameParts>,
    /// Why there is no such group.
    pub(crate) names_reason: String,
    pub(crate) connector: Option<Connector>,
    /// Whether to try for the connector again when it is not there.
    pub(crate) retry: bool,
    pub(crate) outlet: Outlet,
    pub(crate) level: Arc<AtomicU8>,
    pub(crate) witness: Witness,
    pub(crate) stop: OwnedFd,
    /// Read at real-time priority where that is permitted.
    pub(crate) realtime: bool,
    pub(crate) remote: Remote,
    pub(crate) reports: Receiver<Report>,
    pub(crate) bell: Bell,
    pub(crate) places: Places,
    pub(crate) asked: Asked,
    /// Where its turns are counted.
    pub(crate) counters: Arc<Counters>,
}

struct Reader {
    parts: Parts,
    names: Option<Names>,
    names_empty: Moment,
    /// What is read next of names was queued after this. CLOCK_BOOTTIME, nanoseconds.
    names_since_ns: u64,
    names_failed: Option<Instant>,
    unattributed: Vec<Unattributed>,
    joiner: Joiner,
    users: Users,
    twins: Twins,
    sequences: Sequences,
    clocks: Clocks,
    urgency: Urgency,
    running: HashSet<(u32, u64)>,
    own_pid: u32,
    own_image: Option<(u64, u64)>,
    /// The executable of this process, by its name.
    own_path: Vec<u8>,
    openers: Openers,
    files_empty: Moment,
    forks_empty: Moment,
    uncounted: Option<Instant>,
    reread: bool,
    reread_last: Instant,
    retry_at: Instant,
    backoff: Duration,
    files_failed: Option<Instant>,
    deaf_since: Option<Moment>,
}

/// A change of a name by somebody who has just run a program, when it is not known yet which.
struct Unattributed {
    who: Option<(Who, Window)>,
    observation: Observation,
    turns: u32,
}

/// Until `stop` becomes readable.
pub(crate) fn run(parts: Parts) {
    let epoll = match watch(&parts) {
        Ok(epoll) => epoll,
        Err(error) => {
            tracing::error!(%error, "could not wait for the kernel's queues: the sensors end");
            return;
        }
    };
    let mut reader = Reader::new(parts);
    if !reader.parts.names_reason.is_empty() {
        let reason = cut(reader.parts.names_reason.clone());
        reader.parts.outlet.health("names", HealthState::Degraded, reason);
    }
    reader.inventory();
    reader.hurry();
    let mut ready = Vec::with_capacity(4);
    let mut turned = Instant::now();
    loop {
        let pause = reader.pause();
        reader.parts.counters.progress.sensors.waits();
        wait(&epoll, &mut ready, Duration::ZERO);
        if ready.is_empty() && !pause.is_zero() {
            reader.worked();
            wait(&epoll, &mut ready, pause);
            reader.slept();
        }
        if ready.iter().any(|event| event.data.u64() == STOP) {
            reader.parts.outlet.flush_all(Moment::now());
            return;
        }
        let forks = ready.iter().any(|event| event.data.u64() == FORKS);
        if !forks && !pause.is_zero() {
            reader.linger(turned + TURN_MIN);
        }
        turned = Instant::now();
        reader.parts.counters.progress.sensors.works();
        reader.turn(&epoll);
        if reader.files_are_dead() {
            reader.parts.outlet.flush_all(Moment::now());
            // Their numbers may be somebody else's by now: they are never closed.
            let _ = Arc::into_raw(reader.parts.group.clone());
            let _ = reader.parts.names.clone().map(|(group, _)| Arc::into_raw(group));
            tracing::error!("a fanotify descriptor is dead: the sensors end, to be started anew");
            return;
        }
    }
}

fn wait(epoll: &OwnedFd, ready: &mut Vec<epoll::Event>, wait: Duration) {
    let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
    ready.clear();
    match epoll::wait(epoll, rustix::buffer::spare_capacity(ready), Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => tracing::error!(%error, "could not wait for the kernel's queues"),
    }
}

const STOP: u64 = 0;
const FILES: u64 = 1;
const FORKS: u64 = 2;

fn watch(parts: &Parts) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &parts.stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &*parts.group, epoll::EventData::new_u64(FILES), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &parts.asked, epoll::EventData::new_u64(FILES), epoll::EventFlags::IN)?;
    if let Some((names, _)) = &parts.names {
        epoll::add(&epoll, &**names, epoll::EventData::new_u64(FILES), epoll::EventFlags::IN)?;
    }
    if let Some(connector) = &parts.connector {
        epoll::add(&epoll, connector, epoll::EventData::new_u64(FORKS), epoll::EventFlags::IN)?;
    }
    Ok(epoll)
}

impl Reader {
    fn new(parts: Parts) -> Self {
        let now = Moment::now();
        let own_pid = std::process::id();
        let own_image = proc::open_exe(own_pid, |_| false);
        let own_path = own_image.as_ref().map(|image| image.file.path.clone()).unwrap_or_default();
        let own_image = own_image.map(|image| image.key);
        let names = parts.names.clone().map(|(group, marks)| Names::new(group, marks));
        Self {
            parts,
            names,
            names_empty: now,
            names_since_ns: 0,
            names_failed: None,
            unattributed: Vec::new(),
            joiner: Joiner::new(ProcessTable::new(Host::read().boot_id)),
            users: Users::new("/etc/passwd".into()),
            twins: Twins::default(),
            sequences: Sequences::default(),
            clocks: Clocks::default(),
            urgency: Urgency::new(false, Instant::now()),
            running: HashSet::new(),
            own_pid,
            own_image,
            own_path,
            openers: Openers::default(),
            files_empty: now,
            forks_empty: now,
            uncounted: None,
            reread: false,
            reread_last: Instant::now(),
            retry_at: Instant::now() + BACKOFF_MIN,
            backoff: BACKOFF_MIN,
            files_failed: None,
            deaf_since: None,
        }
    }

    fn inventory(&mut self) {
        if self.parts.connector.is_some() {
            let mut everybody: Vec<Facts> = proc::everybody().into_iter().filter_map(proc::facts).collect();
            everybody.sort_by_key(|facts| facts.start_ns); // parents first
            for facts in everybody {
                self.joiner.table.found(&facts, Source::Inventory);
            }
        }
    }

    /// To real-time priority, where that is wanted and permitted. Without it the reader is right as well, but
    /// under load a queue may overflow.
    fn hurry(&mut self) {
        let permitted = if self.parts.realtime {
            let refused = |error| format!("real time is refused (it needs CAP_SYS_NICE): {error}");
            // The nice value counts once it is ordinary again.
            schedule::nice(DEMOTED_NICE).and_then(|()| schedule::realtime()).map_err(refused)
        } else {
            Err("the configuration says so".to_owned())
        };
        self.urgency = Urgency::new(permitted.is_ok(), Instant::now());
        match permitted {
            Ok(()) => tracing::info!("the reader runs at real-time priority"),
            Err(reason) => {
                tracing::info!(reason, "the reader runs at normal priority");
                if self.parts.realtime {
                    let message = cut(format!("runs at normal priority: {reason}"));
                    self.parts.outlet.health("reader", HealthState::Ok, message);
                }
            }
        }
    }

    fn worked(&mut self) {
        let change = self.urgency.worked(Instant::now());
        self.change(change);
    }

    fn slept(&mut self) {
        let change = self.urgency.slept(Instant::now());
        self.change(change);
    }

    fn change(&mut self, change: Option<Change>) {
        let done = match change {
            None => return,
            Some(Change::Realtime) => schedule::realtime(),
            Some(Change::Ordinary) => schedule::ordinary(),
        };
        tracing::debug!(?change, "the reader changes its priority");
        if let Err(error) = done {
            tracing::warn!(%error, ?change, "could not change the reader's priority: it stays as it is");
            self.urgency.refused();
        }
    }

    /// Lets events of files gather until then: each wake-up costs whoever makes them as much as several events.
    /// Processes are never kept waiting, because what `/proc` says of them does not last.
    fn linger(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        self.worked();
        let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        let stop = PollFd::new(&self.parts.stop, PollFlags::IN);
        let connector = self.parts.connector.as_ref().map(|connector| PollFd::new(connector, PollFlags::IN));
        let mut polled: Vec<PollFd<'_>> = [Some(stop), connector].into_iter().flatten().collect();
        let _ = rustix::event::poll(&mut polled, Some(&left)); // interrupted: a turn comes early
        self.slept();
    }

    fn pause(&self) -> Duration {
        if self.joiner.is_waiting() || !self.unattributed.is_empty() {
            Duration::ZERO
        } else if self.parts.outlet.is_waiting()
            || self.files_failed.is_some()
            || self.names_failed.is_some()
            || self.names.as_ref().is_some_and(Names::is_waiting)
        {
            RETRY
        } else {
            IDLE
        }
    }

    fn turn(&mut self, epoll: &OwnedFd) {
        let now = Moment::now();
        if let Some(Order::Reconnect { since, why }) = self.parts.witness.turned() {
            self.disconnect(since, why);
        }
        // Names first: what ran a program and then changed a name is in the batch of content that comes after.
        let named = self.read_names(now);
        let named_until_ns = Moment::now().uptime_ns;
        let (events, emptied) = self.read_files(now);
        let read = Read { from_ns: now.uptime_ns, until_ns: Moment::now().uptime_ns, emptied };
        self.parts.places.begin_turn();
        self.follow_processes(now);
        let looks = events.into_iter().filter_map(|event| self.look(event, now)).collect();
        let (looks, duplicates) = {
            let paths = self.parts.outlet.paths();
            self.twins.merge(looks, Instant::now(), |file| paths.cover_file(file))
        };
        (0..duplicates).for_each(|_| self.parts.outlet.duplicate());
        let batch: Vec<Seen> = looks.into_iter().filter_map(|look| self.admit(look, now)).collect();
        let outcomes = match self.parts.connector {
            Some(_) => self.joiner.see(batch, read),
            None => self.joiner.see_alone(batch),
        };
        for outcome in outcomes {
            self.hand_on(outcome);
        }
        self.attribute_names(now);
        if let Some(batch) = named {
            let read = Read { from_ns: now.uptime_ns, until_ns: named_until_ns, emptied: batch.emptied };
            self.follow_names(batch, read, now);
        }
        self.answer();
        self.reread_if_due(now);
        self.connect_if_due(epoll);
        self.parts.places.end_turn();
        self.hear_of_mounts();
        self.parts.outlet.flush(now);
        self.worked();
    }

    fn hear_of_mounts(&mut self) {
        while let Ok(report) = self.parts.reports.try_recv() {
            match report {
                Report::Troubles(troubles) => {
                    let state = if troubles.is_empty() { HealthState::Ok } else { HealthState::Degraded };
                    self.parts.outlet.health("mounts", state, cut(troubles.join("; ")));
                }
                Report::Late(late) => self.look_late(late),
            }
        }
    }

    /// A file system had no mark for a while: that is a gap, and detection looks at what is new on it.
    fn look_late(&mut self, late: Late) {
        let paths = self.parts.outlet.paths();
        if !paths.meets(&late.path) || !late.private && paths.excludes(&late.path) {
            return self.parts.outlet.unwatched();
        }
        self.parts.outlet.lost(GapReason::Mount, None, late.from, late.to, &cut(late.detail));
        let since = late.from.unix_ns.min(late.to.unix_ns.saturating_sub(BEFORE_MARK_NS));
        if let Some(folder) = late.folder {
            let (path, reason, at) = (late.path, "mounted", late.to);
            let view = Observation::CameIntoView { folder, path, since_unix_ns: since, reason, at };
            self.parts.outlet.pass(view, at);
        }
    }

    fn hand_on(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Written { process, file, opened: true, at } => self.opened(process, file, at),
            Outcome::Written { process, file, opened: false, at } => {
                let process = process.map(|process| self.with_user(process));
                let trigger = wire::Trigger::CloseWrite;
                self.parts
                    .outlet
                    .pass(Observation::FileWritten { file, process, trigger, old_path: Vec::new(), at }, at);
            }
            Outcome::Ran { process, image, at } => self.ran(process, image, false, at),
            Outcome::Ended { process, status, at } => {
                if self.running.remove(&(process.pid, process.start_ns)) {
                    let process = self.with_user(process);
                    let status = Some(status);
                    self.parts.outlet.pass(Observation::ProcessEnded { process, status, at }, at);
                }
            }
        }
    }

    /// A guarded file was opened. The agent's own commands may, whichever version they are.
    fn opened(&mut self, process: Option<wire::Process>, file: OpenFile, at: Moment) {
        let process = process.map(|process| self.with_user(process));
        let executable = process.as_ref().map(|process| process.executable.clone()).unwrap_or_default();
        if !executable.is_empty() && executable == self.own_path {
            return self.parts.outlet.own();
        }
        match self.openers.tell(executable, Instant::now()) {
            Some(untold) => {
                let path = file.path;
                self.parts.outlet.pass(Observation::GuardedOpened { path, process, untold, at }, at);
            }
            None => self.parts.outlet.duplicate(),
        }
    }

    /// Who some process is, or was a moment ago.
    fn answer(&mut self) {
        while let Some(question) = self.parts.asked.next() {
            // Not told of: before the agent began, or without the connector.
            self.ask(question.pid, None, false);
            let table = &self.joiner.table;
            let describe = |pid| table.describe(table.newest(pid), Which::Newest);
            let is_older = |process: &wire::Process| process.start_ns <= question.at.uptime_ns;
            let process = describe(question.pid).filter(is_older);
            let process = process.map(|process| self.with_user(process));
            let lately = self.joiner.table.lately(&question.names, question.at.uptime_ns);
            let lately = lately.into_iter().map(|process| self.with_user(process)).collect();
            question.answer(Answer { process, lately });
        }
    }

    fn ran(&mut self, process: wire::Process, image: Option<Program>, found: bool, at: Moment) {
        let parent = process.parent.as_ref().map_or(0, |parent| parent.pid);
        let key = image.as_ref().map(|image| image.key);
        if parent == self.own_pid && key.is_some() && key == self.own_image {
            return self.parts.outlet.own(); // a worker
        }
        let paths = self.parts.outlet.paths();
        let image = image.map(|image| image.file);
        if !image.as_ref().is_some_and(|file| paths.cover_file(file)) && !paths.cover(&process.executable) {
            return self.parts.outlet.unwatched();
        }
        let process = self.with_user(process);
        let id = (process.pid, process.start_ns);
        let run = Observation::ProgramRun { process, image, found, at };
        if self.parts.outlet.pass(run, at)
            && self.parts.connector.is_some()
            && self.running.len() < RUNNING_MAX
        {
            self.running.insert(id);
        }
    }

    fn with_user(&mut self, mut process: wire::Process) -> wire::Process {
        if let Some(uid) = process.uid {
            process.user_name = self.users.name(uid, Instant::now());
        }
        process
    }
}

fn cut(mut text: String) -> String {
    let end = text.floor_char_boundary(vidette_protocol::limits::TEXT_BYTES_MAX);
    text.truncate(end);
    text
}
