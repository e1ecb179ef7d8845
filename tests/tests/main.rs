//! Vidette's tests across packages: each module carries a sentence.

mod transport;
