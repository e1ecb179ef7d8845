//! Whether the data path goes on: every stage counts its own turns, and whoever keeps the watchdog quiet looks at them.
//!
//! Pure, but for the atomics. No timer beats here for anybody: a turn is counted where work was found or waited for. So a
//! stage that hangs, in its work or with work in front of it, stops the beat, and systemd starts the agent anew.

use std::sync::atomic::{AtomicU64, Ordering};

/// The turns of one stage, counted by its one thread: odd while it works, even while it waits for work, 0 while there is no
/// such stage.
#[derive(Debug, Default)]
pub struct Turns(AtomicU64);

impl Turns {
    /// It has woken, or begins another round.
    pub fn works(&self) {
        self.step(1);
    }

    /// It is about to wait for something to do.
    pub fn waits(&self) {
        self.step(0);
    }

    fn step(&self, odd: u64) {
        let next = self.0.load(Ordering::Relaxed) + 1;
        self.0.store(next + u64::from(next % 2 != odd), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The turns of every stage on the path but the transport, which has its own: its runtime turns once a second with nothing
/// to do.
#[derive(Debug, Default)]
pub struct Progress {
    /// The thread that reads the kernel's queues. It turns once a second with nothing to do.
    pub sensors: Turns,
    /// Detection's thread.
    pub detection: Turns,
    /// The outbox's owner.
    pub outbox: Turns,
}

/// What waits between the stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Observations wait for detection.
    pub observations: bool,
    /// Events wait for the outbox.
    pub events: bool,
    /// And no more can: detection has to wait for the outbox.
    pub events_full: bool,
}

/// Remembers what it saw last.
#[derive(Debug, Default)]
pub struct Judge {
    last: Option<[u64; 4]>,
}

impl Judge {
    /// The stage that has not turned since the last look though it should have, the last one on the path; none when all go
    /// on. A look in a hurry, less than two seconds after the last, is unfair.
    pub fn stuck(
        &mut self,
        progress: &Progress,
        transport: &Turns,
        waiting: Waiting,
    ) -> Option<&'static str> {
        let Progress { sensors, detection, outbox } = progress;
        let now = [sensors, detection, outbox, transport].map(Turns::get);
        let last = self.last.replace(now)?;
        let hangs = |stage: usize, should_turn: bool| {
            let (now, last) = (now.get(stage).copied().unwrap_or(0), last.get(stage).copied().unwrap_or(0));
            now != 0 && now == last && (now % 2 == 1 || should_turn)
        };
        let outbox = hangs(2, waiting.events);
        if hangs(3, true) {
            Some("transport")
        } else if outbox {
            Some("outbox")
        } else if hangs(1, waiting.observations) && !waiting.events_full {
            Some("detection")
        } else if hangs(0, true) {
            Some("sensors")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Waiting = Waiting { observations: false, events: false, events_full: false };

    fn turning() -> (Progress, Turns) {
        let (progress, transport) = (Progress::default(), Turns::default());
        for turns in [&progress.sensors, &progress.detection, &progress.outbox, &transport] {
            turns.works();
            turns.waits();
        }
        (progress, transport)
    }

    #[test]
    fn a_stage_that_waits_for_work_is_well_and_one_with_work_is_not() {
        let ((progress, transport), mut judge) = (turning(), Judge::default());
        let beat = || {
            progress.sensors.waits();
            transport.waits();
        };
        assert_eq!(judge.stuck(&progress, &transport, NOTHING), None, "the first look knows nothing");
        beat();
        assert_eq!(judge.stuck(&progress, &transport, NOTHING), None);
        for (waiting, stage) in [
            (Waiting { observations: true, ..NOTHING }, Some("detection")),
            (Waiting { events: true, ..NOTHING }, Some("outbox")),
            (Waiting { observations: true, events_full: true, ..NOTHING }, None),
        ] {
            beat();
            assert_eq!(judge.stuck(&progress, &transport, waiting), stage);
        }
        progress.detection.works();
        beat();
        let waiting = Waiting { observations: true, ..NOTHING };
        assert_eq!(judge.stuck(&progress, &transport, waiting), None, "it has turned");
        beat();
        assert_eq!(judge.stuck(&progress, &transport, NOTHING), Some("detection"), "it hangs in its work");
    }

    #[test]
    fn those_that_turn_by_themselves_must_and_those_that_are_not_there_need_not() {
        let ((progress, transport), mut judge) = (turning(), Judge::default());
        judge.stuck(&progress, &transport, NOTHING);
        transport.waits();
        assert_eq!(judge.stuck(&progress, &transport, NOTHING), Some("sensors"));
        progress.sensors.waits();
        assert_eq!(judge.stuck(&progress, &transport, NOTHING), Some("transport"));
        let (none, nowhere, mut judge) = (Progress::default(), Turns::default(), Judge::default());
        let all = Waiting { observations: true, events: true, events_full: false };
        judge.stuck(&none, &nowhere, all);
        assert_eq!(judge.stuck(&none, &nowhere, all), None);
    }

    #[test]
    fn turns_are_odd_while_a_stage_works_and_never_stand_still() {
        let turns = Turns::default();
        for (works, expected) in [(true, 1), (true, 3), (false, 4), (false, 6), (true, 7)] {
            if works {
                turns.works()
            } else {
                turns.waits()
            }
            assert_eq!(turns.get(), expected);
        }
    }
}
