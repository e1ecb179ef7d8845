//! The register in `identity.db`: tokens, agents and their certificates.
//!
//! Assumes that it alone has the file open (the vault's lock). Decides nothing about cryptography:
//! `Identity` hands it digests and serial numbers. Times are Unix seconds.

use super::{AgentRecord, Seen, TokenInfo};
use anyhow::{Context, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::path::Path;
use vidette_protocol::id::AgentId;

/// "VidI": tells this database from any other.
const APPLICATION_ID: i64 = 0x5669_6449;
/// Migrations in order: the first makes version 1.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];
/// The largest write-ahead log that is left on disk. Bytes.
const JOURNAL_BYTES_MAX: i64 = 4 << 20;
/// Rows of certificates are kept this long after they ended. Seconds.
const CERTIFICATE_KEPT_S: i64 = 90 * 86_400;
/// Rows of tokens are kept this long after they ended. Seconds.
const TOKEN_KEPT_S: i64 = 90 * 86_400;

const AGENT_COLUMNS: &str =
    "SELECT a.id, a.host_name, a.os, a.version, a.joined_unix_s, a.last_seen_unix_s, a.level,
    a.rules_version, (SELECT max(c.expires_unix_s) FROM certificates c WHERE c.agent = a.id), a.revoked_unix_s
    FROM agents a";

/// The open database.
#[derive(Debug)]
pub(super) struct Register {
    connection: Connection,
}

/// What is known of a token when somebody presents it.
pub(super) struct TokenState {
    pub(super) expires_unix_s: i64,
    pub(super) used: bool,
    pub(super) revoked: bool,
}

impl Register {
    /// Opens or makes the database.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let advice = "restore it from a backup, or move it away and join every host again";
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(path, flags)
            .with_context(|| format!("could not open {name}; check that its folder can be written"))?;
        harden(&connection)
            .with_context(|| format!("could not read {name}, it is damaged or no database; {advice}"))?;
        migrate(&mut connection).with_context(|| format!("could not use {name}"))?;
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .with_context(|| format!("could not read {name}, it is damaged; {advice}"))?;
        if verdict != "ok" {
            bail!("{name} is damaged ({verdict}); {advice}");
        }
        Ok(Self { connection })
    }

    /// All or nothing, and on disk when it returns.
    pub(super) fn transaction(&mut self) -> rusqlite::Result<Transaction<'_>> {
        self.connection.transaction_with_behavior(TransactionBehavior::Immediate)
    }

    pub(super) fn tokens(&self) -> rusqlite::Result<Vec<TokenInfo>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, label, created_unix_s, expires_unix_s, used_unix_s, used_by, revoked_unix_s
             FROM tokens ORDER BY created_unix_s DESC, id",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(TokenInfo {
                id: row.get(0)?,
                label: row.get(1)?,
                created_unix_s: row.get(2)?,
                expires_unix_s: row.get(3)?,
                used_unix_s: row.get(4)?,
                used_by: row.get::<_, Option<[u8; 16]>>(5)?.map(AgentId),
                revoked: row.get::<_, Option<i64>>(6)?.is_some(),
            })
        })?;
        rows.collect()
    }

    pub(super) fn agents(&self) -> rusqlite::Result<Vec<AgentRecord>> {
        let mut statement =
            self.connection.prepare_cached(&format!("{AGENT_COLUMNS} ORDER BY a.joined_unix_s, a.id"))?;
        let rows = statement.query_map([], agent_record)?;
        rows.collect()
    }

    pub(super) fn agent(&self, agent: AgentId) -> rusqlite::Result<Option<AgentRecord>> {
        let mut statement = self.connection.prepare_cached(&format!("{AGENT_COLUMNS} WHERE a.id = ?1"))?;
        statement.query_row([agent.0], agent_record).optional()
    }

    /// Refuses a token; false when it is not there, or already used or revoked.
    pub(super) fn revoke_token(&mut self, id: &str, now_unix_s: i64) -> rusqlite::Result<bool> {
        let sql = "UPDATE tokens SET revoked_unix_s = ?2
            WHERE id = ?1 AND revoked_unix_s IS NULL AND used_unix_s IS NULL";
        Ok(self.connection.execute(sql, params![id, now_unix_s])? == 1)
    }

    /// Revokes an agent; false when it is not there or was revoked before.
    pub(super) fn revoke_agent(&mut self, agent: AgentId, now_unix_s: i64) -> rusqlite::Result<bool> {
        let sql = "UPDATE agents SET revoked_unix_s = ?2 WHERE id = ?1 AND revoked_unix_s IS NULL";
        Ok(self.connection.execute(sql, params![agent.0, now_unix_s])? == 1)
    }

    /// Writes down when agents were last seen, in one commit.
    pub(super) fn store_seen<'a>(
        &mut self,
        seen: impl Iterator<Item = (&'a AgentId, &'a Seen)>,
    ) -> rusqlite::Result<()> {
        let transaction = self.transaction()?;
        for (agent, seen) in seen {
            seen.store(&transaction, *agent)?;
        }
        transaction.commit()
    }

    /// Forgets tokens and certificates that ended long ago. An agent's newest certificate stays.
    pub(super) fn prune(&mut self, now_unix_s: i64) -> rusqlite::Result<()> {
        let transaction = self.transaction()?;
        transaction.execute(
            "DELETE FROM certificates AS c WHERE c.expires_unix_s < ?1
             AND EXISTS (SELECT 1 FROM certificates n WHERE n.agent = c.agent AND n.expires_unix_s > c.expires_unix_s)",
            [now_unix_s.saturating_sub(CERTIFICATE_KEPT_S)],
        )?;
        let tokens_before = now_unix_s.saturating_sub(TOKEN_KEPT_S);
        transaction.execute("DELETE FROM tokens WHERE expires_unix_s < ?1", [tokens_before])?;
        transaction.commit()
    }
}

