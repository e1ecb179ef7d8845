//! The target `csr`: bytes as a certificate request (PKCS#10, RFC 2986), through the collector's check of it.
//!
//! Promises: a request is taken only when its signature is right, so that another one made of it by changing its signature
//! is refused; nobody who is not registered gets anything for it.

use super::inside::{Judged, ensure, error_mark, observe};
use super::join::memory_folder;
use super::{Observed, Target};
use rand::Rng as _;
use rand::rngs::StdRng;
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use std::net::Ipv4Addr;
use vidette_collector::identity::{Identity, NotRenewed, Shown, unix_s_now};
use vidette_protocol::id::AgentId;
use vidette_protocol::wire::{JoinRefusal, Renew};

/// Tags of DER, lengths without an end, names of algorithms.
const WORDS: &[&[u8]] = &[
    b"\x30\x80",
    b"\x30\x82\xff\xff",
    b"\x30\x84\x7f\xff\xff\xff",
    b"\x03\x01\x00",
    b"\x05\x00",
    b"\xa0\x00",
    b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
    b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
    b"\x06\x03\x2b\x65\x70",
    b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b",
    b"\x0c\x00",
];

/// The collector's check.
#[derive(Debug)]
pub struct Csr {
    identity: Identity,
    _folder: tempfile::TempDir,
}

impl Csr {
    /// With a CA of its own.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(memory_folder())?;
        let identity = Identity::open(&folder.path().join("identity"))?;
        Ok(Self { identity, _folder: folder })
    }

    /// Whether the check lets it through: only then is it asked whose it is.
    fn passes(&self, csr_der: &[u8]) -> Result<(bool, String), String> {
        let renew = Renew { csr_der: csr_der.to_vec(), kept: true };
        let shown = Shown {
            agent: AgentId([5; 16]),
            serial: Vec::new(),
            generation: None,
            key: [5; 32],
            expires_unix_s: 0,
        };
        let from = (Ipv4Addr::LOCALHOST, 1).into();
        let Err(NotRenewed { refused, .. }) = self.identity.renew(&shown, &renew, from, unix_s_now()) else {
            return Err("a certificate for nobody".into());
        };
        match JoinRefusal::try_from(refused.code) {
            Ok(JoinRefusal::BadRequest) => Ok((false, refused.reason)),
            Ok(JoinRefusal::Unknown) => Ok((true, "passes".into())),
            other => Err(format!("{other:?} for a request")),
        }
    }

    fn judge(&self, input: &[u8]) -> Judged {
        let (passes, what) = self.passes(input)?;
        if passes && let Some((last, rest)) = input.split_last() {
            let (forged, _) = self.passes(&[rest, &[last ^ 1]].concat())?;
            ensure(!forged, "a request passes with another signature")?;
        }
        let length = input.len().max(1).ilog2();
        Ok(vec![error_mark(&what), format!("{:?} 2^{length}", input.first())])
    }
}

impl Target for Csr {
    fn name(&self) -> &'static str {
        "csr"
    }

    fn batch(&self) -> usize {
        64
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        request(random)
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        Ok(inputs.iter().map(|input| observe(|| self.judge(input))).collect())
    }
}

/// A request with names and a signature; its key is one of those that are taken, or of one that is not. The key is not
/// from the seed: no library makes one from a seed.
pub fn request(random: &mut StdRng) -> Vec<u8> {
    let algorithm = match random.random_range(0..8) {
        0 => &PKCS_ECDSA_P384_SHA384,
        1..4 => &PKCS_ED25519,
        _ => &PKCS_ECDSA_P256_SHA256,
    };
    let names: Vec<String> =
        (0..random.random_range(0..3)).map(|number| format!("host-{number}.example")).collect();
    let made = KeyPair::generate_for(algorithm).and_then(|key| {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "x".repeat(random.random_range(0..40)));
        params.serialize_request(&key)
    });
    made.map(|request| request.der().to_vec()).unwrap_or_default()
}
