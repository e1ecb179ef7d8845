//! The store under a fleet: what filters find by the index is what looking at every row finds, everybody who waits is in
//! one commit, and each agent gets its share.

use super::db::{Db, Memory};
use super::reader::kind_name;
use super::segments::SEGMENT_IDS;
use super::{Arrival, Committed, Config, Filter, REQUESTS_MAX, Reader, Received, Stored, file, open};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire::{self, event::Kind};

const MINUTE_NS: i64 = 60_000_000_000;
const DAY_NS: i64 = 1440 * MINUTE_NS;
const NOON: i64 = 20_000 * DAY_NS + DAY_NS / 2;
const AGENTS: usize = 40;
const KINDS: [&str; 6] = ["detection", "file", "process", "gap", "health", "audit"];

/// A small generator of its own, so that a seed says the same for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

fn agent(number: usize) -> AgentId {
    AgentId([u8::try_from(number).unwrap(); 16])
}

/// Any event of a class. Rules are many and rare, times are mostly near and sometimes far off.
fn event(class: Class, near_unix_ns: i64, random: &mut Random) -> wire::Event {
    let kind = match (class, random.below(8)) {
        (Class::Alert, 0..5) => {
            let words = (0..random.below(3)).map(|_| wire::RuleMatch {
                name: format!("rule {}", random.below(500)),
                id: ["", "R-1", "R-2\nx"][random.below(3)].into(),
                ..Default::default()
            });
            Kind::Detection(wire::Detection { rules: words.collect(), ..Default::default() })
        }
        (Class::Alert, 5) => Kind::Gap(wire::Gap::default()),
        (Class::Alert, 6) => Kind::Health(wire::Health::default()),
        (Class::Alert, _) => Kind::Audit(wire::Audit::default()),
        (Class::Telemetry, 0..4) => Kind::File(wire::FileEvent::default()),
        (Class::Telemetry, _) => Kind::Process(wire::ProcessEvent::default()),
    };
    let far = [-4_000 * DAY_NS, -DAY_NS, 90 * MINUTE_NS, 3_650 * DAY_NS, i64::MIN / 2][random.below(5)];
    let near = i64::try_from(random.below(1_000)).unwrap() * 1_000_000_000;
    let time_unix_ns = near_unix_ns + if random.below(200) == 0 { far } else { near };
    let severity = [1, 1, 1, 1, 2, 2, 3, 4, 5, -7][random.below(10)];
    let is_unknown = random.below(300) == 0;
    wire::Event { kind: (!is_unknown).then_some(kind), severity, time_unix_ns, ..Default::default() }
}

struct Writing {
    next: BTreeMap<(usize, Class), u64>,
    random: Random,
}

impl Writing {
    fn arrival(&mut self, turn: usize) -> Arrival {
        // The first agents send much, the last hardly ever.
        let number = self.random.below(AGENTS).min(self.random.below(AGENTS));
        let class = Class::ALL[self.random.below(2)];
        let near = NOON + i64::try_from(turn).unwrap() * MINUTE_NS / 8;
        let events: Vec<wire::Event> =
            (0..1 + self.random.below(120)).map(|_| event(class, near, &mut self.random)).collect();
        let first_seq = self.next.get(&(number, class)).copied().unwrap_or(1);
        self.next.insert((number, class), first_seq + events.len() as u64);
        let events = events.into_iter().map(|event| Received { body: event.encode_to_vec(), event });
        Arrival { agent: agent(number), epoch: 7, class, first_seq, skipped: 0, events: events.collect() }
    }
}

fn filter(random: &mut Random) -> Filter {
    let some = |random: &mut Random| random.below(3) == 0;
    let mut filter = Filter::default();
    if some(random) {
        let several = [1, 1, 2, AGENTS][random.below(4)];
        filter.agents = Some((0..several).map(|_| agent(random.below(AGENTS + 2))).collect());
    }
    if random.below(2) == 0 {
        filter.classes = vec![Class::ALL[random.below(2)]];
    }
    if some(random) {
        filter.kinds = (0..1 + random.below(2)).map(|_| KINDS[random.below(6)].to_owned()).collect();
    }
    if some(random) {
        filter.severity_min = wire::Severity::try_from(i32::try_from(random.below(6)).unwrap()).ok();
    }
    if some(random) {
        let words =
            [format!("rule {}", random.below(520)), "R-1".into(), "R-2\nx".into(), "".into(), "rule".into()];
        filter.rule = words.into_iter().nth([0, 0, 0, 1, 2, 3, 4][random.below(7)]);
    }
    let mut moment = || {
        let near = i64::try_from(random.below(400)).unwrap() * 1_234_567_891 * 10;
        NOON + near + [0, 0, 0, -4_000 * DAY_NS, 3_650 * DAY_NS][random.below(5)]
    };
    let times = [moment(), moment()];
    filter.since_unix_ns = some(random).then_some(times[0]);
    filter.until_unix_ns = some(random).then_some(times[1]);
    filter
}

