//! A pool that is run to its end, and the file that has to be scanned afterwards. Used by the targets that go through workers.

use super::Kind;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};
use vidette_agent::sys::sandbox::Violation;
use vidette_agent::worker::pool::{Output, Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_agent::worker::{Outcome, RuleSet, Source};

/// What every set of rules here matches, and its rule.
pub const CONTROL: &[u8] = b"vidette-control";
/// The rule that does.
pub const CONTROL_RULE: &str = "rule control { strings: $a = \"vidette-control\" condition: $a }\n";
/// When a scan is given up: far more than any of these inputs needs.
const SCAN_TIME: Duration = Duration::from_secs(5);
/// Until a pool counts as stuck itself: compiling alone may take minutes until it is given up.
const PATIENCE: Duration = Duration::from_secs(900);
/// The number of the control.
const CONTROL_ID: u64 = u64::MAX;
/// What the kernel sends to a process that makes a call that its filter does not have.
const VIOLATION: &str = "signal 31";

/// A pool whose workers end at the first call that is not allowed.
///
/// # Errors
/// The program could not be opened.
pub fn pool(agent: &Path, rules: RuleSet) -> anyhow::Result<Pool> {
    let launcher = Launcher::of(agent)?.with_violation(Violation::Kill);
    Ok(Pool::new(Settings { timeout: SCAN_TIME, ..Settings::new(launcher, rules) }))
}

/// A rule file.
#[must_use]
pub fn source(name: &str, text: &[u8]) -> Source {
    Source { name: name.to_owned(), text: text.to_vec() }
}

/// Waits until one output is what is looked for.
///
/// # Errors
/// It never came.
pub fn wait_for<T>(
    pool: &mut Pool,
    mut outputs: Vec<Output>,
    mut look: impl FnMut(Output) -> Option<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        for output in outputs {
            if let Some(found) = look(output) {
                return Ok(found);
            }
        }
        if Instant::now() > end {
            bail!("the pool does not come to an end");
        }
        outputs = pool.wait(Duration::from_secs(1));
    }
}

/// What became of each input, and how often a worker died meanwhile.
#[derive(Debug)]
pub struct Scanned {
    /// In the order of the inputs.
    pub outcomes: Vec<Outcome>,
    /// Also deaths that cost nothing.
    pub deaths: u64,
}

/// Scans them all.
///
/// # Errors
/// The pool does not give every file back.
pub fn scan(pool: &mut Pool, inputs: &[&[u8]]) -> anyhow::Result<Scanned> {
    let (mut done, mut deaths, mut next) = (BTreeMap::new(), 0, 0usize);
    let end = Instant::now() + PATIENCE;
    let mut outputs = Vec::new();
    while done.len() < inputs.len() {
        while pool.room() > 0
            && let Some(input) = inputs.get(next)
        {
            outputs.extend(pool.submit(next as u64, memory(input)?, Instant::now()));
            next += 1;
        }
        for output in outputs {
            match output {
                Output::Done(one) => drop(done.insert(one.id, one.outcome)),
                Output::Died(_) => deaths += 1,
                Output::Unavailable(reason) => bail!("no worker can live: {reason}"),
                Output::Started(_) | Output::Loaded(_) | Output::RulesRefused { .. } => {}
            }
        }
        if Instant::now() > end {
            bail!("files are still being scanned");
        }
        outputs = if done.len() < inputs.len() { pool.wait(Duration::from_secs(1)) } else { Vec::new() };
    }
    Ok(Scanned { outcomes: done.into_values().collect(), deaths })
}

/// What is wrong with how it ended, if anything.
#[must_use]
pub fn judge(outcome: &Outcome) -> Option<(Kind, String)> {
    match outcome {
        Outcome::Scanned(_) => None,
        Outcome::TimedOut(detail) => Some((Kind::Hung, detail.clone())),
        Outcome::Died(detail) => Some((kind_of_death(detail), detail.clone())),
        Outcome::NotScanned(detail) => Some((Kind::Spread, detail.clone())),
    }
}

/// Whether the sandbox did it.
#[must_use]
pub fn kind_of_death(detail: &str) -> Kind {
    if detail.contains(VIOLATION) { Kind::Violation } else { Kind::Died }
}

/// Whether the next file is scanned, and found to be what it is.
///
/// # Errors
/// As [`scan`].
pub fn next_is_scanned(pool: &mut Pool) -> anyhow::Result<Option<(Kind, String)>> {
    let outputs = pool.submit(CONTROL_ID, memory(CONTROL)?, Instant::now());
    let outcome = wait_for(pool, outputs, |output| match output {
        Output::Done(one) if one.id == CONTROL_ID => Some(one.outcome),
        Output::Done(_)
        | Output::Died(_)
        | Output::Unavailable(_)
        | Output::Started(_)
        | Output::Loaded(_)
        | Output::RulesRefused { .. } => None,
    })?;
    let found =
        matches!(&outcome, Outcome::Scanned(scan) if scan.rules.iter().any(|rule| rule.name == "control"));
    Ok((!found).then(|| (Kind::Spread, format!("the next file was not found to be what it is: {outcome:?}"))))
}

/// A file that is nowhere.
fn memory(content: &[u8]) -> anyhow::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(c"input", rustix::fs::MemfdFlags::CLOEXEC)
        .context("could not make a file in memory")?;
    let mut file = File::from(memory);
    file.write_all(content)?;
    Ok(file.into())
}
