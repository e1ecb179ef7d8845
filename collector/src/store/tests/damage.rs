//! A flipped byte in the header of every page, and a cut at every 512 bytes, of the newest day and of one before it:
//! the store opens and goes on, what it gives was stored, nothing comes twice.

use super::*;
use crate::store::Stored;
use crate::store::check::{Check, Checked};
use rand::{Rng as _, SeedableRng as _};
use std::collections::HashMap;
use std::path::PathBuf;
use vidette_protocol::check;

/// SQLite's header of a page (<https://sqlite.org/fileformat2.html#b_tree_pages>).
const HEADER_BYTES: usize = 12;
/// Its header of the file.
const FILE_HEADER_BYTES: usize = 100;
const PAGE: usize = 4096;
/// Bits that are flipped: low, high, all.
const FLIPS: [u8; 3] = [0x01, 0x80, 0xff];
const EPOCH: u64 = u64::MAX - 1;
const LATER: i64 = NOON + DAY_NS;

struct Original {
    /// Name and bytes of each day, oldest first.
    days: Vec<(PathBuf, Vec<u8>)>,
    /// By id.
    stored: HashMap<u64, (EventId, Vec<u8>)>,
    highest: u64,
    marks: Vec<(AgentId, Class, u64)>,
}

impl Original {
    /// How many events are there after a day that holds those beyond this id was set aside: of the names of rules here some
    /// are longer than an agent's may be.
    fn saved(&self, beyond: u64) -> usize {
        let may_be = |body: &[u8]| check::event(&wire::Event::decode(body).unwrap()).is_ok();
        self.stored.iter().filter(|(id, (_, body))| **id <= beyond || may_be(body)).count()
    }
}

fn file_event(number: usize) -> wire::Event {
    let file =
        wire::File { path: vec![b'p'; number * 37 % 3000], inode: number as u64, ..Default::default() };
    let kind = Kind::File(wire::FileEvent { file: Some(file), ..Default::default() });
    wire::Event { kind: Some(kind), time_unix_ns: 7 + number as i64, ..Default::default() }
}

/// Two days, two agents, both classes, inner and overflow pages.
fn original() -> Original {
    let folder = tempfile::tempdir().unwrap();
    let mut db = store(folder.path(), NOON);
    for (part, now) in [(0, NOON), (1, LATER)] {
        for round in 0..4 {
            let first = part * 80 + round * 20 + 1;
            for agent in [1, 2] {
                let alerts = (0..20).map(|n| {
                    detection(&"r".repeat(n * 40 + 1), "R", wire::Severity::High, (first + n) as i64)
                });
                commit(&mut db, arrival(agent, Class::Alert, first as u64, 0, alerts.collect()), now);
                let files = (0..20).map(|n| file_event(first + n)).collect();
                commit(&mut db, arrival(agent, Class::Telemetry, first as u64, 0, files), now);
            }
        }
    }
    let marks = [1, 2].into_iter().flat_map(|agent| {
        let agent = AgentId([agent; 16]);
        db.durable(agent, EPOCH).into_iter().map(move |(class, seq)| (agent, class, seq))
    });
    let (marks, highest) = (marks.collect(), db.highest_id());
    drop(db); // the last close empties the write-ahead log
    let rows = Reader::new(folder.path()).unwrap().after(0, &[], 10_000).unwrap();
    let stored = rows.into_iter().map(|row| (row.id, (row.event, row.body))).collect();
    let days = file::list(folder.path()).unwrap().into_iter().map(|day| {
        let bytes = fs::read(&day.path).unwrap();
        (PathBuf::from(day.path.file_name().unwrap()), bytes)
    });
    Original { days: days.collect(), stored, highest, marks }
}

