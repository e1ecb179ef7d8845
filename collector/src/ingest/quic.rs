//! The endpoint: one UDP socket, and the limits of every connection on it (RFC 9000).
//!
//! quinn's defaults are changed on purpose: its receive window is unbounded and it allows a hundred streams.
//! `Frames` reads messages; `mod` accepts connections; `orphans` sends on the same socket before anybody has come.

use crate::identity::Identity;
use anyhow::Context;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connecting, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Incoming,
    RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use quinn_proto::{HashedConnectionIdGenerator, InvalidCid};
use ring::hmac;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_protocol::bounds::Shape;
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
/// Connections that wait for their handshake to begin: some seconds' worth. Who comes when a whole fleet waits is turned away and
/// comes back by its own pauses.
const INCOMING_MAX: usize = 4096;
/// What they may have sent by then, all together. Bytes.
const INCOMING_BYTES_MAX: u64 = 16 << 20;
/// For a fleet that comes at once: what the socket drops then is sent again late, and an agent that lost much begins anew only after
/// many seconds. With less acks take seconds under load, too. Bytes.
const SOCKET_BUFFER_BYTES: usize = 16 << 20;
/// What is read from a stream at a time. Bytes.
const READ_BYTES_MAX: usize = 64 << 10;
/// A frame that has begun must go on: after so long without its end, and a second more for every so many bytes, it is
/// late. Who is late twice is cut. Milliseconds, bytes.
const FRAME_MS_MAX: u64 = 10_000;
const FRAME_BYTES_PER_S_MIN: usize = 4096;
/// An agent that does not take its answers for so long is cut. Milliseconds.
const WRITE_MS_MAX: u64 = 10_000;

/// Between two answers to datagrams of connections that are not known here. Without a pause: quinn takes many datagrams at one
/// moment and would answer the first of them, and an agent whose connection began under load tries again only after many
/// seconds. An answer is shorter than what it answers, and only ids that may be ours get one.
const RESET_EVERY_MIN: Duration = Duration::ZERO;

const _: () = assert!(STREAM_WINDOW_BYTES as usize > BATCH_BYTES_MAX);

/// Opens the socket and the endpoint, and gives the socket for `orphans` too. Needs a tokio runtime.
pub(super) fn endpoint(
    listen: SocketAddr,
    tls: Arc<QuicServerConfig>,
    identity: &Identity,
) -> anyhow::Result<(Endpoint, UdpSocket)> {
    let socket = socket(listen).with_context(|| {
        format!("could not listen on UDP {listen}; if another program has that port, stop it or set another `listen`")
    })?;
    let keys = identity.quic_keys();
    let mut config = EndpointConfig::new(Arc::new(reset_key(identity)));
    let connection_id = keys.connection_id;
    config.min_reset_interval(RESET_EVERY_MIN);
    config.cid_generator(move || Box::new(Ids(HashedConnectionIdGenerator::from_key(connection_id))));
    let mut server = ServerConfig::with_crypto(tls);
    server
        .transport_config(Arc::new(limits()))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    let shared = socket.try_clone().context("could not share the UDP socket")?;
    let endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
        .context("could not start QUIC")?;
    Ok((endpoint, shared))
}

/// Makes the tokens of stateless resets; the same in every run (RFC 9000 section 10.3.2).
pub(super) fn reset_key(identity: &Identity) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &identity.quic_keys().reset)
}

/// Begins a handshake. The id is the one that the agent will send to for as long as the connection lasts: it has no
/// reason to take another.
pub(super) fn accept(incoming: Incoming) -> Result<(Connecting, Option<ConnectionId>), ConnectionError> {
    GIVEN.set(None);
    let connecting = incoming.accept()?;
    Ok((connecting, GIVEN.take()))
}

thread_local! {
    /// The id that was made last on this thread. quinn tells nobody the ids of a connection, but makes the first one
    /// within `accept`, on the caller's thread.
    static GIVEN: Cell<Option<ConnectionId>> = const { Cell::new(None) };
}

/// quinn's own ids, noted.
struct Ids(HashedConnectionIdGenerator);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let id = self.0.generate_cid();
        GIVEN.set(Some(id));
        id
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        self.0.validate(id)
    }

    fn cid_len(&self) -> usize {
        self.0.cid_len()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.0.cid_lifetime()
    }
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
        // Answers fit in one datagram: the buffer of ten that would be kept for every agent is never filled.
        .enable_segmentation_offload(false)
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
    /// What repeats in these messages.
    shape: &'static Shape,
    /// How long the rest of a frame was waited for. Time in which nobody asked does not count.
    waited: Duration,
}

/// Counts the time until it is dropped.
struct Waiting<'a> {
    since: Instant,
    sum: &'a mut Duration,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.sum += self.since.elapsed();
    }
}

/// Why there is no next message.
#[derive(Debug, thiserror::Error)]
pub(super) enum FramesError {
    /// The peer broke the format: cut it.
    #[error(transparent)]
    Format(#[from] frame::FrameError),
    /// A frame was begun and not finished. The next call waits for it once more.
    #[error("a frame of {0} bytes was begun and not finished in time")]
    Late(usize),
    /// The connection or the stream is gone.
    #[error(transparent)]
    Gone(#[from] quinn::ReadError),
}

impl Frames {
    /// Refuses frames over `frame_bytes_max`, and messages over the lists of `shape`.
    pub(super) fn new(stream: RecvStream, frame_bytes_max: usize, shape: &'static Shape) -> Self {
        Self { stream, decoder: Decoder::new(frame_bytes_max), shape, waited: Duration::ZERO }
    }

    /// The next message, or `None` at the end of the stream. Safe to drop while it waits: nothing is lost.
    /// Nothing more is read from the stream while nobody asks: QUIC's window is the backpressure.
    pub(super) async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, FramesError> {
        loop {
            if let Some(message) = self.decoder.next_within(self.shape)? {
                self.waited = Duration::ZERO;
                return Ok(Some(message));
            }
            let chunk = match self.decoder.begun() {
                None => self.stream.read_chunk(READ_BYTES_MAX, true).await?,
                Some(bytes) => {
                    let left = patience(bytes).saturating_sub(self.waited);
                    let counted = Waiting { since: Instant::now(), sum: &mut self.waited };
                    let read = tokio::time::timeout(left, self.stream.read_chunk(READ_BYTES_MAX, true)).await;
                    drop(counted);
                    let Ok(read) = read else {
                        self.waited = Duration::ZERO;
                        return Err(FramesError::Late(bytes));
                    };
                    read?
                }
            };
            match chunk {
                Some(chunk) => self.decoder.push(&chunk.bytes),
                None => return Ok(None),
            }
        }
    }
}

/// How long the rest of a frame of so many bytes may take.
fn patience(bytes: usize) -> Duration {
    Duration::from_millis(FRAME_MS_MAX) + Duration::from_secs((bytes / FRAME_BYTES_PER_S_MIN) as u64)
}

/// Sends one message. A peer that does not take it in time is an error.
pub(super) async fn send(stream: &mut SendStream, message: &impl prost::Message) -> anyhow::Result<()> {
    let bytes = frame::encode(message);
    tokio::time::timeout(Duration::from_millis(WRITE_MS_MAX), stream.write_all(&bytes))
        .await
        .with_context(|| format!("it did not take its answers for {} s", WRITE_MS_MAX / 1000))??;
    Ok(())
}
