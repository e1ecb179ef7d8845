//! The fault campaign: real agent and collector, one fault after another, and the list of what must be stored.
//!
//! Path inside: `campaign` draws a plan from a seed -> `table` says how each fault is injected and lifted -> `world` runs
//! the programs under `shim` (disk, clock, datagrams) behind `link` (a network of their own) and starts again what
//! died, as systemd would -> `oracle` compares what is stored with what was written. A cut of power is `power`.

/// The preloaded library, and the numbers that steer it.
pub mod shim;
/// What is on disk after the power went.
pub mod power;
/// Two ends of a cable that can be cut.
pub mod link;
/// One program, kept alive.
pub mod daemon;
/// Agent and collector, and who starts them again.
pub mod world;
/// What must be stored, and what is.
pub mod oracle;
/// Every fault: its name, how it is injected and lifted.
pub mod table;
/// Cycle after cycle, from a seed.
pub mod campaign;
