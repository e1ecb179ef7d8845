//! Which queue leads where. Every thread and channel of the agent is made here, and nobody else sees all stages.
//!
//! Order of the end: the sensors stop, the observations run dry, detection ends and drops its events, the
//! transport says goodbye after what it can still send in its grace time, the outbox commits the last of them.

use crate::config::{Config, Sweep};
use crate::detection::hashes::HashSources;
use crate::detection::rules::RuleSources;
use crate::detection::sweep::schedule::Plan;
use crate::detection::verdicts::{self, Place};
use crate::detection::walk::Scope;
use crate::detection::{self, Detection, EVENTS_QUEUE_MAX, mark};
use crate::host::{Host, Moment};
use crate::outbox::{self, Outbox};
use crate::sensors::{self, Level, OBSERVATIONS_QUEUE_MAX, Observation, Sensors};
use crate::status::{self, Report};
use crate::stop::{self, Stop};
use crate::telemetry::Counters;
use crate::transport::{self, Credentials, State, Transport};
use crate::worker::poison::Poison;
use crate::worker::process::{Launcher, resident_bytes};
use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use vidette_protocol::escape;
use vidette_protocol::wire::{self, event::Kind};

/// Files that killed the scanner, in the state folder.
const POISON_FILE: &str = "poison";
/// How often the stages are asked whether they still work, and whether anything waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the mark is moved on while nothing waits.
const MARK_INTERVAL: Duration = Duration::from_secs(10);

/// Sweeps of a fleet that is started at once begin within this time.
const SWEEP_JITTER_MAX: Duration = Duration::from_secs(3600);

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
    let started = Moment::now();
    let watched =
        Watched { observations: observations.clone(), events: events.clone(), since: Instant::now() };

    let outbox = outbox::start(
        outbox::Config {
            folder: config.state.join("outbox"),
            bytes_max: config.outbox_bytes_max,
            host: host.clone(),
        },
        counters.clone(),
        events,
    )?;
    let settings = detection_config(config, &host)?;
    let poison = settings.poison.clone();
    let detection = detection::start(settings, counters.clone(), observations, emit.clone())?;
    let sensors = sensors::start(sensors_config(config), counters.clone(), observe)?;
    say(
        &emit,
        &host,
        "agent-started",
        &format!("version {}, sensors {}", env!("CARGO_PKG_VERSION"), sensors.level().name()),
    );
    tell_missing(config, &emit, &host);
    catch_up(config, &host, started, &emit, &detection)?;
    let (local_stopper, local_stop) = stop::channel();

    let facts = Facts {
        host: host.clone(),
        started,
        counters,
        sensors: sensors.gauge(),
        level_reason: sensors.reason().to_owned(),
        detection: detection.gauge(),
        poison,
        outbox: outbox.handle(),
        state: config.state.clone(),
    };
    let (status, hello) = (facts.clone(), facts.clone());
    let transport = transport::start(
        transport::Config { state: config.state.clone() },
        outbox.handle(),
        Arc::new(move || status.status()),
        Arc::new(move || hello.hello()),
        local_stop.clone(),
    )?;
    let answers = answer(facts, transport.state(), config.state.clone(), local_stop)?;

    let mut stages = Stages { detection, outbox, transport, watched, answers };
    let outcome = stages.watch(&config.state, &sensors, stop);
    say(&emit, &host, "agent-stopped", outcome.as_ref().err().map_or("asked to stop", String::as_str));
    sensors.stop();
    stages.end(local_stopper, emit);
    outcome.map_err(|failed| anyhow::anyhow!("{failed}"))
}

struct Stages {
    detection: Detection,
    outbox: Outbox,
    transport: Transport,
    watched: Watched,
    answers: JoinHandle<()>,
}

/// What tells whether anything waits between the stages.
struct Watched {
    observations: Receiver<Observation>,
    events: Receiver<wire::Event>,
    since: Instant,
}

