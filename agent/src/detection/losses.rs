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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::detection::rescan::Rescans;
    use crate::detection::walk::Scope;

    const SECOND: i64 = 1_000_000_000;

    fn moment(unix_ns: i64) -> Moment {
        Moment { unix_ns, uptime_ns: 0 }
    }

    /// The time from which a rescan looks after these files were shed: when each was told, and its ctime.
    fn since(shed: &[(i64, i64)]) -> i64 {
        let mut rescans = Rescans::start(Scope::default()).unwrap();
        let mut losses = Losses::new(rescans.desk());
        for (at, ctime) in shed {
            losses.here(b"/a/x", moment(*at), *ctime);
        }
        assert!(losses.overdue(Instant::now()).is_none(), "it waits for company");
        let gap = losses.take().unwrap();
        assert_eq!(gap.count, Some(shed.len() as u64));
        assert!(losses.take().is_none() && losses.tell_at().is_none());
        let since = loop {
            if let crate::detection::rescan::Told::Done(report) = rescans.told().recv().unwrap() {
                break report.since_unix_ns;
            }
        };
        rescans.stop();
        rescans.join();
        since
    }

    #[test]
    fn what_was_shed_is_looked_for_from_its_change_on_and_not_for_ever() {
        let at = 5_000 * SECOND;
        assert_eq!(since(&[(at, at)]), at - SLACK_NS);
        assert_eq!(since(&[(at, at), (at - SECOND, at)]), at - SECOND - SLACK_NS, "told in another order");
        assert_eq!(
            since(&[(at, at - 60 * SECOND)]),
            at - 60 * SECOND - SLACK_NS,
            "written long before it was closed"
        );
        assert_eq!(since(&[(at, 1)]), at - OLD_WRITE_NS - SLACK_NS, "an old program that was run");
    }

    #[test]
    fn only_losses_of_files_are_looked_for() {
        let mut rescans = Rescans::start(Scope::default()).unwrap();
        let mut losses = Losses::new(rescans.desk());
        for reason in [GapReason::ProcessConnector, GapReason::OutboxBound, GapReason::Mount] {
            losses.elsewhere(&wire::Gap { reason: reason.into(), ..Default::default() }, Vec::new());
        }
        assert_eq!(rescans.desk().progress(), Default::default());
        losses.elsewhere(
            &wire::Gap { reason: GapReason::Descriptors.into(), ..Default::default() },
            Vec::new(),
        );
        assert_ne!(rescans.desk().progress(), Default::default());
        rescans.stop();
        while rescans.told().recv().is_ok() {}
        rescans.join();
    }
}
