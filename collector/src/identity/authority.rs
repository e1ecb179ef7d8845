//! A certificate authority: one key that signs the collector's and agents' certificates.
//!
//! The first one is made at first start and kept in the `Vault`; later ones come from `authorities`. The key is that of the
//! root itself, or of an intermediate whose root's key is kept elsewhere. Assumes nothing of who asks: `Identity` decides
//! whether a certificate may be issued, this file only knows how. Certificates follow RFC 5280.

use super::Shown;
use super::vault::Vault;
use anyhow::{Context, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use std::time::Duration;
use vidette_protocol::COLLECTOR_NAME;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::ROOT_BYTES_MAX;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// How long a CA's certificate is good. Seconds.
pub(super) const CA_LIFE_S: i64 = 10 * 365 * 86_400;
/// How long the collector's own certificate is good; renewed at half of it. Seconds.
pub(super) const OWN_LIFE_S: i64 = 90 * 86_400;
/// How long an agent's certificate is good; agents renew at half of it. Seconds.
pub const AGENT_LIFE_S: i64 = 86_400;
/// Certificates start this much before they are made, for hosts whose clock is behind. Seconds.
const BACKDATE_S: i64 = 3_600;
/// Random bytes of a serial number (RFC 5280 section 4.1.2.2 allows 20).
const SERIAL_BYTES: usize = 16;
/// An agent's id in its certificate is a URI that starts so.
const AGENT_URN: &str = "urn:vidette:agent:";
/// And so does the certificate's generation.
const GENERATION_URN: &str = "urn:vidette:generation:";
/// CAs below one: none, since its key signs leaves only.
const BELOW_ISSUING: u8 = 0;
/// The first CA's files. `authorities` takes their place when a second one is made.
pub(super) const CA_KEY_FILE: &str = "ca-key.pem";
/// See [`CA_KEY_FILE`].
pub(super) const CA_FILE: &str = "ca.pem";

/// A CA that issues, loaded.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    intermediate: Option<CertificateDer<'static>>,
    cross: Option<CertificateDer<'static>>,
}

/// An agent's certificate, just signed.
pub(super) struct Issued {
    pub(super) serial: Vec<u8>,
    pub(super) der: Vec<u8>,
    pub(super) expires_unix_s: i64,
}

/// The public key of a request whose signature is right.
pub(super) struct RequestedKey(rcgen::PublicKey);

impl RequestedKey {
    /// SHA-256 of the key itself.
    pub(super) fn digest(&self) -> [u8; 32] {
        digest(self.0.der_bytes())
    }
}

impl Authority {
    /// Loads the first CA; makes it when there is none. A missing certificate is made again from the key, so that the
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
                let key = make_key()?;
                vault.write(CA_KEY_FILE, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let damaged = |error: &dyn std::fmt::Display| {
            anyhow::anyhow!("{CA_FILE} is damaged ({error}); delete it, it is made again")
        };
        let root = match certificate {
            Some(pem) => CertificateDer::from_pem_slice(&pem).map_err(|error| damaged(&error))?,
            None => {
                let root = self_signed(&key, BELOW_ISSUING, now_unix_s)?;
                vault.write(CA_FILE, certificate_pem(&root).as_bytes())?;
                root
            }
        };
        x509_parser::parse_x509_certificate(&root).map_err(|error| damaged(&error))?;
        let other =
            format!("{CA_FILE} belongs to another key than {CA_KEY_FILE}; restore both from the same backup");
        Self::new(key, root, None, None).context(other)
    }

    /// A new key with a certificate of its own, and one by which those who know only `before` get to it.
    pub(super) fn make(before: &Self, now_unix_s: i64) -> anyhow::Result<Self> {
        let key = make_key()?;
        let root = self_signed(&key, BELOW_ISSUING, now_unix_s)?;
        let cross = before.cross_sign(&key, now_unix_s)?;
        Self::new(key, root, None, Some(cross))
    }

    /// Puts parts together and checks that they belong together.
    pub(super) fn new(
        key: KeyPair,
        root: CertificateDer<'static>,
        intermediate: Option<CertificateDer<'static>>,
        cross: Option<CertificateDer<'static>>,
    ) -> anyhow::Result<Self> {
        let issuing = intermediate.as_ref().unwrap_or(&root);
        let spki = key.subject_public_key_info();
        let (_, parsed) =
            x509_parser::parse_x509_certificate(issuing).context("the CA's certificate can't be read")?;
        ensure!(parsed.public_key().raw == spki, "the CA's certificate belongs to another key");
        let issuer = Issuer::from_ca_cert_der(issuing, key).context("could not use the CA's certificate")?;
        Ok(Self { issuer, root, intermediate, cross })
    }