impl Stages {
    /// Until stop; an error is the sentence on the stage that failed. Moves the mark on while nothing waits.
    fn watch(&mut self, state: &Path, sensors: &Sensors, stop: &Stop) -> Result<(), String> {
        let mut idle_since: Option<i64> = None;
        while !stop.wait(LOOK_INTERVAL) {
            for (name, failed) in [
                ("sensors", sensors.is_finished()),
                ("detection", self.detection.is_finished()),
                ("outbox", self.outbox.is_finished()),
                ("transport", self.transport.is_finished()),
                ("status", self.answers.is_finished()),
            ] {
                if failed {
                    return Err(format!("the stage `{name}` failed; what it was doing is in the log above"));
                }
            }
            let now = Moment::now().unix_ns;
            // Idle at two looks in a row: what was between two queues at the first has arrived by the second.
            match idle_since.filter(|_| self.is_idle()) {
                Some(since) if self.watched.since.elapsed() >= MARK_INTERVAL => {
                    if let Err(error) = mark::save(state, since) {
                        tracing::warn!(%error, "could not move the mark on; the next catch-up will look at more");
                    }
                    self.watched.since = Instant::now();
                }
                Some(_) => {}
                None => idle_since = self.is_idle().then_some(now),
            }
            if idle_since.is_some() {
                idle_since = self.is_idle().then_some(now);
            }
        }
        Ok(())
    }

    /// Nothing waits, no rescan is owed: the past is caught up with, and so is every loss.
    fn is_idle(&self) -> bool {
        let detection = self.detection.state();
        !detection.rescan.owed
            && !detection.loss_untold
            && detection.queue_length == 0
            && detection.events_waiting == 0
            && self.watched.observations.is_empty()
            && self.watched.events.is_empty()
    }

    fn end(self, local: stop::Stopper, emit: Sender<wire::Event>) {
        drop(emit);
        local.stop();
        drop(self.watched);
        self.detection.join();
        if !self.transport.join() {
            tracing::error!("the transport panicked");
        }
        let _ = self.answers.join();
        self.outbox.join();
    }
}

/// Has what changed since the mark looked at.
fn catch_up(
    config: &Config,
    host: &Host,
    started: Moment,
    emit: &Sender<wire::Event>,
    detection: &Detection,
) -> anyhow::Result<()> {
    let Some(mark) = mark::load(&config.state) else {
        // The first start: there is nothing to catch up with, and from now on there is.
        return mark::save(&config.state, started.unix_ns)
            .with_context(|| format!("could not write to the state folder {}", config.state.display()));
    };
    say_gap(emit, host, mark.min(started.unix_ns), started);
    if mark > started.unix_ns {
        detection.rescan("start-after-the-clock-went-back", 0);
    } else {
        detection.rescan("start", mark);
    }
    Ok(())
}

/// The agent's own folder, 0700, for one agent at a time.
fn claim(folder: &Path) -> anyhow::Result<File> {
    let shown = folder.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not make the state folder {shown}: name another one with --state"))?;
    let data = folder.metadata().with_context(|| format!("could not look at the state folder {shown}"))?;
    let me = rustix::process::geteuid().as_raw();
    if data.uid() != me {
        bail!(
            "the state folder {shown} belongs to user {}, not to {me} who runs this: name another one with --state",
            data.uid()
        );
    }
    if data.mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("could not close the state folder {shown} to other users"))?;
        tracing::warn!(folder = %shown, "the state folder was open to other users; it is closed now");
    }
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"));
    let lock = lock.with_context(|| {
        format!("could not write to the state folder {shown}: name another one with --state")
    })?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another agent runs with the state folder {shown}: stop it, or name another folder with --state"
        );
    }
    Ok(lock)
}

