//! Which jobs the worker has, and which one killed it. Pure; `pool` does what it says.
//!
//! Small files travel together, in a *parcel* that one thread of the worker takes; a second parcel for each thread
//! lies ready in the worker, so that it never waits for its parent. Parcels are begun in the order they were sent.
//!
//! With several jobs begun nobody can say which one the worker died of. They become suspects and are tried again one
//! at a time: the one it dies of alone, twice, is the culprit. So a crash costs one file.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A larger file travels alone. Bytes.
pub const SMALL_BYTES_MAX: u64 = 64 << 10;
/// Parcels that the worker has for each of its threads: the one it works at and one more.
const PARCELS_PER_THREAD: usize = 2;
/// When the worker has so much for each thread, it gets no more: what is urgent must not stand behind it. Bytes.
const BYTES_PER_THREAD: u64 = 1 << 20;
/// Deaths with nothing else begun after which a job is the culprit.
pub const STRIKES_MAX: u8 = 2;

/// One file to scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Job<T> {
    /// The caller's number.
    pub id: u64,
    /// The file's size. Bytes.
    pub bytes: u64,
    /// What goes with it: the descriptor.
    pub payload: T,
    strikes: u8,
}

impl<T> Job<T> {
    /// One that never killed anything.
    pub fn new(id: u64, bytes: u64, payload: T) -> Self {
        Self { id, bytes, payload, strikes: 0 }
    }
}

#[derive(Debug)]
struct Parcel<T> {
    jobs: Vec<Job<T>>,
    /// From when on the worker counts as stuck; `None` while the parcel was not begun.
    deadline: Option<Instant>,
    /// Nothing else runs beside it.
    alone: bool,
}

/// All jobs of one worker.
#[derive(Debug)]
pub struct Flight<T> {
    threads: usize,
    batch: usize,
    time: Duration,
    waiting: VecDeque<Job<T>>,
    suspects: VecDeque<Job<T>>,
    running: Vec<Parcel<T>>,
}

/// What is left after the worker died.
#[derive(Debug, PartialEq, Eq)]
pub enum Blame<T> {
    /// This job killed it, again and alone.
    Culprit(Job<T>),
    /// It had to be killed, because this job ran out of time.
    Overdue(Job<T>),
}

impl<T> Flight<T> {
    /// At most `threads` jobs run at once, each for at most `time` before the worker counts as stuck; at most `batch`
    /// small ones are handed over together.
    #[must_use]
    pub fn new(threads: usize, batch: usize, time: Duration) -> Self {
        let batch = batch.clamp(1, super::messages::FILES_AT_ONCE_MAX);
        Self {
            threads,
            batch,
            time,
            waiting: VecDeque::new(),
            suspects: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// A new job; it waits for [`Self::next`].
    pub fn add(&mut self, job: Job<T>) {
        self.waiting.push_back(job);
    }

    /// How many more jobs it makes sense to add.
    #[must_use]
    pub fn room(&self) -> usize {
        if !self.suspects.is_empty() {
            return 0;
        }
        let jobs = self.len();
        let full = jobs >= self.threads && self.bytes() >= BYTES_PER_THREAD * self.threads as u64;
        if full { 0 } else { (self.threads * PARCELS_PER_THREAD * self.batch).saturating_sub(jobs) }
    }

    fn bytes(&self) -> u64 {
        self.all().map(|job| job.bytes).sum()
    }

    fn all(&self) -> impl Iterator<Item = &Job<T>> {
        self.running.iter().flat_map(|parcel| &parcel.jobs).chain(&self.suspects).chain(&self.waiting)
    }

    /// All jobs, wherever they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all().count()
    }

    /// No job at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.suspects.is_empty() && self.running.is_empty()
    }

    /// The worker has none.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// The next jobs to hand to the worker together, which count as running from now on. Not empty.
    pub fn next(&mut self, now: Instant) -> Option<&[Job<T>]> {
        let alone = !self.suspects.is_empty();
        let room = if alone { 1 } else { self.threads * PARCELS_PER_THREAD };
        if self.running.len() >= room || self.running.iter().any(|parcel| parcel.alone) {
            return None;
        }
        let jobs = if alone { vec![self.suspects.pop_front()?] } else { self.parcel()? };
        self.running.push(Parcel { jobs, deadline: None, alone });
        self.begin(now);
        self.running.last().map(|parcel| parcel.jobs.as_slice())
    }

