//! The portable sensors: watched directories through `notify`, a list of processes every second through
//! `sysinfo`. They miss what is short: programs that end between two looks, files that are gone when opened.
//!
//! Assume no privileges. A file is opened by its name, so what is scanned is what has that name by then.

use super::outlet::{Outlet, Paths};
use super::{Config, Gauge, Level, Observation, Sensors, Stopping};
use crate::stop;
use crate::telemetry::Counters;
use anyhow::Context;
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::thread::Builder;

/// The system's limits on watches.
mod limits;
/// Files that are written in watched directories.
mod files;
/// Processes that are there now and were not a second ago.
mod processes;

/// Starts both threads.
///
/// # Errors
/// When the system has no watcher left (`fs.inotify.max_user_instances`) or no thread.
pub(crate) fn start(
    config: Config,
    counters: Arc<Counters>,
    out: Sender<Observation>,
    reason: String,
) -> anyhow::Result<Sensors> {
    let reason = format!("{reason}; {}", what_is_missed());
    tracing::info!(level = Level::Polling.name(), reason, "sensors start");
    let (stopper, stop) = stop::channel();
    let paths = Paths { watch: config.watch, exclude: config.exclude };
    let files = files::Files::new(Outlet::new(out.clone(), counters.clone(), paths.clone()))?;
    let outlet = Outlet::new(out, counters, paths);
    let mut sensors = Sensors {
        gauge: Gauge::of(Level::Polling),
        reason,
        stop: Some(Stopping::Flag(stopper)),
        threads: Vec::new(),
        #[cfg(target_os = "linux")]
        reach: None,
    };
    let stop_files = stop.clone();
    let thread = Builder::new().name("watches".into()).spawn(move || files.run(&stop_files));
    sensors.threads.push(thread.context("could not start a thread")?);
    let thread =
        Builder::new().name("polling".into()).spawn(move || processes::Processes::new(outlet).run(&stop));
    sensors.threads.push(thread.context("could not start a thread")?);
    Ok(sensors)
}

/// For people, beside why these sensors run: what they can't see.
fn what_is_missed() -> String {
    format!(
        "files are seen in watched folders only and without who wrote them; programs are looked for every {} s, so that those that end sooner are missed",
        processes::INTERVAL.as_secs()
    )
}
