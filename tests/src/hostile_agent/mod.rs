//! An agent that has joined for real, holds a valid certificate, and then misbehaves in one of a closed list of ways; and
//! honest agents beside it, whose acknowledgements are timed. Nothing of the agent's own transport is used after joining:
//! it could not misbehave if it wanted to.
//!
//! Used by the test `hostile_agent`, which says what the collector must answer, and by `bench-hostile`, which measures
//! what the honest agents feel.

/// A certificate, and sessions with it.
pub mod client;
/// What each misbehaviour does.
mod deeds;
/// Agents that do nothing wrong.
pub mod honest;
/// Compression that no library would do.
pub mod packing;

use client::Papers;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(6);

/// One way to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Misbehaviour {
    /// Names another host in its hello and in its events.
    OtherIds,
    /// Batches of an epoch that it did not say hello with.
    OtherEpoch,
    /// The same numbers again and again, with other events.
    NumberReuse,
    /// Numbers far beyond what is stored.
    NumberJumps,
    /// Numbers that no database can hold.
    NumbersBeyond,
    /// Frames of one byte.
    OneByteFrames,
    /// A frame that comes byte by byte and is never whole.
    SlowDrip,
    /// A frame that announces 4 GiB.
    HugeLength,
    /// Status after status, as fast as they are taken.
    EndlessStream,
    /// 100,000 streams.
    ManyStreams,
    /// A batch of 1 MiB that unpacks to gigabytes.
    ZstdBomb,
    /// A batch of two million events of no bytes.
    EmptyEvents,
    /// An event with a hundred thousand rules of no bytes.
    EmptyRules,
    /// Batches that are small and decode to hundreds of megabytes within every limit of a list.
    SmallAndLarge,
    /// Text that is not UTF-8, in an event and then in a status.
    InvalidUtf8,
    /// Events of 1677, 1970 and 2262.
    Times,
    /// Full batches, as fast as they are taken.
    TenfoldRate,
    /// Two thousand connections with one certificate.
    ManyConnections,
    /// Two thousand handshakes that are begun and not finished.
    HalfOpen,
    /// A connection that says nothing.
    Silent,
    /// Batches whose answers are never read.
    NoAnswersTaken,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The collector closed the connection.
    CutOff {
        /// The close code: a `vidette_protocol::wire::RefuseCode`.
        code: u64,
        /// The collector's words.
        reason: String,
    },
    /// The session is still there; what the collector made of it.
    Bounded(String),
}

/// What has to come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Cut off, with these words in the reason, and named.
    CutOff(&'static str),
    /// Slowed, refused event by event, or ignored, with these words in what is told.
    Bounded(&'static str),
}

impl Misbehaviour {
    /// Every one.
    pub const ALL: [Self; 21] = [
        Self::OtherIds,
        Self::OtherEpoch,
        Self::NumberReuse,
        Self::NumberJumps,
        Self::NumbersBeyond,
        Self::OneByteFrames,
        Self::SlowDrip,
        Self::HugeLength,
        Self::EndlessStream,
        Self::ManyStreams,
        Self::ZstdBomb,
        Self::EmptyEvents,
        Self::EmptyRules,
        Self::SmallAndLarge,
        Self::InvalidUtf8,
        Self::Times,
        Self::TenfoldRate,
        Self::ManyConnections,
        Self::HalfOpen,
        Self::Silent,
        Self::NoAnswersTaken,
    ];

    /// For tables and host names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OtherIds => "other-ids",
            Self::OtherEpoch => "other-epoch",
            Self::NumberReuse => "number-reuse",
            Self::NumberJumps => "number-jumps",
            Self::NumbersBeyond => "numbers-beyond",
            Self::OneByteFrames => "one-byte-frames",
            Self::SlowDrip => "slow-drip",
            Self::HugeLength => "huge-length",
            Self::EndlessStream => "endless-stream",
            Self::ManyStreams => "many-streams",
            Self::ZstdBomb => "zstd-bomb",
            Self::EmptyEvents => "empty-events",
            Self::EmptyRules => "empty-rules",
            Self::SmallAndLarge => "small-and-large",
            Self::InvalidUtf8 => "invalid-utf8",
            Self::Times => "times",
            Self::TenfoldRate => "tenfold-rate",
            Self::ManyConnections => "many-connections",
            Self::HalfOpen => "half-open",
            Self::Silent => "silent",
            Self::NoAnswersTaken => "no-answers-taken",
        }
    }

    /// What the collector must make of it.
    #[must_use]
    pub fn expected(self) -> Expected {
        match self {
            Self::OtherIds => Expected::Bounded("stored as its own"),
            Self::OtherEpoch => Expected::CutOff("another class or epoch"),
            Self::NumberReuse => Expected::Bounded("acknowledged up to 10"),
            Self::NumberJumps => Expected::Bounded("sent back to 1"),
            Self::NumbersBeyond => Expected::CutOff("run over the end"),
            Self::OneByteFrames => Expected::CutOff("frame"),
            Self::SlowDrip => Expected::CutOff("not finished in time"),
            Self::HugeLength => Expected::CutOff("was announced"),
            Self::EndlessStream => Expected::Bounded("slowed to"),
            Self::ManyStreams => Expected::Bounded("3 of 100000 streams"),
            Self::ZstdBomb => Expected::CutOff("can't be unpacked"),
            Self::EmptyEvents => Expected::CutOff("more entries"),
            Self::EmptyRules => Expected::Bounded("refused: rules has more entries"),
            Self::SmallAndLarge => Expected::CutOff("its events are not"),
            Self::InvalidUtf8 => Expected::CutOff("could not be read"),
            Self::Times => Expected::Bounded("acknowledged up to"),
            Self::TenfoldRate => Expected::Bounded("slowed to"),
            Self::ManyConnections => Expected::CutOff("too many connections"),
            Self::HalfOpen => Expected::Bounded("handshakes begun"),
            Self::Silent => Expected::CutOff("did not say hello"),
            Self::NoAnswersTaken => Expected::CutOff("did not take its answers"),
        }
    }

    /// Mostly waits: many of these can run at once.
    #[must_use]
    pub fn is_patient(self) -> bool {
        matches!(self, Self::SlowDrip | Self::Silent | Self::NoAnswersTaken)
    }

    /// Misbehaves on a thread of its own, at the lowest priority, so that what it does is felt and not how busy it is.
    pub fn start(self, papers: Papers) -> JoinHandle<anyhow::Result<Ending>> {
        std::thread::spawn(move || {
            // Of this thread alone (setpriority(2), "C library/kernel differences"). It goes on without.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
            self.run(&papers, FLOOD)
        })
    }

    /// Misbehaves here, until it is cut off or has done what it does; a flood lasts for `flood`.
    ///
    /// # Errors
    /// When it could not, or something else came of it than the collector's word.
    pub fn run(self, papers: &Papers, flood: Duration) -> anyhow::Result<Ending> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ending = runtime.block_on(deeds::run(self, papers, flood));
        runtime.shutdown_background();
        ending
    }
}
