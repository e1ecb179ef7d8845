//! The outbox against what disks and collectors do: the bound, damage at any offset, foreign files, epochs,
//! and the thread from channel to disk. `disk` measures the files, `damage` breaks them page by page.

use super::db::{Answer, BYTES_MIN, Db, READ_BYTES_MAX, Run, State, Work};
use super::gaps::GAPS_APART_MAX;
use super::{Config, file, start};
use crate::host::{Host, Moment};
use crate::telemetry::Counters;
use prost::Message;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::{self, event::Kind};

mod damage;
mod disk;

fn host() -> Host {
    Host { name: b"test".to_vec(), boot_id: "b".into(), os: String::new() }
}

fn alert(text: &str) -> wire::Event {
    let audit = wire::Audit { action: "test".into(), detail: text.into(), ..Default::default() };
    wire::Event { kind: Some(Kind::Audit(audit)), ..Default::default() }
}

fn file_event(text: &str) -> wire::Event {
    let file = wire::FileEvent { detail: text.into(), ..Default::default() };
    wire::Event { kind: Some(Kind::File(file)), ..Default::default() }
}

fn process_event(text: &str) -> wire::Event {
    let process = wire::Process { executable: text.into(), ..Default::default() };
    let event = wire::ProcessEvent { process: Some(process), ..Default::default() };
    wire::Event { kind: Some(Kind::Process(event)), ..Default::default() }
}

fn open(folder: &Path) -> Db {
    Db::open(folder, 1 << 30, host(), None).unwrap()
}

fn append(db: &mut Db, events: Vec<wire::Event>) {
    db.apply(&[Work::Append(events)], Moment::now()).unwrap();
}

fn read(db: &mut Db, class: Class, from: u64) -> Run {
    let work = [Work::Read { class, from, bytes_max: READ_BYTES_MAX }];
    match db.apply(&work, Moment::now()).unwrap().0.pop() {
        Some(Answer::Run(run)) => run,
        other => panic!("{other:?}"),
    }
}

/// Everything of a class, over all holes.
fn all(db: &mut Db, class: Class) -> Vec<(u64, wire::Event)> {
    let (mut found, mut from) = (Vec::new(), 1);
    loop {
        let run = read(db, class, from);
        if run.events.is_empty() {
            return found;
        }
        from = run.first_seq + run.events.len() as u64;
        found.extend(
            (run.first_seq..)
                .zip(run.events.iter().map(|body| wire::Event::decode(body.as_slice()).unwrap())),
        );
    }
}

fn gaps(db: &mut Db) -> Vec<wire::Gap> {
    let only = |(_, event): (u64, wire::Event)| match event.kind {
        Some(Kind::Gap(gap)) => Some(gap),
        _ => None,
    };
    all(db, Class::Alert).into_iter().filter_map(only).collect()
}

fn forget(db: &mut Db, class: Class, upto: u64) {
    db.apply(&[Work::Forget { class, epoch: db.epoch(), upto }], Moment::now()).unwrap();
}

#[test]
fn numbers_are_never_reused_not_even_after_emptying_and_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    append(&mut db, vec![alert("1"), alert("2")]);
    forget(&mut db, Class::Alert, 2);
    let epoch = db.epoch();
    drop(db);
    let mut db = open(folder.path());
    assert_eq!(db.epoch(), epoch);
    append(&mut db, vec![alert("3")]);
    let run = read(&mut db, Class::Alert, 3);
    assert_eq!((run.first_seq, run.skipped, run.events.len()), (3, 0, 1));
    assert_eq!(db.waiting().0, 1);
}

