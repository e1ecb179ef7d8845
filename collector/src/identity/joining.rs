//! A host becomes an agent, and an agent stops being one: join, renew, leave.
//!
//! A use of a token, the agent and its certificate are one transaction: a collector that is killed in between has all or
//! nothing. A host that did not get the answer asks again with the same key, and is given a certificate of the same
//! agent without a further use of the token. What a host says of itself never decides who it is; it only points at older
//! agents that seem to be of the same host, so that people are told.

use super::confirming::Confirmation;
use super::generations::{self, Known, OnHello, OnRenewal, Presented, Request};
use super::register::{self, NewCertificate, Register};
use super::{
    AgentRecord, CloneSign, Greeting, Identity, NotRenewed, Shown, authority, bad_request, not_issued,
    not_stored, refused, tokens,
};
use rusqlite::{Connection, Transaction};
use std::net::SocketAddr;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{Join, JoinRefusal, JoinRefused, Joined, Left, Renew};

/// What a host may say it is. Bytes.
pub const HOST_MARK_BYTES_MAX: usize = 32;
/// Older agents of one host that are named when it joins again.
pub(super) const REPLACED_MAX: usize = 16;

impl Identity {
    /// Enrols a host. Use of the token and issue of the certificate are one transaction; a request that is
    /// refused does not use the token up, and one that is repeated with the same key is the same use.
    ///
    /// # Errors
    /// [`JoinRefused`], to be sent back as it is.
    pub fn join(&self, join: &Join, now_unix_s: i64) -> Result<Joined, JoinRefused> {
        let texts = [join.host_name.len(), join.agent_version.len(), join.os.len()];
        if texts.into_iter().any(|bytes| bytes > NAME_BYTES_MAX) {
            return Err(bad_request("a name is longer than 256 bytes"));
        }
        if join.host_mark.len() > HOST_MARK_BYTES_MAX {
            return Err(bad_request("the mark of the host is longer than 32 bytes"));
        }
        let key = authority::requested_key(&join.csr_der).map_err(bad_request)?;
        let mut id = [0; 16];
        authority::getrandom(&mut id).map_err(not_issued)?;
        let digest = authority::digest(&join.token);
        let mut register = self.register();
        let transaction = register.transaction().map_err(not_stored)?;
        let token = tokens::by_digest(&transaction, digest).map_err(not_stored)?;
        let before = match &token {
            Some(token) => tokens::use_of(&transaction, &token.id, key.digest()).map_err(not_stored)?,
            None => None,
        };
        let token = tokens::check(token, before.is_some(), now_unix_s)?;
        if let Some(before) = before {
            let joined = self.answer_again(&transaction, &before, &key, now_unix_s)?;
            transaction.commit().map_err(not_stored)?;
            return Ok(joined);
        }
        let record = new_record(AgentId(id), join, &token, now_unix_s);
        let issued = self.authorities().active().issue(record.id, 1, &key, now_unix_s).map_err(not_issued)?;
        let store = || -> rusqlite::Result<Vec<AgentId>> {
            register::insert_agent(&transaction, &record, &join.host_mark)?;
            tokens::use_one(&transaction, &token.id, &record, key.digest())?;
            register::insert_certificate(&transaction, &issued.row(record.id, 1, &key, now_unix_s))?;
            register::replace_older(&transaction, &record, &join.host_mark, REPLACED_MAX)
        };
        let replaced = store().map_err(not_stored)?;
        transaction.commit().map_err(not_stored)?;
        let replaces = replaced.iter().map(AgentId::to_string).collect();
        Ok(Joined { replaces, ..self.joined(record.id, issued) })
    }

    /// The answer to a use that is counted already did not reach its host.
    fn answer_again(
        &self,
        transaction: &Transaction<'_>,
        before: &tokens::Use,
        key: &authority::RequestedKey,
        now_unix_s: i64,
    ) -> Result<Joined, JoinRefused> {
        check_standing(register::agent(transaction, before.agent).map_err(not_stored)?)?;
        if before.answers >= tokens::ANSWERS_MAX {
            return Err(refused(
                JoinRefusal::TokenUsed,
                "this host has joined with this token already, and asked too often; join it with a new token",
            ));
        }
        let agent = before.agent;
        let shown =
            Shown { agent, serial: Vec::new(), generation: Some(1), key: key.digest(), expires_unix_s: 0 };
        let (known, _) = register::known(transaction, &shown).map_err(not_stored)?;
        // It may have renewed since, with other keys: then this is one more generation, and no old one.
        let generation = if known.newest_key == Some(key.digest()) { known.newest } else { known.newest + 1 };
        let issued =
            self.authorities().active().issue(agent, generation, key, now_unix_s).map_err(not_issued)?;
        tokens::answer_again(transaction, agent)
            .and_then(|()| {
                register::insert_certificate(transaction, &issued.row(agent, generation, key, now_unix_s))
            })
            .map_err(not_stored)?;
        Ok(Joined { repeated: true, ..self.joined(before.agent, issued) })
    }

