//! `vidette agents …`: the hosts that have joined, and which of them are blind, late or silent.

use super::socket::Request;
use super::socket::client::{ask_all, ask_one};
use super::{Common, output, time};
use crate::ingest::Member;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vidette_protocol::wire;

/// An agent that is not connected and was not seen for so long is silent. Seconds.
pub const SILENT_AFTER_S: i64 = 300;

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every host that has joined
    #[command(
        after_help = "SENSORS says what an agent can see: full, names or polling.\n\nExamples:\n  vidette agents list\n  vidette agents list --json | jq -r 'select(.state == \"silent\") | .host'"
    )]
    List {
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Show everything that is known of one agent
    #[command(after_help = "Examples:\n  vidette agents show web-1\n  vidette agents show 3f9a")]
    Show {
        /// Id, the start of one, or host name
        agent: String,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
}

/// One agent as the server sends it. Names and texts are harmless on a terminal already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// 32 hex digits.
    pub id: String,
    /// Host name.
    pub host: String,
    /// `connected`, `away` (seen a moment ago), `silent` or `revoked`.
    pub state: String,
    /// `full`, `names`, `polling` or `unknown`.
    pub sensors: String,
    /// Agent's version.
    pub version: String,
    /// Operating system.
    pub os: String,
    /// Version of its rules.
    pub rules: String,
    /// Unix seconds.
    pub joined_unix_s: i64,
    /// Unix seconds.
    pub last_seen_unix_s: i64,
    /// Unix seconds.
    pub certificate_expires_unix_s: i64,
    /// What its last connection to this run of the collector said; `None` when there was none.
    pub last: Option<Last>,
}

/// What is known of an agent from its last connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Where it came from: IP address and port.
    pub address: Option<String>,
    /// Since when it is connected, Unix seconds; `None` when it is not.
    pub connected_unix_s: Option<i64>,
    /// When and why it was refused.
    pub refused: Option<String>,
    /// Connections since the collector started.
    pub connections: u64,
    /// Of them, how many ended because the same agent opened another: a changed network, or a clone.
    pub replaced: u64,
    /// Events committed from it.
    pub events: u64,
    /// Events that wait on the host.
    pub waiting_events: Option<u64>,
    /// Age of the oldest of them. Milliseconds.
    pub oldest_event_age_ms: Option<u64>,
    /// The agent's memory. Bytes.
    pub memory_bytes: Option<u64>,
    /// What it says of its parts: name, state and message.
    pub health: Vec<String>,
    /// What it counts.
    pub counters: BTreeMap<String, u64>,
}

impl Last {
    /// From what the fleet remembers.
    #[must_use]
    pub fn new(member: &Member) -> Self {
        let status = member.status.as_ref();
        let refused = member.refused.as_ref().map(|(when, code, reason)| {
            format!("{}: {} ({code:?})", time::show(when.saturating_mul(1_000_000_000)), output::safe(reason))
        });
        Self {
            address: member.address.map(|address| address.to_string()),
            connected_unix_s: member.connected_unix_s,
            refused,
            connections: member.connections,
            replaced: member.replaced,
            events: member.events,
            waiting_events: status.map(|status| status.outbox_events),
            oldest_event_age_ms: status.map(|status| status.oldest_event_age_ms),
            memory_bytes: status.map(|status| status.memory_bytes),
            health: status.map_or_else(Vec::new, |status| status.health.iter().map(health).collect()),
            counters: status.map_or_else(BTreeMap::new, |status| {
                status.counters.iter().map(|counter| (output::safe(&counter.name), counter.value)).collect()
            }),
        }
    }
}

fn health(health: &wire::Health) -> String {
    let state = match health.state() {
        wire::HealthState::Unspecified => "unknown",
        wire::HealthState::Ok => "ok",
        wire::HealthState::Degraded => "degraded",
        wire::HealthState::Failed => "failed",
    };
    format!("{} {state} {}", output::safe(&health.component), output::safe(&health.message))
        .trim_end()
        .to_owned()
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { common } => list(&common),
        Command::Show { agent, common } => {
            let row: Row = ask_one(&common.socket(), &Request::AgentsShow { agent })?;
            if common.json { output::json(&row) } else { show(row) }
        }
    }
}

