//! Tells systemd that the agent is there, and that its data path goes on; where nobody waits for that, nothing.

use crate::progress::{Judge, Turns, Waiting};
use crate::sys::notify::{self, Service};
use crate::telemetry::Counters;
use std::time::{Duration, Instant};

/// How often the stages are judged while systemd waits for a sign.
const LOOKS_A_WATCHDOG: u32 = 4;
/// A stage with nothing to do turns once a second.
const JUDGE_INTERVAL_MIN: Duration = Duration::from_secs(2);

/// The signs, and when the last look was.
#[derive(Debug)]
pub(crate) struct Beats {
    service: Option<Service>,
    /// How often the stages are judged; none: nobody waits for a sign.
    every: Option<Duration>,
    judged: Instant,
    judge: Judge,
    /// The stage that does not turn.
    stuck: Option<&'static str>,
}

impl Beats {
    /// For whoever started this process.
    pub(crate) fn new() -> Self {
        let every = notify::watchdog().map(|patience| (patience / LOOKS_A_WATCHDOG).max(JUDGE_INTERVAL_MIN));
        let service = Service::of_this_process();
        Self { service, every, judged: Instant::now(), judge: Judge::default(), stuck: None }
    }

    /// Lines of sd_notify(3).
    pub(crate) fn tell(&self, lines: &str) {
        self.service.iter().for_each(|service| service.tell(lines));
    }

    /// The sign, when it is time for one and every stage goes on.
    pub(crate) fn look(&mut self, counters: &Counters, transport: &Turns, waiting: Waiting) {
        if self.every.is_none_or(|every| self.judged.elapsed() < every) {
            return;
        }
        self.judged = Instant::now();
        let stuck = self.judge.stuck(&counters.progress, transport, waiting);
        match stuck {
            None => self.tell("WATCHDOG=1\nSTATUS=the data path goes on"),
            Some(stage) => {
                if self.stuck != stuck {
                    tracing::error!(
                        stage,
                        "a stage does not go on: unless it does soon, systemd starts the agent anew"
                    );
                }
                self.tell(&format!("STATUS=the stage `{stage}` does not go on"));
            }
        }
        self.stuck = stuck;
    }
}
