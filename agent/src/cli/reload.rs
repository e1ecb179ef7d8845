//! `vidette-agent reload`: has the agent that runs here read its rule files and hash lists anew, without a moment in which
//! nothing is seen, and waits for what came of it. `systemctl reload vidette-agent` is the same.

use super::EXIT_ERROR;
use super::scan::progress;
use super::status::hash_lists;
use crate::config::Config;
use crate::status::{self, Report};
use anyhow::{bail, ensure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vidette_protocol::escape;

/// Thousands of rules and ten million digests take a minute or two on a slow host.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How often the agent is asked what came of it.
const LOOK: Duration = Duration::from_millis(50);
/// What a command gives back when something was left out.
const EXIT_LEFT_OUT: u8 = 1;

/// Below the options.
pub const NOTES: &str = "\
Reads anew the rule files and hash lists that the configuration named when the agent was started; other settings take a
restart. Until the new ones are ready the old ones are used. New rules of which none can be used are refused, and those before
stay.

Exit codes: 0 all in use, 1 something was left out, 2 the new ones are not in use.";

/// What was typed after `reload`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's state folder
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// When no agent answers, or does not tell what came of it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref(), args.state.as_deref())?;
    let before = status::reload(&config.state)?;
    let now = wait(&config.state, &before)?;
    let text = if args.json { json(&before, &now) } else { text(&before, &now) };
    if std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes()).is_err() {
        return Ok(ExitCode::from(EXIT_ERROR));
    }
    let refused = !now.reload.rules_refused.is_empty() || !now.reload.hashes_refused.is_empty();
    let left_out = !now.rule_errors.is_empty() || !now.hashes.errors.is_empty();
    Ok(match (refused, left_out) {
        (true, _) => ExitCode::from(EXIT_ERROR),
        (false, true) => ExitCode::from(EXIT_LEFT_OUT),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// Until the agent says what came of the request.
fn wait(state: &Path, before: &Report) -> anyhow::Result<Report> {
    let asked = before.reload.asked;
    ensure!(asked > 0, "the agent that runs here can't do this: it is of an older version; restart it");
    let bar = progress::bar()?;
    bar.set_message("rules and hash lists are being read");
    let start = Instant::now();
    while start.elapsed() < WAIT_MAX {
        let now = status::ask(state)?;
        ensure!(
            now.pid == before.pid,
            "the agent was restarted meanwhile, and reads everything anew at its start"
        );
        if now.reload.rules >= asked && now.reload.hashes >= asked {
            bar.finish_and_clear();
            return Ok(now);
        }
        std::thread::sleep(LOOK);
    }
    bail!("the agent did not say what came of it within {} s; look at its log", WAIT_MAX.as_secs())
}

fn json(before: &Report, now: &Report) -> String {
    serde_json::json!({
        "rules": now.rules,
        "rules_version": now.rules_version,
        "rules_version_before": before.rules_version,
        "rule_errors": now.rule_errors,
        "rules_refused": now.reload.rules_refused,
        "hashes": now.hashes,
        "hashes_version_before": before.hashes.version,
        "hashes_refused": now.reload.hashes_refused,
    })
    .to_string()
}

fn text(before: &Report, now: &Report) -> String {
    let mut lines = Vec::new();
    let news = |same| if same { "as before" } else { "new" };
    if !now.reload.rules_refused.is_empty() {
        lines.push(format!("The new rules are not in use: {}", now.reload.rules_refused));
        lines.push("  `vidette-agent rules check FILE…` says what is wrong with them".to_owned());
    }
    let same = now.rules_version == before.rules_version;
    lines.push(format!("Rules: {} in use, version {}, {}", now.rules, now.rules_version, news(same)));
    lines.extend(now.rule_errors.iter().map(|error| format!("  left out: {error}")));
    let hashes = &now.hashes;
    if !now.reload.hashes_refused.is_empty() {
        lines.push(format!("The new hash lists are not in use: {}", now.reload.hashes_refused));
    }
    if hashes.lists > 0 || !hashes.errors.is_empty() {
        lines.push(format!(
            "Hash lists: {}, {}",
            hash_lists(hashes),
            news(hashes.version == before.hashes.version)
        ));
    }
    let refused = &now.reload.hashes_refused;
    lines.extend(
        hashes.errors.iter().filter(|error| *error != refused).map(|error| format!("  mistake: {error}")),
    );
    lines.iter().map(|line| escape::terminal(line.as_bytes())).collect::<Vec<_>>().join("\n")
}
