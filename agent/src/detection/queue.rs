//! What waits to be scanned, in which order. Pure: time comes in.
//!
//! Programs that run go first. Observations of one file that waits join it. A file that was scanned less than
//! `PACE` ago is held until then, unless it runs: one that is written once is scanned at once, one that keeps
//! changing is scanned every `PACE`, and new writes never push that further away.

use super::lru::Lru;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Files that wait because they were written.
pub const WRITTEN_MAX: usize = 2048;
/// Files that wait because they run.
pub const URGENT_MAX: usize = 512;
/// Observations of one waiting file that each need an event of their own.
pub const JOINED_MAX: usize = 256;
/// The least time between two scans of one file that keeps changing.
pub const PACE: Duration = Duration::from_millis(250);
/// Files whose last scan is remembered for that.
const RECENT_MAX: usize = 4096;

/// A file: device and inode.
pub type Id = (u64, u64);

/// Files of type `F` (an open descriptor), each with what was observed of it.
#[derive(Debug)]
pub struct Queue<F, T> {
    entries: HashMap<Id, Entry<F, T>>,
    urgent: VecDeque<(u64, Id)>,
    ready: VecDeque<(u64, Id)>,
    held: BTreeMap<(Instant, u64), Id>,
    recent: Lru<Id, Instant>,
    tickets: u64,
    urgent_count: usize,
}

#[derive(Debug)]
struct Entry<F, T> {
    ticket: u64,
    urgent: bool,
    file: F,
    observed: Vec<Observed<T>>,
}

#[derive(Debug)]
struct Observed<T> {
    replaceable: bool,
    item: T,
}

/// A file and all that was observed of it while it waited.
#[derive(Debug, PartialEq, Eq)]
pub struct Next<F, T> {
    /// Which.
    pub id: Id,
    /// The newest descriptor of it.
    pub file: F,
    /// Oldest first; never empty.
    pub items: Vec<T>,
}

/// What became of an observation.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed<F, T> {
    /// It waits.
    Queued,
    /// The file waits already, and this takes the place of an earlier observation.
    Replaced(T),
    /// There is no room.
    Full(F, T),
}

/// One observation on its way in.
#[derive(Debug)]
pub struct Push<F, T> {
    /// Of which file.
    pub id: Id,
    /// An open descriptor of it.
    pub file: F,
    /// What was observed.
    pub item: T,
    /// It runs.
    pub urgent: bool,
}

impl<F, T> Default for Queue<F, T> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            urgent: VecDeque::new(),
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            recent: Lru::new(RECENT_MAX),
            tickets: 0,
            urgent_count: 0,
        }
    }
}

impl<F, T> Queue<F, T> {
    /// Takes an observation. A write takes the place of an earlier write of the same file; a run is kept beside others.
    pub fn push(&mut self, push: Push<F, T>, now: Instant) -> Pushed<F, T> {
        let observed = Observed { replaceable: !push.urgent, item: push.item };
        let Some(entry) = self.entries.get_mut(&push.id) else {
            return self.add(push.id, push.urgent, push.file, observed, now);
        };
        if !push.urgent
            && let Some(known) = entry.observed.iter_mut().find(|known| known.replaceable)
        {
            entry.file = push.file;
            return Pushed::Replaced(std::mem::replace(known, observed).item);
        }
        if entry.observed.len() >= JOINED_MAX {
            return Pushed::Full(push.file, observed.item);
        }
        entry.file = push.file;
        entry.observed.push(observed);
        if push.urgent && !entry.urgent && self.urgent_count < URGENT_MAX {
            entry.urgent = true;
            self.urgent_count += 1;
            // Its old place is recognised by the old ticket, and passed over.
            self.tickets += 1;
            entry.ticket = self.tickets;
            self.urgent.push_back((self.tickets, push.id));
        }
        Pushed::Queued
    }

    fn add(&mut self, id: Id, urgent: bool, file: F, observed: Observed<T>, now: Instant) -> Pushed<F, T> {
        let full = if urgent {
            self.urgent_count >= URGENT_MAX
        } else {
            self.entries.len() - self.urgent_count >= WRITTEN_MAX
        };
        if full {
            return Pushed::Full(file, observed.item);
        }
        if self.ready.len() >= 2 * WRITTEN_MAX {
            // Places that were left for the urgent queue, while nothing but urgent files was taken.
            self.ready
                .retain(|(ticket, id)| self.entries.get(id).is_some_and(|entry| entry.ticket == *ticket));
        }
        self.tickets += 1;
        let ticket = self.tickets;
        if urgent {
            self.urgent_count += 1;
            self.urgent.push_back((ticket, id));
        } else {
            match self.recent.get(&id).map(|scanned| *scanned + PACE) {
                Some(until) if until > now => {
                    self.held.insert((until, ticket), id);
                }
                Some(_) | None => self.ready.push_back((ticket, id)),
            }
        }
        self.entries.insert(id, Entry { ticket, urgent, file, observed: vec![observed] });
        Pushed::Queued
    }

