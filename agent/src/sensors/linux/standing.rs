//! How one sensor stands after several checks of it: what to say, and when.
//!
//! Pure. A change is told once: Failed with a gap since the check was last good, Ok with a gap until now.

use crate::host::Moment;
use std::collections::BTreeMap;

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Say {
    /// It does not see; nothing is known of this time.
    Failed {
        /// What was not seen and what to do.
        message: String,
        /// When it was last known to see.
        from: Moment,
    },
    /// It sees again; nothing is known of the time in between.
    Well {
        /// Until when its blindness had been told.
        from: Moment,
    },
}

/// One sensor, by name of the check.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    checks: BTreeMap<&'static str, Check>,
    told: Option<Moment>,
}

#[derive(Debug)]
struct Check {
    good: Moment,
    trouble: Option<String>,
}

impl Standing {
    /// A check's result: none is good. `started` is what stands for the last good one before the first.
    pub(crate) fn judge(
        &mut self,
        name: &'static str,
        trouble: Option<String>,
        started: Moment,
        now: Moment,
    ) -> Option<Say> {
        let check = self.checks.entry(name).or_insert(Check { good: started, trouble: None });
        let new = trouble.is_some() && check.trouble.is_none();
        let from = check.good;
        if trouble.is_none() {
            check.good = now;
        }
        check.trouble = trouble;
        if new {
            let from = self.told.unwrap_or(from);
            self.told = Some(now);
            return Some(Say::Failed { message: self.troubles(), from });
        }
        if self.is_well() { self.told.take().map(|from| Say::Well { from }) } else { None }
    }

    /// No check has found anything.
    #[must_use]
    pub(crate) fn is_well(&self) -> bool {
        self.checks.values().all(|check| check.trouble.is_none())
    }

    fn troubles(&self) -> String {
        let all: Vec<&str> = self.checks.values().filter_map(|check| check.trouble.as_deref()).collect();
        all.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u8) -> Moment {
        Moment { unix_ns: i64::from(second), uptime_ns: u64::from(second) }
    }

    #[test]
    fn a_change_is_told_once_with_the_time_that_nobody_saw() {
        let mut standing = Standing::default();
        let mut judge = |name, trouble: Option<&str>, second| {
            standing.judge(name, trouble.map(str::to_owned), at(0), at(second))
        };
        assert_eq!(judge("a", None, 1), None);
        assert_eq!(judge("a", None, 2), None);
        let failed = |message: &str, from| Some(Say::Failed { message: message.into(), from: at(from) });
        assert_eq!(judge("a", Some("x"), 5), failed("x", 2));
        assert_eq!(judge("a", Some("x"), 6), None);
        // Another check's trouble is news; the time before is told already.
        assert_eq!(judge("b", Some("y"), 7), failed("x; y", 5));
        assert_eq!(judge("a", None, 8), None);
        assert_eq!(judge("b", None, 9), Some(Say::Well { from: at(7) }));
        assert_eq!(judge("b", None, 10), None);
        assert_eq!(judge("c", Some("z"), 11), failed("z", 0));
    }
}
