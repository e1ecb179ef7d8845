//! The reader: one thread, all kernel queues, one turn after another.
//!
//! A turn reads a batch of each fanotify group, drains the process connector to empty, applies its part to the
//! process table, then handles the batches, content before names. That order is what makes attribution a join and
//! not a guess. Assumes that the marks are somebody else's (`mounts`). Never blocks on detection: see `outlet`.

use super::exchange::{Bell, Late, Report};
use super::follow::{self, Clocks, Drained, Sequences};
use super::join::{Joiner, Outcome, Program, Read, Seen, Told};
use super::mounts::Remote;
use super::names::marks::Marks;
use super::names::{self, Names};
use super::places::Places;
use super::proc;
use super::proofs::{Order, Witness};
use super::twins::{Look, Twins};
use super::urgency::{Change, Urgency};
use crate::host::{Host, Moment};
use crate::sensors::outlet::Outlet;
use crate::sensors::processes::{Facts, Holder, ProcessTable, Standing, Which, Who, Window};
use crate::sensors::users::Users;
use crate::sensors::{Level, Observation};
use crate::sys::connector::{Connector, What};
use crate::sys::fanotify::{self, Group, NameBatch, NameEvent, NameGroup, Target};
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
/// A fanotify descriptor that can't be read for this long is not tried any more.
const FILES_DEAD_AFTER: Duration = Duration::from_secs(5);
/// After an overflow the exact count comes with the next message of each CPU; later than this nobody knows it.
const COUNT_WAIT: Duration = Duration::from_secs(1);
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
    who: Option<Who>,
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
        if reader.files_are_dead() {
            reader.parts.outlet.flush(Moment::now());
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

    fn read_files(&mut self, now: Moment) -> (Vec<fanotify::Event>, bool) {
        match self.parts.group.read() {
            Ok(batch) => {
                if batch.emptied && !batch.events.iter().any(is_overflow) {
                    self.files_empty = now;
                }
                if self.files_failed.take().is_some() {
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
                if self.files_failed.is_none() {
                    self.files_failed = Some(Instant::now());
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
                if self.names_failed.take().is_some() {
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
                if self.names_failed.replace(self.names_failed.unwrap_or_else(Instant::now)).is_none() {
                    let message = format!("could not read events of names: {error}");
                    self.parts.outlet.health("names", HealthState::Failed, message);
                    let detail = "events of names could not be read";
                    self.parts.outlet.lost(GapReason::KernelQueue, None, self.names_empty, now, detail);
                }
                None
            }
        }
    }

    fn follow_names(&mut self, batch: NameBatch, read: Read, now: Moment) {
        let Some(mut names) = self.names.take() else { return };
        let mut overflowed = false;
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
                if let Some(place) = event.place.filter(|_| event.mask & fanotify::RENAME != 0) {
                    self.parts.witness.named(place.name);
                }
                self.parts.outlet.own();
            } else {
                for change in names.follow(&event, self.parts.outlet.paths(), now).drain(..) {
                    self.name_changed(change, Some(&event), read, now);
                }
            }
        }
        if batch.emptied && !overflowed {
            self.names_empty = now;
            self.names_since_ns = self.names_since_ns.max(read.from_ns);
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
            self.name_changed(change, None, read, now);
        }
        self.names = Some(names);
    }

    fn name_changed(
        &mut self,
        change: names::Change,
        event: Option<&NameEvent<'_>>,
        read: Read,
        now: Moment,
    ) {
        let (pid, observation) = match change {
            names::Change::Unwatched => return self.parts.outlet.unwatched(),
            names::Change::Duplicate => return self.parts.outlet.duplicate(),
            names::Change::Refused(errno) => {
                return self.no_descriptor(now, &std::io::Error::from_raw_os_error(errno));
            }
            names::Change::Observed(pid, observation) => (pid, *observation),
        };
        let who = self.author(pid, event.filter(|event| event.pid == pid), read);
        let waits = who.is_some_and(|who| self.joiner.table.unsettled(who) > 0);
        if waits && self.unattributed.len() < UNATTRIBUTED_MAX {
            self.unattributed.push(Unattributed { who, observation, turns: 0 });
        } else {
            self.pass_name(who, observation, now);
        }
    }

    /// Hands on what waited until it was known which program its process runs.
    fn attribute_names(&mut self, now: Moment) {
        for mut waiting in std::mem::take(&mut self.unattributed) {
            waiting.turns += 1;
            let waits = waiting.who.is_some_and(|who| self.joiner.table.unsettled(who) > 0);
            if waits && waiting.turns < UNATTRIBUTED_TURNS_MAX {
                self.unattributed.push(waiting);
            } else {
                self.pass_name(waiting.who, waiting.observation, now);
            }
        }
    }

    fn pass_name(&mut self, who: Option<Who>, mut observation: Observation, now: Moment) {
        if let Observation::FileWritten { process, .. } | Observation::NameChanged { process, .. } =
            &mut observation
        {
            // What it runs is the newest that is known, because the content's batch was read after the names.
            *process = who.and_then(|who| self.joiner.table.describe(who, Which::Newest));
            *process = process.take().map(|process| self.with_user(process));
        }
        self.parts.outlet.pass(observation, now);
    }

    /// Who changed a name, by the rules of the join: right or nobody.
    fn author(&mut self, pid: u32, event: Option<&NameEvent<'_>>, read: Read) -> Option<Who> {
        let with_pidfd = self.parts.names.as_ref().is_some_and(|(group, _)| group.pidfd);
        let pidfd = event.and_then(|event| event.pidfd);
        self.ask(pid, pidfd, with_pidfd);
        let standing = self.standing(pidfd, event.is_some_and(|event| event.reaped), pid);
        let window = Window { since_ns: self.names_since_ns, read_ns: read.from_ns, until_ns: read.until_ns };
        match self.joiner.table.holder(pid, standing, window) {
            Holder::One(who) => {
                self.names_since_ns = self.names_since_ns.max(self.joiner.table.told_ns(who));
                Some(who)
            }
            Holder::Nobody => Some(pid.into()),
            Holder::Several => None,
        }
    }

    /// Marks belong to the descriptor, so that a dead one can't be mended here: the sensors are started anew.
    fn files_are_dead(&self) -> bool {
        let mut failed = [self.files_failed, self.names_failed].into_iter().flatten();
        failed.any(|since| since.elapsed() >= FILES_DEAD_AFTER)
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
            Err(error) => {
                return self.disconnect(self.forks_empty, format!("could not read process events: {error}"));
            }
        };
        self.parts.witness.heard(&drained.messages);
        self.note_losses(&drained, now);
        let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = follow::ended(&drained.messages);
        for (at, message) in drained.messages.iter().enumerate() {
            if at % WORKED_EVERY == WORKED_EVERY - 1 {
                self.worked();
            }
            let at = self.clocks.moment(message, now);
            if let What::Exec { pid } = message.what {
                self.parts.bell.ran(pid);
                if self.joiner.table.parent(pid) == self.own_pid {
                    self.parts.witness.executed(pid);
                }
            }
            let is_remote = |device| remote.contains(&device);
            if let Some(mut told) = follow::tell(message, at, &self.joiner.table, &ended, is_remote) {
                if let Told::Exec { exe: Some(exe), .. } = &mut told {
                    exe.settle(&mut self.parts.places);
                }
                self.joiner.tell(told, at);
            }
        }
        if drained.messages.iter().any(|message| matches!(message.what, What::Exec { .. })) {
            self.parts.bell.ring();
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

    /// From an event to its file's type and names.
    fn look(&mut self, event: fanotify::Event, now: Moment) -> Option<Look> {
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
        let closed = event.mask & fanotify::CLOSE_WRITE != 0;
        let own = closed && (event.pid == self.own_pid || self.parent(event.pid) == self.own_pid);
        if own {
            self.parts.witness.written(&descriptor);
            self.parts.outlet.own();
        }
        if own && event.mask & fanotify::OPEN_EXEC == 0 {
            return None;
        }
        let Some((mut file, stat)) = proc::open_file(descriptor) else {
            if !own {
                self.parts.outlet.unwatched();
            }
            return None;
        };
        let side = self.parts.places.settle(&mut file, &stat);
        let run = (event.mask & fanotify::OPEN_EXEC != 0).then(|| Program::copy(&file, &stat)).flatten();
        if let Some(program) = &run {
            self.parts.witness.ran(event.pid, program.key);
        }
        let written = (closed && !own).then_some(file);
        let (pid, pidfd, reaped) = (event.pid, event.pidfd, event.reaped);
        Some(Look { pid, pidfd, reaped, mask: event.mask, written, run, stat, side })
    }

    /// What the join needs of an event: what is watched of it, and whose it is.
    fn admit(&mut self, look: Look, now: Moment) -> Option<Seen> {
        let closed = look.written.is_some();
        let written = look.written.filter(|file| self.parts.outlet.paths().cover_file(file));
        if closed && written.is_none() {
            self.parts.outlet.unwatched();
        }
        if look.run.is_none() && written.is_none() {
            return None;
        }
        self.ask(look.pid, look.pidfd.as_ref(), self.parts.group.pidfd);
        let standing = self.standing(look.pidfd.as_ref(), look.reaped, look.pid);
        Some(Seen { pid: look.pid, standing, written, run: look.run, at: now })
    }

    /// What has become of whoever caused an event, asked after the connector was drained.
    fn standing(&self, pidfd: Option<&OwnedFd>, reaped: bool, pid: u32) -> Standing {
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
        let process = self.joiner.table.describe(pid, Which::Newest);
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
        let new = self.joiner.table.found(facts, Source::Proc);
        let other = !new && !self.is_same_image(facts);
        let table = &mut self.joiner.table;
        if other {
            table.exec(facts.pid, Some(facts));
            table.settle(facts.pid, &facts.executable, Source::Proc, true);
        }
        table.confirm(facts.pid);
        if (new || other)
            && let Some(process) = table.describe(facts.pid, Which::Newest)
        {
            let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut image = proc::open_exe(facts.pid, |device| remote.contains(&device));
            if let Some(image) = &mut image {
                image.settle(&mut self.parts.places);
            }
            self.ran(process, image, true, at);
        }
    }

    /// `/proc` names an image as its own namespace sees it; the table has the host's name.
    fn is_same_image(&mut self, facts: &Facts) -> bool {
        let known = self.joiner.table.executable(facts.pid);
        if known == facts.executable || is_below_layer(&known, &facts.executable) {
            return true;
        }
        let remote = self.parts.remote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        proc::open_exe(facts.pid, |device| remote.contains(&device)).is_some_and(|mut image| {
            image.settle(&mut self.parts.places);
            image.file.path == known
        })
    }

    /// It failed or is deaf, and was last known to hear at `since`.
    fn disconnect(&mut self, since: Moment, why: String) {
        if self.parts.connector.is_none() {
            return;
        }
        tracing::warn!(why, "the process connector failed: it will be tried again");
        let now = Moment::now();
        self.parts.outlet.lost(GapReason::SensorDown, None, since, now, &why);
        self.parts.outlet.health("process-connector", HealthState::Failed, why);
        self.parts.outlet.flush(now); // it may be back before this turn ends
        self.deaf_since = Some(now);
        if let Some(connector) = self.parts.connector.take() {
            connector.discard();
        }
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
                if let Some(since) = self.deaf_since.take() {
                    let (now, detail) = (Moment::now(), "until the process connector was back");
                    self.parts.outlet.lost(GapReason::SensorDown, None, since, now, detail);
                }
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

/// The name of a file in an overlay is the end of its name in the layer.
fn is_below_layer(host: &[u8], container: &[u8]) -> bool {
    container.starts_with(b"/") && host.ends_with(container)
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
