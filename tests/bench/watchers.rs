//! Who watches while the work is done: nobody, the agent, and its peers, all watching the same folder and every program
//! that is run. Each is started for one turn and leaves nothing behind, also when the turn fails.

use anyhow::{Context, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vidette_tests::programs::{Agent, wait_for};

/// A watcher that used less CPU than a clock tick in this time has nothing left to do.
const QUIET: Duration = Duration::from_millis(1500);
/// How long one waits for that: on a host that does other work, some watchers never rest.
const QUIET_WAIT: Duration = Duration::from_secs(30);
/// Key of the audit rules that are ours.
const KEY: &str = "vidette-bench";
/// Records that the kernel may hold for auditd: the figure that distributions ship with rules.
const AUDIT_BACKLOG: &str = "8192";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Nobody,
    AgentEmpty,
    AgentRules,
    Auditd,
    Fatrace,
    Clamonacc,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Nobody, Self::AgentEmpty, Self::AgentRules, Self::Auditd, Self::Fatrace, Self::Clamonacc];

    /// For a table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::AgentEmpty => "vidette-agent, no rules",
            Self::AgentRules => "vidette-agent, the rules that ship",
            Self::Auditd => "auditd",
            Self::Fatrace => "fatrace",
            Self::Clamonacc => "clamonacc, one signature",
        }
    }

    /// For a command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::AgentEmpty => "agent-empty",
            Self::AgentRules => "agent-rules",
            Self::Auditd => "auditd",
            Self::Fatrace => "fatrace",
            Self::Clamonacc => "clamonacc",
        }
    }

    pub(crate) fn is_agent(self) -> bool {
        matches!(self, Self::AgentEmpty | Self::AgentRules)
    }

    /// Whether it can be measured here.
    pub(crate) fn is_possible(self) -> anyhow::Result<()> {
        match self {
            Self::Nobody | Self::AgentEmpty | Self::AgentRules => Ok(()),
            Self::Auditd => {
                needs("auditd", "auditd")?;
                let status = output(Command::new("auditctl").arg("-s"))?;
                ensure!(setting(&status, "enabled") != Some(2), "the audit rules of this host are locked");
                ensure!(setting(&status, "pid") == Some(0), "an auditd runs on this host already: stop it");
                Ok(())
            }
            Self::Fatrace => needs("fatrace", "fatrace"),
            Self::Clamonacc => {
                needs("clamonacc", "clamav-daemon").and_then(|()| needs("clamd", "clamav-daemon"))
            }
        }
    }
}

/// What a watcher used, from its start or between two moments.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    /// Resident at the earlier moment, all its processes together.
    pub(crate) before_mib: f64,
    /// The most of each of its processes since they started, together.
    pub(crate) peak_mib: f64,
    /// The agent's reader: events that it read, and its CPU.
    pub(crate) events: u64,
    reader_ns: u64,
}

impl Usage {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            before_mib: before.before_mib,
            peak_mib: self.peak_mib,
            events: self.events.saturating_sub(before.events),
            reader_ns: self.reader_ns.saturating_sub(before.reader_ns),
        }
    }

    pub(crate) fn reader_us_each(&self) -> f64 {
        self.reader_ns as f64 / 1000.0 / self.events.max(1) as f64
    }
}

/// One that runs.
pub(crate) struct Watcher {
    kind: Kind,
    agent: Option<Agent>,
    /// Stopped from the last to the first.
    children: Vec<Child>,
    /// What it writes, which must not stay empty.
    evidence: Option<PathBuf>,
    /// Its configuration and its output.
    folder: PathBuf,
    audit: Option<AuditRules>,
}

impl Watcher {
    pub(crate) fn start(kind: Kind, folder: &Path, watched: &Path) -> anyhow::Result<Self> {
        let own = folder.join(kind.word());
        if own.exists() {
            fs::remove_dir_all(&own)?;
        }
        fs::create_dir(&own)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        let mut watcher =
            Self { kind, agent: None, children: Vec::new(), evidence: None, folder: own, audit: None };
        match kind {
            Kind::Nobody => {}
            Kind::AgentEmpty => watcher.agent(watched, "[detection]\nbuiltin_rules = false\n")?,
            Kind::AgentRules => watcher.agent(watched, "")?,
            Kind::Auditd => watcher.auditd(watched)?,
            Kind::Fatrace => watcher.fatrace(watched)?,
            Kind::Clamonacc => watcher.clamonacc(watched)?,
        }
        Ok(watcher)
    }

