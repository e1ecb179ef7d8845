//! `vidette-agent rules check FILE…`: what the scanner thinks of rules, asked in its sandbox.

use crate::detection::rules::RuleSources;
use crate::worker::messages::{Loaded, Problem};
use crate::worker::pool::{Output, Pool, Settings};
use crate::worker::process::Launcher;
use crate::worker::{SIZE_DEFAULT_BYTES, Source};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vidette_protocol::escape;

/// How long a look at the worker waits at most.
const WAIT: Duration = Duration::from_secs(1);
/// Not used for anything: nothing is scanned here.
const TIMEOUT: Duration = Duration::from_secs(30);

/// `vidette-agent rules …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Compile rules as the agent would, and say what is wrong with them.
    ///
    /// Exit code: 0 all good, 1 a file has an error, 2 it could not be checked.
    Check(CheckArgs),
}

/// `vidette-agent rules check`
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// Rule files, or folders of *.yar and *.yara files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// One JSON object for each file.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// The scanner could not be asked.
pub fn run(command: Command) -> Result<ExitCode> {
    let Command::Check(args) = command;
    let found = RuleSources { builtin: false, files: args.files }.load();
    for error in &found.errors {
        eprintln!("{error}");
    }
    if found.sources.is_empty() {
        bail!("there is no rule file to check: name *.yar files, or folders that have some");
    }
    let unread = !found.errors.is_empty();
    let sources = found.sources.clone();
    let loaded = ask(found.into_set())?;
    for source in &sources {
        let problems: Vec<&Problem> =
            loaded.problems.iter().filter(|problem| problem.file == source.name).collect();
        if args.json { print_json(source, &problems) } else { print(source, &problems) }
    }
    let bad = loaded.problems.iter().any(|problem| problem.error);
    if loaded.problems_left_out > 0 {
        eprintln!("{} more errors and warnings are not shown", loaded.problems_left_out);
    }
    if !args.json {
        println!("{} files, {} rules usable", sources.len(), loaded.rules);
    }
    Ok(match (unread, bad) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::from(1),
        (false, false) => ExitCode::SUCCESS,
    })
}

fn ask(rules: crate::worker::RuleSet) -> Result<Loaded> {
    let launcher = Launcher::own()?;
    let mut pool = Pool::new(Settings {
        launcher,
        rules,
        threads: 1,
        size_max_bytes: SIZE_DEFAULT_BYTES,
        timeout: TIMEOUT,
        digests: 0,
    });
    let mut outputs = pool.prepare(Instant::now());
    loop {
        for output in outputs {
            match output {
                Output::Loaded(loaded) => return Ok(loaded),
                Output::Unavailable(reason) => {
                    bail!("the rules could not be checked: {}", escape::terminal(reason.as_bytes()))
                }
                // The pool tries again by itself; nothing was submitted.
                Output::Started(_) | Output::Died(_) | Output::RulesRefused { .. } | Output::Done(_) => {}
            }
        }
        outputs = pool.wait(WAIT);
    }
}

fn print(source: &Source, problems: &[&Problem]) {
    for problem in problems {
        let level = if problem.error { "error" } else { "warning" };
        let message = escape::terminal(problem.message.as_bytes());
        println!("{}:{}:{}: {level}[{}]: {message}", source.name, problem.line, problem.column, problem.code);
    }
    let bad = problems.iter().any(|problem| problem.error);
    println!("{}: {}", source.name, if bad { "left out as a whole" } else { "ok" });
}

fn print_json(source: &Source, problems: &[&Problem]) {
    let told: Vec<serde_json::Value> = problems
        .iter()
        .map(|problem| {
            serde_json::json!({
                "level": if problem.error { "error" } else { "warning" },
                "line": problem.line, "column": problem.column,
                "code": problem.code, "message": problem.message,
            })
        })
        .collect();
    let ok = !problems.iter().any(|problem| problem.error);
    println!("{}", serde_json::json!({ "file": source.name, "ok": ok, "problems": told }));
}
