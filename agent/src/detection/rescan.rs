//! Looks again at what may have been missed: after a loss, at the start, and when folders come into view.
//!
//! One thread for all of it, at low priority: at most one run at a time and one that waits, into which further
//! wishes merge. Folders where something happened lately go first, and again in the middle of a long run.
//! Between two runs there is a pause at least as long as the run before took, so that a storm that goes on is not
//! answered by rescans without end; a run that began after the last loss ends it. What a run finds goes to
//! detection through a bounded channel, from which detection takes as much as it has room for.

use super::walk::{Figures, Met, Scope, Walk, Walked};
use crate::host::Moment;
use crate::stop::{self, Stop, Stopper};
use crate::sys::background;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vidette_protocol::escape;
use vidette_protocol::wire::GapReason;

/// Files between the rescan and detection; each holds a descriptor.
pub const MET_QUEUE_MAX: usize = 16;
/// Folders of a wish that are looked at before others.
pub const HOT_MAX: usize = 64;
/// Folders that came into view and wait with an open descriptor.
pub const FOLDERS_OPEN_MAX: usize = 64;
/// Folders that came into view and wait by their path.
pub const FOLDERS_MAX: usize = 1024;
/// The least pause between two runs.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The same after one that lacked descriptors or memory.
pub const MEANS_PAUSE: Duration = Duration::from_secs(5);
/// The least pause between two looks at hot folders.
pub const HOT_PAUSE_MIN: Duration = Duration::from_millis(250);
/// Reasons that one run names.
const REASONS_MAX: usize = 16;
/// A path in a report. Bytes.
const SHOWN_BYTES_MAX: usize = 512;
/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// A wish to look again at everything that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Why, in one word each.
    pub reasons: Vec<&'static str>,
    /// Since when, Unix nanoseconds; 0 for all.
    pub since_unix_ns: i64,
    /// Folders that are looked at first, the first of them first.
    pub hot: Vec<Vec<u8>>,
}

/// A folder that came into view with all that is in it.
#[derive(Debug)]
pub struct Folder {
    /// Open; nothing is opened by its path then.
    pub descriptor: Option<OwnedFd>,
    /// Its path, for events.
    pub path: Vec<u8>,
    /// Files changed before are left out. Unix nanoseconds; 0 for none.
    pub since_unix_ns: i64,
    /// `moved`, `mounted`.
    pub reason: &'static str,
}

/// What comes out of a rescan.
#[derive(Debug)]
pub enum Told {
    /// A file that changed.
    Met(Box<Met>),
    /// A run has ended; everything it met came before this.
    Done(Box<Report>),
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Why it was.
    pub reason: String,
    /// The folder, when it was one; empty for all that is watched. Escaped and cut.
    pub folder: String,
    /// Files changed since then. Unix nanoseconds.
    pub since_unix_ns: i64,
    /// When it began. Unix nanoseconds.
    pub from_unix_ns: i64,
    /// When it ended. Unix nanoseconds.
    pub to_unix_ns: i64,
    /// How long it took. Milliseconds, by a clock that nobody sets.
    pub took_ms: u64,
    /// Files whose times were read.
    pub files: u64,
    /// Files handed to detection.
    pub changed: u64,
    /// Folders and files that could not be opened.
    pub unreadable: u64,
    /// Folders that were looked at before others, since the run before this ended.
    pub hot_folders: u64,
    /// Files whose times were read there.
    pub hot_files: u64,
    /// Files handed to detection from there.
    pub hot_changed: u64,
    /// It saw everything; else it was stopped, or lacked descriptors or memory and looks again.
    pub whole: bool,
}

/// How it is, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Why it looks; empty while it does not.
    pub reason: String,
    /// Files whose times were read in this run.
    pub files: u64,
    /// Files handed to detection in this run.
    pub changed: u64,
    /// For how long this run goes on. Milliseconds.
    pub running_ms: u64,
    /// Something is owed: a run goes on, waits, or was cut short.
    pub owed: bool,
    /// Runs that ended.
    pub runs: u64,
}

