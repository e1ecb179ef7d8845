//! The target `scan`: bytes as a file, through the scanning worker with rules that use every module.

use super::behaviour::Behaviour;
use super::{Observed, Target, files, pools};
use anyhow::ensure;
use rand::rngs::StdRng;
use std::path::Path;
use std::time::{Duration, Instant};
use vidette_agent::worker::pool::{Output, Pool};
use vidette_agent::worker::{Outcome, RuleSet};

const EVERY_MODULE: &str = include_str!("../../fuzz/every_module.yar");
const OF_THE_DAY: &str = include_str!("../../fuzz/of_the_day.yar");

/// What formats begin with, and what stands within.
const WORDS: &[&[u8]] = &[
    b"MZ",
    b"PE\0\0",
    b"\x7fELF",
    b"\xfe\xed\xfa\xcf",
    b"\xca\xfe\xba\xbe",
    b"dex\n035\0",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    b"L\0\0\0\x01\x14\x02\0",
    b"BSJB",
    b"#~\0\0",
    b"RSDS",
    b"Rich",
    b"KERNEL32.dll\0",
    b"LoadLibraryA\0",
    b"main\0",
    b"\x30\x82",
    b"\x30\x80",
    b"\x30\x84\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
];

/// The scanning worker.
#[derive(Debug)]
pub struct Scan {
    pool: Pool,
    /// Deaths of workers, also those that cost no file its verdict.
    pub deaths: u64,
}

impl Scan {
    /// With workers of this program.
    ///
    /// # Errors
    /// It could not be started, or the rules are not what they should be.
    pub fn new(agent: &Path) -> anyhow::Result<Self> {
        let rules = RuleSet::new(vec![
            pools::source("every_module.yar", EVERY_MODULE.as_bytes()),
            pools::source("of_the_day.yar", OF_THE_DAY.as_bytes()),
        ]);
        let mut pool = pools::pool(agent, rules)?;
        let outputs = pool.prepare(Instant::now());
        let problems = pools::wait_for(&mut pool, outputs, |output| match output {
            Output::Loaded(loaded) => {
                let errors = loaded.problems.into_iter().filter(|problem| problem.error);
                Some(
                    errors
                        .map(|error| format!("{} line {}: {}", error.file, error.line, error.message))
                        .collect(),
                )
            }
            Output::Unavailable(reason) | Output::RulesRefused { reason, .. } => Some(vec![reason]),
            Output::Done(_) | Output::Started(_) | Output::Died(_) => None,
        })?;
        ensure!(problems.is_empty(), "the rules of this target are no good: {}", problems.join("; "));
        Ok(Self { pool, deaths: 0 })
    }
}

impl Target for Scan {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn batch(&self) -> usize {
        256
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        files::any(random)
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let scanned = pools::scan(&mut self.pool, &inputs)?;
        self.deaths += scanned.deaths;
        let mut observed: Vec<Observed> = scanned.outcomes.iter().map(observe).collect();
        // A worker died, whether or not somebody is to blame: what comes next must not suffer.
        if scanned.deaths > 0
            && let Some((kind, detail)) = pools::next_is_scanned(&mut self.pool)?
            && let Some(last) = observed.iter_mut().rev().find(|one| one.finding.is_some())
        {
            *last = Observed::found(kind, detail);
        }
        Ok(observed)
    }
}

fn observe(outcome: &Outcome) -> Observed {
    if let Some((kind, detail)) = pools::judge(outcome) {
        return Observed::found(kind, detail);
    }
    let Outcome::Scanned(scan) = outcome else { return Observed::fine(Behaviour::named("nothing")) };
    let rules = scan.rules.iter().map(|rule| rule.name.clone());
    Observed::fine(Behaviour::new(format!("{:?}", scan.verdict), rules, Duration::from_micros(scan.scan_us)))
}
