//! The picture in Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). Pure.
//!
//! No label names an agent: ten thousand hosts would make ten thousand series of everything. `vidette agents list
//! --json` tells of one. A label names a sink, of which there are a few. `promtool check metrics` reads it in a test.

use super::agents::State;
use super::findings::{self, Level};
use super::picture::Picture;
use super::process::Process;
use crate::sinks;
use crate::store::commits::{BUCKETS_US, Times};
use crate::store::recent::Gaps;
use std::fmt::{self, Display, Write};
use vidette_protocol::ecs::words;
use vidette_protocol::wire::GapReason;

/// Of the whole text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes it down.
#[must_use]
pub fn render(picture: &Picture) -> String {
    let mut page = Page(String::new());
    about(picture, &mut page);
    agents(picture, &mut page);
    ingest(picture, &mut page);
    events(picture, &mut page);
    store(picture, &mut page);
    commits(&picture.commits, &mut page);
    sinks(&picture.sinks, &mut page);
    if let Some(process) = &picture.process {
        self::process(picture, process, &mut page);
    }
    page.0
}

fn about(picture: &Picture, page: &mut Page) {
    page.gauge("vidette_build_info", "Version of the collector; always 1.").with(
        "version",
        env!("CARGO_PKG_VERSION"),
        1,
    );
    let findings = findings::findings(picture);
    let count = |level| findings.iter().filter(|finding| finding.level == level).count() as u64;
    page.gauge("vidette_findings", "What needs attention, as `vidette status` lists it.")
        .with("level", "warning", count(Level::Warning))
        .with("level", "critical", count(Level::Critical));
    if let Some(end) = picture.certificate_expires_unix_s {
        page.gauge(
            "vidette_collector_certificate_end_timestamp_seconds",
            "When the collector's own certificate ends; it renews itself at half its life.",
        )
        .is(end);
    }
    let mut ends = page.gauge("vidette_certificate_expires_timestamp_seconds", "When a certificate ends.");
    let known = [("own", picture.certificate_expires_unix_s), ("ca", picture.ca_expires_unix_s)];
    for (which, end) in known {
        if let Some(end) = end {
            ends.with("certificate", which, end);
        }
    }
}

fn agents(picture: &Picture, page: &mut Page) {
    let sums = &picture.agents;
    let mut by_state = sums.clone();
    let mut states =
        page.gauge("vidette_agents", "Agents by what they are doing; each is in exactly one state.");
    for state in State::ALL {
        states.with("state", state.name(), *by_state.of(state));
    }
    let gauges = [
        (
            "vidette_agents_enrolled",
            "Agents that have joined and are not replaced, left or revoked.",
            sums.enrolled,
        ),
        ("vidette_agents_lagging", "Agents whose oldest event waits for more than 300 s.", sums.lagging),
        ("vidette_agents_misbehaving", "Agents that broke the protocol within an hour.", sums.misbehaving),
        ("vidette_agents_with_gaps", "Agents that lost something within 24 hours.", sums.with_gaps),
        ("vidette_agents_limited_sensors", "Agents whose sensors do not see everything.", sums.limited),
        ("vidette_agents_failed_part", "Agents that say that a part of them failed.", sums.failed_part),
        (
            "vidette_agents_waiting_events",
            "Events that wait on hosts, as they said last.",
            sums.waiting_events,
        ),
        ("vidette_rules_versions", "Different versions of rules in the fleet.", sums.rules_versions),
    ];
    for (name, help, value) in gauges {
        page.gauge(name, help).is(value);
    }
    page.gauge(
        "vidette_agents_lag_max_seconds",
        "Longest time that an event waits now, over the whole fleet.",
    )
    .is(Seconds(sums.lag_ms, 1_000));
    page.gauge("vidette_agents_certificates", "Certificates that should have been renewed.")
        .with("state", "near_end", sums.certificates_near)
        .with("state", "ended", sums.certificates_expired);
}

fn ingest(picture: &Picture, page: &mut Page) {
    let totals = &picture.ingest;
    page.gauge("vidette_connections", "Open connections: handshakes, joins and sessions.").is(totals.open);
    page.gauge("vidette_connections_limit", "Places for connections.").is(picture.connections_max);
    let counters = [
        ("vidette_batches_total", "Batches that came, repeated ones too.", totals.batches),
        ("vidette_batch_bytes_total", "Bytes of events that came, compressed.", totals.batch_bytes),
        ("vidette_heartbeats_total", "Status messages that came.", totals.statuses),
        ("vidette_acks_total", "Acknowledgements sent, each after its commit.", totals.acks),
        ("vidette_nacks_total", "Runs sent back because they did not follow what is stored.", totals.nacks),
        ("vidette_rejects_total", "Runs refused because they can't be stored.", totals.rejects),
        (
            "vidette_handshakes_refused_total",
            "Connections that ended before it was known whose they were.",
            totals.strangers_refused,
        ),
        (
            "vidette_agents_refused_total",
            "Connections of known agents that were refused or cut off.",
            totals.agents_refused,
        ),
    ];
    for (name, help, value) in counters {
        page.counter(name, help).is(value);
    }
}

