//! What agent and collector both read and write: the contract, its limits, and how an event is shown.
//!
//! Path: an event is made (`wire`), bounded (`bounds`, `check`), packed (`batch`), framed (`frame`), named (`id`),
//! and shown (`ecs`, through `escape`). Nothing here does I/O or knows of a clock.

/// The limits of everything that crosses the wire.
pub mod limits;
/// Messages generated from `proto/vidette.proto`.
pub mod wire;
/// Who sent an event, and its name everywhere: `agent/epoch/class/seq`.
pub mod id;
/// How long the lists of an encoded message are, before it is decoded.
pub mod bounds;
/// Whether a decoded event keeps within its limits.
pub mod check;
/// Runs of consecutive events, compressed.
pub mod batch;
/// Messages on a stream.
pub mod frame;
/// The line that is pasted on a host to enrol it.
pub mod join;
/// Attacker's bytes made harmless, by format. The only place that does it.
pub mod escape;
/// An event as JSON with the field names of the Elastic Common Schema.
pub mod ecs;

/// Version of the session protocol, sent in `Hello` and `Welcome`.
pub const PROTOCOL: u32 = 1;
/// ALPN of the session: needs a client certificate.
pub const ALPN: &[u8] = b"vidette/1";
/// ALPN of joining and renewing: works without a client certificate.
pub const ALPN_JOIN: &[u8] = b"vidette-join/1";
/// The name in every collector's certificate, so that an address may change.
pub const COLLECTOR_NAME: &str = "collector.vidette.internal";

/// QUIC application close code (RFC 9000 section 20.2): all is said. Codes 1 to 15 are a `RefuseCode`.
pub const CLOSE_DONE: u32 = 0;
/// The collector closes one connection of an agent because the same agent has opened a newer one.
pub const CLOSE_REPLACED: u32 = 16;
/// The one who closes is being stopped or restarted. Connect again soon.
pub const CLOSE_STOPPING: u32 = 17;
