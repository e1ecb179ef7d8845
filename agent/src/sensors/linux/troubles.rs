//! Which troubles are told: those that stay. A mount that is gone when it is to be marked, or is just being put where
//! its process can reach it, is none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A trouble is told when it is still there after so long. Nothing is lost by that: what is marked late is a gap from
/// when it was mounted on.
const STAYS: Duration = Duration::from_secs(1);

/// What was found, and since when.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    since: BTreeMap<String, Instant>,
    /// When what was found last and is not told yet is to be looked at again; none when all is told.
    pub(crate) due: Option<Instant>,
}

impl Troubles {
    /// Takes all that was found at a look. Gives those that stayed, in the order in which they were found.
    pub(crate) fn stayed(&mut self, found: &[String], now: Instant) -> Vec<String> {
        let before = std::mem::take(&mut self.since);
        let since = |trouble: &String| before.get(trouble).copied().unwrap_or(now);
        self.since = found.iter().map(|trouble| (trouble.clone(), since(trouble))).collect();
        self.due = self.since.values().map(|since| *since + STAYS).filter(|due| *due > now).min();
        found.iter().filter(|trouble| now >= since(trouble) + STAYS).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_found_again_and_again_is_told() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        let mut look = |ms: u64, found: &[&str]| {
            let now = start + Duration::from_millis(ms);
            let found: Vec<String> = found.iter().map(|&trouble| trouble.to_owned()).collect();
            let told = troubles.stayed(&found, now);
            (told, troubles.due.map(|due| due.duration_since(start).as_millis()))
        };
        let told = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(look(0, &["b", "a"]), (told(&[]), Some(1_000)));
        assert_eq!(look(400, &["c", "b"]), (told(&[]), Some(1_000)));
        assert_eq!(look(1_000, &["c", "b", "a"]), (told(&["b"]), Some(1_400)), "a was away");
        assert_eq!(look(1_400, &["c", "b", "a"]), (told(&["c", "b"]), Some(2_000)));
        assert_eq!(look(2_000, &["b", "a"]), (told(&["b", "a"]), None));
        assert_eq!(look(9_000, &[]), (told(&[]), None));
        assert_eq!(look(9_001, &["b"]), (told(&[]), Some(10_001)));
    }
}
