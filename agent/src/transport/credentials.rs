//! Who this host is for its collector, on disk: `identity/` in the state folder.
//!
//! `key.pem` and `certificate.pem` belong together and change at every renewal, so the folder is replaced as a
//! whole: a new one is written beside it, synced, and exchanged with it. A crash leaves the old or the new, never
//! half of each. What is missing or damaged is an error for `transport` to report, never a reason to stop (L1).

use anyhow::{Context, anyhow, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use vidette_protocol::id::AgentId;
use vidette_protocol::join::Address;

/// The folder's name in the state folder.
pub const IDENTITY_FOLDER: &str = "identity";
/// The largest file that is read. Bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Where an identity goes that was left.
const LEFT_FOLDER: &str = "identity.left";

const KEY_FILE: &str = "key.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
const ROOTS_FILE: &str = "roots.pem";
const COLLECTOR_FILE: &str = "collector";
const AGENT_FILE: &str = "agent-id";

/// A usable identity.
pub struct Credentials {
    /// The id that the collector gave.
    pub agent: AgentId,
    /// Where the collector is.
    pub collector: Address,
    /// The agent's certificate, leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// CAs to trust.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Unix seconds.
    pub starts_unix_s: i64,
    /// Unix seconds.
    pub expires_unix_s: i64,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum NoCredentials {
    /// The host has not joined.
    #[error("this host has not joined a collector; run the line that `vidette tokens create` prints there")]
    NotJoined,
    /// It had, but what is on disk can't be used.
    #[error(
        "the identity in {folder} can't be used: {why}; join this host again with `vidette-agent join --again`"
    )]
    Damaged {
        /// The identity folder.
        folder: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Credentials {
    /// Reads them from the state folder.
    ///
    /// # Errors
    /// [`NoCredentials`]; the agent goes on without a collector and tries again.
    pub fn load(state: &Path) -> Result<Self, NoCredentials> {
        let folder = state.join(IDENTITY_FOLDER);
        match std::fs::symlink_metadata(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(NoCredentials::NotJoined);
            }
            Ok(_) | Err(_) => {}
        }
        Self::read(&folder).map_err(|error| NoCredentials::Damaged { folder, why: format!("{error:#}") })
    }

    /// Puts parts together and checks that they belong together.
    pub(super) fn assemble(
        agent: AgentId,
        collector: Address,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> anyhow::Result<Self> {
        let leaf = chain.first().context("there is no certificate")?;
        if roots.is_empty() {
            bail!("there is no root certificate");
        }
        let (_, parsed) =
            x509_parser::parse_x509_certificate(leaf).context("the certificate can't be read")?;
        let (starts_unix_s, expires_unix_s) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let signing =
            rustls::crypto::ring::sign::any_supported_type(&key).context("the key can't be used")?;
        rustls::sign::CertifiedKey::new(chain.clone(), signing)
            .keys_match()
            .context("the key and the certificate do not belong together")?;
        Ok(Self { agent, collector, chain, key, roots, starts_unix_s, expires_unix_s })
    }

    fn read(folder: &Path) -> anyhow::Result<Self> {
        let file =
            |name: &str| read_file(&folder.join(name)).with_context(|| format!("could not read {name}"));
        let text = |name: &str| -> anyhow::Result<String> {
            Ok(String::from_utf8(file(name)?).map_err(|_| anyhow!("{name} is damaged"))?.trim().to_owned())
        };
        let certificates = |name: &str| -> anyhow::Result<Vec<CertificateDer<'static>>> {
            CertificateDer::pem_slice_iter(&file(name)?)
                .collect::<Result<_, _>>()
                .map_err(|error| anyhow!("{name} is damaged: {error}"))
        };
        let key =
            PrivateKeyDer::from_pem_slice(&file(KEY_FILE)?).map_err(|_| anyhow!("{KEY_FILE} is damaged"))?;
        let agent = text(AGENT_FILE)?.parse().with_context(|| format!("{AGENT_FILE} is damaged"))?;
        let collector =
            text(COLLECTOR_FILE)?.parse().with_context(|| format!("{COLLECTOR_FILE} is damaged"))?;
        Self::assemble(agent, collector, certificates(CERTIFICATE_FILE)?, key, certificates(ROOTS_FILE)?)
    }

    /// Writes them into the state folder, in one step, in place of what was there.
    pub(super) fn store(&self, state: &Path) -> anyhow::Result<()> {
        let fresh = state.join(format!("{IDENTITY_FOLDER}.new"));
        let folder = state.join(IDENTITY_FOLDER);
        remove(&fresh).with_context(|| format!("could not remove {}", fresh.display()))?;
        self.write(&fresh).with_context(|| {
            format!(
                "could not write to {}; check that the folder can be written and the disk is not full",
                state.display()
            )
        })?;
        exchange(&fresh, &folder).with_context(|| format!("could not put {} in place", folder.display()))?;
        sync_folder(state).with_context(|| format!("could not sync {}", state.display()))?;
        remove(&fresh).with_context(|| format!("could not remove {}", fresh.display()))
    }

    /// Takes the identity out of use, in one step: the agent that runs here notices it. What was set aside before goes.
    pub(super) fn set_aside(state: &Path) -> anyhow::Result<PathBuf> {
        let (folder, aside) = (state.join(IDENTITY_FOLDER), state.join(LEFT_FOLDER));
        remove(&aside).with_context(|| format!("could not remove {}", aside.display()))?;
        std::fs::rename(&folder, &aside)
            .and_then(|()| sync_folder(state))
            .with_context(|| format!("could not set {} aside", folder.display()))?;
        Ok(aside)
    }

    fn write(&self, folder: &Path) -> anyhow::Result<()> {
        make_folder(folder)?;
        write_file(&folder.join(KEY_FILE), pem("PRIVATE KEY", self.key.secret_der()).as_bytes())?;
        write_file(&folder.join(CERTIFICATE_FILE), certificates_pem(&self.chain).as_bytes())?;
        write_file(&folder.join(ROOTS_FILE), certificates_pem(&self.roots).as_bytes())?;
        write_file(&folder.join(COLLECTOR_FILE), format!("{}\n", self.collector).as_bytes())?;
        write_file(&folder.join(AGENT_FILE), format!("{}\n", self.agent).as_bytes())?;
        Ok(sync_folder(folder)?)
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("agent", &self.agent)
            .field("collector", &self.collector)
            .field("expires_unix_s", &self.expires_unix_s)
            .finish_non_exhaustive()
    }
}

/// Makes the state folder when it is missing, and shows that it can be written, before anything is asked for.
pub(super) fn prepare_state(state: &Path) -> anyhow::Result<()> {
    crate::folder::prepare(state)?;
    let name = state.display();
    let probe = state.join(format!("{IDENTITY_FOLDER}.new"));
    remove(&probe).and_then(|()| make_folder(&probe)).and_then(|()| remove(&probe)).with_context(|| {
        format!("could not write to the state folder {name}; run this as root, or name another with --state")
    })
}

pub(super) fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        bail!("not a regular file");
    }
    let mut bytes = Vec::new();
    File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    file.sync_all()
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fsync(&folder)?)
}

