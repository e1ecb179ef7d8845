//! How often something may happen: a bucket of permits that fills at a steady rate. Pure; the time is given.

use std::time::{Duration, Instant};

/// Holds at most `burst` permits, gains `per_s` a second.
#[derive(Debug)]
pub(super) struct Rate {
    per_s: f64,
    burst: f64,
    permits: f64,
    filled: Instant,
}

impl Rate {
    /// Full at first.
    pub(super) fn new(per_s: u32, burst: u32, now: Instant) -> Self {
        Self { per_s: f64::from(per_s), burst: f64::from(burst), permits: f64::from(burst), filled: now }
    }

    /// Takes a permit, or says how long to wait for one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * self.per_s;
        self.permits = (self.permits + gained).min(self.burst);
        self.filled = now;
        if self.permits >= 1.0 {
            self.permits -= 1.0;
            return Ok(());
        }
        // A missing part of a permit, over a rate of at least 1 a second: below a second.
        Err(Duration::from_secs_f64(((1.0 - self.permits) / self.per_s.max(1.0)).clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut rate = Rate::new(10, 5, start);
        let passed =
            |rate: &mut Rate, at: Instant, tries: usize| (0..tries).filter(|_| rate.take(at).is_ok()).count();
        assert_eq!(passed(&mut rate, start, 100), 5);
        assert_eq!(passed(&mut rate, start + Duration::from_millis(350), 100), 3);
        let wait = rate.take(start + Duration::from_millis(350)).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert!(rate.take(start + Duration::from_millis(350) + wait + Duration::from_millis(1)).is_ok());
        assert_eq!(passed(&mut rate, start + Duration::from_secs(3600), 100), 5);
    }
}
