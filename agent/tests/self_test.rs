//! The self-test against the real kernel, as root: what every canary proves, and what somebody with every right
//! can switch off underneath the agent.
//!
//! The one who switches off is a small C program that copies the agent's descriptors out of it (pidfd_getfd(2)).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crossbeam_channel::Receiver;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vidette_agent::sensors::{self, Canary, Config, Level, OBSERVATIONS_QUEUE_MAX, Observation, Sensors};
use vidette_protocol::wire::{Gap, GapReason, Health, HealthState};

/// What the issue promises.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// The interval that ships.
const DEFAULT: Duration = Duration::from_secs(300);
const OFTEN: Duration = Duration::from_secs(1);
/// A generous end for what should take milliseconds.
const WAIT: Duration = Duration::from_secs(20);

/// The thief takes descriptors by process: one test at a time in one.
static ALONE: Mutex<()> = Mutex::new(());

const THIEF: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x400
#endif
/* thief PID FD flush | ignore FOLDER | forgive FOLDER | silence */
int main(int argc, char **argv) {
  int pidfd = syscall(SYS_pidfd_open, atoi(argv[1]), 0);
  int fd = syscall(SYS_pidfd_getfd, pidfd, atoi(argv[2]), 0);
  if (pidfd < 0 || fd < 0) { perror("descriptor"); return 1; }
  unsigned long long closes = FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD;
  unsigned ignore = FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY;
  int done = -1;
  if (!strcmp(argv[3], "flush")) {
    done = fanotify_mark(fd, FAN_MARK_FLUSH | FAN_MARK_FILESYSTEM, 0, AT_FDCWD, NULL);
  } else if (!strcmp(argv[3], "ignore")) {
    done = fanotify_mark(fd, FAN_MARK_ADD | ignore, closes, AT_FDCWD, argv[4]);
  } else if (!strcmp(argv[3], "forgive")) {
    done = fanotify_mark(fd, FAN_MARK_REMOVE | ignore, closes, AT_FDCWD, argv[4]);
  } else if (!strcmp(argv[3], "silence")) {
    struct { struct nlmsghdr head; struct cn_msg message; unsigned operation; } __attribute__((packed)) out;
    memset(&out, 0, sizeof out);
    out.head.nlmsg_len = sizeof out;
    out.head.nlmsg_type = NLMSG_DONE;
    out.message.id.idx = CN_IDX_PROC;
    out.message.id.val = CN_VAL_PROC;
    out.message.len = sizeof out.operation;
    out.operation = PROC_CN_MCAST_IGNORE;
    done = send(fd, &out, sizeof out, 0) == sizeof out ? 0 : -1;
  }
  if (done) perror(argv[3]);
  return done != 0;
}
"#;

struct Run {
    sensors: Sensors,
    observations: Receiver<Observation>,
    folder: tempfile::TempDir,
    thief: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Run {
    fn start(interval: Duration) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let thief = compile(&folder);
        let config = Config {
            watch: vec![folder.path().as_os_str().as_bytes().to_vec()],
            exclude: Vec::new(),
            level_max: Level::Full,
            network_filesystems: false,
            realtime: true,
            self_test: Some(interval),
            canary: Some(Canary { folder: state, program: env!("CARGO_BIN_EXE_vidette-agent").into() }),
        };
        let (out, observations) = crossbeam_channel::bounded(OBSERVATIONS_QUEUE_MAX);
        let sensors = sensors::start(config, Arc::default(), out).unwrap();
        assert_eq!(sensors.level(), Level::Full, "{}", sensors.reason());
        let run = Self { sensors, observations, folder, thief, _alone: alone };
        run.until("the first canary", WAIT, || run.outcome().is_some());
        run
    }

    fn outcome(&self) -> Option<String> {
        self.sensors.gauge().tested().map(|tested| tested.outcome)
    }

