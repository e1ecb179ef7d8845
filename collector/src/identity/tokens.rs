//! Join tokens: how many hosts may use one, for how long, and what they are given with it.
//!
//! `Identity` makes them and asks `check` when somebody presents one; the register keeps them. The secret is never
//! kept, only its digest. Pure but for the SQL, which runs in the caller's transaction.

use super::{AgentRecord, refused};
use anyhow::bail;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::time::Duration;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{JoinRefusal, JoinRefused};

/// How long a token is good when nobody says otherwise.
pub const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// How long a token may be good.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(86_400);
/// Hosts that one token may let in.
pub const TOKEN_USES_MAX: u32 = 10_000;
/// Tokens that may wait for their use at the same time.
pub const TOKENS_OPEN_MAX: u32 = 10_000;
/// A host that lost the answer may ask again with the same key; so many answers it gets for one use.
pub const ANSWERS_MAX: u32 = 16;

/// What a new token shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWish {
    /// For so long it is good.
    pub ttl: Duration,
    /// For so many hosts.
    pub uses: u32,
    /// For people; every agent that joins with it has it.
    pub label: Option<String>,
    /// Every agent that joins with it belongs to it.
    pub group: Option<String>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Short and public: eight base32 characters.
    pub id: String,
    /// What the admin wrote on it.
    pub label: Option<String>,
    /// What the agents that join with it belong to.
    pub group: Option<String>,
    /// Unix seconds.
    pub created_unix_s: i64,
    /// Unix seconds.
    pub expires_unix_s: i64,
    /// Hosts that may join with it.
    pub uses_max: u32,
    /// Hosts that have.
    pub uses: u32,
    /// When it was used last, Unix seconds.
    pub used_unix_s: Option<i64>,
    /// The agent that joined with it first.
    pub used_by: Option<AgentId>,
    /// It was revoked.
    pub revoked: bool,
}

/// A host that joined with a token and this key before.
pub(super) struct Use {
    pub(super) agent: AgentId,
    pub(super) answers: u32,
}

impl TokenWish {
    /// For one host.
    #[must_use]
    pub fn one(ttl: Duration, label: Option<String>) -> Self {
        Self { ttl, uses: 1, label, group: None }
    }

    /// Whether it may be made.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.ttl < Duration::from_secs(1) || self.ttl > TOKEN_TTL_MAX {
            bail!("a token can be good for 1 s to 24 h, not {} s; choose another time", self.ttl.as_secs());
        }
        if !(1..=TOKEN_USES_MAX).contains(&self.uses) {
            bail!(
                "a token can be good for 1 to {TOKEN_USES_MAX} hosts, not {}; choose another number",
                self.uses
            );
        }
        for (what, text) in [("label", &self.label), ("group", &self.group)] {
            if text.as_ref().is_some_and(|text| text.len() > NAME_BYTES_MAX) {
                bail!("the {what} is longer than {NAME_BYTES_MAX} bytes; choose a shorter one");
            }
        }
        if self.group.as_ref().is_some_and(|group| group.trim().is_empty()) {
            bail!("the group has no name; leave it away, or name it");
        }
        Ok(())
    }
}

impl TokenInfo {
    /// All of its uses are used.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.uses >= self.uses_max
    }
}

const COLUMNS: &str =
    "SELECT t.id, t.label, t.group_name, t.created_unix_s, t.expires_unix_s, t.uses_max, t.uses,
    t.used_unix_s, t.revoked_unix_s IS NOT NULL,
    (SELECT u.agent FROM token_uses u WHERE u.token = t.id ORDER BY u.used_unix_s, u.agent LIMIT 1)
    FROM tokens t";

fn info(row: &Row<'_>) -> rusqlite::Result<TokenInfo> {
    Ok(TokenInfo {
        id: row.get(0)?,
        label: row.get(1)?,
        group: row.get(2)?,
        created_unix_s: row.get(3)?,
        expires_unix_s: row.get(4)?,
        uses_max: row.get(5)?,
        uses: row.get(6)?,
        used_unix_s: row.get(7)?,
        revoked: row.get(8)?,
        used_by: row.get::<_, Option<[u8; 16]>>(9)?.map(AgentId),
    })
}

/// All that are known, the newest first.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<TokenInfo>> {
    let mut statement =
        connection.prepare_cached(&format!("{COLUMNS} ORDER BY t.created_unix_s DESC, t.id"))?;
    statement.query_map([], info)?.collect()
}

/// Adds a token. Tokens that still wait for hosts are counted first: there may not be more than `max`.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    token: &TokenInfo,
    digest: [u8; 32],
    max: u32,
) -> anyhow::Result<()> {
    let open = "SELECT count(*) FROM tokens
        WHERE uses < uses_max AND revoked_unix_s IS NULL AND expires_unix_s > ?1";
    let waiting: u32 = transaction.query_row(open, [token.created_unix_s], |row| row.get(0))?;
    if waiting >= max {
        bail!(
            "{waiting} unused tokens wait already, no more are made; revoke some with `vidette tokens revoke`"
        );
    }
    transaction.execute(
        "INSERT INTO tokens (id, digest, label, group_name, created_unix_s, expires_unix_s, uses_max)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            token.id,
            digest,
            token.label,
            token.group,
            token.created_unix_s,
            token.expires_unix_s,
            token.uses_max
        ],
    )?;
    Ok(())
}

