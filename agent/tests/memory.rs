//! The memory of real processes: what they hold nowhere else is found, and looking changes nothing in them.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

use crossbeam_channel::bounded;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vidette_agent::detection::memory::engine::{Engine, Meanwhile, Report};
use vidette_agent::detection::memory::{Budget, How, on_exec};
use vidette_agent::detection::rules::{RuleSources, Source};
use vidette_agent::detection::walk::Scope;
use vidette_agent::detection::{self, EVENTS_QUEUE_MAX};
use vidette_agent::host::{Host, Moment};
use vidette_agent::sensors::Observation;
use vidette_agent::telemetry::{Counters, Equation};
use vidette_agent::worker::RuleSet;
use vidette_agent::worker::pool::{Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_protocol::wire::{self, Trigger, event::Kind};

const AGENT: &str = env!("CARGO_BIN_EXE_vidette-agent");
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Put together at run time, so that no scanner takes this file for it.
fn eicar() -> Vec<u8> {
    ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR", "-STANDARD-ANTIVIRUS-", "TEST-FILE!$H+H*"].concat().into_bytes()
}

/// As the holder takes it: the text itself is not even on its stack.
fn veiled() -> String {
    eicar().iter().map(|byte| format!("{:02x}", byte ^ 0x5a)).collect()
}

/// The rule as hex, so that the text is not in the memory of whoever reads this file as a rule.
fn rule() -> String {
    let hex: String = eicar().iter().map(|byte| format!("{byte:02x} ")).collect();
    format!("rule eicar_text {{ meta: severity = \"high\" strings: $text = {{ {hex} }} condition: $text }}")
}

/// The compiled program, and a rule file.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self { folder };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/memory_holder/hold.c");
        let options = ["-O1", "-Wall", "-Wextra", "-Werror"];
        let status = Command::new("cc").args(options).arg("-o").arg(place.holder()).arg(source).status();
        assert!(status.unwrap().success(), "cc could not compile the holder");
        std::fs::write(place.rules(), rule()).unwrap();
        std::fs::set_permissions(place.rules(), std::fs::Permissions::from_mode(0o644)).unwrap();
        place
    }

    fn holder(&self) -> PathBuf {
        self.folder.path().join("hold")
    }

    fn rules(&self) -> PathBuf {
        self.folder.path().join("eicar.yar")
    }

    fn hold(&self, mode: &str) -> Holder {
        Holder::start(Command::new(self.holder()).args([mode, &veiled()]))
    }

    fn scan(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(AGENT);
        command.args(["scan", "--no-builtin-rules", "--rules"]).arg(self.rules()).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }
}

/// A process that holds something; ended when dropped.
struct Holder {
    child: Child,
    address: u64,
}

