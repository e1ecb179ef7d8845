//! What somebody should look at: today (a warning), or now (critical). Pure: a picture in, sentences out.
//!
//! `vidette status` prints them, `vidette status --check` makes its exit code of the worst. Every finding says how much
//! and which command shows more.

use super::agents::LAG_MS_MAX;
use super::picture::Picture;
use super::probes;
use crate::sinks::{State, Status};
use serde::{Deserialize, Serialize};
use vidette_protocol::escape;

/// Stored events that a sink may be behind.
pub const SINK_LAG_EVENTS_MAX: u64 = 100_000;
/// A write-ahead log above this means that a reader is stuck. Bytes.
pub const WAL_BYTES_MAX: u64 = 512 << 20;
/// Nearly all commits should take at most this. Microseconds.
pub const COMMIT_P99_US_MAX: u64 = 1_000_000;
/// Free space below which somebody should look today, and now. Bytes.
pub const FREE_BYTES_LOW: u64 = 5 << 30;
/// See [`FREE_BYTES_LOW`]. Bytes.
pub const FREE_BYTES_CRITICAL: u64 = 512 << 20;
/// With less than this left somebody should look at a certificate of the collector or its CA. The collector renews its own
/// at half its life, long before. Seconds.
pub const CERTIFICATE_LOW_S: i64 = 30 * 86_400;

const _: () = assert!(probes::FREE_BYTES_MIN < FREE_BYTES_CRITICAL && FREE_BYTES_CRITICAL < FREE_BYTES_LOW);

/// How bad. As monitoring plugins number their exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do.
    Ok = 0,
    /// Look today.
    Warning = 1,
    /// Look now: events wait or are in danger.
    Critical = 2,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// What, harmless on a terminal.
    pub text: String,
}

/// The worst of them.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// Everything that needs attention, the worst first.
#[must_use]
pub fn findings(picture: &Picture) -> Vec<Finding> {
    let mut found = Vec::new();
    store(picture, &mut found);
    certificates(picture, &mut found);
    agents(picture, &mut found);
    let sinks = picture.sinks.iter().filter_map(sink);
    found.extend(sinks.map(|text| Finding { level: Level::Warning, text }));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level)); // stable: the order of writing within a level
    found
}

fn store(picture: &Picture, found: &mut Vec<Finding>) {
    let mut add = |level, text: String| found.push(Finding { level, text });
    if let Err(why) = probes::alive(picture.work) {
        add(Level::Critical, why);
    }
    if let Some(reason) = &picture.failing {
        add(Level::Critical, format!("nothing can be stored: {}", escape::terminal(reason.as_bytes())));
    }
    match picture.free_bytes {
        Some(free) if free < FREE_BYTES_CRITICAL => {
            add(Level::Critical, format!("the store's disk has {} MiB left", free >> 20));
        }
        Some(free) if free < FREE_BYTES_LOW => {
            add(Level::Warning, format!("the store's disk has {} MiB left", free >> 20));
        }
        Some(_) | None => {}
    }
    if picture.store.damaged_days > 0 {
        let text = "{} of the store can't be read and is passed over: see the log, and restart `vidette serve` to save what can be read of the newest";
        add(Level::Critical, text.replace("{}", &counted(picture.store.damaged_days, "day")));
    }
    if picture.store.damaged_events > 0 {
        let text = "{} lost its content on the store's disk: see the log, check the disk";
        add(Level::Critical, text.replace("{}", &counted(picture.store.damaged_events, "stored event")));
    }
    if picture.store.missing_events > 0 {
        let text =
            "{} can't be found any more in the store's files: run `vidette store check`, check the disk";
        add(Level::Critical, text.replace("{}", &counted(picture.store.missing_events, "stored event")));
    }
    if picture.store.wrong_indexes > 0 {
        let text =
            "the store's index is wrong in {}, filters may pass over events: run `vidette store check`";
        add(Level::Critical, text.replace("{}", &counted(picture.store.wrong_indexes, "part")));
    }
    if picture.store.wal_bytes > WAL_BYTES_MAX {
        let text = "the store's write-ahead log holds {} MiB: a reader is stuck; restart `vidette serve`";
        add(Level::Warning, text.replace("{}", &(picture.store.wal_bytes >> 20).to_string()));
    }
    if let Some(us) = picture.commits.p99_us.filter(|us| *us > COMMIT_P99_US_MAX) {
        add(
            Level::Warning,
            format!("commits are slow, the 99th of 100 takes {} ms: look at the disk", us / 1000),
        );
    }
}