    fn until(&self, what: &str, within: Duration, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + within;
        while !done() {
            assert!(Instant::now() < end, "{what} did not come; self-test: {:?}", self.outcome());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a script as a grandchild, in the folder.
    fn shell(&self, script: &str) {
        let script = format!("({script}); true");
        let status = Command::new("/bin/sh").args(["-c", &script]).current_dir(self.folder.path()).status();
        assert!(status.unwrap().success());
    }

    /// The next observation that `want` makes something of.
    fn next<T>(&self, what: &str, within: Duration, mut want: impl FnMut(&Observation) -> Option<T>) -> T {
        let end = Instant::now() + within;
        let mut others = Vec::new();
        while let Ok(observation) = self.observations.recv_deadline(end) {
            if let Some(found) = want(&observation) {
                return found;
            }
            others.push(format!("{observation:?}"));
        }
        panic!("{what} did not come; self-test: {:?}; what came: {others:#?}", self.outcome());
    }

    fn health(&self, component: &str, state: HealthState, within: Duration) -> Health {
        self.next(&format!("{component} {state:?}"), within, |observation| match observation {
            Observation::Health { health, .. }
                if health.component == component && health.state == state as i32 =>
            {
                Some(health.clone())
            }
            _ => None,
        })
    }

    fn down(&self, within: Duration) -> Gap {
        self.next("a gap", within, |observation| match observation {
            Observation::Lost { gap, .. } if gap.reason == GapReason::SensorDown as i32 => Some(gap.clone()),
            _ => None,
        })
    }

    fn sees(&self, name: &str) {
        self.shell(&format!("echo x > {name}"));
        self.next(name, WAIT, |observation| match observation {
            Observation::FileWritten { file, .. } => file.path.ends_with(name.as_bytes()).then_some(()),
            _ => None,
        });
    }

    fn steal(&self, descriptor: u32, arguments: &[&str]) {
        let pid = std::process::id().to_string();
        let done = Command::new(&self.thief).args([&pid, &descriptor.to_string()]).args(arguments).status();
        assert!(done.unwrap().success());
    }
}

fn compile(folder: &tempfile::TempDir) -> PathBuf {
    let (source, program) = (folder.path().join("thief.c"), folder.path().join("thief"));
    std::fs::write(&source, THIEF).unwrap();
    let done = Command::new("cc").arg("-o").args([&program, &source]).status();
    assert!(done.expect("these tests need a C compiler").success());
    program
}

/// Descriptors of this process whose link is `kind`, or begins like it.
fn descriptors(kind: &str) -> Vec<(u32, String)> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let all = all.filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, target))
    });
    all.filter(|(_, target)| target.starts_with(kind)).collect()
}

/// Groups that have marks.
fn groups() -> Vec<u32> {
    let groups = descriptors("anon_inode:[fanotify]").into_iter().map(|(descriptor, _)| descriptor);
    let marked = |descriptor: &u32| {
        let list = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
        list.lines().any(|line| line.starts_with("fanotify sdev:"))
    };
    groups.filter(marked).collect()
}

/// The socket of family NETLINK_CONNECTOR (11): `sk Eth Pid … Inode` in `/proc/net/netlink`.
fn connector() -> u32 {
    let table = std::fs::read_to_string("/proc/net/netlink").unwrap();
    let inodes: Vec<String> = table
        .lines()
        .filter(|line| line.split_ascii_whitespace().nth(1) == Some("11"))
        .filter_map(|line| Some(format!("socket:[{}]", line.split_ascii_whitespace().last()?)))
        .collect();
    let mut sockets = descriptors("socket:").into_iter().filter(|(_, target)| inodes.contains(target));
    sockets.next().expect("no connector").0
}

#[test]
fn canaries_are_seen_and_not_reported() {
    let run = Run::start(OFTEN);
    assert_eq!(run.outcome().unwrap(), "seen: name, content, run, process");
    let first = run.sensors.gauge().tested().unwrap().unix_ns;
    run.until("another canary", WAIT, || run.sensors.gauge().tested().unwrap().unix_ns > first);
    assert_eq!(run.outcome().unwrap(), "seen: name, content, run, process");
    run.sees("last");
    for observation in run.observations.try_iter() {
        let told = format!("{observation:?}");
        assert!(!told.contains("canary"), "{told}");
        assert!(!matches!(observation, Observation::Health { .. }), "{told}");
    }
    assert_eq!(std::fs::read_dir(run.folder.path().join("state")).unwrap().count(), 0);
    run.sensors.stop();
}