fn events(picture: &Picture, page: &mut Page) {
    let day = &picture.day;
    let mut stored = page.counter("vidette_events_stored_total", "Events stored since the start, each once.");
    for (kind, count) in &day.stored {
        stored.with("kind", kind, *count);
    }
    let by_reason = |page: &mut Page, name, help, value: fn(&Gaps) -> u64| {
        let mut family = page.counter(name, help);
        // All reasons from the start: a counter that appears with its first gap hides that one from `increase()`.
        for reason in (0..).map_while(|number| GapReason::try_from(number).ok()) {
            let gaps = day.reasons.iter().find(|(known, _)| *known == reason).map(|(_, gaps)| *gaps);
            family.with("reason", words::gap_reason(reason as i32), value(&gaps.unwrap_or_default()));
        }
    };
    by_reason(page, "vidette_gaps_total", "Gaps since the start: something was lost.", |gaps| gaps.gaps);
    by_reason(page, "vidette_gap_events_lost_total", "What gaps name as lost.", |gaps| gaps.lost);
    by_reason(page, "vidette_gaps_uncounted_total", "Gaps whose loss nobody can count.", |gaps| {
        gaps.uncounted
    });
    page.gauge("vidette_recent_gaps", "Gaps within 24 hours.").is(day.gaps.gaps);
    page.gauge("vidette_recent_gap_events_lost", "What gaps of 24 hours name as lost.").is(day.gaps.lost);
    let mut alerts = page.gauge("vidette_recent_alerts", "Alerts within 24 hours.");
    for (severity, count) in &day.severities {
        alerts.with("severity", words::severity(*severity), *count);
    }
}

fn store(picture: &Picture, page: &mut Page) {
    let gauges = [
        ("vidette_store_bytes", "Size of the store's files.", Some(picture.store.bytes)),
        ("vidette_store_wal_bytes", "Size of write-ahead logs.", Some(picture.store.wal_bytes)),
        ("vidette_store_files", "Files of the store: one for each day.", Some(picture.store.days as u64)),
        (
            "vidette_store_damaged_events",
            "Stored events met since the start whose content the disk has changed.",
            Some(picture.store.damaged_events),
        ),
        ("vidette_store_damaged_files", "Days that can't be read.", Some(picture.store.damaged_days)),
        (
            "vidette_store_missing_events",
            "Stored events that the last check could not find.",
            Some(picture.store.missing_events),
        ),
        (
            "vidette_store_wrong_indexes",
            "Parts of the store's index that the last check found wrong.",
            Some(picture.store.wrong_indexes),
        ),
        ("vidette_store_disk_free_bytes", "Free on the store's disk.", picture.free_bytes),
        (
            "vidette_store_writable",
            "1 unless the last commit failed.",
            Some(u64::from(picture.failing.is_none())),
        ),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            page.gauge(name, help).is(value);
        }
    }
    let checked = u64::try_from(picture.store.checked_unix_ns).unwrap_or(0);
    page.gauge(
        "vidette_store_checked_timestamp_seconds",
        "When all stored days were checked last; 0 for never.",
    )
    .is(Seconds(checked / 1_000_000, 1_000));
    let last = u64::try_from(picture.store.last_commit_unix_ns).unwrap_or(0);
    page.gauge(
        "vidette_store_last_commit_timestamp_seconds",
        "When something was committed last; 0 for never.",
    )
    .is(Seconds(last / 1_000_000, 1_000));
}

fn commits(times: &Times, page: &mut Page) {
    let name = "vidette_store_commit_seconds";
    let mut family = page.family(name, "histogram", "Time of a commit of the store, of many agents at once.");
    for (end_us, count) in BUCKETS_US.iter().zip(times.buckets) {
        family.sample("_bucket", Some(("le", &Seconds(*end_us, 1_000_000).to_string())), count);
    }
    family.sample("_bucket", Some(("le", "+Inf")), times.count);
    let sum_us = u64::try_from(times.sum.as_micros()).unwrap_or(u64::MAX);
    family.sample("_sum", None, Seconds(sum_us, 1_000_000));
    family.sample("_count", None, times.count);
    page.counter("vidette_store_commit_failures_total", "Commits that failed; agents keep their events.")
        .is(times.failed);
}

