//! The one top-level test binary. Each module says what it shows.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod crash;
mod delivery;
mod evasion;
mod fuzz;
mod hostile_names;
mod names_end_to_end;
mod rules;
mod shape;
mod storms;
mod transport;
