//! A flipped byte in the header of every page, and a cut at every 512 bytes: the outbox opens, what it gives was
//! written, nothing comes twice, and what was lost is told.

use super::*;
use std::collections::HashMap;

/// SQLite's header of a page (<https://sqlite.org/fileformat2.html#b_tree_pages>).
const HEADER_BYTES: usize = 12;
/// Its header of the file.
const FILE_HEADER_BYTES: usize = 100;
const PAGE: usize = 4096;
/// Bits that are flipped: low, high, all.
const FLIPS: [u8; 3] = [0x01, 0x80, 0xff];

struct Original {
    bytes: Vec<u8>,
    /// How often each event was written; the encoded event is the key.
    written: HashMap<Vec<u8>, u32>,
}

/// Both classes over many pages, with inner pages, overflow pages, freed pages, a gap, reported files, and one aside.
fn original() -> Original {
    let folder = tempfile::tempdir().unwrap();
    let mut db = open(folder.path());
    let mut events = Vec::new();
    for n in 0_u64..150 {
        events.push(match n % 3 {
            0 => alert(&format!("a{n} {}", "x".repeat(n as usize % 700))),
            1 => file_event(&format!("f{n} {}", "y".repeat(n as usize % 300))),
            _ => {
                let process = wire::Process {
                    executable: format!("p{n}").into_bytes(),
                    args: vec![vec![b'z'; (n as usize * 7) % 3000]; 3],
                    ..Default::default()
                };
                let event = wire::ProcessEvent { process: Some(process), ..Default::default() };
                wire::Event { kind: Some(Kind::Process(event)), ..Default::default() }
            }
        });
    }
    for n in 0..20 {
        let file = wire::File { inode: n, size: 3, ..Default::default() };
        let trigger = wire::Trigger::CloseWrite.into();
        let detection = wire::Detection { trigger, file: Some(file), ..Default::default() };
        events.push(wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() });
    }
    append(&mut db, events);
    forget(&mut db, Class::Alert, 10);
    forget(&mut db, Class::Telemetry, 30);
    let epoch = db.epoch();
    let (first, last, code, reason) = (11, 13, 1, "no".to_owned());
    db.apply(&[Work::SetAside { class: Class::Alert, epoch, first, last, code, reason }], Moment::now())
        .unwrap();
    let mut written = HashMap::new();
    for class in Class::ALL {
        for (_, event) in all(&mut db, class) {
            *written.entry(event.encode_to_vec()).or_default() += 1;
        }
    }
    drop(db); // the last close empties the write-ahead log
    Original { bytes: fs::read(folder.path().join(file::FILE_NAME)).unwrap(), written }
}

/// Opens a damaged copy, uses it, opens it again. Gives how many of the old events are there.
fn survive(original: &Original, bytes: &[u8], what: &str) -> usize {
    let folder = tempfile::Builder::new().tempdir_in(memory()).unwrap();
    fs::write(folder.path().join(file::FILE_NAME), bytes).unwrap();
    let mut db = open(folder.path());
    let kept = read_all(&mut db, folder.path(), original, what);
    append(&mut db, vec![alert("after"), file_event("after")]);
    let told = |db: &mut Db| {
        gaps(db).iter().filter(|gap| gap.reason == wire::GapReason::OutboxDamaged as i32).count()
    };
    let aside = fs::read_dir(folder.path())
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            name.contains("damaged") && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .count();
    assert_eq!(told(&mut db), aside, "{what}: {aside} files were set aside");
    let whole: u32 = original.written.values().sum();
    assert!(aside > 0 || kept == whole as usize, "{what}: {kept} of {whole} events, and no word of it");
    drop(db);
    let mut db = open(folder.path());
    assert_eq!(read_all(&mut db, folder.path(), original, what), kept, "{what}: it is in order now");
    kept
}

/// Every event that is there was written, and no more often; a sum that does not fit costs the outbox, as in `owner`.
fn read_all(db: &mut Db, folder: &Path, original: &Original, what: &str) -> usize {
    for _ in 0..2 {
        match try_read(db, original, what) {
            Ok(kept) => return kept,
            Err(error) => {
                assert!(file::is_damage(&error), "{what}: {error}");
                *db = Db::open(folder, 1 << 30, host(), Some(&format!("it is damaged: {error}"))).unwrap();
            }
        }
    }
    panic!("{what}: the new outbox is damaged too");
}

fn try_read(db: &mut Db, original: &Original, what: &str) -> rusqlite::Result<usize> {
    let mut left = original.written.clone();
    let (mut kept, mut last) = (0, 0);
    for class in Class::ALL {
        let mut from = 1;
        loop {
            let work = [Work::Read { class, from, bytes_max: READ_BYTES_MAX }];
            let Some(Answer::Run(run)) = db.apply(&work, Moment::now())?.0.pop() else { panic!("no run") };
            if run.events.is_empty() {
                break;
            }
            assert!(run.first_seq >= from, "{what}: a number comes twice");
            from = run.first_seq + run.events.len() as u64;
            for body in run.events {
                last += 1;
                assert!(last < 10_000, "{what}: it never ends");
                match left.get_mut(&body) {
                    Some(count) => {
                        assert!(*count > 0, "{what}: an event comes twice");
                        *count -= 1;
                        kept += 1;
                    }
                    None => own(&body, what),
                }
            }
        }
    }
    Ok(kept)
}

