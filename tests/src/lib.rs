//! Vidette.

/// File names that formats, terminals, shells and spreadsheets trip over.
pub mod hostile_names;
