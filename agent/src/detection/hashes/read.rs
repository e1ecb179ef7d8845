//! One file of a hash list to entries: opened once, read as a stream of lines, never mapped.
//!
//! Assumes nothing of the file: it may grow, shrink or be no text while it is read. What it says goes to `build`.

use super::parse::{LINE_BYTES_MAX, Line, Mistake, Parser};
use super::{KINDS, Kind};
use crate::detection::folders::{self, Wanted};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Take};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One file. Bytes.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Files that are read.
pub const FILES_MAX: usize = 1024;
/// Mistakes that are told of one file; the others are counted.
pub const MISTAKES_TOLD_MAX: usize = 5;
/// What of a folder is a list.
const WANTED: Wanted =
    Wanted { endings: &["txt", "csv", "hashes"], entries_max: 65_536, folder: "folder of hash lists" };
/// What is read at once. Bytes.
const READ_BYTES: usize = 256 << 10;
/// Lines between two looks whether anybody still waits.
const LINES_BETWEEN_LOOKS: u64 = 4096;

/// What one file was.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct List {
    /// Its path, without control characters.
    pub name: String,
    /// Its entries are in use, or would be.
    pub used: bool,
    /// Entries by kind, in the order of [`Kind::ALL`], double ones too.
    pub entries: [u64; KINDS],
    /// Lines that are mistakes.
    pub bad_lines: u64,
    /// The first of them: line, from 1, and what is wrong.
    pub mistakes: Vec<(u64, String)>,
    /// Entries that were left out, being more than all lists may have.
    pub beyond: u64,
    /// One sentence each on the file as a whole.
    pub errors: Vec<String>,
}

impl List {
    /// Of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.entries.iter().sum()
    }

    /// Every line of it is in use.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.used && self.bad_lines == 0 && self.beyond == 0 && self.errors.is_empty()
    }

    /// What is wrong with it, one sentence each.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        let told = self.mistakes.iter().map(|(line, mistake)| format!("{}:{line}: {mistake}", self.name));
        let untold = self.bad_lines.saturating_sub(self.mistakes.len() as u64);
        let untold = (untold > 0).then(|| format!("{}: {untold} more bad lines", self.name));
        let beyond = (self.beyond > 0).then(|| {
            format!(
                "{}: {} entries are left out: all lists together may have {}",
                self.name,
                self.beyond,
                super::build::ENTRIES_MAX
            )
        });
        self.errors.iter().cloned().chain(told).chain(untold).chain(beyond)
    }
}

/// What an entry becomes of.
pub enum Added {
    /// It is kept.
    Kept,
    /// There is no more room.
    Beyond,
}

/// The files themselves, and the lists in folders, in the order in which they are named; nothing twice.
pub fn expand(paths: &[PathBuf], errors: &mut Vec<String>) -> Vec<PathBuf> {
    let mut files = folders::expand(paths, WANTED, errors);
    if files.len() > FILES_MAX {
        errors.push(format!("more than {FILES_MAX} hash lists: the rest is left out, join some"));
        files.truncate(FILES_MAX);
    }
    files
}

/// How a list is called in matches and errors.
#[must_use]
pub fn name(path: &Path) -> String {
    crate::worker::clip(&folders::name(path), vidette_protocol::limits::PATH_BYTES_MAX)
}

/// Reads one file; `add` gets every entry, `content` every byte. `stop` ends it early.
pub fn read(
    path: &Path,
    content: &mut blake3::Hasher,
    stop: &AtomicBool,
    mut add: impl FnMut(Kind, &[u8], &str) -> std::io::Result<Added>,
) -> std::io::Result<List> {
    let mut list = List { name: name(path), ..Default::default() };
    let (file, size) = match open(path) {
        Ok(opened) => opened,
        Err(error) => {
            list.errors.push(format!("could not read the hash list {}: {error}", list.name));
            return Ok(list);
        }
    };
    let mut lines = Lines::new(&file, size.min(FILE_BYTES_MAX), content);
    let (mut parser, mut number, mut good, mut failed) = (Parser::default(), 0, 0, None);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                list.errors.push(format!("could not read all of the hash list {}: {error}", list.name));
                break;
            }
        };
        number += 1;
        if number % LINES_BETWEEN_LOOKS == 0 && stop.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let line = match line {
            // Somebody is still writing it: half a digest is no mistake of his.
            Ok(line) if !line.ends_with(b"\n") && file.metadata().is_ok_and(|now| now.len() != size) => break,
            Ok(line) => parser.line(line, &mut |kind, digest, name| match add(kind, digest, name) {
                Ok(Added::Kept) => list.entries[kind.index()] += 1,
                Ok(Added::Beyond) => list.beyond += 1,
                Err(error) => failed = Some(error),
            }),
            Err(mistake) => Line::Bad(mistake),
        };
        if let Some(error) = failed {
            return Err(error);
        }
        match line {
            Line::Nothing => {}
            Line::Entries => good += 1,
            Line::Bad(mistake) => list.note(number, mistake),
        }
    }
    conclude(&mut list, &file, size, good);
    Ok(list)
}

fn conclude(list: &mut List, file: &File, size: u64, good_lines: u64) {
    if file.metadata().is_ok_and(|now| now.len() != size) {
        list.errors.push(format!("{} changed while it was read: load it again when it is whole", list.name));
    }
    if size > FILE_BYTES_MAX {
        list.errors
            .push(format!("of {} only the first {FILE_BYTES_MAX} bytes are read: split it", list.name));
    }
    list.used = good_lines > 0 && list.bad_lines <= good_lines;
    if list.bad_lines > good_lines {
        list.errors.push(format!(
            "{} is left out: {} of its {} lines are mistakes, so it is hardly a hash list",
            list.name,
            list.bad_lines,
            list.bad_lines + good_lines
        ));
    } else if !list.used && list.errors.is_empty() {
        list.errors.push(format!("{} has no entry", list.name));
    }
}

impl List {
    fn note(&mut self, line: u64, mistake: Mistake) {
        self.bad_lines += 1;
        if self.mistakes.len() < MISTAKES_TOLD_MAX {
            self.mistakes.push((line, mistake.to_string()));
        }
    }
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    // Not blocking, for a FIFO; a link is what the operator named.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File = rustix::fs::open(path, flags, Mode::empty())?.into();
    let stat = file.metadata()?;
    if !stat.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    Ok((file, stat.len()))
}

/// Lines of bounded length, from a file of bounded length.
struct Lines<'a> {
    reader: BufReader<Hashed<'a>>,
    line: Vec<u8>,
}

struct Hashed<'a> {
    file: Take<&'a File>,
    content: &'a mut blake3::Hasher,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.content.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl<'a> Lines<'a> {
    fn new(file: &'a File, bytes: u64, content: &'a mut blake3::Hasher) -> Self {
        let reader = BufReader::with_capacity(READ_BYTES, Hashed { file: file.take(bytes), content });
        Self { reader, line: Vec::new() }
    }

    fn next(&mut self) -> std::io::Result<Option<Result<&[u8], Mistake>>> {
        self.line.clear();
        let most = LINE_BYTES_MAX as u64 + 2;
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        if read as u64 == most && !self.line.ends_with(b"\n") {
            self.reader.skip_until(b'\n')?;
            return Ok(Some(Err(Mistake::TooLong)));
        }
        Ok(Some(Ok(&self.line)))
    }
}
