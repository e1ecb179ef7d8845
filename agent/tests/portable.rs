//! One functional suite for every level of the sensors: the same things happen once, all levels look, and what
//! each is expected to see is written down in one table, which is printed with what it saw.
//!
//! Then the limits of the portable sensors, lowered for real in a user namespace of their own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crossbeam_channel::Receiver;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::sensors::{self, Config, Level, OBSERVATIONS_QUEUE_MAX, Observation, OpenFile, Sensors};
use vidette_protocol::wire::{FileAction, GapReason, HealthState, Process, Trigger};

/// A generous end for what should take milliseconds.
const WAIT: Duration = Duration::from_secs(30);
/// What is never seen may still come this long.
const NEVER: Duration = Duration::from_secs(3);

/// What a level sees of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Every time.
    Always,
    /// When it looks at the right moment.
    Maybe,
    /// It can't.
    Never,
}
use Expect::{Always, Maybe, Never};

/// Names (rename, link, delete, attributes) at the levels `full` and `names`.
const NAMES: Expect = Always;

/// Levels in the order of the expectations.
const LEVELS: [Level; 3] = [Level::Full, Level::Names, Level::Polling];

struct Scenario {
    name: &'static str,
    /// Run by /bin/sh in a folder of its own, as a grandchild. `../outside` is not watched.
    script: &'static str,
    full: Expect,
    names: Expect,
    polling: Expect,
    seen: fn(&Observation, &[u8]) -> bool,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a file is written and closed",
        script: "echo x > f",
        full: Always,
        names: Always,
        polling: Always,
        seen: |one, folder| written(one, folder, b"f", Trigger::CloseWrite),
    },
    Scenario {
        name: "who wrote it",
        script: "/bin/cp /etc/hostname f; sleep 0.1",
        full: Always,
        names: Maybe,
        polling: Never,
        seen: |one, folder| {
            file(one, folder, b"f").is_some_and(|(_, _, process)| {
                process.is_some_and(|process| process.executable.ends_with(b"/cp"))
            })
        },
    },
    Scenario {
        name: "a file in a new tree",
        script: "mkdir -p a/b/c; echo x > a/b/c/f",
        full: Always,
        names: Always,
        polling: Always,
        seen: |one, folder| file(one, folder, b"a/b/c/f").is_some(),
    },
    Scenario {
        name: "a file in a folder that took the name of one that was moved",
        script: "mkdir a; sleep 0.3; mv a b; mkdir a; echo x > a/f",
        full: Always,
        names: Always,
        polling: Always,
        seen: |one, folder| file(one, folder, b"a/f").is_some(),
    },
    Scenario {
        name: "a file in a folder that was moved",
        script: "mkdir -p a/b; sleep 0.3; mv a c; sleep 0.3; echo x > c/b/f",
        full: Always,
        names: Always,
        polling: Always,
        seen: |one, folder| file(one, folder, b"c/b/f").is_some(),
    },
    Scenario {
        name: "a rename into the watched folder",
        script: "echo x > ../outside/f; mv ../outside/f f",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| written(one, folder, b"f", Trigger::Rename),
    },
    Scenario {
        name: "a rename, with the name before",
        script: "echo x > f; mv f g",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| match one {
            Observation::FileWritten { old_path, .. } => {
                written(one, folder, b"g", Trigger::Rename) && *old_path == join(folder, b"f")
            }
            _ => false,
        },
    },
    Scenario {
        name: "a hard link, as such",
        script: "echo x > ../outside/l; ln ../outside/l f",
        full: NAMES,
        names: NAMES,
        polling: Never,
        seen: |one, folder| written(one, folder, b"f", Trigger::Link),
    },
    Scenario {
        name: "a hard link, at all",
        script: "echo x > ../outside/m; ln ../outside/m f",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| file(one, folder, b"f").is_some(),
    },
    Scenario {
        name: "a delete",
        script: "echo x > f; rm f",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| changed(one, folder, b"f", FileAction::Deleted, false),
    },
    Scenario {
        name: "a folder is deleted",
        script: "mkdir d; sleep 0.3; rmdir d",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| changed(one, folder, b"d", FileAction::Deleted, true),
    },
    Scenario {
        name: "a folder is moved",
        script: "mkdir d; sleep 0.3; mv d e",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| changed(one, folder, b"e", FileAction::Renamed, true),
    },
    Scenario {
        name: "a file is made executable",
        script: "echo x > f; sleep 0.3; chmod +x f",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| written(one, folder, b"f", Trigger::Attributes),
    },
    Scenario {
        name: "another mode",
        script: "echo x > f; sleep 0.3; chmod 600 f",
        full: NAMES,
        names: NAMES,
        polling: Always,
        seen: |one, folder| changed(one, folder, b"f", FileAction::Attributes, false),
    },
    Scenario {
        name: "a program that runs for 3 s",
        script: "cp /bin/sleep p; ./p 3",
        full: Always,
        names: Always,
        polling: Always,
        seen: ran,
    },
    Scenario {
        name: "a program that runs for 10 ms",
        script: "cp /bin/sleep p; ./p 0.01",
        full: Always,
        names: Always,
        polling: Maybe,
        seen: ran,
    },
    Scenario {
        name: "a script, as what was run",
        script: "printf '#!/bin/sh\\nsleep 2; :\\n' > p; chmod +x p; ./p",
        full: Always,
        names: Always,
        polling: Never,
        seen: |one, folder| match one {
            Observation::ProgramRun { image: Some(image), .. } => image.path == join(folder, b"p"),
            _ => false,
        },
    },
    Scenario {
        name: "a file that is written, run and removed at once, with its content",
        script: "cp /bin/true p; ./p; rm p",
        full: Always,
        names: Always,
        polling: Maybe,
        seen: |one, folder| {
            file(one, folder, b"p").is_some_and(|(file, _, _)| content(file).starts_with(b"\x7fELF"))
        },
    },
    Scenario {
        name: "the end of a program",
        script: "cp /bin/sleep p; ./p 3",
        full: Always,
        names: Never,
        polling: Always,
        seen: |one, folder| match one {
            Observation::ProcessEnded { process, .. } => process.executable == join(folder, b"p"),
            _ => false,
        },
    },
    Scenario {
        name: "how it ended",
        script: "cp /bin/sleep p; ./p 3",
        full: Always,
        names: Never,
        polling: Never,
        seen: |one, folder| match one {
            Observation::ProcessEnded { process, status: Some(0), .. } => {
                process.executable == join(folder, b"p")
            }
            _ => false,
        },
    },
];

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    [folder, b"/", name].concat()
}

