//! Lists from disk to look-ups, with real files and real tables.

#![allow(clippy::unwrap_used)]

use super::keeper::Keeper;
use super::*;
use data_encoding::{HEXLOWER, HEXUPPER};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

fn made(files: &[PathBuf], folder: Option<&Path>) -> Hashes {
    let sources = HashSources { files: files.to_vec(), folder: folder.map(Path::to_owned) };
    build(&sources, &AtomicBool::new(false)).unwrap()
}

fn file(folder: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn any(kind: Kind, random: &mut StdRng) -> Vec<u8> {
    let mut digest = vec![0; kind.bytes()];
    random.fill_bytes(&mut digest);
    // Digests that somebody has chosen, so that they lie close together.
    if random.random_bool(0.2) {
        digest[..8].fill(0);
    }
    digest
}

fn line(kind: Kind, digest: &[u8], name: &str, random: &mut StdRng) -> String {
    let mut hex = if random.random_bool(0.5) { HEXLOWER.encode(digest) } else { HEXUPPER.encode(digest) };
    if kind == Kind::Blake3 {
        hex.insert_str(0, "blake3:");
    }
    let end = if random.random_bool(0.2) { "\r\n" } else { "\n" };
    let between =
        if name.is_empty() { "" } else { [" ", "  ", ",", ", ", ";", "\t", " *"][random.random_range(0..7)] };
    format!("{hex}{between}{name}{end}")
}

#[test]
fn every_listed_digest_is_found_with_its_name_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..12u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut texts = vec![String::new(); 10];
        let mut expected: HashMap<(Kind, Vec<u8>), (usize, String)> = HashMap::new();
        for number in 0..[3, 100, 20_000][usize::try_from(seed % 3).unwrap()] {
            let kind = Kind::ALL[random.random_range(0..KINDS)];
            let digest = any(kind, &mut random);
            let name =
                if random.random_bool(0.3) { String::new() } else { format!("name {}", number % 5000) };
            for _ in 0..random.random_range(1..3) {
                let list = random.random_range(0..texts.len());
                texts[list] += &line(kind, &digest, &name, &mut random);
                let first = expected.entry((kind, digest.clone())).or_insert((list, name.clone()));
                first.0 = first.0.min(list);
            }
        }
        let names: Vec<PathBuf> =
            texts.iter().enumerate().map(|(n, text)| file(&folder, &format!("{n}.txt"), text)).collect();
        let hashes = made(&names, (seed % 2 == 0).then(|| folder.path()));
        assert_eq!(hashes.summary().entries, expected.len() as u64, "seed {seed}");
        let mut all: Vec<_> = expected.iter().collect();
        all.shuffle(&mut random);
        for ((kind, digest), (list, name)) in all {
            let list = read::name(&names[*list]);
            let found = hashes.find(*kind, digest).unwrap();
            assert_eq!(found, Some(Found { list, name: name.clone() }), "seed {seed}");
        }
        for _ in 0..100_000 {
            let kind = Kind::ALL[random.random_range(0..KINDS)];
            let digest = any(kind, &mut random);
            let found = hashes.find(kind, &digest).unwrap();
            assert_eq!(found.is_some(), expected.contains_key(&(kind, digest)), "seed {seed}");
        }
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 10, "the tables have no name");
}

#[test]
fn a_name_is_better_than_none_and_the_first_list_than_the_second() {
    let folder = tempfile::tempdir().unwrap();
    let hex = "ab".repeat(16);
    let lists = [
        file(&folder, "1", format!("{hex}\n")),
        file(&folder, "2", format!("{hex} x\n{hex} y\n")),
        file(&folder, "3", format!("{hex} z\n")),
    ];
    let found = |lists: &[PathBuf]| {
        let hashes = made(lists, None);
        assert_eq!(hashes.summary().entries, 1);
        hashes.find(Kind::Md5, &[0xab; 16]).unwrap().unwrap()
    };
    assert_eq!(found(&lists), Found { list: read::name(&lists[1]), name: "x".into() });
    assert_eq!(found(&lists[..1]), Found { list: read::name(&lists[0]), name: String::new() });
    assert_eq!(found(&[lists[0].clone(), lists[0].clone()]).list, read::name(&lists[0]));
}

