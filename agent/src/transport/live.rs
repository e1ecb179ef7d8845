//! The way from the keeper of the identity to the session that is up: a renewal goes over it when it can.
//!
//! `connection` opens it when the collector's Welcome says that it renews, with the certificate that the session was made
//! with; a renewal of any other certificate goes its own way. Nobody waits for a session here: whoever gets no answer asks
//! the collector on a connection of its own, with the same key.

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot, watch};
use vidette_protocol::wire;

/// Renewals that wait for the session: there is one who asks, and it waits for the answer.
const ASKS_MAX: usize = 1;

/// One request. Dropping it says that there will be no answer.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) renew: wire::Renew,
    pub(super) answer: oneshot::Sender<Result<wire::Joined, wire::JoinRefused>>,
}

/// A session that takes requests.
#[derive(Debug, Clone)]
pub(super) struct Live {
    certificate: CertificateDer<'static>,
    asks: mpsc::Sender<Ask>,
}

/// The session's end, and where it is made known.
#[derive(Debug)]
pub(super) struct Door {
    asks: mpsc::Receiver<Ask>,
    known: watch::Sender<Option<Live>>,
}

impl Live {
    /// For the renewal of this certificate.
    pub(super) fn for_certificate(&self, leaf: &CertificateDer<'_>) -> Option<mpsc::Sender<Ask>> {
        (self.certificate == *leaf).then(|| self.asks.clone())
    }
}

impl Door {
    /// A session with this certificate takes requests from now on, until it is dropped.
    pub(super) fn open(certificate: CertificateDer<'static>, known: &watch::Sender<Option<Live>>) -> Self {
        let (sender, asks) = mpsc::channel(ASKS_MAX);
        known.send_replace(Some(Live { certificate, asks: sender }));
        Self { asks, known: known.clone() }
    }

    /// The next request. Safe to drop while it waits.
    pub(super) async fn next(&mut self) -> Option<Ask> {
        self.asks.recv().await
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.known.send_replace(None);
    }
}
