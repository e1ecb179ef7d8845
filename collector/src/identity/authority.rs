//! The collector's certificate authority: one key that signs the collector's and every agent's certificate.
//!
//! Made at first start and kept in the `Vault`. Assumes nothing of who asks: `Identity` decides whether a
//! certificate may be issued, this file only knows how. Certificates follow RFC 5280.

use super::vault::Vault;
use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::COLLECTOR_NAME;
use vidette_protocol::id::AgentId;
use x509_parser::extensions::GeneralName;

/// How long the CA's certificate is good. Seconds.
const CA_LIFE_S: i64 = 10 * 365 * 86_400;
/// How long the collector's own certificate is good; renewed at half of it. Seconds.
const OWN_LIFE_S: i64 = 90 * 86_400;
/// How long an agent's certificate is good; agents renew at half of it. Seconds.
pub const AGENT_LIFE_S: i64 = 86_400;
/// Certificates start this much before they are made, for hosts whose clock is behind. Seconds.
const BACKDATE_S: i64 = 3_600;
/// Random bytes of a serial number (RFC 5280 section 4.1.2.2 allows 20).
const SERIAL_BYTES: usize = 16;
/// An agent's id in its certificate is a URI that starts so.
const AGENT_URN: &str = "urn:vidette:agent:";

const CA_KEY_FILE: &str = "ca-key.pem";
const CA_FILE: &str = "ca.pem";
const OWN_FILE: &str = "collector.pem";

/// The CA, loaded.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pin: [u8; 32],
}

/// An agent's certificate, just signed.
pub(super) struct Issued {
    pub(super) serial: Vec<u8>,
    pub(super) der: Vec<u8>,
    pub(super) expires_unix_s: i64,
}

/// The public key of a request whose signature is right.
pub(super) struct RequestedKey(rcgen::PublicKey);

