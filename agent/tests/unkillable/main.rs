//! Hostile rules, hostile files, a hostile world: each costs at most its own verdict, is told with the rule or file that
//! did it, and the next file is scanned. All through the real worker.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

/// A pool, a stage, and what comes of them.
mod rig;
/// Rules that loop, eat memory, match without end, kill the compiler, try to get out.
mod rules;
/// Rules that only together are too much, or that take too long to compile.
mod together;
/// Files that are huge, endless, no files, or on file systems that do not answer.
mod files;
/// The worker killed, stopped, replaced on disk, without memory or descriptors.
mod world;
/// The limit of open files, reached while they run.
mod descriptors;
/// What the whole stage tells of all that.
mod told;
#[path = "../fuse/mod.rs"]
mod fuse;