#[test]
fn the_lowest_goes_first_and_gaps_count_all_that_went() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), BYTES_MIN, host(), None).unwrap();
    let long = "x".repeat(400);
    append(&mut db, vec![alert("kept"), process_event(&long)]);
    for _ in 0..150 {
        append(&mut db, vec![file_event(&long); 20]);
    }
    let telemetry = all(&mut db, Class::Telemetry);
    assert!(matches!(telemetry[0].1.kind, Some(Kind::Process(_))), "files go before processes");
    assert!(telemetry.len() > 300 && telemetry.len() < 3001);
    let found = gaps(&mut db);
    assert_eq!(found.len(), 1, "a loss that goes on is one gap");
    assert_eq!(found[0].count, Some(3001 - telemetry.len() as u64));
    assert!(matches!(all(&mut db, Class::Alert)[0].1.kind, Some(Kind::Audit(_))), "an alert goes last");
    for _ in 0..100 {
        append(&mut db, vec![alert(&long); 20]);
    }
    assert_eq!(all(&mut db, Class::Telemetry), Vec::new());
    let alerts = all(&mut db, Class::Alert);
    let kept = alerts.iter().filter(|(_, event)| matches!(event.kind, Some(Kind::Audit(_)))).count() as u64;
    let found = gaps(&mut db);
    let sum = |class: Class| {
        found.iter().filter(|gap| gap.class == class.to_wire()).map(|gap| gap.count.unwrap()).sum::<u64>()
    };
    assert_eq!(sum(Class::Telemetry), 3001, "{found:?}");
    assert_eq!(sum(Class::Alert) + kept, 2001, "{found:?}");
}

/// Whoever reads on over a hole meets the gap that explains it before anything that follows.
#[test]
fn the_gap_of_lost_alerts_stands_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), BYTES_MIN, host(), None).unwrap();
    for _ in 0..100 {
        append(&mut db, vec![alert(&"x".repeat(400)); 20]);
    }
    let run = read(&mut db, Class::Alert, 1);
    assert!(run.skipped > 500, "{}", run.skipped);
    let told = |run: &Run| match wire::Event::decode(run.events[0].as_slice()).unwrap().kind {
        Some(Kind::Gap(gap)) => (gap.first_seq, gap.last_seq, gap.count.unwrap()),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&run), (1, run.first_seq, run.first_seq));
    // It was read: it may be under way. What goes now is told by another.
    for _ in 0..20 {
        append(&mut db, vec![alert(&"x".repeat(400)); 20]);
    }
    let again = read(&mut db, Class::Alert, 1);
    assert_eq!(
        (again.first_seq, told(&again)),
        (run.first_seq, told(&run)),
        "what was sent is never changed"
    );
    let next = read(&mut db, Class::Alert, run.first_seq + 1);
    assert!(next.skipped > 0);
    assert_eq!(told(&next), (run.first_seq + 1, next.first_seq, next.first_seq - run.first_seq));
    assert_eq!(again.events.len(), 1, "the hole follows");
}

#[test]
fn telemetry_over_a_hole_waits_for_the_alerts() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), BYTES_MIN, host(), None).unwrap();
    append(&mut db, vec![alert("1")]);
    assert_eq!(read(&mut db, Class::Telemetry, 1).alerts_first, 0);
    for _ in 0..100 {
        append(&mut db, vec![file_event(&"x".repeat(400)); 20]);
    }
    let run = read(&mut db, Class::Telemetry, 1);
    assert!(run.skipped > 0);
    assert_eq!(run.alerts_first, 2, "the gap is the second alert");
    assert_eq!(read(&mut db, Class::Telemetry, run.first_seq).alerts_first, 0);
}

/// A sensor that overflows every second for a week.
#[test]
fn gaps_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), 4 << 20, host(), None).unwrap();
    let gap = |count, reason: wire::GapReason, at: i64| {
        let (from_unix_ns, to_unix_ns) = (at, at + 1);
        let gap = wire::Gap { reason: reason as i32, count, from_unix_ns, to_unix_ns, ..Default::default() };
        wire::Event { kind: Some(Kind::Gap(gap)), ..Default::default() }
    };
    append(&mut db, vec![alert("kept")]);
    for at in 0..2000 {
        append(
            &mut db,
            vec![gap(Some(3), wire::GapReason::KernelQueue, at), gap(None, wire::GapReason::Descriptors, at)],
        );
    }
    let found = gaps(&mut db);
    assert!(found.len() as u64 <= GAPS_APART_MAX + 2, "{}", found.len());
    let of = |reason: wire::GapReason| found.iter().filter(move |gap| gap.reason == reason as i32);
    assert_eq!(of(wire::GapReason::KernelQueue).map(|gap| gap.count.unwrap()).sum::<u64>(), 6000);
    assert_eq!(of(wire::GapReason::KernelQueue).map(|gap| gap.to_unix_ns).max(), Some(2000));
    assert_eq!(of(wire::GapReason::Descriptors).next_back().unwrap().count, None);
    // Sent, so a new one begins; and that is so over a restart.
    for _ in 0..2 {
        append(&mut db, vec![gap(Some(1), wire::GapReason::KernelQueue, 5000)]);
        drop(db);
        db = Db::open(folder.path(), 4 << 20, host(), None).unwrap();
    }
    let added: Vec<_> = gaps(&mut db).into_iter().filter(|gap| gap.from_unix_ns == 5000).collect();
    assert_eq!(added.len(), 1, "{added:?}");
    assert_eq!(added[0].count, Some(2));
}

