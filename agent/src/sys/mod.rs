//! System calls that no safe crate covers, each in a small documented wrapper. The only folder with `unsafe`.

/// What the worker's sandbox must deny, tried for real.
#[cfg(target_os = "linux")]
pub mod attempts;
/// Gives up every right that the worker does not need.
#[cfg(target_os = "linux")]
pub mod sandbox;
