//! `vidette status`: the collector and its fleet on one screen, and as a check for a monitoring system.
//!
//! The server sends the numbers and what it finds wrong (`outside::findings`); this file only shows them.

use super::socket::Request;
use super::socket::client::ask_one;
use super::{Common, agents, output, sinks, time};
use crate::outside::findings::{self, Finding, Level};
use crate::outside::picture::Sums;
use crate::sinks::{State, Status};
use crate::store::recent::Gaps;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const EXAMPLES: &str = "\
With --check the exit code is 0 (nothing to do), 1 (look today) or 2 (look now, or no collector answers), and one line
says why, as monitoring plugins do.

Examples:
  vidette status
  watch vidette status
  vidette status --check
  vidette status --json | jq .fleet.lag_ms";

/// Its options.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// One line and an exit code: 0 fine, 1 warning, 2 critical
    #[arg(long)]
    check: bool,
    /// Where and how
    #[command(flatten)]
    common: Common,
}

/// Something needs attention: the exit code of `--check`.
#[derive(Debug, thiserror::Error)]
#[error("something needs attention")]
pub struct Attention(pub u8);

/// What the server sends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Collector's version.
    pub version: String,
    /// Seconds.
    pub uptime_s: i64,
    /// UDP address.
    pub listen: String,
    /// What join lines say.
    pub advertise: String,
    /// SHA-256 of the CA's public key, hex.
    pub pin: String,
    /// That have joined and are not revoked.
    pub agents: u64,
    /// Of them, connected now.
    pub agents_connected: u64,
    /// Of them, not heard of for more than two heartbeats.
    pub agents_silent: u64,
    /// Of them, not seeing everything: sensors below `full`.
    pub agents_limited: u64,
    /// The fleet in more numbers.
    #[serde(default)]
    pub fleet: Sums,
    /// Between two Status messages of an agent. Seconds.
    #[serde(default)]
    pub heartbeat_s: u32,
    /// Gaps within 24 hours.
    #[serde(default)]
    pub gaps_24h: Gaps,
    /// What the store says of itself.
    pub store: BTreeMap<String, u64>,
    /// When all stored days were checked last, Unix nanoseconds; 0 when not since the start.
    #[serde(default)]
    pub store_checked_unix_ns: i64,
    /// Free on the store's disk. Bytes.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// Commits since the start.
    #[serde(default)]
    pub commits: u64,
    /// Of the last thousand commits, within ten minutes: half took at most this. Microseconds.
    #[serde(default)]
    pub commit_p50_us: Option<u64>,
    /// And 99 of 100 this. Microseconds.
    #[serde(default)]
    pub commit_p99_us: Option<u64>,
    /// Alerts of the last 24 hours by severity, most severe first.
    pub alerts_24h: Vec<(String, u64)>,
    /// There are more than were counted.
    pub alerts_24h_more: bool,
    /// Each sink.
    pub sinks: Vec<Status>,
    /// What needs attention, the worst first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// Runs it.
///
/// # Errors
/// For standard error; [`Attention`] with `--check`.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let row: Row = ask_one(&options.common.socket(), &Request::Status)?;
    let worst = findings::worst(&row.findings);
    match (options.common.json, options.check) {
        (true, _) => output::json(&row)?,
        (false, true) => output::line(&check_line(&row))?,
        (false, false) => screen(row)?,
    }
    if options.check && worst > Level::Ok {
        return Err(Attention(worst as u8).into());
    }
    Ok(())
}

fn screen(row: Row) -> anyhow::Result<()> {
    let findings = row.findings.clone();
    output::list(&lines(row))?;
    for finding in &findings {
        output::line(&marked(finding, output::is_for_a_person()))?;
    }
    Ok(())
}

