//! The one way to end: a flag that every stage can poll, wait for, or select on.
//!
//! Only the first and the last stage hear it; what lies between ends when its input closes.

use crate::host::Moment;
use crate::sys::signals;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The exit code after a second signal: somebody would not wait for the clean stop.
const EXIT_IMPATIENT: i32 = 130;

/// Who asked for the end, as far as the kernel says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The signal's name.
    pub signal: &'static str,
    /// Pid (0 for one outside of our namespace) and real user of the process that sent it; none when it was the kernel, as
    /// for Ctrl-C.
    pub sender: Option<(u32, u32)>,
    /// When it was heard.
    pub at: Moment,
}

/// Says stop, once, to every [`Stop`] cloned from its other half. Dropping it says so too.
#[derive(Debug)]
pub struct Stopper {
    flag: Arc<AtomicBool>,
    asked: Arc<OnceLock<Asked>>,
    _alive: Sender<()>,
}

/// Hears it.
#[derive(Debug, Clone)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    asked: Arc<OnceLock<Asked>>,
    closed: Receiver<()>,
}

/// The two halves.
#[must_use]
pub fn channel() -> (Stopper, Stop) {
    let (alive, closed) = bounded(0);
    let flag = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(OnceLock::new());
    (Stopper { flag: flag.clone(), asked: asked.clone(), _alive: alive }, Stop { flag, asked, closed })
}

/// Says stop at SIGTERM, SIGINT or SIGHUP, and who sent it. A second one ends the process at once. To be called before
/// any other thread is made.
///
/// # Errors
/// When the signals can't be taken over.
pub fn on_signal(stopper: Stopper) -> anyhow::Result<()> {
    signals::block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopper = Some(stopper);
        loop {
            let signal = match signals::wait() {
                Ok(signal) => signal,
                Err(error) => {
                    tracing::error!(%error, "could not wait for signals: the agent stops");
                    return;
                }
            };
            let Some(stopper) = stopper.take() else { std::process::exit(EXIT_IMPATIENT) };
            let (pid, uid) = signal.sender.unzip();
            tracing::info!(signal = signal.name, from_pid = pid, from_uid = uid, "stopping");
            stopper.stop_for(Asked { signal: signal.name, sender: signal.sender, at: Moment::now() });
        }
    })?;
    Ok(())
}

impl Stopper {
    /// Every waiting stage wakes.
    pub fn stop(self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    /// The same, and who asked.
    pub fn stop_for(self, asked: Asked) {
        // Set once: whoever says stop gives itself away.
        let _ = self.asked.set(asked);
        self.stop();
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::SeqCst);
    }
}

impl Stop {
    /// Whether it was said.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Who asked for it; none when it was no signal.
    #[must_use]
    pub fn asked(&self) -> Option<Asked> {
        self.asked.get().copied()
    }

    /// Waits at most `time`; true when it was said.
    #[must_use]
    pub fn wait(&self, time: Duration) -> bool {
        let _ = self.closed.recv_timeout(time);
        self.is_set()
    }

    /// For `select!`: disconnects when it is said.
    #[must_use]
    pub fn channel(&self) -> &Receiver<()> {
        &self.closed
    }
}
