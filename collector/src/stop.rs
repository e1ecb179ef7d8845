//! The one way to end: a flag that every task can poll or wait for.
//!
//! Only the first and the last stage hear it; what lies between ends when its input closes.

use tokio::sync::watch;

/// Says stop, once, to every [`Stop`] cloned from its other half. Dropping it says so too.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Hears it.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// The two halves.
#[must_use]
pub fn channel() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Every waiting task wakes.
    pub fn stop(self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether it was said.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until it is said. Safe to drop and call again.
    pub async fn wait(&mut self) {
        // An error means that the other half is gone, which says the same.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn saying_it_and_dropping_it_both_wake() {
        for say in [true, false] {
            let (stopper, stop) = channel();
            assert!(!stop.is_set());
            let mut waiting = stop.clone();
            let waiter = tokio::spawn(async move { waiting.wait().await });
            if say {
                stopper.stop();
            } else {
                drop(stopper);
            }
            assert!(waiter.await.is_ok());
            assert!(stop.is_set());
        }
    }
}
