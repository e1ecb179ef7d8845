//! The CAs of a collector on disk and in memory: the one that issues, and the one that follows it or went before.
//!
//! Until a CA is replaced for the first time there are the first CA's two files and nothing else. From then on
//! `authorities.json` holds everything: one file, replaced in one step, so that a kill leaves the state before or the state
//! after. What else changes with it (the first CA's files go, the collector's certificate is made anew) is brought in line
//! at every start. `stages` says what may follow what; `rotation` asks for it.
//!
//! The key of a CA that no longer issues is not kept.

use super::authority::{
    Authority, CA_FILE, CA_KEY_FILE, ca_request, certificate_pem, check_root, digest, make_key, names_of,
    pin_of, read_key,
};
use super::stages::{Stage, Step};
use super::vault::Vault;
use anyhow::{Context, bail, ensure};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use vidette_protocol::limits::ROOTS_MAX;

/// Everything, once a CA was replaced.
pub(super) const FILE: &str = "authorities.json";
/// Of that file.
const FORMAT: u32 = 1;
/// Certificates in what an admin gives: an intermediate, what is between, and the root.
const GIVEN_MAX: usize = 4;

/// All CAs, loaded. Replaced as a whole.
#[derive(Debug)]
pub(super) struct Authorities {
    first_pin: [u8; 32],
    activated_unix_s: i64,
    active: Authority,
    other: Other,
}

/// What there is beside the active one.
#[derive(Debug)]
enum Other {
    None,
    Requested(Waiting),
    Next(Authority),
    Previous(Past),
}

/// A key that waits for its certificate.
struct Waiting(KeyPair);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting(not shown)")
    }
}

/// A CA that issues no more.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) root: CertificateDer<'static>,
    pub(super) intermediate: Option<CertificateDer<'static>>,
}

impl Past {
    pub(super) fn issuing(&self) -> &CertificateDer<'static> {
        self.intermediate.as_ref().unwrap_or(&self.root)
    }
}

/// As it is on disk. Holds keys: no Debug.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    first_pin: String,
    activated_unix_s: i64,
    active: Record,
    other: OtherRecord,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    root: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    intermediate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cross: Option<String>,
    key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum OtherRecord {
    None,
    Requested {
        key: String,
    },
    Next(Record),
    Previous {
        root: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        intermediate: Option<String>,
    },
}

impl Authorities {
    /// Loads them; makes the first CA when there is none. Brings in line what a kill may have left.
    pub(super) fn load_or_make(vault: &Vault, now_unix_s: i64) -> anyhow::Result<Self> {
        let Some(text) = vault.read(FILE)? else {
            let active = Authority::load_or_make(vault, now_unix_s)?;
            let first_pin = pin_of(active.root())?;
            return Ok(Self { first_pin, activated_unix_s: 0, active, other: Other::None });
        };
        let loaded = Self::parse(&text).with_context(|| {
            format!("{FILE} is damaged; restore the identity folder from a backup, or move it away and join every host again")
        })?;
        // What follows is no more than tidiness: a disk that is full keeps nobody from starting.
        if let Err(error) = loaded.tidy(vault) {
            tracing::warn!(error = %format!("{error:#}"), "could not bring the first CA's files in line; tried again at the next start");
        }
        Ok(loaded)
    }

    /// Where the replacement stands.
    pub(super) fn stage(&self) -> Stage {
        match &self.other {
            Other::None => Stage::Alone,
            Other::Requested(_) => Stage::Requested,
            Other::Next(_) => Stage::Prepared,
            Other::Previous(_) => Stage::Rotated,
        }
    }

    /// The one that issues.
    pub(super) fn active(&self) -> &Authority {
        &self.active
    }

    /// The one that is to follow.
    pub(super) fn next(&self) -> Option<&Authority> {
        match &self.other {
            Other::Next(next) => Some(next),
            Other::None | Other::Requested(_) | Other::Previous(_) => None,
        }
    }

    /// The one before, while it is trusted.
    pub(super) fn previous(&self) -> Option<&Past> {
        match &self.other {
            Other::Previous(past) => Some(past),
            Other::None | Other::Requested(_) | Other::Next(_) => None,
        }
    }

    /// SHA-256 of the key of the collector's first CA.
    pub(super) fn first_pin(&self) -> [u8; 32] {
        self.first_pin
    }

    /// Since when the active one issues, Unix seconds; 0 for the first.
    pub(super) fn activated_unix_s(&self) -> i64 {
        self.activated_unix_s
    }

