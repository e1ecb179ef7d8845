//! Detection under more than it can take: who waits for whom, what is lost and how it is told and found again.
//! With the real worker; files are made in a folder of the test's own, and no sensor runs.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

mod stopping;

use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vidette_agent::detection::backlog::{ALERTS_MAX, TELEMETRY_MAX};
use vidette_agent::detection::hashes::HashSources;
use vidette_agent::detection::queue::{FILES_MAX, SWEEPS_MAX};
use vidette_agent::detection::rules::RuleSources;
use vidette_agent::detection::walk::Scope;
use vidette_agent::detection::{self, Config, Detection, EVENTS_QUEUE_MAX, Snapshot};
use vidette_agent::host::{Host, Moment};
use vidette_agent::sensors::{OBSERVATIONS_QUEUE_MAX, Observation, OpenFile};
use vidette_agent::telemetry::{Counters, Equation};
use vidette_agent::worker::poison::Poison;
use vidette_agent::worker::process::Launcher;
use vidette_protocol::wire::{self, GapReason, Trigger, Verdict, event::Kind};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than that: a worker that a test has stopped must not be killed for it.
const SCAN_TIMEOUT: Duration = Duration::from_secs(600);

/// Put together at run time, so that no scanner takes this file for it.
fn eicar() -> Vec<u8> {
    ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR", "-STANDARD-ANTIVIRUS-", "TEST-FILE!$H+H*"].concat().into_bytes()
}

struct Stage {
    folder: TempDir,
    root: PathBuf,
    detection: Detection,
    input: Sender<Observation>,
    events: Receiver<wire::Event>,
    counters: Arc<Counters>,
}

impl Stage {
    /// With its rules loaded.
    fn start() -> Self {
        Self::scanning(2)
    }

