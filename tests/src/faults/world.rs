//! Agent and collector as the campaign runs them: under the shim, at the two ends of a cable, started again when they die.

use super::daemon::{Daemon, Setup, Side};
use super::link::Link;
use super::oracle::{Oracle, Stored, Verdict};
use super::shim;
use crate::programs::{free_port, wait_for};
use crate::samples;
use anyhow::{Context, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long it may take after the last fault until everything is stored.
pub const CONVERGE_MAX: Duration = Duration::from_secs(150);
/// Between two looks at what is stored.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// More than a round makes.
const EVENTS_MAX: &str = "1000000";
/// Backed-up states lie in this folder of the world.
const BACKUP: &str = "backup";

/// The two programs, the cable, the list.
#[derive(Debug)]
pub struct World {
    /// The agent.
    pub agent: Daemon,
    /// The collector.
    pub collector: Daemon,
    /// Between them.
    pub link: Link,
    /// What was written.
    pub oracle: Oracle,
    /// Samples known as lost, and detections known as stored two times: explained in an earlier cycle.
    pub known: (u64, u64),
    /// Writes that cuts of power have undone.
    pub undone: u64,
    /// The furthest that the collector's wall clock has been ahead. Nanoseconds.
    pub furthest_ns: i64,
    library: PathBuf,
    watched: PathBuf,
    plain: usize,
    scratch: usize,
    // Last, so that it outlives what runs in it.
    folder: TempDir,
}

impl World {
    /// Makes one with empty states, and joins the agent to the collector.
    ///
    /// # Errors
    /// When a program does not come up; the sentence holds what it said.
    pub fn make() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("vidette-faults-").tempdir()?;
        let root = folder.path().canonicalize()?;
        let library = shim::compile(&root)?;
        let link = Link::lay()?;
        let watched = root.join("host");
        fs::create_dir(&watched)?;
        let address = format!("{}:{}", link.collector(), free_port()?);
        fs::write(
            root.join("collector.toml"),
            format!("listen = \"{address}\"\nadvertise = \"{address}\"\n"),
        )?;
        fs::write(root.join("agent.toml"), agent_settings(&watched))?;
        let namespace = Some(link.namespace());
        let mut world = Self {
            agent: Daemon::prepare(&root, setup(Side::Agent, &root, &library, None))?,
            collector: Daemon::prepare(&root, setup(Side::Collector, &root, &library, namespace))?,
            link,
            oracle: Oracle::default(),
            known: (0, 0),
            undone: 0,
            furthest_ns: 0,
            library,
            watched,
            plain: 0,
            scratch: 0,
            folder,
        };
        world.collector.start()?;
        world.until_they_answer()?;
        let invitation = invitation(&world.collector)?;
        world.agent.tell(&["join"], &format!("{invitation}\n"))?;
        world.agent.start()?;
        world.until_they_answer()?;
        Ok(world)
    }

    /// One of the two.
    pub fn daemon(&mut self, side: Side) -> &mut Daemon {
        match side {
            Side::Agent => &mut self.agent,
            Side::Collector => &mut self.collector,
        }
    }

    /// Starts what died.
    ///
    /// # Errors
    /// When a program can't be started.
    pub fn supervise(&mut self) -> anyhow::Result<()> {
        self.agent.supervise()?;
        self.collector.supervise()
    }

    /// Waits until those that are wanted answer.
    ///
    /// # Errors
    /// When they don't.
    pub fn until_they_answer(&mut self) -> anyhow::Result<()> {
        let answer = wait_for("both programs", || {
            self.supervise()?;
            let up = |daemon: &Daemon| Ok::<_, anyhow::Error>(!daemon.is_wanted() || daemon.answers()?);
            Ok((up(&self.agent)? && up(&self.collector)?).then_some(()))
        });
        answer.with_context(|| self.said())
    }

    /// Writes samples, each of its own content, and plain files, for a while.
    ///
    /// # Errors
    /// When the watched folder can't be written.
    pub fn write_for(&mut self, random: &mut StdRng, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.write_one(random)?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
            self.supervise()?;
        }
        Ok(())
    }

    /// Writes one sample, and some plain files.
    ///
    /// # Errors
    /// When the watched folder can't be written.
    pub fn write_one(&mut self, random: &mut StdRng) -> anyhow::Result<()> {
        let number = self.oracle.written();
        let path = self.watched.join(format!("sample-{number}"));
        let mut bytes = samples::eicar();
        bytes.extend(format!("\n{number}\n").as_bytes());
        fs::write(&path, bytes)?;
        self.oracle.wrote(path.display().to_string());
        for _ in 0..random.random_range(0..3) {
            self.plain += 1;
            fs::write(self.watched.join(format!("plain-{}", self.plain)), samples::control())?;
        }
        Ok(())
    }

    /// What is stored now; `None` while the collector does not answer.
    ///
    /// # Errors
    /// When its answer can't be read.
    pub fn stored(&self) -> anyhow::Result<Option<Stored>> {
        let text = self.collector.ask(&["events", "list", "--json", "--limit", EVENTS_MAX])?;
        text.map(|text| Stored::read(&text)).transpose()
    }

    /// Waits until nothing is missing, and judges.
    ///
    /// # Errors
    /// When something is still missing after [`CONVERGE_MAX`].
    pub fn converge(&mut self) -> anyhow::Result<Verdict> {
        let start = Instant::now();
        loop {
            self.supervise()?;
            let said = self.collector.files_named(&["was set aside", "can't be read and is passed over"]);
            // Before what is stored is read: what is on its way now is seen there, or waits.
            let waits = self.waiting()?;
            if let Some(stored) = self.stored()? {
                self.oracle.hear(&stored, said);
                let missing = self.oracle.missing(&stored).len();
                if missing == 0 && (waits == Some(0) || !self.oracle.excuses(&stored)) {
                    self.oracle.see(&stored);
                    return Ok(self.oracle.judge(&stored));
                }
                if start.elapsed() > CONVERGE_MAX {
                    let some: Vec<_> = self.oracle.missing(&stored).into_iter().take(5).collect();
                    bail!("{missing} samples are not stored, among them {some:?}\n{}", self.said());
                }
            }
            ensure!(start.elapsed() < 2 * CONVERGE_MAX, "the collector does not answer\n{}", self.said());
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// At the end of a round: waits until the agent holds nothing any more, and judges a last time.
    ///
    /// # Errors
    /// When something still waits after [`CONVERGE_MAX`].
    pub fn finish(&mut self) -> anyhow::Result<(Verdict, usize)> {
        let start = Instant::now();
        while self.waiting()? != Some(0) {
            ensure!(start.elapsed() < CONVERGE_MAX, "the outbox does not run dry\n{}", self.said());
            std::thread::sleep(LOOK_INTERVAL);
            self.supervise()?;
        }
        let stored = self.stored()?.context("the collector does not answer")?;
        Ok((self.oracle.judge(&stored), stored.events()))
    }

    /// Events in the agent's outbox; `None` while it does not answer.
    fn waiting(&self) -> anyhow::Result<Option<u64>> {
        let Some(text) = self.agent.ask(&["status", "--json"])? else { return Ok(None) };
        let status: serde_json::Value = serde_json::from_str(&text)?;
        Ok(Some(status["outbox_events"].as_u64().context("no outbox_events in the agent's status")?))
    }

    /// Copies the dead collector's state away, or puts the copy back in its place.
    ///
    /// # Errors
    /// When files can't be copied.
    pub fn back_up(&mut self, restore: bool) -> anyhow::Result<()> {
        let backup = self.folder.path().join(BACKUP);
        let state = self.collector.state().to_path_buf();
        let (from, to) = if restore { (backup, state) } else { (state, backup) };
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        copy(&from, &to)?;
        if restore {
            self.collector.forget_undo()?;
        }
        Ok(())
    }

    /// Another program of its own, which has never run.
    ///
    /// # Errors
    /// When its files can't be made.
    pub fn newcomer(&mut self, side: Side) -> anyhow::Result<Daemon> {
        self.scratch += 1;
        let root = self.folder.path().canonicalize()?.join(format!("first-{}", self.scratch));
        fs::create_dir_all(root.join("host"))?;
        let address = format!("127.0.0.1:{}", free_port()?);
        fs::write(
            root.join("collector.toml"),
            format!("listen = \"{address}\"\nadvertise = \"{address}\"\n"),
        )?;
        fs::write(root.join("agent.toml"), agent_settings(&root.join("host")))?;
        Daemon::prepare(&root, setup(side, &root, &self.library, None))
    }

    /// The ends of both logs.
    #[must_use]
    pub fn said(&self) -> String {
        format!(
            "--- the agent said:\n{}\n--- the collector said:\n{}",
            self.agent.said(),
            self.collector.said()
        )
    }

    /// Leaves the folder behind, for whoever looks for the reason of a failure; says where.
    #[must_use]
    pub fn keep(mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_path_buf()
    }
}

fn setup(side: Side, root: &Path, library: &Path, namespace: Option<PathBuf>) -> Setup {
    let (state, config) = (root.join(side.name()), root.join(format!("{}.toml", side.name())));
    Setup { side, state, config, library: library.to_path_buf(), namespace }
}

fn agent_settings(watched: &Path) -> String {
    format!("[sensors]\nwatch = [{:?}]\n", watched.display().to_string())
}

fn invitation(collector: &Daemon) -> anyhow::Result<String> {
    let line = collector.ask(&["tokens", "create"])?.context("the collector gave no token")?;
    let start = line.find("vidette://").with_context(|| format!("no invitation in {line}"))?;
    let rest = &line[start..];
    Ok(rest[..rest.find(['\'', '"', ' ', '\n']).unwrap_or(rest.len())].to_owned())
}

/// Regular files and folders, with their modes.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
