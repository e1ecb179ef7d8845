//! `vidette agents …`: the hosts that have joined, and which of them are blind, late or silent.
//!
//! What is thought of an agent is decided in `outside::agents`; this file turns it into rows and shows them.

use super::socket::Request;
use super::socket::client::{ask_all, ask_one};
use super::{Common, output, time};
use crate::identity::AgentRecord;
use crate::ingest::Member;
use crate::outside::agents::{Judged, Problem};
use crate::store::recent::Gaps;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vidette_protocol::escape::terminal;
use vidette_protocol::wire;

const LIST_HELP: &str = "\
STATE     connected; away (heard a moment ago); silent (not heard for more than two heartbeats);
          never_seen (joined, did not connect since); cut_off (broke the protocol);
          replaced (its host has joined anew, see PROBLEM); left (by itself); revoked;
          cloned (its identity was copied: no copy is let in; `vidette-agent join --again` on the right host)
SENSORS   what an agent can see: full, names or polling
LAG       for how long its oldest event waits, as it said last; it grows while the agent is away
GAPS      gaps within 24 hours, and how many events they name as lost (+? when nobody could count)
CERT      until its certificate ends; it is renewed when 12 hours are left

Examples:
  vidette agents list --problems --worst-first
  vidette agents list --group web
  vidette agents list --silent --json | jq -r .host";

const REVOKE_HELP: &str = "\
It can't be undone: to take that host back, join it again with a new token. Its events stay.

Example:
  vidette agents revoke 3f9a";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every host that has joined
    #[command(after_help = LIST_HELP)]
    List {
        /// Which
        #[command(flatten)]
        which: Which,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Shut an agent out for good: its connection is cut, its certificate refused
    #[command(after_help = REVOKE_HELP)]
    Revoke {
        /// Id, the start of one, or host name; it must fit one agent only
        agent: String,
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

/// Which agents, in which order. Several of the first three show what fits any of them; the group is what they all must fit.
#[derive(Debug, Clone, Default, Args)]
pub struct Which {
    /// Only those that joined with a token of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only those that are silent, were never seen, or are cut off
    #[arg(long)]
    silent: bool,
    /// Only those whose oldest event waits for more than five minutes
    #[arg(long)]
    lagging: bool,
    /// Only those with any problem
    #[arg(long)]
    problems: bool,
    /// The worst problems first, then the greatest lag
    #[arg(long)]
    worst_first: bool,
}

/// One agent as the server sends it. Names and texts are harmless on a terminal already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// 32 hex digits.
    pub id: String,
    /// Host name.
    pub host: String,
    /// `connected`, `away`, `silent`, `never_seen`, `cut_off`, `replaced`, `cloned`, `left` or `revoked`.
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
    /// Events that wait on the host, as it said last.
    #[serde(default)]
    pub waiting_events: Option<u64>,
    /// For how long the oldest of them waits now; `None` when nobody knows. Milliseconds.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// Within 24 hours.
    #[serde(default)]
    pub gaps_24h: Gaps,
    /// Unix seconds.
    pub certificate_expires_unix_s: i64,
    /// Until then; negative when it has ended.
    #[serde(default)]
    pub certificate_left_s: i64,
    /// As the token said by which it joined.
    #[serde(default)]
    pub label: Option<String>,
    /// As the token said by which it joined.
    #[serde(default)]
    pub group: Option<String>,
    /// Id of a newer agent that seems to be of the same host.
    #[serde(default)]
    pub replaced_by: Option<String>,
    /// When it left by itself, Unix seconds.
    #[serde(default)]
    pub left_unix_s: Option<i64>,
    /// What is wrong, the worst first: a sentence each.
    #[serde(default)]
    pub problems: Vec<String>,
    /// How bad that is; 0 for nothing. For sorting only: it means nothing across versions.
    #[serde(default)]
    pub weight: u32,
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
    /// How often it was cut off for misbehaving since the collector started.
    #[serde(default)]
    pub cut_offs: u64,
    /// Until when it is not let in for that, Unix seconds; may be past.
    #[serde(default)]
    pub barred_until_unix_s: Option<i64>,
    /// How often it had to wait because it sent more than its rate.
    #[serde(default)]
    pub slowed: u64,
    /// Connections since the collector started.
    pub connections: u64,
    /// Of them, how many ended because the same agent opened another: a changed network, or a clone.
    pub replaced: u64,
    /// Of them, how many were alive together with another: copies of its identity.
    #[serde(default)]
    pub twice: u64,
    /// Events committed from it.
    pub events: u64,
    /// Events that waited on the host at its last Status.
    pub waiting_events: Option<u64>,
    /// Age of the oldest of them then. Milliseconds.
    pub oldest_event_age_ms: Option<u64>,
    /// The agent's memory. Bytes.
    pub memory_bytes: Option<u64>,
    /// What it says of its parts: name, state and message.
    pub health: Vec<String>,
    /// What it counts.
    pub counters: BTreeMap<String, u64>,
}

/// What became of `agents revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// 32 hex digits.
    pub id: String,
    /// Host name, harmless on a terminal.
    pub host: String,
    /// It had a live connection, which was cut.
    pub was_connected: bool,
    /// It was revoked before.
    pub was_revoked_before: bool,
}

