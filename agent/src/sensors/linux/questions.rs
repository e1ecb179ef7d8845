//! What others ask of the reader, which alone knows who is who: bounded, and nobody waits for long.
//!
//! Assumes that questions are rare: one when the agent is asked to stop.

use crate::host::Moment;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::EventfdFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::wire;

/// Questions that wait.
const QUESTIONS_MAX: usize = 4;
/// A reader that does not answer within this hangs, or is behind.
const ANSWER_WAIT: Duration = Duration::from_millis(1500);

/// One question.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) pid: u32,
    pub(crate) names: Vec<&'static [u8]>,
    pub(crate) at: Moment,
    reply: Sender<Answer>,
}

/// Its answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Who had that pid then.
    pub(crate) process: Option<wire::Process>,
    /// The newest with one of those names.
    pub(crate) lately: Vec<wire::Process>,
}

/// Asks.
#[derive(Debug)]
pub(crate) struct Asker {
    event: Arc<OwnedFd>,
    questions: Sender<Question>,
}

/// Is asked. Readable when a question waits.
#[derive(Debug)]
pub(crate) struct Asked {
    event: Arc<OwnedFd>,
    questions: Receiver<Question>,
}

/// Both ends.
///
/// # Errors
/// When the kernel makes no eventfd.
pub(crate) fn channel() -> rustix::io::Result<(Asker, Asked)> {
    let event = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, questions) = bounded(QUESTIONS_MAX);
    Ok((Asker { event: event.clone(), questions: sender }, Asked { event, questions }))
}

impl Asker {
    /// None when there is no answer in time.
    pub(crate) fn ask(&self, pid: u32, names: Vec<&'static [u8]>, at: Moment) -> Option<Answer> {
        let (reply, answer) = bounded(1);
        self.questions.try_send(Question { pid, names, at, reply }).ok()?;
        rustix::io::write(&*self.event, &1u64.to_ne_bytes()).ok()?;
        answer.recv_timeout(ANSWER_WAIT).ok()
    }
}

impl Question {
    /// To whoever asked, if it still waits.
    pub(crate) fn answer(self, answer: Answer) {
        let _ = self.reply.try_send(answer);
    }
}

impl Asked {
    /// The next one.
    pub(crate) fn next(&self) -> Option<Question> {
        let question = self.questions.try_recv().ok()?;
        let _ = rustix::io::read(&*self.event, &mut [0; 8]); // nothing waits: another turn took it
        Some(question)
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
