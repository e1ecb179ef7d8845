//! The command line: what was typed, logging, exit code.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use vidette_agent::{cli, worker};

/// Sees files written and programs run, scans them with YARA rules, ships what it finds.
#[derive(Debug, Parser)]
#[command(name = "vidette-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Scan files and folders now; needs no collector.
    Scan(cli::scan::Args),
    /// Work on rules.
    #[command(subcommand)]
    Rules(cli::rules::Command),
    /// The sandboxed scanner; started by the agent itself.
    #[command(hide = true)]
    Worker(worker::Args),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Scan(arguments) => cli::scan::run(arguments),
        Command::Rules(command) => cli::rules::run(command),
        Command::Worker(arguments) => worker::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("vidette-agent: {error:#}");
        ExitCode::from(2)
    })
}
