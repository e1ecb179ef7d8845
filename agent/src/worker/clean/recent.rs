//! Pages that a walk has just read: files of one folder have neighbouring inodes, so that one read serves many of them.
//!
//! Of one walk, never shared. A page counts only until this process changes the table: what was forgotten must not be
//! found. Another process may change it too, as `scan` beside `scan` does; both only add what is true.

use super::{Entry, GROUP_INODES, NAME_BYTES, PAGE_BYTES, Region, Table, device_and_inode, halves};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

/// Pages that are kept, each once it is needed; together 4 MiB. The order in which a large folder lists its files has nothing to do
/// with their inodes, so that all pages of one should be there at once.
pub const PAGES_MAX: usize = 1024;

/// The pages.
#[derive(Debug)]
pub struct Recent {
    pages: Vec<Option<Box<Page>>>,
    /// How often a page was read.
    reads: u64,
}

#[derive(Debug)]
struct Page {
    /// Device, and inode divided by [`GROUP_INODES`].
    group: (u64, u64),
    changes: u64,
    bytes: [u8; PAGE_BYTES],
}

impl Default for Recent {
    fn default() -> Self {
        Self { pages: (0..PAGES_MAX).map(|_| None).collect(), reads: 0 }
    }
}

impl Recent {
    /// How often a page was read.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads
    }
}

impl Table {
    /// As [`Table::get`] of [`Region::Files`], by pages that were read before.
    #[must_use]
    pub fn get_near(&self, recent: &mut Recent, name: &[u8; NAME_BYTES]) -> Option<Entry> {
        let (device, inode) = device_and_inode(name);
        let group = (device, inode / GROUP_INODES);
        let place = usize::try_from(group.1 % PAGES_MAX as u64).unwrap_or(0);
        let Recent { pages, reads } = recent;
        let slot = pages.get_mut(place)?;
        // Before the page is read: a change while it is read makes it old.
        let changes = self.changes.load(Ordering::Acquire);
        if slot.as_ref().is_none_or(|page| page.group != group || page.changes != changes) {
            let mut page =
                slot.take().unwrap_or_else(|| Box::new(Page { group, changes, bytes: [0; PAGE_BYTES] }));
            (page.group, page.changes) = (group, changes);
            let read = self.file.read_at(&mut page.bytes, self.home(name).0).ok()?;
            if let Some(cut) = page.bytes.get_mut(read..) {
                cut.fill(0);
            }
            *reads += 1;
            *slot = Some(page);
        }
        let page = slot.as_ref()?;
        let (fingerprint, _) = halves(&blake3::keyed_hash(&self.key, name));
        let first = usize::try_from(inode % super::PAGE_ENTRIES as u64).unwrap_or(0);
        self.find(&page.bytes, first, &fingerprint)
            .or_else(|| self.elsewhere(&self.places(Region::Files, name)))
    }
}
