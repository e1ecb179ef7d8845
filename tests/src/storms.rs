//! Storms: more at once than an agent can look at, against a real agent in a folder. What it says afterwards is
//! compared with what was done: each file has an event, or a `gap` covers it and a rescan found what survived.
//!
//! The generator's own list is the oracle; the agent's word is read from its outbox, which nobody empties here.
//! The tests ask whether an outcome is in order, the benchmark prints its figures.

use crate::programs::{Agent, memory_bytes, wait_for};
use crate::samples;
use anyhow::Context;
use prost::Message as _;
use rusqlite::{Connection, OpenFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vidette_protocol::wire::{self, FileAction, GapReason, ProcessAction, Verdict, event::Kind};

/// How long the agent must have had nothing new to say before it counts as done.
const CALM: Duration = Duration::from_secs(3);
/// How long it may take to get there.
const CALM_WAIT: Duration = Duration::from_secs(180);
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(50);
/// Beyond its size at rest. Bytes.
pub const MEMORY_MAX_BYTES: u64 = 64 << 20;
/// From the write of a planted sample to its detection in the outbox.
pub const PLANTED_MAX: Duration = Duration::from_secs(5);
/// What the agent may write to its own log. Bytes.
const LOG_MAX_BYTES: u64 = 64 << 10;
/// The user whose sample is planted among another's files.
const OTHER_USER: u32 = 65_534;

/// What is done to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storm {
    /// Four writers, each this many files, each unlinked right after it was written; every thousandth stays.
    Unlinked(usize),
    /// This many files of a tree that was there before are deleted, agent and deleter on one core.
    Deletes(usize),
    /// Rounds of `mkdir -p a/b/c`, a file written there, `rm -r a`.
    Trees(usize),
    /// Processes as fast as they start.
    Processes(usize),
    /// A tree of this many files is moved into the watched folder.
    Moved(usize),
    /// One file is written again and again; its last content is a sample.
    Rewrites(usize),
    /// Rounds of `touch f; echo >> f; rm f`, each by programs of their own.
    Rounds(usize),
    /// This many files while the agent is stopped: the kernel's queue must overflow.
    Stalled(usize),
}

/// Every storm, in the sizes that the promise names.
pub const ALL: [Storm; 8] = [
    Storm::Unlinked(50_000),
    Storm::Deletes(50_000),
    Storm::Trees(10_000),
    Storm::Processes(20_000),
    Storm::Moved(10_000),
    Storm::Rewrites(200_000),
    Storm::Rounds(1_000),
    Storm::Stalled(20_000),
];

/// What came of a storm.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of which storm.
    pub name: Option<Storm>,
    /// Files (or processes) of the generator's list.
    pub expected: usize,
    /// Those with an event of their own.
    pub with_event: usize,
    /// Those that are still there.
    pub survivors: usize,
    /// Survivors whose content nobody looked at. None may be.
    pub unscanned: Vec<PathBuf>,
    /// Losses that were told, by reason; `None` where the kernel does not count.
    pub gaps: BTreeMap<&'static str, Option<u64>>,
    /// What the agent said of its rescans.
    pub rescans: Vec<String>,
    /// How long the storm took.
    pub storm: Duration,
    /// How long the agent took after it.
    pub settled: Duration,
    /// Planted samples and how long until the outbox had their detection.
    pub planted: Vec<(&'static str, Option<Duration>)>,
    /// Agent and worker at rest before it. Bytes.
    pub memory_before: u64,
    /// The most they had together. Bytes.
    pub memory_peak: u64,
    /// Disk blocks of deleted files that the agent held open, at most. Bytes.
    pub pinned_peak: u64,
    /// And after it. Bytes.
    pub pinned_after: u64,
    /// What the agent wrote to its log. Bytes.
    pub log: u64,
    /// Its CPU time.
    pub cpu: Duration,
    /// Its counters afterwards.
    pub counters: BTreeMap<String, u64>,
    /// Sums that do not add up.
    pub unequal: Vec<String>,
    /// Detections that came more than once, or for files that are no sample.
    pub detections_odd: Vec<String>,
}

