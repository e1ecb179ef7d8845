//! The sensors against the real kernel, as root: each test starts them, does something, and looks at what came.
//!
//! What the tests do is done by grandchildren: what this process and its children write is the agent's own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crossbeam_channel::{Receiver, TryRecvError};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::sensors::{self, Config, Level, OBSERVATIONS_QUEUE_MAX, Observation, OpenFile, Sensors};
use vidette_agent::telemetry::Counters;
use vidette_protocol::wire::{GapReason, Process, Source, Trigger};

/// A generous end for what should take milliseconds.
const WAIT: Duration = Duration::from_secs(20);

struct Run {
    sensors: Sensors,
    counters: Arc<Counters>,
    observations: Receiver<Observation>,
    folder: tempfile::TempDir,
}

impl Run {
    fn start(level_max: Level, queue: usize) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            watch: vec![folder.path().as_os_str().as_bytes().to_vec()],
            exclude: vec![folder.path().join("excluded").as_os_str().as_bytes().to_vec()],
            level_max,
            network_filesystems: false,
            realtime: true,
            self_test: None,
            canary: None,
        };
        let counters = Arc::new(Counters::default());
        let (out, observations) = crossbeam_channel::bounded(queue);
        let sensors = sensors::start(config, counters.clone(), out).unwrap();
        assert_eq!(sensors.level(), level_max, "{}", sensors.reason());
        Self { sensors, counters, observations, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a script as a grandchild, in the folder.
    fn shell(&self, script: &str) {
        let script = format!("({script}); true");
        let status = Command::new("/bin/sh").args(["-c", &script]).current_dir(self.folder.path()).status();
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

    /// Waits until a portable sensor watches: it sees what is written again and again.
    fn watches(&self) {
        let (path, end) = (self.path("first"), Instant::now() + WAIT);
        let is_it = |observation: &Observation| matches!(observation, Observation::FileWritten { file, .. } if file.path == path.as_os_str().as_bytes());
        while Instant::now() < end {
            std::fs::write(&path, "x").unwrap();
            let told = Instant::now() + Duration::from_millis(200);
            while let Ok(observation) = self.observations.recv_deadline(told) {
                if is_it(&observation) {
                    return;
                }
            }
        }
        panic!("nothing is seen: {:?}", self.counters.all());
    }

    fn written(&self, path: &Path) -> (OpenFile, Option<Process>, Trigger) {
        self.next(&format!("{} written", path.display()), |observation| match observation {
            Observation::FileWritten { file, process, trigger, .. }
                if file.path == path.as_os_str().as_bytes() =>
            {
                Some((file, process, trigger))
            }
            _ => None,
        })
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

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap()
}

#[test]
fn a_written_file_comes_open_with_who_closed_it() {
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    run.shell("/usr/bin/env dd if=/dev/zero of=x bs=1 count=3 status=none");
    let (file, process, trigger) = run.written(&run.path("x"));
    assert_eq!((content(&file), trigger, file.deleted), (vec![0; 3], Trigger::CloseWrite, false));
    let process = process.unwrap();
    assert_eq!(base(&process.executable), b"dd", "{process:?}");
    assert_eq!(process.source, Source::Join as i32);
    assert_eq!((process.uid, &process.user_name[..]), (Some(0), &b"root"[..]));
    assert_eq!(process.entity_id.len(), 32);
    let parent = process.parent.unwrap();
    assert!(parent.pid != 0 && !parent.executable.is_empty(), "{parent:?}");
    // A longer life, so that its arguments can be read.
    run.shell("cp /bin/sleep s; ./s 0.3 > y; true");
    let (_, process, _) = run.written(&run.path("y"));
    let process = process.unwrap();
    let closed_by = (base(&process.executable).to_vec(), process.args.len());
    // Both the shell's child, which is now `s`, and a shell hold y; the last closer is who is told.
    assert!(closed_by == (b"s".to_vec(), 2) || closed_by.0.ends_with(b"sh"), "{process:?}");
    run.end();
}

/// What wrote, ran and removed itself within a millisecond is still readable, and known.
#[test]
fn a_dropper_that_writes_runs_and_unlinks_is_read_every_time() {
    const TIMES: usize = 200;
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    run.shell(
        "i=0; while [ $i -lt 200 ]; do \
         cp /bin/true d$i; echo $i >> d$i; ./d$i; rm d$i; i=$((i+1)); done",
    );
    let (mut written, mut runs) = (HashSet::new(), HashSet::new());
    let (mut by_shell, mut with_args) = (0, 0);
    while written.len() < TIMES || runs.len() < TIMES {
        let what = format!("the rest of {} written, {} run", written.len(), runs.len());
        run.next(&what, |observation| {
            match observation {
                Observation::FileWritten { file, process, .. } if content(&file).ends_with(b"\n") => {
                    by_shell += usize::from(process.unwrap().executable.ends_with(b"sh"));
                    written.insert(base(&file.path).to_vec());
                }
                Observation::ProgramRun { process, image: Some(image), .. }
                    if base(&process.executable).starts_with(b"d") =>
                {
                    assert!(content(&image).starts_with(b"\x7fELF"), "{process:?}");
                    with_args += usize::from(!process.args.is_empty());
                    runs.insert(base(&process.executable).to_vec());
                }
                _ => {}
            }
            Some(())
        });
    }
    println!("{TIMES} written and run; {by_shell} closed by the shell; {with_args} runs with arguments");
    assert!(by_shell >= TIMES, "{by_shell} attributed to the shell");
    run.end();
}

#[test]
fn a_program_and_a_script_are_seen_to_run_and_to_end() {
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    run.shell("cp /bin/sleep s; printf '#!/bin/sh\\nsleep 0.3; :\\n' > t.sh; chmod +x t.sh; ./s 0.3; ./t.sh");
    let mut ids = HashSet::new();
    let (mut script, mut ended) = (false, 0);
    while !script || ended < 2 {
        run.next("runs and ends", |observation| {
            match observation {
                Observation::ProgramRun { process, image, found, .. } => {
                    let image = image.unwrap();
                    assert!(!found);
                    if base(&image.path) == b"t.sh" {
                        assert!(process.executable.ends_with(b"sh"), "{process:?}");
                        assert!(content(&image).starts_with(b"#!/bin/sh\n"));
                        assert_eq!(process.args, [b"/bin/sh".to_vec(), b"./t.sh".to_vec()]);
                        script = true;
                    } else {
                        assert_eq!((base(&image.path), base(&process.executable)), (&b"s"[..], &b"s"[..]));
                        assert_eq!(process.args, [b"./s".to_vec(), b"0.3".to_vec()]);
                    }
                    ids.insert(process.entity_id);
                }
                Observation::ProcessEnded { process, status, .. } => {
                    assert_eq!(status, Some(0));
                    assert!(ids.contains(&process.entity_id));
                    ended += 1;
                }
                _ => {}
            }
            Some(())
        });
    }
    run.end();
}

#[test]
fn own_and_unwatched_writes_are_not_reported() {
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    std::fs::write(run.path("own"), "x").unwrap();
    let child = format!("exec 3>{}; exec 3>&-", run.path("childs").display());
    assert!(Command::new("/bin/sh").args(["-c", &child]).status().unwrap().success());
    let elsewhere = tempfile::tempdir().unwrap();
    run.shell(&format!(
        "mkdir excluded; echo x > excluded/x; echo x > {}; echo x > last",
        elsewhere.path().join("x").display()
    ));
    run.next("only the last file", |observation| match observation {
        Observation::FileWritten { file, .. } => {
            assert_eq!(base(&file.path), b"last");
            Some(())
        }
        _ => None,
    });
    let counters = run.end();
    assert!(counters.sensor_shed_own.get() >= 2, "{:?}", counters.all());
    assert!(counters.sensor_shed_unwatched.get() >= 2, "{:?}", counters.all());
}

#[test]
fn a_new_mount_is_followed() {
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    let point = run.path("m nt");
    std::fs::create_dir(&point).unwrap();
    for round in 0..2 {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point).status();
        assert!(mounted.unwrap().success());
        // The mark follows the mount by a moment.
        let end = Instant::now() + WAIT;
        let name = format!("x{round}");
        loop {
            run.shell(&format!("echo x > 'm nt/{name}'"));
            let seen = run.observations.recv_timeout(Duration::from_millis(100));
            if let Ok(Observation::FileWritten { file, .. }) = seen
                && base(&file.path) == name.as_bytes()
            {
                break;
            }
            assert!(Instant::now() < end, "round {round}");
        }
        while run.observations.recv_timeout(Duration::from_millis(100)).is_ok() {}
        assert!(Command::new("umount").arg(&point).status().unwrap().success());
    }
    run.end();
}

#[test]
fn a_full_queue_to_detection_is_a_counted_gap() {
    let run = Run::start(Level::Full, 4);
    run.shell("i=0; while [ $i -lt 50 ]; do echo x > f$i; i=$((i+1)); done");
    let end = Instant::now() + WAIT;
    while run.counters.sensor_passed.get() + run.counters.sensor_lost_queue.get() < 50 {
        assert!(Instant::now() < end, "{:?}", run.counters.all());
        std::thread::sleep(Duration::from_millis(10));
    }
    let (mut files, mut lost) = (0, 0);
    while files + lost < 50 {
        run.next("fifty files, seen or counted", |observation| {
            match observation {
                Observation::FileWritten { .. } => files += 1,
                Observation::Lost { gap, .. } => {
                    assert_eq!(gap.reason, GapReason::DetectionQueue as i32);
                    lost += gap.count.unwrap();
                }
                _ => {}
            }
            Some(())
        });
    }
    assert_eq!(files + lost, 50);
    assert!((1..=4).contains(&files), "{files} fit into a queue of four");
    run.end();
}

#[test]
fn descriptors_that_run_out_are_a_counted_gap() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let limit = getrlimit(Resource::Nofile);
    // Room for the shell's pipes, then none: the observations that nobody takes hold the rest.
    let few = Rlimit { current: Some(u64::try_from(open).unwrap() + 40), maximum: limit.maximum };
    setrlimit(Resource::Nofile, few).unwrap();
    run.shell("i=0; while [ $i -lt 200 ]; do echo x > f$i; i=$((i+1)); done");
    std::thread::sleep(Duration::from_millis(500));
    setrlimit(Resource::Nofile, limit).unwrap();
    let (mut files, mut lost) = (0, 0);
    while files + lost < 200 {
        run.next("two hundred files, seen or counted", |observation| {
            match observation {
                Observation::FileWritten { .. } => files += 1,
                Observation::Lost { gap, .. } => {
                    assert_eq!(gap.reason, GapReason::Descriptors as i32);
                    lost += gap.count.unwrap();
                }
                _ => {}
            }
            Some(())
        });
    }
    assert!(files > 0 && lost > 0, "{files} seen, {lost} lost");
    // And it goes on.
    run.shell("echo x > after");
    run.written(&run.path("after"));
    run.end();
}

