//! Names against the real kernel, as root: renames, links, deletions, modes, folders that move.
//!
//! What the tests do is done by grandchildren: what this process and its children do is the agent's own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crossbeam_channel::Receiver;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::sensors::{self, Config, Level, OBSERVATIONS_QUEUE_MAX, Observation, OpenFile, Sensors};
use vidette_agent::telemetry::Counters;
use vidette_protocol::wire::{self, FileAction, GapReason, Process, Trigger};

/// A generous end for what should take milliseconds.
const WAIT: Duration = Duration::from_secs(20);

struct Run {
    sensors: Sensors,
    counters: Arc<Counters>,
    observations: Receiver<Observation>,
    folder: tempfile::TempDir,
    /// What is watched: a folder in it.
    watched: PathBuf,
}

/// A file that is to be scanned.
#[derive(Debug)]
struct Scan {
    file: OpenFile,
    old_path: Vec<u8>,
    trigger: Trigger,
    process: Option<Process>,
}

/// A name that changed.
#[derive(Debug)]
struct Named {
    action: FileAction,
    file: wire::File,
    old_path: Vec<u8>,
    folder: bool,
    process: Option<Process>,
}

impl Run {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
        let watched = folder.path().join("watched");
        std::fs::create_dir_all(&watched).unwrap();
        let config = Config {
            watch: vec![watched.as_os_str().as_bytes().to_vec()],
            exclude: vec![watched.join("excluded").as_os_str().as_bytes().to_vec()],
            level_max: Level::Full,
            network_filesystems: false,
            realtime: true,
            self_test: None,
            canary: None,
        };
        let counters = Arc::new(Counters::default());
        let (out, observations) = crossbeam_channel::bounded(OBSERVATIONS_QUEUE_MAX);
        let sensors = sensors::start(config, counters.clone(), out).unwrap();
        assert_eq!(sensors.level(), Level::Full, "{}", sensors.reason());
        Self { sensors, counters, observations, folder, watched }
    }

    fn path(&self, name: impl AsRef<OsStr>) -> Vec<u8> {
        self.watched.join(name.as_ref()).into_os_string().into_vec()
    }

    /// Runs a script as a grandchild, in the watched folder.
    fn shell(&self, script: &str) {
        let script = format!("({script}); true");
        let status = Command::new("/bin/sh").args(["-ec", &script]).current_dir(&self.watched).status();
        assert!(status.unwrap().success());
    }

    /// The next observation that `want` makes something of.
    fn next<T>(&self, what: &str, mut want: impl FnMut(Observation) -> Option<T>) -> T {
        let end = Instant::now() + WAIT;
        let mut others = Vec::new();
        while let Ok(observation) = self.observations.recv_deadline(end) {
            others.push(format!("{observation:?}"));
            if let Some(found) = want(observation) {
                return found;
            }
        }
        panic!("{what} did not come; what came: {others:#?}; counters: {:?}", self.counters.all());
    }

    /// The next file to scan of this path and trigger.
    fn scan(&self, name: impl AsRef<OsStr>, wanted: Trigger) -> Scan {
        let path = self.path(name);
        self.next(&format!("{wanted:?} of {}", path.escape_ascii()), |observation| match observation {
            Observation::FileWritten { file, process, trigger, old_path, .. }
                if file.path == path && trigger == wanted =>
            {
                Some(Scan { file, old_path, trigger, process })
            }
            _ => None,
        })
    }

    /// The next change of this path's name.
    fn named(&self, name: impl AsRef<OsStr>, wanted: FileAction) -> Named {
        let path = self.path(name);
        self.next(&format!("{wanted:?} of {}", path.escape_ascii()), |observation| match observation {
            Observation::NameChanged { action, file, old_path, folder, process, .. }
                if file.path == path && action == wanted =>
            {
                Some(Named { action, file, old_path, folder, process })
            }
            _ => None,
        })
    }

    /// Everything until a file is written that is called `end`.
    fn until_end(&self) -> Vec<Observation> {
        self.shell("echo x > end");
        let (path, mut all) = (self.path("end"), Vec::new());
        self.next("the end", |observation| {
            let ended = matches!(&observation, Observation::FileWritten { file, .. } if file.path == path);
            all.push(observation);
            ended.then_some(())
        });
        all
    }

    /// Stops, and checks that everything seen is accounted for.
    fn end(self) -> Arc<Counters> {
        self.sensors.stop();
        let count = |name: &str| {
            self.counters.all().into_iter().find(|(one, _)| *one == name).map_or(0, |(_, value)| value)
        };
        let accounted =
            ["passed", "shed_own", "shed_unwatched", "shed_duplicate", "lost_queue", "lost_kernel"]
                .map(|name| count(&format!("sensor_{name}")))
                .into_iter()
                .sum::<u64>();
        assert!(accounted > 0);
        assert_eq!(count("sensor_seen"), accounted, "{:?}", self.counters.all());
        self.counters
    }
}

