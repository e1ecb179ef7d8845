//! Which jobs the worker has, and which one killed it. Pure; `pool` does what it says.
//!
//! With several jobs in flight nobody can say which one the worker died of. They become suspects and are tried
//! again one at a time: the one it dies of alone is the culprit. So a crash costs one file.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One file to scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Job<T> {
    /// The caller's number.
    pub id: u64,
    /// What goes with it: the descriptor.
    pub payload: T,
}

#[derive(Debug)]
struct Running<T> {
    job: Job<T>,
    deadline: Instant,
}

/// All jobs of one worker.
#[derive(Debug)]
pub struct Flight<T> {
    threads: usize,
    time: Duration,
    waiting: VecDeque<Job<T>>,
    suspects: VecDeque<Job<T>>,
    running: Vec<Running<T>>,
}

/// What is left after the worker died.
#[derive(Debug, PartialEq, Eq)]
pub enum Blame<T> {
    /// This job killed it.
    Culprit(Job<T>),
    /// It had to be killed, because this job ran out of time.
    Overdue(Job<T>),
}

impl<T> Flight<T> {
    /// At most `threads` jobs run, each for at most `time` before the worker counts as stuck.
    #[must_use]
    pub fn new(threads: usize, time: Duration) -> Self {
        Self { threads, time, waiting: VecDeque::new(), suspects: VecDeque::new(), running: Vec::new() }
    }

    /// A new job; it waits for [`Self::next`].
    pub fn add(&mut self, job: Job<T>) {
        self.waiting.push_back(job);
    }

    /// How many more jobs it makes sense to add.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.suspects.is_empty() { self.threads.saturating_sub(self.len()) } else { 0 }
    }

    /// All jobs, wherever they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + self.suspects.len() + self.running.len()
    }

    /// No job at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The worker has none.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// The next job to hand to the worker, which counts as running from now on.
    pub fn next(&mut self, now: Instant) -> Option<&Job<T>> {
        let job = if self.suspects.is_empty() {
            if self.running.len() >= self.threads {
                return None;
            }
            self.waiting.pop_front()?
        } else {
            if !self.running.is_empty() {
                return None;
            }
            self.suspects.pop_front()?
        };
        // A suspect that is not the last keeps the others out by `suspects`; the last one by running alone when
        // nothing waits beside it. That is enough: another death with it in company only makes suspects again.
        self.running.push(Running { job, deadline: now + self.time });
        self.running.last().map(|running| &running.job)
    }

    /// The worker answered; `None` when it has no such job.
    pub fn answered(&mut self, id: u64) -> Option<Job<T>> {
        let at = self.running.iter().position(|running| running.job.id == id)?;
        Some(self.running.swap_remove(at).job)
    }

    /// When the first running job is overdue.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.running.iter().map(|running| running.deadline).min()
    }

    /// The worker was killed because of overdue jobs: those are to blame, the others wait again.
    pub fn killed(&mut self, now: Instant) -> Vec<Blame<T>> {
        let mut blamed = Vec::new();
        for running in std::mem::take(&mut self.running) {
            if running.deadline <= now {
                blamed.push(Blame::Overdue(running.job));
            } else {
                self.waiting.push_front(running.job);
            }
        }
        blamed
    }

    /// The worker died by itself.
    pub fn died(&mut self) -> Option<Blame<T>> {
        let mut running = std::mem::take(&mut self.running);
        if running.len() == 1 {
            return running.pop().map(|running| Blame::Culprit(running.job));
        }
        self.suspects.extend(running.into_iter().map(|running| running.job));
        None
    }

    /// Takes back every job: there is no worker and will not be.
    pub fn give_up(&mut self) -> Vec<Job<T>> {
        let running = std::mem::take(&mut self.running).into_iter().map(|running| running.job);
        running.chain(self.suspects.drain(..)).chain(self.waiting.drain(..)).collect()
    }

    /// The worker was stopped on purpose: what it had waits again.
    pub fn put_back(&mut self) {
        for running in std::mem::take(&mut self.running) {
            self.waiting.push_front(running.job);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    /// A worker that dies of some jobs: whatever it has in flight, exactly those are blamed and all others answered.
    #[test]
    fn a_crash_costs_exactly_the_file_that_caused_it() {
        for seed in 0..1_000u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let now = Instant::now();
            let mut flight = Flight::new(random.random_range(1..5), Duration::from_secs(1));
            let deadly: Vec<bool> = (0..30).map(|_| random.random_bool(0.15)).collect();
            let (mut fed, mut blamed, mut answered, mut inside) = (0u64, vec![], vec![], vec![]);
            for _ in 0..10_000 {
                while flight.room() > 0 && fed < 30 {
                    flight.add(Job { id: fed, payload: () });
                    fed += 1;
                }
                while let Some(job) = flight.next(now) {
                    inside.push(job.id);
                }
                if inside.is_empty() {
                    break;
                }
                let id = inside.swap_remove(random.random_range(0..inside.len()));
                if deadly[usize::try_from(id).unwrap()] {
                    inside.clear();
                    if let Some(Blame::Culprit(job)) = flight.died() {
                        blamed.push(job.id);
                    }
                } else {
                    answered.push(flight.answered(id).unwrap().id);
                }
            }
            blamed.sort_unstable();
            answered.sort_unstable();
            let (kill, live): (Vec<u64>, Vec<u64>) =
                (0..30u64).partition(|id| deadly[usize::try_from(*id).unwrap()]);
            assert_eq!((blamed, answered), (kill, live), "seed {seed}");
        }
    }

    #[test]
    fn only_what_is_overdue_is_blamed_for_a_hang() {
        let start = Instant::now();
        let mut flight = Flight::new(2, Duration::from_secs(10));
        flight.add(Job { id: 1, payload: () });
        flight.next(start);
        flight.add(Job { id: 2, payload: () });
        flight.next(start + Duration::from_secs(5));
        assert_eq!(flight.deadline(), Some(start + Duration::from_secs(10)));
        assert_eq!(
            flight.killed(start + Duration::from_secs(10)),
            [Blame::Overdue(Job { id: 1, payload: () })]
        );
        assert_eq!(flight.next(start).map(|job| job.id), Some(2));
    }

    #[test]
    fn an_answer_to_nothing_is_told_apart() {
        let mut flight: Flight<()> = Flight::new(1, Duration::from_secs(1));
        assert!(flight.answered(3).is_none());
    }
}
