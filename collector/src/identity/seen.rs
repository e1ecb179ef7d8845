//! When agents were last heard, collected in memory so that the register is not written for every `Status`.
//!
//! Assumes that callers name only agents that have connected, so it holds at most one entry an agent.

use std::collections::HashMap;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire;

/// What an agent said.
#[derive(Debug, Clone, Copy)]
pub enum Sign<'a> {
    /// At the start of a session.
    Hello(&'a wire::Hello),
    /// Once a minute.
    Status(&'a wire::Status),
}

/// The newest of it that the register keeps.
#[derive(Debug, Clone)]
pub struct Seen {
    pub(super) at_unix_s: i64,
    pub(super) level: i32,
    pub(super) rules_version: String,
    pub(super) facts: Option<Facts>,
}

/// What only `Hello` says.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) host_name: Vec<u8>,
    pub(super) os: String,
    pub(super) version: String,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Pending {
    agents: HashMap<AgentId, Seen>,
}

impl Pending {
    /// Takes a sign. What an older Hello said stays.
    pub(super) fn note(&mut self, agent: AgentId, sign: Sign<'_>, now_unix_s: i64) {
        let mut seen = Seen::of(sign, now_unix_s);
        if let Some(before) = self.agents.remove(&agent) {
            seen.facts = seen.facts.or(before.facts);
        }
        self.agents.insert(agent, seen);
    }

    /// Everything that waits.
    pub(super) fn take(&mut self) -> HashMap<AgentId, Seen> {
        std::mem::take(&mut self.agents)
    }
}

impl Seen {
    fn of(sign: Sign<'_>, at_unix_s: i64) -> Self {
        match sign {
            Sign::Hello(hello) => Self {
                at_unix_s,
                level: hello.level,
                rules_version: short(&hello.rules_version),
                facts: Some(Facts {
                    host_name: hello.host_name.iter().copied().take(NAME_BYTES_MAX).collect(),
                    os: short(&hello.os),
                    version: short(&hello.agent_version),
                }),
            },
            Sign::Status(status) => Self {
                at_unix_s,
                level: status.level,
                rules_version: short(&status.rules_version),
                facts: None,
            },
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX / 4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_does_not_hide_the_hello_before_it() {
        let agent = AgentId([1; 16]);
        let mut pending = Pending::default();
        let hello = wire::Hello { os: "Linux".into(), ..Default::default() };
        pending.note(agent, Sign::Hello(&hello), 1000);
        pending.note(agent, Sign::Status(&wire::Status { level: 2, ..Default::default() }), 1029);
        let taken = pending.take();
        let seen = &taken[&agent];
        let os = seen.facts.as_ref().map(|facts| facts.os.as_str());
        assert_eq!((seen.level, seen.at_unix_s, os), (2, 1029, Some("Linux")));
        assert!(pending.take().is_empty());
    }
}
