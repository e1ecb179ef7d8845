//! The table against a model, its records, and the name of its engine.

use super::recent::Recent;
use super::*;
use crate::worker::Scan;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::HashMap;
use vidette_protocol::wire;

const LOCK: &str = include_str!("../../../../Cargo.lock");

fn table(files: u64) -> (tempfile::TempDir, Table) {
    let folder = tempfile::tempdir().unwrap();
    let table = Table::open(&folder.path().join("table"), Layout::for_files(files)).unwrap();
    (folder, table)
}

fn name(device: u64, inode: u64, change: u8) -> [u8; NAME_BYTES] {
    let mut name = [change; NAME_BYTES];
    name[..8].copy_from_slice(&device.to_le_bytes());
    name[8..16].copy_from_slice(&inode.to_le_bytes());
    name
}

fn entry(random: &mut StdRng) -> Entry {
    Entry { digest: random.random(), version: [random.random_range(0..3); 8] }
}

#[test]
fn the_engine_is_the_one_that_is_built() {
    let (package, version) = ENGINE.split_once(' ').unwrap();
    assert!(LOCK.contains(&format!("name = \"{package}\"\nversion = \"{version}\"\n")), "{ENGINE}");
}

/// Whatever is put, replaced, forgotten and crowded out: a look-up gives what was put last, or nothing; and while there
/// is room it gives it.
#[test]
fn it_does_what_a_map_does_and_forgets_only_when_it_is_full() {
    for seed in 0..60u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let files = [200, 2000][random.random_range(0..2)];
        let (_folder, table) = table(files);
        // A part of the room, all of it, or more.
        let inodes = files * [1, 4, 16][random.random_range(0..3)] / 4;
        let (mut model, mut recent) = (HashMap::new(), Recent::default());
        for step in 0..4000i64 {
            let name =
                name(random.random_range(1..3), random.random_range(0..inodes), random.random_range(0..2));
            match random.random_range(0..10) {
                0..5 => {
                    let entry = entry(&mut random);
                    table.put(Region::Files, &name, &entry, step * DAY_NS / 100);
                    model.insert(name, entry);
                    assert_eq!(table.get(Region::Files, &name), Some(entry));
                }
                5 => {
                    table.forget(Region::Files, &name);
                    model.remove(&name);
                }
                _ => {
                    let found = table.get_near(&mut recent, &name);
                    assert_eq!(found, table.get(Region::Files, &name));
                    assert!(found.is_none() || found.as_ref() == model.get(&name));
                }
            }
        }
        let kept =
            model.iter().filter(|(name, entry)| table.get(Region::Files, *name) == Some(**entry)).count();
        if model.len() as u64 <= files / 2 {
            assert_eq!(kept, model.len(), "with half of the room free nothing is crowded out");
        }
        assert!(
            kept as u64 * 10 >= (model.len() as u64).min(files) * 9,
            "{kept} of {} in {files}",
            model.len()
        );
    }
}

/// As files of a real tree: long runs of inodes that begin at multiples of 8,192.
#[test]
fn a_table_for_so_many_files_holds_so_many() {
    let files = 40_000;
    let (_folder, table) = table(files);
    let mut random = StdRng::seed_from_u64(1);
    let names: Vec<_> =
        (0..40).flat_map(|group| (0..1000).map(move |inode| name(1, group * 8192 + inode, 0))).collect();
    for name in &names {
        table.put(Region::Files, name, &entry(&mut random), DAY_NS);
    }
    let kept = names.iter().filter(|name| table.get(Region::Files, *name).is_some()).count();
    // About 96 of 100, more or less by the table's random key.
    assert!(kept as u64 > files * 93 / 100, "{kept}");
}

fn told(rules: usize) -> Scan {
    let rule = |number| wire::RuleMatch {
        name: format!("rule {number}"),
        severity: wire::Severity::High.into(),
        tags: vec!["tag".into()],
        patterns: vec![wire::PatternMatch {
            identifier: "$a".into(),
            offset: 7,
            length: 3,
            data: vec![1, 2, 255],
        }],
        ..Default::default()
    };
    Scan {
        verdict: wire::Verdict::Matched,
        blake3: Some([1; 32]),
        sha256: Some([2; 32]),
        sha1: Some([3; 20]),
        md5: None,
        whole: true,
        rules: (0..rules).map(rule).collect(),
        detail: "truncated: 1 of 2".into(),
        scan_us: 5,
        scanned_bytes: 1,
        stable: true,
        lasting: true,
        of_the_day: false,
    }
}

#[test]
fn records_are_told_alike_and_the_oldest_goes_first() {
    for seed in 0..20u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let (_folder, table) = table(1000);
        let mut model = HashMap::new();
        for step in 0..400i64 {
            let name = name(1, random.random_range(0..200), 0);
            let (version, scan) = ([random.random_range(0..2); 8], told(random.random_range(1..40)));
            if random.random_bool(0.1) {
                table.forget(Region::Files, &name);
                model.remove(&name);
            } else {
                assert!(table.tell(&name, version, &scan, step * DAY_NS));
                model.insert(name, (version, scan));
            }
            let asked = super::tests::name(1, random.random_range(0..200), 0);
            for version in [[0; 8], [1; 8]] {
                let found = table.told(&asked, version);
                let known = model.get(&asked).filter(|known| known.0 == version).map(|known| &known.1);
                assert!(found.is_none() || found.as_ref() == known);
            }
            let (version, scan) = match model.get(&name) {
                Some(known) => known,
                None => continue,
            };
            assert_eq!(table.told(&name, *version).as_ref(), Some(scan));
        }
        let kept = model.iter().filter(|(name, (version, _))| table.told(name, *version).is_some()).count();
        assert!((40..=64).contains(&kept), "{kept}");
    }
}

#[test]
fn a_record_that_is_too_large_or_damaged_is_none() {
    let (_folder, table) = table(1000);
    let (name, version) = (name(1, 2, 3), [9; 8]);
    assert!(!table.tell(&name, version, &told(2000), 0));
    assert_eq!(table.told(&name, version), None);
    let scan = told(5);
    assert!(table.tell(&name, version, &scan, 0));
    let (_, at) = table.set(&name);
    let at = at.unwrap();
    let length = u64::try_from(crate::worker::messages::encode_kept(&scan).len()).unwrap();
    let places = (at..at + 26).chain(at + 26..at + 64).chain(at + 256..at + 256 + length);
    for place in places {
        let mut byte = [0];
        table.file.read_exact_at(&mut byte, place).unwrap();
        table.file.write_all_at(&[byte[0] ^ 4], place).unwrap();
        assert_eq!(table.told(&name, version), None, "{place}");
        table.file.write_all_at(&byte, place).unwrap();
    }
    assert_eq!(table.told(&name, version), Some(scan));
}
