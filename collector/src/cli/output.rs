//! What commands print: tables for people, one JSON object a line for programs.
//!
//! Tables hold only text that has gone through `escape::terminal`; JSON lines go through `ecs::line`, which makes
//! pure ASCII. A reader that closes the pipe (`head`) ends the command quietly.

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};
use vidette_protocol::{ecs, escape};

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Whoever read the output has enough.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct Closed;

/// Prints a line on standard output.
///
/// # Errors
/// [`Closed`], or that it can't be written.
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(error).context("could not write to standard output"),
    }
}

/// Prints an object as one line of ASCII JSON.
///
/// # Errors
/// As `line`.
pub fn json<T: Serialize>(row: &T) -> anyhow::Result<()> {
    let map: Map<String, Value> = match serde_json::to_value(row)? {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    line(&ecs::line(&map))
}

/// Says something to a person, on standard error.
pub fn hint(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A person sees the output.
#[must_use]
pub fn is_for_a_person() -> bool {
    std::io::stdout().is_terminal()
}

/// Text of unknown origin, harmless on a terminal.
#[must_use]
pub fn safe(text: &str) -> String {
    escape::terminal(text.as_bytes())
}

/// Prints a table without frames: it can be read, cut and grepped. Cells must be [`safe`] already.
///
/// # Errors
/// As `line`.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for text in table.to_string().lines() {
        line(text.trim_end())?;
    }
    Ok(())
}

/// Prints names and values below each other, aligned.
///
/// # Errors
/// As `line`.
pub fn list(rows: &[(&str, String)]) -> anyhow::Result<()> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().try_for_each(|(name, value)| line(&format!("{name:width$}  {value}")))
}

/// One line on standard error that is written over, when a person sees it.
#[derive(Debug)]
pub struct Progress {
    wanted: bool,
    shown: Option<Instant>,
}

impl Progress {
    /// Nothing is shown yet.
    #[must_use]
    pub fn new() -> Self {
        Self { wanted: std::io::stderr().is_terminal(), shown: None }
    }

    /// So much is done, of so much.
    pub fn show(&mut self, what: &str, done: u64, of: u64) {
        if !self.wanted || self.shown.is_some_and(|shown| shown.elapsed() < PROGRESS_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let percent = (u128::from(done) * 100).checked_div(u128::from(of)).unwrap_or(100);
        let _ = write!(std::io::stderr(), "\r{}: {percent} %\x1b[K", safe(what));
    }

    /// Leaves an empty line.
    pub fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
