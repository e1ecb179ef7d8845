//! Generations of certificates that came into use a moment ago, collected in memory: a fleet that comes at once does not wait
//! for a commit each.
//!
//! Holds at most one entry an agent, and only for agents that have connected. `Identity::flush_seen` writes it down. What a
//! collector that is killed has not written down is confirmed by the next session; until then fewer copies are found, and
//! nobody is taken for one.

use super::generations::{Known, Presented};
use std::collections::HashMap;
use vidette_protocol::id::AgentId;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confirmation {
    pub(super) presented: Presented,
    /// Where the session came from.
    pub(super) address: String,
    pub(super) at_unix_s: i64,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Confirming(HashMap<AgentId, Confirmation>);

impl Confirming {
    /// A session has begun.
    pub(super) fn note(&mut self, agent: AgentId, confirmation: Confirmation) {
        let is_newer = |known: &Confirmation| known.presented.generation < confirmation.presented.generation;
        if self.0.get(&agent).is_none_or(is_newer) {
            self.0.insert(agent, confirmation);
        }
    }

    /// What the register would say if this were written already.
    pub(super) fn refine(&self, agent: AgentId, known: &mut Known) {
        if let Some(waiting) = self.0.get(&agent) {
            known.confirmed = known.confirmed.max(waiting.presented.generation);
        }
    }

    /// Where this generation came into use.
    pub(super) fn address(&self, agent: AgentId, generation: u64) -> Option<String> {
        self.0
            .get(&agent)
            .filter(|waiting| waiting.presented.generation == generation)
            .map(|one| one.address.clone())
    }

    /// Everything that waits.
    pub(super) fn take(&mut self) -> HashMap<AgentId, Confirmation> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_generation_counts_before_it_is_written() {
        let (agent, other) = (AgentId([1; 16]), AgentId([2; 16]));
        let mut confirming = Confirming::default();
        for generation in [3, 5, 4] {
            let presented = Presented { generation, key: [0; 32] };
            let address = format!("host {generation}");
            confirming.note(agent, Confirmation { presented, address, at_unix_s: 1 });
        }
        for (who, before, after) in [(agent, 2, 5), (agent, 7, 7), (other, 2, 2)] {
            let mut known = Known { confirmed: before, ..Known::default() };
            confirming.refine(who, &mut known);
            assert_eq!(known.confirmed, after);
        }
        assert_eq!(confirming.address(agent, 5).as_deref(), Some("host 5"));
        assert_eq!((confirming.address(agent, 4), confirming.address(other, 5)), (None, None));
        assert_eq!(confirming.take().len(), 1);
        assert!(confirming.take().is_empty());
    }
}
