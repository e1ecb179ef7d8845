//! The store: once, in order, over days, damage and restarts; and what filters find. `damage` breaks days page by page.

use super::db::{Db, Memory};
use super::{Arrival, Committed, Config, Filter, Reader, Received, file, open};
use prost::Message;
use std::fs;
use std::path::Path;
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire::{self, event::Kind};

mod damage;

const DAY_NS: i64 = 86_400_000_000_000;
const NOON: i64 = 20_000 * DAY_NS + DAY_NS / 2;

fn detection(rule: &str, id: &str, severity: wire::Severity, time_unix_ns: i64) -> wire::Event {
    let rule = wire::RuleMatch { name: rule.into(), id: id.into(), ..Default::default() };
    let detection = wire::Detection { rules: vec![rule], ..Default::default() };
    wire::Event {
        kind: Some(Kind::Detection(detection)),
        severity: severity as i32,
        time_unix_ns,
        ..Default::default()
    }
}

fn audit() -> wire::Event {
    wire::Event { kind: Some(Kind::Audit(wire::Audit::default())), ..Default::default() }
}

fn arrival(agent: u8, class: Class, first_seq: u64, skipped: u64, events: Vec<wire::Event>) -> Arrival {
    let events = events.into_iter().map(|event| Received { body: event.encode_to_vec(), event }).collect();
    Arrival { agent: AgentId([agent; 16]), epoch: u64::MAX - 1, class, first_seq, skipped, events }
}

fn run(first_seq: u64, count: usize) -> Arrival {
    arrival(1, Class::Alert, first_seq, 0, vec![audit(); count])
}

fn store(folder: &Path, now: i64) -> Db {
    Db::open(folder, None, Memory::default(), now).unwrap()
}

fn commit(db: &mut Db, arrival: Arrival, now: i64) -> Committed {
    db.commit(&[arrival], now).unwrap().remove(0)
}

fn numbers(folder: &Path) -> Vec<u64> {
    let rows = Reader::new(folder).unwrap().after(0, &[], 10_000).unwrap();
    assert!(rows.windows(2).all(|pair| pair[0].id < pair[1].id));
    rows.into_iter().map(|row| row.event.seq).collect()
}

#[test]
fn resending_is_harmless_and_a_hole_refused_unless_declared() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = store(folder.path(), NOON);
    assert_eq!(commit(&mut db, run(2, 1), NOON), Committed::Hole { expected: 1 });
    assert_eq!(commit(&mut db, run(1, 5), NOON), Committed::Durable(5));
    assert_eq!(commit(&mut db, run(1, 5), NOON), Committed::Durable(5));
    assert_eq!(commit(&mut db, run(4, 4), NOON), Committed::Durable(7));
    assert_eq!(commit(&mut db, run(9, 1), NOON), Committed::Hole { expected: 8 });
    assert_eq!(commit(&mut db, arrival(1, Class::Alert, 10, 2, vec![audit()]), NOON), Committed::Durable(10));
    assert_eq!(commit(&mut db, run(u64::MAX, 1), NOON), Committed::Hole { expected: 11 });
    assert_eq!(numbers(folder.path()), [1, 2, 3, 4, 5, 6, 7, 10]);
    let side = rusqlite::Connection::open(db.path()).unwrap();
    let hole: (u64, u64) = side
        .query_row("SELECT first_seq, last_seq FROM hole", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(hole, (8, 9));
}

#[test]
fn the_log_is_moved_to_the_file_bit_by_bit_when_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = store(folder.path(), NOON);
    let size = |db: &Db| fs::metadata(db.path()).unwrap().len();
    let empty = size(&db);
    let (mut before, mut moved, mut last) = (empty, 0, 0);
    for seq in 1..=300 {
        let mut event = audit();
        event.host_name = vec![b'h'; 200];
        commit(&mut db, arrival(1, Class::Alert, 1 + (seq - 1) * 20, 0, vec![event; 20]), NOON);
        db.checkpoint_when_due().unwrap();
        if size(&db) > before {
            assert!(seq - last > 10, "not at every commit: at {last} and {seq}");
            (before, moved, last) = (size(&db), moved + 1, seq);
        }
    }
    assert!(moved >= 4, "{moved} times, {empty} to {before} bytes");
    // Nothing is left for a commit to do: SQLite's own turn never came.
    assert!(file::sizes(db.path()).1 < 2048 * 4096, "{:?}", file::sizes(db.path()));
    assert_eq!(numbers(folder.path()).len(), 6000);
}

