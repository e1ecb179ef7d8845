//! The self-test: a thread that proves every few minutes, with a canary, that the sensors see, and looks every
//! few seconds, at hardly any cost, whether somebody switched one off underneath.
//!
//! A look: the marks in the group's fdinfo are those that were set; the connector brings messages, if need be
//! of a thread that is made for it; the reader turns. Assumes that every sensor tells `Proofs` what it sees of
//! the agent's own. What it finds goes to detection as health and gaps, through a door of its own, so that it
//! is told also when the reader hangs.

use super::canary::{self, Proof, UNSEEN_AFTER};
use super::exchange::Bell;
use super::guard::{self, Guard};
use super::marks::Place;
use super::mountinfo::Mount;
use super::proofs::Proofs;
use super::standing::{Say, Standing};
use crate::host::Moment;
use crate::sensors::outlet::Outlet;
use crate::sensors::{Canary, Gauge, Level, Tested};
use crate::sys::fanotify::{CLOSE_WRITE, Group, NameGroup, OPEN_EXEC};
use crate::telemetry::Counters;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::time::Timespec;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use vidette_protocol::wire::{GapReason, HealthState};

/// A sensor that is switched off is told within this.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked, with or without a canary.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A reader that has not turned for this long hangs. With nothing to do it turns once a second.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// How long marks may take to be set again.
const REMARK_MAX: Duration = Duration::from_secs(2);
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(20);

// In the worst case a canary that is tried twice has just been let out, and a hanging reader is noticed at the
// second look.
const _: () = assert!(
    2 * HEARTBEAT.as_millis() + 3 * UNSEEN_AFTER.as_millis() + REMARK_MAX.as_millis()
        < TOLD_WITHIN.as_millis()
);
const _: () = assert!(STALLED_AFTER.as_millis() < HEARTBEAT.as_millis());

/// What the thread is given.
#[derive(Debug)]
pub(crate) struct Parts {
    /// How often a canary is let out.
    pub(crate) interval: Duration,
    /// None: looks alone.
    pub(crate) canary: Option<Canary>,
    pub(crate) proofs: Proofs,
    /// What every canary must be seen by, beside what the other parts tell: names.
    pub(crate) further: Vec<Proof>,
    pub(crate) group: Arc<Group>,
    pub(crate) guard: Arc<Guard>,
    /// The group for names, where there is one, and what watches its marks.
    pub(crate) names: Option<(Arc<NameGroup>, Arc<Guard>)>,
    /// Asks for the marks to be set again.
    pub(crate) bell: Bell,
    pub(crate) outlet: Outlet,
    pub(crate) counters: Arc<Counters>,
    pub(crate) gauge: Gauge,
    pub(crate) stop: OwnedFd,
}

struct SelfTest {
    parts: Parts,
    started: Moment,
    standings: BTreeMap<&'static str, Standing>,
    heard: Moment,
    turns: u64,
    turned: Instant,
    unproved: bool,
}

/// Until `stop` becomes readable.
pub(crate) fn run(parts: Parts) {
    if let Some(canary) = &parts.canary {
        canary::sweep(&canary.folder);
    }
    let heartbeat = HEARTBEAT.min(parts.interval);
    let mut test = SelfTest::new(parts);
    let mut canary_at = Instant::now();
    loop {
        test.look();
        if Instant::now() >= canary_at {
            let well = test.prove();
            // What was not seen is tried again soon, so that its end is told soon.
            canary_at = Instant::now() + if well { test.parts.interval } else { heartbeat };
        }
        let wait = canary_at.saturating_duration_since(Instant::now()).min(heartbeat);
        if is_stopped(&test.parts.stop, wait) {
            test.parts.outlet.flush_all(Moment::now());
            return;
        }
    }
}

/// Waits at most `time` for `stop` to become readable.
pub(crate) fn is_stopped(stop: &OwnedFd, time: Duration) -> bool {
    is_stopped_or(stop, None, time)
}

/// The same, and comes back earlier when the other one becomes readable.
pub(crate) fn is_stopped_or(stop: &OwnedFd, other: Option<&OwnedFd>, time: Duration) -> bool {
    let other = other.map(|other| PollFd::new(other, PollFlags::IN));
    let mut ready: Vec<PollFd<'_>> =
        [Some(PollFd::new(stop, PollFlags::IN)), other].into_iter().flatten().collect();
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    let _ = rustix::event::poll(&mut ready, Some(&time)); // interrupted: not stopped
    ready.first().is_some_and(|stop| !stop.revents().is_empty())
}