impl Holder {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { address: u64::from_str_radix(line.trim(), 16).unwrap(), child }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn status(&self, field: &str) -> u64 {
        kib(self.pid(), field)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A field of `/proc/PID/status`. KiB.
fn kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn launcher() -> Launcher {
    Launcher::of(Path::new(AGENT)).unwrap()
}

/// With the rule, in this process.
fn engine(budget: Budget) -> Engine {
    let rules = RuleSet::new(vec![Source { name: "eicar.yar".into(), text: rule().into_bytes() }]);
    let settings = Settings { threads: 2, size_max_bytes: 1 << 24, ..Settings::new(launcher(), rules) };
    Engine::new(Pool::new(settings), budget, &Host::read().boot_id, Arc::new(AtomicBool::new(false)))
}

fn scan(engine: &mut Engine, pid: u32) -> Report {
    engine.scan(pid, &mut |meanwhile| match meanwhile {
        Meanwhile::Worker(output) => println!("{output:?}"),
        Meanwhile::Scanned(_) => {}
    })
}

fn check_found(report: &Report, holder: &Holder) {
    assert_eq!(report.findings.len(), 1, "{report:?}");
    let finding = &report.findings[0];
    assert_eq!(finding.rules[0].name, "eicar_text");
    let addresses: Vec<u64> = finding.rules[0].patterns.iter().map(|pattern| pattern.offset).collect();
    assert_eq!(addresses, [holder.address], "{report:?}");
    assert!((finding.region.start..finding.region.end).contains(&holder.address));
    assert_eq!(report.process.pid, holder.pid());
}

#[test]
fn what_is_only_in_memory_is_found_with_its_place_and_its_process() {
    let place = Place::new();
    let holder = place.hold("heap");
    let found = place.scan(&["--json", "--pid", &holder.pid().to_string()]);
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1), "{text} {}", String::from_utf8_lossy(&found.stderr));
    assert_eq!(text.lines().count(), 1, "{text}");
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["process.pid"], holder.pid());
    assert_eq!(record["process.executable"], place.holder().to_str().unwrap());
    assert_eq!(record["process.entity_id"].as_str().unwrap().len(), 32);
    assert_eq!(record["process.parent.pid"], std::process::id());
    assert_eq!(record["vidette.memory.address"], format!("0x{:x}", holder.address));
    assert_eq!(record["vidette.memory.name"], "[heap]");
    assert_eq!(record["vidette.memory.permissions"], "rw-p");
    assert_eq!(record["vidette.trigger"], "request");
    assert_eq!(record["rule.name"], "eicar_text");
    let human = place.scan(&["--pid", &holder.pid().to_string()]);
    let text = String::from_utf8(human.stdout).unwrap();
    assert!(text.contains("eicar_text") && text.contains("[heap]"), "{text}");
    assert!(text.contains(&format!("0x{:x} in ", holder.address)), "{text}");

    // Nothing of it is in the file that it runs.
    let file = place.scan(&[place.holder().to_str().unwrap()]);
    assert_eq!(file.status.code(), Some(0), "{}", String::from_utf8_lossy(&file.stdout));
}

#[test]
fn eight_gigabytes_of_holes_cost_neither_side_memory() {
    let place = Place::new();
    let holder = place.hold("sparse");
    let mut engine = engine(Budget::default());
    // The worker and its rules are there before anything is measured.
    scan(&mut engine, place.hold("heap").pid());
    let fields = ["VmRSS", "VmPTE", "VmSwap"];
    let before = fields.map(|field| holder.status(field));
    let own_before = kib(std::process::id(), "VmRSS");
    let report = scan(&mut engine, holder.pid());
    let after = fields.map(|field| holder.status(field));
    let own_peak = kib(std::process::id(), "VmHWM");
    println!("victim {fields:?} {before:?} -> {after:?} KiB; own {own_before} KiB, peak {own_peak} KiB");
    println!("{:?} {:?}", report.how, report.tally);
    check_found(&report, &holder);
    assert_eq!(report.how, How::Whole);
    for (before, after) in before.iter().zip(after) {
        assert!(before.abs_diff(after) <= 64, "the victim changed by {} KiB", before.abs_diff(after));
    }
    assert!(own_peak - own_before < 48 << 10, "we grew by {} KiB", own_peak - own_before);
    assert!(report.tally.bytes < 32 << 20, "{:?}", report.tally);
}

#[test]
fn pages_that_went_from_memory_are_not_brought_back() {
    let place = Place::new();
    // A file of its own, so that nobody else keeps its pages in memory.
    let file = place.folder.path().join("code");
    std::fs::write(&file, vec![0x90; 16 << 20]).unwrap();
    Command::new("sync").arg(&file).status().unwrap();
    let mut command = Command::new(place.holder());
    let holder = Holder::start(command.args(["out", &veiled()]).arg(&file));
    let fields = ["VmRSS", "RssAnon", "RssFile", "VmSwap"];
    let before = fields.map(|field| holder.status(field));
    let report = scan(&mut engine(Budget::default()), holder.pid());
    let after = fields.map(|field| holder.status(field));
    println!("{fields:?} {before:?} -> {after:?} KiB, {:?} {:?}", report.how, report.tally);
    if before[3] == 0 {
        println!("this host has no swap: only the pages of a file went from memory");
    }
    assert!(before[2] < 8 << 10, "the pages of the file stayed: nothing is shown");
    for (before, after) in before.iter().zip(after) {
        assert!(before.abs_diff(after) <= 64, "{} KiB came or went", before.abs_diff(after));
    }
    assert!(report.tally.bytes <= (before[0] + 64) << 10, "{:?}", report.tally);
}

