//! Signs that somebody meddles with the agent itself: who asked for its end, how the last run ended, what happened to its
//! unit, and that it could not reach its collector.
//!
//! What is decided here is pure. `pipeline` looks, asks and tells; each sign is one audit event.

/// Who asked for the end.
pub mod asked;
/// How the run before this one ended.
pub mod life;
/// When the collector could not be reached.
pub mod outage;
/// The unit that systemd runs the agent as.
pub mod unit;

use vidette_protocol::wire::{self, Severity, event::Kind};

/// What is told of a sign.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// In one word, for programs.
    pub action: &'static str,
    /// How bad.
    pub severity: Severity,
    /// For people.
    pub detail: String,
    /// Who did it, where that is known.
    pub process: Option<wire::Process>,
}

impl Told {
    /// As an event has it.
    #[must_use]
    pub fn kind(self) -> Kind {
        Kind::Audit(wire::Audit {
            action: self.action.to_owned(),
            outcome: "success".to_owned(),
            detail: self.detail,
            process: self.process,
        })
    }
}
