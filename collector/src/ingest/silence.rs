//! Agents that fall silent and come back: who has not been heard for two heartbeats is told once, and once more when it is
//! heard again.
//!
//! [`Pulse`] is pure: one an agent, kept by `fleet`, with times of a clock that only goes forward; so wall clocks may jump.
//! The task asks all of them several times a heartbeat and tells `notices`. Nobody is called silent for what the collector
//! did: when it starts, those that it knew to be there have some time to come back, and when it could not look for a
//! while nobody is judged before two more heartbeats.

use super::fleet::Fleet;
use super::notices::{Absent, Notice, Notices};
use crate::identity::{AgentRecord, Identity, REPLACED_HEARD_S};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::HEARTBEATS_MISSED_MAX;

/// So many are told one by one after one look; beyond that, one notice tells of all.
pub(super) const TOLD_SINGLY_MAX: usize = 16;
/// Of the others so many are named.
const NAMED_MAX: usize = 8;
/// How often is looked, in parts of a heartbeat.
const LOOKS_A_HEARTBEAT: u32 = 4;
/// Agents that the register remembers have so long to come back after a start: an agent that was without its collector
/// tries once a minute. Seconds.
const COME_BACK_S: u64 = 120;
/// Who was heard so long before the collector ended was there then: the register is written once a minute. Seconds.
const WRITTEN_S: i64 = 90;

/// When one agent was heard. Times only go forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    heard: Option<Instant>,
    /// It was told to be silent: when it had been heard last.
    silent: Option<Instant>,
    /// And it was heard again then.
    back: Option<Instant>,
    /// It has said that it stops.
    goodbye: bool,
}

/// What became of an agent since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is silent for so long.
    Silent(Duration),
    /// It is back after so long.
    Back(Duration),
}

impl Pulse {
    /// Anything that it said; also that it connects.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
        if self.silent.is_some() {
            self.back.get_or_insert(now);
        }
    }

    /// It connects.
    pub(super) fn came(&mut self, now: Instant) {
        self.goodbye = false;
        self.heard(now);
    }

    /// It has ended its connection because it stops.
    pub(super) fn said_goodbye(&mut self) {
        self.goodbye = true;
    }

    /// Whether its last word was that it stops.
    pub(super) fn has_said_goodbye(&self) -> bool {
        self.goodbye
    }

    /// It was there before the collector started, and has until `at` and two heartbeats to say something.
    pub(super) fn expect(&mut self, at: Instant) {
        self.heard.get_or_insert(at);
    }

    /// What is to be told, once.
    pub(super) fn look(&mut self, now: Instant, patience: Duration) -> Option<Change> {
        if let (Some(since), Some(back)) = (self.silent, self.back) {
            (self.silent, self.back) = (None, None);
            return Some(Change::Back(back.saturating_duration_since(since)));
        }
        let heard = self.heard?;
        let quiet = now.saturating_duration_since(heard);
        if self.silent.is_some() || quiet < patience {
            return None;
        }
        self.silent = Some(heard);
        Some(Change::Silent(quiet))
    }
}

/// When the last look was, and whether looks can be believed.
#[derive(Debug)]
struct Looks {
    heartbeat: Duration,
    last: Instant,
    not_before: Instant,
}

impl Looks {
    fn new(heartbeat: Duration, now: Instant) -> Self {
        Self { heartbeat, last: now, not_before: now }
    }

    fn interval(&self) -> Duration {
        self.heartbeat / LOOKS_A_HEARTBEAT
    }

    fn patience(&self) -> Duration {
        self.heartbeat * HEARTBEATS_MISSED_MAX
    }

    /// Whether this look counts: one that comes late says more of the collector than of its agents.
    fn is_fair(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.last) > self.interval() + self.heartbeat {
            self.not_before = now + self.patience();
        }
        self.last = now;
        now >= self.not_before
    }
}

/// For as long as the collector listens.
pub(super) async fn watch(fleet: Fleet, identity: Identity, notices: Notices, heartbeat_s: u32) {
    let heartbeat = Duration::from_secs(heartbeat_s.into());
    let start = Instant::now();
    let mut looks = Looks::new(heartbeat, start);
    let known = records(&identity).await;
    let known = known.values().filter(|record| is_expected(record));
    let expected = heard_lately(known.map(|one| (one.id, one.last_seen_unix_s)).collect(), heartbeat_s);
    let waits = Duration::from_secs(COME_BACK_S).saturating_sub(looks.patience());
    fleet.expect(expected, start + waits);
    loop {
        tokio::time::sleep(looks.interval()).await;
        let now = Instant::now();
        if !looks.is_fair(now) {
            continue;
        }
        let changes = fleet.pulses(now, looks.patience());
        if !changes.is_empty() {
            let records = records(&identity).await;
            tell(changes.into_iter().filter_map(|seen| absent(seen, &records)), &notices);
        }
    }
}

/// Who is in the register. Nobody when it can't be read: then agents are told by what they said themselves.
async fn records(identity: &Identity) -> HashMap<AgentId, AgentRecord> {
    let identity = identity.clone();
    match tokio::task::spawn_blocking(move || identity.agents()).await {
        Ok(Ok(records)) => records.into_iter().map(|record| (record.id, record)).collect(),
        Ok(Err(error)) => {
            tracing::error!(error = %format!("{error:#}"), "could not look up agents");
            HashMap::new()
        }
        Err(_) => HashMap::new(),
    }
}

