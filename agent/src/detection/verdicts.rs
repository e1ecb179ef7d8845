//! Verdicts that still hold: what a file's state says of it -> digest; digest and rules -> clean.
//!
//! Clean verdicts of whole files live in a table on disk (`table`), so that they survive a restart; what matched is
//! kept in memory alone, and scanned again after one. A state is trusted only when it was old already while the file
//! was read: a file can change and keep its times within the granularity of the file system's clock, and through a
//! shared mapping until the kernel has written its dirty pages back (30 s and 5 s by default, admin-guide/sysctl/vm:
//! dirty_expire_centisecs, dirty_writeback_centisecs); the next write then changes the times. A close-write
//! says that content may be new whatever the times say: its file is forgotten, and never looked up.
//!
//! Files on file systems that somebody answers for (FUSE, network) are for the caller to keep away:
//! `sys::filesystem::Word`. Used from several threads; two processes may use one file.

/// Fixed-size entries in a file, found by a keyed fingerprint.
pub mod table;

use super::lru::Lru;
use crate::worker::Scan;
use crate::worker::poison::FileKey;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use table::{Entry, Layout, Region, Table};
use vidette_protocol::wire::Verdict;

/// Its name in the state folder.
pub const NAME: &str = "verdicts.cache";
/// Files that are known by default.
pub const FILES_DEFAULT: u64 = 1_000_000;
/// What a configuration may set.
pub const FILES_RANGE: std::ops::RangeInclusive<u64> = 1_000..=100_000_000;
/// Files that are known to match; each with its matches, up to 96 KiB.
pub const MATCHED_MAX: usize = 128;
/// Times younger than this are not trusted for a clean verdict. Nanoseconds.
pub const YOUNG_NS: i64 = 60_000_000_000;
/// The same for one that matched, where a mistake is an alert too many: granularity of the clock alone. Nanoseconds.
pub const YOUNG_MATCHED_NS: i64 = 2_000_000_000;

/// Where verdicts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file; none keeps nothing beyond this process.
    pub path: Option<PathBuf>,
    /// Files that are known at most.
    pub files_max: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self { path: None, files_max: FILES_DEFAULT }
    }
}

/// The cache.
#[derive(Debug)]
pub struct Verdicts {
    /// None: there is no disk for it, and every file is new.
    table: Option<Table>,
    matched: Mutex<Lru<FileKey, (String, Arc<Scan>)>>,
}

/// A verdict and the digest it is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// Clean.
    Clean([u8; 32]),
    /// Matched, with everything.
    Matched(Arc<Scan>),
}

