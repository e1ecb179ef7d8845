//! The one door from the sensors to detection: counts, filters by path, never blocks, and says what was lost.
//!
//! Assumes that the channel is bounded. What it hands over is detection's.

use super::hot::Hot;
use super::{Observation, OpenFile};
use crate::host::Moment;
use crate::telemetry::Counters;
use crossbeam_channel::{Sender, TrySendError};
use std::sync::Arc;
use vidette_protocol::wire::{self, GapReason};

/// Path prefixes, component by component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Empty: everything.
    pub(crate) watch: Vec<Vec<u8>>,
    /// Never.
    pub(crate) exclude: Vec<Vec<u8>>,
}

/// Where observations go.
#[derive(Debug)]
pub(crate) struct Outlet {
    out: Sender<Observation>,
    counters: Arc<Counters>,
    paths: Paths,
    hot: Hot,
    losses: Vec<Loss>,
    /// When a loss was last told, by reason.
    told: Vec<(GapReason, u64)>,
    health: Vec<wire::Health>,
}

/// One reason's losses that nobody was told of yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Loss {
    reason: GapReason,
    count: Option<u64>,
    from: Moment,
    to: Moment,
    detail: String,
}

/// Components that wait for room, each with its last state.
const HEALTH_MAX: usize = 32;
/// Losses for one reason are told at most this often, the first at once: anybody can cause some, and none may bury
/// the detections. CLOCK_BOOTTIME, nanoseconds.
const LOSS_PACE_NS: u64 = 1_000_000_000;

impl Paths {
    /// Whether a path lies under what is watched and under nothing that is excluded.
    #[must_use]
    pub(crate) fn cover(&self, path: &[u8]) -> bool {
        // A path that the kernel could not give, being too long, may be anywhere: it is looked at.
        if path.is_empty() {
            return true;
        }
        self.watches(path) && !self.excludes(path)
    }

    /// Whether an open file is to be looked at. It is watched by any of its names, and excluded only by the one
    /// that the host gives it: nobody hides below an excluded folder by mounting something there, or in a mount
    /// namespace of their own, and a narrow `watch` is not evaded through a bind mount.
    #[must_use]
    pub(crate) fn cover_file(&self, file: &OpenFile) -> bool {
        if file.path.is_empty() {
            return true;
        }
        let other = &file.container_path;
        let watched = self.watches(&file.path) || !other.is_empty() && self.watches(other);
        // The same name twice: the host itself has none for it (see `OpenFile::container_path`).
        watched && (*other == file.path || !self.excludes(&file.path))
    }

    /// Whether something below a folder may be watched.
    #[must_use]
    pub(crate) fn meets(&self, folder: &[u8]) -> bool {
        self.watches(folder) || self.watch.iter().any(|prefix| is_under(prefix, folder))
    }

    /// Whether a path lies under what is watched.
    #[must_use]
    pub(crate) fn watches(&self, path: &[u8]) -> bool {
        self.watch.is_empty() || self.watch.iter().any(|prefix| is_under(path, prefix))
    }

    /// Whether a path lies under what is excluded.
    #[must_use]
    pub(crate) fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.iter().any(|prefix| is_under(path, prefix))
    }
}

