//! `vidette ca …`: the CA that every agent trusts, and its replacement without touching a host.
//!
//! `identity::rotation` decides; this file asks, turns it into rows and shows them. `sign` alone works without a collector:
//! it is for the machine where a root's key is kept.

use super::socket::Request;
use super::socket::client::ask_one;
use super::{Common, output, time};
use crate::identity::{self, Behind, CaPicture, CaState, Retired};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vidette_protocol::escape::terminal;

/// What is read of a request or a certificate: less than a request to the collector may be. Bytes.
const GIVEN_BYTES_MAX: u64 = 6 << 10;
/// Agents that are named when a retirement is refused.
const BEHIND_SHOWN_MAX: usize = 1000;

const SHOW: &str = "\
STATE      active: it issues; prepared: agents are told to trust it; previous: it is trusted until it is retired
CONFIRMED  agents that have stored its certificate
HOLDERS    agents whose own certificate comes from it

Example:
  vidette ca show --json | jq '.behind[].host'";

const PREPARE: &str = "\
The first of three steps; each can wait for days. Connected agents are told at once, others when they come back.
Nothing is issued by the new CA yet, and `vidette ca withdraw` undoes it.

With --request the key is made here and its certificate elsewhere, by a root whose key this collector never has:
  vidette ca prepare --request ca.csr           on the collector
  vidette ca sign --root /root/vidette-root --request ca.csr --out ca.pem     on a machine of its own
  vidette ca prepare --certificate ca.pem       on the collector: agents are told to trust that root

Any other CA may sign it, as the CA of at least one more below it, and under the name in the request. The file for
--certificate holds the new certificate and after it its root's.

Examples:
  vidette ca prepare
  vidette ca show                                wait until CONFIRMED is the number of agents";

const ACTIVATE: &str = "\
The second step. From now on certificates come from the new CA; agents renew theirs within minutes. Agents that were away
and know only the old CA can still connect, and join lines that were made before work until the old CA is retired.

Example:
  vidette ca activate";

const RETIRE: &str = "\
The last step. It is refused as long as an agent needs the old CA, and says which: exit code 1. With --force these are
locked out and have to be joined again. Join lines that were made before the activation work no more. It can't be undone.

Examples:
  vidette ca retire --yes
  vidette ca retire --force --yes                a host that never comes back: better `vidette agents revoke` it";

const WITHDRAW: &str = "\
Only before it is activated. Agents trust it no longer.

Example:
  vidette ca withdraw";

const SIGN: &str = "\
Works without a collector. The folder gets `ca-key.pem` and `ca.pem` when it has none: keep it where no attacker of the
collector comes, and a copy of it.

Example:
  vidette ca sign --root /root/vidette-root --request ca.csr --out ca.pem";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the CAs, who has followed, and the collector's own certificate
    #[command(after_help = SHOW)]
    Show {
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Make the next CA and have every agent trust it
    #[command(after_help = PREPARE)]
    Prepare {
        /// Make only its key, and write the request for its certificate to this file
        #[arg(long, value_name = "FILE", conflicts_with = "certificate")]
        request: Option<PathBuf>,
        /// The certificate that was made for the request, followed by its root's
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Issue from the prepared CA
    #[command(after_help = ACTIVATE)]
    Activate {
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Trust the old CA no longer
    #[command(after_help = RETIRE)]
    Retire {
        /// Also when that locks agents out
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Forget the prepared CA
    #[command(after_help = WITHDRAW)]
    Withdraw {
        /// Where and how
        #[command(flatten)]
        common: Common,
    },
    /// Sign a collector's request with a root that is kept elsewhere
    #[command(after_help = SIGN)]
    Sign(Sign),
}

/// Options of `sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// Folder of the root; it is made when there is none
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// What `vidette ca prepare --request` wrote
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where the certificate goes, followed by the root's
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What is asked of the collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// One [`Row`].
    Show,
    /// One [`Changed`].
    Prepare,
    /// One [`Changed`] with a request.
    Request,
    /// One [`Changed`].
    Certificate(String),
    /// One [`Changed`].
    Activate,
    /// One [`Changed`]; or, when agents are in the way, one that was not done.
    Retire {
        /// Do it anyway.
        force: bool,
        /// Only ask who is in the way.
        only_look: bool,
    },
    /// One [`Changed`].
    Withdraw,
}

/// Everything about the CAs. Names are harmless on a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// `alone`, `requested`, `prepared` or `rotated`.
    pub stage: String,
    /// The active one first.
    pub cas: Vec<CaRow>,
    /// Agents that count.
    pub agents: u64,
    /// Of them, those that need the old CA.
    pub behind: Vec<BehindRow>,
    /// End of the collector's own certificate, Unix seconds.
    pub own_expires_unix_s: i64,
    /// When that is renewed, Unix seconds.
    pub own_renews_unix_s: i64,
    /// What is wrong with it.
    #[serde(default)]
    pub own_trouble: Option<String>,
}

/// One CA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRow {
    /// `active`, `prepared` or `previous`.
    pub state: String,
    /// SHA-256 of the root's public key, hex.
    pub pin: String,
    /// SHA-256 of the key that signs, hex: another one than the pin when the root's key is kept elsewhere.
    pub signs: String,
    /// Unix seconds.
    pub expires_unix_s: i64,
    /// Agents that have stored its certificate.
    pub confirmed: u64,
    /// Agents whose certificate comes from it.
    pub holders: u64,
}