/// `VIDETTE WARNING: 2 agents are silent …; sink …`
fn check_line(row: &Row) -> String {
    let word = match findings::worst(&row.findings) {
        Level::Ok => "OK",
        Level::Warning => "WARNING",
        Level::Critical => "CRITICAL",
    };
    let texts: Vec<&str> = row.findings.iter().map(|finding| finding.text.as_str()).collect();
    let said = if texts.is_empty() {
        format!("{} of {} agents connected", row.fleet.connected, row.fleet.enrolled)
    } else {
        texts.join("; ")
    };
    format!("VIDETTE {word}: {said}")
}

/// Coloured only on a terminal; the mark says the same without colour.
fn marked(finding: &Finding, is_coloured: bool) -> String {
    let (mark, colour) = match finding.level {
        Level::Ok => ("  ", "0"),
        Level::Warning => ("! ", "33"),
        Level::Critical => ("!!", "31;1"),
    };
    // Two columns of mark, whatever the level.
    let text = format!("{mark} {}", output::safe(&finding.text));
    if is_coloured { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text }
}

fn lines(row: Row) -> Vec<(&'static str, String)> {
    let alerts: Vec<String> =
        row.alerts_24h.iter().map(|(severity, count)| format!("{count} {severity}")).collect();
    let more = if row.alerts_24h_more { ", and more" } else { "" };
    let mut lines = vec![
        ("collector", format!("vidette {}, up {}", row.version, time::length(row.uptime_s))),
        ("listens on", format!("udp {} (hosts are told {})", row.listen, row.advertise)),
        ("agents", agents_line(&row)),
        ("lag", lag_line(&row.fleet)),
        ("certificates", certificates_line(&row.fleet)),
        ("gaps in 24 h", gaps_line(&row)),
        (
            "alerts in 24 h",
            if alerts.is_empty() { "none".into() } else { format!("{}{more}", alerts.join(", ")) },
        ),
        ("store", store_line(&row)),
        ("commits", commits_line(&row)),
    ];
    lines.extend(row.sinks.iter().map(|sink| ("sink", sink_line(sink))));
    lines.push(("pin", row.pin));
    lines
}

fn agents_line(row: &Row) -> String {
    let fleet = &row.fleet;
    let parts = [
        (fleet.connected, "connected"),
        (fleet.away, "away"),
        (fleet.silent, "silent"),
        (fleet.never_seen, "never seen"),
        (fleet.cut_off, "cut off"),
        (fleet.limited, "with limited sensors"),
        (fleet.copied, "copied"),
        (fleet.replaced, "replaced"),
        (fleet.left, "left"),
        (fleet.revoked, "revoked"),
    ];
    // Those that matter always, the others when there are any.
    let shown: Vec<String> = parts
        .iter()
        .enumerate()
        .filter(|(at, (count, _))| *count > 0 || [0, 2].contains(at))
        .map(|(_, (count, word))| format!("{count} {word}"))
        .collect();
    let rules = if fleet.rules_versions == 1 { "version" } else { "versions" };
    format!("{}: {}; {} {rules} of rules", fleet.enrolled, shown.join(", "), fleet.rules_versions)
}

fn lag_line(fleet: &Sums) -> String {
    let late = if fleet.lagging > 0 { format!(", {} agents late", fleet.lagging) } else { String::new() };
    format!("{} at most, {} events wait on hosts{late}", agents::lag(fleet.lag_ms), fleet.waiting_events)
}

fn certificates_line(fleet: &Sums) -> String {
    match (fleet.certificates_near, fleet.certificates_expired) {
        (0, 0) => "all are renewed in time".into(),
        (near, ended) => format!("{near} near their end, {ended} ended"),
    }
}

fn gaps_line(row: &Row) -> String {
    let gaps = &row.gaps_24h;
    if gaps.gaps == 0 {
        return "none".into();
    }
    let uncounted =
        if gaps.uncounted > 0 { format!(" ({} without a number)", gaps.uncounted) } else { String::new() };
    format!("{} from {} agents, {} events lost{uncounted}", gaps.gaps, row.fleet.with_gaps, gaps.lost)
}

