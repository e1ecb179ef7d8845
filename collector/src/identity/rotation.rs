//! Replacing the CA without touching a host: prepare, activate, retire.
//!
//! `stages` says what may follow what, `authorities` writes it down, this file asks for it, tells the live sessions
//! (`Identity::roots`), and knows from the register which agents would be locked out. An agent has followed when it trusts
//! the active root and has shown a certificate of the CA that issues.

use super::authorities::{Authorities, Roots};
use super::authority::{digest, pin_of};
use super::own::Own;
use super::register::Register;
use super::stages::{Stage, Step};
use super::{Identity, RENEW_GRACE_S, REPLACED_HEARD_S, authority};
use anyhow::Context;
use rusqlite::Row;
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, PoisonError};
use tokio::sync::watch;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::ROOT_DIGEST_BYTES;

/// What a CA is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaState {
    /// It issues.
    Active,
    /// Agents are told to trust it; it issues when it is activated.
    Prepared,
    /// It issues no more and is trusted until it is retired.
    Previous,
}

/// One CA, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaInfo {
    /// What it is.
    pub state: CaState,
    /// SHA-256 of the root's public key: what a join line pins.
    pub pin: [u8; 32],
    /// SHA-256 of the key that signs: the same, or that of an intermediate.
    pub signs: [u8; 32],
    /// Until when its certificates are good, the root and the intermediate: the earlier of both. Unix seconds.
    pub expires_unix_s: i64,
    /// Agents that said that they trust its root.
    pub confirmed: u64,
    /// Agents whose certificate comes from it.
    pub holders: u64,
}

/// The collector's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnInfo {
    /// Unix seconds.
    pub expires_unix_s: i64,
    /// When it is renewed, Unix seconds.
    pub renews_unix_s: i64,
    /// Why it is not as it should be.
    pub trouble: Option<String>,
}

/// An agent that can't do without the CA before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Which.
    pub agent: AgentId,
    /// As it says.
    pub host_name: Vec<u8>,
    /// When it was heard last, Unix seconds.
    pub last_seen_unix_s: i64,
    /// What is missing.
    pub why: &'static str,
}

/// Everything about the CAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaPicture {
    /// Where the replacement stands.
    pub stage: Stage,
    /// The active one first.
    pub cas: Vec<CaInfo>,
    /// Agents that count: not revoked, left, replaced (and gone), or so long away that they must join again.
    pub agents: u64,
    /// Of them, those that would be locked out if the CA before was retired now.
    pub behind: Vec<Behind>,
    /// The collector's own certificate.
    pub own: OwnInfo,
}

/// What became of a retirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// Whether it was done.
    pub is_done: bool,
    /// The CA before.
    pub pin: [u8; 32],
    /// Whom it locks out, or why it was not done.
    pub behind: Vec<Behind>,
}

/// An agent, as far as this is about it.
struct Holder {
    agent: AgentId,
    host_name: Vec<u8>,
    last_seen_unix_s: i64,
    roots: Option<Vec<u8>>,
    shown_ca: Option<[u8; 32]>,
    issued_unix_s: i64,
    expires_unix_s: i64,
}

impl Holder {
    fn trusts(&self, digest: &[u8; 32]) -> bool {
        self.roots.iter().any(|roots| roots.chunks(ROOT_DIGEST_BYTES).any(|one| one == digest))
    }

    /// Whose certificate it has. One that was never connected has the last that was issued to it.
    fn ca(&self, cas: &Keys) -> [u8; 32] {
        self.shown_ca.unwrap_or(match cas.previous {
            Some(previous) if self.issued_unix_s <= cas.activated_unix_s => previous,
            Some(_) | None => cas.active,
        })
    }

    /// What is missing until the CA before may go.
    fn lacks(&self, cas: &Keys) -> Option<&'static str> {
        let has_certificate = self.ca(cas) == cas.active;
        // Who never says what it trusts is older than this; it got the root together with a certificate of the new CA.
        let has_root = self.trusts(&cas.root) || (self.roots.is_none() && has_certificate);
        match (has_root, has_certificate) {
            (false, _) => Some("has not confirmed the new CA"),
            (true, false) => Some("its certificate comes from the old CA"),
            (true, true) => None,
        }
    }
}