    /// What agents have to trust: the active one's root first.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.active.root().clone()];
        let others = [self.next().map(Authority::root), self.previous().map(|past| &past.root)];
        for root in others.into_iter().flatten() {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots.truncate(ROOTS_MAX);
        roots
    }

    /// The keys that agents' certificates may come from.
    pub(super) fn issuing(&self) -> Vec<CertificateDer<'static>> {
        let others = [self.next().map(Authority::issuing), self.previous().map(Past::issuing)];
        [self.active.issuing()].into_iter().chain(others.into_iter().flatten()).cloned().collect()
    }

    /// What stands behind the collector's own certificate: the way to the active root, and to the one before, for agents
    /// and join lines that know only that.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let mut chain = self.active.chain();
        if let Some(past) = self.previous() {
            let older = past.intermediate.iter().chain([&past.root]);
            for certificate in self.active.cross().into_iter().chain(older) {
                if !chain.contains(certificate) {
                    chain.push(certificate.clone());
                }
            }
        }
        chain
    }

    /// SHA-256 of the key that signed this certificate, when it is one of ours by its name. TLS has checked the signature.
    pub(super) fn issuer_of(&self, certificate: &[u8]) -> Option<[u8; 32]> {
        let (_, issuer) = names_of(certificate).ok()?;
        let found =
            self.issuing().into_iter().find(|ca| names_of(ca).is_ok_and(|(name, _)| name == issuer))?;
        pin_of(&found).ok()
    }

    /// The request that waits for its certificate, made anew for the same key.
    pub(super) fn request(&self) -> Option<anyhow::Result<String>> {
        match &self.other {
            Other::Requested(Waiting(key)) => Some(ca_request(key)),
            Other::None | Other::Next(_) | Other::Previous(_) => None,
        }
    }

    /// What comes of a step, on disk before it returns. `given` is what belongs to [`Step::Complete`].
    pub(super) fn go(
        &self,
        step: Step,
        given: Option<&str>,
        vault: &Vault,
        now_unix_s: i64,
    ) -> anyhow::Result<Self> {
        self.stage().after(step).map_err(anyhow::Error::msg)?;
        let (active, activated_unix_s, other) = match (step, &self.other) {
            (Step::Prepare, _) => {
                let next = Authority::make(&self.active, now_unix_s)?;
                (record(&self.active), self.activated_unix_s, OtherRecord::Next(record(&next)))
            }
            (Step::Request, Other::Requested(Waiting(key))) => {
                let key = key.serialize_pem();
                (record(&self.active), self.activated_unix_s, OtherRecord::Requested { key })
            }
            (Step::Request, _) => {
                let key = make_key()?.serialize_pem();
                (record(&self.active), self.activated_unix_s, OtherRecord::Requested { key })
            }
            (Step::Complete, Other::Requested(Waiting(key))) => {
                let next = self.complete(&key.serialize_pem(), given.unwrap_or_default(), now_unix_s)?;
                (record(&self.active), self.activated_unix_s, OtherRecord::Next(record(&next)))
            }
            (Step::Activate, Other::Next(next)) => {
                let root = certificate_pem(self.active.root());
                let intermediate = self.active.intermediate().map(|der| certificate_pem(der));
                (record(next), now_unix_s, OtherRecord::Previous { root, intermediate })
            }
            (Step::Retire | Step::Withdraw, _) => {
                let kept = Record { cross: None, ..record(&self.active) };
                (kept, self.activated_unix_s, OtherRecord::None)
            }
            // `after` has refused these.
            (Step::Complete | Step::Activate, _) => bail!("that can't be done now"),
        };
        let first_pin = data_encoding::HEXLOWER.encode(&self.first_pin);
        let file = File { format: FORMAT, first_pin, activated_unix_s, active, other };
        let text = serde_json::to_vec_pretty(&file).context("could not write down the CAs")?;
        // Read back before it counts: what could not be loaded at the next start is never written.
        let loaded = Self::parse(&text)?;
        vault.write(FILE, &text)?;
        if let Err(error) = loaded.tidy(vault) {
            tracing::warn!(error = %format!("{error:#}"), "could not bring the first CA's files in line; tried again at the next start");
        }
        Ok(loaded)
    }

    /// The certificate that an offline CA gave: the intermediate first, its root last.
    fn complete(&self, key_pem: &str, given: &str, now_unix_s: i64) -> anyhow::Result<Authority> {
        let all: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(given.as_bytes())
            .take(GIVEN_MAX + 1)
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow::anyhow!("the certificates can't be read: {error}"))?;
        let [intermediate, root] = all.as_slice() else {
            bail!(
                "two certificates in PEM are needed, the CA's and then its root's; there are {}",
                all.len()
            );
        };
        check_root(root)?;
        let (name, issuer) = names_of(root)?;
        ensure!(name == issuer, "the last certificate must be the root, which another CA has not signed");
        let key = read_key(key_pem.as_bytes())?;
        let cross = self.active.cross_sign(&key, now_unix_s)?;
        let next = Authority::new(key, root.clone(), Some(intermediate.clone()), Some(cross.clone()))
            .context("the first certificate does not fit the request that was made here")?;
        let (name, _) = names_of(intermediate)?;
        let (wanted, _) = names_of(&cross)?;
        ensure!(
            name == wanted,
            "the certificate has another name than the request; it must be signed as it is"
        );
        next.is_accepted_by(root, std::slice::from_ref(intermediate), now_unix_s)
            .context("the certificates are not such that agents could accept what this CA signs")?;
        Ok(next)
    }

    fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let file: File = serde_json::from_slice(text).context("it can't be read")?;
        ensure!(
            file.format == FORMAT,
            "it has format {}, this program knows {FORMAT}: install the newer Vidette",
            file.format
        );
        let first_pin = data_encoding::HEXLOWER
            .decode(file.first_pin.as_bytes())
            .ok()
            .and_then(|pin| <[u8; 32]>::try_from(pin).ok())
            .context("its first pin can't be read")?;
        let other = match file.other {
            OtherRecord::None => Other::None,
            OtherRecord::Requested { key } => Other::Requested(Waiting(read_key(key.as_bytes())?)),
            OtherRecord::Next(next) => Other::Next(next.load()?),
            OtherRecord::Previous { root, intermediate } => Other::Previous(Past {
                root: certificate(&root)?,
                intermediate: intermediate.as_deref().map(certificate).transpose()?,
            }),
        };
        Ok(Self { first_pin, activated_unix_s: file.activated_unix_s, active: file.active.load()?, other })
    }

    /// The first CA's key is in `authorities.json`, or not needed any more. Its certificate's file stays for people, with the
    /// active root: an older Vidette that finds it without a key says so instead of making another CA.
    fn tidy(&self, vault: &Vault) -> anyhow::Result<()> {
        let shown = certificate_pem(self.active.root());
        if vault.read(CA_FILE)?.as_deref() != Some(shown.as_bytes()) {
            vault.write(CA_FILE, shown.as_bytes())?;
        }
        vault.remove(CA_KEY_FILE)
    }
}

