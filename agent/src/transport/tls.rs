//! How the agent knows the collector, and shows who it is itself. TLS 1.3 only (RFC 8446), no early data, no
//! resumption: a resumed session would skip the certificates.
//!
//! Two configurations: `session` trusts the stored roots and presents the agent's certificate, `joining`
//! knows nothing but the pin of a join line. `quic` dials with them. `explain` turns what went wrong into a
//! sentence with a next step.
//!
//! This host's clock alone judges nobody: a certificate that is out of its time by it is verified at a moment within its
//! time, taken, and noted in `OutOfTime`. Else a host whose clock is wrong could not be told so, and a collector that could
//! not renew its certificate would lose its fleet. `clock` makes an alarm of it.

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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vidette_protocol::join::Address;
use vidette_protocol::wire::RefuseCode;
use vidette_protocol::{ALPN_JOIN, escape};

// Alerts of TLS (RFC 8446 section 6), as QUIC carries them: 0x100 and the alert (RFC 9001 section 4.8).
const ALERT_BAD_CERTIFICATE: u64 = 0x100 + 42;
const ALERT_CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
const ALERT_UNKNOWN_CA: u64 = 0x100 + 48;
const ALERT_ACCESS_DENIED: u64 = 0x100 + 49;
const ALERT_DECRYPT_ERROR: u64 = 0x100 + 51;
const ALERT_CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Set during a handshake: the collector's certificate is out of its time by this host's clock.
pub(super) type OutOfTime = Arc<AtomicBool>;

/// Trusts the stored roots, presents the stored certificate, speaks `alpn`.
pub(super) fn session(
    credentials: &Credentials,
    alpn: &[u8],
    out_of_time: &OutOfTime,
) -> anyhow::Result<Arc<QuicClientConfig>> {
    let mut roots = RootCertStore::empty();
    for root in &credentials.roots {
        roots.add(root.clone()).context("a stored root certificate can't be used; join this host again")?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(CollectorVerifier {
            trust: Trust::Roots(Arc::new(roots)),
            out_of_time: out_of_time.clone(),
            provider: provider(),
        }))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .context("the stored key and certificate can't be used; join this host again")?;
    finished(config, alpn)
}

/// Trusts only a chain that holds a CA with this pin, and presents nothing.
pub(super) fn joining(pin: [u8; 32]) -> anyhow::Result<Arc<QuicClientConfig>> {
    let verifier =
        CollectorVerifier { trust: Trust::Pin(pin), out_of_time: OutOfTime::default(), provider: provider() };
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

/// Whom a certificate must come from.
#[derive(Debug)]
enum Trust {
    /// One of these.
    Roots(Arc<RootCertStore>),
    /// The CA with this key.
    Pin([u8; 32]),
}

/// Accepts a collector whose certificate comes from whom it must and carries the name, whatever this host's clock says.
#[derive(Debug)]
struct CollectorVerifier {
    trust: Trust,
    out_of_time: OutOfTime,
    provider: Arc<CryptoProvider>,
}

impl CollectorVerifier {
    fn roots(&self, intermediates: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let pin = match &self.trust {
            Trust::Roots(roots) => return Ok(roots.clone()),
            Trust::Pin(pin) => pin,
        };
        let pinned = intermediates.iter().find(|certificate| pin_of(certificate) == Some(*pin));
        // Access denied, and nothing else here, means the wrong pin: see `explain`.
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for CollectorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verify =
            |at| verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, at, algorithms);
        match verify(now) {
            Err(error) if is_of_time(&error) => {
                verify(common_moment(end_entity, intermediates).ok_or(error)?)?;
                self.out_of_time.store(true, Ordering::Relaxed);
            }
            other => other?,
        }
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

fn is_of_time(error: &Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
    )
}

/// The first moment at which all certificates of a chain are good.
fn common_moment(leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let (mut from_s, mut until_s) = (0, i64::MAX);
    for certificate in [leaf].into_iter().chain(others) {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        from_s = parsed.validity().not_before.timestamp().max(from_s);
        until_s = parsed.validity().not_after.timestamp().min(until_s);
    }
    let from_s = u64::try_from(from_s).ok().filter(|_| from_s <= until_s)?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(from_s)))
}

/// The collector does not take this host's certificate, in the word that it has for that.
pub(super) fn refusal(error: &ConnectionError) -> Option<RefuseCode> {
    let ConnectionError::ConnectionClosed(close) = error else { return None };
    match u64::from(close.error_code) {
        ALERT_CERTIFICATE_EXPIRED => Some(RefuseCode::Expired),
        ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR => Some(RefuseCode::Unknown),
        _ => None,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use vidette_protocol::COLLECTOR_NAME;

    /// A root, and a collector's certificate of it that is good from one year to another.
    fn chain(from: i32, until: i32) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::from_ca_cert_der(&root, key).unwrap();
        let mut params = CertificateParams::new(vec![COLLECTOR_NAME.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        (root, leaf.der().clone())
    }

    /// Whether a certificate is taken at a moment, and whether it was out of its time.
    fn judge(
        trusted: &CertificateDer<'static>,
        leaf: &CertificateDer<'static>,
        at: u64,
        name: &str,
    ) -> (bool, bool) {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let pin = pin_of(trusted).unwrap();
        let mut results = [Trust::Roots(Arc::new(roots)), Trust::Pin(pin)].map(|trust| {
            let verifier =
                CollectorVerifier { trust, out_of_time: OutOfTime::default(), provider: provider() };
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
            let others = std::slice::from_ref(trusted);
            let taken = verifier.verify_server_cert(leaf, others, &name, &[], now).is_ok();
            (taken, verifier.out_of_time.load(Ordering::Relaxed))
        });
        results.sort_unstable();
        assert_eq!(results[0], results[1], "a pin and a root judge alike");
        results[0]
    }

    #[test]
    fn no_clock_locks_a_host_out_and_nothing_else_is_forgiven() {
        let (root, leaf) = chain(2025, 2027);
        let year_s = 31_557_600_i64;
        let in_2026 = 56 * year_s + year_s / 2;
        for (years, out_of_time) in [(0_i64, false), (-10, true), (10, true), (-56, true), (200, true)] {
            let at = u64::try_from(in_2026 + years * year_s).unwrap();
            assert_eq!(judge(&root, &leaf, at, COLLECTOR_NAME), (true, out_of_time), "{years} years");
            assert!(!judge(&root, &leaf, at, "another.name").0, "{years} years, another name");
            let (other, _) = chain(2025, 2027);
            assert!(!judge(&other, &leaf, at, COLLECTOR_NAME).0, "{years} years, another CA");
        }
    }
}
