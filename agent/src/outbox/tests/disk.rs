//! What the outbox takes on disk, measured with the files themselves: within the bound at every commit and between
//! them, smaller again after a backlog, and a file of the first version that becomes one that can shrink.

use super::*;
use crate::outbox::room::Limits;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vidette_protocol::limits::EVENT_BYTES_MAX;

/// Every file of the outbox together. Bytes.
fn on_disk(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
    files.map(|data| data.len()).sum()
}

/// A detection of about so many bytes, up to the largest there can be.
fn large(bytes: usize, inode: u64) -> wire::Event {
    let rule = wire::RuleMatch { tags: vec!["t".repeat(250); 16], ..Default::default() };
    let detection = wire::Detection {
        trigger: wire::Trigger::CloseWrite.into(),
        file: Some(wire::File { inode, ctime_unix_ns: 1 << 60, size: inode, ..Default::default() }),
        rules: vec![rule; (bytes / 4100).min(62)],
        rules_version: "r".repeat(64),
        detail: "d".repeat(bytes % 1000),
        ..Default::default()
    };
    wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() }
}

fn any(rng: &mut StdRng, group: u64) -> wire::Event {
    let text = "x".repeat(rng.random_range(0..900));
    match rng.random_range(0..100) {
        0..50 => file_event(&text),
        50..80 => process_event(&text),
        80..97 => large(text.len(), rng.random_range(0..1 << 40)),
        _ => large(usize::try_from(group).unwrap().min(EVENT_BYTES_MAX), rng.random_range(0..1 << 40)),
    }
}

/// Looks at the files all the time, also between two commits.
struct Watch {
    over: Arc<AtomicBool>,
    highest: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    fn start(folder: PathBuf) -> Self {
        let (over, highest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, seen) = (over.clone(), highest.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                seen.fetch_max(on_disk(&folder), Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Self { over, highest, thread: Some(thread) }
    }

    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.highest.load(Ordering::SeqCst)
    }
}

/// Groups as the owner makes them: until the bytes or the number are reached.
fn group(rng: &mut StdRng, limits: Limits) -> Vec<wire::Event> {
    let (mut events, mut bytes) = (Vec::new(), 0);
    let events_max = if rng.random_bool(0.3) { 1024 } else { rng.random_range(1..60) };
    let only_large = rng.random_bool(0.1);
    while bytes < limits.group_bytes_max && events.len() < events_max {
        let event = if only_large {
            large(limits.event_bytes_max * 9 / 10, rng.random_range(0..1 << 40))
        } else {
            any(rng, limits.group_bytes_max)
        };
        bytes += event.encoded_len() as u64;
        events.push(event);
    }
    events
}

fn something(rng: &mut StdRng, db: &Db) -> Work {
    let class = if rng.random_bool(0.5) { Class::Alert } else { Class::Telemetry };
    let state = db.state().unwrap().classes.into_iter().find(|one| one.class == class).unwrap();
    let (first, last) = (state.first_unacked, state.last);
    let epoch = db.epoch();
    let upto = rng.random_range(first..=last.max(first));
    match rng.random_range(0..100) {
        0..5 => {
            Work::SetAside { class, epoch, first, last: (first + 20).min(upto), code: 1, reason: "no".into() }
        }
        5..8 => Work::Restored { class, epoch, durable: first.saturating_sub(3) },
        8..10 => Work::NewEpoch,
        10..40 => Work::Forget { class, epoch, upto: (first + rng.random_range(0..300)).min(upto) },
        40..42 => Work::Forget { class, epoch, upto },
        _ => Work::Read { class, from: first, bytes_max: READ_BYTES_MAX },
    }
}

#[test]
fn the_files_stay_within_the_bound_at_every_commit() {
    for (seed, bytes_max, commits) in
        [(1, BYTES_MIN, 400), (2, BYTES_MIN, 400), (3, 2 << 20, 300), (4, 16 << 20, 200)]
    {
        println!("seed {seed}: a bound of {bytes_max} bytes");
        let folder = tempfile::tempdir().unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut db = Db::open(folder.path(), bytes_max, host(), None).unwrap();
        let limits = Limits::of(bytes_max);
        let watch = Watch::start(folder.path().to_path_buf());
        let (mut highest, mut lost, mut grown) = (0, 0, 0);
        for commit in 0..commits {
            let mut work = vec![Work::Append(group(&mut rng, limits))];
            if rng.random_bool(0.3) {
                work.push(something(&mut rng, &db));
            }
            let (_, tally) = db.apply(&work, Moment::now()).unwrap();
            lost += tally.lost;
            let bytes = on_disk(folder.path());
            highest = bytes.max(highest);
            assert!(bytes <= bytes_max, "seed {seed}, commit {commit}: {bytes} of {bytes_max} bytes");
            if rng.random_bool(0.2) {
                grown += u64::from(db.tidy().unwrap());
            }
            if rng.random_bool(0.01) {
                drop(db);
                db = Db::open(folder.path(), bytes_max, host(), None).unwrap();
            }
        }
        let between = watch.end();
        println!(
            "  highest {highest} after a commit, {between} at any time; {lost} events lost, {grown} times more to tidy"
        );
        assert!(between <= bytes_max, "seed {seed}: {between} of {bytes_max} bytes between two commits");
        assert!(lost > 0, "seed {seed}: the bound was never reached");
        assert!(highest > bytes_max / 2, "seed {seed}: only {highest} of {bytes_max} are used");
    }
}

#[test]
fn the_file_shrinks_after_a_backlog() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), 64 << 20, host(), None).unwrap();
    for _ in 0..60 {
        append(&mut db, vec![file_event(&"x".repeat(900)); 500]);
    }
    drop(db);
    let mut db = Db::open(folder.path(), 64 << 20, host(), None).unwrap();
    let full = on_disk(folder.path());
    assert!(full > 25 << 20, "{full}");
    forget(&mut db, Class::Telemetry, 29_990);
    let (mut parts, mut longest) = (0, Duration::ZERO);
    loop {
        let began = Instant::now();
        let more = db.tidy().unwrap();
        longest = longest.max(began.elapsed());
        parts += 1;
        append(&mut db, vec![alert("between")]);
        if !more {
            break;
        }
        assert!(parts < 1000, "it never ends");
    }
    let left = on_disk(folder.path());
    println!("{full} bytes became {left} in {parts} parts, the longest took {longest:?}");
    assert!(left < 10 << 20, "{left} bytes are left of {full}");
    assert_eq!(all(&mut db, Class::Telemetry).len(), 10);
    assert_eq!(all(&mut db, Class::Alert).len(), parts);
}

