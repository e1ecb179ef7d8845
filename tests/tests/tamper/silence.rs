//! An agent that is not heard for two heartbeats is told of, once, and so is its return.

use super::{audits, connected, joined, text, wait_audits};
use std::path::Path;
use vidette_tests::programs::{Agent, Collector};

/// A collector each: agents of one machine would count as one host that has joined anew.
fn fresh(folder: &Path, name: &str) -> (Collector, Agent) {
    let place = folder.join(name);
    std::fs::create_dir(&place).unwrap();
    let collector = Collector::start(&place, "heartbeat_s = 10\n").unwrap();
    let mut agent = joined(&place, name, &collector);
    agent.start().unwrap();
    connected(&agent);
    (collector, agent)
}

#[test]
fn a_killed_agent_is_told_as_silent_once_and_one_that_stops_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let (calm, _stays) = fresh(folder.path(), "stays");
    let (first, mut killed) = fresh(folder.path(), "killed");
    let (second, mut stopped) = fresh(folder.path(), "stopped");
    killed.kill().unwrap();
    assert!(stopped.program.take().unwrap().stop().unwrap().success());

    let silent = wait_audits(&first, "agent-silent", 1);
    assert_eq!(text(&silent[0], "vidette.severity"), "high", "{silent:#?}");
    assert!(!text(&silent[0], "event.reason").contains("said that it stops"), "{silent:#?}");
    let id = std::fs::read_to_string(killed.state.join("identity/agent-id")).unwrap();
    assert!(text(&silent[0], "event.reason").contains(id.trim()), "{silent:#?}");

    let goodbye = wait_audits(&second, "agent-silent", 1);
    assert_eq!(text(&goodbye[0], "vidette.severity"), "medium", "{goodbye:#?}");
    assert!(text(&goodbye[0], "event.reason").contains("said that it stops"), "{goodbye:#?}");

    killed.start().unwrap();
    let back = wait_audits(&first, "agent-back", 1);
    assert!(text(&back[0], "event.reason").contains(id.trim()), "{back:#?}");
    let started = wait_audits(&first, "agent-started", 2);
    let cut: Vec<_> =
        started.iter().filter(|event| text(event, "event.reason").contains("did not end in order")).collect();
    assert!(cut.len() == 1 && text(cut[0], "vidette.severity") == "high", "{started:#?}");
    assert_eq!(audits(&first, "agent-silent").len(), 1, "once");
    assert_eq!(audits(&calm, "agent-silent").len(), 0, "who is there is not silent");
}
