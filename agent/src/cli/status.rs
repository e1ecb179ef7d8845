//! `vidette-agent status`: asks the agent that runs on this host how it is.

use super::EXIT_ERROR;
use crate::config::Config;
use crate::detection::hashes::Summary;
use crate::status::{self, Report, Rescan, Sweep};
use comfy_table::{Table, presets};
use std::path::PathBuf;
use std::process::ExitCode;
use vidette_protocol::escape;

/// What was typed after `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's state folder
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Prints the answer. Exit code 0 when an agent answered.
///
/// # Errors
/// When none did.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref(), args.state.as_deref())?;
    let report = status::ask(&config.state)?;
    let text = if args.json { serde_json::to_string(&report)? } else { table(&report) };
    if std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes()).is_err() {
        return Ok(ExitCode::from(EXIT_ERROR));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), escape::terminal(value.as_bytes())]);
    };
    row("version", report.version.clone());
    row("agent", if report.agent_id.is_empty() { "not joined".into() } else { report.agent_id.clone() });
    row("process", format!("{}, {} resident", report.pid, mebibytes(report.memory_bytes)));
    row(
        "scanner",
        match report.worker_pid {
            Some(pid) => format!("{pid}, {} resident", mebibytes(report.worker_memory_bytes)),
            None => "resting".into(),
        },
    );
    row("running since", time(report.started_unix_s));
    row("sensors", join(&report.level, &report.level_reason));
    if !report.self_test.is_empty() {
        row("self-test", report.self_test.clone());
    }
    row("rules", format!("{} (version {})", report.rules, report.rules_version));
    for error in &report.rule_errors {
        row("rule left out", error.clone());
    }
    if !report.reload.rules_refused.is_empty() {
        row("rules not in use", report.reload.rules_refused.clone());
    }
    if report.hashes.lists > 0 || report.hashes.building || !report.hashes.errors.is_empty() {
        row("hash lists", hash_lists(&report.hashes));
    }
    for error in &report.hashes.errors {
        row("in hash lists", error.clone());
    }
    if !report.scan_time.is_empty() {
        row("scan time", report.scan_time.clone());
    }
    if report.poisoned > 0 {
        row("not scanned again", format!("{} files that killed the scanner", report.poisoned));
        for file in &report.poisoned_files {
            let path = if file.path.is_empty() { "a file whose name is not known" } else { &file.path };
            row("", format!("{path}: {} (rules {})", file.reason, file.rules_version));
        }
    }
    row("collector", join(&report.transport, &report.transport_detail));
    if report.certificate_expires_unix_s != 0 {
        row("certificate until", time(report.certificate_expires_unix_s));
    }
    if !report.renewal_error.is_empty() {
        row("not renewed", report.renewal_error.clone());
    }
    if !report.clock.is_empty() {
        row("clock", report.clock.clone());
    }
    row(
        "outbox",
        format!(
            "{} events, {}, oldest {:.1} s",
            report.outbox_events,
            mebibytes(report.outbox_bytes),
            report.oldest_event_age_ms as f64 / 1000.0
        ),
    );
    row("rescan", rescan(&report.rescan));
    row("sweep", sweep(&report.sweep));
    for equation in report.equations.iter().filter(|equation| !equation.holds()) {
        row("on its way", format!("{}: {} and {}", equation.text, equation.left, equation.right));
    }
    for (name, value) in &report.counters {
        row(&name.replace('_', " "), value.to_string());
    }
    table.trim_fmt()
}

pub(super) fn hash_lists(lists: &Summary) -> String {
    let building = if lists.building { "; others are being made" } else { "" };
    if lists.lists == 0 {
        return format!("none in use{building}");
    }
    format!(
        "{} digests of {} lists ({}), {} in memory, {} on disk{building}",
        lists.entries,
        lists.lists,
        lists.kinds.join(", "),
        mebibytes(lists.memory_bytes),
        mebibytes(lists.disk_bytes)
    )
}

fn rescan(rescan: &Rescan) -> String {
    let doing = match (rescan.reason.as_str(), rescan.owed) {
        ("", false) => "nothing to do".to_owned(),
        ("", true) => "waits".to_owned(),
        (reason, _) => format!(
            "looks again for {:.1} s ({reason}): {} files, {} changed",
            rescan.running_ms as f64 / 1000.0,
            rescan.files,
            rescan.changed
        ),
    };
    format!("{doing}; {} runs", rescan.runs)
}

fn sweep(sweep: &Sweep) -> String {
    let seconds = sweep.took_ms as f64 / 1000.0;
    let rate = sweep.files as f64 / seconds.max(0.001);
    let Sweep { files, known, matched, .. } = sweep;
    let last = match sweep.finished_unix_s {
        0 => "none was whole yet".to_owned(),
        at => format!("the last whole one ended at {}", time(at)),
    };
    if sweep.running {
        let doing = if sweep.held { "gives way" } else { "goes on" };
        return format!(
            "{doing} since {}: {files} files, {rate:.0} a second, {known} known to be clean, {matched} matched; {last}",
            time(sweep.began_unix_s)
        );
    }
    let next = match sweep.next_unix_s {
        0 => String::new(),
        at => format!("; the next at {}", time(at)),
    };
    match sweep.began_unix_s {
        0 => format!("{last}{next}"),
        _ => format!(
            "{last}; {files} files in {seconds:.1} s, {known} known to be clean, {matched} matched{next}"
        ),
    }
}

fn join(word: &str, detail: &str) -> String {
    if detail.is_empty() { word.to_owned() } else { format!("{word}: {detail}") }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

pub(super) fn time(unix_s: i64) -> String {
    jiff::Timestamp::from_second(unix_s).map_or_else(|_| unix_s.to_string(), |time| time.to_string())
}
