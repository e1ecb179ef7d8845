//! How the agent knows the collector, and shows who it is itself. TLS 1.3 only (RFC 8446), no early data, no
//! resumption: a resumed session would skip the certificates.
//!
//! Two configurations: `session` trusts the stored roots and presents the agent's certificate, `joining`
//! knows nothing but the pin of a join line. `quic` dials with them. `explain` turns what went wrong into a
//! sentence with a next step.

use super::credentials::Credentials;
use anyhow::Context;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;
use vidette_protocol::join::Address;
use vidette_protocol::{ALPN_JOIN, escape};

// Alerts of TLS (RFC 8446 section 6), as QUIC carries them: 0x100 and the alert (RFC 9001 section 4.8).
const ALERT_BAD_CERTIFICATE: u64 = 0x100 + 42;
const ALERT_CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
const ALERT_UNKNOWN_CA: u64 = 0x100 + 48;
const ALERT_ACCESS_DENIED: u64 = 0x100 + 49;
const ALERT_DECRYPT_ERROR: u64 = 0x100 + 51;
const ALERT_CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Trusts the stored roots, presents the stored certificate, speaks `alpn`.
pub(super) fn session(credentials: &Credentials, alpn: &[u8]) -> anyhow::Result<Arc<QuicClientConfig>> {
    let mut roots = RootCertStore::empty();
    for root in &credentials.roots {
        roots.add(root.clone()).context("a stored root certificate can't be used; join this host again")?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .context("the stored key and certificate can't be used; join this host again")?;
    finished(config, alpn)
}

/// Trusts only a chain that holds a CA with this pin, and presents nothing.
pub(super) fn joining(pin: [u8; 32]) -> anyhow::Result<Arc<QuicClientConfig>> {
    let verifier = PinVerifier { pin, provider: provider() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finished(config, ALPN_JOIN)
}

fn finished(mut config: ClientConfig, alpn: &[u8]) -> anyhow::Result<Arc<QuicClientConfig>> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(QuicClientConfig::try_from(config).context("TLS for QUIC could not be set up")?))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
pub(super) fn pin_of(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw).as_ref().try_into().ok()
}

/// Accepts a collector whose certificate is signed by the CA with the pinned key, and carries the name.
#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|certificate| pin_of(certificate) == Some(self.pin));
        // Access denied, and nothing else here, means the wrong pin: see `explain`.
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, now, algorithms)?;
        verify_server_name(&leaf, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Never asked: TLS 1.2 is not offered.
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What went wrong with a connection, who said so, and what to do.
pub(super) fn explain(error: &ConnectionError, collector: &Address) -> String {
    match error {
        ConnectionError::TransportError(error) => {
            explain_own(u64::from(error.code), &error.reason, collector)
        }
        ConnectionError::ConnectionClosed(close) => {
            explain_theirs(u64::from(close.error_code), &close.reason, collector)
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("the collector at {collector} closed the connection: {}", escape::terminal(&close.reason))
        }
        ConnectionError::TimedOut => {
            format!("the collector at {collector} does not answer any more; {}", reach(collector))
        }
        ConnectionError::Reset => format!("the collector at {collector} was restarted"),
        ConnectionError::VersionMismatch => {
            format!("what answers at {collector} speaks another version of QUIC")
        }
        ConnectionError::LocallyClosed => "the connection was closed here".to_owned(),
        ConnectionError::CidsExhausted => "no connection ids are left".to_owned(),
    }
}

/// What to look at when nothing answers.
pub(super) fn reach(collector: &Address) -> String {
    format!("check that `vidette serve` runs there and that UDP port {} is open on the way", collector.port)
}

fn explain_own(code: u64, reason: &str, collector: &Address) -> String {
    match code {
        ALERT_ACCESS_DENIED => format!(
            "the collector at {collector} is not the one of the join line: its CA has another key than the pinned \
             one; copy the line again from the right collector, and ask who answers at that address"
        ),
        ALERT_UNKNOWN_CA => format!(
            "the certificate of the collector at {collector} comes from an unknown CA; if the collector was \
             installed anew, join this host again with `vidette-agent join --again`"
        ),
        ALERT_CERTIFICATE_EXPIRED => format!(
            "the certificate of the collector at {collector} has expired or is not valid yet by this host's clock; \
             check the clocks of both hosts"
        ),
        ALERT_BAD_CERTIFICATE => {
            format!("what answers at {collector} has a certificate that is no collector's")
        }
        _ => format!(
            "what answers at {collector} is no Vidette collector: {}",
            escape::terminal(reason.as_bytes())
        ),
    }
}

fn explain_theirs(code: u64, reason: &[u8], collector: &Address) -> String {
    let again = "join this host again with `vidette-agent join --again`";
    match code {
        ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR => {
            format!(
                "this host's certificate comes from a CA that is unknown to the collector at {collector}; {again}"
            )
        }
        ALERT_CERTIFICATE_EXPIRED => {
            format!("this host's certificate has expired for the collector at {collector}; {again}")
        }
        ALERT_CERTIFICATE_REQUIRED => format!("the collector at {collector} asks for a certificate; {again}"),
        ALERT_NO_APPLICATION_PROTOCOL => {
            format!(
                "the collector at {collector} speaks none of this agent's protocols; update the older of the two"
            )
        }
        _ => format!("the collector at {collector} refused the connection: {}", escape::terminal(reason)),
    }
}
