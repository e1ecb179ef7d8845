//! DER (X.690): certificates (RFC 5280) and signed messages (RFC 2315, RFC 5652) as PE and Mach-O files carry them. The keys and
//! signatures in them are chance: nothing that these sign is believed by anybody.

use crate::fuzz::bytes::one_of;
use rand::Rng as _;
use rand::rngs::StdRng;

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const SHA256_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
const SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const MD5: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 5];
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const TST_INFO: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 16, 1, 4];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const SIGNING_TIME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 5];
const COUNTER_SIGNATURE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 6];
const MS_COUNTER_SIGNATURE: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 3, 3, 1];
const MS_NESTED: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 4, 1];
const SPC_INDIRECT: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 4];
const SPC_PE_IMAGE: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 15];
const SPC_OPUS: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 12];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// Signatures within signatures.
const DEPTH_MAX: u32 = 3;

/// A tag, a length, a value.
#[must_use]
pub fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match value.len() {
        length @ 0..0x80 => out.push(length as u8),
        length @ 0x80..0x100 => out.extend([0x81, length as u8]),
        length => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(value);
    out
}

fn all(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(tag, &parts.concat())
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    all(0x30, parts)
}

fn oid(bytes: &[u8]) -> Vec<u8> {
    tlv(6, bytes)
}

fn algorithm(bytes: &[u8]) -> Vec<u8> {
    sequence(&[oid(bytes), vec![5, 0]])
}

fn integer(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
    bytes[0] &= 0x7f;
    tlv(2, &bytes)
}

fn any_digest(random: &mut StdRng) -> (&'static [u8], Vec<u8>) {
    let (oid, length) = one_of(random, &[(SHA1, 20), (SHA256, 32), (MD5, 16)]);
    (oid, (0..length).map(|_| random.random()).collect())
}

/// An issuer or subject.
fn distinguished(text: &str) -> Vec<u8> {
    sequence(&[all(0x31, &[sequence(&[oid(COMMON_NAME), tlv(0x0c, text.as_bytes())])])])
}

fn certificate(random: &mut StdRng, issuer: &str, subject: &str) -> Vec<u8> {
    let key = sequence(&[integer(random, 64), tlv(2, &[1, 0, 1])]);
    let mut bits = vec![0];
    bits.extend(&key);
    let body = sequence(&[
        tlv(0xa0, &[2, 1, 2]),
        integer(random, 8),
        algorithm(SHA256_RSA),
        distinguished(issuer),
        sequence(&[tlv(0x17, b"200101000000Z"), tlv(0x18, b"20500101000000Z")]),
        distinguished(subject),
        sequence(&[algorithm(RSA), tlv(3, &bits)]),
    ]);
    let mut signature = vec![0];
    signature.extend((0..64).map(|_| random.random::<u8>()));
    sequence(&[body, algorithm(SHA256_RSA), tlv(3, &signature)])
}

/// A signed message with certificates and, now and then, counter-signatures and signatures within.
pub fn signed_data(random: &mut StdRng) -> Vec<u8> {
    nested(random, 0)
}

fn nested(random: &mut StdRng, depth: u32) -> Vec<u8> {
    let (digest_oid, digest) = any_digest(random);
    let content = match random.random_range(0..4) {
        0 => sequence(&[oid(DATA)]),
        1 => sequence(&[oid(TST_INFO), tlv(0xa0, &tlv(4, &time_stamp(digest_oid, &digest)))]),
        _ => sequence(&[oid(SPC_INDIRECT), tlv(0xa0, &indirect(digest_oid, &digest))]),
    };
    let chain = [("root", "root"), ("root", "signer")];
    let certificates: Vec<Vec<u8>> = chain
        .iter()
        .take(random.random_range(0..3))
        .map(|(issuer, subject)| certificate(random, issuer, subject))
        .collect();
    let signers: Vec<Vec<u8>> = (0..random.random_range(0..3)).map(|_| signer(random, depth)).collect();
    let body = sequence(&[
        tlv(2, &[1]),
        all(0x31, &[algorithm(digest_oid)]),
        content,
        all(0xa0, &certificates),
        all(0x31, &signers),
    ]);
    sequence(&[oid(SIGNED_DATA), tlv(0xa0, &body)])
}

fn indirect(digest_oid: &[u8], digest: &[u8]) -> Vec<u8> {
    let image =
        sequence(&[oid(SPC_PE_IMAGE), sequence(&[tlv(3, &[0]), tlv(0xa0, &tlv(0xa2, &tlv(0x80, b"")))])]);
    sequence(&[image, sequence(&[algorithm(digest_oid), tlv(4, digest)])])
}

/// TSTInfo (RFC 3161).
fn time_stamp(digest_oid: &[u8], digest: &[u8]) -> Vec<u8> {
    let imprint = sequence(&[algorithm(digest_oid), tlv(4, digest)]);
    sequence(&[tlv(2, &[1]), oid(&[0x2a, 3, 4]), imprint, tlv(2, &[9]), tlv(0x18, b"20240101000000Z")])
}

fn signer(random: &mut StdRng, depth: u32) -> Vec<u8> {
    let (digest_oid, digest) = any_digest(random);
    let mut attributes = vec![
        attribute(CONTENT_TYPE, &oid(SPC_INDIRECT)),
        attribute(MESSAGE_DIGEST, &tlv(4, &digest)),
        attribute(
            SPC_OPUS,
            &sequence(&[tlv(0xa0, &tlv(0x80, b"\0p\0r\0o\0g")), tlv(0xa1, &tlv(0x80, b"http://x"))]),
        ),
    ];
    if random.random_bool(0.5) {
        attributes.push(attribute(SIGNING_TIME, &tlv(0x17, b"240101000000Z")));
    }
    attributes.truncate(random.random_range(0..=attributes.len()));
    let mut unsigned = Vec::new();
    if depth < DEPTH_MAX && random.random_bool(0.5) {
        unsigned.push(match random.random_range(0..3) {
            0 => attribute(COUNTER_SIGNATURE, &signer(random, depth + 1)),
            1 => attribute(MS_COUNTER_SIGNATURE, &nested(random, depth + 1)),
            _ => attribute(MS_NESTED, &nested(random, depth + 1)),
        });
    }
    let signature: Vec<u8> = (0..64).map(|_| random.random()).collect();
    sequence(&[
        tlv(2, &[1]),
        sequence(&[distinguished("root"), integer(random, 8)]),
        algorithm(digest_oid),
        all(0xa0, &attributes),
        algorithm(RSA),
        tlv(4, &signature),
        all(0xa1, &unsigned),
    ])
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[oid(kind), tlv(0x31, value)])
}