/// The CAs by their keys.
struct Keys {
    /// SHA-256 of the active root's certificate.
    root: [u8; 32],
    /// SHA-256 of the key that signs now.
    active: [u8; 32],
    previous: Option<[u8; 32]>,
    activated_unix_s: i64,
}

impl Keys {
    fn of(cas: &Authorities) -> anyhow::Result<Self> {
        Ok(Self {
            root: digest(cas.active().root()),
            active: pin_of(cas.active().issuing())?,
            previous: cas.previous().map(|past| pin_of(past.issuing())).transpose()?,
            activated_unix_s: cas.activated_unix_s(),
        })
    }
}

impl Identity {
    /// What agents have to trust, now and whenever that changes.
    #[must_use]
    pub fn roots(&self) -> watch::Receiver<Arc<Roots>> {
        self.0.roots.subscribe()
    }

    /// The certificates of all keys that agents' certificates may come from. Changes together with [`Identity::roots`].
    #[must_use]
    pub fn issuers(&self) -> Vec<CertificateDer<'static>> {
        self.authorities().issuing()
    }

    /// Notes of which CA the certificate is that an agent shows. In memory, as [`Identity::seen`].
    pub fn shows(&self, agent: AgentId, certificate: &[u8]) {
        if let Some(ca) = self.authorities().issuer_of(certificate) {
            self.followed().entry(agent).or_default().shows(ca);
        }
    }

    /// Notes which CA certificates an agent trusts, by their digests. In memory, as [`Identity::seen`].
    pub fn trusts(&self, agent: AgentId, digests: &[Vec<u8>]) {
        self.followed().entry(agent).or_default().trusts(digests, super::unix_s_now());
    }

    /// Notes by which mark an agent's host will be known when it joins again by a line of the CA that it trusts first. Only
    /// the active one makes lines. In memory, as [`Identity::seen`].
    pub fn is_marked(&self, agent: AgentId, digests: &[Vec<u8>], host_mark: &[u8]) {
        let is_active =
            digests.first().is_some_and(|first| *first == digest(self.authorities().active().root()));
        if is_active && !host_mark.is_empty() {
            self.followed().entry(agent).or_default().is_marked(host_mark);
        }
    }

    /// Everything about the CAs.
    ///
    /// # Errors
    /// The register can't be read or written.
    pub fn cas(&self, now_unix_s: i64) -> anyhow::Result<CaPicture> {
        let cas = self.authorities();
        let keys = Keys::of(&cas)?;
        let holders = self.holders(now_unix_s)?;
        let mut found = vec![(CaState::Active, cas.active().root(), cas.active().issuing())];
        found.extend(cas.next().map(|next| (CaState::Prepared, next.root(), next.issuing())));
        found.extend(cas.previous().map(|past| (CaState::Previous, &past.root, past.issuing())));
        let infos =
            found.into_iter().map(|(state, root, issuing)| info(state, (root, issuing), &holders, &keys));
        Ok(CaPicture {
            stage: cas.stage(),
            cas: infos.collect::<anyhow::Result<_>>()?,
            agents: holders.len() as u64,
            behind: if cas.previous().is_some() { behind(&holders, &keys) } else { Vec::new() },
            own: self.own_info(),
        })
    }

    /// When the certificates of the CA that issues end: the earliest. Unix seconds.
    ///
    /// # Errors
    /// They can't be read.
    pub fn ca_expiry(&self) -> anyhow::Result<i64> {
        let cas = self.authorities();
        earliest_end(cas.active().root(), cas.active().issuing())
    }

    /// The collector's own certificate.
    #[must_use]
    pub fn own_info(&self) -> OwnInfo {
        let own = self.0.own.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (expires_unix_s, renews_unix_s) = (own.expires_unix_s, own.renews_unix_s);
        OwnInfo { expires_unix_s, renews_unix_s, trouble: own.trouble.clone() }
    }

    /// Makes the next CA and has agents trust it. Gives its pin.
    ///
    /// # Errors
    /// One sentence: not possible now, or the disk failed.
    pub fn prepare_ca(&self, now_unix_s: i64) -> anyhow::Result<[u8; 32]> {
        self.change(Step::Prepare, None, now_unix_s).and_then(|cas| next_pin(&cas))
    }

    /// Makes the next CA's key, and the request (PKCS#10, PEM) with which an offline CA makes its certificate.
    ///
    /// # Errors
    /// As [`Identity::prepare_ca`].
    pub fn request_ca(&self, now_unix_s: i64) -> anyhow::Result<String> {
        self.change(Step::Request, None, now_unix_s)?.request().context("there is no request")?
    }

    /// Takes the certificate that an offline CA has made, followed by its root's, in PEM. Has agents trust that root, and
    /// gives its pin.
    ///
    /// # Errors
    /// As [`Identity::prepare_ca`]; or it is not the certificate that was asked for.
    pub fn complete_ca(&self, pem: &str, now_unix_s: i64) -> anyhow::Result<[u8; 32]> {
        self.change(Step::Complete, Some(pem), now_unix_s).and_then(|cas| next_pin(&cas))
    }

    /// Issues from the next CA from now on, agents' certificates and the collector's own. Gives its pin.
    ///
    /// # Errors
    /// As [`Identity::prepare_ca`].
    pub fn activate_ca(&self, now_unix_s: i64) -> anyhow::Result<[u8; 32]> {
        let cas = self.change(Step::Activate, None, now_unix_s)?;
        pin_of(cas.active().root())
    }

    /// Forgets the next CA. Gives its pin, if it had a certificate yet.
    ///
    /// # Errors
    /// As [`Identity::prepare_ca`].
    pub fn withdraw_ca(&self, now_unix_s: i64) -> anyhow::Result<Option<[u8; 32]>> {
        let next = self.authorities().next().map(|next| pin_of(next.root())).transpose()?;
        self.change(Step::Withdraw, None, now_unix_s)?;
        Ok(next)
    }

    /// Who would be locked out by a retirement now. Changes nothing.
    ///
    /// # Errors
    /// As [`Identity::prepare_ca`].
    pub fn may_retire_ca(&self, now_unix_s: i64) -> anyhow::Result<Retired> {
        let cas = self.authorities();
        cas.stage().after(Step::Retire).map_err(anyhow::Error::msg)?;
        let pin = cas.previous().map(|past| pin_of(&past.root)).transpose()?.context("there is no old CA")?;
        let behind = behind(&self.holders(now_unix_s)?, &Keys::of(&cas)?);
        Ok(Retired { is_done: false, pin, behind })
    }

    /// Trusts the CA before no longer, if nobody needs it any more or `force` is said.
    ///
    /// # Errors
    /// As [`Identity::prepare_ca`].
    pub fn retire_ca(&self, force: bool, now_unix_s: i64) -> anyhow::Result<Retired> {
        let looked = self.may_retire_ca(now_unix_s)?;
        if !looked.behind.is_empty() && !force {
            return Ok(looked);
        }
        self.change(Step::Retire, None, now_unix_s)?;
        Ok(Retired { is_done: true, ..looked })
    }

    /// Keeps the collector's own certificate fresh. Says loudly what it could not do.
    pub(super) fn keep_own(&self, now_unix_s: i64) -> anyhow::Result<()> {
        let held = self.0.own.read().unwrap_or_else(PoisonError::into_inner).clone();
        let own = Own::keep(&self.0.vault, &self.authorities(), Some(&held), now_unix_s)?;
        say(&own, now_unix_s);
        *self.0.own.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(own);
        Ok(())
    }

    /// One at a time. On disk, in use, and told when it returns.
    fn change(&self, step: Step, given: Option<&str>, now_unix_s: i64) -> anyhow::Result<Arc<Authorities>> {
        let _one = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Arc::new(self.authorities().go(step, given, &self.0.vault, now_unix_s)?);
        let roots = Arc::new(Roots::of(&changed)?);
        *self.0.authorities.write().unwrap_or_else(PoisonError::into_inner) = changed.clone();
        // Before agents are told: whoever comes back because of it is shown the new chain.
        let kept = self.keep_own(now_unix_s);
        self.0.roots.send_replace(roots);
        kept.map(|()| changed)
    }

    fn holders(&self, now_unix_s: i64) -> anyhow::Result<Vec<Holder>> {
        self.flush_seen()?;
        let mut holders = self.register().holders().context("could not read identity.db")?;
        holders.retain(|holder| holder.expires_unix_s.saturating_add(RENEW_GRACE_S) >= now_unix_s);
        Ok(holders)
    }
}