/// The handle that detection has.
#[derive(Debug)]
pub struct Rescans {
    desk: Arc<Desk>,
    told: Receiver<Told>,
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<()>>,
}

/// Where wishes wait; shared by whoever may wish.
#[derive(Debug)]
pub struct Desk {
    state: Mutex<State>,
    wake: Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    wish: Option<Wish>,
    folders: VecDeque<Folder>,
    running: Option<Run>,
    runs: u64,
    /// A run was cut short: what it owed stays owed.
    cut_short: bool,
}

#[derive(Debug, Clone)]
struct Run {
    reason: String,
    began: Instant,
    figures: Arc<Figures>,
}

impl Wish {
    /// Takes another wish in: the earlier time, all reasons, the newer folders first.
    pub fn merge(&mut self, other: Wish) {
        self.since_unix_ns = self.since_unix_ns.min(other.since_unix_ns);
        for reason in other.reasons {
            if !self.reasons.contains(&reason) && self.reasons.len() < REASONS_MAX {
                self.reasons.push(reason);
            }
        }
        let older = std::mem::replace(&mut self.hot, other.hot);
        for folder in older {
            if !self.hot.contains(&folder) {
                self.hot.push(folder);
            }
        }
        self.hot.truncate(HOT_MAX);
    }
}

/// The word for a loss after which files have to be looked at again; none for losses of other things.
#[must_use]
pub fn reason_of(reason: GapReason) -> Option<&'static str> {
    match reason {
        GapReason::KernelQueue => Some("kernel-queue"),
        GapReason::Descriptors => Some("descriptors"),
        GapReason::DetectionQueue => Some("detection-queue"),
        GapReason::SensorDown => Some("sensor-down"),
        GapReason::WatchLimit => Some("watch-limit"),
        GapReason::PortableQueue => Some("portable-queue"),
        // Of processes, of events that were made already, or told with a folder of its own.
        GapReason::ProcessConnector
        | GapReason::OutboxBound
        | GapReason::Poison
        | GapReason::OutboxDamaged
        | GapReason::StoreRestored
        | GapReason::Mount
        | GapReason::Unspecified => None,
    }
}

impl Report {
    /// `key=value` pairs: for people and for programs.
    #[must_use]
    pub fn detail(&self) -> String {
        let time = vidette_protocol::ecs::rfc3339;
        let mut text = format!(
            "reason={} since={} from={} to={} took_ms={} files={} changed={} unreadable={} hot_folders={} hot_files={} hot_changed={} whole={}",
            self.reason,
            time(self.since_unix_ns),
            time(self.from_unix_ns),
            time(self.to_unix_ns),
            self.took_ms,
            self.files,
            self.changed,
            self.unreadable,
            self.hot_folders,
            self.hot_files,
            self.hot_changed,
            self.whole,
        );
        if !self.folder.is_empty() {
            text.push_str(" folder=");
            text.push_str(&self.folder);
        }
        text
    }
}

impl Rescans {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(scope: Scope) -> std::io::Result<Self> {
        let (wake, woken) = bounded(1);
        let (out, told) = bounded(MET_QUEUE_MAX);
        let (stopper, stop) = stop::channel();
        let desk = Arc::new(Desk { state: Mutex::default(), wake });
        let thread = Thread {
            scope,
            desk: desk.clone(),
            out,
            stop,
            whole: Pace::new(PAUSE_MIN),
            hot: Pace::new(HOT_PAUSE_MIN),
            hot_figures: Figures::default(),
            hot_folders: 0,
        };
        let thread = std::thread::Builder::new().name("rescan".into()).spawn(move || thread.run(&woken))?;
        Ok(Self { desk, told, stopper: Some(stopper), thread: Some(thread) })
    }

