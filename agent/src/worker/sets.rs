//! Compiled rules inside a scanning worker: one set for each class of files, loaded when the first file of its class
//! comes; and what this worker has seen to be clean.
//!
//! The bytes come from a compiling worker of the same agent. They are loaded only with the digest that the agent names:
//! a damaged file of compiled rules is as good as somebody else's code.

use super::clean::{Region, Table};
use super::messages::CompiledSet;
use super::routing::classes::Class;
use super::scan::MATCHES_PER_PATTERN_MAX;
use anyhow::{Context as _, Result, ensure};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use yara_x::{Rules, Scanner};

/// Digests of clean files that are remembered twice over: an older and a newer half.
pub const SEEN_MAX: usize = 32_768;
/// A module whose answer is another one tomorrow.
const MODULE_OF_THE_DAY: &str = "time";

/// The sets.
#[derive(Debug)]
pub struct Sets {
    file: OwnedFd,
    sets: Vec<(CompiledSet, OnceLock<Rules>)>,
}

impl Sets {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(file: OwnedFd, sets: Vec<CompiledSet>) -> Self {
        Self { file, sets: sets.into_iter().map(|set| (set, OnceLock::new())).collect() }
    }

    /// Loads the set for files of no particular class, which most are.
    ///
    /// # Errors
    /// It can't be read, or is not what was compiled.
    pub fn load_common(&self) -> Result<()> {
        let (set, rules) = self.sets.get(self.index(&[])).context("there are no compiled rules")?;
        let _ = rules.set(self.load(set)?);
        Ok(())
    }

    /// Which set is for a file that begins so; each class has one.
    fn index(&self, head: &[u8]) -> usize {
        let class = 1 << Class::of(head).index();
        self.sets.iter().position(|(set, _)| set.classes & class != 0).unwrap_or(0)
    }

    fn rules(&self, index: usize) -> &Rules {
        let Some((set, rules)) = self.sets.get(index) else { panic!("there are no compiled rules") };
        // A worker that can't load its rules is of no use: the panic tells the agent why it ends.
        rules.get_or_init(|| self.load(set).unwrap_or_else(|error| panic!("{error:#}")))
    }

    fn load(&self, set: &CompiledSet) -> Result<Rules> {
        let length = usize::try_from(set.length).context("the compiled rules are too large")?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).context("there is no memory for the compiled rules")?;
        while bytes.len() < length {
            let at = set.offset + bytes.len() as u64;
            let read = rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut bytes), at)
                .context("could not read the compiled rules")?;
            ensure!(read > 0, "the compiled rules are cut short");
        }
        bytes.truncate(length);
        ensure!(
            blake3::hash(&bytes).as_bytes().as_slice() == set.blake3,
            "the compiled rules are not what was compiled"
        );
        Rules::deserialize(&bytes).context("could not load the compiled rules")
    }
}

/// One thread's scanners: one for each set that it met.
pub struct Scanners<'r> {
    sets: &'r Sets,
    scanners: Vec<Option<(Scanner<'r>, bool)>>,
}

impl<'r> Scanners<'r> {
    /// None yet: each is made for the first file that needs it.
    #[must_use]
    pub fn new(sets: &'r Sets) -> Self {
        Self { sets, scanners: sets.sets.iter().map(|_| None).collect() }
    }

    /// The scanner for content that begins so, and whether a rule of it asks for the time.
    pub fn for_content(&mut self, head: &[u8]) -> (&mut Scanner<'r>, bool) {
        let (index, sets) = (self.sets.index(head), self.sets);
        let Some(slot) = self.scanners.get_mut(index) else { panic!("there are no compiled rules") };
        let (scanner, of_the_day) = slot.get_or_insert_with(|| {
            let rules = sets.rules(index);
            let mut scanner = Scanner::new(rules);
            scanner.max_matches_per_pattern(MATCHES_PER_PATTERN_MAX).use_mmap(false);
            (scanner, rules.imports().any(|module| module == MODULE_OF_THE_DAY))
        });
        (scanner, *of_the_day)
    }
}

