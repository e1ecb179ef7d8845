//! The target `rules`: bytes as a file of rules, through the compiling worker, into a scanning one, which then has to scan.

use super::behaviour::Behaviour;
use super::{Kind, Observed, Target, pools, words};
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use vidette_agent::worker::RuleSet;
use vidette_agent::worker::messages::{Loaded, Problem};
use vidette_agent::worker::pool::{Output, Pool};

/// How a file is told apart that had to be left out because it kills.
const KILLS: &str = "the file kills the compiler";

/// The compiling worker.
#[derive(Debug)]
pub struct Rules {
    pool: Pool,
    sets: u64,
}

/// What became of a set of rules.
enum Told {
    Loaded(Loaded),
    Refused(String),
}

impl Rules {
    /// With workers of this program.
    ///
    /// # Errors
    /// It could not be opened.
    pub fn new(agent: &Path) -> anyhow::Result<Self> {
        let first = RuleSet::new(vec![pools::source("control.yar", pools::CONTROL_RULE.as_bytes())]);
        Ok(Self { pool: pools::pool(agent, first)?, sets: 0 })
    }

    /// All of them as one set, beside one rule that is good.
    fn compile(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Told> {
        self.sets += 1;
        // Its number makes every set another one.
        let control = format!("// {}\n{}", self.sets, pools::CONTROL_RULE);
        let mut sources = vec![pools::source("control.yar", control.as_bytes())];
        sources.extend(inputs.iter().enumerate().map(|(at, text)| pools::source(&at.to_string(), text)));
        let rules = RuleSet::new(sources);
        let version = rules.version().to_owned();
        let outputs = self.pool.use_rules(rules, Instant::now());
        pools::wait_for(&mut self.pool, outputs, |output| match output {
            Output::Loaded(loaded) if loaded.version == version => Some(Told::Loaded(loaded)),
            Output::RulesRefused { reason, .. } | Output::Unavailable(reason) => Some(Told::Refused(reason)),
            Output::Loaded(_) | Output::Done(_) | Output::Started(_) | Output::Died(_) => None,
        })
    }
}

impl Target for Rules {
    fn name(&self) -> &'static str {
        "rules"
    }

    fn batch(&self) -> usize {
        32
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        words::rules(random)
    }

    fn words(&self) -> &'static [&'static [u8]] {
        words::WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        let began = Instant::now();
        let spread = match self.compile(inputs)? {
            Told::Loaded(loaded) => match pools::next_is_scanned(&mut self.pool)? {
                None => {
                    let each = began.elapsed() / u32::try_from(inputs.len().max(1)).unwrap_or(1);
                    return Ok((0..inputs.len()).map(|at| observe(&loaded, at, each)).collect());
                }
                Some((_, detail)) => detail,
            },
            Told::Refused(reason) => reason,
        };
        // Together they cost more than themselves: which of them, in halves.
        if let [_] = inputs {
            return Ok(vec![Observed::found(Kind::Spread, spread)]);
        }
        let (first, second) = inputs.split_at(inputs.len() / 2);
        let mut observed = self.run(first)?;
        observed.extend(self.run(second)?);
        if observed.iter().all(|one| one.finding.is_none()) {
            eprintln!("only together: {spread}");
        }
        Ok(observed)
    }
}

/// What was said of one file: codes of errors and warnings, or that it was usable without any.
fn observe(loaded: &Loaded, at: usize, time: Duration) -> Observed {
    let name = at.to_string();
    let mine: Vec<&Problem> = loaded.problems.iter().filter(|problem| problem.file == name).collect();
    if let Some(killed) = mine.iter().find(|problem| problem.message.starts_with(KILLS)) {
        let hung = killed.message.contains("nothing happened");
        let kind = if hung { Kind::Hung } else { pools::kind_of_death(&killed.message) };
        return Observed::found(kind, killed.message.clone());
    }
    let verdict = if mine.iter().any(|problem| problem.error) { "refused" } else { "usable" };
    let marks: BTreeSet<String> = mine.iter().map(|problem| shape(problem)).collect();
    Observed::fine(Behaviour::new(verdict.into(), marks, time))
}

/// The code and the words that the compiler chose, without what it quotes.
fn shape(problem: &Problem) -> String {
    let mut quoted = false;
    let words = problem.message.chars().filter(|c| {
        quoted ^= matches!(c, '`' | '"');
        !quoted && c.is_ascii_alphabetic()
    });
    format!("{} {}", problem.code, words.take(40).collect::<String>())
}
