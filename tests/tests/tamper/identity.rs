//! Whoever reads an agent's key is named at its collector, by whatever name and after whatever renewal.

use super::{audits, connected, joined, text, wait_audits};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use vidette_tests::programs::Collector;

fn read_by(program: &str, path: &Path) {
    let status = Command::new(program).arg(path).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program}");
}

#[test]
fn a_program_that_reads_the_key_is_named_and_the_agents_own_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path(), "").unwrap();
    let mut agent = joined(folder.path(), "host", &collector);
    agent.start().unwrap();
    connected(&agent);
    let identity = agent.state.join("identity");
    read_by("cat", &identity.join("key.pem"));
    let read = wait_audits(&collector, "identity-read", 1);
    assert_eq!(text(&read[0], "vidette.severity"), "high", "{read:#?}");
    assert!(text(&read[0], "process.executable").ends_with("/cat"), "{read:#?}");
    assert!(text(&read[0], "event.reason").contains("identity/key.pem"), "{read:#?}");
    assert_eq!(read[0]["process.parent.pid"], std::process::id(), "{read:#?}");

    // Another name of the same file.
    let link = agent.state.join("elsewhere");
    fs::hard_link(identity.join("key.pem"), &link).unwrap();
    read_by("od", &link);
    let read = wait_audits(&collector, "identity-read", 2);
    assert!(read.iter().any(|event| text(event, "process.executable").ends_with("/od")), "{read:#?}");
    fs::remove_file(&link).unwrap();

    // As a renewal does it: written beside it, exchanged with it, the old one removed.
    let fresh = agent.state.join("identity.new");
    fs::create_dir(&fresh).unwrap();
    for entry in fs::read_dir(&identity).unwrap() {
        let entry = entry.unwrap();
        // By this test, which is told of as well.
        fs::copy(entry.path(), fresh.join(entry.file_name())).unwrap();
    }
    wait_audits(&collector, "identity-read", 3);
    renameat_with(CWD, &fresh, CWD, &identity, RenameFlags::EXCHANGE).unwrap();
    fs::remove_dir_all(&fresh).unwrap();
    read_by("head", &identity.join("key.pem"));
    let read = wait_audits(&collector, "identity-read", 4);
    assert!(read.iter().any(|event| text(event, "process.executable").ends_with("/head")), "{read:#?}");

    // Its own commands, and what is no identity.
    agent.status().unwrap();
    let again = vidette_tests::programs::call(
        "vidette-agent",
        &["join", "--state", &agent.state.display().to_string()],
        "vidette://127.0.0.1:1/\n",
    );
    assert!(!again.unwrap().status.success());
    read_by("sort", &agent.state.join("mark"));
    // Told after all of these, by the same path.
    read_by("tail", &identity.join("certificate.pem"));
    wait_audits(&collector, "identity-read", 5);
    let programs: Vec<String> = audits(&collector, "identity-read")
        .iter()
        .map(|event| text(event, "process.executable").rsplit('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(programs.len(), 5, "{programs:?}");
    assert!(!programs.iter().any(|name| ["vidette-agent", "sort"].contains(&name.as_str())), "{programs:?}");
}
