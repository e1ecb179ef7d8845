//! `vidette-agent rules check FILE…`: what the scanner thinks of rules, asked in its sandbox.

use crate::detection::rules::RuleSources;
use crate::worker::Source;
use crate::worker::messages::{Loaded, Problem};
use crate::worker::pool::{Output, Pool, Settings};
use crate::worker::process::Launcher;
use anyhow::{Context as _, Result, bail};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vidette_protocol::escape;

/// How long a look at the worker waits at most.
const WAIT: Duration = Duration::from_secs(1);

/// `vidette-agent rules …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Compile rules as the agent would, and say what is wrong with them.
    ///
    /// One file is one unit: an error in one of its rules leaves out the file with all its rules. A warning leaves out
    /// nothing.
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
    let mut out = std::io::stdout().lock();
    let unsaid = "could not write to standard output";
    for source in &sources {
        let problems: Vec<&Problem> =
            loaded.problems.iter().filter(|problem| problem.file == source.name).collect();
        let text = if args.json { json(source, &problems) } else { table(source, &problems) };
        writeln!(out, "{text}").context(unsaid)?;
    }
    let bad = loaded.problems.iter().any(|problem| problem.error);
    if loaded.problems_left_out > 0 {
        eprintln!("{} more errors and warnings are not shown", loaded.problems_left_out);
    }
    if !args.json {
        writeln!(out, "{} files, {} rules usable", sources.len(), loaded.rules).context(unsaid)?;
    }
    Ok(match (unread, bad) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::from(1),
        (false, false) => ExitCode::SUCCESS,
    })
}

fn ask(rules: crate::worker::RuleSet) -> Result<Loaded> {
    let launcher = Launcher::own()?;
    let mut pool = Pool::new(Settings::new(launcher, rules));
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

fn table(source: &Source, problems: &[&Problem]) -> String {
    let name = &source.name; // escaped already: a file's name is bytes, and it stands for it everywhere
    let mut text = String::new();
    for problem in problems {
        let level = if problem.error { "error" } else { "warning" };
        let code = if problem.code.is_empty() { String::new() } else { format!("[{}]", problem.code) };
        // Of the file as a whole when there is no line.
        let place =
            if problem.line == 0 { String::new() } else { format!("{}:{}:", problem.line, problem.column) };
        let rule = if problem.rule.is_empty() { String::new() } else { format!(" in rule {}", problem.rule) };
        let message = escape::terminal(problem.message.as_bytes());
        text += &format!("{name}:{place} {level}{code}{}: {message}\n", escape::terminal(rule.as_bytes()));
    }
    text + &format!("{name}: {}", outcome(problems))
}

/// One file is one unit: an error in one rule costs all of them.
fn outcome(problems: &[&Problem]) -> String {
    let Some(first) = problems.iter().find(|problem| problem.error) else { return "ok".to_owned() };
    if first.rule.is_empty() {
        return "left out as a whole".to_owned();
    }
    let rule = escape::terminal(first.rule.as_bytes());
    format!("left out as a whole, with all its rules, for the error in rule {rule}")
}

fn json(source: &Source, problems: &[&Problem]) -> String {
    let told: Vec<serde_json::Value> = problems
        .iter()
        .map(|problem| {
            serde_json::json!({
                "level": if problem.error { "error" } else { "warning" },
                "line": problem.line, "column": problem.column,
                "code": problem.code, "rule": problem.rule, "message": problem.message,
            })
        })
        .collect();
    let ok = !problems.iter().any(|problem| problem.error);
    serde_json::json!({ "file": source.name, "ok": ok, "problems": told }).to_string()
}
