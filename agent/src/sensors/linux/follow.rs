//! The connector's messages with what `/proc` adds to them, and what they say was lost.
//!
//! Assumes that the caller drains to empty every turn. Goes to the join.

use super::join::Told;
use super::proc;
use crate::host::Moment;
use crate::sensors::processes::{ProcessTable, is_ambiguous, is_same_start};
use crate::sys::connector::{Connector, Message, What};
use std::collections::HashMap;

/// Messages taken in one turn, so that a storm of forks can't keep files waiting for ever.
const MESSAGES_TURN_MAX: usize = 32_768;
/// The CPU of a message that none has numbered: an acknowledgement, on older kernels.
const NO_CPU: u32 = u32::MAX;
/// A start that `/proc` gives may lie this far from the fork's message. Nanoseconds.
const START_APART_MAX_NS: u64 = 1_000_000_000;

/// What one turn brought.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// Messages in their order.
    pub(crate) messages: Vec<Message>,
    /// Messages that were lost, exactly.
    pub(crate) lost: u64,
    /// The kernel said that its buffer was full.
    pub(crate) overflowed: bool,
}

/// Next number of each CPU.
#[derive(Debug, Default)]
pub(crate) struct Sequences(HashMap<u32, u32>);

impl Sequences {
    /// How many are missing before this one. The first of a CPU misses none. Everybody's acknowledgements come
    /// here too: they are numbered like events (6.18), or by no CPU at all (older kernels).
    pub(crate) fn missing(&mut self, cpu: u32, seq: u32) -> u32 {
        if cpu == NO_CPU {
            return 0;
        }
        let expected = self.0.insert(cpu, seq.wrapping_add(1)).unwrap_or(seq);
        let missing = seq.wrapping_sub(expected);
        if missing > u32::MAX / 2 { 0 } else { missing }
    }
}

/// Everything that waits.
///
/// # Errors
/// When the socket is dead: what was drained before is lost with it, and `/proc` is read again anyway.
pub(crate) fn drain(connector: &Connector, sequences: &mut Sequences) -> std::io::Result<Drained> {
    let mut drained = Drained::default();
    while drained.messages.len() < MESSAGES_TURN_MAX {
        match connector.receive() {
            Ok(Some(message)) => {
                drained.lost += u64::from(sequences.missing(message.cpu, message.seq));
                drained.messages.push(message);
            }
            Ok(None) => break,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => drained.overflowed = true,
            Err(error) => return Err(error),
        }
    }
    Ok(drained)
}

/// When a message was sent, by both clocks. It carries CLOCK_MONOTONIC, which stands still in a suspend.
pub(crate) fn moment(message: &Message, now: Moment, monotonic_now_ns: u64) -> Moment {
    let ago = monotonic_now_ns.saturating_sub(message.monotonic_ns);
    Moment { unix_ns: now.unix_ns.saturating_sub_unsigned(ago), uptime_ns: now.uptime_ns.saturating_sub(ago) }
}

/// A message for the join; none for what it does not need.
pub(crate) fn tell(
    message: &Message,
    at: Moment,
    table: &ProcessTable,
    remote: impl Fn(u64) -> bool,
) -> Option<Told> {
    Some(match message.what {
        What::Fork { parent, child } => {
            Told::Fork { parent, child, start_ns: Some(start(child, at.uptime_ns)) }
        }
        What::Exec { pid } => {
            let known = table.start_ns(pid);
            let facts =
                proc::facts(pid).filter(|facts| known.is_none() || is_same_start(facts.start_ns, known));
            let exe = facts.as_ref().and_then(|_| proc::open_exe(pid, remote));
            Told::Exec { pid, facts, exe }
        }
        What::User { pid, uid } => Told::User { pid, uid },
        What::Group { pid, gid } => Told::Group { pid, gid },
        What::Exit { pid, status } => Told::Exit { pid, status: status.cast_signed() },
        What::Acknowledged(_) | What::Other => return None,
    })
}

fn start(pid: u32, told_ns: u64) -> u64 {
    let read = is_ambiguous(told_ns).then(|| proc::start_ns(pid)).flatten();
    read.filter(|read_ns| read_ns.abs_diff(told_ns) < START_APART_MAX_NS).unwrap_or(told_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_numbers_are_counted_by_cpu_across_the_wrap() {
        let mut sequences = Sequences::default();
        let told =
            [(0, 7), (1, 900), (0, 8), (0, 11), (1, 901), (2, u32::MAX), (2, 1), (NO_CPU, 4), (NO_CPU, 9)];
        let missing: Vec<u32> = told.into_iter().map(|(cpu, seq)| sequences.missing(cpu, seq)).collect();
        assert_eq!(missing, [0, 0, 0, 2, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_message_is_as_old_as_it_says() {
        let message = Message { seq: 0, cpu: 0, monotonic_ns: 70, what: What::Other };
        let now = Moment { unix_ns: 1000, uptime_ns: 500 };
        assert_eq!(moment(&message, now, 100), Moment { unix_ns: 970, uptime_ns: 470 });
        assert_eq!(moment(&message, now, 60), now);
    }
}
