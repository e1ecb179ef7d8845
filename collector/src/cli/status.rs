//! `vidette status`: the collector and its fleet on one screen.

use super::socket::Request;
use super::socket::client::ask_one;
use super::{Common, output, sinks, time};
use crate::sinks::{State, Status};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Its options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vidette status\n  watch vidette status")]
pub struct Options {
    /// Where and how
    #[command(flatten)]
    common: Common,
}

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
    /// Of them, not heard of for a while.
    pub agents_silent: u64,
    /// Of them, not seeing everything: sensors below `full`.
    pub agents_limited: u64,
    /// What the store says of itself.
    pub store: BTreeMap<String, u64>,
    /// Alerts of the last 24 hours by severity, most severe first.
    pub alerts_24h: Vec<(String, u64)>,
    /// There are more than were counted.
    pub alerts_24h_more: bool,
    /// Each sink.
    pub sinks: Vec<Status>,
}

/// Runs it.
///
/// # Errors
/// For standard error.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let row: Row = ask_one(&options.common.socket(), &Request::Status)?;
    if options.common.json {
        return output::json(&row);
    }
    output::list(&lines(row))
}

fn lines(row: Row) -> Vec<(&'static str, String)> {
    let store: Vec<String> = row.store.iter().map(|(name, value)| amount(name, *value)).collect();
    let alerts: Vec<String> =
        row.alerts_24h.iter().map(|(severity, count)| format!("{count} {severity}")).collect();
    let more = if row.alerts_24h_more { ", and more" } else { "" };
    let mut lines = vec![
        ("collector", format!("vidette {}, up {}", row.version, time::length(row.uptime_s))),
        ("listens on", format!("udp {} (hosts are told {})", row.listen, row.advertise)),
        ("pin", row.pin),
        (
            "agents",
            format!(
                "{}: {} connected, {} silent, {} with limited sensors",
                row.agents, row.agents_connected, row.agents_silent, row.agents_limited
            ),
        ),
        ("store", store.join(", ")),
        (
            "alerts in 24 h",
            if alerts.is_empty() { "none".into() } else { format!("{}{more}", alerts.join(", ")) },
        ),
    ];
    lines.extend(row.sinks.iter().map(|sink| ("sink", sink_line(sink))));
    lines
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
            let tenths = value.saturating_mul(10) >> 20;
            let what = what.trim_end_matches('_').replace('_', " ");
            format!("{what} {}.{} MiB", tenths / 10, tenths % 10).trim_start().to_owned()
        }
        None => format!("{value} {}", name.replace('_', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_with_their_unit() {
        assert_eq!(amount("wal_bytes", 3 << 19), "wal 1.5 MiB");
        assert_eq!(amount("bytes", 1 << 20), "1.0 MiB");
        assert_eq!(amount("events", 7), "7 events");
    }
}