/// An agent that needs the old CA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehindRow {
    /// 32 hex digits.
    pub id: String,
    /// Host name.
    pub host: String,
    /// Unix seconds.
    pub last_seen_unix_s: i64,
    /// What is missing.
    pub why: String,
}

/// What came of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Whether it was done.
    pub done: bool,
    /// The CA that it was about, hex; empty when it has no certificate.
    pub pin: String,
    /// PKCS#10 in PEM, of `prepare --request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Agents that are in the way of a retirement, or that were locked out by it; at most 1000.
    #[serde(default)]
    pub behind: Vec<BehindRow>,
    /// How many.
    #[serde(default)]
    pub behind_count: u64,
}

/// The old CA is still needed: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("the old CA is still needed")]
pub struct StillNeeded;

impl Row {
    /// For the socket.
    #[must_use]
    pub fn new(picture: &CaPicture) -> Self {
        let hex = |pin: &[u8; 32]| data_encoding::HEXLOWER.encode(pin);
        let row = |ca: &identity::CaInfo| CaRow {
            state: state(ca.state).into(),
            pin: hex(&ca.pin),
            signs: hex(&ca.signs),
            expires_unix_s: ca.expires_unix_s,
            confirmed: ca.confirmed,
            holders: ca.holders,
        };
        Self {
            stage: picture.stage.name().into(),
            cas: picture.cas.iter().map(row).collect(),
            agents: picture.agents,
            behind: picture.behind.iter().take(BEHIND_SHOWN_MAX).map(BehindRow::new).collect(),
            own_expires_unix_s: picture.own.expires_unix_s,
            own_renews_unix_s: picture.own.renews_unix_s,
            own_trouble: picture.own.trouble.as_ref().map(|why| terminal(why.as_bytes())),
        }
    }
}

impl BehindRow {
    fn new(behind: &Behind) -> Self {
        Self {
            id: behind.agent.to_string(),
            host: terminal(&behind.host_name),
            last_seen_unix_s: behind.last_seen_unix_s,
            why: behind.why.into(),
        }
    }
}

impl Changed {
    /// A step that was done.
    #[must_use]
    pub fn done(pin: Option<[u8; 32]>) -> Self {
        let pin = pin.map(|pin| data_encoding::HEXLOWER.encode(&pin)).unwrap_or_default();
        Self { done: true, pin, ..Self::default() }
    }

    /// Of a retirement.
    #[must_use]
    pub fn retired(retired: &Retired) -> Self {
        let behind = retired.behind.iter().take(BEHIND_SHOWN_MAX).map(BehindRow::new).collect();
        let behind_count = retired.behind.len() as u64;
        Self { done: retired.is_done, behind, behind_count, ..Self::done(Some(retired.pin)) }
    }
}

fn state(state: CaState) -> &'static str {
    match state {
        CaState::Active => "active",
        CaState::Prepared => "prepared",
        CaState::Previous => "previous",
    }
}

