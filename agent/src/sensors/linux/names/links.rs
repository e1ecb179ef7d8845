//! Which new names are links to files that were there already.
//!
//! Pure. The kernel says FAN_CREATE for both. But link(2) and linkat(2) change the number of links of the file, and
//! say so right before, by a FAN_ATTRIB that has the file's handle and no name (`fsnotify_link` in
//! linux/fsnotify.h, every kernel that has fanotify with handles); open(2), mkdir(2), symlink(2) and mknod(2)
//! say no such thing of what they make. That event may have been merged with one that waited since an earlier
//! link or unlink of the same file, so the latest files are remembered and not only the last. Handles hold a
//! generation: one that was remembered can't come back as a file that was just made.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Files in each half: the queue of the kernel holds 16,384 events by default.
const HALF_FILES_MAX: usize = 8192;

/// Files whose number of links changed lately, by a keyed hash of their handle: two that collide cost a scan.
#[derive(Debug, Default)]
pub(crate) struct Links {
    hasher: RandomState,
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Links {
    /// The number of links of a file changed.
    pub(crate) fn changed(&mut self, handle: &[u8]) {
        self.young.insert(self.hasher.hash_one(handle));
        if self.young.len() >= HALF_FILES_MAX {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// Whether a file that has a new name is not itself new.
    #[must_use]
    pub(crate) fn is_link(&self, handle: &[u8]) -> bool {
        let hash = self.hasher.hash_one(handle);
        self.young.contains(&hash) || self.old.contains(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_lately_is_a_link_and_nothing_else() {
        let mut links = Links::default();
        assert!(!links.is_link(b"a"));
        links.changed(b"a");
        for number in 0..HALF_FILES_MAX - 1 {
            links.changed(&number.to_ne_bytes());
            assert!(links.is_link(b"a"));
        }
        assert!(!links.is_link(b"b"));
        for number in 0..3 * HALF_FILES_MAX {
            links.changed(&number.to_ne_bytes());
            assert!(links.young.len() + links.old.len() <= 2 * HALF_FILES_MAX);
        }
        assert!(!links.is_link(b"a"));
    }
}
