//! How far each agent has followed the replacement of a CA, as it shows at its connections: which root certificates it
//! trusts, and whose certificate it has.
//!
//! Collected in memory and written with what else was seen: a collector that is killed learns it again at the next
//! connection. Assumes that callers name only agents that have connected, so it holds at most one entry an agent.

use rusqlite::{Transaction, params};
use std::collections::HashMap;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::{ROOT_DIGEST_BYTES, ROOTS_MAX};

/// What was learnt of one agent since it was written down last.
#[derive(Debug, Default)]
pub(super) struct Followed {
    shown_ca: Option<[u8; 32]>,
    host_mark: Option<Vec<u8>>,
    /// `None` in it: it does not say what it trusts.
    roots: Option<(i64, Option<Vec<u8>>)>,
}

/// What waits to be written.
pub(super) type Following = HashMap<AgentId, Followed>;

impl Followed {
    /// It showed a certificate that this key signed.
    pub(super) fn shows(&mut self, ca: [u8; 32]) {
        self.shown_ca = Some(ca);
    }

    /// It trusts certificates with these digests, and no others. None at all: it is too old to say so.
    pub(super) fn trusts(&mut self, digests: &[Vec<u8>], now_unix_s: i64) {
        let whole = digests.iter().filter(|digest| digest.len() == ROOT_DIGEST_BYTES).take(ROOTS_MAX);
        let all: Vec<u8> = whole.flatten().copied().collect();
        self.roots = Some((now_unix_s, (!all.is_empty()).then_some(all)));
    }

    /// Its host's mark with the key of the active CA. As said at a join: it only points at older agents.
    pub(super) fn is_marked(&mut self, host_mark: &[u8]) {
        self.host_mark = Some(host_mark.to_vec());
    }

    pub(super) fn store(&self, transaction: &Transaction<'_>, agent: AgentId) -> rusqlite::Result<()> {
        if let Some(ca) = self.shown_ca {
            let sql = "UPDATE agents SET shown_ca = ?2 WHERE id = ?1";
            transaction.prepare_cached(sql)?.execute(params![agent.0, ca])?;
        }
        if let Some(mark) = &self.host_mark {
            let sql = "UPDATE agents SET host_mark = ?2 WHERE id = ?1";
            transaction.prepare_cached(sql)?.execute(params![agent.0, mark])?;
        }
        if let Some((at_unix_s, roots)) = &self.roots {
            let sql = "UPDATE agents SET roots = ?2, roots_unix_s = ?3 WHERE id = ?1";
            transaction.prepare_cached(sql)?.execute(params![agent.0, roots, at_unix_s])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_trusts_is_bounded_and_nothing_is_no_answer() {
        let mut followed = Followed::default();
        followed.trusts(&[vec![1; 32], vec![2; 31], vec![3; 33], vec![4; 32]], 5);
        assert_eq!(followed.roots, Some((5, Some([[1; 32], [4; 32]].concat()))));
        followed.trusts(&vec![vec![1; 32]; 100], 6);
        assert!(
            followed
                .roots
                .as_ref()
                .is_some_and(|(_, roots)| roots.as_ref().map(Vec::len) == Some(32 * ROOTS_MAX))
        );
        followed.trusts(&[], 7);
        assert_eq!(followed.roots, Some((7, None)));
    }
}