/// Runs one.
///
/// # Errors
/// For standard error; [`StillNeeded`] when it was said on standard output.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Show { common } => show(&common),
        Command::Prepare { request: Some(file), certificate: None, common } => request(&file, &common),
        Command::Prepare { request: _, certificate: Some(file), common } => {
            let step = Step::Certificate(read(&file)?);
            say(&ask(&common, step)?, &common, "is prepared; agents are told to trust its root")
        }
        Command::Prepare { request: None, certificate: None, common } => {
            say(&ask(&common, Step::Prepare)?, &common, "is prepared; agents are told to trust it")
        }
        Command::Activate { common } => say(
            &ask(&common, Step::Activate)?,
            &common,
            "issues from now on; the one before is still trusted",
        ),
        Command::Withdraw { common } => say(&ask(&common, Step::Withdraw)?, &common, "is withdrawn"),
        Command::Retire { force, yes, common } => retire(force, yes, &common),
        Command::Sign(options) => sign(&options),
    }
}

fn ask(common: &Common, step: Step) -> anyhow::Result<Changed> {
    ask_one(&common.socket(), &Request::Ca { step })
}

fn say(changed: &Changed, common: &Common, what: &str) -> anyhow::Result<()> {
    if common.json {
        return output::json(changed);
    }
    if changed.pin.is_empty() {
        return output::line(&format!("the next CA {what}"));
    }
    output::line(&format!("the CA {} {what}", output::safe(&changed.pin)))
}

fn request(file: &Path, common: &Common) -> anyhow::Result<()> {
    let changed = ask(common, Step::Request)?;
    let text =
        changed.request.as_deref().context("the collector gave no request; are both of the same version?")?;
    write(file, text)?;
    if common.json {
        return output::json(&changed);
    }
    output::line(&format!("the request is in {}", file.display()))?;
    output::hint(
        "have it signed (`vidette ca sign` on a machine of its own), then `vidette ca prepare --certificate FILE`",
    );
    Ok(())
}

fn retire(force: bool, yes: bool, common: &Common) -> anyhow::Result<()> {
    let looked = ask(common, Step::Retire { force, only_look: true })?;
    let is_blocked = looked.behind_count > 0 && !force;
    if !is_blocked && !yes {
        let question = match looked.behind_count {
            0 => format!("Trust the CA {} no longer, for good?", output::safe(&looked.pin)),
            count => {
                format!("Trust the CA {} no longer and lock {count} agents out?", output::safe(&looked.pin))
            }
        };
        confirm(&question)?;
    }
    let changed = if is_blocked { looked } else { ask(common, Step::Retire { force, only_look: false })? };
    if common.json {
        output::json(&changed)?;
    } else {
        say_retired(&changed)?;
    }
    if changed.done { Ok(()) } else { Err(StillNeeded.into()) }
}

fn say_retired(changed: &Changed) -> anyhow::Result<()> {
    let count = changed.behind_count;
    let pin = output::safe(&changed.pin);
    match (changed.done, count) {
        (true, 0) => return output::line(&format!("the CA {pin} is retired; nobody needed it")),
        (true, _) => output::line(&format!("the CA {pin} is retired; {count} agents are locked out:"))?,
        (false, _) => output::line(&format!("the CA {pin} is still needed by {count} agents:"))?,
    }
    behind(&changed.behind)?;
    if !changed.done {
        output::hint(
            "wait for them, `vidette agents revoke` those that never come back, or lock them out with --force",
        );
    }
    Ok(())
}

fn behind(rows: &[BehindRow]) -> anyhow::Result<()> {
    let cells = |row: &BehindRow| {
        let seen = time::ago(row.last_seen_unix_s.saturating_mul(1_000_000_000));
        vec![output::safe(&row.id), output::safe(&row.host), seen, output::safe(&row.why)]
    };
    output::table(&["ID", "HOST", "LAST SEEN", "WHY"], rows.iter().map(cells))
}