/// The kernel numbers its answers to other listeners like events: they are no loss.
#[test]
fn other_listeners_are_no_loss() {
    let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
    for round in 0..10 {
        drop(Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX));
        run.shell("/bin/true; /bin/true");
        run.shell(&format!("echo x > f{round}"));
    }
    let mut files = 0;
    while files < 10 {
        run.next("ten files and no gap", |observation| {
            assert!(!matches!(observation, Observation::Lost { .. }), "{observation:?}");
            files += usize::from(matches!(observation, Observation::FileWritten { .. }));
            Some(())
        });
    }
    assert_eq!(run.end().sensor_lost_kernel.get(), 0);
}

/// The sensors run in a child that is stopped while both of its kernel queues overflow.
#[test]
fn queues_of_the_kernel_that_overflow_are_gaps() {
    const ROLE: &str = "VIDETTE_TEST_OVERFLOWS";
    if std::env::var_os(ROLE).is_some() {
        let run = Run::start(Level::Full, OBSERVATIONS_QUEUE_MAX);
        println!("ready");
        std::io::stdin().read_exact(&mut [0]).unwrap();
        let (mut files, mut forks) = (false, None);
        while !files || forks.is_none() {
            run.next("both gaps", |observation| {
                if let Observation::Lost { gap, .. } = observation {
                    files |= gap.reason == GapReason::KernelQueue as i32 && gap.count.is_none();
                    if gap.reason == GapReason::ProcessConnector as i32 {
                        forks = gap.count;
                    }
                    assert!(gap.from_unix_ns < gap.to_unix_ns, "{gap:?}");
                }
                Some(())
            });
        }
        println!("gaps {}", forks.unwrap());
        run.end();
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["queues_of_the_kernel_that_overflow_are_gaps", "--exact", "--nocapture"])
        .env(ROLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.ends_with("ready")).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let queue: u32 =
        std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap().trim().parse().unwrap();
    for file in 0..queue + 100 {
        std::fs::write(folder.path().join(file.to_string()), "").unwrap();
    }
    for _ in 0..60_000 {
        std::thread::spawn(|| {}).join().unwrap();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"x"));
    // The count comes with the next message of each CPU.
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(std::thread::yield_now)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    let told = lines.find(|line| line.starts_with("gaps ")).expect("the child saw no gaps");
    println!("connector messages lost: {told}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn without_the_connector_files_and_runs_are_still_seen() {
    let run = Run::start(Level::Names, OBSERVATIONS_QUEUE_MAX);
    run.shell("cp /bin/sleep s; ./s 0.2");
    run.written(&run.path("s"));
    run.next("the run", |observation| match observation {
        Observation::ProgramRun { image: Some(image), process, .. } => {
            assert_eq!((base(&image.path), base(&process.executable)), (&b"s"[..], &b"s"[..]));
            Some(())
        }
        _ => None,
    });
    run.end();
}

