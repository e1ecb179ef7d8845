//! Files on their way to the scanner threads of one worker, and their verdicts on the way back.
//!
//! Each thread takes a parcel at a time. What is left of a parcel whose thread is held up goes to the next thread that
//! has nothing to do, and so do the verdicts that it held back: a file that takes long holds up itself alone.
//! Files go to `scan`; verdicts are told by `inside`.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread that works at one file for longer is held up: others take what it has left.
pub const HELD_UP_TIME: Duration = Duration::from_millis(100);

/// When verdicts are told.
#[derive(Debug, Clone, Copy)]
pub struct Telling {
    /// Together they are no more than this, unless one alone is. Bytes.
    pub bytes_max: usize,
    /// Held back no longer than this, apart from the scan that goes on meanwhile.
    pub time: Duration,
}

/// What a thread does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<F, A> {
    /// Scan this.
    Scan(F),
    /// Tell these.
    Tell(Vec<A>),
}

/// One thread's work.
#[derive(Debug)]
struct Hand<F, A> {
    files: VecDeque<F>,
    answers: Vec<A>,
    bytes: usize,
    /// The oldest verdict that it holds back.
    since: Instant,
    /// Since when it works at a file; `None` while it does not.
    busy: Option<Instant>,
}

#[derive(Debug)]
struct State<F, A> {
    waiting: VecDeque<Vec<F>>,
    hands: Vec<Hand<F, A>>,
}

/// The files and verdicts of all threads.
#[derive(Debug)]
pub struct Parcels<F, A> {
    telling: Telling,
    state: Mutex<State<F, A>>,
    changed: Condvar,
}

impl<F, A> Parcels<F, A> {
    /// For so many threads, numbered from 0.
    #[must_use]
    pub fn new(threads: usize, telling: Telling) -> Self {
        let hand = |_| Hand {
            files: VecDeque::new(),
            answers: Vec::new(),
            bytes: 0,
            since: Instant::now(),
            busy: None,
        };
        let hands = (0..threads).map(hand).collect();
        let state = Mutex::new(State { waiting: VecDeque::new(), hands });
        Self { telling, state, changed: Condvar::new() }
    }

    /// A parcel that some thread takes; says how many wait.
    pub fn add(&self, parcel: Vec<F>) -> usize {
        let mut state = self.lock();
        state.waiting.push_back(parcel);
        let waiting = state.waiting.len();
        drop(state);
        self.changed.notify_one();
        waiting
    }

    /// Takes the verdict of what the thread did last, with its size as encoded; waits for what it does next.
    pub fn turn(&self, number: usize, answer: Option<(A, usize)>) -> Turn<F, A> {
        let mut state = self.lock();
        if let Some(hand) = state.hands.get_mut(number) {
            hand.busy = None;
        }
        if let Some((answer, bytes)) = answer
            && let Some(told) = state.hold(number, answer, bytes, self.telling.bytes_max)
        {
            return Turn::Tell(told);
        }
        loop {
            let now = Instant::now();
            if let Some(turn) = state.next(number, now, self.telling.time) {
                // Somebody who sleeps has to watch for this thread being held up.
                let watched = matches!(turn, Turn::Scan(_)) && state.has_more(number);
                drop(state);
                if watched {
                    self.changed.notify_one();
                }
                return turn;
            }
            state = self.sleep(state);
        }
    }

