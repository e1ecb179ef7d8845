//! Who an agent is: the CA, join tokens, certificates, revocation.
//!
//! `vault` keeps the key files, `authority` signs, `register` remembers (SQLite), and `Identity` is the one
//! door to the three. It assumes that it alone uses its folder. `ingest` asks it who a connection belongs to.
//!
//! Calls write to disk and wait for it: from async code go through `spawn_blocking`.

mod authority;
mod register;
mod seen;
mod vault;

pub use authority::AGENT_LIFE_S;
pub use seen::{Seen, Sign};

use anyhow::{Context, bail};
use authority::Authority;
use register::Register;
use rustls::pki_types::CertificateDer;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use vault::Vault;
use vidette_protocol::id::AgentId;
use vidette_protocol::join::{Secret, TOKEN_BYTES};
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{Join, JoinRefusal, JoinRefused, Joined, Renew};

/// How long a token is good when nobody says otherwise.
pub const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// How long a token may be good.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(86_400);
/// Tokens that may wait for their use at the same time.
pub const TOKENS_OPEN_MAX: u32 = 10_000;
/// An expired certificate may still be renewed for so long, by a host that was off. Seconds.
pub const RENEW_GRACE_S: i64 = 30 * 86_400;

const QUIC_KEYS_FILE: &str = "quic-keys";
const RESET_KEY_BYTES: usize = 64;
const CID_KEY_BYTES: usize = 8;

/// The handle. Clones share everything.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Inner>);

struct Inner {
    vault: Vault,
    authority: Authority,
    own: RwLock<Arc<rustls::sign::CertifiedKey>>,
    quic_keys: QuicKeys,
    register: Mutex<Register>,
    seen: Mutex<seen::Pending>,
}

/// Keys that outlive a restart, so that agents notice one at once: with new keys a stateless reset can't be
/// made for the old connections (RFC 9000 section 10.3).
#[derive(Clone)]
pub struct QuicKeys {
    /// Makes stateless reset tokens.
    pub reset: [u8; RESET_KEY_BYTES],
    /// Makes connection ids that this collector recognises.
    pub connection_id: u64,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Short and public: eight base32 characters.
    pub id: String,
    /// What the admin wrote on it.
    pub label: Option<String>,
    /// Unix seconds.
    pub created_unix_s: i64,
    /// Unix seconds.
    pub expires_unix_s: i64,
    /// Unix seconds, once it was used.
    pub used_unix_s: Option<i64>,
    /// The agent that joined with it.
    pub used_by: Option<AgentId>,
    /// It was revoked.
    pub revoked: bool,
}

/// An agent as the collector knows it. Names are the host's own bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// Given when it joined.
    pub id: AgentId,
    /// At most 256 bytes, not assumed to be text.
    pub host_name: Vec<u8>,
    /// Operating system and kernel release.
    pub os: String,
    /// The agent's version.
    pub version: String,
    /// Unix seconds.
    pub joined_unix_s: i64,
    /// Unix seconds by the collector's clock; lags by up to a minute.
    pub last_seen_unix_s: i64,
    /// A `vidette_protocol::wire::SensorLevel`.
    pub level: i32,
    /// The rules it matches with.
    pub rules_version: String,
    /// End of its newest certificate. Unix seconds.
    pub certificate_expires_unix_s: i64,
    /// It may not connect any more.
    pub revoked: bool,
}

/// Whether an agent may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Good,
    /// It was revoked.
    Revoked,
    /// No such agent is registered here.
    Unknown,
}

impl Identity {
    /// Opens the folder; makes the CA, the collector's certificate and the register when they are missing.
    ///
    /// # Errors
    /// One sentence that names the file and what to do.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let now_unix_s = unix_s_now();
        let vault = Vault::open(folder)?;
        let authority = Authority::load_or_make(&vault, now_unix_s)
            .with_context(|| format!("could not load the CA in {}", folder.display()))?;
        let own = authority.own(&vault, now_unix_s)?;
        let quic_keys = QuicKeys::load_or_make(&vault)?;
        let register = Register::open(&folder.join("identity.db"))?;
        Ok(Self(Arc::new(Inner {
            vault,
            authority,
            own: RwLock::new(own),
            quic_keys,
            register: Mutex::new(register),
            seen: Mutex::default(),
        })))
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo: what a join line pins.
    #[must_use]
    pub fn pin(&self) -> [u8; 32] {
        self.0.authority.pin()
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca(&self) -> &CertificateDer<'static> {
        self.0.authority.certificate()
    }

