//! Sweeps as they really run: `scan` with its cache, budget and silent file systems, and the daemon's sweep. Real
//! files, the real worker; the verdict table lies on a real file system.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

mod stopping;

use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use vidette_agent::detection::rules::RuleSources;
use vidette_agent::detection::sweep::budget::{Gate, time_of};
use vidette_agent::detection::sweep::engine::{self, Ended, Engine, Said};
use vidette_agent::detection::sweep::schedule::{Plan, Snapshot};
use vidette_agent::detection::sweep::{Cross, Options};
use vidette_agent::detection::verdicts::{FILES_DEFAULT, Place, Verdicts};
use vidette_agent::detection::walk::Scope;
use vidette_agent::detection::{self, Config, Detection, EVENTS_QUEUE_MAX};
use vidette_agent::host::{Host, Moment};
use vidette_agent::sensors::{OBSERVATIONS_QUEUE_MAX, Observation, OpenFile};
use vidette_agent::stop;
use vidette_agent::telemetry::Counters;
use vidette_agent::worker::pool::{Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_protocol::wire::{self, Trigger, event::Kind};

const AGENT: &str = env!("CARGO_BIN_EXE_vidette-agent");
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const MARKER: &str = "vidette-sweep-marker";
const RULES: &str = r#"rule marker { strings: $a = "vidette-sweep-marker" condition: $a }"#;
/// Files that nobody changes and every development machine has.
const OLD_TREES: [&str; 3] = ["/usr/include", "/usr/share/zoneinfo", "/usr/share/doc"];

struct World {
    folder: TempDir,
    root: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("tree")).unwrap();
        fs::write(root.join("rules.yar"), RULES).unwrap();
        Self { folder, root }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn scan(&self, args: &[&str], path: &Path) -> Command {
        let mut command = Command::new(AGENT);
        command.args(["scan", "--no-builtin-rules", "--rules"]).arg(self.at("rules.yar"));
        command.arg("--cache").arg(self.at("cache")).args(args).arg(path);
        command
    }

    fn run(&self, path: &Path) -> Outcome {
        Outcome::of(&self.scan(&[], path).output().unwrap())
    }
}

/// What `scan` said.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    out: String,
    said: String,
    scanned: u64,
    known: u64,
    again: u64,
}

impl Outcome {
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let summary = said.lines().find(|line| line.contains(" MiB scanned in ")).unwrap_or_default();
        let number = |text: &str| text.trim().split(' ').next().and_then(|number| number.parse().ok());
        let scanned = number(summary).unwrap_or(0);
        let before = |text: &str| {
            let parts = || summary.split([',', ':']);
            parts().find(|part| part.contains(text)).and_then(number).unwrap_or(0)
        };
        let (known, again) = (before("known to be clean"), before("told again"));
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        Self { code: output.status.code(), out, scanned, known, again, said }
    }

    #[track_caller]
    fn expect(&self, code: i32, scanned: u64, known: u64) {
        assert_eq!((self.code, self.scanned, self.known), (Some(code), scanned, known), "{self:?}");
    }
}

fn old_tree() -> &'static Path {
    let settled = SystemTime::now() - Duration::from_secs(120);
    let good =
        |path: &&&str| fs::metadata(**path).is_ok_and(|data| data.modified().is_ok_and(|at| at < settled));
    Path::new(OLD_TREES.iter().find(good).unwrap())
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

/// Maps a file shared and makes its first page dirty; at each line it puts the marker there and says so.
const MAPPER: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
int main(int count, char **names) {
    int file = open(names[1], O_RDWR);
    char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) return 1;
    char line[16];
    page[100] = 'y';
    puts("dirty"); fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 0;
    memcpy(page, names[2], strlen(names[2]));
    puts("written"); fflush(stdout);
    return fgets(line, sizeof line, stdin) ? 0 : 0;
}
"#;