/// What the outbox or this test added afterwards.
fn own(body: &[u8], what: &str) {
    match wire::Event::decode(body).unwrap().kind {
        Some(Kind::Gap(gap)) if gap.reason == wire::GapReason::OutboxDamaged as i32 => {}
        Some(Kind::Audit(audit)) if audit.detail == "after" => {}
        Some(Kind::File(file)) if file.detail == "after" => {}
        other => panic!("{what}: never written: {other:?}"),
    }
}

fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

#[test]
fn a_flipped_byte_in_any_page_header_is_survived() {
    let original = original();
    let pages = original.bytes.len() / PAGE;
    assert!(pages > 40, "{pages} pages");
    let (mut tries, mut kept, mut emptied) = (0, 0, 0);
    for page in 0..pages {
        let header = page * PAGE + if page == 0 { FILE_HEADER_BYTES } else { 0 };
        for offset in header..header + HEADER_BYTES {
            // One of the three for each byte, all of them over the pages.
            let flip = FLIPS[(page + offset) % FLIPS.len()];
            let mut bytes = original.bytes.clone();
            bytes[offset] ^= flip;
            let found = survive(&original, &bytes, &format!("page {page}, byte {offset}, flip {flip:#x}"));
            (tries, kept, emptied) = (tries + 1, kept + found, emptied + usize::from(found == 0));
        }
    }
    let whole: u32 = original.written.values().sum();
    let share = kept * 100 / (tries * whole as usize);
    println!("{tries} flips in {pages} pages: {share} % of the events kept, {emptied} times none");
    assert!(share > 80, "{share} %");
}

#[test]
fn a_flipped_byte_in_the_file_header_is_survived() {
    let original = original();
    for offset in 0..FILE_HEADER_BYTES {
        for flip in FLIPS {
            let mut bytes = original.bytes.clone();
            bytes[offset] ^= flip;
            survive(&original, &bytes, &format!("file header, byte {offset}, flip {flip:#x}"));
        }
    }
}

#[test]
fn a_cut_at_every_512_bytes_is_survived() {
    let original = original();
    for length in (0..original.bytes.len()).step_by(512) {
        if length == 0 {
            continue; // an empty file is a new outbox: nothing says that it was not
        }
        survive(&original, &original.bytes[..length], &format!("cut at {length}"));
    }
}

/// Bytes of the bodies themselves: what is read was written.
#[test]
fn a_flipped_byte_anywhere_never_makes_another_event() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let original = original();
    let seed = 20_261;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..200 {
        let mut bytes = original.bytes.clone();
        let offset = rng.random_range(0..bytes.len());
        let flip = 1 << rng.random_range(0..8);
        bytes[offset] ^= flip;
        survive(&original, &bytes, &format!("seed {seed}: byte {offset}, flip {flip:#x}"));
    }
}

/// What a rescan meets again is not told again, or the damage is.
#[test]
fn a_flipped_byte_in_what_was_reported_is_noticed() {
    let original = original();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("o.db"), &original.bytes).unwrap();
    let db = rusqlite::Connection::open(folder.path().join("o.db")).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'reported'";
    let roots: Vec<usize> =
        db.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(roots.len(), 2, "the table and its index");
    let (mut noticed, mut tries) = (0, 0);
    for offset in roots.into_iter().flat_map(|root| ((root - 1) * PAGE..root * PAGE).step_by(11)) {
        let mut bytes = original.bytes.clone();
        bytes[offset] ^= FLIPS[offset % FLIPS.len()];
        let folder = tempfile::Builder::new().tempdir_in(memory()).unwrap();
        fs::write(folder.path().join(file::FILE_NAME), &bytes).unwrap();
        let mut db = open(folder.path());
        tries += 1;
        if gaps(&mut db).iter().any(|gap| gap.reason == wire::GapReason::OutboxDamaged as i32) {
            noticed += 1;
            continue;
        }
        let alerts = |db: &mut Db| all(db, Class::Alert).len();
        let before = alerts(&mut db);
        let swept = (0..20).map(|inode| {
            let file = wire::File { inode, size: 3, ..Default::default() };
            let trigger = wire::Trigger::Sweep.into();
            let detection = wire::Detection { trigger, file: Some(file), ..Default::default() };
            wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() }
        });
        append(&mut db, swept.collect());
        assert_eq!(alerts(&mut db), before, "byte {offset}: told a second time, and no word of damage");
    }
    assert!(noticed > 20, "{noticed} of {tries}");
}