/// What [`Reader::page`] promises, asked of one event.
fn passes(filter: &Filter, stored: &Stored) -> bool {
    let event = wire::Event::decode(stored.body.as_slice()).unwrap();
    let is_matched = |rule: &String| match &event.kind {
        Some(Kind::Detection(detection)) => {
            detection.rules.iter().any(|found| found.name == *rule || found.id == *rule)
        }
        _ => false,
    };
    filter.agents.as_ref().is_none_or(|agents| agents.contains(&stored.event.agent))
        && (filter.classes.is_empty() || filter.classes.contains(&stored.event.class))
        && (filter.kinds.is_empty() || filter.kinds.iter().any(|kind| kind == kind_name(event.kind.as_ref())))
        && filter.severity_min.is_none_or(|least| event.severity >= least as i32)
        && filter.rule.as_ref().is_none_or(is_matched)
        && filter.since_unix_ns.is_none_or(|since| event.time_unix_ns >= since)
        && filter.until_unix_ns.is_none_or(|until| event.time_unix_ns < until)
}

/// Three segments and a part in one day, one and a part in the next, opened again in between.
fn fill(folder: &Path, seed: u64) {
    let mut writing = Writing { next: BTreeMap::new(), random: Random(seed) };
    let mut turn = 0;
    for (now, rows) in
        [(NOON, SEGMENT_IDS * 5 / 4), (NOON, SEGMENT_IDS * 7 / 2), (NOON + DAY_NS, SEGMENT_IDS * 5)]
    {
        let mut db = Db::open(folder, None, Memory::default(), now).unwrap();
        while db.highest_id() < rows {
            let arrivals: Vec<Arrival> = (0..8).map(|_| writing.arrival(turn)).collect();
            let answers = db.commit(&arrivals, now).unwrap();
            assert!(answers.iter().all(|answer| matches!(answer, Committed::Durable(_))), "seed {seed}");
            turn += 1;
        }
    }
}

#[test]
fn filters_find_by_the_index_what_looking_at_every_row_finds() {
    for seed in 1..=2 {
        println!("seed {seed}");
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), seed);
        let mut reader = Reader::new(folder.path()).unwrap();
        let mut all: Vec<Stored> = Vec::new();
        loop {
            let page = reader.after(all.last().map_or(0, |row| row.id), &[], 10_000).unwrap();
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        assert!(all.len() as u64 >= SEGMENT_IDS * 5 - 1000, "{} rows", all.len());
        let mut random = Random(seed + 1000);
        let mut empty = 0;
        for turn in 0..150 {
            let filter = filter(&mut random);
            let before = (random.below(2) == 0).then(|| random.below(all.len()) as u64);
            let limit = [1, 7, 300, 10_000][random.below(4)];
            let newest = all.iter().rev().filter(|row| before.is_none_or(|before| row.id < before));
            let expected: Vec<u64> =
                newest.filter(|row| passes(&filter, row)).take(limit).map(|row| row.id).collect();
            let found: Vec<u64> =
                reader.page(&filter, before, limit).unwrap().into_iter().map(|row| row.id).collect();
            assert_eq!(found, expected, "seed {seed}, turn {turn}: {filter:?} before {before:?}");
            empty += usize::from(found.is_empty());
        }
        assert!((5..145).contains(&empty), "seed {seed}: {empty} filters find nothing");
        for _ in 0..200 {
            let row = &all[random.below(all.len())];
            assert_eq!(reader.one(row.event).unwrap().as_ref(), Some(row), "seed {seed}");
        }
        let beyond = EventId { agent: agent(0), epoch: 7, class: Class::Alert, seq: u64::from(u32::MAX) };
        assert_eq!(reader.one(beyond).unwrap(), None);
        let mut expected: BTreeMap<(AgentId, Class, &str, i32), u64> = BTreeMap::new();
        for row in &all {
            let event = wire::Event::decode(row.body.as_slice()).unwrap();
            let key = (row.event.agent, row.event.class, kind_name(event.kind.as_ref()), event.severity);
            *expected.entry(key).or_default() += 1;
        }
        let counts = reader.counts().unwrap().into_iter();
        let counts: BTreeMap<_, _> = counts
            .map(|count| ((count.agent, count.class, count.kind, count.severity), count.events))
            .collect();
        assert_eq!(counts, expected, "seed {seed}");
    }
}

/// A filter that nothing passes reads no row of a segment that is complete.
#[test]
fn every_complete_segment_has_an_index_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 3);
    for (day, segments) in file::list(folder.path()).unwrap().iter().zip([0..=3_u64, 3..=4]) {
        let db = file::open_to_read(&day.path).unwrap();
        let mut select = db.prepare("SELECT segment FROM segment ORDER BY segment").unwrap();
        let found: Vec<u64> = select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let newest: u64 = super::segments::newest(&db).unwrap().unwrap();
        // The first day has ended; of the second the newest segment is not complete.
        let expected: Vec<u64> = segments.filter(|segment| day.number == 1 || *segment < newest).collect();
        assert_eq!(found, expected, "{}", day.path.display());
    }
}

