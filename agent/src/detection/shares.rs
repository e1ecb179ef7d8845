//! Who gets the next turn among files of one class. Pure.
//!
//! Users take turns, and within a user the programs that made the work: whoever makes much of it waits for
//! himself. Within one program what came first goes first.

use super::queue::Id;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Whose work it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Share {
    /// The process's user; the file's owner where the process is not known.
    pub uid: u32,
    /// Stands for the process's executable.
    pub origin: u64,
}

/// Files that wait, by share.
#[derive(Debug, Default)]
pub(super) struct Shares {
    users: HashMap<u32, User>,
    turns: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct User {
    origins: HashMap<u64, BTreeMap<u64, Id>>,
    turns: VecDeque<u64>,
    len: usize,
}

impl Shares {
    /// Adds a file; tickets grow.
    pub(super) fn push(&mut self, share: Share, ticket: u64, id: Id) {
        let user = self.users.entry(share.uid).or_insert_with(|| {
            self.turns.push_back(share.uid);
            User::default()
        });
        user.push(share.origin, ticket, id);
    }

    /// The file whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Id> {
        let uid = self.turns.pop_front()?;
        let user = self.users.get_mut(&uid)?;
        let id = user.pop();
        if user.len == 0 {
            self.users.remove(&uid);
        } else {
            self.turns.push_back(uid);
        }
        id
    }

    /// Takes a file out of its line.
    pub(super) fn remove(&mut self, share: Share, ticket: u64) {
        let Some(user) = self.users.get_mut(&share.uid) else { return };
        user.remove(share.origin, ticket);
        if user.len == 0 {
            self.users.remove(&share.uid);
            self.turns.retain(|uid| *uid != share.uid);
        }
    }

    /// Whether a file of `share` would not come later at the end of the line of `other`, another user.
    pub(super) fn is_no_later(&self, (share, ticket): (Share, u64), other: Share) -> bool {
        let line = self.users.get(&share.uid).and_then(|user| user.origins.get(&share.origin));
        let Some(line) = line.filter(|_| share.uid != other.uid) else { return false };
        let waiting = self.users.get(&other.uid).map_or(0, |user| user.len);
        line.range(..ticket).take(waiting + 1).count() > waiting
    }

    /// The newest file of the longest share, counting one more for the `newcomer`; `None` when that is the longest
    /// itself, or nothing waits.
    pub(super) fn newest_of_longest(&self, newcomer: Option<Share>) -> Option<Id> {
        let more = |uid| usize::from(newcomer.is_some_and(|share| share.uid == uid));
        let longest = self.users.iter().max_by_key(|(uid, user)| (user.len + more(**uid), **uid))?;
        let (uid, user) = longest;
        // A newcomer whose own share is empty yet is never the longest: every share here has one at least.
        user.newest_of_longest(newcomer.filter(|share| share.uid == *uid).map(|share| share.origin))
    }

    /// None waits.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// How many users wait.
    #[cfg(test)]
    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    /// Which users wait.
    #[cfg(test)]
    pub(super) fn waiting_users(&self) -> Vec<u32> {
        self.users.keys().copied().collect()
    }
}

impl User {
    fn push(&mut self, origin: u64, ticket: u64, id: Id) {
        let line = self.origins.entry(origin).or_insert_with(|| {
            self.turns.push_back(origin);
            BTreeMap::new()
        });
        self.len += usize::from(line.insert(ticket, id).is_none());
    }

    fn pop(&mut self) -> Option<Id> {
        let origin = self.turns.pop_front()?;
        let line = self.origins.get_mut(&origin)?;
        let (_, id) = line.pop_first()?;
        self.len -= 1;
        if line.is_empty() {
            self.origins.remove(&origin);
        } else {
            self.turns.push_back(origin);
        }
        Some(id)
    }

    fn remove(&mut self, origin: u64, ticket: u64) {
        let Some(line) = self.origins.get_mut(&origin) else { return };
        self.len -= usize::from(line.remove(&ticket).is_some());
        if line.is_empty() {
            self.origins.remove(&origin);
            self.turns.retain(|other| *other != origin);
        }
    }

    fn newest_of_longest(&self, newcomer: Option<u64>) -> Option<Id> {
        let more = |origin| usize::from(newcomer == Some(origin));
        let (origin, line) =
            self.origins.iter().max_by_key(|(origin, line)| (line.len() + more(**origin), **origin))?;
        if newcomer == Some(*origin) {
            return None;
        }
        line.last_key_value().map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(uid: u32, origin: u64) -> Share {
        Share { uid, origin }
    }

    #[test]
    fn users_take_turns_and_within_them_programs() {
        let mut shares = Shares::default();
        for (ticket, (uid, origin)) in
            [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (2, 1), (2, 1)].into_iter().enumerate()
        {
            let ticket = ticket as u64;
            shares.push(share(uid, origin), ticket, (u64::from(uid), 10 * origin + ticket));
        }
        let order: Vec<Id> = std::iter::from_fn(|| shares.pop()).collect();
        assert_eq!(order, [(1, 10), (2, 15), (1, 23), (2, 16), (1, 11), (1, 24), (1, 12)]);
        assert!(shares.is_empty() && shares.turns.is_empty());
    }

    #[test]
    fn the_longest_share_gives_its_newest_and_nobody_is_left_in_the_turns() {
        let mut shares = Shares::default();
        for ticket in 0..3 {
            shares.push(share(1, ticket % 2), ticket, (1, ticket));
        }
        shares.push(share(2, 0), 3, (2, 3));
        assert_eq!(shares.newest_of_longest(Some(share(2, 9))), Some((1, 2)), "of the longest program");
        assert_eq!(shares.newest_of_longest(Some(share(1, 0))), None, "the newcomer's own");
        assert_eq!(shares.newest_of_longest(Some(share(1, 7))), Some((1, 2)));
        for (user, origin, ticket) in [(1, 0, 0), (1, 1, 1), (1, 0, 2), (2, 0, 3)] {
            shares.remove(share(user, origin), ticket);
        }
        assert!(shares.is_empty() && shares.turns.is_empty());
        assert_eq!(shares.newest_of_longest(None), None);
    }
}
