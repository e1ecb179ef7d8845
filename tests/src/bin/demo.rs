//! `cargo demo`: collector and agent on this host, in a temporary folder, with real detections end to end.
//! Nothing outside that folder is written, nothing is reported to anybody, and it ends by itself.

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use vidette_protocol::escape::terminal;
use vidette_tests::programs::{Agent, Collector, PATIENCE, binary, memory_bytes, wait_for};
use vidette_tests::{samples, syslog};

/// Further samples, written one after the other, from which the latency is measured.
const MEASURED: usize = 100;
/// Between two of them, so that each is alone on the path.
const PAUSE: Duration = Duration::from_millis(20);
/// How long to listen for an alert that must not come.
const SILENCE: Duration = Duration::from_secs(2);
/// The sample that must raise nothing.
const CONTROL: &str = "shopping.txt";
/// Lines read from a program and not yet looked at.
const LINES_MAX: usize = 10_000;

/// Shows Vidette at work: a collector and an agent on this host, in a temporary folder, with real detections.
#[derive(Parser)]
#[command(name = "cargo demo")]
struct Args {
    /// Leave both running at the end and print what to try next
    #[arg(long)]
    keep: bool,
    /// Use the portable sensors, as an ordinary user would
    #[arg(long)]
    polling: bool,
}

fn main() -> ExitCode {
    match demo(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn demo(args: &Args) -> anyhow::Result<bool> {
    build()?;
    let folder = tempfile::Builder::new().prefix("vidette-demo-").tempdir()?;
    let watched = folder.path().join("host");
    fs::create_dir(&watched)?;
    let (port, messages) = syslog::receive()?;

    step("starting a collector, with a JSON file and a syslog receiver behind it");
    let collector = Collector::start(folder.path(), &sinks(folder.path(), port))?;
    step("enrolling this host: `vidette tokens create` here, `vidette-agent join` there");
    let sensors = if args.polling { "level = \"polling\"\n" } else { "" };
    let mut agent = Agent::prepare(folder.path(), &watched, sensors, "")?;
    agent.join(&collector.invitation()?)?;
    step("starting the agent");
    agent.start()?;
    let level = wait_ready(&agent)?;
    let mut follow = Follow::start(&collector)?;

    step("writing samples; an alert is shown when the collector has committed it");
    let full = level == "full";
    let expected = write_samples(&watched, full)?;
    let mut alerts = collect(&mut follow, &expected, true)?;
    let mut received = Received::default();
    let first = received.wait(&messages, 1).context("no detection reached the syslog receiver")?;
    println!("\n  the first of them, as the syslog receiver got it:\n    {}", terminal(&first));

    step(&format!("writing {MEASURED} more, to measure the latency"));
    let measured = write_measured(&watched)?;
    alerts.extend(collect(&mut follow, &measured, false)?);
    follow.rest(SILENCE);
    let unexpected = follow.seen.iter().filter(|path| **path == watched.join(CONTROL)).count();
    let agent_process = agent.program.as_ref().context("the agent runs")?.pid();
    let summary = Summary {
        expected: expected.len() + measured.len(),
        latencies_ms: alerts.values().copied().collect(),
        unexpected,
        messages: received.count(&messages, alerts.len()),
        events: events(&collector)?,
        agent_bytes: memory_bytes(agent_process),
        worker_bytes: worker(&agent).map_or(0, memory_bytes),
    };
    let good = summary.show(&level, full);
    follow.stop();
    if args.keep {
        keep(folder, collector, agent);
    }
    Ok(good)
}

/// The binaries of this workspace, in the profile that runs already.
fn build() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins", "--manifest-path"]).arg(manifest);
    // Some build scripts look at what `cargo run` sets for us, and would build again because of it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|start| text.starts_with(start))
        {
            command.env_remove(&name);
        }
    }
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "the programs could not be built");
    Ok(())
}

fn sinks(folder: &Path, port: u16) -> String {
    format!(
        "[[sink]]\nname = \"file\"\ntype = \"jsonl\"\npath = {:?}\n\n\
         [[sink]]\nname = \"siem\"\ntype = \"syslog\"\naddress = \"127.0.0.1:{port}\"\ntransport = \"tcp\"\n",
        folder.join("alerts.jsonl").display().to_string()
    )
}