/// The certificate is in use, whatever is wrong with it.
pub(super) fn say(own: &Own, now_unix_s: i64) {
    if own.expires_unix_s <= now_unix_s {
        let since_s = now_unix_s - own.expires_unix_s;
        let why = own.trouble.as_deref().unwrap_or("it could not be renewed");
        tracing::error!(
            since_s,
            why,
            "the collector's own certificate has expired and is served as it is; see `vidette ca show`"
        );
    } else if let Some(why) = &own.trouble {
        tracing::error!(
            why,
            "the collector's own certificate is not as it should be; it is tried again every minute"
        );
    }
}

fn next_pin(cas: &Authorities) -> anyhow::Result<[u8; 32]> {
    pin_of(cas.next().context("there is no next CA")?.root())
}

fn behind(holders: &[Holder], keys: &Keys) -> Vec<Behind> {
    let one = |holder: &Holder| {
        let (agent, host_name) = (holder.agent, holder.host_name.clone());
        let last_seen_unix_s = holder.last_seen_unix_s;
        holder.lacks(keys).map(|why| Behind { agent, host_name, last_seen_unix_s, why })
    };
    holders.iter().filter_map(one).collect()
}

fn info(
    state: CaState,
    (root, issuing): (&CertificateDer<'_>, &CertificateDer<'_>),
    holders: &[Holder],
    keys: &Keys,
) -> anyhow::Result<CaInfo> {
    let (signs, digest) = (pin_of(issuing)?, digest(root));
    Ok(CaInfo {
        state,
        pin: pin_of(root)?,
        signs,
        expires_unix_s: earliest_end(root, issuing)?,
        confirmed: holders.iter().filter(|holder| holder.trusts(&digest)).count() as u64,
        holders: holders.iter().filter(|holder| holder.ca(keys) == signs).count() as u64,
    })
}

