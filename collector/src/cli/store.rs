//! `vidette store check`: looks at every stored event once more.
//!
//! The one command that needs no running collector: it reads the files itself, those of a backup too. Beside a running
//! one it disturbs nothing. Progress goes to standard error, when a person sees it.

use super::output::{self, Progress};
use crate::config::STATE_DEFAULT;
use crate::store::check::{Check, Checked, Step};
use crate::store::{FOLDER, Reader};
use anyhow::Context as _;
use clap::Subcommand;
use std::path::PathBuf;

const CHECK: &str = "\
Every event is read and compared with the sum that it was stored with; numbers that were given and have no event are
counted as missing; the index of each part of a day is made again and compared. A running collector does the same once
a day, slowly: `vidette status` shows what it found.

Exit code: 0 everything is as it was stored, 1 something is damaged or missing, 2 the store could not be looked at.

Examples:
  vidette store check
  vidette store check --state /mnt/backup/vidette
  vidette store check --json | jq 'select(.missing > 0)'";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at every stored event once more; needs no running collector
    #[command(after_help = CHECK)]
    Check {
        /// The collector's state folder
        #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
        state: PathBuf,
        /// One JSON object a line instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Not everything is as it was stored.
#[derive(Debug, thiserror::Error)]
#[error("not everything is as it was stored")]
pub struct Damaged;

/// Runs one.
///
/// # Errors
/// For standard error; [`Damaged`], which was shown already.
pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::Check { state, json } = command;
    // It may be a link, as systemd makes one; SQLite opens nothing below a link. What is not there is said below.
    let folder = state.canonicalize().unwrap_or(state).join(FOLDER);
    let mut reader =
        Reader::new(&folder).context("there is no store; name the collector's state folder with --state")?;
    // The log would say the same in between.
    let mut check = Check::begin(&mut reader)?;
    let (mut days, mut progress) = (Vec::new(), Progress::new());
    while let Some(step) = check.step() {
        match step {
            Step::Looked(done, of) => progress.show(&format!("day {}", days.len() + 1), done, of),
            Step::Day(found) => {
                if json {
                    output::json(&found)?;
                }
                days.push(found);
            }
        }
    }
    progress.end();
    if !json {
        show(&days)?;
    }
    if days.iter().all(Checked::is_well) { Ok(()) } else { Err(Damaged.into()) }
}

fn show(days: &[Checked]) -> anyhow::Result<()> {
    if days.is_empty() {
        output::hint("nothing is stored yet");
        return Ok(());
    }
    output::table(
        &["DAY", "EVENTS", "DAMAGED", "MISSING", "INDEX", "FILE", "VERDICT"],
        days.iter().map(cells),
    )
}

fn cells(day: &Checked) -> Vec<String> {
    let verdict = match (&day.unreadable, day.is_well()) {
        (Some(reason), _) => format!("can't be read: {}", output::safe(reason)),
        (None, true) => "well".to_owned(),
        (None, false) => "damaged".to_owned(),
    };
    let index = match day.wrong_indexes {
        0 => "right".to_owned(),
        parts => format!("{parts} parts wrong"),
    };
    vec![
        day.day.clone(),
        day.events.to_string(),
        day.damaged.to_string(),
        day.missing.to_string(),
        index,
        output::safe(&day.file),
        verdict,
    ]
}
