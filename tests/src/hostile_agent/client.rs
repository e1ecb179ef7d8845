//! A certificate got by joining as every host does, and sessions with it that say whatever they are told to.

use crate::programs::Collector;
use anyhow::{Context, bail};
use prost::Message;
use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vidette_agent::host::Host;
use vidette_agent::transport;
use vidette_protocol::frame::{self, Decoder};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::join::Invitation;
use vidette_protocol::wire::{self, ToAgent, ToCollector, event::Kind, to_agent, to_collector};
use vidette_protocol::{ALPN, COLLECTOR_NAME, batch};

/// An answer that takes longer will not come.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// What is read at a time. Bytes.
const READ_BYTES: usize = 64 << 10;

/// Who an agent is, and what shows it.
#[derive(Debug)]
pub struct Papers {
    /// By its certificate.
    pub agent: AgentId,
    /// The host name it joined with.
    pub name: String,
    /// Where the collector is.
    pub collector: SocketAddr,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl Papers {
    /// Joins with an invitation, through the agent's own code.
    ///
    /// # Errors
    /// When the collector refuses.
    pub fn join(collector: &Collector, name: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let agent = Self::join_in(folder.path(), collector, name)?;
        Self::read(folder.path(), agent, name, (Ipv4Addr::LOCALHOST, collector.port).into())
    }

    /// The same, for another process to [`Papers::read`] in that folder.
    ///
    /// # Errors
    /// When the collector refuses.
    pub fn join_in(folder: &Path, collector: &Collector, name: &str) -> anyhow::Result<AgentId> {
        let invitation: Invitation = collector.invitation()?.parse()?;
        let host = Host { name: name.into(), ..Host::read() };
        Ok(transport::join(&invitation, &host, folder, false)?.agent)
    }

    /// What lies in the folder of a host that has joined.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(folder: &Path, agent: AgentId, name: &str, collector: SocketAddr) -> anyhow::Result<Self> {
        let identity = folder.join(transport::IDENTITY_FOLDER);
        Ok(Self {
            agent,
            name: name.to_owned(),
            collector,
            chain: certificates(&identity.join("certificate.pem"))?,
            key: PrivateKeyDer::from_pem_file(identity.join("key.pem"))?,
            roots: certificates(&identity.join("roots.pem"))?,
        })
    }

    /// QUIC with this certificate.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn config(&self, limits: TransportConfig) -> anyhow::Result<quinn::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        for root in &self.roots {
            roots.add(root.clone())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(limits));
        Ok(config)
    }

    /// Connects.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn dial(&self, limits: TransportConfig) -> anyhow::Result<(Endpoint, Connection)> {
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        let connecting = endpoint.connect_with(self.config(limits)?, self.collector, COLLECTOR_NAME)?;
        let connection = tokio::time::timeout(ANSWER_WAIT, connecting).await.context("no handshake")??;
        Ok((endpoint, connection))
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
}

/// Windows that let everything be sent.
#[must_use]
pub fn wide() -> TransportConfig {
    let mut limits = TransportConfig::default();
    limits.send_window(8 << 20).keep_alive_interval(Some(Duration::from_secs(10)));
    limits
}

/// One stream, both ways.
#[derive(Debug)]
pub struct Channel {
    /// For bytes that are no frames.
    pub send: SendStream,
    receive: RecvStream,
    decoder: Decoder,
}

impl Channel {
    /// Opens the next one.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let (send, receive) = connection.open_bi().await?;
        Ok(Self { send, receive, decoder: Decoder::default() })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn say(&mut self, message: to_collector::Message) -> anyhow::Result<()> {
        let message = ToCollector { message: Some(message) };
        Ok(self.send.write_all(&frame::encode(&message)).await?)
    }

    /// The next answer.
    ///
    /// # Errors
    /// When the connection is gone, or none comes.
    pub async fn hear(&mut self) -> anyhow::Result<to_agent::Message> {
        tokio::time::timeout(ANSWER_WAIT, self.next()).await.context("no answer")?
    }

