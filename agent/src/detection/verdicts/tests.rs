//! What is kept, for how long, and what a damaged file does.

use super::*;
use crate::worker::clean;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use vidette_protocol::wire;

fn by(rules_version: &str) -> By<'_> {
    By { rules_version, size_max_bytes: 64 }
}

const SECOND: i64 = 1_000_000_000;
const BEGAN: i64 = 100 * SECOND;

fn key(inode: u64) -> FileKey {
    FileKey { device: 1, inode, size: 3, mtime_ns: 10 * SECOND, ctime_ns: 10 * SECOND }
}

/// A file that matches.
fn copy(inode: u64) -> FileKey {
    key(1000 + inode)
}

fn digest(inode: u64) -> [u8; 32] {
    *blake3::hash(&inode.to_le_bytes()).as_bytes()
}

fn scan(verdict: Verdict, inode: u64) -> Scan {
    Scan {
        verdict,
        blake3: Some(digest(inode)),
        sha256: None,
        sha1: None,
        md5: None,
        whole: true,
        rules: vec![],
        detail: String::new(),
        scan_us: 1,
        scanned_bytes: 3,
        stable: true,
        lasting: true,
        of_the_day: false,
    }
}

struct World {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        Self { _folder: folder, path }
    }

    fn open(&self, files: u64) -> Verdicts {
        Verdicts::open(&self.path, files).unwrap()
    }
}

fn put(verdicts: &Verdicts, inode: u64, version: &str) {
    verdicts.put(&key(inode), &key(inode), BEGAN, by(version), &scan(Verdict::Clean, inode));
}

fn clean(verdicts: &Verdicts, inode: u64, version: &str) -> Option<[u8; 32]> {
    verdicts.known_clean(&key(inode), version, BEGAN)
}

#[test]
fn a_settled_file_is_known_again_with_the_same_rules_also_after_a_restart() {
    let world = World::new();
    let verdicts = world.open(1000);
    put(&verdicts, 2, "v1");
    for verdicts in [verdicts, world.open(1000)] {
        assert_eq!(clean(&verdicts, 2, "v1"), Some(digest(2)));
        assert_eq!(verdicts.get(&key(2), by("v1"), BEGAN), Some(Known::Clean(digest(2))));
        assert_eq!(clean(&verdicts, 2, "v2"), None, "other rules");
        assert_eq!(verdicts.known_clean(&FileKey { size: 4, ..key(2) }, "v1", BEGAN), None);
        let back = 69 * SECOND;
        assert_eq!(verdicts.known_clean(&key(2), "v1", back), None, "the clock was set back");
    }
    let data = std::fs::metadata(&world.path).unwrap();
    assert_eq!(data.permissions().mode() & 0o777, 0o600);
}

#[test]
fn content_that_is_clean_by_new_rules_under_one_name_is_so_under_another() {
    let verdicts = World::new();
    let verdicts = verdicts.open(1000);
    put(&verdicts, 2, "v1");
    let copy = key(3);
    verdicts.put(&copy, &copy, BEGAN, by("v2"), &scan(Verdict::Clean, 2));
    assert_eq!(clean(&verdicts, 2, "v2"), Some(digest(2)));
}

fn matched(inode: u64, rules: usize) -> Scan {
    let rule = |number| wire::RuleMatch {
        name: format!("rule {number}"),
        severity: wire::Severity::High.into(),
        description: "x".repeat(200),
        ..Default::default()
    };
    Scan { sha256: Some([7; 32]), rules: (0..rules).map(rule).collect(), ..scan(Verdict::Matched, inode) }
}

/// Of a file of 3 bytes.
fn in_part(verdict: Verdict, rules: usize) -> Scan {
    let detail = "truncated: 2 of 3 bytes were scanned, at its head and tail".into();
    Scan { verdict, detail, whole: false, scanned_bytes: 2, ..matched(1, rules) }
}