    /// Where to wish.
    #[must_use]
    pub fn desk(&self) -> Arc<Desk> {
        self.desk.clone()
    }

    /// What it finds. Closed after [`Self::stop`], when the thread has ended.
    #[must_use]
    pub fn told(&self) -> &Receiver<Told> {
        &self.told
    }

    /// Tells the thread to end.
    pub fn stop(&mut self) {
        if let Some(stopper) = self.stopper.take() {
            stopper.stop();
        }
        let _ = self.desk.wake.try_send(()); // full: it is woken already
    }

    /// Waits for its end, after [`Self::told`] was closed.
    pub fn join(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the rescan panicked: the mark stays where it is, the next start looks again");
        }
    }
}

impl Desk {
    /// Asks for a run; merged with one that waits.
    pub fn wish(&self, wish: Wish) {
        let mut state = self.lock();
        match &mut state.wish {
            Some(waiting) => waiting.merge(wish),
            None => state.wish = Some(wish),
        }
        self.wake(state);
    }

    /// Asks for a folder to be walked. False when too many wait.
    #[must_use]
    pub fn came(&self, mut folder: Folder) -> bool {
        let mut state = self.lock();
        if state.folders.len() >= FOLDERS_MAX {
            return false;
        }
        if state.folders.iter().filter(|folder| folder.descriptor.is_some()).count() >= FOLDERS_OPEN_MAX {
            folder.descriptor = None;
        }
        state.folders.push_back(folder);
        self.wake(state);
        true
    }

    /// How it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let state = self.lock();
        let mut progress = Progress {
            owed: state.cut_short
                || state.running.is_some()
                || state.wish.is_some()
                || !state.folders.is_empty(),
            runs: state.runs,
            ..Progress::default()
        };
        if let Some(run) = &state.running {
            run.reason.clone_into(&mut progress.reason);
            progress.files = run.figures.files.load(Ordering::Relaxed);
            progress.changed = run.figures.changed.load(Ordering::Relaxed);
            progress.running_ms = milliseconds(run.began.elapsed());
        }
        progress
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        drop(state);
        let _ = self.wake.try_send(()); // full: it is woken already
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole whoever panicked while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next run of a kind may begin.
#[derive(Debug)]
struct Pace {
    pause_min: Duration,
    next: Option<Instant>,
}

impl Pace {
    fn new(pause_min: Duration) -> Self {
        Self { pause_min, next: None }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    fn ended(&mut self, took: Duration, now: Instant) {
        self.next = Some(now + took.max(self.pause_min));
    }
}

enum Job {
    Folder(Folder),
    Hot(Vec<Vec<u8>>, i64),
    Whole(Wish),
}

struct Thread {
    scope: Scope,
    desk: Arc<Desk>,
    out: Sender<Told>,
    stop: Stop,
    whole: Pace,
    hot: Pace,
    /// What was met in hot folders since the last whole run ended.
    hot_figures: Figures,
    hot_folders: u64,
}

impl Thread {
    fn run(mut self, woken: &Receiver<()>) {
        background::give_way();
        while !self.stop.is_set() {
            match self.next(Instant::now()) {
                Ok(job) => self.work(job),
                Err(pause) => drop(woken.recv_timeout(pause)),
            }
        }
        let mut state = self.desk.lock();
        state.cut_short |= state.wish.is_some() || !state.folders.is_empty();
    }