#[test]
fn without_privileges_the_portable_sensors_take_over_and_say_why() {
    const ROLE: &str = "VIDETTE_TEST_UNPRIVILEGED";
    if std::env::var_os(ROLE).is_some() {
        let folder = tempfile::tempdir().unwrap();
        let watch = vec![folder.path().as_os_str().as_bytes().to_vec()];
        let config = Config {
            watch,
            exclude: Vec::new(),
            level_max: Level::Full,
            network_filesystems: false,
            realtime: false,
            self_test: None,
            canary: None,
        };
        let (out, observations) = crossbeam_channel::bounded(OBSERVATIONS_QUEUE_MAX);
        let sensors = sensors::start(config, Arc::default(), out).unwrap();
        // Again and again, until there is the first watch.
        let seen = std::iter::repeat_with(|| {
            std::fs::write(folder.path().join("x"), "x").unwrap();
            observations.recv_timeout(Duration::from_millis(200)).ok()
        });
        let seen = seen.take(100).flatten().next().unwrap();
        assert!(matches!(seen, Observation::FileWritten { .. }), "{seen:?}");
        println!("level {} because {}", sensors.level().name(), sensors.reason());
        sensors.stop();
        while observations.recv_timeout(WAIT).is_ok() {}
        let end = observations.try_recv();
        assert!(matches!(end, Err(TryRecvError::Disconnected)), "the channel is still open");
        return;
    }
    // Somewhere that everybody may run it from.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("sensors");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["without_privileges_the_portable_sensors_take_over_and_say_why", "--exact", "--nocapture"])
        .env(ROLE, "1")
        .current_dir("/")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told} {}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("level polling because fanotify is refused (it needs CAP_SYS_ADMIN)"), "{told}");
}

