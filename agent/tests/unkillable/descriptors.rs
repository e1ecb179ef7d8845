//! The limit of open files, reached while they run: in the worker and in the agent.

use super::rig::{self, MARKER, MARKER_RULE, file, ready, scan, settings, submit, until};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vidette_agent::worker::RuleSet;
use vidette_agent::worker::pool::Settings;
use vidette_agent::worker::process::Launcher;
use vidette_protocol::wire::Verdict;

/// Starts the worker with so few that a handful of files fits and a batch does not.
const FEW: &str = r#"
#include <sys/resource.h>
#include <unistd.h>
int main(int count, char **words) {
    struct rlimit few = { 9, 9 };
    return setrlimit(RLIMIT_NOFILE, &few) || execv(AGENT, words);
}
"#;

/// The limit of a running worker can be set only with CAP_SYS_RESOURCE, which not every test machine has: it is there
/// from the begin, and reached when files come.
#[test]
fn a_worker_that_may_open_no_more_is_replaced_and_no_file_is_blamed() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("few.c"), folder.path().join("few"));
    std::fs::write(&source, FEW).unwrap();
    let mut cc = Command::new("cc");
    cc.arg(format!("-DAGENT=\"{}\"", rig::AGENT)).arg("-o").arg(&program).arg(&source);
    assert!(cc.status().unwrap().success());
    let rules = RuleSet::new(vec![rig::source("marker.yar", MARKER_RULE)]);
    let launcher = Launcher::of(&program).unwrap();
    let (mut pool, mut said) = ready(Settings { launcher, ..settings(rules) });
    scan(&mut pool, &mut said, 0, file(MARKER));
    for round in 1..=3u64 {
        let before = (pool.pid().unwrap(), said.died.len());
        let ids = 100 * round..100 * round + 32;
        for id in ids.clone() {
            submit(&mut pool, &mut said, id, file(MARKER));
        }
        until(&mut pool, &mut said, |said, _| ids.clone().all(|id| said.done.contains_key(&id)));
        ids.for_each(|id| assert_eq!(said.scan(id).verdict, Verdict::Matched));
        // It says so itself, at once: a worker that only went silent would be killed as stuck, and a file blamed.
        assert!(said.died.len() > before.1, "told: {said:?}");
        assert!(
            said.died.iter().all(|reason| reason.contains("could not read the agent's request")),
            "{said:?}"
        );
        assert_ne!(pool.pid(), Some(before.0), "replaced");
    }
    assert!(pool.poison().is_empty() && said.unavailable.is_empty() && said.refused.is_empty(), "{said:?}");
}

/// A real agent that watches one folder, ended when it is dropped.
struct Agent {
    child: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("watched")).unwrap();
        let rules = folder.path().join("marker.yar");
        std::fs::write(&rules, MARKER_RULE).unwrap();
        let watched = folder.path().join("watched");
        let config = format!("[sensors]\nwatch = [{watched:?}]\n[detection]\nrules = [{rules:?}]\n");
        std::fs::write(folder.path().join("agent.toml"), config).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(rig::AGENT);
        command.args(["run", "--config"]).arg(folder.path().join("agent.toml"));
        command.arg("--state").arg(folder.path().join("state"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, folder }
    }

    fn status(&self) -> Option<serde_json::Value> {
        let mut command = Command::new(rig::AGENT);
        command.args(["status", "--json", "--state"]).arg(self.folder.path().join("state"));
        serde_json::from_slice(&command.output().unwrap().stdout).ok()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| is_so(status)) {
                return status.clone();
            }
            assert!(Instant::now() < end, "{what}: {status:#?} {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn write(&self, name: &str) {
        std::fs::write(self.folder.path().join("watched").join(name), MARKER).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn counter(status: &serde_json::Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("{name}: {status:#?}"))
}

/// The kernel can't hand it files then; status itself, which needs a descriptor, waits until the limit is gone.
#[test]
fn an_agent_that_may_open_no_more_tells_what_it_lost_and_goes_on() {
    let agent = Agent::start();
    agent.wait("it starts", |status| status["rules"].as_u64().is_some_and(|rules| rules > 0));
    agent.write("before");
    agent.wait("it scans", |status| counter(status, "detection_scanned") >= 1);
    let pid = agent.child.id();
    let before = rig::limit_descriptors(pid, rig::descriptors(pid).min(8));
    for number in 0..50 {
        agent.write(&format!("meanwhile{number}"));
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "it lives: {}", agent.said());
    rig::limit_descriptors(pid, before);
    // What the kernel could not hand over is told as a loss, and found again by a rescan.
    let after = agent.wait("everything is found again", |status| counter(status, "detection_scanned") >= 51);
    assert!(counter(&after, "rescans") >= 1, "{after:#?}");
    assert!(counter(&after, "sensor_lost_kernel") >= 1, "{after:#?}");
    agent.write("after");
    agent.wait("it goes on", |status| {
        counter(status, "detection_scanned") >= 52 && status["rescan"]["owed"] == false
    });
}
