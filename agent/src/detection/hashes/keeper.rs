//! The lists in use, and the thread that makes others: detection goes on with the old ones until the new are whole.
//!
//! Owned by the detection thread, which selects on `Keeper::made`. Nobody waits for the thread: it may hang on a disk
//! that somebody else answers for.

use super::{HashSources, Hashes, Summary, build};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lists that were made, or why they could not be; one sentence.
pub type Made = Result<Hashes, String>;

/// The lists in use, and those that are wanted.
#[derive(Debug)]
pub struct Keeper {
    current: Arc<Hashes>,
    wanted: Option<HashSources>,
    building: Option<Arc<AtomicBool>>,
    refused: Option<String>,
    made: (Sender<Made>, Receiver<Made>),
}

impl Keeper {
    /// Without lists; starts to make those that are named.
    #[must_use]
    pub fn new(sources: HashSources) -> Self {
        let mut keeper =
            Self { current: Arc::default(), wanted: None, building: None, refused: None, made: bounded(1) };
        if !sources.files.is_empty() {
            keeper.want(sources);
        }
        keeper
    }

    /// Those in use.
    #[must_use]
    pub fn current(&self) -> &Arc<Hashes> {
        &self.current
    }

    /// None are in use, none are being made, and nothing has to be said of any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.current.version().is_empty() && self.building.is_none() && self.refused.is_none()
    }

    /// Makes others. Those that are being made now are given up: newer ones are wanted.
    pub fn want(&mut self, sources: HashSources) {
        self.wanted = Some(sources);
        match &self.building {
            Some(stop) => stop.store(true, Ordering::Relaxed),
            None => self.start(),
        }
    }

    /// To select on; each goes to [`Self::take`].
    #[must_use]
    pub fn made(&self) -> &Receiver<Made> {
        &self.made.1
    }

    /// Uses them. What became of it is for the operator: `None` when newer ones are being made already.
    pub fn take(&mut self, made: Made) -> Option<Result<&Hashes, &str>> {
        self.building = None;
        if self.wanted.is_some() {
            self.start();
            return None;
        }
        match made {
            Ok(hashes) => {
                (self.current, self.refused) = (Arc::new(hashes), None);
                Some(Ok(&self.current))
            }
            Err(error) => Some(Err(self.refused.insert(error))),
        }
    }

    /// At a glance.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = self.current.summary();
        summary.building = self.building.is_some();
        summary.errors.extend(self.refused.clone());
        summary
    }

    fn start(&mut self) {
        let Some(sources) = self.wanted.take() else { return };
        let (stop, made) = (Arc::new(AtomicBool::new(false)), self.made.0.clone());
        self.building = Some(stop.clone());
        let work = move || {
            crate::sys::background::give_way();
            let _ = made.send(build(&sources, &stop).map_err(|error| format!("{error:#}")));
        };
        if let Err(error) = std::thread::Builder::new().name("hash-lists".into()).spawn(work) {
            // Nothing else is in the channel: there is one thread at a time.
            let _ =
                self.made.0.try_send(Err(format!("could not start a thread for the hash lists: {error}")));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(stop) = &self.building {
            stop.store(true, Ordering::Relaxed);
        }
    }
}
