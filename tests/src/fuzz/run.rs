//! The loop: inputs are chosen, mutated, run together; what is new is learned, what is wrong is made small and written down.

use super::behaviour::{Behaviour, Corpus};
use super::{Kind, Observed, Target, minimise, mutate};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Of one finding.
const MINIMISE_TIME: Duration = Duration::from_secs(60);
/// Findings that are told apart; more are counted alone.
const FINDINGS_MAX: usize = 256;
/// Between two words on how it goes.
const PROGRESS_TIME: Duration = Duration::from_secs(15);

/// How long, and from what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Every choice follows from it, and from what was learned.
    pub seed: u64,
    /// Inputs to run; those of the corpus come first and are not counted.
    pub runs: u64,
    /// When to stop, whatever was run.
    pub time: Duration,
    /// Whether inputs that did something new are mutated further. Without it the same seed runs the same inputs.
    pub learn: bool,
    /// Where findings are written; they are neither written nor made small without.
    pub findings: Option<PathBuf>,
}

/// What was wrong, of one sort.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Which sort.
    pub kind: Kind,
    /// What was said of the first one.
    pub detail: String,
    /// How many inputs did it.
    pub count: u64,
    /// The smallest.
    pub file: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Inputs that were run, without those of the corpus.
    pub executions: u64,
    /// Inputs of the corpus.
    pub corpus: u64,
    /// How long it took.
    pub time: Duration,
    /// How many inputs were wrong, by sort.
    pub wrong: BTreeMap<Kind, u64>,
    /// Told apart by what was said of them.
    pub findings: BTreeMap<String, Finding>,
}

impl Report {
    /// How many inputs were wrong in this way.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        self.wrong.get(&kind).copied().unwrap_or(0)
    }

    /// Findings that are bugs of this project.
    pub fn ours(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values().filter(|finding| finding.kind.is_ours())
    }
}

/// Runs a target. `seeds` are run as they are, then mutated; `say` hears how it goes.
///
/// # Errors
/// The target can't be run any more, or a finding not be written.
pub fn fuzz(
    target: &mut dyn Target,
    seeds: Vec<Vec<u8>>,
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<(Report, Corpus)> {
    let (began, mut random) = (Instant::now(), StdRng::seed_from_u64(options.seed));
    let mut session = Session { options, report: Report::default(), corpus: Corpus::default() };
    for inputs in seeds.chunks(target.batch()) {
        session.report.corpus += inputs.len() as u64;
        session.batch(target, inputs, true)?;
    }
    let mut told = Instant::now();
    while session.report.executions < options.runs && began.elapsed() < options.time {
        let left = options.runs - session.report.executions;
        let count = target.batch().min(usize::try_from(left).unwrap_or(usize::MAX));
        let inputs: Vec<Vec<u8>> = (0..count).map(|_| session.next(target, &mut random)).collect();
        session.report.executions += inputs.len() as u64;
        session.batch(target, &inputs, options.learn)?;
        if told.elapsed() >= PROGRESS_TIME {
            told = Instant::now();
            say(&session.progress(began.elapsed()));
        }
    }
    session.report.time = began.elapsed();
    Ok((session.report, session.corpus))
}

struct Session<'a> {
    options: &'a Options,
    report: Report,
    corpus: Corpus,
}

