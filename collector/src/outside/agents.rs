//! What is to be thought of one agent: from the register, its connection and its gaps to a state and its problems. Pure;
//! the time is given.
//!
//! Times are the collector's wall clock, because the register outlives the process. An agent is only called silent when
//! this collector has itself listened for that long: after a restart everybody has two heartbeats to come back.

use crate::identity::{AGENT_LIFE_S, AgentRecord, RENEW_GRACE_S};
use crate::ingest::Member;
use crate::store::recent::Gaps;
use std::net::SocketAddr;
use vidette_protocol::escape;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::{CLOCK_PART, HEARTBEATS_MISSED_MAX};
use vidette_protocol::wire::{Health, HealthState, RefuseCode, SensorLevel, Status};

/// A certificate that ends within this should have been renewed: that is done at half its life. Seconds.
pub const CERTIFICATE_NEAR_S: i64 = AGENT_LIFE_S / 4;
/// An agent whose oldest event waits longer than this is late. Milliseconds.
pub const LAG_MS_MAX: u64 = 300_000;
/// An agent that broke the protocol is named for so long. Seconds.
pub const CUT_OFF_SHOWN_S: i64 = 3_600;

/// The time, and since when somebody listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// Unix seconds.
    pub now_unix_s: i64,
    /// When this collector was started, Unix seconds.
    pub started_unix_s: i64,
    /// Between two Status messages. Seconds.
    pub heartbeat_s: u32,
}

/// What is known of an agent's connections to this run of the collector, without names and texts of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brief {
    /// It is connected.
    pub is_connected: bool,
    /// When it was heard last, Unix seconds; 0 when it was only refused.
    pub heard_unix_s: i64,
    /// Events that wait on the host, and the age of the oldest, as of its last Status.
    pub waiting: Option<(u64, u64)>,
    /// When and why it was cut off for breaking the protocol, last.
    pub cut_off: Option<(i64, String)>,
    /// It says itself that a part of it failed.
    pub has_failed_part: bool,
    /// When two connections of it were alive at the same time, last, Unix seconds, and from where.
    pub twice: Option<(i64, SocketAddr, SocketAddr)>,
    /// What it says of its clock, when that is wrong; harmless on a terminal.
    pub clock: Option<String>,
}

/// Exactly one of them for each agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It has a session.
    Connected,
    /// It has none, and was heard a moment ago, or nobody could hear it yet.
    Away,
    /// It has joined and has not connected since.
    NeverSeen,
    /// It was not heard for more than two heartbeats, connected or not.
    Silent,
    /// It is kept out because it broke the protocol.
    CutOff,
    /// The same host, as far as it can be told, has joined anew, and this one was not heard since.
    Replaced,
    /// Its identity was copied: no copy is let in until the right host has joined anew.
    Cloned,
    /// It left by itself.
    Left,
    /// Somebody shut it out.
    Revoked,
}

impl State {
    /// It is not expected to come back.
    #[must_use]
    pub fn is_over(self) -> bool {
        match self {
            Self::Replaced | Self::Left | Self::Revoked => true,
            Self::Connected | Self::Away | Self::NeverSeen | Self::Silent | Self::CutOff | Self::Cloned => {
                false
            }
        }
    }
}

/// What is wrong with an agent; the worst first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Its identity was copied, and all copies are set aside since then, Unix seconds.
    Cloned(i64),
    /// Two hosts use its certificate: when that was seen (Unix seconds), and from where, the older first.
    Twice(i64, SocketAddr, SocketAddr),
    /// It broke the protocol: when (Unix seconds), and how, harmless on a terminal.
    CutOff(i64, String),
    /// Not heard since then, Unix seconds.
    Silent(i64),
    /// Joined then and never came, Unix seconds.
    NeverSeen(i64),
    /// Another agent says that it is on the same machine, and both are heard: a copied image.
    SameMachine(AgentId),
    /// It must join again: its certificate ended so long ago that it can't be renewed.
    MustJoinAgain,
    /// Its certificate has ended.
    CertificateExpired,
    /// Its oldest event waits for so long. Milliseconds.
    Lagging(u64),
    /// It lost something within a day.
    Gaps(Gaps),
    /// Its certificate ends in so many seconds.
    CertificateNear(i64),
    /// Its clock is wrong, says it: how.
    Clock(String),
    /// A part of it has failed, says it.
    FailedPart,
    /// Its sensors do not see everything.
    LimitedSensors,
}