/// Who was there when the collector was there last: `known` with when they were heard, Unix seconds. Only times that the
/// collector wrote itself are compared with each other.
fn heard_lately(mut known: Vec<(AgentId, i64)>, heartbeat_s: u32) -> Vec<(AgentId, i64)> {
    let newest = known.iter().map(|(_, heard)| *heard).max().unwrap_or_default();
    let within_s = i64::from(heartbeat_s * HEARTBEATS_MISSED_MAX) + WRITTEN_S;
    known.retain(|(_, heard)| newest.saturating_sub(*heard) <= within_s);
    known
}

/// Nobody waits for one that was revoked, has left, or is another agent by now; nor for one that was never there.
fn is_expected(record: &AgentRecord) -> bool {
    let is_replaced = record.replaced.is_some_and(|(_, at)| record.last_seen_unix_s <= at + REPLACED_HEARD_S);
    let was_seen = record.last_seen_unix_s > record.joined_unix_s;
    !record.revoked && record.left_unix_s.is_none() && !is_replaced && was_seen
}

/// The notice's words for it; none for one that nobody waits for.
fn absent(
    (mut absent, change): (Absent, Change),
    records: &HashMap<AgentId, AgentRecord>,
) -> Option<(Absent, Change)> {
    if let Some(record) = records.get(&absent.agent) {
        let is_over = record.revoked
            || record.left_unix_s.is_some()
            || record.replaced.is_some() && !is_expected(record);
        if matches!(change, Change::Silent(_)) && is_over {
            return None;
        }
        if absent.host_name.is_empty() {
            absent.host_name.clone_from(&record.host_name);
        }
    }
    Some((absent, change))
}

fn tell(changes: impl Iterator<Item = (Absent, Change)>, notices: &Notices) {
    let (mut silent, mut back) = (Vec::new(), Vec::new());
    for (absent, change) in changes {
        match change {
            Change::Silent(since) => silent.push(Absent { time: since, ..absent }),
            Change::Back(after) => back.push(Absent { time: after, ..absent }),
        }
    }
    for (all, is_silent) in [(silent, true), (back, false)] {
        let count = all.len();
        if count > 0 {
            tracing::warn!(agents = count, silent = is_silent, "agents fell silent or came back");
        }
        if count > TOLD_SINGLY_MAX {
            let named = all.into_iter().take(NAMED_MAX).collect();
            notices.tell(&if is_silent {
                Notice::ManySilent { count, named }
            } else {
                Notice::ManyBack { count, named }
            });
            continue;
        }
        for absent in all {
            notices.tell(&if is_silent { Notice::Silent(absent) } else { Notice::Back(absent) });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn at(start: Instant, s: u64) -> Instant {
        start + Duration::from_secs(s)
    }

    #[test]
    fn a_silence_is_told_once_and_so_is_its_end() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        assert_eq!(pulse.look(at(start, 9999), PATIENCE), None, "nobody has ever heard it");
        pulse.came(start);
        let told: Vec<(u64, Change)> = (0..40)
            .filter_map(|look| {
                let s = look * 15;
                if s == 300 {
                    pulse.heard(at(start, 295));
                }
                pulse.look(at(start, s), PATIENCE).map(|change| (s, change))
            })
            .collect();
        let seconds = Duration::from_secs;
        let expected = [
            (120, Change::Silent(seconds(120))),
            (300, Change::Back(seconds(295))),
            (420, Change::Silent(seconds(125))),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_goodbye_lasts_until_it_comes_again() {
        let mut pulse = Pulse::default();
        pulse.came(Instant::now());
        pulse.said_goodbye();
        assert!(pulse.has_said_goodbye());
        pulse.came(Instant::now());
        assert!(!pulse.has_said_goodbye());
    }

    #[test]
    fn who_is_expected_has_its_time_and_what_was_heard_is_not_forgotten() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.expect(at(start, 30));
        assert_eq!(pulse.look(at(start, 149), PATIENCE), None);
        assert_eq!(pulse.look(at(start, 150), PATIENCE), Some(Change::Silent(PATIENCE)));
        let mut heard = Pulse::default();
        heard.came(start);
        heard.expect(at(start, 30));
        assert_eq!(heard.look(at(start, 120), PATIENCE), Some(Change::Silent(PATIENCE)));
    }

    #[test]
    fn a_collector_that_could_not_look_calls_nobody_silent() {
        let start = Instant::now();
        let mut looks = Looks::new(Duration::from_secs(60), start);
        let fair: Vec<u64> = (1..40)
            .map(|look| look * 15 + if look > 4 { 600 } else { 0 })
            .filter(|s| looks.is_fair(at(start, *s)))
            .collect();
        assert_eq!(fair[..5], [15, 30, 45, 60, 795], "it slept from 60 to 675");
    }

    #[test]
    fn after_a_start_only_those_are_expected_that_were_there_before() {
        let id = |number: u8| AgentId([number; 16]);
        let known = vec![(id(0), 9000), (id(1), 9000 - 210), (id(2), 9000 - 211), (id(3), 0)];
        assert_eq!(heard_lately(known, 60), [(id(0), 9000), (id(1), 9000 - 210)]);
        assert_eq!(heard_lately(Vec::new(), 60), []);
    }
}
