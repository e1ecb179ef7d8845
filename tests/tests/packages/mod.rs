//! The packages and their units: what is in them, what installing, upgrading, killing, removing and purging do to a
//! Debian system, and how little the services may.

mod booted;
mod capabilities;
mod images;
mod killed;
mod life;
mod rig;
mod rpm;
mod settings;
mod units;
