//! The limits of everything that crosses the wire, each with its unit, and the relations between them.

/// One frame: its body, without the length. Bytes.
pub const FRAME_BYTES_MAX: usize = (1 << 20) + 4096;
/// The compressed events of one batch. Bytes.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// The events of one batch when unpacked. Bytes.
pub const BATCH_UNPACKED_BYTES_MAX: usize = 4 << 20;
/// Events in one batch.
pub const BATCH_EVENTS_MAX: usize = 4096;
/// Batches of one class that wait for their Ack.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// One encoded event. Bytes.
pub const EVENT_BYTES_MAX: usize = 256 << 10;
/// A path: Linux's PATH_MAX and then some, because a descriptor's path may carry ` (deleted)`. Bytes.
pub const PATH_BYTES_MAX: usize = 4096 + 64;
/// A name of a process, user or host. Bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Arguments of one process.
pub const ARGS_MAX: usize = 256;
/// All arguments of one process together. Bytes.
pub const ARGS_BYTES_MAX: usize = 16 << 10;
/// Ancestors of one process, beyond its parent.
pub const ANCESTORS_MAX: usize = 16;
/// Rules in one detection.
pub const RULES_MAX: usize = 64;
/// Patterns of one rule in one detection.
pub const PATTERNS_MAX: usize = 16;
/// The data of one pattern's match that is kept. Bytes.
pub const PATTERN_DATA_BYTES_MAX: usize = 64;
/// A text: detail, message, description, reason. Bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Entries of a list of short texts: techniques, tags, counters.
pub const LIST_MAX: usize = 64;
/// The highest number an event can have: what SQLite's integers hold.
pub const SEQ_MAX: u64 = i64::MAX as u64;
/// What the decoded events of one batch may take in memory, their encoded bytes included. An agent's own batches stay
/// far below: it reads less than 1 MiB at a time. Bytes.
pub const BATCH_MEMORY_BYTES_MAX: usize = 16 << 20;
/// A heartbeat: how often an agent sends a Status when nobody says otherwise. Seconds.
pub const HEARTBEAT_S: u32 = 60;
/// The shortest and the longest that a collector may ask for. Seconds.
pub const HEARTBEAT_S_MIN: u32 = 10;
/// See [`HEARTBEAT_S_MIN`]. Seconds.
pub const HEARTBEAT_S_MAX: u32 = 3600;
/// An agent that was not heard for so many heartbeats is silent.
pub const HEARTBEATS_MISSED_MAX: u32 = 2;
/// The part of an agent's health that is its clock.
pub const CLOCK_PART: &str = "clock";
/// A join request or answer. Bytes.
pub const JOIN_BYTES_MAX: usize = 32 << 10;
/// CAs that an agent trusts at a time.
pub const ROOTS_MAX: usize = 4;
/// The certificate of one of them. Bytes.
pub const ROOT_BYTES_MAX: usize = 4 << 10;
/// SHA-256 of one. Bytes.
pub const ROOT_DIGEST_BYTES: usize = 32;
/// A whole fleet renews within this when a CA is replaced. Seconds.
pub const RENEW_WITHIN_S_MAX: u32 = 3600;

const _: () = assert!(HEARTBEAT_S_MIN <= HEARTBEAT_S && HEARTBEAT_S <= HEARTBEAT_S_MAX);
const _: () = assert!(BATCH_BYTES_MAX + 4096 <= FRAME_BYTES_MAX);
const _: () = assert!(ROOTS_MAX * ROOT_BYTES_MAX < JOIN_BYTES_MAX);
const _: () = assert!(EVENT_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX <= BATCH_UNPACKED_BYTES_MAX);
const _: () = assert!(
    (ANCESTORS_MAX + 8) * (PATH_BYTES_MAX + 3 * NAME_BYTES_MAX) + 2 * ARGS_BYTES_MAX < EVENT_BYTES_MAX
);
const _: () = assert!(RULES_MAX * PATTERNS_MAX * PATTERN_DATA_BYTES_MAX < EVENT_BYTES_MAX);
