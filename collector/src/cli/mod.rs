//! The command line: `serve` and every fleet command.
//!
//! The commands ask a running `vidette serve` over `socket` and print what it answers; `store check`, `backup`, `restore` and `ca sign` alone read files. One file per command group
//! holds its options, the rows that are asked for, and how they are shown.

/// The admin socket, both ends.
pub mod socket;
/// Tables, JSON lines, hints.
pub mod output;
/// Times as people write and read them.
pub mod time;
/// An event in one table row.
pub mod summary;
/// `vidette serve`: its options.
pub mod serve;
/// `vidette tokens …`
pub mod tokens;
/// `vidette agents …`
pub mod agents;
/// `vidette ca …`
pub mod ca;
/// `vidette alerts …` and `vidette events …`
pub mod events;
/// `vidette sinks …`
pub mod sinks;
/// `vidette status`
pub mod status;
/// `vidette store …`
pub mod store;
/// `vidette backup` and `vidette restore`
pub mod backup;

use crate::config::STATE_DEFAULT;
use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
First steps:
  vidette serve                      start the collector; nothing has to be prepared
  vidette tokens create              print the line to paste on a host that shall join
  vidette agents list                see who has joined
  vidette alerts follow              watch alerts as they arrive

Exit codes: 0 done, 1 what was named is not there, 2 error; `status --check` and `store check` have their own.";

/// What was typed.
#[derive(Debug, Parser)]
#[command(name = "vidette", version, about = "Collects what Vidette's agents find, and forwards it", after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the collector until it is told to stop
    Serve(serve::Options),
    /// Let hosts join: tokens for one host or many
    #[command(subcommand)]
    Tokens(tokens::Command),
    /// The hosts that have joined
    #[command(subcommand)]
    Agents(agents::Command),
    /// The CA that agents trust, and its replacement
    #[command(subcommand)]
    Ca(ca::Command),
    /// What needs attention: detections, gaps, health, audit
    #[command(subcommand)]
    Alerts(events::AlertsCommand),
    /// Everything that is stored, files and processes too
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// Where events are forwarded to, and how far each has come
    #[command(subcommand)]
    Sinks(sinks::Command),
    /// The files that events are stored in
    #[command(subcommand)]
    Store(store::Command),
    /// Copy everything that the collector can't make again; it may run meanwhile
    Backup(backup::Backup),
    /// Put a backup into an empty state folder
    Restore(backup::Restore),
    /// The collector and its fleet on one screen
    Status(status::Options),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  vidette completions bash > /etc/bash_completion.d/vidette")]
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command; packages are made with it
    #[command(hide = true)]
    Manual {
        /// An existing folder
        folder: PathBuf,
    },
}

/// Where the collector is, and how to print.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// State folder of the running collector
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    state: PathBuf,
    /// Its socket, when it is not in the state folder
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
}

impl Common {
    /// Where to ask.
    fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| socket::socket_path(&self.state))
    }
}

/// Runs a fleet command. `serve` is not one: it belongs to the pipeline.
///
/// # Errors
/// One sentence for standard error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(_) => anyhow::bail!("`serve` is not a command for a running collector"),
        Command::Tokens(command) => tokens::run(command),
        Command::Agents(command) => agents::run(command),
        Command::Ca(command) => ca::run(command),
        Command::Alerts(command) => events::run_alerts(command),
        Command::Events(command) => events::run_events(command),
        Command::Sinks(command) => sinks::run(command),
        Command::Store(command) => store::run(command),
        Command::Backup(options) => backup::run(&options),
        Command::Restore(options) => backup::restore(&options),
        Command::Status(options) => status::run(&options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "vidette", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())
        }
        Command::Manual { folder } => clap_mangen::generate_to(Arguments::command(), &folder)
            .with_context(|| format!("could not write manual pages to {}", folder.display())),
    }
}

/// The exit code of a result; says what went wrong.
#[must_use]
pub fn exit_code(result: &anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.is::<output::Closed>() {
        return ExitCode::SUCCESS;
    }
    if let Some(status::Attention(code)) = error.downcast_ref() {
        return ExitCode::from(*code); // it was said on standard output
    }
    if error.is::<store::Damaged>() || error.is::<ca::StillNeeded>() {
        return ExitCode::from(1); // as was this
    }
    output::hint(&format!("vidette: {}", output::safe(&format!("{error:#}"))));
    ExitCode::from(if error.is::<socket::client::NotFound>() { 1 } else { 2 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} says nothing of itself", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {}", argument.get_id(), command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }
}
