//! Who an agent is: the CA, join tokens, certificates, revocation.
//!
//! `vault` keeps the key files, `authority` signs, `authorities` and `rotation` replace it, `own` is the collector's own
//! certificate, `register` remembers (SQLite), `tokens` and `joining` say who may become an agent, and `Identity` is the one
//! door to all. It assumes that it alone uses its folder. `ingest` asks it who a connection belongs to.
//!
//! Calls write to disk and wait for it: from async code go through `spawn_blocking`.

mod authorities;
mod authority;
mod confirming;
mod following;
mod generations;
mod joining;
mod offline;
mod own;
mod register;
mod rotation;
mod seen;
/// Where the replacement of a CA stands. Pure.
pub mod stages;
mod tokens;
mod vault;

pub use authorities::Roots;
pub use authority::AGENT_LIFE_S;
pub use generations::Evidence;
pub use joining::HOST_MARK_BYTES_MAX;
pub use offline::sign_offline;
pub use rotation::{Behind, CaInfo, CaPicture, CaState, OwnInfo, Retired};
pub use seen::{Seen, Sign};
pub use tokens::{
    ANSWERS_MAX, TOKEN_TTL_DEFAULT, TOKEN_TTL_MAX, TOKEN_USES_MAX, TOKENS_OPEN_MAX, TokenInfo, TokenWish,
};

use anyhow::Context;
use authorities::Authorities;
use following::Following;
use own::Own;
use register::Register;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use vault::Vault;
use vidette_protocol::id::AgentId;
use vidette_protocol::join::{Secret, TOKEN_BYTES};
use vidette_protocol::wire::{JoinRefusal, JoinRefused};

/// An expired certificate may still be renewed for so long, by a host that was off. Seconds.
pub const RENEW_GRACE_S: i64 = 30 * 86_400;

/// Whoever is heard so long after its host has joined anew is no older self that was not restarted yet, but another host or
/// a copy: of copied machines several have one mark. Seconds.
pub const REPLACED_HEARD_S: i64 = 90;

const QUIC_KEYS_FILE: &str = "quic-keys";
const RESET_KEY_BYTES: usize = 64;
const CID_KEY_BYTES: usize = 8;

/// The handle. Clones share everything.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Inner>);

struct Inner {
    vault: Vault,
    /// Replaced as a whole, by whoever holds `changing`.
    authorities: RwLock<Arc<Authorities>>,
    changing: Mutex<()>,
    own: RwLock<Arc<Own>>,
    roots: watch::Sender<Arc<Roots>>,
    quic_keys: QuicKeys,
    register: Mutex<Register>,
    seen: Mutex<seen::Pending>,
    followed: Mutex<Following>,
    confirming: Mutex<confirming::Confirming>,
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
    /// As the token says by which it joined.
    pub label: Option<String>,
    /// As the token says by which it joined.
    pub group: Option<String>,
    /// When it left by itself, Unix seconds.
    pub left_unix_s: Option<i64>,
    /// A newer agent that seems to be of the same host, and when that joined, Unix seconds.
    pub replaced: Option<(AgentId, i64)>,
    /// Its identity was seen to be copied then, Unix seconds: no copy is let in.
    pub cloned_unix_s: Option<i64>,
}

/// A certificate as an agent presents it. TLS has checked the chain, and that its owner has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Whose it is.
    pub agent: AgentId,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// Which of the agent's certificates it is; `None` in those of version 0.1.
    pub generation: Option<u64>,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// Unix seconds.
    pub expires_unix_s: i64,
}

/// What a session begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Greeting {
    /// The same certificate as before.
    Current,
    /// A new one, for the first time: those before it are superseded from now on.
    Confirmed,
    /// One that is not known here: this collector was restored from a backup that is older. It is taken over.
    Adopted {
        /// Of which generation.
        generation: u64,
        /// The newest that was known.
        newest: u64,
    },
    /// A copied identity.
    Copied(CloneSign),
}

/// What shows that there are two of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneSign {
    /// Which.
    pub agent: AgentId,
    /// What was seen.
    pub evidence: Evidence,
    /// Of the certificate that was presented.
    pub generation: u64,
    /// The newest that this agent has.
    pub newest: u64,
    /// Who presented it.
    pub from: SocketAddr,
    /// Where the newest one was asked for or used; `None` when nobody knows.
    pub other: Option<String>,
}

/// A renewal that came to nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct NotRenewed {
    /// To be sent back as it is.
    pub refused: JoinRefused,
    /// Why the agent has to be set aside.
    pub sign: Option<Box<CloneSign>>,
}