#[test]
fn bad_lines_cost_themselves_and_a_file_of_them_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (good, other) = ("ab".repeat(32), "cd".repeat(32));
    let mut text = format!("{good}  good\n").into_bytes();
    text.extend_from_slice(&[b"x".repeat(100_000), b"\n\0\n".to_vec()].concat());
    text.extend_from_slice(format!("{good}  again\n{good}\n\n# end").as_bytes());
    let lists = [
        file(&folder, "mixed.txt", text),
        file(&folder, "junk.txt", format!("{other}\nno\nno\nno\n")),
        file(&folder, "half.txt", format!("{other} x\nno\n")),
        file(&folder, "empty.txt", ""),
        folder.path().join("missing.txt"),
        PathBuf::from("/dev/null"),
    ];
    let hashes = made(&lists[..2], Some(folder.path()));
    assert_eq!(hashes.find(Kind::Sha256, &[0xab; 32]).unwrap().unwrap().name, "good");
    assert_eq!(hashes.find(Kind::Sha256, &[0xcd; 32]).unwrap(), None, "it is of a file that is left out");
    let told: Vec<(u64, &str)> =
        hashes.lists()[0].mistakes.iter().map(|(line, mistake)| (*line, mistake.as_str())).collect();
    assert_eq!(told, [(2, "longer than 65536 bytes"), (3, "holds a NUL: is the file text, in UTF-8?")]);
    assert!(
        hashes.complaints().any(|one| one.contains("junk.txt is left out: 3 of its 4 lines are mistakes"))
    );
    let hashes = made(&lists, Some(folder.path()));
    assert!(hashes.find(Kind::Sha256, &[0xcd; 32]).unwrap().is_some(), "half is not more than half");
    let complaints: Vec<String> = hashes.complaints().collect();
    for expected in ["empty.txt has no entry", "missing.txt: No such file", "not a regular file"] {
        assert!(complaints.iter().any(|one| one.contains(expected)), "{expected}: {complaints:?}");
    }
    assert_eq!((hashes.summary().lists, hashes.summary().bad_lines), (2, 6));
}

#[test]
fn versions_tell_contents_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = ("ab".repeat(32), "cd".repeat(32));
    let version = |text: &str| made(&[file(&folder, "list", text)], None).version().to_owned();
    assert_eq!(version(&one).len(), 16);
    assert_eq!(version(&one), version(&one));
    assert_ne!(version(&one), version(&two));
    let (none, some) = (made(&[], None), made(&[file(&folder, "list", &one)], None));
    assert_eq!((none.version(), none.version_with("rules").as_str()), ("", "rules"));
    assert_eq!(some.version_with("rules").len(), 16);
    assert_ne!(some.version_with("rules"), some.version_with("other"));
}

#[test]
fn a_list_that_grows_while_it_is_read_is_read_as_far_as_lines_are_whole() {
    use std::io::Write as _;
    let folder = tempfile::tempdir().unwrap();
    let hex = "ab".repeat(32);
    // Ends within a digest, as a file does that is being written.
    let path = file(&folder, "list", format!("{hex}\n{}", &hex[..40]));
    let mut content = blake3::Hasher::new();
    let mut grown = false;
    let list = read::read(&path, &mut content, &AtomicBool::new(false), |kind, _, _| {
        assert_eq!(kind, Kind::Sha256, "half a SHA-256 is no SHA-1");
        if !std::mem::replace(&mut grown, true) {
            let mut writer = std::fs::File::options().append(true).open(&path).unwrap();
            writer.write_all(format!("{}\n{hex}\n", &hex[40..]).as_bytes()).unwrap();
        }
        Ok(read::Added::Kept)
    });
    let list = list.unwrap();
    assert_eq!((list.total(), list.bad_lines, list.used), (1, 0, true));
    assert!(list.errors[0].contains("changed while it was read"), "{:?}", list.errors);
    assert_eq!(made(&[path], None).summary().entries, 1);
}

#[test]
fn folders_give_their_lists() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    for (number, name) in ["a.txt", "b.csv", "deep/c.hashes", "d.exe"].iter().enumerate() {
        file(&folder, name, format!("{number:032x}\n"));
    }
    let hashes = made(&[folder.path().to_owned()], Some(folder.path()));
    assert_eq!(hashes.entries(Kind::Md5), 3);
    assert_eq!(hashes.wanted(), digests::MD5);
}

