//! Where `scan` keeps what it found: a file for each version of the rules, few of them.

use crate::detection::verdicts::{FILES_DEFAULT, Verdicts};
use crate::worker::clean::MAGIC_START;
use anyhow::{Context as _, bail};
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// For root.
const ROOT_FOLDER: &str = "/var/cache/vidette";
/// Versions of rules whose verdicts are kept; each up to 160 MB, mostly far less.
pub const VERSIONS_MAX: usize = 4;
/// Before and after the version.
const NAME: (&str, &str) = ("scan-", ".cache");

/// The cache for rules of this version: `named`, or in the default folder, which is made.
///
/// # Errors
/// It can't be used.
pub fn open(named: Option<&Path>, rules_version: &str) -> anyhow::Result<Verdicts> {
    let path = match named {
        Some(path) => {
            is_ours(path)?;
            path.to_owned()
        }
        None => {
            let folder = folder()?;
            claim(&folder)?;
            let name = format!("{}{rules_version}{}", NAME.0, NAME.1);
            forget_old(&folder, &name);
            folder.join(name)
        }
    };
    Verdicts::open(&path, FILES_DEFAULT).with_context(|| format!("could not use {}", path.display()))
}

/// A damaged cache is replaced, and one of an earlier version; whatever else somebody named by mistake must not be.
fn is_ours(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let data = match path.symlink_metadata() {
        Ok(data) => data,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("could not look at {shown}")),
    };
    let begins = || -> std::io::Result<bool> {
        let mut head = Vec::new();
        std::fs::File::open(path)?.take(MAGIC_START.len() as u64).read_to_end(&mut head)?;
        Ok(head.is_empty() || head == MAGIC_START)
    };
    if !data.is_file() || !begins().with_context(|| format!("could not read {shown}"))? {
        bail!("{shown} is no cache of `scan`: name another file, or remove it");
    }
    Ok(())
}

fn folder() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(ROOT_FOLDER));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home) {
        Some(folder) if folder.is_absolute() => Ok(folder.join("vidette")),
        _ => bail!("neither XDG_CACHE_HOME nor HOME says where"),
    }
}

/// Ours alone: who can replace the file can say what is clean.
fn claim(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not make {shown}"))?;
    let data = folder.symlink_metadata().with_context(|| format!("could not look at {shown}"))?;
    let own = data.is_dir() && data.uid() == rustix::process::geteuid().as_raw();
    if !own || data.mode() & 0o022 != 0 {
        bail!("others can write to {shown}");
    }
    Ok(())
}

/// Removes the least recently written ones, so that with `name` there are no more than allowed.
fn forget_old(folder: &Path, name: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut others: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|other| other != name && other.starts_with(NAME.0) && other.contains(NAME.1))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(VERSIONS_MAX);
    for (_, path) in others.into_iter().take(surplus) {
        // What can't be removed is tried again the next time.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cache_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("notes"), "notes").unwrap();
        std::fs::write(at("empty"), "").unwrap();
        std::os::unix::fs::symlink(at("empty"), at("link")).unwrap();
        for name in ["notes", "link", "."] {
            assert!(open(Some(&at(name)), "v1").is_err(), "{name}");
        }
        assert!(open(Some(Path::new("/dev/null")), "v1").is_err());
        assert_eq!(std::fs::read(at("notes")).unwrap(), b"notes");
        for name in ["new", "empty", "new", "empty"] {
            open(Some(&at(name)), "v1").unwrap();
        }
        for format in ["VIDETTE1", "VIDETTE2"] {
            std::fs::write(at("new"), format!("{format} and damaged")).unwrap();
            open(Some(&at("new")), "v1").unwrap();
        }
    }

    #[test]
    fn few_versions_are_kept_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("other"), "").unwrap();
        for number in 0..10 {
            let name = format!("scan-{number}.cache");
            forget_old(folder.path(), &name);
            std::fs::write(folder.path().join(&name), "").unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number);
            std::fs::File::options()
                .write(true)
                .open(folder.path().join(&name))
                .unwrap()
                .set_modified(time)
                .unwrap();
        }
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["other", "scan-6.cache", "scan-7.cache", "scan-8.cache", "scan-9.cache"]);
    }
}
