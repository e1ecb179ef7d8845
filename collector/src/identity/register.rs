//! The register in `identity.db`: tokens, agents and their certificates.
//!
//! Assumes that it alone has the file open (the vault's lock). Decides nothing about cryptography:
//! `Identity` hands it digests and serial numbers. Times are Unix seconds.

use super::confirming::Confirmation;
use super::following::Following;
use super::generations::{Digest, Known, Presented};
use super::{AgentRecord, Seen, Shown};
use anyhow::{Context, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::collections::HashMap;
use std::path::Path;
use vidette_protocol::id::AgentId;

/// "VidI": tells this database from any other.
const APPLICATION_ID: i64 = 0x5669_6449;
/// Migrations in order: the first makes version 1.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
];
/// The largest write-ahead log that is left on disk. Bytes.
const JOURNAL_BYTES_MAX: i64 = 4 << 20;
/// Rows of certificates are kept this long after they ended. Seconds.
const CERTIFICATE_KEPT_S: i64 = 90 * 86_400;
/// Rows of tokens are kept this long after they ended. Seconds.
const TOKEN_KEPT_S: i64 = 90 * 86_400;

const AGENT_COLUMNS: &str =
    "SELECT a.id, a.host_name, a.os, a.version, a.joined_unix_s, a.last_seen_unix_s, a.level,
    a.rules_version, (SELECT max(c.expires_unix_s) FROM certificates c WHERE c.agent = a.id), a.revoked_unix_s,
    a.label, a.group_name, a.left_unix_s, a.replaced_by, a.replaced_unix_s, a.cloned_unix_s
    FROM agents a";

/// Names that say nothing of a host: the kernel's own, and what installers leave.
const NAMES_OF_NOBODY: [&[u8]; 3] = [b"", b"(none)", b"localhost"];

/// The open database.
#[derive(Debug)]
pub(super) struct Register {
    connection: Connection,
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

    /// For reading.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn agents(&self) -> rusqlite::Result<Vec<AgentRecord>> {
        let mut statement =
            self.connection.prepare_cached(&format!("{AGENT_COLUMNS} ORDER BY a.joined_unix_s, a.id"))?;
        let rows = statement.query_map([], agent_record)?;
        rows.collect()
    }

    pub(super) fn agent(&self, agent: AgentId) -> rusqlite::Result<Option<AgentRecord>> {
        self::agent(&self.connection, agent)
    }

    /// Those on hosts with this name, and those with an id from the first to the last of `ids`.
    pub(super) fn find(
        &self,
        host_name: &[u8],
        ids: Option<(AgentId, AgentId)>,
    ) -> rusqlite::Result<Vec<AgentRecord>> {
        let sql = format!(
            "{AGENT_COLUMNS} WHERE a.host_name = ?1 OR a.id BETWEEN ?2 AND ?3 ORDER BY a.joined_unix_s, a.id"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let (first, last) = ids.map(|(first, last)| (first.0, last.0)).unzip();
        statement.query_map(params![host_name, first, last], agent_record)?.collect()
    }

    /// Revokes an agent; false when it is not there or was revoked before.
    pub(super) fn revoke_agent(&mut self, agent: AgentId, now_unix_s: i64) -> rusqlite::Result<bool> {
        let sql = "UPDATE agents SET revoked_unix_s = ?2 WHERE id = ?1 AND revoked_unix_s IS NULL";
        Ok(self.connection.execute(sql, params![agent.0, now_unix_s])? == 1)
    }

    /// An agent goes by itself.
    pub(super) fn leave(&mut self, agent: AgentId, now_unix_s: i64) -> rusqlite::Result<()> {
        let sql = "UPDATE agents SET left_unix_s = ?2 WHERE id = ?1 AND left_unix_s IS NULL";
        self.connection.execute(sql, params![agent.0, now_unix_s])?;
        Ok(())
    }

    /// No copy of this agent is let in any more; false when it is not there or was set aside before.
    pub(super) fn set_aside(&mut self, agent: AgentId, now_unix_s: i64) -> rusqlite::Result<bool> {
        let sql = "UPDATE agents SET cloned_unix_s = ?2 WHERE id = ?1 AND cloned_unix_s IS NULL";
        Ok(self.connection.execute(sql, params![agent.0, now_unix_s])? == 1)
    }

    /// Writes down when agents were last seen and which certificates came into use, in one commit.
    pub(super) fn store_seen<'a>(
        &mut self,
        seen: impl Iterator<Item = (&'a AgentId, &'a Seen)>,
        confirmed: &HashMap<AgentId, Confirmation>,
    ) -> rusqlite::Result<()> {
        let transaction = self.transaction()?;
        for (agent, one) in confirmed {
            confirm(&transaction, *agent, &one.presented, &one.address, one.at_unix_s)?;
        }
        for (agent, seen) in seen {
            seen.store(&transaction, *agent)?;
        }
        transaction.commit()
    }

    /// Writes down how far agents have followed the replacement of a CA, in one commit.
    pub(super) fn store_followed(&mut self, followed: &Following) -> rusqlite::Result<()> {
        let transaction = self.transaction()?;
        for (agent, followed) in followed {
            followed.store(&transaction, *agent)?;
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

/// One agent.
pub(super) fn agent(connection: &Connection, agent: AgentId) -> rusqlite::Result<Option<AgentRecord>> {
    let mut statement = connection.prepare_cached(&format!("{AGENT_COLUMNS} WHERE a.id = ?1"))?;
    statement.query_row([agent.0], agent_record).optional()
}

/// The agent exists. `host_mark` is empty when the host says nothing.
pub(super) fn insert_agent(
    transaction: &Transaction<'_>,
    agent: &AgentRecord,
    host_mark: &[u8],
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO agents (id, host_name, os, version, joined_unix_s, last_seen_unix_s, label, group_name, host_mark)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8)",
        params![
            agent.id.0,
            agent.host_name,
            agent.os,
            agent.version,
            agent.joined_unix_s,
            agent.label,
            agent.group,
            some(host_mark)
        ],
    )?;
    Ok(())
}

