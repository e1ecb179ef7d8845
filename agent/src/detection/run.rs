//! The detection thread: takes observations, keeps the worker busy, sends events. Decides little; `queue`, `verdicts`,
//! `pool` and `events` do. What is lost here and elsewhere is told and looked at again (`losses`).

use super::classes::{self, Origins};
use super::concluded::Concluded;
use super::events::{self, Item, Looked, What};
use super::hashes::keeper::{Keeper, Made};
use super::losses::Losses;
use super::memory::on_exec::{self, OnExec};
use super::outgoing::Outgoing;
use super::queue::{Next, Push, Pushed, Queue};
use super::reload::Request;
use super::rescan::{Folder, Rescans, Told, Wish};
use super::rules::RuleSources;
use super::slow::Slow;
use super::sweep::schedule::{Against, QUEUE_HOLD, Sweeps};
use super::verdicts::{By, Known, Verdicts};
use super::{Config, Snapshot, lock};
use crate::host::{Host, Moment};
use crate::sensors::{Observation, OpenFile};
use crate::sys::filesystem::{self, Word};
use crate::telemetry::Counters;
use crate::worker::messages::{Loaded, Problem, Ready};
use crate::worker::poison::FileKey;
use crate::worker::pool::{Done, Output, Pool, Settings};
use crate::worker::{Outcome, Scan};
use crossbeam_channel::{Receiver, Sender, never, select};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, HealthState, Trigger, Verdict};

/// Observations that are taken before the worker is looked after again.
const TAKEN_AT_ONCE_MAX: usize = 256;
/// Small files that the worker is handed together: what is urgent stands behind a few such batches.
const BATCH: usize = 8;
/// The longest sleep, so that no mistake in a deadline stops the stage for good.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// What the thread is started with.
pub(super) struct Stage {
    pub(super) counters: Arc<Counters>,
    pub(super) input: Receiver<Observation>,
    pub(super) out: Sender<wire::Event>,
    pub(super) reloads: Receiver<Request>,
    pub(super) rescans: Rescans,
    pub(super) verdicts: Arc<Verdicts>,
    pub(super) sweep: Sweeps,
    pub(super) shared: Arc<Mutex<Snapshot>>,
}

/// A file that the worker has.
struct InFlight {
    key: FileKey,
    file: wire::File,
    items: Vec<Item>,
    began_ns: i64,
    /// It was scanned before, without the digests that newer hash lists need.
    again: bool,
    /// A verdict may be kept: the file system keeps its word.
    trusted: bool,
}

/// What became of an observation, for the counters.
#[derive(Clone, Copy)]
enum Fate {
    Looked,
    NoRoom,
    Unreadable,
    NoWorker,
}

struct Running {
    host: Host,
    telemetry: bool,
    counters: Arc<Counters>,
    out: Outgoing,
    shared: Arc<Mutex<Snapshot>>,
    queue: Queue<OwnedFd, Item>,
    origins: Origins,
    hashes: Keeper,
    /// Files were looked at without the newest lists since then. Unix nanoseconds.
    hashes_behind_since_ns: Option<i64>,
    hashes_degraded: bool,
    verdicts: Arc<Verdicts>,
    concluded: Concluded,
    pool: Pool,
    in_flight: HashMap<u64, InFlight>,
    last_id: u64,
    losses: Losses,
    rescans: Rescans,
    sweep: Sweeps,
    /// Of rule files that could not be read.
    source_errors: Vec<String>,
    /// The newest requests for rules and for hash lists that were taken.
    reloads: (u64, u64),
    /// The rules that were announced last.
    announced: Option<String>,
    /// Errors in rules were told, and not yet that there are none any more.
    rules_degraded: bool,
    /// The newest rules are not those in use.
    rules_refused: bool,
    worker_failed: bool,
    sandbox_told: bool,
    memory: Option<OnExec>,
    slow: Slow,
}

