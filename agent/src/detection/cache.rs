//! Verdicts that still hold: what an open descriptor says of a file -> digest; digest and rules -> verdict. Pure.
//!
//! A stat is trusted only when it was old already while the file was read: within the granularity of the file
//! system's clock a file can change and keep its times. Only clean and matched are kept, and only of whole files.
//! A close-write never asks here: a writer through a shared mapping may leave the times as they are.

use super::lru::Lru;
use crate::worker::Scan;
use crate::worker::poison::FileKey;
use std::sync::Arc;
use vidette_protocol::wire::Verdict;

/// Files whose digest is known.
pub const DIGESTS_MAX: usize = 65_536;
/// Digests that are known to be clean.
pub const CLEAN_MAX: usize = 65_536;
/// Digests that are known to match; each with its matches, up to 96 KiB.
pub const MATCHED_MAX: usize = 128;
/// Times younger than this are not trusted. Nanoseconds.
pub const YOUNG_NS: i64 = 2_000_000_000;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    rules_version: String,
    digests: Lru<FileKey, [u8; 32]>,
    clean: Lru<[u8; 32], ()>,
    matched: Lru<[u8; 32], Arc<Scan>>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            rules_version: String::new(),
            digests: Lru::new(DIGESTS_MAX),
            clean: Lru::new(CLEAN_MAX),
            matched: Lru::new(MATCHED_MAX),
        }
    }
}

/// A verdict and the digest it is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// Clean.
    Clean([u8; 32]),
    /// Matched, with everything.
    Matched(Arc<Scan>),
}

impl Cache {
    /// What is known of a file, by the clock `now_ns` (Unix nanoseconds).
    pub fn get(&mut self, key: &FileKey, rules_version: &str, now_ns: i64) -> Option<Known> {
        if rules_version != self.rules_version || !is_settled(key, now_ns) {
            return None;
        }
        let digest = *self.digests.get(key)?;
        if self.clean.get(&digest).is_some() {
            return Some(Known::Clean(digest));
        }
        self.matched.get(&digest).cloned().map(Known::Matched)
    }

    /// Keeps what a scan said, when it may: `before` and `after` are of the descriptor, `began_ns` is when the scan was
    /// asked for.
    pub fn put(
        &mut self,
        before: &FileKey,
        after: &FileKey,
        began_ns: i64,
        rules_version: &str,
        scan: &Scan,
    ) {
        if rules_version != self.rules_version {
            self.clean.clear();
            self.matched.clear();
            rules_version.clone_into(&mut self.rules_version);
        }
        let whole = scan.detail.is_empty() && scan.scanned_bytes == before.size;
        if !(before == after && scan.stable && whole && is_settled(before, began_ns)) {
            return;
        }
        let Some(digest) = scan.blake3 else { return };
        match scan.verdict {
            Verdict::Clean => self.clean.insert(digest, ()),
            Verdict::Matched => self.matched.insert(digest, Arc::new(scan.clone())),
            Verdict::TooLarge
            | Verdict::TimedOut
            | Verdict::Failed
            | Verdict::NotScanned
            | Verdict::Unspecified => return,
        }
        self.digests.insert(*before, digest);
    }
}

fn is_settled(key: &FileKey, now_ns: i64) -> bool {
    key.ctime_ns.max(key.mtime_ns) <= now_ns.saturating_sub(YOUNG_NS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn key() -> FileKey {
        FileKey { device: 1, inode: 2, size: 3, mtime_ns: 10 * SECOND, ctime_ns: 10 * SECOND }
    }

    fn scan(verdict: Verdict) -> Scan {
        Scan {
            verdict,
            blake3: Some([7; 32]),
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

    #[test]
    fn a_settled_file_is_known_again_with_the_same_rules_only() {
        let mut cache = Cache::default();
        cache.put(&key(), &key(), 20 * SECOND, "v1", &scan(Verdict::Clean));
        assert_eq!(cache.get(&key(), "v1", 20 * SECOND), Some(Known::Clean([7; 32])));
        assert_eq!(cache.get(&key(), "v2", 20 * SECOND), None);
        assert_eq!(cache.get(&FileKey { size: 4, ..key() }, "v1", 20 * SECOND), None);
        assert_eq!(cache.get(&key(), "v1", 11 * SECOND), None, "the clock was set back: nothing is certain");
        cache.put(
            &FileKey { inode: 9, ..key() },
            &FileKey { inode: 9, ..key() },
            20 * SECOND,
            "v2",
            &scan(Verdict::Matched),
        );
        assert!(matches!(cache.get(&key(), "v2", 20 * SECOND), Some(Known::Matched(_))), "same digest");
        assert_eq!(cache.get(&key(), "v1", 20 * SECOND), None);
    }

    #[test]
    fn what_is_not_certain_is_not_kept() {
        let cases: [(&str, FileKey, i64, Scan); 6] = [
            (
                "changed while read",
                FileKey { ctime_ns: 11 * SECOND, ..key() },
                20 * SECOND,
                scan(Verdict::Clean),
            ),
            ("young", key(), 11 * SECOND, scan(Verdict::Clean)),
            ("unstable", key(), 20 * SECOND, Scan { stable: false, ..scan(Verdict::Clean) }),
            ("a part", key(), 20 * SECOND, Scan { scanned_bytes: 2, ..scan(Verdict::Clean) }),
            ("timed out", key(), 20 * SECOND, scan(Verdict::TimedOut)),
            ("too large", key(), 20 * SECOND, scan(Verdict::TooLarge)),
        ];
        for (what, after, began, scan) in cases {
            let mut cache = Cache::default();
            cache.put(&key(), &after, began, "v1", &scan);
            assert_eq!(cache.get(&key(), "v1", 99 * SECOND), None, "{what}");
        }
    }
}
