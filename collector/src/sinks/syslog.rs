//! Output: RFC 5424 messages over TCP or TLS, each at least once.
//!
//! One connection at a time. Each page goes out whole; `window` says when it counts as sent. Any trouble ends the
//! connection, and the next one begins after the durable cursor.

use super::formats::Record;
use super::unacked::Unacked;
use super::window::Window;
use crate::config;
use anyhow::{Context, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// To connect and to shake hands.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// For one page to be taken by the receiver's TCP.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// For bytes to be acknowledged before the kernel gives the connection up: TCP_USER_TIMEOUT of tcp(7).
const ACKNOWLEDGE_MAX_MS: u32 = 60_000;
/// A receiver's name server can answer with many addresses; so many are tried.
const ADDRESSES_MAX: usize = 8;
/// Size of a CA file. Bytes.
const CA_FILE_BYTES_MAX: u64 = 1 << 20;
/// What a receiver sends is of no meaning and is thrown away in pieces of this size. Bytes.
const DISCARD_BYTES: usize = 4096;

/// A connection to the receiver.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    local: SocketAddr,
    peer: SocketAddr,
    /// Absent where the kernel can't be asked: then time alone settles.
    unacked: Option<Unacked>,
    window: Window,
}

#[derive(Debug)]
enum Stream {
    Tcp(Counted),
    Tls(Box<tokio_rustls::client::TlsStream<Counted>>),
}

impl Connection {
    /// Connects, and checks the receiver's certificate for TLS.
    ///
    /// # Errors
    /// One sentence: what could not be reached or trusted.
    pub async fn open(config: &config::Syslog) -> anyhow::Result<Self> {
        let connect = async {
            let tcp = connect(&config.address).await?;
            let (local, peer) = (tcp.local_addr()?, tcp.peer_addr()?);
            let counted = Counted { stream: tcp, written: 0 };
            let stream = match &config.tls {
                None => Stream::Tcp(counted),
                Some(tls) => Stream::Tls(Box::new(shake_hands(counted, tls, &config.address).await?)),
            };
            anyhow::Ok((stream, local, peer))
        };
        let (stream, local, peer) = timeout(CONNECT_MAX, connect).await.with_context(|| {
            format!("{} did not answer within {} s", config.address, CONNECT_MAX.as_secs())
        })??;
        let unacked = Unacked::open().and_then(|unacked| unacked.ask(local, peer).map(|_| unacked));
        if let Err(error) = &unacked {
            tracing::info!(%error, "can't ask the kernel what a receiver has acknowledged; time alone decides");
        }
        Ok(Self { stream, local, peer, unacked: unacked.ok(), window: Window::default() })
    }

    /// Whether another page may be put.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.window.is_full()
    }

    /// Whether all that was put is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.window.is_empty()
    }

    /// Writes a page whole.
    ///
    /// # Errors
    /// When the connection is no longer good; nothing is known of the page then.
    pub async fn put(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let Some(last) = records.last() else { return Ok(()) };
        let page: Vec<u8> = records.iter().flat_map(|record| record.bytes.iter().copied()).collect();
        let write = async {
            match &mut self.stream {
                Stream::Tcp(stream) => stream.write_all(&page).await,
                Stream::Tls(stream) => {
                    stream.write_all(&page).await?;
                    stream.flush().await
                }
            }
        };
        timeout(WRITE_MAX, write)
            .await
            .with_context(|| format!("the receiver took nothing for {} s", WRITE_MAX.as_secs()))?
            .context("the connection broke")?;
        self.window.put(last.id, self.written());
        Ok(())
    }

    /// The id up to which everything counts as sent, when that moved.
    ///
    /// # Errors
    /// When the kernel has given the connection up.
    pub fn settle(&mut self, now: Instant) -> anyhow::Result<Option<u64>> {
        let unacked = match &self.unacked {
            Some(unacked) => unacked.ask(self.local, self.peer).context("the connection is gone")?,
            None => 0,
        };
        Ok(self.window.settle(unacked, now))
    }

    /// Waits until the receiver closes or breaks the connection. Safe to drop and call again.
    pub async fn ended(&mut self) -> anyhow::Error {
        let mut discarded = [0; DISCARD_BYTES];
        loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut discarded).await,
                Stream::Tls(stream) => stream.read(&mut discarded).await,
            };
            match read {
                Ok(0) => return anyhow::anyhow!("the receiver closed the connection"),
                Ok(_) => {}
                Err(error) => return anyhow::Error::new(error).context("the receiver broke the connection"),
            }
        }
    }

    /// Says that no more comes and waits for the receiver to close in turn. A receiver that closes without a
    /// reset has read everything (RFC 1122 §4.2.2.13: closing with unread data resets), so all is settled.
    /// The id up to which everything then counts as sent.
    pub async fn close(&mut self, grace: Duration) -> Option<u64> {
        let orderly = async {
            match &mut self.stream {
                Stream::Tcp(stream) => stream.shutdown().await?,
                Stream::Tls(stream) => stream.shutdown().await?,
            }
            let tcp = match &mut self.stream {
                Stream::Tcp(stream) => stream,
                Stream::Tls(stream) => stream.get_mut().0,
            };
            let mut discarded = [0; DISCARD_BYTES];
            while tcp.read(&mut discarded).await? > 0 {}
            io::Result::Ok(())
        };
        match timeout(grace, orderly).await {
            Ok(Ok(())) => self.window.settle_all(),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    fn written(&self) -> u64 {
        match &self.stream {
            Stream::Tcp(stream) => stream.written,
            Stream::Tls(stream) => stream.get_ref().0.written,
        }
    }
}

async fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let found = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("could not find {address}; check `address` and the name server"))?;
    let mut last = None;
    for candidate in found.take(ADDRESSES_MAX) {
        match TcpStream::connect(candidate).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                rustix::net::sockopt::set_tcp_user_timeout(&stream, ACKNOWLEDGE_MAX_MS)?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error).with_context(|| format!("could not connect to {address}")),
        None => bail!("{address} has no address"),
    }
}

async fn shake_hands(
    stream: Counted,
    tls: &config::Tls,
    address: &str,
) -> anyhow::Result<tokio_rustls::client::TlsStream<Counted>> {
    let name = ServerName::try_from(tls.server_name.clone())
        .with_context(|| format!("`server_name` {:?} is not a host name or address", tls.server_name))?;
    let connector = tokio_rustls::TlsConnector::from(client_config(tls)?);
    connector.connect(name, stream).await.with_context(|| format!("could not agree on TLS with {address}"))
}

/// Trusts the CA file and nothing else. TLS 1.2 is allowed, because many receivers know no other.
fn client_config(tls: &config::Tls) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let path = &tls.ca_file;
    let length = std::fs::metadata(path)
        .with_context(|| format!("could not read `ca_file` {}", path.display()))?
        .len();
    if length > CA_FILE_BYTES_MAX {
        bail!("`ca_file` {} is over {CA_FILE_BYTES_MAX} bytes", path.display());
    }
    let unreadable = || format!("`ca_file` {} is not a PEM file of certificates", path.display());
    let pem = std::fs::read(path).with_context(|| format!("could not read `ca_file` {}", path.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.with_context(unreadable)?).with_context(unreadable)?;
    }
    if roots.is_empty() {
        bail!(unreadable());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("could not set up TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Counts the bytes that the kernel has taken, below TLS: the kernel counts acknowledgements in the same bytes.
#[derive(Debug)]
struct Counted {
    stream: TcpStream,
    written: u64,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.written += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