fn certificates(picture: &Picture, found: &mut Vec<Finding>) {
    let mut add = |level, text: String| found.push(Finding { level, text });
    let left = |end: Option<i64>| end.map(|end| end.saturating_sub(picture.moment.now_unix_s));
    let trouble = picture.certificate_trouble.as_ref();
    let why = trouble.map_or_else(String::new, |why| format!(": {}", escape::terminal(why.as_bytes())));
    match left(picture.certificate_expires_unix_s) {
        Some(..=0) => add(
            Level::Critical,
            format!(
                "the collector's own certificate has expired and is served as it is{why}; see `vidette ca show` and the log"
            ),
        ),
        Some(left) if left < CERTIFICATE_LOW_S => add(
            Level::Warning,
            format!(
                "the collector's own certificate ends in {} d and was not renewed{why}; see the log",
                left / 86_400
            ),
        ),
        Some(_) | None if trouble.is_some() => {
            add(Level::Warning, format!("the collector's own certificate is not as it should be{why}"));
        }
        Some(_) | None => {}
    }
    match left(picture.ca_expires_unix_s) {
        Some(..=0) => add(
            Level::Critical,
            "the CA's certificate has expired: replace it, beginning with `vidette ca prepare`".into(),
        ),
        Some(left) if left < CERTIFICATE_LOW_S => add(
            Level::Warning,
            format!(
                "the CA's certificate ends in {} d: replace it, beginning with `vidette ca prepare`",
                left / 86_400
            ),
        ),
        Some(_) | None => {}
    }
}

