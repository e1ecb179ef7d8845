//! What came since the start and within a day, rolled up when it is written: no question about it reads the events.
//!
//! `db` notes each event of a transaction in [`News`], once: what is sent again is not stored again. The writer hands
//! that on after the commit. After a start [`Recent::recall`] is told the events of the last day, newest first, up to a
//! bound. Sums are kept by the hour of the collector's clock, so "a day" is 24 to 25 hours. Goes to `outside`.

use super::db::kind_number;
use std::collections::{BTreeMap, HashMap};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::{Event, GapReason, event::Kind};

/// Hours that are kept, the running one among them.
pub const HOURS_MAX: usize = 25;
/// Agents with gaps of one hour that are told apart; those of more are only in the sums.
pub const HOUR_AGENTS_MAX: usize = 20_000;
/// Events that are read back after a start, at most.
pub const RECALLED_MAX: u64 = 100_000;
/// Kinds that are counted apart: none, then the six of the contract.
const KINDS: usize = 7;
/// Severities of the contract, the unknown one among them.
const SEVERITIES: usize = 6;
/// A day. Nanoseconds.
pub const DAY_NS: i64 = 24 * HOUR_NS;
const HOUR_NS: i64 = 3_600_000_000_000;

/// Gaps, and what they say was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gaps {
    /// Gap events.
    pub gaps: u64,
    /// Events or observations that they name as lost.
    pub lost: u64,
    /// Of the gaps, those whose loss nobody can count.
    pub uncounted: u64,
}

/// What one transaction stored, for the sums.
#[derive(Debug, Default)]
pub struct News {
    kinds: [u64; KINDS],
    severities: [u64; SEVERITIES],
    gaps: Vec<(AgentId, GapReason, Option<u64>)>,
}

/// The sums.
#[derive(Debug, Default)]
pub struct Recent {
    kinds: [u64; KINDS],
    reasons: BTreeMap<GapReason, Gaps>,
    hours: BTreeMap<i64, Hour>,
    recalled: bool,
}

#[derive(Debug, Default)]
struct Hour {
    severities: [u64; SEVERITIES],
    gaps: Gaps,
    agents: HashMap<AgentId, Gaps>,
}

/// A copy of what is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Day {
    /// Events stored since the start, by name of the kind.
    pub stored: Vec<(&'static str, u64)>,
    /// Gaps stored since the start, by reason; reasons that did not occur are absent.
    pub reasons: Vec<(GapReason, Gaps)>,
    /// Alerts of a day by severity's number, none left out.
    pub severities: Vec<(i32, u64)>,
    /// All gaps of a day.
    pub gaps: Gaps,
    /// The same by agent; those without are absent.
    pub agents: HashMap<AgentId, Gaps>,
    /// What was stored before the start is in it, the whole day.
    pub is_whole: bool,
}

impl Gaps {
    fn add(&mut self, count: Option<u64>) {
        self.gaps = self.gaps.saturating_add(1);
        match count {
            // Any number may come from a host: it must not wrap ours.
            Some(lost) => self.lost = self.lost.saturating_add(lost),
            None => self.uncounted = self.uncounted.saturating_add(1),
        }
    }

    fn join(&mut self, other: Self) {
        self.gaps = self.gaps.saturating_add(other.gaps);
        self.lost = self.lost.saturating_add(other.lost);
        self.uncounted = self.uncounted.saturating_add(other.uncounted);
    }
}

impl News {
    /// One event that is being stored.
    pub fn note(&mut self, agent: AgentId, class: Class, event: &Event) {
        if let Some(count) = self.kinds.get_mut(kind_index(event.kind.as_ref())) {
            *count += 1;
        }
        if class == Class::Alert
            && let Some(count) =
                usize::try_from(event.severity).ok().and_then(|at| self.severities.get_mut(at))
        {
            *count += 1;
        }
        if let Some(Kind::Gap(gap)) = &event.kind {
            // A range of numbers that never come says as much as a count.
            let range = || Some(gap.last_seq.checked_sub(gap.first_seq)?.saturating_add(1));
            let count = gap.count.or_else(|| if gap.first_seq > 0 { range() } else { None });
            self.gaps.push((agent, gap.reason(), count));
        }
    }
}

impl Recent {
    /// What was committed now.
    pub fn note(&mut self, news: News, now_unix_ns: i64) {
        for (sum, more) in self.kinds.iter_mut().zip(news.kinds) {
            *sum += more;
        }
        for (_, reason, count) in &news.gaps {
            self.reasons.entry(*reason).or_default().add(*count);
        }
        self.hour(now_unix_ns, news);
    }

    /// What was stored before the start. Counts for the day only.
    pub fn recall(&mut self, news: News, received_unix_ns: i64) {
        self.hour(received_unix_ns, news);
    }

    /// All of the day before the start was recalled.
    pub fn recalled(&mut self) {
        self.recalled = true;
    }

