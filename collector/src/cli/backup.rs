//! `vidette backup` and `vidette restore`: what they ask for and how they show it. `crate::backup` does it.

use super::output::{self, Progress};
use crate::backup::{self, Manifest, Watch};
use crate::config::STATE_DEFAULT;
use clap::Args;
use std::path::PathBuf;

const BACKUP: &str = "\
The collector may run meanwhile. The folder gets identity (CA, keys, who has joined), the store, and how far each sink has
come; it holds the CA's key, so keep it as safe as the collector itself.

Examples:
  vidette backup /mnt/backup/2026-11-22
  vidette store check --state /mnt/backup/2026-11-22      whether everything in it can be read";

const RESTORE: &str = "\
Every file is compared with what was backed up before anything is written. The state folder must be empty, and its
collector must not run; configuration is not part of a backup. Agents report what they had delivered after the
backup was made as a `gap`; a sink sends again what it had sent since then.

Example, where the collector is a service, whose state systemd keeps in /var/lib/private (it takes over what is restored):
  systemctl stop vidette-collector
  mv /var/lib/private/vidette /var/lib/private/vidette.old && rm /var/lib/vidette
  vidette restore /mnt/backup/2026-11-22
  systemctl start vidette-collector";

/// Where to and from where.
#[derive(Debug, Args)]
#[command(after_help = BACKUP)]
pub struct Backup {
    /// Where the copy goes: a folder that is empty or not there yet
    folder: PathBuf,
    /// The collector's state folder
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    state: PathBuf,
    /// What was copied, as one JSON object
    #[arg(long)]
    json: bool,
}

/// From where and where to.
#[derive(Debug, Args)]
#[command(after_help = RESTORE)]
pub struct Restore {
    /// The backup
    folder: PathBuf,
    /// The collector's state folder: empty, or not there yet
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    state: PathBuf,
    /// What was restored, as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `backup`.
///
/// # Errors
/// For standard error.
pub fn run(options: &Backup) -> anyhow::Result<()> {
    let manifest = watched(|watch| backup::make(&options.state, &options.folder, watch))?;
    say(&manifest, options.json, "backed up")
}

/// Runs `restore`.
///
/// # Errors
/// For standard error.
pub fn restore(options: &Restore) -> anyhow::Result<()> {
    let manifest = watched(|watch| backup::restore(&options.folder, &options.state, watch))?;
    say(&manifest, options.json, "restored")
}

fn watched(work: impl FnOnce(&mut Watch<'_>) -> anyhow::Result<Manifest>) -> anyhow::Result<Manifest> {
    let mut progress = Progress::new();
    let manifest = work(&mut |name, done, of| progress.show(name, done, of));
    progress.end();
    manifest
}

fn say(manifest: &Manifest, json: bool, done: &str) -> anyhow::Result<()> {
    if json {
        return output::json(manifest);
    }
    let tenths = manifest.bytes().saturating_mul(10) >> 20;
    output::line(&format!("{done}: {} files, {}.{} MiB", manifest.files.len(), tenths / 10, tenths % 10))
}