#[test]
fn a_match_across_the_border_of_two_blocks_is_found_once() {
    let place = Place::new();
    let holder = place.hold("border");
    check_found(&scan(&mut engine(Budget::default()), holder.pid()), &holder);
}

#[test]
fn memory_that_nobody_may_touch_is_read_and_shared_data_is_not() {
    let place = Place::new();
    let mut engine = engine(Budget::default());
    let holder = place.hold("none");
    let report = scan(&mut engine, holder.pid());
    check_found(&report, &holder);
    assert_eq!(report.findings[0].region.permissions, "---p");
    let report = scan(&mut engine, place.hold("shared").pid());
    assert_eq!((report.findings.len(), report.how), (0, How::Whole));
}

#[test]
fn a_forged_name_of_a_mapping_is_told_without_harm() {
    let place = Place::new();
    let holder = place.hold("memfd");
    let pid = holder.pid().to_string();
    let human = place.scan(&["--pid", &pid]);
    let text = String::from_utf8(human.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text:?}");
    assert!(text.contains("/memfd:a") && !text.trim_end().chars().any(char::is_control), "{text:?}");
    let json = String::from_utf8(place.scan(&["--json", "--pid", &pid]).stdout).unwrap();
    let record: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(record["vidette.memory.name"], "/memfd:a\\012b\u{1b}[2J (deleted)");
    assert_eq!(record["vidette.memory.address"], format!("0x{:x}", holder.address));
}

#[test]
fn a_program_without_a_file_and_one_of_another_user_are_looked_into() {
    let place = Place::new();
    let mut engine = engine(Budget::default());
    let other = Holder::start(Command::new(place.holder()).args(["heap", &veiled()]).uid(65_534));
    check_found(&scan(&mut engine, other.pid()), &other);
    let report = scan(&mut engine, other.pid());
    assert_eq!(report.process.uid, Some(65_534));
    let deleted = place.hold("heap");
    std::fs::remove_file(place.holder()).unwrap();
    let report = scan(&mut engine, deleted.pid());
    check_found(&report, &deleted);
    let path = String::from_utf8_lossy(&report.process.executable).into_owned();
    assert!(path.ends_with("/hold (deleted)"), "{path}");
}

