//! A fleet in one process: many agents with certificates of the collector's own CA, over real QUIC, against a real
//! `vidette serve`. For figures: `tests/bench/fleet`.
//!
//! An agent here is its connection and its session, nothing else: no sensors, no outbox. Its limits and pauses are
//! those of `vidette-agent`.

/// Connections, and the sessions on them.
pub mod agents;
/// What such agents send.
pub mod events;
/// What was measured, beside what it should be.
pub mod figures;
/// Agents that have joined, made quickly.
pub mod identities;