#[test]
fn one_group_may_hold_many_runs_of_one_lane() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = store(folder.path(), NOON);
    let answers = db.commit(&[run(1, 2), run(3, 2), run(9, 1), run(2, 4)], NOON).unwrap();
    let expected = [
        Committed::Durable(2),
        Committed::Durable(4),
        Committed::Hole { expected: 5 },
        Committed::Durable(5),
    ];
    assert_eq!(answers, expected);
    assert_eq!(numbers(folder.path()), [1, 2, 3, 4, 5]);
}

#[test]
fn marks_and_ids_go_on_over_days_restarts_and_clocks_that_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for (turn, days) in [0, 1, -5, 4, 2, 9].into_iter().enumerate() {
        let now = NOON + days * DAY_NS;
        let mut db = store(folder.path(), now);
        let first = turn as u64 * 2 + 1;
        assert_eq!(
            commit(&mut db, run(first.saturating_sub(1).max(1), 3), now),
            Committed::Durable(first.saturating_sub(1).max(1) + 2)
        );
        expected = (1..=first.saturating_sub(1).max(1) + 2).collect();
    }
    assert_eq!(numbers(folder.path()), expected);
    let labels: Vec<String> = file::list(folder.path()).unwrap().into_iter().map(|day| day.label).collect();
    assert_eq!(labels.len(), 4, "{labels:?}");
    assert!(labels.windows(2).all(|pair| pair[0] < pair[1]), "{labels:?}");
}

#[test]
fn retention_deletes_whole_days_and_keeps_marks() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), Some(2), Memory::default(), NOON).unwrap();
    for day in 0..5 {
        commit(&mut db, run(day + 1, 1), NOON + day.cast_signed() * DAY_NS);
    }
    assert_eq!(numbers(folder.path()), [4, 5]);
    assert_eq!(db.durable(AgentId([1; 16]), u64::MAX - 1), [(Class::Alert, 5)]);
}

/// Damage anywhere in the newest day never stops the collector, and what it had acknowledged is never taken
/// twice while it runs.
#[test]
fn damage_at_any_offset_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = store(folder.path(), NOON);
    commit(&mut db, run(1, 3), NOON);
    commit(&mut db, run(4, 300), NOON + DAY_NS);
    let (path, highest) = (db.path().to_path_buf(), db.highest_id());
    drop(db);
    let whole = fs::read(&path).unwrap();
    let before = fs::read(&file::list(folder.path()).unwrap()[0].path).unwrap();
    let mut kept = 0;
    for offset in (0..whole.len()).step_by(whole.len() / 40) {
        for (cut, remembers) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut bytes = whole.clone();
            if cut {
                bytes.truncate(offset);
            } else {
                let end = (offset + 64).min(bytes.len());
                bytes[offset..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
            }
            let copy = tempfile::tempdir().unwrap();
            fs::write(
                file::list(folder.path()).unwrap()[0]
                    .path
                    .file_name()
                    .map(|name| copy.path().join(name))
                    .unwrap(),
                &before,
            )
            .unwrap();
            fs::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
            let memory = if remembers {
                let key = (AgentId([1; 16]), u64::MAX - 1, Class::Alert);
                Memory { marks: [(key, super::db::Mark { lane: 1, seq: 303 })].into(), next_id: highest + 1 }
            } else {
                Memory::default()
            };
            let mut db = Db::open(copy.path(), None, memory, NOON + DAY_NS).unwrap();
            let durable = db.durable(AgentId([1; 16]), u64::MAX - 1).first().map_or(0, |(_, seq)| *seq);
            if remembers {
                assert_eq!(durable, 303, "offset {offset}, cut {cut}");
            }
            assert!(durable >= 3, "offset {offset}, cut {cut}: the day before knows 3, this is {durable}");
            if durable < u64::from(u32::MAX) {
                assert_eq!(
                    commit(&mut db, run(durable + 1, 1), NOON + DAY_NS),
                    Committed::Durable(durable + 1)
                );
                assert!(db.highest_id() > highest || durable < 303, "ids are not given twice");
            }
            drop(db);
            let rows = Reader::new(copy.path()).unwrap().after(0, &[], 10_000).unwrap();
            kept += usize::from(rows.len() > 100);
        }
    }
    assert!(kept > 20, "rows were kept in {kept} cases only");
}

#[test]
fn foreign_and_newer_files_are_refused_by_name() {
    for (pragma, expected) in [("application_id", "another program"), ("user_version", "newer")] {
        let folder = tempfile::tempdir().unwrap();
        let path = store(folder.path(), NOON).path().to_path_buf();
        rusqlite::Connection::open(&path).unwrap().pragma_update(None, pragma, 99).unwrap();
        let error = Db::open(folder.path(), None, Memory::default(), NOON).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("events-00000001"), "{error}");
    }
}

