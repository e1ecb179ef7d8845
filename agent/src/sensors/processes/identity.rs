//! Who is who: entity ids, and which of those that had a pid one after another is meant.
//!
//! Pure. A pid is used again: here after 32,768 forks, which took 1.4 s at full speed on two cores, and at
//! once when somebody with the right to it asks for a number (clone3(2) `set_tid`, `ns_last_pid`). So a process is
//! (boot id, pid, start), never a pid alone.
//!
//! The connector says when a fork was told (nanoseconds, some microseconds after the fact), `/proc/PID/stat`
//! when it was (ticks of 10 ms). Both give the same entity id because only the tenth of a second is hashed; a
//! fork told just after a tenth began is looked up in `/proc` (`is_ambiguous`). A pid that comes round within
//! a tenth of a second gets a round number into its hash: two processes that this agent has seen never share
//! an id. After a restart of the agent a survivor of such a second round has the id of round 0.

/// What an entity id tells apart without a round. Nanoseconds.
const GRANULE_NS: u64 = 100_000_000;
/// A fork is told at most this long after it happened, nearly always. Nanoseconds.
const TOLD_LATE_NS: u64 = 20_000_000;
/// Times of the kernel's messages and of our own reads differ by less. Nanoseconds.
pub(crate) const SLACK_NS: u64 = 1_000_000;

/// One of those that had a pid one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Who {
    /// Thread group id.
    pub(crate) pid: u32,
    /// Number in the order in which the table learned of processes; none is whoever has the pid now.
    pub(crate) life: Option<u64>,
}

impl From<u32> for Who {
    fn from(pid: u32) -> Self {
        Self { pid, life: None }
    }
}

/// What the pidfd of an event says of the process that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It lived after the connector was drained: it has the pid now.
    Lives,
    /// It had its pid still when the event was read, and has ended since, or is waited for.
    Ended,
    /// Its pid was free, or another's, when the event was read.
    Gone,
    /// The same, and whoever has the pid by the table is there now: it was an earlier one.
    Before,
    /// No pidfd.
    Unknown,
}

/// Between which moments an event was queued. CLOCK_BOOTTIME, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Not before.
    pub(crate) since_ns: u64,
    /// The read that brought it began.
    pub(crate) read_ns: u64,
    /// And ended.
    pub(crate) until_ns: u64,
}

/// Whose an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody else can have caused it.
    One(Who),
    /// Nobody with this pid is known.
    Nobody,
    /// Two had the pid in that time. It is attributed to neither.
    Several,
}

/// When somebody had a pid, oldest first. CLOCK_BOOTTIME, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tenure {
    pub(super) who: Who,
    /// Its fork was told.
    pub(super) told_ns: u64,
}

/// Picks. A pid is not given away before its process is reaped, so each one's time ends where the next one's
/// begins. Somebody may be forgotten who ended before `forgotten_ns`.
pub(super) fn pick(
    tenures: &[Tenure],
    standing: Standing,
    window: Window,
    forgotten_ns: Option<u64>,
) -> Holder {
    let Some(last) = tenures.last() else { return Holder::Nobody };
    if standing == Standing::Lives {
        return Holder::One(last.who);
    }
    let tenures = match standing {
        Standing::Before => tenures.get(..tenures.len() - 1).unwrap_or_default(),
        Standing::Lives | Standing::Ended | Standing::Gone | Standing::Unknown => tenures,
    };
    let mut possible = in_window(tenures, last, window);
    if standing == Standing::Ended {
        // The pid was its own during the read: of those that were there before the read only the last.
        let before = possible.iter().rposition(|one| one.told_ns + SLACK_NS < window.read_ns);
        possible.drain(..before.unwrap_or(0));
    }
    match possible[..] {
        [] => Holder::Several,
        [one] => {
            let alone = one.told_ns <= window.since_ns
                || standing == Standing::Ended && one.told_ns + SLACK_NS < window.read_ns
                || tenures.first() != Some(&one)
                || forgotten_ns.is_none_or(|forgotten| forgotten + SLACK_NS < window.since_ns);
            if alone { Holder::One(one.who) } else { Holder::Several }
        }
        _ => Holder::Several,
    }
}

/// Those whose time touches the window. `last` succeeds whoever stands last in a list that it is not in.
fn in_window(tenures: &[Tenure], last: &Tenure, window: Window) -> Vec<Tenure> {
    let ends = tenures.iter().skip(1).map(|next| next.told_ns);
    let after = if tenures.last() == Some(last) { u64::MAX } else { last.told_ns };
    let ends = ends.chain([after]);
    let touching = tenures.iter().zip(ends).filter(|(one, end)| {
        one.told_ns <= window.until_ns.saturating_add(SLACK_NS) && *end >= window.since_ns
    });
    touching.map(|(one, _)| *one).collect()
}

