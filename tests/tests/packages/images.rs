//! The container images: built from the packages, and run by a real engine with exactly the rights that
//! `packaging/image/kubernetes.yaml` gives. An agent in a container sees what the host does.

use super::rig::{build, tree};
use anyhow::{Context, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use vidette_tests::debian::{Root, succeed};
use vidette_tests::programs::{free_port, wait_for};
use vidette_tests::samples;

/// Images and containers of this test alone; all go with it.
struct Engine {
    folder: TempDir,
    /// No more than this process may have itself: more can't be given without CAP_SYS_RESOURCE.
    files_max: u64,
}

impl Engine {
    fn new() -> anyhow::Result<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Ok(Self { folder: tempfile::tempdir()?, files_max: limit.maximum.unwrap_or(1024).min(4096) })
    }

    fn podman(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.folder.path().join("store"));
        command.arg("--runroot").arg(self.folder.path().join("run"));
        command.args(["--events-backend", "file", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = succeed(&format!("podman {arguments:?}"), &mut self.podman(arguments))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A base as `debian:bookworm-slim` is one.
    fn import(&self, root: &Root) -> anyhow::Result<()> {
        let archive = self.folder.path().join("base.tar");
        let mut tar = Command::new("tar");
        tar.arg("--create").arg("--file").arg(&archive).arg("--directory").arg(root.path("/")).arg(".");
        succeed("tar", &mut tar)?;
        self.run(&["import", &archive.display().to_string(), "localhost/base"])?;
        Ok(fs::remove_file(archive)?)
    }

    fn image(&self, name: &str, packages: &Path) -> anyhow::Result<()> {
        let file = tree().join(format!("packaging/image/{name}.Containerfile")).display().to_string();
        let mut command =
            self.podman(&["build", "--isolation", "chroot", "--build-arg", "BASE=localhost/base"]);
        command.args(["--file", &file, "--tag", &format!("vidette-{name}")]).arg(packages);
        succeed(&format!("the image of the {name}"), &mut command)?;
        Ok(())
    }

    /// A container in the background, with what is the same for both: the machine's network, nothing of it to write on,
    /// no capability but those named.
    fn start(&self, name: &str, capabilities: &[&str], more: &[&str], then: &[&str]) -> anyhow::Result<()> {
        let files = format!("nofile={0}:{0}", self.files_max);
        let mut arguments = vec!["run", "--detach", "--name", name, "--network", "host", "--read-only"];
        arguments.extend([
            "--security-opt",
            "no-new-privileges",
            "--ulimit",
            &files,
            "--ulimit",
            "nproc=4096:4096",
        ]);
        arguments.extend(["--cap-drop", "all"]);
        capabilities.iter().for_each(|one| arguments.extend(["--cap-add", *one]));
        arguments.extend(more);
        let image = format!("vidette-{name}");
        arguments.push(&image);
        arguments.extend(then);
        self.run(&arguments)?;
        Ok(())
    }

    fn logs(&self, name: &str) -> String {
        let output = self.podman(&["logs", name]).output();
        output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.podman(&["rm", "--all", "--force", "--time", "2"]).output();
        let _ = self.podman(&["volume", "rm", "--all", "--force"]).output();
        let _ = self.podman(&["rmi", "--all", "--force"]).output();
        // Overlays that are still mounted would keep the folder.
        let store = self.folder.path().join("store/overlay");
        let _ = Command::new("umount").arg(store).output();
    }
}

/// What the DaemonSet adds: the same as the unit.
fn capabilities() -> Vec<String> {
    let read = |name: &str| fs::read_to_string(tree().join("packaging").join(name)).expect("a file");
    let (unit, cluster) = (read("vidette-agent.service"), read("image/kubernetes.yaml"));
    let unit = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a list");
    let cluster = cluster.lines().find_map(|line| line.trim().strip_prefix("add: [")).expect("a list");
    let cluster: Vec<String> = cluster.trim_end_matches(']').split(", ").map(str::to_owned).collect();
    let unit: Vec<&str> = unit.split_whitespace().filter_map(|name| name.strip_prefix("CAP_")).collect();
    assert_eq!(cluster, unit, "unit and DaemonSet give different capabilities");
    cluster
}

#[test]
fn the_images_work_with_the_rights_that_a_cluster_gives() {
    if let Err(error) = images() {
        panic!("{error:#}");
    }
}

fn images() -> anyhow::Result<()> {
    let engine = Engine::new()?;
    let out = tempfile::tempdir()?;
    build("0.1.0", out.path())?;
    engine.import(&Root::new()?)?;
    engine.image("collector", out.path())?;
    engine.image("agent", out.path())?;

    let listen = format!("127.0.0.1:{}", free_port()?);
    engine.start(
        "collector",
        &[],
        &["--volume", "collector:/var/lib/vidette"],
        &["serve", "--listen", &listen],
    )?;
    let line = wait_for("the collector", || {
        Ok(engine.run(&["exec", "collector", "vidette", "tokens", "create"]).ok())
    })
    .with_context(|| engine.logs("collector"))?;

    let host = tempfile::tempdir()?;
    let host = host.path().canonicalize()?;
    let (secrets, watched) = (host.join("secrets"), host.join("watched"));
    fs::create_dir_all(&secrets)?;
    fs::create_dir_all(&watched)?;
    fs::write(secrets.join("vidette.join"), line)?;
    let settings = format!(
        "[sensors]\nwatch = [\"/host{}\"]\n[sweep]\nevery_h = 0\nafter_rules_change = false\n",
        watched.display()
    );
    fs::write(host.join("agent.toml"), settings)?;
    let (secrets, settings) = (
        format!("{}:/run/secrets/vidette:ro", secrets.display()),
        format!("{}:/etc/vidette/agent.toml:ro", host.join("agent.toml").display()),
    );
    let mut more =
        vec!["--pid", "host", "--volume", "/:/host:ro,rslave", "--volume", "agent:/var/lib/vidette-agent"];
    more.extend(["--volume", &secrets, "--volume", &settings]);
    let rights = capabilities();
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    engine.start("agent", &rights, &more, &[])?;
    let status = wait_for("the agent", || {
        let said = engine.run(&["exec", "agent", "vidette-agent", "status", "--json"]);
        let said: Option<serde_json::Value> = said.ok().and_then(|said| serde_json::from_str(&said).ok());
        Ok(said.filter(|status| status["self_test"].as_str().is_some_and(|proof| !proof.is_empty())))
    })
    .with_context(|| engine.logs("agent"))?;
    ensure!(status["level"] == "full", "{status}\n{}", engine.logs("agent"));

    // By this process, which is in no container.
    fs::write(watched.join("page.php"), samples::web_shell())?;
    let found = wait_for("the detection", || {
        let list = ["exec", "collector", "vidette", "alerts", "list", "--kind", "detection", "--json"];
        Ok(engine.run(&list).ok().filter(|found| !found.trim().is_empty()))
    })
    .with_context(|| engine.logs("agent"))?;
    let path = format!("/host{}", watched.join("page.php").display());
    ensure!(found.contains(&path), "{found}");
    // What engines lay over parts of /proc and /sys. Of mounts elsewhere other tests may make a trouble.
    let health =
        engine.run(&["exec", "collector", "vidette", "events", "list", "--kind", "health", "--json"])?;
    let trouble = health.lines().find(|line| {
        line.contains("mounts is degraded") && (line.contains("/proc/") || line.contains("/sys/"))
    });
    ensure!(trouble.is_none(), "a container's own mounts are a trouble: {trouble:?}");

    engine.run(&["stop", "--time", "20", "agent", "collector"])?;
    for name in ["agent", "collector"] {
        let code = engine.run(&["inspect", "--format", "{{.State.ExitCode}}", name])?;
        ensure!(code.trim() == "0", "{name} ended with {code}: {}", engine.logs(name));
    }
    Ok(())
}