#[test]
fn what_was_told_is_told_alike_also_after_a_restart_until_something_is_different() {
    for told in [matched(1, 3), in_part(Verdict::Matched, 1), in_part(Verdict::TooLarge, 0)] {
        let world = World::new();
        let verdicts = world.open(1000);
        verdicts.put(&key(1), &key(1), BEGAN, by("v1"), &told);
        for verdicts in [&verdicts, &world.open(1000)] {
            let found = verdicts.get(&key(1), by("v1"), BEGAN);
            assert_eq!(found, Some(Known::Told(Arc::new(told.clone()))));
            assert_eq!(verdicts.get(&key(1), by("v2"), BEGAN), None);
            let larger = By { size_max_bytes: 65, ..by("v1") };
            assert_eq!(verdicts.get(&key(1), larger, BEGAN), None);
            assert_eq!(verdicts.get(&FileKey { mtime_ns: 1, ..key(1) }, by("v1"), BEGAN), None);
            assert_eq!(clean(verdicts, 1, "v1"), None);
            let young = told.verdict == Verdict::TooLarge;
            let found = verdicts.get(&key(1), by("v1"), 69 * SECOND);
            assert_eq!(found.is_none(), young, "{:?}", told.verdict);
        }
        verdicts.forget(&key(1));
        assert_eq!(verdicts.get(&key(1), by("v1"), BEGAN), None);
        assert_eq!(world.open(1000).get(&key(1), by("v1"), BEGAN), None);
    }
}

#[test]
fn where_a_rule_asks_for_the_time_a_verdict_holds_for_its_day() {
    const DAY: i64 = 86_400 * SECOND;
    for scan in [scan(Verdict::Clean, 1), matched(1, 1), in_part(Verdict::TooLarge, 0), matched(1, 200)] {
        let world = World::new();
        let verdicts = world.open(1000);
        let began = 5 * DAY;
        let scan = Scan { of_the_day: true, ..scan };
        verdicts.put(&key(1), &key(1), began, by("v1"), &scan);
        let known = |key: &FileKey, now_ns| verdicts.get(key, by("v1"), now_ns).is_some();
        let found = [began, 6 * DAY - 1, 6 * DAY, 5 * DAY - 1, 4 * DAY].map(|now_ns| known(&key(1), now_ns));
        assert_eq!(found, [true, true, false, false, false], "{:?}", scan.verdict);
        assert_eq!(verdicts.get(&key(1), by("v2"), began), None);
        let mut asking = verdicts.asking("v1").unwrap();
        let clean = scan.verdict == Verdict::Clean;
        assert_eq!(asking.known_clean(&key(1), began + 1).is_some(), clean);
        assert_eq!(asking.known_clean(&key(1), began + DAY), None);
        // Scanners, which do not know of days, must not take it for content that is clean whenever it is asked.
        assert_eq!(verdicts.table().unwrap().get(Region::Digests, &digest(1)), None);
    }
}

#[test]
fn what_is_told_too_long_for_the_disk_is_known_in_this_process_alone() {
    let world = World::new();
    let long = matched(1, 200);
    for verdicts in [world.open(1000), Verdicts::in_memory()] {
        verdicts.put(&key(1), &key(1), BEGAN, by("v1"), &long);
        assert_eq!(verdicts.get(&key(1), by("v1"), BEGAN), Some(Known::Told(Arc::new(long.clone()))));
        verdicts.forget(&key(1));
        assert_eq!(verdicts.get(&key(1), by("v1"), BEGAN), None);
        verdicts.put(&key(1), &key(1), BEGAN, by("v1"), &long);
    }
    assert_eq!(world.open(1000).get(&key(1), by("v1"), BEGAN), None);
}