impl Authority {
    /// Loads the CA; makes it when there is none. A missing certificate is made again from the key, so that the
    /// pin stays; a missing key under an existing certificate is an error, because every agent trusts that key.
    pub(super) fn load_or_make(vault: &Vault, now_unix_s: i64) -> anyhow::Result<Self> {
        let advice = "restore the identity folder from a backup, or move it away and join every host again";
        let certificate = vault.read(CA_FILE)?;
        let key = match vault.read(CA_KEY_FILE)? {
            Some(pem) => read_key(&pem).with_context(|| format!("{CA_KEY_FILE} is damaged; {advice}"))?,
            None if certificate.is_some() => {
                bail!("{CA_FILE} is there but {CA_KEY_FILE} is missing; {advice}")
            }
            None => {
                let key =
                    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("could not make the CA's key")?;
                vault.write(CA_KEY_FILE, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let certificate = match certificate {
            Some(pem) => CertificateDer::from_pem_slice(&pem).map_err(|error| {
                anyhow::anyhow!("{CA_FILE} is damaged ({error}); delete it, it is made again")
            })?,
            None => {
                let made = ca_params(&key, now_unix_s)
                    .self_signed(&key)
                    .context("could not make the CA's certificate")?;
                vault.write(CA_FILE, made.pem().as_bytes())?;
                made.der().clone()
            }
        };
        Self::new(key, certificate)
    }

    fn new(key: KeyPair, certificate: CertificateDer<'static>) -> anyhow::Result<Self> {
        let spki = key.subject_public_key_info();
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| {
            anyhow::anyhow!("{CA_FILE} is damaged ({error}); delete it, it is made again")
        })?;
        if parsed.public_key().raw != spki {
            bail!("{CA_FILE} belongs to another key than {CA_KEY_FILE}; restore both from the same backup");
        }
        let pin = digest(&spki);
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).context("could not use the CA's certificate")?;
        Ok(Self { issuer, certificate, pin })
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo.
    pub(super) fn pin(&self) -> [u8; 32] {
        self.pin
    }

    /// The CA's certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The collector's own certificate and key: the stored one while it has more than half its life before it,
    /// else a new one.
    pub(super) fn own(
        &self,
        vault: &Vault,
        now_unix_s: i64,
    ) -> anyhow::Result<Arc<rustls::sign::CertifiedKey>> {
        let stored = vault.read(OWN_FILE)?;
        if let Some(usable) = stored.and_then(|pem| self.usable(&pem, now_unix_s)) {
            return Ok(usable);
        }
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("could not make the collector's key")?;
        let mut params = base_params(COLLECTOR_NAME, now_unix_s, OWN_LIFE_S)?;
        params.subject_alt_names = vec![SanType::DnsName(COLLECTOR_NAME.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf =
            params.signed_by(&key, &self.issuer).context("could not sign the collector's certificate")?;
        let pem = format!("{}{}", leaf.pem(), key.serialize_pem());
        vault.write(OWN_FILE, pem.as_bytes())?;
        self.usable(pem.as_bytes(), now_unix_s).context("the collector's new certificate can't be used")
    }

    fn usable(&self, pem: &[u8], now_unix_s: i64) -> Option<Arc<rustls::sign::CertifiedKey>> {
        let leaf = CertificateDer::from_pem_slice(pem).ok()?;
        let key = PrivateKeyDer::from_pem_slice(pem).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).ok()?;
        let (_, ca) = x509_parser::parse_x509_certificate(&self.certificate).ok()?;
        parsed.verify_signature(Some(ca.public_key())).ok()?;
        let validity = parsed.validity();
        let half = validity.not_after.timestamp() - OWN_LIFE_S / 2;
        if now_unix_s < validity.not_before.timestamp() || now_unix_s >= half {
            return None;
        }
        let signing = rustls::crypto::ring::sign::any_ecdsa_type(&key).ok()?;
        let certified = rustls::sign::CertifiedKey::new(vec![leaf, self.certificate.clone()], signing);
        certified.keys_match().ok()?;
        Some(Arc::new(certified))
    }

    /// Signs an agent's key. Nothing but the key comes from the agent.
    pub(super) fn issue(
        &self,
        agent: AgentId,
        key: &RequestedKey,
        now_unix_s: i64,
    ) -> anyhow::Result<Issued> {
        let id = agent.to_string();
        let mut params = base_params(&id, now_unix_s, AGENT_LIFE_S)?;
        params.subject_alt_names = vec![SanType::URI(format!("{AGENT_URN}{id}").as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let leaf =
            params.signed_by(&key.0, &self.issuer).context("could not sign the agent's certificate")?;
        Ok(Issued {
            serial,
            der: leaf.der().to_vec(),
            expires_unix_s: now_unix_s.saturating_add(AGENT_LIFE_S),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("pin", &data_encoding::HEXLOWER.encode(&self.pin))
            .finish_non_exhaustive()
    }
}

/// Reads a certificate request (PKCS#10, RFC 2986) and checks its signature. Every name in it is ignored.
pub(super) fn requested_key(csr_der: &[u8]) -> Result<RequestedKey, &'static str> {
    let request = CertificateSigningRequestParams::from_der(&csr_der.into())
        .map_err(|_| "the certificate request is damaged or its signature is wrong")?;
    let key = request.public_key;
    // An uncompressed point on P-256, or an Ed25519 key. A P-384 key may sign with SHA-256 too.
    let shape = (key.algorithm() == &PKCS_ECDSA_P256_SHA256 && key.der_bytes().len() == 65)
        || (key.algorithm() == &PKCS_ED25519 && key.der_bytes().len() == 32);
    if shape { Ok(RequestedKey(key)) } else { Err("the key must be P-256 or Ed25519") }
}

/// Whose certificate this is. The chain must have been verified before.
pub(super) fn agent_of(certificate_der: &[u8]) -> anyhow::Result<AgentId> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate_der).context("not a certificate")?;
    let names = certificate.subject_alternative_name().context("its names can't be read")?;
    let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(AGENT_URN),
        _ => None, // an agent's certificate has no other name
    });
    let ids: Vec<&str> = uris.collect();
    let [id] = ids[..] else { bail!("it names {} agents, not one", ids.len()) };
    Ok(id.parse()?)
}

/// When a certificate ends, Unix seconds.
pub(super) fn expiry_of(certificate_der: &[u8]) -> anyhow::Result<i64> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate_der).context("not a certificate")?;
    Ok(certificate.validity().not_after.timestamp())
}

pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}

fn read_key(pem: &[u8]) -> anyhow::Result<KeyPair> {
    let text = std::str::from_utf8(pem).context("not a PEM file")?;
    Ok(KeyPair::from_pkcs8_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256)?)
}