struct Mapper {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Mapper {
    fn build(world: &World) -> PathBuf {
        let (source, program) = (world.at("mapper.c"), world.at("mapper"));
        fs::write(&source, MAPPER).unwrap();
        assert!(Command::new("cc").arg("-o").arg(&program).arg(&source).status().unwrap().success());
        program
    }

    fn start(program: &Path, file: &Path) -> Self {
        let mut command = Command::new(program);
        command.arg(file).arg(MARKER).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "dirty");
        Self { child, lines }
    }

    fn write(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(self.lines.next().unwrap().unwrap(), "written");
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[test]
fn content_that_changes_without_its_times_or_within_a_tick_is_scanned_again() {
    let world = World::new();
    let mapper = Mapper::build(&world);
    // Through a mapping whose page is dirty already: the times stay.
    let mapped = world.at("tree/mapped");
    fs::write(&mapped, [b'x'; 4096]).unwrap();
    let mut running = Mapper::start(&mapper, &mapped);
    let before = fs::metadata(&mapped).unwrap().modified().unwrap();
    world.run(&mapped).expect(0, 1, 0);
    running.write();
    assert_eq!(fs::metadata(&mapped).unwrap().modified().unwrap(), before, "the times tell nothing");
    world.run(&mapped).expect(1, 1, 0);
    running.end();
    // Within one tick of the clock that stamps files.
    for round in 0..5 {
        let file = world.at(&format!("tree/quick{round}"));
        fs::write(&file, "x".repeat(MARKER.len())).unwrap();
        let clean = world.scan(&[], &file).output().unwrap();
        fs::write(&file, MARKER).unwrap();
        Outcome::of(&clean).expect(0, 1, 0);
        world.run(&file).expect(1, 1, 0);
    }
    // Known after it was left alone; then changed through a mapping, which the times tell.
    let settled = world.at("tree/settled");
    fs::write(&settled, [b'x'; 4096]).unwrap();
    let closed = Closed::new(&world);
    std::thread::sleep(Duration::from_secs(61));
    closed.are_forgotten();
    world.run(&settled).expect(0, 1, 0);
    world.run(&settled).expect(0, 0, 1);
    let mut running = Mapper::start(&mapper, &settled);
    running.write();
    world.run(&settled).expect(1, 1, 0);
    running.end();
}

#[test]
fn an_unchanged_tree_is_not_opened_again_and_other_rules_look_anew() {
    let (world, tree) = (World::new(), old_tree());
    let first = world.run(tree);
    assert!(first.scanned > 100 && first.known == 0 && first.code == Some(0), "{first:?}");
    let again = world.run(tree);
    again.expect(0, 0, first.scanned);
    let output = world.scan(&["--no-cache"], tree).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be used with"), "{output:?}");
    fs::write(world.at("rules.yar"), format!("{RULES} rule more {{ condition: false }}")).unwrap();
    let other = world.run(tree);
    // Of several files with one content the first is scanned.
    assert!(other.scanned + other.known == first.scanned && other.known < other.scanned, "{other:?}");
    // Damage is a miss.
    fs::write(world.at("cache"), "x").unwrap();
    world.run(tree).expect(0, first.scanned, 0);
}

#[test]
fn mistakes_in_rules_are_told_each_time() {
    let (world, tree) = (World::new(), old_tree());
    fs::write(world.at("bad.yar"), "rule x { condition: }").unwrap();
    let bad = world.at("bad.yar");
    for _ in 0..2 {
        let output = world.scan(&["--rules", bad.to_str().unwrap()], tree).output().unwrap();
        let outcome = Outcome::of(&output);
        assert!(
            outcome.code == Some(2) && outcome.said.contains("bad.yar") && outcome.known == 0,
            "{outcome:?}"
        );
    }
}

#[test]
fn a_scan_that_is_stopped_goes_on_where_it_was() {
    let (world, tree) = (World::new(), old_tree());
    let mut command = world.scan(&["--cpu", "5"], tree);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    interrupt(&child);
    let first = Outcome::of(&child.wait_with_output().unwrap());
    assert!(first.said.contains("goes on from here") && first.code == Some(2), "{first:?}");
    let rest = world.run(tree);
    // A file that was scanned and not reported before the stop is known too.
    assert!(rest.known >= first.scanned && first.scanned > 0 && rest.scanned > 0, "{first:?} {rest:?}");
    world.run(tree).expect(0, 0, rest.known + rest.scanned);
}

#[test]
fn who_stops_reading_is_not_told_that_all_is_clean() {
    let world = World::new();
    fs::write(world.at("tree/bad"), MARKER).unwrap();
    let code = |command: &mut Command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer).stderr(Stdio::null()).status().unwrap().code()
    };
    assert_eq!(code(&mut world.scan(&[], &world.at("tree"))), Some(1));
    assert_eq!(code(&mut world.scan(&["--json"], &world.at("missing"))), Some(2));
    fs::write(world.at("bad.yar"), "rule {").unwrap();
    let mut check = Command::new(AGENT);
    check.args(["rules", "check"]).arg(world.at("bad.yar"));
    assert_eq!(code(&mut check), Some(2));
}

