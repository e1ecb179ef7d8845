//! A time without the collector, told when it is over: while it lasts, the collector's own alarm is all that anybody hears.
//!
//! Pure. `pipeline` asks now and then how the transport is.

use super::Told;
use std::time::{Duration, Instant};
use vidette_protocol::escape::terminal;
use vidette_protocol::limits::{HEARTBEAT_S, HEARTBEATS_MISSED_MAX};
use vidette_protocol::wire::Severity;

/// Shorter ones are told only when it was this host's own firewall.
const TOLD_MIN: Duration = Duration::from_secs(30);
/// Different reasons that are told.
const REASONS_MAX: usize = 3;
/// One reason. Bytes.
const REASON_BYTES_MAX: usize = 240;
/// What `transport` says when this host's firewall does not let it send.
pub const FIREWALL: &str = "this host's firewall";

/// How the transport is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// It has a session.
    Connected {
        /// Since when.
        since: Instant,
        /// Why there was none the last time it was tried before.
        failed: Option<&'a str>,
    },
    /// It has none, because of this.
    Failing(&'a str),
    /// It has none, and nothing is wrong: the host has not joined, or the first try is not over.
    Idle,
}

/// Remembers.
#[derive(Debug, Default)]
pub struct Outage {
    since: Option<Instant>,
    /// Of the newest session that was seen.
    connected: Option<Instant>,
    /// Different ones, the first ones first.
    reasons: Vec<String>,
}

impl Outage {
    /// What is to be told.
    pub fn look(&mut self, reach: Reach<'_>, now: Instant) -> Option<Told> {
        match reach {
            Reach::Idle => None,
            Reach::Failing(why) => {
                self.failed(why, now);
                None
            }
            Reach::Connected { since, failed } => {
                // A failure and the session after it may both lie between two looks.
                if self.connected.replace(since) != Some(since)
                    && let Some(why) = failed
                {
                    self.failed(why, now);
                }
                let lasted = now.saturating_duration_since(self.since.take()?);
                let reasons = std::mem::take(&mut self.reasons).join("; then: ");
                told(lasted, &reasons)
            }
        }
    }

    fn failed(&mut self, why: &str, now: Instant) {
        self.since.get_or_insert(now);
        let mut why = terminal(why.as_bytes());
        why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
        if self.reasons.len() < REASONS_MAX && !self.reasons.contains(&why) {
            self.reasons.push(why);
        }
    }
}

fn told(lasted: Duration, reasons: &str) -> Option<Told> {
    let is_firewall = reasons.contains(FIREWALL);
    if lasted < TOLD_MIN && !is_firewall {
        return None;
    }
    let is_long = lasted >= Duration::from_secs(u64::from(HEARTBEAT_S * HEARTBEATS_MISSED_MAX));
    let severity = match (is_firewall, is_long) {
        (true, _) => Severity::High,
        (false, true) => Severity::Medium,
        (false, false) => Severity::Low,
    };
    // From the first failure on: how long that one was tried is not known here.
    let time = match lasted.as_secs() {
        0 => String::new(),
        seconds => format!(" for {seconds} s"),
    };
    let detail = format!("the collector could not be reached{time}: {reasons}");
    Some(Told { action: "collector-unreachable", severity, detail, process: None })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lasting(seconds: u64, reasons: &[&str]) -> Option<Told> {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let connected = |since, failed| Reach::Connected { since, failed };
        assert_eq!(outage.look(connected(start, None), start), None);
        for reason in reasons {
            assert_eq!(outage.look(Reach::Failing(reason), start), None);
        }
        assert_eq!(outage.look(Reach::Idle, start), None);
        let again = start + Duration::from_secs(seconds);
        let told = outage.look(connected(again, reasons.last().copied()), again);
        let later = outage.look(connected(again, reasons.last().copied()), start + Duration::from_secs(9999));
        assert_eq!(later, None, "once");
        told
    }

    #[test]
    fn an_outage_is_told_when_it_is_over_by_its_length_and_reason() {
        assert_eq!(lasting(29, &["no answer"]), None);
        let told = lasting(30, &["no answer", "no answer", "refused\x1b"]).unwrap();
        assert_eq!(told.severity, Severity::Low);
        assert!(told.detail.contains("for 30 s: no answer; then: refused"), "{}", told.detail);
        assert_eq!(lasting(120, &["no answer"]).unwrap().severity, Severity::Medium);
        assert_eq!(lasting(1, &["this host's firewall refuses"]).unwrap().severity, Severity::High);
    }

    #[test]
    fn a_failure_that_ends_before_anybody_looks_is_told_too() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let mut look = |since, failed| outage.look(Reach::Connected { since, failed }, start);
        assert_eq!(look(start, None), None);
        let again = start + Duration::from_millis(1);
        let told = look(again, Some("this host's firewall refuses")).unwrap();
        assert!(told.detail.contains("reached: this host's firewall"), "{}", told.detail);
        assert_eq!(look(again, Some("this host's firewall refuses")), None, "once");
        assert_eq!(look(again + Duration::from_millis(1), Some("no answer")), None, "short, and no firewall");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        for number in 0..1000 {
            outage.look(Reach::Failing(&format!("{number} {}", "ü".repeat(500))), start);
        }
        let again = start + Duration::from_secs(99);
        let told = outage.look(Reach::Connected { since: again, failed: Some("last") }, again).unwrap();
        assert!(told.detail.len() < 1024, "{}", told.detail.len());
    }
}
