//! `vidette-agent renew`: a new certificate and a new key, now.
//!
//! The agent that runs here does it, over its session when there is one, and this command waits for what came of it. Where none
//! runs, this command does it itself, with the state folder locked, so that there is never more than one who renews.

use super::EXIT_ERROR;
use crate::folder;
use crate::status::{self, Report};
use crate::transport::{self, Credentials};
use anyhow::bail;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A renewal over a session that breaks, and then over a connection of its own, takes no longer. Seconds.
const WAIT_S_MAX: u64 = 60;
/// How often the agent is asked what came of it. Milliseconds.
const LOOK_MS: u64 = 50;

/// Renew this host's certificate now.
///
/// That is done by itself at half the certificate's life. By hand it shows whether it can be done, and takes a key out of use
/// that somebody may have seen.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder of the agent's state [default: /var/lib/vidette-agent, or the user's own].
    #[arg(long, value_name = "FOLDER", default_value_os_t = crate::config::default_state(), hide_default_value = true)]
    pub state: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Runs it: exit code 0 when the certificate is new, 2 when not.
///
/// # Errors
/// Why it is not.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let before = Credentials::load(&arguments.state)?;
    let by_agent = match status::renew_now(&arguments.state) {
        Ok(before) => {
            wait(&arguments.state, &before)?;
            true
        }
        Err(_) => {
            let _lock = folder::claim(&arguments.state)?;
            transport::renew_alone(&arguments.state)?;
            false
        }
    };
    let now = Credentials::load(&arguments.state)?;
    let text = if arguments.json {
        serde_json::json!({
            "agent.id": now.agent.to_string(),
            "collector": now.collector.to_string(),
            "certificate_expires_unix_s": now.expires_unix_s,
            "by_running_agent": by_agent,
        })
        .to_string()
    } else {
        let until = super::status::time(now.expires_unix_s);
        format!("Renewed the certificate of agent {} with a new key, until {until}.", before.agent)
    };
    if std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes()).is_err() {
        return Ok(ExitCode::from(EXIT_ERROR));
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the agent says what came of it.
fn wait(state: &Path, before: &Report) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(WAIT_S_MAX) {
        let now = status::ask(state)?;
        if now.renewals > before.renewals {
            return Ok(());
        }
        if now.renewals_failed > before.renewals_failed {
            bail!("the agent could not renew the certificate: {}", now.renewal_error);
        }
        std::thread::sleep(Duration::from_millis(LOOK_MS));
    }
    bail!(
        "the agent did not renew the certificate within {WAIT_S_MAX} s; look at its log, and whether it is of this version"
    )
}
