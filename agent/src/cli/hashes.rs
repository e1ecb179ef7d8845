//! `vidette-agent hashes check FILE…`: what the agent would make of hash lists.

use super::EXIT_ERROR;
use crate::detection::hashes::{self, HashSources, Hashes, Kind, List};
use anyhow::{Context as _, Result};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

/// `vidette-agent hashes …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Read hash lists as the agent would, and say what is wrong with them.
    ///
    /// Exit code: 0 every line is of use, 2 something is not.
    Check(CheckArgs),
}

/// `vidette-agent hashes check`
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// Hash lists, or folders of *.txt, *.csv and *.hashes files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// One JSON object for each list, and one for all.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// There is no room for the tables, or nobody reads the output.
pub fn run(command: Command) -> Result<ExitCode> {
    let Command::Check(args) = command;
    let sources = HashSources { files: args.files, folder: Some(std::env::temp_dir()) };
    let hashes = hashes::build(&sources, &AtomicBool::new(false))?;
    let mut out = String::new();
    for list in hashes.lists() {
        out += &if args.json { json(list) } else { table(list) };
        out.push('\n');
    }
    out += &if args.json { sum_json(&hashes)? } else { sum(&hashes) };
    out.push('\n');
    std::io::stdout().write_all(out.as_bytes()).context("could not write to standard output")?;
    for complaint in hashes.complaints().filter(|_| !args.json) {
        eprintln!("{complaint}");
    }
    let good = hashes.complaints().next().is_none() && !hashes.lists().is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_ERROR) })
}

fn table(list: &List) -> String {
    let kinds: Vec<String> = Kind::ALL
        .into_iter()
        .zip(list.entries)
        .filter(|(_, entries)| *entries > 0)
        .map(|(kind, entries)| format!("{entries} {}", kind.word()))
        .collect();
    let kinds = if kinds.is_empty() { "no digests".to_owned() } else { kinds.join(", ") };
    let word = if list.used { "" } else { "; left out" };
    format!("{}: {kinds}, {} bad lines{word}", list.name, list.bad_lines)
}

fn json(list: &List) -> String {
    let entries: serde_json::Map<String, serde_json::Value> =
        Kind::ALL.into_iter().zip(list.entries).map(|(kind, n)| (kind.word().to_owned(), n.into())).collect();
    let mistakes: Vec<serde_json::Value> = list
        .mistakes
        .iter()
        .map(|(line, message)| serde_json::json!({ "line": line, "message": message }))
        .collect();
    serde_json::json!({
        "list": list.name, "used": list.used, "entries": entries, "bad_lines": list.bad_lines,
        "mistakes": mistakes, "beyond": list.beyond, "errors": list.errors,
    })
    .to_string()
}

fn sum(hashes: &Hashes) -> String {
    let summary = hashes.summary();
    format!(
        "{} lists, {} different digests ({}), {:.1} MiB in memory, {:.1} MiB on disk",
        summary.lists,
        summary.entries,
        if summary.kinds.is_empty() { "none".to_owned() } else { summary.kinds.join(", ") },
        summary.memory_bytes as f64 / f64::from(1 << 20),
        summary.disk_bytes as f64 / f64::from(1 << 20),
    )
}

fn sum_json(hashes: &Hashes) -> Result<String> {
    Ok(serde_json::json!({ "sum": serde_json::to_value(hashes.summary())? }).to_string())
}