#[test]
fn a_walk_that_asks_for_neighbours_is_answered_as_everybody_is() {
    let world = World::new();
    let verdicts = world.open(100_000); // so large that no page is full, whatever the key
    let mut asking = verdicts.asking("v1").unwrap();
    for inode in 0..400 {
        assert_eq!(asking.known_clean(&key(inode), BEGAN), None);
        put(&verdicts, inode, "v1");
        assert_eq!(asking.known_clean(&key(inode), BEGAN), Some(digest(inode)));
    }
    let before = asking.recent.reads();
    for inode in 0..400 {
        assert_eq!(asking.known_clean(&key(inode), BEGAN), Some(digest(inode)));
    }
    assert!(asking.recent.reads() - before <= 400 / 16, "{}", asking.recent.reads() - before);
    verdicts.forget(&key(7));
    assert_eq!(asking.known_clean(&key(7), BEGAN), None, "what is forgotten is not found in a page");
    assert_eq!(asking.known_clean(&key(8), 69 * SECOND), None, "young");
    assert_eq!(asking.known_clean(&FileKey { size: 4, ..key(8) }, BEGAN), None, "another file");
    assert!(Verdicts::in_memory().asking("v1").is_none());
}

#[test]
fn what_is_not_certain_is_not_kept() {
    let cases: [(&str, FileKey, i64, Scan); 11] = [
        ("young match", key(1), 11 * SECOND, matched(1, 1)),
        ("changed while read", FileKey { ctime_ns: 11 * SECOND, ..key(1) }, BEGAN, scan(Verdict::Clean, 1)),
        ("young", key(1), 69 * SECOND, scan(Verdict::Clean, 1)),
        ("unstable", key(1), BEGAN, Scan { stable: false, ..scan(Verdict::Clean, 1) }),
        ("of the day", key(1), BEGAN, Scan { lasting: false, ..scan(Verdict::Clean, 1) }),
        ("a part", key(1), BEGAN, Scan { scanned_bytes: 2, ..scan(Verdict::Clean, 1) }),
        ("timed out", key(1), BEGAN, scan(Verdict::TimedOut, 1)),
        ("too large, and whole", key(1), BEGAN, scan(Verdict::TooLarge, 1)),
        ("young in part", key(1), 69 * SECOND, in_part(Verdict::TooLarge, 0)),
        ("part cut short", key(1), BEGAN, Scan { lasting: false, ..in_part(Verdict::TooLarge, 0) }),
        ("unstable match", key(1), BEGAN, Scan { stable: false, ..matched(1, 1) }),
    ];
    for (what, after, began, scan) in cases {
        let world = World::new();
        let verdicts = world.open(1000);
        verdicts.put(&key(1), &after, began, by("v1"), &scan);
        assert_eq!(verdicts.get(&key(1), by("v1"), 999 * SECOND), None, "{what}");
    }
}

/// Whatever happens to the file: what it says is right or nothing, and it works again afterwards.
#[test]
fn a_damaged_file_is_a_miss_and_never_a_wrong_answer() {
    for seed in 0..300u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let world = World::new();
        let verdicts = world.open(1000);
        for inode in 0..300 {
            put(&verdicts, inode, "v1");
            if inode < 20 {
                verdicts.put(&copy(inode), &copy(inode), BEGAN, by("v1"), &matched(inode, 3));
            }
        }
        let file = std::fs::File::options().write(true).read(true).open(&world.path).unwrap();
        let length = file.metadata().unwrap().len();
        if random.random_bool(0.3) {
            file.set_len(random.random_range(0..length)).unwrap();
        }
        for _ in 0..random.random_range(0..200) {
            // Most where it hurts: the header, the entries, the records.
            let (from, to) = match random.random_range(0..4) {
                0 => (0, 4200.min(length)),
                1 => (length.saturating_sub(2 << 20), length),
                _ => (0, length.min(200_000)),
            };
            let at = random.random_range(from..to.max(from + 1));
            let mut byte = [0];
            let _ = file.read_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << random.random_range(0..8);
            file.write_all_at(&byte, at).unwrap();
        }
        let again = world.open(1000);
        for verdicts in [&verdicts, &again] {
            for inode in 0..400 {
                let found = clean(verdicts, inode, "v1");
                assert!(found.is_none() || (inode < 300 && found == Some(digest(inode))), "{inode}");
                assert_eq!(clean(verdicts, inode, "v2"), None);
                let told = verdicts.told(&copy(inode), by("v1"), BEGAN);
                assert!(told.is_none_or(|told| inode < 20 && *told == matched(inode, 3)), "{inode}");
                assert_eq!(clean(verdicts, 1000 + inode, "v1"), None);
            }
            put(verdicts, 7, "v1");
            assert_eq!(clean(verdicts, 7, "v1"), Some(digest(7)));
        }
    }
}