#[test]
fn what_is_set_aside_leaves_a_hole_that_a_gap_explains() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    append(&mut db, vec![alert("1"), alert("2"), alert("3"), alert("4")]);
    let epoch = db.epoch();
    let work = |epoch| Work::SetAside {
        class: Class::Alert,
        epoch,
        first: 2,
        last: 3,
        code: 1,
        reason: "é".repeat(9000),
    };
    db.apply(&[work(epoch ^ 1)], Moment::now()).unwrap();
    assert_eq!(all(&mut db, Class::Alert).len(), 4, "another epoch's word changes nothing");
    db.apply(&[work(epoch)], Moment::now()).unwrap();
    let run = read(&mut db, Class::Alert, 2);
    assert_eq!(
        (run.first_seq, run.skipped, run.events.len()),
        (3, 1, 2),
        "the gap stands before what follows"
    );
    let gaps = gaps(&mut db);
    assert_eq!((gaps[0].first_seq, gaps[0].last_seq, gaps[0].count), (2, 3, Some(2)));
    assert_eq!(gaps[0].reason, wire::GapReason::Poison as i32);
}

#[test]
fn a_collector_that_went_back_is_reported_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    append(&mut db, vec![alert("1"), alert("2"), alert("3")]);
    forget(&mut db, Class::Alert, 3);
    for _ in 0..2 {
        let work = Work::Restored { class: Class::Alert, epoch: db.epoch(), durable: 1 };
        db.apply(&[work], Moment::now()).unwrap();
    }
    let gaps = gaps(&mut db);
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].first_seq, gaps[0].last_seq, gaps[0].count), (2, 3, Some(2)));
}

#[test]
fn a_new_epoch_numbers_what_waits_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    append(&mut db, (0..9).map(|n| file_event(&n.to_string())).collect());
    forget(&mut db, Class::Telemetry, 4);
    let old = db.epoch();
    db.apply(&[Work::NewEpoch], Moment::now()).unwrap();
    assert_ne!(db.epoch(), old);
    let run = read(&mut db, Class::Telemetry, 1);
    assert_eq!((run.first_seq, run.events.len()), (1, 5));
    let State { classes, .. } = db.state().unwrap();
    assert_eq!((classes[1].acked, classes[1].first_unacked, classes[1].last), (0, 1, 5));
}

#[test]
fn another_agent_s_numbers_are_given_anew_and_one_s_own_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    let state_for = |db: &mut Db, agent: u8| {
        let (answers, _) = db.apply(&[Work::StateFor(AgentId([agent; 16]))], Moment::now()).unwrap();
        let Answer::State(state) = answers.into_iter().next().unwrap() else { panic!("no state") };
        state
    };
    append(&mut db, (0..9).map(|n| file_event(&n.to_string())).collect());
    forget(&mut db, Class::Telemetry, 4);
    let before = db.state().unwrap();
    assert_eq!(state_for(&mut db, 1), before, "of nobody yet: an outbox of an older version is its agent's");
    drop(db);
    let mut db = open(folder.path());
    let written = || fs::read(folder.path().join(file::FILE_NAME).with_extension("db-wal")).unwrap();
    let log = written();
    assert_eq!(state_for(&mut db, 1), before, "the same after a restart");
    assert_eq!(written(), log, "and nothing is written for that");
    let after = state_for(&mut db, 2);
    assert!(after.epoch != before.epoch && after.epoch == db.epoch());
    let numbers = |state: &State| {
        state.classes.iter().map(|one| (one.acked, one.first_unacked, one.last)).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&after), [(0, 1, 1), (0, 1, 5)], "what waited, and a word on it");
    assert!(gaps(&mut db).is_empty(), "nothing is lost by that");
    let words = all(&mut db, Class::Alert);
    assert!(
        matches!(&words[0].1.kind, Some(Kind::Health(health)) if health.state() == wire::HealthState::Ok),
        "{words:?}"
    );
    assert_eq!(state_for(&mut db, 2), after, "once");
}

