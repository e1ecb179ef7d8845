//! One worker process as its parent sees it: started, talked to, killed. Decides nothing; `pool` does.
//!
//! A thread for each process turns what arrives on its socket into notes for the pool's channel.

use super::clean::{Table, version_of};
use super::compiler::Compiled;
use super::messages::{
    ANSWER_BYTES_MAX, Answer, Ask, Compile, Load, Request, RuleFile, RuleFiles, ScanFiles, ScanRequest,
};
use super::{RuleSet, channel};
use crate::sys::sandbox::Violation;
use anyhow::{Context as _, Result};
use crossbeam_channel::Sender;
use prost::Message as _;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Notes of workers that the pool has not read yet.
pub const NOTES_MAX: usize = 64;
/// How long a worker that somebody stopped is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a worker that was killed, or that hung up, is waited for before it is left to be collected later.
const REAP_TIME: Duration = Duration::from_millis(500);
const REAP_STEP: Duration = Duration::from_millis(1);

/// How workers are started: the agent's own program, held open so that it may be replaced on disk.
#[derive(Debug)]
pub struct Launcher {
    program: OwnedFd,
    violation: Violation,
    scratch: Option<PathBuf>,
    patience: Duration,
}

/// What a worker is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Scanning what was just written or run.
    Scan,
    /// Scanning when nobody else wants processor or disk.
    Sweep,
    /// Compiling rules that somebody waits for, because there are none.
    Compile,
    /// Compiling rules while others are in use, when nobody else wants the processor.
    CompileBehind,
}

/// What a worker's socket said.
#[derive(Debug)]
pub struct Note {
    /// Which worker.
    pub generation: u64,
    /// What.
    pub report: Report,
}

/// What a worker's socket said.
#[derive(Debug)]
pub enum Report {
    /// An answer.
    Answer(Answer),
    /// Something that is none: the worker is in wrong hands.
    Garbage(String),
    /// It hung up.
    Closed,
}

/// A worker.
#[derive(Debug)]
pub struct Process {
    child: Child,
    socket: OwnedFd,
    /// Tells its notes from those of earlier workers.
    pub generation: u64,
}

impl Launcher {
    /// This very program.
    ///
    /// # Errors
    /// `/proc/self/exe` could not be opened.
    pub fn own() -> Result<Self> {
        Self::of(Path::new("/proc/self/exe"))
    }

    /// Another program that has the command `worker`: for tests, whose own program has not.
    ///
    /// # Errors
    /// It could not be opened.
    pub fn of(program: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let program = rustix::fs::open(program, flags, Mode::empty())
            .with_context(|| format!("could not open the scanner's program {}", program.display()))?;
        Ok(Self { program, violation: Violation::Deny, scratch: None, patience: PATIENCE })
    }

    /// Another one for the same program.
    ///
    /// # Errors
    /// There is no descriptor to be had.
    pub fn try_clone(&self) -> Result<Self> {
        let program = self.program.try_clone().context("could not share the scanner's program")?;
        Ok(Self {
            program,
            violation: self.violation,
            scratch: self.scratch.clone(),
            patience: self.patience,
        })
    }

    /// What a call that is not allowed does to the worker.
    #[must_use]
    pub fn with_violation(self, violation: Violation) -> Self {
        Self { violation, ..self }
    }

    /// Compiled rules lie in a file without a name in this folder; else in memory.
    #[must_use]
    pub fn with_scratch(self, folder: &Path) -> Self {
        Self { scratch: Some(folder.to_owned()), ..self }
    }

    /// How long a worker that somebody stopped by a signal is waited for before it is replaced.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// See [`Self::with_patience`].
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// An empty file without a name.
    ///
    /// # Errors
    /// There is no memory either.
    pub fn scratch(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = self.scratch.as_ref().map(|folder| rustix::fs::open(folder, flags, Mode::RUSR));
        match file {
            Some(Ok(file)) => Ok(file),
            // A file system that has no such files, or a full one: compiling says if there is no room.
            Some(Err(_)) | None => rustix::fs::memfd_create(c"compiled rules", MemfdFlags::CLOEXEC)
                .context("could not make a file for compiled rules"),
        }
    }

    /// `vidette-agent worker` without environment and output; the caller gives it its socket as standard input.
    #[must_use]
    pub fn command(&self) -> Command {
        // The child has the same descriptor under the same number until it runs the program (proc(5)).
        let mut command = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        command.arg0("vidette-agent").arg("worker").env_clear().current_dir("/");
        // A signal for the agent's process group, such as Ctrl-C, is not for the worker.
        command.process_group(0);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if self.violation == Violation::Kill {
            command.arg("--kill-on-violation");
        }
        command
    }
}

/// Two ends that keep messages apart.
///
/// # Errors
/// The system's.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.context("could not make a socket for the scanner")?;
    // The kernel doubles it, and keeps some for itself; unprivileged it may give less, which still holds an answer.
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 4 * ANSWER_BYTES_MAX)
        .context("could not size the scanner's socket")?;
    Ok((ours, theirs))
}

