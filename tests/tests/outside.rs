//! What an admin and a dashboard see of agents that stop, are late, or whose certificates end: real processes throughout.

use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use vidette_tests::programs::{Agent, Collector, Program, free_port, wait_for};
use vidette_tests::samples;

/// The shortest heartbeat there is, so that two of them pass within a test.
const HEARTBEAT_S: u32 = 10;

struct World {
    folder: tempfile::TempDir,
    collector: Collector,
    port: u16,
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port().expect("a port");
        fs::create_dir(folder.path().join("host")).expect("made");
        let config = format!("heartbeat_s = {HEARTBEAT_S}\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
        let collector = Collector::start(folder.path(), &config).expect("a collector");
        Self { folder, collector, port }
    }

    fn agent(&self) -> Agent {
        self.agent_with("")
    }

    fn agent_with(&self, settings: &str) -> Agent {
        let watched = self.folder.path().join("host");
        let agent = Agent::prepare(self.folder.path(), &watched, "", settings).expect("an agent");
        agent.join(&self.collector.invitation().expect("an invitation")).expect("joined");
        agent
    }

    fn write(&self, name: &str) {
        fs::write(self.folder.path().join("host").join(name), samples::eicar()).expect("written");
    }

    fn rows(&self, more: &[&str]) -> anyhow::Result<Vec<Value>> {
        let arguments: Vec<&str> = ["agents", "list"].into_iter().chain(more.iter().copied()).collect();
        self.collector.lines(&arguments)
    }

    fn status(&self) -> Value {
        self.collector.lines(&["status"]).expect("answered").remove(0)
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a port");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        text
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.metrics();
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{series} is not in {text}")).parse().expect("a number")
    }

    /// Waits until a series has at least this value: a stranger may be shown a picture of a second ago.
    fn reaches(&self, series: &str, least: f64) {
        let reached = || Ok((self.metric(series) >= least).then_some(()));
        wait_for(series, reached).unwrap_or_else(|error| panic!("{error:#}\n{}", self.metrics()));
    }

    /// Waits until the one agent is in this state.
    fn becomes(&self, state: &str) -> Value {
        let found = wait_for(state, || Ok(self.rows(&[])?.into_iter().find(|row| row["state"] == state)));
        found.unwrap_or_else(|error| panic!("{error:#}: {:?}", self.rows(&[])))
    }
}

fn signal(program: Option<&Program>, signal: rustix::process::Signal) {
    let pid = program.expect("a running program").pid();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("sent");
}

#[test]
fn metrics_move_when_events_come_and_name_no_agent() {
    let world = World::start();
    let mut agent = world.agent();
    world.reaches("vidette_agents{state=\"never_seen\"}", 1.0);
    agent.start().expect("started");
    world.becomes("connected");
    world.write("sample");
    for (series, least) in [
        ("vidette_events_stored_total{kind=\"detection\"}", 1.0),
        ("vidette_events_stored_total{kind=\"audit\"}", 1.0),
        ("vidette_batches_total", 2.0),
        ("vidette_batch_bytes_total", 100.0),
        ("vidette_acks_total", 2.0),
        ("vidette_heartbeats_total", 1.0),
        ("vidette_agents{state=\"connected\"}", 1.0),
        ("vidette_connections", 1.0),
        ("vidette_store_commit_seconds_count", 2.0),
        ("vidette_store_commit_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("vidette_sink_sent_events_total{sink=\"alerts\"}", 1.0),
        ("vidette_sink_up{sink=\"alerts\"}", 1.0),
        ("vidette_rules_versions", 1.0),
        ("vidette_store_bytes", 4096.0),
    ] {
        world.reaches(series, least);
    }
    let row = world.becomes("connected");
    let text = world.metrics();
    let (id, host) = (row["id"].as_str().expect("an id"), row["host"].as_str().expect("a name"));
    assert!(!text.contains(&id[..8]), "{text}");
    assert!(host.is_empty() || !text.contains(&format!("\"{host}\"")), "{text}");
    let status = world.status();
    assert!(
        status["commit_p50_us"].as_u64().is_some() && status["disk_free_bytes"].as_u64().is_some(),
        "{status}"
    );
    assert_eq!((&status["fleet"]["connected"], &status["heartbeat_s"]), (&1.into(), &HEARTBEAT_S.into()));
}

#[test]
fn rules_that_are_left_out_show_without_a_look_at_events() {
    let world = World::start();
    let rules = world.folder.path().join("broken.yar");
    fs::write(&rules, "rule broken { condition: true and }").expect("written");
    let mut agent = world.agent_with(&format!("[detection]\nrules = [{:?}]\n", rules.display().to_string()));
    agent.start().expect("started");
    world.reaches("vidette_agents_failed_part", 1.0);
    let row = world.becomes("connected");
    assert!(row["last"]["health"].to_string().contains("broken.yar"), "{row}");
    let check = world.collector.vidette(&["status", "--check"]).expect("called");
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.code() == Some(1) && said.contains("failed part"), "{said}");
}

