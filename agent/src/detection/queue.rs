//! What waits to be scanned, in which order. Pure: time comes in.
//!
//! Classes go in strict order, but every `TURN_EVERY`th file comes from the lower one that was served least
//! lately, so that none starves. Within a class users take turns, and within a user programs (`shares`). When
//! there is no room, the longest share of the lowest class above its reserve loses its newest file: a storm
//! displaces itself, never another user, and never a program that runs.
//!
//! Observations of one file that waits join it. A file that was scanned less than `PACE` ago is held until then,
//! unless it runs: one that is written once is scanned at once, one that keeps changing is scanned every `PACE`,
//! and new writes never push that further away.

use super::lru::Lru;
use super::shares::{Share, Shares};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Files that wait because something happened to them; each holds a descriptor.
pub const FILES_MAX: usize = 2048;
/// Of those, what a class keeps whatever the classes above it do.
pub const RESERVED: usize = 256;
/// Files that wait because they run; each holds a descriptor.
pub const RUNS_MAX: usize = 512;
/// Files of a rescan that wait; each holds a descriptor. The rescan waits for the rest.
pub const SWEEPS_MAX: usize = 64;
/// Observations of one waiting file that each need an event of their own.
pub const JOINED_MAX: usize = 256;
/// Every so many files one comes from a lower class.
pub const TURN_EVERY: u64 = 8;
/// Every so many files of the lowest class one comes from a rescan.
pub const SWEEP_EVERY: u64 = 4;
/// The least time between two scans of one file that keeps changing.
pub const PACE: Duration = Duration::from_millis(250);
/// Files whose last scan is remembered for that.
const RECENT_MAX: usize = 4096;
const CLASSES: usize = 5;

const _: () = assert!(3 * RESERVED < FILES_MAX);

/// A file: device and inode.
pub type Id = (u64, u64);

/// What goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A program that runs.
    Run = 0,
    /// A file that may be run.
    Executable = 1,
    /// Root's, where the system lives.
    System = 2,
    /// All else.
    Rest = 3,
    /// Met by a rescan.
    Sweep = 4,
}

/// Files of type `F` (an open descriptor), each with what was observed of it.
#[derive(Debug)]
pub struct Queue<F, T> {
    entries: HashMap<Id, Entry<F, T>>,
    lanes: [Shares; CLASSES],
    /// With those that are held.
    counts: [usize; CLASSES],
    /// At which pop each was served last, or was empty.
    served: [u64; CLASSES],
    held: BTreeMap<(Instant, u64), Id>,
    recent: Lru<Id, Instant>,
    tickets: u64,
    pops: u64,
    rest_pops: u64,
    observed: usize,
}

#[derive(Debug)]
struct Entry<F, T> {
    ticket: u64,
    class: Class,
    share: Share,
    held_until: Option<Instant>,
    file: F,
    observed: Vec<Observed<T>>,
}

#[derive(Debug)]
struct Observed<T> {
    kind: Option<u8>,
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
    /// The file waits already, and one of the two observations is enough: this one is not needed. A file that is more
    /// urgent by it may cost another its place.
    Merged(T, Option<Next<F, T>>),
    /// It waits, and another file lost its place to it.
    Displaced(Next<F, T>),
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
    /// Observations of one file and one kind need one event; without a kind each needs its own.
    pub kind: Option<u8>,
    /// How urgent it is.
    pub class: Class,
    /// Whose work it is.
    pub share: Share,
}

impl<F, T> Default for Queue<F, T> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            lanes: Default::default(),
            counts: [0; CLASSES],
            served: [0; CLASSES],
            held: BTreeMap::new(),
            recent: Lru::new(RECENT_MAX),
            tickets: 0,
            pops: 0,
            rest_pops: 0,
            observed: 0,
        }
    }
}

impl<F, T> Queue<F, T> {
    /// Takes an observation. One of the same kind takes the place of an earlier one of the same file.
    pub fn push(&mut self, push: Push<F, T>, now: Instant) -> Pushed<F, T> {
        let Some(entry) = self.entries.get_mut(&push.id) else { return self.add(push, now) };
        // What the sensors said of it is more than a rescan knows.
        if push.class == Class::Sweep {
            return Pushed::Merged(push.item, None);
        }
        let observed = Observed { kind: push.kind, item: push.item };
        let same = |known: &&mut Observed<T>| known.kind.is_some() && known.kind == push.kind;
        let merged = if let Some(known) = entry.observed.iter_mut().find(same) {
            Some(std::mem::replace(known, observed).item)
        } else if entry.observed.len() < JOINED_MAX {
            entry.observed.push(observed);
            self.observed += 1;
            None
        } else {
            return Pushed::Full(push.file, observed.item);
        };
        entry.file = push.file;
        let displaced = self.promote(push.id, push.class, push.share);
        match (merged, displaced) {
            (Some(item), displaced) => Pushed::Merged(item, displaced),
            (None, Some(next)) => Pushed::Displaced(next),
            (None, None) => Pushed::Queued,
        }
    }

