//! Stage 1: what happens on the host, as observations with open descriptors.
//!
//! Assumes nothing of the other stages; observations go down one bounded channel to detection.

use crate::host::Moment;
use std::os::fd::OwnedFd;
use vidette_protocol::wire;

/// A file as a sensor hands it over: open, so that nothing acts on its path again.
#[derive(Debug)]
pub struct OpenFile {
    /// Read-only descriptor of a regular file.
    pub descriptor: OwnedFd,
    /// Its name when it was observed. For events and filters, never to open.
    pub path: Vec<u8>,
    /// It had no name any more.
    pub deleted: bool,
}

/// What a sensor saw. Never leaves the process.
#[derive(Debug)]
pub enum Observation {
    /// A file that was open for writing was closed, or (portable) changed.
    FileWritten {
        /// The file.
        file: OpenFile,
        /// The last closer, when it is known.
        process: Option<wire::Process>,
        /// What made it worth looking at: close-write, rename, link.
        trigger: wire::Trigger,
        /// When.
        at: Moment,
    },
    /// A program was run.
    ProgramRun {
        /// The process with its new image.
        process: wire::Process,
        /// The image, unless nobody could open it.
        image: Option<OpenFile>,
        /// A process that was there already when a polling sensor looked.
        found: bool,
        /// When.
        at: Moment,
    },
    /// A process that had run a program ended.
    ProcessEnded {
        /// The process.
        process: wire::Process,
        /// wait(2) status, when it is known.
        status: Option<i32>,
        /// When.
        at: Moment,
    },
    /// Something was lost.
    Lost {
        /// What is known of it.
        gap: wire::Gap,
        /// When it was noticed.
        at: Moment,
    },
    /// A sensor changed its state.
    Health {
        /// Which, and how it is.
        health: wire::Health,
        /// When.
        at: Moment,
    },
}
