//! How often an agent broke the rules, and how long it is shut out for it: longer each time, never for ever, because the
//! next bug may be one of ours. Pure; the time is given.

use std::time::{Duration, Instant};

/// The first bar. Milliseconds.
const BAR_FIRST_MS: u64 = 2_000;
/// The longest. Milliseconds.
const BAR_MS_MAX: u64 = 300_000;
/// An agent that behaves for so long after its last bar begins anew. Seconds.
const FORGIVEN_AFTER_S: u64 = 900;

/// What one agent did wrong, as far as it is remembered.
#[derive(Debug, Default)]
pub(super) struct Offences {
    count: u32,
    until: Option<Instant>,
}

impl Offences {
    /// One more. Gives how long the agent is not let in now.
    pub(super) fn note(&mut self, now: Instant) -> Duration {
        let is_old = |until: Instant| now.saturating_duration_since(until).as_secs() >= FORGIVEN_AFTER_S;
        if self.until.is_some_and(is_old) {
            self.count = 0;
        }
        let bar = Duration::from_millis(BAR_FIRST_MS.saturating_mul(1 << self.count.min(20)).min(BAR_MS_MAX));
        self.count = self.count.saturating_add(1);
        self.until = Some(now + bar);
        bar
    }

    /// What is left of the bar.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_to_their_limit_and_are_forgiven() {
        let (mut offences, mut now) = (Offences::default(), Instant::now());
        assert_eq!(offences.left(now), None);
        let mut bars = Vec::new();
        for _ in 0..40 {
            let bar = offences.note(now);
            assert_eq!(offences.left(now), Some(bar));
            now += bar;
            assert_eq!(offences.left(now), None, "it ends");
            bars.push(bar);
        }
        assert_eq!(bars[0], Duration::from_millis(BAR_FIRST_MS));
        assert!(bars.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(bars[39], Duration::from_millis(BAR_MS_MAX));
        now += Duration::from_secs(FORGIVEN_AFTER_S);
        assert_eq!(offences.note(now), Duration::from_millis(BAR_FIRST_MS));
    }
}