    /// Scanning so many files at once.
    fn scanning(scans_parallel: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let counters = Arc::new(Counters::default());
        let (input, observations) = bounded(OBSERVATIONS_QUEUE_MAX);
        let (out, events) = bounded(EVENTS_QUEUE_MAX);
        let config = Config {
            host: Host::read(),
            rules: RuleSources { builtin: true, files: vec![] },
            hashes: HashSources::default(),
            size_max_bytes: 1 << 20,
            scan_timeout: SCAN_TIMEOUT,
            scans_parallel,
            telemetry: true,
            // Tests stop the scanner, so that files wait.
            launcher: Launcher::of(Path::new(env!("CARGO_BIN_EXE_vidette-agent")))
                .unwrap()
                .with_patience(PATIENCE),
            poison: Poison::default(),
            memory: None,
            scope: Scope { roots: vec![bytes(&root)], exclude: vec![bytes(&root.join("left-out"))] },
            verdicts: Default::default(),
            sweep: Default::default(),
        };
        let detection = detection::start(config, counters.clone(), observations, out).unwrap();
        let stage = Self { folder, root, detection, input, events, counters };
        stage.wait_for("rules", |state| state.rules_count > 0);
        stage
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Snapshot) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(&self.detection.state()) {
            assert!(Instant::now() < end, "{what}: {:?} {:?}", self.detection.state(), self.counters.all());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.root.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// As the sensors tell of a file that user `uid` wrote with a program.
    fn send(&self, path: &Path, uid: u32, program: &str) {
        self.input.send(written(path, uid, program)).unwrap();
    }

    /// As a rescan tells of a file that it met.
    fn meet(&self, path: &Path) {
        let mut met = written(path, 0, "");
        if let Observation::FileWritten { trigger, process, .. } = &mut met {
            (*trigger, *process) = (Trigger::Sweep, None);
        }
        self.input.send(met).unwrap();
    }

    /// Until nothing waits and nothing is owed.
    fn at_peace(&self) {
        self.wait_for("peace", |state| {
            let owed = state.rescan.owed || state.loss_untold;
            !owed && state.queue_length == 0 && state.events_waiting == 0 && self.input.is_empty()
        });
    }

    /// Stops the scanner, so that files wait.
    fn pause(&self) -> rustix::process::Pid {
        let pid = self.detection.state().worker_pid.unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        stopping::stop(pid);
        pid
    }

    fn next(&self) -> wire::Event {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    /// Closes the input and returns the remaining events; the equations must hold then.
    fn end(self) -> (Vec<wire::Event>, Arc<Counters>) {
        drop(self.input);
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(PATIENCE) {
            events.push(event);
        }
        self.detection.join();
        drop(self.folder);
        balanced(&self.counters);
        assert_eq!(self.counters.detection_waiting.get(), 0);
        (events, self.counters)
    }
}

/// Reads events beside the test, as the outbox does.
struct Reading {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<wire::Event>>,
}

impl Reading {
    fn of(stage: &Stage) -> Self {
        let (events, done) = (stage.events.clone(), Arc::new(AtomicBool::new(false)));
        let stop = done.clone();
        let thread = std::thread::spawn(move || {
            let mut read = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                read.extend(events.recv_timeout(Duration::from_millis(20)));
            }
            read
        });
        Self { done, thread }
    }

    fn end(self) -> Vec<wire::Event> {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn go_on(worker: rustix::process::Pid) {
    rustix::process::kill_process(worker, rustix::process::Signal::CONT).unwrap();
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn written(path: &Path, uid: u32, program: &str) -> Observation {
    let file = OpenFile {
        descriptor: File::open(path).unwrap().into(),
        path: bytes(path),
        deleted: false,
        container_path: Vec::new(),
    };
    let process = wire::Process { uid: Some(uid), executable: program.into(), ..Default::default() };
    Observation::FileWritten {
        file,
        process: Some(process),
        trigger: Trigger::CloseWrite,
        old_path: Vec::new(),
        at: Moment::now(),
    }
}

fn balanced(counters: &Counters) {
    let broken: Vec<Equation> =
        counters.equations().into_iter().filter(|equation| !equation.holds()).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

fn path_of(event: &wire::Event) -> Option<(&[u8], Verdict)> {
    match &event.kind {
        Some(Kind::File(event)) => Some((&event.file.as_ref()?.path, event.verdict())),
        _ => None,
    }
}

fn detected(event: &wire::Event) -> Option<&[u8]> {
    match &event.kind {
        Some(Kind::Detection(detection)) => Some(&detection.file.as_ref()?.path),
        _ => None,
    }
}

fn gap(event: &wire::Event) -> Option<&wire::Gap> {
    if let Some(Kind::Gap(gap)) = &event.kind { Some(gap) } else { None }
}

fn rescanned(event: &wire::Event) -> Option<&str> {
    match &event.kind {
        Some(Kind::Audit(audit)) if audit.action == "rescanned" => Some(&audit.detail),
        _ => None,
    }
}

fn figure(detail: &str, name: &str) -> u64 {
    let value = detail.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name} in {detail}")).parse().unwrap()
}

// ---------------------------------------------------------------- fairness

#[test]
fn one_user_s_storm_does_not_delay_another_s_file() {
    const STORM: usize = 20_000;
    // Of two that scan, one may stand still on a busy host while the other goes on: that order says nothing of the queue's.
    let stage = Stage::scanning(1);
    let (events, input) = (stage.events.clone(), stage.input.clone());
    let storm: Vec<PathBuf> = (0..500)
        .map(|number| stage.write(&format!("storm-{number}"), number.to_string().as_bytes()))
        .collect();
    let (other, program) = (stage.write("other", b"other"), stage.write("program", b"program"));
    let planted = stage.write("planted", &eicar());
    // Copies of few files would be merged: each observation has a file of its own.
    let root = stage.root.clone();
    let worker = stage.pause();
    // What the worker takes at most before it is full. Then as many as may wait because a rescan met them; the last is `other`.
    let (first, met) = storm.split_at(64);
    first.iter().for_each(|path| stage.send(path, 1000, "/bin/storm"));
    stage.wait_for("a full worker", |_| stage.input.is_empty());
    met[..SWEEPS_MAX - 1].iter().chain([&other]).for_each(|path| stage.meet(path));
    let met = |state: &Snapshot| stage.input.is_empty() && state.queue_length >= first.len() + SWEEPS_MAX - 1;
    stage.wait_for("what was met", met);
    let writer = std::thread::spawn(move || {
        for number in 0..STORM {
            let path = root.join(format!("copy-{number}"));
            fs::write(&path, number.to_string()).unwrap();
            input.send(written(&path, 1000, "/bin/storm")).unwrap();
            fs::remove_file(&path).unwrap();
        }
    });
    let full = |state: &Snapshot| state.queue_length >= FILES_MAX;
    // The events have to be read, or the telemetry of what was shed waits and is shed in turn.
    let end = Instant::now() + PATIENCE;
    let mut shed = 0;
    while !(full(&stage.detection.state()) && writer.is_finished() && events.is_empty()) {
        assert!(Instant::now() < end, "{:?}", stage.detection.state());
        shed += events.try_iter().filter(|event| path_of(event).is_some()).count();
        std::thread::sleep(Duration::from_millis(1));
    }
    writer.join().unwrap();
    stage.send(&other, 1001, "/bin/other");
    stage.send(&program, 1000, "/bin/another");
    stage.send(&planted, 1002, "/bin/planted");
    stage.wait_for("all taken", |_| stage.input.is_empty());
    go_on(worker);
    let (mut scanned, mut places) = (0, Vec::new());
    while places.len() < 3 {
        let event = stage.next();
        let Some((path, verdict)) = path_of(&event) else { continue };
        if verdict == Verdict::NotScanned {
            shed += 1;
            continue;
        }
        scanned += 1;
        for (name, wanted) in [("other", &other), ("program", &program), ("planted", &planted)] {
            if path == bytes(wanted) {
                places.push((name, scanned));
            }
        }
    }
    println!("{shed} of {STORM} shed; scanned as number: {places:?}; ticks of its thread: {}", ticks());
    // Two batches of 8 were in the worker's hands, and as many may be handed over while those are answered; three users
    // and two programs take turns.
    assert!(places.iter().all(|(_, place)| *place <= 40), "{places:?}");
    let (_, counters) = stage.end();
    // A rescan may meet a copy before it is told of, so that the two are one.
    let (lost, merged) = (counters.detection_lost_queue.get(), counters.detection_shed_coalesced.get());
    assert!(lost + merged >= (STORM - FILES_MAX - 64) as u64, "{lost} lost, {merged} merged");
}

/// Processor time of the detection thread, in hundredths of a second: a figure to look at, not to judge by.
fn ticks() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let of_detection = stats.filter(|stat| stat.contains("(detection)"));
    of_detection
        .flat_map(|stat| {
            let fields = stat.rsplit(')').next().unwrap_or_default();
            fields
                .split_ascii_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse::<u64>().ok())
                .collect::<Vec<_>>()
        })
        .sum()
}

/// A rescan may open a file before its first byte is there and scan it after the last: by the later state its writer's
/// close is the same detection, not a second one.
#[test]
fn a_file_that_a_rescan_met_half_written_is_told_as_it_was_scanned() {
    let stage = Stage::start();
    stage.send(&stage.write("first", b"first"), 0, "/bin/cp");
    stage.wait_for("a worker with its rules", |_| stage.counters.detection_scanned.get() == 1);
    let worker = stage.pause();
    let path = stage.write("half", b"");
    stage.meet(&path);
    stage.wait_for("its turn", |_| stage.counters.detection_waiting.get() == 1);
    // Until it is with the scanner. Too short a wait proves less and breaks nothing.
    std::thread::sleep(Duration::from_millis(300));
    stage.write("half", &eicar());
    rustix::process::kill_process(worker, rustix::process::Signal::CONT).unwrap();
    let file = loop {
        if let Some(Kind::Detection(detection)) = stage.next().kind {
            break detection.file.unwrap();
        }
    };
    let stat = fs::metadata(&path).unwrap();
    let ctime = std::os::unix::fs::MetadataExt::ctime(&stat) * 1_000_000_000
        + std::os::unix::fs::MetadataExt::ctime_nsec(&stat);
    assert_eq!((file.size, file.ctime_unix_ns), (eicar().len() as u64, ctime));
    stage.end();
}

#[test]
fn what_may_be_run_and_what_runs_goes_first() {
    let stage = Stage::start();
    let worker = stage.pause();
    for number in 0..200 {
        let path = stage.write(&format!("rest-{number}"), number.to_string().as_bytes());
        stage.send(&path, 1000, "/bin/cp");
    }
    let script = stage.write("script", b"#!/bin/sh\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    stage.send(&script, 1000, "/bin/cp");
    let program = stage.write("runs", b"it runs");
    let image = OpenFile {
        descriptor: File::open(&program).unwrap().into(),
        path: bytes(&program),
        deleted: false,
        container_path: Vec::new(),
    };
    let process = wire::Process { pid: 77, uid: Some(1000), ..Default::default() };
    let run = Observation::ProgramRun { process, image: Some(image), found: false, at: Moment::now() };
    stage.input.send(run).unwrap();
    stage.wait_for("all taken", |_| stage.input.is_empty());
    go_on(worker);
    let (mut place, mut order) = (0, Vec::new());
    while order.len() < 2 {
        let event = stage.next();
        match &event.kind {
            Some(Kind::Process(_)) => order.push(("runs", place)),
            Some(Kind::File(_)) if path_of(&event).unwrap().0 == bytes(&script) => {
                order.push(("script", place))
            }
            Some(Kind::File(_)) => {}
            _ => continue,
        }
        place += 1;
    }
    println!("in which places: {order:?}");
    // Of 202, behind what the worker had: four batches of 8, and as many handed over while those are answered.
    assert!(order.iter().all(|(_, place)| *place <= 80), "{order:?}");
    stage.end();
}

// ---------------------------------------------------------------- loss and rescan

#[test]
fn what_a_full_queue_sheds_is_told_and_found_again() {
    const STORM: usize = 6_000;
    let stage = Stage::start();
    let reading = Reading::of(&stage);
    fs::create_dir(stage.root.join("storm")).unwrap();
    fs::create_dir(stage.root.join("left-out")).unwrap();
    stage.write("left-out/no", &eicar());
    let paths: Vec<PathBuf> = (0..STORM).map(|number| stage.root.join(format!("storm/{number}"))).collect();
    let worker = stage.pause();
    for (number, path) in paths.iter().enumerate() {
        let content = if number + 1 == STORM { eicar() } else { number.to_string().into_bytes() };
        fs::write(path, content).unwrap();
        stage.send(path, 1000, "/bin/storm");
    }
    stage.wait_for("all taken", |_| stage.input.is_empty());
    go_on(worker);
    stage.at_peace();
    let mut events = reading.end();
    let (rest, counters) = stage.end();
    events.extend(rest);
    let lost = counters.detection_lost_queue.get();
    let told: u64 = events.iter().filter_map(gap).filter_map(|gap| gap.count).sum();
    let reports: Vec<&str> = events.iter().filter_map(rescanned).collect();
    println!("{lost} of {STORM} shed, {reports:?}");
    assert!(lost > 0 && told == lost + counters.events_shed_backlog.get(), "{lost} lost, {told} told");
    for detail in &reports {
        assert!(
            detail.starts_with("reason=detection-queue since=20") && detail.ends_with("whole=true"),
            "{detail}"
        );
    }
    assert!(counters.rescans.get() == reports.len() as u64 && !reports.is_empty());
    let found: Vec<&[u8]> = events.iter().filter_map(detected).collect();
    assert!(!found.is_empty() && found.iter().all(|path| *path == bytes(&paths[STORM - 1])), "{found:?}");
    let looked = |event: &'_ wire::Event| {
        path_of(event).filter(|(_, verdict)| *verdict != Verdict::NotScanned).is_some()
    };
    let scanned: HashSet<&[u8]> =
        events.iter().filter(|event| looked(event)).filter_map(|event| Some(path_of(event)?.0)).collect();
    let missing = paths.iter().filter(|path| !scanned.contains(&bytes(path)[..])).count();
    assert!(missing as u64 <= counters.events_shed_backlog.get(), "{missing} survivors were not looked at");
}

#[test]
fn a_loss_in_the_kernel_is_followed_by_a_rescan_of_what_changed_since() {
    let stage = Stage::start();
    fs::create_dir(stage.root.join("deep")).unwrap();
    stage.write("deep/before", &eicar());
    std::thread::sleep(Duration::from_millis(2_500));
    let from = Moment::now();
    let missed = stage.write("deep/missed", &eicar());
    let gap = wire::Gap {
        reason: GapReason::KernelQueue.into(),
        from_unix_ns: from.unix_ns,
        to_unix_ns: Moment::now().unix_ns,
        ..Default::default()
    };
    let hot = vec![bytes(&stage.root.join("deep"))];
    stage.input.send(Observation::Lost { gap, hot, at: Moment::now() }).unwrap();
    stage.wait_for("owed", |state| state.rescan.owed || state.rescan.runs > 0);
    let (mut found, mut report) = (Vec::new(), None);
    while report.is_none() {
        let event = stage.next();
        found.extend(detected(&event).map(<[u8]>::to_vec));
        report = rescanned(&event).map(str::to_owned);
    }
    let detail = report.unwrap();
    assert!(detail.starts_with("reason=kernel-queue "), "{detail}");
    assert_eq!((figure(&detail, "hot_folders"), figure(&detail, "unreadable")), (1, 0), "{detail}");
    stage.wait_for("peace", |state| !state.rescan.owed && state.queue_length == 0);
    let (events, _) = stage.end();
    found.extend(events.iter().filter_map(detected).map(<[u8]>::to_vec));
    // Met in the hot folder and in the whole: the outbox merges what is told twice.
    found.dedup();
    assert_eq!(found, [bytes(&missed)], "not what is older than the gap");
}

#[test]
fn a_rescan_passes_over_what_was_scanned_in_the_state_it_is_in() {
    let stage = Stage::start();
    let path = stage.write("file", b"content");
    std::thread::sleep(Duration::from_millis(300));
    stage.send(&path, 0, "/bin/cp");
    while path_of(&stage.next()).is_none() {}
    let ask = |stage: &Stage, runs: u64| {
        stage.detection.rescan("asked", 0);
        stage.wait_for("a run", |state| state.rescan.runs == runs && state.queue_length == 0);
    };
    ask(&stage, 1);
    stage.wait_for("taken", |_| stage.counters.detection_seen.get() == 2);
    assert_eq!((stage.counters.detection_shed_known.get(), stage.counters.detection_scanned.get()), (1, 1));
    fs::write(&path, b"changed").unwrap();
    ask(&stage, 2);
    let (_, counters) = stage.end();
    assert_eq!((counters.detection_shed_known.get(), counters.detection_scanned.get()), (1, 2));
}

#[test]
fn a_folder_that_comes_into_view_is_walked_from_its_descriptor() {
    let stage = Stage::start();
    fs::create_dir_all(stage.root.join("moved/a/b")).unwrap();
    for number in 0..100 {
        stage.write(&format!("moved/a/b/{number}"), number.to_string().as_bytes());
    }
    stage.write("moved/a/planted", &eicar());
    let folder = File::open(stage.root.join("moved")).unwrap().into();
    fs::rename(stage.root.join("moved"), stage.root.join("elsewhere")).unwrap();
    let path = bytes(&stage.root.join("moved"));
    let (since_unix_ns, reason, at) = (0, "moved", Moment::now());
    stage.input.send(Observation::CameIntoView { folder, path, since_unix_ns, reason, at }).unwrap();
    let (mut files, mut found, mut report) = (0, 0, None);
    while report.is_none() || files < 101 {
        let event = stage.next();
        files += usize::from(path_of(&event).is_some());
        found += usize::from(detected(&event) == Some(&bytes(&stage.root.join("moved/a/planted"))));
        report = report.or(rescanned(&event).map(str::to_owned));
    }
    let detail = report.unwrap();
    assert!(detail.starts_with("reason=moved ") && detail.contains(" folder=/"), "{detail}");
    assert_eq!((files, found, figure(&detail, "changed")), (101, 1, 101), "{detail}");
    stage.end();
}

// ---------------------------------------------------------------- the outbox stalls

#[test]
fn a_stalled_outbox_costs_telemetry_and_neither_the_input_nor_a_detection() {
    const ENDS: usize = EVENTS_QUEUE_MAX + TELEMETRY_MAX + 20_000;
    let stage = Stage::start();
    // Nobody reads an event: an outbox that hangs.
    for pid in 0..ENDS {
        let process = wire::Process { pid: u32::try_from(pid).unwrap(), ..Default::default() };
        let ended = Observation::ProcessEnded { process, status: None, at: Moment::now() };
        stage.input.send_timeout(ended, PATIENCE).unwrap();
    }
    let planted = stage.write("planted", &eicar());
    stage.send(&planted, 1000, "/bin/planted");
    stage.wait_for("the scan", |_| stage.counters.detection_scanned.get() == 1 && stage.input.is_empty());
    stage.wait_for("all counted", |state| state.queue_length == 0);
    let shed = stage.counters.events_shed_backlog.get();
    assert!(shed >= 19_000 - ALERTS_MAX as u64, "{:?}", stage.counters.all());
    let path = bytes(&planted);
    let (events, counters) = stage.end();
    let place = events.iter().position(|event| detected(event) == Some(&path));
    assert!(place.is_some_and(|place| place <= EVENTS_QUEUE_MAX + 8), "right after the channel: {place:?}");
    let told: u64 = events.iter().filter_map(gap).filter_map(|gap| gap.count).sum();
    assert_eq!(told, counters.events_shed_backlog.get(), "each one that was shed is in a gap");
}

// ---------------------------------------------------------------- accounting

#[test]
fn every_observation_and_every_event_ends_in_one_place() {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    for seed in 0..3u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let stage = Stage::start();
        let reading = Reading::of(&stage);
        let files: Vec<PathBuf> =
            (0..3000).map(|number| stage.write(&number.to_string(), number.to_string().as_bytes())).collect();
        for step in 0..15_000u32 {
            let (at, process) = (Moment::now(), wire::Process { pid: step, ..Default::default() });
            let path = &files[random.random_range(0..files.len())];
            let observation = match random.random_range(0..20) {
                0 => Observation::ProgramRun { process, image: None, found: false, at },
                1 => Observation::ProcessEnded { process, status: Some(0), at },
                2 => {
                    let image = File::open(path).unwrap().into();
                    let (path, deleted, container_path) = (bytes(path), false, Vec::new());
                    let image = Some(OpenFile { descriptor: image, path, deleted, container_path });
                    Observation::ProgramRun { process, image, found: false, at }
                }
                3 => Observation::NameChanged {
                    action: wire::FileAction::Deleted,
                    file: wire::File::default(),
                    old_path: Vec::new(),
                    folder: false,
                    process: None,
                    at,
                },
                4 if step % 500 == 0 => {
                    let reason = GapReason::KernelQueue.into();
                    let gap = wire::Gap { reason, from_unix_ns: at.unix_ns, ..Default::default() };
                    Observation::Lost { gap, hot: vec![bytes(&stage.root)], at }
                }
                _ => written(path, random.random_range(0..3), "/bin/storm"),
            };
            stage.input.send(observation).unwrap();
            if random.random_bool(0.001) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        stage.at_peace();
        reading.end();
        let (_, counters) = stage.end();
        let all = counters.all();
        assert!(counters.detection_seen.get() >= 15_000 && counters.detection_passed.get() > 0, "{all:?}");
        assert!(counters.detection_shed_coalesced.get() > 0, "{all:?}");
    }
}
