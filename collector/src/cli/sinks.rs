//! `vidette sinks list`: where events go, how far each sink has come, and what is wrong with it.

use super::socket::Request;
use super::socket::client::ask_all;
use super::{Common, output, time};
use crate::sinks::{State, Status};
use clap::Subcommand;

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every sink: position, lag, last error
    #[command(
        after_help = "POSITION is the number of the last event that counts as sent, LAG how many stored after it wait at most.\n\nExample:\n  vidette sinks list --json | jq .last_error"
    )]
    List {
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::List { common } = command;
    let rows: Vec<Status> = ask_all(&common.socket(), &Request::SinksList)?;
    if common.json {
        return rows.iter().try_for_each(output::json);
    }
    if rows.is_empty() {
        output::hint(
            "no sinks are configured: events stay in the store; write a [[sink]] into the configuration file",
        );
        return Ok(());
    }
    output::table(
        &["NAME", "TYPE", "STATE", "POSITION", "LAG", "LAST SENT", "TARGET", "LAST ERROR"],
        rows.iter().map(cells),
    )
}

fn cells(row: &Status) -> Vec<String> {
    let error = match (&row.last_error, row.last_error_unix_ns) {
        (Some(text), Some(when)) => format!("{}: {}", time::ago(when), output::safe(text)),
        _ => "-".into(),
    };
    vec![
        row.name.clone(),
        row.kind.clone(),
        state(row.state).into(),
        row.position.to_string(),
        row.lag_events.to_string(),
        row.last_sent_unix_ns.map_or_else(|| "-".into(), time::ago),
        output::safe(&row.target),
        error,
    ]
}

/// In one word.
#[must_use]
pub fn state(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Running => "running",
        State::Retrying => "retrying",
        State::Stopped => "stopped",
    }
}