    /// A new certificate for an agent that has proved an old one. What is decided is said in `generations`. A sign of a copy
    /// changes nothing here: [`Identity::set_aside`] does.
    ///
    /// # Errors
    /// [`NotRenewed`]: what is to be sent back, and the sign of a copy, if it is one.
    pub fn renew(
        &self,
        shown: &Shown,
        renew: &Renew,
        from: SocketAddr,
        now_unix_s: i64,
    ) -> Result<Joined, NotRenewed> {
        let key = authority::requested_key(&renew.csr_der).map_err(bad_request)?;
        let agent = shown.agent;
        let mut register = self.register();
        check_standing(register.agent(agent).map_err(not_stored)?)?;
        let transaction = register.transaction().map_err(not_stored)?;
        let (known, presented) = self.known(&transaction, shown).map_err(not_stored)?;
        let issued_as = register::issued_as(&transaction, agent, key.digest()).map_err(not_stored)?;
        let request = Request { key: key.digest(), issued_as, kept: renew.kept };
        let generation = match generations::renewal(&known, &presented, &request) {
            OnRenewal::Issue { generation } => {
                take(&transaction, shown, &presented, from, now_unix_s).map_err(not_stored)?;
                generation
            }
            OnRenewal::Again { generation } => generation,
            OnRenewal::Echo => {
                return Err(bad_request("this agent has a newer certificate already").into());
            }
            OnRenewal::SameKey => return Err(bad_request("a renewal needs a new key").into()),
            OnRenewal::Sign(evidence) => {
                let sign = self.sign(&transaction, agent, evidence, (&presented, known.newest), from);
                let sign = Some(Box::new(sign.map_err(not_stored)?));
                return Err(NotRenewed { refused: cloned(), sign });
            }
        };
        let issued =
            self.authorities().active().issue(agent, generation, &key, now_unix_s).map_err(not_issued)?;
        let row = NewCertificate {
            address: Some(from.to_string()),
            ..issued.row(agent, generation, &key, now_unix_s)
        };
        register::insert_certificate(&transaction, &row).map_err(not_stored)?;
        transaction.commit().map_err(not_stored)?;
        Ok(self.joined(agent, issued))
    }

    /// A session begins with this certificate: confirms its generation, where that is news.
    ///
    /// # Errors
    /// The register can't be read or written.
    pub fn greet(&self, shown: &Shown, from: SocketAddr, now_unix_s: i64) -> anyhow::Result<Greeting> {
        let mut register = self.register();
        let (known, presented) = self.known(register.connection(), shown)?;
        match generations::hello(&known, &presented) {
            OnHello::Current => Ok(Greeting::Current),
            OnHello::Confirm => {
                let (address, at_unix_s) = (from.to_string(), now_unix_s);
                self.confirming().note(shown.agent, Confirmation { presented, address, at_unix_s });
                Ok(Greeting::Confirmed)
            }
            OnHello::Adopt => {
                let transaction = register.transaction()?;
                take(&transaction, shown, &presented, from, now_unix_s)?;
                transaction.commit()?;
                Ok(Greeting::Adopted { generation: presented.generation, newest: known.newest })
            }
            OnHello::Sign(evidence) => {
                let newest = (&presented, known.newest);
                Ok(Greeting::Copied(self.sign(register.connection(), shown.agent, evidence, newest, from)?))
            }
        }
    }

    /// Whether a session with this certificate needs [`Identity::greet`].
    ///
    /// # Errors
    /// The register can't be read.
    pub fn is_current(&self, shown: &Shown) -> anyhow::Result<bool> {
        let register = self.register();
        let (known, presented) = self.known(register.connection(), shown)?;
        Ok(generations::hello(&known, &presented) == OnHello::Current)
    }

    fn known(&self, connection: &Connection, shown: &Shown) -> rusqlite::Result<(Known, Presented)> {
        let (mut known, presented) = register::known(connection, shown)?;
        self.confirming().refine(shown.agent, &mut known);
        Ok((known, presented))
    }