    /// What to do next, or how long to wait.
    fn next(&mut self, now: Instant) -> Result<Job, Duration> {
        let mut state = self.desk.lock();
        if let Some(folder) = state.folders.pop_front() {
            let run = Run::new(folder.reason.to_owned());
            state.running = Some(run);
            return Ok(Job::Folder(folder));
        }
        let Some(wish) = &mut state.wish else { return Err(SLEEP_MAX) };
        if !wish.hot.is_empty() && self.hot.is_due(now) {
            return Ok(Job::Hot(std::mem::take(&mut wish.hot), wish.since_unix_ns));
        }
        if self.whole.is_due(now)
            && let Some(wish) = state.wish.take()
        {
            state.running = Some(Run::new(wish.reasons.join(",")));
            return Ok(Job::Whole(wish));
        }
        let dates = [self.whole.next, self.hot.next];
        let first = dates.into_iter().flatten().filter(|at| *at > now).min();
        Err(first.map_or(PAUSE_MIN, |at| at.saturating_duration_since(now)).min(SLEEP_MAX))
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Hot(folders, since_unix_ns) => self.look_at_hot(&folders, since_unix_ns),
            Job::Folder(folder) => {
                let Some(run) = self.running() else { return };
                let from = Moment::now();
                let walk = self.walk(folder.since_unix_ns, true, &run.figures);
                let walked = match &folder.descriptor {
                    Some(descriptor) => walk.open(descriptor, &folder.path, &mut || {}),
                    None => walk.path(&folder.path, true, &mut || {}),
                };
                self.owe_again(&run, vec![folder.reason], folder.since_unix_ns);
                let shown = folder.path.get(..SHOWN_BYTES_MAX).unwrap_or(&folder.path);
                self.ended(&run, escape::terminal(shown), folder.since_unix_ns, from, walked);
            }
            Job::Whole(wish) => {
                let Some(run) = self.running() else { return };
                let from = Moment::now();
                let walked = self.everywhere(wish.since_unix_ns, &run.figures);
                self.whole.ended(run.began.elapsed(), Instant::now());
                self.owe_again(&run, wish.reasons, wish.since_unix_ns);
                self.ended(&run, String::new(), wish.since_unix_ns, from, walked);
                (self.hot_figures, self.hot_folders) = Default::default();
            }
        }
    }

    /// What could not be opened for want of descriptors or memory is looked at again, everything with it, after a pause.
    fn owe_again(&mut self, run: &Run, reasons: Vec<&'static str>, since_unix_ns: i64) {
        if run.lacked_means() {
            self.whole.ended(run.began.elapsed().max(MEANS_PAUSE), Instant::now());
            self.desk.wish(Wish { reasons, since_unix_ns, hot: Vec::new() });
        }
    }

    fn everywhere(&mut self, since_unix_ns: i64, figures: &Figures) -> Walked {
        let scope = self.scope.clone();
        for root in scope.outermost() {
            let (desk, out, stop) = (self.desk.clone(), self.out.clone(), self.stop.clone());
            let walk =
                Walk { scope: &scope, since_unix_ns, new_name: false, figures, out: &out, stop: &stop };
            let mut between = || self.look_at_hot_if_due(&desk);
            if walk.path(root, true, &mut between) == Walked::CutShort {
                return Walked::CutShort;
            }
        }
        Walked::Whole
    }

    /// In the middle of a run: what was lost meanwhile, where it was lost.
    fn look_at_hot_if_due(&mut self, desk: &Desk) {
        if !self.hot.is_due(Instant::now()) {
            return;
        }
        let mut state = desk.lock();
        let Some(wish) = state.wish.as_mut().filter(|wish| !wish.hot.is_empty()) else { return };
        let (folders, since_unix_ns) = (std::mem::take(&mut wish.hot), wish.since_unix_ns);
        drop(state);
        self.look_at_hot(&folders, since_unix_ns);
    }

    fn look_at_hot(&mut self, folders: &[Vec<u8>], since_unix_ns: i64) {
        let began = Instant::now();
        for folder in folders.iter().filter(|folder| self.scope.covers(folder)) {
            // One that is gone took its files along.
            let walk = self.walk(since_unix_ns, false, &self.hot_figures);
            if walk.path(folder, false, &mut || {}) == Walked::CutShort {
                break;
            }
            self.hot_folders += 1;
        }
        self.hot.ended(began.elapsed(), Instant::now());
    }

