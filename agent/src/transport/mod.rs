//! Stage 4: events to the collector, acknowledgements back.

/// How long to wait before the next connection. Pure.
pub mod backoff;
/// One class of a session. Pure.
pub mod lane;
/// What to send next and what to make of the answer. Pure.
pub mod session;