#[test]
fn one_that_is_told_to_stop_stops() {
    let folder = tempfile::tempdir().unwrap();
    let list = file(&folder, "list", format!("{}\n", "ab".repeat(32)));
    let sources = HashSources { files: vec![list], folder: None };
    assert!(build(&sources, &AtomicBool::new(true)).is_err());
}

#[test]
fn the_newest_lists_are_those_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for number in 0..50_000 {
        writeln!(text, "{number:064x}").unwrap();
    }
    let sources =
        |name: &str, text: &str| HashSources { files: vec![file(&folder, name, text)], folder: None };
    let mut keeper = Keeper::new(sources("large", &text));
    assert!(keeper.summary().building && keeper.current().wanted() == 0);
    keeper.want(sources("small", &"ab".repeat(16)));
    let mut made = 0;
    while keeper.summary().building {
        let one = keeper.made().recv().unwrap();
        made += usize::from(matches!(keeper.take(one), Some(Ok(_))));
    }
    assert_eq!((made, keeper.current().wanted(), keeper.summary().entries), (1, digests::MD5, 1));
    // What can't be made leaves the old ones in use, and says so.
    keeper.want(HashSources { files: vec![], folder: Some("/nonexistent".into()) });
    let one = keeper.made().recv().unwrap();
    assert!(matches!(keeper.take(one), Some(Err(_))));
    assert_eq!((keeper.summary().entries, keeper.summary().errors.len()), (1, 1));
}

fn scan(verdict: Verdict) -> Scan {
    Scan {
        verdict,
        blake3: Some([1; 32]),
        sha256: Some([2; 32]),
        sha1: Some([3; 20]),
        md5: Some([4; 16]),
        whole: true,
        rules: vec![],
        detail: String::new(),
        scan_us: 0,
        scanned_bytes: 1,
        stable: true,
        lasting: true,
        of_the_day: false,
    }
}

#[test]
fn a_listed_file_has_matched_whatever_else_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let hex = |byte: u8, kind: Kind| HEXLOWER.encode(&vec![byte; kind.bytes()]);
    let cases =
        [(Kind::Blake3, "blake3:", 1), (Kind::Sha256, "", 2), (Kind::Sha1, "", 3), (Kind::Md5, "", 4)];
    for (kind, mark, byte) in cases {
        let hashes = made(&[file(&folder, "list", format!("{mark}{} Evil\n", hex(byte, kind)))], None);
        for verdict in [Verdict::Clean, Verdict::Matched, Verdict::TooLarge, Verdict::TimedOut] {
            let low = RuleMatch { severity: Severity::Low.into(), ..Default::default() };
            let scan = Scan { rules: vec![low], ..scan(verdict) };
            let Outcome::Scanned(judged) = hashes.judge(Outcome::Scanned(scan.clone())) else { panic!() };
            assert_eq!((judged.verdict, judged.rules.len()), (Verdict::Matched, 2), "{kind:?} {verdict:?}");
            let first = &judged.rules[0];
            assert_eq!((first.name.as_str(), first.severity()), ("Evil", Severity::High));
            assert_eq!(first.tags, ["hash-list", kind.word()]);
            assert!(first.namespace.ends_with("list"));
            // A digest of a part says nothing of the file.
            let part = Outcome::Scanned(Scan { whole: false, ..scan });
            assert_eq!(hashes.judge(part.clone()), part);
        }
        let mut without = scan(Verdict::Clean);
        (without.blake3, without.sha256, without.sha1, without.md5) = (None, None, None, None);
        let without = Outcome::Scanned(without);
        assert!(!hashes.can_judge(&without));
        let Outcome::Scanned(judged) = hashes.judge(without) else { panic!() };
        assert_eq!(judged.verdict, Verdict::Failed, "only clean means clean");
    }
    let other = made(&[file(&folder, "list", hex(9, Kind::Sha256))], None);
    let clean = Outcome::Scanned(scan(Verdict::Clean));
    assert!(other.can_judge(&clean));
    assert_eq!(other.judge(clean.clone()), clean);
    assert_eq!(Hashes::default().judge(clean.clone()), clean);
}
