//! The one way to end: a flag that every stage can poll, wait for, or select on.
//!
//! Only the first and the last stage hear it; what lies between ends when its input closes.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The exit code after a second signal: somebody would not wait for the clean stop.
const EXIT_IMPATIENT: i32 = 130;

/// Says stop, once, to every [`Stop`] cloned from its other half. Dropping it says so too.
#[derive(Debug)]
pub struct Stopper {
    flag: Arc<AtomicBool>,
    _alive: Sender<()>,
}

/// Hears it.
#[derive(Debug, Clone)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    closed: Receiver<()>,
}

/// The two halves.
#[must_use]
pub fn channel() -> (Stopper, Stop) {
    let (alive, closed) = bounded(0);
    let flag = Arc::new(AtomicBool::new(false));
    (Stopper { flag: flag.clone(), _alive: alive }, Stop { flag, closed })
}

/// Says stop at SIGTERM, SIGINT or SIGHUP. A second one ends the process at once.
///
/// # Errors
/// When the signals can't be taken over.
pub fn on_signal(stopper: Stopper) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopper = Some(stopper);
        loop {
            let [terminate, interrupt, hangup] = &mut signals;
            let name = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    _ = hangup.recv() => "SIGHUP",
                }
            });
            let Some(stopper) = stopper.take() else { std::process::exit(EXIT_IMPATIENT) };
            tracing::info!(signal = name, "stopping");
            stopper.stop();
        }
    })?;
    Ok(())
}

impl Stopper {
    /// Every waiting stage wakes.
    pub fn stop(self) {
        self.flag.store(true, Ordering::SeqCst);
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
