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
use std::path::{Path, PathBuf};
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
            canary_folder: None,
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
        let accounted = ["passed", "shed_own", "shed_unwatched", "shed_duplicate", "lost_queue", "lost_kernel"]
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
    assert_eq!((content(&scan.file), scan.old_path, scan.trigger), (b"evil\n".to_vec(), old, Trigger::Rename));
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
    run.shell("echo x > c; touch d; ln -s c e; mkdir f; mkfifo g; mknod h c 1 3; true");
    for observation in run.until_end() {
        match observation {
            Observation::FileWritten { trigger, .. } => assert_eq!(trigger, Trigger::CloseWrite),
            Observation::NameChanged { action, file, .. } => panic!("{action:?} {file:?}"),
            _ => {}
        }
    }
    run.end();
}
