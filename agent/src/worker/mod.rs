//! Stage 2b: the sandboxed process that parses file content, and the handle to it.
//!
//! ```text
//! rules     -> compiler              -> process ==socket, SCM_RIGHTS==> compiling (compile, routing) -> a file
//! detection -> pool (flight, poison) -> process ==socket, SCM_RIGHTS==> inside (parcels, sets, scan, matches)
//! ```
//!
//! The parent's half assumes nothing of the other: answers are decoded as hostile input. The worker's half assumes
//! nothing of files. `yara-x` is used here only, and of these files only by `compile`, `compiling`, `problems`, `sets`,
//! `matches`, `scan` and `routing::compare`.

/// What the two halves say to each other.
pub mod messages;
/// One message, and at most one descriptor, over a socket that keeps messages apart.
pub mod channel;
/// The parent's half: a worker when there is work, another when it dies.
pub mod pool;
/// Which job the worker has, and which one killed it.
pub mod flight;
/// Files that killed it, not to be tried again.
pub mod poison;
/// What is known of files, on disk.
pub mod clean;
/// One worker process as its parent sees it.
pub mod process;
/// Rules, compiled by a worker of their own.
pub mod compiler;
/// The compiling worker's half.
pub mod compiling;
/// Rule sources to rules.
pub mod compile;
/// What is wrong with them, and where.
mod problems;
/// Rules sorted by the first bytes of the files that they can match.
pub mod routing;
/// The scanning worker's half.
pub mod inside;
/// Files for its threads, verdicts from them.
pub mod parcels;
/// Compiled rules, and what was seen to be clean.
pub mod sets;
/// One open file to a verdict.
pub mod scan;
/// What matched, as the contract says it.
pub mod matches;
/// Whether the sandbox holds, tried from inside.
pub mod probe;

use std::process::ExitCode;
use vidette_protocol::wire;

/// Files of rules that are loaded at once.
pub const RULE_FILES_MAX: usize = 4096;
/// All rule sources together. Bytes.
pub const RULES_BYTES_MAX: usize = 32 << 20;
/// A file above it is scanned at its head and tail only, unless the configuration says otherwise. Bytes.
pub const SIZE_DEFAULT_BYTES: u64 = 64 << 20;
/// What a configuration may raise it to, because each scanner thread holds that much. Bytes.
pub const SIZE_BYTES_MAX: u64 = 256 << 20;
/// Nice value of a worker that nobody waits for.
const BACKGROUND_NICE: i32 = 19;
/// When a scan is given up, unless the configuration says otherwise.
pub const TIMEOUT_DEFAULT: std::time::Duration = std::time::Duration::from_secs(30);
/// Scans in flight in one worker.
pub const THREADS_MAX: usize = 16;

/// One file of rules as source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// How it is named in errors and as a namespace.
    pub name: String,
    /// What it says; not necessarily UTF-8.
    pub text: Vec<u8>,
}

/// Which digests of a file the worker is to tell, whatever rules say: bits of `ScanRequest::digests`.
pub mod digests {
    /// RFC 1321.
    pub const MD5: u32 = 1;
    /// FIPS 180-4.
    pub const SHA1: u32 = 2;
    /// FIPS 180-4.
    pub const SHA256: u32 = 4;
    /// It is told anyway; asked for, it is of the whole file even where only head and tail are scanned.
    pub const BLAKE3: u32 = 8;
}

/// Rules as source, with the name of exactly these sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    version: String,
    sources: Vec<Source>,
}

impl RuleSet {
    /// Computes the version: 16 hex digits of BLAKE3 over every name and text, in order.
    #[must_use]
    pub fn new(sources: Vec<Source>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for source in &sources {
            for part in [source.name.as_bytes(), &source.text] {
                hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
                hasher.update(part);
            }
        }
        let mut version = hasher.finalize().to_hex().to_string();
        version.truncate(16);
        Self { version, sources }
    }

    /// 16 hex digits.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The files.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The worker answered.
    Scanned(Scan),
    /// It did not in time, and was killed.
    TimedOut(String),
    /// It died of this file, now or before.
    Died(String),
    /// There is no worker.
    NotScanned(String),
}

/// The worker's answer for one file, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// Clean, matched, too large, timed out or failed.
    pub verdict: wire::Verdict,
    /// BLAKE3 of the bytes that were scanned, or of the whole file (`whole`); `None` when none could be read.
    pub blake3: Option<[u8; 32]>,
    /// SHA-256 of the same, when rules matched or it was asked for.
    pub sha256: Option<[u8; 32]>,
    /// SHA-1 of the same, when it was asked for.
    pub sha1: Option<[u8; 20]>,
    /// MD5 of the same, when it was asked for.
    pub md5: Option<[u8; 16]>,
    /// The digests are of the whole file.
    pub whole: bool,
    /// Most severe first.
    pub rules: Vec<wire::RuleMatch>,
    /// Why it is not clean, or what was left out.
    pub detail: String,
    /// How long it took in the worker. Microseconds.
    pub scan_us: u64,
    /// How much was scanned. Bytes.
    pub scanned_bytes: u64,
    /// The file was the same before and after it was read.
    pub stable: bool,
    /// The same content has the same verdict when it is asked again: no scan was cut short.
    pub lasting: bool,
    /// A rule that it was scanned with asks for the time: the verdict is of its day.
    pub of_the_day: bool,
}

/// `vidette-agent worker`: not for people.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Try what the sandbox must deny and print what each attempt got.
    #[arg(long)]
    probe: bool,
    /// The sandboxed half of `--probe`.
    #[arg(long, hide = true)]
    probe_inside: bool,
    /// End the process at the first system call that is not allowed, instead of refusing it.
    #[arg(long)]
    kill_on_violation: bool,
    /// Compile rules instead of scanning.
    #[arg(long, hide = true)]
    compile: bool,
    /// Use only processor and disk time that nobody else wants.
    #[arg(long, hide = true)]
    background: bool,
}

/// Runs the worker, or the probe of its sandbox.
///
/// # Errors
/// One sentence on what failed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    use crate::sys::{sandbox::Violation, schedule};
    let violation = if args.kill_on_violation { Violation::Kill } else { Violation::Deny };
    if args.probe {
        return probe::run(violation, args.compile);
    }
    if args.background {
        // Where it is not permitted the worker works as everybody does.
        let _ = schedule::nice(BACKGROUND_NICE).and_then(|()| schedule::idle_io());
    }
    match (args.probe_inside, args.compile) {
        (true, compile) => probe::inside(violation, compile),
        (false, true) => compiling::run(violation),
        (false, false) => inside::run(violation),
    }
}

/// The longest start of `text` that is at most `max` bytes and whole characters.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_names_and_texts_apart() {
        let set =
            |name: &str, text: &str| RuleSet::new(vec![Source { name: name.into(), text: text.into() }]);
        assert_eq!(set("a", "bc").version().len(), 16);
        assert_eq!(set("a", "bc"), set("a", "bc"));
        assert_ne!(set("a", "bc").version(), set("ab", "c").version());
        assert_ne!(set("a", "").version(), RuleSet::new(vec![]).version());
    }

    #[test]
    fn a_text_is_clipped_between_characters() {
        assert_eq!(clip("aé", 2), "a");
        assert_eq!(clip("aé", 3), "aé");
        assert_eq!(clip("", 5), "");
    }
}
