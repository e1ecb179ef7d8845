//! One program under the shim, kept alive as systemd would keep it.
//!
//! Who kills it on purpose says so by `kill`, or by a kill point of the shim: both are SIGKILL. Every other end is one
//! that nobody asked for, and is counted.

use super::power;
use super::shim::{Control, Slot};
use crate::programs::{binary, call};
use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Between an end and the next start; systemd waits 2 s by the packaged units.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// What is shown of a log. Bytes.
const SAID_BYTES_MAX: usize = 4000;

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `vidette-agent`
    Agent,
    /// `vidette`
    Collector,
}

/// How a program is run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which.
    pub side: Side,
    /// Its state folder, without links in its path.
    pub state: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// The shim.
    pub library: PathBuf,
    /// The network namespace it runs in, if not the first.
    pub namespace: Option<PathBuf>,
}

/// A program that is wanted, and what became of it.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    /// What is injected into it.
    pub control: Control,
    /// False while it is down on purpose.
    wanted: bool,
    child: Option<Child>,
    next_start: Instant,
    log: PathBuf,
    /// Ends by SIGKILL.
    pub deaths: u64,
    /// Ends that nobody asked for.
    pub exits: u64,
}

impl Side {
    /// The program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Agent => "vidette-agent",
            Self::Collector => "vidette",
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Collector => "collector",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Agent => "run",
            Self::Collector => "serve",
        }
    }
}

impl Daemon {
    /// Prepares one that does not run yet.
    ///
    /// # Errors
    /// When its files can't be made.
    pub fn prepare(folder: &Path, setup: Setup) -> anyhow::Result<Self> {
        let control = Control::make(folder, setup.side.name())?;
        let log = folder.join(format!("{}.log", setup.side.name()));
        Ok(Self {
            setup,
            control,
            wanted: false,
            child: None,
            next_start: Instant::now(),
            log,
            deaths: 0,
            exits: 0,
        })
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.setup.state
    }

    /// From now on it is kept alive.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.wanted = true;
        self.next_start = Instant::now();
        self.supervise()
    }

    /// When it dies now it stays dead.
    pub fn let_die(&mut self) {
        self.wanted = false;
    }

    /// Whether it is to run.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether it runs, as far as was looked.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Looks after it: starts it when it is wanted and does not run.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn supervise(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child {
            let Some(status) = child.try_wait()? else { return Ok(()) };
            self.child = None;
            self.next_start = Instant::now() + RESTART_PAUSE;
            if status.signal() == Some(Signal::KILL.as_raw()) {
                self.deaths += 1;
            } else {
                self.exits += 1;
            }
        }
        if self.wanted && Instant::now() >= self.next_start {
            self.spawn()?;
        }
        Ok(())
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let Setup { side, state, config, library, namespace } = &self.setup;
        let program = binary(side.program())?;
        let mut command = match namespace {
            Some(namespace) => {
                let mut enter = Command::new("nsenter");
                enter.arg(format!("--net={}", namespace.display())).arg(program);
                enter
            }
            None => Command::new(program),
        };
        command.arg(side.command()).arg("--state").arg(state).arg("--config").arg(config);
        command.envs(self.control.environment(library, state));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::options().create(true).append(true).open(&self.log)?);
        self.child = Some(command.spawn().with_context(|| format!("could not start {}", side.program()))?);
        Ok(())
    }

    /// SIGKILL, and it stays down.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.wanted = false;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may have died by itself
            child.wait()?;
            self.deaths += 1;
        }
        Ok(())
    }

    /// SIGKILL, and what was not synced is gone. It stays down.
    ///
    /// # Errors
    /// When its files can't be read or written.
    pub fn cut_power(&mut self, random: &mut StdRng) -> anyhow::Result<power::Cut> {
        self.kill()?;
        power::cut(&self.setup.state, self.control.undo(), random)
    }

    /// What was noted of its files is of no use: somebody else has written them, and all is on disk.
    ///
    /// # Errors
    /// When the logs can't be removed.
    pub fn forget_undo(&self) -> anyhow::Result<()> {
        for log in fs::read_dir(self.control.undo())? {
            fs::remove_file(log?.path())?;
        }
        Ok(())
    }

    /// Sends it a signal, when it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// How often the shim injected something since the beginning.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn fired(&self) -> anyhow::Result<i64> {
        self.control.get(Slot::Fired)
    }

    /// Whether it answers its own command `status`.
    ///
    /// # Errors
    /// When the command can't be started.
    pub fn answers(&self) -> anyhow::Result<bool> {
        if self.child.is_none() {
            return Ok(false);
        }
        Ok(self.ask(&["status", "--json"])?.is_some())
    }

    /// What a command of the program against this one prints; `None` when it fails.
    ///
    /// # Errors
    /// When the command can't be started.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<Option<String>> {
        let state = self.setup.state.display().to_string();
        let all: Vec<&str> = arguments.iter().copied().chain(["--state", &state]).collect();
        let output = call(self.setup.side.program(), &all, "")?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Gives it an input and expects that it is taken.
    ///
    /// # Errors
    /// When it is not.
    pub fn tell(&self, arguments: &[&str], input: &str) -> anyhow::Result<()> {
        let state = self.setup.state.display().to_string();
        let all: Vec<&str> = arguments.iter().copied().chain(["--state", &state]).collect();
        let output = call(self.setup.side.program(), &all, input)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {arguments:?}: {said}", self.setup.side.program());
        Ok(())
    }

    /// How many files it named beside any of these words.
    #[must_use]
    pub fn files_named(&self, words: &[&str]) -> usize {
        let all = fs::read(&self.log).unwrap_or_default();
        let all = String::from_utf8_lossy(&all);
        let lines = all.lines().filter(|line| words.iter().any(|words| line.contains(words)));
        let files: HashSet<&str> =
            lines.filter_map(|line| line.split_once("file=").map(|(_, rest)| rest)).collect();
        let names = files.iter().map(|rest| rest.split_whitespace().next().unwrap_or_default());
        names.collect::<HashSet<&str>>().len()
    }

    /// The end of what it said.
    #[must_use]
    pub fn said(&self) -> String {
        let all = fs::read(&self.log).unwrap_or_default();
        let start = all.len().saturating_sub(SAID_BYTES_MAX);
        String::from_utf8_lossy(all.get(start..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
