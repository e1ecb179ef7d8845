//! `vidette tokens …`: one-use tokens that let hosts join.

use super::socket::Request;
use super::socket::client::{ask_all, ask_one};
use super::{Common, output, time};
use crate::identity::TokenInfo;
use clap::Subcommand;
use serde::{Deserialize, Serialize};

const EXAMPLES: &str = "\
Examples:
  vidette tokens create                                 good for one host, for an hour
  vidette tokens create --for 24h --label rack-7
  vidette tokens create --address collector.example.org:7441

It prints one line on standard output. On the host: `sudo vidette-agent join`, then paste the line.
The line is a secret until it is used or expires.";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token and print the line to paste on the host
    #[command(after_help = EXAMPLES)]
    Create {
        /// How long it is good for, at most 24h
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = time::seconds)]
        length_s: u64,
        /// A note, shown by `tokens list`
        #[arg(long)]
        label: Option<String>,
        /// HOST:PORT that the host shall connect to, instead of the configured one
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Show tokens: open, used, expired, revoked
    #[command(
        after_help = "Tokens themselves are not kept, only their digests: a lost line can't be shown again."
    )]
    List {
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Make a token worthless that was not used yet
    #[command(after_help = "Example:\n  vidette tokens revoke k3f7q2xa")]
    Revoke {
        /// Its ID in `tokens list`
        id: String,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
}

/// What `create` is answered. Holds the secret: never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The line to paste.
    pub line: String,
    /// Id of the token.
    pub id: String,
    /// Unix seconds.
    pub expires_unix_s: i64,
}

/// One token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// For `revoke`.
    pub id: String,
    /// `open`, `used`, `expired` or `revoked`.
    pub state: String,
    /// The note.
    pub label: Option<String>,
    /// Unix seconds.
    pub created_unix_s: i64,
    /// Unix seconds.
    pub expires_unix_s: i64,
    /// Id of the agent that joined with it.
    pub used_by: Option<String>,
}

impl Row {
    /// As it is at `now_unix_s`.
    #[must_use]
    pub fn new(token: TokenInfo, now_unix_s: i64) -> Self {
        let state = if token.used_unix_s.is_some() {
            "used"
        } else if token.revoked {
            "revoked"
        } else if token.expires_unix_s <= now_unix_s {
            "expired"
        } else {
            "open"
        };
        Self {
            id: token.id,
            state: state.into(),
            label: token.label,
            created_unix_s: token.created_unix_s,
            expires_unix_s: token.expires_unix_s,
            used_by: token.used_by.map(|agent| agent.to_string()),
        }
    }
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { length_s, label, address, common } => create(length_s, label, address, &common),
        Command::List { common } => list(&common),
        Command::Revoke { id, common } => {
            let row: Row = ask_one(&common.socket(), &Request::TokensRevoke { id })?;
            if common.json {
                output::json(&row)
            } else {
                output::line(&format!("token {} is revoked", output::safe(&row.id)))
            }
        }
    }
}

fn create(
    length_s: u64,
    label: Option<String>,
    address: Option<String>,
    common: &Common,
) -> anyhow::Result<()> {
    let created: Created =
        ask_one(&common.socket(), &Request::TokensCreate { for_s: length_s, label, address })?;
    if common.json {
        return output::json(&created);
    }
    output::line(&created.line)?;
    if output::is_for_a_person() {
        let left = time::length(i64::try_from(length_s).unwrap_or(i64::MAX));
        output::hint(&format!(
            "good for one host, for {left}; on the host run `sudo vidette-agent join` and paste the line"
        ));
    }
    Ok(())
}

fn list(common: &Common) -> anyhow::Result<()> {
    let rows: Vec<Row> = ask_all(&common.socket(), &Request::TokensList)?;
    if common.json {
        return rows.iter().try_for_each(output::json);
    }
    if rows.is_empty() {
        output::hint("no tokens; make one with `vidette tokens create`");
        return Ok(());
    }
    output::table(&["ID", "STATE", "CREATED", "EXPIRES", "USED BY", "LABEL"], rows.into_iter().map(cells))
}

fn cells(row: Row) -> Vec<String> {
    let show = |unix_s: i64| time::show(unix_s.saturating_mul(1_000_000_000));
    vec![
        output::safe(&row.id),
        row.state,
        show(row.created_unix_s),
        show(row.expires_unix_s),
        row.used_by.unwrap_or_else(|| "-".into()),
        row.label.map_or_else(|| "-".into(), |label| output::safe(&label)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_token_is_what_ended_it() {
        let token = TokenInfo {
            id: "a".into(),
            label: None,
            created_unix_s: 0,
            expires_unix_s: 10,
            used_unix_s: None,
            used_by: None,
            revoked: false,
        };
        let state = |token: TokenInfo, now| Row::new(token, now).state;
        assert_eq!(state(token.clone(), 9), "open");
        assert_eq!(state(token.clone(), 10), "expired");
        assert_eq!(state(TokenInfo { revoked: true, ..token.clone() }, 20), "revoked");
        assert_eq!(state(TokenInfo { used_unix_s: Some(5), ..token }, 20), "used");
    }
}