impl Scanners<'_> {
    /// Drops the scanner for content that begins so: it keeps what the modules said of the last file, which for a
    /// program with many symbols is many times the file.
    pub fn drop_for(&mut self, head: &[u8]) {
        let index = self.sets.index(head);
        if let Some(slot) = self.scanners.get_mut(index) {
            *slot = None;
        }
    }
}

impl std::fmt::Debug for Scanners<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanners").field("sets", &self.scanners.len()).finish_non_exhaustive()
    }
}

/// Content that is known to be clean, by its BLAKE3: a copy of it need not be scanned again. What this worker saw is
/// held, bounded: when the newer half is full, the older one goes. What earlier ones saw is looked for on disk.
#[derive(Debug, Default)]
pub struct Seen {
    here: Mutex<[HashSet<[u8; 32]>; 2]>,
    before: Option<(Table, [u8; 8])>,
}

impl Seen {
    /// With what was seen before, and by which rules it must have been.
    #[must_use]
    pub fn new(before: Option<(Table, [u8; 8])>) -> Self {
        Self { before, ..Self::default() }
    }

    /// Whether it was.
    #[must_use]
    pub fn has(&self, digest: &[u8; 32]) -> bool {
        let here =
            self.here.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|half| half.contains(digest));
        let on_disk = |(table, version): &(Table, [u8; 8])| {
            table.get(Region::Digests, digest).is_some_and(|entry| entry.version == *version)
        };
        here || self.before.as_ref().is_some_and(on_disk)
    }

    /// It is.
    pub fn add(&self, digest: [u8; 32]) {
        let mut halves = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let [newer, older] = &mut *halves;
        if newer.len() >= SEEN_MAX {
            *older = std::mem::take(newer);
        }
        newer.insert(digest);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn compiled(text: &str) -> Vec<u8> {
        yara_x::compile(text).unwrap().serialize().unwrap()
    }

    fn sets(bytes: &[u8], blake3: &blake3::Hash, length: u64) -> Sets {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(bytes).unwrap();
        let blake3 = blake3.as_bytes().to_vec();
        Sets::new(file.into(), vec![CompiledSet { classes: u32::MAX, offset: 6, length, blake3, rules: 1 }])
    }

    #[test]
    fn compiled_rules_scan_and_damaged_ones_are_not_loaded() {
        let bytes = compiled("rule a { strings: $a = \"needle\" condition: $a }");
        let (digest, length) = (blake3::hash(&bytes), bytes.len() as u64);
        let good = sets(&bytes, &digest, length);
        good.load_common().unwrap();
        let mut scanners = Scanners::new(&good);
        let (scanner, of_the_day) = scanners.for_content(b"hay");
        assert!(!of_the_day);
        assert_eq!(scanner.scan(b"hay needle hay").unwrap().matching_rules().count(), 1);
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        for (bytes, length) in [(&flipped, length), (&bytes, length + 1), (&bytes, length - 1)] {
            assert!(sets(bytes, &digest, length).load_common().is_err());
        }
    }

    #[test]
    fn what_asks_for_the_time_is_of_the_day() {
        let bytes = compiled("import \"time\" rule a { condition: time.now() > 0 }");
        let sets = sets(&bytes, &blake3::hash(&bytes), bytes.len() as u64);
        assert!(Scanners::new(&sets).for_content(b"").1);
    }

    #[test]
    fn what_was_seen_is_remembered_for_a_while() {
        let seen = Seen::default();
        let digest = |number: usize| *blake3::hash(&number.to_le_bytes()).as_bytes();
        (0..=2 * SEEN_MAX).for_each(|number| seen.add(digest(number)));
        assert!(seen.has(&digest(2 * SEEN_MAX)) && seen.has(&digest(SEEN_MAX)) && !seen.has(&digest(0)));
        let held: usize = seen.here.lock().unwrap().iter().map(HashSet::len).sum();
        assert!(held <= 2 * SEEN_MAX, "{held}");
    }
}
