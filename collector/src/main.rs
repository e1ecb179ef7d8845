//! Vidette.
fn main() {}