    fn hour(&mut self, at_unix_ns: i64, news: News) {
        let hour = self.hours.entry(at_unix_ns.div_euclid(HOUR_NS)).or_default();
        for (sum, more) in hour.severities.iter_mut().zip(news.severities) {
            *sum += more;
        }
        for (agent, _, count) in news.gaps {
            hour.gaps.add(count);
            if hour.agents.len() < HOUR_AGENTS_MAX || hour.agents.contains_key(&agent) {
                hour.agents.entry(agent).or_default().add(count);
            }
        }
        // Also after a clock that jumped: what is kept is bounded by number, not by time.
        while self.hours.len() > HOURS_MAX {
            self.hours.pop_first();
        }
    }

    /// The sums as of now.
    #[must_use]
    pub fn day(&self, now_unix_ns: i64) -> Day {
        let first = now_unix_ns.div_euclid(HOUR_NS) - 24;
        let mut day = Day { is_whole: self.recalled, ..Day::default() };
        day.stored = KIND_NAMES.into_iter().zip(self.kinds).collect();
        day.reasons = self.reasons.iter().map(|(reason, gaps)| (*reason, *gaps)).collect();
        let mut severities = [0; SEVERITIES];
        for hour in self.hours.range(first..).map(|(_, hour)| hour) {
            severities.iter_mut().zip(hour.severities).for_each(|(sum, more): (&mut u64, u64)| *sum += more);
            day.gaps.join(hour.gaps);
            for (agent, gaps) in &hour.agents {
                day.agents.entry(*agent).or_default().join(*gaps);
            }
        }
        day.severities = (0..).zip(severities).collect();
        day
    }
}

const KIND_NAMES: [&str; KINDS] = ["unknown", "detection", "file", "process", "gap", "health", "audit"];

/// The contract numbers the kinds from 10 on.
fn kind_index(kind: Option<&Kind>) -> usize {
    usize::try_from(kind_number(kind).saturating_sub(9)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vidette_protocol::wire;

    const NOW: i64 = 1_800_000_000_000_000_000;

    fn gap(agent: u8, count: Option<u64>, range: (u64, u64)) -> (AgentId, Event) {
        let gap = wire::Gap {
            reason: GapReason::OutboxBound as i32,
            count,
            first_seq: range.0,
            last_seq: range.1,
            ..Default::default()
        };
        let event = Event { severity: 3, kind: Some(Kind::Gap(gap)), ..Default::default() };
        (AgentId([agent; 16]), event)
    }

    fn news(events: &[(AgentId, Event)]) -> News {
        let mut news = News::default();
        events.iter().for_each(|(agent, event)| news.note(*agent, Class::Alert, event));
        news
    }

    #[test]
    fn gaps_add_up_by_agent_and_reason_and_leave_after_a_day() {
        let mut recent = Recent::default();
        recent.note(news(&[gap(1, Some(5), (0, 0)), gap(1, None, (0, 0)), gap(2, None, (10, 12))]), NOW);
        let day = recent.day(NOW);
        assert_eq!(day.gaps, Gaps { gaps: 3, lost: 8, uncounted: 1 });
        assert_eq!(day.agents[&AgentId([1; 16])], Gaps { gaps: 2, lost: 5, uncounted: 1 });
        assert_eq!(day.reasons, [(GapReason::OutboxBound, day.gaps)]);
        assert_eq!(day.stored.iter().find(|(name, _)| *name == "gap"), Some(&("gap", 3)));
        assert_eq!(day.severities.iter().map(|(_, count)| count).sum::<u64>(), 3);
        let later = recent.day(NOW + 26 * HOUR_NS);
        assert_eq!((later.gaps, later.agents.len()), (Gaps::default(), 0));
        assert_eq!(later.reasons, day.reasons, "what is counted since the start stays");
    }

    #[test]
    fn what_is_recalled_counts_for_the_day_and_not_since_the_start() {
        let mut recent = Recent::default();
        recent.recall(news(&[gap(1, Some(5), (0, 0))]), NOW - HOUR_NS);
        assert!(!recent.day(NOW).is_whole);
        recent.recalled();
        let day = recent.day(NOW);
        assert!(day.is_whole);
        assert_eq!((day.gaps.lost, day.reasons.len()), (5, 0));
        assert!(day.stored.iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn numbers_that_a_host_made_up_and_clocks_that_jump_change_nothing_but_the_sums() {
        let mut recent = Recent::default();
        let huge = [gap(1, Some(u64::MAX), (0, 0)), gap(1, Some(u64::MAX), (0, 0)), gap(1, None, (9, 3))];
        for years in [0, 10, -10, 0, 200] {
            recent.note(news(&huge), NOW + years * 365 * 24 * HOUR_NS);
        }
        assert!(recent.day(NOW).gaps.lost == u64::MAX && recent.hours.len() <= HOURS_MAX);
        for hour in 0..1000 {
            recent.note(news(&huge), NOW + hour * HOUR_NS);
        }
        assert_eq!(recent.hours.len(), HOURS_MAX);
    }

    #[test]
    fn agents_of_one_hour_are_bounded_and_the_sums_go_on() {
        let mut recent = Recent::default();
        let total = HOUR_AGENTS_MAX as u64 + 10;
        for number in 0..total {
            let (_, event) = gap(0, Some(1), (0, 0));
            recent.note(news(&[(AgentId(u128::from(number).to_be_bytes()), event)]), NOW);
        }
        let day = recent.day(NOW);
        assert_eq!((day.gaps.lost, day.agents.len()), (total, HOUR_AGENTS_MAX));
    }
}
