//! What was lost, here and before, and what follows from it: a gap, and a rescan of where and when it was.

use super::outgoing::Shed;
use super::rescan::{Desk, Folder, Wish, reason_of};
use crate::host::Moment;
use crate::sensors::hot::Hot;
use std::sync::Arc;
use std::time::Instant;
use vidette_protocol::wire::{self, GapReason};

/// Files are stamped by a clock that ticks, and is read a moment before they are told. Nanoseconds.
const SLACK_NS: i64 = 1_000_000_000;
/// A file may have been written long before it was closed: this long before at most is looked for it. Nanoseconds.
const OLD_WRITE_NS: i64 = 600_000_000_000;

/// Keeps what was not told yet.
#[derive(Debug)]
pub(super) struct Losses {
    desk: Arc<Desk>,
    shed: Option<Shed>,
    /// The oldest change among what was shed. Unix nanoseconds.
    changed_unix_ns: i64,
    hot: Hot,
}

impl Losses {
    /// Wishes go to `desk`.
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self { desk, shed: None, changed_unix_ns: i64::MAX, hot: Hot::default() }
    }

    /// A file that there was no room for.
    pub(super) fn here(&mut self, path: &[u8], at: Moment, ctime_unix_ns: i64) {
        Shed::add(&mut self.shed, at);
        self.changed_unix_ns = self.changed_unix_ns.min(ctime_unix_ns);
        self.hot.file(path);
    }

    /// Something that a sensor lost.
    pub(super) fn elsewhere(&mut self, gap: &wire::Gap, hot: Vec<Vec<u8>>) {
        let reason = GapReason::try_from(gap.reason).unwrap_or(GapReason::Unspecified);
        let Some(word) = reason_of(reason) else { return };
        self.wish(word, gap.from_unix_ns, hot);
    }

    /// A folder to be walked; a gap when too many wait.
    pub(super) fn came_into_view(&mut self, folder: Folder, at: Moment) -> Option<wire::Gap> {
        if self.desk.came(folder) {
            return None;
        }
        Some(wire::Gap {
            reason: GapReason::DetectionQueue.into(),
            from_unix_ns: at.unix_ns,
            to_unix_ns: at.unix_ns,
            detail: "the files of a folder that came into view were not looked at because too many folders were waiting"
                .to_owned(),
            ..Default::default()
        })
    }

    /// When [`Self::overdue`] has something to say.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.shed.as_ref().map(|shed| shed.tell_at)
    }

    /// What was shed here so far, when it is time to tell; the rescan is asked for at the same time.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<wire::Gap> {
        self.shed.filter(|shed| shed.tell_at <= now)?;
        self.take()
    }

    /// What was shed here so far.
    pub(super) fn take(&mut self) -> Option<wire::Gap> {
        let shed = self.shed.take()?;
        let since = shed.since.unix_ns;
        let changed = std::mem::replace(&mut self.changed_unix_ns, i64::MAX);
        let since = since.min(changed.max(since.saturating_sub(OLD_WRITE_NS)));
        let hot = std::mem::take(&mut self.hot).list();
        self.wish("detection-queue", since, hot);
        Some(shed.gap(
            Moment::now(),
            "files were not scanned because too many were waiting: they are looked at again",
        ))
    }

    fn wish(&self, reason: &'static str, since_unix_ns: i64, hot: Vec<Vec<u8>>) {
        let since_unix_ns = since_unix_ns.saturating_sub(SLACK_NS);
        self.desk.wish(Wish { reasons: vec![reason], since_unix_ns, hot });
    }
}