/// With one day replaced: opens, goes on where the marks are, and reads. Gives how many old events are there.
fn survive(original: &Original, day: usize, bytes: &[u8], what: &str) -> usize {
    let memory = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let folder = tempfile::Builder::new().tempdir_in(memory).unwrap();
    for (number, (name, whole)) in original.days.iter().enumerate() {
        fs::write(folder.path().join(name), if number == day { bytes } else { whole }).unwrap();
    }
    let mut db = match Db::open(folder.path(), None, Memory::default(), LATER) {
        Ok(db) => db,
        Err(error) => {
            // The header says that it is another program's, or of a newer version: a person has to decide.
            let told = format!("{error:#}");
            assert!(told.contains("another program") || told.contains("knows up to"), "{what}: {told}");
            return 0;
        }
    };
    let mut new = 0;
    for (agent, class, seq) in &original.marks {
        let durable = db.durable(*agent, EPOCH).iter().find(|(of, _)| of == class).map_or(0, |(_, seq)| *seq);
        assert!(durable <= *seq, "{what}: a mark went up from {seq} to {durable}");
        assert!(durable >= 80 || day == 0, "{what}: the day before knows 80, this is {durable}");
        let event = if *class == Class::Alert { audit() } else { file_event(1) };
        let run = Arrival { agent: *agent, ..arrival(1, *class, durable + 1, 0, vec![event]) };
        assert_eq!(commit(&mut db, run, LATER), Committed::Durable(durable + 1), "{what}");
        new += 1;
    }
    assert!(db.highest_id() > original.highest, "{what}: an id may be given twice");
    drop(db);
    let aside = fs::read_dir(folder.path())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().contains("damaged"));
    let is_newest = day + 1 == original.days.len();
    let kept = read(original, folder.path(), new, is_newest && !aside, what);
    if !aside {
        check(original, folder.path(), new, what);
    }
    assert!(!is_newest || aside || kept == original.stored.len(), "{what}: {kept} events, and no word of it");
    drop(store(folder.path(), LATER));
    kept
}

/// What a check calls well is well: everything is there, and filters find it.
fn check(original: &Original, folder: &Path, new: usize, what: &str) {
    let mut reader = Reader::new(folder).unwrap();
    let checked = Check::begin(&mut reader).unwrap().run();
    let told = reader.damage().missing();
    let sum = |of: fn(&Checked) -> u64| checked.iter().map(of).sum::<u64>();
    assert_eq!(told, (sum(|day| day.missing), sum(|day| day.wrong_indexes)), "{what}: told");
    if !checked.iter().all(Checked::is_well) {
        return;
    }
    let rows = reader.after(0, &[], 10_000).unwrap();
    let known = |row: &&Stored| original.stored.get(&row.id).is_some_and(|(_, body)| *body == row.body);
    assert_eq!(rows.iter().filter(known).count(), original.stored.len(), "{what}: {checked:?}");
    let high = Filter { severity_min: Some(wire::Severity::High), ..Filter::default() };
    let found = reader.page(&high, None, 10_000).unwrap().len();
    let alerts = original.stored.values().filter(|(event, _)| event.class == Class::Alert).count();
    assert!((alerts..=alerts + new).contains(&found), "{what}: {found} of {alerts}");
}

/// `whole`: nothing was set aside, so that every event is there or its day is told. Of a day before the newest nobody
/// looks at whole pages: one whose count of rows was changed can hide some, which a check finds.
fn read(original: &Original, folder: &Path, new: usize, whole: bool, what: &str) -> usize {
    let mut reader = Reader::new(folder).unwrap();
    let (mut kept, mut named, mut added, mut after) = (0, 0, 0, 0);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let rows = reader.after(after, &[], 1000).unwrap();
        let Some(last) = rows.last() else { break };
        assert!(last.id > after, "{what}: it goes in circles");
        after = last.id;
        for row in rows {
            if row.damaged {
                assert!(row.body.is_empty(), "{what}: id {} is shown with what the disk made of it", row.id);
                named += 1;
                continue;
            }
            match original.stored.get(&row.id) {
                Some((event, body)) => {
                    assert_eq!(
                        (&row.event, &row.body),
                        (event, body),
                        "{what}: id {} is another event",
                        row.id
                    );
                    assert!(seen.insert(row.event), "{what}: {} comes twice", row.event);
                    kept += 1;
                }
                None => added += 1,
            }
        }
    }
    assert!(added <= new, "{what}: {added} events that were never stored");
    let told = reader.damage();
    assert!(told.events() == named || told.days() > 0, "{what}: {named} damaged, {} told", told.events());
    assert!(
        told.days() > 0 || !whole || kept + named as usize == original.stored.len(),
        "{what}: {kept} events"
    );
    kept + named as usize
}

