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
/// A join request or answer. Bytes.
pub const JOIN_BYTES_MAX: usize = 32 << 10;

const _: () = assert!(BATCH_BYTES_MAX + 4096 <= FRAME_BYTES_MAX);
const _: () = assert!(EVENT_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX <= BATCH_UNPACKED_BYTES_MAX);
const _: () = assert!(
    (ANCESTORS_MAX + 8) * (PATH_BYTES_MAX + 3 * NAME_BYTES_MAX) + 2 * ARGS_BYTES_MAX < EVENT_BYTES_MAX
);
const _: () = assert!(RULES_MAX * PATTERNS_MAX * PATTERN_DATA_BYTES_MAX < EVENT_BYTES_MAX);