/// Damage anywhere never panics and never blocks the start; what is found afterwards was there before.
#[test]
fn damage_at_any_offset_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    let events: Vec<_> = (0..200)
        .map(|n| if n % 2 == 0 { alert(&format!("a{n}")) } else { file_event(&"x".repeat(99)) })
        .collect();
    append(&mut db, events);
    drop(db); // the last close empties the write-ahead log
    let whole = fs::read(folder.path().join(file::FILE_NAME)).unwrap();
    let mut salvaged = 0;
    for (number, offset) in (0..whole.len()).step_by(whole.len() / 60).enumerate() {
        for cut in [true, false] {
            let mut bytes = whole.clone();
            if cut {
                bytes.truncate(offset);
            } else {
                let end = (offset + 64).min(bytes.len());
                bytes[offset..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
            }
            let copy = tempfile::tempdir().unwrap();
            fs::write(copy.path().join(file::FILE_NAME), bytes).unwrap();
            let mut db = open(copy.path());
            append(&mut db, vec![alert("after")]);
            let found = all(&mut db, Class::Alert).len();
            assert!(found >= 1, "offset {offset}, cut {cut}, try {number}");
            let aside = copy.path().join("outbox.db.damaged-1").exists();
            let told = gaps(&mut db).iter().any(|gap| gap.reason == wire::GapReason::OutboxDamaged as i32);
            assert_eq!(aside, told, "offset {offset}, cut {cut}");
            salvaged += usize::from(aside && found > 10);
        }
    }
    assert!(salvaged > 5, "rows were taken over from {salvaged} damaged files only");
}

#[test]
fn foreign_and_newer_databases_and_garbage_are_set_aside() {
    let foreign = |path: &Path| {
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE t (x); PRAGMA application_id = 42;").unwrap();
    };
    let newer = |path: &Path| {
        drop((
            open(path.parent().unwrap()),
            rusqlite::Connection::open(path).unwrap().pragma_update(None, "user_version", 99),
        ))
    };
    let garbage = |path: &Path| fs::write(path, [7; 9999]).unwrap();
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink("/nowhere", path).unwrap();
    type Maker<'a> = (&'a str, &'a dyn Fn(&Path));
    let makers: [Maker<'_>; 5] = [
        ("foreign", &foreign),
        ("newer", &newer),
        ("garbage", &garbage),
        ("directory", &directory),
        ("link", &link),
    ];
    for (name, make) in makers {
        let folder = tempfile::tempdir().unwrap();
        make(&folder.path().join(file::FILE_NAME));
        let mut db = open(folder.path());
        append(&mut db, vec![alert("after")]);
        assert_eq!(gaps(&mut db).len(), 1, "{name}");
        assert!(folder.path().join("outbox.db.damaged-1").symlink_metadata().is_ok(), "{name}");
    }
}

#[test]
fn files_are_private_and_damaged_ones_bounded() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..file::DAMAGED_FILES_MAX + 3 {
        fs::write(folder.path().join(file::FILE_NAME), [7; 5000]).unwrap();
        drop(open(folder.path()));
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.path()), 0o700);
    assert_eq!(mode(&folder.path().join(file::FILE_NAME)), 0o600);
    let names =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains("damaged")).count(), file::DAMAGED_FILES_MAX);
}

#[tokio::test]
async fn the_thread_commits_answers_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let counters = Arc::new(Counters::default());
    let (send, input) = crossbeam_channel::bounded(100);
    let config = Config { folder: folder.path().to_path_buf(), bytes_max: 1 << 30, host: host() };
    let outbox = start(config, counters.clone(), input).unwrap();
    let handle = outbox.handle();
    let mut changed = handle.changed();
    for n in 0..50 {
        send.send(alert(&n.to_string())).unwrap();
    }
    changed.wait_for(|heads| heads.alert == 50).await.unwrap();
    let state = handle.state().await.unwrap();
    let run = handle.read(Class::Alert, 1, READ_BYTES_MAX).await.unwrap();
    assert_eq!((run.first_seq, run.events.len()), (1, 50));
    handle.forget(Class::Alert, state.epoch, 20).await.unwrap();
    assert_eq!(handle.figures().events, 30);
    send.send(alert("last")).unwrap();
    drop(send);
    tokio::task::spawn_blocking(move || outbox.join()).await.unwrap();
    assert!(handle.state().await.is_err());
    assert_eq!((counters.outbox_appended.get(), counters.outbox_acked.get()), (51, 20));
    assert_eq!(open(folder.path()).waiting().0, 31);
}

