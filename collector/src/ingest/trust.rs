//! Which CAs an agent is told to trust within a session, and what it says that it trusts. Pure.
//!
//! `session` asks at the Welcome and whenever the CAs change; nothing is told to an agent that would not understand it.

use crate::identity::Roots;
use std::sync::Arc;
use vidette_protocol::limits::{ROOT_DIGEST_BYTES, ROOTS_MAX};
use vidette_protocol::wire;

/// Of one session.
#[derive(Debug, Default)]
pub(super) struct Trust {
    wanted: Option<Arc<Roots>>,
    renew_within_s: u32,
    /// As it says. Empty: it does not know `Roots`.
    trusted: Vec<Vec<u8>>,
}

impl Trust {
    /// What agents have to trust; and when not 0, that this one's certificate is of a CA that is being replaced.
    pub(super) fn want(&mut self, roots: Arc<Roots>, renew_within_s: u32) {
        (self.wanted, self.renew_within_s) = (Some(roots), renew_within_s);
    }

    /// What it trusts, by its own words.
    pub(super) fn says(&mut self, digests: &[Vec<u8>]) {
        self.trusted = digests.to_vec();
    }

    /// What it has to be told, when that is news to it.
    pub(super) fn offer(&self) -> Option<wire::Roots> {
        let roots = self.wanted.as_ref()?;
        let is_same = self.trusted.len() == roots.digests.len()
            && roots.digests.iter().all(|digest| self.trusted.contains(digest));
        if self.trusted.is_empty() || (is_same && self.renew_within_s == 0) {
            return None;
        }
        Some(wire::Roots { roots_der: roots.ders.clone(), renew_within_s: self.renew_within_s })
    }
}

/// Whether these may be the digests of what an agent trusts.
pub(super) fn are_digests(digests: &[Vec<u8>]) -> bool {
    digests.len() <= ROOTS_MAX && digests.iter().all(|digest| digest.len() == ROOT_DIGEST_BYTES)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::session::{Input, Output, Seen, Session, Stream};
    use super::*;
    use std::time::Instant;
    use vidette_protocol::id::AgentId;
    use vidette_protocol::wire::{RefuseCode, to_agent, to_collector};

    fn roots(count: u8) -> Arc<Roots> {
        let all = |length| (0..count).map(|number| vec![number; length]).collect();
        Arc::new(Roots { ders: all(100), digests: all(ROOT_DIGEST_BYTES), issuer: Vec::new() })
    }

    fn frame(message: to_collector::Message) -> Input {
        Input::Frame(Stream::Control, wire::ToCollector { message: Some(message) })
    }

    /// A session of an agent that trusts so many, which has to trust so many.
    fn open(trusts: u8, wanted: u8) -> (Session, Vec<wire::Roots>) {
        let (now, mut told) = (Instant::now(), Vec::new());
        let mut session = Session::new(AgentId([1; 16]), now);
        let hello =
            wire::Hello { protocol: 1, epoch: 7, roots: roots(trusts).digests.clone(), ..Default::default() };
        let inputs = [
            Input::Roots { roots: roots(wanted), renew_within_s: 0 },
            frame(to_collector::Message::Hello(hello)),
            Input::Loaded { epoch: 7, durable: Vec::new(), time_unix_ns: 0 },
        ];
        let mut is_welcomed = false;
        for output in inputs.into_iter().flat_map(|input| session.handle(input, now)) {
            if let Output::Send { message, .. } = output {
                match message.message.unwrap() {
                    to_agent::Message::Roots(roots) if is_welcomed => told.push(roots),
                    to_agent::Message::Welcome(_) => is_welcomed = true,
                    other => panic!("{other:?}"),
                }
            }
        }
        (session, told)
    }

    fn say(session: &mut Session, input: Input) -> Vec<Output> {
        session.handle(input, Instant::now())
    }

    #[test]
    fn only_who_understands_it_is_told_and_only_what_is_news() {
        for (trusts, wanted, is_told) in
            [(0, 1, false), (1, 1, false), (1, 2, true), (2, 1, true), (2, 2, false)]
        {
            let (mut session, told) = open(trusts, wanted);
            assert_eq!(told.len(), usize::from(is_told), "{trusts} {wanted}");
            let more = say(&mut session, Input::Roots { roots: roots(3), renew_within_s: 0 });
            assert_eq!(more.len(), usize::from(trusts > 0), "a change while it is connected");
            let again = say(&mut session, Input::Roots { roots: roots(wanted), renew_within_s: 9 });
            assert_eq!(again.len(), usize::from(trusts > 0), "a renewal is asked for even so");
        }
    }

    #[test]
    fn what_it_kept_is_not_told_again_and_nonsense_is_misbehaviour() {
        let (mut session, told) = open(1, 2);
        assert_eq!(told[0].roots_der.len(), 2);
        let kept = |digests| wire::RootsKept { digests, host_mark: vec![7; 32] };
        let good = kept(roots(2).digests.clone());
        let seen = say(&mut session, frame(to_collector::Message::RootsKept(good.clone())));
        assert_eq!(seen, [Output::Seen(Seen::Roots(Box::new(good.clone())))]);
        assert_eq!(say(&mut session, Input::Roots { roots: roots(2), renew_within_s: 0 }), []);
        let long = wire::RootsKept { host_mark: vec![7; 33], ..good.clone() };
        let bad = [vec![vec![1; 31]], Vec::new(), vec![vec![1; 32]; ROOTS_MAX + 1]].map(kept);
        for kept in bad.into_iter().chain([long]) {
            let (mut session, _) = open(1, 1);
            let said = say(&mut session, frame(to_collector::Message::RootsKept(kept)));
            assert!(matches!(said[..], [Output::Refuse { code: RefuseCode::Misbehaved, .. }]), "{said:?}");
        }
        let mut early = Session::new(AgentId([1; 16]), Instant::now());
        let said = say(&mut early, frame(to_collector::Message::RootsKept(good)));
        assert!(matches!(said[..], [Output::Refuse { .. }]), "{said:?}");
    }
}
