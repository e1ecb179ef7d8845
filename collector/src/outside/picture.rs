//! Everything at one moment: sums over the fleet beside what the stages say of themselves. Pure.
//!
//! `Lookout` makes one; `findings`, `metrics` and `vidette status` read it. It names no agent.

use super::agents::{Judged, Moment, Problem, State};
use super::process::Process;
use crate::identity::AgentRecord;
use crate::ingest::Totals;
use crate::sinks::Status;
use crate::store::Figures;
use crate::store::commits::{Times, Work};
use crate::store::recent::Day;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What is seen.
#[derive(Debug, Clone)]
pub struct Picture {
    /// When.
    pub moment: Moment,
    /// Since the start. Seconds.
    pub uptime_s: u64,
    /// The fleet.
    pub agents: Sums,
    /// What was stored within a day and since the start.
    pub day: Day,
    /// What ingest counts.
    pub ingest: Totals,
    /// Places for connections.
    pub connections_max: u64,
    /// Sizes of the store's files; `events` is not counted here.
    pub store: Figures,
    /// Free on the store's disk; `None` when the system does not say. Bytes.
    pub free_bytes: Option<u64>,
    /// How long commits take.
    pub commits: Times,
    /// What the writer does.
    pub work: Work,
    /// Why it can't write, as of its last try.
    pub failing: Option<String>,
    /// Each sink.
    pub sinks: Vec<Status>,
    /// End of the collector's own certificate, Unix seconds.
    pub certificate_expires_unix_s: Option<i64>,
    /// What is wrong with it.
    pub certificate_trouble: Option<String>,
    /// End of the certificates of the CA that issues, Unix seconds.
    pub ca_expires_unix_s: Option<i64>,
    /// This process; `None` where there is no `/proc`.
    pub process: Option<Process>,
}

/// The fleet in numbers. Those that are not expected to come back are in `replaced`, `left`, `revoked` and nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// That have joined.
    pub enrolled: u64,
    /// By state: one of them for each.
    pub connected: u64,
    /// Heard a moment ago.
    pub away: u64,
    /// Joined, and never connected since.
    pub never_seen: u64,
    /// Not heard for more than two heartbeats.
    pub silent: u64,
    /// Kept out because they broke the protocol.
    pub cut_off: u64,
    /// Whose host has joined anew.
    #[serde(default)]
    pub replaced: u64,
    /// Whose identity was copied and whose copies are all set aside; among the enrolled.
    #[serde(default)]
    pub cloned: u64,
    /// That left by themselves.
    #[serde(default)]
    pub left: u64,
    /// Shut out for good.
    pub revoked: u64,
    /// Whose identity was copied: two were connected within the hour, or two say that they are one machine.
    #[serde(default)]
    pub copied: u64,
    /// That broke the protocol within the hour, connected again or not.
    pub misbehaving: u64,
    /// Whose oldest event waits too long.
    pub lagging: u64,
    /// The longest time that an event waits now, over the whole fleet. Milliseconds.
    pub lag_ms: u64,
    /// Events that wait on hosts.
    pub waiting_events: u64,
    /// Whose certificate ends soon.
    pub certificates_near: u64,
    /// Whose certificate has ended.
    pub certificates_expired: u64,
    /// With gaps within a day.
    pub with_gaps: u64,
    /// Whose sensors do not see everything.
    pub limited: u64,
    /// Whose clock is wrong.
    #[serde(default)]
    pub clocks_wrong: u64,
    /// That say that a part of them failed.
    pub failed_part: u64,
    /// Different versions of rules.
    pub rules_versions: u64,
}

/// Adds up a fleet.
#[must_use]
pub fn sums(agents: &[(AgentRecord, Judged)]) -> Sums {
    let mut sums = Sums::default();
    let mut rules: HashSet<&str> = HashSet::new();
    for (record, judged) in agents {
        *sums.of(judged.state) += 1;
        if judged.state.is_over() {
            continue;
        }
        sums.enrolled += 1;
        sums.lag_ms = sums.lag_ms.max(judged.lag_ms.unwrap_or(0));
        sums.waiting_events = sums.waiting_events.saturating_add(judged.waiting_events.unwrap_or(0));
        judged.problems.iter().for_each(|problem| sums.problem(problem));
        if !record.rules_version.is_empty() {
            rules.insert(&record.rules_version);
        }
    }
    sums.rules_versions = rules.len() as u64;
    sums
}

