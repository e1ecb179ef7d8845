//! Packages from the programs that the tests run with, and a collector and an agent that live in a Debian system.

use anyhow::{Context, ensure};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vidette_tests::debian::{Entry, Root, succeed};
use vidette_tests::programs::{binary, free_port, wait_for};
use vidette_tests::samples;

/// Both packages of one version.
pub(super) struct Packages {
    pub(super) agent: PathBuf,
    pub(super) collector: PathBuf,
}

/// The repository.
pub(super) fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace")
}

/// Runs `packaging/build`.
pub(super) fn build(version: &str, out: &Path) -> anyhow::Result<Packages> {
    let programs = binary("vidette")?.parent().context("a folder")?.to_path_buf();
    let mut command = Command::new(tree().join("packaging/build"));
    command.args(["--version", version, "--compression", "0", "--from"]).arg(programs).arg("--out").arg(out);
    // Somebody may commit while this runs.
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    let said = String::from_utf8(succeed("packaging/build", &mut command)?.stdout)?;
    let made: Vec<PathBuf> = said.lines().map(PathBuf::from).collect();
    let [agent, collector] = made.try_into().ok().with_context(|| format!("not two packages: {said}"))?;
    Ok(Packages { agent, collector })
}

/// A program in the system. Dropping it kills it.
pub(super) struct Running(Child);

impl Running {
    /// SIGTERM, and a clean end.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = wait_for("a clean end", || Ok(self.0.try_wait()?))?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A system with a collector and an agent, which has joined it.
pub(super) struct Rig {
    pub(super) root: Root,
    port: u16,
}

impl Rig {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { root: Root::new()?, port: free_port()? })
    }

    /// Packages of the machine to `/packages`.
    pub(super) fn copy(&self, packages: &[&Path]) -> anyhow::Result<()> {
        let folder = self.root.path("/packages");
        fs::create_dir_all(&folder)?;
        for package in packages {
            fs::copy(package, folder.join(package.file_name().context("a name")?))?;
        }
        Ok(())
    }

    /// `dpkg` with packages of the machine.
    pub(super) fn dpkg(&self, action: &str, packages: &[&Path]) -> anyhow::Result<Command> {
        self.copy(packages)?;
        let mut command = self.root.command("dpkg");
        // What is written to the disk of a test has not to survive a power loss.
        command.args(["--force-unsafe-io", action]);
        for package in packages {
            command.arg(Path::new("/packages").join(package.file_name().context("a name")?));
        }
        Ok(command)
    }

    pub(super) fn install(&self, packages: &[&Path]) -> anyhow::Result<()> {
        succeed("dpkg --install", &mut self.dpkg("--install", packages)?)?;
        Ok(fs::remove_dir_all(self.root.path("/packages"))?)
    }

    /// Settings of a test: a free port, one watched folder, nothing else of the machine.
    pub(super) fn configure(&self, level: &str) -> anyhow::Result<()> {
        let port = self.port;
        let collector = format!("listen = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\n");
        fs::write(self.root.path("/etc/vidette/collector.toml"), collector)?;
        fs::create_dir_all(self.root.path("/srv/watched"))?;
        let agent = format!(
            "[sensors]\nwatch = [\"/srv/watched\"]\nlevel = \"{level}\"\n[sweep]\nevery_h = 0\nafter_rules_change = false\n"
        );
        Ok(fs::write(self.root.path("/etc/vidette/agent.toml"), agent)?)
    }

    fn start(&self, program: &str, command: &str) -> anyhow::Result<Running> {
        let log = self.root.path(&format!("/tmp/{program}.log"));
        let errors = fs::File::options().create(true).append(true).open(&log)?;
        let mut call = self.root.command(program);
        call.arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut running = Running(call.spawn()?);
        wait_for(program, || {
            if let Some(status) = running.0.try_wait()? {
                anyhow::bail!("{program} ended with {status}: {}", fs::read_to_string(&log)?);
            }
            Ok(self.root.run(program, &["status"]).ok())
        })?;
        Ok(running)
    }

    /// Starts the collector and waits until it answers.
    pub(super) fn collector(&self) -> anyhow::Result<Running> {
        self.start("vidette", "serve")
    }

    /// Starts the agent and waits until it answers.
    pub(super) fn agent(&self) -> anyhow::Result<Running> {
        self.start("vidette-agent", "run")
    }

    /// Enrols the agent with the collector that runs.
    pub(super) fn join(&self) -> anyhow::Result<()> {
        let line = self.root.run("vidette", &["tokens", "create"])?;
        let mut join = self.root.command("vidette-agent");
        let mut child = join.arg("join").stdin(Stdio::piped()).spawn()?;
        child.stdin.take().context("a pipe")?.write_all(line.as_bytes())?;
        ensure!(child.wait()?.success(), "the agent could not join");
        Ok(())
    }

    /// Writes a file that is a detection, and waits until it is the collector's `count`-th.
    pub(super) fn detect(&self, name: &str, count: usize) -> anyhow::Result<()> {
        fs::write(self.root.path("/srv/watched").join(name), samples::web_shell())?;
        wait_for("the detection", || {
            let found = self.root.run("vidette", &["alerts", "list", "--kind", "detection", "--json"])?;
            Ok((found.lines().count() >= count).then_some(()))
        })
    }

    /// The agent's name for itself, as the collector lists it: exactly one.
    pub(super) fn identity(&self) -> anyhow::Result<String> {
        let listed = self.root.run("vidette", &["agents", "list", "--json"])?;
        ensure!(listed.lines().count() == 1, "not one agent: {listed}");
        let agent: serde_json::Value = serde_json::from_str(&listed)?;
        Ok(agent["id"].as_str().context("an id")?.to_owned())
    }

    /// Everything that an upgrade must leave alone: identity, outbox, store, settings.
    pub(super) fn kept(&self) -> anyhow::Result<Vec<Entry>> {
        let mut kept = Vec::new();
        for folder in ["/var/lib/vidette-agent", "/var/lib/vidette", "/etc/vidette"] {
            let found = self.root.entries(folder)?;
            ensure!(found.len() > 1, "{folder} is empty");
            kept.extend(found);
        }
        // dpkg keeps a new settings file there for as long as it is at work.
        kept.retain(|entry| !entry.path.ends_with(".dpkg-new"));
        Ok(kept)
    }
}