impl Storm {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Unlinked(count) => format!("4 × {count} files written and unlinked"),
            Self::Deletes(count) => format!("{count} deletes, one core"),
            Self::Trees(count) => format!("{count} × mkdir -p, write, rm -r"),
            Self::Processes(count) => format!("{count} short processes"),
            Self::Moved(count) => format!("a tree of {count} files moved in"),
            Self::Rewrites(count) => format!("{count} rewrites of one file"),
            Self::Rounds(count) => format!("{count} × touch, echo, rm"),
            Self::Stalled(count) => format!("{count} files while the reader is stalled"),
        }
    }
}

impl Outcome {
    /// What is not as promised, one sentence each.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut said = Vec::new();
        let missing = self.expected - self.with_event;
        let counted: u64 = self.gaps.values().flatten().sum();
        if matches!(self.name, Some(Storm::Stalled(_))) && self.gaps.is_empty() {
            said.push("the kernel's queue did not overflow".to_owned());
        }
        if missing as u64 > counted && !self.gaps.values().any(Option::is_none) {
            said.push(format!("{missing} without an event, and the gaps count {counted}: {:?}", self.gaps));
        }
        if !self.unscanned.is_empty() && !self.only_untold() {
            let some: Vec<_> = self.unscanned.iter().take(5).collect();
            said.push(format!("{} survivors nobody looked at: {some:?}", self.unscanned.len()));
        }
        for (what, delay) in &self.planted {
            match delay {
                None => said.push(format!("planted {what}: no detection")),
                Some(delay) if *delay > PLANTED_MAX => {
                    said.push(format!("planted {what}: detected after {delay:?}"));
                }
                Some(_) => {}
            }
        }
        let grown = self.memory_peak.saturating_sub(self.memory_before);
        if grown > MEMORY_MAX_BYTES {
            said.push(format!("memory grew by {} MiB", grown >> 20));
        }
        if self.pinned_after > 0 {
            said.push(format!("{} bytes of deleted files are still held", self.pinned_after));
        }
        if self.log > LOG_MAX_BYTES {
            said.push(format!("{} bytes of log", self.log));
        }
        said.extend(self.unequal.iter().cloned());
        said.extend(self.detections_odd.iter().cloned());
        said
    }

    /// Survivors without a verdict were scanned all the same: the disk was behind, so that events of clean files
    /// were shed on their way to the outbox. A gap counts those.
    fn only_untold(&self) -> bool {
        let counter = |name| self.counters.get(name).copied().unwrap_or_default();
        let looked_at = counter("detection_scanned") + counter("detection_cached");
        counter("events_shed_backlog") >= self.unscanned.len() as u64 && looked_at >= self.survivors as u64
    }
}

/// Lets one loose on an agent of its own.
///
/// # Errors
/// When the agent does not come up, ends, or its outbox can't be read.
pub fn run(storm: Storm) -> anyhow::Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("vidette-storm-").tempdir()?;
    let watched = folder.path().join("watched");
    fs::create_dir(&watched)?;
    fs::set_permissions(&watched, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    prepare(storm, folder.path())?;
    let mut agent = Agent::prepare(folder.path(), &watched, "self_test_s = 0", "")?;
    agent.start()?;
    wait_for("rules", || Ok((agent.status()?["rules"].as_u64() > Some(0)).then_some(())))?;
    let pid = agent.program.as_ref().context("the agent runs")?.pid();
    let said_before = agent.said().len() as u64;
    let watch = Watch::start(pid, &agent.state, watched.clone());
    std::thread::sleep(Duration::from_millis(500));
    let memory_before = memory_of_all(pid);

    let start = Instant::now();
    let done = generate(storm, folder.path(), pid)?;
    let storm_took = start.elapsed();
    let start = Instant::now();
    calm(&agent)?;
    let settled = start.elapsed().saturating_sub(CALM);

    let counters = counters(&agent)?;
    let cpu = cpu_of(pid)?;
    let pinned_after = pinned(pid, &watched);
    let seen = watch.stop()?;
    let events = read_outbox(&agent.state)?;
    let mut outcome = Outcome {
        name: Some(storm),
        storm: storm_took,
        settled,
        memory_before,
        memory_peak: seen.memory_peak,
        pinned_peak: seen.pinned_peak,
        pinned_after,
        log: agent.said().len() as u64 - said_before,
        cpu,
        unequal: unequal(&agent)?,
        counters,
        ..Outcome::default()
    };
    outcome.planted = done
        .planted
        .iter()
        .map(|planted| {
            let detected = seen.detected.get(planted.path.as_os_str().as_bytes());
            (planted.what, detected.map(|at| at.saturating_duration_since(planted.at)))
        })
        .collect();
    compare(storm, &done, &events, &mut outcome);
    Ok(outcome)
}

