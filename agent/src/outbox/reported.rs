//! Detections that a rescan meets a second time: the same file in the same state, by the same rules.
//!
//! After a crash nobody can say which of the last detections were committed, and after a loss nobody which files
//! were seen, so the rescan looks at all of them again. What was committed is known here, in the same transaction,
//! and is not kept twice. Only a pair of which one was met by a rescan is merged: two writes of a file are two
//! events, however alike. A run is always an event of its own, but a file that was detected when it ran is known to
//! a later rescan.

use rusqlite::{Connection, OptionalExtension, params};
use vidette_protocol::wire::{self, Trigger, event::Kind};

/// Whether this detection is known; if it is not, it is from now on, as one of the `reported_max` latest. For other
/// events: never.
///
/// # Errors
/// SQLite's.
pub(super) fn is_known(
    connection: &Connection,
    event: &wire::Event,
    reported_max: u64,
) -> rusqlite::Result<bool> {
    let Some(Kind::Detection(detection)) = &event.kind else { return Ok(false) };
    let (swept, always_kept) = match detection.trigger() {
        Trigger::Sweep => (true, false),
        Trigger::CloseWrite | Trigger::Rename | Trigger::Link | Trigger::Attributes => (false, false),
        Trigger::Exec => (false, true),
        Trigger::Request | Trigger::Unspecified => return Ok(false),
    };
    let Some(file) = &detection.file else { return Ok(false) };
    let key = params![
        file.device.cast_signed(),
        file.inode.cast_signed(),
        file.ctime_unix_ns,
        file.size.cast_signed(),
        detection.rules_version,
        swept
    ];
    let sql = "SELECT swept FROM reported WHERE device = ?1 AND inode = ?2 AND ctime = ?3 AND size = ?4 AND rules = ?5
               AND (swept OR ?6)";
    let known: Option<bool> = connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?;
    if known.is_some() {
        return Ok(!always_kept);
    }
    let sql = "INSERT OR IGNORE INTO reported (device, inode, ctime, size, rules, swept) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(sql)?.execute(key)?;
    let sql = "DELETE FROM reported WHERE number <= (SELECT max(number) FROM reported) - ?1";
    connection.prepare_cached(sql)?.execute([reported_max])?;
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn detection(trigger: Trigger, inode: u64) -> wire::Event {
        let file = wire::File { inode, ctime_unix_ns: 5, size: 7, ..Default::default() };
        let detection = wire::Detection { trigger: trigger.into(), file: Some(file), ..Default::default() };
        wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() }
    }

    #[test]
    fn only_what_a_rescan_meets_again_is_known() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema/0001.sql")).unwrap();
        let known = |trigger, inode| is_known(&connection, &detection(trigger, inode), 9).unwrap();
        assert!(!known(Trigger::CloseWrite, 1));
        assert!(!known(Trigger::CloseWrite, 1), "two writes are two events");
        assert!(known(Trigger::Sweep, 1), "committed before the crash");
        assert!(!known(Trigger::Sweep, 2));
        assert!(known(Trigger::Sweep, 2));
        assert!(known(Trigger::CloseWrite, 2), "the rescan was faster than the sensor");
        assert!(!known(Trigger::Exec, 2), "a run is an event of its own");
        for (inode, trigger) in
            [(3, Trigger::Exec), (4, Trigger::Rename), (5, Trigger::Link), (6, Trigger::Attributes)]
        {
            assert!(!known(trigger, inode) && !known(trigger, inode), "{trigger:?} twice is two events");
            assert!(known(Trigger::Sweep, inode), "{trigger:?} was committed before the rescan");
        }
        assert!(!is_known(&connection, &wire::Event::default(), 9).unwrap());
    }
}
