//! A firewall of the host in the way of its agent is named as such when it is gone.

use super::{connected, joined, text, wait_audits};
use std::process::Command;
use vidette_tests::programs::{Collector, wait_for};

/// Drops what is sent to one UDP port. Dropping it lets it through.
struct Firewall(String);

impl Firewall {
    fn before(port: u16) -> Self {
        let table = format!("vidette_test_{}", std::process::id());
        let rules = format!(
            "table inet {table} {{ chain out {{ type filter hook output priority 0; udp dport {port} drop; }}; }}"
        );
        assert!(Command::new("nft").arg(&rules).status().unwrap().success(), "{rules}");
        Self(table)
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "inet", &self.0]).status();
    }
}

#[test]
fn a_firewall_in_the_way_is_told_when_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path(), "").unwrap();
    let mut agent = joined(folder.path(), "host", &collector);
    let firewall = Firewall::before(collector.port);
    agent.start().unwrap();
    wait_for("the firewall is felt", || {
        let detail = agent.status()?["transport_detail"].as_str().unwrap_or_default().to_owned();
        Ok(detail.contains("this host's firewall refuses").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.said()));
    drop(firewall);
    connected(&agent);
    let told = wait_audits(&collector, "collector-unreachable", 1);
    assert_eq!(text(&told[0], "vidette.severity"), "high", "{told:#?}");
    assert!(text(&told[0], "event.reason").contains("this host's firewall refuses"), "{told:#?}");
}
