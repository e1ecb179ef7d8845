//! The only folder with `unsafe`: thin wrappers over system calls, one file a subject.
//!
//! Nothing here decides anything. Each unsafe block says why it is sound.

/// Linux: files that were written or are about to be run, each with an open descriptor.
#[cfg(target_os = "linux")]
pub mod fanotify;
/// Linux: fork, exec and exit of every process.
#[cfg(target_os = "linux")]
pub mod connector;
