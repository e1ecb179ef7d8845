//! `vidette-agent watch`: sensors and detection without outbox and collector; every event is printed as it comes.

use crate::pipeline::{self, Watch};
use crate::stop;
use anyhow::{Context, bail};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vidette_protocol::ecs::{self, Origin};
use vidette_protocol::wire::{self, event::Kind};

/// What was typed after `watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders to watch
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// One JSON object a line, with the field names of the Elastic Common Schema
    #[arg(long)]
    json: bool,
    /// Only what matched, was lost or went wrong; not every file and program
    #[arg(long)]
    alerts: bool,
    /// Further rules: files, or folders of .yar and .yara files
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// Leave out the rules that ship with the agent
    #[arg(long)]
    no_builtin_rules: bool,
    /// Use the portable sensors even where the full ones would work
    #[arg(long)]
    polling: bool,
}

/// Prints until a signal.
///
/// # Errors
/// When a path can't be watched.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = args.paths.iter().map(|path| absolute(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let (stopper, stop) = stop::channel();
    stop::on_signal(stopper)?;
    let watch = Watch {
        paths: paths.clone(),
        polling: args.polling,
        builtin_rules: !args.no_builtin_rules,
        rules: args.rules.clone(),
    };
    let watched = pipeline::watch(&watch, &stop, |event| {
        if args.alerts && matches!(event.kind, Some(Kind::File(_) | Kind::Process(_)))
            || !concerns(&paths, event)
        {
            return Ok(());
        }
        let text = if args.json { ecs::line(&ecs::record(Origin::NONE, event)) } else { ecs::human(event) };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    });
    match watched {
        // It would go on for ever: who has read enough ends it so.
        Err(error) if super::is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        watched => watched.map(|()| ExitCode::SUCCESS),
    }
}

/// The real path, so that what the kernel reports can be compared with it.
fn absolute(path: &Path) -> anyhow::Result<Vec<u8>> {
    let real = path.canonicalize().with_context(|| format!("can't watch {}", path.display()))?;
    if !real.is_dir() && !real.is_file() {
        bail!("can't watch {}: it is neither a folder nor a regular file", path.display());
    }
    Ok(real.as_os_str().as_bytes().to_vec())
}

/// Programs are reported from the whole host; here only those are shown whose image lies in the paths.
fn concerns(paths: &[Vec<u8>], event: &wire::Event) -> bool {
    let path = match &event.kind {
        Some(Kind::Process(process)) => process.process.as_ref().map(|process| &process.executable),
        Some(Kind::File(file)) => file.file.as_ref().map(|file| &file.path),
        Some(Kind::Detection(detection)) => detection.file.as_ref().map(|file| &file.path),
        Some(Kind::Gap(_) | Kind::Health(_)) => return true,
        Some(Kind::Audit(_)) | None => return false,
    };
    path.is_some_and(|path| paths.iter().any(|prefix| below(path, prefix)))
}

fn below(path: &[u8], prefix: &[u8]) -> bool {
    prefix == b"/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