/// What is to be thought of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// In one word.
    pub state: State,
    /// When it was heard last, Unix seconds.
    pub heard_unix_s: i64,
    /// Events that wait on the host, as it said last.
    pub waiting_events: Option<u64>,
    /// For how long the oldest event waits; `None` when nobody knows. Milliseconds.
    pub lag_ms: Option<u64>,
    /// Of a day.
    pub gaps: Gaps,
    /// Until its certificate ends; negative when it has. Seconds.
    pub certificate_left_s: i64,
    /// What is wrong, worst first; nothing for one that is not expected to come back.
    pub problems: Vec<Problem>,
}

impl Brief {
    /// From what the fleet remembers.
    #[must_use]
    pub fn new(member: &Member) -> Self {
        let status = member.status.as_ref();
        let cut_off = match &member.refused {
            Some((when, RefuseCode::Misbehaved, reason)) => {
                Some((*when, escape::terminal(reason.as_bytes())))
            }
            Some(_) | None => None,
        };
        Self {
            is_connected: member.connected_unix_s.is_some(),
            heard_unix_s: member.heard_unix_s,
            waiting: status.map(|status| (status.outbox_events, status.oldest_event_age_ms)),
            cut_off,
            has_failed_part: status
                .is_some_and(|status| status.health.iter().any(|part| part.state() == HealthState::Failed)),
            twice: member.twice_last,
            clock: status.and_then(clock),
        }
    }
}

fn clock(status: &Status) -> Option<String> {
    let wrong = |part: &&Health| part.component == CLOCK_PART && part.state() != HealthState::Ok;
    status.health.iter().find(wrong).map(|part| escape::terminal(part.message.as_bytes()))
}

impl State {
    /// As lists and JSON say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Away => "away",
            Self::NeverSeen => "never_seen",
            Self::Silent => "silent",
            Self::CutOff => "cut_off",
            Self::Replaced => "replaced",
            Self::Cloned => "cloned",
            Self::Left => "left",
            Self::Revoked => "revoked",
        }
    }

    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Connected,
        Self::Away,
        Self::NeverSeen,
        Self::Silent,
        Self::CutOff,
        Self::Replaced,
        Self::Cloned,
        Self::Left,
        Self::Revoked,
    ];
}

impl Problem {
    /// For sorting: a worse one outweighs all that come after it together.
    #[must_use]
    pub fn weight(&self) -> u32 {
        match self {
            Self::Cloned(_) => 1 << 13,
            Self::Twice(..) => 1 << 12,
            Self::CutOff(..) => 1 << 11,
            Self::Silent(_) => 1 << 10,
            Self::NeverSeen(_) => 1 << 9,
            Self::SameMachine(_) => 1 << 8,
            Self::MustJoinAgain => 1 << 7,
            Self::CertificateExpired => 1 << 6,
            Self::Lagging(_) => 1 << 5,
            Self::Gaps(_) => 1 << 4,
            Self::CertificateNear(_) => 1 << 3,
            Self::Clock(_) => 1 << 2,
            Self::FailedPart => 1 << 1,
            Self::LimitedSensors => 1,
        }
    }
}

impl Judged {
    /// How bad it is; 0 for nothing. Ties are broken by lag.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.problems.iter().map(Problem::weight).sum()
    }
}

/// Judges one agent.
#[must_use]
pub fn judge(record: &AgentRecord, brief: Option<&Brief>, gaps: Gaps, moment: &Moment) -> Judged {
    let heard_unix_s = record.last_seen_unix_s.max(brief.map_or(0, |brief| brief.heard_unix_s));
    let state = state(record, brief, heard_unix_s, moment);
    let mut judged = Judged {
        state,
        heard_unix_s,
        waiting_events: brief.and_then(|brief| brief.waiting).map(|(events, _)| events),
        lag_ms: brief.and_then(|brief| lag_ms(brief, moment)),
        gaps,
        certificate_left_s: record.certificate_expires_unix_s.saturating_sub(moment.now_unix_s),
        problems: Vec::new(),
    };
    if !state.is_over() {
        judged.problems = problems(record, brief, &judged, moment);
    }
    judged
}