/// What was done, as the generator knows it.
#[derive(Debug, Default)]
struct Done {
    files: Vec<PathBuf>,
    survivors: Vec<PathBuf>,
    processes: usize,
    planted: Vec<Planted>,
}

#[derive(Debug)]
struct Planted {
    what: &'static str,
    path: PathBuf,
    at: Instant,
}

fn tree(folder: &Path, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::with_capacity(count);
    for number in 0..count {
        let place = folder.join(format!("d{}/e{}", number / 1000, number / 100 % 10));
        if number % 100 == 0 {
            fs::create_dir_all(&place)?;
        }
        let path = place.join(format!("f{number}"));
        fs::write(&path, format!("file {number}\n"))?;
        files.push(path);
    }
    Ok(files)
}

/// What must be there before the agent starts.
fn prepare(storm: Storm, folder: &Path) -> anyhow::Result<()> {
    match storm {
        Storm::Deletes(count) => drop(tree(&folder.join("watched/tree"), count)?),
        Storm::Moved(count) => drop(tree(&folder.join("outside/tree"), count)?),
        Storm::Unlinked(_)
        | Storm::Trees(_)
        | Storm::Processes(_)
        | Storm::Rewrites(_)
        | Storm::Rounds(_)
        | Storm::Stalled(_) => {}
    }
    Ok(())
}

fn generate(storm: Storm, folder: &Path, agent: u32) -> anyhow::Result<Done> {
    let watched = folder.join("watched");
    let mut done = match storm {
        Storm::Unlinked(count) => unlinked(&watched, count)?,
        Storm::Deletes(count) => deletes(&watched, count, agent)?,
        Storm::Trees(count) => trees(&watched, count)?,
        Storm::Processes(count) => processes(&watched, count)?,
        Storm::Moved(count) => moved(folder, count)?,
        Storm::Rewrites(count) => rewrites(&watched, count)?,
        Storm::Rounds(count) => rounds(&watched, count)?,
        Storm::Stalled(count) => stalled(&watched, count, agent)?,
    };
    done.survivors.extend(done.planted.iter().map(|planted| planted.path.clone()));
    done.files.extend(done.planted.iter().map(|planted| planted.path.clone()));
    Ok(done)
}

fn unlinked(watched: &Path, count: usize) -> anyhow::Result<Done> {
    let writers: Vec<JoinHandle<anyhow::Result<Done>>> = (0..4)
        .map(|writer| {
            let folder = watched.join(format!("writer-{writer}"));
            std::thread::spawn(move || {
                fs::create_dir(&folder)?;
                let mut done = Done::default();
                for number in 0..count {
                    let path = folder.join(format!("f{number}"));
                    fs::write(&path, format!("file {number} of {writer}\n"))?;
                    if number % 1000 == 999 {
                        done.survivors.push(path.clone());
                    } else {
                        fs::remove_file(&path)?;
                    }
                    done.files.push(path);
                    if writer == 0 && number == count / 2 {
                        done.planted = plant(&folder)?;
                    }
                }
                Ok(done)
            })
        })
        .collect();
    let mut all = Done::default();
    for writer in writers {
        let done = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        all.files.extend(done.files);
        all.survivors.extend(done.survivors);
        all.planted.extend(done.planted);
    }
    Ok(all)
}

fn deletes(watched: &Path, count: usize, agent: u32) -> anyhow::Result<Done> {
    for task in fs::read_dir(format!("/proc/{agent}/task"))? {
        on_first_core(task?.file_name().to_str().and_then(|tid| tid.parse().ok()))?;
    }
    let root = watched.join("tree");
    let mut done = Done::default();
    let deleter = std::thread::spawn(move || -> anyhow::Result<Vec<PathBuf>> {
        on_first_core(None)?;
        let mut deleted = Vec::new();
        for number in 0..count {
            let path = root.join(format!("d{}/e{}/f{number}", number / 1000, number / 100 % 10));
            fs::remove_file(&path)?;
            deleted.push(path);
        }
        Ok(deleted)
    });
    done.planted = plant(watched)?;
    done.files = deleter.join().map_err(|_| anyhow::anyhow!("the deleter panicked"))??;
    Ok(done)
}

