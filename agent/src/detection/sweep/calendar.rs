//! When the daemon sweeps: a pure reckoning, and what it has to remember on disk.
//!
//! Times are the host's wall clock, because they outlive a boot. A clock that is wrong makes a sweep come too early or
//! late, never twice at once; one that went back makes it come now.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// Its name in the state folder.
const NAME: &str = "sweep";

/// The last sweep that saw everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Last {
    /// When it ended. Unix nanoseconds.
    pub finished_unix_ns: i64,
    /// The rules it used.
    pub rules_version: String,
}

/// When the next one is due, Unix nanoseconds; `None` for never. `every_ns` of 0 is never by time alone.
#[must_use]
pub fn due(
    last: Option<&Last>,
    rules_version: &str,
    every_ns: i64,
    after_change: bool,
    now_ns: i64,
) -> Option<i64> {
    let changed = last.is_some_and(|last| last.rules_version != rules_version);
    if after_change && (changed || last.is_none()) {
        return Some(now_ns);
    }
    if every_ns == 0 {
        return None;
    }
    let at = last.map_or(now_ns, |last| last.finished_unix_ns.saturating_add(every_ns));
    // It ended in the future: the clock went back.
    let back = last.is_some_and(|last| last.finished_unix_ns > now_ns);
    Some(if back { now_ns } else { at.max(now_ns) })
}

/// What is remembered; `None` when there is nothing that can be read.
#[must_use]
pub fn load(state: &Path) -> Option<Last> {
    let text = std::fs::read_to_string(state.join(NAME)).ok()?;
    let (finished, rules_version) = text.trim_end().split_once(' ')?;
    Some(Last { finished_unix_ns: finished.parse().ok()?, rules_version: rules_version.to_owned() })
}

/// Remembers it.
///
/// # Errors
/// When the folder can't be written; what was remembered before stays.
pub fn save(state: &Path, last: &Last) -> std::io::Result<()> {
    let draft = state.join("sweep.new");
    let mut file = File::create(&draft)?;
    writeln!(file, "{} {}", last.finished_unix_ns, last.rules_version)?;
    file.sync_all()?;
    std::fs::rename(draft, state.join(NAME))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_due_by_time_and_by_rules() {
        let last = Last { finished_unix_ns: 100, rules_version: "a".into() };
        for (last, version, every, after_change, now, expected) in [
            (Some(&last), "a", 10, true, 105, Some(110)),
            (Some(&last), "a", 10, true, 200, Some(200)),
            (Some(&last), "b", 10, true, 105, Some(105)),
            (Some(&last), "b", 10, false, 105, Some(110)),
            (Some(&last), "b", 0, true, 105, Some(105)),
            (Some(&last), "a", 0, true, 105, None),
            (Some(&last), "b", 0, false, 105, None),
            (Some(&last), "a", 10, true, 99, Some(99)),
            (None, "a", 10, false, 5, Some(5)),
            (None, "a", 0, true, 5, Some(5)),
            (None, "a", 0, false, 5, None),
        ] {
            assert_eq!(
                due(last, version, every, after_change, now),
                expected,
                "{version} {every} {after_change} {now}"
            );
        }
    }

    #[test]
    fn the_last_one_is_read_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), None);
        let last = Last { finished_unix_ns: 7, rules_version: "abc".into() };
        save(folder.path(), &last).unwrap();
        assert_eq!(load(folder.path()), Some(last));
        for text in [&b"\xff\x00"[..], b"", b"x y", b"7"] {
            std::fs::write(folder.path().join(NAME), text).unwrap();
            assert_eq!(load(folder.path()), None);
        }
    }
}
