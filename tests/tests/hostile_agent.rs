//! A valid certificate in wrong hands: whatever its holder does, it is cut off or slowed and named, the collector's memory
//! stays bounded, nothing is attributed to anybody else, and twenty honest agents have everything stored once.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vidette_protocol::wire::RefuseCode;
use vidette_tests::hostile_agent::client::{Papers, Session, wide};
use vidette_tests::hostile_agent::honest::{Crew, Served, quantile};
use vidette_tests::hostile_agent::{Ending, Expected, Misbehaviour};
use vidette_tests::programs::{Collector, memory_bytes, wait_for};

/// Honest agents.
const HONEST: usize = 20;
/// How often each of them sends.
const INTERVAL: Duration = Duration::from_millis(100);
/// What the collector may take beyond rest, whatever is done to it. Bytes.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

fn start(folder: &Path) -> Collector {
    Collector::start(folder, "").unwrap()
}

fn crew(collector: &Collector) -> Crew {
    let papers = (0..HONEST).map(|index| Papers::join(collector, &format!("honest-{index}")).unwrap());
    Crew::start(papers.collect(), INTERVAL).unwrap()
}

#[test]
fn whoever_misbehaves_is_cut_off_or_slowed_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = start(folder.path());
    let mut hostile: Vec<(Misbehaviour, Papers)> = Misbehaviour::ALL
        .into_iter()
        .map(|misbehaviour| (misbehaviour, Papers::join(&collector, misbehaviour.name()).unwrap()))
        .collect();
    hostile.sort_by_key(|(misbehaviour, _)| !misbehaviour.is_patient());
    let ids: BTreeMap<Misbehaviour, String> =
        hostile.iter().map(|(misbehaviour, papers)| (*misbehaviour, papers.agent.to_string())).collect();
    let crew = crew(&collector);
    std::thread::sleep(Duration::from_secs(2));
    assert!(!crew.take_times().is_empty(), "the honest agents are at work");

    let pid = collector.program.as_ref().unwrap().pid();
    let (rest, over, peak) = (memory_bytes(pid), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(memory_bytes(pid).saturating_sub(rest), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let _ends = OnDrop(&over);
        let mut patient = Vec::new();
        for (misbehaviour, papers) in hostile {
            let doing = misbehaviour.start(papers);
            if misbehaviour.is_patient() {
                patient.push((misbehaviour, doing));
                continue;
            }
            peak.store(0, Ordering::Relaxed);
            judge(misbehaviour, &doing.join().unwrap());
            let grown = peak.load(Ordering::Relaxed);
            let times = crew.take_times();
            println!(
                "{}: {} KiB beyond rest, honest p50 {:?} p99 {:?} of {}",
                misbehaviour.name(),
                grown >> 10,
                quantile(&times, 0.5),
                quantile(&times, 0.99),
                times.len()
            );
            assert!(grown <= MEMORY_BYTES_MAX, "{}: {grown} bytes beyond rest", misbehaviour.name());
        }
        for (misbehaviour, doing) in patient {
            judge(misbehaviour, &doing.join().unwrap());
        }
    });
    named(&collector, &ids);
    let served = crew.stop().unwrap();
    let before = stored(&collector);
    once(&before, &served);
    attributed(&before, &ids);
    collector.program.take().unwrap().stop().unwrap();
    collector.resume().unwrap();
    assert_eq!(stored(&collector), before, "the store opens and holds the same");
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn judge(misbehaviour: Misbehaviour, ending: &anyhow::Result<Ending>) {
    let ending = ending.as_ref().unwrap_or_else(|error| panic!("{}: {error:#}", misbehaviour.name()));
    println!("{}: {ending:?}", misbehaviour.name());
    let fits = match (misbehaviour.expected(), ending) {
        (Expected::CutOff(words), Ending::CutOff { code, reason }) => {
            *code == RefuseCode::Misbehaved as u64 && reason.contains(words)
        }
        (Expected::Bounded(words), Ending::Bounded(what)) => what.contains(words),
        (Expected::CutOff(_), Ending::Bounded(_)) | (Expected::Bounded(_), Ending::CutOff { .. }) => false,
    };
    assert!(fits, "{}: {ending:?} and not {:?}", misbehaviour.name(), misbehaviour.expected());
}

