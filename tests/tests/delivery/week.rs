//! A week without the collector, in fast time, and what comes when it is back.
//!
//! The bound holds in bytes on disk after every commit; received and counted by gaps are together what was produced,
//! exactly; a gap comes before what follows its hole; a backlog does not keep a fresh alert waiting.

use super::line::{Arrived, Line};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, GapReason, event::Kind};

const STEP_MS: u64 = 10 * 60 * 1000;
const STEPS: u64 = 7 * 24 * 6;
const STEPS_A_DAY: u64 = 24 * 6;
/// A storm: a build, a package upgrade.
const STEPS_A_FLOOD: u64 = 12;
const FLOOD_EVENTS: usize = 1500;
const GROUP: usize = 250;
/// Alerts that wait in the test of a long backlog; `VIDETTE_BACKLOG` sets another number.
const BACKLOG: usize = 20_000;

fn detection(rng: &mut StdRng, number: u64) -> wire::Event {
    let file = wire::File { path: noise(rng, 120), inode: number, size: number, ..Default::default() };
    let rule = wire::RuleMatch { name: format!("rule{}", number % 50), ..Default::default() };
    let detection = wire::Detection {
        trigger: wire::Trigger::CloseWrite.into(),
        file: Some(file),
        rules: vec![rule],
        ..Default::default()
    };
    wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() }
}

fn telemetry(rng: &mut StdRng) -> wire::Event {
    let file = wire::File { path: noise(rng, 100), ..Default::default() };
    let kind = if rng.random_bool(0.7) {
        Kind::File(wire::FileEvent { file: Some(file), ..Default::default() })
    } else {
        let process = wire::Process { args: vec![noise(rng, 200)], ..Default::default() };
        Kind::Process(wire::ProcessEvent { process: Some(process), ..Default::default() })
    };
    wire::Event { kind: Some(kind), ..Default::default() }
}

/// What does not compress away.
fn noise(rng: &mut StdRng, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| rng.random()).collect()
}

fn fresh(number: u64) -> wire::Event {
    let audit = wire::Audit { action: "fresh".into(), detail: number.to_string(), ..Default::default() };
    wire::Event { kind: Some(Kind::Audit(audit)), ..Default::default() }
}

fn overflow() -> wire::Event {
    let gap = wire::Gap { reason: GapReason::KernelQueue as i32, count: Some(2), ..Default::default() };
    wire::Event { kind: Some(Kind::Gap(gap)), ..Default::default() }
}

fn on_disk(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
    files.map(|data| data.len()).sum()
}

fn gap(one: &Arrived) -> Option<&wire::Gap> {
    match &one.event.kind {
        Some(Kind::Gap(gap)) => Some(gap),
        Some(_) | None => None,
    }
}

/// By class: events that arrived, without gaps, and what gaps of the outbox count.
fn sums(arrived: &[Arrived]) -> HashMap<Class, (u64, u64)> {
    let mut sums: HashMap<Class, (u64, u64)> = HashMap::new();
    for one in arrived {
        match gap(one) {
            None => sums.entry(one.class).or_default().0 += 1,
            Some(gap) if gap.reason == GapReason::OutboxBound as i32 => {
                let class = Class::from_wire(gap.class).unwrap();
                sums.entry(class).or_default().1 += gap.count.unwrap();
            }
            Some(_) => {}
        }
    }
    sums
}

/// Numbers only grow, and nothing comes after a hole before the gap that explains it.
fn holes_are_explained_first(arrived: &[Arrived]) {
    let mut last: HashMap<Class, u64> = HashMap::new();
    let mut gaps: Vec<&wire::Gap> = Vec::new();
    for one in arrived {
        gaps.extend(gap(one).filter(|gap| gap.first_seq > 0));
        let before = last.insert(one.class, one.seq).unwrap_or(0);
        assert!(one.seq > before, "{} {} after {before}", one.class, one.seq);
        for lost in before + 1..one.seq {
            let covers = |gap: &&wire::Gap| {
                gap.class == one.class.to_wire() && gap.first_seq <= lost && lost <= gap.last_seq
            };
            assert!(
                gaps.iter().any(covers),
                "{} {lost} is missing before {}, and no word of it",
                one.class,
                one.seq
            );
        }
    }
}

#[test]
fn a_week_offline() {
    let (seed, bytes_max) = (7, 8 << 20);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut line = Line::new(bytes_max, 10_000);
    let (mut alerts, mut others, mut overflows, mut highest) = (0, 0, 0, 0);
    for step in 0..STEPS {
        line.now += STEP_MS;
        if step % STEPS_A_DAY == STEPS_A_DAY - 1 {
            line.restart();
        }
        let mut events = vec![overflow()];
        overflows += 1;
        if step % 3 == 0 {
            alerts += 1;
            events.push(detection(&mut rng, alerts));
        }
        let count = if step % STEPS_A_FLOOD == 0 { FLOOD_EVENTS } else { rng.random_range(10..60) };
        events.extend((0..count).map(|_| telemetry(&mut rng)));
        others += count as u64;
        for group in events.chunks(GROUP) {
            line.append(group.to_vec());
            let bytes = on_disk(&line.outbox_folder());
            highest = bytes.max(highest);
            assert!(bytes <= bytes_max, "step {step}: {bytes} of {bytes_max} bytes");
        }
    }
    line.connect();
    assert!(line.run_until(line.now + 600_000), "it does not come to rest");
    let sums = sums(&line.arrived);
    println!(
        "{alerts} alerts, {others} others, {} lost; at most {highest} of {bytes_max} bytes: {sums:?}",
        line.lost
    );
    assert_eq!(sums[&Class::Alert], (alerts, 0), "every detection survives");
    let (received, counted) = sums[&Class::Telemetry];
    assert_eq!(received + counted, others);
    assert_eq!(counted, line.lost);
    assert!(counted > others / 2 && received > 5000, "{sums:?}");
    let told: u64 = line
        .arrived
        .iter()
        .filter_map(gap)
        .filter(|gap| gap.reason == GapReason::KernelQueue as i32)
        .filter_map(|gap| gap.count)
        .sum();
    assert_eq!(told, 2 * overflows, "gaps of others are added up, none is lost");
    let gaps = line.arrived.iter().filter_map(gap).count();
    assert!(gaps < 270, "{gaps} gap events of a week");
    holes_are_explained_first(&line.arrived);
    let first_other = line.arrived.iter().position(|one| one.class == Class::Telemetry).unwrap();
    let last_gap = line.arrived.iter().rposition(|one| gap(one).is_some()).unwrap();
    assert!(last_gap < first_other, "the gaps of the time without a link arrive before any telemetry");
}

