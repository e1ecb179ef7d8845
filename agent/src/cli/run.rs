//! `vidette-agent run`: the service.

use crate::config::Config;
use crate::{pipeline, stop};
use std::path::PathBuf;
use std::process::ExitCode;

/// What was typed after `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; the default one may be absent [default: /etc/vidette/agent.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder; overrides the file [default: /var/lib/vidette-agent, or the user's own]
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
}

/// Runs until a signal, or until a stage fails.
///
/// # Errors
/// What can't be used, or which stage failed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::sys::memory::keep_little();
    let config = Config::load(args.config.as_deref(), args.state.as_deref())?;
    let (stopper, stop) = stop::channel();
    stop::on_signal(stopper)?;
    pipeline::run(&config, &stop)?;
    Ok(ExitCode::SUCCESS)
}
