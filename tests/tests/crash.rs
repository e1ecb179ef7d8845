//! Agent and collector are killed with -9 at random; every sample's detection is stored exactly once and
//! the numbers have no hole.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use vidette_tests::programs::{Agent, Collector, wait_for};
use vidette_tests::samples;

/// Deaths in one run. `VIDETTE_CYCLES` asks for more.
const CYCLES: usize = 50;
/// Alerts asked for at once; more than a run makes.
const LIMIT: &str = "100000";

#[test]
fn every_detection_is_stored_once_whoever_is_killed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("VIDETTE_SEED").unwrap_or_else(|| rand::rng().random());
    let cycles = number("VIDETTE_CYCLES").unwrap_or(CYCLES as u64);
    println!("seed {seed}; the same again with VIDETTE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("host");
    fs::create_dir(&watched).expect("made");
    let mut collector = Collector::start(folder.path(), "").expect("a collector");
    let mut agent = Agent::prepare(folder.path(), &watched, "", "").expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    agent.start().expect("started");

    let mut written = Vec::new();
    let mut deaths = [0; 2];
    for _ in 0..cycles {
        write_some(&mut random, &watched, &mut written);
        let agent_dies = random.random_bool(0.6);
        let collector_dies = !agent_dies || random.random_bool(0.3);
        if agent_dies {
            agent.kill().expect("killed");
            deaths[0] += 1;
        }
        if collector_dies {
            collector.kill().expect("killed");
            deaths[1] += 1;
        }
        write_some(&mut random, &watched, &mut written);
        if collector_dies {
            collector.resume().unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        }
        if agent_dies {
            agent.start().unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        }
    }
    println!("{} samples, {} deaths of the agent, {} of the collector", written.len(), deaths[0], deaths[1]);

    let stored = wait_for("every detection", || {
        let count = detections(&collector)?;
        Ok((written.iter().all(|path| count.contains_key(path))).then_some(count))
    });
    let stored = stored.unwrap_or_else(|error| {
        let count = detections(&collector).unwrap_or_default();
        let missing: Vec<&String> = written.iter().filter(|path| !count.contains_key(*path)).collect();
        panic!("seed {seed}: {error:#}; missing {missing:?}\n{}", agent.said())
    });
    let twice: Vec<_> = stored.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "seed {seed}: stored more than once: {twice:?}");
    assert_eq!(stored.len(), written.len(), "seed {seed}: detections of files nobody wrote");
    numbers_have_no_hole(&collector, seed);
}

/// A few samples, each of its own content, with pauses from none to longer than a commit.
fn write_some(random: &mut StdRng, watched: &Path, written: &mut Vec<String>) {
    for _ in 0..random.random_range(0..6) {
        let path = watched.join(format!("sample-{}", written.len()));
        let mut bytes = samples::eicar();
        bytes.extend(format!("\n{}\n", written.len()).as_bytes());
        fs::write(&path, bytes).expect("written");
        written.push(path.display().to_string());
        std::thread::sleep(Duration::from_millis(random.random_range(0..40)));
    }
}

/// How many detections each path has in the store.
fn detections(collector: &Collector) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut count = BTreeMap::new();
    for alert in collector.lines(&["alerts", "list", "--kind", "detection", "--limit", LIMIT])? {
        *count.entry(alert["file.path"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    Ok(count)
}

/// Per epoch and class the numbers run 1, 2, 3, … without a hole: no gap was declared, so none may be there.
fn numbers_have_no_hole(collector: &Collector, seed: u64) {
    let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in collector.lines(&["events", "list", "--limit", LIMIT]).expect("listed") {
        let id = event["event.id"].as_str().expect("an id").to_owned();
        let (stream, seq) = id.rsplit_once('/').expect("a number");
        assert_eq!(event["event.sequence"], Value::from(seq.parse::<u64>().expect("a number")));
        numbers.entry(stream.to_owned()).or_default().push(seq.parse().expect("a number"));
    }
    assert!(!numbers.is_empty());
    for (stream, mut seqs) in numbers {
        seqs.sort_unstable();
        let expected: Vec<u64> = (1..=seqs.len() as u64).collect();
        assert_eq!(seqs, expected, "seed {seed}: {stream}");
    }
}