/// Puts `fresh` in the place of `folder`; what was there is at `fresh` afterwards.
fn exchange(fresh: &Path, folder: &Path) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(CWD, fresh, CWD, folder, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => {
            rustix::fs::renameat_with(CWD, fresh, CWD, folder, RenameFlags::EXCHANGE)
        }
        other => other,
    }
}

pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    }
}

fn certificates_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

/// Textual encoding (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let body = data_encoding::BASE64.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sample(port: u16) -> Credentials {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let collector = Address { host: "::1".into(), port };
        let chain = vec![certificate.der().clone()];
        Credentials::assemble(AgentId([7; 16]), collector, chain.clone(), der, chain).unwrap()
    }

    #[test]
    fn credentials_are_read_back_replaced_as_a_whole_and_closed_to_others() {
        let state = tempfile::tempdir().unwrap();
        assert!(matches!(Credentials::load(state.path()), Err(NoCredentials::NotJoined)));
        for port in [1, 2] {
            let stored = sample(port);
            stored.store(state.path()).unwrap();
            let read = Credentials::load(state.path()).unwrap();
            assert_eq!(
                (read.agent, read.collector, read.chain),
                (stored.agent, stored.collector, stored.chain)
            );
        }
        let folder = state.path().join(IDENTITY_FOLDER);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1, "nothing of the old one stays");
    }

    #[test]
    fn every_damaged_or_missing_file_is_an_error_with_a_next_step() {
        let files = [KEY_FILE, CERTIFICATE_FILE, ROOTS_FILE, COLLECTOR_FILE, AGENT_FILE];
        for file in files {
            for damage in [Some(&b"\xff garbage"[..]), Some(b""), None] {
                let state = tempfile::tempdir().unwrap();
                sample(1).store(state.path()).unwrap();
                let path = state.path().join(IDENTITY_FOLDER).join(file);
                match damage {
                    Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                    None => std::fs::remove_file(&path).unwrap(),
                }
                let error = Credentials::load(state.path()).unwrap_err();
                assert!(matches!(&error, NoCredentials::Damaged { .. }), "{file} {damage:?}: {error}");
                assert!(error.to_string().contains("--again"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_left_is_set_aside_and_a_new_identity_takes_its_place() {
        let state = tempfile::tempdir().unwrap();
        assert!(Credentials::set_aside(state.path()).is_err(), "there is nothing to leave");
        for port in [1, 2] {
            sample(port).store(state.path()).unwrap();
            let aside = Credentials::set_aside(state.path()).unwrap();
            assert!(matches!(Credentials::load(state.path()), Err(NoCredentials::NotJoined)));
            let left = Credentials::read(&aside).unwrap();
            assert_eq!(left.collector.port, port);
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_noticed() {
        let (one, two) = (sample(1), sample(2));
        let mixed = Credentials::assemble(one.agent, one.collector, one.chain, two.key, one.roots);
        assert!(mixed.unwrap_err().to_string().contains("do not belong together"));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let credentials = sample(1);
        let shown = format!("{credentials:?}");
        let key = data_encoding::BASE64.encode(credentials.key.secret_der());
        assert!(!shown.contains(&key[..20]) && !shown.contains("key"), "{shown}");
    }
}