    fn add(&mut self, push: Push<F, T>, now: Instant) -> Pushed<F, T> {
        let mut displaced = None;
        if !self.has_room(push.class) {
            let Some(id) = self.victim(push.class, push.share) else {
                return Pushed::Full(push.file, push.item);
            };
            displaced = self.take(id);
        }
        self.tickets += 1;
        let until = self.recent.get(&push.id).map(|scanned| *scanned + PACE);
        let held_until = until.filter(|until| push.class != Class::Run && *until > now);
        let entry = Entry {
            ticket: self.tickets,
            class: push.class,
            share: push.share,
            held_until,
            file: push.file,
            observed: vec![Observed { kind: push.kind, item: push.item }],
        };
        self.observed += 1;
        self.line_up(push.id, &entry);
        self.entries.insert(push.id, entry);
        displaced.map_or(Pushed::Queued, Pushed::Displaced)
    }

    fn has_room(&self, class: Class) -> bool {
        match class {
            Class::Run => self.counts[Class::Run as usize] < RUNS_MAX,
            Class::Sweep => self.has_room_for_sweeps(),
            Class::Executable | Class::System | Class::Rest => self.files() < FILES_MAX,
        }
    }

    /// Whether one more file of a rescan may come.
    #[must_use]
    pub fn has_room_for_sweeps(&self) -> bool {
        self.counts[Class::Sweep as usize] < SWEEPS_MAX
    }

    fn files(&self) -> usize {
        self.counts[Class::Executable as usize..=Class::Rest as usize].iter().sum()
    }

    /// Who makes room for a newcomer; nobody when it would be the newcomer itself.
    fn victim(&self, newcomer: Class, share: Share) -> Option<Id> {
        if matches!(newcomer, Class::Run | Class::Sweep) {
            return None;
        }
        let over = |class: &Class| self.counts[*class as usize] + usize::from(*class == newcomer) > RESERVED;
        let class = [Class::Rest, Class::System, Class::Executable].into_iter().find(over)?;
        let newcomer = (class == newcomer).then_some(share);
        let lane = &self.lanes[class as usize];
        if lane.is_empty() {
            let of_class = |id: &&Id| self.entries.get(id).is_some_and(|entry| entry.class == class);
            return self.held.values().rev().find(of_class).copied();
        }
        lane.newest_of_longest(newcomer)
    }

    /// Into a higher class, when this one is, or into the line of another user who wrote it too, when it comes sooner there.
    /// What only a rescan had met takes its place as if it were new: the file that had to make room for it is returned.
    fn promote(&mut self, id: Id, class: Class, share: Share) -> Option<Next<F, T>> {
        let known = self.entries.get(&id)?;
        let (from, place) = (known.class, (known.share, known.ticket));
        if class > from || class == from && !self.lanes[class as usize].is_no_later(place, share) {
            return None;
        }
        let crowds = class < from && (from == Class::Sweep || class == Class::Run);
        let displaced =
            if crowds && !self.has_room(class) { self.take(self.victim(class, share)?) } else { None };
        let mut entry = self.leave(id)?;
        self.tickets += 1;
        (entry.ticket, entry.class, entry.share) = (self.tickets, class, share);
        entry.held_until = entry.held_until.filter(|_| class != Class::Run);
        self.line_up(id, &entry);
        self.entries.insert(id, entry);
        displaced
    }

    fn line_up(&mut self, id: Id, entry: &Entry<F, T>) {
        let class = entry.class as usize;
        if self.counts[class] == 0 {
            self.served[class] = self.pops;
        }
        self.counts[class] += 1;
        match entry.held_until {
            Some(until) => drop(self.held.insert((until, entry.ticket), id)),
            None => self.lanes[class].push(entry.share, entry.ticket, id),
        }
    }

