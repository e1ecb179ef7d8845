//! `vidette-agent prepare-image`: makes a host ready to be copied, so that no two copies are one agent.
//!
//! Refuses while an agent runs: the lock of the state folder says so, and is held until the end. What it removes is a list of
//! names, each with its reason; what else lies in the state folder is not ours, stays, and is named.

use super::EXIT_ERROR;
use crate::folder::{self, LOCK_FILE};
use crate::outbox::OUTBOX_FOLDER;
use crate::tamper::life::RUNNING_FILE;
use crate::transport::{FRESH_FILE, IDENTITY_FOLDER, JOINING_FILE, RENEWING_FILE};
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vidette_protocol::escape;

/// What is of one host, by name, and why it may not be in an image.
const PARTS: [(&str, &str); 19] = [
    (IDENTITY_FOLDER, "who this host is"),
    ("identity.new", "an identity that was being stored"),
    ("identity.left", "who this host was"),
    (JOINING_FILE, "the key of a join that was cut short"),
    (RENEWING_FILE, "the key of a renewal that was cut short"),
    (FRESH_FILE, "a key that was being stored"),
    (OUTBOX_FOLDER, "events of this host, and their numbers"),
    ("mark", "until when changes were looked at"),
    ("mark.new", "the same, being stored"),
    ("sweep", "when everything was looked at"),
    ("sweep.new", "the same, being stored"),
    ("poison", "files that killed the scanner"),
    ("poison.new", "the same, being stored"),
    ("verdicts.cache", "files that are known to be clean"),
    ("verdicts.cache-wal", "a part of it"),
    ("verdicts.cache-shm", "a part of it"),
    ("verdicts.cache-journal", "a part of it"),
    (RUNNING_FILE, "since when an agent has run, and whether it ended in order"),
    ("status.sock", "where a running agent answers"),
];
/// Names of temporary files, and of what the self-test writes, start so.
const SCRATCH: [&[u8]; 2] = [b".vidette-", b".canary-"];
/// Entries of a state folder that are looked at.
const ENTRIES_MAX: usize = 10_000;

const HELP: &str = "\
Removed from the state folder:
  identity, identity.new, identity.left      who this host is or was, with its keys
  joining.pem, renewing.pem, pending.new     keys of what was cut short
  outbox                                     events of this host that wait, and their numbers
  mark, sweep, poison, verdicts.cache        what was looked at on this host, and what came of it
  running, status.sock, .vidette-*, .canary-* of an agent that ran
Kept: settings and rules in /etc/vidette, and whatever else lies in the state folder, which is named.

Exit codes: 0 ready to be copied; 2 not, because an agent runs or nobody agreed.

Example, as the last step before a virtual machine becomes a template:
  systemctl disable --now vidette-agent && vidette-agent prepare-image --yes";

/// Make this host ready to be copied: no identity, no keys, no events, no memory.
///
/// Copies of a host that has joined are one agent in many places: the collector notices, and lets none of them in. Run this
/// last, before the image is taken. Each copy then joins with a line of its own, or with one that is good for many hosts.
/// Events that wait for the collector are lost.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// Folder of the agent's state [default: /var/lib/vidette-agent, or the user's own].
    #[arg(long, value_name = "FOLDER", default_value_os_t = crate::config::default_state(), hide_default_value = true)]
    pub state: PathBuf,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    removed: Vec<(String, &'static str)>,
    kept: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// Why the host is not ready.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // A folder that is not an agent's is left as it is.
    let is_a_state = || PARTS.iter().any(|(name, _)| arguments.state.join(name).symlink_metadata().is_ok());
    let done = if arguments.state.join(LOCK_FILE).exists() || is_a_state() {
        let _lock = folder::claim(&arguments.state)?;
        if !arguments.yes {
            agreed(&arguments.state)?;
        }
        clear(&arguments.state)?
    } else {
        Done::default()
    };
    let text = if arguments.json { as_json(&done, arguments) } else { as_text(&done) };
    if std::io::stdout().write_all(format!("{text}\n").as_bytes()).is_err() {
        return Ok(ExitCode::from(EXIT_ERROR));
    }
    Ok(ExitCode::SUCCESS)
}

