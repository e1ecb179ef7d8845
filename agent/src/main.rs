//! The agent's binary: command line, logging, exit code. Everything else is in the library.

use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use vidette_agent::cli::{self, Cli, EXIT_ERROR, LogFormat};
use vidette_protocol::escape;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Whatever is made from here on is for this user alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if let Err(error) = log(&cli.log, cli.log_format) {
        eprintln!("vidette-agent: --log `{}` can't be used: {error}", escape::terminal(cli.log.as_bytes()));
        return ExitCode::from(EXIT_ERROR);
    }
    match cli::run(cli.command) {
        Ok(code) => code,
        // Not everything was said: no success, and nobody to tell.
        Err(error) if cli::is_closed_pipe(&error) => ExitCode::from(EXIT_ERROR),
        Err(error) => {
            eprintln!("vidette-agent: {}", lines(&format!("{error:#}")));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// To standard error, so that standard output carries results alone.
fn log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// An error may run over several lines, and holds names that somebody else chose.
fn lines(text: &str) -> String {
    text.lines().map(|line| escape::terminal(line.as_bytes())).collect::<Vec<_>>().join("\n")
}
