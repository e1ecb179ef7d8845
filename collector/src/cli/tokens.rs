//! `vidette tokens …`: tokens that let hosts join.

use super::socket::Request;
use super::socket::client::{ask_all, ask_one};
use super::{Common, output, time};
use crate::identity::{TOKEN_USES_MAX, TokenInfo};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

const EXAMPLES: &str = "\
Examples:
  vidette tokens create                                 good for one host, for an hour
  vidette tokens create --uses 10 --for 24h --group web --label rack-7
  vidette tokens create --address collector.example.org:7441

It prints one line on standard output. On the host: `sudo vidette-agent join`, then paste the line.
The line is a secret until it is used up or expires. Label and group go to every agent that joins with it.";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token and print the line to paste on the host
    #[command(after_help = EXAMPLES)]
    Create {
        /// How long it is good for, at most 24h
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = time::seconds)]
        length_s: u64,
        /// How many hosts may join with it, at most 10000
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOKEN_USES_MAX)))]
        uses: u32,
        /// A note, shown by `tokens list` and at every agent that joins with it
        #[arg(long)]
        label: Option<String>,
        /// The group that every agent belongs to that joins with it
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
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
    /// Make a token worthless that has uses left
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
    /// Hosts that may join with it.
    #[serde(default)]
    pub uses: u32,
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
    /// Id of the agent that joined with it, the first of them.
    pub used_by: Option<String>,
    /// The group that its agents belong to.
    #[serde(default)]
    pub group: Option<String>,
    /// Hosts that may join with it.
    #[serde(default)]
    pub uses: u32,
    /// Hosts that still may.
    #[serde(default)]
    pub uses_left: u32,
}

impl Row {
    /// As it is at `now_unix_s`.
    #[must_use]
    pub fn new(token: TokenInfo, now_unix_s: i64) -> Self {
        let uses_left = token.uses_max.saturating_sub(token.uses);
        let state = if token.is_used_up() {
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
            group: token.group,
            uses: token.uses_max,
            uses_left,
        }
    }
}

/// Runs one.
///
/// # Errors
/// For standard error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { length_s, uses, label, group, address, common } => {
            create(Request::TokensCreate { for_s: length_s, label, address, uses, group }, length_s, &common)
        }
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

fn create(request: Request, length_s: u64, common: &Common) -> anyhow::Result<()> {
    let created: Created = ask_one(&common.socket(), &request)?;
    if common.json {
        return output::json(&created);
    }
    output::line(&created.line)?;
    if output::is_for_a_person() {
        let left = time::length(i64::try_from(length_s).unwrap_or(i64::MAX));
        let hosts = hosts(created.uses);
        output::hint(&format!(
            "good for {hosts}, for {left}; on the host run `sudo vidette-agent join` and paste the line"
        ));
    }
    Ok(())
}

fn hosts(uses: u32) -> String {
    if uses <= 1 { "one host".into() } else { format!("{uses} hosts") }
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
    let headings = ["ID", "STATE", "USES LEFT", "CREATED", "EXPIRES", "USED BY", "GROUP", "LABEL"];
    output::table(&headings, rows.into_iter().map(cells))
}

fn cells(row: Row) -> Vec<String> {
    let show = |unix_s: i64| time::show(unix_s.saturating_mul(1_000_000_000));
    let text = |text: Option<String>| text.map_or_else(|| "-".into(), |text| output::safe(&text));
    let used = row.uses.saturating_sub(row.uses_left);
    let used_by = match (row.used_by, used) {
        (None, _) => "-".to_owned(),
        (Some(agent), 0 | 1) => agent,
        (Some(agent), more) => format!("{agent} and {} more", more - 1),
    };
    vec![
        output::safe(&row.id),
        row.state,
        format!("{} of {}", row.uses_left, row.uses),
        show(row.created_unix_s),
        show(row.expires_unix_s),
        used_by,
        text(row.group),
        text(row.label),
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
            group: None,
            created_unix_s: 0,
            expires_unix_s: 10,
            uses_max: 2,
            uses: 1,
            used_unix_s: Some(5),
            used_by: None,
            revoked: false,
        };
        let state = |token: TokenInfo, now| {
            let row = Row::new(token, now);
            (row.state, row.uses_left)
        };
        assert_eq!(state(token.clone(), 9), ("open".into(), 1));
        assert_eq!(state(token.clone(), 10), ("expired".into(), 1));
        assert_eq!(state(TokenInfo { revoked: true, ..token.clone() }, 20), ("revoked".into(), 1));
        assert_eq!(state(TokenInfo { uses: 2, ..token }, 20), ("used".into(), 0));
    }
}