#[test]
fn the_portable_sensor_sees_files_in_new_trees() {
    const TREES: usize = 300;
    let run = Run::start(Level::Polling, OBSERVATIONS_QUEUE_MAX);
    run.watches();
    run.shell(&format!(
        "i=0; while [ $i -lt {TREES} ]; do mkdir -p t$i/b/c; echo $i > t$i/b/c/f; i=$((i+1)); done"
    ));
    let mut seen = HashSet::new();
    while seen.len() < TREES {
        run.next(&format!("more than {} trees", seen.len()), |observation| {
            if let Observation::FileWritten { file, process, .. } = observation
                && file.path.ends_with(b"/f")
            {
                assert!(process.is_none());
                seen.insert(file.path);
            }
            Some(())
        });
    }
    run.end();
}

#[test]
fn the_portable_sensors_tell_closes_renames_and_processes() {
    let run = Run::start(Level::Polling, OBSERVATIONS_QUEUE_MAX);
    run.watches();
    std::thread::sleep(Duration::from_millis(1500)); // the first look at processes
    run.shell("echo one > a; mkfifo p; ln -s a l; cp /bin/sleep s; (./s 3 &)");
    let (file, _, trigger) = run.written(&run.path("a"));
    assert_eq!((content(&file), trigger), (b"one\n".to_vec(), Trigger::CloseWrite));
    let found = run.next("the process", |observation| match observation {
        Observation::ProgramRun { process, image, found: true, .. } => {
            assert!(content(&image.unwrap()).starts_with(b"\x7fELF"));
            Some(process)
        }
        _ => None,
    });
    assert_eq!((base(&found.executable), &found.args[1][..]), (&b"s"[..], &b"3"[..]));
    run.next("its end", |observation| match observation {
        Observation::ProcessEnded { process, .. } => {
            assert_eq!(process.entity_id, found.entity_id);
            Some(())
        }
        _ => None,
    });
    run.shell("mv a b");
    let (_, _, trigger) = run.written(&run.path("b"));
    assert_eq!(trigger, Trigger::Rename);
    run.end();
}