#[test]
fn filters_find_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = store(folder.path(), NOON);
    let low = detection("webshell", "R1", wire::Severity::Low, 100);
    let high = detection("web", "R2", wire::Severity::High, 200);
    let file = wire::Event { kind: Some(Kind::File(wire::FileEvent::default())), ..Default::default() };
    commit(&mut db, arrival(1, Class::Alert, 1, 0, vec![low, high, audit()]), NOON);
    commit(&mut db, arrival(2, Class::Alert, 1, 0, vec![audit()]), NOON + DAY_NS);
    commit(&mut db, arrival(2, Class::Telemetry, 1, 0, vec![file; 2]), NOON + DAY_NS);
    let mut reader = Reader::new(folder.path()).unwrap();
    let all = Filter::default;
    let kinds = || vec!["file".to_owned(), "audit".to_owned()];
    let cases: [(Filter, &[u64]); 13] = [
        (all(), &[6, 5, 4, 3, 2, 1]),
        (Filter { agents: Some(vec![AgentId([2; 16])]), ..all() }, &[6, 5, 4]),
        (Filter { agents: Some(Vec::new()), ..all() }, &[]),
        (Filter { classes: vec![Class::Alert], ..all() }, &[4, 3, 2, 1]),
        (Filter { kinds: vec!["file".into(), "audit".into()], ..all() }, &[6, 5, 4, 3]),
        (Filter { classes: vec![Class::Alert], kinds: kinds(), ..all() }, &[4, 3]),
        (Filter { classes: vec![Class::Telemetry], kinds: kinds(), ..all() }, &[6, 5]),
        (Filter { classes: vec![Class::Alert], kinds: vec!["file".into()], ..all() }, &[]),
        (Filter { kinds: vec!["nonsense".into()], ..all() }, &[]),
        (Filter { severity_min: Some(wire::Severity::Medium), ..all() }, &[2]),
        (Filter { rule: Some("web".into()), ..all() }, &[2]),
        (Filter { rule: Some("R1".into()), ..all() }, &[1]),
        (Filter { since_unix_ns: Some(100), until_unix_ns: Some(200), ..all() }, &[1]),
    ];
    for (filter, expected) in cases {
        let ids = |rows: Vec<super::Stored>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(ids(reader.page(&filter, None, 100).unwrap()), expected, "{filter:?}");
        let mut paged = Vec::new();
        while let [row] = &reader.page(&filter, paged.last().copied(), 1).unwrap()[..] {
            paged.push(row.id);
        }
        assert_eq!(paged, expected, "one by one: {filter:?}");
    }
    let id = EventId { agent: AgentId([2; 16]), epoch: u64::MAX - 1, class: Class::Telemetry, seq: 2 };
    assert_eq!(reader.one(id).unwrap().unwrap().event, id);
    assert_eq!(reader.one(EventId { seq: 3, ..id }).unwrap(), None);
    assert_eq!(reader.after(2, &[Class::Alert], 1).unwrap()[0].id, 3);
    assert_eq!(reader.counts().unwrap().iter().map(|count| count.events).sum::<u64>(), 6);
}

#[tokio::test]
async fn the_thread_answers_after_commit_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(Config { folder: folder.path().to_path_buf(), retention_days: None }).unwrap();
    let handle = store.handle();
    let (one, two) = tokio::join!(handle.commit(run(1, 2)), handle.commit(run(3, 2)));
    assert_eq!((one.unwrap(), two.unwrap()), (Committed::Durable(2), Committed::Durable(4)));
    assert_eq!(handle.durable(AgentId([1; 16]), u64::MAX - 1).await.unwrap(), [(Class::Alert, 4)]);
    assert_eq!(*handle.changed().borrow(), 4);
    assert_eq!((handle.figures().events, handle.figures().days), (4, 1));
    tokio::task::spawn_blocking(move || store.join()).await.unwrap();
    assert!(handle.commit(run(5, 1)).await.is_err());
    assert_eq!(numbers(folder.path()), [1, 2, 3, 4]);
}

/// The disk refuses a commit: nobody is acknowledged, and the store goes on when it can.
#[tokio::test]
async fn a_commit_that_fails_acknowledges_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(Config { folder: folder.path().to_path_buf(), retention_days: None }).unwrap();
    let handle = store.handle();
    handle.commit(run(1, 1)).await.unwrap();
    let side = rusqlite::Connection::open(&file::list(folder.path()).unwrap()[0].path).unwrap();
    side.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON alert BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .unwrap();
    assert!(handle.commit(run(2, 1)).await.unwrap_err().to_string().contains("the disk is full"));
    side.execute_batch("DROP TRIGGER full").unwrap();
    let answer = loop {
        if let Ok(answer) = handle.commit(run(2, 1)).await {
            break answer;
        }
    };
    assert_eq!(answer, Committed::Durable(2));
    assert_eq!(numbers(folder.path()), [1, 2]);
}
