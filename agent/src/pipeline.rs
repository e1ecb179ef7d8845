//! Which queue leads where. Every thread and channel of the agent is made here, and nobody else sees all stages.
//!
//! Order of the end: the sensors stop, the observations run dry, detection ends and drops its events, the
//! transport says goodbye after what it can still send in its grace time, the outbox commits the last of them.

/// Settings to what each stage takes.
mod settings;

use self::settings::{detection_config, sensors_config};
use crate::config::{Config, Sweep};
use crate::detection::reload::Reloader;
use crate::detection::verdicts::Place;
use crate::detection::{self, Detection, EVENTS_QUEUE_MAX, mark};
use crate::folder;
use crate::host::{Host, Moment};
use crate::outbox::{self, Outbox};
use crate::progress::Waiting;
use crate::sensors::{self, OBSERVATIONS_QUEUE_MAX, Observation, Sensors};
use crate::status::{self, Deeds, Report};
use crate::stop::{self, Stop};
use crate::tamper::Told;
use crate::tamper::asked;
use crate::tamper::life::{self, Life};
use crate::tamper::outage::{Outage, Reach};
use crate::tamper::unit::Unit;
use crate::telemetry::Counters;
use crate::transport::{self, Credentials, IdentityLife, State, Transport};
use crate::watchdog::Beats;
use crate::worker::poison::Poison;
use crate::worker::process::resident_bytes;
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use vidette_protocol::escape;
use vidette_protocol::limits::TEXT_BYTES_MAX;
use vidette_protocol::wire::{self, event::Kind};

