//! The Linux sensors: fanotify group A (content), group B (names) and the process connector, read by one thread,
//! and a second thread that follows the mounts.
//!
//! Assumes CAP_SYS_ADMIN for the marks and CAP_NET_ADMIN for the connector; says so when they are missing.

use self::places::Places;
use super::outlet::{Outlet, Paths};
use super::{Config, Gauge, Level, Observation, Sensors, Stopping};
use crate::host::Moment;
use crate::sys::connector::Connector;
use crate::sys::fanotify::{Group, NameGroup};
use crate::telemetry::Counters;
use anyhow::Context;
use crossbeam_channel::Sender;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use vidette_protocol::wire;

/// Reads both queues and hands on what came of them.
mod reader;
/// How long the reader may stay at real-time priority.
mod urgency;
/// The connector's messages with what `/proc` adds.
mod follow;
/// Who closed a file, which file an exec ran.
mod join;
/// What `/proc` says of a process.
mod proc;
/// One process, asked now.
pub(crate) mod inspect;
/// One event of an overlay and of what lies below it.
mod twins;
/// Where a file is, for the host and in its container.
mod places;
/// What passes between both threads.
mod exchange;
/// The table of mounts.
mod mountinfo;
/// Mount namespaces of others.
mod namespaces;
/// Marks on superblocks.
mod mounts;
/// Which of their troubles are told.
mod troubles;
/// Names that change.
mod names;
/// What the reader tells the self-test.
mod proofs;
/// Marks that are there, and those that somebody took away.
mod marks;
/// Notices marks that somebody takes away.
mod guard;
/// How one sensor stands after several checks.
mod standing;
/// A file and a program that every sensor must see.
mod canary;
/// Proves that the sensors see.
mod self_test;
/// Files that are the agent's alone.
mod guarded;
/// Which programs opened them.
mod openers;
/// What others ask of the reader.
mod questions;

/// Starts both threads; every superblock that there is has its mark on return.
///
/// # Errors
/// When fanotify is refused or no superblock can be marked: the portable sensors are next.
pub(crate) fn start(
    config: &Config,
    counters: Arc<Counters>,
    out: Sender<Observation>,
) -> anyhow::Result<Sensors> {
    let group = Group::new().context("fanotify is refused (it needs CAP_SYS_ADMIN)")?;
    let group = Arc::new(group);
    raise_descriptor_limit();
    let (connector, reason) = listen(config.level_max);
    let (names, names_reason) = name_group(connector.is_none());
    let (mut mounts, reports) = mounts::Mounts::new(
        group.clone(),
        names.as_ref().map(|(_, marks)| marks.clone()),
        config.network_filesystems,
    )?;
    mounts.refresh()?;
    let level = if connector.is_some() { Level::Full } else { Level::Names };
    tracing::info!(
        level = level.name(),
        reason,
        pidfd = group.pidfd,
        descriptor_errors = group.descriptor_errors,
        names = names_reason,
        marks = mounts.describe(),
        "sensors start"
    );
    let gauge = Gauge::of(level);
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
        .context("could not make an eventfd")?;
    let paths = Paths { watch: config.watch.clone(), exclude: config.exclude.clone() };
    let (witness, proofs) = proofs::channel();
    let self_test = match config.self_test {
        Some(interval) => Some(self_test::Parts {
            interval,
            canary: config.canary.clone(),
            proofs,
            further: names.iter().map(|_| canary::Proof::Name).collect(),
            group: group.clone(),
            guard: mounts.guard(),
            names: names.as_ref().map(|(group, _)| (group.clone(), mounts.names_guard())),
            bell: mounts.bell(),
            outlet: Outlet::new(out.clone(), counters.clone(), Paths::default()),
            counters: counters.clone(),
            gauge: gauge.clone(),
            stop: stop.try_clone().context("could not copy a descriptor")?,
        }),
        None => None,
    };
    let guarding = group.clone();
    let (asker, asked) = questions::channel().context("could not make an eventfd")?;
    let parts = reader::Parts {
        group,
        names,
        names_reason,
        connector,
        retry: level == Level::Full, // what was refused once stays refused
        outlet: Outlet::new(out, counters.clone(), paths),
        level: gauge.level.clone(),
        witness,
        stop: stop.try_clone().context("could not copy a descriptor")?,
        realtime: config.realtime,
        remote: mounts.remote(),
        reports,
        bell: mounts.bell(),
        places: Places::new(mounts.places(), config.exclude.clone()),
        asked,
        counters: counters.clone(),
    };
    let stop_mounts = stop.try_clone().context("could not copy a descriptor")?;
    let reach = Some(Reach {
        group: guarding,
        asker,
        stop: stop.try_clone().context("could not copy a descriptor")?,
    });
    let mut sensors =
        Sensors { gauge, reason, stop: Some(Stopping::Event(stop)), threads: Vec::new(), reach };
    let reader = std::thread::Builder::new().name("sensors".into());
    sensors.threads.push(reader.spawn(move || reader::run(parts)).context("could not start a thread")?);
    let follower = std::thread::Builder::new().name("mounts".into());
    let run = move || mounts.run(&stop_mounts);
    sensors.threads.push(follower.spawn(run).context("could not start a thread")?);
    if let Some(parts) = self_test {
        let tester = std::thread::Builder::new().name("self-test".into());
        let run = move || self_test::run(parts);
        sensors.threads.push(tester.spawn(run).context("could not start a thread")?);
    }
    Ok(sensors)
}