impl Process {
    /// Starts a worker. Its notes carry `generation`.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(launcher: &Launcher, work: Work, generation: u64, notes: &Sender<Note>) -> Result<Self> {
        let (ours, theirs) = socket_pair()?;
        let reader = ours.try_clone().context("could not share the scanner's socket")?;
        let mut command = launcher.command();
        match work {
            Work::Scan => {}
            Work::Sweep => drop(command.arg("--background")),
            Work::Compile => drop(command.arg("--compile")),
            Work::CompileBehind => drop(command.args(["--compile", "--background"])),
        }
        let child = command.stdin(theirs).spawn().context("could not start the scanner process")?;
        let process = Self { child, socket: ours, generation };
        let notes = notes.clone();
        std::thread::Builder::new()
            .name("worker-answers".into())
            .spawn(move || read_answers(&reader, generation, &notes))
            .context("could not start the thread that hears the scanner")?;
        Ok(process)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Hands a compiling worker the rules, and the file for what comes of them.
    ///
    /// # Errors
    /// The worker is gone, or memory is short.
    pub fn compile(&self, rules: &RuleSet, version: &str, each: bool, out: BorrowedFd<'_>) -> Result<()> {
        let memory = seal(rules)?;
        self.ask(Ask::Compile(Compile { version: version.to_owned(), each }), &[memory.as_fd(), out])
    }

    /// Hands a scanning worker its rules, and what is known to be clean by this version of rules and lists.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn load(&self, rules: &Compiled, threads: usize, clean: Option<(&Table, String)>) -> Result<()> {
        // Without it copies are scanned.
        let clean = clean.and_then(|(table, version)| table.hand(version_of(&version)).ok());
        let (file, clean) = clean.unzip();
        let load = Load {
            version: rules.loaded.version.clone(),
            threads: u32::try_from(threads).unwrap_or(1),
            sets: rules.sets.clone(),
            clean,
        };
        let files = [Some(rules.file.as_fd()), file.as_ref().map(AsFd::as_fd)];
        self.ask(Ask::Load(load), &files.into_iter().flatten().collect::<Vec<_>>())
    }

    /// Hands it files.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn scan(&self, requests: Vec<ScanRequest>, files: &[BorrowedFd<'_>]) -> Result<()> {
        self.ask(Ask::Scan(ScanFiles { files: requests }), files)
    }

    fn ask(&self, ask: Ask, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let message = Request { ask: Some(ask) }.encode_to_vec();
        channel::send_at_once(self.socket.as_fd(), &message, descriptors).context("could not ask the scanner")
    }

    /// Whether somebody stopped it by a signal: state `T` of `/proc/PID/stat` (proc(5)).
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let state = stat.rsplit(|byte| *byte == b')').next().and_then(|rest| rest.get(1));
        matches!(state, Some(b'T' | b't'))
    }

    /// Kills it, if it is not dead yet. Says how it ended, or gives the child back when that can't be waited for.
    pub fn end(mut self, hung_up: bool) -> Result<String, Child> {
        if hung_up && let Some(status) = reap(&mut self.child) {
            return Ok(cause(status));
        }
        let _ = self.child.kill();
        match reap(&mut self.child) {
            Some(status) => Ok(cause(status)),
            None => Err(self.child),
        }
    }
}

/// What a process has in memory. Bytes; 0 when nobody knows. The second field of `/proc/PID/statm` is in pages (proc(5)).
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or(4096))
}

fn reap(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + REAP_TIME;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(REAP_STEP),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn cause(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "unknown cause".to_owned(),
    }
}

fn read_answers(socket: &OwnedFd, generation: u64, notes: &Sender<Note>) {
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let report = match channel::receive(socket.as_fd(), &mut buffer) {
            Ok(Some(received)) => match Answer::decode_hostile(&buffer[..received.bytes]) {
                Ok(answer) => Report::Answer(answer),
                Err(hostile) => Report::Garbage(hostile.to_string()),
            },
            Ok(None) => Report::Closed,
            Err(error) => Report::Garbage(format!("the scanner's answer could not be read: {error}")),
        };
        let last = !matches!(report, Report::Answer(_));
        if notes.send(Note { generation, report }).is_err() || last {
            return;
        }
    }
}

/// A memory file that nobody can change any more (memfd_create(2)).
fn seal(rules: &RuleSet) -> Result<OwnedFd> {
    let files = rules
        .sources()
        .iter()
        .map(|source| RuleFile { name: source.name.clone(), text: source.text.clone() });
    let bytes = RuleFiles { files: files.collect() }.encode_to_vec();
    let memory = rustix::fs::memfd_create(c"rules", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .context("could not make memory for the rules")?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(&memory, rest).context("could not write the rules to memory")?;
        rest = &rest[written.min(rest.len())..];
    }
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )
    .context("could not seal the rules")?;
    Ok(memory)
}

/// The same file, for reading alone: nobody who gets it can change what others load.
pub(super) fn for_reading(file: &impl AsRawFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("could not open a file again for a worker")
}
