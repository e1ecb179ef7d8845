//! What the end-to-end tests, the demo and the benchmarks share: real processes, started and stopped.

/// A Debian system in a folder, for packages to be installed in.
pub mod debian;
/// Agent and collector under every fault that one machine can have, and what must be stored after each.
pub mod faults;
/// Many agents in one process, for figures.
pub mod fleet;
/// A thread of a program that hangs.
pub mod frozen;
/// Inputs that nobody expects, for the workers and for who hears them.
pub mod fuzz;
/// Trees of files that are scanned for a figure.
pub mod grounds;
/// An agent with a valid certificate that misbehaves, and honest ones beside it.
pub mod hostile_agent;
/// Names of files that try to do harm, for every output.
pub mod hostile_names;
/// Agent and collector as real processes in a temporary folder.
pub mod programs;
/// Rule sets of a wanted size out of public rules.
pub mod rulesets;
/// Files that rules must match, made at run time, so that the tree itself holds none.
pub mod samples;
/// The rules of the house, as checks.
pub mod shape;
/// A receiver of RFC 5424 messages with octet counting.
pub mod syslog;
/// More at once than an agent can look at.
pub mod storms;