    /// One large job, or small ones: a fair part for each thread, so that none stands idle.
    fn parcel(&mut self) -> Option<Vec<Job<T>>> {
        let part = self.waiting.len().div_ceil(self.threads).clamp(1, self.batch);
        let first = self.waiting.pop_front()?;
        let mut small = first.bytes <= SMALL_BYTES_MAX;
        let mut jobs = vec![first];
        while small && jobs.len() < part {
            small = self.waiting.front().is_some_and(|job| job.bytes <= SMALL_BYTES_MAX);
            jobs.extend(if small { self.waiting.pop_front() } else { None });
        }
        Some(jobs)
    }

    /// As many parcels as there are threads are worked at, in the order they were sent.
    fn begin(&mut self, now: Instant) {
        for parcel in self.running.iter_mut().take(self.threads) {
            parcel.deadline.get_or_insert(now + self.time);
        }
    }

    /// The worker answered; `None` when it has no such job.
    pub fn answered(&mut self, id: u64, now: Instant) -> Option<Job<T>> {
        let find = |parcel: &Parcel<T>| parcel.jobs.iter().position(|job| job.id == id);
        let (at, job) = self.running.iter().enumerate().find_map(|(at, parcel)| Some((at, find(parcel)?)))?;
        let parcel = self.running.get_mut(at)?;
        let job = parcel.jobs.remove(job);
        // One answer is a sign of life; the next has its own time.
        parcel.deadline = Some(now + self.time);
        if parcel.jobs.is_empty() {
            self.running.remove(at);
        }
        self.begin(now);
        Some(job)
    }

