//! Hash lists: a second engine beside the rules. What a list names is a detection, whatever rules say.
//!
//! ```text
//! files -> read (open, lines) -> parse -> build (deal, sort) -> table (filter in memory, digests on disk)
//! keeper (its own thread; swapped in when done) -> Hashes::judge: the worker's digests -> verdict
//! ```
//!
//! The worker computes the kinds that are listed (`Hashes::wanted`) over the bytes it scans. Both ways of scanning,
//! on access and `scan`, hand what became of a file to `Hashes::judge` before anybody else sees it.

/// One line to entries.
pub mod parse;
/// One file to lines.
pub mod read;
/// Where digests are looked up.
pub mod table;
/// Lists to tables.
pub mod build;
/// The lists in use, and those being made.
pub mod keeper;

use crate::worker::{Outcome, Scan, clean, digests};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use table::Table;
use vidette_protocol::limits::RULES_MAX;
use vidette_protocol::wire::{RuleMatch, Severity, Verdict};

pub use build::build;
pub use read::List;

/// Kinds of digests.
pub const KINDS: usize = 4;
/// How a match is called whose entry has no name.
const NAMELESS: &str = "hash-list";
/// A detail that hides no verdict.
const MISSING: &str = "the scanner did not tell the digests that the hash lists need";

/// A kind of digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// RFC 1321.
    Md5,
    /// FIPS 180-4.
    Sha1,
    /// FIPS 180-4.
    Sha256,
    /// 32 bytes of it.
    Blake3,
}

impl Kind {
    /// All, in the order of [`Kind::index`].
    pub const ALL: [Self; KINDS] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Blake3];

    /// From 0.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Md5 => 0,
            Self::Sha1 => 1,
            Self::Sha256 => 2,
            Self::Blake3 => 3,
        }
    }

    /// Length of a digest. Bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
        }
    }

    /// In lists, tags and columns.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }

    /// As the worker is asked for it.
    #[must_use]
    pub const fn bit(self) -> u32 {
        match self {
            Self::Md5 => digests::MD5,
            Self::Sha1 => digests::SHA1,
            Self::Sha256 => digests::SHA256,
            Self::Blake3 => digests::BLAKE3,
        }
    }

    fn of(self, scan: &Scan) -> Option<&[u8]> {
        match self {
            Self::Md5 => scan.md5.as_ref().map(<[u8; 16]>::as_slice),
            Self::Sha1 => scan.sha1.as_ref().map(<[u8; 20]>::as_slice),
            Self::Sha256 => scan.sha256.as_ref().map(<[u8; 32]>::as_slice),
            Self::Blake3 => scan.blake3.as_ref().map(<[u8; 32]>::as_slice),
        }
    }
}

/// Where lists come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashSources {
    /// Files, or folders of which every `*.txt`, `*.csv` and `*.hashes` is used, also further down.
    pub files: Vec<PathBuf>,
    /// Where the tables lie, without a name; none: in memory.
    pub folder: Option<PathBuf>,
}

/// Lists that can be asked. The default has none.
#[derive(Debug, Default)]
pub struct Hashes {
    version: String,
    lists: Vec<List>,
    errors: Vec<String>,
    tables: Vec<Table>,
    file: Option<File>,
    disk_bytes: u64,
}

/// What a list says of a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The list's name.
    pub list: String,
    /// The entry's; empty when it has none.
    pub name: String,
}

/// Lists at a glance.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// 16 hex digits over all lists; empty when there are none.
    pub version: String,
    /// Lists in use.
    pub lists: u64,
    /// Digests in use, each once.
    pub entries: u64,
    /// Those kinds.
    pub kinds: Vec<String>,
    /// Lines that are mistakes.
    pub bad_lines: u64,
    /// One sentence for each thing that is wrong, with file and line.
    pub errors: Vec<String>,
    /// In memory. Bytes.
    pub memory_bytes: u64,
    /// On disk. Bytes.
    pub disk_bytes: u64,
    /// Others are being made.
    pub building: bool,
}

impl Hashes {
    /// 16 hex digits of BLAKE3 over the names and the content of every list; empty when there are none.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The version of a verdict that these lists and those rules gave: also 16 hex digits.
    #[must_use]
    pub fn version_with(&self, rules_version: &str) -> String {
        clean::with_lists(rules_version, &self.version)
    }

    /// Every file, used or not.
    #[must_use]
    pub fn lists(&self) -> &[List] {
        &self.lists
    }

