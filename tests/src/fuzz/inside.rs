//! What targets share that run in this process: a panic is a finding, and so is a time that nobody would wait.

use super::behaviour::Behaviour;
use super::{Kind, Observed};
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::time::{ClockId, clock_gettime};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// No input may keep a decoder busy for longer, by the processor's time: others run on this machine.
const TIME_MAX: Duration = Duration::from_secs(2);

/// What a decoder made of an input: marks to tell it from others, or which promise was broken.
pub type Judged = Result<Vec<String>, String>;

/// Runs one input.
pub fn observe(decode: impl FnOnce() -> Judged) -> Observed {
    let began = busy();
    let judged = catch_unwind(AssertUnwindSafe(decode));
    let time = busy().saturating_sub(began);
    match judged {
        Err(panic) => {
            Observed::found(Kind::Limit, format!("the decoder panicked: {}", words(panic.as_ref())))
        }
        Ok(_) if time > TIME_MAX => {
            Observed::found(Kind::Limit, "decoding took more than two seconds".to_owned())
        }
        Ok(Err(broken)) => Observed::found(Kind::Limit, broken),
        Ok(Ok(marks)) => Observed::fine(Behaviour::new("read".into(), marks, time)),
    }
}

/// What this thread has used of a processor.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    // Numbers differ from input to input: without them one bug is one finding.
    text.unwrap_or("without words").chars().filter(|c| !c.is_ascii_digit()).take(200).collect()
}

/// A promise.
pub fn ensure(kept: bool, promise: &str) -> Result<(), String> {
    if kept { Ok(()) } else { Err(promise.to_owned()) }
}

/// An error without its numbers, as a mark.
pub fn error_mark(error: &dyn std::fmt::Display) -> String {
    error.to_string().chars().filter(|c| !c.is_ascii_digit()).take(80).collect()
}

/// Roughly how many.
pub fn log_mark(what: &str, count: usize) -> String {
    format!("{what} 2^{}", (count + 1).ilog2())
}

/// Any bytes, mostly few.
pub fn some_bytes(random: &mut StdRng, max_log2: u32) -> Vec<u8> {
    let max_log2 = random.random_range(0..=max_log2);
    let length = random.random_range(0..=1_usize << max_log2);
    let byte: u8 = random.random();
    let same = random.random();
    (0..length).map(|_| if same { byte } else { random.random() }).collect()
}
