//! The scanner as it really runs: the agent's own program, sandboxed, killed, stopped, fed with bad files and rules.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

mod stopping;

use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::detection::hashes::HashSources;
use vidette_agent::detection::rules::{RuleSources, Source};
use vidette_agent::detection::walk::Scope;
use vidette_agent::detection::{self, Config, Detection, EVENTS_QUEUE_MAX};
use vidette_agent::host::{Host, Moment};
use vidette_agent::sensors::{Observation, OpenFile};
use vidette_agent::sys::sandbox::Violation;
use vidette_agent::telemetry::Counters;
use vidette_agent::worker::clean::{Entry, Layout, Region, Table, version_of, with_lists};
use vidette_agent::worker::poison::Poison;
use vidette_agent::worker::pool::{self, Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_agent::worker::{Outcome, RuleSet, Scan};
use vidette_protocol::wire::{self, Severity, Trigger, Verdict, event::Kind};

const AGENT: &str = env!("CARGO_BIN_EXE_vidette-agent");
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Put together at run time, so that no scanner takes this file for it.
fn eicar() -> Vec<u8> {
    ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR", "-STANDARD-ANTIVIRUS-", "TEST-FILE!$H+H*"].concat().into_bytes()
}

const MARKER_RULES: &str = r#"
private rule hidden { condition: true }
rule marker : tag_a tag_b {
  meta:
    id = "T-1"
    description = "a marker"
    severity = "Critical"
    author = "tests"
    reference = "https://example.org/"
    mitre_attack = "T1059.004, T1505"
  strings:
    $marker = "vidette-marker-string"
  condition:
    $marker and hidden
}
rule lesser { meta: severity = "low" strings: $marker = "vidette-marker" condition: $marker }
"#;

fn rules(text: &str) -> RuleSet {
    RuleSet::new(vec![Source { name: "test.yar".into(), text: text.into() }])
}

fn pool_with(violation: Violation, threads: usize, size_max_bytes: u64, timeout: Duration) -> Pool {
    let launcher = Launcher::of(Path::new(AGENT)).unwrap().with_violation(violation);
    Pool::new(Settings { threads, size_max_bytes, timeout, ..Settings::new(launcher, rules(MARKER_RULES)) })
}

fn pool() -> Pool {
    pool_with(Violation::Deny, 2, 1 << 20, Duration::from_secs(10))
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn ready(pool: &mut Pool) {
    let mut outputs = pool.prepare(Instant::now());
    let end = Instant::now() + PATIENCE;
    while !outputs.iter().any(|output| matches!(output, pool::Output::Loaded(_))) {
        assert!(Instant::now() < end, "the worker did not load: {outputs:?}");
        outputs = pool.wait(Duration::from_millis(100));
    }
}

fn finish(pool: &mut Pool, mut outputs: Vec<pool::Output>) -> BTreeMap<u64, Outcome> {
    let (mut done, end) = (BTreeMap::new(), Instant::now() + PATIENCE);
    loop {
        for output in outputs {
            if let pool::Output::Done(one) = output {
                done.insert(one.id, one.outcome);
            }
        }
        if pool.is_empty() {
            return done;
        }
        assert!(Instant::now() < end, "files are still being scanned");
        outputs = pool.wait(Duration::from_millis(100));
    }
}

fn scan_one(pool: &mut Pool, file: File) -> Outcome {
    let outputs = pool.submit(1, file.into(), Instant::now());
    finish(pool, outputs).remove(&1).unwrap()
}

fn scanned(outcome: Outcome) -> Scan {
    match outcome {
        Outcome::Scanned(scan) => scan,
        other => panic!("not scanned: {other:?}"),
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn agent(arguments: &[&str]) -> Output {
    Command::new(AGENT).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// ---------------------------------------------------------------- the sandbox

#[test]
fn inside_the_sandbox_every_attempt_is_denied() {
    let output = agent(&["worker", "--probe"]);
    let lines = text(&output.stdout);
    assert!(output.status.success(), "{lines}{}", text(&output.stderr));
    for attempt in [
        "open for reading",
        "open for writing",
        "open own memory",
        "internet socket",
        "unix socket",
        "netlink socket",
        "exec",
        "kill the parent",
        "fork",
        "trace the parent",
        "new user namespace",
        "map executable memory",
        "map writable executable memory",
        "make memory executable",
    ] {
        // 1 is EPERM: the filter's answer to everything that is not on its list.
        assert!(lines.lines().any(|line| line == format!("{attempt}\terrno 1")), "{attempt} in:\n{lines}");
    }
    let status: BTreeMap<&str, &str> =
        lines.lines().filter_map(|line| line.strip_prefix("status\t")?.split_once('\t')).collect();
    assert_eq!((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"), "{lines}");
    assert_eq!(status["CapEff"], "0000000000000000");
    if rustix::process::geteuid().is_root() {
        let nobody = "65534 65534 65534 65534";
        assert_eq!((status["Uid"], status["Gid"], status["Groups"]), (nobody, nobody, ""));
        for set in ["CapInh", "CapPrm", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set}");
        }
    }
    assert!(lines.contains("landlock\tfull") || lines.contains("landlock\tpartial"), "{lines}");
}

#[test]
fn the_first_violation_kills_in_kill_mode() {
    let output = agent(&["worker", "--probe", "--kill-on-violation"]);
    let lines = text(&output.stdout);
    assert!(!output.status.success() && lines.contains("signal: 31"), "{lines}");
    assert!(!lines.contains("errno"), "{lines}");
}

/// Compiling, scanning with a timeout (which starts a thread), matching: no call that the list lacks.
#[test]
fn a_scan_makes_no_call_that_is_not_allowed() {
    let mut pool = pool_with(Violation::Kill, 2, 1 << 20, Duration::from_secs(10));
    ready(&mut pool);
    for (content, verdict) in [
        (b"nothing".to_vec(), Verdict::Clean),
        (b"a vidette-marker-string".to_vec(), Verdict::Matched),
        (std::fs::read(AGENT).unwrap(), Verdict::TooLarge),
        (std::fs::read("/bin/true").unwrap(), Verdict::Clean),
    ] {
        let scan = scanned(scan_one(&mut pool, file(&content)));
        assert!(scan.verdict == verdict || verdict == Verdict::TooLarge, "{scan:?}");
    }
}

// ---------------------------------------------------------------- verdicts

#[test]
fn a_match_is_told_with_everything() {
    let content = b"01234 vidette-marker-string".as_slice();
    let scan = scanned(scan_one(&mut pool(), file(content)));
    assert_eq!(scan.verdict, Verdict::Matched);
    assert_eq!(scan.blake3, Some(*blake3::hash(content).as_bytes()));
    assert_eq!(scan.sha256.unwrap().as_slice(), Sha256::digest(content).as_slice());
    let names: Vec<&str> = scan.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["marker", "lesser"], "most severe first, private ones not at all");
    let rule = &scan.rules[0];
    assert_eq!((rule.id.as_str(), rule.severity), ("T-1", Severity::Critical as i32));
    assert_eq!(rule.techniques, ["T1059.004", "T1505"]);
    assert_eq!(rule.tags, ["tag_a", "tag_b"]);
    let pattern = &rule.patterns[0];
    assert_eq!((pattern.identifier.as_str(), pattern.offset, pattern.length), ("$marker", 6, 21));
    assert_eq!(pattern.data, b"vidette-marker-string");
}

/// The table lies: it calls clean what matches, so that one sees whether it was asked.
#[test]
fn content_that_an_earlier_scanner_found_clean_is_not_scanned_again() {
    let folder = tempfile::tempdir().unwrap();
    let content = b"vidette-marker-string";
    let of_the_day = format!("import \"time\" {MARKER_RULES} rule late {{ condition: time.now() < 0 }}");
    let verdict = |text: &str, lists: &str, known_by: &dyn Fn(&str) -> String| {
        let (digest, rules) = (*blake3::hash(content).as_bytes(), rules(text));
        let table = Table::open(&folder.path().join("clean"), Layout::for_files(1000)).unwrap();
        let entry = Entry { digest, version: version_of(&known_by(rules.version())) };
        table.put(Region::Digests, &digest, &entry, 1);
        let launcher = Launcher::of(Path::new(AGENT)).unwrap().with_violation(Violation::Kill);
        let lists_version = lists.to_owned();
        let clean = Some(Arc::new(table));
        let mut pool = Pool::new(Settings { clean, lists_version, ..Settings::new(launcher, rules) });
        ready(&mut pool);
        let scan = scanned(scan_one(&mut pool, file(content)));
        (scan.verdict, scan.of_the_day)
    };
    let same = |version: &str| version.to_owned();
    assert_eq!(verdict(MARKER_RULES, "", &same), (Verdict::Clean, false));
    assert_eq!(verdict(MARKER_RULES, "", &|_| "other".into()), (Verdict::Matched, false), "by other rules");
    assert_eq!(verdict(MARKER_RULES, "lists", &same), (Verdict::Matched, false), "without these lists");
    assert_eq!(verdict(MARKER_RULES, "lists", &|rules| with_lists(rules, "lists")), (Verdict::Clean, false));
    assert_eq!(verdict(&of_the_day, "", &same), (Verdict::Matched, true), "what was clean yesterday");
}

/// ELF of 64 bits with nothing but `count` symbols (elf(5)).
fn many_symbols(count: u64) -> Vec<u8> {
    let (symbols, names) = (64, 64 + 24 * count);
    let sections = names + 16;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let put = |elf: &mut Vec<u8>, fields: &[(u64, usize)]| {
        fields.iter().for_each(|(value, bytes)| elf.extend(&value.to_le_bytes()[..*bytes]));
    };
    let head: [(u64, usize); 13] = [
        (2, 2),
        (62, 2),
        (1, 4),
        (0, 8),
        (0, 8),
        (sections, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (0, 2),
        (64, 2),
        (3, 2),
        (2, 2),
    ];
    put(&mut elf, &head);
    for number in 0..count {
        put(&mut elf, &[(1 + number % 8, 4), (0x12, 1), (0, 1), (1, 2), (number, 8), (8, 8)]);
    }
    elf.extend(b"\0a_symbol_name\0\0");
    for (kind, at, size, link, entry) in
        [(0, 0, 0, 0, 0), (2, symbols, 24 * count, 2, 24), (3, names, 16, 0, 0)]
    {
        put(
            &mut elf,
            &[(0, 4), (kind, 4), (0, 8), (0, 8), (at, 8), (size, 8), (link, 4), (0, 4), (1, 8), (entry, 8)],
        );
    }
    elf
}

#[test]
fn what_a_large_program_needed_is_given_back() {
    let launcher = Launcher::of(Path::new(AGENT)).unwrap();
    let text = "import \"elf\" rule many { condition: elf.symtab_entries > 100000 }";
    let mut pool = Pool::new(Settings::new(launcher, rules(text)));
    ready(&mut pool);
    let resident = |pool: &Pool| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pool.pid().unwrap())).unwrap();
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        let kib = |name: &str| line(name).trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        (kib("VmRSS:"), kib("VmHWM:"))
    };
    scan_one(&mut pool, file(b"small"));
    let (before, _) = resident(&pool);
    assert_eq!(scanned(scan_one(&mut pool, file(&many_symbols(200_000)))).verdict, Verdict::Matched);
    scan_one(&mut pool, file(b"small"));
    let (after, most) = resident(&pool);
    println!("{before} KiB before, {most} KiB at most, {after} KiB after");
    assert!(most > before + (32 << 10), "it needed much");
    assert!(after < before + (16 << 10), "and gave it back");
}

#[test]
fn of_a_large_file_head_and_tail_are_scanned() {
    const SIZE: usize = 3 << 20;
    let mut pool = pool();
    for (at, expected) in
        [(0, Verdict::Matched), (SIZE - 100, Verdict::Matched), (SIZE / 2, Verdict::TooLarge)]
    {
        let mut content = vec![b'.'; SIZE];
        content[at..at + 21].copy_from_slice(b"vidette-marker-string");
        let scan = scanned(scan_one(&mut pool, file(&content)));
        assert_eq!(scan.verdict, expected, "marker at {at}");
        assert!(scan.detail.contains("truncated") && scan.scanned_bytes == 1 << 20, "{scan:?}");
        if expected == Verdict::Matched {
            assert_eq!(scan.rules[0].patterns[0].offset, at as u64);
            // Of the whole file, which others know it by.
            assert!(scan.whole);
            assert_eq!(scan.sha256.unwrap().as_slice(), Sha256::digest(&content).as_slice());
        }
    }
}

#[test]
fn of_a_sparse_file_the_data_are_scanned_wherever_they_are() {
    const SIZE: u64 = 1 << 40;
    let mut pool = pool();
    for at in [0, SIZE / 3, SIZE - 100] {
        let mut sparse = tempfile::tempfile().unwrap();
        sparse.set_len(SIZE).unwrap();
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(b"vidette-marker-string").unwrap();
        let scan = scanned(scan_one(&mut pool, sparse));
        assert_eq!((scan.verdict, scan.rules[0].patterns[0].offset), (Verdict::Matched, at));
        assert!(scan.detail.contains("sparse") && scan.scanned_bytes <= 1 << 20, "{scan:?}");
    }
    let empty = tempfile::tempfile().unwrap();
    empty.set_len(SIZE).unwrap();
    assert_eq!(scanned(scan_one(&mut pool, empty)).verdict, Verdict::TooLarge);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_answer_not_a_death() {
    let mut pool = pool_with(Violation::Deny, 2, 64 << 20, Duration::from_secs(10));
    ready(&mut pool);
    let mut file = file(&vec![b'x'; 32 << 20]);
    let done = std::sync::atomic::AtomicBool::new(false);
    let writer = file.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                writer.set_len(1 << 10).unwrap();
                writer.set_len(48 << 20).unwrap();
            }
        });
        for _ in 0..10 {
            let scan = scanned(scan_one(&mut pool, file.try_clone().unwrap()));
            assert!(matches!(scan.verdict, Verdict::Clean | Verdict::TooLarge), "{scan:?}");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    file.rewind().unwrap();
    file.write_all(b"vidette-marker-string").unwrap();
    assert_eq!(scanned(scan_one(&mut pool, file)).verdict, Verdict::Matched);
}

// ---------------------------------------------------------------- deaths

/// A file whose reading takes as long as the test wants: the worker is stopped before it gets it.
fn submit_to_stopped(pool: &mut Pool, id: u64, content: &[u8]) -> Vec<pool::Output> {
    stopping::stop(rustix::process::Pid::from_raw(pool.pid().unwrap().cast_signed()).unwrap());
    pool.submit(id, file(content).into(), Instant::now())
}

#[test]
fn a_worker_that_is_killed_once_costs_nothing() {
    for deadly in [rustix::process::Signal::KILL, rustix::process::Signal::ABORT] {
        let mut pool = pool();
        ready(&mut pool);
        let mut outputs = submit_to_stopped(&mut pool, 1, b"one");
        let first = pool.pid().unwrap();
        signal(first, deadly);
        signal(first, rustix::process::Signal::CONT);
        outputs.extend(pool.wait(PATIENCE));
        let died = |output: &pool::Output| {
            matches!(output, pool::Output::Died(detail)
            if detail.contains(&format!("signal {}", deadly.as_raw())))
        };
        assert!(outputs.iter().any(died), "{outputs:?}");
        assert_eq!(scanned(finish(&mut pool, outputs).remove(&1).unwrap()).verdict, Verdict::Clean);
        assert_eq!(scanned(scan_one(&mut pool, file(b"vidette-marker-string"))).verdict, Verdict::Matched);
        assert!(pool.pid().unwrap() != first && pool.poison().is_empty());
    }
}

#[test]
fn of_two_in_flight_none_is_blamed_for_a_death_that_was_neither_s_fault() {
    let mut pool = pool();
    ready(&mut pool);
    let mut outputs = submit_to_stopped(&mut pool, 1, b"one");
    outputs.extend(pool.submit(2, file(b"vidette-marker-string").into(), Instant::now()));
    signal(pool.pid().unwrap(), rustix::process::Signal::KILL);
    let mut done = finish(&mut pool, outputs);
    assert_eq!(scanned(done.remove(&1).unwrap()).verdict, Verdict::Clean);
    assert_eq!(scanned(done.remove(&2).unwrap()).verdict, Verdict::Matched);
}

#[test]
fn a_worker_that_somebody_stops_is_replaced_and_no_file_is_blamed() {
    let mut pool = pool_with(Violation::Deny, 1, 1 << 20, Duration::from_secs(600));
    ready(&mut pool);
    let outputs = submit_to_stopped(&mut pool, 1, b"one");
    let first = pool.pid().unwrap();
    assert_eq!(scanned(finish(&mut pool, outputs).remove(&1).unwrap()).verdict, Verdict::Clean);
    assert!(pool.pid().unwrap() != first && pool.poison().is_empty());
}

#[test]
fn stopping_the_service_is_not_taken_for_a_crash() {
    let mut pool = pool();
    ready(&mut pool);
    let pid = pool.pid().unwrap();
    for stop in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        signal(pid, stop);
    }
    assert_eq!(scanned(scan_one(&mut pool, file(b"one"))).verdict, Verdict::Clean);
    assert_eq!(pool.pid(), Some(pid));
}

#[test]
fn an_idle_worker_is_stopped_and_started_again_for_the_next_file() {
    let mut pool = pool();
    ready(&mut pool);
    let first = pool.pid().unwrap();
    pool.tick(Instant::now() + pool::IDLE_TIME / 2);
    assert_eq!(pool.pid(), Some(first));
    pool.tick(Instant::now() + pool::IDLE_TIME);
    assert_eq!(pool.pid(), None);
    assert!(!Path::new(&format!("/proc/{first}")).exists(), "collected");
    assert_eq!(scanned(scan_one(&mut pool, file(b"vidette-marker-string"))).verdict, Verdict::Matched);
}

#[test]
fn a_worker_dies_with_its_pool() {
    let mut pool = pool();
    ready(&mut pool);
    let pid = pool.pid().unwrap();
    drop(pool);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_program_that_is_no_worker_is_given_up() {
    let launcher = Launcher::of(Path::new("/bin/true")).unwrap();
    let mut pool = Pool::new(Settings::new(launcher, rules(MARKER_RULES)));
    assert!(matches!(scan_one(&mut pool, file(b"one")), Outcome::NotScanned(_)));
}

#[test]
fn the_last_good_rules_stay_when_new_ones_have_none() {
    let mut pool = pool();
    ready(&mut pool);
    let good = pool.rules_version().to_owned();
    let mut outputs = pool.use_rules(rules("rule {"), Instant::now());
    let end = Instant::now() + PATIENCE;
    while !outputs.iter().any(|output| matches!(output, pool::Output::RulesRefused { .. })) {
        assert!(Instant::now() < end);
        outputs = pool.wait(Duration::from_millis(100));
    }
    assert_eq!(pool.rules_version(), good);
    assert_eq!(scanned(scan_one(&mut pool, file(b"vidette-marker-string"))).verdict, Verdict::Matched);
}

// ---------------------------------------------------------------- the stage

struct Stage {
    detection: Detection,
    input: Sender<Observation>,
    events: Receiver<wire::Event>,
    counters: Arc<Counters>,
}

fn stage(rules: RuleSources) -> Stage {
    let counters = Arc::new(Counters::default());
    let (input, observations) = bounded(64);
    let (out, events) = bounded(EVENTS_QUEUE_MAX);
    let config = Config {
        host: Host::read(),
        rules,
        hashes: HashSources::default(),
        size_max_bytes: 1 << 20,
        scan_timeout: Duration::from_secs(10),
        scans_parallel: 2,
        telemetry: true,
        launcher: Launcher::of(Path::new(AGENT)).unwrap(),
        poison: Poison::default(),
        memory: None,
        scope: Scope::default(),
        verdicts: Default::default(),
        sweep: Default::default(),
    };
    let detection = detection::start(config, counters.clone(), observations, out).unwrap();
    Stage { detection, input, events, counters }
}

fn builtin() -> RuleSources {
    RuleSources { builtin: true, files: vec![] }
}

impl Stage {
    /// Closes the input and returns all events.
    fn end(self) -> Vec<wire::Event> {
        drop(self.input);
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(PATIENCE) {
            events.push(event);
        }
        self.detection.join();
        events
    }
}

fn written(file: File) -> Observation {
    let file = OpenFile {
        descriptor: file.into(),
        path: b"/written \xff".to_vec(),
        deleted: false,
        container_path: Vec::new(),
    };
    Observation::FileWritten {
        file,
        process: None,
        trigger: Trigger::CloseWrite,
        old_path: Vec::new(),
        at: Moment::now(),
    }
}

fn run(file: File, pid: u32) -> Observation {
    let image = Some(OpenFile {
        descriptor: file.into(),
        path: b"/run".to_vec(),
        deleted: true,
        container_path: Vec::new(),
    });
    let process = wire::Process { pid, ..Default::default() };
    Observation::ProgramRun { process, image, found: false, at: Moment::now() }
}

fn detections(events: &[wire::Event]) -> Vec<&wire::Detection> {
    let of = |event: &'_ wire::Event| matches!(event.kind, Some(Kind::Detection(_)));
    events
        .iter()
        .filter(|event| of(event))
        .filter_map(
            |event| if let Some(Kind::Detection(detection)) = &event.kind { Some(detection) } else { None },
        )
        .collect()
}

#[test]
fn eicar_is_detected_when_written_and_each_time_it_runs() {
    let stage = stage(builtin());
    stage.input.send(written(file(&eicar()))).unwrap();
    stage.input.send(written(file(b"harmless"))).unwrap();
    let program = file(&eicar());
    for pid in 1..=3 {
        stage.input.send(run(program.try_clone().unwrap(), pid)).unwrap();
    }
    let counters = stage.counters.clone();
    let events = stage.end();
    let found = detections(&events);
    assert_eq!(found.len(), 4, "{events:?}");
    for detection in &found {
        let file = detection.file.as_ref().unwrap();
        assert_eq!(detection.verdict(), Verdict::Matched);
        assert_eq!(file.blake3, blake3::hash(&eicar()).as_bytes());
        assert_eq!(file.sha256, Sha256::digest(eicar()).to_vec());
        assert!(detection.rules.iter().any(|rule| rule.name.to_ascii_lowercase().contains("eicar")));
        assert_eq!(detection.rules_version.len(), 16);
    }
    let mut pids: Vec<u32> =
        found.iter().filter_map(|detection| Some(detection.process.as_ref()?.pid)).collect();
    pids.sort_unstable();
    assert_eq!(pids, [1, 2, 3]);
    let audit =
        events.iter().any(|event| matches!(&event.kind, Some(Kind::Audit(a)) if a.action == "rules-loaded"));
    assert!(audit, "{events:?}");
    let telemetry =
        events.iter().filter(|event| matches!(event.kind, Some(Kind::File(_) | Kind::Process(_)))).count();
    assert_eq!((telemetry, counters.detection_seen.get()), (5, 5));
}

#[test]
fn a_settled_file_is_answered_from_the_cache_and_still_detected() {
    let stage = stage(builtin());
    let program = file(&eicar());
    // Older than the cache distrusts.
    std::thread::sleep(Duration::from_millis(2_200));
    let mut found = 0;
    for pid in 1..=3 {
        stage.input.send(run(program.try_clone().unwrap(), pid)).unwrap();
        loop {
            let event = stage.events.recv_timeout(PATIENCE).unwrap();
            found += usize::from(matches!(event.kind, Some(Kind::Detection(_))));
            if matches!(event.kind, Some(Kind::Process(_))) {
                break;
            }
        }
    }
    assert_eq!(found, 3);
    assert_eq!((stage.counters.detection_scanned.get(), stage.counters.detection_cached.get()), (1, 2));
    stage.end();
}

#[test]
fn bad_rule_files_are_told_and_the_others_work() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("good.yar", MARKER_RULES),
        ("include.yar", "include \"/etc/passwd\"\nrule a { condition: true }"),
        ("syntax.yar", "rule first { condition: true }\n\nrule broken {"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let stage = stage(RuleSources { builtin: false, files: vec![folder.path().to_owned()] });
    stage.input.send(written(file(b"vidette-marker-string"))).unwrap();
    let events = stage.end();
    let health = events.iter().find_map(|event| match &event.kind {
        Some(Kind::Health(health)) if health.component == "rules" => Some(health),
        _ => None,
    });
    let health = health.unwrap();
    assert_eq!(health.state(), wire::HealthState::Degraded);
    assert!(
        health.message.contains("include.yar:1") && health.message.contains("syntax.yar:3"),
        "{health:?}"
    );
    let found = detections(&events);
    assert_eq!((found.len(), found[0].rules.len()), (1, 2));
}

/// The state and message of each health event of one component.
fn health(events: &[wire::Event], component: &str) -> Vec<(wire::HealthState, String)> {
    let of = |event: &wire::Event| match &event.kind {
        Some(Kind::Health(health)) if health.component == component => {
            Some((health.state(), health.message.clone()))
        }
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

#[test]
fn rules_are_replaced_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.yar");
    std::fs::write(&path, "rule broken {").unwrap();
    let sources = || RuleSources { builtin: false, files: vec![path.clone()] };
    let stage = stage(RuleSources { builtin: true, files: vec![path.clone()] });
    let wait_for = |what: &dyn Fn(&detection::Snapshot) -> bool| {
        let end = Instant::now() + PATIENCE;
        while !what(&stage.detection.state()) {
            assert!(Instant::now() < end, "{:?}", stage.detection.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for(&|state| state.rules_count > 0 && state.rule_errors.len() == 1);
    let before = stage.detection.rules_version();
    std::fs::write(&path, MARKER_RULES).unwrap();
    stage.detection.reload_rules(sources());
    wait_for(&|state| state.rules_version != before && state.rules_count == 3);
    // Not one usable rule: the last good ones stay.
    let good = stage.detection.rules_version();
    std::fs::write(&path, "rule {").unwrap();
    stage.detection.reload_rules(sources());
    let mut events = Vec::new();
    while !health(&events, "rules").iter().any(|(state, _)| *state == wire::HealthState::Failed) {
        events.push(stage.events.recv_timeout(PATIENCE).unwrap());
    }
    stage.input.send(written(file(b"vidette-marker-string"))).unwrap();
    events.extend(stage.end());
    let found = detections(&events);
    assert_eq!((found.len(), found[0].rules_version.as_str()), (1, good.as_str()));
    let states: Vec<wire::HealthState> =
        health(&events, "rules").into_iter().map(|(state, _)| state).collect();
    use wire::HealthState::{Degraded, Failed, Ok};
    assert_eq!(states, [Degraded, Ok, Degraded, Failed], "{events:?}");
}

#[test]
fn a_crash_is_an_event_and_the_next_file_is_scanned() {
    let stage = stage(builtin());
    let end = Instant::now() + PATIENCE;
    while stage.detection.state().rules_count == 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = stage.detection.state().worker_pid.unwrap();
    stopping::stop(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap());
    stage.input.send(written(file(b"the one that is being scanned"))).unwrap();
    while stage.detection.state().queue_length == 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(pid, rustix::process::Signal::KILL);
    stage.input.send(written(file(&eicar()))).unwrap();
    let counters = stage.counters.clone();
    let events = stage.end();
    let verdicts: Vec<Verdict> = detections(&events).iter().map(|detection| detection.verdict()).collect();
    // Were both in flight when it died, neither was to blame.
    let died = events.iter().filter_map(|event| match &event.kind {
        Some(Kind::Detection(detection)) if detection.verdict() == Verdict::Failed => Some(&detection.detail),
        _ => None,
    });
    assert!(verdicts == [Verdict::Failed, Verdict::Matched] || verdicts == [Verdict::Matched], "{events:?}");
    assert!(died.into_iter().all(|detail| detail.contains("signal 9")));
    assert_eq!((counters.worker_deaths.get(), health(&events, "worker").len()), (1, 1));
}

#[test]
fn a_storm_is_answered_for_every_file() {
    let stage = stage(builtin());
    let input = stage.input.clone();
    let events = stage.events.clone();
    const FILES: u64 = 3_000;
    // Read while it is written to, as the outbox does.
    let reader = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < FILES {
            let Ok(event) = events.recv_timeout(PATIENCE) else { break };
            seen += u64::from(matches!(event.kind, Some(Kind::File(_))));
        }
        seen
    });
    let folder = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let path = folder.path().join("one");
        std::fs::write(&path, number.to_string()).unwrap();
        input.send(written(File::open(&path).unwrap())).unwrap();
        // Another inode each time: nothing to coalesce.
        std::fs::rename(&path, folder.path().join(number.to_string())).unwrap();
    }
    assert_eq!(reader.join().unwrap(), FILES);
    let counters = stage.counters.clone();
    drop(input);
    stage.end();
    assert_eq!(counters.detection_scanned.get() + counters.detection_unscanned.get(), FILES);
}

#[test]
fn a_stage_without_a_worker_says_so_and_records_what_it_saw() {
    let counters = Arc::new(Counters::default());
    let (input, observations) = bounded(64);
    let (out, events) = bounded(EVENTS_QUEUE_MAX);
    let config = Config {
        host: Host::read(),
        rules: builtin(),
        hashes: HashSources::default(),
        size_max_bytes: 1 << 20,
        scan_timeout: Duration::from_secs(10),
        scans_parallel: 1,
        telemetry: true,
        launcher: Launcher::of(Path::new("/bin/true")).unwrap(),
        poison: Poison::default(),
        memory: None,
        scope: Scope::default(),
        verdicts: Default::default(),
        sweep: Default::default(),
    };
    let detection = detection::start(config, counters.clone(), observations, out).unwrap();
    input.send(written(file(&eicar()))).unwrap();
    let stage = Stage { detection, input, events, counters: counters.clone() };
    let events = stage.end();
    assert!(events.iter().any(|event| matches!(&event.kind, Some(Kind::Health(health))
        if health.component == "worker" && health.state() == wire::HealthState::Failed)));
    assert!(events.iter().any(|event| matches!(&event.kind, Some(Kind::File(file))
        if file.verdict() == Verdict::NotScanned && !file.detail.is_empty())));
    assert_eq!(counters.detection_unscanned.get(), 1);
}
