//! A finding made small: parts are taken away, halves first, while what is left still does the same.

use std::time::Instant;

/// Tries for one finding.
pub const TRIES_MAX: usize = 256;

/// The smallest input found that is `still` what it was, in at most `TRIES_MAX` tries and until `end`.
///
/// # Errors
/// Those of `still`.
pub fn minimise(
    input: &[u8],
    end: Instant,
    mut still: impl FnMut(&[u8]) -> anyhow::Result<bool>,
) -> anyhow::Result<Vec<u8>> {
    let (mut best, mut size, mut tries) = (input.to_vec(), input.len() / 2, 0);
    while size > 0 {
        let mut at = 0;
        while at < best.len() {
            if tries >= TRIES_MAX || Instant::now() >= end {
                return Ok(best);
            }
            tries += 1;
            let mut smaller = best.clone();
            smaller.drain(at..(at + size).min(best.len()));
            if !smaller.is_empty() && still(&smaller)? {
                best = smaller;
            } else {
                at += size;
            }
        }
        size = size.min(best.len()) / 2;
    }
    Ok(best)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn has(part: &'static [u8]) -> impl FnMut(&[u8]) -> anyhow::Result<bool> {
        move |input| Ok(input.windows(part.len()).any(|window| window == part))
    }

    #[test]
    fn what_matters_is_left() {
        let end = Instant::now() + Duration::from_secs(60);
        let mut input = vec![b'.'; 1000];
        input[333..337].copy_from_slice(b"this");
        assert_eq!(minimise(&input, end, has(b"this")).unwrap(), b"this");
    }

    #[test]
    fn it_ends_when_its_time_is_over() {
        assert_eq!(minimise(b"a long one", Instant::now(), has(b"one")).unwrap(), b"a long one");
    }
}