    /// Until something comes; no longer than another thread takes to be held up, when somebody may be.
    fn sleep<'a>(&self, state: MutexGuard<'a, State<F, A>>) -> MutexGuard<'a, State<F, A>> {
        let watch = state.hands.iter().any(|hand| hand.busy.is_some() && hand.has_any());
        if watch {
            let waited = self.changed.wait_timeout(state, HELD_UP_TIME);
            waited.unwrap_or_else(PoisonError::into_inner).0
        } else {
            self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<F, A>> {
        // A thread that panics ends the process.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F, A> State<F, A> {
    /// Keeps a verdict; gives those before it back when they would be too many together.
    fn hold(&mut self, number: usize, answer: A, bytes: usize, max: usize) -> Option<Vec<A>> {
        let hand = self.hands.get_mut(number)?;
        let full = !hand.answers.is_empty() && hand.bytes + bytes > max;
        let told = full.then(|| hand.take_answers());
        if hand.answers.is_empty() {
            hand.since = Instant::now();
        }
        hand.answers.push(answer);
        hand.bytes += bytes;
        told
    }

    fn next(&mut self, number: usize, now: Instant, time: Duration) -> Option<Turn<F, A>> {
        if self.hands.get(number).is_some_and(|hand| hand.files.is_empty() && hand.answers.is_empty()) {
            let (files, answers) = self.more(now);
            self.hands.get_mut(number)?.files = files;
            if !answers.is_empty() {
                return Some(Turn::Tell(answers));
            }
        }
        let hand = self.hands.get_mut(number)?;
        let due = hand.files.is_empty() || hand.since + time <= now;
        if !hand.answers.is_empty() && due {
            return Some(Turn::Tell(hand.take_answers()));
        }
        let file = hand.files.pop_front()?;
        hand.busy = Some(now);
        Some(Turn::Scan(file))
    }

    /// What a thread that is held up has left, and held back; else the next parcel.
    fn more(&mut self, now: Instant) -> (VecDeque<F>, Vec<A>) {
        let held_up = self.hands.iter_mut().find(|hand| hand.is_held_up(now) && hand.has_any());
        if let Some(hand) = held_up {
            return (std::mem::take(&mut hand.files), hand.take_answers());
        }
        (self.waiting.pop_front().unwrap_or_default().into(), Vec::new())
    }

    fn has_more(&self, number: usize) -> bool {
        self.hands.get(number).is_some_and(Hand::has_any)
    }
}

impl<F, A> Hand<F, A> {
    fn is_held_up(&self, now: Instant) -> bool {
        self.busy.is_some_and(|since| since + HELD_UP_TIME <= now)
    }

    fn has_any(&self) -> bool {
        !self.files.is_empty() || !self.answers.is_empty()
    }

    fn take_answers(&mut self) -> Vec<A> {
        self.bytes = 0;
        std::mem::take(&mut self.answers)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::mpsc;

    const TELLING: Telling = Telling { bytes_max: 100, time: Duration::from_secs(600) };

    #[test]
    fn verdicts_of_a_parcel_are_told_together_up_to_their_size() {
        let parcels = Parcels::new(1, TELLING);
        parcels.add(vec![1, 2, 3]);
        assert_eq!(parcels.turn(0, None), Turn::Scan(1));
        assert_eq!(parcels.turn(0, Some(('a', 40))), Turn::Scan(2));
        assert_eq!(parcels.turn(0, Some(('b', 70))), Turn::Tell(vec!['a']), "b does not fit beside a");
        assert_eq!(parcels.turn(0, None), Turn::Scan(3));
        assert_eq!(parcels.turn(0, Some(('c', 10))), Turn::Tell(vec!['b', 'c']));
    }

    #[test]
    fn verdicts_are_not_held_back_for_long() {
        let parcels = Parcels::new(1, Telling { time: Duration::ZERO, ..TELLING });
        parcels.add(vec![1, 2]);
        assert_eq!(parcels.turn(0, None), Turn::Scan(1));
        assert_eq!(parcels.turn(0, Some(('a', 1))), Turn::Tell(vec!['a']));
        assert_eq!(parcels.turn(0, None), Turn::Scan(2));
    }

    #[test]
    fn of_a_thread_that_is_held_up_another_takes_files_and_verdicts() {
        let parcels = Parcels::new(2, TELLING);
        parcels.add(vec![1, 2, 3, 4]);
        assert_eq!(parcels.turn(0, None), Turn::Scan(1));
        assert_eq!(parcels.turn(0, Some(('a', 1))), Turn::Scan(2));
        // The first thread never comes back from 2.
        assert_eq!(parcels.turn(1, None), Turn::Tell(vec!['a']));
        assert_eq!(parcels.turn(1, None), Turn::Scan(3));
        assert_eq!(parcels.turn(1, Some(('c', 1))), Turn::Scan(4));
        assert_eq!(parcels.turn(1, Some(('d', 1))), Turn::Tell(vec!['c', 'd']));
        parcels.add(vec![5]);
        assert_eq!(parcels.turn(1, None), Turn::Scan(5));
    }

    #[test]
    fn whoever_sleeps_is_woken_to_watch() {
        let parcels = Parcels::new(2, TELLING);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| parcels.turn(1, None));
            // Whichever of the two takes the parcel, the other one gets what is left of it.
            parcels.add(vec![1, 2]);
            let Turn::Scan(one) = parcels.turn(0, None) else { panic!("a verdict of nothing") };
            let Turn::<i32, char>::Scan(other) = sleeper.join().unwrap() else { panic!("of nothing") };
            assert_eq!(one + other, 3);
        });
    }

    #[test]
    fn every_file_is_scanned_once_and_every_verdict_told_once() {
        for seed in 0..20u64 {
            let (parcels, files) = (Parcels::new(3, TELLING), 300u64);
            let (told, heard) = mpsc::channel();
            std::thread::scope(|scope| {
                for number in 0..3 {
                    let (parcels, told) = (&parcels, told.clone());
                    scope.spawn(move || {
                        let mut answer = None;
                        loop {
                            match parcels.turn(number, answer.take()) {
                                Turn::Scan(u64::MAX) => return,
                                Turn::Scan(file) => {
                                    if (file + seed) % 149 == 0 {
                                        std::thread::sleep(HELD_UP_TIME * 2);
                                    }
                                    answer = Some((file, 30));
                                }
                                Turn::Tell(answers) => {
                                    answers.into_iter().for_each(|a| told.send(a).unwrap())
                                }
                            }
                        }
                    });
                }
                for at in (0..files).step_by(15) {
                    parcels.add((at..at + 15).collect());
                }
                let all: Vec<u64> = heard.iter().take(usize::try_from(files).unwrap()).collect();
                let one_each: BTreeSet<u64> = all.iter().copied().collect();
                assert_eq!((all.len(), one_each.len()), (300, 300), "seed {seed}");
                for _ in 0..3 {
                    parcels.add(vec![u64::MAX]);
                }
            });
            assert!(heard.try_recv().is_err(), "seed {seed}");
        }
    }
}
