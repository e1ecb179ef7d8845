//! Which queue leads where. Every thread and channel of the agent is made here, and nobody else sees all stages.
//!
//! Order of the end: the sensors stop, the observations run dry, detection ends and drops its events, the
//! outbox commits the last of them, the transport flushes what it can in its grace time.

use crate::config::Config;
use crate::detection::rules::RuleSources;
use crate::detection::{self, Detection, EVENTS_QUEUE_MAX};
use crate::host::{Host, Moment};
use crate::outbox::{self, Outbox};
use crate::sensors::{self, Level, OBSERVATIONS_QUEUE_MAX, Sensors};
use crate::status::{self, Report};
use crate::stop::Stop;
use crate::telemetry::Counters;
use crate::transport::{self, Transport};
use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::wire::{self, event::Kind};

/// How often the stages are asked whether they still work.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The service: all stages, until `stop` or until one of them fails.
///
/// # Errors
/// What could not be started, or the name of the stage that failed.
pub fn run(config: &Config, stop: &Stop) -> anyhow::Result<()> {
    let _lock = claim(&config.state)?;
    let host = Host::read();
    let counters = Arc::new(Counters::default());
    let (observe, observations) = bounded(OBSERVATIONS_QUEUE_MAX);
    let (emit, events) = bounded(EVENTS_QUEUE_MAX);

    let outbox = outbox::start(
        outbox::Config { folder: config.state.join("outbox"), bytes_max: config.outbox_bytes_max, host: host.clone() },
        counters.clone(),
        events,
    )?;
    say(&emit, &host, "agent-started", &format!("version {}", env!("CARGO_PKG_VERSION")));
    let detection = detection::start(detection_config(config, &host), counters.clone(), observations, emit.clone())?;
    let sensors = sensors::start(sensors_config(config), counters.clone(), observe)?;
    let _ = (&sensors, &detection, &outbox, stop);
    bail!("being wired")
}

/// The agent's own folder, 0700, for one agent at a time.
fn claim(folder: &Path) -> anyhow::Result<File> {
    let shown = folder.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not make the state folder {shown}: name another one with --state"))?;
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"));
    let lock = lock.with_context(|| format!("could not write to the state folder {shown}"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another agent runs with the state folder {shown}: stop it, or name another folder with --state");
    }
    Ok(lock)
}
