//! `vidette-agent leave`: takes this host out of its collector's fleet.
//!
//! The collector is told over a connection with the agent's own certificate, and takes that no more; then the identity is set
//! aside here. An agent that runs notices both within seconds and keeps its events for the next collector.

use crate::transport::{self, Farewell};
use std::path::PathBuf;
use std::process::ExitCode;
use vidette_protocol::escape;

/// Left here, but the collector does not know.
const EXIT_UNTOLD: u8 = 1;
/// Nothing was changed.
const EXIT_NOT_LEFT: u8 = 2;

const EXIT_CODES: &str = "\
Exit codes: 0 left, and the collector knows; 1 left here only (--anyway); 2 not left, nothing was changed.";

/// Take this host out of its collector's fleet.
///
/// The collector does not take this agent's certificate any more and lists it as left. The identity on this host is set aside
/// as `identity.left`. Events wait in the outbox for the next collector. To come back, join again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    /// Folder of the agent's state [default: /var/lib/vidette-agent, or the user's own].
    #[arg(long, value_name = "FOLDER", default_value_os_t = crate::config::default_state(), hide_default_value = true)]
    pub state: PathBuf,
    /// Leave even if the collector can't be told; then `vidette agents revoke` has to be run there.
    #[arg(long)]
    pub anyway: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    let (credentials, farewell, aside) = match transport::leave(&arguments.state, arguments.anyway) {
        Ok(left) => left,
        Err(error) => {
            eprintln!("vidette-agent: {error:#}");
            return ExitCode::from(EXIT_NOT_LEFT);
        }
    };
    let (agent, collector) = (credentials.agent, &credentials.collector);
    let aside = escape::terminal(aside.as_os_str().as_encoded_bytes());
    let (is_told, detail) = match &farewell {
        Farewell::Known => (true, String::new()),
        Farewell::KnownBefore(words) => (true, words.clone()),
        Farewell::Untold(why) => (false, why.clone()),
    };
    if arguments.json {
        let answer = serde_json::json!({
            "agent.id": agent.to_string(),
            "collector": collector.to_string(),
            "collector_knows": is_told,
            "detail": detail,
            "identity": aside,
        });
        println!("{answer}");
    } else {
        let first = match &farewell {
            Farewell::Known => {
                format!("Agent {agent} has left {collector}, which takes its certificate no more.")
            }
            Farewell::KnownBefore(words) => format!("Agent {agent} has left {collector}: {words}."),
            Farewell::Untold(why) => format!(
                "Agent {agent} has left {collector} on this host only: {why}.\nOn the collector, run `vidette agents revoke {agent}`."
            ),
        };
        println!("{first}\nIts identity is set aside in {aside}.");
    }
    if is_told { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNTOLD) }
}