impl Session<'_> {
    fn next(&self, target: &dyn Target, random: &mut StdRng) -> Vec<u8> {
        let old = self.corpus.pick(random);
        let mut input = match old {
            Some(old) if random.random_bool(0.7) => old.to_vec(),
            Some(_) | None => target.generate(random),
        };
        // Some as they were made: the generators have a say of their own.
        if random.random_bool(0.95) {
            let other = match self.corpus.pick(random) {
                Some(other) if random.random() => other.to_vec(),
                Some(_) | None => target.generate(random),
            };
            mutate::mutate(random, &mut input, &other, target.words());
        }
        input.truncate(super::INPUT_BYTES_MAX);
        input
    }

    fn batch(&mut self, target: &mut dyn Target, inputs: &[Vec<u8>], learn: bool) -> anyhow::Result<()> {
        let observed = target.run(inputs)?;
        for (input, Observed { behaviour, finding }) in inputs.iter().zip(observed) {
            match finding {
                Some((kind, detail)) => self.found(target, input, kind, detail)?,
                None if learn => self.learn(&behaviour, input),
                None => {}
            }
        }
        Ok(())
    }

    fn learn(&mut self, behaviour: &Behaviour, input: &[u8]) {
        let fresh = self.corpus.learn(behaviour, input);
        // Without learning, every seed is mutated, whatever it does.
        if !fresh && !self.options.learn {
            self.corpus.add(input.to_vec());
        }
    }

    fn found(
        &mut self,
        target: &mut dyn Target,
        input: &[u8],
        kind: Kind,
        detail: String,
    ) -> anyhow::Result<()> {
        *self.report.wrong.entry(kind).or_default() += 1;
        let key = format!("{} {}", kind.word(), place_of(&detail));
        if let Some(known) = self.report.findings.get_mut(&key) {
            known.count += 1;
            return Ok(());
        }
        if self.report.findings.len() >= FINDINGS_MAX {
            return Ok(());
        }
        let file = match &self.options.findings {
            Some(folder) => Some(self.write(target, input, kind, &key, folder)?),
            None => None,
        };
        self.report.findings.insert(key, Finding { kind, detail, count: 1, file });
        Ok(())
    }

    fn write(
        &self,
        target: &mut dyn Target,
        input: &[u8],
        kind: Kind,
        key: &str,
        folder: &Path,
    ) -> anyhow::Result<PathBuf> {
        let small = minimise::minimise(input, Instant::now() + MINIMISE_TIME, |input| {
            let observed = target.run(&[input.to_vec()])?;
            let same =
                |(other, detail): &(Kind, String)| format!("{} {}", other.word(), place_of(detail)) == key;
            Ok(observed.first().and_then(|one| one.finding.as_ref()).is_some_and(same))
        })?;
        std::fs::create_dir_all(folder)?;
        let name = format!("{}-{}-seed{}-{}", target.name(), kind.word(), self.options.seed, digest(&small));
        let path = folder.join(name);
        std::fs::write(&path, &small)?;
        Ok(path)
    }

    fn progress(&self, time: Duration) -> String {
        let wrong: Vec<String> =
            self.report.wrong.iter().map(|(kind, count)| format!("{} {count}", kind.word())).collect();
        format!(
            "{} runs, {:.0} a second, {} behaviours, {}",
            self.report.executions,
            self.report.executions as f64 / time.as_secs_f64(),
            self.corpus.behaviours(),
            if wrong.is_empty() { "nothing wrong".to_owned() } else { wrong.join(", ") }
        )
    }
}

/// Where a panic was, when that is said; else all that is said, without numbers, which may differ each time.
fn place_of(detail: &str) -> String {
    match detail.split_once("panicked at ") {
        Some((_, place)) => place.split_whitespace().next().unwrap_or_default().to_owned(),
        None => detail.to_owned(),
    }
}

/// FNV-1a: names that are the same for the same content.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Dies of one byte, and tells others apart.
    struct Touchy {
        ran: Vec<Vec<u8>>,
    }

    impl Target for Touchy {
        fn name(&self) -> &'static str {
            "touchy"
        }

        fn batch(&self) -> usize {
            8
        }

        fn generate(&self, random: &mut StdRng) -> Vec<u8> {
            (0..64).map(|_| random.random_range(0..100)).collect()
        }

        fn words(&self) -> &'static [&'static [u8]] {
            &[]
        }

        fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
            self.ran.extend_from_slice(inputs);
            Ok(inputs
                .iter()
                .map(|input| match input.contains(&200) {
                    true => Observed::found(Kind::Died, "panicked at here:1:2: id 7".into()),
                    false => Observed::fine(Behaviour::named(&format!("{}", input.len() / 16))),
                })
                .collect())
        }
    }

    fn options(findings: Option<PathBuf>) -> Options {
        Options { seed: 7, runs: 3000, time: Duration::from_secs(60), learn: true, findings }
    }

    #[test]
    fn what_is_wrong_is_found_made_small_and_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut target = Touchy { ran: Vec::new() };
        let options = options(Some(folder.path().to_owned()));
        let (report, corpus) = fuzz(&mut target, vec![], &options, &mut |_| {}).unwrap();
        assert!(report.executions == 3000 && report.count(Kind::Died) > 1 && report.ours().count() == 0);
        let finding = report.findings.get("died here:1:2:").unwrap();
        assert_eq!(std::fs::read(finding.file.as_ref().unwrap()).unwrap(), [200]);
        assert_eq!((report.findings.len(), finding.count), (1, report.count(Kind::Died)));
        assert!(corpus.behaviours() > 4);
    }

    #[test]
    fn without_learning_a_seed_runs_the_same_inputs_and_mutates_every_one_it_was_given() {
        let run = || {
            let mut target = Touchy { ran: Vec::new() };
            let options = Options { learn: false, ..options(None) };
            let (report, _) =
                fuzz(&mut target, vec![vec![1; 40], vec![2; 40]], &options, &mut |_| {}).unwrap();
            assert_eq!(report.corpus, 2);
            target.ran
        };
        let ran = run();
        assert_eq!(ran, run());
        for kept in [1, 2] {
            assert!(ran.iter().any(|input| input.len() > 8 && input.len() != 40 && input[..8] == [kept; 8]));
        }
        assert!(ran.iter().collect::<BTreeSet<_>>().len() > 2000);
    }
}
