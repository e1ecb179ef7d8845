//! The services as systemd runs them, with everything that the units forbid: a system is booted in a container, in which both
//! start by themselves, work together, come back, are upgraded while they run, and are purged.
//!
//! Of the kernel's sensors the process connector is missing there: it serves the first process namespace only.

use super::rig::{Rig, build};
use anyhow::{Context, ensure};
use std::fs;
use std::process::{Child, Command, Stdio};
use vidette_tests::debian::succeed;
use vidette_tests::frozen::Frozen;
use vidette_tests::programs::{process_tree, wait_for};
use vidette_tests::samples;

/// A booted system. Dropping it pulls the plug.
struct Machine {
    container: Child,
    /// Its first process, as this machine numbers it.
    first: u32,
}

impl Machine {
    fn boot(rig: &Rig) -> anyhow::Result<Self> {
        let mut command = Command::new("systemd-nspawn");
        command.args(["--quiet", "--register=no", "--keep-unit", "--boot", "--capability=all"]);
        // Its own filter would forbid fanotify and Landlock; that of the units is the one that is tested.
        command.arg("--system-call-filter=@known").arg(format!("--machine=vidette-{}", std::process::id()));
        command.arg("--directory").arg(rig.root.path("/")).arg("systemd.unit=multi-user.target");
        let container = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("systemd-nspawn")?;
        let mut machine = Self { container, first: 0 };
        wait_for("systemd", || {
            ensure!(machine.container.try_wait()?.is_none(), "systemd-nspawn ended");
            // Its first child only makes the one that becomes the system.
            machine.first = process_tree(machine.container.id()).get(1).copied().unwrap_or(0);
            Ok(machine.run(&["systemctl", "is-active", "multi-user.target"]).ok())
        })?;
        Ok(machine)
    }