    /// Not joined: events stay in its outbox. Telemetry is on.
    fn agent(&mut self, watched: &Path, tables: &str) -> anyhow::Result<()> {
        let mut agent = Agent::prepare(&self.folder, watched, "", tables)?;
        agent.start()?;
        self.agent = Some(agent);
        Ok(())
    }

    fn auditd(&mut self, watched: &Path) -> anyhow::Result<()> {
        let log = self.folder.join("audit.log");
        let config = format!(
            "log_file = {}\nwrite_logs = yes\nlog_format = ENRICHED\nflush = INCREMENTAL_ASYNC\nfreq = 50\nmax_log_file = 4000\n\
             max_log_file_action = IGNORE\nspace_left = 75\nspace_left_action = IGNORE\nadmin_space_left = 50\n\
             admin_space_left_action = IGNORE\ndisk_full_action = IGNORE\ndisk_error_action = IGNORE\npriority_boost = 4\n",
            log.display()
        );
        let path = self.folder.join("auditd.conf");
        fs::write(&path, config)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        self.spawn("auditd", &["-n", "-c", &self.folder.display().to_string()])?;
        self.audit = Some(AuditRules::before()?);
        let watched = watched.display().to_string();
        wait_for("auditd", || {
            let status = output(Command::new("auditctl").arg("-s"))?;
            Ok((setting(&status, "pid") != Some(0)).then_some(()))
        })?;
        let rules: [&[&str]; 4] = [
            &["-b", AUDIT_BACKLOG],
            &["-w", &watched, "-p", "wa", "-k", KEY],
            &["-a", "always,exit", "-F", "arch=b64", "-S", "execve,execveat", "-k", KEY],
            &["-e", "1"],
        ];
        for rule in rules {
            output(Command::new("auditctl").args(rule))?;
        }
        self.evidence = Some(log);
        Ok(())
    }

    fn fatrace(&mut self, watched: &Path) -> anyhow::Result<()> {
        let out = self.folder.join("out");
        let path = out.display().to_string();
        let child = Command::new("fatrace")
            .args(["--current-mount", "--timestamp", "--output", &path])
            .current_dir(watched)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        self.children.push(child);
        self.evidence = Some(out);
        Ok(())
    }

