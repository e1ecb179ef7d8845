//! What a terminal shows while `scan` works: files, rate, bytes, matches, and about how long it will take.
//!
//! How many files there are is counted by a second walk, which opens folders only and is far ahead of the scan; until
//! it has ended there is no time left to show. Nothing is shown in a pipe.

use super::Totals;
use crate::detection::sweep::walk::Figures;
use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often it changes.
const INTERVAL: Duration = Duration::from_millis(200);

/// One that turns, with a message; hidden when standard error is no terminal.
///
/// # Errors
/// None is expected.
pub fn bar() -> Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")
        .context("could not make a progress bar")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(INTERVAL);
    Ok(bar)
}

/// The bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    shown: Instant,
    counted: Option<Arc<(Figures, AtomicU64)>>,
}

impl Progress {
    /// Hidden when standard error is no terminal.
    ///
    /// # Errors
    /// None is expected.
    pub fn new() -> Result<Self> {
        let bar = bar()?;
        Ok(Self { bar, shown: Instant::now(), counted: None })
    }

    /// Nobody sees it.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    /// Files that are being counted.
    pub fn expect(&mut self, counted: Arc<(Figures, AtomicU64)>) {
        self.counted = Some(counted);
    }

    /// Prints something without tearing the bar.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Shows how far it is, now and then.
    pub fn show(&mut self, totals: &Totals, met: u64, known: u64) {
        if self.bar.is_hidden() || self.shown.elapsed() < INTERVAL {
            return;
        }
        self.shown = Instant::now();
        let counted = self.counted.as_ref().filter(|counted| counted.1.load(Ordering::Acquire) == 1);
        let all = counted.map(|counted| counted.0.files.load(Ordering::Relaxed));
        self.bar.set_message(message(totals, met, known, all, self.bar.elapsed()));
    }

    /// Takes it away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn message(totals: &Totals, met: u64, known: u64, all: Option<u64>, time: Duration) -> String {
    let done = totals.files + totals.told_again + known;
    let rate = done as f64 / time.as_secs_f64().max(0.001);
    let mebibytes = totals.bytes as f64 / f64::from(1 << 20);
    let mut text = format!("{} of {}", done, all.map_or("…".into(), |all| format!("about {}", all.max(met))));
    text.push_str(&format!(" files, {rate:.0} a second, {mebibytes:.0} MiB"));
    if known > 0 {
        text.push_str(&format!(", {known} known to be clean"));
    }
    text.push_str(&format!(", {} matched", totals.matched));
    if let Some(all) = all.filter(|_| rate >= 1.0) {
        let left = Duration::from_secs_f64(all.saturating_sub(done) as f64 / rate);
        text.push_str(&format!(", about {} left", indicatif::HumanDuration(left)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_when_there_is_a_number() {
        let totals = Totals { files: 100, bytes: 3 << 20, matched: 2, ..Default::default() };
        let shown = |all| message(&totals, 150, 20, all, Duration::from_secs(10));
        assert_eq!(shown(None), "120 of … files, 12 a second, 3 MiB, 20 known to be clean, 2 matched");
        assert_eq!(
            shown(Some(240)),
            "120 of about 240 files, 12 a second, 3 MiB, 20 known to be clean, 2 matched, about 10 seconds left"
        );
    }
}
