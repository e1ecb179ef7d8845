//! A pool, a stage, and what comes of them.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::detection::rules::RuleSources;
use vidette_agent::detection::walk::Scope;
use vidette_agent::detection::{self, Config, Detection, EVENTS_QUEUE_MAX};
use vidette_agent::host::{Host, Moment};
use vidette_agent::sensors::{Observation, OpenFile};
use vidette_agent::telemetry::Counters;
use vidette_agent::worker::poison::Poison;
use vidette_agent::worker::pool::{Output, Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_agent::worker::{Outcome, RuleSet, Scan, Source};
use vidette_protocol::wire::{self, Trigger, event::Kind};

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_vidette-agent");
/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
/// The shortest time that a scan may be given.
pub(crate) const SHORT: Duration = Duration::from_secs(2);

pub(crate) const MARKER: &[u8] = b"vidette-marker-string";
pub(crate) const MARKER_RULE: &str = r#"rule marker { strings: $a = "vidette-marker-string" condition: $a }"#;

pub(crate) fn source(name: &str, text: &str) -> Source {
    Source { name: name.into(), text: text.into() }
}

/// The marker's rule, and another file of rules.
pub(crate) fn with_rules(name: &str, text: &str) -> RuleSet {
    RuleSet::new(vec![source("marker.yar", MARKER_RULE), source(name, text)])
}

pub(crate) fn settings(rules: RuleSet) -> Settings {
    let launcher = Launcher::of(Path::new(AGENT)).unwrap();
    Settings { threads: 2, timeout: SHORT, ..Settings::new(launcher, rules) }
}

/// Everything that a pool said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) done: BTreeMap<u64, Outcome>,
    /// In the order they were done.
    pub(crate) order: Vec<u64>,
    pub(crate) died: Vec<String>,
    pub(crate) refused: Vec<String>,
    pub(crate) unavailable: Vec<String>,
    pub(crate) loaded: Vec<vidette_agent::worker::messages::Loaded>,
}

impl Said {
    pub(crate) fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Done(one) => {
                    self.order.push(one.id);
                    self.done.insert(one.id, one.outcome);
                }
                Output::Died(reason) => self.died.push(reason),
                Output::RulesRefused { reason, .. } => self.refused.push(reason),
                Output::Unavailable(reason) => self.unavailable.push(reason),
                Output::Loaded(loaded) => self.loaded.push(loaded),
                Output::Started(_) => {}
            }
        }
    }

    pub(crate) fn scan(&self, id: u64) -> &Scan {
        match &self.done[&id] {
            Outcome::Scanned(scan) => scan,
            other => panic!("{id} was not scanned: {other:?}; {self:?}"),
        }
    }
}

/// Waits for something that the pool says.
pub(crate) fn until(pool: &mut Pool, said: &mut Said, mut what: impl FnMut(&Said, &Pool) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !what(said, pool) {
        assert!(Instant::now() < end, "it does not come: {said:?} {pool:?}");
        said.take(pool.wait(Duration::from_millis(50)));
    }
}

pub(crate) fn ready(settings: Settings) -> (Pool, Said) {
    let (mut pool, mut said) = (Pool::new(settings), Said::default());
    said.take(pool.prepare(Instant::now()));
    until(&mut pool, &mut said, |said, _| !said.loaded.is_empty() || !said.unavailable.is_empty());
    assert!(said.unavailable.is_empty(), "{said:?}");
    (pool, said)
}

pub(crate) fn submit(pool: &mut Pool, said: &mut Said, id: u64, file: File) {
    let outputs = pool.submit(id, file.into(), Instant::now());
    said.take(outputs);
}

pub(crate) fn scan(pool: &mut Pool, said: &mut Said, id: u64, file: File) {
    submit(pool, said, id, file);
    until(pool, said, |said, _| said.done.contains_key(&id));
}