    /// What agents trust: its root.
    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The certificate of the key that signs: the intermediate, or the root.
    pub(super) fn issuing(&self) -> &CertificateDer<'static> {
        self.intermediate.as_ref().unwrap_or(&self.root)
    }

    /// Between root and leaf, when the root's key is elsewhere.
    pub(super) fn intermediate(&self) -> Option<&CertificateDer<'static>> {
        self.intermediate.as_ref()
    }

    /// This CA's key, signed by the CA before it.
    pub(super) fn cross(&self) -> Option<&CertificateDer<'static>> {
        self.cross.as_ref()
    }

    /// The key, to be written down. A secret.
    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// What stands between a leaf of this CA and its root, and the root: the root too, because a join line names its key.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.intermediate.iter().chain([&self.root]).cloned().collect()
    }

    /// A certificate of `key`, by which whoever trusts this CA's root trusts what the key signs. Its name is the one that
    /// the key's own certificate has.
    pub(super) fn cross_sign(
        &self,
        key: &impl PublicKeyData,
        now_unix_s: i64,
    ) -> anyhow::Result<CertificateDer<'static>> {
        signed_ca(key, &self.issuer, BELOW_ISSUING, now_unix_s)
    }

    /// A new certificate and key for the collector, as text. A secret.
    pub(super) fn make_own(&self, now_unix_s: i64) -> anyhow::Result<String> {
        let key = make_key().context("could not make the collector's key")?;
        let mut params = base_params(COLLECTOR_NAME, now_unix_s, OWN_LIFE_S)?;
        params.subject_alt_names = vec![SanType::DnsName(COLLECTOR_NAME.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf =
            params.signed_by(&key, &self.issuer).context("could not sign the collector's certificate")?;
        Ok(format!("{}{}", leaf.pem(), key.serialize_pem()))
    }

    /// Whether an agent that trusts `root` and is shown `chain` would accept a certificate that this CA signs now.
    ///
    /// # Errors
    /// Why it would not.
    pub(super) fn is_accepted_by(
        &self,
        root: &CertificateDer<'static>,
        chain: &[CertificateDer<'static>],
        now_unix_s: i64,
    ) -> anyhow::Result<()> {
        let pem = self.make_own(now_unix_s)?;
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).context("the root can't be used")?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now_unix_s).unwrap_or(0)));
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(&leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, chain, now, algorithms)
            .context("a certificate of this CA would not be accepted")
    }

    /// Signs an agent's key. Nothing but the key comes from the agent.
    pub(super) fn issue(
        &self,
        agent: AgentId,
        generation: u64,
        key: &RequestedKey,
        now_unix_s: i64,
    ) -> anyhow::Result<Issued> {
        let id = agent.to_string();
        let mut params = base_params(&id, now_unix_s, AGENT_LIFE_S)?;
        params.subject_alt_names = vec![
            SanType::URI(format!("{AGENT_URN}{id}").as_str().try_into()?),
            SanType::URI(format!("{GENERATION_URN}{generation}").as_str().try_into()?),
        ];
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
        let pin = pin_of(&self.root).unwrap_or_default();
        f.debug_struct("Authority")
            .field("pin", &data_encoding::HEXLOWER.encode(&pin))
            .finish_non_exhaustive()
    }
}

/// A new key for a CA or for the collector.
pub(super) fn make_key() -> anyhow::Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("could not make a key")
}

/// A root: a key's certificate by itself. `below` CAs may follow under it.
pub(super) fn self_signed(
    key: &KeyPair,
    below: u8,
    now_unix_s: i64,
) -> anyhow::Result<CertificateDer<'static>> {
    let made =
        ca_params(key, below, now_unix_s)?.self_signed(key).context("could not make the CA's certificate")?;
    Ok(made.der().clone())
}

/// A CA's certificate by another CA.
pub(super) fn signed_ca(
    key: &impl PublicKeyData,
    by: &Issuer<'_, KeyPair>,
    below: u8,
    now_unix_s: i64,
) -> anyhow::Result<CertificateDer<'static>> {
    let mut params = ca_params(key, below, now_unix_s)?;
    params.use_authority_key_identifier_extension = true;
    let made = params.signed_by(key, by).context("could not sign the CA's certificate")?;
    Ok(made.der().clone())
}

/// A request (PKCS#10) for the certificate of a CA with this key, in PEM.
pub(super) fn ca_request(key: &KeyPair) -> anyhow::Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(key);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let request = params.serialize_request(key).context("could not make a certificate request")?;
    request.pem().context("could not make a certificate request")
}

/// The key of a request, when its signature is right and the key is one that a CA may have here.
pub(super) fn ca_request_key(pem: &str) -> anyhow::Result<rcgen::PublicKey> {
    let request = CertificateSigningRequestParams::from_pem(pem)
        .context("this is no certificate request, or its signature is wrong")?;
    ensure!(
        request.public_key.algorithm() == &PKCS_ECDSA_P256_SHA256,
        "the key of a CA must be P-256, as `vidette ca prepare --request` makes it"
    );
    Ok(request.public_key)
}

