//! Who is in the next commit: pure. One agent that sends a week's telemetry makes no other wait for more than one piece of
//! it, and is itself never left out twice.
//!
//! `writer` puts in what waits of all agents and takes out one transaction after the other.

use super::writer::{GROUP_EVENTS_MAX, GROUP_RUNS_MAX};
use std::collections::{HashMap, HashSet, VecDeque};
use vidette_protocol::id::AgentId;

/// An agent with at most so many events waiting goes before those that have more.
pub(super) const FEW_EVENTS_MAX: usize = 32;
/// And at most so much of them. Bytes.
pub(super) const FEW_BYTES_MAX: usize = 64 << 10;
/// Events of one transaction, as a goal, of all agents that have more: how long the others wait for it.
pub(super) const MANY_EVENTS_MAX: usize = 2048;
/// Their bytes, as a goal.
pub(super) const MANY_BYTES_MAX: usize = 2 << 20;

const _: () = assert!(FEW_EVENTS_MAX < MANY_EVENTS_MAX && MANY_EVENTS_MAX < GROUP_EVENTS_MAX);

/// What waits, in the order in which it came.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: VecDeque<Run<T>>,
    /// The last transaction left out those that have much: they are in the next one.
    left_out: bool,
}

#[derive(Debug)]
struct Run<T> {
    agent: AgentId,
    size: Size,
    what: T,
}

/// Of a run, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) events: usize,
    /// Of their bodies.
    pub(super) bytes: usize,
}

impl Size {
    fn with(self, other: Self) -> Self {
        Self { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }

    fn is_small(self) -> bool {
        self.events <= FEW_EVENTS_MAX && self.bytes <= FEW_BYTES_MAX
    }

    fn is_within_much(self) -> bool {
        self.events <= MANY_EVENTS_MAX && self.bytes <= MANY_BYTES_MAX
    }
}

impl<T> Turns<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), left_out: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// One more that waits.
    pub(super) fn push(&mut self, agent: AgentId, size: Size, what: T) {
        self.waiting.push_back(Run { agent, size, what });
    }

    /// The next transaction; empty only when nothing waits. What one agent sent stays in its order.
    ///
    /// When agents with few events wait beside others, they go first, alone; and the next transaction has both, with one run of
    /// each agent that has much.
    pub(super) fn next(&mut self) -> Vec<T> {
        let sums = self.sums();
        let has_few = |run: &Run<T>| sums.get(&run.agent).is_some_and(|sum| sum.is_small());
        let few = self.waiting.iter().filter(|run| has_few(run)).count();
        let few_only = !self.left_out && few > 0 && few < self.waiting.len();
        let (mut group, mut kept) = (Vec::new(), VecDeque::new());
        let (mut all, mut much) = (Size::default(), Size::default());
        let mut served = HashSet::new();
        for run in std::mem::take(&mut self.waiting) {
            let has_room = group.len() < GROUP_RUNS_MAX && all.events < GROUP_EVENTS_MAX;
            let is_in = if has_few(&run) {
                has_room && !served.contains(&run.agent)
            } else {
                let fits = much == Size::default() || much.with(run.size).is_within_much();
                let is_in = has_room && !few_only && fits && !served.contains(&run.agent);
                // Taken or kept: what this agent sent after it does not go before it, and waits for the next one.
                served.insert(run.agent);
                if is_in {
                    much = much.with(run.size);
                }
                is_in
            };
            if is_in {
                all = all.with(run.size);
                group.push(run.what);
            } else {
                served.insert(run.agent);
                kept.push_back(run);
            }
        }
        self.waiting = kept;
        self.left_out = few_only;
        group
    }

    /// What waits of each agent.
    fn sums(&self) -> HashMap<AgentId, Size> {
        let mut sums: HashMap<AgentId, Size> = HashMap::new();
        for run in &self.waiting {
            let sum = sums.entry(run.agent).or_default();
            *sum = sum.with(run.size);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId([number; 16])
    }

    fn size(events: usize) -> Size {
        Size { events, bytes: events * 300 }
    }

    /// A small generator of its own, so that a seed says the same for ever.
    fn below(seed: &mut u64, end: usize) -> usize {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*seed >> 33).unwrap_or(0) % end
    }

    #[test]
    fn an_honest_batch_is_in_the_next_commit_whatever_one_agent_floods() {
        for first in 0..300_u64 {
            let mut seed = first;
            let mut turns = Turns::new();
            for number in 0..1 + below(&mut seed, 500) {
                turns.push(agent(0), size(FEW_EVENTS_MAX + 1 + below(&mut seed, 256)), (0, number));
            }
            // The flood has been served or not: it makes no difference.
            for _ in 0..below(&mut seed, 3) {
                turns.next();
            }
            let honest = 1 + below(&mut seed, 20);
            for number in 1..=honest {
                turns.push(agent(number as u8), size(1 + below(&mut seed, 10)), (number, 0));
            }
            let group = turns.next();
            let (flood, others): (Vec<(usize, usize)>, Vec<_>) =
                group.into_iter().partition(|(who, _)| *who == 0);
            assert_eq!(others.len(), honest, "seed {first}");
            assert!(flood.len() <= 1, "seed {first}: {} runs of one agent", flood.len());
        }
    }

    #[test]
    fn everything_is_taken_once_in_the_order_of_its_agent_and_nobody_is_left_out_twice() {
        for first in 0..300_u64 {
            let mut seed = first;
            let mut turns = Turns::new();
            let mut pushed: HashMap<usize, Vec<usize>> = HashMap::new();
            let mut taken: HashMap<usize, Vec<usize>> = HashMap::new();
            let mut number = 0;
            for round in 0..60 {
                for _ in 0..if round < 30 { below(&mut seed, 40) } else { 0 } {
                    let who = below(&mut seed, 12);
                    let events = [1, 10, 100, 256, 4096][below(&mut seed, 5)];
                    turns.push(agent(who as u8), size(events), (who, number, events));
                    pushed.entry(who).or_default().push(number);
                    number += 1;
                }
                let was_empty = turns.is_empty();
                let group = turns.next();
                assert_eq!(group.is_empty(), was_empty, "seed {first}: a turn takes something");
                let much: usize =
                    group.iter().map(|(.., events)| events).filter(|events| **events > 32).sum();
                assert!(much <= MANY_EVENTS_MAX.max(4096), "seed {first}: {much} events at once");
                assert!(group.len() <= GROUP_RUNS_MAX);
                for (who, number, _) in group {
                    taken.entry(who).or_default().push(number);
                }
            }
            while !turns.is_empty() {
                for (who, number, _) in turns.next() {
                    taken.entry(who).or_default().push(number);
                }
            }
            assert_eq!(taken, pushed, "seed {first}");
        }
    }

    #[test]
    fn who_has_much_is_in_every_second_commit_however_many_have_little() {
        let mut turns = Turns::new();
        let mut floods = 0;
        for number in 0..100_u8 {
            turns.push(agent(0), size(128), 0_u8);
            for other in 1..=20 {
                turns.push(agent(other), size(1), other);
            }
            let group = turns.next();
            assert_eq!(group.iter().filter(|who| **who != 0).count(), 20, "{number}");
            floods += group.iter().filter(|who| **who == 0).count();
        }
        assert_eq!(floods, 50);
        // Alone it need not wait for anybody.
        let mut turns = Turns::new();
        turns.push(agent(0), size(128), 0_u8);
        assert_eq!(turns.next(), [0]);
    }
}
