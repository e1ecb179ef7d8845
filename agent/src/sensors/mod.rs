//! Stage 1: what happens on the host, as observations with open descriptors.
//!
//! Assumes nothing of the other stages; observations go down one bounded channel to detection.

use crate::host::Moment;
use crate::telemetry::Counters;
use crossbeam_channel::Sender;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vidette_protocol::wire;

/// The process table: who is who.
mod processes;
/// Folders where something happened lately.
pub mod hot;
/// The one door to detection.
mod outlet;
/// Names of users.
mod users;
/// fanotify and the process connector.
#[cfg(target_os = "linux")]
mod linux;
/// One process, asked now: for those who look into its memory.
#[cfg(target_os = "linux")]
pub(crate) use linux::inspect;
/// notify and sysinfo, where the kernel gives no more.
mod portable;

/// Observations between sensors and detection. Each may hold an open descriptor, so this many descriptors at
/// most wait there; the sensors themselves hold fewer than 2,100 more. Beyond it a gap is recorded.
pub const OBSERVATIONS_QUEUE_MAX: usize = 2048;

/// What to look at.
#[derive(Debug, Clone)]
pub struct Config {
    /// Absolute path prefixes, by component; empty is everything.
    pub watch: Vec<Vec<u8>>,
    /// Prefixes that are never reported. The pipeline puts the agent's own state folder here.
    pub exclude: Vec<Vec<u8>>,
    /// `Full`, or less to leave better sensors alone.
    pub level_max: Level,
    /// NFS, SMB, FUSE and the like too.
    pub network_filesystems: bool,
    /// Read the kernel's queues at real-time priority, where that is permitted.
    pub realtime: bool,
    /// How often the sensors prove that they see; none never.
    pub self_test: Option<Duration>,
    /// What they prove it with; none: nothing is written or run for it.
    pub canary: Option<Canary>,
}

/// What is written and run so that the sensors have something to see.
#[derive(Debug, Clone)]
pub struct Canary {
    /// Where the file is written: a folder of the agent's own.
    pub folder: PathBuf,
    /// A program that ends at once when its argument is `canary`.
    pub program: PathBuf,
}

impl Canary {
    /// With the agent's own program.
    #[must_use]
    pub fn own(folder: PathBuf) -> Self {
        Self { folder, program: PathBuf::from("/proc/self/exe") }
    }
}

/// The last self-test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// When, wall clock, Unix nanoseconds.
    pub unix_ns: i64,
    /// What was seen and what was not, for people.
    pub outcome: String,
}

/// How much the sensors see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// fanotify and the process connector: every close-write and exec, and who did it.
    Full,
    /// fanotify alone: every close-write and exec; who did it only while `/proc` still knows; no ends. The
    /// connector alone is not a level: without CAP_SYS_ADMIN the portable sensors run.
    Names,
    /// The portable sensors: directories that are watched, processes that live long enough to be found.
    Polling,
}

/// Running sensors. Dropping them stops them too.
#[derive(Debug)]
pub struct Sensors {
    gauge: Gauge,
    reason: String,
    stop: Option<Stopping>,
    threads: Vec<JoinHandle<()>>,
    #[cfg(target_os = "linux")]
    reach: Option<linux::Reach>,
}

/// How the threads of a set of sensors are told.
#[derive(Debug)]
enum Stopping {
    /// An eventfd that becomes readable.
    #[cfg(target_os = "linux")]
    Event(OwnedFd),
    /// The crate's own.
    Flag(crate::stop::Stopper),
}

/// Starts the best sensors that this system and `config` allow.
///
/// # Errors
/// Only when not even the portable sensors can start: no thread, no inotify instance.
pub fn start(config: Config, counters: Arc<Counters>, out: Sender<Observation>) -> anyhow::Result<Sensors> {
    #[cfg(target_os = "linux")]
    let reason = if config.level_max == Level::Polling {
        "the portable sensors were asked for".to_owned()
    } else {
        match linux::start(&config, counters.clone(), out.clone()) {
            Ok(sensors) => return Ok(sensors),
            Err(error) => format!("{error:#}"),
        }
    };
    #[cfg(not(target_os = "linux"))]
    let reason = "this system has no better sensors yet".to_owned();
    portable::start(config, counters, out, reason)
}

impl Level {
    /// `full`, `names` or `polling`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Names => "names",
            Self::Polling => "polling",
        }
    }

    /// As it travels.
    #[must_use]
    pub fn to_wire(self) -> wire::SensorLevel {
        match self {
            Self::Full => wire::SensorLevel::Full,
            Self::Names => wire::SensorLevel::Names,
            Self::Polling => wire::SensorLevel::Polling,
        }
    }

    fn to_number(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::Names => 1,
            Self::Polling => 2,
        }
    }
}

/// Tells the level of running sensors to whoever shows it.
#[derive(Debug, Clone)]
pub struct Gauge {
    level: Arc<AtomicU8>,
    tested: Arc<Mutex<Option<Tested>>>,
}

impl Gauge {
    fn of(level: Level) -> Self {
        Self { level: Arc::new(AtomicU8::new(level.to_number())), tested: Arc::default() }
    }

    /// The last self-test; none before the first, and where there is none.
    #[must_use]
    pub fn tested(&self) -> Option<Tested> {
        self.tested.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The level now: it falls to `names` while the process connector is down.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Full,
            1 => Level::Names,
            _ => Level::Polling,
        }
    }
}

