//! What the fleet commands and `vidette serve` say to each other: one request line, then answer lines, all JSON, over
//! a Unix socket in the state folder that only root and the server's own user may use.

/// The commands' end.
pub mod client;
/// The server's end.
pub mod server;
/// What is answered to what.
pub mod answers;
mod ca;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Name of the socket in the state folder.
pub const SOCKET_NAME: &str = "vidette.sock";
/// One request line. Bytes.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;
/// One answer line: the largest event as JSON, doubly escaped, and then some. Bytes.
pub const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Where the socket of a state folder is.
#[must_use]
pub fn socket_path(state: &Path) -> PathBuf {
    state.join(SOCKET_NAME)
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// One [`super::status::Row`].
    Status,
    /// One [`super::tokens::Created`].
    TokensCreate {
        /// How long it is good for. Seconds.
        for_s: u64,
        /// For people.
        label: Option<String>,
        /// `HOST:PORT` in the line, instead of the configured one.
        address: Option<String>,
        /// For so many hosts.
        #[serde(default = "one")]
        uses: u32,
        /// What its agents belong to.
        #[serde(default)]
        group: Option<String>,
    },
    /// [`super::tokens::Row`]s.
    TokensList,
    /// One [`super::tokens::Row`].
    TokensRevoke {
        /// As `tokens list` shows it.
        id: String,
    },
    /// [`super::agents::Row`]s.
    AgentsList,
    /// One [`super::agents::Row`].
    AgentsShow {
        /// Id, the start of one, or host name.
        agent: String,
    },
    /// One [`super::agents::Revoked`].
    AgentsRevoke {
        /// Id, the start of one, or host name; it must fit one agent only.
        agent: String,
    },
    /// [`super::events::Row`]s, newest first.
    Events {
        /// Which.
        query: Query,
        /// How many at most.
        limit: u64,
    },
    /// One [`super::events::Row`].
    Event {
        /// Event id or store id.
        id: String,
    },
    /// [`super::events::Row`]s as they are stored, until the asker hangs up.
    Follow {
        /// Which.
        query: Query,
    },
    /// [`crate::sinks::Status`] of each.
    SinksList,
    /// One row: see [`super::ca::Step`].
    Ca {
        /// What to do.
        step: super::ca::Step,
    },
}

fn one() -> u32 {
    1
}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// `alert`, `telemetry`; empty for both.
    pub classes: Vec<String>,
    /// Host name.
    pub host: Option<String>,
    /// Agent id, the start of one, or host name.
    pub agent: Option<String>,
    /// Rule name.
    pub rule: Option<String>,
    /// At least this severe.
    pub severity: Option<String>,
    /// Kinds; empty for all.
    pub kinds: Vec<String>,
    /// Not older. Unix nanoseconds.
    pub since_unix_ns: Option<i64>,
    /// Not younger. Unix nanoseconds.
    pub until_unix_ns: Option<i64>,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Something asked for.
    Row(Value),
    /// That was all.
    End,
    /// What was named is not there. The last line.
    NotFound(String),
    /// It went wrong. The last line.
    Error(String),
}
