//! What of all agents together waits in memory for its commit. With a slow disk and ten thousand agents no limit of one
//! agent is small enough: beyond this one nobody is read, and QUIC's windows hold the agents back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Decoded events that wait for their commit, of all agents. What is being decoded when it is reached comes on top. Bytes.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// The sum. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Load(Arc<AtomicUsize>);

/// A part of it; dropping it takes it off.
#[derive(Debug)]
pub(super) struct Burden {
    load: Load,
    bytes: usize,
}

impl Load {
    /// Nothing more should be read.
    pub(super) fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= WAITING_BYTES_MAX
    }

    pub(super) fn nothing_yet(&self) -> Burden {
        Burden { load: self.clone(), bytes: 0 }
    }
}

impl Burden {
    /// What waits now. Bytes.
    pub(super) fn set(&mut self, bytes: usize) {
        self.load.0.fetch_add(bytes, Ordering::Relaxed);
        self.load.0.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.load.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_until_enough_is_committed() {
        let load = Load::default();
        let (mut one, mut other) = (load.nothing_yet(), load.nothing_yet());
        one.set(WAITING_BYTES_MAX / 2);
        assert!(!load.is_full());
        other.set(WAITING_BYTES_MAX / 2 + 1);
        assert!(load.is_full());
        one.set(7);
        assert!(!load.is_full());
        drop((one, other));
        assert_eq!(load.0.load(Ordering::Relaxed), 0);
    }
}