impl Verdicts {
    /// Nothing on disk.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { table: None, matched: Mutex::new(Lru::new(MATCHED_MAX)) }
    }

    /// The table at `path`, for about `files_max` files; made anew when there is none that can be used.
    ///
    /// # Errors
    /// There is no place for it. Work goes on with [`Self::in_memory`].
    pub fn open(path: &Path, files_max: u64) -> io::Result<Self> {
        let table = Table::open(path, Layout::for_files(files_max.clamp(1, *FILES_RANGE.end())))?;
        Ok(Self { table: Some(table), ..Self::in_memory() })
    }

    /// At its place; in memory, with a warning, where there is no room.
    #[must_use]
    pub fn at(place: &Place) -> Self {
        let Some(path) = &place.path else { return Self::in_memory() };
        Self::open(path, place.files_max).unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                path = %path.display(),
                "could not keep verdicts on disk: files that were scanned are scanned again; check the folder"
            );
            Self::in_memory()
        })
    }

    /// The digest of a file that is clean by these rules, by the clock `now_ns` (Unix nanoseconds). One read of 512
    /// bytes, mostly.
    #[must_use]
    pub fn known_clean(&self, key: &FileKey, rules_version: &str, now_ns: i64) -> Option<[u8; 32]> {
        if !is_settled(key, now_ns, YOUNG_NS) {
            return None;
        }
        let table = self.table.as_ref()?;
        let (name, version) = (bytes_of(key), version_of(rules_version));
        let entry = table.get(Region::Files, &name)?;
        if entry.version == version {
            return Some(entry.digest);
        }
        // Other rules said so of this file, and these rules of its content under another name.
        let clean = table.get(Region::Digests, &entry.digest)?;
        (clean.version == version).then(|| {
            table.put(Region::Files, &name, &Entry { version, ..entry }, now_ns);
            entry.digest
        })
    }

    /// The digest of a file in this state, whatever the rules.
    #[must_use]
    pub fn digest(&self, key: &FileKey, now_ns: i64) -> Option<[u8; 32]> {
        let table = self.table.as_ref().filter(|_| is_settled(key, now_ns, YOUNG_NS))?;
        table.get(Region::Files, &bytes_of(key)).map(|entry| entry.digest)
    }

    /// Whether this content is clean by these rules.
    #[must_use]
    pub fn digest_known_clean(&self, digest: &[u8; 32], rules_version: &str) -> bool {
        let entry = self.table.as_ref().and_then(|table| table.get(Region::Digests, digest));
        entry.is_some_and(|entry| entry.version == version_of(rules_version))
    }

    /// What is known of a file: clean or matched.
    #[must_use]
    pub fn get(&self, key: &FileKey, rules_version: &str, now_ns: i64) -> Option<Known> {
        if let Some(digest) = self.known_clean(key, rules_version, now_ns) {
            return Some(Known::Clean(digest));
        }
        if !is_settled(key, now_ns, YOUNG_MATCHED_NS) {
            return None;
        }
        let mut matched = self.matched();
        let (version, scan) = matched.get(key)?;
        (version == rules_version).then(|| Known::Matched(scan.clone()))
    }

    /// Keeps what a scan said, when it may: `before` and `after` are of the descriptor, `began_ns` is when the scan was
    /// asked for. The caller vouches for the file system.
    pub fn put(&self, before: &FileKey, after: &FileKey, began_ns: i64, rules_version: &str, scan: &Scan) {
        let whole = scan.detail.is_empty() && scan.scanned_bytes == before.size;
        if !(before == after && scan.stable && whole) {
            return;
        }
        let Some(digest) = scan.blake3 else { return };
        match scan.verdict {
            Verdict::Clean if is_settled(before, began_ns, YOUNG_NS) => {
                let Some(table) = &self.table else { return };
                let entry = Entry { digest, version: version_of(rules_version) };
                table.put(Region::Files, &bytes_of(before), &entry, began_ns);
                table.put(Region::Digests, &digest, &entry, began_ns);
            }
            Verdict::Matched if is_settled(before, began_ns, YOUNG_MATCHED_NS) => {
                self.matched().insert(*before, (rules_version.to_owned(), Arc::new(scan.clone())));
            }
            Verdict::Clean
            | Verdict::Matched
            | Verdict::TooLarge
            | Verdict::TimedOut
            | Verdict::Failed
            | Verdict::NotScanned
            | Verdict::Unspecified => {}
        }
    }

    /// Its content may be new though its state is not.
    pub fn forget(&self, key: &FileKey) {
        if let Some(table) = &self.table {
            table.forget(Region::Files, &bytes_of(key));
        }
        self.matched().remove(key);
    }

    fn matched(&self) -> MutexGuard<'_, Lru<FileKey, (String, Arc<Scan>)>> {
        // A map of whole values, whoever panicked while holding it.
        self.matched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_settled(key: &FileKey, now_ns: i64, young_ns: i64) -> bool {
    key.ctime_ns.max(key.mtime_ns) <= now_ns.saturating_sub(young_ns)
}

fn bytes_of(key: &FileKey) -> [u8; 40] {
    let mut bytes = [0; 40];
    let numbers = [
        key.device.to_le_bytes(),
        key.inode.to_le_bytes(),
        key.size.to_le_bytes(),
        key.mtime_ns.to_le_bytes(),
        key.ctime_ns.to_le_bytes(),
    ];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number);
    }
    bytes
}

