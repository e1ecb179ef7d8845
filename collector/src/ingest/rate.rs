//! How often something may happen: a bucket of permits that fills at a steady rate, and what one agent may send.
//! Pure; the time is given.

use std::time::{Duration, Instant};

/// Frames that are read from one agent a second; more wait in its own window.
const FRAMES_PER_S: u32 = 1000;
/// So many may come at once.
const FRAMES_BURST: u32 = 2000;
/// Events that are taken from one agent a second: a week offline drains in minutes, and the store stays free for others.
const EVENTS_PER_S: u32 = 20_000;
/// So many may come at once.
const EVENTS_BURST: u32 = 40_000;
/// What those may be when unpacked. Bytes a second.
const BYTES_PER_S: u32 = 16 << 20;
/// So many may come at once. Bytes.
const BYTES_BURST: u32 = 32 << 20;

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

    /// As [`Rate::new`], for what is rare: one permit in each `interval_s` seconds.
    pub(super) fn rare(interval_s: u32, burst: u32, now: Instant) -> Self {
        Self { per_s: 1.0 / f64::from(interval_s.max(1)), ..Self::new(1, burst, now) }
    }

    /// Takes a permit, or says how long to wait for one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if self.permits >= 1.0 {
            self.permits -= 1.0;
            return Ok(());
        }
        Err(self.wait_for(1.0))
    }

    /// Takes `count` permits, whether they are there or not, and says how long to wait until the debt is paid. What was
    /// taken at once is bounded by who asks, so the debt is.
    pub(super) fn charge(&mut self, count: u32, now: Instant) -> Duration {
        self.fill(now);
        self.permits -= f64::from(count);
        self.wait_for(0.0)
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * self.per_s;
        self.permits = (self.permits + gained).min(self.burst);
        self.filled = now;
    }

    fn wait_for(&self, permits: f64) -> Duration {
        Duration::try_from_secs_f64(((permits - self.permits) / self.per_s).max(0.0)).unwrap_or(Duration::MAX)
    }
}

/// What one agent may send, over all its connections: a new one brings no new burst.
#[derive(Debug)]
pub(super) struct Allowance {
    frames: Rate,
    events: Rate,
    bytes: Rate,
}

impl Allowance {
    /// All of it is there.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            frames: Rate::new(FRAMES_PER_S, FRAMES_BURST, now),
            events: Rate::new(EVENTS_PER_S, EVENTS_BURST, now),
            bytes: Rate::new(BYTES_PER_S, BYTES_BURST, now),
        }
    }

    /// One frame with so many events came, unpacked so many bytes; gives how long nothing more is read from this agent.
    pub(super) fn charge(&mut self, events: u32, bytes: u32, now: Instant) -> Duration {
        let frames = self.frames.charge(1, now);
        // What a batch says of itself is checked later: one that lies about it ends its session.
        let events = self.events.charge(events.min(EVENTS_BURST), now);
        frames.max(events).max(self.bytes.charge(bytes.min(BYTES_BURST), now))
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

    #[test]
    fn a_debt_is_waited_for_and_no_longer() {
        let start = Instant::now();
        let mut rate = Rate::new(10, 5, start);
        assert_eq!(rate.charge(5, start), Duration::ZERO);
        assert_eq!(rate.charge(20, start), Duration::from_secs(2));
        assert_eq!(rate.charge(0, start + Duration::from_secs(2)), Duration::ZERO);
        let mut rare = Rate::rare(600, 2, start);
        assert!(rare.take(start).is_ok() && rare.take(start).is_ok() && rare.take(start).is_err());
        assert!(rare.take(start + Duration::from_secs(599)).is_err());
        assert!(rare.take(start + Duration::from_secs(601)).is_ok());
    }

    #[test]
    fn ten_times_the_rate_takes_ten_times_as_long() {
        let start = Instant::now();
        let (mut allowance, mut now) = (Allowance::new(start), start);
        for _ in 0..1000 {
            now += allowance.charge(1000, 400_000, now);
        }
        let took = now - start;
        assert!((Duration::from_secs(20)..Duration::from_secs(50)).contains(&took), "{took:?}");
        let mut allowance = Allowance::new(start);
        let longest = allowance.charge(u32::MAX, u32::MAX, start);
        assert!(longest < Duration::from_secs(5), "{longest:?}: the debt of one frame is bounded");
    }
}