    /// The collector's own certificate and key, as new handshakes must use it.
    #[must_use]
    pub fn own(&self) -> Arc<rustls::sign::CertifiedKey> {
        self.0.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keys of the QUIC endpoint that outlive a restart.
    #[must_use]
    pub fn quic_keys(&self) -> &QuicKeys {
        &self.0.quic_keys
    }

    /// What has to be done now and then: renews the collector's own certificate at half its life, forgets what
    /// ended long ago, writes down who was seen.
    ///
    /// # Errors
    /// A file or the register could not be written; the old certificate stays in use.
    pub fn maintain(&self, now_unix_s: i64) -> anyhow::Result<()> {
        let own = self.0.authority.own(&self.0.vault, now_unix_s)?;
        *self.0.own.write().unwrap_or_else(PoisonError::into_inner) = own;
        self.flush_seen()?;
        self.register().prune(now_unix_s).context("could not prune identity.db")
    }

    /// Makes a token that one host can join with. The secret is not kept, only its digest.
    ///
    /// # Errors
    /// `ttl` is zero or over [`TOKEN_TTL_MAX`], the label is too long, too many tokens wait, or the disk failed.
    pub fn create_token(&self, ttl: Duration, label: Option<String>) -> anyhow::Result<(Secret, TokenInfo)> {
        self.create_token_at(ttl, label, unix_s_now())
    }

    /// [`Identity::create_token`] at a given time.
    ///
    /// # Errors
    /// As there.
    pub fn create_token_at(
        &self,
        ttl: Duration,
        label: Option<String>,
        now_unix_s: i64,
    ) -> anyhow::Result<(Secret, TokenInfo)> {
        if ttl < Duration::from_secs(1) || ttl > TOKEN_TTL_MAX {
            bail!("a token can be good for 1 s to 24 h, not {} s; choose another time", ttl.as_secs());
        }
        if label.as_ref().is_some_and(|label| label.len() > NAME_BYTES_MAX) {
            bail!("the label is longer than {NAME_BYTES_MAX} bytes; choose a shorter one");
        }
        let (mut secret, mut id) = ([0; TOKEN_BYTES], [0; 5]);
        authority::getrandom(&mut secret)?;
        authority::getrandom(&mut id)?;
        let info = TokenInfo {
            id: data_encoding::BASE32_NOPAD.encode(&id).to_ascii_lowercase(),
            label,
            created_unix_s: now_unix_s,
            expires_unix_s: now_unix_s.saturating_add(i64::try_from(ttl.as_secs())?),
            used_unix_s: None,
            used_by: None,
            revoked: false,
        };
        let mut register = self.register();
        let transaction = register.transaction().context("could not write to identity.db")?;
        register::insert_token(&transaction, &info, authority::digest(&secret), TOKENS_OPEN_MAX)?;
        transaction.commit().context("could not write to identity.db")?;
        Ok((Secret::new(secret), info))
    }

    /// All tokens that are still known, newest first.
    ///
    /// # Errors
    /// The register can't be read.
    pub fn tokens(&self) -> anyhow::Result<Vec<TokenInfo>> {
        self.register().tokens().context("could not read identity.db")
    }

    /// Refuses a token that was not used yet; false when there is none of that id.
    ///
    /// # Errors
    /// The register can't be written.
    pub fn revoke_token(&self, id: &str) -> anyhow::Result<bool> {
        self.register().revoke_token(id, unix_s_now()).context("could not write to identity.db")
    }

    /// Enrols a host. Use of the token and issue of the certificate are one transaction; a request that is
    /// refused does not use the token up.
    ///
    /// # Errors
    /// [`JoinRefused`], to be sent back as it is.
    pub fn join(&self, join: &Join, now_unix_s: i64) -> Result<Joined, JoinRefused> {
        self.try_join(join, now_unix_s)
    }

    /// A new certificate for an agent that has proved an old one.
    ///
    /// # Errors
    /// [`JoinRefused`], to be sent back as it is.
    pub fn renew(&self, agent: AgentId, renew: &Renew, now_unix_s: i64) -> Result<Joined, JoinRefused> {
        let key = authority::requested_key(&renew.csr_der).map_err(bad_request)?;
        let mut register = self.register();
        match register.agent(agent).map_err(not_stored)? {
            Some(record) if !record.revoked => {}
            Some(_) => return Err(refused(JoinRefusal::Revoked, "this agent was revoked")),
            None => {
                return Err(refused(
                    JoinRefusal::Revoked,
                    "this agent is not registered here; join it again",
                ));
            }
        }
        let issued = self.0.authority.issue(agent, &key, now_unix_s).map_err(not_issued)?;
        let transaction = register.transaction().map_err(not_stored)?;
        register::insert_certificate(&transaction, &issued.serial, agent, now_unix_s, issued.expires_unix_s)
            .map_err(not_stored)?;
        transaction.commit().map_err(not_stored)?;
        Ok(self.joined(agent, issued))
    }

    /// All agents, in the order they joined.
    ///
    /// # Errors
    /// The register can't be read or written.
    pub fn agents(&self) -> anyhow::Result<Vec<AgentRecord>> {
        self.flush_seen()?;
        self.register().agents().context("could not read identity.db")
    }

    /// One agent.
    ///
    /// # Errors
    /// The register can't be read.
    pub fn agent(&self, agent: AgentId) -> anyhow::Result<Option<AgentRecord>> {
        self.register().agent(agent).context("could not read identity.db")
    }

    /// Agents whose id starts with `text`, or whose host name is `text`.
    ///
    /// # Errors
    /// The register can't be read or written.
    pub fn find(&self, text: &str) -> anyhow::Result<Vec<AgentRecord>> {
        let mut agents = self.agents()?;
        agents.retain(|agent| {
            agent.host_name == text.as_bytes() || (!text.is_empty() && agent.id.to_string().starts_with(text))
        });
        Ok(agents)
    }

    /// Whether an agent may connect.
    ///
    /// # Errors
    /// The register can't be read.
    pub fn standing(&self, agent: AgentId) -> anyhow::Result<Standing> {
        Ok(match self.agent(agent)? {
            None => Standing::Unknown,
            Some(record) if record.revoked => Standing::Revoked,
            Some(_) => Standing::Good,
        })
    }

    /// Shuts an agent out for good; false when there is none or it was shut out before. Its live connection is
    /// cut by `Fleet::cut`.
    ///
    /// # Errors
    /// The register can't be written.
    pub fn revoke_agent(&self, agent: AgentId) -> anyhow::Result<bool> {
        self.register().revoke_agent(agent, unix_s_now()).context("could not write to identity.db")
    }

    /// Notes that an agent was heard. In memory only; [`Identity::maintain`] and [`Identity::agents`] write it down.
    pub fn seen(&self, agent: AgentId, sign: Sign<'_>) {
        self.pending().note(agent, sign, unix_s_now());
    }

    /// Writes down now who was seen.
    ///
    /// # Errors
    /// The register can't be written.
    pub fn flush_seen(&self) -> anyhow::Result<()> {
        let taken = self.pending().take();
        if taken.is_empty() {
            return Ok(());
        }
        self.register().store_seen(taken.iter()).context("could not write to identity.db")
    }

    /// Whose certificate this is (T1). The chain must have been verified before: TLS has done it.
    ///
    /// # Errors
    /// It is no agent's certificate.
    pub fn agent_of(certificate_der: &[u8]) -> anyhow::Result<AgentId> {
        authority::agent_of(certificate_der).context("the client's certificate is no agent's")
    }

    /// When a certificate ends, Unix seconds.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn expiry_of(certificate_der: &[u8]) -> anyhow::Result<i64> {
        authority::expiry_of(certificate_der)
    }