    async fn next(&mut self) -> anyhow::Result<to_agent::Message> {
        loop {
            if let Some(answer) = self.decoder.next::<ToAgent>()? {
                return answer.message.context("an answer that is not known here");
            }
            let chunk = self.receive.read_chunk(READ_BYTES, true).await?;
            self.decoder.push(&chunk.context("the stream ended")?.bytes);
        }
    }
}

/// A connection that has said hello.
#[derive(Debug)]
pub struct Session {
    /// Its socket.
    pub endpoint: Endpoint,
    /// What carries it.
    pub connection: Connection,
    /// Hello, status.
    pub control: Channel,
    /// Alerts.
    pub alerts: Channel,
    /// Telemetry.
    pub telemetry: Channel,
    /// The outbox it pretends to have.
    pub epoch: u64,
}

impl Session {
    /// Connects and says hello as an outbox that is new.
    ///
    /// # Errors
    /// When it is not welcome.
    pub async fn open(papers: &Papers, limits: TransportConfig) -> anyhow::Result<Self> {
        let (endpoint, connection) = papers.dial(limits).await?;
        let mut control = Channel::open(&connection).await?;
        let epoch = rand::random();
        control.say(to_collector::Message::Hello(hello(&papers.name, epoch))).await?;
        match control.hear().await? {
            to_agent::Message::Welcome(_) => {}
            other => bail!("{other:?} instead of a welcome"),
        }
        let (alerts, telemetry) = (Channel::open(&connection).await?, Channel::open(&connection).await?);
        Ok(Self { endpoint, connection, control, alerts, telemetry, epoch })
    }

    /// A batch of this session.
    ///
    /// # Errors
    /// When it is too large to be packed.
    pub fn batch(&self, class: Class, first_seq: u64, events: Vec<Vec<u8>>) -> anyhow::Result<wire::Batch> {
        Ok(batch::pack(class, self.epoch, first_seq, 0, events)?)
    }
}

/// What an agent says first.
#[must_use]
pub fn hello(name: &str, epoch: u64) -> wire::Hello {
    wire::Hello { protocol: 1, epoch, host_name: name.into(), os: "test".into(), ..Default::default() }
}

/// An audit event with this text.
#[must_use]
pub fn event(host: &str, text: &str) -> Vec<u8> {
    event_at(host, text, jiff::Timestamp::now().as_nanosecond() as i64)
}

/// The same, of a given time. Unix nanoseconds.
#[must_use]
pub fn event_at(host: &str, text: &str, time_unix_ns: i64) -> Vec<u8> {
    let audit = wire::Audit {
        action: "told".into(),
        outcome: "success".into(),
        detail: text.into(),
        ..Default::default()
    };
    let kind = Some(Kind::Audit(audit));
    wire::Event { time_unix_ns, host_name: host.into(), severity: 1, kind, ..Default::default() }
        .encode_to_vec()
}

/// A file event of a usual size.
#[must_use]
pub fn telemetry(host: &str, number: u64) -> Vec<u8> {
    let path = format!("/var/lib/something/with/a/usual/length/{number}").into_bytes();
    let file = wire::File { path, size: number, blake3: vec![7; 32], ..Default::default() };
    let process = wire::Process { pid: 7, executable: b"/usr/bin/something".into(), ..Default::default() };
    let kind = wire::FileEvent { action: 1, file: Some(file), process: Some(process), ..Default::default() };
    let kind = Some(Kind::File(kind));
    wire::Event { time_unix_ns: 1, host_name: host.into(), severity: 1, kind, ..Default::default() }
        .encode_to_vec()
}

/// Closes without a word.
pub fn leave(connection: &Connection) {
    connection.close(VarInt::from_u32(vidette_protocol::CLOSE_DONE), b"done");
}