/// Waits until the agent is connected and its rules are compiled; gives its sensor level.
fn wait_ready(agent: &Agent) -> anyhow::Result<String> {
    let status = wait_for("a connected agent with rules", || {
        let status = agent.status()?;
        let ready = status["transport"] == "connected" && status["rules"].as_u64() > Some(0);
        Ok(ready.then_some(status))
    })?;
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    println!("  sensors: {} {}", text("level"), terminal(text("level_reason").as_bytes()));
    println!("  rules:   {} (version {})", status["rules"], text("rules_version"));
    println!("  agent:   {}", text("agent_id"));
    Ok(text("level"))
}

/// Name and moment of every sample that must raise an alert.
type Expected = BTreeMap<PathBuf, i128>;

fn write_samples(watched: &Path, full: bool) -> anyhow::Result<Expected> {
    let mut expected = Expected::new();
    for (name, bytes) in [("eicar.com", samples::eicar()), ("upload.php", samples::web_shell())] {
        let path = watched.join(name);
        expected.insert(path.clone(), now_ns());
        fs::write(path, bytes)?;
    }
    let dropper = watched.join("dropper.sh");
    if full {
        expected.insert(dropper.clone(), now_ns());
    }
    samples::drop_and_run(&dropper)?;
    if !full {
        println!(
            "  (a file that is written, run and removed at once can be missed at this level: not expected)"
        );
    }
    fs::write(watched.join(CONTROL), samples::control())?;
    Ok(expected)
}

fn write_measured(watched: &Path) -> anyhow::Result<Expected> {
    let mut expected = Expected::new();
    for number in 0..MEASURED {
        let path = watched.join(format!("sample-{number:03}.com"));
        let mut bytes = samples::eicar();
        bytes.extend(format!("\n{number}\n").as_bytes());
        expected.insert(path.clone(), now_ns());
        fs::write(path, bytes)?;
        std::thread::sleep(PAUSE);
    }
    Ok(expected)
}

/// `vidette alerts follow --json`, as an admin would run it.
struct Follow {
    child: Child,
    alerts: Receiver<Value>,
    seen: BTreeSet<PathBuf>,
}

impl Follow {
    fn start(collector: &Collector) -> anyhow::Result<Self> {
        let mut child = Command::new(binary("vidette")?)
            .args(["alerts", "follow", "--json", "--kind", "detection", "--state"])
            .arg(&collector.state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let (sender, alerts) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(alert) = serde_json::from_str(&line) else { continue };
                if sender.send(alert).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, alerts, seen: BTreeSet::new() })
    }

    /// Waits for what may still come.
    fn rest(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.next(end).is_some() {}
    }

    /// The next alert before `end`. Its path is remembered, so that one of the control can't pass unseen.
    fn next(&mut self, end: Instant) -> Option<(PathBuf, Value)> {
        let alert = self.alerts.recv_timeout(end.saturating_duration_since(Instant::now())).ok()?;
        let path = PathBuf::from(alert["file.path"].as_str().unwrap_or_default());
        self.seen.insert(path.clone());
        Some((path, alert))
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes alerts until every expected file has one; gives the latency of each, in milliseconds.
fn collect(follow: &mut Follow, expected: &Expected, show: bool) -> anyhow::Result<BTreeMap<PathBuf, f64>> {
    let mut got: BTreeMap<PathBuf, f64> = BTreeMap::new();
    let end = Instant::now() + PATIENCE;
    while got.len() < expected.len() {
        let Some((path, alert)) = follow.next(end) else {
            let missing: Vec<String> =
                expected.keys().filter(|path| !got.contains_key(*path)).map(shown).collect();
            println!("  missing: {}", missing.join(", "));
            return Ok(got);
        };
        let Some(written_ns) = expected.get(&path) else { continue };
        let latency_ms = (ingested_ns(&alert)? - written_ns) as f64 / 1e6;
        if got.contains_key(&path) {
            continue; // the dropper is seen twice: written, and run
        }
        if show {
            println!("  {:>6.1} ms  {}", latency_ms, line(&alert, &path));
            std::io::stdout().flush()?;
        }
        got.insert(path, latency_ms);
    }
    Ok(got)
}

fn line(alert: &Value, path: &Path) -> String {
    let text = |name: &str| terminal(alert[name].as_str().unwrap_or("-").as_bytes());
    format!(
        "{:<9} {:<28} {}  by {}",
        text("vidette.severity"),
        text("rule.name"),
        shown(path),
        text("process.executable")
    )
}

fn shown(path: impl AsRef<Path>) -> String {
    terminal(path.as_ref().file_name().unwrap_or_default().as_bytes())
}

/// When the collector committed it.
fn ingested_ns(alert: &Value) -> anyhow::Result<i128> {
    let text = alert["event.ingested"].as_str().context("an alert without event.ingested")?;
    Ok(text.parse::<jiff::Timestamp>()?.as_nanosecond())
}

fn now_ns() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}