/// The disk goes away under the running outbox: nothing is lost, and the agent says that it was.
#[tokio::test]
async fn a_write_that_fails_costs_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let (send, input) = crossbeam_channel::bounded(100);
    let config = Config { folder: folder.path().to_path_buf(), bytes_max: 1 << 30, host: host() };
    let outbox = start(config, Arc::new(Counters::default()), input).unwrap();
    let handle = outbox.handle();
    let path = folder.path().join(file::FILE_NAME);
    let side = rusqlite::Connection::open(&path).unwrap();
    side.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON alert BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .unwrap();
    for n in 0..5 {
        send.send(alert(&n.to_string())).unwrap();
    }
    while handle.state().await.is_ok() {}
    side.execute_batch("DROP TRIGGER full").unwrap();
    handle.changed().wait_for(|heads| heads.alert == 6).await.unwrap();
    drop(send);
    tokio::task::spawn_blocking(move || outbox.join()).await.unwrap();
    let mut db = open(folder.path());
    let events = all(&mut db, Class::Alert);
    assert!(
        matches!(&events[5].1.kind, Some(Kind::Health(health)) if health.state == wire::HealthState::Ok as i32)
    );
}

#[test]
fn what_a_rescan_meets_again_is_kept_once_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (send, input) = crossbeam_channel::bounded(100);
    let config = Config { folder: folder.path().to_path_buf(), bytes_max: 1 << 30, host: host() };
    let counters = Arc::new(Counters::default());
    let outbox = start(config, counters.clone(), input).unwrap();
    for trigger in [wire::Trigger::CloseWrite, wire::Trigger::Sweep] {
        let file = wire::File { inode: 7, ..Default::default() };
        let detection = wire::Detection { trigger: trigger.into(), file: Some(file), ..Default::default() };
        send.send(wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() }).unwrap();
    }
    drop(send);
    outbox.join();
    assert_eq!((counters.outbox_appended.get(), counters.outbox_merged.get()), (1, 1));
    balanced(&counters);
    assert_eq!(all(&mut open(folder.path()), Class::Alert).len(), 1);
}

/// What went in, what the outbox made itself, and what became of it.
fn balanced(counters: &Counters) {
    for equation in counters.equations() {
        assert!(equation.holds(), "{equation:?}");
    }
}

#[tokio::test]
async fn every_event_is_accounted_for_over_the_bound_acks_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { folder: folder.path().to_path_buf(), bytes_max: BYTES_MIN, host: host() };
    for (round, found) in [(1, false), (2, true)] {
        let (send, input) = crossbeam_channel::bounded(100);
        let counters = Arc::new(Counters::default());
        let outbox = start(config.clone(), counters.clone(), input).unwrap();
        let handle = outbox.handle();
        for number in 0..6000 {
            let detail = "x".repeat(number % 700);
            let kind = match number % 3 {
                0 => Kind::File(wire::FileEvent { detail, ..Default::default() }),
                1 => Kind::Audit(wire::Audit { detail, ..Default::default() }),
                _ => Kind::Detection(wire::Detection {
                    trigger: wire::Trigger::Sweep.into(),
                    detail,
                    file: Some(wire::File { inode: number as u64 % 7, ..Default::default() }),
                    ..Default::default()
                }),
            };
            send.send(wire::Event { kind: Some(kind), ..Default::default() }).unwrap();
        }
        let epoch = handle.state().await.unwrap().epoch;
        let last = handle.state().await.unwrap().classes[0].last;
        handle.forget(Class::Alert, epoch, last / 2).await.unwrap();
        handle.set_aside(Class::Alert, epoch, last / 2 + 1, last, 1, "no").await.unwrap();
        handle.new_epoch().await.unwrap();
        drop(send);
        tokio::task::spawn_blocking(move || outbox.join()).await.unwrap();
        balanced(&counters);
        assert_eq!(counters.outbox_found.get() > 0, found, "round {round}");
        assert_eq!(counters.outbox_seen.get(), 6000);
        for counter in [&counters.outbox_lost_bound, &counters.outbox_merged, &counters.outbox_made] {
            assert!(counter.get() > 0, "round {round}: {:?}", counters.all());
        }
    }
}
