//! A canary: a file that is written, renamed and removed, and a program that is run, so that every sensor has
//! something to see that is known to have happened.
//!
//! Assumes that the folder is the agent's own (0700), so that nobody else's file can have its names.

use super::proofs::{CANARY_PREFIX, Proofs, Sighting};
use super::self_test::is_stopped;
use crate::sensors::Canary;
use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a sensor may take to tell of a canary.
pub(crate) const UNSEEN_AFTER: Duration = Duration::from_secs(5);
/// How often a wait looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// What a sensor is expected to see. Which of them are expected is the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// fanotify: the file was closed after writing.
    Content,
    /// fanotify: the program was opened to be run.
    Run,
    /// The connector: the program was run.
    Process,
    /// Whoever watches names: the file was renamed.
    Name,
}

/// What is there to be seen.
#[derive(Debug, Default)]
struct Traces {
    file: Option<(u64, u64)>,
    name: Vec<u8>,
    pid: Option<u32>,
}

impl Proof {
    /// The sensor, as health events name it.
    pub(crate) fn component(self) -> &'static str {
        match self {
            Self::Content | Self::Run => "fanotify",
            Self::Process => "process-connector",
            Self::Name => "names",
        }
    }

    /// One word for `status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Run => "run",
            Self::Process => "process",
            Self::Name => "name",
        }
    }

    /// For people: what did not come.
    pub(crate) fn unseen(self) -> &'static str {
        match self {
            Self::Content => "a file that the agent wrote and closed was not reported",
            Self::Run => "a program that the agent ran was not reported by fanotify",
            Self::Process => "a program that the agent ran was not reported by the process connector",
            Self::Name => "a file that the agent renamed was not reported",
        }
    }

    fn is(self, sighting: &Sighting, traces: &Traces) -> bool {
        match (self, sighting) {
            (Self::Content, Sighting::Written(key)) => traces.file == Some(*key),
            (Self::Run, Sighting::Ran(pid)) | (Self::Process, Sighting::Executed(pid)) => {
                traces.pid == Some(*pid)
            }
            (Self::Name, Sighting::Named(name)) => traces.name == *name,
            (Self::Content | Self::Run | Self::Process | Self::Name, _) => false, // another kind
        }
    }
}

/// Lets one canary out and waits for it. What was expected and not seen within [`UNSEEN_AFTER`]; less time is
/// taken when all is seen or `stop` becomes readable.
///
/// # Errors
/// The file could not be written or the program not be run: that says nothing of the sensors.
pub(crate) fn release(
    canary: &Canary,
    proofs: &Proofs,
    expected: &[Proof],
    stop: &OwnedFd,
) -> anyhow::Result<Vec<Proof>> {
    let shown = canary.program.display();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let program = rustix::fs::open(&canary.program, flags, Mode::empty())
        .with_context(|| format!("could not open the canary program {shown}"))?;
    let stat = rustix::fs::fstat(&program)?;
    proofs.arm((stat.st_dev, stat.st_ino));
    let mut traces = Traces::default();
    let mut child = None;
    let done = write(&canary.folder, &mut traces).and_then(|()| {
        child = Some(run(&canary.program, &mut traces)?);
        Ok(())
    });
    let end = Instant::now() + UNSEEN_AFTER;
    let missing = if done.is_ok() { wait(proofs, expected, &traces, end, stop) } else { Vec::new() };
    proofs.disarm();
    if let Some(child) = child {
        reap(child, end, stop);
    }
    done.map(|()| missing)
}

/// Removes what an agent that was killed left behind.
pub(crate) fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(CANARY_PREFIX.as_bytes()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn write(folder: &Path, traces: &mut Traces) -> anyhow::Result<()> {
    let name = format!("{CANARY_PREFIX}{:016x}", rand::random::<u64>());
    let new_name = format!("{name}-renamed");
    let (path, new_path) = (folder.join(&name), folder.join(&new_name));
    let context = || format!("could not write the canary file {}", path.display());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).with_context(context)?;
    let stat = rustix::fs::fstat(&file).with_context(context)?;
    traces.file = Some((stat.st_dev, stat.st_ino));
    traces.name = new_name.into_bytes();
    let mut file = File::from(file);
    let written = file.write_all(b"vidette\n");
    drop(file);
    let renamed = std::fs::rename(&path, &new_path);
    let _ = std::fs::remove_file(if renamed.is_ok() { &new_path } else { &path });
    written.and(renamed).with_context(context)
}

fn run(program: &Path, traces: &mut Traces) -> anyhow::Result<Child> {
    let child = Command::new(program)
        .arg("canary")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("could not run the canary program {}", program.display()))?;
    traces.pid = Some(child.id());
    Ok(child)
}

fn wait(proofs: &Proofs, expected: &[Proof], traces: &Traces, end: Instant, stop: &OwnedFd) -> Vec<Proof> {
    let mut missing = expected.to_vec();
    while !missing.is_empty() && Instant::now() < end && !is_stopped(stop, Duration::ZERO) {
        if let Ok(sighting) = proofs.sightings().recv_timeout(LOOK) {
            missing.retain(|proof| !proof.is(&sighting, traces));
        }
    }
    missing
}

fn reap(mut child: Child, end: Instant, stop: &OwnedFd) {
    while let Ok(None) = child.try_wait() {
        if Instant::now() >= end || is_stopped(stop, LOOK) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::proofs;
    use super::*;

    fn canary(folder: &Path, program: &str) -> Canary {
        Canary { folder: folder.to_path_buf(), program: program.into() }
    }

    fn never() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_sighting_proves_what_it_is_of() {
        let traces = Traces { file: Some((1, 2)), name: b".canary-1-renamed".to_vec(), pid: Some(9) };
        let all = [Proof::Content, Proof::Run, Proof::Process, Proof::Name];
        for (sighting, expected) in [
            (Sighting::Written((1, 2)), Some(Proof::Content)),
            (Sighting::Written((1, 3)), None),
            (Sighting::Ran(9), Some(Proof::Run)),
            (Sighting::Executed(9), Some(Proof::Process)),
            (Sighting::Executed(8), None),
            (Sighting::Named(b".canary-1-renamed".to_vec()), Some(Proof::Name)),
            (Sighting::Named(b".canary-1".to_vec()), None),
        ] {
            let proved: Vec<Proof> = all.into_iter().filter(|proof| proof.is(&sighting, &traces)).collect();
            assert_eq!(proved, Vec::from_iter(expected), "{sighting:?}");
        }
    }

    #[test]
    fn what_nobody_tells_of_is_missing_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (_witness, proofs) = proofs::channel();
        let stop = never();
        rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap(); // no need to wait
        let expected = [Proof::Content, Proof::Run];
        let missing = release(&canary(folder.path(), "/bin/true"), &proofs, &expected, &stop).unwrap();
        assert_eq!(missing, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_canary_that_cannot_be_let_out_says_nothing_of_sensors() {
        let folder = tempfile::tempdir().unwrap();
        let (_witness, proofs) = proofs::channel();
        for (place, program, expected) in [
            (folder.path().join("none"), "/bin/true", "could not write the canary file"),
            (folder.path().to_path_buf(), "/bin/none", "could not open the canary program /bin/none"),
            (folder.path().to_path_buf(), "/dev/null", "could not run the canary program /dev/null"),
        ] {
            let error = release(&canary(&place, program), &proofs, &[Proof::Content], &never()).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_earlier_agent_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".canary-0123456789abcdef", ".canary-1-renamed", "canary"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        sweep(folder.path());
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(left, ["canary"]);
    }
}
