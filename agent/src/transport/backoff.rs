//! How long to wait before the next connection: full jitter, doubling, capped; at once after a graceful close.
//!
//! Pure: randomness comes from the caller. The shell of the transport sleeps what this says.

use std::time::Duration;

/// The longest pause before the first retry.
pub const FIRST: Duration = Duration::from_millis(500);
/// The longest pause ever.
pub const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Remembers how often it failed in a row.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
    at_once_used: bool,
}

impl Backoff {
    /// The collector answered with a Welcome.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// The pause before the next try. `random` is a fresh number from the whole range. A graceful close
    /// (the collector restarts, or the session wants a new connection) is retried at once, but only one time
    /// in a row.
    pub fn pause(&mut self, graceful: bool, random: u32) -> Duration {
        if graceful && !self.at_once_used {
            self.at_once_used = true;
            return Duration::ZERO;
        }
        let cap = FIRST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        cap.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_no_further() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..100).map(|_| backoff.pause(false, u32::MAX)).collect();
        assert_eq!(pauses[0], FIRST);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert_eq!(pauses[99], PAUSE_MAX);
    }

    #[test]
    fn jitter_is_full() {
        assert_eq!(Backoff::default().pause(false, 0), Duration::ZERO);
        let half = Backoff::default().pause(false, u32::MAX / 2);
        assert!(half > FIRST.mul_f64(0.49) && half < FIRST.mul_f64(0.51), "{half:?}");
    }

    #[test]
    fn a_graceful_close_is_retried_at_once_but_once() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(true, u32::MAX), Duration::ZERO);
        assert_eq!(backoff.pause(true, u32::MAX), FIRST);
        backoff.succeeded();
        assert_eq!(backoff.pause(true, u32::MAX), Duration::ZERO);
    }
}