impl Row {
    /// From the register, what is thought of it, and its last connection.
    #[must_use]
    pub fn new(record: &AgentRecord, judged: &Judged, last: Option<Last>) -> Self {
        let sensors = match wire::SensorLevel::try_from(record.level).unwrap_or_default() {
            wire::SensorLevel::Unspecified => "unknown",
            wire::SensorLevel::Full => "full",
            wire::SensorLevel::Names => "names",
            wire::SensorLevel::Polling => "polling",
        };
        Self {
            id: record.id.to_string(),
            host: terminal(&record.host_name),
            state: judged.state.name().into(),
            sensors: sensors.into(),
            version: terminal(record.version.as_bytes()),
            os: terminal(record.os.as_bytes()),
            rules: terminal(record.rules_version.as_bytes()),
            joined_unix_s: record.joined_unix_s,
            last_seen_unix_s: judged.heard_unix_s,
            waiting_events: judged.waiting_events,
            lag_ms: judged.lag_ms,
            gaps_24h: judged.gaps,
            certificate_expires_unix_s: record.certificate_expires_unix_s,
            certificate_left_s: judged.certificate_left_s,
            label: record.label.as_ref().map(|label| terminal(label.as_bytes())),
            group: record.group.as_ref().map(|group| terminal(group.as_bytes())),
            replaced_by: record.replaced.map(|(newer, _)| newer.to_string()),
            left_unix_s: record.left_unix_s,
            problems: judged.problems.iter().map(problem).collect(),
            weight: judged.weight(),
            last,
        }
    }
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
            cut_offs: member.cut_offs,
            barred_until_unix_s: member.barred_until_unix_s,
            slowed: member.slowed,
            connections: member.connections,
            replaced: member.replaced,
            twice: member.twice,
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

fn problem(problem: &Problem) -> String {
    let when = |unix_s: i64| time::show(unix_s.saturating_mul(1_000_000_000));
    match problem {
        Problem::Cloned(at) => format!(
            "cloned: its identity was copied, and every copy is set aside since {}: join the right host again",
            when(*at)
        ),
        Problem::Clock(how) => format!("clock: {}", output::safe(how)),
        Problem::Twice(at, older, newer) => format!(
            "its identity was copied: connected from {older} and {newer} at the same time {}",
            when(*at)
        ),
        Problem::SameMachine(newer) => {
            format!("agent {newer} says that it is on the same machine and both are heard: a copied image")
        }
        Problem::CutOff(at, why) => format!("cut off {}: {why}", when(*at)),
        Problem::Silent(since) => format!("silent since {}", when(*since)),
        Problem::NeverSeen(joined) => format!("joined {} and never connected", when(*joined)),
        Problem::MustJoinAgain => {
            "its certificate ended too long ago to be renewed: join that host again".into()
        }
        Problem::CertificateExpired => "its certificate has ended; it renews when it comes back".into(),
        Problem::Lagging(ms) => format!("its oldest event waits for {}", lag(*ms)),
        Problem::Gaps(found) => format!("gaps within 24 h: {}", gaps(found)),
        Problem::CertificateNear(left) => {
            format!("its certificate ends in {} and was not renewed", time::length(*left))
        }
        Problem::FailedPart => "a part of it has failed: `vidette agents show` names it".into(),
        Problem::LimitedSensors => "its sensors do not see everything".into(),
    }
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { which, common } => list(which, &common),
        Command::Revoke { agent, common } => revoke(agent, &common),
        Command::Show { agent, common } => {
            let row: Row = ask_one(&common.socket(), &Request::AgentsShow { agent })?;
            if common.json { output::json(&row) } else { show(row) }
        }
    }
}