#[test]
fn a_flood_of_detections_is_bounded_too_oldest_first() {
    let (seed, bytes_max) = (8, 4 << 20);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut line = Line::new(bytes_max, 10_000);
    line.append((0..500).map(|_| telemetry(&mut rng)).collect());
    let produced = 20_000;
    let mut highest = 0;
    for group in 0..produced / 100 {
        line.append((0..100).map(|n| detection(&mut rng, group * 100 + n)).collect());
        highest = on_disk(&line.outbox_folder()).max(highest);
        assert!(highest <= bytes_max, "{highest} of {bytes_max} bytes");
    }
    line.connect();
    assert!(line.run_until(line.now + 600_000), "it does not come to rest");
    let sums = sums(&line.arrived);
    let (received, counted) = sums[&Class::Alert];
    assert_eq!(received + counted, produced);
    assert!(received > 2000, "{sums:?}");
    assert_eq!(sums[&Class::Telemetry], (0, 500), "telemetry went first");
    let inodes: Vec<u64> = line
        .arrived
        .iter()
        .filter_map(|one| match &one.event.kind {
            Some(Kind::Detection(detection)) => Some(detection.file.as_ref().unwrap().inode),
            _ => None,
        })
        .collect();
    assert_eq!(inodes, (produced - received..produced).collect::<Vec<_>>(), "the oldest went");
    holes_are_explained_first(&line.arrived);
}

/// 500 kB/s, some minutes of telemetry to send, and an alert every second.
#[test]
fn a_backlog_of_telemetry_does_not_keep_a_fresh_alert_waiting() {
    let seed = 9;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut line = Line::new(64 << 20, 500);
    for _ in 0..200 {
        line.append((0..GROUP).map(|_| telemetry(&mut rng)).collect());
    }
    line.connect();
    let mut made = Vec::new();
    loop {
        line.append(vec![fresh(made.len() as u64)]);
        made.push(line.now);
        if line.run_until(line.now + 1000) || made.len() > 1000 {
            break;
        }
    }
    let last_other = line.arrived.iter().filter(|one| one.class == Class::Telemetry).map(|one| one.at).max();
    let delays: Vec<u64> = line
        .arrived
        .iter()
        .filter(|one| one.class == Class::Alert)
        .zip(&made)
        .map(|(one, made)| one.at - made)
        .collect();
    let worst = delays.iter().max().copied().unwrap();
    println!(
        "the backlog took {last_other:?} ms; {} alerts meanwhile, the slowest took {worst} ms",
        delays.len()
    );
    assert_eq!(delays.len(), made.len(), "every fresh one has arrived");
    assert!(last_other.unwrap() > 10_000 && delays.len() > 10, "there was no backlog to speak of");
    assert!(worst < 3000, "{worst} ms");
}

/// Within alerts the order is by number: what a fresh one waits is the time that the drain takes. Printed.
#[test]
fn a_backlog_of_alerts_is_drained_before_a_fresh_one() {
    let backlog = std::env::var("VIDETTE_BACKLOG").ok().and_then(|n| n.parse().ok()).unwrap_or(BACKLOG);
    let mut rng = StdRng::seed_from_u64(10);
    let mut line = Line::new(1 << 30, 10_000);
    for group in 0..backlog / GROUP {
        line.append((0..GROUP).map(|n| detection(&mut rng, (group * GROUP + n) as u64)).collect());
        line.append((0..4).map(|_| telemetry(&mut rng)).collect());
    }
    line.connect();
    line.append(vec![fresh(0)]);
    let (appended, began) = (line.now, Instant::now());
    assert!(line.run_until(line.now + 600_000), "it does not come to rest");
    let is_fresh = |one: &&Arrived| matches!(one.event.kind, Some(Kind::Audit(_)));
    let delay = line.arrived.iter().find(is_fresh).unwrap().at - appended;
    let took = began.elapsed();
    println!(
        "{backlog} alerts waited: a fresh one arrived after {delay} ms on a line of 10 MB/s; the work of both sides \
         took {took:?}, {:.0} events/s",
        line.arrived.len() as f64 / took.as_secs_f64()
    );
    let alerts = line.arrived.iter().filter(|one| one.class == Class::Alert).count();
    assert_eq!(alerts, backlog / GROUP * GROUP + 1);
    let first_other = line.arrived.iter().position(|one| one.class == Class::Telemetry).unwrap();
    assert!(first_other >= backlog / GROUP * GROUP, "alerts that waited go before telemetry");
}
