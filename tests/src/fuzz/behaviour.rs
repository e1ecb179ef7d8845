//! What an input did, seen from outside, and the inputs that did something new. Cheap feedback in place of the coverage that
//! needs another compiler: which rules match says which way the parsers went.

use rand::Rng as _;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// Inputs that are kept for mutation, and their bytes together.
pub const CORPUS_MAX: usize = 8192;
const CORPUS_BYTES_MAX: usize = 64 << 20;
/// Shorter times are alike: they say more of the machine than of the input. Microseconds.
const TIME_FLOOR_US: u64 = 2048;

/// What an input did.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Behaviour {
    /// The verdict, or what stands for it.
    pub verdict: String,
    /// Rules that matched, or what stands for them.
    pub marks: BTreeSet<String>,
    /// The logarithm of the time it took.
    pub time_log2: u32,
}

impl Behaviour {
    /// A verdict alone.
    #[must_use]
    pub fn named(verdict: &str) -> Self {
        Self { verdict: verdict.to_owned(), marks: BTreeSet::new(), time_log2: 0 }
    }

    /// All of it.
    #[must_use]
    pub fn new(verdict: String, marks: impl IntoIterator<Item = String>, time: Duration) -> Self {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self { verdict, marks: marks.into_iter().collect(), time_log2: time_us.max(TIME_FLOOR_US).ilog2() }
    }
}

/// The smallest input of each behaviour. Bounded: when it is full, nothing new comes in, smaller ones do.
#[derive(Debug, Default)]
pub struct Corpus {
    inputs: Vec<Vec<u8>>,
    bytes: usize,
    known: BTreeMap<Behaviour, Option<usize>>,
}

impl Corpus {
    /// What was kept in a folder, by name; inputs whose behaviour is not known yet.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn load(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            files.push(entry?.path());
        }
        files.sort();
        files.iter().map(|path| Ok(std::fs::read(path)?)).collect()
    }

    /// Takes an input in, when nothing smaller does the same. Says whether this was never seen.
    pub fn learn(&mut self, behaviour: &Behaviour, input: &[u8]) -> bool {
        if let Some(known) = self.known.get(behaviour) {
            if let Some(held) = known.and_then(|at| self.inputs.get_mut(at))
                && input.len() < held.len()
            {
                self.bytes -= held.len() - input.len();
                *held = input.to_vec();
            }
            return false;
        }
        if self.known.len() < CORPUS_MAX && self.bytes + input.len() <= CORPUS_BYTES_MAX {
            self.known.insert(behaviour.clone(), Some(self.inputs.len()));
            self.bytes += input.len();
            self.inputs.push(input.to_vec());
        }
        true
    }

    /// Takes in an input that did what is known, or that did wrong: to be mutated all the same.
    pub fn add(&mut self, input: Vec<u8>) {
        self.bytes += input.len();
        self.inputs.push(input);
    }

    /// Behaviours.
    #[must_use]
    pub fn behaviours(&self) -> usize {
        self.known.len()
    }

    /// Any input.
    pub fn pick<'c>(&'c self, random: &mut StdRng) -> Option<&'c [u8]> {
        (!self.inputs.is_empty()).then(|| self.inputs[random.random_range(0..self.inputs.len())].as_slice())
    }

    /// A few that stand for all: the smallest ones first, those with a mark that no other has, then others, up to so many
    /// bytes.
    #[must_use]
    pub fn distil(&self, bytes_max: usize) -> Vec<&[u8]> {
        let mut all: Vec<(&Behaviour, &[u8])> = self
            .known
            .iter()
            .filter_map(|(behaviour, at)| Some((behaviour, self.inputs.get((*at)?)?.as_slice())))
            .collect();
        all.sort_by_key(|(_, input)| input.len());
        let (mut seen, mut kept, mut bytes) = (BTreeSet::new(), Vec::new(), 0);
        for only_new_marks in [true, false] {
            all.retain(|(behaviour, input)| {
                let marks = behaviour.marks.iter().chain([&behaviour.verdict]);
                let fresh = marks.filter(|mark| seen.insert((*mark).clone())).count() > 0;
                let keep = (fresh || !only_new_marks) && bytes + input.len() <= bytes_max;
                if keep {
                    bytes += input.len();
                    kept.push(*input);
                }
                !keep
            });
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behaviour(marks: &[&str]) -> Behaviour {
        Behaviour::new("matched".into(), marks.iter().map(|mark| (*mark).to_owned()), Duration::ZERO)
    }

    #[test]
    fn the_smallest_input_of_each_behaviour_stays() {
        let mut corpus = Corpus::default();
        assert!(corpus.learn(&behaviour(&["a"]), b"long"));
        assert!(!corpus.learn(&behaviour(&["a"]), b"s"));
        assert!(!corpus.learn(&behaviour(&["a"]), b"longer"));
        assert!(corpus.learn(&behaviour(&["a", "b"]), b"both"));
        assert_eq!((corpus.inputs.as_slice(), corpus.bytes), (&[b"s".to_vec(), b"both".to_vec()][..], 5));
    }

    #[test]
    fn what_is_distilled_has_every_mark_first_and_keeps_to_its_size() {
        let mut corpus = Corpus::default();
        corpus.learn(&behaviour(&["a"]), b"1");
        corpus.learn(&behaviour(&["a", "b"]), b"22");
        corpus.learn(&behaviour(&["b"]), b"333");
        corpus.learn(&behaviour(&["c"]), b"4444");
        assert_eq!(corpus.distil(100), [&b"1"[..], b"22", b"4444", b"333"]);
        assert_eq!(corpus.distil(7), [&b"1"[..], b"22", b"4444"]);
    }

    #[test]
    fn short_times_are_alike_and_long_ones_are_not() {
        let of = |ms| Behaviour::new(String::new(), [], Duration::from_millis(ms));
        assert_eq!(of(0), of(2));
        assert_ne!(of(2), of(40));
    }
}