fn list(common: &Common) -> anyhow::Result<()> {
    let rows: Vec<Row> = ask_all(&common.socket(), &Request::AgentsList)?;
    if common.json {
        return rows.iter().try_for_each(output::json);
    }
    if rows.is_empty() {
        output::hint("no host has joined; `vidette tokens create` prints the line to paste on one");
        return Ok(());
    }
    let headings =
        ["AGENT", "HOST", "STATE", "SENSORS", "VERSION", "RULES", "LAST SEEN", "WAITING", "CERTIFICATE"];
    output::table(&headings, rows.into_iter().map(cells))
}

fn cells(row: Row) -> Vec<String> {
    let waiting = row.last.as_ref().and_then(|last| last.waiting_events);
    vec![
        row.id.get(..8).unwrap_or(&row.id).to_owned(),
        row.host,
        row.state,
        row.sensors,
        row.version,
        if row.rules.is_empty() { "-".into() } else { row.rules },
        ago(row.last_seen_unix_s),
        waiting.map_or_else(|| "-".into(), |count| count.to_string()),
        ago(row.certificate_expires_unix_s),
    ]
}

fn show(row: Row) -> anyhow::Result<()> {
    let mut lines = vec![
        ("agent", row.id),
        ("host", row.host),
        ("state", row.state),
        ("sensors", row.sensors),
        ("version", row.version),
        ("system", row.os),
        ("rules", row.rules),
        ("joined", ago(row.joined_unix_s)),
        ("last seen", ago(row.last_seen_unix_s)),
        ("certificate ends", ago(row.certificate_expires_unix_s)),
    ];
    if let Some(last) = row.last {
        lines.extend(last.address.map(|address| ("address", address)));
        lines.extend(last.connected_unix_s.map(|since| ("connected", ago(since))));
        lines.extend(last.refused.map(|why| ("refused", why)));
        lines.push((
            "connections",
            format!("{}, of them {} replaced by another of the same agent", last.connections, last.replaced),
        ));
        lines.push(("events stored", last.events.to_string()));
        lines.extend(last.waiting_events.map(|count| ("events waiting", count.to_string())));
        let age = |age_ms: u64| time::length(i64::try_from(age_ms / 1000).unwrap_or(i64::MAX));
        lines.extend(last.oldest_event_age_ms.map(|age_ms| ("oldest of them", age(age_ms))));
        lines.extend(last.memory_bytes.map(|bytes| ("memory", format!("{} MiB", bytes >> 20))));
        lines.extend(last.health.into_iter().map(|health| ("health", health)));
        lines.extend(last.counters.into_iter().map(|(name, value)| ("counter", format!("{name} {value}"))));
    }
    output::list(&lines)
}

fn ago(unix_s: i64) -> String {
    if unix_s == 0 { "-".into() } else { time::ago(unix_s.saturating_mul(1_000_000_000)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_of_itself_is_harmless_on_a_terminal() {
        let evil = "a\u{1b}[2J\n".to_owned();
        let health = wire::Health { component: evil.clone(), state: 2, message: evil.clone() };
        let counter = wire::Counter { name: evil.clone(), value: 1 };
        let status = wire::Status {
            health: vec![health],
            counters: vec![counter],
            outbox_events: 7,
            ..Default::default()
        };
        let refused = Some((0, wire::RefuseCode::Misbehaved, evil));
        let last = Last::new(&Member { status: Some(status), refused, ..Default::default() });
        assert_eq!(last.waiting_events, Some(7));
        let texts = last.health.iter().chain(last.counters.keys()).chain(&last.refused);
        assert_eq!(texts.clone().count(), 3);
        for text in texts {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}
