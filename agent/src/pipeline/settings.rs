//! What each stage is started with, from the settings as the host's people wrote them.

use crate::config::{Config, Sweep};
use crate::detection;
use crate::detection::hashes::HashSources;
use crate::detection::rules::RuleSources;
use crate::detection::sweep::schedule::Plan;
use crate::detection::verdicts::{self, Place};
use crate::detection::walk::Scope;
use crate::host::Host;
use crate::sensors::{self, Level};
use crate::worker::poison::Poison;
use crate::worker::process::Launcher;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

/// Files that killed the scanner, in the state folder.
const POISON_FILE: &str = "poison";
/// Sweeps of a fleet that is started at once begin within this time.
const SWEEP_JITTER_MAX: Duration = Duration::from_secs(3600);

pub(super) fn detection_config(config: &Config, host: &Host) -> anyhow::Result<detection::Config> {
    Ok(detection::Config {
        host: host.clone(),
        rules: RuleSources { builtin: config.builtin_rules, files: config.rules.clone() },
        hashes: HashSources { files: config.hashes.clone(), folder: Some(config.state.clone()) },
        size_max_bytes: config.size_max_bytes,
        scan_timeout: config.scan_timeout,
        scans_parallel: config.scans_parallel,
        telemetry: config.telemetry,
        launcher: Launcher::own()?.with_scratch(&config.state),
        poison: Poison::at(&config.state.join(POISON_FILE)),
        memory: memory_config(config)?,
        scope: Scope {
            roots: config.watch.iter().map(|path| resolved(path)).collect(),
            exclude: excluded(config),
        },
        verdicts: Place { path: Some(config.state.join(verdicts::NAME)), files_max: config.verdicts_max },
        sweep: sweep_plan(config),
    })
}

fn memory_config(config: &Config) -> anyhow::Result<Option<detection::memory::on_exec::Config>> {
    if config.memory_on_exec.is_empty() {
        return Ok(None);
    }
    Ok(Some(detection::memory::on_exec::Config {
        paths: config.memory_on_exec.iter().map(|path| resolved(path)).collect(),
        delay: config.memory_delay,
        budget: detection::memory::Budget::default(),
        launcher: Launcher::own()?,
        scan_timeout: config.scan_timeout,
    }))
}

fn sweep_plan(config: &Config) -> Plan {
    let Sweep { every, after_rules_change, cpu_percent, io_bytes_per_s, paths } = &config.sweep;
    let roots = if paths.is_empty() { &config.watch } else { paths };
    Plan {
        every: *every,
        after_rules_change: *after_rules_change,
        jitter_max: every.map_or(SWEEP_JITTER_MAX, |every| (every / 24).min(SWEEP_JITTER_MAX)),
        cpu_percent: *cpu_percent,
        io_bytes_per_s: *io_bytes_per_s,
        scope: Scope { roots: roots.iter().map(|path| resolved(path)).collect(), exclude: excluded(config) },
        state: Some(config.state.clone()),
    }
}

pub(super) fn sensors_config(config: &Config) -> sensors::Config {
    let level_max = if config.polling { Level::Polling } else { Level::Full };
    // Everything is an empty list, so that the portable sensors choose folders that they can bear.
    let watch = config.watch.iter().filter(|path| *path != b"/").map(|path| resolved(path)).collect();
    let everything = config.watch.iter().any(|path| path == b"/");
    sensors::Config {
        watch: if everything { Vec::new() } else { watch },
        exclude: excluded(config),
        level_max,
        network_filesystems: config.network_filesystems,
        realtime: config.realtime,
        self_test: config.self_test,
        canary: Some(sensors::Canary::own(config.state.clone())),
    }
}

/// What the settings exclude, and the agent's own folder.
fn excluded(config: &Config) -> Vec<Vec<u8>> {
    let own = config.state.canonicalize().unwrap_or_else(|_| config.state.clone());
    config.exclude.iter().map(|path| resolved(path)).chain([own.as_os_str().as_bytes().to_vec()]).collect()
}

/// The path as the kernel reports it: without links and dots. One that is not there stays as it is written.
fn resolved(path: &[u8]) -> Vec<u8> {
    let path = Path::new(OsStr::from_bytes(path));
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf()).into_os_string().into_vec()
}
