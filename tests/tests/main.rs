//! The one top-level test binary. Each module says what it shows.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod ca_life;
mod delivery;
mod evasion;
mod faults;
mod fleet;
mod fuzz;
mod hostile_agent;
mod hostile_names;
mod identity_life;
mod joining;
mod names_end_to_end;
mod outside;
mod packages;
mod rules;
mod shape;
mod storms;
mod tamper;
mod transport;