/// What others can still ask of running sensors.
#[derive(Debug)]
pub(crate) struct Reach {
    group: Arc<Group>,
    asker: questions::Asker,
    stop: OwnedFd,
}

impl Reach {
    /// See [`Sensors::guard`].
    pub(crate) fn guard(&self, state: &Path, prefix: &'static str) -> anyhow::Result<JoinHandle<()>> {
        let stop = self.stop.try_clone().context("could not copy a descriptor")?;
        let guarded = guarded::Guarded::new(self.group.clone(), state.to_path_buf(), prefix);
        let thread = std::thread::Builder::new().name("guarded".into());
        thread.spawn(move || guarded.run(&stop)).context("could not start a thread")
    }

    /// See [`Sensors::who`].
    pub(crate) fn who(
        &self,
        pid: u32,
        names: &[&'static [u8]],
        at: Moment,
    ) -> (Option<wire::Process>, Vec<wire::Process>) {
        let answer = self.asker.ask(pid, names.to_vec(), at).unwrap_or_default();
        (answer.process, answer.lately)
    }
}

/// The group for names and its marks, or why there is none: without it everything else goes on.
fn name_group(pidfds: bool) -> (Option<reader::NameParts>, String) {
    match NameGroup::new(pidfds) {
        Ok(group) => {
            let group = Arc::new(group);
            let marks = Arc::new(names::marks::Marks::new(group.clone()));
            (Some((group, marks)), String::new())
        }
        Err(error) => {
            let reason = format!(
                "renames, links, deletions and changes of mode are not seen (that needs Linux 5.9): {error}"
            );
            (None, reason)
        }
    }
}

fn listen(level_max: Level) -> (Option<Connector>, String) {
    if level_max != Level::Full {
        return (None, "a lower level was asked for".to_owned());
    }
    match Connector::listen() {
        Ok(connector) => (Some(connector), String::new()),
        Err(error) => (None, format!("the process connector is refused (it needs CAP_NET_ADMIN): {error}")),
    }
}

/// Every observation holds a descriptor: take what the hard limit allows.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "could not raise the limit of open descriptors to its hard limit");
    }
}

/// For the portable sensors: the exact start of a process, so that its entity id is the same everywhere.
pub(crate) fn start_ns(pid: u32) -> Option<u64> {
    proc::start_ns(pid)
}

/// For the portable sensors: the image of a process, when we may open it.
pub(crate) fn open_image(pid: u32) -> Option<super::OpenFile> {
    proc::open_exe(pid, |_| false).map(|image| image.file)
}