/// Hex of the first 16 bytes of BLAKE3 over boot id, pid, the tenth of a second of its start, and the round
/// when that is not the first; empty when the start is not known.
#[must_use]
pub(crate) fn entity_id(boot_id: &str, pid: u32, start_ns: Option<u64>, round: u32) -> String {
    let Some(start_ns) = start_ns else { return String::new() };
    let mut hasher = blake3::Hasher::new();
    hasher.update(boot_id.as_bytes());
    hasher.update(&[0]);
    hasher.update(&pid.to_le_bytes());
    hasher.update(&granule(start_ns).to_le_bytes());
    if round > 0 {
        hasher.update(&round.to_le_bytes());
    }
    let digest = hasher.finalize();
    data_encoding::HEXLOWER.encode(digest.as_bytes().get(..16).unwrap_or_default())
}

fn granule(start_ns: u64) -> u64 {
    start_ns - start_ns % GRANULE_NS
}

/// Whether a start may belong to the tenth of a second before: ask `/proc`.
#[must_use]
pub(crate) fn is_ambiguous(told_ns: u64) -> bool {
    told_ns % GRANULE_NS < TOLD_LATE_NS
}

/// Whether two starts of one pid are of one process.
#[must_use]
pub(crate) fn is_same_start(one: Option<u64>, other: Option<u64>) -> bool {
    one.map(granule) == other.map(granule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(life: u64) -> Who {
        Who { pid: 7, life: Some(life) }
    }

    fn check(told_ms: &[u64], standing: Standing, window_ms: [u64; 3], expected: Holder) {
        let tenures: Vec<Tenure> =
            (0..).zip(told_ms).map(|(life, ms)| Tenure { who: who(life), told_ns: ms * 1_000_000 }).collect();
        let [since_ns, read_ns, until_ns] = window_ms.map(|ms| ms * 1_000_000);
        let window = Window { since_ns, read_ns, until_ns };
        assert_eq!(
            pick(&tenures, standing, window, None),
            expected,
            "{told_ms:?} {standing:?} {window_ms:?}"
        );
    }

    #[test]
    fn whoever_had_the_pid_at_the_time_is_named_and_two_are_none() {
        check(&[], Standing::Gone, [50, 90, 91], Holder::Nobody);
        check(&[10], Standing::Gone, [50, 90, 91], Holder::One(who(0)));
        check(&[10, 40], Standing::Gone, [50, 90, 91], Holder::One(who(1)));
        check(&[10, 60], Standing::Gone, [50, 90, 91], Holder::Several);
        check(&[10, 60], Standing::Lives, [50, 90, 91], Holder::One(who(1)));
        check(&[10, 60], Standing::Before, [50, 90, 91], Holder::One(who(0)));
        check(&[10, 60], Standing::Ended, [50, 90, 91], Holder::One(who(1)));
        // The later one came after the read.
        check(&[10, 95], Standing::Gone, [50, 90, 91], Holder::One(who(0)));
        check(&[10, 95], Standing::Ended, [50, 90, 91], Holder::One(who(0)));
        // Or perhaps during it.
        check(&[10, 90], Standing::Ended, [50, 90, 91], Holder::Several);
        check(&[10, 60, 70], Standing::Before, [50, 90, 91], Holder::Several);
        check(&[10, 60, 70], Standing::Before, [65, 90, 91], Holder::One(who(1)));
        // Only the one that is there now is known: the one before it is forgotten.
        check(&[60], Standing::Before, [50, 90, 91], Holder::Several);
    }

    #[test]
    fn one_that_may_have_had_a_forgotten_predecessor_is_not_named() {
        let tenures = [Tenure { who: who(0), told_ns: 60_000_000 }];
        let window = Window { since_ns: 50_000_000, read_ns: 90_000_000, until_ns: 91_000_000 };
        let pick = |standing, forgotten| pick(&tenures, standing, window, Some(forgotten));
        assert_eq!(pick(Standing::Gone, 55_000_000), Holder::Several);
        assert_eq!(pick(Standing::Gone, 40_000_000), Holder::One(who(0)));
        assert_eq!(pick(Standing::Ended, 55_000_000), Holder::One(who(0)));
        assert_eq!(pick(Standing::Lives, 55_000_000), Holder::One(who(0)));
    }

    #[test]
    fn both_clocks_give_one_id() {
        // Told 30 µs after the fact, read back in ticks of 10 ms.
        let told = 5_163_000_030;
        let stat = 5_160_000_000;
        assert!(!is_ambiguous(told));
        assert_eq!(entity_id("b", 1, Some(told), 0), entity_id("b", 1, Some(stat), 0));
        // Right after a tenth began, the fact may lie before: that must be looked up.
        assert!(is_ambiguous(5_200_000_030));
        let others = [("c", 1, 0), ("b", 2, 0), ("b", 1, 1)];
        for (boot, pid, round) in others {
            assert_ne!(entity_id("b", 1, Some(told), 0), entity_id(boot, pid, Some(told), round));
        }
    }
}
