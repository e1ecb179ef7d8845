//! How one agent behaves over all its connections: what it may still send, how often it comes, what it did wrong.
//!
//! Pure; the time is given. `fleet` holds one for each agent that it knows.

use super::offences::Offences;
use super::rate::{Allowance, Rate};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connections of one agent a second. One that roams opens a few in a minute.
const ENTRIES_PER_S: u32 = 1;
/// So many may come at once.
const ENTRIES_BURST: u32 = 30;
/// A new outbox has a new epoch, and the store remembers each: one in so many seconds.
const EPOCH_EVERY_S: u32 = 10;
/// So many may come at once: a host whose disk fails again and again.
const EPOCHS_BURST: u32 = 256;
/// Certificates are renewed twice a day, and the register remembers each: one in so many seconds.
const RENEWAL_EVERY_S: u32 = 600;
/// So many may come at once: a host that could not store what it got.
const RENEWALS_BURST: u32 = 16;

/// Of one agent.
#[derive(Debug)]
pub(super) struct Conduct {
    offences: Offences,
    entries: Rate,
    epochs: Rate,
    epoch: Option<u64>,
    renewals: Rate,
    allowance: Arc<Mutex<Allowance>>,
}

/// Why an agent is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// It was cut off a moment ago.
    Barred(Duration),
    /// It comes too often. That is an offence.
    TooOften,
}

impl Conduct {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            offences: Offences::default(),
            entries: Rate::new(ENTRIES_PER_S, ENTRIES_BURST, now),
            epochs: Rate::rare(EPOCH_EVERY_S, EPOCHS_BURST, now),
            epoch: None,
            renewals: Rate::rare(RENEWAL_EVERY_S, RENEWALS_BURST, now),
            allowance: Arc::new(Mutex::new(Allowance::new(now))),
        }
    }

    /// One more connection.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Denied> {
        if let Some(left) = self.offences.left(now) {
            return Err(Denied::Barred(left));
        }
        self.entries.take(now).map_err(|_| Denied::TooOften)
    }

    /// It was cut off. Gives how long it is shut out.
    pub(super) fn offence(&mut self, now: Instant) -> Duration {
        self.offences.note(now)
    }

    /// Its hello names an outbox. False when it has had too many.
    pub(super) fn may_begin(&mut self, epoch: u64, now: Instant) -> bool {
        if self.epoch == Some(epoch) {
            return true;
        }
        let may = self.epochs.take(now).is_ok();
        if may {
            self.epoch = Some(epoch);
        }
        may
    }

    /// One more certificate.
    pub(super) fn may_renew(&mut self, now: Instant) -> bool {
        self.renewals.take(now).is_ok()
    }

    pub(super) fn allowance(&self) -> Arc<Mutex<Allowance>> {
        self.allowance.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_often_is_barred_and_gets_in_again() {
        let mut now = Instant::now();
        let mut conduct = Conduct::new(now);
        assert_eq!((0..1000).filter(|_| conduct.admit(now).is_ok()).count(), ENTRIES_BURST as usize);
        assert_eq!(conduct.admit(now), Err(Denied::TooOften));
        let bar = conduct.offence(now);
        now += Duration::from_secs(1);
        assert_eq!(conduct.admit(now), Err(Denied::Barred(bar - Duration::from_secs(1))));
        now += bar;
        assert_eq!(conduct.admit(now), Ok(()));
    }

    #[test]
    fn epochs_and_renewals_are_rare_and_the_same_epoch_is_free() {
        let now = Instant::now();
        let mut conduct = Conduct::new(now);
        assert!((0..1000).all(|_| conduct.may_begin(7, now)));
        assert_eq!(
            (0..1000).filter(|epoch| conduct.may_begin(100 + epoch, now)).count(),
            EPOCHS_BURST as usize - 1
        );
        assert_eq!((0..1000).filter(|_| conduct.may_renew(now)).count(), RENEWALS_BURST as usize);
    }
}
