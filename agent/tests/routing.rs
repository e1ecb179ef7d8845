//! Real rules over real and made-up files: routed and unrouted scans match the same rules, every one.
//!
//! Needs public rule sets: the folder that `VIDETTE_RULESETS` names, else `../shared/data/rulesets` beside the
//! workspace. `VIDETTE_ROUTING_FILES` raises the number of files for a longer run; the seed is printed.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vidette_agent::worker::messages::RuleFile;
use vidette_agent::worker::routing::classes::{COUNT, Class};
use vidette_agent::worker::routing::compare::{Both, Scanners};
use vidette_agent::worker::routing::outline::Outline;

/// Of the system, and as many made up; taken by seed.
const FILES: usize = 400;
/// A file of the system that is larger is cut to it. Bytes.
const FILE_BYTES_MAX: usize = 256 << 10;
/// A file up to it counts as small where times are told. Bytes.
const SMALL_BYTES_MAX: usize = 4 << 10;
/// Files of rules that fail to be a sample of their kind when there are fewer.
const RULE_FILES_MIN: usize = 20;

/// What one scan of each kind cost, in one class.
#[derive(Default, Clone, Copy)]
struct Cost {
    files: u32,
    unrouted: Duration,
    routed: Duration,
}

#[test]
fn public_rules_match_the_same_when_routed() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let count = std::env::var("VIDETTE_ROUTING_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(FILES);
    let rules = rule_files(&rulesets());
    let start = Instant::now();
    let both = Both::compile(&rules);
    println!("{} rules of {} files, compiled in {:?}", both.rules(), rules.len(), start.elapsed());
    tell_sets(&both);
    let mut scanners = both.scanners();
    let mut costs = [Cost::default(); COUNT];
    let (mut scans, mut matched) = (0, 0);
    let paths = system_files();
    assert!(paths.len() > 100, "the system has files to scan");
    for index in 0..count {
        let path = paths.choose(&mut random).expect("a file");
        let Some(bytes) = read(path) else { continue };
        let made = made_up(&mut random, &rules, &bytes);
        for (bytes, from) in [(&bytes, path.display().to_string()), (&made, format!("made-up file {index}"))]
        {
            let found = compare(&mut scanners, bytes, &mut costs)
                .unwrap_or_else(|difference| panic!("seed {seed}, {from}: {difference}"));
            scans += 1;
            matched += usize::from(found > 0);
        }
    }
    println!("{scans} files, {matched} with a match");
    tell_costs(&costs);
    assert!(matched > 0 && scans > count, "the rules met files that they match");
    assert!(both.plan.sets.len() > 1, "the rules were told apart");
}

fn tell_sets(both: &Both) {
    let general = both.rules_of_sets().into_iter().min().unwrap_or_default();
    println!("smallest set {general} rules");
    for (set, rules) in both.plan.sets.iter().zip(both.rules_of_sets()) {
        let files = set.files.as_deref().unwrap_or_default();
        let classes: Vec<Class> =
            Class::ALL.into_iter().filter(|class| set.classes >> class.index() & 1 == 1).collect();
        println!("{rules:>6} rules in {:>4} files for {classes:?}, with {}", files.len(), modules(files));
    }
}

/// Which modules the rules of a set import, and how many files each.
fn modules(files: &[RuleFile]) -> String {
    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    for outline in files.iter().filter_map(|file| Outline::of(&file.text)) {
        for import in outline.imports {
            *modules.entry(import.module).or_default() += 1;
        }
    }
    format!("{modules:?}")
}

fn tell_costs(costs: &[Cost; COUNT]) {
    for (class, cost) in Class::ALL.into_iter().zip(costs).filter(|(_, cost)| cost.files > 0) {
        println!(
            "{class:?}: {} small files, {} µs unrouted, {} µs routed each",
            cost.files,
            (cost.unrouted / cost.files).as_micros(),
            (cost.routed / cost.files).as_micros()
        );
    }
}

