//! The command line, one file a command.

/// `rules check FILE…`.
pub mod rules;
/// `scan PATH…`.
pub mod scan;
/// Every regular file under a path.
pub mod walk;