fn state(record: &AgentRecord, brief: Option<&Brief>, heard_unix_s: i64, moment: &Moment) -> State {
    let is_connected = brief.is_some_and(|brief| brief.is_connected);
    let quiet_s = moment.now_unix_s.saturating_sub(heard_unix_s.max(moment.started_unix_s));
    let is_quiet = quiet_s > i64::from(moment.heartbeat_s) * i64::from(HEARTBEATS_MISSED_MAX);
    if record.revoked {
        State::Revoked
    } else if record.left_unix_s.is_some() {
        State::Left
    } else if !is_connected && is_replaced(record, heard_unix_s, moment) {
        State::Replaced
    } else if record.cloned_unix_s.is_some() {
        State::Cloned
    } else if !is_connected && brief.is_some_and(|brief| cut_off(brief, moment).is_some()) {
        State::CutOff
    } else if !is_connected && heard_unix_s <= record.joined_unix_s {
        State::NeverSeen
    } else if is_quiet {
        State::Silent
    } else if is_connected {
        State::Connected
    } else {
        State::Away
    }
}

/// A newer agent of the same host has joined. Whoever was heard long after that is another host, or a copy.
fn is_replaced(record: &AgentRecord, heard_unix_s: i64, moment: &Moment) -> bool {
    record
        .replaced
        .is_some_and(|(_, at_unix_s)| heard_unix_s <= at_unix_s.saturating_add(heartbeats_s(moment)))
}

fn heartbeats_s(moment: &Moment) -> i64 {
    i64::from(moment.heartbeat_s) * i64::from(HEARTBEATS_MISSED_MAX)
}

fn cut_off<'a>(brief: &'a Brief, moment: &Moment) -> Option<&'a (i64, String)> {
    brief.cut_off.as_ref().filter(|(when, _)| moment.now_unix_s.saturating_sub(*when) <= CUT_OFF_SHOWN_S)
}

/// As of its last Status. What waited when an agent went waits longer every second.
fn lag_ms(brief: &Brief, moment: &Moment) -> Option<u64> {
    let (events, age_ms) = brief.waiting?;
    if events == 0 {
        return Some(0);
    }
    let gone_s =
        if brief.is_connected { 0 } else { moment.now_unix_s.saturating_sub(brief.heard_unix_s).max(0) };
    Some(age_ms.saturating_add(gone_s.unsigned_abs().saturating_mul(1000)))
}