impl Stage {
    pub(super) fn run(self, config: Config) {
        let found = config.rules.load();
        let source_errors = found.errors.clone();
        let memory = self.memory(config.memory, &config.host);
        let mut pool = Pool::new(Settings {
            threads: config.scans_parallel,
            size_max_bytes: config.size_max_bytes,
            timeout: config.scan_timeout,
            poison: config.poison,
            batch: BATCH,
            clean: self.verdicts.table(),
            ..Settings::new(config.launcher, found.into_set())
        });
        // A file of the user's that kills the compiler must not cost the rules that ship.
        if config.rules.builtin && !config.rules.files.is_empty() {
            pool.fall_back_to(RuleSources { builtin: true, files: Vec::new() }.load().into_set());
        }
        let mut running = Running {
            host: config.host,
            telemetry: config.telemetry,
            out: Outgoing::new(self.out, self.counters.clone()),
            counters: self.counters,
            shared: self.shared,
            queue: Queue::default(),
            origins: Origins::default(),
            hashes_behind_since_ns: (!config.hashes.files.is_empty()).then(|| Moment::now().unix_ns),
            hashes: Keeper::new(config.hashes),
            hashes_degraded: false,
            verdicts: self.verdicts,
            concluded: Concluded::default(),
            pool,
            in_flight: HashMap::new(),
            last_id: 0,
            losses: Losses::new(self.rescans.desk()),
            rescans: self.rescans,
            sweep: self.sweep,
            source_errors,
            reloads: (0, 0),
            announced: None,
            rules_degraded: false,
            rules_refused: false,
            worker_failed: false,
            sandbox_told: false,
            memory,
            slow: Slow::default(),
        };
        lock(&running.shared).hashes = running.hashes.summary();
        let outputs = running.pool.prepare(Instant::now());
        running.settle(outputs);
        running.go(self.input, self.reloads);
    }

    /// Without a thread for it files are still scanned.
    fn memory(&self, config: Option<on_exec::Config>, host: &Host) -> Option<OnExec> {
        match OnExec::start(config?, host.clone(), self.counters.clone(), self.out.clone()) {
            Ok(memory) => Some(memory),
            Err(error) => {
                tracing::warn!(%error, "could not start the thread that looks into memory; it is not scanned");
                None
            }
        }
    }
}

impl Running {
    fn go(&mut self, mut input: Receiver<Observation>, mut reloads: Receiver<Request>) {
        let (mut open, mut rescans_open, mut sweep_open) = (true, true, true);
        loop {
            self.counters.progress.detection.works();
            self.work();
            let empty = self.queue.is_empty() && self.in_flight.is_empty();
            if self.out.is_closed() || (!open && !rescans_open && !sweep_open && empty) {
                return self.end();
            }
            let notes = self.pool.notes().clone();
            let (out, told) = (self.out.sender(), self.told(rescans_open));
            let made = self.hashes.made().clone();
            let swept = if sweep_open { self.sweep.told().clone() } else { never() };
            self.counters.progress.detection.waits();
            select! {
                recv(input) -> observation => match observation {
                    Ok(observation) => {
                        self.take(observation);
                        for observation in input.try_iter().take(TAKEN_AT_ONCE_MAX) {
                            self.take(observation);
                        }
                    }
                    Err(_) => {
                        open = false;
                        input = never();
                        self.rescans.stop();
                        self.sweep.stop();
                    }
                },
                recv(notes) -> note => if let Ok(note) = note {
                    let outputs = self.pool.note(note, Instant::now());
                    self.settle(outputs);
                },
                recv(told) -> told => match told {
                    Ok(told) => self.told_by_rescan(told),
                    Err(_) => {
                        rescans_open = false;
                        self.rescans.join();
                    }
                },
                recv(swept) -> event => match event {
                    Ok(event) => self.emit(*event),
                    Err(_) => {
                        sweep_open = false;
                        self.sweep.join();
                    }
                },
                send(out, self.out.next()) -> sent => self.out.sent(sent.is_ok()),
                recv(reloads) -> request => match request {
                    Ok(request) => self.reload(request),
                    Err(_) => reloads = never(),
                },
                recv(made) -> made => if let Ok(made) = made { self.hashes_made(made) },
                default(self.sleep()) => {}
            }
        }
    }

