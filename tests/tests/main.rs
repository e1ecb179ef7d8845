//! One test binary; each module says what it shows.
#![allow(clippy::unwrap_used)]

mod hostile_names;
mod rules;