#[test]
fn what_is_scanned_in_part_is_told_to_programs_and_has_no_digest_but_the_whole_file_s() {
    let world = World::new();
    let mut content = vec![b'-'; 3 << 20];
    fs::write(world.at("tree/dull"), &content).unwrap();
    content.extend(MARKER.as_bytes());
    fs::write(world.at("tree/bad"), &content).unwrap();
    let args = ["--json", "--max-size", "1MiB"];
    let output = world.scan(&args, &world.at("tree")).output().unwrap();
    let lines: Vec<serde_json::Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let of = |name: &str| {
        lines.iter().find(|line| line["file.path"].as_str().unwrap().ends_with(name)).unwrap().clone()
    };
    let dull = of("dull");
    assert!(dull["vidette.verdict"] == "too_large" && dull["file.hash.sha256"].is_null(), "{dull}");
    let bad = of("bad");
    assert_eq!(bad["file.hash.blake3"], blake3::hash(&content).to_hex().as_str(), "{bad}");
    assert!(bad["file.hash.sha256"].is_string(), "{bad}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("truncated"), "{output:?}");
}

#[test]
fn the_budget_holds_over_seconds() {
    let world = World::new();
    let mut command = world.scan(&["--cpu", "25"], Path::new("/usr"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let (begin, before) = (Instant::now(), with_children(child.id()));
    std::thread::sleep(Duration::from_secs(6));
    let (used, time) = (with_children(child.id()) - before, begin.elapsed());
    interrupt(&child);
    child.wait().unwrap();
    let share = used.as_secs_f64() / time.as_secs_f64();
    println!("{used:?} in {time:?}: {share:.3}");
    assert!((0.05..0.40).contains(&share), "{share}");
}

fn with_children(pid: u32) -> Duration {
    let children = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let children = children.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<u32> = children
        .flat_map(|text| text.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    time_of(pid).unwrap() + pids.into_iter().filter_map(time_of).sum::<Duration>()
}

/// A FUSE file system whose daemon never reads a request, in a mount namespace of its own.
#[test]
fn a_file_system_that_does_not_answer_is_left_and_the_rest_goes_on() {
    let world = World::new();
    for name in ["tree/a-silent", "tree/b-other", "tree/c"] {
        fs::create_dir(world.at(name)).unwrap();
    }
    fs::write(world.at("tree/c/clean"), "x").unwrap();
    let script = r#"
        exec 9<>/dev/fuse
        mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 none tree/a-silent
        mount -t tmpfs none tree/b-other
        echo "$MARKER" > tree/b-other/bad
        scan() { code=0; "$AGENT" scan --no-builtin-rules --rules rules.yar --no-cache "$@" 9<&- || code=$?; echo "code $code"; }
        scan tree
        scan --cross-filesystems tree
        scan tree/a-silent tree/c
    "#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", script])
        .env("AGENT", AGENT)
        .env("MARKER", MARKER)
        .current_dir(&world.root)
        .output()
        .unwrap();
    let outcome = Outcome::of(&output);
    let codes: Vec<&str> = outcome.out.lines().filter(|line| line.starts_with("code")).collect();
    assert_eq!(codes, ["code 0", "code 1", "code 2"], "{outcome:?}");
    assert!(outcome.out.contains("tree/b-other/bad"), "{outcome:?}");
    assert_eq!(
        outcome.said.matches("tree/a-silent: its file system did not answer").count(),
        2,
        "{outcome:?}"
    );
    assert_eq!(outcome.said.matches("1 file systems left").count(), 2, "{outcome:?}");
}

/// A sweep with what `scan --max-size 1MiB` keeps, in this process: what is told of how many files, and nothing of a
/// worker, which tells that it has started.
fn without_a_worker(world: &World, tree: &Path) -> usize {
    let (_stopper, stop) = stop::channel();
    let rules = RuleSources { builtin: false, files: vec![world.at("rules.yar")] }.load().into_set();
    let launcher = Launcher::of(Path::new(AGENT)).unwrap();
    let settings = Settings { size_max_bytes: 1 << 20, ..Settings::new(launcher, rules) };
    let plan = engine::Plan {
        options: Options { follow: false, cross: Cross::Stay, exclude: Vec::new() },
        io_bytes_per_s: 0,
        verdicts: Some(Arc::new(Verdicts::open(&world.at("cache"), FILES_DEFAULT).unwrap())),
        hashes: Arc::default(),
        keeps_with_mistakes: false,
    };
    let mut engine = Engine::new(Pool::new(settings), plan, Arc::new(Gate::new(stop, 0)));
    let mut told = 0;
    let ended = engine.run(&[tree.to_owned()], &mut |said| {
        match said {
            Said::File(done) => {
                assert!(done.again, "{done:?}");
                told += 1;
            }
            Said::Tick => {}
            other @ (Said::Unreadable(..) | Said::NoAnswer(_) | Said::Worker(_)) => panic!("{other:?}"),
        }
        Ok(())
    });
    assert_eq!((ended.unwrap(), engine.worker_pid()), (Ended::Whole, None));
    told
}

/// A line of `--json` without what is another one each time.
fn timeless(output: &Output) -> Vec<serde_json::Value> {
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut lines: Vec<serde_json::Value> = lines
        .map(|line| {
            let mut line: serde_json::Value = serde_json::from_slice(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            for name in ["@timestamp", "vidette.scan_us", "vidette.uptime_ns"] {
                fields.remove(name).unwrap();
            }
            line
        })
        .collect();
    lines.sort_by_key(|line| line["file.path"].to_string());
    lines
}

/// What matched and what was scanned in part is told alike without being scanned, until a fact is another one.
#[test]
fn what_was_told_is_told_again_alike_without_a_scanner() {
    let world = World::new();
    let (bad, part, both) = (world.at("tree/bad"), world.at("tree/part"), world.at("tree/both"));
    fs::write(&bad, MARKER).unwrap();
    fs::write(&part, vec![b'-'; 3 << 20]).unwrap();
    fs::write(&both, [vec![b'-'; 3 << 20], MARKER.into()].concat()).unwrap();
    fs::write(world.at("tree/clean"), "x").unwrap();
    std::thread::sleep(Duration::from_secs(61));
    let tree = world.at("tree");
    let run = |args: &[&str]| world.scan(args, &tree).output().unwrap();
    let args = ["--json", "--max-size", "1MiB"];
    let first = run(&args);
    let expect = |output: &Output, scanned: u64, known: u64, again: u64| {
        let outcome = Outcome::of(output);
        outcome.expect(1, scanned, known);
        assert_eq!(outcome.again, again, "{outcome:?}");
    };
    expect(&first, 4, 0, 0);
    assert_eq!(timeless(&first).len(), 3);
    for _ in 0..2 {
        let again = run(&args);
        expect(&again, 0, 1, 3);
        assert_eq!(timeless(&again), timeless(&first));
        let told = |output: &Output| {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let lines = text.lines().filter(|line| !line.contains(" MiB scanned in "));
            lines.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        assert_eq!(told(&again), told(&first), "also what is said beside it");
    }
    assert_eq!(without_a_worker(&world, &tree), 3);
    // Another size: what was told is scanned anew, what is clean is clean.
    expect(&run(&["--json", "--max-size", "2MiB"]), 3, 1, 0);
    // Other times: that file alone.
    fs::File::options().write(true).open(&bad).unwrap().set_modified(SystemTime::now()).unwrap();
    expect(&run(&["--json", "--max-size", "2MiB"]), 1, 1, 2);
    // Another file in the place of one that was clean, mostly with its inode; the one from before may be too young still.
    fs::remove_file(world.at("tree/clean")).unwrap();
    fs::write(world.at("tree/clean"), MARKER).unwrap();
    let outcome = Outcome::of(&run(&["--json", "--max-size", "2MiB"]));
    assert!(outcome.known == 0 && outcome.out.contains("tree/clean"), "{outcome:?}");
    // Other rules: everything.
    fs::write(world.at("rules.yar"), format!("{RULES} rule more {{ condition: false }}")).unwrap();
    expect(&run(&["--json", "--max-size", "2MiB"]), 4, 0, 0);
    // Damaged from end to end: everything.
    let file = fs::File::options().write(true).open(world.at("cache")).unwrap();
    let (block, length) = (vec![0x5a; 4096], file.metadata().unwrap().len());
    for at in (4096..length).step_by(4096) {
        file.write_all_at(&block, at).unwrap();
    }
    expect(&run(&["--json", "--max-size", "2MiB"]), 4, 0, 0);
}

struct Stage {
    world: World,
    detection: Detection,
    input: Sender<Observation>,
    events: Receiver<wire::Event>,
}

impl Stage {
    fn start(world: World, sweep: Plan) -> Self {
        let (input, observations) = bounded(OBSERVATIONS_QUEUE_MAX);
        let (out, events) = bounded(EVENTS_QUEUE_MAX);
        let config = Config {
            host: Host::read(),
            rules: RuleSources { builtin: false, files: vec![world.at("rules.yar")] },
            size_max_bytes: 64 << 20,
            scan_timeout: Duration::from_secs(60),
            scans_parallel: 2,
            telemetry: true,
            launcher: Launcher::of(Path::new(AGENT)).unwrap(),
            scope: Scope::default(),
            hashes: Default::default(),
            memory: None,
            poison: Default::default(),
            verdicts: Place { path: Some(world.at("verdicts.cache")), ..Default::default() },
            sweep,
        };
        let detection = detection::start(config, Arc::new(Counters::default()), observations, out).unwrap();
        Self { world, detection, input, events }
    }

    /// The next events up to the one that says how a sweep ended: paths of detections, and that event.
    fn swept(&self) -> (Vec<String>, wire::Audit) {
        let mut found = Vec::new();
        loop {
            match self.events.recv_timeout(PATIENCE).unwrap().kind {
                Some(Kind::Audit(audit)) if audit.action == "sweep-ended" => return (found, audit),
                Some(Kind::Detection(detection)) => {
                    assert_eq!(detection.trigger(), Trigger::Sweep);
                    found.push(String::from_utf8_lossy(&detection.file.unwrap().path).into_owned());
                }
                _ => {}
            }
        }
    }

    fn sweep(&self) -> Snapshot {
        self.detection.state().sweep
    }

    /// As the sensors tell that somebody closed a file after writing.
    fn close_written(&self, path: &Path) {
        let file = OpenFile {
            descriptor: fs::File::open(path).unwrap().into(),
            path: path.as_os_str().as_bytes().to_vec(),
            deleted: false,
            container_path: Vec::new(),
        };
        let (trigger, at) = (Trigger::CloseWrite, Moment::now());
        let told = Observation::FileWritten { file, process: None, trigger, old_path: Vec::new(), at };
        self.input.send(told).unwrap();
    }

    /// The path of the next file that was detected where it was written.
    fn detected(&self) -> String {
        loop {
            let event = self.events.recv_timeout(PATIENCE).unwrap();
            if let Some(Kind::Detection(detection)) = event.kind
                && detection.trigger() == Trigger::CloseWrite
            {
                return String::from_utf8_lossy(&detection.file.unwrap().path).into_owned();
            }
        }
    }

    fn end(self) -> (World, Vec<wire::Event>) {
        drop(self.input);
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(PATIENCE) {
            events.push(event);
        }
        self.detection.join();
        (self.world, events)
    }
}

fn plan(world: &World, roots: &[&Path], cpu_percent: u32) -> Plan {
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    Plan {
        after_rules_change: true,
        cpu_percent,
        scope: Scope {
            roots: roots.iter().map(|path| bytes(path)).collect(),
            exclude: vec![bytes(&world.at("tree/left-out"))],
        },
        state: Some(world.root.clone()),
        ..Default::default()
    }
}

#[test]
fn the_daemon_sweeps_at_first_after_new_rules_and_when_asked() {
    let world = World::new();
    fs::create_dir(world.at("tree/left-out")).unwrap();
    for name in ["tree/bad", "tree/left-out/bad"] {
        fs::write(world.at(name), MARKER).unwrap();
    }
    let bad = world.at("tree/bad").to_str().unwrap().to_owned();
    let (tree, old) = (world.at("tree"), old_tree());
    let plan = plan(&world, &[&tree, old], 0);
    let stage = Stage::start(world, plan.clone());
    let (found, ended) = stage.swept();
    assert_eq!(
        (found.as_slice(), ended.outcome.as_str()),
        ([bad.clone()].as_slice(), "success"),
        "{ended:?}"
    );
    let shown = stage.sweep();
    assert!(
        !shown.running && shown.sweeps == 1 && shown.finished_unix_ns > 0 && shown.matched == 1,
        "{shown:?}"
    );
    assert!(shown.files > 100 && shown.known == 0, "{shown:?}");
    // The same again: only what matched is opened.
    stage.detection.sweep();
    let (found, _) = stage.swept();
    let again = stage.sweep();
    assert_eq!((found, again.files, again.known), (vec![bad.clone()], shown.files, shown.files - 1));
    // Other rules: everything.
    fs::write(stage.world.at("rules.yar"), format!("{RULES} rule more {{ condition: false }}")).unwrap();
    let rules = RuleSources { builtin: false, files: vec![stage.world.at("rules.yar")] };
    stage.detection.reload_rules(rules);
    let (found, ended) = stage.swept();
    assert_eq!(found, [bad]);
    assert!(stage.sweep().known < shown.files / 2, "{ended:?}");
    let (world, _) = stage.end();
    // After a restart it is remembered.
    let day = Duration::from_secs(86_400);
    let stage = Stage::start(world, Plan { every: Some(day), ..plan });
    let begin = Instant::now();
    while stage.sweep().next_unix_ns == 0 {
        assert!(begin.elapsed() < PATIENCE, "{:?}", stage.sweep());
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown = stage.sweep();
    assert_eq!((shown.sweeps, shown.running), (0, false));
    // Two readings of the clock lie between what is waited and what is told.
    let late = shown.next_unix_ns - shown.finished_unix_ns - day.as_nanos() as i64;
    assert!(shown.finished_unix_ns > 0 && (0..PATIENCE.as_nanos() as i64).contains(&late), "{shown:?}");
    stage.detection.sweep();
    let _ = stage.swept();
    assert_eq!(stage.sweep().known, again.known, "verdicts outlive a restart");
    let (world, _) = stage.end();
    drop(world.folder);
}

#[test]
fn a_sweep_that_is_stopped_ends_at_once_and_goes_on_after_a_restart() {
    let world = World::new();
    let old = old_tree();
    let slow = plan(&world, &[old], 10);
    let fast = plan(&world, &[old], 0);
    let stage = Stage::start(world, slow);
    let begin = Instant::now();
    while stage.sweep().scanned < 20 {
        assert!(begin.elapsed() < PATIENCE, "{:?}", stage.sweep());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(stage.sweep().running);
    let begin = Instant::now();
    let (world, events) = stage.end();
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let ended = events.iter().find_map(|event| match &event.kind {
        Some(Kind::Audit(audit)) if audit.action == "sweep-ended" => Some(audit),
        _ => None,
    });
    assert!(
        ended.is_some_and(|audit| audit.outcome == "failure" && audit.detail.contains("whole=false")),
        "{ended:?}"
    );
    let stage = Stage::start(world, fast);
    let (_, ended) = stage.swept();
    let shown = stage.sweep();
    assert!(shown.known >= 19 && shown.scanned > 0 && ended.outcome == "success", "{shown:?} {ended:?}");
    stage.end();
}

/// Files of a world of its own that have to be left alone for a minute.
struct Closed {
    world: World,
    mapper: PathBuf,
}

impl Closed {
    const NAMES: [&'static str; 3] = ["tree/only-closed", "tree/rewritten", "tree/mapped"];

    fn new(other: &World) -> Self {
        let world = World::new();
        Self::NAMES.iter().for_each(|name| fs::write(world.at(name), vec![b'x'; 4096]).unwrap());
        Self { world, mapper: Mapper::build(other) }
    }

    /// What a close-write tells of is not known any more, whatever its times say.
    fn are_forgotten(self) {
        let Self { world, mapper } = self;
        let all = Self::NAMES.len() as u64;
        let plan = plan(&world, &[&world.at("tree")], 0);
        let stage = Stage::start(world, plan);
        stage.swept();
        stage.detection.sweep();
        stage.swept();
        assert_eq!((stage.sweep().known, stage.sweep().scanned), (all, 0), "all are known to be clean");
        // Opened for writing, closed, in the same state as before: forgotten before it is scanned again, which it can't be
        // while the scanner is stopped.
        let [only_closed, rewritten, mapped] = Self::NAMES.map(|name| stage.world.at(name));
        drop(fs::File::options().write(true).open(&only_closed).unwrap());
        let scanner =
            rustix::process::Pid::from_raw(stage.detection.state().worker_pid.unwrap().cast_signed());
        stopping::stop(scanner.unwrap());
        stage.close_written(&only_closed);
        let begin = Instant::now();
        while stage.detection.state().queue_length == 0 {
            assert!(begin.elapsed() < PATIENCE);
        }
        stage.detection.sweep();
        stage.swept();
        assert_eq!((stage.sweep().known, stage.sweep().scanned), (all - 1, 1), "looked at anew");
        // Other content in place, with the times as they were as far as that can be done.
        let before = fs::metadata(&rewritten).unwrap().modified().unwrap();
        let mut content = [b'x'; 4096];
        content[..MARKER.len()].copy_from_slice(MARKER.as_bytes());
        fs::write(&rewritten, content).unwrap();
        let mut mapper = Mapper::start(&mapper, &mapped);
        mapper.write();
        mapper.end();
        for path in [&rewritten, &mapped] {
            fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
            stage.close_written(path);
        }
        let names = |paths: &[&Path]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let mut found: Vec<String> = std::iter::repeat_with(|| stage.detected()).take(2).collect();
        found.sort();
        assert_eq!(found, names(&[&mapped, &rewritten]), "at once");
        stage.detection.sweep();
        let (mut found, _) = stage.swept();
        found.sort();
        assert_eq!(found, names(&[&mapped, &rewritten]), "and by the next sweep");
        stage.end();
    }
}