    /// On access without prevention, as it is shipped, with a database of one signature.
    fn clamonacc(&mut self, watched: &Path) -> anyhow::Result<()> {
        let own = self.folder.clone();
        let at = |name: &str| own.join(name);
        let (database, config, log) = (at("database"), at("clamd.conf"), at("clamonacc.log"));
        fs::create_dir(&database)?;
        fs::write(database.join("bench.ndb"), "Bench.Nothing:0:*:7669646574746562656e63686e6f7468696e67\n")?;
        let text = format!(
            "DatabaseDirectory {}\nLocalSocket {}\nLocalSocketMode 666\nUser clamav\nLogFile {}\nForeground yes\n\
             OnAccessIncludePath {}\nOnAccessPrevention no\nOnAccessExcludeUname clamav\nOnAccessExtraScanning yes\n",
            database.display(),
            at("clamd.sock").display(),
            at("clamd.log").display(),
            watched.display()
        );
        fs::write(&config, text)?;
        output(Command::new("chown").args(["-R", "clamav"]).arg(&self.folder))?;
        let config = config.display().to_string();
        self.spawn("clamd", &["--config-file", &config])?;
        let socket = at("clamd.sock");
        wait_for("clamd", || Ok(socket.exists().then_some(())))?;
        let log = log.display().to_string();
        self.spawn("clamonacc", &["--foreground", "--fdpass", "--config-file", &config, "--log", &log])?;
        self.evidence = Some(log.into());
        Ok(())
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let errors = fs::File::create(self.folder.join(format!("{program}.err")))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("could not start {program}"))?;
        self.children.push(child);
        Ok(())
    }

    fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let mut pids: Vec<u32> = self.children.iter().map(Child::id).collect();
        if let Some(agent) = &self.agent {
            pids.push(agent.program.as_ref().context("the agent runs")?.pid());
            let worker = agent.status()?["worker_pid"].as_u64();
            pids.extend(worker.and_then(|pid| u32::try_from(pid).ok()));
        }
        if self.audit.is_some() {
            pids.extend(kernel_thread("kauditd"));
        }
        Ok(pids)
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let pids = self.pids()?;
        let mut usage = Usage::default();
        for pid in pids {
            usage.cpu_s += cpu_s(pid);
            usage.before_mib += memory_mib(pid, "VmRSS:");
            usage.peak_mib += memory_mib(pid, "VmHWM:");
        }
        if let Some(agent) = &self.agent {
            let pid = agent.program.as_ref().context("the agent runs")?.pid();
            usage.events = agent.status()?["counters"]["sensor_seen"].as_u64().unwrap_or(0);
            usage.reader_ns = thread_ns(pid, "sensors")?;
        }
        Ok(usage)
    }

    /// Until it has worked off what it saw, so that a work is not charged for the one before it.
    pub(crate) fn rest(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended with {status}; what it said is in its folder", self.kind.name());
            }
        }
        let pids = self.pids()?;
        let start = Instant::now();
        let total = || pids.iter().map(|pid| cpu_s(*pid)).sum::<f64>();
        let mut before = total();
        loop {
            std::thread::sleep(QUIET);
            let now = total();
            if now - before < 0.02 {
                return Ok(());
            }
            if start.elapsed() > QUIET_WAIT {
                eprintln!("{} does not come to rest: is the host busy otherwise?", self.kind.name());
                return Ok(());
            }
            before = now;
        }
    }

    /// Ends it, after a check that it saw something.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            let seen = agent.status()?["counters"]["sensor_passed"].as_u64().unwrap_or(0);
            ensure!(seen > 0, "the agent saw nothing");
            agent.program.take().context("the agent runs")?.stop()?;
        }
        if let Some(path) = &self.evidence {
            let length = fs::metadata(path).map_or(0, |stat| stat.len());
            ensure!(length > 0, "{} saw nothing: {} is empty", self.kind.name(), path.display());
        }
        Ok(()) // the rest is in Drop
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.audit.take());
        for child in self.children.iter_mut().rev() {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let end = Instant::now() + Duration::from_secs(10);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Takes our rules away and puts back what was set before.
struct AuditRules {
    enabled: u64,
    backlog: u64,
}

impl AuditRules {
    fn before() -> anyhow::Result<Self> {
        let status = output(Command::new("auditctl").arg("-s"))?;
        let of = |name| setting(&status, name).with_context(|| format!("auditctl -s does not say `{name}`"));
        Ok(Self { enabled: of("enabled")?, backlog: of("backlog_limit")? })
    }
}

impl Drop for AuditRules {
    fn drop(&mut self) {
        for arguments in [
            ["-D", "-k", KEY].map(str::to_owned).to_vec(),
            vec!["-b".into(), self.backlog.to_string()],
            vec!["-e".into(), self.enabled.to_string()],
        ] {
            if let Err(error) = output(Command::new("auditctl").args(&arguments)) {
                eprintln!("could not undo: auditctl {}: {error:#}", arguments.join(" "));
            }
        }
    }
}

fn needs(program: &str, package: &str) -> anyhow::Result<()> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    ensure!(
        folders.iter().any(|folder| Path::new(folder).join(program).is_file()),
        "`{program}` is not installed (Debian: apt-get install {package})"
    );
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// A line `name number` of `auditctl -s`.
fn setting(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn kernel_thread(name: &str) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim() == name).then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    })
}

/// User and system time of a process and of its children that ended (proc_pid_stat(5), fields 14 to 17). Seconds.
fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = rest.split_whitespace().skip(11).take(4).map(|field| field.parse().unwrap_or(0)).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn memory_mib(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// Time on a CPU of the thread with this name: `/proc/PID/task/TID/schedstat`, first figure. Nanoseconds.
fn thread_ns(pid: u32, name: &str) -> anyhow::Result<u64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == name {
            let text = fs::read_to_string(task.join("schedstat"))?;
            return text.split_whitespace().next().and_then(|first| first.parse().ok()).context("schedstat");
        }
    }
    bail!("the agent has no thread `{name}`")
}