impl Sensors {
    /// Goes on telling the level after the sensors were handed to whoever stops them.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        self.gauge.clone()
    }

    /// The level now.
    #[must_use]
    pub fn level(&self) -> Level {
        self.gauge.level()
    }

    /// Why not `full` from the start; empty when it was. What changes later is a health observation.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// From now on every other program is told of that opens a file in one of the folders in `state` whose names begin with
    /// `prefix`, also in those that are made or put in place later. Not where only portable sensors run.
    ///
    /// # Errors
    /// The thread that follows those folders could not be started.
    pub fn guard(&mut self, state: &Path, prefix: &'static str) -> anyhow::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(reach) = &self.reach {
            self.threads.push(reach.guard(state, prefix)?);
        }
        let _ = (state, prefix);
        Ok(())
    }

    /// Who `pid` was at a moment that has just passed, and the newest processes that were started by then and have one of
    /// these names. Nobody where no table of processes is kept, or when the answer takes too long.
    #[must_use]
    pub fn who(
        &self,
        pid: u32,
        names: &[&'static [u8]],
        at: Moment,
    ) -> (Option<wire::Process>, Vec<wire::Process>) {
        #[cfg(target_os = "linux")]
        if let Some(reach) = &self.reach {
            return reach.who(pid, names, at);
        }
        let _ = (pid, names, at);
        (None, Vec::new())
    }

    /// One of the threads has ended, though nobody told it to: what is not seen any more is in the log.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops and waits for the threads. The channel closes.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        match self.stop.take() {
            #[cfg(target_os = "linux")]
            Some(Stopping::Event(event)) => {
                if let Err(error) = rustix::io::write(&event, &1u64.to_ne_bytes()) {
                    tracing::error!(%error, "could not tell the sensors to stop");
                    return;
                }
            }
            Some(Stopping::Flag(stopper)) => stopper.stop(),
            None => {}
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a sensor thread had panicked");
            }
        }
    }
}

impl Drop for Sensors {
    fn drop(&mut self) {
        self.end();
    }
}

/// A file as a sensor hands it over: open, so that nothing acts on its path again.
#[derive(Debug)]
pub struct OpenFile {
    /// Read-only descriptor of a regular file.
    pub descriptor: OwnedFd,
    /// Its name when it was observed. For events and filters, never to open.
    pub path: Vec<u8>,
    /// It had no name any more.
    pub deleted: bool,
    /// Its name as the process that touched it sees it, where that is not `path`: in a container, or through a
    /// bind mount; empty otherwise. The same as `path`: it lies on a file system that the host's own mounts do not
    /// reach, and this is its name there.
    pub container_path: Vec<u8>,
}

/// What a sensor saw. Never leaves the process.
#[derive(Debug)]
pub enum Observation {
    /// A file that was open for writing was closed, or (portable) changed.
    FileWritten {
        /// The file.
        file: OpenFile,
        /// The last closer, when it is known.
        process: Option<wire::Process>,
        /// What made it worth looking at: close-write, rename, link, a mode that lets it run.
        trigger: wire::Trigger,
        /// Its name before, of a rename; empty otherwise.
        old_path: Vec<u8>,
        /// When.
        at: Moment,
    },
    /// A name or what it stands for changed, and there is nothing to scan.
    NameChanged {
        /// Renamed (a folder), deleted, attributes.
        action: wire::FileAction,
        /// Its name now, or the one it had; without digests, and with no more than the kernel said of it.
        file: wire::File,
        /// Its name before, of a rename; empty otherwise.
        old_path: Vec<u8>,
        /// It is a folder.
        folder: bool,
        /// Who did it, when it is known.
        process: Option<wire::Process>,
        /// When.
        at: Moment,
    },
    /// Files came into view at once, with a folder that was moved or a file system that was found: nobody told
    /// of them one by one.
    CameIntoView {
        /// The folder, to be read from here and not by its path.
        folder: OwnedFd,
        /// Its path, for events and filters.
        path: Vec<u8>,
        /// Files changed before this are not looked at; 0 for all. Unix nanoseconds.
        since_unix_ns: i64,
        /// For people: `moved`, `mounted`.
        reason: &'static str,
        /// When.
        at: Moment,
    },
    /// A program was run.
    ProgramRun {
        /// The process with its new image.
        process: wire::Process,
        /// The image, unless nobody could open it.
        image: Option<OpenFile>,
        /// A process that was there already when a polling sensor looked.
        found: bool,
        /// When.
        at: Moment,
    },
    /// A process that had run a program ended.
    ProcessEnded {
        /// The process.
        process: wire::Process,
        /// wait(2) status, when it is known.
        status: Option<i32>,
        /// When.
        at: Moment,
    },
    /// Something was lost.
    Lost {
        /// What is known of it.
        gap: wire::Gap,
        /// Folders where something happened around that time, the latest first: to be looked at before others.
        hot: Vec<Vec<u8>>,
        /// When it was noticed.
        at: Moment,
    },
    /// Somebody else opened a file that is the agent's alone (`Sensors::guard`).
    GuardedOpened {
        /// Its name.
        path: Vec<u8>,
        /// Who, when it is known.
        process: Option<wire::Process>,
        /// How often the same program did so before, since that was told.
        untold: u64,
        /// When.
        at: Moment,
    },
    /// A sensor changed its state.
    Health {
        /// Which, and how it is.
        health: wire::Health,
        /// When.
        at: Moment,
    },
}
