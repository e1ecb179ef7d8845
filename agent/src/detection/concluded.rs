//! Files that were looked at in the state they are in: a rescan need not look at them again. Pure, bounded.
//!
//! A state is trusted when it was older than a tick of the clock that stamps it when the scan began: a later
//! change then has other times. A file system that stamps whole seconds is given more.

use super::lru::Lru;
use crate::worker::poison::FileKey;

/// Times younger than this are not trusted. Nanoseconds.
pub const YOUNG_NS: i64 = 2_000_000_000;
/// Files that are remembered.
pub const CONCLUDED_MAX: usize = 32_768;
/// Longer than a tick of the clock that stamps files: 10 ms at CONFIG_HZ=100. Nanoseconds.
const TICK_NS: i64 = 100_000_000;

/// The set.
#[derive(Debug)]
pub struct Concluded {
    rules_version: String,
    files: Lru<FileKey, ()>,
}

impl Default for Concluded {
    fn default() -> Self {
        Self { rules_version: String::new(), files: Lru::new(CONCLUDED_MAX) }
    }
}

impl Concluded {
    /// A scan that began at `began_ns` (Unix nanoseconds) had this state before and after it.
    pub fn put(&mut self, before: &FileKey, after: &FileKey, began_ns: i64, rules_version: &str) {
        if rules_version != self.rules_version {
            self.files.clear();
            rules_version.clone_into(&mut self.rules_version);
        }
        if before == after && is_settled(before, began_ns) {
            self.files.insert(*before, ());
        }
    }

    /// Whether this state was looked at with these rules.
    pub fn has(&mut self, key: &FileKey, rules_version: &str) -> bool {
        rules_version == self.rules_version && self.files.get(key).is_some()
    }
}

fn is_settled(key: &FileKey, began_ns: i64) -> bool {
    const SECOND_NS: i64 = 1_000_000_000;
    let whole_seconds = key.ctime_ns % SECOND_NS == 0 || key.mtime_ns % SECOND_NS == 0;
    let age_ns = if whole_seconds { YOUNG_NS } else { TICK_NS };
    key.ctime_ns.max(key.mtime_ns) <= began_ns.saturating_sub(age_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ctime_ns: i64) -> FileKey {
        FileKey { device: 1, inode: 2, size: 3, mtime_ns: ctime_ns, ctime_ns }
    }

    #[test]
    fn only_a_state_that_was_settled_when_the_scan_began_is_known() {
        const FINE: i64 = 5_000_000_001;
        const WHOLE: i64 = 5_000_000_000;
        for (ctime, began, known) in [
            (FINE, FINE + TICK_NS, true),
            (FINE, FINE + TICK_NS - 1, false),
            (WHOLE, WHOLE + TICK_NS, false),
            (WHOLE, WHOLE + YOUNG_NS, true),
            (FINE, FINE - YOUNG_NS, false),
        ] {
            let mut concluded = Concluded::default();
            concluded.put(&key(ctime), &key(ctime), began, "v");
            assert_eq!(concluded.has(&key(ctime), "v"), known, "{ctime} {began}");
            assert!(!concluded.has(&key(ctime), "w") && !concluded.has(&key(ctime + 1), "v"));
        }
        let mut concluded = Concluded::default();
        concluded.put(&key(FINE), &key(FINE + 1), FINE + YOUNG_NS, "v");
        assert!(
            !concluded.has(&key(FINE), "v") && !concluded.has(&key(FINE + 1), "v"),
            "it changed meanwhile"
        );
        concluded.put(&key(FINE), &key(FINE), FINE + YOUNG_NS, "v");
        concluded.put(&key(FINE + 1), &key(FINE + 1), FINE + 2 * YOUNG_NS, "w");
        assert!(!concluded.has(&key(FINE), "v"), "other rules");
    }
}
