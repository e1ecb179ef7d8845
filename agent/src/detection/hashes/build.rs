//! Lists to tables, in little memory: entries are dealt to shards on disk, then shard by shard sorted and stored.
//!
//! Memory is bounded by what waits for the disk, and by one shard: a 256th of the entries of a kind, because keys are
//! random. Both files are unnamed and go when they are closed; of the first, each shard's room is given back as soon as
//! it is stored, so that the disk holds hardly more than the tables. The result goes to `keeper`, or to who asked.

use super::read::{self, Added, List};
use super::table::{self, Record, SHARDS, TAIL_BYTES, Table};
use super::{HashSources, Hashes, KINDS, Kind};
use crate::sys::scratch;
use anyhow::{Context as _, Result, bail};
use std::collections::HashMap;
use std::fs::File;
use std::hash::RandomState;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// Entries of all lists together.
pub const ENTRIES_MAX: u64 = 10_000_000;
/// What of one shard waits for the disk. Bytes.
const DEALT_BYTES: usize = 8 << 10;
/// What of the names waits for the disk. Bytes.
const NAMES_BYTES: usize = 64 << 10;
/// Names that are stored once however often they come.
const NAMES_KNOWN_MAX: usize = 4096;
/// All names. Bytes; what is beyond has none.
const NAMES_BYTES_MAX: u64 = 4 << 30;
/// Where names begin, so that no name is at 0. Bytes.
const NAMES_START: u64 = 8;

const _: () = assert!(NAMES_BYTES_MAX < 1 << 48);
const _: () = assert!(read::FILES_MAX <= u16::MAX as usize);
// A shard's records are numbered in 32 bits even if all were in one.
const _: () = assert!(ENTRIES_MAX < u32::MAX as u64);

/// Reads every list and makes the tables.
///
/// # Errors
/// There is no room on disk, or `stop` was set. Bad lists are no error: [`Hashes::lists`] names them.
pub fn build(sources: &HashSources, stop: &AtomicBool) -> Result<Hashes> {
    let mut errors = Vec::new();
    let paths = read::expand(&sources.files, &mut errors);
    let room = "no room for the hash lists on disk: free some, or name fewer in detection.hashes";
    let make =
        || scratch::file(sources.folder.as_deref()).context("could not make a file for the hash lists");
    let (mut names, mut dealt) = (Names::new(make()?), Dealt::new(make()?));
    let mut content = blake3::Hasher::new();
    let (mut lists, mut room_left) = (Vec::new(), ENTRIES_MAX);
    for path in &paths {
        let number = u16::try_from(lists.len()).unwrap_or(u16::MAX);
        content.update(path.as_os_str().as_encoded_bytes());
        let mut list_room = room_left;
        let list = read::read(path, &mut content, stop, |kind, digest, name| {
            if list_room == 0 {
                return Ok(Added::Beyond);
            }
            list_room -= 1;
            let record = Record { list: number, name: names.add(name)? };
            dealt.add(kind, digest, record)?;
            Ok(Added::Kept)
        });
        let list = list.context(room)?;
        content.update(&list.total().to_le_bytes());
        if list.used {
            room_left = list_room;
        }
        lists.push(list);
    }
    let mut end = names.finish().context(room)?;
    let mut tables = Vec::with_capacity(KINDS);
    for kind in Kind::ALL {
        tables.push(dealt.store(kind, &lists, &names.file, &mut end, stop).context(room)?);
    }
    let version =
        if paths.is_empty() { String::new() } else { content.finalize().to_hex().as_str()[..16].to_owned() };
    Ok(Hashes { version, lists, errors, tables, file: Some(names.file), disk_bytes: end })
}

/// Names, as length (2 bytes, little endian) and text.
struct Names {
    file: File,
    written: u64,
    waiting: Vec<u8>,
    known: HashMap<String, u64>,
}

impl Names {
    fn new(file: File) -> Self {
        Self { file, written: NAMES_START, waiting: Vec::new(), known: HashMap::new() }
    }

    /// Where it lies; 0 for none.
    fn add(&mut self, name: &str) -> std::io::Result<u64> {
        let at = self.written + self.waiting.len() as u64;
        let Ok(length) = u16::try_from(name.len()) else { return Ok(0) };
        if length == 0 || at > NAMES_BYTES_MAX {
            return Ok(0);
        }
        if let Some(known) = self.known.get(name) {
            return Ok(*known);
        }
        if self.known.len() >= NAMES_KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(name.to_owned(), at);
        self.waiting.extend_from_slice(&length.to_le_bytes());
        self.waiting.extend_from_slice(name.as_bytes());
        if self.waiting.len() >= NAMES_BYTES {
            self.flush()?;
        }
        Ok(at)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all_at(&self.waiting, self.written)?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Where the tables begin.
    fn finish(&mut self) -> std::io::Result<u64> {
        self.flush()?;
        (self.waiting, self.known) = (Vec::new(), HashMap::new());
        Ok(self.written)
    }
}

/// Records by kind and shard, in the order in which they came.
struct Dealt {
    file: File,
    end: u64,
    seeds: [RandomState; KINDS],
    shards: Vec<Pile>,
}

/// Records of one shard.
#[derive(Default)]
struct Pile {
    waiting: Vec<u8>,
    /// Where the others lie: offset and length.
    written: Vec<(u64, usize)>,
}

impl Dealt {
    fn new(file: File) -> Self {
        let shards = (0..KINDS * SHARDS).map(|_| Pile::default()).collect();
        Self { file, end: 0, seeds: std::array::from_fn(|_| RandomState::new()), shards }
    }