impl SelfTest {
    fn new(parts: Parts) -> Self {
        let started = Moment::now();
        Self {
            started,
            standings: BTreeMap::new(),
            heard: started,
            turns: parts.proofs.turns(),
            turned: Instant::now(),
            unproved: false,
            parts,
        }
    }

    fn look(&mut self) {
        self.look_at_marks();
        self.look_at_connector();
        self.look_at_reader();
        self.parts.outlet.flush(Moment::now());
    }

    /// Marks that were taken away are told, and asked for again.
    fn look_at_marks(&mut self) {
        self.judge_marks("fanotify", self.parts.guard.taken(&*self.parts.group));
        if let Some(taken) = self.parts.names.as_ref().map(|(group, guard)| guard.taken(&**group)) {
            self.judge_marks("names", taken);
        }
    }

    fn judge_marks(&mut self, component: &'static str, taken: std::io::Result<BTreeSet<Place>>) {
        let trouble = match taken {
            Ok(taken) if taken.is_empty() => None,
            Ok(taken) => Some(format!(
                "marks of {} file systems were taken away underneath the agent: find out which program did it; they are set again",
                taken.len()
            )),
            Err(error) => Some(format!("the marks can't be looked at ({error}): restart the agent")),
        };
        let well = trouble.is_none();
        self.judge(component, "marks", trouble);
        if !well && self.remark() {
            self.judge(component, "marks", None);
        }
    }

    /// Asks for the marks to be set and waits a moment for it; true when none is missing any more.
    fn remark(&self) -> bool {
        self.parts.bell.refresh();
        let end = Instant::now() + REMARK_MAX;
        while Instant::now() < end && !is_stopped(&self.parts.stop, LOOK) {
            let content = self.parts.guard.taken(&*self.parts.group);
            let names = self.parts.names.as_ref().map(|(group, guard)| guard.taken(&**group));
            let all = [Some(content), names];
            if all.into_iter().flatten().all(|taken| taken.is_ok_and(|taken| taken.is_empty())) {
                return true;
            }
        }
        false
    }

    /// The connector tells of every thread, so one is made.
    fn look_at_connector(&mut self) {
        if self.parts.gauge.level() != Level::Full {
            self.heard = Moment::now(); // it is down and that is told, or nobody wants it
            return;
        }
        let before = self.parts.proofs.messages();
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(|| {});
        let Ok(thread) = thread else { return }; // no thread: nothing is proved
        let _ = thread.join();
        let end = Instant::now() + UNSEEN_AFTER;
        while self.parts.proofs.messages() == before {
            if is_stopped(&self.parts.stop, LOOK) {
                return;
            }
            if Instant::now() >= end {
                let why = "the process connector fell silent: a new thread was not told";
                return self.parts.proofs.reconnect(self.heard, why.to_owned());
            }
        }
        self.heard = Moment::now();
    }

    fn look_at_reader(&mut self) {
        let turns = self.parts.proofs.turns();
        if turns != self.turns {
            (self.turns, self.turned) = (turns, Instant::now());
        }
        let trouble = (self.turned.elapsed() > STALLED_AFTER).then(|| {
            let seconds = self.turned.elapsed().as_secs();
            format!("nobody has read the kernel's queues for {seconds} s: restart the agent")
        });
        self.judge("reader", "turns", trouble);
    }

    /// Lets a canary out, once more when something was lost meanwhile; false when something was not seen.
    fn prove(&mut self) -> bool {
        let Some(canary) = self.parts.canary.clone() else { return true };
        let expected = self.expected(&canary);
        let losses = self.parts.counters.sensor_lost_kernel.get();
        let mut missing = canary::release(&canary, &self.parts.proofs, &expected, &self.parts.stop);
        let lossy = losses != self.parts.counters.sensor_lost_kernel.get();
        if lossy && missing.as_ref().is_ok_and(|missing| !missing.is_empty()) {
            missing = canary::release(&canary, &self.parts.proofs, &expected, &self.parts.stop);
        }
        if is_stopped(&self.parts.stop, Duration::ZERO) {
            return true;
        }
        let well = match missing {
            Ok(missing) => {
                self.conclude(&expected, &missing);
                missing.is_empty()
            }
            Err(error) => {
                self.note(format!("not done: {error:#}"));
                self.judge(
                    "self-test",
                    "canary",
                    Some(format!("{error:#}: make room, or look at the folder")),
                );
                false
            }
        };
        self.parts.outlet.flush(Moment::now());
        well
    }

