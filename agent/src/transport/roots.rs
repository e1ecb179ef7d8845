//! The CAs that this host trusts, when its collector replaces one: checked, stored, and only then confirmed.
//!
//! They come on a session, so from whoever holds the collector's key; still the set must hold one that is trusted already,
//! so that nothing sent can take this host from its collector in one step. `connection` brings them, `credentials` stores
//! them with everything else in one step, `keeper` publishes what is on disk and renews a certificate whose CA goes.

use super::credentials::Credentials;
use super::keeper::Word;
use super::tls;
use crate::host;
use anyhow::{Context, bail, ensure};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use vidette_protocol::limits::{RENEW_WITHIN_S_MAX, ROOT_BYTES_MAX, ROOTS_MAX};
use vidette_protocol::wire;

/// What is done with roots, shared by the session and the keeper. Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Keeping(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: PathBuf,
    /// Held by whoever reads the identity to write it again.
    changing: AsyncMutex<()>,
    /// The certificate that shall be renewed before its time.
    wanted: Mutex<Option<CertificateDer<'static>>>,
    /// To the keeper.
    words: mpsc::Sender<Word>,
}

impl Keeping {
    /// Of the identity in this state folder.
    pub(super) fn new(state: PathBuf, words: mpsc::Sender<Word>) -> Self {
        Self(Arc::new(Inner { state, changing: AsyncMutex::default(), wanted: Mutex::default(), words }))
    }

    /// Nobody else changes the identity until the guard is dropped.
    pub(super) async fn alone(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.changing.lock().await
    }

    /// It looks by itself every now and then: one word more or less is no loss.
    fn look(&self) {
        let _ = self.0.words.try_send(Word::Look);
    }

    /// Whether this certificate shall be renewed now, because its CA is being replaced.
    pub(super) fn wants_renewal(&self, credentials: &Credentials) -> bool {
        let wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.is_some() && wanted.as_ref() == credentials.chain.first()
    }

    /// Stores what came, beside the session. The answer is what this host trusts then, as it has to be said; none when it
    /// was not stored.
    pub(super) fn take(
        &self,
        credentials: &Credentials,
        roots: wire::Roots,
    ) -> oneshot::Receiver<wire::RootsKept> {
        let (answer, answered) = oneshot::channel();
        let (keeping, agent) = (self.clone(), credentials.agent);
        if roots.renew_within_s > 0 {
            self.renew_within(credentials, roots.renew_within_s);
        }
        tokio::spawn(async move {
            let _alone = keeping.alone().await;
            match keeping.store(agent, &roots.roots_der) {
                // Nobody waits for it when the session is over: the next one begins with what is stored.
                Ok(kept) => drop(answer.send(kept)),
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "did not take the CAs that the collector sent");
                }
            }
        });
        answered
    }

    fn store(
        &self,
        agent: vidette_protocol::id::AgentId,
        ders: &[Vec<u8>],
    ) -> anyhow::Result<wire::RootsKept> {
        let stored = Credentials::load(&self.0.state)?;
        ensure!(stored.agent == agent, "this host has joined anew meanwhile");
        let roots = checked(&stored.roots, ders)?;
        if roots != stored.roots {
            let changed = Credentials { roots, ..stored };
            changed.store(&self.0.state)?;
            tracing::info!(
                roots = changed.roots.len(),
                "this host trusts other CAs of its collector from now on"
            );
            self.look();
            return Ok(kept(&changed.roots));
        }
        Ok(kept(&roots))
    }

    /// At a moment of chance, so that a fleet does not come at once.
    fn renew_within(&self, credentials: &Credentials, within_s: u32) {
        let certificate = credentials.chain.first().cloned();
        let within_s = f64::from(within_s.min(RENEW_WITHIN_S_MAX));
        let wait = Duration::from_secs_f64(within_s * rand::random::<f64>());
        let keeping = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            *keeping.0.wanted.lock().unwrap_or_else(PoisonError::into_inner) = certificate;
            keeping.look();
        });
    }
}

/// What is said of CAs that are stored.
fn kept(roots: &[CertificateDer<'_>]) -> wire::RootsKept {
    let pin = roots.first().and_then(tls::pin_of);
    let host_mark = pin.map_or_else(Vec::new, |pin| host::mark(&pin));
    wire::RootsKept { digests: digests(roots), host_mark }
}

/// SHA-256 of each.
pub(super) fn digests(roots: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    let digest =
        |der: &CertificateDer<'_>| ring::digest::digest(&ring::digest::SHA256, der).as_ref().to_vec();
    roots.iter().map(digest).collect()
}

/// The set that came, when it may take the place of the one that is trusted.
fn checked(
    trusted: &[CertificateDer<'static>],
    ders: &[Vec<u8>],
) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    if ders.is_empty() || ders.len() > ROOTS_MAX {
        bail!("{} CAs are not between 1 and {ROOTS_MAX}", ders.len());
    }
    let mut usable = RootCertStore::empty();
    let mut roots = Vec::new();
    for der in ders {
        ensure!(der.len() <= ROOT_BYTES_MAX, "one of them is longer than {ROOT_BYTES_MAX} bytes");
        let root = CertificateDer::from(der.clone());
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(&root).context("one of them can't be read")?;
        ensure!(rest.is_empty() && parsed.is_ca(), "one of them is not the certificate of a CA");
        usable.add(root.clone()).context("one of them can't be used")?;
        roots.push(root);
    }
    ensure!(
        roots.iter().any(|root| trusted.contains(root)),
        "none of them is one that this host trusts; join it again if its collector was installed anew"
    );
    Ok(roots)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    fn certificate(is_ca: bool) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn only_a_set_of_cas_that_holds_a_known_one_is_taken() {
        let (old, new, leaf) = (certificate(true), certificate(true), certificate(false));
        let trusted = [old.clone()];
        let take = |set: &[&CertificateDer<'static>]| {
            let ders: Vec<Vec<u8>> = set.iter().map(|der| der.to_vec()).collect();
            checked(&trusted, &ders).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(take(&[&new, &old]).unwrap(), [new.clone(), old.clone()]);
        assert_eq!(take(&[&old]).unwrap(), trusted);
        let garbage = CertificateDer::from(b"garbage".to_vec());
        let long = CertificateDer::from([old.as_ref(), &[0; ROOT_BYTES_MAX]].concat());
        let more = CertificateDer::from([new.as_ref(), b"x"].concat());
        let table: [(&[&CertificateDer<'static>], &str); 7] = [
            (&[], "not between"),
            (&[&old; ROOTS_MAX + 1], "not between"),
            (&[&new], "none of them is one that this host trusts"),
            (&[&old, &leaf], "not the certificate of a CA"),
            (&[&old, &garbage], "can't be read"),
            (&[&old, &long], "longer"),
            (&[&old, &more], "not the certificate"),
        ];
        for (set, word) in table {
            let error = take(set).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