fn revoke(agent: String, common: &Common) -> anyhow::Result<()> {
    let revoked: Revoked = ask_one(&common.socket(), &Request::AgentsRevoke { agent })?;
    if common.json {
        return output::json(&revoked);
    }
    let before = if revoked.was_revoked_before { "was revoked before" } else { "is revoked" };
    let cut = if revoked.was_connected { "its connection was cut" } else { "it was not connected" };
    output::line(&format!("agent {} on {} {before}; {cut}", revoked.id, revoked.host))
}

fn list(which: Which, common: &Common) -> anyhow::Result<()> {
    let all: Vec<Row> = ask_all(&common.socket(), &Request::AgentsList)?;
    let joined = all.len();
    let rows = chosen(all, &which);
    if common.json {
        return rows.iter().try_for_each(output::json);
    }
    match (joined, rows.len()) {
        (0, _) => output::hint("no host has joined; `vidette tokens create` prints the line to paste on one"),
        (joined, 0) => output::hint(&format!("none of {joined} agents")),
        _ => {
            let headings = [
                "AGENT",
                "HOST",
                "GROUP",
                "STATE",
                "LAST SEEN",
                "WAITING",
                "LAG",
                "GAPS",
                "SENSORS",
                "RULES",
                "CERT",
                "VERSION",
                "PROBLEM",
            ];
            return output::table(&headings, rows.into_iter().map(cells));
        }
    }
    Ok(())
}

fn chosen(mut rows: Vec<Row>, which: &Which) -> Vec<Row> {
    if let Some(group) = &which.group {
        let group = output::safe(group);
        rows.retain(|row| row.group.as_ref() == Some(&group));
    }
    if which.silent || which.lagging || which.problems {
        let late = |row: &Row| row.lag_ms.is_some_and(|lag_ms| lag_ms > crate::outside::agents::LAG_MS_MAX);
        rows.retain(|row| {
            (which.silent && ["silent", "never_seen", "cut_off"].contains(&row.state.as_str()))
                || (which.lagging
                    && !["revoked", "left", "replaced"].contains(&row.state.as_str())
                    && late(row))
                || (which.problems && !row.problems.is_empty())
        });
    }
    if which.worst_first {
        rows.sort_by_key(|row| std::cmp::Reverse((row.weight, row.lag_ms)));
    }
    rows
}

fn cells(row: Row) -> Vec<String> {
    let dash = || "-".to_owned();
    let more = row.problems.len().saturating_sub(1);
    let first = row.problems.into_iter().next();
    vec![
        row.id.get(..8).unwrap_or(&row.id).to_owned(),
        row.host,
        row.group.unwrap_or_else(dash),
        row.state,
        ago(row.last_seen_unix_s),
        row.waiting_events.map_or_else(dash, |count| count.to_string()),
        row.lag_ms.map_or_else(dash, lag),
        if row.gaps_24h.gaps == 0 { dash() } else { gaps(&row.gaps_24h) },
        row.sensors,
        if row.rules.is_empty() { dash() } else { row.rules },
        left(row.certificate_left_s),
        row.version,
        match (first, more) {
            (None, _) => row.replaced_by.map_or_else(dash, |newer| format!("replaced by {newer}")),
            (Some(first), 0) => first,
            (Some(first), more) => format!("{first} (and {more} more)"),
        },
    ]
}

/// `3, 120 lost`, `1, 5+? lost`.
fn gaps(gaps: &Gaps) -> String {
    format!("{}, {}{} lost", gaps.gaps, gaps.lost, if gaps.uncounted > 0 { "+?" } else { "" })
}

/// Milliseconds, as people read them.
pub(super) fn lag(ms: u64) -> String {
    match ms {
        0 => "0s".into(),
        1..1000 => format!("{ms}ms"),
        _ => time::length(i64::try_from(ms / 1000).unwrap_or(i64::MAX)),
    }
}

