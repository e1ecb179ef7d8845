//! Fuzzing on a stable compiler, through the processes that really run: inputs are made by generators that know the formats,
//! mutated, and kept when they behave as none before: another verdict, other rules, another length of time.
//!
//! ```text
//! files, words, corpus -> mutate -> a target (scan, rules, answers) -> behaviour -> corpus
//!                                                                   -> finding -> minimise -> a file to replay
//! ```
//!
//! Most targets run in processes of their own; what decodes bytes from peers and disks (`frames`, `wire`, `join`, `csr`, `outbox`,
//! `config`) runs in this one, where a panic is a finding and every promise about what is let through is checked again.
//!
//! A finding is an input that killed a worker, hung it, made it call what it may not, or got past a limit of the parent.

/// Numbers into bytes.
pub mod bytes;
/// Valid files of every format that is parsed.
pub mod files;
/// Sources of rules.
pub mod words;
/// Changes to an input.
pub mod mutate;
/// What an input did, and inputs that did something new.
pub mod behaviour;
/// A pool that is run to its end, and the file that has to be scanned afterwards.
pub mod pools;
/// Files through the scanning worker.
pub mod scan;
/// Sources through the compiling worker.
pub mod rules;
/// Answers of a worker through the parent's decoder.
pub mod answers;
/// What targets share that run in this process.
pub mod inside;
/// Messages of the contract with everything in them.
pub mod messages;
/// Streams of frames and batches, through the collector's half of a session.
pub mod frames;
/// Every message of the contract.
pub mod wire;
/// Join requests, and lines to join with.
pub mod join;
/// Certificate requests.
pub mod csr;
/// What is on the disk where the outbox was.
pub mod outbox;
/// Configuration files.
pub mod config;
/// A finding made small.
pub mod minimise;
/// The loop.
pub mod run;

use behaviour::Behaviour;
use rand::rngs::StdRng;

/// No input is larger: so that many travel together. Bytes.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// What is wrong with what an input did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A worker died of it. That is what workers are for: it may cost this one input.
    Died,
    /// A worker said nothing until it was killed. As above.
    Hung,
    /// A worker died of a system call that its sandbox does not have: the list lacks one, or something is in wrong hands.
    Violation,
    /// It got past a limit of the parent, or made it panic.
    Limit,
    /// After it, or together with it, something else was not scanned.
    Spread,
}

impl Kind {
    /// A bug of this project, and not of a parser behind the sandbox.
    #[must_use]
    pub fn is_ours(self) -> bool {
        match self {
            Self::Died | Self::Hung => false,
            Self::Violation | Self::Limit | Self::Spread => true,
        }
    }

    /// As told and as in file names.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Hung => "hung",
            Self::Violation => "violation",
            Self::Limit => "limit",
            Self::Spread => "spread",
        }
    }
}

/// What one input did.
#[derive(Debug, Clone)]
pub struct Observed {
    /// To tell it from others.
    pub behaviour: Behaviour,
    /// What is wrong with it.
    pub finding: Option<(Kind, String)>,
}

impl Observed {
    /// Nothing that is wrong.
    #[must_use]
    pub fn fine(behaviour: Behaviour) -> Self {
        Self { behaviour, finding: None }
    }

    /// Something is.
    #[must_use]
    pub fn found(kind: Kind, detail: String) -> Self {
        Self { behaviour: Behaviour::named(kind.word()), finding: Some((kind, detail)) }
    }
}

/// Something that takes bytes.
pub trait Target {
    /// As on the command line, and of its corpus.
    fn name(&self) -> &'static str;

    /// How many inputs are worth handing over together.
    fn batch(&self) -> usize;

    /// An input that is valid, mostly.
    fn generate(&self, random: &mut StdRng) -> Vec<u8>;

    /// What may be written into an input.
    fn words(&self) -> &'static [&'static [u8]];

    /// What each of them did, in order.
    ///
    /// # Errors
    /// The target itself can't be run.
    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>>;
}
