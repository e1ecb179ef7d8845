//! Mounts, mount namespaces and overlays against the real kernel, as root.
//!
//! What the tests do is done by grandchildren: what this process and its children write is the agent's own. Each
//! test mounts below its own folder, and everything there is unmounted at its end, also when it fails.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crossbeam_channel::Receiver;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::sensors::{self, Config, Level, OBSERVATIONS_QUEUE_MAX, Observation, OpenFile, Sensors};
use vidette_agent::telemetry::Counters;
use vidette_protocol::wire::{Gap, GapReason, Health, HealthState, Trigger};

/// A generous end for what should take milliseconds.
const WAIT: Duration = Duration::from_secs(20);
/// Nothing more comes after so long.
const QUIET: Duration = Duration::from_millis(400);

/// A folder whose mounts go with it.
struct Folder(tempfile::TempDir);

struct Run {
    sensors: Option<Sensors>,
    counters: Arc<Counters>,
    observations: Receiver<Observation>,
    folder: Folder,
}

/// What came of one file.
enum Came {
    Written(OpenFile),
    Ran(OpenFile, Vec<u8>),
    Late(PathBuf, Vec<String>),
    Gap(Gap),
}

impl std::fmt::Debug for Came {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Written(file) => write!(formatter, "written {:?}", names(file)),
            Self::Ran(file, executable) => {
                write!(formatter, "run {:?} as {}", names(file), executable.escape_ascii())
            }
            Self::Late(path, names) => write!(formatter, "late {path:?} with {names:?}"),
            Self::Gap(gap) => write!(formatter, "gap: {}", gap.detail),
        }
    }
}

impl Folder {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(self.0.path())).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for point in self.mounts().into_iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(point).status();
        }
    }
}

