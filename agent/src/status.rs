//! How the agent is, told over a Unix socket in its state folder: `vidette-agent status` asks, a thread of
//! the running agent answers with one JSON object and closes. `vidette-agent renew` and `reload` ask in other words and get the
//! same answer. Nobody but the folder's owner can reach it.

use crate::detection::hashes::Summary;
use crate::stop::Stop;
use crate::telemetry::Equation;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The socket's name in the state folder.
const SOCKET: &str = "status.sock";
/// How long one asker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Asks how the agent is; so does who says nothing.
const ASK_STATUS: &[u8] = b"status\n";
/// Asks for a renewal.
const ASK_RENEW: &[u8] = b"renew\n";
/// Asks that rules and hash lists are read anew.
const ASK_RELOAD: &[u8] = b"reload\n";
/// A question. Bytes.
const QUESTION_BYTES_MAX: u64 = 16;
/// A command of version 0.1 says nothing: it gets its answer after this.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(100);
/// How often the thread looks whether to stop.
const POLL: Duration = Duration::from_millis(200);
/// An answer. Bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Files that killed the scanner and are shown. Each has a path of a few kilobytes at most.
pub const POISONED_SHOWN_MAX: usize = 32;

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of the program.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// The scanner's process, while there is work for it.
    pub worker_pid: Option<u32>,
    /// Resident memory of the agent, without the worker. Bytes.
    pub memory_bytes: u64,
    /// Resident memory of the worker. Bytes.
    pub worker_memory_bytes: u64,
    /// Since when it runs, Unix seconds.
    pub started_unix_s: i64,
    /// `full`, `names` or `polling`.
    pub level: String,
    /// Why it is not `full`; empty when it is.
    pub level_reason: String,
    /// What the last self-test saw, and when; empty before the first, and where there is none.
    #[serde(default)]
    pub self_test: String,
    /// Digest over the rules in use; empty before they are compiled.
    pub rules_version: String,
    /// Rules in use.
    pub rules: u64,
    /// Rule files left out, with the mistake.
    pub rule_errors: Vec<String>,
    /// The hash lists in use.
    #[serde(default)]
    pub hashes: Summary,
    /// Why scans take too long, as the `scan-time` event says; empty while they do not.
    #[serde(default)]
    pub scan_time: String,
    /// Files that killed the scanner and are not tried again with these rules.
    pub poisoned: u64,
    /// The newest of them, at most [`POISONED_SHOWN_MAX`].
    #[serde(default)]
    pub poisoned_files: Vec<Poisoned>,
    /// What the transport does: `connected`, `connecting`, `not joined`, `refused`.
    pub transport: String,
    /// More on that: since when, or why not.
    pub transport_detail: String,
    /// Who this agent is; empty before it joined.
    pub agent_id: String,
    /// When its certificate ends, Unix seconds; 0 before it joined.
    pub certificate_expires_unix_s: i64,
    /// Why somebody should look at this host's clock, or the collector's; empty when all is well.
    #[serde(default)]
    pub clock: String,
    /// Renewals of the certificate since the start.
    #[serde(default)]
    pub renewals: u64,
    /// Of those that were tried, how many came to nothing.
    #[serde(default)]
    pub renewals_failed: u64,
    /// Why the last one did; empty when it did not.
    #[serde(default)]
    pub renewal_error: String,
    /// Events that wait for the collector.
    pub outbox_events: u64,
    /// Their bytes on disk.
    pub outbox_bytes: u64,
    /// Age of the oldest of them.
    pub oldest_event_age_ms: u64,
    /// Whether something is looked at again.
    pub rescan: Rescan,
    /// Whether everything is looked at.
    #[serde(default)]
    pub sweep: Sweep,
    /// Every counter, by name.
    pub counters: BTreeMap<String, u64>,
    /// What must hold of them once nothing is on its way.
    pub equations: Vec<Equation>,
    /// Requests to read rules and hash lists anew.
    #[serde(default)]
    pub reload: Reload,
}

/// What became of requests to read rules and hash lists anew. Numbers count requests since the agent's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// The number to wait for; only of interest to who asked.
    pub asked: u64,
    /// The newest whose rules are in use, or will not be.
    pub rules: u64,
    /// The newest whose hash lists are in use, or will not be.
    pub hashes: u64,
    /// Why the newest rules are not in use; empty while they are.
    pub rules_refused: String,
    /// Why the newest hash lists are not in use; empty while they are.
    pub hashes_refused: String,
}

/// What the agent does for an asker.
pub trait Deeds {
    /// How it is.
    fn report(&self) -> Report;
    /// Begins to renew the certificate.
    fn renew(&self);
    /// Begins to read rules and hash lists anew. The number of the request.
    fn reload(&self) -> u64;
}

