//! One thread of a program, stopped by a control group of its own (cgroups(7), "Thread mode"; `cgroup.freeze`): as if it hung
//! for ever in a system call, while the others go on.

use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to see that a group is empty.
const EMPTY_WAIT: Duration = Duration::from_secs(5);

/// Dropping it lets the thread go on.
#[derive(Debug)]
pub struct Frozen {
    group: PathBuf,
}

impl Frozen {
    /// Stops the thread of this name.
    ///
    /// # Errors
    /// There is no such thread, or no unified hierarchy.
    pub fn new(pid: u32, thread: &str) -> anyhow::Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        let named =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread);
        let task = tasks.map(|task| task.path()).find(named).context("there is no such thread")?;
        let id = task.file_name().and_then(|id| id.to_str()).context("a number")?;
        let frozen = Self { group: unified().join(format!("vidette-test-{}", std::process::id())) };
        let part = frozen.group.join("frozen");
        fs::create_dir_all(&part).context("could not make a control group")?;
        fs::write(frozen.group.join("cgroup.procs"), pid.to_string())?;
        fs::write(part.join("cgroup.type"), "threaded")?;
        fs::write(part.join("cgroup.threads"), id)?;
        fs::write(part.join("cgroup.freeze"), "1")?;
        Ok(frozen)
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        let _ = fs::write(self.group.join("frozen/cgroup.freeze"), "0");
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        // Whoever is still in there goes back to the top.
        for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(unified().join("cgroup.procs"), pid);
        }
        for group in [self.group.join("frozen"), self.group.clone()] {
            let start = Instant::now();
            while group.is_dir() && fs::remove_dir(&group).is_err() && start.elapsed() < EMPTY_WAIT {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Where the unified hierarchy is: alone, or beside the older ones.
fn unified() -> &'static Path {
    let beside = Path::new("/sys/fs/cgroup/unified");
    if beside.is_dir() { beside } else { Path::new("/sys/fs/cgroup") }
}
