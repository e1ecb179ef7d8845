//! Up to when everything was taken care of: a time on disk, moved on while nothing waits and no rescan is owed.
//! After a stop or a crash the first rescan begins there.
//!
//! The time is the host's wall clock, because that is what file systems stamp. A clock that went back makes the
//! rescan look at more, never at less.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Taken off the moment: what was read from the kernel a moment ago may not be committed yet. Nanoseconds.
const SLACK_NS: i64 = 10_000_000_000;
/// Its name in the state folder.
const NAME: &str = "mark";

/// The mark, as Unix nanoseconds; `None` when there is none that can be read, as at the very first start.
#[must_use]
pub fn load(state: &Path) -> Option<i64> {
    std::fs::read_to_string(state.join(NAME)).ok()?.trim().parse().ok()
}

/// Moves it on: nothing that happened before `now_unix_ns` waits any more.
///
/// # Errors
/// When the folder can't be written; the old mark stays.
pub fn save(state: &Path, now_unix_ns: i64) -> std::io::Result<()> {
    let draft = state.join("mark.new");
    let mut file = File::create(&draft)?;
    writeln!(file, "{}", now_unix_ns.saturating_sub(SLACK_NS))?;
    file.sync_all()?;
    std::fs::rename(draft, state.join(NAME))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), None);
        save(folder.path(), 50_000_000_000).unwrap();
        assert_eq!(load(folder.path()), Some(40_000_000_000));
        std::fs::write(folder.path().join(NAME), b"\xff\x00").unwrap();
        assert_eq!(load(folder.path()), None);
    }
}