    fn leave(&mut self, id: Id) -> Option<Entry<F, T>> {
        let entry = self.entries.remove(&id)?;
        self.counts[entry.class as usize] -= 1;
        match entry.held_until {
            Some(until) => drop(self.held.remove(&(until, entry.ticket))),
            None => self.lanes[entry.class as usize].remove(entry.share, entry.ticket),
        }
        Some(entry)
    }

    fn take(&mut self, id: Id) -> Option<Next<F, T>> {
        let entry = self.leave(id)?;
        self.observed -= entry.observed.len();
        let items = entry.observed.into_iter().map(|observed| observed.item).collect();
        Some(Next { id, file: entry.file, items })
    }

    /// The next file to scan, which counts as scanned now.
    pub fn pop(&mut self, now: Instant) -> Option<Next<F, T>> {
        self.release(now);
        let class = self.turn()?;
        self.pops += 1;
        self.served[class as usize] = self.pops;
        let id = self.lanes[class as usize].pop()?;
        self.recent.insert(id, now);
        self.take(id)
    }

    fn release(&mut self, now: Instant) {
        while let Some(first) = self.held.first_entry() {
            if first.key().0 > now {
                break;
            }
            let ((_, ticket), id) = first.remove_entry();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.held_until = None;
            self.lanes[entry.class as usize].push(entry.share, ticket, id);
        }
    }

    /// Whose turn it is.
    fn turn(&mut self) -> Option<Class> {
        let all = [Class::Run, Class::Executable, Class::System, Class::Rest, Class::Sweep];
        let mut waiting = all.into_iter().filter(|class| !self.lanes[*class as usize].is_empty());
        let first = waiting.next()?;
        if self.pops % TURN_EVERY == TURN_EVERY - 1
            && let Some(lower) = waiting.min_by_key(|class| self.served[*class as usize])
        {
            return Some(lower);
        }
        if first != Class::Rest {
            return Some(first);
        }
        self.rest_pops += 1;
        let sweep =
            self.rest_pops.is_multiple_of(SWEEP_EVERY) && !self.lanes[Class::Sweep as usize].is_empty();
        Some(if sweep { Class::Sweep } else { Class::Rest })
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

    /// Observations that wait with them.
    #[must_use]
    pub fn observations(&self) -> usize {
        self.observed
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

    fn of(inode: u64, item: u64, class: Class, uid: u32, origin: u64) -> Push<(), u64> {
        let kind = (class != Class::Run).then_some(0);
        Push { id: (1, inode), file: (), item, kind, class, share: Share { uid, origin } }
    }

    fn push(inode: u64, item: u64, urgent: bool) -> Push<(), u64> {
        of(inode, item, if urgent { Class::Run } else { Class::Rest }, 0, 0)
    }

    fn popped(queue: &mut Queue<(), u64>, now: Instant) -> Option<Vec<u64>> {
        queue.pop(now).map(|next| next.items)
    }

    fn inode(pushed: &Pushed<(), u64>) -> Option<u64> {
        if let Pushed::Displaced(next) = pushed { Some(next.id.1) } else { None }
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
        assert_eq!(queue.observations(), 5);
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, [vec![30, 31], vec![90], vec![10], vec![20]]);
        assert!(queue.is_empty() && queue.counts == [0; CLASSES] && queue.observations() == 0);
    }

    #[test]
    fn observations_of_one_kind_become_one_and_others_stay() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(push(1, 10, false), now);
        assert_eq!(queue.push(push(1, 11, false), now), Pushed::Merged(10, None));
        assert_eq!(queue.push(Push { kind: Some(1), ..push(1, 12, false) }, now), Pushed::Queued);
        assert_eq!(queue.push(of(1, 13, Class::Sweep, 0, 0), now), Pushed::Merged(13, None), "nothing new");
        assert_eq!(popped(&mut queue, now), Some(vec![11, 12]));
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
        assert_eq!(popped(&mut queue, now + PACE), None, "it has no second place");
        assert_eq!(queue.due_at(), None);
    }