/// Notes at older agents that seem to be of the same host, that this one is newer, and says which, the newest first.
/// It costs them nothing else: marks and names are the host's own words. Where both have a mark it decides, else the name
/// does, if it is one.
pub(super) fn replace_older(
    transaction: &Transaction<'_>,
    agent: &AgentRecord,
    host_mark: &[u8],
    max: usize,
) -> rusqlite::Result<Vec<AgentId>> {
    let name = (!NAMES_OF_NOBODY.contains(&agent.host_name.as_slice())).then_some(&agent.host_name);
    let sql = "SELECT id FROM agents WHERE id <> ?1 AND revoked_unix_s IS NULL AND left_unix_s IS NULL
        AND replaced_by IS NULL
        AND (host_mark = ?2 OR (host_name = ?3 AND (host_mark IS NULL OR ?2 IS NULL)))
        ORDER BY joined_unix_s DESC, id LIMIT ?4";
    let limit = i64::try_from(max).unwrap_or(i64::MAX);
    let older: Vec<AgentId> = transaction
        .prepare_cached(sql)?
        .query_map(params![agent.id.0, some(host_mark), name, limit], |row| row.get(0).map(AgentId))?
        .collect::<Result<_, _>>()?;
    for one in &older {
        transaction.execute(
            "UPDATE agents SET replaced_by = ?2, replaced_unix_s = ?3 WHERE id = ?1",
            params![one.0, agent.id.0, agent.joined_unix_s],
        )?;
    }
    Ok(older)
}

fn some(bytes: &[u8]) -> Option<&[u8]> {
    (!bytes.is_empty()).then_some(bytes)
}

/// A certificate to be remembered.
#[derive(Debug)]
pub(super) struct NewCertificate<'a> {
    pub(super) serial: &'a [u8],
    pub(super) agent: AgentId,
    pub(super) issued_unix_s: i64,
    pub(super) expires_unix_s: i64,
    pub(super) generation: u64,
    pub(super) key: Digest,
    /// Who asked for it, where that is known.
    pub(super) address: Option<String>,
}

/// One that is known already, of a collector that was restored, stays as it is.
pub(super) fn insert_certificate(
    transaction: &Transaction<'_>,
    new: &NewCertificate<'_>,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO certificates (serial, agent, issued_unix_s, expires_unix_s, generation, key_digest, address)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (serial) DO NOTHING",
        params![
            new.serial,
            new.agent.0,
            new.issued_unix_s,
            new.expires_unix_s,
            i64::try_from(new.generation).unwrap_or(i64::MAX),
            new.key,
            new.address
        ],
    )?;
    Ok(())
}

/// What is presented, and what is known of that agent's certificates.
pub(super) fn known(connection: &Connection, shown: &Shown) -> rusqlite::Result<(Known, Presented)> {
    let number = |found: Option<i64>| found.map(|number| u64::try_from(number).unwrap_or(0));
    let mut newest = connection.prepare_cached(
        "SELECT generation, key_digest FROM certificates WHERE agent = ?1 ORDER BY generation DESC LIMIT 1",
    )?;
    let newest: Option<(i64, Option<Digest>)> =
        newest.query_row([shown.agent.0], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (newest, newest_key) = newest.unwrap_or((0, None));
    let newest = u64::try_from(newest).unwrap_or(0);
    let of_serial = connection
        .prepare_cached("SELECT generation FROM certificates WHERE serial = ?2 AND agent = ?1")?
        .query_row(params![shown.agent.0, shown.serial], |row| row.get(0))
        .optional()?;
    // A certificate of version 0.1 does not say its generation, and one that is not known here is the newest of its agent.
    let presented = shown.generation.or(number(of_serial)).unwrap_or(newest.max(1));
    let at = i64::try_from(presented).unwrap_or(i64::MAX);
    let confirmed = connection
        .prepare_cached(
            "SELECT generation FROM certificates WHERE agent = ?1 AND confirmed_unix_s IS NOT NULL
             ORDER BY generation DESC LIMIT 1",
        )?
        .query_row([shown.agent.0], |row| row.get(0))
        .optional()?;
    let mut key = connection.prepare_cached(
        "SELECT key_digest FROM certificates WHERE agent = ?1 AND generation = ?2 AND key_digest IS NOT NULL LIMIT 1",
    )?;
    let shown_key = key.query_row(params![shown.agent.0, at], |row| row.get(0)).optional()?;
    let known = Known { newest, newest_key, confirmed: number(confirmed).unwrap_or(0), shown_key };
    Ok((known, Presented { generation: presented, key: shown.key }))
}

/// The highest generation that was issued to this key.
pub(super) fn issued_as(
    connection: &Connection,
    agent: AgentId,
    key: Digest,
) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT max(generation) FROM certificates WHERE agent = ?1 AND key_digest = ?2";
    let found: Option<i64> =
        connection.prepare_cached(sql)?.query_row(params![agent.0, key], |row| row.get(0))?;
    Ok(found.map(|number| u64::try_from(number).unwrap_or(0)))
}