/// A file of this name that is worth a look.
fn file<'a>(
    one: &'a Observation,
    folder: &[u8],
    name: &[u8],
) -> Option<(&'a OpenFile, Trigger, Option<&'a Process>)> {
    match one {
        Observation::FileWritten { file, trigger, process, .. } if file.path == join(folder, name) => {
            Some((file, *trigger, process.as_ref()))
        }
        _ => None,
    }
}

fn written(one: &Observation, folder: &[u8], name: &[u8], expected: Trigger) -> bool {
    file(one, folder, name).is_some_and(|(_, trigger, _)| trigger == expected)
}

fn changed(one: &Observation, folder: &[u8], name: &[u8], expected: FileAction, of_folder: bool) -> bool {
    match one {
        Observation::NameChanged { action, file, folder: is_folder, .. } => {
            *action == expected && file.path == join(folder, name) && *is_folder == of_folder
        }
        _ => false,
    }
}

fn ran(one: &Observation, folder: &[u8]) -> bool {
    match one {
        Observation::ProgramRun { process, .. } => process.executable == join(folder, b"p"),
        _ => false,
    }
}

fn content(file: &OpenFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(file.descriptor.try_clone().unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn start(watch: &Path, level_max: Level) -> (Sensors, Receiver<Observation>) {
    let config = Config {
        watch: vec![watch.as_os_str().as_bytes().to_vec()],
        exclude: Vec::new(),
        level_max,
        network_filesystems: false,
        realtime: false,
        self_test: None,
        canary: None,
    };
    let (out, observations) = crossbeam_channel::bounded(OBSERVATIONS_QUEUE_MAX);
    let sensors = sensors::start(config, Arc::default(), out).unwrap();
    assert_eq!(sensors.level(), level_max, "{}", sensors.reason());
    (sensors, observations)
}

impl Scenario {
    fn expected(&self, level: Level) -> Expect {
        match level {
            Level::Full => self.full,
            Level::Names => self.names,
            Level::Polling => self.polling,
        }
    }

    fn folder(&self, watched: &Path) -> Vec<u8> {
        let number = SCENARIOS.iter().position(|one| one.name == self.name).unwrap();
        watched.join(number.to_string()).into_os_string().into_encoded_bytes()
    }
}

/// Every scenario at once, each by a shell whose own shell runs it: children of this process are the agent's own.
fn happen(watched: &Path) {
    let shells: Vec<_> = SCENARIOS
        .iter()
        .map(|scenario| {
            let folder = scenario.folder(watched);
            let script = format!("({}); true", scenario.script);
            let folder = std::ffi::OsStr::from_bytes(&folder);
            Command::new("/bin/sh").args(["-c", &script]).current_dir(folder).spawn().unwrap()
        })
        .collect();
    for mut shell in shells {
        assert!(shell.wait().unwrap().success());
    }
}

#[test]
fn each_level_sees_what_it_is_expected_to() {
    assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
    let folder = tempfile::tempdir().unwrap();
    let watched = folder.path().join("watched");
    for scenario in SCENARIOS {
        std::fs::create_dir_all(std::ffi::OsStr::from_bytes(&scenario.folder(&watched))).unwrap();
    }
    std::fs::create_dir(folder.path().join("outside")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("outside"), watched.join("outside")).unwrap();
    let levels = LEVELS.map(|level| (level, start(&watched, level)));
    std::thread::sleep(Duration::from_secs(3)); // the first watches, the first look at processes
    happen(&watched);
    let mut seen = vec![[false; LEVELS.len()]; SCENARIOS.len()];
    let end = Instant::now() + WAIT;
    let mut quiet = Instant::now() + NEVER;
    while Instant::now() < quiet {
        for (at, (_, (_, observations))) in levels.iter().enumerate() {
            for one in observations.try_iter() {
                for (row, scenario) in seen.iter_mut().zip(SCENARIOS) {
                    row[at] |= (scenario.seen)(&one, &scenario.folder(&watched));
                }
            }
        }
        let waits = SCENARIOS.iter().zip(&seen).any(|(scenario, row)| {
            LEVELS.iter().zip(row).any(|(level, seen)| scenario.expected(*level) == Always && !seen)
        });
        if waits && Instant::now() < end {
            quiet = Instant::now() + NEVER;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for (_, (sensors, _)) in levels {
        sensors.stop();
    }
    let wrong = print(&seen);
    assert!(wrong.is_empty(), "not as expected: {wrong:#?}");
}

/// The table; what is not as expected is given back.
fn print(seen: &[[bool; LEVELS.len()]]) -> Vec<String> {
    let mut wrong = Vec::new();
    println!("| {:66} | full        | names       | polling     |\n|---|---|---|---|", "what happens");
    for (scenario, row) in SCENARIOS.iter().zip(seen) {
        let cells = LEVELS.iter().zip(row).map(|(level, seen)| {
            let expected = scenario.expected(*level);
            if matches!((expected, seen), (Always, false) | (Never, true)) {
                wrong.push(format!(
                    "{} at {}: expected {expected:?}, seen {seen}",
                    scenario.name,
                    level.name()
                ));
            }
            match (expected, seen) {
                (Maybe, true) => "by luck",
                (Maybe, false) => "by luck, no",
                (Always | Never, true) => "yes",
                (Always | Never, false) => "no",
            }
        });
        let cells: Vec<String> = cells.map(|cell| format!("{cell:11}")).collect();
        println!("| {:66} | {} |", scenario.name, cells.join(" | "));
    }
    wrong
}

/// Runs one test of this file again inside a user namespace, with a limit of that namespace alone.
fn in_namespace(test: &str, role: &str, limit: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let script = format!("echo {limit} && exec \"$0\" {test} --exact --nocapture");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "/bin/sh", "-ec", &script])
        .arg(program)
        .env(role, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told} {}", String::from_utf8_lossy(&output.stderr));
    told
}

const NAMESPACE_LIMIT: &str = "/proc/sys/user/max_inotify_watches";

#[test]
fn watches_that_run_out_are_told_with_the_limit_to_raise() {
    const ROLE: &str = "VIDETTE_TEST_WATCHES";
    if std::env::var_os(ROLE).is_none() {
        let told = in_namespace(
            "watches_that_run_out_are_told_with_the_limit_to_raise",
            ROLE,
            &format!("6 > {NAMESPACE_LIMIT}"),
        );
        println!("{told}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in 0..20 {
        std::fs::create_dir(folder.path().join(name.to_string())).unwrap();
    }
    let (sensors, observations) = start(folder.path(), Level::Polling);
    let gap = |one: &Observation| matches!(one, Observation::Lost { gap, .. } if gap.reason == GapReason::WatchLimit as i32);
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    let state = |expected: HealthState| {
        move |one: &Observation| {
            matches!(one, Observation::Health { health, .. }
                if health.component == "watches" && health.state == expected as i32)
        }
    };
    let mut all: Vec<Observation> = Vec::new();
    let mut collect = |what: &str, done: &dyn Fn(&[Observation]) -> bool| {
        let end = Instant::now() + WAIT;
        while !done(&all) {
            all.push(
                observations.recv_deadline(end).unwrap_or_else(|_| panic!("{what} did not come: {all:#?}")),
            );
        }
        std::mem::take(&mut all)
    };
    let told =
        collect("the trouble", &|all| all.iter().any(gap) && all.iter().any(state(HealthState::Degraded)));
    let Some(Observation::Lost { gap: lost, .. }) = told.iter().find(|one| gap(one)) else { unreachable!() };
    for part in
        ["after 6 folders", "raise fs.inotify.max_user_watches, which is", limit.trim(), "`sysctl fs.inotify"]
    {
        assert!(lost.detail.contains(part), "{part} is not in: {}", lost.detail);
    }
    println!("{}", lost.detail);
    // Written where nobody looks; then the limit is raised, and a folder that goes makes it look again.
    for name in 0..20 {
        std::fs::write(folder.path().join(name.to_string()).join("f"), "x").unwrap();
    }
    std::fs::write(NAMESPACE_LIMIT, "1000").unwrap();
    let watched = told_of(folder.path());
    std::fs::remove_file(watched.join("f")).unwrap();
    std::fs::remove_dir(&watched).unwrap();
    let files = |all: &[Observation]| {
        let files = all.iter().filter_map(|one| match one {
            Observation::FileWritten { file, .. } => Some(file.path.clone()),
            _ => None,
        });
        files.collect::<std::collections::HashSet<_>>().len()
    };
    let told = collect("everything", &|all| {
        files(all) >= 19 && all.iter().any(gap) && all.iter().any(state(HealthState::Ok))
    });
    let Some(Observation::Lost { gap: lost, .. }) = told.iter().find(|one| gap(one)) else { unreachable!() };
    assert!(lost.from_unix_ns < lost.to_unix_ns, "{lost:?}");
    sensors.stop();
}

/// A folder below that has a watch: inotify's fdinfo lists them by inode (proc_pid_fdinfo(5)).
fn told_of(folder: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::MetadataExt;
    let mut lists = String::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        lists += &std::fs::read_to_string(entry.path()).unwrap_or_default();
    }
    let mut folders = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let watched =
        folders.find(|entry| lists.contains(&format!("ino:{:x} ", entry.metadata().unwrap().ino())));
    watched.expect("no folder is watched").path()
}

#[test]
fn watchers_that_ran_out_are_told_with_the_limit_to_raise() {
    const ROLE: &str = "VIDETTE_TEST_WATCHERS";
    if std::env::var_os(ROLE).is_none() {
        let told = in_namespace(
            "watchers_that_ran_out_are_told_with_the_limit_to_raise",
            ROLE,
            "0 > /proc/sys/user/max_inotify_instances",
        );
        println!("{told}");
        return;
    }
    let (out, _observations) = crossbeam_channel::bounded(1);
    let config = Config {
        watch: vec![b"/tmp".to_vec()],
        exclude: Vec::new(),
        level_max: Level::Polling,
        network_filesystems: false,
        realtime: false,
        self_test: None,
        canary: None,
    };
    let error = format!("{:#}", sensors::start(config, Arc::default(), out).unwrap_err());
    println!("{error}");
    assert!(error.contains("raise fs.inotify.max_user_instances, which is"), "{error}");
}

#[test]
fn polling_says_what_it_misses() {
    let folder = tempfile::tempdir().unwrap();
    let (sensors, _observations) = start(folder.path(), Level::Polling);
    let reason = sensors.reason().to_owned();
    sensors.stop();
    assert!(reason.starts_with("the portable sensors were asked for; "), "{reason}");
    assert!(reason.contains("programs are looked for every 1 s"), "{reason}");
}
