//! What the whole stage tells of all that.

use super::rig::{self, MARKER, MARKER_RULE, detections, file, health, stage, written};
use super::rules::{deadly, eating};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vidette_agent::worker::poison::{FileKey, Poison};
use vidette_agent::worker::process::Launcher;
use vidette_protocol::wire::{self, HealthState, Verdict, event::Kind};

fn launcher() -> Launcher {
    Launcher::of(Path::new(rig::AGENT)).unwrap()
}

fn rule_files(folder: &Path, files: &[(&str, &str)]) -> Vec<PathBuf> {
    let write = |(name, text): &(&str, &str)| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    files.iter().map(write).collect()
}

#[test]
fn a_file_that_killed_twice_is_an_alert_and_on_the_list_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("poison");
    if !rig::with_little_memory("told::a_file_that_killed_twice_is_an_alert_and_on_the_list_by_name") {
        return;
    }
    let rules = rule_files(folder.path(), &[("marker.yar", MARKER_RULE), ("eat.yar", eating())]);
    let stage = stage(rules, launcher(), Poison::at(&list), rig::PATIENCE);
    stage.wait(|state| state.rules_count > 0);
    stage.input.send(written("/tmp/killer", file(&deadly()))).unwrap();
    stage.wait(|state| state.poisoned == 1);
    stage.input.send(written("/tmp/next", file(MARKER))).unwrap();
    let events = stage.end();
    let found = detections(&events);
    assert_eq!(found.len(), 2, "{events:?}");
    let failed = found.iter().find(|one| one.file.as_ref().unwrap().path == b"/tmp/killer").unwrap();
    assert_eq!(failed.verdict(), Verdict::Failed, "{failed:?}");
    assert!(found.iter().any(|one| one.verdict() == Verdict::Matched));
    let entry = &Poison::at(&list).all()[0];
    assert_eq!((entry.path.as_str(), entry.rules_version.len()), ("/tmp/killer", 16));
    assert_eq!(health(&events, "worker").len(), 2, "{events:?}");
}

/// Each takes a few milliseconds of a file that says so; all of them longer than a scan may.
#[test]
fn ten_thousand_slow_rules_cost_one_verdict_and_the_next_file_is_scanned() {
    const RULES: u64 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let rule = |n: u64| {
        format!(
            "rule s{n} {{ strings: $m = \"be-slow\" condition: $m and for all i in (0..50000) : ( uint8(i % filesize) + {n} != 99999 ) }}\n"
        )
    };
    let slow: String = (0..RULES).map(rule).collect();
    let rules = rule_files(folder.path(), &[("marker.yar", MARKER_RULE), ("slow.yar", &slow)]);
    let stage = stage(rules, launcher(), Poison::default(), rig::SHORT);
    stage.wait(|state| u64::from(state.rules_count) == RULES + 1);
    for (path, content) in [("/slow", b"be-slow".as_slice()), ("/next", MARKER), ("/clean", b"clean")] {
        stage.input.send(written(path, file(content))).unwrap();
    }
    let events = stage.end();
    let found = detections(&events);
    let told = |path: &str| {
        let of = |one: &&&wire::Detection| one.file.as_ref().unwrap().path == path.as_bytes();
        found.iter().find(of).map(|one| one.verdict())
    };
    assert_eq!(told("/slow"), Some(Verdict::TimedOut), "by its name: {events:?}");
    assert_eq!((told("/next"), told("/clean")), (Some(Verdict::Matched), None), "{events:?}");
    assert!(health(&events, "worker").is_empty() && health(&events, "scan-time").is_empty(), "{events:?}");
}

#[test]
fn many_slow_rules_are_told_as_one_thing() {
    let folder = tempfile::tempdir().unwrap();
    // As slow as ten thousand that are a little slow, and compiled before the night.
    let slow: String = (0..200)
        .map(|n| format!("rule s{n} {{ strings: $m = \"be-slow\" condition: $m and for all i in (0..3000000) : ( uint8(i % filesize) + {n} != 999 ) }}\n"))
        .collect();
    let rules = rule_files(folder.path(), &[("marker.yar", MARKER_RULE), ("slow.yar", &slow)]);
    let stage = stage(rules, launcher(), Poison::default(), rig::SHORT);
    stage.wait(|state| state.rules_count == 201);
    const FILES: usize = 20;
    for number in 0..FILES {
        stage
            .input
            .send(written(&format!("/slow/{number}"), file(format!("be-slow {number}").as_bytes())))
            .unwrap();
    }
    stage.input.send(written("/next", file(MARKER))).unwrap();
    // `status` says the same for as long as it is so.
    let shown = stage.wait(|state| !state.scan_time.is_empty()).scan_time;
    let events = stage.end();
    let told = health(&events, "scan-time");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(shown, told[0].1);
    assert!(told[0].0 == HealthState::Degraded && told[0].1.contains("too slow"), "{told:?}");
    let found = detections(&events);
    let late = found.iter().filter(|one| one.verdict() == Verdict::TimedOut).count();
    assert_eq!(late, FILES, "each is told, and the rules once");
    assert!(found.iter().any(|one| one.verdict() == Verdict::Matched));
    let recorded = events
        .iter()
        .filter(|event| matches!(&event.kind, Some(Kind::File(file)) if file.verdict() == Verdict::TimedOut));
    assert_eq!(recorded.count(), FILES, "each is recorded");
}

#[test]
fn status_lists_the_files_that_killed() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let poison = Poison::at(&state.join("poison"));
    let key = FileKey { device: 1, inode: 2, size: 3, mtime_ns: 4, ctime_ns: 5 };
    poison.add(key, "0123456789abcdef", "the scanner died: signal 6");
    poison.name(&key, b"/tmp/killer");
    let config = folder.path().join("agent.toml");
    let watched = folder.path().join("watched");
    std::fs::create_dir(&watched).unwrap();
    std::fs::write(&config, format!("[sensors]\nwatch = [{watched:?}]\n")).unwrap();
    let mut agent = Command::new(rig::AGENT);
    agent.args(["run", "--config"]).arg(&config).arg("--state").arg(&state);
    let mut agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ask = |json: &[&str]| {
        let mut status = Command::new(rig::AGENT);
        status
            .args(["status", "--config"])
            .arg(&config)
            .arg("--state")
            .arg(&state)
            .args(json)
            .output()
            .unwrap()
    };
    let end = Instant::now() + rig::PATIENCE;
    let mut output = ask(&[]);
    while !output.status.success() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        output = ask(&[]);
    }
    let json = ask(&["--json"]);
    let _ = agent.kill();
    let _ = agent.wait();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("/tmp/killer: the scanner died: signal 6 (rules 0123456789abcdef)"),
        "{text}{output:?}"
    );
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["poisoned_files"][0]["path"], "/tmp/killer");
}
