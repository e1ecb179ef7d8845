//! A host joins by a line that systemd hands over as a credential, also when its collector comes later, and once only.

use super::{connected, unjoined};
use std::fs;
use vidette_tests::programs::{Collector, wait_for};

#[test]
fn a_host_joins_by_its_credential_when_the_collector_is_there_and_does_not_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(folder.path(), "").unwrap();
    let line = collector.invitation().unwrap();
    collector.kill().unwrap();
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("vidette.join"), format!("{line}\n")).unwrap();
    let mut agent = unjoined(folder.path(), "host");
    agent.environment = vec![("CREDENTIALS_DIRECTORY".into(), credentials.display().to_string())];
    agent.start().unwrap();
    wait_for("a first try", || Ok(agent.said().contains("could not join by the credential").then_some(())))
        .unwrap();
    collector.resume().unwrap();
    connected(&agent);
    let list = collector.lines(&["agents", "list"]).unwrap();
    assert_eq!(list.len(), 1);

    // Once it has joined it does not look there any more.
    agent.program.take().unwrap().stop().unwrap();
    fs::write(credentials.join("vidette.join"), "nonsense").unwrap();
    agent.start().unwrap();
    connected(&agent);
    assert_eq!(collector.lines(&["agents", "list"]).unwrap().len(), 1);
    let token = line.rsplit_once("token=").unwrap().1;
    assert!(!agent.said().contains(token) && !agent.said().contains("could not use"), "{}", agent.said());
}