    /// The rescan's channel, while there is room for its files.
    fn told(&self, open: bool) -> Receiver<Told> {
        if open && self.queue.has_room_for_sweeps() { self.rescans.told().clone() } else { never() }
    }

    fn end(&mut self) {
        self.rescans.stop();
        if let Some(memory) = &mut self.memory {
            memory.end();
        }
        self.sweep.stop();
        if let Some(gap) = self.losses.take() {
            self.emit_gap(gap, Moment::now());
        }
        if let Some(gap) = self.out.shed_so_far() {
            self.emit_gap(gap, Moment::now());
        }
        self.out.finish();
        self.publish();
    }

    fn sleep(&self) -> Duration {
        let held = self.queue.due_at().filter(|_| self.pool.room() > 0);
        let dates = [self.pool.wake_at(), held, self.losses.tell_at(), self.out.tell_at()];
        let first = dates.into_iter().flatten().min();
        first.map_or(SLEEP_MAX, |at| at.saturating_duration_since(Instant::now()).min(SLEEP_MAX))
    }

    /// What is due, and what the worker has room for.
    fn work(&mut self) {
        let now = Instant::now();
        let outputs = self.pool.tick(now);
        self.settle(outputs);
        while self.pool.room() > 0 {
            let Some(next) = self.queue.pop(now) else { break };
            self.look(next, now);
        }
        let gaps = [self.losses.overdue(now), self.out.overdue(now)];
        for gap in gaps.into_iter().flatten() {
            self.emit_gap(gap, Moment::now());
        }
        self.out.drain();
        self.publish();
    }

    fn publish(&mut self) {
        let in_flight: usize = self.in_flight.values().map(|flight| flight.items.len()).sum();
        self.counters.detection_waiting.set((self.queue.observations() + in_flight) as u64);
        self.sweep.handle().hold(self.queue.len() > QUEUE_HOLD);
        let mut shared = lock(&self.shared);
        shared.worker_pid = self.pool.pid();
        shared.queue_length = self.queue.len() + self.in_flight.len() + self.rescans.told().len();
        shared.events_waiting = self.out.len();
        shared.loss_untold = self.losses.tell_at().is_some();
        shared.poisoned = self.pool.poison().len();
        if shared.rules_version != self.pool.rules_version() {
            self.pool.rules_version().clone_into(&mut shared.rules_version);
        }
    }

    fn emit(&mut self, event: wire::Event) {
        self.out.emit(event);
    }

    fn emit_gap(&mut self, gap: wire::Gap, at: Moment) {
        let event = events::gap(&self.host, gap, at);
        self.emit(event);
    }

    fn take(&mut self, observation: Observation) {
        self.counters.detection_seen.one();
        if let (Observation::ProgramRun { process, .. }, Some(memory)) = (&observation, &self.memory) {
            memory.ran(process);
        }
        match observation {
            Observation::FileWritten { file, process, trigger, old_path, at } => {
                return self.enqueue(file, What::Written(process, trigger, old_path), at, true);
            }
            Observation::ProgramRun { process, image: Some(image), found, at } => {
                return self.enqueue(image, What::Run(process, found), at, true);
            }
            Observation::ProgramRun { process, image: None, found, at } => {
                self.fare(Fate::Unreadable, 1);
                return self.emit_telemetry(|host| events::run_without_image(host, process, found, at));
            }
            Observation::ProcessEnded { process, status, at } => {
                self.emit_telemetry(|host| events::ended(host, process, status, at));
            }
            Observation::Lost { gap, hot, at } => {
                self.losses.elsewhere(&gap, hot);
                self.emit_gap(gap, at);
            }
            Observation::NameChanged { action, file, old_path, folder, process, at } => {
                self.emit_telemetry(|host| {
                    events::name_changed(host, action, file, old_path, folder, process, at)
                });
            }
            Observation::CameIntoView { folder, path, since_unix_ns, reason, at } => {
                let folder = Folder { descriptor: Some(folder), path, since_unix_ns, reason };
                if let Some(gap) = self.losses.came_into_view(folder, at) {
                    self.emit_gap(gap, at);
                }
            }
            Observation::GuardedOpened { path, process, untold, at } => {
                let event = events::guarded_opened(&self.host, &path, process, untold, at);
                self.emit(event);
            }
            Observation::Health { health, at } => {
                let event = events::health(&self.host, health, at);
                self.emit(event);
            }
        }
        self.fare(Fate::Looked, 1);
    }

