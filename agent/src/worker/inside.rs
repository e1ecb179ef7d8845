//! The worker's half: enter the sandbox, load the rules, scan what is handed over, until the parent closes.
//!
//! Its socket is descriptor 0. It opens nothing and knows no path. A panic anywhere ends the whole process: what the
//! parent must not get is a worker that lives on with half of its threads.

use super::messages::{
    Ask, Load, Loaded, REQUEST_BYTES_MAX, RawAnswer, Ready, Request, RuleFile, RuleFiles, Say, ScanRequest,
};
use super::scan::MATCHES_PER_PATTERN_MAX;
use super::{RULES_BYTES_MAX, THREADS_MAX, channel, clip, compile, scan};
use crate::sys::sandbox::{self, Violation};
use anyhow::{Context as _, Result, bail, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use prost::Message as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use vidette_protocol::limits::TEXT_BYTES_MAX;
use yara_x::{Rules, Scanner};

/// Parsers of nested formats recurse. Bytes.
const STACK_BYTES: usize = 8 << 20;

/// Runs until the parent closes the socket.
///
/// # Errors
/// One sentence; the parent has been told as well where that was possible.
pub fn run(violation: Violation) -> Result<ExitCode> {
    let socket = rustix::stdio::stdin();
    let _ = rustix::thread::set_name(c"vidette-worker");
    end_on_panic(socket);
    let entered = sandbox::enter(violation);
    let ready = match &entered {
        Ok(report) => Ready {
            landlock: report.landlock.to_owned(),
            user_dropped: report.user_dropped,
            failure: String::new(),
        },
        Err(error) => Ready { failure: clip(&format!("{error:#}"), TEXT_BYTES_MAX), ..Default::default() },
    };
    say(socket, Say::Ready(ready))?;
    entered?;
    let Some((load, files)) = receive_rules(socket)? else { return Ok(ExitCode::SUCCESS) };
    let compiled = compile::compile(&files);
    drop(files);
    say(
        socket,
        Say::Loaded(Loaded {
            version: load.version,
            rules: u32::try_from(compiled.rules.iter().count()).unwrap_or(u32::MAX),
            problems: compiled.problems,
            problems_left_out: compiled.left_out,
        }),
    )?;
    let threads = usize::try_from(load.threads).unwrap_or(1).clamp(1, THREADS_MAX);
    serve(socket, &compiled.rules, threads)
}

fn end_on_panic(socket: BorrowedFd<'static>) {
    std::panic::set_hook(Box::new(move |panic| {
        let _ = say(socket, Say::Dying(clip(&format!("the scanner panicked: {panic}"), TEXT_BYTES_MAX)));
        std::process::abort();
    }));
}

fn say(socket: BorrowedFd<'_>, say: Say) -> Result<()> {
    let message = RawAnswer { say: Some(say) }.encode_to_vec();
    channel::send(socket, &message, None).context("could not answer the agent")
}

fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Ask, OwnedFd)>> {
    let mut buffer = [0; REQUEST_BYTES_MAX];
    let Some(received) =
        channel::receive(socket, &mut buffer).context("could not read the agent's request")?
    else {
        return Ok(None);
    };
    let request = Request::decode(&buffer[..received.bytes]).context("could not read the agent's request")?;
    match (request.ask, received.descriptor) {
        (Some(ask), Some(descriptor)) => Ok(Some((ask, descriptor))),
        _ => bail!("the agent sent a request without its descriptor"),
    }
}

fn receive_rules(socket: BorrowedFd<'_>) -> Result<Option<(Load, Vec<RuleFile>)>> {
    let Some((ask, memory)) = receive(socket)? else { return Ok(None) };
    let Ask::Load(load) = ask else { bail!("the agent sent a file before the rules") };
    let mut bytes = Vec::new();
    loop {
        bytes.reserve(1 << 20);
        let at = bytes.len() as u64;
        let read = rustix::io::pread(&memory, rustix::buffer::spare_capacity(&mut bytes), at);
        if read.context("could not read the rules")? == 0 {
            break;
        }
        ensure!(bytes.len() <= 2 * RULES_BYTES_MAX, "the agent sent too many rules");
    }
    let files = RuleFiles::decode(bytes.as_slice()).context("could not read the rules")?;
    ensure!(files.is_bounded(), "the agent sent too many rule files");
    Ok(Some((load, files.files)))
}

/// The scanners borrow the rules and live on their threads: scope owns both.
fn serve(socket: BorrowedFd<'_>, rules: &Rules, threads: usize) -> Result<ExitCode> {
    let (jobs, taken) = bounded::<(ScanRequest, OwnedFd)>(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let taken = taken.clone();
            std::thread::Builder::new()
                .name("scanner".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, move || scan_all(socket, rules, &taken))
                .context("could not start a scanner thread")?;
        }
        hand_out(socket, &jobs)?;
        // The parent has closed: nobody waits for what is still being scanned.
        std::process::exit(0)
    })
}

fn hand_out(socket: BorrowedFd<'_>, jobs: &Sender<(ScanRequest, OwnedFd)>) -> Result<()> {
    while let Some((ask, file)) = receive(socket)? {
        let Ask::Scan(request) = ask else { bail!("the agent sent rules twice") };
        if jobs.send((request, file)).is_err() {
            bail!("every scanner thread has ended");
        }
    }
    Ok(())
}

fn scan_all(socket: BorrowedFd<'_>, rules: &Rules, jobs: &Receiver<(ScanRequest, OwnedFd)>) {
    let mut scanner = Scanner::new(rules);
    scanner.max_matches_per_pattern(MATCHES_PER_PATTERN_MAX).use_mmap(false);
    let mut buffer = Vec::new();
    for (request, file) in jobs {
        let answer = scan::scan(&mut scanner, &request, &file, &mut buffer);
        drop(file);
        if say(socket, Say::Scanned(answer)).is_err() {
            // The parent is gone; the main thread sees that too.
            return;
        }
    }
}
