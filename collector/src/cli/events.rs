//! `vidette alerts …` and `vidette events …`: what is stored, as a table or as ECS JSON lines.

use super::socket::client::{NotFound, ask, ask_one};
use super::socket::{Query, Request};
use super::summary::Summary;
use super::{Common, output, time};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vidette_protocol::ecs;
use vidette_protocol::id::Class;

/// Events shown when nothing is said.
const LIMIT_DEFAULT: u64 = 50;
/// Events in one answer.
pub const LIMIT_MAX: u64 = 1_000_000;
/// Rows of a table that are aligned with each other.
const TABLE_ROWS_MAX: usize = 500;
const HEADINGS: [&str; 6] = ["NUMBER", "TIME", "SEVERITY", "HOST", "KIND", "WHAT"];

const EXAMPLES: &str = "\
Examples:
  vidette alerts list --since 2h --severity high
  vidette alerts list --host web-1 --rule EICAR_Test_File --json | jq '.[\"file.path\"]'
  vidette alerts list --kind gap --kind health";

const FOLLOW_EXAMPLES: &str = "\
Example:
  vidette alerts follow --severity medium --json >> alerts.jsonl

^C ends it. It shows what is stored from now on; `vidette alerts list` shows what was before.";

/// What can be done with alerts.
#[derive(Debug, Subcommand)]
pub enum AlertsCommand {
    /// Show alerts, newest first
    #[command(after_help = EXAMPLES)]
    List {
        /// Which
        #[command(flatten)]
        filters: Filters,
        /// Where from
        #[command(flatten)]
        span: SpanOptions,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Show everything that is known of one alert
    #[command(after_help = "Examples:\n  vidette alerts show 42\n  vidette alerts show 42 --json")]
    Show {
        /// Its NUMBER in `alerts list`, or its event id (agent/epoch/class/sequence)
        id: String,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Show alerts as they are stored
    #[command(after_help = FOLLOW_EXAMPLES)]
    Follow {
        /// Which
        #[command(flatten)]
        filters: Filters,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
}

/// What can be done with events of all classes.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Show events, newest first
    #[command(
        after_help = "Examples:\n  vidette events list --class telemetry --kind process --host web-1\n  vidette events list --since 2026-01-31 --until 2026-02-01 --limit 100000 --json > january.jsonl"
    )]
    List {
        /// Of this class: alert (detections, gaps, health, audit) or telemetry (files, processes)
        #[arg(long)]
        class: Vec<Class>,
        /// Which
        #[command(flatten)]
        filters: Filters,
        /// Where from
        #[command(flatten)]
        span: SpanOptions,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
}

/// Which events.
#[derive(Debug, Args)]
pub struct Filters {
    /// Of hosts with this name
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Of this agent: id, the start of one, or host name
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// That matched this rule
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// At least this severe
    #[arg(long, value_parser = ["info", "low", "medium", "high", "critical"])]
    severity: Option<String>,
    /// Of this kind; may be given several times
    #[arg(long, value_parser = ["detection", "file", "process", "gap", "health", "audit"])]
    kind: Vec<String>,
}

/// From when, until when, how many.
#[derive(Debug, Args)]
pub struct SpanOptions {
    /// Happened since: `2h`, `3d`, `2026-01-31T12:00` (UTC), or RFC 3339. What an agent sends late has the time at which it
    /// happened: who must miss nothing reads `follow` or a sink
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    since: Option<i64>,
    /// Happened until
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    until: Option<i64>,
    /// How many at most
    #[arg(long, default_value_t = LIMIT_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX))]
    limit: u64,
}

/// One event as the server sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// For tables.
    pub summary: Summary,
    /// As ECS record.
    pub record: Map<String, Value>,
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run_alerts(command: AlertsCommand) -> anyhow::Result<()> {
    match command {
        AlertsCommand::List { filters, span, common } => {
            list(query(&[Class::Alert], filters), &span, &common)
        }
        AlertsCommand::Show { id, common } => show(id, &common),
        AlertsCommand::Follow { filters, common } => follow(query(&[Class::Alert], filters), &common),
    }
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run_events(command: EventsCommand) -> anyhow::Result<()> {
    let EventsCommand::List { class, filters, span, common } = command;
    list(query(&class, filters), &span, &common)
}

fn query(classes: &[Class], filters: Filters) -> Query {
    Query {
        classes: classes.iter().map(|class| class.name().to_owned()).collect(),
        host: filters.host,
        agent: filters.agent,
        rule: filters.rule,
        severity: filters.severity,
        kinds: filters.kind,
        since_unix_ns: None,
        until_unix_ns: None,
    }
}

fn list(query: Query, span: &SpanOptions, common: &Common) -> anyhow::Result<()> {
    let query = Query { since_unix_ns: span.since, until_unix_ns: span.until, ..query };
    let is_filtered = query != Query { classes: query.classes.clone(), ..Query::default() };
    let mut answers = ask(&common.socket(), &Request::Events { query, limit: span.limit })?;
    let mut count = 0;
    let mut rows = Vec::new();
    while let Some(row) = answers.read_row::<Row>()? {
        count += 1;
        if common.json {
            output::line(&ecs::line(&row.record))?;
            continue;
        }
        rows.push(cells(&row.summary));
        if rows.len() >= TABLE_ROWS_MAX {
            output::table(&HEADINGS, std::mem::take(&mut rows))?;
        }
    }
    if !rows.is_empty() {
        output::table(&HEADINGS, rows)?;
    }
    match count {
        0 if is_filtered => output::hint(
            "nothing matches; take a filter out, or look at `vidette agents list` for host names",
        ),
        0 => output::hint(
            "nothing is stored yet; `vidette agents list` shows who has joined, `vidette tokens create` lets a host join",
        ),
        count if count == span.limit => {
            output::hint("there may be more: raise --limit, or narrow with --since and --until")
        }
        _ => {}
    }
    Ok(())
}

fn follow(query: Query, common: &Common) -> anyhow::Result<()> {
    let mut answers = ask(&common.socket(), &Request::Follow { query })?;
    if output::is_for_a_person() {
        output::hint("waiting for alerts; ^C ends this");
    }
    while let Some(row) = answers.read_row::<Row>()? {
        if common.json {
            output::line(&ecs::line(&row.record))?;
            continue;
        }
        let summary = row.summary;
        let time = time::show(summary.time_unix_ns);
        let (severity, host, kind) = (summary.severity, summary.host, summary.kind);
        output::line(&format!(
            "{time}  {severity:8}  {host}  {kind}  {}  #{}",
            summary.what, summary.number
        ))?;
    }
    Ok(())
}

fn show(id: String, common: &Common) -> anyhow::Result<()> {
    let row: Row = match ask_one(&common.socket(), &Request::Event { id }) {
        Err(error) if error.is::<NotFound>() => return Err(error),
        other => other?,
    };
    if common.json {
        return output::line(&ecs::line(&row.record));
    }
    output::line(&format!(
        "#{} {} {}: {}",
        row.summary.number, row.summary.severity, row.summary.kind, row.summary.what
    ))?;
    output::line("")?;
    let fields: Vec<(String, String)> =
        row.record.iter().map(|(name, value)| (output::safe(name), shown(value))).collect();
    output::list(&fields.iter().map(|(name, value)| (name.as_str(), value.clone())).collect::<Vec<_>>())
}

/// A value of a record for people: text without quotes, everything else as JSON, all harmless.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => output::safe(text),
        Value::Array(values) if values.iter().all(Value::is_string) => {
            values.iter().map(shown).collect::<Vec<_>>().join(", ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            output::safe(&value.to_string())
        }
    }
}

fn cells(summary: &Summary) -> Vec<String> {
    vec![
        summary.number.to_string(),
        time::show(summary.time_unix_ns),
        summary.severity.clone(),
        summary.host.clone(),
        summary.kind.clone(),
        summary.what.clone(),
    ]
}