    fn told_by_rescan(&mut self, told: Told) {
        match told {
            Told::Met(met) => {
                self.counters.detection_seen.one();
                if let Observation::FileWritten { file, process, trigger, old_path, at } = met.observation {
                    self.enqueue(file, What::Written(process, trigger, old_path), at, met.new_name);
                } else {
                    self.fare(Fate::Looked, 1);
                }
            }
            Told::Done(report) => {
                self.counters.rescans.one();
                self.counters.rescan_files.add(report.files + report.hot_files);
                self.counters.rescan_changed.add(report.changed + report.hot_changed);
                let detail = report.detail();
                // Anybody may mount in a namespace of his own: that must not fill the log.
                if report.folder.is_empty() {
                    tracing::info!(detail, "rescanned");
                } else {
                    tracing::debug!(detail, "rescanned");
                }
                let event = events::rescanned(&self.host, report.whole, &detail);
                self.emit(event);
            }
        }
    }

    /// Every observation ends in one of these, or was merged.
    fn fare(&self, fate: Fate, observations: u64) {
        let counter = match fate {
            Fate::Looked => return self.counters.detection_passed.add(observations),
            Fate::NoRoom => &self.counters.detection_lost_queue,
            Fate::Unreadable => &self.counters.detection_lost_unreadable,
            Fate::NoWorker => &self.counters.detection_lost_worker,
        };
        counter.add(observations);
        self.counters.detection_unscanned.add(observations);
    }

    fn emit_telemetry(&mut self, event: impl FnOnce(&Host) -> wire::Event) {
        if self.telemetry {
            let event = event(&self.host);
            self.emit(event);
        }
    }

    /// To the queue; what a rescan met and was looked at in this state only when `anew`.
    fn enqueue(&mut self, file: OpenFile, what: What, at: Moment, anew: bool) {
        let item =
            Item { path: file.path, container_path: file.container_path, deleted: file.deleted, what, at };
        let stat = match rustix::fs::fstat(&file.descriptor) {
            Ok(stat) => stat,
            Err(error) => return self.unreadable(vec![item], error),
        };
        if !anew
            && self
                .concluded
                .has(&FileKey::of(&stat), &self.hashes.current().version_with(self.pool.rules_version()))
        {
            return self.counters.detection_shed_known.one();
        }
        let stat = events::file(&stat);
        let push = Push {
            id: (stat.device, stat.inode),
            file: file.descriptor,
            kind: classes::kind(&item.what),
            class: classes::class(&item.what, &stat, &item.path),
            share: self.origins.share(&item.what, &stat),
            item,
        };
        match self.queue.push(push, Instant::now()) {
            Pushed::Queued => {}
            Pushed::Merged(_, displaced) => {
                self.counters.detection_shed_coalesced.one();
                if let Some(next) = displaced {
                    self.shed(&next.file, next.items);
                }
            }
            Pushed::Displaced(next) => self.shed(&next.file, next.items),
            Pushed::Full(file, item) => self.shed(&file, vec![item]),
        }
    }

    /// There was no room: recorded, told in a gap, and looked at again.
    fn shed(&mut self, file: &OwnedFd, items: Vec<Item>) {
        let stat = rustix::fs::fstat(file).map(|stat| events::file(&stat)).unwrap_or_default();
        for item in &items {
            self.losses.here(&item.path, item.at, stat.ctime_unix_ns);
        }
        let outcome = Outcome::NotScanned("too many files were waiting to be scanned".into());
        self.conclude(items, stat, outcome, "", Fate::NoRoom);
    }

    fn unreadable(&mut self, items: Vec<Item>, error: rustix::io::Errno) {
        let outcome = Outcome::NotScanned(format!("the file could not be looked at: {error}"));
        self.conclude(items, wire::File::default(), outcome, "", Fate::Unreadable);
    }