    fn sign(
        &self,
        connection: &Connection,
        agent: AgentId,
        evidence: generations::Evidence,
        (presented, newest): (&Presented, u64),
        from: SocketAddr,
    ) -> rusqlite::Result<CloneSign> {
        let waiting = self.confirming().address(agent, newest);
        let other = match waiting {
            Some(address) => Some(address),
            None => register::address_of_newest(connection, agent)?,
        };
        Ok(CloneSign { agent, evidence, generation: presented.generation, newest, from, other })
    }

    /// Lets no copy of an agent in any more; false when that was so before. Live connections are cut by `Fleet::cut_as`.
    ///
    /// # Errors
    /// The register can't be written.
    pub fn set_aside(&self, agent: AgentId, now_unix_s: i64) -> anyhow::Result<bool> {
        Ok(self.register().set_aside(agent, now_unix_s)?)
    }

    /// An agent that has proved its certificate goes for good. One that has left before has left. Its live connection is
    /// cut by `Fleet::cut_as`.
    ///
    /// # Errors
    /// [`JoinRefused`], to be sent back as it is: it was revoked, is unknown, or the disk failed.
    pub fn leave(&self, agent: AgentId, now_unix_s: i64) -> Result<Left, JoinRefused> {
        let mut register = self.register();
        match check_standing(register.agent(agent).map_err(not_stored)?) {
            Err(refused) if refused.code == JoinRefusal::Left as i32 => {}
            Err(refused) => return Err(refused),
            Ok(()) => Register::leave(&mut register, agent, now_unix_s).map_err(not_stored)?,
        }
        Ok(Left { agent_id: agent.to_string() })
    }

    fn joined(&self, agent: AgentId, issued: authority::Issued) -> Joined {
        Joined {
            agent_id: agent.to_string(),
            certificates_der: vec![issued.der],
            roots_der: self.authorities().roots().iter().map(|root| root.to_vec()).collect(),
            expires_unix_s: issued.expires_unix_s,
            replaces: Vec::new(),
            repeated: false,
        }
    }
}

/// Notes that the presented generation is in use; one that is not known here is entered.
fn take(
    transaction: &Transaction<'_>,
    shown: &Shown,
    presented: &Presented,
    from: SocketAddr,
    now_unix_s: i64,
) -> rusqlite::Result<()> {
    let entered: bool = transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM certificates WHERE serial = ?1)",
        [&shown.serial],
        |row| row.get(0),
    )?;
    if !entered {
        let row = NewCertificate {
            serial: &shown.serial,
            agent: shown.agent,
            issued_unix_s: now_unix_s,
            expires_unix_s: shown.expires_unix_s,
            generation: presented.generation,
            key: presented.key,
            address: None,
        };
        register::insert_certificate(transaction, &row)?;
    }
    register::confirm(transaction, shown.agent, presented, &from.to_string(), now_unix_s)
}

/// What a copied agent is told.
pub(super) fn cloned() -> JoinRefused {
    refused(
        JoinRefusal::Cloned,
        "this agent's identity was copied, and every copy is set aside; join the right host again",
    )
}

impl authority::Issued {
    fn row(
        &self,
        agent: AgentId,
        generation: u64,
        key: &authority::RequestedKey,
        now_unix_s: i64,
    ) -> NewCertificate<'_> {
        NewCertificate {
            serial: &self.serial,
            agent,
            issued_unix_s: now_unix_s,
            expires_unix_s: self.expires_unix_s,
            generation,
            key: key.digest(),
            address: None,
        }
    }
}

fn check_standing(record: Option<AgentRecord>) -> Result<(), JoinRefused> {
    match record {
        None => Err(refused(JoinRefusal::Unknown, "this agent is not registered here; join it again")),
        Some(record) if record.revoked => Err(refused(JoinRefusal::Revoked, "this agent was revoked")),
        Some(record) if record.left_unix_s.is_some() => {
            Err(refused(JoinRefusal::Left, "this agent has left; join that host again"))
        }
        Some(record) if record.cloned_unix_s.is_some() => Err(cloned()),
        Some(_) => Ok(()),
    }
}

fn new_record(id: AgentId, join: &Join, token: &tokens::TokenInfo, now_unix_s: i64) -> AgentRecord {
    AgentRecord {
        id,
        host_name: join.host_name.clone(),
        os: join.os.clone(),
        version: join.agent_version.clone(),
        label: token.label.clone(),
        group: token.group.clone(),
        joined_unix_s: now_unix_s,
        last_seen_unix_s: now_unix_s,
        level: 0,
        rules_version: String::new(),
        certificate_expires_unix_s: 0,
        revoked: false,
        left_unix_s: None,
        replaced: None,
        cloned_unix_s: None,
    }
}