/// The owner does it while nothing else is to do.
#[tokio::test]
async fn the_thread_gives_back_while_it_is_idle() {
    let folder = tempfile::tempdir().unwrap();
    let mut db = Db::open(folder.path(), 64 << 20, host(), None).unwrap();
    for _ in 0..30 {
        append(&mut db, vec![file_event(&"x".repeat(900)); 500]);
    }
    drop(db);
    let (send, input) = crossbeam_channel::bounded(100);
    let config = Config { folder: folder.path().to_path_buf(), bytes_max: 64 << 20, host: host() };
    let outbox = start(config, Arc::new(Counters::default()), input).unwrap();
    let handle = outbox.handle();
    let epoch = handle.state().await.unwrap().epoch;
    let full = on_disk(folder.path());
    handle.forget(Class::Telemetry, epoch, 15_000).await.unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while on_disk(folder.path()) > full / 2 {
        assert!(Instant::now() < until, "{} of {full} bytes are left", on_disk(folder.path()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(send);
    tokio::task::spawn_blocking(move || outbox.join()).await.unwrap();
}

/// Not an assertion: what a commit costs at the bound, where each has to make room, against one far below it.
#[test]
fn a_commit_at_the_bound_against_one_below_it() {
    let measure = |bytes_max: u64, fill: usize| {
        let folder = tempfile::tempdir().unwrap();
        let mut db = Db::open(folder.path(), bytes_max, host(), None).unwrap();
        let events = vec![file_event(&"x".repeat(300)); 100];
        for _ in 0..fill {
            append(&mut db, events.clone());
        }
        let mut times: Vec<Duration> = (0..200)
            .map(|_| {
                let began = Instant::now();
                append(&mut db, events.clone());
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        (times[100], times[190])
    };
    let (below, at) = (measure(1 << 30, 10), measure(16 << 20, 400));
    println!(
        "100 events a commit: p50 {:?} below the bound, {:?} at it ({:.2} x); p95 {:?} and {:?} ({:.2} x)",
        below.0,
        at.0,
        at.0.as_secs_f64() / below.0.as_secs_f64(),
        below.1,
        at.1,
        at.1.as_secs_f64() / below.1.as_secs_f64()
    );
}

#[test]
fn an_outbox_of_the_first_version_goes_on_in_a_file_that_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file::FILE_NAME);
    let old = rusqlite::Connection::open(&path).unwrap();
    let _: String = old.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
    old.execute_batch(include_str!("../schema/0001.sql")).unwrap();
    old.pragma_update(None, "application_id", file::APPLICATION_ID).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute_batch("INSERT INTO outbox VALUES (1, 77); INSERT INTO acked VALUES (1, 4)").unwrap();
    for seq in 5..300 {
        let body = alert(&format!("{seq}")).encode_to_vec();
        old.execute("INSERT INTO alert VALUES (?, 9, 2, ?)", rusqlite::params![seq, body]).unwrap();
    }
    old.execute_batch("DELETE FROM alert WHERE seq = 299").unwrap();
    drop(old);
    let mut db = open(folder.path());
    let events = all(&mut db, Class::Alert);
    assert_eq!(events.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (5..299).collect::<Vec<_>>());
    assert!(events.iter().all(|(seq, event)| *event == alert(&format!("{seq}"))));
    let State { epoch, classes } = db.state().unwrap();
    assert_eq!((epoch, classes[0].acked, classes[0].last), (77, 4, 299));
    append(&mut db, vec![alert("new")]);
    assert_eq!(all(&mut db, Class::Alert).last().unwrap().0, 300);
    let mode: i64 = db.connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).unwrap();
    assert_eq!(mode, file::AUTO_VACUUM_INCREMENTAL);
    assert!(!file::draft(&path).exists());
    drop(db);
    assert_eq!(all(&mut open(folder.path()), Class::Alert).len(), 295);
}