/// A file that killed the scanner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poisoned {
    /// Where it was when it did, escaped for a terminal; empty when nobody knows.
    pub path: String,
    /// What it did.
    pub reason: String,
    /// The rules with which it is not tried again.
    pub rules_version: String,
}

/// What the rescan does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescan {
    /// Something is to be looked at again, or is being looked at; the mark does not move until it was.
    pub owed: bool,
    /// Why it looks now; empty while it does not.
    pub reason: String,
    /// Files whose times it has read in this run.
    pub files: u64,
    /// Files it has handed to detection in this run.
    pub changed: u64,
    /// For how long this run goes on. Milliseconds.
    pub running_ms: u64,
    /// Runs that ended since the start.
    pub runs: u64,
}

/// What the sweep does, or did last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// It goes on.
    pub running: bool,
    /// It gives way to files that wait to be scanned.
    pub held: bool,
    /// Regular files that it met.
    pub files: u64,
    /// Of these known to be clean and not opened.
    pub known: u64,
    /// Of these scanned.
    pub scanned: u64,
    /// Of these matched.
    pub matched: u64,
    /// For how long it goes on, or took. Milliseconds.
    pub took_ms: u64,
    /// When it began, Unix seconds; 0 for never since the agent's start.
    pub began_unix_s: i64,
    /// When the last whole one ended, Unix seconds; 0 for never.
    pub finished_unix_s: i64,
    /// When the next one is to begin, Unix seconds; 0 while one goes on, and when none is to come by time.
    #[serde(default)]
    pub next_unix_s: i64,
    /// Sweeps that ended since the agent's start.
    pub sweeps: u64,
}

/// Makes the socket; one that an earlier agent left behind is replaced.
///
/// # Errors
/// When it can't be made.
pub fn listen(folder: &Path) -> anyhow::Result<UnixListener> {
    let path = folder.join(SOCKET);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("could not replace {}", path.display()));
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("could not listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers until `stop`. Runs on the caller's thread.
pub fn serve(listener: &UnixListener, folder: &Path, stop: &Stop, deeds: &impl Deeds) {
    while !stop.is_set() {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = answer(stream, deeds) {
                    tracing::debug!(%error, "an asker of the status went away");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let _ = stop.wait(POLL);
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept on the status socket");
                let _ = stop.wait(ANSWER_TIMEOUT);
            }
        }
    }
    let _ = std::fs::remove_file(folder.join(SOCKET));
}

fn answer(mut stream: UnixStream, deeds: &impl Deeds) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(QUESTION_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut question = Vec::new();
    let mut reader = std::io::BufReader::new(stream.try_clone()?.take(QUESTION_BYTES_MAX));
    // Nothing within the time: an older command, which asks for the status without a word.
    let _ = std::io::BufRead::read_until(&mut reader, b'\n', &mut question);
    let mut report = deeds.report();
    if question == ASK_RENEW {
        deeds.renew();
    } else if question == ASK_RELOAD {
        report.reload.asked = deeds.reload();
    }
    stream.write_all(&serde_json::to_vec(&report)?)?;
    Ok(())
}

/// Asks the agent whose state is in `folder`.
///
/// # Errors
/// When no agent runs there, or its answer is not one.
pub fn ask(folder: &Path) -> anyhow::Result<Report> {
    put(folder, ASK_STATUS)
}

/// Has the agent whose state is in `folder` renew its certificate, and gives how it was before.
///
/// # Errors
/// As [`ask`].
pub fn renew_now(folder: &Path) -> anyhow::Result<Report> {
    put(folder, ASK_RENEW)
}

/// Has the agent whose state is in `folder` read its rules and hash lists anew, and gives how it was before, with the number to
/// wait for.
///
/// # Errors
/// As [`ask`].
pub fn reload(folder: &Path) -> anyhow::Result<Report> {
    put(folder, ASK_RELOAD)
}

fn put(folder: &Path, question: &[u8]) -> anyhow::Result<Report> {
    let path = folder.join(SOCKET);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            bail!("{} may be read by its owner only: run this as root or as the agent's user", path.display())
        }
        Err(_) => bail!(
            "no agent runs with the state folder {}: start it with `vidette-agent run`, or name another folder with --state",
            folder.display()
        ),
    };
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    // One that does not read its question answers all the same.
    let _ = stream.write_all(question);
    let mut text = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut text).context("the agent did not answer")?;
    serde_json::from_slice(&text).context("the agent's answer can't be read: is it of another version?")
}