    #[test]
    fn a_waiting_file_that_may_be_run_moves_up() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(of(1, 1, Class::Rest, 0, 0), now);
        queue.push(of(2, 2, Class::Sweep, 0, 0), now);
        queue.push(of(3, 3, Class::System, 0, 0), now);
        assert_eq!(queue.push(of(1, 4, Class::Executable, 0, 0), now), Pushed::Merged(1, None));
        assert_eq!(queue.push(of(2, 5, Class::Rest, 7, 0), now), Pushed::Merged(2, None));
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, [vec![4], vec![3], vec![5]]);
    }

    #[test]
    fn a_file_that_two_users_write_waits_in_the_shorter_of_their_lines() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let of = |inode, uid| of(inode, inode, Class::Rest, uid, 0);
        // The storm of one; the last of it is written by another, who has something waiting himself.
        for inode in 0..100 {
            queue.push(of(inode, 1), now);
        }
        queue.push(of(200, 2), now);
        assert_eq!(queue.push(of(99, 2), now), Pushed::Merged(99, None));
        // And what another wrote is not taken into the storm.
        queue.push(of(300, 3), now);
        assert_eq!(queue.push(of(300, 1), now), Pushed::Merged(300, None));
        let order: Vec<u64> =
            std::iter::repeat_with(|| popped(&mut queue, now)).take(6).flatten().flatten().collect();
        assert_eq!(order, [0, 200, 300, 1, 99, 2]);
        assert_eq!(std::iter::from_fn(|| popped(&mut queue, now)).count(), 102 - 6);
    }

    /// As in a storm during which a rescan runs.
    #[test]
    fn what_a_rescan_had_met_takes_its_place_in_a_full_queue_as_if_it_were_new() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for file in 0..FILES_MAX as u64 {
            queue.push(of(file, file, Class::Rest, 1000, 1), now);
        }
        for file in 0..SWEEPS_MAX as u64 {
            assert_eq!(queue.push(of(5000 + file, 0, Class::Sweep, 0, 0), now), Pushed::Queued);
        }
        let newest = FILES_MAX as u64 - 1;
        let pushed = queue.push(of(5001, 1, Class::Rest, 1001, 1), now);
        let Pushed::Merged(0, Some(lost)) = pushed else { panic!("{pushed:?}") };
        assert_eq!(lost.id.1, newest, "the storm makes room");
        let of_another_kind = Push { kind: Some(1), ..of(5002, 2, Class::Rest, 1002, 1) };
        assert_eq!(inode(&queue.push(of_another_kind, now)), Some(newest - 1));
        assert_eq!(
            queue.push(of(5003, 3, Class::Rest, 1000, 1), now),
            Pushed::Merged(0, None),
            "the storm's own"
        );
        assert_eq!((queue.files(), queue.counts[Class::Sweep as usize]), (FILES_MAX, SWEEPS_MAX - 2));
        let first: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).take(3).collect();
        assert_eq!(first, [vec![0], vec![1], vec![0, 2]]);
    }

    #[test]
    fn a_full_queue_sheds_the_storm_and_never_a_program_or_another_user() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for file in 0..FILES_MAX as u64 {
            assert_eq!(queue.push(of(file, file, Class::Rest, 1000, 1), now), Pushed::Queued);
        }
        assert!(matches!(queue.push(of(9001, 0, Class::Rest, 1000, 1), now), Pushed::Full(..)), "its own");
        let of_other_program = queue.push(of(9002, 0, Class::Rest, 1000, 2), now);
        assert_eq!(inode(&of_other_program), Some(FILES_MAX as u64 - 1), "{of_other_program:?}");
        assert_eq!(inode(&queue.push(of(9003, 0, Class::Rest, 1001, 1), now)), Some(FILES_MAX as u64 - 2));
        for run in 0..RUNS_MAX as u64 {
            assert_eq!(queue.push(of(20_000 + run, 0, Class::Run, 1000, 1), now), Pushed::Queued);
        }
        assert!(matches!(queue.push(of(30_000, 0, Class::Run, 1, 1), now), Pushed::Full(..)));
        // A storm of a higher class leaves the lower ones their reserve.
        for file in 40_000..50_000 {
            queue.push(of(file, 0, Class::Executable, 1000, 1), now);
        }
        assert_eq!(queue.counts[Class::Rest as usize], RESERVED);
        assert_eq!(
            inode(&queue.push(of(60_000, 0, Class::Rest, 1001, 3), now)).map(|inode| inode < 2048),
            Some(true)
        );
    }

    #[test]
    fn a_storm_delays_nobody_else_for_long() {
        let now = Instant::now();
        for (class, storm) in [
            (Class::Rest, Class::Rest),
            (Class::Rest, Class::Executable),
            (Class::System, Class::Executable),
            (Class::Sweep, Class::Executable),
            (Class::Sweep, Class::Rest),
        ] {
            let mut queue = Queue::default();
            for file in 0..1000 {
                queue.push(of(file, 0, storm, 1000, file % 3), now);
            }
            for _ in 0..100 {
                queue.pop(now);
            }
            queue.push(of(5000, 7, class, 1001, 9), now);
            let waited = (1..).find(|_| popped(&mut queue, now) == Some(vec![7]));
            assert!(
                waited.is_some_and(|pops| pops <= 2 * TURN_EVERY),
                "{class:?} after {storm:?}: {waited:?}"
            );
        }
    }

    #[test]
    fn a_rescan_gets_about_a_quarter_of_the_lowest_class() {
        let now = Instant::now();
        let (mut queue, mut swept) = (Queue::default(), 0);
        for file in 0..400 {
            queue.push(of(file, 0, Class::Rest, 1000, 1), now);
            queue.push(of(1000 + file, 1, Class::Sweep, 0, 0), now);
            swept += popped(&mut queue, now).map_or(0, |items| items[0]);
        }
        assert!((90..=150).contains(&swept), "{swept} of 400");
    }

    #[test]
    fn no_share_waits_longer_than_a_turn_of_all_and_the_reserve() {
        for seed in 0..50u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let (now, mut queue) = (Instant::now(), Queue::default());
            let mut waits: HashMap<(usize, u32), u64> = HashMap::new();
            for step in 0..20_000u64 {
                let class = [Class::Run, Class::Executable, Class::System, Class::Rest, Class::Sweep]
                    [random.random_range(0..5)];
                let uid = if random.random_bool(0.8) { 0 } else { random.random_range(1..6) };
                queue.push(of(step, u64::from(uid), class, uid, random.random_range(0..4)), now);
                if step % 2 == 0 {
                    continue;
                }
                for class in 0..CLASSES {
                    for uid in queue.lanes[class].waiting_users() {
                        *waits.entry((class, uid)).or_default() += 1;
                    }
                }
                let before: Vec<usize> = queue.counts.to_vec();
                let Some(next) = queue.pop(now) else { continue };
                let class = (0..CLASSES).find(|class| queue.counts[*class] < before[*class]);
                let uid = u32::try_from(next.items[0]).unwrap_or(0);
                waits.remove(&(class.unwrap_or(0), uid));
                let users = queue.lanes.iter().map(Shares::users).max().unwrap_or(0) as u64;
                // Every class is served at least once in eight times the lower classes; every user once a turn.
                let most = (users + 1) * TURN_EVERY * CLASSES as u64;
                let longest = waits.values().max().copied().unwrap_or(0);
                assert!(longest <= most, "seed {seed}: {longest} pops, at most {most}");
            }
        }
    }

    #[test]
    fn it_is_bounded_and_loses_nothing_that_it_took() {
        for seed in 0..100u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut now, mut queue) = (Instant::now(), Queue::default());
            let (mut inside, mut out, mut merged, mut full) = (0u64, 0u64, 0u64, 0u64);
            for item in 0..20_000 {
                now += Duration::from_millis(random.random_range(0..3));
                let class = [Class::Run, Class::Executable, Class::System, Class::Rest, Class::Sweep]
                    [random.random_range(0..5)];
                let uid = random.random_range(0..4);
                match queue.push(of(random.random_range(0..6000), item, class, uid, item % 3), now) {
                    Pushed::Queued => inside += 1,
                    Pushed::Merged(_, displaced) => {
                        merged += 1;
                        out += displaced.map_or(0, |next| next.items.len() as u64);
                    }
                    Pushed::Full(..) => full += 1,
                    Pushed::Displaced(next) => {
                        inside += 1;
                        out += next.items.len() as u64;
                    }
                }
                assert!(queue.files() <= FILES_MAX, "seed {seed}");
                assert!(queue.len() <= FILES_MAX + RUNS_MAX + SWEEPS_MAX, "seed {seed}");
                assert_eq!(queue.counts.iter().sum::<usize>(), queue.len(), "seed {seed}");
                if random.random_bool(0.3) {
                    out += popped(&mut queue, now).map_or(0, |items| items.len() as u64);
                }
                assert_eq!(queue.observations() as u64, inside - out, "seed {seed}");
            }
            now += PACE;
            while let Some(items) = popped(&mut queue, now) {
                out += items.len() as u64;
            }
            assert_eq!((inside, inside + merged + full), (out, 20_000), "seed {seed}");
            assert!(queue.is_empty() && queue.counts == [0; CLASSES], "seed {seed}");
        }
    }
}