impl Sums {
    /// The number of those in one state.
    pub fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Connected => &mut self.connected,
            State::Away => &mut self.away,
            State::NeverSeen => &mut self.never_seen,
            State::Silent => &mut self.silent,
            State::CutOff => &mut self.cut_off,
            State::Replaced => &mut self.replaced,
            State::Cloned => &mut self.cloned,
            State::Left => &mut self.left,
            State::Revoked => &mut self.revoked,
        }
    }

    fn problem(&mut self, problem: &Problem) {
        match problem {
            Problem::Twice(..) | Problem::SameMachine(_) => self.copied += 1,
            Problem::CutOff(..) => self.misbehaving += 1,
            Problem::MustJoinAgain | Problem::CertificateExpired => self.certificates_expired += 1,
            Problem::CertificateNear(_) => self.certificates_near += 1,
            Problem::Lagging(_) => self.lagging += 1,
            Problem::Gaps(_) => self.with_gaps += 1,
            Problem::FailedPart => self.failed_part += 1,
            Problem::LimitedSensors => self.limited += 1,
            Problem::Clock(_) => self.clocks_wrong += 1,
            // Counted by their state.
            Problem::Silent(_) | Problem::NeverSeen(_) | Problem::Cloned(_) => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::outside::agents::tests::{at, record};
    use crate::outside::agents::{Brief, judge};
    use crate::store::recent::Gaps;

    /// Where nothing is wrong.
    pub(crate) fn quiet() -> Picture {
        Picture {
            moment: at(100),
            uptime_s: 7200,
            agents: Sums { enrolled: 3, connected: 3, rules_versions: 1, ..Sums::default() },
            day: Day { is_whole: true, ..Day::default() },
            ingest: Totals::default(),
            connections_max: 20_000,
            store: Figures { bytes: 1 << 30, wal_bytes: 4 << 20, days: 2, ..Figures::default() },
            free_bytes: Some(50 << 30),
            commits: Times { count: 10, p50_us: Some(900), p99_us: Some(4_000), ..Times::default() },
            work: Work::Idle,
            failing: None,
            sinks: Vec::new(),
            certificate_expires_unix_s: Some(at(0).now_unix_s + 86_400 * 60),
            certificate_trouble: None,
            ca_expires_unix_s: Some(at(0).now_unix_s + 86_400 * 600),
            process: None,
        }
    }

    #[test]
    fn every_agent_is_in_one_state_and_the_fleet_is_as_late_as_its_latest() {
        let revoked = AgentRecord { revoked: true, ..record() };
        let late =
            Brief { waiting: Some((7, 400_000)), heard_unix_s: at(100).now_unix_s, ..Brief::default() };
        let fleet: Vec<(AgentRecord, Judged)> = [
            (record(), Some(Brief { is_connected: true, ..late.clone() }), Gaps::default()),
            (record(), Some(late), Gaps { gaps: 1, lost: 1, uncounted: 0 }),
            (AgentRecord { rules_version: "r2".into(), ..record() }, None, Gaps::default()),
            (revoked, None, Gaps { gaps: 9, lost: 9, uncounted: 0 }),
        ]
        .into_iter()
        .map(|(record, brief, gaps)| {
            let judged = judge(&record, brief.as_ref(), gaps, &at(110));
            (record, judged)
        })
        .collect();
        let sums = sums(&fleet);
        assert_eq!((sums.enrolled, sums.connected, sums.away, sums.revoked), (3, 1, 2, 1));
        assert_eq!((sums.lagging, sums.lag_ms, sums.waiting_events), (2, 410_000, 14));
        assert_eq!((sums.with_gaps, sums.rules_versions), (1, 2));
    }
}
