//! Dialling the collector: names to addresses, addresses to one QUIC connection (RFC 9000), frames on a stream.
//!
//! Every limit of the connection is set here on purpose, and a simulated fleet takes them from here. Assumes a tokio
//! runtime. `enrol` and the session's shell work on what `dial` gives.

use super::tls;
use anyhow::{Context, anyhow, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, TransportConfig, VarInt};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::COLLECTOR_NAME;
use vidette_protocol::frame::Decoder;
use vidette_protocol::join::Address;

/// A handshake that takes longer has failed. Milliseconds.
pub const HANDSHAKE_MS_MAX: u64 = 10_000;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// A silent connection is dead after this. Milliseconds.
const IDLE_MS_MAX: u32 = 60_000;
/// How often an idle agent says that it is there. A collector that was killed tells its agents itself when it is back; who
/// does not hear that hears it in answer to this. Often enough for what translates addresses on the way, which may
/// forget after 30 s (RFC 9000 section 10.1.2). Milliseconds.
const KEEP_ALIVE_MS: u64 = 20_000;
/// What the collector may send unread on one stream: its answers are small. Bytes.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// What it may send unread on all streams. Bytes.
const RECEIVE_WINDOW_BYTES: u32 = 256 << 10;
/// What is sent and not yet confirmed by the peer's QUIC, kept in memory. Bytes.
const SEND_WINDOW_BYTES: u64 = 4 << 20;
/// What is read from a stream at a time. Bytes.
const READ_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(3 * KEEP_ALIVE_MS <= IDLE_MS_MAX as u64);
const _: () = assert!(STREAM_WINDOW_BYTES <= RECEIVE_WINDOW_BYTES);

/// A connection, and the endpoint with its socket that carries it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
}

/// Connects. Names are looked up every time; each address is tried in turn.
pub(super) async fn dial(collector: &Address, tls: Arc<QuicClientConfig>) -> anyhow::Result<Link> {
    let looked_up = tokio::net::lookup_host((collector.host.as_str(), collector.port)).await;
    let addresses: Vec<SocketAddr> = looked_up
        .with_context(|| {
            format!("could not find the address of {}; check the name and this host's DNS", collector.host)
        })?
        .take(ADDRESSES_MAX)
        .collect();
    let mut last = anyhow!("{} has no address; check the name and this host's DNS", collector.host);
    for address in addresses {
        match dial_one(collector, address, tls.clone()).await {
            Ok(link) => return Ok(link),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn dial_one(
    collector: &Address,
    address: SocketAddr,
    tls: Arc<QuicClientConfig>,
) -> anyhow::Result<Link> {
    let local: SocketAddr =
        if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let endpoint = Endpoint::client(local).context("could not open a UDP socket")?;
    let mut config = ClientConfig::new(tls);
    config.transport_config(Arc::new(limits()));
    let connecting = endpoint
        .connect_with(config, address, COLLECTOR_NAME)
        .with_context(|| format!("could not send to {collector}"))?;
    match tokio::time::timeout(Duration::from_millis(HANDSHAKE_MS_MAX), connecting).await {
        Ok(Ok(connection)) => Ok(Link { endpoint, connection }),
        Ok(Err(error)) => bail!("{}", tls::explain(&error, collector)),
        Err(_) => bail!(
            "could not reach the collector at {collector}: {}; {}",
            why_silent(address),
            tls::reach(collector)
        ),
    }
}

/// What this host itself says of sending there: QUIC takes a datagram that can't be sent for one that was lost. Asked with
/// an empty one, which no collector answers.
fn why_silent(address: SocketAddr) -> String {
    let any: SocketAddr =
        if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let asked = UdpSocket::bind(any).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.connect(address)?;
        socket.send(&[])
    });
    match asked {
        // What netfilter drops or rejects on its way out (send(2) does not list it).
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            "this host's firewall refuses to send there".to_owned()
        }
        Err(error) => format!("this host can't send there: {error}"),
        Ok(_) => format!("no answer within {} s", HANDSHAKE_MS_MAX / 1000),
    }
}

/// What every connection to a collector is held to.
#[must_use]
pub fn limits() -> TransportConfig {
    let mut limits = TransportConfig::default();
    limits
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS_MAX).into()))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .datagram_receive_buffer_size(None);
    limits
}

impl Link {
    /// Says goodbye and waits, shortly, until it is on the wire.
    pub(super) async fn close(self, code: u32, reason: &str, wait: Duration) {
        self.connection.close(VarInt::from_u32(code), reason.as_bytes());
        let _ = tokio::time::timeout(wait, self.endpoint.wait_idle()).await;
    }
}

/// The messages that come on one stream.
#[derive(Debug)]
pub(super) struct Frames {
    stream: RecvStream,
    decoder: Decoder,
}

impl Frames {
    /// Refuses frames over `frame_bytes_max`.
    pub(super) fn new(stream: RecvStream, frame_bytes_max: usize) -> Self {
        Self { stream, decoder: Decoder::new(frame_bytes_max) }
    }

    /// The next message, or `None` at the end of the stream. Safe to drop while it waits: nothing is lost.
    pub(super) async fn next<M: prost::Message + Default>(&mut self) -> anyhow::Result<Option<M>> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(READ_BYTES_MAX, true).await? {
                Some(chunk) => self.decoder.push(&chunk.bytes),
                None => return Ok(None),
            }
        }
    }
}
