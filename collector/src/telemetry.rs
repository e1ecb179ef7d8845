//! What the collector tells of itself: the log on standard error.
//!
//! How each stage does is asked of the stage, by `outside`, which shows it as one picture.
//! Levels: ERROR data is lost or the process ends; WARN look today; INFO a change that an operator cares about.

use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// One JSON object a line
    Json,
}

/// Starts the log. Once a process.
///
/// # Errors
/// When `filter` can't be read, or a log is already there.
pub fn log(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!("could not use --log {filter:?}; write for example `info` or `warn,vidette_collector=debug`")
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("could not start the log: {error}"))
}