fn detection_config(config: &Config, host: &Host) -> anyhow::Result<detection::Config> {
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

fn sensors_config(config: &Config) -> sensors::Config {
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

/// A watched folder that is not there is a mistake or a disk that is missing: either way somebody must hear of it.
fn tell_missing(config: &Config, emit: &Sender<wire::Event>, host: &Host) {
    for path in &config.watch {
        if Path::new(OsStr::from_bytes(path)).exists() {
            continue;
        }
        let message =
            format!("sensors.watch: {} is not there; it is watched when it comes", escape::terminal(path));
        tracing::warn!(message);
        let health =
            wire::Health { component: "sensors".into(), state: wire::HealthState::Degraded.into(), message };
        let _ = emit.send(host.event(Moment::now(), wire::Severity::Medium, Kind::Health(health)));
    }
}

fn say(emit: &Sender<wire::Event>, host: &Host, action: &str, detail: &str) {
    let audit = wire::Audit { action: action.into(), outcome: "success".into(), detail: detail.into() };
    // The outbox has ended before us only when it failed, and that is said elsewhere.
    let _ = emit.send(host.event(Moment::now(), wire::Severity::Info, Kind::Audit(audit)));
}

fn say_gap(emit: &Sender<wire::Event>, host: &Host, from_unix_ns: i64, now: Moment) {
    let gap = wire::Gap {
        reason: wire::GapReason::SensorDown.into(),
        from_unix_ns,
        to_unix_ns: now.unix_ns,
        detail: "the agent was down: files that changed meanwhile are scanned now, programs that ran are not known".into(),
        ..Default::default()
    };
    let _ = emit.send(host.event(now, wire::Severity::Low, Kind::Gap(gap)));
}

/// Where the agent's word on itself comes from: to the collector, and to `vidette-agent status`.
#[derive(Clone)]
struct Facts {
    host: Host,
    started: Moment,
    counters: Arc<Counters>,
    sensors: sensors::Gauge,
    level_reason: String,
    detection: detection::Gauge,
    poison: Poison,
    outbox: outbox::Handle,
    state: PathBuf,
}

impl Facts {
    fn hello(&self) -> wire::Hello {
        wire::Hello {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.host.boot_id.clone(),
            level: self.sensors.level().to_wire().into(),
            rules_version: self.detection.state().rules_version,
            host_name: self.host.name.clone(),
            os: self.host.os.clone(),
            ..Default::default()
        }
    }

    fn status(&self) -> wire::Status {
        let figures = self.outbox.figures();
        let counters = self.counters.all().into_iter();
        wire::Status {
            time_unix_ns: Moment::now().unix_ns,
            level: self.sensors.level().to_wire().into(),
            rules_version: self.detection.state().rules_version,
            outbox_events: figures.events,
            outbox_bytes: figures.bytes,
            oldest_event_age_ms: figures.oldest_age_ms,
            memory_bytes: resident_bytes(std::process::id()),
            certificate_expires_unix_s: self
                .credentials()
                .map_or(0, |credentials| credentials.expires_unix_s),
            counters: counters.map(|(name, value)| wire::Counter { name: name.into(), value }).collect(),
            health: Vec::new(),
        }
    }

    fn report(&self, transport: &State) -> Report {
        let (detection, figures, credentials) =
            (self.detection.state(), self.outbox.figures(), self.credentials());
        let level = self.sensors.level();
        let (word, detail) = words(transport);
        Report {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            worker_pid: detection.worker_pid,
            memory_bytes: resident_bytes(std::process::id()),
            worker_memory_bytes: detection.worker_resident_bytes,
            started_unix_s: self.started.unix_ns / 1_000_000_000,
            level: level.name().into(),
            level_reason: self.level_reason.clone(),
            self_test: self.sensors.tested().map_or_else(String::new, |tested| {
                format!("{} at {}", tested.outcome, vidette_protocol::ecs::rfc3339(tested.unix_ns))
            }),
            rules_version: detection.rules_version,
            rules: u64::from(detection.rules_count),
            rule_errors: detection.rule_errors,
            hashes: detection.hashes,
            poisoned: detection.poisoned as u64,
            poisoned_files: self.poisoned_files(),
            transport: word.into(),
            transport_detail: detail,
            agent_id: credentials
                .as_ref()
                .map_or_else(String::new, |credentials| credentials.agent.to_string()),
            certificate_expires_unix_s: credentials.map_or(0, |credentials| credentials.expires_unix_s),
            outbox_events: figures.events,
            outbox_bytes: figures.bytes,
            oldest_event_age_ms: figures.oldest_age_ms,
            rescan: status::Rescan {
                owed: detection.rescan.owed || detection.loss_untold,
                reason: detection.rescan.reason,
                files: detection.rescan.files,
                changed: detection.rescan.changed,
                running_ms: detection.rescan.running_ms,
                runs: detection.rescan.runs,
            },
            sweep: status::Sweep {
                running: detection.sweep.running,
                held: detection.sweep.held,
                files: detection.sweep.files,
                known: detection.sweep.known,
                scanned: detection.sweep.scanned,
                matched: detection.sweep.matched,
                took_ms: detection.sweep.took_ms,
                began_unix_s: detection.sweep.began_unix_ns / 1_000_000_000,
                finished_unix_s: detection.sweep.finished_unix_ns / 1_000_000_000,
                sweeps: detection.sweep.sweeps,
            },
            counters: self.counters.all().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            equations: self.counters.equations(),
        }
    }

    fn poisoned_files(&self) -> Vec<status::Poisoned> {
        let shown = |file: crate::worker::poison::Poisoned| status::Poisoned {
            path: file.path,
            reason: file.reason,
            rules_version: file.rules_version,
        };
        self.poison.newest(status::POISONED_SHOWN_MAX).into_iter().map(shown).collect()
    }

    fn credentials(&self) -> Option<Credentials> {
        Credentials::load(&self.state).ok()
    }
}

fn words(state: &State) -> (&'static str, String) {
    match state {
        State::NotJoined { reason } => ("not joined", reason.clone()),
        State::Connecting { error } => ("connecting", error.clone().unwrap_or_default()),
        State::Connected { since, .. } => ("connected", format!("for {} s", since.elapsed().as_secs())),
        State::Refused { code, reason } => ("refused", format!("{}: {reason}", code.as_str_name())),
    }
}

/// Answers `vidette-agent status` on a thread of its own.
fn answer(
    facts: Facts,
    transport: watch::Receiver<State>,
    folder: PathBuf,
    stop: Stop,
) -> anyhow::Result<JoinHandle<()>> {
    let socket = status::listen(&folder)?;
    Ok(std::thread::Builder::new().name("status".into()).spawn(move || {
        status::serve(&socket, &folder, &stop, || facts.report(&transport.borrow().clone()));
    })?)
}

/// What `vidette-agent watch` shows.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Absolute paths.
    pub paths: Vec<Vec<u8>>,
    /// Use the portable sensors.
    pub polling: bool,
    /// Use the rules that ship.
    pub builtin_rules: bool,
    /// Further rules.
    pub rules: Vec<PathBuf>,
}

/// Sensors and detection alone: every event goes to `show`, until `stop` or until `show` fails.
///
/// # Errors
/// What could not be started, or what `show` says.
pub fn watch(
    watch: &Watch,
    stop: &Stop,
    mut show: impl FnMut(&wire::Event) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let host = Host::read();
    let counters = Arc::new(Counters::default());
    let (observe, observations) = bounded(OBSERVATIONS_QUEUE_MAX);
    let (emit, events) = bounded(EVENTS_QUEUE_MAX);
    let config = Config {
        sweep: Sweep { every: None, after_rules_change: false, ..Config::of_defaults().sweep },
        watch: watch.paths.clone(),
        polling: watch.polling,
        self_test: None,
        builtin_rules: watch.builtin_rules,
        rules: watch.rules.clone(),
        ..Config::of_defaults()
    };
    // It lives beside an agent, whose state is not its own.
    let detection = detection::Config { verdicts: Place::default(), ..detection_config(&config, &host)? };
    let detection = detection::start(detection, counters.clone(), observations, emit)?;
    let sensors = sensors::start(sensors_config(&config), counters, observe)?;
    tracing::info!(level = sensors.level().name(), reason = sensors.reason(), "watching; end it with Ctrl-C");
    let result = loop {
        crossbeam_channel::select! {
            recv(events) -> event => match event {
                Ok(event) => if let Err(error) = show(&event) { break Err(error) },
                Err(_) => break Err(anyhow::anyhow!("the stage `detection` failed")),
            },
            recv(stop.channel()) -> _ => break Ok(()),
        }
    };
    sensors.stop();
    drop(events);
    detection.join();
    result
}
