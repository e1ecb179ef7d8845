//! Deletions in folders that nobody knows the path of, because they are gone too.
//!
//! Pure. `rm -r` removes what is in a folder first and the folder last, so the folder's own deletion, which tells
//! its place, is on its way in the same queue. Until then what was in it waits here: names only, no descriptors.

use crate::host::Moment;
use std::collections::HashMap;

/// Deletions that wait. As many as the kernel's queue holds by default. Beyond it they have no path.
const WAITING_MAX: usize = 16_384;

/// A deletion whose folder is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    /// The entry's name.
    pub(super) name: Box<[u8]>,
    /// Its handle, when it was a folder itself.
    pub(super) folder: Option<Box<[u8]>>,
    /// It was a folder.
    pub(super) is_folder: bool,
    /// Who did it.
    pub(super) pid: u32,
    /// When it was read.
    pub(super) at: Moment,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    by_folder: HashMap<Box<[u8]>, Vec<(Orphan, u64)>>,
    count: usize,
    turn: u64,
}

impl Orphans {
    /// Keeps a deletion until its folder is known; gives it back when there is no room.
    pub(super) fn add(&mut self, folder: &[u8], orphan: Orphan) -> Result<(), Orphan> {
        if self.count >= WAITING_MAX {
            return Err(orphan);
        }
        self.count += 1;
        let turn = self.turn;
        match self.by_folder.get_mut(folder) {
            Some(list) => list.push((orphan, turn)),
            None => drop(self.by_folder.insert(folder.into(), vec![(orphan, turn)])),
        }
        Ok(())
    }

    /// What waited for this folder.
    pub(super) fn take(&mut self, folder: &[u8]) -> Vec<Orphan> {
        let list = self.by_folder.remove(folder).unwrap_or_default();
        self.count -= list.len();
        list.into_iter().map(|(orphan, _)| orphan).collect()
    }

    /// The end of a turn. What waited since an earlier one when the queue is empty waits for nothing that comes.
    pub(super) fn end_turn(&mut self, emptied: bool) -> Vec<Orphan> {
        let turn = self.turn;
        self.turn += 1;
        let mut hopeless = Vec::new();
        if emptied && self.count > 0 {
            for list in self.by_folder.values_mut() {
                hopeless.extend(list.extract_if(.., |(_, since)| *since < turn).map(|(orphan, _)| orphan));
            }
            self.by_folder.retain(|_, list| !list.is_empty());
            self.count -= hopeless.len();
        }
        hopeless
    }

    /// Whether another turn should come soon.
    #[must_use]
    pub(super) fn is_waiting(&self) -> bool {
        self.count > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphan(name: &[u8]) -> Orphan {
        let at = Moment { unix_ns: 0, uptime_ns: 0 };
        Orphan { name: name.into(), folder: None, is_folder: false, pid: 1, at }
    }

    #[test]
    fn what_waits_comes_with_its_folder_or_when_nothing_more_comes() {
        let mut orphans = Orphans::default();
        for (folder, name) in [(b"1", b"a"), (b"1", b"b"), (b"2", b"c")] {
            assert_eq!(orphans.add(folder, orphan(name)), Ok(()));
        }
        assert_eq!(orphans.take(b"1"), [orphan(b"a"), orphan(b"b")]);
        assert_eq!(orphans.take(b"1"), []);
        assert_eq!(orphans.end_turn(true), [], "its folder may come with the next batch");
        assert_eq!(orphans.end_turn(false), []);
        assert!(orphans.is_waiting());
        assert_eq!(orphans.end_turn(true), [orphan(b"c")]);
        assert!(!orphans.is_waiting());
    }

    #[test]
    fn no_more_than_so_many_wait() {
        let mut orphans = Orphans::default();
        for number in 0..WAITING_MAX {
            assert_eq!(orphans.add(&number.to_ne_bytes(), orphan(b"x")), Ok(()));
        }
        assert_eq!(orphans.add(b"1", orphan(b"y")), Err(orphan(b"y")));
        orphans.take(&0usize.to_ne_bytes());
        assert_eq!(orphans.add(b"1", orphan(b"y")), Ok(()));
    }
}
