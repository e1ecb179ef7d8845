//! Whether the sandbox holds, tried from inside: `vidette-agent worker --probe` starts a worker that enters the very
//! sandbox of every worker that scans (with `--compile`: that compiles), tries what it must not be able to do, and says what it got. The outer half prints that,
//! and what the kernel says of the process.

use super::channel;
use super::process::Launcher;
use crate::sys::attempts;
use crate::sys::sandbox::{self, Duty, Violation};
use anyhow::{Context as _, Result};
use rustix::process::Pid;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::ExitCode;

/// One line of the inner half. Bytes.
const LINE_BYTES_MAX: usize = 256;
/// What of `/proc/PID/status` shows the sandbox (proc_pid_status(5)).
const STATUS_KEYS: [&str; 10] =
    ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];

/// The outer half. Prints `attempt<TAB>errno N` or `attempt<TAB>ALLOWED`, then `status<TAB>Key<TAB>value`. Exit code
/// 0 when everything was denied, else 1.
///
/// # Errors
/// The probe could not be run.
pub fn run(violation: Violation, compile: bool) -> Result<ExitCode> {
    let launcher = Launcher::own()?.with_violation(violation);
    let mut command = launcher.command();
    command.arg("--probe-inside");
    if compile {
        command.arg("--compile");
    }
    let (ours, theirs) = super::process::socket_pair()?;
    let mut child = command.stdin(theirs).spawn().context("could not start the probe")?;
    // It holds the other end of the socket.
    drop(command);
    let mut denied = true;
    let mut buffer = [0; LINE_BYTES_MAX];
    while let Some(received) =
        channel::receive(ours.as_fd(), &mut buffer).context("could not hear the probe")?
    {
        let line = String::from_utf8_lossy(&buffer[..received.bytes]).into_owned();
        if line == "end" {
            print_status(child.id())?;
            break;
        }
        denied &= !line.ends_with("ALLOWED");
        println!("{line}");
    }
    drop(ours);
    let status = child.wait().context("could not wait for the probe")?;
    println!("ended\t{status}");
    Ok(if denied && status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_status(pid: u32) -> Result<()> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .context("could not read the probe's status")?;
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if STATUS_KEYS.contains(&key) {
            println!("status\t{key}\t{}", value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(())
}

/// The inner half: waits after its attempts, so that it can be looked at, until the outer half closes.
///
/// # Errors
/// The sandbox could not be entered.
pub fn inside(violation: Violation, compile: bool) -> Result<ExitCode> {
    let socket = rustix::stdio::stdin();
    let parent = rustix::process::getppid().map_or(1, Pid::as_raw_pid);
    let report = sandbox::enter(violation, if compile { Duty::Compile } else { Duty::Scan })?;
    say(socket, &format!("landlock\t{}", report.landlock))?;
    for (attempt, error) in attempts::all(parent) {
        let got = error.map_or_else(|| "ALLOWED".to_owned(), |number| format!("errno {number}"));
        say(socket, &format!("{attempt}\t{got}"))?;
    }
    say(socket, "end")?;
    let _ = channel::receive(socket, &mut [0; LINE_BYTES_MAX]);
    Ok(ExitCode::SUCCESS)
}

fn say(socket: BorrowedFd<'_>, line: &str) -> Result<()> {
    channel::send(socket, line.as_bytes(), &[]).context("could not tell the outer half")
}