    /// Answers from the cache, or hands the file to the worker.
    fn look(&mut self, next: Next<OwnedFd, Item>, now: Instant) {
        let stat = match rustix::fs::fstat(&next.file) {
            Ok(stat) => stat,
            Err(error) => return self.unreadable(next.items, error),
        };
        let (key, file) = (FileKey::of(&stat), events::file(&stat));
        let began_ns = Moment::now().unix_ns;
        let rules_version = self.pool.rules_version().to_owned();
        // Here files come from any namespace: anybody may have mounted an overlay in one.
        let trusted = filesystem::word(&next.file) == Word::Kept;
        let ask = next.items.iter().all(may_be_cached);
        if trusted && !ask {
            self.verdicts.forget(&key);
        }
        let version = self.hashes.current().version_with(&rules_version);
        if trusted
            && ask
            && let Some(known) = self.verdicts.get(&key, self.by(&version), began_ns)
        {
            self.counters.detection_cached.one();
            return self.conclude(next.items, file, recalled(known), &rules_version, Fate::Looked);
        }
        self.last_id += 1;
        let flight = InFlight { key, file, items: next.items, began_ns, again: false, trusted };
        self.in_flight.insert(self.last_id, flight);
        let outputs = self.pool.submit(self.last_id, next.file, now);
        self.settle(outputs);
    }