fn content(file: &OpenFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(file.descriptor.try_clone().unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn ran(process: Option<&Process>) -> &[u8] {
    process.unwrap().executable.rsplit(|&byte| byte == b'/').next().unwrap()
}

#[test]
fn a_rename_into_place_is_scanned_with_both_paths_and_who_did_it() {
    let run = Run::start();
    run.shell("mkdir d; echo content > d/a; mv d/a b; true");
    let scan = run.scan("b", Trigger::Rename);
    assert_eq!((content(&scan.file), scan.old_path), (b"content\n".to_vec(), run.path("d/a")));
    assert_eq!((ran(scan.process.as_ref()), scan.file.deleted), (&b"mv"[..], false));
    // From outside, over one that was there.
    run.shell("echo evil > ../x; mv -f ../x b; true");
    let scan = run.scan("b", Trigger::Rename);
    let old = run.folder.path().join("x").into_os_string().into_vec();
    assert_eq!(
        (content(&scan.file), scan.old_path, scan.trigger),
        (b"evil\n".to_vec(), old, Trigger::Rename)
    );
    // And out: told, not scanned.
    run.shell("mv b ../y; true");
    let out = run.folder.path().join("y").into_os_string().into_vec();
    run.next("the move out", |observation| match observation {
        Observation::NameChanged { action: FileAction::Renamed, file, old_path, .. } => {
            assert_eq!((file.path, old_path), (out.clone(), run.path("b")));
            Some(())
        }
        Observation::FileWritten { trigger, .. } => panic!("{trigger:?}"),
        _ => None,
    });
    run.end();
}

#[test]
fn a_hard_link_is_scanned_and_a_creation_is_not() {
    let run = Run::start();
    run.shell("echo content > ../a; ln ../a b; true");
    let scan = run.scan("b", Trigger::Link);
    assert_eq!((content(&scan.file), ran(scan.process.as_ref())), (b"content\n".to_vec(), &b"ln"[..]));
    run.shell("echo x > c; ln -s c e; mkdir f; mkfifo g; mknod h c 1 3; true");
    for observation in run.until_end() {
        match observation {
            Observation::FileWritten { trigger, .. } => assert_eq!(trigger, Trigger::CloseWrite),
            Observation::NameChanged { action, file, .. } => panic!("{action:?} {file:?}"),
            _ => {}
        }
    }
    run.end();
}

/// What no shell can do.
const TOOL: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **args) {
    if (count == 4 && !strcmp(args[1], "exchange"))
        return renameat2(AT_FDCWD, args[2], AT_FDCWD, args[3], RENAME_EXCHANGE);
    if (count == 5 && !strcmp(args[1], "tmpfile")) {
        int file = open(args[2], O_TMPFILE | O_RDWR, 0600);
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        return write(file, args[4], strlen(args[4])) < 0
            || linkat(AT_FDCWD, link, AT_FDCWD, args[3], AT_SYMLINK_FOLLOW);
    }
    return 2;
}
"#;

fn build_tool(run: &Run) {
    let source = run.folder.path().join("tool.c");
    std::fs::write(&source, TOOL).unwrap();
    let tool = run.folder.path().join("tool");
    assert!(Command::new("cc").arg("-o").args([&tool, &source]).status().unwrap().success());
}

#[test]
fn a_file_without_a_name_is_scanned_when_it_gets_one() {
    let run = Run::start();
    build_tool(&run);
    run.shell("../tool tmpfile . linked content; true");
    let scan = run.scan("linked", Trigger::Link);
    assert_eq!((content(&scan.file), ran(scan.process.as_ref())), (b"content".to_vec(), &b"tool"[..]));
    assert!(!scan.file.deleted);
    run.end();
}

#[test]
fn an_exchange_has_both_files_scanned() {
    let run = Run::start();
    build_tool(&run);
    run.shell("echo one > a; echo two > ../b; ../tool exchange a ../b; ../tool exchange a ../b; true");
    let outside = run.folder.path().join("b").into_os_string().into_vec();
    for expected in [&b"two\n"[..], b"one\n"] {
        let scan = run.scan("a", Trigger::Rename);
        assert_eq!((content(&scan.file), &scan.old_path), (expected.to_vec(), &outside));
    }
    run.shell("echo three > c; ../tool exchange a c; true");
    let mut scans = [run.scan("c", Trigger::Rename), run.scan("a", Trigger::Rename)];
    scans.sort_by(|one, other| one.file.path.cmp(&other.file.path));
    let contents: Vec<_> = scans.iter().map(|scan| content(&scan.file)).collect();
    assert_eq!(contents, [b"three\n".to_vec(), b"one\n".to_vec()]);
    run.end();
}

#[test]
fn a_deletion_is_told_with_its_path_even_when_the_folder_is_gone() {
    let run = Run::start();
    run.shell("mkdir -p a/b/c; echo x > a/b/c/f; rm -r a; true");
    for (name, folder) in [("a/b/c/f", false), ("a/b/c", true), ("a/b", true), ("a", true)] {
        let named = run.named(name, FileAction::Deleted);
        assert_eq!((named.folder, ran(named.process.as_ref())), (folder, &b"rm"[..]), "{name}");
    }
    const ROUNDS: usize = 300;
    run.shell(&format!(
        "i=0; while [ $i -lt {ROUNDS} ]; do mkdir -p r$i/b; echo x > r$i/b/f; rm -r r$i; i=$((i+1)); done"
    ));
    let mut gone = std::collections::HashSet::new();
    while gone.len() < ROUNDS {
        run.next(&format!("the rest of {} deletions", gone.len()), |observation| {
            if let Observation::NameChanged { action: FileAction::Deleted, file, folder: false, .. } =
                observation
            {
                assert!(file.path.starts_with(&run.path("r")), "{}", file.path.escape_ascii());
                gone.insert(file.path);
            }
            Some(())
        });
    }
    run.end();
}

/// The tree is older than the sensors, and gone before they look: they are stopped meanwhile.
#[test]
fn a_tree_that_nobody_knew_and_that_is_gone_has_paths() {
    const ROLE: &str = "VIDETTE_TEST_OLD_TREE";
    const FILES: usize = 500;
    if let Some(folder) = std::env::var_os(ROLE) {
        let folder = tempfile::TempDir::new_in(folder).unwrap();
        let tree = folder.path().join("watched/old/tree");
        std::fs::create_dir_all(&tree).unwrap();
        for file in 0..FILES {
            std::fs::write(tree.join(file.to_string()), "").unwrap();
        }
        let run = Run::start_in(folder);
        println!("ready {}", run.watched.display());
        std::io::stdin().read_exact(&mut [0]).unwrap();
        let mut gone = std::collections::HashSet::new();
        while gone.len() < FILES + 2 {
            run.next(&format!("the rest of {} deletions", gone.len()), |observation| {
                if let Observation::NameChanged { action: FileAction::Deleted, file, .. } = observation {
                    assert!(file.path.starts_with(&run.path("old")), "{}", file.path.escape_ascii());
                    gone.insert(file.path);
                }
                Some(())
            });
        }
        run.end();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut child, ready) =
        stopped_child("a_tree_that_nobody_knew_and_that_is_gone_has_paths", ROLE, folder.path().as_os_str());
    let tree = PathBuf::from(ready.split_once("ready ").unwrap().1).join("old");
    std::fs::remove_dir_all(tree).unwrap();
    resume(&mut child);
}

#[test]
fn what_is_made_executable_is_scanned_and_what_changes_hands_is_told() {
    let run = Run::start();
    run.shell("echo content > a; chmod 600 a; echo x > b; chown 1234:55 b; mkdir d; chmod 700 d; true");
    let told = run.named("a", FileAction::Attributes);
    assert_eq!((told.file.mode & 0o7777, told.file.uid, told.folder), (0o600, 0, false));
    let told = run.named("b", FileAction::Attributes);
    let stat = std::fs::metadata(run.watched.join("b")).unwrap();
    assert_eq!((told.file.uid, told.file.gid, told.file.inode), (1234, 55, stat.ino()));
    assert_eq!((told.file.device, told.file.size), (stat.dev(), 2));
    assert_eq!(ran(told.process.as_ref()), b"chown");
    let told = run.named("d", FileAction::Attributes);
    assert_eq!((told.file.mode & 0o7777, told.folder), (0o700, true));
    run.shell("chmod +x a; true");
    let scan = run.scan("a", Trigger::Attributes);
    assert_eq!((content(&scan.file), ran(scan.process.as_ref())), (b"content\n".to_vec(), &b"chmod"[..]));
    // What is removed has no attributes to tell: only its removal.
    run.shell("ln a a2; rm a2 b; true");
    assert_eq!(run.named("b", FileAction::Deleted).action, FileAction::Deleted);
    run.end();
}

#[test]
fn what_happens_below_a_folder_that_moved_has_its_new_path() {
    let run = Run::start();
    run.shell("mkdir -p a/b; echo x > a/b/f; mv a/b/f a/b/g; mv a z; echo x > z/b/f; mv z/b/f z/b/h; true");
    assert_eq!(run.scan("a/b/g", Trigger::Rename).old_path, run.path("a/b/f"));
    let moved = run.named("z", FileAction::Renamed);
    assert_eq!((moved.folder, moved.old_path), (true, run.path("a")));
    assert_eq!(run.scan("z/b/h", Trigger::Rename).old_path, run.path("z/b/f"));
    run.end();
}

#[test]
fn a_tree_that_is_moved_in_comes_into_view() {
    let run = Run::start();
    let come = |what: &str, path: Vec<u8>| {
        let folder = run.next(what, |observation| match observation {
            Observation::CameIntoView { folder, path: one, reason, since_unix_ns, .. } => {
                assert_eq!((one.as_slice(), reason, since_unix_ns), (path.as_slice(), "moved", 0));
                Some(folder)
            }
            _ => None,
        });
        let file = rustix::fs::openat(folder, "f", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        assert_eq!(std::io::read_to_string(File::from(file.unwrap())).unwrap(), "content\n");
    };
    run.shell("mkdir ../t; echo content > ../t/f; mv ../t in; true");
    come("the tree", run.path("in"));
    // Out of what is excluded.
    run.shell("mkdir -p excluded/u; echo content > excluded/u/f; mv excluded/u out; true");
    come("the tree that was excluded", run.path("out"));
    // The watched folder itself goes, and comes back with what was done meanwhile.
    run.shell("cd ..; mkdir away; mv watched away/w; echo content > away/w/f; mv away/w watched; true");
    come("the watched folder", run.watched.clone().into_os_string().into_vec());
    // Within what is watched nothing comes into view.
    run.shell("mv in inner; true");
    run.named("inner", FileAction::Renamed);
    assert!(!run.until_end().iter().any(|one| matches!(one, Observation::CameIntoView { .. })));
    run.end();
}

/// Mounts something below the watched folder, and unmounts it whatever happens.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_tmpfs_is_followed_and_can_be_unmounted() {
    let run = Run::start();
    let point = run.watched.join("m nt");
    std::fs::create_dir(&point).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point).status();
    let guard = Mounted(point.clone());
    assert!(mounted.unwrap().success());
    // The mark follows the mount by a moment.
    let end = Instant::now() + WAIT;
    let mut followed = false;
    while !followed {
        assert!(Instant::now() < end, "not followed");
        run.shell("echo x > 'm nt/a'; mv 'm nt/a' 'm nt/b'; true");
        while let Ok(seen) = run.observations.recv_timeout(Duration::from_millis(100)) {
            followed |= matches!(seen, Observation::FileWritten { trigger: Trigger::Rename, .. });
        }
    }
    run.shell("mkdir -p 'm nt/d/e'; echo x > 'm nt/d/e/f'; ln 'm nt/d/e/f' 'm nt/l'; rm -r 'm nt/d'; true");
    assert_eq!(content(&run.scan("m nt/l", Trigger::Link).file), b"x\n");
    run.named("m nt/d/e/f", FileAction::Deleted);
    // Nothing of the agent holds it once the observations are dropped. Sensors of other tests may, for a moment.
    while run.observations.recv_timeout(Duration::from_millis(300)).is_ok() {}
    let end = Instant::now() + WAIT;
    while !Command::new("umount").arg(&point).stderr(Stdio::null()).status().unwrap().success() {
        assert!(Instant::now() < end, "busy");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(guard);
    run.end();
}

/// By seed: files with the worst names are renamed again and again, below folders that are renamed too.
#[test]
fn storms_of_renames_with_hostile_names_end_with_the_right_paths() {
    const NAMES: [&[u8]; 5] = [b"plain", b"new\nline", b"not\xff\xfeutf8", b"x (deleted)", b" \t\\'\"$(id)`"];
    let run = Run::start();
    for seed in 0..3u64 {
        println!("seed {seed}");
        let mut script =
            format!("cd {}; mkdir s{seed}; cd s{seed}; mkdir d0;", run.watched.display()).into_bytes();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (mut folder, mut expected) = (0usize, Vec::new());
        for round in 0..60usize {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let name = [NAMES[(state >> 40) as usize % NAMES.len()], round.to_string().as_bytes()].concat();
            let quoted = [b"'", &name.replace_quotes()[..], b"'"].concat();
            script.extend(format!("echo {round} > d{folder}/f; mv d{folder}/f d{folder}/").bytes());
            script.extend(&quoted);
            script.extend(b";\n");
            expected.push((name.clone(), format!("s{seed}/d{folder}")));
            if (state >> 33) % 3 == 0 {
                script.extend(format!("mv d{folder} d{};\n", folder + 1).bytes());
                folder += 1;
            }
        }
        let script = [b"(", &script[..], b"); true"].concat();
        let status = Command::new("/bin/sh").arg("-ec").arg(OsStr::from_bytes(&script)).status();
        assert!(status.unwrap().success());
        for (round, (name, folder)) in expected.into_iter().enumerate() {
            let scan =
                run.scan(OsStr::from_bytes(&[folder.as_bytes(), b"/", &name[..]].concat()), Trigger::Rename);
            assert_eq!(content(&scan.file), format!("{round}\n").into_bytes());
            assert_eq!(scan.old_path, run.path(format!("{folder}/f")));
        }
    }
    run.end();
}

trait Quotes {
    fn replace_quotes(&self) -> Vec<u8>;
}

impl Quotes for Vec<u8> {
    /// For a shell, within single quotes.
    fn replace_quotes(&self) -> Vec<u8> {
        self.iter().flat_map(|&byte| if byte == b'\'' { b"'\\''".to_vec() } else { vec![byte] }).collect()
    }
}

/// The sensors run in a child that is stopped while the queue of names overflows. No file is written: the other
/// queue has room.
#[test]
fn a_queue_of_names_that_overflows_is_a_gap_and_it_goes_on() {
    const ROLE: &str = "VIDETTE_TEST_NAMES_OVERFLOW";
    if std::env::var_os(ROLE).is_some() {
        let run = Run::start();
        println!("ready");
        std::io::stdin().read_exact(&mut [0]).unwrap();
        run.next("the gap", |observation| match observation {
            Observation::Lost { gap, .. } if gap.detail.contains("name events") => {
                assert_eq!((gap.reason, gap.count), (GapReason::KernelQueue as i32, None));
                assert!(gap.from_unix_ns < gap.to_unix_ns, "{gap:?}");
                Some(())
            }
            _ => None,
        });
        run.shell("mkdir d; echo x > d/a; mv d/a d/b; true");
        run.scan("d/b", Trigger::Rename);
        run.end();
        return;
    }
    let (mut child, _) =
        stopped_child("a_queue_of_names_that_overflows_is_a_gap_and_it_goes_on", ROLE, OsStr::new("1"));
    let folder = tempfile::tempdir().unwrap();
    let queue: u32 =
        std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap().trim().parse().unwrap();
    for name in 0..queue + 1000 {
        std::os::unix::fs::symlink("x", folder.path().join(name.to_string())).unwrap();
    }
    resume(&mut child);
}

/// This test again, in a child that is stopped once it has said that it is ready.
fn stopped_child(test: &str, role: &str, value: &OsStr) -> (std::process::Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(role, value)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let ready = lines.find(|line| line.contains("ready")).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    std::thread::spawn(move || lines.for_each(drop)); // so that it can go on writing
    (child, ready)
}

fn resume(child: &mut std::process::Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"x"));
    assert!(child.wait().unwrap().success());
}
