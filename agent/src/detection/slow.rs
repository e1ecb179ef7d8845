//! When many scans take too long, the rules are at fault and not the files: that is told once, as a state of the rules.
//! Each file is told as well: whoever makes some that take long must not hide another one by that. Pure.
//!
//! Which rule it is can't be known cheaply: the scanner does not time rules. What is told names the rules' version and
//! the next step.

use std::collections::VecDeque;
use vidette_protocol::wire::HealthState;

/// Scans that are looked back at.
pub const WINDOW_SCANS: usize = 64;
/// So many of them that took too long are chance; with more, and ...
pub const TIMED_OUT_MIN: usize = 8;
/// ... at least this share of the window, the rules are slow. Percent.
pub const SLOW_PERCENT: usize = 25;
/// They are fine again when no more than this share takes too long, of a whole window. Percent.
pub const FINE_PERCENT: usize = 5;

const _: () = assert!(FINE_PERCENT < SLOW_PERCENT && TIMED_OUT_MIN < WINDOW_SCANS);

/// How the last scans went.
#[derive(Debug, Default)]
pub struct Slow {
    rules_version: String,
    window: VecDeque<bool>,
    slow: bool,
    /// Files whose scan took too long since that was told.
    files: u64,
}

impl Slow {
    /// A scan with these rules ended. A change of state, if it makes one, with what is to be told.
    pub fn scanned(&mut self, rules_version: &str, timed_out: bool) -> Option<(HealthState, String)> {
        if self.rules_version != rules_version {
            // Other rules have another chance; that those before were slow is over.
            rules_version.clone_into(&mut self.rules_version);
            self.window.clear();
            if std::mem::take(&mut self.slow) {
                return Some((HealthState::Ok, self.fine("other rules are in use")));
            }
        }
        if self.window.len() >= WINDOW_SCANS {
            self.window.pop_front();
        }
        self.window.push_back(timed_out);
        self.files += u64::from(timed_out && self.slow);
        let late = self.window.iter().filter(|timed_out| **timed_out).count();
        let share = 100 * late / self.window.len().max(1);
        match self.slow {
            false if late >= TIMED_OUT_MIN && share >= SLOW_PERCENT => {
                self.slow = true;
                self.files = 0;
                Some((HealthState::Degraded, self.slow_message(late)))
            }
            true if self.window.len() >= WINDOW_SCANS && share <= FINE_PERCENT => {
                self.slow = false;
                Some((HealthState::Ok, self.fine("scans end in time again")))
            }
            true | false => None,
        }
    }

    fn slow_message(&self, late: usize) -> String {
        format!(
            "of the last {} scans {late} took too long with the rules {}: they are too slow for this host; take out the rule \
             files that were added last",
            self.window.len(),
            self.rules_version
        )
    }

    fn fine(&mut self, what: &str) -> String {
        format!(
            "{what}; {} files took too long meanwhile and were not scanned",
            std::mem::take(&mut self.files)
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn slow_rules_are_told_once_and_once_that_they_are_fine() {
        let mut slow = Slow::default();
        let told: Vec<_> = (0..10_000).filter_map(|_| slow.scanned("a", true)).collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].0 == HealthState::Degraded && told[0].1.contains("the rules a"), "{told:?}");
        let told: Vec<_> = (0..1_000).filter_map(|_| slow.scanned("a", false)).collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].0 == HealthState::Ok && told[0].1.contains("9992 files"), "{told:?}");
    }

    #[test]
    fn a_few_files_that_take_too_long_are_only_themselves() {
        for step in [5, 10, 100] {
            let mut slow = Slow::default();
            let told = (0..10_000).filter_map(|scan| slow.scanned("a", scan % step == 0)).count();
            assert_eq!(told, 0, "one of {step}");
        }
        let mut slow = Slow::default();
        let few = TIMED_OUT_MIN - 1;
        assert_eq!((0..few).filter_map(|_| slow.scanned("a", true)).count(), 0, "too few to tell");
    }

    #[test]
    fn other_rules_begin_anew() {
        let mut slow = Slow::default();
        assert_eq!((0..100).filter_map(|_| slow.scanned("a", true)).count(), 1);
        assert_eq!(slow.scanned("b", false).unwrap().0, HealthState::Ok);
        assert_eq!((0..100).filter_map(|_| slow.scanned("b", true)).count(), 1);
    }
}