    fn add(&mut self, kind: Kind, digest: &[u8], record: Record) -> std::io::Result<()> {
        let Some(seed) = self.seeds.get(kind.index()) else { return Ok(()) };
        let shard = table::shard(table::key(seed, digest));
        let Some(pile) = self.shards.get_mut(kind.index() * SHARDS + shard) else { return Ok(()) };
        pile.waiting.extend_from_slice(digest);
        pile.waiting.extend_from_slice(&record.tail());
        if pile.waiting.len() >= DEALT_BYTES {
            self.file.write_all_at(&pile.waiting, self.end)?;
            pile.written.push((self.end, pile.waiting.len()));
            self.end += pile.waiting.len() as u64;
            pile.waiting.clear();
        }
        Ok(())
    }

    /// Sorts every shard of a kind and appends it to `file` at `end`.
    fn store(
        &mut self,
        kind: Kind,
        lists: &[List],
        file: &File,
        end: &mut u64,
        stop: &AtomicBool,
    ) -> Result<Table> {
        let seed = self.seeds.get(kind.index()).cloned().unwrap_or_default();
        let mut table = Table::new(kind, seed.clone());
        for shard in 0..SHARDS {
            if stop.load(Ordering::Relaxed) {
                bail!("it was stopped");
            }
            let records = self.take(kind, shard)?;
            let (keys, sorted) = sort(&records, kind, &seed, lists);
            drop(records);
            file.write_all_at(&sorted, *end)?;
            table.push(*end, &keys);
            *end += sorted.len() as u64;
        }
        Ok(table)
    }

    fn take(&mut self, kind: Kind, shard: usize) -> std::io::Result<Vec<u8>> {
        let Some(pile) = self.shards.get_mut(kind.index() * SHARDS + shard) else { return Ok(Vec::new()) };
        let pile = std::mem::take(pile);
        let bytes: usize = pile.written.iter().map(|(_, length)| length).sum();
        let mut records = vec![0; bytes];
        let mut rest = records.as_mut_slice();
        for (offset, length) in &pile.written {
            let Some((part, after)) = rest.split_at_mut_checked(*length) else { break };
            self.file.read_exact_at(part, *offset)?;
            scratch::give_back(&self.file, *offset, *length as u64);
            rest = after;
        }
        records.extend_from_slice(&pile.waiting);
        Ok(records)
    }
}

/// By key, each digest once: the first that has a name, else the first; without those of lists that are not used.
fn sort(records: &[u8], kind: Kind, seed: &RandomState, lists: &[List]) -> (Vec<u64>, Vec<u8>) {
    let digest_bytes = kind.bytes();
    let used = |record: &&[u8]| {
        let list = Record::of(record.get(digest_bytes..).unwrap_or_default()).list;
        lists.get(usize::from(list)).is_some_and(|list| list.used)
    };
    let digest =
        |record: &[u8]| record.get(..digest_bytes).map(|digest| (table::key(seed, digest), nameless(record)));
    let mut order: Vec<(u64, bool, &[u8])> = records
        .chunks_exact(digest_bytes + TAIL_BYTES)
        .filter(used)
        .filter_map(|record| digest(record).map(|(key, nameless)| (key, nameless, record)))
        .collect();
    // Stable: of equals, the one of the first list stays first.
    order.sort_by(|(one, nameless, a), (other, also, b)| {
        (one, a.get(..digest_bytes), nameless).cmp(&(other, b.get(..digest_bytes), also))
    });
    order.dedup_by(|(_, _, later), (_, _, first)| later.get(..digest_bytes) == first.get(..digest_bytes));
    let mut sorted = Vec::with_capacity(order.len() * (digest_bytes + TAIL_BYTES));
    order.iter().for_each(|(_, _, record)| sorted.extend_from_slice(record));
    (order.iter().map(|(key, _, _)| *key).collect(), sorted)
}

fn nameless(record: &[u8]) -> bool {
    let tail = record.len().saturating_sub(TAIL_BYTES);
    Record::of(record.get(tail..).unwrap_or_default()).name == 0
}
