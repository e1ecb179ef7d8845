//! A thread for batches that are large when unpacked: one after the other, in the order in which they came, and behind all
//! other work of this program when the processors are busy.
//!
//! An agent waits for its own batch before its next one is read, so each has one here at most, and who sends many large ones
//! makes nobody wait who sends small ones. What comes out goes on in `connection`.

use super::session::{Input, Output, Session};
use anyhow::Context;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// Batches that wait for this thread; agents beyond them wait for a place, first come, first served.
const WAITING_MAX: usize = 64;
/// What is added to this program's own (nice(2)): a third of the share of any other thread, when all want to run.
const NICENESS: i32 = 5;

type Done = (Session, Vec<Output>);

struct Job {
    session: Session,
    input: Input,
    done: oneshot::Sender<Done>,
}

/// The handle. The thread ends with the last one.
#[derive(Debug, Clone)]
pub(super) struct Unpacking(mpsc::Sender<Job>);

impl Unpacking {
    /// Starts the thread.
    pub(super) fn start() -> anyhow::Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("unpack".into())
            .spawn(move || work(waiting))
            .context("could not start the thread that unpacks batches")?;
        Ok(Self(jobs))
    }

    /// What the session makes of it; `None` after a fault of this program, which costs that session and no other.
    pub(super) async fn handle(&self, session: Session, input: Input) -> Option<Done> {
        let (done, answer) = oneshot::channel();
        self.0.send(Job { session, input, done }).await.ok()?;
        answer.await.ok()
    }
}

fn work(mut waiting: mpsc::Receiver<Job>) {
    lower_own_priority();
    while let Some(Job { mut session, input, done }) = waiting.blocking_recv() {
        let outputs = catch_unwind(AssertUnwindSafe(|| session.handle(input, Instant::now())));
        match outputs {
            Ok(outputs) => drop(done.send((session, outputs))), // the connection may be gone
            Err(_) => tracing::error!("unpacking a batch panicked, its session ends: report this"),
        }
    }
}

/// Of this thread alone (setpriority(2), "C library/kernel differences"). It does its work without, too.
fn lower_own_priority() {
    let own = Some(rustix::thread::gettid());
    let lowered = rustix::process::getpriority_process(own)
        .and_then(|now| rustix::process::setpriority_process(own, now + NICENESS));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the priority of a thread could not be lowered");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ingest::session::Stream;
    use vidette_protocol::id::AgentId;
    use vidette_protocol::wire::{self, ToCollector, to_collector};

    #[tokio::test]
    async fn a_session_comes_back_with_what_it_says() {
        let unpacking = Unpacking::start().unwrap();
        let hello = wire::Hello { protocol: 1, epoch: 7, ..Default::default() };
        let hello = ToCollector { message: Some(to_collector::Message::Hello(hello)) };
        let session = Session::new(AgentId([1; 16]), Instant::now());
        let mut there: Vec<_> = (0..3 * WAITING_MAX)
            .map(|_| unpacking.handle(Session::new(AgentId([2; 16]), Instant::now()), Input::Tick))
            .collect();
        let (mut session, outputs) =
            unpacking.handle(session, Input::Frame(Stream::Control, hello)).await.unwrap();
        assert!(outputs.contains(&Output::Load { epoch: 7 }), "{outputs:?}");
        let loaded = Input::Loaded { epoch: 7, durable: Vec::new(), time_unix_ns: 0 };
        assert_eq!(session.handle(loaded, Instant::now()).len(), 1, "it is the same session");
        for one in there.drain(..) {
            assert!(one.await.is_some_and(|(_, outputs)| outputs.is_empty()));
        }
    }
}