fn on_first_core(tid: Option<i32>) -> anyhow::Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(0);
    // One that has ended meanwhile needs no core.
    let _ = rustix::thread::sched_setaffinity(tid.and_then(rustix::process::Pid::from_raw), &cores);
    Ok(())
}

fn trees(watched: &Path, count: usize) -> anyhow::Result<Done> {
    let mut done = Done::default();
    for number in 0..count {
        let root = watched.join("a");
        fs::create_dir_all(root.join("b/c"))?;
        let path = root.join(format!("b/c/f{number}"));
        fs::write(&path, format!("file {number}\n"))?;
        fs::remove_dir_all(&root)?;
        done.files.push(path);
        if number == count / 2 {
            done.planted = plant(watched)?;
        }
    }
    Ok(done)
}

fn processes(watched: &Path, count: usize) -> anyhow::Result<Done> {
    // A program of the watched folder, so that its runs are told.
    let program = watched.join("short");
    fs::copy("/bin/true", &program)?;
    let script = format!("i=0; while [ $i -lt {} ]; do ./short; i=$((i+1)); done", count / 2);
    let start = || Command::new("/bin/sh").args(["-c", &script]).current_dir(watched).spawn();
    let mut shells = [start()?, start()?];
    std::thread::sleep(Duration::from_secs(2));
    let planted = plant(watched)?;
    for shell in &mut shells {
        anyhow::ensure!(shell.wait()?.success(), "a shell failed");
    }
    Ok(Done { processes: count / 2 * 2, planted, ..Done::default() })
}

fn moved(folder: &Path, count: usize) -> anyhow::Result<Done> {
    let root = folder.join("watched/tree");
    fs::rename(folder.join("outside/tree"), &root)?;
    let planted = plant(&root)?;
    let files: Vec<PathBuf> = (0..count)
        .map(|number| root.join(format!("d{}/e{}/f{number}", number / 1000, number / 100 % 10)))
        .collect();
    Ok(Done { survivors: files.clone(), files, planted, ..Done::default() })
}

fn rewrites(watched: &Path, count: usize) -> anyhow::Result<Done> {
    let path = watched.join("again");
    let mut planted = Vec::new();
    for number in 0..count {
        fs::write(&path, format!("content {number}\n"))?;
        if number == count / 2 {
            planted = plant(watched)?;
        }
    }
    fs::write(&path, samples::eicar())?;
    planted.push(Planted { what: "as the last of the rewrites", path: path.clone(), at: Instant::now() });
    Ok(Done { files: Vec::new(), survivors: Vec::new(), planted, ..Done::default() })
}

fn rounds(watched: &Path, count: usize) -> anyhow::Result<Done> {
    let script =
        format!("i=0; while [ $i -lt {count} ]; do touch f$i; echo x >> f$i; rm f$i; i=$((i+1)); done");
    let mut shell = Command::new("/bin/sh").args(["-c", &script]).current_dir(watched).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let planted = plant(watched)?;
    anyhow::ensure!(shell.wait()?.success(), "the shell failed");
    let files = (0..count).map(|number| watched.join(format!("f{number}"))).collect();
    Ok(Done { files, planted, ..Done::default() })
}

fn stalled(watched: &Path, count: usize, agent: u32) -> anyhow::Result<Done> {
    let signal = |signal| -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_raw(agent.cast_signed()).context("a pid")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    };
    signal(rustix::process::Signal::STOP)?;
    let files = tree(&watched.join("tree"), count)?;
    let mut planted = plant(watched)?;
    signal(rustix::process::Signal::CONT)?;
    planted.iter_mut().for_each(|planted| planted.at = Instant::now());
    Ok(Done { survivors: files.clone(), files, planted, ..Done::default() })
}