    fn try_join(&self, join: &Join, now_unix_s: i64) -> Result<Joined, JoinRefused> {
        let texts = [join.host_name.len(), join.agent_version.len(), join.os.len()];
        if texts.into_iter().any(|bytes| bytes > NAME_BYTES_MAX) {
            return Err(bad_request("a name is longer than 256 bytes"));
        }
        let key = authority::requested_key(&join.csr_der).map_err(bad_request)?;
        let mut id = [0; 16];
        authority::getrandom(&mut id).map_err(not_issued)?;
        let record = new_record(AgentId(id), join, now_unix_s);
        let digest = authority::digest(&join.token);
        let mut register = self.register();
        let transaction = register.transaction().map_err(not_stored)?;
        check_token(register::token_by_digest(&transaction, digest).map_err(not_stored)?, now_unix_s)?;
        let issued = self.0.authority.issue(record.id, &key, now_unix_s).map_err(not_issued)?;
        register::insert_agent(&transaction, &record, digest).map_err(not_stored)?;
        register::insert_certificate(
            &transaction,
            &issued.serial,
            record.id,
            now_unix_s,
            issued.expires_unix_s,
        )
        .map_err(not_stored)?;
        transaction.commit().map_err(not_stored)?;
        Ok(self.joined(record.id, issued))
    }

