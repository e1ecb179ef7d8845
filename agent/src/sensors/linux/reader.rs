//! The reader: one thread, both kernel queues, one turn after another.
//!
//! A turn reads a batch of fanotify, drains the process connector to empty, applies its part to the process
//! table, then handles the batch. That order is what makes attribution a join and not a guess. Assumes that the
//! marks are somebody else's (`mounts`). Never blocks on detection: see `outlet`.

use super::follow::{self, Clocks, Drained, Sequences};
use super::join::{Joiner, Outcome, Program, Read, Seen};
use super::mounts::Remote;
use super::proc;
use super::urgency::{Change, Urgency};
use crate::host::{Host, Moment};
use crate::sensors::outlet::Outlet;
use crate::sensors::processes::{Facts, ProcessTable, Standing};
use crate::sensors::users::Users;
use crate::sensors::{Level, Observation};
use crate::sys::connector::Connector;
use crate::sys::fanotify::{self, Group, Target};
use crate::sys::schedule;
use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, epoll};
use rustix::time::Timespec;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, GapReason, HealthState, Source};

/// Runs that were told and whose end will be. Beyond it an end is not told.
const RUNNING_MAX: usize = 65_536;
/// How often the loop turns with nothing to do, and with something that waits for room.
const IDLE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);
/// Pauses between attempts to get the connector back.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// `/proc` is read again at most this often after losses.
const REREAD_INTERVAL: Duration = Duration::from_secs(1);
/// After an overflow the exact count comes with the next message of each CPU; later than this nobody knows it.
const COUNT_WAIT: Duration = Duration::from_secs(1);
/// Messages after which the reader looks how long it has worked: each exec among them costs a look at `/proc`.
const WORKED_EVERY: usize = 64;

/// What the thread is given.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) group: Arc<Group>,
    pub(crate) connector: Option<Connector>,
    /// Whether to try for the connector again when it is not there.
    pub(crate) retry: bool,
    pub(crate) outlet: Outlet,
    pub(crate) level: Arc<AtomicU8>,
    pub(crate) stop: OwnedFd,
    /// Read at real-time priority where that is permitted.
    pub(crate) realtime: bool,
    pub(crate) remote: Remote,
    pub(crate) reports: Receiver<Vec<String>>,
}

struct Reader {
    parts: Parts,
    joiner: Joiner,
    users: Users,
    sequences: Sequences,
    clocks: Clocks,
    urgency: Urgency,
    running: HashSet<(u32, u64)>,
    own_pid: u32,
    own_image: Option<(u64, u64)>,
    files_empty: Moment,
    forks_empty: Moment,
    uncounted: Option<Instant>,
    reread: bool,
    reread_last: Instant,
    retry_at: Instant,
    backoff: Duration,
    files_failed: bool,
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
    reader.inventory();
    reader.hurry();
    let mut ready = Vec::with_capacity(4);
    loop {
        let pause = reader.pause();
        wait(&epoll, &mut ready, Duration::ZERO);
        if ready.is_empty() && !pause.is_zero() {
            reader.worked();
            wait(&epoll, &mut ready, pause);
            reader.slept();
        }
        if ready.iter().any(|event| event.data.u64() == STOP) {
            reader.parts.outlet.flush(Moment::now());
            return;
        }
        reader.turn(&epoll);
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
const QUEUES: u64 = 1;

fn watch(parts: &Parts) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &parts.stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &*parts.group, epoll::EventData::new_u64(QUEUES), epoll::EventFlags::IN)?;
    if let Some(connector) = &parts.connector {
        epoll::add(&epoll, connector, epoll::EventData::new_u64(QUEUES), epoll::EventFlags::IN)?;
    }
    Ok(epoll)
}