    /// The next file to scan, which counts as scanned now.
    pub fn pop(&mut self, now: Instant) -> Option<Next<F, T>> {
        while let Some(first) = self.held.first_entry() {
            if first.key().0 > now {
                break;
            }
            let ((_, ticket), id) = first.remove_entry();
            self.ready.push_back((ticket, id));
        }
        loop {
            let (ticket, id) = self.urgent.pop_front().or_else(|| self.ready.pop_front())?;
            if self.entries.get(&id).is_none_or(|entry| entry.ticket != ticket) {
                continue;
            }
            let entry = self.entries.remove(&id)?;
            self.urgent_count -= usize::from(entry.urgent);
            self.recent.insert(id, now);
            let items = entry.observed.into_iter().map(|observed| observed.item).collect();
            return Some(Next { id, file: entry.file, items });
        }
    }

    /// When a held file may be scanned.
    #[must_use]
    pub fn due_at(&self) -> Option<Instant> {
        self.held.first_key_value().map(|((until, _), _)| *until)
    }

    /// Files that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// None waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    fn push(inode: u64, item: u64, urgent: bool) -> Push<(), u64> {
        Push { id: (1, inode), file: (), item, urgent }
    }

    fn popped(queue: &mut Queue<(), u64>, now: Instant) -> Option<Vec<u64>> {
        queue.pop(now).map(|next| next.items)
    }

    #[test]
    fn what_runs_goes_first_and_takes_what_waits_along() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (inode, item) in [(1, 10), (2, 20), (3, 30)] {
            assert_eq!(queue.push(push(inode, item, false), now), Pushed::Queued);
        }
        queue.push(push(3, 31, true), now);
        queue.push(push(9, 90, true), now);
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, [vec![30, 31], vec![90], vec![10], vec![20]]);
        assert!(queue.is_empty() && queue.urgent_count == 0);
    }

    #[test]
    fn writes_of_a_waiting_file_become_one() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(push(1, 10, false), now);
        assert_eq!(queue.push(push(1, 11, false), now), Pushed::Replaced(10));
        assert_eq!(popped(&mut queue, now), Some(vec![11]));
    }

    #[test]
    fn a_file_that_keeps_changing_is_scanned_at_its_pace_and_not_later() {
        let start = Instant::now();
        let (mut queue, mut scans) = (Queue::default(), vec![]);
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            queue.push(push(1, ms, false), now);
            if queue.pop(now).is_some() {
                scans.push(ms);
            }
        }
        assert_eq!(scans, [0, 250, 500, 750]);
        let now = start + Duration::from_millis(1000);
        assert_eq!(popped(&mut queue, now), Some(vec![999]), "the last write is scanned too");
    }

    #[test]
    fn a_held_file_that_runs_is_not_held() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(push(1, 1, false), now);
        queue.pop(now);
        queue.push(push(1, 2, false), now);
        assert_eq!((popped(&mut queue, now), queue.due_at()), (None, Some(now + PACE)));
        queue.push(push(1, 3, true), now);
        assert_eq!(popped(&mut queue, now), Some(vec![2, 3]));
        assert_eq!(popped(&mut queue, now + PACE), None, "its old place is passed over");
    }

    #[test]
    fn it_is_bounded_and_loses_nothing_that_it_took() {
        for seed in 0..200u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut now, mut queue) = (Instant::now(), Queue::default());
            let (mut inside, mut out, mut replaced, mut full) = (0u64, 0u64, 0u64, 0u64);
            for item in 0..20_000 {
                now += Duration::from_millis(random.random_range(0..3));
                match queue.push(push(random.random_range(0..6000), item, random.random_bool(0.2)), now) {
                    Pushed::Queued => inside += 1,
                    Pushed::Replaced(_) => replaced += 1,
                    Pushed::Full(..) => full += 1,
                }
                assert!(
                    queue.len() <= WRITTEN_MAX + URGENT_MAX && queue.urgent_count <= URGENT_MAX,
                    "seed {seed}"
                );
                if random.random_bool(0.3) {
                    out += popped(&mut queue, now).map_or(0, |items| items.len() as u64);
                }
            }
            now += PACE;
            while let Some(items) = popped(&mut queue, now) {
                out += items.len() as u64;
            }
            assert_eq!((inside, inside + replaced + full), (out, 20_000), "seed {seed}");
            assert!(queue.is_empty() && queue.urgent_count == 0, "seed {seed}");
        }
    }
}