/// Refuses a token from now on; false when it is not there, or has no use left, or was revoked before.
pub(super) fn revoke(connection: &Connection, id: &str, now_unix_s: i64) -> rusqlite::Result<bool> {
    let sql = "UPDATE tokens SET revoked_unix_s = ?2
        WHERE id = ?1 AND revoked_unix_s IS NULL AND uses < uses_max";
    Ok(connection.execute(sql, params![id, now_unix_s])? == 1)
}

/// The token of this secret.
pub(super) fn by_digest(
    transaction: &Transaction<'_>,
    digest: [u8; 32],
) -> rusqlite::Result<Option<TokenInfo>> {
    transaction.query_row(&format!("{COLUMNS} WHERE t.digest = ?1"), [digest], info).optional()
}

/// Who used this token with this key.
pub(super) fn use_of(
    transaction: &Transaction<'_>,
    token: &str,
    key_digest: [u8; 32],
) -> rusqlite::Result<Option<Use>> {
    let sql = "SELECT agent, answers FROM token_uses WHERE token = ?1 AND key_digest = ?2";
    let found = |row: &Row<'_>| Ok(Use { agent: AgentId(row.get(0)?), answers: row.get(1)? });
    transaction.query_row(sql, params![token, key_digest], found).optional()
}

/// One more use. Fails, by the table's own check, when there is none left.
pub(super) fn use_one(
    transaction: &Transaction<'_>,
    token: &str,
    agent: &AgentRecord,
    key_digest: [u8; 32],
) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE tokens SET uses = uses + 1, used_unix_s = ?2 WHERE id = ?1",
        params![token, agent.joined_unix_s],
    )?;
    transaction.execute(
        "INSERT INTO token_uses (agent, token, key_digest, used_unix_s) VALUES (?1, ?2, ?3, ?4)",
        params![agent.id.0, token, key_digest, agent.joined_unix_s],
    )?;
    Ok(())
}

/// One more answer for a use that is counted already.
pub(super) fn answer_again(transaction: &Transaction<'_>, agent: AgentId) -> rusqlite::Result<()> {
    transaction.execute("UPDATE token_uses SET answers = answers + 1 WHERE agent = ?1", [agent.0])?;
    Ok(())
}

/// Whether a token can be used now; `again` by a host that has used it before.
pub(super) fn check(
    token: Option<TokenInfo>,
    again: bool,
    now_unix_s: i64,
) -> Result<TokenInfo, JoinRefused> {
    let advice = "make a new one with `vidette tokens create`";
    let refuse = |code, what: &str| Err(refused(code, &format!("the token {what}; {advice}")));
    match token {
        None => refuse(JoinRefusal::TokenUnknown, "is unknown here"),
        Some(token) if token.revoked => refuse(JoinRefusal::TokenRevoked, "was revoked"),
        Some(token) if token.is_used_up() && !again => match token.uses_max {
            1 => refuse(JoinRefusal::TokenUsed, "was used before"),
            uses => refuse(JoinRefusal::TokenUsed, &format!("was used by all {uses} hosts it is good for")),
        },
        Some(token) if token.expires_unix_s <= now_unix_s => refuse(JoinRefusal::TokenExpired, "has expired"),
        Some(token) => Ok(token),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_may_be_is_bounded() {
        let good = TokenWish::one(TOKEN_TTL_DEFAULT, None);
        good.check().unwrap();
        TokenWish { uses: TOKEN_USES_MAX, ttl: TOKEN_TTL_MAX, group: Some("web".into()), ..good.clone() }
            .check()
            .unwrap();
        let bad = [
            (TokenWish { ttl: Duration::ZERO, ..good.clone() }, "1 s to 24 h"),
            (TokenWish { ttl: TOKEN_TTL_MAX + Duration::from_secs(1), ..good.clone() }, "1 s to 24 h"),
            (TokenWish { uses: 0, ..good.clone() }, "1 to 10000 hosts"),
            (TokenWish { uses: TOKEN_USES_MAX + 1, ..good.clone() }, "1 to 10000 hosts"),
            (TokenWish { label: Some("x".repeat(257)), ..good.clone() }, "label"),
            (TokenWish { group: Some("x".repeat(257)), ..good.clone() }, "group"),
            (TokenWish { group: Some("  ".into()), ..good }, "no name"),
        ];
        for (wish, word) in bad {
            let error = wish.check().unwrap_err().to_string();
            assert!(error.contains(word), "{wish:?}: {error}");
        }
    }
}
