//! Hash lists with the real worker: what is listed is a detection though no rule matches, on access and by command.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

use crossbeam_channel::{Receiver, Sender, bounded};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vidette_agent::detection::hashes::HashSources;
use vidette_agent::detection::rules::RuleSources;
use vidette_agent::detection::verdicts::Place;
use vidette_agent::detection::walk::Scope;
use vidette_agent::detection::{self, Config, Detection, EVENTS_QUEUE_MAX, Snapshot};
use vidette_agent::host::{Host, Moment};
use vidette_agent::sensors::{Observation, OpenFile};
use vidette_agent::telemetry::Counters;
use vidette_agent::worker::process::Launcher;
use vidette_protocol::wire::{self, Severity, Trigger, Verdict, event::Kind};

const AGENT: &str = env!("CARGO_BIN_EXE_vidette-agent");
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a larger file only head and tail are scanned.
const SIZE_MAX: u64 = 1 << 20;

struct Stage {
    folder: TempDir,
    detection: Detection,
    input: Sender<Observation>,
    events: Receiver<wire::Event>,
    counters: Arc<Counters>,
}

impl Stage {
    fn start(lists: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let counters = Arc::new(Counters::default());
        let (input, observations) = bounded(64);
        let (out, events) = bounded(EVENTS_QUEUE_MAX);
        let config = Config {
            host: Host::read(),
            rules: RuleSources { builtin: true, files: vec![] },
            hashes: sources(&folder, lists),
            size_max_bytes: SIZE_MAX,
            scan_timeout: Duration::from_secs(20),
            scans_parallel: 2,
            telemetry: true,
            launcher: Launcher::of(Path::new(AGENT)).unwrap(),
            poison: Default::default(),
            memory: None,
            verdicts: Place { path: Some(folder.path().join("verdicts")), ..Default::default() },
            sweep: Default::default(),
            scope: Scope::default(),
        };
        let detection = detection::start(config, counters.clone(), observations, out).unwrap();
        let stage = Self { folder, detection, input, events, counters };
        stage.wait_for(|state| state.rules_count > 0 && !state.hashes.building);
        stage
    }

