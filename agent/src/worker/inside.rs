//! The worker's half: enter the sandbox, load the rules, scan what is handed over, until the parent closes.
//!
//! Its socket is descriptor 0. It opens nothing and knows no path. A panic anywhere ends the whole process: what the
//! parent must not get is a worker that lives on with half of its threads.

use super::clean::Table;
use super::messages::{
    ANSWER_BYTES_MAX, Ask, Load, REQUEST_BYTES_MAX, RawAnswer, Ready, Request, Say, ScanRequest, Scanned,
    ScannedFiles,
};
use super::parcels::{Parcels, Telling, Turn};
use super::sets::{Scanners, Seen, Sets};
use super::{THREADS_MAX, channel, clip, scan};
use crate::sys::sandbox::{self, Duty, Violation};
use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;
use vidette_protocol::limits::TEXT_BYTES_MAX;

/// Parsers of nested formats recurse. Bytes.
const STACK_BYTES: usize = 8 << 20;
/// Verdicts are told together up to this size, and held back no longer than this.
const TELLING: Telling = Telling { bytes_max: 16 << 10, time: Duration::from_millis(20) };
/// Messages with files that wait for a thread: the parent sends no more than a few for each.
const PARCELS_MAX: usize = 4 * THREADS_MAX;

const _: () = assert!(TELLING.bytes_max < ANSWER_BYTES_MAX);

/// Files and verdicts of all threads.
type Work = Parcels<(ScanRequest, OwnedFd), Scanned>;

/// Runs until the parent closes the socket.
///
/// # Errors
/// One sentence; the parent has been told as well where that was possible.
pub fn run(violation: Violation) -> Result<ExitCode> {
    let socket = rustix::stdio::stdin();
    let _ = rustix::thread::set_name(c"vidette-worker");
    end_on_panic(socket);
    enter(socket, violation, Duty::Scan)?;
    let Some((ask, descriptors)) = receive(socket)? else { return Ok(ExitCode::SUCCESS) };
    let Ask::Load(Load { version, threads, sets, clean }) = ask else {
        bail!("the agent sent a file before the rules")
    };
    let mut descriptors = descriptors.into_iter();
    let file = descriptors.next().context("the agent sent no rules")?;
    let seen = Seen::new(clean.zip(descriptors.next()).and_then(|(table, file)| Table::handed(file, &table)));
    let sets = Sets::new(file, sets);
    // The others when the first file needs them.
    sets.load_common().map_err(|error| last_words(socket, error))?;
    say(socket, Say::Loaded(version))?;
    let threads = usize::try_from(threads).unwrap_or(1).clamp(1, THREADS_MAX);
    serve(socket, &sets, &seen, threads)
}

/// Closes the sandbox and says so.
pub(super) fn enter(socket: BorrowedFd<'_>, violation: Violation, duty: Duty) -> Result<()> {
    let entered = sandbox::enter(violation, duty);
    let ready = match &entered {
        Ok(report) => Ready {
            landlock: report.landlock.to_owned(),
            user_dropped: report.user_dropped,
            failure: String::new(),
        },
        Err(error) => Ready { failure: clip(&format!("{error:#}"), TEXT_BYTES_MAX), ..Default::default() },
    };
    say(socket, Say::Ready(ready))?;
    entered.map(drop)
}

pub(super) fn end_on_panic(socket: BorrowedFd<'static>) {
    std::panic::set_hook(Box::new(move |panic| {
        let _ = say(socket, Say::Dying(clip(&format!("the scanner panicked: {panic}"), TEXT_BYTES_MAX)));
        std::process::abort();
    }));
}

fn last_words(socket: BorrowedFd<'_>, error: anyhow::Error) -> anyhow::Error {
    let _ = say(socket, Say::Dying(clip(&format!("{error:#}"), TEXT_BYTES_MAX)));
    error
}

pub(super) fn say(socket: BorrowedFd<'_>, say: Say) -> Result<()> {
    let message = RawAnswer { say: Some(say) }.encode_to_vec();
    channel::send(socket, &message, &[]).context("could not answer the agent")
}

pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Ask, Vec<OwnedFd>)>> {
    let mut buffer = [0; REQUEST_BYTES_MAX];
    let Some(received) =
        channel::receive(socket, &mut buffer).context("could not read the agent's request")?
    else {
        return Ok(None);
    };
    let bytes = buffer.get(..received.bytes).unwrap_or_default();
    let request = Request::decode(bytes).context("could not read the agent's request")?;
    let ask = request.ask.context("the agent sent a request that asks for nothing")?;
    Ok(Some((ask, received.descriptors)))
}

/// The scanners borrow the rules and live on their threads: scope owns both.
fn serve(socket: BorrowedFd<'_>, sets: &Sets, seen: &Seen, threads: usize) -> Result<ExitCode> {
    let work = Work::new(threads, TELLING);
    std::thread::scope(|scope| {
        let start = |number| {
            let work = &work;
            let scanner = std::thread::Builder::new().name("scanner".into()).stack_size(STACK_BYTES);
            let started =
                scanner.spawn_scoped(scope, move || scan_all(socket, sets, seen, work, number)).map(drop);
            started.context("could not start a scanner thread")
        };
        let ended = (0..threads).try_for_each(start).and_then(|()| hand_out(socket, &work));
        // Not by returning: scope would wait for threads that wait for files for ever. When the parent has closed, nobody
        // waits for what is still being scanned either.
        match ended {
            Ok(()) => std::process::exit(0),
            Err(error) => {
                last_words(socket, error);
                std::process::exit(1)
            }
        }
    })
}

fn hand_out(socket: BorrowedFd<'_>, work: &Work) -> Result<()> {
    while let Some((ask, files)) = receive(socket)? {
        let Ask::Scan(requests) = ask else { bail!("the agent sent rules twice") };
        if requests.files.len() != files.len() {
            bail!("the agent sent files without requests, or requests without files");
        }
        if work.add(requests.files.into_iter().zip(files).collect()) > PARCELS_MAX {
            bail!("the agent sent more files than it may");
        }
    }
    Ok(())
}

fn scan_all(socket: BorrowedFd<'_>, sets: &Sets, seen: &Seen, work: &Work, number: usize) {
    let mut scanners = Scanners::new(sets);
    let mut buffer = Vec::new();
    let mut answer = None;
    loop {
        match work.turn(number, answer.take()) {
            Turn::Scan((request, file)) => {
                let scanned = scan::scan(&mut scanners, seen, &request, &file, &mut buffer);
                // First: a file system that never lets go of a file is that file's fault.
                drop(file);
                // A key and a length beside it.
                let bytes = scanned.encoded_len() + 8;
                answer = Some((scanned, bytes));
            }
            Turn::Tell(files) => {
                if say(socket, Say::Scanned(ScannedFiles { files })).is_err() {
                    // The parent is gone; the main thread sees that too.
                    return;
                }
            }
        }
    }
}
