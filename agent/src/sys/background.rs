//! Makes the calling thread give way to everybody else, as far as the system can.

/// Nice value of work that can wait: about a tenth of a busy processor, so that it ends some day.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Little of the processor, and the disk only when nobody else wants it. What is refused is only less polite.
#[cfg(target_os = "linux")]
pub fn give_way() {
    if let Err(error) = super::schedule::nice(NICE).and_then(|()| super::schedule::idle_io()) {
        tracing::debug!(%error, "could not lower the priority of a thread");
    }
}

/// Nice value of work that may take days.
#[cfg(target_os = "linux")]
const NICE_LAST: i32 = 19;

/// Only what nobody else wants, also for threads and processes that this thread starts. What is refused is only less
/// polite.
#[cfg(target_os = "linux")]
pub fn last_in_line() {
    if let Err(error) = super::schedule::nice(NICE_LAST).and_then(|()| super::schedule::idle_io()) {
        tracing::debug!(%error, "could not lower the priority of a thread");
    }
}

/// Elsewhere threads have no priorities of their own that are known here.
#[cfg(not(target_os = "linux"))]
pub fn last_in_line() {}

/// Elsewhere threads have no priorities of their own that are known here.
#[cfg(not(target_os = "linux"))]
pub fn give_way() {}
