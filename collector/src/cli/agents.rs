//! `vidette agents …`: the hosts that have joined, and which of them are blind, late or silent.

use super::socket::Request;
use super::socket::client::{ask_all, ask_one};
use super::{Common, output, time};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// While it is connected.
    pub connection: Option<Connection>,
}

/// What is known of an agent while it is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// IP address and port.
    pub address: String,
    /// Unix seconds.
    pub since_unix_s: i64,
    /// Events that wait on the host.
    pub waiting_events: Option<u64>,
    /// Age of the oldest of them. Milliseconds.
    pub oldest_event_age_ms: Option<u64>,
    /// The agent's memory. Bytes.
    pub memory_bytes: Option<u64>,
    /// What it says of its parts: name and state.
    pub health: Vec<String>,
    /// What it counts.
    pub counters: BTreeMap<String, u64>,
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
    let waiting = row.connection.as_ref().and_then(|connection| connection.waiting_events);
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
    if let Some(connection) = row.connection {
        lines.push(("address", connection.address));
        lines.push(("connected", ago(connection.since_unix_s)));
        if let Some(waiting) = connection.waiting_events {
            lines.push(("events waiting", waiting.to_string()));
        }
        if let Some(age_ms) = connection.oldest_event_age_ms {
            lines.push(("oldest of them", time::length(i64::try_from(age_ms / 1000).unwrap_or(i64::MAX))));
        }
        if let Some(bytes) = connection.memory_bytes {
            lines.push(("memory", format!("{} MiB", bytes >> 20)));
        }
        lines.extend(connection.health.into_iter().map(|health| ("health", health)));
        lines.extend(
            connection.counters.into_iter().map(|(name, value)| ("counter", format!("{name} {value}"))),
        );
    }
    output::list(&lines)
}

fn ago(unix_s: i64) -> String {
    if unix_s == 0 { "-".into() } else { time::ago(unix_s.saturating_mul(1_000_000_000)) }
}