    /// When the first running job is overdue.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.running.iter().filter_map(|parcel| parcel.deadline).min()
    }

    /// The worker was killed because it said nothing for too long: of a parcel that is overdue one job is to blame, or
    /// all are suspects; the others wait again.
    pub fn killed(&mut self, now: Instant) -> Vec<Blame<T>> {
        let mut blamed = Vec::new();
        for mut parcel in std::mem::take(&mut self.running).into_iter().rev() {
            let overdue = parcel.deadline.is_some_and(|deadline| deadline <= now);
            match (overdue, parcel.jobs.len()) {
                (true, 1) => blamed.extend(parcel.jobs.pop().map(Blame::Overdue)),
                (true, _) => self.suspects.extend(parcel.jobs),
                (false, _) => self.wait_again(parcel.jobs),
            }
        }
        blamed
    }

    /// The worker died by itself.
    pub fn died(&mut self) -> Option<Blame<T>> {
        let mut begun = Vec::new();
        for parcel in std::mem::take(&mut self.running).into_iter().rev() {
            match parcel.deadline {
                Some(_) => begun.splice(0..0, parcel.jobs).for_each(drop),
                None => self.wait_again(parcel.jobs),
            }
        }
        if let [only] = begun.as_mut_slice() {
            only.strikes += 1;
            if only.strikes >= STRIKES_MAX {
                return begun.pop().map(Blame::Culprit);
            }
        }
        self.suspects.extend(begun);
        None
    }

    fn wait_again(&mut self, jobs: Vec<Job<T>>) {
        for job in jobs.into_iter().rev() {
            self.waiting.push_front(job);
        }
    }

    /// Takes back every job: there is no worker and will not be.
    pub fn give_up(&mut self) -> Vec<Job<T>> {
        let running = std::mem::take(&mut self.running).into_iter().flat_map(|parcel| parcel.jobs);
        running.chain(self.suspects.drain(..)).chain(self.waiting.drain(..)).collect()
    }

    /// The worker was stopped for no fault of theirs: what it had waits again.
    pub fn put_back(&mut self) {
        for parcel in std::mem::take(&mut self.running).into_iter().rev() {
            self.wait_again(parcel.jobs);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    const BATCH: usize = super::super::messages::FILES_AT_ONCE_MAX;
    const SECOND: Duration = Duration::from_secs(1);

    fn ids(jobs: &[Job<()>]) -> Vec<u64> {
        jobs.iter().map(|job| job.id).collect()
    }

    /// A worker as `inside` is: as many parcels are worked at as it has threads, in the order they came.
    struct Worker {
        threads: usize,
        parcels: Vec<Vec<u64>>,
    }

    impl Worker {
        /// Some thread comes to the end of its next file.
        fn step(&mut self, random: &mut StdRng) -> Option<u64> {
            let busy = self.parcels.len().min(self.threads);
            if busy == 0 {
                return None;
            }
            let at = random.random_range(0..busy);
            let id = self.parcels[at].remove(0);
            if self.parcels[at].is_empty() {
                self.parcels.remove(at);
            }
            Some(id)
        }
    }

    #[test]
    fn a_crash_costs_exactly_the_file_that_caused_it() {
        for seed in 0..2_000u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let now = Instant::now();
            let threads = random.random_range(1..5);
            let mut flight = Flight::new(threads, random.random_range(1..=BATCH), SECOND);
            let mut worker = Worker { threads, parcels: vec![] };
            let files = random.random_range(1..150u64);
            let deadly: Vec<bool> = (0..files).map(|_| random.random_bool(0.05)).collect();
            let (mut fed, mut blamed, mut answered) = (0u64, vec![], vec![]);
            for _ in 0..100_000 {
                while flight.room() > 0 && fed < files && random.random_bool(0.9) {
                    let bytes = if random.random_bool(0.2) { SMALL_BYTES_MAX + 1 } else { 100 };
                    flight.add(Job::new(fed, bytes, ()));
                    fed += 1;
                }
                while let Some(jobs) = flight.next(now) {
                    worker.parcels.push(ids(jobs));
                }
                let Some(id) = worker.step(&mut random) else {
                    if fed == files {
                        break;
                    }
                    continue;
                };
                if deadly[usize::try_from(id).unwrap()] {
                    worker.parcels.clear();
                    if let Some(Blame::Culprit(job)) = flight.died() {
                        blamed.push(job.id);
                    }
                } else {
                    answered.push(flight.answered(id, now).unwrap().id);
                }
            }
            assert!(flight.is_empty(), "seed {seed}: {flight:?}");
            blamed.sort_unstable();
            answered.sort_unstable();
            let (kill, live): (Vec<u64>, Vec<u64>) =
                (0..files).partition(|id| deadly[usize::try_from(*id).unwrap()]);
            assert_eq!((blamed, answered), (kill, live), "seed {seed}");
        }
    }

    #[test]
    fn small_files_travel_together_and_large_ones_alone() {
        let now = Instant::now();
        let mut flight = Flight::new(1, BATCH, SECOND);
        for (id, bytes) in [(0, 1), (1, 2), (2, SMALL_BYTES_MAX + 1), (3, 3)] {
            flight.add(Job::new(id, bytes, ()));
        }
        assert_eq!(flight.next(now).map(ids), Some(vec![0, 1]));
        assert_eq!(flight.next(now).map(ids), Some(vec![2]));
        assert_eq!(flight.next(now), None, "a parcel in work and one ready");
        flight.answered(0, now);
        assert_eq!(flight.next(now), None);
        flight.answered(1, now);
        assert_eq!(flight.next(now).map(ids), Some(vec![3]));
    }

    #[test]
    fn threads_get_fair_parts_and_not_too_much() {
        let now = Instant::now();
        let mut flight = Flight::new(2, BATCH, SECOND);
        (0..10).for_each(|id| flight.add(Job::new(id, 1, ())));
        assert_eq!(flight.next(now).map(|jobs| jobs.len()), Some(5));
        assert_eq!(flight.room(), 2 * PARCELS_PER_THREAD * BATCH - 10);
        flight.add(Job::new(10, 2 * BYTES_PER_THREAD, ()));
        assert_eq!(flight.room(), 0, "what comes later may be urgent");
    }

    #[test]
    fn only_what_was_begun_and_is_overdue_is_blamed_for_a_hang() {
        let start = Instant::now();
        let mut flight = Flight::new(1, BATCH, 10 * SECOND);
        for id in 1..=2 {
            flight.add(Job::new(id, SMALL_BYTES_MAX + 1, ()));
            flight.next(start);
        }
        assert_eq!(flight.deadline(), Some(start + 10 * SECOND));
        assert_eq!(
            flight.killed(start + 10 * SECOND),
            [Blame::Overdue(Job::new(1, SMALL_BYTES_MAX + 1, ()))]
        );
        assert_eq!(flight.next(start + 10 * SECOND).map(ids), Some(vec![2]));
        assert_eq!(flight.deadline(), Some(start + 20 * SECOND));
    }

    #[test]
    fn of_a_parcel_that_hangs_each_is_tried_alone() {
        let start = Instant::now();
        let mut flight = Flight::new(1, BATCH, SECOND);
        (0..3).for_each(|id| flight.add(Job::new(id, 1, ())));
        flight.next(start);
        flight.answered(0, start + SECOND / 2);
        assert_eq!(flight.deadline(), Some(start + SECOND + SECOND / 2), "an answer is a sign of life");
        assert_eq!(flight.killed(start + 2 * SECOND), []);
        assert_eq!(flight.next(start).map(ids), Some(vec![1]));
        assert_eq!(flight.next(start), None, "alone");
        flight.answered(1, start);
        assert_eq!(flight.next(start).map(ids), Some(vec![2]));
        assert_eq!(flight.killed(start + SECOND), [Blame::Overdue(Job::new(2, 1, ()))]);
    }

    #[test]
    fn an_answer_to_nothing_is_told_apart() {
        let mut flight: Flight<()> = Flight::new(1, BATCH, SECOND);
        assert!(flight.answered(3, Instant::now()).is_none());
    }
}