fn agreed(state: &Path) -> anyhow::Result<()> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("nobody is there to be asked, and nothing was removed; add --yes");
    }
    eprint!(
        "This host forgets who it is, and every event that waits in {}. Go on? [y/N] ",
        escape::terminal(state.as_os_str().as_bytes())
    );
    let mut answer = String::new();
    input.lock().read_line(&mut answer).context("could not read the answer")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was removed"),
    }
}

/// On disk when it returns. The identity goes first: a copy without its memory is harmless, one with its identity is not.
fn clear(state: &Path) -> anyhow::Result<Done> {
    let shown = |name: &OsString| escape::terminal(name.as_bytes());
    let reason = |name: &OsString| PARTS.iter().find(|(part, _)| name == part).map(|(_, why)| *why);
    let mut names = Vec::new();
    let entries = std::fs::read_dir(state).with_context(|| format!("could not read {}", state.display()))?;
    for entry in entries.take(ENTRIES_MAX) {
        names.push(entry.with_context(|| format!("could not read {}", state.display()))?.file_name());
    }
    names.sort_by_key(|name| PARTS.iter().position(|(part, _)| name == part).unwrap_or(PARTS.len()));
    let mut done = Done::default();
    for name in names {
        let why = match reason(&name) {
            Some(why) => why,
            None if SCRATCH.iter().any(|start| name.as_bytes().starts_with(start)) => "a temporary file",
            None if name == LOCK_FILE => continue,
            None => {
                done.kept.push(shown(&name));
                continue;
            }
        };
        remove(&state.join(&name)).with_context(|| {
            format!("could not remove {}; the host is not ready to be copied", shown(&name))
        })?;
        done.removed.push((shown(&name), why));
    }
    let folder = std::fs::File::open(state).and_then(|folder| folder.sync_all());
    folder.with_context(|| format!("could not sync {}", state.display()))?;
    // Others find no lock then; nothing that it would protect is there any more.
    remove(&state.join(LOCK_FILE)).context("could not remove the lock")?;
    Ok(done)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    }
}

fn as_text(done: &Done) -> String {
    let mut text = String::new();
    for (name, why) in &done.removed {
        text += &format!("removed {name}: {why}\n");
    }
    for name in &done.kept {
        text += &format!("kept {name}: it is none of the agent's\n");
    }
    if done.removed.is_empty() {
        text += "There was nothing of this host to remove.\n";
    }
    text + "This host is ready to be copied. Next: switch it off and take the image; do not start the agent before. Each copy joins \
            with the line of `vidette tokens create`, which may be good for many (`--uses`)."
}

fn as_json(done: &Done, arguments: &Arguments) -> String {
    let removed: Vec<&str> = done.removed.iter().map(|(name, _)| name.as_str()).collect();
    serde_json::json!({
        "state": escape::terminal(arguments.state.as_os_str().as_bytes()),
        "removed": removed,
        "kept": done.kept,
    })
    .to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_what_is_removed() {
        for (name, _) in PARTS {
            let named = name.split(".new").next().unwrap().split("-").next().unwrap();
            assert!(HELP.contains(named), "{name}");
        }
    }

    #[test]
    fn what_is_of_one_host_goes_and_what_is_not_ours_stays() {
        let state = tempfile::tempdir().unwrap();
        for (name, _) in PARTS {
            std::fs::create_dir(state.path().join(name)).unwrap();
            std::fs::write(state.path().join(name).join("inside"), "x").unwrap();
        }
        for name in ["rules.yar", ".vidette-00ff", LOCK_FILE] {
            std::fs::write(state.path().join(name), "x").unwrap();
        }
        let done = clear(state.path()).unwrap();
        assert_eq!((done.removed.len(), done.kept), (PARTS.len() + 1, vec!["rules.yar".to_owned()]));
        assert_eq!(done.removed[0].0, IDENTITY_FOLDER, "first of all");
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1);
        assert_eq!(clear(state.path()).unwrap().removed.len(), 0);
    }
}