fn earliest_end(root: &CertificateDer<'_>, issuing: &CertificateDer<'_>) -> anyhow::Result<i64> {
    Ok(authority::expiry_of(root)?.min(authority::expiry_of(issuing)?))
}

impl Register {
    /// Agents that are expected to come back.
    fn holders(&self) -> rusqlite::Result<Vec<Holder>> {
        let sql = "SELECT a.id, a.host_name, a.last_seen_unix_s, a.roots, a.shown_ca,
            (SELECT max(c.issued_unix_s) FROM certificates c WHERE c.agent = a.id),
            (SELECT max(c.expires_unix_s) FROM certificates c WHERE c.agent = a.id)
            FROM agents a WHERE a.revoked_unix_s IS NULL AND a.left_unix_s IS NULL
            AND (a.replaced_by IS NULL OR a.last_seen_unix_s > a.replaced_unix_s + ?1)
            ORDER BY a.joined_unix_s, a.id";
        let mut statement = self.connection().prepare_cached(sql)?;
        statement.query_map([REPLACED_HEARD_S], holder)?.collect()
    }
}

fn holder(row: &Row<'_>) -> rusqlite::Result<Holder> {
    Ok(Holder {
        agent: AgentId(row.get(0)?),
        host_name: row.get(1)?,
        last_seen_unix_s: row.get(2)?,
        roots: row.get(3)?,
        shown_ca: row.get(4)?,
        issued_unix_s: row.get::<_, Option<i64>>(5)?.unwrap_or(0),
        expires_unix_s: row.get::<_, Option<i64>>(6)?.unwrap_or(0),
    })
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
