//! The key of a join or renewal whose answer has not come yet: `joining.pem` and `renewing.pem` in the state folder.
//!
//! It is on disk before the collector is asked. An answer that is lost (a kill, a cut line) has used the token up there;
//! asking again with the same key and the same token is the same use, and brings the same agent. One key, for one token:
//! another join line makes another. It is the same with a renewal: one key for one certificate that is to be renewed. Who
//! asks with another key is a copy of this host. `enrol` takes a key away when the identity is stored.

use super::credentials::{pem, read_file, remove, sync_folder, write_file};
use anyhow::Context;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::path::Path;
use vidette_protocol::join::Secret;

/// The key of a join.
pub const JOINING_FILE: &str = "joining.pem";
/// The key of a renewal.
pub const RENEWING_FILE: &str = "renewing.pem";
/// Either of them while it is written.
pub const FRESH_FILE: &str = "pending.new";
/// Before the digest of the token, in the line above the key.
const TOKEN: &str = "token sha256 ";
/// Before the digest of the certificate that is to be renewed.
const CERTIFICATE: &str = "certificate sha256 ";

/// A key that is on disk.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) key: KeyPair,
    /// There was one that can't be read: what was asked for before, if anything was, was asked for with that.
    pub(super) after_damage: bool,
}

/// What was found in a file.
enum Found {
    Key(Box<KeyPair>),
    /// None, or one of another token or certificate.
    Nothing,
    Damaged,
}

/// The key for this token: the stored one, else a new one, stored.
pub(super) fn join_key(state: &Path, token: &Secret) -> anyhow::Result<KeyPair> {
    Ok(kept_key(state, JOINING_FILE, TOKEN, token.bytes())?.key)
}

/// The key for the renewal of this certificate: the stored one, else a new one, stored.
pub(super) fn renewal_key(state: &Path, certificate: &CertificateDer<'_>) -> anyhow::Result<Kept> {
    kept_key(state, RENEWING_FILE, CERTIFICATE, certificate)
}

fn kept_key(state: &Path, file: &str, what: &str, of: &[u8]) -> anyhow::Result<Kept> {
    let (fresh, file) = (state.join(FRESH_FILE), state.join(file));
    let after_damage = match stored(&file, what, of) {
        Found::Key(key) => return Ok(Kept { key: *key, after_damage: false }),
        Found::Nothing => false,
        Found::Damaged => true,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("could not make a key")?;
    let text = format!("{}\n{}", first_line(what, of), pem("PRIVATE KEY", &key.serialize_der()));
    remove(&fresh)
        .and_then(|()| write_file(&fresh, text.as_bytes()))
        .and_then(|()| std::fs::rename(&fresh, &file))
        .and_then(|()| sync_folder(state))
        .with_context(|| format!("could not write {}", file.display()))?;
    Ok(Kept { key, after_damage })
}

/// The answer to a join is stored: nothing of what was before counts any more.
pub(super) fn forget(state: &Path) -> anyhow::Result<()> {
    let file = state.join(JOINING_FILE);
    remove(&file).with_context(|| format!("could not remove {}", file.display()))?;
    forget_renewal(state)
}

/// The answer to a renewal is stored.
pub(super) fn forget_renewal(state: &Path) -> anyhow::Result<()> {
    let file = state.join(RENEWING_FILE);
    remove(&file).with_context(|| format!("could not remove {}", file.display()))
}

fn stored(file: &Path, what: &str, of: &[u8]) -> Found {
    if matches!(std::fs::symlink_metadata(file), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
        return Found::Nothing;
    }
    let Ok(bytes) = read_file(file) else { return Found::Damaged };
    let Some((first, rest)) = std::str::from_utf8(&bytes).ok().and_then(|text| text.split_once('\n')) else {
        return Found::Damaged;
    };
    let expected = first_line(what, of);
    if first != expected {
        let is_another = first.starts_with(what) && first.len() == expected.len();
        return if is_another { Found::Nothing } else { Found::Damaged };
    }
    let key = PrivatePkcs8KeyDer::from_pem_slice(rest.as_bytes())
        .ok()
        .and_then(|der| KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).ok());
    key.map_or(Found::Damaged, |key| Found::Key(Box::new(key)))
}

fn first_line(what: &str, bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("{what}{}", data_encoding::HEXLOWER.encode(digest.as_ref()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_renewal_keeps_its_key_for_one_certificate_beside_that_of_a_join() {
        let state = tempfile::tempdir().unwrap();
        let of = |certificate: &[u8]| {
            renewal_key(state.path(), &CertificateDer::from(certificate.to_vec()))
                .unwrap()
                .key
                .serialize_der()
        };
        let join = join_key(state.path(), &Secret::new([1; 20])).unwrap().serialize_der();
        let first = of(b"one");
        assert_eq!(
            (of(b"one"), join_key(state.path(), &Secret::new([1; 20])).unwrap().serialize_der()),
            (first.clone(), join)
        );
        assert_ne!(of(b"two"), first, "another certificate has another");
        forget(state.path()).unwrap();
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_key_of_a_renewal_is_told_from_one_of_another_certificate() {
        let state = tempfile::tempdir().unwrap();
        let of = |certificate: &[u8]| {
            renewal_key(state.path(), &CertificateDer::from(certificate.to_vec())).unwrap().after_damage
        };
        assert!(!of(b"one") && !of(b"one") && !of(b"two"));
        let file = state.path().join(RENEWING_FILE);
        let whole = std::fs::read(&file).unwrap();
        for bytes in [&b""[..], b"\xff", b"certificate sha256 00\n", &whole[..whole.len() / 2]] {
            std::fs::write(&file, bytes).unwrap();
            assert!(of(b"two") && !of(b"two"), "{bytes:?}");
        }
    }

    #[test]
    fn one_token_keeps_its_key_until_it_is_forgotten_and_another_has_another() {
        let state = tempfile::tempdir().unwrap();
        let key_of = |token: u8| join_key(state.path(), &Secret::new([token; 20])).unwrap().serialize_der();
        let first = key_of(1);
        assert_eq!(key_of(1), first);
        let mode = std::fs::metadata(state.path().join(JOINING_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = key_of(2);
        assert_ne!(other, first);
        assert_ne!(key_of(1), first, "only the last one is kept");
        for damage in [&b""[..], b"\xff", b"token sha256 00\n"] {
            let before = key_of(1);
            std::fs::write(state.path().join(JOINING_FILE), damage).unwrap();
            assert_ne!(key_of(1), before);
        }
        let last = key_of(1);
        forget(state.path()).unwrap();
        forget(state.path()).unwrap();
        assert_ne!(key_of(1), last);
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_token_itself_is_not_on_disk() {
        let state = tempfile::tempdir().unwrap();
        let token = Secret::new([0x41; 20]);
        join_key(state.path(), &token).unwrap();
        let bytes = std::fs::read(state.path().join(JOINING_FILE)).unwrap();
        let coded = data_encoding::BASE32_NOPAD.encode(token.bytes());
        for secret in [token.bytes().as_slice(), coded.as_bytes()] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
}
