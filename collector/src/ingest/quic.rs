//! The endpoint: one UDP socket, and the limits of every connection on it (RFC 9000).
//!
//! quinn's defaults are changed on purpose: its receive window is unbounded and it allows a hundred streams.
//! `Frames` reads messages; `mod` accepts connections.

use crate::identity::Identity;
use anyhow::Context;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::frame::{self, Decoder};
use vidette_protocol::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX};

/// Streams an agent may open: control and one a class.
pub(super) const STREAMS_MAX: u32 = 3;
/// What an agent may send unread on one stream: a batch, and the next one's start. Bytes.
const STREAM_WINDOW_BYTES: u32 = (FRAME_BYTES_MAX + (256 << 10)) as u32;
/// What it may send unread on all streams. Bytes.
const RECEIVE_WINDOW_BYTES: u32 = 2 * STREAM_WINDOW_BYTES;
/// What is sent and not yet confirmed by its QUIC: answers are small. Bytes.
const SEND_WINDOW_BYTES: u64 = 128 << 10;
/// A silent connection is dead after this. Milliseconds.
const IDLE_MS_MAX: u32 = 60_000;
/// Connections that wait for their handshake to begin.
const INCOMING_MAX: usize = 1024;
/// What they may have sent by then, all together. Bytes.
const INCOMING_BYTES_MAX: u64 = 8 << 20;
/// With less the socket drops datagrams under load and acks take seconds. Bytes.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// What is read from a stream at a time. Bytes.
const READ_BYTES_MAX: usize = 64 << 10;
/// An agent that does not take its answers for so long is cut. Milliseconds.
const WRITE_MS_MAX: u64 = 10_000;

const _: () = assert!(STREAM_WINDOW_BYTES as usize > BATCH_BYTES_MAX);

/// Opens the socket and the endpoint. Needs a tokio runtime.
pub(super) fn endpoint(
    listen: SocketAddr,
    tls: Arc<QuicServerConfig>,
    identity: &Identity,
) -> anyhow::Result<Endpoint> {
    let socket = socket(listen).with_context(|| {
        format!("could not listen on UDP {listen}; if another program has that port, stop it or set another `listen`")
    })?;
    let keys = identity.quic_keys();
    let mut config =
        EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys.reset)));
    let connection_id = keys.connection_id;
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(connection_id)));
    let mut server = ServerConfig::with_crypto(tls);
    server
        .transport_config(Arc::new(limits()))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime)).context("could not start QUIC")
}

fn limits() -> TransportConfig {
    let mut limits = TransportConfig::default();
    limits
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS_MAX).into()))
        .datagram_receive_buffer_size(None);
    limits
}

/// A bound UDP socket with a large receive buffer; warns when the system does not give it.
fn socket(listen: SocketAddr) -> anyhow::Result<UdpSocket> {
    let family = if listen.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if listen.is_ipv6() && listen.ip().is_unspecified() {
        // One socket for both families, whatever the system's default is (ipv6(7), IPV6_V6ONLY).
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // FORCE needs CAP_NET_ADMIN and passes over net.core.rmem_max (socket(7)).
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    let bytes = sockopt::socket_recv_buffer_size(&socket)?;
    if bytes < SOCKET_BUFFER_BYTES {
        tracing::warn!(
            bytes,
            wanted = SOCKET_BUFFER_BYTES,
            "the UDP receive buffer is small, under load acknowledgements will be slow; \
             run `sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}`"
        );
    }
    rustix::net::bind(&socket, &listen)?;
    Ok(UdpSocket::from(socket))
}

/// The messages that come on one stream.
#[derive(Debug)]
pub(super) struct Frames {
    stream: RecvStream,
    decoder: Decoder,
}

/// Why there is no next message.
#[derive(Debug, thiserror::Error)]
pub(super) enum FramesError {
    /// The peer broke the format: cut it.
    #[error(transparent)]
    Format(#[from] frame::FrameError),
    /// The connection or the stream is gone.
    #[error(transparent)]
    Gone(#[from] quinn::ReadError),
}

impl Frames {
    /// Refuses frames over `frame_bytes_max`.
    pub(super) fn new(stream: RecvStream, frame_bytes_max: usize) -> Self {
        Self { stream, decoder: Decoder::new(frame_bytes_max) }
    }

    /// The next message, or `None` at the end of the stream. Safe to drop while it waits: nothing is lost.
    /// Nothing more is read from the stream while nobody asks: QUIC's window is the backpressure.
    pub(super) async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, FramesError> {
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

/// Sends one message. A peer that does not take it in time is an error.
pub(super) async fn send(stream: &mut SendStream, message: &impl prost::Message) -> anyhow::Result<()> {
    let bytes = frame::encode(message);
    tokio::time::timeout(Duration::from_millis(WRITE_MS_MAX), stream.write_all(&bytes))
        .await
        .with_context(|| format!("it did not take its answers for {} s", WRITE_MS_MAX / 1000))??;
    Ok(())
}
