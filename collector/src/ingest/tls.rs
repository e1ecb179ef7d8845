//! How the collector shows who it is, and how agents must. TLS 1.3 only (RFC 8446), no early data, no tickets:
//! a resumed session would skip the agent's certificate.
//!
//! One configuration serves both protocols. A certificate is asked for but may be missing, because a joining host
//! has none; a wrong one always ends the handshake. Which protocol may go on without one is decided after the
//! handshake, in `mod`. An expired certificate passes here for a while, so that a host that was off can renew;
//! the session refuses it. One that is not valid yet passes, with a warning: this collector has issued it, so its own clock has
//! been set back.

use crate::identity::{Identity, RENEW_GRACE_S};
use anyhow::Context;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::sync::{Arc, Once, PoisonError, RwLock};
use std::time::Duration;
use vidette_protocol::{ALPN, ALPN_JOIN, escape};

// Alerts of TLS (RFC 8446 section 6), as QUIC carries them: 0x100 and the alert (RFC 9001 section 4.8).
const ALERT_BAD_CERTIFICATE: u64 = 0x100 + 42;
const ALERT_CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
const ALERT_UNKNOWN_CA: u64 = 0x100 + 48;
const ALERT_ACCESS_DENIED: u64 = 0x100 + 49;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// The collector's half of every handshake.
pub(super) fn server(identity: &Identity) -> anyhow::Result<Arc<QuicServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AgentVerifier::new(identity, provider)?))
        .with_cert_resolver(Arc::new(OwnCertificate(identity.clone())));
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_JOIN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).context("TLS for QUIC could not be set up")?))
}

/// Always the newest certificate: it is renewed while the program runs.
#[derive(Debug)]
struct OwnCertificate(Identity);

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.own())
    }
}

/// Accepts certificates of the own CAs, and expired ones within the grace time. Follows when a CA comes or goes.
#[derive(Debug)]
struct AgentVerifier {
    identity: Identity,
    provider: Arc<CryptoProvider>,
    built: RwLock<Built>,
}

/// What checks the certificates of some issuers.
#[derive(Debug, Clone)]
struct Built {
    issuers: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl AgentVerifier {
    fn new(identity: &Identity, provider: Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let built = Built::new(identity.issuers(), provider.clone())?;
        Ok(Self { identity: identity.clone(), provider, built: RwLock::new(built) })
    }

    fn inner(&self) -> Arc<dyn ClientCertVerifier> {
        let issuers = self.identity.issuers();
        let built = self.built.read().unwrap_or_else(PoisonError::into_inner).clone();
        if built.issuers == issuers {
            return built.verifier;
        }
        match Built::new(issuers, self.provider.clone()) {
            Ok(newer) => {
                let verifier = newer.verifier.clone();
                *self.built.write().unwrap_or_else(PoisonError::into_inner) = newer;
                verifier
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "agents are checked against the CAs of before");
                built.verifier
            }
        }
    }
}

impl Built {
    fn new(issuers: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for issuer in &issuers {
            roots.add(issuer.clone()).context("a CA's certificate can't be used")?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            // An agent has one certificate and needs no hint; these would be those of the start for ever.
            .clear_root_hint_subjects()
            .build()
            .context("the check of agents' certificates could not be set up")?;
        Ok(Self { issuers, verifier })
    }
}

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        // Asked for and not required: who joins has none.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let inner = self.inner();
        match inner.verify_client_cert(end_entity, intermediates, now) {
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => {
                let expired = || Error::InvalidCertificate(CertificateError::Expired);
                let last_s = last_moment_in_grace(end_entity, now).ok_or_else(expired)?;
                let last = UnixTime::since_unix_epoch(Duration::from_secs(last_s));
                inner.verify_client_cert(end_entity, intermediates, last)
            }
            Err(Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => {
                let not_yet = || Error::InvalidCertificate(CertificateError::NotValidYet);
                let first = first_moment(end_entity).ok_or_else(not_yet)?;
                let verified = inner.verify_client_cert(end_entity, intermediates, first)?;
                let ahead_s = first.as_secs().saturating_sub(now.as_secs());
                CLOCK_TOLD.call_once(|| {
                    tracing::warn!(
                        ahead_s,
                        "clock: agents have certificates of a later time; this collector's clock was set back"
                    );
                });
                Ok(verified)
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.inner().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.inner().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner().supported_verify_schemes()
    }
}

/// Once a run: a whole fleet comes after the clock was set.
static CLOCK_TOLD: Once = Once::new();

/// The first second in which a certificate is good.
fn first_moment(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let from_s = u64::try_from(parsed.validity().not_before.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(from_s)))
}

/// The last second in which an expired certificate was good, when that is not too long ago.
fn last_moment_in_grace(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<u64> {
    let expiry_unix_s = Identity::expiry_of(certificate).ok()?;
    let since_s = i64::try_from(now.as_secs()).ok()?.checked_sub(expiry_unix_s)?;
    (0..=RENEW_GRACE_S).contains(&since_s).then(|| u64::try_from(expiry_unix_s).ok())?
}

/// What went wrong with a handshake, for the collector's log.
pub(super) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) => explain_own(u64::from(error.code), &error.reason),
        ConnectionError::ConnectionClosed(close) => {
            explain_theirs(u64::from(close.error_code), &close.reason)
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("it closed the connection: {}", escape::terminal(&close.reason))
        }
        ConnectionError::TimedOut => "it does not answer any more".to_owned(),
        ConnectionError::Reset => "it does not know the connection any more".to_owned(),
        ConnectionError::VersionMismatch => "it speaks another version of QUIC".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        ConnectionError::CidsExhausted => "no connection ids are left".to_owned(),
    }
}

fn explain_own(code: u64, reason: &str) -> String {
    match code {
        ALERT_UNKNOWN_CA => "its certificate comes from an unknown CA; join that host again".to_owned(),
        ALERT_CERTIFICATE_EXPIRED => {
            "its certificate has expired too long ago; join that host again".to_owned()
        }
        ALERT_NO_APPLICATION_PROTOCOL => "it speaks none of this collector's protocols".to_owned(),
        _ => format!("the handshake failed: {}", escape::terminal(reason.as_bytes())),
    }
}

fn explain_theirs(code: u64, reason: &[u8]) -> String {
    match code {
        ALERT_UNKNOWN_CA => "it does not know this collector's CA; it belongs to another collector".to_owned(),
        ALERT_ACCESS_DENIED => "it expects another collector: the pin of its join line is not this CA's".to_owned(),
        ALERT_CERTIFICATE_EXPIRED => {
            "this collector's certificate has expired or is not valid yet by its clock; check that host's clock".to_owned()
        }
        ALERT_BAD_CERTIFICATE => "it does not accept this collector's certificate".to_owned(),
        _ => format!("it ended the handshake: {}", escape::terminal(reason)),
    }
}