fn show(common: &Common) -> anyhow::Result<()> {
    let row: Row = ask_one(&common.socket(), &Request::Ca { step: Step::Show })?;
    if common.json {
        return output::json(&row);
    }
    let at = |unix_s: i64| time::show(unix_s.saturating_mul(1_000_000_000));
    let cells = |ca: &CaRow| {
        let key = if ca.pin == ca.signs { "here" } else { "elsewhere" };
        let of = |count: u64| format!("{count} of {}", row.agents);
        vec![
            output::safe(&ca.state),
            output::safe(&ca.pin),
            key.into(),
            at(ca.expires_unix_s),
            of(ca.confirmed),
            of(ca.holders),
        ]
    };
    output::table(
        &["STATE", "PIN", "ROOT KEY", "EXPIRES", "CONFIRMED", "HOLDERS"],
        row.cas.iter().map(cells),
    )?;
    let mut lines = vec![(
        "own certificate",
        format!("ends {}, renewed at {}", at(row.own_expires_unix_s), at(row.own_renews_unix_s)),
    )];
    lines.extend(row.own_trouble.as_ref().map(|why| ("trouble", output::safe(why))));
    lines.push(("next", next(&row)));
    output::list(&lines)?;
    if row.behind.is_empty() { Ok(()) } else { behind(&row.behind) }
}

/// What an admin does now.
fn next(row: &Row) -> String {
    let prepared = row.cas.iter().find(|ca| ca.state == "prepared");
    match (row.stage.as_str(), prepared) {
        ("requested", _) => "have the request signed, then `vidette ca prepare --certificate FILE`".into(),
        (_, Some(ca)) if ca.confirmed >= row.agents => "all agents trust it: `vidette ca activate`".into(),
        (_, Some(ca)) => format!(
            "{} agents have not confirmed; wait, or `vidette ca activate`: they follow when they come back",
            row.agents - ca.confirmed
        ),
        ("rotated", None) if row.behind.is_empty() => "nobody needs the old one: `vidette ca retire`".into(),
        ("rotated", None) => format!("{} agents still need the old one", row.behind.len()),
        _ => "nothing to do; `vidette ca prepare` begins a replacement".into(),
    }
}

fn sign(options: &Sign) -> anyhow::Result<()> {
    let request = read(&options.request)?;
    let (text, pin, is_new) = identity::sign_offline(&options.root, &request, identity::unix_s_now())?;
    write(&options.out, &text)?;
    if is_new {
        output::hint(&format!("a new root was made in {}; keep a copy of it", options.root.display()));
    }
    output::line(&format!(
        "the certificate is in {}, signed by the root {}",
        options.out.display(),
        data_encoding::HEXLOWER.encode(&pin)
    ))
}

fn confirm(question: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("nothing was changed; this can't be undone, so say --yes");
    }
    let _ = write!(std::io::stderr(), "{question} [yes/no] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("could not read the answer")?;
    if answer.trim() != "yes" {
        bail!("nothing was changed");
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let context = || format!("could not read {}", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(context)?;
    file.take(GIVEN_BYTES_MAX + 1).read_to_string(&mut text).with_context(context)?;
    if text.len() as u64 > GIVEN_BYTES_MAX {
        bail!(
            "{} is longer than {GIVEN_BYTES_MAX} bytes; it must hold no more than is needed",
            path.display()
        );
    }
    Ok(text)
}

/// Public things, but nobody else's file is written over.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let next = "name a file that is not there yet, in a folder that you may write to";
    let context = || format!("could not write {}; {next}", path.display());
    let mut file =
        File::options().write(true).create_new(true).mode(0o644).open(path).with_context(context)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_says_what_comes_next() {
        let ca = |state: &str, confirmed| CaRow { state: state.into(), confirmed, ..CaRow::default() };
        let row =
            |stage: &str, cas, behind| Row { stage: stage.into(), cas, agents: 3, behind, ..Row::default() };
        let table = [
            (row("alone", vec![ca("active", 3)], vec![]), "`vidette ca prepare` begins"),
            (row("requested", vec![ca("active", 3)], vec![]), "--certificate"),
            (row("prepared", vec![ca("active", 3), ca("prepared", 2)], vec![]), "1 agents have not"),
            (row("prepared", vec![ca("active", 3), ca("prepared", 3)], vec![]), "`vidette ca activate`"),
            (row("rotated", vec![ca("active", 3), ca("previous", 3)], vec![]), "`vidette ca retire`"),
            (row("rotated", vec![ca("active", 2)], vec![BehindRow::default()]), "1 agents still"),
        ];
        for (row, word) in table {
            assert!(next(&row).contains(word), "{row:?}: {}", next(&row));
        }
    }
}