impl Record {
    fn load(&self) -> anyhow::Result<Authority> {
        let optional = |pem: &Option<String>| pem.as_deref().map(certificate).transpose();
        let key = read_key(self.key.as_bytes()).context("a key in it can't be read")?;
        Authority::new(key, certificate(&self.root)?, optional(&self.intermediate)?, optional(&self.cross)?)
    }
}

fn record(authority: &Authority) -> Record {
    Record {
        root: certificate_pem(authority.root()),
        intermediate: authority.intermediate().map(|der| certificate_pem(der)),
        cross: authority.cross().map(|der| certificate_pem(der)),
        key: authority.key_pem(),
    }
}

fn certificate(pem: &str) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| anyhow::anyhow!("a certificate in it can't be read: {error}"))
}

/// What agents are told to trust, and what is told from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Each certificate, the active CA's first.
    pub ders: Vec<Vec<u8>>,
    /// SHA-256 of each.
    pub digests: Vec<Vec<u8>>,
    /// The name of whoever signs agents' certificates now, as it is encoded.
    pub issuer: Vec<u8>,
}

impl Roots {
    pub(super) fn of(authorities: &Authorities) -> anyhow::Result<Self> {
        let ders: Vec<Vec<u8>> = authorities.roots().iter().map(|root| root.to_vec()).collect();
        let digests = ders.iter().map(|der| digest(der).to_vec()).collect();
        let (issuer, _) = names_of(authorities.active().issuing())?;
        Ok(Self { ders, digests, issuer })
    }

    /// Whether a certificate comes from the CA that issues now.
    #[must_use]
    pub fn issued(&self, certificate: &[u8]) -> bool {
        names_of(certificate).is_ok_and(|(_, issuer)| issuer == self.issuer)
    }
}