/// `/a/b` is under `/a` and `/a/`, `/ab` is not; everything absolute is under `/`.
#[must_use]
pub(crate) fn is_under(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

impl Outlet {
    /// A door to `out`.
    #[must_use]
    pub(crate) fn new(out: Sender<Observation>, counters: Arc<Counters>, paths: Paths) -> Self {
        Self {
            out,
            counters,
            paths,
            hot: Hot::default(),
            losses: Vec::new(),
            told: Vec::new(),
            health: Vec::new(),
        }
    }

    /// The filter.
    #[must_use]
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Something of the agent's own: counted, not handed over.
    pub(crate) fn own(&self) {
        self.counters.sensor_seen.one();
        self.counters.sensor_shed_own.one();
    }

    /// Something outside what is watched, or no regular file.
    pub(crate) fn unwatched(&self) {
        self.counters.sensor_seen.one();
        self.counters.sensor_shed_unwatched.one();
    }

    /// Something that another event tells.
    pub(crate) fn duplicate(&self) {
        self.counters.sensor_seen.one();
        self.counters.sensor_shed_duplicate.one();
    }

    /// The kernel or a library said that it dropped something: told as soon as there is room.
    pub(crate) fn lost(
        &mut self,
        reason: GapReason,
        count: Option<u64>,
        from: Moment,
        to: Moment,
        detail: &str,
    ) {
        self.counters.sensor_seen.one();
        self.counters.sensor_lost_kernel.one();
        self.remember(Loss { reason, count, from, to, detail: detail.to_owned() });
    }

    /// A file or a program: true when detection has it.
    pub(crate) fn pass(&mut self, observation: Observation, now: Moment) -> bool {
        self.counters.sensor_seen.one();
        self.warm(&observation);
        match self.out.try_send(observation) {
            Ok(()) => {
                self.counters.sensor_passed.one();
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counters.sensor_lost_queue.one();
                self.remember(Loss {
                    reason: GapReason::DetectionQueue,
                    count: Some(1),
                    from: now,
                    to: now,
                    detail: "detection could not keep up".to_owned(),
                });
                false
            }
        }
    }

    /// Remembers where it happened: a loss is likely to be there too.
    fn warm(&mut self, observation: &Observation) {
        match observation {
            Observation::FileWritten { file, .. } => self.hot.file(&file.path),
            Observation::NameChanged { file, .. } => self.hot.file(&file.path),
            Observation::CameIntoView { path, .. } => self.hot.folder(path),
            Observation::ProgramRun { .. }
            | Observation::ProcessEnded { .. }
            | Observation::Lost { .. }
            | Observation::GuardedOpened { .. }
            | Observation::Health { .. } => {}
        }
    }

    /// A sensor changed its state: told as soon as there is room, the last state of each.
    pub(crate) fn health(&mut self, component: &str, state: wire::HealthState, message: String) {
        self.health.retain(|waiting| waiting.component != component);
        if self.health.len() < HEALTH_MAX {
            self.health.push(wire::Health { component: component.to_owned(), state: state as i32, message });
        }
    }

    /// Hands over what waits, as far as there is room.
    pub(crate) fn flush(&mut self, now: Moment) {
        while let Some(at) = self.losses.iter().position(|loss| self.is_due(loss.reason, now)) {
            let Some(loss) = self.losses.get(at) else { return };
            let gap = wire::Gap {
                reason: loss.reason as i32,
                count: loss.count,
                from_unix_ns: loss.from.unix_ns,
                to_unix_ns: loss.to.unix_ns,
                detail: loss.detail.clone(),
                ..wire::Gap::default()
            };
            if self.out.try_send(Observation::Lost { gap, hot: self.hot.list(), at: now }).is_err() {
                return;
            }
            self.told.retain(|(reason, _)| *reason != loss.reason);
            self.told.push((loss.reason, now.uptime_ns));
            self.losses.remove(at);
        }
        while let Some(health) = self.health.first() {
            if self.out.try_send(Observation::Health { health: health.clone(), at: now }).is_err() {
                return;
            }
            self.health.remove(0);
        }
    }

    /// Hands over what waits, also what was told a moment ago: the last call.
    pub(crate) fn flush_all(&mut self, now: Moment) {
        self.told.clear();
        self.flush(now);
    }

    fn is_due(&self, reason: GapReason, now: Moment) -> bool {
        let told = self.told.iter().find(|(told, _)| *told == reason);
        told.is_none_or(|(_, at_ns)| now.uptime_ns.saturating_sub(*at_ns) >= LOSS_PACE_NS)
    }

    /// Whether something waits for room, or for its turn.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        !self.losses.is_empty() || !self.health.is_empty()
    }

    /// One entry a reason: counts add up while both are known, the range grows.
    fn remember(&mut self, loss: Loss) {
        match self.losses.iter_mut().find(|waiting| waiting.reason == loss.reason) {
            Some(waiting) => {
                waiting.count = waiting.count.zip(loss.count).map(|(one, other)| one.saturating_add(other));
                waiting.to = loss.to;
            }
            None => self.losses.push(loss),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn moment(unix_ns: i64) -> Moment {
        Moment { unix_ns, uptime_ns: 0 }
    }

    fn run() -> Observation {
        let process = wire::Process::default();
        Observation::ProgramRun { process, image: None, found: false, at: moment(0) }
    }

    fn balance(counters: &Counters) {
        let shed = counters.sensor_shed_own.get()
            + counters.sensor_shed_unwatched.get()
            + counters.sensor_shed_duplicate.get();
        let lost = counters.sensor_lost_queue.get() + counters.sensor_lost_kernel.get();
        assert_eq!(counters.sensor_seen.get(), counters.sensor_passed.get() + shed + lost);
    }

    /// Found by a reader of the README: a gap for every turn of the reader buried the detections.
    #[test]
    fn a_loss_is_told_at_once_and_then_once_a_second() {
        let (out, input) = crossbeam_channel::bounded(100);
        let mut outlet = Outlet::new(out, Arc::new(Counters::default()), Paths::default());
        for millisecond in 0..2500 {
            let now = Moment {
                unix_ns: millisecond,
                uptime_ns: 5_000_000_000 + millisecond.unsigned_abs() * 1_000_000,
            };
            outlet.lost(GapReason::Mount, Some(1), now, now, "");
            outlet.flush(now);
        }
        outlet.flush_all(moment(2500));
        let counts: Vec<Option<u64>> = input
            .try_iter()
            .map(|told| match told {
                Observation::Lost { gap, .. } => gap.count,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, [Some(1), Some(1000), Some(1000), Some(499)]);
    }

    #[test]
    fn a_full_queue_becomes_one_gap_with_the_exact_count() {
        let (out, input) = crossbeam_channel::bounded(2);
        let counters = Arc::new(Counters::default());
        let mut outlet = Outlet::new(out, counters.clone(), Paths::default());
        for time in 0..7 {
            outlet.pass(run(), moment(time));
        }
        outlet.own();
        outlet.unwatched();
        outlet.duplicate();
        outlet.flush(moment(7));
        assert!(outlet.is_waiting());
        input.recv().unwrap();
        outlet.flush(moment(8));
        assert!(!outlet.is_waiting());
        input.recv().unwrap();
        let Observation::Lost { gap, at, .. } = input.recv().unwrap() else { panic!("not a gap") };
        assert_eq!((gap.count, gap.from_unix_ns, gap.to_unix_ns, at), (Some(5), 2, 6, moment(8)));
        assert_eq!(gap.reason, GapReason::DetectionQueue as i32);
        assert_eq!(counters.sensor_lost_queue.get(), 5);
        balance(&counters);
    }

    #[test]
    fn a_loss_names_the_folders_where_something_happened_lately() {
        let (out, input) = crossbeam_channel::bounded(9);
        let mut outlet = Outlet::new(out, Arc::default(), Paths::default());
        for path in ["/a/x", "/b/x", "/a/y"] {
            let file = wire::File { path: path.into(), ..Default::default() };
            let action = wire::FileAction::Deleted;
            let (old_path, folder, process, at) = (Vec::new(), false, None, moment(1));
            outlet.pass(Observation::NameChanged { action, file, old_path, folder, process, at }, moment(1));
        }
        outlet.lost(GapReason::KernelQueue, None, moment(1), moment(2), "x");
        outlet.flush(moment(3));
        let Observation::Lost { hot, .. } = input.try_iter().last().unwrap() else { panic!("not a gap") };
        assert_eq!(hot, [b"/a".to_vec(), b"/b".to_vec()]);
    }

    #[test]
    fn an_unknown_count_stays_unknown() {
        let (out, input) = crossbeam_channel::bounded(2);
        let counters = Arc::new(Counters::default());
        let mut outlet = Outlet::new(out, counters.clone(), Paths::default());
        outlet.lost(GapReason::PortableQueue, Some(4), moment(1), moment(2), "x");
        outlet.lost(GapReason::PortableQueue, None, moment(3), moment(4), "x");
        outlet.flush(moment(5));
        let Observation::Lost { gap, .. } = input.recv().unwrap() else { panic!("not a gap") };
        assert_eq!((gap.count, gap.from_unix_ns, gap.to_unix_ns), (None, 1, 4));
        balance(&counters);
    }

    #[test]
    fn prefixes_are_whole_components() {
        let paths = Paths { watch: vec![b"/a/".to_vec()], exclude: vec![b"/a/own".to_vec()] };
        for (path, expected) in [
            (&b"/a"[..], true),
            (b"/a/b", true),
            (b"/ab", false),
            (b"/a/own/x", false),
            (b"/a/owner", true),
            (b"/", false),
        ] {
            assert_eq!(paths.cover(path), expected, "{}", path.escape_ascii());
        }
        assert!(Paths { watch: vec![b"/".to_vec()], exclude: vec![] }.cover(b"/x"));
    }

    #[test]
    fn a_file_is_watched_by_any_name_and_excluded_by_the_hosts_alone() {
        let paths = Paths { watch: vec![b"/a".to_vec()], exclude: vec![b"/a/own".to_vec()] };
        for (path, other, expected) in [
            (&b"/a/x"[..], &b""[..], true),
            (b"/a/own/x", b"", false),
            (b"/b/x", b"", false),
            (b"/b/x", b"/a/x", true), // written through a bind mount in a watched folder
            (b"/a/x", b"/b/x", true), // a watched file, written through a bind mount elsewhere
            (b"/a/x", b"/a/own/x", true), // a bind mount below what is excluded
            (b"/b/x", b"/a/own/x", true),
            (b"/a/own/x", b"/a/y", false),
            (b"/a/own/x", b"/a/own/x", true), // a file system of another namespace, mounted there
            (b"", b"", true),
        ] {
            let descriptor = std::fs::File::open("/dev/null").unwrap().into();
            let (path, container_path) = (path.to_vec(), other.to_vec());
            let file = OpenFile { descriptor, path, deleted: false, container_path };
            assert_eq!(paths.cover_file(&file), expected, "{file:?}");
        }
        assert!(paths.meets(b"/") && paths.meets(b"/a/b") && !paths.meets(b"/b"));
    }
}
