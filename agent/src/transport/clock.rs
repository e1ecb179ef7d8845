//! What time it is for the collector, and how far this host's clock is from it. Pure.
//!
//! The collector says its time in every Welcome. From then on it goes by the clock that nobody sets, so that a renewal is due
//! by the collector's time and never by this host's: ±10 years here change nothing but an alarm. What is found is shown by
//! `vidette-agent status`, told with every Status, and logged by `connection`.

use std::time::{Duration, Instant};

/// A clock that is off by more than this is told. Seconds.
pub const OFFSET_S_MAX: i64 = 300;

/// The collector's time, once it was told.
#[derive(Debug, Clone, Copy, Default)]
pub struct CollectorTime(Option<(i64, Instant)>);

impl CollectorTime {
    /// It said this just now, Unix seconds.
    pub fn told(&mut self, unix_s: i64, now: Instant) {
        self.0 = Some((unix_s, now));
    }

    /// What it would say now, Unix seconds; `None` when it never said anything.
    #[must_use]
    pub fn unix_s(&self, now: Instant) -> Option<i64> {
        let (told, at) = self.0?;
        let passed = now.saturating_duration_since(at);
        Some(told.saturating_add(i64::try_from(passed.as_secs()).unwrap_or(i64::MAX)))
    }
}

/// Why somebody should look at a clock: of this host, or of a collector whose certificate is out of its time; `None` when all
/// is well. `out_of_time` says that the collector's certificate is, by this host's clock.
#[must_use]
pub fn alarm(host_unix_s: i64, collector_unix_s: i64, out_of_time: bool) -> Option<String> {
    let ahead_s = host_unix_s.saturating_sub(collector_unix_s);
    let which = if ahead_s > 0 { "ahead of" } else { "behind" };
    if ahead_s.unsigned_abs() > OFFSET_S_MAX.unsigned_abs() {
        let length = length(Duration::from_secs(ahead_s.unsigned_abs()));
        return Some(format!("this host's clock is {length} {which} the collector's; set it right"));
    }
    out_of_time.then(|| {
        "the collector's certificate has expired, or is not valid yet, by the clocks of both hosts; look at the collector"
            .to_owned()
    })
}

/// As people say it.
fn length(length: Duration) -> String {
    let s = length.as_secs();
    match s {
        0..120 => format!("{s} s"),
        120..7_200 => format!("{} min", s / 60),
        7_200..172_800 => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_time_goes_on_by_itself() {
        let mut time = CollectorTime::default();
        let start = Instant::now();
        assert_eq!(time.unix_s(start), None);
        time.told(1_000, start);
        assert_eq!(time.unix_s(start + Duration::from_secs(90)), Some(1_090));
        time.told(500, start + Duration::from_secs(90));
        assert_eq!(time.unix_s(start + Duration::from_secs(91)), Some(501), "the last word counts");
    }

    #[test]
    fn a_clock_that_is_off_is_named_with_its_way_and_a_certificate_alone_is_another_matter() {
        let year_s = 365 * 86_400;
        let table = [
            (0, false, None),
            (OFFSET_S_MAX, false, None),
            (-OFFSET_S_MAX, false, None),
            (OFFSET_S_MAX + 1, false, Some("5 min ahead of")),
            (-10 * year_s, true, Some("3650 d behind")),
            (10 * year_s, true, Some("3650 d ahead of")),
            (i64::MAX, true, Some("ahead of")),
            (5, true, Some("clocks of both hosts")),
        ];
        for (ahead_s, out_of_time, words) in table {
            let said = alarm(1_000_i64.saturating_add(ahead_s), 1_000, out_of_time);
            let fits = match (&said, words) {
                (None, None) => true,
                (Some(said), Some(words)) => said.contains(words),
                (Some(_), None) | (None, Some(_)) => false,
            };
            assert!(fits, "{ahead_s} {out_of_time}: {said:?}");
        }
    }
}