/// Checks that this may be trusted as a root by agents: it is the certificate of a CA, and not too long.
pub(super) fn check_root(root: &CertificateDer<'_>) -> anyhow::Result<()> {
    ensure!(root.len() <= ROOT_BYTES_MAX, "the root is longer than {ROOT_BYTES_MAX} bytes");
    let (_, parsed) = x509_parser::parse_x509_certificate(root).context("the root can't be read")?;
    ensure!(parsed.is_ca(), "the root is not the certificate of a CA");
    Ok(())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
pub(super) fn pin_of(certificate: &CertificateDer<'_>) -> anyhow::Result<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("not a certificate")?;
    Ok(digest(parsed.public_key().raw))
}

/// A certificate's own name and its issuer's, as they are encoded.
pub(super) fn names_of(certificate: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("not a certificate")?;
    Ok((parsed.subject().as_raw().to_vec(), parsed.issuer().as_raw().to_vec()))
}

/// Textual encoding (RFC 7468).
pub(super) fn certificate_pem(der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text + "-----END CERTIFICATE-----\n"
}

/// Reads a certificate request (PKCS#10, RFC 2986) and checks its signature. Every name in it is ignored.
pub(super) fn requested_key(csr_der: &[u8]) -> Result<RequestedKey, &'static str> {
    let damaged = "the certificate request is damaged or its signature is wrong";
    // What follows the request is covered by no signature, and nobody of ours sends it.
    let whole = X509CertificationRequest::from_der(csr_der).is_ok_and(|(rest, _)| rest.is_empty());
    if !whole {
        return Err(damaged);
    }
    let request = CertificateSigningRequestParams::from_der(&csr_der.into()).map_err(|_| damaged)?;
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

/// As an agent presents it. The generation is absent in certificates of version 0.1.
pub(super) fn shown(certificate_der: &[u8]) -> anyhow::Result<Shown> {
    let agent = agent_of(certificate_der)?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate_der).context("not a certificate")?;
    let names = certificate.subject_alternative_name().context("its names can't be read")?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names);
    let generation = uris.find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(GENERATION_URN)?.parse().ok(),
        _ => None, // as above
    });
    let key = digest(&certificate.public_key().subject_public_key.data);
    let expires_unix_s = certificate.validity().not_after.timestamp();
    Ok(Shown { agent, serial: certificate.raw_serial().to_vec(), generation, key, expires_unix_s })
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

/// The key of a CA, from PKCS#8 in PEM.
pub(super) fn read_key(pem: &[u8]) -> anyhow::Result<KeyPair> {
    let text = std::str::from_utf8(pem).context("not a PEM file")?;
    Ok(KeyPair::from_pkcs8_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256)?)
}

/// The name holds a part of the pin: two CAs of one name can't be told apart by a verifier, which then speaks of a
/// wrong signature instead of an unknown CA.
fn ca_name(key: &impl PublicKeyData) -> rcgen::DistinguishedName {
    let pin = digest(&key.subject_public_key_info());
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, format!("Vidette CA {}", data_encoding::HEXLOWER.encode(&pin[..8])));
    name
}

fn ca_params(key: &impl PublicKeyData, below: u8, now_unix_s: i64) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(key);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    set_life(&mut params, now_unix_s, CA_LIFE_S);
    Ok(params)
}

fn base_params(name: &str, now_unix_s: i64, life_s: i64) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    set_life(&mut params, now_unix_s, life_s);
    Ok(params)
}

fn serial() -> anyhow::Result<SerialNumber> {
    let mut serial = [0_u8; SERIAL_BYTES];
    getrandom(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 0x40; // positive, and never shortened by leading zeros
    Ok(SerialNumber::from_slice(&serial))
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
        let pin = |now| pin_of(Authority::load_or_make(&vault, now).unwrap().root()).unwrap();
        let first = pin(NOW);
        assert_eq!(pin(NOW + 1), first);
        std::fs::remove_file(folder.path().join(CA_FILE)).unwrap();
        assert_eq!(pin(NOW), first);
        std::fs::remove_file(folder.path().join(CA_KEY_FILE)).unwrap();
        assert!(
            Authority::load_or_make(&vault, NOW).unwrap_err().to_string().contains("ca-key.pem is missing")
        );
        std::fs::write(folder.path().join(CA_KEY_FILE), "garbage").unwrap();
        assert!(Authority::load_or_make(&vault, NOW).unwrap_err().to_string().contains("backup"));
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(&Vault::open(folder.path()).unwrap(), NOW).unwrap();
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let requested = requested_key(&csr(&key, "another.agent")).unwrap();
            let issued = authority.issue(AgentId([3; 16]), 7, &requested, NOW).unwrap();
            assert_eq!(agent_of(&issued.der).unwrap(), AgentId([3; 16]));
            let shown = shown(&issued.der).unwrap();
            assert_eq!((shown.serial, shown.generation), (issued.serial, Some(7)));
            assert_eq!((shown.key, shown.expires_unix_s), (requested.digest(), issued.expires_unix_s));
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
        let good = csr(&KeyPair::generate().unwrap(), "x");
        assert!(requested_key(&good).is_ok());
        assert!(requested_key(&[good.as_slice(), b"x"].concat()).is_err(), "something follows the request");
    }

    #[test]
    fn a_certificate_that_names_no_agent_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(&Vault::open(folder.path()).unwrap(), NOW).unwrap();
        assert!(agent_of(authority.root()).is_err());
        assert!(agent_of(b"garbage").is_err());
    }
}
