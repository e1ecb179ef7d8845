//! The reader: one thread, all kernel queues, one turn after another.
//!
//! A turn reads a batch of each fanotify group, drains the process connector to empty, applies its part to the
//! process table, then handles the batches, content before names. That order is what makes attribution a join and not a guess. Assumes that the
//! marks are somebody else's (`mounts`). Never blocks on detection: see `outlet`.

use super::follow::{self, Drained, Sequences};
use super::join::{Joiner, Outcome, Program, Seen};
use super::mounts::Remote;
use super::names::marks::Marks;
use super::names::{Change, Names};
use super::proc;
use crate::host::{Host, Moment};
use crate::sensors::outlet::Outlet;
use crate::sensors::processes::{Facts, ProcessTable};
use crate::sensors::users::Users;
use crate::sensors::{Level, Observation};
use crate::sys::connector::Connector;
use crate::sys::fanotify::{self, Group, NameBatch, NameGroup, Target};
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

/// The group for names, and where its file systems are.
pub(crate) type NameParts = (Arc<NameGroup>, Arc<Marks>);

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
    pub(crate) stop: OwnedFd,
    pub(crate) remote: Remote,
    pub(crate) reports: Receiver<Vec<String>>,
}

struct Reader {
    parts: Parts,
    names: Option<Names>,
    names_empty: Moment,
    names_failed: bool,
    unattributed: Vec<Unattributed>,
    joiner: Joiner,
    users: Users,
    sequences: Sequences,
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

/// A change of a name by somebody who has just run a program, when it is not known yet which.
struct Unattributed {
    pid: u32,
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
    let mut ready = Vec::with_capacity(4);
    loop {
        let wait = reader.pause();
        let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        ready.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut ready), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "could not wait for the kernel's queues"),
        }
        if ready.iter().any(|event| event.data.u64() == STOP) {
            reader.parts.outlet.flush(Moment::now());
            return;
        }
        reader.turn(&epoll);
    }
}

const STOP: u64 = 0;
const QUEUES: u64 = 1;