/// Two samples in the middle of it: by the same user, and by another.
fn plant(folder: &Path) -> anyhow::Result<Vec<Planted>> {
    let at = Instant::now;
    let same = folder.join("planted-same-user");
    let same_at = at();
    fs::write(&same, unique(b"same"))?;
    let other = folder.join("planted-other-user");
    let other_at = at();
    // Made without being opened: a close of ours could be looked at as late as the other's write.
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &other, rustix::fs::FileType::RegularFile, mode, 0)?;
    rustix::fs::chown(&other, Some(rustix::fs::Uid::from_raw(OTHER_USER)), None)?;
    let mut child = Command::new("setpriv")
        .args(["--reuid", &OTHER_USER.to_string(), "--clear-groups", "tee"])
        .arg(&other)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    child.stdin.take().context("a pipe")?.write_all(&unique(b"other"))?;
    anyhow::ensure!(child.wait()?.success(), "the other user could not write");
    Ok(vec![
        Planted { what: "by the same user", path: same, at: same_at },
        Planted { what: "by another user", path: other, at: other_at },
    ])
}

fn unique(mark: &[u8]) -> Vec<u8> {
    [samples::eicar().as_slice(), b"\n", mark].concat()
}

/// Looks at the agent while it works.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    memory_peak: u64,
    pinned_peak: u64,
    detected: HashMap<Vec<u8>, Instant>,
}

impl Watch {
    fn start(pid: u32, state: &Path, watched: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, state) = (stop.clone(), state.to_path_buf());
        let thread = std::thread::spawn(move || {
            let (mut seen, mut last, mut turn) = (Seen::default(), 0, 0u32);
            let connection = open_outbox(&state)?;
            while !stopped.load(Ordering::Relaxed) {
                seen.memory_peak = seen.memory_peak.max(memory_of_all(pid));
                if turn.is_multiple_of(10) {
                    seen.pinned_peak = seen.pinned_peak.max(pinned(pid, &watched));
                }
                for (seq, event) in rows(&connection, "alert", last)? {
                    last = seq;
                    if let Some(Kind::Detection(detection)) = event.kind {
                        let path = detection.file.unwrap_or_default().path;
                        seen.detected.entry(path).or_insert_with(Instant::now);
                    }
                }
                turn += 1;
                std::thread::sleep(SAMPLE);
            }
            Ok(seen)
        });
        Self { stop, thread }
    }

    fn stop(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the look at the agent panicked"))?
    }
}

/// Of the agent and of what it started.
fn memory_of_all(pid: u32) -> u64 {
    let children = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: HashSet<u32> = children
        .flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    memory_bytes(pid) + children.into_iter().map(memory_bytes).sum::<u64>()
}

/// Blocks of deleted files of the watched folder that a process holds open. Bytes.
fn pinned(pid: u32, watched: &Path) -> u64 {
    let folder = fs::read_dir(format!("/proc/{pid}/fd"));
    let held = folder.into_iter().flatten().flatten().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.starts_with(watched).then(|| fs::metadata(entry.path()).ok()).flatten()
    });
    held.filter(|stat| stat.nlink() == 0).map(|stat| stat.blocks() * 512).sum()
}

fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("a stat line")?;
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn counters(agent: &Agent) -> anyhow::Result<BTreeMap<String, u64>> {
    Ok(serde_json::from_value(agent.status()?["counters"].clone())?)
}

