//! A root whose key never comes near a collector: `vidette ca sign` on a machine of its own.
//!
//! A folder with the root's key and certificate, a request of a collector (`vidette ca prepare --request`), an intermediate
//! for it. Any other CA of X.509 that keeps the request's name can do the same.

use super::authority::{
    CA_FILE, CA_KEY_FILE, ca_request_key, certificate_pem, check_root, make_key, pin_of, read_key,
    self_signed, signed_ca,
};
use super::vault::Vault;
use anyhow::{Context, bail};
use rcgen::Issuer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;

/// CAs below an intermediate: one, for the time in which the next one follows it.
const BELOW_INTERMEDIATE: u8 = 1;
/// CAs below such a root.
const BELOW_ROOT: u8 = BELOW_INTERMEDIATE + 1;

/// Signs a collector's request (PEM) with the root in `folder`, and makes that root when the folder has none. Gives the
/// intermediate and its root in PEM, the pin of the root, and whether the root is new.
///
/// # Errors
/// One sentence that names the file and what to do.
pub fn sign_offline(
    folder: &Path,
    request: &str,
    now_unix_s: i64,
) -> anyhow::Result<(String, [u8; 32], bool)> {
    let wanted = ca_request_key(request)?;
    let vault = Vault::open(folder)?;
    let place = folder.display();
    let (key, root, is_new) = match (vault.read(CA_KEY_FILE)?, vault.read(CA_FILE)?) {
        (Some(key), Some(root)) => {
            let key = read_key(&key).with_context(|| format!("{CA_KEY_FILE} in {place} is damaged"))?;
            let root = CertificateDer::from_pem_slice(&root)
                .map_err(|error| anyhow::anyhow!("{CA_FILE} in {place} is damaged: {error}"))?;
            (key, root, false)
        }
        (key, None) => {
            // The key first: a key without a certificate is given one, the other way round nothing helps.
            let key = match key {
                Some(pem) => {
                    read_key(&pem).with_context(|| format!("{CA_KEY_FILE} in {place} is damaged"))?
                }
                None => {
                    let key = make_key()?;
                    vault.write(CA_KEY_FILE, key.serialize_pem().as_bytes())?;
                    key
                }
            };
            let root = self_signed(&key, BELOW_ROOT, now_unix_s)?;
            vault.write(CA_FILE, certificate_pem(&root).as_bytes())?;
            (key, root, true)
        }
        (None, Some(_)) => {
            bail!("{CA_FILE} is in {place} but {CA_KEY_FILE} is missing; put both there, or neither")
        }
    };
    check_root(&root)?;
    let issuer = Issuer::from_ca_cert_der(&root, key).context("could not use the root's certificate")?;
    let intermediate = signed_ca(&wanted, &issuer, BELOW_INTERMEDIATE, now_unix_s)?;
    let text = format!("{}{}", certificate_pem(&intermediate), certificate_pem(&root));
    Ok((text, pin_of(&root)?, is_new))
}
