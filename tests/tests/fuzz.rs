//! Inputs that nobody expects: what was kept of fuzzing, and a few thousand mutations of it by seeds that are printed. A worker may
//! die of them; nothing else may come of it.

use std::path::{Path, PathBuf};
use std::time::Duration;
use vidette_tests::fuzz::behaviour::Corpus;
use vidette_tests::fuzz::run::{Options, fuzz};
use vidette_tests::fuzz::{
    Kind, Target, answers::Answers, config::Config, csr::Csr, files, frames::Frames, join::Join,
    outbox::Outbox, rules::Rules, scan::Scan, wire::Wire,
};
use vidette_tests::programs::binary;

/// All corpora together. Bytes.
const CORPORA_BYTES_MAX: usize = 500 << 10;
/// Inputs whose names begin so may kill a worker, each for a reason of its own: `section-sum` is a sum in YARA-X's
/// `pe.section_index` that overflows, which ends a worker that is built with checks.
const KILLER: &str = "kills-";

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpora").join(target)
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder(target))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Every input is answered, and the killers alone may kill.
fn replay(target: &mut dyn Target) {
    let files = corpus(target.name());
    assert!(files.len() > 10, "the corpus of {} is empty", target.name());
    for batch in files.chunks(target.batch()) {
        let inputs: Vec<Vec<u8>> = batch.iter().map(|(_, input)| input.clone()).collect();
        let observed = target.run(&inputs).unwrap();
        assert_eq!(observed.len(), inputs.len(), "every input is answered");
        for ((name, _), observed) in batch.iter().zip(observed) {
            match observed.finding {
                Some((Kind::Died | Kind::Hung, _)) if name.starts_with(KILLER) => {}
                None => {}
                finding => panic!("{} {name}: {finding:?}", target.name()),
            }
        }
    }
}

fn mutate(target: &mut dyn Target, seed: u64, runs: u64) {
    let seeds = Corpus::load(&folder(target.name())).unwrap();
    // Killers cost a second each: they were replayed, and are not mutated.
    let options = Options { seed, runs, time: Duration::from_secs(20), learn: false, findings: None };
    let (report, _) = fuzz(target, seeds, &options, &mut |_| {}).unwrap();
    println!("{}, seed {seed}: {} executions, {:?}", target.name(), report.executions, report.wrong);
    let ours: Vec<_> = report.ours().collect();
    assert!(ours.is_empty(), "{}, seed {seed}: {ours:?}", target.name());
    assert!(report.executions > 0, "{}: not one mutation was run in time", target.name());
}

#[test]
fn files_cost_at_most_their_own_verdict() {
    let mut target = Scan::new(&binary("vidette-agent").unwrap()).unwrap();
    replay(&mut target);
    for seed in [1, 2] {
        mutate(&mut target, seed, 2048);
    }
}

#[test]
fn rules_cost_at_most_their_own_file() {
    let mut target = Rules::new(&binary("vidette-agent").unwrap()).unwrap();
    replay(&mut target);
    mutate(&mut target, 3, 256);
}

#[test]
fn answers_stay_within_every_limit() {
    replay(&mut Answers);
    for seed in [4, 5] {
        mutate(&mut Answers, seed, 10_000);
    }
}

#[test]
fn streams_of_an_agent_keep_every_promise() {
    replay(&mut Frames);
    mutate(&mut Frames, 6, 20_000);
}

#[test]
fn messages_keep_every_promise() {
    replay(&mut Wire);
    mutate(&mut Wire, 7, 20_000);
}

#[test]
fn join_and_certificate_requests_keep_every_promise() {
    let mut join = Join::new().unwrap();
    replay(&mut join);
    mutate(&mut join, 8, 2000);
    let mut csr = Csr::new().unwrap();
    replay(&mut csr);
    mutate(&mut csr, 9, 2000);
}

#[test]
fn whatever_was_the_outbox_a_new_one_takes_over() {
    let mut target = Outbox::new().unwrap();
    replay(&mut target);
    mutate(&mut target, 10, 500);
}

#[test]
fn configuration_files_are_taken_or_answered() {
    let mut target = Config::new().unwrap();
    replay(&mut target);
    mutate(&mut target, 11, 5000);
}

/// As for files: what is mutated must begin as something that is read.
#[test]
fn what_is_generated_for_the_decoders_is_read() {
    use rand::SeedableRng as _;
    let targets: [(Box<dyn Target>, &str); 6] = [
        (Box::new(Frames), "committed"),
        (Box::new(Wire), "within"),
        (Box::new(Join::new().unwrap()), "line"),
        (Box::new(Csr::new().unwrap()), "passes"),
        (Box::new(Outbox::new().unwrap()), "files"),
        (Box::new(Config::new().unwrap()), "collector"),
    ];
    for (mut target, mark) in targets {
        let inputs: Vec<Vec<u8>> =
            (0..100).map(|seed| target.generate(&mut rand::rngs::StdRng::seed_from_u64(seed))).collect();
        let observed = target.run(&inputs).unwrap();
        let deep = observed.iter().filter(|one| one.behaviour.marks.iter().any(|found| found.contains(mark)));
        let (name, deep) = (target.name(), deep.count());
        assert!(deep >= 10, "{name}: {deep} of 100 got as far as `{mark}`");
        assert!(observed.iter().all(|one| one.finding.is_none()), "{name}");
    }
}

/// A generator that makes what no parser takes would fuzz nothing but the first check of a format.
#[test]
fn what_is_generated_is_what_it_says() {
    use rand::SeedableRng as _;
    let mut target = Scan::new(&binary("vidette-agent").unwrap()).unwrap();
    for (format, make) in files::FORMATS {
        let seeds = 0..40;
        let inputs: Vec<Vec<u8>> =
            seeds.clone().map(|seed| make(&mut rand::rngs::StdRng::seed_from_u64(seed))).collect();
        let is = format!("{format}_is");
        let observed = target.run(&inputs).unwrap();
        let named = observed.iter().filter(|one| one.behaviour.marks.contains(&is)).count();
        match format {
            // No module of ours reads these; they are there for what reads the first bytes.
            "ole" | "text" => assert_eq!(named, 0),
            _ => assert!(named >= 30, "{format}: {named} of 40 were taken for what they are"),
        }
    }
}

#[test]
fn the_corpora_are_small() {
    let bytes: usize = ["scan", "rules", "answers", "frames", "wire", "join", "csr", "outbox", "config"]
        .iter()
        .flat_map(|target| corpus(target))
        .map(|(_, input)| input.len())
        .sum();
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes");
}
