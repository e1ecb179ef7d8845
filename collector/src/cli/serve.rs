//! `vidette serve`: its options. What it runs is made by the pipeline.

use crate::config::{Config, Overrides};
use crate::telemetry::LogFormat;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  vidette serve                                  everything under /var/lib/vidette, agents on UDP port 7441
  vidette serve --state ~/vidette                as an ordinary user
  vidette serve --config /etc/vidette/collector.toml

It makes its folders, its certificate authority and its store at the first start. SIGTERM, SIGHUP or ^C ends it in order.";

/// What can be said on its command line; it wins over the configuration file.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Folder of everything that is kept; made when it is missing [default: /var/lib/vidette]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Configuration file; without one the defaults are used
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// UDP address for agents [default: [::]:7441, or 0.0.0.0:7441 without IPv6]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// How the log on standard error is written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or `module=level` with commas between
    #[arg(long, value_name = "FILTER", env = "VIDETTE_LOG", default_value = "info")]
    pub log: String,
}

impl Options {
    /// The settings they lead to.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn config(&self) -> anyhow::Result<Config> {
        let state = match &self.state {
            // A relative folder on a command line is meant from here, as everywhere.
            Some(state) => Some(std::path::absolute(state)?),
            None => None,
        };
        Config::load(self.config.as_deref(), &Overrides { state, listen: self.listen })
    }
}
