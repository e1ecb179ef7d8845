//! Vidette's agent. `sensors -> detection (-> worker) -> outbox -> transport ==QUIC==> collector`.
//!
//! A stage imports only stages before it; `pipeline` alone sees all of them. What is needed on the way:
//! `sys` (system calls), `config`, `stop`, `telemetry` (counters).

/// The command line as typed.
pub mod cli;
/// Settings as written, then as used.
pub mod config;
/// Which host, which boot, what time.
pub mod host;
/// 1. What happens on the host, as observations with open descriptors.
pub mod sensors;
/// 2. What to scan and when; verdicts become events.
pub mod detection;
/// 2b. The sandboxed process that parses file content, and the handle to it.
pub mod worker;
/// 3. Events on disk until the collector has them.
pub mod outbox;
/// 4. Events to the collector, acknowledgements back.
pub mod transport;
/// Signs that somebody meddles with the agent itself.
pub mod tamper;
/// Which queue leads where: every thread and channel is made here.
pub mod pipeline;
/// How the agent is, told to `vidette-agent status`.
pub mod status;
/// The one way to end: a flag that every stage hears.
pub mod stop;
/// Whether the data path goes on.
pub mod progress;
/// systemd's watchdog, fed as long as it does.
mod watchdog;
/// The agent's own folder, for one agent at a time.
pub mod folder;
/// Counters of every stage: seen = passed + shed + lost.
pub mod telemetry;
/// The only folder with `unsafe`: thin wrappers over system calls.
#[allow(unsafe_code)]
pub mod sys;