impl From<JoinRefused> for NotRenewed {
    fn from(refused: JoinRefused) -> Self {
        Self { refused, sign: None }
    }
}

/// Whether an agent may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Good,
    /// It was revoked.
    Revoked,
    /// It has left by itself.
    Left,
    /// Its identity was copied.
    Cloned,
    /// No such agent is registered here.
    Unknown,
}

impl Identity {
    /// Opens the folder; makes the CA, the collector's certificate and the register when they are missing.
    ///
    /// # Errors
    /// One sentence that names the file and what to do.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        Self::open_at(folder, unix_s_now())
    }

    fn open_at(folder: &Path, now_unix_s: i64) -> anyhow::Result<Self> {
        let vault = Vault::open(folder)?;
        let authorities = Authorities::load_or_make(&vault, now_unix_s)
            .with_context(|| format!("could not load the CA in {}", folder.display()))?;
        let own = Own::keep(&vault, &authorities, None, now_unix_s)?;
        rotation::say(&own, now_unix_s);
        let quic_keys = QuicKeys::load_or_make(&vault)?;
        let register = Register::open(&folder.join("identity.db"))?;
        let (roots, _) = watch::channel(Arc::new(Roots::of(&authorities)?));
        Ok(Self(Arc::new(Inner {
            vault,
            authorities: RwLock::new(Arc::new(authorities)),
            changing: Mutex::default(),
            own: RwLock::new(Arc::new(own)),
            roots,
            quic_keys,
            register: Mutex::new(register),
            seen: Mutex::default(),
            followed: Mutex::default(),
            confirming: Mutex::default(),
        })))
    }

    /// SHA-256 of the active CA's SubjectPublicKeyInfo: what a join line pins.
    #[must_use]
    pub fn pin(&self) -> [u8; 32] {
        // It was read when it was loaded.
        authority::pin_of(self.authorities().active().root()).unwrap_or_default()
    }

    /// The active CA's certificate.
    #[must_use]
    pub fn ca(&self) -> CertificateDer<'static> {
        self.authorities().active().root().clone()
    }

    /// The collector's own certificate and key, as new handshakes must use it.
    #[must_use]
    pub fn own(&self) -> Arc<rustls::sign::CertifiedKey> {
        self.0.own.read().unwrap_or_else(PoisonError::into_inner).certified.clone()
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
    /// The register could not be written. A certificate that could not be renewed stays in use, and is said.
    pub fn maintain(&self, now_unix_s: i64) -> anyhow::Result<()> {
        {
            let _one = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
            self.keep_own(now_unix_s)?;
        }
        self.flush_seen()?;
        self.register().prune(now_unix_s).context("could not prune identity.db")
    }

    /// Makes a token that one host can join with. The secret is not kept, only its digest.
    ///
    /// # Errors
    /// As [`Identity::create_token_as`].
    pub fn create_token(&self, ttl: Duration, label: Option<String>) -> anyhow::Result<(Secret, TokenInfo)> {
        self.create_token_at(ttl, label, unix_s_now())
    }

    /// [`Identity::create_token`] at a given time.
    ///
    /// # Errors
    /// As [`Identity::create_token_as`].
    pub fn create_token_at(
        &self,
        ttl: Duration,
        label: Option<String>,
        now_unix_s: i64,
    ) -> anyhow::Result<(Secret, TokenInfo)> {
        self.create_token_as(TokenWish::one(ttl, label), now_unix_s)
    }

    /// Makes a token. The secret is not kept, only its digest.
    ///
    /// # Errors
    /// The wish is over [`TOKEN_TTL_MAX`] or [`TOKEN_USES_MAX`] or has a long text, too many tokens wait, or the disk failed.
    pub fn create_token_as(&self, wish: TokenWish, now_unix_s: i64) -> anyhow::Result<(Secret, TokenInfo)> {
        wish.check()?;
        let (mut secret, mut id) = ([0; TOKEN_BYTES], [0; 5]);
        authority::getrandom(&mut secret)?;
        authority::getrandom(&mut id)?;
        let info = TokenInfo {
            id: data_encoding::BASE32_NOPAD.encode(&id).to_ascii_lowercase(),
            label: wish.label,
            group: wish.group,
            created_unix_s: now_unix_s,
            expires_unix_s: now_unix_s.saturating_add(i64::try_from(wish.ttl.as_secs())?),
            uses_max: wish.uses,
            uses: 0,
            used_unix_s: None,
            used_by: None,
            revoked: false,
        };
        let mut register = self.register();
        let transaction = register.transaction().context("could not write to identity.db")?;
        tokens::insert(&transaction, &info, authority::digest(&secret), TOKENS_OPEN_MAX)?;
        transaction.commit().context("could not write to identity.db")?;
        Ok((Secret::new(secret), info))
    }

    /// All tokens that are still known, newest first.
    ///
    /// # Errors
    /// The register can't be read.
    pub fn tokens(&self) -> anyhow::Result<Vec<TokenInfo>> {
        tokens::all(self.register().connection()).context("could not read identity.db")
    }

    /// Refuses a token from now on; false when there is none of that id with a use left.
    ///
    /// # Errors
    /// The register can't be written.
    pub fn revoke_token(&self, id: &str) -> anyhow::Result<bool> {
        tokens::revoke(self.register().connection(), id, unix_s_now())
            .context("could not write to identity.db")
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
        self.flush_seen()?;
        self.register().find(text.as_bytes(), ids_that_start(text)).context("could not read identity.db")
    }

    /// Whether an agent may connect.
    ///
    /// # Errors
    /// The register can't be read.
    pub fn standing(&self, agent: AgentId) -> anyhow::Result<Standing> {
        Ok(match self.agent(agent)? {
            None => Standing::Unknown,
            Some(record) if record.revoked => Standing::Revoked,
            Some(record) if record.left_unix_s.is_some() => Standing::Left,
            Some(record) if record.cloned_unix_s.is_some() => Standing::Cloned,
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

    /// Writes down now who was seen, and with which certificate.
    ///
    /// # Errors
    /// The register can't be written.
    pub fn flush_seen(&self) -> anyhow::Result<()> {
        let taken = self.pending().take();
        {
            // The register first, here as elsewhere: whoever has it finds every confirmation in one place or the other.
            let mut register = self.register();
            let confirmed = self.confirming().take();
            if !taken.is_empty() || !confirmed.is_empty() {
                register.store_seen(taken.iter(), &confirmed).context("could not write to identity.db")?;
            }
        }
        let followed = std::mem::take(&mut *self.followed());
        if followed.is_empty() {
            return Ok(());
        }
        let stored = self.register().store_followed(&followed);
        if stored.is_err() {
            // An agent that stays connected does not say it again. What was learnt meanwhile is newer.
            let mut waiting = self.followed();
            followed.into_iter().for_each(|(agent, one)| {
                waiting.entry(agent).or_insert(one);
            });
        }
        stored.context("could not write to identity.db")
    }

    /// The id under which the collector's own events are stored: of its first CA's key, so that it stays and is no agent's.
    #[must_use]
    pub fn own_id(&self) -> AgentId {
        let mut id = [0; 16];
        id.iter_mut().zip(self.authorities().first_pin()).for_each(|(to, from)| *to = from);
        AgentId(id)
    }

    /// Whose certificate this is (T1). The chain must have been verified before: TLS has done it.
    ///
    /// # Errors
    /// It is no agent's certificate.
    pub fn agent_of(certificate_der: &[u8]) -> anyhow::Result<AgentId> {
        authority::agent_of(certificate_der).context("the client's certificate is no agent's")
    }

    /// As [`Identity::agent_of`], with what tells this certificate from others of the same agent.
    ///
    /// # Errors
    /// It is no agent's certificate.
    pub fn shown(certificate_der: &[u8]) -> anyhow::Result<Shown> {
        authority::shown(certificate_der).context("the client's certificate is no agent's")
    }

    /// When a certificate ends, Unix seconds.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn expiry_of(certificate_der: &[u8]) -> anyhow::Result<i64> {
        authority::expiry_of(certificate_der)
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        // A panic of another thread left no half-done transaction: dropping one rolls it back.
        self.0.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authorities(&self) -> Arc<Authorities> {
        self.0.authorities.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn followed(&self) -> MutexGuard<'_, Following> {
        self.0.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirming(&self) -> MutexGuard<'_, confirming::Confirming> {
        self.0.confirming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, seen::Pending> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first and the last id that start so; `None` for what no id starts with.
fn ids_that_start(text: &str) -> Option<(AgentId, AgentId)> {
    let digits = 2 * AgentId([0; 16]).0.len();
    let filled = |digit: &str| -> Option<AgentId> {
        format!("{text}{}", digit.repeat(digits.saturating_sub(text.len()))).parse().ok()
    };
    if text.is_empty() { None } else { Some((filled("0")?, filled("f")?)) }
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
        f.debug_struct("Inner").field("authorities", &self.authorities).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