    fn walk<'a>(&'a self, since_unix_ns: i64, new_name: bool, figures: &'a Figures) -> Walk<'a, Told> {
        Walk { scope: &self.scope, since_unix_ns, new_name, figures, out: &self.out, stop: &self.stop }
    }

    fn running(&self) -> Option<Run> {
        self.desk.lock().running.clone()
    }

    fn ended(&self, run: &Run, folder: String, since_unix_ns: i64, from: Moment, walked: Walked) {
        let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
        let folder_alone = !folder.is_empty();
        let report = Report {
            reason: run.reason.clone(),
            folder,
            since_unix_ns,
            from_unix_ns: from.unix_ns,
            to_unix_ns: Moment::now().unix_ns,
            took_ms: milliseconds(run.began.elapsed()),
            files: count(&run.figures.files),
            changed: count(&run.figures.changed),
            unreadable: count(&run.figures.unreadable),
            hot_folders: if folder_alone { 0 } else { self.hot_folders },
            hot_files: if folder_alone { 0 } else { count(&self.hot_figures.files) },
            hot_changed: if folder_alone { 0 } else { count(&self.hot_figures.changed) },
            whole: walked == Walked::Whole && !run.lacked_means(),
        };
        let _ = self.out.send(Told::Done(Box::new(report))); // detection takes until this thread has ended
        let mut state = self.desk.lock();
        state.running = None;
        state.cut_short |= walked == Walked::CutShort;
        state.runs += 1;
    }
}

impl Run {
    fn new(reason: String) -> Self {
        Self { reason, began: Instant::now(), figures: Arc::default() }
    }

    fn lacked_means(&self) -> bool {
        self.figures.without_means.load(Ordering::Relaxed) > 0
    }
}

impl From<Met> for Told {
    fn from(met: Met) -> Self {
        Self::Met(Box::new(met))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    fn wish(reason: &'static str, since_unix_ns: i64, hot: &[&str]) -> Wish {
        let hot = hot.iter().map(|folder| folder.as_bytes().to_vec()).collect();
        Wish { reasons: vec![reason], since_unix_ns, hot }
    }

    #[test]
    fn wishes_merge_to_the_earliest_time_and_the_newest_folders_first() {
        let mut one = wish("kernel-queue", 5, &["/a", "/b"]);
        one.merge(wish("descriptors", 9, &["/c", "/a"]));
        one.merge(wish("kernel-queue", 3, &[]));
        assert_eq!((one.since_unix_ns, one.reasons.join(",")), (3, "kernel-queue,descriptors".to_owned()));
        assert_eq!(one.hot, [b"/c".to_vec(), b"/a".to_vec(), b"/b".to_vec()]);
        for number in 0..100 {
            one.merge(wish("x", 9, &[&format!("/{number}")]));
        }
        assert_eq!((one.hot.len(), one.hot.first().unwrap().as_slice()), (HOT_MAX, &b"/99"[..]));
    }

    #[test]
    fn a_run_may_begin_after_a_pause_as_long_as_the_one_before() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut pace = Pace::new(PAUSE_MIN);
        assert!(pace.is_due(now), "the first at once");
        pace.ended(5 * second, now);
        assert!(!pace.is_due(now + 4 * second) && pace.is_due(now + 5 * second));
        pace.ended(Duration::ZERO, now);
        assert!(!pace.is_due(now + second / 2) && pace.is_due(now + PAUSE_MIN));
    }

    /// Names that are met until the first report, and that.
    fn until_done(rescans: &Rescans) -> (Vec<String>, Report) {
        let mut names = Vec::new();
        loop {
            match rescans.told().recv_timeout(Duration::from_secs(60)).unwrap() {
                Told::Met(met) => {
                    let crate::sensors::Observation::FileWritten { file, .. } = met.observation else {
                        panic!("no file")
                    };
                    let name = file.path.rsplit(|byte| *byte == b'/').next().unwrap();
                    names.push(String::from_utf8_lossy(name).into_owned());
                }
                Told::Done(report) => return (names, *report),
            }
        }
    }

