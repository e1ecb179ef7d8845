//! Agents that have joined: tokens made and used, certificates issued and registered, by the collector's own code.
//!
//! It is done by calling that code, without the network and in memory where there is some (`/dev/shm`), because two commits
//! an agent take the disk half a minute. All agents have one key, and a certificate each. `install` puts the register
//! where a collector will start.

use anyhow::Context;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use vidette_collector::identity::{Identity, TOKEN_TTL_DEFAULT, unix_s_now};
use vidette_protocol::id::AgentId;
use vidette_protocol::wire;

/// Where files are only memory.
const MEMORY: &str = "/dev/shm";
/// How often progress is told. Agents.
const TOLD_EVERY: usize = 2_000;

/// A fleet's identities, and the collector's that made them.
#[derive(Debug)]
pub struct Identities {
    folder: tempfile::TempDir,
    /// What the agents trust.
    pub roots: Arc<RootCertStore>,
    /// The key of all of them.
    pub key: PrivateKeyDer<'static>,
    /// By number.
    pub agents: Vec<Member>,
}

/// One agent.
#[derive(Debug, Clone)]
pub struct Member {
    /// As the collector knows it.
    pub id: AgentId,
    /// Its certificate.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The name of the host of agent `number`.
#[must_use]
pub fn host_name(number: usize) -> String {
    format!("host-{number:05}")
}

impl Identities {
    /// Joins `count` agents to a new collector.
    ///
    /// # Errors
    /// When one is refused, or the folder can't be written.
    pub fn make(count: usize) -> anyhow::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("vidette-fleet-");
        let folder = builder.tempdir_in(MEMORY).or_else(|_| builder.tempdir())?;
        let identity = Identity::open(&folder.path().join("identity"))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr_der = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        let mut agents = Vec::with_capacity(count);
        for number in 0..count {
            if number % TOLD_EVERY == 0 && number > 0 {
                eprintln!("  {number} of {count} agents have joined");
            }
            agents.push(join(&identity, &csr_der, number)?);
        }
        let mut roots = RootCertStore::empty();
        roots.add(identity.ca().clone())?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { folder, roots: Arc::new(roots), key, agents })
    }

    /// Copies the register and the CA into the state folder of a collector that does not run yet.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn install(&self, state: &Path) -> anyhow::Result<()> {
        let target = state.join("identity");
        DirBuilder::new().recursive(true).mode(0o700).create(&target)?;
        for entry in fs::read_dir(self.folder.path().join("identity"))? {
            let entry = entry?;
            let name = entry.file_name();
            fs::copy(entry.path(), target.join(&name))
                .with_context(|| format!("could not copy {}", name.display()))?;
        }
        Ok(())
    }
}

fn join(identity: &Identity, csr_der: &[u8], number: usize) -> anyhow::Result<Member> {
    let (secret, _) = identity.create_token(TOKEN_TTL_DEFAULT, None)?;
    let join = wire::Join {
        token: secret.bytes().to_vec(),
        csr_der: csr_der.to_vec(),
        host_name: host_name(number).into_bytes(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        os: "Linux 6.18".into(),
        host_mark: Vec::new(),
    };
    let joined = identity
        .join(&join, unix_s_now())
        .map_err(|refused| anyhow::anyhow!("refused: {}", refused.reason))?;
    let chain = joined.certificates_der.into_iter().map(CertificateDer::from).collect();
    Ok(Member { id: joined.agent_id.parse()?, chain })
}
