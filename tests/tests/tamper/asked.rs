//! Who asked an agent to stop is in its last event, which arrives before it ends, or after its next start.

use super::{audits, connected, joined, text, wait_audits};
use std::process::Command;
use vidette_tests::programs::{Agent, Collector, wait_for};

/// By a program that has ended before anybody could look at it.
fn killed_by_a_program(agent: &mut Agent) -> String {
    let pid = agent.program.as_ref().unwrap().pid().to_string();
    assert!(Command::new("/usr/bin/kill").args(["-TERM", &pid]).status().unwrap().success());
    let program = agent.program.as_mut().unwrap();
    let status = wait_for("its end", || program.ended()).unwrap();
    assert!(status.success(), "{status}");
    agent.program = None;
    pid
}

#[test]
fn the_program_that_sent_the_signal_is_named_before_the_agent_ends_or_later() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(folder.path(), "").unwrap();
    let mut agent = joined(folder.path(), "host", &collector);
    agent.start().unwrap();
    connected(&agent);
    let pid = killed_by_a_program(&mut agent);
    let stopped = audits(&collector, "agent-stopped");
    assert_eq!(stopped.len(), 1, "it was there before the agent ended");
    let check = |event: &serde_json::Value, pid: &str| {
        assert_eq!(text(event, "vidette.severity"), "high", "{event:#?}");
        assert!(text(event, "process.executable").ends_with("/kill"), "{event:#?}");
        assert_eq!(event["process.args"], serde_json::json!(["/usr/bin/kill", "-TERM", pid]), "{event:#?}");
        assert_eq!(event["process.parent.pid"], std::process::id(), "{event:#?}");
        assert!(text(event, "event.reason").starts_with("SIGTERM from user 0, by process "), "{event:#?}");
    };
    check(&stopped[0], &pid);

    agent.start().unwrap();
    connected(&agent);
    collector.kill().unwrap();
    let pid = killed_by_a_program(&mut agent);
    collector.resume().unwrap();
    assert_eq!(audits(&collector, "agent-stopped").len(), 1, "it could not be told");
    agent.start().unwrap();
    let stopped = wait_audits(&collector, "agent-stopped", 2);
    let later = stopped.iter().find(|event| event["process.args"][2] == pid.as_str()).unwrap();
    check(later, &pid);
}