#[test]
fn swapped_entries_are_not_taken_for_each_other() {
    let world = World::new();
    let verdicts = world.open(1000);
    put(&verdicts, 1, "v1");
    let file = std::fs::File::options().write(true).read(true).open(&world.path).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let entry = bytes[clean::HEADER_BYTES..]
        .chunks_exact(clean::ENTRY_BYTES)
        .find(|entry| entry.iter().any(|byte| *byte != 0))
        .unwrap()
        .to_vec();
    for at in (clean::HEADER_BYTES..bytes.len()).step_by(clean::ENTRY_BYTES) {
        bytes[at..at + clean::ENTRY_BYTES].copy_from_slice(&entry);
    }
    file.write_all_at(&bytes, 0).unwrap();
    for inode in 2..1000 {
        assert_eq!(clean(&verdicts, inode, "v1"), None);
    }
}

#[test]
fn it_is_bounded_and_sparse_and_the_newest_stay() {
    let world = World::new();
    let verdicts = world.open(1_000_000);
    let empty = std::fs::metadata(&world.path).unwrap();
    assert!(empty.blocks() * 512 < 1 << 20, "{}", empty.blocks());
    drop(verdicts);
    let verdicts = world.open(1000);
    let length = std::fs::metadata(&world.path).unwrap().len();
    for inode in 0..20_000 {
        let now = BEGAN + i64::try_from(inode).unwrap() * 86_400 * SECOND / 1000;
        verdicts.put(&key(inode), &key(inode), now, by("v1"), &scan(Verdict::Clean, inode));
        assert!(clean(&verdicts, inode, "v1").is_some(), "{inode}");
    }
    assert_eq!(std::fs::metadata(&world.path).unwrap().len(), length);
    let known = |from, to| (from..to).filter(|inode| clean(&verdicts, *inode, "v1").is_some()).count();
    assert!(
        known(0, 10_000) == 0 && known(19_500, 20_000) > 450,
        "{} {}",
        known(0, 10_000),
        known(19_500, 20_000)
    );
}

#[test]
fn two_processes_and_many_threads_use_one_file() {
    let world = World::new();
    let (one, other) = (world.open(2000), world.open(2000));
    std::thread::scope(|scope| {
        for number in 0..4u64 {
            let verdicts = if number % 2 == 0 { &one } else { &other };
            scope.spawn(move || {
                for inode in 0..500 {
                    put(verdicts, inode, "v1");
                    let found = clean(verdicts, inode, "v1");
                    assert!(found.is_none() || found == Some(digest(inode)));
                }
            });
        }
    });
    assert!((0..500).filter(|inode| clean(&one, *inode, "v1").is_some()).count() > 490);
}

#[test]
fn another_size_or_a_strange_file_is_made_anew() {
    let world = World::new();
    put(&world.open(1000), 1, "v1");
    assert!(clean(&world.open(1000), 1, "v1").is_some());
    assert!(clean(&world.open(5000), 1, "v1").is_none());
    put(&world.open(5000), 1, "v1");
    std::fs::set_permissions(&world.path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(clean(&world.open(5000), 1, "v1").is_none(), "others may have written it");
    std::fs::remove_file(&world.path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &world.path).unwrap();
    put(&world.open(5000), 1, "v1");
    assert!(world.path.symlink_metadata().unwrap().is_file());
    std::fs::remove_file(&world.path).unwrap();
    std::fs::create_dir(&world.path).unwrap();
    assert!(Verdicts::open(&world.path, 1000).is_err(), "a folder is not removed");
}
