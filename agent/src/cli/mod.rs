//! The command line as typed.

/// `vidette-agent join`.
pub mod join;
