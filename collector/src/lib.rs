//! Vidette's collector. `agents ==QUIC==> ingest (identity) -> store -> sinks -> SIEM`; `outside` looks at all of them.
//!
//! A stage imports only stages before it; `pipeline` alone sees all of them. The fleet commands of `cli`
//! talk to a running `vidette serve` over a root-only Unix socket.

/// Settings as written, then as used.
pub mod config;
/// Who an agent is: CA, join tokens, certificates, revocation.
pub mod identity;
/// 5. Batches from agents, acknowledgements back.
pub mod ingest;
/// 6. Every event once, committed.
pub mod store;
/// 7. Events to the SIEM, each sink with its own durable cursor.
pub mod sinks;
/// How all of them do: for people, for Prometheus, for health checks.
pub mod outside;
/// A copy of what can't be made again, and back.
pub mod backup;
/// The command line: `serve` and every fleet command.
pub mod cli;
/// Which queue leads where: every thread, task and channel is made here.
pub mod pipeline;
/// Tells systemd how the collector is.
pub mod service;
/// The one way to end.
pub mod stop;
/// The log.
pub mod telemetry;
