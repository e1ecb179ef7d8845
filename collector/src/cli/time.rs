//! Times as people write and read them.

use anyhow::{Context, bail};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, civil};

/// Seconds in larger units, largest first, for ages.
const UNITS: [(&str, i64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// `2h` (so long ago), `2026-01-31`, `2026-01-31T12:00` (both in UTC), or RFC 3339, as Unix nanoseconds.
///
/// # Errors
/// When it is none of them.
pub fn moment(text: &str) -> anyhow::Result<i64> {
    moment_at(text, Timestamp::now())
}

fn moment_at(text: &str, now: Timestamp) -> anyhow::Result<i64> {
    let time = if let Ok(time) = text.parse::<Timestamp>() {
        time
    } else if let Ok(written) = text.parse::<civil::DateTime>() {
        written.to_zoned(TimeZone::UTC)?.timestamp() // as every time that is shown
    } else if let Ok(span) = text.parse::<Span>() {
        // A day is 24 hours here, as in UTC it always is.
        now.to_zoned(TimeZone::UTC).checked_sub(span.abs())?.timestamp()
    } else {
        bail!("{text:?} is no time; write for example `2h`, `3d`, `2026-01-31` or `2026-01-31T12:00:00Z`");
    };
    i64::try_from(time.as_nanosecond()).context("that time is too far away")
}

/// `90m`, `24h`, in seconds.
///
/// # Errors
/// When it is none, or not positive.
pub fn seconds(text: &str) -> anyhow::Result<u64> {
    let no_length = || format!("{text:?} is no length of time; write for example `30m` or `24h`");
    let span: Span = text.parse().ok().with_context(no_length)?;
    let total = span.to_duration(civil::date(2000, 1, 1)).ok().with_context(no_length)?.as_secs();
    u64::try_from(total).ok().filter(|seconds| *seconds > 0).with_context(no_length)
}

/// `2026-01-31T12:00:00Z`, to the second.
#[must_use]
pub fn show(unix_ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(time) => format!("{time:.0}"),
        Err(_) => "-".into(),
    }
}

/// How long ago, roughly: `3m ago`.
#[must_use]
pub fn ago(unix_ns: i64) -> String {
    let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
    match now.saturating_sub(unix_ns) / 1_000_000_000 {
        0 => "now".into(),
        // Hosts' clocks run ahead now and then.
        seconds if seconds < 0 => format!("in {}", length(-seconds)),
        seconds => format!("{} ago", length(seconds)),
    }
}

/// `2d 3h`: the two largest units.
#[must_use]
pub fn length(mut seconds: i64) -> String {
    let mut parts = Vec::new();
    for (name, size) in UNITS {
        if seconds >= size && parts.len() < 2 {
            parts.push(format!("{}{name}", seconds / size));
            seconds %= size;
        }
    }
    if parts.is_empty() { "0s".into() } else { parts.join(" ") }
}

/// 24 hours before now, Unix nanoseconds.
#[must_use]
pub fn yesterday() -> i64 {
    let then = Timestamp::now().checked_sub(24.hours()).unwrap_or(Timestamp::UNIX_EPOCH);
    i64::try_from(then.as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_time_can_be_written_in_several_ways() {
        let now: Timestamp = "2026-02-01T12:00:00Z".parse().unwrap();
        let table = [
            ("2h", "2026-02-01T10:00:00Z"),
            ("1d", "2026-01-31T12:00:00Z"),
            ("1d 2h", "2026-01-31T10:00:00Z"),
            ("2026-01-31", "2026-01-31T00:00:00Z"),
            ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00Z"),
            ("2026-01-31T12:00:00", "2026-01-31T12:00:00Z"),
            ("2026-01-31T12:30", "2026-01-31T12:30:00Z"),
            ("2026-01-31 12:30", "2026-01-31T12:30:00Z"),
        ];
        for (text, expected) in table {
            assert_eq!(show(moment_at(text, now).unwrap()), expected, "{text}");
        }
        for text in ["", "yesterday", "2", "9999999999d", "h"] {
            assert!(moment_at(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn a_length_is_read_and_shown() {
        assert_eq!(
            (seconds("90m").unwrap(), seconds("24h").unwrap(), seconds("1d").unwrap()),
            (5_400, 86_400, 86_400)
        );
        for text in ["", "0s", "-1h", "soon", "5"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(
            (length(0), length(59), length(3_661), length(200_000)),
            ("0s".into(), "59s".into(), "1h 1m".into(), "2d 7h".into())
        );
    }
}
