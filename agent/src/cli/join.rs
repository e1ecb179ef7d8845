//! `vidette-agent join`: enrols this host with the line that `vidette tokens create` printed.
//!
//! The line comes by standard input or a file, never as an argument: arguments are visible to every user of the
//! host. What it writes is read by `transport` at the next start, or within seconds by an agent that runs already.

use crate::host::Host;
use crate::transport::{self, Enrolled, invited::invitation_in};
use anyhow::{Context, bail};
use rustix::fs::{FileType, Mode, OFlags};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vidette_protocol::escape;
use vidette_protocol::join::Invitation;

/// What is read before it is no join line any more. Bytes.
const INPUT_BYTES_MAX: u64 = 4096;

/// Enrol this host with a collector.
///
/// On the collector, `vidette tokens create` prints one line. Paste it here as root. Its token is good for one host and one
/// hour, unless it was made for more. The key is made on this host and never leaves it. After a join that was cut short,
/// the same line works again.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder of the agent's state [default: /var/lib/vidette-agent, or the user's own].
    #[arg(long, value_name = "FOLDER", default_value_os_t = crate::config::default_state(), hide_default_value = true)]
    pub state: PathBuf,
    /// Read the join line from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Join even if this host has joined before: it becomes a new agent.
    #[arg(long)]
    pub again: bool,
    /// Where the line does not belong: arguments are visible to every user of the host.
    #[arg(hide = true)]
    pub misplaced: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Runs it: exit code 0 when the host is enrolled, 2 when not.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    match try_run(arguments) {
        Ok(enrolled) => {
            println!("{}", if arguments.json { as_json(&enrolled, arguments) } else { as_text(&enrolled) });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vidette-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn try_run(arguments: &Arguments) -> anyhow::Result<Enrolled> {
    if arguments.misplaced.is_some() {
        bail!(
            "the line holds a secret and was given as an argument, which every user of this host can read: revoke it on the collector (`vidette tokens revoke`) and give a new one through standard input, as `vidette tokens create` prints it"
        );
    }
    let text = match &arguments.token_file {
        Some(path) => read_file(path).with_context(|| format!("could not read {}", path.display()))?,
        None => read_standard_input().context("could not read standard input")?,
    };
    let invitation: Invitation = invitation_in(&text).parse()?;
    transport::join_as(&invitation, &Host::read(), &arguments.state, arguments.again)
}

fn read_standard_input() -> anyhow::Result<String> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("Paste the line that `vidette tokens create` printed on the collector, then press Enter:");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut input.lock().take(INPUT_BYTES_MAX), &mut line)?;
        return Ok(line);
    }
    Ok(read_text(input.lock())?)
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        bail!("it is not a regular file");
    }
    Ok(read_text(std::fs::File::from(file))?)
}

fn read_text(input: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    input.take(INPUT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn as_text(enrolled: &Enrolled) -> String {
    let credentials = &enrolled.credentials;
    let mut text = format!("Joined {} as agent {}.", credentials.collector, credentials.agent);
    if enrolled.repeated {
        text += "\nThe collector had enrolled this host with this line before: it is the same agent, and no further use of the token.";
    }
    for older in &enrolled.replaces {
        text += &format!(
            "\nThe collector takes this host for that of agent {older}, which it lists as replaced from now on. If that host still \
             runs elsewhere, the two were copied from one image."
        );
    }
    text + "\nNext: start the agent with `vidette-agent run`, or `systemctl enable --now vidette-agent` \
         where it is installed as a service; if it runs already, it connects within seconds, and after --again when it is started anew.\nThen look for this host with `vidette agents list` on the collector."
}

fn as_json(enrolled: &Enrolled, arguments: &Arguments) -> String {
    let credentials = &enrolled.credentials;
    serde_json::json!({
        "agent.id": credentials.agent.to_string(),
        "collector": credentials.collector.to_string(),
        "certificate_expires_unix_s": credentials.expires_unix_s,
        "state": escape::terminal(arguments.state.as_os_str().as_encoded_bytes()),
        "replaces": enrolled.replaces.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "repeated": enrolled.repeated,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_invitation_is_found_alone_or_in_its_shell_line() {
        let one = "vidette://c:1/?pin=aa&token=BB";
        for text in
            [one.to_owned(), format!("{one}\n"), format!("  echo '{one}' | sudo vidette-agent join\n")]
        {
            assert_eq!(invitation_in(&text), one);
        }
        assert_eq!(invitation_in("nonsense"), "nonsense");
        assert_eq!(invitation_in(""), "");
    }
}