pub(crate) fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// As the sensors and the walk open: without waiting for anything.
pub(crate) fn open(path: &Path) -> File {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into()
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Runs one test again in a process of its own, with less memory: its workers have the same limit. Whether this is
/// that process. Changing the limit of a running worker would need CAP_SYS_RESOURCE, which a test may not have.
pub(crate) fn with_little_memory(test: &str) -> bool {
    with_memory(test, LITTLE_BYTES)
}

/// The same with so many bytes.
pub(crate) fn with_memory(test: &str, bytes: u64) -> bool {
    const INSIDE: &str = "VIDETTE_TEST_WITH_LITTLE_MEMORY";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut again = std::process::Command::new("sh");
    again.args(["-c", &format!("ulimit -d {} && exec \"$@\"", bytes >> 10), "sh"]);
    again.arg(std::env::current_exe().unwrap()).args(["--exact", "--nocapture", test]);
    let output = again.env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}{output:?}");
    false
}

/// Private writable memory of a process that has little. Bytes.
pub(crate) const LITTLE_BYTES: u64 = 160 << 20;

/// Sets the soft limit of open files of a running process with our user (prlimit(2)). Returns what it was.
pub(crate) fn limit_descriptors(pid: u32, most: u64) -> u64 {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.unwrap().as_raw_nonzero())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let maximum = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let limit = Rlimit { current: Some(most), maximum: Some(maximum) };
    let before = prlimit(pid, Resource::Nofile, limit);
    before.unwrap().current.unwrap()
}

/// Open files of a running process.
pub(crate) fn descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

/// Children of this process that compile.
pub(crate) fn compilers() -> Vec<u32> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent == Some(own.as_str()) && read("cmdline").windows(9).any(|part| part == b"--compile")
    })
    .collect()
}

// ---------------------------------------------------------------- the stage

pub(crate) struct Stage {
    pub(crate) detection: Detection,
    pub(crate) input: Sender<Observation>,
    pub(crate) events: Receiver<wire::Event>,
}

pub(crate) fn stage(
    rules: Vec<PathBuf>,
    launcher: Launcher,
    poison: Poison,
    scan_timeout: Duration,
) -> Stage {
    let counters = Arc::new(Counters::default());
    let (input, observations) = bounded(1024);
    let (out, events) = bounded(EVENTS_QUEUE_MAX);
    let config = Config {
        hashes: Default::default(),
        memory: None,
        verdicts: Default::default(),
        sweep: Default::default(),
        host: Host::read(),
        rules: RuleSources { builtin: false, files: rules },
        size_max_bytes: 64 << 20,
        scan_timeout,
        scans_parallel: 2,
        telemetry: true,
        launcher,
        poison,
        scope: Scope::default(),
    };
    let detection = detection::start(config, counters, observations, out).unwrap();
    Stage { detection, input, events }
}

impl Stage {
    pub(crate) fn wait(&self, what: impl Fn(&detection::Snapshot) -> bool) -> detection::Snapshot {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.detection.state();
            if what(&state) {
                return state;
            }
            assert!(Instant::now() < end, "{state:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes the input and returns all events.
    pub(crate) fn end(self) -> Vec<wire::Event> {
        drop(self.input);
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(PATIENCE) {
            events.push(event);
        }
        self.detection.join();
        events
    }
}

pub(crate) fn written(path: &str, file: File) -> Observation {
    let file = OpenFile {
        descriptor: file.into(),
        path: path.as_bytes().to_vec(),
        deleted: false,
        container_path: Vec::new(),
    };
    let (trigger, at) = (Trigger::CloseWrite, Moment::now());
    Observation::FileWritten { file, process: None, trigger, old_path: Vec::new(), at }
}

pub(crate) fn detections(events: &[wire::Event]) -> Vec<&wire::Detection> {
    let of = |event: &'_ wire::Event| matches!(event.kind, Some(Kind::Detection(_)));
    let detections = events.iter().filter(|event| of(event)).filter_map(|event| event.kind.as_ref());
    detections.filter_map(|kind| if let Kind::Detection(one) = kind { Some(one) } else { None }).collect()
}

/// The state and message of each health event of one component.
pub(crate) fn health(events: &[wire::Event], component: &str) -> Vec<(wire::HealthState, String)> {
    let of = |event: &wire::Event| match &event.kind {
        Some(Kind::Health(health)) if health.component == component => {
            Some((health.state(), health.message.clone()))
        }
        _ => None,
    };
    events.iter().filter_map(of).collect()
}
