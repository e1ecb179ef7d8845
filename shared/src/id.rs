//! Who sent an event, and the name it has everywhere: `agent/epoch/class/seq`.

use crate::wire;
use std::fmt;
use std::str::FromStr;

/// An agent: 16 random bytes that the collector chose when the host joined. Written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(pub [u8; 16]);

/// The two classes of events. Each has its own stream and its own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Detections, gaps, health, audit: sent at once, dropped last.
    Alert,
    /// Files and processes: sent in batches, dropped first.
    Telemetry,
}

/// One event of one agent. The epoch is random, new whenever the agent's outbox is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    /// Who sent it, by its certificate.
    pub agent: AgentId,
    /// Which outbox of that agent.
    pub epoch: u64,
    /// Which numbers.
    pub class: Class,
    /// The number: 1, 2, 3, …
    pub seq: u64,
}

/// A text that is not an id of the kind asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

impl Class {
    /// Both, most important first.
    pub const ALL: [Self; 2] = [Self::Alert, Self::Telemetry];

    /// Its name in ids and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Telemetry => "telemetry",
        }
    }

    /// From the number on the wire; `None` for a number this version does not know.
    #[must_use]
    pub fn from_wire(number: i32) -> Option<Self> {
        match wire::Class::try_from(number).ok()? {
            wire::Class::Unspecified => None,
            wire::Class::Alert => Some(Self::Alert),
            wire::Class::Telemetry => Some(Self::Telemetry),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> i32 {
        match self {
            Self::Alert => wire::Class::Alert as i32,
            Self::Telemetry => wire::Class::Telemetry as i32,
        }
    }

    /// The class an event belongs to by its kind; `None` for an event of no kind that is known here.
    #[must_use]
    pub fn of(event: &wire::Event) -> Option<Self> {
        use wire::event::Kind;
        match event.kind.as_ref()? {
            Kind::Detection(_) | Kind::Gap(_) | Kind::Health(_) | Kind::Audit(_) => Some(Self::Alert),
            Kind::File(_) | Kind::Process(_) => Some(Self::Telemetry),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == text)
            .ok_or_else(|| IdError { text: text.into(), expected: "a class (alert, telemetry)" })
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AgentId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError { text: text.into(), expected: "an agent id (32 hex digits)" })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}/{}/{}", self.agent, self.epoch, self.class, self.seq)
    }
}

impl FromStr for EventId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: text.into(), expected: "an event id (agent/epoch/class/seq)" };
        let parts: Vec<&str> = text.split('/').collect();
        let [agent, epoch, class, seq] = parts[..] else { return Err(error()) };
        Ok(Self {
            agent: agent.parse().map_err(|_| error())?,
            epoch: u64::from_str_radix(epoch, 16).map_err(|_| error())?,
            class: class.parse().map_err(|_| error())?,
            seq: seq.parse().map_err(|_| error())?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_as_it_was_written() {
        let id = EventId { agent: AgentId([0xab; 16]), epoch: 7, class: Class::Telemetry, seq: 42 };
        let text = id.to_string();
        assert_eq!(text, "abababababababababababababababab/0000000000000007/telemetry/42");
        assert_eq!(text.parse::<EventId>().unwrap(), id);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "a/b/c/d", "abab/1/alert/1", "abababababababababababababababab/1/alert/-1", "////"] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }
}