#[test]
fn a_flipped_byte_in_any_page_header_is_survived() {
    let original = original();
    for (day, (_, whole)) in original.days.iter().enumerate() {
        let pages = whole.len() / PAGE;
        assert!(pages > 30, "{pages} pages");
        let (mut tries, mut kept) = (0, 0);
        for page in 0..pages {
            let header = page * PAGE + if page == 0 { FILE_HEADER_BYTES } else { 0 };
            for offset in header..header + HEADER_BYTES {
                let flip = FLIPS[(page + offset) % FLIPS.len()];
                let mut bytes = whole.clone();
                bytes[offset] ^= flip;
                let what = format!("day {day}, page {page}, byte {offset}, flip {flip:#x}");
                kept += survive(&original, day, &bytes, &what);
                tries += 1;
            }
        }
        let share = kept * 100 / (tries * original.stored.len());
        println!("day {day}: {tries} flips in {pages} pages, {share} % of the events kept");
        // A day before the newest that can't be read is passed over as a whole.
        assert!(share > 60, "{share} %");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_never_taken_for_what_was_stored() {
    let seed = std::env::var("VIDETTE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    println!("VIDETTE_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let original = original();
    let (mut kept, tries) = (0, 400);
    for _ in 0..tries {
        let day = random.random_range(0..original.days.len());
        let mut bytes = original.days[day].1.clone();
        let offset = random.random_range(PAGE..bytes.len());
        let flip = random.random_range(1..=u8::MAX);
        bytes[offset] ^= flip;
        kept += survive(&original, day, &bytes, &format!("day {day}, byte {offset}, flip {flip:#x}"));
    }
    let share = kept * 100 / (tries * original.stored.len());
    println!("{share} % of the events are there, whole or named as damaged");
    assert!(share > 80, "{share} %");
}

/// A number of an event that becomes negative, in the newest day and in the one before: only its row is named.
#[test]
fn a_number_below_zero_is_one_damaged_row() {
    let original = original();
    for (day, (_, whole)) in original.days.iter().enumerate() {
        let last = [0x00, 0x50 * (day as u8 + 1), 0x17]; // 80 or 160 in two bytes, then the begin of a time
        let places: Vec<usize> = (PAGE..whole.len() - 3).filter(|at| whole[*at..*at + 3] == last).collect();
        assert!(day == 0 || !places.is_empty(), "it is stored in two bytes");
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xe0;
            survive(&original, day, &bytes, &format!("day {day}, byte {at}, a number below zero"));
        }
    }
}

/// A byte of whose a lane is, or of how far it is stored. The day before knows the lanes: all rows are kept.
#[test]
fn a_damaged_lane_is_noticed() {
    let original = original();
    let (_, whole) = original.days.last().unwrap();
    let highest_before = original.highest / 2;
    let all = original.saved(highest_before);
    for offset in lanes(whole) {
        for flip in FLIPS {
            let mut bytes = whole.clone();
            bytes[offset] ^= flip;
            let what = format!("lanes, byte {offset}, flip {flip:#x}");
            let kept = survive(&original, original.days.len() - 1, &bytes, &what);
            assert!(kept >= all, "{what}: {kept} of {all} events");
        }
    }
}

/// The same where no other day knows them: rows say how far a lane is stored, as far as it can be known whose it is.
#[test]
fn a_damaged_lane_of_the_only_day_costs_at_most_its_own_rows() {
    let mut original = original();
    original.days.truncate(1);
    let highest = original.days[0].1.clone();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(&original.days[0].0), &highest).unwrap();
    let rows = Reader::new(folder.path()).unwrap().after(0, &[], 10_000).unwrap();
    original.stored = rows.into_iter().map(|row| (row.id, (row.event, row.body))).collect();
    original.highest = *original.stored.keys().max().unwrap();
    original.marks.iter_mut().for_each(|(.., seq)| *seq = 80);
    let all = original.saved(0);
    let (mut whole, mut lost) = (0, 0);
    for offset in lanes(&highest) {
        for flip in FLIPS {
            let mut bytes = highest.clone();
            bytes[offset] ^= flip;
            let kept = survive(&original, 0, &bytes, &format!("only lanes, byte {offset}, flip {flip:#x}"));
            whole += usize::from(kept >= all);
            lost += usize::from(kept == 0);
        }
    }
    println!("{whole} of {} flips cost nothing, {lost} everything", FLIPS.len() * lanes(&highest).len());
    assert!(whole > lost);
}

/// The ids between which a day's rows are, in the newest day and in the one before.
#[test]
fn damaged_borders_of_a_day_are_noticed() {
    let original = original();
    for (day, (_, whole)) in original.days.iter().enumerate() {
        for offset in cells(whole, 2) {
            for flip in FLIPS {
                let mut bytes = whole.clone();
                bytes[offset] ^= flip;
                survive(
                    &original,
                    day,
                    &bytes,
                    &format!("day {day}, borders, byte {offset}, flip {flip:#x}"),
                );
            }
        }
    }
}

/// A bit in a row's header makes a text of its body: the same bytes, and no reason to pass over the day.
#[test]
fn a_body_of_another_type_hides_no_other_row() {
    let original = original();
    let (number, (_, whole)) = original.days.iter().enumerate().next_back().unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let has_rows = |page: &usize| whole[*page] == 13 && cells_at(whole, *page) < PAGE;
    for page in (3 * PAGE..whole.len()).step_by(PAGE).filter(has_rows) {
        for _ in 0..40 {
            let offset = page + random.random_range(cells_at(whole, page)..PAGE);
            let mut bytes = whole.clone();
            bytes[offset] ^= 1;
            survive(&original, number, &bytes, &format!("day {number}, byte {offset}, its lowest bit"));
        }
    }
}

/// Where the cells of the lanes' table are.
fn lanes(day: &[u8]) -> std::ops::Range<usize> {
    cells(day, 3)
}

/// Where the cells of a small table are: its root is this page, and they are at its end.
fn cells(day: &[u8], root: usize) -> std::ops::Range<usize> {
    let page = (root - 1) * PAGE;
    assert_eq!(day[page], 13, "a leaf of a table");
    let content = cells_at(day, page);
    assert!((3000..PAGE).contains(&content), "{content}");
    page + content..page + PAGE
}

/// Where in a page its cells begin.
fn cells_at(day: &[u8], page: usize) -> usize {
    usize::from(u16::from_be_bytes([day[page + 5], day[page + 6]]))
}

/// An id in an inner page that is another one: reading on finds every row, a search goes the wrong way. A check says so.
#[test]
fn a_wrong_way_to_a_row_is_found_by_a_check() {
    let original = original();
    let whole = &original.days[0].1;
    let inner: Vec<usize> = (PAGE..whole.len()).step_by(PAGE).filter(|page| whole[*page] == 5).collect();
    assert!(!inner.is_empty());
    for page in inner {
        for offset in (page + PAGE - 200..page + PAGE).step_by(3) {
            let mut bytes = whole.clone();
            bytes[offset] ^= 0xe3;
            survive(&original, 0, &bytes, &format!("inner page at {page}, byte {offset}"));
        }
    }
}

#[test]
fn a_flipped_byte_in_the_file_header_is_survived() {
    let original = original();
    for (day, (_, whole)) in original.days.iter().enumerate() {
        for offset in 0..FILE_HEADER_BYTES {
            let flip = FLIPS[offset % FLIPS.len()];
            let mut bytes = whole.clone();
            bytes[offset] ^= flip;
            survive(
                &original,
                day,
                &bytes,
                &format!("day {day}, file header, byte {offset}, flip {flip:#x}"),
            );
        }
    }
}

#[test]
fn a_cut_at_every_512_bytes_is_survived() {
    let original = original();
    for (day, (_, whole)) in original.days.iter().enumerate() {
        for length in (0..whole.len()).step_by(512) {
            survive(&original, day, &whole[..length], &format!("day {day}, cut at {length}"));
        }
    }
}
