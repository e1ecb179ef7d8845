//! Programs that opened files which are the agent's alone: each is told at once, then once an hour with a count, so that a
//! backup or somebody with a loop buries nothing.
//!
//! Pure. What it lets through goes to detection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A program is told again after this.
const TOLD_EVERY: Duration = Duration::from_secs(3600);
/// Programs that are remembered. Beyond it the one that was told longest ago is forgotten, and told again if it comes again.
const PROGRAMS_MAX: usize = 64;

/// Remembers.
#[derive(Debug, Default)]
pub(crate) struct Openers(HashMap<Vec<u8>, (Instant, u64)>);

impl Openers {
    /// Whether it is to be told that this program, empty when it is not known, opened one: how often it did so since it was
    /// told last.
    pub(crate) fn tell(&mut self, executable: Vec<u8>, now: Instant) -> Option<u64> {
        if let Some((told, untold)) = self.0.get_mut(&executable) {
            if now.saturating_duration_since(*told) < TOLD_EVERY {
                *untold += 1;
                return None;
            }
            let before = std::mem::take(untold);
            *told = now;
            return Some(before);
        }
        if self.0.len() >= PROGRAMS_MAX
            && let Some(oldest) =
                self.0.iter().min_by_key(|(_, (told, _))| *told).map(|(name, _)| name.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(executable, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_is_told_once_an_hour_with_what_it_did_meanwhile() {
        let mut openers = Openers::default();
        let start = Instant::now();
        let told: Vec<(u64, u64)> = (0..200)
            .filter_map(|minute| {
                let now = start + Duration::from_secs(60 * minute);
                openers.tell(b"/usr/bin/tar".to_vec(), now).map(|untold| (minute, untold))
            })
            .collect();
        assert_eq!(told, [(0, 0), (60, 59), (120, 59), (180, 59)]);
        assert_eq!(openers.tell(b"/usr/bin/cat".to_vec(), start), Some(0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut openers = Openers::default();
        let start = Instant::now();
        for number in 0..1000_u64 {
            let name = format!("/tmp/{number}").into_bytes();
            assert_eq!(openers.tell(name, start + Duration::from_millis(number)), Some(0));
        }
        assert_eq!(openers.0.len(), PROGRAMS_MAX);
        assert_eq!(openers.tell(b"/tmp/999".to_vec(), start + Duration::from_secs(2)), None);
    }
}