#[test]
fn whoever_may_not_read_a_process_is_told_so() {
    let place = Place::new();
    let holder = place.hold("heap");
    let agent = place.folder.path().join("agent");
    std::fs::copy(AGENT, &agent).unwrap();
    let mut command = Command::new(&agent);
    command.args(["scan", "--no-builtin-rules", "--rules"]).arg(place.rules());
    command.args(["--pid", &holder.pid().to_string()]).uid(65_534).gid(65_534).stdin(Stdio::null());
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("its memory may not be read"), "{error}");
    // And a process that is not there.
    let absent = place.scan(&["--pid", "4194305"]);
    let error = String::from_utf8_lossy(&absent.stderr);
    assert_eq!(absent.status.code(), Some(2), "{error}");
    assert!(error.contains("process 4194305: there is none"), "{error}");
    // Programs hear of it where they hear of the others.
    let absent = place.scan(&["--pid", "4194305", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert_eq!((absent.status.code(), said["process.pid"].as_u64()), (Some(2), Some(4_194_305)), "{said}");
    let message = "memory of process 4194305 could not be scanned: there is no such process";
    assert_eq!(said["message"], message, "{said}");
}

#[test]
fn our_own_processes_and_those_without_memory_are_passed_over() {
    let mut engine = engine(Budget::default());
    // This test runs the engine itself, so it is Vidette's own here. Its worker runs another program.
    let report = scan(&mut engine, std::process::id());
    assert_eq!(report.how, How::Own);
    assert_eq!(report.tally.bytes, 0);
    // kthreadd.
    if std::fs::read("/proc/2/cmdline").is_ok_and(|words| words.is_empty()) {
        assert_eq!(scan(&mut engine, 2).how, How::NoMemory);
    }
    // One that ended and was not waited for.
    let mut child = Command::new("true").spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") Z ") {
        assert!(Instant::now() < until);
    }
    assert_eq!(scan(&mut engine, child.id()).how, How::NoMemory);
    child.wait().unwrap();
    assert_eq!(scan(&mut engine, child.id()).how, How::Gone);
}

#[test]
fn another_agent_and_its_worker_are_not_scanned_by_a_command() {
    let place = Place::new();
    // An agent that waits with its rules loaded, which match what they look for.
    let mut other = Command::new(AGENT);
    other.args(["watch", "--no-builtin-rules", "--rules"]).arg(place.rules()).arg(place.folder.path());
    let mut other = other.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", other.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let until = Instant::now() + PATIENCE;
    let mut worker = None;
    while worker.is_none() {
        assert!(Instant::now() < until, "the other agent started no worker");
        std::thread::sleep(Duration::from_millis(20));
        let tasks = std::fs::read_dir(format!("/proc/{}/task", other.id())).unwrap().flatten();
        let mut all = children();
        for task in tasks {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().map(str::to_owned));
        }
        // Not the one that compiles its rules, which ends at once.
        let scans = |pid: &String| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.ends_with(b"worker\0")
        };
        worker = all.into_iter().find(scans);
    }
    for pid in [other.id().to_string(), worker.unwrap()] {
        let output = place.scan(&["--pid", &pid]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("skipped: it is Vidette's own"), "{error}");
        assert_eq!(output.status.code(), Some(2), "{error}");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_process_beyond_its_share_is_scanned_in_part_and_that_is_said() {
    let place = Place::new();
    let holder = place.hold("large");
    let budget = Budget { bytes_max: 32 << 20, ..Budget::default() };
    let report = scan(&mut engine(budget), holder.pid());
    assert!(matches!(&report.how, How::Truncated(why) if why.contains("33554432")), "{:?}", report.how);
    assert!(report.tally.bytes <= 32 << 20 && report.tally.bytes > 8 << 20, "{:?}", report.tally);
    let output = place.scan(&["--memory-max", "16MiB", "--pid", &holder.pid().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("truncated"), "{output:?}");
}

#[test]
fn processes_that_run_something_else_or_end_meanwhile_are_gone_and_no_error() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4);
    println!("SEED={seed}");
    let place = Place::new();
    let mut engine = engine(Budget::default());
    let execs = place.hold("exec");
    let (mut gone, mut found, mut other, mut state) = (0, 0, 0, seed);
    for round in 0..200 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (pid, ends) = if round % 2 == 0 {
            (execs.pid(), None)
        } else {
            // Ends some hundred microseconds from now.
            let ends = place.hold("heap");
            (ends.pid(), Some(ends))
        };
        let killer = ends.map(|ends| {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros((state >> 40) % 6000));
                drop(ends);
            })
        });
        let report = scan(&mut engine, pid);
        if let Some(killer) = killer {
            killer.join().unwrap();
        }
        match &report.how {
            How::Gone => gone += 1,
            How::Whole => found += report.findings.len(),
            // Killed, and not waited for yet.
            How::NoMemory => other += 1,
            how => panic!("round {round}: {how:?}"),
        }
        assert!(report.incomplete().is_none(), "round {round}: {report:?}");
        for finding in &report.findings {
            assert_eq!(finding.rules[0].name, "eicar_text", "round {round}");
            assert!(report.process.executable.ends_with(b"/hold"), "round {round}: {report:?}");
        }
    }
    println!("{gone} gone, {found} found, {other} ended");
    assert!(gone > 0 && found > 0, "nothing was shown");
}