    fn joined(&self, agent: AgentId, issued: authority::Issued) -> Joined {
        Joined {
            agent_id: agent.to_string(),
            certificates_der: vec![issued.der],
            roots_der: vec![self.ca().to_vec()],
            expires_unix_s: issued.expires_unix_s,
        }
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        // A panic of another thread left no half-done transaction: dropping one rolls it back.
        self.0.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, seen::Pending> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_record(id: AgentId, join: &Join, now_unix_s: i64) -> AgentRecord {
    AgentRecord {
        id,
        host_name: join.host_name.clone(),
        os: join.os.clone(),
        version: join.agent_version.clone(),
        joined_unix_s: now_unix_s,
        last_seen_unix_s: now_unix_s,
        level: 0,
        rules_version: String::new(),
        certificate_expires_unix_s: 0,
        revoked: false,
    }
}

fn check_token(token: Option<register::TokenState>, now_unix_s: i64) -> Result<(), JoinRefused> {
    let advice = "make a new one with `vidette tokens create`";
    let refuse = |code, what: &str| Err(refused(code, &format!("the token {what}; {advice}")));
    match token {
        None => refuse(JoinRefusal::TokenUnknown, "is unknown here"),
        Some(token) if token.used => refuse(JoinRefusal::TokenUsed, "was used before"),
        Some(token) if token.revoked => refuse(JoinRefusal::TokenRevoked, "was revoked"),
        Some(token) if token.expires_unix_s <= now_unix_s => refuse(JoinRefusal::TokenExpired, "has expired"),
        Some(_) => Ok(()),
    }
}

fn refused(code: JoinRefusal, reason: &str) -> JoinRefused {
    JoinRefused { code: code as i32, reason: reason.to_owned() }
}

fn bad_request(reason: &str) -> JoinRefused {
    refused(JoinRefusal::BadRequest, reason)
}

fn not_stored(error: rusqlite::Error) -> JoinRefused {
    tracing::error!(%error, "could not use identity.db; no host can join until it can be written");
    refused(JoinRefusal::Overloaded, "the collector could not write down who joins; see its log")
}

fn not_issued(error: anyhow::Error) -> JoinRefused {
    tracing::error!(error = %format!("{error:#}"), "could not issue a certificate");
    refused(JoinRefusal::Overloaded, "the collector could not issue a certificate; see its log")
}

/// The wall clock.
#[must_use]
pub fn unix_s_now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

impl QuicKeys {
    fn load_or_make(vault: &Vault) -> anyhow::Result<Self> {
        if let Some(keys) = vault.read(QUIC_KEYS_FILE)?.and_then(|bytes| Self::from_bytes(&bytes)) {
            return Ok(keys);
        }
        // Missing or damaged: new ones cost no more than a slow reconnect.
        let mut bytes = [0; RESET_KEY_BYTES + CID_KEY_BYTES];
        authority::getrandom(&mut bytes)?;
        vault.write(QUIC_KEYS_FILE, &bytes)?;
        Self::from_bytes(&bytes).context("the new QUIC keys can't be used")
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (reset, connection_id) = bytes.split_first_chunk::<RESET_KEY_BYTES>()?;
        Some(Self { reset: *reset, connection_id: u64::from_be_bytes(connection_id.try_into().ok()?) })
    }
}

impl std::fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicKeys(not shown)")
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("authority", &self.authority).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