fn watch(parts: &Parts) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &parts.stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &*parts.group, epoll::EventData::new_u64(QUEUES), epoll::EventFlags::IN)?;
    if let Some((names, _)) = &parts.names {
        epoll::add(&epoll, &**names, epoll::EventData::new_u64(QUEUES), epoll::EventFlags::IN)?;
    }
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
        let names = parts.names.clone().map(|(group, marks)| Names::new(group, marks));
        Self {
            parts,
            names,
            names_empty: now,
            names_failed: false,
            unattributed: Vec::new(),
            joiner: Joiner::new(ProcessTable::new(Host::read().boot_id)),
            users: Users::new("/etc/passwd".into()),
            sequences: Sequences::default(),
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
            for facts in proc::everybody().into_iter().filter_map(proc::facts) {
                self.joiner.table.found(&facts, Source::Inventory);
            }
        }
    }

    fn pause(&self) -> Duration {
        if self.joiner.is_waiting() || !self.unattributed.is_empty() {
            Duration::ZERO
        } else if self.parts.outlet.is_waiting()
            || self.files_failed
            || self.names_failed
            || self.names.as_ref().is_some_and(Names::is_waiting)
        {
            RETRY
        } else {
            IDLE
        }
    }

    fn turn(&mut self, epoll: &OwnedFd) {
        let now = Moment::now();
        // Names first: the program that changed one was opened before, so it is in a batch of files by then.
        let named = self.read_names(now);
        let (events, emptied) = self.read_files(now);
        self.follow_processes(now);
        let batch: Vec<Seen> = events.into_iter().filter_map(|event| self.look(event, now)).collect();
        let outcomes = match self.parts.connector {
            Some(_) => self.joiner.see(batch, emptied, now),
            None => self.joiner.see_alone(batch),
        };
        for outcome in outcomes {
            self.hand_on(outcome);
        }
        self.attribute_names(now);
        if let Some(batch) = named {
            self.follow_names(batch, now);
        }
        self.reread_if_due(now);
        self.connect_if_due(epoll);
        while let Ok(troubles) = self.parts.reports.try_recv() {
            let state = if troubles.is_empty() { HealthState::Ok } else { HealthState::Degraded };
            let message = cut(troubles.join("; "));
            self.parts.outlet.health("mounts", state, message);
        }
        self.parts.outlet.flush(now);
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

    fn read_names(&mut self, now: Moment) -> Option<NameBatch> {
        let names = self.names.as_mut()?;
        match names.read() {
            Ok(batch) => {
                if std::mem::take(&mut self.names_failed) {
                    self.parts.outlet.health("names", HealthState::Ok, "reads again".into());
                }
                Some(batch)
            }
            Err(error) if is_exhausted(error.raw_os_error()) => {
                names.forget();
                let detail = format!("the kernel could not open a process for the agent: {error}");
                self.parts.outlet.lost(GapReason::Descriptors, None, self.names_empty, now, &detail);
                None
            }
            Err(error) => {
                names.forget();
                if !std::mem::replace(&mut self.names_failed, true) {
                    let message = format!("could not read events of names: {error}");
                    self.parts.outlet.health("names", HealthState::Failed, message);
                    let detail = "events of names could not be read";
                    self.parts.outlet.lost(GapReason::KernelQueue, None, self.names_empty, now, detail);
                }
                None
            }
        }
    }

    fn follow_names(&mut self, mut batch: NameBatch, now: Moment) {
        let Some(mut names) = self.names.take() else { return };
        batch.close_pidfds(|pid| self.joiner.table.knows(pid));
        let mut overflowed = false;
        let with_pidfd = names.group().pidfd;
        let mut last = (0, false); // whoever does one thing to names mostly does many
        for event in batch.events() {
            if event.pid != last.0 {
                let own = event.pid == self.own_pid || self.parent(event.pid) == self.own_pid;
                last = (event.pid, own);
            }
            if event.mask & fanotify::QUEUE_OVERFLOW != 0 {
                overflowed = true;
                names.forget();
                let detail = "the kernel's queue of name events was full";
                self.parts.outlet.lost(GapReason::KernelQueue, None, self.names_empty, now, detail);
            } else if last.1 {
                names.follow_own(&event);
                self.parts.outlet.own();
            } else {
                for change in names.follow(&event, self.parts.outlet.paths(), now).drain(..) {
                    self.name_changed(change, event.pidfd, with_pidfd, now);
                }
            }
        }
        if batch.emptied && !overflowed {
            self.names_empty = now;
        }
        if let Some(troubles) = names.troubles() {
            let state = if troubles.is_empty() { HealthState::Ok } else { HealthState::Degraded };
            let message = if troubles.is_empty() {
                "names are followed on every file system that is covered".to_owned()
            } else {
                format!("names are not followed on {}", troubles.join("; "))
            };
            self.parts.outlet.health("names", state, cut(message));
        }
        for change in names.end_turn(batch, self.parts.outlet.paths()) {
            self.name_changed(change, None, true, now);
        }
        self.names = Some(names);
    }

    fn name_changed(&mut self, change: Change, pidfd: Option<&OwnedFd>, with_pidfd: bool, now: Moment) {
        let (pid, observation) = match change {
            Change::Unwatched => return self.parts.outlet.unwatched(),
            Change::Duplicate => return self.parts.outlet.duplicate(),
            Change::Refused(errno) => {
                return self.no_descriptor(now, &std::io::Error::from_raw_os_error(errno));
            }
            Change::Observed(pid, observation) => (pid, *observation),
        };
        self.ask(pid, pidfd, with_pidfd);
        let waits = self.joiner.table.unsettled(pid) > 0;
        if waits && self.unattributed.len() < UNATTRIBUTED_MAX {
            self.unattributed.push(Unattributed { pid, observation, turns: 0 });
        } else {
            self.pass_name(pid, observation, now);
        }
    }

    /// Hands on what waited until it was known which program its process runs.
    fn attribute_names(&mut self, now: Moment) {
        for mut waiting in std::mem::take(&mut self.unattributed) {
            waiting.turns += 1;
            if self.joiner.table.unsettled(waiting.pid) > 0 && waiting.turns < UNATTRIBUTED_TURNS_MAX {
                self.unattributed.push(waiting);
            } else {
                self.pass_name(waiting.pid, waiting.observation, now);
            }
        }
    }

    fn pass_name(&mut self, pid: u32, mut observation: Observation, now: Moment) {
        if let Observation::FileWritten { process, .. } | Observation::NameChanged { process, .. } =
            &mut observation
        {
            *process = self.joiner.table.describe(pid, crate::sensors::processes::Which::Settled);
            *process = process.take().map(|process| self.with_user(process));
        }
        self.parts.outlet.pass(observation, now);
    }

    fn no_descriptor(&mut self, now: Moment, error: &std::io::Error) {
        let detail = format!("the kernel could not open a file for the agent: {error}");
        self.parts.outlet.lost(GapReason::Descriptors, Some(1), self.files_empty, now, &detail);
    }

    fn follow_processes(&mut self, now: Moment) {
        let Some(connector) = &self.parts.connector else { return };
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let monotonic = Duration::new(
            u64::try_from(monotonic.tv_sec).unwrap_or(0),
            u32::try_from(monotonic.tv_nsec).unwrap_or(0),
        );
        let monotonic_ns = u64::try_from(monotonic.as_nanos()).unwrap_or(u64::MAX);
        let drained = match follow::drain(connector, &mut self.sequences) {
            Ok(drained) => drained,
            Err(error) => return self.disconnect(&error),
        };
        self.note_losses(&drained, now);
        let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for message in &drained.messages {
            let at = follow::moment(message, now, monotonic_ns);
            if let Some(told) =
                follow::tell(message, at, &self.joiner.table, |device| remote.contains(&device))
            {
                self.joiner.tell(told, at);
            }
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
        self.reread |= drained.overflowed || drained.lost > 0;
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
        self.ask(event.pid, event.pidfd.as_ref(), self.parts.group.pidfd);
        Some(Seen { pid: event.pid, written, run, at: now })
    }

    /// The parent of somebody who just did something: from the table, or from `/proc` when nobody keeps one.
    fn parent(&mut self, pid: u32) -> u32 {
        if self.joiner.table.knows(pid) {
            return self.joiner.table.parent(pid);
        }
        if self.parts.connector.is_some() { 0 } else { proc::facts(pid).map_or(0, |facts| facts.parent) }
    }

    /// Somebody unknown: `/proc` says, if the process is still there after it was read.
    fn ask(&mut self, pid: u32, pidfd: Option<&OwnedFd>, with_pidfd: bool) {
        if pid == 0 || self.joiner.table.knows(pid) || (with_pidfd && pidfd.is_none()) {
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
        self.joiner.table.exit(pid);
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