/// Another version of the agent may compile the same rules to other verdicts.
fn version_of(rules_version: &str) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes()).update(&[0]).update(rules_version.as_bytes());
    let mut version = [0; 8];
    hasher.finalize_xof().fill(&mut version);
    version
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};

    const SECOND: i64 = 1_000_000_000;
    const BEGAN: i64 = 100 * SECOND;

    fn key(inode: u64) -> FileKey {
        FileKey { device: 1, inode, size: 3, mtime_ns: 10 * SECOND, ctime_ns: 10 * SECOND }
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
        verdicts.put(&key(inode), &key(inode), BEGAN, version, &scan(Verdict::Clean, inode));
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
            assert_eq!(verdicts.get(&key(2), "v1", BEGAN), Some(Known::Clean(digest(2))));
            assert_eq!(clean(&verdicts, 2, "v2"), None, "other rules");
            assert_eq!(verdicts.digest(&key(2), BEGAN), Some(digest(2)), "but the same content");
            assert_eq!(verdicts.known_clean(&FileKey { size: 4, ..key(2) }, "v1", BEGAN), None);
            let back = 69 * SECOND;
            assert_eq!(verdicts.known_clean(&key(2), "v1", back), None, "the clock was set back");
            assert!(verdicts.digest_known_clean(&digest(2), "v1"));
            assert!(!verdicts.digest_known_clean(&digest(2), "v2"));
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
        verdicts.put(&copy, &copy, BEGAN, "v2", &scan(Verdict::Clean, 2));
        assert_eq!(clean(&verdicts, 2, "v2"), Some(digest(2)));
    }

    #[test]
    fn what_matched_is_known_in_this_process_and_what_is_forgotten_is_not() {
        let world = World::new();
        let verdicts = world.open(1000);
        verdicts.put(&key(1), &key(1), BEGAN, "v1", &scan(Verdict::Matched, 1));
        assert!(matches!(verdicts.get(&key(1), "v1", BEGAN), Some(Known::Matched(_))));
        assert_eq!(verdicts.get(&key(1), "v2", BEGAN), None);
        assert_eq!(clean(&verdicts, 1, "v1"), None);
        assert_eq!(world.open(1000).get(&key(1), "v1", BEGAN), None);
        put(&verdicts, 2, "v1");
        for inode in [1, 2] {
            verdicts.forget(&key(inode));
            assert_eq!(verdicts.get(&key(inode), "v1", BEGAN), None);
            assert_eq!(world.open(1000).get(&key(inode), "v1", BEGAN), None);
        }
    }

    #[test]
    fn what_is_not_certain_is_not_kept() {
        let cases: [(&str, FileKey, i64, Scan); 7] = [
            ("young match", key(1), 11 * SECOND, scan(Verdict::Matched, 1)),
            (
                "changed while read",
                FileKey { ctime_ns: 11 * SECOND, ..key(1) },
                BEGAN,
                scan(Verdict::Clean, 1),
            ),
            ("young", key(1), 69 * SECOND, scan(Verdict::Clean, 1)),
            ("unstable", key(1), BEGAN, Scan { stable: false, ..scan(Verdict::Clean, 1) }),
            ("a part", key(1), BEGAN, Scan { scanned_bytes: 2, ..scan(Verdict::Clean, 1) }),
            ("timed out", key(1), BEGAN, scan(Verdict::TimedOut, 1)),
            ("too large", key(1), BEGAN, scan(Verdict::TooLarge, 1)),
        ];
        for (what, after, began, scan) in cases {
            let world = World::new();
            let verdicts = world.open(1000);
            verdicts.put(&key(1), &after, began, "v1", &scan);
            assert_eq!(verdicts.get(&key(1), "v1", 999 * SECOND), None, "{what}");
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
            }
            let file = std::fs::File::options().write(true).read(true).open(&world.path).unwrap();
            let length = file.metadata().unwrap().len();
            if random.random_bool(0.3) {
                file.set_len(random.random_range(0..length)).unwrap();
            }
            for _ in 0..random.random_range(0..200) {
                // Half of them where it hurts: the header and the first buckets.
                let end = if random.random_bool(0.3) { 4200.min(length) } else { length };
                let at = random.random_range(0..end);
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
        let entry = bytes[table::HEADER_BYTES..]
            .chunks_exact(table::ENTRY_BYTES)
            .find(|entry| entry.iter().any(|byte| *byte != 0))
            .unwrap()
            .to_vec();
        for at in (table::HEADER_BYTES..bytes.len()).step_by(table::ENTRY_BYTES) {
            bytes[at..at + table::ENTRY_BYTES].copy_from_slice(&entry);
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
            verdicts.put(&key(inode), &key(inode), now, "v1", &scan(Verdict::Clean, inode));
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
}