impl Run {
    /// Watches the folder but for `excluded`, or only those of its folders that are named.
    fn start(watch: &[&str]) -> Self {
        let folder = Folder::new();
        let bytes = |name: &str| folder.path(name).as_os_str().as_bytes().to_vec();
        let whole = vec![folder.0.path().as_os_str().as_bytes().to_vec()];
        let config = Config {
            watch: if watch.is_empty() { whole } else { watch.iter().map(|name| bytes(name)).collect() },
            exclude: vec![bytes("excluded")],
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
        Self { sensors: Some(sensors), counters, observations, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// Starts a script as a grandchild, in the folder.
    fn spawn(&self, script: &str) -> Child {
        let script = format!("({script}\n); true");
        Command::new("/bin/sh")
            .args(["-ec", &script])
            .current_dir(self.folder.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn shell(&self, script: &str) {
        let output = self.spawn(&format!("set -e; {script}")).wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !told.contains("failed"), "{told}");
    }

    /// What came of files in the folder until `enough`, and then until it is quiet.
    fn until(&self, what: &str, mut enough: impl FnMut(&[Came]) -> bool) -> Vec<Came> {
        let mut all = Vec::new();
        let end = Instant::now() + WAIT;
        loop {
            let done = enough(&all);
            let wait = if done { QUIET } else { end.saturating_duration_since(Instant::now()) };
            match self.observations.recv_timeout(wait) {
                Ok(observation) => all.extend(came(observation)),
                Err(_) if done => return all,
                Err(_) => panic!("{what} did not come; what came: {all:#?}; {:?}", self.counters.all()),
            }
        }
    }

    fn end(mut self) {
        self.sensors.take().unwrap().stop();
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
    }
}

fn came(observation: Observation) -> Option<Came> {
    match observation {
        // Names are another test's: an overlay makes several of them when it copies a file up.
        Observation::FileWritten { file, trigger: Trigger::CloseWrite, .. } => Some(Came::Written(file)),
        Observation::ProgramRun { image: Some(image), process, .. } => {
            Some(Came::Ran(image, process.executable))
        }
        Observation::CameIntoView { folder, path, .. } => {
            let listed = rustix::fs::Dir::new(folder).unwrap().map(|entry| entry.unwrap());
            let names = listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            Some(Came::Late(std::ffi::OsStr::from_bytes(&path).into(), names))
        }
        Observation::Lost { gap, .. } if gap.reason == GapReason::Mount as i32 => Some(Came::Gap(gap)),
        _ => None,
    }
}

fn names(file: &OpenFile) -> (&Path, &Path) {
    let path = |bytes| Path::new(std::ffi::OsStr::from_bytes(bytes));
    (path(&file.path), path(&file.container_path))
}

/// Host path and container path of every write, or of every run, of a file with that name.
fn writes(all: &[Came], name: &str) -> Vec<(PathBuf, PathBuf)> {
    let file = |came: &Came| match came {
        Came::Written(file) => Some((names(file).0.to_owned(), names(file).1.to_owned())),
        Came::Ran(..) | Came::Late(..) | Came::Gap(_) => None,
    };
    all.iter().filter_map(file).filter(|(path, _)| path.ends_with(name)).collect()
}

fn runs(all: &[Came], name: &str) -> Vec<(PathBuf, PathBuf)> {
    let file = |came: &Came| match came {
        Came::Ran(file, _) => Some((names(file).0.to_owned(), names(file).1.to_owned())),
        Came::Written(_) | Came::Late(..) | Came::Gap(_) => None,
    };
    all.iter().filter_map(file).filter(|(path, _)| path.ends_with(name)).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

fn content(file: &OpenFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(file.descriptor.try_clone().unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn late_ms(all: &[Came]) -> Vec<i64> {
    let gap = |came: &Came| match came {
        Came::Gap(gap) => Some((gap.to_unix_ns - gap.from_unix_ns) / 1_000_000),
        Came::Written(_) | Came::Ran(..) | Came::Late(..) => None,
    };
    all.iter().filter_map(gap).collect()
}

/// What is written before the mark is in a folder that comes into view; the file system can be unmounted at once
/// and mounted again, and is new again then.
#[test]
fn a_mount_an_unmount_and_a_remount_are_followed() {
    let run = Run::start(&[]);
    std::fs::create_dir(run.path("m")).unwrap();
    for round in 0..5 {
        run.shell(&format!(
            "mount -t tmpfs none m; echo x > m/early{round}; sleep 0.3; echo x > m/later{round}"
        ));
        let (early, later) = (format!("early{round}"), format!("later{round}"));
        let all = run.until("the later file and the early one somehow", |all| {
            let found = all.iter().any(|came| match came {
                Came::Late(path, names) => *path == run.path("m") && names.contains(&early),
                Came::Written(_) | Came::Ran(..) | Came::Gap(_) => false,
            });
            (found || !writes(all, &early).is_empty())
                && !writes(all, &later).is_empty()
                && !late_ms(all).is_empty()
        });
        assert_eq!(writes(&all, &later), [(run.path("m").join(&later), PathBuf::new())]);
        println!(
            "round {round}: gaps of {:?} ms; early file seen {}",
            late_ms(&all),
            writes(&all, &early).len()
        );
        drop(all); // what was handed over is open, and its file system busy
        run.shell("umount m");
    }
    run.end();
}

#[test]
fn a_bind_mount_neither_hides_from_a_narrow_watch_nor_under_an_exclusion() {
    let run = Run::start(&["watched", "excluded"]);
    run.shell(
        "mkdir watched watched/in outside elsewhere excluded excluded/in excluded/plain
         mount --bind watched elsewhere; mount --bind outside watched/in; mount --bind outside excluded/in
         echo x > elsewhere/a; echo x > watched/in/b; echo x > excluded/in/c; echo x > excluded/plain/d
         echo x > outside/e; cp /bin/true excluded/in/f; excluded/in/f; echo x > watched/last",
    );
    let all = run.until("the last file", |all| !writes(all, "last").is_empty());
    let path = |name| run.path(name);
    assert_eq!(writes(&all, "a"), [(path("watched/a"), path("elsewhere/a"))], "{all:?}");
    assert_eq!(writes(&all, "b"), [(path("outside/b"), path("watched/in/b"))], "{all:?}");
    assert_eq!(writes(&all, "c"), [(path("outside/c"), path("excluded/in/c"))], "{all:?}");
    assert_eq!((writes(&all, "d"), writes(&all, "e")), (vec![], vec![]), "{all:?}");
    assert_eq!(writes(&all, "f"), [(path("outside/f"), path("excluded/in/f"))], "{all:?}");
    assert_eq!(runs(&all, "f"), [(path("outside/f"), path("excluded/in/f"))], "{all:?}");
    drop(all);
    // In a namespace of its own: the same, and a file system that nobody else sees.
    run.shell(
        "unshare -m sh -ec 'mount --bind outside excluded/plain; echo x > excluded/plain/g
         mount -t tmpfs none excluded; sleep 0.5; echo x > excluded/h'",
    );
    let all = run.until("both files", |all| !writes(all, "g").is_empty() && !writes(all, "h").is_empty());
    assert_eq!(writes(&all, "g"), [(path("outside/g"), path("excluded/plain/g"))], "{all:?}");
    assert_eq!(writes(&all, "h"), [(path("excluded/h"), path("excluded/h"))], "{all:?}");
    drop(all);
    run.shell("umount elsewhere watched/in excluded/in");
    run.end();
}

/// Container engines hide parts of /proc and /sys below a tmpfs: the kernel keeps no name of those in memory.
#[test]
fn a_tmpfs_on_proc_and_sys_of_a_container_is_watched() {
    let run = Run::start(&[]);
    std::fs::create_dir(run.path("p")).unwrap();
    std::fs::create_dir(run.path("s")).unwrap();
    run.shell(
        "unshare -m sh -ec 'mount -t proc none p; mount -t sysfs none s
         for point in p/acpi p/sys/kernel s/kernel s/firmware/memmap; do
           test -d $point || continue
           mount -t tmpfs none $point; sleep 0.5; echo x > $point/late
         done'",
    );
    let folders = ["p/acpi", "p/sys/kernel", "s/kernel", "s/firmware/memmap"];
    let there: Vec<&str> = folders.into_iter().filter(|folder| is_on_this_kernel(folder)).collect();
    println!("on this kernel: {there:?}");
    assert!(there.contains(&"p/sys/kernel") && there.contains(&"s/kernel"));
    let all = run.until("each write", |all| writes(all, "late").len() >= there.len());
    let paths: Vec<PathBuf> = writes(&all, "late").into_iter().map(|(path, _)| path).collect();
    for folder in there {
        assert!(paths.contains(&run.path(folder).join("late")), "{folder}: {all:?}");
    }
    drop(all);
    run.end();
}

fn is_on_this_kernel(folder: &str) -> bool {
    let (system, rest) = folder.split_at(1);
    Path::new(if system == "p" { "/proc" } else { "/sys" }).join(rest.trim_start_matches('/')).is_dir()
}

/// As systemd gives a service its root: for a moment what it has mounted is below names that its process can't reach.
/// That is told when it stays so, and not when it is over at once.
#[test]
fn only_what_stays_out_of_reach_is_a_trouble() {
    let run = Run::start(&[]);
    run.shell("mkdir u");
    let out_of_reach = |seconds: f64| {
        let mut child = run.spawn(&format!(
            "unshare -m sh -ec 'mount -t tmpfs none u; mkdir u/credentials; mount -t ramfs none u/credentials
             cd u; mount --move . /; sleep {seconds}'; sleep 0.5; mkdir -p m; mount -t tmpfs none m; sleep 0.5; echo x > m/last; umount -l m"
        ));
        let (mut told, mut over) = (Vec::new(), false);
        while !over {
            match run.observations.recv_timeout(WAIT).expect("the last file") {
                Observation::Health { health, .. } if health.component == "mounts" => told.push(health),
                other => over = came(other).is_some_and(|came| !writes(&[came], "last").is_empty()),
            }
        }
        child.wait().unwrap();
        told
    };
    for _ in 0..5 {
        assert_eq!(out_of_reach(0.2), []);
    }
    let told = out_of_reach(3.0);
    let states: Vec<HealthState> = told.iter().map(Health::state).collect();
    assert_eq!(states, [HealthState::Degraded, HealthState::Ok], "{told:?}");
    assert!(told[0].message.starts_with("/credentials (ramfs)"), "{told:?}");
    run.end();
}

#[test]
fn a_private_tmpfs_is_seen_and_how_late_is_known() {
    let run = Run::start(&[]);
    std::fs::create_dir(run.path("m")).unwrap();
    run.shell(
        "unshare -m sh -ec 'mount -t tmpfs none m; i=0
         while [ $i -lt 100 ]; do echo x > m/f$i; i=$((i+1)); done
         cp /bin/true m/early; m/early; sleep 0.5; cp /bin/true m/late; m/late; sleep 0.5'",
    );
    let all = run.until("the write, the run and the gap", |all| {
        !writes(all, "late").is_empty() && !runs(all, "late").is_empty() && !late_ms(all).is_empty()
    });
    let expected = [(run.path("m/late"), run.path("m/late"))];
    assert_eq!((writes(&all, "late"), runs(&all, "late")), (expected.to_vec(), expected.to_vec()), "{all:?}");
    let seen = (0..100).filter(|file| !writes(&all, &format!("f{file}")).is_empty()).count();
    let viewed = all.iter().any(|came| match came {
        Came::Late(path, _) => *path == run.path("m"),
        Came::Written(_) | Came::Ran(..) | Came::Gap(_) => false,
    });
    assert!(viewed, "{all:?}");
    println!(
        "written at once after the mount: {seen} of 100 seen, the run {}; gaps of {:?} ms",
        runs(&all, "early").len(),
        late_ms(&all)
    );
    drop(all);
    run.end();
}

/// The sh of a container whose root is an overlay, made as runtimes make them.
fn container(script: &str) -> String {
    format!(
        "mkdir -p lower/usr lower/data lower/proc lower/put upper work merged
         for name in bin lib lib64; do ln -s usr/$name lower/$name; done; cp /bin/true lower/data/below
         unshare -m sh -ec 'mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
         mount --bind /usr merged/usr; mount --bind /proc merged/proc; cd merged; pivot_root . put; cd /; umount -l put; sleep 0.3
         {script}'"
    )
}

#[test]
fn an_overlay_in_a_container_is_told_once_with_both_names() {
    let run = Run::start(&[]);
    run.shell(&container(
        "echo x > /data/written; cp /bin/true /data/prog; /data/prog; /data/below
         echo more >> /data/below; /data/below; sleep 0.3",
    ));
    let all = run.until("the container's last run", |all| runs(all, "below").len() >= 2);
    let (upper, inside) =
        (|name: &str| run.path("upper/data").join(name), |name: &str| PathBuf::from("/data").join(name));
    for name in ["written", "prog"] {
        assert_eq!(writes(&all, name), [(upper(name), inside(name))], "{all:#?}");
    }
    assert_eq!(runs(&all, "prog"), [(upper("prog"), inside("prog"))], "{all:#?}");
    let below = [(run.path("lower/data/below"), inside("below")), (upper("below"), inside("below"))];
    assert_eq!(runs(&all, "below"), below, "{all:#?}");
    // The kernel's own copy into the upper layer is a write too; the shell's comes after it.
    let copied = [(upper("below"), PathBuf::new()), (upper("below"), inside("below"))];
    let written = writes(&all, "below").into_iter().filter(|(path, _)| *path == upper("below"));
    assert_eq!(written.collect::<Vec<_>>(), copied, "{all:#?}");
    for came in &all {
        if let Came::Ran(image, executable) = came
            && image.container_path.starts_with(b"/data")
        {
            assert_eq!(image.path, *executable, "{came:?}");
        }
        if let Came::Written(file) = came
            && file.path.ends_with(b"written")
        {
            assert_eq!(content(file), b"x\n");
        }
    }
    assert!(run.counters.sensor_shed_duplicate.get() >= 5, "{:?}", run.counters.all());
    drop(all);
    run.end();
}

/// In our own namespace, with its upper folder on a file system that no namespace reaches any more.
#[test]
fn an_overlay_whose_layers_are_hidden_is_seen() {
    let run = Run::start(&[]);
    run.shell(
        "mkdir hidden merged; mount -t tmpfs none hidden; mkdir hidden/l hidden/u hidden/w
         mount -t overlay overlay -o lowerdir=hidden/l,upperdir=hidden/u,workdir=hidden/w merged
         umount -l hidden; sleep 0.5; echo x > merged/w; cp /bin/true merged/p; merged/p; sleep 0.3",
    );
    let all =
        run.until("the write and the run", |all| !writes(all, "w").is_empty() && !runs(all, "p").is_empty());
    for seen in [writes(&all, "w"), writes(&all, "p"), runs(&all, "p")] {
        assert!(seen.len() == 1 && seen[0].0.starts_with(run.path("merged")), "{all:#?}");
    }
    drop(all);
    run.shell("umount merged");
    run.end();
}

#[test]
fn a_namespace_that_ended_is_let_go() {
    let run = Run::start(&[]);
    run.shell("truncate -s 8M image; mkfs.ext4 -q image; mkdir m; mount -o loop image m");
    let loops = || {
        let output = Command::new("losetup").arg("-j").arg(run.path("image")).output().unwrap();
        !output.stdout.is_empty()
    };
    let mut child = run.spawn("exec unshare -m sh -ec 'echo x > m/inside; read line'");
    let all = run.until("the file", |all| !writes(all, "inside").is_empty());
    assert_eq!(writes(&all, "inside"), [(run.path("m/inside"), PathBuf::new())], "{all:?}");
    drop(all);
    run.shell("umount m");
    assert!(loops(), "the namespace keeps it");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    let took = eventually("the file system is still in use", || !loops());
    println!("let go {took:?} after the last process ended");
    run.end();
}

#[test]
fn two_hundred_namespaces_leave_nothing_open() {
    let run = Run::start(&[]);
    run.shell("mkdir m; echo x > m/first");
    run.until("the first file", |all| !writes(all, "first").is_empty());
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    run.shell("i=0; while [ $i -lt 200 ]; do unshare -m sh -ec 'mount -t tmpfs none m; /bin/true; echo x > m/f'; i=$((i+1)); done; echo x > m/last");
    let all = run.until("the last file", |all| !writes(all, "last").is_empty());
    println!(
        "{} of 200 writes seen within their namespaces; gaps of {:?} ms",
        writes(&all, "f").len(),
        late_ms(&all)
    );
    drop(all);
    eventually("descriptors stay open", || {
        while run.observations.try_recv().is_ok() {}
        open() <= before
    });
    run.end();
}

/// As systemd starts a service with `ProtectSystem` or `PrivateTmp`: the agent in a mount namespace of its own.
#[test]
fn sensors_in_a_private_namespace_see_the_host() {
    const ROLE: &str = "VIDETTE_TEST_PRIVATE";
    if std::env::var_os(ROLE).is_some() {
        let run = Run::start(&["in", "tmp"]);
        println!("folder {}", run.folder.0.path().display());
        let mut lines = std::io::stdin().lines();
        lines.next().unwrap().unwrap();
        let seen = |all: &[Came], name: &str| !writes(all, name).is_empty() && !runs(all, name).is_empty();
        let all = run.until("writes and runs from outside", |all| seen(all, "p") && seen(all, "q"));
        for (name, folder) in [("p", "in"), ("q", "tmp")] {
            let path = run.path(folder).join(name);
            for (host, _) in writes(&all, name).into_iter().chain(runs(&all, name)) {
                assert_eq!(host, path, "{all:#?}");
            }
        }
        println!("seen {:?}", late_ms(&all));
        drop(all);
        run.end();
        return;
    }
    let mut child = Command::new("unshare")
        .args(["-m", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["sensors_in_a_private_namespace_see_the_host", "--exact", "--nocapture"])
        .env(ROLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let folder = lines.find_map(|line| Some(PathBuf::from(line.split_once("folder ")?.1))).unwrap();
    // A file system that is mounted outside after the agent's namespace was made.
    let script = "mkdir in tmp; mount -t tmpfs none tmp; sleep 0.5
         cp /bin/true in/p; in/p; cp /bin/true tmp/q; tmp/q; sleep 0.5; umount -l tmp";
    let done = Command::new("/bin/sh").args(["-ec", script]).current_dir(&folder).status();
    assert!(done.unwrap().success());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let told = lines.find(|line| line.starts_with("seen ")).expect("the child saw nothing from outside");
    println!("gaps of {told} ms");
    assert!(child.wait().unwrap().success());
}
