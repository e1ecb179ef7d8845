//! The agent's own folder: for itself alone, and for one agent at a time.

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Held while an agent runs, in the state folder.
pub const LOCK_FILE: &str = "lock";

/// The agent's own folder, for one agent at a time: as long as what is returned lives.
///
/// # Errors
/// The folder can't be used, or another agent uses it.
pub fn claim(folder: &Path) -> anyhow::Result<File> {
    prepare(folder)?;
    let shown = folder.display();
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK_FILE));
    let lock = lock.with_context(|| {
        format!("could not write to the state folder {shown}: name another one with --state")
    })?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another agent runs with the state folder {shown}: stop it, or name another folder with --state"
        );
    }
    Ok(lock)
}

/// Makes it when it is not there, and closes it to other users: 0700.
///
/// # Errors
/// The folder can't be used.
pub fn prepare(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| {
        format!("could not make the state folder {shown}: run this as root, or name another one with --state")
    })?;
    let data = folder.metadata().with_context(|| format!("could not look at the state folder {shown}"))?;
    let me = rustix::process::geteuid().as_raw();
    if data.uid() != me {
        bail!(
            "the state folder {shown} belongs to user {}, not to {me} who runs this: name another one with --state",
            data.uid()
        );
    }
    if data.mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("could not close the state folder {shown} to other users"))?;
        tracing::warn!(folder = %shown, "the state folder was open to other users; it is closed now");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_closed_and_for_one_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("a/state");
        let mode = || folder.metadata().unwrap().mode() & 0o777;
        prepare(&folder).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let lock = claim(&folder).unwrap();
        assert_eq!(mode(), 0o700);
        assert!(claim(&folder).unwrap_err().to_string().contains("another agent runs"));
        drop(lock);
        claim(&folder).unwrap();
        std::fs::write(place.path().join("file"), "").unwrap();
        assert!(prepare(&place.path().join("file")).is_err());
    }
}