    fn by<'a>(&self, rules_version: &'a str) -> By<'a> {
        By { rules_version, size_max_bytes: self.pool.size_max_bytes() }
    }

    fn settle(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Done(done) => self.done(*done),
                Output::Started(ready) => self.started(&ready),
                Output::Loaded(loaded) => self.loaded(&loaded),
                Output::RulesRefused { version, reason } => {
                    (self.rules_degraded, self.rules_refused) = (true, true);
                    let message = format!(
                        "rules {version} are not used: {reason}; `vidette-agent rules check FILE` on each of your files finds the one"
                    );
                    self.tell_health("rules", HealthState::Failed, &message);
                    self.rules_refused(&reason);
                }
                Output::Died(detail) => {
                    self.counters.worker_deaths.one();
                    self.tell_health("worker", HealthState::Degraded, &detail);
                }
                Output::Unavailable(reason) => {
                    self.worker_failed = true;
                    let message = format!("files are not scanned: {reason}");
                    self.tell_health("worker", HealthState::Failed, &message);
                    self.rules_refused(&message);
                }
            }
        }
    }

    fn tell_health(&mut self, component: &str, state: HealthState, message: &str) {
        tracing::warn!(component, message = %vidette_protocol::escape::terminal(message.as_bytes()), "health changed");
        let event = events::own_health(&self.host, component, state, message);
        self.emit(event);
    }

    fn done(&mut self, mut done: Done) {
        let Some(mut flight) = self.in_flight.remove(&done.id) else { return };
        if !flight.again && !self.hashes.current().can_judge(&done.outcome) {
            // It was handed over before these lists were there.
            flight.again = true;
            self.in_flight.insert(done.id, flight);
            let outputs = self.pool.submit(done.id, done.file, Instant::now());
            return self.settle(outputs);
        }
        done.outcome = self.hashes.current().judge(done.outcome);
        let version = self.hashes.current().version_with(&done.rules_version);
        if let Outcome::Scanned(scan) = &done.outcome {
            self.counters.detection_scanned.one();
            if let Ok(stat) = rustix::fs::fstat(&done.file) {
                let after = FileKey::of(&stat);
                if after != flight.key && flight.items.iter().all(|item| is_swept(&item.what)) {
                    // Met while it was written: by this state its writer's close is known as the same.
                    flight.file = events::file(&stat);
                }
                if flight.trusted {
                    self.verdicts.put(&flight.key, &after, flight.began_ns, self.by(&version), scan);
                }
                if scan.stable {
                    self.concluded.put(&flight.key, &after, flight.began_ns, &version);
                }
            }
        }
        if let Outcome::Died(_) | Outcome::TimedOut(_) = &done.outcome
            && let Some(item) = flight.items.last()
        {
            self.pool.poison().name(&flight.key, &item.path);
        }
        self.watch_time(&done);
        let fate = match &done.outcome {
            Outcome::Scanned(_) | Outcome::TimedOut(_) | Outcome::Died(_) => Fate::Looked,
            Outcome::NotScanned(_) => Fate::NoWorker,
        };
        self.conclude(flight.items, flight.file, done.outcome, &done.rules_version, fate);
    }

    /// Rules that are too slow are one thing to tell, not one for each file.
    fn watch_time(&mut self, done: &Done) {
        let timed_out = match &done.outcome {
            Outcome::Scanned(scan) => scan.verdict == Verdict::TimedOut,
            Outcome::TimedOut(_) => true,
            Outcome::Died(_) | Outcome::NotScanned(_) => return,
        };
        if let Some((state, message)) = self.slow.scanned(&done.rules_version, timed_out) {
            self.tell_health("scan-time", state, &message);
            lock(&self.shared).scan_time = if state == HealthState::Ok { String::new() } else { message };
        }
    }

    /// Every observation gets its events: a run its own detection, all that was done to the file one of the newest.
    fn conclude(
        &mut self,
        items: Vec<Item>,
        file: wire::File,
        outcome: Outcome,
        rules_version: &str,
        fate: Fate,
    ) {
        self.fare(fate, items.len() as u64);
        let looked = Looked::new(file, outcome, rules_version);
        let newest = items.iter().rposition(|item| !matches!(item.what, What::Run(..)));
        for (number, item) in items.into_iter().enumerate() {
            let own = matches!(item.what, What::Run(..)) || Some(number) == newest;
            if own && let Some(event) = looked.detection(&self.host, &item) {
                self.emit(event);
            }
            self.emit_telemetry(|host| looked.telemetry(host, item));
        }
    }

    fn started(&mut self, ready: &Ready) {
        tracing::debug!(landlock = ready.landlock, user_dropped = ready.user_dropped, "scanner started");
        if ready.landlock == "none" && !self.sandbox_told {
            self.sandbox_told = true;
            let message =
                "this kernel has no Landlock: the scanner is held by its system-call filter and user alone";
            self.tell_health("worker", HealthState::Degraded, message);
        }
    }

    fn loaded(&mut self, loaded: &Loaded) {
        if self.worker_failed {
            self.worker_failed = false;
            self.tell_health("worker", HealthState::Ok, "files are scanned again");
            if !self.rules_refused {
                lock(&self.shared).reloads.rules_refused.clear();
            }
        }
        // A worker that is started again after idling loads the same rules: that is no news.
        if self.announced.as_ref() == Some(&loaded.version) {
            return;
        }
        // What can't be used at all is refused right after this: told with its mistakes, and those before stay in use.
        let in_use = loaded.version == self.pool.rules_version();
        self.announced = Some(loaded.version.clone());
        self.tell_others();
        let problems = loaded.problems.iter().filter(|problem| problem.error).map(Problem::sentence);
        let errors: Vec<String> = self.source_errors.iter().cloned().chain(problems).collect();
        if in_use {
            let event = events::rules_loaded(&self.host, &loaded.version, loaded.rules, errors.len());
            self.emit(event);
        }
        if !errors.is_empty() {
            self.rules_degraded = true;
            self.tell_health("rules", HealthState::Degraded, &format!("left out: {}", errors.join("; ")));
        } else if self.rules_degraded && !self.rules_refused {
            self.rules_degraded = false;
            self.tell_health("rules", HealthState::Ok, "all rules are in use");
        }
        let mut shared = lock(&self.shared);
        shared.rule_errors = errors;
        if !in_use {
            return;
        }
        shared.rules_count = loaded.rules;
        loaded.version.clone_into(&mut shared.rules_version);
        shared.reloads.rules = self.reloads.0;
        if !self.rules_refused {
            shared.reloads.rules_refused.clear();
        }
    }

    /// Other hash lists are used from now on; what was looked at while they were made is looked at again.
    fn hashes_made(&mut self, made: Made) {
        let Some(taken) = self.hashes.take(made) else { return };
        let refused = taken.err().map(str::to_owned);
        let lists = self.hashes.summary();
        let current = self.hashes.current();
        self.pool.want_digests(current.wanted(), current.version());
        let event = events::hashes_loaded(&self.host, &lists);
        self.emit(event);
        let behind = self.hashes_behind_since_ns.take();
        if let Some(error) = &refused {
            self.hashes_degraded = true;
            self.tell_health("hashes", HealthState::Failed, &format!("the hash lists are not used: {error}"));
        } else {
            if !lists.errors.is_empty() {
                self.hashes_degraded = true;
                let message = format!("mistakes in hash lists: {}", lists.errors.join("; "));
                self.tell_health("hashes", HealthState::Degraded, &message);
            } else if std::mem::take(&mut self.hashes_degraded) {
                self.tell_health("hashes", HealthState::Ok, "all hash lists are in use");
            }
            if let Some(since_unix_ns) = behind.filter(|_| lists.entries > 0) {
                let wish = Wish { reasons: vec!["hash-lists"], since_unix_ns, hot: Vec::new() };
                self.rescans.desk().wish(wish);
            }
        }
        let mut shared = lock(&self.shared);
        shared.hashes = lists;
        (shared.reloads.hashes, shared.reloads.hashes_refused) =
            (self.reloads.1, refused.unwrap_or_default());
        drop(shared);
        self.tell_others();
    }

    /// The scanners of memory and of the sweep use what this one uses.
    fn tell_others(&self) {
        let Some(rules) = self.pool.compiled() else { return };
        if let Some(memory) = &self.memory {
            memory.use_rules(rules.clone());
        }
        if rules.loaded.rules > 0 || self.hashes.current().wanted() != 0 {
            self.sweep.handle().sweep_against(Against { rules, hashes: self.hashes.current().clone() });
        }
    }

    fn reload(&mut self, request: Request) {
        if let Some(sources) = request.hashes {
            self.reloads.1 = request.number;
            if sources.files.is_empty() && self.hashes.is_empty() {
                lock(&self.shared).reloads.hashes = request.number;
            } else {
                self.hashes_behind_since_ns.get_or_insert(Moment::now().unix_ns);
                self.hashes.want(sources);
                lock(&self.shared).hashes = self.hashes.summary();
            }
        }
        if let Some(sources) = request.rules {
            self.reloads.0 = request.number;
            let found = sources.load();
            self.source_errors.clone_from(&found.errors);
            (self.announced, self.rules_refused) = (None, false);
            let outputs = self.pool.use_rules(found.into_set(), Instant::now());
            self.settle(outputs);
        }
    }

    /// Whoever asked for the newest rules learns what became of them.
    fn rules_refused(&self, reason: &str) {
        let settled = &mut lock(&self.shared).reloads;
        settled.rules = self.reloads.0;
        reason.clone_into(&mut settled.rules_refused);
    }
}

/// A close-write says that the content may be new whatever the times say.
fn may_be_cached(item: &Item) -> bool {
    match &item.what {
        What::Run(..) => true,
        What::Written(_, trigger, _) => match trigger {
            Trigger::Rename | Trigger::Link | Trigger::Sweep | Trigger::Attributes => true,
            Trigger::CloseWrite | Trigger::Exec | Trigger::Request | Trigger::Unspecified => false,
        },
    }
}

fn is_swept(what: &What) -> bool {
    matches!(what, What::Written(_, Trigger::Sweep, _))
}

fn recalled(known: Known) -> Outcome {
    Outcome::Scanned(match known {
        Known::Clean(digest) => Scan {
            verdict: Verdict::Clean,
            blake3: Some(digest),
            sha256: None,
            sha1: None,
            md5: None,
            whole: true,
            rules: Vec::new(),
            detail: String::new(),
            scan_us: 0,
            scanned_bytes: 0,
            stable: true,
            lasting: true,
            of_the_day: false,
        },
        Known::Told(scan) => Scan { scan_us: 0, ..(*scan).clone() },
    })
}