/// Detections that the syslog receiver got, each by its event id.
#[derive(Default)]
struct Received {
    ids: BTreeSet<String>,
    last: Vec<u8>,
}

impl Received {
    /// Waits until there are so many; gives the last of them.
    fn wait(&mut self, messages: &Receiver<syslog::Message>, expected: usize) -> Option<Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        while self.ids.len() < expected {
            let message = messages.recv_timeout(end.saturating_duration_since(Instant::now())).ok()?;
            if message.message_id == "detection" {
                let id = message.parameters.into_iter().find(|(name, _)| name == "id");
                self.ids.insert(id.map(|(_, id)| id).unwrap_or_default());
                self.last = message.raw;
            }
        }
        Some(self.last.clone())
    }

    fn count(&mut self, messages: &Receiver<syslog::Message>, expected: usize) -> usize {
        let _ = self.wait(messages, expected);
        self.ids.len()
    }
}

fn events(collector: &Collector) -> anyhow::Result<u64> {
    let status = collector.lines(&["status"])?;
    Ok(status.first().and_then(|status| status["store"]["events"].as_u64()).unwrap_or(0))
}

fn worker(agent: &Agent) -> Option<u32> {
    u32::try_from(agent.status().ok()?["worker_pid"].as_u64()?).ok()
}

struct Summary {
    expected: usize,
    latencies_ms: Vec<f64>,
    unexpected: usize,
    messages: usize,
    events: u64,
    agent_bytes: u64,
    worker_bytes: u64,
}

impl Summary {
    /// Prints it; true when everything expected arrived and nothing else did.
    fn show(mut self, level: &str, full: bool) -> bool {
        self.latencies_ms.sort_by(f64::total_cmp);
        let arrived = self.latencies_ms.len();
        let at =
            |part: f64| self.latencies_ms.get((arrived as f64 * part) as usize).or(self.latencies_ms.last());
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!("\nSummary");
        println!("  samples with an alert    {arrived} of {}", self.expected);
        println!("  alerts for the control   {}", self.unexpected);
        println!("  events in the store      {}", self.events);
        println!("  syslog messages received {}", self.messages);
        println!(
            "  write to commit          p50 {:.1} ms, p99 {:.1} ms",
            at(0.50).copied().unwrap_or(f64::NAN),
            at(0.99).copied().unwrap_or(f64::NAN)
        );
        println!(
            "  memory                   agent {:.1} MiB, worker {:.1} MiB",
            mebibytes(self.agent_bytes),
            mebibytes(self.worker_bytes)
        );
        println!(
            "  sensors                  {level}{}",
            if full { "" } else { " (run it as root to see everything)" }
        );
        let good = arrived == self.expected && self.unexpected == 0 && self.messages >= arrived;
        println!(
            "\n{}",
            if good {
                "Everything that was expected arrived."
            } else {
                "NOT everything that was expected arrived."
            }
        );
        good
    }
}

/// Leaves both running and says how to go on.
fn keep(folder: tempfile::TempDir, mut collector: Collector, mut agent: Agent) {
    let state = |path: &Path| path.display().to_string();
    let bin = |name: &str| binary(name).map(|path| state(&path)).unwrap_or_default();
    let (vidette, vidette_agent) = (bin("vidette"), bin("vidette-agent"));
    let (collector_state, agent_state) = (state(&collector.state), state(&agent.state));
    let pids = [collector.program.take(), agent.program.take()].map(|program| {
        let program = std::mem::ManuallyDrop::new(program);
        program.as_ref().map_or(0, vidette_tests::programs::Program::pid)
    });
    let folder = folder.keep();
    println!("\nBoth go on. Try:");
    println!("  {vidette} alerts list --state {collector_state}");
    println!(
        "  {vidette} alerts follow --state {collector_state}     (then write below {})",
        folder.join("host").display()
    );
    println!("  {vidette} status --state {collector_state}");
    println!("  {vidette_agent} status --state {agent_state}");
    println!("Stop them and clean up with:");
    println!("  kill {} {} && rm -r {}", pids[0], pids[1], folder.display());
}

fn step(text: &str) {
    println!("\n> {text}");
}