#[test]
fn a_chosen_program_is_looked_into_after_it_ran_and_others_are_not() {
    let place = Place::new();
    let counters = Arc::new(Counters::default());
    let (input, observations) = bounded(64);
    let (out, events) = bounded(EVENTS_QUEUE_MAX);
    let delay = Duration::from_millis(300);
    let config = detection::Config {
        hashes: Default::default(),
        poison: Default::default(),
        verdicts: Default::default(),
        sweep: Default::default(),
        host: Host::read(),
        rules: RuleSources { builtin: false, files: vec![place.rules()] },
        size_max_bytes: 1 << 20,
        scan_timeout: Duration::from_secs(10),
        scans_parallel: 1,
        telemetry: false,
        launcher: launcher(),
        memory: Some(on_exec::Config {
            paths: vec![place.folder.path().as_os_str().as_encoded_bytes().to_vec()],
            delay,
            budget: Budget::default(),
            launcher: launcher(),
            scan_timeout: Duration::from_secs(10),
        }),
        scope: Scope::default(),
    };
    let detection = detection::start(config, counters.clone(), observations, out).unwrap();
    let (chosen, ended) = (place.hold("heap"), place.hold("heap"));
    let began = Instant::now();
    let ran = |pid: u32, executable: &[u8]| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let ticks = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap();
        let process = wire::Process {
            pid,
            start_ns: ticks.parse::<u64>().unwrap() * 10_000_000,
            executable: executable.to_vec(),
            ..Default::default()
        };
        Observation::ProgramRun { process, image: None, found: false, at: Moment::now() }
    };
    let path = place.holder().into_os_string().into_encoded_bytes();
    input.send(ran(chosen.pid(), &path)).unwrap();
    input.send(ran(ended.pid(), &path)).unwrap();
    input.send(ran(chosen.pid(), b"/usr/bin/other")).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(ended);
    let mut detections = Vec::new();
    while counters.memory_scanned.get() + counters.memory_gone.get() < 2 || detections.is_empty() {
        assert!(began.elapsed() < PATIENCE, "{:?}", counters.all());
        let Ok(event) = events.recv_timeout(Duration::from_millis(50)) else { continue };
        if let Some(Kind::Detection(detection)) = event.kind {
            assert!(began.elapsed() >= delay);
            detections.push(detection);
        }
    }
    assert_eq!(detections.len(), 1, "{detections:?}");
    let process = detections[0].process.as_ref().unwrap();
    assert_eq!((process.pid, detections[0].trigger()), (chosen.pid(), Trigger::Exec));
    assert_eq!(detections[0].rules[0].patterns[0].offset, chosen.address);
    drop(input);
    detection.join();
    assert_eq!((counters.memory_asked.get(), counters.memory_gone.get()), (2, 1));
    let broken: Vec<Equation> =
        counters.equations().into_iter().filter(|equation| !equation.holds()).collect();
    assert_eq!(broken, []);
}

#[test]
fn everybody_is_looked_into_but_ourselves() {
    let place = Place::new();
    let holder = place.hold("heap");
    // Little of each, because others run here too.
    let output = place.scan(&["--json", "--all-processes", "--memory-max", "16MiB", "--memory-time", "10s"]);
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let found: Vec<_> = records.filter(|record| record["process.pid"] == holder.pid()).collect();
    assert!(found.iter().any(|record| record["rule.name"] == "eicar_text"), "{found:?}");
}
