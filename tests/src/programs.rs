//! Agent and collector as real processes in a folder of the test's own. Dropping one kills it.

use anyhow::{Context, bail, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to come up, or an event to arrive, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const FREE_PORT_TRIES: usize = 100;

/// The built binaries, which lie beside the test's own.
///
/// # Errors
/// When they are not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("`{name}` is not built: run `cargo build --workspace --bins` first"))
}

/// Runs a command of a program to its end.
///
/// # Errors
/// When it can't be started.
pub fn call(name: &str, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
    let mut child = Command::new(binary(name)?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {name}"))?;
    // A program that does not read its input is no error of ours.
    let _ = child.stdin.take().context("a pipe")?.write_all(input.as_bytes());
    Ok(child.wait_with_output()?)
}

/// Waits until `ready` gives something.
///
/// # Errors
/// When that takes longer than [`PATIENCE`], with `what` in the sentence.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(POLL);
    }
}

/// A port that nobody used a moment ago, below those that the system hands out by itself (ip(7),
/// `ip_local_port_range`): nobody else gets it while its program is down.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..FREE_PORT_TRIES {
        let port = rand::random_range(10_000..32_768);
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port found")
}

/// One running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// What it said on standard error, kept over restarts.
    pub log: PathBuf,
}

impl Program {
    fn start(name: &str, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        Self::start_in(name, arguments, log, &[])
    }

    fn start_in(
        name: &str,
        arguments: &[&str],
        log: &Path,
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let errors = File::options().create(true).append(true).open(log)?;
        let child = Command::new(binary(name)?)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, now.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        let _ = self.child.kill();
        Ok(self.child.wait()?)
    }

    /// SIGTERM, and its exit status.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        wait_for("a clean end", || Ok(self.child.try_wait()?))
    }

    /// Its exit status, when it has ended.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Everything it said so far.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Resident memory. Bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        memory_bytes(self.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process, from `/proc/PID/status`. Bytes; 0 when it is gone.
#[must_use]
pub fn memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// A process and all that it started, from `/proc/PID/task/TID/children` (proc_tid_children(5)): what is seen of a moment,
/// while processes come and go.
#[must_use]
pub fn process_tree(pid: u32) -> Vec<u32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while let Some(parent) = tree.get(next) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children: Vec<u32> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
            .collect();
        tree.extend(children);
        next += 1;
    }
    tree
}

/// A collector with its own state folder and port.
#[derive(Debug)]
pub struct Collector {
    /// Its process; `None` while it is down.
    pub program: Option<Program>,
    /// Its state folder.
    pub state: PathBuf,
    /// Where agents reach it.
    pub port: u16,
    config: PathBuf,
    log: PathBuf,
}

impl Collector {
    /// Starts one below `folder`, with `sinks` as further configuration, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the sentence holds what it said.
    pub fn start(folder: &Path, sinks: &str) -> anyhow::Result<Self> {
        let port = free_port()?;
        let config = folder.join("collector.toml");
        fs::write(
            &config,
            format!("listen = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\n{sinks}"),
        )?;
        let mut collector = Self {
            program: None,
            state: folder.join("collector"),
            port,
            config,
            log: folder.join("collector.log"),
        };
        collector.resume()?;
        Ok(collector)
    }

    /// Starts it again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let (state, config) = (self.state.display().to_string(), self.config.display().to_string());
        self.program =
            Some(Program::start("vidette", &["serve", "--state", &state, "--config", &config], &self.log)?);
        wait_for("the collector", || {
            if let Some(status) = self.program.as_mut().context("started")?.ended()? {
                bail!("the collector ended with {status}: {}", self.said());
            }
            Ok(self.vidette(&["status", "--json"])?.status.success().then_some(()))
        })
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut program) = self.program.take() {
            program.kill()?;
        }
        Ok(())
    }

    /// Runs `vidette` with `arguments` against this collector.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn vidette(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let state = self.state.display().to_string();
        let all: Vec<&str> = arguments.iter().copied().chain(["--state", &state]).collect();
        call("vidette", &all, "")
    }

    /// The JSON lines that a command prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn lines(&self, arguments: &[&str]) -> anyhow::Result<Vec<serde_json::Value>> {
        let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let output = self.vidette(&all)?;
        ensure!(
            output.status.success(),
            "vidette {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// A line that enrols one host.
    ///
    /// # Errors
    /// When none is given.
    pub fn invitation(&self) -> anyhow::Result<String> {
        let output = self.vidette(&["tokens", "create"])?;
        ensure!(output.status.success(), "tokens create: {}", String::from_utf8_lossy(&output.stderr));
        let line = String::from_utf8(output.stdout)?;
        let start = line.find("vidette://").with_context(|| format!("no invitation in {line}"))?;
        let rest = &line[start..];
        Ok(rest[..rest.find(['\'', '"', ' ', '\n']).unwrap_or(rest.len())].to_owned())
    }

    /// Everything it said so far.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// An agent with its own state folder, which watches one folder.
#[derive(Debug)]
pub struct Agent {
    /// Its process; `None` while it is down.
    pub program: Option<Program>,
    /// Its state folder.
    pub state: PathBuf,
    /// What it finds in its environment, beside the test's own.
    pub environment: Vec<(String, String)>,
    config: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Prepares one below `folder` that watches `watched`; `settings` is further configuration, by table.
    ///
    /// # Errors
    /// When its files can't be written.
    pub fn prepare(folder: &Path, watched: &Path, sensors: &str, tables: &str) -> anyhow::Result<Self> {
        let config = folder.join("agent.toml");
        fs::write(
            &config,
            format!("[sensors]\nwatch = [{:?}]\n{sensors}\n{tables}", watched.display().to_string()),
        )?;
        let (state, log) = (folder.join("agent"), folder.join("agent.log"));
        Ok(Self { program: None, state, environment: Vec::new(), config, log })
    }

    /// Enrols it.
    ///
    /// # Errors
    /// When it is refused; the sentence holds what it said.
    pub fn join(&self, invitation: &str) -> anyhow::Result<()> {
        let state = self.state.display().to_string();
        let output = call("vidette-agent", &["join", "--state", &state], &format!("{invitation}\n"))?;
        ensure!(output.status.success(), "join: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Starts it and waits until its sensors work.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let (state, config) = (self.state.display().to_string(), self.config.display().to_string());
        self.program = Some(Program::start_in(
            "vidette-agent",
            &["run", "--state", &state, "--config", &config],
            &self.log,
            &self.environment,
        )?);
        wait_for("the agent", || {
            if let Some(status) = self.program.as_mut().context("started")?.ended()? {
                bail!("the agent ended with {status}: {}", self.said());
            }
            Ok(self.status().ok())
        })?;
        Ok(())
    }

    /// What `vidette-agent status --json` says.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        let state = self.state.display().to_string();
        let output = call("vidette-agent", &["status", "--json", "--state", &state], "")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut program) = self.program.take() {
            program.kill()?;
        }
        Ok(())
    }

    /// Everything it said so far.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}