/// How often the stages are asked whether they still work, and whether anything waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the mark is moved on while nothing waits.
const MARK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the unit is looked at, and the next run's word on this one kept fresh.
const SIGNS_INTERVAL: Duration = Duration::from_secs(10);
/// The service: all stages, until `stop` or until one of them fails.
///
/// # Errors
/// What could not be started, or the name of the stage that failed.
pub fn run(config: &Config, stop: &Stop) -> anyhow::Result<()> {
    let _lock = folder::claim(&config.state)?;
    let host = Host::read();
    let counters = Arc::new(Counters::default());
    let (observe, observations) = bounded(OBSERVATIONS_QUEUE_MAX);
    let (emit, events) = bounded(EVENTS_QUEUE_MAX);
    let started = Moment::now();
    let watched =
        Watched { observations: observations.clone(), events: events.clone(), since: Instant::now() };

    let outbox = outbox::start(
        outbox::Config {
            folder: config.state.join(outbox::OUTBOX_FOLDER),
            bytes_max: config.outbox_bytes_max,
            host: host.clone(),
        },
        counters.clone(),
        events,
    )?;
    let settings = detection_config(config, &host)?;
    let poison = settings.poison.clone();
    let detection = detection::start(settings, counters.clone(), observations, emit.clone())?;
    let mut sensors = sensors::start(sensors_config(config), counters.clone(), observe)?;
    sensors.guard(&config.state, transport::IDENTITY_FOLDER)?;
    let (life, before) = life::begin(&config.state, &host)
        .with_context(|| format!("could not write to the state folder {}", config.state.display()))?;
    let begun = format!("version {}, sensors {}", env!("CARGO_PKG_VERSION"), sensors.level().name());
    say(&emit, &host, life::started(before.as_ref(), &begun));
    tell_missing(config, &emit, &host);
    catch_up(config, &host, started, &emit, &detection)?;
    let (local_stopper, local_stop) = stop::channel();

    let facts = Facts {
        host: host.clone(),
        started,
        counters: counters.clone(),
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
    let answers = answer(facts, detection.reloader(), &transport, config.state.clone(), local_stop.clone())?;
    let joining = transport::invited::start(config.state.clone(), host.clone(), local_stop)?;

    let mut stages = Stages { counters, detection, outbox, transport, watched, answers, joining };
    let mut signs = Signs { unit: Unit::of_this_process(), outage: Outage::default(), life };
    let service = Beats::new();
    service.tell("READY=1");
    let outcome =
        stages.watch(&config.state, &sensors, stop, (&mut signs, service), &|told| say(&emit, &host, told));
    // Once more: whoever changes the unit and restarts it is not faster than this.
    signs.unit.iter_mut().flat_map(Unit::look).for_each(|told| say(&emit, &host, told));
    say(&emit, &host, last_word(outcome.as_ref().err(), &sensors, stop));
    sensors.stop();
    stages.end(local_stopper, emit);
    signs.life.end();
    outcome.map_err(|failed| anyhow::anyhow!("{failed}"))
}

/// Why the run ends, and who asked for it.
fn last_word(failed: Option<&String>, sensors: &Sensors, stop: &Stop) -> Told {
    if let Some(failed) = failed {
        let detail = failed.clone();
        return Told { action: "agent-stopped", severity: wire::Severity::High, detail, process: None };
    }
    let asked = stop.asked();
    let (process, lately) = match asked.as_ref().and_then(|asked| Some((asked.at, asked.sender?))) {
        Some((at, (pid, _))) => sensors.who(pid, asked::HINTS, at),
        None => (None, Vec::new()),
    };
    asked::stopped(asked, process, &lately)
}

/// What is looked after beside the stages.
struct Signs {
    unit: Option<Unit>,
    outage: Outage,
    life: Life,
}

struct Stages {
    counters: Arc<Counters>,
    detection: Detection,
    outbox: Outbox,
    transport: Transport,
    watched: Watched,
    answers: JoinHandle<()>,
    joining: Option<JoinHandle<()>>,
}

/// What tells whether anything waits between the stages.
struct Watched {
    observations: Receiver<Observation>,
    events: Receiver<wire::Event>,
    since: Instant,
}

impl Stages {
    /// Until stop; an error is the sentence on the stage that failed. Moves the mark on while nothing waits.
    fn watch(
        &mut self,
        state: &Path,
        sensors: &Sensors,
        stop: &Stop,
        (signs, mut beats): (&mut Signs, Beats),
        say: &dyn Fn(Told),
    ) -> Result<(), String> {
        let mut idle_since: Option<i64> = None;
        let (transport, turns) = (self.transport.state(), self.transport.turns());
        let mut looked: Option<Instant> = None;
        while !stop.wait(LOOK_INTERVAL) {
            let observations = !self.watched.observations.is_empty();
            let (events, events_full) = (!self.watched.events.is_empty(), self.watched.events.is_full());
            beats.look(&self.counters, &turns, Waiting { observations, events, events_full });
            signs.outage.look(reach(&transport.borrow()), Instant::now()).into_iter().for_each(say);
            if looked.is_none_or(|looked| looked.elapsed() >= SIGNS_INTERVAL) {
                looked = Some(Instant::now());
                signs.life.beat();
                signs.unit.iter_mut().flat_map(Unit::look).for_each(say);
            }
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
        beats.tell("STOPPING=1");
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
        if let Some(joining) = self.joining {
            let _ = joining.join();
        }
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

fn say(emit: &Sender<wire::Event>, host: &Host, told: Told) {
    // The outbox has ended before us only when it failed, and that is said elsewhere.
    let _ = emit.send(host.event(Moment::now(), told.severity, told.kind()));
}

/// How the transport is, for `outage`.
fn reach(state: &State) -> Reach<'_> {
    match state {
        State::Connected { since, failed, .. } => {
            Reach::Connected { since: *since, failed: failed.as_deref() }
        }
        State::Connecting { error: Some(error) } => Reach::Failing(error),
        State::Refused { reason, .. } => Reach::Failing(reason),
        State::NotJoined { .. } | State::Connecting { error: None } => Reach::Idle,
    }
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
            health: left_out(&self.detection.state().rule_errors).into_iter().collect(),
        }
    }

    fn report(&self, transport: &State, identity: &IdentityLife) -> Report {
        let (detection, figures, credentials) =
            (self.detection.state(), self.outbox.figures(), self.credentials());
        let level = self.sensors.level();
        let (word, detail) = words(transport);
        let renewals = identity.renewals();
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
            scan_time: detection.scan_time,
            poisoned: detection.poisoned as u64,
            poisoned_files: self.poisoned_files(),
            transport: word.into(),
            transport_detail: detail,
            agent_id: credentials
                .as_ref()
                .map_or_else(String::new, |credentials| credentials.agent.to_string()),
            certificate_expires_unix_s: credentials.map_or(0, |credentials| credentials.expires_unix_s),
            clock: identity.clock(),
            renewals: renewals.done,
            renewals_failed: renewals.failed,
            renewal_error: renewals.error,
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
                next_unix_s: detection.sweep.next_unix_ns / 1_000_000_000,
                sweeps: detection.sweep.sweeps,
            },
            counters: self.counters.all().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            equations: self.counters.equations(),
            reload: status::Reload {
                asked: 0,
                rules: detection.reloads.rules,
                hashes: detection.reloads.hashes,
                rules_refused: detection.reloads.rules_refused,
                hashes_refused: detection.reloads.hashes_refused,
            },
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

/// Rules that are not in use, for as long as it is so: whoever looks at the fleet sees it without looking for the event.
fn left_out(errors: &[String]) -> Option<wire::Health> {
    let first = errors.first()?;
    let more = match errors.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let mut message = format!("left out: {first}{more}");
    message.truncate(message.floor_char_boundary(TEXT_BYTES_MAX));
    Some(wire::Health { component: "rules".into(), state: wire::HealthState::Failed.into(), message })
}

fn words(state: &State) -> (&'static str, String) {
    match state {
        State::NotJoined { reason } => ("not joined", reason.clone()),
        State::Connecting { error } => ("connecting", error.clone().unwrap_or_default()),
        State::Connected { since, .. } => ("connected", format!("for {} s", since.elapsed().as_secs())),
        State::Refused { code, reason } => ("refused", format!("{}: {reason}", transport::word(*code))),
    }
}

/// Answers `vidette-agent status`, `renew` and `reload` on a thread of its own.
fn answer(
    facts: Facts,
    reloader: Reloader,
    transport: &Transport,
    folder: PathBuf,
    stop: Stop,
) -> anyhow::Result<JoinHandle<()>> {
    let socket = status::listen(&folder)?;
    let answers = Answers { facts, reloader, transport: transport.state(), identity: transport.identity() };
    Ok(std::thread::Builder::new()
        .name("status".into())
        .spawn(move || status::serve(&socket, &folder, &stop, &answers))?)
}

struct Answers {
    facts: Facts,
    reloader: Reloader,
    transport: watch::Receiver<State>,
    identity: IdentityLife,
}

impl Deeds for Answers {
    fn report(&self) -> Report {
        self.facts.report(&self.transport.borrow().clone(), &self.identity)
    }

    fn renew(&self) {
        self.identity.renew_now();
    }

    fn reload(&self) -> u64 {
        self.reloader.configured()
    }
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
