//! A join line as a credential of systemd (systemd.exec(5), "Credentials"): a host that has not joined reads it when the
//! agent starts, and joins by it as soon as the collector can be reached.
//!
//! The line holds a secret: it is read from a file of which only the folder is in the environment, and never logged. Once
//! there is an identity the credential is not looked at any more. What it stores is found by `keeper`.

use super::credentials::{Credentials, NoCredentials};
use super::enrol;
use crate::host::Host;
use crate::stop::Stop;
use anyhow::{Context, bail};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use vidette_protocol::join::Invitation;

/// The credential's name.
pub const CREDENTIAL: &str = "vidette.join";
/// What is read before it is no join line any more. Bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// The first wait after a join that failed.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// The longest.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Joins on a thread of its own, if there is a credential and no identity. The thread ends with the join, or at `stop`.
///
/// # Errors
/// The thread could not be started. A credential that can't be used is no error: that is in the log, and the agent goes on.
pub fn start(state: PathBuf, host: Host, stop: Stop) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    if !matches!(Credentials::load(&state), Err(NoCredentials::NotJoined)) {
        return Ok(None);
    }
    let line = match read(&Path::new(&folder).join(CREDENTIAL)) {
        Ok(Some(line)) => line,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::warn!(error = %format!("{error:#}"), "could not use the credential `{CREDENTIAL}`: this host does not join by it");
            return Ok(None);
        }
    };
    let thread = std::thread::Builder::new().name("joining".to_owned());
    Ok(Some(
        thread
            .spawn(move || keep_joining(&line, &host, &state, &stop))
            .context("could not start a thread")?,
    ))
}

fn keep_joining(line: &Invitation, host: &Host, state: &Path, stop: &Stop) {
    let mut wait = RETRY_FIRST;
    while !stop.is_set() && matches!(Credentials::load(state), Err(NoCredentials::NotJoined)) {
        match enrol::join_as(line, host, state, false) {
            Ok(enrolled) => {
                let agent = enrolled.credentials.agent;
                tracing::info!(%agent, collector = %enrolled.credentials.collector, "joined by the credential `{CREDENTIAL}`");
                return;
            }
            Err(error) => {
                let wait_s = wait.as_secs();
                tracing::warn!(error = %format!("{error:#}"), wait_s, "could not join by the credential `{CREDENTIAL}`, trying again");
            }
        }
        // With jitter, because a whole fleet may come up at once.
        if stop.wait(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)) {
            return;
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// None when there is no such credential, or nothing in it.
fn read(path: &Path) -> anyhow::Result<Option<Invitation>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).context("could not open it"),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        bail!("it is not a regular file");
    }
    let mut text = String::new();
    File::from(file).take(LINE_BYTES_MAX).read_to_string(&mut text).context("could not read it")?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    // Its errors name no part of the line.
    Ok(Some(invitation_in(&text).parse()?))
}

/// The invitation itself, when the whole shell line around it was given.
#[must_use]
pub fn invitation_in(text: &str) -> &str {
    let start = text.find("vidette://").unwrap_or(0);
    let rest = text.get(start..).unwrap_or(text);
    rest.split(|c: char| c.is_whitespace() || c == '\'' || c == '"').next().unwrap_or(rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_or_empty_credential_is_none_and_a_bad_one_does_not_show_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CREDENTIAL);
        assert!(read(&path).unwrap().is_none());
        std::fs::write(&path, " \n").unwrap();
        assert!(read(&path).unwrap().is_none());
        for bad in ["vidette://c:1/?pin=aa&token=SECRET", "SECRET", "vidette://SECRET"] {
            std::fs::write(&path, bad).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(!error.contains("SECRET"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read(&path).is_err());
    }
}