    #[test]
    fn hot_folders_come_first_and_then_all() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for number in 0..30 {
            fs::create_dir(root.join(format!("d{number}"))).unwrap();
            fs::write(root.join(format!("d{number}/f{number}")), "x").unwrap();
        }
        let hot = root.join("d17").as_os_str().as_bytes().to_vec();
        let scope = Scope { roots: vec![root.as_os_str().as_bytes().to_vec()], exclude: vec![] };
        let mut rescans = Rescans::start(scope).unwrap();
        let outside = b"/etc".to_vec();
        let wish = Wish { reasons: vec!["kernel-queue"], since_unix_ns: 0, hot: vec![outside, hot] };
        rescans.desk().wish(wish);
        assert!(rescans.desk().progress().owed);
        let (names, report) = until_done(&rescans);
        assert_eq!(names.first().unwrap(), "f17");
        assert_eq!(names.len(), 31, "{names:?}");
        assert_eq!((report.files, report.changed, report.hot_folders, report.whole), (30, 30, 1, true));
        assert_eq!((report.hot_files, report.hot_changed), (1, 1));
        assert!(
            report.detail().starts_with("reason=kernel-queue since=1970-01-01T00:00:00"),
            "{}",
            report.detail()
        );
        rescans.stop();
        rescans.join();
        assert!(!rescans.desk().progress().owed);
    }

    #[test]
    fn a_folder_is_walked_from_its_descriptor_wherever_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("before/deep")).unwrap();
        fs::write(folder.path().join("before/deep/file"), "x").unwrap();
        let open = fs::File::open(folder.path().join("before")).unwrap();
        fs::rename(folder.path().join("before"), folder.path().join("after")).unwrap();
        let mut rescans = Rescans::start(Scope::default()).unwrap();
        let path = folder.path().join("before").as_os_str().as_bytes().to_vec();
        let descriptor = Some(open.into());
        assert!(rescans.desk().came(Folder { descriptor, path, since_unix_ns: 0, reason: "moved" }));
        let (names, report) = until_done(&rescans);
        assert_eq!((names, report.reason.as_str()), (vec!["file".to_owned()], "moved"));
        assert!(report.detail().contains(" folder=") && report.whole, "{}", report.detail());
        rescans.stop();
        rescans.join();
    }

    #[test]
    fn what_is_stopped_stays_owed() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..MET_QUEUE_MAX + 20 {
            fs::write(folder.path().join(number.to_string()), "x").unwrap();
        }
        let root = folder.path().canonicalize().unwrap().as_os_str().as_bytes().to_vec();
        let mut rescans = Rescans::start(Scope { roots: vec![root], exclude: vec![] }).unwrap();
        rescans.desk().wish(wish("start", 0, &[]));
        while rescans.told().len() < MET_QUEUE_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        rescans.stop();
        let mut whole = None;
        while let Ok(told) = rescans.told().recv_timeout(Duration::from_secs(60)) {
            if let Told::Done(report) = told {
                whole = Some(report.whole);
            }
        }
        rescans.join();
        assert_eq!((whole, rescans.desk().progress().owed), (Some(false), true));
    }

    #[test]
    fn folders_beyond_the_descriptors_wait_by_their_path_and_beyond_that_are_refused() {
        let desk = Desk { state: Mutex::default(), wake: bounded(1).0 };
        let folder = || Folder {
            descriptor: Some(fs::File::open("/").unwrap().into()),
            path: b"/".to_vec(),
            since_unix_ns: 0,
            reason: "moved",
        };
        let taken = (0..=FOLDERS_MAX).filter(|_| desk.came(folder())).count();
        let open = desk.lock().folders.iter().filter(|folder| folder.descriptor.is_some()).count();
        assert_eq!((taken, open), (FOLDERS_MAX, FOLDERS_OPEN_MAX));
    }
}