#[test]
fn an_agent_that_hangs_is_silent_after_two_heartbeats_and_comes_back() {
    let world = World::start();
    let mut agent = world.agent();
    agent.start().expect("started");
    world.becomes("connected");
    signal(agent.program.as_ref(), rustix::process::Signal::STOP);
    // Its connection is not dead for the network yet: only the missing heartbeats tell.
    let row = world.becomes("silent");
    assert!(row["problems"][0].as_str().expect("a problem").starts_with("silent since"), "{row}");
    assert_eq!(world.rows(&["--silent"]).expect("listed").len(), 1);
    world.reaches("vidette_agents{state=\"silent\"}", 1.0);
    let check = world.collector.vidette(&["status", "--check"]).expect("called");
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(2), "no agent is heard: {said}");
    assert!(said.starts_with("VIDETTE CRITICAL: ") && said.contains("1 agent is silent"), "{said}");
    signal(agent.program.as_ref(), rustix::process::Signal::CONT);
    world.becomes("connected");
    assert!(world.rows(&["--silent"]).expect("listed").is_empty());
}

#[test]
fn lag_shows_what_waited_while_the_collector_was_away() {
    let mut world = World::start();
    let mut agent = world.agent();
    agent.start().expect("started");
    world.becomes("connected");
    world.collector.kill().expect("killed");
    for number in 0..20 {
        world.write(&format!("sample-{number}"));
    }
    let waits = || Ok((agent.status()?["outbox_events"].as_u64().unwrap_or(0) >= 20).then_some(()));
    wait_for("events in the outbox", waits).unwrap_or_else(|error| panic!("{error:#}: {:?}", agent.status()));
    std::thread::sleep(Duration::from_secs(2));
    world.collector.resume().expect("resumed");
    let late = wait_for("lag", || {
        Ok(world.rows(&[])?.into_iter().find(|row| row["lag_ms"].as_u64().unwrap_or(0) >= 2000))
    });
    let late = late.unwrap_or_else(|error| panic!("{error:#}: {:?}", world.rows(&[])));
    assert!(late["waiting_events"].as_u64().expect("a number") >= 1, "{late}");
    // The next heartbeat says that all is well.
    let fine = wait_for("no lag", || Ok(world.rows(&[])?.into_iter().find(|row| row["lag_ms"] == 0)));
    fine.unwrap_or_else(|error| panic!("{error:#}: {:?}", world.rows(&[])));
}

#[test]
fn certificates_near_their_end_and_hosts_that_never_came_show() {
    let mut world = World::start();
    let _agent = world.agent(); // joined, never started
    world.collector.kill().expect("killed");
    let soon = now_unix_s() + 3600;
    certificate_ends(&world.collector.state, soon);
    world.collector.resume().expect("resumed");
    let row = world.becomes("never_seen");
    let left = row["certificate_left_s"].as_i64().expect("a number");
    assert!((3000..=3600).contains(&left), "{row}");
    assert!(row["problems"].to_string().contains("certificate ends in"), "{row}");
    world.reaches("vidette_agents_certificates{state=\"near_end\"}", 1.0);
    let status = world.status();
    assert_eq!(status["fleet"]["certificates_near"], 1, "{status}");
    let check = world.collector.vidette(&["status", "--check"]).expect("called");
    assert!(matches!(check.status.code(), Some(1 | 2)), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stdout).contains("1 certificates should have been renewed"));

    world.collector.kill().expect("killed");
    certificate_ends(&world.collector.state, now_unix_s() - 60);
    world.collector.resume().expect("resumed");
    world.reaches("vidette_agents_certificates{state=\"ended\"}", 1.0);
    assert_eq!(world.status()["fleet"]["certificates_expired"], 1);
}

/// Sets when every certificate of the register ends, while nobody uses it.
fn certificate_ends(state: &Path, unix_s: i64) {
    let register = rusqlite::Connection::open(state.join("identity/identity.db")).expect("the register");
    register.execute("UPDATE certificates SET expires_unix_s = ?", [unix_s]).expect("changed");
}

fn now_unix_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_secs()).expect("before 2262")
}