    /// What must be seen, given where the canary lives and which sensors run.
    fn expected(&mut self, canary: &Canary) -> Vec<Proof> {
        let mounts = guard::mounts();
        let covered = |path: &Path, bits| {
            mount_of(path, &mounts).is_none_or(|mount| self.parts.guard.cover(mount, bits))
        };
        let mut expected = self.parts.further.clone();
        if covered(&canary.folder, CLOSE_WRITE) {
            expected.push(Proof::Content);
        } else if !std::mem::replace(&mut self.unproved, true) {
            let folder = canary.folder.display();
            tracing::warn!(%folder, "the canary's folder is on a file system that is not watched: content is not proved");
        }
        if covered(&canary.program, OPEN_EXEC) {
            expected.push(Proof::Run);
        }
        if self.parts.gauge.level() == Level::Full {
            expected.push(Proof::Process);
        }
        expected
    }

    fn conclude(&mut self, expected: &[Proof], missing: &[Proof]) {
        let words = |proofs: &[Proof]| proofs.iter().map(|proof| proof.word()).collect::<Vec<_>>().join(", ");
        let seen: Vec<Proof> = expected.iter().copied().filter(|proof| !missing.contains(proof)).collect();
        let seen = if seen.is_empty() { "nothing".to_owned() } else { words(&seen) };
        let unseen =
            if missing.is_empty() { String::new() } else { format!("; not seen: {}", words(missing)) };
        self.note(format!("seen: {seen}{unseen}"));
        self.judge("self-test", "canary", None);
        for component in ["fanotify", "process-connector", "names"] {
            let of = |proof: &&Proof| proof.component() == component;
            let unseen: Vec<&str> = missing.iter().filter(of).map(|proof| proof.unseen()).collect();
            if component == "process-connector" {
                // The reader speaks for the connector: it says that it is down, and when it is back.
                if let Some(unseen) = unseen.first() {
                    self.parts
                        .proofs
                        .reconnect(self.heard, format!("{unseen} within {} s", UNSEEN_AFTER.as_secs()));
                }
            } else if expected.iter().any(|proof| of(&proof)) {
                let trouble = (!unseen.is_empty()).then(|| {
                    let unseen = unseen.join("; ");
                    format!("{unseen} within {} s: restart the agent if this lasts", UNSEEN_AFTER.as_secs())
                });
                self.judge(component, "canary", trouble);
            }
        }
    }

    /// For `vidette-agent status`.
    fn note(&self, outcome: String) {
        let tested = Tested { unix_ns: Moment::now().unix_ns, outcome };
        let mut last = self.parts.gauge.tested.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|last| last.outcome != tested.outcome) {
            tracing::info!(outcome = tested.outcome, "self-test");
        }
        *last = Some(tested);
    }

    fn judge(&mut self, component: &'static str, check: &'static str, trouble: Option<String>) {
        let now = Moment::now();
        let standing = self.standings.entry(component).or_default();
        let Some(say) = standing.judge(check, trouble, self.started, now) else { return };
        let outlet = &mut self.parts.outlet;
        let blind = component != "self-test"; // a canary that was not let out says nothing
        match say {
            Say::Failed { message, from } => {
                tracing::warn!(component, message, "a sensor does not see");
                outlet.health(component, HealthState::Failed, message.clone());
                if blind {
                    outlet.lost(GapReason::SensorDown, None, from, now, &message);
                }
            }
            Say::Well { from } => {
                tracing::info!(component, "a sensor sees again");
                outlet.health(component, HealthState::Ok, "sees again".to_owned());
                if blind {
                    outlet.lost(GapReason::SensorDown, None, from, now, "until the sensor saw again");
                }
            }
        }
        outlet.flush(now); // each state is an event, also when the next one follows at once
    }
}

/// The mount through which a path is reached; none when the kernel does not say (STATX_MNT_ID, 5.8).
fn mount_of<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let empty = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&place, c"", empty, StatxFlags::MNT_ID).ok()?;
    let known = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    mounts.iter().find(|mount| known && u64::from(mount.id) == stat.stx_mnt_id)
}