/// A session, or a renewal, has begun with this generation. Its key is noted where it was not known.
pub(super) fn confirm(
    connection: &Connection,
    agent: AgentId,
    presented: &Presented,
    address: &str,
    now_unix_s: i64,
) -> rusqlite::Result<()> {
    let generation = i64::try_from(presented.generation).unwrap_or(i64::MAX);
    connection.execute(
        "UPDATE certificates SET confirmed_unix_s = coalesce(confirmed_unix_s, ?3), address = ?4,
         key_digest = coalesce(key_digest, ?5) WHERE agent = ?1 AND generation = ?2",
        params![agent.0, generation, now_unix_s, address, presented.key],
    )?;
    Ok(())
}

/// Where the newest generation was asked for, or confirmed.
pub(super) fn address_of_newest(connection: &Connection, agent: AgentId) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT address FROM certificates WHERE agent = ?1 ORDER BY generation DESC, issued_unix_s DESC LIMIT 1";
    let found = connection.prepare_cached(sql)?.query_row([agent.0], |row| row.get(0)).optional()?;
    Ok(found.flatten())
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
        label: row.get(10)?,
        group: row.get(11)?,
        left_unix_s: row.get(12)?,
        replaced: row.get::<_, Option<[u8; 16]>>(13)?.map(AgentId).zip(row.get(14)?),
        cloned_unix_s: row.get(15)?,
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
    use super::super::tokens;
    use super::*;

    #[test]
    fn tokens_and_agents_of_the_first_version_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        old.execute_batch(
            "INSERT INTO agents (id, host_name, os, version, joined_unix_s, last_seen_unix_s)
               VALUES (x'01010101010101010101010101010101', x'61', 'o', 'v', 5, 6);
             INSERT INTO certificates VALUES (x'02', x'01010101010101010101010101010101', 5, 99);
             INSERT INTO certificates VALUES (x'01', x'01010101010101010101010101010101', 7, 98);
             INSERT INTO tokens VALUES ('used', zeroblob(32), 'rack', 1, 10, 5, x'01010101010101010101010101010101', NULL);
             INSERT INTO tokens VALUES ('open', x'0101010101010101010101010101010101010101010101010101010101010101', NULL, 2, 10, NULL, NULL, NULL);
             INSERT INTO tokens VALUES ('gone', x'0202020202020202020202020202020202020202020202020202020202020202', NULL, 3, 10, NULL, NULL, 4);",
        )
        .unwrap();
        drop(old);
        let register = Register::open(&path).unwrap();
        let all = tokens::all(register.connection()).unwrap();
        let seen: Vec<_> =
            all.iter().map(|t| (t.id.as_str(), t.uses, t.uses_max, t.used_by, t.revoked)).collect();
        let agent = AgentId([1; 16]);
        assert_eq!(
            seen,
            [("gone", 0, 1, None, true), ("open", 0, 1, None, false), ("used", 1, 1, Some(agent), false)]
        );
        assert_eq!((all[2].label.as_deref(), all[2].used_unix_s), (Some("rack"), Some(5)));
        let record = register.agent(agent).unwrap().unwrap();
        assert_eq!(
            (record.group, record.left_unix_s, record.replaced, record.certificate_expires_unix_s),
            (None, None, None, 99)
        );
        let shown = |serial: u8| Shown {
            agent,
            serial: vec![serial],
            generation: None,
            key: [7; 32],
            expires_unix_s: 0,
        };
        for (serial, generation) in [(2, 1), (1, 2), (9, 2)] {
            let (known, presented) = known(register.connection(), &shown(serial)).unwrap();
            assert_eq!(
                (known, presented.generation),
                (Known { newest: 2, ..Known::default() }, generation),
                "the order of issue; none confirmed, no key known; one that is not known is the newest"
            );
        }
        drop(register);
        assert_eq!(Register::open(&path).unwrap().agents().unwrap().len(), 1, "it is opened again as it is");
    }

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