/// With the interval that ships: the time is what an operator gets.
#[test]
fn marks_taken_away_underneath_are_told_and_set_again() {
    let run = Run::start(DEFAULT);
    run.sees("before");
    let groups = groups();
    assert!(!groups.is_empty());
    let since = Instant::now();
    for group in groups {
        run.steal(group, &["flush"]);
    }
    let gap = run.down(TOLD_WITHIN);
    let health = run.health("fanotify", HealthState::Failed, WAIT);
    assert!(health.message.contains("were taken away underneath the agent"), "{health:?}");
    let told = since.elapsed();
    assert!(told < TOLD_WITHIN);
    assert!(gap.from_unix_ns < gap.to_unix_ns, "{gap:?}");
    run.health("fanotify", HealthState::Ok, WAIT);
    run.sees("after");
    println!("marks taken away: told after {told:?}, seen again after {:?}", since.elapsed());
    run.sensors.stop();
}

#[test]
fn a_connector_silenced_underneath_is_told_and_comes_back() {
    let run = Run::start(DEFAULT);
    let since = Instant::now();
    run.steal(connector(), &["silence"]);
    let gap = run.down(TOLD_WITHIN);
    assert!(gap.from_unix_ns < gap.to_unix_ns && gap.detail.contains("fell silent"), "{gap:?}");
    run.health("process-connector", HealthState::Failed, WAIT);
    let told = since.elapsed();
    assert!(told < TOLD_WITHIN);
    run.health("process-connector", HealthState::Ok, WAIT);
    assert_eq!(run.sensors.level(), Level::Full);
    run.shell("cp /bin/sleep s; ./s 0.1");
    // Who ends, and how, only the connector tells.
    run.next("the end of a program", WAIT, |observation| match observation {
        Observation::ProcessEnded { process, status: Some(0), .. } => {
            process.executable.ends_with(b"/s").then_some(())
        }
        _ => None,
    });
    println!("connector silenced: told after {told:?}, back after {:?}", since.elapsed());
    run.sensors.stop();
}

/// Marks are where they were, and yet nothing comes: only a canary can find that.
#[test]
fn a_canary_that_is_not_seen_is_told_until_one_is() {
    let run = Run::start(OFTEN);
    let state = run.folder.path().join("state");
    let groups = groups();
    for group in &groups {
        run.steal(*group, &["ignore", state.to_str().unwrap()]);
    }
    assert!(run.down(TOLD_WITHIN).detail.contains("was not reported"));
    let health = run.health("fanotify", HealthState::Failed, WAIT);
    assert!(health.message.contains("a file that the agent wrote and closed was not reported"), "{health:?}");
    assert_eq!(run.outcome().unwrap(), "seen: name, run, process; not seen: content");
    for group in &groups {
        run.steal(*group, &["forgive", state.to_str().unwrap()]);
    }
    run.health("fanotify", HealthState::Ok, WAIT);
    assert_eq!(run.outcome().unwrap(), "seen: name, content, run, process");
    run.sensors.stop();
}

/// Marks vanish with their file system, and nobody is to blame.
#[test]
fn what_is_unmounted_is_no_trouble() {
    let run = Run::start(OFTEN);
    let point = run.folder.path().join("mount");
    std::fs::create_dir(&point).unwrap();
    for round in 0..3 {
        assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point).status().unwrap().success());
        std::thread::sleep(OFTEN * 2); // a look or two
        // What was seen of it holds it open until somebody takes it, here and in whoever else watches this host.
        let end = Instant::now() + WAIT;
        loop {
            run.observations.try_iter().for_each(|observation| no_failure(&observation));
            if Command::new("umount").arg(&point).status().unwrap().success() {
                break;
            }
            assert!(Instant::now() < end, "round {round}");
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(OFTEN);
    }
    std::thread::sleep(OFTEN * 2);
    run.observations.try_iter().for_each(|observation| no_failure(&observation));
    run.sensors.stop();
}