    /// Digests of one kind.
    #[must_use]
    pub fn entries(&self, kind: Kind) -> u64 {
        self.tables.get(kind.index()).map_or(0, Table::entries)
    }

    /// What the worker has to compute: bits of [`digests`].
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.kinds().map(Kind::bit).fold(0, |bits, bit| bits | bit)
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| self.entries(*kind) > 0)
    }

    /// At a glance.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            version: self.version.clone(),
            lists: self.lists.iter().filter(|list| list.used).count() as u64,
            entries: self.tables.iter().map(Table::entries).sum(),
            kinds: self.kinds().map(|kind| kind.word().to_owned()).collect(),
            bad_lines: self.lists.iter().map(|list| list.bad_lines).sum(),
            errors: self.complaints().take(SUMMARY_ERRORS_MAX).collect(),
            memory_bytes: self.tables.iter().map(Table::memory_bytes).sum(),
            disk_bytes: self.disk_bytes,
            building: false,
        }
    }

    /// What is wrong with the lists, one sentence each.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        self.errors.iter().cloned().chain(self.lists.iter().flat_map(List::complaints))
    }

    /// Looks one digest up.
    ///
    /// # Errors
    /// The tables on disk can't be read.
    pub fn find(&self, kind: Kind, digest: &[u8]) -> io::Result<Option<Found>> {
        let (Some(table), Some(file)) = (self.tables.get(kind.index()), &self.file) else { return Ok(None) };
        let Some(record) = table.find(digest, file)? else { return Ok(None) };
        let list =
            self.lists.get(usize::from(record.list)).map_or_else(String::new, |list| list.name.clone());
        Ok(Some(Found { list, name: name(file, record.name)? }))
    }

    /// Whether the worker told every digest that these lists need; what was not read whole has none.
    #[must_use]
    pub fn can_judge(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Scanned(scan) => !scan.whole || self.kinds().all(|kind| kind.of(scan).is_some()),
            Outcome::TimedOut(_) | Outcome::Died(_) | Outcome::NotScanned(_) => true,
        }
    }

    /// Adds what the lists say to what the rules say. A file that is listed has matched, whatever else became of it.
    #[must_use]
    pub fn judge(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Scanned(mut scan) => {
                if !scan.whole {
                    return Outcome::Scanned(scan);
                }
                for kind in self.kinds() {
                    let found = match kind.of(&scan) {
                        Some(digest) => self.find(kind, digest),
                        None => Err(io::Error::other(MISSING)),
                    };
                    match found {
                        Ok(Some(found)) => add(&mut scan, kind, found),
                        Ok(None) => {}
                        Err(error) => fail(&mut scan, &error),
                    }
                }
                Outcome::Scanned(scan)
            }
            Outcome::TimedOut(_) | Outcome::Died(_) | Outcome::NotScanned(_) => outcome,
        }
    }
}

/// Complaints that a summary tells.
const SUMMARY_ERRORS_MAX: usize = 64;

fn name(file: &File, at: u64) -> io::Result<String> {
    if at == 0 {
        return Ok(String::new());
    }
    let mut length = [0; 2];
    file.read_exact_at(&mut length, at)?;
    let mut name = vec![0; usize::from(u16::from_le_bytes(length))];
    file.read_exact_at(&mut name, at + 2)?;
    Ok(String::from_utf8_lossy(&name).into_owned())
}

fn add(scan: &mut Scan, kind: Kind, found: Found) {
    let matched = RuleMatch {
        name: if found.name.is_empty() { NAMELESS.to_owned() } else { found.name },
        description: format!("its {} is on a hash list", kind.word()),
        namespace: found.list,
        severity: Severity::High.into(),
        tags: vec![NAMELESS.to_owned(), kind.word().to_owned()],
        ..Default::default()
    };
    // Most severe first; beside rules that say the same, the list is the surer.
    let at = scan.rules.iter().position(|rule| rule.severity <= matched.severity);
    scan.rules.insert(at.unwrap_or(scan.rules.len()), matched);
    scan.rules.truncate(RULES_MAX);
    scan.verdict = Verdict::Matched;
}

/// Only clean means clean.
fn fail(scan: &mut Scan, error: &io::Error) {
    if scan.verdict == Verdict::Clean {
        scan.verdict = Verdict::Failed;
        scan.detail = format!("the hash lists could not be asked: {error}");
    }
}

#[cfg(test)]
mod tests;