impl Reader {
    fn new(parts: Parts) -> Self {
        let now = Moment::now();
        let own_pid = std::process::id();
        let own_image = proc::open_exe(own_pid, |_| false).map(|image| image.key);
        Self {
            parts,
            joiner: Joiner::new(ProcessTable::new(Host::read().boot_id)),
            users: Users::new("/etc/passwd".into()),
            sequences: Sequences::default(),
            clocks: Clocks::default(),
            urgency: Urgency::new(false, Instant::now()),
            running: HashSet::new(),
            own_pid,
            own_image,
            files_empty: now,
            forks_empty: now,
            uncounted: None,
            reread: false,
            reread_last: Instant::now(),
            retry_at: Instant::now() + BACKOFF_MIN,
            backoff: BACKOFF_MIN,
            files_failed: false,
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
            schedule::realtime().map_err(refused)
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

    fn pause(&self) -> Duration {
        if self.joiner.is_waiting() {
            Duration::ZERO
        } else if self.parts.outlet.is_waiting() || self.files_failed {
            RETRY
        } else {
            IDLE
        }
    }

    fn turn(&mut self, epoll: &OwnedFd) {
        let now = Moment::now();
        let (events, emptied) = self.read_files(now);
        let read = Read { from_ns: now.uptime_ns, until_ns: Moment::now().uptime_ns, emptied };
        self.follow_processes(now);
        let batch: Vec<Seen> = events.into_iter().filter_map(|event| self.look(event, now)).collect();
        let outcomes = match self.parts.connector {
            Some(_) => self.joiner.see(batch, read),
            None => self.joiner.see_alone(batch),
        };
        for outcome in outcomes {
            self.hand_on(outcome);
        }
        self.reread_if_due(now);
        self.connect_if_due(epoll);
        while let Ok(troubles) = self.parts.reports.try_recv() {
            let state = if troubles.is_empty() { HealthState::Ok } else { HealthState::Degraded };
            let message = cut(troubles.join("; "));
            self.parts.outlet.health("mounts", state, message);
        }
        self.parts.outlet.flush(now);
        self.worked();
    }

    fn read_files(&mut self, now: Moment) -> (Vec<fanotify::Event>, bool) {
        match self.parts.group.read() {
            Ok(batch) => {
                if batch.emptied && !batch.events.iter().any(is_overflow) {
                    self.files_empty = now;
                }
                if std::mem::take(&mut self.files_failed) {
                    self.parts.outlet.health("fanotify", HealthState::Ok, "reads again".into());
                }
                (batch.events, batch.emptied)
            }
            Err(error) if is_exhausted(error.raw_os_error()) => {
                // Before 6.13 the event is dropped and this is all one hears of it.
                self.no_descriptor(now, &error);
                (Vec::new(), false)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.files_failed, true) {
                    let message = format!("could not read file events: {error}");
                    self.parts.outlet.health("fanotify", HealthState::Failed, message);
                }
                (Vec::new(), true)
            }
        }
    }

    fn no_descriptor(&mut self, now: Moment, error: &std::io::Error) {
        let detail = format!("the kernel could not open a file for the agent: {error}");
        self.parts.outlet.lost(GapReason::Descriptors, Some(1), self.files_empty, now, &detail);
    }

    fn follow_processes(&mut self, now: Moment) {
        let Some(connector) = &self.parts.connector else { return };
        self.clocks.look(follow::read_clocks);
        let drained = match follow::drain(connector, &mut self.sequences) {
            Ok(drained) => drained,
            Err(error) => return self.disconnect(&error),
        };
        self.note_losses(&drained, now);
        let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = follow::ended(&drained.messages);
        for (at, message) in drained.messages.iter().enumerate() {
            if at % WORKED_EVERY == WORKED_EVERY - 1 {
                self.worked();
            }
            let at = self.clocks.moment(message, now);
            let is_remote = |device| remote.contains(&device);
            if let Some(told) = follow::tell(message, at, &self.joiner.table, &ended, is_remote) {
                self.joiner.tell(told, at);
            }
        }
        if drained.overflowed || drained.lost > 0 {
            self.joiner.lost(now); // what was just told may be out of date as well
        }
    }

    fn note_losses(&mut self, drained: &Drained, now: Moment) {
        const DETAIL: &str = "the process connector's buffer was full";
        let reason = GapReason::ProcessConnector;
        if drained.overflowed {
            self.uncounted = Some(Instant::now() + COUNT_WAIT);
        }
        if drained.lost > 0 {
            self.uncounted = None;
            self.parts.outlet.lost(reason, Some(drained.lost), self.forks_empty, now, DETAIL);
        } else if self.uncounted.is_some_and(|until| Instant::now() > until) {
            self.uncounted = None;
            self.parts.outlet.lost(reason, None, self.forks_empty, now, DETAIL);
        }
        if drained.overflowed || drained.lost > 0 {
            self.joiner.lost(now);
            self.reread = true;
        }
        if self.uncounted.is_none() {
            self.forks_empty = now;
        }
    }

    /// From an event to what the join needs of it: its descriptor's name and type, and whose it is.
    fn look(&mut self, event: fanotify::Event, now: Moment) -> Option<Seen> {
        if is_overflow(&event) {
            let detail = "the kernel's queue of file events was full";
            self.parts.outlet.lost(GapReason::KernelQueue, None, self.files_empty, now, detail);
            return None;
        }
        let descriptor = match event.target {
            Target::Open(descriptor) => descriptor,
            // A FIFO without a writer, a device without a driver: no file.
            Target::Failed(libc::ENXIO | libc::ENODEV) => {
                self.parts.outlet.unwatched();
                return None;
            }
            Target::Failed(errno) => {
                self.no_descriptor(now, &std::io::Error::from_raw_os_error(errno));
                return None;
            }
        };
        let run = (event.mask & fanotify::OPEN_EXEC != 0)
            .then(|| descriptor.try_clone().ok().and_then(proc::program))
            .flatten();
        let written = if event.mask & fanotify::CLOSE_WRITE == 0 {
            None
        } else if event.pid == self.own_pid || self.parent(event.pid) == self.own_pid {
            self.parts.outlet.own();
            None
        } else {
            let file = proc::open_file(descriptor).map(|(file, _)| file);
            let file = file.filter(|file| self.parts.outlet.paths().cover(&file.path));
            if file.is_none() {
                self.parts.outlet.unwatched();
            }
            file
        };
        if run.is_none() && written.is_none() {
            return None;
        }
        self.ask(event.pid, event.pidfd.as_ref());
        let standing = self.standing(&event.pidfd, event.reaped, event.pid);
        Some(Seen { pid: event.pid, standing, written, run, at: now })
    }

    /// What has become of whoever caused an event, asked after the connector was drained.
    fn standing(&self, pidfd: &Option<OwnedFd>, reaped: bool, pid: u32) -> Standing {
        match pidfd {
            Some(pidfd) if has_ended(pidfd) => Standing::Ended,
            Some(_) => Standing::Lives,
            None if !reaped => Standing::Unknown,
            None => {
                let table = &self.joiner.table;
                // Its exit may not be told yet: only `/proc` knows that somebody else is there.
                let there = table.has_former(pid)
                    && table.lives(pid)
                    && proc::start_ns(pid).is_some_and(|start| follow::is_start(start, table.start_ns(pid)));
                if there { Standing::Before } else { Standing::Gone }
            }
        }
    }

    /// The parent of somebody who just did something: from the table, or from `/proc` when nobody keeps one.
    fn parent(&mut self, pid: u32) -> u32 {
        if self.joiner.table.knows(pid) {
            return self.joiner.table.parent(pid);
        }
        if self.parts.connector.is_some() { 0 } else { proc::facts(pid).map_or(0, |facts| facts.parent) }
    }

    /// Somebody unknown: `/proc` says, if the process is still there after it was read.
    fn ask(&mut self, pid: u32, pidfd: Option<&OwnedFd>) {
        if pid == 0 || self.joiner.table.knows(pid) || (self.parts.group.pidfd && pidfd.is_none()) {
            return;
        }
        let Some(facts) = proc::facts(pid) else { return };
        if pidfd.is_some_and(has_ended) {
            return;
        }
        if !self.joiner.table.knows(facts.parent)
            && let Some(parent) = proc::facts(facts.parent)
        {
            self.joiner.table.found(&parent, Source::Proc);
        }
        self.joiner.table.found(&facts, Source::Proc);
    }

    fn hand_on(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Written { process, file, at } => {
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

    fn ran(&mut self, process: wire::Process, image: Option<Program>, found: bool, at: Moment) {
        let parent = process.parent.as_ref().map_or(0, |parent| parent.pid);
        let key = image.as_ref().map(|image| image.key);
        if parent == self.own_pid && key.is_some() && key == self.own_image {
            return self.parts.outlet.own(); // a worker
        }
        let paths = self.parts.outlet.paths();
        let image = image.map(|image| image.file);
        if !image.as_ref().is_some_and(|file| paths.cover(&file.path)) && !paths.cover(&process.executable) {
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

    /// After losses: who is there, who is gone, who runs something else than we think.
    fn reread_if_due(&mut self, now: Moment) {
        if !self.reread || self.reread_last.elapsed() < REREAD_INTERVAL || self.joiner.is_waiting() {
            return;
        }
        self.reread = false;
        self.reread_last = Instant::now();
        let there: HashSet<u32> = proc::everybody().into_iter().collect();
        for pid in self.joiner.table.living().into_iter().filter(|pid| !there.contains(pid)) {
            self.gone(pid, now);
        }
        for facts in there.into_iter().filter_map(proc::facts) {
            self.compare(&facts, now);
        }
    }

    fn gone(&mut self, pid: u32, at: Moment) {
        let process = self.joiner.table.describe(pid, crate::sensors::processes::Which::Newest);
        self.joiner.table.exit(pid, at.uptime_ns);
        if let Some(process) = process.filter(|process| self.running.remove(&(pid, process.start_ns))) {
            let process = self.with_user(process);
            self.parts.outlet.pass(Observation::ProcessEnded { process, status: None, at }, at);
        }
    }

    fn compare(&mut self, facts: &Facts, at: Moment) {
        if facts.executable.is_empty() {
            self.joiner.table.found(facts, Source::Proc);
            return; // a kernel thread, or one that ended and nobody waited for
        }
        let table = &mut self.joiner.table;
        let new = table.found(facts, Source::Proc);
        let other = !new && table.executable(facts.pid) != facts.executable;
        if other {
            table.exec(facts.pid, Some(facts));
            table.settle(facts.pid, &facts.executable, Source::Proc, true);
        }
        table.confirm(facts.pid);
        if (new || other)
            && let Some(process) = table.describe(facts.pid, crate::sensors::processes::Which::Newest)
        {
            let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let image = proc::open_exe(facts.pid, |device| remote.contains(&device));
            self.ran(process, image, true, at);
        }
    }

    fn disconnect(&mut self, error: &std::io::Error) {
        tracing::warn!(%error, "the process connector failed: it will be tried again");
        let message = format!("could not read process events: {error}");
        self.parts.outlet.health("process-connector", HealthState::Failed, message);
        let detail = "the process connector failed";
        let now = Moment::now();
        self.parts.outlet.lost(GapReason::SensorDown, None, self.forks_empty, now, detail);
        self.parts.connector = None;
        self.joiner.forget();
        self.running.clear();
        self.parts.level.store(Level::Names.to_number(), Ordering::Relaxed);
        self.retry_at = Instant::now() + self.backoff;
    }

    fn connect_if_due(&mut self, epoll: &OwnedFd) {
        if !self.parts.retry || self.parts.connector.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let connected = Connector::listen().and_then(|connector| {
            let data = epoll::EventData::new_u64(QUEUES);
            epoll::add(epoll, &connector, data, epoll::EventFlags::IN)?;
            Ok(connector)
        });
        match connected {
            Ok(connector) => {
                self.parts.connector = Some(connector);
                self.sequences = Sequences::default();
                self.backoff = BACKOFF_MIN;
                self.parts.level.store(Level::Full.to_number(), Ordering::Relaxed);
                self.parts.outlet.health("process-connector", HealthState::Ok, "connected".into());
                self.inventory();
            }
            Err(error) => {
                tracing::debug!(%error, "the process connector is still refused");
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                self.retry_at = Instant::now() + self.backoff;
            }
        }
    }
}

fn is_overflow(event: &fanotify::Event) -> bool {
    event.mask & fanotify::QUEUE_OVERFLOW != 0
}

fn is_exhausted(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// A pidfd becomes readable when its process has ended (pidfd_open(2)).
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(pidfd, PollFlags::IN)];
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut ready, Some(&none)), Ok(0))
}

fn cut(mut text: String) -> String {
    let end = text.floor_char_boundary(vidette_protocol::limits::TEXT_BYTES_MAX);
    text.truncate(end);
    text
}
