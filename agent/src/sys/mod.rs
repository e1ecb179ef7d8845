//! System calls that no safe crate covers, each in a thin documented wrapper. The only folder with `unsafe`.
//!
//! Nothing here decides anything. Each unsafe block says why it is sound.

/// How much the allocator keeps.
pub mod memory;
/// Which clock goes on while the host sleeps.
pub mod clock;
/// Which file systems hold files of this host.
pub mod filesystem;
/// Linux: files that were written or are about to be run, each with an open descriptor.
#[cfg(target_os = "linux")]
pub mod fanotify;
/// Linux: objects by their file handles.
#[cfg(target_os = "linux")]
pub mod handles;
/// Linux: fork, exec and exit of every process.
#[cfg(target_os = "linux")]
pub mod connector;
/// Linux: which pages of a process are in memory.
#[cfg(target_os = "linux")]
pub mod pagemap;
/// Linux: how urgent a thread is.
#[cfg(target_os = "linux")]
pub mod schedule;
/// Linux: signals that ask for the end, and who sent them.
#[cfg(target_os = "linux")]
pub mod signals;
/// Linux: tells systemd how the service is.
#[cfg(target_os = "linux")]
pub mod notify;
/// Files without a name.
pub mod scratch;
/// Gives way to everybody else.
pub mod background;
/// Gives up every right that the worker does not need.
#[cfg(target_os = "linux")]
pub mod sandbox;
/// What the worker's sandbox must deny, tried for real.
#[cfg(target_os = "linux")]
pub mod attempts;