/// Adds a token. Tokens that nobody used yet are counted first: there may not be more than `max`.
pub(super) fn insert_token(
    transaction: &Transaction<'_>,
    info: &TokenInfo,
    digest: [u8; 32],
    max: u32,
) -> anyhow::Result<()> {
    let open = "SELECT count(*) FROM tokens WHERE used_unix_s IS NULL AND revoked_unix_s IS NULL AND expires_unix_s > ?1";
    let waiting: u32 = transaction.query_row(open, [info.created_unix_s], |row| row.get(0))?;
    if waiting >= max {
        bail!(
            "{waiting} unused tokens wait already, no more are made; revoke some with `vidette tokens revoke`"
        );
    }
    transaction.execute(
        "INSERT INTO tokens (id, digest, label, created_unix_s, expires_unix_s) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![info.id, digest, info.label, info.created_unix_s, info.expires_unix_s],
    )?;
    Ok(())
}

pub(super) fn token_by_digest(
    transaction: &Transaction<'_>,
    digest: [u8; 32],
) -> rusqlite::Result<Option<TokenState>> {
    let sql = "SELECT expires_unix_s, used_unix_s IS NOT NULL, revoked_unix_s IS NOT NULL FROM tokens WHERE digest = ?1";
    let state = |row: &Row<'_>| {
        Ok(TokenState { expires_unix_s: row.get(0)?, used: row.get(1)?, revoked: row.get(2)? })
    };
    transaction.query_row(sql, [digest], state).optional()
}

/// The token is used, the agent exists.
pub(super) fn insert_agent(
    transaction: &Transaction<'_>,
    agent: &AgentRecord,
    token_digest: [u8; 32],
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO agents (id, host_name, os, version, joined_unix_s, last_seen_unix_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        params![agent.id.0, agent.host_name, agent.os, agent.version, agent.joined_unix_s],
    )?;
    transaction.execute(
        "UPDATE tokens SET used_unix_s = ?2, used_by = ?3 WHERE digest = ?1",
        params![token_digest, agent.joined_unix_s, agent.id.0],
    )?;
    Ok(())
}

pub(super) fn insert_certificate(
    transaction: &Transaction<'_>,
    serial: &[u8],
    agent: AgentId,
    issued_unix_s: i64,
    expires_unix_s: i64,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO certificates (serial, agent, issued_unix_s, expires_unix_s) VALUES (?1, ?2, ?3, ?4)",
        params![serial, agent.0, issued_unix_s, expires_unix_s],
    )?;
    Ok(())
}

impl Seen {
    fn store(&self, transaction: &Transaction<'_>, agent: AgentId) -> rusqlite::Result<()> {
        transaction.execute(
            "UPDATE agents SET last_seen_unix_s = max(last_seen_unix_s, ?2), level = ?3, rules_version = ?4 WHERE id = ?1",
            params![agent.0, self.at_unix_s, self.level, self.rules_version],
        )?;
        let Some(facts) = &self.facts else { return Ok(()) };
        transaction.execute(
            "UPDATE agents SET host_name = ?2, os = ?3, version = ?4 WHERE id = ?1",
            params![agent.0, facts.host_name, facts.os, facts.version],
        )?;
        Ok(())
    }
}

fn agent_record(row: &Row<'_>) -> rusqlite::Result<AgentRecord> {
    Ok(AgentRecord {
        id: AgentId(row.get(0)?),
        host_name: row.get(1)?,
        os: row.get(2)?,
        version: row.get(3)?,
        joined_unix_s: row.get(4)?,
        last_seen_unix_s: row.get(5)?,
        level: row.get(6)?,
        rules_version: row.get(7)?,
        certificate_expires_unix_s: row.get::<_, Option<i64>>(8)?.unwrap_or(0),
        revoked: row.get::<_, Option<i64>>(9)?.is_some(),
    })
}

fn harden(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_MAX)
}

fn migrate(connection: &mut Connection) -> anyhow::Result<()> {
    let number =
        |connection: &Connection, sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let application = number(connection, "PRAGMA application_id")?;
    let version = number(connection, "PRAGMA user_version")?;
    let tables = number(connection, "SELECT count(*) FROM sqlite_schema")?;
    let fresh = application == 0 && version == 0 && tables == 0;
    if !fresh && application != APPLICATION_ID {
        bail!("it is a database of another program; move it away");
    }
    let known = i64::try_from(MIGRATIONS.len())?;
    if version > known {
        bail!(
            "it was written by a newer Vidette (its version is {version}, this program knows {known}); install that one"
        );
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(version)?) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", known)?;
    Ok(transaction.commit()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_a_newer_and_a_damaged_database_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.db");
        let refusal = || format!("{:#}", Register::open(&path).unwrap_err());
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
        assert!(refusal().contains("another program"), "{}", refusal());
        std::fs::remove_file(&path).unwrap();
        drop(Register::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(refusal().contains("newer Vidette"), "{}", refusal());
        for leftover in ["identity.db-wal", "identity.db-shm"] {
            let _ = std::fs::remove_file(folder.path().join(leftover));
        }
        std::fs::write(&path, vec![0x5a; 8192]).unwrap();
        assert!(refusal().contains("damaged") && refusal().contains("backup"), "{}", refusal());
    }
}