    fn wait_for(&self, done: impl Fn(&Snapshot) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(&self.detection.state()) {
            assert!(Instant::now() < end, "{:?}", self.detection.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A file that is old enough for its verdict to be kept.
    fn old_file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn send(&self, path: &Path, trigger: Trigger) {
        let file = OpenFile {
            descriptor: File::open(path).unwrap().into(),
            path: path.as_os_str().as_encoded_bytes().to_vec(),
            deleted: false,
            container_path: Vec::new(),
        };
        let at = Moment::now();
        let written = Observation::FileWritten { file, process: None, trigger, old_path: Vec::new(), at };
        self.input.send(written).unwrap();
    }

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

fn sources(folder: &TempDir, lists: &[(&str, &str)]) -> HashSources {
    let files = lists.iter().map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    HashSources { files: files.collect(), folder: Some(folder.path().to_owned()) }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn detections(events: &[wire::Event]) -> Vec<(&wire::Event, &wire::Detection)> {
    let of = |event: &'_ wire::Event| matches!(event.kind, Some(Kind::Detection(_)));
    let all = events.iter().filter(|event| of(event));
    all.filter_map(
        |event| if let Some(Kind::Detection(found)) = &event.kind { Some((event, found)) } else { None },
    )
    .collect()
}

#[test]
fn each_kind_of_digest_is_a_detection_without_a_rule() {
    let large = vec![7u8; 3 * usize::try_from(SIZE_MAX).unwrap()];
    let contents: [&[u8]; 6] = [b"by md5", b"by sha1", b"by sha256", b"by blake3", &large, b"not listed"];
    let text = format!(
        "{} One\n{} Two\n{} Three\nblake3:{} Four\n{} Five\n",
        hex(&Md5::digest(contents[0])),
        hex(&Sha1::digest(contents[1])),
        hex(&Sha256::digest(contents[2])),
        hex(blake3::hash(contents[3]).as_bytes()),
        hex(&Md5::digest(contents[4])),
    );
    let stage = Stage::start(&[("bad.txt", &text)]);
    for (number, content) in contents.iter().enumerate() {
        stage.send(&stage.old_file(&number.to_string(), content), Trigger::CloseWrite);
    }
    let events = stage.end();
    let mut found = detections(&events);
    found.sort_by_key(|(_, detection)| detection.file.as_ref().unwrap().path.clone());
    let expected = ["One md5", "Two sha1", "Three sha256", "Four blake3", "Five md5"];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (number, ((event, detection), expected)) in found.iter().zip(expected).enumerate() {
        let [rule] = detection.rules.as_slice() else { panic!("{detection:?}") };
        assert_eq!(format!("{} {}", rule.name, rule.tags[1]), expected);
        assert_eq!((detection.verdict(), event.severity()), (Verdict::Matched, Severity::High));
        assert!(rule.namespace.ends_with("/bad.txt"));
        let file = detection.file.as_ref().unwrap();
        assert_eq!(file.md5, Md5::digest(contents[number]).to_vec());
        assert_eq!(file.sha1, Sha1::digest(contents[number]).to_vec());
        assert_eq!(file.sha256, Sha256::digest(contents[number]).to_vec());
        assert_eq!(file.blake3, blake3::hash(contents[number]).as_bytes());
    }
    assert!(found[4].1.detail.starts_with("truncated: "), "it says what rules have not seen");
}

#[test]
fn a_verdict_from_before_a_list_is_not_trusted_after_it() {
    let stage = Stage::start(&[]);
    // Clean until somebody knows better. What is kept was a minute old when it was scanned: so is what is installed.
    let path = PathBuf::from("/bin/true");
    let content = std::fs::read(&path).unwrap();
    let ask = |cached: u64| {
        let before = stage.counters.detection_passed.get();
        stage.send(&path, Trigger::Rename);
        stage.wait_for(|_| stage.counters.detection_passed.get() > before);
        assert_eq!(stage.counters.detection_cached.get(), cached);
    };
    ask(0);
    ask(1);
    let list = format!("{},Evil\n", hex(&Sha1::digest(&content)));
    stage.detection.reload_hashes(sources(&stage.folder, &[("bad.csv", &list)]));
    stage.wait_for(|state| state.hashes.entries == 1);
    ask(1);
    ask(2);
    // A list that is taken away takes its verdicts with it, and what was known before holds again.
    stage.detection.reload_hashes(HashSources { files: vec![], folder: None });
    stage.wait_for(|state| state.hashes.entries == 0 && !state.hashes.building);
    ask(3);
    let events = stage.end();
    let found = detections(&events);
    assert_eq!(found.len(), 2, "scanned with the list, and known with it: {found:#?}");
    for (_, detection) in found {
        let file = detection.file.as_ref().unwrap();
        assert_eq!((file.sha1.len(), detection.rules[0].name.as_str()), (20, "Evil"));
    }
    let audits = events.iter().filter_map(|event| match &event.kind {
        Some(Kind::Audit(audit)) if audit.action == "hash-lists-loaded" => Some(audit.outcome.as_str()),
        _ => None,
    });
    assert_eq!(audits.collect::<Vec<_>>(), ["success", "success"]);
}

fn agent(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(AGENT).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn the_command_scans_with_lists_alone_and_beside_rules() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("tree")).unwrap();
    std::fs::write(path("tree/bad"), "bad").unwrap();
    std::fs::write(path("tree/good"), "good").unwrap();
    std::fs::write(path("one.txt"), format!("{}  evil.exe\n", hex(&Sha256::digest("bad")))).unwrap();
    std::fs::write(path("two.txt"), format!("{}\n", hex(&Md5::digest("bad")))).unwrap();
    let (one, two, tree) = (path("one.txt"), path("two.txt"), path("tree"));
    let (code, out, _) = agent(&["scan", "--hashes", &one, "--hashes", &two, &tree]);
    assert_eq!(code, 1);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(lines.iter().all(|line| line.starts_with("high") && line.ends_with("tree/bad")), "{out}");
    assert!(out.contains("evil.exe") && out.contains("hash-list"), "{out}");
    let (code, out, error) = agent(&["scan", "--json", "--no-builtin-rules", "--hashes", &one, &tree]);
    assert_eq!((code, out.lines().count()), (1, 1), "{out} {error}");
    assert!(out.contains(&hex(&Sha256::digest("bad"))), "{out}");
    assert_eq!(agent(&["scan", "--no-builtin-rules", &tree]).0, 2);
}

#[test]
fn a_check_says_what_is_of_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let good = format!("{}  x\n", "ab".repeat(32));
    std::fs::write(path("good.txt"), &good).unwrap();
    std::fs::write(path("mixed.txt"), format!("{good}abc\n")).unwrap();
    let (code, out, error) = agent(&["hashes", "check", &path("good.txt")]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.contains("good.txt: 1 sha256, 0 bad lines"), "{out}");
    let (code, _, error) = agent(&["hashes", "check", &path("good.txt"), &path("mixed.txt")]);
    assert_eq!(code, 2);
    assert!(error.contains("mixed.txt:2: 3 hexadecimal digits"), "{error}");
    let (code, out, _) = agent(&["hashes", "check", "--json", &path("mixed.txt")]);
    let told: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!((code, &told["bad_lines"], &told["entries"]["sha256"]), (2, &1.into(), &1.into()));
    assert_eq!(agent(&["hashes", "check", &path("missing")]).0, 2);
}