fn problems(record: &AgentRecord, brief: Option<&Brief>, judged: &Judged, moment: &Moment) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(record.cloned_unix_s.map(Problem::Cloned));
    let is_fresh = |when: i64| moment.now_unix_s.saturating_sub(when) <= CUT_OFF_SHOWN_S;
    if let Some((when, older, newer)) =
        brief.and_then(|brief| brief.twice).filter(|(when, ..)| is_fresh(*when))
    {
        problems.push(Problem::Twice(when, older, newer));
    }
    if let Some((when, why)) = brief.and_then(|brief| cut_off(brief, moment)) {
        problems.push(Problem::CutOff(*when, why.clone()));
    }
    let has_had_time = moment.now_unix_s.saturating_sub(record.joined_unix_s) > heartbeats_s(moment);
    match judged.state {
        State::Silent => problems.push(Problem::Silent(judged.heard_unix_s)),
        State::NeverSeen if has_had_time => problems.push(Problem::NeverSeen(record.joined_unix_s)),
        State::NeverSeen
        | State::Connected
        | State::Away
        | State::CutOff
        | State::Replaced
        | State::Cloned
        | State::Left
        | State::Revoked => {}
    }
    if let Some((newer, at_unix_s)) = record.replaced
        && judged.heard_unix_s > at_unix_s.saturating_add(heartbeats_s(moment))
    {
        problems.push(Problem::SameMachine(newer));
    }
    match judged.certificate_left_s {
        left if left < -RENEW_GRACE_S => problems.push(Problem::MustJoinAgain),
        left if left <= 0 => problems.push(Problem::CertificateExpired),
        _ => {}
    }
    if let Some(lag_ms) = judged.lag_ms.filter(|lag_ms| *lag_ms > LAG_MS_MAX) {
        problems.push(Problem::Lagging(lag_ms));
    }
    if judged.gaps.gaps > 0 {
        problems.push(Problem::Gaps(judged.gaps));
    }
    if (1..=CERTIFICATE_NEAR_S).contains(&judged.certificate_left_s) {
        problems.push(Problem::CertificateNear(judged.certificate_left_s));
    }
    problems.extend(brief.and_then(|brief| brief.clock.clone()).map(Problem::Clock));
    if brief.is_some_and(|brief| brief.has_failed_part) {
        problems.push(Problem::FailedPart);
    }
    match SensorLevel::try_from(record.level).unwrap_or_default() {
        SensorLevel::Names | SensorLevel::Polling => problems.push(Problem::LimitedSensors),
        SensorLevel::Full | SensorLevel::Unspecified => {}
    }
    problems
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vidette_protocol::wire;

    pub(crate) const JOINED: i64 = 1_000_000;

    pub(crate) fn record() -> AgentRecord {
        AgentRecord {
            id: AgentId([1; 16]),
            host_name: b"web-1".to_vec(),
            os: String::new(),
            version: String::new(),
            joined_unix_s: JOINED,
            last_seen_unix_s: JOINED + 100,
            level: SensorLevel::Full as i32,
            rules_version: "r1".into(),
            certificate_expires_unix_s: JOINED + AGENT_LIFE_S,
            revoked: false,
            label: None,
            group: None,
            left_unix_s: None,
            replaced: None,
            cloned_unix_s: None,
        }
    }

    pub(crate) fn at(after_s: i64) -> Moment {
        Moment { now_unix_s: JOINED + after_s, started_unix_s: JOINED - 1000, heartbeat_s: 60 }
    }

    fn connected(heard_after_s: i64) -> Brief {
        Brief { is_connected: true, heard_unix_s: JOINED + heard_after_s, ..Brief::default() }
    }

    fn state_of(record: &AgentRecord, brief: Option<&Brief>, moment: &Moment) -> State {
        judge(record, brief, Gaps::default(), moment).state
    }

    #[test]
    fn two_heartbeats_may_pass_and_then_it_is_silent_connected_or_not() {
        let away = Brief { is_connected: false, ..connected(100) };
        let table = [
            (Some(connected(100)), 100, State::Connected),
            (Some(connected(100)), 220, State::Connected),
            (Some(connected(100)), 221, State::Silent),
            (Some(away.clone()), 220, State::Away),
            (Some(away), 221, State::Silent),
            (None, 220, State::Away),
            (None, 221, State::Silent),
            (Some(connected(5000)), 5001, State::Connected),
        ];
        for (brief, after_s, expected) in table {
            assert_eq!(state_of(&record(), brief.as_ref(), &at(after_s)), expected, "{brief:?} {after_s}");
        }
        let judged = judge(&record(), None, Gaps::default(), &at(221));
        assert_eq!(judged.problems, [Problem::Silent(JOINED + 100)]);
    }

    #[test]
    fn after_a_restart_everybody_has_two_heartbeats_to_come_back() {
        let day = 43_200;
        let moment = |after_s| Moment { started_unix_s: JOINED + day, ..at(day + after_s) };
        assert_eq!(state_of(&record(), None, &moment(0)), State::Away);
        assert_eq!(state_of(&record(), None, &moment(120)), State::Away);
        assert_eq!(state_of(&record(), None, &moment(121)), State::Silent);
    }

    #[test]
    fn a_longer_heartbeat_is_waited_for_longer_and_a_clock_that_goes_back_silences_nobody() {
        let slow = |after_s| Moment { heartbeat_s: 600, ..at(after_s) };
        assert_eq!(state_of(&record(), Some(&connected(100)), &slow(1300)), State::Connected);
        assert_eq!(state_of(&record(), Some(&connected(100)), &slow(1301)), State::Silent);
        assert_eq!(state_of(&record(), Some(&connected(100)), &at(-9_999_999)), State::Connected);
    }

    #[test]
    fn revoked_never_seen_and_cut_off_are_told_apart() {
        let revoked = AgentRecord { revoked: true, ..record() };
        let judged = judge(&revoked, None, Gaps { gaps: 1, ..Gaps::default() }, &at(9999));
        assert_eq!((judged.state, judged.problems.len()), (State::Revoked, 0));
        let fresh = AgentRecord { last_seen_unix_s: JOINED, ..record() };
        let judged = judge(&fresh, None, Gaps::default(), &at(60));
        assert_eq!((judged.state, judged.problems.len()), (State::NeverSeen, 0), "it has just joined");
        let judged = judge(&fresh, None, Gaps::default(), &at(121));
        assert_eq!(judged.problems, [Problem::NeverSeen(JOINED)]);
        assert_eq!(state_of(&fresh, Some(&connected(10)), &at(60)), State::Connected);
        let member = Member {
            refused: Some((JOINED + 200, RefuseCode::Misbehaved, "a\u{1b}[2J".into())),
            heard_unix_s: JOINED + 190,
            ..Member::default()
        };
        let brief = Brief::new(&member);
        let judged = judge(&record(), Some(&brief), Gaps::default(), &at(210));
        assert_eq!(judged.state, State::CutOff);
        assert!(
            matches!(&judged.problems[..], [Problem::CutOff(_, why)] if !why.chars().any(char::is_control))
        );
        assert_eq!(state_of(&record(), Some(&brief), &at(201 + CUT_OFF_SHOWN_S)), State::Silent);
        let overloaded = Some((JOINED + 200, RefuseCode::Overloaded, String::new()));
        assert_eq!(Brief::new(&Member { refused: overloaded, ..member }).cut_off, None);
    }

    #[test]
    fn who_was_replaced_has_left_or_is_a_copy_is_told_apart() {
        let newer = AgentId([2; 16]);
        let old = AgentRecord { replaced: Some((newer, JOINED + 100)), ..record() };
        let judged = judge(&old, None, Gaps { gaps: 1, ..Gaps::default() }, &at(9999));
        assert_eq!((judged.state, judged.problems.len()), (State::Replaced, 0));
        assert_eq!(state_of(&old, Some(&connected(150)), &at(150)), State::Connected, "it is about to go");
        let still_there = judge(&old, Some(&connected(400)), Gaps::default(), &at(401));
        assert_eq!(
            (still_there.state, &still_there.problems[..]),
            (State::Connected, &[Problem::SameMachine(newer)][..])
        );
        let gone = Brief { is_connected: false, ..connected(400) };
        assert_eq!(
            state_of(&old, Some(&gone), &at(401)),
            State::Away,
            "it was heard after the newer one joined"
        );
        let left = AgentRecord { left_unix_s: Some(5), ..old.clone() };
        assert_eq!(state_of(&left, None, &at(9999)), State::Left);
        assert_eq!(state_of(&AgentRecord { revoked: true, ..left }, None, &at(9999)), State::Revoked);
        let (one, two) = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into());
        let twice = Brief { twice: Some((JOINED + 50, one, two)), ..connected(100) };
        let judged = judge(&record(), Some(&twice), Gaps::default(), &at(100));
        assert_eq!(judged.problems, [Problem::Twice(JOINED + 50, one, two)]);
        let later = Brief { heard_unix_s: JOINED + 4000, ..twice };
        assert_eq!(judge(&record(), Some(&later), Gaps::default(), &at(4000)).problems, []);
    }

    #[test]
    fn a_copied_agent_is_cloned_until_its_host_has_joined_anew_and_a_wrong_clock_is_no_failed_part() {
        let cloned = AgentRecord { cloned_unix_s: Some(JOINED + 50), ..record() };
        for brief in [None, Some(connected(100))] {
            let judged = judge(&cloned, brief.as_ref(), Gaps::default(), &at(100));
            assert_eq!(
                (judged.state, &judged.problems[..]),
                (State::Cloned, &[Problem::Cloned(JOINED + 50)][..])
            );
        }
        let anew = AgentRecord { replaced: Some((AgentId([2; 16]), JOINED + 200)), ..cloned.clone() };
        let judged = judge(&anew, None, Gaps::default(), &at(300));
        assert_eq!((judged.state, judged.problems.len()), (State::Replaced, 0));
        assert_eq!(
            state_of(&AgentRecord { revoked: true, ..cloned.clone() }, None, &at(300)),
            State::Revoked
        );
        assert_eq!(state_of(&AgentRecord { left_unix_s: Some(1), ..cloned }, None, &at(300)), State::Left);

        let part = |state: HealthState| Health {
            component: CLOCK_PART.into(),
            state: state as i32,
            message: "10 years\u{1b}".into(),
        };
        let brief = |state| {
            let status = Status { health: vec![part(state)], ..Status::default() };
            let member = Member {
                status: Some(status),
                connected_unix_s: Some(JOINED),
                heard_unix_s: JOINED + 100,
                ..Member::default()
            };
            Brief::new(&member)
        };
        assert_eq!(brief(HealthState::Ok).clock, None);
        let judged = judge(&record(), Some(&brief(HealthState::Degraded)), Gaps::default(), &at(100));
        assert!(
            matches!(&judged.problems[..], [Problem::Clock(how)] if !how.contains('\u{1b}')),
            "{judged:?}"
        );
    }

    #[test]
    fn lag_is_what_the_agent_says_and_grows_while_it_is_away() {
        let waiting = |is_connected, events, age_ms| Brief {
            is_connected,
            waiting: Some((events, age_ms)),
            ..connected(100)
        };
        let lag =
            |brief: &Brief, after_s| judge(&record(), Some(brief), Gaps::default(), &at(after_s)).lag_ms;
        assert_eq!(lag(&connected(100), 150), None);
        assert_eq!(lag(&waiting(true, 0, 0), 150), Some(0));
        assert_eq!(lag(&waiting(true, 3, 700), 150), Some(700));
        assert_eq!(lag(&waiting(false, 3, 700), 150), Some(50_700));
        assert_eq!(lag(&waiting(false, 3, u64::MAX), 150), Some(u64::MAX));
        let late = judge(&record(), Some(&waiting(true, 1, LAG_MS_MAX + 1)), Gaps::default(), &at(150));
        assert_eq!(late.problems, [Problem::Lagging(LAG_MS_MAX + 1)]);
    }

    #[test]
    fn certificates_near_their_end_are_told_before_and_after_it() {
        let table = [
            (CERTIFICATE_NEAR_S + 1, None),
            (CERTIFICATE_NEAR_S, Some(Problem::CertificateNear(CERTIFICATE_NEAR_S))),
            (1, Some(Problem::CertificateNear(1))),
            (0, Some(Problem::CertificateExpired)),
            (-RENEW_GRACE_S, Some(Problem::CertificateExpired)),
            (-RENEW_GRACE_S - 1, Some(Problem::MustJoinAgain)),
        ];
        for (left_s, expected) in table {
            let record = AgentRecord { certificate_expires_unix_s: JOINED + 100 + left_s, ..record() };
            let judged = judge(&record, Some(&connected(100)), Gaps::default(), &at(100));
            assert_eq!(judged.problems.first().cloned(), expected, "{left_s}");
        }
    }

    #[test]
    fn what_is_worse_outweighs_everything_that_is_not() {
        let failed = wire::Health { state: HealthState::Failed as i32, ..Default::default() };
        let status = wire::Status {
            outbox_events: 1,
            oldest_event_age_ms: u64::MAX,
            health: vec![failed],
            ..Default::default()
        };
        let member = Member { status: Some(status), heard_unix_s: JOINED, ..Member::default() };
        let bad = AgentRecord { level: SensorLevel::Polling as i32, ..record() };
        let gaps = Gaps { gaps: 2, lost: 9, uncounted: 0 };
        let many = judge(&bad, Some(&Brief::new(&member)), gaps, &at(120));
        assert!(
            many.problems.len() == 4 && many.problems.is_sorted_by_key(|p| std::cmp::Reverse(p.weight()))
        );
        let silent = judge(&record(), None, Gaps::default(), &at(9999));
        assert!(silent.weight() > many.weight());
        assert_eq!(judge(&record(), Some(&connected(100)), Gaps::default(), &at(100)).weight(), 0);
    }
}