    /// In the namespaces of its first process: outside of those that a unit has for itself.
    fn command(&self, command: &[&str]) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--all", "--target", &self.first.to_string(), "--"]).args(command);
        enter.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        enter
    }

    fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        let output = succeed(&command.join(" "), &mut self.command(command))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.run(&["systemctl", "show", "--value", "--property", name, unit]).expect("shown")
    }

    /// What the units said, for a test that fails.
    fn said(&self) -> String {
        self.run(&[
            "journalctl",
            "--no-pager",
            "--lines=40",
            "--unit=vidette-agent",
            "--unit=vidette-collector",
        ])
        .unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Both run, and answer.
    fn answers(&self) {
        for command in [&["vidette", "status"][..], &["vidette-agent", "status"]] {
            wait_for(command[0], || Ok(self.run(command).ok()))
                .unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()));
        }
    }

    fn agent(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["vidette-agent", "status", "--json"]).expect("answered"))
            .expect("JSON")
    }

    /// Waits for an audit event of the agent with these words.
    fn told(&self, action: &str, words: &str) {
        let action = format!("\"{action}\"");
        wait_for(words, || {
            let all =
                self.run(&["vidette", "alerts", "list", "--kind", "audit", "--limit", "1000", "--json"])?;
            Ok(all.lines().any(|line| line.contains(&action) && line.contains(words)).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()));
    }

    /// Masked and stopped: both arrive.
    fn tells_of_its_unit(&self) {
        self.run(&["systemctl", "mask", "--runtime", "vidette-agent"]).expect("masked");
        self.run(&["systemctl", "stop", "vidette-agent"]).expect("stopped");
        self.told("tamper", "the agent's unit is masked by /run/systemd/system/vidette-agent.service");
        self.told("agent-stopped", "asked through systemd");
        assert!(self.run(&["systemctl", "start", "vidette-agent"]).is_err(), "it is masked");
        self.run(&["systemctl", "unmask", "--runtime", "vidette-agent"]).expect("unmasked");
        self.run(&["systemctl", "start", "vidette-agent"]).expect("started");
        self.answers();
    }

    /// Rules and lists are read anew by the process that runs, from within the unit.
    fn is_reloaded(&self) {
        let before = self.agent();
        self.run(&["systemctl", "reload", "vidette-agent"])
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()));
        let after = self.agent();
        let settled = |of: &serde_json::Value| of["reload"]["rules"].as_u64();
        assert_eq!((settled(&before), settled(&after)), (Some(0), Some(1)), "{after}");
        assert_eq!((&before["pid"], &before["rules"]), (&after["pid"], &after["rules"]), "{after}");
    }

    /// A stage that hangs ends the agent, and systemd starts it again.
    fn starts_anew_what_hangs(&self) {
        let inside = self.property("vidette-agent", "MainPID");
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            line.split_whitespace().next_back() == Some(&inside)
        };
        let pid = process_tree(self.first).into_iter().find(is_it).expect("the agent, from outside");
        let before = self.property("vidette-agent", "NRestarts");
        let frozen = Frozen::new(pid, "detection").expect("frozen");
        self.run(&["sh", "-c", "echo x >/srv/watched/hangs"]).expect("written");
        wait_for(
            "the watchdog",
            || Ok((self.property("vidette-agent", "NRestarts") != before).then_some(())),
        )
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()));
        drop(frozen);
        self.answers();
        assert!(self.said().contains("Watchdog timeout"), "{}", self.said());
        self.told("agent-started", "did not end in order");
    }

    fn detects(&self, rig: &Rig, count: usize) {
        // By a program of the system, which sees the file where the agent does, in another mount namespace.
        let inside = format!("/srv/watched/{count}.php");
        let content = String::from_utf8(samples::web_shell()).expect("text");
        self.run(&["sh", "-c", "printf %s \"$1\" >\"$0\"", &inside, &content]).expect("written");
        assert!(rig.root.path(&inside).is_file());
        wait_for("the detection", || {
            let found = self.run(&["vidette", "alerts", "list", "--kind", "detection", "--json"])?;
            Ok((found.lines().filter(|line| line.contains(&inside)).count() == 1).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The container outlives a systemd-nspawn that is killed: so what it started goes first.
        for process in process_tree(self.container.id()).into_iter().skip(1) {
            if let Some(process) = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

#[test]
fn systemd_runs_both_with_all_that_their_units_forbid() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = build("0.0.1", &folder.path().join("old")).expect("packages");
    let rig = Rig::new().expect("a Debian system");
    rig.install(&[&old.agent, &old.collector]).expect("installed");
    rig.configure("full").expect("configured");
    // The time of a test.
    let beside = rig.root.path("/etc/systemd/system/vidette-agent.service.d");
    fs::create_dir_all(&beside).expect("made");
    fs::write(beside.join("test.conf"), "[Service]\nWatchdogSec=8\n").expect("written");
    let machine = Machine::boot(&rig).expect("booted");
    machine.answers();
    for unit in ["vidette-agent", "vidette-collector"] {
        let states = ["Type", "ActiveState", "NRestarts"].map(|name| machine.property(unit, name));
        assert_eq!(states, ["notify", "active", "0"], "{unit}: {}", machine.said());
    }

    // The collector is nobody in particular, and its state is where systemd keeps such states.
    let collector = machine.property("vidette-collector", "MainPID");
    let user = machine.run(&["stat", "--format=%u", &format!("/proc/{collector}")]).expect("asked");
    assert!(user.parse::<u32>().expect("a number") > 60_000, "{user}");
    assert!(rig.root.path("/var/lib/private/vidette/identity").is_dir());

    let line = machine.run(&["vidette", "tokens", "create"]).expect("a token");
    // As a credential: there was none at the first start.
    let store = "mkdir -p /etc/credstore && printf %s \"$0\" >/etc/credstore/vidette.join";
    machine.run(&["sh", "-c", store, &line]).expect("written");
    machine.run(&["systemctl", "restart", "vidette-agent"]).expect("started again");
    wait_for("the connection", || Ok((machine.agent()["transport"] == "connected").then_some(())))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", machine.said()));
    let proof = wait_for("the self-test", || {
        Ok(machine.agent()["self_test"].as_str().map(str::to_owned).filter(|text| !text.is_empty()))
    });
    let proof = proof.expect("it looked");
    assert!(proof.starts_with("seen: name, content, run"), "{proof}\n{}", machine.said());
    machine.detects(&rig, 1);
    let said = machine.said();
    assert!(
        !said.contains(" ERROR ") && !said.contains("no Landlock") && !said.contains("refused, "),
        "{said}"
    );

    // It comes back, whoever ends it.
    let main = machine.property("vidette-agent", "MainPID");
    machine
        .run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "vidette-agent"])
        .expect("killed");
    wait_for("another agent", || {
        Ok((![&main[..], "0"].contains(&&machine.property("vidette-agent", "MainPID")[..])).then_some(()))
    })
    .expect("back");
    machine.answers();
    machine.detects(&rig, 2);
    machine.is_reloaded();

    replaced(&machine, &rig);
    machine.tells_of_its_unit();
    machine.starts_anew_what_hangs();

    let mains = ["vidette-agent", "vidette-collector"].map(|unit| machine.property(unit, "MainPID"));
    let new = build("0.0.2", &folder.path().join("new")).expect("packages");
    rig.copy(&[&new.agent, &new.collector]).expect("copied");
    machine.run(&["sh", "-c", "dpkg --force-unsafe-io --install /packages/*.deb"]).expect("upgraded");
    machine.answers();
    for (unit, before) in ["vidette-agent", "vidette-collector"].into_iter().zip(mains) {
        assert_ne!(machine.property(unit, "MainPID"), before, "{unit} is still the old one");
    }
    machine.detects(&rig, 4);
    assert_eq!(machine.run(&["vidette", "agents", "list", "--json"]).expect("listed").lines().count(), 1);

    machine.run(&["dpkg", "--purge", "vidette-agent", "vidette-collector"]).expect("purged");
    for path in ["/var/lib/private/vidette", "/var/lib/vidette", "/var/lib/vidette-agent", "/etc/vidette"] {
        assert!(rig.root.path(path).symlink_metadata().is_err(), "{path} is left");
    }
    assert_eq!(machine.property("vidette-agent", "LoadState"), "not-found");
}

/// As `vidette restore --help` says it for a service: the same fleet, and the hole is told.
fn replaced(machine: &Machine, rig: &Rig) {
    machine.run(&["vidette", "backup", "/root/backup"]).expect("backed up");
    machine.detects(rig, 3);
    let help = machine.run(&["vidette", "restore", "--help"]).expect("help");
    let steps: Vec<&str> = help.lines().skip_while(|line| !line.starts_with("Example")).skip(1).collect();
    let steps: Vec<&str> = steps.into_iter().skip_while(|line| !line.starts_with("  ")).collect();
    assert_eq!(steps.len(), 4, "{help}");
    let script = steps.join("\n").replace("/mnt/backup/2026-11-22", "/root/backup");
    machine.run(&["sh", "-ec", &script]).unwrap_or_else(|error| panic!("{error:#}\n{}", machine.said()));
    machine.answers();
    wait_for("the hole", || {
        let found = machine.run(&["vidette", "alerts", "list", "--kind", "gap", "--json"])?;
        Ok(found.contains("store_restored").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", machine.said()));
    assert!(rig.root.path("/var/lib/vidette").is_symlink(), "systemd did not take it over");
    assert_eq!(machine.run(&["vidette", "agents", "list", "--json"]).expect("listed").lines().count(), 1);
}
