//! Vidette.
