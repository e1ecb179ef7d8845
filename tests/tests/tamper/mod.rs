//! Whoever meddles with an agent is told of at its collector, with both programs as they are installed: silence, a stop and who
//! asked for it, a read key, a firewall in the way; and a data path that hangs does not look alive.

mod asked;
mod credential;
mod firewall;
mod identity;
mod silence;
mod watchdog;

use serde_json::Value;
use std::fs;
use std::path::Path;
use vidette_tests::programs::{Agent, Collector, wait_for};

/// An agent that watches nothing but a folder of its own and has joined.
fn joined(folder: &Path, name: &str, collector: &Collector) -> Agent {
    let agent = unjoined(folder, name);
    agent.join(&collector.invitation().unwrap()).unwrap();
    agent
}

fn unjoined(folder: &Path, name: &str) -> Agent {
    let place = folder.join(name);
    let watched = place.join("watched");
    fs::create_dir_all(&watched).unwrap();
    Agent::prepare(&place, &watched, "self_test_s = 0", "[sweep]\nevery_h = 0\n").unwrap()
}

fn connected(agent: &Agent) {
    wait_for("the agent connects", || {
        let status = agent.status().unwrap_or_default();
        Ok((status["transport"] == "connected").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.said()));
}

/// Audit events of one action, the newest first.
fn audits(collector: &Collector, action: &str) -> Vec<Value> {
    let mut events = collector.lines(&["alerts", "list", "--limit", "1000", "--kind", "audit"]).unwrap();
    events.retain(|event| event["event.action"] == action);
    events
}

/// Waits until there are so many.
fn wait_audits(collector: &Collector, action: &str, count: usize) -> Vec<Value> {
    wait_for(action, || {
        let found = audits(collector, action);
        Ok((found.len() >= count).then_some(found))
    })
    .unwrap_or_else(|error| {
        let all = collector.lines(&["alerts", "list", "--limit", "1000"]).unwrap();
        panic!("{error:#}: {all:#?}")
    })
}

fn text<'v>(event: &'v Value, field: &str) -> &'v str {
    event[field].as_str().unwrap_or_default()
}
