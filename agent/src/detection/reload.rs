//! Requests to read rules and hash lists anew, and what became of them.
//!
//! Requests have numbers. Whoever made one waits until an answer has its number or a later one: what is read for a later
//! request is what the earlier one wanted, and newer.

use super::hashes::HashSources;
use super::rules::RuleSources;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that wait.
const WAITING_MAX: usize = 4;

/// What is to be read, and instead of what is used now.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) rules: Option<RuleSources>,
    pub(super) hashes: Option<HashSources>,
}

/// What became of requests. Numbers are of the newest request that is settled; 0 for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Its rules are in use, or will not be.
    pub rules: u64,
    /// Its hash lists are in use, or will not be.
    pub hashes: u64,
    /// Why the newest rules are not in use; empty while they are.
    pub rules_refused: String,
    /// Why the newest hash lists are not in use; empty while they are.
    pub hashes_refused: String,
}

/// Makes requests.
#[derive(Debug, Clone)]
pub struct Reloader {
    requests: Sender<Request>,
    /// The newest that was made.
    newest: Arc<Mutex<u64>>,
    rules: RuleSources,
    hashes: HashSources,
}

impl Reloader {
    pub(super) fn new(rules: RuleSources, hashes: HashSources) -> (Self, Receiver<Request>) {
        let (requests, taken) = bounded(WAITING_MAX);
        (Self { requests, newest: Arc::default(), rules, hashes }, taken)
    }

    /// Has the configured rules and lists read anew. The number to wait for.
    #[must_use]
    pub fn configured(&self) -> u64 {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *newest + 1;
        let request = Request { number, rules: Some(self.rules.clone()), hashes: Some(self.hashes.clone()) };
        match self.requests.try_send(request) {
            Ok(()) => *newest = number,
            // The newest of those that wait has not been read: it serves this one as well. Closed: nobody answers any more.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        *newest
    }

    /// Has these read, when there is room for the request.
    pub(super) fn ask(&self, rules: Option<RuleSources>, hashes: Option<HashSources>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest += 1;
        // Closed: the stage has ended and needs none. Full: waits, because no request may be lost.
        let _ = self.requests.send(Request { number: *newest, rules, hashes });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_finds_no_room_is_served_by_the_newest_that_waits() {
        let (reloader, taken) = Reloader::new(RuleSources::default(), HashSources::default());
        let numbers: Vec<u64> = (0..WAITING_MAX + 2).map(|_| reloader.configured()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 4, 4]);
        assert_eq!(taken.try_iter().map(|request| request.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(reloader.configured(), 5);
        drop(taken);
        assert_eq!(reloader.configured(), 5);
    }
}