/// Until nothing waits, no rescan is owed, and the counters stand still for a while.
fn calm(agent: &Agent) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut last, mut since) = (BTreeMap::new(), Instant::now());
    while since.elapsed() < CALM {
        anyhow::ensure!(start.elapsed() < CALM_WAIT, "no calm within {CALM_WAIT:?}: {last:?}");
        std::thread::sleep(Duration::from_millis(300));
        // The sensors also count what others do on this host.
        let status = agent.status()?;
        let mut now: BTreeMap<String, u64> = serde_json::from_value(status["counters"].clone())?;
        now.retain(|name, _| !name.starts_with("sensor_"));
        if now != last || status["rescan"]["owed"] != false {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn open_outbox(state: &Path) -> anyhow::Result<Connection> {
    let path = state.join("outbox/outbox.db");
    Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .with_context(|| format!("could not open {}", path.display()))
}

fn rows(connection: &Connection, table: &str, after: i64) -> anyhow::Result<Vec<(i64, wire::Event)>> {
    let mut select =
        connection.prepare_cached(&format!("SELECT seq, body FROM {table} WHERE seq > ? ORDER BY seq"))?;
    let rows = select.query_map([after], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    rows.map(|row| {
        let (seq, body) = row?;
        Ok((seq, wire::Event::decode(body.as_slice())?))
    })
    .collect()
}

fn read_outbox(state: &Path) -> anyhow::Result<Vec<wire::Event>> {
    let connection = open_outbox(state)?;
    let mut all = Vec::new();
    for table in ["alert", "telemetry"] {
        all.extend(rows(&connection, table, 0)?.into_iter().map(|(_, event)| event));
    }
    Ok(all)
}

/// What every stage says of itself, and does not add up.
fn unequal(agent: &Agent) -> anyhow::Result<Vec<String>> {
    let status = agent.status()?;
    let equations = status["equations"].as_array().context("equations")?;
    anyhow::ensure!(equations.len() >= 5, "{} equations", equations.len());
    let off = equations.iter().filter(|one| one["left"] != one["right"]);
    Ok(off.map(|one| format!("{}: {} is not {}", one["text"], one["left"], one["right"])).collect())
}

/// The generator's list against what the agent said.
fn compare(storm: Storm, done: &Done, events: &[wire::Event], outcome: &mut Outcome) {
    let (mut told, mut scanned): (HashSet<&[u8]>, HashSet<&[u8]>) = (HashSet::new(), HashSet::new());
    let (mut runs, mut detections) = (0, HashMap::<&[u8], usize>::new());
    for event in events {
        match &event.kind {
            Some(Kind::File(file)) => {
                let path = file.file.as_ref().map_or(&[][..], |file| &file.path);
                let counts = match storm {
                    Storm::Deletes(_) => {
                        file.action() == FileAction::Deleted || path.windows(7).any(|part| part == b"planted")
                    }
                    _ => file.action() != FileAction::Deleted,
                };
                if counts {
                    told.insert(path);
                }
                if matches!(file.verdict(), Verdict::Clean | Verdict::Matched) {
                    scanned.insert(path);
                }
            }
            Some(Kind::Process(process)) if process.action() == ProcessAction::Run => {
                let executable = process.process.as_ref().map_or(&[][..], |process| &process.executable);
                runs += usize::from(executable.ends_with(b"/short"));
            }
            Some(Kind::Detection(detection)) => {
                let path = detection.file.as_ref().map_or(&[][..], |file| &file.path);
                told.insert(path);
                scanned.insert(path);
                *detections.entry(path).or_default() += 1;
            }
            Some(Kind::Gap(gap)) => {
                let name = gap_name(gap.reason());
                let sum = outcome.gaps.entry(name).or_insert(Some(0));
                *sum = sum.zip(gap.count).map(|(one, other)| one + other);
            }
            Some(Kind::Audit(audit)) if audit.action == "rescanned" => {
                outcome.rescans.push(audit.detail.clone())
            }
            Some(Kind::Process(_) | Kind::Health(_) | Kind::Audit(_)) | None => {}
        }
    }
    outcome.expected = done.files.len() + done.processes;
    outcome.with_event = done.files.iter().filter(|path| told.contains(path.as_os_str().as_bytes())).count()
        + runs.min(done.processes);
    outcome.survivors = done.survivors.len();
    outcome.unscanned = done
        .survivors
        .iter()
        .filter(|path| !scanned.contains(path.as_os_str().as_bytes()))
        .cloned()
        .collect();
    let samples: HashSet<&[u8]> =
        done.planted.iter().map(|planted| planted.path.as_os_str().as_bytes()).collect();
    // Of a file that is rewritten, the scan for the write before may begin so late that it meets the last content too.
    let times_max = if matches!(outcome.name, Some(Storm::Rewrites(_))) { 2 } else { 1 };
    for (path, times) in detections {
        if times > times_max || !samples.contains(path) {
            outcome.detections_odd.push(format!("{times} detections of {}", path.escape_ascii()));
        }
    }
}

fn gap_name(reason: GapReason) -> &'static str {
    vidette_protocol::ecs::words::gap_reason(reason.into())
}