fn agents(picture: &Picture, found: &mut Vec<Finding>) {
    let sums = &picture.agents;
    if sums.silent > 0 {
        let silent = format!("{} silent: `vidette agents list --silent`", agents_are(sums.silent));
        found.push(match sums.connected {
            0 => Finding { level: Level::Critical, text: format!("no agent is heard, {silent}") },
            _ => Finding { level: Level::Warning, text: silent },
        });
    }
    let mut add = |count: u64, text: String| {
        if count > 0 {
            found.push(Finding { level: Level::Warning, text });
        }
    };
    let more = "`vidette agents list --problems`";
    let cloned = format!(
        "{} cloned and set aside, with every copy: {more}; join the right host again",
        agents_are(sums.cloned)
    );
    add(sums.cloned, cloned);
    add(sums.clocks_wrong, format!("{} on a host with a wrong clock: {more}", agents_are(sums.clocks_wrong)));
    add(sums.misbehaving, format!("{} breaking the protocol: {more}", agents_are(sums.misbehaving)));
    add(
        sums.lagging,
        format!(
            "{} more than {} s late: `vidette agents list --lagging`",
            agents_are(sums.lagging),
            LAG_MS_MAX / 1000
        ),
    );
    let gaps = picture.day.gaps;
    let uncounted = if gaps.uncounted > 0 { " and more that nobody could count" } else { "" };
    add(
        gaps.gaps,
        format!(
            "{} gaps in 24 h, {} events lost{uncounted}: `vidette alerts list --kind gap`",
            gaps.gaps, gaps.lost
        ),
    );
    let ends = sums.certificates_near + sums.certificates_expired;
    add(
        ends,
        format!(
            "{} certificates should have been renewed, {} of them have ended: {more}",
            ends, sums.certificates_expired
        ),
    );
    add(sums.failed_part, format!("{} reporting a failed part: {more}", agents_are(sums.failed_part)));
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn agents_are(count: u64) -> String {
    if count == 1 { "1 agent is".into() } else { format!("{count} agents are") }
}

fn sink(sink: &Status) -> Option<String> {
    let error = escape::terminal(sink.last_error.as_deref().unwrap_or("see the log").as_bytes());
    match sink.state {
        State::Retrying => Some(format!("sink `{}` fails and tries again: {error}", sink.name)),
        State::Stopped => Some(format!("sink `{}` has stopped: {error}", sink.name)),
        State::Starting | State::Running if sink.lag_events > SINK_LAG_EVENTS_MAX => {
            Some(format!("sink `{}` is {} events behind: `vidette sinks list`", sink.name, sink.lag_events))
        }
        State::Starting | State::Running => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::picture::tests::quiet;
    use crate::store::commits::Work;
    use std::time::Duration;

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        assert_eq!(findings(&quiet()), []);
        assert_eq!(worst(&[]), Level::Ok);
    }

    /// A change to a quiet picture, how bad it is, and a word of what must be said.
    type Row = (fn(&mut Picture), Level, &'static str);

    #[test]
    fn each_trouble_is_found_alone_and_says_what_to_do() {
        let table: [Row; 24] = [
            (|p| p.failing = Some("disk full\u{1b}".into()), Level::Critical, "nothing can be stored"),
            (|p| p.work = Work::Ended, Level::Critical, "has ended"),
            (|p| p.work = Work::Busy(Duration::from_secs(90)), Level::Critical, "for 90 s"),
            (|p| p.free_bytes = Some(FREE_BYTES_CRITICAL - 1), Level::Critical, "511 MiB left"),
            (|p| p.free_bytes = Some(FREE_BYTES_LOW - 1), Level::Warning, "5119 MiB left"),
            (
                |p| p.certificate_expires_unix_s = Some(p.moment.now_unix_s),
                Level::Critical,
                "own certificate has expired",
            ),
            (
                |p| p.certificate_expires_unix_s = Some(p.moment.now_unix_s + CERTIFICATE_LOW_S - 1),
                Level::Warning,
                "own certificate ends in 29 d",
            ),
            (|p| p.certificate_trouble = Some("disk\nfull".into()), Level::Warning, "own certificate is not"),
            (|p| p.ca_expires_unix_s = Some(p.moment.now_unix_s), Level::Critical, "CA's certificate has"),
            (
                |p| p.ca_expires_unix_s = Some(p.moment.now_unix_s + CERTIFICATE_LOW_S - 1),
                Level::Warning,
                "CA's certificate ends in 29 d",
            ),
            (|p| p.store.damaged_days = 1, Level::Critical, "1 day of the store"),
            (|p| p.store.damaged_events = 2, Level::Critical, "2 stored events"),
            (|p| p.store.missing_events = 1, Level::Critical, "1 stored event can't be found"),
            (|p| p.store.wrong_indexes = 1, Level::Critical, "wrong in 1 part"),
            (|p| p.store.wal_bytes = WAL_BYTES_MAX + 1, Level::Warning, "512 MiB"),
            (|p| p.commits.p99_us = Some(2_000_000), Level::Warning, "2000 ms"),
            (|p| p.agents.silent = 1, Level::Warning, "1 agent is silent"),
            (|p| (p.agents.silent, p.agents.connected) = (2, 0), Level::Critical, "no agent is heard"),
            (|p| p.agents.lagging = 2, Level::Warning, "2 agents are more than 300 s late"),
            (|p| (p.day.gaps.gaps, p.day.gaps.uncounted) = (1, 1), Level::Warning, "nobody could count"),
            (|p| p.agents.certificates_near = 3, Level::Warning, "3 certificates"),
            (|p| p.agents.cloned = 1, Level::Warning, "1 agent is cloned"),
            (|p| p.agents.clocks_wrong = 2, Level::Warning, "wrong clock"),
            (|p| p.agents.misbehaving = 1, Level::Warning, "breaking the protocol"),
        ];
        for (change, level, word) in table {
            let mut picture = quiet();
            change(&mut picture);
            let found = findings(&picture);
            assert_eq!(found.len(), 1, "{word}: {found:?}");
            assert!(found[0].level == level && found[0].text.contains(word), "{word}: {found:?}");
            assert!(!found[0].text.chars().any(char::is_control), "{found:?}");
        }
    }

    #[test]
    fn the_worst_comes_first() {
        let mut picture = quiet();
        picture.agents.silent = 1;
        picture.failing = Some("full".into());
        let levels: Vec<Level> = findings(&picture).iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Critical, Level::Warning]);
        assert_eq!(worst(&findings(&picture)), Level::Critical);
    }
}