/// A file of a schema before is read, and a new one begun beside it: marks and ids go on.
#[test]
fn a_file_of_an_older_schema_is_read_and_no_more_written() {
    for schema in [include_str!("schema/0001.sql"), include_str!("schema/0002.sql")] {
        older_is_read(schema);
    }
}

fn older_is_read(schema: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut writing = Writing { next: BTreeMap::new(), random: Random(9) };
    let mut db = Db::open(folder.path(), None, Memory::default(), NOON).unwrap();
    let first = writing.arrival(0);
    db.commit(std::slice::from_ref(&first), NOON).unwrap();
    let path = db.path().to_path_buf();
    drop(db);
    make_older(&path, schema);
    let mut db = Db::open(folder.path(), None, Memory::default(), NOON).unwrap();
    assert_ne!(db.path(), path);
    let again = db.commit(&[first.clone(), writing.arrival(1)], NOON).unwrap();
    assert_eq!(again[0], Committed::Durable(first.events.len() as u64), "its mark is known");
    let rows = Reader::new(folder.path()).unwrap().after(0, &[], 10_000).unwrap();
    let ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
    assert!(ids.len() > first.events.len());
    let id = rows[0].event;
    assert_eq!(Reader::new(folder.path()).unwrap().one(id).unwrap().unwrap().id, 1);
}

/// The same rows in a file as a version before made it.
fn make_older(path: &Path, schema: &str) {
    let newer = path.with_extension("newer");
    std::fs::rename(path, &newer).unwrap();
    let older = rusqlite::Connection::open(path).unwrap();
    older.execute_batch(schema).unwrap();
    older.execute("ATTACH ? AS newer", [newer.to_str().unwrap()]).unwrap();
    let row = "id, lane, seq, received, happened, kind, severity, rules, body";
    for (table, columns) in [
        ("file", "only, number, label, first_id, next_id"),
        ("lane", "lane, agent, epoch, class, seq"),
        ("hole", "*"),
        ("alert", row),
        ("telemetry", row),
    ] {
        older.execute_batch(&format!("INSERT INTO {table} SELECT {columns} FROM newer.{table}")).unwrap();
    }
    older.execute_batch("DETACH newer").unwrap();
    older.pragma_update(None, "application_id", file::APPLICATION_ID).unwrap();
    let version = if schema.contains("CREATE TABLE segment") { 2 } else { 1 };
    older.pragma_update(None, "user_version", version).unwrap();
    std::fs::remove_file(newer).unwrap();
}

/// Many agents at once: few commits, and nobody is served a second time while another waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_committed_together_and_each_gets_its_share() {
    const SENDERS: usize = 2 * REQUESTS_MAX;
    const ROUNDS: u64 = 6;
    let folder = tempfile::tempdir().unwrap();
    let store = open(Config { folder: folder.path().to_path_buf(), retention_days: None }).unwrap();
    let served: Arc<Vec<AtomicU64>> = Arc::new((0..SENDERS).map(|_| AtomicU64::new(0)).collect());
    let mut commits = store.handle().changed();
    let counting = tokio::spawn(async move {
        let mut count = 0_u64;
        while commits.changed().await.is_ok() {
            count += 1;
        }
        count
    });
    let mut senders = tokio::task::JoinSet::new();
    let all_are_there = Arc::new(tokio::sync::Barrier::new(SENDERS));
    for number in 0..SENDERS {
        let (handle, served, all_are_there) = (store.handle(), served.clone(), all_are_there.clone());
        senders.spawn(async move {
            let agent = AgentId((number as u128).to_be_bytes());
            let mut most_ahead = 0;
            all_are_there.wait().await;
            for seq in 1..=ROUNDS {
                let event =
                    wire::Event { kind: Some(Kind::Audit(wire::Audit::default())), ..Default::default() };
                let events = vec![Received { body: event.encode_to_vec(), event }];
                let arrival =
                    Arrival { agent, epoch: 1, class: Class::Alert, first_seq: seq, skipped: 0, events };
                assert_eq!(handle.commit(arrival).await.unwrap(), Committed::Durable(seq));
                served[number].store(seq, Ordering::Relaxed);
                let least = served.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap();
                most_ahead = most_ahead.max(seq - least);
            }
            most_ahead
        });
    }
    let mut most_ahead = 0;
    while let Some(ahead) = senders.join_next().await {
        most_ahead = most_ahead.max(ahead.unwrap());
    }
    tokio::task::spawn_blocking(move || store.join()).await.unwrap();
    drop(served);
    let commits = counting.await.unwrap();
    assert!(
        commits <= SENDERS as u64 * ROUNDS / 20,
        "{commits} commits for {} requests",
        SENDERS as u64 * ROUNDS
    );
    assert!(most_ahead <= 3, "one agent was {most_ahead} ahead of another");
}