fn left(seconds: i64) -> String {
    if seconds > 0 { time::length(seconds) } else { "ended".into() }
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
        ("group", row.group.unwrap_or_else(|| "-".into())),
        ("label", row.label.unwrap_or_else(|| "-".into())),
        ("joined", ago(row.joined_unix_s)),
        ("last seen", ago(row.last_seen_unix_s)),
        ("certificate", left(row.certificate_left_s)),
        ("gaps in 24 h", if row.gaps_24h.gaps == 0 { "none".into() } else { gaps(&row.gaps_24h) }),
    ];
    lines.extend(row.left_unix_s.map(|at| ("left", ago(at))));
    lines.extend(row.replaced_by.map(|newer| ("replaced by", newer)));
    lines.extend(row.lag_ms.map(|ms| ("lag", lag(ms))));
    lines.extend(row.problems.into_iter().map(|problem| ("problem", problem)));
    if let Some(last) = row.last {
        lines.extend(last.address.map(|address| ("address", address)));
        lines.extend(last.connected_unix_s.map(|since| ("connected", ago(since))));
        lines.extend(last.refused.map(|why| ("refused", why)));
        if last.cut_offs > 0 {
            lines.push(("cut off", format!("{} times for misbehaving", last.cut_offs)));
        }
        if last.twice > 0 {
            lines.push(("copied", format!("{} times connected twice at the same time", last.twice)));
        }
        if last.slowed > 0 {
            lines.push(("slowed", format!("{} times, it sends more than its rate", last.slowed)));
        }
        lines.push((
            "connections",
            format!("{}, of them {} replaced by another of the same agent", last.connections, last.replaced),
        ));
        lines.push(("events stored", last.events.to_string()));
        lines.extend(last.waiting_events.map(|count| ("events waiting", count.to_string())));
        lines.extend(last.oldest_event_age_ms.map(|age_ms| ("oldest of them", lag(age_ms))));
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

    fn row(host: &str, state: &str, lag_ms: u64, weight: u32) -> Row {
        let problems = if weight > 0 { vec!["something".to_owned()] } else { Vec::new() };
        let (host, state, lag_ms) = (host.to_owned(), state.to_owned(), Some(lag_ms));
        Row { host, state, lag_ms, weight, problems, ..Row::default() }
    }

    #[test]
    fn filters_add_up_and_the_worst_comes_first() {
        let all = || {
            vec![
                row("fine", "connected", 10, 0),
                row("late", "connected", 900_000, 16),
                row("quiet", "silent", 0, 256),
                row("later", "away", 901_000, 16),
                row("gone", "revoked", 999_999_999, 0),
            ]
        };
        let table: [(Which, &[&str]); 5] = [
            (Which::default(), &["fine", "late", "quiet", "later", "gone"]),
            (Which { silent: true, ..Which::default() }, &["quiet"]),
            (Which { lagging: true, ..Which::default() }, &["late", "later"]),
            (Which { silent: true, lagging: true, ..Which::default() }, &["late", "quiet", "later"]),
            (Which { problems: true, worst_first: true, ..Which::default() }, &["quiet", "later", "late"]),
        ];
        for (which, expected) in table {
            let hosts: Vec<String> = chosen(all(), &which).into_iter().map(|row| row.host).collect();
            assert_eq!(hosts, expected, "{which:?}");
        }
    }

    #[test]
    fn a_group_is_what_all_shown_belong_to() {
        let of = |host: &str, group: Option<&str>, weight| Row {
            group: group.map(output::safe),
            ..row(host, "silent", 0, weight)
        };
        let all = || {
            vec![
                of("a", Some("web"), 0),
                of("b", Some("w\u{1b}"), 1),
                of("c", None, 1),
                of("d", Some("web"), 1),
            ]
        };
        let hosts = |which: &Which| chosen(all(), which).into_iter().map(|row| row.host).collect::<String>();
        let web = Which { group: Some("web".into()), ..Which::default() };
        assert_eq!(hosts(&web), "ad");
        assert_eq!(hosts(&Which { problems: true, ..web }), "d");
        assert_eq!(hosts(&Which { group: Some("w\u{1b}".into()), ..Which::default() }), "b");
        assert_eq!(hosts(&Which { group: Some("none".into()), ..Which::default() }), "");
    }

    #[test]
    fn lag_gaps_and_certificates_are_shown_with_their_units() {
        assert_eq!((lag(0), lag(12), lag(61_000)), ("0s".into(), "12ms".into(), "1m 1s".into()));
        assert_eq!(gaps(&Gaps { gaps: 2, lost: 7, uncounted: 1 }), "2, 7+? lost");
        assert_eq!((left(-5), left(7200)), ("ended".into(), "2h".into()));
    }
}