/// `vidette agents` says of each who was cut off, and why; and of no honest one.
fn named(collector: &Collector, ids: &BTreeMap<Misbehaviour, String>) {
    let rows = collector.lines(&["agents", "list"]).unwrap();
    let row = |id: &str| rows.iter().find(|row| row["id"] == id).unwrap();
    for (misbehaviour, id) in ids {
        let last = &row(id)["last"];
        let name = misbehaviour.name();
        match misbehaviour.expected() {
            Expected::CutOff(words) => {
                assert!(last["cut_offs"].as_u64() >= Some(1), "{name}: {last}");
                // Whoever goes on after that is told when it may come back.
                let why = last["refused"].as_str().unwrap();
                assert!(why.contains(words) || why.contains("may come back"), "{name}: {last}");
            }
            Expected::Bounded(_) => assert_eq!(last["cut_offs"].as_u64().unwrap_or(0), 0, "{name}: {last}"),
        }
    }
    for slowed in [Misbehaviour::TenfoldRate, Misbehaviour::EndlessStream] {
        assert!(row(&ids[&slowed])["last"]["slowed"].as_u64() >= Some(1), "{slowed:?}");
    }
    for honest in rows.iter().filter(|row| row["host"].as_str().unwrap().starts_with("honest-")) {
        let last = &honest["last"];
        assert_eq!((&last["cut_offs"], &last["refused"]), (&Value::from(0), &Value::Null), "{honest}");
        assert_eq!(honest["state"], "connected");
    }
}

/// Every alert's name, its host and its text.
fn stored(collector: &Collector) -> BTreeMap<String, (String, String)> {
    let rows = collector.lines(&["alerts", "list", "--limit", "1000000"]).unwrap();
    let count = rows.len();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named: BTreeMap<_, _> = rows
        .iter()
        .map(|row| (text(&row["event.id"]), (text(&row["host.name"]), text(&row["message"]))))
        .collect();
    assert_eq!(named.len(), count, "no event has the name of another");
    named
}

/// Of each honest agent: every number once, from the first to the last that was acknowledged.
fn once(stored: &BTreeMap<String, (String, String)>, served: &[Served]) {
    assert_eq!(served.len(), HONEST);
    for one in served {
        let own = one.agent.to_string();
        let found: BTreeSet<u64> = stored
            .keys()
            .filter(|id| id.starts_with(&own))
            .map(|id| id.rsplit('/').next().unwrap().parse().unwrap())
            .collect();
        assert!(one.acknowledged > 10, "{one:?}");
        assert_eq!(found, (1..=one.acknowledged).collect(), "{one:?}");
    }
}

/// What an agent says of who it is changes nothing (T1), and the first event of a number stays.
fn attributed(stored: &BTreeMap<String, (String, String)>, ids: &BTreeMap<Misbehaviour, String>) {
    let of = |misbehaviour: Misbehaviour| {
        let own = ids[&misbehaviour].clone();
        stored.iter().filter(move |(id, _)| id.starts_with(&own)).map(|(_, what)| what)
    };
    let forged = stored.values().filter(|(_, text)| text.contains("forged")).count();
    assert_eq!((of(Misbehaviour::OtherIds).count(), forged), (20, 20));
    assert_eq!(of(Misbehaviour::NumberReuse).count(), 10);
    assert!(of(Misbehaviour::NumberReuse).all(|(_, text)| text.contains("round 0 ")));
    assert_eq!(of(Misbehaviour::Times).count(), 8);
    for nothing in [
        Misbehaviour::NumberJumps,
        Misbehaviour::NumbersBeyond,
        Misbehaviour::OtherEpoch,
        Misbehaviour::EmptyRules,
        Misbehaviour::InvalidUtf8,
    ] {
        assert_eq!(of(nothing).count(), 0, "{nothing:?}");
    }
}

#[test]
fn an_offender_is_shut_out_longer_each_time_and_gets_in_again() {
    let folder = tempfile::tempdir().unwrap();
    let collector = start(folder.path());
    let papers = Papers::join(&collector, "offender").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut shut_out = Vec::new();
    for _ in 0..2 {
        runtime.block_on(async {
            let mut session = Session::open(&papers, wide()).await.unwrap();
            session.alerts.send.write_all(&[0xff; 8]).await.unwrap();
            session.connection.closed().await;
        });
        let row = collector.lines(&["agents", "list"]).unwrap().remove(0);
        assert_eq!(row["state"], "cut_off", "{row}");
        let since = Instant::now();
        wait_for("it gets in again", || {
            let session = runtime.block_on(Session::open(&papers, wide()));
            Ok(session.is_ok().then_some(()))
        })
        .unwrap();
        shut_out.push(since.elapsed());
    }
    assert!(shut_out[0] > Duration::from_secs(1) && shut_out[1] > Duration::from_secs(3), "{shut_out:?}");
    let row = collector.lines(&["agents", "list"]).unwrap().remove(0);
    assert_eq!(row["last"]["cut_offs"], 2, "{row}");
    assert!(row["last"]["refused"].as_str().unwrap().contains("may come back"), "{row}");
}