fn no_failure(observation: &Observation) {
    if let Observation::Health { health, .. } = observation {
        assert_ne!(health.state, HealthState::Failed as i32, "{observation:?}");
    }
}

/// Nothing of the self-test holds up the end.
#[test]
fn the_sensors_stop_at_once() {
    let run = Run::start(DEFAULT);
    let since = Instant::now();
    run.sensors.stop();
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    while run.observations.try_recv().is_ok() {}
    assert!(run.observations.recv_timeout(WAIT).is_err(), "the channel is still open");
}

/// What lets a debugger close a descriptor of a process that waits in a system call: another one in its place, and then all as
/// it was, so that the kernel goes on with the first (ptrace(2), "Group-stop" and "Restarting").
///
/// Not gdb's `call`: it sets back the vector registers too, which fails on processors that have more of them than it knows.
#[cfg(target_arch = "x86_64")]
const CLOSING: [&str; 11] = [
    "set scheduler-locking on",
    "set $was_rax = $rax",
    "set $was_rdi = $rdi",
    "set $was_orig_rax = $orig_rax",
    "set $was_rip = $rip",
    "set $rip = $was_rip - 2", // the instruction `syscall`
    "set $orig_rax = -1",      // nothing to restart
    "set $rax = 3",            // close(2)
    "set $rdi = DESCRIPTOR",
    "stepi",
    "print (int)$rax",
];
#[cfg(target_arch = "x86_64")]
const BACK: [&str; 4] =
    ["set $rip = $was_rip", "set $rdi = $was_rdi", "set $rax = $was_rax", "set $orig_rax = $was_orig_rax"];
#[cfg(not(target_arch = "x86_64"))]
const CLOSING: [&str; 1] = ["call (int)close(DESCRIPTOR)"];
#[cfg(not(target_arch = "x86_64"))]
const BACK: [&str; 0] = [];

/// Closes a descriptor of this process as a debugger would: there is no other way to do it from outside.
fn close_underneath(descriptor: u32) {
    let mut debugger = Command::new("gdb");
    debugger.args(["-q", "-batch", "-nx", "-p", &std::process::id().to_string()]);
    for command in CLOSING.iter().chain(&BACK) {
        debugger.args(["-ex", &command.replace("DESCRIPTOR", &descriptor.to_string())]);
    }
    let told = debugger.output().expect("this test needs gdb");
    let (said, error) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(said.contains("$1 = 0"), "{said}{error}");
}

#[test]
fn a_connector_closed_underneath_is_told_and_made_anew() {
    let run = Run::start(DEFAULT);
    let since = Instant::now();
    close_underneath(connector());
    assert!(run.down(TOLD_WITHIN).detail.contains("could not read process events"));
    run.health("process-connector", HealthState::Failed, WAIT);
    assert!(since.elapsed() < TOLD_WITHIN);
    run.health("process-connector", HealthState::Ok, WAIT);
    assert_eq!(run.sensors.level(), Level::Full);
    run.sensors.stop();
}

/// It takes its marks with it, so that the sensors end and the service is started anew.
#[test]
fn a_fanotify_descriptor_closed_underneath_is_told_and_ends_the_sensors() {
    let run = Run::start(DEFAULT);
    assert!(!run.sensors.is_finished());
    let since = Instant::now();
    for group in groups() {
        close_underneath(group);
    }
    let health = run.health("fanotify", HealthState::Failed, TOLD_WITHIN);
    assert!(health.message.contains("could not read file events"), "{health:?}");
    run.until("the end", TOLD_WITHIN, || run.sensors.is_finished());
    assert!(since.elapsed() < TOLD_WITHIN);
    run.sensors.stop();
}
