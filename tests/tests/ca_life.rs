//! A collector's CA is replaced under a living fleet of three, of which one is away, with both programs as they are installed:
//! everybody follows, nothing is lost, and who is needed is named before anybody is locked out.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use vidette_tests::programs::{Agent, Collector, binary, call, wait_for};

struct Host {
    agent: Agent,
    watched: PathBuf,
    id: String,
    written: BTreeSet<String>,
}

impl Host {
    fn join(folder: &Path, name: &str, line: &str) -> Self {
        let mut host = Self::prepare(folder, name);
        host.join_by(line).unwrap();
        host.id = fs::read_to_string(host.agent.state.join("identity/agent-id")).unwrap().trim().to_owned();
        host
    }

    fn prepare(folder: &Path, name: &str) -> Self {
        let place = folder.join(name);
        let watched = place.join("watched");
        fs::create_dir_all(&watched).unwrap();
        let agent = Agent::prepare(&place, &watched, "level = \"polling\"", "").unwrap();
        Self { agent, watched, id: String::new(), written: BTreeSet::new() }
    }

    /// As a host of its own: with another machine-id(5), else each would replace the one before.
    fn join_by(&self, line: &str) -> Result<(), String> {
        let id = self.watched.with_file_name("machine-id");
        fs::write(&id, format!("{:032x}\n", rand::random::<u128>())).unwrap();
        let script = "mount --bind \"$1\" /etc/machine-id && exec \"$2\" join --state \"$3\"";
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&id, &binary("vidette-agent").unwrap(), &self.agent.state])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn start(&mut self, collector: &Collector) {
        self.agent.start().unwrap();
        let id = self.id.clone();
        wait_for("the agent connects", || Ok((row(collector, &id)["state"] == "connected").then_some(())))
            .unwrap();
    }

    /// One more file, which must be heard of.
    fn write(&mut self, name: &str) {
        fs::write(self.watched.join(name), name).unwrap();
        self.written.insert(name.to_owned());
    }

    fn roots(&self) -> usize {
        let pem = fs::read_to_string(self.agent.state.join("identity/roots.pem")).unwrap();
        pem.matches("BEGIN CERTIFICATE").count()
    }
}

fn row(collector: &Collector, id: &str) -> Value {
    collector.lines(&["agents", "show", id]).unwrap().remove(0)
}

fn show(collector: &Collector) -> Value {
    collector.lines(&["ca", "show"]).unwrap().remove(0)
}