fn store_line(row: &Row) -> String {
    let amounts = row.store.iter().map(|(name, value)| amount(name, *value));
    let free = row.disk_free_bytes.map(|free| format!("{} free", mebibytes(free)));
    let checked = match row.store_checked_unix_ns {
        0 => None,
        when => Some(format!("checked {}", time::ago(when))),
    };
    amounts.chain(free).chain(checked).collect::<Vec<_>>().join(", ")
}

fn commits_line(row: &Row) -> String {
    match (row.commit_p50_us, row.commit_p99_us) {
        (Some(p50), Some(p99)) => {
            let ms = |us: u64| format!("{}.{} ms", us / 1000, us % 1000 / 100);
            format!("p50 {}, p99 {} ({} since the start)", ms(p50), ms(p99), row.commits)
        }
        _ => format!("none in ten minutes ({} since the start)", row.commits),
    }
}

fn sink_line(sink: &Status) -> String {
    let trouble = match (&sink.last_error, sink.state) {
        (Some(error), State::Retrying | State::Stopped) => format!(": {}", output::safe(error)),
        _ => String::new(),
    };
    format!("{} ({}) {}, {} behind{trouble}", sink.name, sink.kind, sinks::state(sink.state), sink.lag_events)
}

/// `wal_bytes 1048576` as `wal 1.0 MiB`.
fn amount(name: &str, value: u64) -> String {
    match name.strip_suffix("bytes") {
        Some(what) => {
            let what = what.trim_end_matches('_').replace('_', " ");
            format!("{what} {}", mebibytes(value)).trim_start().to_owned()
        }
        None => format!("{value} {}", name.replace('_', " ")),
    }
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_with_their_unit() {
        assert_eq!(amount("wal_bytes", 3 << 19), "wal 1.5 MiB");
        assert_eq!(amount("bytes", 1 << 20), "1.0 MiB");
        assert_eq!(amount("events", 7), "7 events");
        let row = Row { commit_p50_us: Some(850), commit_p99_us: Some(12_345), commits: 3, ..Row::default() };
        assert_eq!(commits_line(&row), "p50 0.8 ms, p99 12.3 ms (3 since the start)");
    }

    #[test]
    fn a_check_is_one_line_and_colour_is_for_terminals() {
        let finding = Finding { level: Level::Warning, text: "2 agents are silent\u{1b}".into() };
        let row = Row { findings: vec![finding.clone()], ..Row::default() };
        assert!(check_line(&row).starts_with("VIDETTE WARNING: 2 agents are silent"));
        assert_eq!(check_line(&Row::default()), "VIDETTE OK: 0 of 0 agents connected");
        let plain = marked(&finding, false);
        assert!(plain.starts_with("! ") && !plain.contains('\u{1b}'), "{plain:?}");
        assert_eq!(marked(&finding, true).matches('\u{1b}').count(), 2);
    }

    #[test]
    fn a_quiet_fleet_says_little_and_a_troubled_one_names_each_trouble() {
        let quiet = Row { fleet: Sums { enrolled: 3, connected: 3, ..Sums::default() }, ..Row::default() };
        assert_eq!(agents_line(&quiet), "3: 3 connected, 0 silent; 0 versions of rules");
        let fleet = Sums {
            enrolled: 5,
            cut_off: 1,
            never_seen: 2,
            certificates_near: 1,
            with_gaps: 1,
            rules_versions: 1,
            ..Sums::default()
        };
        let gaps_24h = Gaps { gaps: 2, lost: 9, uncounted: 1 };
        let row = Row { fleet, gaps_24h, ..Row::default() };
        assert_eq!(
            agents_line(&row),
            "5: 0 connected, 0 silent, 2 never seen, 1 cut off; 1 version of rules"
        );
        assert_eq!(gaps_line(&row), "2 from 1 agents, 9 events lost (1 without a number)");
        assert_eq!(certificates_line(&row.fleet), "1 near their end, 0 ended");
    }
}
