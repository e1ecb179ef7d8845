//! Whether the run before this one ended in order: a file in the state folder says that the agent runs, and goes when it
//! ends in order. It is touched now and then, so that the next run can say since when nobody was there.
//!
//! Its times are the host's wall clock, and said to people only.

use super::Told;
use crate::host::Host;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use vidette_protocol::wire::Severity;

/// The file.
pub const RUNNING_FILE: &str = "running";
/// A boot id and then some. Bytes.
const BYTES_MAX: u64 = 256;

/// Says that the agent runs.
#[derive(Debug)]
pub struct Life {
    path: PathBuf,
    file: File,
}

/// A run that did not end in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The last sign of it is so old.
    pub silent: Duration,
    /// The host runs since then without a restart.
    pub same_boot: bool,
}

/// Begins a run, and says how the one before was cut short, if it was.
///
/// # Errors
/// When the file can't be written.
pub fn begin(state: &Path, host: &Host) -> std::io::Result<(Life, Option<Cut>)> {
    let path = state.join(RUNNING_FILE);
    let before = look(&path, &host.boot_id);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?);
    writeln!(file, "{}", host.boot_id)?;
    file.sync_all()?;
    Ok((Life { path, file }, before))
}

fn look(path: &Path, boot_id: &str) -> Option<Cut> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let touched = file.metadata().and_then(|data| data.modified()).ok();
    let silent = touched.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    let mut text = String::new();
    // What can't be read is of another boot: a power loss may have left anything.
    let _ = file.take(BYTES_MAX).read_to_string(&mut text);
    Some(Cut { silent, same_boot: !boot_id.is_empty() && text.trim() == boot_id })
}

impl Life {
    /// Still there.
    pub fn beat(&self) {
        if let Err(error) = self.file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "could not touch the file that says that the agent runs");
        }
    }

    /// The run ends in order.
    pub fn end(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "could not write down that the agent ended in order: the next run will say that it did not");
        }
    }
}

/// The first event of a run, with `detail` on this one.
#[must_use]
pub fn started(before: Option<&Cut>, detail: &str) -> Told {
    let (severity, detail) = match before {
        None => (Severity::Info, detail.to_owned()),
        Some(Cut { silent, same_boot: true }) => {
            let s = silent.as_secs();
            let detail = format!(
                "{detail}; the run before did not end in order: it was killed or it crashed, while the host went on; its last sign is {s} s old"
            );
            (Severity::High, detail)
        }
        Some(Cut { silent, same_boot: false }) => {
            let s = silent.as_secs();
            let detail = format!(
                "{detail}; the run before did not end in order, and the host was started anew since; its last sign is {s} s old"
            );
            (Severity::Low, detail)
        }
    };
    Told { action: "agent-started", severity, detail, process: None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(boot_id: &str) -> Host {
        Host { name: Vec::new(), boot_id: boot_id.to_owned(), os: String::new() }
    }

    #[test]
    fn a_run_that_was_cut_is_told_by_the_next_one_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (life, before) = begin(folder.path(), &host("a")).unwrap();
        assert_eq!(before, None);
        life.end();
        let (life, before) = begin(folder.path(), &host("a")).unwrap();
        assert_eq!(before, None);
        drop(life); // killed
        let (life, before) = begin(folder.path(), &host("a")).unwrap();
        let before = before.unwrap();
        assert!(before.same_boot);
        let told = started(Some(&before), "version 1");
        assert!(told.severity == Severity::High && told.detail.contains("did not end in order"));
        drop(life);
        let (life, before) = begin(folder.path(), &host("b")).unwrap();
        assert!(!before.unwrap().same_boot);
        life.end();
        assert_eq!(begin(folder.path(), &host("b")).unwrap().1, None);
    }

    #[test]
    fn what_a_power_loss_leaves_is_of_another_boot_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        for left in [&b""[..], b"\xff\xfe", &[b'a'; 4096]] {
            std::fs::write(folder.path().join(RUNNING_FILE), left).unwrap();
            let (_, before) = begin(folder.path(), &host("a")).unwrap();
            assert!(!before.unwrap().same_boot);
        }
        std::fs::remove_file(folder.path().join(RUNNING_FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(RUNNING_FILE)).unwrap();
        assert!(begin(folder.path(), &host("a")).is_err());
    }
}
