//! Two questions of whoever keeps the collector running: is it alive, can it take events? Pure: signs in, a reason out.
//!
//! `/healthz` says no only when a restart may help, `/readyz` also when somebody else has to do something.

use crate::store::commits::Work;
use std::time::Duration;
use vidette_protocol::escape;

/// The writer may be with one group of commits for so long: a slow disk, a checkpoint, SQLite's own wait for a lock.
pub const BUSY_MAX: Duration = Duration::from_secs(30);
/// With less free space the next commits will fail. Bytes.
pub const FREE_BYTES_MIN: u64 = 32 << 20;

/// What readiness is seen by.
#[derive(Debug, Clone)]
pub struct Signs {
    /// What the store's writer does.
    pub work: Work,
    /// Why it can't write, as of its last try.
    pub failing: Option<String>,
    /// The collector was told to stop.
    pub is_stopping: bool,
    /// Open connections.
    pub connections: u64,
    /// Places for them.
    pub connections_max: u64,
    /// On the store's disk, where it can be known. Bytes.
    pub free_bytes: Option<u64>,
}

/// The writer makes progress, or has nothing to do.
///
/// # Errors
/// One line: why not.
pub fn alive(work: Work) -> Result<(), String> {
    match work {
        Work::Idle => Ok(()),
        Work::Busy(time) if time <= BUSY_MAX => Ok(()),
        Work::Busy(time) => {
            Err(format!("the store's writer has not come back from the disk for {} s", time.as_secs()))
        }
        Work::Ended => Err("the store's writer has ended".into()),
    }
}

/// Agents are accepted, and what they send can be committed.
///
/// # Errors
/// One line: why not.
pub fn ready(signs: &Signs) -> Result<(), String> {
    if signs.is_stopping {
        return Err("the collector is stopping".into());
    }
    alive(signs.work)?;
    if let Some(reason) = &signs.failing {
        return Err(escape::terminal(format!("nothing can be stored: {reason}").as_bytes()));
    }
    if let Some(free) = signs.free_bytes.filter(|free| *free < FREE_BYTES_MIN) {
        return Err(format!("the store's disk has {} KiB left", free >> 10));
    }
    if signs.connections >= signs.connections_max {
        return Err(format!("all {} places for connections are taken", signs.connections_max));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Signs {
        Signs {
            work: Work::Idle,
            failing: None,
            is_stopping: false,
            connections: 3,
            connections_max: 4,
            free_bytes: Some(1 << 30),
        }
    }

    #[test]
    fn it_is_alive_while_the_writer_comes_back() {
        for (work, is_alive) in [
            (Work::Idle, true),
            (Work::Busy(BUSY_MAX), true),
            (Work::Busy(BUSY_MAX + Duration::from_secs(1)), false),
            (Work::Ended, false),
        ] {
            assert_eq!(alive(work).is_ok(), is_alive, "{work:?}");
        }
    }

    #[test]
    fn each_lack_makes_it_unready_and_is_named_in_one_line() {
        assert_eq!(ready(&good()), Ok(()));
        assert_eq!(ready(&Signs { free_bytes: None, ..good() }), Ok(()));
        let table = [
            (Signs { is_stopping: true, ..good() }, "stopping"),
            (Signs { work: Work::Ended, ..good() }, "ended"),
            (Signs { failing: Some("disk\nfull".into()), ..good() }, "nothing can be stored: disk"),
            (Signs { free_bytes: Some(FREE_BYTES_MIN - 1), ..good() }, "KiB left"),
            (Signs { connections: 4, ..good() }, "all 4 places"),
        ];
        for (signs, word) in table {
            let why = ready(&signs).expect_err(word);
            assert!(why.contains(word) && !why.contains('\n'), "{why}");
        }
    }
}
