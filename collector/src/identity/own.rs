//! The collector's own certificate: renewed at half its life, and never a reason to stop.
//!
//! What can't be renewed is served as it is, expired or not, and says why: agents refuse an expired one or raise an alarm,
//! but a collector that does not start helps nobody. What can't be stored is served from memory. `Identity` holds the one
//! in use; `ingest` asks for it at every handshake.

use super::authorities::Authorities;
use super::authority::OWN_LIFE_S;
use super::vault::Vault;
use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::sync::Arc;

pub(super) const OWN_FILE: &str = "collector.pem";

/// The one in use.
pub(super) struct Own {
    pub(super) certified: Arc<CertifiedKey>,
    /// Unix seconds.
    pub(super) expires_unix_s: i64,
    /// When it is renewed, Unix seconds.
    pub(super) renews_unix_s: i64,
    /// Why it is not as it should be.
    pub(super) trouble: Option<String>,
    /// As it is, or should be, on disk. A secret.
    pem: Vec<u8>,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").field("expires_unix_s", &self.expires_unix_s).finish_non_exhaustive()
    }
}

impl Own {
    /// The stored one or the one in use while it has more than half its life before it, else a new one.
    ///
    /// # Errors
    /// There is none at all, and none can be made.
    pub(super) fn keep(
        vault: &Vault,
        authorities: &Authorities,
        held: Option<&Self>,
        now_unix_s: i64,
    ) -> anyhow::Result<Self> {
        let make = || authorities.active().make_own(now_unix_s).map(String::into_bytes);
        let mut own = Self::choose(stored(vault), authorities, held, make, now_unix_s)?;
        if stored(vault).as_deref() != Some(own.pem.as_slice())
            && let Err(error) = vault.write(OWN_FILE, &own.pem)
            && own.trouble.is_none()
        {
            own.trouble = Some(format!("it could not be stored: {error:#}"));
        }
        Ok(own)
    }

    fn choose(
        stored: Option<Vec<u8>>,
        authorities: &Authorities,
        held: Option<&Self>,
        make: impl FnOnce() -> anyhow::Result<Vec<u8>>,
        now_unix_s: i64,
    ) -> anyhow::Result<Self> {
        let known: Vec<Self> = stored
            .into_iter()
            .chain(held.map(|held| held.pem.clone()))
            .filter_map(|pem| Self::read(pem, authorities))
            .collect();
        let best = known.into_iter().max_by_key(|own| (own.is_fresh(now_unix_s), own.expires_unix_s));
        match best {
            Some(own) if own.is_fresh(now_unix_s) => Ok(own),
            best => {
                let made = make().and_then(|pem| {
                    Self::read(pem, authorities).context("the collector's new certificate can't be used")
                });
                match (made, best) {
                    (Ok(made), _) => Ok(made),
                    (Err(error), Some(mut old)) => {
                        old.trouble = Some(format!("it could not be renewed: {error:#}"));
                        Ok(old)
                    }
                    (Err(error), None) => Err(error),
                }
            }
        }
    }

    /// Of the active CA, and with its key.
    fn read(pem: Vec<u8>, authorities: &Authorities) -> Option<Self> {
        let leaf = CertificateDer::from_pem_slice(&pem).ok()?;
        let key = PrivateKeyDer::from_pem_slice(&pem).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).ok()?;
        let (_, ca) = x509_parser::parse_x509_certificate(authorities.active().issuing()).ok()?;
        parsed.verify_signature(Some(ca.public_key())).ok()?;
        let expires_unix_s = parsed.validity().not_after.timestamp();
        let signing = rustls::crypto::ring::sign::any_ecdsa_type(&key).ok()?;
        let chain = [leaf.clone()].into_iter().chain(authorities.chain()).collect();
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().ok()?;
        let renews_unix_s = expires_unix_s - OWN_LIFE_S / 2;
        Some(Self { certified: Arc::new(certified), expires_unix_s, renews_unix_s, trouble: None, pem })
    }

    /// A clock that was set back makes it one that is not valid yet: that one is made anew too.
    fn is_fresh(&self, now_unix_s: i64) -> bool {
        now_unix_s < self.renews_unix_s && now_unix_s >= self.expires_unix_s - OWN_LIFE_S
    }
}

/// What can't be read is as good as missing: it is made again.
fn stored(vault: &Vault) -> Option<Vec<u8>> {
    vault.read(OWN_FILE).ok().flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn fresh() -> (tempfile::TempDir, Vault, Authorities) {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let authorities = Authorities::load_or_make(&vault, NOW).unwrap();
        (folder, vault, authorities)
    }

    #[test]
    fn it_is_kept_to_half_life_and_made_again_when_it_is_damaged() {
        let (_folder, vault, authorities) = fresh();
        let own = |now| Own::keep(&vault, &authorities, None, now).unwrap().certified.cert.clone();
        let first = own(NOW);
        assert_eq!(own(NOW + OWN_LIFE_S / 2 - 1), first);
        let second = own(NOW + OWN_LIFE_S / 2);
        assert_ne!(second, first);
        vault.write(OWN_FILE, b"garbage").unwrap();
        assert_ne!(own(NOW), second);
        assert_ne!(own(NOW - 2 * OWN_LIFE_S), own(NOW), "a clock that goes back");
    }

    #[test]
    fn what_can_not_be_stored_is_served_from_memory_and_said_until_it_can() {
        let (_folder, vault, authorities) = fresh();
        let first = Own::keep(&vault, &authorities, None, NOW).unwrap();
        assert_eq!(first.trouble, None);
        vault.faults.stop_after(0);
        let later = NOW + OWN_LIFE_S / 2;
        let second = Own::keep(&vault, &authorities, Some(&first), later).unwrap();
        assert!(second.trouble.as_deref().unwrap().contains("stored"), "{second:?}");
        assert!(second.expires_unix_s > first.expires_unix_s);
        let again = Own::keep(&vault, &authorities, Some(&second), later + 60).unwrap();
        assert_eq!(again.certified.cert, second.certified.cert, "not another one every minute");
        vault.faults.stop_after(u32::MAX);
        let stored = Own::keep(&vault, &authorities, Some(&again), later + 120).unwrap();
        assert_eq!((stored.certified.cert.clone(), stored.trouble), (second.certified.cert.clone(), None));
        assert_eq!(
            Own::keep(&vault, &authorities, None, later).unwrap().certified.cert,
            second.certified.cert
        );
    }

    #[test]
    fn one_that_can_not_be_renewed_is_served_after_its_end_and_says_so() {
        let (_folder, vault, authorities) = fresh();
        let first = Own::keep(&vault, &authorities, None, NOW).unwrap();
        let fails = || anyhow::bail!("no random numbers");
        for (later, is_expired) in [(OWN_LIFE_S / 2, false), (OWN_LIFE_S + 1, true), (9 * OWN_LIFE_S, true)] {
            let own = Own::choose(stored(&vault), &authorities, None, fails, NOW + later).unwrap();
            assert_eq!(own.certified.cert, first.certified.cert);
            assert_eq!(own.expires_unix_s <= NOW + later, is_expired);
            assert!(own.trouble.unwrap().contains("no random numbers"));
        }
        assert!(Own::choose(None, &authorities, None, fails, NOW).is_err());
    }
}