/// How many rules matched, or what was different.
fn compare(scanners: &mut Scanners<'_>, bytes: &[u8], costs: &mut [Cost; COUNT]) -> Result<usize, String> {
    let unrouted = scanners.unrouted(bytes).map_err(|error| error.to_string())?;
    let routed = scanners.routed(bytes).map_err(|error| error.to_string())?;
    if bytes.len() <= SMALL_BYTES_MAX {
        // Again, so that neither way pays for a cold cache.
        let cost = &mut costs[Class::of(bytes).index()];
        let start = processor_time();
        scanners.unrouted(bytes).map_err(|error| error.to_string())?;
        let between = processor_time();
        scanners.routed(bytes).map_err(|error| error.to_string())?;
        cost.files += 1;
        cost.unrouted += between - start;
        cost.routed += processor_time() - between;
    }
    if unrouted == routed {
        return Ok(unrouted.len());
    }
    let head: String = bytes.iter().take(16).map(|byte| format!("{byte:02x} ")).collect();
    Err(format!(
        "{head}… is missing {:?} and has {:?}",
        unrouted.difference(&routed).collect::<Vec<_>>(),
        routed.difference(&unrouted).collect::<Vec<_>>()
    ))
}

/// What this thread has used: others may be busy.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("less than a second"))
}

fn rulesets() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/rulesets");
    let folder = std::env::var_os("VIDETTE_RULESETS").map_or(beside, PathBuf::from);
    assert!(
        folder.is_dir(),
        "no rule sets at {}: clone some public repositories of YARA rules (any will do) into a folder and name it in VIDETTE_RULESETS",
        folder.display()
    );
    folder
}

fn rule_files(folder: &Path) -> Vec<RuleFile> {
    let is_rules =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yar" || extension == "yara");
    let mut paths: Vec<PathBuf> = files_below(folder).into_iter().filter(is_rules).collect();
    paths.sort();
    assert!(paths.len() >= RULE_FILES_MIN, "only {} files of rules in {}", paths.len(), folder.display());
    let read = |path: &PathBuf| RuleFile {
        name: path.strip_prefix(folder).expect("below it").display().to_string(),
        text: fs::read(path).expect("a file of rules can be read"),
    };
    paths.iter().map(read).collect()
}

fn system_files() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        ["/usr/bin", "/usr/lib", "/usr/share"].iter().flat_map(|root| files_below(Path::new(root))).collect();
    all.sort();
    all
}

/// Regular files, without following links.
fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.to_path_buf()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    bytes.truncate(FILE_BYTES_MAX);
    Some(bytes)
}

/// A file that begins like one of some class, or nearly, and holds texts that some rules look for.
fn made_up(random: &mut StdRng, rules: &[RuleFile], real: &[u8]) -> Vec<u8> {
    let class = Class::ALL[random.random_range(0..COUNT)];
    let prefix = class.prefixes().choose(random).copied().unwrap_or_default();
    let mut bytes = match random.random_range(0..3) {
        0 => Vec::new(),
        1 => real.iter().take(2048).copied().collect(),
        _ => pe_header(),
    };
    bytes.resize(bytes.len().max(prefix.len()), 0);
    bytes[..prefix.len()].copy_from_slice(prefix);
    if random.random_ratio(1, 3) {
        let place = random.random_range(0..bytes.len().clamp(1, 8));
        if let Some(byte) = bytes.get_mut(place) {
            *byte ^= 1 << random.random_range(0..8);
        }
    }
    if random.random_ratio(1, 10) {
        bytes.truncate(random.random_range(0..=16));
    } else if let Some(file) = rules.choose(random) {
        let text = String::from_utf8_lossy(&file.text);
        for quoted in text.split('"').skip(1).step_by(2).take(200) {
            bytes.extend_from_slice(quoted.replace("\\\\", "\\").as_bytes());
            bytes.push(0);
        }
    }
    bytes
}

/// A PE file of headers and one section.
fn pe_header() -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x40;
    bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
    // winnt.h, IMAGE_FILE_HEADER: machine, number of sections, and the size of the optional header.
    bytes[0x44..0x48].copy_from_slice(&[0x4c, 0x01, 1, 0]);
    bytes[0x54] = 0xe0;
    bytes[0x58..0x5a].copy_from_slice(&[0x0b, 0x01]);
    bytes[0x138] = b'x';
    bytes
}
