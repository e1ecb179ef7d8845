//! The command line as typed, one file a command. `main` hands over what was parsed.

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tests hash lists: `hashes check`.
pub mod hashes;
/// Enrols this host: `join`.
pub mod join;
/// Takes it out again: `leave`.
pub mod leave;
/// Makes a host ready to be copied: `prepare-image`.
pub mod prepare_image;
/// Has a running agent read rules and hash lists anew: `reload`.
pub mod reload;
/// Renews the certificate now: `renew`.
pub mod renew;
/// Tests rules: `rules check`.
pub mod rules;
/// The service: `run`.
pub mod run;
/// Scans files now: `scan`.
pub mod scan;
/// Looks into processes now: `scan --pid`, `scan --all-processes`.
pub mod scan_memory;
/// Asks a running agent how it is: `status`.
pub mod status;
/// Prints events live, with no collector: `watch`.
pub mod watch;

/// What a command gives back when it could not do its work.
pub const EXIT_ERROR: u8 = 2;

/// Sees every file written and every program run on this host, matches them against YARA rules,
/// and ships what it finds to the collector. Nothing is lost silently.
#[derive(Debug, Parser)]
#[command(name = "vidette-agent", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `vidette_agent::sensors=debug`.
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How log lines look on standard error.
    #[arg(long, global = true, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until it is told to stop (SIGTERM, SIGHUP or Ctrl-C)
    Run(run::Args),
    /// Enrol this host with a collector; reads the line of `vidette tokens create` from standard input
    Join(join::Arguments),
    /// Take this host out of its collector's fleet
    Leave(leave::Arguments),
    /// Renew this host's certificate now; that is done by itself twice a day
    Renew(renew::Arguments),
    /// Make this host ready to be copied: forget who it is
    PrepareImage(prepare_image::Arguments),
    /// Scan files and folders now; needs no collector
    Scan(scan::Args),
    /// Print what happens to the given paths, live; needs no collector
    Watch(watch::Args),
    /// Work with rules
    #[command(subcommand)]
    Rules(rules::Command),
    /// Work with hash lists
    #[command(subcommand)]
    Hashes(hashes::Command),
    /// Have the agent that runs on this host read its rules and hash lists anew
    #[command(after_help = reload::NOTES)]
    Reload(reload::Args),
    /// Show how the agent that runs on this host is
    Status(status::Args),
    /// Print a completion script for a shell
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command; packages are made with it
    #[command(hide = true)]
    Manual {
        /// An existing folder.
        folder: PathBuf,
    },
    /// The sandboxed scanner; the agent starts it by itself
    #[command(hide = true)]
    Worker(crate::worker::Args),
    /// Ends at once: the agent runs it to see whether its sensors do
    #[command(hide = true)]
    Canary,
}

/// Whoever read our output has read enough (`vidette-agent watch / | head`).
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

const EXAMPLES: &str = "\
Examples:
  vidette-agent scan /var/www              what do the rules say of a web root?
  vidette-agent watch /tmp /home           what is written and run there, live
  echo 'vidette://…' | vidette-agent join  enrol, with the line of `vidette tokens create`
  vidette-agent run                        the service itself
  vidette-agent status                     how it is

Exit codes: 0 success (scan: clean), 1 scan matched or rules are bad, 2 error.";

/// Runs a command.
///
/// # Errors
/// What kept it from its work, as one sentence.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Join(args) => Ok(join::run(&args)),
        Command::Leave(args) => Ok(leave::run(&args)),
        Command::Renew(args) => renew::run(&args),
        Command::PrepareImage(args) => prepare_image::run(&args),
        Command::Scan(args) => scan::run(args),
        Command::Watch(args) => watch::run(&args),
        Command::Rules(args) => rules::run(args),
        Command::Hashes(args) => hashes::run(args),
        Command::Reload(args) => reload::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vidette-agent", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Manual { folder } => {
            clap_mangen::generate_to(Cli::command(), &folder)
                .with_context(|| format!("could not write manual pages to {}", folder.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Worker(args) => crate::worker::run(&args),
        Command::Canary => Ok(ExitCode::SUCCESS),
    }
}
