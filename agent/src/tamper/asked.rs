//! Who asked the agent to stop, in words: what the kernel says with the signal, and what the process table adds.
//!
//! Pure. When systemd sends the signal, the kernel says no more than that it was the first process: who asked systemd is not
//! known here, and a program that ran shortly before is called a hint and nothing else.

use super::Told;
use crate::stop::Asked;
use vidette_protocol::escape::terminal;
use vidette_protocol::wire::{self, Severity};

/// Programs by which people stop services, hosts and packages.
pub const HINTS: &[&[u8]] = &[
    b"systemctl",
    b"service",
    b"shutdown",
    b"reboot",
    b"poweroff",
    b"halt",
    b"init",
    b"telinit",
    b"dpkg",
    b"rpm",
    b"apt",
    b"apt-get",
    b"dnf",
];
/// Arguments of a hint that are shown.
const ARGUMENTS_MAX: usize = 8;
/// A hint is at most so long. Bytes.
const HINT_BYTES_MAX: usize = 200;

/// The last event of a run. `process` is the sender, `lately` what ran shortly before and has one of [`HINTS`]' names.
#[must_use]
pub fn stopped(asked: Option<Asked>, process: Option<wire::Process>, lately: &[wire::Process]) -> Told {
    let told =
        |severity, detail: String, process| Told { action: "agent-stopped", severity, detail, process };
    let Some(asked) = asked else { return told(Severity::Info, "asked to stop".to_owned(), None) };
    let signal = asked.signal;
    match asked.sender {
        None => {
            let detail =
                format!("{signal} from the kernel: somebody pressed a key, or the terminal was closed");
            told(Severity::Low, detail, None)
        }
        Some((0, uid)) => {
            let detail =
                format!("{signal} from user {uid}, by a process outside of the agent's process namespace");
            told(Severity::Medium, detail, None)
        }
        Some((1, _)) => {
            let detail = format!(
                "{signal} from the first process: asked through systemd, to stop or restart the service or the host{}",
                hint(lately)
            );
            told(Severity::Medium, detail, None)
        }
        Some((pid, uid)) => {
            let who =
                process.as_ref().map_or_else(|| "which program that is, is not known".to_owned(), shown);
            told(Severity::High, format!("{signal} from user {uid}, by process {pid}: {who}"), process)
        }
    }
}

fn hint(lately: &[wire::Process]) -> String {
    let all: Vec<String> = lately
        .iter()
        .map(|process| format!("`{}` (pid {}, user {})", shown(process), process.pid, user(process)))
        .collect();
    if all.is_empty() { String::new() } else { format!("; hint: shortly before ran {}", all.join(", ")) }
}

fn user(process: &wire::Process) -> String {
    if !process.user_name.is_empty() {
        return terminal(&process.user_name);
    }
    process.uid.map_or_else(|| "unknown".to_owned(), |uid| uid.to_string())
}

fn shown(process: &wire::Process) -> String {
    let rest = process.args.iter().skip(1).take(ARGUMENTS_MAX);
    let first = if process.executable.is_empty() { &process.name } else { &process.executable };
    let words: Vec<String> = std::iter::once(first).chain(rest).map(|word| terminal(word)).collect();
    let mut text = words.join(" ");
    text.truncate(text.floor_char_boundary(HINT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Moment;

    fn asked(sender: Option<(u32, u32)>) -> Option<Asked> {
        Some(Asked { signal: "SIGTERM", sender, at: Moment { unix_ns: 0, uptime_ns: 0 } })
    }

    fn process(args: &[&[u8]]) -> wire::Process {
        wire::Process {
            pid: 77,
            executable: b"/usr/bin/x\x1b[2J".to_vec(),
            args: args.iter().map(|argument| argument.to_vec()).collect(),
            uid: Some(1000),
            ..wire::Process::default()
        }
    }

    #[test]
    fn a_process_that_kills_is_named_and_is_worse_than_systemd() {
        let killer = process(&[b"kill", b"4"]);
        let told = stopped(asked(Some((77, 1000))), Some(killer.clone()), &[]);
        assert_eq!((told.severity, told.process), (Severity::High, Some(killer.clone())));
        assert!(
            told.detail.contains("SIGTERM from user 1000, by process 77") && !told.detail.contains('\x1b')
        );
        let told = stopped(asked(Some((1, 0))), None, &[killer]);
        assert_eq!((told.severity, told.process), (Severity::Medium, None));
        assert!(told.detail.contains("hint: shortly before ran") && told.detail.contains("user 1000"));
        assert_eq!(stopped(asked(Some((1, 0))), None, &[]).detail.matches("hint").count(), 0);
    }

    #[test]
    fn nobody_is_named_who_is_not_known() {
        for sender in [None, Some((0, 5)), Some((9, 5))] {
            assert_eq!(stopped(asked(sender), None, &[]).process, None);
        }
        assert_eq!(stopped(None, None, &[]).severity, Severity::Info);
    }

    #[test]
    fn hints_are_short() {
        let long = process(&[&b"x"[..], &[b'a'; 4000]]);
        assert!(stopped(asked(Some((1, 0))), None, &[long.clone(), long.clone(), long]).detail.len() < 1024);
    }
}