fn sinks(all: &[sinks::Status], page: &mut Page) {
    if all.is_empty() {
        return;
    }
    let value = |state| u64::from(matches!(state, sinks::State::Running));
    let mut each = |name, help, is_counter, value: &dyn Fn(&sinks::Status) -> u64| {
        let mut family = if is_counter { page.counter(name, help) } else { page.gauge(name, help) };
        for sink in all {
            family.with("sink", &sink.name, value(sink));
        }
    };
    each("vidette_sink_up", "1 while events go out.", false, &|sink| value(sink.state));
    each("vidette_sink_lag_events", "Stored events that a sink is behind, at most.", false, &|sink| {
        sink.lag_events
    });
    each("vidette_sink_sent_events_total", "Events that count as sent.", true, &|sink| sink.sent);
    each("vidette_sink_errors_total", "Failures, each tried again.", true, &|sink| sink.errors);
}

fn process(picture: &Picture, process: &Process, page: &mut Page) {
    page.gauge("process_resident_memory_bytes", "Memory.").is(process.resident_bytes);
    page.counter("process_cpu_seconds_total", "User and system time.").is(Seconds(process.cpu_ms, 1_000));
    page.gauge("process_open_fds", "Open descriptors.").is(process.open_fds);
    if let Some(max) = process.max_fds {
        page.gauge("process_max_fds", "Descriptors that may be open.").is(max);
    }
    page.gauge("process_start_time_seconds", "When the collector was started.")
        .is(picture.moment.started_unix_s);
}

/// A number of parts of a second, as seconds.
struct Seconds(u64, u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = usize::try_from(self.1.ilog10()).unwrap_or(0);
        let fraction = format!("{:0digits$}", self.0 % self.1);
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{}", self.0 / self.1),
            fraction => write!(f, "{}.{fraction}", self.0 / self.1),
        }
    }
}

struct Page(String);

/// One metric; its samples follow its header.
struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
}

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
        Family { page: &mut self.0, name }
    }
}

impl Family<'_> {
    fn is(mut self, value: impl Display) {
        self.sample("", None, value);
    }

    fn with(&mut self, label: &str, text: &str, value: impl Display) -> &mut Self {
        self.sample("", Some((label, text)), value);
        self
    }

    fn sample(&mut self, suffix: &str, label: Option<(&str, &str)>, value: impl Display) {
        let label = label.map(|(name, text)| format!("{{{name}=\"{}\"}}", escaped(text))).unwrap_or_default();
        let _ = writeln!(self.page, "{}{suffix}{label} {value}", self.name); // a String takes everything
    }
}

/// A label's text: the format escapes three characters.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::picture::tests::quiet;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn every_sample_stands_below_its_own_header_and_no_series_comes_twice() {
        let mut picture = quiet();
        picture.day.reasons = vec![(GapReason::OutboxBound, Gaps { gaps: 1, lost: 2, uncounted: 0 })];
        picture.process = super::super::process::read();
        let text = render(&picture);
        let (mut family, mut families, mut series) = (String::new(), HashSet::new(), HashSet::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap_or_default().to_owned();
                assert!(families.insert(family.clone()), "{family} comes twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&family), "{line} below {family}");
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok() && series.insert(name.to_owned()), "{line}");
            }
        }
        assert!(families.len() > 35 && text.ends_with('\n'), "{}", families.len());
        assert!(text.contains("vidette_gap_events_lost_total{reason=\"outbox_bound\"} 2\n"), "{text}");
        assert!(text.contains("vidette_gap_events_lost_total{reason=\"mount\"} 0\n"), "{text}");
    }

    #[test]
    fn a_histogram_holds_what_was_counted() {
        let mut times = Times { count: 5, sum: Duration::from_micros(2_500_000), ..Times::default() };
        times.buckets = [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4];
        let mut page = Page(String::new());
        commits(&times, &mut page);
        for line in ["_bucket{le=\"0.0005\"} 0", "_bucket{le=\"0.001\"} 1", "_bucket{le=\"10\"} 4"] {
            assert!(page.0.contains(line), "{line} is not in {}", page.0);
        }
        assert!(page.0.contains("_bucket{le=\"+Inf\"} 5") && page.0.contains("_sum 2.5\n"), "{}", page.0);
    }

    #[test]
    fn seconds_lose_nothing_and_labels_break_nothing() {
        let table =
            [(0, 1_000, "0"), (1, 1_000, "0.001"), (61_500, 1_000, "61.5"), (500, 1_000_000, "0.0005")];
        for (value, parts, expected) in table {
            assert_eq!(Seconds(value, parts).to_string(), expected);
        }
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