fn ca(collector: &Collector, arguments: &[&str]) -> Output {
    let all: Vec<&str> = ["ca"].into_iter().chain(arguments.iter().copied()).collect();
    collector.vidette(&all).unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn names(shown: &Value) -> Vec<&str> {
    shown["behind"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect()
}

/// What the collector said itself, of one action.
fn said(collector: &Collector, action: &str) -> usize {
    let events = collector.lines(&["alerts", "list", "--limit", "1000", "--kind", "audit"]).unwrap();
    events.iter().filter(|event| event.to_string().contains(&format!("\"{action}\""))).count()
}

/// Every file that was written was heard of, and no gap says that something was lost.
fn nothing_is_lost(collector: &Collector, hosts: &[&Host]) {
    for host in hosts {
        wait_for("all events arrive", || {
            let found = collector
                .lines(&["events", "list", "--agent", &host.id, "--kind", "file", "--limit", "1000"])?;
            let texts: Vec<String> = found.iter().map(Value::to_string).collect();
            let is_there =
                |name: &String| texts.iter().any(|text| text.contains(&format!("watched/{name}\"")));
            Ok(host.written.iter().all(is_there).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", host.written));
    }
    let gaps = collector.lines(&["alerts", "list", "--kind", "gap", "--limit", "100"]).unwrap();
    // An agent that was down says so, and that it does not know which programs ran meanwhile.
    let lost: Vec<String> =
        gaps.iter().map(Value::to_string).filter(|gap| !gap.contains("the agent was down")).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

fn wait_confirmed(collector: &Collector, at: usize, count: u64) {
    wait_for("agents confirm", || {
        Ok((show(collector)["cas"][at]["confirmed"].as_u64() == Some(count)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", show(collector), collector.said()));
}

fn wait_behind(collector: &Collector, ids: &[&str]) {
    wait_for("agents follow", || Ok((names(&show(collector)) == ids).then_some(())))
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", show(collector), collector.said()));
}

#[test]
fn three_agents_follow_a_new_ca_one_of_them_late_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(folder.path(), "").unwrap();
    let line = || collector.invitation().unwrap();
    let mut one = Host::join(folder.path(), "one", &line());
    let mut two = Host::join(folder.path(), "two", &line());
    let mut away = Host::join(folder.path(), "away", &line());
    let (spare, older_line) = (line(), line());
    for host in [&mut one, &mut two, &mut away] {
        host.start(&collector);
        host.write("before");
    }
    nothing_is_lost(&collector, &[&one, &two, &away]);
    away.agent.kill().unwrap();
    away.write("while-away");

    assert!(ca(&collector, &["activate"]).status.code() == Some(2), "nothing is prepared");
    done(&ca(&collector, &["prepare"]));
    wait_confirmed(&collector, 1, 2);
    assert_eq!((one.roots(), two.roots(), away.roots()), (2, 2, 1));
    one.write("prepared");
    let again = ca(&collector, &["prepare"]);
    assert!(again.status.code() == Some(2) && String::from_utf8_lossy(&again.stderr).contains("withdraw"));

    done(&ca(&collector, &["activate"]));
    two.write("activated");
    wait_behind(&collector, &[&away.id]);
    let shown = show(&collector);
    let pins: Vec<&str> = (0..2).map(|at| shown["cas"][at]["pin"].as_str().unwrap()).collect();
    assert!(shown["cas"][0]["state"] == "active" && shown["cas"][1]["state"] == "previous", "{shown}");
    assert_eq!((&shown["cas"][0]["holders"], &shown["cas"][1]["holders"]), (&2.into(), &1.into()));
    assert!(older_line.contains(pins[1]) && line().contains(pins[0]) && pins[0] != pins[1]);
    let mut later = Host::join(folder.path(), "later", &older_line);
    later.start(&collector);
    later.write("joined-by-an-older-line");

    let refused = ca(&collector, &["retire", "--yes"]);
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.status.code() == Some(1) && text.contains(&away.id) && !text.contains(&one.id), "{text}");
    let unsure = ca(&collector, &["retire", "--force"]);
    assert!(unsure.status.code() == Some(2) && String::from_utf8_lossy(&unsure.stderr).contains("--yes"));

    // It has heard of nothing, and the collector is another process by now.
    collector.kill().unwrap();
    collector.resume().unwrap();
    away.start(&collector);
    wait_behind(&collector, &[]);
    away.write("back");
    done(&ca(&collector, &["retire", "--yes"]));
    wait_confirmed(&collector, 0, 4);
    for host in [&mut one, &mut two, &mut away, &mut later] {
        wait_for("the old root goes", || Ok((host.roots() == 1).then_some(()))).unwrap();
        host.agent.kill().unwrap();
        host.start(&collector);
        host.write("with-the-new-alone");
    }
    nothing_is_lost(&collector, &[&one, &two, &away, &later]);
    assert_eq!(
        ["ca-prepared", "ca-activated", "ca-retired"].map(|action| said(&collector, action)),
        [1, 1, 1]
    );
    assert_eq!(said(&collector, "agent-connected-twice"), 0, "coming back with a new certificate is no copy");
    // Running agents have said by which mark their host, this one, will be known at a line of the new CA.
    away.agent.kill().unwrap();
    let state = away.agent.state.display().to_string();
    let newest = collector.invitation().unwrap();
    let again = call("vidette-agent", &["join", "--again", "--json", "--state", &state], &newest).unwrap();
    assert!(done(&again).contains(&away.id), "{again:?}");
    let stranger = Host::prepare(folder.path(), "stranger");
    let error = stranger.join_by(&spare).unwrap_err();
    assert!(error.contains("another key than the pinned one"), "{error}");
}

#[test]
fn force_locks_out_the_one_that_it_names_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path(), "").unwrap();
    let line = || collector.invitation().unwrap();
    let mut here = Host::join(folder.path(), "here", &line());
    let mut away = Host::join(folder.path(), "away", &line());
    let gone = Host::join(folder.path(), "gone", &line());
    here.start(&collector);
    done(&ca(&collector, &["prepare"]));
    done(&ca(&collector, &["activate"]));
    done(&collector.vidette(&["agents", "revoke", &gone.id]).unwrap());
    wait_behind(&collector, &[&away.id]);
    let text = done(&ca(&collector, &["retire", "--force", "--yes"]));
    assert!(
        text.contains(&away.id) && text.contains("1 agents are locked out") && !text.contains(&gone.id),
        "{text}"
    );
    here.write("after");
    nothing_is_lost(&collector, &[&here]);
    away.agent.start().unwrap();
    wait_for("it is refused", || {
        let status = away.agent.status()?;
        Ok(status["transport_detail"].as_str().unwrap_or_default().contains("unknown CA").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", away.agent.said()));
    away.agent.kill().unwrap();
    let state = away.agent.state.display().to_string();
    let joined =
        call("vidette-agent", &["join", "--again", "--state", &state], &format!("{}\n", line())).unwrap();
    assert!(joined.status.success(), "{joined:?}");
}

#[test]
fn the_root_of_a_living_fleet_moves_to_a_machine_of_its_own_and_a_backup_holds_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(folder.path(), "").unwrap();
    let mut host = Host::join(folder.path(), "host", &collector.invitation().unwrap());
    host.start(&collector);
    host.write("before");
    let path = |name: &str| folder.path().join(name).display().to_string();
    done(&ca(&collector, &["prepare", "--request", &path("ca.csr")]));
    let sign =
        ["ca", "sign", "--root", &path("root"), "--request", &path("ca.csr"), "--out", &path("ca.pem")];
    done(&call("vidette", &sign, "").unwrap());
    assert!(call("vidette", &sign, "").unwrap().status.code() == Some(2), "nothing is written over");
    done(&ca(&collector, &["prepare", "--certificate", &path("ca.pem")]));
    wait_confirmed(&collector, 1, 1);
    done(&ca(&collector, &["activate"]));
    wait_behind(&collector, &[]);
    done(&ca(&collector, &["retire", "--yes"]));
    let shown = show(&collector);
    assert!(shown["cas"][0]["pin"] != shown["cas"][0]["signs"], "{shown}");

    // The state folder is lost; the backup has the CA, and the agent comes back to it.
    done(&collector.vidette(&["backup", &path("backup")]).unwrap());
    collector.kill().unwrap();
    fs::rename(&collector.state, folder.path().join("lost")).unwrap();
    let state = collector.state.display().to_string();
    done(&call("vidette", &["restore", &path("backup"), "--state", &state], "").unwrap());
    collector.resume().unwrap();
    assert_eq!(show(&collector)["cas"][0]["pin"], shown["cas"][0]["pin"]);
    let id = host.id.clone();
    wait_for("it comes back", || Ok((row(&collector, &id)["state"] == "connected").then_some(()))).unwrap();
    let mut other = Host::join(folder.path(), "other", &collector.invitation().unwrap());
    other.start(&collector);
    host.write("after");
    other.write("after");
    wait_for("events arrive", || {
        let found = collector.lines(&["events", "list", "--kind", "file", "--limit", "100"])?;
        Ok((found.iter().filter(|event| event.to_string().contains("watched/after\"")).count() >= 2)
            .then_some(()))
    })
    .unwrap();
}