/// The name holds a part of the pin: two CAs of one name can't be told apart by a verifier, which then speaks of a
/// wrong signature instead of an unknown CA.
fn ca_params(key: &KeyPair, now_unix_s: i64) -> CertificateParams {
    let pin = digest(&key.subject_public_key_info());
    let name = format!("Vidette CA {}", data_encoding::HEXLOWER.encode(&pin[..8]));
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now_unix_s, CA_LIFE_S);
    params
}

fn base_params(name: &str, now_unix_s: i64, life_s: i64) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0_u8; SERIAL_BYTES];
    getrandom(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 0x40; // positive, and never shortened by leading zeros
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    set_life(&mut params, now_unix_s, life_s);
    Ok(params)
}

fn set_life(params: &mut CertificateParams, now_unix_s: i64, life_s: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let after = |unix_s: i64| epoch + Duration::from_secs(u64::try_from(unix_s).unwrap_or(0));
    params.not_before = after(now_unix_s.saturating_sub(BACKDATE_S));
    params.not_after = after(now_unix_s.saturating_add(life_s));
}

/// Fills `bytes` from the system's random source.
pub(super) fn getrandom(bytes: &mut [u8]) -> anyhow::Result<()> {
    use ring::rand::SecureRandom;
    ring::rand::SystemRandom::new().fill(bytes).map_err(|_| {
        anyhow::anyhow!("the system gave no random numbers; check /dev/urandom and getrandom(2)")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn csr(key: &KeyPair, name: &str) -> Vec<u8> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn the_ca_is_made_once_and_its_pin_survives_the_loss_of_its_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let pin = Authority::load_or_make(&vault, NOW).unwrap().pin();
        assert_eq!(Authority::load_or_make(&vault, NOW + 1).unwrap().pin(), pin);
        std::fs::remove_file(folder.path().join(CA_FILE)).unwrap();
        assert_eq!(Authority::load_or_make(&vault, NOW).unwrap().pin(), pin);
        std::fs::remove_file(folder.path().join(CA_KEY_FILE)).unwrap();
        assert!(
            Authority::load_or_make(&vault, NOW).unwrap_err().to_string().contains("ca-key.pem is missing")
        );
        std::fs::write(folder.path().join(CA_KEY_FILE), "garbage").unwrap();
        assert!(Authority::load_or_make(&vault, NOW).unwrap_err().to_string().contains("backup"));
    }

    #[test]
    fn the_own_certificate_is_kept_to_half_life_and_made_again_when_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let authority = Authority::load_or_make(&vault, NOW).unwrap();
        let first = authority.own(&vault, NOW).unwrap();
        assert_eq!(authority.own(&vault, NOW + OWN_LIFE_S / 2 - 1).unwrap().cert, first.cert);
        let second = authority.own(&vault, NOW + OWN_LIFE_S / 2).unwrap();
        assert_ne!(second.cert, first.cert);
        vault.write(OWN_FILE, b"garbage").unwrap();
        assert_ne!(authority.own(&vault, NOW).unwrap().cert, second.cert);
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(&Vault::open(folder.path()).unwrap(), NOW).unwrap();
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let requested = requested_key(&csr(&key, "another.agent")).unwrap();
            let issued = authority.issue(AgentId([3; 16]), &requested, NOW).unwrap();
            assert_eq!(agent_of(&issued.der).unwrap(), AgentId([3; 16]));
            assert_eq!(expiry_of(&issued.der).unwrap(), NOW + AGENT_LIFE_S);
            assert!(!issued.der.windows(13).any(|window| window == b"another.agent"));
        }
    }

    #[test]
    fn other_keys_and_broken_signatures_are_refused() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(requested_key(&csr(&other, "x")).is_err());
        let mut broken = csr(&KeyPair::generate().unwrap(), "x");
        let last = broken.len() - 1;
        broken[last] ^= 1;
        assert!(requested_key(&broken).is_err());
        assert!(requested_key(b"").is_err());
    }

    #[test]
    fn a_certificate_that_names_no_agent_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(&Vault::open(folder.path()).unwrap(), NOW).unwrap();
        assert!(agent_of(authority.certificate()).is_err());
        assert!(agent_of(b"garbage").is_err());
    }
}
